"""Events on disk: one commit, every way it can fail, many at once, a stalled disk."""

import contextlib
import errno
import itertools
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
from faults import DAY, EVENT, NAME, NOON, FailingOs, line
from files import durable
from files.records import encode
from storage import Appender, NotStored, Store

MakeStore = Callable[..., Store]

REFUSED_NAME = f"refused-{DAY}.jsonl"


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


@pytest.mark.parametrize("situation", ["new file", "open file", "file of another process"])
def test_whichever_call_fails_only_acknowledged_lines_stay(
    disk: FailingOs, data_dir: Path, situation: str
) -> None:
    """The first call fails, then the second, ... until one run meets no fault any more."""
    for index in itertools.count():
        path = data_dir / f"events-{index}.jsonl"
        appender, other, acknowledged = Appender(data_dir), Appender(data_dir), b""
        disk.heal()
        if situation != "new file":
            acknowledged = line(0)
            (appender if situation == "open file" else other).append(path.name, acknowledged)
        disk.fail_at(index, errno.EIO)
        try:
            appender.append(path.name, line(1) + line(2))
            acknowledged += line(1) + line(2)
        except OSError:
            # Another sync of the same descriptor would succeed without writing anything.
            assert appender.fd == -1 or disk.calls[index][0] not in ("write", "fsync")
        calls = disk.calls
        disk.heal()

        assert (path.read_bytes() if path.exists() else b"") == acknowledged, calls
        appender.append(path.name, line(3))
        assert path.read_bytes() == acknowledged + line(3)
        appender.close()
        other.close()
        if len(calls) <= index:
            break
    assert index > 8
    assert disk.descriptors == set()


@pytest.mark.parametrize("length", [1, 60, 179])
@pytest.mark.parametrize("can_cut", [True, False])
def test_of_a_write_that_stops_short_nothing_stays_but_complete_lines_that_cannot_be_cut_off(
    disk: FailingOs, data_dir: Path, length: int, can_cut: bool
) -> None:
    appender, batch = Appender(data_dir), line(1) + line(2) + line(3)
    appender.append(NAME, line(0))
    disk.fill_up_after(length)
    fill_up = disk.fault

    def fault(at: int, name: str, arguments: Any) -> Any:
        if name == "ftruncate" and not can_cut:
            raise OSError(errno.EIO, "ftruncate")
        return fill_up(at, name, arguments)

    disk.fault = fault
    with pytest.raises(OSError, match="No space left"):
        appender.append(NAME, batch)
    disk.heal()
    appender.append(NAME, line(4))

    left = b"" if can_cut else batch[: length // 60 * 60]
    assert (data_dir / NAME).read_bytes() == line(0) + left + line(4)


def append_another(disk: FailingOs, path: Path) -> None:
    Appender(path.parent).append(NAME, line(2))


def replace_by_copy(disk: FailingOs, path: Path) -> None:
    shutil.copy(path, path.with_name("copy"))
    path.with_name("copy").rename(path)


def fail_undoing(name: str) -> Callable[..., None]:
    return lambda disk, path: disk.fail(name)


@pytest.mark.parametrize(
    ("act", "left"),
    [
        pytest.param(append_another, line(0) + line(1) + line(2), id="another one appends"),
        pytest.param(replace_by_copy, line(0), id="the file is replaced"),
        pytest.param(fail_undoing("ftruncate"), line(0) + line(1), id="it cannot be cut"),
        pytest.param(fail_undoing("pread"), line(0) + line(1), id="nor read"),
        pytest.param(fail_undoing("open"), line(0) + line(1), id="nor locked"),
    ],
)
def test_a_failed_sync_is_undone_but_no_line_of_others_is_ever_cut(
    disk: FailingOs, data_dir: Path, act: Callable[..., None], left: bytes
) -> None:
    """The lock is not held over the sync, so that slow syncs run side by side."""
    appender, other = Appender(data_dir), Appender(data_dir)
    appender.append(NAME, line(0))

    def act_then_fail(at: int, name: str, arguments: Any) -> None:
        if name == "fsync":
            disk.heal()
            act(disk, data_dir / NAME)
            raise OSError(errno.EIO, "fsync")

    disk.fault = act_then_fail
    with pytest.raises(OSError, match="fsync"):
        appender.append(NAME, line(1))
    disk.heal()
    other.append(NAME, line(4))
    appender.append(NAME, line(5))

    assert (data_dir / NAME).read_bytes() == left + line(4) + line(5)


@pytest.mark.parametrize(
    ("act", "keeps_lines"),
    [
        pytest.param(lambda path: path.rename(path.with_name("moved")), True, id="moves the file"),
        pytest.param(Path.unlink, True, id="deletes the file"),
        pytest.param(lambda path: os.truncate(path, 30), False, id="truncates the file"),
        pytest.param(
            lambda path: path.parent.rename(path.parent.with_name("old")),
            True,
            id="moves the directory",
        ),
        pytest.param(
            lambda path: (path.parent.rename(path.parent.with_name("old")), path.parent.mkdir()),
            True,
            id="replaces the directory",
        ),
    ],
)
def test_whatever_an_admin_does_at_any_call_the_next_line_goes_to_the_days_name(
    disk: FailingOs, tmp_path: Path, act: Callable[[Path], object], keeps_lines: bool
) -> None:
    for index in itertools.count():
        path = tmp_path / str(index) / "data" / NAME
        path.parent.parent.mkdir()
        appender, is_stored = Appender(path.parent), False
        appender.append(NAME, line(0))

        def fault(at: int, name: str, arguments: Any, path: Path = path, now: int = index) -> None:
            if at == now:
                act(path)

        disk.heal()
        disk.fault = fault
        with contextlib.suppress(OSError):
            appender.append(NAME, line(1))
            is_stored = True
        calls = disk.calls
        disk.heal()
        appender.append(NAME, line(2))

        assert path.read_bytes().endswith(line(2))
        files = path.parent.parent.glob("*/*")
        stored = sum(file.read_bytes().count(line(1)) for file in files)
        assert stored == is_stored or not keeps_lines, calls
        if len(calls) <= index:
            break
    assert index > 8


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


RECORD = b'{"source":"core","received_at":"x","payload":{}}'


@pytest.mark.parametrize(
    ("tail", "left"),
    [
        pytest.param(line(2)[:1], b"", id="one byte"),
        pytest.param(RECORD, RECORD + b"\n", id="a record without its newline"),
        pytest.param(RECORD[:-1], b"", id="a record cut short"),
        pytest.param(b"\0" * 5000, b"", id="NUL bytes only"),
        pytest.param(b"x" * 200_000, b"", id="a long torn line"),
        pytest.param(b'{"received_at":"x","source":"\0"}', b"", id="a record with NUL"),
        pytest.param(b'{"n":1}', b"", id="no record of ours"),
    ],
)
def test_a_tail_is_cut_off_unless_it_is_a_complete_record(
    data_dir: Path, caplog: pytest.LogCaptureFixture, tail: bytes, left: bytes
) -> None:
    data_dir.mkdir()
    (data_dir / NAME).write_bytes(line(1) + tail)
    Appender(data_dir).append(NAME, line(3))

    assert (data_dir / NAME).read_bytes() == line(1) + left + line(3)
    assert (f"cut off a torn tail of {len(tail)} bytes" in caplog.text) == (not left)


def test_events_enqueued_before_the_first_wait_share_a_batch(
    disk: FailingOs, store: Store, data_dir: Path
) -> None:
    for batch in [store.enqueue(EVENT) for _ in range(5)]:
        store.wait(batch)

    assert (data_dir / NAME).read_bytes().count(b"\n") == 5
    assert [name for name, _ in disk.calls].count("write") == 1


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


@pytest.mark.parametrize(("failing", "kind"), [(NAME, "events"), (REFUSED_NAME, "refusals")])
def test_of_events_and_refusals_one_can_fail_without_the_other(
    store: Store, data_dir: Path, caplog: pytest.LogCaptureFixture, failing: str, kind: str
) -> None:
    """An error is logged when it begins and when it ends."""

    def store_both(error: type[Exception] | None) -> None:
        for _ in range(3):
            store.record_refusal(EVENT)
            with pytest.raises(error) if error else contextlib.nullcontext():
                append(store, EVENT)
        store.close()

    (data_dir / failing).mkdir(parents=True)
    store_both(NotStored if failing == NAME else None)
    assert store.health()["ok"] == (failing != NAME)
    (data_dir / failing).rmdir()
    store_both(None)

    lines = {path.name: path.read_bytes().count(b"\n") for path in data_dir.iterdir()}
    assert lines == {NAME: 6, REFUSED_NAME: 6} | {failing: 3}
    error = f"{failing}: [Errno 21] Is a directory: '{data_dir / failing}'"
    assert [record.getMessage() for record in caplog.records] == [
        f"{kind} are not being stored: {error}",
        f"{kind} are being stored again, after: {error}",
    ]


def test_refusals_are_written_up_to_a_size_and_not_synced(
    disk: FailingOs, store: Store, data_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data_dir.mkdir()
    length = len(encode(EVENT)) + 1
    monkeypatch.setattr(storage, "MAX_REFUSED_BYTES", 3 * length)
    for _ in range(5):
        store.record_refusal(EVENT)
    store.close()

    assert (data_dir / REFUSED_NAME).stat().st_size == 3 * length
    assert "fsync" not in [name for name, _ in disk.calls]


def test_a_batch_whose_deadline_passes_while_another_worker_holds_the_lock_is_not_written(
    store: Store, data_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither the one that waits for the lock nor those in the queue behind it."""
    append(store, EVENT)
    with durable.locked(data_dir), monkeypatch.context() as patch:
        patch.setattr(storage, "MAX_WAIT_SECONDS", 0.1)
        for _ in range(3):
            with pytest.raises(NotStored):
                append(store, EVENT | {"id": "late"})
    append(store, EVENT | {"id": "next"})

    assert values(data_dir / NAME, "id") == ["x", "next"]


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
        REFUSED_NAME: 1,
    }


# Keys for hashed addresses.


WITHOUT_IP = EVENT | {"ip": None}


def keyed(key: bytes) -> str:
    return key.hex()


@pytest.mark.parametrize("damaged", [None, b"", b"x" * 31, b"x" * 33])
def test_all_workers_share_the_days_key_until_it_is_deleted_or_damaged(
    make_store: MakeStore, data_dir: Path, damaged: bytes | None
) -> None:
    """Whoever destroys it wants no worker to use it any more; a short one could be guessed."""
    path, stores = data_dir / f"address-key-{DAY}", [make_store(), make_store()]
    for _ in range(2):
        for store in stores:
            append(store, WITHOUT_IP, keyed)
            append(store, WITHOUT_IP | {"received_at": "2026-11-24T00:00:00.000Z"}, keyed)
        assert (len(path.read_bytes()), path.stat().st_mode & 0o777) == (32, 0o600)
        path.unlink()
        if damaged is not None:
            path.write_bytes(damaged)

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


def fill(path: Path, disk: FailingOs, blocks: int = 1000) -> None:
    """Let statvfs() say that no block is free."""
    path.mkdir()
    full = os.statvfs_result((4096, 4096, blocks, 0, 0, 0, 0, 0, 0, 255))
    disk.fault = lambda at, name, arguments: full if name == "statvfs" else None


@pytest.mark.parametrize(
    ("spoil", "error"),
    [
        (lambda path, disk: path.symlink_to("gone"), "a link to nothing"),
        (lambda path, disk: path.touch(), "Not a directory"),
        (lambda path, disk: (path / NAME).mkdir(parents=True), "Is a directory"),
        (lambda path, disk: (path.mkdir(), (path / NAME).symlink_to("else")), "symbolic links"),
        (lambda path, disk: (path / f"address-key-{DAY}").mkdir(parents=True), "not a regular"),
        (lambda path, disk: (path.mkdir(), disk.fail("open", errno.EDQUOT)), "quota"),
        (lambda path, disk: (path.mkdir(), disk.fail("write", errno.ENOSPC)), "No space"),
        (lambda path, disk: (path.mkdir(), disk.fail("fsync")), "Input/output"),
        (fill, "TELEMETRY_MIN_FREE_MB"),
    ],
)
def test_health_is_bad_if_an_event_would_not_be_stored(
    make_store: MakeStore,
    data_dir: Path,
    disk: FailingOs,
    spoil: Callable[[Path, FailingOs], object],
    error: str,
) -> None:
    spoil(data_dir, disk)
    store = make_store(clock=lambda: NOON, min_free_bytes=1)

    health = store.health()
    assert health["ok"] is False
    assert error in health["last_error"]
    with pytest.raises(NotStored):
        append(store, WITHOUT_IP, keyed)
    assert not any(path.stat().st_size for path in data_dir.glob("events-*") if path.is_file())


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
    """ramfs, or tmpfs with size=0."""
    fill(data_dir, disk, blocks=0)
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
    appender = Appender(data_dir)
    appender.append(NAME, line(0))

    def replace() -> None:
        with durable.locked(data_dir), durable.opened(data_dir / NAME, os.O_RDONLY) as fd:
            durable.wait_for_syncs(fd)

    with ThreadPoolExecutor(1) as pool:

        def try_to_replace(at: int, name: str, arguments: Any) -> None:
            if name == "fsync":
                disk.heal()
                with pytest.raises(TimeoutError):
                    pool.submit(replace).result(0.1)

        disk.fault = try_to_replace
        appender.append(NAME, line(1))
        pool.submit(replace).result(60)


def test_large_events_are_flushed_before_anybody_waits(
    disk: FailingOs, store: Store, data_dir: Path
) -> None:
    large = EVENT | {"text": "x" * 200_000}
    for batch in [store.enqueue(large) for _ in range(64)]:
        store.wait(batch)

    assert (data_dir / NAME).read_bytes().count(b"\n") == 64
    assert [name for name, _ in disk.calls].count("write") > 8
