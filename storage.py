"""Store events: group commit into the day's file.

Requests enqueue their lines into the day's open batch and wait for it.  One thread writes and
syncs a batch while the next one fills: the slower the disk, the more events share a sync.
Requests never touch the disk themselves, so a stalled disk still gets its clients a 503.
"""

import contextlib
import errno
import logging
import math
import os
import secrets
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from itertools import groupby
from operator import itemgetter
from pathlib import Path
from typing import Any

from files.days import DRAFT_SUFFIX, Kind, key_name, plain_name
from files.durable import (
    FILE_MODE,
    cut_off,
    free_bytes,
    is_named,
    locked,
    make_directory,
    open_regular,
    opened,
    repair_tail,
    require_room,
    sync_directory,
    sync_name,
    write_all,
    write_draft,
)
from files.records import encode, timestamp, utc_now

KEY_MODE = 0o600
KEY_BYTES = 32

MAX_REFUSED_BYTES = 8 * 2**20  # of each day's file
MAX_QUEUED_BYTES = 4 * 2**20
# Clients get a response within three seconds.  A request may have to wait twice: for the batch
# that is being written when it arrives, and then for its own.
MAX_WAIT_SECONDS = 1.4
STALLED_AFTER_SECONDS = 1.0  # a batch that takes longer: the disk has stalled
DISTRUST_SECONDS = 30  # how long health() stays bad after an error if no event is stored

log = logging.getLogger(__name__)


class NotStored(Exception):
    """The event is not on disk; the client may retry later."""


@dataclass(eq=False)
class Batch:
    """Events of one day that share one write and one sync."""

    day: str
    lines: list["Line"] = field(default_factory=list)
    future: Future[None] | None = None  # from flush() on
    deadline: float = math.inf  # in time.monotonic(), for all requests in the batch


@dataclass(frozen=True)
class Line:
    """A record as text; `hash_ip` computes its `ip` once the day's key is known."""

    text: bytes
    hash_ip: Callable[[bytes], str] | None = None

    def completed(self, key: bytes) -> bytes:
        ip = b'"ip":"%b"' % self.hash_ip(key).encode() if self.hash_ip else b""
        # The first match is the record's own ip: the values before it hold no quotes.
        return self.text.replace(b'"ip":null', ip, 1)


@dataclass
class Outage:
    """Why lines of one kind cannot be stored; logged when it begins and when it ends."""

    kind: str
    is_active: bool = False
    last_error: str | None = None
    last_error_at: datetime | None = None

    def begin(self, error: str, now: datetime) -> None:
        if not self.is_active:
            log.error("%s are not being stored: %s", self.kind, error)
        self.is_active, self.last_error, self.last_error_at = True, error, now

    def end(self) -> None:
        if self.is_active:
            log.warning("%s are being stored again, after: %s", self.kind, self.last_error)
        self.is_active = False


class Store:
    """The files of one data directory.  Any number of threads and processes may share it."""

    def __init__(
        self, directory: Path, min_free_bytes: int = 0, clock: Callable[[], datetime] = utc_now
    ) -> None:
        self.directory, self.min_free_bytes, self.clock = directory, min_free_bytes, clock
        self.lock = threading.RLock()
        self.open_batches: dict[str, Batch] = {}
        self.refusals: list[tuple[str, bytes]] = []  # days and lines
        self.queued_bytes = 0
        # The executor starts its thread with the first job, so not before a fork, which would
        # not copy it.
        self.executor = ThreadPoolExecutor(1, thread_name_prefix="writer")
        self.has_writer = False
        self.write_began: float | None = None
        self.event_outage = Outage("events")
        self.refusal_outage = Outage("refusals")
        # Used by the writer thread only.
        self.event_file = Appender(directory, min_free_bytes)
        self.refused_file = Appender(directory, min_free_bytes)
        self.keys: dict[str, bytes] = {}

    def start(self) -> None:
        """Sync in advance what the first event would have to wait for; call this after a fork."""
        with contextlib.suppress(RuntimeError):
            self.submit(self.event_file.sync_directory_name)

    def append(self, event: Mapping[str, Any]) -> None:
        """Store one event; it is on disk when this returns.  Raises NotStored."""
        self.wait(self.enqueue(event))

    def enqueue(
        self, event: Mapping[str, Any], hash_ip: Callable[[bytes], str] | None = None
    ) -> Batch:
        """Add an event to the open batch of its day.  Raises NotStored if the queue is full.

        `hash_ip` computes the event's `ip` from the day's key; the event has null there.
        """
        day = event["received_at"][:10]
        line = Line(f"{encode(event)}\n".encode("ascii"), hash_ip)
        with self.lock:
            self.reserve(len(line.text))
            batch = self.open_batches.setdefault(day, Batch(day))
            batch.lines.append(line)
        return batch

    def wait(self, batch: Batch) -> None:
        """Flush the batch unless it is flushed already, and return when it is on disk.

        Raises NotStored, at the batch's deadline at the latest.  Then its lines are in no
        file, unless the disk stalled and completes the write later.
        """
        try:
            future = self.flush(batch)
            future.result(max(0.0, batch.deadline - time.monotonic()))
        except TimeoutError as exc:
            self.abandon(batch)
            raise NotStored(f"{batch.day}: the disk did not respond in time") from exc
        except (OSError, RuntimeError, CancelledError) as exc:
            raise NotStored(f"{batch.day}: {exc}") from exc

    def flush(self, batch: Batch) -> Future[None]:
        with self.lock:
            if batch.future is None:
                batch.deadline = time.monotonic() + MAX_WAIT_SECONDS
                try:
                    batch.future = self.submit(self.commit, batch)
                except RuntimeError as exc:  # no thread can be started
                    self.close_batch(batch)
                    batch.future = Future()
                    batch.future.set_exception(exc)
            return batch.future

    def abandon(self, batch: Batch) -> None:
        """Cancel the batch if it is still queued, so that it is never written."""
        self.event_outage.begin("the disk did not respond in time", self.clock())
        if batch.future and batch.future.cancel():
            self.close_batch(batch)

    def reserve(self, size_bytes: int) -> None:
        if self.is_stalled() or self.queued_bytes + size_bytes > MAX_QUEUED_BYTES:
            raise NotStored("the disk is stalled or too slow")
        self.queued_bytes += size_bytes

    def is_stalled(self) -> bool:
        began = self.write_began
        return began is not None and time.monotonic() - began > STALLED_AFTER_SECONDS

    def submit(self, job: Callable[..., Any], *arguments: Any) -> Future[Any]:
        """Queue a job for the writer thread.  Raises RuntimeError if it cannot be started."""
        if not self.has_writer:
            # A job stays queued even if its thread cannot be started, so the first one is a no-op.
            self.executor.submit(int)
            self.has_writer = True
        return self.executor.submit(job, *arguments)

    def commit(self, batch: Batch) -> None:
        self.close_batch(batch)
        name = plain_name(Kind.EVENTS, batch.day)
        with self.writing(name, self.event_outage):
            key = self.address_key(batch.day) if any(n.hash_ip for n in batch.lines) else b""
            lines = b"".join(line.completed(key) if key else line.text for line in batch.lines)
            self.event_file.append(name, lines, batch.deadline)

    def close_batch(self, batch: Batch) -> None:
        with self.lock:
            if self.open_batches.get(batch.day) is batch:
                del self.open_batches[batch.day]
            self.queued_bytes -= sum(len(line.text) for line in batch.lines)

    @contextlib.contextmanager
    def writing(self, name: str, outage: Outage) -> Iterator[None]:
        self.write_began = time.monotonic()
        try:
            yield
        except Exception as exc:
            outage.begin(f"{name}: {exc}", self.clock())
            raise
        else:
            outage.end()
        finally:
            self.write_began = None

    def address_key(self, day: str) -> bytes:
        if day not in self.keys:
            make_directory(self.directory)
            # One key only: a key that was destroyed on disk must not stay in memory.
            self.keys = {day: read_or_make_key(self.directory / key_name(day))}
        return self.keys[day]

    def record_refusal(self, refusal: Mapping[str, Any]) -> None:
        """Queue a line for the day's refusals, at most MAX_REFUSED_BYTES a day.

        Refusals are statistics: no request waits for them, and they may be lost.
        """
        line = f"{encode(refusal)}\n".encode("ascii")
        with contextlib.suppress(NotStored, RuntimeError), self.lock:
            self.reserve(len(line))
            self.refusals.append((refusal["received_at"][:10], line))
            if len(self.refusals) == 1:  # otherwise a job that will write it is queued already
                self.submit(self.write_refusals)

    def write_refusals(self) -> None:
        with self.lock:
            refusals, self.refusals = self.refusals, []
            self.queued_bytes -= sum(len(line) for _, line in refusals)
        for day, group in groupby(refusals, key=itemgetter(0)):
            name = plain_name(Kind.REFUSED, day)
            with self.writing(name, self.refusal_outage):
                self.refused_file.append_unsynced(name, b"".join(line for _, line in group))

    def health(self) -> dict[str, Any]:
        """Tell whether an event would be stored now (`ok`), and why not.  Writes nothing."""
        now = self.clock()
        free, writable = 0, False
        with contextlib.suppress(OSError):
            base = existing_base(self.directory)
            free = free_bytes(base)
            names = (plain_name(Kind.EVENTS, f"{now:%F}"), key_name(f"{now:%F}"))
            paths = [self.directory / name for name in names]
            writable = is_usable(base) and all(is_usable_file(path) for path in paths)
        # Without new events nothing would show that the cause of an error is gone, so an error
        # counts for a limited time.
        failed_at = self.event_outage.last_error_at if self.event_outage.is_active else None
        has_failed = failed_at is not None and now - failed_at < timedelta(seconds=DISTRUST_SECONDS)
        has_room = free >= self.min_free_bytes
        last_error_at = self.event_outage.last_error_at
        return {
            "ok": writable and has_room and not has_failed and not self.is_stalled(),
            "writable": writable,
            "free_mb": free // 2**20,
            "last_error": self.event_outage.last_error,
            "last_error_at": last_error_at and timestamp(last_error_at),
        }

    def close(self) -> None:
        """Write what is queued and end the writer thread; abandon it if the disk has stalled."""
        with contextlib.suppress(TimeoutError, RuntimeError):
            if self.has_writer:
                self.submit(int).result(MAX_WAIT_SECONDS)
        self.executor.shutdown(wait=False, cancel_futures=True)


def existing_base(directory: Path) -> Path:
    """Return the directory, or the nearest one above it that exists.  Raises OSError."""
    for path in (directory.absolute(), *directory.absolute().parents):
        if path.exists():
            return path
        if path.is_symlink():
            raise FileNotFoundError(errno.ENOENT, "a link to nothing", str(path))
    raise FileNotFoundError(errno.ENOENT, "no such directory", str(directory))


def is_usable(directory: Path) -> bool:
    return directory.is_dir() and os.access(directory, os.R_OK | os.W_OK | os.X_OK)


def is_usable_file(path: Path) -> bool:
    """Tell whether the file can be appended to, or does not exist yet."""
    if not os.path.lexists(path):
        return True
    return path.is_file() and not path.is_symlink() and os.access(path, os.R_OK | os.W_OK)


def read_or_make_key(path: Path) -> bytes:
    """Return the key in that file; the first worker creates it."""
    with locked(path.parent):
        key = read_key(path)
        if len(key) != KEY_BYTES:  # missing or truncated; a short key could be guessed
            key = secrets.token_bytes(KEY_BYTES)
            draft = path.with_name(f"{path.name}{DRAFT_SUFFIX}")
            write_draft(draft, [key], KEY_MODE)
            os.rename(draft, path)
            sync_directory(path.parent)
        return key


def read_key(path: Path) -> bytes:
    try:
        with opened(path, os.O_RDONLY) as fd:
            return os.read(fd, KEY_BYTES + 1)
    except FileNotFoundError:
        return b""


class Appender:
    """Appends complete lines to one file at a time; to be used by one thread."""

    def __init__(self, directory: Path, min_free_bytes: int = 0) -> None:
        self.directory = directory
        self.min_free_bytes = min_free_bytes
        self.name = ""
        self.fd = -1
        self.has_synced_directory = False
        self.unfinished: tuple[int, int] | None = None  # start and end of what to roll back

    def append(self, name: str, lines: bytes, deadline: float = math.inf) -> None:
        """Append complete lines; when this returns they are on disk, in a file of that name.

        Raises OSError; then none of them is in the file.  After `deadline`, in
        time.monotonic(), nothing is written.
        """
        for _ in range(3):
            self.make_directory()
            # Held until the sync returns, so that nobody appends behind lines that may be
            # rolled back.
            with locked(self.directory):
                is_new, start = self.open(name)
                self.require_room(lines)
                if time.monotonic() > deadline:
                    raise TimeoutError("the deadline passed before the write")
                with self.all_or_nothing(start, lines):
                    write_all(self.fd, lines)
                    os.fsync(self.fd)
                    if is_new:
                        self.sync_names()
                    has_name = os.fstat(self.fd).st_nlink > 0
            if has_name:
                return
        raise OSError(errno.ENOENT, "deleted each time while it was being written")

    def append_unsynced(self, name: str, lines: bytes) -> None:
        """Append the lines that fit into MAX_REFUSED_BYTES.  Raises OSError; then none of them."""
        self.make_directory()
        with locked(self.directory):
            _, start = self.open(name)
            lines = lines[: lines.rfind(b"\n", 0, max(0, MAX_REFUSED_BYTES - start)) + 1]
            self.require_room(lines)
            with self.all_or_nothing(start, lines):
                write_all(self.fd, lines)

    def open(self, name: str) -> tuple[bool, int]:
        """Open the file of that name unless it is open; return whether it was not, and its size.

        The open file may have been moved or deleted, so its inode is compared with the one
        that the name has now.  (An inode number is not reused while the file is open.)
        """
        path = self.directory / name
        if self.unfinished and is_named(self.fd, self.directory / self.name):
            self.roll_back()
        is_new = self.fd < 0 or self.name != name or not is_named(self.fd, path)
        if is_new:
            self.close()
            self.fd = open_regular(path, os.O_RDWR | os.O_APPEND | os.O_CREAT)
            self.name = name
            if os.fstat(self.fd).st_size == 0:
                os.fchmod(self.fd, FILE_MODE)  # whatever the umask is
        return is_new, repair_tail(self.fd, name, thorough=is_new)

    def require_room(self, lines: bytes) -> None:
        require_room(self.directory, self.min_free_bytes + len(lines))

    def make_directory(self) -> None:
        if not self.directory.is_dir():
            make_directory(self.directory)
            self.has_synced_directory = True

    def sync_names(self) -> None:
        # Every worker does this: the one that created the file or its directory may have died
        # before it synced the name.
        sync_directory(self.directory)
        self.sync_directory_name()

    def sync_directory_name(self) -> None:
        if not self.has_synced_directory and self.directory.is_dir():
            sync_name(self.directory)
            self.has_synced_directory = True

    @contextlib.contextmanager
    def all_or_nothing(self, start: int, lines: bytes) -> Iterator[None]:
        try:
            yield
        except OSError:
            self.unfinished = start, start + len(lines)
            with contextlib.suppress(OSError):  # open() will try again
                self.roll_back()
            raise

    def roll_back(self) -> None:
        """Cut off lines that were not written completely, or not synced.

        Another fsync cannot repair a failed one: the kernel has marked the pages clean, and
        would report success without writing them.
        """
        if self.unfinished:
            start, end = self.unfinished
            # start == size: an earlier attempt truncated the file, but its sync failed.
            if start <= os.fstat(self.fd).st_size <= end:
                cut_off(self.fd, start)
        self.close()

    def close(self) -> None:
        self.unfinished = None
        if self.fd >= 0:
            fd, self.fd = self.fd, -1
            os.close(fd)
