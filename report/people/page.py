"""The report as a page: one file without a script, for any browser, phone or printer."""

from itertools import accumulate, pairwise
from pathlib import Path
from typing import NamedTuple

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from report.people import outline
from report.people.outline import Active, Gap, Report, Series

TOP, MAX_ROWS = 10, 100  # rows of a list: shown at first, and after unfolding
TOP_VERSIONS = 4
SHADES = 6
MAX_CHARACTERS, SHORT_CHARACTERS = 60, 12  # of a value
MIN_BAR = 2.0  # percent, so that a small number is still visible
LABEL_GAP = 8.0  # percent of the chart's height, enough for a line of text

TEMPLATES = Environment(
    loader=FileSystemLoader(Path(__file__).with_name("templates")),
    autoescape=True,
    trim_blocks=True,
    lstrip_blocks=True,
    undefined=StrictUndefined,
)


class Bar(NamedTuple):
    """A rectangle in an SVG drawing, in percent of it; `kind` is its CSS class."""

    x: float
    y: float
    width: float
    height: float
    kind: str
    title: str = ""


class Label(NamedTuple):
    """The name of a series beside the chart, its middle at `y` percent."""

    y: float
    kind: str
    name: str
    share: str


def draw_page(report: Report) -> str:
    """Draw the report as an HTML document that can be published."""
    series = outline.adoption(report)
    page = TEMPLATES.get_template("report.html").render(
        report=report,
        outline=outline,
        series=series,
        columns=adoption_columns(report, series),
        labels=adoption_labels(series),
        week_bars=week_bars,
        turnover_bars=turnover_bars,
        kinds=[*(f"shade-{shade}" for shade in range(SHADES)), "older", "other"],
        cut=cut,
        short=SHORT_CHARACTERS,
        signed=signed,
        top=TOP,
        most_rows=MAX_ROWS,
        top_versions=TOP_VERSIONS,
    )
    return page.lstrip()  # the template's macros leave empty lines


def places(report: Report) -> list[tuple[float, float, str]]:
    """Return left edge, width and name of each week's column."""
    step = 100 / max(len(report["weeks"]), 1)
    space = min(step * 0.14, 0.8)
    return [
        (at * step + space / 2, step - space, f"{week['since']} to {week['until']}")
        for at, week in enumerate(report["weeks"])
    ]


def week_bars(report: Report, row: Active) -> list[Bar]:
    """Draw a bar for each week; zero, a missing file and an unknown number look different."""
    bars = []
    for (x, width, week), count, level in zip(places(report), row.weeks, row.levels, strict=True):
        if isinstance(level, Gap):
            y, height = (0.0, 100.0) if level is Gap.NO_FILE else (45.0, 10.0)
            bars.append(Bar(x, y, width, height, level.name.lower(), f"{week}: {level.value}"))
        else:
            height = max(100 * level, MIN_BAR)
            title = f"{week}: {outline.number(count)}"
            bars.append(Bar(x, 100 - height, width, height, "count" if level else "zero", title))
    return bars


def turnover_bars(row: Active) -> list[Bar]:
    """Draw stayed, new and gone as parts of their sum."""
    counts = [row.windows["28"][name] or 0 for name in outline.TURNOVER]
    ends = [100 * outline.fraction(end, sum(counts)) for end in accumulate(counts, initial=0)]
    return [
        Bar(start, 0, end - start, 100, name)
        for name, start, end in zip(outline.TURNOVER, ends, ends[1:], strict=False)
    ]


def adoption_columns(report: Report, series: list[Series]) -> list[Bar]:
    """Draw the share of each series in each week, the newest at the top."""
    bars = []
    for at, (x, width, week) in enumerate(places(report)):
        bottom = 0.0
        for one, kind in zip(series, kinds(series), strict=True):
            hosts, level = one.hosts[at], one.levels[at]
            if isinstance(level, Gap):
                bars.append(Bar(x, 0, width, 100, "no_file", f"{week}: {level.value}"))
                break
            if hosts:
                share = outline.share(hosts, one.of[at])
                title = f"{week}: {one.name}, {outline.number(hosts)} hosts ({share})"
                bars.append(Bar(x, bottom, width, 100 * level, kind, title))
                bottom += 100 * level
    return bars


def kinds(series: list[Series]) -> list[str]:
    """Return the CSS class of each series: shades from dark to light, or its own if joined."""
    own = sum(one.or_newer is not None for one in series)
    shades = [f"shade-{at * (SHADES - 1) // max(own - 1, 1)}" for at in range(own)]
    return [*shades, *(one.name for one in series[own:])]


def adoption_labels(series: list[Series]) -> list[Label]:
    """Place each label beside its part of the newest week, without overlaps."""
    ends = [*accumulate((shown_level(one) for one in series), initial=0.0)]
    middles = [50 * (start + end) for start, end in pairwise(ends)]
    return [
        Label(y, kind, one.name, outline.share(one.hosts[-1], one.of[-1]))
        for y, kind, one in zip(spread(middles), kinds(series), series, strict=True)
    ]


def shown_level(series: Series) -> float:
    level = series.levels[-1]
    return 0.0 if isinstance(level, Gap) else level


def spread(middles: list[float]) -> list[float]:
    """Move ascending middles until they are LABEL_GAP apart and inside the chart."""
    moved: list[float] = []
    for middle in middles:
        least = moved[-1] + LABEL_GAP if moved else LABEL_GAP / 2
        moved.append(max(middle, least))
    most = 100 - LABEL_GAP / 2
    for at in reversed(range(len(moved))):
        moved[at] = min(moved[at], most)
        most = moved[at] - LABEL_GAP
    return moved


def cut(text: str, length: int = MAX_CHARACTERS) -> str:
    return text if len(text) <= length else f"{text[: length - 1]}…"


def signed(text: str) -> str:
    """Return a change with a minus sign as wide as a plus."""
    return text.replace("-", "−")
