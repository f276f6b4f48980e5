"""`flask report`: how many are active, and with what, read from the daily files.

An app reports the same payload on every load, and its visitors share a few
browsers: most of a line repeats, byte for byte.  So lines are cut into parts,
equal parts are counted, and each different part is parsed once.  Files are read
side by side on all cores, large ones in pieces.
"""

import gc
import gzip
import json
import multiprocessing
import os
import re
import shutil
import signal
import sys
import unicodedata
import zlib
from bisect import bisect_right
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import date, timedelta
from functools import lru_cache
from itertools import accumulate, groupby
from pathlib import Path
from typing import Any, NamedTuple

import click
from flask import current_app, render_template
from flask.cli import with_appcontext

from storage import DayFile, day_files, encode

ACTIVE_DAYS = (1, 7, 30)
DEFAULT_DAYS = 30
TOP = 10  # of each list, for people
PIECE_BYTES = 2**24  # of a file, read at once
MAX_KNOWN_PARTS = 20_000  # memory grows with the different values, not with the lines

# A line as storage.py writes it, cut into what repeats.
EVENT_LINE = rb"""^\{"id":".{36}","received_at":".{24}","source":(?:
    "core","ip":(S),"hostname":(S),
    ("browser":S,"browser_version":S),
    ("os":S,"os_version":S),
    "payload":\{("providers":.*)\}
|
    "cli","ip":(S),"payload":\{
    ("nodeEnv":S),
    ("nodeVersion":S),
    ("os":S,"osVersion":S),
    ("command":S),
    ("packages":.*)\}
)\}$"""


def line_pattern(string: bytes) -> re.Pattern[bytes]:
    string_or_null = b"(?:%b|null)" % string
    return re.compile(EVENT_LINE.replace(b"S", string_or_null), re.MULTILINE | re.VERBOSE)


# The simple pattern is the faster one, and finds no wrong cut: in a string, no quote is without
# a backslash.  It does not find strings that have a quote in them.
EVENT = line_pattern(rb'"[^"]*+"')
ANY_EVENT = line_pattern(rb'"(?:[^"\\]|\\.)*+"')
REFUSAL_TIME = re.compile(rb'^\{"received_at":"[^"\\]*",', re.MULTILINE)

HEAD = ("id", "received_at", "source", "ip")
MACHINE = ("nodeEnv", "nodeVersion", "os", "osVersion", "command")
AGENT = ("browser", "browser_version", "os", "os_version")
KEYS = {"core": (*HEAD, "hostname", *AGENT, "payload"), "cli": (*HEAD, "payload")}
PAYLOAD_KEYS = {
    "core": ("providers", "version", "resourceCount", "projectId"),
    "cli": (*MACHINE, "packages", "projectFramework", "projectId"),
}

Place = tuple[str, ...]  # of a list or number in the report, such as ("core", "browsers")


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


class Facts(NamedTuple):
    """What a part of a line tells: (place, value) pairs for the two halves of a Tally."""

    events: Sequence[tuple[Place, Any]]
    distinct: Sequence[tuple[Place, Any]]


Reader = Callable[[dict[str, Any]], Facts]


def values_at(*place: str) -> Reader:
    return lambda part: Facts([(place, tuple(part.values()))], [])


def app_facts(part: dict[str, Any]) -> Facts:
    version, project = part["version"], part["projectId"]
    providers = [name for name, is_set in part["providers"].items() if is_set]
    events = [
        (("core", "events"), ()),
        (("core", "versions"), (version,)),
        (("core", "resource_count"), int(part["resourceCount"])),
        *((("core", "providers"), (name,)) for name in providers),
    ]
    places: list[Place] = [("core", "projects"), ("core", "versions", version)]
    places += [("core", "providers", name) for name in providers]
    return Facts(events, [(place, project) for place in places if project is not None])


def project_facts(part: dict[str, Any]) -> Facts:
    packages = {(package["name"], package["version"]) for package in part["packages"]}
    project = part["projectId"]
    events = [
        (("cli", "events"), ()),
        (("cli", "frameworks"), (part["projectFramework"],)),
        *((("cli", "packages"), package) for package in packages),
    ]
    return Facts(events, [(("cli", "projects"), project)] if project is not None else [])


# What the groups of EVENT are: values of a place, or parts to read facts from.
COLUMNS: tuple[Place | Reader, ...] = (
    ("core", "addresses"),
    ("core", "hostnames"),
    values_at("core", "browsers"),
    values_at("core", "operating_systems"),
    app_facts,
    ("cli", "addresses"),
    values_at("cli", "environments"),
    values_at("cli", "node_versions"),
    values_at("cli", "operating_systems"),
    values_at("cli", "commands"),
    project_facts,
)


@lru_cache(MAX_KNOWN_PARTS)
def read_part(read_facts: Reader, part: bytes) -> Facts | None:
    """Return what a part tells; None where it is no such part."""
    try:
        facts = read_facts(json.loads(b"{%b}" % part))
        hash((*facts.events, *facts.distinct))
    except (ValueError, RecursionError, KeyError, TypeError, AttributeError):
        return None
    return facts


def count_events(chunk: bytes, tally: Tally) -> None:
    """Count the lines of a chunk of an events file."""
    lines = chunk.count(b"\n")
    rows = EVENT.findall(chunk)
    if len(rows) < lines:
        rows = ANY_EVENT.findall(b"\n".join(map(normal_form, chunk.split(b"\n"))))
    columns = count_columns(rows)
    if unreadable := {part for part, _, facts in parts_of(columns) if facts is None}:
        rows = [row for row in rows if unreadable.isdisjoint(row)]
        columns = count_columns(rows)
    tally.unreadable_lines += lines - len(rows)
    for column, counter in columns.items():
        if not callable(column):
            tally.distinct[column] |= counter.keys() - {b"null"}
    for _, times, facts in parts_of(columns):
        for place, value in facts.events if facts else ():
            tally.events[place][value] += times
        for place, value in facts.distinct if facts else ():
            tally.distinct[place].add(value)


def count_columns(rows: list[tuple[bytes, ...]]) -> dict[Place | Reader, Counter[bytes]]:
    """Count each column's values; the lines of the other source have none."""
    columns = zip(COLUMNS, zip(*rows, strict=True), strict=False)
    return {column: Counter(filter(None, values)) for column, values in columns}


def parts_of(
    columns: dict[Place | Reader, Counter[bytes]],
) -> Iterator[tuple[bytes, int, Facts | None]]:
    """Yield each different part, how often it is there, and what it tells."""
    for column, counter in columns.items():
        if callable(column):
            for part, times in counter.items():
                yield part, times, read_part(column, part)


def normal_form(line: bytes) -> bytes:
    """Return a record that somebody has written in another way as storage.py writes it."""
    if ANY_EVENT.fullmatch(line):
        return line
    try:
        record = json.loads(line)
        source = record["source"]
        record["payload"] = {key: record["payload"][key] for key in PAYLOAD_KEYS[source]}
        return encode({key: record[key] for key in KEYS[source]}).encode("ascii")
    except (ValueError, RecursionError, KeyError, TypeError):
        return b""


def count_refusals(chunk: bytes, tally: Tally) -> None:
    for line, times in Counter(REFUSAL_TIME.sub(b"{", chunk).splitlines()).items():
        try:
            refusal = json.loads(line)
            reason = refusal["source"], refusal["field"], refusal["detail"]
            tally.events["refused",][reason] += times
        except (ValueError, RecursionError, KeyError, TypeError):
            tally.unreadable_lines += times


# Reading files.


class Piece(NamedTuple):
    """The lines of a day's file that begin at `start` or later, and before `end`."""

    file: DayFile
    start: int
    end: int


class Result(NamedTuple):
    """What came of a piece; `error` where it could be read only in part."""

    piece: Piece
    tally: Tally
    error: str | None


def split(file: DayFile) -> list[Piece]:
    size = file.path.stat().st_size
    step = size if is_packed(file) else PIECE_BYTES
    return [Piece(file, at, min(at + step, size)) for at in range(0, size or 1, step or 1)]


def is_packed(file: DayFile) -> bool:
    return file.path.suffix == ".gz"


def read_piece(piece: Piece) -> Result:
    tally, error = Tally(), None
    count = count_events if piece.file.kind == "events" else count_refusals
    try:
        for chunk in unpacked_lines(piece) if is_packed(piece.file) else plain_lines(piece):
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
                    yield b"".join(blocks)
                    blocks.clear()
    except (OSError, EOFError, zlib.error):
        yield whole_lines(b"".join(blocks))
        raise
    yield whole_lines(b"".join(blocks))


def whole_lines(text: bytes) -> bytes:
    return text[: text.rfind(b"\n") + 1]


def read_all(pieces: list[Piece]) -> Iterator[Result]:
    """Yield the results in the order of the pieces."""
    if sum(piece.end - piece.start for piece in pieces) < PIECE_BYTES:
        yield from map(read_piece, pieces)  # sooner done than other processes are started
        return
    # The processes start with Ctrl-C blocked, for it is meant for this one; and without a search
    # for cycles: nothing here makes any, and it took a third of the time.
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])
    with multiprocessing.get_context("fork").Pool(os.cpu_count(), gc.disable) as pool:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGINT])
        yield from pool.imap(read_piece, pieces)


# The report.


ACTIVE = {"core": ("addresses", "hostnames", "projects"), "cli": ("addresses", "projects")}


def make_report(
    directories: Iterable[Path], since: date, until: date
) -> tuple[dict[str, Any], list[str]]:
    """Return the report as its JSON says it, and what could not be read.

    Several directories count as one.  Raises OSError where one cannot be read at all.
    """
    first = min(since, until - timedelta(days=max(ACTIVE_DAYS) - 1))
    files = [file for directory in directories for file in day_files(directory)]
    pieces = [piece for file in files if first <= file.day <= until for piece in split(file)]
    pieces.sort(key=day_of)
    total, days, errors = Tally(), {}, []
    windows = {length: Tally() for length in ACTIVE_DAYS}
    with progress_bar(pieces) as progress:
        for day, results in groupby(read_all(pieces), key=lambda result: day_of(result.piece)):
            tally = Tally()
            for result in results:
                tally.add(result.tally)
                errors += [result.error] if result.error else []
                progress.update(result.piece.end - result.piece.start)
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
        "events": {source: total.events[source, "events"][()] for source in ACTIVE},
        "unreadable_lines": total.unreadable_lines,
        "refused": ranked(total, ("refused",), ("source", "field", "detail")),
        "days": [{"date": str(day)} | days.get(day, count_day(Tally())) for day in every_day],
        "active": {str(length): count_active(window) for length, window in windows.items()},
        "core": core_lists(total),
        "cli": cli_lists(total),
    }
    return report, errors


def day_of(piece: Piece) -> date:
    return piece.file.day


def progress_bar(pieces: list[Piece]) -> Any:
    length = sum(piece.end - piece.start for piece in pieces)
    return click.progressbar(length=length, file=sys.stderr, hidden=not sys.stderr.isatty())


def count_active(tally: Tally) -> dict[str, dict[str, int]]:
    return {
        source: {name: len(tally.distinct[source, name]) for name in names}
        for source, names in ACTIVE.items()
    }


def count_day(tally: Tally) -> dict[str, dict[str, int]]:
    return {
        source: {"events": tally.events[source, "events"][()]} | active
        for source, active in count_active(tally).items()
    }


def core_lists(total: Tally) -> dict[str, Any]:
    return {
        "versions": with_projects(total, ("core", "versions")),
        "providers": with_projects(total, ("core", "providers")),
        "browsers": ranked(total, ("core", "browsers"), ("value", "version")),
        "operating_systems": ranked(total, ("core", "operating_systems"), ("value", "version")),
        "resource_count": spread(total.events["core", "resource_count"]),
    }


def cli_lists(total: Tally) -> dict[str, Any]:
    return {
        "commands": ranked(total, ("cli", "commands"), ("value",)),
        "node_versions": ranked(total, ("cli", "node_versions"), ("value",)),
        "operating_systems": ranked(total, ("cli", "operating_systems"), ("value", "version")),
        "frameworks": ranked(total, ("cli", "frameworks"), ("value",)),
        "environments": ranked(total, ("cli", "environments"), ("value",)),
        "packages": ranked(total, ("cli", "packages"), ("name", "version")),
    }


def ranked(total: Tally, place: Any, names: tuple[str, ...]) -> list[dict[str, Any]]:
    """Return one row for each value, most events first, then by value with null last."""
    rows = []
    for values, events in total.events[place].items():
        rows.append(dict(zip(names, values, strict=True)) | {"events": events})
    return sorted(
        rows, key=lambda row: (-row["events"], *((row[n] is None, row[n] or "") for n in names))
    )


def with_projects(total: Tally, place: tuple[str, str]) -> list[dict[str, Any]]:
    return [
        row | {"projects": len(total.distinct[*place, row["value"]])}
        for row in ranked(total, place, ("value",))
    ]


def spread(counts: Counter[int]) -> dict[str, int | None]:
    """Return least, lower middle, the smallest that 90 % do not exceed, and greatest."""
    values, events = sorted(counts), counts.total()

    def at_least(share_percent: int) -> int:
        seen = 0
        for value in values:
            seen += counts[value]
            if seen * 100 >= events * share_percent:
                break
        return value

    if not values:
        return dict.fromkeys(("min", "median", "p90", "max"))
    return {"min": values[0], "median": at_least(50), "p90": at_least(90), "max": values[-1]}


# For people.


SOURCES = {"core": "Apps", "cli": "Command line"}
LISTS = {
    "core": {
        "versions": "Versions",
        "providers": "Providers",
        "browsers": "Browsers",
        "operating_systems": "Operating systems",
    },
    "cli": {
        "commands": "Commands",
        "node_versions": "Node versions",
        "operating_systems": "Operating systems",
        "frameworks": "Frameworks",
        "environments": "Environments",
        "packages": "Packages",
    },
}
SPARKS = "▁▂▃▄▅▆▇█"
BAR_COLUMNS = 12


def render_text(report: dict[str, Any], width: int) -> str:
    bar_columns = BAR_COLUMNS + (width - 80) // 2
    return render_people("report.txt", report, width=width, bar_columns=bar_columns) + "\n"


def render_html(report: dict[str, Any]) -> str:
    return render_people("report.html", report) + "\n"


def render_people(template: str, report: dict[str, Any], **more: Any) -> str:
    tools = (readable, label, fit, number, sparkline, chart_top)
    by_name = {tool.__name__: tool for tool in tools}
    constants = {"sources": SOURCES, "lists": LISTS, "top": TOP, "style": click.style}
    return render_template(template, report=report, **constants, **by_name, **more)


def readable(value: str | None) -> str:
    """Return a value safe to show; what comes from events may hold anything."""
    if value is None:
        return "unknown"
    return "".join(c if c.isprintable() else f"\\u{ord(c):04x}" for c in value)


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
    ends = list(accumulate(map(columns, text)))
    if ends and ends[-1] > width:
        kept = bisect_right(ends, width - 1)
        return fit(text[:kept] + "…", width)
    return text + " " * (width - (ends[-1] if ends else 0))


def columns(character: str) -> int:
    """Return how many columns a terminal gives it: none where it is drawn over another."""
    if unicodedata.category(character) in ("Mn", "Me"):
        return 0
    return 2 if unicodedata.east_asian_width(character) in "WF" else 1


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
    try:
        return date.fromisoformat(value) if value else None
    except ValueError as exc:
        raise BadOption(f"--{option.name} {value!r}: want a date such as 2026-11-23") from exc


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
    until = until or collector.clock().date()
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
        text = json.dumps(report, indent=1) + "\n"
    elif style == "html":
        text = render_html(report)
    else:
        text = render_text(report, max(80, shutil.get_terminal_size().columns))
    if output:
        output.write_text(click.unstyle(text), encoding="utf-8")
    else:
        click.echo(text, nl=False, color=False if os.environ.get("NO_COLOR") else None)
    for error in errors:
        click.echo(f"Error: {error}", err=True)
    if errors:
        raise SystemExit(1)
