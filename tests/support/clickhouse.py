"""deploy/clickhouse.sql in the embedded ClickHouse."""

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

from server import ROOT, package

SQL = (ROOT / "deploy/clickhouse.sql").read_text(encoding="utf-8")
STATEMENTS = [one for one in re.sub(r"\s*--.*", "", SQL).split(";\n") if one.strip()]

# All but the INSERT, so that a test can insert what it likes.
MAKE = [one for one in STATEMENTS if not one.strip().startswith("INSERT")]

Rows = list[dict[str, Any]]


def statement(beginning: str) -> str:
    """Return the statement of clickhouse.sql that begins so."""
    (found,) = [one for one in STATEMENTS if one.strip().startswith(beginning)]
    return found


def ask(directory: Path, *statements: str) -> list[Rows]:
    """Return the rows that each statement gives, in a process of its own."""
    package("chdb")
    script = """if True:
        import json, sys
        from chdb.session import Session
        session = Session(sys.argv[1])
        for statement in json.load(sys.stdin):
            rows = session.query(statement, "JSONEachRow").bytes() or b""
            print(json.dumps([json.loads(row) for row in rows.splitlines()]))
    """
    ran = subprocess.run(
        [sys.executable, "-c", script, directory],
        input=json.dumps(statements),
        capture_output=True,
        text=True,
    )
    assert ran.returncode == 0, ran.stderr
    return [json.loads(line) for line in ran.stdout.splitlines()]


def insert(collectors: Path) -> str:
    """Return the statement that reads the files of the collectors in this directory."""
    return statement("INSERT INTO").replace("'collectors/", f"'{collectors}/")
