"""Housekeeping: repair, compress and delete daily files, at start and when a day ends."""

import contextlib
import logging
import os
import threading
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import date, datetime
from pathlib import Path

from files.days import DRAFT_NAME, KEY_NAME, DayFile, compressed_path, day_files
from files.durable import (
    CHUNK_BYTES,
    FILE_MODE,
    archived_bytes,
    claimed,
    compressed,
    is_named,
    locked,
    opened,
    remove_draft,
    repair_tail,
    sync_directory,
    wait_for_syncs,
    write_draft,
)

KEY_DAYS_AFTER = 2  # keys outlive their day, for events that are written late
KEY_DAYS_AHEAD = 1
MAX_SILENT_DAYS = 365
NEW_DAY_POLL_SECONDS = 20

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

    def start(self) -> None:
        """Run now and each new day, in a thread."""
        try:
            threading.Thread(target=self.run_daily, name="housekeeping", daemon=True).start()
        except RuntimeError as exc:  # no thread can be started; the next worker tries again
            log.error("no housekeeping by this worker: %s", exc)

    def run_daily(self) -> None:
        last = None
        while not self.closing.is_set():
            today = self.clock().date()
            if today != last:
                try:
                    self.run(today)
                    last = today
                except BlockingIOError:
                    pass  # another process is at work; if it dies, this one takes over
                except OSError as exc:
                    log.error("no housekeeping until tomorrow: %s", exc)
                    last = today
            self.closing.wait(NEW_DAY_POLL_SECONDS)

    def close(self) -> None:
        self.closing.set()

    def run(self, today: date) -> None:
        """Delete expired keys and files, cut off torn tails, compress older files.

        A kill at any moment loses and duplicates nothing; the next run continues.  Raises
        BlockingIOError while another process does housekeeping.
        """
        if not self.directory.is_dir():
            return
        with claimed(self.directory):
            remove_draft(self.directory)  # left by a run that was killed
            for path in expired_keys(self.directory, today):
                with reported(path):
                    os.unlink(path)
            files = day_files(self.directory)
            may_delete = self.may_delete(files, today)
            for file in files:
                with reported(file.path):
                    self.keep(file, (today - file.day).days, may_delete)

    def may_delete(self, files: list[DayFile], today: date) -> bool:
        """Tell whether files may be deleted, which a clock that jumped ahead must not cause."""
        silent_days = (today - files[-1].day).days if files else 0
        if self.retention_days and silent_days > MAX_SILENT_DAYS:
            log.error(
                "nothing is deleted: the newest file is %d days old, so the clock may have jumped",
                silent_days,
            )
            return False
        return self.retention_days > 0

    def keep(self, file: DayFile, age_days: int, may_delete: bool) -> None:
        if may_delete and age_days >= self.retention_days:
            with locked(self.directory):
                os.unlink(file.path)
            log.info("%s: deleted, %d days old", file.path.name, age_days)
        elif not file.is_compressed:
            with locked(self.directory), opened(file.path, os.O_RDWR | os.O_APPEND) as fd:
                # Files older than yesterday's were synced long ago.
                repair_tail(fd, file.path.name, thorough=age_days <= 1)
            if self.compress_after_days and age_days >= self.compress_after_days:
                compress(file.path, self.min_free_bytes)


@contextlib.contextmanager
def reported(path: Path) -> Iterator[None]:
    """Log an error with one file and continue with the others."""
    try:
        yield
    except (OSError, EOFError, zlib.error) as exc:
        log.error("%s: left as it is until tomorrow: %s", path.name, exc)
        remove_draft(path.parent)


def expired_keys(directory: Path, today: date) -> Iterator[Path]:
    for path in directory.iterdir():
        if match := KEY_NAME.fullmatch(path.name):
            with contextlib.suppress(ValueError):  # a 31st of February
                age_days = (today - date.fromisoformat(match[1])).days
                if not -KEY_DAYS_AHEAD <= age_days <= KEY_DAYS_AFTER:
                    yield path


def compress(plain: Path, min_free_bytes: int) -> None:
    """Replace a plain file by an archive of it.

    A run that is killed between the rename and the unlink leaves both, with the same lines;
    the next run compresses the plain file again.  If the archive holds other lines, because
    the clock went back, both are left as they are.
    """
    archive, draft = compressed_path(plain), plain.with_name(DRAFT_NAME)
    with opened(plain, os.O_RDONLY) as source:
        if archive.exists() and archived_bytes(source, archive) is None:
            return
        size = os.fstat(source).st_size
        write_draft(draft, compressed(chunks(source, size)), FILE_MODE, min_free_bytes)
        with locked(plain.parent):
            wait_for_syncs(source)
            if os.fstat(source).st_size != size or not is_named(source, plain):
                os.unlink(draft)  # it was written to meanwhile; the next run compresses it
                return
            os.rename(draft, archive)
            sync_directory(plain.parent)
            os.unlink(plain)
            sync_directory(plain.parent)


def chunks(source: int, size: int) -> Iterator[bytes]:
    for offset in range(0, size, CHUNK_BYTES):
        yield os.pread(source, min(CHUNK_BYTES, size - offset), offset)
