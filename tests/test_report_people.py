"""The report for people: its numbers against the JSON, the page in a real Chromium."""

import functools
import html
import json
import os
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
from npm import MODULES, install_packages
from random_folders import write_folders
from records import HASH, TODAY, UNTIL, Days, Record, cli, core, packages, write_days
from report.lists import LISTS, UNITS, List
from report.people import Made, draw_page, draw_text, words
from report.people.versions import Audience
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
SECRETS = re.compile(r"secret|project-|\b10\.0\.\d")
HUGE, FACTOR = "huge", 70_001  # as "8 weeks", but each number is so many times as great


# Reports of many kinds.


class Case(NamedTuple):
    days: Days | None  # None: random folders
    length: int = 56
    until: date = UNTIL
    seed: int = 0
    options: tuple[str, ...] = ()


def usual(length: int) -> Days:
    """Each app and each project sends once a week; more and more of them run the newest version.

    What only one or two units have is called secret.
    """
    days: Days = {}
    for days_ago in range(length):
        week = (length - 1 - days_ago) // 7
        apps = [app(n, week) for n in range(days_ago % 7, 200 + 2 * min(week, 60 - week), 7)]
        commands = [command(n, week) for n in range(days_ago % 7, 110 + week, 7)]
        days[days_ago] = [*apps, *commands, core("a.demo.secret.com"), core(browser="Googlebot")]
    return days


def app(n: int, week: int) -> Record:
    versions = ["secret-1", *["5.0.0-rc.2"] * 30, *["5.0.1"] * (12 * week + 4), *["4.9.1"] * 80]
    browsers = ["Chrome", "Firefox", "Chrome", "Safari", None]
    systems = [("Windows", "10"), ("Linux", None), ("iOS", "18.6"), ("iOS", f"26.{n % 2}")]
    os, os_version = systems[n % 4]
    return core(
        "localhost" if n % 9 == 5 else f"{n}.secret.com",
        f"10.0.{n % 250}.{1 + n // 250}",
        projectId=f"project-{n % 150}" if n % 50 else None,
        version=versions[n] if n < len(versions) else f"4.{50 + max(n % 16 - 8, 0)}.0",
        browser=browsers[n % 5] if n != 7 else "secret-2",
        browser_version=f"{140 + n % 3}.0" if n != 10 else "secret-3",
        os=os,
        os_version=os_version,
        resourceCount=n % 40,
        providers={"auth": n % 2 == 0, "data": True, "i18n": n == 4},
    )


def command(n: int, week: int) -> Record:
    series = ["5.0.1"] * (8 * week + 3) + ["4.9.2"] * 60 + ["secret-4"]
    names = [f"core@{series[min(n, len(series) - 1)]}", *(["cli@1.0.0"] * (n % 2))]
    return cli(
        f"project-{n}",
        f"10.0.{n}.1",
        command=["dev", "build", "start"][n % 3] if n != 8 else "secret-5",
        packages=packages(*names, *(["secret-6@1.0"] if n == 9 else [])),
        nodeVersion=f"v{20 + 2 * (n % 2)}.{n % 3}.0" if n != 7 else "secret-7",
        projectFramework=["vite", "next", "remix"][n % 3] if n != 6 else "secret-8",
        nodeEnv="test" if n % 5 else None,
        os="Linux" if n else "secret-9",
    )


def without(days: Days, *missing: int) -> Days:
    return {days_ago: events for days_ago, events in days.items() if days_ago not in missing}


def gaps() -> Days:
    """Few hosts, fewer than before, without projects; hashed addresses; days without files."""
    days = {n: [core(f"{n % 5}.secret.com", HASH, version="5.0.1")] for n in range(-1, 55)}
    days |= {n: [core(f"{n % 7}.secret.com", version="4.9")] for n in range(26, 55)}
    days |= {n: [core("localhost")] for n in range(34, 41)}
    return without(days, 3, 8, 12, 20, *range(41, 48), 50)


def commands() -> Days:
    """Commands alone, of networks instead of addresses, and without projects, in 30 days."""
    names = ["dev"] * 150 + ["build"] * 37 + ["lint"] * 3 + ["secret"]
    events = [cli(None, f"10.{n % 90}.7.0", command=name) for n, name in enumerate(names)]
    return {n: events if n % 3 else events[:90] for n in range(30)}


def hostile() -> Days:
    """Every value is hostile; four events of each kind, so that the page shows it."""
    events = []
    for at, value in enumerate([*HOSTILE, None]):
        agent = dict.fromkeys(["browser", "browser_version", "os", "os_version"], value)
        names = [{"name": value, "version": other} for other in HOSTILE]
        for n in range(4 * at, 4 * at + 4):
            secret = {"hostname": f"{n}.secret.com", "projectId": f"secret-{n}"}
            events.append(core(ip=f"10.0.0.{n}", version=value, **agent, **secret))
            others = dict.fromkeys(["projectFramework", "nodeEnv", "os", "nodeVersion"], value)
            events.append(cli(f"secret-{n}", command=value, packages=names, **others))
    return {0: events, 60: []}


EXCLUDE = ("--exclude-host=*.demo.secret.com",)
# Those that are kept as people read them.
KEPT = {
    "8 weeks": Case(without(usual(56), 4), options=EXCLUDE),
    "a year": Case(without(usual(364), *range(100, 110)), 364),
    "gaps": Case(gaps(), 56, TODAY),
    "commands": Case(commands()),
    "one day": Case({-1: [core()] * 9}, 1, TODAY),
    "no events": Case({0: [], 3: []}),
}
CASES = KEPT | {
    "hostile": Case(hostile(), 14),
    **{f"random {seed}": Case(None, seed=seed) for seed in range(1, 4)},
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
        directories = [directory]
        if case.days is None:
            directories += write_folders(directory, case.seed)
        write_days(directory, case.days or {})
        refused = ["nodeVersion: is missing."] if name in KEPT else HOSTILE
        write_refusals(directory / f"refused-{case.until}.jsonl", refused)
        app = create_app(read_settings({"TELEMETRY_DATA_DIR": str(directory)}), clock=lambda: NOON)
        since = case.until - timedelta(days=case.length - 1)
        arguments = [f"--since={since}", f"--until={case.until}", "--format=json", *case.options]
        run = app.test_cli_runner().invoke
        report: Report = json.loads(run(args=["report", *map(str, directories), *arguments]).stdout)
        app.extensions["collector"].close()
        return report

    return count


def write_refusals(path: Path, values: list[str]) -> None:
    refusals = [{"source": "cli", "field": one, "detail": one} for one in [*values, None] * 4]
    lines = [json.dumps(refusal) for refusal in [*refusals, {"detail": "secret"}]]
    path.write_text("\n".join([*lines, "torn", ""]))


# As they are kept.


def lines_of(report: Report, width: int = 80) -> list[str]:
    return click.unstyle(draw_text(report, width, MADE)).split("\n")


def words_of(page: str) -> list[str]:
    """Return the words of each line of a page, and its odd bars, without the table of days."""
    page = re.sub('<i class="(part|zero|missing|unknown)"', r" [\1] <i", page)
    without_days = re.sub('(?s)<details class="day-figures">.*?</details>', "", page)
    without_tags = re.sub("<[^>]+>", " ", without_days.partition("<main>")[2])
    lines = [" ".join(line.split()) for line in html.unescape(without_tags).split("\n")]
    return list(filter(None, lines))


@pytest.mark.parametrize("name", KEPT)
def test_a_report_reads_as_it_is_kept(report_of: Callable[[str], Report], name: str) -> None:
    """Read what has changed in tests/support/reports; KEEP=1 writes the new ones there."""
    report = report_of(name)
    drawn = [*lines_of(report), "", "The page", "", *words_of(draw_page(report, MADE)), ""]
    path = Path(__file__).parent / "support/reports" / f"{name}.txt"
    if os.environ.get("KEEP"):
        path.write_text("\n".join(drawn), encoding="utf-8")

    assert drawn == path.read_text(encoding="utf-8").split("\n")


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
NAMES = {"core": "Apps", "cli": "Command line"}


def sources(report: Report) -> list[str]:
    return [source for source in NAMES if report["events"][source]]


def title_of(report: Report, unit: str) -> str:
    return "networks" if report["masked"] and unit == "addresses" else UNITS["core"][unit]


def number(cell: str) -> int | None:
    """Return the number that a cell shows."""
    return None if cell == "–" else int(re.sub("[,+]", "", cell).replace("−", "-"))


@pytest.mark.slow
@pytest.mark.parametrize("name", [*CASES, HUGE])
def test_each_unit_list_and_bar_of_the_page_has_the_numbers_of_the_json(
    show: Callable[[str], "Page"], report_of: Callable[[str], Report], name: str
) -> None:
    report, tab = report_of(name), show(name)
    tables, strips = map(tab.evaluate, (READ_TABLES, READ_STRIPS))
    text = " ".join(tab.evaluate("document.body.innerText").split())

    check_active(report, tables.get("active", []))
    for source in sources(report):
        for one in LISTS:
            if one.source == source:
                check_list(report, one, tables.get(f"{source}-{one.name}", []))
        for unit in report["active"][source]:
            title = f"{NAMES[source]}, {title_of(report, unit)} each week"
            check_bars(strips.get(title, []), report["weeks"], source, unit)
        check_bars(strips[f"{NAMES[source]}, events each day"], report["days"], source, "events")
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


def check_list(report: Report, one: List, rows: list[list[str]]) -> None:
    """Hold a list to the JSON: the most frequent values that enough have, with their numbers."""
    source, unit, least = one.source, one.unit, 3.0
    if not report["active"][source][unit]["28"]["now"]:
        unit, every = "events", report[source]["versions" if source == "core" else "commands"]
        least = max(3, sum(row["events"] for row in every) / 100)
    expected = [
        row[unit]
        for row in report[source][one.name]
        if row[unit] and (row[unit] >= least or None in (row.get("value", 0), row.get("name", 0)))
    ]
    assert [number(cells[1]) for cells in rows] == sorted(expected, reverse=True)


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


@pytest.mark.parametrize("name", CASES)
def test_the_page_can_be_published(report_of: Callable[[str], Report], name: str) -> None:
    """It is one file, escapes what events hold, and holds no address, host or project."""
    page = draw_page(report_of(name), MADE)

    assert re.findall(r"<(?:script|img|link|iframe|object)|(?:src|href)=\"|@import", page) == []
    assert re.findall(r"url\(|\u202e|\u200b|\x1b|\x7f", page) == []
    assert page.count("</style>") == 1
    assert SECRETS.search(page) is None


# The text.


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
    write_days(data_dir, CASES["8 weeks"].days or {})

    def run(style: str) -> str:
        arguments = ["report", f"--until={UNTIL}", f"--format={style}"]
        return make_app().test_cli_runner().invoke(args=arguments).stdout

    report = json.loads(run("json"))
    drawn = draw_page(report, MADE) if style == "html" else "\n".join(lines_of(report))
    assert run(style).replace("1.0.0", "1.2.3") == f"{drawn}\n"


# Words.


@pytest.mark.parametrize(
    ("now", "before", "difference", "in_percent"),
    [
        (100, 100, "0", ""),
        (110, 100, "+10", "+10%"),
        (109, 99, "+10", ""),
        (0, 1200, "−1,200", "−100%"),
        (1001, 1000, "+1", "+<1%"),
        (999, 1000, "−1", "−<1%"),
        (None, 100, "–", ""),
        (100, None, "–", ""),
    ],
)
def test_a_change_has_a_percentage_only_from_a_base_of_100(
    now: int | None, before: int | None, difference: str, in_percent: str
) -> None:
    assert words.change(now, before) == difference
    assert words.percent_change(now, before) == in_percent


@pytest.mark.parametrize(
    ("part", "whole", "percentage"),
    [
        (0, 20, "0%"),
        (20, 20, "100%"),
        (10, 19, ""),
        (1, 1000, "<1%"),
        (999, 1000, ">99%"),
        (None, 20, "–"),
    ],
)
def test_a_share_has_a_base_of_20_and_is_never_rounded_to_none_or_all(
    part: int | None, whole: int, percentage: str
) -> None:
    assert words.share(part, whole) == percentage


@pytest.mark.parametrize(
    ("value", "on_terminal", "on_page"),
    [
        (None, "unknown", "unknown"),
        ("a b\u202ec\x7f", "a b\\u202ec\\u007f", "a b\\u202ec\\u007f"),
        ("\x1b[1mé", "\\u001b[1m\\u00e9", "\\u001b[1mé"),
        ("😀 שלום", "\\ud83d\\ude00 \\u05e9\\u05dc\\u05d5\\u05dd", "😀 שלום"),
        ("Z" + "\u0301" * 4, "Z" + "\\u0301" * 4, "Z\u0301\u0301" + "\\u0301" * 2),
    ],
)
def test_values_are_escaped_on_the_terminal_and_what_cannot_be_seen_on_the_page(
    value: str | None, on_terminal: str, on_page: str
) -> None:
    assert (Audience.TERMINAL.named(value), Audience.PAGE.named(value)) == (on_terminal, on_page)


def test_long_names_are_cut_in_the_middle() -> None:
    assert words.cut("@scope/a-long-name-1", 20) == "@scope/a-long-name-1"
    assert words.cut("@scope/a-long-name-1", 13) == "@scope…name-1"
