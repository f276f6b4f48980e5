"""What the report tells people, decided from its JSON: words, ranks, what is rare or unknown."""

import re
from datetime import date
from typing import Any

import pytest

from plain_report import LISTS, Report, plain_report, row, windows
from report.people import draw_page, words
from report.people.listing import Row
from report.people.outline import Made, Outline, outline
from report.people.versions import Audience

TODAY = date(2026, 11, 25)
TERMINAL, PAGE = Audience.TERMINAL, Audience.PAGE


def told(report: Report, audience: Audience = TERMINAL, **made: Any) -> Outline:
    return outline(report, audience, Made(TODAY, "1.2.3", **made))


def sentences(report: Report, audience: Audience = TERMINAL, **made: Any) -> str:
    return " ".join(map("".join, told(report, audience, **made).sentences))


def notes(report: Report) -> str:
    active = told(report).active
    assert active is not None
    return "\n".join([active.about_weeks, *active.notes])


EMPTY: Report = {
    "events": {"core": 0, "cli": 0},
    "active": {
        source: {unit: windows(0, None) for unit in units}
        for source, units in plain_report()["active"].items()
    },
    "adoption": [],
}


# The first lines.


@pytest.mark.parametrize(
    ("hosts", "said"),
    [
        ((1270, 1044), "1,270 deployed hosts were active, 226 more than BEFORE (+22%)."),
        ((80, 100), "80 deployed hosts were active, 20 fewer than BEFORE (−20%)."),
        ((99, 90), "99 deployed hosts were active, 9 more than BEFORE."),
        ((1, 1), "1 deployed host was active, as many as BEFORE."),
        ((0, 5), "No deployed hosts were active, 5 fewer than BEFORE."),
        ((0, 0), "No deployed hosts were active."),
        ((5, None), "5 deployed hosts were active."),
    ],
)
def test_the_first_sentence_compares_deployed_hosts(hosts: Any, said: str) -> None:
    said = said.replace("BEFORE", "in the 28 days before")
    assert sentences(plain_report(hosts=hosts, versions={None: hosts[0]})) == said


@pytest.mark.parametrize(
    ("versions", "newest", "rest"),
    [
        ({"5.0.1": 1132, "4.9": 138}, "89% of them run 5.0", "138 hosts (11%) are still on 4.x"),
        ({"5.1.0": 30, "5.0.1": 30}, "100% of them run 5.0", ""),
        ({"5.0.1": 12, "4.9.0": 3}, "12 of them run 5.0", "3 hosts are still on 4.x"),
        ({"5.0.1": 1, "4.9.0": 1}, "1 of them runs 5.0", "1 host is still on 4.x"),
        ({"5.0.1": 1, None: 1}, "1 of them runs 5.0", "1 host is still on another version"),
        ({"5.0.1": 1}, "It runs 5.0", ""),
        ({"5.0.0-rc.1": 10, "4.9.0": 90}, "100% of them run 4.0", ""),
        ({"5.0": 18, "5.0-b": 2}, "90% of them run 5.0", "2 hosts (10%) are still on 5.x-pre"),
        (
            {"5.0": 18, "b": 1, None: 1},
            "90% of them run 5.0",
            "2 hosts (10%) are still on other versions",
        ),
        ({"9.9.9": 1, "5.0.0": 199}, "100% of them run 5.0", ""),
    ],
)
def test_the_second_sentence_tells_who_runs_the_newest_major(
    versions: Any, newest: str, rest: str
) -> None:
    report = plain_report(hosts=(sum(versions.values()), None), versions=versions)
    said = f"{newest} or newer; {rest}." if rest else f"{newest} or newer."
    assert sentences(report).partition(". ")[2] == said


def test_without_a_numbered_version_there_is_no_second_sentence() -> None:
    assert len(told(plain_report(hosts=(50, None), versions={"next": 50})).sentences) == 1


@pytest.mark.parametrize(
    ("projects", "said"),
    [
        (100, "100 projects of the command line were active, 20 more than in the 28 days"),
        (1, "1 project of the command line was active, 79 fewer than in the 28 days before."),
        (None, "Unknown how many projects of the command line were active: no event came with a"),
    ],
)
def test_a_report_of_commands_alone_begins_with_their_projects(projects: Any, said: str) -> None:
    report = plain_report(hosts=(0, 0), versions={})
    report["events"]["core"] = 0
    report["active"]["core"] = {unit: windows(0, 0) for unit in report["active"]["core"]}
    report["active"]["cli"]["projects"] = windows(projects, 80)

    assert sentences(report).startswith(said)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({}, "Whole UTC days; weeks from 2026-09-30."),
        ({"unfinished": True}, "UTC days, 2026-11-24 is not over; weeks from 2026-09-30."),
        ({"weeks": []}, "Whole UTC days."),
        ({"missing_days": ["2026-11-01", "2026-11-02"]}, "No file of 2026-11-01 to 2026-11-02."),
        ({"missing_days": [f"2026-11-{day:02}" for day in (1, 3, 5, 7)]}, "No file of 4 days."),
        ({"unreadable_lines": 1}, "1 line could not be read."),
        ({"excluded": {"patterns": ["*.com"], "events": 40}}, "Excluded by option: 40 events."),
        (
            {"automated": {"events": 60, "names": [row("bot", "x", 60)]}},
            "Left out: 60 events (1%) of programs that name themselves bots: bot.",
        ),
        (
            {"automated": {"events": 8, "names": [row(f"bot{n}", "x", 2) for n in range(4)]}},
            "Left out: 8 events (<1%) of programs that name themselves bots:"
            " bot0, bot1, bot2, others.",
        ),
    ],
)
def test_the_period_tells_what_is_missing_and_what_is_left_out(change: Any, said: str) -> None:
    assert said in told(plain_report() | change).period


def test_the_page_does_not_name_a_bot_of_less_than_three_events() -> None:
    report = plain_report(automated={"events": 1, "names": [row("bot", "x", 1)]})
    said = "Left out: 1 event (<1%) of programs that name themselves bots."
    assert said in told(report, PAGE).period


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({}, "No file of 2026-11-20 (day hatched, week dashed)."),
        ({"weeks": []}, "No file of 2026-11-20."),
        ({"since": "2026-11-21"}, "No file of 2026-11-20."),
        (EMPTY, "No file of 2026-11-20."),
    ],
)
def test_the_page_says_how_missing_files_are_drawn_where_they_are(change: Any, said: str) -> None:
    assert said in told(plain_report(missing=(4,)) | change, PAGE).period


NO_EVENT = "the events files from 2026-09-30 to 2026-11-24 hold no event."
OF_TODAY = "of today, 2026-11-25, and not finished: `flask report --until today` counts it."


@pytest.mark.parametrize(
    ("missing", "has_today", "said"),
    [
        (56, False, "there is no events file from 2026-09-30 to 2026-11-24."),
        (56, True, f"the only file is {OF_TODAY}"),
        (20, False, NO_EVENT),
        (20, True, f"{NO_EVENT} Another is {OF_TODAY}"),
    ],
)
def test_an_empty_report_says_why_and_what_would_help(
    missing: int, has_today: bool, said: str
) -> None:
    report = plain_report(missing=tuple(range(missing)), hosts=(0, None)) | EMPTY

    assert sentences(report, has_today=has_today) == f"Nothing to report: {said}"


# The table of active units.


@pytest.mark.parametrize(
    ("missing", "marks", "said"),
    [
        ((), ("", "", "", ""), ""),
        ((30,), ("", "*", "", ""), "* Files of 27 of the 28 days before."),
        ((9,), ("*", "*", "", "*"), "* Files of 6 of the 7 days before."),
        ((3,), ("*", "*", "*", "*"), "* Files of 27 of the 28 days."),
        ((0, 1), ("*", "*", "*", ""), "* Files of 5 of the 7 days: too few to compare (–)."),
        (
            range(40),
            ("*", "", "*", ""),
            "* Files of 0 of the 28 days and of 16 of the 28 days before: too few to compare (–).",
        ),
    ],
)
def test_figures_of_days_without_files_are_marked(missing: Any, marks: Any, said: str) -> None:
    report = plain_report(missing=tuple(missing))
    active = told(report).active

    assert active is not None
    assert active.marks == marks
    assert said in notes(report)


def test_a_day_that_is_not_over_marks_all_figures_and_its_bars() -> None:
    report = told(plain_report(unfinished=True))

    assert report.active is not None
    assert report.days is not None
    assert report.active.marks == ("*", "*", "*", "*")
    for strip in (report.active.sources[0].units[0].weeks, report.days.strips[0][1]):
        assert [bar.kind for bar in strip.bars[-2:]] == ["count", "part"]


def test_zero_few_missing_part_and_unknown_are_drawn_differently() -> None:
    report = plain_report(missing=(*range(14, 21), 8))
    counts: list[int | None] = [100, 0, 1, 50, None, None, 60, 70]
    for week, count in zip(report["weeks"], counts, strict=True):
        week["core"]["hosts"] = count
    active = told(report).active
    assert active is not None
    weeks = active.sources[0].units[0].weeks

    assert [bar.kind for bar in weeks.bars] == [
        *("count", "zero", "count", "count", "unknown", "missing", "part", "count")
    ]
    assert [bar.level for bar in weeks.bars] == [1, 0, 0.01, 0.5, 0, 0, 0.6, 0.7]
    assert weeks.bars[5].title == "2026-11-04 to 2026-11-10: no file"
    assert weeks.label == "Apps, deployed hosts each week: 100 in the first, 70 in the newest"
    assert "week 6 has files of 0 of 7 days; week 7 has files of 6 of 7 days" in notes(report)


@pytest.mark.parametrize(
    ("unit", "stored_on_days", "said"),
    [
        ("projects", True, "– No event of apps came with a projectId."),
        ("addresses", False, "– Addresses: none was stored on 56 days, or several directories"),
        ("addresses", True, "– Addresses: stored hashed, with a new key each day, or masked on"),
    ],
)
def test_what_is_unknown_has_its_reason(unit: str, stored_on_days: bool, said: str) -> None:
    report = plain_report()
    report["active"]["core"][unit] = windows(None, None)
    if not stored_on_days:
        for day in report["days"]:
            day["core"][unit] = None
    active = told(report).active
    assert active is not None
    shown = next(one for one in active.sources[0].units if one.title == unit)

    assert (shown.month, shown.turnover) == (("–", "–", ""), ())
    assert said in notes(report)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({}, "A projectId came with 98% of the events of apps and with 100% of the events of the"),
        ({}, "25 of 100 projects of apps (25%) were seen in development only."),
        ({}, "“only now” includes who was active before 30 September 2026 and came back."),
        ({"masked": True}, "so networks are counted: /24 of IPv4, /48 of IPv6."),
        ({"projects_in_development_only": None}, "Rows overlap: do not add them."),
    ],
)
def test_the_table_says_what_its_units_are_not(change: Any, said: str) -> None:
    assert said in notes(plain_report(**change))


# Versions.


def series(report: Report, audience: Audience = TERMINAL) -> list[str]:
    adoption = told(report, audience).adoption
    return [one.name for one in (*adoption.series, *adoption.majors)] if adoption else []


@pytest.mark.parametrize(
    ("week", "shown"),
    [
        ({"4.9": 30, "4.10": 30, "5": 20, "5.0": 20}, ["5.0", "5", "4.10", "4.9"]),
        ({"5.0": 40, "5.0-pre": 30, "4.9": 30}, ["5.0", "5.0-pre", "4.9"]),
        ({"9.9": 1, "5.0": 200}, ["5.0", "other"]),
        ({"5.0": 60, "next": 30, "9" * 200: 10}, ["5.0", "other"]),
        (
            {f"4.{n}": n for n in range(1, 13)},
            ["4.12", "4.11", "4.10", "4.9", "4.8", "4.7", "other"],
        ),
        ({f"{n}.{m}": 10 for n in range(1, 5) for m in range(9)}, ["4.x", "3.x", "2.x", "1.x"]),
    ],
)
def test_the_series_with_the_highest_peaks_are_named_newest_first(
    week: dict[str, int], shown: list[str]
) -> None:
    report = plain_report(weeks=[week] * 8, hosts=(None, None), versions={None: 1})

    assert series(report) == shown


def test_more_than_26_weeks_are_shown_by_major() -> None:
    week = {"5.0": 50, "4.9": 30, "4.8": 20}

    assert series(plain_report(days=27 * 7, weeks=[week] * 27))[:2] == ["5.x", "4.x"]


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


# Lists.


def listed(source: str, name: str, rows: list[Report], audience: Audience = TERMINAL) -> Any:
    report = plain_report()
    report[source][name] = rows
    return next(
        one
        for group in told(report, audience).lists
        for one in group.lists
        if one.id == f"{source}-{name}"
    )


def shown(row: Row) -> tuple[str, str, str, list[str]]:
    return row.name, row.units, row.share, [f"{part.name} {part.share}" for part in row.parts]


@pytest.mark.parametrize(
    ("source", "name", "rows", "expected"),
    [
        pytest.param(
            *("core", "browsers"),
            [row("Chrome", "addresses", 60, row("142", "addresses", 45))],
            [("Chrome", "60", "60%", ["142 75%"])],
            id="a row below has its share of the row above",
        ),
        pytest.param(
            *("core", "operating_systems"),
            [
                row("Windows", "addresses", 50, row("10", "addresses", 50)),
                row("iOS", "addresses", 40, row("18.6", "addresses", 40)),
                row("Linux", "addresses", 30, row(None, "addresses", 30)),
            ],
            [
                ("Windows", "50", "50%", []),
                ("iOS", "40", "40%", ["18.6 100%"]),
                ("Linux", "30", "30%", []),
            ],
            id="no versions that say nothing",
        ),
        pytest.param(
            *("cli", "commands"),
            [row("dev", "projects", 7), row("old", "projects", 0, events=9)],
            [("dev", "7", "7%", [])],
            id="what no unit was last seen with is left out",
        ),
    ],
)
def test_a_list_is_ranked_by_its_unit(
    source: str, name: str, rows: list[Report], expected: list[Any]
) -> None:
    assert [shown(one) for one in listed(source, name, rows).rows] == expected


def test_packages_have_their_versions_newest_first_and_a_line_of_majors() -> None:
    versions = [row(name, "projects", n) for name, n in (("4.9", 50), ("5.0", 30), ("next", 20))]
    package = {"name": "@refinedev/core"} | row(None, "projects", 100, *versions)
    (found,) = listed("cli", "packages", [package]).rows

    assert found.majors == "5.x 30% · 4.x 50%"
    assert shown(found)[3] == ["5.0 30%", "4.9 50%", "next 20%"]


@pytest.mark.parametrize(
    ("addresses", "base"),
    [
        (None, "share of 40 events in 28 days: addresses are unknown"),
        (0, "share of 40 events in 28 days: there are no addresses"),
    ],
)
def test_a_list_counts_events_only_where_no_unit_is_known(addresses: Any, base: str) -> None:
    report = plain_report(versions={"5.0.0": 40})
    report["active"]["core"]["addresses"] = windows(addresses, None)
    report["core"]["browsers"] = [
        row("Chrome", "addresses", addresses, events=10),
        row("Firefox", "addresses", addresses, events=30),
    ]
    browsers = next(one for one in told(report).lists[0].lists if one.id == "core-browsers")

    assert browsers.base == base
    assert [(one.name, one.units, one.share) for one in browsers.rows] == [
        ("Firefox", "30", "75%"),
        ("Chrome", "10", "25%"),
    ]


# What can be published.


def test_the_page_names_no_value_of_fewer_than_three_units() -> None:
    """Values that one or two units chose: each is told on the terminal, and not on the page."""
    report = plain_report(
        hosts=(100, 80),
        versions={"5.0.1": 96, "secret-1": 2, "7777.7.7": 2},
        weeks=[{"5.0": 98, "7777.7": 2}] * 8,
        excluded={"patterns": ["secret-2"], "events": 9},
        automated={"events": 9, "names": [row("bot", "x", 7), row("secret-3", "x", 2)]},
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
    page, terminal = draw_page(report, Made(TODAY, "1.2.3")), repr(told(report, TERMINAL))

    assert not re.search("secret|7777|6666|4321", page)
    assert all(f"secret-{n}" in terminal for n in (1, 3, 4, 5, 6, 7))
    assert page.count("Rare: ") == len(report["core"]) - 1 + len(report["cli"])
    assert "2 rare" in page


@pytest.mark.parametrize(("events", "is_named"), [(10, True), (9, False)])
def test_where_only_events_are_known_the_page_names_values_of_one_in_a_hundred(
    events: int, is_named: bool
) -> None:
    report = plain_report(versions={"5.0.0": 1000 - events, "secret": events}, hosts=(0, 0))

    assert ("secret" in repr(told(report, PAGE))) == is_named


@pytest.mark.parametrize(
    ("hosts", "audience", "said"),
    [
        (20, PAGE, "median 7; 80% of the deployed hosts have from 2 to 20"),
        (19, PAGE, ""),
        (20, TERMINAL, "median 7; 80% of the deployed hosts have from 2 to 20"),
        (19, TERMINAL, "median 7"),
    ],
)
def test_resources_have_a_span_only_where_hosts_are_many_and_a_few_are_not_published(
    hosts: int, audience: Audience, said: str
) -> None:
    assert told(plain_report(hosts=(hosts, None)), audience).lists[0].resources == said


def test_resources_that_most_hosts_agree_on_are_one_number() -> None:
    report = plain_report()
    report["core"]["resource_count"] = {"p10": 7, "median": 7, "p90": 7}
    assert told(report).lists[0].resources == "median 7; 80% of the deployed hosts have 7"


# Refusals.

IN_7_DAYS = "140 of 280 requests (50%) in the last 7 days"


@pytest.mark.parametrize(
    ("period", "said"),
    [
        (56, f"{IN_7_DAYS}; 140 of 700 requests (20%) in the 28 days before."),
        (8, f"{IN_7_DAYS}; 5 of 25 requests (20%) on the day before."),
        (7, f"{IN_7_DAYS}."),
        (1, "20 of 40 requests (50%) on the last day."),
    ],
)
def test_refusals_have_their_share_of_the_last_7_days_and_of_the_28_before(
    period: int, said: str
) -> None:
    report = plain_report(days=period)
    for ago, day in enumerate(reversed(report["days"])):
        day["refused"] = 20 if ago < 7 else 5
    days = told(report).days

    assert days is not None
    assert [name for name, _ in days.strips] == ["Apps", "Command line", "Refused"]
    assert days.refused == f"Refused: {said}"


# Words.


@pytest.mark.parametrize(
    ("now", "before", "difference", "in_percent"),
    [
        (100, 100, "0", ""),
        (110, 100, "+10", "+10%"),
        (90, 100, "−10", "−10%"),
        (109, 99, "+10", ""),
        (0, 1200, "−1,200", "−100%"),
        (1001, 1000, "+1", "+<1%"),
        (999, 1000, "−1", "−<1%"),
        (1100, 100, "+1,000", "+1,000%"),
        (None, 100, "–", ""),
        (100, None, "–", ""),
    ],
)
def test_a_change_has_a_percentage_only_from_a_base_of_100(
    now: int | None, before: int | None, difference: str, in_percent: str
) -> None:
    assert (words.change(now, before), words.percent_change(now, before)) == (
        difference,
        in_percent,
    )


@pytest.mark.parametrize(
    ("part", "whole", "decimals", "said"),
    [
        (0, 20, 0, "0%"),
        (20, 20, 0, "100%"),
        (10, 19, 0, ""),
        (1, 1000, 0, "<1%"),
        (999, 1000, 0, ">99%"),
        (4, 1000, 1, "0.4%"),
        (1, 10000, 1, "<0.1%"),
        (None, 20, 0, "–"),
    ],
)
def test_a_share_has_a_base_of_20_and_is_never_rounded_to_none_or_all(
    part: int | None, whole: int, decimals: int, said: str
) -> None:
    assert words.share(part, whole, decimals) == said


@pytest.mark.parametrize(
    ("value", "on_terminal", "on_page"),
    [
        (None, "unknown", "unknown"),
        ("dev", "dev", "dev"),
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
