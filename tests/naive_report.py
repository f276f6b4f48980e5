"""The report's JSON, counted a second time in the slowest and plainest way.

Nothing of the report is imported. Every number has a loop of its own, written after its definition
in section 6 of the contract; speed does not matter, being easy to check does.
"""

import gzip
import ipaddress
import json
import re
from collections import Counter
from collections.abc import Callable, Iterable
from datetime import date, timedelta
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

DAY = timedelta(days=1)
FILE_NAME = re.compile(r"(events|refused)-([0-9]{4}-[0-9]{2}-[0-9]{2})\.jsonl(\.gz)?")
PROVIDERS = [
    *("auth", "data", "router", "live"),
    *("notification", "auditLog", "i18n", "accessControl"),
]


class Event(NamedTuple):
    day: date
    record: dict[str, Any]
    payload: dict[str, Any]


class DayContent(NamedTuple):
    day: date
    content: bytes


def naive_report(directories: list[Path], since: date, until: date, today: date) -> dict[str, Any]:
    """Return the object that `flask report --format json` must print."""
    files = files_of("events", directories)
    first_day_read = min(since, until - 55 * DAY)  # 2 x 28 days, whatever `since` is
    events, unreadable_lines = [], 0
    for file in files:
        if first_day_read <= file.day <= until:
            for line in lines_of(file.content):
                event = read_event(file.day, line)
                if event is None:
                    unreadable_lines += 1
                else:
                    events.append(event)

    refusals = []
    for file in files_of("refused", directories):
        if since <= file.day <= until:
            for line in lines_of(file.content):
                refusal = read_refusal(line)
                if refusal is None:
                    unreadable_lines += 1
                else:
                    refusals.append(refusal)

    days_with_file = {file.day for file in files}
    weeks = weeks_of(since, until)
    lists_from = until - 27 * DAY
    return {
        "since": str(since),
        "until": str(until),
        "unfinished": until >= today,
        "missing_days": [
            str(day) for day in days_between(since, until) if day not in days_with_file
        ],
        "unreadable_lines": unreadable_lines,
        "refused": refused(refusals),
        "events": {
            source: len(of_source(source, between(since, until, events)))
            for source in ("core", "cli")
        },
        "active": {
            source: {
                unit: {
                    str(length): window(source, unit, length, until, events, days_with_file)
                    for length in (7, 28)
                }
                for unit in UNITS[source]
            }
            for source in ("core", "cli")
        },
        "weeks": [
            {"since": str(first), "until": str(last)} | figures(first, last, events, days_with_file)
            for first, last in weeks
        ],
        "adoption": [adoption(first, last, events, days_with_file) for first, last in weeks],
        "days": [
            {"date": str(day)} | figures(day, day, events, days_with_file)
            for day in days_between(since, until)
        ],
        "core": core_lists(of_source("core", between(lists_from, until, events))),
        "cli": cli_lists(of_source("cli", between(lists_from, until, events))),
    }


# Files and lines


def files_of(kind: str, directories: list[Path]) -> list[DayContent]:
    """Return the files that count; one that is found again, under whatever name, does not."""
    found, seen = [], set()
    for directory in directories:
        for path in sorted(directory.iterdir()):
            match = FILE_NAME.fullmatch(path.name)
            if not match or match[1] != kind or not is_date(match[2]):
                continue
            day = date.fromisoformat(match[2])
            is_archive = match[3] is not None
            if is_archive:
                content = gzip.decompress(path.read_bytes())
                plain = path.with_suffix("")
                if plain.exists() and plain.read_bytes().startswith(content):
                    continue
            else:
                content = path.read_bytes()
            if identity(path) not in seen:
                seen.add(identity(path))
                found.append(DayContent(day, content))
    return found


def identity(path: Path) -> tuple[int, int]:
    status = path.stat()
    return status.st_dev, status.st_ino


def is_date(text: str) -> bool:
    try:
        date.fromisoformat(text)
    except ValueError:
        return False
    return True


def lines_of(content: bytes) -> list[bytes]:
    """Return what ends in a newline; the piece behind the last newline is no line."""
    return content.split(b"\n")[:-1]


def parse(line: bytes) -> Any:
    """Return the line's JSON value, or None if it is not JSON (or is `null`)."""
    try:
        return json.loads(line.decode("utf-8"), parse_constant=no_json)
    except (ValueError, RecursionError):
        return None


def no_json(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is no JSON")


def read_refusal(line: bytes) -> tuple[str | None, str | None, str | None] | None:
    value = parse(line)
    if not isinstance(value, dict):
        return None
    refusal = value.get("source"), value.get("field"), value.get("detail")
    return refusal if all(is_text(part) for part in refusal) else None


def read_event(day: date, line: bytes) -> Event | None:
    """Return the event with every key of section 3, null where the line has none."""
    value = parse(line)
    if not isinstance(value, dict) or not isinstance(value.get("payload"), dict):
        return None
    if value.get("source") == "core":
        names, payload_names = CORE, CORE_PAYLOAD
    elif value.get("source") == "cli":
        names, payload_names = CLI, CLI_PAYLOAD
    else:
        return None
    record = {name: value.get(name) for name in names}
    payload = {name: value["payload"].get(name) for name in payload_names}
    if not all(is_right(record[name]) for name, is_right in names.items()):
        return None
    if not all(is_right(payload[name]) for name, is_right in payload_names.items()):
        return None
    if record["source"] == "core":
        providers = payload["providers"] or {}
        payload["providers"] = {name: providers.get(name, False) for name in PROVIDERS}
    else:
        payload["packages"] = [
            {"name": package.get("name"), "version": package.get("version")}
            for package in payload["packages"] or []
        ]
    return Event(day, record, payload)


def is_text(value: Any) -> bool:
    return value is None or isinstance(value, str)


def is_integer(value: Any) -> bool:
    return value is None or (isinstance(value, int) and not isinstance(value, bool))


def is_providers(value: Any) -> bool:
    return value is None or (
        isinstance(value, dict) and all(isinstance(flag, bool) for flag in value.values())
    )


def is_packages(value: Any) -> bool:
    return value is None or (
        isinstance(value, list)
        and all(
            isinstance(package, dict)
            and is_text(package.get("name"))
            and is_text(package.get("version"))
            for package in value
        )
    )


Check = Callable[[Any], bool]
CLI: dict[str, Check] = dict.fromkeys(["id", "received_at", "source", "ip"], is_text)
CORE: dict[str, Check] = CLI | dict.fromkeys(
    ["hostname", "browser", "browser_version", "os", "os_version"], is_text
)
CORE_PAYLOAD: dict[str, Check] = {
    "providers": is_providers,
    "version": is_text,
    "resourceCount": is_integer,
    "projectId": is_text,
}
CLI_PAYLOAD: dict[str, Check] = {
    "nodeEnv": is_text,
    "nodeVersion": is_text,
    "os": is_text,
    "osVersion": is_text,
    "command": is_text,
    "packages": is_packages,
    "projectFramework": is_text,
    "projectId": is_text,
}


# Days


def days_between(since: date, until: date) -> list[date]:
    return [since + n * DAY for n in range((until - since).days + 1)]


def weeks_of(since: date, until: date) -> list[tuple[date, date]]:
    """Return first and last day of each whole week, counted back from `until`, oldest first."""
    weeks = []
    last = until
    while last - 6 * DAY >= since:
        weeks.append((last - 6 * DAY, last))
        last -= 7 * DAY
    return weeks[::-1]


def between(first: date, last: date, events: Iterable[Event]) -> list[Event]:
    return [event for event in events if first <= event.day <= last]


def of_source(source: str, events: Iterable[Event]) -> list[Event]:
    return [event for event in events if event.record["source"] == source]


# Units


def is_local(hostname: str) -> bool:
    try:
        return not ipaddress.ip_address(hostname).is_global
    except ValueError:
        pass
    if "." not in hostname:
        return True
    endings = ["localhost", "local", "test", "example", "invalid", "internal", "home.arpa"]
    return any(hostname.endswith("." + ending) for ending in endings)


def host_of(event: Event) -> str | None:
    hostname = event.record["hostname"]
    return None if hostname is None or is_local(hostname) else hostname


def project_of(event: Event) -> str | None:
    project: str | None = event.payload["projectId"]
    return project


def address_of(event: Event) -> str | None:
    address: str | None = event.record["ip"]
    return address


def local_address_of(event: Event) -> str | None:
    hostname = event.record["hostname"]
    return event.record["ip"] if hostname is not None and is_local(hostname) else None


Unit = Callable[[Event], str | None]
UNITS: dict[str, dict[str, Unit]] = {
    "core": {
        "hosts": host_of,
        "projects": project_of,
        "addresses": address_of,
        "local_addresses": local_address_of,
    },
    "cli": {"projects": project_of, "addresses": address_of},
}


def units_in(events: list[Event], unit_of: Unit) -> set[str]:
    return {unit for event in events if (unit := unit_of(event)) is not None}


def count(unit: str, members: set[str], days: int) -> int | None:
    """Return how many there are; null if a hashed address would count for several days."""
    if unit in ("addresses", "local_addresses") and days > 1:
        for member in members:
            if re.fullmatch(r"[0-9a-fA-F]{64}", member):
                return None
    return len(members)


# Active, weeks, days


def window(
    source: str,
    unit: str,
    length: int,
    until: date,
    events: list[Event],
    days_with_file: set[date],
) -> dict[str, int | None]:
    mine, unit_of = of_source(source, events), UNITS[source][unit]
    first_day = until - (length - 1) * DAY
    earlier_first_day = first_day - length * DAY
    now = units_in(between(first_day, until, mine), unit_of)
    before = units_in(between(earlier_first_day, first_day - DAY, mine), unit_of)
    row = {
        "now": count(unit, now, length),
        "before": count(unit, before, length),
        "stayed": count(unit, now & before, 2 * length),
        "new": count(unit, now - before, 2 * length),
        "gone": count(unit, before - now, 2 * length),
    }
    if not any(day <= earlier_first_day for day in days_with_file):
        row = {name: row[name] if name == "now" else None for name in row}
    return row


def figures(
    first: date, last: date, events: list[Event], days_with_file: set[date]
) -> dict[str, dict[str, int | None]]:
    """Return events and units of a day or a week, null where it has no file."""
    has_file = any(first <= day <= last for day in days_with_file)
    row: dict[str, dict[str, int | None]] = {}
    for source in ("core", "cli"):
        mine = of_source(source, between(first, last, events))
        row[source] = {"events": len(mine) if has_file else None}
        for unit, unit_of in UNITS[source].items():
            number = count(unit, units_in(mine, unit_of), (last - first).days + 1)
            row[source][unit] = number if has_file else None
    return row


def adoption(
    first: date, last: date, events: list[Event], days_with_file: set[date]
) -> dict[str, Any]:
    has_file = any(first <= day <= last for day in days_with_file)
    seen = last_seen_with(of_source("core", between(first, last, events)), host_of)
    versions: Counter[str] = Counter()
    for payload in seen.values():
        if payload["version"] is not None:
            versions[str(series(payload["version"]))] += 1
    return {
        "since": str(first),
        "until": str(last),
        "hosts": len(seen) if has_file else None,
        "versions": dict(versions),
    }


def last_seen_with(events: list[Event], unit_of: Unit) -> dict[str, dict[str, Any]]:
    """Return each unit's payload of its last day: the most frequent, then the greatest."""
    seen = {}
    for unit in units_in(events, unit_of):
        mine = [event for event in events if unit_of(event) == unit]
        last_day = max(event.day for event in mine)
        texts = [compact(event.payload) for event in mine if event.day == last_day]
        most = max(texts.count(text) for text in texts)
        seen[unit] = json.loads(max(text for text in texts if texts.count(text) == most))
    return seen


def compact(payload: dict[str, Any]) -> str:
    return json.dumps(payload, separators=(",", ":"))


# Versions


def series(version: str | None) -> str | None:
    match = re.match(r"v?([0-9]+)(\.[0-9]+)?", version or "")
    return match[1] + (match[2] or "") if match else version


def major(version: str | None) -> str | None:
    match = re.match(r"v?([0-9]+)", version or "")
    return match[1] if match else version


# Lists


def core_lists(events: list[Event]) -> dict[str, Any]:
    seen = list(last_seen_with(events, host_of).values())
    sent = [event.payload for event in events]
    return {
        "versions": versions(seen, sent),
        "providers": providers(seen, sent),
        "browsers": came_with(
            events,
            lambda event: event.record["browser"],
            lambda event: major(event.record["browser_version"]),
        ),
        "operating_systems": came_with(
            events, lambda event: event.record["os"], lambda event: event.record["os_version"]
        ),
        "resource_count": resource_count(seen),
    }


def versions(seen: list[dict[str, Any]], sent: list[dict[str, Any]]) -> list[dict[str, Any]]:
    rows = [
        {
            "value": value,
            "hosts": sum(payload["version"] == value for payload in seen),
            "events": sum(payload["version"] == value for payload in sent),
        }
        for value in {payload["version"] for payload in sent}
    ]
    return rank("value", "hosts", rows)


def providers(seen: list[dict[str, Any]], sent: list[dict[str, Any]]) -> list[dict[str, Any]]:
    rows = [
        {
            "value": name,
            "hosts": sum(payload["providers"][name] for payload in seen),
            "events": sum(payload["providers"][name] for payload in sent),
        }
        for name in PROVIDERS
        if any(payload["providers"][name] for payload in sent)
    ]
    return rank("value", "hosts", rows)


def resource_count(seen: list[dict[str, Any]]) -> dict[str, int | None]:
    numbers = sorted(
        payload["resourceCount"] for payload in seen if payload["resourceCount"] is not None
    )
    if not numbers:
        return {"min": None, "median": None, "p90": None, "max": None}
    return {
        "min": numbers[0],
        "median": numbers[(len(numbers) - 1) // 2],
        "p90": next(
            number
            for number in numbers
            if 10 * sum(other <= number for other in numbers) >= 9 * len(numbers)
        ),
        "max": numbers[-1],
    }


def came_with(
    events: list[Event],
    value_of: Callable[[Event], str | None],
    version_of: Callable[[Event], str | None],
) -> list[dict[str, Any]]:
    """Return browsers or systems: addresses in every one that they came with."""
    rows = []
    for value in {value_of(event) for event in events}:
        mine = [event for event in events if value_of(event) == value]
        rows.append(
            {
                "value": value,
                "addresses": count("addresses", units_in(mine, address_of), 28),
                "events": len(mine),
                "versions": came_with_version(mine, version_of),
            }
        )
    return rank("value", "addresses", rows)


def came_with_version(
    events: list[Event], version_of: Callable[[Event], str | None]
) -> list[dict[str, Any]]:
    rows = []
    for value in {version_of(event) for event in events}:
        mine = [event for event in events if version_of(event) == value]
        addresses = count("addresses", units_in(mine, address_of), 28)
        rows.append({"value": value, "addresses": addresses, "events": len(mine)})
    return rank("value", "addresses", rows)


def cli_lists(events: list[Event]) -> dict[str, Any]:
    seen = list(last_seen_with(events, project_of).values())
    sent = [event.payload for event in events]
    return {
        "commands": commands(events),
        "operating_systems": one_value("os", seen, sent),
        "frameworks": one_value("projectFramework", seen, sent),
        "environments": one_value("nodeEnv", seen, sent),
        "node_versions": node_versions(seen, sent),
        "packages": packages(seen, sent),
    }


def commands(events: list[Event]) -> list[dict[str, Any]]:
    """Return each command with every project that ran it, not only those that ran it last."""
    rows = []
    for value in {event.payload["command"] for event in events}:
        mine = [event for event in events if event.payload["command"] == value]
        projects = len(units_in(mine, project_of))
        rows.append({"value": value, "projects": projects, "events": len(mine)})
    return rank("value", "projects", rows)


def one_value(
    name: str, seen: list[dict[str, Any]], sent: list[dict[str, Any]]
) -> list[dict[str, Any]]:
    rows = [
        {
            "value": value,
            "projects": sum(payload[name] == value for payload in seen),
            "events": sum(payload[name] == value for payload in sent),
        }
        for value in {payload[name] for payload in sent}
    ]
    return rank("value", "projects", rows)


def node_versions(seen: list[dict[str, Any]], sent: list[dict[str, Any]]) -> list[dict[str, Any]]:
    rows = []
    for value in {major(payload["nodeVersion"]) for payload in sent}:
        seen_here = [payload for payload in seen if major(payload["nodeVersion"]) == value]
        sent_here = [payload for payload in sent if major(payload["nodeVersion"]) == value]
        below = [
            {
                "value": version,
                "projects": sum(series(payload["nodeVersion"]) == version for payload in seen_here),
                "events": sum(series(payload["nodeVersion"]) == version for payload in sent_here),
            }
            for version in {series(payload["nodeVersion"]) for payload in sent_here}
        ]
        rows.append(
            {
                "value": value,
                "projects": len(seen_here),
                "events": len(sent_here),
                "versions": rank("value", "projects", below),
            }
        )
    return rank("value", "projects", rows)


def packages(seen: list[dict[str, Any]], sent: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return packages; an event with two versions of one, or one twice, is one event of it."""

    def names(payload: dict[str, Any]) -> set[str | None]:
        return {package["name"] for package in payload["packages"]}

    def series_of(name: str | None, payload: dict[str, Any]) -> set[str | None]:
        return {series(p["version"]) for p in payload["packages"] if p["name"] == name}

    rows = []
    for name in {name for payload in sent for name in names(payload)}:
        below = [
            {
                "value": version,
                "projects": sum(version in series_of(name, payload) for payload in seen),
                "events": sum(version in series_of(name, payload) for payload in sent),
            }
            for version in {v for payload in sent for v in series_of(name, payload)}
        ]
        rows.append(
            {
                "name": name,
                "projects": sum(name in names(payload) for payload in seen),
                "events": sum(name in names(payload) for payload in sent),
                "versions": rank("value", "projects", below),
            }
        )
    return rank("name", "projects", rows)


def refused(refusals: list[tuple[str | None, str | None, str | None]]) -> list[dict[str, Any]]:
    rows = []
    for refusal in set(refusals):
        source, field, detail = refusal
        events = refusals.count(refusal)
        rows.append({"source": source, "field": field, "detail": detail, "events": events})

    def order(row: dict[str, Any]) -> list[Any]:
        return [-row["events"], *(null_last(row[name]) for name in ("source", "field", "detail"))]

    return sorted(rows, key=order)


def rank(name: str, unit: str, rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Sort by units, then events, both descending, then by value; a null unit sorts as 0."""
    return sorted(rows, key=lambda row: (-(row[unit] or 0), -row["events"], null_last(row[name])))


def null_last(value: str | None) -> tuple[bool, str]:
    return value is None, value or ""
