"""gunicorn's settings where they differ from its defaults, each with its reason."""

import logging
import os
import resource
import signal
import socket
from functools import partial

from gunicorn.arbiter import Arbiter

import app
import settings
from worker import RECEIVE_SECONDS, RoundWorker

wsgi_app = "app:create_app()"
worker_class = RoundWorker

bind = settings.bind_addresses(os.environ)
workers = settings.worker_count(os.environ)

# Build the app once, before the fork: an invalid setting stops the start with one line, workers
# share the memory of what was loaded, and their user need not be able to read the Python
# installation.
preload_app = True

# Half of the descriptors: without any left, a worker could not even open the day's file.
worker_connections = min(512, resource.getrlimit(resource.RLIMIT_NOFILE)[0] // 2)

# Longer than any request takes to arrive and to wait for a stalled disk.
graceful_timeout = 20

# The payload of a GET is in the request line.  This is gunicorn's maximum, except for unlimited.
limit_request_line = 8190

# Headers must not set path or scheme of the app: neither is stored, and contradictory headers
# must not cost an event.
forwarder_headers = ""
secure_scheme_headers: dict[str, str] = {}

# Not the optional C parser, so that every installation parses alike.
http_parser = "python"

# A control socket would be a second way in.
control_socket_disable = True

# The worker's heartbeat must not wait for the disk that events wait for.
worker_tmp_dir = "/dev/shm"  # noqa: S108 - a directory of every Linux, not a file of ours

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
    for listener in server.LISTENERS:
        if listener.sock.family in (socket.AF_INET, socket.AF_INET6):
            # The kernel completes an accept only when there is something to read.
            seconds = int(RECEIVE_SECONDS)
            listener.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_DEFER_ACCEPT, seconds)


def post_worker_init(worker: RoundWorker) -> None:
    unblock_stop_signals()
    worker.wsgi.extensions["collector"].start()


def worker_exit(server: Arbiter, worker: RoundWorker) -> None:
    worker.wsgi.extensions["collector"].close()
