"""Compression, retention, keys and torn tails, whatever is killed when."""

import errno
import fcntl
import gzip
import itertools
import os
import subprocess
from collections.abc import Callable
from contextlib import suppress
from datetime import date, timedelta
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import pytest

from faults import NAME, NOON, FailingOs, line, process_on
from files import durable, housekeeping, rewriting
from files.days import CLAIM_NAME, DRAFT_NAME
from files.housekeeping import Housekeeping
from server import give_up, program, wait_until
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
        pytest.param([line(1), b"\0\n", line(2)], id="a line of NUL bytes"),
        pytest.param([line(1), line(2)[:9] + NULS + line(3)[9:], line(4)], id="between two lines"),
        pytest.param([NULS + line(1), line(2)], id="at the start"),
        pytest.param([line(1), b"a\rb\0\n", line(2), b"\0\0\n", line(3)], id="twice"),
        pytest.param([line(1), NULS + b"\n", line(2), NULS], id="and at the end"),
        pytest.param([line(1), NULS + b"\n", line(2)[:9]], id="and a torn tail"),
        pytest.param([line(1)] * 30_000 + [bytes(4096) + b"\n"] + [line(2)] * 120_000, id="7 MB"),
    ],
)
@pytest.mark.parametrize("age_days", [0, 2, 30])
def test_nul_bytes_cost_the_lines_that_hold_them_and_no_record_behind_them(
    make_housekeeping: Make, data_dir: Path, damaged: list[bytes], age_days: int
) -> None:
    """A power cut on Friday, a start on Monday; or a file of a rescued disk."""
    data_dir.mkdir()
    path = data_dir / f"events-{TODAY - timedelta(days=age_days)}.jsonl"
    path.write_bytes(b"".join(damaged))
    make_housekeeping(compress_after_days=7).run(TODAY)

    sound = b"".join(n for n in damaged if b"\0" not in n and n.endswith(b"\n"))
    assert read_days(data_dir) == {path.name: sound}
    assert path.exists() == (age_days < 7)


def test_a_damaged_file_that_arrives_later_is_repaired_before_it_is_compressed(
    make_housekeeping: Make, data_dir: Path
) -> None:
    write_days(data_dir, 1)
    keeping = make_housekeeping(compress_after_days=7)
    keeping.run(TODAY)
    path = data_dir / "events-2026-11-16.jsonl"
    path.write_bytes(line(1) + NULS + line(2) + line(3))
    keeping.run(TODAY)

    assert gzip.decompress(path.with_suffix(".jsonl.gz").read_bytes()) == line(1) + line(3)


@pytest.mark.parametrize("kind", ["events", "refused"])
def test_files_are_compressed_and_deleted_by_their_age(
    make_housekeeping: Make, data_dir: Path, kind: str
) -> None:
    content = write_days(data_dir, 12, kind=kind)
    make_housekeeping(compress_after_days=7, retention_days=10).run(TODAY)

    names = [f"{kind}-{TODAY - timedelta(days=age)}.jsonl" for age in range(10)]
    left = {path.name for path in data_dir.glob("*.jsonl*")}
    assert left == {*names[:7], *(f"{name}.gz" for name in names[7:])}
    assert read_days(data_dir, kind) == {name: content[name] for name in names}
    assert {path.stat().st_mode & 0o777 for path in data_dir.glob("*.gz")} == {0o640}


def test_zero_days_turn_deletion_and_compression_off(
    make_housekeeping: Make, data_dir: Path
) -> None:
    content = write_days(data_dir, 400)
    make_housekeeping().run(TODAY)

    assert {path.name: path.read_bytes() for path in data_dir.iterdir()} == content


def test_only_files_of_the_two_patterns_are_touched(
    make_housekeeping: Make, data_dir: Path
) -> None:
    data_dir.mkdir()
    names = ["notes.txt", "events-2020-01-01.jsonl.bak", "events-2020-02-31.jsonl"]
    names += ["events-2020-1-1.jsonl", "xevents-2020-01-01.jsonl", "refused-2020-01-01.json"]
    for name in names:
        (data_dir / name).write_bytes(b"torn")
    make_housekeeping(compress_after_days=1, retention_days=2).run(TODAY)

    assert {path.name: path.read_bytes() for path in data_dir.iterdir()} == dict.fromkeys(
        names, b"torn"
    )


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


def delete(*names: str) -> Callable[..., None]:
    """Delete work files, and let another process begin at that moment."""

    def delete_and_run(disk: FailingOs, index: int, directory: Path, content: object) -> None:
        def fault(at: int, name: str, arguments: Any) -> None:
            if at == index:
                for work_file in names:
                    (directory / work_file).unlink(missing_ok=True)
                if not is_locked(directory):
                    run(directory)

        disk.fault = fault

    return delete_and_run


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
        pytest.param(delete(CLAIM_NAME), id="the claim is deleted"),
        pytest.param(delete(DRAFT_NAME), id="the draft is deleted"),
        pytest.param(delete(CLAIM_NAME, DRAFT_NAME), id="both are deleted"),
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


def test_only_one_process_does_housekeeping_at_a_time(
    make_housekeeping: Make, data_dir: Path
) -> None:
    content = write_days(data_dir, 3)
    with durable.claimed(data_dir):
        with pytest.raises(BlockingIOError):
            make_housekeeping(compress_after_days=1).run(TODAY)
        assert read_days(data_dir) == content
        assert not list(data_dir.glob("*.gz"))
    make_housekeeping(compress_after_days=1).run(TODAY)

    assert len(list(data_dir.glob("*.gz"))) == 2


def test_housekeeping_runs_at_start_and_when_a_day_ends(
    data_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(housekeeping, "NEW_DAY_POLL_SECONDS", 0.001)
    write_days(data_dir, 3)
    now = [NOON]
    keeping = Housekeeping(data_dir, lambda: now[0], 2, 0)
    keeping.start()

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
        pytest.param([0, 1, 2, 730, 731, 800], [0, 1, 2, 730, 731, 800], True, id="and more"),
        pytest.param([0, 95, 460, 461, 827], [0, 827], True, id="a gap further back"),
        pytest.param([0, 365, 730, 1095], [0], False, id="years, but no gap"),
        pytest.param([-1, -700, 30, 91], [-1, -700, 30], False, id="days after today"),
        pytest.param([-1, -2, 730, 731], [-1, -2, 730, 731], True, id="and none up to today"),
        pytest.param([-800], [-800], False, id="days after today alone"),
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
    for _ in range(3):
        make_housekeeping(retention_days=90).run(TODAY)

    assert {path.name for path in data_dir.glob("*.jsonl")} == {names[age] for age in kept}
    said = [record for record in caplog.records if "is deleted" in record.getMessage()]
    assert len(said) == is_said


def test_the_warning_about_the_clock_comes_once_a_day_from_all_workers(
    make_housekeeping: Make, data_dir: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write_days(data_dir, 1, until=TODAY - timedelta(days=800))
    workers = [make_housekeeping(retention_days=90) for _ in range(2)]
    for today in (TODAY, TODAY + timedelta(days=1)):
        for worker in workers * 2:
            worker.run(today)

    assert caplog.text.count("the clock may be wrong") == 2


def test_keys_of_days_not_around_today_are_deleted(make_housekeeping: Make, data_dir: Path) -> None:
    data_dir.mkdir()
    days = {age: TODAY - timedelta(days=age) for age in (-400, -2, -1, 0, 1, 2, 3, 400)}
    for day in days.values():
        (data_dir / f"address-key-{day}").write_bytes(b"x" * 32)
    others = ["address-key-2020-01-01.backup", "address-key-2020-02-31"]
    for name in others:
        (data_dir / name).touch()
    make_housekeeping().run(TODAY)

    kept = [f"address-key-{days[age]}" for age in (-1, 0, 1, 2)]
    assert {path.name for path in data_dir.iterdir()} == {*kept, *others}


# One thing that cannot be handled holds up no other.


def make_immutable(path: Path) -> None:
    chattr = program("chattr")
    path.write_bytes(line(1))
    ran = subprocess.run([chattr, "+i", path], capture_output=True, text=True)
    if ran.returncode != 0:
        give_up(ran.stderr)


@pytest.mark.parametrize(
    ("name", "spoil"),
    [
        pytest.param("address-key-2026-01-01", Path.mkdir, id="a key that is a directory"),
        pytest.param("events-2026-11-01.jsonl", os.mkfifo, id="a FIFO"),
        pytest.param("events-2026-11-01.jsonl", Path.mkdir, id="a directory"),
        pytest.param("events-2026-11-01.jsonl", lambda path: path.symlink_to(NAME), id="a link"),
        pytest.param("events-2026-11-01.jsonl", lambda path: path.symlink_to("x"), id="to nothing"),
        pytest.param("events-2026-11-01.jsonl", make_immutable, id="an immutable file"),
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
    try:
        make_housekeeping(compress_after_days=1, retention_days=retention_days).run(TODAY)
    finally:
        if spoil is make_immutable:
            subprocess.run([program("chattr"), "-i", path], check=True)

    assert len(list(data_dir.glob("*-11-2?.jsonl.gz"))) == 2
    assert (data_dir / NAME).read_bytes() == content[NAME]
    assert os.path.lexists(path)
    assert f"{name}: left as it is until tomorrow: " in caplog.text
    assert "deleted" not in caplog.text


# A day that has an archive already.


@pytest.mark.parametrize(
    "archived", [gzip.compress(line(99))[:-4], b"no archive"], ids=["cut short", "no archive"]
)
def test_a_damaged_archive_is_left_beside_its_plain_file(
    make_housekeeping: Make, data_dir: Path, caplog: pytest.LogCaptureFixture, archived: bytes
) -> None:
    content = write_days(data_dir, 3)
    plain = data_dir / "events-2026-11-21.jsonl"
    archive = data_dir / f"{plain.name}.gz"
    archive.write_bytes(archived)
    make_housekeeping(compress_after_days=1).run(TODAY)

    assert plain.read_bytes() == content[plain.name]
    assert archive.read_bytes() == archived
    assert (data_dir / "events-2026-11-22.jsonl.gz").exists()
    assert f"{plain.name}: left as it is" in caplog.text


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


def test_another_users_file_is_compressed_if_it_can_be_read(data_dir: Path, tmp_path: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("only root can make another user's file")
    content = write_days(data_dir, 3)
    (foreign,) = data_dir.glob("*-21.jsonl")
    foreign.chmod(0o444)
    tmp_path.chmod(0o755)
    for path in (data_dir, *data_dir.glob("*-2[23].jsonl")):
        os.chown(path, 12345, 12345)

    def run_as_other_user() -> None:
        os.setgroups([])
        os.setresgid(12345, 12345, 12345)
        os.setresuid(12345, 12345, 12345)
        Housekeeping(data_dir, lambda: NOON, 1, 0).run(TODAY)

    process = get_context("fork").Process(target=run_as_other_user)
    for parent in list(tmp_path.parents)[:-2]:
        parent.chmod(parent.stat().st_mode | 0o011)
    process.start()
    process.join()

    assert process.exitcode == 0
    assert read_days(data_dir) == content
    assert [path.name for path in data_dir.glob("*.jsonl")] == [NAME]


def test_files_and_keys_are_deleted_where_no_file_can_be_created(
    make_housekeeping: Make, data_dir: Path, disk: FailingOs
) -> None:
    """As on a file system without a free inode."""
    write_days(data_dir, 12)
    (data_dir / "address-key-2026-01-01").write_bytes(b"x" * 32)

    def fail(at: int, name: str, arguments: Any) -> None:
        if name == "open" and arguments[1] & os.O_CREAT:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    disk.fault = fail
    keeping = make_housekeeping(compress_after_days=2, retention_days=10)
    keeping.run(TODAY)

    assert sorted(path.name for path in data_dir.iterdir()) == [
        f"events-{TODAY - timedelta(days=age)}.jsonl" for age in reversed(range(10))
    ]
    assert keeping.is_disk_full
    disk.heal()
    keeping.run(TODAY)
    assert len(list(data_dir.glob("*.gz"))) == 8
    assert not keeping.is_disk_full


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT])
def test_after_a_full_disk_it_tries_again_the_same_day(
    make_housekeeping: Make,
    data_dir: Path,
    disk: FailingOs,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    code: int,
) -> None:
    monkeypatch.setattr(housekeeping, "NEW_DAY_POLL_SECONDS", 0.001)
    monkeypatch.setattr(housekeeping, "RETRY_SECONDS", 0)
    write_days(data_dir, 2)
    disk.fail("write", code)
    keeping = make_housekeeping(compress_after_days=1)
    keeping.start()
    wait_until(lambda: [name for name, _ in disk.calls].count("write") > 3)
    disk.heal()

    wait_until((data_dir / "events-2026-11-22.jsonl.gz").exists)
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
