"""`flask forget`: erase what one person asks to have erased, beside a running server.

A file is rewritten without the person's lines and renamed into its place.  Most of it is
copied without the directory's lock; under the lock only what was appended meanwhile, so that
writers wait for a moment at most.  They find by the file's name that theirs was replaced.
"""

import contextlib
import gzip
import json
import os
import stat
import time
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, cast

import click
from flask import current_app
from flask.cli import with_appcontext

import parsing
from dayfiles import (
    DRAFT_SUFFIX,
    Kind,
    is_named,
    locked,
    open_regular,
    sync_directory,
)
from housekeeping import CLAIM_NAME, DRAFT_NAME, claimed, remove_draft

GZIP_MAGIC = b"\x1f\x8b"
MATCHED, UNREADABLE = "matched", "unreadable"
MAX_PASSES = 3
CLAIM_POLL_SECONDS = 0.2

Matches = Callable[[dict[str, Any]], bool]  # tells whether a record is to be erased


class Moved(OSError):
    """The file was replaced or moved while it was copied."""


class BadOption(click.ClickException):
    exit_code = 2


# What to look for.


def choose(ip: str | None, hostname: str | None, project: str | None) -> Matches:
    """Return what tells the person's records.  Raises BadOption."""
    given = [value for value in (ip, hostname, project) if value is not None]
    if len(given) != 1 or not given[0].strip():
        raise BadOption("want one of --ip, --hostname and --project, and a value for it")
    if ip is not None:
        address = parsing.parse_address(ip)
        if address is None:
            raise BadOption(f"--ip {ip!r}: want an address such as 203.0.113.9 or 2001:db8::7")
        return lambda record: same_address(record.get("ip"), address)
    if hostname is not None:
        names = {hostname.lower(), parsing.parse_hostname(f"https://{hostname}")} - {None}
        return lambda record: record.get("hostname") in names
    return lambda record: project_of(record) == project


def same_address(stored: Any, address: parsing.Address) -> bool:
    return isinstance(stored, str) and parsing.parse_address(stored) == address


def project_of(record: dict[str, Any]) -> Any:
    payload = record.get("payload")
    return payload.get("projectId") if isinstance(payload, dict) else None


# Where to look.


def event_files(directory: Path) -> Iterator[Path]:
    """Yield the regular files with our events, also those that another tool has renamed."""
    for path in sorted(directory.iterdir()):
        is_work_file = path.name == CLAIM_NAME or path.name.endswith(DRAFT_SUFFIX)
        if path.name.startswith(f"{Kind.EVENTS}-") and not is_work_file:
            with contextlib.suppress(FileNotFoundError):  # compressed or deleted meanwhile
                if stat.S_ISREG(path.lstat().st_mode):
                    yield path


def unique(directories: Iterable[Path], problems: list[str]) -> Iterator[Path]:
    """Yield each directory once, however it is spelled."""
    seen = set()
    for directory in directories:
        try:
            status = directory.stat()
            if not stat.S_ISDIR(status.st_mode):
                raise NotADirectoryError("not a directory")
        except OSError as exc:
            problems.append(f"{directory}: {exc.strerror or exc}")
            continue
        if (status.st_dev, status.st_ino) not in seen:
            seen.add((status.st_dev, status.st_ino))
            yield directory


def is_gzip(file: BinaryIO) -> bool:
    """Tell by the first bytes: the name may be another tool's."""
    return os.pread(file.fileno(), len(GZIP_MAGIC), 0) == GZIP_MAGIC


def open_to_read(path: Path) -> BinaryIO:
    return os.fdopen(open_regular(path, os.O_RDONLY), "rb")


@contextlib.contextmanager
def unpacked(file: BinaryIO) -> Iterator[Iterable[bytes]]:
    """Give the lines of a file, compressed or not."""
    if is_gzip(file):
        with gzip.open(file) as lines:
            yield cast(Iterable[bytes], lines)
    else:
        yield file


def others(lines: Iterable[bytes], matches: Matches, counts: Counter[str]) -> Iterator[bytes]:
    """Yield the lines to keep: those of others, and what is no record of ours."""
    for line in lines:
        try:
            record = json.loads(line)
        except (ValueError, RecursionError):
            record = None
        if not (isinstance(record, dict) and record.keys() >= {"received_at", "source"}):
            counts[UNREADABLE] += 1
            yield line
        elif matches(record):
            counts[MATCHED] += 1
        else:
            yield line


def look(path: Path, matches: Matches) -> Counter[str]:
    """Count the person's lines in a file, and those that cannot be read."""
    counts: Counter[str] = Counter()
    with open_to_read(path) as file, unpacked(file) as lines:
        for _ in others(lines, matches, counts):
            pass
    return counts


# Erasing.


def erase(path: Path, matches: Matches) -> None:
    """Replace the file by one without the person's lines.  Raises OSError, EOFError, zlib.error."""
    draft = path.with_name(DRAFT_NAME)
    with open_to_read(path) as source, open_draft(draft) as target:
        copy = copy_archive if is_gzip(source) else copy_plain
        finish = copy(source, target, matches)
        with locked(path.parent):
            if not is_named(source.fileno(), path):
                raise Moved(f"{path.name} was replaced meanwhile")
            finish()
            take_owner_and_mode(source, target)
            target.flush()
            os.fsync(target.fileno())
            os.rename(draft, path)
            sync_directory(path.parent)


def open_draft(path: Path) -> BinaryIO:
    flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC
    return os.fdopen(open_regular(path, flags, 0o600), "wb")


def copy_archive(source: BinaryIO, target: BinaryIO, matches: Matches) -> Callable[[], None]:
    """Copy an archive, all of it: nobody appends to one."""
    with unpacked(source) as lines, gzip.GzipFile("", "wb", fileobj=target, mtime=0) as packed:
        packed.writelines(others(lines, matches, Counter()))
    return lambda: None


def copy_plain(source: BinaryIO, target: BinaryIO, matches: Matches) -> Callable[[], None]:
    """Copy the whole lines; return what copies those that come until the lock is held."""

    def copy(end: int) -> None:
        lines = whole_lines(source, end)
        target.writelines(others(lines, matches, Counter()))

    def finish() -> None:
        copy(size_of(source))
        # What has no newline stays, for the next writer to deal with, but not if it matches.
        target.writelines(others(source.readlines(), matches, Counter()))

    copy(size_of(source))
    target.flush()
    os.fsync(target.fileno())  # so that little is left to sync under the lock
    return finish


def whole_lines(file: BinaryIO, end: int) -> Iterator[bytes]:
    """Yield the whole lines up to `end`; stand behind the last one afterwards."""
    while file.tell() < end:
        start = file.tell()
        line = file.readline()
        if not line.endswith(b"\n"):
            file.seek(start)
            return
        yield line


def size_of(file: BinaryIO) -> int:
    return os.fstat(file.fileno()).st_size


def take_owner_and_mode(source: BinaryIO, target: BinaryIO) -> None:
    status = os.fstat(source.fileno())
    os.fchown(target.fileno(), status.st_uid, status.st_gid)
    os.fchmod(target.fileno(), stat.S_IMODE(status.st_mode))


@contextlib.contextmanager
def alone(directory: Path) -> Iterator[None]:
    """Keep housekeeping and other runs of this away; remove what a killed one has left."""
    with contextlib.ExitStack() as stack:
        while True:
            try:
                stack.enter_context(claimed(directory))
                break
            except BlockingIOError:
                time.sleep(CLAIM_POLL_SECONDS)
        remove_draft(directory)
        yield


class Finding(NamedTuple):
    path: Path
    matched: int
    unreadable: int


def find(directory: Path, matches: Matches, problems: list[str]) -> list[Finding]:
    found = []
    for path in event_files(directory):
        with reported(path, problems):
            counts = look(path, matches)
            found.append(Finding(path, counts[MATCHED], counts[UNREADABLE]))
    return found


def erase_all(directory: Path, matches: Matches, problems: list[str]) -> list[Finding]:
    """Erase, look again, and again where a file was replaced meanwhile; return what is left."""
    with alone(directory):
        for _ in range(MAX_PASSES):
            errors: list[str] = []
            for one in find(directory, matches, errors):
                if one.matched:
                    with reported(one.path, errors):
                        erase(one.path, matches)
                    remove_draft(directory)  # of a file that could not be written
            left = [one for one in find(directory, matches, errors) if one.matched]
            if not left:
                break
        problems += errors
        return left


@contextlib.contextmanager
def reported(path: Path, problems: list[str]) -> Iterator[None]:
    try:
        yield
    except FileNotFoundError:
        pass  # compressed or deleted meanwhile: the next look finds where its lines are
    except (OSError, EOFError, zlib.error) as exc:
        problems.append(f"{path}: {exc}")


# The command.


@click.command("forget")
@click.argument("directories", nargs=-1, type=click.Path(path_type=Path))
@click.option("--ip", metavar="ADDRESS", help="Events from this address, in any spelling.")
@click.option("--hostname", metavar="NAME", help="Events of the app on this host.")
@click.option("--project", metavar="ID", help="Events with this projectId.")
@click.option("--yes", is_flag=True, help="Erase; without it, only tell how many events there are.")
@with_appcontext
def forget_command(
    directories: tuple[Path, ...],
    ip: str | None,
    hostname: str | None,
    project: str | None,
    yes: bool,
) -> None:
    """Erase all events of one address, host or project, beside a running server.

    DIRECTORIES hold the files of one collector each; TELEMETRY_DATA_DIR by default.
    """
    matches = choose(ip, hostname, project)
    settings = current_app.extensions["collector"].settings
    if ip is not None and settings.ip != "full":
        click.echo(f"TELEMETRY_IP={settings.ip}: --ip finds nobody whose event came so.", err=True)
    problems: list[str] = []
    for directory in unique(directories or (settings.data_dir,), problems):
        found = find(directory, matches, problems)
        tell(found, directory, yes)
        for left in erase_all(directory, matches, problems) if yes else ():
            problems.append(f"{left.path}: {events(left.matched)} could not be erased")
    for problem in dict.fromkeys(problems):
        click.echo(f"Error: {problem}", err=True)
    if problems:
        raise SystemExit(1)


def tell(found: list[Finding], directory: Path, yes: bool) -> None:
    for one in found:
        if one.matched:
            click.echo(f"{one.path}: {events(one.matched)}")
    total = sum(one.matched for one in found)
    click.echo(f"{directory}: {events(total)} {'to erase' if yes else 'found'}")
    if unreadable := sum(one.unreadable for one in found):
        click.echo(f"{directory}: {unreadable} lines cannot be read, and stay")
    if total and not yes:
        click.echo("Nothing was erased; add --yes to erase.")


def events(count: int) -> str:
    return f"{count} event{'' if count == 1 else 's'}"
