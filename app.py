"""The collector: two data endpoints, a page that explains them, and a health check.

gunicorn        serve (gunicorn.conf.py names create_app)
flask report    how many use the framework, and with what
flask forget    erase one person's events
"""

import logging
import os
import random
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import datetime
from functools import partial
from typing import Any, cast
from uuid import uuid4
from wsgiref.types import StartResponse, WSGIEnvironment

from flask import Blueprint, Flask, Request, Response, current_app, render_template, request
from gunicorn.http.errors import ParseException
from werkzeug.exceptions import HTTPException
from werkzeug.routing import MapAdapter

import parsing
from files.housekeeping import Housekeeping
from files.records import encode, make_record, timestamp, utc_now
from forget import forget_command
from parsing import Rejected
from report import report_command
from responses import INTERNAL_ERROR, MAX_BODY_BYTES, RETRY_LATER, Prepared, prepare, problem
from settings import VERSION, Settings, read_settings
from storage import Batch, NotStored, Store

PREFLIGHT_MAX_AGE_SECONDS = 24 * 60 * 60

# A transparent GIF89a of one pixel.
PIXEL = bytes.fromhex(
    "47494638396101000100800000000000ffffff21f90401000000002c00000000010001000002024401003b"
)

log = logging.getLogger(__name__)


@dataclass
class Collector:
    """The state of one app: its settings, its store and its housekeeping."""

    settings: Settings
    store: Store
    housekeeping: Housekeeping
    warnings: set[str] = field(default_factory=set)
    version: str = VERSION

    def warn_once(self, message: str) -> None:
        if message not in self.warnings:
            self.warnings.add(message)
            log.warning(message)

    def record_refusal(
        self, status: int, detail: str, field: str | None = None, source: str | None = None
    ) -> None:
        """Record that a request was refused; `source` is None if it reached no route."""
        self.store.record_refusal(
            {
                "received_at": timestamp(self.store.clock()),
                "source": source,
                "status": status,
                "field": field,
                "detail": detail,
            }
        )

    def start(self) -> None:
        """Start the threads; call this after a fork, which does not copy threads."""
        self.store.start()
        self.housekeeping.start()

    def close(self) -> None:
        self.housekeeping.close()
        self.store.close()


def create_app(settings: Settings | None = None, clock: Callable[[], datetime] = utc_now) -> Flask:
    """Build the WSGI app.  Opens no file.  Raises ConfigError."""
    settings = settings or read_settings(os.environ)
    app = AnyHost(__name__, static_folder=None)
    min_free_bytes = settings.min_free_mb * 2**20
    app.extensions["collector"] = Collector(
        settings,
        Store(settings.data_dir, min_free_bytes, clock),
        Housekeeping(
            settings.data_dir,
            clock,
            settings.compress_after_days,
            settings.retention_days,
            min_free_bytes,
        ),
    )
    app.config["PROVIDE_AUTOMATIC_OPTIONS"] = False
    app.url_map.merge_slashes = False  # it would redirect, and a redirected POST becomes a GET
    app.register_blueprint(bp)
    app.register_error_handler(Rejected, reject)
    app.register_error_handler(NotStored, lambda _: respond(RETRY_LATER))
    app.register_error_handler(HTTPException, explain)
    app.cli.add_command(report_command)
    app.cli.add_command(forget_command)
    return app


class AnyHost(Flask):
    """Flask that serves any Host header; Werkzeug rejects what is not a host name."""

    def create_url_adapter(self, request: Request | None) -> MapAdapter | None:
        if request is None:
            return None
        return self.url_map.bind("localhost", default_method=request.method, path_info=request.path)


# These responses never differ, so they are prepared once.
IMAGE_STORED = prepare(200, PIXEL, "image/gif", (("X-Telemetry-Outcome", "stored"),))
IMAGE_OPTED_OUT = prepare(200, PIXEL, "image/gif", (("X-Telemetry-Outcome", "opted-out"),))
STORED = prepare(204, more=(("X-Telemetry-Outcome", "stored"),))
OPTED_OUT = prepare(204, more=(("X-Telemetry-Outcome", "opted-out"),))
IMAGE = prepare(200, PIXEL, "image/gif")
PREFLIGHT = prepare(
    204,
    more=(
        ("Access-Control-Allow-Methods", "GET, POST"),
        ("Access-Control-Allow-Headers", "content-type, *"),
        ("Access-Control-Max-Age", str(PREFLIGHT_MAX_AGE_SECONDS)),
    ),
)


def respond(prepared: Prepared) -> Response:
    return Response(prepared.body, prepared.status, list(prepared.headers))


class DeferredResponse(Response):
    """The response to an enqueued event: `stored`, or RETRY_LATER if it is not on disk in time.

    It waits for the disk only when the server asks for the body (PEP 3333 allows starting a
    response as late as that).  Until then the server can enqueue more events, which share the
    sync.
    """

    def __init__(self, store: Store, batch: Batch, stored: Prepared) -> None:
        # Without super().__init__(): Flask only calls it, and has no session to add a cookie for.
        self.store, self.batch, self.stored = store, batch, stored

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterator[bytes]:
        prepared = self.stored
        try:
            self.store.wait(self.batch)
        except NotStored:
            prepared = RETRY_LATER
        start_response(prepared.status, list(prepared.headers))
        yield prepared.body


bp = Blueprint("collect", __name__)


@bp.get("/")
def home() -> Response:
    """The transparency page, or an event if there is a payload."""
    return image() if "payload" in request.args else page()


@bp.get("/telemetry")
def image() -> Response:
    """A `core` event as an image request."""
    if request.method == "HEAD":
        return respond(IMAGE)
    if has_opted_out():
        return respond(IMAGE_OPTED_OUT)
    payload = parsing.parse_core(request.args.get("payload", ""))
    return collect("core", payload, IMAGE_STORED)


@bp.post("/")
@bp.post("/telemetry")
def core() -> Response:
    """A `core` event in the body."""
    if has_opted_out():
        return respond(OPTED_OUT)
    return collect("core", parsing.parse_core(read_body().decode("latin-1")), STORED)


@bp.post("/cli")
def cli() -> Response:
    """A `cli` event in the body."""
    if has_opted_out():
        return respond(OPTED_OUT)
    return collect("cli", parsing.parse_cli(read_body()), STORED)


@bp.route("/", methods=["OPTIONS"])
@bp.route("/telemetry", methods=["OPTIONS"])
@bp.route("/cli", methods=["OPTIONS"])
def preflight() -> Response:
    return respond(PREFLIGHT)


@bp.get("/healthz")
def healthz() -> Response:
    health = collector().store.health()
    body = encode(health | {"version": VERSION}).encode("ascii")
    return respond(prepare(200 if health["ok"] else 503, body, "application/json"))


def collect(source: str, payload: dict[str, Any], stored: Prepared) -> Response:
    """Enqueue an event, and return the response that waits until it is on disk."""
    here, environ = collector(), request.environ
    event: dict[str, Any] = {
        "id": str(uuid4()),
        "received_at": timestamp(here.store.clock()),
        "source": source,
        "payload": payload,
    }
    if source == "core":
        event["hostname"] = client_hostname(environ)
        event |= parsing.describe_agent(environ.get("HTTP_USER_AGENT", ""))
    address, mode = address_of_client(here, environ), here.settings.ip
    hash_ip = None
    if address and mode == "hashed":
        hash_ip = partial(parsing.hash_address, address)
    elif address and mode != "none":
        event["ip"] = parsing.mask_address(address) if mode == "masked" else str(address)
    return DeferredResponse(
        here.store, here.store.enqueue(make_record(source, event), hash_ip), stored
    )


def has_opted_out() -> bool:
    """Tell whether Global Privacy Control (w3c.github.io/gpc) or Do Not Track is on."""
    environ = request.environ
    sent = f"{environ.get('HTTP_SEC_GPC', '')},{environ.get('HTTP_DNT', '')}"
    is_opt_out = "1" in [value.strip() for value in sent.split(",")]
    return is_opt_out and collector().settings.honor_opt_out


def client_hostname(environ: WSGIEnvironment) -> str | None:
    """Return the host of `Origin`, else of `Referer`."""
    origin = parsing.parse_hostname(environ.get("HTTP_ORIGIN", ""))
    return origin or parsing.parse_hostname(environ.get("HTTP_REFERER", ""))


def address_of_client(here: Collector, environ: WSGIEnvironment) -> parsing.Address | None:
    peer, forwarded_for = environ.get("REMOTE_ADDR", ""), environ.get("HTTP_X_FORWARDED_FOR", "")
    proxies = here.settings.trusted_proxies
    address = parsing.client_address(peer, forwarded_for, proxies)
    if not peer and not proxies.unix:
        here.warn_once(NO_ADDRESS)
    is_unknown = address and address.is_private and address not in proxies
    if forwarded_for and is_unknown and address == parsing.parse_address(peer):
        here.warn_once(UNTRUSTED_PROXY)
    return address


NO_ADDRESS = (
    "requests arrive on a Unix socket, without an address; if a proxy sends them, add unix to "
    "TELEMETRY_TRUSTED_PROXIES"
)
UNTRUSTED_PROXY = (
    "X-Forwarded-For came from a private address that is not trusted, so that address is stored "
    "as the client's; if it is your proxy's, add it to TELEMETRY_TRUSTED_PROXIES"
)


def read_body() -> bytes:
    """Return the complete body.  Raises Rejected if it is too long, incomplete or compressed.

    Werkzeug's get_data() would silently truncate a chunked body at its limit, and accept a
    body that ends early.
    """
    environ = request.environ
    content_coding = environ.get("HTTP_CONTENT_ENCODING", "").lower()
    transfer_coding = environ.get("HTTP_TRANSFER_ENCODING", "").lower()
    if content_coding not in ("", "identity") or transfer_coding not in ("", "identity", "chunked"):
        raise Rejected("body: must not be compressed.", status=415)
    length = int(environ.get("CONTENT_LENGTH") or 0)  # 0 also if the body is chunked
    if length <= MAX_BODY_BYTES:
        try:
            body: bytes = environ["wsgi.input"].read(length or MAX_BODY_BYTES + 1)
        except (OSError, ParseException) as exc:
            raise Rejected("body: ended early, or a chunk is malformed.") from exc
    if length > MAX_BODY_BYTES or len(body) > MAX_BODY_BYTES:
        raise Rejected(f"body: want at most {MAX_BODY_BYTES} bytes, got more.", status=413)
    if len(body) < length:
        raise Rejected(f"body: want {length} bytes, as Content-Length says, got {len(body)}.")
    return body


def page() -> Response:
    settings = collector().settings
    html = render_template(
        "page.html",
        settings=settings,
        contact_is_link=re.fullmatch(r"(https://|mailto:)\S+", settings.contact, re.IGNORECASE),
        **{
            source: [(name, field.about) for name, field in fields.items()]
            for source, fields in parsing.FIELDS.items()
        },
    )
    return respond(prepare(200, html.encode(), "text/html; charset=utf-8"))


DETAILS = {
    404: "There is no such route.",
    405: "The route does not support this method.",
    500: INTERNAL_ERROR,
}


def reject(exc: Rejected) -> Response:
    source = "cli" if request.endpoint == "collect.cli" else "core"
    collector().record_refusal(exc.status, exc.detail, exc.field, source)
    return respond(problem(exc.status, exc.detail, exc.field))


def explain(exc: HTTPException) -> Response:
    """Turn Flask's own error responses into problem documents."""
    status = exc.code or 500
    allowed = getattr(exc, "valid_methods", None)
    more = (("Allow", ", ".join(sorted(allowed))),) if allowed else ()
    return respond(problem(status, DETAILS.get(status, f"{exc.name}."), more=more))


def collector() -> Collector:
    return cast(Collector, current_app.extensions["collector"])


def warm_up(app: Flask) -> None:
    """Import and build what the first requests need, without writing anything."""
    random.seed(b"")  # gunicorn does so after the fork; from Python 3.12 on, the first call imports
    b"{}".decode("utf-8-sig")
    parsing.describe_agent("")
    parsing.parse_hostname("https://\xc3\xa4.example/")
    client = app.test_client()
    for path in ("/", "/no-such-route"):
        client.get(path)
