"""clients/cli.mjs in a real Node, called by a small tool."""

import json
import os
import platform
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from server import PATIENCE_SECONDS, ROOT, Server, children, program, wait_until

pytestmark = pytest.mark.slow

CLIENT = (ROOT / "clients/cli.mjs").as_uri()
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
    write_json(project / "package.json", PACKAGE)
    write_json(project / "node_modules/@refinedev/core/package.json", {"version": "5.0.12"})
    write_json(directory / "node_modules/@refinedev/core/package.json", {"version": "4.0.0"})
    write_json(directory / "node_modules/@refinedev/cli/package.json", {"version": "2.16.52"})
    (project / "src").mkdir()
    return project


def write_json(path: Path, content: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))


@pytest.fixture
def start_tool(tmp_path: Path) -> Iterator[Tool]:
    """Start a tool, which runs a script in a directory of a project.

    It ends when its standard input does.
    """
    started: list[subprocess.Popen[str]] = []
    directory = make_project(tmp_path / "monorepo") / "src"

    def start(script: str, **environ: str) -> "subprocess.Popen[str]":
        script = f"""
            import {{ sendTelemetry, telemetryStatus }} from {json.dumps(CLIENT)};
            {script}
            console.log("called");
            process.stdin.resume();
        """
        tool = subprocess.Popen(
            [program("node"), "--input-type=module", "--eval", script],
            cwd=directory,
            env={"PATH": os.environ["PATH"], **environ},
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


def call(server: Server | socket.socket, command: str = "dev", **options: Any) -> str:
    """Return a call of the sender, for the tool's script."""
    port = server.port if isinstance(server, Server) else server.getsockname()[1]
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


@pytest.fixture
def payloads_of(start_tool: Tool, shared_server: Server) -> Callable[..., dict[str, Any]]:
    """Run a script, and return the payloads of so many events by their commands."""

    def run(script: str, count: int, **environ: str) -> dict[str, Any]:
        assert finish(start_tool(script, **environ)) == "called\n"
        wait_until(lambda: len(shared_server.events()) == count)
        payloads = [event["payload"] for event in shared_server.events()]
        return {payload["command"]: payload for payload in payloads}

    return run


def test_a_command_is_one_event_that_tells_what_it_ran_with(
    payloads_of: Callable[..., dict[str, Any]], shared_server: Server
) -> None:
    version = subprocess.check_output([program("node"), "--version"], text=True)
    told = {"projectId": "größe-😀", "projectFramework": "vite", "packages": "@refinedev/"}
    script = call(shared_server, **told) + call(shared_server, "build", projectFramework=None)
    payloads = payloads_of(script, 2, NODE_ENV="production")

    assert payloads["dev"] == {
        "nodeEnv": "production",
        "nodeVersion": version.strip(),
        "os": "Linux",
        "osVersion": platform.release(),
        "command": "dev",
        "packages": [{"name": name, "version": INSTALLED[name]} for name in INSTALLED],
        "projectFramework": "vite",
        "projectId": "größe-😀",
    }
    # What the tool does not give is not guessed.
    assert [payloads["build"][name] for name in told] == [None, "unknown", []]


CORE = "node_modules/@refinedev/core/package.json"
OUTSIDE = ("outside", "node_modules/outside", "node_modules")
SECRETS = {f"{directory}/package.json": '{"version": "secret"}' for directory in OUTSIDE}


def package_json(*names: str) -> dict[str, str]:
    return {"package.json": json.dumps({"dependencies": dict.fromkeys(names, "1")})}


# What is written into the project, and the packages that are sent.
UNUSUAL: dict[str, tuple[dict[str, str], dict[str, str | None]]] = {
    "no JSON": ({"package.json": "{"}, {}),
    "no object": ({"package.json": "[]"}, {}),
    "a long name": (package_json("@" + "x" * 300), {"@" + "x" * 255: None}),
    "odd characters": (package_json("@\n\ud83d" + "😀" * 300), {"@" + "😀" * 255: None}),
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
    **{
        f"{name} leads out of node_modules": (package_json(name) | SECRETS, {name: None})
        for name in ("@x/../../outside", "@x/..", "@x/y/../../outside")
    },
}
# Yarn's hook, as far as its documentation has it: process.versions.pnp and "pnpapi".
PLUG_AND_PLAY = """
    import Module from "node:module";
    const load = Module._load;
    const resolveToUnqualified = (name) => `${process.cwd()}/kept/${name}`;
    const pnpapi = { resolveToUnqualified };
    Module._load = (name, ...rest) => (name === "pnpapi" ? pnpapi : load(name, ...rest));
    process.versions.pnp = "3";
"""
DELETED = """
    import { rmSync } from "node:fs";
    rmSync("../src", { recursive: true });
"""


def test_an_unusual_project_does_not_lose_the_event(
    payloads_of: Callable[..., dict[str, Any]], shared_server: Server, tmp_path: Path
) -> None:
    kept = {"src/kept/@refinedev/devtools/package.json": '{"version": "2.0.1"}'}
    cases = UNUSUAL | {
        "Plug'n'Play": (kept, INSTALLED | {"@refinedev/devtools": "2.0.1"}),
        "a deleted working directory": ({}, {}),
    }
    changes = {"Plug'n'Play": PLUG_AND_PLAY, "a deleted working directory": DELETED}
    script = ""
    for number, (case, (files, _)) in enumerate(cases.items()):
        project = make_project(tmp_path / str(number))
        for name, content in files.items():
            (project / name).parent.mkdir(parents=True, exist_ok=True)
            (project / name).write_text(content, encoding="utf-8")
        script += f"process.chdir({json.dumps(str(project / 'src'))});"
        script += changes.get(case, "") + call(shared_server, case, packages="@")
    payloads = payloads_of(script, len(cases))

    for case, (_, expected) in cases.items():
        packages = [{"name": name, "version": expected[name]} for name in expected]
        assert payloads[case]["packages"] == packages, case


OPT_OUTS = ["REFINE_NO_TELEMETRY", "DO_NOT_TRACK", "TOOL_NO_TELEMETRY"]
BUILD_MACHINES = ["CI", "GITHUB_ACTIONS", "JENKINS_URL", "TF_BUILD"]
# The environment, the options, and why nothing is sent.
STATUS: list[tuple[dict[str, str], dict[str, Any], str | None]] = [
    *(
        ({name: value}, {}, f"{name} is set")
        for name in OPT_OUTS
        for value in ("1", "true", "TRUE", "yes", "on", " 1", "2", "anything")
    ),
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
    const told = [];
    console.error = (text) => told.push(text);
    for (const [environ, changes] of CASES) call(environ, { ...OPTIONS, ...changes });
    process.execPath = "/usr/local/bin/tool";
    call({}, OPTIONS);
    console.log(told.join());
"""


def test_an_event_is_sent_unless_the_status_says_why_not(
    start_tool: Tool, mute: socket.socket
) -> None:
    """Debugging writes the event to standard error."""
    options = {
        "url": f"http://127.0.0.1:{mute.getsockname()[1]}/cli",
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
    debugged = json.loads(tool.stdout.readline())
    assert debugged["packages"] == [{"name": "@refinedev/core", "version": "5.0.12"}]
    assert len(senders(tool)) == reasons.count(None)


def test_a_detached_process_waits_three_seconds_for_a_server_that_does_not_respond(
    start_tool: Tool, mute: socket.socket, tmp_path: Path
) -> None:
    coverage = tmp_path / "coverage"
    environ = {"NODE_OPTIONS": "--no-deprecation", "NODE_V8_COVERAGE": str(coverage)}
    tool = start_tool(call(mute), **environ)
    (sender,) = senders(tool)
    assert os.getsid(sender) == sender  # Ctrl-C in the tool's terminal does not reach it
    inherited = Path(f"/proc/{sender}/environ").read_bytes().split(b"\0")
    assert {b"NODE_OPTIONS=", b"NODE_V8_COVERAGE="} <= set(inherited)
    assert b"DO_NOT_TRACK=1" in inherited  # were it the tool again, it would start no other
    finish(tool)

    connection, _ = mute.accept()
    began = time.monotonic()
    with connection:
        connection.settimeout(PATIENCE_SECONDS)
        while connection.recv(4096):
            pass
    assert 2.5 < time.monotonic() - began < 10
    assert len(list(coverage.iterdir())) == 1  # the tool's own


def test_a_server_that_does_not_respond_delays_a_tool_by_less_than_a_tenth_of_a_second(
    start_tool: Tool, mute: socket.socket
) -> None:
    """Runs with and without alternate.  Each lasts until its output is closed, too.

    The shortest of each counts: a busy machine makes a run longer, never shorter.
    """
    scripts = {"with telemetry": call(mute), "without": ""}
    times: dict[str, list[float]] = {name: [] for name in scripts}
    for run in range(MOST_RUNS):
        for name, script in scripts.items():
            began = time.monotonic()
            finish(start_tool(script))
            times[name].append(time.monotonic() - began)
        mute.accept()[0].close()  # it did send
        delay = min(times["with telemetry"]) - min(times["without"])
        if run >= 2 and delay < 0.1:
            return

    pytest.fail(f"{delay:.2f} seconds")


def test_what_goes_wrong_leaves_no_trace(start_tool: Tool, mute: socket.socket) -> None:
    addresses = ("http://127.0.0.1:1/cli", "no address", "mailto:nobody")
    script = "sendTelemetry();" + "".join(call(mute, url=address) for address in addresses)
    script += "process.cwd = null;" + call(mute, packages="@refinedev/")
    script += "process.execPath = '/gone/node';" + call(mute)

    assert finish(start_tool(script)) == "called\n"
