"""gunicorn's settings where they differ from its defaults, each with its reason."""

import logging
import os
import resource
import signal
from functools import partial
from typing import Any

from gunicorn.arbiter import Arbiter
from gunicorn.workers.base import Worker

import app
import settings

wsgi_app = "app:create_app()"

worker_class: Any = "gthread"
missing = ""
try:
    from worker import RoundWorker

    worker_class = RoundWorker
except ImportError as exc:  # no epoll, or no httptools
    missing = str(exc)
    threads = 32
    # The payload of a GET is in the request line.  This is gunicorn's maximum.
    limit_request_line = 8190
    # Headers must not set path or scheme of the app: neither is stored, and contradictory
    # headers must not cost an event.
    forwarder_headers = ""
    secure_scheme_headers: dict[str, str] = {}

bind = settings.bind_addresses(os.environ)
workers = settings.worker_count(os.environ)

# Build the app once, before the fork: an invalid setting stops the start with one line, workers
# share the memory of what was loaded, and their user need not be able to read the Python
# installation.
preload_app = True

# Half of the descriptors: without any left, a worker could not even open the day's file.
soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
if 0 <= soft < 4096 <= hard:
    resource.setrlimit(resource.RLIMIT_NOFILE, (4096, hard))
worker_connections = min(2048, resource.getrlimit(resource.RLIMIT_NOFILE)[0] // 2)

# Longer than any request takes to arrive and to be answered.  A process that waits for a frozen
# file system cannot even be killed, so the master goes without it.
graceful_timeout = 13

# Balancers keep connections for 60 seconds.
keepalive = 75

# A control socket would be a second way in.
control_socket_disable = True

# The worker's heartbeat must not wait for the disk that events wait for.
worker_tmp_dir = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None  # noqa: S108

# Our own modules log to standard error, in the format of gunicorn's log.
logging.basicConfig(
    level=logging.INFO,
    format="%(asctime)s [%(process)d] [%(levelname)s] %(message)s",
    datefmt="[%Y-%m-%d %H:%M:%S %z]",
)


# A worker has no signal handlers of its own before post_worker_init.  A signal to stop that
# arrived earlier would be lost, and the worker would be killed later, with its connections.
# Blocked from before the fork, the signal stays pending until the handlers are set.
STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGQUIT)
block_stop_signals = partial(signal.pthread_sigmask, signal.SIG_BLOCK, STOP_SIGNALS)
unblock_stop_signals = partial(signal.pthread_sigmask, signal.SIG_UNBLOCK, STOP_SIGNALS)


def on_starting(server: Arbiter) -> None:
    app.warm_up(server.app.wsgi())
    os.register_at_fork(before=block_stop_signals, after_in_parent=unblock_stop_signals)


def pre_exec(server: Arbiter) -> None:
    unblock_stop_signals()  # in the next master of an upgrade, which is forked as well


def when_ready(server: Arbiter) -> None:
    believed = server.app.wsgi().extensions["collector"].settings.trusted_proxies
    nobody = "nobody (TELEMETRY_TRUSTED_PROXIES is empty)"
    server.log.info("X-Forwarded-For is believed from: %s", str(believed) or nobody)
    if missing:
        server.log.warning("%s: gunicorn's gthread serves; that is for trying only", missing)


def post_worker_init(worker: Worker) -> None:
    unblock_stop_signals()
    collector = worker.wsgi.extensions["collector"]
    worker.record_refusal = collector.record_refusal
    collector.start()


def worker_exit(server: Arbiter, worker: Worker) -> None:
    worker.wsgi.extensions["collector"].close()
