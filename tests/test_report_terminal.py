"""The commands on a real terminal: colour, progress, and how `flask report` is interrupted."""

import contextlib
import fcntl
import gzip
import json
import os
import pty
import signal
import struct
import subprocess
import sys
import termios
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import click
import pytest

from records import UNTIL, Days, cli, core, write_days
from server import PATIENCE_SECONDS, ROOT, children, give_up, wait_until

EVENTS: Days = {days_ago: [core(), cli()] for days_ago in range(56)}
FLASK = Path(sys.executable).with_name("flask")
REPORT = ("report", f"--until={UNTIL}")
# The commands, but files of any size are read in several processes and worth a progress bar.
IN_PROCESSES = """
import forget.command, report.reading
from flask.cli import main
report.reading.MIN_BYTES_FOR_PROCESSES = forget.command.MIN_BYTES_FOR_PROGRESS = 0
main()
"""


class Ran(NamedTuple):
    status: int
    piped: str
    terminal: str


def run_on_terminal(
    data_dir: Path,
    stream: str,
    command: tuple[str, ...] = REPORT,
    *,
    in_processes: bool = False,
    **environ: str,
) -> Ran:
    """Run a real command with one of its streams on a terminal, and the other in a pipe."""
    try:
        ours, theirs = pty.openpty()
    except OSError as exc:
        give_up(f"no terminal can be opened, as /dev/pts may be missing: {exc}")
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("4H", 24, 100, 0, 0))
    streams = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, stream: theirs}
    process = start(data_dir, command, in_processes, environ, **streams)
    os.close(theirs)
    piped = process.communicate(timeout=PATIENCE_SECONDS)[stream == "stdout"]
    terminal = b""
    with contextlib.suppress(OSError):  # the terminal is gone with the process
        while more := os.read(ours, 2**16):
            terminal += more
    os.close(ours)
    return Ran(process.returncode, piped.decode(), terminal.decode().replace("\r\n", "\n"))


def start(
    data_dir: Path,
    command: tuple[str, ...],
    in_processes: bool,
    environ: dict[str, str] | None = None,
    **streams: Any,
) -> subprocess.Popen[bytes]:
    unset = {"NO_COLOR", "COLUMNS", "FORCE_COLOR"}
    clean = {name: value for name, value in os.environ.items() if name not in unset}
    flask = [sys.executable, "-c", IN_PROCESSES] if in_processes else [FLASK]
    return subprocess.Popen(
        # What a shell starts in the background ignores SIGINT, and so would this.
        ["env", "--default-signal=INT", *flask, *command],
        cwd=ROOT,
        env={**clean, "TELEMETRY_DATA_DIR": str(data_dir), **(environ or {})},
        start_new_session=True,
        **streams,
    )


def test_colour_is_for_a_terminal_and_says_nothing_more(data_dir: Path) -> None:
    write_days(data_dir, EVENTS)
    coloured = run_on_terminal(data_dir, "stdout")
    plain = run_on_terminal(data_dir, "stdout", NO_COLOR="1")

    assert coloured.status == plain.status == 0
    assert "\x1b[1m" in coloured.terminal
    assert "\x1b" not in plain.terminal
    assert click.unstyle(coloured.terminal) == plain.terminal
    assert 80 < max(map(len, plain.terminal.splitlines())) <= 100


@pytest.mark.parametrize("command", [REPORT, ("forget", "--project=unknown")])
def test_progress_is_shown_on_a_terminal_only(data_dir: Path, command: tuple[str, ...]) -> None:
    write_days(data_dir, EVENTS)
    ran = run_on_terminal(data_dir, "stderr", command, in_processes=True)
    in_pipes = start(data_dir, command, True, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    out, err = in_pipes.communicate(timeout=PATIENCE_SECONDS)

    assert ran.status == in_pipes.returncode == 0
    assert "100%" in ran.terminal
    assert (err, out.decode()) == (b"", ran.piped)
    assert out


@pytest.fixture
def slow_report(data_dir: Path) -> Iterator[Callable[[bool], subprocess.Popen[bytes]]]:
    """Start a report, and return when it is in the middle of an archive of more than a gigabyte."""
    processes = []

    def start_slow(in_processes: bool) -> subprocess.Popen[bytes]:
        write_days(data_dir, {7: [cli()]})
        line = json.dumps(cli(), separators=(",", ":")).encode() + b"\n"
        member = gzip.compress(line * (2**24 // len(line)), 1)
        archive = data_dir / f"events-{UNTIL}.jsonl.gz"
        archive.write_bytes(member * 80)
        process = start(
            data_dir, REPORT, in_processes, stdout=subprocess.PIPE, stderr=subprocess.PIPE
        )
        processes.append(process)
        readers = [] if in_processes else [process.pid]
        wait_until(lambda: any(has_open(pid, archive) for pid in readers or children(process.pid)))
        return process

    yield start_slow
    for process in processes:
        process.kill()
        process.communicate()


def has_open(pid: int, path: Path) -> bool:
    with contextlib.suppress(FileNotFoundError):
        return any(
            descriptor.readlink() == path for descriptor in Path(f"/proc/{pid}/fd").iterdir()
        )
    return False


@pytest.mark.slow
@pytest.mark.parametrize("in_processes", [False, True], ids=["one process", "several processes"])
def test_ctrl_c_ends_it_with_one_line(
    slow_report: Callable[[bool], subprocess.Popen[bytes]], in_processes: bool
) -> None:
    process = slow_report(in_processes)
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does
    out, err = process.communicate(timeout=PATIENCE_SECONDS)

    assert (process.returncode, out, err.split(b"\n")) == (1, b"", [b"", b"Aborted!", b""])


@pytest.mark.slow
def test_a_reading_process_that_is_killed_ends_it_with_one_line(
    slow_report: Callable[[bool], subprocess.Popen[bytes]],
) -> None:
    """As the kernel does when memory runs out: what it read would be waited for for ever."""
    process = slow_report(True)
    for reader in children(process.pid):
        os.kill(reader, signal.SIGKILL)
    out, err = process.communicate(timeout=PATIENCE_SECONDS)

    assert (process.returncode, out) == (1, b"")
    assert err == b"Error: a reading process was killed (out of memory?)\n"
