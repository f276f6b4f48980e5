"""Parse what a client sent: payloads, addresses, host names, user agents.

Each function turns text or bytes into a normal form, or raises `Rejected`.
"""

import base64
import codecs
import hashlib
import hmac
import ipaddress
import logging
import re
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, lru_cache
from typing import Any
from urllib.parse import unquote

try:
    import ua_parser_rs  # noqa: F401 - can the native matcher be loaded?
except ImportError:  # no wheel for this platform, or a file system without execution
    sys.modules["ua_parser_rs"] = None  # type: ignore[assignment]  # ua_parser would try again

from ua_parser import (
    OS,
    BestAvailableResolver,
    Domain,
    RegexResolver,
    Resolver,
    UserAgent,
    load_lazy_builtins,
)

from files.records import AGENT_KEYS, PAYLOAD_KEYS, PROVIDERS, decode

log = logging.getLogger(__name__)

MAX_TEXT_CHARS = 256
MAX_PACKAGES = 256
MAX_RESOURCES = 1_000_000
MAX_AGENT_CHARS = 512  # the time to match grows with the length
MAX_HOSTNAME_CHARS = 253
MAX_KNOWN = 256  # cached addresses and host names: the same ones come again
MAX_KNOWN_AGENTS = 10_000  # cached user agents

TYPE_NAMES = {
    dict: "an object",
    list: "an array",
    str: "a string",
    bool: "a boolean",
    int: "an integer",
    float: "a number with a fraction or an exponent",
    type(None): "null",
    object: "nothing",  # MISSING
}

# Control characters, which are unsafe in a terminal, and lone surrogates, which are no text.
UNSAFE = re.compile(r"[\x00-\x1f\x7f-\x9f\ud800-\udfff]")

MISSING = object()  # the value of a field that was not sent, as opposed to null

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
Network = ipaddress.IPv4Network | ipaddress.IPv6Network


class Rejected(Exception):
    """The request is not valid.  `detail` is for people, and never holds a value that was sent."""

    def __init__(self, detail: str, *, field: str | None = None, status: int = 400) -> None:
        super().__init__(detail)
        self.detail, self.field, self.status = detail, field, status


def unwanted(field: str | None, wanted: str, seen: str) -> Rejected:
    return Rejected(f"{field or 'payload'}: want {wanted}, got {seen}.", field=field)


# A checker for each kind of value: it takes the value and the field's name, and returns the
# normal form or raises Rejected.


def text(value: Any, field: str) -> str:
    wanted = f"a string of 1 to {MAX_TEXT_CHARS} characters"
    if type(value) is not str:
        raise unwanted(field, wanted, TYPE_NAMES[type(value)])
    if not 1 <= len(value) <= MAX_TEXT_CHARS:
        raise unwanted(field, wanted, str(len(value)))
    if UNSAFE.search(value):
        seen = "a control character or a lone surrogate"
        raise unwanted(field, "printable characters", seen)
    return value


def optional_text(value: Any, field: str) -> str | None:
    return None if value in (MISSING, None, "") else text(value, field)


def resource_count(value: Any, field: str) -> int:
    wanted = f"an integer from 0 to {MAX_RESOURCES}"
    # isinstance() would accept True, which is an int in Python but no number in JSON.
    if type(value) is not int:
        raise unwanted(field, wanted, TYPE_NAMES[type(value)])
    if not 0 <= value <= MAX_RESOURCES:
        raise unwanted(field, wanted, "one out of range")
    return value


def providers(value: Any, field: str) -> dict[str, bool]:
    if type(value) is list:
        if len(value) != len(PROVIDERS):
            raise unwanted(field, f"{len(PROVIDERS)} booleans", f"{len(value)} values")
        named = {f"{field}[{i}]": item for i, item in enumerate(value)}
    elif type(value) is dict:
        named = {f"{field}.{name}": value.get(name, False) for name in PROVIDERS}
    else:
        seen = TYPE_NAMES[type(value)]
        raise unwanted(field, "an object of booleans, or an array of them", seen)
    for path, item in named.items():
        if type(item) is not bool:
            raise unwanted(path, "a boolean", TYPE_NAMES[type(item)])
    return dict(zip(PROVIDERS, named.values(), strict=True))


def packages(value: Any, field: str) -> list[dict[str, Any]]:
    if type(value) is not list:
        raise unwanted(field, "an array of objects", TYPE_NAMES[type(value)])
    if len(value) > MAX_PACKAGES:
        raise unwanted(field, f"at most {MAX_PACKAGES} packages", str(len(value)))
    return [package(item, f"{field}[{i}]") for i, item in enumerate(value)]


def package(value: Any, field: str) -> dict[str, Any]:
    sent = want_object(value, field)
    return {
        "name": text(sent.get("name", MISSING), f"{field}.name"),
        "version": optional_text(sent.get("version", MISSING), f"{field}.version"),
    }


@dataclass(frozen=True)
class Field:
    """A field of a payload; `about` describes it on the transparency page."""

    check: Callable[[Any, str], Any]
    about: str


# The fields of each source's payload, by their names.
FIELDS = {
    "core": {
        "providers": Field(
            providers, f"which of the app's providers are set: {', '.join(PROVIDERS)}"
        ),
        "version": Field(text, "the version of the framework"),
        "resourceCount": Field(resource_count, "how many resources the app has"),
        "projectId": Field(optional_text, "the project's own identifier, if it has one"),
    },
    "cli": {
        "nodeEnv": Field(optional_text, "the environment Node runs in, such as “development”"),
        "nodeVersion": Field(text, "the version of Node"),
        "os": Field(optional_text, "the operating system"),
        "osVersion": Field(optional_text, "the version of the operating system"),
        "command": Field(optional_text, "the command that ran, such as “dev”"),
        "packages": Field(packages, "the framework's installed packages, with their versions"),
        "projectFramework": Field(text, "what the project is built with, such as “vite”"),
        "projectId": Field(optional_text, "the project's own identifier, if it has one"),
    },
}


def check_payload(source: str, payload: Any) -> dict[str, Any]:
    """Return all fields of the source's payload, in their order, and no others."""
    sent = want_object(payload)
    fields = FIELDS[source]
    return {
        name: fields[name].check(sent.get(name, MISSING), name) for name in PAYLOAD_KEYS[source]
    }


def want_object(value: Any, field: str | None = None) -> dict[str, Any]:
    if type(value) is not dict:
        raise unwanted(field, "an object", TYPE_NAMES[type(value)])
    return value


def parse_core(encoded: str) -> dict[str, Any]:
    """Return the payload of a `core` event from its Base64 text."""
    raw = decode_base64(encoded).removeprefix(codecs.BOM_UTF8)
    try:
        decoded = raw.decode()
    except UnicodeDecodeError:
        # btoa() encodes each code unit as one byte, which is Latin-1.
        decoded = raw.decode("latin-1")
    return check_payload("core", parse_json(decoded))


def parse_cli(body: bytes) -> dict[str, Any]:
    """Return the payload of a `cli` event from its JSON text."""
    try:
        decoded = body.decode("utf-8-sig")
    except UnicodeDecodeError as exc:
        raise unwanted(None, "UTF-8", f"an invalid byte at {exc.start}") from exc
    return check_payload("cli", parse_json(decoded))


# A "+" in a query string arrives as a space; MIME encoders add line breaks.
BASE64_VARIANTS = str.maketrans({"-": "+", "_": "/", " ": "+", "\r": None, "\n": None})


def decode_base64(encoded: str) -> bytes:
    """Decode either alphabet of RFC 4648, padded or not, percent-escaped or not."""
    standard = unquote(encoded).translate(BASE64_VARIANTS)
    digits = standard.rstrip("=")
    padding = "=" * (-len(digits) % 4)
    try:
        if standard not in (digits, digits + padding):
            raise ValueError("wrong padding")
        return base64.b64decode(digits + padding, validate=True)
    except ValueError as exc:
        raise unwanted(None, "Base64", "text that is not Base64") from exc


def parse_json(document: str) -> Any:
    if not document:
        raise unwanted(None, "JSON", "nothing")
    try:
        return decode(document)
    except ValueError as exc:
        raise unwanted(None, "JSON", str(exc)) from exc


HOST_AND_PORT = re.compile(r"(\[(?P<bracketed>.+)\]|(?P<plain>[^:]+))(:\d{1,5})?")


@lru_cache(MAX_KNOWN)
def parse_address(written: str) -> Address | None:
    """Return the IP address in `1.2.3.4`, `1.2.3.4:5`, `::1`, `[::1]` or `[::1]:5`, else None.

    An IPv4-mapped IPv6 address becomes IPv4; an address with a zone identifier is None.
    """
    bare = written.strip()
    if match := HOST_AND_PORT.fullmatch(bare):
        bare = match["bracketed"] or match["plain"]
    try:
        address = ipaddress.ip_address(bare)
    except ValueError:
        return None
    if isinstance(address, ipaddress.IPv4Address):
        return address
    return None if address.scope_id else address.ipv4_mapped or address


def parse_network(written: str) -> Network:
    """Return a network that parse_address() can return addresses of.  Raises ValueError."""
    network = ipaddress.ip_network(written)
    address = network.network_address
    if isinstance(address, ipaddress.IPv6Address) and (address.scope_id or address.ipv4_mapped):
        raise ValueError(f"{written!r} has a zone, or is an IPv4 address")
    return network


@dataclass(frozen=True)
class Proxies:
    """Those whose `X-Forwarded-For` is trusted; `unix` stands for all peers on a Unix socket."""

    networks: tuple[Network, ...] = ()
    unix: bool = False

    def __contains__(self, address: Address | None) -> bool:
        return address is not None and any(address in network for network in self.networks)

    def __str__(self) -> str:
        return ", ".join([*map(str, self.networks), *(["unix"] if self.unix else [])])


def client_address(peer: str, forwarded_for: str, proxies: Proxies) -> Address | None:
    """Return the nearest address that does not belong to a trusted proxy.

    `peer` is empty for a Unix socket.  `forwarded_for` is the header, its nearest hop last;
    an entry that is no address ends the search at the hop before it.  Empty list elements are
    no entries (RFC 9110, 5.6.1.2).
    """
    address = parse_address(peer)
    is_trusted = address in proxies if peer else proxies.unix
    for hop in filter(str.strip, reversed(forwarded_for.split(","))):
        further = parse_address(hop) if is_trusted else None
        if further is None:
            break
        address, is_trusted = further, further in proxies
    return address


def mask_address(address: Address) -> str:
    """Return the address of its network: /24 for IPv4, /48 for IPv6."""
    prefix = 24 if address.version == 4 else 48
    return str(ipaddress.ip_network((address, prefix), strict=False).network_address)


def hash_address(address: Address, key: bytes) -> str:
    """Return the HMAC-SHA-256 (RFC 2104) in 64 hexadecimal digits."""
    return hmac.new(key, address.packed, hashlib.sha256).hexdigest()


HOST_OF_URL = re.compile(
    r"[a-z][a-z0-9+.-]*://(?:[^/?#@]*@)?(\[[^\]/?#]*\]|[^/?#:@\[\]]*)(?::\d*)?(?:[/?#].*)?", re.I
)
LABEL = re.compile(r"[a-z0-9_]([a-z0-9_-]{0,61}[a-z0-9_])?")
NUMBER = re.compile(r"\d+|0x[0-9a-f]*")


@lru_cache(MAX_KNOWN)
def parse_hostname(url: str) -> str | None:
    """Return the host of a URL, in lower case and without its port.

    None if there is no host, or if it is neither a DNS name nor an address.
    """
    try:
        # WSGI decodes headers as Latin-1, whatever their encoding is (PEP 3333).
        match = HOST_OF_URL.fullmatch(url.encode("latin-1").decode())
        host = match[1].lower().removesuffix(".") if match else ""
        # The "idna" codec takes quadratic time, so the length is limited first.  urlsplit()
        # is quadratic, too.
        if not host.isascii() and len(host) <= MAX_HOSTNAME_CHARS:
            host = host.encode("idna").decode()
    except ValueError:
        return None
    if address := parse_address(host):
        return str(address)
    labels = host.split(".")
    # A host whose last label is a number is an IPv4 address or invalid (WHATWG URL Standard).
    if len(host) > MAX_HOSTNAME_CHARS or NUMBER.fullmatch(labels[-1]):
        return None
    return host if all(map(LABEL.fullmatch, labels)) else None


def describe_agent(header: str) -> dict[str, str | None]:
    """Return browser, operating system and their versions; None for what did not match."""
    return match_agent(header[:MAX_AGENT_CHARS])


@lru_cache(MAX_KNOWN_AGENTS)
def match_agent(agent: str) -> dict[str, str | None]:
    found = agent_resolver()(UNSAFE.sub("", agent), Domain.USER_AGENT | Domain.OS)
    browser, os = found.user_agent, found.os
    values = (
        browser.family if browser else None,
        join_version(browser),
        os.family if os else None,
        join_version(os),
    )
    return dict(zip(AGENT_KEYS, values, strict=True))


@cache
def agent_resolver() -> Resolver:
    """Build the matcher, which is slow.  Without devices it takes half the memory."""
    if RegexResolver is None:
        log.warning("ua-parser-rs cannot be imported: slower Python recognises browsers")
    browsers, systems, _ = load_lazy_builtins()
    return BestAvailableResolver((browsers, systems, []))


def join_version(found: UserAgent | OS | None) -> str | None:
    if found is None:
        return None
    parts = (found.major, found.minor, found.patch, found.patch_minor)
    return ".".join(part for part in parts if part) or None
