"""`flask report`: how many are active, and with what, read from the daily files.

An app reports the same payload on every load, and its visitors share a few
browsers: most of a line repeats, byte for byte.  So lines are cut into parts,
equal parts are counted, and each different part is parsed once.  Files are read
side by side on all cores, large plain ones in pieces.
"""

import contextlib
import gc
import gzip
import json
import multiprocessing
import os
import re
import shutil
import signal
import sys
import zlib
from bisect import bisect_left
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from datetime import date, timedelta
from functools import lru_cache
from itertools import accumulate, groupby
from multiprocessing.pool import IMapIterator
from operator import index
from pathlib import Path
from typing import Any, NamedTuple

import click
from flask import current_app, render_template
from flask.cli import with_appcontext

from dayfiles import DayFile, Kind, day_files, encode
from storage import length_packed, packed_path

ACTIVE_DAYS = (1, 7, 30)
DEFAULT_DAYS = 30
FIRST_DAY = date(1970, 1, 1)  # there are no files from before
TOP = 10  # of each list, for people
PIECE_BYTES = 2**24  # of a file, read at once
READER_POLL_SECONDS = 1
MAX_KNOWN_PARTS = 20_000  # memory grows with the different values, not with the lines

# What is counted by its different values.
DISTINCT = {"core": ("addresses", "hostnames", "projects"), "cli": ("addresses", "projects")}
# The lists, and the keys that their values stand under.
LISTS = {
    "core": {
        "versions": ("version",),
        "providers": ("providers",),
        "browsers": ("browser", "browser_version"),
        "operating_systems": ("os", "os_version"),
    },
    "cli": {
        "commands": ("command",),
        "node_versions": ("nodeVersion",),
        "operating_systems": ("os", "osVersion"),
        "frameworks": ("projectFramework",),
        "environments": ("nodeEnv",),
        "packages": ("packages",),
    },
}
WITH_PROJECTS = ("versions", "providers")

Place = tuple[str | None, ...]  # of a list or number in the report, such as ("core", "browsers")


@dataclass
class Tally:
    """For each place in the report, events by value, and the different values."""

    events: defaultdict[Place, Counter[Any]] = field(default_factory=lambda: defaultdict(Counter))
    distinct: defaultdict[Place, set[Any]] = field(default_factory=lambda: defaultdict(set))
    unreadable_lines: int = 0

    def add(self, other: "Tally") -> None:
        for place, counter in other.events.items():
            self.events[place].update(counter)
        for place, values in other.distinct.items():
            self.distinct[place] |= values
        self.unreadable_lines += other.unreadable_lines


# Counting lines.


class Column(NamedTuple):
    """A part of the lines of one source: what is under these keys."""

    source: str
    keys: tuple[str, ...]
    distinct: str = ""  # where only its different values count: what they are


COLUMNS = (
    Column("core", ("ip",), "addresses"),
    Column("core", ("hostname",), "hostnames"),
    Column("core", ("browser", "browser_version", "os", "os_version")),
    Column("core", ("providers", "version", "resourceCount", "projectId")),
    Column("cli", ("ip",), "addresses"),
    Column("cli", ("nodeEnv", "nodeVersion", "os", "osVersion", "command")),
    Column("cli", ("packages", "projectFramework", "projectId")),
)
# A line as storage.py writes it, each column a group.  It cannot cut in the wrong place: inside
# a string every quote has a backslash before it.  The bounds are for lines without what follows:
# each would be searched for it to the end of the chunk.
EVENT = re.compile(
    rb"""^\{"id":".{36}","received_at":".{24}","source":(?:
        "core","ip":("[^"]*+"|null),"hostname":("[^"]*+"|null),
        ("browser":[^{]{0,2000}),"payload":\{("providers":.*)\}
    |
        "cli","ip":("[^"]*+"|null),"payload":\{("nodeEnv":[^[]{0,2000}),("packages":.*)\}
    )\}$""",
    re.MULTILINE | re.VERBOSE,
)
REFUSAL_TIME = re.compile(rb'^\{"received_at":"[^"\\]*",', re.MULTILINE)

Row = tuple[bytes, ...]  # the columns of a line; those of the other source are empty


class Facts(NamedTuple):
    """What a part of a line tells: (place, value) pairs for the two halves of a Tally."""

    events: list[tuple[Place, Any]]
    distinct: list[tuple[Place, Any]]


@lru_cache(MAX_KNOWN_PARTS)
def read_part(column: Column, text: bytes) -> Facts | None:
    """Return what a part tells; None where it is no such part."""
    try:
        part = json.loads(b"{%b}" % text)
        return facts_of(column.source, part) if tuple(part) == column.keys else None
    except (ValueError, RecursionError, KeyError, TypeError, AttributeError):
        return None


def facts_of(source: str, part: dict[str, Any]) -> Facts:
    events: list[tuple[Place, Any]] = [
        ((source, name), value)
        for name, keys in LISTS[source].items()
        if keys[0] in part
        for value in values_of(part, keys)
    ]
    distinct: list[tuple[Place, Any]] = []
    if "projectId" in part:  # each event has one such part
        (project,) = texts(part["projectId"])
        if project is not None:
            places = [(*place, *value) for place, value in events if place[1] in WITH_PROJECTS]
            distinct = [(place, project) for place in [(source, "projects"), *places]]
        events.append(((source, "events"), ()))
    if "resourceCount" in part:
        events.append(((source, "resource_count"), index(part["resourceCount"])))
    return Facts(events, distinct)


def values_of(part: dict[str, Any], keys: tuple[str, ...]) -> Iterable[tuple[str | None, ...]]:
    """Return the values that count in the list of these keys, each once."""
    if keys == ("providers",):
        return [(name,) for name, is_set in part["providers"].items() if is_set]
    if keys == ("packages",):
        return {texts(package["name"], package["version"]) for package in part["packages"]}
    return [texts(*(part[key] for key in keys))]


def texts(*values: Any) -> tuple[str | None, ...]:
    if not all(value is None or isinstance(value, str) for value in values):
        raise TypeError("want text or null")
    return values


def count_events(chunk: bytes, tally: Tally) -> None:
    """Count the lines of a chunk of an events file."""
    lines = chunk.count(b"\n")
    rows = EVENT.findall(chunk)
    counters = count_columns(rows)
    parts = list(facts_in(counters))
    if len(rows) < lines or any(facts is None for _, facts in parts):
        rows = list(filter(None, map(cut, chunk.split(b"\n"))))
        counters = count_columns(rows)
        parts = list(facts_in(counters))
    tally.unreadable_lines += lines - len(rows)
    for column, counter in counters.items():
        if column.distinct:
            tally.distinct[column.source, column.distinct] |= counter.keys() - {b"null"}
    for times, facts in parts:
        for place, value in facts.events if facts else ():
            tally.events[place][value] += times
        for place, value in facts.distinct if facts else ():
            tally.distinct[place].add(value)


def cut(line: bytes) -> Row:
    """Return the columns of a record, whatever its form is; none where it cannot be read."""
    match = EVENT.fullmatch(line)
    if match and is_readable(row := match.groups(b"")):
        return row
    try:
        record = json.loads(line)
        values = record | record["payload"]
        row = tuple(
            column_text(column, values) if column.source == record["source"] else b""
            for column in COLUMNS
        )
    except (ValueError, RecursionError, KeyError, TypeError):
        return ()
    return row if is_readable(row) else ()


def is_readable(row: Row) -> bool:
    parts = [(column, text) for column, text in zip(COLUMNS, row, strict=False) if text]
    return bool(parts) and all(column.distinct or read_part(column, text) for column, text in parts)


def column_text(column: Column, values: dict[str, Any]) -> bytes:
    if column.distinct:
        return encode(*texts(values[column.keys[0]])).encode("ascii")
    return encode({key: values[key] for key in column.keys})[1:-1].encode("ascii")


def count_columns(rows: list[Row]) -> dict[Column, Counter[bytes]]:
    """Count each column's values."""
    columns = zip(COLUMNS, zip(*rows, strict=True), strict=False)
    return {column: Counter(filter(None, values)) for column, values in columns}


def facts_in(counters: dict[Column, Counter[bytes]]) -> Iterator[tuple[int, Facts | None]]:
    """Yield what each different part tells, and how often it is there."""
    for column, counter in counters.items():
        if not column.distinct:
            for part, times in counter.items():
                yield times, read_part(column, part)


def count_refusals(chunk: bytes, tally: Tally) -> None:
    for line, times in Counter(REFUSAL_TIME.sub(b"{", chunk).splitlines()).items():
        try:
            refusal = json.loads(line)
            reason = texts(refusal["source"], refusal["field"], refusal["detail"])
            tally.events["refused",][reason] += times
        except (ValueError, RecursionError, KeyError, TypeError):
            tally.unreadable_lines += times


# Reading files.


class Piece(NamedTuple):
    """The lines of a day's file that begin at `start` or later, and before `end`."""

    file: DayFile
    start: int
    end: int

    @property
    def size_bytes(self) -> int:
        return self.end - self.start


class Result(NamedTuple):
    """What came of a piece; `error` where it could be read only in part."""

    piece: Piece
    tally: Tally
    error: str | None


def split(file: DayFile, listed: set[Path]) -> list[Piece]:
    """Cut one of the listed files into pieces: one of no length, where it cannot be looked at."""
    size = start = 0
    with contextlib.suppress(OSError, EOFError, zlib.error):  # who reads it will say so
        size = file.path.stat().st_size
        if packed_path(file.path) in listed:
            start = length_packed(file.path)  # what a killed housekeeper left in both files
    step = size if file.is_compressed else PIECE_BYTES
    starts = range(start, size, step or 1) or [start]
    return [Piece(file, at, min(at + step, size)) for at in starts]


def read_piece(piece: Piece) -> Result:
    tally, error = Tally(), None
    count = count_events if piece.file.kind is Kind.EVENTS else count_refusals
    try:
        for chunk in unpacked_lines(piece) if piece.file.is_compressed else plain_lines(piece):
            count(chunk, tally)
    except (OSError, EOFError, zlib.error) as exc:
        error = f"{piece.file.path}: {exc}"
    return Result(piece, tally, error)


def plain_lines(piece: Piece) -> Iterator[bytes]:
    """Yield the lines; a last line without its newline is torn, and no line."""
    with piece.file.path.open("rb") as file:
        if piece.start:
            file.seek(piece.start - 1)
            file.readline()
        chunk = file.read(max(0, piece.end - file.tell()))
        if chunk and not chunk.endswith(b"\n"):
            chunk += file.readline()
        yield whole_lines(chunk)


def unpacked_lines(piece: Piece) -> Iterator[bytes]:
    """Yield whole lines; all there are before an error is raised."""
    blocks: list[bytes] = []
    try:
        with gzip.open(piece.file.path) as file:
            while block := file.read1(PIECE_BYTES):
                blocks.append(block)
                if sum(map(len, blocks)) >= PIECE_BYTES:
                    blocks.append(file.readline())
                    yield whole_lines(b"".join(blocks))
                    blocks.clear()
    except (OSError, EOFError, zlib.error):
        yield whole_lines(b"".join(blocks))
        raise
    yield whole_lines(b"".join(blocks))


def whole_lines(text: bytes) -> bytes:
    return text[: text.rfind(b"\n") + 1]


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


def tally_days(pieces: list[Piece], errors: list[str]) -> Iterator[tuple[date, Tally]]:
    """Yield each day with its tally, and add to `errors` what could not be read."""
    length = sum(piece.size_bytes for piece in pieces)
    hidden = not sys.stderr.isatty()
    with click.progressbar(length=length, file=sys.stderr, hidden=hidden) as progress:
        for day, results in groupby(read_all(pieces), key=lambda result: result.piece.file.day):
            tally = Tally()
            for result in results:
                tally.add(result.tally)
                errors += [result.error] if result.error else []
                progress.update(result.piece.size_bytes)
            yield day, tally


# The report.


def make_report(
    directories: Iterable[Path], since: date, until: date
) -> tuple[dict[str, Any], list[str]]:
    """Return the report as its JSON says it, and what could not be read.

    Several directories count as one.  Raises OSError where one cannot be read at all.
    """
    first = min(since, until - timedelta(days=max(ACTIVE_DAYS) - 1))
    files = sorted(file for directory in directories for file in day_files(directory))
    files = [file for file in files if first <= file.day <= until]
    listed = {file.path for file in files}
    pieces = [piece for file in files for piece in split(file, listed)]
    total, days, errors = Tally(), {}, list[str]()
    windows = {length: Tally() for length in ACTIVE_DAYS}
    for day, tally in tally_days(pieces, errors):
        for length, window in windows.items():
            if day > until - timedelta(days=length):
                window.add(tally)
        if day >= since:
            days[day] = count_day(tally)
            total.add(tally)
    if not days:
        errors.append(f"no file from {since} to {until} in {', '.join(map(str, directories))}")
    every_day = [since + timedelta(days=n) for n in range((until - since).days + 1)]
    report = {
        "since": str(since),
        "until": str(until),
        "events": {source: total.events[source, "events"][()] for source in DISTINCT},
        "unreadable_lines": total.unreadable_lines,
        "refused": ranked(total, ("refused",), ("source", "field", "detail")),
        "days": [{"date": str(day)} | days.get(day, count_day(Tally())) for day in every_day],
        "active": {str(length): count_active(window) for length, window in windows.items()},
        **{source: count_lists(total, source) for source in LISTS},
    }
    return report, errors


def count_active(tally: Tally) -> dict[str, dict[str, int]]:
    return {
        source: {name: len(tally.distinct[source, name]) for name in names}
        for source, names in DISTINCT.items()
    }


def count_day(tally: Tally) -> dict[str, dict[str, int]]:
    return {
        source: {"events": tally.events[source, "events"][()]} | active
        for source, active in count_active(tally).items()
    }


def count_lists(total: Tally, source: str) -> dict[str, Any]:
    lists: dict[str, Any] = {}
    for name, keys in LISTS[source].items():
        columns = ("name", "version") if name == "packages" else ("value", "version")[: len(keys)]
        lists[name] = ranked(total, (source, name), columns)
        for row in lists[name] if name in WITH_PROJECTS else ():
            row["projects"] = len(total.distinct[source, name, row["value"]])
    if source == "core":
        lists["resource_count"] = spread(total.events[source, "resource_count"])
    return lists


def ranked(total: Tally, place: Place, names: tuple[str, ...]) -> list[dict[str, Any]]:
    """Return one row for each value, most events first, then by value with null last."""
    rows = sorted(
        total.events[place].items(),
        key=lambda row: (-row[1], *((value is None, value) for value in row[0])),
    )
    return [dict(zip(names, values, strict=True)) | {"events": n} for values, n in rows]


def spread(counts: Counter[int]) -> dict[str, int | None]:
    """Return least, lower middle, the smallest that 90 % do not exceed, and greatest."""
    values = sorted(counts)
    ends = list(accumulate(counts[value] for value in values))

    def reaching(percent: int) -> int:
        return values[bisect_left(ends, -(-ends[-1] * percent // 100))]

    if not values:
        return dict.fromkeys(("min", "median", "p90", "max"))
    return {"min": values[0], "median": reaching(50), "p90": reaching(90), "max": values[-1]}


# For people.


SOURCES = {"core": "Apps", "cli": "Command line"}
SPARKS = "▁▂▃▄▅▆▇█"


def render(style: str, report: dict[str, Any], width: int) -> str:
    """Draw the report as text of that many columns, or as HTML."""
    tools = (readable, label, fit, number, sparkline, chart_top)
    by_name = {tool.__name__: tool for tool in tools}
    constants = {"sources": SOURCES, "lists": LISTS, "top": TOP, "style": click.style}
    return render_template(f"report.{style}", report=report, width=width, **constants, **by_name)


def readable(value: str | None) -> str:
    """Return a value as it stands in the files: printable ASCII, safe on a terminal."""
    return "unknown" if value is None else encode(value)[1:-1]


def label(row: dict[str, Any]) -> str:
    """Return what the row of a list counts, with its version where the list has versions."""
    name, version = row["name"] if "name" in row else row["value"], row.get("version")
    if "version" not in row or name is version is None:
        return readable(name)
    return f"{readable(name)} {'(version unknown)' if version is None else readable(version)}"


def number(count: int, noun: str = "") -> str:
    return f"{count:,} {noun}{'' if count == 1 else 's'}" if noun else f"{count:,}"


def fit(text: str, width: int) -> str:
    """Cut or fill a text to that many columns of a terminal."""
    return (text if len(text) <= width else f"{text[: width - 1]}…").ljust(width)


def sparkline(values: list[int], width: int) -> str:
    """Draw one mark for each value, or for the greatest of several where they would not fit."""
    step = -(-len(values) // width)
    marks = [max(values[at : at + step]) for at in range(0, len(values), step)]
    most = max(marks)
    # Nothing at all must not look like little.
    return "".join(SPARKS[(n * len(SPARKS) - 1) // most] if n else "·" for n in marks)


def chart_top(most: int) -> int:
    """Return where a chart ends: twice a round number, so that its middle is round, too."""
    half = (most + 1) // 2 or 1
    unit = 10 ** (len(str(half)) - 1) // 2 or 1
    return -(-half // unit) * unit * 2


# The command.


class BadOption(click.ClickException):
    exit_code = 2


def parse_day(context: click.Context, option: click.Parameter, value: str | None) -> date | None:
    if value is None:
        return None
    try:
        day = date.fromisoformat(value)
    except ValueError:
        day = date.min
    if day < FIRST_DAY:
        raise BadOption(f"--{option.name} {value!r}: want a date such as 2026-11-23")
    return day


@click.command("report")
@click.argument("directories", nargs=-1, type=click.Path(path_type=Path))
@click.option("--since", callback=parse_day, help="The first day (UTC); 29 days before the last.")
@click.option("--until", callback=parse_day, help="The last day (UTC); today.")
@click.option("--format", "style", type=click.Choice(["text", "json", "html"]), default="text")
@click.option("--output", type=click.Path(dir_okay=False, path_type=Path), help="Write to a file.")
@with_appcontext
def report_command(
    directories: tuple[Path, ...],
    since: date | None,
    until: date | None,
    style: str,
    output: Path | None,
) -> None:
    """Tell how many are active, and with what.

    DIRECTORIES hold the files of one collector each; TELEMETRY_DATA_DIR by default.
    """
    collector = current_app.extensions["collector"]
    directories = directories or (collector.settings.data_dir,)
    until = until or collector.store.clock().date()
    since = since or until - timedelta(days=DEFAULT_DAYS - 1)
    if since > until:
        raise BadOption(f"--since {since}: want a day not after the last one, {until}")
    try:
        report, errors = make_report(directories, since, until)
    except OSError as exc:
        raise click.ClickException(
            f"{exc.filename}: {exc.strerror}; TELEMETRY_DATA_DIR says where the files are"
        ) from exc
    if style == "json":
        text = json.dumps(report, indent=1)
    else:
        text = render(style, report, max(80, shutil.get_terminal_size().columns))
    if output:
        try:
            output.write_text(click.unstyle(f"{text}\n"), encoding="utf-8")
        except OSError as exc:
            raise click.ClickException(f"--output {output}: {exc.strerror}") from exc
    else:
        click.echo(text, color=False if os.environ.get("NO_COLOR") else None)
    for error in errors:
        click.echo(f"Error: {error}", err=True)
    if errors:
        raise SystemExit(1)
