"""The examples of README.md and docs/ are run; settings and links are held against the code."""

import re
import subprocess
from pathlib import Path

import pytest

from documented import examples, run_here, without_what_varies
from server import ROOT, Server, program
from settings import NAMES

README = (ROOT / "README.md").read_text(encoding="utf-8")
PROTOCOL = (ROOT / "docs/protocol.md").read_text(encoding="utf-8")
REPORT = (ROOT / "docs/report.md").read_text(encoding="utf-8")
PAGES = [*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), ROOT / "bench/README.md"]


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
