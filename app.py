"""The collector: two data endpoints, a page that explains them, and a health check.

flask report    what was collected
gunicorn        serve (gunicorn.conf.py names this module)
"""

import contextlib
import logging
import os
import random
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from http import HTTPStatus
from pathlib import Path
from typing import Any, cast
from uuid import UUID
from wsgiref.types import StartResponse, WSGIApplication, WSGIEnvironment

from flask import Blueprint, Flask, Response, current_app, render_template, request
from gunicorn.http.errors import ParseException
from werkzeug.exceptions import HTTPException

import parsing
from dayfiles import encode
from parsing import Rejected
from report import report_command
from storage import Batch, Housekeeper, NotStored, Store, timestamp, utc_now

MAX_BODY_BYTES = 64 * 1024
RETRY_AFTER_SECONDS = 30
PREFLIGHT_MAX_AGE_SECONDS = 24 * 60 * 60

# A transparent GIF89a of one pixel.
PIXEL = bytes.fromhex(
    "47494638396101000100800000000000ffffff21f90401000000002c00000000010001000002024401003b"
)


log = logging.getLogger(__name__)


class ConfigError(SystemExit):
    """A setting that cannot be used.  Uncaught, it ends the program with its one line."""


@dataclass(frozen=True)
class Settings:
    """What an operator may set: each field is an environment variable, TELEMETRY_ and its name."""

    data_dir: Path
    trusted_proxies: tuple[parsing.Network, ...]
    ip: str
    honor_opt_out: bool
    compress_after_days: int
    retention_days: int
    min_free_mb: int


def directory(value: str) -> Path:
    path = Path(value)
    with contextlib.suppress(OSError):  # it may be allowed by the time it is made
        if not value or any(there.is_file() for there in (path, *path.parents)):
            raise ValueError("a directory")
    return path


def networks(value: str) -> tuple[parsing.Network, ...]:
    try:
        return tuple(parsing.parse_network(part.strip()) for part in value.split(",") if value)
    except ValueError as exc:
        raise ValueError(f"addresses and networks, separated by commas ({exc})") from exc


def address_mode(value: str) -> str:
    if value not in ADDRESS_MODES:
        raise ValueError(f"one of {', '.join(ADDRESS_MODES)}")
    return value


def switch(value: str) -> bool:
    if value not in ("true", "false"):
        raise ValueError("true or false")
    return value == "true"


def whole_number(value: str) -> int:
    if not (value.isascii() and value.isdigit() and len(value) <= 9):
        raise ValueError("a whole number, 0 or more")
    return int(value)


# What is done to the client's address in each mode, in the words of the page.
ADDRESS_MODES = {
    "full": "kept as it is",
    "masked": "cut to its network (/24 for IPv4, /48 for IPv6) before it is stored",
    "hashed": "replaced, before it is stored, by a keyed hash; "
    "the key is random, made anew each day, and destroyed",
    "none": "not stored",
}

SETTINGS: dict[str, tuple[str, Callable[[str], Any]]] = {
    "TELEMETRY_DATA_DIR": ("data", directory),
    "TELEMETRY_TRUSTED_PROXIES": ("", networks),
    "TELEMETRY_IP": ("full", address_mode),
    "TELEMETRY_HONOR_OPT_OUT": ("true", switch),
    "TELEMETRY_COMPRESS_AFTER_DAYS": ("7", whole_number),
    "TELEMETRY_RETENTION_DAYS": ("0", whole_number),
    "TELEMETRY_MIN_FREE_MB": ("64", whole_number),
}


def read_settings(environ: Mapping[str, str]) -> Settings:
    """Return the settings in `environ`.  Raises ConfigError on a value or name of no use."""
    for name, value in environ.items():
        if name.startswith("TELEMETRY_") and name not in SETTINGS:
            raise ConfigError(f"{name}={value!r}: want one of {', '.join(SETTINGS)}")
    parsed = {}
    for name, (default, parse) in SETTINGS.items():
        value = environ.get(name, default)
        try:
            parsed[name.removeprefix("TELEMETRY_").lower()] = parse(value)
        except ValueError as exc:
            raise ConfigError(f"{name}={value!r}: want {exc}") from exc
    return Settings(**parsed)


@dataclass
class Collector:
    """What the views and the server need of the app they run in."""

    settings: Settings
    store: Store
    housekeeper: Housekeeper
    has_warned_of_proxy: bool = False


def create_app(settings: Settings | None = None, clock: Callable[[], datetime] = utc_now) -> Flask:
    """Build the WSGI app.  Opens no file.  Raises ConfigError."""
    settings = settings or read_settings(os.environ)
    app = Flask(__name__, static_folder=None)
    store = Store(settings.data_dir, settings.min_free_mb, clock)
    keeper = Housekeeper(store, settings.compress_after_days, settings.retention_days)
    app.extensions["collector"] = Collector(settings, store, keeper)
    app.config["PROVIDE_AUTOMATIC_OPTIONS"] = False
    app.wsgi_app = ignore_host(app.wsgi_app)  # type: ignore[method-assign, assignment]
    app.register_blueprint(bp)
    app.register_error_handler(Rejected, refuse)
    app.register_error_handler(NotStored, try_again)
    app.register_error_handler(HTTPException, explain)
    app.cli.add_command(report_command)
    return app


def ignore_host(wsgi_app: WSGIApplication) -> WSGIApplication:
    """Let a request be answered whatever its Host is: Werkzeug refuses what is no host name."""

    def call(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        environ["HTTP_HOST"] = "localhost"
        return wsgi_app(environ, start_response)

    return call


def answer(
    status: int, body: str | bytes = b"", mimetype: str | None = None, **headers: str
) -> Response:
    """Return a response with the headers that every answer has, and more: `Max_Age="1"`."""
    every = {
        "Cache-Control": "no-store",  # a cached image swallows the next visit
        "Access-Control-Allow-Origin": "*",
        "Cross-Origin-Resource-Policy": "cross-origin",
        "X-Content-Type-Options": "nosniff",
    }
    more = {name.replace("_", "-"): value for name, value in headers.items()}
    return Response(body, status, every | more, mimetype)


# Made once, for they never differ: the answers to an event that was taken.
OUTCOMES = ("stored", "opted-out")
IMAGE = {o: answer(200, PIXEL, "image/gif", X_Telemetry_Outcome=o) for o in OUTCOMES}
NO_CONTENT = {o: answer(204, X_Telemetry_Outcome=o) for o in OUTCOMES}


class OnceStored(Response):
    """The answer to an event that was handed in: `taken`, once it is on disk.

    It waits, and calls start_response, when the server asks for the body: before that,
    the server may have more events handed in, to be synced with this one.
    """

    def __init__(self, store: Store, batch: Batch, taken: Response) -> None:
        super().__init__()
        self.store, self.batch, self.taken = store, batch, taken

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterator[bytes]:
        response = self.taken
        try:
            self.store.wait_for(self.batch)
        except NotStored as exc:
            response = try_again(exc)
        yield from response(environ, start_response)


bp = Blueprint("collect", __name__)


@bp.get("/")
def home() -> Response:
    """The transparency page; with a payload, an event."""
    return image() if "payload" in request.args else page()


@bp.get("/telemetry")
def image() -> Response:
    """A `core` event as an image request."""
    if request.method == "HEAD":
        return answer(200, PIXEL, "image/gif")
    return collect("core", lambda: parsing.parse_core(request.args.get("payload", "")), IMAGE)


@bp.post("/")
@bp.post("/telemetry")
def core() -> Response:
    """A `core` event in the body."""
    return collect("core", lambda: parsing.parse_core(read_body().decode("latin-1")), NO_CONTENT)


@bp.post("/cli")
def cli() -> Response:
    """A `cli` event in the body."""
    return collect("cli", lambda: parsing.parse_cli(read_body()), NO_CONTENT)


@bp.route("/", methods=["OPTIONS"])
@bp.route("/telemetry", methods=["OPTIONS"])
@bp.route("/cli", methods=["OPTIONS"])
def preflight() -> Response:
    return answer(
        204,
        Access_Control_Allow_Methods="GET, POST",
        Access_Control_Allow_Headers="*",
        Access_Control_Max_Age=str(PREFLIGHT_MAX_AGE_SECONDS),
    )


@bp.get("/healthz")
def healthz() -> Response:
    health = collector().store.health()
    return answer(200 if health["ok"] else 503, encode(health), "application/json")


def collect(
    source: str, read_payload: Callable[[], dict[str, Any]], taken: dict[str, Response]
) -> Response:
    """Return the answer to an event, which comes once it is on disk, or to an opt-out."""
    here, environ = collector(), request.environ
    if here.settings.honor_opt_out and has_opted_out(environ):
        return taken["opted-out"]
    payload = read_payload()
    received_at = timestamp(here.store.clock())
    event = {
        # Not uuid4(), which asks the kernel each time; `random` is seeded by it, also after a fork.
        "id": str(UUID(int=random.getrandbits(128), version=4)),
        "received_at": received_at,
        "source": source,
        "ip": stored_address(here, environ, received_at[:10]),
    }
    if source == "core":
        event["hostname"] = client_hostname(environ)
        event |= parsing.describe_agent(environ.get("HTTP_USER_AGENT", ""))
    batch = here.store.submit(event | {"payload": payload})
    return OnceStored(here.store, batch, taken["stored"])


def has_opted_out(environ: WSGIEnvironment) -> bool:
    """Global Privacy Control (w3c.github.io/gpc) or its forerunner, Do Not Track."""
    sent = f"{environ.get('HTTP_SEC_GPC', '')},{environ.get('HTTP_DNT', '')}"
    return "1" in [value.strip() for value in sent.split(",")]


def client_hostname(environ: WSGIEnvironment) -> str | None:
    """Return the host of the page that sent the request: of `Origin`, else of `Referer`."""
    origin = parsing.parse_hostname(environ.get("HTTP_ORIGIN", ""))
    return origin or parsing.parse_hostname(environ.get("HTTP_REFERER", ""))


def stored_address(here: Collector, environ: WSGIEnvironment, day: str) -> str | None:
    """Return the client's address as far as TELEMETRY_IP lets it be stored."""
    peer, forwarded_for = environ.get("REMOTE_ADDR", ""), environ.get("HTTP_X_FORWARDED_FOR", "")
    address = parsing.client_address(peer, forwarded_for, here.settings.trusted_proxies)
    if forwarded_for and address == parsing.parse_address(peer):
        warn_of_proxy(here, address)
    mode = here.settings.ip
    if address is None or mode == "none":
        return None
    if mode == "masked":
        return parsing.mask_address(address)
    if mode == "hashed":
        return parsing.hash_address(address, here.store.address_key(day))
    return str(address)


def warn_of_proxy(here: Collector, address: parsing.Address | None) -> None:
    """Say once that a proxy seems to be there which nobody has said to trust."""
    known = any(address in network for network in here.settings.trusted_proxies if address)
    if address and address.is_private and not known and not here.has_warned_of_proxy:
        here.has_warned_of_proxy = True
        log.warning(
            "X-Forwarded-For came from a private address that is not trusted, so that address was "
            "taken for the client's; if it is your proxy's, set TELEMETRY_TRUSTED_PROXIES to it"
        )


def read_body() -> bytes:
    """Return the whole body.  Raises Rejected where it is too long, cut short or compressed.

    Not Werkzeug's get_data(): it cuts a chunked body at its limit, and takes a
    body that ends early for a whole one, in silence both times.
    """
    environ = request.environ
    content_coding = environ.get("HTTP_CONTENT_ENCODING", "").lower()
    transfer_coding = environ.get("HTTP_TRANSFER_ENCODING", "").lower()
    if content_coding not in ("", "identity") or transfer_coding not in ("", "identity", "chunked"):
        raise Rejected("body: want it as it is, got it encoded.", status=415)
    length = int(environ.get("CONTENT_LENGTH") or 0)  # 0, too, where the body is chunked
    if length <= MAX_BODY_BYTES:
        try:
            body: bytes = environ["wsgi.input"].read(MAX_BODY_BYTES + 1)
        except (OSError, ParseException) as exc:
            raise Rejected("body: want it whole, got a broken chunk or an early end.") from exc
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
        address_modes=ADDRESS_MODES,
        core=[(field.name, field.about) for field in parsing.CORE],
        cli=[(field.name, field.about) for field in parsing.CLI],
    )
    return answer(200, html, "text/html")


DETAILS = {
    404: "There is no such route.",
    405: "The route does not take this method.",
    500: "The server has an error of its own.",
}


def refuse(exc: Rejected) -> Response:
    note = {
        "received_at": timestamp(collector().store.clock()),
        "source": "cli" if request.path == "/cli" else "core",
        "status": exc.status,
        "field": exc.field,
        "detail": exc.detail,
    }
    collector().store.note_refusal(note)
    return problem(exc.status, exc.detail, field=exc.field)


def try_again(_: NotStored) -> Response:
    response = problem(503, "The event could not be stored; try again later.")
    response.headers["Retry-After"] = str(RETRY_AFTER_SECONDS)
    return response


def explain(exc: HTTPException) -> Response:
    """Turn Flask's own answers (404, 405, 500) into problem documents."""
    status = exc.code or 500
    response = problem(status, DETAILS.get(status, f"{exc.name}."))
    if allowed := getattr(exc, "valid_methods", None):
        response.headers["Allow"] = ", ".join(sorted(allowed))
    return response


def problem(status: int, detail: str, *, field: str | None = None) -> Response:
    """Return a problem document (RFC 9457)."""
    body = {"title": HTTPStatus(status).phrase, "status": status, "detail": detail}
    if field is not None:
        body["field"] = field
    outcome = "failed" if status >= 500 else "refused"
    return answer(status, encode(body), "application/problem+json", X_Telemetry_Outcome=outcome)


def collector() -> Collector:
    return cast(Collector, current_app.extensions["collector"])


app = create_app()
