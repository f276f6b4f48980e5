"""The command `flask forget`: search, erase, search again, and say what is left."""

import contextlib
import itertools
import os
import sys
import time
import zlib
from collections import Counter
from collections.abc import Collection, Iterable, Iterator
from contextlib import AbstractContextManager
from io import BytesIO
from pathlib import Path

import click
from flask import current_app
from flask.cli import with_appcontext

from files.days import CLAIM_NAME, DAY_FILE_NAME, DRAFT_NAME, Kind, distinct, size_of
from files.durable import claimed, opened
from files.lines import chunks_of_lines
from files.records import RECORD_KEYS, plural, read_record
from files.rewriting import remove_repeated, rewrite
from forget.wanted import Verdict, Wanted, choose

MAX_PASSES = 3
CLAIM_POLL_SECONDS = 0.2
MIN_BYTES_FOR_PROGRESS = 2**26  # less takes no second
# How zstd, xz, bzip2, lz4, zip and ar begin.  Parts of what they hold may look like lines.
OTHER_FORMATS = (b"\x28\xb5\x2f\xfd", b"\xfd7zXZ", b"BZh", b"\x04\x22\x4d\x18", b"PK", b"!<arch>")
HOW_STORED = {"masked": "masked", "hashed": "hashed", "none": "not at all"}

Problems = dict[Path, str]
Look = dict[Path, Counter[Verdict]]  # how many lines of each file got which verdict


# Looking.


def look(directory: Path, wanted: Wanted, problems: Problems, known: Iterable[Path] = ()) -> Look:
    """Judge each line of each file of events, under any name; the `known` ones are of events."""
    found: Look = {}
    work_files = (CLAIM_NAME, DRAFT_NAME)
    names = sorted(name for name in os.listdir(directory) if name.startswith(f"{Kind.EVENTS}-"))
    with progress([directory / name for name in names if name not in work_files]) as paths:
        for path in paths:
            # It may have been compressed or deleted meanwhile.
            with reported(path, problems), contextlib.suppress(FileNotFoundError):
                found[path] = search(path, wanted, path in known)
    return found


def progress(paths: Collection[Path]) -> AbstractContextManager[Iterable[Path]]:
    """Yield the files, and show on a terminal how many are done if they take a while."""
    hidden = sum(map(size_of, paths)) < MIN_BYTES_FOR_PROGRESS or not sys.stderr.isatty()
    return click.progressbar(paths, file=sys.stderr, hidden=hidden)


def search(path: Path, wanted: Wanted, is_ours: bool) -> Counter[Verdict]:
    """Judge each line.  Raises OSError, EOFError or zlib.error if the file cannot be searched."""
    if path.is_symlink():
        raise OSError("a link; the file that it points to is not searched")
    found: Counter[Verdict] = Counter()
    with opened(path, os.O_RDONLY) as fd:
        for chunk in chunks_of_lines(fd):
            if b"\0" in chunk or (not found and chunk.startswith(OTHER_FORMATS)):
                raise OSError("NUL bytes, or a format such as zstd or tar, cannot be searched")
            is_ours = is_ours or any(map(is_event, BytesIO(chunk)))
            for _, verdicts in wanted.judge(chunk):
                found += verdicts
    if found and not is_ours:
        raise OSError("holds no line of events")
    return found


def is_event(line: bytes) -> bool:
    record = read_record(line)
    return record is not None and record.get("source") in tuple(RECORD_KEYS)


def matched(found: Look) -> dict[Path, int]:
    """Return how many events are to be erased from each file that holds some."""
    return {path: count for path, one in found.items() if (count := one[Verdict.ERASE])}


@contextlib.contextmanager
def reported(path: Path, problems: Problems) -> Iterator[None]:
    """Note an error with one file or directory, and continue with the others."""
    try:
        yield
    except (OSError, EOFError, zlib.error) as exc:
        problems[path] = getattr(exc, "strerror", None) or str(exc)


# Erasing.


def erase_in(directory: Path, wanted: Wanted, min_free_bytes: int, problems: Problems) -> None:
    """Erase what a first look finds, and look again; note what is left, and why.

    Repeat both if a file was changed, or got more such events, meanwhile.
    """
    failed: Problems = {}
    with alone(directory) as claim:
        found = look(directory, wanted, problems)
        tell(directory, found, "to erase")
        known = found.keys()
        for _ in range(MAX_PASSES):
            if not matched(found):
                break
            failed.clear()
            with progress(matched(found)) as paths:
                for path in paths:
                    with reported(path, failed), contextlib.suppress(FileNotFoundError):
                        keep_one_of_two(path)
                        rewrite(path, claim, wanted.without, min_free_bytes)
            problems.clear()
            found = look(directory, wanted, problems, known)
    for path, left in matched(found).items():
        reason = failed.get(path, "stored since the first look; run it again")
        problems[path] = f"{plural(left, 'event')} left: {reason}"


def keep_one_of_two(path: Path) -> None:
    """Of a day's plain file and archive, delete the one whose lines the other has.

    A kill between rewriting one and the other would leave files that differ, so all lines of
    both would count.
    """
    if DAY_FILE_NAME.fullmatch(path.name) and path.suffix != ".gz":
        with contextlib.suppress(OSError, EOFError, zlib.error):  # look() reports a damaged file
            remove_repeated(path)


@contextlib.contextmanager
def alone(directory: Path) -> Iterator[int]:
    """Keep out housekeeping and other runs of this command; yield the claim."""
    with contextlib.ExitStack() as stack:
        for attempt in itertools.count():
            try:
                claim = stack.enter_context(claimed(directory))
                break
            except BlockingIOError:
                if not attempt:
                    click.echo(f"{directory}: waiting for housekeeping to finish", err=True)
                time.sleep(CLAIM_POLL_SECONDS)
        yield claim


# The command.


@click.command("forget")
@click.argument("directories", nargs=-1, type=click.Path(path_type=Path, readable=False))
@click.option(
    "--ip", "ips", metavar="ADDRESS", multiple=True, help="Events from it, in any spelling."
)
@click.option(
    "--hostname", "hostnames", metavar="NAME", multiple=True, help="Events of apps on this host."
)
@click.option(
    "--project", "projects", metavar="ID", multiple=True, help="Events with this projectId."
)
@click.option("--yes", is_flag=True, help="Erase; without it, only count.")
@with_appcontext
def forget_command(
    directories: tuple[Path, ...],
    ips: tuple[str, ...],
    hostnames: tuple[str, ...],
    projects: tuple[str, ...],
    yes: bool,
) -> None:
    """Erase all events of one address, host or project, beside a running server.

    DIRECTORIES hold the files of one collector each; TELEMETRY_DATA_DIR by default.
    """
    wanted = choose(ips, hostnames, projects)
    settings = current_app.extensions["collector"].settings
    if ips and settings.ip in HOW_STORED:
        how = f"addresses are stored {HOW_STORED[settings.ip]}"
        click.echo(f"TELEMETRY_IP={settings.ip}: {how}, so --ip can find nobody", err=True)
    problems: Problems = {}
    for directory in distinct(directories or (settings.data_dir,)):
        own: Problems = {}
        with reported(directory, own):
            if yes:
                erase_in(directory, wanted, settings.min_free_mb * 2**20, own)
            else:
                tell(directory, look(directory, wanted, own), "found", "; add --yes to erase")
        problems |= own
    for path, problem in problems.items():
        click.echo(f"Error: {path}: {problem}", err=True)
    if problems and yes:
        raise SystemExit(1)


def tell(directory: Path, found: Look, what: str, hint: str = "") -> None:
    total: Counter[Verdict] = Counter()
    for path, verdicts in found.items():
        if events := verdicts[Verdict.ERASE]:
            click.echo(f"{path}: {plural(events, 'event')}")
        if lines := verdicts[Verdict.UNREADABLE]:
            click.echo(f"{path}: {plural(lines, 'line')} that cannot be read")
        total += verdicts
    if unknown := total[Verdict.UNKNOWN]:
        lacking = f"{plural(unknown, 'event')} without a whole address"
        click.echo(f"{directory}: {lacking}, which --ip cannot find")
    ending = what + (hint if total[Verdict.ERASE] else "")
    click.echo(f"{directory}: {plural(total[Verdict.ERASE], 'event')} {ending}")
