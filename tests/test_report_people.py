"""The report for people: its numbers against the JSON, the page in a real Chromium."""

import functools
import json
import re
from collections.abc import Callable, Iterator
from datetime import date, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import click
import pytest
from conftest import NOON
from flask import Flask

from app import create_app
from bench.world import World, make_files
from npm import MODULES, install_packages
from plain_report import LISTS
from random_folders import write_folders
from records import TODAY, UNTIL, cli, core, write_days
from report.people import Made, draw_page, draw_text
from settings import read_settings

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

Report = dict[str, Any]
MADE = Made(TODAY, "1.2.3")

HOSTILE = [
    "<script>alert(1)</script>",
    "<img src='http://127.0.0.1:1/' onerror=\"alert(1)\">",
    "</style></title>{{ 7 * 7 }}{% raw %}&amp;",
    "W" * 256,
    "\u202eright to left\u2066",
    "\u05e9\u05dc\u05d5\u05dd",
    "\u4e2d\u6587" * 40,
    "Z" + "\u0301\u0489" * 100,
    "zero\u200bwidth\u00ad\x1b[1m\x7f\x9b",
    "\U0001f600",
    "unknown",
    " a  b ",
    "9" * 200,
]
# What the hosts, projects and addresses of these worlds are made of.
SECRETS = re.compile(r"secret|app\d+\.example|project-|\b10\.0\.\d")
HUGE, FACTOR = "huge", 70_001  # as "8 weeks", but each number is so many times as great


# Reports of many kinds.


class Case(NamedTuple):
    write: Callable[[Path], object]
    days: int = 56
    until: date = UNTIL


def write_world(directory: Path, days: int = 56, events: int = 4000, apps: int = 200) -> None:
    """Write believable events, with a day missing; two days before the last it was Tuesday."""
    make_files(directory, World(days, UNTIL, apps, 400), events, skipped=UNTIL - timedelta(days=9))


def write_hostile(directory: Path) -> None:
    """Write events with every value hostile; four of each kind, so that the page shows it."""
    events = []
    for at, value in enumerate([*HOSTILE, None]):
        agent = dict.fromkeys(["browser", "browser_version", "os", "os_version"], value)
        names = [{"name": value, "version": other} for other in HOSTILE]
        for n in range(4 * at, 4 * at + 4):
            secret = {"hostname": f"{n}.secret.com", "projectId": f"secret-{n}"}
            events.append(core(ip=f"10.0.0.{n}", version=value, **agent, **secret))
            others = dict.fromkeys(["projectFramework", "nodeEnv", "os", "nodeVersion"], value)
            events.append(cli(f"secret-{n}", command=value, packages=names, **others))
    write_days(directory, {0: events, 60: []})


def write_one_source(source: str) -> Callable[[Path], None]:
    def write(directory: Path) -> None:
        apps = [core(f"{n}.secret.com", version=f"4.{n % 9}.0") for n in range(30)]
        events = apps if source == "core" else [cli(f"secret-{n}") for n in range(30)]
        write_days(directory, dict.fromkeys(range(56), events))

    return write


def write_random(seed: int) -> Callable[[Path], object]:
    return lambda directory: write_folders(directory, seed)


CASES = {
    "8 weeks": Case(write_world),
    "a year": Case(lambda directory: write_world(directory, 364, 4000, 60), 364),
    "apps only": Case(write_one_source("core")),
    "command line only": Case(write_one_source("cli")),
    "unfinished day": Case(lambda directory: write_days(directory, {-1: [core()] * 9}), 1, TODAY),
    "no events": Case(lambda directory: write_days(directory, {0: [], 3: []})),
    "hostile": Case(write_hostile, 14),
    **{f"random {seed}": Case(write_random(seed)) for seed in range(1, 4)},
}


def times(factor: int, value: Any) -> Any:
    """Multiply every number of a report, but of files."""
    if isinstance(value, dict):
        return {key: item if key == "files" else times(factor, item) for key, item in value.items()}
    if isinstance(value, list):
        return [times(factor, item) for item in value]
    return value * factor if type(value) is int else value


@pytest.fixture(scope="module")
def report_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Report]:
    """Count the files of a case, by the command; each once."""

    @functools.cache
    def count(name: str) -> Report:
        if name == HUGE:
            return dict(times(FACTOR, count("8 weeks")))
        case = CASES[name]
        directory = tmp_path_factory.mktemp("data")
        case.write(directory)
        write_refusals(directory / f"refused-{case.until}.jsonl")
        app = create_app(read_settings({"TELEMETRY_DATA_DIR": str(directory)}), clock=lambda: NOON)
        since = case.until - timedelta(days=case.days - 1)
        directories = [str(path) for path in directory.iterdir() if path.is_dir()]
        arguments = [f"--since={since}", f"--until={case.until}", "--format=json"]
        run = app.test_cli_runner().invoke
        report: Report = json.loads(run(args=["report", *directories, *arguments]).stdout)
        app.extensions["collector"].close()
        return report

    return count


def write_refusals(path: Path) -> None:
    refusals = [{"source": "cli", "field": value, "detail": value} for value in [*HOSTILE, None]]
    lines = [json.dumps(refusal) for refusal in refusals for _ in range(4)]
    path.write_text("\n".join([*lines, lines[0], "torn", ""]))


# The page's numbers.

UNFOLD = """for (const part of document.querySelectorAll("details")) {
  part.open = true;
  part.hidden = false;
}"""


@pytest.fixture(scope="module")
def show(
    browser: "Browser",
    report_of: Callable[[str], Report],
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Callable[[str], "Page"]]:
    """Show the page of a case, from a file, with everything unfolded; each is loaded once."""
    context = browser.new_context(is_mobile=True)  # the page has to say that it fits small screens

    @functools.cache
    def open_page(name: str) -> "Page":
        path = tmp_path_factory.mktemp("page") / "report.html"
        path.write_text(draw_page(report_of(name), MADE), encoding="utf-8")
        page = context.new_page()
        page.goto(path.as_uri())
        return page

    def show(name: str) -> "Page":
        tab = open_page(name)
        set_screen(tab, 1200)
        tab.evaluate(UNFOLD)
        return tab

    yield show
    context.close()


def set_screen(tab: "Page", width: int, scheme: Any = "light") -> None:
    tab.set_viewport_size({"width": width, "height": 900})
    tab.emulate_media(media="screen", color_scheme=scheme)


# The rows of all tables, by the id of what they are in: the words of each cell.
READ_TABLES = """(() => {
  const tables = {};
  for (const row of document.querySelectorAll("tbody tr:not(.source, .parts-of)")) {
    const cells = [...row.cells].filter(cell => !cell.matches(".bar, .drawn"));
    (tables[row.closest("[id]").id] ??= []).push(
      cells.map(cell => cell.innerText.trim().split(/\\s+/).join(" ")));
  }
  return tables;
})()"""
# Class, height and title of the bars in each strip, by its label.
READ_STRIPS = """Object.fromEntries([...document.querySelectorAll(".bars")].map(strip => [
  strip.getAttribute("aria-label").split(":")[0],
  [...strip.children].map(bar => [bar.className, bar.style.height, bar.title])]))"""
# Title and pixels of the parts of each column of the chart.
READ_COLUMNS = """[...document.querySelectorAll(".stack")].map(column =>
  [...column.children].map(part => [part.title, part.getBoundingClientRect().height]))"""
NAMES = {"core": "Apps", "cli": "Command line"}
TITLES = {"hosts": "deployed hosts", "development_addresses": "in development"}


def sources(report: Report) -> list[str]:
    return [source for source in NAMES if report["events"][source]]


def title_of(report: Report, unit: str) -> str:
    return "networks" if report["masked"] and unit == "addresses" else TITLES.get(unit, unit)


def number(cell: str) -> int | None:
    """Return the number that a cell shows."""
    return None if cell == "–" else int(re.sub("[,+]", "", cell).replace("−", "-"))


@pytest.mark.slow
@pytest.mark.parametrize("name", [*CASES, HUGE])
def test_every_number_and_every_bar_of_the_page_is_that_of_the_json(
    show: Callable[[str], "Page"], report_of: Callable[[str], Report], name: str
) -> None:
    report, tab = report_of(name), show(name)
    tables, strips, columns = map(tab.evaluate, (READ_TABLES, READ_STRIPS, READ_COLUMNS))
    text = " ".join(tab.evaluate("document.body.innerText").split())

    check_active(report, tables.get("active", []))
    for source in sources(report):
        for list_name, unit in LISTS[source].items():
            check_list(report, source, list_name, unit, tables.get(f"{source}-{list_name}", []))
        for unit in report["active"][source]:
            title = f"{NAMES[source]}, {title_of(report, unit)} each week"
            check_bars(strips.get(title, []), report["weeks"], source, unit)
        check_bars(strips[f"{NAMES[source]}, events each day"], report["days"], source, "events")
        for kind, first, *last in (("days", "date"), ("weeks", "since", "files")):
            rows = tables.get(f"{source}-{kind}", [])
            check_figures(rows, report[kind], source, first, last)
    check_versions(report, tables.get("versions", []), columns)
    assert (f"{report['until']} is not over" in text) == report["unfinished"]
    assert ("Nothing to report: " in text) == (not sources(report))
    unreadable = report["unreadable_lines"]
    assert (f"{unreadable:,} line" in text) == (unreadable > 0)
    assert f"Refused: {sum(row['events'] for row in report['refused']):,} request" in text


def check_active(report: Report, rows: list[list[str]]) -> None:
    expected = []
    for source in sources(report):
        for unit, lengths in report["active"][source].items():
            cells: list[Any] = [title_of(report, unit)]
            for window in (lengths["28"], lengths["7"]):
                now, before = window["now"], window["before"]
                cells += [now, None if now is None or before is None else now - before]
            turnover = [lengths["28"][key] for key in ("gone", "stayed", "new")]
            expected.append(cells + (turnover if turnover[0] is not None else []))
    shown = []
    for title, *cells in rows:
        turnover = re.findall(r": ([\d,]+)", cells.pop()) if len(cells) > 6 else []
        figures = [cells[0], cells[1], cells[3], cells[4], *turnover]
        shown.append([title.removeprefix("of them "), *map(number, figures)])
    assert shown == expected


def check_list(report: Report, source: str, name: str, unit: str, rows: list[list[str]]) -> None:
    """Hold a list to the JSON: the most frequent values that enough have, with their numbers."""
    least = 3
    if not report["active"][source][unit]["28"]["now"]:
        unit, every = "events", report[source]["versions" if source == "core" else "commands"]
        least = max(3, sum(row["events"] for row in every) / 100)
    expected = [
        row[unit]
        for row in report[source][name]
        if row[unit] and (row[unit] >= least or None in (row.get("value", 0), row.get("name", 0)))
    ]
    assert [number(cells[1]) for cells in rows] == sorted(expected, reverse=True)


def check_figures(
    rows: list[list[str]], times: list[Report], source: str, first: str, last: list[str]
) -> None:
    expected = []
    for time in times:
        figures = [*time[source].values(), *(time[name] for name in last)]
        is_missing = time[source]["events"] is None
        expected.append([time[first], *(["no file"] if is_missing else figures)])
    assert expected == [
        [cells[0], *(cells[1:] if "no file" in cells else map(number, cells[1:]))] for cells in rows
    ]


def check_bars(bars: list[list[str]], times: list[Report], source: str, unit: str) -> None:
    """Hold bars to their numbers, or to why they have none."""
    most = max((time[source][unit] or 0 for time in times), default=0)
    for (kind, height, title), time in zip(bars, times, strict=True):
        n = time[source][unit]
        if n is None:
            is_missing = time[source]["events"] is None
            assert kind == ("missing" if is_missing else "unknown")
            assert title.endswith(": no file" if is_missing else ": unknown")
        else:
            assert number(title.split(": ")[1]) == n
            assert float(height.rstrip("%")) == pytest.approx(100 * n / (most or 1), abs=0.06)
            assert kind in ({"count", "part"} if n else {"zero"})


def check_versions(report: Report, rows: list[list[str]], columns: list[list[Any]]) -> None:
    """Hold the series to the JSON: with those joined as "other" they are all deployed hosts."""
    total = report["active"]["core"]["hosts"]["28"]["now"]
    counts = [number(cells[1]) or 0 for cells in rows if not cells[0].startswith("all ")]
    assert sum(counts) == total
    for week, column in zip(report["adoption"] if columns else [], columns, strict=True):
        assert bool(column) == bool(week["hosts"])
        for title, pixels in column:
            if hosts := week["versions"].get(title.split(",")[0]):
                assert pixels == pytest.approx(240 * hosts / week["hosts"], abs=5)


# The page as it looks.

READ_CLIPPED = """[...document.querySelectorAll("tbody th, td")]
  .filter(cell => cell.scrollWidth > cell.clientWidth + 1).map(cell => cell.textContent)"""
# Pairs of texts, each in a part of its own, that touch each other.
READ_OVERLAPS = """(() => {
  const boxes = [];
  const walker = document.createTreeWalker(document.querySelector("main"), NodeFilter.SHOW_TEXT);
  for (let node; node = walker.nextNode();) {
    if (!node.data.trim() || node.parentElement.closest(".unseen, svg, caption")) continue;
    if (!node.parentElement.checkVisibility({visibilityProperty: true})) continue;
    const range = document.createRange();
    range.selectNodeContents(node);
    const part = node.parentElement.closest("td, th, li, p, h1, h2, h3, summary, div > span");
    for (const box of range.getClientRects()) boxes.push([box, part]);
  }
  boxes.sort(([a], [b]) => a.top - b.top);
  const found = [];
  boxes.forEach(([a, one], at) => {
    for (const [b, other] of boxes.slice(at + 1)) {
      if (b.top > a.bottom - 3) break;
      if (one !== other && a.left < b.right + 1 && b.left < a.right + 1)
        found.push([one.innerText, other.innerText]);
    }
  });
  return found;
})()"""
# The days stand as the weeks do, but there are many.
HIDE_DAYS = "document.querySelectorAll('.day-figures').forEach(part => part.hidden = true)"
BACKGROUNDS = {"light": "rgb(255, 255, 255)", "dark": "rgb(20, 24, 28)"}


@pytest.mark.slow
@pytest.mark.parametrize("name", ["8 weeks", "a year", "random 1", "hostile", HUGE, "no events"])
def test_the_page_fits_every_screen_and_asks_for_nothing(
    show: Callable[[str], "Page"], name: str
) -> None:
    tab = show(name)
    happened: list[str] = []
    tab.on("request", lambda request: happened.append(request.url))
    tab.on("console", lambda message: happened.append(message.text))
    tab.on("pageerror", lambda error: happened.append(str(error)))
    tab.reload()
    show(name).evaluate(HIDE_DAYS)

    for width in (320, 700, 1060, 1920):
        set_screen(tab, width)
        assert tab.evaluate("document.scrollingElement.scrollWidth") <= width
        assert tab.evaluate(READ_CLIPPED) == []
        assert tab.evaluate(READ_OVERLAPS) == []
    for scheme, background in BACKGROUNDS.items():
        set_screen(tab, 1200, scheme)
        assert tab.evaluate("getComputedStyle(document.body).backgroundColor") == background
    (url,) = happened
    assert url.startswith("file:")


RUN_AXE = """axe.run({resultTypes: ["violations"], preload: false, ...%s})
  .then(found => found.violations.map(
    one => [one.id, ...one.nodes.map(node => [node.html, node.failureSummary])]))"""
COLOURS_ONLY = '{runOnly: ["color-contrast"]}'
ALL_BUT_COLOURS = '{rules: {"color-contrast": {enabled: false}}}'


@pytest.mark.slow
@pytest.mark.parametrize("name", ["8 weeks", "random 1"])
def test_axe_finds_nothing(show: Callable[[str], "Page"], name: str) -> None:
    install_packages()  # axe-core, whose version tests/apps pins
    tab = show(name)
    tab.evaluate(HIDE_DAYS)
    tab.evaluate((MODULES / "axe-core/axe.min.js").read_text(encoding="utf-8") + "; 0")

    for width, scheme, options in (
        (1200, "light", "{}"),
        (1200, "dark", COLOURS_ONLY),
        (400, "light", ALL_BUT_COLOURS),
    ):
        set_screen(tab, width, scheme)
        assert tab.evaluate(RUN_AXE % options) == []


@pytest.mark.slow
def test_print_shows_what_is_folded_on_the_screen_but_the_days(
    show: Callable[[str], "Page"],
) -> None:
    tab = show("hostile")
    tab.evaluate("document.querySelectorAll('details').forEach(part => part.open = false)")
    set_screen(tab, 718, "dark")
    tab.emulate_media(media="print")

    hidden = "[...document.querySelectorAll('tbody')].filter(part => !part.checkVisibility())"
    days = ["core-days", "cli-days"]
    assert tab.evaluate(f"{hidden}.map(part => part.closest('table').id)") == days
    assert tab.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    assert tab.evaluate("document.scrollingElement.scrollWidth") <= 718


@pytest.mark.parametrize("name", [*CASES, HUGE])
def test_the_page_can_be_published(report_of: Callable[[str], Report], name: str) -> None:
    """It is one file, escapes what events hold, and holds no address, host or project."""
    page = draw_page(report_of(name), MADE)

    assert re.findall(r"<(?:script|img|link|iframe|object)|(?:src|href)=\"|@import", page) == []
    assert re.findall(r"url\(|\u202e|\u200b|\x1b|\x7f", page) == []
    assert page.count("</style>") == 1
    assert SECRETS.search(page) is None


# The text.


def lines_of(report: Report, width: int = 80) -> list[str]:
    return click.unstyle(draw_text(report, width, MADE)).split("\n")


@pytest.mark.parametrize("name", [*CASES, HUGE])
def test_every_number_of_the_json_stands_in_the_text(
    report_of: Callable[[str], Report], name: str
) -> None:
    report = report_of(name)
    numbers = set(re.findall(r"[\d,]+", " ".join(lines_of(report, 120))))

    expected = set()
    for source in sources(report):
        for lengths in report["active"][source].values():
            expected |= {lengths["7"]["now"], *lengths["28"].values()}
        for list_name, unit in LISTS[source].items():
            if report["active"][source][unit]["28"]["now"]:
                expected |= {row[unit] for row in report[source][list_name][:10]}
    before = {
        lengths["28"]["before"] for units in report["active"].values() for lengths in units.values()
    }
    assert {f"{n:,}" for n in expected - before - {0, None}} <= numbers


@pytest.mark.parametrize("name", [*CASES, HUGE])
def test_the_text_fits_its_terminal_and_shows_nothing_but_printable_ascii_and_blocks(
    report_of: Callable[[str], Report], name: str
) -> None:
    for width in (80, 97, 400):
        lines = lines_of(report_of(name), width)

        assert max(map(len, lines)) <= min(width, 120)
        assert lines == [line.rstrip() for line in lines]
        odd = {character for line in lines for character in line if not " " <= character <= "~"}
        assert odd <= set("▁▂▃▄▅▆▇█▏▎▍▌▋▊▉█▒░·–−…“”")


@pytest.mark.parametrize("style", ["text", "html"])
def test_the_command_draws_what_its_json_says(
    make_app: Callable[..., Flask], data_dir: Path, style: str
) -> None:
    data_dir.mkdir()
    write_world(data_dir)

    def run(style: str) -> str:
        arguments = ["report", f"--until={UNTIL}", f"--format={style}"]
        return make_app().test_cli_runner().invoke(args=arguments).stdout

    report = json.loads(run("json"))
    drawn = draw_page(report, MADE) if style == "html" else "\n".join(lines_of(report))
    assert run(style).replace("1.0.0", "1.2.3") == f"{drawn}\n"
