"""The report for a terminal."""

import math
import textwrap
from collections.abc import Callable, Iterator
from functools import partial
from itertools import accumulate, pairwise
from typing import NamedTuple

import click

from report.people.outline import (
    NOTES,
    TURNOVER,
    UNKNOWN,
    Active,
    Gap,
    Levels,
    Listing,
    Report,
    Row,
    Series,
    about_adoption,
    active,
    adoption,
    change,
    events,
    fraction,
    has_turnover,
    length,
    listings,
    missing,
    newest_week,
    nothing,
    number,
    percent_change,
    plural,
    readable,
    reasons,
    resources,
    share,
    sources,
)

MIN_WIDTH, MAX_WIDTH = 80, 120
SPACE = "  "  # between columns
MIN_SPARKLINE, MAX_TURNOVER = 9, 24
TOP = 10  # of each list
TOP_REFUSALS = 5
VERSION_COLUMNS = 12
SHORT = {"core": "Apps", "cli": "CLI"}

# Draws the last column of a table, its heading first, in as many columns as are left.
Draw = Callable[[int], list[str]]

heading = partial(click.style, bold=True)
dim = partial(click.style, dim=True)


def mark(drawn: str) -> str:
    return click.style(drawn, fg="cyan") if drawn else ""


class Marks(NamedTuple):
    """The characters that bars and sparklines consist of."""

    levels: str
    parts: str  # fill one column of a bar step by step
    turnover: str  # stayed, new, gone
    zero: str
    no_file: str
    unknown: str
    ellipsis: str


BLOCKS = Marks("▁▂▃▄▅▆▇█", "▏▎▍▌▋▊▉█", "█▒░", "·", "x", UNKNOWN, "…")
ASCII = Marks(":;=+*#%@", "#", "#+-", ".", "x", "-", "...")


def draw_text(report: Report, width: int, encoding: str) -> str:
    """Draw the report for a terminal of that width, with characters that its encoding has."""
    marks = BLOCKS if can_encode("".join(BLOCKS), encoding) else ASCII
    drawing = Drawing(report, min(max(width, MIN_WIDTH), MAX_WIDTH), marks)
    text = "\n".join(line.rstrip() for line in drawing.lines())
    return text.rstrip("\n").replace(UNKNOWN, marks.unknown)


def can_encode(text: str, encoding: str) -> bool:
    try:
        text.encode(encoding)
    except (UnicodeEncodeError, LookupError):
        return False
    return True


class Drawing:
    """The lines of a report, none longer than `width` columns."""

    def __init__(self, report: Report, width: int, marks: Marks) -> None:
        self.report = report
        self.width = width
        self.marks = marks
        self.name_columns = 22 + (width - MIN_WIDTH) // 4
        self.bar_columns = 14 + (width - MIN_WIDTH) // 5

    def lines(self) -> Iterator[str]:
        yield from self.period()
        if rows := active(self.report):
            yield from self.active(rows)
            yield from self.turnover(rows)
            yield from self.adoption(adoption(self.report))
            for source in sources(self.report):
                yield from self.lists(source)
        else:
            yield from [nothing(self.report), ""]
        yield from self.files()

    def period(self) -> Iterator[str]:
        until = self.report["until"]
        whole = f"{until} is unfinished" if self.report["unfinished"] else "whole days"
        text = f"Telemetry of {length(self.report)}, to {until} (UTC, {whole})"
        if days := missing(self.report):
            text += f"; no file of {days}"
        yield from map(heading, textwrap.wrap(text, self.width))
        yield ""

    def active(self, rows: list[Active]) -> Iterator[str]:
        table = [["Active", "28 days", "change", "", "7 days", "change"]]
        for row in rows:
            month, week = row.windows["28"], row.windows["7"]
            numbers = [number(month["now"]), change(month), percent_change(month)]
            table.append([self.unit(row), *numbers, number(week["now"]), change(week)])
        weeks = [row.levels for row in rows]
        yield from self.table(table, partial(self.sparklines, "each week", weeks))
        yield from self.notes(*reasons(self.report), self.legend(weeks), NOTES["active"])

    def unit(self, row: Active) -> str:
        return f"  {SHORT[row.source] if row.is_first else '':<4}  {row.title}"

    def turnover(self, rows: list[Active]) -> Iterator[str]:
        table = [["28 days against the 28 before", *TURNOVER]]
        for row in rows:
            counts = [number(row.windows["28"][name]) for name in TURNOVER]
            table.append([self.unit(row), *counts])
        if has_turnover(self.report):
            yield from self.table(table, partial(self.turnover_bars, rows))
            yield from self.notes(NOTES["turnover"])

    def turnover_bars(self, rows: list[Active], room: int) -> list[str]:
        columns = min(room, MAX_TURNOVER)
        return ["", *(self.turnover_bar(row, columns) for row in rows)]

    def turnover_bar(self, row: Active, columns: int) -> str:
        counts = [row.windows["28"][name] or 0 for name in TURNOVER]
        ends = [0, *(round(columns * fraction(n, sum(counts))) for n in accumulate(counts))]
        sizes = [end - start for start, end in pairwise(ends)]
        return "".join(mark * size for mark, size in zip(self.marks.turnover, sizes, strict=True))

    def adoption(self, series: list[Series]) -> Iterator[str]:
        if not series:
            return
        has_earlier = len(self.report["adoption"]) > 4
        table = [["Versions of deployed hosts", "week", "4 before" * has_earlier, "or newer"]]
        for one in series:
            earlier = share(one.hosts[-5], one.of[-5]) if has_earlier else ""
            or_newer = "" if one.or_newer is None else share(one.or_newer, one.of[-1])
            name = f"  {self.cut(one.name, self.name_columns)}"
            table.append([name, share(one.hosts[-1], one.of[-1]), earlier, or_newer])
        shares = [one.levels for one in series]
        yield from self.table(table, partial(self.sparklines, "share, each week", shares))
        yield from self.notes(
            self.legend(shares), f"{newest_week(self.report)} {about_adoption(series)}"
        )

    def lists(self, source: str) -> Iterator[str]:
        for listing in listings(self.report, source):
            yield from self.list_heading(listing)
            yield from (self.row(row, listing.base) for row in listing.rows[:TOP])
            if (more := len(listing.rows) - TOP) > 0:
                yield f"  and {number(more)} more"
            yield ""
        if source == "core" and (text := resources(self.report)):
            yield from [heading("Resources of deployed hosts"), f"  {text}", ""]
        yield from self.notes(NOTES[source])

    def list_heading(self, listing: Listing) -> Iterator[str]:
        base = f"of {number(listing.base)} {listing.of} in 28 days"
        why = f" ({listing.why_events})" if listing.why_events else ""
        yield from map(heading, textwrap.wrap(f"{listing.title}, {base}{why}", self.width))

    def row(self, row: Row, base: int) -> str:
        name = self.cut(row.label, self.name_columns).ljust(self.name_columns)
        line = f"  {name} {number(row.units):>9}{share(row.units, base):>6} "
        bar = self.bar(fraction(row.units, base))
        behind = self.width - len(line) - self.bar_columns
        padding = " " * (self.bar_columns - len(bar))
        return line + mark(bar) + padding + self.versions(row.versions, base, behind)

    def versions(self, rows: list[Row], base: int, room: int) -> str:
        text = ""
        for row in rows:
            version = f"{SPACE}{self.cut(row.label, VERSION_COLUMNS)} {share(row.units, base)}"
            if len(text + version) > room:
                break
            text += version
        return text

    def files(self) -> Iterator[str]:
        """Say how much was counted, refused and unreadable."""
        yield from textwrap.wrap(events(self.report), self.width)
        refused = self.report["refused"]
        if refused:
            yield heading(f"Refused: {plural(sum(row['events'] for row in refused), 'request')}")
        for row in refused[:TOP_REFUSALS]:
            source = SHORT.get(row["source"], "")
            line = f"  {number(row['events']):>9}  {source:<4}  {readable(row['detail'])}"
            yield self.cut(line, self.width)
        if (more := len(refused) - TOP_REFUSALS) > 0:
            yield f"  and {number(more)} more"
        if lines := self.report["unreadable_lines"]:
            yield f"{plural(lines, 'line')} could not be read."

    # Parts

    def table(self, rows: list[list[str]], draw: Draw) -> Iterator[str]:
        """Align the rows under their heading, which is the first row."""
        columns = [max(map(len, column)) for column in zip(*rows, strict=True)]
        room = self.width - sum(columns) - len(SPACE) * len(columns)
        for at, (row, drawn) in enumerate(zip(rows, draw(room), strict=True)):
            cells = [row[0].ljust(columns[0]), *map(str.rjust, row[1:], columns[1:])]
            line = SPACE.join([*cells, ""])
            yield line + mark(drawn) if at else heading((line + drawn).rstrip())

    def sparklines(self, title: str, rows: list[Levels], room: int) -> list[str]:
        weeks = len(rows[0])
        if not weeks or room < MIN_SPARKLINE:
            return [""] * (len(rows) + 1)
        # If there is no room for all weeks: each n-th, counted from the newest.
        step = math.ceil(weeks / room)
        title = f"one week of {step}" if step > 1 else title
        return [title[:room], *(self.sparkline(levels[::-1][::step][::-1]) for levels in rows)]

    def sparkline(self, levels: Levels) -> str:
        return "".join(map(self.spark, levels))

    def spark(self, level: float | Gap) -> str:
        if isinstance(level, Gap):
            return self.marks.no_file if level is Gap.NO_FILE else self.marks.unknown
        # Zero must not look like a small number.
        return self.marks.levels[math.ceil(level * 8) - 1] if level else self.marks.zero

    def legend(self, rows: list[Levels]) -> str:
        every = {level for levels in rows for level in levels}
        said = [
            *[f"{self.marks.zero} is none"] * (0 in every),
            *[f"{self.marks.no_file} is a week without a file"] * (Gap.NO_FILE in every),
        ]
        return f"Each week: {', '.join(said)}." if said else ""

    def bar(self, filled: float) -> str:
        """Draw a bar in eighths of a column; a value above 0 gets at least one."""
        parts = self.marks.parts
        size = max(round(filled * self.bar_columns * len(parts)), filled > 0)
        whole, rest = divmod(size, len(parts))
        return parts[-1] * whole + (parts[rest - 1] if rest else "")

    def cut(self, text: str, columns: int) -> str:
        if len(text) <= columns:
            return text
        return text[: columns - len(self.marks.ellipsis)] + self.marks.ellipsis

    def notes(self, *notes: str) -> Iterator[str]:
        for note in filter(None, notes):
            yield from map(dim, textwrap.wrap(note, self.width))
        yield ""
