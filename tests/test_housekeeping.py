"""Compression, retention, keys and torn tails, whatever is killed when."""

import errno
import fcntl
import gzip
import itertools
import os
from collections.abc import Callable
from contextlib import suppress
from datetime import date, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from faults import NAME, NOON, FailingOs, line, process_on
from files import durable, housekeeping, rewriting
from files.days import CLAIM_NAME, DRAFT_NAME
from files.housekeeping import Housekeeping
from server import wait_until
from storage import Appender

Make = Callable[..., Housekeeping]

TODAY = date(2026, 11, 23)


@pytest.fixture
def make_housekeeping(data_dir: Path) -> Make:
    return partial(Housekeeping, data_dir, lambda: NOON, compress_after_days=0, retention_days=0)


def write_days(
    data_dir: Path, days: int, until: date = TODAY, kind: str = "events"
) -> dict[str, bytes]:
    data_dir.mkdir(exist_ok=True)
    content = {}
    for age in range(days):
        name = f"{kind}-{until - timedelta(days=age)}.jsonl"
        content[name] = b"".join(line(age * 100 + n) for n in range(5))
        (data_dir / name).write_bytes(content[name])
    return content


def read_days(data_dir: Path, kind: str = "events") -> dict[str, bytes]:
    """What the files hold, by the name of the plain one, compressed part first."""
    content: dict[str, bytes] = {}
    for path in sorted(data_dir.glob(f"{kind}-*.jsonl*"), reverse=True):
        raw = path.read_bytes()
        name = path.name.removesuffix(".gz")
        content[name] = content.get(name, b"") + (
            gzip.decompress(raw) if path.suffix == ".gz" else raw
        )
    return content


NULS = bytes(300)


@pytest.mark.parametrize(
    "damaged",
    [
        pytest.param([line(1), b'{"torn'], id="a torn tail"),
        pytest.param([line(1), line(2)[:9] + NULS + line(3)[9:], line(4)], id="between two lines"),
        pytest.param([NULS + line(1), line(2)], id="at the start"),
        pytest.param([line(1), b"a\rb\0\n", line(2), b"\0\0\n", line(3)], id="twice"),
        pytest.param([line(1), NULS + b"\n", line(2), NULS], id="and at the end"),
        pytest.param([line(1)] * 30_000 + [bytes(4096) + b"\n"] + [line(2)] * 120_000, id="7 MB"),
    ],
)
@pytest.mark.parametrize(("age_days", "has_run"), [(0, False), (2, False), (30, True)])
def test_nul_bytes_cost_the_lines_that_hold_them_and_no_record_behind_them(
    make_housekeeping: Make, data_dir: Path, damaged: list[bytes], age_days: int, has_run: bool
) -> None:
    """A power cut on Friday, a start on Monday; or a file of a rescued disk, at any time."""
    data_dir.mkdir()
    path = data_dir / f"events-{TODAY - timedelta(days=age_days)}.jsonl"
    path.write_bytes(b"".join(damaged))
    keeping = make_housekeeping(compress_after_days=7)
    keeping.has_run = has_run
    keeping.run(TODAY)

    sound = b"".join(n for n in damaged if b"\0" not in n and n.endswith(b"\n"))
    assert read_days(data_dir) == {path.name: sound}
    assert path.exists() == (age_days < 7)


FOREIGN_NAMES = ["notes.txt", "events-2020-01-01.jsonl.bak", "events-2020-02-31.jsonl"]
FOREIGN_NAMES += ["events-2020-1-1.jsonl", "xevents-2020-01-01.jsonl", "refused-2020-01-01.json"]
FOREIGN_NAMES += ["address-key-2020-01-01.backup", "address-key-2020-02-31"]


@pytest.mark.parametrize("kind", ["events", "refused"])
@pytest.mark.parametrize(("plain_days", "kept_days"), [(7, 10), (0, 0), (0, 10), (7, 0)])
def test_files_and_keys_are_compressed_and_deleted_by_their_age_and_no_others(
    make_housekeeping: Make, data_dir: Path, kind: str, plain_days: int, kept_days: int
) -> None:
    """Zero days turn it off."""
    content = write_days(data_dir, 12, kind=kind)
    keys = {age: f"address-key-{TODAY - timedelta(days=age)}" for age in range(-3, 4)}
    for name in [*FOREIGN_NAMES, *keys.values()]:
        (data_dir / name).write_bytes(b"torn")
    make_housekeeping(compress_after_days=plain_days, retention_days=kept_days).run(TODAY)

    kept = list(content)[: kept_days or None]
    plain, packed = kept[: plain_days or None], kept[plain_days or len(kept) :]
    work_files = ["events-housekeeping.claim"] * bool(packed)
    assert sorted(path.name for path in data_dir.iterdir()) == sorted(
        plain
        + [f"{name}.gz" for name in packed]
        + [*FOREIGN_NAMES, keys[-1], keys[0], keys[1], keys[2], *work_files]
    )
    days = read_days(data_dir, f"{kind}-2026")
    assert days == {name: content[name] for name in kept}
    assert {path.stat().st_mode & 0o777 for path in data_dir.glob("*.gz")} <= {0o640}


# Faults of the process, the disk and the admin, at each call of a run in turn.

EXPIRED, OLD = "events-2026-11-21.jsonl", "events-2026-11-22.jsonl"


def run(directory: Path, disk: FailingOs | None = None) -> None:
    """Compress what is of yesterday or older, and delete what is two days old."""
    with process_on(disk or FailingOs()), suppress(BlockingIOError):
        Housekeeping(directory, lambda: NOON, 1, 2).run(TODAY)


def kill(disk: FailingOs, index: int, directory: Path, content: dict[str, bytes]) -> None:
    disk.kill_at(index)


def fail(disk: FailingOs, index: int, directory: Path, content: dict[str, bytes]) -> None:
    disk.fail_at(index, errno.EIO)


def append(disk: FailingOs, index: int, directory: Path, content: dict[str, bytes]) -> None:
    def fault(at: int, name: str, arguments: Any) -> None:
        if at == index and not is_locked(directory):  # otherwise it would wait
            Appender(directory).append(OLD, line(66))
            content[OLD] += line(66)

    disk.fault = fault


def restart(disk: FailingOs, index: int, directory: Path, content: object) -> None:
    """Delete the work files, and let another process begin at that moment."""

    def fault(at: int, name: str, arguments: Any) -> None:
        if at == index:
            for work_file in (CLAIM_NAME, DRAFT_NAME):
                (directory / work_file).unlink(missing_ok=True)
            if not is_locked(directory):
                run(directory)

    disk.fault = fault


def replace_draft(disk: FailingOs, index: int, directory: Path, content: object) -> None:
    """Let another process, which holds a newer claim, begin to copy another file."""

    def fault(at: int, name: str, arguments: Any) -> None:
        if at == index and not is_locked(directory):
            (directory / DRAFT_NAME).unlink(missing_ok=True)
            (directory / DRAFT_NAME).write_bytes(line(99))

    disk.fault = fault


def is_locked(directory: Path) -> bool:
    fd = os.open(directory, os.O_RDONLY)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(fd)
    return False


@pytest.mark.parametrize(
    "trouble",
    [
        pytest.param(kill, id="it is killed"),
        pytest.param(fail, id="the call fails"),
        pytest.param(append, id="a line is appended"),
        pytest.param(restart, id="claim and draft are deleted"),
        pytest.param(replace_draft, id="the draft is another one"),
    ],
)
def test_whatever_happens_at_any_call_of_housekeeping_no_line_is_lost_or_doubled(
    tmp_path: Path, disk: FailingOs, trouble: Callable[..., None]
) -> None:
    """A late event comes before the next run, which finishes the job."""
    for index in itertools.count():
        directory = tmp_path / str(index)
        content = write_days(directory, 3)
        troubled = FailingOs()
        trouble(troubled, index, directory, content)
        run(directory, troubled)

        kept = content[OLD]
        assert read_days(directory)[OLD] in (kept, kept + kept), f"lost at call {index}"
        Appender(directory).append(OLD, line(77))
        run(directory)
        content[OLD] += line(77)
        del content[EXPIRED]
        # The late line may lie beside an archive that was finished before it came.
        assert sorted_lines(read_days(directory)) == sorted_lines(content), f"at call {index}"
        assert not (directory / DRAFT_NAME).exists()
        if len(troubled.calls) <= index:
            break
    assert index > 50


def sorted_lines(days: dict[str, bytes]) -> dict[str, list[bytes]]:
    return {name: sorted(content.splitlines()) for name, content in days.items()}


def test_housekeeping_runs_at_start_and_when_a_day_ends_but_only_in_one_process(
    data_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(housekeeping, "NEW_DAY_POLL_SECONDS", 0.001)
    write_days(data_dir, 3)
    now, asked = [NOON], []

    def clock() -> datetime:
        asked.append(True)
        return now[0]

    keeping = Housekeeping(data_dir, clock, 2, 0)
    with durable.claimed(data_dir):
        keeping.start()
        wait_until(lambda: len(asked) > 3)
        assert not list(data_dir.glob("*.gz"))
    wait_until((data_dir / "events-2026-11-21.jsonl.gz").exists)
    assert (data_dir / "events-2026-11-22.jsonl").exists()
    now[0] += timedelta(days=1)
    wait_until((data_dir / "events-2026-11-22.jsonl.gz").exists)
    keeping.close()


# Retention is a promise, and a clock can be wrong.


# Ages in days of the files that are there, and of those that remain with a retention of 90 days.
@pytest.mark.parametrize(
    ("ages", "kept", "is_said"),
    [
        pytest.param([*range(100)], [*range(90)], False, id="no gap"),
        pytest.param([365], [], False, id="a year of silence"),
        pytest.param([366], [366], True, id="more than a year"),
        pytest.param([0, 730], [0, 730], True, id="one event came after the jump"),
        pytest.param([0, 95, 460, 461, 827], [0, 827], True, id="a gap further back"),
        pytest.param([0, 365, 730, 1095], [0], False, id="years, but no gap"),
        pytest.param([-1, -700, 30, 91], [-1, -700, 30], False, id="days after today"),
        pytest.param([-1, 730, 731], [-1, 730, 731], True, id="and none up to today"),
    ],
)
def test_nothing_older_than_a_gap_of_more_than_a_year_is_deleted(
    make_housekeeping: Make,
    data_dir: Path,
    caplog: pytest.LogCaptureFixture,
    ages: list[int],
    kept: list[int],
    is_said: bool,
) -> None:
    data_dir.mkdir()
    names = {age: f"events-{TODAY - timedelta(days=age)}.jsonl" for age in ages}
    for name in names.values():
        (data_dir / name).write_bytes(line(1))
    for _ in range(3):  # as several workers do
        make_housekeeping(retention_days=90).run(TODAY)

    assert {path.name for path in data_dir.glob("*.jsonl")} == {names[age] for age in kept}
    said = [record for record in caplog.records if "is deleted" in record.getMessage()]
    assert len(said) == is_said


# One thing that cannot be handled holds up no other.


@pytest.mark.parametrize(
    ("name", "spoil"),
    [
        pytest.param("address-key-2026-01-01", Path.mkdir, id="a key that is a directory"),
        pytest.param("events-2026-11-01.jsonl", os.mkfifo, id="a FIFO"),
        pytest.param("events-2026-11-01.jsonl", Path.mkdir, id="a directory"),
        pytest.param("events-2026-11-01.jsonl", lambda path: path.symlink_to(NAME), id="a link"),
        pytest.param("events-2026-11-01.jsonl", lambda path: path.symlink_to("x"), id="to nothing"),
    ],
)
@pytest.mark.parametrize("retention_days", [0, 10])
def test_a_failure_with_one_file_does_not_affect_the_others(
    make_housekeeping: Make,
    data_dir: Path,
    caplog: pytest.LogCaptureFixture,
    name: str,
    spoil: Callable[[Path], None],
    retention_days: int,
) -> None:
    caplog.set_level("INFO")
    content = write_days(data_dir, 3)
    path = data_dir / name
    spoil(path)
    make_housekeeping(compress_after_days=1, retention_days=retention_days).run(TODAY)

    assert len(list(data_dir.glob("*-11-2?.jsonl.gz"))) == 2
    assert (data_dir / NAME).read_bytes() == content[NAME]
    assert os.path.lexists(path)
    assert f"{name}: left as it is until tomorrow: " in caplog.text
    assert "deleted" not in caplog.text


# A day that has an archive already.


@pytest.mark.parametrize(
    "archived", [gzip.compress(line(99))[:-4], b"no archive"], ids=["torn", "none"]
)
def test_a_damaged_archive_is_left_beside_its_plain_file(
    make_housekeeping: Make, data_dir: Path, caplog: pytest.LogCaptureFixture, archived: bytes
) -> None:
    content = write_days(data_dir, 3)
    (data_dir / f"{EXPIRED}.gz").write_bytes(archived)
    make_housekeeping(compress_after_days=1).run(TODAY)

    left = {path.name: path.read_bytes() for path in data_dir.glob(f"{EXPIRED}*")}
    assert left == {EXPIRED: content[EXPIRED], f"{EXPIRED}.gz": archived}
    assert (data_dir / f"{OLD}.gz").exists()
    assert f"{EXPIRED}: left as it is" in caplog.text


TORN = b'{"received_at":"2026-11-21'
WHOLE_TAIL = b'{"received_at":"2026-11-21T01:02:03.004Z","source":"cli"}'
A, B, C, D = line(1), line(2), line(3), line(4)


@pytest.mark.parametrize(
    ("plain", "archived", "left"),
    [
        pytest.param(A + B, A + B, "plain", id="equal"),
        pytest.param(A + B, A + B + C, "archive", id="an older copy of the plain file"),
        pytest.param(A + B + C[:5], A + B + C + D, "archive", id="copied within a line"),
        pytest.param(b"", A + B, "archive", id="copied before it had a line"),
        pytest.param(A + B + C, A + B, "plain", id="written to after the compression"),
        pytest.param(A + B + C, A + B[:5], "plain", id="an archive that ends within a line"),
        pytest.param(A + B + C, b"", "plain", id="an empty archive"),
        pytest.param(A + C, A + B + C + D, "archive", id="lines were erased from one"),
        pytest.param(B + A, A + C + B, "archive", id="in another order"),
        pytest.param(A + TORN, A + B + TORN, "archive", id="both torn"),
        pytest.param(A + WHOLE_TAIL, A + WHOLE_TAIL + b"\n" + B, "archive", id="a lost newline"),
        pytest.param(A + B, B + C, "both", id="some lines in common"),
        pytest.param(A, B, "both", id="no line in common"),
    ],
)
@pytest.mark.parametrize("age_days", [0, 1])
def test_of_a_plain_file_and_an_archive_the_one_that_holds_no_more_goes(
    make_housekeeping: Make, data_dir: Path, plain: bytes, archived: bytes, left: str, age_days: int
) -> None:
    data_dir.mkdir()
    path = data_dir / f"events-{TODAY - timedelta(days=age_days)}.jsonl"
    archive = data_dir / f"{path.name}.gz"
    path.write_bytes(plain)
    archive.write_bytes(gzip.compress(archived[:60]) + gzip.compress(archived[60:]))
    make_housekeeping(compress_after_days=1).run(TODAY)

    if left == "plain" and age_days:
        assert not path.exists()
        assert gzip.decompress(archive.read_bytes()) == plain
        return
    assert path.exists() == (left != "archive")
    assert archive.exists() == (left != "plain")
    assert left == "archive" or path.read_bytes() == plain
    assert left == "plain" or gzip.decompress(archive.read_bytes()) == archived


# Others at work, and disks without room.


def test_another_users_file_is_compressed_if_it_can_be_read(
    make_housekeeping: Make, data_dir: Path, disk: FailingOs
) -> None:
    content = write_days(data_dir, 2)

    def fault(at: int, name: str, arguments: Any) -> bool | None:
        if name == "open" and arguments[1] & os.O_RDWR:
            raise PermissionError
        return False if name == "access" else None

    disk.fault = fault
    make_housekeeping(compress_after_days=1).run(TODAY)

    assert read_days(data_dir) == content
    assert (data_dir / f"{OLD}.gz").exists()


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT])
def test_on_a_full_disk_files_and_keys_are_deleted_and_compression_is_tried_again(
    make_housekeeping: Make,
    data_dir: Path,
    disk: FailingOs,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    code: int,
) -> None:
    """The same day; also where there is no free inode."""
    monkeypatch.setattr(housekeeping, "NEW_DAY_POLL_SECONDS", 0.001)
    monkeypatch.setattr(housekeeping, "RETRY_SECONDS", 0)
    write_days(data_dir, 12)
    (data_dir / "address-key-2026-01-01").write_bytes(b"x" * 32)
    refused = []

    def fail(at: int, name: str, arguments: Any) -> None:
        if name == "open" and arguments[1] & os.O_CREAT:
            refused.append(arguments)
            raise OSError(code, os.strerror(code))

    disk.fault = fail
    keeping = make_housekeeping(compress_after_days=9, retention_days=10)
    keeping.start()
    wait_until(lambda: len(refused) > 3)
    names = [f"events-{TODAY - timedelta(days=age)}.jsonl" for age in reversed(range(10))]
    assert sorted(path.name for path in data_dir.iterdir()) == names
    disk.heal()

    wait_until((data_dir / f"{names[0]}.gz").exists)
    keeping.close()
    assert caplog.text.count(os.strerror(code)) == 1


@pytest.mark.parametrize(("free_share", "is_compressed"), [(0.2, False), (0.3, True)])
def test_below_the_room_that_events_need_compression_makes_room_if_it_fits(
    make_housekeeping: Make,
    data_dir: Path,
    monkeypatch: pytest.MonkeyPatch,
    free_share: float,
    is_compressed: bool,
) -> None:
    write_days(data_dir, 2)
    (plain,) = data_dir.glob("*-22.jsonl")
    free = int(plain.stat().st_size * free_share)
    monkeypatch.setattr(rewriting, "free_bytes", lambda directory: free)
    make_housekeeping(compress_after_days=1, min_free_bytes=2**40).run(TODAY)

    assert plain.exists() != is_compressed
