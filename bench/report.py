"""Measure how the time and the memory of `flask report` grow with events, apps and addresses.

    python bench/report.py                        worlds of 91 days, of which eight weeks are read
    python bench/report.py --against CHECKOUT     and the ratio to another version of the project

The first run of each is for the memory (the proportional set size of all its processes) and is not
timed.  The two versions take turns in the others, so that both meet the same noise.
"""

import argparse
import contextlib
import os
import subprocess
import sys
import threading
import time
from datetime import date
from pathlib import Path
from statistics import median
from typing import NamedTuple

from driver import ROOT, bench_directory, process_tree
from world import World, make_files

UNTIL, DAYS = date(2026, 11, 24), 91
# Events, apps, addresses.
WORLDS = [
    (200_000, 600, 2_500),
    (1_000_000, 600, 2_500),
    (1_000_000, 600, 200_000),
    (1_000_000, 5_000, 200_000),
    (1_200_000, 30_000, 200_000),
    (6_000_000, 60_000, 400_000),
]
SAMPLE_SECONDS = 0.02


class Run(NamedTuple):
    wall_seconds: float
    cpu_seconds: float


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


def start(checkout: Path, directory: Path) -> "subprocess.Popen[bytes]":
    flask = str(Path(sys.executable).with_name("flask"))
    command = [flask, "--app=app", "report", f"--until={UNTIL}", "--format=json"]
    environ = os.environ | {"TELEMETRY_DATA_DIR": str(directory)}
    return subprocess.Popen(command, cwd=checkout, env=environ, stdout=subprocess.DEVNULL)


def run(checkout: Path, directory: Path) -> Run:
    before = time.perf_counter()
    process = start(checkout, directory)
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"{checkout}: exit status {process.returncode}")
    return Run(time.perf_counter() - before, usage.ru_utime + usage.ru_stime)


def peak_mb(checkout: Path, directory: Path) -> float:
    process = start(checkout, directory)
    peak = Peak(process.pid)
    process.wait()
    return peak.stop()


def measure(directory: Path, checkouts: list[Path], rounds: int) -> str:
    """Return the cells of a row: this version's figures, and their ratios to the other's."""
    memory = [peak_mb(checkout, directory) for checkout in checkouts]
    turns = [[run(checkout, directory) for checkout in checkouts] for _ in range(rounds)]
    cells = []
    for kind in ("wall_seconds", "cpu_seconds"):
        times = [[getattr(one, kind) for one in turn] for turn in turns]
        cells.append(f"{median(turn[0] for turn in times):.1f} s")
        if len(checkouts) > 1:
            cells.append(f"{median(turn[0] / turn[1] for turn in times):.2f}")
    cells.append(f"{memory[0]:.0f} MB")
    if len(checkouts) > 1:
        cells.append(f"{memory[0] / memory[1]:.2f}")
    return " | ".join(cells)


def main() -> None:
    parser = argparse.ArgumentParser(description="how flask report grows")
    parser.add_argument("--against", type=Path, help="a checkout of another version")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--most-events", type=int, default=1_200_000, help="of a world")
    options = parser.parse_args()
    checkouts = [ROOT, *[options.against] * bool(options.against)]
    ratio = " | ×" if options.against else ""
    print(f"| events | apps | addresses | time{ratio} | CPU{ratio} | memory{ratio} |")
    for events, apps, addresses in WORLDS:
        if events <= options.most_events:
            with bench_directory() as directory:
                make_files(directory, World(DAYS, UNTIL, apps, addresses), events)
                cells = measure(directory, checkouts, options.rounds)
            print(f"| {events:,} | {apps:,} | {addresses:,} | {cells} |", flush=True)


if __name__ == "__main__":
    main()
