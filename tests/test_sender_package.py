"""clients/ as an npm package, in a Vite app, a Next.js app and scripts of every runtime."""

import json
import os
import shutil
import socket
import ssl
import subprocess
import tarfile
import tempfile
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from npm import APPS, MODULES, install_packages, install_senders, run_npm, runtime
from server import PATIENCE_SECONDS, ROOT, Server, children, program, wait_until
from settings import VERSION
from web import Site

if TYPE_CHECKING:
    from playwright.sync_api import Browser

# Whichever test is the first waits until npm has installed the packages.
pytestmark = [pytest.mark.slow, pytest.mark.timeout(390)]

RUNTIMES = ["node", "node 22", "node 24", "bun", "deno"]
BUILD_SECONDS = 300
TELEMETRY = "https://telemetry.sprout.example"  # where the apps send to, before they are built


@pytest.fixture(scope="module")
def project() -> Iterator[Path]:
    """A project with the senders' package, in which the packages of tests/apps are found, too."""
    install_packages()
    with tempfile.TemporaryDirectory(dir=APPS, prefix=".copy-") as directory:
        Path(directory, "package.json").write_text('{"name": "sprout"}')
        install_senders(Path(directory))
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
        timeout=BUILD_SECONDS,
    )
    assert ran.returncode == 0, ran.stdout
    return ran.stdout


def run_module(name: str, *arguments: str, cwd: Path) -> str:
    """Run a program of the packages, which want a newer Node than some systems have."""
    environ = {"NEXT_TELEMETRY_DISABLED": "1"}
    return run(runtime("node 24"), MODULES / name, *arguments, cwd=cwd, **environ)


def test_the_package_holds_both_senders_their_types_and_the_licence(tmp_path: Path) -> None:
    packed = run_npm("pack", "--pack-destination", str(tmp_path), cwd=ROOT / "clients")
    with tarfile.open(tmp_path / packed.splitlines()[-1]) as archive:
        names = {name.removeprefix("package/") for name in archive.getnames()}
    package = json.loads((ROOT / "clients/package.json").read_text())

    senders = {"browser.js", "browser.d.ts", "cli.mjs", "cli.d.mts"}
    assert names == senders | {"package.json", "README.md", "LICENSE"}
    assert package["version"] == VERSION
    assert not [key for key in package if key.endswith("ependencies")]
    assert (ROOT / "clients/LICENSE").read_bytes() == (ROOT / "LICENSE").read_bytes()


@pytest.mark.parametrize(("module", "resolution"), [("nodenext",) * 2, ("esnext", "bundler")])
@pytest.mark.parametrize("copied", [False, True], ids=["installed", "copied"])
def test_types_are_strict(project: Path, module: str, resolution: str, copied: bool) -> None:
    types = (APPS / "types.ts").read_text()
    if copied:
        types = types.replace("telemetry-senders/browser", "./browser.js")
        types = types.replace("telemetry-senders/cli", "./cli.mjs")
        for sender in ("browser.js", "browser.d.ts", "cli.mjs", "cli.d.mts"):
            shutil.copy(ROOT / "clients" / sender, project)
    (project / "types.mts").write_text(types)

    options = ["--strict", "--exactOptionalPropertyTypes", "--noEmit", "--types", ""]
    options += ["--module", module, "--moduleResolution", resolution]
    assert run_module("typescript/bin/tsc", *options, "types.mts", cwd=project) == ""


BUILDERS = {"vite": ("vite/bin/vite.js", "dist"), "next": ("next/dist/bin/next", "out")}


def build(name: str, project: Path, url: str) -> Path:
    """Build an app of tests/apps that sends to this URL, and return the directory of its files."""
    builder, built = BUILDERS[name]
    app = Path(tempfile.mkdtemp(dir=project))
    shutil.copytree(APPS / name, app, dirs_exist_ok=True)
    for source in filter(Path.is_file, app.rglob("*")):
        source.write_text(source.read_text().replace(TELEMETRY, url))
    run_module(builder, "build", cwd=app)
    return app / built


@pytest.mark.parametrize("name", BUILDERS)
def test_a_page_load_of_a_built_app_is_one_event(
    project: Path, browser: "Browser", site: Site, server: Server, name: str
) -> None:
    url = f"http://127.0.0.1:{server.port}"
    built = build(name, project, url)
    for path in filter(Path.is_file, built.rglob("*")):
        site.files[f"/{path.relative_to(built)}"] = path.read_bytes()
    site.files["/favicon.ico"] = b""

    tab = browser.new_page()
    happened: list[str] = []
    tab.on("request", lambda request: happened.append(request.url))
    tab.on("console", lambda message: happened.append(message.text))
    tab.on("pageerror", lambda error: happened.append(str(error)))
    tab.goto(f"http://localhost:{site.port}/index.html")
    wait_until(server.events)
    tab.close()
    (event,) = server.events()
    assert event["payload"]["version"] == "1.2.3"
    assert event["hostname"] == "localhost"
    own = f"http://localhost:{site.port}/"
    assert [one for one in happened if not one.startswith(own)] == [f"{url}/telemetry"]


def test_the_browsers_sender_adds_less_than_two_and_a_half_kilobytes_to_an_app(
    project: Path,
) -> None:
    (script,) = build("vite", project, TELEMETRY).glob("assets/*.js")

    assert script.stat().st_size < 2500


SIMULATED = {
    "jsdom": """
        import { JSDOM } from "jsdom";
        const { window } = new JSDOM("", { url: "https://app.example.com/" });
    """,
    "happy-dom": """
        import { Window } from "happy-dom";
        const window = new Window({ url: "https://app.example.com/" });
    """,
}
UNIT_TEST = """
    import { sendTelemetry } from "telemetry-senders/browser";
    BEFORE
    for (const name of ["window", "document", "navigator", "addEventListener"]) {
      const value = name === "addEventListener" ? window[name].bind(window) : window[name];
      Object.defineProperty(globalThis, name, { value, configurable: true });
    }
    if (process.argv[2] === "disguised") {
      const userAgent = { value: "Mozilla/5.0 Chrome/156" };
      Object.defineProperties(navigator, { userAgent, webdriver: { value: false } });
    }
    let sent = 0;
    globalThis.fetch = async () => { sent += 1; };
    sendTelemetry({ url: "https://telemetry.example.com/", payload: { version: "1.2.3" } });
    window.dispatchEvent(new window.Event("pagehide"));
    console.log(sent);
    process.exit();
"""


@pytest.mark.parametrize("simulated", SIMULATED)
def test_a_unit_test_in_a_simulated_browser_sends_nothing(project: Path, simulated: str) -> None:
    (project / "test.mjs").write_text(UNIT_TEST.replace("BEFORE", SIMULATED[simulated]))

    assert run(runtime("node 24"), "test.mjs", cwd=project) == "0\n"
    assert run(runtime("node 24"), "test.mjs", "disguised", cwd=project) == "1\n"


TOOL = """
    import { sendTelemetry, telemetryStatus } from "telemetry-senders/cli";
    const options = { url: process.argv[2], command: "dev", packages: "telemetry-" };
    sendTelemetry(options);
    console.log(JSON.stringify(telemetryStatus(options)));
    process.stdin.resume();
"""


def command(name: str) -> list[str]:
    """How to run a script; for Deno with the permissions that the documentation names."""
    permissions = ["--allow-env", "--allow-sys", "--allow-read", "--allow-run"]
    return [runtime(name), *(["run", *permissions] if name == "deno" else [])]


@pytest.mark.parametrize("name", RUNTIMES)
def test_a_command_of_every_runtime_is_one_event_of_a_detached_process(
    project: Path, server: Server, name: str
) -> None:
    (project / "tool.mjs").write_text(TOOL)
    url = f"http://127.0.0.1:{server.port}/cli"
    with subprocess.Popen(
        [*command(name), "tool.mjs", url],
        cwd=project,
        env={"PATH": os.environ["PATH"], "HOME": str(project)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as tool:
        assert tool.stdout
        assert json.loads(tool.stdout.readline()) == {"enabled": True, "reason": None}
        assert [os.getsid(sender) for sender in children(tool.pid)] == children(tool.pid)
        tool.communicate(timeout=PATIENCE_SECONDS)
    assert tool.returncode == 0
    wait_until(server.events)

    (event,) = server.events()
    version = "v"
    if "node" in name:
        version = run(runtime(name), "--print", "process.version", cwd=project).strip()
    assert event["payload"]["nodeVersion"].startswith(version)
    assert event["payload"]["packages"] == [{"name": "telemetry-senders", "version": VERSION}]
    assert event["payload"]["command"] == "dev"


@pytest.mark.parametrize("name", RUNTIMES)
def test_debug_prints_the_event_in_every_runtime(project: Path, name: str) -> None:
    (project / "tool.mjs").write_text(TOOL)
    told = run(*command(name), "tool.mjs", "https://x", cwd=project, DEBUG_TELEMETRY="1")

    event, status = map(json.loads, told.splitlines())
    assert event["command"] == "dev"
    assert status == {"enabled": False, "reason": "DEBUG_TELEMETRY is set"}


@pytest.mark.parametrize("name", ["node", "node 22", "node 24"])
def test_a_script_in_commonjs_can_require_the_sender(project: Path, name: str) -> None:
    script = 'console.log(typeof require("telemetry-senders/cli").sendTelemetry)'
    (project / "tool.cjs").write_text(script)

    assert "function" in run(runtime(name), "tool.cjs", cwd=project)


class Company(ThreadingHTTPServer):
    """A server whose certificate was issued by nobody whom programs trust without being told."""

    def __init__(self, directory: Path) -> None:
        super().__init__(("127.0.0.1", 0), Answering)
        self.bodies: list[bytes] = []
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


class Answering(BaseHTTPRequestHandler):
    server: Company

    def do_POST(self) -> None:
        self.server.bodies.append(self.rfile.read(int(self.headers["Content-Length"])))
        self.send_response(204)
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def company(tmp_path: Path) -> Iterator[Company]:
    with Company(tmp_path) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server
        server.shutdown()


SSL = {"SSL_CERT_FILE": "ca.pem"}
# A runtime, its options and its environment.
TRUST: dict[str, tuple[str, list[str], dict[str, str]]] = {
    "NODE_EXTRA_CA_CERTS": ("node", [], {"NODE_EXTRA_CA_CERTS": "ca.pem"}),
    "--use-openssl-ca": ("node", ["--use-openssl-ca"], SSL),
    "NODE_OPTIONS": ("node", [], SSL | {"NODE_OPTIONS": "--no-warnings --use-openssl-ca"}),
    "--use-system-ca": ("node 24", ["--use-system-ca"], SSL),
    "NODE_USE_SYSTEM_CA": ("node 24", [], SSL | {"NODE_USE_SYSTEM_CA": "1"}),
}


@pytest.mark.parametrize("trust", TRUST)
def test_the_detached_process_trusts_whom_the_command_trusts(
    project: Path, company: Company, tmp_path: Path, trust: str
) -> None:
    name, options, environ = TRUST[trust]
    (project / "tool.mjs").write_text(TOOL)
    url = f"https://localhost:{company.server_port}/cli"
    run(*command(name), "tool.mjs", url, cwd=project)
    wait_until(lambda: company.distrusted)
    environ = {key: value.replace("ca.pem", f"{tmp_path}/ca.pem") for key, value in environ.items()}
    run(*command(name), *options, "tool.mjs", url, cwd=project, **environ)
    wait_until(lambda: company.bodies)

    (body,) = company.bodies
    assert json.loads(body)["command"] == "dev"
    assert company.distrusted == 1
