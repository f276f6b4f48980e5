"""The unit for systemd and the Dockerfile, as far as they can be tried without either.

A linter and a copy of the files stand for Docker's engine.  For systemd as process 1,
its own checks do, and the list of system calls that a real server makes.
"""

import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from proxies import free_port
from server import GUNICORN, PATIENCE_SECONDS, ROOT, Load, Server, program, wait_until

pytestmark = pytest.mark.slow

DEPLOY = ROOT / "deploy"
MOST_EXPOSURE = 15  # tenths, of systemd's 100; a unit without any of its settings has 96


def run(*command: str | Path, **environ: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command,
        capture_output=True,
        text=True,
        timeout=PATIENCE_SECONDS,
        env={**os.environ, **environ},
    )


@pytest.fixture
def unit(tmp_path: Path) -> Path:
    """The unit, with this program and directory in the place of those in /opt."""
    text = (DEPLOY / "telemetry.service").read_text()
    text = text.replace("/opt/telemetry/.venv/bin/gunicorn", str(GUNICORN))
    path = tmp_path / "telemetry.service"
    path.write_text(text.replace("/opt/telemetry", str(ROOT)))
    return path


def test_systemd_finds_nothing_wrong_with_the_unit(unit: Path) -> None:
    ran = run(program("systemd-analyze"), "verify", unit)

    assert (ran.stdout + ran.stderr, ran.returncode) == ("", 0)


def test_systemd_finds_the_unit_little_exposed(unit: Path) -> None:
    analyze = [program("systemd-analyze"), "security", "--offline=true", "--no-pager"]

    ran = run(*analyze, f"--threshold={MOST_EXPOSURE}", unit)

    assert ran.returncode == 0, ran.stdout[-300:]


def allowed_calls(unit: Path) -> set[str]:
    """Return the system calls that the unit's SystemCallFilter= lines leave."""
    groups: dict[str, list[str]] = {}
    for line in run(program("systemd-analyze"), "syscall-filter").stdout.splitlines():
        if line.startswith("@"):
            name = line
            groups[name] = []
        elif line.strip() and not line.strip().startswith("#"):
            groups[name].append(line.strip())

    def calls(entry: str) -> set[str]:
        return set().union(*map(calls, groups[entry])) if entry in groups else {entry}

    allowed: set[str] = set()
    for value in re.findall(r"^SystemCallFilter=(.+)$", unit.read_text(), re.MULTILINE):
        named = set().union(*map(calls, value.removeprefix("~").split()))
        allowed = allowed - named if value.startswith("~") else allowed | named
    return allowed | calls("@default")


def test_the_unit_allows_every_system_call_of_a_server_from_start_to_stop(
    unit: Path, tmp_path: Path, data_dir: Path
) -> None:
    trace = tmp_path / "trace"
    launcher = [program("strace"), "-f", "-qq", "-o", str(trace)]
    server = Server(data_dir, "--workers=2", launcher=launcher)
    try:
        with Load(server, 2) as load:
            load.wait_for(204, 20)
        assert server.send_core().status == 204
        assert server.send_core(version=5).status == 400
        assert server.send("GET", "/healthz").status == 200
        (master,) = server.workers()  # strace's child
        os.kill(master, signal.SIGHUP)
        wait_until(lambda: "Handling signal: hup" in "\n".join(server.log))
        assert server.send_cli().status == 204
        os.kill(master, signal.SIGTERM)
        assert server.process.wait(PATIENCE_SECONDS) == 0
    finally:
        server.kill()

    calls = trace.read_text()
    made = set(re.findall(r"^\d+ +([a-z_0-9]+)\(", calls, re.MULTILINE))
    assert {"flock", "fsync", "accept4", "fchmod"} <= made
    assert made - allowed_calls(unit) == set()
    assert "PROT_WRITE|PROT_EXEC" not in calls  # MemoryDenyWriteExecute=
    assert {*re.findall(r" socket\((AF_\w+)", calls)} <= {"AF_INET", "AF_INET6", "AF_UNIX"}


def instructions() -> list[tuple[str, str]]:
    """Return the Dockerfile's instructions, each with what follows it."""
    text = (DEPLOY / "Dockerfile").read_text().replace("\\\n", "")
    return [(found[1], found[2]) for found in re.finditer(r"^([A-Z]+) (.+)$", text, re.MULTILINE)]


def test_hadolint_finds_nothing_wrong_with_the_dockerfile() -> None:
    ran = run(Path(sys.executable).with_name("hadolint"), "--no-color", DEPLOY / "Dockerfile")

    assert (ran.stdout + ran.stderr, ran.returncode) == ("", 0)


def test_what_the_dockerfile_copies_is_enough_to_serve_and_to_check_health(
    tmp_path: Path, data_dir: Path
) -> None:
    port = str(free_port())
    app = tmp_path / "app"
    app.mkdir()
    environ: dict[str, str] = {}
    commands: dict[str, list[str]] = {}
    for name, rest in instructions():
        if name == "COPY":
            *sources, target = rest.split()
            for source in (path for pattern in sources for path in ROOT.glob(pattern)):
                if source.is_dir():  # what is in it is copied
                    shutil.copytree(source, app / target)
                else:
                    shutil.copy(source, app / target)
        elif name == "ENV":
            environ |= dict(pair.split("=") for pair in shlex.split(rest))
        elif name in ("CMD", "HEALTHCHECK"):
            commands[name] = json.loads(rest[rest.index("[") :])
    health = [sys.executable, *(part.replace("8000", port) for part in commands["HEALTHCHECK"][1:])]
    process = subprocess.Popen(
        [GUNICORN.with_name(commands["CMD"][0])],
        cwd=app,
        env={**os.environ, **environ, "PORT": port, "TELEMETRY_DATA_DIR": str(data_dir)},
        stderr=subprocess.DEVNULL,
    )
    try:
        wait_until(lambda: run(*health).returncode == 0)
        data_dir.write_text("no directory")  # events cannot be stored now
        assert run(*health).returncode == 1
    finally:
        process.terminate()
        assert process.wait(PATIENCE_SECONDS) == 0
