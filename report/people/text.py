"""The report for a terminal."""

import math
import textwrap
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from itertools import accumulate, pairwise

import click

from report.people.bars import Bar, Report
from report.people.listing import Row
from report.people.outline import TURNOVER, Active, Days, Lists, Made, Outline, outline
from report.people.versions import Adoption, Audience
from report.people.words import UNKNOWN, cut

MIN_WIDTH, MAX_WIDTH = 80, 120
GAP = "  "  # between columns
MIN_SPARKLINE, MAX_TURNOVER, BAR_COLUMNS, MAX_PART = 9, 24, 14, 20
ROW_COLUMNS = 2 + 2 + 9 + 2 + 4 + 2 + BAR_COLUMNS  # of a list's row, without its name
INDENT = " " * 6
TOP, TOP_REFUSALS = 10, 5
LEVELS, EIGHTHS = "▁▂▃▄▅▆▇█", "▏▎▍▌▋▊▉█"
TURNOVER_MARKS = "░█▒"
NO_BAR = {"zero": "·", "missing": "x", "unknown": UNKNOWN}
MEANINGS = {"zero": "none", "missing": "no file", "unknown": "unknown"}
SHORT = {"Command line": "CLI"}

# Draws the last column of a table, its heading first, in as many columns as are left.
Draw = Callable[[int], list[str]]

heading = partial(click.style, bold=True)
dim = partial(click.style, dim=True)


def draw_text(report: Report, columns: int, made: Made) -> str:
    width = min(max(columns, MIN_WIDTH), MAX_WIDTH)
    lines = lines_of(outline(report, Audience.TERMINAL, made), width)
    return "\n".join(line.rstrip() for line in lines).rstrip("\n")


def lines_of(told: Outline, width: int) -> Iterator[str]:
    yield heading(told.title)
    yield from textwrap.wrap(" ".join(map("".join, told.sentences)), width)
    yield from notes([told.period], width)
    if told.active:
        yield from draw_active(told.active, width)
    if told.adoption:
        yield from versions(told.adoption, width)
    if told.days:
        yield from days(told.days, width)
    for group in told.lists:
        yield from draw_lists(group, width)
    if told.refusals:
        yield heading(told.refusals.caption)
        for reason, source, count in told.refusals.rows[:TOP_REFUSALS]:
            row = f"  {count:>9}  {SHORT.get(source, source):<7}  {reason}"
            yield from textwrap.wrap(row, width, subsequent_indent=" " * 20, drop_whitespace=False)
        yield from ["", *more(len(told.refusals.rows) - TOP_REFUSALS)]
    yield from notes([told.foot], width)


def draw_active(told: Active, width: int) -> Iterator[str]:
    month, change, week, change_of_week = told.marks
    heads = [f"28 days{month}", f"change{change}", "", f"7 days{week}", f"change{change_of_week}"]
    table, turnover = [["Active", *heads]], [["28 days and the 28 before", *TURNOVER.values()]]
    units = []
    for source in told.sources:
        name = SHORT.get(source.title, source.title)
        for unit in source.units:
            title = f"  {name:<4}  {' ' * unit.is_part}{unit.title}"
            table.append([title, *unit.month, unit.week.now, unit.week.change])
            turnover.append([title, *([count for _, count, _ in unit.turnover] or [UNKNOWN] * 3)])
            units.append(unit)
            name = ""
    strips = [unit.weeks.bars for unit in units]
    yield from align(table, partial(sparklines, "week", strips), width)
    yield from notes([f"{told.about_weeks} {legend(strips)}".strip(), *told.notes], width)
    if told.has_turnover:
        parts = [[size for _, _, size in unit.turnover] for unit in units]
        yield from align(
            turnover, lambda room: ["", *(turnover_bar(n, room) for n in parts)], width
        )
        yield ""


def turnover_bar(sizes: list[int], room: int) -> str:
    columns = min(room, MAX_TURNOVER)
    ends = [0, *(round(columns * end / (sum(sizes) or 1)) for end in accumulate(sizes))]
    return "".join(
        mark * (end - start)
        for mark, (start, end) in zip(TURNOVER_MARKS, pairwise(ends), strict=False)
    )


def versions(told: Adoption, width: int) -> Iterator[str]:
    rows = [*told.series, *told.majors]
    has_earlier = any(row.earlier for row in rows)
    table = [["Versions of deployed hosts", "28 days", "", "week", "4 weeks before" * has_earlier]]
    table += [[f"  {row.name}", row.hosts, row.share, row.week, row.earlier] for row in rows]
    strips = [row.bars for row in told.series]
    strips += [()] * len(told.majors)
    yield from align(table, partial(sparklines, "week", strips), width)
    yield from notes([legend(strips), *told.notes], width)


def days(told: Days, width: int) -> Iterator[str]:
    table = [[f"Events each day to {told.last}", "most"]]
    table += [[f"  {name}", strip.most] for name, strip in told.strips]
    strips = [strip.bars for _, strip in told.strips]
    yield from align(table, partial(sparklines, "day", strips), width)
    yield from notes([legend(strips), told.refused], width)


def draw_lists(group: Lists, width: int) -> Iterator[str]:
    for one in group.lists:
        yield from map(heading, textwrap.wrap(f"{one.title}, {one.base}", width))
        shown = one.rows[:TOP]
        columns = min(max(len(row.name) for row in shown), width - ROW_COLUMNS) if shown else 0
        for row in shown:
            yield from list_row(row, columns, width)
        yield from more(len(one.rows) - TOP)
        yield from notes(one.notes, width)
    if group.resources:
        yield from [heading("Resources of deployed hosts"), f"  {group.resources}", ""]
    yield from notes([group.note], width)


def list_row(row: Row, columns: int, width: int) -> Iterator[str]:
    name = cut(row.name, columns).ljust(columns)
    yield GAP.join(["", name, f"{row.units:>9}", f"{row.share:>4}", colour(draw_bar(row.level))])
    parts = [f"{cut(part.name, MAX_PART)} {part.share or part.units}" for part in row.parts]
    text = " · ".join([*parts, row.more] if row.more else parts)
    text = f"{row.majors}: {text}" if row.majors else text
    yield from textwrap.wrap(text, width, initial_indent=INDENT, subsequent_indent=INDENT)


# Parts


def align(rows: list[list[str]], draw: Draw, width: int) -> Iterator[str]:
    """Align the rows under their heading, which is the first row, and draw behind them."""
    columns = [max(map(len, column)) for column in zip(*rows, strict=True)]
    room = width - sum(columns) - len(GAP) * len(columns)
    for at, (row, drawn) in enumerate(zip(rows, draw(room), strict=True)):
        line = GAP.join([row[0].ljust(columns[0]), *map(str.rjust, row[1:], columns[1:]), ""])
        yield line + colour(drawn) if at else heading((line + drawn).rstrip())


def sparklines(times: str, strips: Sequence[tuple[Bar, ...]], room: int) -> list[str]:
    """Draw as many of the newest bars as there is room for."""
    count = max(map(len, strips))
    if room < MIN_SPARKLINE or not count:
        return [""] * (1 + len(strips))
    title = f"each {times}" if count <= room else f"last {room} {times}s"
    return [title[:room], *("".join(map(spark, bars[-room:])) for bars in strips)]


def spark(bar: Bar) -> str:
    return NO_BAR.get(bar.kind) or LEVELS[max(math.ceil(bar.level * 8), 1) - 1]


def legend(strips: Sequence[tuple[Bar, ...]]) -> str:
    kinds = {bar.kind for bars in strips for bar in bars}
    said = [f"{mark} {MEANINGS[kind]}" for kind, mark in NO_BAR.items() if kind in kinds]
    return f"Bars: {', '.join(said)}." if said else ""


def draw_bar(level: float) -> str:
    """Draw a bar in eighths of a column; a level above 0 gets at least one."""
    whole, rest = divmod(max(round(level * BAR_COLUMNS * 8), level > 0), 8)
    return "█" * whole + (EIGHTHS[rest - 1] if rest else "")


def colour(drawn: str) -> str:
    return click.style(drawn, fg="cyan") if drawn else ""


def more(count: int) -> list[str]:
    return [f"  and {count:,} more"] if count > 0 else []


def notes(texts: Iterable[str], width: int) -> Iterator[str]:
    for text in filter(None, texts):
        yield from map(dim, textwrap.wrap(text, width))
    yield ""
