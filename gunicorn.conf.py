"""gunicorn's settings, where they differ from its defaults.

The address is gunicorn's own default: 127.0.0.1:8000, or every interface at
$PORT where that is set.  $WEB_CONCURRENCY is the number of workers, 1 by default.
"""

import logging

from gunicorn.workers.gthread import ThreadWorker

import parsing

wsgi_app = "app:app"

# Build the app once, before the fork: a setting that cannot be used stops the
# start with one line, and workers share the memory of what was loaded.
preload_app = True

# Threads: while one request waits for the disk, others are read and parsed.
worker_class = "gthread"
threads = 16

# The GET payload is in the request line; this is the most gunicorn allows.
limit_request_line = 8190

# No header may say at which path the app is mounted; no proxy of ours needs to.
forwarder_headers = ""

# No access log: it would hold addresses and payloads.  (gunicorn's default,
# repeated because a promise stands on it.)
accesslog = None

# What storage.py has to say goes to standard error, and looks like the rest.
logging.basicConfig(
    level=logging.INFO,
    format="%(asctime)s [%(process)d] [%(levelname)s] %(message)s",
    datefmt="[%Y-%m-%d %H:%M:%S %z]",
)

# No second way in.
control_socket_disable = True

# The worker's heartbeat must not wait for the disk that events wait for.
worker_tmp_dir = "/dev/shm"  # noqa: S108 - a directory of every Linux, not a file of ours


def on_starting(server: object) -> None:
    # Build ua-parser's matcher (0.2 s) now rather than in the first request.
    parsing.describe_agent("")


def post_worker_init(worker: ThreadWorker) -> None:
    # Here, not in create_app: a fork leaves threads behind.
    worker.wsgi.extensions["collector"].store.start_housekeeping()


def worker_exit(server: object, worker: ThreadWorker) -> None:
    worker.wsgi.extensions["collector"].store.close()
