"""Start gunicorn, with one line where it or Python would print a traceback.

python serve.py [ARGUMENT…]    with gunicorn's arguments
"""

import logging
import os
import sys

if sys.version_info < (3, 11):  # noqa: UP036 - whoever has an older one sees this line
    sys.exit(f"Python {sys.version.split()[0]}: want Python 3.11 or newer")

try:
    import gunicorn  # noqa: F401

    import settings
except ModuleNotFoundError as exc:
    sys.exit(f"{exc}: want the packages of requirements.txt, and the Python that has them")


class ListenErrors(logging.Filter):
    """Let one line pass of the eleven in which gunicorn says that it cannot listen."""

    is_said = False

    def filter(self, record: logging.LogRecord) -> bool:
        message = record.getMessage()
        if message.startswith(("Connection in use:", "Invalid address:", "Can't connect to")):
            return False
        if not message.startswith("connection to "):
            return True
        record.msg, record.args = f"{message}; trying for 5 seconds (PORT sets the port)", ()
        was_said, self.is_said = self.is_said, True
        return not was_said


def main() -> None:
    settings.read_settings(os.environ)
    settings.bind_addresses(os.environ)
    # gunicorn converts it when it is imported, also if it is empty.
    os.environ["WEB_CONCURRENCY"] = str(settings.worker_count(os.environ))
    from gunicorn.app.wsgiapp import run

    logging.getLogger("gunicorn.error").addFilter(ListenErrors())
    run()


if __name__ == "__main__":
    main()
