"""A gunicorn worker: one loop, no thread for each client.

An event passes through one round of the loop like this:

    receive()     accept and recv; incomplete requests wait, limited in number, bytes and time
    call_app()    for every complete request: parse, validate, Store.enqueue()
    respond()     for each of them: iterate over the response.  The first one waits in
                  Store.wait(), which flushes the batch: one write and one sync for all
                  events of the round.  Then each response leaves with one send()

PEP 3333 lets an application start its response as late as in the first step of the
iteration, and that is where ours waits for the disk.  Any other WSGI server runs the same
application, only slower.
"""

import errno
import os
import re
import select
import socket
import time
from collections.abc import Callable, Iterable
from email.utils import formatdate
from functools import lru_cache
from http import HTTPStatus
from types import SimpleNamespace
from typing import Any

from gunicorn.config import Config
from gunicorn.http import errors
from gunicorn.http.body import ChunkedReader, LengthReader
from gunicorn.http.message import Request
from gunicorn.http.unreader import IterUnreader
from gunicorn.http.wsgi import base_environ
from gunicorn.util import unquote_to_wsgi_str
from gunicorn.workers.base import Worker

from responses import RETRY_LATER, Headers, Prepared, problem

TICK_SECONDS = 1.0
RECEIVE_SECONDS = 9.0  # requests have 10 to arrive; deadlines are checked once a tick
RECV_BYTES = 2**16
MAX_HEAD_BYTES = 2**16
MAX_BODY_BYTES = 2**16  # the application rejects longer ones
MAX_CHUNK_LINE_BYTES = 2**13
MAX_REQUEST_BYTES = 2**19  # enough for the longest body in chunks of one byte
MAX_INCOMPLETE_BYTES = 2**24  # in total, of all connections
MAX_DRAINED_BYTES = 2**24
# Connections accepted in a round: the rest is for other workers.  But after a round that took
# long the disk is slow, and all are accepted, so that they share the next sync.
MAX_ACCEPTED = 32
SLOW_ROUND_SECONDS = 0.1

CRLF = b"\r\n"
HEAD_END = CRLF + CRLF
CHUNK_SIZE = re.compile(rb"([0-9a-fA-F]{1,15})[ \t]*(?:;.*)?", re.DOTALL)
NOT_IN_HEADERS = re.compile(r"[\r\n\0]")
NO_BODY = {100, 101, 102, 103, HTTPStatus.NO_CONTENT, HTTPStatus.NOT_MODIFIED}

PARSER_STATUSES = {
    errors.LimitRequestLine: HTTPStatus.REQUEST_URI_TOO_LONG,
    errors.ExpectationFailed: HTTPStatus.EXPECTATION_FAILED,
    errors.LimitRequestHeaders: HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE,
}
FAILED = problem(
    HTTPStatus.INTERNAL_SERVER_ERROR, "Internal error; the server's log has the reason."
)

# Settings of gunicorn that this worker does not support: name, the only valid value, remedy.
UNSUPPORTED = (
    ("is_ssl", None, "let a proxy in front end TLS"),
    ("http_protocols", ["h1"], "let a proxy in front speak HTTP/2"),
    ("http2_cleartext", "off", "let a proxy in front speak HTTP/2"),
    ("proxy_protocol", "off", "let the proxy in front set X-Forwarded-For"),
    ("accesslog", None, "an access log would hold addresses and payloads"),
)


class Connection:
    """A client's socket, and the bytes received on it that are not answered yet."""

    def __init__(self, sock: socket.socket, client: Any, base_environ: dict[str, Any]) -> None:
        self.sock, self.base_environ = sock, base_environ
        self.address = client[0] if isinstance(client, tuple) else ""  # none on a Unix socket
        self.received = bytearray()
        self.is_at_end = False  # the client has closed its side
        self.is_registered = False
        self.drained_bytes: int | None = None  # set once the last response was sent
        self.fresh_until = time.monotonic() + TICK_SECONDS
        self.start_request(RECEIVE_SECONDS)

    def start_request(self, seconds: float) -> None:
        self.deadline = time.monotonic() + seconds
        self.is_late = self.was_told_to_continue = False
        self.request: Any = None  # gunicorn's Request, once the head is complete
        self.error: Exception | None = None
        self.parsed_bytes = self.head_bytes = 0
        self.end: int | None = None  # of the request in `received`, once it is complete
        self.chunk_start = self.chunked_bytes = 0

    @property
    def is_receiving(self) -> bool:
        return bool(self.received) and self.drained_bytes is None

    @property
    def is_awaited(self) -> bool:
        """Tell whether a stop waits for it: while it receives, and shortly after its accept."""
        return self.is_receiving or time.monotonic() < self.fresh_until

    # A request can be answered once it is complete, or if more bytes would not help.

    def is_complete(self, limits: SimpleNamespace) -> bool:
        is_over = self.is_at_end or self.is_late
        if not self.request and not self.error:
            if not (self.has_head() or is_over):
                return False
            self.parse(limits)
        return self.error is not None or self.has_body() or is_over

    def has_head(self) -> bool:
        end = self.received.find(HEAD_END)
        if end >= 0:
            self.head_bytes = end + len(HEAD_END)
            return True
        # The parser will reject a bare LF, and a head that is too long.
        has_bare_lf = self.received.count(b"\n") != self.received.count(CRLF)
        return has_bare_lf or len(self.received) > MAX_HEAD_BYTES

    def parse(self, limits: SimpleNamespace) -> None:
        self.parsed_bytes = len(self.received)
        source = IterUnreader([bytes(self.received)])
        try:
            self.request = Request(limits, source, self.address)
        except Exception as exc:  # of whatever kind: the request cannot be parsed
            self.error = exc
            if self.parsed_bytes > MAX_HEAD_BYTES and isinstance(exc, errors.NoMoreData):
                self.error = errors.LimitRequestHeaders("the head is too long")

    def has_body(self) -> bool:
        reader = self.request.body.reader
        if isinstance(reader, ChunkedReader):
            return self.has_last_chunk() or len(self.received) > MAX_REQUEST_BYTES
        length = reader.length if isinstance(reader, LengthReader) else 0
        if len(self.received) >= self.head_bytes + length:
            self.end = self.head_bytes + length
        return self.end is not None or length > MAX_BODY_BYTES

    def has_last_chunk(self) -> bool:
        """Follow the chunks (RFC 9112, 7.1) from where the last call stopped."""
        at = self.chunk_start or self.head_bytes
        while (line_end := self.received.find(CRLF, at)) >= 0:
            line = CHUNK_SIZE.fullmatch(self.received[at:line_end])
            size = int(line[1], 16) if line else 0
            start = line_end + len(CRLF)
            arrived = min(size, len(self.received) - start)
            if not line or self.chunked_bytes + arrived > MAX_BODY_BYTES:
                return True  # malformed or too long: the application will reject it
            if size == 0:  # the last chunk, after which trailers may follow
                end = self.received.find(HEAD_END, line_end)
                self.end = end + len(HEAD_END) if end >= 0 else None
                return self.end is not None
            next_start = start + size + len(CRLF)
            if len(self.received) < next_start:
                return False
            if self.received[start + size : next_start] != CRLF:
                return True
            self.chunked_bytes += size
            self.chunk_start = at = next_start
        return len(self.received) - at > MAX_CHUNK_LINE_BYTES

    def say_continue(self) -> None:
        """Send `100 Continue` if the client expects it (RFC 9110, 10.1.1)."""
        request = self.request
        if request and request.version >= (1, 1) and not self.was_told_to_continue:
            self.was_told_to_continue = True
            if any(name == "EXPECT" for name, _ in request.headers):
                self.send(b"HTTP/1.1 100 Continue\r\n\r\n")

    def environ(self, limits: SimpleNamespace) -> dict[str, Any]:
        """Return the WSGI environment of the request (PEP 3333)."""
        if self.parsed_bytes < len(self.received):
            self.parse(limits)  # again, with the rest of the body
        request = self.request
        environ = {
            **self.base_environ,
            "REQUEST_METHOD": request.method,
            "PATH_INFO": unquote_to_wsgi_str(request.path) or "/",
            "QUERY_STRING": request.query,
            "SERVER_PROTOCOL": f"HTTP/{request.version[0]}.{request.version[1]}",
            "REMOTE_ADDR": self.address,
            "wsgi.input": request.body,
        }
        for name, value in request.headers:
            key = ENVIRON_NAMES.get(name) or f"HTTP_{name.replace('-', '_')}"
            environ[key] = f"{environ[key]},{value}" if key in environ else value
        return environ

    def can_continue(self) -> bool:
        """Tell whether another request may follow, and where it would start is known."""
        request = self.request
        if not request or self.error or self.end is None or request.body.failed:
            return False
        return not request.should_close()

    def send(self, content: bytes) -> bool:
        """Send all of it without blocking; return False if the client does not read."""
        try:
            sent = self.sock.send(content, socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL)
        except OSError:
            return False
        return sent == len(content)


ENVIRON_NAMES = {"CONTENT-TYPE": "CONTENT_TYPE", "CONTENT-LENGTH": "CONTENT_LENGTH"}


class Exchange:
    """One request, and the application's response to it."""

    def __init__(self, error: Exception | None) -> None:
        self.error = error
        self.status = ""
        self.headers: list[tuple[str, str]] = []
        self.content: list[bytes] = []
        self.body: Iterable[bytes] = ()

    def start_response(
        self, status: str, headers: list[tuple[str, str]], exc_info: Any = None
    ) -> Callable[[bytes], object]:
        self.status, self.headers = status, headers
        return self.content.append

    def finish(self) -> Prepared:
        """Iterate over the body; the application may start its response only now."""
        if self.error:
            raise self.error
        try:
            self.content.extend(self.body)
        finally:
            if hasattr(self.body, "close"):
                self.body.close()
        return Prepared(self.status, tuple(self.headers), b"".join(self.content))


class RoundWorker(Worker):  # type: ignore[misc]  # gunicorn has no types
    """Calls the application for all complete requests before it iterates over any response."""

    alive: bool

    @classmethod
    def check_config(cls, cfg: Config, log: Any) -> None:
        """Raise SystemExit if a setting asks for something that this worker does not support."""
        for name, supported, remedy in UNSUPPORTED:
            value = getattr(cfg, name)
            if value and value != supported:
                raise SystemExit(f"{name}={value!r}: not supported; {remedy}")

    def run(self) -> None:
        self.connections: dict[int, Connection] = {}
        self.ready: list[Connection] = []
        self.round_seconds = self.next_tick = 0.0
        self.retire_at: float | None = None  # when max_requests has been reached
        self.is_accepting = False
        self.limits = plain_copy(self.cfg)
        self.epoll = select.epoll()
        self.epoll.register(self.PIPE[0], select.EPOLLIN)  # signals wake the loop
        self.listeners = {
            one.fileno(): (one, listener_environ(one, self.cfg)) for one in self.sockets
        }
        while self.alive or any(one.is_awaited for one in self.connections.values()):
            try:
                self.run_round()
            except Exception:
                # If every round fails, no tick sends a heartbeat, and the master ends the worker.
                self.log.exception("the loop goes on after an error")
        for connection in list(self.connections.values()):
            self.close(connection)

    def is_receiving(self) -> bool:
        return any(one.is_receiving for one in self.connections.values())

    def run_round(self) -> None:
        if not self.alive and self.is_accepting:
            self.stop_accepting()
        if time.monotonic() >= self.next_tick:
            self.tick()
        for fd, _ in self.epoll.poll(0 if self.ready else TICK_SECONDS):
            if fd in self.listeners:
                self.accept(*self.listeners[fd])
            elif fd in self.connections:
                self.attempt(self.receive, self.connections[fd])
            elif fd == self.PIPE[0]:
                os.read(fd, RECV_BYTES)  # the signal has been handled
        self.answer_ready()
        self.retire_if_due()

    def tick(self) -> None:
        """Once a second: send the heartbeat, check deadlines, accept again after a pause."""
        now = time.monotonic()
        self.next_tick = now + TICK_SECONDS
        self.notify()
        self.alive = self.alive and self.ppid == os.getppid()
        if self.alive and not self.is_accepting:
            self.start_accepting()
        for connection in list(self.connections.values()):
            if connection.deadline <= now and connection not in self.ready:
                connection.is_late = True
                self.attempt(self.examine, connection)

    def attempt(self, step: Callable[[Connection], None], connection: Connection) -> None:
        """Run a step for one connection; an error drops it, and affects no other."""
        try:
            step(connection)
        except Exception:
            self.log.exception("a connection was dropped after an error")
            self.close(connection)

    def retire_if_due(self) -> None:
        """End after max_requests, but keep accepting while requests are incomplete.

        The next worker starts only when this one has ended, so one slow client would delay
        all others.
        """
        now = time.monotonic()
        if self.alive and self.nr >= self.max_requests and self.retire_at is None:
            self.log.info("the worker ends after %d requests", self.nr)
            self.retire_at = now + RECEIVE_SECONDS
        if self.retire_at is not None and (now >= self.retire_at or not self.is_receiving()):
            self.alive = False
            for connection in self.connections.values():
                connection.deadline = now

    # Connections.

    def start_accepting(self) -> None:
        self.is_accepting = True
        for fd in self.listeners:
            # Exclusive: a new connection wakes one worker, not all of them.
            self.epoll.register(fd, select.EPOLLIN | select.EPOLLEXCLUSIVE)

    def stop_accepting(self) -> None:
        self.is_accepting = False
        for fd in self.listeners:
            self.epoll.unregister(fd)

    def accept(self, listener: Any, environ: dict[str, Any]) -> None:
        is_slow = self.round_seconds > SLOW_ROUND_SECONDS
        for _ in range(self.cfg.worker_connections if is_slow else MAX_ACCEPTED):
            if len(self.connections) >= self.cfg.worker_connections and not self.make_room():
                return
            try:
                sock, client = listener.accept()
            except BlockingIOError:
                return
            except OSError as exc:
                if exc.errno != errno.ECONNABORTED:
                    self.log.error("cannot accept for a moment: %s", exc)
                    self.make_room()
                    self.stop_accepting()  # until the next tick
                return
            connection = Connection(sock, client, environ)
            self.connections[sock.fileno()] = connection
            self.attempt(self.receive, connection)

    def make_room(self) -> bool:
        """Drop an idle connection, else the one nearest to its deadline."""
        waiting = [one for one in self.connections.values() if one not in self.ready]
        if waiting:
            one = min(waiting, key=lambda one: (one.is_receiving, one.deadline))
            if one.is_receiving:
                one.send(response_bytes(RETRY_LATER))
            self.close(one)
        return bool(waiting)

    def receive(self, connection: Connection) -> None:
        try:
            content = connection.sock.recv(RECV_BYTES, socket.MSG_DONTWAIT)
        except BlockingIOError:
            self.watch(connection)
            return
        except OSError:
            self.close(connection)
            return
        if connection.drained_bytes is not None:
            self.drain(connection, content)
            return
        if content and not connection.received:
            connection.deadline = time.monotonic() + RECEIVE_SECONDS
        connection.received += content
        connection.is_at_end = not content
        self.examine(connection)

    def examine(self, connection: Connection) -> None:
        """Queue the request for this round if it is complete; else wait for more of it."""
        if not connection.is_receiving:
            if connection.is_at_end or connection.is_late:
                self.close(connection)
            else:
                self.watch(connection)
        elif connection.is_complete(self.limits):
            self.ready.append(connection)
        else:
            self.watch(connection)
            connection.say_continue()
            self.bound_incomplete()

    def bound_incomplete(self) -> None:
        """Drop the largest incomplete request if all together take too much memory."""
        waiting = [one for one in self.connections.values() if one not in self.ready]
        if sum(len(one.received) for one in waiting) > MAX_INCOMPLETE_BYTES:
            largest = max(waiting, key=lambda one: len(one.received))
            self.answer(largest, RETRY_LATER)

    def watch(self, connection: Connection) -> None:
        if not connection.is_registered:
            self.epoll.register(connection.sock, select.EPOLLIN)
            connection.is_registered = True

    def drain(self, connection: Connection, content: bytes) -> None:
        connection.drained_bytes = (connection.drained_bytes or 0) + len(content)
        if not content or connection.drained_bytes > MAX_DRAINED_BYTES:
            self.close(connection)

    def close(self, connection: Connection) -> None:
        self.connections.pop(connection.sock.fileno(), None)
        connection.sock.close()

    # Requests.

    def answer_ready(self) -> None:
        began = time.monotonic()
        ready, self.ready = self.ready, []
        for connection, exchange in [(one, self.call_app(one)) for one in ready]:
            self.respond(connection, exchange)
        self.round_seconds = time.monotonic() - began

    def call_app(self, connection: Connection) -> Exchange:
        exchange = Exchange(connection.error)
        self.nr += 1
        try:
            if connection.error is None:
                environ = connection.environ(self.limits)
                exchange.body = self.wsgi(environ, exchange.start_response)
        except Exception as exc:
            exchange.error = exc
        return exchange

    def respond(self, connection: Connection, exchange: Exchange) -> None:
        try:
            prepared = exchange.finish()
            encode_head(prepared.status, prepared.headers)
        except Exception as exc:
            prepared = self.explain(exc)
        self.answer(connection, prepared)

    def explain(self, exc: Exception) -> Prepared:
        if isinstance(exc, errors.ParseException | errors.NoMoreData):
            return problem(PARSER_STATUSES.get(type(exc), 400), "The request is not valid HTTP.")
        self.log.error("a request could not be answered", exc_info=exc)
        return FAILED

    def answer(self, connection: Connection, prepared: Prepared) -> None:
        """Send a response with one send(), then wait for the next request or close."""
        may_continue = connection.can_continue() and self.alive and self.cfg.keepalive > 0
        is_head = connection.request is not None and connection.request.method == "HEAD"
        if not connection.send(response_bytes(prepared, is_head, may_continue)):
            self.close(connection)
        elif may_continue:
            del connection.received[: connection.end]
            connection.start_request(self.cfg.keepalive)
            if connection.received:
                connection.deadline = time.monotonic() + RECEIVE_SECONDS
            self.examine(connection)
        elif connection.is_at_end or connection.end == len(connection.received):
            self.close(connection)
        else:
            self.start_draining(connection)

    def start_draining(self, connection: Connection) -> None:
        """Read what the client still sends before closing.

        With unread bytes close() would send a reset, which can overtake the response.
        """
        try:
            connection.sock.shutdown(socket.SHUT_WR)
            connection.received.clear()
            connection.drained_bytes = 0
            connection.deadline = time.monotonic() + RECEIVE_SECONDS
            self.watch(connection)
        except OSError:
            self.close(connection)


def plain_copy(cfg: Config) -> SimpleNamespace:
    """Return the settings as plain attributes.

    gunicorn's Config looks up each access, which took a third of the parser's time.
    """
    settings = {name: setting.get() for name, setting in cfg.settings.items()}
    return SimpleNamespace(**settings, is_ssl=False)


def listener_environ(listener: Any, cfg: Config) -> dict[str, Any]:
    name = listener.getsockname()
    host, port = name[:2] if isinstance(name, tuple) else ("localhost", 80)
    return {
        **base_environ(cfg),
        "SCRIPT_NAME": "",
        "SERVER_NAME": host,
        "SERVER_PORT": str(port),
        "wsgi.url_scheme": "http",
    }


def response_bytes(prepared: Prepared, is_head: bool = False, keep_alive: bool = False) -> bytes:
    head, has_length = encode_head(prepared.status, prepared.headers)
    date = http_date(int(time.time()))
    more = f"Date: {date}\r\nConnection: {'keep-alive' if keep_alive else 'close'}\r\n"
    if not has_length and not is_head:
        more += f"Content-Length: {len(prepared.body)}\r\n"
    body = b"" if is_head else prepared.body
    return b"%b%b\r\n%b" % (head, more.encode("ascii"), body)


@lru_cache(256)  # most responses have one of few heads
def encode_head(status: str, headers: Headers) -> tuple[bytes, bool]:
    """Return the status line and headers, and whether they need no Content-Length added."""
    lines = [f"HTTP/1.1 {status}", *(f"{name}: {value}" for name, value in headers)]
    if any(NOT_IN_HEADERS.search(line) for line in lines):
        raise ValueError("a response header must not hold a line break")
    names = {name.lower() for name, _ in headers}
    has_length = "content-length" in names or int(status[:3]) in NO_BODY
    return "".join(f"{line}\r\n" for line in lines).encode("latin-1"), has_length


@lru_cache(1)
def http_date(second: int) -> str:
    return formatdate(second, usegmt=True)
