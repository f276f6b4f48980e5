"""Names, locks, torn tails and durable operations of the daily files."""

import threading
from datetime import UTC, datetime
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import pytest

from faults import NAME, line
from files import durable
from files.records import timestamp
from storage import Appender


def test_a_timestamp_has_milliseconds_and_z() -> None:
    assert timestamp(datetime(2026, 1, 2, 3, 4, 5, 6999, tzinfo=UTC)) == "2026-01-02T03:04:05.006Z"
    assert timestamp(datetime(2026, 1, 2, tzinfo=UTC)) == "2026-01-02T00:00:00.000Z"


@pytest.mark.parametrize("kept", range(len(line(2))))
def test_appending_cuts_off_a_torn_line_and_keeps_every_complete_one(
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
    "tail",
    [
        pytest.param(b"\0" * 5000, id="NUL bytes only"),
        pytest.param(b"\0" * 512 + line(8), id="and the rest of a line behind them"),
        pytest.param(line(8)[:30] + b"\0" * 29 + b"\n" + line(9)[:9], id="within a line"),
        pytest.param((bytes(9) + b"\n") * 3 + line(9)[:9], id="several lines"),
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
    assert f"cut off a torn tail of {len(tail)} bytes" in caplog.text


@pytest.mark.parametrize(
    "record",
    [
        b'{"received_at":"x","source":"cli"}',
        b'{"source":"core","received_at":"x","payload":{}}',
    ],
)
def test_a_complete_record_without_its_newline_gets_one(data_dir: Path, record: bytes) -> None:
    """A file that an admin has joined or edited."""
    data_dir.mkdir()
    (data_dir / NAME).write_bytes(line(1) + record)

    Appender(data_dir).append(NAME, line(3))

    assert (data_dir / NAME).read_bytes() == line(1) + record + b"\n" + line(3)


def hold_lock(directory: Path, held: Any, release: Any) -> None:
    with durable.locked(directory):
        held.set()
        release.wait(60)


def test_the_lock_excludes_a_process_forked_later(data_dir: Path) -> None:
    """A descriptor opened before the fork would be shared, and exclude nobody."""
    Appender(data_dir).append(NAME, line(0))
    context = get_context("fork")
    held, release = context.Event(), context.Event()
    child = context.Process(target=hold_lock, args=(data_dir, held, release))
    child.start()
    held.wait(60)
    done = threading.Event()

    def append() -> None:
        Appender(data_dir).append(NAME, line(1))
        done.set()

    waiting = threading.Thread(target=append, daemon=True)
    waiting.start()

    assert not done.wait(0.2)
    release.set()
    assert done.wait(60)
    child.join()
