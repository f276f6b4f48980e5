"""The recipes of docs/files.md find what is in the files, plain and compressed."""

import gzip
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from files.records import encode
from records import cli, core, packages
from server import ROOT, program

pytestmark = pytest.mark.slow

PAGE = (ROOT / "docs/files.md").read_text(encoding="utf-8")
RECIPES = PAGE.partition("## Recipes\n")[2].partition("\n## ")[0]
BLOCKS = re.findall(r"^```(\w+)\n(.*?)^```", RECIPES, re.MULTILINE | re.DOTALL)
SHELL = dict(re.findall(r"^# (.+)\n(.+)", dict(BLOCKS)["sh"], re.MULTILINE))
BY_DUCKDB, BY_CLICKHOUSE = (text for kind, text in BLOCKS if kind == "sql")
(BY_PANDAS,) = (text for kind, text in BLOCKS if kind == "python")

HOST = "admin.example.com"
DAYS = {  # the recipes' last week begins on the second one
    "2026-11-16": [
        core(HOST, "192.0.2.1", version="4.57.9"),
        cli("old", "192.0.2.9", packages=packages("core@5.0.0", "cli@1.0.0")),
    ],
    "2026-11-17": [
        core("b.com", "192.0.2.2", version="5.0.1"),
        core(HOST, "192.0.2.1", version="5.0.1", projectId="p"),
        core("b.com", "192.0.2.2", version="5.0.1"),
        cli("p", "192.0.2.1", packages=packages("core@5.0.0", "cli@1.0.0")),
    ],
    "2026-11-23": [
        core(None, None, version=None),
        core(None, "192.0.2.3", version=None),
        cli("<b>\u00fc\u202e", None, packages=packages("core@5.0.0")),
        cli("p", "192.0.2.1", packages=[{"name": "cli", "version": None}]),
    ],
}
EVENTS = {
    day: [encode(record | {"received_at": f"{day}T23:59:59.999Z"}) for record in records]
    for day, records in DAYS.items()
}
FOUND_BY_SHELL = {
    "Events from apps": ["6"],
    "All that one host sent": [EVENTS["2026-11-16"][0], EVENTS["2026-11-17"][1]],
    "Packages and their versions, by events": [
        '3 {"name":"core","version":"5.0.0"}',
        '2 {"name":"cli","version":"1.0.0"}',
        '1 {"name":"cli","version":null}',
    ],
    "Addresses of apps that were active in the last week": ["3"],
    "Versions of apps, by events": ["3 5.0.1", "2 null", "1 4.57.9"],
    "Reasons of refusals": ["2 version: want a string.", "1 body: want at most 65536 bytes."],
}


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three days of events and two of refusals in `data`; the older files are compressed."""
    directory = tmp_path_factory.mktemp("recipes")
    (directory / "data").mkdir()
    files = {f"events-{day}.jsonl": lines for day, lines in EVENTS.items()}
    reasons = [reason[2:] for reason in FOUND_BY_SHELL["Reasons of refusals"]]
    for day, details in (("2026-11-16", reasons), ("2026-11-23", reasons[:1])):
        files[f"refused-{day}.jsonl"] = [encode({"detail": detail}) for detail in details]
    for name, lines in files.items():
        content = "".join(f"{line}\n" for line in lines).encode()
        is_old = "11-23" not in name
        path = directory / "data" / (f"{name}.gz" if is_old else name)
        path.write_bytes(gzip.compress(content) if is_old else content)
    return directory


def run(command: list[str], directory: Path, text: str = "") -> list[str]:
    """Return the lines that a command prints, and nothing on standard error."""
    ran = subprocess.run(command, cwd=directory, input=text, capture_output=True, text=True)

    assert (ran.returncode, ran.stderr) == (0, "")
    return [line.strip() for line in ran.stdout.splitlines()]


def run_python(script: str, directory: Path, text: str = "") -> list[str]:
    return run([sys.executable, "-W", "error", "-c", script], directory, text)


def test_each_line_of_shell_finds_what_is_in_the_files(directory: Path) -> None:
    program("jq")
    found = {question: run(["bash", "-c", SHELL[question]], directory) for question in SHELL}

    assert found == FOUND_BY_SHELL
    assert len(SHELL) * 2 == len(dict(BLOCKS)["sh"].splitlines())


def test_duckdb_finds_what_is_in_the_files(directory: Path) -> None:
    script = "import duckdb, sys; print(*duckdb.sql(sys.stdin.read()).fetchall(), sep='\\n')"

    lines = run_python(script, directory, BY_DUCKDB)
    assert sorted(lines) == ["('cli', 1, 2)", "('core', 3, 1)"]


def test_clickhouse_finds_what_is_in_the_files(directory: Path) -> None:
    script = "import chdb, sys; print(chdb.query(sys.stdin.read(), 'JSONCompactEachRow'))"

    rows = [json.loads(line) for line in run_python(script, directory, BY_CLICKHOUSE) if line]
    assert [(name, version, int(events)) for name, version, events in rows] == [
        ("core", "5.0.0", 3),
        ("cli", "1.0.0", 2),
        ("cli", None, 1),
    ]


def test_pandas_finds_what_is_in_the_files(directory: Path) -> None:
    lines = run_python(BY_PANDAS, directory)

    found = dict(line.split() for line in lines if re.match(r"\d{4}-", line))
    assert found == {"2026-11-16": "1", "2026-11-17": "2", "2026-11-23": "1"}
