"""The command: which days, which directories, which form."""

import errno
import json
import os
import shutil
import sys
from collections.abc import Iterable
from datetime import date, timedelta
from pathlib import Path
from typing import Any

import click
from flask import current_app
from flask.cli import with_appcontext

from files.days import DayFile, Kind
from report import people
from report.activity import Period
from report.figures import make_report
from report.reading import find_files, read_days

DEFAULT_DAYS = 56
MAX_DAYS = 3660  # ten years; each day is a row of the report


class BadOption(click.ClickException):
    exit_code = 2


def parse_day(context: click.Context, option: click.Parameter, value: str | None) -> date | None:
    if value is None:
        return None
    try:
        return date.fromisoformat(value)
    except ValueError as exc:
        raise BadOption(f"--{option.name} {value!r}: want a date such as 2026-11-23") from exc


@click.command("report")
@click.argument("directories", nargs=-1, type=click.Path(path_type=Path))
@click.option("--since", callback=parse_day, help="The first day (UTC); 55 days before the last.")
@click.option("--until", callback=parse_day, help="The last day (UTC); yesterday.")
@click.option("--format", "style", type=click.Choice(["text", "json", "html"]), default="text")
@click.option("--output", default="-", help="Write to a file; - is standard output.")
@with_appcontext
def report_command(
    directories: tuple[Path, ...],
    since: date | None,
    until: date | None,
    style: str,
    output: str,
) -> None:
    """Report how many use the framework, on which versions, and with what.

    DIRECTORIES hold the files of one collector each; TELEMETRY_DATA_DIR by default.
    """
    collector = current_app.extensions["collector"]
    today = collector.store.clock().date()
    period = choose_period(since, until, today)
    problems: list[str] = []
    report = read_report(directories or (collector.settings.data_dir,), period, today, problems)
    encoding = sys.stdout.encoding if output == "-" else "utf-8"
    write(draw(report, style, encoding), output)
    for problem in problems:
        click.echo(f"Error: {problem}", err=True)
    if problems:
        raise SystemExit(1)


def choose_period(since: date | None, until: date | None, today: date) -> Period:
    until = until or today - timedelta(days=1)
    try:
        since = since or until - timedelta(days=DEFAULT_DAYS - 1)
        period = Period(since, until)
        length = (until - since).days + 1
        _ = period.first_read
    except OverflowError as exc:
        raise BadOption(f"--until {until}: want a later day") from exc
    if not 1 <= length <= MAX_DAYS:
        wanted = f"1 to {MAX_DAYS} days, up to {until}"
        raise BadOption(f"--since {since}: want {wanted}, got {length}")
    return period


def read_report(
    directories: Iterable[Path], period: Period, today: date, problems: list[str]
) -> dict[str, Any]:
    """Return the report, in the form of its JSON; add to `problems` what could not be read."""
    files = find_files(directories, problems)
    days_with_file = {file.day for file in files if file.kind is Kind.EVENTS}
    wanted = [file for file in files if is_wanted(file, period)]
    count = read_days(wanted, period, problems)
    return make_report(count, days_with_file, unfinished=period.until >= today)


def is_wanted(file: DayFile, period: Period) -> bool:
    first = period.first_read if file.kind is Kind.EVENTS else period.since
    return first <= file.day <= period.until


def draw(report: dict[str, Any], style: str, encoding: str) -> str:
    if style == "json":
        return json.dumps(report, indent=1)
    if style == "html":
        return people.draw_page(report)
    return people.draw_text(report, shutil.get_terminal_size().columns, encoding)


def write(text: str, output: str) -> None:
    """Write the report.  A closed pipe, as after `| head`, is no error."""
    if output != "-":
        try:
            Path(output).write_text(click.unstyle(f"{text}\n"), encoding="utf-8")
        except OSError as exc:
            raise click.ClickException(f"--output {output}: {exc.strerror}") from exc
        return
    try:
        click.echo(text, color=False if os.environ.get("NO_COLOR") else None)
        sys.stdout.flush()
    except OSError as exc:
        # Python would write the rest of its buffer at exit, and fail again.
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        if exc.errno != errno.EPIPE:
            raise click.ClickException(f"standard output: {exc.strerror}") from exc
