"""The report's JSON, counted a second time in the slowest and plainest way.

Nothing of the report is imported. Every number has a loop of its own, written after its definition
in section 6 of the contract; speed does not matter, being easy to check does.
"""

import fnmatch
import gzip
import ipaddress
import json
import math
import re
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from datetime import date, timedelta
from fractions import Fraction
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

DAY = timedelta(days=1)
FILE_NAME = re.compile(r"(events|refused)-([0-9]{4}-[0-9]{2}-[0-9]{2})\.jsonl(\.gz)?")
PROVIDERS = [
    *("auth", "data", "router", "live"),
    *("notification", "auditLog", "i18n", "accessControl"),
]
ROBOTS = ["bot", "crawl", "spider", "slurp", "headless", "phantomjs", "inspectiontool"]
ENOUGH_FILES = {7: 6, 28: 24}


class DayContent(NamedTuple):
    day: date
    directory: Path
    content: bytes


class Event(NamedTuple):
    day: date
    directory: Path
    record: dict[str, Any]
    payload: dict[str, Any]


Days = dict[date, list[Event]]
Refusal = tuple[str | None, str | None, str | None]


def naive_report(
    directories: list[Path],
    since: date,
    until: date,
    today: date,
    framework: str = "Refine",
    patterns: Sequence[str] = (),
) -> dict[str, Any]:
    """Return the object that `flask report --format json` must print."""
    first_read = min(since, until - 55 * DAY)  # two times 28 days, whatever `since` is
    files = [file for file in files_of("events", directories) if first_read <= file.day <= until]
    refusal_files = [
        file for file in files_of("refused", directories) if since <= file.day <= until
    ]
    unreadable_lines = 0
    days: Days = {day: [] for day in days_between(first_read, until)}
    excluded, automated = [], []
    for file in files:
        for line in lines_of(file.content):
            event = read_event(file, line)
            if event is None:
                unreadable_lines += 1
            elif is_excluded(event, patterns):
                excluded.append(event)
            elif is_automated(event):
                automated.append(event)
            else:
                days[event.day].append(event)
    refusals: dict[date, list[Refusal]] = {day: [] for day in days_between(since, until)}
    for file in refusal_files:
        for line in lines_of(file.content):
            refusal = read_refusal(line)
            if refusal is None:
                unreadable_lines += 1
            else:
                refusals[file.day].append(refusal)

    with_file = {file.day for file in files}
    weeks = weeks_of(since, until)
    in_period = between(since, until, days)
    excluded = [event for event in excluded if event.day >= since]
    automated = [event for event in automated if event.day >= since]
    return {
        "framework": framework,
        "since": str(since),
        "until": str(until),
        "unfinished": until >= today,
        "missing_days": [str(day) for day in days if day not in with_file],
        "unreadable_lines": unreadable_lines,
        "refused": refused([refusal for day in refusals.values() for refusal in day]),
        "events": {source: len(of_source(source, in_period)) for source in UNITS},
        "with_project": {
            source: sum(project_of(event) is not None for event in of_source(source, in_period))
            for source in UNITS
        },
        "automated": {
            "events": len(automated),
            "hosts": len(
                members(automated, host_of) - members(of_source("core", in_period), host_of)
            ),
            "names": names_of(automated),
        },
        "excluded": {"patterns": list(patterns), "events": len(excluded)},
        "masked": kinds_of_addresses(last_days(28, until), days) == {"masked"},
        "files": {
            str(length): {
                "now": sum(day in with_file for day in last_days(length, until)),
                "before": sum(day in with_file for day in days_before(length, until)),
            }
            for length in ENOUGH_FILES
        },
        "projects_in_development_only": projects_in_development_only(until, days),
        "active": {
            source: {
                unit: {
                    str(length): window(source, unit, length, until, days, with_file)
                    for length in ENOUGH_FILES
                }
                for unit in UNITS[source]
            }
            for source in UNITS
        },
        "weeks": [
            {
                "since": str(first),
                "until": str(last),
                "files": sum(day in with_file for day in days_between(first, last)),
            }
            | figures(first, last, days, with_file)
            for first, last in weeks
        ],
        "adoption": [adoption(first, last, days, with_file) for first, last in weeks],
        "days": [
            {"date": str(day), "refused": len(refusals[day])} | figures(day, day, days, with_file)
            for day in days_between(since, until)
        ],
        "core": core_lists(until, days),
        "cli": cli_lists(until, days),
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
            if identity(path) in seen:
                continue
            seen.add(identity(path))
            if not is_held_by_other(path):
                day = date.fromisoformat(match[2])
                found.append(DayContent(day, directory.resolve(), content_of(path)))
    return found


def content_of(path: Path) -> bytes:
    content = path.read_bytes()
    return gzip.decompress(content) if path.suffix == ".gz" else content


def is_held_by_other(path: Path) -> bool:
    """Whether the day's other file, plain or archive, has all lines of this one.

    If each has all lines of the other, the plain file is the one to read.
    """
    is_archive = path.suffix == ".gz"
    other = path.with_suffix("") if is_archive else path.with_name(f"{path.name}.gz")
    if not other.exists():
        return False
    mine, others = Counter(lines_of(content_of(path))), Counter(lines_of(content_of(other)))
    return mine <= others if is_archive else mine < others


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
        return json.loads(line.decode("utf-8-sig"), parse_constant=no_json)
    except (ValueError, RecursionError):
        return None


def no_json(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is no JSON")


def read_refusal(line: bytes) -> Refusal | None:
    value = parse(line)
    if not isinstance(value, dict):
        return None
    refusal = value.get("source"), value.get("field"), value.get("detail")
    return refusal if all(is_text(part) for part in refusal) else None


def read_event(file: DayContent, line: bytes) -> Event | None:
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
    return Event(file.day, file.directory, record, payload)


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


def last_days(length: int, until: date) -> list[date]:
    return days_between(until - (length - 1) * DAY, until)


def days_before(length: int, until: date) -> list[date]:
    return last_days(length, until - length * DAY)


def weeks_of(since: date, until: date) -> list[tuple[date, date]]:
    """Return first and last day of each whole week, counted back from `until`, oldest first."""
    weeks = []
    last = until
    while last - 6 * DAY >= since:
        weeks.append((last - 6 * DAY, last))
        last -= 7 * DAY
    return weeks[::-1]


def between(first: date, last: date, days: Days) -> list[Event]:
    return [event for day in days_between(first, last) for event in days[day]]


def of_source(source: str, events: Iterable[Event]) -> list[Event]:
    return [event for event in events if event.record["source"] == source]


# Who is counted


def is_excluded(event: Event, patterns: Sequence[str]) -> bool:
    hostname = event.record.get("hostname")
    return hostname is not None and any(
        fnmatch.fnmatchcase(hostname.lower(), pattern.lower()) for pattern in patterns
    )


def is_automated(event: Event) -> bool:
    browser = (event.record.get("browser") or "").lower()
    return any(word in browser for word in ROBOTS)


def names_of(automated: list[Event]) -> list[dict[str, Any]]:
    names = Counter(event.record["browser"] for event in automated)
    ordered = sorted(names, key=lambda name: (-names[name], name))
    return [{"value": name, "events": names[name]} for name in ordered]


LOCAL = [
    *(".localhost", ".local", ".localdomain", ".lan", ".home", ".corp", ".intranet", ".internal"),
    *(".test", ".example", ".invalid", ".home.arpa", ".nip.io", ".sslip.io"),
]
SANDBOXES = [
    *(".csb.app", ".codesandbox.io", ".webcontainer.io", ".stackblitz.io", ".gitpod.io"),
    *(".gitpod.dev", ".github.dev", ".replit.dev", ".repl.co", ".cloudworkstations.dev"),
]
TUNNELS = [
    *(".ngrok.io", ".ngrok.app", ".ngrok.dev", ".ngrok-free.app", ".ngrok-free.dev"),
    *(".trycloudflare.com", ".loca.lt", ".lhr.life", ".serveo.net", ".devtunnels.ms"),
]
PREVIEWS = [
    r".*--.*\.netlify\.app",
    r".*--.*\.web\.app",
    r".*-git-.*-.*\.vercel\.app",
    r"[^.]*\.[^.]*\.pages\.dev",
    r".*-pr-[0-9]+\.onrender\.com",
]


def is_in_development(hostname: str) -> bool:
    try:
        return not ipaddress.ip_address(hostname).is_global
    except ValueError:
        pass
    return (
        "." not in hostname
        or any(hostname.endswith(ending) for ending in LOCAL + SANDBOXES + TUNNELS)
        or any(re.fullmatch(preview, hostname) for preview in PREVIEWS)
    )


# Units


def host_of(event: Event) -> str | None:
    hostname = event.record["hostname"]
    return None if hostname is None or is_in_development(hostname) else hostname


def project_of(event: Event) -> str | None:
    project: str | None = event.payload["projectId"]
    return project


def address_of(event: Event) -> str | None:
    address: str | None = event.record["ip"]
    return address


def development_address_of(event: Event) -> str | None:
    hostname = event.record["hostname"]
    return address_of(event) if hostname is not None and is_in_development(hostname) else None


Unit = Callable[[Event], str | None]
UNITS: dict[str, dict[str, Unit]] = {
    "core": {
        "hosts": host_of,
        "projects": project_of,
        "addresses": address_of,
        "development_addresses": development_address_of,
    },
    "cli": {"projects": project_of, "addresses": address_of},
}


def members(events: list[Event], unit_of: Unit) -> set[str]:
    return {member for event in events if (member := unit_of(event)) is not None}


def projects_in_development_only(until: date, days: Days) -> int | None:
    events = of_source("core", between(until - 27 * DAY, until, days))
    if was_not_recorded("core", "projects", last_days(28, until), days):
        return None
    elsewhere = [
        event for event in events if event.record["hostname"] is None or host_of(event) is not None
    ]
    return len(members(events, project_of) - members(elsewhere, project_of))


# What was not recorded is null


def was_not_recorded(source: str, unit: str, of_days: list[date], days: Days) -> bool:
    """Whether no figure of this unit can be known over these days: rules (b) and (c)."""
    each_day = [of_source(source, days[day]) for day in of_days]
    if unit == "projects":
        return any(each_day) and not any(members(day, project_of) for day in each_day)
    if unit in ("addresses", "development_addresses"):
        has_day_without = any(day and not members(day, address_of) for day in each_day)
        return has_day_without or len(kinds_of_addresses(of_days, days)) == 2
    return False


def kinds_of_addresses(of_days: list[date], days: Days) -> set[str]:
    return {kind for day in of_days if (kind := kind_of_addresses(days[day])) is not None}


def kind_of_addresses(events: list[Event]) -> str | None:
    addresses = members(events, address_of)
    if not all(is_network(address) for address in addresses):
        return "whole"
    return "masked" if len(addresses) >= 3 else None


def is_network(text: str) -> bool:
    try:
        address = ipaddress.ip_address(text)
        ipaddress.ip_network((text, 24 if address.version == 4 else 48))
    except ValueError:  # no address, or bits behind the network's are set
        return False
    return True


def is_uncountable(events: list[Event], unit_of: Unit, length: int) -> bool:
    """Whether among these units of `length` days are hashes with different keys: rule (a)."""
    if unit_of not in (address_of, development_address_of):
        return False
    hashed = [event for event in events if is_hash(unit_of(event))]
    return len({event.directory for event in hashed}) > (1 if length == 1 else 0)


def is_hash(address: str | None) -> bool:
    return re.fullmatch("[0-9a-fA-F]{64}", address or "") is not None


# Active, weeks, days


def figure(source: str, unit: str, first: date, last: date, days: Days) -> int | None:
    """Return how many units are active from the first to the last day; null is not known."""
    of_days, unit_of = days_between(first, last), UNITS[source][unit]
    events = of_source(source, between(first, last, days))
    if was_not_recorded(source, unit, of_days, days) or is_uncountable(
        events, unit_of, len(of_days)
    ):
        return None
    return len(members(events, unit_of))


def window(
    source: str, unit: str, length: int, until: date, days: Days, with_file: set[date]
) -> dict[str, int | None]:
    these, earlier = last_days(length, until), days_before(length, until)
    row = {
        "now": figure(source, unit, these[0], these[-1], days),
        **dict.fromkeys(["before", "stayed", "new", "gone"]),
    }
    if any(len(with_file & set(some)) < ENOUGH_FILES[length] for some in (these, earlier)):
        return row
    row["before"] = figure(source, unit, earlier[0], earlier[-1], days)
    if None in (row["now"], row["before"]) or was_not_recorded(source, unit, earlier + these, days):
        return row
    unit_of = UNITS[source][unit]
    now, before = (
        members(of_source(source, between(some[0], some[-1], days)), unit_of)
        for some in (these, earlier)
    )
    return row | {
        "stayed": len(now & before),
        "new": len(now - before),
        "gone": len(before - now),
    }


def figures(
    first: date, last: date, days: Days, with_file: set[date]
) -> dict[str, dict[str, int | None]]:
    """Return events and units of a day or a week, null where it has no file."""
    row: dict[str, dict[str, int | None]] = {}
    for source in UNITS:
        row[source] = {"events": len(of_source(source, between(first, last, days)))}
        for unit in UNITS[source]:
            row[source][unit] = figure(source, unit, first, last, days)
        if with_file.isdisjoint(days_between(first, last)):
            row[source] = dict.fromkeys(row[source])
    return row


def adoption(first: date, last: date, days: Days, with_file: set[date]) -> dict[str, Any]:
    seen = last_seen_with(of_source("core", between(first, last, days)), host_of)
    versions = Counter(
        series(payload["version"]) for payload in seen if payload["version"] is not None
    )
    has_file = not with_file.isdisjoint(days_between(first, last))
    return {
        "since": str(first),
        "until": str(last),
        "hosts": len(seen) if has_file else None,
        "versions": dict(versions),
    }


def last_seen_with(events: list[Event], unit_of: Unit) -> list[dict[str, Any]]:
    """Return each unit's payload of its last day: the most frequent, then the greatest."""
    seen = []
    for mine in group(events, unit_of).values():
        last_day = max(event.day for event in mine)
        texts = Counter(compact(event.payload) for event in mine if event.day == last_day)
        most = max(texts.values())
        seen.append(json.loads(max(text for text in texts if texts[text] == most)))
    return seen


def group(events: list[Event], value_of: Unit) -> dict[str, list[Event]]:
    """Return the events of each value; null is none."""
    groups: dict[str, list[Event]] = {}
    for event in events:
        value = value_of(event)
        if value is not None:
            groups.setdefault(value, []).append(event)
    return groups


def compact(payload: dict[str, Any]) -> str:
    return json.dumps(payload, separators=(",", ":"))


# Versions


def series(version: str | None) -> str | None:
    match = re.match(r"v?([0-9]+)(\.[0-9]+)?", version or "")
    if not match:
        return version
    is_pre = re.match(r"v?[0-9]+(\.[0-9]+)+-", version or "")
    return match[1] + (match[2] or "") + ("-pre" if is_pre else "")


def major(version: str | None) -> str | None:
    match = re.match(r"v?([0-9]+)", version or "")
    return match[1] if match else version


# Lists, of the last 28 days


Values = Callable[[dict[str, Any]], set[str | None]]


def core_lists(until: date, days: Days) -> dict[str, Any]:
    events = of_source("core", between(until - 27 * DAY, until, days))
    unknown = was_not_recorded("core", "addresses", last_days(28, until), days)
    seen = last_seen_with(events, host_of)
    sent = [event.payload for event in events]
    return {
        "versions": by_unit("hosts", seen, sent, lambda payload: {payload["version"]}),
        "providers": by_unit(
            *("hosts", seen, sent),
            lambda payload: {name for name in PROVIDERS if payload["providers"][name]},
        ),
        "browsers": by_address(
            *(events, unknown),
            lambda event: event.record["browser"],
            lambda event: major(event.record["browser_version"]),
        ),
        "operating_systems": by_address(
            *(events, unknown),
            lambda event: event.record["os"],
            lambda event: event.record["os_version"],
        ),
        "resource_count": resource_count(seen),
    }


def cli_lists(until: date, days: Days) -> dict[str, Any]:
    events = of_source("cli", between(until - 27 * DAY, until, days))
    unit = "projects"
    seen = last_seen_with(events, project_of)
    sent = [event.payload for event in events]
    lists = {
        "commands": commands(events),
        "operating_systems": by_unit(unit, seen, sent, lambda payload: {payload["os"]}),
        "frameworks": by_unit(unit, seen, sent, lambda payload: {payload["projectFramework"]}),
        "environments": by_unit(unit, seen, sent, lambda payload: {payload["nodeEnv"]}),
        "node_versions": by_unit(
            *(unit, seen, sent),
            lambda payload: {major(payload["nodeVersion"])},
            lambda _, payload: {series(payload["nodeVersion"])},
        ),
        "packages": by_unit(
            *(unit, seen, sent),
            lambda payload: {package["name"] for package in payload["packages"]},
            lambda name, payload: {
                series(package["version"])
                for package in payload["packages"]
                if package["name"] == name
            },
        ),
    }
    lists["packages"] = [{"name": row.pop("value"), **row} for row in lists["packages"]]
    if was_not_recorded("cli", "projects", last_days(28, until), days):
        forget_projects(lists)
    return lists


def by_unit(
    unit: str,
    seen: list[dict[str, Any]],
    sent: list[dict[str, Any]],
    values_of: Values,
    below: Callable[[str | None, dict[str, Any]], set[str | None]] | None = None,
) -> list[dict[str, Any]]:
    """Return each value: of how many units' last payloads, and of how many that were sent."""
    rows = []
    for value in {value for payload in sent for value in values_of(payload)}:
        seen_here = [payload for payload in seen if value in values_of(payload)]
        sent_here = [payload for payload in sent if value in values_of(payload)]
        row: dict[str, Any] = {"value": value, unit: len(seen_here), "events": len(sent_here)}
        if below:
            row["versions"] = by_unit(unit, seen_here, sent_here, partial(below, value))
        rows.append(row)
    return rank(unit, rows)


def commands(events: list[Event]) -> list[dict[str, Any]]:
    """Return each command with every project that ran it, not only those that ran it last."""
    rows = []
    for value in {event.payload["command"] for event in events}:
        mine = [event for event in events if event.payload["command"] == value]
        projects = len(members(mine, project_of))
        rows.append({"value": value, "projects": projects, "events": len(mine)})
    return rank("projects", rows)


def by_address(
    events: list[Event], unknown: bool, value_of: Unit, version_of: Unit | None = None
) -> list[dict[str, Any]]:
    """Return browsers or systems: addresses in every one that they came with."""
    rows = []
    for value in {value_of(event) for event in events}:
        mine = [event for event in events if value_of(event) == value]
        unknown_here = unknown or is_uncountable(mine, address_of, 28)
        addresses = None if unknown_here else len(members(mine, address_of))
        row: dict[str, Any] = {"value": value, "addresses": addresses, "events": len(mine)}
        if version_of:
            row["versions"] = by_address(mine, unknown, version_of)
        rows.append(row)
    return rank("addresses", rows)


def forget_projects(lists: dict[str, list[dict[str, Any]]]) -> None:
    """Make every figure of projects null; no row moves, for all of them were 0."""
    for rows in lists.values():
        for row in rows:
            row["projects"] = None
            forget_projects({"versions": row.get("versions", [])})


def resource_count(seen: list[dict[str, Any]]) -> dict[str, int | None]:
    numbers = sorted(
        payload["resourceCount"] for payload in seen if payload["resourceCount"] is not None
    )
    if not numbers:
        return dict.fromkeys(["min", "p10", "median", "p90", "max"])

    def percentile(percent: int) -> Any:
        """Return the smallest number that at least `percent` of all do not exceed."""
        return numbers[math.ceil(Fraction(percent * len(numbers), 100)) - 1]

    return {
        "min": numbers[0],
        "p10": percentile(10),
        "median": percentile(50),
        "p90": percentile(90),
        "max": numbers[-1],
    }


def refused(refusals: list[Refusal]) -> list[dict[str, Any]]:
    rows = []
    for refusal, events in Counter(refusals).items():
        source, field, detail = refusal
        rows.append({"source": source, "field": field, "detail": detail, "events": events})

    def order(row: dict[str, Any]) -> list[Any]:
        return [-row["events"], *(null_last(row[name]) for name in ("source", "field", "detail"))]

    return sorted(rows, key=order)


def rank(unit: str, rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Sort by units, then events, both descending, then by value; a null unit sorts as 0."""

    def order(row: dict[str, Any]) -> list[Any]:
        value = row["value"] if "value" in row else row["name"]
        return [-(row[unit] or 0), -row["events"], null_last(value)]

    return sorted(rows, key=order)


def null_last(value: str | None) -> tuple[bool, str]:
    return value is None, value or ""
