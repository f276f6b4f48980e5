"""Erase lines from a file of events, beside a running server.

The file is copied without those lines, and the copy is renamed into its place.  Most of it is
copied without the directory's lock; under the lock only what was appended meanwhile, so that
writers wait only for a moment.  They notice by its name that their file was replaced.
"""

import contextlib
import gzip
import os
import stat
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from enum import Enum, auto
from pathlib import Path
from typing import Any

from files.days import DAY_FILE_NAME, DRAFT_NAME, compressed_path
from files.durable import (
    CHUNK_BYTES,
    archived_bytes,
    compressed,
    end_of_last_line,
    is_named,
    locked,
    opened,
    remove_draft,
    require_room,
    sync_directory,
    wait_for_syncs,
    write_all,
)
from files.records import read_record

GZIP_MAGIC = b"\x1f\x8b"
DRAFT_MODE = 0o600  # until it gets the file's own


class Verdict(Enum):
    ERASE = auto()
    KEEP = auto()
    UNKNOWN = auto()  # the record lacks the value to judge by
    UNREADABLE = auto()


Judge = Callable[[dict[str, Any]], Verdict]


class Changed(OSError):
    """The file was moved, replaced or truncated while it was copied."""

    def __init__(self) -> None:
        super().__init__("changed by another program meanwhile")


# Reading.


def count(path: Path, judge: Judge) -> Counter[Verdict]:
    """Count the lines of a file by their verdict.

    Raises OSError, EOFError or zlib.error if it cannot be read completely.
    """
    counts: Counter[Verdict] = Counter()
    with opened(path, os.O_RDONLY) as fd:
        for _ in kept(all_lines(fd), judge, counts):
            pass
    return counts


def kept(lines: Iterable[bytes], judge: Judge, counts: Counter[Verdict]) -> Iterator[bytes]:
    """Yield the lines that are not to be erased, including those that hold no record."""
    for line in lines:
        record = read_record(line)
        verdict = judge(record) if record else Verdict.UNREADABLE
        counts[verdict] += 1
        if verdict is not Verdict.ERASE:
            yield line


def all_lines(fd: int) -> Iterator[bytes]:
    with open(fd, "rb", closefd=False) as file:
        if is_gzip(fd):
            with gzip.open(file) as lines:
                yield from lines
        else:
            yield from file


def lines_between(fd: int, start: int, end: int) -> Iterator[bytes]:
    """Yield the lines from `start`, where one begins, to `end`, where one ends."""
    # Opened anew each time: an older buffer may hold a line that was rolled back since.
    with open(fd, "rb", closefd=False) as file:
        file.seek(start)
        while start < end and (line := file.readline()):
            yield line
            start += len(line)


def is_gzip(fd: int) -> bool:
    """Tell by the first bytes, because another tool may have renamed the file."""
    return os.pread(fd, len(GZIP_MAGIC), 0) == GZIP_MAGIC


# Rewriting.


def erase(path: Path, judge: Judge, min_free_bytes: int = 0) -> None:
    """Replace the file by a copy without the lines to erase.  The caller holds the claim.

    Raises OSError, EOFError or zlib.error; then the file is unchanged, unless only the sync of
    its new name failed.
    """
    remove_twin(path)
    directory, draft = path.parent, path.with_name(DRAFT_NAME)
    flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC
    with opened(path, os.O_RDONLY) as source, contextlib.ExitStack() as stack:
        require_room(directory, min_free_bytes + os.fstat(source).st_size)
        stack.callback(remove_draft, directory)
        target = stack.enter_context(opened(draft, flags, DRAFT_MODE))
        finish = (copy_archive if is_gzip(source) else copy_plain)(source, target, judge)
        os.fsync(target)  # so that little is left to sync under the lock
        with locked(directory):
            wait_for_syncs(source)
            finish()
            if not is_named(source, path):
                raise Changed
            take_owner_and_mode(source, target)
            os.fsync(target)
            os.rename(draft, path)
            sync_directory(directory)


def remove_twin(plain: Path) -> None:
    """Delete the archive of a plain file if all its lines are in the plain file, too.

    A compression that was killed leaves both, and the next one would create the archive again.
    But if this were killed between the two, they would differ, and all other lines would count
    twice.
    """
    archive = compressed_path(plain)
    if not (DAY_FILE_NAME.fullmatch(plain.name) and plain.suffix == ".jsonl" and archive.exists()):
        return
    with opened(plain, os.O_RDONLY) as fd:
        if holds_the_same(archive, fd):
            with locked(plain.parent):
                if is_named(fd, plain):
                    os.unlink(archive)
                    sync_directory(plain.parent)


def holds_the_same(archive: Path, plain_fd: int) -> bool:
    try:
        return archived_bytes(plain_fd, archive) is not None
    except (OSError, EOFError, zlib.error):
        return False  # reading it will report the damage


def copy_archive(source: int, target: int, judge: Judge) -> Callable[[], None]:
    """Copy an archive; return a function that checks that nothing was appended since."""
    size = os.fstat(source).st_size
    write_chunks(target, compressed(in_chunks(kept(all_lines(source), judge, Counter()))))

    def finish() -> None:
        if os.fstat(source).st_size != size:
            raise Changed

    return finish


def copy_plain(source: int, target: int, judge: Judge) -> Callable[[], None]:
    """Copy a plain file; return a function that copies what is appended until the lock is held."""
    copy = PlainCopy(source, target, judge)
    while copy.catch_up() > CHUNK_BYTES:
        os.fsync(target)
    return copy.finish


@dataclass
class PlainCopy:
    """A copy of a plain file that others append to, up to `end`."""

    source: int
    target: int
    judge: Judge
    end: int = 0
    before_end: bytes = b""  # the bytes of the source before `end`, when it was read

    def catch_up(self) -> int:
        """Copy the lines that were appended since; return their size."""
        start, end = self.end, self.end_of_lines()
        size = min(CHUNK_BYTES, end)
        before_end = os.pread(self.source, size, end - size)
        self.require_unchanged()
        self.write(lines_between(self.source, start, end))
        self.end, self.before_end = end, before_end
        return end - start

    def finish(self) -> None:
        """Copy the rest.  The caller holds the lock."""
        self.catch_up()
        # A tail without a newline is left to the next writer, unless it is to be erased.
        self.write([os.pread(self.source, os.fstat(self.source).st_size - self.end, self.end)])

    def require_unchanged(self) -> None:
        """Raise Changed if lines that were copied have been rolled back or truncated since."""
        size = len(self.before_end)
        if os.pread(self.source, size, self.end - size) != self.before_end:
            raise Changed

    def end_of_lines(self) -> int:
        return end_of_last_line(self.source, os.fstat(self.source).st_size)

    def write(self, lines: Iterable[bytes]) -> None:
        write_chunks(self.target, in_chunks(kept(lines, self.judge, Counter())))


def in_chunks(lines: Iterable[bytes]) -> Iterator[bytes]:
    """Join lines, so that fewer calls write them."""
    chunk = bytearray()
    for line in lines:
        chunk += line
        if len(chunk) >= CHUNK_BYTES:
            yield bytes(chunk)
            chunk.clear()
    yield bytes(chunk)


def write_chunks(fd: int, chunks: Iterable[bytes]) -> None:
    for chunk in chunks:
        write_all(fd, chunk)


def take_owner_and_mode(source: int, target: int) -> None:
    status = os.fstat(source)
    os.fchown(target, status.st_uid, status.st_gid)
    os.fchmod(target, stat.S_IMODE(status.st_mode))
