"""Read the lines of daily files, plain or compressed, and compare the two files of one day."""

import gzip
import os
from collections.abc import Iterator
from enum import Enum, auto
from io import BytesIO
from itertools import chain, zip_longest
from typing import BinaryIO, cast

from files.records import read_record

CHUNK_BYTES = 2**18  # read at once
GZIP_MAGIC = b"\x1f\x8b"


def is_gzip(fd: int) -> bool:
    """Tell by the first bytes, because another tool may have renamed the file."""
    return os.pread(fd, len(GZIP_MAGIC), 0) == GZIP_MAGIC


def chunks_of_lines(fd: int) -> Iterator[bytes]:
    """Yield the content in chunks that end where a line ends; the last line may lack its newline.

    Raises OSError, EOFError or zlib.error if an archive is damaged.
    """
    os.lseek(fd, 0, os.SEEK_SET)
    with (
        open(fd, "rb", closefd=False) as file,
        cast(BinaryIO, gzip.open(file) if is_gzip(fd) else file) as content,
    ):
        while chunk := content.read(CHUNK_BYTES):
            yield chunk if chunk.endswith(b"\n") else chunk + content.readline()


def chunks_between(fd: int, start: int, end: int) -> Iterator[bytes]:
    """Yield a plain file's lines from `start`, where one begins, to `end`, where one ends."""
    # Opened anew each time: an older buffer may hold a line that was rolled back since.
    with open(fd, "rb", closefd=False) as file:
        file.seek(start)
        while start < end and (chunk := file.read(min(CHUNK_BYTES, end - start))):
            chunk += b"" if chunk.endswith(b"\n") else file.readline()
            yield chunk
            start += len(chunk)


def split_lines(lines: bytes) -> list[bytes]:
    """Return the lines with their ends; `bytes.splitlines` also splits at other characters."""
    return BytesIO(lines).readlines()


def complete_lines(fd: int) -> Iterator[bytes]:
    """Yield the lines without their newlines, and without a torn one at the end."""
    for chunk in chunks_of_lines(fd):
        *lines, last = chunk.split(b"\n")
        yield from lines
        if last and read_record(last) is not None:  # only its newline is missing
            yield last


class Shared(Enum):
    """Which lines the plain file and the archive of one day share."""

    NONE = auto()
    SOME = auto()
    ALL_OF_PLAIN = auto()  # the archive holds them, and others
    ALL_OF_ARCHIVE = auto()  # the plain file holds them, and maybe others


def shared_lines(plain: int, archive: int) -> Shared:
    """Compare the lines of two open files.  Raises OSError, EOFError or zlib.error.

    Usually one is the beginning of the other: a copy that was made earlier, or what a killed
    compression left.  Only what differs from there on is held in memory, as hashes.
    """
    if os.fstat(archive).st_size and not is_gzip(archive):
        raise OSError("not a gzip file")
    ours, theirs = complete_lines(plain), complete_lines(archive)
    differing = (
        (count, our, their)
        for count, (our, their) in enumerate(zip_longest(ours, theirs))
        if our != their
    )
    count, our, their = next(differing, (0, None, None))
    if their is None:
        return Shared.ALL_OF_ARCHIVE
    if our is None:
        return Shared.ALL_OF_PLAIN
    missing = set(map(hash, chain([our], ours)))
    all_of_ours, others = len(missing), 0
    for line in chain([their], theirs):
        if hash(line) in missing:
            missing.remove(hash(line))
        else:
            others += 1
    if not others:
        return Shared.ALL_OF_ARCHIVE
    if not missing:
        return Shared.ALL_OF_PLAIN
    return Shared.SOME if count or len(missing) < all_of_ours else Shared.NONE
