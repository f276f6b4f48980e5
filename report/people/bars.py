"""Bars: a figure of each week or day, or why it has none."""

from collections.abc import Sequence
from typing import Any, NamedTuple

from report.people.words import number

Report = dict[str, Any]


class Bar(NamedTuple):
    """`kind` is count, part (of a time that lacks files or is not over), zero, missing, unknown."""

    level: float  # from 0 to 1
    kind: str
    title: str


class Time(NamedTuple):
    """A week or a day."""

    name: str
    files: int
    is_part: bool


class Strip(NamedTuple):
    label: str
    bars: tuple[Bar, ...]
    first: str
    newest: str
    most: str


def weeks_of(report: Report) -> list[Time]:
    weeks = report["weeks"]
    return [
        Time(
            f"{week['since']} to {week['until']}",
            week["files"],
            week["files"] < 7 or (report["unfinished"] and week is weeks[-1]),
        )
        for week in weeks
    ]


def days_of(report: Report) -> list[Time]:
    days = report["days"]
    return [
        Time(
            day["date"],
            int(day["core"]["events"] is not None),
            bool(report["unfinished"] and day is days[-1]),
        )
        for day in days
    ]


def strip(name: str, times: Sequence[Time], counts: Sequence[int | None]) -> Strip:
    """Draw each count as a part of the greatest."""
    most = max((count for count in counts if count), default=0)
    of_each = [most] * len(counts)
    first, newest = (number(counts[at]) if counts else "" for at in (0, -1))
    label = f"{name}: {first} in the first, {newest} in the newest"
    return Strip(label, tuple(map(bar, times, counts, of_each)), first, newest, number(most))


def bar(time: Time, count: int | None, of: int | None) -> Bar:
    if not time.files:
        return Bar(0, "missing", f"{time.name}: no file")
    if count is None:
        return Bar(0, "unknown", f"{time.name}: unknown")
    kind = "zero" if not count else "part" if time.is_part else "count"
    return Bar(count / of if of else 0, kind, f"{time.name}: {count:,}")
