"""The report for people: its numbers against the JSON, the page in a real Chromium."""

import contextlib
import fcntl
import functools
import gzip
import html
import json
import os
import pty
import re
import signal
import struct
import subprocess
import sys
import termios
from collections.abc import Callable, Iterator
from datetime import date, timedelta
from itertools import accumulate
from pathlib import Path
from random import Random
from typing import Any, NamedTuple

import click
import pytest
from flask import Flask

from chromium import Chromium, Tab
from naive_report import naive_report
from records import HASH, TODAY, UNTIL, Days, Record, cli, core, packages, write_days
from report.lists import LISTS
from report.people import outline
from report.people.outline import UNKNOWN
from report.people.page import draw_page, spread
from report.people.text import draw_text
from report.reading import MIN_BYTES_FOR_PROCESSES
from server import PATIENCE_SECONDS, ROOT, children, wait_until

Report = dict[str, Any]

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
SECRETS = re.compile(r"secret|203\.0\.113\.")  # what hostnames, projects and addresses are made of
BROWSERS = [("Chrome", "142"), ("Chrome", "141"), ("Firefox", "145.0"), (None, None)]
SYSTEMS = [("Windows", "11"), ("Windows", "10"), ("Linux", None)]


# Reports of many kinds.


def app(n: int, day: int = 0, **others: Any) -> Record:
    """Return an event of the n-th app, which updates sooner or later."""
    release = (day + n % 40) // 16
    browser, system = BROWSERS[n % 4], SYSTEMS[n % 3]
    values: Record = {
        "hostname": f"app-{n}.secret.com" if n % 5 else "secret.localhost",
        "ip": f"203.0.113.{n}",
        "browser": browser[0],
        "browser_version": browser[1],
        "os": system[0],
        "os_version": system[1],
        "version": "next" if n == 7 else f"4.{release}.1",
        "providers": {"auth": n % 2 == 0, "data": True},
        "resourceCount": n % 30,
        "projectId": f"secret-{n}" if n % 3 else None,
    }
    return core(**(values | others))


def command(n: int, **others: Any) -> Record:
    values: Record = {"packages": packages("core@5.0.1", f"p{n % 13}@4.{n % 3}.0")[: 1 + n % 2]}
    values |= {"nodeVersion": f"v{18 + 2 * (n % 3)}.{n % 4}.0"}
    values |= {"command": "dev" if n % 4 else "build", "os": "Linux" if n % 2 else "macOS"}
    return cli(f"secret-{n}", f"203.0.113.{n}", **(values | others))


def world(days: int = 56, apps: int = 160, commands: int = 40) -> Days:
    """Return events of so many days: more apps in time, each once a week."""
    chance = Random(5)
    events: Days = {days_ago: [] for days_ago in range(days)}
    for days_ago in events:
        share = 1 - 0.4 * days_ago / days
        events[days_ago] += [
            app(n, days - days_ago) for n in range(round(apps * share)) if chance.random() < 1 / 7
        ]
        events[days_ago] += [
            command(n) for n in range(round(commands * share)) if chance.random() < 1 / 7
        ]
    return events


def hostile_world() -> Days:
    events = []
    for value in [*HOSTILE, None]:
        agent = dict.fromkeys(["browser", "browser_version", "os", "os_version"], value)
        events += [app(n, **agent, version=value) for n in range(1, 4)]
        events.append(command(1, projectFramework=value, nodeEnv=value, os=value, command=value))
        names = [{"name": value, "version": other} for other in HOSTILE]
        events.append(command(2, packages=names, nodeVersion=value))
    return {0: events, 60: []}


def hashed(events: Days) -> Days:
    """Return them with the addresses hashed that most events come from."""

    def hash_address(event: Record) -> Record:
        return event if event.get("browser") == "Firefox" else {**event, "ip": HASH}

    return {day: [*map(hash_address, of_day)] for day, of_day in events.items()}


def of_source(source: str, events: Days) -> Days:
    return {
        day: [event for event in of_day if event["source"] == source]
        for day, of_day in events.items()
    }


def with_holes(events: Days) -> Days:
    """Return them with a week and a day without a file, and a week whose files hold nothing."""
    kept = {day: of_day for day, of_day in events.items() if day not in [3, *range(13, 22)]}
    return kept | {day: [] for day in range(28, 35)}


def times(factor: int, value: Any) -> Any:
    """Multiply every number of a report."""
    if isinstance(value, dict):
        return {key: times(factor, item) for key, item in value.items()}
    if isinstance(value, list):
        return [times(factor, item) for item in value]
    return value * factor if type(value) is int else value


class Case(NamedTuple):
    events: Callable[[], Days]
    days: int = 56
    until: date = UNTIL


CASES = {
    "8 weeks": Case(lambda: world(apps=200)),
    "90 days": Case(lambda: world(90, 40, 20), 90),
    "a year": Case(lambda: world(364, 8, 4), 364),
    "holes": Case(lambda: with_holes(world())),
    "hashed": Case(lambda: hashed(world(apps=20))),
    "apps only": Case(lambda: of_source("core", world(apps=30))),
    "command line only": Case(lambda: of_source("cli", world(apps=30))),
    "local only": Case(lambda: {0: [core("localhost", version=f"4.{n}") for n in range(12)]}, 7),
    "unfinished day": Case(lambda: {-1: world(1, 60, 30)[0]}, 1, TODAY),
    "no events": Case(lambda: {0: [], 3: []}),
    "no files": Case(dict),
    "hostile": Case(hostile_world, 14),
    "huge": Case(lambda: world(apps=130)),
}
FACTOR = 70_001


@pytest.fixture(scope="module")
def report_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Report]:
    """Count the files of a case; each once."""

    @functools.cache
    def count(name: str) -> Report:
        case = CASES[name]
        directory = tmp_path_factory.mktemp("data")
        write_days(directory, case.events())
        if name == "hostile":
            write_refusals(directory / f"refused-{UNTIL}.jsonl")
        since = case.until - timedelta(days=case.days - 1)
        report = naive_report([directory], since, case.until, TODAY)
        return times(FACTOR, report) if name == "huge" else report

    return count


def write_refusals(path: Path) -> None:
    refusals = [{"source": "cli", "field": value, "detail": value} for value in [*HOSTILE, None]]
    lines = [json.dumps(refusal) for refusal in refusals]
    path.write_text("\n".join([*lines, lines[0], "torn", ""]))


# What must be shown, worked out a second time.


def count(n: int | None) -> str:
    return UNKNOWN if n is None else f"{n:,}"


def percent(part: int, whole: int) -> str:
    if not whole:
        return UNKNOWN
    if 0 < 100 * part / whole <= 0.5:
        return "<1%"
    if 99.5 <= 100 * part / whole < 100:
        return ">99%"
    return f"{100 * part / whole:.0f}%"


def difference(window: dict[str, int | None]) -> list[str]:
    """Return the change as a number, and in percent where that may be said."""
    now, before = window["now"], window["before"]
    if now is None or before is None:
        return [UNKNOWN]
    if now == before:
        return ["0"]
    ratio = 100 * (now - before) / before if before else 0
    in_percent = "<1%" if abs(ratio) <= 0.5 else f"{ratio:+.0f}%"
    return [f"{now - before:+,}", *([in_percent] if before >= 100 else [])]


def value_shown(value: str | None) -> str:
    return "unknown" if value is None else json.dumps(value)[1:-1]


def cut(text: str, length: int) -> str:
    return text if len(text) <= length else text[: length - 1] + "…"


UNITS = {
    "core": {
        "hosts": "deployed hosts",
        "projects": "projects",
        "addresses": "addresses",
        "development_addresses": "on local hosts",
    },
    "cli": {"projects": "projects", "addresses": "addresses"},
}
LIST_UNITS = {
    "core": {
        "versions": "hosts",
        "providers": "hosts",
        "browsers": "addresses",
        "operating_systems": "addresses",
    },
    "cli": dict.fromkeys(
        [
            *("packages", "node_versions", "commands"),
            *("frameworks", "operating_systems", "environments"),
        ],
        "projects",
    ),
}


def sources(report: Report) -> list[str]:
    return [source for source in UNITS if report["events"][source]]


class Ranked(NamedTuple):
    """A list as it must be shown."""

    base: int
    unit: str
    rows: list[Record]

    def shown(self, row: Record) -> tuple[str, str, str]:
        name = value_shown(row["name"] if "name" in row else row["value"])
        return name, count(row[self.unit]), percent(row[self.unit], self.base)


def ranked(report: Report, source: str, name: str) -> Ranked:
    rows, unit = report[source][name], LIST_UNITS[source][name]
    base = report["active"][source][unit]["28"]["now"]
    if not base:
        of_all = report[source]["versions" if source == "core" else "commands"]
        unit, base = "events", sum(row["events"] for row in of_all)
    return Ranked(base, unit, sorted(rows, key=lambda row: -row[unit]))


# The page.


@pytest.fixture
def show(browser: Chromium, tmp_path: Path) -> Iterator[Callable[[str], Tab]]:
    """Show a page in a tab, from a file."""
    tabs: list[Tab] = []

    def open_page(html: str) -> Tab:
        path = tmp_path / "report.html"
        path.write_text(html, encoding="utf-8")
        tabs.append(tab := browser.open_tab())
        set_screen(tab, 1200, "light")
        tab.go(path.as_uri())
        tab.wait_for("Page.loadEventFired")
        tab.evaluate("document.querySelectorAll('details').forEach(part => part.open = true)")
        return tab

    yield open_page
    for tab in tabs:
        tab.close()


def set_screen(tab: Tab, width: int, scheme: str) -> None:
    screen = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 500}
    tab.call("Emulation.setDeviceMetricsOverride", **screen)
    feature = {"name": "prefers-color-scheme", "value": scheme}
    tab.call("Emulation.setEmulatedMedia", features=[feature])


# The rows of all tables, by the id of what they are in: the words of each cell.
READ_TABLES = """(() => {
  const tables = {};
  for (const row of document.querySelectorAll("tbody tr")) {
    const cells = [...row.cells].filter(cell => !cell.matches(".source, .bar, .weeks"));
    (tables[row.closest("[id]").id] ??= []).push(
      cells.map(cell => cell.innerText.trim().split(/\\s+/).join(" ")));
  }
  return tables;
})()"""


def words(text: str) -> str:
    return " ".join(text.split())


def page_tables(report: Report) -> dict[str, list[list[str]]]:
    """Return the tables that the page must have."""
    tables: dict[str, list[list[str]]] = {}
    for source in sources(report):
        tables.setdefault("active", []).extend(
            active_row(source, unit, windows) for unit, windows in report["active"][source].items()
        )
        for name in LIST_UNITS[source]:
            listed = ranked(report, source, name)
            if listed.rows:
                tables[f"{source}-{name}"] = list_rows(listed)
        tables[f"{source}-days"] = [figures(day["date"], day[source]) for day in report["days"]]
        if report["weeks"]:
            weeks = report["weeks"]
            tables[f"{source}-weeks"] = [figures(week["since"], week[source]) for week in weeks]
    if report["refused"]:
        names = {"core": "Apps", "cli": "Command line"}
        tables["refused"] = [
            [words(value_shown(row["detail"])), names[row["source"]], count(row["events"])]
            for row in report["refused"]
        ]
    return tables


def active_row(source: str, unit: str, windows: dict[str, dict[str, int | None]]) -> list[str]:
    cells = [UNITS[source][unit]]
    for window in (windows["28"], windows["7"]):
        cells += [count(window["now"]), " ".join(difference(window)).replace("-", "−")]
    month = [count(windows["28"][name]) for name in ("stayed", "new", "gone")]
    return [*cells, UNKNOWN if set(month) == {UNKNOWN} else " · ".join(month)]


def list_rows(listed: Ranked) -> list[list[str]]:
    rows = []
    for row in listed.rows:
        name, *numbers = listed.shown(row)
        rows.append([words(cut(name, 60)), *numbers])
        if row.get("versions"):
            rows.append([list_versions(listed, row["versions"])])
    return rows


def list_versions(listed: Ranked, versions: list[Record]) -> str:
    versions = sorted(versions, key=lambda row: -row[listed.unit])
    shown = [listed.shown(version) for version in versions[:4]]
    text = " ".join(f"{cut(name, 12)} {share}" for name, _, share in shown)
    return words(text + (f" and {len(versions) - 4} more" if len(versions) > 4 else ""))


def figures(day: str, numbers: dict[str, int | None]) -> list[str]:
    if numbers["events"] is None:
        return [day, "no file"]
    return [day, *map(count, numbers.values())]


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_every_number_of_the_page_is_that_of_the_json(
    show: Callable[[str], Tab], report_of: Callable[[str], Report], name: str
) -> None:
    report = report_of(name)
    tab = show(draw_page(report))
    tables = tab.evaluate(READ_TABLES)
    expected = page_tables(report)
    if report["active"]["core"]["hosts"]["28"]["before"] is None:
        expected["active"] = [row[:-1] for row in expected.get("active", [])]
    versions = tables.pop("adoption-weeks", [])

    assert tables == {id: rows for id, rows in expected.items() if rows}
    check_versions(report, versions)
    text = words(tab.evaluate("document.body.innerText"))
    assert f"{report['since']} to {report['until']}" in tab.evaluate("document.title")
    assert (f"{report['until']} is unfinished" in text) == report["unfinished"]
    files = len(report["days"]) - len(report["missing_days"])
    assert f"Files of {files} of {len(report['days'])} day" in text
    unreadable = report["unreadable_lines"]
    assert (f"{unreadable:,} line" in text) == ("could not be read" in text) == bool(unreadable)
    if (resources := report["core"]["resource_count"])["max"] is not None:
        least, median, p90, most = (
            count(resources[key]) for key in ("min", "median", "p90", "max")
        )
        assert f"median {median}, 90% of them at most {p90}, from {least} to {most}" in text
    if not sources(report):
        assert "Nothing to report: " in text
    assert all(counted in text for counted in events_of(report))


def events_of(report: Report) -> list[str]:
    names = {"core": "apps", "cli": "the command line"}
    counts = {source: report["events"][source] for source in sources(report)}
    return [f"{n:,} event{'s' * (n != 1)} of {names[source]}" for source, n in counts.items()]


def check_versions(report: Report, rows: list[list[str]]) -> None:
    """Hold the table of versions to the JSON: the joined series are what the others leave."""
    if not rows:
        assert not any(week["hosts"] for week in report["adoption"])
    for row, week in zip(rows, report["adoption"] if rows else [], strict=True):
        if week["hosts"] is None:
            assert row == [week["since"], "no file"]
        else:
            counts = [int(cell.replace(",", "")) for cell in row[2:]]
            assert row[:2] == [week["since"], count(week["hosts"])]
            assert sum(counts) == week["hosts"]


READ_BARS = """selector => [...document.querySelectorAll(selector + " rect")].map(bar => [
  bar.getAttribute("class"),
  ...["x", "y", "width", "height"].map(name => parseFloat(bar.getAttribute(name))),
  bar.textContent])"""


@pytest.mark.slow
@pytest.mark.parametrize("name", ["8 weeks", "a year", "holes", "hashed"])
def test_each_week_is_a_bar_as_high_as_its_number_or_says_why_there_is_none(
    show: Callable[[str], Tab], report_of: Callable[[str], Report], name: str
) -> None:
    report = report_of(name)
    bars = show(draw_page(report)).evaluate(f"({READ_BARS})('.weeks')")

    expected = []
    for source, unit in [(source, unit) for source, units in UNITS.items() for unit in units]:
        most = max((week[source][unit] or 0 for week in report["weeks"]), default=0)
        for week in report["weeks"]:
            title = f"{week['since']} to {week['until']}: "
            n = week[source][unit]
            if week[source]["events"] is None:
                expected.append(("no_file", 100, f"{title}no file"))
            elif n is None:
                expected.append(("unknown", 10, f"{title}unknown"))
            else:
                height = max(100 * n / (most or 1), 2)
                expected.append(("count" if n else "zero", height, f"{title}{n:,}"))
    assert [(bar[0], bar[5]) for bar in bars] == [(kind, title) for kind, _, title in expected]
    assert [bar[4] for bar in bars] == pytest.approx([bar[1] for bar in expected], abs=0.01)
    assert all(bar[2] + bar[4] == pytest.approx(100) for bar in bars if bar[0] == "count")


@pytest.mark.slow
@pytest.mark.parametrize("name", ["8 weeks", "90 days", "a year", "holes", "hostile"])
def test_each_week_is_a_column_of_versions_newest_first_and_labelled(
    show: Callable[[str], Tab], report_of: Callable[[str], Report], name: str
) -> None:
    report = report_of(name)
    tab = show(draw_page(report))
    bars = tab.evaluate(f"({READ_BARS})('#adoption')")
    labels = tab.evaluate("[...document.querySelectorAll('.labels li')].map(li => li.innerText)")

    for week in report["adoption"]:
        column = [bar for bar in bars if bar[5].startswith(week["since"])]
        if not week["hosts"]:
            assert [bar[0] for bar in column] == ["no_file"] * (week["hosts"] is None)
            continue
        found = {bar[5].split(": ")[1].split(", ")[0]: bar[4] for bar in column}
        own = {series: found.pop(series) for series in [*found] if series in week["versions"]}
        shares = [100 * week["versions"][series] / week["hosts"] for series in own]
        assert [*own.values()] == pytest.approx(shares, abs=0.01)
        assert [*own] == sorted(own, key=numbers, reverse=True)
        assert set(found) <= {"older", "other"}
        ends = [*accumulate(bar[4] for bar in column)]
        assert [bar[2] for bar in column] == pytest.approx([0, *ends[:-1]], abs=0.01)
        assert ends[-1] == pytest.approx(100, abs=0.01)
    newest = report["adoption"][-1]
    for label in labels:
        series, share = label.split()
        if series in newest["versions"]:
            assert share == percent(newest["versions"][series], newest["hosts"])


READ_CLIPPED = """[...document.querySelectorAll("tbody th, td")]
  .filter(cell => cell.scrollWidth > cell.clientWidth + 1).map(cell => cell.textContent)"""
# Pairs of texts, each in a part of its own, that touch each other.
READ_OVERLAPS = """(() => {
  const boxes = [];
  const walker = document.createTreeWalker(document.querySelector("main"), NodeFilter.SHOW_TEXT);
  for (let node; node = walker.nextNode();) {
    if (!node.data.trim() || node.parentElement.closest(".unseen, svg, caption")) continue;
    if (!node.parentElement.checkVisibility()) continue;
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
# The least contrast of a text, and of a mark, with what is behind it (WCAG 2.2, 1.4.3 and 1.4.11).
READ_CONTRASTS = """(() => {
  const numbers = color => color.match(/[\\d.]+/g).map(Number);
  const luminance = color => {
    const [r, g, b] = numbers(color).map(
      n => n / 255 <= .04045 ? n / 255 / 12.92 : ((n / 255 + .055) / 1.055) ** 2.4);
    return .2126 * r + .7152 * g + .0722 * b;
  };
  const page = getComputedStyle(document.body).backgroundColor;
  const contrast = color => {
    const [dark, light] = [luminance(color), luminance(page)].sort((a, b) => a - b);
    return (light + .05) / (dark + .05);
  };
  const texts = [...document.querySelectorAll("main *")].filter(element =>
    [...element.childNodes].some(node => node.nodeType === 3 && node.data.trim())
    && !element.closest("svg"));
  const marks = [...document.querySelectorAll("rect:not(.track, .no_file), #hatch path")];
  const color = mark => {
    const style = getComputedStyle(mark);
    return mark.matches(".gone, path") ? style.stroke : style.fill;
  };
  return [
    Math.min(...texts.map(text => contrast(getComputedStyle(text).color))),
    Math.min(...marks.map(mark => contrast(color(mark)))),
  ];
})()"""
BACKGROUNDS = {"light": "rgb(255, 255, 255)", "dark": "rgb(20, 24, 28)"}


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_the_page_fits_is_readable_and_asks_for_nothing(
    show: Callable[[str], Tab], report_of: Callable[[str], Report], name: str
) -> None:
    tab = show(draw_page(report_of(name)))

    for width in (400, 1200):
        set_screen(tab, width, "light")
        assert tab.evaluate("document.scrollingElement.scrollWidth") <= width
        assert tab.evaluate(READ_CLIPPED) == []
        assert tab.evaluate(READ_OVERLAPS) == []
    for scheme, background in BACKGROUNDS.items():
        set_screen(tab, 1200, scheme)
        assert tab.evaluate("getComputedStyle(document.body).backgroundColor") == background
        text, mark = tab.evaluate(READ_CONTRASTS)
        assert text >= 4.5
        assert mark >= 3
    assert tab.errors() == []
    (request,) = tab.events("Network.requestWillBeSent")
    assert request["request"]["url"].startswith("file:")


@pytest.mark.slow
def test_print_shows_what_is_folded_on_the_screen(
    show: Callable[[str], Tab], report_of: Callable[[str], Report]
) -> None:
    tab = show(draw_page(report_of("hostile")))
    tab.evaluate("document.querySelectorAll('details').forEach(part => part.open = false)")
    visible = "[...document.querySelectorAll('tbody')].filter(t => t.checkVisibility()).length"
    on_screen = tab.evaluate(visible)
    set_screen(tab, 718, "dark")
    tab.call("Emulation.setEmulatedMedia", media="print")

    every = tab.evaluate("document.querySelectorAll('tbody').length")
    assert on_screen < tab.evaluate(visible) == every
    assert tab.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    assert tab.evaluate("document.scrollingElement.scrollWidth") <= 718


@pytest.mark.parametrize("name", CASES)
def test_the_page_can_be_published(report_of: Callable[[str], Report], name: str) -> None:
    """It is one file, escapes what events hold, and holds no address, host or project."""
    page = draw_page(report_of(name))

    assert re.findall(r"<(?:script|img|link|iframe|object)|(?:src|href)=\"|@import", page) == []
    assert re.findall(r"url\((?!#)|\u202e|\u200b|\x1b|\x7f", page) == []
    assert page.count("</style>") == 1
    assert SECRETS.search(page) is None


# The text.


BLOCKS = "▁▂▃▄▅▆▇█▏▎▍▌▋▊▉▒░·–…"


def lines_of(report: Report, width: int = 80, encoding: str = "utf-8") -> list[str]:
    return click.unstyle(draw_text(report, width, encoding)).split("\n")


def section(lines: list[str], start: str) -> list[str]:
    """Return the lines under the heading that starts so."""
    at = next(at for at, line in enumerate(lines) if line.startswith(start))
    return lines[at + 1 : lines.index("", at) if "" in lines[at:] else len(lines)]


@pytest.mark.parametrize("name", CASES)
def test_every_number_of_the_text_is_that_of_the_json(
    report_of: Callable[[str], Report], name: str
) -> None:
    report = report_of(name)
    lines = lines_of(report, 120)

    if not sources(report):
        assert any(line.startswith("Nothing to report: ") for line in lines)
    else:
        check_active(report, lines)
        check_adoption(report, lines)
    assert all(counted in words(" ".join(lines)) for counted in events_of(report))
    for source in sources(report):
        for list_name in LIST_UNITS[source]:
            check_list(lines, report, source, list_name)
    assert (f"{report['until']} is unfinished" in lines[0]) == report["unfinished"]
    if unreadable := report["unreadable_lines"]:
        assert lines[-1] == f"{unreadable:,} line{'s' * (unreadable > 1)} could not be read."
    if refused := report["refused"]:
        rows = section(lines, f"Refused: {sum(row['events'] for row in refused):,} ")
        assert [row.split()[0] for row in rows[:5]] == [count(row["events"]) for row in refused[:5]]
        assert rows[5] == f"  and {len(refused) - 5} more"


def check_active(report: Report, lines: list[str]) -> None:
    rows = [
        (source, unit, windows)
        for source in sources(report)
        for unit, windows in report["active"][source].items()
    ]
    numbers, parts = [], []
    for source, unit, windows in rows:
        month, week = windows["28"], windows["7"]
        name = UNITS[source][unit]
        row = [name, count(month["now"]), *difference(month), count(week["now"])]
        numbers.append(" ".join([*row, difference(week)[0]]))
        parts.append(" ".join([name, *(count(month[key]) for key in ("stayed", "new", "gone"))]))
    check_rows(section(lines, "Active "), numbers)
    if report["active"]["core"]["hosts"]["28"]["before"] is None:
        assert not any(line.startswith("28 days against") for line in lines)
    else:
        check_rows(section(lines, "28 days against the 28 before "), parts)


def check_rows(lines: list[str], expected: list[str]) -> None:
    """Check that the lines, but for their first column and what is drawn, are as expected."""
    for line, row in zip(lines, expected, strict=False):
        assert f"{words(line[8:])} ".startswith(f"{row} ")


def check_adoption(report: Report, lines: list[str]) -> None:
    weeks = report["adoption"]
    if not any(week["hosts"] for week in weeks):
        assert not any(line.startswith("Versions of deployed hosts ") for line in lines)
        return
    newest = weeks[-1]
    for line in section(lines, "Versions of deployed hosts "):
        series, *shares = line.split()
        if series in newest["versions"] and newest["hosts"]:
            newer = [n for other, n in newest["versions"].items() if is_not_older(other, series)]
            columns = [percent(newest["versions"][series], newest["hosts"])]
            if len(weeks) > 4:
                columns.append(percent(weeks[-5]["versions"].get(series, 0), weeks[-5]["hosts"]))
            columns.append(percent(sum(newer), newest["hosts"]))
            assert shares[: len(columns)] == columns


def numbers(series: str) -> list[int]:
    return [int(part) for part in series.split(".")]


def is_not_older(other: str, series: str) -> bool:
    return re.fullmatch(r"[\d.]{1,9}", other) is not None and numbers(other) >= numbers(series)


def check_list(lines: list[str], report: Report, source: str, name: str) -> None:
    listed = ranked(report, source, name)
    title = next(one.title for one in LISTS if (one.source, one.name) == (source, name))
    unit = {"hosts": "deployed hosts", "projects": "CLI projects"}.get(listed.unit, listed.unit)
    heading = f"{title}, of {listed.base:,} {unit} in 28 days"
    if not listed.rows:
        assert not any(line.startswith(heading) for line in lines)
        return
    found = section(lines, heading)
    for row, line in zip(listed.rows[:10], found, strict=False):
        name, number, share = listed.shown(row)
        assert line.startswith(f"  {cut(name, 32)}")
        assert line[34:].split()[:2] == [number, share]
        versions = sorted(row.get("versions", []), key=lambda row: -row[listed.unit])
        shown = [listed.shown(version) for version in versions]
        text = "  ".join(f"{cut(value, 12)} {part}" for value, _, part in shown)
        assert f"  {text}".startswith(line[73:])
        assert bool(text) == bool(line[73:])
    more = len(listed.rows) - 10
    assert found[10:] == ([f"  and {more:,} more"] if more > 0 else [])


@pytest.mark.parametrize("width", [80, 97, 120, 400])
@pytest.mark.parametrize("encoding", ["utf-8", "ascii", "latin-1", "cp437"])
@pytest.mark.parametrize("name", CASES)
def test_the_text_fits_its_terminal_and_encoding(
    report_of: Callable[[str], Report], name: str, encoding: str, width: int
) -> None:
    text = draw_text(report_of(name), width, encoding)
    lines = click.unstyle(text).split("\n")

    assert max(map(len, lines)) <= min(width, 120)
    assert lines == [line.rstrip() for line in lines]
    text.encode(encoding)
    odd = {character for character in click.unstyle(text) if not " " <= character <= "~"}
    assert odd - {"\n"} <= set(BLOCKS if encoding == "utf-8" else "")


@pytest.mark.parametrize(
    ("encoding", "none", "no_file", "unknown"), [("utf-8", "·", "x", "–"), ("ascii", ".", "x", "-")]
)
def test_zero_no_file_and_unknown_look_different(
    report_of: Callable[[str], Report], encoding: str, none: str, no_file: str, unknown: str
) -> None:
    report = json.loads(json.dumps(report_of("holes")))
    for week in report["weeks"]:
        week["core"]["addresses"] = None
    lines = lines_of(report, 80, encoding)
    hosts, _, addresses, *_ = (line.split()[-1] for line in section(lines, "Active "))
    versions = section(lines, "Versions of deployed hosts ")[0].split()[-1]

    assert (hosts[3], hosts[5]) == (versions[3], versions[5]) == (none, no_file)
    assert len({none, no_file, unknown, *hosts}) == len(set(hosts)) + 1
    assert addresses == 5 * unknown + no_file + 2 * unknown
    assert f"Each week: {none} is none, {no_file} is a week without a file." in lines


@pytest.mark.parametrize("draw", [lambda report: draw_text(report, 80, "utf-8"), draw_page])
def test_text_and_page_say_what_the_numbers_are_not(
    report_of: Callable[[str], Report], draw: Callable[[Report], str]
) -> None:
    report = words(html.unescape(click.unstyle(draw(report_of("8 weeks")))))

    for told in (
        "Only what sends events is counted.",
        "A host is not a customer, and an address is not a person; build machines have addresses",
        "A change may come from the clients",
        "it may still be installed",
        "it may have been active earlier",
        "A version is what a client claims",
    ):
        assert told in report


@pytest.mark.parametrize(
    ("name", "in_text", "in_page"),
    [
        ("hashed", "– Addresses are stored hashed: they cannot be counted beyond a day.", ""),
        (
            "hashed",
            "events in 28 days (addresses are stored hashed)",
            "events: addresses are stored",
        ),
        ("local only", "(deployed hosts are not known)", "events: deployed hosts are not known"),
        ("unfinished day", "– There is no file from 2026-11-10 or earlier to compare with.", ""),
        ("no files", "there is no events file from 2026-09-28 to 2026-11-22.", ""),
        ("no events", "the events files from 2026-09-28 to 2026-11-22 hold no event.", ""),
        (
            "holes",
            "no file of 2026-11-01 to 2026-11-09, 2026-11-19",
            "none of 2026-11-01 to 2026-11-0",
        ),
        ("8 weeks", '"Other" are versions without a number', " or newer, "),
        ("holes", "x is a week without a file", "Hatched: a week without a file."),
    ],
)
def test_text_and_page_say_why_a_number_is_missing(
    report_of: Callable[[str], Report], name: str, in_text: str, in_page: str
) -> None:
    report = report_of(name)

    assert in_text in words(click.unstyle(draw_text(report, 80, "utf-8")))
    assert (in_page or in_text) in words(html.unescape(draw_page(report)))


# Words.


@pytest.mark.parametrize(
    ("now", "before", "difference", "in_percent"),
    [
        (100, 100, "0", ""),
        (110, 100, "+10", "+10%"),
        (90, 100, "-10", "-10%"),
        (109, 99, "+10", ""),
        (5, 0, "+5", ""),
        (0, 1200, "-1,200", "-100%"),
        (1001, 1000, "+1", "<1%"),
        (1099, 100, "+999", "+999%"),
        (1100, 100, "+1,000", ">999%"),
        (None, 100, "–", ""),
        (100, None, "–", ""),
    ],
)
def test_a_change_has_a_percentage_only_from_a_base_of_100(
    now: int | None, before: int | None, difference: str, in_percent: str
) -> None:
    window = {"now": now, "before": before}

    assert (outline.change(window), outline.percent_change(window)) == (difference, in_percent)


@pytest.mark.parametrize(
    ("part", "whole", "said"),
    [
        (0, 7, "0%"),
        (7, 7, "100%"),
        (1, 3, "33%"),
        (1, 1000, "<1%"),
        (999, 1000, ">99%"),
        (0, 0, "–"),
        (outline.Gap.NO_FILE, 7, "–"),
    ],
)
def test_a_share_is_never_rounded_to_none_or_all(part: Any, whole: int, said: str) -> None:
    assert outline.share(part, whole) == said


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (None, "unknown"),
        ("dev", "dev"),
        ("a\u202eb\x7f", "a\\u202eb\\u007f"),
        ("\x1b[1mé", "\\u001b[1m\\u00e9"),
        ('"\\', '\\"\\\\'),
    ],
)
def test_a_value_is_shown_as_in_the_files(value: str | None, said: str) -> None:
    assert outline.readable(value) == said


@pytest.mark.parametrize(
    ("days", "said"),
    [
        ([], ""),
        ([1], "2026-11-01"),
        ([1, 2, 3, 5], "2026-11-01 to 2026-11-03, 2026-11-05"),
        ([1, 3, 5], "2026-11-01, 2026-11-03, 2026-11-05"),
        ([1, 3, 5, 6, 8], "5 days"),
    ],
)
def test_days_without_a_file_are_named_or_counted(days: list[int], said: str) -> None:
    assert outline.missing({"missing_days": [f"2026-11-{day:02}" for day in days]}) == said


def adoption_of(*weeks: dict[str, int]) -> Report:
    return {"adoption": [{"hosts": sum(week.values()), "versions": week} for week in weeks]}


@pytest.mark.parametrize(
    ("versions", "shown"),
    [
        ({"4.9": 1, "4.10": 1, "5": 1, "5.0": 1}, ["5.0", "5", "4.10", "4.9"]),
        ({f"4.{n}": 1 for n in range(9)}, ["4.8", "4.7", "4.6", "4.5", "4.4", "4.3", "older"]),
        ({"4.1": 1, "next": 1, "9" * 200 + ".1": 1}, ["4.1", "other"]),
        ({"9.9": 1, "4.1": 200, "4.0": 1}, ["4.1", "older", "other"]),
        ({"older": 1, "other": 1}, ["other"]),
    ],
)
def test_versions_are_newest_first_and_what_is_old_odd_or_rare_is_joined(
    versions: dict[str, int], shown: list[str]
) -> None:
    series = outline.adoption(adoption_of(versions, versions))

    assert [one.name for one in series] == shown
    assert [sum(counts) for counts in zip(*(one.hosts for one in series), strict=True)] == [
        sum(versions.values())
    ] * 2


@pytest.mark.parametrize(
    ("middles", "spread_out"),
    [
        ([], []),
        ([50], [50]),
        ([0], [4]),
        ([100], [96]),
        ([10, 50, 90], [10, 50, 90]),
        ([50, 51, 52], [50, 58, 66]),
        ([95, 97, 100], [80, 88, 96]),
        ([0, 0, 99, 100], [4, 12, 88, 96]),
    ],
)
def test_labels_keep_their_distance(middles: list[float], spread_out: list[float]) -> None:
    assert spread(middles) == spread_out


# The command, on a real terminal.


FLASK = Path(sys.executable).with_name("flask")


@pytest.mark.parametrize("style", ["text", "html"])
def test_the_command_draws_what_its_json_says(
    make_app: Callable[..., Flask], data_dir: Path, style: str
) -> None:
    write_days(data_dir, with_holes(world(apps=20)))

    def run(style: str) -> str:
        arguments = ["report", f"--until={UNTIL}", f"--format={style}"]
        return make_app().test_cli_runner().invoke(args=arguments).stdout

    report = json.loads(run("json"))
    drawn = draw_page(report) if style == "html" else click.unstyle(draw_text(report, 80, "utf-8"))
    assert run(style) == f"{drawn}\n"


class Ran(NamedTuple):
    status: int
    piped: str
    terminal: str


def run_on_terminal(data_dir: Path, stream: str, columns: int = 100, **environ: str) -> Ran:
    """Run the real command with one of its streams on a terminal, and the other in a pipe."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("4H", 24, columns, 0, 0))
    streams = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, stream: theirs}
    process = start_report(data_dir, environ, **streams)
    os.close(theirs)
    piped = process.communicate(timeout=PATIENCE_SECONDS)[stream == "stdout"]
    terminal = b""
    with contextlib.suppress(OSError):  # the terminal is gone with the process
        while more := os.read(ours, 2**16):
            terminal += more
    os.close(ours)
    return Ran(process.returncode, piped.decode(), terminal.decode().replace("\r\n", "\n"))


def start_report(
    data_dir: Path, environ: dict[str, str] | None = None, **streams: Any
) -> subprocess.Popen[bytes]:
    unset = {"NO_COLOR", "COLUMNS", "FORCE_COLOR"}
    clean = {name: value for name, value in os.environ.items() if name not in unset}
    return subprocess.Popen(
        # What a shell starts in the background ignores SIGINT, and so would this.
        ["env", "--default-signal=INT", FLASK, "report", f"--until={UNTIL}"],
        cwd=ROOT,
        env={**clean, "TELEMETRY_DATA_DIR": str(data_dir), **(environ or {})},
        start_new_session=True,
        **streams,
    )


def test_colour_is_for_a_terminal_and_says_nothing_more(data_dir: Path) -> None:
    write_days(data_dir, world(apps=20))
    coloured = run_on_terminal(data_dir, "stdout")
    plain = run_on_terminal(data_dir, "stdout", NO_COLOR="1")

    assert coloured.status == plain.status == 0
    assert "\x1b[1m" in coloured.terminal
    assert "\x1b" not in plain.terminal
    assert click.unstyle(coloured.terminal) == plain.terminal
    assert 80 < max(map(len, plain.terminal.splitlines())) <= 100


def test_a_terminal_without_blocks_gets_ascii(data_dir: Path) -> None:
    write_days(data_dir, world(apps=20))
    ran = run_on_terminal(data_dir, "stdout", PYTHONIOENCODING="ascii")

    assert ran.status == 0
    assert ran.terminal.isascii()
    assert "#####" in ran.terminal


def test_progress_is_shown_on_a_terminal_only(data_dir: Path) -> None:
    write_days(data_dir, world(apps=20))
    ran = run_on_terminal(data_dir, "stderr")
    in_pipes = start_report(data_dir, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    out, err = in_pipes.communicate(timeout=PATIENCE_SECONDS)

    assert ran.status == in_pipes.returncode == 0
    assert "100%" in ran.terminal
    assert ran.piped.startswith("Telemetry of ")
    assert err == b""
    assert out.decode() == ran.piped


@pytest.fixture
def slow_report(data_dir: Path) -> Iterator[Callable[[int], subprocess.Popen[bytes]]]:
    """Start a report, and return when it is in the middle of an archive of more than a gigabyte."""
    processes = []

    def start(plain_bytes: int) -> subprocess.Popen[bytes]:
        line = json.dumps(cli(), separators=(",", ":")).encode() + b"\n"
        member = gzip.compress(line * (2**24 // len(line)), 1)
        data_dir.mkdir()
        archive = data_dir / f"events-{UNTIL}.jsonl.gz"
        archive.write_bytes(member * 80)
        plain = data_dir / f"events-{UNTIL - timedelta(days=7)}.jsonl"
        plain.write_bytes(line * (plain_bytes // len(line)))
        process = start_report(data_dir, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        processes.append(process)
        readers = [process.pid] if plain_bytes < MIN_BYTES_FOR_PROCESSES else []
        wait_until(lambda: any(has_open(pid, archive) for pid in readers or children(process.pid)))
        return process

    yield start
    for process in processes:
        process.kill()
        process.communicate()


def has_open(pid: int, path: Path) -> bool:
    with contextlib.suppress(FileNotFoundError):
        return any(
            descriptor.readlink() == path for descriptor in Path(f"/proc/{pid}/fd").iterdir()
        )
    return False


@pytest.mark.slow
@pytest.mark.parametrize(
    "plain_bytes", [0, MIN_BYTES_FOR_PROCESSES + 1000], ids=["one process", "several processes"]
)
def test_ctrl_c_ends_it_with_one_line(
    slow_report: Callable[[int], subprocess.Popen[bytes]], plain_bytes: int
) -> None:
    process = slow_report(plain_bytes)
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does
    out, err = process.communicate(timeout=PATIENCE_SECONDS)

    assert (process.returncode, out, err.split(b"\n")) == (1, b"", [b"", b"Aborted!", b""])


@pytest.mark.slow
def test_a_reading_process_that_is_killed_ends_it_with_one_line(
    slow_report: Callable[[int], subprocess.Popen[bytes]],
) -> None:
    """As the kernel does when memory runs out: what it read would be waited for for ever."""
    process = slow_report(MIN_BYTES_FOR_PROCESSES + 1000)
    for reader in children(process.pid):
        os.kill(reader, signal.SIGKILL)
    out, err = process.communicate(timeout=PATIENCE_SECONDS)

    assert (process.returncode, out) == (1, b"")
    assert err == b"Error: a reading process was killed (out of memory?)\n"
