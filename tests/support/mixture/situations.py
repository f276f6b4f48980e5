"""Situations in which a collector may lose events.

Each goes on until the run is over, notes what it took away, and leaves a running server.
"""

import contextlib
import os
import re
import signal
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from functools import partial
from random import Random

from mixture.world import MARKED, World, draw_event, send_event, settles
from server import Server

DAY_SECONDS = 24 * 60 * 60
LINES_OR_KEYS = re.compile(r"(events|refused)-\d{4}-\d\d-\d\d\.jsonl.*|address-key-[\d-]+")

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
    """Workers begin while no thread can be started, and meet an event and more."""
    while world.goes_on(random, 0.1, 0.3):
        world.awaited += 1
        world.inject(threads_start=False)
        kill(random.choice(world.servers[0].workers() or [0]))
        settles(partial(has_failed_since, world, time.monotonic()))
        world.goes_on(random, 0.2, 0.4)
        world.inject(threads_start=True)
        world.happened += 1


def has_failed_since(world: World, moment: float) -> bool:
    failed = any(sent.status == 503 and sent.began > moment for sent in world.sent[-100:])
    return failed or world.over.is_set()


@situation
def workers_are_killed(world: World, random: Random) -> None:
    while world.goes_on(random, 0.1, 0.6):
        kill(random.choice(random.choice(world.servers).workers() or [0]))


@situation
def the_master_is_killed(world: World, random: Random) -> None:
    """Its workers may run on for a moment."""

    def end(server: Server) -> None:
        kill(server.process.pid)
        server.process.wait()

    restart(world, random, end)


@situation
def all_are_killed(world: World, random: Random) -> None:
    restart(world, random, Server.kill)


@situation
def it_restarts(world: World, random: Random) -> None:
    restart(world, random, world.stop)


def restart(world: World, random: Random, end: Callable[[Server], None]) -> None:
    while world.goes_on(random, 0.3, 1.2):
        with world.restarting:
            end(world.servers[0])
            world.servers[0] = world.start()


@situation
def a_second_collector_comes_and_goes(world: World, random: Random) -> None:
    while world.goes_on(random, 0.0, 0.2):
        second = world.start(1)
        world.servers.append(second)
        world.goes_on(random, 0.3, 1)
        world.servers.remove(second)
        random.choice([world.stop, Server.kill])(second)


@situation
def files_are_moved(world: World, random: Random) -> None:
    while world.goes_on(random, 0.05, 0.4):
        today = f"events-{datetime.now(UTC):%F}.jsonl"
        for path in [path for path in world.data.glob("events-*.jsonl") if path.name >= today]:
            directory = random.choice([world.data, world.aside])
            target = directory / f"{path.name}.{time.monotonic_ns()}"
            with contextlib.suppress(FileNotFoundError):
                path.rename(target)
                world.moved[target] = time.monotonic()


@situation
def the_directory_is_renamed(world: World, random: Random) -> None:
    """Sometimes it is made anew by the admin, sometimes by a worker."""
    while world.goes_on(random, 0.1, 0.5):
        target = world.aside / f"data-{time.monotonic_ns()}"
        with contextlib.suppress(FileNotFoundError, FileExistsError):
            world.data.rename(target)
            world.moved[target] = time.monotonic()
            if random.random() < 0.5:
                world.data.mkdir()


@situation
def keys_are_deleted(world: World, random: Random) -> None:
    while world.goes_on(random, 0.1, 0.5):
        for path in world.data.glob("address-key-*"):
            path.unlink(missing_ok=True)


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
    """Two admins at once, until the run is over, and once at least."""

    def forget(_: int) -> None:
        while True:
            began = time.monotonic()
            done = world.flask("forget", "--hostname", MARKED, "--yes")
            if "Traceback" in done.stderr:
                world.findings.append(f"forget: {done.stderr}")
            if done.returncode == 0:
                world.forgotten = max(world.forgotten, began)
            if world.over.is_set():
                return

    world.is_forgetting, world.awaited = True, world.awaited + 2
    with ThreadPoolExecutor(2) as admins:
        list(admins.map(forget, range(2)))


@situation
def clients_trickle(world: World, random: Random) -> None:
    """Sixteen at once take a second for a request; others never end theirs."""
    with contextlib.ExitStack() as stack, ThreadPoolExecutor(16) as clients:
        while world.goes_on(random, 0.0, 0.1):
            with contextlib.suppress(OSError):
                silent = stack.enter_context(world.connection(random))
                silent.sendall(draw_event(random).request()[:-5])
            clients.submit(trickle, world, Random(random.random()))


def trickle(world: World, random: Random) -> None:
    with contextlib.suppress(OSError), world.connection(random) as sock:
        send_event(world, sock, draw_event(random), pieces=16)


def kill(pid: int) -> None:
    if pid:  # 0 where a server has no worker just now
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
