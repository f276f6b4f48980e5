"""gunicorn's settings, where they differ from its defaults, and its one worker class.

The address is gunicorn's own default: 127.0.0.1:8000, or every interface at
$PORT where that is set.  $WEB_CONCURRENCY is the number of workers, 1 by default.
"""

import contextlib
import errno
import json
import logging
import resource
import socket
import time
from functools import partial
from http import HTTPStatus
from selectors import EVENT_READ
from typing import Any

from gunicorn.arbiter import Arbiter
from gunicorn.http import errors
from gunicorn.workers.gthread import TConn, ThreadWorker

import parsing

RECEIVE_SECONDS = 9  # of the 10 that a client has; who waits behind it is answered in the last


class Connection(TConn):
    """A connection that is closed without waiting for the client to close it first.

    gunicorn waits up to two seconds, in the loop that accepts everybody else.
    """

    def close(self, graceful: bool = False) -> None:
        with contextlib.suppress(OSError):
            self.sock.setblocking(False)
            self.sock.shutdown(socket.SHUT_WR)
            # Unread bytes would make close() send a reset, which can overtake the answer.
            for _ in range(16):
                if not self.sock.recv(2**16):
                    break
        self.sock.close()


class DeadlineWorker(ThreadWorker):
    """gthread, but no client can keep a thread: a whole request has RECEIVE_SECONDS to arrive.

    A connection gets a thread only once it has sent something, and the reading
    side of one that takes too long is shut: its thread then sees the end of the
    request.  (In gunicorn 27 a thread waits five seconds for the first byte and
    without a limit for the others.)  All methods but handle_error run in the
    worker's main loop, so there is nothing to lock.
    """

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.deadlines: dict[TConn, float] = {}

    def accept(self, listener: socket.socket) -> None:
        try:
            sock, address = listener.accept()
        except OSError as exc:
            if exc.errno not in (errno.EAGAIN, errno.ECONNABORTED):
                self.log.error("cannot accept: %s", exc)
            return
        self.nr_conns += 1
        conn = Connection(self.cfg, sock, address, listener.getsockname())
        if has_sent(sock):
            self.start(conn)
        else:
            conn.timeout = time.monotonic() + RECEIVE_SECONDS
            self.pending_conns.append(conn)
            ready = partial(self.on_pending_socket_readable, conn)
            self.poller.register(sock, EVENT_READ, ready)

    def start(self, conn: TConn) -> None:
        conn.data_ready = True
        self.enqueue_req(conn)

    def enqueue_req(self, conn: TConn) -> None:
        self.deadlines[conn] = time.monotonic() + RECEIVE_SECONDS
        super().enqueue_req(conn)

    def finish_request(self, conn: TConn, future: Any) -> None:
        self.deadlines.pop(conn, None)
        super().finish_request(conn, future)

    def wait_for_and_dispatch_events(self, timeout: float) -> None:
        super().wait_for_and_dispatch_events(min(timeout, self.shut_late()))

    def shut_late(self) -> float:
        """Stop reading from who is late; return the seconds until the next one may be."""
        now = time.monotonic()
        while self.deadlines:
            conn, deadline = next(iter(self.deadlines.items()))  # the oldest: dicts keep order
            if deadline > now:
                return deadline - now
            del self.deadlines[conn]
            with contextlib.suppress(OSError):
                conn.sock.shutdown(socket.SHUT_RD)
        return float(RECEIVE_SECONDS)

    def handle_error(self, req: Any, client: socket.socket, addr: Any, exc: Exception) -> None:
        """Answer what gunicorn's parser refused; its own way logs the address."""
        if not isinstance(exc, errors.ParseException):
            super().handle_error(req, client, addr, exc)
            return
        status = HTTPStatus(PARSER_STATUSES.get(type(exc), 400))
        body = json.dumps(
            {"title": status.phrase, "status": status, "detail": "The request is not valid HTTP."}
        )
        with contextlib.suppress(OSError):
            client.sendall(
                f"HTTP/1.1 {status} {status.phrase}\r\nConnection: close\r\n"
                f"Content-Type: application/problem+json\r\nContent-Length: {len(body)}\r\n"
                f"Cache-Control: no-store\r\nX-Telemetry-Outcome: refused\r\n\r\n{body}".encode()
            )


PARSER_STATUSES = {
    errors.LimitRequestLine: 414,
    errors.ExpectationFailed: 417,
    errors.LimitRequestHeaders: 431,
}


def has_sent(sock: socket.socket) -> bool:
    """Tell whether there is something to read: bytes, or the end."""
    try:
        sock.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT)
    except BlockingIOError:
        return False
    except OSError:
        return True
    return True


wsgi_app = "app:app"

# Build the app once, before the fork: a setting that cannot be used stops the
# start with one line, and workers share the memory of what was loaded.
preload_app = True

# Threads: while one request waits for the disk, others are read and parsed.
worker_class = DeadlineWorker
threads = 16

# Out of descriptors, a worker could not even open the day's file.
worker_connections = min(512, resource.getrlimit(resource.RLIMIT_NOFILE)[0] // 2)

# Longer than any request takes: to arrive, and to wait for a stalled disk.
graceful_timeout = 20

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


def on_starting(server: Arbiter) -> None:
    # Build ua-parser's matcher (0.2 s) now rather than in the first request.
    parsing.describe_agent("")


def when_ready(server: Arbiter) -> None:
    proxies = server.app.wsgi().extensions["collector"].settings.trusted_proxies
    believed = ", ".join(map(str, proxies)) or "nobody (TELEMETRY_TRUSTED_PROXIES is empty)"
    server.log.info("X-Forwarded-For is believed from: %s", believed)
    for listener in server.LISTENERS:
        if listener.sock.family in (socket.AF_INET, socket.AF_INET6):
            # The kernel hands a connection over when there is something to read.
            listener.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_DEFER_ACCEPT, RECEIVE_SECONDS)


def post_worker_init(worker: ThreadWorker) -> None:
    # Here, not in create_app: a fork leaves threads behind.
    worker.wsgi.extensions["collector"].store.start_housekeeping()


def worker_exit(server: Arbiter, worker: ThreadWorker) -> None:
    worker.wsgi.extensions["collector"].store.close()
