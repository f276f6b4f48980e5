"""All that the report tells people, decided from its JSON; text and page only draw it."""

from collections.abc import Iterator
from datetime import date, timedelta
from typing import NamedTuple

from files.records import plural
from report.figures import MIN_FILES
from report.lists import UNITS
from report.people.bars import Report, Strip, Time, days_of, strip, weeks_of
from report.people.listing import Listing, listings
from report.people.versions import Adoption, Audience, adoption, newest_major
from report.people.words import (
    MIN_SHARE_BASE,
    UNKNOWN,
    change,
    day_runs,
    in_brackets,
    long_date,
    number,
    percent_change,
    share,
)

SOURCES = {"core": "Apps", "cli": "Command line"}
FROM = {"core": "apps", "cli": "the command line"}
TURNOVER = {"gone": "only before", "stayed": "both", "new": "only now"}
MARK = "*"
MAX_NAMES = 3
MAX_LENGTH = len("999,999")
WHY_NO_ADDRESSES = (
    "Addresses: none was stored on some days, or they were hashed, with a new key each day, or"
    " masked on some days and whole on others. Such days cannot be counted together."
)
LIST_NOTES = {
    "core": "A host counts with what it was last seen with, an address with every browser and"
    " system it came with.",
    "cli": "A project counts with what it was last seen with, and with every command it ran.",
}


class Made(NamedTuple):
    """How the report was made, which its JSON does not say."""

    today: date
    version: str
    has_today: bool = False  # today's file holds events, and the period ends before it


class Window(NamedTuple):
    now: str
    change: str
    percent: str


class Unit(NamedTuple):
    title: str
    is_part: bool  # of the row above
    month: Window
    week: Window
    weeks: Strip
    turnover: tuple[tuple[str, str, int], ...]  # kind, number, size; empty if it is unknown


class Source(NamedTuple):
    title: str
    units: tuple[Unit, ...]


class Active(NamedTuple):
    marks: tuple[str, ...]  # of the columns of figures: `*` where days are missing or not over
    sources: tuple[Source, ...]
    has_turnover: bool
    is_long: bool  # a number is too long for the usual columns
    about_weeks: str
    notes: tuple[str, ...]


class Days(NamedTuple):
    strips: tuple[tuple[str, Strip], ...]
    first: str
    last: str
    refused: str


class Lists(NamedTuple):
    title: str
    note: str
    lists: tuple[Listing, ...]
    resources: str


class Table(NamedTuple):
    """Figures; a row of two cells says why it has none."""

    id: str
    caption: str
    heads: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


class Outline(NamedTuple):
    title: str
    sentences: tuple[tuple[str, str], ...]  # each of an emphasized part and the rest
    period: str
    active: Active | None  # None if there is nothing to report
    days: Days | None
    adoption: Adoption | None
    lists: tuple[Lists, ...]
    week_figures: tuple[Table, ...]
    day_figures: tuple[Table, ...]
    refusals: Table | None
    foot: str


def outline(report: Report, audience: Audience, made: Made) -> Outline:
    """Decide all that is told: words, percentages, ranks, what is rare and what is unknown."""
    until, sources = date.fromisoformat(report["until"]), sources_of(report)
    is_empty = not sources
    return Outline(
        f"{report['framework']}: usage in the 28 days to {long_date(until)}",
        nothing(report, made) if is_empty else sentences(report, sources, audience),
        period(report, audience),
        None if is_empty else active(report, sources),
        None if is_empty else events_each_day(report, sources),
        adoption(report, audience),
        tuple(lists(report, source, audience) for source in sources),
        tuple(
            figure_table(report, source, "weeks", "week of", ("since", "files"))
            for source in sources
            if report["weeks"]
        ),
        tuple(figure_table(report, source, "days", "day", ("date",)) for source in sources),
        refusals(report, audience),
        foot(report, made),
    )


def sources_of(report: Report) -> list[str]:
    """Return the sources that sent anything."""
    return [source for source in SOURCES if report["events"][source] or was_active(report, source)]


def was_active(report: Report, source: str) -> bool:
    units = report["active"][source].values()
    return any(window["now"] != 0 or window["before"] for unit in units for window in unit.values())


# The first sentences


def sentences(
    report: Report, sources: list[str], audience: Audience
) -> tuple[tuple[str, str], ...]:
    source, unit, noun = "core", "hosts", "deployed host"
    if "core" not in sources:
        source, unit, noun = "cli", "projects", "command-line project"
    window, files = report["active"][source][unit]["28"], report["files"]["28"]["now"]
    newest = newest_major(report, audience)
    return (active_sentence(window, noun, files), *([newest] if newest else []))


def active_sentence(window: dict[str, int | None], noun: str, files: int) -> tuple[str, str]:
    now, before = window["now"], window["before"]
    if now is None:
        return "Unknown", f" how many {noun}s were active: no event came with a projectId."
    said = " was active" if now == 1 else " were active"
    if before is None:
        said += f", counted on {files} of 28 days" if files < 28 else ""
    elif now == before:
        said += ", as many as in the 28 days before"
    else:
        difference = f"{abs(now - before):,} {'more' if now > before else 'fewer'}"
        said += f", {difference} than in the 28 days before"
        said += in_brackets(percent_change(now, before))
    return plural(now, noun), f"{said}."


def nothing(report: Report, made: Made) -> tuple[tuple[str, str], ...]:
    """Say why the report is empty, and how it would not be."""
    has_files = len(report["missing_days"]) < days_read(report)
    why = "the events files hold no event" if has_files else "there is no events file"
    why = f": {why} from {report['since']} to {report['until']}."
    if made.has_today:
        why += f" That of today, {made.today}, is not finished: `flask report --until today`"
        why += " counts it."
    return (("Nothing to report", why),)


def days_read(report: Report) -> int:
    until, since = (date.fromisoformat(report[key]) for key in ("until", "since"))
    return max((until - since).days + 1, 56)


def period(report: Report, audience: Audience) -> str:
    """Say which days are counted, and what is missing from them or left out."""
    days = f"UTC days, {report['until']} is not over" if report["unfinished"] else "Whole UTC days"
    said = [f"{days}; weeks from {report['weeks'][0]['since']}." if report["weeks"] else f"{days}."]
    if missing := [date.fromisoformat(day) for day in report["missing_days"]]:
        in_weeks = report["weeks"] and report["missing_days"][-1] >= report["since"]
        is_drawn = audience is Audience.PAGE and in_weeks and sources_of(report)
        how = " (day hatched, week dashed)" if is_drawn else ""
        said.append(f"No file of {day_runs(missing)}{how}.")
    if report["automated"]["events"]:
        said.append(left_out(report))
    if excluded := report["excluded"]["events"]:
        said.append(f"Excluded by option: {plural(excluded, 'event')}.")
    if lines := report["unreadable_lines"]:
        said.append(f"{plural(lines, 'line')} could not be read.")
    return " ".join(said)


def left_out(report: Report) -> str:
    events: int = report["automated"]["events"]
    every = events + report["excluded"]["events"] + sum(report["events"].values())
    of_all = in_brackets(share(events, every))
    return f"Left out: {plural(events, 'event')}{of_all} of programs that name themselves bots."


# The table of active units


def active(report: Report, sources: list[str]) -> Active:
    weeks = weeks_of(report)
    found = tuple(
        Source(
            SOURCES[source],
            tuple(unit_of(report, source, unit, weeks) for unit in report["active"][source]),
        )
        for source in sources
    )
    return Active(
        tuple(mark for days in ("28", "7") for mark in marks(report, days)),
        found,
        any(unit.turnover for source in found for unit in source.units),
        any(len(unit.month.now) > MAX_LENGTH for source in found for unit in source.units),
        about_weeks(report, weeks),
        (
            *about_days(report),
            *about_unknowns(report, sources),
            " ".join(about_units(report, sources)),
        ),
    )


def about_weeks(report: Report, weeks: list[Time]) -> str:
    if not weeks:
        return ""
    said = ["its own scale in each row"]
    lacking = [(at, week.files) for at, week in enumerate(weeks, 1) if week.files < 7]
    if len(lacking) > MAX_NAMES:
        said.append(f"{len(lacking)} weeks lack files")
    else:
        said += [f"week {at} has files of {files} of 7 days" for at, files in lacking]
    said += ["the newest is not over"] * report["unfinished"]
    return f"Each week: {'; '.join(said)}."


def unit_of(report: Report, source: str, unit: str, weeks: list[Time]) -> Unit:
    windows = report["active"][source][unit]
    is_networks = report["masked"] and unit == "addresses"
    title = "networks" if is_networks else UNITS[source][unit]
    counts = [week[source][unit] for week in report["weeks"]]
    parts = [(kind, windows["28"][kind]) for kind in TURNOVER]
    return Unit(
        title,
        unit == "development_addresses",
        window_of(windows["28"]),
        window_of(windows["7"]),
        strip(f"{SOURCES[source]}, {title} each week", weeks, counts),
        () if parts[0][1] is None else tuple((kind, number(n), n) for kind, n in parts),
    )


def window_of(window: dict[str, int | None]) -> Window:
    now, before = window["now"], window["before"]
    return Window(number(now), change(now, before), percent_change(now, before))


def marks(report: Report, days: str) -> tuple[str, str]:
    """Return the marks of the figures of a window, and of its changes."""
    files = report["files"][days]
    is_part = report["unfinished"] or files["now"] < int(days)
    is_compared = can_compare(report, days)
    return MARK * is_part, MARK * (is_compared and (is_part or files["before"] < int(days)))


def can_compare(report: Report, days: str) -> bool:
    files: dict[str, int] = report["files"][days]
    return min(files.values()) >= MIN_FILES[int(days)]


def about_days(report: Report) -> Iterator[str]:
    for days, files in report["files"].items():
        lacking = [
            f"{files[which]} of the {days} days{before}"
            for which, before in (("now", ""), ("before", " before"))
            if files[which] < int(days)
        ]
        if lacking:
            few = "" if can_compare(report, days) else f": too few to compare ({UNKNOWN})"
            yield f"{MARK} Files of {' and of '.join(lacking)}{few}."
    if report["unfinished"]:
        yield f"{MARK} The last day is not over."


def about_unknowns(report: Report, sources: list[str]) -> Iterator[str]:
    """Say why figures are unknown although there are files."""
    for source in sources:
        if is_unknown(report, source, "projects"):
            yield f"{UNKNOWN} No event of {FROM[source]} came with a projectId."
    if any(is_unknown(report, source, "addresses") for source in sources):
        yield f"{UNKNOWN} {WHY_NO_ADDRESSES}"


def is_unknown(report: Report, source: str, unit: str) -> bool:
    windows = report["active"][source][unit]
    figures = [window["now"] for window in windows.values()]
    figures += [windows[days]["before"] for days in windows if can_compare(report, days)]
    figures += [week[source][unit] for week in report["weeks"] if week["files"]]
    return None in figures


def about_units(report: Report, sources: list[str]) -> Iterator[str]:
    """Say what the units are not, and of how many events they are known."""
    said = "Rows overlap: do not add them. A host is not a customer, an address is not a person"
    if can_compare(report, "28"):
        earlier = date.fromisoformat(report["until"]) - timedelta(days=55)
        said += (
            f", and “only now” includes who was active before {long_date(earlier)} and came back"
        )
    yield f"{said}."
    if report["masked"]:
        yield "Addresses were stored masked, so networks are counted: /24 of IPv4, /48 of IPv6."
    covered = [
        f"{said} of the events of {FROM[source]}"
        for source in sources
        if report["with_project"][source]
        and (said := share(report["with_project"][source], report["events"][source]))
    ]
    if covered:
        yield f"A projectId came with {' and with '.join(covered)}."
    only, projects = report["projects_in_development_only"], report["active"]["core"]["projects"]
    if only is not None and (total := projects["28"]["now"]):
        yield (
            f"{only:,} of {plural(total, 'project')} of apps{in_brackets(share(only, total))}"
            f" {'was' if only == 1 else 'were'} seen in development only."
        )


# Days, lists and figures


def events_each_day(report: Report, sources: list[str]) -> Days:
    days, times = report["days"], days_of(report)
    counts = {SOURCES[source]: [day[source]["events"] for day in days] for source in sources}
    strips = [(name, strip(f"{name}, events each day", times, of)) for name, of in counts.items()]
    refused = [day["refused"] for day in days]
    if any(refused):
        known = [time._replace(files=1) for time in times]
        strips.append(("Refused", strip("Refused requests each day", known, refused)))
    return Days(tuple(strips), days[0]["date"], days[-1]["date"], about_refused(days))


def about_refused(days: list[Report]) -> str:
    newest, before = days[-7:], days[-35:-7]
    said = f"Refused: {refused_of(newest)} in the last {plural(len(newest), 'day')}"
    if before:
        said += f"; {refused_of(before)} in the {plural(len(before), 'day')} before"
    return f"{said}."


def refused_of(days: list[Report]) -> str:
    refused = sum(day["refused"] for day in days)
    every = refused + sum(day[source]["events"] or 0 for day in days for source in SOURCES)
    return f"{refused:,} of {plural(every, 'request')}{in_brackets(share(refused, every, 1))}"


def lists(report: Report, source: str, audience: Audience) -> Lists:
    return Lists(
        f"{SOURCES[source]}: with what, in 28 days",
        LIST_NOTES[source],
        listings(report, source, audience),
        resources(report, audience) if source == "core" else "",
    )


def resources(report: Report, audience: Audience) -> str:
    """Say how many resources apps have; the page is silent where hosts are few."""
    count, hosts = report["core"]["resource_count"], report["active"]["core"]["hosts"]["28"]["now"]
    if count["median"] is None:
        return ""
    low, median, high = (number(count[name]) for name in ("p10", "median", "p90"))
    if (hosts or 0) < MIN_SHARE_BASE:
        return f"median {median}" if audience is Audience.TERMINAL else ""
    return f"median {median}; 80% of the deployed hosts have from {low} to {high}"


def figure_table(
    report: Report, source: str, kind: str, head: str, columns: tuple[str, ...]
) -> Table:
    """Return a table of the weeks or days, by their first column; no file is said."""
    units = ("events", *report["active"][source])
    rows = []
    for row in report[kind]:
        cells = [row[source][unit] for unit in units] + [row[name] for name in columns[1:]]
        is_missing = row[source]["events"] is None
        rows.append((row[columns[0]], *(["no file"] if is_missing else map(number, cells))))
    heads = (head, *(UNITS[source].get(unit, unit) for unit in units), *columns[1:])
    caption = f"{SOURCES[source]}, each {kind.removesuffix('s')}"
    return Table(f"{source}-{kind}", caption, heads, tuple(rows))


def refusals(report: Report, audience: Audience) -> Table | None:
    rows, total = report["refused"], sum(row["events"] for row in report["refused"])
    named = [row for row in rows if row["events"] >= audience.least_events(total)]
    shown = [
        (audience.named(row["detail"]), SOURCES.get(row["source"], "–"), number(row["events"]))
        for row in named
    ]
    if rest := total - sum(row["events"] for row in named):
        shown.append(("rare", "", number(rest)))
    caption = f"Refused: {plural(total, 'request')}"
    return Table("refused", caption, ("reason", "from", "requests"), tuple(shown)) if rows else None


def foot(report: Report, made: Made) -> str:
    days = days_read(report)
    read = f"from the files of {days - len(report['missing_days']):,} of {plural(days, 'day')}"
    return f"Made on {made.today}, {read}, by flask report {made.version}."
