"""Append-only daily files, one JSON object a line.

    DATA_DIR/events-2026-11-23.jsonl      the UTC day of each event's received_at
    DATA_DIR/events-2026-11-15.jsonl.gz   an older day, compressed
    DATA_DIR/refused-2026-11-23.jsonl     what was refused that day, and why
    DATA_DIR/address-key-2026-11-23       what that day's addresses are hashed with

A line counts once its newline is on disk.  Bytes after the last newline are a
torn tail: never acknowledged, so the next writer cuts them off.  The files are
printable ASCII, so no line can be broken in the middle.

Requests hand in their lines and wait.  One writer thread takes all that were handed
in while it synced the last ones, and syncs them at once.  (Without the thread a request
would have to sync for the others, and when the disk stalls it would hang, and nobody
could answer its client.)  Writes of several workers take turns by a lock on the
directory; it is not held while a batch is synced, so the others write meanwhile.
"""

import contextlib
import errno
import fcntl
import gzip
import logging
import os
import re
import secrets
import sys
import threading
import time
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any, BinaryIO

from dayfiles import day_files, encode

FILE_MODE = 0o640
DIRECTORY_MODE = 0o750
KEY_MODE = 0o600
KEY_BYTES = 32
KEY_KEPT_DAYS = 2  # after its own day, for what arrives late

MAX_REFUSED_BYTES = 8 * 2**20  # of each day's file
MAX_WAITING_BYTES = 4 * 2**20
# A client is answered within three seconds, whatever the disk does: it may have to wait
# until others have waited, and then itself.
MAX_WAIT_SECONDS = 1.4
STALLED_AFTER_SECONDS = 1.0  # a batch that takes longer: the disk is stalled
DISTRUST_SECONDS = 30  # how long after an error health() stays bad while nothing is stored

# After a power cut the unsynced end of a file may hold NUL bytes anywhere; more
# than this much cannot have been unsynced.
UNSYNCED_BYTES = 16 * 2**20

CHUNK_BYTES = 2**16
NEW_DAY_POLL_SECONDS = 20
GZIP_WBITS = 31  # zlib's way to say: with gzip's header and trailer
# Used by the one worker that keeps house; no search for events-*.jsonl* finds them.
CLAIM_NAME = "events-housekeeping.claim"
DRAFT_NAME = "events-housekeeping.draft"

log = logging.getLogger(__name__)


class NotStored(Exception):
    """The event is not on disk; its sender may try again."""


def utc_now() -> datetime:
    return datetime.now(UTC)


def timestamp(now: datetime) -> str:
    """Return the aware UTC time as `2026-11-23T04:05:06.123Z`."""
    return f"{now.replace(tzinfo=None).isoformat(timespec='milliseconds')}Z"


def file_and_line(kind: str, record: Mapping[str, Any]) -> tuple[str, bytes]:
    return f"{kind}-{record['received_at'][:10]}.jsonl", f"{encode(record)}\n".encode("ascii")


@dataclass(eq=False)
class Batch:
    """Lines for one file, or a key to be found: `name` says which.

    When it is `done` it is on disk, or there is an `error`.
    """

    name: str
    deadline: float | None = None  # of all who wait for it, on time.monotonic()'s clock
    lines: bytearray = field(default_factory=bytearray)
    error: Exception | None = None
    done: threading.Event = field(default_factory=threading.Event)


@dataclass
class Trouble:
    """What keeps lines of one kind from the disk: logged when it begins, and when it is over."""

    kind: str
    is_there: bool = False
    last_error: str | None = None
    last_error_at: datetime | None = None

    def note(self, error: str, now: datetime) -> None:
        if not self.is_there:
            log.error("%s are not being stored: %s", self.kind, error)
        self.is_there, self.last_error, self.last_error_at = True, error, now

    def end(self) -> None:
        if self.is_there:
            log.warning("%s are being stored again, after: %s", self.kind, self.last_error)
        self.is_there = False


@dataclass(eq=False)
class Store:
    """The files of one data directory.  Any number of threads and processes may share it."""

    directory: Path
    min_free_mb: int = 0
    clock: Callable[[], datetime] = utc_now

    def __post_init__(self) -> None:
        self.min_free_bytes = self.min_free_mb * 2**20
        self.address_keys: dict[str, bytes] = {}
        self.changed = threading.Condition()
        self.waiting: dict[str, Batch] = {}
        self.write_began: float | None = None
        self.writer: threading.Thread | None = None
        self.closing = threading.Event()
        self.trouble = Trouble("events")
        self.trouble_with_refusals = Trouble("refusals")

    def append(self, event: Mapping[str, Any]) -> None:
        """Store one event; it is on disk when this returns.  Raises NotStored."""
        self.wait_for(self.submit(event))

    def submit(self, event: Mapping[str, Any]) -> Batch:
        """Hand in one event, to be waited for.  Raises NotStored if the disk does not keep up."""
        return self.hand_in(*file_and_line("events", event))

    def note_refusal(self, refusal: Mapping[str, Any]) -> None:
        """Have one line added to the day's refusals, up to MAX_REFUSED_BYTES.

        They are statistics: nobody waits for them, and they may be lost.
        """
        with contextlib.suppress(NotStored):
            self.hand_in(*file_and_line("refused", refusal))
            self.wake_writer()

    def address_key(self, day: str) -> bytes:
        """Return the day's random key, the same for every worker.  Raises NotStored."""
        name = f"address-key-{day}"
        if name not in self.address_keys:
            self.wait_for(self.hand_in(name))
        return self.address_keys[name]

    def hand_in(self, name: str, line: bytes = b"") -> Batch:
        with self.changed:
            waiting_bytes = sum(len(batch.lines) for batch in self.waiting.values())
            if waiting_bytes + len(line) > MAX_WAITING_BYTES or self.is_stalled():
                raise NotStored(f"{name}: the disk does not keep up")
            if name not in self.waiting:
                self.waiting[name] = Batch(name)
            self.waiting[name].lines += line
            return self.waiting[name]

    def wait_for(self, batch: Batch) -> None:
        """Return when all of the batch is on disk.

        Raises NotStored, at the deadline at the latest; its lines are then in no file, unless
        the disk stalled and wrote them afterwards, or as Appender.append() says.
        """
        if not batch.done.is_set():  # most often it is: somebody else has waited for it
            self.wake_writer()
            batch.deadline = batch.deadline or time.monotonic() + MAX_WAIT_SECONDS
            if not batch.done.wait(max(0.0, batch.deadline - time.monotonic())):
                self.give_up(batch)
        if batch.error:
            raise NotStored(f"{batch.name}: {batch.error}") from batch.error

    def wake_writer(self) -> None:
        # Not in hand_in: the writer would sync the first event before the others are there.
        with self.changed:
            if self.writer is None:  # not sooner: see Housekeeper.start()
                writer = threading.Thread(target=self.write_batches, daemon=True)
                with contextlib.suppress(RuntimeError):  # no room for it: try the next time
                    writer.start()
                    self.writer = writer
            self.changed.notify()

    def give_up(self, batch: Batch) -> None:
        batch.error = TimeoutError(f"no answer from the disk for {MAX_WAIT_SECONDS} seconds")
        self.trouble.note(f"{batch.name}: {batch.error}", self.clock())
        with self.changed:
            if self.waiting.get(batch.name) is batch:
                del self.waiting[batch.name]

    def is_stalled(self) -> bool:
        began = self.write_began
        return began is not None and time.monotonic() - began > STALLED_AFTER_SECONDS

    def write_batches(self) -> None:
        events = Appender(self.directory, self.min_free_bytes)
        refusals = Appender(self.directory, self.min_free_bytes)
        writes = {
            "events": events.append,
            "refused": refusals.append_unsynced,
            "address": self.find_address_key,
        }
        while batches := self.next_batches():
            for batch in batches:
                self.finish(batch, writes[batch.name.partition("-")[0]])
        events.close()
        refusals.close()

    def next_batches(self) -> list[Batch]:
        """Wait for batches and take all of them; none when the store is closing."""
        with self.changed:
            self.write_began = None
            self.changed.wait_for(lambda: self.waiting or self.closing.is_set())
            waiting, self.waiting = self.waiting, {}
            self.write_began = time.monotonic()
            return [waiting[name] for name in sorted(waiting)]  # refusals last: nobody waits

    def finish(self, batch: Batch, write: Callable[[str, bytes], None]) -> None:
        is_refusal = batch.name.startswith("refused-")
        trouble = self.trouble_with_refusals if is_refusal else self.trouble
        try:
            write(batch.name, bytes(batch.lines))
        except Exception as exc:  # whatever it is: a writer that ends would stop the server
            trouble.note(f"{batch.name}: {exc}", self.clock())
            batch.error = exc
        else:
            trouble.end()
        batch.done.set()

    def find_address_key(self, name: str, _: bytes) -> None:
        self.address_keys[name] = read_or_make_key(self.directory / name)

    def forget_keys(self, today: date) -> None:
        for name in list(self.address_keys):
            if is_expired_key(name, today):
                del self.address_keys[name]

    def health(self) -> dict[str, Any]:
        """Say whether an event would be stored now (`ok`), and what is known about it."""
        free, writable = 0, False
        with contextlib.suppress(OSError):
            # Before the first event, the directory that it will be made in.
            paths = (self.directory.absolute(), *self.directory.absolute().parents)
            there = next(path for path in paths if path.exists())
            free = free_bytes(there)
            writable = there.is_dir() and os.access(there, os.W_OK | os.X_OK)
        # An error counts for a while only: as long as no event comes, nothing
        # else would show that its cause is gone.
        recent = self.clock() - timedelta(seconds=DISTRUST_SECONDS)
        last_error_at = self.trouble.last_error_at
        failed = self.trouble.is_there and last_error_at and last_error_at > recent
        has_room = free >= self.min_free_bytes
        return {
            "ok": writable and has_room and not failed and not self.is_stalled(),
            "writable": writable,
            "free_mb": free // 2**20,
            "last_error": self.trouble.last_error,
            "last_error_at": last_error_at and timestamp(last_error_at),
        }

    def close(self) -> None:
        """Write what is waiting and end the writer; leave it where the disk is stalled."""
        with self.changed:
            self.closing.set()
            self.changed.notify()
        if self.writer:
            self.writer.join(MAX_WAIT_SECONDS)


class Appender:
    """Appends to one file at a time, for one thread.  Its methods raise OSError."""

    def __init__(self, directory: Path, min_free_bytes: int = 0) -> None:
        self.directory = directory
        self.min_free_bytes = min_free_bytes
        self.name = ""
        self.fd = -1
        self.unsynced: tuple[int, bytes] | None = None  # lines, and where they are in the file

    def append(self, name: str, lines: bytes) -> None:
        """Append whole lines; they are on disk, under `name`, when this returns.

        Where OSError is raised none of them is in the file, but for one case:
        the sync failed, and another worker had already appended behind them.
        """
        with self.all_or_nothing():
            for _ in range(3):
                was_opened = self.write(name, lines)
                os.fsync(self.fd)
                if was_opened:
                    # Each worker for itself: the one that made it may have died before this.
                    sync_directory(self.directory)
                has_name = os.fstat(self.fd).st_nlink > 0
                self.forget_unsynced()
                if has_name:
                    return
            raise OSError(errno.ENOENT, "deleted again and again while it was written")

    def append_unsynced(self, name: str, lines: bytes) -> None:
        """Append the lines up to MAX_REFUSED_BYTES; none where OSError is raised."""
        with self.all_or_nothing():
            self.write(name, lines, MAX_REFUSED_BYTES)
            self.forget_unsynced()

    def write(self, name: str, lines: bytes, max_bytes: int = sys.maxsize) -> bool:
        """Write the lines that fit; return whether the file had to be opened."""
        with locked(self.directory):
            was_opened = self.open(name)
            start = cut_torn_tail(self.fd, name, thorough=was_opened)
            lines = lines[: lines.rfind(b"\n", 0, max(0, max_bytes - start)) + 1]
            require_room(self.directory, self.min_free_bytes + len(lines))
            fcntl.flock(self.fd, fcntl.LOCK_SH)  # until it is known whether it has a name
            self.unsynced = start, lines
            try:
                write_all(self.fd, lines)
            except OSError:
                self.take_back(start, lines)  # before anybody can append behind them
                raise
            return was_opened

    def forget_unsynced(self) -> None:
        self.unsynced = None
        fcntl.flock(self.fd, fcntl.LOCK_UN)

    @contextlib.contextmanager
    def all_or_nothing(self) -> Iterator[None]:
        """If the block fails, take its lines back; if that fails too, before the next append."""
        if self.unsynced:
            self.take_back_unsynced()
        try:
            yield
        except OSError:
            with contextlib.suppress(OSError):
                self.take_back_unsynced()
            raise

    def take_back_unsynced(self) -> None:
        # A file that was moved away is its new owner's: nothing more is done to it.
        if self.unsynced and is_named(self.fd, self.directory / self.name):
            with locked(self.directory):
                self.take_back(*self.unsynced)
        self.unsynced = None
        self.close()

    def take_back(self, start: int, lines: bytes) -> None:
        """Cut off lines that were written, but not synced.  The caller holds the lock.

        After a failed fsync the kernel calls their pages clean, though they never
        reached the disk: another fsync would return without writing them.
        """
        found = os.pread(self.fd, len(lines) + 1, start)
        if lines.startswith(found) and os.fstat(self.fd).st_size >= start:
            cut_off(self.fd, start)
        elif found.startswith(lines):
            # What another worker appended must not stand behind a hole.
            # Written again, the pages are dirty again.
            write_over(self.fd, lines, start)
            os.fsync(self.fd)
        self.unsynced = None

    def open(self, name: str) -> bool:
        """Have the file of that name open; return whether it had to be opened.

        What is open may have been moved or deleted: the name decides.  (While
        it is open no other file can be given its inode's number.)
        """
        path = self.directory / name
        if self.fd >= 0 and self.name == name and is_named(self.fd, path):
            return False
        self.close()
        flags = os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW
        self.fd, self.name = os.open(path, flags, FILE_MODE), name
        if os.fstat(self.fd).st_size == 0:
            os.fchmod(self.fd, FILE_MODE)  # whatever the umask is
        return True

    def close(self) -> None:
        if self.fd >= 0:
            fd, self.fd = self.fd, -1
            os.close(fd)


# The disk, in small steps.


@contextlib.contextmanager
def opened(path: Path, flags: int, mode: int = FILE_MODE) -> Iterator[int]:
    fd = os.open(path, flags, mode)
    try:
        yield fd
    finally:
        os.close(fd)


@contextlib.contextmanager
def locked(directory: Path) -> Iterator[None]:
    """Hold the directory, made if it is missing, against every other thread and process."""
    make_directory(directory)
    # Opened each time, not kept: a descriptor shared by a fork locks nobody out.
    with opened(directory, os.O_RDONLY | os.O_DIRECTORY) as fd:
        fcntl.flock(fd, fcntl.LOCK_EX)
        yield


def make_directory(directory: Path) -> None:
    if not directory.is_dir():
        directory.parent.mkdir(parents=True, exist_ok=True)
        with contextlib.suppress(FileExistsError):  # another worker was faster
            os.mkdir(directory, DIRECTORY_MODE)
            os.chmod(directory, DIRECTORY_MODE)  # whatever the umask is
        sync_directory(directory.parent)


def sync_directory(directory: Path) -> None:
    """Make names durable: syncing a file syncs what is in it, not what it is called."""
    with opened(directory, os.O_RDONLY | os.O_DIRECTORY) as fd:
        os.fsync(fd)


def is_named(fd: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(fd), os.stat(path, follow_symlinks=False))
    except FileNotFoundError:
        return False


def free_bytes(directory: Path) -> int:
    status = os.statvfs(directory)
    return status.f_bavail * status.f_frsize


def require_room(directory: Path, wanted_bytes: int) -> None:
    if (free := free_bytes(directory)) < wanted_bytes:
        seen = f"{free} bytes are free, want {wanted_bytes} (TELEMETRY_MIN_FREE_MB)"
        raise OSError(errno.ENOSPC, seen)


def read_or_make_key(path: Path) -> bytes:
    """Return the key in that file, made by whichever worker comes first."""
    with locked(path.parent):
        if not path.exists():
            draft = path.with_name(f"{path.name}.draft")
            write_draft(draft, [secrets.token_bytes(KEY_BYTES)], KEY_MODE)
            os.rename(draft, path)
            sync_directory(path.parent)
        return path.read_bytes()


def write_draft(path: Path, content: Iterable[bytes], mode: int, min_free_bytes: int = 0) -> None:
    """Write a file, to be renamed when this returns, for then it is on disk."""
    with opened(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, mode) as fd:
        os.fchmod(fd, mode)  # whatever the umask is
        for chunk in content:
            require_room(path.parent, min_free_bytes + len(chunk))
            write_all(fd, chunk)
        os.fsync(fd)


def write_all(fd: int, content: bytes) -> None:
    while content:
        content = content[os.write(fd, content) :]


def write_over(fd: int, content: bytes, start: int) -> None:
    """Write in the middle of a file that is open for appending."""
    # In append mode Linux's pwrite() appends, whatever the offset (pwrite(2), BUGS).
    flags = fcntl.fcntl(fd, fcntl.F_GETFL)
    fcntl.fcntl(fd, fcntl.F_SETFL, flags & ~os.O_APPEND)
    while content:
        written = os.pwrite(fd, content, start)
        content, start = content[written:], start + written


def cut_torn_tail(fd: int, name: str, *, thorough: bool) -> int:
    """Cut off what follows the last whole line; return the size.  The caller holds the lock.

    `thorough` looks for what a power cut leaves, too: blocks of NUL bytes
    anywhere in what was not synced yet.  Such a line was not acknowledged, nor
    was any behind it, for a sync takes in all that was written before.
    """
    size = end = os.fstat(fd).st_size
    if thorough:
        start = max(0, size - UNSYNCED_BYTES)
        nul = os.pread(fd, size - start, start).find(b"\0")
        if nul >= 0:
            end = start + nul
    end = end_of_last_line(fd, end)
    if end < size:
        cut_off(fd, end)
        log.warning("%s: cut off a torn tail of %d bytes", name, size - end)
    return end


def cut_off(fd: int, end: int) -> None:
    """Truncate for good: after a power cut, old bytes must not show through new ones."""
    os.ftruncate(fd, end)
    os.fsync(fd)


def end_of_last_line(fd: int, end: int) -> int:
    """Return the offset behind the last newline before `end`."""
    if end and os.pread(fd, 1, end - 1) == b"\n":
        return end
    while end:
        start = max(0, end - CHUNK_BYTES)
        newline = os.pread(fd, end - start, start).rfind(b"\n")
        if newline >= 0:
            return start + newline + 1
        end = start
    return 0


# Housekeeping.


@dataclass
class Housekeeper:
    """Repairs, compresses and deletes the files of a store's directory, each day anew."""

    store: Store
    compress_after_days: int  # 0: never
    retention_days: int  # 0: for ever

    def start(self) -> None:
        """Keep house now and each new day.  Call it after a fork, which leaves threads behind."""
        threading.Thread(target=self.keep_house_daily, daemon=True).start()

    def keep_house_daily(self) -> None:
        last = None
        while not self.store.closing.is_set():
            today = self.store.clock().date()
            if today != last:
                last = today
                try:
                    self.keep_house(today)
                except OSError as exc:
                    log.error("no housekeeping until tomorrow: %s", exc)
            self.store.closing.wait(NEW_DAY_POLL_SECONDS)

    def keep_house(self, today: date) -> None:
        """Cut torn tails, forget keys, delete what is too old, compress what is old enough.

        A kill at any moment loses nothing and doubles nothing: the next run
        goes on.  Does nothing while another process is at it.
        """
        self.store.forget_keys(today)
        directory = self.store.directory
        if not directory.is_dir():
            return
        with contextlib.suppress(BlockingIOError), claimed(directory):
            delete_keys(directory, today)
            files = day_files(directory)
            reference = reference_day([file.day for file in files], today)
            for file in files:
                try:
                    self.keep_file(file.path, (reference - file.day).days)
                except (OSError, EOFError, zlib.error) as exc:
                    log.error("%s: left as it is until tomorrow: %s", file.path.name, exc)
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(directory / DRAFT_NAME)  # of this file, or of a run that was killed

    def keep_file(self, path: Path, age_days: int) -> None:
        if self.retention_days and age_days >= self.retention_days:
            with locked(path.parent):
                os.unlink(path)
            log.info("%s: deleted, %d days old", path.name, age_days)
        elif path.suffix != ".gz":
            with locked(path.parent), opened(path, os.O_RDWR | os.O_NOFOLLOW) as fd:
                # What is older than yesterday's was synced long ago.
                cut_torn_tail(fd, path.name, thorough=age_days <= 1)
            if self.compress_after_days and age_days >= self.compress_after_days:
                compress(path, self.store.min_free_bytes)


def reference_day(days: list[date], today: date) -> date:
    """Return the day that ages are counted from.

    Not always today: a clock that jumps ahead must not make the whole archive old.
    """
    newest_older = max((day for day in days if day < today), default=today)
    return min(today, newest_older + timedelta(days=1))


KEY_NAME = re.compile(r"address-key-(\d{4}-\d\d-\d\d)(?:\.draft)?", re.ASCII)


def is_expired_key(name: str, today: date) -> bool:
    match = KEY_NAME.fullmatch(name)
    return bool(match and (today - date.fromisoformat(match[1])).days > KEY_KEPT_DAYS)


@contextlib.contextmanager
def claimed(directory: Path) -> Iterator[None]:
    """Keep house alone.  Raises BlockingIOError while another process does."""
    path = directory / CLAIM_NAME
    with contextlib.ExitStack() as stack:
        with locked(directory):
            claim = stack.enter_context(opened(path, os.O_RDWR | os.O_CREAT))
            fcntl.flock(claim, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
        with locked(directory):
            os.unlink(path)


def delete_keys(directory: Path, today: date) -> None:
    for path in directory.glob("address-key-*"):
        with contextlib.suppress(ValueError):  # a 31st of February
            if is_expired_key(path.name, today):
                os.unlink(path)


def compress(plain: Path, min_free_bytes: int) -> None:
    """Move the lines of `plain` to the end of its .gz, which may be there already.

    A run that is killed between the rename and the unlink leaves both; the next one
    sees by the end of the .gz which lines are in it already.
    """
    packed, draft = packed_path(plain), plain.with_name(DRAFT_NAME)
    with plain.open("rb") as source:
        size = os.fstat(source.fileno()).st_size
        start = length_packed(plain)
        if start < size:
            content = pack(packed, source, start, size)
            write_draft(draft, content, FILE_MODE, min_free_bytes)
        with locked(plain.parent):
            if os.fstat(source.fileno()).st_size != size or not is_named(source.fileno(), plain):
                return  # somebody wrote to it: the next run takes it
            # Fails while somebody syncs it, who would find it unlinked, and write again.
            fcntl.flock(source, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if start < size:
                os.rename(draft, packed)
            sync_directory(plain.parent)
            os.unlink(plain)
            sync_directory(plain.parent)


def pack(packed: Path, source: BinaryIO, start: int, end: int) -> Iterator[bytes]:
    """Yield what is in `packed`, then part of `source` as another member (RFC 1952, 2.2)."""
    if packed.exists():
        with packed.open("rb") as old:
            yield from chunks(old, 0, os.fstat(old.fileno()).st_size)
    packer = zlib.compressobj(wbits=GZIP_WBITS)
    for chunk in chunks(source, start, end):
        yield packer.compress(chunk)
    yield packer.flush()


def length_packed(plain: Path) -> int:
    """Return how many bytes of `plain`, from its start, are at the end of its .gz already.

    Raises OSError, EOFError or zlib.error where the .gz is damaged, or ends in a torn line.
    """
    if not packed_path(plain).exists():
        return 0
    length = 0
    with plain.open("rb") as source, gzip.open(packed_path(plain)) as lines:
        first = source.readline()
        for line in lines:
            if length and source.readline() == line:
                length += len(line)
            elif line == first:
                length = source.seek(len(first))
            else:
                length = 0
            if not line.endswith(b"\n"):
                raise OSError(errno.EINVAL, f"{lines.name} ends in a torn line")
    return length


def packed_path(plain: Path) -> Path:
    return plain.with_name(f"{plain.name}.gz")


def chunks(file: BinaryIO, start: int, end: int) -> Iterator[bytes]:
    for offset in range(start, end, CHUNK_BYTES):
        yield os.pread(file.fileno(), min(CHUNK_BYTES, end - offset), offset)
