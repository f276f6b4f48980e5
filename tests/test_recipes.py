"""The recipes of docs/files.md find what is in the files, plain and compressed."""

import gzip
import json
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path
from random import Random
from typing import Any
from uuid import UUID

import pytest

from files.records import encode
from server import ROOT, program

pytestmark = pytest.mark.slow

PAGE = (ROOT / "docs/files.md").read_text(encoding="utf-8")
RECIPES = PAGE.partition("## Recipes\n")[2].partition("\n## ")[0]
BLOCKS = re.findall(r"^```(\w+)\n(.*?)^```", RECIPES, re.MULTILINE | re.DOTALL)
SHELL = dict(re.findall(r"^# (.+)\n(.+)", dict(BLOCKS)["sh"], re.MULTILINE))
BY_DUCKDB, BY_CLICKHOUSE = (text for kind, text in BLOCKS if kind == "sql")
(BY_PANDAS,) = (text for kind, text in BLOCKS if kind == "python")
HOST = "h7.example"  # in the place of the documented one
WEEK = "2026-11-17"  # the recipes' first day of the last week
Records = list[dict[str, Any]]


@pytest.fixture
def records(data_dir: Path) -> Records:
    """Eight days of events and refusals; half of the files are compressed."""
    chance, found = Random(7), []
    data_dir.mkdir()
    for day in range(16, 24):
        date = f"2026-11-{day}"
        events = [event(chance, date) for _ in range(40)]
        refusals = [refusal(chance, date) for _ in range(5)]
        for kind, records in (("events", events), ("refused", refusals)):
            text = "".join(f"{encode(record)}\n" for record in records).encode("ascii")
            path = data_dir / f"{kind}-{date}.jsonl"
            if day % 2:
                path.write_bytes(text)
            else:
                path.with_name(f"{path.name}.gz").write_bytes(gzip.compress(text))
        found += events + refusals
    return found


def event(chance: Random, date: str) -> dict[str, Any]:
    source = chance.choice(["core", "cli"])
    names = chance.sample(["core", "cli", "antd"], chance.randrange(4))
    packages = [{"name": name, "version": chance.choice(["1", "2", None])} for name in names]
    project = chance.choice([None, "a", "b", "<b>\u00fc\u202e"])
    core = {"providers": {}, "version": f"5.0.{chance.randrange(3)}", "resourceCount": 1}
    cli = {"nodeVersion": "v20", "packages": packages, "projectFramework": "vite"}
    head = {
        "id": str(UUID(int=chance.getrandbits(128), version=4)),
        "received_at": f"{date}T0{chance.randrange(10)}:00:00.000Z",
        "source": source,
        "ip": chance.choice([None, f"192.0.2.{chance.randrange(30)}"]),
    }
    if source == "core":
        head["hostname"] = f"h{chance.randrange(9)}.example"
    return head | {"payload": (core if source == "core" else cli) | {"projectId": project}}


def refusal(chance: Random, date: str) -> dict[str, Any]:
    detail = chance.choice(["version: want a string.", "payload: want Base64."])
    head = {"received_at": f"{date}T01:00:00.000Z", "source": "core", "status": 400}
    return head | {"field": None, "detail": detail}


def events_of(source: str, records: Records, since: str = "") -> Records:
    return [r for r in records if r["source"] == source and "id" in r and r["received_at"] >= since]


def packages_in(records: Records) -> list[tuple[str, str | None]]:
    return [
        (package["name"], package["version"])
        for record in events_of("cli", records)
        for package in record["payload"]["packages"]
    ]


def different(values: Iterable[Any]) -> int:
    return len({value for value in values if value is not None})


def run(command: list[str], directory: Path, text: str = "") -> list[str]:
    """Return the lines that a command prints, and nothing on standard error."""
    ran = subprocess.run(command, cwd=directory, input=text, capture_output=True, text=True)

    assert (ran.returncode, ran.stderr) == (0, "")
    return ran.stdout.splitlines()


def counted(values: Iterable[str]) -> list[str]:
    return sorted(f"{times} {value}" for value, times in Counter(values).items())


# What each of them must print, in any order.
EXPECTED: dict[str, Callable[[Records], list[str]]] = {
    "Events from apps": lambda records: [str(len(events_of("core", records)))],
    "Packages and their versions, by events": lambda records: counted(
        encode({"name": name, "version": version}) for name, version in packages_in(records)
    ),
    "Addresses of apps that were active in the last week": lambda records: [
        str(different(record["ip"] for record in events_of("core", records, WEEK)))
    ],
    "Versions of apps, by events": lambda records: counted(
        record["payload"]["version"] for record in events_of("core", records)
    ),
    "Reasons of refusals": lambda records: counted(
        record["detail"] for record in records if "detail" in record
    ),
}


@pytest.mark.parametrize("question", EXPECTED)
def test_a_line_of_shell_finds_what_is_in_the_files(
    records: Records, tmp_path: Path, question: str
) -> None:
    program("jq")
    lines = run(["bash", "-c", SHELL[question]], tmp_path)
    numbers = [int(line.split()[0]) for line in lines]

    assert sorted(line.strip() for line in lines) == EXPECTED[question](records)
    assert numbers == sorted(numbers, reverse=True)


def test_a_line_of_shell_finds_all_that_one_host_sent(
    records: Records, tmp_path: Path, data_dir: Path
) -> None:
    recipe = SHELL["All that one host sent"].replace("admin.example.com", HOST)
    events = [json.loads(line) for line in run(["bash", "-c", recipe], tmp_path)]
    found = {event["id"] for event in events}
    every = [json.loads(line) for line in run(["bash", "-c", "zcat -f data/events-*"], tmp_path)]

    assert found == {event["id"] for event in every if event.get("hostname") == HOST}
    assert len(events) == len(found) > 5


def test_every_line_of_shell_is_tested() -> None:
    assert SHELL.keys() == {*EXPECTED, "All that one host sent"}
    assert len(SHELL) * 2 == len(dict(BLOCKS)["sh"].splitlines())


def run_python(script: str, directory: Path, text: str = "") -> list[str]:
    return run([sys.executable, "-W", "error", "-c", script], directory, text)


def test_duckdb_finds_what_is_in_the_files(records: Records, tmp_path: Path) -> None:
    script = "import duckdb, sys; print(*duckdb.sql(sys.stdin.read()).fetchall(), sep='\\n')"
    lines = run_python(script, tmp_path, BY_DUCKDB)

    expected = []
    for source in ("cli", "core"):
        week = events_of(source, records, WEEK)
        projects = different(record["payload"]["projectId"] for record in week)
        expected.append(str((source, different(record["ip"] for record in week), projects)))
    assert sorted(lines) == expected


def test_clickhouse_finds_what_is_in_the_files(records: Records, tmp_path: Path) -> None:
    script = "import chdb, sys; print(chdb.query(sys.stdin.read(), 'JSONCompactEachRow'))"
    rows = [json.loads(line) for line in run_python(script, tmp_path, BY_CLICKHOUSE) if line]

    expected = Counter(packages_in(records))
    assert {(name, version): int(n) for name, version, n in rows} == expected
    assert [int(n) for *_, n in rows] == sorted(expected.values(), reverse=True)


def test_pandas_finds_what_is_in_the_files(records: Records, tmp_path: Path) -> None:
    lines = run_python(BY_PANDAS, tmp_path)
    found = dict(line.split() for line in lines if re.match(r"\d{4}-", line))

    days = {record["received_at"][:10] for record in records}
    apps = events_of("core", records)
    assert found == {
        day: str(different(r["ip"] for r in apps if r["received_at"].startswith(day)))
        for day in days
    }
