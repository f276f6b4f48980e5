"""`flask report` as people see it: the page in a real Chromium, the text on a real terminal."""

import contextlib
import fcntl
import gzip
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
from pathlib import Path
from typing import Any, NamedTuple

import click
import pytest
from flask import Flask

from chromium import Chromium, Tab
from report import chart_top, fit, label, sparkline
from server import PATIENCE_SECONDS, ROOT, children
from test_report import GOOD, send_a_week

FLASK = Path(sys.executable).with_name("flask")
HOSTILE = [
    "<script>alert(1)</script>",
    "<img src='http://127.0.0.1:1/' onerror=\"alert(1)\">",
    "</style></title>{{ 7 * 7 }}{% raw %}&amp;",
    "W" * 256,
    "\u202eright to left\u2066",
    "\u05e9\u05dc\u05d5\u05dd",
    "\u4e2d\u6587" * 40,
    "Z" + "\u0301\u0489" * 100,
    "zero\u200bwidth\u00ad",
    "unknown",
    " a  b ",
]
SETS = ["none", "no addresses", "one day", "a week", "a year", "hostile"]


@pytest.fixture
def report_as(make_app: Callable[..., Flask]) -> Callable[..., str]:
    """Return what `flask report` prints of `data_dir`; today is 2026-11-23."""

    def run(style: str, *arguments: str) -> str:
        arguments = ("report", f"--format={style}", *arguments)
        return make_app().test_cli_runner().invoke(args=arguments).stdout

    return run


def write_hostile_files(data_dir: Path) -> None:
    """Write events that hold anything, null included, and a line that is no event."""
    lines = []
    for value in [*HOSTILE, None]:
        cli = json.loads(GOOD)
        cli["payload"] |= {"nodeEnv": value, "os": value, "osVersion": value, "command": value}
        cli["payload"] |= {"projectId": value, "nodeVersion": value or "v20"}
        cli["payload"]["packages"] = [{"name": value or "a", "version": value}]
        agent = dict.fromkeys(["browser", "browser_version", "os", "os_version"], value)
        payload = {"providers": {"auth": value is None}, "version": value or "5"}
        payload |= {"resourceCount": 1_000_000, "projectId": value}
        core = cli | {"source": "core", "hostname": value} | agent | {"payload": payload}
        lines += [json.dumps(cli), json.dumps(core)] * (2 if value == HOSTILE[3] else 1)
    refusals = [{"source": "cli", "field": v and v[:9], "detail": v} for v in [*HOSTILE, None]]
    data_dir.mkdir()
    (data_dir / "events-2026-11-23.jsonl").write_text("\n".join([*lines, "torn\n"]))
    (data_dir / "refused-2026-11-23.jsonl").write_text(
        "".join(json.dumps({"received_at": "", **refusal}) + "\n" for refusal in refusals)
    )


def make_set(name: str, data_dir: Path) -> list[str]:
    """Make the files of one of SETS, and return the arguments to report on them."""
    if name == "none":
        data_dir.mkdir()
    elif name == "hostile":
        write_hostile_files(data_dir)
    elif name == "no addresses":
        data_dir.mkdir()
        line = GOOD.replace(b'"192.0.2.1"', b"null") + b"\n"
        (data_dir / "events-2026-11-23.jsonl").write_bytes(line)
    else:
        send_a_week(data_dir)
    since = {"one day": "2026-11-23", "a week": "2026-11-17", "a year": "2025-11-24"}.get(name)
    return [f"--since={since}"] if since else []


# The page.


@pytest.fixture
def show(browser: Chromium, tmp_path: Path) -> Iterator[Callable[..., Tab]]:
    """Show a page in a tab, from a file."""
    tabs: list[Tab] = []

    def open_page(html: str, width: int = 1200, scheme: str = "light") -> Tab:
        path = tmp_path / "report.html"
        path.write_text(html, encoding="utf-8")
        tabs.append(tab := browser.open_tab())
        screen = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 500}
        tab.call("Emulation.setDeviceMetricsOverride", **screen)
        feature = {"name": "prefers-color-scheme", "value": scheme}
        tab.call("Emulation.setEmulatedMedia", features=[feature])
        tab.go(path.as_uri())
        tab.wait_for("Page.loadEventFired")
        return tab

    yield open_page
    for tab in tabs:
        tab.close()


# The rows of all tables, by the id of what they are in; null where a value is shown as unknown.
READ_TABLES = """(() => {
  const tables = {};
  for (const row of document.querySelectorAll("tbody tr")) {
    const cells = [...row.cells].map(
      cell => cell.querySelector("i") ? null : cell.textContent);
    (tables[row.closest("[id]").id] ??= []).push(cells);
  }
  return tables;
})()"""


def shown(value: str | None) -> str | None:
    """Return a value as it stands in the files."""
    return value and json.dumps(value)[1:-1]


def tables_of(report: dict[str, Any]) -> dict[str, list[list[str | None]]]:
    """Return the tables that the page must have, from the JSON."""
    tables: dict[str, list[list[str | None]]] = {}
    for source in ("core", "cli"):
        windows = [report["active"][days][source] for days in ("30", "7", "1")]
        tables[f"{source}-active"] = [
            [key, *(f"{window[key]:,}" for window in windows)] for key in windows[0]
        ]
        tables[f"{source}-days"] = [
            [day["date"], *(f"{count:,}" for count in day[source].values())]
            for day in report["days"]
        ]
        for name, rows in report[source].items():
            if name == "resource_count":
                if rows["max"] is not None:
                    tables["core-resource_count"] = [[f"{count:,}" for count in rows.values()]]
            elif rows:
                tables[f"{source}-{name}"] = [
                    list_row(row, report["events"][source]) for row in rows
                ]
    if report["refused"]:
        sources = {"core": "Apps", "cli": "Command line"}
        tables["refused"] = [
            [shown(r["detail"]), shown(r["field"]), sources[r["source"]], f"{r['events']:,}"]
            for r in report["refused"]
        ]
    return tables


def list_row(row: dict[str, Any], total: int) -> list[str | None]:
    cells = [shown(row[key]) for key in ("name", "value", "version") if key in row]
    cells += [f"{row['events']:,}", f"{100 * row['events'] / total:.1f}%"]
    return [*cells, f"{row['projects']:,}"] if "projects" in row else cells


@pytest.mark.slow
@pytest.mark.parametrize("name", SETS)
def test_every_number_of_the_page_is_that_of_the_json(
    show: Callable[..., Tab], report_as: Callable[..., str], data_dir: Path, name: str
) -> None:
    arguments = make_set(name, data_dir)
    report = json.loads(report_as("json", *arguments))
    tab = show(report_as("html", *arguments))

    assert tab.evaluate(READ_TABLES) == tables_of(report)
    for source in ("core", "cli"):
        heading = tab.evaluate(f"document.getElementById('{source}').textContent")
        events = report["events"][source]
        assert heading.endswith(f": {events:,} event{'' if events == 1 else 's'}")
    assert (report["unreadable_lines"] > 0) == (name == "hostile")
    said = tab.evaluate("document.getElementById('unreadable')?.textContent")
    assert said == ("1 line could not be read." if name == "hostile" else None)
    assert f"{report['since']} to {report['until']}" in tab.evaluate("document.title")


READ_CHARTS = """[...document.querySelectorAll("figure")].map(figure => ({
  end: figure.querySelector(".y span").textContent,
  bars: [...figure.querySelectorAll("rect")].map(
    bar => [bar.textContent, Number(bar.getAttribute("height"))]),
}))"""


@pytest.mark.slow
def test_a_bar_is_as_high_as_its_number(
    show: Callable[..., Tab], report_as: Callable[..., str], data_dir: Path
) -> None:
    send_a_week(data_dir)
    days = json.loads(report_as("json"))["days"]
    charts = show(report_as("html")).evaluate(READ_CHARTS)

    series = [(source, key) for source in ("core", "cli") for key in ("addresses", "events")]
    for (source, key), chart in zip(series, charts, strict=True):
        counts = [(day["date"], day[source][key]) for day in days]
        assert [bar[0] for bar in chart["bars"]] == [f"{day}: {n}" for day, n in counts]
        heights = [100 * count / int(chart["end"]) for _, count in counts]
        assert [bar[1] for bar in chart["bars"]] == pytest.approx(heights, abs=0.01)
        assert 50 <= max(heights) <= 100


READ_CLIPPED = """[...document.querySelectorAll("tbody th, td")]
  .filter(cell => cell.scrollWidth > cell.clientWidth + 1).map(cell => cell.textContent)"""
OPEN_ALL = "document.querySelectorAll('details').forEach(details => details.open = true)"
# The least contrast of a text, and of a mark, with what is behind it (WCAG 2.2, 1.4.3 and 1.4.11).
READ_CONTRASTS = """(() => {
  const numbers = color => color.match(/[\\d.]+/g).map(Number);
  const luminance = color => {
    const [r, g, b] = numbers(color).map(
      n => n / 255 <= .04045 ? n / 255 / 12.92 : ((n / 255 + .055) / 1.055) ** 2.4);
    return .2126 * r + .7152 * g + .0722 * b;
  };
  const behind = element => {
    const color = getComputedStyle(element).backgroundColor;
    return numbers(color)[3] === 0 ? behind(element.parentElement) : color;
  };
  const contrast = (element, color) => {
    const [dark, light] = [luminance(color), luminance(behind(element))].sort((a, b) => a - b);
    return (light + .05) / (dark + .05);
  };
  const texts = [...document.querySelectorAll("main *")].filter(element =>
    [...element.childNodes].some(node => node.nodeType === 3 && node.data.trim())
    && !element.closest("svg"));
  return [
    Math.min(...texts.map(text => contrast(text, getComputedStyle(text).color))),
    Math.min(...[...document.querySelectorAll("rect")].map(
      mark => contrast(mark, getComputedStyle(mark).fill))),
  ];
})()"""


@pytest.mark.slow
@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [400, 1200])
@pytest.mark.parametrize("name", SETS)
def test_the_page_fits_is_readable_and_asks_for_nothing(
    show: Callable[..., Tab],
    report_as: Callable[..., str],
    data_dir: Path,
    name: str,
    width: int,
    scheme: str,
) -> None:
    tab = show(report_as("html", *make_set(name, data_dir)), width, scheme)
    tab.evaluate(OPEN_ALL)
    tab.wait_until_idle()

    assert tab.evaluate("document.scrollingElement.scrollWidth <= innerWidth")
    assert tab.evaluate(READ_CLIPPED) == []
    assert tab.errors() == []
    (request,) = tab.events("Network.requestWillBeSent")
    assert request["request"]["url"].startswith("file:")
    text, mark = tab.evaluate(READ_CONTRASTS)
    assert text >= 4.5
    assert mark is None or mark >= 3  # without events there is none
    background = tab.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (background == "rgb(255, 255, 255)") == (scheme == "light")


@pytest.mark.slow
def test_print_shows_what_is_folded_on_the_screen(
    show: Callable[..., Tab], report_as: Callable[..., str], data_dir: Path
) -> None:
    write_hostile_files(data_dir)
    tab = show(report_as("html"), scheme="dark")
    visible = "[...document.querySelectorAll('tbody')].filter(t => t.checkVisibility()).length"
    on_screen = tab.evaluate(visible)
    tab.call("Emulation.setEmulatedMedia", media="print")

    assert (
        on_screen
        < tab.evaluate(visible)
        == tab.evaluate("document.querySelectorAll('tbody').length")
    )
    assert tab.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"


def test_the_page_is_one_file_that_escapes_what_events_hold(
    report_as: Callable[..., str], data_dir: Path, tmp_path: Path
) -> None:
    write_hostile_files(data_dir)
    assert report_as("html", f"--output={tmp_path / 'report.html'}") == ""
    page = (tmp_path / "report.html").read_text(encoding="utf-8")

    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in page
    assert re.findall(r"<(?:script|img|link|iframe)|url\(|@import|\u202e|\u200b", page) == []
    assert page.count("</style>") == 1


# The text.


@pytest.mark.parametrize("style", ["text", "html"])
def test_people_are_told_what_an_address_is_not(
    report_as: Callable[..., str], data_dir: Path, style: str
) -> None:
    send_a_week(data_dir)
    report = report_as(style)

    assert "An address is not a person" in report
    assert "hashed counts as another on each day" in report


def test_the_text_says_the_same_numbers(report_as: Callable[..., str], data_dir: Path) -> None:
    send_a_week(data_dir)
    report, text = json.loads(report_as("json")), report_as("text")
    lines = [line.split() for line in text.splitlines()]

    for source, name in (("core", "Apps"), ("cli", "Command line")):
        assert f"{name}: {report['events'][source]:,} events" in text
        for days in ("30", "7", "1"):
            counts = [f"{n:,}" for n in report["active"][days][source].values()]
            assert any(line[-len(counts) :] == counts for line in lines)
        for rows in report[source].values():
            for row in rows[:10] if isinstance(rows, list) else []:
                share = f"{100 * row['events'] / report['events'][source]:.1f}%"
                numbers = [f"{row['events']:,}", share]
                numbers += [f"{row['projects']:,}"] if "projects" in row else []
                names = [line for line in text.splitlines() if line.strip().startswith(label(row))]
                assert any(line.split()[-len(numbers) :] == numbers for line in names)
    assert f"Refused: {sum(row['events'] for row in report['refused']):,} requests" in text


@pytest.mark.parametrize("name", SETS)
def test_the_text_fits_80_columns_and_has_no_colour_in_a_pipe(
    report_as: Callable[..., str], data_dir: Path, name: str
) -> None:
    text = report_as("text", *make_set(name, data_dir))

    assert max(map(len, text.splitlines())) <= 80
    assert "\x1b" not in text
    assert text == "\n".join(line.rstrip() for line in text.splitlines()) + "\n"
    assert {character for character in text if not character.isascii()} <= set("▁▂▃▄▅▆▇█·…")


def test_the_text_has_the_top_ten_and_how_many_more(
    report_as: Callable[..., str], data_dir: Path
) -> None:
    write_hostile_files(data_dir)
    text = report_as("text")
    commands = text.partition("  Commands ")[2].partition("\n\n")[0].splitlines()[1:]

    assert len(commands) == 11
    assert commands[-1].strip() == f"and {len(HOSTILE) + 1 - 10} more"
    assert "1 line could not be read." in text


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ({"value": "dev"}, "dev"),
        ({"value": None}, "unknown"),
        ({"value": "Linux", "version": None}, "Linux (version unknown)"),
        ({"value": None, "version": None}, "unknown"),
        ({"name": "core", "version": "5"}, "core 5"),
        ({"name": "a\u202eb\x7f", "version": "\x1b[1mé"}, "a\\u202eb\\u007f \\u001b[1m\\u00e9"),
    ],
)
def test_a_label_is_safe_and_says_what_is_unknown(row: dict[str, Any], expected: str) -> None:
    assert label(row) == expected


@pytest.mark.parametrize(
    ("text", "fitted"),
    [
        ("", "     "),
        ("abcde", "abcde"),
        ("abcdef", "abcd…"),
    ],
)
def test_a_text_is_cut_or_filled_to_its_columns(text: str, fitted: str) -> None:
    assert fit(text, 5) == fitted


@pytest.mark.parametrize(
    ("values", "line"),
    [
        ([0, 0], "··"),
        ([0, 1, 4, 8], "·▁▄█"),
        ([1, 1000], "▁█"),
        ([0, 8, 4, 0, 1], "█▄▁"),  # five in three: pairs
    ],
)
def test_a_sparkline_shows_nothing_apart_from_little(values: list[int], line: str) -> None:
    assert sparkline(values, 4 if len(values) < 5 else 3) == line


@pytest.mark.parametrize(
    ("most", "top"), [(0, 2), (1, 2), (2, 2), (3, 4), (19, 20), (21, 30), (872, 900), (1234, 1300)]
)
def test_a_chart_ends_at_a_round_number(most: int, top: int) -> None:
    assert chart_top(most) == top


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
        ["env", "--default-signal=INT", FLASK, "report", "--until=2026-11-23"],
        cwd=ROOT,
        env={**clean, "TELEMETRY_DATA_DIR": str(data_dir), **(environ or {})},
        start_new_session=True,
        **streams,
    )


def test_colour_is_for_a_terminal_and_says_nothing_more(data_dir: Path) -> None:
    send_a_week(data_dir)
    coloured = run_on_terminal(data_dir, "stdout")
    plain = run_on_terminal(data_dir, "stdout", NO_COLOR="1")

    assert coloured.status == plain.status == 0
    assert "\x1b[1m" in coloured.terminal
    assert "\x1b" not in plain.terminal
    assert click.unstyle(coloured.terminal) == plain.terminal
    assert 80 < max(map(len, plain.terminal.splitlines())) <= 100


def test_progress_is_shown_on_a_terminal_only(data_dir: Path) -> None:
    send_a_week(data_dir)
    ran = run_on_terminal(data_dir, "stderr")
    in_pipes = start_report(data_dir, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    out, err = in_pipes.communicate(timeout=PATIENCE_SECONDS)

    assert ran.status == in_pipes.returncode == 0
    assert "100%" in ran.terminal
    assert ran.piped.startswith("Telemetry from ")
    assert err == b""
    assert "%" not in out.decode().partition("Apps:")[0]


@pytest.mark.slow
@pytest.mark.parametrize("size", [0, 2**23], ids=["one process", "several processes"])
def test_ctrl_c_ends_it_with_one_line(data_dir: Path, size: int) -> None:
    data_dir.mkdir()
    line = GOOD + b"\n"
    (data_dir / "events-2026-11-22.jsonl").write_bytes(line * (size // len(line)))
    os.mkfifo(data_dir / "events-2026-11-23.jsonl.gz")
    process = start_report(data_dir, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    # It opens once the report reads it, and the report then waits for more.
    with (data_dir / "events-2026-11-23.jsonl.gz").open("wb", buffering=0) as fifo:
        fifo.write(gzip.compress(line))
        os.killpg(process.pid, signal.SIGINT)  # as a terminal does
        out, err = process.communicate(timeout=PATIENCE_SECONDS)

    assert (process.returncode, out, err.split(b"\n")) == (1, b"", [b"", b"Aborted!", b""])


@pytest.mark.slow
def test_a_reading_process_that_is_killed_ends_it_with_one_line(data_dir: Path) -> None:
    """As the kernel does when memory runs out: what it read would be waited for for ever."""
    data_dir.mkdir()
    line = GOOD + b"\n"
    (data_dir / "events-2026-11-22.jsonl").write_bytes(line * (2**24 // len(line) + 1))
    os.mkfifo(data_dir / "events-2026-11-23.jsonl.gz")
    process = start_report(data_dir, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    with (data_dir / "events-2026-11-23.jsonl.gz").open("wb", buffering=0):
        for reader in children(process.pid):
            os.kill(reader, signal.SIGKILL)
        out, err = process.communicate(timeout=PATIENCE_SECONDS)

    assert (process.returncode, out) == (1, b"")
    assert err == b"Error: a reading process was killed (out of memory?)\n"
