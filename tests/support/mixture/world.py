"""A collector under load: its data directory, its servers, and what everybody did to it."""

import contextlib
import json
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from random import Random
from typing import Any, NamedTuple

from injected import Faults
from server import CLI, GUNICORN, ROOT, Server, core_payload, read_answer, request

ADDRESSES = ("203.0.113.7", "198.51.100.99", "2001:db8:1:2::7")
MARKED = "marked.example"  # the host that asks to be forgotten
HOSTS = ("admin.example.com", "shop.example.org", MARKED)
OLD_DAYS = (1, 9)
OLD_EVENTS = 200  # of each
HANGS_AFTER_SECONDS = 30  # ten times what the contract allows
SETTLES_AFTER_SECONDS = 20
REFUSED = b"no JSON"

KEYS = {
    "core": "id received_at source ip hostname browser browser_version os os_version payload",
    "cli": "id received_at source ip payload",
}
PAYLOAD_KEYS = {
    "core": "providers version resourceCount projectId",
    "cli": "nodeEnv nodeVersion os osVersion command packages projectFramework projectId",
}


@dataclass
class Mixture:
    """One run: situations that meet, a number of workers and a mode of addresses."""

    seed: int
    situations: tuple[str, ...]
    workers: int
    mode: str
    planted: str = ""  # faults of planted.py

    def __str__(self) -> str:
        return f"{self.seed}-{'+'.join(self.situations)}-{self.workers}-{self.mode}"


class Event(NamedTuple):
    """What a client sends; `project` is its own."""

    project: str
    source: str
    address: str | None
    hostname: str | None
    as_image: bool = False

    def request(self) -> bytes:
        headers = [("X-Forwarded-For", self.address)] if self.address else []
        headers += [("Origin", f"https://{self.hostname}")] if self.hostname else []
        if self.source == "cli":
            body = json.dumps(CLI | {"projectId": self.project}).encode()
            return request("POST", "/cli", headers, body)
        payload = core_payload(projectId=self.project)
        if self.as_image:
            return request("GET", f"/telemetry?payload={payload}", headers)
        return request("POST", "/telemetry", headers, payload.encode())


class Sent(NamedTuple):
    """An event and its answer; the status is 0 if there was none."""

    event: Event
    began: float
    ended: float
    status: int

    @property
    def is_acknowledged(self) -> bool:
        return self.status in (200, 204)


@dataclass
class World:
    """A data directory, the servers that use it, and what everybody did to it."""

    root: Path
    mixture: Mixture
    servers: list[Server] = field(default_factory=list)
    sent: list[Sent] = field(default_factory=list)
    findings: list[str] = field(default_factory=list)
    over: threading.Event = field(default_factory=threading.Event)
    restarting: threading.Lock = field(default_factory=threading.Lock)
    injecting: threading.Lock = field(default_factory=threading.Lock)
    faults: Faults = field(default_factory=Faults)
    # The run goes on until so much has happened: on a busy machine a command begins late.
    awaited: int = 0
    happened: int = 0
    moved: dict[Path, float] = field(default_factory=dict)  # files and directories, and when
    killed: list[Server] = field(default_factory=list)  # whose workers may run on
    is_forgetting: bool = False
    forgotten: float = 0  # when the last `flask forget` that succeeded began

    def __post_init__(self) -> None:
        self.data, self.aside = self.root / "data", self.root / "aside"
        self.aside.mkdir(parents=True)
        self.faults_file, self.slow_file = self.root / "faults", self.root / "slow-faults"
        self.faults.write(self.faults_file)
        Faults(sync_seconds=0.05).write(self.slow_file)
        self.ports = [free_port(), free_port()]

    def make_old_days(self) -> None:
        """Write files of earlier days, for housekeeping and `flask forget` to rewrite."""
        self.data.mkdir()
        for age in OLD_DAYS:
            day = datetime.now(UTC).date() - timedelta(days=age)
            lines = []
            for number in range(OLD_EVENTS):
                event = Event(f"old-{age}-{number}", "core", None, HOSTS[number % len(HOSTS)])
                known = {
                    "id": f"id of {event.project}",
                    "received_at": f"{day}T12:00:00.000Z",
                    "source": "core",
                    "hostname": event.hostname,
                    "projectId": event.project,
                }
                payload = {name: known.get(name) for name in PAYLOAD_KEYS["core"].split()}
                names = KEYS["core"].split()
                record = {name: known.get(name) for name in names} | {"payload": payload}
                lines.append(f"{json.dumps(record, separators=(',', ':'))}\n")
                self.sent.append(Sent(event, 0, 0, 204))
            (self.data / f"events-{day}.jsonl").write_text("".join(lines))

    def environ(self, faults: Path) -> dict[str, str]:
        return {
            "FAULTS": str(faults),
            "PLANTED": self.mixture.planted,
            "PYTHONPATH": f"{ROOT}:{ROOT / 'tests/support'}",
            "TELEMETRY_DATA_DIR": str(self.data),
            "TELEMETRY_IP": self.mixture.mode,
            "TELEMETRY_TRUSTED_PROXIES": "127.0.0.1,unix",
        }

    def socket_path(self, server: int) -> Path:
        return self.root / f"socket{server}"

    def start(self, number: int = 0) -> Server:
        """Start a server, on the port and the Unix socket of that number."""
        binds = (f"127.0.0.1:{self.ports[number]}", f"unix:{self.socket_path(number)}")
        return Server(
            self.data,
            f"--workers={self.mixture.workers}",
            *(f"--bind={bind}" for bind in binds),
            "injected:create_app()",
            environ=self.environ(self.faults_file),
            command=(GUNICORN,),
        )

    def stop(self, server: Server) -> None:
        if status := server.stop():
            self.findings.append(f"stop: status {status}")
        server.kill()  # closes its log
        self.read_log(server)

    def read_log(self, server: Server) -> None:
        log = "\n".join(server.log)
        if "Traceback" in log:
            self.findings.append(f"log: {log[log.index('Traceback') :][:2000]}")

    def flask(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Run a command, on a disk that is slow enough for others to act meanwhile."""
        done = subprocess.run(
            [sys.executable, "-m", "flask", "--app", "injected:create_app", *arguments],
            cwd=self.root,
            env={**os.environ, **self.environ(self.slow_file)},
            capture_output=True,
            text=True,
        )
        self.happened += 1
        return done

    def inject(self, **changes: Any) -> None:
        with self.injecting:
            self.faults = replace(self.faults, **changes)
            self.faults.write(self.faults_file)

    def goes_on(self, random: Random, low: float, high: float) -> bool:
        """Wait for a random time; tell whether the situation goes on."""
        return not self.over.wait(random.uniform(low, high))

    @contextlib.contextmanager
    def connection(self, random: Random) -> Iterator[socket.socket]:
        """Connect to one of the servers as a proxy would: only its header tells an address."""
        with socket.socket(socket.AF_UNIX) as sock:
            sock.settimeout(HANGS_AFTER_SECONDS)
            sock.connect(str(self.socket_path(random.randrange(len(self.servers)))))
            yield sock

    def event_files(self) -> list[Path]:
        """Return the files that may be written to now."""
        today = f"events-{datetime.now(UTC):%F}.jsonl"
        return sorted(path for path in self.data.glob("events-*.jsonl") if path.name >= today)

    def calm_down(self) -> None:
        """Check that everything is stored again once nothing fails any more; then stop."""
        self.inject(**vars(Faults()))
        server, random = self.servers[0], Random(self.mixture.seed)
        if not settles(lambda: send_some(self, random)):
            self.findings.append("afterwards no event is stored")
        if not settles(lambda: server.send("GET", "/healthz").status == 200):
            self.findings.append("afterwards /healthz is not 200")
        if not settles(lambda: len(server.workers()) == self.mixture.workers):
            self.findings.append("afterwards a worker is missing")
        before, sent = refused_lines(self.data), 8 * self.mixture.workers
        answers = [server.send("POST", "/cli", body=REFUSED) for _ in range(sent)]
        refused = sum(answer.status == 400 for answer in answers)
        if not settles(lambda: refused_lines(self.data) >= before + refused):
            seen = refused_lines(self.data) - before
            self.findings.append(f"afterwards {seen} of {refused} refusals leave a line")
        self.stop(server)


def free_port() -> int:
    """Return a port that no outgoing connection gets, so that a restart finds it free."""
    for port in Random().sample(range(10_000, 30_000), 100):
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port
    raise RuntimeError("no port is free")


def settles(condition: Callable[[], bool]) -> bool:
    deadline = time.monotonic() + SETTLES_AFTER_SECONDS
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)
    return True


def refused_lines(data: Path) -> int:
    return sum(path.read_bytes().count(b"\n") for path in data.glob("refused-*.jsonl"))


# Load.


def send_events(world: World, random: Random) -> None:
    while not world.over.is_set():
        if random.random() < 0.05:
            send_refusals(world, random, 1)
        if not send_some(world, random):
            world.over.wait(0.02)


def send_refusals(world: World, random: Random, count: int) -> None:
    with contextlib.suppress(OSError), world.connection(random) as sock:
        for _ in range(count):
            sock.sendall(request("POST", "/cli", body=REFUSED))
            if (status := read_answer(sock).status) not in (0, 400, 503):
                world.findings.append(f"a refusal: answered {status}")


def send_some(world: World, random: Random) -> bool:
    """Send one event, or five on one connection; tell whether all were acknowledged."""
    try:
        with world.connection(random) as sock:
            count = random.choice([1, 1, 5])
            return all(send_event(world, sock, draw_event(random)) for _ in range(count))
    except OSError:
        return False


def draw_event(random: Random) -> Event:
    source = random.choice(["core", "cli"])
    return Event(
        str(random.random()),
        source,
        random.choice([*ADDRESSES, None]),
        random.choice(HOSTS) if source == "core" else None,
        as_image=random.random() < 0.5,
    )


def send_event(world: World, sock: socket.socket, event: Event, pieces: int = 1) -> bool:
    """Send the request in that many pieces, and note the answer."""
    content, began, status = event.request(), time.monotonic(), 0
    size = -(-len(content) // pieces)
    with contextlib.suppress(OSError):
        for start in range(0, len(content), size):
            sock.sendall(content[start : start + size])
            if pieces > 1:
                world.over.wait(0.05)
        status = read_answer(sock).status
    sent = Sent(event, began, time.monotonic(), status)
    world.sent.append(sent)
    if status not in (0, 200, 204, 503):
        world.findings.append(f"answered {status}: {event}")
    if sent.ended - began > HANGS_AFTER_SECONDS:
        world.findings.append(f"no answer in {HANGS_AFTER_SECONDS} s: {event}")
    return sent.is_acknowledged
