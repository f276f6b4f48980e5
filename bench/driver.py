"""What every measurement needs: a server, a load, and what the kernel counted of both."""

import contextlib
import json
import os
import re
import resource
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parent.parent
BENCH = ROOT / "bench"
PATIENCE_SECONDS = 30  # a bound on what hangs; nothing is measured against it
CLOCK_TICKS = os.sysconf("SC_CLK_TCK")


class Request(NamedTuple):
    path: str
    headers: dict[str, str]
    body: str


def recorded(name: str) -> Request:
    """Return a request as a shipped client sent it, as a POST."""
    recording = json.loads((ROOT / f"tests/wire/{name}.json").read_text())
    path, _, query = recording["target"].partition("?payload=")
    dropped = ("host", "connection", "content-length")  # wrk adds its own
    headers = {k: v for k, v in recording["headers"] if k.lower() not in dropped}
    return Request("/" if query else path, headers, query or recording["body"])


def user_agents(count: int) -> list[str]:
    """Return different User-Agents of browsers that people have: the same ones each time."""
    mozilla = (
        "Mozilla/5.0 ({}) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/{}.0.{}.{} Safari/537.36"
    )
    firefox = "Mozilla/5.0 ({0}; rv:{1}.{2}) Gecko/20100101 Firefox/{1}.{2}"
    systems = (
        "Windows NT 10.0; Win64; x64",
        "Macintosh; Intel Mac OS X 10_15_7",
        "X11; Linux x86_64",
        "Linux; Android 14; Pixel 8",
    )
    agents = []
    for i in range(count):
        system, version, build = systems[i % 4], 100 + i // 4 % 50, i // 200
        if i % 3:
            agents.append(mozilla.format(system, version, 4000 + build, build % 200))
        else:
            agents.append(firefox.format(system, version, build))
    return agents


def mixed_requests(agents: int = 32) -> list[Request]:
    """Return app's and command's events in turn, the apps' from that many browsers."""
    core, cli = recorded("core5-fetch"), recorded("cli-whoami")
    core.headers["Content-Type"] = "text/plain;charset=UTF-8"  # what fetch says of a string
    requests = []
    for agent in user_agents(agents):
        requests += [core._replace(headers=core.headers | {"User-Agent": agent}), cli]
    return requests


class Process(NamedTuple):
    pid: int
    cpu_seconds: float
    rss_mb: float
    pss_mb: float  # what is shared counts for each process in part, so the sum is the tree's


def process_tree(pid: int) -> list[Process]:
    """Return a process and all that descend from it, as they are now."""
    parents, ticks = {}, {}
    for directory in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):  # ended meanwhile
            # proc_pid_stat(5): what follows the name, which may hold anything but ")" at its end
            fields = (directory / "stat").read_text().rpartition(")")[2].split()
            parents[int(directory.name)] = int(fields[1])
            ticks[int(directory.name)] = int(fields[11]) + int(fields[12])
    family = [pid]
    for member in family:
        family += [child for child, parent in parents.items() if parent == member]
    tree = []
    for member in family:
        rollup = Path(f"/proc/{member}/smaps_rollup").read_text()
        rss, pss = (int(re.search(rf"^{k}:\s+(\d+)", rollup, re.M)[1]) for k in ("Rss", "Pss"))
        tree.append(Process(member, ticks[member] / CLOCK_TICKS, rss / 1024, pss / 1024))
    return tree


class Server(NamedTuple):
    port: int
    pid: int
    start_seconds: float  # from its start to its first answer

    def cpu_seconds(self) -> float:
        return sum(process.cpu_seconds for process in process_tree(self.pid))


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


@contextlib.contextmanager
def bench_directory() -> Iterator[Path]:
    """A directory on the disk that holds the project."""
    with tempfile.TemporaryDirectory(prefix=".bench-", dir=ROOT) as directory:
        yield Path(directory)


@contextlib.contextmanager
def serving(
    command: Iterable[object],
    port: int,
    directory: Path,
    environ: Mapping[str, str],
    root: Path = ROOT,
) -> Iterator[Server]:
    """Run a server; yield it once it has taken its first event."""
    log = directory / "server.log"
    inherited = {k: v for k, v in os.environ.items() if not k.startswith("TELEMETRY_")}
    began = time.perf_counter()
    with log.open("wb") as log_file:
        process = subprocess.Popen(
            [str(part) for part in command],
            cwd=root,
            env=inherited | environ,
            stdout=log_file,
            stderr=log_file,
            start_new_session=True,  # so that one signal reaches master and workers
        )
    try:
        while not takes_event(port):
            if process.poll() is not None or time.perf_counter() - began > PATIENCE_SECONDS:
                raise RuntimeError(f"the server did not start:\n{log.read_text()}")
            time.sleep(0.002)
        yield Server(port, process.pid, time.perf_counter() - began)
        process.terminate()
        process.wait(PATIENCE_SECONDS)
    except BaseException:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait(PATIENCE_SECONDS)
        raise


def takes_event(port: int) -> bool:
    """Post one event; False while nobody listens."""
    body = recorded("cli-whoami").body
    head = f"POST /cli HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(body)}\r\n"
    head += "Content-Type: application/json\r\nConnection: close\r\n\r\n"
    try:
        with socket.create_connection(("127.0.0.1", port), PATIENCE_SECONDS) as connection:
            connection.sendall(f"{head}{body}".encode())
            answer = connection.recv(2**16)
    except (ConnectionRefusedError, ConnectionResetError):
        return False
    if not answer.startswith(b"HTTP/1.1 204"):
        raise RuntimeError(f"want 204, got {answer!r}")
    return True


def our_server(port: int, directory: Path, workers: int = 1) -> tuple[list[str], dict[str, str]]:
    """Return the command and the environment that run the collector."""
    command = [sys.executable, "-m", "gunicorn", "--bind", f"127.0.0.1:{port}"]
    return command, {"TELEMETRY_DATA_DIR": str(directory), "WEB_CONCURRENCY": str(workers)}


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
    print(summary.requests, summary.duration, latency:percentile(50), latency:percentile(99),
        errors.status, errors.connect + errors.read + errors.write + errors.timeout)
end
"""


class Load(NamedTuple):
    taken: int  # answered 2xx
    seconds: float
    p50_ms: float
    p99_ms: float
    refused: int
    failed: int
    cpu_seconds: float  # the load generator's own

    @property
    def events_per_second(self) -> float:
        return self.taken / self.seconds


def run_wrk(
    port: int,
    requests: list[Request],
    *,
    clients: int,
    seconds: int,
    directory: Path,
    keep_alive: bool = False,
) -> Load:
    """Post the requests in turn for a while, each on a new connection unless told otherwise.

    A latency begins with the connection made.
    """
    script = directory / "wrk.lua"
    script.write_text(WRK_SCRIPT % "\n    ".join(as_lua(r, keep_alive) for r in requests))
    command = ["wrk", "--threads=1", f"--connections={clients}", f"--duration={seconds}s"]
    command += ["--timeout=10s", f"--script={script}", f"http://127.0.0.1:{port}/"]
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    output = subprocess.check_output(command, text=True, timeout=seconds + PATIENCE_SECONDS)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu_seconds = after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime
    figures = [float(figure) for figure in output.splitlines()[-1].split()]
    answers, duration_us, p50_us, p99_us, refused, failed = figures
    if answers <= refused:
        raise RuntimeError(f"the server took no event:\n{output}")
    return Load(
        taken=int(answers - refused),
        seconds=duration_us / 1e6,
        p50_ms=p50_us / 1e3,
        p99_ms=p99_us / 1e3,
        refused=int(refused),
        failed=int(failed),
        cpu_seconds=cpu_seconds,
    )


def as_lua(request: Request, keep_alive: bool) -> str:
    headers = request.headers | ({} if keep_alive else {"Connection": "close"})
    # Lua reads JSON's strings, as long as they are ASCII and hold no control characters.
    pairs = ", ".join(f"[{json.dumps(k)}] = {json.dumps(v)}" for k, v in headers.items())
    path, body = json.dumps(request.path), json.dumps(request.body)
    return f'table.insert(requests, wrk.format("POST", {path}, {{{pairs}}}, {body}))'


def count_lines(directory: Path) -> int:
    lines = 0
    for path in directory.glob("events*"):
        with path.open("rb") as file:
            lines += sum(chunk.count(b"\n") for chunk in iter(lambda: file.read(2**20), b""))
    return lines


def bench_python() -> Path:
    """Return the Python that has the contestants' packages, as bench/requirements.txt has them."""
    environment, requirements = BENCH / ".venv", BENCH / "requirements.txt"
    python, installed = environment / "bin/python", environment / "installed"
    if not installed.exists() or installed.stat().st_mtime < requirements.stat().st_mtime:
        pip = [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
        subprocess.check_call([sys.executable, "-m", "venv", environment])
        subprocess.check_call([*pip, "--requirement", requirements])
        installed.touch()
    return python


def print_goal(name: str, figure: str, met: bool) -> None:
    print(f"- {'met   ' if met else 'MISSED'} {name}: {figure}")


def require_tools(*names: str) -> None:
    for name in names:
        if not shutil.which(name):
            sys.exit(f"bench: {name} is not installed (Debian: apt install wrk nodejs npm)")
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # clean up as after Ctrl-C
