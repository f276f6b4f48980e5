"""Responses and limits that the application and the worker share."""

from http import HTTPStatus
from typing import NamedTuple

from files.records import encode

MAX_BODY_BYTES = 64 * 1024
RETRY_AFTER_SECONDS = 30
INTERNAL_ERROR = "Internal error; the server's log has the reason."

# Headers of every response.
COMMON_HEADERS = (
    ("Cache-Control", "no-store"),  # a cached image swallows the next visit
    ("Access-Control-Allow-Origin", "*"),
    ("Access-Control-Expose-Headers", "X-Telemetry-Outcome, Retry-After"),
    ("Cross-Origin-Resource-Policy", "cross-origin"),
    ("X-Content-Type-Options", "nosniff"),
)

Headers = tuple[tuple[str, str], ...]


class Prepared(NamedTuple):
    """An immutable response in WSGI's terms, safe to send to many clients."""

    status: str
    headers: Headers
    body: bytes = b""


def prepare(
    status: int, body: bytes = b"", content_type: str | None = None, more: Headers = ()
) -> Prepared:
    headers = COMMON_HEADERS + more
    if content_type:
        headers += (("Content-Type", content_type), ("Content-Length", str(len(body))))
    return Prepared(f"{status} {HTTPStatus(status).phrase}", headers, body)


def problem(status: int, detail: str, field: str | None = None, more: Headers = ()) -> Prepared:
    """Return a problem document (RFC 9457)."""
    document = {"title": HTTPStatus(status).phrase, "status": status, "detail": detail}
    if field is not None:
        document["field"] = field
    outcome = "failed" if status >= 500 else "refused"
    body = encode(document).encode("ascii")
    return prepare(
        status, body, "application/problem+json", (("X-Telemetry-Outcome", outcome), *more)
    )


RETRY_LATER = problem(
    503,
    "The event could not be stored; try again later.",
    more=(("Retry-After", str(RETRY_AFTER_SECONDS)),),
)
