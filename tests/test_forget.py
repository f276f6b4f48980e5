"""`flask forget`: exactly one person's events go, whatever else happens meanwhile."""

import gzip
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result
from flask import Flask

import dayfiles
import forget
import housekeeping
from dayfiles import encode
from faults import FailingOs
from server import ROOT, Load, Server, wait_until

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
def run(make_app: Callable[..., Flask], data_dir: Path) -> Callable[..., Result]:
    data_dir.mkdir()

    def run(*arguments: str, **settings: str) -> Result:
        return make_app(**settings).test_cli_runner().invoke(args=["forget", *arguments])

    return run


def content(path: Path) -> bytes:
    raw = path.read_bytes()
    return gzip.decompress(raw) if raw[:2] == b"\x1f\x8b" else raw


# Whose events go.


@pytest.mark.parametrize(
    "arguments",
    [
        ("--ip", WANTED),
        ("--ip", f"::ffff:{WANTED}"),
        ("--ip", f" {WANTED} "),
        ("--hostname", "a.example"),
        ("--hostname", "A.Example."),
        ("--project", "p"),
    ],
)
def test_exactly_the_named_events_are_erased(
    run: Callable[..., Result], data_dir: Path, arguments: tuple[str, ...]
) -> None:
    (data_dir / NAME).write_bytes(MINE + OTHERS[0] + MINE + b"".join(OTHERS[1:]) + MINE)
    ran = run(*arguments, "--yes")

    assert ran.exit_code == 0, ran.output
    assert f"{data_dir / NAME}: 3 events" in ran.output
    assert (data_dir / NAME).read_bytes() == KEPT


@pytest.mark.parametrize(
    ("stored", "given"), [("2001:db8::7", "2001:DB8:0:0::7"), ("2001:DB8::7", "2001:db8::7")]
)
def test_an_address_is_found_in_any_spelling(
    run: Callable[..., Result], data_dir: Path, stored: str, given: str
) -> None:
    (data_dir / NAME).write_bytes(record(1, stored) + record(2, "2001:db8::70"))

    assert run("--ip", given, "--yes").exit_code == 0
    assert (data_dir / NAME).read_bytes() == record(2, "2001:db8::70")


@pytest.mark.parametrize(
    "line",
    [
        MINE.replace(b'":"', b'": "'),
        MINE.replace(b"203", b"\\u00320\\u0033"),
        json.dumps(json.loads(MINE), sort_keys=True).encode() + b"\n",
        MINE.rstrip(b"\n") + b"\r\n",
    ],
    ids=["spaces", "escapes", "other order", "CR LF"],
)
def test_a_line_that_was_edited_is_found_too(
    run: Callable[..., Result], data_dir: Path, line: bytes
) -> None:
    (data_dir / NAME).write_bytes(line + OTHERS[0])

    assert run("--ip", WANTED, "--yes").exit_code == 0
    assert (data_dir / NAME).read_bytes() == OTHERS[0]


# Where they are.


@pytest.mark.parametrize(
    "name",
    [
        *(NAME, f"{NAME}.gz", f"{NAME}.1", f"{NAME}.1.gz", "events-old.jsonl-20261125.gz"),
        *("events-2026.bak", "events-"),
    ],
)
@pytest.mark.parametrize("members", [0, 1, 3], ids=["plain", "gzip", "several members"])
def test_events_are_found_under_any_name_and_in_any_form(
    run: Callable[..., Result], data_dir: Path, name: str, members: int
) -> None:
    path, lines = data_dir / name, [MINE, *OTHERS, MINE]
    size = -(-len(lines) // members) if members else 0
    parts = [b"".join(lines[at : at + size]) for at in range(0, len(lines), size or len(lines))]
    path.write_bytes(b"".join(map(gzip.compress, parts)) if members else b"".join(lines))
    os.chown(path, 12345, 54321)
    path.chmod(0o604)

    assert run("--ip", WANTED, "--yes").exit_code == 0
    assert content(path) == KEPT
    assert path.read_bytes().startswith(b"\x1f\x8b") == bool(members)
    status = path.stat()
    assert (status.st_uid, status.st_gid, status.st_mode & 0o777) == (12345, 54321, 0o604)


def test_what_is_not_a_file_of_events_is_left_alone(
    run: Callable[..., Result], data_dir: Path, tmp_path: Path
) -> None:
    (tmp_path / "elsewhere").write_bytes(MINE)
    (data_dir / "events-link.jsonl").symlink_to(tmp_path / "elsewhere")
    os.mkfifo(data_dir / "events-2026-11-01.jsonl")
    (data_dir / "events-dir").mkdir()
    for name in ("refused-2026-11-20.jsonl", "notes.jsonl"):
        (data_dir / name).write_bytes(MINE)
    (data_dir / "events-notes.txt").write_bytes(b'{"ip":"203.0.113.9"}\n')

    assert run("--ip", WANTED, "--yes").exit_code == 0
    assert (tmp_path / "elsewhere").read_bytes() == MINE
    assert (data_dir / "notes.jsonl").read_bytes() == MINE
    assert (data_dir / "events-notes.txt").exists()


@pytest.mark.parametrize("tail", [b"", b'{"torn', MINE.rstrip(b"\n")])
def test_unreadable_lines_and_torn_tails_stay_and_are_counted(
    run: Callable[..., Result], data_dir: Path, tail: bytes
) -> None:
    odd = [b"\n", b"\xff\n", b'{"ip":"203.0.113.9"\n', b"[]\n"]
    (data_dir / NAME).write_bytes(MINE + b"".join(odd) + KEPT + tail)
    ran = run("--ip", WANTED, "--yes")

    is_mine = tail == MINE.rstrip(b"\n")
    assert ran.exit_code == 0
    assert (data_dir / NAME).read_bytes() == b"".join(odd) + KEPT + (b"" if is_mine else tail)
    assert f"{len(odd) + (tail == OTHERS or (bool(tail) and not is_mine))} lines" in ran.output


def test_several_directories_are_searched_each_once(
    run: Callable[..., Result], data_dir: Path, tmp_path: Path
) -> None:
    other = tmp_path / "-other"
    other.mkdir()
    (data_dir / NAME).write_bytes(MINE + KEPT)
    (other / NAME).write_bytes(MINE + KEPT)
    link = tmp_path / "link"
    link.symlink_to(data_dir)
    ran = run("--ip", WANTED, "--yes", "--", str(data_dir), str(link), str(other), "-gone")

    assert (ran.exit_code, ran.output.count("1 event to erase")) == (1, 2)
    assert "Error: -gone: No such file or directory" in ran.output
    assert (data_dir / NAME).read_bytes() == (other / NAME).read_bytes() == KEPT


# What it says, and does not do.


def test_without_yes_it_only_tells(run: Callable[..., Result], data_dir: Path) -> None:
    (data_dir / NAME).write_bytes(MINE + KEPT)
    before = (data_dir / NAME).stat()
    ran = run("--ip", WANTED)

    assert ran.exit_code == 0
    assert f"{data_dir / NAME}: 1 event\n" in ran.output
    assert (data_dir / NAME).stat() == before
    assert [path.name for path in data_dir.iterdir()] == [NAME]


@pytest.mark.parametrize(
    "arguments",
    [
        (),
        ("--ip", ""),
        ("--ip", "203.0.113"),
        ("--ip", "203.0.113.9\n"[:-1] + "x"),
        ("--hostname", ""),
        ("--project", " "),
        ("--ip", WANTED, "--project", "p"),
    ],
)
def test_a_request_that_names_nobody_is_refused(
    run: Callable[..., Result], data_dir: Path, arguments: tuple[str, ...]
) -> None:
    (data_dir / NAME).write_bytes(MINE)
    ran = run(*arguments, "--yes")

    assert (ran.exit_code, len(ran.output.splitlines())) == (2, 1)
    assert (data_dir / NAME).read_bytes() == MINE


@pytest.mark.parametrize("mode", ["masked", "hashed", "none"])
def test_it_says_where_an_address_can_find_nobody(run: Callable[..., Result], mode: str) -> None:
    assert f"TELEMETRY_IP={mode}" in run("--ip", WANTED, IP=mode).output
    assert "TELEMETRY_IP" not in run("--project", "p", IP=mode).output


def test_a_file_that_cannot_be_read_is_named_and_the_others_are_done(
    run: Callable[..., Result], data_dir: Path
) -> None:
    damaged = data_dir / "events-2026-11-19.jsonl.gz"
    damaged.write_bytes(gzip.compress(MINE + KEPT)[:-6])
    (data_dir / NAME).write_bytes(MINE + KEPT)
    ran = run("--ip", WANTED, "--yes")

    assert ran.exit_code == 1
    assert f"Error: {damaged}: " in ran.output
    assert (data_dir / NAME).read_bytes() == KEPT


# Faults, and others at work.


def use_failing_os(disk: FailingOs) -> None:
    for module in (dayfiles, forget, housekeeping):
        module.os = disk  # type: ignore[attr-defined]


def erase_and_die(directory: Path, index: int) -> None:
    disk = FailingOs()
    use_failing_os(disk)
    disk.fault = lambda at, name, arguments: os._exit(9) if at == index else None
    forget.erase_all(directory, forget.choose(WANTED, None, None), [])
    os._exit(0)


def test_a_kill_at_any_moment_leaves_the_file_or_its_replacement(tmp_path: Path) -> None:
    context = get_context("fork")
    for index in range(300):
        directory = tmp_path / str(index)
        directory.mkdir()
        plain, archive = directory / NAME, directory / "events-2026-11-19.jsonl.gz"
        plain.write_bytes(MINE + KEPT)
        archive.write_bytes(gzip.compress(MINE + KEPT))
        process = context.Process(target=erase_and_die, args=(directory, index))
        process.start()
        process.join()

        for path in (plain, archive):
            assert content(path) in (MINE + KEPT, KEPT), f"killed at call {index}"
        assert forget.erase_all(directory, forget.choose(WANTED, None, None), []) == []
        assert {path: content(path) for path in directory.iterdir()} == {plain: KEPT, archive: KEPT}
        if process.exitcode == 0:
            break
    assert 20 < index < 299


def test_a_full_disk_leaves_the_originals_and_no_draft(
    run: Callable[..., Result], data_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (data_dir / NAME).write_bytes(MINE + KEPT)

    class Full:
        def __getattr__(self, name: str) -> Any:
            return getattr(os, name)

        def fsync(self, fd: int) -> None:
            raise OSError(28, "No space left on device")

    monkeypatch.setattr(forget, "os", Full())
    ran = run("--ip", WANTED, "--yes")

    assert ran.exit_code == 1
    assert "No space left on device" in ran.output
    assert "1 event could not be erased" in ran.output
    assert {path.name: path.read_bytes() for path in data_dir.iterdir()} == {NAME: MINE + KEPT}


def test_a_line_appended_while_a_file_is_copied_is_kept(
    data_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data_dir.mkdir()
    path = data_dir / NAME
    path.write_bytes(MINE + KEPT)
    late = record(7)

    def append_then_lock(directory: Path) -> Any:
        with path.open("ab") as file:
            file.write(late + MINE)
        return dayfiles.locked(directory)

    monkeypatch.setattr(forget, "locked", append_then_lock)
    forget.erase(path, forget.choose(WANTED, None, None))

    assert path.read_bytes() == KEPT + late


def forget_ip(server: Server, ip: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "flask", "forget", "--ip", ip, "--yes"]
    environ = {**os.environ, "TELEMETRY_DATA_DIR": str(server.data_dir)}
    return subprocess.run(command, cwd=ROOT, env=environ, capture_output=True, text=True)


@pytest.mark.slow
def test_beside_a_loaded_server_only_the_named_events_go(
    serve: Callable[..., Server], data_dir: Path
) -> None:
    """Three workers, and housekeeping that compresses at each of their starts."""
    old = data_dir / "events-2026-01-01.jsonl"
    data_dir.mkdir()
    old.write_bytes((MINE + KEPT) * 3_000)
    server = serve("--workers=3", COMPRESS_AFTER_DAYS="1", TRUSTED_PROXIES="127.0.0.1")
    with Load(server, clients=6) as load:
        for n in range(3):
            load.wait_for(204, 20)
            for _ in range(3):
                headers = [("X-Forwarded-For", WANTED)]
                assert server.send_cli(headers, projectId=f"mine {n}").status == 204
            ran = forget_ip(server, WANTED)
            assert (ran.returncode, ran.stderr) == (0, ""), ran.stdout
            os.kill(server.process.pid, signal.SIGHUP)
        load.wait_for(204, 20)

    stored = [
        event["payload"]["projectId"] for event in server.events() if event["source"] == "cli"
    ]
    assert sorted(load.projects()) == sorted(stored)
    wait_until(lambda: not old.exists())
    assert content(data_dir / f"{old.name}.gz") == KEPT * 3_000
    assert {path.suffix for path in data_dir.iterdir()} <= {".jsonl", ".gz", ".claim"}
