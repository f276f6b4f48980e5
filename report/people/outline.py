"""What the report tells people, derived from its JSON; text.py and page.py only draw it."""

import re
from collections.abc import Callable, Iterable, Iterator
from datetime import date, timedelta
from enum import Enum
from typing import Any, NamedTuple

from files.records import encode
from report.lists import LISTS, UNITS, List

Report = dict[str, Any]
Window = dict[str, int | None]

SOURCES = {"core": "Apps", "cli": "Command line"}
FROM = {"core": "apps", "cli": "the command line"}
BASES = {"hosts": "deployed hosts", "addresses": "addresses", "projects": "CLI projects"}
ONE_AN_EVENT = {"core": "versions", "cli": "commands"}  # lists in which each event counts once
TURNOVER = ("stayed", "new", "gone")
UNKNOWN = "–"
MIN_PERCENT_BASE = 100  # from a smaller base, a change in percent would mislead
MAX_SERIES, MAX_NEWEST = 6, 3
NAMED_FROM = 100  # a series is named if at least one in 100 hosts had it in some week
MAX_GAPS = 3  # more are counted, not named
NUMERIC_SERIES = re.compile(r"(\d{1,9})(?:\.(\d{1,9}))?", re.ASCII)

# What the numbers are not.
NOTES = {
    "active": "Only what sends events is counted. A host is not a customer, and an address is not"
    " a person; build machines have addresses, too. A change may come from the clients: a release"
    " that first sends projectId adds projects that existed before.",
    "turnover": "New: active in these 28 days but not in the 28 before; it may have been active"
    " earlier. Gone: active only in the 28 before; it may still be installed.",
    "adoption": "Each host counts once a week, with the version it was last seen with."
    " A version is what a client claims.",
    "other": '"Other" are versions without a number, and those of less than 1%.',
    "core": "A host counts with what it was last seen with, an address with every browser and"
    " system it was seen with.",
    "cli": "A project counts with what it was last seen with, and with every command it ran.",
}


class Gap(Enum):
    """Why a week has no number."""

    NO_FILE = "no file"
    UNKNOWN = "unknown"


Weekly = list[int | Gap]
Levels = list[float | Gap]  # from 0 to 1


class Active(NamedTuple):
    """One unit of a source: its windows, keyed by their days, and its number in each week."""

    source: str
    unit: str
    title: str
    is_first: bool  # of its source
    windows: dict[str, Window]
    weeks: Weekly

    @property
    def levels(self) -> Levels:
        greatest = max((count for count in self.weeks if isinstance(count, int)), default=0)
        return [level(count, greatest) for count in self.weeks]


class Series(NamedTuple):
    """A series of versions, or several joined: its hosts and all hosts, in each week."""

    name: str
    hosts: Weekly
    of: Weekly
    or_newer: int | Gap | None  # hosts in the newest week; None for joined series

    @property
    def levels(self) -> Levels:
        return [level(hosts, of) for hosts, of in zip(self.hosts, self.of, strict=True)]


class Row(NamedTuple):
    label: str
    units: int  # or events, if the list counts events
    versions: list["Row"]


class Listing(NamedTuple):
    """One of the lists, ranked by its unit, or by events where no unit is known."""

    source: str
    name: str
    title: str
    of: str  # what is counted: the unit, or events, for the reason in `why_events`
    why_events: str
    base: int
    rows: list[Row]


# Numbers as text


def number(count: int | Gap | None) -> str:
    return f"{count:,}" if isinstance(count, int) else UNKNOWN


def plural(count: int, noun: str) -> str:
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


def fraction(part: int, whole: int) -> float:
    return part / whole if whole else 0.0


def level(part: int | Gap, whole: int | Gap) -> float | Gap:
    if isinstance(part, Gap) or isinstance(whole, Gap):
        return Gap.NO_FILE if Gap.NO_FILE in (part, whole) else Gap.UNKNOWN
    return fraction(part, whole)


def share(part: int | Gap, whole: int | Gap) -> str:
    """Return the percentage; never 0% for some, nor 100% for almost all."""
    if isinstance(part, Gap) or isinstance(whole, Gap) or not whole:
        return UNKNOWN
    percent = round(100 * part / whole)
    if percent == 0 and part:
        return "<1%"
    if percent == 100 and part < whole:
        return ">99%"
    return f"{percent}%"


def change(window: Window) -> str:
    now, before = window["now"], window["before"]
    if now is None or before is None:
        return UNKNOWN
    return f"{now - before:+,}" if now != before else "0"


def percent_change(window: Window) -> str:
    """Return the change in percent, or "" if the base is too small."""
    now, before = window["now"], window["before"]
    if now is None or before is None or before < MIN_PERCENT_BASE or now == before:
        return ""
    percent = round(100 * (now - before) / before)
    if percent == 0:
        return "<1%"
    return f"{percent:+}%" if percent < 1000 else ">999%"


def readable(value: str | None) -> str:
    """Return a value escaped as in the files: printable ASCII, safe on a terminal."""
    return "unknown" if value is None else encode(value)[1:-1]


def has_turnover(report: Report) -> bool:
    return not has_no_before(report, 28)


def turnover(window: Window) -> list[str]:
    """Return the numbers of stayed, new and gone; a single dash if all are unknown."""
    counts = [number(window[name]) for name in TURNOVER]
    return counts if set(counts) != {UNKNOWN} else [UNKNOWN]


# Period


def length(report: Report) -> str:
    days = len(report["days"])
    return plural(days, "day") if days % 7 else plural(days // 7, "week")


def missing(report: Report) -> str:
    """Name the runs of days without a file, or count the days if there are many runs."""
    gaps = list(runs(map(date.fromisoformat, report["missing_days"])))
    if len(gaps) > MAX_GAPS:
        return plural(len(report["missing_days"]), "day")
    return ", ".join(f"{first}" if first == last else f"{first} to {last}" for first, last in gaps)


def runs(days: Iterable[date]) -> Iterator[tuple[date, date]]:
    """Yield the first and the last day of each run of consecutive days."""
    run: list[date] = []
    for day in days:
        if run and day - run[-1] > timedelta(days=1):
            yield run[0], run[-1]
            run = []
        run.append(day)
    if run:
        yield run[0], run[-1]


def sources(report: Report) -> list[str]:
    """Return the sources that sent anything."""
    return [source for source in SOURCES if report["events"][source] or has_active(report, source)]


def has_week_without_file(report: Report) -> bool:
    return any(week["core"]["events"] is None for week in report["weeks"])


def has_active(report: Report, source: str) -> bool:
    units = report["active"][source].values()
    return any(window["now"] != 0 or window["before"] for unit in units for window in unit.values())


def events(report: Report) -> str:
    """Say how many events were counted; "" if none."""
    counts = [
        f"{plural(report['events'][source], 'event')} of {FROM[source]}"
        for source in sources(report)
    ]
    return f"Counted: {' and '.join(counts)}." if counts else ""


def nothing(report: Report) -> str:
    """Say why the report is empty."""
    period = f"from {report['since']} to {report['until']}"
    if len(report["missing_days"]) == len(report["days"]):
        return f"Nothing to report: there is no events file {period}."
    return f"Nothing to report: the events files {period} hold no event."


# Active


def active(report: Report) -> list[Active]:
    return [
        Active(
            source,
            unit,
            title,
            at == 0,
            report["active"][source][unit],
            weekly(report, source, unit),
        )
        for source in sources(report)
        for at, (unit, title) in enumerate(UNITS[source].items())
    ]


def weekly(report: Report, source: str, unit: str) -> Weekly:
    return [count_or_gap(week[source], unit) for week in report["weeks"]]


def count_or_gap(figures: dict[str, int | None], unit: str) -> int | Gap:
    """Return a figure of a day or a week, or why it has none."""
    count = figures[unit]
    if count is None:
        return Gap.NO_FILE if figures["events"] is None else Gap.UNKNOWN
    return count


def reasons(report: Report) -> list[str]:
    """Say why figures in the table of active units are unknown."""
    said = []
    days = next((days for days in (7, 28) if has_no_before(report, days)), None)
    if days:
        first = date.fromisoformat(report["until"]) - timedelta(days=2 * days - 1)
        said.append(f"{UNKNOWN} There is no file from {first} or earlier to compare with.")
    if any(is_hashed(report, row) for row in active(report)):
        said.append(f"{UNKNOWN} Addresses are stored hashed: they cannot be counted beyond a day.")
    return said


def has_no_before(report: Report, days: int) -> bool:
    # Hosts are never hashed.
    return report["active"]["core"]["hosts"][str(days)]["before"] is None


def is_hashed(report: Report, row: Active) -> bool:
    counts = [row.windows[str(days)]["now"] for days in (7, 28)]
    for days in (7, 28):
        if not has_no_before(report, days):
            counts += row.windows[str(days)].values()
    return None in counts or Gap.UNKNOWN in row.weeks


# Adoption


def adoption(report: Report) -> list[Series]:
    """Return the newest series of versions, newest first; then `older` and `other`, joined."""
    weeks = report["adoption"]
    names = {name for week in weeks for name in week["versions"]}
    numeric = sorted(filter(NUMERIC_SERIES.fullmatch, names), key=series_key, reverse=True)
    # Anybody can claim any version, so a series that hardly any host has is not named.
    shown = [name for name in numeric if is_common(weeks, name)][:MAX_SERIES]
    older = numeric[numeric.index(shown[-1]) + 1 :] if shown else numeric
    joined = [
        series(weeks, "older", lambda week: hosts_with(week, older)),
        series(weeks, "other", lambda week: week["hosts"] - hosts_with(week, shown + older)),
    ]
    return [
        *(own_series(weeks, name, numeric) for name in shown),
        *(one for one in joined if any(count for count in one.hosts if count is not Gap.NO_FILE)),
    ]


def is_common(weeks: list[Any], name: str) -> bool:
    return any(NAMED_FROM * hosts_with(week, [name]) >= (week["hosts"] or 1) for week in weeks)


def own_series(weeks: list[Any], name: str, numeric: list[str]) -> Series:
    newer = numeric[: numeric.index(name) + 1]
    or_newer = each_week(weeks, lambda week: hosts_with(week, newer))[-1]
    own = series(weeks, name, lambda week: hosts_with(week, [name]))
    return own._replace(or_newer=or_newer)


def series_key(name: str) -> list[int]:
    match = NUMERIC_SERIES.fullmatch(name)
    return [int(part or -1) for part in match.groups()] if match else []


def series(weeks: list[Any], name: str, hosts: Callable[[Any], int]) -> Series:
    counts = each_week(weeks, hosts)
    return Series(name, counts, each_week(weeks, lambda week: week["hosts"]), None)


def each_week(weeks: list[Any], hosts: Callable[[Any], int]) -> Weekly:
    return [Gap.NO_FILE if week["hosts"] is None else hosts(week) for week in weeks]


def hosts_with(week: dict[str, Any], names: list[str]) -> int:
    return sum(week["versions"].get(name, 0) for name in names)


def newest_week(report: Report) -> str:
    hosts = report["adoption"][-1]["hosts"]
    if hosts is None:
        return "There is no file of the newest week."
    return f"In the newest week, {plural(hosts, 'host')} sent."


def or_newer(shown: list[Series]) -> str:
    """Say what share of the hosts is on the newest series; "" if no host sent."""
    own = [one for one in shown if one.or_newer][:MAX_NEWEST]
    parts = [f"{share(one.or_newer or 0, one.of[-1])} on {one.name} or newer" for one in own]
    return f"{', '.join(parts)}." if parts else ""


def about_adoption(shown: list[Series]) -> str:
    is_joined = any(one.name == "other" for one in shown)
    return NOTES["adoption"] + (f" {NOTES['other']}" if is_joined else "")


# Lists


def listings(report: Report, source: str) -> list[Listing]:
    """Return the source's lists that are not empty."""
    return [
        listing(report, one) for one in LISTS if one.source == source and report[source][one.name]
    ]


def listing(report: Report, one: List) -> Listing:
    source, unit = one.source, one.unit
    rows = report[source][one.name]
    base = report["active"][source][unit]["28"]["now"]
    if base:
        return Listing(source, one.name, one.title, BASES[unit], "", base, ranked(rows, unit))
    why = "addresses are stored hashed" if base is None else f"{BASES[unit]} are not known"
    base = sum(row["events"] for row in report[source][ONE_AN_EVENT[source]])
    return Listing(source, one.name, one.title, "events", why, base, ranked(rows, "events"))


def ranked(rows: list[dict[str, Any]], unit: str) -> list[Row]:
    """Return the rows, the most frequent first; rows that are equal keep their order."""
    return [
        Row(
            readable(row["name"] if "name" in row else row["value"]),
            row[unit],
            ranked(row.get("versions", []), unit),
        )
        for row in sorted(rows, key=lambda row: -row[unit])
    ]


def resources(report: Report) -> str:
    """Say how many resources the deployed hosts have; "" if that is unknown."""
    count = report["core"]["resource_count"]
    if count["max"] is None:
        return ""
    least, median, p90, most = (number(count[name]) for name in ("min", "median", "p90", "max"))
    return f"median {median}, 90% of them at most {p90}, from {least} to {most}"
