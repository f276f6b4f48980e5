"""The loop: which connection is read, answered or closed, and when."""

import contextlib
import math
import os
import select
import socket
import time
from collections.abc import Callable
from select import EPOLLIN, EPOLLOUT, epoll
from typing import Any

from gunicorn.config import Config
from gunicorn.http.wsgi import base_environ
from gunicorn.workers.base import Worker

from responses import INTERNAL_ERROR, RETRY_LATER, problem
from worker.connection import RECEIVE_SECONDS, RECV_BYTES, Connection
from worker.exchange import INCOMPLETE, Environ, Exchange, response_bytes

TICK_SECONDS = 1.0
IMMEDIATELY_SECONDS = 0.005  # how long poll() takes when something has been waiting
MAX_HELD_BYTES = 2**24  # of all connections: incomplete requests, and what clients do not read
# A round receives no more than this, each request counted with what it takes once parsed, and for
# no longer; the rest waits in the kernel.  So no round takes long or fills the store's queue.
MAX_ROUND_BYTES = 2**21
REQUEST_BYTES = 2**9
READ_SECONDS = 0.1
MAX_TOGETHER = 256  # requests of one connection in a round
# On a slow disk, a request that would have to wait longer is refused at once.
ANSWER_SECONDS = 2.8
SLOW_ROUND_SECONDS = 0.3

CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"
FAILED = problem(500, INTERNAL_ERROR)

# gunicorn's settings that this worker does not support, by the reason.
UNSUPPORTED = {
    "TLS, HTTP/2 and the PROXY protocol are for a proxy in front": (
        "certfile keyfile http_protocols http2_cleartext protocol proxy_protocol"
    ),
    "an access log would hold addresses and payloads": "accesslog",
    "a worker's memory does not grow": "max_requests",
    "headers set neither path nor scheme": "forwarder_headers secure_scheme_headers",
    "llhttp parses requests, and has no such setting": (
        "limit_request_line limit_request_fields limit_request_field_size header_map http_parser "
        "permit_obsolete_folding permit_unconventional_http_method strip_header_spaces "
        "permit_unconventional_http_version casefold_http_method"
    ),
}


class RoundWorker(Worker):  # type: ignore[misc]  # gunicorn has no types
    """Calls the application for all complete requests before it iterates over any response."""

    alive: bool
    # Called with status and detail of a request that never comes as far as the application.
    record_refusal: Callable[[int, str], object] = staticmethod(lambda status, detail: None)

    @classmethod
    def check_config(cls, cfg: Config, log: Any) -> None:
        """Raise SystemExit if a setting asks for something that this worker does not support."""
        defaults = Config()
        for reason, names in UNSUPPORTED.items():
            for name in names.split():
                value = cfg.settings[name].get()
                if value != defaults.settings[name].get():
                    raise SystemExit(f"{name}={value!r}: not supported; {reason}")

    def run(self) -> None:
        self.connections: dict[int, Connection] = {}
        self.max_connections = self.cfg.worker_connections
        self.keepalive_seconds = self.cfg.keepalive
        self.ready: dict[Connection, None] = {}  # in their order, each once
        self.round_bytes = self.unchecked_bytes = 0
        self.round_seconds = self.next_tick = 0.0
        self.has_left_some = False
        self.waiting_since = time.monotonic()  # what is still unread arrived later
        self.epoll = epoll()
        self.listeners = {one.fileno(): one.sock for one in self.sockets}
        self.environs = {fd: listener_environ(one, self.cfg) for fd, one in self.listeners.items()}
        self.watched: set[int] = set()  # listeners, and the pipe that signals write to
        for listener in self.listeners.values():
            defer_accept(listener)
        while self.listeners or any(one.delays_shutdown for one in self.connections.values()):
            try:
                self.run_round()
            except Exception:
                # If every round fails, no tick sends a heartbeat, and the master ends the worker.
                self.log.exception("the loop goes on after an error")
        for connection in list(self.connections.values()):
            self.close(connection)

    def run_round(self) -> None:
        """Read from all clients that have sent something, then answer what is complete."""
        self.round_bytes = REQUEST_BYTES * sum(len(one.complete) for one in self.ready)
        self.has_left_some = False
        if time.monotonic() >= self.next_tick:
            self.tick()
        self.full_at = math.inf
        if self.listeners and not self.alive:
            self.stop_listening()
            return  # there may be nothing left to wait for
        asked = time.monotonic()
        timeout = 0 if self.ready else TICK_SECONDS
        events = self.epoll.poll(timeout, self.max_connections + len(self.watched) + 1)
        polled = time.monotonic()
        if polled - asked > IMMEDIATELY_SECONDS:
            self.waiting_since = polled
        self.full_at = polled + READ_SECONDS
        for fd, _ in events:
            if self.is_full():
                break
            if fd in self.connections:
                self.attempt(self.proceed, self.connections[fd])
            elif fd in self.listeners:
                self.accept(fd)
            elif fd == self.PIPE[0]:
                os.read(fd, RECV_BYTES)  # the signal has been handled
        self.answer_ready()
        self.bound_held()
        if not self.has_left_some:
            self.waiting_since = polled

    def is_full(self) -> bool:
        """Tell whether what has not been read yet has to wait for the next round."""
        is_full = self.round_bytes > MAX_ROUND_BYTES or time.monotonic() > self.full_at
        self.has_left_some |= is_full
        return is_full

    def tick(self) -> None:
        """Once a second: send the heartbeat, check deadlines, watch what could not be watched."""
        now = time.monotonic()
        self.next_tick = now + TICK_SECONDS
        self.notify()
        self.alive = self.alive and self.ppid == os.getppid()
        for fd in {self.PIPE[0], *self.listeners} - self.watched:
            self.watch_source(fd)
        for connection in list(self.connections.values()):
            if connection.deadline <= now:
                self.attempt(self.expire, connection)

    def attempt(self, step: Callable[..., object], one: Connection, *arguments: Any) -> None:
        """Run a step for one connection; an error drops it, and affects no other."""
        try:
            step(one, *arguments)
        except OSError:  # the client is gone
            self.close(one)
        except Exception:
            self.log.exception("a connection was dropped after an error")
            self.close(one)

    # Listeners.

    def watch_source(self, fd: int) -> None:
        # EPOLLEXCLUSIVE wakes one worker for a new connection, not all.  Old kernels refuse it.
        for flag in (getattr(select, "EPOLLEXCLUSIVE", 0), 0):
            try:
                self.epoll.register(fd, EPOLLIN | flag)
            except OSError as exc:
                error = exc
            else:
                self.watched.add(fd)
                return
        self.log.error("cannot listen for a moment: %s", error)

    def unwatch_source(self, fd: int) -> None:
        if fd in self.watched:
            self.watched.remove(fd)
            self.epoll.unregister(fd)

    def stop_listening(self) -> None:
        """Accept who has connected by now, and let later clients find the next server."""
        for fd, listener in list(self.listeners.items()):
            self.accept(fd)
            self.unwatch_source(fd)
            del self.listeners[fd]
            listener.close()

    def accept(self, fd: int) -> None:
        while not self.is_full():
            if len(self.connections) >= self.max_connections and not self.make_room():
                return
            try:
                sock, client = self.listeners[fd].accept()
            except (BlockingIOError, ConnectionAbortedError):
                return
            except OSError as exc:
                self.log.error("cannot accept for a moment: %s", exc)
                self.make_room()
                self.unwatch_source(fd)  # until the next tick
                return
            connection = Connection(sock, client, self.environs[fd])
            self.connections[sock.fileno()] = connection
            self.attempt(self.proceed, connection)

    def make_room(self) -> bool:
        """Drop an idle connection, else the one nearest to its deadline."""
        waiting = [one for one in self.connections.values() if not one.complete]
        if waiting:
            one = min(waiting, key=lambda one: (one.is_receiving, one.deadline))
            if one.is_receiving:
                self.attempt(self.refuse, one)
            self.close(one)
        return bool(waiting)

    # Connections.

    def proceed(self, connection: Connection) -> None:
        """Go on where the connection waited: for room to send, or for bytes."""
        if connection.complete:
            return  # in this round already
        if connection.unsent:
            connection.flush()
        else:
            with contextlib.suppress(BlockingIOError):
                received_bytes = connection.receive()
                self.unchecked_bytes += received_bytes
                self.round_bytes += received_bytes + REQUEST_BYTES * len(connection.complete)
        self.settle(connection)

    def settle(self, connection: Connection) -> None:
        """Find out what the connection waits for next, or close it."""
        if connection.unsent:
            self.watch(connection, EPOLLOUT)
        elif connection.complete:
            self.ready[connection] = None
        elif not connection.is_closing:
            if not connection.is_receiving:
                connection.deadline = time.monotonic() + connection.idle_seconds
            elif connection.exchange.expects_continue():
                connection.unsent = CONTINUE  # not by send(), which would renew the deadline
                connection.flush()
            self.watch(connection, EPOLLOUT if connection.unsent else EPOLLIN)
        elif connection.has_unread:
            connection.start_draining()
            self.watch(connection, EPOLLIN)
        else:
            self.close(connection)

    def expire(self, connection: Connection) -> None:
        if connection.is_receiving and not connection.unsent:
            connection.end(INCOMPLETE)
            self.settle(connection)
        else:
            self.close(connection)

    def send(self, connection: Connection, content: bytes) -> None:
        connection.deadline = time.monotonic() + RECEIVE_SECONDS
        connection.unsent += content
        connection.flush()
        self.unchecked_bytes += len(connection.unsent)
        self.settle(connection)

    def refuse(self, connection: Connection) -> None:
        """Answer one request with 503 for lack of room, and drop what else was received."""
        connection.end(INCOMPLETE)
        connection.complete.clear()
        self.send(connection, response_bytes(RETRY_LATER))

    def bound_held(self) -> None:
        """Drop the largest connections if all together take too much memory."""
        if self.unchecked_bytes < MAX_HELD_BYTES / 16:
            return
        self.unchecked_bytes = 0
        connections = sorted(self.connections.values(), key=lambda one: one.held_bytes)
        excess = sum(one.held_bytes for one in connections) - MAX_HELD_BYTES
        while excess > 0:
            largest = connections.pop()
            excess -= largest.held_bytes
            self.attempt(self.close if largest.unsent else self.refuse, largest)

    def watch(self, connection: Connection, events: int) -> None:
        if not connection.events:
            self.epoll.register(connection.sock, events)
        elif connection.events != events:
            self.epoll.modify(connection.sock, events)
        connection.events = events

    def close(self, connection: Connection) -> None:
        if self.connections.pop(connection.sock.fileno(), None):
            connection.close()

    # Requests.

    def answer_ready(self) -> None:
        ready, self.ready = self.ready, {}
        is_slow = self.round_seconds > SLOW_ROUND_SECONDS
        refuse_after = self.waiting_since + ANSWER_SECONDS - self.round_seconds
        called = []
        for connection in filter(lambda one: one.complete, ready):
            if is_slow and time.monotonic() > refuse_after:
                self.attempt(self.refuse, connection)
            else:
                called.append((connection, self.call_app(connection)))
        began = time.monotonic()
        for connection, exchanges in called:
            self.attempt(self.answer, connection, exchanges)
        self.round_seconds = time.monotonic() - began

    def call_app(self, connection: Connection) -> list[Exchange]:
        exchanges = connection.complete[:MAX_TOGETHER]
        del connection.complete[:MAX_TOGETHER]
        for exchange in exchanges:
            if not exchange.refusal:
                exchange.call(self.wsgi)
        return exchanges

    def answer(self, connection: Connection, exchanges: list[Exchange]) -> None:
        """Send the responses together, then wait for the next request or close."""
        if not self.alive or not self.keepalive_seconds:
            connection.is_closing = True
            connection.has_unread |= connection.is_receiving
        last = exchanges[-1] if connection.is_closing and not connection.complete else None
        connection.idle_seconds = self.keepalive_seconds
        self.send(connection, b"".join(self.respond(one, one is not last) for one in exchanges))

    def respond(self, exchange: Exchange, keep_alive: bool) -> bytes:
        is_head = exchange.environ.get("REQUEST_METHOD") == "HEAD"
        try:
            if exchange.refusal:
                self.record_refusal(*exchange.refusal)
                return response_bytes(problem(*exchange.refusal), is_head, keep_alive)
            return response_bytes(exchange.finish(), is_head, keep_alive)
        except Exception:
            self.log.exception("a request could not be answered")
            return response_bytes(FAILED, is_head, keep_alive)


def defer_accept(listener: socket.socket) -> None:
    """Let the kernel hold connections back until there is something to read, where it can."""
    with contextlib.suppress(AttributeError, OSError):
        seconds = int(RECEIVE_SECONDS)
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_DEFER_ACCEPT, seconds)


def listener_environ(listener: socket.socket, cfg: Config) -> Environ:
    name = listener.getsockname()
    host, port = name[:2] if isinstance(name, tuple) else ("localhost", 80)
    return {
        **base_environ(cfg),
        "SCRIPT_NAME": "",
        "SERVER_NAME": host,
        "SERVER_PORT": str(port),
        "wsgi.url_scheme": "http",
    }
