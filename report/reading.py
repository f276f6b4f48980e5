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
from collections import Counter
from collections.abc import Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from itertools import chain, groupby
from pathlib import Path
from typing import BinaryIO, NamedTuple

import click

from files.days import DayFile, Kind, compressed_path, day_files, distinct, size_of
from files.records import ADDED_KEYS
from report.activity import Week
from report.counting import Tally, complete, count_events, count_refusals
from report.hosts import excluder
from report.period import Period

BLOCK_BYTES = 2**20  # counted at once; larger blocks are slower, for their parts exceed the cache
MIN_BYTES_FOR_PROCESSES = 2**24  # less is read faster than processes start
WORK_FILE_SUFFIXES = (".claim", ".draft")

UNREADABLE = (OSError, EOFError, zlib.error)


class TornArchive(EOFError):
    """An archive that is whole, but whose last line is not."""


class Share(NamedTuple):
    """What one process counts at once: the files of one week."""

    number: int  # of the week
    files: list[DayFile]
    period: Period
    patterns: tuple[str, ...]  # of hosts that are excluded


class Result(NamedTuple):
    week: Week
    files_read: int
    problems: list[str]  # which files could not be read completely, and why


# Which files.


def find_files(directories: Iterable[Path], problems: list[str]) -> list[DayFile]:
    """Return the daily files of the directories, each once however it is spelled or linked."""
    found: dict[Path, DayFile] = {}
    for directory in distinct(directories):
        try:
            files = day_files(directory)
            problems += strangers(directory, files)
        except OSError as exc:
            problems.append(f"{directory}: {exc.strerror}")
        else:
            found |= {file.path: file for file in files}
    return sorted(found[path] for path in distinct(found))


def strangers(directory: Path, files: list[DayFile]) -> Iterator[str]:
    """Name the files that look like ours but are not read."""
    ours = {file.path for file in files}
    for path in sorted(directory.iterdir()):
        looks_like_ours = path.name.startswith(tuple(f"{kind}-" for kind in Kind))
        if looks_like_ours and path not in ours and path.suffix not in WORK_FILE_SUFFIXES:
            yield f"{path}: not read, because it is not the name of a daily file"


def plain_path(file: DayFile) -> Path:
    return file.path.with_suffix("") if file.is_compressed else file.path


def open_file(path: Path) -> BinaryIO:
    """Open a regular file: reading a pipe would wait for its other end.  Raises OSError."""
    if not stat.S_ISREG(path.stat().st_mode):
        raise OSError("not a regular file")
    return path.open("rb")


@contextlib.contextmanager
def opened_pair(
    plain: Path, listed: set[Path], problems: list[str]
) -> Iterator[dict[Path, BinaryIO]]:
    """Open a day's plain file and its archive, as far as they are there."""
    with contextlib.ExitStack() as stack:
        files = {}
        # In this order: housekeeping makes the archive before it removes the plain file.
        for path in (plain, compressed_path(plain)):
            try:
                files[path] = stack.enter_context(open_file(path))
            except FileNotFoundError:
                continue
            except OSError as exc:
                problems += [f"{path}: {reason(exc)}"] * (path in listed)
        yield files


def chosen(files: dict[Path, BinaryIO], listed: set[Path], problems: list[str]) -> list[Path]:
    """Return which of a day's open files to read, so that each line counts once."""
    if len(files) < 2:
        return list(files)  # also an archive that replaced its plain file a moment ago
    plain, archive = files
    left = Counter(chain.from_iterable(map(hashes_of, plain_blocks(files[plain]))))
    shared = others = 0
    damage = ""
    try:
        for line in chain.from_iterable(map(hashes_of, archived_blocks(files[archive]))):
            if left[line]:
                left[line] -= 1
                shared += 1
            else:
                others += 1
    except TornArchive:
        pass
    except UNREADABLE as exc:
        damage = f"{archive}: {reason(exc)}"
    if not others:
        problems += [f"{damage}; what could be read of it is in {plain.name}, too"] * bool(damage)
        return [path for path in [plain] if path in listed]
    if not left.total():
        return [path for path in [archive] if path in listed]
    if shared:
        problems.append(f"{archive}: has some of the lines of {plain.name}; both are counted")
    return [path for path in files if path in listed]


def reason(exc: Exception) -> str:
    return getattr(exc, "strerror", None) or str(exc)


# Lines.


def plain_blocks(file: BinaryIO) -> Iterator[bytes]:
    """Yield all complete lines in blocks.  The rest may still be written: it does not count."""
    rest = b""
    while block := file.read(BLOCK_BYTES):
        block = b"".join((rest, block, file.readline()))
        end = block.rfind(b"\n") + 1
        rest = block[end:]
        yield block[:end]


def archived_blocks(file: BinaryIO) -> Iterator[bytes]:
    """Yield what can be read.  Raises OSError, EOFError or zlib.error at what cannot."""
    rest, problem = bytearray(), None
    try:
        with gzip.open(file) as content:
            # read1(), because read() loses what it has decompressed when it meets damage.
            while block := content.read1(BLOCK_BYTES):
                rest += block
                if len(rest) >= BLOCK_BYTES:
                    yield take_lines(rest)
    except UNREADABLE as exc:
        problem = exc
    yield take_lines(rest)  # what was read before the damage counts
    if problem:
        raise problem
    if rest:
        raise TornArchive("ends within a line")


def take_lines(block: bytearray) -> bytes:
    """Remove the complete lines from the block and return them."""
    end = block.rfind(b"\n") + 1
    lines = bytes(block[:end])
    del block[:end]
    return lines


def hashes_of(block: bytes) -> Iterator[int]:
    """Return what stands for each line: all lines of a day would not fit into memory."""
    return map(hash, block.split(b"\n")[:-1])


def blocks_of(path: Path, file: BinaryIO) -> Iterator[bytes]:
    file.seek(0)
    return archived_blocks(file) if path.suffix == ".gz" else plain_blocks(file)


# Days.


def read_days(files: list[DayFile], period: Period, patterns: tuple[str, ...]) -> list[Result]:
    """Count the files, week by week."""
    weeks = groupby(files, key=lambda file: period.week_of(file.day))
    shares = [Share(number, list(of_week), period, patterns) for number, of_week in weeks]
    is_small = sum(size_of(file.path) for file in files) < MIN_BYTES_FOR_PROCESSES
    results = map(read_share, shares) if is_small else read_in_processes(shares)
    hidden = is_small or not sys.stderr.isatty()
    with click.progressbar(results, len(shares), file=sys.stderr, hidden=hidden) as progress:
        return list(progress)


def read_share(share: Share) -> Result:
    """Count the files of a share, all that can be read."""
    week, problems, files_read = Week(share.number), list[str](), 0
    is_excluded = excluder(share.patterns) if share.patterns else None
    days = [(day, list(files)) for day, files in groupby(share.files, key=lambda file: file.day)]
    for day, files in reversed(days):
        tally = Tally(week.has_lists, is_excluded)
        for plain, same in groupby(files, key=plain_path):
            files_read += read_files(plain, list(same), tally, problems)
        if ADDED_KEYS:
            complete(tally)
        week.add(day, tally, is_in_period=day >= share.period.since)
    week.condense()
    return Result(week, files_read, problems)


def read_files(plain: Path, files: list[DayFile], tally: Tally, problems: list[str]) -> int:
    """Count a day's plain file and its archive; return how many could be read at all."""
    count_lines = count_events if files[0].kind is Kind.EVENTS else count_refusals
    tally.directory = plain.parent
    listed = {file.path for file in files}
    files_read = 0
    with opened_pair(plain, listed, problems) as found:
        for path in chosen(found, listed, problems):
            try:
                for block in blocks_of(path, found[path]):
                    count_lines(block, tally)
                files_read += 1
            except UNREADABLE as exc:
                problems.append(f"{path}: {reason(exc)}")
    return files_read


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
