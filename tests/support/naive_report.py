"""The report's JSON, counted a second time in the slowest and plainest way.

Nothing of the report is imported. Every number is counted after its definition in section 6 of the
contract; speed does not matter, being easy to check does.
"""

import fnmatch
import gzip
import ipaddress
import json
import re
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from datetime import date, timedelta
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

from files.records import PAYLOAD_KEYS, PROVIDERS, RECORD_KEYS

DAY = timedelta(days=1)
FILE_NAME = re.compile(r"(events|refused)-([0-9]{4}-[0-9]{2}-[0-9]{2})\.jsonl(\.gz)?")
ROBOTS = ["bot", "crawl", "spider", "slurp", "headless", "phantomjs", "inspectiontool"]
ENOUGH_FILES = {7: 6, 28: 24}

Json = dict[str, Any]


class DayContent(NamedTuple):
    day: date
    directory: Path
    content: bytes


class Event(NamedTuple):
    day: date
    directory: Path
    source: str
    values: Json  # of the record and of its payload: no name stands in both
    payload: Json


def naive_report(
    directories: list[Path],
    since: date,
    until: date,
    today: date,
    patterns: Sequence[str] = (),
) -> Json:
    """Return the object that `flask report --format json` must print."""
    first_read = min(since, until - 55 * DAY)  # two times 28 days, whatever `since` is
    files = files_of("events", directories, first_read, until)
    events, unreadable = read_all(files, read_event)
    refusals, unreadable_refusals = read_all(
        files_of("refused", directories, since, until), read_refusal
    )

    excluded = [event for event in events if is_excluded(event, patterns)]
    others = [event for event in events if not is_excluded(event, patterns)]
    automated = [event for event in others if event.day >= since and is_automated(event)]
    counted = [event for event in others if not is_automated(event)]
    count = Count(until, {file.day for file in files}, counted)
    period, every_day = days_between(since, until), days_between(first_read, until)
    weeks = [last_days(7, last) for last in period[::-1][: len(period) // 7 * 7 : 7]][::-1]
    in_period = {source: count.events(source, period) for source in UNITS}
    return {
        "framework": "Refine",
        "since": str(since),
        "until": str(until),
        "unfinished": until >= today,
        "missing_days": [str(day) for day in every_day if day not in count.with_file],
        "unreadable_lines": unreadable + unreadable_refusals,
        "refused": refused([reason for _, *reason in refusals]),
        "events": {source: len(found) for source, found in in_period.items()},
        "with_project": {
            source: sum(project_of(event) is not None for event in found)
            for source, found in in_period.items()
        },
        "automated": {
            "events": len(automated),
            "hosts": len(members(automated, host_of) - members(in_period["core"], host_of)),
            "names": names_of(automated),
        },
        "excluded": {
            "patterns": list(patterns),
            "events": sum(event.day >= since for event in excluded),
        },
        "masked": count.kinds_of_addresses(last_days(28, until)) == {"masked"},
        "files": {
            str(length): {
                "now": count.files(last_days(length, until)),
                "before": count.files(days_before(length, until)),
            }
            for length in ENOUGH_FILES
        },
        "projects_in_development_only": count.projects_in_development_only(),
        "active": {
            source: {
                unit: {str(length): count.window(source, unit, length) for length in ENOUGH_FILES}
                for unit in units
            }
            for source, units in UNITS.items()
        },
        "weeks": [
            {"since": str(days[0]), "until": str(days[-1]), "files": count.files(days)}
            | count.figures(days)
            for days in weeks
        ],
        "adoption": [count.adoption(days) for days in weeks],
        "days": [
            {"date": str(day), "refused": sum(refusal[0] == day for refusal in refusals)}
            | count.figures([day])
            for day in period
        ],
        "core": count.lists("core") | {"resource_count": count.resource_count()},
        "cli": count.lists("cli"),
    }


# Files and lines


def files_of(kind: str, directories: list[Path], first: date, last: date) -> list[DayContent]:
    """Return the files that count; one that is found again, under whatever name, does not."""
    found, seen = [], set()
    days = {str(day): day for day in days_between(first, last)}
    for directory in directories:
        for path in sorted(directory.iterdir()):
            match = FILE_NAME.fullmatch(path.name)
            if not match or match[1] != kind or match[2] not in days:
                continue
            identity = path.stat().st_dev, path.stat().st_ino
            if identity in seen:
                continue
            seen.add(identity)
            if not is_held_by_other(path):
                content = content_of(path)
                found.append(DayContent(days[match[2]], directory.resolve(), content))
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


def lines_of(content: bytes) -> list[bytes]:
    """Return what ends in a newline; the piece behind the last newline is no line."""
    return content.split(b"\n")[:-1]


def read_all(
    files: list[DayContent], read: Callable[[DayContent, Any], Any]
) -> tuple[list[Any], int]:
    """Return what could be read, and how many lines could not."""
    lines = [read(file, parse(line)) for file in files for line in lines_of(file.content)]
    return [line for line in lines if line is not None], lines.count(None)


def parse(line: bytes) -> Any:
    """Return the line's JSON value, or None if it is not JSON (or is `null`)."""
    try:
        return json.loads(line.decode("utf-8-sig"), parse_constant=no_json)
    except (ValueError, RecursionError):
        return None


def no_json(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is no JSON")


def read_refusal(file: DayContent, value: Any) -> tuple[Any, ...] | None:
    if not isinstance(value, dict):
        return None
    reason = value.get("source"), value.get("field"), value.get("detail")
    return (file.day, *reason) if all(map(is_text, reason)) else None


def read_event(file: DayContent, value: Any) -> Event | None:
    """Return the event with every key of section 3, null where the line has none."""
    if not isinstance(value, dict) or not isinstance(value.get("payload"), dict):
        return None
    source = value.get("source")
    if source not in ("core", "cli"):
        return None
    record = {name: value.get(name) for name in RECORD_KEYS[source] if name != "payload"}
    payload = {name: value["payload"].get(name) for name in PAYLOAD_KEYS[source]}
    if not all(is_right(name, held) for name, held in (record | payload).items()):
        return None
    if source == "core":
        providers = payload["providers"] or {}
        payload["providers"] = {name: providers.get(name, False) for name in PROVIDERS}
    else:
        payload["packages"] = [
            {"name": package.get("name"), "version": package.get("version")}
            for package in payload["packages"] or []
        ]
    return Event(file.day, file.directory, source, record | payload, payload)


def is_text(value: Any) -> bool:
    return value is None or isinstance(value, str)


def is_providers(value: Any) -> bool:
    return isinstance(value, dict) and all(type(flag) is bool for flag in value.values())


def is_packages(value: Any) -> bool:
    return isinstance(value, list) and all(
        isinstance(package, dict)
        and is_text(package.get("name"))
        and is_text(package.get("version"))
        for package in value
    )


def is_right(name: str, value: Any) -> bool:
    if name == "resourceCount":
        return value is None or type(value) is int
    checks = {"providers": is_providers, "packages": is_packages}
    return value is None or checks.get(name, is_text)(value)


# Days


def days_between(since: date, until: date) -> list[date]:
    return [since + n * DAY for n in range((until - since).days + 1)]


def last_days(length: int, until: date) -> list[date]:
    return days_between(until - (length - 1) * DAY, until)


def days_before(length: int, until: date) -> list[date]:
    return last_days(length, until - length * DAY)


# Who is counted


def is_excluded(event: Event, patterns: Sequence[str]) -> bool:
    hostname = event.values.get("hostname")
    return hostname is not None and any(
        fnmatch.fnmatchcase(hostname.lower(), pattern.lower()) for pattern in patterns
    )


def is_automated(event: Event) -> bool:
    browser = (event.values.get("browser") or "").lower()
    return any(word in browser for word in ROBOTS)


def names_of(automated: list[Event]) -> list[Json]:
    names = Counter(event.values["browser"] for event in automated)
    ordered = sorted(names, key=lambda name: (-names[name], name))
    return [{"value": name, "events": names[name]} for name in ordered]


ENDINGS = [
    *(".localhost", ".local", ".localdomain", ".lan", ".home", ".corp", ".intranet", ".internal"),
    *(".test", ".example", ".invalid", ".home.arpa", ".nip.io", ".sslip.io"),
    # sandboxes
    *(".csb.app", ".codesandbox.io", ".webcontainer.io", ".stackblitz.io", ".gitpod.io"),
    *(".gitpod.dev", ".github.dev", ".replit.dev", ".repl.co", ".cloudworkstations.dev"),
    # tunnels
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


@cache
def is_in_development(hostname: str) -> bool:
    try:
        return not ipaddress.ip_address(hostname).is_global
    except ValueError:
        pass
    return (
        "." not in hostname
        or any(hostname.endswith(ending) for ending in ENDINGS)
        or any(re.fullmatch(preview, hostname) for preview in PREVIEWS)
    )


# Units


def host_of(event: Event) -> str | None:
    hostname = event.values["hostname"]
    return None if hostname is None or is_in_development(hostname) else hostname


def project_of(event: Event) -> str | None:
    project: str | None = event.values["projectId"]
    return project


def address_of(event: Event) -> str | None:
    address: str | None = event.values["ip"]
    return address


def development_address_of(event: Event) -> str | None:
    hostname = event.values["hostname"]
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


def members(events: Iterable[Event], unit_of: Unit) -> set[str]:
    return {member for event in events if (member := unit_of(event)) is not None}


def kind_of_addresses(events: list[Event]) -> str | None:
    addresses = members(events, address_of)
    if not all(is_network(address) for address in addresses):
        return "whole"
    return "masked" if len(addresses) >= 3 else None


@cache
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
    hashed = [event for event in events if re.fullmatch("[0-9a-fA-F]{64}", unit_of(event) or "")]
    return len({event.directory for event in hashed}) > (1 if length == 1 else 0)


def last_seen_with(events: list[Event], unit_of: Unit) -> list[Event]:
    """Return an event of each unit's last day, with the most frequent payload, or the greatest."""
    seen = []
    for member in members(events, unit_of):
        mine = [event for event in events if unit_of(event) == member]
        last_day = max(event.day for event in mine)
        texts = [(compact(event.payload), event) for event in mine if event.day == last_day]
        times = Counter(text for text, _ in texts)
        seen.append(max(texts, key=lambda one: (times[one[0]], one[0]))[1])
    return seen


def compact(payload: Json) -> str:
    return json.dumps(payload, separators=(",", ":"))


class Count:
    """What is counted: of some days, of a source, of a unit."""

    def __init__(self, until: date, with_file: set[date], counted: list[Event]) -> None:
        self.until = until
        self.with_file = with_file
        self.by_day: dict[tuple[str, date], list[Event]] = {}
        for event in counted:
            self.by_day.setdefault((event.source, event.day), []).append(event)

    def events(self, source: str, days: Iterable[date]) -> list[Event]:
        return [event for day in days for event in self.by_day.get((source, day), [])]

    def files(self, days: list[date]) -> int:
        return sum(day in self.with_file for day in days)

    def kinds_of_addresses(self, days: list[date]) -> set[str]:
        every = [self.events("core", [day]) + self.events("cli", [day]) for day in days]
        return {kind for events in every if (kind := kind_of_addresses(events)) is not None}

    def was_recorded(self, source: str, unit: str, days: list[date]) -> bool:
        """Whether figures of this unit can be known over these days: rules (b) and (c)."""
        each_day = [self.events(source, [day]) for day in days]
        if unit == "projects":
            return not any(each_day) or any(members(events, project_of) for events in each_day)
        if unit in ("addresses", "development_addresses"):
            has_day_without = any(events and not members(events, address_of) for events in each_day)
            return not has_day_without and len(self.kinds_of_addresses(days)) < 2
        return True

    def figure(self, source: str, unit: str, days: list[date]) -> int | None:
        """Return how many units are active in these days; null is not known."""
        events, unit_of = self.events(source, days), UNITS[source][unit]
        is_known = self.was_recorded(source, unit, days)
        if not is_known or is_uncountable(events, unit_of, len(days)):
            return None
        return len(members(events, unit_of))

    def window(self, source: str, unit: str, length: int) -> dict[str, int | None]:
        these, earlier = last_days(length, self.until), days_before(length, self.until)
        row: dict[str, int | None] = dict.fromkeys(["now", "before", "stayed", "new", "gone"])
        row["now"] = self.figure(source, unit, these)
        if min(self.files(these), self.files(earlier)) < ENOUGH_FILES[length]:
            return row
        row["before"] = self.figure(source, unit, earlier)
        is_known = self.was_recorded(source, unit, earlier + these)
        if None in (row["now"], row["before"]) or not is_known:
            return row
        now, before = (
            members(self.events(source, days), UNITS[source][unit]) for days in (these, earlier)
        )
        turnover = {"stayed": now & before, "new": now - before, "gone": before - now}
        return row | {name: len(units) for name, units in turnover.items()}

    def figures(self, days: list[date]) -> dict[str, dict[str, int | None]]:
        """Return events and units of a day or a week, null where it has no file."""
        row: dict[str, dict[str, int | None]] = {}
        for source, units in UNITS.items():
            row[source] = {"events": len(self.events(source, days))}
            row[source] |= {unit: self.figure(source, unit, days) for unit in units}
            if not self.files(days):
                row[source] = dict.fromkeys(row[source])
        return row

    def adoption(self, days: list[date]) -> Json:
        seen = last_seen_with(self.events("core", days), host_of)
        versions = [event.values["version"] for event in seen]
        return {
            "since": str(days[0]),
            "until": str(days[-1]),
            "hosts": len(seen) if self.files(days) else None,
            "versions": dict(Counter(series(one) for one in versions if one is not None)),
        }

    def projects_in_development_only(self) -> int | None:
        days = last_days(28, self.until)
        if not self.was_recorded("core", "projects", days):
            return None
        events = self.events("core", days)
        elsewhere = [
            event for event in events if event.values["hostname"] is None or host_of(event)
        ]
        return len(members(events, project_of) - members(elsewhere, project_of))

    def lists(self, source: str) -> Json:
        """Return the lists, of the last 28 days."""
        days = last_days(28, self.until)
        events = self.events(source, days)
        lists = {}
        for name, (unit, values_of) in LISTS[source].items():
            unit_of = UNITS[source][unit]
            # Addresses, and the projects of a command, count in every row that they came with.
            every = unit == "addresses" or name == "commands"
            seen = events if every else last_seen_with(events, unit_of)
            is_known = self.was_recorded(source, unit, days)
            lists[name] = rows(unit, unit_of, events, seen, values_of, is_known)
        if source == "cli":
            lists["packages"] = [{"name": row.pop("value"), **row} for row in lists["packages"]]
        return lists

    def resource_count(self) -> dict[str, int | None]:
        seen = last_seen_with(self.events("core", last_days(28, self.until)), host_of)
        counts = [event.values["resourceCount"] for event in seen]
        numbers = sorted(number for number in counts if number is not None)

        def reaching(percent: int) -> int | None:
            """Return the smallest number that at least `percent` of all do not exceed."""
            enough = [n for at, n in enumerate(numbers, 1) if 100 * at >= percent * len(numbers)]
            return next(iter(enough), None)

        return {
            "min": next(iter(numbers), None),
            "p10": reaching(10),
            "median": reaching(50),
            "p90": reaching(90),
            "max": next(reversed(numbers), None),
        }


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


# Lists

Values = Callable[[Json], list[tuple[str | None, ...]]]  # each with a version, where it has one
LISTS: dict[str, dict[str, tuple[str, Values]]] = {
    "core": {
        "versions": ("hosts", lambda of: [(of["version"],)]),
        "providers": ("hosts", lambda of: [(name,) for name in PROVIDERS if of["providers"][name]]),
        "browsers": ("addresses", lambda of: [(of["browser"], major(of["browser_version"]))]),
        "operating_systems": ("addresses", lambda of: [(of["os"], of["os_version"])]),
    },
    "cli": {
        "commands": ("projects", lambda of: [(of["command"],)]),
        "operating_systems": ("projects", lambda of: [(of["os"],)]),
        "frameworks": ("projects", lambda of: [(of["projectFramework"],)]),
        "environments": ("projects", lambda of: [(of["nodeEnv"],)]),
        "node_versions": (
            "projects",
            lambda of: [(major(of["nodeVersion"]), series(of["nodeVersion"]))],
        ),
        "packages": (
            "projects",
            lambda of: [(one["name"], series(one["version"])) for one in of["packages"]],
        ),
    },
}


def rows(
    unit: str,
    unit_of: Unit,
    events: list[Event],
    seen: list[Event],
    values_of: Values,
    is_known: bool,
    above: tuple[str | None, ...] = (),
) -> list[Json]:
    """Return a row for each value: in how many events, and how many units were seen with it."""
    depth = len(above) + 1

    def cut(event: Event) -> set[tuple[str | None, ...]]:
        return {value[:depth] for value in values_of(event.values)}

    found = []
    for value in {value for event in events for value in cut(event) if value[:-1] == above}:
        sent_here, seen_here = (
            [event for event in some if value in cut(event)] for some in (events, seen)
        )
        row: Json = {
            "value": value[-1],
            unit: None,
            "events": len(sent_here),
        }
        if is_known and not is_uncountable(seen_here, unit_of, 28):
            row[unit] = len(members(seen_here, unit_of))
        if any(len(one) > depth for one in values_of(sent_here[0].values)):
            row["versions"] = rows(unit, unit_of, sent_here, seen_here, values_of, is_known, value)
        found.append(row)
    return sorted(
        found, key=lambda row: (-(row[unit] or 0), -row["events"], null_last(row["value"]))
    )


def refused(reasons: list[list[Any]]) -> list[Json]:
    times = Counter(map(tuple, reasons))
    ordered = sorted(times, key=lambda reason: (-times[reason], *map(null_last, reason)))
    return [
        dict(zip(("source", "field", "detail", "events"), (*reason, times[reason]), strict=True))
        for reason in ordered
    ]


def null_last(value: str | None) -> tuple[bool, str]:
    return value is None, value or ""
