"""What a contributor and an upgrade rely on: version, changelog, tags, imports."""

import ast
import re
from pathlib import Path

from flask.testing import FlaskClient

from server import ROOT, give_up, program, run
from settings import VERSION


def read(path: str | Path) -> str:
    return (ROOT / path).read_text(encoding="utf-8")


def test_healthz_shows_the_first_version_of_the_changelog(client: FlaskClient) -> None:
    sections = re.findall(r"^## (.+)$", read("CHANGELOG.md"), re.MULTILINE)
    newest = re.fullmatch(r"\[(\d+\.\d+\.\d+)\] - (unreleased|\d{4}-\d\d-\d\d)", sections[0])

    assert newest
    assert (client.get("/healthz").json or {})["version"] == VERSION == newest[1]


def test_no_page_names_a_tag_that_does_not_exist() -> None:
    ran = run(program("git"), "tag")
    tags = ran.stdout.split() if ran.returncode == 0 else give_up(ran.stderr)
    pages = "".join(read(page) for page in [ROOT / "README.md", *ROOT.glob("docs/*.md")])
    named = re.findall(r"git (?:checkout|clone --branch) (v\d\S+)", pages)

    assert set(named) <= set(tags)


def rooms() -> dict[str, list[Path]]:
    """Return the modules of each room: a package, or a module at the root."""
    packages = {
        path.parent.name: sorted(path.parent.rglob("*.py")) for path in ROOT.glob("*/__init__.py")
    }
    return packages | {path.stem: [path] for path in ROOT.glob("*.py")}


def imported(module: Path) -> set[str]:
    """Return the first part of each name that the module imports."""
    names = set()
    for node in ast.walk(ast.parse(module.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names.add(node.module)
    return {name.split(".")[0] for name in names}


def test_imports_run_as_the_map_says_and_in_no_circle() -> None:
    rows = re.findall(r"^    (\S+) -> (.+)$", read("CONTRIBUTING.md"), re.M)
    drawn = {room: set(others.split(", ")) for room, others in rows}
    found = {
        room: set().union(*map(imported, modules)) & set(rooms()) - {room}
        for room, modules in rooms().items()
    }

    assert drawn == {room: others for room, others in found.items() if others}
    while drawn:
        leaves = {room for room in drawn if not drawn[room] & set(drawn)}
        assert leaves, f"a circle: {drawn}"
        drawn = {room: others for room, others in drawn.items() if room not in leaves}
