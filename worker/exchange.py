"""An exchange: a request in WSGI's terms, and the response to it in HTTP's."""

import io
import time
from collections.abc import Callable, Iterable
from email.utils import formatdate
from functools import lru_cache
from typing import Any
from urllib.parse import unquote_to_bytes

from httptools import HttpParserError, HttpParserInvalidURLError, parse_url

from responses import MAX_BODY_BYTES, Headers, Prepared

MAX_HEAD_BYTES = 2**16

Environ = dict[str, Any]
Refusal = tuple[int, str]  # status and detail

MALFORMED = 400, "The request is not valid HTTP."
INCOMPLETE = 400, "The request ended early, or took too long to arrive."
HEAD_TOO_LARGE = 431, f"head: want at most {MAX_HEAD_BYTES} bytes, got more."
UNKNOWN_VERSION = 400, "HTTP version: want 1.0 or 1.1."


class Exchange:
    """One request, filled while it arrives, and the application's response to it."""

    def __init__(self, connection_environ: Environ) -> None:
        self.environ = connection_environ.copy()
        self.target = b""
        self.head_bytes = self.received_bytes = 0
        self.has_head = self.keeps_connection = False
        self.body: list[bytes] = []
        self.body_bytes = 0
        self.refusal: Refusal | None = None  # if the application is not to be asked
        self.status = ""
        self.headers: list[tuple[str, str]] = []
        self.content: list[bytes] = []
        self.response: Iterable[bytes] = ()
        self.error: Exception | None = None

    # The request.

    def add_header(self, name: bytes, value: bytes) -> None:
        self.head_bytes += len(name) + len(value) + len(": \r\n")
        key = environ_key(name)
        if key and not self.has_head:  # trailers follow the body; none has a meaning here
            text = value.rstrip().decode("latin-1")
            environ = self.environ
            environ[key] = f"{environ[key]},{text}" if key in environ else text

    def end_head(self, method: str, version: str) -> None:
        self.has_head = True
        environ, target = self.environ, self.target
        environ["REQUEST_METHOD"], environ["SERVER_PROTOCOL"] = method, f"HTTP/{version}"
        if target.startswith(b"/"):
            path, _, query = target.partition(b"?")
        else:
            try:
                url = parse_url(target)
            except HttpParserInvalidURLError:
                self.refusal = MALFORMED
                return
            path, query = url.path or b"/", url.query or b""
        if b"%" in path:
            path = unquote_to_bytes(path)
        environ["PATH_INFO"] = path.decode("latin-1")
        environ["QUERY_STRING"] = query.decode("latin-1")
        if version not in ("1.0", "1.1"):
            self.refusal = UNKNOWN_VERSION
        elif self.head_bytes + len(target) > MAX_HEAD_BYTES:
            self.refusal = HEAD_TOO_LARGE

    def head_without_upgrade(self) -> bytes:
        """Return the head once more, without its `Upgrade`."""
        environ = self.environ
        if self.refusal or environ["REQUEST_METHOD"] == "CONNECT":
            raise HttpParserError("a tunnel")
        method, version = environ["REQUEST_METHOD"], environ["SERVER_PROTOCOL"]
        lines = [f"{method} {self.target.decode()} {version}"]
        for key, value in environ.items():
            if key.startswith(("HTTP_", "CONTENT_")) and key != "HTTP_UPGRADE":
                lines.append(f"{key.removeprefix('HTTP_').replace('_', '-')}: {value}")
        return "\r\n".join([*lines, "", ""]).encode("latin-1")

    def add_body(self, part: bytes) -> None:
        if self.body_bytes <= MAX_BODY_BYTES:  # the application rejects longer ones
            self.body.append(part)
        self.body_bytes += len(part)

    def expects_continue(self) -> bool:
        """Tell, once, whether the client waits for `100 Continue` (RFC 9110, 10.1.1)."""
        environ = self.environ
        is_expected = self.has_head and environ.pop("HTTP_EXPECT", "").lower() == "100-continue"
        return is_expected and environ["SERVER_PROTOCOL"] == "HTTP/1.1"

    def end_body(self, is_complete: bool) -> None:
        is_readable = is_complete or self.body_bytes > MAX_BODY_BYTES
        self.environ["wsgi.input"] = io.BytesIO(b"".join(self.body)) if is_readable else CUT_OFF

    # The response.

    def call(self, app: Callable[..., Iterable[bytes]]) -> None:
        """Call the application; an error of its is raised by finish()."""
        try:
            self.response = app(self.environ, self.start_response)
        except Exception as exc:
            self.error = exc

    def start_response(
        self, status: str, headers: list[tuple[str, str]], exc_info: Any = None
    ) -> Callable[[bytes], object]:
        self.status, self.headers = status, headers
        return self.content.append

    def finish(self) -> Prepared:
        """Iterate over the response; the application may start it only now."""
        if self.error:
            raise self.error
        try:
            self.content.extend(self.response)
        finally:
            if hasattr(self.response, "close"):
                self.response.close()
        return Prepared(self.status, tuple(self.headers), b"".join(self.content))


class CutOff(io.RawIOBase):
    """A body that ended early, or is malformed."""

    def readinto(self, buffer: Any) -> int:
        raise OSError("the body is incomplete")


CUT_OFF = CutOff()


@lru_cache(1024)
def environ_key(name: bytes) -> str | None:
    """Return the key of a header in the environment, None for a name with an underscore.

    `X_Forwarded_For` would pass for `X-Forwarded-For`.
    """
    if b"_" in name:
        return None
    key = name.decode("latin-1").upper().replace("-", "_")
    return key if key in ("CONTENT_TYPE", "CONTENT_LENGTH") else f"HTTP_{key}"


def response_bytes(prepared: Prepared, is_head: bool = False, keep_alive: bool = False) -> bytes:
    """Return the response as HTTP sends it; the application gives each body its Content-Length."""
    head = encode_head(prepared.status, prepared.headers)
    date, connection = http_date(int(time.time())), b"keep-alive" if keep_alive else b"close"
    body = b"" if is_head else prepared.body
    return b"%bDate: %b\r\nConnection: %b\r\n\r\n%b" % (head, date, connection, body)


@lru_cache(256)  # most responses have one of few heads
def encode_head(status: str, headers: Headers) -> bytes:
    lines = [f"HTTP/1.1 {status}", *(f"{name}: {value}" for name, value in headers)]
    return "".join(f"{line}\r\n" for line in lines).encode("latin-1")


@lru_cache(1)
def http_date(second: int) -> bytes:
    return formatdate(second, usegmt=True).encode("ascii")
