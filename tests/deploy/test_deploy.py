"""What linters say of the files in deploy/.  Other modules run them."""

import subprocess
import sys
from pathlib import Path

import pytest

from server import PATIENCE_SECONDS, ROOT, package, program

pytestmark = pytest.mark.slow

DEPLOY = ROOT / "deploy"


def said_by(*command: str | Path) -> tuple[int, str]:
    """Return the exit status of a linter and all that it prints."""
    ran = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE_SECONDS)
    return ran.returncode, ran.stdout + ran.stderr


def test_systemd_finds_nothing_wrong_with_the_units(tmp_path: Path) -> None:
    """With this program and directory in place of those in /opt."""
    units = sorted(DEPLOY.glob("telemetry*.[st]*"))
    for unit in units:
        text = unit.read_text().replace(
            "/opt/telemetry/.venv/bin/", f"{Path(sys.executable).parent}/"
        )
        (tmp_path / unit.name).write_text(text.replace("/opt/telemetry", str(ROOT)))

    assert len(units) == 4
    verify = [program("systemd-analyze"), "verify"]
    assert said_by(*verify, *(tmp_path / unit.name for unit in units)) == (0, "")


def test_hadolint_finds_nothing_wrong_with_the_dockerfile() -> None:
    hadolint = Path(sys.executable).with_name("hadolint")

    assert said_by(hadolint, "--no-color", DEPLOY / "Dockerfile") == (0, "")


@pytest.mark.parametrize(
    ("file", "kinds"),
    [
        ("kubernetes.yaml", ["PersistentVolumeClaim", "Deployment", "Service"]),
        ("kubernetes-report.yaml", ["PersistentVolumeClaim", "CronJob"]),
    ],
)
def test_kubernetes_knows_every_field_of_the_manifests(file: str, kinds: list[str]) -> None:
    yaml = package("yaml")
    schemas = package("kubernetes_validate")
    objects = [*yaml.safe_load_all((DEPLOY / file).read_text(encoding="utf-8"))]

    assert [found["kind"] for found in objects] == kinds
    for found in objects:
        schemas.validate(found, "1.33", strict=True)  # raises where it does not


def test_operations_md_lists_every_file_of_deploy() -> None:
    manual = (ROOT / "docs/operations.md").read_text(encoding="utf-8")
    files = {path.name for path in DEPLOY.iterdir()} - {"Dockerfile.dockerignore"}

    assert [name for name in sorted(files) if f"`{name}`" not in manual] == []
