"""What linters say of the files in deploy/.  Other modules run them."""

import sys
from pathlib import Path

import pytest

from server import ROOT, package, program, run

pytestmark = pytest.mark.slow

DEPLOY = ROOT / "deploy"


def assert_silent(*command: object) -> None:
    """Assert that a linter succeeds and says nothing."""
    ran = run(*command)
    assert (ran.returncode, ran.stdout, ran.stderr) == (0, "", "")


def test_systemd_finds_nothing_wrong_with_the_units(tmp_path: Path) -> None:
    """With this program and directory in place of those in /opt."""
    units = sorted(DEPLOY.glob("telemetry*.[st]*"))
    for unit in units:
        text = unit.read_text().replace(
            "/opt/telemetry/.venv/bin/", f"{Path(sys.executable).parent}/"
        )
        (tmp_path / unit.name).write_text(text.replace("/opt/telemetry", str(ROOT)))

    assert len(units) == 4
    assert_silent(program("systemd-analyze"), "verify", *tmp_path.iterdir())


def test_hadolint_finds_nothing_wrong_with_the_dockerfile() -> None:
    hadolint = Path(sys.executable).with_name("hadolint")
    assert_silent(hadolint, "--no-color", DEPLOY / "Dockerfile")


@pytest.mark.parametrize(("file", "count"), [("kubernetes", 3), ("kubernetes-report", 2)])
def test_kubernetes_knows_every_field_of_the_manifests(file: str, count: int) -> None:
    yaml = package("yaml")
    schemas = package("kubernetes_validate")
    objects = [*yaml.safe_load_all((DEPLOY / f"{file}.yaml").read_text(encoding="utf-8"))]

    assert len(objects) == count
    for found in objects:
        schemas.validate(found, "1.33", strict=True)  # raises where it does not


def test_operations_md_lists_every_file_of_deploy() -> None:
    manual = (ROOT / "docs/operations.md").read_text(encoding="utf-8")
    files = {path.name for path in DEPLOY.iterdir()} - {"Dockerfile.dockerignore"}

    assert [name for name in sorted(files) if f"`{name}`" not in manual] == []
