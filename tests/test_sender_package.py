"""clients/ as an npm package, in apps of Vite and Next.js and in unit tests."""

import json
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from npm import APPS, MODULES, install_packages, runtime
from server import PATIENCE_SECONDS, ROOT, Server, wait_until
from settings import VERSION
from web import Site

if TYPE_CHECKING:
    from playwright.sync_api import Browser

# Whichever test is the first waits until npm has installed the packages.
pytestmark = [pytest.mark.slow, pytest.mark.timeout(390)]

TELEMETRY = "https://telemetry.sprout.example"  # where the app sends to, before it is built


@pytest.fixture(scope="module")
def project() -> Iterator[Path]:
    """A project with the senders' package, in which the packages of tests/apps are found, too."""
    install_packages()
    with tempfile.TemporaryDirectory(dir=APPS, prefix=".copy-") as directory:
        shutil.copytree(ROOT / "clients", Path(directory, "node_modules/telemetry-senders"))
        package = {"name": "sprout", "dependencies": {"telemetry-senders": "*"}}
        Path(directory, "package.json").write_text(json.dumps(package))
        yield Path(directory)


def run(*command: object, cwd: Path) -> str:
    """Return what a command prints, in an environment of its own."""
    ran = subprocess.run(
        [str(word) for word in command],
        cwd=cwd,
        env={"PATH": os.environ["PATH"], "HOME": str(cwd)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=5 * PATIENCE_SECONDS,  # of a build on a busy machine
    )
    assert ran.returncode == 0, ran.stdout
    return ran.stdout


def run_module(name: str, *arguments: object, cwd: Path) -> str:
    """Run a program of the packages, which want a newer Node than some systems have."""
    return run(runtime("node 24"), MODULES / name, *arguments, cwd=cwd)


def test_the_package_is_the_servers_version_with_its_licence_and_no_dependencies() -> None:
    package = json.loads((ROOT / "clients/package.json").read_text())

    assert package["version"] == VERSION
    assert not [key for key in package if key.endswith("ependencies")]
    assert (ROOT / "clients/LICENSE").read_bytes() == (ROOT / "LICENSE").read_bytes()


@pytest.mark.parametrize(("module", "resolution"), [("nodenext",) * 2, ("esnext", "bundler")])
def test_types_are_strict(project: Path, module: str, resolution: str) -> None:
    shutil.copy(APPS / "types.ts", project / "types.mts")
    options = ["--strict", "--exactOptionalPropertyTypes", "--noEmit", "--types", ""]
    options += ["--module", module, "--moduleResolution", resolution]
    assert run_module("typescript/bin/tsc", *options, "types.mts", cwd=project) == ""


# What builds an app, and the directory it writes.
BUILDERS = {"vite": ("vite/bin/vite.js", "dist"), "next": ("next/dist/bin/next", "out")}


@pytest.mark.parametrize("name", BUILDERS)
def test_a_page_load_of_a_built_app_is_one_event(
    project: Path, browser: "Browser", site: Site, shared_server: Server, name: str
) -> None:
    builder, built = BUILDERS[name]
    app = project / name
    shutil.copytree(APPS / name, app)
    url = f"http://127.0.0.1:{shared_server.port}"
    component = (APPS / "telemetry.jsx").read_text()
    (app / "telemetry.jsx").write_text(component.replace(TELEMETRY, url))
    run_module(builder, "build", cwd=app)
    site.files["/favicon.ico"] = b""
    for path in filter(Path.is_file, app.rglob(f"{built}/**/*")):
        site.files[f"/{path.relative_to(app / built)}"] = path.read_bytes()

    tab = browser.new_page()
    happened: list[str] = []
    tab.on("request", lambda request: happened.append(request.url))
    tab.on("console", lambda message: happened.append(message.text))
    tab.on("pageerror", lambda error: happened.append(str(error)))
    tab.goto(f"http://localhost:{site.port}/index.html")
    wait_until(shared_server.events)
    tab.close()
    (event,) = shared_server.events()
    assert event["payload"]["version"] == "1.2.3"
    own = (f"http://localhost:{site.port}/", "data:")
    assert [one for one in happened if not one.startswith(own)] == [f"{url}/telemetry"]


UNIT_TEST = """
    import { JSDOM } from "jsdom";
    import { Window } from "happy-dom";
    import { sendTelemetry } from "telemetry-senders/browser";

    const url = "https://app.example.com/";
    const windows = { jsdom: new JSDOM("", { url }).window, "happy-dom": new Window({ url }) };
    const sent = [];
    globalThis.fetch = async (url) => { sent.push(url); };
    for (const document of [undefined, {}]) {  // as in server-side rendering
      globalThis.document = document;
      sendTelemetry({ url });
      sendTelemetry();
    }
    for (const [name, window] of Object.entries(windows)) {
      const { document, navigator } = window;
      const addEventListener = window.addEventListener.bind(window);
      for (const [name, value] of Object.entries({ window, document, navigator, addEventListener }))
        Object.defineProperty(globalThis, name, { value, configurable: true });
      send(name);
      const userAgent = { value: "Mozilla/5.0 Chrome/156" };
      Object.defineProperties(navigator, { userAgent, webdriver: { value: false } });
      send(`${name} disguised`);
    }
    console.log(JSON.stringify(sent));
    process.exit();

    function send(url) {
      sendTelemetry({ url, payload: { version: "1.2.3" } });
      window.dispatchEvent(new window.Event("pagehide"));
    }
"""


def test_a_simulated_browser_or_none_sends_nothing(project: Path) -> None:
    (project / "test.mjs").write_text(UNIT_TEST)

    sent = json.loads(run(runtime("node 24"), "test.mjs", cwd=project))
    assert sent == ["jsdom disguised", "happy-dom disguised"]
