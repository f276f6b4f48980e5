"""Events on disk: one commit, every way it can fail, many at once, a stalled disk."""

import contextlib
import errno
import fcntl
import json
import os
import shutil
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from multiprocessing import get_context
from multiprocessing.synchronize import Event
from pathlib import Path
from typing import Any

import pytest

import storage
from faults import DAY, EVENT, NAME, NOON, FailingOs, Stall, line
from files import durable
from files.records import encode
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


def test_acknowledged_means_written_and_synced_with_all_names(
    disk: FailingOs, data_dir: Path
) -> None:
    """Each new directory before the next is made in it; and each worker does this for itself."""
    deep = data_dir / "a" / "b"
    steps = follow_disk(disk)
    append = [f"write {deep / NAME}", f"fsync {deep / NAME}"]
    names = [f"fsync {deep}", f"fsync {deep.parent}"]

    one, other = Appender(deep), Appender(deep)
    one.append(NAME, line(1))
    assert steps == [
        f"fsync {data_dir.parent.parent}",  # its own maker may have died
        *(f"mkdir {data_dir}", f"fsync {data_dir.parent}"),
        *(f"mkdir {data_dir / 'a'}", f"fsync {data_dir}"),
        *(f"mkdir {deep}", f"fsync {deep.parent}"),
        *(append + names),
    ]
    steps.clear()
    for appender in (one, other, other):
        appender.append(NAME, line(2))
    assert steps == append + append + names + append

    deep.rename(data_dir / "old")
    one.append(NAME, line(3))
    steps.clear()
    other.append(NAME, line(4))
    assert steps == append + names


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


@pytest.mark.parametrize("length", [0, 1, 60, 61, 179])
@pytest.mark.parametrize("can_cut", [True, False])
def test_of_a_write_that_stops_short_nothing_stays_but_complete_lines_that_cannot_be_cut_off(
    disk: FailingOs, data_dir: Path, length: int, can_cut: bool
) -> None:
    appender = Appender(data_dir)
    appender.append(NAME, line(0))
    disk.fill_up_after(length)
    write_fault = disk.fault

    def fault(at: int, name: str, arguments: Any) -> Any:
        if name == "ftruncate" and not can_cut:
            raise OSError(errno.EIO, "ftruncate")
        return write_fault(at, name, arguments)

    disk.fault = fault
    with pytest.raises(OSError, match="No space left"):
        appender.append(NAME, BATCH)
    disk.heal()
    appender.append(NAME, line(4))

    left = b"" if can_cut else BATCH[: length // 60 * 60]
    assert (data_dir / NAME).read_bytes() == line(0) + left + line(4)


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


def test_no_descriptor_is_lost_when_the_disk_fails(disk: FailingOs, data_dir: Path) -> None:
    appender = Appender(data_dir)
    appender.append(NAME, line(0))
    before = len(list(Path("/proc/self/fd").iterdir()))
    for failing in ("write", "fsync", "ftruncate fsync", "fstat", "pread", "statvfs"):
        disk.fail(failing)
        with pytest.raises(OSError, match="error"):
            appender.append(NAME, line(1))
        # Another sync of the same descriptor would succeed without writing anything.
        assert appender.fd == -1 or failing not in ("write", "fsync")
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


def append_when(go: Event, appender: Appender) -> None:
    go.wait(60)
    appender.append(NAME, line(1))


def test_the_lock_excludes_a_process_forked_later(data_dir: Path) -> None:
    """A descriptor opened before the fork would be shared, and exclude nobody."""
    appender, context = Appender(data_dir), get_context("fork")
    appender.append(NAME, line(0))
    go = context.Event()
    child = context.Process(target=append_when, args=(go, appender))
    child.start()
    with durable.locked(data_dir):
        go.set()
        child.join(0.2)
        assert (data_dir / NAME).read_bytes() == line(0)
    child.join(60)

    assert (data_dir / NAME).read_bytes() == line(0) + line(1)


# Tails.


@pytest.mark.parametrize(
    "tail",
    [
        pytest.param(b"", id="none"),
        pytest.param(line(2)[:1], id="one byte"),
        pytest.param(line(2)[:-1], id="all but the newline"),
        pytest.param(b"\0" * 5000, id="NUL bytes only"),
        pytest.param(b"x" * 200_000, id="a long torn line"),
        pytest.param(b'{"received_at":"x","source":"cli"', id="a record cut short"),
        pytest.param(b'{"received_at":"x","source":"\0"}', id="a record with NUL"),
        pytest.param(b'{"n":1}', id="no record of ours"),
        pytest.param(b"[]", id="no object"),
    ],
)
def test_a_tail_that_is_no_complete_record_is_cut_off(
    data_dir: Path, caplog: pytest.LogCaptureFixture, tail: bytes
) -> None:
    data_dir.mkdir()
    (data_dir / NAME).write_bytes(line(1) + tail)

    Appender(data_dir).append(NAME, line(3))

    assert (data_dir / NAME).read_bytes() == line(1) + line(3)
    assert (f"cut off a torn tail of {len(tail)} bytes" in caplog.text) == bool(tail)


def test_a_complete_record_without_its_newline_gets_one(data_dir: Path) -> None:
    """A file that an admin has joined or edited."""
    data_dir.mkdir()
    record = b'{"source":"core","received_at":"x","payload":{}}'
    (data_dir / NAME).write_bytes(line(1) + record)

    Appender(data_dir).append(NAME, line(3))

    assert (data_dir / NAME).read_bytes() == line(1) + record + b"\n" + line(3)


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


@pytest.mark.parametrize(
    ("failing", "said"),
    [
        pytest.param(NAME, "events are not being stored: ", id="events"),
        pytest.param(f"refused-{DAY}.jsonl", "refusals are not being stored: ", id="refusals"),
    ],
)
def test_of_events_and_refusals_one_can_fail_without_the_other(
    store: Store, data_dir: Path, caplog: pytest.LogCaptureFixture, failing: str, said: str
) -> None:
    (data_dir / failing).mkdir(parents=True)
    for _ in range(3):
        with contextlib.nullcontext() if failing != NAME else pytest.raises(NotStored):
            append(store, EVENT)
        store.record_refusal(EVENT)
    store.close()

    (other,) = (path for path in data_dir.iterdir() if path.name != failing)
    assert other.read_bytes().count(b"\n") == 3
    assert store.health()["ok"] == (failing != NAME)
    (message,) = [record.getMessage() for record in caplog.records]
    assert message.startswith(f"{said}{failing}: [Errno 21] Is a directory")


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


def test_if_no_thread_can_start_nothing_is_stored_and_nothing_blocks_what_comes_later(
    store: Store, data_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", refuse_thread)
        for _ in range(3):
            store.record_refusal(EVENT)
            with pytest.raises(NotStored):
                append(store, EVENT)
    assert store.queued_bytes == 0
    store.record_refusal(EVENT)
    append(store, EVENT)
    store.close()

    assert {path.name: path.read_bytes().count(b"\n") for path in data_dir.iterdir()} == {
        NAME: 1,
        f"refused-{DAY}.jsonl": 1,
    }


def test_a_directory_replaced_while_a_writer_waits_for_its_lock_gets_the_line(
    data_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    appender = Appender(data_dir)
    appender.append(NAME, line(1))
    old, flock = data_dir.with_name("old"), fcntl.flock

    def replace_then_lock(fd: int, operation: int) -> None:
        if not old.exists():
            data_dir.rename(old)
            data_dir.mkdir()
        flock(fd, operation)

    monkeypatch.setattr(fcntl, "flock", replace_then_lock)
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


def test_all_workers_share_the_days_key_until_it_is_deleted(
    make_store: MakeStore, data_dir: Path
) -> None:
    """Whoever destroys it wants no worker to use it any more."""
    tomorrow = {"received_at": "2026-11-24T00:00:00.000Z"}
    stores = [make_store(), make_store()]
    for _ in range(2):
        for store in stores:
            append(store, WITHOUT_IP, keyed)
            append(store, WITHOUT_IP | tomorrow, keyed)
        (data_dir / f"address-key-{DAY}").unlink()

    today_ips, tomorrow_ips = (values(path, "ip") for path in sorted(data_dir.glob("events-*")))
    assert today_ips[0] == today_ips[1] != today_ips[2] == today_ips[3]
    assert len(set(tomorrow_ips)) == 1
    assert set(tomorrow_ips).isdisjoint(today_ips)


def test_of_a_batch_only_the_records_own_addresses_are_filled_in(
    store: Store, data_dir: Path
) -> None:
    """A client on a Unix socket has no address, and neither has `fe80::1%eth0`."""
    event = WITHOUT_IP | {"payload": {"projectId": '"ip":null'}}
    for batch in [store.enqueue(event, hash_ip) for hash_ip in (keyed, None, keyed, None)]:
        store.wait(batch)

    key = (data_dir / f"address-key-{DAY}").read_bytes().hex()
    assert values(data_dir / NAME, "ip") == [key, None, key, None]
    assert values(data_dir / NAME, "payload") == [event["payload"]] * 4


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
@pytest.mark.parametrize("failing", ["open", "write", "fsync", "statvfs"])
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


def test_large_events_are_flushed_before_anybody_waits(
    disk: FailingOs, store: Store, data_dir: Path
) -> None:
    large = EVENT | {"text": "x" * 200_000}
    for batch in [store.enqueue(large) for _ in range(64)]:
        store.wait(batch)

    assert (data_dir / NAME).read_bytes().count(b"\n") == 64
    assert [name for name, _ in disk.calls].count("write") > 8
