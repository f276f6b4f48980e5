"""The README's recipes, run on plain and compressed files: they find what `flask report` finds."""

import gzip
import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from flask import Flask
from test_report import send_a_week

from server import ROOT, program

pytestmark = pytest.mark.slow

README = (ROOT / "README.md").read_text(encoding="utf-8")
RECIPES = README.partition("## Recipes\n")[2].partition("\n## ")[0]
BLOCKS = re.findall(r"^```(\w+)\n(.*?)^```", RECIPES, re.MULTILINE | re.DOTALL)
SHELL = dict(re.findall(r"^# (.+)\n(.+)", dict(BLOCKS)["sh"], re.MULTILINE))
BY_DUCKDB, BY_CLICKHOUSE = (text for kind, text in BLOCKS if kind == "sql")
(BY_PANDAS,) = (text for kind, text in BLOCKS if kind == "python")
HOST = "h7.example"  # in the place of the README's


@pytest.fixture
def report(make_app: Callable[..., Flask], data_dir: Path) -> dict[str, Any]:
    """The report on a week of events; half of the files are compressed."""
    send_a_week(data_dir)
    for path in list(data_dir.glob("*-1*.jsonl"))[::2]:
        with gzip.open(f"{path}.gz", "wb") as packed:
            packed.write(path.read_bytes())
        path.unlink()
    arguments = ["report", "--format=json", "--since=2026-11-16"]
    found: dict[str, Any] = json.loads(make_app().test_cli_runner().invoke(args=arguments).stdout)
    return found


def run(command: list[str], directory: Path, text: str = "") -> list[str]:
    """Return the lines that a command prints, and nothing on standard error."""
    ran = subprocess.run(command, cwd=directory, input=text, capture_output=True, text=True)

    assert (ran.returncode, ran.stderr) == (0, "")
    return ran.stdout.splitlines()


def counted(rows: list[dict[str, Any]], text_of: Callable[[dict[str, Any]], str]) -> list[str]:
    return sorted(f"{row['events']} {text_of(row)}" for row in rows)


# What each of them must print, in any order; from the report.
EXPECTED: dict[str, Callable[[dict[str, Any]], list[str]]] = {
    "Events from apps": lambda report: [str(report["events"]["core"])],
    "Packages and their versions, by events": lambda report: counted(
        report["cli"]["packages"],
        lambda row: json.dumps(
            {"name": row["name"], "version": row["version"]}, separators=(",", ":")
        ),
    ),
    "Addresses of apps that were active in the last week": lambda report: [
        str(report["active"]["7"]["core"]["addresses"])
    ],
    "Versions of apps, by events": lambda report: counted(
        report["core"]["versions"], lambda row: row["value"]
    ),
    "Reasons of refusals": lambda report: counted(report["refused"], lambda row: row["detail"]),
}


@pytest.mark.parametrize("question", EXPECTED)
def test_a_line_of_shell_finds_what_the_report_finds(
    report: dict[str, Any], tmp_path: Path, question: str
) -> None:
    program("jq")
    lines = run(["bash", "-c", SHELL[question]], tmp_path)
    numbers = [int(line.split()[0]) for line in lines]

    assert sorted(line.strip() for line in lines) == EXPECTED[question](report)
    assert numbers == sorted(numbers, reverse=True)


def test_a_line_of_shell_finds_all_that_one_host_sent(
    report: dict[str, Any], tmp_path: Path, data_dir: Path
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


def test_duckdb_finds_what_the_report_finds(report: dict[str, Any], tmp_path: Path) -> None:
    script = "import duckdb, sys; print(*duckdb.sql(sys.stdin.read()).fetchall(), sep='\\n')"
    lines = run_python(script, tmp_path, BY_DUCKDB)

    week = report["active"]["7"]
    assert sorted(lines) == [
        str((source, week[source]["addresses"], week[source]["projects"]))
        for source in ("cli", "core")
    ]


def test_clickhouse_finds_what_the_report_finds(report: dict[str, Any], tmp_path: Path) -> None:
    script = "import chdb, sys; print(chdb.query(sys.stdin.read(), 'JSONCompactEachRow'))"
    rows = [json.loads(line) for line in run_python(script, tmp_path, BY_CLICKHOUSE) if line]

    expected = [[p["name"], p["version"], p["events"]] for p in report["cli"]["packages"]]
    assert [int(row[2]) for row in rows] == [row[2] for row in expected]
    assert sorted((name, version or "", int(n)) for name, version, n in rows) == sorted(
        (name, version or "", n) for name, version, n in expected
    )


def test_pandas_finds_what_the_report_finds(report: dict[str, Any], tmp_path: Path) -> None:
    lines = run_python(BY_PANDAS, tmp_path)
    found = dict(line.split() for line in lines if re.match(r"\d{4}-", line))

    assert found == {day["date"]: str(day["core"]["addresses"]) for day in report["days"]}
