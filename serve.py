"""Start gunicorn, with one line where it or Python would print a traceback.

python serve.py [ARGUMENT…]    with gunicorn's arguments
"""

import os
import sys

if sys.version_info < (3, 11):  # noqa: UP036 - whoever has an older one sees this line
    sys.exit(f"Python {sys.version.split()[0]}: want Python 3.11 or newer")

try:
    import gunicorn  # noqa: F401

    import settings
except ModuleNotFoundError as exc:
    sys.exit(f"{exc}: want the packages of requirements.txt, and the Python that has them")


def main() -> None:
    settings.read_settings(os.environ)
    settings.bind_addresses(os.environ)
    # gunicorn converts it when it is imported, also if it is empty.
    os.environ["WEB_CONCURRENCY"] = str(settings.worker_count(os.environ))
    from gunicorn.app.wsgiapp import run

    run()


if __name__ == "__main__":
    main()
