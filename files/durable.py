"""Small durable operations: locks, drafts, names that survive a power cut, torn tails."""

import contextlib
import errno
import fcntl
import logging
import math
import os
import stat
from collections.abc import Iterator
from pathlib import Path

from files.days import CLAIM_NAME, DRAFT_NAME
from files.records import read_record

FILE_MODE = 0o640
DIRECTORY_MODE = 0o750
CLAIM_MODE = 0o644
DRAFT_MODE = 0o600  # until it gets the file's own
PIECE_BYTES = 2**16

# A power cut can leave NUL bytes anywhere in data that was not synced, which is never more
# than this: a batch, or the refusals of a day.
MAX_UNSYNCED_BYTES = 16 * 2**20

log = logging.getLogger(__name__)


# Locks.


@contextlib.contextmanager
def locked(directory: Path) -> Iterator[os.stat_result]:
    """Hold the exclusive lock on the directory, which every writer takes."""
    is_held = False
    while not is_held:
        # Opened anew each time: forked processes share an open file description, so
        # flock() on a kept one would not exclude them.
        with opened_directory(directory) as fd:
            fcntl.flock(fd, fcntl.LOCK_EX)
            # The directory may have been replaced while this waited for the lock.
            status = os.stat(directory)
            is_held = os.path.samestat(os.fstat(fd), status)
            if is_held:
                yield status


@contextlib.contextmanager
def opened_directory(directory: Path) -> Iterator[int]:
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        yield fd
    finally:
        with contextlib.suppress(OSError):  # Linux releases descriptor and lock anyway
            os.close(fd)


@contextlib.contextmanager
def claimed(directory: Path) -> Iterator[int]:
    """Be the only process that compresses or rewrites files; yield the claim.

    Raises BlockingIOError while another process is at it.  The file stays: if each process
    removed it, another one could hold the lock on a file without a name.
    """
    with opened(directory / CLAIM_NAME, os.O_RDONLY | os.O_CREAT, CLAIM_MODE) as claim:
        # Readable by everyone: the server's user must be able to lock what root has created.
        set_mode(claim, CLAIM_MODE)
        fcntl.flock(claim, fcntl.LOCK_EX | fcntl.LOCK_NB)
        with contextlib.suppress(FileNotFoundError):
            os.unlink(directory / DRAFT_NAME)  # left by a process that was killed
        yield claim


@contextlib.contextmanager
def drafted(directory: Path, claim: int) -> Iterator[int]:
    """Create the draft of a file that is to be replaced; it is removed unless it was renamed.

    Raises BlockingIOError if the claim was deleted: another process may hold a new one.
    """
    path, flags = directory / DRAFT_NAME, os.O_WRONLY | os.O_CREAT | os.O_EXCL
    with contextlib.ExitStack() as stack:
        with locked(directory):
            if not is_named(claim, directory / CLAIM_NAME):
                raise BlockingIOError(errno.EAGAIN, f"{CLAIM_NAME} was deleted meanwhile")
            draft = stack.enter_context(opened(path, flags, DRAFT_MODE))
        try:
            yield draft
        finally:
            if is_named(draft, path):
                os.unlink(path)


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
    try:
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            raise OSError(errno.EINVAL, "not a regular file", str(path))
    except OSError:
        os.close(fd)
        raise
    return fd


def wait_for_syncs(fd: int) -> None:
    """Wait until no line in the file is being synced; the caller holds the lock.

    For whoever replaces or deletes the file: writers sync without the lock.  A writer whose
    sync failed will undo its lines in the copy, too.
    """
    fcntl.flock(fd, fcntl.LOCK_EX)


def set_mode(fd: int, mode: int) -> None:
    """Set the mode whatever the umask is, where the owner and the file system allow it."""
    with contextlib.suppress(OSError):
        os.fchmod(fd, mode)


def write_all(fd: int, content: bytes) -> None:
    while content:
        content = content[os.write(fd, content) :]


def is_named(fd: int, path: Path) -> bool:
    """Tell whether `path` is still a name of the open file."""
    try:
        return os.path.samestat(os.fstat(fd), os.stat(path, follow_symlinks=False))
    except FileNotFoundError:
        return False


def free_bytes(directory: Path) -> float:
    status = os.statvfs(directory)
    if status.f_blocks == 0:  # a file system without blocks, such as ramfs, does not know
        return math.inf
    return status.f_bavail * status.f_frsize


def require_room(directory: Path, wanted_bytes: int) -> None:
    if (free := free_bytes(directory)) < wanted_bytes:
        seen = f"{free:.0f} bytes are free, want {wanted_bytes} (TELEMETRY_MIN_FREE_MB)"
        raise OSError(errno.ENOSPC, seen)


# Names that survive a power cut.


def make_directory(directory: Path) -> None:
    """Create the directory and its missing parents, if it does not exist.

    Each is made durable before the next one is created in it, so a process that finds the
    directory needs to sync its name only: the process that created it may have died.
    """
    if directory.is_dir():
        return
    missing = [path for path in (directory, *directory.parents) if not path.is_dir()]
    if missing:  # not created by another worker meanwhile
        sync_name(missing[-1].parent)
    for path in reversed(missing):
        with contextlib.suppress(FileExistsError):  # by another worker
            os.mkdir(path)
        if path == directory:
            with contextlib.suppress(PermissionError):  # made by somebody else meanwhile
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


# Damage.


def repair_tail(fd: int, name: str) -> int:
    """Make the file end with a complete line, and return its size.  The caller holds the lock.

    A tail that is a complete record without its newline, as an editor may leave it, gets the
    newline; any other tail is cut off.
    """
    size = os.fstat(fd).st_size
    end = end_of_last_line(fd, size)
    if 0 < size - end <= MAX_UNSYNCED_BYTES and is_record(os.pread(fd, size - end, end)):
        write_all(fd, b"\n")
        os.fsync(fd)
        return size + 1
    if end < size:
        cut_off(fd, end)
        log.warning("%s: cut off a torn tail of %d bytes", name, size - end)
    return end


def holds_nul_bytes(fd: int) -> bool:
    """Tell whether a power cut, or a damaged disk, has left NUL bytes at the end of the file."""
    size = os.fstat(fd).st_size
    start = max(0, size - MAX_UNSYNCED_BYTES)
    return b"\0" in os.pread(fd, size - start, start)


def is_record(line: bytes) -> bool:
    record = read_record(line)
    return record is not None and {"received_at", "source"} <= record.keys()


def cut_off(fd: int, end: int) -> None:
    # Without the sync, old bytes may reappear behind newer lines after a power cut.
    os.ftruncate(fd, end)
    os.fsync(fd)


def end_of_last_line(fd: int, end: int) -> int:
    """Return the offset behind the last newline before `end`, 0 if there is none."""
    if end and os.pread(fd, 1, end - 1) == b"\n":
        return end
    while end:
        start = max(0, end - PIECE_BYTES)
        newline = os.pread(fd, end - start, start).rfind(b"\n")
        if newline >= 0:
            return start + newline + 1
        end = start
    return 0
