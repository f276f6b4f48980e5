"""Every number of `flask report --format json`: by hand, and against an independent count."""

import json
from collections.abc import Callable
from datetime import date, timedelta
from pathlib import Path
from random import Random
from typing import Any

import pytest
from flask import Flask
from jsonschema import Draft202012Validator

from naive_report import naive_report
from random_folders import (
    DEPLOYED,
    EXCLUSIONS,
    IN_DEVELOPMENT,
    NO_EVENTS,
    ODD_EVENTS,
    write_folders,
)
from records import HASH, SINCE, TODAY, UNTIL, Days, cli, core, packages, write_days, write_lines
from server import ROOT

SCHEMA = Draft202012Validator(json.loads((ROOT / "docs/report.schema.json").read_bytes()))


CORE_FIGURES = ["events", "hosts", "projects", "addresses", "development_addresses"]


def at(report: Any, path: str) -> Any:
    """Return what stands at `active.core.hosts`; `versions.value` is that of every version."""
    for name in path.split("."):
        if isinstance(report, list) and not name.lstrip("-").isdigit():
            report = [row[name] for row in report]
        else:
            report = report[int(name)] if isinstance(report, list) else report[name]
    return report


def window(*numbers: int | None) -> dict[str, int | None]:
    return dict(zip(("now", "before", "stayed", "new", "gone"), numbers, strict=True))


def rows(unit: str, *values: tuple[Any, ...], name: str = "value") -> list[dict[str, Any]]:
    names = (name, unit, "events", "versions")
    return [dict(zip(names, value, strict=False)) for value in values]


FILES: Days = {days_ago: [] for days_ago in range(56)}  # of both windows, all without an event

# What is counted, the events of each day (0 is the last, 1 the one before), what must come out.
BY_HAND: dict[str, tuple[Days, dict[str, Any]]] = {
    "a host that is in both windows stayed, the others are new or gone": (
        FILES
        | {
            0: [core("stays.com"), core("new.com"), core("new.com")],
            6: [core("new.com")],
            7: [core("gone.com")],
            13: [core("stays.com"), core("gone too.com")],
            14: [core("older.com")],
            28: [core("stays.com")],
        },
        {
            "active.core.hosts.7": window(2, 3, 1, 1, 2),
            "active.core.hosts.28": window(5, 1, 1, 4, 0),
        },
    ),
    "windows are compared if there are files of 6 of 7 and of 24 of 28 days of each": (
        {n: [core(), cli()] for n in range(56) if n not in (6, 8, 9, 10, 11, 55, 54, 53, 52)},
        {
            "files": {"7": {"now": 6, "before": 3}, "28": {"now": 23, "before": 24}},
            "active.core.hosts.7": window(1, None, None, None, None),
            "active.cli.projects.28": window(1, None, None, None, None),
        },
    ),
    "windows with just enough files are compared": (
        {n: [core(), cli()] for n in range(56) if n not in (6, 7, 27, 26, 55, 54, 53, 52)},
        {
            "files": {"7": {"now": 6, "before": 6}, "28": {"now": 24, "before": 24}},
            "active.core.hosts.7": window(1, 1, 1, 0, 0),
            "active.cli.projects.28": window(1, 1, 1, 0, 0),
        },
    ),
    "local names and addresses, sandboxes, tunnels and previews are in development": (
        {0: [core(name, f"192.0.2.{n}") for n, name in enumerate(IN_DEVELOPMENT)]},
        {"days.-1.core.hosts": 0, "days.-1.core.development_addresses": len(IN_DEVELOPMENT)},
    ),
    "other names and global addresses are deployed": (
        {0: [core(name, f"192.0.2.{n}") for n, name in enumerate(DEPLOYED)]},
        {"days.-1.core.hosts": len(DEPLOYED), "days.-1.core.development_addresses": 0},
    ),
    "a unit is last seen with its last day's most frequent payload, of several with the greatest": (
        {
            0: [
                *(core(version="4.0.0"), core("b.com", version="4.1.0")),
                *(core("b.com", version="4.2.0"), core("b.com", version="4.1.0")),
                *(core("c.com", version="next"), core("c.com", version="\u00e9")),
            ],
            1: [core(version="5.0.1")] * 3,
        },
        {
            "core.versions": rows(
                "hosts",
                *(("4.1.0", 1, 2), ("4.0.0", 1, 1), ("next", 1, 1)),
                *(("5.0.1", 0, 3), ("4.2.0", 0, 1), ("\u00e9", 0, 1)),
            )
        },
    ),
    "a pre-release needs two numeric parts, and nothing between them and its hyphen": (
        {
            0: [
                core(f"{n}.com", version=version)
                for n, version in enumerate(["5.0-x", "v5.0.1.2-x", "5-x", "5.0.x-1", "5.0.-1"])
            ],
            1: [core("0.com", version="4.57.1")],
            5: [core("next.com", version="next"), core("localhost", version="3.0.0")],
            7: [core("0.com", version="v4.57.1")],
        },
        {
            "adoption.hosts": [*[None] * 6, 1, 6],
            "adoption.-1.versions": {"5.0-pre": 2, "5.0": 2, "5": 1, "next": 1},
            "adoption.-2.versions": {"4.57": 1},
        },
    ),
    "programs that name themselves count as automated alone": (
        {
            0: [
                core("a.com", browser="Googlebot", projectId="p"),
                core("localhost", browser="HEADLESSchrome", projectId="q"),
                core("b.com", browser="Googlebot"),
            ],
            1: [core("b.com", "192.0.2.2", browser="Firefox")],
            56: [core("c.com", browser="Googlebot")],
        },
        {
            "automated": {
                "events": 3,
                "hosts": 1,
                "names": [
                    {"value": "Googlebot", "events": 2},
                    {"value": "HEADLESSchrome", "events": 1},
                ],
            },
            "events.core": 1,
            "with_project.core": 0,
            "days.-1.core.events": 0,
            "weeks.-1.core.hosts": 1,
            "core.browsers.value": ["Firefox"],
        },
    ),
    "a project is in development only if all its events of 28 days are": (
        {
            0: [core("localhost", projectId=name) for name in "pqrs"] + [core(None, projectId="q")],
            27: [core("a.com", projectId="r")],
            28: [core("a.com", projectId="s")],
        },
        {"projects_in_development_only": 2},
    ),
    "projects are not known if no event has one, and known if there is no event": (
        {0: [core(), core("localhost")], 7: [core(projectId="p"), cli(None)]},
        {
            "days.-1.core.projects": None,
            "days.-1.cli.projects": 0,
            "weeks.-2.core.projects": 1,
            "weeks.-2.cli.projects": None,
            "active.core.projects.28.now": 1,
            "active.cli.projects.28.now": None,
            "cli.commands": rows("projects", (None, None, 1)),
            "projects_in_development_only": 0,
        },
    ),
    "addresses are not known if a day has events and none has an address": (
        {
            0: [core("localhost", None), cli(ip="192.0.2.1")],
            1: [core("localhost")],
            2: [],
        },
        {
            "days.-1.core.development_addresses": None,
            "days.-1.cli.addresses": 1,
            "days.-2.core.addresses": 1,
            "days.-3.core.addresses": 0,
            "weeks.-1.core.addresses": None,
            "weeks.-1.cli.addresses": 1,
            "core.browsers": rows("addresses", (None, None, 2, rows("addresses", (None, None, 2)))),
        },
    ),
    "masked days and whole ones are not counted together": (
        FILES
        | {
            0: [core("localhost", f"192.0.{n}.0") for n in range(2)] + [cli(ip="2001:db8:7::")],
            1: [core(ip="192.0.3.0")],
            7: [core("localhost", "192.0.2.7")],
        },
        {
            "masked": False,
            "days.-1.core.addresses": 2,
            "weeks.-1.core.addresses": 3,
            "active.core.addresses.7": window(3, 1, None, None, None),
            "active.core.development_addresses.28.now": None,
            "active.cli.addresses.28.now": None,
        },
    ),
    "addresses of masked days alone are networks": (
        {0: [core(ip=f"192.0.{n}.0") for n in range(3)], 1: [core(ip="192.0.9.0")]},
        {"masked": True, "active.core.addresses.28.now": 4},
    ),
    "a hashed address counts on its day, and makes the number of several days unknown": (
        FILES
        | {
            0: [core("localhost", HASH, browser="Firefox"), core(ip="192.0.2.1", browser="Edge")],
            1: [core(ip="192.0.2.1")],
            7: [core("localhost", "192.0.2.2")],
        },
        {
            "days.-1.core.addresses": 2,
            "days.-1.core.development_addresses": 1,
            "days.-2.core.development_addresses": 0,
            "weeks.-1.core.addresses": None,
            "weeks.-1.core.development_addresses": None,
            "weeks.-2.core.addresses": 1,
            "weeks.-2.core.development_addresses": 1,
            "active.core.addresses.7": window(None, 1, None, None, None),
            "active.core.development_addresses.28": window(None, 0, None, None, None),
            "active.core.hosts.7": window(1, 0, 0, 1, 0),
            "core.browsers.value": [None, "Edge", "Firefox"],
            "core.browsers.addresses": [2, 1, None],
        },
    ),
    "a day without a file is missing, one with an empty file is zero": (
        {0: [], 2: [core(), cli()], 13: [], 55: []},
        {
            "missing_days": [
                str(UNTIL - timedelta(days=n)) for n in range(54, 0, -1) if n not in (2, 13)
            ],
            "days.-1.core": dict.fromkeys(CORE_FIGURES, 0),
            "days.-2.core": dict.fromkeys(CORE_FIGURES),
            "days.-2.refused": 0,
            "weeks.core.events": [0, *[None] * 5, 0, 1],
            "weeks.-3.cli": {"events": None, "projects": None, "addresses": None},
            "weeks.since": [str(SINCE + timedelta(days=7 * n)) for n in range(8)],
        },
    ),
    "resource counts are those of hosts: the lower middle, and what one or nine of ten reach": (
        {
            0: [core(f"h{n}.com", resourceCount=n * n) for n in range(1, 11)]
            + [core("h1.com", resourceCount=1)] * 5
            + [core("localhost", resourceCount=1000), core("null.com", resourceCount=None)]
        },
        {"core.resource_count": {"min": 1, "p10": 1, "median": 25, "p90": 81, "max": 100}},
    ),
    "an event with two versions of a package is one event of the package": (
        {
            0: [
                cli("p", packages=packages("core@5.0.1", "core@4.2.0", "cli@1.0.0", "cli@1.0.9")),
                cli("q", packages=packages("core@5.0.2")),
                cli("q", packages=packages("core@5.0.2")),
                cli(None, packages=packages("core@4.2.9", "core@4.2.9")),
            ],
            1: [cli("q", packages=packages("antd@2.0.0"))],
        },
        {
            "cli.packages": rows(
                "projects",
                ("core", 2, 4, rows("projects", ("5.0", 2, 3), ("4.2", 1, 2))),
                ("cli", 1, 1, rows("projects", ("1.0", 1, 1))),
                ("antd", 0, 1, rows("projects", ("2.0", 0, 1))),
                name="name",
            )
        },
    ),
}


Count = Callable[..., dict[str, Any]]


@pytest.fixture(params=["naive count", "report"])
def count(request: pytest.FixtureRequest, make_app: Callable[..., Flask], data_dir: Path) -> Count:
    """Count what is in `data_dir`."""

    def naively() -> dict[str, Any]:
        return naive_report([data_dir], SINCE, UNTIL, TODAY)

    def report() -> dict[str, Any]:
        return run_report(make_app())

    return naively if request.param == "naive count" else report


def run_report(app: Flask, *arguments: str) -> dict[str, Any]:
    """Run `flask report`; today is `TODAY`."""
    result = app.test_cli_runner().invoke(args=["report", "--format=json", *arguments])
    report: dict[str, Any] = json.loads(result.stdout)
    return report


@pytest.mark.parametrize(("days", "expected"), BY_HAND.values(), ids=BY_HAND)
def test_the_numbers_are_those_counted_by_hand(
    count: Count, data_dir: Path, days: Days, expected: dict[str, Any]
) -> None:
    write_days(data_dir, days)

    report = count()

    assert {path: at(report, path) for path in expected} == expected


@pytest.mark.parametrize(
    ("lines", "unreadable"),
    [
        pytest.param(NO_EVENTS, len(NO_EVENTS), id="no events"),
        pytest.param(ODD_EVENTS, 0, id="events written in another way"),
    ],
)
def test_a_line_is_an_event_or_unreadable(
    count: Count, data_dir: Path, lines: list[bytes], unreadable: int
) -> None:
    write_lines(data_dir / f"events-{UNTIL}.jsonl", lines)

    report = count()

    assert report["unreadable_lines"] == unreadable
    assert sum(report["events"].values()) == len(lines) - unreadable


# Against the naive count


RANGES = [
    (SINCE, UNTIL),
    (UNTIL - timedelta(days=3), UNTIL - timedelta(days=3)),
    (UNTIL - timedelta(days=9), UNTIL),
    (TODAY - timedelta(days=20), TODAY),  # which is unfinished
    (TODAY - timedelta(days=6), TODAY + timedelta(days=3)),
    (UNTIL - timedelta(days=97), UNTIL),  # longer than the windows
    (UNTIL - timedelta(days=60), UNTIL - timedelta(days=30)),
    (date(2025, 1, 1), date(2025, 3, 1)),  # before every file
    (date(2027, 3, 1), date(2027, 3, 20)),
]
RANGES_EACH = 3
BLOCK_BYTES = {100: 1, 101: 100, 102: 1000}  # of these seeds, read in several processes


@pytest.mark.parametrize("seed", [*range(24), *BLOCK_BYTES])
def test_every_number_is_that_of_the_naive_count_and_as_the_schema_says(
    make_app: Callable[..., Flask], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seed: int
) -> None:
    if seed in BLOCK_BYTES:
        monkeypatch.setattr("report.reading.BLOCK_BYTES", BLOCK_BYTES[seed])
        monkeypatch.setattr("report.reading.MIN_BYTES_FOR_PROCESSES", 0)
    app = make_app()
    directories = write_folders(tmp_path / "folders", seed)
    chance = Random(seed)
    for since, until in chance.sample(RANGES, 1 if seed in BLOCK_BYTES else RANGES_EACH):
        patterns = chance.choice(EXCLUSIONS)
        options = [f"--since={since}", f"--until={until}"]
        options += [f"--exclude-host={pattern}" for pattern in patterns]

        report = run_report(app, *options, *map(str, directories))

        expected = naive_report(directories, since, until, TODAY, patterns)
        assert lines_of(report) == lines_of(expected), options
    SCHEMA.validate(report)


def lines_of(report: Any) -> list[str]:
    """Return the lines of a report, of which pytest shows the first that differs."""
    return json.dumps(report, indent=1, sort_keys=True).splitlines()
