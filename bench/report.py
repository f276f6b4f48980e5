"""Measure how the time and the memory of `flask report` grow with events, apps and addresses.

    .venv/bin/python bench/report.py
    .venv/bin/python bench/report.py --against CHECKOUT   and the ratio to another version

Each world has 91 days, of which eight weeks are read.  The first run of each version is for the
memory (the proportional set size of all its processes) and is not timed.  The two versions take
turns in the others, so that both meet the same noise.
"""

import argparse
import contextlib
import os
import subprocess
import sys
import time
from datetime import date
from pathlib import Path
from statistics import median

import psutil
from driver import ROOT, bench_directory, memory_mb
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

Figures = dict[str, float]


def start(checkout: Path, directory: Path) -> "subprocess.Popen[bytes]":
    flask = str(Path(sys.executable).with_name("flask"))
    command = [flask, "--app=app", "report", f"--until={UNTIL}", "--format=json"]
    environ = os.environ | {"TELEMETRY_DATA_DIR": str(directory)}
    return subprocess.Popen(command, cwd=checkout, env=environ, stdout=subprocess.DEVNULL)


def peak_mb(checkout: Path, directory: Path) -> float:
    process, peak = start(checkout, directory), 0.0
    while process.poll() is None:
        with contextlib.suppress(psutil.Error):  # one of them has ended
            peak = max(peak, memory_mb(process.pid))
        time.sleep(SAMPLE_SECONDS)
    return peak


def run(checkout: Path, directory: Path) -> Figures:
    before = time.perf_counter()
    process = start(checkout, directory)
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"{checkout}: exit status {process.returncode}")
    return {"time s": time.perf_counter() - before, "CPU s": usage.ru_utime + usage.ru_stime}


def measure(directory: Path, checkouts: list[Path], rounds: int) -> list[str]:
    """Return the cells of a row: this version's figures, with their ratios to the other's."""
    memory = [{"memory MB": peak_mb(checkout, directory)} for checkout in checkouts]
    turns = [[run(checkout, directory) for checkout in checkouts] for _ in range(rounds)]
    cells = []
    for title, figures in (("time s", turns), ("CPU s", turns), ("memory MB", [memory])):
        cell = f"{median(turn[0][title] for turn in figures):.1f}"
        if len(checkouts) > 1:
            cell += f" ({median(turn[0][title] / turn[1][title] for turn in figures):.2f})"
        cells.append(cell)
    return cells


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--against", type=Path, help="a checkout of another version")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--most-events", type=int, default=1_200_000, help="of a world")
    options = parser.parse_args()
    checkouts = [ROOT, *[options.against] * bool(options.against)]
    print("| events | apps | addresses | time s (×) | CPU s (×) | memory MB (×) |")
    print("|--:|--:|--:|--:|--:|--:|")
    for events, apps, addresses in WORLDS:
        if events <= options.most_events:
            with bench_directory() as directory:
                make_files(directory, World(DAYS, UNTIL, apps, addresses), events)
                cells = measure(directory, checkouts, options.rounds)
            print(f"| {events:,} | {apps:,} | {addresses:,} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
