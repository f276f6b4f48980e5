"""Read the daily files of several directories, in parallel on all cores.

What cannot be read is a problem: it is named, and everything else is still counted.
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
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from itertools import groupby
from pathlib import Path
from typing import BinaryIO, NamedTuple, cast

import click

from files.days import DayFile, Kind, compressed_path, day_files
from files.durable import archived_bytes
from report.activity import Count, Period
from report.counting import Tally, count_events, count_refusals

CHUNK_BYTES = 2**20  # read at once; larger chunks are slower, for their parts exceed the cache
MIN_BYTES_FOR_PROCESSES = 2**24  # less is read faster than processes start
WORK_FILE_SUFFIXES = (".claim", ".draft")


class Share(NamedTuple):
    """What one process counts at once: whole weeks, as days with all their files."""

    days: list[list[DayFile]]
    period: Period


class Result(NamedTuple):
    counted: Count
    problems: list[str]  # which files could not be read completely, and why


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
    """Name the files that look like ours but are not read."""
    ours = {file.path for file in files}
    for path in sorted(directory.iterdir()):
        looks_like_ours = path.name.startswith(tuple(f"{kind}-" for kind in Kind))
        if looks_like_ours and path not in ours and path.suffix not in WORK_FILE_SUFFIXES:
            yield f"{path}: not read, because it is not the name of a daily file"


def without_repeats(files: list[DayFile], problems: list[str]) -> Iterator[DayFile]:
    """Leave out each archive whose lines are all in its plain file, too."""
    for file in files:
        plain = file.path.with_suffix("") if file.is_compressed else None
        if not (plain and plain.exists() and is_repeated(plain, file.path, problems)):
            yield file


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


# Lines.


def open_file(path: Path) -> BinaryIO:
    """Open a regular file: reading a pipe would wait for its other end.  Raises OSError."""
    if not stat.S_ISREG(path.stat().st_mode):
        raise OSError("not a regular file")
    return path.open("rb")


def open_plain(path: Path) -> BinaryIO:
    """Open a plain file, or the archive that housekeeping has replaced it by meanwhile."""
    try:
        return open_file(path)
    except FileNotFoundError:
        if compressed_path(path).exists():
            return cast(BinaryIO, gzip.open(compressed_path(path)))
        raise


def chunks_of(file: DayFile) -> Iterator[bytes]:
    """Yield all complete lines in chunks.  Raises OSError, EOFError or zlib.error."""
    return archived_chunks(file.path) if file.is_compressed else plain_chunks(file.path)


def plain_chunks(path: Path) -> Iterator[bytes]:
    # A last line without its newline may still be written, and does not count yet.
    with open_plain(path) as file:
        while chunk := file.read(CHUNK_BYTES):
            chunk += file.readline()
            yield chunk[: chunk.rfind(b"\n") + 1]


def archived_chunks(path: Path) -> Iterator[bytes]:
    chunk, problem = bytearray(), None
    try:
        with open_file(path) as archive, gzip.open(archive) as file:
            # read1(), because read() loses what it has decompressed when it meets damage.
            while block := file.read1(CHUNK_BYTES):
                chunk += block
                if len(chunk) >= CHUNK_BYTES:
                    yield take_lines(chunk)
    except (OSError, EOFError, zlib.error) as exc:
        problem = exc
    yield take_lines(chunk)  # what was read before the damage counts
    if problem:
        raise problem
    if chunk:
        raise EOFError("ends within a line")


def take_lines(chunk: bytearray) -> bytes:
    """Remove the complete lines from the chunk and return them."""
    end = chunk.rfind(b"\n") + 1
    lines = bytes(chunk[:end])
    del chunk[:end]
    return lines


# Days.


def read_days(files: list[DayFile], period: Period, problems: list[str]) -> Count:
    """Count the files, day by day; add to `problems` what could not be read."""
    files = list(without_repeats(files, problems))
    shares = shares_of(files, period)
    results = read_in_processes(shares) if len(shares) > 1 else map(read_share, shares)
    count, hidden = Count(period), not sys.stderr.isatty()
    with click.progressbar(results, len(shares), file=sys.stderr, hidden=hidden) as progress:
        for result in progress:
            count.merge(result.counted)
            problems += result.problems
    return count


def shares_of(files: list[DayFile], period: Period) -> list[Share]:
    """Divide the files by weeks, or not at all if they are small."""
    days = [list(same_day) for _, same_day in groupby(files, key=lambda file: file.day)]
    if sum(map(size_of, files)) < MIN_BYTES_FOR_PROCESSES:
        return [Share(days, period)]
    weeks = groupby(days, key=lambda same_day: period.week_of(same_day[0].day))
    return [Share(list(week), period) for _, week in weeks]


def size_of(file: DayFile) -> int:
    try:
        return file.path.stat().st_size
    except OSError:
        return 0  # reading it will tell why


def read_share(share: Share) -> Result:
    """Count the files of a share, all that can be read."""
    count, problems = Count(share.period), list[str]()
    for files in share.days:
        day = files[0].day
        tally = Tally(has_lists=day >= share.period.first_listed)
        for file in files:
            try:
                read_file(file, tally)
            except (OSError, EOFError, zlib.error) as exc:
                problems.append(f"{file.path}: {getattr(exc, 'strerror', None) or exc}")
        count.add(day, tally)
    count.condense()
    return Result(count, problems)


def read_file(file: DayFile, tally: Tally) -> None:
    count_lines = count_events if file.kind is Kind.EVENTS else count_refusals
    for chunk in chunks_of(file):
        count_lines(chunk, tally)


def read_in_processes(shares: list[Share]) -> Iterator[Result]:
    context = multiprocessing.get_context("fork")
    # Without the cyclic garbage collector in them: there are no cycles, and the search for them
    # took a third of the time.
    with ProcessPoolExecutor(os.cpu_count(), context, gc.disable) as executor:
        try:
            # Ctrl-C is for this process, so the others start with it blocked.
            signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])
            results = executor.map(read_share, shares)
            signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGINT])
            yield from results
        except BrokenProcessPool as exc:
            message = "a reading process was killed (out of memory?)"
            raise click.ClickException(message) from exc
        except (KeyboardInterrupt, GeneratorExit):
            for process in multiprocessing.active_children():
                process.terminate()
            raise
