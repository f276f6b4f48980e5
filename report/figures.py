"""Turn what was counted each day into the figures of the report (contract, section 6).

Each unit that was seen (a host, a project, an address) has one integer, with a bit for each
day it was active on.  Its bits answer all questions of activity: windows, weeks, who stayed,
who is new, who is gone.
"""

import re
from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import date, timedelta
from typing import Any

from report.counting import NULL, Tally, is_local, json_text, read_part
from report.lists import (
    AGENT,
    HASHED_UNITS,
    LISTS,
    MACHINE,
    PAYLOAD,
    PROJECT,
    UNITS,
    List,
    Values,
    series,
)

DAY = timedelta(days=1)
WINDOWS = (7, 28)
LIST_DAYS = 28
HASH = re.compile(rb'"[0-9a-fA-F]{64}"')
HASH_BYTES = 66

Bits = dict[bytes, int]  # of each unit
Seen = dict[bytes, tuple[bytes, ...]]  # each unit with the parts of a payload
Pairs = Iterable[tuple[bytes, bytes]]  # units, each with a part


@dataclass(frozen=True)
class Period:
    """The days of a report, and what follows from them."""

    since: date
    until: date

    @property
    def first_read(self) -> date:
        return min(self.since, self.until - (2 * max(WINDOWS) - 1) * DAY)

    @property
    def first_listed(self) -> date:
        return self.until - (LIST_DAYS - 1) * DAY

    @property
    def days(self) -> list[date]:
        return [self.since + n * DAY for n in range((self.until - self.since).days + 1)]

    @property
    def weeks(self) -> list[tuple[date, date]]:
        """First and last day of each whole week, counted back from the last day; oldest first."""
        last_days = [self.until - 7 * n * DAY for n in range(len(self.days) // 7)]
        return [(last - 6 * DAY, last) for last in reversed(last_days)]

    def mask(self, first: date, last: date) -> int:
        """Return the bits of the days from `first` to `last`."""
        end = (last - self.first_read).days + 1
        return (1 << end) - (1 << max(0, (first - self.first_read).days))


@dataclass
class Activity:
    """The units of one kind, each with the bits of its days.

    Hashed addresses stand apart: a hash means nothing beyond its day.
    """

    may_be_hashed: bool
    plain: Bits = field(default_factory=dict)
    hashed: Bits = field(default_factory=dict)

    def add(self, units: Iterable[bytes], bit: int) -> None:
        for unit in units:
            bits = self.hashed if self.may_be_hashed and is_hash(unit) else self.plain
            bits[unit] = bits.get(unit, 0) | bit

    def count(self, mask: int) -> int | None:
        """Count who was active in these days; None where a hash would count for several."""
        if any(bits & mask for bits in self.hashed.values()):
            return None
        return sum(1 for bits in self.plain.values() if bits & mask)

    def window(self, now: int, before: int) -> dict[str, int | None]:
        plain, hashed = compare(self.plain, now, before), compare(self.hashed, now, before)
        return {name: None if hashed[name] else plain[name] for name in plain}


def is_hash(unit: bytes) -> bool:
    return len(unit) == HASH_BYTES and HASH.fullmatch(unit) is not None


def compare(bits_of: Bits, now: int, before: int) -> dict[str, int]:
    counts = Counter((bits & now > 0, bits & before > 0) for bits in bits_of.values())
    stayed, new, gone = counts[True, True], counts[True, False], counts[False, True]
    return {
        "now": stayed + new,
        "before": stayed + gone,
        "stayed": stayed,
        "new": new,
        "gone": gone,
    }


class Count:
    """The days of a period, added one by one in their order."""

    def __init__(self, period: Period) -> None:
        self.period = period
        self.activity = {
            source: {unit: Activity(unit in HASHED_UNITS) for unit in units}
            for source, units in UNITS.items()
        }
        self.days: dict[date, dict[str, dict[str, int]]] = {}
        self.hosts_seen: dict[date, Seen] = {}
        self.refusals: Counter[tuple[str | None, ...]] = Counter()
        self.unreadable_lines = 0
        # Of the days that the lists cover: events by part, and pairs of units and parts.
        self.events: defaultdict[tuple[str, ...], Counter[bytes]] = defaultdict(Counter)
        self.address_agents: set[tuple[bytes, bytes]] = set()
        self.project_machines: set[tuple[bytes, bytes]] = set()
        self.projects_seen: Seen = {}

    def add(self, day: date, tally: Tally) -> None:
        self.unreadable_lines += tally.unreadable_lines
        self.refusals.update(tally.refusals)
        units = units_of(tally)
        for source, kinds in units.items():
            for unit, members in kinds.items():
                self.activity[source][unit].add(members, self.period.mask(day, day))
        events = {"core": tally.host_payloads.total(), "cli": tally.cli_payloads.total()}
        self.days[day] = {
            source: {"events": events[source]} | {unit: len(seen) for unit, seen in kinds.items()}
            for source, kinds in units.items()
        }
        self.hosts_seen[day] = last_seen(
            (host, (payload,), times)
            for (host, payload), times in tally.host_payloads.items()
            if host in units["core"]["hosts"]
        )
        if day >= self.period.first_listed:
            self.add_to_lists(tally)

    def add_to_lists(self, tally: Tally) -> None:
        self.address_agents |= tally.address_agents
        for agent, times in tally.agents.items():
            self.events[AGENT][agent] += times
        for (_, payload), times in tally.host_payloads.items():
            self.events[PAYLOAD][payload] += times
        projects = []
        for (machine, project), times in tally.cli_payloads.items():
            self.events[MACHINE][machine] += times
            self.events[PROJECT][project] += times
            if (name := project_id(PROJECT, project)) is not None:
                projects.append((name, (machine, project), times))
                self.project_machines.add((name, machine))
        self.projects_seen |= last_seen(projects)

    def listed_hosts(self) -> Seen:
        return self.hosts_between(self.period.first_listed, self.period.until)

    def hosts_between(self, first: date, last: date) -> Seen:
        """Return each host with what it was last seen with in these days."""
        seen: Seen = {}
        for day in sorted(day for day in self.hosts_seen if first <= day <= last):
            seen |= self.hosts_seen[day]
        return seen


def units_of(tally: Tally) -> dict[str, dict[str, set[bytes]]]:
    payloads = {payload for _, payload in tally.host_payloads}
    parts = {project for _, project in tally.cli_payloads}
    return {
        "core": {
            "hosts": {
                host for host, _ in tally.host_payloads if host != NULL and not is_local(host)
            },
            "projects": projects_of(PAYLOAD, payloads),
            "addresses": tally.addresses,
            "local_addresses": tally.local_addresses,
        },
        "cli": {"projects": projects_of(PROJECT, parts), "addresses": tally.cli_addresses},
    }


def projects_of(keys: tuple[str, ...], texts: Iterable[bytes]) -> set[bytes]:
    names = {project_id(keys, text) for text in texts}
    return {name for name in names if name is not None}


def project_id(keys: tuple[str, ...], text: bytes) -> bytes | None:
    name = values_of(keys, text)["projectId"]
    return None if name is None else json_text(name)


def values_of(keys: tuple[str, ...], text: bytes) -> Values:
    return read_part(keys, text) or {}  # only parts that can be read have been counted


def last_seen(counted: Iterable[tuple[bytes, tuple[bytes, ...], int]]) -> Seen:
    """Return each unit with its payload of most events, the greater one where it is a tie."""
    best: dict[bytes, tuple[int, tuple[bytes, ...]]] = {}
    for unit, payload, times in counted:
        best[unit] = max(best.get(unit, (0, ())), (times, payload))
    return {unit: payload for unit, (_, payload) in best.items()}


# The report.


def make_report(count: Count, days_with_file: set[date], unfinished: bool) -> dict[str, Any]:
    """Return the report as its JSON has it.

    `days_with_file` has all days of which there is a file of events, read or not.
    """
    period = count.period
    days = [figures(count, day, day, days_with_file) for day in period.days]
    return {
        "since": str(period.since),
        "until": str(period.until),
        "unfinished": unfinished,
        "missing_days": [str(day) for day in period.days if day not in days_with_file],
        "unreadable_lines": count.unreadable_lines,
        "refused": refused(count.refusals),
        "events": {source: sum(day[source]["events"] or 0 for day in days) for source in UNITS},
        "active": active(count, days_with_file),
        "weeks": [
            {"since": str(first), "until": str(last)} | figures(count, first, last, days_with_file)
            for first, last in period.weeks
        ],
        "adoption": [adoption(count, first, last, days_with_file) for first, last in period.weeks],
        "days": [{"date": str(day)} | found for day, found in zip(period.days, days, strict=True)],
        **{source: lists_of(count, source) for source in UNITS},
    }


def refused(refusals: Counter[tuple[str | None, ...]]) -> list[dict[str, Any]]:
    rows = sorted(
        refusals.items(),
        key=lambda row: (-row[1], *((text is None, text or "") for text in row[0])),
    )
    names = ("source", "field", "detail")
    return [dict(zip(names, reason, strict=True)) | {"events": times} for reason, times in rows]


def active(count: Count, days_with_file: set[date]) -> dict[str, Any]:
    return {
        source: {
            unit: {
                str(length): window(count.period, activity, length, days_with_file)
                for length in WINDOWS
            }
            for unit, activity in kinds.items()
        }
        for source, kinds in count.activity.items()
    }


def window(
    period: Period, activity: Activity, length: int, days_with_file: set[date]
) -> dict[str, int | None]:
    """Compare the last days with as many before; without files that old there is no before."""
    first = period.until - (length - 1) * DAY
    first_before = first - length * DAY
    now = period.mask(first, period.until)
    before = period.mask(first_before, first - DAY)
    found = activity.window(now, before)
    if not any(day <= first_before for day in days_with_file):
        return dict.fromkeys(found) | {"now": found["now"]}
    return found


def figures(count: Count, first: date, last: date, days_with_file: set[date]) -> dict[str, Any]:
    """Return events and units of a day or a week; null where there is no file of it."""
    days = [first + n * DAY for n in range((last - first).days + 1)]
    if not any(day in days_with_file for day in days):
        return {source: dict.fromkeys(("events", *units)) for source, units in UNITS.items()}
    counted = [count.days[day] for day in days if day in count.days]
    mask = count.period.mask(first, last)
    found: dict[str, dict[str, int | None]] = {}
    for source, kinds in count.activity.items():
        found[source] = {"events": sum(day[source]["events"] for day in counted)}
        for unit, activity in kinds.items():
            if len(days) == 1:  # when hashes can be counted, too
                found[source][unit] = sum(day[source][unit] for day in counted)
            else:
                found[source][unit] = activity.count(mask)
    return found


def adoption(count: Count, first: date, last: date, days_with_file: set[date]) -> dict[str, Any]:
    week = {"since": str(first), "until": str(last)}
    if not any(first <= day <= last for day in days_with_file):
        return week | {"hosts": None, "versions": {}}
    hosts = count.hosts_between(first, last)
    versions = Counter(
        series(values_of(PAYLOAD, payload)["version"]) for (payload,) in hosts.values()
    )
    known = {version: times for version, times in versions.most_common() if version is not None}
    return week | {"hosts": len(hosts), "versions": known}


# Lists.


def lists_of(count: Count, source: str) -> dict[str, Any]:
    hosts = count.listed_hosts()
    found: dict[str, Any] = {
        one.name: rows_of(one, pairs_of(one, count, hosts), count.events[one.part])
        for one in LISTS
        if one.source == source
    }
    if source == "core":
        payloads = (values_of(PAYLOAD, payload) for (payload,) in hosts.values())
        counts = [values["resourceCount"] for values in payloads]
        found["resource_count"] = spread([n for n in counts if n is not None])
    return found


def pairs_of(one: List, count: Count, hosts: Seen) -> Pairs:
    """Return the units that a list counts, each with the parts it is counted for."""
    if one.unit == "addresses":
        return count.address_agents
    if one.name == "commands":
        return count.project_machines
    seen = hosts if one.unit == "hosts" else count.projects_seen
    index = 1 if one.part == PROJECT else 0
    return ((unit, payload[index]) for unit, payload in seen.items())


def rows_of(one: List, pairs: Pairs, events: Counter[bytes]) -> list[dict[str, Any]]:
    """Return a row for each value, with rows for its versions where the list has them."""
    members: defaultdict[tuple[str | None, ...], set[bytes]] = defaultdict(set)
    for unit, part in pairs:
        if unit != NULL:
            for found in one.read(values_of(one.part, part)):
                members[found[:1]].add(unit)
                members[found].add(unit)
    times: Counter[tuple[str | None, ...]] = Counter()
    for part, n in events.items():
        found_pairs = one.read(values_of(one.part, part))
        for key in {pair[:1] for pair in found_pairs} | found_pairs:
            times[key] += n

    def rows(keys: Iterable[tuple[str | None, ...]], name: str) -> list[dict[str, Any]]:
        made = [
            {name: key[-1], one.unit: count_members(one, members[key]), "events": times[key]}
            for key in keys
        ]
        return sorted(made, key=lambda row: rank(row, name, one.unit))

    top = rows([key for key in times if len(key) == 1], one.value_key)
    for row in top if one.has_versions else ():
        versions = [key for key in times if len(key) == 2 and key[0] == row[one.value_key]]
        row["versions"] = rows(versions, "value")
    return top


def count_members(one: List, members: set[bytes]) -> int | None:
    is_hashed = one.unit == "addresses" and any(map(is_hash, members))
    return None if is_hashed else len(members)


def rank(row: dict[str, Any], name: str, unit: str) -> tuple[Any, ...]:
    return -(row[unit] or 0), -row["events"], row[name] is None, row[name] or ""


def spread(values: list[int]) -> dict[str, int | None]:
    """Return least, lower middle, the smallest that 90 % do not exceed, and greatest."""
    if not values:
        return dict.fromkeys(("min", "median", "p90", "max"))
    values.sort()

    def reaching(percent: int) -> int:
        return values[-(-len(values) * percent // 100) - 1]

    return {"min": values[0], "median": reaching(50), "p90": reaching(90), "max": values[-1]}
