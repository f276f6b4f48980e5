"""A connection: through llhttp bytes become exchanges; their responses become bytes."""

import contextlib
import socket
import time
from typing import Any

from httptools import HttpParserCallbackError, HttpParserError, HttpParserUpgrade, HttpRequestParser

from responses import MAX_BODY_BYTES
from worker.exchange import (
    HEAD_TOO_LARGE,
    INCOMPLETE,
    MALFORMED,
    MAX_HEAD_BYTES,
    Environ,
    Exchange,
    Refusal,
)

RECEIVE_SECONDS = 9.0  # requests have 10 to arrive; deadlines are checked once a tick
FRESH_SECONDS = 1.0
RECV_BYTES = 2**16
MAX_DRAINED_BYTES = 2**24
MAX_REQUEST_BYTES = 2**19  # enough for the longest body in chunks of one byte


class Connection:
    """A client's socket, the requests it has sent, and the bytes it has not read yet."""

    exchange: Exchange  # the newest one

    def __init__(self, sock: socket.socket, client: Any, listener_environ: Environ) -> None:
        self.sock = sock
        address = client[0] if isinstance(client, tuple) else ""  # none on a Unix socket
        self.environ = {**listener_environ, "REMOTE_ADDR": address}
        self.parser = HttpRequestParser(self)
        self.is_receiving = False  # the newest request is incomplete
        self.complete: list[Exchange] = []  # to be answered, in this order
        self.unsent = b""
        self.is_closing = False  # once all of these are answered
        self.has_unread = False  # close() would send a reset, which can overtake a response
        self.drained_bytes: int | None = None  # received after the last response was sent
        self.events = 0  # that epoll watches
        self.idle_seconds = RECEIVE_SECONDS
        now = time.monotonic()
        self.deadline, self.fresh_until = now + RECEIVE_SECONDS, now + FRESH_SECONDS

    @property
    def delays_shutdown(self) -> bool:
        """Tell whether a stop waits for this connection: if it is busy, or was just accepted."""
        is_busy = self.is_receiving or self.complete or self.unsent
        return bool(is_busy) or time.monotonic() < self.fresh_until

    @property
    def held_bytes(self) -> int:
        return len(self.unsent) + (self.exchange.received_bytes if self.is_receiving else 0)

    def close(self) -> None:
        del self.parser  # it refers back to this connection: a cycle, which takes time to collect
        with contextlib.suppress(OSError):
            self.sock.close()

    def flush(self) -> None:
        """Send what the client takes now."""
        with contextlib.suppress(BlockingIOError):
            sent = self.sock.send(self.unsent, socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL)
            self.unsent = self.unsent[sent:]

    def start_draining(self) -> None:
        """Only read from now on: with unread bytes close() would send a reset."""
        if self.drained_bytes is None:
            self.drained_bytes = 0
            self.sock.shutdown(socket.SHUT_WR)

    def receive(self) -> int:
        """Receive, parse, and return how many bytes came.  Raises BlockingIOError if none did."""
        content = self.sock.recv(RECV_BYTES, socket.MSG_DONTWAIT)
        if self.drained_bytes is not None:
            self.drained_bytes += len(content)
            self.has_unread = bool(content) and self.drained_bytes < MAX_DRAINED_BYTES
        elif content:
            self.feed(content)
        else:  # the client has closed its side
            self.end(INCOMPLETE)
            self.has_unread = False
        return len(content)

    def feed(self, content: bytes) -> None:
        """Parse what was received; complete requests join the queue."""
        try:
            self.parse(content)
        except HttpParserCallbackError:
            raise
        except HttpParserError:
            self.end(MALFORMED)
        if self.is_receiving:
            self.exchange.received_bytes += len(content)
            self.bound()

    def parse(self, content: bytes) -> None:
        while content:
            try:
                self.parser.feed_data(content)
                return
            except HttpParserUpgrade as exc:
                # llhttp stops behind a head that asks for another protocol.  Decline, as RFC
                # 9110 (7.8) allows: parse the request without that header.
                rest = content[exc.args[0] :]
            self.parser = HttpRequestParser(self)
            content = self.exchange.head_without_upgrade() + rest

    def bound(self) -> None:
        exchange = self.exchange
        if exchange.has_head:
            is_too_long = exchange.body_bytes > MAX_BODY_BYTES
            if exchange.refusal or is_too_long or exchange.received_bytes > MAX_REQUEST_BYTES:
                self.end(INCOMPLETE)
        # Earlier requests may have come in the same piece; end_head() will be exact.
        elif exchange.received_bytes > MAX_HEAD_BYTES + RECV_BYTES:
            self.end(HEAD_TOO_LARGE)

    def end(self, refusal: Refusal) -> None:
        """Receive no more requests; an incomplete one is answered as far as it came."""
        self.is_closing = self.has_unread = True
        if self.is_receiving:
            if not self.exchange.has_head:
                self.exchange.refusal = refusal
            self.end_exchange(is_complete=False)

    def end_exchange(self, is_complete: bool) -> None:
        self.is_receiving = False
        self.exchange.end_body(is_complete)
        self.complete.append(self.exchange)

    # llhttp calls these.

    def on_message_begin(self) -> None:
        self.exchange = Exchange(self.environ)
        self.is_receiving = True
        self.deadline = time.monotonic() + RECEIVE_SECONDS

    def on_url(self, part: bytes) -> None:
        self.exchange.target += part

    def on_header(self, name: bytes, value: bytes) -> None:
        self.exchange.add_header(name, value)

    def on_headers_complete(self) -> None:
        parser, exchange = self.parser, self.exchange
        exchange.keeps_connection = parser.should_keep_alive()
        exchange.end_head(parser.get_method().decode(), parser.get_http_version())

    def on_body(self, part: bytes) -> None:
        self.exchange.add_body(part)

    def on_message_complete(self) -> None:
        if self.parser.should_upgrade():
            return  # parse() goes on
        self.is_closing = not self.exchange.keeps_connection
        self.end_exchange(is_complete=True)
