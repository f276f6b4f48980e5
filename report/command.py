"""The command: which days, which directories, which form."""

import errno
import json
import os
import re
import shutil
import stat
import sys
import tempfile
from datetime import date
from io import TextIOWrapper
from itertools import chain
from pathlib import Path
from typing import Any

import click
from click import UsageError
from flask import current_app
from flask.cli import with_appcontext

from files.days import DayFile, Kind
from report import people
from report.figures import Counted, make_report
from report.period import DAY, WEEK_DAYS, Period
from report.reading import find_files, read_days

MAX_DAYS = 3660  # ten years; each day is a row of the report
LENGTH = re.compile(r"([0-9]{1,4})([dw])")
STANDARD_OUTPUT = ("-", "/dev/stdout")
A_DAY = "a date such as 2026-11-23, today or yesterday"


@click.command("report")
@click.argument("directories", nargs=-1, type=click.Path(path_type=Path))
@click.option(
    "--since", default="56d", show_default=True, help=f"The first day: {A_DAY}; or 90d, 13w."
)
@click.option("--until", default="yesterday", show_default=True, help=f"The last day: {A_DAY}.")
@click.option(
    "--exclude-host",
    "patterns",
    multiple=True,
    metavar="PATTERN",
    help="Do not count hosts such as '*.demo.example.com'.  Can be repeated.",
)
@click.option("--format", "style", type=click.Choice(["text", "json", "html"]), default="text")
@click.option("--output", default="-", help="Write to a file; - is standard output.")
@with_appcontext
def report_command(
    directories: tuple[Path, ...],
    since: str,
    until: str,
    patterns: tuple[str, ...],
    style: str,
    output: str,
) -> None:
    """Report how many use the framework, on which versions, and with what.

    DIRECTORIES hold the files of one collector each; TELEMETRY_DATA_DIR by default.
    Days are those of UTC.
    """
    collector = current_app.extensions["collector"]
    today = collector.store.clock().date()
    period = choose_period(since, until, today)
    problems: list[str] = []
    files = find_files(directories or (collector.settings.data_dir,), problems)
    wanted = [file for file in files if is_wanted(file, period)]
    results = read_days(wanted, period, patterns)
    problems += chain.from_iterable(result.problems for result in results)
    days_with_file = {file.day for file in files if file.kind is Kind.EVENTS}
    counted = Counted(
        period, {result.week.number: result.week for result in results}, days_with_file
    )
    framework = collector.settings.framework
    report = make_report(counted, framework, patterns, unfinished=period.until >= today)
    has_read = any(result.files_read for result in results) or (files and not wanted)
    is_empty = not any(report["events"].values())
    has_today = is_empty and has_events_of(files, today, patterns)
    if has_read or output in STANDARD_OUTPUT:
        write(draw(report, style, people.Made(today, collector.version, has_today)), output)
    else:
        problems.append(f"--output {output}: not written, because nothing could be read")
    for problem in problems:
        click.echo(f"Error: {problem}", err=True)
    if problems:
        raise SystemExit(1)


def choose_period(since: str, until: str, today: date) -> Period:
    last = parse_day("until", until, today, A_DAY)
    try:
        if match := LENGTH.fullmatch(since):
            first = last - (int(match[1]) * (WEEK_DAYS if match[2] == "w" else 1) - 1) * DAY
        else:
            first = parse_day("since", since, today, f"{A_DAY}, or a length such as 90d or 13w")
        earliest = last - (MAX_DAYS - 1) * DAY
    except OverflowError as exc:
        raise UsageError(f"--until {until}: want a later day") from exc
    if not earliest <= first <= last:
        raise UsageError(f"--since {since}: want a day from {earliest} to {last}, got {first}")
    return Period(first, last)


def parse_day(option: str, text: str, today: date, wanted: str) -> date:
    try:
        return {"today": today, "yesterday": today - DAY}.get(text) or date.fromisoformat(text)
    except ValueError as exc:
        raise UsageError(f"--{option} {text!r}: want {wanted}") from exc


def is_wanted(file: DayFile, period: Period) -> bool:
    first = period.first_read if file.kind is Kind.EVENTS else period.since
    return first <= file.day <= period.until


def has_events_of(files: list[DayFile], day: date, patterns: tuple[str, ...]) -> bool:
    files = [file for file in files if file.day == day and file.kind is Kind.EVENTS]
    results = read_days(files, Period(day, day), patterns)
    return any(sum(result.week.days[day].events.values()) for result in results)


def draw(report: dict[str, Any], style: str, made: people.Made) -> str:
    if style == "json":
        return json.dumps(report, indent=1)
    if style == "html":
        return people.draw_page(report, made)
    return people.draw_text(report, shutil.get_terminal_size().columns, made)


# Where it goes.


def write(text: str, output: str) -> None:
    if output in STANDARD_OUTPUT:
        write_to_terminal(text)
        return
    try:
        write_file(Path(output), click.unstyle(f"{text}\n"))
    except OSError as exc:
        raise click.ClickException(f"--output {output}: {exc.strerror}") from exc


def write_to_terminal(text: str) -> None:
    """Write in UTF-8.  A closed pipe, as after `| head`, is no error."""
    if isinstance(sys.stdout, TextIOWrapper):
        sys.stdout.reconfigure(encoding="utf-8")
    try:
        click.echo(text, color=False if os.environ.get("NO_COLOR") else None)
        sys.stdout.flush()
    except OSError as exc:
        # Python would write the rest of its buffer at exit, and fail again.
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        if exc.errno != errno.EPIPE:
            raise click.ClickException(f"standard output: {exc.strerror}") from exc


def write_file(path: Path, text: str) -> None:
    """Write a file that readers see whole, the old one or the new one.

    What is no regular file, such as a pipe, is written to.
    """
    try:
        mode = path.stat().st_mode
    except FileNotFoundError:
        mode = stat.S_IFREG | 0o666 & ~umask()
    if not stat.S_ISREG(mode):
        path.write_text(text, encoding="utf-8")
        return
    path = path.resolve()  # a link stays one
    with tempfile.NamedTemporaryFile(
        dir=path.parent, prefix=f".{path.name}.", delete=False
    ) as file:
        try:
            os.fchmod(file.fileno(), stat.S_IMODE(mode))
            file.write(text.encode())
            file.flush()
            os.fsync(file.fileno())
            Path(file.name).replace(path)
        except BaseException:
            Path(file.name).unlink()
            raise


def umask() -> int:
    mask = os.umask(0o077)
    os.umask(mask)
    return mask
