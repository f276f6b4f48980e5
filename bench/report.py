"""Measure `flask report` against DuckDB: the same files, the same JSON.

    python bench/report.py                  8 weeks, a million events, plain files
    python bench/report.py --gzip           all but the newest 8 days compressed
    python bench/report.py --struct         DuckDB parses every payload, as queries usually do
    python bench/report.py --odd            ours, with one odd line in each piece and without

Both programs run as processes of their own and print the whole report.  The first round, which
is not timed, compares what they say and takes their memory (the proportional set size of all
their processes).  The others are pairs, either program first in turn.  DuckDB lives in an
environment of its own, bench/.venv.
"""

import argparse
import contextlib
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from datetime import date, timedelta
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

from driver import BENCH, ROOT, bench_directory, bench_python, process_tree
from world import World, make_files

UNTIL = date(2026, 11, 24)
APPS, ADDRESSES = 600, 100_000
PIECE_BYTES = 2**24  # as the report reads them
SAMPLE_SECONDS = 0.02


# Measuring.


class Run(NamedTuple):
    answer: dict[str, Any]
    wall_seconds: float
    cpu_seconds: float
    peak_mb: float  # 0 where it was not measured


def run(command: list[str], directory: Path, with_memory: bool) -> Run:
    environ = os.environ | {"TELEMETRY_DATA_DIR": str(directory)}
    with tempfile.TemporaryFile() as output:
        start = time.perf_counter()
        process = subprocess.Popen(command, cwd=ROOT, env=environ, stdout=output)
        peak = Peak(process.pid) if with_memory else None
        _, status, usage = os.wait4(process.pid, 0)
        wall_seconds = time.perf_counter() - start
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode:
            raise SystemExit(f"{' '.join(command)}: exit status {process.returncode}")
        output.seek(0)
        answer = json.load(output)
    peak_mb = peak.stop() if peak else 0
    return Run(answer, wall_seconds, usage.ru_utime + usage.ru_stime, peak_mb)


class Peak:
    """Watches the memory of a process and all below it."""

    def __init__(self, pid: int) -> None:
        self.pid, self.peak_mb = pid, 0.0
        self.stopping = threading.Event()
        self.thread = threading.Thread(target=self.watch, daemon=True)
        self.thread.start()

    def watch(self) -> None:
        while not self.stopping.wait(SAMPLE_SECONDS):
            with contextlib.suppress(OSError):  # one of them has ended
                now = sum(process.pss_mb for process in process_tree(self.pid))
                self.peak_mb = max(self.peak_mb, now)

    def stop(self) -> float:
        self.stopping.set()
        self.thread.join()
        return self.peak_mb


def differences(ours: Any, theirs: Any, where: str = "") -> Iterator[str]:
    if isinstance(ours, dict) and isinstance(theirs, dict) and ours.keys() == theirs.keys():
        for key in ours:
            yield from differences(ours[key], theirs[key], f"{where}.{key}")
    elif isinstance(ours, list) and isinstance(theirs, list) and len(ours) == len(theirs):
        for n, pair in enumerate(zip(ours, theirs, strict=True)):
            yield from differences(*pair, f"{where}[{n}]")
    elif ours != theirs:
        yield f"{where}: flask report {ours!r:.60}, DuckDB {theirs!r:.60}"


def measure(commands: dict[str, list[str]], directories: list[Path], rounds: int) -> None:
    """Run each command on its directory in turn, and print times, memory and the ratio."""
    where = dict(zip(commands, directories, strict=True))
    first = {name: run(command, where[name], True) for name, command in commands.items()}
    if wrong := list(differences(*(found.answer for found in first.values()))):
        raise SystemExit("The answers differ:\n" + "\n".join(wrong[:20]))
    print("the answers are equal")
    timed: dict[str, list[Run]] = {name: [] for name in commands}
    for number in range(rounds):
        for name in sorted(commands, reverse=bool(number % 2)):
            timed[name].append(run(commands[name], where[name], False))
    print(f"{'':24}{'wall':>10}{'CPU':>10}{'peak memory':>14}")
    for name, runs in timed.items():
        wall, cpu = (
            median(getattr(r, f"{kind}_seconds") for r in runs) for kind in ("wall", "cpu")
        )
        print(f"{name:24}{wall:8.2f} s{cpu:8.2f} s{first[name].peak_mb:11.0f} MB")
    pairs = list(zip(*timed.values(), strict=True))
    for kind in ("wall", "cpu"):
        ratios = [getattr(a, f"{kind}_seconds") / getattr(b, f"{kind}_seconds") for a, b in pairs]
        shown = " ".join(f"{ratio:.2f}" for ratio in ratios)
        print(f"{' / '.join(commands)}, {kind}: median {median(ratios):.2f} of {shown}")


def add_odd_lines(directory: Path, target: Path) -> None:
    """Copy the files; one line in each piece is written in another, equally valid way."""
    for path in directory.iterdir():
        lines = path.read_bytes()
        for at in range(0, len(lines), PIECE_BYTES):
            start = lines.rfind(b"\n", 0, at + PIECE_BYTES // 2) + 1
            lines = lines[:start] + lines[start:].replace(b'":', b'": ', 1)
        (target / path.name).write_bytes(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description="flask report against DuckDB")
    parser.add_argument("--events", type=int, default=1_000_000)
    parser.add_argument("--days", type=int, default=56)
    parser.add_argument("--gzip", action="store_true", help="all but the newest 8 days")
    parser.add_argument("--struct", action="store_true", help="DuckDB parses every payload")
    parser.add_argument("--odd", action="store_true", help="ours alone, with odd lines and without")
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    since = UNTIL - timedelta(days=options.days - 1)
    flask = str(Path(sys.executable).with_name("flask"))
    ours = [flask, "report", f"--since={since}", f"--until={UNTIL}", "--format=json"]
    with bench_directory() as directory, bench_directory() as odd:
        world = World(options.days, UNTIL, APPS, ADDRESSES)
        size = make_files(directory, world, options.events, options.gzip)
        kept = "gzip" if options.gzip else "plain"
        print(f"{options.events:,} events, {options.days} days, {size / 1e6:,.0f} MB {kept}")
        if options.odd:
            add_odd_lines(directory, odd)
            commands = {"with odd lines": ours, "without": ours}
            measure(commands, [odd, directory], options.rounds)
        else:
            theirs = [str(bench_python()), str(BENCH / "duckdb_report.py")]
            theirs += [str(directory), str(since), str(UNTIL), *["--struct"] * options.struct]
            commands = {"flask report": ours, "DuckDB": theirs}
            measure(commands, [directory, directory], options.rounds)


if __name__ == "__main__":
    main()
