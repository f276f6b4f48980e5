"""Events on disk: one commit, every way it can fail, many at once, a stalled disk."""

import contextlib
import errno
import fcntl
import json
import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from multiprocessing import get_context
from pathlib import Path
from random import Random
from types import SimpleNamespace
from typing import Any

import pytest

import storage
from faults import DAY, EVENT, NAME, NOON, FailingOs, Stall, line
from files import durable
from files.records import encode
from server import ROOT
from storage import Appender, NotStored, Store

MakeStore = Callable[..., Store]

BATCH = line(1) + line(2) + line(3)


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
def store(make_store: MakeStore) -> Store:
    return make_store()


def append(
    store: Store, event: dict[str, Any], hash_ip: Callable[[bytes], str] | None = None
) -> None:
    store.wait(store.enqueue(event, hash_ip))


def values(path: Path, key: str) -> list[Any]:
    """Return what each record in the file has there."""
    return [json.loads(text)[key] for text in path.read_bytes().splitlines()]


def follow_disk(disk: FailingOs) -> list[str]:
    """Return a list that grows with each change: what was done, and to which path."""
    steps: list[str] = []

    def note(at: int, name: str, arguments: Any) -> None:
        if name in ("write", "fsync"):
            steps.append(f"{name} {Path(f'/proc/self/fd/{arguments[0]}').readlink()}")
        elif name == "mkdir":
            steps.append(f"{name} {arguments[0]}")

    disk.fault = note
    return steps


def test_an_event_goes_to_the_file_of_its_own_day(store: Store, data_dir: Path) -> None:
    """Also when the clock jumps back."""
    for day in ("2026-11-23", "2026-11-24", "2026-11-23", "2031-01-01"):
        append(store, EVENT | {"received_at": f"{day}T00:00:00.000Z"})

    assert {path.name: path.read_bytes().count(b"\n") for path in data_dir.iterdir()} == {
        "events-2026-11-23.jsonl": 2,
        "events-2026-11-24.jsonl": 1,
        "events-2031-01-01.jsonl": 1,
    }


def test_a_line_is_compact_printable_ascii(store: Store, data_dir: Path) -> None:
    append(store, EVENT | {"text": "é\u2028\x7f\x9b😀"})

    assert (data_dir / NAME).read_bytes() == (
        b'{"id":"x","received_at":"2026-11-23T23:59:59.999Z","source":"cli",'
        b'"text":"\\u00e9\\u2028\\u007f\\u009b\\ud83d\\ude00"}\n'
    )


def test_files_are_0640_in_a_directory_of_0750(store: Store, data_dir: Path) -> None:
    before = os.umask(0o077)
    try:
        store.record_refusal(EVENT)
        append(store, EVENT)
        store.close()
    finally:
        os.umask(before)

    assert data_dir.stat().st_mode & 0o777 == 0o750
    assert {path.stat().st_mode & 0o777 for path in data_dir.iterdir()} == {0o640}


def test_acknowledged_means_written_and_synced_with_its_name(
    disk: FailingOs, data_dir: Path
) -> None:
    """And with the directory's name: whoever made the directory may have died before its sync."""
    data_dir.mkdir()
    steps = follow_disk(disk)
    appender = Appender(data_dir)
    appender.append(NAME, line(1))
    appender.append(NAME, line(2))

    one_append = [f"write {data_dir / NAME}", f"fsync {data_dir / NAME}"]
    assert steps == [*one_append, f"fsync {data_dir}", f"fsync {data_dir.parent}", *one_append]


@pytest.mark.parametrize("code", [errno.EIO, errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EMFILE])
@pytest.mark.parametrize("situation", ["new file", "open file", "file of another process"])
def test_whichever_call_fails_only_acknowledged_lines_stay(
    disk: FailingOs, data_dir: Path, situation: str, code: int
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


@pytest.mark.parametrize("length", range(len(BATCH)))
def test_a_write_that_stops_short_leaves_nothing(
    disk: FailingOs, data_dir: Path, length: int
) -> None:
    appender = Appender(data_dir)
    appender.append(NAME, line(0))
    disk.fill_up_after(length)
    with pytest.raises(OSError, match="No space left"):
        appender.append(NAME, BATCH)
    disk.heal()

    assert (data_dir / NAME).read_bytes() == line(0)
    appender.append(NAME, line(4))
    assert (data_dir / NAME).read_bytes() == line(0) + line(4)


@pytest.mark.parametrize("failing", ["fsync ftruncate", "fsync pread", "fsync open"])
def test_what_could_not_be_undone_stays_and_no_line_of_others_is_ever_cut(
    disk: FailingOs, data_dir: Path, failing: str
) -> None:
    appender, other = Appender(data_dir), Appender(data_dir)
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

    other.append(NAME, line(4))
    appender.append(NAME, line(5))
    assert (data_dir / NAME).read_bytes() == line(0) + BATCH + line(4) + line(5)


def test_a_cut_that_could_not_be_synced_is_synced_before_the_next_line(
    disk: FailingOs, data_dir: Path
) -> None:
    appender = Appender(data_dir)
    appender.append(NAME, line(0))
    disk.fail("fsync")
    with pytest.raises(OSError, match="error"):
        appender.append(NAME, line(1))
    disk.heal()
    appender.append(NAME, line(2))
    appender.append(NAME, line(3))

    assert (data_dir / NAME).read_bytes() == line(0) + line(2) + line(3)
    steps = [name for name, _ in disk.calls if name in ("write", "fsync")]
    assert steps == ["fsync", "write", "fsync", "fsync", "write", "fsync"]


def test_moving_away_a_file_that_cannot_be_repaired_lets_events_be_stored(
    disk: FailingOs, data_dir: Path
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
def test_a_torn_write_that_could_not_be_cut_off_leaves_complete_lines_only(
    disk: FailingOs, data_dir: Path, length: int
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
    with pytest.raises(OSError, match="No space"):
        appender.append(NAME, BATCH)
    disk.heal()

    appender.append(NAME, line(4))
    complete = BATCH[: length // 60 * 60]
    assert (data_dir / NAME).read_bytes() == line(0) + complete + line(4)


def test_a_descriptor_whose_sync_failed_is_dropped(disk: FailingOs, data_dir: Path) -> None:
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


def test_no_descriptor_is_lost_when_the_disk_fails(disk: FailingOs, data_dir: Path) -> None:
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


def test_below_the_minimum_of_free_space_nothing_is_written(
    store: Store, make_store: MakeStore, data_dir: Path
) -> None:
    append(store, EVENT)
    full = make_store(min_free_bytes=int(durable.free_bytes(data_dir)) * 2)

    with pytest.raises(NotStored, match="TELEMETRY_MIN_FREE_MB"):
        append(full, EVENT)
    assert full.health()["ok"] is False
    assert (data_dir / NAME).read_bytes().count(b"\n") == 1


@pytest.mark.parametrize(
    ("act", "left"),
    [
        pytest.param(
            lambda path: path.rename(path.with_name("moved")),
            {"data/moved": line(1) + line(2), f"data/{NAME}": line(3)},
            id="file moved",
        ),
        pytest.param(Path.unlink, {f"data/{NAME}": line(3)}, id="file deleted"),
        pytest.param(
            lambda path: os.truncate(path, 70),
            {f"data/{NAME}": line(1) + line(3)},
            id="file truncated within a line",
        ),
        pytest.param(
            lambda path: path.parent.rename(path.parent.with_name("old")),
            {f"old/{NAME}": line(1) + line(2), f"data/{NAME}": line(3)},
            id="directory moved",
        ),
    ],
)
def test_after_an_admin_has_changed_a_live_file_the_next_line_goes_to_the_days_name(
    data_dir: Path, tmp_path: Path, act: Callable[[Path], object], left: dict[str, bytes]
) -> None:
    appender = Appender(data_dir)
    appender.append(NAME, line(1) + line(2))
    act(data_dir / NAME)
    appender.append(NAME, line(3))

    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert {str(path.relative_to(tmp_path)): path.read_bytes() for path in files} == left


def test_a_file_deleted_between_write_and_sync_is_written_again(
    disk: FailingOs, data_dir: Path
) -> None:
    appender = Appender(data_dir)
    appender.append(NAME, line(1))

    def delete_once(at: int, name: str, arguments: Any) -> None:
        if name == "fsync":
            disk.heal()
            (data_dir / NAME).unlink()

    disk.fault = delete_once
    appender.append(NAME, line(2))

    assert (data_dir / NAME).read_bytes() == line(2)


def test_a_link_in_the_place_of_a_file_is_not_followed(data_dir: Path, tmp_path: Path) -> None:
    data_dir.mkdir()
    (data_dir / NAME).symlink_to(tmp_path / "elsewhere")

    with pytest.raises(OSError, match="symbolic"):
        Appender(data_dir).append(NAME, line(1))
    assert not (tmp_path / "elsewhere").exists()


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

    assert sorted(values(data_dir / NAME, "n")) == [
        worker * 1000 + n for worker in range(4) for n in range(250)
    ]


@pytest.fixture
def stall(
    disk: FailingOs, monkeypatch: pytest.MonkeyPatch, make_store: MakeStore
) -> Iterator[Stall]:
    """A disk that hangs, and little patience with it."""
    monkeypatch.setattr(storage, "MAX_WAIT_SECONDS", 0.2)
    monkeypatch.setattr(storage, "STALLED_AFTER_SECONDS", 0.1)
    stall = Stall()
    disk.fault = stall.fault
    yield stall
    stall.over.set()


def test_events_enqueued_before_the_first_wait_share_a_batch(
    disk: FailingOs, store: Store, data_dir: Path
) -> None:
    for batch in [store.enqueue(EVENT) for _ in range(5)]:
        store.wait(batch)

    assert (data_dir / NAME).read_bytes().count(b"\n") == 5
    assert [name for name, _ in disk.calls].count("write") == 1


def test_the_deadline_starts_when_the_first_request_waits(
    store: Store, data_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not when the event is enqueued: until then nothing is written."""
    now = [0.0]
    monkeypatch.setattr("storage.time.monotonic", lambda: now[0])
    batch = store.enqueue(EVENT)
    now[0] = 1000.0
    store.wait(batch)

    assert (data_dir / NAME).read_bytes().count(b"\n") == 1


def test_the_events_of_a_stalled_batch_share_one_deadline(
    stall: Stall, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(storage, "STALLED_AFTER_SECONDS", 60)
    batches = [store.enqueue(EVENT) for _ in range(100)]
    began = time.monotonic()
    for batch in batches:
        with pytest.raises(NotStored, match="did not respond in time"):
            store.wait(batch)

    assert time.monotonic() - began < 100 * storage.MAX_WAIT_SECONDS / 2


def test_an_error_is_logged_when_it_begins_and_when_it_ends(
    disk: FailingOs, store: Store, caplog: pytest.LogCaptureFixture
) -> None:
    disk.fail("write", errno.ENOSPC)
    for _ in range(5):
        with pytest.raises(NotStored):
            append(store, EVENT)
    disk.heal()
    for _ in range(5):
        append(store, EVENT)

    said = [record.getMessage() for record in caplog.records]
    assert [message.split(":")[0] for message in said] == [
        "events are not being stored",
        "events are being stored again, after",
    ]
    assert "No space left on device" in said[0]
    assert NAME in said[0]


def test_health_shows_the_last_error_and_recovers_without_an_event(
    disk: FailingOs, make_store: MakeStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever the wall clock does meanwhile."""
    now = [NOON]
    store = make_store(clock=lambda: now[0])
    disk.fail("fsync")
    with pytest.raises(NotStored):
        append(store, EVENT)
    now[0] -= timedelta(days=1)

    health = store.health()
    assert (health["ok"], health["last_error_at"]) == (False, "2026-11-23T12:00:00.000Z")
    assert "Input/output error" in health["last_error"]
    monkeypatch.setattr(storage, "HEALTH_SECONDS", 0)
    assert store.health()["ok"] is False, "tried again, and failed again"
    disk.heal()
    assert store.health()["ok"] is True


def test_failing_refusals_do_not_affect_health(
    store: Store, data_dir: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (data_dir / f"refused-{DAY}.jsonl").mkdir(parents=True)
    append(store, EVENT)
    store.record_refusal(EVENT)
    append(store, EVENT)
    store.record_refusal(EVENT)
    append(store, EVENT)

    assert store.health()["ok"] is True
    (said,) = [record.getMessage() for record in caplog.records]
    assert said.startswith(f"refusals are not being stored: refused-{DAY}.jsonl: [Errno 21] Is a")


def test_a_stored_refusal_does_not_hide_that_events_are_not_stored(
    store: Store, data_dir: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (data_dir / NAME).mkdir(parents=True)
    for _ in range(3):
        with pytest.raises(NotStored):
            append(store, EVENT)
        store.record_refusal(EVENT)
    store.close()

    assert (data_dir / f"refused-{DAY}.jsonl").read_bytes().count(b"\n") == 3
    assert store.health()["ok"] is False
    assert len(caplog.records) == 1


def test_health_is_bad_if_the_directory_cannot_be_looked_up(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(path: Path) -> bool:
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    monkeypatch.setattr(Path, "exists", refuse)

    assert store.health()["ok"] is False


def test_refusals_are_written_up_to_a_size_and_not_synced(
    disk: FailingOs, store: Store, data_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data_dir.mkdir()
    length = len(encode(EVENT)) + 1
    monkeypatch.setattr(storage, "MAX_REFUSED_BYTES", 3 * length)
    for _ in range(5):
        store.record_refusal(EVENT)
    store.close()

    assert (data_dir / f"refused-{DAY}.jsonl").stat().st_size == 3 * length
    assert "fsync" not in [name for name, _ in disk.calls]


def test_events_queued_together_share_one_write_and_one_sync(
    disk: FailingOs, store: Store, data_dir: Path
) -> None:
    """While the disk syncs one batch, the next one fills."""
    append(store, EVENT)
    stall = Stall()
    disk.fault = stall.fault
    with ThreadPoolExecutor(20) as pool:
        first = pool.submit(append, store, EVENT)
        assert stall.begun.wait(60)
        batches = [store.enqueue(EVENT | {"n": n}) for n in range(19)]
        others = [pool.submit(store.wait, batch) for batch in batches]
        assert not any(future.done() for future in [first, *others]), "answered before the sync"
        disk.calls = []
        stall.over.set()

    names = [name for name, _ in disk.calls]
    assert (names.count("write"), names.count("fsync")) == (1, 1)
    assert (data_dir / NAME).read_bytes().count(b"\n") == 21


def test_during_a_stall_the_first_event_fails_in_time_and_later_ones_at_once(
    stall: Stall, store: Store, make_store: MakeStore, data_dir: Path
) -> None:
    with pytest.raises(NotStored, match="did not respond in time"):
        append(store, EVENT)
    assert store.health()["ok"] is False
    for _ in range(3):
        with pytest.raises(NotStored, match="stalled or too slow"):
            append(store, EVENT)

    stall.over.set()
    store.close()  # waits for the writer
    append(make_store(), EVENT | {"id": "after"})
    assert values(data_dir / NAME, "id")[-1] == "after"


def test_a_batch_cancelled_before_it_runs_is_never_written(
    stall: Stall, store: Store, data_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data_dir.mkdir()
    monkeypatch.setattr(storage, "STALLED_AFTER_SECONDS", 60)
    with ThreadPoolExecutor(9) as pool:
        first = pool.submit(append, store, EVENT)
        assert stall.begun.wait(60)
        others = [pool.submit(append, store, EVENT | {"id": str(n)}) for n in range(8)]
        errors = [future.exception() for future in [first, *others]]
    stall.over.set()
    store.close()

    assert [type(error) for error in errors] == [NotStored] * 9
    assert (data_dir / NAME).read_bytes().count(b"\n") == 1, "the disk finished the one it had"


def test_a_batch_whose_deadline_passes_while_another_worker_holds_the_lock_is_not_written(
    store: Store, data_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    append(store, EVENT)
    monkeypatch.setattr(storage, "MAX_WAIT_SECONDS", 0.1)
    with durable.locked(data_dir), pytest.raises(NotStored):
        append(store, EVENT | {"id": "late"})
    monkeypatch.setattr(storage, "MAX_WAIT_SECONDS", 60)
    append(store, EVENT | {"id": "next"})

    assert values(data_dir / NAME, "id") == ["x", "next"]


def test_a_failed_sync_is_undone_unless_another_worker_has_appended_behind(
    disk: FailingOs, data_dir: Path
) -> None:
    """The lock is not held over the sync, so that slow syncs run side by side."""
    appender, other = Appender(data_dir), Appender(data_dir)
    appender.append(NAME, line(0))

    def append_then_fail(at: int, name: str, arguments: Any) -> None:
        if name == "fsync":
            disk.heal()
            other.append(NAME, line(2))
            raise OSError(errno.EIO, "fsync")

    disk.fault = append_then_fail
    with pytest.raises(OSError, match="fsync"):
        appender.append(NAME, line(1))
    appender.append(NAME, line(3))

    assert (data_dir / NAME).read_bytes() == b"".join(map(line, range(4)))


def test_two_workers_on_a_failing_disk_lose_nothing_that_either_acknowledged(
    disk: FailingOs, data_dir: Path
) -> None:
    chance, workers = Random(29), [Appender(data_dir), Appender(data_dir)]

    def fail_at_times(at: int, name: str, arguments: Any) -> None:
        if name in ("fsync", "ftruncate", "write", "pread") and chance.random() < 0.2:
            raise OSError(errno.EIO, name)

    disk.fault = fail_at_times
    acknowledged = set()
    for n in range(2000):
        with contextlib.suppress(OSError):
            chance.choice(workers).append(NAME, line(n))
            acknowledged.add(line(n))
    disk.heal()
    workers[0].append(NAME, line(-1))

    lines = (data_dir / NAME).read_bytes().splitlines(keepends=True)
    assert acknowledged <= set(lines)
    assert len(lines) == len(set(lines))
    assert 500 < len(acknowledged) < 1900


def test_the_events_of_two_days_are_two_batches_with_an_outcome_each(
    store: Store, data_dir: Path
) -> None:
    tomorrow = EVENT | {"received_at": "2026-11-24T00:00:00.000Z"}
    (data_dir / "events-2026-11-24.jsonl").mkdir(parents=True)
    today_batch, tomorrow_batch = store.enqueue(EVENT), store.enqueue(tomorrow)

    store.wait(today_batch)
    with pytest.raises(NotStored):
        store.wait(tomorrow_batch)
    assert (data_dir / NAME).read_bytes().count(b"\n") == 1


def test_the_queue_is_bounded(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    length = len(encode(EVENT)) + 1
    monkeypatch.setattr(storage, "MAX_QUEUED_BYTES", 3 * length)
    batches = [store.enqueue(EVENT) for _ in range(3)]
    with pytest.raises(NotStored, match="stalled or too slow"):
        store.enqueue(EVENT)
    for batch in batches:
        store.wait(batch)

    append(store, EVENT)  # there is room again


def refuse_thread(thread: threading.Thread) -> None:
    raise RuntimeError("can't start new thread")


def test_if_no_thread_can_start_an_event_fails_and_the_next_one_is_stored(
    store: Store, data_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", refuse_thread)
        for _ in range(2):
            with pytest.raises(NotStored):
                append(store, EVENT | {"id": "refused"})
    append(store, EVENT)

    assert values(data_dir / NAME, "id") == ["x"]


# Directories.


def test_each_new_directory_is_durable_before_the_next_is_made_in_it(
    disk: FailingOs, data_dir: Path
) -> None:
    deep = data_dir / "a" / "b"
    steps = follow_disk(disk)
    Appender(deep).append(NAME, line(1))

    assert steps == [
        f"fsync {data_dir.parent.parent}",  # its own maker may have died
        *(f"mkdir {data_dir}", f"fsync {data_dir.parent}"),
        *(f"mkdir {data_dir / 'a'}", f"fsync {data_dir}"),
        *(f"mkdir {deep}", f"fsync {deep.parent}"),
        *(f"write {deep / NAME}", f"fsync {deep / NAME}"),
        *(f"fsync {deep}", f"fsync {deep.parent}"),
    ]


def test_a_directory_replaced_while_a_writer_waits_for_its_lock_gets_the_line(
    data_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    appender = Appender(data_dir)
    appender.append(NAME, line(1))
    old = data_dir.with_name("old")

    def replace_then_lock(fd: int, operation: int) -> None:
        if not old.exists():
            data_dir.rename(old)
            data_dir.mkdir()
        fcntl.flock(fd, operation)

    slow = SimpleNamespace(flock=replace_then_lock, LOCK_EX=fcntl.LOCK_EX)
    monkeypatch.setattr(durable, "fcntl", slow)
    appender.append(NAME, line(2))

    assert (data_dir / NAME).read_bytes() == line(2)
    assert (old / NAME).read_bytes() == line(1)


# Keys for hashed addresses.


WITHOUT_IP = EVENT | {"ip": None}


def keyed(key: bytes) -> str:
    return key.hex()


@pytest.mark.parametrize("content", [b"", b"x" * 31, b"x" * 33, None])
def test_a_key_that_is_not_32_bytes_is_replaced(
    store: Store, data_dir: Path, content: bytes | None
) -> None:
    """Whoever knows a short key, or none, could reverse the hashes."""
    path = data_dir / f"address-key-{DAY}"
    if content is not None:
        data_dir.mkdir()
        path.write_bytes(content)
    append(store, WITHOUT_IP, keyed)

    key = path.read_bytes()
    assert (len(key), path.stat().st_mode & 0o777) == (32, 0o600)
    assert json.loads((data_dir / NAME).read_bytes())["ip"] == key.hex()


def test_all_workers_share_the_days_key_and_the_next_day_has_another(
    make_store: MakeStore, data_dir: Path
) -> None:
    tomorrow = "2026-11-24T00:00:00.000Z"
    for store in (make_store(), make_store()):
        append(store, WITHOUT_IP, keyed)
        append(store, WITHOUT_IP | {"received_at": tomorrow}, keyed)

    ips = [values(path, "ip") for path in sorted(data_dir.glob("events-*"))]
    assert [len(set(of_day)) for of_day in ips] == [1, 1]
    assert ips[0] != ips[1]


def test_a_days_key_is_created_within_the_batch(
    disk: FailingOs, store: Store, data_dir: Path
) -> None:
    data_dir.mkdir()
    for batch in [store.enqueue(EVENT | {"ip": None, "n": n}, keyed) for n in range(50)]:
        store.wait(batch)

    assert [name for name, _ in disk.calls].count("write") == 2  # the key, the lines
    assert len(set(values(data_dir / NAME, "ip"))) == 1


def test_a_key_that_cannot_be_made_fails_all_that_wait_for_it_at_once(
    disk: FailingOs, store: Store
) -> None:
    disk.fail("fsync")
    batches = [store.enqueue(EVENT | {"ip": None}, keyed) for _ in range(50)]
    for batch in batches:
        with pytest.raises(NotStored):
            store.wait(batch)

    assert [name for name, _ in disk.calls].count("fsync") <= 2


def test_only_the_records_own_address_is_filled_in(store: Store, data_dir: Path) -> None:
    event = EVENT | {"ip": None, "payload": {"projectId": '"ip":null'}}
    append(store, event, keyed)

    record = json.loads((data_dir / NAME).read_bytes())
    assert record["ip"] == (data_dir / f"address-key-{DAY}").read_bytes().hex()
    assert record["payload"] == event["payload"]


# Health: what an event would meet now.


@pytest.mark.parametrize(
    "spoil",
    [
        pytest.param(lambda path: path.symlink_to(path.with_name("gone")), id="link to nothing"),
        pytest.param(lambda path: path.touch(), id="a file in its place"),
        pytest.param(lambda path: (path / NAME).mkdir(parents=True), id="today's file a directory"),
        pytest.param(
            lambda path: (path.mkdir(), (path / NAME).symlink_to("elsewhere")), id="a link"
        ),
        pytest.param(
            lambda path: (path / f"address-key-{DAY}").mkdir(parents=True), id="key a directory"
        ),
    ],
)
def test_health_is_bad_if_an_event_would_not_be_stored(
    make_store: MakeStore, data_dir: Path, spoil: Callable[[Path], object]
) -> None:
    spoil(data_dir)
    store = make_store(clock=lambda: NOON)

    assert store.health()["ok"] is False
    with pytest.raises(NotStored):
        append(store, WITHOUT_IP, keyed)


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO])
@pytest.mark.parametrize("failing", ["open", "write", "fsync"])
def test_health_rehearses_an_event_before_the_first_one_fails(
    disk: FailingOs, store: Store, data_dir: Path, failing: str, code: int
) -> None:
    data_dir.mkdir()
    disk.fail(failing, code)

    health = store.health()
    assert health["ok"] is False
    assert os.strerror(code) in health["last_error"]


def test_health_without_a_free_inode_depends_on_todays_file(
    disk: FailingOs, make_store: MakeStore, data_dir: Path
) -> None:
    def fault(at: int, name: str, arguments: Any) -> None:
        if name == "open" and arguments[1] & os.O_TMPFILE == os.O_TMPFILE:
            raise OSError(errno.ENOSPC, "no inode")

    data_dir.mkdir()
    disk.fault = fault
    assert make_store(clock=lambda: NOON).health()["ok"] is False
    (data_dir / NAME).touch()
    assert make_store(clock=lambda: NOON).health()["ok"] is True


def test_health_knows_the_limit_of_a_files_size(data_dir: Path) -> None:
    """In a process of its own, because the limit would stay."""
    data_dir.mkdir()
    (data_dir / NAME).write_bytes(line(1, 8192))
    code = f"""
import resource
from datetime import datetime, UTC
from pathlib import Path
from storage import Store
resource.setrlimit(resource.RLIMIT_FSIZE, (8192, 8192))
health = Store(Path({str(data_dir)!r}), clock=lambda: datetime(2026, 11, 23, tzinfo=UTC)).health()
print(health["ok"], health["last_error"])
"""
    said = subprocess.check_output([sys.executable, "-c", code], cwd=ROOT, text=True)

    assert said == f"False {NAME}: [Errno 27] File too large\n"


def test_health_leaves_no_trace(store: Store, data_dir: Path) -> None:
    assert store.health()["ok"] is True
    assert not data_dir.exists()
    data_dir.mkdir()
    assert Store(data_dir).health()["ok"] is True
    assert list(data_dir.iterdir()) == []


def test_a_file_system_without_blocks_takes_events(
    disk: FailingOs, store: Store, data_dir: Path
) -> None:
    """ramfs, or tmpfs with size=0, whose statvfs() says 0 of 0."""
    empty = os.statvfs_result((4096, 4096, 0, 0, 0, 0, 0, 0, 0, 255))
    disk.fault = lambda at, name, arguments: empty if name == "statvfs" else None
    append(store, EVENT)

    assert (data_dir / NAME).read_bytes().count(b"\n") == 1
    assert (store.health()["ok"], store.health()["free_mb"]) == (True, None)


@pytest.mark.parametrize("failing", ["fchmod", "fchmod chmod"])
def test_a_mode_that_cannot_be_set_costs_no_event(
    disk: FailingOs, store: Store, data_dir: Path, failing: str
) -> None:
    data_dir.mkdir()
    (data_dir / NAME).touch(0o660)
    disk.fail(failing, errno.EPERM)
    append(store, WITHOUT_IP, keyed)

    assert (data_dir / NAME).read_bytes().count(b"\n") == 1


def test_whoever_replaces_a_file_waits_until_its_lines_are_synced(
    disk: FailingOs, data_dir: Path
) -> None:
    appender, stall = Appender(data_dir), Stall()
    appender.append(NAME, line(0))
    disk.fault = stall.fault

    def replace() -> bool:
        with durable.locked(data_dir), durable.opened(data_dir / NAME, os.O_RDONLY) as fd:
            durable.wait_for_syncs(fd)
            return stall.over.is_set()

    with ThreadPoolExecutor(2) as pool:
        appending = pool.submit(appender.append, NAME, line(1))
        assert stall.begun.wait(60)
        replacing = pool.submit(replace)
        assert not replacing.done()
        stall.over.set()

        appending.result(60)
        assert replacing.result(60)


def test_lines_whose_sync_failed_are_undone_in_a_copy_that_was_made_meanwhile(
    disk: FailingOs, data_dir: Path
) -> None:
    appender = Appender(data_dir)
    appender.append(NAME, line(0))

    def copy_then_fail(at: int, name: str, arguments: Any) -> None:
        if name == "fsync":
            disk.heal()
            shutil.copy(data_dir / NAME, data_dir / "copy")
            (data_dir / "copy").rename(data_dir / NAME)
            raise OSError(errno.EIO, "fsync")

    disk.fault = copy_then_fail
    with pytest.raises(OSError, match="fsync"):
        appender.append(NAME, line(1))
    appender.append(NAME, line(2))

    assert (data_dir / NAME).read_bytes() == line(0) + line(2)


@pytest.mark.parametrize(
    "attempt",
    [
        pytest.param(lambda appender: appender.append(NAME, line(1)), id="an event"),
        pytest.param(lambda appender: appender.rehearse(NAME), id="a rehearsal"),
    ],
)
def test_a_name_is_synced_although_the_first_attempt_in_the_file_failed(
    disk: FailingOs, data_dir: Path, attempt: Callable[[Appender], None]
) -> None:
    data_dir.mkdir()
    (data_dir / NAME).touch()
    appender = Appender(data_dir)
    disk.fail("statvfs fsync")
    with pytest.raises(OSError, match="error"):
        attempt(appender)
    disk.heal()
    appender.append(NAME, line(2))

    paths = [arguments[0] for name, arguments in disk.calls if name == "open"]
    assert paths.count(data_dir) == 2  # for the lock, and to sync the name
    assert (data_dir / NAME).read_bytes() == line(2)


def test_a_batch_with_and_without_addresses_has_valid_lines_only(
    store: Store, data_dir: Path
) -> None:
    """A client on a Unix socket has no address, and neither has `fe80::1%eth0`."""
    keys = [keyed, None, keyed, None]
    for batch in [store.enqueue(EVENT | {"ip": None}, hash_ip) for hash_ip in keys]:
        store.wait(batch)

    ips = values(data_dir / NAME, "ip")
    key = (data_dir / f"address-key-{DAY}").read_bytes().hex()
    assert ips == [key, None, key, None]


def test_a_key_that_was_destroyed_is_used_by_no_worker_any_more(
    make_store: MakeStore, data_dir: Path
) -> None:
    stores = [make_store(), make_store()]
    for _ in range(2):
        for store in stores:
            append(store, WITHOUT_IP, keyed)
        (data_dir / f"address-key-{DAY}").unlink()

    ips = values(data_dir / NAME, "ip")
    assert ips[0] == ips[1] != ips[2] == ips[3]


def test_refusals_that_could_not_be_queued_block_nothing(
    store: Store, data_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", refuse_thread)
        for _ in range(3):
            store.record_refusal(EVENT)
    assert store.queued_bytes == 0
    store.record_refusal(EVENT)
    append(store, EVENT)
    store.close()

    assert {path.name: path.read_bytes().count(b"\n") for path in data_dir.iterdir()} == {
        NAME: 1,
        f"refused-{DAY}.jsonl": 1,
    }


def test_large_events_are_flushed_before_anybody_waits(
    disk: FailingOs, store: Store, data_dir: Path
) -> None:
    large = EVENT | {"text": "x" * 200_000}
    for batch in [store.enqueue(large) for _ in range(64)]:
        store.wait(batch)

    assert (data_dir / NAME).read_bytes().count(b"\n") == 64
    assert [name for name, _ in disk.calls].count("write") > 8


def test_the_name_of_a_directory_that_another_worker_made_anew_is_synced(
    disk: FailingOs, data_dir: Path
) -> None:
    appender, other = Appender(data_dir), Appender(data_dir)
    for one in (appender, other):
        one.append(NAME, line(1))
    data_dir.rename(data_dir.with_name("old"))
    other.append(NAME, line(2))
    steps = follow_disk(disk)
    appender.append(NAME, line(3))

    assert f"fsync {data_dir.parent}" in steps


def test_a_process_ends_while_the_disk_is_stalled(data_dir: Path) -> None:
    code = f"""
import os, time
from pathlib import Path
from storage import NotStored, Store
os.fsync = lambda fd: time.sleep(600)
store = Store(Path({str(data_dir)!r}))
try:
    store.wait(store.enqueue({EVENT!r}))
except NotStored as exc:
    print(exc)
store.close()
"""
    said = subprocess.check_output([sys.executable, "-c", code], cwd=ROOT, text=True, timeout=120)

    assert said == f"{DAY}: the disk did not respond in time\n"
