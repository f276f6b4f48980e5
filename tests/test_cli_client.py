"""clients/cli.mjs in real runtimes, called by a small tool."""

import json
import os
import platform
import socket
import ssl
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from npm import runtime
from proxies import make_certificate
from server import PATIENCE_SECONDS, ROOT, Server, children, wait_until
from web import Site

# Whichever test is the first waits until npm has installed the runtimes.
pytestmark = [pytest.mark.slow, pytest.mark.timeout(390)]

CLIENT = (ROOT / "clients/cli.mjs").as_uri()
# With the beginning of the version of Node that they are, or emulate.
RUNTIMES = {"node": "v", "node 22": "v22.", "node 24": "v24.", "bun": "v", "deno": "v"}
# What the documentation names.
DENO_PERMISSIONS = ["--allow-env", "--allow-sys", "--allow-read", "--allow-run"]
PACKAGE = {
    "dependencies": {"@refinedev/core": "^5.0.0", "react": "^19.0.0"},
    "devDependencies": {"@refinedev/cli": "^2.0.0", "@refinedev/devtools": "^2.0.0"},
}
INSTALLED = {
    "@refinedev/core": "5.0.12",
    "@refinedev/cli": "2.16.52",
    "@refinedev/devtools": None,
}
MOST_RUNS = 20

Tool = Callable[..., "subprocess.Popen[str]"]


def make_project(directory: Path) -> Path:
    """A project in a monorepo: one package is its own, one is shared, one is not installed."""
    project = directory / "app"
    modules = "node_modules/@refinedev"
    write(project / "package.json", json.dumps(PACKAGE))
    write(project / modules / "core/package.json", '{"version": "5.0.12"}')
    write(directory / modules / "core/package.json", '{"version": "4.0.0"}')
    write(directory / modules / "cli/package.json", '{"version": "2.16.52"}')
    (project / "src").mkdir()
    return project


def write(path: Path, content: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content, encoding="utf-8")


@pytest.fixture
def start_tool(tmp_path: Path) -> Iterator[Tool]:
    """Start a tool, which runs a script in a directory of a project.

    It ends when its standard input does.
    """
    started: list[subprocess.Popen[str]] = []
    directory = make_project(tmp_path / "monorepo") / "src"

    def start(
        script: str, name: str = "node", options: Sequence[str] = (), **environ: str
    ) -> "subprocess.Popen[str]":
        script = f"""
            import {{ sendTelemetry, telemetryStatus }} from {json.dumps(CLIENT)};
            {script}
            console.log("called");
            process.stdin.resume();
        """
        write(directory / "tool.mjs", script)
        if name == "deno":
            options = ["run", *DENO_PERMISSIONS]
        tool = subprocess.Popen(
            [runtime(name), *options, "tool.mjs"],
            cwd=directory,
            env={"PATH": os.environ["PATH"], "HOME": str(directory), **environ},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        started.append(tool)
        return tool

    yield start
    for tool in started:
        tool.communicate(timeout=PATIENCE_SECONDS)


def call(port: int, command: str = "dev", **options: Any) -> str:
    """Return a call of the sender, for the tool's script."""
    options = {"url": f"http://127.0.0.1:{port}/cli", "command": command} | options
    return f"sendTelemetry({json.dumps(options)});\n"


def finish(tool: "subprocess.Popen[str]") -> str:
    """Let the tool end, and return all that it printed."""
    output, _ = tool.communicate(timeout=PATIENCE_SECONDS)
    assert tool.returncode == 0
    return output


def senders(tool: "subprocess.Popen[str]") -> list[int]:
    """Return the processes that the tool has started once it has made its calls."""
    assert tool.stdout
    assert tool.stdout.readline() == "called\n"
    return children(tool.pid)


def stored(server: Server, count: int) -> dict[str, Any]:
    """Return the payloads of so many events by their commands."""
    wait_until(lambda: len(server.events()) == count)
    payloads = [event["payload"] for event in server.events()]
    return {payload["command"]: payload for payload in payloads}


@pytest.fixture
def mute_port(mute: socket.socket) -> int:
    port: int = mute.getsockname()[1]
    return port


@pytest.mark.parametrize("name", RUNTIMES)
def test_a_command_of_every_runtime_is_one_event_of_a_detached_process(
    start_tool: Tool, shared_server: Server, name: str
) -> None:
    told = {"projectId": "größe-😀", "projectFramework": "vite", "packages": "@refinedev/"}
    script = call(shared_server.port, **told)
    script += call(shared_server.port, "build", projectFramework=None)
    tool = start_tool(script, name, NODE_ENV="production")
    for sender in senders(tool):
        assert os.getsid(sender) == sender  # Ctrl-C in the tool's terminal does not reach it
    assert finish(tool) == ""

    payloads = stored(shared_server, 2)
    assert payloads["dev"].pop("nodeVersion").startswith(RUNTIMES[name])
    assert payloads["dev"] == {
        "nodeEnv": "production",
        "os": "Linux",
        "osVersion": platform.release(),
        "command": "dev",
        "packages": [{"name": name, "version": INSTALLED[name]} for name in INSTALLED],
        "projectFramework": "vite",
        "projectId": "größe-😀",
    }
    # What the tool does not give is not guessed.
    assert [payloads["build"][name] for name in told] == [None, "unknown", []]


def package_json(*names: str) -> dict[str, str]:
    return {"package.json": json.dumps({"dependencies": dict.fromkeys(names, "1")})}


CORE = "node_modules/@refinedev/core/package.json"
OUTSIDE = "@x/../../outside"
# What is written into a project, and the packages that are sent.
UNUSUAL: dict[str, tuple[dict[str, str], dict[str, str | None]]] = {
    "no JSON": ({"package.json": "{"}, {}),
    "a name that no server accepts": (
        package_json("@\n\ud83d" + "😀" * 300),
        {"@" + "😀" * 255: None},
    ),
    "many packages": (
        package_json(*(f"@{i}" for i in range(300))),
        {f"@{i}": None for i in range(256)},
    ),
    "a version that is no text": ({CORE: '{"version": 5}'}, INSTALLED | {"@refinedev/core": None}),
    "byte order marks, as editors on Windows write them": (
        {"package.json": "\ufeff" + json.dumps(PACKAGE), CORE: '\ufeff{"version": "5.0.12"}'},
        INSTALLED,
    ),
    "a nearer package.json that names nothing": (
        {"src/package.json": '{"type": "module"}'},
        INSTALLED,
    ),
    "a name that leads out of node_modules": (
        package_json(OUTSIDE) | {"outside/package.json": '{"version": "secret"}'},
        {OUTSIDE: None},
    ),
    "a deleted working directory": ({}, {}),
}


def test_an_unusual_project_does_not_lose_the_event(
    start_tool: Tool, shared_server: Server, tmp_path: Path
) -> None:
    script = 'import { rmSync } from "node:fs";\n'
    for number, (case, (files, _)) in enumerate(UNUSUAL.items()):
        project = make_project(tmp_path / str(number))
        for name, content in files.items():
            write(project / name, content)
        script += f"process.chdir({json.dumps(str(project / 'src'))});"
        if case == "a deleted working directory":
            script += "rmSync('../src', { recursive: true });"
        script += call(shared_server.port, case, packages="@")
    assert finish(start_tool(script)) == "called\n"

    payloads = stored(shared_server, len(UNUSUAL))
    for case, (_, expected) in UNUSUAL.items():
        packages = payloads[case]["packages"]
        assert {one["name"]: one["version"] for one in packages} == expected, case


def test_packages_that_do_not_fit_are_left_out_of_the_event(
    start_tool: Tool, shared_server: Server, tmp_path: Path
) -> None:
    names = [f"p-{i:03}-{'x' * 240}" for i in range(256)]
    write(tmp_path / "monorepo/app/package.json", package_json(*names)["package.json"])
    finish(start_tool(call(shared_server.port, packages="p-")))

    sent = [package["name"] for package in stored(shared_server, 1)["dev"]["packages"]]
    assert len(sent) > 100
    assert sent == names[: len(sent)]


PLUG_AND_PLAY = """
const Module = require("node:module");
const load = Module._load;
process.versions.pnp = "3";
Module._load = function (request, ...rest) {
  if (request !== "pnpapi") return load.call(this, request, ...rest);
  const { join } = require("node:path");
  return { resolveToUnqualified: (name, issuer) => join(__dirname, "kept", name) };
};
"""


def test_under_plug_and_play_versions_are_found_without_node_modules(
    start_tool: Tool, shared_server: Server, tmp_path: Path
) -> None:
    """Yarn's hook, as far as its documentation has it: process.versions.pnp and "pnpapi"."""
    write(tmp_path / ".pnp.cjs", PLUG_AND_PLAY)
    write(tmp_path / "kept/@refinedev/devtools/package.json", '{"version": "2.0.1"}')
    options = ["--require", str(tmp_path / ".pnp.cjs")]
    finish(start_tool(call(shared_server.port, packages="@refinedev/devtools"), options=options))

    (package,) = stored(shared_server, 1)["dev"]["packages"]
    assert package == {"name": "@refinedev/devtools", "version": "2.0.1"}


OPT_OUTS = ["REFINE_NO_TELEMETRY", "DO_NOT_TRACK", "TOOL_NO_TELEMETRY"]
BUILD_MACHINES = ["CI", "GITHUB_ACTIONS", "JENKINS_URL", "TF_BUILD"]
# The environment, the options, and why nothing is sent.
STATUS: list[tuple[dict[str, str], dict[str, Any], str | None]] = [
    *(({name: value}, {}, f"{name} is set") for name in OPT_OUTS for value in ("1", "true", " on")),
    *(
        (dict.fromkeys([*OPT_OUTS, *BUILD_MACHINES], value), {}, None)
        for value in ("0", "false", "", " ", "False", "no", "OFF")
    ),
    *(({name: "true"}, {}, f"{name} is set, as on build machines") for name in BUILD_MACHINES),
    ({"CI": "true"}, {"ci": True}, None),
    ({"CI": "true", "DO_NOT_TRACK": "1"}, {"ci": True}, "DO_NOT_TRACK is set"),
    ({"DEBUG_TELEMETRY": "1"}, {}, "DEBUG_TELEMETRY is set"),
    ({}, {"url": "telemetry.example.com"}, "the URL is invalid"),
]
CALL_WITH_STATUS = """
    function call(environ, options) {
      Object.assign(process.env, environ);
      console.log(JSON.stringify(telemetryStatus(options)));
      sendTelemetry(options);
      for (const name of Object.keys(environ)) delete process.env[name];
    }
    for (const [environ, changes] of CASES) call(environ, { ...OPTIONS, ...changes });
    process.execPath = "/usr/local/bin/tool";
    call({}, OPTIONS);
"""


def test_an_event_is_sent_unless_the_status_says_why_not(start_tool: Tool, mute_port: int) -> None:
    """Debugging writes the event to standard error."""
    options = {
        "url": f"http://127.0.0.1:{mute_port}/cli",
        "command": "dev",
        "optOut": "TOOL_NO_TELEMETRY",
        "packages": "@refinedev/core",
    }
    script = CALL_WITH_STATUS.replace("CASES", json.dumps(STATUS))
    tool = start_tool(script.replace("OPTIONS", json.dumps(options)))
    reasons = [reason for *_, reason in STATUS]
    reasons.append("/usr/local/bin/tool is neither node, bun nor deno")

    assert tool.stdout
    for reason in reasons:
        told = json.loads(tool.stdout.readline())
        assert told == {"enabled": reason is None, "reason": reason}
        if reason == "DEBUG_TELEMETRY is set":
            debugged = json.loads(tool.stdout.readline())
            assert debugged["packages"] == [{"name": "@refinedev/core", "version": "5.0.12"}]
    assert len(senders(tool)) == reasons.count(None)


def test_the_process_waits_three_seconds_for_a_server_that_does_not_respond(
    start_tool: Tool, mute: socket.socket, mute_port: int, tmp_path: Path
) -> None:
    coverage = tmp_path / "coverage"
    environ = {"NODE_OPTIONS": "--no-deprecation", "NODE_V8_COVERAGE": str(coverage)}
    began = time.monotonic()
    tool = start_tool(call(mute_port), **environ)
    (sender,) = senders(tool)
    inherited = Path(f"/proc/{sender}/environ").read_bytes().split(b"\0")
    assert {b"NODE_OPTIONS=", b"NODE_V8_COVERAGE="} <= set(inherited)
    assert b"DO_NOT_TRACK=1" in inherited  # were it the tool again, it would start no other
    finish(tool)

    with mute.accept()[0] as connection:
        connection.settimeout(PATIENCE_SECONDS)
        while connection.recv(4096):
            pass
    assert time.monotonic() - began > 2.9
    assert len(list(coverage.iterdir())) == 1  # the tool's own


def test_a_server_that_does_not_respond_does_not_delay_a_tool(
    start_tool: Tool, mute: socket.socket, mute_port: int
) -> None:
    """A run may last three times as long as one without telemetry, for it starts a second Node.

    The shortest of several counts: a busy machine makes a run longer, never shorter.  Each
    lasts until its output is closed, too.
    """
    scripts = {"with telemetry": call(mute_port), "without": ""}
    shortest = dict.fromkeys(scripts, float(PATIENCE_SECONDS))
    for _ in range(MOST_RUNS):
        for name, script in scripts.items():
            began = time.monotonic()
            finish(start_tool(script))
            shortest[name] = min(shortest[name], time.monotonic() - began)
        mute.accept()[0].close()  # it did send
        if shortest["with telemetry"] < 3 * shortest["without"]:
            return

    pytest.fail(f"{shortest}")


def test_what_goes_wrong_leaves_no_trace(start_tool: Tool, mute_port: int) -> None:
    addresses = ("http://127.0.0.1:1/cli", "no address", "mailto:nobody")
    script = "sendTelemetry();" + "".join(call(mute_port, url=address) for address in addresses)
    script += "process.cwd = null;" + call(mute_port, packages="@refinedev/")
    script += "process.execPath = '/gone/node';" + call(mute_port)

    assert finish(start_tool(script)) == "called\n"


def test_the_detached_process_trusts_whom_the_command_trusts(
    start_tool: Tool, tmp_path: Path
) -> None:
    """The server's certificate was issued by nobody whom programs trust without being told."""
    certificate, key = make_certificate(tmp_path, "localhost")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    told = {"SSL_CERT_FILE": str(certificate)}
    # A runtime, its options and its environment.
    trust: dict[str, tuple[str, list[str], dict[str, str]]] = {
        "NODE_EXTRA_CA_CERTS": ("node", [], {"NODE_EXTRA_CA_CERTS": str(certificate)}),
        "--use-openssl-ca": ("node", ["--use-openssl-ca"], told),
        "NODE_OPTIONS": ("node", [], told | {"NODE_OPTIONS": "--no-warnings --use-openssl-ca"}),
        "--use-system-ca": ("node 24", ["--use-system-ca"], told),
        "NODE_USE_SYSTEM_CA": ("node 24", [], told | {"NODE_USE_SYSTEM_CA": "1"}),
    }
    with Site(status=204) as company:
        company.socket = context.wrap_socket(company.socket, server_side=True)
        url = f"https://localhost:{company.port}/cli"
        finish(start_tool(call(0, url=url)))  # told nothing
        for case, (name, options, environ) in trust.items():
            finish(start_tool(call(0, case, url=url), name, options, **environ))
        wait_until(lambda: len(company.asked) == len(trust))

    commands = {json.loads(asked.body)["command"] for asked in company.asked}
    assert commands == trust.keys()
