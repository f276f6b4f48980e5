"""Simulated power cuts at every moment of a server's life lose nothing acknowledged."""

import gzip
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from datetime import date, timedelta
from itertools import count, islice
from pathlib import Path
from random import Random
from typing import Any

import pytest

import storage
from disk import Disk, Image
from faults import use_as_os
from files import durable, housekeeping, rewriting
from files.days import CLAIM_NAME, DRAFT_NAME
from files.records import encode, utc_now

DAYS = [date(2026, 11, 20) + timedelta(days) for days in range(4)]
RETENTION_DAYS = 3


@dataclass(frozen=True)
class Cut:
    """The disk after a power cut, and what was acknowledged before it."""

    image: Image
    today: date
    sent: dict[bytes, date]  # each line and its day
    acknowledged: frozenset[bytes]


NEW_DISK = Cut({}, DAYS[0], {}, frozenset())


class Life:
    """Two workers and the housekeeping, from one power cut to the next."""

    def __init__(self, directory: Path, before: Cut) -> None:
        self.directory = directory
        self.disk = Disk(directory, before.image)
        self.today = before.today
        self.sent = dict(before.sent)
        self.acknowledged = set(before.acknowledged)
        self.housekeeping = housekeeping.Housekeeping(directory, utc_now, 1, RETENTION_DAYS)
        self.workers = [storage.Appender(directory), storage.Appender(directory)]
        self.numbers = count(len(self.sent))

    def append(self, day: date, lines: int, *, worker: int = 0, **failures: Any) -> None:
        batch = [event_line(number, day) for number in islice(self.numbers, lines)]
        self.sent |= dict.fromkeys(batch, day)
        with suppress(OSError), self.disk.failing(**failures):
            self.workers[worker].append(f"events-{day}.jsonl", b"".join(batch))
            self.acknowledged.update(batch)

    def clean_up(self, today: date, **failures: Any) -> None:
        self.today = today
        with self.disk.failing(**failures):
            self.housekeeping.run(today)


def event_line(number: int, day: date) -> bytes:
    """Return a line of 80 to 1300 bytes, no part of which is found in any other."""
    text = Random(number).randbytes(number * 173 % 600).hex()
    event = {"id": number, "received_at": f"{day}T12:00:00.000Z", "text": text}
    return f"{encode(event)}\n".encode("ascii")


def is_days_file(name: str) -> bool:
    return name.startswith("events-2026-11-")


Steps = Callable[[Life], None]
Cuts = dict[object, Cut]  # no two alike


def whole_life(life: Life) -> None:
    """New days, batches, compression, retention, late events, and failures of each kind."""
    first, second = DAYS[:2]
    life.clean_up(first)
    for lines in (1, 1, 4, 2):
        life.append(first, lines)
    life.append(first, 2, worker=1)
    life.append(first, 5, room=1500)
    life.append(first, 2)
    life.append(first, 3, syncs=[True])
    life.append(first, 1, worker=1)
    life.append(first, 3, syncs=[True, True])  # the rollback fails, too
    life.append(first, 2)  # by the same worker, which rolls back first
    life.append(second, 2, syncs=[False, True])  # the directory's sync
    life.append(second, 1, worker=1)
    life.append(second, 3)
    life.clean_up(second, room=100)
    life.clean_up(second, syncs=[True])
    life.clean_up(second)
    life.append(first, 2)
    for today in DAYS[2:]:
        life.append(today, 2)
        life.append(today - timedelta(days=1), 1, worker=1)
        life.clean_up(today)


def house_first(life: Life) -> None:
    life.clean_up(life.today)
    life.append(life.today, 1)
    life.append(life.today - timedelta(days=1), 2)


def events_first(life: Life) -> None:
    life.append(life.today, 1)
    life.append(life.today - timedelta(days=1), 2)
    life.clean_up(life.today)


def live(steps: Steps, before: Cut, tmp_path: Path, *, cut: bool = False) -> tuple[str, Cuts]:
    """Take the steps on a disk; return what is wrong, and the state after each possible cut."""
    cuts: Cuts = {}

    def note_cuts() -> None:
        sent, acknowledged = dict(life.sent), frozenset(life.acknowledged)
        for image in life.disk.images():
            # The draft's content tells nothing: it is never read again.
            kept = {name: b * is_days_file(name) for name, b in image.items()}
            key = (life.today, acknowledged, frozenset(kept.items()))
            cuts.setdefault(key, Cut(image, life.today, sent, acknowledged))

    life = Life(tmp_path, before)
    if cut:
        life.disk.before_change = note_cuts
    with pytest.MonkeyPatch.context() as monkeypatch:
        use_as_os(life.disk, monkeypatch)
        for module in (durable, housekeeping):
            monkeypatch.setattr(module.log, "disabled", True)
        steps(life)
        for worker in life.workers:
            worker.close()
    life.disk.before_change()
    assert life.disk.saw_everything()
    return wrong(life), cuts


def wrong(life: Life) -> str:
    """Say what is wrong with the files, or nothing."""
    found: Counter[bytes] = Counter()
    for path in life.directory.iterdir():
        if path.name == CLAIM_NAME:
            continue
        if not is_days_file(path.name):
            return f"left behind: {path.name}"
        try:
            read = gzip.open if path.suffix == ".gz" else open
            with read(path, "rb") as file:
                found.update(file)
        except (OSError, EOFError, zlib.error) as exc:
            return f"damaged: {path.name}: {exc}"
    kept_from = life.today - timedelta(days=RETENTION_DAYS - 1)
    due = {line for line in life.acknowledged if life.sent[line] >= kept_from}
    for fault, lines in {
        "never sent": found.keys() - life.sent.keys(),
        "lost": due - found.keys(),
        "doubled": {line for line, times in found.items() if times > 1},
    }.items():
        if lines:
            return f"{fault}: {[line[:70] for line in sorted(lines)]}"
    return ""


RESTARTS = [house_first, events_first]


def shape(cut: Cut) -> object:
    """Return a rough fingerprint of a cut: the files, and which of them are torn."""
    days = {name: b for name, b in cut.image.items() if is_days_file(name)}
    return frozenset((name, b"\0" in b, b[-1:] == b"\n") for name, b in days.items())


def faults_after(cuts: Cuts, tmp_path: Path) -> Iterator[str]:
    """Yield what is wrong after each cut and a restart of the server."""
    for number, cut in enumerate(cuts.values()):
        steps = RESTARTS[number % 2]
        if fault := live(steps, cut, tmp_path)[0]:
            sizes = {name: len(content) for name, content in cut.image.items()}
            yield f"{fault}, after {steps.__name__} on cut {number}, {sizes}"


def test_a_power_cut_at_any_moment_loses_doubles_and_breaks_nothing(tmp_path: Path) -> None:
    fault, cuts = live(whole_life, NEW_DISK, tmp_path, cut=True)

    assert fault == ""
    assert next(faults_after(cuts, tmp_path), "") == ""


def test_a_second_power_cut_during_recovery_loses_nothing_either(tmp_path: Path) -> None:
    """One of each shape, after one of each shape."""
    _, cuts = live(whole_life, NEW_DISK, tmp_path, cut=True)
    for number, first in enumerate(one_of_each_shape(cuts).values()):
        _, seconds = live(RESTARTS[number % 2], first, tmp_path, cut=True)
        assert next(faults_after(one_of_each_shape(seconds), tmp_path), "") == ""


def one_of_each_shape(cuts: Cuts) -> Cuts:
    return {shape(cut): cut for cut in cuts.values()}


def rename_unsynced(draft: int, source: int, path: Path, target: Path) -> None:
    vars(rewriting)["os"].rename(path.with_name(DRAFT_NAME), target)


@pytest.mark.parametrize(
    ("owner", "name", "replacement", "consequence"),
    [
        pytest.param(Disk, "fsync", lambda *_: None, "lost", id="syncs nothing"),
        pytest.param(storage, "sync_directory", lambda _: None, "lost", id="syncs no name"),
        pytest.param(durable, "MAX_UNSYNCED_BYTES", 0, "never sent", id="overlooks NUL bytes"),
        pytest.param(rewriting, "rename_draft", rename_unsynced, "damaged", id="syncs no archive"),
    ],
)
def test_the_power_cut_test_catches_a_server_that(
    owner: object,
    name: str,
    replacement: object,
    consequence: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(owner, name, replacement)
    _, cuts = live(whole_life, NEW_DISK, tmp_path, cut=True)

    assert any(fault.startswith(consequence) for fault in faults_after(cuts, tmp_path))
