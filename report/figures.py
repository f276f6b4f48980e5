"""Turn what was counted into the figures of the report (contract, section 6).

A figure is null where what it needs was not recorded.
"""

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from datetime import date
from functools import cached_property, partial
from typing import Any

from files.records import PAYLOAD_KEYS
from report.activity import Day, Seen, Week, agent_values, unpack
from report.counting import cut_payloads, holds_hash
from report.lists import LISTS, UNITS, Found, List, series
from report.period import LIST_WEEKS, WEEK_DAYS, WINDOW_WEEKS, WINDOWS, Period
from report.values import NULL, Values, value_of

MIN_FILES = {7: 6, 28: 24}  # days with a file, for a window to be compared
COMPARED = ("now", "before", "stayed", "new", "gone")
REASON = ("source", "field", "detail")


@dataclass(frozen=True)
class Counted:
    """What was counted in each week, and which days have a file of events, read or not."""

    period: Period
    weeks: dict[int, Week]  # by their numbers
    days_with_file: set[date]

    @cached_property
    def known_days(self) -> dict[date, Day]:
        return {day: one for week in self.weeks.values() for day, one in week.days.items()}

    def days(self, wanted: Iterable[date]) -> list[Day]:
        return [self.known_days[day] for day in wanted if day in self.known_days]

    def some_weeks(self, numbers: Iterable[int]) -> list[Week]:
        return [self.weeks[number] for number in numbers if number in self.weeks]

    def units_by_week(self, source: str, unit: str) -> list[set[bytes]]:
        """Return the units that were active in each week of the windows, the last week first."""
        weeks = map(self.weeks.get, range(WINDOW_WEEKS))
        return [set(unpack(week.packed_units[source, unit])) if week else set() for week in weeks]

    @cached_property
    def listed(self) -> list[Week]:
        """The weeks that the lists cover, oldest first."""
        return self.some_weeks(reversed(range(LIST_WEEKS)))

    @cached_property
    def listed_days(self) -> list[Day]:
        return self.days(self.period.listed)

    def files_of(self, days: Iterable[date]) -> int:
        return len(self.days_with_file.intersection(days))


def make_report(
    counted: Counted, framework: str, patterns: Iterable[str], unfinished: bool
) -> dict[str, Any]:
    """Return the report, in the form of its JSON."""
    period, weeks = counted.period, list(counted.weeks.values())
    days = counted.days(period.days)
    missing = [str(day) for day in period.days_read if day not in counted.days_with_file]
    return {
        "framework": framework,
        "since": str(period.since),
        "until": str(period.until),
        "unfinished": unfinished,
        "missing_days": missing,
        "unreadable_lines": sum(week.unreadable_lines for week in weeks),
        "refused": refused(weeks),
        "events": {source: sum(day.events[source] for day in days) for source in UNITS},
        "with_project": {source: sum(day.with_project[source] for day in days) for source in UNITS},
        "automated": automated(weeks),
        "excluded": {"patterns": list(patterns), "events": sum(week.excluded for week in weeks)},
        "masked": only_masked(counted.listed_days),
        "files": {str(length): files_of_windows(counted, length) for length in WINDOWS},
        "projects_in_development_only": projects_in_development_only(counted),
        "active": windows_by_unit(counted),
        "weeks": [figures_of_week(counted, number) for number in period.whole_weeks],
        "adoption": [adoption_of_week(counted, number) for number in period.whole_weeks],
        "days": [figures_of_day(counted, day) for day in period.days],
        **{source: lists_of(counted, source) for source in UNITS},
    }


def refused(weeks: list[Week]) -> list[dict[str, Any]]:
    refusals: Counter[tuple[str | None, ...]] = Counter()
    for week in weeks:
        refusals += week.refusals
    rows = sorted(refusals.items(), key=lambda row: (-row[1], *map(null_last, row[0])))
    return [dict(zip(REASON, reason, strict=True)) | {"events": times} for reason, times in rows]


def null_last(value: str | None) -> tuple[bool, str]:
    return value is None, value or ""


def automated(weeks: list[Week]) -> dict[str, Any]:
    names: Counter[bytes] = Counter()
    for week in weeks:
        names += week.automated
    programs = set().union(*(week.automated_hosts for week in weeks))
    hosts = programs.difference(*(week.hosts for week in weeks))
    rows = [{"value": value_of(name), "events": times} for name, times in names.items()]
    rows.sort(key=lambda row: (-row["events"], row["value"]))
    return {"events": names.total(), "hosts": len(hosts), "names": rows}


def projects_in_development_only(counted: Counted) -> int | None:
    if not was_recorded("core", "projects", counted.listed_days):
        return None
    weeks = counted.listed
    found = set().union(*(week.projects_in_development for week in weeks))
    return len(found.difference({NULL}, *(week.projects_elsewhere for week in weeks)))


# What was recorded.


def can_count(source: str, unit: str, days: list[Day], *, is_one_day: bool) -> bool:
    """Tell whether these days recorded what a figure of them needs."""
    # Each directory has its own key, a new one each day.
    most_keys = 1 if is_one_day else 0
    is_hashed = any(day.hashed[source, unit] > most_keys for day in days)
    return not is_hashed and was_recorded(source, unit, days)


def was_recorded(source: str, unit: str, days: list[Day]) -> bool:
    if unit == "hosts":
        return True
    if unit == "projects":
        has_events = any(day.events[source] for day in days)
        return not has_events or any(day.with_project[source] for day in days)
    is_mixed = {True, False} <= {day.is_masked for day in days}
    return not is_mixed and not any(source in day.without_address for day in days)


def only_masked(days: list[Day]) -> bool:
    kinds = {day.is_masked for day in days}
    return True in kinds and False not in kinds


# Windows, weeks, days.


def files_of_windows(counted: Counted, length: int) -> dict[str, int]:
    period = counted.period
    return {
        "now": counted.files_of(period.window(length)),
        "before": counted.files_of(period.window_before(length)),
    }


def windows_by_unit(counted: Counted) -> dict[str, Any]:
    return {
        source: {unit: windows(counted, source, unit) for unit in units}
        for source, units in UNITS.items()
    }


def windows(counted: Counted, source: str, unit: str) -> dict[str, Any]:
    by_week = counted.units_by_week(source, unit)
    found = {}
    for length in WINDOWS:
        weeks = length // WEEK_DAYS
        now, before = set().union(*by_week[:weeks]), set().union(*by_week[weeks : 2 * weeks])
        found[str(length)] = window(counted, source, unit, length, now, before)
    return found


def window(
    counted: Counted, source: str, unit: str, length: int, now: set[bytes], before: set[bytes]
) -> dict[str, int | None]:
    """Compare the last days with as many before, if there are enough files of both."""
    period = counted.period

    def known(days: list[date]) -> bool:
        return can_count(source, unit, counted.days(days), is_one_day=False)

    found: dict[str, int | None] = dict.fromkeys(COMPARED)
    if has_now := known(period.window(length)):
        found["now"] = len(now)
    if min(files_of_windows(counted, length).values()) < MIN_FILES[length]:
        return found
    if has_before := known(period.window_before(length)):
        found["before"] = len(before)
    if has_now and has_before and known(period.window(2 * length)):
        stayed = len(now & before)
        found |= {"stayed": stayed, "new": len(now) - stayed, "gone": len(before) - stayed}
    return found


def figures_of_week(counted: Counted, number: int) -> dict[str, Any]:
    days = counted.period.days_of_week(number)
    files = counted.files_of(days)
    row = {"since": str(days[0]), "until": str(days[-1]), "files": files}
    if not files:
        return row | no_figures()
    week = counted.weeks.get(number)
    return row | figures(counted.days(days), week.counts if week else {}, is_one_day=False)


def figures_of_day(counted: Counted, day: date) -> dict[str, Any]:
    days = counted.days([day])
    row = {"date": str(day), "refused": sum(day.refused for day in days)}
    if day not in counted.days_with_file:
        return row | no_figures()
    return row | figures(days, days[0].units if days else {}, is_one_day=True)


def figures(
    days: list[Day], counts: Mapping[str, Mapping[str, int]], *, is_one_day: bool
) -> dict[str, dict[str, int | None]]:
    def count(source: str, unit: str) -> int | None:
        if not can_count(source, unit, days, is_one_day=is_one_day):
            return None
        return counts[source][unit] if counts else 0

    found: dict[str, dict[str, int | None]] = {}
    for source, units in UNITS.items():
        found[source] = {"events": sum(day.events[source] for day in days)}
        found[source] |= {unit: count(source, unit) for unit in units}
    return found


def no_figures() -> dict[str, dict[str, None]]:
    """Return the figures of days without a file."""
    return {source: dict.fromkeys(("events", *units)) for source, units in UNITS.items()}


def adoption_of_week(counted: Counted, number: int) -> dict[str, Any]:
    days = counted.period.days_of_week(number)
    row = {"since": str(days[0]), "until": str(days[-1])}
    if not counted.files_of(days):
        return row | {"hosts": None, "versions": {}}
    versions: Counter[str] = Counter()
    for week in counted.some_weeks([number]):
        for version, hosts in week.versions_seen.items():
            if version != NULL:
                versions[series(value_of(version)) or ""] += hosts
    hosts = sum(week.versions_seen.total() for week in counted.some_weeks([number]))
    return row | {"hosts": hosts, "versions": dict(versions.most_common())}


# Lists.


def lists_of(counted: Counted, source: str) -> dict[str, Any]:
    payloads: Seen = {}
    for week in counted.listed:
        payloads |= week.hosts_seen if source == "core" else week.projects_seen
    seen = cut_payloads(source, list(payloads.values()))
    found: dict[str, Any] = {
        one.name: rows_of(one, counted, seen) for one in LISTS if one.source == source
    }
    if source == "core":
        at = PAYLOAD_KEYS[source].index("resourceCount")
        counts = (value_of(values[at]) for values in seen)
        found["resource_count"] = spread([n for n in counts if n is not None])
    return found


def rows_of(one: List, counted: Counted, seen: list[Values]) -> list[dict[str, Any]]:
    """Return a row for each value, with rows for its versions if the list has them."""
    times = by_row(one, events_of(one, counted))
    units = units_by_row(one, counted, seen)
    versions: defaultdict[str | None, list[Found]] = defaultdict(list)
    for found in times:
        if len(found) > 1:
            versions[found[0]].append(found)

    def rows(keys: Iterable[Found], name: str) -> list[dict[str, Any]]:
        made = [{name: key[-1], one.unit: units(key), "events": times[key]} for key in keys]
        return sorted(
            made, key=lambda row: (-(row[one.unit] or 0), -row["events"], null_last(row[name]))
        )

    top = rows([found for found in times if len(found) == 1], one.value_key)
    for row in top if one.has_versions else ():
        row["versions"] = rows(versions[row[one.value_key]], "value")
    return top


def by_row(one: List, counted: Mapping[Values, int]) -> Counter[Found]:
    """Add up what was counted for values of the list's keys by the rows that they count for."""
    rows: Counter[Found] = Counter()
    for values, n in counted.items():
        for found in one.found_in(values):
            rows[found] += n
    return rows


def events_of(one: List, counted: Counted) -> Counter[Values]:
    events: Counter[Values] = Counter()
    for week in counted.listed:
        if one.unit == "addresses":
            for agent, times in week.agents.items():
                events[agent_values(agent, one.keys)] += times
        else:
            for value, times in week.events[one.source, one.keys[0]].items():
                events[(value,)] += times
    return events


def units_by_row(one: List, counted: Counted, seen: list[Values]) -> Callable[[Found], int | None]:
    """Return what tells how many units a row of the list has."""
    if not was_recorded(one.source, one.unit, counted.listed_days):
        return lambda found: None
    if one.unit == "addresses":
        return partial(addresses_of_row, one.name, counted)
    if one.name == "commands":  # every project that ran it
        runs = set().union(*(week.commands_run for week in counted.listed))
        values = [command for command, project in runs if project != NULL]
    else:
        at = PAYLOAD_KEYS[one.source].index(one.keys[0])
        values = [payload[at] for payload in seen]
    return by_row(one, Counter(zip(values, strict=True))).__getitem__


def addresses_of_row(name: str, counted: Counted, found: Found) -> int | None:
    packed = [week.packed_addresses.get((name, found), b"") for week in counted.listed]
    addresses = set().union(*map(unpack, packed))
    has_hashes = any(day.hashed["core", "addresses"] for day in counted.listed_days)
    return None if has_hashes and holds_hash(addresses) else len(addresses)


def spread(values: list[int]) -> dict[str, int | None]:
    """Return the extremes, the lower median, and what 10 % and 90 % do not exceed."""
    if not values:
        return dict.fromkeys(("min", "p10", "median", "p90", "max"))
    values.sort()

    def reaching(percent: int) -> int:
        return values[-(-len(values) * percent // 100) - 1]

    parts = {"p10": reaching(10), "median": reaching(50), "p90": reaching(90)}
    return {"min": values[0], **parts, "max": values[-1]}
