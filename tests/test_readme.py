"""The README's examples are run, and its settings held against the code."""

import re
import subprocess
from pathlib import Path

import pytest

from server import Server
from settings import NAMES

README = (Path(__file__).parent.parent / "README.md").read_text(encoding="utf-8")
VARIES = [
    (r'"id":"[0-9a-f-]{36}"', '"id":"…"'),
    (r'"received_at":"[^"]+"', '"received_at":"…"'),
    (r'"browser_version":"[^"]+"', '"browser_version":"…"'),  # the reader's curl
    (r'"free_mb":\d+', '"free_mb":…'),
]


def examples() -> list[tuple[str, str]]:
    """Each `$ command` of the README with the output that is shown below it."""
    found = re.findall(r"^    \$ (.+)\n((?:    [^$\n].*\n)*)", README, re.MULTILINE)
    return [(command, output.replace("\n    ", "\n").strip()) for command, output in found]


def without_what_varies(text: str) -> str:
    for pattern, replacement in VARIES:
        text = re.sub(pattern, replacement, text)
    return text


def test_every_example_prints_what_the_readme_shows(server: Server) -> None:
    for command, expected in examples():
        here = command.replace("localhost:8000", f"localhost:{server.port}")
        here = here.replace("data/", f"{server.data_dir}/")
        ran = subprocess.run(["bash", "-c", here], capture_output=True, text=True, check=True)

        assert without_what_varies(ran.stdout.strip()) == without_what_varies(expected), command


def test_there_are_examples() -> None:
    assert len(examples()) >= 6


@pytest.mark.parametrize("setting", [*NAMES, "PORT", "WEB_CONCURRENCY", "GUNICORN_CMD_ARGS"])
def test_every_setting_is_in_the_readme_with_its_default(setting: str) -> None:
    row = re.search(rf"^\| `{setting}` \|(?: `?([^`|]*)`?)? \|", README, re.MULTILINE)

    assert row, f"{setting} has no row"
    if setting in NAMES:
        assert row[1].strip() == (NAMES[setting].metadata["default"] or "empty")
