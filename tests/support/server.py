"""A real gunicorn to send real bytes to.  Knows the contract, and nothing of the service."""

import contextlib
import importlib
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import uuid
from base64 import b64encode
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, NoReturn, Self

import pytest

ROOT = Path(__file__).parents[2]
GUNICORN = Path(sys.executable).with_name("gunicorn")
PATIENCE_SECONDS = 60  # a bound on what hangs; nothing is measured against it
LISTENING = re.compile(r"(?:Listening at:|running on) http://[\d.:\[\]]+:(\d+)")
AT_ONCE_SECONDS = 2  # the contract's limit for others beside slow clients, on a busy machine
CLOSE = ("Connection", "close")
CHUNKED = ("Transfer-Encoding", "chunked")

CLI = {"nodeVersion": "v20.20.2", "packages": [], "projectFramework": "vite"}
CORE = {"providers": {"auth": True, "data": True}, "version": "5.0.12", "resourceCount": 3}

# What every answer has.
COMMON_HEADERS = {
    "cache-control": "no-store",
    "access-control-allow-origin": "*",
    "access-control-expose-headers": "X-Telemetry-Outcome, Retry-After",
    "cross-origin-resource-policy": "cross-origin",
    "x-content-type-options": "nosniff",
}


class Answer(NamedTuple):
    status: int
    headers: dict[str, str]
    body: bytes


class Server:
    """A running server, on a port of its own.  Its log is in `log`, line by line."""

    def __init__(
        self,
        data_dir: Path,
        *arguments: str,
        environ: Mapping[str, str] | None = None,
        launcher: Iterable[str] = (),
        command: Iterable[object] = (GUNICORN, "--bind", "127.0.0.1:0"),
    ) -> None:
        self.data_dir = data_dir
        self.log: list[str] = []
        self.listening = threading.Event()
        self.process = subprocess.Popen(
            [*launcher, *map(str, command), *arguments],
            cwd=ROOT,
            env={**os.environ, "TELEMETRY_DATA_DIR": str(data_dir), **(environ or {})},
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,  # so that one signal reaches master and workers
        )
        self.reader = threading.Thread(target=self._follow_log, daemon=True)
        self.reader.start()
        self.listening.wait(PATIENCE_SECONDS)
        if not hasattr(self, "port"):
            raise RuntimeError("gunicorn did not start:\n" + "\n".join(self.log))

    def _follow_log(self) -> None:
        with contextlib.suppress(ValueError):  # closed by kill()
            for line in self.process.stderr or ():
                self.log.append(line.rstrip("\n"))
                if found := LISTENING.search(line):
                    self.port = int(found[1])
                    self.listening.set()
        self.listening.set()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()

    def connect(self) -> socket.socket:
        return socket.create_connection(("127.0.0.1", self.port), timeout=PATIENCE_SECONDS)

    @contextlib.contextmanager
    def connections(self, count: int, sent: bytes = b"") -> Iterator[list[socket.socket]]:
        """Open many connections, send this on each, and close them at the end of the block."""
        with contextlib.ExitStack() as stack:
            opened = [stack.enter_context(self.connect()) for _ in range(count)]
            for sock in opened:
                sock.sendall(sent)
            yield opened

    def raw(self, request: bytes) -> Answer:
        """Send exactly these bytes, and no more, on a connection of their own."""
        with self.connect() as sock:
            with contextlib.suppress(ConnectionError):  # answered and closed before the end
                sock.sendall(request)
                sock.shutdown(socket.SHUT_WR)
            return read_answer(sock)

    def send(
        self, method: str, target: str, headers: Iterable[tuple[str, str]] = (), body: bytes = b""
    ) -> Answer:
        """Send one request, on a connection of its own."""
        return self.raw(request(method, target, headers, body))

    def send_cli(self, headers: Iterable[tuple[str, str]] = (), **changes: Any) -> Answer:
        return self.send("POST", "/cli", headers, json.dumps(CLI | changes).encode())

    def send_core(self, headers: Iterable[tuple[str, str]] = (), **changes: Any) -> Answer:
        return self.send("POST", "/", headers, core_payload(**changes).encode())

    def lines(self, pattern: str = "events-*.jsonl") -> list[bytes]:
        """The lines of the matching files, without their ends; each must have one."""
        found: list[bytes] = []
        for path in sorted(self.data_dir.glob(pattern)):
            content = path.read_bytes()
            assert content == b"" or content.endswith(b"\n"), f"{path.name} is torn"
            found += content.splitlines()
        return found

    def events(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.lines()]

    def projects(self) -> list[str]:
        return sorted(event["payload"]["projectId"] for event in self.events())

    def workers(self) -> list[int]:
        return children(self.process.pid)

    def stop(self) -> int:
        """Ask it to stop, and return its exit status."""
        self.process.terminate()
        status = self.process.wait(PATIENCE_SECONDS)
        self.reader.join(PATIENCE_SECONDS)
        return status

    def kill(self) -> None:
        """End master and workers at once, as a power cut would."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait(PATIENCE_SECONDS)
        self.reader.join(PATIENCE_SECONDS)
        if self.process.stderr:
            self.process.stderr.close()


def request(
    method: str, target: str, headers: Iterable[tuple[str, str]] = (), body: bytes = b""
) -> bytes:
    """Return a request, with a Content-Length if `headers` have no framing."""
    headers = [("Host", "telemetry.example"), *headers]
    names = {name.lower() for name, _ in headers}
    if not names & {"content-length", "transfer-encoding"} and method == "POST":
        headers.append(("Content-Length", str(len(body))))
    head = f"{method} {target} HTTP/1.1\r\n"
    head += "".join(f"{name}: {value}\r\n" for name, value in headers)
    return head.encode("latin-1") + b"\r\n" + body


def chunked(*chunks: bytes, end: bytes = b"0\r\n\r\n") -> bytes:
    return b"".join(b"%x\r\n%b\r\n" % (len(chunk), chunk) for chunk in chunks) + end


def core_payload(**changes: Any) -> str:
    """Return the payload of a core event, as clients send it."""
    return b64encode(json.dumps(CORE | changes).encode()).decode()


def cli_event(number: int = 0, *headers: tuple[str, str]) -> bytes:
    body = json.dumps(CLI | {"projectId": str(number)}).encode()
    return request("POST", "/cli", headers, body)


def assert_answered_at_once(server: Server) -> None:
    began = time.monotonic()
    assert server.send_cli().status == 204
    assert time.monotonic() - began < AT_ONCE_SECONDS


def read_answer(sock: socket.socket) -> Answer:
    """Read one response; its status is 0 if the server only closed the connection."""
    with sock.makefile("rb") as stream:
        return read_next(stream)


def read_next(stream: BinaryIO) -> Answer:
    """Read the next response of a connection, as read_answer() does, and nothing behind it."""
    try:
        status_line = stream.readline()
    except ConnectionResetError:
        status_line = b""
    if not status_line:
        return Answer(0, {}, b"")
    headers = {}
    while (line := stream.readline().strip()) != b"":
        name, _, value = line.decode("latin-1").partition(":")
        headers[name.lower()] = value.strip()
    status = int(status_line.split()[1])
    length = headers.get("content-length")
    body = b"" if status == 204 else stream.read(int(length) if length else -1)
    return Answer(status, headers, body)


class Sent(NamedTuple):
    """One event of a `Load`; the status is 0 if the connection was lost."""

    project: str
    began: float  # on time.monotonic()'s clock
    seconds: float
    answer: Answer


class Load:
    """Clients that send cli events, each with a `projectId` of its own, until the block ends."""

    def __init__(self, server: Server, clients: int = 8, **changes: Any) -> None:
        self.server = server
        self.changes = changes
        self.sent: list[Sent] = []
        self.statuses: Counter[int] = Counter()
        self.changed = threading.Condition()
        self.stopping = threading.Event()
        self.threads = [threading.Thread(target=self._send_events) for _ in range(clients)]

    def __enter__(self) -> "Load":
        for thread in self.threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stopping.set()
        for thread in self.threads:
            thread.join(PATIENCE_SECONDS)

    def _send_events(self) -> None:
        while not self.stopping.is_set():
            project, began = str(uuid.uuid4()), time.monotonic()
            try:
                answer = self.server.send_cli(**self.changes, projectId=project)
            except OSError:
                answer = Answer(0, {}, b"")
            sent = Sent(project, began, time.monotonic() - began, answer)
            with self.changed:
                self.sent.append(sent)
                self.statuses[answer.status] += 1
                self.changed.notify_all()
            if answer.status != 204:
                self.stopping.wait(0.05)  # a client that is not served need not make it worse

    def wait_for(self, status: int, count: int = 50) -> None:
        """Wait until that many more events have been answered with this status."""
        with self.changed:
            wanted = self.statuses[status] + count
            if not self.changed.wait_for(lambda: self.statuses[status] >= wanted, PATIENCE_SECONDS):
                raise TimeoutError(f"want {wanted} answers {status}, got {self.statuses}")

    def projects(self, status: int = 204) -> set[str]:
        """Return the projectIds of the events that were answered with this status."""
        return {sent.project for sent in self.sent if sent.answer.status == status}


def children(pid: int) -> list[int]:
    """Return the processes that this one started; none where it has ended."""
    try:
        text = Path(f"/proc/{pid}/task/{pid}/children").read_text()
        return [int(child) for child in text.split()]
    except (FileNotFoundError, ProcessLookupError):
        return []


def run(*command: object, **environ: str) -> subprocess.CompletedProcess[str]:
    """Run a command at the root of the project, with these variables, to its end."""
    return subprocess.run(
        list(map(str, command)),
        cwd=ROOT,
        env={**os.environ, **environ},
        capture_output=True,
        text=True,
        timeout=PATIENCE_SECONDS,
    )


def program(*names: str) -> str:
    """Return the path of the first installed program of these; skip the test without any."""
    path = f"{os.environ['PATH']}:/usr/sbin:/sbin"
    found = filter(None, (shutil.which(name, path=path) for name in names))
    return next(found, None) or give_up(f"{names[0]} is not installed")


def package(name: str) -> Any:
    """Import a developers' package; skip the test without it."""
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError:
        return give_up(f"{name} is not installed")


def give_up(reason: str) -> NoReturn:
    """Skip the test: it cannot run here.  In CI, fail it."""
    if os.environ.get("CI"):
        pytest.fail(reason)
    pytest.skip(reason)


def wait_until(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError("what was waited for did not happen")
        time.sleep(0.01)
