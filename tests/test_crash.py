"""A real gunicorn under load while its processes and its disk fail.

Several tests mount file systems of their own.  Where that is not allowed they
are skipped; where $CI is set they fail instead.
"""

import contextlib
import fcntl
import itertools
import os
import random
import resource
import signal
import struct
import subprocess
import time
from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest

from injected import Faults
from server import (
    CLOSE,
    PATIENCE_SECONDS,
    Answer,
    Load,
    Server,
    cli_event,
    give_up,
    read_answer,
    wait_until,
)

pytestmark = pytest.mark.slow
Start = Callable[..., Server]

ANSWERED_WITHIN_SECONDS = 3
NOISE_SECONDS = 1  # a client of ours may itself have to wait for the processor

# For lines of half a page: a kill and the end of a disk cut at the end of a page.
PACKAGES = [{"name": "x" * 250, "version": None}] * 6

IMAGE_BYTES = 8 * 2**20

# linux/fs/ext4/ext4.h: stop at once, and do not even flush the journal.
EXT4_IOC_SHUTDOWN = 0x8004587D
EXT4_GOING_FLAGS_NOLOGFLUSH = struct.pack("I", 2)


class Disk:
    """A file system of its own, in a file, mounted on `path`."""

    def __init__(self, path: Path, image: Path) -> None:
        self.path, self.image = path, image
        with image.open("wb") as file:
            file.truncate(IMAGE_BYTES)
        subprocess.run(["mkfs.ext4", "-q", image], check=True)
        self.mount()

    def mount(self) -> None:
        subprocess.run(["mount", "-o", "loop", self.image, self.path], check=True)

    @contextlib.contextmanager
    def read_only(self) -> Iterator[None]:
        remount = ["mount", "-o", "remount,ro", str(self.path)]
        # Refused while a file is open for writing; a health check opens one for a moment.
        wait_until(lambda: subprocess.run(remount, stderr=subprocess.DEVNULL).returncode == 0)
        yield
        subprocess.run(["mount", "-o", "remount,rw", self.path], check=True)

    @contextlib.contextmanager
    def filled(self) -> Iterator[None]:
        filler = self.path / "filler"
        with filler.open("wb", buffering=0) as file, contextlib.suppress(OSError):
            while True:
                file.write(bytes(4096))
        yield
        filler.unlink()

    def unmount(self) -> None:
        # Not at once, perhaps: a process that was killed is still ending.
        wait_until(lambda: subprocess.run(["umount", self.path]).returncode == 0)

    @contextlib.contextmanager
    def frozen(self) -> Iterator[None]:
        assert self.path.is_mount()  # or it would be the disk of this machine
        # The shell thaws it when its input ends: in the end even if the tests are killed.
        script = 'fsfreeze -f "$0" && echo frozen; read _; fsfreeze -u "$0"'
        with subprocess.Popen(
            ["sh", "-c", script, self.path],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            start_new_session=True,  # or Ctrl-C would end it before it thaws
        ) as shell:
            assert shell.stdout
            assert shell.stdout.readline() == b"frozen\n"
            yield
        assert shell.returncode == 0

    def cut_power(self) -> None:
        """Drop everything that is not on the medium, and fail every further access."""
        assert self.path.is_mount()  # or it would be the disk of this machine
        root = os.open(self.path, os.O_RDONLY)
        try:
            fcntl.ioctl(root, EXT4_IOC_SHUTDOWN, EXT4_GOING_FLAGS_NOLOGFLUSH)
        finally:
            os.close(root)


# Ask for a disk before a server: what comes first ends last.


@pytest.fixture
def ext4(tmp_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Disk]:
    """A file system with the data directory on it; skip the test if mounting is not allowed."""
    try:
        disk = Disk(tmp_path, tmp_path_factory.mktemp("image") / "ext4")
    except (FileNotFoundError, subprocess.CalledProcessError) as exc:
        give_up(f"{exc}: mounting is not allowed here")
    yield disk
    disk.unmount()


@pytest.fixture
def start(serve: Start) -> Start:
    """Start a gunicorn, and wait until all its workers are there."""

    def start_and_wait(*arguments: str, workers: int, **settings: str) -> Server:
        server = serve(f"--workers={workers}", *arguments, **settings)
        wait_until(lambda: len(server.workers()) == workers)
        return server

    return start_and_wait


def assert_each_once(acknowledged: set[str], stored: list[str]) -> None:
    lost = acknowledged.difference(stored)
    doubled = [project for project, lines in Counter(stored).items() if lines > 1]

    assert (len(lost), len(doubled)) == (0, 0), f"lost {lost}, doubled {doubled}"


def live_file(server: Server) -> Path:
    return max(server.data_dir.glob("events-*.jsonl"))


def assert_not_stored(answer: Answer) -> None:
    assert answer.status == 503
    assert int(answer.headers["retry-after"]) > 0
    assert answer.headers["x-telemetry-outcome"] == "failed"


def let_a_moment_pass() -> None:
    """Wait for a random moment, so that the next step does not always follow a response."""
    time.sleep(random.uniform(0, 0.02))


# Processes.


def test_kills_of_a_worker_and_of_the_whole_server_lose_nothing(start: Start) -> None:
    """A kill seldom tears a line, so each time one is torn by hand, too."""
    acknowledged: set[str] = set()
    for _ in range(2):
        server = start(workers=2)
        with Load(server, packages=PACKAGES) as load:
            load.wait_for(204)
            let_a_moment_pass()
            killed = server.workers()[0]
            os.kill(killed, signal.SIGKILL)
            wait_until(partial(has_replaced, server, {killed}))
            load.wait_for(204)
            assert set(load.statuses) <= {204, 0}
            let_a_moment_pass()
            server.kill()
        acknowledged |= load.projects()
        with live_file(server).open("ab") as file:
            file.write(b'{"id":"torn')
    last = start(workers=1)
    assert last.send_cli(projectId="last").status == 204

    assert_each_once(acknowledged | {"last"}, last.projects())


def has_replaced(server: Server, old: set[int]) -> bool:
    new = server.workers()
    return len(new) == 2 and old.isdisjoint(new)


# Disks.


def test_events_get_a_503_until_the_disk_takes_them(ext4: Disk, start: Start) -> None:
    server = start(workers=2, MIN_FREE_MB="0")
    with ext4.read_only():  # which no file must be open for
        assert_not_stored(server.send_cli())
        wait_until(lambda: server.send("GET", "/healthz").status == 503)  # of both workers
    with Load(server, clients=4, packages=PACKAGES) as load:
        load.wait_for(204, 10)
        workers = server.workers()
        for fault in (ext4.filled, partial(limited_file_size, server)) * 3:
            with fault():
                load.wait_for(503, 10)
                wait_until(lambda: server.send("GET", "/healthz").status == 503)
            load.wait_for(204, 10)

    assert set(load.statuses) == {204, 503}
    for sent in load.sent:
        if sent.answer.status != 204:
            assert_not_stored(sent.answer)
    stored = server.projects()
    assert_each_once(load.projects(), stored)
    assert load.projects(503).isdisjoint(stored)
    wait_until(lambda: server.send("GET", "/healthz").status == 200)
    assert server.workers() == workers


@contextlib.contextmanager
def limited_file_size(server: Server) -> Iterator[None]:
    """Make the kernel write the part of a line that fits, and then refuse the rest."""
    limit_file_size(server, live_file(server).stat().st_size + 10_000)
    yield
    limit_file_size(server, resource.RLIM_INFINITY)


def limit_file_size(server: Server, limit_bytes: int) -> None:
    for worker in server.workers():
        _, hard = resource.prlimit(worker, resource.RLIMIT_FSIZE)
        resource.prlimit(worker, resource.RLIMIT_FSIZE, (limit_bytes, hard))


def test_a_frozen_disk_delays_no_response_beyond_three_seconds(ext4: Disk, start: Start) -> None:
    """With no data directory yet; and more clients than are answered at once."""
    server = start(workers=1, MIN_FREE_MB="0")
    with ext4.frozen():
        in_time(lambda: server.send("GET", "/healthz"))
        assert_not_stored(in_time(lambda: server.send_cli(projectId="first")))
        assert in_time(lambda: server.send("GET", "/healthz")).status == 503
    # Each with a name of its own: the disk may yet finish the write of one that got a 503.
    names = map(str, itertools.count())
    wait_until(lambda: server.send_cli(projectId=next(names)).status == 204)
    with Load(server, clients=48) as load:
        load.wait_for(204)
        with ext4.frozen():
            in_time(lambda: server.send("GET", "/healthz"))
            load.wait_for(503, 150)
            assert server.send("GET", "/healthz").status == 503
        load.wait_for(204)
    assert server.send("GET", "/healthz").status == 200

    slowest_seconds = max(sent.seconds for sent in load.sent)
    assert slowest_seconds <= ANSWERED_WITHIN_SECONDS + NOISE_SECONDS
    assert set(load.statuses) == {204, 503}
    assert_each_once(load.projects(), server.projects())


def in_time(send: Callable[[], Answer]) -> Answer:
    began = time.monotonic()
    answer = send()
    assert time.monotonic() - began <= ANSWERED_WITHIN_SECONDS + NOISE_SECONDS
    return answer


def test_a_slow_disk_delays_no_request_and_a_stalled_one_no_stop(
    serve: Start, tmp_path: Path
) -> None:
    """A slow disk is not a stalled one: all events are stored, and share a few syncs."""
    disk = tmp_path / "faults.json"
    Faults(sync_seconds=0.65).write(disk)
    injected = ("--pythonpath=tests/support", f"--env=FAULTS={disk}", "injected:create_app()")
    server = serve(*injected, IP="hashed")
    # The first ones make the directory, the file and the key, with several syncs.
    wait_until(lambda: server.send_cli().status == 204)
    wait_until(lambda: answers_in_time(server, 200) == {204})

    stored = server.lines()
    for sync_seconds in (0.65, 1.2):
        Faults(sync_seconds=sync_seconds, sync_errors=1).write(disk)
        assert answers_in_time(server, 100) == {503}
    assert server.lines() == stored

    Faults(sync_seconds=PATIENCE_SECONDS).write(disk)
    assert in_time(server.send_cli).status == 503
    began = time.monotonic()
    assert server.stop() == 0
    assert time.monotonic() - began < PATIENCE_SECONDS / 3


def answers_in_time(server: Server, clients: int) -> set[int]:
    """Send that many events at once, and return their statuses."""
    with server.connections(clients) as connections:
        began = time.monotonic()
        for connection in connections:
            connection.sendall(cli_event(0, CLOSE))
        statuses = {read_answer(connection).status for connection in connections}
        assert time.monotonic() - began <= ANSWERED_WITHIN_SECONDS + NOISE_SECONDS
        return statuses


def test_a_power_cut_loses_nothing_that_was_acknowledged(ext4: Disk, start: Start) -> None:
    acknowledged: set[str] = set()
    for _ in range(2):
        acknowledged |= acknowledged_until_power_cut(ext4, start)
    last = start(workers=1, MIN_FREE_MB="0")
    assert last.send_cli(projectId="last").status == 204

    assert_each_once(acknowledged | {"last"}, last.projects())


def acknowledged_until_power_cut(disk: Disk, start: Start) -> set[str]:
    """Cut the power under load, and come back with the disk as the cut left it.

    What is acknowledged during the cut does not count: Linux may report a sync
    as done whose transaction it is aborting, and real power takes the server along.
    """
    server = start(workers=2, MIN_FREE_MB="0")
    with Load(server) as load:
        load.wait_for(204)
        assert set(load.statuses) == {204}
        let_a_moment_pass()
        acknowledged = load.projects()
        disk.cut_power()
        load.wait_for(503, 10)
        assert set(load.statuses) == {204, 503}
        server.kill()
    disk.unmount()
    disk.mount()
    return acknowledged
