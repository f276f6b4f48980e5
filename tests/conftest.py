"""Fixtures: the app in this process, and a real gunicorn in one of its own."""

import os
import socket
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from flask import Flask
from flask.testing import FlaskClient

from app import create_app
from faults import FailingOs, use_as_os
from server import PATIENCE_SECONDS, Server, package, program
from settings import read_settings
from web import Site

if TYPE_CHECKING:  # importing it takes a third of a second, which most tests need not spend
    from playwright.sync_api import Browser

CHROMIUM_NAMES = ("chromium", "chromium-browser", "google-chrome")
# Playwright turns on navigator.webdriver.  Tests are about users, who do not have it.
WITHOUT_WEBDRIVER = "--disable-blink-features=AutomationControlled"
# One process runs all tests of a module, except of those whose tests share nothing.
LONG_MODULES = {"test_engines", "test_image", "test_report_people", "test_sender_package"}
LONG_MODULES |= {"test_clickhouse", "test_systemd"}
SPLIT_MODULES = {"test_cli_client", "test_crash", "test_forget", "test_housekeeping"}
SPLIT_MODULES |= {"test_mixture", "test_power_cut"}
NOON = datetime(2026, 11, 23, 12, 0, 0, 123456, tzinfo=UTC)

# A setting of the developer's own shell must not decide a test.
for name in [name for name in os.environ if name.startswith("TELEMETRY_")]:
    del os.environ[name]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with long modules and end with split ones, so that no process ends much later."""
    items.sort(key=lambda one: (one.path.stem in SPLIT_MODULES) - (one.path.stem in LONG_MODULES))


@pytest.hookimpl(optionalhook=True)  # xdist may be missing
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    from xdist.scheduler import LoadScopeScheduling

    class ByModule(LoadScopeScheduling):  # type: ignore[misc]  # it has no types
        def _split_scope(self, nodeid: str) -> str:
            module = Path(nodeid.partition("::")[0]).stem
            return nodeid if module in SPLIT_MODULES else module

    return ByModule(config, log)


@pytest.fixture(scope="session")
def browser() -> Iterator["Browser"]:
    """A Chromium for all tests."""
    chromium = program(*CHROMIUM_NAMES)
    with package("playwright.sync_api").sync_playwright() as playwright:
        yield playwright.chromium.launch(executable_path=chromium, args=[WITHOUT_WEBDRIVER])


@pytest.fixture
def site() -> Iterator[Site]:
    """The web server of an app."""
    with Site() as site:
        yield site


@pytest.fixture
def mute() -> Iterator[socket.socket]:
    """A server that accepts connections and never responds."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(PATIENCE_SECONDS)
        yield listener


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


@pytest.fixture(scope="session")
def running_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """One server for many tests, behind a proxy."""
    data_dir = tmp_path_factory.mktemp("server") / "data"
    with Server(data_dir, environ={"TELEMETRY_TRUSTED_PROXIES": "127.0.0.1"}) as running:
        yield running


@pytest.fixture
def shared_server(running_server: Server) -> Server:
    """The same server, without the files of earlier tests."""
    running_server.send_cli()  # once it is answered, no earlier event is on its way to a file
    for path in running_server.data_dir.glob("*"):
        path.unlink()
    return running_server
