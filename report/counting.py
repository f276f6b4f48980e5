"""Count the lines of the daily files.

One regular expression cuts all lines of a chunk into parts, and another one cuts each different
payload of a day into its values.  Equal parts, and equal pairs of parts, are counted as they stand
in the line; what they mean is read later, and only where it is asked.

A line that either expression does not match is not in the form that the collector writes: it is
parsed as JSON and converted to that form, one by one.
"""

import re
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache
from itertools import compress
from pathlib import Path
from typing import Any, NamedTuple

from files.records import (
    ADDED_KEYS,
    AGENT_KEYS,
    PAYLOAD_KEYS,
    PROVIDERS,
    read_record,
)
from report.hosts import is_in_development, is_program
from report.values import NULL, Values, text_of, value_of

# The form that the collector writes: JSON text of each kind of value.  A text that needs an escape
# is left to the JSON parser.
TEXT = rb'(?:"[ !#-\[\]-~]*+"|null)'
INTEGER = rb"(?:0|[1-9][0-9]*+|null)"
FLAGS = rb"\{%b\}" % b",".join(b'"%b":(?:true|false)' % name.encode() for name in PROVIDERS)
PACKAGE = rb'\{"name":%b,"version":%b\}' % (TEXT, TEXT)
PACKAGES = rb"\[(?:%b(?:,%b)*+)?+\]" % (PACKAGE, PACKAGE)
FORMS = {"providers": FLAGS, "resourceCount": INTEGER, "packages": PACKAGES}


def form_of(keys: Iterable[str], added: Collection[str], value: bytes = b"%b") -> bytes:
    """Return what matches these keys, each with its value; the added ones may be missing."""
    pattern = b""
    for key in keys:
        form = value % FORMS.get(key, TEXT)
        member = b'%b"%b":%b' % (b"," if pattern else b"", key.encode(), form)
        pattern += b"(?:%b)?+" % member if key in added else member
    return pattern


def line_pattern(added: Collection[str]) -> re.Pattern[bytes]:
    """Return what matches a line, with its parts as groups; the last one is any other line."""
    agent = form_of(AGENT_KEYS, added)
    core = rb'"core","ip":(%b),"hostname":(%b),(%b),"payload":\{(.+)\}' % (TEXT, TEXT, agent)
    cli = rb'"cli","ip":(%b),"payload":\{(.+)\}' % TEXT
    head = rb'\{"id":"[0-9a-f-]{36}","received_at":"[0-9T:.Z-]{24}","source":'
    return re.compile(rb"^(?:%b(?:%b|%b)\}|(.*))$" % (head, core, cli), re.MULTILINE)


def payload_pattern(keys: Iterable[str], added: Collection[str]) -> re.Pattern[bytes]:
    """Return what matches a payload, with its values as groups; the last one is any other."""
    return re.compile(b"^(?:%b|(.+))$" % form_of(keys, added, b"(%b)"), re.MULTILINE)


LINE = line_pattern(ADDED_KEYS)
PAYLOADS = {source: payload_pattern(keys, ADDED_KEYS) for source, keys in PAYLOAD_KEYS.items()}
HASH = re.compile(rb'"[0-9a-fA-F]{64}"')
HASH_BYTES = 66
REFUSAL_TIME = re.compile(rb'^\{"received_at":"[0-9T:.Z-]{24}",', re.MULTILINE)


class Parts(NamedTuple):
    """The parts of a line as JSON text; those of the other source are empty."""

    ip: bytes = b""
    hostname: bytes = b""
    agent: bytes = b""
    core_payload: bytes = b""
    cli_ip: bytes = b""
    cli_payload: bytes = b""
    odd: bytes = b""  # the whole line, if the expression did not match it


@dataclass
class Tally:
    """The counts of one day; the byte strings are parts of lines."""

    has_lists: bool = True  # whether the lists cover this day
    is_excluded: Callable[[bytes], bool] | None = None
    directory: Path = Path()  # of the file that is being counted
    core: Counter[tuple[bytes, bytes]] = field(default_factory=Counter)  # host name and payload
    cli: Counter[bytes] = field(default_factory=Counter)
    # By source: each different payload, cut into the values of its keys.
    values: dict[str, dict[bytes, Values]] = field(
        default_factory=lambda: {source: {} for source in PAYLOAD_KEYS}
    )
    # By source, unit and directory: each directory has its own key to hash addresses with.
    addresses: defaultdict[tuple[str, str, Path], set[bytes]] = field(
        default_factory=lambda: defaultdict(set)
    )
    agents: Counter[bytes] = field(default_factory=Counter)
    agent_addresses: set[tuple[bytes, bytes]] = field(default_factory=set)
    automated: Counter[tuple[bytes, bytes]] = field(default_factory=Counter)  # agent, host name
    excluded: int = 0
    refusals: Counter[tuple[str | None, ...]] = field(default_factory=Counter)
    unreadable_lines: int = 0


# Events.


def count_events(chunk: bytes, tally: Tally) -> None:
    """Count the lines of a chunk of an events file."""
    if not chunk:
        return
    rows: list[tuple[bytes, ...]] = LINE.findall(chunk, 0, len(chunk) - 1)
    columns = list(zip(*rows, strict=True))
    *_, core_payloads, _, cli_payloads, odd = columns
    odd_payloads = cut_unseen(core_payloads, "core", tally) | cut_unseen(cli_payloads, "cli", tally)
    if odd_payloads or any(odd):
        rows = list(in_form(rows, odd_payloads, tally))
        columns = list(zip(*rows, strict=True))
    if columns:
        _, hosts, agents, *_ = columns
        automated = set(filter(is_automated, {*agents}))
        excluded = set(filter(tally.is_excluded, {*hosts})) if tally.is_excluded else set[bytes]()
        if automated or excluded:
            columns = list(zip(*set_aside(rows, automated, excluded, tally), strict=True))
    if columns:
        count_columns(columns, tally)


def cut_unseen(payloads: Iterable[bytes], source: str, tally: Tally) -> set[bytes]:
    """Cut the payloads that are new today.  Return those that are not in the collector's form."""
    known = tally.values[source]
    fresh = {*payloads}.difference(known, (b"",))
    found = dict(zip(fresh, PAYLOADS[source].findall(b"\n".join(fresh)), strict=True))
    odd = {payload for payload, values in found.items() if values[-1]}
    known.update((payload, found[payload][:-1]) for payload in fresh - odd)
    return odd


def in_form(
    rows: list[tuple[bytes, ...]], odd_payloads: set[bytes], tally: Tally
) -> Iterator[tuple[bytes, ...]]:
    """Yield the rows in the collector's form, the others converted.  Count what is unreadable."""
    for row in rows:
        *_, core_payload, _, cli_payload, odd = row
        if not (odd or core_payload in odd_payloads or cli_payload in odd_payloads):
            yield row
        elif parts := read_odd(odd or line_of(Parts(*row))):
            source = "core" if parts.core_payload else "cli"
            payload = parts.core_payload or parts.cli_payload
            tally.values[source][payload] = values_of(PAYLOAD_KEYS[source], payload)
            yield parts
        else:
            tally.unreadable_lines += 1


def set_aside(
    rows: list[tuple[bytes, ...]], automated: set[bytes], excluded: set[bytes], tally: Tally
) -> Iterator[tuple[bytes, ...]]:
    """Count the events that are excluded or automated, and yield the others."""
    for row in rows:
        _, host, agent, *_ = row
        if host in excluded:
            tally.excluded += 1
        elif agent in automated:
            tally.automated[agent, host] += 1
        else:
            yield row


def count_columns(columns: list[tuple[bytes, ...]], tally: Tally) -> None:
    # Each column has empty strings for the lines of the other source.
    ips, hosts, agents, core_payloads, cli_ips, cli_payloads, _ = columns
    in_development = set(filter(is_in_development, {*hosts}))
    of_development = compress(ips, map(in_development.__contains__, hosts))
    for source, unit, column in (
        ("core", "addresses", ips),
        ("core", "development_addresses", of_development),
        ("cli", "addresses", cli_ips),
    ):
        addresses = tally.addresses[source, unit, tally.directory]
        addresses.update(column)
        addresses.difference_update((b"", NULL))
    tally.core.update(zip(hosts, core_payloads, strict=True))
    tally.cli.update(cli_payloads)
    # A row of neither source is an empty line.
    of_others = tally.core.pop((b"", b""), 0) + tally.cli.pop(b"", 0)
    tally.unreadable_lines += of_others - len(ips)
    if tally.has_lists:
        tally.agents.update(agents)
        tally.agent_addresses.update(zip(agents, ips, strict=True))
        tally.agent_addresses.discard((b"", b""))
        del tally.agents[b""]


def holds_hash(addresses: Collection[bytes]) -> bool:
    return HASH_BYTES in map(len, addresses) and any(map(HASH.fullmatch, addresses))


# Parts.


def cut_payloads(source: str, payloads: Collection[bytes]) -> list[Values]:
    """Cut payloads into the values of their keys, all at once."""
    rows: list[Values] = PAYLOADS[source].findall(b"\n".join(payloads))
    if any(row[-1] for row in rows):  # with an escape, or a number that no client sends
        keys = PAYLOAD_KEYS[source]
        return [values_of(keys, row[-1]) if row[-1] else row for row in rows]
    return rows


def values_of(keys: tuple[str, ...], part: bytes) -> Values:
    """Cut any part into the values of its keys; one that is missing is null.

    A key cannot be found within a value, where quotes are escaped.
    """
    values, rest = [], b"," + part
    for key in reversed(keys):
        before, found, value = rest.rpartition(b',"%b":' % key.encode())
        values.append(value if found else NULL)
        rest = before if found else rest
    return tuple(reversed(values))


def complete(tally: Tally) -> None:
    """Give older payloads null for the keys that were added later, so that equal ones are one."""
    core, cli = tally.core, tally.cli
    tally.core, tally.cli = Counter(), Counter()
    for (host, payload), times in core.items():
        tally.core[host, completed(payload, "core", tally)] += times
    for payload, times in cli.items():
        tally.cli[completed(payload, "cli", tally)] += times


def completed(payload: bytes, source: str, tally: Tally) -> bytes:
    values = tuple(value or NULL for value in tally.values[source][payload])
    members = zip(map(str.encode, PAYLOAD_KEYS[source]), values, strict=True)
    text = b",".join(map(b'"%b":%b'.__mod__, members))
    tally.values[source][text] = values
    return text


@cache
def agent_of(part: bytes) -> Values:
    return values_of(AGENT_KEYS, part)


@cache
def is_automated(part: bytes) -> bool:
    return bool(part) and is_program(value_of(agent_of(part)[0]))


# Lines in another form.


def line_of(parts: Parts) -> bytes:
    """Return a line that says the same as the one that was cut into these parts."""
    head = b'{"id":"","received_at":"","source":'
    if parts.core_payload:
        return head + b'"core","ip":%b,"hostname":%b,%b,"payload":{%b}}' % parts[:4]
    return head + b'"cli","ip":%b,"payload":{%b}}' % parts[4:6]


def read_odd(line: bytes) -> Parts | None:
    """Return the parts of a line in any form, None if it cannot be read."""
    record = read_record(line)
    payload = record.get("payload") if record else None
    if record is None or not isinstance(payload, dict):
        return None
    try:
        known = checked(("id", "received_at", "ip", "source"), record)
        ip = text_of(known["ip"])
        if known["source"] == "core":
            hostname = text_of(checked(("hostname",), record)["hostname"])
            agent = part_of(AGENT_KEYS, record)
            sent = part_of(PAYLOAD_KEYS["core"], payload)
            return Parts(ip=ip, hostname=hostname, agent=agent, core_payload=sent)
        if known["source"] == "cli":
            return Parts(cli_ip=ip, cli_payload=part_of(PAYLOAD_KEYS["cli"], payload))
    except ValueError:
        pass
    return None


def part_of(keys: Iterable[str], values: Mapping[str, Any]) -> bytes:
    return text_of(checked(keys, values))[1:-1]


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


def checked_providers(value: Any) -> dict[str, bool]:
    value = {} if value is None else value
    if isinstance(value, dict) and all(type(flag) is bool for flag in value.values()):
        return {name: value.get(name, False) for name in PROVIDERS}
    raise ValueError("want an object of booleans")


def checked_packages(value: Any) -> list[dict[str, str | None]]:
    value = [] if value is None else value
    if isinstance(value, list) and all(isinstance(item, dict) for item in value):
        return [checked(("name", "version"), item) for item in value]
    raise ValueError("want an array of objects")


CHECKS: dict[str, Callable[[Any], Any]] = {
    "providers": checked_providers,
    "resourceCount": integer_or_null,
    "packages": checked_packages,
}


# Refusals.


def count_refusals(chunk: bytes, tally: Tally) -> None:
    """Count the lines of a chunk of a file of refusals, by reason."""
    lines = Counter(REFUSAL_TIME.sub(b"{", chunk).split(b"\n")[:-1])
    for line, times in lines.items():
        if (reason := reason_in(line)) is None:
            tally.unreadable_lines += times
        else:
            tally.refusals[reason] += times


def reason_in(line: bytes) -> tuple[str | None, ...] | None:
    if (record := read_record(line)) is None:
        return None
    try:
        return tuple(checked(("source", "field", "detail"), record).values())
    except ValueError:
        return None
