"""What linters say of the files in deploy/.  Other modules run them."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from server import GUNICORN, PATIENCE_SECONDS, ROOT, package, program

pytestmark = pytest.mark.slow

DEPLOY = ROOT / "deploy"


def said_by(*command: str | Path) -> tuple[int, str]:
    """Return the exit status of a linter and all that it prints."""
    ran = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE_SECONDS)
    return ran.returncode, ran.stdout + ran.stderr


@pytest.fixture
def unit(tmp_path: Path) -> Path:
    """The unit beside its socket, with this program and directory in place of those in /opt."""
    text = (DEPLOY / "telemetry.service").read_text()
    text = text.replace("/opt/telemetry/.venv/bin/gunicorn", str(GUNICORN))
    path = tmp_path / "telemetry.service"
    path.write_text(text.replace("/opt/telemetry", str(ROOT)))
    shutil.copy(DEPLOY / "telemetry.socket", tmp_path)
    return path


def test_systemd_finds_nothing_wrong_with_the_unit_and_its_socket(unit: Path) -> None:
    verify = [program("systemd-analyze"), "verify"]

    assert said_by(*verify, unit, unit.with_suffix(".socket")) == (0, "")


def test_hadolint_finds_nothing_wrong_with_the_dockerfile() -> None:
    hadolint = Path(sys.executable).with_name("hadolint")

    assert said_by(hadolint, "--no-color", DEPLOY / "Dockerfile") == (0, "")


def test_kubernetes_knows_every_field_of_the_manifest() -> None:
    yaml = package("yaml")
    schemas = package("kubernetes_validate")
    objects = [*yaml.safe_load_all((DEPLOY / "kubernetes.yaml").read_text(encoding="utf-8"))]

    assert [found["kind"] for found in objects] == [
        "PersistentVolumeClaim",
        "Deployment",
        "Service",
    ]
    for found in objects:
        schemas.validate(found, "1.33", strict=True)  # raises where it does not


def test_operations_md_lists_every_file_of_deploy() -> None:
    manual = (ROOT / "docs/operations.md").read_text(encoding="utf-8")
    files = {path.name for path in DEPLOY.iterdir()} - {"Dockerfile.dockerignore"}

    assert [name for name in sorted(files) if f"`{name}`" not in manual] == []
