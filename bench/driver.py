"""What every measurement needs: a load, and what the kernel counted of a server."""

import contextlib
import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import psutil

ROOT = Path(__file__).resolve().parent.parent
BROWSERS = range(100, 132)

sys.path.append(str(ROOT / "tests/support"))


@contextlib.contextmanager
def bench_directory() -> Iterator[Path]:
    """A directory on the disk that holds the project."""
    with tempfile.TemporaryDirectory(prefix=".bench-", dir=ROOT) as directory:
        yield Path(directory)


def processes(pid: int) -> list[psutil.Process]:
    """Return a process and all that descend from it."""
    process = psutil.Process(pid)
    return [process, *process.children(recursive=True)]


def cpu_seconds(pid: int) -> float:
    return sum(sum(process.cpu_times()[:2]) for process in processes(pid))


def memory_mb(pid: int) -> float:
    """Return what they occupy; what they share counts once."""
    return sum(process.memory_full_info().pss for process in processes(pid)) / 2**20


class Request(NamedTuple):
    path: str
    headers: dict[str, str]
    body: str

    def as_lua(self, more_headers: dict[str, str]) -> str:
        # Lua reads JSON's strings, as long as they are ASCII and hold no control characters.
        headers = (self.headers | more_headers).items()
        pairs = ", ".join(f"[{json.dumps(k)}] = {json.dumps(v)}" for k, v in headers)
        path, body = json.dumps(self.path), json.dumps(self.body)
        return f'table.insert(requests, wrk.format("POST", {path}, {{{pairs}}}, {body}))\n'


def recorded(name: str) -> Request:
    """Return a request as a shipped client sent it, as a POST."""
    recording = json.loads((ROOT / f"tests/wire/{name}.json").read_text())
    path, _, query = recording["target"].partition("?payload=")
    dropped = ("host", "connection", "content-length")  # wrk adds its own
    headers = {k: v for k, v in recording["headers"] if k.lower() not in dropped}
    return Request("/" if query else path, headers, query or recording["body"])


def mixed_requests() -> list[Request]:
    """Return app's and command's events in turn, the apps' from several browsers."""
    core, cli = recorded("core5-fetch"), recorded("cli-whoami")
    core.headers["Content-Type"] = "text/plain;charset=UTF-8"  # what fetch says of a string
    requests = []
    for version in BROWSERS:
        agent = core.headers["User-Agent"].replace("HeadlessChrome/156", f"Chrome/{version}")
        requests += [core._replace(headers=core.headers | {"User-Agent": agent}), cli]
    return requests


WRK_SCRIPT = """
local requests, sent = {}, 0

function init()
%s
end

function request()
    sent = sent + 1
    return requests[sent %% #requests + 1]
end

function done(summary, latency)
    local errors = summary.errors
    local failed = errors.status + errors.connect + errors.read + errors.write + errors.timeout
    print(summary.requests, summary.duration / 1e6, latency:percentile(99) / 1e3, failed)
end
"""


class Load(NamedTuple):
    requests: float
    seconds: float
    p99_ms: float
    failed: float  # answered with an error, or not at all


def run_wrk(port: int, *, clients: int, seconds: int, keep_alive: bool) -> Load:
    """Post events for a while, on connections that are kept or on a new one for each.

    A latency begins with the connection made.
    """
    more_headers = {} if keep_alive else {"Connection": "close"}
    inserts = [request.as_lua(more_headers) for request in mixed_requests()]
    with tempfile.NamedTemporaryFile("w", suffix=".lua") as script:
        script.write(WRK_SCRIPT % "".join(inserts))
        script.flush()
        command = ["wrk", "--threads=1", f"--connections={clients}", f"--duration={seconds}s"]
        command += ["--timeout=10s", f"--script={script.name}", f"http://127.0.0.1:{port}/"]
        output = subprocess.check_output(command, text=True)
    return Load(*map(float, output.splitlines()[-1].split()))
