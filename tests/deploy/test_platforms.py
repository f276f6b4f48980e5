"""Platforms that read the Procfile, which honcho stands for, or have no wheel of ua-parser-rs."""

import os
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

import parsing
from proxies import free_port
from server import Load, Server, package

pytestmark = pytest.mark.slow


def test_the_procfile_needs_no_more_than_a_port(data_dir: Path) -> None:
    package("honcho")
    programs = Path(sys.executable).parent
    environ = {"PORT": str(free_port()), "PATH": f"{programs}:{os.environ['PATH']}"}
    honcho = ("sh", "-c", "exec honcho start >&2")  # it prints what its processes say
    with Server(data_dir, command=honcho, environ=environ) as server, Load(server, 2) as load:
        load.wait_for(204, 20)
        server.stop()

    assert any("Shutting down: Master" in line for line in server.log)
    assert load.projects() <= set(server.projects())


def test_without_the_native_matcher_browsers_are_recognised_all_the_same(
    serve: Callable[..., Server], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "ua_parser_rs.py").write_text("raise ImportError('no wheel')")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    server = serve()
    firefox = "Mozilla/5.0 (X11; Linux x86_64; rv:128.0) Gecko/20100101 Firefox/128.0"
    agents = (firefox, "no such agent")
    for agent in agents:
        assert server.send_core(headers=[("User-Agent", agent)]).status == 204

    keys = parsing.describe_agent("")
    assert [{key: event[key] for key in keys} for event in server.events()] == [
        parsing.describe_agent(agent) for agent in agents
    ]
    assert len([line for line in server.log if "ua-parser-rs cannot be imported" in line]) == 1
