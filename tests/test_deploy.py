"""What linters say of the files in deploy/.  Other modules run them."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from server import GUNICORN, PATIENCE_SECONDS, ROOT, program

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
