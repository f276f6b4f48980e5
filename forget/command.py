"""`flask forget`: erase one person's events, beside a running server."""

import contextlib
import itertools
import re
import stat
import time
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import click
from flask import current_app
from flask.cli import with_appcontext

import parsing
from files.days import CLAIM_NAME, DRAFT_NAME, Kind
from files.durable import claimed, remove_draft
from forget.erasing import Judge, Verdict, count, erase

MAX_PASSES = 3
CLAIM_POLL_SECONDS = 0.2
NO_HOST_NAME = re.compile(r"[/?#@]|^[^:]*:[^:]*$")  # a URL, or a host with a port

Counts = dict[Path, Counter[Verdict]]
Problems = dict[Path, str]


class BadOption(click.ClickException):
    exit_code = 2


# Which events.


def choose(ips: Iterable[str], hostnames: Iterable[str], projects: Iterable[str]) -> Judge:
    """Return the judge of the one option that was given.  Raises BadOption."""
    given = [
        *((judge_address, ip) for ip in ips),
        *((judge_hostname, hostname) for hostname in hostnames),
        *((judge_project, project) for project in projects),
    ]
    if len(given) != 1 or not given[0][1].strip():
        raise BadOption("want one of --ip, --hostname and --project, and a value for it")
    make_judge, value = given[0]
    return make_judge(value)


def judge_address(ip: str) -> Judge:
    address = parsing.parse_address(ip)
    if address is None:
        raise BadOption(f"--ip {ip!r}: want an address such as 203.0.113.9 or 2001:db8::7")
    network = parsing.mask_address(address)

    def judge(record: dict[str, Any]) -> Verdict:
        stored = record.get("ip")
        found = parsing.parse_address(stored) if isinstance(stored, str) else None
        if found == address:
            return Verdict.ERASE
        return Verdict.UNKNOWN if found is None or stored == network else Verdict.KEEP

    return judge


def judge_hostname(hostname: str) -> Judge:
    if NO_HOST_NAME.search(hostname):
        raise BadOption(f"--hostname {hostname!r}: want a host name such as admin.example.com")
    bare = hostname.lower().removesuffix(".")
    host = f"[{bare}]" if ":" in bare and not bare.startswith("[") else bare
    # In the form of a header, to get the form that a record has.
    header = f"https://{host}".encode("utf-8", "surrogateescape").decode("latin-1")
    names = {bare, parsing.parse_hostname(header) or bare}
    return lambda record: verdict(record.get("hostname") in names)


def judge_project(project: str) -> Judge:
    def judge(record: dict[str, Any]) -> Verdict:
        payload = record.get("payload")
        return verdict(isinstance(payload, dict) and payload.get("projectId") == project)

    return judge


def verdict(is_theirs: bool) -> Verdict:
    return Verdict.ERASE if is_theirs else Verdict.KEEP


# Where to look.


def unique(directories: Iterable[Path], problems: Problems) -> Iterator[Path]:
    """Yield each directory once, however it is spelled."""
    seen = set()
    for directory in directories:
        with reported(directory, problems):
            status = directory.stat()
            if (identity := (status.st_dev, status.st_ino)) not in seen:
                seen.add(identity)
                yield directory


def event_files(directory: Path) -> Iterator[Path]:
    """Yield the regular files of events, including those that another tool has renamed."""
    for path in sorted(directory.iterdir()):
        is_work_file = path.name in (CLAIM_NAME, DRAFT_NAME)
        if path.name.startswith(f"{Kind.EVENTS}-") and not is_work_file:
            with contextlib.suppress(FileNotFoundError):  # compressed or deleted meanwhile
                if stat.S_ISREG(path.lstat().st_mode):
                    yield path


def look(directory: Path, judge: Judge, problems: Problems) -> Counts:
    """Count the lines of each readable file by their verdict."""
    counts: Counts = {}
    for path in event_files(directory):
        with reported(path, problems), contextlib.suppress(FileNotFoundError):
            counts[path] = count(path, judge)
    return counts


def matched(counts: Counts) -> dict[Path, int]:
    return {path: one[Verdict.ERASE] for path, one in counts.items() if one[Verdict.ERASE]}


@contextlib.contextmanager
def reported(path: Path, problems: Problems) -> Iterator[None]:
    """Note an error with one file or directory, and continue with the others."""
    try:
        yield
    except (OSError, EOFError, zlib.error) as exc:
        problems[path] = getattr(exc, "strerror", None) or str(exc)


# Erasing.


def erase_all(
    directory: Path, judge: Judge, min_free_bytes: int, counts: Counts, problems: Problems
) -> None:
    """Erase what a first look has found, and look again; note what is left, and why.

    Repeat both if a file was changed, or got more such events, meanwhile.
    """
    for _ in range(MAX_PASSES):
        if not matched(counts):
            break
        problems.clear()
        for path in matched(counts):
            with reported(path, problems), contextlib.suppress(FileNotFoundError):
                erase(path, judge, min_free_bytes)
        counts = look(directory, judge, problems)
    for path, left in matched(counts).items():
        reason = problems.get(path, "stored since the first look; run it again")
        problems[path] = f"{number(left, 'event')} left: {reason}"


@contextlib.contextmanager
def alone(directory: Path) -> Iterator[None]:
    """Exclude housekeeping and other runs of this command; remove what a killed one left."""
    with contextlib.ExitStack() as stack:
        for attempt in itertools.count():
            try:
                stack.enter_context(claimed(directory))
                break
            except BlockingIOError:
                if not attempt:
                    click.echo(f"{directory}: waiting for housekeeping to finish", err=True)
                time.sleep(CLAIM_POLL_SECONDS)
        remove_draft(directory)
        yield


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
    judge = choose(ips, hostnames, projects)
    settings = current_app.extensions["collector"].settings
    if ips and settings.ip != "full":
        click.echo(f"TELEMETRY_IP={settings.ip}: --ip finds nobody whose event came so.", err=True)
    problems: Problems = {}
    for directory in unique(directories or (settings.data_dir,), problems):
        found: Problems = {}
        with reported(directory, found), alone(directory) if yes else contextlib.nullcontext():
            counts = look(directory, judge, found)
            tell(directory, counts, yes)
            if yes:
                erase_all(directory, judge, settings.min_free_mb * 2**20, counts, found)
        problems |= found
    for path, problem in problems.items():
        click.echo(f"Error: {path}: {problem}", err=True)
    if problems:
        raise SystemExit(1)


def tell(directory: Path, counts: Counts, yes: bool) -> None:
    for path, one in counts.items():
        if one[Verdict.ERASE]:
            click.echo(f"{path}: {number(one[Verdict.ERASE], 'event')}")
        if one[Verdict.UNREADABLE]:
            click.echo(f"{path}: {number(one[Verdict.UNREADABLE], 'line')} that cannot be read")
    total = sum(counts.values(), Counter[Verdict]())
    if total[Verdict.UNKNOWN]:
        events = number(total[Verdict.UNKNOWN], "event")
        click.echo(f"{directory}: {events} without a whole address, which --ip cannot find")
    ending = "to erase" if yes else "found; add --yes to erase" if matched(counts) else "found"
    click.echo(f"{directory}: {number(total[Verdict.ERASE], 'event')} {ending}")


def number(count: int, noun: str) -> str:
    return f"{count} {noun}{'' if count == 1 else 's'}"
