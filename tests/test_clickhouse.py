"""The views of deploy/clickhouse.sql give the report's numbers, of the files of two collectors."""

import gzip
from collections.abc import Iterator
from datetime import date, timedelta
from pathlib import Path
from random import Random
from typing import Any
from uuid import UUID

import pytest

import clickhouse
from files.records import encode
from naive_report import PROVIDERS, naive_report

pytestmark = pytest.mark.slow

UNTIL = date(2026, 11, 22)
HASH = "0123456789abcdef" * 4
HOSTNAMES = [
    # Ten that are deployed, so that 90 % of them are a whole number.
    *("a.com", "b.com", "c.example.org", "d.io", "8.8.8.8", "2606:4700:4700::1111", "test.com"),
    *("e.com", "f.com", "g.com"),
    *("localhost", "dev", "a.localhost", "nas.local", "x.home.arpa", "127.0.0.1", "10.0.0.7"),
    *("192.0.2.1", "100.64.0.1", "::1", "fd00::1", "2001:db8::1", None),
]
ADDRESSES = [*(f"192.0.2.{n}" for n in range(9)), "2001:db8::1", None]
PROJECTS = [*"pqrstuv", "\u00fc", '"\\', HASH, None]
VERSIONS = [
    "5.0.1",
    "5.0.2",
    "5.0",
    "5",
    "v5.1.0",
    "4.57.10",
    "10.0.0-rc.1",
    "next",
    "\u00e9",
    "5.x",
]
NODES = ["v22.11.0", "v22.9.0", "v20.1.0", "20", "bun"]
PACKAGES = ["@x/core", "cli", "antd", "\u00fcber"]


def core(chance: Random) -> dict[str, Any]:
    browser = chance.choice([("Firefox", "145.0"), ("Firefox", "144"), ("Chrome", "142.0.0.0")])
    system = chance.choice([("Linux", None), ("Windows", "10"), ("Windows", "11"), (None, None)])
    providers = {name: chance.random() < 0.2 for name in PROVIDERS}
    count = chance.choice([0, 1, 9, 10, 1_000_000])
    payload = {"providers": providers, "version": chance.choice(VERSIONS), "resourceCount": count}
    names = ("browser", "browser_version", "os", "os_version")
    agent = dict(zip(names, chance.choice([browser, (None, None)]) + system, strict=True))
    return {"hostname": chance.choice(HOSTNAMES), **agent, "payload": payload}


def cli(chance: Random) -> dict[str, Any]:
    names = chance.choices(PACKAGES, k=chance.randrange(4))  # a package may come twice
    packages = [{"name": name, "version": chance.choice([*VERSIONS, None])} for name in names]
    payload: dict[str, Any] = {"nodeEnv": chance.choice(["ci", None])}
    payload |= {"nodeVersion": chance.choice(NODES)}
    payload |= {"os": chance.choice(["Linux", "macOS", None]), "osVersion": "1"}
    payload |= {"command": chance.choice(["dev", "build", None]), "packages": packages}
    return {"payload": payload | {"projectFramework": chance.choice(["vite", "nextjs"])}}


def lines(chance: Random, day: date, addresses: list[str | None]) -> Iterator[bytes]:
    for _ in range(chance.randrange(1, 12)):
        source, make = chance.choice([("core", core), ("cli", cli)])
        record: dict[str, Any] = {
            "id": str(UUID(int=chance.getrandbits(128), version=4)),
            "received_at": f"{day}T{chance.randrange(24):02}:00:00.000Z",
            "source": source,
            "ip": chance.choice(addresses),
            **make(chance),
        }
        record["payload"]["projectId"] = chance.choice(PROJECTS)
        # What is sent again on the same day decides with what a host or project was last seen.
        for _ in range(chance.choice([1, 1, 1, 2])):
            yield f"{encode(record)}\n".encode("ascii")
            record["id"] = str(UUID(int=chance.getrandbits(128), version=4))


def write_collectors(root: Path, seed: int) -> list[Path]:
    """Write the files of two collectors: with gaps, compressed and plain, some with hashes."""
    chance = Random(seed)
    first_day = UNTIL - timedelta(days=[70, 55, 54, 40][seed])
    addresses = [*ADDRESSES, HASH] if seed % 3 == 2 else ADDRESSES
    collectors = [root / "collectors/a", root / "collectors/b"]
    for directory in collectors:
        directory.mkdir(parents=True)
        for n in range((UNTIL - first_day).days + 3):
            day = first_day + timedelta(days=n)
            content = b"".join(lines(chance, day, addresses))
            path = directory / f"events-{day}.jsonl"
            if (n and chance.random() < 0.2) or 20 <= n < 30:  # also a whole week without a file
                continue
            if chance.random() < 0.5:
                path.write_bytes(content)
            else:
                path.with_name(f"{path.name}.gz").write_bytes(gzip.compress(content))
    return collectors


def queries(until: date) -> list[str]:
    names = ("active", "adoption", "lists", "list_versions", "resource_count")
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


@pytest.mark.parametrize("seed", range(4))
def test_every_view_gives_the_numbers_of_the_report(tmp_path: Path, seed: int) -> None:
    directories = write_collectors(tmp_path, seed)
    untils = [UNTIL, UNTIL - timedelta(days=9)]
    insert = clickhouse.insert(tmp_path / "collectors")
    again = insert.replace("/*/", "/a/")  # not all, or each number could be twice what it is
    make = [one for one in clickhouse.STATEMENTS if "INSERT" not in one]
    asked = [query for until in untils for query in queries(until)]
    answers = clickhouse.ask(tmp_path / "warehouse", *make, insert, again, *asked)[-len(asked) :]

    for number, until in enumerate(untils):
        report = naive_report(directories, until - timedelta(days=55), until, until)
        got = answers[7 * number : 7 * number + 7]
        assert got[0] == active(report)
        assert values(got[1]) == adoption(report)
        assert values(got[2]) == [row[:5] for row in list_rows(report)]
        assert values(got[3]) == list(versions(report))
        assert got[4] == [report["core"]["resource_count"]]
        assert values(got[5]) == trend(report["weeks"])
        assert values(got[6]) == trend(report["days"])
