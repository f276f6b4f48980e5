"""`flask forget`: exactly one person's events go, whatever else happens meanwhile."""

import bz2
import gzip
import itertools
import json
import lzma
import os
import re
import struct
import tarfile
from collections import Counter
from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack
from pathlib import Path
from random import Random
from typing import Any, Literal

import pytest
from click.testing import Result
from flask import Flask

from faults import FailingOs
from files import durable, rewriting
from files.days import DRAFT_NAME
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


FORMS = [
    MINE,
    MINE.replace(b'":"', b'": "'),
    MINE.replace(b"203", b"\\u00320\\u0033"),
    json.dumps(json.loads(MINE), sort_keys=True).encode() + b"\n",
    MINE.rstrip(b"\n") + b"\r\n",
    b"\xef\xbb\xbf" + MINE,
    b'{"source":"cli","ip":"203.0.113.9","payload":{}}\n',
    b'{"ip":"203.0.113.9"}\n',
    b'{"ip":"203.0.113.9","payload":[],"hostname":{},"source":[]}\n',
]


def test_exactly_the_named_events_are_erased(run: Run, data_dir: Path) -> None:
    """Any JSON object in a file of events is judged."""
    forms = b"".join(FORMS)
    (data_dir / NAME).write_bytes(forms + OTHERS[0] + forms + b"".join(OTHERS[1:]) + forms)
    ran = run("--ip", WANTED, "--yes")

    assert ran.exit_code == 0, ran.output
    assert f"{data_dir / NAME}: {3 * len(FORMS)} events" in ran.output
    assert (data_dir / NAME).read_bytes() == KEPT


SPELLINGS = {
    "203.0.113.9": ["203.0.113.9", "::ffff:203.0.113.9", "::FfFf:cb00:7109", "203.0.113.9:80"],
    "2001:db8::7": ["2001:DB8::7", "2001:0DB8:0:0::7", "[2001:db8::7]:443", "2001:db8::0.0.0.7"],
    "64:ff9b::c000:201": ["64:ff9b::192.0.2.1", "0064:FF9B::C000:201"],
    "::7": ["::7", "0:0:0:0:0:0:0:7", "::0.0.0.7"],
    "0.0.0.0": ["0.0.0.0", "::ffff:0:0", "0:0:0:0:0:ffff::"],
}
# The option, what is given, what it finds and what it does not.
ASKED = [
    ("project", "p", "p", "P"),
    ("hostname", "A.Example.", "a.example", "b.a.example"),
    ("hostname", "bücher.example", "xn--bcher-kva.example", "cher.example"),
    ("hostname", "xn--bcher-kva.example", "xn--bcher-kva.example", "bücher.example"),
    ("hostname", "2001:DB8::0:1", "2001:db8::1", "2001:db8::10"),
    ("hostname", "[::1]", "::1", "[::1]x"),
    ("hostname", "Odd_Name!", "odd_name!", "odd_name"),
    *(
        ("ip", f" {given} ", stored, "2001:db8::70")
        for spellings in SPELLINGS.values()
        for given, stored in itertools.pairwise([*spellings, spellings[0]])
    ),
]


@pytest.mark.parametrize(("option", "given", "found", "other"), ASKED)
def test_a_value_is_found_in_any_spelling(
    run: Run, data_dir: Path, option: str, given: str, found: str, other: str
) -> None:
    kept = record(1, **{option: other}) + KEPT
    (data_dir / NAME).write_bytes(record(2, **{option: found}) + kept)

    assert run(f"--{option}", given, "--yes").exit_code == 0
    assert (data_dir / NAME).read_bytes() == kept


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


def test_lines_that_cannot_match_are_not_decoded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr("forget.wanted.read_record")
    usual = b"".join(record(n, f"198.51.100.{n % 250}") for n in range(300))

    assert choose((WANTED,), (), ()).without(usual) == usual


# Where they are.


def members(lines: bytes) -> bytes:
    return b"".join(gzip.compress(line) for line in lines.splitlines(keepends=True))


@pytest.mark.parametrize(
    ("name", "pack"),
    [
        *((NAME, bytes), (f"{NAME}.1", bytes), ("events-mine.draft", bytes), (f"{NAME}.gz", bytes)),
        *((NAME, gzip.compress), (f"{NAME}.gz", gzip.compress), (f"{NAME}.1.gz", gzip.compress)),
        *((f"{NAME}.gz", members), ("events-", members)),
    ],
)
def test_events_are_found_under_any_name_and_in_any_form(
    run: Run, data_dir: Path, name: str, pack: Callable[[bytes], bytes]
) -> None:
    path = data_dir / name
    path.write_bytes(pack(MINE + KEPT + MINE))
    owner = (12345, 54321) if os.geteuid() == 0 else (os.geteuid(), os.getegid())
    os.chown(path, *owner)
    path.chmod(0o604)
    others = [data_dir / other for other in ("refused-2026-11-20.jsonl", f"x-{NAME}")]
    for other in others:
        other.write_bytes(MINE)

    assert run("--ip", WANTED, "--yes").exit_code == 0
    assert content(path) == KEPT
    assert path.read_bytes().startswith(b"\x1f\x8b") == (pack is not bytes)
    status = path.stat()
    assert (status.st_uid, status.st_gid, status.st_mode & 0o777) == (*owner, 0o604)
    assert [other.read_bytes() for other in others] == [MINE, MINE]


ELSEWHERE = "elsewhere"  # a file beside the data directory, with an event to erase


def write(*parts: bytes) -> Callable[[Path], object]:
    return lambda path: path.write_bytes(b"".join(parts))


def tar(mode: Literal["w", "w:gz"]) -> Callable[[Path], object]:
    def pack(path: Path) -> None:
        with tarfile.open(path, mode) as archive:
            archive.add(path.parent.parent / ELSEWHERE)

    return pack


PRETTY = json.dumps(json.loads(MINE), indent=2).encode()


UNSEARCHABLE: dict[str, Callable[[Path], object]] = {
    "events-2026-10.tar": tar("w"),
    "events-2026-10.tar.gz": tar("w:gz"),
    f"{NAME}.gz": tar("w:gz"),
    "events-2026-10.a": write(b"!<arch>\n", KEPT, MINE),
    f"{NAME}.xz": write(lzma.compress(MINE + KEPT)),
    f"{NAME}.bz2": write(bz2.compress(MINE + KEPT)),
    f"{NAME}.zst": write(b"\x28\xb5\x2f\xfd$", KEPT, MINE),  # a raw block
    f"{NAME}.zip": write(b"PK\3\4{}\n", KEPT, MINE),  # stored
    "events-twice.gz": write(gzip.compress(gzip.compress(MINE))),
    "events-damaged.gz": write(gzip.compress(MINE + KEPT)[:-6]),
    "events-link.jsonl": lambda path: path.symlink_to(f"../{ELSEWHERE}"),
    "events-link-to-nothing": lambda path: path.symlink_to("gone"),
    "events-fifo": os.mkfifo,
    "events-directory": Path.mkdir,
    "events-notes.txt": write(b'{"ip":"203.0.113.9"}\n'),  # no line of ours
    "events-1.csv": write(b"id,ip\n1,203.0.113.9\n"),
    NAME: write(PRETTY),
    "events-array": write(b"[", MINE.strip(), b"]"),
    "events-cr": write((MINE + KEPT).replace(b"\n", b"\r")),
    "events-utf-16": write((MINE + KEPT).decode().encode("utf-16")),
    "events-utf-32": write((MINE + KEPT).decode().encode("utf-32-le")),
    "events-nul": write(KEPT, bytes(9), MINE),
}


def test_what_cannot_be_searched_is_left_as_it_is_and_named(run: Run, data_dir: Path) -> None:
    (data_dir.parent / ELSEWHERE).write_bytes(MINE)
    (data_dir / "events-2026-01-01.jsonl").write_bytes(MINE + KEPT)
    for name, make in UNSEARCHABLE.items():
        make(data_dir / name)

    def state() -> dict[str, object]:
        paths = [data_dir / name for name in UNSEARCHABLE]
        return {p.name: (p.lstat().st_ino, p.is_file() and p.read_bytes()) for p in paths}

    before = state()
    looked, ran = run("--ip", WANTED), run("--ip", WANTED, "--yes")

    assert (looked.exit_code, ran.exit_code) == (0, 1)
    for output in (looked.output, ran.output):
        named = re.findall(rf"^Error: {data_dir}/(\S+): ", output, re.MULTILINE)
        assert sorted(named) == sorted(UNSEARCHABLE)
    assert state() == before
    assert (data_dir.parent / ELSEWHERE).read_bytes() == MINE
    assert (data_dir / "events-2026-01-01.jsonl").read_bytes() == KEPT


@pytest.mark.parametrize("tail", [b"", b'{"torn', MINE.rstrip(b"\n")])
def test_unreadable_lines_and_torn_tails_stay_and_are_counted(
    run: Run, data_dir: Path, tail: bytes
) -> None:
    odd = [b"\n", b"\xff\n", b'{"ip":"203.0.113.9"\n', b"[]\n"]
    (data_dir / NAME).write_bytes(MINE + b"".join(odd) + KEPT + tail)
    (data_dir / "events-1").write_bytes(MINE + b"not read\n")  # no event is left in it
    ran = run("--ip", WANTED, "--yes")

    is_mine = tail == MINE.rstrip(b"\n")
    assert ran.exit_code == 0
    assert (data_dir / NAME).read_bytes() == b"".join(odd) + KEPT + (b"" if is_mine else tail)
    unreadable = len(odd) + (tail == b'{"torn')
    assert f"{data_dir / NAME}: {unreadable} lines that cannot be read\n" in ran.output
    assert (data_dir / "events-1").read_bytes() == b"not read\n"


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
        *((), ("--ip", ""), ("--ip", "203.0.113.9x"), ("--project", " ")),
        *(("--ip", WANTED, "--project", "p"), ("--ip", WANTED, "--ip", "198.51.100.1")),
        *(("--hostname", name) for name in ("", "https://a.example/", "a.example:8080", "a@b.c")),
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


def test_of_two_files_with_the_same_lines_one_is_kept(run: Run, data_dir: Path) -> None:
    """A kill between rewriting the two would leave files that differ, and all lines would count."""
    (data_dir / NAME).write_bytes(MINE + KEPT)
    (data_dir / f"{NAME}.gz").write_bytes(gzip.compress(MINE + KEPT))

    assert run("--ip", WANTED, "--yes").exit_code == 0
    assert [content(path) for path in data_dir.glob("*.jsonl*")] == [KEPT]


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


@pytest.mark.parametrize(
    ("own", "default"),
    [(access_list(4, 4), access_list(6, 6)), (access_list(7, 0), b""), (b"", access_list(6, 6))],
)
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


def act_before_the_lock(monkeypatch: pytest.MonkeyPatch, act: Callable[[], object]) -> None:
    """Act once, when most of a file has been copied."""
    actions = [act]

    def locked(directory: Path) -> AbstractContextManager[object]:
        while actions:
            actions.pop()()
        return durable.locked(directory)

    monkeypatch.setattr(rewriting, "locked", locked)


LATE = record(7)
START = MINE + KEPT + LATE
TORN = START + b'{"id":"a torn line, longer than the next"'


@pytest.mark.parametrize(
    ("before", "act", "kept"),
    [
        (START, lambda path: append(path, LATE + MINE + LATE), KEPT + LATE * 3),
        (START, lambda path: roll_back(path, record(8)), KEPT + record(8)),
        (TORN, roll_back, KEPT),
        (TORN, lambda path: roll_back(path, record(8) * 3), KEPT + record(8) * 3),
        (START, lambda path: replace(path, START + OTHERS[0]), KEPT + LATE + OTHERS[0]),
        (gzip.compress(START), lambda path: append(path, gzip.compress(MINE)), KEPT + LATE),
    ],
)
def test_what_others_do_while_a_file_is_copied_is_kept(
    run: Run,
    data_dir: Path,
    monkeypatch: pytest.MonkeyPatch,
    before: bytes,
    act: Callable[[Path], object],
    kept: bytes,
) -> None:
    path = data_dir / NAME
    path.write_bytes(before)
    act_before_the_lock(monkeypatch, lambda: act(path))

    assert run("--ip", WANTED, "--yes").exit_code == 0
    assert content(path) == kept


def test_most_is_copied_and_synced_without_the_lock(
    run: Run, data_dir: Path, monkeypatch: pytest.MonkeyPatch, disk: FailingOs
) -> None:
    many = KEPT * 400
    (data_dir / NAME).write_bytes(many + MINE)

    def look() -> None:
        assert (data_dir / DRAFT_NAME).stat().st_size == len(many)
        assert disk.calls[-1][0] == "fsync"

    act_before_the_lock(monkeypatch, look)

    assert run("--ip", WANTED, "--yes").exit_code == 0
    assert (data_dir / NAME).read_bytes() == many


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


def test_it_waits_for_housekeeping_and_says_so(
    run: Run, data_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (data_dir / NAME).write_bytes(MINE + KEPT)
    with ExitStack() as housekeeping:
        housekeeping.enter_context(durable.claimed(data_dir))

        def sleep(seconds: float) -> None:
            assert (data_dir / NAME).read_bytes() == MINE + KEPT
            housekeeping.close()

        monkeypatch.setattr("forget.command.time.sleep", sleep)
        ran = run("--ip", WANTED, "--yes")

    assert ran.exit_code == 0
    assert f"{data_dir}: waiting for housekeeping to finish" in ran.output
    assert (data_dir / NAME).read_bytes() == KEPT
