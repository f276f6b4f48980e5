"""Platforms that read the Procfile, which honcho stands for, or have no wheel of ua-parser-rs."""

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import parsing
from proxies import free_port
from server import PATIENCE_SECONDS, ROOT, Load, Server, package, wait_until

pytestmark = pytest.mark.slow


class Platform(Server):
    """The Procfile's process, started with a port in $PORT.  Its output is in `output`."""

    def __init__(self, data_dir: Path, output: Path) -> None:
        package("honcho")
        self.data_dir = data_dir
        self.output = output
        self.port = free_port()
        programs = Path(sys.executable).parent
        with output.open("wb") as file:
            self.process: subprocess.Popen[Any] = subprocess.Popen(
                [programs / "honcho", "start"],
                cwd=ROOT,
                env={
                    **os.environ,
                    "PATH": f"{programs}:{os.environ['PATH']}",
                    "PORT": str(self.port),
                    "TELEMETRY_DATA_DIR": str(data_dir),
                },
                stdout=file,
                stderr=file,
                start_new_session=True,
            )
        wait_until(lambda: "Booting worker" in output.read_text())

    def end(self) -> None:
        self.process.terminate()
        self.process.wait(PATIENCE_SECONDS)

    def kill(self) -> None:
        if self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait(PATIENCE_SECONDS)


@pytest.fixture
def platform(data_dir: Path, tmp_path: Path) -> Iterator[Platform]:
    platform = Platform(data_dir, tmp_path / "output")
    yield platform
    platform.kill()


def test_the_procfile_needs_no_more_than_a_port(platform: Platform) -> None:
    with Load(platform, 2) as load:
        load.wait_for(204, 20)
        platform.end()

    assert "Shutting down: Master" in platform.output.read_text()
    assert load.projects() <= {event["payload"]["projectId"] for event in platform.events()}


AGENTS = (
    "Mozilla/5.0 (X11; Linux x86_64; rv:128.0) Gecko/20100101 Firefox/128.0",
    "Mozilla/5.0 (Windows NT 10.0; Win64; x64) AppleWebKit/537.36 (KHTML, like Gecko) "
    "Chrome/131.0.0.0 Safari/537.36",
    "no such agent",
)


def test_without_the_native_matcher_browsers_are_recognised_all_the_same(
    serve: Callable[..., Server], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "ua_parser_rs.py").write_text("raise ImportError('no wheel')")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    server = serve()
    for agent in AGENTS:
        assert server.send_core(headers=[("User-Agent", agent)]).status == 204

    keys = parsing.describe_agent("")
    assert [{key: event[key] for key in keys} for event in server.events()] == [
        parsing.describe_agent(agent) for agent in AGENTS
    ]
    assert len([line for line in server.log if "ua-parser-rs cannot be imported" in line]) == 1
