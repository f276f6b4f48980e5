"""Files and bytes, one healthy disk."""

import json
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path

import pytest

import storage
from storage import NotStored, Store, timestamp

EVENT = {"id": "x", "received_at": "2026-11-23T23:59:59.999Z"}


def test_a_timestamp_has_milliseconds_and_z() -> None:
    assert timestamp(datetime(2026, 1, 2, 3, 4, 5, 6999, tzinfo=UTC)) == "2026-01-02T03:04:05.006Z"
    assert timestamp(datetime(2026, 1, 2, tzinfo=UTC)) == "2026-01-02T00:00:00.000Z"


def test_an_event_goes_to_the_file_of_its_own_day(data_dir: Path) -> None:
    store = Store(data_dir)
    store.append(EVENT)
    store.append(EVENT | {"received_at": "2026-11-24T00:00:00.000Z"})

    assert sorted(path.name for path in data_dir.iterdir()) == [
        "events-2026-11-23.jsonl",
        "events-2026-11-24.jsonl",
    ]


def test_a_line_is_compact_printable_ascii(data_dir: Path) -> None:
    Store(data_dir).append(EVENT | {"text": "é\u2028\x7f\x9b😀"})

    assert (data_dir / "events-2026-11-23.jsonl").read_bytes() == (
        b'{"id":"x","received_at":"2026-11-23T23:59:59.999Z",'
        b'"text":"\\u00e9\\u2028\\u007f\\u009b\\ud83d\\ude00"}\n'
    )


def test_files_are_0640_in_a_directory_of_0750(data_dir: Path) -> None:
    store = Store(data_dir)
    store.append(EVENT)
    store.note_refusal(EVENT)

    assert data_dir.stat().st_mode & 0o777 == 0o750
    assert {path.stat().st_mode & 0o777 for path in data_dir.iterdir()} == {0o640}


def test_threads_append_whole_lines(data_dir: Path) -> None:
    store = Store(data_dir)
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda n: store.append(EVENT | {"n": n}), range(200)))

    lines = (data_dir / "events-2026-11-23.jsonl").read_bytes().splitlines()
    assert sorted(json.loads(line)["n"] for line in lines) == list(range(200))


def test_what_cannot_be_written_raises_not_stored(tmp_path: Path) -> None:
    (tmp_path / "file").touch()

    with pytest.raises(NotStored, match=r"events-2026-11-23\.jsonl"):
        Store(tmp_path / "file").append(EVENT)


def test_refusals_are_noted_up_to_a_size(data_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = Store(data_dir)
    line = len(storage.encode(EVENT)) + 1
    monkeypatch.setattr(storage, "MAX_REFUSED_BYTES", 3 * line)
    for _ in range(5):
        store.note_refusal(EVENT)

    assert (data_dir / "refused-2026-11-23.jsonl").stat().st_size == 3 * line


def test_a_refusal_that_cannot_be_noted_is_only_logged(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").touch()

    Store(tmp_path / "file").note_refusal(EVENT)

    assert "refused-2026-11-23.jsonl: refusal not noted" in caplog.text
