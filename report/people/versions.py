"""The share of deployed hosts on each version: in 28 days to decide by, each week for the speed."""

import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from enum import Enum
from typing import NamedTuple

from files.records import plural
from report.lists import series
from report.people.bars import Bar, Report, bar, weeks_of
from report.people.words import in_ascii, in_brackets, in_letters, number, share

OTHER = "other"
MAX_SERIES = 6
MAX_WEEKS = 26  # of more, the chart shows majors
MIN_PERCENT = 1  # of the hosts or events, for a value to be named
NUMERIC = re.compile(r"(\d{1,9})(?:\.(\d{1,9}|x))?(-pre)?", re.ASCII)

NOTE = (
    "Each host counts with the version it was last seen with: 28 days are for decisions, a week"
    " shows the speed. A version is what a client claims."
)
OTHER_NOTE = "“other” are all other versions: rare ones, and those without a number."


class Audience(Enum):
    """Who reads it; the value is how many units a value needs to be named.

    A page can be published, and strangers choose the values.
    """

    TERMINAL = 1
    PAGE = 3

    def least_events(self, total: int) -> float:
        """Return how many of the events a value needs, where no unit is known."""
        return max(self.value, total * MIN_PERCENT / 100) if self is Audience.PAGE else 1

    def named(self, value: str | None) -> str:
        return in_letters(value) if self is Audience.PAGE else in_ascii(value)


class Version(NamedTuple):
    """A series of versions, the rest of them (`other`), or all of a major."""

    name: str
    kind: str  # how it is drawn
    hosts: str  # in 28 days
    share: str
    week: str  # share in the newest week
    earlier: str  # four weeks before
    bars: tuple[Bar, ...]
    peak: int  # the week of its tallest bar


class Adoption(NamedTuple):
    series: tuple[Version, ...]
    majors: tuple[Version, ...]
    line: str  # of majors
    hosts: tuple[tuple[str, str], ...]  # each week with its hosts
    notes: tuple[str, ...]


def version_key(name: str) -> tuple[float, float, bool]:
    """Return what sorts the names of series and majors; those without a number come first."""
    match = NUMERIC.fullmatch(name)
    if not match:
        return -1, -1, False
    minor = float("inf") if match[2] == "x" else float(match[2] or -1)
    return float(match[1]), minor, not match[3]


def newest_first(names: Iterable[str]) -> list[str]:
    """Return the names that have a number."""
    return sorted(filter(NUMERIC.fullmatch, names), key=version_key, reverse=True)


def major_of(name: str) -> str:
    """Return `5.x` of `5.0`, and `5.x-pre` of `5.0-pre`."""
    match = NUMERIC.fullmatch(name)
    return f"{match[1]}.x{match[3] or ''}" if match else name


def add_up(counts: Mapping[str, int], label: Callable[[str], str]) -> Counter[str]:
    added: Counter[str] = Counter()
    for name, count in counts.items():
        added[label(name)] += count
    return added


def majors(counts: Mapping[str, int], total: int, audience: Audience) -> dict[str, int]:
    """Return the units of each major that is named, the newest first."""
    added = add_up(counts, major_of)
    least = max(audience.value, total * MIN_PERCENT / 100)
    return {name: added[name] for name in newest_first(added) if added[name] >= least}


def line_of_majors(counts: Mapping[str, int], total: int, audience: Audience) -> str:
    found = list(majors(counts, total, audience).items())[:MAX_SERIES]
    return " · ".join(f"{name} {share(count, total) or number(count)}" for name, count in found)


def hosts_of_series(report: Report) -> Counter[str]:
    """Return the hosts of each series in 28 days."""
    rows = report["core"]["versions"]
    return add_up({row["value"]: row["hosts"] for row in rows}, lambda name: series(name) or "")


def newest_major(report: Report, audience: Audience) -> tuple[str, str] | None:
    """Say in two parts how many hosts run the newest major, and how many do not."""
    total = report["active"]["core"]["hosts"]["28"]["now"] or 0
    counts = hosts_of_series(report)
    named = majors(counts, total, audience)
    newest = next((name for name in named if not name.endswith("-pre")), None)
    if newest is None:
        return None
    oldest = version_key(newest)
    on_newest = sum(n for name, n in counts.items() if version_key(major_of(name)) >= oldest)
    said = f" of them {'runs' if on_newest == 1 else 'run'} {newest[:-1]}0 or newer"
    if rest := total - on_newest:
        older = f"{plural(rest, 'host')}{in_brackets(share(rest, total))}"
        said += f"; {older} {'does' if rest == 1 else 'do'} not"
    return share(on_newest, total) or number(on_newest), f"{said}."


def adoption(report: Report, audience: Audience) -> Adoption | None:
    """Return the chart of versions: in each week, and last in 28 days."""
    weeks = report["adoption"]
    totals = [week["hosts"] for week in weeks]
    totals.append(report["active"]["core"]["hosts"]["28"]["now"])
    if not any(totals):
        return None
    each_series = [Counter(week["versions"]) for week in weeks] + [hosts_of_series(report)]
    each_major = [add_up(counts, major_of) for counts in each_series]
    is_by_major = len(weeks) > MAX_WEEKS
    drawn = series_rows(report, each_major if is_by_major else each_series, totals, audience)
    several = {name for name, n in Counter(map(major_of, each_series[-1])).items() if n > 1}
    every = [
        version(report, f"all {name}", "all", [counts[name] for counts in each_major], totals)
        for name in majors(each_major[-1], totals[-1] or 0, audience)
        if name in several and not is_by_major
    ]
    return Adoption(
        tuple(drawn),
        tuple(every),
        line_of_majors(each_major[-1], totals[-1] or 0, audience),
        tuple((week["since"], number(week["hosts"])) for week in weeks),
        (NOTE, OTHER_NOTE) if drawn[-1:] and drawn[-1].name == OTHER else (NOTE,),
    )


def series_rows(
    report: Report, counts: list[Counter[str]], totals: list[int | None], audience: Audience
) -> list[Version]:
    """Return a row for each series that is shown, and one for all others."""
    shown = choose_series(counts, totals, audience)
    drawn = [
        version(report, name, f"shade-{at}", [each[name] for each in counts], totals)
        for at, name in enumerate(shown)
    ]
    rest = [
        (total or 0) - sum(each[name] for name in shown)
        for each, total in zip(counts, totals, strict=True)
    ]
    return [*drawn, version(report, OTHER, OTHER, rest, totals)] if any(rest) else drawn


def choose_series(
    counts: list[Counter[str]], totals: list[int | None], audience: Audience
) -> list[str]:
    """Return the series with the highest peaks, newest first."""
    peaks: dict[str, float] = {}
    for each, total in zip(counts, totals, strict=True):
        for name, count in each.items():
            if count >= audience.value and 100 * count >= MIN_PERCENT * (total or 0):
                peaks[name] = max(peaks.get(name, 0), count / (total or 1))
    common = sorted(newest_first(peaks), key=lambda name: peaks[name], reverse=True)
    return newest_first(common[:MAX_SERIES])


def version(
    report: Report, name: str, kind: str, counts: list[int], totals: list[int | None]
) -> Version:
    *weekly, month = totals
    shares = [share(count, total) for count, total in zip(counts, totals, strict=True)]
    drawn = tuple(map(bar, weeks_of(report), counts, weekly))
    levels = [bar.level for bar in drawn]
    return Version(
        name,
        kind,
        number(None if month is None else counts[-1]),
        shares[-1],
        shares[-2] if weekly else "",
        shares[-6] if len(weekly) > 4 else "",
        drawn,
        levels.index(max(levels)) if levels else 0,
    )
