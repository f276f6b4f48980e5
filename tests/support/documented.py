"""The commands that the documentation shows, and what they print."""

import re
import sys
from pathlib import Path

from server import run

VARIES = [
    (r'"id":"[0-9a-f-]{36}"', '"id":"…"'),
    (r'"received_at":"[^"]+"', '"received_at":"…"'),
    (r'"browser_version":"[^"]+"', '"browser_version":"…"'),  # the reader's curl
    (r'"free_mb":\d+', '"free_mb":…'),
    (r'"nodeVersion":"v[\d.]+"', '"nodeVersion":"…"'),
    (r'"osVersion":"[^"]+"', '"osVersion":"…"'),
]


def examples(page: str) -> list[tuple[str, str]]:
    """Return each `$ command` of a page with the output that is shown below it."""
    found = re.findall(r"^    \$ (.+)\n((?:    (?!\$ ).*\n|\n(?=    ))*)", page, re.MULTILINE)
    return [(command, re.sub("^    ", "", output, flags=re.M)) for command, output in found]


def without_what_varies(text: str) -> str:
    for pattern, replacement in VARIES:
        text = re.sub(pattern, replacement, text)
    return text


def run_here(command: str, directory: Path) -> str:
    """Run a documented command with this Python, on a directory of the test's own."""
    command = command.replace(".venv/bin/python", sys.executable)
    command = command.replace(".venv/bin/flask", f"{sys.executable} -m flask")
    command = re.sub(r"\bworld (?=--)", f"{directory}/world ", command)
    ran = run("bash", "-c", command, PYTHONIOENCODING="utf-8")

    assert ran.returncode == 0, ran.stderr
    return ran.stdout
