"""Clocks, full disks, erasing, compression, copies and kills in any order, against a model."""

import errno
import gzip
import json
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from datetime import date, timedelta
from pathlib import Path
from random import Random

import pytest

from faults import FailingOs, process_on
from files.housekeeping import Housekeeping
from files.records import encode, utc_now
from forget import command
from forget.wanted import choose
from storage import Appender

PEOPLE = [f"192.0.2.{n}" for n in range(4)]
RETENTION_DAYS = 4
EXPIRED_AGES = range(RETENTION_DAYS, 365)  # what seems to be older stays: the clock may be wrong


class World:
    """A data directory, and what must, may and must not be in its files."""

    def __init__(self, directory: Path, seed: int) -> None:
        self.directory, self.chance = directory, Random(seed)
        self.today = date(2026, 11, 1)
        self.count = 0
        self.stored: dict[bytes, str] = {}  # acknowledged lines and their addresses
        # Not acknowledged, or being erased or deleted when a fault came.
        self.unsure: set[bytes] = set()
        self.copied: set[Path] = set()  # which may have lines of their own, and some in common

    # What may happen.

    def append(self) -> None:
        day = self.today - timedelta(days=self.chance.choice([0, 0, 0, 1, 2]))
        lines = self.new_lines(day)
        self.unsure |= lines.keys()
        name, content = f"events-{day}.jsonl", b"".join(lines)
        if self.try_to(lambda: Appender(self.directory).append(name, content)):
            self.unsure -= lines.keys()
            self.stored |= lines

    def new_lines(self, day: date) -> dict[bytes, str]:
        lines = {}
        for ip in self.chance.choices(PEOPLE, k=self.chance.randint(1, 5)):
            self.count += 1
            record = {"id": f"{self.count}", "received_at": f"{day}T01:00:00.000Z", "source": "cli"}
            lines[f"{encode(record | {'ip': ip, 'payload': {}})}\n".encode()] = ip
        return lines

    def keep_house(self) -> None:
        self.try_to(self.run_housekeeping)

    def run_housekeeping(self) -> None:
        self.doubt({line for line in self.stored if self.age_days(line) in EXPIRED_AGES})
        Housekeeping(self.directory, utc_now, 2, RETENTION_DAYS).run(self.today)

    def doubt(self, lines: set[bytes]) -> None:
        self.unsure |= lines
        for line in lines:
            del self.stored[line]

    def age_days(self, line: bytes) -> int:
        return (self.today - date.fromisoformat(json.loads(line)["received_at"][:10])).days

    def forget(self) -> None:
        ip = self.chance.choice(PEOPLE)
        self.doubt({line for line, whose in self.stored.items() if whose == ip})
        if self.try_to(lambda: self.erase(ip)):
            self.unsure = {line for line in self.unsure if f'"{ip}"'.encode() not in line}

    def erase(self, ip: str) -> None:
        problems: dict[Path, str] = {}
        command.erase_in(self.directory, choose((ip,), (), ()), 0, problems)
        if problems:
            raise OSError(str(problems))

    def let_days_pass(self) -> None:
        self.today += timedelta(days=1)

    def have_a_wrong_clock(self) -> None:
        today, jump = self.today, timedelta(days=self.chance.choice([800, -3]))
        self.today += jump
        for _ in range(3):
            self.chance.choice([self.append, self.keep_house])()
        self.today = today

    def damage(self) -> None:
        """Leave a torn tail, NUL bytes at the end, or NUL bytes before a line."""
        plain = self.any_file("*.jsonl")
        if plain and plain.read_bytes().endswith(b"\n"):
            lines = self.new_lines(day_of(plain))
            tails = [b'{"torn', bytes(50), bytes(50) + b"\n", bytes(50) + b"\n" + b"".join(lines)]
            tail = self.chance.choice(tails)
            self.stored |= lines if tail == tails[-1] else {}
            with plain.open("ab") as file:
                file.write(tail)

    def copy(self) -> None:
        """Leave a part of an archive's lines beside it, as an earlier copy by rsync does."""
        if archive := self.any_file("*.gz"):
            content, plain = gzip.decompress(archive.read_bytes()), archive.with_suffix("")
            if not plain.exists():
                plain.write_bytes(content[: self.chance.randint(0, len(content))])
                self.copied.add(plain)

    def delete_work_files(self) -> None:
        for path in self.directory.glob("events-housekeeping.*"):
            path.unlink()

    def any_file(self, pattern: str) -> Path | None:
        paths = sorted(self.directory.glob(pattern))
        return self.chance.choice(paths) if paths else None

    # Faults.

    def try_to(self, act: Callable[[], None]) -> bool:
        """Act, maybe on a disk that fails once or gets full, or in a process that is killed."""
        disk, fault = FailingOs(), self.chance.choice(["none", "none", "error", "full", "kill"])
        if fault == "error":
            disk.fail_at(self.chance.randrange(100), errno.EIO)
        if fault == "full":
            disk.fill_up_after(self.chance.randrange(1500))
        if fault == "kill":
            disk.kill_at(self.chance.randrange(100))
        with process_on(disk), suppress(OSError):
            act()
            return True
        return False

    # What must hold.

    def check(self) -> None:
        found = self.found()
        assert self.stored.keys() <= found.keys(), "a line was lost"
        assert found.keys() <= self.stored.keys() | self.unsure, "a line came back"
        assert set(found.values()) <= {1}, "a line was doubled"

    def found(self) -> Counter[bytes]:
        """Return the lines; of a day's two files one counts if it holds all lines of the other."""
        found: Counter[bytes] = Counter()
        for name in {path.name.removesuffix(".gz") for path in self.directory.glob("*.jsonl*")}:
            path = self.directory / name
            plain, archived = lines_of(path), lines_of(self.directory / f"{name}.gz")
            is_repeated = plain.keys() <= archived.keys() or archived.keys() <= plain.keys()
            found += plain | archived if is_repeated or path in self.copied else plain + archived
        return found


def day_of(path: Path) -> date:
    return date.fromisoformat(path.name[7:17])


def lines_of(path: Path) -> Counter[bytes]:
    if not path.exists():
        return Counter()
    content = path.read_bytes()
    content = gzip.decompress(content) if path.suffix == ".gz" else content
    *lines, _ = content.split(b"\n")
    return Counter(line + b"\n" for line in lines if b"\0" not in line)


@pytest.mark.parametrize("seed", range(16))
def test_faults_in_any_order_lose_double_and_keep_no_line(seed: int, tmp_path: Path) -> None:
    world = World(tmp_path, seed)
    steps = [
        *(world.append, world.append, world.keep_house, world.keep_house, world.forget),
        *(world.let_days_pass, world.have_a_wrong_clock, world.damage, world.copy),
        world.delete_work_files,
    ]
    for _ in range(80):
        world.chance.choice(steps)()
        world.check()

    world.run_housekeeping()
    world.check()
    assert not [line for line in world.found() if world.age_days(line) in EXPIRED_AGES]
    assert not [path for path in tmp_path.glob("*.jsonl") if b"\0" in path.read_bytes()]
    for ip in PEOPLE:
        world.erase(ip)
    assert world.found() == {}
