"""Every number of `flask report --format json`: by hand, and against an independent count."""

import gzip
import json
import os
import subprocess
import sys
from collections.abc import Callable
from datetime import date, timedelta
from pathlib import Path
from random import Random
from typing import Any

import pytest
from flask import Flask

from naive_report import naive_report
from random_folders import EXCLUSIONS, NO_EVENTS, ODD_EVENTS, write_folders
from records import HASH, SINCE, TODAY, UNTIL, Days, cli, core, packages, write_days, write_lines
from server import PATIENCE_SECONDS, ROOT

FLASK = Path(sys.executable).with_name("flask")
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


def spread(*numbers: int | None) -> dict[str, int | None]:
    return dict(zip(("min", "p10", "median", "p90", "max"), numbers, strict=True))


def rows(unit: str, *values: tuple[Any, ...], name: str = "value") -> list[dict[str, Any]]:
    names = (name, unit, "events", "versions")
    return [dict(zip(names, value, strict=False)) for value in values]


IN_DEVELOPMENT = [
    *("localhost", "intranet", "app.localhost", "nas.local", "a.test", "b.example", "c.invalid"),
    *("d.internal", "e.home.arpa", "f.lan", "g.corp", "10.0.0.1.nip.io", "10-0-0-1.sslip.io"),
    *("127.0.0.1", "10.1.2.3", "192.168.0.1", "169.254.1.1", "::1", "fd00::1", "fe80::1"),
    *("x1-3000.csb.app", "a.github.dev", "a--3000.webcontainer.io", "1.a.cloudworkstations.dev"),
    *("a.ngrok-free.app", "a.trycloudflare.com", "a-3000.euw.devtunnels.ms"),
    *("deploy-preview-7--a.netlify.app", "a--main-x1.web.app", "a-git-main-b.vercel.app"),
    *("1a2b.a.pages.dev", "a-pr-12.onrender.com"),
]
DEPLOYED = [
    *("a.com", "test.com", "local.com", "example.com", "mylocalhost.com", "8.8.8.8", "xtest.de"),
    *("2606:4700:4700::1111", "home.arpa", "a.locals", "a.b.example.org", "csb.app", "1.2.3.256"),
    *("a.netlify.app", "a-b.web.app", "a-git-b.vercel.app", "git-main-b.vercel.app"),
    *("a.pages.dev", "1.2.a.pages.dev", "a-pr-x.onrender.com", "pr-12.onrender.com"),
]

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
    "each unit is counted once, and null is none": (
        {
            0: [
                core("a.com", "192.0.2.1", projectId="p"),
                core("a.com", "192.0.2.2", projectId="p"),
                core("localhost", "192.0.2.3", projectId="q"),
                core("localhost", "192.0.2.3"),
                core(None, "192.0.2.4"),
                core(None, None),
                cli("p", "192.0.2.1"),
                cli(None, "192.0.2.2"),
                cli("p", None),
            ]
        },
        {
            "days.-1.core": {
                "events": 6,
                "hosts": 1,
                "projects": 2,
                "addresses": 4,
                "development_addresses": 1,
            },
            "days.-1.cli": {"events": 3, "projects": 1, "addresses": 2},
            "events": {"core": 6, "cli": 3},
            "with_project": {"core": 3, "cli": 2},
            "active.core.development_addresses.7": window(1, None, None, None, None),
            "active.cli.addresses.28": window(2, None, None, None, None),
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
    "a host was last seen with what it sent on its last day, however often it sent the rest": (
        {0: [core(version="4.0.0")], 1: [core(version="5.0.1")] * 3},
        {"core.versions": rows("hosts", ("4.0.0", 1, 1), ("5.0.1", 0, 3))},
    ),
    "of one day, a host was last seen with what it sent most": (
        {0: [core(version="4.0.0")] * 2 + [core(version="5.0.1")]},
        {"core.versions": rows("hosts", ("4.0.0", 1, 2), ("5.0.1", 0, 1))},
    ),
    "of two payloads as frequent, the greater one as text was seen last": (
        {0: [core(resourceCount=9), core(resourceCount=10)]},
        {"core.resource_count": spread(9, 9, 9, 9, 9)},
    ),
    "payloads are compared from the left: a provider that is set decides before the version": (
        {0: [core(version="6", providers={"auth": False}), core(providers={"auth": True})]},
        {
            "core.versions": rows("hosts", ("5.0.1", 1, 1), ("6", 0, 1)),
            "core.providers": rows("hosts", ("auth", 1, 1)),
        },
    ),
    "payloads are compared as they are stored, in ASCII": (
        {0: [core(version="next"), core(version="\u00e9"), core(version="Next")]},
        {"core.versions": rows("hosts", ("next", 1, 1), ("Next", 0, 1), ("\u00e9", 0, 1))},
    ),
    "payloads with keys in another order, or with null for a missing key, are one payload": (
        {
            0: [
                cli(command="dev", os="Linux"),
                {
                    "payload": {"os": "Linux", "command": "dev", "packages": [], "projectId": "p"},
                    "source": "cli",
                },
                cli(command="start", os="macOS"),
            ],
        },
        {"cli.operating_systems": rows("projects", ("Linux", 1, 2), ("macOS", 0, 1))},
    ),
    "lists cover 28 days, not one more": (
        {27: [core("a.com", version="1.0")], 28: [core("b.com", version="2.0")]},
        {"core.versions": rows("hosts", ("1.0", 1, 1)), "events": {"core": 2, "cli": 0}},
    ),
    "adoption counts each host once a week, with what it was last seen with that week": (
        {
            0: [core("a.com", version="v5.1.2"), core("b.com", version="5.1.0-rc.1")],
            5: [core("a.com", version="4.57.1")] * 2 + [core("localhost", version="4.57.1")],
            6: [core("c.com", version="next")],
            7: [core("a.com", version="4.57.1"), core("b.com", version="4")],
        },
        {
            "weeks.-1.files": 3,
            "adoption.-1": {
                "since": "2026-11-16",
                "until": "2026-11-22",
                "hosts": 3,
                "versions": {"5.1": 1, "5.1-pre": 1, "next": 1},
            },
            "adoption.-2": {
                "since": "2026-11-09",
                "until": "2026-11-15",
                "hosts": 2,
                "versions": {"4.57": 1, "4": 1},
            },
            "adoption.-3.hosts": None,
        },
    ),
    "a pre-release needs two numeric parts, and nothing between them and its hyphen": (
        {
            0: [
                core(f"{n}.com", version=version)
                for n, version in enumerate(["5.0-x", "v5.0.1.2-x", "5-x", "5.0.x-1", "5.0.-1"])
            ]
        },
        {"adoption.-1.versions": {"5.0-pre": 2, "5.0": 2, "5": 1}},
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
            "days.-1": {
                "date": "2026-11-22",
                "refused": 0,
                "core": dict.fromkeys(CORE_FIGURES, 0),
                "cli": {"events": 0, "projects": 0, "addresses": 0},
            },
            "days.-2": {
                "date": "2026-11-21",
                "refused": 0,
                "core": dict.fromkeys(CORE_FIGURES),
                "cli": {"events": None, "projects": None, "addresses": None},
            },
            "weeks.-1.core.events": 1,
            "weeks.-2.core.events": 0,
            "weeks.-3.core.events": None,
            "weeks.-3.cli": {"events": None, "projects": None, "addresses": None},
            "weeks.since": [str(SINCE + timedelta(days=7 * n)) for n in range(8)],
        },
    ),
    "under a browser stand its majors, and an address counts in every browser it came with": (
        {
            0: [
                core(ip="192.0.2.1", browser="Firefox", browser_version="128.0"),
                core(ip="192.0.2.1", browser="Firefox", browser_version="128.3.1"),
                core(ip="192.0.2.1", browser="Firefox", browser_version="9"),
                core(ip="192.0.2.2", browser="Firefox"),
                core(ip="192.0.2.1", browser="Edge", browser_version="9"),
                core(ip=None),
            ]
        },
        {
            "core.browsers": rows(
                "addresses",
                (
                    "Firefox",
                    2,
                    4,
                    rows("addresses", ("128", 1, 2), ("9", 1, 1), (None, 1, 1)),
                ),
                ("Edge", 1, 1, rows("addresses", ("9", 1, 1))),
                (None, 0, 1, rows("addresses", (None, 0, 1))),
            )
        },
    ),
    "under a system stand its versions as they are": (
        {
            0: [
                core(ip="192.0.2.1", os="Mac OS X", os_version="10.15.7"),
                core(ip="192.0.2.2", os="Mac OS X", os_version="10.15"),
                core(ip="192.0.2.2", os="Mac OS X", os_version="10.15"),
            ]
        },
        {
            "core.operating_systems": rows(
                "addresses",
                ("Mac OS X", 2, 3, rows("addresses", ("10.15", 1, 2), ("10.15.7", 1, 1))),
            )
        },
    ),
    "resource counts are those of hosts: the lower middle, and what one or nine of ten reach": (
        {
            0: [core(f"h{n}.com", resourceCount=n * n) for n in range(1, 11)]
            + [core("h1.com", resourceCount=1)] * 5
            + [core("localhost", resourceCount=1000), core("null.com", resourceCount=None)]
        },
        {"core.resource_count": spread(1, 1, 25, 81, 100)},
    ),
    "of eleven hosts two are needed for one tenth, ten for nine": (
        {0: [core(f"h{n}.com", resourceCount=n) for n in range(11)]},
        {"core.resource_count": spread(0, 1, 5, 9, 10)},
    ),
    "no host has no resource counts": (
        {0: [core("localhost"), core(None)]},
        {"core.resource_count": spread(None, None, None, None, None)},
    ),
    "a command counts every project that ran it": (
        {
            0: [cli("p", command="build")],
            1: [cli("p", command="dev"), cli("q", command="dev"), cli("q", command="dev")],
            2: [cli(None, command="dev"), cli(None, command=None)],
        },
        {
            "cli.commands": rows("projects", ("dev", 2, 4), ("build", 1, 1), (None, 0, 1)),
        },
    ),
    "frameworks, environments and systems count a project with what it was last seen with": (
        {
            0: [cli("p", projectFramework="vite", nodeEnv="ci")],
            1: [cli("p", projectFramework="next", os="Linux")] * 2,
            2: [cli(None, projectFramework="next")],
        },
        {
            "cli.frameworks": rows("projects", ("vite", 1, 1), ("next", 0, 3)),
            "cli.environments": rows("projects", ("ci", 1, 1), (None, 0, 3)),
            "cli.operating_systems": rows("projects", (None, 1, 2), ("Linux", 0, 2)),
        },
    ),
    "under a major of Node stand its series": (
        {
            0: [
                cli("p", nodeVersion="v22.11.0"),
                cli("q", nodeVersion="v22.11.1"),
                cli("r", nodeVersion="22.9"),
                cli("s", nodeVersion="v8"),
                cli("t", nodeVersion="version unknown"),
                cli(None, nodeVersion=None),
            ]
        },
        {
            "cli.node_versions": rows(
                "projects",
                ("22", 3, 3, rows("projects", ("22.11", 2, 2), ("22.9", 1, 1))),
                ("8", 1, 1, rows("projects", ("8", 1, 1))),
                ("version unknown", 1, 1, rows("projects", ("version unknown", 1, 1))),
                (None, 0, 1, rows("projects", (None, 0, 1))),
            )
        },
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
    "equal rows stand by value, null last": (
        {0: [cli(command=name) for name in ["b", None, "a", "B", "z", "b", "\u00e4"]]},
        {
            "cli.commands": rows(
                "projects",
                *(("b", 1, 2), ("B", 1, 1), ("a", 1, 1), ("z", 1, 1)),
                *(("\u00e4", 1, 1), (None, 1, 1)),
            )
        },
    ),
}


Count = Callable[..., dict[str, Any]]


@pytest.fixture(params=["naive count", "report"])
def count(request: pytest.FixtureRequest, make_app: Callable[..., Flask], data_dir: Path) -> Count:
    """Count what is in `data_dir`: 8 weeks to yesterday, or a period."""

    def naively(since: date | None = None, until: date = UNTIL) -> dict[str, Any]:
        return naive_report([data_dir], since or until - timedelta(days=55), until, TODAY)

    def report(**period: date) -> dict[str, Any]:
        return run_report(make_app(), *(f"--{name}={day}" for name, day in period.items()))

    return naively if request.param == "naive count" else report


def run_report(app: Flask, *arguments: str) -> dict[str, Any]:
    """Run `flask report`; today is `TODAY`."""
    result = app.test_cli_runner().invoke(args=["report", "--format=json", *arguments])
    return parse(result.stdout)


def parse(text: str) -> dict[str, Any]:
    report: dict[str, Any] = json.loads(text, object_pairs_hook=each_key_once)
    return report


def each_key_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    keys = [key for key, _ in pairs]
    assert len(set(keys)) == len(keys), keys
    return dict(pairs)


@pytest.mark.parametrize(("days", "expected"), BY_HAND.values(), ids=BY_HAND)
def test_the_numbers_are_those_counted_by_hand(
    count: Count, data_dir: Path, days: Days, expected: dict[str, Any]
) -> None:
    write_days(data_dir, days)

    report = count()

    assert {path: at(report, path) for path in expected} == expected


def test_a_line_that_is_no_event_is_counted_as_unreadable(count: Count, data_dir: Path) -> None:
    write_lines(data_dir / f"events-{UNTIL}.jsonl", NO_EVENTS)

    report = count()

    assert report["unreadable_lines"] == len(NO_EVENTS)
    assert report["events"] == {"core": 0, "cli": 0}


def test_an_event_written_in_another_way_is_an_event(count: Count, data_dir: Path) -> None:
    write_lines(data_dir / f"events-{UNTIL}.jsonl", ODD_EVENTS)

    report = count()

    assert report["unreadable_lines"] == 0
    assert sum(report["events"].values()) == len(ODD_EVENTS)


ONE, TWO, THREE = (b'{"source":"core","hostname":"%d.com","payload":{}}\n' % n for n in (1, 2, 3))


@pytest.mark.parametrize(
    ("plain", "archived", "events"),
    [
        pytest.param(ONE + TWO, None, 2, id="plain"),
        pytest.param(None, [ONE + TWO], 2, id="archive"),
        pytest.param(None, [ONE + TWO[:9], TWO[9:] + THREE], 3, id="archive of two members"),
        pytest.param(ONE + TWO, [ONE + TWO], 2, id="both the same"),
        pytest.param(ONE + TWO, [ONE], 2, id="went on after compression"),
        pytest.param(ONE + TWO, [ONE + TWO[:9]], 2, id="compressed within a line"),
        pytest.param(TWO, [ONE], 2, id="went on in a new file"),
        pytest.param(ONE, [ONE + TWO], 2, id="archive that goes on"),
        pytest.param(ONE + TWO[:9], [ONE + TWO], 2, id="archive that goes on behind a torn line"),
        pytest.param(TWO, [ONE + TWO], 2, id="archive that begins earlier"),
        pytest.param(ONE + ONE + TWO, [ONE + TWO], 3, id="a line twice"),
        pytest.param(ONE + TWO, [TWO + THREE], 4, id="archive that overlaps"),
        pytest.param(b"", [ONE], 1, id="plain and empty"),
        pytest.param(ONE, [], 1, id="archive of nothing"),
        pytest.param(ONE + TWO[:-1], None, 1, id="torn"),
        pytest.param(b"\x00" + ONE + b"\n" + TWO, None, 1, id="two lines unreadable"),
    ],
)
def test_a_day_counts_its_plain_file_and_the_lines_only_in_its_archive(
    count: Count, data_dir: Path, plain: bytes | None, archived: list[bytes] | None, events: int
) -> None:
    data_dir.mkdir(exist_ok=True)
    path = data_dir / f"events-{UNTIL}.jsonl"
    if plain is not None:
        path.write_bytes(plain)
    if archived is not None:
        data_dir.joinpath(f"{path.name}.gz").write_bytes(b"".join(map(gzip.compress, archived)))

    report = count()

    assert report["events"]["core"] == events
    assert str(UNTIL) not in report["missing_days"]


def test_refusals_are_counted_by_reason_within_the_period(count: Count, data_dir: Path) -> None:
    reasons = [("core", "version", "is missing"), ("cli", None, "is missing"), ("core", None, "x")]
    a, b, c = (
        json.dumps({"source": source, "field": field, "detail": detail}).encode()
        for source, field, detail in reasons
    )
    write_lines(data_dir / f"refused-{UNTIL}.jsonl", [a, b, c, b, b"{}", b'{"field":1}', b"x"])
    write_lines(data_dir / f"refused-{SINCE}.jsonl", [b])
    write_lines(data_dir / f"refused-{SINCE - timedelta(days=1)}.jsonl", [a, a, a, a, b"x"])

    report = count()

    names = ("source", "field", "detail", "events")
    assert report["refused"] == [
        dict(zip(names, values, strict=True))
        for values in [
            ("cli", None, "is missing", 3),
            ("core", "version", "is missing", 1),
            ("core", None, "x", 1),
            (None, None, None, 1),
        ]
    ]
    assert report["unreadable_lines"] == 2
    assert str(UNTIL) in report["missing_days"]


def test_the_windows_are_read_whole_though_the_period_is_one_day(
    count: Count, data_dir: Path
) -> None:
    others = {55: [core()], 56: [core("older.com")], -1: [core("b.com")]}
    write_days(data_dir, FILES | {0: [core()]} | others)
    write_lines(data_dir / f"events-{UNTIL - timedelta(days=54)}.jsonl", [b"x"])
    write_lines(data_dir / f"events-{UNTIL - timedelta(days=57)}.jsonl", [b"x", b"x"])

    report = count(since=UNTIL)

    assert report["active"]["core"]["hosts"]["28"] == window(1, 1, 1, 0, 0)
    assert report["events"] == {"core": 1, "cli": 0}
    assert report["unreadable_lines"] == 1
    assert (report["missing_days"], report["weeks"], report["adoption"]) == ([], [], [])
    assert [day["date"] for day in report["days"]] == [str(UNTIL)]


@pytest.mark.parametrize("days_later", [-1, 0, 1])
def test_a_period_that_does_not_end_before_today_is_unfinished(
    count: Count, data_dir: Path, days_later: int
) -> None:
    data_dir.mkdir(exist_ok=True)

    report = count(until=TODAY + timedelta(days=days_later))

    assert report["unfinished"] is (days_later >= 0)
    assert report["weeks"][-1]["until"] == report["until"] == str(TODAY + timedelta(days_later))


# Against the naive count


RANGES: dict[str, tuple[date, date]] = {
    "by default": (SINCE, UNTIL),
    "one day": (UNTIL - timedelta(days=3), UNTIL - timedelta(days=3)),
    "less than the windows": (UNTIL - timedelta(days=9), UNTIL),
    "to today, which is unfinished": (TODAY - timedelta(days=20), TODAY),
    "to a day that is to come": (TODAY - timedelta(days=6), TODAY + timedelta(days=3)),
    "longer than the windows": (UNTIL - timedelta(days=97), UNTIL),
    "another time": (UNTIL - timedelta(days=60), UNTIL - timedelta(days=30)),
    "before every file": (date(2025, 1, 1), date(2025, 3, 1)),
    "after every file": (date(2027, 3, 1), date(2027, 3, 20)),
}


RANGES_EACH = 3


@pytest.mark.parametrize("seed", range(60))
def test_every_number_is_that_of_the_naive_count(
    make_app: Callable[..., Flask], tmp_path: Path, seed: int
) -> None:
    app = make_app()
    directories = write_folders(tmp_path / "folders", seed)
    chance = Random(seed)
    for name in chance.sample(list(RANGES), RANGES_EACH):
        since, until = RANGES[name]
        patterns = chance.choice(EXCLUSIONS)
        options = [f"--exclude-host={pattern}" for pattern in patterns]

        report = run_report(
            app, f"--since={since}", f"--until={until}", *options, *map(str, directories)
        )

        expected = naive_report(directories, since, until, TODAY, patterns=patterns)
        assert first_difference(report, expected) is None, (name, patterns)


@pytest.mark.parametrize("block_bytes", [1, 100, 1000])
@pytest.mark.parametrize("seed", range(100, 105))
def test_every_number_is_the_same_in_several_processes_and_small_blocks(
    make_app: Callable[..., Flask],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    seed: int,
    block_bytes: int,
) -> None:
    monkeypatch.setattr("report.reading.BLOCK_BYTES", block_bytes)
    monkeypatch.setattr("report.reading.MIN_BYTES_FOR_PROCESSES", 0)
    directories = write_folders(tmp_path / "folders", seed)
    since = UNTIL - timedelta(days=97)  # longer than the windows

    report = run_report(make_app(), f"--since={since}", *map(str, directories))

    expected = naive_report(directories, since, UNTIL, TODAY)
    assert first_difference(report, expected) is None


def test_the_command_itself_prints_the_same_numbers(tmp_path: Path) -> None:
    directories = write_folders(tmp_path / "folders", 204)
    command = [str(FLASK), "report", "--format=json", f"--since={SINCE}", f"--until={UNTIL}"]

    result = subprocess.run(
        [*command, *map(str, directories)],
        cwd=ROOT,
        env=os.environ | {"TELEMETRY_DATA_DIR": str(tmp_path / "data")},
        stdout=subprocess.PIPE,
        timeout=PATIENCE_SECONDS,
        check=False,
    )

    report = parse(result.stdout.decode())
    expected = naive_report(directories, SINCE, UNTIL, TODAY)
    expected["unfinished"] = report["unfinished"]  # depends on today
    assert first_difference(report, expected) is None


def first_difference(seen: Any, wanted: Any, path: str = "report") -> str | None:
    """Say where two JSON values differ first, and how; None if they are equal."""
    if isinstance(seen, dict) and isinstance(wanted, dict):
        if seen.keys() != wanted.keys():
            return f"{path} has {sorted(seen)}, not {sorted(wanted)}"
        steps = [(f".{key}", seen[key], wanted[key]) for key in wanted]
    elif isinstance(seen, list) and isinstance(wanted, list):
        if len(seen) != len(wanted):
            return f"{path} is {seen}, not {wanted}"
        steps = [(f"[{n}]", *pair) for n, pair in enumerate(zip(seen, wanted, strict=True))]
    else:
        same = type(seen) is type(wanted) and seen == wanted
        return None if same else f"{path} is {seen!r}, not {wanted!r}"
    differences = (first_difference(one, other, path + step) for step, one, other in steps)
    return next(filter(None, differences), None)
