"""The report as a page: one file without a script, for any browser, phone or printer."""

from itertools import accumulate, pairwise
from pathlib import Path
from typing import NamedTuple

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from report import outline
from report.outline import Active, Gap, Report, Series

TOP, MOST_ROWS = 10, 100  # rows of a list: shown at once, and with those that are folded
TOP_VERSIONS = 4
SHADES = 6
MOST_CHARACTERS, SHORT_CHARACTERS = 60, 12  # of a value
LEAST_BAR = 2.0  # percent: what is not nothing can be seen
LABEL_GAP = 8.0  # percent of the chart's height that a label takes

TEMPLATES = Environment(
    loader=FileSystemLoader(Path(__file__).with_name("templates")),
    autoescape=True,
    trim_blocks=True,
    lstrip_blocks=True,
    undefined=StrictUndefined,
)


class Bar(NamedTuple):
    """A rectangle of a drawing, its place in percent; `kind` is its class."""

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
    return TEMPLATES.get_template("report.html").render(
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
        most_rows=MOST_ROWS,
        top_versions=TOP_VERSIONS,
    )


def places(report: Report) -> list[tuple[float, float, str]]:
    """Return left edge, width and name of each week's column."""
    step = 100 / max(len(report["weeks"]), 1)
    space = min(step * 0.14, 0.8)
    return [
        (at * step + space / 2, step - space, f"{week['since']} to {week['until']}")
        for at, week in enumerate(report["weeks"])
    ]


def week_bars(report: Report, row: Active) -> list[Bar]:
    """Draw a bar for each week; nothing, no file and unknown look different."""
    bars = []
    for (x, width, week), count, level in zip(places(report), row.weeks, row.levels, strict=True):
        if isinstance(level, Gap):
            y, height = (0.0, 100.0) if level is Gap.NO_FILE else (45.0, 10.0)
            bars.append(Bar(x, y, width, height, level.name.lower(), f"{week}: {level.value}"))
        else:
            height = max(100 * level, LEAST_BAR)
            title = f"{week}: {outline.number(count)}"
            bars.append(Bar(x, 100 - height, width, height, "count" if level else "zero", title))
    return bars


def turnover_bars(row: Active) -> list[Bar]:
    """Draw who stayed, is new and is gone as parts of all of them."""
    counts = [row.windows["28"][name] or 0 for name in outline.TURNOVER]
    ends = [100 * outline.fraction(end, sum(counts)) for end in accumulate(counts, initial=0)]
    return [
        Bar(start, 0, end - start, 100, name)
        for name, start, end in zip(outline.TURNOVER, ends, ends[1:], strict=False)
    ]


def adoption_columns(report: Report, series: list[Series]) -> list[Bar]:
    """Draw each week's hosts, the newest series on top."""
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
    """Return the class of each series: shades from dark to light, but for the joined ones."""
    own = sum(one.or_newer is not None for one in series)
    shades = [f"shade-{at * (SHADES - 1) // max(own - 1, 1)}" for at in range(own)]
    return [*shades, *(one.name for one in series[own:])]


def adoption_labels(series: list[Series]) -> list[Label]:
    """Put each label beside its part of the newest week, or as near as the others let it."""
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
    """Move middles, which ascend, as little as it takes to be LABEL_GAP apart and inside."""
    moved: list[float] = []
    for middle in middles:
        least = moved[-1] + LABEL_GAP if moved else LABEL_GAP / 2
        moved.append(max(middle, least))
    most = 100 - LABEL_GAP / 2
    for at in reversed(range(len(moved))):
        moved[at] = min(moved[at], most)
        most = moved[at] - LABEL_GAP
    return moved


def cut(text: str, length: int = MOST_CHARACTERS) -> str:
    return text if len(text) <= length else f"{text[: length - 1]}…"


def signed(text: str) -> str:
    """Return a change with a minus as wide as a plus."""
    return text.replace("-", "−")
