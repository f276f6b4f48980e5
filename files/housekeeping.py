"""Housekeeping: repair, compress and delete daily files, at start and when a day ends."""

import contextlib
import errno
import logging
import math
import os
import stat
import threading
import time
import zlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, date, datetime
from pathlib import Path

from files.days import DRAFT_NAME, KEY_NAME, compressed_path, day_files
from files.durable import claimed, holds_nul_bytes, locked, opened, repair_tail
from files.lines import split_lines
from files.rewriting import compress, remove_repeated, rewrite

KEY_DAYS_AFTER = 2  # keys outlive their day, for events that are written late
KEY_DAYS_AHEAD = 1
MAX_GAP_DAYS = 365
NEW_DAY_POLL_SECONDS = 20
RETRY_SECONDS = 600  # after a full disk
FULL = (errno.ENOSPC, errno.EDQUOT)

log = logging.getLogger(__name__)


@dataclass
class Housekeeping:
    """Looks after the files of one directory, in a thread of its own."""

    directory: Path
    clock: Callable[[], datetime]
    compress_after_days: int  # 0: never
    retention_days: int  # 0: for ever
    min_free_bytes: int = 0
    closing: threading.Event = field(default_factory=threading.Event)
    has_run: bool = False
    is_disk_full: bool = False  # at the last run
    logged: set[tuple[date, str]] = field(default_factory=set)  # days, and names with an error

    def start(self) -> None:
        """Run now and each new day, in a thread."""
        try:
            threading.Thread(target=self.run_daily, name="housekeeping", daemon=True).start()
        except RuntimeError as exc:  # no thread can be started; the next worker tries again
            log.error("no housekeeping by this worker: %s", exc)

    def run_daily(self) -> None:
        last, retry_at = None, math.inf
        while not self.closing.is_set():
            today = self.clock().date()
            if today != last or time.monotonic() >= retry_at:
                # While another process is at work, wait: if it dies, this one takes over.
                with contextlib.suppress(BlockingIOError):
                    self.run(today)
                    last = today
                    retry_at = time.monotonic() + RETRY_SECONDS if self.is_disk_full else math.inf
            self.closing.wait(NEW_DAY_POLL_SECONDS)

    def close(self) -> None:
        self.closing.set()

    def run(self, today: date) -> None:
        """Delete expired keys and files, repair damaged files, compress older ones.

        A kill at any moment loses and duplicates nothing; the next run continues.  Raises
        BlockingIOError while another process compresses or rewrites files.
        """
        if not self.directory.is_dir():
            return
        self.is_disk_full = False
        with self.reported(self.directory, today):
            # Deletion waits for nobody and creates nothing: it may be what makes room.
            for path in [*expired_keys(self.directory, today), *self.expired_files(today)]:
                with self.reported(path, today):
                    self.delete(path)
        with self.reported(self.directory, today):
            if (self.directory / DRAFT_NAME).exists():
                with claimed(self.directory):
                    pass  # which removes a draft that a killed process has left
            for file in day_files(self.directory):
                if not file.is_compressed:
                    with self.reported(file.path, today):
                        self.keep(file.path, (today - file.day).days)
            self.has_run = True

    def expired_files(self, today: date) -> list[Path]:
        """Return the files that are too old, except where the clock may be wrong."""
        files = [file for file in day_files(self.directory) if file.day <= today]
        since = first_day_without_gap({file.day for file in files}, today)
        expired = [
            file
            for file in files
            if self.retention_days and (today - file.day).days >= self.retention_days
        ]
        if any(file.day < since for file in expired) and is_first_today(self.directory, today):
            log.error(
                "nothing from before %s is deleted: there is no file of the %d days before it, "
                "so the clock may be wrong",
                since,
                MAX_GAP_DAYS,
            )
        return [file.path for file in expired if file.day >= since]

    def delete(self, path: Path) -> None:
        with locked(self.directory), contextlib.suppress(FileNotFoundError):  # by another worker
            # Deleting a link would leave what it points to.
            if not stat.S_ISREG(os.stat(path, follow_symlinks=False).st_mode):
                raise OSError(errno.EINVAL, "not a regular file")
            os.unlink(path)
            log.info("%s: deleted", path.name)

    def keep(self, plain: Path, age_days: int) -> None:
        is_old = 0 < self.compress_after_days <= age_days
        with opened(plain, flags_for(plain)) as fd:
            with locked(self.directory):
                repair_tail(fd, plain.name)
            # A power cut comes before a start, and what is damaged should not be compressed.
            if (is_old or not self.has_run) and holds_nul_bytes(fd):
                with claimed(self.directory) as claim:
                    rewrite(plain, claim, without_nul_bytes, self.min_free_bytes)
                log.warning("%s: removed the lines that hold NUL bytes", plain.name)
        remove_repeated(plain)
        if is_old and plain.exists() and not os.path.lexists(compressed_path(plain)):
            with claimed(self.directory) as claim:
                compress(plain, claim)

    @contextlib.contextmanager
    def reported(self, path: Path, today: date) -> Iterator[None]:
        """Log an error with one file, once a day, and continue with the others."""
        try:
            yield
        except BlockingIOError:
            raise
        except (OSError, EOFError, zlib.error) as exc:
            is_full = isinstance(exc, OSError) and exc.errno in FULL
            self.is_disk_full |= is_full
            until = f"for {RETRY_SECONDS // 60} minutes" if is_full else "until tomorrow"
            self.logged = {logged for logged in self.logged if logged[0] == today}
            if (today, path.name) not in self.logged:
                self.logged.add((today, path.name))
                log.error("%s: left as it is %s: %s", path.name, until, exc)


def flags_for(plain: Path) -> int:
    """Return how to open a file: to compress somebody else's, reading it is enough."""
    return os.O_RDWR | os.O_APPEND if os.access(plain, os.W_OK) else os.O_RDONLY


def first_day_without_gap(days: Iterable[date], today: date) -> date:
    """Return the earliest day since which no gap is longer than MAX_GAP_DAYS."""
    since = today
    for day in sorted(days, reverse=True):
        if (since - day).days > MAX_GAP_DAYS:
            break
        since = day
    return since


def is_first_today(directory: Path, today: date) -> bool:
    """Tell whether no worker has called this today; the claim's modification time shows it."""
    midnight = datetime(today.year, today.month, today.day, tzinfo=UTC).timestamp()
    with contextlib.suppress(OSError), claimed(directory) as claim:
        is_known = os.fstat(claim).st_mtime == midnight
        os.utime(claim, (midnight, midnight))
        return not is_known
    return True  # without a claim: to warn twice is better than never


def expired_keys(directory: Path, today: date) -> Iterator[Path]:
    for path in directory.iterdir():
        if match := KEY_NAME.fullmatch(path.name):
            with contextlib.suppress(ValueError):  # a 31st of February
                age_days = (today - date.fromisoformat(match[1])).days
                if not -KEY_DAYS_AHEAD <= age_days <= KEY_DAYS_AFTER:
                    yield path


def without_nul_bytes(lines: bytes) -> bytes:
    if b"\0" not in lines:
        return lines
    return b"".join(line for line in split_lines(lines) if b"\0" not in line)
