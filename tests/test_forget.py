"""`flask forget`: exactly one person's events go, whatever else happens meanwhile."""

import bz2
import errno
import gzip
import itertools
import json
import lzma
import os
import struct
import tarfile
from collections import Counter
from collections.abc import Callable
from contextlib import AbstractContextManager
from multiprocessing import get_context
from pathlib import Path
from random import Random
from typing import Any, Literal

import pytest
from click.testing import Result
from flask import Flask

from faults import FailingOs
from files import durable, rewriting
from files.days import CLAIM_NAME, DRAFT_NAME
from files.records import encode
from forget import command
from forget.wanted import Verdict, choose

Run = Callable[..., Result]

DAY = "2026-11-20"
NAME = f"events-{DAY}.jsonl"
WANTED = "203.0.113.9"


def record(n: int, ip: str | None = "203.0.113.90", **more: Any) -> bytes:
    payload = {"projectId": more.pop("project", None)}
    event = {"id": str(n), "received_at": f"{DAY}T00:00:00.000Z", "source": "core", "ip": ip}
    return f"{encode(event | more | {'payload': payload})}\n".encode("ascii")


MINE = record(1, WANTED, hostname="a.example", project="p")
OTHERS = [
    record(2, "203.0.113.90", hostname="b.a.example", project="p2"),
    record(3, "20.3.0.113", hostname="a.example.com", project="P"),
    record(4, None, hostname=None),
    record(5, "198.51.100.1", hostname=WANTED, project=WANTED),
    record(6, "198.51.100.1", browser=f'"ip":"{WANTED}"', project='{"hostname":"a.example"}'),
]
KEPT = b"".join(OTHERS)


@pytest.fixture
def run(make_app: Callable[..., Flask], data_dir: Path) -> Run:
    data_dir.mkdir()

    def run(*arguments: str, **settings: str) -> Result:
        return make_app(**settings).test_cli_runner().invoke(args=["forget", *arguments])

    return run


def content(path: Path) -> bytes:
    raw = path.read_bytes()
    return gzip.decompress(raw) if raw[:2] == b"\x1f\x8b" else raw


# Whose events go.


@pytest.mark.parametrize(
    "line",
    [
        MINE,
        MINE.replace(b'":"', b'": "'),
        MINE.replace(b"203", b"\\u00320\\u0033"),
        json.dumps(json.loads(MINE), sort_keys=True).encode() + b"\n",
        MINE.rstrip(b"\n") + b"\r\n",
        b"\xef\xbb\xbf" + MINE,
        b'{"source":"cli","ip":"203.0.113.9","payload":{}}\n',
        b'{"ip":"203.0.113.9"}\n',
        b'{"ip":"203.0.113.9","payload":[],"hostname":{},"source":[]}\n',
    ],
    ids=["ours", "spaces", "escapes", "order", "CR LF", "BOM", "few keys", "one key", "any types"],
)
def test_exactly_the_named_events_are_erased(run: Run, data_dir: Path, line: bytes) -> None:
    """Any JSON object in a file of events is judged."""
    (data_dir / NAME).write_bytes(line + OTHERS[0] + line + b"".join(OTHERS[1:]) + line)
    ran = run("--ip", WANTED, "--yes")

    assert ran.exit_code == 0, ran.output
    assert f"{data_dir / NAME}: 3 events" in ran.output
    assert (data_dir / NAME).read_bytes() == KEPT


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("--ip", f"::ffff:{WANTED}"),
        ("--ip", f" {WANTED} "),
        ("--hostname", "a.example"),
        ("--hostname", "A.Example."),
        ("--project", "p"),
    ],
)
def test_events_are_named_by_one_option(run: Run, data_dir: Path, option: str, value: str) -> None:
    (data_dir / NAME).write_bytes(MINE + KEPT)

    assert run(option, value, "--yes").exit_code == 0
    assert (data_dir / NAME).read_bytes() == KEPT


@pytest.mark.parametrize(
    ("given", "stored", "other"),
    [
        ("bücher.example", "xn--bcher-kva.example", "cher.example"),
        ("xn--bcher-kva.example", "xn--bcher-kva.example", "bücher.example"),
        ("2001:DB8::0:1", "2001:db8::1", "2001:db8::10"),
        ("[::1]", "::1", "[::1]x"),
        ("Odd_Name!", "odd_name!", "odd_name"),
    ],
)
def test_a_host_is_found_as_it_is_stored(given: str, stored: str, other: str) -> None:
    judge = choose((), (given,), ()).judge_value

    assert judge(stored) is Verdict.ERASE
    assert judge(other) is judge(None) is Verdict.KEEP


SPELLINGS = {
    "203.0.113.9": ["203.0.113.9", "::ffff:203.0.113.9", "::FfFf:cb00:7109", "203.0.113.9:80"],
    "2001:db8::7": ["2001:DB8::7", "2001:0DB8:0:0::7", "[2001:db8::7]:443", "2001:db8::0.0.0.7"],
    "64:ff9b::c000:201": ["64:ff9b::192.0.2.1", "0064:FF9B::C000:201"],
    "::7": ["::7", "0:0:0:0:0:0:0:7", "::0.0.0.7"],
    "0.0.0.0": ["0.0.0.0", "::ffff:0:0", "0:0:0:0:0:ffff::"],
}
TEXTS = ["a.example", "p", "b\u00fccher", '"ip":"203.0.113.9"', "\\", "ip", "hostname", "", "A"]
QUESTIONS = [
    *(choose((address,), (), ()) for address in SPELLINGS),
    *(choose((), (text,), ()) for text in TEXTS if text and ":" not in text),
    *(choose((), (), (text,)) for text in TEXTS if text),
]


def any_record(chance: Random) -> dict[str, Any]:
    addresses = [spelling for spellings in SPELLINGS.values() for spelling in spellings]
    values = [*TEXTS, *TEXTS, None, [], {}, 1, ["p"], {"ip": "p"}]
    return {
        "id": chance.choice(TEXTS),
        "ip": chance.choice([*addresses, *values]),
        "hostname": chance.choice(values),
        "payload": chance.choice([*values, *({"projectId": value} for value in values)]),
    }


def edited_line(chance: Random) -> bytes:
    """Return a line in the collector's form, or with what others do to lines."""
    record = any_record(chance)
    line, key, escaped = encode(record), chance.choice(list(record)), chance.choice("pi3e8")
    edits = [
        line.replace(f'"{key}":', f'"{key}" : '),
        line.replace(escaped, f"\\u{ord(escaped):04x}"),
        json.dumps(record, ensure_ascii=False),
        encode({key: record[key] for key in chance.sample(list(record), len(record))}),
        f"{line[:-1]},{encode(any_record(chance))[1:]}",  # the last of two equal keys wins
        '{"id":"torn' + line,
        line[:20],
        f"\ufeff{line}",
        f"{line}\r",
        line.replace("p", "\udcff"),  # no UTF-8
    ]
    line = chance.choice([*[line] * len(edits), *edits])
    return f"{line}\n".encode("utf-8", "surrogateescape")


def test_passing_over_lines_undecoded_never_misses_one() -> None:
    chance = Random(1)
    for _ in range(2_000):
        lines = [edited_line(chance) for _ in range(chance.randint(1, 4))]
        wanted = chance.choice(QUESTIONS)
        verdicts = [wanted.judge_line(line) for line in lines]
        found = sum((counts for _, counts in wanted.judge(b"".join(lines))), Counter[Verdict]())

        for verdict in (Verdict.ERASE, Verdict.UNREADABLE):
            assert found[verdict] == verdicts.count(verdict), lines
        kept = [line for line, one in zip(lines, verdicts, strict=True) if one != Verdict.ERASE]
        assert wanted.without(b"".join(lines)) == b"".join(kept)


@pytest.mark.parametrize(("address", "spelling"), [(a, s) for a in SPELLINGS for s in SPELLINGS[a]])
def test_every_spelling_of_an_address_is_found(address: str, spelling: str) -> None:
    for asked, stored in ((address, spelling), (spelling, address)):
        others = record(2, "192.0.2.1") + record(3, "2001:db8::70")
        assert choose((asked,), (), ()).without(record(1, stored) + others) == others


def test_lines_that_cannot_match_are_not_decoded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr("forget.wanted.read_record")
    usual = b"".join(record(n, f"198.51.100.{n % 250}") for n in range(300))

    assert choose((WANTED,), (), ()).without(usual) == usual


# Where they are.


@pytest.mark.parametrize(
    "name",
    [
        *(NAME, f"{NAME}.gz", f"{NAME}.1", f"{NAME}.1.gz", "events-old.jsonl-20261125.gz"),
        *("events-2026.bak", "events-", "events-mine.draft"),
    ],
)
@pytest.mark.parametrize("members", [0, 1, 3], ids=["plain", "gzip", "several members"])
def test_events_are_found_under_any_name_and_in_any_form(
    run: Run, data_dir: Path, name: str, members: int
) -> None:
    path, lines = data_dir / name, [MINE, *OTHERS, MINE]
    size = -(-len(lines) // members) if members else 0
    parts = [b"".join(lines[at : at + size]) for at in range(0, len(lines), size or len(lines))]
    path.write_bytes(b"".join(map(gzip.compress, parts)) if members else b"".join(lines))
    owner = (12345, 54321) if os.geteuid() == 0 else (os.geteuid(), os.getegid())
    os.chown(path, *owner)
    path.chmod(0o604)

    assert run("--ip", WANTED, "--yes").exit_code == 0
    assert content(path) == KEPT
    assert path.read_bytes().startswith(b"\x1f\x8b") == bool(members)
    status = path.stat()
    assert (status.st_uid, status.st_gid, status.st_mode & 0o777) == (*owner, 0o604)


def test_other_names_are_left_alone(run: Run, data_dir: Path) -> None:
    for name in ("refused-2026-11-20.jsonl", "notes.jsonl", "x-events-2026-11-20.jsonl"):
        (data_dir / name).write_bytes(MINE)
    ran = run("--ip", WANTED, "--yes")

    assert (ran.exit_code, ran.output) == (0, f"{data_dir}: 0 events to erase\n")
    assert [p.read_bytes() for p in data_dir.iterdir() if p.suffix == ".jsonl"] == [MINE] * 3


ELSEWHERE = "elsewhere"  # a file beside the data directory, with an event to erase


def write(*parts: bytes) -> Callable[[Path], object]:
    return lambda path: path.write_bytes(b"".join(parts))


def tar(mode: Literal["w", "w:gz"]) -> Callable[[Path], object]:
    def pack(path: Path) -> None:
        with tarfile.open(path, mode) as archive:
            archive.add(path.parent.parent / ELSEWHERE)

    return pack


PRETTY = json.dumps(json.loads(MINE), indent=2).encode()
LINES = (MINE + KEPT).decode()


@pytest.mark.parametrize(
    ("name", "make"),
    [
        pytest.param("events-2026-10.tar", tar("w"), id="tar"),
        pytest.param("events-2026-10.tar.gz", tar("w:gz"), id="tar.gz"),
        pytest.param(f"{NAME}.gz", tar("w:gz"), id="tar under a day's name"),
        pytest.param("events-2026-10.a", write(b"!<arch>\n", KEPT, MINE), id="ar"),
        pytest.param(f"{NAME}.xz", write(lzma.compress(MINE + KEPT)), id="xz"),
        pytest.param(f"{NAME}.bz2", write(bz2.compress(MINE + KEPT)), id="bzip2"),
        pytest.param(f"{NAME}.zst", write(b"\x28\xb5\x2f\xfd$", KEPT, MINE), id="zstd, raw block"),
        pytest.param(f"{NAME}.zip", write(b"PK\3\4{}\n", KEPT, MINE), id="zip, stored"),
        pytest.param(f"{NAME}.gz", write(gzip.compress(gzip.compress(MINE))), id="gzip twice"),
        pytest.param(f"{NAME}.gz", write(gzip.compress(MINE + KEPT)[:-6]), id="gzip, damaged"),
        pytest.param("events-link.jsonl", lambda p: p.symlink_to(f"../{ELSEWHERE}"), id="link"),
        pytest.param(NAME, lambda p: p.symlink_to("gone"), id="link to nothing"),
        pytest.param("events-2026-11-01.jsonl", os.mkfifo, id="FIFO"),
        pytest.param("events-old", Path.mkdir, id="directory"),
        pytest.param("events-notes.txt", write(b'{"ip":"203.0.113.9"}\n'), id="no line of ours"),
        pytest.param("events-1.csv", write(b"id,ip\n1,203.0.113.9\n"), id="CSV"),
        pytest.param(NAME, write(PRETTY), id="pretty-printed"),
        pytest.param(NAME, write(b"[", MINE.strip(), b"]"), id="an array"),
        pytest.param(NAME, write(LINES.replace("\n", "\r").encode()), id="CR alone"),
        pytest.param(NAME, write(LINES.encode("utf-16")), id="UTF-16"),
        pytest.param(NAME, write(LINES.encode("utf-32-le")), id="UTF-32"),
        pytest.param(NAME, write(KEPT, bytes(9), MINE), id="damaged by NUL bytes"),
    ],
)
def test_what_cannot_be_searched_is_left_as_it_is_and_named(
    run: Run, data_dir: Path, name: str, make: Callable[[Path], object]
) -> None:
    (data_dir.parent / ELSEWHERE).write_bytes(MINE)
    (data_dir / "events-2026-01-01.jsonl").write_bytes(MINE + KEPT)
    path = data_dir / name
    make(path)
    before = path.lstat().st_ino, path.read_bytes() if path.is_file() else b""
    looked, ran = run("--ip", WANTED), run("--ip", WANTED, "--yes")

    assert (looked.exit_code, ran.exit_code) == (0, 1)
    assert f"Error: {path}: " in looked.output
    assert f"Error: {path}: " in ran.output
    assert (path.lstat().st_ino, path.read_bytes() if path.is_file() else b"") == before
    assert (data_dir.parent / ELSEWHERE).read_bytes() == MINE
    assert (data_dir / "events-2026-01-01.jsonl").read_bytes() == KEPT


def test_a_file_whose_last_event_was_erased_is_searched_again(run: Run, data_dir: Path) -> None:
    (data_dir / NAME).write_bytes(MINE + b"not read\n")
    (data_dir / f"{NAME}.1").write_bytes(b"")

    assert run("--ip", WANTED, "--yes").exit_code == 0
    assert (data_dir / NAME).read_bytes() == b"not read\n"


@pytest.mark.parametrize("tail", [b"", b'{"torn', MINE.rstrip(b"\n")])
def test_unreadable_lines_and_torn_tails_stay_and_are_counted(
    run: Run, data_dir: Path, tail: bytes
) -> None:
    odd = [b"\n", b"\xff\n", b'{"ip":"203.0.113.9"\n', b"[]\n"]
    (data_dir / NAME).write_bytes(MINE + b"".join(odd) + KEPT + tail)
    ran = run("--ip", WANTED, "--yes")

    is_mine = tail == MINE.rstrip(b"\n")
    assert ran.exit_code == 0
    assert (data_dir / NAME).read_bytes() == b"".join(odd) + KEPT + (b"" if is_mine else tail)
    unreadable = len(odd) + (tail == b'{"torn')
    assert f"{data_dir / NAME}: {unreadable} lines that cannot be read\n" in ran.output


def test_several_directories_are_searched_each_once_whatever_is_wrong_with_one(
    run: Run, data_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("os.access", lambda *_: False)  # asked beforehand, it would refuse all
    other, link = tmp_path / "-other", tmp_path / "link"
    other.mkdir()
    (data_dir / NAME).write_bytes(MINE + KEPT)
    (other / NAME).write_bytes(MINE + KEPT)
    link.symlink_to(data_dir)
    ran = run("--ip", WANTED, "--yes", "--", "-gone", str(data_dir), str(link), str(other))

    assert (ran.exit_code, ran.output.count("1 event to erase")) == (1, 2)
    assert "Error: -gone: No such file or directory" in ran.output
    assert (data_dir / NAME).read_bytes() == (other / NAME).read_bytes() == KEPT


# What it says, and does not do.


def test_without_yes_nothing_is_erased(run: Run, data_dir: Path) -> None:
    (data_dir / NAME).write_bytes(MINE + OTHERS[0])
    before = (data_dir / NAME).stat()
    ran = run("--ip", WANTED)

    assert ran.exit_code == 0
    assert ran.output.splitlines() == [
        f"{data_dir / NAME}: 1 event",
        f"{data_dir}: 1 event found; add --yes to erase",
    ]
    assert (data_dir / NAME).stat() == before
    assert [path.name for path in data_dir.iterdir()] == [NAME]


@pytest.mark.parametrize(
    "arguments",
    [
        (),
        ("--ip", ""),
        ("--ip", "203.0.113"),
        ("--ip", "203.0.113.9x"),
        ("--hostname", ""),
        ("--project", " "),
        ("--ip", WANTED, "--project", "p"),
        ("--ip", WANTED, "--ip", "198.51.100.1"),
        ("--hostname", "https://a.example/"),
        ("--hostname", "a.example:8080"),
        ("--hostname", "a.example/x"),
        ("--hostname", "me@a.example"),
    ],
)
def test_a_command_that_selects_nobody_is_rejected(
    run: Run, data_dir: Path, arguments: tuple[str, ...]
) -> None:
    (data_dir / NAME).write_bytes(MINE)
    ran = run(*arguments, "--yes")

    assert ran.exit_code == 2
    assert ran.output.splitlines()[-1].startswith("Error: ")
    assert (data_dir / NAME).read_bytes() == MINE


@pytest.mark.parametrize("mode", ["masked", "hashed", "none"])
def test_it_says_where_an_address_can_find_nobody(run: Run, mode: str) -> None:
    assert f"TELEMETRY_IP={mode}" in run("--ip", WANTED, IP=mode).output
    assert "TELEMETRY_IP" not in run("--project", "p", IP=mode).output


def test_it_says_how_many_stored_addresses_it_cannot_tell(run: Run, data_dir: Path) -> None:
    """Whatever TELEMETRY_IP is now, and for the one who runs this."""
    stored = [None, "0" * 64, "203.0.113.0", "203.0.114.0", "203.0.113.90"]
    (data_dir / NAME).write_bytes(b"".join(record(n, ip) for n, ip in enumerate(stored)))

    assert f"{data_dir}: 3 events without a whole address" in run("--ip", WANTED).output
    assert "whole address" not in run("--project", "p").output


# Faults, and others at work.

ARCHIVE = "events-2026-11-19.jsonl.gz"
TWIN = f"{NAME}.gz"  # of a compression that was killed before it could delete the plain file


def erase_in(directory: Path) -> dict[Path, str]:
    """Do what the command does with --yes; return the problems."""
    problems: dict[Path, str] = {}
    with command.reported(directory, problems):
        command.erase_in(directory, choose((WANTED,), (), ()), 0, problems)
    return problems


def fill(directory: Path) -> None:
    directory.mkdir()
    (directory / NAME).write_bytes(MINE + KEPT)
    for name in (ARCHIVE, TWIN):
        (directory / name).write_bytes(gzip.compress(MINE + KEPT))


def check_nothing_is_lost_or_doubled(directory: Path) -> None:
    """The day's file may have a twin, which does not count where it holds the same."""
    plain, archive, twin = (directory / name for name in (NAME, ARCHIVE, TWIN))
    assert content(plain) in (MINE + KEPT, KEPT)
    assert content(archive) in (MINE + KEPT, KEPT)
    assert not twin.exists() or content(twin) == content(plain)


def without_syncing(at: int, name: str, arguments: Any) -> int | None:
    """Syncs take long, and only a power cut would tell."""
    return 0 if name == "fsync" else None


CHANGING = ("open", "write", "ftruncate", "fsync", "fchmod", "fchown", "rename", "unlink")


def erase_and_die(disk: FailingOs, directory: Path, index: int) -> None:
    """Die before the change of that index: between two changes nothing is different."""
    changes = itertools.count()

    def die(at: int, name: str, arguments: Any) -> int | None:
        if name in CHANGING and next(changes) == index:
            os._exit(9)
        return without_syncing(at, name, arguments)

    disk.fault = die
    os._exit(1 if erase_in(directory) else 0)


def test_a_kill_at_any_moment_loses_and_doubles_nothing(tmp_path: Path, disk: FailingOs) -> None:
    disk.fault = without_syncing
    for index in itertools.count():
        directory = tmp_path / str(index)
        fill(directory)
        process = get_context("fork").Process(target=erase_and_die, args=(disk, directory, index))
        process.start()
        process.join()

        check_nothing_is_lost_or_doubled(directory)
        assert erase_in(directory) == {}
        left = {path.name: content(path) for path in directory.iterdir()}
        expected = {NAME: KEPT, ARCHIVE: KEPT, CLAIM_NAME: b""}
        assert left == expected, f"after a kill before change {index}"
        if process.exitcode == 0:
            break
    assert index > 20


@pytest.mark.parametrize(
    ("fault", "step"), [(OSError(errno.ENOSPC, "full"), 1), (KeyboardInterrupt(), 3)]
)
def test_a_disk_that_fails_at_any_call_leaves_whole_files_and_no_draft(
    tmp_path: Path, disk: FailingOs, fault: BaseException, step: int
) -> None:
    def fail(at: int, name: str, arguments: Any) -> int | None:
        if at == index:
            raise fault
        return without_syncing(at, name, arguments)

    for index in itertools.count(step=step):
        directory = tmp_path / str(index)
        fill(directory)
        disk.calls, disk.fault = [], fail
        try:
            problems = erase_in(directory)
        except KeyboardInterrupt:
            problems = {directory: "interrupted"}
        calls, disk.fault = disk.calls, without_syncing

        check_nothing_is_lost_or_doubled(directory)
        is_clean = content(directory / NAME) == content(directory / ARCHIVE) == KEPT
        assert is_clean or problems, f"call {index} failed: {calls[index]}"
        failed = calls[index][0] if index < len(calls) else ""
        is_left = (directory / DRAFT_NAME).exists()  # to the next run
        assert not is_left or failed in ("unlink", "open", "fstat", "stat", "close")
        assert erase_in(directory) == {}
        if index >= len(calls):
            break
    assert index > 50


@pytest.mark.parametrize(("room", "kept"), [(9_000, KEPT), (8, MINE * 100 + KEPT)])
def test_the_disk_is_not_filled_beyond_what_events_need(
    run: Run, data_dir: Path, monkeypatch: pytest.MonkeyPatch, room: int, kept: bytes
) -> None:
    """Of the room above that, only what the copy needs is wanted; the file is larger."""
    (data_dir / NAME).write_bytes(MINE * 100 + KEPT)
    monkeypatch.setattr(durable, "free_bytes", lambda directory: 2**20 + room)
    ran = run("--ip", WANTED, "--yes", MIN_FREE_MB="1")

    is_left = kept != KEPT
    assert ran.exit_code == is_left
    assert ("100 events left: " in ran.output) == is_left
    assert ("TELEMETRY_MIN_FREE_MB" in ran.output) == is_left
    assert (data_dir / NAME).read_bytes() == kept


OWNER, USER, GROUP, MASK, REST = 1, 2, 4, 16, 32  # tags of an access list, acl(5)


def access_list(user: int, mask: int) -> bytes:
    """Return `u::rw-,u:4242:USER,g::---,m::MASK,o::---` as the kernel has it."""
    entries = [(OWNER, 6, -1), (USER, user, 4242), (GROUP, 0, -1), (MASK, mask, -1)]
    packed = [struct.pack("<HHi", *entry) for entry in [*entries, (REST, 0, -1)]]
    return struct.pack("<I", 2) + b"".join(packed)


@pytest.mark.parametrize("own", [access_list(4, 4), access_list(7, 0), b""], ids=["r", "m", "none"])
@pytest.mark.parametrize("default", [access_list(6, 6), b""], ids=["directory has one", "not"])
def test_a_rewritten_file_keeps_its_access_list_and_gets_no_other(
    run: Run, data_dir: Path, own: bytes, default: bytes
) -> None:
    path = data_dir / NAME
    path.write_bytes(MINE + KEPT)
    path.chmod(0o640)
    try:
        if default:
            os.setxattr(data_dir, "system.posix_acl_default", default)
        if own:
            os.setxattr(path, rewriting.ACCESS_LIST, own)
    except OSError as exc:
        pytest.skip(f"no access lists here: {exc}")
    before = path.stat().st_mode

    assert run("--ip", WANTED, "--yes").exit_code == 0
    assert path.read_bytes() == KEPT
    assert path.stat().st_mode == before
    has_list = rewriting.ACCESS_LIST in os.listxattr(path)
    assert (os.getxattr(path, rewriting.ACCESS_LIST) if has_list else b"") == own


def append(path: Path, content: bytes) -> None:
    with path.open("ab") as file:
        file.write(content)


def roll_back(path: Path, regrown: bytes = b"") -> None:
    """Do what a writer does whose sync failed, and one that appends in its place."""
    os.truncate(path, len(MINE + KEPT))
    append(path, regrown)


def replace(path: Path, content: bytes) -> None:
    path.with_name("copy").write_bytes(content)
    path.with_name("copy").rename(path)


LATE = record(7)
START = MINE + KEPT + LATE
TORN = START + b'{"id":"a torn line, longer than the next"'


@pytest.mark.parametrize(
    ("name", "before", "act", "kept"),
    [
        (NAME, START, lambda path: append(path, LATE + MINE + LATE), KEPT + LATE * 3),
        (NAME, START, roll_back, KEPT),
        (NAME, TORN, roll_back, KEPT),
        (NAME, START, lambda path: roll_back(path, record(8)), KEPT + record(8)),
        (NAME, TORN, lambda path: roll_back(path, record(8) * 3), KEPT + record(8) * 3),
        (NAME, START, lambda path: replace(path, START + OTHERS[0]), KEPT + LATE + OTHERS[0]),
        (ARCHIVE, START, lambda path: append(path, gzip.compress(LATE + MINE)), KEPT + LATE * 2),
    ],
)
def test_what_others_do_while_a_file_is_copied_is_kept(
    run: Run,
    data_dir: Path,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    before: bytes,
    act: Callable[[Path], object],
    kept: bytes,
) -> None:
    path = data_dir / name
    path.write_bytes(gzip.compress(before) if name == ARCHIVE else before)
    actions = [act]

    def locked(directory: Path) -> AbstractContextManager[object]:
        while actions:
            actions.pop()(path)
        return durable.locked(directory)

    monkeypatch.setattr(rewriting, "locked", locked)

    assert run("--ip", WANTED, "--yes").exit_code == 0
    assert content(path) == kept


def test_matching_events_that_keep_arriving_are_reported_as_left(
    run: Run, data_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = data_dir / NAME
    path.write_bytes(MINE + KEPT)

    def erase_and_append(*arguments: Any) -> None:
        rewriting.rewrite(*arguments)
        append(path, MINE)

    monkeypatch.setattr(command, "rewrite", erase_and_append)
    ran = run("--ip", WANTED, "--yes")

    assert ran.exit_code == 1
    error = f"Error: {path}: 1 event left: stored since the first look; run it again"
    assert ran.output.splitlines()[-1] == error
    assert path.read_bytes() == KEPT + MINE


def test_only_little_is_written_and_synced_under_the_lock(
    data_dir: Path, monkeypatch: pytest.MonkeyPatch, disk: FailingOs
) -> None:
    """However much has come while most of the file was copied."""
    data_dir.mkdir()
    path, many = data_dir / NAME, KEPT * 400
    path.write_bytes(many)
    late, copied, copied_before = [many, KEPT], [], []

    def keep(lines: bytes) -> bytes:
        copied.append(len(lines))
        if late:
            append(path, late.pop(0))
        return lines

    def locked(directory: Path) -> AbstractContextManager[object]:
        assert disk.calls[-1][0] == "fsync"
        copied_before.append(sum(copied))
        return durable.locked(directory)

    monkeypatch.setattr(rewriting, "locked", locked)
    with durable.claimed(data_dir) as claim:
        rewriting.rewrite(path, claim, keep)

    assert copied_before[0] >= 2 * len(many)
    assert sum(copied) - copied_before[0] <= durable.PIECE_BYTES
    assert path.read_bytes() == many * 2 + KEPT


def test_it_waits_for_housekeeping_and_says_so(
    run: Run, data_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (data_dir / NAME).write_bytes(MINE + KEPT)
    claim = durable.claimed(data_dir)
    claim.__enter__()
    contents = []

    def sleep(seconds: float) -> None:
        contents.append((data_dir / NAME).read_bytes())
        claim.__exit__(None, None, None)

    monkeypatch.setattr("forget.command.time.sleep", sleep)
    ran = run("--ip", WANTED, "--yes")

    assert ran.exit_code == 0
    assert f"{data_dir}: waiting for housekeeping to finish" in ran.output
    assert contents == [MINE + KEPT]
    assert (data_dir / NAME).read_bytes() == KEPT
