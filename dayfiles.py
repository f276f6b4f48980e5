"""The daily files: names, the lock on their directory, and small durable operations.

    DATA_DIR/events-2026-11-23.jsonl      the UTC day of each event's received_at
    DATA_DIR/events-2026-11-15.jsonl.gz   an older day, compressed
    DATA_DIR/refused-2026-11-23.jsonl     what was refused that day, and why
    DATA_DIR/address-key-2026-11-23       the key that day's addresses are hashed with

Each line is compact JSON in printable ASCII, and complete once its newline is on disk.
Bytes after the last newline are a torn tail, which was never acknowledged.
"""

import contextlib
import errno
import fcntl
import gzip
import json
import logging
import os
import re
import stat
import zlib
from collections.abc import Iterable, Iterator
from datetime import UTC, date, datetime
from enum import StrEnum
from pathlib import Path
from typing import Any, NamedTuple

FILE_MODE = 0o640
DIRECTORY_MODE = 0o750
CLAIM_MODE = 0o644
DRAFT_SUFFIX = ".draft"
CHUNK_BYTES = 2**16
GZIP_WBITS = 31  # zlib's way to say: with gzip's header and trailer

# Used by the one process that holds the claim.  The pattern events-*.jsonl* does not match them.
CLAIM_NAME = "events-housekeeping.claim"
DRAFT_NAME = f"events-housekeeping{DRAFT_SUFFIX}"

# A power cut can leave NUL bytes anywhere in data that was not synced, which is never more
# than this: a batch, or the refusals of a day.
MAX_UNSYNCED_BYTES = 16 * 2**20

log = logging.getLogger(__name__)
encode = json.JSONEncoder(separators=(",", ":"), allow_nan=False).encode


def utc_now() -> datetime:
    return datetime.now(UTC)


def timestamp(now: datetime) -> str:
    """Return an aware UTC time as `2026-11-23T04:05:06.123Z`."""
    return f"{now.replace(tzinfo=None).isoformat(timespec='milliseconds')}Z"


class Kind(StrEnum):
    """What a daily file holds; the value begins its name."""

    EVENTS = "events"
    REFUSED = "refused"


class DayFile(NamedTuple):
    day: date
    kind: Kind
    path: Path

    @property
    def is_compressed(self) -> bool:
        return self.path.suffix == ".gz"


DAY_FILE_NAME = re.compile(r"(events|refused)-(\d{4}-\d\d-\d\d)\.jsonl(?:\.gz)?", re.ASCII)
KEY_NAME = re.compile(r"address-key-(\d{4}-\d\d-\d\d)(?:\.draft)?", re.ASCII)


def plain_name(kind: Kind, day: str) -> str:
    return f"{kind}-{day}.jsonl"


def key_name(day: str) -> str:
    return f"address-key-{day}"


def day_files(directory: Path) -> list[DayFile]:
    """Return the daily files in the directory, oldest first; other names are ignored."""
    found = []
    for path in directory.iterdir():
        if match := DAY_FILE_NAME.fullmatch(path.name):
            with contextlib.suppress(ValueError):  # such as the 31st of February
                found.append(DayFile(date.fromisoformat(match[2]), Kind(match[1]), path))
    return sorted(found)


def compressed_path(plain: Path) -> Path:
    return plain.with_name(f"{plain.name}.gz")


def archived_bytes(plain_fd: int, archive: Path) -> int | None:
    """Return how many bytes of the plain file, from its start, the archive holds.

    None if the archive holds anything else.  Both exist if a compression was killed before it
    deleted the plain file.  Raises OSError, EOFError or zlib.error if the archive is damaged
    and agrees up to the damage.
    """
    length = 0
    with (
        opened(archive, os.O_RDONLY) as fd,
        open(fd, "rb", closefd=False) as file,
        gzip.open(file) as lines,
    ):
        while chunk := lines.read(CHUNK_BYTES):
            if os.pread(plain_fd, len(chunk), length) != chunk:
                return None
            length += len(chunk)
    return length


# Locks.


@contextlib.contextmanager
def locked(directory: Path) -> Iterator[None]:
    """Hold the exclusive lock on the directory, which every writer takes."""
    is_held = False
    while not is_held:
        # Opened anew each time: forked processes share an open file description, so
        # flock() on a kept one would not exclude them.
        with opened_directory(directory) as fd:
            fcntl.flock(fd, fcntl.LOCK_EX)
            # The directory may have been replaced while this waited for the lock.
            is_held = os.path.samestat(os.fstat(fd), os.stat(directory))
            if is_held:
                yield


@contextlib.contextmanager
def opened_directory(directory: Path) -> Iterator[int]:
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        yield fd
    finally:
        with contextlib.suppress(OSError):  # Linux releases descriptor and lock anyway
            os.close(fd)


@contextlib.contextmanager
def claimed(directory: Path) -> Iterator[None]:
    """Be the only process that compresses, deletes or rewrites files.

    Raises BlockingIOError while another process is at it.
    """
    path = directory / CLAIM_NAME
    with contextlib.ExitStack() as stack:
        with locked(directory):
            # Readable by everyone: if root's process is killed, the server's user must be able
            # to lock the same file.
            claim = stack.enter_context(opened(path, os.O_RDONLY | os.O_CREAT, CLAIM_MODE))
            with contextlib.suppress(PermissionError):
                os.fchmod(claim, CLAIM_MODE)  # whatever the umask is
            fcntl.flock(claim, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
        with locked(directory):
            os.unlink(path)


def remove_draft(directory: Path) -> None:
    with contextlib.suppress(FileNotFoundError):
        os.unlink(directory / DRAFT_NAME)


# Opening and writing.


@contextlib.contextmanager
def opened(path: Path, flags: int, mode: int = FILE_MODE) -> Iterator[int]:
    fd = open_regular(path, flags, mode)
    try:
        yield fd
    finally:
        os.close(fd)


def open_regular(path: Path, flags: int, mode: int = FILE_MODE) -> int:
    """Open a regular file, never a link, a device or a pipe.  Raises OSError."""
    # Without O_NONBLOCK, opening a FIFO would wait for its other end.
    fd = os.open(path, flags | os.O_NOFOLLOW | os.O_NONBLOCK, mode)
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        os.close(fd)
        raise OSError(errno.EINVAL, "not a regular file", str(path))
    return fd


def write_all(fd: int, content: bytes) -> None:
    while content:
        content = content[os.write(fd, content) :]


def write_draft(path: Path, content: Iterable[bytes], mode: int, min_free_bytes: int = 0) -> None:
    """Write and sync a new file, to be renamed into place."""
    with opened(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, mode) as fd:
        os.fchmod(fd, mode)  # whatever the umask is
        for chunk in content:
            require_room(path.parent, min_free_bytes + len(chunk))
            write_all(fd, chunk)
        os.fsync(fd)


def compressed(chunks: Iterable[bytes]) -> Iterator[bytes]:
    packer = zlib.compressobj(wbits=GZIP_WBITS)
    for chunk in chunks:
        yield packer.compress(chunk)
    yield packer.flush()


def is_named(fd: int, path: Path) -> bool:
    """Tell whether `path` is still a name of the open file."""
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


# Names that survive a power cut.


def make_directory(directory: Path) -> None:
    """Create the directory and its missing parents, each durable before the next one.

    So a process that finds the directory has to sync only that one name: the process that
    created it may have died before it did so.
    """
    missing = [path for path in (directory, *directory.parents) if not path.is_dir()]
    if missing:
        sync_name(missing[-1].parent)
    for path in reversed(missing):
        with contextlib.suppress(FileExistsError):  # by another worker
            os.mkdir(path)
        if path == directory:
            os.chmod(path, DIRECTORY_MODE)  # whatever the umask is
        sync_name(path)


def sync_name(path: Path) -> None:
    """Make the name of a directory durable, by syncing its parent."""
    # A parent that may not be read belongs to somebody else, and existed before.
    with contextlib.suppress(PermissionError):
        sync_directory(path.absolute().parent)


def sync_directory(directory: Path) -> None:
    """Make the names in a directory durable; syncing a file does not sync its name."""
    with opened_directory(directory) as fd:
        os.fsync(fd)


# Torn tails.


def repair_tail(fd: int, name: str, *, thorough: bool) -> int:
    """Make the file end with a complete line, and return its size.  The caller holds the lock.

    A tail that is a complete record without its newline, as an editor may leave it, gets the
    newline; any other tail is cut off.  `thorough` also searches the end of the file for NUL
    bytes of a power cut, and cuts off everything from the line that holds the first one.
    The lines behind that were not acknowledged either: a sync covers all earlier writes.
    """
    size = end = os.fstat(fd).st_size
    if thorough:
        start = max(0, size - MAX_UNSYNCED_BYTES)
        nul = os.pread(fd, size - start, start).find(b"\0")
        if nul >= 0:
            end = start + nul
    end = end_of_last_line(fd, end)
    if end == size:
        return size
    if size - end <= MAX_UNSYNCED_BYTES and read_record(os.pread(fd, size - end, end)):
        write_all(fd, b"\n")
        os.fsync(fd)
        return size + 1
    cut_off(fd, end)
    log.warning("%s: cut off a torn tail of %d bytes", name, size - end)
    return end


def read_record(line: bytes) -> dict[str, Any] | None:
    """Return the record in a line, None if it is not a record."""
    try:
        record = json.loads(line)
    except (ValueError, RecursionError):
        return None
    is_record = isinstance(record, dict) and {"received_at", "source"} <= record.keys()
    return record if is_record else None


def cut_off(fd: int, end: int) -> None:
    # Without the sync, old bytes may reappear behind newer lines after a power cut.
    os.ftruncate(fd, end)
    os.fsync(fd)


def end_of_last_line(fd: int, end: int) -> int:
    """Return the offset behind the last newline before `end`, 0 if there is none."""
    if end and os.pread(fd, 1, end - 1) == b"\n":
        return end
    while end:
        start = max(0, end - CHUNK_BYTES)
        newline = os.pread(fd, end - start, start).rfind(b"\n")
        if newline >= 0:
            return start + newline + 1
        end = start
    return 0
