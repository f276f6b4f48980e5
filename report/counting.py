"""Count the lines of the daily files.

An app sends the same payload on every load, and its visitors use few different browsers, so
most of a line repeats byte for byte.  One regular expression cuts all lines of a chunk into
parts; then equal parts and pairs of parts are counted, and each different part is parsed once.

A line that the expression does not match, or with a part in another form than the collector
writes, is odd: it is parsed as JSON and converted to that form, one by one.
"""

import ipaddress
import json
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, NamedTuple, NoReturn

from files.records import encode
from report.lists import AGENT, MACHINE, PAYLOAD, PROJECT

MAX_KNOWN = 50_000  # cached parts and host names

PROVIDERS = ("auth", "data", "router", "live", "notification", "auditLog", "i18n", "accessControl")
LOCAL_ENDINGS = (".localhost", ".local", ".test", ".example", ".invalid", ".internal", ".home.arpa")
NULL = b"null"

# Matches a line in the form that the collector writes, with its parts as groups; the last group
# is any other line.  It cannot cut in the wrong place, because no group before the payload can
# hold an escaped quote.  The bounds {0,2000} keep lines that lack what follows from being
# searched to their end.
LINE = re.compile(
    rb"""^(?:\{"id":"[0-9a-f-]{36}","received_at":"[0-9T:.Z-]{24}","source":(?:
        "core","ip":(TEXT|null),"hostname":(TEXT|null),
        ("browser":[^{\n]{0,2000}),"payload":\{("providers":.*)\}
    |
        "cli","ip":(TEXT|null),"payload":\{("nodeEnv":[^[\n]{0,2000}),("packages":.*)\}
    )\}|(.+))$""".replace(b"TEXT", rb'"[\ !#-[\]-~]*+"'),
    re.MULTILINE | re.VERBOSE,
)
REFUSAL_TIME = re.compile(rb'^\{"received_at":"[0-9T:.Z-]{24}",', re.MULTILINE)


class Parts(NamedTuple):
    """The parts of a line as JSON text; those of the other source are empty."""

    ip: bytes = b""
    hostname: bytes = b""
    agent: bytes = b""
    payload: bytes = b""
    cli_ip: bytes = b""
    machine: bytes = b""
    project: bytes = b""
    odd: bytes = b""  # the whole line, if the expression did not match it


PARSED = {2: AGENT, 3: PAYLOAD, 5: MACHINE, 6: PROJECT}  # by their index in Parts


@dataclass
class Tally:
    """The counts of one day; the byte strings are parts of lines."""

    has_lists: bool = True  # whether the lists cover this day
    addresses: set[bytes] = field(default_factory=set)
    local_addresses: set[bytes] = field(default_factory=set)
    addresses_of_agent: defaultdict[bytes, set[bytes]] = field(
        default_factory=lambda: defaultdict(set)
    )
    agents: Counter[bytes] = field(default_factory=Counter)
    host_payloads: Counter[tuple[bytes, bytes]] = field(default_factory=Counter)
    cli_addresses: set[bytes] = field(default_factory=set)
    cli_payloads: Counter[tuple[bytes, bytes]] = field(default_factory=Counter)
    refusals: Counter[tuple[str | None, ...]] = field(default_factory=Counter)
    unreadable_lines: int = 0


# Events.


def count_events(chunk: bytes, tally: Tally) -> None:
    """Count the lines of a chunk of an events file."""
    rows = LINE.findall(chunk)
    tally.unreadable_lines += chunk.count(b"\n") - len(rows)  # empty lines
    columns = list(zip(*rows, strict=True))
    unusual = set(unusual_parts(columns))
    if unusual or any(columns[-1:] and columns[-1]):
        read = [read_odd(line) for line in odd_lines(chunk, unusual)]
        tally.unreadable_lines += read.count(None)
        rows = [row for row in rows if not row[-1] and unusual.isdisjoint(row)]
        columns = list(zip(*rows, *filter(None, read), strict=True))
    if columns:
        count_columns(columns, tally)


def unusual_parts(columns: list[tuple[bytes, ...]]) -> Iterator[bytes]:
    """Yield the parts that are not in the form the collector writes."""
    for index, keys in PARSED.items() if columns else ():
        for text in set(columns[index]):
            if text and read_part(keys, text) is None:
                yield text


def odd_lines(chunk: bytes, unusual: set[bytes]) -> Iterator[bytes]:
    for match in LINE.finditer(chunk):
        if match[8] or not unusual.isdisjoint(match.groups()):
            yield match[0]


def count_columns(columns: list[tuple[bytes, ...]], tally: Tally) -> None:
    # Each column has empty strings for the lines of the other source.
    ips, hosts, agents, payloads, cli_ips, machines, projects, _ = columns
    nothing = {b"", NULL}
    tally.addresses |= {*ips} - nothing
    local_hosts = set(filter(is_local, {*hosts}))
    tally.local_addresses |= {
        ip for ip, host in zip(ips, hosts, strict=True) if host in local_hosts
    } - nothing
    tally.host_payloads.update(zip(hosts, payloads, strict=True))
    tally.cli_addresses |= {*cli_ips} - nothing
    tally.cli_payloads.update(zip(machines, projects, strict=True))
    del tally.host_payloads[b"", b""], tally.cli_payloads[b"", b""]
    if tally.has_lists:
        tally.agents.update(agents)
        for agent, ip in zip(agents, ips, strict=True):
            tally.addresses_of_agent[agent].add(ip)
        del tally.agents[b""]
        tally.addresses_of_agent.pop(b"", None)


@lru_cache(MAX_KNOWN)
def is_local(hostname: bytes) -> bool:
    """Tell whether a host name, as JSON text, is local (contract, section 6)."""
    if hostname in (b"", NULL):
        return False
    name: str = json.loads(hostname)
    try:
        return not ipaddress.ip_address(name).is_global
    except ValueError:
        return "." not in name or name.endswith(LOCAL_ENDINGS)


# Parts.


@lru_cache(MAX_KNOWN)
def read_part(keys: tuple[str, ...], text: bytes) -> dict[str, Any] | None:
    """Return the values of a part, None if it is not in the form the collector writes."""
    try:
        values = checked(keys, parse_json(b"{%b}" % text))
    except (ValueError, RecursionError):
        return None
    return values if part_text(values) == text else None


def read_odd(line: bytes) -> Parts | None:
    """Return the parts of a line in any form, None if it cannot be read."""
    try:
        record = parse_json(line)
        payload = record.get("payload") if isinstance(record, dict) else None
        if not isinstance(payload, dict):
            return None
        known = checked(("id", "received_at", "ip", "source"), record)
        ip = json_text(known["ip"])
        if known["source"] == "core":
            hostname = json_text(checked(("hostname",), record)["hostname"])
            agent, sent = part_of(AGENT, record), part_of(PAYLOAD, payload)
            return Parts(ip=ip, hostname=hostname, agent=agent, payload=sent)
        if known["source"] == "cli":
            machine, project = part_of(MACHINE, payload), part_of(PROJECT, payload)
            return Parts(cli_ip=ip, machine=machine, project=project)
    except (ValueError, RecursionError):
        pass
    return None


def part_of(keys: tuple[str, ...], values: Mapping[str, Any]) -> bytes:
    return part_text(checked(keys, values))


def part_text(values: Mapping[str, Any]) -> bytes:
    return json_text(values)[1:-1]


def json_text(value: Any) -> bytes:
    return encode(value).encode("ascii")


def parse_json(text: bytes) -> Any:
    return json_decoder.decode(text.decode("utf-8"))


def refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")


json_decoder: json.JSONDecoder = json.JSONDecoder(parse_constant=refuse_constant)


def checked(keys: Iterable[str], values: Mapping[str, Any]) -> dict[str, Any]:
    """Return the values of these keys; a missing one is null.

    Raises ValueError on a value of another type.
    """
    found = {}
    for key in keys:
        check: Callable[[Any], Any] = CHECKS.get(key, text_or_null)
        found[key] = check(values.get(key))
    return found


def text_or_null(value: Any) -> str | None:
    if value is None or isinstance(value, str):
        return value
    raise ValueError("want text or null")


def integer_or_null(value: Any) -> int | None:
    if value is None or type(value) is int:
        return value
    raise ValueError("want an integer or null")


def providers(value: Any) -> dict[str, bool]:
    value = {} if value is None else value
    if isinstance(value, dict) and all(type(flag) is bool for flag in value.values()):
        return {name: value.get(name, False) for name in PROVIDERS}
    raise ValueError("want an object of booleans")


def packages(value: Any) -> list[dict[str, str | None]]:
    value = [] if value is None else value
    if isinstance(value, list) and all(isinstance(item, dict) for item in value):
        return [checked(("name", "version"), item) for item in value]
    raise ValueError("want an array of objects")


CHECKS: dict[str, Callable[[Any], Any]] = {
    "providers": providers,
    "resourceCount": integer_or_null,
    "packages": packages,
}


# Refusals.


def count_refusals(chunk: bytes, tally: Tally) -> None:
    """Count the lines of a chunk of a file of refusals, by reason."""
    lines = Counter(REFUSAL_TIME.sub(b"{", chunk).split(b"\n")[:-1])
    for line, times in lines.items():
        try:
            record = parse_json(line)
            reason = checked(("source", "field", "detail"), record)
        except (ValueError, RecursionError, AttributeError):
            tally.unreadable_lines += times
        else:
            tally.refusals[tuple(reason.values())] += times
