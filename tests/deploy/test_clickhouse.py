"""The views of deploy/clickhouse.sql give the report's numbers, of the files of two collectors."""

import gzip
import json
import re
from collections.abc import Iterator
from datetime import date, timedelta
from hashlib import sha256
from pathlib import Path
from random import Random
from typing import Any, NamedTuple
from uuid import UUID

import pytest

import clickhouse
from files.records import encode
from naive_report import PROVIDERS, naive_report
from report.hosts import ENDINGS, is_in_development

pytestmark = pytest.mark.slow

UNTIL = date(2026, 11, 22)
HASH = "0123456789abcdef" * 4
(RECOUNT,) = set(re.findall(r"TRUNCATE TABLE units; INSERT INTO [^;`]+", clickhouse.SQL))
HOSTNAMES = [
    # Ten that are deployed, so that 90 % of them are a whole number.
    *("a.com", "b.com", "c.example.org", "d.io", "8.8.8.8", "2606:4700:4700::1111", "test.com"),
    *("e.com", "f.netlify.app", "g.com"),
    *("localhost", "a.localhost", "nas.lan", "x.home.arpa", "127.0.0.1", "2001:db8::1"),
    *("x1.csb.app", "a.ngrok.io", "1--a.netlify.app", "a-git-main-b.vercel.app", None),
]
ADDRESSES = [*(f"192.0.2.{n}" for n in range(9)), "2001:db8::1"]
NETWORKS = [*(f"192.0.{n}.0" for n in range(7)), "2001:db8::", "2001:db8:1::"]
PROJECTS = [*"pqrstuv", "\u00fc", '"\\', HASH, None]
VERSIONS = [
    *("5.0.1", "5.0.2", "5.0", "5", "v5.1.0", "4.57.10", "10.0.0-rc.1", "next", "\u00e9", "5.x"),
    *("5.0.0-beta.1", "5-1.2", "5.0.0.1-x"),
]
NODES = ["v22.11.0", "v22.9.0", "v20.1.0", "20", "bun", "v23.0.0-nightly"]
PACKAGES = ["@x/core", "cli", "antd", "\u00fcber"]
BROWSERS = [("Firefox", "145.0"), ("Firefox", "144"), ("Chrome", "142.0.0.0"), (None, None)]
ROBOTS = [("Googlebot", "2.1"), ("HeadlessChrome", "142.0.0.0")]
PATTERNS = ["*.IO", "b.com"]
PATTERNS_IN_SQL = "match(lower(host), '^(.*\\\\.io|b\\\\.com)$')"


PREVIEWS = ["a", "a--b", "a-git-b", "a-git-b-c", "b.a", "c.b.a", "a-pr-12", "a-pr-x", "a-pr-1-b"]
PLATFORMS = ["netlify.app", "web.app", "vercel.app", "pages.dev", "onrender.com", "example.com"]
NETWORKS_IN_SQL = re.findall(r"'([0-9a-f.:]+/[0-9]+)'", clickhouse.SQL)


class Case(NamedTuple):
    """What the folders of one test are like."""

    days: int
    gap: float
    ways: list[str]  # how the addresses of a day stand
    is_excluding: bool = False
    has_projects: bool = True


CASES = {
    "gaps": Case(70, 0.3, ["full"]),
    "whole": Case(70, 0.03, ["full"], is_excluding=True),
    "masked": Case(60, 0, ["masked"]),
    "hashed": Case(60, 0.1, ["hashed"], is_excluding=True),
    "masked for a while": Case(60, 0, ["full"] * 15 + ["masked"]),
    "not stored for a while": Case(60, 0, ["full"] * 15 + ["none"], has_projects=False),
    "few days": Case(9, 0, ["full"]),
    "nothing": Case(-3, 0, ["full"]),
}


def core(chance: Random) -> dict[str, Any]:
    browser = chance.choice(ROBOTS if chance.random() < 0.1 else BROWSERS)
    system = chance.choice([("Linux", None), ("Windows", "10"), ("Windows", "11"), (None, None)])
    providers = {name: chance.random() < 0.2 for name in PROVIDERS}
    count = chance.choice([0, 1, 9, 10, 1_000_000])
    payload = {"providers": providers, "version": chance.choice(VERSIONS), "resourceCount": count}
    names = ("browser", "browser_version", "os", "os_version")
    agent = dict(zip(names, browser + system, strict=True))
    return {"hostname": chance.choice(HOSTNAMES), **agent, "payload": payload}


def cli(chance: Random) -> dict[str, Any]:
    names = chance.choices(PACKAGES, k=chance.randrange(4))  # a package may come twice
    packages = [{"name": name, "version": chance.choice([*VERSIONS, None])} for name in names]
    payload: dict[str, Any] = {"nodeEnv": chance.choice(["ci", None])}
    payload |= {"nodeVersion": chance.choice(NODES)}
    payload |= {"os": chance.choice(["Linux", "macOS", None]), "osVersion": "1"}
    payload |= {"command": chance.choice(["dev", "build", None]), "packages": packages}
    return {"payload": payload | {"projectFramework": chance.choice(["vite", "nextjs"])}}


def address(chance: Random, way: str, key: str) -> str | None:
    if way == "none" or chance.random() < 0.03:
        return None
    if way == "hashed":
        text = f"{key} {chance.choice(ADDRESSES)}"
        return sha256(text.encode()).hexdigest()
    return chance.choice(NETWORKS if way == "masked" else ADDRESSES)


def lines(chance: Random, case: Case, collector: str, day: date) -> Iterator[bytes]:
    way = chance.choice(case.ways)
    for _ in range(chance.randrange(1, 20)):
        source, make = chance.choice([("core", core), ("cli", cli)])
        record: dict[str, Any] = {
            "id": str(UUID(int=chance.getrandbits(128), version=4)),
            "received_at": f"{day}T{chance.randrange(24):02}:00:00.000Z",
            "source": source,
            "ip": address(chance, way, f"{collector} {day}"),
            **make(chance),
        }
        record["payload"]["projectId"] = chance.choice(PROJECTS) if case.has_projects else None
        # What is sent again on the same day decides with what a host or project was last seen.
        for _ in range(chance.choice([1, 1, 1, 2])):
            yield f"{encode(record)}\n".encode("ascii")
            record["id"] = str(UUID(int=chance.getrandbits(128), version=4))


def write_collectors(root: Path, case: Case, chance: Random) -> list[Path]:
    """Write the files of two collectors: with gaps, compressed and plain."""
    first_day = UNTIL - timedelta(days=case.days)
    collectors = [root / "collectors/a", root / "collectors/b"]
    for directory in collectors:
        directory.mkdir(parents=True)
    for n in range(case.days + 3):
        day = first_day + timedelta(days=n)
        has_gap = chance.random() < case.gap or (case.gap > 0.2 and 20 <= n < 30)
        for directory in collectors if not has_gap else []:
            content = b"".join(lines(chance, case, directory.name, day))
            path = directory / f"events-{day}.jsonl"
            if chance.random() < 0.5:
                path.write_bytes(content)
            else:
                path.with_name(f"{path.name}.gz").write_bytes(gzip.compress(content))
    return collectors


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


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_every_view_gives_the_numbers_of_the_report(tmp_path: Path, case: Case) -> None:
    directories = write_collectors(tmp_path, case, Random(str(case)))
    untils = [UNTIL, UNTIL - timedelta(days=9)]
    insert = clickhouse.insert(tmp_path / "collectors")
    again = insert.replace("/*/", "/a/")  # not all, or each number could be twice what it is
    patterns = PATTERNS if case.is_excluding else []
    make = [
        one.replace("host -> false", f"host -> {PATTERNS_IN_SQL}") if case.is_excluding else one
        for one in clickhouse.MAKE
    ]
    asked = [query for until in untils for query in queries(until)]
    erase = ["DELETE FROM events WHERE hostname = 'a.com'", *RECOUNT.split("; "), asked[0]]
    run = [*make, insert, again, *asked, *erase]
    answers = clickhouse.ask(tmp_path / "warehouse", *run)[-len(asked + erase) :]

    first_day = UNTIL - timedelta(days=55)
    without = naive_report(directories, first_day, UNTIL, UNTIL, patterns=[*patterns, "a.com"])
    assert answers[-1] == active(without)
    for number, until in enumerate(untils):
        since = until - timedelta(days=55)
        report = naive_report(directories, since, until, until, patterns=patterns)
        got = answers[8 * number : 8 * number + 8]
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
