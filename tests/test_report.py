"""The command `flask report`: which files it reads, which problems it names, how it ends."""

import errno
import gzip
import json
import os
import stat
import subprocess
import sys
from collections.abc import Callable
from datetime import date, timedelta
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result
from flask import Flask

import report.reading
from files.records import PAYLOAD_KEYS, encode
from records import core
from report import counting
from server import PATIENCE_SECONDS, ROOT

TODAY = date(2026, 11, 23)  # of the app that tests make
YESTERDAY = TODAY - timedelta(days=1)
NAME = f"events-{YESTERDAY}.jsonl"


def event(n: int = 0, hostname: str = "a.example.com") -> bytes:
    uuid = f"d5e1d4c8-4b1d-4f60-9d5b-{n:012}"
    record = core(hostname, f"192.0.2.{n % 256}", id=uuid, version="5.0.12", resourceCount=1)
    return f"{encode(record)}\n".encode("ascii")


@pytest.fixture
def run(make_app: Callable[..., Flask], data_dir: Path) -> Callable[..., Result]:
    data_dir.mkdir(exist_ok=True)

    def run(*arguments: str) -> Result:
        return make_app().test_cli_runner().invoke(args=["report", *arguments])

    return run


@pytest.fixture
def count(run: Callable[..., Result]) -> Callable[..., int]:
    """Return how many events of apps the report counts."""

    def count(*arguments: str) -> int:
        events: int = json.loads(run("--format=json", *arguments).stdout)["events"]["core"]
        return events

    return count


# The period.


@pytest.mark.parametrize(
    ("options", "since", "until"),
    [
        ([], "2026-09-28", "2026-11-22"),
        (["--until", "today"], "2026-09-29", "2026-11-23"),
        (["--until", "2026-12-31"], "2026-11-06", "2026-12-31"),
        (["--since", "yesterday"], "2026-11-22", "2026-11-22"),
        (["--since", "90d"], "2026-08-25", "2026-11-22"),
        (["--since", "2w", "--until", "2026-11-14"], "2026-11-01", "2026-11-14"),
        (["--since", "today", "--until", "today"], "2026-11-23", "2026-11-23"),
        (["--since", "2016-11-20"], "2016-11-20", "2026-11-22"),
    ],
)
def test_the_period_is_eight_weeks_to_yesterday_unless_options_say_otherwise(
    run: Callable[..., Result], options: list[str], since: str, until: str
) -> None:
    report = json.loads(run("--format=json", *options).stdout)
    length = date.fromisoformat(until) - date.fromisoformat(since) + timedelta(days=1)

    assert (report["since"], report["until"]) == (since, until)
    assert (len(report["days"]), len(report["weeks"])) == (length.days, length.days // 7)
    assert report["unfinished"] == (until >= str(TODAY))


def test_a_report_that_ends_before_the_first_day_names_the_option_that_shows_it(
    run: Callable[..., Result], data_dir: Path
) -> None:
    (data_dir / f"events-{TODAY}.jsonl").write_bytes(event())
    option = "--until today"

    assert option in run().stdout
    (data_dir / NAME).write_bytes(event())
    assert option not in run().stdout


def test_the_framework_is_named_and_its_own_hosts_can_be_left_out(
    make_app: Callable[..., Flask], data_dir: Path
) -> None:
    data_dir.mkdir()
    (data_dir / NAME).write_bytes(event() + event(hostname="demo.example.org"))
    runner = make_app(FRAMEWORK="Svelte").test_cli_runner()
    options = ["--exclude-host", "*.EXAMPLE.org", "--exclude-host", "x.com"]
    report = json.loads(runner.invoke(args=["report", "--format=json", *options]).stdout)

    assert report["framework"] == "Svelte"
    assert report["events"]["core"] == 1
    assert report["excluded"] == {"patterns": ["*.EXAMPLE.org", "x.com"], "events": 1}


@pytest.mark.parametrize(
    "arguments",
    [
        ["--since", "today"],
        ["--until", "2026-02-31"],
        ["--since", "2026-11-20", "--until", "2026-11-19"],
        ["--since", "2016-11-10"],
        ["--since", "0d"],
        ["--since", "9999w"],
        ["--until", "90d"],
        ["--until", "0001-01-01"],
        ["--since", "9999-12-31", "--until", "9999-12-31", "--format", "xml"],
    ],
)
def test_an_unusable_period_ends_with_one_clear_line(
    run: Callable[..., Result], arguments: list[str]
) -> None:
    ran = run(*arguments)

    assert ran.exit_code == 2
    assert ran.stderr.splitlines()[-1].startswith("Error: ")
    assert "Traceback" not in ran.output


# Directories and files.


def test_a_directory_is_read_once_however_it_is_spelled(
    count: Callable[..., int], data_dir: Path, tmp_path: Path
) -> None:
    (data_dir / NAME).write_bytes(event())
    (tmp_path / "link").symlink_to(data_dir)
    other = tmp_path / "other"
    other.mkdir()
    (other / NAME).hardlink_to(data_dir / NAME)
    (other / "events-2026-11-21.jsonl").write_bytes(event())
    spellings = [data_dir, tmp_path / "link", data_dir / ".." / data_dir.name, other]

    assert count(*map(str, spellings)) == 2


def test_a_missing_directory_is_named_and_the_others_are_read(
    run: Callable[..., Result], data_dir: Path
) -> None:
    (data_dir / NAME).write_bytes(event())
    ran = run("--format=json", str(data_dir), "gone")

    assert ran.exit_code == 1
    assert ran.stderr == "Error: gone: No such file or directory\n"
    assert json.loads(ran.stdout)["events"]["core"] == 1


NO_DAY = "refused-2026-02-31.jsonl"
DAY = "events-2026-11-20.jsonl"


@pytest.mark.parametrize(
    ("name", "make", "said", "events"),
    [
        pytest.param(f"{DAY}.1", Path.touch, "not read", 0, id="another name"),
        pytest.param(NO_DAY, Path.touch, "not read", 0, id="no such day"),
        pytest.param(DAY, os.mkfifo, "not a regular file", 0, id="a FIFO"),
        pytest.param(DAY, Path.mkdir, "not a regular file", 0, id="a directory"),
        pytest.param(f"{DAY}.gz", gzip.compress(event() * 99)[:-9], "", 99, id="damaged archive"),
        pytest.param(
            f"{DAY}.gz", gzip.compress(event() + b'{"torn'), "ends within", 1, id="torn archive"
        ),
        pytest.param(f"{DAY}.gz", b"no gzip", "", 0, id="no archive"),
    ],
)
def test_what_is_missing_from_the_numbers_is_named_and_the_rest_is_counted(
    run: Callable[..., Result],
    data_dir: Path,
    name: str,
    make: bytes | Callable[[Path], object],
    said: str,
    events: int,
) -> None:
    (data_dir / NAME).write_bytes(event())
    path = data_dir / name
    if isinstance(make, bytes):
        path.write_bytes(make)
    else:
        make(path)
    ran = run("--format=json")

    assert ran.exit_code == 1
    (line,) = ran.stderr.splitlines()
    assert line.startswith(f"Error: {path}: {said}")
    assert json.loads(ran.stdout)["events"]["core"] == 1 + events


def test_the_work_files_of_housekeeping_are_ignored(
    run: Callable[..., Result], data_dir: Path
) -> None:
    for name in ("events-housekeeping.claim", "events-housekeeping.draft", "address-key-x"):
        (data_dir / name).write_bytes(event())

    assert (run().exit_code, run().stderr) == (0, "")


ONE, TWO, THREE = map(event, range(1, 4))
OVERLAP = f"Error: {NAME}.gz: has some of the lines of {NAME}; both are counted"


@pytest.mark.parametrize(
    ("plain", "archived", "events", "problem"),
    [
        pytest.param(ONE + TWO, ONE + TWO, 2, "", id="the same lines"),
        pytest.param(ONE + TWO, (ONE + TWO)[:-9], 2, "", id="the archive is torn"),
        pytest.param(ONE + TWO[:9], ONE + TWO, 2, "", id="the plain file is torn"),
        pytest.param(TWO, ONE + TWO, 2, "", id="the archive begins earlier"),
        pytest.param(TWO, ONE, 2, "", id="nothing in common"),
        pytest.param(ONE + TWO, TWO + THREE, 4, OVERLAP, id="some lines in common"),
    ],
)
def test_lines_that_a_plain_file_and_its_archive_have_count_once(
    run: Callable[..., Result],
    data_dir: Path,
    plain: bytes,
    archived: bytes,
    events: int,
    problem: str,
) -> None:
    (data_dir / NAME).write_bytes(plain)
    (data_dir / f"{NAME}.gz").write_bytes(gzip.compress(archived))
    ran = run("--format=json")

    assert json.loads(ran.stdout)["events"]["core"] == events
    assert ran.stderr.replace(f"{data_dir}/", "").strip() == problem
    assert ran.exit_code == bool(problem)


def test_a_line_that_is_written_meanwhile_is_kept_for_the_next_read(tmp_path: Path) -> None:
    path = tmp_path / NAME
    path.write_bytes(event(1) + event(2)[:100])
    with path.open("rb") as file, path.open("ab") as writer:
        blocks = report.reading.plain_blocks(file)
        first = next(blocks)
        writer.write(event(2)[100:] + event(3)[:9])
        writer.flush()
        rest = b"".join(blocks)

    assert (first, rest) == (event(1), event(2))


@pytest.mark.parametrize("block_bytes", [2**24, 700])
def test_a_file_that_is_compressed_while_the_report_runs_is_read_from_its_archive(
    count: Callable[..., int], data_dir: Path, monkeypatch: pytest.MonkeyPatch, block_bytes: int
) -> None:
    plain = data_dir / NAME
    plain.write_bytes(b"".join(map(event, range(9))))
    monkeypatch.setattr(report.reading, "BLOCK_BYTES", block_bytes)
    open_file = report.reading.open_file

    def compress_first(path: Path) -> Any:
        if plain.exists():
            plain.with_name(f"{NAME}.gz").write_bytes(gzip.compress(plain.read_bytes()))
            plain.unlink()
        return open_file(path)

    monkeypatch.setattr(report.reading, "open_file", compress_first)

    assert count() == 9


# Lines.


def test_a_key_that_older_lines_lack_costs_no_line_its_fast_path(
    run: Callable[..., Result], data_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Older and newer lines count as one payload, which is what the host sent most."""
    older, other = event(), event().replace(b"5.0.12", b"6.0.0")
    newer = event().replace(b'"projectId":null', b'"projectId":null,"theme":null')
    dark = other.replace(b'"projectId":null', b'"projectId":null,"theme":"dark"')
    (data_dir / NAME).write_bytes(older + newer * 2 + dark * 2 + other)
    odd_lines: list[bytes] = []
    keys = {source: (*keys, "theme") for source, keys in PAYLOAD_KEYS.items()}
    for source in keys:
        monkeypatch.setitem(PAYLOAD_KEYS, source, keys[source])
        pattern = counting.payload_pattern(keys[source], {"theme"})
        monkeypatch.setitem(counting.PAYLOADS, source, pattern)
    for module in (counting, report.reading):
        monkeypatch.setattr(module, "ADDED_KEYS", {"theme"})
    monkeypatch.setattr(counting, "read_odd", odd_lines.append)

    versions = json.loads(run("--format=json").stdout)["core"]["versions"]

    assert odd_lines == []
    assert versions == [
        {"value": "5.0.12", "hosts": 1, "events": 3},
        {"value": "6.0.0", "hosts": 0, "events": 3},
    ]


# Where it goes.


def start(arguments: str, data_dir: Path, **environ: str) -> subprocess.CompletedProcess[str]:
    """Run the real command in a shell, which may redirect its output."""
    flask = Path(sys.executable).with_name("flask")
    return subprocess.run(
        ["bash", "-o", "pipefail", "-c", f"{flask} report {arguments}"],
        cwd=ROOT,
        env={**os.environ, "TELEMETRY_DATA_DIR": str(data_dir), **environ},
        capture_output=True,
        text=True,
        timeout=PATIENCE_SECONDS,
    )


@pytest.mark.parametrize(
    ("arguments", "status", "out", "err"),
    [
        ("--format=json --since 2017-01-01 | head -1", 0, "{\n", ""),
        ("--output - > /dev/full", 1, "", "Error: standard output: No space left on device\n"),
        ("--format=html --output /dev/stdout | tail -1", 0, "</html>\n", ""),
        ("--format=html --output >(tail -1); wait", 0, "</html>\n", ""),
    ],
)
def test_it_writes_to_what_is_no_regular_file(
    data_dir: Path, arguments: str, status: int, out: str, err: str
) -> None:
    """A reader that goes away is no error."""
    data_dir.mkdir()
    (data_dir / NAME).write_bytes(event())
    ran = start(f"--until {YESTERDAY} {arguments}", data_dir)

    assert (ran.returncode, ran.stdout, ran.stderr) == (status, out, err)


def test_a_page_is_utf_8_whatever_the_terminal_is(data_dir: Path, tmp_path: Path) -> None:
    data_dir.mkdir()
    (data_dir / f"events-{date.today()}.jsonl").write_bytes(event())
    page = tmp_path / "page"
    ran = start(f"--until today --format html > {page}", data_dir, PYTHONIOENCODING="latin-1")

    assert (ran.returncode, ran.stderr) == (0, "")
    assert "–" in page.read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("style", "old_mode", "mode"), [("html", None, 0o640), ("text", 0o604, 0o604)]
)
def test_a_file_is_replaced_by_a_whole_one_with_its_mode(
    run: Callable[..., Result],
    data_dir: Path,
    tmp_path: Path,
    style: str,
    old_mode: int | None,
    mode: int,
) -> None:
    (data_dir / NAME).write_bytes(event())
    output, link = tmp_path / "www" / "page.html", tmp_path / "page.html"
    output.parent.mkdir()
    link.symlink_to(output)
    old = os.umask(0o027)
    try:
        if old_mode:
            output.write_text("old")
            output.chmod(old_mode)
            inode = output.stat().st_ino
        assert run("--format", style, "--output", str(link)).stdout == ""
    finally:
        os.umask(old)

    assert link.is_symlink()
    assert output.read_text(encoding="utf-8") == run("--format", style, "--output", "-").stdout
    assert stat.S_IMODE(output.stat().st_mode) == mode
    assert not old_mode or output.stat().st_ino != inode
    assert list(output.parent.iterdir()) == [output]


def test_a_file_that_cannot_be_written_stays_and_is_named(
    run: Callable[..., Result], data_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (data_dir / NAME).write_bytes(event())
    output = tmp_path / "www" / "page.html"
    output.parent.mkdir()
    output.write_text("old")

    def fail(fd: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("os.fsync", fail)
    ran = run("--output", str(output))

    assert ran.exit_code == 1
    assert ran.stderr == f"Error: --output {output}: No space left on device\n"
    assert [path.read_text() for path in output.parent.iterdir()] == ["old"]


@pytest.mark.parametrize("reason", ["empty", "gone", "unreadable"])
def test_where_nothing_could_be_read_the_old_file_stays(
    run: Callable[..., Result], data_dir: Path, tmp_path: Path, reason: str
) -> None:
    output = tmp_path / "page.html"
    output.write_text("old")
    if reason == "gone":
        data_dir.rmdir()
    if reason == "unreadable":
        (data_dir / f"{NAME}.gz").write_bytes(b"no gzip")

    ran = run("--output", str(output))

    assert (ran.exit_code, output.read_text()) == (1, "old")
    assert "nothing could be read" in ran.stderr
