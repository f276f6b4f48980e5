"""Turn what was counted into the figures of the report (contract, section 6)."""

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from datetime import date
from typing import Any

from report.activity import (
    DAY,
    WEEK_DAYS,
    WINDOWS,
    Activity,
    Count,
    Period,
    Seen,
    values_of,
)
from report.lists import LISTS, PAYLOAD, PROJECT, UNITS, List, series

Found = tuple[str | None, ...]  # a value, or a value and its version


# The report.


def make_report(count: Count, days_with_file: set[date], unfinished: bool) -> dict[str, Any]:
    """Return the report, in the form of its JSON.

    `days_with_file` has all days of which there is a file of events, read or not.
    """
    period = count.period
    days = [figures_of_day(count, day, days_with_file) for day in period.days]
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
            {"since": str(first), "until": str(last)}
            | figures_of_week(count, first, last, days_with_file)
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
    """Compare the last days with as many before, if there are files that old."""
    found = activity.window(length // WEEK_DAYS)
    if not any(day <= period.until - (2 * length - 1) * DAY for day in days_with_file):
        return dict.fromkeys(found) | {"now": found["now"]}
    return found


def figures_of_day(count: Count, day: date, days_with_file: set[date]) -> dict[str, Any]:
    if day not in days_with_file:
        return no_figures()
    return count.days.get(day) or {
        source: dict.fromkeys(("events", *units), 0) for source, units in UNITS.items()
    }


def figures_of_week(
    count: Count, first: date, last: date, days_with_file: set[date]
) -> dict[str, Any]:
    days = [first + n * DAY for n in range(WEEK_DAYS)]
    if days_with_file.isdisjoint(days):
        return no_figures()
    counted = [count.days[day] for day in days if day in count.days]
    week = count.period.week_of(last)
    return {
        source: {"events": sum(day[source]["events"] for day in counted)}
        | {unit: activity.count(week) for unit, activity in kinds.items()}
        for source, kinds in count.activity.items()
    }


def no_figures() -> dict[str, dict[str, None]]:
    """Return the figures of days without a file."""
    return {source: dict.fromkeys(("events", *units)) for source, units in UNITS.items()}


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
        one.name: rows_of(one, count, members_of(one, count, hosts))
        for one in LISTS
        if one.source == source
    }
    if source == "core":
        payloads = (values_of(PAYLOAD, payload) for (payload,) in hosts.values())
        counts = [values["resourceCount"] for values in payloads]
        found["resource_count"] = spread([n for n in counts if n is not None])
    return found


def members_of(one: List, count: Count, hosts: Seen) -> Mapping[bytes, set[bytes]]:
    """Return the units that a list counts, by the part of a line that they count for."""
    if one.unit == "addresses":
        return count.addresses_of_agent
    if one.name == "commands":
        return count.projects_of_machine
    seen = hosts if one.unit == "hosts" else count.listed_projects()
    index = 1 if one.part == PROJECT else 0
    members: defaultdict[bytes, set[bytes]] = defaultdict(set)
    for unit, payload in seen.items():
        members[payload[index]].add(unit)
    return members


def rows_of(one: List, count: Count, members: Mapping[bytes, set[bytes]]) -> list[dict[str, Any]]:
    """Return a row for each value, with rows for its versions if the list has them."""
    units: defaultdict[Found, set[bytes]] = defaultdict(set)
    times: Counter[Found] = Counter()
    for part, n in count.events[one.part].items():
        pairs = one.read(values_of(one.part, part))
        for found in {pair[:1] for pair in pairs} | pairs:
            times[found] += n
            units[found] |= members.get(part, set())

    def rows(keys: Iterable[Found], name: str) -> list[dict[str, Any]]:
        known = count.activity[one.source][one.unit].count_known
        made = [{name: key[-1], one.unit: known(units[key]), "events": times[key]} for key in keys]
        return sorted(made, key=lambda row: rank(row, name, one.unit))

    top = rows([key for key in times if len(key) == 1], one.value_key)
    for row in top if one.has_versions else ():
        versions = [key for key in times if len(key) == 2 and key[0] == row[one.value_key]]
        row["versions"] = rows(versions, "value")
    return top


def rank(row: dict[str, Any], name: str, unit: str) -> tuple[Any, ...]:
    return -(row[unit] or 0), -row["events"], row[name] is None, row[name] or ""


def spread(values: list[int]) -> dict[str, int | None]:
    """Return minimum, lower median, the smallest value that 90 % do not exceed, and maximum."""
    if not values:
        return dict.fromkeys(("min", "median", "p90", "max"))
    values.sort()

    def reaching(percent: int) -> int:
        return values[-(-len(values) * percent // 100) - 1]

    return {"min": values[0], "median": reaching(50), "p90": reaching(90), "max": values[-1]}
