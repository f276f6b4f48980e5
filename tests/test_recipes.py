"""The recipes of docs/files.md find what is in the files, plain and compressed."""

import json
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Iterable
from datetime import date
from pathlib import Path
from typing import Any

import pytest

from bench.world import World, make_files
from files.records import encode
from server import ROOT, program

pytestmark = pytest.mark.slow

PAGE = (ROOT / "docs/files.md").read_text(encoding="utf-8")
RECIPES = PAGE.partition("## Recipes\n")[2].partition("\n## ")[0]
BLOCKS = re.findall(r"^```(\w+)\n(.*?)^```", RECIPES, re.MULTILINE | re.DOTALL)
SHELL = dict(re.findall(r"^# (.+)\n(.+)", dict(BLOCKS)["sh"], re.MULTILINE))
BY_DUCKDB, BY_CLICKHOUSE = (text for kind, text in BLOCKS if kind == "sql")
(BY_PANDAS,) = (text for kind, text in BLOCKS if kind == "python")
HOST = "admin.app7.example.com"  # in the place of the documented one
WEEK = "2026-11-17"  # the recipes' first day of the last week
Records = list[dict[str, Any]]


ODD = {
    "id": "0",
    "received_at": f"{WEEK}T23:59:59.999Z",
    "source": "cli",
    "ip": None,
    "payload": {"packages": [{"name": "cli", "version": None}], "projectId": "<b>\u00fc\u202e"},
}


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Sixteen days of events and refusals in `data`; half of the files are compressed."""
    directory = tmp_path_factory.mktemp("recipes")
    data = directory / "data"
    data.mkdir()
    world = World(days=16, until=date(2026, 11, 23), apps=9, addresses=30)
    make_files(data, world, events=3_200, packed=True)
    with (data / f"events-{WEEK}.jsonl").open("a") as file:
        file.write(f"{encode(ODD)}\n")
    return directory


@pytest.fixture(scope="module")
def records(directory: Path) -> Records:
    return [json.loads(line) for line in run(["bash", "-c", "zcat -f data/*"], directory)]


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
    return [f"{times} {value}" for value, times in Counter(values).items()]


def test_each_line_of_shell_finds_what_is_in_the_files(records: Records, directory: Path) -> None:
    program("jq")
    apps, week = events_of("core", records), events_of("core", records, WEEK)
    packages = [{"name": name, "version": version} for name, version in packages_in(records)]
    expected = {
        "Events from apps": [str(len(apps))],
        "All that one host sent": [encode(app) for app in apps if app["hostname"] == HOST],
        "Packages and their versions, by events": counted(map(encode, packages)),
        "Addresses of apps that were active in the last week": [
            str(different(app["ip"] for app in week))
        ],
        "Versions of apps, by events": counted(app["payload"]["version"] for app in apps),
        "Reasons of refusals": counted(r["detail"] for r in records if "detail" in r),
    }

    assert SHELL.keys() == expected.keys()
    assert len(SHELL) * 2 == len(dict(BLOCKS)["sh"].splitlines())
    for question, recipe in SHELL.items():
        command = ["bash", "-c", recipe.replace("admin.example.com", HOST)]
        lines = [line.strip() for line in run(command, directory)]
        assert sorted(lines) == sorted(expected[question])
        numbers = [int(line.split()[0]) for line in lines if line[0].isdigit()]
        assert numbers == sorted(numbers, reverse=True)


def run_python(script: str, directory: Path, text: str = "") -> list[str]:
    return run([sys.executable, "-W", "error", "-c", script], directory, text)


def test_duckdb_finds_what_is_in_the_files(records: Records, directory: Path) -> None:
    script = "import duckdb, sys; print(*duckdb.sql(sys.stdin.read()).fetchall(), sep='\\n')"
    lines = run_python(script, directory, BY_DUCKDB)

    expected = []
    for source in ("cli", "core"):
        week = events_of(source, records, WEEK)
        projects = different(record["payload"]["projectId"] for record in week)
        expected.append(str((source, different(record["ip"] for record in week), projects)))
    assert sorted(lines) == expected


def test_clickhouse_finds_what_is_in_the_files(records: Records, directory: Path) -> None:
    script = "import chdb, sys; print(chdb.query(sys.stdin.read(), 'JSONCompactEachRow'))"
    rows = [json.loads(line) for line in run_python(script, directory, BY_CLICKHOUSE) if line]

    expected = Counter(packages_in(records))
    assert {(name, version): int(n) for name, version, n in rows} == expected
    assert [int(n) for *_, n in rows] == sorted(expected.values(), reverse=True)


def test_pandas_finds_what_is_in_the_files(records: Records, directory: Path) -> None:
    lines = run_python(BY_PANDAS, directory)
    found = dict(line.split() for line in lines if re.match(r"\d{4}-", line))

    days = {record["received_at"][:10] for record in records}
    apps = events_of("core", records)
    assert found == {
        day: str(different(r["ip"] for r in apps if r["received_at"].startswith(day)))
        for day in days
    }
