"""The views of deploy/clickhouse.sql give the report's numbers, of the files of two collectors."""

import json
import re
from collections.abc import Iterator
from datetime import date, timedelta
from pathlib import Path
from random import Random
from typing import Any

import pytest

import clickhouse
from naive_report import days_between, naive_report
from random_folders import Habits, write_directory
from report.hosts import ENDINGS, is_in_development

pytestmark = pytest.mark.slow

(RECOUNT,) = set(re.findall(r"TRUNCATE TABLE units; INSERT INTO [^;`]+", clickhouse.SQL))
PATTERNS = ["*.IO", "b.com"]
PATTERNS_IN_SQL = "match(lower(host), '^(.*\\\\.io|b\\\\.com)$')"
PREVIEWS = ["a", "a--b", "a-git-b", "a-git-b-c", "b.a", "c.b.a", "a-pr-12", "a-pr-x", "a-pr-1-b"]
PLATFORMS = ["netlify.app", "web.app", "vercel.app", "pages.dev", "onrender.com", "example.com"]
NETWORKS_IN_SQL = re.findall(r"'([0-9a-f.:]+/[0-9]+)'", clickhouse.SQL)

# What the collectors stored, one time after another, each of so many days.
FIRST_DAY = date(2026, 1, 1)
TIMES = [
    (60, Habits(ways=["full"], gap=0.15)),
    (62, Habits(ways=["masked"])),
    (35, Habits(ways=["hashed"])),
    (35, Habits(ways=["full"] * 15 + ["none"], has_projects=False)),
    (35, Habits(ways=["full"], gap=0.4)),
]
# The last days of reports, in days from the first.
ENDS = [8, 68, 121, 154, 190]
END_AFTER_CHANGES = 226


def queries(until: date) -> list[str]:
    names = ("active", "adoption", "lists", "list_versions", "resource_count", "totals")
    return [
        *(f"SELECT * FROM {name}(until = '{until}')" for name in names),
        *(f"SELECT * FROM trend(until = '{until}', days = {days})" for days in (7, 1)),
    ]


def active(report: dict[str, Any]) -> clickhouse.Rows:
    return [
        {"source": source, "unit": unit, "days": int(days), **window}
        for source, units in report["active"].items()
        for unit, windows in units.items()
        for days, window in windows.items()
    ]


def adoption(report: dict[str, Any]) -> list[tuple[Any, ...]]:
    return [
        (week["since"], week["until"], series, hosts)
        for week in report["adoption"]
        for series, hosts in sorted(week["versions"].items(), key=lambda item: (-item[1], item[0]))
    ]


def trend(periods: list[dict[str, Any]]) -> list[tuple[Any, ...]]:
    return [
        (
            period.get("since", period.get("date")),
            period.get("until", period.get("date")),
            source,
            unit,
            count,
        )
        for period in periods
        for source in ("core", "cli")
        for unit, count in period[source].items()
    ]


def list_rows(report: dict[str, Any]) -> Iterator[tuple[Any, ...]]:
    for source in ("cli", "core"):
        for name in sorted(set(report[source]) - {"resource_count"}):
            for row in report[source][name]:
                value, units, events, *versions = row.values()
                yield source, name, value, units, events, *versions


def versions(report: dict[str, Any]) -> Iterator[tuple[Any, ...]]:
    rows = sorted(list_rows(report), key=lambda row: (row[:2], row[2] is None, row[2] or ""))
    for source, name, value, _, _, *below in rows:
        for version in below[0] if below else ():
            yield source, name, value, *version.values()


def values(rows: clickhouse.Rows) -> list[tuple[Any, ...]]:
    return [tuple(row.values()) for row in rows]


def totals(report: dict[str, Any]) -> dict[str, Any]:
    return {
        "core_events": report["events"]["core"],
        "cli_events": report["events"]["cli"],
        "core_with_project": report["with_project"]["core"],
        "cli_with_project": report["with_project"]["cli"],
        "automated_events": report["automated"]["events"],
        "excluded_events": report["excluded"]["events"],
        "automated_hosts": report["automated"]["hosts"],
        "projects_in_development_only": report["projects_in_development_only"],
        "is_masked": report["masked"],
    }


def write_collectors(root: Path) -> list[Path]:
    chance, day = Random(1), FIRST_DAY
    collectors = [root / "collectors/a", root / "collectors/b"]
    for length, habits in TIMES:
        last = day + timedelta(days=length - 1)
        for directory in collectors:
            write_directory(directory, days_between(day, last), chance, habits)
        day = last + timedelta(days=1)
    return collectors


def test_every_view_gives_the_numbers_of_the_report(tmp_path: Path) -> None:
    """Also after rows were erased and hosts excluded, and everything was counted again."""
    directories = write_collectors(tmp_path)
    insert = clickhouse.insert(tmp_path / "collectors")
    again = insert.replace("/*/", "/a/")  # not all, or each number could be twice what it is
    exclude = [
        one.replace("host -> false", f"host -> {PATTERNS_IN_SQL}") for one in clickhouse.MAKE
    ]
    erase = ["DELETE FROM events WHERE collector = 'b'", *RECOUNT.split("; ")]
    untils = [FIRST_DAY + timedelta(days=end) for end in ENDS]
    asked = [query for until in untils for query in queries(until)]
    last = FIRST_DAY + timedelta(days=END_AFTER_CHANGES)
    run = [*clickhouse.MAKE, insert, again, *asked, *exclude, *erase, *queries(last)]
    answers = clickhouse.ask(tmp_path / "warehouse", *run)

    before = len(clickhouse.MAKE) + 2
    for at, until in enumerate(untils):
        check(answers[before + 8 * at :], directories, until, [])
    check(answers[-8:], directories[:1], last, PATTERNS)


def check(
    got: list[clickhouse.Rows],
    directories: list[Path],
    until: date,
    patterns: list[str],
) -> None:
    since = until - timedelta(days=55)
    report = naive_report(directories, since, until, until, patterns=patterns)
    assert got[0] == active(report)
    assert values(got[1]) == adoption(report)
    assert values(got[2]) == [row[:5] for row in list_rows(report)]
    assert values(got[3]) == list(versions(report))
    assert got[4] == [report["core"]["resource_count"]]
    assert got[5] == [totals(report)]
    assert values(got[6]) == trend(report["weeks"])
    assert values(got[7]) == trend(report["days"])


def test_the_table_and_the_report_know_the_same_hosts_in_development(tmp_path: Path) -> None:
    names = [
        *(f"{before}{ending}" for ending in ENDINGS for before in ("a", "a.b", "")),
        *(f"a{ending}.com" for ending in ENDINGS),
        *(f"{before}.{after}" for before in PREVIEWS for after in PLATFORMS),
        *(network.partition("/")[0] for network in NETWORKS_IN_SQL),
        *("localhost", "1.1.1.1", "100.63.0.1", "100.128.0.1", "2606:4700::1", "fe80::1", "::2"),
    ]
    rows = ", ".join(
        f"(generateUUIDv4(), now(), 'core', '{name}', '{{}}')" for name in names if name
    )
    insert = f"INSERT INTO events (id, received_at, source, hostname, payload) VALUES {rows}"
    asked = "SELECT hostname, is_in_development FROM events"
    *_, found = clickhouse.ask(tmp_path / "warehouse", *clickhouse.MAKE, insert, asked)

    seen = {row["hostname"]: row["is_in_development"] for row in found}
    assert seen == {name: is_in_development(json.dumps(name).encode()) for name in names if name}
    assert 50 < sum(seen.values()) < len(seen) - 50
