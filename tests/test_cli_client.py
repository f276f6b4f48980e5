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
RUNS = 7

Tool = Callable[..., "subprocess.Popen[str]"]


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A project in a monorepo: one package is its own, one is shared, one is not installed."""
    directory = tmp_path / "monorepo" / "app"
    write_json(directory / "package.json", PACKAGE)
    write_json(directory / "node_modules/@refinedev/core/package.json", {"version": "5.0.12"})
    write_json(directory / "../node_modules/@refinedev/core/package.json", {"version": "4.0.0"})
    write_json(directory / "../node_modules/@refinedev/cli/package.json", {"version": "2.16.52"})
    return directory


def write_json(path: Path, content: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))


@pytest.fixture
def start_tool(project: Path) -> Iterator[Tool]:
    """Start a tool that calls sendTelemetry, in a directory of the project.

    It ends when its standard input does.
    """
    started: list[subprocess.Popen[str]] = []

    def start(
        environ: dict[str, str] | None = None, before: str = "", **options: Any
    ) -> "subprocess.Popen[str]":
        call = f"sendTelemetry({json.dumps(options)});" if options else ""
        script = f"""
            import {{ sendTelemetry, telemetryStatus }} from {json.dumps(CLIENT)};
            {before}
            {call}
            console.log("called");
            process.stdin.resume();
        """
        (project / "src").mkdir(exist_ok=True)
        tool = subprocess.Popen(
            [program("node"), "--input-type=module", "--eval", script],
            cwd=project / "src",
            env={"PATH": os.environ["PATH"], **(environ or {})},
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


@pytest.fixture
def mute() -> Iterator[socket.socket]:
    """A server that takes connections and never says a word."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(PATIENCE_SECONDS)
        yield listener


def url(server: Server | socket.socket) -> str:
    port = server.port if isinstance(server, Server) else server.getsockname()[1]
    return f"http://127.0.0.1:{port}/cli"


def finish(tool: "subprocess.Popen[str]") -> str:
    """Let the tool end, and return all that it printed."""
    output, _ = tool.communicate(timeout=PATIENCE_SECONDS)
    assert tool.returncode == 0
    return output


@pytest.fixture
def payload_of(start_tool: Tool, server: Server) -> Callable[..., Any]:
    """Run a tool, and return the payload of its event."""

    def run(environ: dict[str, str] | None = None, before: str = "", **options: Any) -> Any:
        tool = start_tool(environ, before, **{"url": url(server), "command": "dev"} | options)
        assert finish(tool) == "called\n"
        wait_until(server.events)
        (event,) = server.events()
        assert event["source"] == "cli"
        return event["payload"]

    return run


def test_a_command_is_one_event_that_tells_what_it_ran_with(
    payload_of: Callable[..., Any],
) -> None:
    version = subprocess.check_output([program("node"), "--version"], text=True)
    options = {"projectId": "größe-😀", "projectFramework": "vite", "packages": "@refinedev/"}

    assert payload_of({"NODE_ENV": "production"}, **options) == {
        "nodeEnv": "production",
        "nodeVersion": version.strip(),
        "os": "Linux",
        "osVersion": platform.release(),
        "command": "dev",
        "packages": [{"name": name, "version": INSTALLED[name]} for name in INSTALLED],
        "projectFramework": "vite",
        "projectId": "größe-😀",
    }


@pytest.mark.parametrize("options", [{}, {"projectFramework": None}])
def test_options_that_the_tool_does_not_give_are_not_guessed(
    payload_of: Callable[..., Any], options: Any
) -> None:
    payload = payload_of(**options)

    told = ("packages", "projectFramework", "projectId")
    assert [payload[name] for name in told] == [[], "unknown", None]


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


@pytest.mark.parametrize("case", UNUSUAL)
def test_an_unusual_package_json_does_not_lose_the_event(
    payload_of: Callable[..., Any], project: Path, case: str
) -> None:
    files, expected = UNUSUAL[case]
    for name, content in files.items():
        (project / name).parent.mkdir(parents=True, exist_ok=True)
        (project / name).write_text(content, encoding="utf-8")
    packages = payload_of(packages="@")["packages"]

    assert packages == [{"name": name, "version": expected[name]} for name in expected]


def test_packages_that_do_not_fit_are_left_out_of_the_event(
    payload_of: Callable[..., Any], project: Path
) -> None:
    names = [f"p-{i:03}-{'x' * 240}" for i in range(256)]
    write_json(project / "package.json", {"dependencies": dict.fromkeys(names, "1")})

    sent = [package["name"] for package in payload_of(packages="p-")["packages"]]
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
    payload_of: Callable[..., Any], project: Path
) -> None:
    """Yarn's hook, as far as its documentation has it: process.versions.pnp and "pnpapi"."""
    (project / ".pnp.cjs").write_text(PLUG_AND_PLAY)
    write_json(project / "kept/@refinedev/devtools/package.json", {"version": "2.0.1"})
    environ = {"NODE_OPTIONS": f"--require {project / '.pnp.cjs'}"}

    (package,) = payload_of(environ, packages="@refinedev/devtools")["packages"]
    assert package == {"name": "@refinedev/devtools", "version": "2.0.1"}


def test_the_sender_writes_no_coverage_after_the_tool_has_ended(
    start_tool: Tool, server: Server, tmp_path: Path
) -> None:
    coverage = tmp_path / "coverage"
    tool = start_tool({"NODE_V8_COVERAGE": str(coverage)}, url=url(server), command="dev")
    (sender,) = senders(tool)
    inherited = Path(f"/proc/{sender}/environ").read_bytes()
    finish(tool)
    wait_until(server.events)

    assert b"NODE_V8_COVERAGE=\0" in inherited
    assert len(list(coverage.iterdir())) == 1  # the tool's own


def senders(tool: "subprocess.Popen[str]") -> list[int]:
    """Return the processes that the tool has started once sendTelemetry has returned."""
    assert tool.stdout
    assert tool.stdout.readline() == "called\n"
    return children(tool.pid)


@pytest.fixture
def status(start_tool: Tool, mute: socket.socket) -> Callable[..., Any]:
    """Return what telemetryStatus says; only if enabled, a process must have started."""

    def ask(environ: dict[str, str], before: str = "", **options: Any) -> Any:
        options = {"url": url(mute), "command": "dev"} | options
        before += f"console.log(JSON.stringify(telemetryStatus({json.dumps(options)})));"
        tool = start_tool(environ, before, **options)
        assert tool.stdout
        told = json.loads(tool.stdout.readline())
        assert len(senders(tool)) == (1 if told["enabled"] else 0)
        return told

    return ask


@pytest.mark.parametrize("value", ["1", "true", "TRUE", "yes", "on", " 1", "2", "anything"])
@pytest.mark.parametrize("name", ["REFINE_NO_TELEMETRY", "DO_NOT_TRACK", "TOOL_NO_TELEMETRY"])
def test_an_opt_out_starts_no_process(status: Callable[..., Any], name: str, value: str) -> None:
    told = status({name: value}, optOut="TOOL_NO_TELEMETRY")
    assert told == {"enabled": False, "reason": f"{name} is set"}


@pytest.mark.parametrize("value", ["0", "false", "", " ", "False", "no", "OFF"])
def test_without_an_opt_out_a_detached_process_starts(
    start_tool: Tool, mute: socket.socket, status: Callable[..., Any], value: str
) -> None:
    environ = {"DO_NOT_TRACK": value, "CI": value, "NODE_OPTIONS": "--no-deprecation"}
    options = {"url": url(mute), "command": "dev", "optOut": "TOOL"}
    assert status(environ, **options) == {"enabled": True, "reason": None}

    (sender,) = senders(start_tool(environ, **options))

    assert os.getsid(sender) == sender  # Ctrl-C in the tool's terminal does not reach it
    inherited = Path(f"/proc/{sender}/environ").read_bytes().split(b"\0")
    assert b"NODE_OPTIONS=" in inherited
    assert b"DO_NOT_TRACK=1" in inherited  # were it the tool again, it would start no other


@pytest.mark.parametrize("name", ["CI", "GITHUB_ACTIONS", "JENKINS_URL", "TF_BUILD"])
def test_a_build_machine_sends_only_if_the_tool_asks_for_it(
    status: Callable[..., Any], name: str
) -> None:
    told = status({name: "true"})
    assert told == {"enabled": False, "reason": f"{name} is set, as on build machines"}
    assert status({name: "true"}, ci=True)["enabled"]
    assert not status({name: "true", "DO_NOT_TRACK": "1"}, ci=True)["enabled"]


def test_debug_writes_the_event_to_standard_error_and_sends_nothing(
    status: Callable[..., Any], tmp_path: Path
) -> None:
    told = tmp_path / "stderr"
    before = f"""
        const {{ openSync, writeSync }} = await import("node:fs");
        const told = openSync({json.dumps(str(told))}, "w");
        process.stderr.write = (text) => writeSync(told, text);
    """
    reason = status({"DEBUG_TELEMETRY": "1"}, before, packages="@refinedev/core")["reason"]

    assert reason == "DEBUG_TELEMETRY is set"
    (line,) = told.read_text().splitlines()
    event = json.loads(line)
    assert event["packages"] == [{"name": "@refinedev/core", "version": "5.0.12"}]
    assert event["command"] == "dev"


@pytest.mark.parametrize(
    ("before", "address", "reason"),
    [
        (
            "process.execPath = '/usr/local/bin/tool';",
            "http://127.0.0.1:1/",
            "/usr/local/bin/tool is neither node, bun nor deno",
        ),
        ("", "telemetry.example.com", "the URL is invalid"),
    ],
    ids=["an executable of its own", "an invalid URL"],
)
def test_what_cannot_be_sent_starts_no_process(
    status: Callable[..., Any], before: str, address: str, reason: str
) -> None:
    told = status({}, before, url=address)
    assert told == {"enabled": False, "reason": reason}


def test_a_deleted_working_directory_loses_only_the_packages(
    payload_of: Callable[..., Any],
) -> None:
    before = """
        const { mkdirSync, rmdirSync } = await import("node:fs");
        mkdirSync("gone");
        process.chdir("gone");
        rmdirSync("../gone");
    """
    payload = payload_of(before=before, packages="@refinedev/")

    assert (payload["command"], payload["packages"]) == ("dev", [])


def test_two_tools_at_once_are_two_events(start_tool: Tool, server: Server) -> None:
    tools = [start_tool(url=url(server), command=command) for command in ("dev", "build")]
    outputs = [finish(tool) for tool in tools]
    wait_until(lambda: len(server.events()) == 2)

    assert outputs == ["called\n"] * 2
    assert sorted(event["payload"]["command"] for event in server.events()) == ["build", "dev"]


def test_a_server_that_does_not_respond_delays_a_tool_by_less_than_a_tenth_of_a_second(
    start_tool: Tool, mute: socket.socket
) -> None:
    """Runs with and without alternate.  Each lasts until its output is closed, too.

    The shortest of each counts: a busy machine makes a run longer, never shorter.
    """
    with_telemetry, without = list[float](), list[float]()
    for _ in range(RUNS):
        for times, options in (
            (without, {}),
            (with_telemetry, {"url": url(mute), "command": "dev"}),
        ):
            began = time.monotonic()
            finish(start_tool(**options))
            times.append(time.monotonic() - began)
    for _ in range(RUNS):
        mute.accept()[0].close()  # each of them did send

    assert min(with_telemetry) - min(without) < 0.1


def test_a_server_that_does_not_respond_is_abandoned_after_three_seconds(
    start_tool: Tool, mute: socket.socket
) -> None:
    finish(start_tool(url=url(mute), command="dev"))

    connection, _ = mute.accept()
    began = time.monotonic()
    with connection:
        connection.settimeout(PATIENCE_SECONDS)
        while connection.recv(4096):
            pass
    assert 2.5 < time.monotonic() - began < 10


@pytest.mark.parametrize("address", ["http://127.0.0.1:1/cli", "no address", "mailto:nobody"])
def test_an_unreachable_server_leaves_no_trace(start_tool: Tool, address: str) -> None:
    assert finish(start_tool(url=address, command="dev")) == "called\n"


@pytest.mark.parametrize(
    "before",
    ["process.execPath = '/gone/node';", "process.cwd = null;", "sendTelemetry();"],
)
def test_an_error_in_the_client_stays_there(
    start_tool: Tool, mute: socket.socket, before: str
) -> None:
    tool = start_tool(before=before, url=url(mute), command="dev", packages="@refinedev/")

    assert finish(tool) == "called\n"
