"""The schema of the report's JSON against its documentation; recipes."""

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from jsonschema import Draft202012Validator

from records import UNTIL, cli, core, write_days
from server import ROOT, program

SCHEMA = json.loads((ROOT / "docs/report.schema.json").read_bytes())
PAGE = (ROOT / "docs/report.md").read_text(encoding="utf-8")
DOCUMENTED = PAGE.partition("## The JSON\n")[2].partition("\n### Recipes")[0]
RECIPES = dict(re.findall(r"^# (.+)\n(.+)", PAGE.partition("\n### Recipes")[2], re.MULTILINE))
EXPECTED = {
    "A table of weeks for a spreadsheet": [
        '"until","hosts","projects","cli projects"',
        *(f'"2026-{day}",,,' for day in ("10-04", "10-11", "10-18", "10-25", "11-01", "11-08")),
        '"2026-11-15",1,,0',
        '"2026-11-22",2,1,1',
    ],
    "A badge of active hosts for shields.io's endpoint": [
        '{"schemaVersion":1,"label":"active hosts","message":"3","color":"blue"}'
    ],
    "Hosts that last sent a version 4, which only the files can say": [
        "old.com 4.57.9",
        "went-back.com 4.1.0",
    ],
}


def objects(schema: Any) -> Iterator[dict[str, Any]]:
    """Return every schema of an object."""
    if isinstance(schema, dict):
        if schema.get("type") == "object":
            yield schema
        schema = list(schema.values())
    if isinstance(schema, list):
        for part in schema:
            yield from objects(part)


def test_the_schema_allows_no_key_that_it_does_not_name_and_requires_all() -> None:
    Draft202012Validator.check_schema(SCHEMA)
    named = [one for one in objects(SCHEMA) if "properties" in one]

    incomplete = [one for one in named if one["required"] != list(one["properties"])]
    assert incomplete == [SCHEMA["$defs"]["row"]]  # each list says which of the keys its rows have
    assert all(one["additionalProperties"] is False for one in named)
    others = [one for one in objects(SCHEMA) if "properties" not in one]
    assert others == [
        {"type": "object", "additionalProperties": {"type": "integer", "minimum": 1}}
    ]  # series of versions


def test_every_key_is_documented() -> None:
    rows = re.findall(r"^\| (`.+?) \|", DOCUMENTED, re.MULTILINE)
    with_a_row = {name for row in rows for name in re.findall(r"`(\w+)`", row)}
    keys = {key for one in objects(SCHEMA) for key in one.get("properties", ())}

    assert with_a_row == SCHEMA["$defs"]["report"]["properties"].keys()
    assert keys <= set(re.findall(r"`(\w+)`", DOCUMENTED))


@pytest.mark.parametrize("question", RECIPES)
def test_a_recipe_finds_what_is_in_the_report_and_the_files(
    data_dir: Path, tmp_path: Path, question: str
) -> None:
    program("jq")
    write_days(
        data_dir,
        {
            8: [core("old.com", version="4.57.9", ip=None)],
            1: [core("a.com", version="4.57.9"), core("went-back.com", version="5.0.0")],
            0: [
                core("a.com", version="5.0.1", projectId="p"),
                core("went-back.com", version="4.1.0"),
                core(None, version="4.0.0"),
                cli("p"),
            ],
        },
    )
    report = f"{sys.executable} -m flask --app {ROOT}/app.py report --until={UNTIL}"
    recipe = RECIPES[question].replace(".venv/bin/flask report", report).replace("| jq", "| jq -c")
    ran = subprocess.run(
        ["bash", "-c", recipe],
        cwd=tmp_path,
        env=os.environ | {"TELEMETRY_DATA_DIR": str(data_dir)},
        capture_output=True,
        text=True,
    )

    assert (ran.returncode, ran.stderr) == (0, "")
    assert ran.stdout.splitlines() == EXPECTED[question]
