"""Fixtures: the app in this process, and a real gunicorn in one of its own."""

import os
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest
from flask import Flask
from flask.testing import FlaskClient

from app import create_app
from chromium import Chromium
from faults import FailingOs, use_as_os
from server import Server, program
from settings import read_settings

CHROMIUM_NAMES = ("chromium", "chromium-browser", "google-chrome")
NOON = datetime(2026, 11, 23, 12, 0, 0, 123456, tzinfo=UTC)

# A setting of the developer's own shell must not decide a test.
for name in [name for name in os.environ if name.startswith("TELEMETRY_")]:
    del os.environ[name]


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Chromium]:
    """A Chromium for all tests of a module."""
    chromium = Chromium(program(*CHROMIUM_NAMES), tmp_path_factory.mktemp("chromium"))
    yield chromium
    chromium.close()


@pytest.fixture
def data_dir(tmp_path: Path) -> Path:
    return tmp_path / "data"


@pytest.fixture
def make_app(data_dir: Path) -> Iterator[Callable[..., Flask]]:
    """Build an app that writes to `data_dir`, at noon; settings are given without TELEMETRY_."""
    apps: list[Flask] = []

    def build(**settings: str) -> Flask:
        environ = {f"TELEMETRY_{name}": value for name, value in settings.items()}
        settings_read = read_settings({"TELEMETRY_DATA_DIR": str(data_dir)} | environ)
        apps.append(create_app(settings_read, clock=lambda: NOON))
        return apps[-1]

    yield build
    for app in apps:
        app.extensions["collector"].close()


@pytest.fixture
def disk(monkeypatch: pytest.MonkeyPatch) -> FailingOs:
    """A disk that fails on demand."""
    disk = FailingOs()
    use_as_os(disk, monkeypatch)
    return disk


@pytest.fixture
def client(make_app: Callable[..., Flask]) -> FlaskClient:
    return make_app().test_client()


@pytest.fixture
def serve(data_dir: Path) -> Iterator[Callable[..., Server]]:
    """Start a gunicorn that writes to `data_dir`; settings are given without TELEMETRY_."""
    servers: list[Server] = []

    def start(*arguments: str, **settings: str) -> Server:
        environ = {f"TELEMETRY_{name}": value for name, value in settings.items()}
        servers.append(Server(data_dir, *arguments, environ=environ))
        return servers[-1]

    yield start
    for server in servers:
        server.kill()


@pytest.fixture
def server(serve: Callable[..., Server]) -> Server:
    return serve()


@pytest.fixture(scope="module")
def running_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with Server(tmp_path_factory.mktemp("server") / "data") as running:
        yield running


@pytest.fixture
def shared_server(running_server: Server) -> Server:
    """One server for all tests of a module, without the files of earlier tests."""
    for path in running_server.data_dir.glob("*"):
        path.unlink()
    return running_server
