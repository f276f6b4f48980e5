"""Compression, retention, keys and torn tails, whatever is killed when."""

import gzip
import os
import subprocess
from collections.abc import Callable
from datetime import date, timedelta
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import pytest

from faults import NAME, NOON, FailingOs, line
from files import durable, housekeeping
from files.housekeeping import Housekeeping
from server import give_up, program, wait_until
from storage import Appender

TODAY = date(2026, 11, 23)


@pytest.fixture
def make_housekeeping(data_dir: Path) -> Callable[..., Housekeeping]:
    return partial(Housekeeping, data_dir, lambda: NOON, compress_after_days=0, retention_days=0)


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


def test_housekeeping_cuts_torn_tails_of_files_nobody_writes_to(
    make_housekeeping: Callable[..., Housekeeping], data_dir: Path
) -> None:
    data_dir.mkdir()
    for name in ("events-2026-11-20.jsonl", "refused-2026-11-20.jsonl", NAME):
        (data_dir / name).write_bytes(line(1) + b'{"torn')

    make_housekeeping().run(TODAY)

    assert {path.read_bytes() for path in data_dir.iterdir()} == {line(1)}


def test_files_older_than_yesterdays_are_repaired_only_at_their_end(
    make_housekeeping: Callable[..., Housekeeping], data_dir: Path
) -> None:
    """NUL bytes of an editor or a bad disk there are not taken for a power cut."""
    write_days(data_dir, 3)
    content = line(1) + b"\0\n" + line(2)
    names = [f"events-2026-11-{day}.jsonl" for day in (21, 22, 23)]
    for name in names:
        (data_dir / name).write_bytes(content + b"torn")
    make_housekeeping().run(TODAY)

    kept = [(data_dir / name).read_bytes() for name in names]
    assert kept == [content, line(1), line(1)]


def test_files_are_compressed_and_deleted_by_their_age(
    make_housekeeping: Callable[..., Housekeeping], data_dir: Path
) -> None:
    content = write_days(data_dir, 12)
    make_housekeeping(compress_after_days=7, retention_days=10).run(TODAY)

    ages = {
        (TODAY - date.fromisoformat(path.name[7:17])).days: path.suffix
        for path in data_dir.iterdir()
    }
    assert ages == {age: ".gz" if age >= 7 else ".jsonl" for age in range(10)}
    kept = {name for name in content if (TODAY - date.fromisoformat(name[7:17])).days < 10}
    assert read_days(data_dir) == {name: content[name] for name in kept}
    assert {path.stat().st_mode & 0o777 for path in data_dir.glob("*.gz")} == {0o640}


def test_a_plain_file_is_deleted_only_after_the_archives_name_is_synced(
    make_housekeeping: Callable[..., Housekeeping], data_dir: Path, disk: FailingOs
) -> None:
    write_days(data_dir, 2)
    make_housekeeping(compress_after_days=1).run(TODAY)

    calls = [name for name, _ in disk.calls]
    renamed = calls.index("rename")
    assert "fsync" in calls[renamed : calls.index("unlink", renamed)]


def test_zero_days_turn_deletion_and_compression_off(
    make_housekeeping: Callable[..., Housekeeping], data_dir: Path
) -> None:
    content = write_days(data_dir, 400)
    make_housekeeping().run(TODAY)

    assert {path.name: path.read_bytes() for path in data_dir.iterdir()} == content


def test_only_files_of_the_two_patterns_are_touched(
    make_housekeeping: Callable[..., Housekeeping], data_dir: Path
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


def test_refusals_are_compressed_and_deleted_too(
    make_housekeeping: Callable[..., Housekeeping], data_dir: Path
) -> None:
    write_days(data_dir, 1)
    for day in ("2026-11-10", "2026-11-22"):
        (data_dir / f"refused-{day}.jsonl").write_bytes(line(1))
    make_housekeeping(compress_after_days=1, retention_days=10).run(TODAY)

    assert [path.name for path in data_dir.glob("refused-*")] == ["refused-2026-11-22.jsonl.gz"]


def test_a_damaged_archive_is_left_alone_and_the_others_are_processed(
    make_housekeeping: Callable[..., Housekeeping], data_dir: Path, caplog: pytest.LogCaptureFixture
) -> None:
    content = write_days(data_dir, 3)
    plain = data_dir / "events-2026-11-21.jsonl"
    damaged = gzip.compress(line(1))[:-4]
    plain.with_suffix(".jsonl.gz").write_bytes(damaged)
    make_housekeeping(compress_after_days=1).run(TODAY)

    assert plain.read_bytes() == content[plain.name]
    assert plain.with_suffix(".jsonl.gz").read_bytes() == damaged
    assert (data_dir / "events-2026-11-22.jsonl.gz").exists()
    assert "events-2026-11-21.jsonl: left as it is" in caplog.text


def test_a_draft_that_did_not_fit_is_removed(
    make_housekeeping: Callable[..., Housekeeping], data_dir: Path, disk: FailingOs
) -> None:
    content = write_days(data_dir, 2)
    disk.fill_up_after(10)
    make_housekeeping(compress_after_days=1).run(TODAY)

    assert {path.name: path.read_bytes() for path in data_dir.iterdir()} == content


def run_and_die(directory: Path, index: int) -> None:
    """Die at the system call of that index; exit with 0 if there are fewer."""
    disk = FailingOs()
    durable.os = housekeeping.os = disk  # type: ignore[assignment, attr-defined]
    disk.fault = lambda at, name, arguments: os._exit(9) if at == index else None
    Housekeeping(directory, lambda: NOON, 1, 3).run(TODAY)


def test_a_kill_at_any_moment_of_housekeeping_loses_and_doubles_nothing(tmp_path: Path) -> None:
    """At each call in turn; a late event comes before the next run, which finishes the job."""
    context = get_context("fork")
    expired, compressed, late = (f"events-2026-11-{day}.jsonl" for day in (20, 21, 22))
    for index in range(500):
        directory = tmp_path / str(index)
        content = write_days(directory, 4)
        process = context.Process(target=run_and_die, args=(directory, index))
        process.start()
        process.join()

        kept = content[compressed]
        assert read_days(directory)[compressed] in (kept, kept + kept), "a line was lost"
        Appender(directory).append(late, line(77))
        Housekeeping(directory, lambda: NOON, 1, 3).run(TODAY)
        expected = content | {late: content[late] + line(77)}
        del expected[expired]
        found = read_days(directory)
        # The late line may lie beside an archive that was finished before it came.
        assert {name: sorted(text) for name, text in found.items()} == {
            name: sorted(text) for name, text in expected.items()
        }, f"killed at call {index}"
        assert {path.suffix for path in directory.iterdir()} == {".jsonl", ".gz"}, "litter"
        if process.exitcode == 0:
            break
    assert 30 < index < 499


def test_a_file_written_to_while_it_is_compressed_is_left_for_the_next_run(
    disk: FailingOs, make_housekeeping: Callable[..., Housekeeping], data_dir: Path
) -> None:
    write_days(data_dir, 2)
    plain = data_dir / "events-2026-11-22.jsonl"
    late = Appender(data_dir)

    def append_once(at: int, name: str, arguments: Any) -> None:
        if name == "fsync":  # of the draft
            disk.heal()
            late.append(plain.name, line(99))

    disk.fault = append_once
    keeping = make_housekeeping(compress_after_days=1)
    keeping.run(TODAY)
    assert plain.read_bytes().endswith(line(99))
    keeping.run(TODAY)

    assert gzip.decompress(plain.with_suffix(".jsonl.gz").read_bytes()).endswith(line(99))
    assert not plain.exists()


def test_only_one_process_does_housekeeping_at_a_time(
    make_housekeeping: Callable[..., Housekeeping], data_dir: Path
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


def test_200_days_pass_and_every_line_that_should_be_there_is_there_once(
    make_housekeeping: Callable[..., Housekeeping], data_dir: Path
) -> None:
    keeping = make_housekeeping(compress_after_days=7, retention_days=90)
    appender = Appender(data_dir)
    expected: dict[str, bytes] = {}
    for n in range(200):
        today = date(2026, 1, 1) + timedelta(days=n)
        keeping.run(today)
        for late_days in (0, 1, 9) if n % 5 == 0 else (0,):  # the clock jumps back, now and then
            day = today - timedelta(days=late_days)
            name = f"events-{day}.jsonl"
            appender.append(name, line(n * 10 + late_days))
            expected[name] = expected.get(name, b"") + line(n * 10 + late_days)
        if n % 7 == 0:
            (data_dir / f"refused-{today}.jsonl").write_bytes(line(n))
    keeping.run(today)

    oldest = today - timedelta(days=89)
    wanted = {name: text for name, text in expected.items() if name >= f"events-{oldest}"}
    assert read_days(data_dir) == wanted
    plain = {path.name for path in data_dir.glob("*.jsonl")}
    # Late lines stay beside the archive of their day.
    alone = {name for name in plain if not (data_dir / f"{name}.gz").exists()}
    assert min(alone) > f"events-{today - timedelta(days=7)}"
    assert all(path.name[8:18] >= str(oldest) for path in data_dir.glob("refused-*"))
    assert {path.suffix for path in data_dir.iterdir()} == {".jsonl", ".gz"}


# Retention is a promise, and a clock can be wrong.


def test_a_file_expires_even_if_no_event_has_come_for_weeks(
    make_housekeeping: Callable[..., Housekeeping], data_dir: Path
) -> None:
    write_days(data_dir, 1, until=TODAY - timedelta(days=40))
    make_housekeeping(retention_days=7).run(TODAY)

    assert list(data_dir.iterdir()) == []


@pytest.mark.parametrize(("silent_days", "is_deleted"), [(365, True), (366, False)])
def test_a_clock_more_than_a_year_ahead_of_the_newest_file_deletes_nothing(
    make_housekeeping: Callable[..., Housekeeping],
    data_dir: Path,
    caplog: pytest.LogCaptureFixture,
    silent_days: int,
    is_deleted: bool,
) -> None:
    content = write_days(data_dir, 12, until=TODAY - timedelta(days=silent_days))
    make_housekeeping(retention_days=30).run(TODAY)

    assert read_days(data_dir) == ({} if is_deleted else content)
    said = [record for record in caplog.records if "nothing is deleted" in record.getMessage()]
    assert len(said) == (not is_deleted)


def test_keys_of_days_not_around_today_are_deleted(
    make_housekeeping: Callable[..., Housekeeping], data_dir: Path
) -> None:
    data_dir.mkdir()
    days = {age: TODAY - timedelta(days=age) for age in (-400, -2, -1, 0, 1, 2, 3, 400)}
    for day in days.values():
        (data_dir / f"address-key-{day}").write_bytes(b"x" * 32)
        (data_dir / f"address-key-{day}.draft").write_bytes(b"x")
    others = ["address-key-2020-01-01.backup", "address-key-2020-02-31"]
    for name in others:
        (data_dir / name).touch()
    make_housekeeping().run(TODAY)

    kept = [f"address-key-{days[age]}{end}" for age in (-1, 0, 1, 2) for end in ("", ".draft")]
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
        pytest.param("events-2026-11-01.jsonl", lambda path: path.symlink_to("x"), id="a link"),
        pytest.param("events-2026-11-01.jsonl", make_immutable, id="an immutable file"),
    ],
)
@pytest.mark.parametrize("retention_days", [0, 10])
def test_a_failure_with_one_file_does_not_affect_the_others(
    make_housekeeping: Callable[..., Housekeeping],
    data_dir: Path,
    caplog: pytest.LogCaptureFixture,
    name: str,
    spoil: Callable[[Path], None],
    retention_days: int,
) -> None:
    write_days(data_dir, 3)
    path = data_dir / name
    spoil(path)
    try:
        make_housekeeping(compress_after_days=1, retention_days=retention_days).run(TODAY)
    finally:
        if spoil is make_immutable:
            subprocess.run([program("chattr"), "-i", path], check=True)

    assert len(list(data_dir.glob("*-11-2?.jsonl.gz"))) == 2
    assert not path.exists() or f"{name}: left as it is" in caplog.text


# A day that has an archive already.


def test_a_plain_file_that_begins_with_the_archives_lines_is_compressed_again(
    make_housekeeping: Callable[..., Housekeeping], data_dir: Path
) -> None:
    """As after a kill between the rename of the archive and the unlink of the plain file."""
    content = write_days(data_dir, 2)
    (plain,) = data_dir.glob("*-22.jsonl")
    archive = data_dir / f"{plain.name}.gz"
    archive.write_bytes(gzip.compress(content[plain.name][:60]) + gzip.compress(b""))
    make_housekeeping(compress_after_days=1).run(TODAY)

    assert not plain.exists()
    assert gzip.decompress(archive.read_bytes()) == content[plain.name]


@pytest.mark.parametrize(
    "archived",
    [gzip.compress(line(99)), gzip.compress(line(99))[:-4], b"no archive"],
    ids=["other lines", "damaged", "no archive"],
)
def test_an_archive_with_other_lines_stays_beside_the_plain_file(
    make_housekeeping: Callable[..., Housekeeping], data_dir: Path, archived: bytes
) -> None:
    content = write_days(data_dir, 3)
    plain = data_dir / "events-2026-11-21.jsonl"
    archive = data_dir / f"{plain.name}.gz"
    archive.write_bytes(archived)
    make_housekeeping(compress_after_days=1).run(TODAY)

    assert plain.read_bytes() == content[plain.name]
    assert archive.read_bytes() == archived
    assert (data_dir / "events-2026-11-22.jsonl.gz").exists()
