"""What the report tells people, decided from its JSON: words, ranks, what is rare or unknown."""

import re
from collections.abc import Iterator
from datetime import date
from pathlib import Path
from typing import Any

import click
import pytest

from plain_report import LISTS, UNITS, Report, plain_report, row
from report.people import draw_page, draw_text, words
from report.people.listing import Row
from report.people.outline import Made, Outline, outline
from report.people.versions import Audience

TODAY = date(2026, 11, 25)
MADE = Made(TODAY, "1.2.3")
TERMINAL, PAGE = Audience.TERMINAL, Audience.PAGE
GOLDEN = Path(__file__).with_name("support") / "report.txt"


def told(report: Report, audience: Audience = TERMINAL, **made: Any) -> Outline:
    return outline(report, audience, Made(TODAY, "1.2.3", **made))


def said(*arguments: Any, **made: Any) -> str:
    """Return all that is told, as one text."""
    return "".join(texts(told(*arguments, **made)))


def texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, tuple):
        for part in value:
            yield from texts(part)


def test_a_whole_report_on_a_terminal() -> None:
    series = [row("5.0", "projects", 60), row("4.9", "projects", 25), row("next", "projects", 9)]
    packages = [{"name": "@refinedev/core"} | row(None, "projects", 94, *series)]
    firefox = [row("145", "addresses", 30), row("144", "addresses", 30)]
    refused = [
        {"source": "cli", "field": "x", "detail": "x: want a string.", "events": 19},
        {"source": None, "field": None, "detail": "no route", "events": 1},
    ]
    report = plain_report(
        hosts=(1270, 1044),
        versions={"5.0.1": 1132, "4.9.1": 75, "4.8.2": 63},
        weeks=[{"5.0": 150 * n, "4.9": 900 - 100 * n, "4.8": 63} for n in range(8)],
        missing=(4,),
        automated={"events": 60, "names": []},
        core_projects=(1310, 1085),
        core_browsers=[row("Firefox", "addresses", 60, *firefox), row(None, "addresses", 40)],
        cli_packages=packages,
        refused=refused,
    )
    report["days"][-2]["refused"] = 20
    text = click.unstyle(draw_text(report, 80, MADE))

    assert f"{text}\n" == GOLDEN.read_text(encoding="utf-8")


BEFORE = "in the 28 days before"
NO_APPS: dict[str, Any] = {
    "events": {"core": 0, "cli": 1000},
    **{f"core_{unit}": (0, 0) for unit in UNITS["core"]},
}


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        # The first sentence.
        ({"hosts": (80, 100)}, f"80 deployed hosts were active, 20 fewer than {BEFORE} (−20%)."),
        ({"hosts": (99, 90)}, f"99 deployed hosts were active, 9 more than {BEFORE}."),
        ({"hosts": (1, 1)}, f"1 deployed host was active, as many as {BEFORE}."),
        ({"hosts": (0, 5)}, f"0 deployed hosts were active, 5 fewer than {BEFORE}."),
        ({"hosts": (5, None)}, "5 deployed hosts were active."),
        (NO_APPS | {"cli_projects": (100, 80)}, "100 command-line projects were active, 20 more"),
        (NO_APPS | {"cli_projects": (None, 80)}, "Unknown how many command-line projects were"),
        # The second one.
        ({"versions": {"5.1.0": 60, "5.0.1": 40}}, "100% of them run 5.0 or newer."),
        ({"versions": {"5.0.1": 75, "4.9": 24, None: 1}}, "75% of them run 5.0 or newer; 25 hosts"),
        ({"versions": {"5.0": 90, "5.0-b": 10}}, "run 5.0 or newer; 10 hosts (10%) do not."),
        ({"versions": {"5.0-rc.1": 10, "4.9": 90}}, "100% of them run 4.0 or newer."),
        ({"versions": {"9.9.9": 1, "5.0.0": 199}, "hosts": (200, None)}, "100% of them run 5.0"),
        (
            {"versions": {"5.0.1": 1, "4.9": 1}, "hosts": (2, None)},
            "1 of them runs 5.0 or newer; 1",
        ),
        # What is missing, and what is left out.
        ({}, "Whole UTC days; weeks from 2026-09-30."),
        ({"unfinished": True}, "UTC days, 2026-11-24 is not over; weeks from 2026-09-30."),
        ({"days": 6}, "Whole UTC days."),
        ({"missing_days": ["2026-11-01", "2026-11-02"]}, "No file of 2026-11-01 to 2026-11-02."),
        ({"missing_days": [f"2026-11-{day:02}" for day in (1, 3, 5, 7)]}, "No file of 4 days."),
        ({"unreadable_lines": 1}, "1 line could not be read."),
        ({"excluded": {"patterns": ["*.com"], "events": 40}}, "Excluded by option: 40 events."),
        ({"automated": {"events": 8}}, "Left out: 8 events (<1%) of programs that name themselves"),
        # Figures of days without files.
        ({"missing": (30,)}, "* Files of 27 of the 28 days before."),
        ({"missing": (0, 1)}, "* Files of 5 of the 7 days: too few to compare (–)."),
        (
            {"missing": tuple(range(40))},
            "* Files of 0 of the 28 days and of 16 of the 28 days before: too few to compare (–).",
        ),
        ({"unfinished": True}, "* The last day is not over."),
        # What the units are not, and what is unknown.
        ({"core_projects": (None, None)}, "– No event of apps came with a projectId."),
        (
            {"core_addresses": (None, None)},
            "– Addresses: stored hashed, with a new key each day, or",
        ),
        ({}, "25 of 100 projects of apps (25%) were seen in development only."),
        ({"masked": True}, "so networks are counted: /24 of IPv4, /48 of IPv6."),
        ({"projects_in_development_only": None}, "Rows overlap: do not add them."),
        ({"hosts": (20, None)}, "median 7; 80% of the deployed hosts have from 2 to 20"),
        ({"hosts": (19, None)}, "median 7"),
    ],
)
def test_it_says(changes: Any, sentence: str) -> None:
    assert sentence in said(plain_report(**changes))


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({"versions": {"next": 50}}, "newer"),
        ({"hosts": (99, 90)}, "(+10%)"),
        ({"hosts": (19, None)}, "80%"),
        ({"core_projects": (None, None)}, "in development only"),
        ({}, "* "),
    ],
)
def test_it_does_not_say(changes: Any, word: str) -> None:
    assert word not in said(plain_report(**changes))


@pytest.mark.parametrize(
    ("changes", "sentence", "is_said"),
    [
        ({}, "No file of 2026-11-20 (day hatched, week dashed).", True),
        ({"since": "2026-11-21"}, "No file of 2026-11-20.", True),
        ({"hosts": (20, None)}, "median 7; 80% of the deployed hosts have from 2 to 20", True),
        ({"hosts": (19, None)}, "median", False),
    ],
)
def test_the_page_says(changes: Any, sentence: str, is_said: bool) -> None:
    assert (sentence in said(plain_report(missing=(4,), **changes), PAGE)) == is_said


OF_TODAY = "That of today, 2026-11-25, is not finished: `flask report --until today` counts it."


@pytest.mark.parametrize(
    ("missing", "has_today", "why"),
    [
        (56, False, "there is no events file from 2026-09-30 to 2026-11-24."),
        (56, True, f"there is no events file from 2026-09-30 to 2026-11-24. {OF_TODAY}"),
        (20, False, "the events files hold no event from 2026-09-30 to 2026-11-24."),
    ],
)
def test_an_empty_report_says_why_and_what_would_help(
    missing: int, has_today: bool, why: str
) -> None:
    changes = NO_APPS | {f"cli_{unit}": (0, 0) for unit in UNITS["cli"]}
    changes |= {"events": {"core": 0, "cli": 0}, "adoption": []}
    report = plain_report(missing=tuple(range(missing)), **changes)

    assert f"Nothing to report: {why}" in said(report, has_today=has_today)


# Figures, bars and versions.


@pytest.mark.parametrize(
    ("changes", "marks"),
    [
        ({}, ("", "", "", "")),
        ({"missing": (30,)}, ("", "*", "", "")),
        ({"missing": (9,)}, ("*", "*", "", "*")),
        ({"missing": (3,)}, ("*", "*", "*", "*")),
        ({"missing": (0, 1)}, ("*", "*", "*", "")),
        ({"unfinished": True}, ("*", "*", "*", "*")),
    ],
)
def test_figures_of_days_that_lack_files_or_are_not_over_are_marked(
    changes: Any, marks: tuple[str, ...]
) -> None:
    active = told(plain_report(**changes)).active

    assert active is not None
    assert active.marks == marks


def test_zero_few_missing_part_and_unknown_are_drawn_differently() -> None:
    report = plain_report(missing=(*range(14, 21), 8), unfinished=True)
    counts: list[int | None] = [100, 0, 1, 50, None, None, 60, 70]
    for week, count in zip(report["weeks"], counts, strict=True):
        week["core"]["hosts"] = count
    shown = told(report)
    assert shown.active is not None
    assert shown.days is not None
    weeks = shown.active.sources[0].units[0].weeks

    assert [bar.kind for bar in weeks.bars] == [
        *("count", "zero", "count", "count", "unknown", "missing", "part", "part")
    ]
    assert [bar.level for bar in weeks.bars] == [1, 0, 0.01, 0.5, 0, 0, 0.6, 0.7]
    assert weeks.bars[5].title == "2026-11-04 to 2026-11-10: no file"
    assert weeks.label == "Apps, deployed hosts each week: 100 in the first, 70 in the newest"
    assert "week 6 has files of 0 of 7 days; week 7 has files of 6 of 7 days" in said(report)
    assert [bar.kind for bar in shown.days.strips[0][1].bars[-2:]] == ["count", "part"]


@pytest.mark.parametrize(
    ("week", "shown"),
    [
        ({"4.9": 30, "4.10": 30, "5": 20, "5.0": 20}, ["5.0", "5", "4.10", "4.9"]),
        ({"5.0": 40, "5.0-pre": 30, "4.9": 30}, ["5.0", "5.0-pre", "4.9"]),
        ({"9.9": 1, "5.0": 200}, ["5.0", "other"]),
        ({"5.0": 60, "next": 30, "9" * 200: 10}, ["5.0", "other"]),
        ({f"4.{n}": n for n in range(9, 0, -1)}, [*(f"4.{n}" for n in range(9, 3, -1)), "other"]),
    ],
)
def test_the_series_with_the_highest_peaks_are_named_newest_first(
    week: dict[str, int], shown: list[str]
) -> None:
    report = plain_report(weeks=[week] * 8, hosts=(None, None), versions={None: 1})
    adoption = told(report).adoption

    assert adoption is not None
    assert [one.name for one in adoption.series] == shown


def test_more_than_26_weeks_are_shown_by_major() -> None:
    week = {"5.0": 50, "4.9": 30, "4.8": 20}
    adoption = told(plain_report(days=27 * 7, weeks=[week] * 27)).adoption

    assert adoption is not None
    assert [one.name for one in (*adoption.series, *adoption.majors)] == ["5.x", "4.x"]


def test_a_version_has_its_share_in_28_days_in_the_newest_week_and_4_weeks_before() -> None:
    weeks = [{"5.0": n, "4.9": 60 - n, "4.8": 40} for n in (0, 10, 20, 30, 40, 50, 60)]
    month = {"5.0.1": 80, "4.9.1": 60, "4.9.2": 20, "4.8.0": 40}
    adoption = told(plain_report(hosts=(200, 100), versions=month, weeks=weeks)).adoption

    assert adoption is not None
    assert [one[:1] + one[2:6] for one in (*adoption.series, *adoption.majors)] == [
        ("5.0", "80", "40%", "60%", "20%"),
        ("4.9", "80", "40%", "0%", "40%"),
        ("4.8", "40", "20%", "40%", "40%"),
        ("all 4.x", "120", "60%", "40%", "80%"),
    ]
    assert [bar.level for bar in adoption.series[0].bars] == [0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6]
    assert adoption.line == "5.x 40% · 4.x 60%"
    assert adoption.series[0].peak == 6


@pytest.mark.parametrize(
    ("period", "sentence"),
    [
        (
            56,
            "140 of 280 requests (50%) in the last 7 days;"
            " 140 of 700 requests (20%) in the 28 days before.",
        ),
        (1, "20 of 40 requests (50%) in the last 1 day."),
    ],
)
def test_refusals_have_their_share_of_the_last_7_days_and_of_the_28_before(
    period: int, sentence: str
) -> None:
    report = plain_report(days=period)
    for ago, day in enumerate(reversed(report["days"])):
        day["refused"] = 20 if ago < 7 else 5

    assert f"Refused: {sentence}" in said(report)


# Lists.


def listed(report: Report, source: str, name: str) -> Any:
    groups = told(report).lists
    return next(one for group in groups for one in group.lists if one.id == f"{source}-{name}")


def shown(one: Row) -> tuple[str, str, str, list[str]]:
    return one.name, one.units, one.share, [f"{part.name} {part.share}" for part in one.parts]


def test_a_list_is_ranked_by_its_unit_without_rows_that_say_nothing() -> None:
    """Of systems whose version browsers freeze there is none, nor of what no unit was seen with."""
    systems = [
        row("Windows", "addresses", 50, row("10", "addresses", 50)),
        row("iOS", "addresses", 40, row("18.6", "addresses", 30), row("26", "addresses", 10)),
        row("Linux", "addresses", 30, row(None, "addresses", 30)),
        row("old", "addresses", 0, events=9),
    ]

    rows = listed(plain_report(core_operating_systems=systems), "core", "operating_systems").rows

    assert list(map(shown, rows)) == [
        ("Windows", "50", "50%", []),
        ("iOS", "40", "40%", ["18.6 75%", "26 25%"]),
        ("Linux", "30", "30%", []),
    ]


@pytest.mark.parametrize(
    ("addresses", "why"), [(None, "are unknown"), (0, "there are no addresses")]
)
def test_a_list_counts_events_only_where_no_unit_is_known(addresses: Any, why: str) -> None:
    browsers = listed(
        plain_report(
            versions={"5.0.0": 40},
            core_addresses=(addresses, None),
            core_browsers=[
                row("Chrome", "addresses", addresses, events=10),
                row("Firefox", "addresses", addresses, events=30),
            ],
        ),
        *("core", "browsers"),
    )

    assert browsers.base.startswith("share of 40 events in 28 days: ")
    assert browsers.base.endswith(why)
    assert [shown(one)[:3] for one in browsers.rows] == [
        ("Firefox", "30", "75%"),
        ("Chrome", "10", "25%"),
    ]


# What can be published.


def test_the_page_names_no_value_of_fewer_than_three_units() -> None:
    """Values that one or two units chose: each is told on the terminal, and not on the page."""
    report = plain_report(
        versions={"5.0.1": 96, "secret-1": 2, "7777.7.7": 2},
        weeks=[{"5.0": 98, "7777.7": 2}] * 8,
        excluded={"patterns": ["secret-2"], "events": 9},
        automated={"events": 9, "names": [row("secret-3", "x", 2)]},
        refused=[{"source": "cli", "field": "x", "detail": "secret-4", "events": 2}],
    )
    for source, lists in LISTS.items():
        for name, unit in lists.items():
            if name == "versions":
                continue
            key = {"name": "common"} if name == "packages" else {}
            other = {"name": "secret-5"} if name == "packages" else {}
            versions = [row("1.0", unit, 50), row("secret-6", unit, 2), row("6666.6", unit, 1)]
            report[source][name] = [
                row("common", unit, 60, *versions) | key,
                row("secret-7", unit, 2, row("secret-8", unit, 1)) | other,
            ]
    page, terminal = draw_page(report, MADE), said(report)

    assert not re.search("secret|7777|6666|4321", page)
    assert all(f"secret-{n}" in terminal for n in (1, 4, 5, 6, 7))
    assert page.count("Rare: ") == len(report["core"]) - 1 + len(report["cli"])
    assert "2 rare" in page


@pytest.mark.parametrize(("events", "is_named"), [(10, True), (9, False)])
def test_where_only_events_are_known_the_page_names_values_of_one_in_a_hundred(
    events: int, is_named: bool
) -> None:
    report = plain_report(versions={"5.0.0": 1000 - events, "secret": events}, hosts=(0, 0))

    assert ("secret" in said(report, PAGE)) == is_named


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


def test_a_share_of_refusals_has_a_decimal() -> None:
    assert words.share(4, 1000, 1) == "0.4%"
    assert words.share(1, 10000, 1) == "<0.1%"


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
    assert (TERMINAL.named(value), PAGE.named(value)) == (on_terminal, on_page)


def test_long_names_are_cut_in_the_middle() -> None:
    assert words.cut("@scope/a-long-name-1", 20) == "@scope/a-long-name-1"
    assert words.cut("@scope/a-long-name-1", 13) == "@scope…name-1"
