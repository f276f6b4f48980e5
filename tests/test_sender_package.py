"""clients/ as an npm package, in apps of Vite and Next.js and in scripts of every runtime."""

import json
import os
import shutil
import socket
import ssl
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from npm import APPS, MODULES, install_packages, runtime
from server import PATIENCE_SECONDS, ROOT, Server, children, program, wait_until
from settings import VERSION
from web import Site

if TYPE_CHECKING:
    from playwright.sync_api import Browser

# Whichever test is the first waits until npm has installed the packages.
pytestmark = [pytest.mark.slow, pytest.mark.timeout(390)]

# With the beginning of the version of Node that they are, or emulate.
RUNTIMES = {"node": "v", "node 22": "v22.", "node 24": "v24.", "bun": "v", "deno": "v"}
TELEMETRY = "https://telemetry.sprout.example"  # where the app sends to, before it is built


@pytest.fixture(scope="module")
def project() -> Iterator[Path]:
    """A project with the senders' package, in which the packages of tests/apps are found, too."""
    install_packages()
    with tempfile.TemporaryDirectory(dir=APPS, prefix=".copy-") as directory:
        shutil.copytree(ROOT / "clients", Path(directory, "node_modules/telemetry-senders"))
        Path(directory, "tool.mjs").write_text(TOOL)
        package = {"name": "sprout", "dependencies": {"telemetry-senders": "*"}}
        Path(directory, "package.json").write_text(json.dumps(package))
        yield Path(directory)


def run(*command: object, cwd: Path, **environ: str) -> str:
    """Return what a command prints, in an environment of its own."""
    ran = subprocess.run(
        [str(word) for word in command],
        cwd=cwd,
        env={"PATH": os.environ["PATH"], "HOME": str(cwd), **environ},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=PATIENCE_SECONDS,
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
def test_types_are_strict_for_the_package_and_for_copied_files(
    project: Path, module: str, resolution: str
) -> None:
    types = (APPS / "types.ts").read_text()
    (project / "types.mts").write_text(types)
    for name, file in (("browser", "browser.js"), ("cli", "cli.mjs")):
        types = types.replace(
            f"telemetry-senders/{name}", f"./node_modules/telemetry-senders/{file}"
        )
    (project / "copied.mts").write_text(types)

    options = ["--strict", "--exactOptionalPropertyTypes", "--noEmit", "--types", ""]
    options += ["--module", module, "--moduleResolution", resolution]
    assert run_module("typescript/bin/tsc", *options, "types.mts", "copied.mts", cwd=project) == ""


@pytest.mark.parametrize(
    ("name", "builder", "built"),
    [("vite", "vite/bin/vite.js", "dist"), ("next", "next/dist/bin/next", "out")],
)
def test_a_page_load_of_a_built_app_is_one_event(
    project: Path,
    browser: "Browser",
    site: Site,
    shared_server: Server,
    name: str,
    builder: str,
    built: str,
) -> None:
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


def test_the_browsers_sender_adds_less_than_two_and_a_half_kilobytes_to_an_app(
    project: Path,
) -> None:
    sender = ROOT / "clients/browser.js"
    run_module("rolldown/bin/cli.mjs", sender, "--minify", "--file", "small.js", cwd=project)

    assert 1000 < (project / "small.js").stat().st_size < 2500


UNIT_TEST = """
    import { JSDOM } from "jsdom";
    import { Window } from "happy-dom";
    import { sendTelemetry } from "telemetry-senders/browser";

    const url = "https://app.example.com/";
    const windows = { jsdom: new JSDOM("", { url }).window, "happy-dom": new Window({ url }) };
    const sent = [];
    globalThis.fetch = async (url) => { sent.push(url); };
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


def test_a_unit_test_in_a_simulated_browser_sends_nothing(project: Path) -> None:
    (project / "test.mjs").write_text(UNIT_TEST)

    sent = json.loads(run(runtime("node 24"), "test.mjs", cwd=project))
    assert sent == ["jsdom disguised", "happy-dom disguised"]


# The first call only prints the event.
TOOL = """
    import { sendTelemetry, telemetryStatus } from "telemetry-senders/cli";
    const [url, command] = process.argv.slice(2);
    const options = { url, command, packages: "telemetry-" };
    process.env.DEBUG_TELEMETRY = "1";
    sendTelemetry(options);
    process.env.DEBUG_TELEMETRY = "";
    console.log(JSON.stringify(telemetryStatus(options)));
    sendTelemetry(options);
    console.log("called");
    process.stdin.resume();
"""


def tool(name: str) -> list[str]:
    """How to run the tool; for Deno with the permissions that the documentation names."""
    permissions = ["--allow-env", "--allow-sys", "--allow-read", "--allow-run"]
    return [runtime(name), *(["run", *permissions] if name == "deno" else []), "tool.mjs"]


@pytest.mark.parametrize("name", RUNTIMES)
def test_a_command_of_every_runtime_is_one_event_of_a_detached_process(
    project: Path, shared_server: Server, name: str
) -> None:
    with subprocess.Popen(
        [*tool(name), f"http://127.0.0.1:{shared_server.port}/cli", "dev"],
        cwd=project,
        env={"PATH": os.environ["PATH"], "HOME": str(project)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    ) as process:
        assert process.stdout
        printed, status = (json.loads(process.stdout.readline()) for _ in range(2))
        assert process.stdout.readline() == b"called\n"
        (sender,) = children(process.pid)
        assert os.getsid(sender) == sender
        process.communicate(timeout=PATIENCE_SECONDS)
    assert process.returncode == 0
    wait_until(shared_server.events)

    (event,) = shared_server.events()
    payload = event["payload"]
    assert printed | {"projectId": None} == payload
    assert status == {"enabled": True, "reason": None}
    assert payload["nodeVersion"].startswith(RUNTIMES[name])
    assert payload["packages"] == [{"name": "telemetry-senders", "version": VERSION}]
    assert payload["command"] == "dev"


def test_a_script_in_commonjs_can_require_the_sender(project: Path) -> None:
    script = 'console.log(typeof require("telemetry-senders/cli").sendTelemetry)'
    (project / "tool.cjs").write_text(script)

    assert "function" in run(runtime("node"), "tool.cjs", cwd=project)


class Company(Site):
    """A server whose certificate was issued by nobody whom programs trust without being told."""

    def __init__(self, directory: Path) -> None:
        super().__init__(status=204)
        self.distrusted = 0
        words = "req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=localhost -keyout key.pem"
        words += " -out ca.pem -addext subjectAltName=DNS:localhost"
        run(program("openssl"), *words.split(), cwd=directory)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(directory / "ca.pem", directory / "key.pem")
        self.socket = context.wrap_socket(self.socket, server_side=True)

    def get_request(self) -> tuple[socket.socket, Any]:
        try:
            return super().get_request()
        except ssl.SSLError:
            self.distrusted += 1
            raise


SSL = {"SSL_CERT_FILE": "ca.pem"}
# A runtime, its options and its environment.
TRUST: dict[str, tuple[str, list[str], dict[str, str]]] = {
    "NODE_EXTRA_CA_CERTS": ("node", [], {"NODE_EXTRA_CA_CERTS": "ca.pem"}),
    "--use-openssl-ca": ("node", ["--use-openssl-ca"], SSL),
    "NODE_OPTIONS": ("node", [], SSL | {"NODE_OPTIONS": "--no-warnings --use-openssl-ca"}),
    "--use-system-ca": ("node 24", ["--use-system-ca"], SSL),
    "NODE_USE_SYSTEM_CA": ("node 24", [], SSL | {"NODE_USE_SYSTEM_CA": "1"}),
}


def test_the_detached_process_trusts_whom_the_command_trusts(project: Path, tmp_path: Path) -> None:
    with Company(tmp_path) as company:
        url = f"https://localhost:{company.port}/cli"
        for name in ("node", "node 24"):
            run(*tool(name), url, "told nothing", cwd=project)
        wait_until(lambda: company.distrusted == 2)
        for trust, (name, options, environ) in TRUST.items():
            told = {
                key: value.replace("ca.pem", f"{tmp_path}/ca.pem") for key, value in environ.items()
            }
            node, *script = tool(name)
            run(node, *options, *script, url, trust, cwd=project, **told)
        wait_until(lambda: len(company.asked) == len(TRUST))

    commands = {json.loads(asked.body)["command"] for asked in company.asked}
    assert commands == TRUST.keys()
    assert company.distrusted == 2
