"""`flask report`: how many are active, and with what, read from the daily files.

An app reports the same payload on every load, and most of its visitors have one
of a few browsers: most of a line repeats, byte for byte.  A line is cut into
its parts, and each different part is parsed once.  Files are read side by side
on all cores, large ones in pieces.
"""

import gzip
import json
import multiprocessing
import os
import re
import shutil
import signal
import sys
import zlib
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import date, timedelta
from functools import lru_cache
from itertools import groupby
from pathlib import Path
from typing import Any, NamedTuple

import click
from flask import current_app, render_template
from flask.cli import with_appcontext

from storage import DayFile, day_files, encode

ACTIVE_DAYS = (1, 7, 30)
DEFAULT_DAYS = 30
TOP = 10  # of each list, for people
CHUNK_BYTES = 2**22
PIECE_BYTES = 2**25
MAX_KNOWN_PARTS = 20_000  # memory grows with the values, not with the lines

# The lines as storage.py writes them; others are read too, but one by one.
EVENT_LINE = re.compile(
    rb'^\{"id":".{36}","received_at":".{24}","source":"(core|cli)","ip":(null|"[^"]*"),'
    rb'(?:"hostname":(null|"[^"]*"),)?(.*)\}$',
    re.MULTILINE,
)
HEAD = ("id", "received_at", "source", "ip")
AGENT = ("browser", "browser_version", "os", "os_version")
KEYS = {"core": (*HEAD, "hostname", *AGENT, "payload"), "cli": (*HEAD, "payload")}
REFUSAL_TIME = re.compile(rb'^\{"received_at":"[^"\\]*",', re.MULTILINE)


Times = defaultdict[bytes, int]
Parts = dict[str, Times]


@dataclass
class Tally:
    """Events by value, and sets of different values; keys are places in the report.

    `parts` are parts of lines that have not been looked into yet.
    """

    parts: defaultdict[str, Counter[bytes]] = field(default_factory=lambda: defaultdict(Counter))
    events: defaultdict[Any, Counter[Any]] = field(default_factory=lambda: defaultdict(Counter))
    distinct: defaultdict[Any, set[Any]] = field(default_factory=lambda: defaultdict(set))
    unreadable_lines: int = 0

    def add(self, other: "Tally") -> None:
        for place, counter in other.events.items():
            self.events[place].update(counter)
        for place, values in other.distinct.items():
            self.distinct[place] |= values
        self.unreadable_lines += other.unreadable_lines


# Counting lines.


class Facts(NamedTuple):
    """What is counted of a part: (place, value) pairs for the two parts of a Tally."""

    events: list[tuple[Any, Any]]
    distinct: list[tuple[Any, Any]]


def agent_facts(record: dict[str, Any]) -> Facts:
    events = [
        (("core", "browsers"), (record["browser"], record["browser_version"])),
        (("core", "operating_systems"), (record["os"], record["os_version"])),
    ]
    return Facts(events, [])


def core_facts(payload: dict[str, Any]) -> Facts:
    version, project = payload["version"], payload["projectId"]
    providers = [name for name, is_set in payload["providers"].items() if is_set]
    events = [
        (("core", "events"), None),
        (("core", "versions"), version),
        (("core", "resource_count"), int(payload["resourceCount"])),
        *((("core", "providers"), name) for name in providers),
    ]
    places = [("core", "projects"), ("core", "versions", version)]
    places += [("core", "providers", name) for name in providers]
    return Facts(events, [] if project is None else [(place, project) for place in places])


def machine_facts(payload: dict[str, Any]) -> Facts:
    events = [
        (("cli", "events"), None),
        (("cli", "commands"), payload["command"]),
        (("cli", "node_versions"), payload["nodeVersion"]),
        (("cli", "operating_systems"), (payload["os"], payload["osVersion"])),
        (("cli", "environments"), payload["nodeEnv"]),
    ]
    return Facts(events, [])


def project_facts(payload: dict[str, Any]) -> Facts:
    packages = {(package["name"], package["version"]) for package in payload["packages"]}
    events = [
        (("cli", "frameworks"), payload["projectFramework"]),
        *((("cli", "packages"), package) for package in packages),
    ]
    project = payload["projectId"]
    return Facts(events, [] if project is None else [(("cli", "projects"), project)])


# The parts that a line is cut into: how each becomes JSON again, and what it tells.
PARTS: dict[str, tuple[bytes, Callable[[dict[str, Any]], Facts]]] = {
    "agent": (b'{%b"":0}', agent_facts),  # it ends with a comma
    "core": (b"{%b", core_facts),
    "machine": (b"{%b}", machine_facts),
    "project": (b'{"packages":%b', project_facts),
}


@lru_cache(MAX_KNOWN_PARTS)
def read_part(kind: str, part: bytes) -> Facts | None:
    """Return what a part tells; None where it is no such part."""
    frame, read_facts = PARTS[kind]
    try:
        facts = read_facts(json.loads(frame % part))
        for pair in (*facts.events, *facts.distinct):
            hash(pair)
    except (ValueError, RecursionError, KeyError, TypeError, AttributeError):
        return None
    return facts


def count_events(chunk: bytes, tally: Tally) -> None:
    """Count the lines of a chunk of an events file."""
    rows = EVENT_LINE.findall(chunk)
    lines = chunk.count(b"\n")
    if len(rows) < lines:
        others = [line for line in chunk.split(b"\n")[:-1] if not EVENT_LINE.fullmatch(line)]
        rows += EVENT_LINE.findall(b"\n".join(map(normal_form, others)))
    parts = parts_of(rows)
    if not are_readable(parts):
        rows = [row for row in rows if are_readable(parts_of([row]))]
        parts = parts_of(rows)
    for kind, times in parts.items():
        tally.parts[kind].update(times)
    for source in (b"core", b"cli"):
        addresses = {row[1] for row in rows if row[0] == source}
        tally.distinct[source.decode(), "addresses"] |= addresses - {b"null"}
    tally.distinct["core", "hostnames"] |= {row[2] for row in rows} - {b"null", b""}
    tally.unreadable_lines += lines - len(rows)
    if sum(map(len, tally.parts.values())) > MAX_KNOWN_PARTS:
        look_into_parts(tally)


def parts_of(rows: list[tuple[bytes, bytes, bytes, bytes]]) -> Parts:
    """Cut each row where its payload begins, and a command's where its packages begin.

    No string can hold these cuts: in JSON its quotes would have a backslash.
    """
    agents, cores, machines, projects = (Times(int) for _ in range(4))
    for source, _, _, rest in rows:
        agent, _, payload = rest.partition(b'"payload":{')
        if source == b"core":
            agents[agent] += 1
            cores[payload] += 1
        else:
            machine, _, project = payload.partition(b',"packages":')
            machines[machine] += 1
            projects[project] += 1
    return {"agent": agents, "core": cores, "machine": machines, "project": projects}


def are_readable(parts: Parts) -> bool:
    return all(read_part(kind, part) for kind, times in parts.items() for part in times)


def look_into_parts(tally: Tally) -> None:
    for kind, parts in tally.parts.items():
        for part, times in parts.items():
            facts = read_part(kind, part) or Facts([], [])
            for place, value in facts.events:
                tally.events[place][value] += times
            for place, value in facts.distinct:
                tally.distinct[place].add(value)
    tally.parts.clear()


def normal_form(line: bytes) -> bytes:
    """Return a record that somebody has written in another way as storage.py writes it."""
    try:
        record = json.loads(line)
        return encode({key: record[key] for key in KEYS[record["source"]]}).encode("ascii")
    except (ValueError, RecursionError, KeyError, TypeError):
        return b""


def count_refusals(chunk: bytes, tally: Tally) -> None:
    for line, times in Counter(REFUSAL_TIME.sub(b"{", chunk).splitlines()).items():
        try:
            refusal = json.loads(line)
            reason = refusal["source"], refusal["field"], refusal["detail"]
            tally.events["refused"][reason] += times
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
    if file.path.suffix == ".gz":
        return [Piece(file, 0, size)]
    return [Piece(file, at, min(at + PIECE_BYTES, size)) for at in range(0, size, PIECE_BYTES)]


def read_piece(piece: Piece) -> Result:
    tally, error = Tally(), None
    read = read_gzip if piece.file.path.suffix == ".gz" else read_plain
    count = count_events if piece.file.kind == "events" else count_refusals
    try:
        for chunk in read(piece):
            count(chunk, tally)
    except (OSError, EOFError, zlib.error) as exc:
        error = f"{piece.file.path.name}: {exc}"
    look_into_parts(tally)
    return Result(piece, tally, error)


def read_plain(piece: Piece) -> Iterator[bytes]:
    """Yield chunks of whole lines; a last line without its newline is torn, and no line."""
    with piece.file.path.open("rb") as file:
        if piece.start:
            file.seek(piece.start - 1)
            file.readline()
        while file.tell() < piece.end:
            chunk = file.read(min(CHUNK_BYTES, piece.end - file.tell())) + file.readline()
            yield chunk[: chunk.rfind(b"\n") + 1]


def read_gzip(piece: Piece) -> Iterator[bytes]:
    """Yield chunks of whole lines; all there are before an error is raised."""
    begun = b""
    with gzip.open(piece.file.path) as file:
        while more := file.read1(CHUNK_BYTES):
            whole = more.rfind(b"\n") + 1
            if whole:
                yield begun + more[:whole]
                begun = b""
            begun += more[whole:]


def read_all(pieces: list[Piece]) -> Iterator[Result]:
    """Yield the results in the order of the pieces."""
    if sum(piece.end - piece.start for piece in pieces) < CHUNK_BYTES:
        yield from map(read_piece, pieces)  # sooner done than other processes are started
        return
    ignore_ctrl_c = signal.signal, (signal.SIGINT, signal.SIG_IGN)
    with multiprocessing.get_context("fork").Pool(os.cpu_count(), *ignore_ctrl_c) as pool:
        yield from pool.imap(read_piece, pieces)


# The report.


def make_report(directory: Path, since: date, until: date) -> tuple[dict[str, Any], list[str]]:
    """Return the report as its JSON says it, and what could not be read.

    Raises OSError where the directory itself cannot be read.
    """
    first = min(since, until - timedelta(days=max(ACTIVE_DAYS) - 1))
    files = [file for file in day_files(directory) if first <= file.day <= until]
    pieces = [piece for file in files for piece in split(file)]
    total, days, errors = Tally(), {}, []
    active = {length: Tally() for length in ACTIVE_DAYS}
    total_bytes = sum(piece.end - piece.start for piece in pieces)
    is_hidden = not sys.stderr.isatty()
    with click.progressbar(length=total_bytes, file=sys.stderr, hidden=is_hidden) as progress:
        for day, results in groupby(read_all(pieces), key=lambda result: result.piece.file.day):
            tally = Tally()
            for result in results:
                tally.add(result.tally)
                progress.update(result.piece.end - result.piece.start)
                errors += [result.error] if result.error else []
            for length, window in active.items():
                if day > until - timedelta(days=length):
                    window.add(actives(tally))
            if day >= since:
                days[day] = count_day(tally)
                total.add(tally)
    length = (until - since).days + 1
    every_day = [since + timedelta(days=n) for n in range(length)]
    report = {
        "since": str(since),
        "until": str(until),
        "events": {source: total.events[source, "events"][None] for source in ("core", "cli")},
        "unreadable_lines": total.unreadable_lines,
        "refused": ranked(total, "refused", ("source", "field", "detail")),
        "days": [{"date": str(day)} | days.get(day, count_day(Tally())) for day in every_day],
        "active": {str(length): count_active(window) for length, window in active.items()},
        "core": core_lists(total),
        "cli": cli_lists(total),
    }
    return report, errors


def actives(tally: Tally) -> Tally:
    names = ("addresses", "hostnames", "projects")
    places = [(source, name) for source in ("core", "cli") for name in names]
    return Tally(distinct=defaultdict(set, {place: tally.distinct[place] for place in places}))


def count_active(tally: Tally) -> dict[str, Any]:
    kept = {"core": ("addresses", "hostnames", "projects"), "cli": ("addresses", "projects")}
    return {
        source: {name: len(tally.distinct[source, name]) for name in names}
        for source, names in kept.items()
    }


def count_day(tally: Tally) -> dict[str, Any]:
    return {
        source: {"events": tally.events[source, "events"][None]} | active
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
    for value, events in total.events[place].items():
        parts = value if len(names) > 1 else (value,)
        rows.append(dict(zip(names, parts, strict=True)) | {"events": events})
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


class Row(NamedTuple):
    label: str
    events: int
    share: float  # of the source's events; more than one value of a list can be in an event
    projects: int | None


SECTIONS = [
    ("Versions", "core", "versions"),
    ("Providers", "core", "providers"),
    ("Browsers", "core", "browsers"),
    ("Operating systems", "core", "operating_systems"),
    ("Commands", "cli", "commands"),
    ("Node versions", "cli", "node_versions"),
    ("Operating systems", "cli", "operating_systems"),
    ("Frameworks", "cli", "frameworks"),
    ("Environments", "cli", "environments"),
    ("Packages", "cli", "packages"),
]
SOURCES = {"core": "Apps", "cli": "Command line"}
SPARKS = "▁▂▃▄▅▆▇█"


def sections(report: dict[str, Any]) -> Iterator[tuple[str, str, list[Row]]]:
    """Yield source, title and rows of each list of the report."""
    for title, source, name in SECTIONS:
        events = max(1, report["events"][source])
        yield (
            source,
            title,
            [
                Row(label(item), item["events"], item["events"] / events, item.get("projects"))
                for item in report[source][name]
            ],
        )


def label(item: dict[str, Any]) -> str:
    """Return what an item is, safe to print; text from events may hold anything."""
    name = item["name"] if "name" in item else item["value"]
    if name is None:
        return "unknown"
    text = f"{name} {item['version']}" if item.get("version") else str(name)
    return "".join(c if c.isprintable() else f"\\u{ord(c):04x}" for c in text)


def render_text(report: dict[str, Any], width: int) -> str:
    lines = [f"Telemetry from {report['since']} to {report['until']} (UTC)", ""]
    lines += [f"{'active in the last':24}{'':18}addresses  hostnames   projects"]
    for days, sources in report["active"].items():
        for source, counts in sources.items():
            when = f"{days} day{'' if days == '1' else 's'}" if source == "core" else ""
            hostnames = counts.get("hostnames", "")
            lines.append(
                f"  {when:22}{SOURCES[source]:14}{counts['addresses']:13,}"
                f"{hostnames and f'{hostnames:,}':>11}{counts['projects']:11,}"
            )
    for source, name in SOURCES.items():
        days = [day[source]["events"] for day in report["days"]][-(width - 20) :]
        lines += ["", heading(f"{name}: {report['events'][source]:,} events")]
        lines += [f"  each day{'':8}{sparkline(days)}"]
        if source == "core" and report["core"]["resource_count"]["max"] is not None:
            spread = report["core"]["resource_count"]
            lines += ["  resources       " + ", ".join(f"{k} {v:,}" for k, v in spread.items())]
        for kind, title, rows in sections(report):
            if kind == source and rows:
                lines += ["", f"  {title}", *(text_row(row, width) for row in rows[:TOP])]
                lines += [f"    and {len(rows) - TOP:,} more"] if len(rows) > TOP else []
    if report["refused"]:
        refused = report["refused"]
        lines += ["", heading(f"Refused: {sum(item['events'] for item in refused):,} requests")]
        lines += [
            f"  {item['events']:8,}  {shorten(item['detail'] or '', width - 12)}"
            for item in refused[:TOP]
        ]
        lines += [f"    and {len(refused) - TOP:,} more"] if len(refused) > TOP else []
    if report["unreadable_lines"]:
        lines += ["", f"{report['unreadable_lines']:,} lines could not be read."]
    return "\n".join(lines) + "\n"


def heading(text: str) -> str:
    return click.style(text, bold=True)


def text_row(row: Row, width: int) -> str:
    bar_width = min(20, width - 60)
    bar = "█" * round(row.share * bar_width)
    name = shorten(row.label, width - 24 - bar_width - 4)
    return (
        f"    {name:{width - 24 - bar_width - 4}}{row.events:11,}{row.share:7.1%}  {bar}".rstrip()
    )


def shorten(text: str, width: int) -> str:
    safe = "".join(c if c.isprintable() else f"\\u{ord(c):04x}" for c in text)
    return safe if len(safe) <= width else f"{safe[: width - 1]}…"


def sparkline(values: list[int]) -> str:
    most = max(values, default=0) or 1
    return "".join(SPARKS[value * (len(SPARKS) - 1) // most] for value in values)


def render_html(report: dict[str, Any]) -> str:
    return render_template(
        "report.html",
        report=report,
        sources=SOURCES,
        sections=list(sections(report)),
        top=TOP,
        most=max(1, *(day[source]["events"] for day in report["days"] for source in SOURCES)),
    )


# The command.


class BadOption(click.ClickException):
    exit_code = 2


def parse_day(context: click.Context, option: click.Parameter, value: str | None) -> date | None:
    try:
        return date.fromisoformat(value) if value else None
    except ValueError as exc:
        raise BadOption(f"--{option.name} {value!r}: want a date such as 2026-11-23") from exc


@click.command("report")
@click.option("--since", callback=parse_day, help="The first day (UTC); 29 days before the last.")
@click.option("--until", callback=parse_day, help="The last day (UTC); today.")
@click.option("--format", "style", type=click.Choice(["text", "json", "html"]), default="text")
@click.option("--output", type=click.Path(dir_okay=False, path_type=Path), help="Write to a file.")
@with_appcontext
def report_command(since: date | None, until: date | None, style: str, output: Path | None) -> None:
    """Tell how many are active, and with what."""
    collector = current_app.extensions["collector"]
    directory = collector.settings.data_dir
    until = until or collector.clock().date()
    since = since or until - timedelta(days=DEFAULT_DAYS - 1)
    if since > until:
        raise BadOption(f"--since {since}: want a day not after the last one, {until}")
    try:
        report, errors = make_report(directory, since, until)
    except OSError as exc:
        raise click.ClickException(
            f"{directory}: {exc.strerror}; TELEMETRY_DATA_DIR says where the files are"
        ) from exc
    if not any(since <= file.day <= until for file in day_files(directory)):
        errors.append(f"{directory}: no file from {since} to {until}")
    if style == "json":
        text = json.dumps(report, indent=1) + "\n"
    elif style == "html":
        text = render_html(report)
    else:
        text = render_text(report, max(80, shutil.get_terminal_size().columns))
    if output:
        output.write_text(click.unstyle(text), encoding="utf-8")
    else:
        click.echo(text, nl=False, color=False if "NO_COLOR" in os.environ else None)
    for error in errors:
        click.echo(f"Error: {error}", err=True)
    if errors:
        raise SystemExit(1)
