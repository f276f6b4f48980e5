"""Read the daily files of several directories, side by side on all cores.

Large plain files are read in pieces.  What cannot be read is a problem: it is named, and
everything else is still counted.
"""

import contextlib
import gc
import gzip
import multiprocessing
import os
import signal
import stat
import sys
import zlib
from collections.abc import Iterable, Iterator
from datetime import date
from itertools import groupby
from multiprocessing.pool import IMapIterator
from pathlib import Path
from typing import BinaryIO, NamedTuple, cast

import click

from dayfiles import DayFile, Kind, archived_bytes, compressed_path, day_files
from report.counting import Tally, count_events, count_refusals

PIECE_BYTES = 2**24  # of a file, read at once
READER_POLL_SECONDS = 1
WORK_FILE_SUFFIXES = (".claim", ".draft")


class Piece(NamedTuple):
    """The lines of a day's file that begin at `start` or later, and before `end`."""

    file: DayFile
    start: int
    end: int

    @property
    def size_bytes(self) -> int:
        return self.end - self.start


class Result(NamedTuple):
    piece: Piece
    tally: Tally
    problem: str | None = None  # why not all of it could be read


# Which files.


def find_files(directories: Iterable[Path], problems: list[str]) -> list[DayFile]:
    """Return the daily files of the directories, each once however it is spelled or linked."""
    found: dict[tuple[int, int], DayFile] = {}
    seen_directories = set()
    for directory in directories:
        try:
            status = directory.stat()
            if (identity := (status.st_dev, status.st_ino)) in seen_directories:
                continue
            seen_directories.add(identity)
            files = day_files(directory)
            problems += strangers(directory, files)
        except OSError as exc:
            problems.append(f"{directory}: {exc.strerror}")
            continue
        for file in files:
            with contextlib.suppress(FileNotFoundError):  # housekeeping runs beside this
                status = file.path.stat()
                found.setdefault((status.st_dev, status.st_ino), file)
    return sorted(found.values())


def strangers(directory: Path, files: list[DayFile]) -> Iterator[str]:
    """Name what looks like one of our files, and is not read."""
    ours = {file.path for file in files}
    for path in sorted(directory.iterdir()):
        looks_like_ours = path.name.startswith(tuple(f"{kind}-" for kind in Kind))
        if looks_like_ours and path not in ours and path.suffix not in WORK_FILE_SUFFIXES:
            yield f"{path}: not read, since this is not the name of a daily file"


# Pieces.


def split(files: list[DayFile], problems: list[str]) -> Iterator[Piece]:
    """Cut the files into pieces; leave out an archive whose lines its plain file has, too."""
    for file in files:
        plain = file.path.with_suffix("") if file.is_compressed else None
        if not (plain and plain.exists() and is_repeated(plain, file.path, problems)):
            yield from pieces_of(file)


def is_repeated(plain: Path, archive: Path, problems: list[str]) -> bool:
    """Tell whether the plain file has all that can be read of the archive."""
    try:
        with open_file(plain) as file:
            length = archived_bytes(file.fileno(), archive)
            if length and os.pread(file.fileno(), 1, length - 1) != b"\n":
                problems.append(
                    f"{archive}: ends within a line; its lines are in {plain.name}, too"
                )
    except (OSError, EOFError, zlib.error) as exc:
        problems.append(f"{archive}: {exc}; what could be read of it is in {plain.name}, too")
        return True
    return length is not None


def pieces_of(file: DayFile) -> Iterator[Piece]:
    try:
        size = file.path.stat().st_size
    except OSError:
        size = 0  # who reads it will say why
    step = size if file.is_compressed else PIECE_BYTES
    for start in range(0, size, step or 1) or [0]:
        yield Piece(file, start, min(start + step, size))


def read_piece(piece: Piece) -> Result:
    """Count the lines of a piece, all that can be read."""
    tally, problem = Tally(), None
    count = count_events if piece.file.kind is Kind.EVENTS else count_refusals
    try:
        for chunk in archived_lines(piece) if piece.file.is_compressed else plain_lines(piece):
            count(chunk, tally)
    except (OSError, EOFError, zlib.error) as exc:
        problem = f"{piece.file.path}: {getattr(exc, 'strerror', None) or exc}"
    return Result(piece, tally, problem)


def open_file(path: Path) -> BinaryIO:
    """Open a regular file: a pipe would have to be waited for.  Raises OSError."""
    if not stat.S_ISREG(path.stat().st_mode):
        raise OSError("not a regular file")
    return path.open("rb")


def open_plain(path: Path) -> BinaryIO:
    """Open a plain file, or the archive that housekeeping has made of it meanwhile."""
    try:
        return open_file(path)
    except FileNotFoundError:
        if compressed_path(path).exists():
            return cast(BinaryIO, gzip.open(compressed_path(path)))
        raise


def plain_lines(piece: Piece) -> Iterator[bytes]:
    """Yield the lines; a last line without its newline may still be written, and is none yet."""
    with open_plain(piece.file.path) as file:
        if piece.start:
            file.seek(piece.start - 1)
            file.readline()
        chunk = file.read(max(0, piece.end - file.tell()))
        if chunk and not chunk.endswith(b"\n"):
            chunk += file.readline()
        yield chunk[: chunk.rfind(b"\n") + 1]


def archived_lines(piece: Piece) -> Iterator[bytes]:
    """Yield the lines in chunks, all there are before an error is raised."""
    chunk = bytearray()
    try:
        with open_file(piece.file.path) as archive, gzip.open(archive) as file:
            # read1(), since read() loses what it has unpacked when it comes to damage.
            while block := file.read1(PIECE_BYTES):
                chunk += block
                if len(chunk) >= PIECE_BYTES:
                    yield take_lines(chunk)
    finally:
        yield take_lines(chunk)
    if chunk:
        raise EOFError("ends within a line")


def take_lines(chunk: bytearray) -> bytes:
    """Return the whole lines, and leave the rest of the chunk."""
    end = chunk.rfind(b"\n") + 1
    lines = bytes(chunk[:end])
    del chunk[:end]
    return lines


# Processes.


def read_all(pieces: list[Piece]) -> Iterator[Result]:
    """Yield the results in the order of the pieces."""
    if sum(piece.size_bytes for piece in pieces) < PIECE_BYTES:
        yield from map(read_piece, pieces)  # sooner done than other processes are started
        return
    # The processes start with Ctrl-C blocked, for it is meant for this one; and without a search
    # for cycles: nothing here makes any, and it took a third of the time.
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])
    with multiprocessing.get_context("fork").Pool(os.cpu_count(), gc.disable) as pool:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGINT])
        readers = set(multiprocessing.active_children())
        results = pool.imap(read_piece, pieces)
        for _ in pieces:
            while (result := next_result(results)) is None:
                if set(multiprocessing.active_children()) != readers:
                    raise click.ClickException("a reading process was killed (out of memory?)")
            yield result


def next_result(results: "IMapIterator[Result]") -> Result | None:
    try:
        return results.next(READER_POLL_SECONDS)
    except multiprocessing.TimeoutError:
        return None


def tally_days(pieces: list[Piece], problems: list[str]) -> Iterator[tuple[date, Tally]]:
    """Yield each day with its tally, in order; add to `problems` what could not be read."""
    length = sum(piece.size_bytes for piece in pieces)
    hidden = not sys.stderr.isatty()
    with click.progressbar(length=length, file=sys.stderr, hidden=hidden) as progress:
        for day, results in groupby(read_all(pieces), key=lambda result: result.piece.file.day):
            tally = Tally()
            for result in results:
                tally.add(result.tally)
                problems += [result.problem] if result.problem else []
                progress.update(result.piece.size_bytes)
            yield day, tally
