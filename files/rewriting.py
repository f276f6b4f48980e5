"""Replace a file by a copy, compressed or without some of its lines, beside a running server.

Most of the file is copied without the directory's lock; under the lock only what was appended
meanwhile, so that writers wait only for a moment.  They notice by its name that their file was
replaced.  A copy is renamed only while its original and its draft still have their names, so it
is safe whatever others delete or rewrite at the same time.
"""

import contextlib
import errno
import os
import stat
import zlib
from collections.abc import Callable
from pathlib import Path

from files.days import DRAFT_NAME, compressed_path
from files.durable import (
    FILE_MODE,
    PIECE_BYTES,
    drafted,
    end_of_last_line,
    free_bytes,
    is_named,
    locked,
    opened,
    require_room,
    set_mode,
    sync_directory,
    wait_for_syncs,
    write_all,
)
from files.lines import Shared, chunks_between, chunks_of_lines, is_gzip, shared_lines

ACCESS_LIST = "system.posix_acl_access"
GZIP_WBITS = 31  # zlib's way to say: with gzip's header and trailer
LEAST_RATIO = 4  # events compress better than this

Filter = Callable[[bytes], bytes]  # takes complete lines and returns those to keep


class Changed(OSError):
    """The file or its copy was moved, replaced or truncated while it was copied."""

    def __init__(self) -> None:
        super().__init__("changed by another program meanwhile")


def rewrite(path: Path, claim: int, keep: Filter, min_free_bytes: int = 0) -> None:
    """Replace a file, plain or gzip, by a copy of the lines that `keep` returns.

    Owner, mode and access list stay.  Raises OSError, EOFError or zlib.error; then the file is
    unchanged, unless only the sync of its new name failed.
    """
    with opened(path, os.O_RDONLY) as source, drafted(path.parent, claim) as draft:
        output = Output(draft, path.parent, min_free_bytes, is_gzip(source))
        copy = (ArchiveCopy if is_gzip(source) else PlainCopy)(source, output, keep)
        os.fsync(draft)  # so that little is left to sync under the lock
        with locked(path.parent):
            wait_for_syncs(source)
            copy.finish()
            take_access(source, draft)
            rename_draft(draft, source, path, path)


def compress(plain: Path, claim: int) -> None:
    """Replace a plain file by an archive of it, unless its day has an archive already.

    If this is killed between the rename and the unlink, both are left, with the same lines.
    Raises OSError.
    """
    archive, directory = compressed_path(plain), plain.parent
    with opened(plain, os.O_RDONLY) as source, contextlib.ExitStack() as stack:
        wanted = os.fstat(source).st_size // LEAST_RATIO
        if (free := free_bytes(directory)) < wanted:
            seen = f"{free:.0f} bytes are free, want {wanted} for the archive"
            raise OSError(errno.ENOSPC, seen)
        draft = stack.enter_context(drafted(directory, claim))
        copy = PlainCopy(source, Output(draft, directory, 0, is_gzip=True), lambda lines: lines)
        os.fsync(draft)
        with locked(directory):
            wait_for_syncs(source)
            copy.finish()
            if os.path.lexists(archive):
                raise Changed
            set_mode(draft, FILE_MODE)
            rename_draft(draft, source, plain, archive)
            os.unlink(plain)
            sync_directory(directory)


def remove_repeated(plain: Path) -> None:
    """Delete the plain file or the archive if the other one has all its lines.

    Both stay where each has lines of its own, because the clock went back.  Raises OSError,
    EOFError or zlib.error.
    """
    archive = compressed_path(plain)
    if not os.path.lexists(archive):
        return
    with opened(plain, os.O_RDONLY) as source, opened(archive, os.O_RDONLY) as other:
        size = os.fstat(source).st_size
        shared = shared_lines(source, other)
        if shared not in (Shared.ALL_OF_PLAIN, Shared.ALL_OF_ARCHIVE):
            return
        os.fsync(other if shared is Shared.ALL_OF_PLAIN else source)
        with locked(plain.parent):
            wait_for_syncs(source)
            is_same = os.fstat(source).st_size == size
            if is_same and is_named(source, plain) and is_named(other, archive):
                os.unlink(plain if shared is Shared.ALL_OF_PLAIN else archive)
                sync_directory(plain.parent)


class Output:
    """Writes a draft, compressed or not, as long as enough of the disk stays free."""

    def __init__(self, draft: int, directory: Path, min_free_bytes: int, is_gzip: bool) -> None:
        self.draft, self.directory, self.min_free_bytes = draft, directory, min_free_bytes
        self.packer = zlib.compressobj(wbits=GZIP_WBITS) if is_gzip else None

    def write(self, lines: bytes) -> None:
        self.put(self.packer.compress(lines) if self.packer else lines)

    def finish(self) -> None:
        self.put(self.packer.flush() if self.packer else b"")

    def put(self, content: bytes) -> None:
        if self.min_free_bytes:
            require_room(self.directory, self.min_free_bytes + len(content))
        write_all(self.draft, content)


class ArchiveCopy:
    """A copy of an archive, which nobody is expected to append to."""

    def __init__(self, source: int, output: Output, keep: Filter) -> None:
        self.source, self.output = source, output
        self.size = os.fstat(source).st_size
        for lines in chunks_of_lines(source):
            output.write(keep(lines))

    def finish(self) -> None:
        if os.fstat(self.source).st_size != self.size:
            raise Changed
        self.output.finish()


class PlainCopy:
    """A copy of a plain file that others append to, up to `end`."""

    def __init__(self, source: int, output: Output, keep: Filter) -> None:
        self.source, self.output, self.keep = source, output, keep
        self.end, self.before_end = 0, b""  # the bytes of the source before `end`, when read
        while self.catch_up() > PIECE_BYTES:
            os.fsync(output.draft)

    def catch_up(self) -> int:
        """Copy the lines that were appended since; return their size."""
        start, end = self.end, end_of_last_line(self.source, os.fstat(self.source).st_size)
        size = min(PIECE_BYTES, end)
        before_end = os.pread(self.source, size, end - size)
        self.require_unchanged()
        for lines in chunks_between(self.source, start, end):
            self.output.write(self.keep(lines))
        self.end, self.before_end = end, before_end
        return end - start

    def finish(self) -> None:
        """Copy the rest.  The caller holds the lock."""
        self.catch_up()
        torn = os.pread(self.source, os.fstat(self.source).st_size - self.end, self.end)
        if torn and self.output.packer:
            raise Changed
        # Left to the next writer, unless it is to be erased.
        self.output.write(self.keep(torn))
        self.output.finish()

    def require_unchanged(self) -> None:
        """Raise Changed if lines that were copied have been rolled back or truncated since."""
        size = len(self.before_end)
        if os.pread(self.source, size, self.end - size) != self.before_end:
            raise Changed


def rename_draft(draft: int, source: int, path: Path, target: Path) -> None:
    """Give the draft its name.  The caller holds the lock."""
    draft_path = path.with_name(DRAFT_NAME)
    os.fsync(draft)
    if not (is_named(source, path) and is_named(draft, draft_path)):
        raise Changed
    os.rename(draft_path, target)
    sync_directory(path.parent)


def take_access(source: int, target: int) -> None:
    """Give a new file the owner, access list and mode of another; at no moment more than that."""
    status = os.fstat(source)
    os.fchown(target, status.st_uid, status.st_gid)
    if entries := access_list(source):
        os.setxattr(target, ACCESS_LIST, entries)
    elif access_list(target):  # the directory's default
        os.removexattr(target, ACCESS_LIST)
    os.fchmod(target, stat.S_IMODE(status.st_mode))


def access_list(fd: int) -> bytes:
    """Return the file's POSIX access list (acl(5)) as the kernel has it, empty if none."""
    if not hasattr(os, "getxattr"):
        return b""
    try:
        return os.getxattr(fd, ACCESS_LIST)
    except OSError as exc:
        if exc.errno in (errno.ENODATA, errno.ENOTSUP):
            return b""
        raise
