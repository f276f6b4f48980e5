"""Store events: group commit into the day's file.

Requests enqueue their lines into the day's open batch and wait for it.  One thread writes and
syncs a batch while the next one fills: the slower the disk, the more events share a sync.
Requests never touch the disk themselves, so a stalled disk still gets its clients a 503.

Workers take the directory's lock to write, and give it back before they sync: on a slow disk
their syncs run side by side.
"""

import contextlib
import errno
import fcntl
import logging
import math
import os
import secrets
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import CancelledError, Future
from dataclasses import dataclass, field
from datetime import datetime
from functools import partial
from itertools import groupby
from operator import itemgetter
from pathlib import Path
from queue import SimpleQueue
from typing import Any

from files.days import Kind, key_name, plain_name
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
    set_mode,
    sync_directory,
    sync_name,
    write_all,
)
from files.records import encode, timestamp, utc_now

KEY_MODE = 0o600
KEY_BYTES = 32

MAX_REFUSED_BYTES = 8 * 2**20  # of each day's file
# A batch is flushed when it is this large, so that a round of large events fits into the queue.
MAX_BATCH_BYTES = 2**20
MAX_QUEUED_BYTES = 16 * 2**20
# Clients get a response within three seconds.  A request may have to wait twice: for the batch
# that is being written when it arrives, and then for its own.
MAX_WAIT_SECONDS = 2.8
STALLED_AFTER_SECONDS = 2.0  # a batch that takes longer: the disk has stalled
PROBE_BYTES = 4096
HEALTH_SECONDS = 5  # how long health() relies on the last attempt to store something

log = logging.getLogger(__name__)


class NotStored(Exception):
    """The event is not on disk; the client may retry later."""


@dataclass(eq=False)
class Batch:
    """Events of one day that share one write and one sync."""

    day: str
    lines: list["Line"] = field(default_factory=list)
    size_bytes: int = 0
    future: Future[None] | None = None  # from flush() on
    deadline: float = math.inf  # in time.monotonic(), for all requests in the batch


@dataclass(frozen=True)
class Line:
    """A record as text; `hash_ip` computes its `ip` once the day's key is known."""

    text: bytes
    hash_ip: Callable[[bytes], str] | None = None

    def hashed(self, key: bytes) -> bytes:
        if self.hash_ip is None:
            return self.text
        # The first match is the record's own ip: the values before it hold no quotes.
        return self.text.replace(b'"ip":null', b'"ip":"%b"' % self.hash_ip(key).encode(), 1)


@dataclass
class Outage:
    """Why lines of one kind cannot be stored; logged when it begins and when it ends."""

    kind: str
    is_active: bool = False
    tried_at: float = -math.inf  # in time.monotonic(), when the last attempt ended
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


class Writer:
    """Runs jobs in a thread, one after the other.

    A daemon thread, unlike those of concurrent.futures: a process must be able to end while
    the disk is stalled.
    """

    def __init__(self) -> None:
        self.jobs: SimpleQueue[tuple[Future[Any], Callable[[], Any]]] = SimpleQueue()
        self.thread: threading.Thread | None = None

    def submit(self, job: Callable[[], Any]) -> Future[Any]:
        """Queue a job.  Raises RuntimeError if the thread cannot be started."""
        if self.thread is None or not self.thread.is_alive():  # a fork does not copy it
            thread = threading.Thread(target=self.run, name="writer", daemon=True)
            thread.start()
            self.thread = thread
        future: Future[Any] = Future()
        self.jobs.put((future, job))
        return future

    def run(self) -> None:
        while True:
            future, job = self.jobs.get()
            if future.set_running_or_notify_cancel():
                try:
                    future.set_result(job())
                except Exception as exc:
                    future.set_exception(exc)


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
        self.writer = Writer()
        self.write_began: float | None = None  # in time.monotonic(), as is the next
        # Requests of the next batch may have waited for as long as the last one took.
        self.waited_until = -math.inf
        self.event_outage = Outage("events")
        self.refusal_outage = Outage("refusals")
        # Used by the writer thread only.
        self.event_file = Appender(directory, min_free_bytes)
        self.refused_file = Appender(directory, min_free_bytes)

    def start(self) -> None:
        """Do in advance what the first event would have to wait for; call this after a fork."""
        with contextlib.suppress(RuntimeError):
            self.writer.submit(self.rehearse)

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
            batch.size_bytes += len(line.text)
            if batch.size_bytes >= MAX_BATCH_BYTES:
                self.flush(batch)
                self.open_batches.pop(day, None)
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
                now = time.monotonic()
                batch.deadline = now + MAX_WAIT_SECONDS - max(0.0, self.waited_until - now)
                try:
                    batch.future = self.writer.submit(partial(self.commit, batch))
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

    def close_batch(self, batch: Batch) -> None:
        with self.lock:
            if self.open_batches.get(batch.day) is batch:
                del self.open_batches[batch.day]
            self.queued_bytes -= batch.size_bytes

    def reserve(self, size_bytes: int) -> None:
        if self.is_stalled() or self.queued_bytes + size_bytes > MAX_QUEUED_BYTES:
            raise NotStored("the disk is stalled or too slow")
        self.queued_bytes += size_bytes

    def is_stalled(self) -> bool:
        began = self.write_began
        return began is not None and time.monotonic() - began > STALLED_AFTER_SECONDS

    def commit(self, batch: Batch) -> None:
        self.close_batch(batch)
        name = plain_name(Kind.EVENTS, batch.day)
        with self.writing(name, self.event_outage):
            self.event_file.append(name, self.text_of(batch), batch.deadline)

    def text_of(self, batch: Batch) -> bytes:
        if not any(line.hash_ip for line in batch.lines):
            return b"".join(line.text for line in batch.lines)
        # Read anew for each batch: a key that was destroyed on disk must not stay in memory.
        make_directory(self.directory)
        key = read_or_make_key(self.directory / key_name(batch.day))
        return b"".join(line.hashed(key) for line in batch.lines)

    @contextlib.contextmanager
    def writing(self, name: str, outage: Outage) -> Iterator[None]:
        began = self.write_began = time.monotonic()
        try:
            yield
        except Exception as exc:
            outage.begin(f"{name}: {exc}", self.clock())
            raise
        else:
            outage.end()
        finally:
            ended = outage.tried_at = time.monotonic()
            self.write_began, self.waited_until = None, ended + (ended - began)

    def record_refusal(self, refusal: Mapping[str, Any]) -> None:
        """Queue a line for the day's refusals, at most MAX_REFUSED_BYTES a day.

        Refusals are statistics: no request waits for them, and they may be lost.
        """
        line = f"{encode(refusal)}\n".encode("ascii")
        with contextlib.suppress(NotStored, RuntimeError), self.lock:
            if not self.refusals:  # otherwise a job that will write them is queued already
                self.writer.submit(self.write_refusals)
            self.reserve(len(line))
            self.refusals.append((refusal["received_at"][:10], line))

    def write_refusals(self) -> None:
        with self.lock:
            refusals, self.refusals = self.refusals, []
            self.queued_bytes -= sum(len(line) for _, line in refusals)
        for day, group in groupby(refusals, key=itemgetter(0)):
            name = plain_name(Kind.REFUSED, day)
            with self.writing(name, self.refusal_outage):
                self.refused_file.append_unsynced(name, b"".join(line for _, line in group))

    def health(self) -> dict[str, Any]:
        """Tell whether an event would be stored now (`ok`), and the last reason why not.

        The result of the last attempt counts for HEALTH_SECONDS; after that the writer
        rehearses an event.
        """
        if time.monotonic() - self.event_outage.tried_at > HEALTH_SECONDS and not self.is_stalled():
            try:
                self.writer.submit(self.rehearse).result(STALLED_AFTER_SECONDS)
            except TimeoutError:
                self.event_outage.begin("the disk did not respond in time", self.clock())
            except RuntimeError as exc:
                self.event_outage.begin(str(exc), self.clock())
            except OSError:
                pass  # noted in the outage
        outage, free = self.event_outage, 0.0
        with contextlib.suppress(OSError):
            free = free_bytes(existing_base(self.directory))
        return {
            "ok": not outage.is_active and free >= self.min_free_bytes and not self.is_stalled(),
            "free_mb": None if free == math.inf else int(free) // 2**20,
            "last_error": outage.last_error,
            "last_error_at": outage.last_error_at and timestamp(outage.last_error_at),
        }

    def rehearse(self) -> None:
        day = f"{self.clock():%F}"
        name = plain_name(Kind.EVENTS, day)
        with self.writing(name, self.event_outage):
            read_key(self.directory / key_name(day))
            self.event_file.rehearse(name)

    def close(self) -> None:
        """Wait until what is queued is written, unless the disk has stalled."""
        with contextlib.suppress(TimeoutError):
            if self.writer.thread and not self.is_stalled():
                self.writer.submit(int).result(MAX_WAIT_SECONDS)


def existing_base(directory: Path) -> Path:
    """Return the directory, or the nearest one above it that exists.  Raises OSError."""
    for path in (directory.absolute(), *directory.absolute().parents):
        if path.exists():
            return path
        if path.is_symlink():
            raise FileNotFoundError(errno.ENOENT, "a link to nothing", str(path))
    raise FileNotFoundError(errno.ENOENT, "no such directory", str(directory))


def read_or_make_key(path: Path) -> bytes:
    """Return the key in that file; the first worker creates it."""
    with locked(path.parent):
        key = read_key(path)
        if len(key) != KEY_BYTES:  # missing, truncated or torn; a short key could be guessed
            key = secrets.token_bytes(KEY_BYTES)
            with opened(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, KEY_MODE) as fd:
                set_mode(fd, KEY_MODE)
                write_all(fd, key)
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
        self.has_synced_name = True  # of the open file
        self.synced_directory: tuple[int, int] | None = None  # whose own name has been synced
        self.has_unsynced_cut = False

    def append(self, name: str, lines: bytes, deadline: float = math.inf) -> None:
        """Append complete lines; when this returns they are on disk, in a file of that name.

        Raises OSError; then none of them is in the file, unless they could not be undone.
        After `deadline`, in time.monotonic(), nothing is written.
        """
        for _ in range(3):
            make_directory(self.directory)
            with locked(self.directory) as directory:
                start = self.open(name)
                require_room(self.directory, self.min_free_bytes + len(lines))
                if time.monotonic() > deadline:
                    raise TimeoutError("the deadline passed before the write")
                if self.has_unsynced_cut:
                    cut_off(self.fd, start)
                # Shared by all that write and sync it; whoever replaces the file waits for them.
                fcntl.flock(self.fd, fcntl.LOCK_SH)
                self.write(start, lines)
            try:
                has_name = self.sync(directory)
            except OSError:
                with contextlib.suppress(OSError):
                    self.undo(lines)
                raise
            if has_name:
                return
        raise OSError(errno.ENOENT, "deleted each time while it was being written")

    def append_unsynced(self, name: str, lines: bytes) -> None:
        """Append the lines that fit into MAX_REFUSED_BYTES.  Raises OSError; then none of them."""
        make_directory(self.directory)
        with locked(self.directory):
            start = self.open(name)
            lines = lines[: lines.rfind(b"\n", 0, max(0, MAX_REFUSED_BYTES - start)) + 1]
            require_room(self.directory, self.min_free_bytes + len(lines))
            self.write(start, lines)

    def rehearse(self, name: str) -> None:
        """Meet what an event would meet, but store nothing.  Raises OSError."""
        has_file, size = os.path.lexists(self.directory / name), 0
        if self.directory.is_dir():
            with locked(self.directory) as directory:
                size = self.open(name) if has_file else 0
            if has_file:
                os.fsync(self.fd)
            self.sync_names(directory)
        base = existing_base(self.directory)
        require_room(base, self.min_free_bytes)
        write_unnamed(base, size, needs_inode=not has_file)

    def open(self, name: str) -> int:
        """Open the file of that name unless it is open, and return its size.

        The open file may have been moved or deleted, so its inode is compared with the one
        that the name has now.  (An inode number is not reused while the file is open.)
        """
        path = self.directory / name
        if self.fd < 0 or self.name != name or not is_named(self.fd, path):
            self.close()
            self.fd = open_regular(path, os.O_RDWR | os.O_APPEND | os.O_CREAT)
            self.name, self.has_synced_name = name, False
            if os.fstat(self.fd).st_size == 0:
                set_mode(self.fd, FILE_MODE)
        return repair_tail(self.fd, name)

    def write(self, start: int, lines: bytes) -> None:
        """Write all lines or none.  The caller holds the lock."""
        try:
            write_all(self.fd, lines)
        except OSError:
            with contextlib.suppress(OSError):  # the next writer cuts off what is torn
                cut_off(self.fd, start)
            self.close()
            raise

    def sync(self, directory: os.stat_result) -> bool:
        """Make what was written durable, with its name; tell whether it still has one."""
        try:
            os.fsync(self.fd)
            self.has_unsynced_cut = False
            self.sync_names(directory)
            return os.fstat(self.fd).st_nlink > 0
        finally:
            fcntl.flock(self.fd, fcntl.LOCK_UN)

    def undo(self, lines: bytes) -> None:
        """Cut off lines whose sync failed, unless another worker has appended behind them.

        Then they stay, though nobody was told that they are stored.
        """
        path = self.directory / self.name
        try:
            with locked(self.directory):
                self.cut(self.fd, lines)
                if not is_named(self.fd, path):  # replaced by a copy, which may have them, too
                    with opened(path, os.O_RDWR) as copy:
                        self.cut(copy, lines)
        finally:
            # Another fsync cannot repair a failed one: the kernel has marked the pages clean,
            # and would report success without writing them.
            self.close()

    def cut(self, fd: int, lines: bytes) -> None:
        start = os.fstat(fd).st_size - len(lines)
        if start >= 0 and os.pread(fd, len(lines), start) == lines:
            self.has_unsynced_cut = True
            cut_off(fd, start)
            self.has_unsynced_cut = False

    def sync_names(self, directory: os.stat_result) -> None:
        """Make the names of the file and of its directory durable.

        Every worker does this: the one that created them may have died before it did.
        """
        if not self.has_synced_name:
            sync_directory(self.directory)
            self.has_synced_name = True
        identity = directory.st_dev, directory.st_ino
        if identity != self.synced_directory:
            sync_name(self.directory)
            self.synced_directory = identity

    def close(self) -> None:
        if self.fd >= 0:
            fd, self.fd = self.fd, -1
            os.close(fd)


def write_unnamed(directory: Path, offset: int, *, needs_inode: bool) -> None:
    """Write and sync a block at that offset of a file without a name, which then is gone."""
    if not os.access(directory, os.R_OK | os.W_OK | os.X_OK):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(directory))
    try:
        fd = os.open(directory, os.O_TMPFILE | os.O_WRONLY, FILE_MODE)
    except OSError as exc:
        # Some file systems have no files without a name; without a free inode, an existing
        # file can still grow.
        if exc.errno in (errno.EOPNOTSUPP, errno.EISDIR) or (
            exc.errno == errno.ENOSPC and not needs_inode
        ):
            return
        raise
    try:
        os.lseek(fd, offset, os.SEEK_SET)
        write_all(fd, bytes(PROBE_BYTES))
        os.fsync(fd)
    finally:
        os.close(fd)
