"""gunicorn's settings, where they differ from its defaults, and its one worker class.

The address is gunicorn's own default: 127.0.0.1:8000, or every interface at
$PORT where that is set.  $WEB_CONCURRENCY is the number of workers, 1 by default.
"""

import contextlib
import errno
import json
import logging
import re
import resource
import socket
import ssl
import time
from collections.abc import Iterator
from concurrent.futures import Future
from datetime import datetime
from functools import partial
from http import HTTPStatus
from selectors import EVENT_READ
from typing import Any

from gunicorn.arbiter import Arbiter
from gunicorn.http import errors, wsgi
from gunicorn.workers.gthread import TConn, ThreadWorker

import parsing

RECEIVE_SECONDS = 9  # a client has 10: the last is for answering who waited behind it
PEEK_BYTES = 16 * 1024  # a longer request gets a thread
MAX_DRAINED_BYTES = 16 * 2**20  # of a body that was refused unread
ACCEPTED_AT_ONCE = 32  # at most, or other workers would have nothing to do; but
SLOW_ROUND_SECONDS = 0.1  # after a round that took longer all are, for the disk is slow


class Connection(TConn):
    """A connection that is closed without waiting for the client to close it first.

    gunicorn waits up to two seconds, in the loop that accepts everybody else.
    """

    is_late = False

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
    """gthread, but a whole request needs no thread, and no client can keep one.

    Threads that take turns at one interpreter cost more than the request itself.  So
    what has arrived whole is answered by the worker's main loop: it hands in the events
    of all who are ready, waits for the disk once, and answers them all.

    Who has sent a part gets a thread, and RECEIVE_SECONDS for the rest: then its reading
    side is shut, and the thread sees the end of the request.  (In gunicorn 27 a thread
    waits five seconds for the first byte and without a limit for the others.)  Of these
    methods only handle_error and _keepalive_after run in threads: nothing to lock.
    """

    alive: bool  # said here for mypy

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.deadlines: dict[TConn, float] = {}
        self.whole: list[TConn] = []
        self.round_seconds = 0.0

    def accept(self, listener: socket.socket) -> None:
        room = self.worker_connections - self.nr_conns
        is_slow = self.round_seconds > SLOW_ROUND_SECONDS
        for _ in range(room if is_slow else min(room, ACCEPTED_AT_ONCE)):
            try:
                sock, address = listener.accept()
            except OSError as exc:
                if exc.errno not in (errno.EAGAIN, errno.ECONNABORTED):
                    self.log.error("cannot accept: %s", exc)
                return
            self.nr_conns += 1
            self.enqueue_req(Connection(self.cfg, sock, address, listener.getsockname()))

    def enqueue_req(self, conn: TConn) -> None:
        """Decide who answers: the main loop, or a thread, or nobody yet where nothing was sent."""
        # Of an old connection, what is encrypted or was read ahead cannot be seen here.
        if conn.parser and (self.cfg.is_ssl or conn.parser.unreader.buf.getvalue()):
            self.give_to_thread(conn)
            return
        arrived = peek(conn.sock)
        if arrived is None:
            conn.timeout = time.monotonic() + RECEIVE_SECONDS
            self.pending_conns.append(conn)
            ready = partial(self.on_pending_socket_readable, conn)
            self.poller.register(conn.sock, EVENT_READ, ready)
        elif is_whole(arrived):
            self.whole.append(conn)
        else:
            self.give_to_thread(conn)

    def give_to_thread(self, conn: TConn) -> None:
        conn.data_ready = True
        self.deadlines[conn] = time.monotonic() + RECEIVE_SECONDS
        super().enqueue_req(conn)

    def answer_whole(self) -> None:
        began = time.monotonic()
        exchanges = [self.exchange(conn) for conn in self.whole]
        self.whole = []
        for exchange in exchanges:
            next(exchange, None)  # hands in the event
        for exchange in exchanges:
            next(exchange, None)  # waits for the disk, and answers
        self.round_seconds = time.monotonic() - began

    def exchange(self, conn: TConn) -> Iterator[None]:
        """Do what handle() does in a thread, and pause before the app is asked for the body.

        The socket never blocks: a client without room for its answer did not read its
        earlier answers, and is dropped.
        """
        request, keep = None, False
        try:
            conn.init()
            conn.sock.setblocking(False)
            request = next(conn.parser)
            response, environ = wsgi.create(request, conn.sock, conn.client, conn.server, self.cfg)
            self.nr += 1
            if self.nr >= self.max_requests and self.alive:
                self.log.info("Autorestarting worker after current request.")
                self.alive = False
            has_room = len(self.keepalived_conns) < self.max_keepalived
            if not (self.alive and self.cfg.keepalive and has_room):
                response.force_close()
            began = datetime.now()  # for an access log, where an admin wants one
            body = self.wsgi(environ, response.start_response)
            yield
            try:
                for chunk in body:
                    response.write(chunk)
                response.close()
            finally:
                self.log.access(response, request, environ, datetime.now() - began)
                if hasattr(body, "close"):
                    body.close()
            keep = not response.should_close() and conn.parser.finish_body()
        except (OSError, StopIteration) as exc:
            self.log.debug("The client is gone, or does not read: %s", exc)
        except Exception as exc:
            self.handle_error(request, conn.sock, conn.client, exc)
        future: Future[bool] = Future()
        future.set_result(keep)
        self.finish_request(conn, future)

    def _keepalive_after(self, conn: TConn, keepalive: bool) -> bool:
        """Read what is left of the body, also where the connection closes.

        Unread bytes would make that a reset, which can overtake the answer.
        """
        until = time.monotonic() + RECEIVE_SECONDS
        try:
            return conn.parser.finish_body(until, MAX_DRAINED_BYTES) and keepalive
        except (OSError, errors.ParseException):  # broken, but there is an answer already
            return False

    def finish_request(self, conn: TConn, future: Any) -> None:
        self.deadlines.pop(conn, None)
        super().finish_request(conn, future)

    def wait_for_and_dispatch_events(self, timeout: float) -> None:
        super().wait_for_and_dispatch_events(min(timeout, self.shut_late()))
        self.answer_whole()

    def shut_late(self) -> float:
        """Stop reading from who is late, then writing; return the seconds to the next deadline."""
        now = time.monotonic()
        while self.deadlines:
            conn, deadline = next(iter(self.deadlines.items()))  # the oldest: dicts keep order
            if deadline > now:
                return deadline - now
            del self.deadlines[conn]
            with contextlib.suppress(OSError):
                conn.sock.shutdown(socket.SHUT_RDWR if conn.is_late else socket.SHUT_RD)
            if not conn.is_late:
                conn.is_late = True
                self.deadlines[conn] = now + RECEIVE_SECONDS
        return float(RECEIVE_SECONDS)

    def handle_error(self, req: Any, client: socket.socket, addr: Any, exc: Exception) -> None:
        """Answer what the parser refused, and what failed outside of the app.

        gunicorn's own way logs the address, and the payload that is in a GET's target.
        """
        if isinstance(exc, errors.ParseException | ssl.SSLError):
            status, outcome = PARSER_STATUSES.get(type(exc), 400), "refused"
            detail = "The request is not valid HTTP."
        else:
            status, outcome, detail = 500, "failed", "The server has an error of its own."
            self.log.error("a request could not be answered", exc_info=exc)
        phrase = HTTPStatus(status).phrase
        body = json.dumps({"title": phrase, "status": status, "detail": detail})
        with contextlib.suppress(OSError):
            client.sendall(
                f"HTTP/1.1 {status} {phrase}\r\nConnection: close\r\n"
                f"Content-Type: application/problem+json\r\nContent-Length: {len(body)}\r\n"
                "Cache-Control: no-store\r\nAccess-Control-Allow-Origin: *\r\n"
                "Cross-Origin-Resource-Policy: cross-origin\r\nX-Content-Type-Options: nosniff\r\n"
                f"X-Telemetry-Outcome: {outcome}\r\n\r\n{body}".encode()
            )


PARSER_STATUSES = {
    errors.LimitRequestLine: 414,
    errors.ExpectationFailed: 417,
    errors.LimitRequestHeaders: 431,
}


def peek(sock: socket.socket) -> bytes | None:
    """Return what can be read, and leave it there: empty at the end, None where nothing is."""
    try:
        return sock.recv(PEEK_BYTES, socket.MSG_PEEK | socket.MSG_DONTWAIT)
    except BlockingIOError:
        return None
    except OSError:
        return b""


PLAIN_HEAD = re.compile(rb"[A-Z]+ [!-~]+ HTTP/1\.[01]\r\n")
NOT_PLAIN = re.compile(
    rb"\n(?:transfer-encoding|expect|upgrade|content-length(?!: ?\d{1,5}\r\n))", re.IGNORECASE
)
CONTENT_LENGTH = re.compile(rb"\r\ncontent-length: ?(\d+)", re.IGNORECASE)


def is_whole(arrived: bytes) -> bool:
    """Tell whether no more need come: the request is all there, or the connection has ended.

    In doubt it is not: then a thread parses it as far as it gets.
    """
    if not arrived:
        return True
    end = arrived.find(b"\r\n\r\n") + 4
    if end < 4 or not PLAIN_HEAD.match(arrived) or NOT_PLAIN.search(arrived, 0, end):
        return False
    length = CONTENT_LENGTH.search(arrived, 0, end)
    return len(arrived) - end >= (int(length[1]) if length else 0)


wsgi_app = "app:app"

# Build the app once, before the fork: a setting that cannot be used stops the
# start with one line, and workers share the memory of what was loaded.
preload_app = True

# Threads: for what arrives in parts.
worker_class = DeadlineWorker
threads = 16

# Out of descriptors, a worker could not even open the day's file.
worker_connections = min(512, resource.getrlimit(resource.RLIMIT_NOFILE)[0] // 2)

# Longer than any request takes: to arrive, and to wait for a stalled disk.
graceful_timeout = 20

# The GET payload is in the request line; more is only had by allowing any length.
limit_request_line = 8190

# No header may say at which path the app is mounted; no proxy of ours needs to.
forwarder_headers = ""

# No access log: it would hold addresses and payloads.  (gunicorn's default,
# repeated because a promise stands on it.)
accesslog = None

# What our own modules have to say goes to standard error, and looks like the rest.
logging.basicConfig(
    level=logging.INFO,
    format="%(asctime)s [%(process)d] [%(levelname)s] %(message)s",
    datefmt="[%Y-%m-%d %H:%M:%S %z]",
)

# gunicorn's control socket would be a second way in.
control_socket_disable = True

# The worker's heartbeat must not wait for the disk that events wait for.
worker_tmp_dir = "/dev/shm"  # noqa: S108 - a directory of every Linux, not a file of ours


def on_starting(server: Arbiter) -> None:
    # Build ua-parser's matcher now rather than in the first request.
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
    worker.wsgi.extensions["collector"].housekeeper.start()


def worker_exit(server: Arbiter, worker: ThreadWorker) -> None:
    worker.wsgi.extensions["collector"].store.close()
