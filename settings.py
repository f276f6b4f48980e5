"""The settings: environment variables, read once at start."""

import contextlib
import re
import socket
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from parsing import Proxies, parse_network

VERSION = "1.0.0"  # of the first section of CHANGELOG.md

PREFIX = "TELEMETRY_"
# Kubernetes sets these in every pod for a Service called "telemetry" or "telemetry-…".
KUBERNETES_NAME = re.compile(
    r"TELEMETRY(_[A-Z0-9_]+)?"
    r"_(SERVICE_HOST|SERVICE_PORT(_[A-Z0-9_]+)?|PORT|PORT_\d+_(TCP|UDP)(_(PROTO|PORT|ADDR))?)"
)

ADDRESS_MODES = ("full", "masked", "hashed", "none")


class ConfigError(SystemExit):
    """A setting that cannot be used.  Uncaught, it ends the program with its one line."""


# A parser for each kind of value: it takes the text of a variable, and returns the value or
# raises ValueError with what is wanted.


def directory(value: str) -> Path:
    # Shell syntax in a file that no shell reads, such as /etc/telemetry.env.
    if value[0] in "'\"~$" or re.search(r"^[\s\0-\x1f\x7f-\x9f]|[\s\0-\x1f\x7f-\x9f]$", value):
        raise ValueError("a directory, without quotes, ~, $ or white space around it")
    path = Path(value)
    with contextlib.suppress(OSError):  # it may be accessible by the time it is created
        if any(there.is_file() for there in (path, *path.parents)):
            raise ValueError("a directory")
    return path


def words(value: str) -> str:
    if not value.isprintable() or value != value.strip():
        raise ValueError("one line of text, without white space around it")
    return value


def proxies(value: str) -> Proxies:
    parts = [part.strip() for part in value.split(",")] if value else []
    try:
        networks = tuple(parse_network(part) for part in parts if part != "unix")
    except ValueError as exc:
        wanted = 'addresses, networks and "unix", separated by commas'
        raise ValueError(f"{wanted} ({exc})") from exc
    return Proxies(networks, unix="unix" in parts)


def address_mode(value: str) -> str:
    if value not in ADDRESS_MODES:
        raise ValueError(f"one of {', '.join(ADDRESS_MODES)}")
    return value


def switch(value: str) -> bool:
    if value not in ("true", "false"):
        raise ValueError("true or false")
    return value == "true"


def whole_number(value: str, low: int = 0, high: int = 10**9 - 1) -> int:
    if not (value.isascii() and value.isdigit() and len(value) < 10 and low <= int(value) <= high):
        raise ValueError(f"a whole number from {low} to {high}")
    return int(value)


def variable(default: str, parser: Callable[[str], Any]) -> Any:
    return field(metadata={"default": default, "parser": parser})


@dataclass(frozen=True)
class Settings:
    """The variables with the prefix TELEMETRY_, each a field of the same name in lower case."""

    data_dir: Path = variable("data", directory)  # where the files live
    framework: str = variable("Refine", words)  # whose telemetry this is
    opt_out: str = variable("", words)  # how that framework's users opt out
    contact: str = variable("", words)  # who runs this: an address or words
    trusted_proxies: Proxies = variable("", proxies)  # whose X-Forwarded-For is believed
    ip: str = variable("full", address_mode)  # what is stored of an address
    honor_opt_out: bool = variable("true", switch)  # honour Sec-GPC and DNT
    compress_after_days: int = variable("7", whole_number)  # gzip a day's file at this age; 0 never
    retention_days: int = variable("0", whole_number)  # delete a day's file at this age; 0 never
    min_free_mb: int = variable("64", whole_number)  # free disk below which events get a 503


NAMES = {f"{PREFIX}{one.name.upper()}": one for one in fields(Settings)}


def read_settings(environ: Mapping[str, str]) -> Settings:
    """Return the settings in `environ`.  Raises ConfigError for an invalid value or name."""
    for name, value in environ.items():
        if name.startswith(PREFIX) and name not in NAMES and not KUBERNETES_NAME.fullmatch(name):
            raise ConfigError(f"{name}={value!r}: want one of {', '.join(NAMES)}")
    values = {}
    for name, one in NAMES.items():
        value = environ.get(name) or one.metadata["default"]
        values[one.name] = parse(name, value, one.metadata["parser"])
    return Settings(**values)


def parse(name: str, value: str, parser: Callable[[str], Any]) -> Any:
    try:
        return parser(value)
    except ValueError as exc:
        raise ConfigError(f"{name}={value!r}: want {exc}") from exc


# gunicorn's own variables.


def worker_count(environ: Mapping[str, str]) -> int:
    value = environ.get("WEB_CONCURRENCY") or "1"
    return int(parse("WEB_CONCURRENCY", value, lambda text: whole_number(text, 1, 1000)))


def bind_addresses(environ: Mapping[str, str]) -> list[str]:
    """Return where to listen: on $PORT of every interface, else on the loopback interface."""
    if not environ.get("PORT"):
        return ["127.0.0.1:8000"]
    port = parse("PORT", environ["PORT"], lambda text: whole_number(text, 1, 65535))
    try:
        with socket.socket(socket.AF_INET6) as probe:
            probe.bind(("::", 0))
            # Whether an IPv6 socket accepts IPv4 as well is the kernel's default.
            is_alone = probe.getsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY)
    except OSError:
        return [f"0.0.0.0:{port}"]
    return [f"[::]:{port}", f"0.0.0.0:{port}"] if is_alone else [f"[::]:{port}"]
