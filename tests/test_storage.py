"""Files and bytes.  Only the disk and the clock are faked: `storage.os` is the disk."""

import errno
import gzip
import json
import os
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, timedelta
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import pytest

import storage
from storage import Appender, Housekeeper, NotStored, Store, timestamp

DAY = "2026-11-23"
NAME = f"events-{DAY}.jsonl"
EVENT = {"id": "x", "received_at": f"{DAY}T23:59:59.999Z"}
TODAY = date(2026, 11, 23)


def line(n: int, length: int = 60) -> bytes:
    return json.dumps({"n": n}).encode().ljust(length - 1) + b"\n"


class Disk:
    """`os`, but `fault` sees each system call first; it may raise, or answer instead."""

    CALLS = "open write pwrite pread ftruncate fsync fstat stat statvfs fchmod close rename unlink"

    def __init__(self) -> None:
        self.heal()

    def heal(self) -> None:
        self.calls: list[tuple[str, Any]] = []
        self.fault: Callable[[int, str, Any], Any] = lambda index, name, arguments: None

    def __getattr__(self, name: str) -> Any:
        real = getattr(os, name)
        if name not in self.CALLS.split():
            return real

        def call(*arguments: Any, **options: Any) -> Any:
            self.calls.append((name, arguments))
            try:
                answer = self.fault(len(self.calls) - 1, name, arguments)
            except OSError:
                if name == "close":  # Linux frees the descriptor whatever it answers
                    real(*arguments)
                raise
            return real(*arguments, **options) if answer is None else answer

        return call

    def fail_at(self, index: int, code: int) -> None:
        def fault(at: int, name: str, arguments: Any) -> None:
            if at == index:
                raise OSError(code, os.strerror(code))

        self.calls, self.fault = [], fault

    def fail(self, failing: str, code: int = errno.EIO) -> None:
        def fault(at: int, name: str, arguments: Any) -> None:
            if name in failing.split():
                raise OSError(code, os.strerror(code))

        self.calls, self.fault = [], fault

    def fill_up_after(self, length: int) -> None:
        """The next write stops after `length` bytes, and the disk is full from then on."""
        room = length

        def fault(at: int, name: str, arguments: Any) -> int | None:
            nonlocal room
            if name != "write":
                return None
            if room == 0:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            fd, content = arguments
            written = os.write(fd, content[:room])
            room -= written
            return written

        self.calls, self.fault = [], fault


@pytest.fixture
def disk(monkeypatch: pytest.MonkeyPatch) -> Disk:
    disk = Disk()
    monkeypatch.setattr(storage, "os", disk)
    return disk


@pytest.fixture(autouse=True)
def patience(monkeypatch: pytest.MonkeyPatch) -> None:
    """A slow test machine is no stalled disk."""
    monkeypatch.setattr(storage, "MAX_WAIT_SECONDS", 60)
    monkeypatch.setattr(storage, "STALLED_AFTER_SECONDS", 60)


@pytest.fixture
def make_store(data_dir: Path) -> Iterator[Callable[..., Store]]:
    stores: list[Store] = []

    def make(**options: Any) -> Store:
        stores.append(Store(data_dir, **options))
        return stores[-1]

    yield make
    for store in stores:
        store.close()


@pytest.fixture
def store(make_store: Callable[..., Store]) -> Store:
    return make_store()


@pytest.fixture
def make_keeper(store: Store) -> Callable[..., Housekeeper]:
    return partial(Housekeeper, store, compress_after_days=0, retention_days=0)


# Records and names.


def test_a_timestamp_has_milliseconds_and_z() -> None:
    assert timestamp(datetime(2026, 1, 2, 3, 4, 5, 6999, tzinfo=UTC)) == "2026-01-02T03:04:05.006Z"
    assert timestamp(datetime(2026, 1, 2, tzinfo=UTC)) == "2026-01-02T00:00:00.000Z"


def test_an_event_goes_to_the_file_of_its_own_day(store: Store, data_dir: Path) -> None:
    """Also when the clock jumps back."""
    for day in ("2026-11-23", "2026-11-24", "2026-11-23", "2031-01-01"):
        store.append(EVENT | {"received_at": f"{day}T00:00:00.000Z"})

    assert {path.name: path.read_bytes().count(b"\n") for path in data_dir.iterdir()} == {
        "events-2026-11-23.jsonl": 2,
        "events-2026-11-24.jsonl": 1,
        "events-2031-01-01.jsonl": 1,
    }


def test_a_line_is_compact_printable_ascii(store: Store, data_dir: Path) -> None:
    store.append(EVENT | {"text": "é\u2028\x7f\x9b😀"})

    assert (data_dir / NAME).read_bytes() == (
        b'{"id":"x","received_at":"2026-11-23T23:59:59.999Z",'
        b'"text":"\\u00e9\\u2028\\u007f\\u009b\\ud83d\\ude00"}\n'
    )


def test_files_are_0640_in_a_directory_of_0750(store: Store, data_dir: Path) -> None:
    before = os.umask(0o077)
    try:
        store.note_refusal(EVENT)
        store.append(EVENT)
        store.close()
    finally:
        os.umask(before)

    assert data_dir.stat().st_mode & 0o777 == 0o750
    assert {path.stat().st_mode & 0o777 for path in data_dir.iterdir()} == {0o640}


# One commit, and every way it can fail.


def test_acknowledged_means_written_synced_and_named(disk: Disk, data_dir: Path) -> None:
    data_dir.mkdir()
    steps = []

    def note(at: int, name: str, arguments: Any) -> None:
        if name in ("write", "fsync"):
            is_directory = Path(f"/proc/self/fd/{arguments[0]}").is_dir()
            steps.append((name, "directory" if is_directory else "file"))

    disk.fault = note
    appender = Appender(data_dir)
    appender.append(NAME, line(1))
    appender.append(NAME, line(2))

    first, later = steps[:3], steps[3:]
    assert first == [("write", "file"), ("fsync", "file"), ("fsync", "directory")]
    assert later == [("write", "file"), ("fsync", "file")]


@pytest.mark.parametrize("code", [errno.EIO, errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EMFILE])
@pytest.mark.parametrize("situation", ["new file", "open file", "file of another process"])
def test_whichever_call_fails_only_acknowledged_lines_stay(
    disk: Disk, data_dir: Path, situation: str, code: int
) -> None:
    """The first call fails, then the second, ... until one run meets no fault any more."""
    for index in range(200):
        path = data_dir / f"events-2026-11-{situation[:1]}{index}.jsonl"
        appender, acknowledged = Appender(data_dir), b""
        disk.heal()
        if situation != "new file":
            (appender if situation == "open file" else Appender(data_dir)).append(
                path.name, line(0)
            )
            acknowledged = line(0)
        disk.fail_at(index, code)
        try:
            appender.append(path.name, line(1) + line(2))
            acknowledged += line(1) + line(2)
        except OSError:
            pass
        reached = len(disk.calls) > index
        disk.heal()

        assert (path.read_bytes() if path.exists() else b"") == acknowledged, disk.calls
        appender.append(path.name, line(3))
        assert path.read_bytes() == acknowledged + line(3)
        appender.close()
        if not reached:
            break
    assert index > 8


BATCH = line(1) + line(2) + line(3)


@pytest.mark.parametrize("length", range(len(BATCH)))
def test_a_write_that_stops_short_leaves_nothing(disk: Disk, data_dir: Path, length: int) -> None:
    appender = Appender(data_dir)
    appender.append(NAME, line(0))
    disk.fill_up_after(length)
    with pytest.raises(OSError, match="No space left"):
        appender.append(NAME, BATCH)
    disk.heal()

    assert (data_dir / NAME).read_bytes() == line(0)
    appender.append(NAME, line(4))
    assert (data_dir / NAME).read_bytes() == line(0) + line(4)


@pytest.mark.parametrize("failing", ["fsync ftruncate", "fsync ftruncate pread", "fsync open"])
def test_what_could_not_be_cut_off_is_cut_off_before_the_next_append(
    disk: Disk, data_dir: Path, failing: str
) -> None:
    appender = Appender(data_dir)
    appender.append(NAME, line(0))
    seen: list[str] = []

    def fault(at: int, name: str, arguments: Any) -> None:
        seen.append(name)
        if "fsync" in seen and name in failing.split():
            raise OSError(errno.EIO, "fsync")

    disk.fault = fault
    with pytest.raises(OSError, match="fsync"):
        appender.append(NAME, BATCH)
    disk.heal()

    appender.append(NAME, line(4))
    assert (data_dir / NAME).read_bytes() == line(0) + line(4)


def test_a_file_that_cannot_be_mended_holds_up_nothing_once_it_is_moved_away(
    disk: Disk, data_dir: Path
) -> None:
    appender = Appender(data_dir)
    appender.append(NAME, line(0))
    bad = (data_dir / NAME).stat().st_ino

    def fault(at: int, name: str, arguments: Any) -> None:
        if name in ("fsync", "ftruncate") and os.fstat(arguments[0]).st_ino == bad:
            raise OSError(errno.EIO, name)

    disk.fault = fault
    for n in (1, 2):
        with pytest.raises(OSError, match=r"fsync|ftruncate"):
            appender.append(NAME, line(n))
    (data_dir / NAME).rename(data_dir / "bad")
    appender.append(NAME, line(3))

    assert (data_dir / NAME).read_bytes() == line(3)


@pytest.mark.parametrize("length", [1, 60, 61, 179])
def test_a_torn_write_that_could_not_be_cut_off_is_cut_off_later(
    disk: Disk, data_dir: Path, length: int
) -> None:
    appender = Appender(data_dir)
    appender.append(NAME, line(0))
    disk.fill_up_after(length)
    write_fault = disk.fault

    def fault(at: int, name: str, arguments: Any) -> Any:
        if name == "ftruncate":
            raise OSError(errno.EIO, "ftruncate")
        return write_fault(at, name, arguments)

    disk.fault = fault
    with pytest.raises(OSError, match="ftruncate"):
        appender.append(NAME, BATCH)
    disk.heal()

    appender.append(NAME, line(4))
    assert (data_dir / NAME).read_bytes() == line(0) + line(4)


def test_a_failed_sync_is_not_repaired_by_another_sync(disk: Disk, data_dir: Path) -> None:
    """After it the kernel calls lost pages clean: only what is written again counts."""
    appender, other = Appender(data_dir), Appender(data_dir)
    appender.append(NAME, line(0))
    failed = []

    def fault(at: int, name: str, arguments: Any) -> None:
        if name == "fsync" and not failed:
            failed.append(name)
            disk.fault = lambda at, name, arguments: None
            other.append(NAME, line(7))  # another worker, before the first can undo
            disk.calls = []
            raise OSError(errno.EIO, "fsync")

    disk.fault = fault
    with pytest.raises(OSError, match="fsync"):
        appender.append(NAME, BATCH)

    content = (data_dir / NAME).read_bytes()
    assert content == line(0) + BATCH + line(7), "another worker's lines are never cut off"
    rewritten = [arguments[1:] for name, arguments in disk.calls if name == "pwrite"]
    assert rewritten == [(BATCH, len(line(0)))]
    assert [name for name, _ in disk.calls if name in ("pwrite", "fsync")] == ["pwrite", "fsync"]
    appender.append(NAME, line(8))
    assert (data_dir / NAME).read_bytes() == content + line(8)


def test_a_descriptor_whose_sync_failed_is_dropped(disk: Disk, data_dir: Path) -> None:
    appender = Appender(data_dir)
    appender.append(NAME, line(0))
    disk.calls, failing = [], iter(["fsync"])

    def fail_once(at: int, name: str, arguments: Any) -> None:
        if name == "fsync" and next(failing, None):
            raise OSError(errno.EIO, "fsync")

    disk.fault = fail_once
    with pytest.raises(OSError, match="fsync"):
        appender.append(NAME, line(1))
    appender.append(NAME, line(2))

    opened = [arguments[0] for name, arguments in disk.calls if name == "open"]
    assert opened.count(data_dir / NAME) == 1


def test_no_descriptor_is_lost_when_the_disk_fails(disk: Disk, data_dir: Path) -> None:
    appender = Appender(data_dir)
    appender.append(NAME, line(0))
    before = len(list(Path("/proc/self/fd").iterdir()))
    for failing in ("write", "fsync", "ftruncate fsync", "fstat", "pread", "statvfs"):
        disk.fail(failing)
        with pytest.raises(OSError, match="error"):
            appender.append(NAME, line(1))
    disk.heal()
    appender.append(NAME, line(2))

    assert len(list(Path("/proc/self/fd").iterdir())) == before
    assert (data_dir / NAME).read_bytes() == line(0) + line(2)


def test_below_the_free_space_wanted_nothing_is_written(store: Store, data_dir: Path) -> None:
    store.append(EVENT)
    free_mb = storage.free_bytes(data_dir) // 2**20
    full = Store(data_dir, min_free_mb=free_mb * 2)

    with pytest.raises(NotStored, match="TELEMETRY_MIN_FREE_MB"):
        full.append(EVENT)
    assert full.health()["ok"] is False
    assert (data_dir / NAME).read_bytes().count(b"\n") == 1
    full.close()


# Torn tails.


@pytest.mark.parametrize("kept", range(len(line(2))))
def test_appending_cuts_off_a_torn_line_and_keeps_every_whole_one(
    data_dir: Path, caplog: pytest.LogCaptureFixture, kept: int
) -> None:
    """While the others run on, too: the file is open already."""
    appender = Appender(data_dir)
    appender.append(NAME, line(1))
    with (data_dir / NAME).open("ab") as torn:
        torn.write(line(2)[:kept])

    appender.append(NAME, line(3))

    assert (data_dir / NAME).read_bytes() == line(1) + line(3)
    assert (f"cut off a torn tail of {kept} bytes" in caplog.text) == (kept > 0)


@pytest.mark.parametrize(
    ("tail", "cut"),
    [
        pytest.param(b"\0" * 5000, 5000, id="NUL bytes only"),
        pytest.param(b"\0" * 512 + line(8), 572, id="and a whole line behind them"),
        pytest.param(line(8)[:30] + b"\0" * 29 + b"\n" + line(9), 120, id="within a line"),
        pytest.param(b"x" * 200_000, 200_000, id="a long torn line"),
    ],
)
def test_what_a_power_cut_leaves_is_cut_off(
    data_dir: Path, caplog: pytest.LogCaptureFixture, tail: bytes, cut: int
) -> None:
    data_dir.mkdir()
    (data_dir / NAME).write_bytes(line(1) + tail)

    Appender(data_dir).append(NAME, line(3))

    assert (data_dir / NAME).read_bytes() == line(1) + line(3)
    assert f"cut off a torn tail of {cut} bytes" in caplog.text


def test_housekeeping_cuts_torn_tails_of_files_nobody_writes_to(
    make_keeper: Callable[..., Housekeeper], data_dir: Path
) -> None:
    data_dir.mkdir()
    for name in ("events-2026-11-20.jsonl", "refused-2026-11-20.jsonl", NAME):
        (data_dir / name).write_bytes(line(1) + b'{"torn')

    make_keeper().keep_house(TODAY)

    assert {path.read_bytes() for path in data_dir.iterdir()} == {line(1)}


def test_in_files_older_than_yesterdays_only_the_end_is_torn(
    make_keeper: Callable[..., Housekeeper], data_dir: Path
) -> None:
    """What an editor or a bad disk did to one of their lines is not taken for a power cut."""
    write_days(data_dir, 3)
    content = line(1) + b"\0\n" + line(2)
    names = [f"events-2026-11-{day}.jsonl" for day in (21, 22, 23)]
    for name in names:
        (data_dir / name).write_bytes(content + b"torn")
    make_keeper().keep_house(TODAY)

    kept = [(data_dir / name).read_bytes() for name in names]
    assert kept == [content, line(1), line(1)]


# Admins' hands.


def test_a_live_file_that_was_moved_is_left_and_a_new_one_begun(data_dir: Path) -> None:
    appender = Appender(data_dir)
    appender.append(NAME, line(1))
    (data_dir / NAME).rename(data_dir / "taken.jsonl")
    appender.append(NAME, line(2))

    assert (data_dir / "taken.jsonl").read_bytes() == line(1)
    assert (data_dir / NAME).read_bytes() == line(2)


def test_a_live_file_that_was_deleted_is_begun_anew(data_dir: Path) -> None:
    appender = Appender(data_dir)
    for n in range(3):
        appender.append(NAME, line(n))
        (data_dir / NAME).unlink()
    appender.append(NAME, line(9))

    assert (data_dir / NAME).read_bytes() == line(9)


def test_a_file_deleted_between_write_and_sync_is_written_again(disk: Disk, data_dir: Path) -> None:
    appender = Appender(data_dir)
    appender.append(NAME, line(1))

    def delete_once(at: int, name: str, arguments: Any) -> None:
        if name == "fsync":
            disk.heal()
            (data_dir / NAME).unlink()

    disk.fault = delete_once
    appender.append(NAME, line(2))

    assert (data_dir / NAME).read_bytes() == line(2)


def test_a_live_file_that_was_truncated_grows_from_there(data_dir: Path) -> None:
    appender = Appender(data_dir)
    appender.append(NAME, line(1) + line(2))
    os.truncate(data_dir / NAME, 70)  # in the middle of a line
    appender.append(NAME, line(3))

    assert (data_dir / NAME).read_bytes() == line(1) + line(3)


def test_a_directory_that_was_moved_away_is_made_anew(data_dir: Path) -> None:
    appender = Appender(data_dir)
    appender.append(NAME, line(1))
    data_dir.rename(data_dir.with_name("old"))
    appender.append(NAME, line(2))

    assert (data_dir / NAME).read_bytes() == line(2)


def test_a_link_in_the_place_of_a_file_is_not_followed(data_dir: Path, tmp_path: Path) -> None:
    data_dir.mkdir()
    (data_dir / NAME).symlink_to(tmp_path / "elsewhere")

    with pytest.raises(OSError, match="symbolic"):
        Appender(data_dir).append(NAME, line(1))
    assert not (tmp_path / "elsewhere").exists()


# Several at once.


def test_events_that_wait_together_share_one_write_and_one_fsync(
    disk: Disk, store: Store, data_dir: Path
) -> None:
    store.append(EVENT)
    syncing, go_on = threading.Event(), threading.Event()

    def hold_the_first_sync(at: int, name: str, arguments: Any) -> None:
        if name == "fsync" and not go_on.is_set():
            syncing.set()
            go_on.wait(60)

    disk.fault = hold_the_first_sync
    with ThreadPoolExecutor(20) as pool:
        first = pool.submit(store.append, EVENT)
        syncing.wait(60)
        others = [pool.submit(store.append, EVENT | {"n": n}) for n in range(19)]
        while not store.waiting or store.waiting[NAME].lines.count(b"\n") < len(others):
            threading.Event().wait(0.001)
        assert not any(future.done() for future in [first, *others]), "answered before the sync"
        disk.calls = []
        go_on.set()

    names = [name for name, _ in disk.calls]
    assert (names.count("write"), names.count("fsync")) == (1, 1)
    assert (data_dir / NAME).read_bytes().count(b"\n") == 21


def append_many(directory: Path, worker: int) -> None:
    appender = Appender(directory)
    for n in range(250):
        appender.append(NAME, line(worker * 1000 + n, 60 + n))


def test_processes_append_whole_lines(data_dir: Path) -> None:
    context = get_context("fork")
    workers = [context.Process(target=append_many, args=(data_dir, n)) for n in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()

    numbers = [json.loads(found)["n"] for found in (data_dir / NAME).read_bytes().splitlines()]
    assert sorted(numbers) == [worker * 1000 + n for worker in range(4) for n in range(250)]


def hold_lock(directory: Path, held: Any, release: Any) -> None:
    with storage.locked(directory):
        held.set()
        release.wait(60)


def test_the_lock_of_one_process_holds_up_another_that_was_forked_later(data_dir: Path) -> None:
    """A descriptor opened before the fork would be shared, and exclude nobody."""
    Appender(data_dir).append(NAME, line(0))
    context = get_context("fork")
    held, release = context.Event(), context.Event()
    child = context.Process(target=hold_lock, args=(data_dir, held, release))
    child.start()
    held.wait(60)
    done = threading.Event()
    waiting = threading.Thread(
        target=lambda: (Appender(data_dir).append(NAME, line(1)), done.set()), daemon=True
    )
    waiting.start()

    assert not done.wait(0.2)
    release.set()
    assert done.wait(60)
    child.join()


def test_the_lock_is_not_held_while_the_disk_syncs(disk: Disk, data_dir: Path) -> None:
    """So a second worker writes while the first one's lines go to disk."""
    first, second = Appender(data_dir), Appender(data_dir)
    first.append(NAME, line(0))
    second.append(NAME, line(1))

    def append_meanwhile(at: int, name: str, arguments: Any) -> None:
        if name == "fsync":
            disk.heal()
            second.append(NAME, line(3))

    disk.fault = append_meanwhile
    first.append(NAME, line(2))

    assert (data_dir / NAME).read_bytes() == line(0) + line(1) + line(2) + line(3)


# A stalled disk.


@dataclass
class Stall:
    """The disk hangs in its first fsync, `begun`, until it is `over`."""

    begun: threading.Event = field(default_factory=threading.Event)
    over: threading.Event = field(default_factory=threading.Event)

    def fault(self, at: int, name: str, arguments: Any) -> None:
        if name == "fsync":
            self.begun.set()
            self.over.wait(60)


@pytest.fixture
def stall(
    disk: Disk, monkeypatch: pytest.MonkeyPatch, make_store: Callable[..., Store]
) -> Iterator[Stall]:
    """A disk that hangs, and little patience with it."""
    monkeypatch.setattr(storage, "MAX_WAIT_SECONDS", 0.2)
    monkeypatch.setattr(storage, "STALLED_AFTER_SECONDS", 0.1)
    stall = Stall()
    disk.fault = stall.fault
    yield stall
    stall.over.set()


def test_a_stalled_disk_is_answered_in_time_and_then_at_once(
    disk: Disk, stall: Stall, store: Store, data_dir: Path
) -> None:
    with pytest.raises(NotStored, match="no answer from the disk"):
        store.append(EVENT)
    assert store.health()["ok"] is False
    for _ in range(3):
        with pytest.raises(NotStored, match="does not keep up"):
            store.append(EVENT)
    assert store.waiting == {}

    stall.over.set()
    while store.is_stalled():
        threading.Event().wait(0.001)
    store.append(EVENT | {"id": "after"})
    assert json.loads((data_dir / NAME).read_bytes().splitlines()[-1])["id"] == "after"
    assert store.health()["ok"] is True


def test_what_gave_up_waiting_before_its_turn_is_never_written(
    stall: Stall, store: Store, data_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(storage, "STALLED_AFTER_SECONDS", 60)
    with ThreadPoolExecutor(9) as pool:
        first = pool.submit(store.append, EVENT)
        assert stall.begun.wait(60)
        others = [pool.submit(store.append, EVENT | {"id": str(n)}) for n in range(8)]
        errors = [future.exception() for future in [first, *others]]
    stall.over.set()
    store.close()

    assert [type(error) for error in errors] == [NotStored] * 9
    assert (data_dir / NAME).read_bytes().count(b"\n") == 1, "the disk finished the one it had"
    assert store.waiting == {}


def test_the_queue_is_bounded(stall: Stall, store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(storage, "MAX_WAITING_BYTES", 3 * 60)
    monkeypatch.setattr(storage, "STALLED_AFTER_SECONDS", 60)
    store.note_refusal(EVENT)
    while store.waiting:  # taken by the writer, which now hangs in its first fsync
        threading.Event().wait(0.001)
    for _ in range(10):
        store.note_refusal(EVENT)

    assert store.waiting[f"refused-{DAY}.jsonl"].lines.count(b"\n") == 3
    with pytest.raises(NotStored, match="does not keep up"):
        store.append(EVENT | {"text": "x" * 70})


def test_what_is_handed_in_before_the_first_is_waited_for_is_one_batch(
    disk: Disk, store: Store, data_dir: Path
) -> None:
    for batch in [store.submit(EVENT) for _ in range(5)]:
        store.wait_for(batch)

    assert (data_dir / NAME).read_bytes().count(b"\n") == 5
    assert [name for name, _ in disk.calls].count("write") == 1


def test_the_time_to_wait_begins_when_somebody_waits(
    store: Store, data_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not when the event is handed in: until then the writer is not called."""
    now = [0.0]
    monkeypatch.setattr(storage.time, "monotonic", lambda: now[0])
    batch = store.submit(EVENT)
    now[0] = 1000.0
    store.wait_for(batch)

    assert (data_dir / NAME).read_bytes().count(b"\n") == 1


def test_the_events_of_a_stalled_batch_are_not_waited_for_one_after_the_other(
    stall: Stall, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(storage, "STALLED_AFTER_SECONDS", 60)
    batches = [store.submit(EVENT) for _ in range(100)]
    began = time.monotonic()
    for batch in batches:
        with pytest.raises(NotStored, match="no answer from the disk"):
            store.wait_for(batch)

    assert time.monotonic() - began < 100 * storage.MAX_WAIT_SECONDS / 2


# Errors, as admins see them.


def test_trouble_is_logged_once_and_again_when_it_is_over(
    disk: Disk, store: Store, caplog: pytest.LogCaptureFixture
) -> None:
    disk.fail("write", errno.ENOSPC)
    for _ in range(5):
        with pytest.raises(NotStored):
            store.append(EVENT)
    disk.heal()
    for _ in range(5):
        store.append(EVENT)

    said = [record.getMessage() for record in caplog.records]
    assert [message.split(":")[0] for message in said] == [
        "events are not being stored",
        "events are being stored again, after",
    ]
    assert "No space left on device" in said[0]
    assert NAME in said[0]


def test_health_tells_the_last_error_and_trusts_the_disk_again_after_a_while(
    disk: Disk, make_store: Callable[..., Store]
) -> None:
    now = [datetime(2026, 11, 23, 12, tzinfo=UTC)]
    store = make_store(clock=lambda: now[0])
    disk.fail("fsync")
    with pytest.raises(NotStored):
        store.append(EVENT)

    health = store.health()
    assert (health["ok"], health["last_error_at"]) == (False, "2026-11-23T12:00:00.000Z")
    assert "Input/output error" in health["last_error"]
    now[0] += timedelta(minutes=1)
    assert store.health()["ok"] is True


def test_health_is_of_events_whatever_becomes_of_refusals(
    store: Store, data_dir: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (data_dir / f"refused-{DAY}.jsonl").mkdir(parents=True)
    store.append(EVENT)
    store.note_refusal(EVENT)
    store.append(EVENT)
    store.note_refusal(EVENT)
    store.append(EVENT)

    assert store.health()["ok"] is True
    assert [record.getMessage()[:29] for record in caplog.records] == [
        "refusals are not being stored"
    ]


def test_a_refusal_that_is_stored_says_nothing_of_events_that_are_not(
    store: Store, data_dir: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (data_dir / NAME).mkdir(parents=True)
    for _ in range(3):
        with pytest.raises(NotStored):
            store.append(EVENT)
        store.note_refusal(EVENT)
    store.close()

    assert (data_dir / f"refused-{DAY}.jsonl").read_bytes().count(b"\n") == 3
    assert store.health()["ok"] is False
    assert len(caplog.records) == 1


def test_without_room_for_a_thread_an_event_is_not_stored_and_the_next_one_is(
    store: Store, data_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", refuse)
        patch.setattr(storage, "MAX_WAIT_SECONDS", 0.01)
        with pytest.raises(NotStored):
            store.append(EVENT)
    store.append(EVENT)

    assert (data_dir / NAME).read_bytes().count(b"\n") == 1


def test_health_is_bad_where_the_directory_may_not_even_be_looked_for(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(path: Path) -> bool:
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    monkeypatch.setattr(Path, "exists", refuse)

    assert store.health()["ok"] is False


def test_health_writes_nothing(disk: Disk, store: Store) -> None:
    store.append(EVENT)
    disk.calls = []
    store.health()

    assert {name for name, _ in disk.calls} == {"statvfs"}


# Refusals.


def test_refusals_are_noted_up_to_a_size(
    store: Store, data_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    length = len(storage.encode(EVENT)) + 1
    monkeypatch.setattr(storage, "MAX_REFUSED_BYTES", 3 * length)
    for _ in range(5):
        store.note_refusal(EVENT)
    store.close()

    assert (data_dir / f"refused-{DAY}.jsonl").stat().st_size == 3 * length


def test_a_refusal_that_cannot_be_noted_is_only_logged(
    disk: Disk, store: Store, caplog: pytest.LogCaptureFixture
) -> None:
    disk.fail("write", errno.ENOSPC)
    store.note_refusal(EVENT)
    store.close()

    assert f"refused-{DAY}.jsonl: [Errno 28] No space left on device" in caplog.text


def test_refusals_are_not_synced(disk: Disk, store: Store, data_dir: Path) -> None:
    data_dir.mkdir()
    store.note_refusal(EVENT)
    store.close()

    assert "fsync" not in [name for name, _ in disk.calls]
    assert (data_dir / f"refused-{DAY}.jsonl").exists()


# Keys for hashed addresses.


def test_a_days_key_is_one_for_all_and_readable_by_the_owner_only(
    make_store: Callable[..., Store], data_dir: Path
) -> None:
    one, another = make_store(), make_store()

    assert one.address_key(DAY) == another.address_key(DAY) != one.address_key("2026-11-24")
    path = data_dir / f"address-key-{DAY}"
    assert (path.stat().st_mode & 0o777, len(path.read_bytes())) == (0o600, 32)


def test_a_key_is_destroyed_when_its_day_is_over_by_two_days(
    make_keeper: Callable[..., Housekeeper], store: Store, data_dir: Path
) -> None:
    key = store.address_key(DAY)
    admins = data_dir / "address-key-2020-01-01.backup"
    admins.touch()
    make_keeper().keep_house(TODAY + timedelta(days=2))
    assert store.address_key(DAY) == key
    make_keeper().keep_house(TODAY + timedelta(days=3))

    assert list(data_dir.glob("address-key-*")) == [admins]
    assert store.address_keys == {}


# Housekeeping.


def write_days(data_dir: Path, days: int, until: date = TODAY) -> dict[str, bytes]:
    data_dir.mkdir(exist_ok=True)
    content = {}
    for age in range(days):
        name = f"events-{until - timedelta(days=age)}.jsonl"
        content[name] = b"".join(line(age * 100 + n) for n in range(5))
        (data_dir / name).write_bytes(content[name])
    return content


def read_days(data_dir: Path) -> dict[str, bytes]:
    """What the files hold, by the name of the plain one, compressed part first."""
    content: dict[str, bytes] = {}
    for path in sorted(data_dir.glob("events-*.jsonl*"), reverse=True):
        raw = path.read_bytes()
        name = path.name.removesuffix(".gz")
        content[name] = content.get(name, b"") + (
            gzip.decompress(raw) if path.suffix == ".gz" else raw
        )
    return content


def test_files_are_compressed_and_deleted_by_their_age(
    make_keeper: Callable[..., Housekeeper], data_dir: Path
) -> None:
    content = write_days(data_dir, 12)
    make_keeper(compress_after_days=7, retention_days=10).keep_house(TODAY)

    ages = {
        (TODAY - date.fromisoformat(path.name[7:17])).days: path.suffix
        for path in data_dir.iterdir()
    }
    assert ages == {age: ".gz" if age >= 7 else ".jsonl" for age in range(10)}
    kept = {name for name in content if (TODAY - date.fromisoformat(name[7:17])).days < 10}
    assert read_days(data_dir) == {name: content[name] for name in kept}
    assert {path.stat().st_mode & 0o777 for path in data_dir.glob("*.gz")} == {0o640}


def test_a_days_plain_file_goes_only_when_the_name_of_the_compressed_one_is_on_disk(
    make_keeper: Callable[..., Housekeeper], data_dir: Path, disk: Disk
) -> None:
    write_days(data_dir, 2)
    make_keeper(compress_after_days=1).keep_house(TODAY)

    calls = [name for name, _ in disk.calls]
    renamed = calls.index("rename")
    assert "fsync" in calls[renamed : calls.index("unlink", renamed)]


def test_0_never_deletes_and_never_compresses(
    make_keeper: Callable[..., Housekeeper], data_dir: Path
) -> None:
    content = write_days(data_dir, 400)
    make_keeper().keep_house(TODAY)

    assert {path.name: path.read_bytes() for path in data_dir.iterdir()} == content


def test_a_clock_that_jumps_ahead_does_not_wipe_the_archive(
    make_keeper: Callable[..., Housekeeper], data_dir: Path
) -> None:
    content = write_days(data_dir, 12)
    make_keeper(compress_after_days=7, retention_days=30).keep_house(date(2036, 1, 1))

    assert read_days(data_dir) == content


def test_only_files_of_the_two_patterns_are_touched(
    make_keeper: Callable[..., Housekeeper], data_dir: Path
) -> None:
    data_dir.mkdir()
    names = ["notes.txt", "events-2020-01-01.jsonl.bak", "events-2020-02-31.jsonl"]
    names += ["events-2020-1-1.jsonl", "xevents-2020-01-01.jsonl", "refused-2020-01-01.json"]
    for name in names:
        (data_dir / name).write_bytes(b"torn")
    make_keeper(compress_after_days=1, retention_days=2).keep_house(TODAY)

    assert {path.name: path.read_bytes() for path in data_dir.iterdir()} == dict.fromkeys(
        names, b"torn"
    )


def test_refusals_are_compressed_and_deleted_too(
    make_keeper: Callable[..., Housekeeper], data_dir: Path
) -> None:
    write_days(data_dir, 1)
    for day in ("2026-11-10", "2026-11-22"):
        (data_dir / f"refused-{day}.jsonl").write_bytes(line(1))
    make_keeper(compress_after_days=1, retention_days=10).keep_house(TODAY)

    assert [path.name for path in data_dir.glob("refused-*")] == ["refused-2026-11-22.jsonl.gz"]


def test_late_events_are_folded_into_a_day_that_was_compressed(
    make_keeper: Callable[..., Housekeeper], data_dir: Path
) -> None:
    old = "events-2026-11-01.jsonl"
    keeper = make_keeper(compress_after_days=1)
    write_days(data_dir, 1)
    appender = Appender(data_dir)
    for n in range(4):
        appender.append(old, line(n))
        keeper.keep_house(TODAY)

    assert not (data_dir / old).exists()
    assert gzip.decompress((data_dir / f"{old}.gz").read_bytes()) == b"".join(map(line, range(4)))


@pytest.mark.parametrize("more", [b"", line(9)], ids=["unchanged", "grown since"])
@pytest.mark.parametrize(
    "packed",
    [
        pytest.param([line(1) + line(2)], id="one member"),
        pytest.param([line(5), line(1) + line(2)], id="behind older lines"),
        pytest.param([line(1), line(2)], id="in two members, after two kills"),
    ],
)
def test_lines_that_are_in_the_gz_already_are_not_doubled(
    make_keeper: Callable[..., Housekeeper], data_dir: Path, packed: list[bytes], more: bytes
) -> None:
    """As after a kill between the rename of the .gz and the unlink of the plain file."""
    write_days(data_dir, 1)
    plain = data_dir / "events-2026-11-01.jsonl"
    plain.with_suffix(".jsonl.gz").write_bytes(b"".join(map(gzip.compress, packed)))
    plain.write_bytes(line(1) + line(2) + more)
    make_keeper(compress_after_days=1).keep_house(TODAY)

    assert not plain.exists()
    found = gzip.decompress(plain.with_suffix(".jsonl.gz").read_bytes())
    assert found == b"".join(packed) + more


def test_a_file_is_not_compressed_while_a_writer_syncs_it(
    disk: Disk, make_keeper: Callable[..., Housekeeper], data_dir: Path
) -> None:
    """Finding it gone the writer would write its lines again, and they would be there twice."""
    write_days(data_dir, 2)
    plain = data_dir / "events-2026-11-22.jsonl"
    keeper = make_keeper(compress_after_days=1)

    def keep_house_meanwhile(at: int, name: str, arguments: Any) -> None:
        if name == "fsync":
            disk.heal()
            Appender(data_dir).append(plain.name, line(98))  # another worker's
            keeper.keep_house(TODAY)

    disk.fault = keep_house_meanwhile
    Appender(data_dir).append(plain.name, line(99))
    assert plain.exists()
    keeper.keep_house(TODAY)

    assert [read_days(data_dir)[plain.name].count(line(n)) for n in (98, 99)] == [1, 1]
    assert not plain.exists()


def test_a_damaged_gz_is_left_alone_and_the_others_are_done(
    make_keeper: Callable[..., Housekeeper], data_dir: Path, caplog: pytest.LogCaptureFixture
) -> None:
    content = write_days(data_dir, 3)
    plain = data_dir / "events-2026-11-21.jsonl"
    damaged = gzip.compress(line(1))[:-4]
    plain.with_suffix(".jsonl.gz").write_bytes(damaged)
    make_keeper(compress_after_days=1).keep_house(TODAY)

    assert plain.read_bytes() == content[plain.name]
    assert plain.with_suffix(".jsonl.gz").read_bytes() == damaged
    assert (data_dir / "events-2026-11-22.jsonl.gz").exists()
    assert "events-2026-11-21.jsonl: left as it is" in caplog.text


def test_a_gz_that_ends_in_a_torn_line_swallows_no_other(
    make_keeper: Callable[..., Housekeeper], data_dir: Path
) -> None:
    """As when an admin compresses a live file."""
    content = write_days(data_dir, 2)
    plain = data_dir / "events-2026-11-22.jsonl"
    torn = gzip.compress(line(1) + b'{"torn')
    plain.with_suffix(".jsonl.gz").write_bytes(torn)
    make_keeper(compress_after_days=1).keep_house(TODAY)

    assert plain.read_bytes() == content[plain.name]
    assert plain.with_suffix(".jsonl.gz").read_bytes() == torn


def test_a_draft_that_found_no_room_does_not_take_up_what_there_is(
    make_keeper: Callable[..., Housekeeper], data_dir: Path, disk: Disk
) -> None:
    content = write_days(data_dir, 2)
    disk.fill_up_after(10)
    make_keeper(compress_after_days=1).keep_house(TODAY)

    assert {path.name: path.read_bytes() for path in data_dir.iterdir()} == content


def keep_house_and_die(directory: Path, index: int) -> None:
    """Be killed at the call of that index; exit with 0 where there are fewer."""
    disk = Disk()
    storage.os = disk  # type: ignore[assignment]
    disk.fault = lambda at, name, arguments: os._exit(9) if at == index else None
    Housekeeper(Store(directory), 1, 3).keep_house(TODAY)


def test_a_kill_at_any_moment_of_housekeeping_loses_and_doubles_nothing(tmp_path: Path) -> None:
    """At each call in turn; a late event comes before the next run, which finishes the job."""
    context = get_context("fork")
    expired, folded, late = (f"events-2026-11-{day}.jsonl" for day in (20, 21, 22))
    for index in range(500):
        directory = tmp_path / str(index)
        content = write_days(directory, 4)
        (directory / f"{folded}.gz").write_bytes(gzip.compress(line(50)))
        plain, both = content[folded], line(50) + content[folded]
        process = context.Process(target=keep_house_and_die, args=(directory, index))
        process.start()
        process.join()

        assert read_days(directory)[folded] in (both, both + plain), "a line was lost"
        Appender(directory).append(late, line(77))
        Housekeeper(Store(directory), 1, 3).keep_house(TODAY)
        expected = content | {folded: both, late: content[late] + line(77)}
        del expected[expired]
        assert read_days(directory) == expected, f"killed at call {index}"
        assert {path.suffix for path in directory.iterdir()} == {".jsonl", ".gz"}, "litter"
        if process.exitcode == 0:
            break
    assert 40 < index < 499


def test_a_file_written_to_while_it_is_compressed_is_left_for_the_next_run(
    disk: Disk, make_keeper: Callable[..., Housekeeper], data_dir: Path
) -> None:
    write_days(data_dir, 2)
    plain = data_dir / "events-2026-11-22.jsonl"
    late = Appender(data_dir)

    def append_once(at: int, name: str, arguments: Any) -> None:
        if name == "fsync":  # of the draft
            disk.heal()
            late.append(plain.name, line(99))

    disk.fault = append_once
    keeper = make_keeper(compress_after_days=1)
    keeper.keep_house(TODAY)
    assert plain.read_bytes().endswith(line(99))
    keeper.keep_house(TODAY)

    assert gzip.decompress(plain.with_suffix(".jsonl.gz").read_bytes()).endswith(line(99))
    assert not plain.exists()


def test_one_process_keeps_house_at_a_time(
    make_keeper: Callable[..., Housekeeper], data_dir: Path
) -> None:
    content = write_days(data_dir, 3)
    with storage.claimed(data_dir):
        make_keeper(compress_after_days=1).keep_house(TODAY)
        assert read_days(data_dir) == content
        assert not list(data_dir.glob("*.gz"))
    make_keeper(compress_after_days=1).keep_house(TODAY)

    assert len(list(data_dir.glob("*.gz"))) == 2


def test_housekeeping_runs_at_start_and_when_a_day_ends(
    make_store: Callable[..., Store], data_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(storage, "NEW_DAY_POLL_SECONDS", 0.001)
    write_days(data_dir, 3)
    now = [datetime(2026, 11, 23, 12, tzinfo=UTC)]
    Housekeeper(make_store(clock=lambda: now[0]), 2, 0).start()

    def wait_for(name: str) -> None:
        for _ in range(60_000):
            if (data_dir / name).exists():
                return
            threading.Event().wait(0.001)
        pytest.fail(f"{name} did not come")

    wait_for("events-2026-11-21.jsonl.gz")
    assert (data_dir / "events-2026-11-22.jsonl").exists()
    now[0] += timedelta(days=1)
    wait_for("events-2026-11-22.jsonl.gz")


def test_400_days_pass_and_every_line_that_should_be_there_is_there_once(
    make_keeper: Callable[..., Housekeeper], data_dir: Path
) -> None:
    keeper = make_keeper(compress_after_days=7, retention_days=90)
    appender = Appender(data_dir)
    expected: dict[str, bytes] = {}
    for n in range(400):
        today = date(2026, 1, 1) + timedelta(days=n)
        keeper.keep_house(today)
        for late_days in (0, 1, 9) if n % 5 == 0 else (0,):  # the clock jumps back, now and then
            day = today - timedelta(days=late_days)
            name = f"events-{day}.jsonl"
            appender.append(name, line(n * 10 + late_days))
            expected[name] = expected.get(name, b"") + line(n * 10 + late_days)
        if n % 7 == 0:
            (data_dir / f"refused-{today}.jsonl").write_bytes(line(n))
    keeper.keep_house(today)

    oldest = today - timedelta(days=89)
    wanted = {name: text for name, text in expected.items() if name >= f"events-{oldest}"}
    assert read_days(data_dir) == wanted
    plain = {path.name for path in data_dir.glob("*.jsonl")}
    assert min(plain) > f"events-{today - timedelta(days=7)}"
    assert all(path.name[8:18] >= str(oldest) for path in data_dir.glob("refused-*"))
    assert {path.suffix for path in data_dir.iterdir()} == {".jsonl", ".gz"}
