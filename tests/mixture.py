"""Situations in which a collector may lose events, run in pairs beside load on a real server.

Every client notes which of its events were acknowledged, every situation what it took away.
`Mixture.run` says afterwards what is wrong with the files.  Knows only the contract.
"""

import contextlib
import gzip
import itertools
import json
import math
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
import zlib
from base64 import b64encode
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from ipaddress import ip_interface
from pathlib import Path
from random import Random
from typing import Any, NamedTuple
from urllib.parse import quote

from injected import Faults
from server import CLI, CORE, GUNICORN, ROOT, Server, read_answer, request

TESTS = ROOT / "tests"
MODES = ("full", "masked", "hashed", "none")
ADDRESSES = ("203.0.113.7", "198.51.100.99", "2001:db8:1:2::7")
MARKED = "marked.example"  # the host that asks to be forgotten
HOSTS = ("admin.example.com", "shop.example.org", MARKED)
OLD_DAYS = (1, 2, 9)
OLD_EVENTS = 600
CLIENTS = 6
RUN_SECONDS = 2.5
HANGS_AFTER_SECONDS = 30  # ten times what the contract allows
SETTLES_AFTER_SECONDS = 20
REFUSED = b"no JSON"
DAY_SECONDS = 24 * 60 * 60

GZIP_MAGIC = b"\x1f\x8b"
EVENT_FILE = re.compile(r"events-(\d{4}-\d\d-\d\d)\.jsonl.*")
LINES_OR_KEYS = re.compile(r"(events|refused)-\d{4}-\d\d-\d\d\.jsonl.*|address-key-[\d-]+")
KEYS = {
    "core": "id received_at source ip hostname browser browser_version os os_version payload",
    "cli": "id received_at source ip payload",
}
PAYLOAD_KEYS = {
    "core": "providers version resourceCount projectId",
    "cli": "nodeEnv nodeVersion os osVersion command packages projectFramework projectId",
}


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
        body = b64encode(json.dumps(CORE | {"projectId": self.project}).encode())
        if self.as_image:
            return request("GET", f"/telemetry?payload={quote(body)}", headers)
        return request("POST", "/telemetry", headers, body)


class Sent(NamedTuple):
    """An event and its answer; the status is 0 if there was none."""

    event: Event
    began: float
    ended: float
    status: int

    @property
    def is_acknowledged(self) -> bool:
        return self.status in (200, 204)


class Stored(NamedTuple):
    path: Path
    record: dict[str, Any]


@dataclass
class Mixture:
    """One run: a pair of situations, a number of workers and a mode of addresses."""

    seed: int
    situations: tuple[str, ...]
    workers: int
    mode: str
    seconds: float = RUN_SECONDS
    planted: str = ""  # a fault of planted.py

    def __str__(self) -> str:
        return f"{self.seed}-{'+'.join(self.situations)}-{self.workers}-{self.mode}"

    def run(self, root: Path) -> list[str]:
        """Return what went wrong, and print what happened."""
        world = World(root, self)
        world.make_old_days()
        world.servers.append(world.start())
        acts = {name: SITUATIONS[name] for name in self.situations}
        acts |= {f"client {number}": send_events for number in range(CLIENTS)}
        try:
            with ThreadPoolExecutor(len(acts)) as pool:
                running = {
                    name: pool.submit(act, world, Random(f"{self.seed} {name}"))
                    for name, act in acts.items()
                }
                time.sleep(self.seconds)
                settles(world.commands_have_run)  # which takes long on a busy machine
                world.over.set()
            for name, act in running.items():
                if error := act.exception():
                    world.findings.append(f"{name}: {error!r}")
            world.calm_down()
        finally:
            for server in [*world.servers, *world.killed]:
                server.kill()
                world.read_log(server)
        answers = Counter(sent.status for sent in world.sent if sent.began)
        slowest = max(sent.ended - sent.began for sent in world.sent)
        figures = f"slowest answer {slowest:.1f} s, stop {world.slowest_stop_seconds:.1f} s"
        print(f"{self}: {dict(answers)}, {figures}")
        return [*world.findings, *Judgement(world).findings()]


def draw(seed: int) -> Mixture:
    """Draw a pair; each run of consecutive seeds takes every situation in turn."""
    names = sorted(SITUATIONS)
    half = len(names) // 2
    Random(seed // half).shuffle(names)
    pair = tuple(names[seed % half * 2 :][:2])
    random = Random(seed)
    mode = "hashed" if "keys_are_deleted" in pair else random.choice(MODES)
    return Mixture(seed, pair, random.randint(1, 3), mode)


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
    drawn: int = 0  # events
    commands: int = 0  # that have run
    slowest_stop_seconds: float = 0
    # What was taken away, each with the moment after which no event may be there any more.
    moved: dict[Path, float] = field(default_factory=dict)
    deleted: list[tuple[int, float]] = field(default_factory=list)  # files, still open
    truncated: list[float] = field(default_factory=list)
    killed: list[Server] = field(default_factory=list)  # whose workers may run on
    key_breaks: list[tuple[float, float]] = field(default_factory=list)
    forgotten: float = 0  # when the last `flask forget` that succeeded began

    def __post_init__(self) -> None:
        self.data, self.aside = self.root / "data", self.root / "aside"
        self.aside.mkdir(parents=True)
        self.faults_file, self.slow_file = self.root / "faults", self.root / "slow-faults"
        self.faults.write(self.faults_file)
        Faults(sync_seconds=0.1).write(self.slow_file)
        self.ports = [free_port(), free_port()]

    def make_old_days(self) -> None:
        """Write files of earlier days, for housekeeping and `flask forget` to rewrite."""
        self.data.mkdir()
        for age in OLD_DAYS:
            day = datetime.now(UTC).date() - timedelta(days=age)
            lines = []
            for number in range(OLD_EVENTS // len(OLD_DAYS)):
                host = HOSTS[number % len(HOSTS)]
                event = Event(f"old-{age}-{number}", "core", None, host)
                record = dict.fromkeys(KEYS["core"].split()) | {
                    "id": event.project,
                    "received_at": f"{day}T12:00:00.000Z",
                    "source": "core",
                    "hostname": host,
                    "payload": dict.fromkeys(PAYLOAD_KEYS["core"].split())
                    | {"projectId": event.project},
                }
                lines.append(f"{json.dumps(record, separators=(',', ':'))}\n")
                self.sent.append(Sent(event, 0, 0, 204))
            (self.data / f"events-{day}.jsonl").write_text("".join(lines))

    def environ(self, faults: Path) -> dict[str, str]:
        return {
            "FAULTS": str(faults),
            "PLANTED": self.mixture.planted,
            "PYTHONPATH": f"{ROOT}:{TESTS}",
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
        began = time.monotonic()
        if status := server.stop():
            self.findings.append(f"stop: status {status}")
        server.kill()  # closes its log
        self.read_log(server)
        self.slowest_stop_seconds = max(self.slowest_stop_seconds, time.monotonic() - began)

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
        self.commands += 1
        return done

    def commands_have_run(self) -> bool:
        names = self.mixture.situations
        wanted = 2 * (somebody_is_forgotten.__name__ in names) + (
            the_report_is_read.__name__ in names
        )
        return self.commands >= wanted

    def inject(self, **changes: Any) -> None:
        with self.injecting:
            self.faults = replace(self.faults, **changes)
            self.faults.write(self.faults_file)

    def goes_on(self, random: Random, low: float, high: float) -> bool:
        """Wait for a random time; tell whether the situation goes on."""
        return not self.over.wait(random.uniform(low, high))

    def connect(self, random: Random, *, unix: bool) -> socket.socket:
        number = random.randrange(len(self.servers))
        sock = socket.socket(socket.AF_UNIX if unix else socket.AF_INET)
        sock.settimeout(HANGS_AFTER_SECONDS)
        try:
            sock.connect(
                str(self.socket_path(number)) if unix else ("127.0.0.1", self.ports[number])
            )
        except OSError:
            sock.close()
            raise
        return sock

    def draw_event(self, random: Random) -> Event:
        source = random.choice(["core", "cli"])
        with self.injecting:
            self.drawn += 1
        return Event(
            f"p{self.drawn}-{random.random()}",
            source,
            random.choice([*ADDRESSES, None]),
            random.choice(HOSTS) if source == "core" else None,
            as_image=random.random() < 0.5,
        )

    def note(self, event: Event, began: float, status: int) -> None:
        ended = time.monotonic()
        self.sent.append(Sent(event, began, ended, status))
        if status not in (0, 200, 204, 503):
            self.findings.append(f"answered {status}: {event}")
        if ended - began > HANGS_AFTER_SECONDS:
            self.findings.append(f"no answer in {HANGS_AFTER_SECONDS} s: {event}")

    def event_files(self) -> list[Path]:
        """Return the files that may be written to now."""
        today = f"events-{datetime.now(UTC):%F}.jsonl"
        return sorted(path for path in self.data.glob("events-*.jsonl") if path.name >= today)

    def calm_down(self) -> None:
        """Check that everything is stored again once nothing fails any more; then stop."""
        self.inject(**vars(Faults()))
        server, random = self.servers[0], Random(self.mixture.seed)
        if not settles(lambda: send_event(self, random)):
            self.findings.append("afterwards no event is stored")
        if not settles(lambda: len(server.workers()) == self.mixture.workers):
            self.findings.append("afterwards a worker is missing")
        before, refusals = refused_lines(self.data), 8 * self.mixture.workers
        for _ in range(refusals):
            server.send("POST", "/cli", body=REFUSED)
        if not settles(lambda: refused_lines(self.data) >= before + refusals):
            seen = refused_lines(self.data) - before
            self.findings.append(f"afterwards {seen} of {refusals} refusals leave a line")
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
        if not send_event(world, random):
            world.over.wait(0.02)


def send_refusals(world: World, random: Random, count: int) -> None:
    with contextlib.suppress(OSError), world.connect(random, unix=False) as sock:
        for _ in range(count):
            sock.sendall(request("POST", "/cli", body=REFUSED))
            if (status := read_answer(sock).status) not in (0, 400):
                world.findings.append(f"a refusal: answered {status}")


def send_event(world: World, random: Random) -> bool:
    """Send an event, or five on one connection; tell whether all were acknowledged."""
    events = [world.draw_event(random) for _ in range(random.choice([1, 1, 5]))]
    # Only who comes by the Unix socket, and by no proxy, has no address.
    unix = any(event.address is None for event in events)
    try:
        with world.connect(random, unix=unix) as sock:
            return all(exchange(world, sock, event) for event in events)
    except OSError:
        return False


def exchange(world: World, sock: socket.socket, event: Event, pieces: int = 1) -> bool:
    """Send the request in that many pieces, and note the answer."""
    content, began, status = event.request(), time.monotonic(), 0
    size = -(-len(content) // pieces)
    with contextlib.suppress(OSError):
        for start in range(0, len(content), size):
            sock.sendall(content[start : start + size])
            if pieces > 1:
                world.over.wait(0.05)
        status = read_answer(sock).status
    world.note(event, began, status)
    return status in (200, 204)


# Situations.  Each goes on until the run is over, and leaves a running server.

Situation = Callable[[World, Random], None]
SITUATIONS: dict[str, Situation] = {}


def situation(act: Situation) -> Situation:
    SITUATIONS[act.__name__] = act
    return act


@situation
def syncs_are_slow(world: World, random: Random) -> None:
    while world.goes_on(random, 0.1, 0.6):
        world.inject(sync_seconds=random.choice([0, 0.02, 0.2, 0.7, 1.2]))


@situation
def syncs_fail(world: World, random: Random) -> None:
    world.inject(sync_errors=0.5, bad_seconds=0.2, period_seconds=0.5)


@situation
def writes_stop_short(world: World, random: Random) -> None:
    world.inject(short_writes=0.3, truncate_errors=0.5, bad_seconds=0.2, period_seconds=0.5)


@situation
def no_thread_starts(world: World, random: Random) -> None:
    """Workers begin while no thread can be started."""
    while world.goes_on(random, 0.1, 0.3):
        world.inject(threads_start=False)
        kill(random.choice(world.servers[0].workers() or [0]))
        world.goes_on(random, 0.3, 0.6)
        world.inject(threads_start=True)


@situation
def workers_are_killed(world: World, random: Random) -> None:
    while world.goes_on(random, 0.1, 0.6):
        kill(random.choice(random.choice(world.servers).workers() or [0]))


@situation
def the_master_is_killed(world: World, random: Random) -> None:
    while world.goes_on(random, 0.2, 0.8):
        with world.restarting:
            kill(world.servers[0].process.pid)
            world.servers[0].process.wait()
            world.killed.append(world.servers[0])
            world.servers[0] = world.start()


@situation
def all_are_killed(world: World, random: Random) -> None:
    while world.goes_on(random, 0.2, 0.8):
        with world.restarting:
            world.servers[0].kill()
            world.servers[0] = world.start()


@situation
def it_reloads(world: World, random: Random) -> None:
    while world.goes_on(random, 0.2, 0.8):
        with world.restarting:
            world.servers[0].process.send_signal(signal.SIGHUP)


@situation
def it_restarts(world: World, random: Random) -> None:
    while world.goes_on(random, 0.2, 0.8):
        with world.restarting:
            world.stop(world.servers[0])
            world.servers[0] = world.start()


@situation
def a_second_collector_comes_and_goes(world: World, random: Random) -> None:
    while world.goes_on(random, 0.0, 0.2):
        second = world.start(1)
        world.servers.append(second)
        world.goes_on(random, 0.3, 1)
        world.servers.remove(second)
        if random.random() < 0.5:
            world.stop(second)
        second.kill()


@situation
def files_are_moved(world: World, random: Random) -> None:
    for number in itertools.count():
        if not world.goes_on(random, 0.05, 0.4):
            return
        for path in world.event_files():
            directory = random.choice([world.data, world.aside])
            target = directory / f"{path.name}.{number}"
            with contextlib.suppress(FileNotFoundError):
                path.rename(target)
                world.moved[target] = time.monotonic()


@situation
def files_are_deleted(world: World, random: Random) -> None:
    while world.goes_on(random, 0.05, 0.4):
        for path in world.event_files():
            with contextlib.suppress(FileNotFoundError):
                world.deleted.append((os.open(path, os.O_RDONLY), math.inf))
                path.unlink()
                world.deleted[-1] = (world.deleted[-1][0], time.monotonic())


@situation
def files_are_truncated(world: World, random: Random) -> None:
    while world.goes_on(random, 0.05, 0.4):
        for path in world.event_files():
            with contextlib.suppress(FileNotFoundError):
                os.truncate(path, 0)
                world.truncated.append(time.monotonic())


@situation
def the_directory_is_renamed(world: World, random: Random) -> None:
    """Sometimes it is made anew by the admin, sometimes by a worker."""
    for number in itertools.count():
        if not world.goes_on(random, 0.1, 0.5):
            return
        target, began = world.aside / f"data-{number}", time.monotonic()
        with contextlib.suppress(FileNotFoundError, FileExistsError):
            world.data.rename(target)
            world.moved[target] = time.monotonic()
            if random.random() < 0.5:
                world.data.mkdir()
        world.key_breaks.append((began, time.monotonic()))


@situation
def keys_are_deleted(world: World, random: Random) -> None:
    while world.goes_on(random, 0.1, 0.5):
        began = time.monotonic()
        for path in world.data.glob("address-key-*"):
            path.unlink(missing_ok=True)
        world.key_breaks.append((began, time.monotonic()))


@situation
def work_files_are_deleted(world: World, random: Random) -> None:
    """Whatever is neither lines nor a key may be taken for stale, one file at a time."""
    while world.goes_on(random, 0.05, 0.3):
        with contextlib.suppress(FileNotFoundError):
            names = sorted(path.name for path in world.data.iterdir())
            if stale := [name for name in names if not LINES_OR_KEYS.fullmatch(name)]:
                (world.data / random.choice(stale)).unlink()


@situation
def the_clock_goes_to_and_fro(world: World, random: Random) -> None:
    while world.goes_on(random, 0.05, 0.4):
        now = time.time()
        midnight = DAY_SECONDS - now % DAY_SECONDS
        world.inject(clock_seconds=random.choice([0, DAY_SECONDS, midnight - 0.2, midnight - 0.1]))


@situation
def somebody_is_forgotten(world: World, random: Random) -> None:
    """Two admins at once."""
    with ThreadPoolExecutor(2) as admins:
        list(admins.map(forget, [world] * 2))


def forget(world: World) -> None:
    while True:
        began = time.monotonic()
        done = world.flask("forget", "--hostname", MARKED, "--yes")
        if "Traceback" in done.stderr:
            world.findings.append(f"forget: {done.stderr}")
        if done.returncode == 0:
            world.forgotten = max(world.forgotten, began)
        if world.over.is_set():
            return


@situation
def the_report_is_read(world: World, random: Random) -> None:
    while True:
        known = sum(sent.is_acknowledged for sent in list(world.sent))
        done = world.flask("report", "--until", "today", "--format", "json")
        possible = world.drawn + OLD_EVENTS
        if done.returncode or not done.stdout:
            world.findings.append(f"report: status {done.returncode}: {done.stderr}")
        else:
            report = json.loads(done.stdout)
            seen = sum(report["events"].values())
            if TAKES_EVENTS.isdisjoint(world.mixture.situations) and not known <= seen <= possible:
                world.findings.append(f"report: {seen} events, not {known} to {possible}")
            if report["unreadable_lines"]:
                world.findings.append(f"report: {report['unreadable_lines']} unreadable lines")
        if world.over.is_set():
            return


@situation
def clients_trickle(world: World, random: Random) -> None:
    """Sixteen at once take a second for a request; others never end theirs."""
    with contextlib.ExitStack() as stack, ThreadPoolExecutor(16) as clients:
        while world.goes_on(random, 0.0, 0.1):
            with contextlib.suppress(OSError):
                silent = stack.enter_context(world.connect(random, unix=False))
                silent.sendall(world.draw_event(random).request()[:-5])
            clients.submit(trickle, world, Random(random.random()))


def trickle(world: World, random: Random) -> None:
    event = world.draw_event(random)
    unix = event.address is None
    with contextlib.suppress(OSError), world.connect(random, unix=unix) as sock:
        exchange(world, sock, event, pieces=16)


@situation
def refusals_flood(world: World, random: Random) -> None:
    while world.goes_on(random, 0, 0.02):
        send_refusals(world, random, 50)


def kill(pid: int) -> None:
    if pid:  # 0 where a server has no worker just now
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


# Those after which a report may count fewer events than were acknowledged.
TAKES_EVENTS = {
    act.__name__
    for act in (
        files_are_moved,
        files_are_deleted,
        files_are_truncated,
        the_directory_is_renamed,
        the_clock_goes_to_and_fro,
        somebody_is_forgotten,
    )
}

# Judgement.


class Judgement:
    """What is wrong with the files, held against what everybody noted."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.sent = {sent.event.project: sent for sent in world.sent}
        self.has_forgotten = somebody_is_forgotten.__name__ in world.mixture.situations
        self.invalid: list[str] = []
        self.deleted: dict[str, float] = {}  # projects, and when
        for file, since in world.deleted:
            self.deleted |= dict.fromkeys(projects_in(os.pread(file, 2**30, 0)), since)
            os.close(file)
        self.stored = [
            stored
            for directory in (world.data, *world.aside.glob("**/"))
            for stored in self.read(directory)
        ]

    def read(self, directory: Path) -> Iterator[Stored]:
        """Yield the records in a directory; an archive beside its plain file holds the same."""
        lines: dict[Path, list[bytes]] = {}
        for path in sorted(directory.glob("events-*")):
            if EVENT_FILE.fullmatch(path.name):
                *whole, tail = self.content(path).split(b"\n")
                # Who moves a file moves what a kill has torn.
                if tail and path == self.world.data / f"events-{datetime.now(UTC):%F}.jsonl":
                    self.invalid.append(f"{path.name} is torn: {tail[:200]!r}")
                lines[path] = whole
        for path in list(lines):
            archive = path.with_name(f"{path.name}.gz")
            if archive in lines:
                contained, other = sorted((path, archive), key=lambda one: len(lines[one]))
                if set(lines[contained]) <= set(lines[other]):
                    del lines[contained]
        for path, whole in lines.items():
            for line in whole:
                if record := self.valid(line):
                    yield Stored(path, record)
                else:
                    self.invalid.append(f"{path.name}: {line[:200]!r}")

    def content(self, path: Path) -> bytes:
        content = path.read_bytes()
        try:
            return gzip.decompress(content) if content[:2] == GZIP_MAGIC else content
        except (OSError, EOFError, zlib.error) as exc:
            self.invalid.append(f"{path.name}: {exc}")
            return b""

    def valid(self, line: bytes) -> dict[str, Any] | None:
        """Return the record in a line, None unless it is written as the contract says."""
        try:
            record: dict[str, Any] = json.loads(line)
            source, payload = record["source"], record["payload"]
            is_valid = (
                json.dumps(record, separators=(",", ":")).encode() == line
                and " ".join(record) == KEYS[source]
                and " ".join(payload) == PAYLOAD_KEYS[source]
            )
        except (ValueError, KeyError, TypeError):
            return None
        return record if is_valid else None

    def findings(self) -> list[str]:
        return [
            *summary("invalid", iter(self.invalid)),
            *summary("lost", self.lost()),
            *summary("twice", self.twice()),
            *summary("unlike what was sent", self.unlike()),
            *summary("in a file that was moved or deleted before", self.misplaced()),
            *summary("hash", self.hashes()),
            *summary("not forgotten", self.not_forgotten()),
        ]

    def lost(self) -> Iterator[str]:
        stored = {one.record["payload"]["projectId"] for one in self.stored}
        truncated = max(self.world.truncated, default=-1.0)
        for project, sent in self.sent.items():
            is_excused = (
                project in self.deleted
                or sent.began <= truncated
                or (sent.event.hostname == MARKED and self.has_forgotten)
            )
            if sent.is_acknowledged and project not in stored and not is_excused:
                yield f"{project} ({sent.event.source})"

    def twice(self) -> Iterator[str]:
        for name in ("id", "projectId"):
            counts = Counter((one.record | one.record["payload"])[name] for one in self.stored)
            yield from (f"{name} {value}" for value, count in counts.items() if count > 1)

    def unlike(self) -> Iterator[str]:
        for path, record in self.stored:
            project = record["payload"]["projectId"]
            sent = self.sent.get(project)
            day = EVENT_FILE.fullmatch(path.name)
            if not sent or not day or day[1] != record["received_at"][:10]:
                yield f"{project} in {path.name}, received {record['received_at']}"
            elif record.get("hostname") != sent.event.hostname:
                yield f"{project}: hostname {record['hostname']}, not {sent.event.hostname}"
            elif not self.is_right_address(record["ip"], sent.event.address):
                yield f"{project}: ip {record['ip']} of {sent.event.address}"

    def is_right_address(self, stored: str | None, address: str | None) -> bool:
        if address is None or self.world.mixture.mode == "none":
            return stored is None
        if self.world.mixture.mode == "hashed":
            return stored is not None and re.fullmatch(r"[0-9a-f]{64}", stored) is not None
        if self.world.mixture.mode == "masked":
            network = ip_interface(f"{address}/{48 if ':' in address else 24}").network
            return stored == str(network.network_address)
        return stored == address

    def misplaced(self) -> Iterator[str]:
        """Yield what was stored where nobody looks any more, by a worker that did not notice."""
        for path, record in self.stored:
            sent = self.sent.get(record["payload"]["projectId"])
            for place, since in self.world.moved.items():
                if sent and sent.began > since and path.is_relative_to(place):
                    yield f"{sent.event.project} in {path.name}"
        for project, since in self.deleted.items():
            if project in self.sent and self.sent[project].began > since:
                yield f"{project} in a deleted file"

    def hashes(self) -> Iterator[str]:
        """Yield addresses with two hashes under one key, or with one hash under two."""
        if self.world.mixture.mode != "hashed":
            return
        found: dict[tuple[str, str], dict[int, set[str]]] = defaultdict(lambda: defaultdict(set))
        for _, record in self.stored:
            sent = self.sent.get(record["payload"]["projectId"])
            if sent and sent.event.address and sent.began:
                breaks = self.world.key_breaks
                if not any(sent.began <= end and begin <= sent.ended for begin, end in breaks):
                    keys = sum(end < sent.began for _, end in breaks)
                    day = record["received_at"][:10]
                    found[day, sent.event.address][keys].add(record["ip"])
        for (day, address), hashes in found.items():
            for one in hashes.values():
                if len(one) > 1:
                    yield f"{len(one)} hashes of {address} under one key of {day}"
            for one, other in itertools.combinations(hashes.values(), 2):
                if one & other:
                    yield f"a key of {day} outlived its file"

    def not_forgotten(self) -> Iterator[str]:
        for path, record in self.stored:
            sent = self.sent.get(record["payload"]["projectId"])
            is_known = sent and sent.is_acknowledged and sent.ended < self.world.forgotten
            is_here = path.is_relative_to(self.world.data)
            if sent and is_known and is_here and sent.event.hostname == MARKED:
                yield f"{sent.event.project} in {path.name}"


def projects_in(content: bytes) -> set[str]:
    return {found.decode() for found in re.findall(rb'"projectId":"([^"]+)"', content)}


def summary(kind: str, found: Iterator[str]) -> Iterator[str]:
    """Yield one line for what was found, if anything."""
    items = list(dict.fromkeys(found))
    if items:
        yield f"{kind}: {len(items)}: {', '.join(items[:3])}"
