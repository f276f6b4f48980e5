"""A collector under load: its data directory, its servers, and what everybody did to it."""

import contextlib
import json
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
from proxies import free_port
from server import CLI, GUNICORN, ROOT, Server, core_payload, read_answer, request, run

ADDRESSES = ("203.0.113.7", "198.51.100.99", "2001:db8:1:2::7")
MARKED = "marked.example"  # the host that asks to be forgotten
HOSTS = ("admin.example.com", "shop.example.org", MARKED)
OLD_DAYS = (1, 9)
OLD_EVENTS = 200  # of each
HANGS_AFTER_SECONDS = 30  # ten times what the contract allows
SETTLES_AFTER_SECONDS = 20

# Lines as the contract writes them, behind `received_at`.
PROVIDERS = (
    '{"auth":true,"data":true,"router":false,"live":false,"notification":false,"auditLog":false,'
    '"i18n":false,"accessControl":false}'
)
CORE_LINE = (
    '"source":"core","ip":%s,"hostname":"%s","browser":null,"browser_version":null,"os":null,'
    f'"os_version":null,"payload":{{"providers":{PROVIDERS},"version":"5.0.12","resourceCount":3,'
    '"projectId":"%s"}}'
)
CLI_LINE = (
    '"source":"cli","ip":%s,"payload":{"nodeEnv":null,"nodeVersion":"v20.20.2","os":null,'
    '"osVersion":null,"command":null,"packages":[],"projectFramework":"vite","projectId":"%s"}}'
)


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
    """What a client sends; `project` is its own, `hostname` is sent with core events."""

    project: str
    is_core: bool
    address: str | None
    hostname: str
    is_image: bool = False

    def request(self) -> bytes:
        headers = [("X-Forwarded-For", self.address)] if self.address else []
        if not self.is_core:
            body = json.dumps(CLI | {"projectId": self.project}).encode()
            return request("POST", "/cli", headers, body)
        headers.append(("Origin", f"https://{self.hostname}"))
        payload = core_payload(projectId=self.project)
        if self.is_image:
            return request("GET", f"/telemetry?payload={payload}", headers)
        return request("POST", "/telemetry", headers, payload.encode())

    @property
    def is_marked(self) -> bool:
        return self.is_core and self.hostname == MARKED

    def line(self, mode: str) -> str:
        """Return its line behind `received_at`, with `a hash` for a hash."""
        ip = "null"
        if self.address:
            ip = '"a hash"' if mode == "hashed" else f'"{self.address}"'
        if self.is_core:
            return CORE_LINE % (ip, self.hostname, self.project)
        return CLI_LINE % (ip, self.project)


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
    servers: list[Server] = field(default_factory=list)  # that should run
    started: list[Server] = field(default_factory=list)  # all there ever were
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
            with (self.data / f"events-{day}.jsonl").open("w") as file:
                for number in range(OLD_EVENTS):
                    event = Event(f"old-{age}-{number}", True, None, HOSTS[number % len(HOSTS)])
                    stamps = f'"id":"{event.project:0>36}","received_at":"{day}T12:00:00.000Z"'
                    file.write(f"{{{stamps},{event.line('')}\n")
                    self.sent.append(Sent(event, 0, 0, 204))

    def environ(self, faults: Path) -> dict[str, str]:
        return {
            "FAULTS": str(faults),
            "PLANTED": self.mixture.planted,
            "PYTHONPATH": f"{ROOT}:{ROOT / 'tests/support'}",
            "TELEMETRY_DATA_DIR": str(self.data),
            "TELEMETRY_IP": self.mixture.mode,
            "TELEMETRY_TRUSTED_PROXIES": "127.0.0.1,unix",
        }

    def start(self, number: int = 0) -> Server:
        """Start a server, on the port and the Unix socket of that number."""
        binds = (f"127.0.0.1:{self.ports[number]}", f"unix:{self.root}/socket{number}")
        server = Server(
            self.data,
            f"--workers={self.mixture.workers}",
            *(f"--bind={bind}" for bind in binds),
            "injected:create_app()",
            environ=self.environ(self.faults_file),
            command=(GUNICORN,),
        )
        self.started.append(server)
        return server

    def stop(self, server: Server) -> None:
        if status := server.stop():
            self.findings.append(f"stop: status {status}")

    def flask(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Run a command, on a disk that is slow enough for others to act meanwhile."""
        flask = (sys.executable, "-m", "flask", "--app", "injected:create_app")
        done = run(*flask, *arguments, **self.environ(self.slow_file))
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
            sock.connect(f"{self.root}/socket{random.randrange(len(self.servers))}")
            yield sock

    def calm_down(self) -> None:
        """Check that everything is stored again once nothing fails any more; then stop."""
        self.inject(**vars(Faults()))
        server, random = self.servers[0], Random(self.mixture.seed)
        self.want("an event is stored", lambda: send_some(self, random))
        self.want("/healthz is 200", lambda: server.send("GET", "/healthz").status == 200)
        self.want("workers are there", lambda: len(server.workers()) == self.mixture.workers)
        self.stop(server)
        logs = ["\n".join(server.log) for server in self.started]
        self.findings += [
            log[log.index("Traceback") :][:2000] for log in logs if "Traceback" in log
        ]

    def want(self, what: str, condition: Callable[[], bool]) -> None:
        if not settles(condition):
            self.findings.append(f"afterwards: not so: {what}")


def settles(condition: Callable[[], bool]) -> bool:
    deadline = time.monotonic() + SETTLES_AFTER_SECONDS
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)
    return True


# Load.


def send_events(world: World, random: Random) -> None:
    while not world.over.is_set():
        if not send_some(world, random):
            world.over.wait(0.02)


def send_some(world: World, random: Random) -> bool:
    """Send one event, or five on one connection; tell whether all were acknowledged."""
    try:
        with world.connection(random) as sock:
            count = random.choice([1, 1, 5])
            return all(send_event(world, sock, draw_event(random)) for _ in range(count))
    except OSError:
        return False


def draw_event(random: Random) -> Event:
    address = random.choice([*ADDRESSES, None])
    is_core, is_image = random.random() < 0.5, random.random() < 0.5
    return Event(str(random.random()), is_core, address, random.choice(HOSTS), is_image)


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
