"""Start gunicorn, after checks that end with one line where gunicorn would print a traceback.

python serve.py [ARGUMENT…]    with gunicorn's arguments
"""

import os
import sys

if sys.version_info < (3, 11):  # noqa: UP036 - whoever has an older one sees this line
    sys.exit(f"Python {sys.version.split()[0]}: want Python 3.11 or newer")

import settings

if __name__ == "__main__":
    settings.read_settings(os.environ)
    settings.bind_addresses(os.environ)
    # gunicorn converts it when it is imported, also if it is empty.
    os.environ["WEB_CONCURRENCY"] = str(settings.worker_count(os.environ))
    from gunicorn.app.wsgiapp import run

    sys.exit(run())
