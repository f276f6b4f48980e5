"""The examples of README.md and docs/ are run; settings and links are held against the code."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from server import ROOT, Server, program, run
from settings import NAMES

README = (ROOT / "README.md").read_text(encoding="utf-8")
PROTOCOL = (ROOT / "docs/protocol.md").read_text(encoding="utf-8")
REPORT = (ROOT / "docs/report.md").read_text(encoding="utf-8")
PAGES = [*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), ROOT / "bench/README.md"]
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


@pytest.mark.parametrize(("page", "count"), [(README, 4), (PROTOCOL, 2)])
def test_every_example_prints_what_is_shown(shared_server: Server, page: str, count: int) -> None:
    program("curl")
    assert len(examples(page)) == count
    for command, expected in examples(page):
        here = command.replace("localhost:8000", f"localhost:{shared_server.port}")
        here = here.replace("data/", f"{shared_server.data_dir}/")
        ran = subprocess.run(["bash", "-c", here], capture_output=True, text=True, check=True)

        assert without_what_varies(ran.stdout.strip()) == without_what_varies(expected.strip())


@pytest.mark.slow
def test_the_example_of_the_report_is_its_real_output(tmp_path: Path) -> None:
    ((report, expected),) = examples(REPORT)
    (world,) = re.findall(r"`(.venv/bin/python bench/world.py [^`]+)`", REPORT)
    assert (
        run_here(f"{' '.join(world.split())} && {report}", tmp_path).rstrip() == expected.rstrip()
    )


def run_here(command: str, directory: Path) -> str:
    """Run a documented command with this Python, on a directory of the test's own."""
    command = command.replace(".venv/bin/python", sys.executable)
    command = command.replace(".venv/bin/flask", f"{sys.executable} -m flask")
    command = re.sub(r"\bworld (?=--)", f"{directory}/world ", command)
    ran = run("bash", "-c", command, PYTHONIOENCODING="utf-8")

    assert ran.returncode == 0, ran.stderr
    return ran.stdout


@pytest.mark.parametrize("setting", [*NAMES, "PORT", "WEB_CONCURRENCY", "GUNICORN_CMD_ARGS"])
def test_every_setting_is_in_the_readme_with_its_default(setting: str) -> None:
    row = re.search(rf"^\| `{setting}` \|(?: `?([^`|]*)`?)? \|", README, re.MULTILINE)

    assert row, f"{setting} has no row"
    if setting in NAMES:
        assert row[1].strip() == (NAMES[setting].metadata["default"] or "empty")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_what_a_page_links_to_or_names_as_a_test_exists(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    links = re.findall(r"\]\((?!https?:|#)([^)#]+)", text)
    modules = [*ROOT.glob("tests/test_*.py"), *ROOT.glob("tests/deploy/test_*.py")]

    assert [link for link in links if not (page.parent / link).exists()] == []
    assert set(re.findall(r"\b(test_\w+)", text)) <= {path.stem for path in modules}


def test_every_promise_names_its_test() -> None:
    promises = README.partition("## What is promised\n")[2].partition("\n**")[0]
    rows = re.findall(r"^\| (?!promise|--)(.+) \|$", promises, re.MULTILINE)

    assert len(rows) >= 8
    assert [row for row in rows if "`test_" not in row] == []
