"""Measure what durability costs, and what sharing one fsync among many events brings.

    python bench/durability.py --seconds 3 --rounds 3

Each cell of the table starts the real server on an empty directory, on the disk
that holds the project, and lets `wrk` (github.com/wg/wrk) post events to it from
a number of clients, each event on a new connection.  A figure is the median of
the rounds; a latency begins with the connection made.

A variant replaces os.fsync or Appender.append and nothing else.  The slow disk
is this one with a pause before each fsync.  gunicorn's settings are the project's
and may be changed: GUNICORN_CMD_ARGS=--threads=32 .venv/bin/python bench/durability.py
"""

import argparse
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from statistics import median
from typing import NamedTuple

from driver import (
    ROOT,
    bench_directory,
    count_lines,
    free_port,
    recorded,
    require_tools,
    run_wrk,
    serving,
)

CLIENTS = (1, 8, 32, 128)
SLOW_FSYNC_SECONDS = 0.005
GOAL_CLIENTS = 32
CLI = recorded("cli-whoami")


def skip_fsync() -> None:
    os.fsync = lambda fd: None


def slow_down_fsync() -> None:
    real_fsync = os.fsync

    def slow_fsync(fd: int) -> None:
        time.sleep(SLOW_FSYNC_SECONDS)
        real_fsync(fd)

    os.fsync = slow_fsync


def fsync_each_event() -> None:
    """Let the writer thread write and sync the lines of a batch one by one."""
    from storage import Appender

    append_all = Appender.append

    def append_each(appender: Appender, name: str, lines: bytes, deadline: float) -> None:
        for line in lines.splitlines(keepends=True):
            append_all(appender, name, line, deadline)

    Appender.append = append_each


DURABLE, EACH = "durable", "one fsync per event"
SLOW_DURABLE, SLOW_EACH = "slow disk: durable", "slow disk: one fsync per event"
VARIANTS: dict[str, tuple[Callable[[], None], ...]] = {
    DURABLE: (),
    "no fsync": (skip_fsync,),
    EACH: (fsync_each_event,),
    SLOW_DURABLE: (slow_down_fsync,),
    SLOW_EACH: (slow_down_fsync, fsync_each_event),
}


def serve(variant: str, port: int) -> None:
    """Be the server.  It loads the app, and forks, after the replacements."""
    sys.path[0] = str(ROOT)
    from gunicorn.app.wsgiapp import run

    for replace in VARIANTS[variant]:
        replace()
    sys.argv = ["gunicorn", "--bind", f"127.0.0.1:{port}"]
    run()


def append_alone(variant: str, seconds: int) -> None:
    """Print how many events a second GOAL_CLIENTS threads store, without HTTP."""
    sys.path[0] = str(ROOT)
    from storage import Store

    for replace in VARIANTS[variant]:
        replace()
    event = {"received_at": "2026-11-23T12:00:00.000Z", "payload": json.loads(CLI.body)}
    counts = []
    with bench_directory() as directory:
        store = Store(directory)
        until = time.monotonic() + seconds

        def append() -> None:
            done = 0
            while time.monotonic() < until:
                store.append(event)
                done += 1
            counts.append(done)

        threads = [threading.Thread(target=append) for _ in range(GOAL_CLIENTS)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        store.close()
    print(sum(counts) / seconds)


def measure_alone(variant: str, seconds: int) -> float:
    command = [sys.executable, __file__, f"--seconds={seconds}", "--store", variant]
    return float(subprocess.check_output(command, text=True))


class Cell(NamedTuple):
    events_per_second: float
    p50_ms: float
    p99_ms: float
    problem: str


def measure(variant: str, clients: int, seconds: int) -> Cell:
    """Post events for a while; see that all that were answered 2xx are in the file."""
    port = free_port()
    command = [sys.executable, __file__, "--serve", variant, "--port", str(port)]
    with bench_directory() as directory:
        environ = {"TELEMETRY_DATA_DIR": str(directory)}
        with serving(command, port, directory, environ):
            load = run_wrk(port, [CLI], clients=clients, seconds=seconds, directory=directory)
            stored = count_lines(directory)
    problem = ""
    if stored < load.taken or load.refused or load.failed:
        problem = f"{load.taken} taken, {stored} stored, "
        problem += f"{load.refused} refused, {load.failed} failed"
    return Cell(load.events_per_second, load.p50_ms, load.p99_ms, problem)


def measure_all(rounds: int, seconds: int) -> dict[tuple[str, int], Cell]:
    """Measure each cell, then each again; return the medians."""
    seen: dict[tuple[str, int], list[Cell]] = {(v, c): [] for v in VARIANTS for c in CLIENTS}
    for _ in range(rounds):
        for clients in CLIENTS:
            for variant in VARIANTS:
                seen[variant, clients].append(measure(variant, clients, seconds))
    medians = {}
    for key, cells in seen.items():
        rates, p50s, p99s, problems = zip(*cells, strict=True)
        medians[key] = Cell(median(rates), median(p50s), median(p99s), max(problems))
    return medians


def print_table(cells: dict[tuple[str, int], Cell]) -> None:
    print(f"\n{'':30}{'clients':>8}{'events/s':>10}{'p50 ms':>9}{'p99 ms':>9}{'of durable':>12}")
    for (variant, clients), cell in cells.items():
        base = cells[SLOW_DURABLE if variant.startswith("slow") else DURABLE, clients]
        share = cell.events_per_second / base.events_per_second
        print(f"{variant if clients == CLIENTS[0] else '':30}{clients:8}", end="")
        print(f"{cell.events_per_second:10.0f}{cell.p50_ms:9.1f}{cell.p99_ms:9.1f}{share:12.2f}")
        if cell.problem:
            print(f"    wrong: {cell.problem}")


def print_gain(cells: dict[tuple[str, int], Cell], rounds: int, seconds: int) -> None:
    print(f"\nGroup commit over one fsync per event, {GOAL_CLIENTS} clients or threads:")
    print("              over HTTP    the store alone")
    for disk, shared, each in ("this", DURABLE, EACH), ("slow", SLOW_DURABLE, SLOW_EACH):
        rates = [cells[variant, GOAL_CLIENTS].events_per_second for variant in (shared, each)]
        pairs = [[measure_alone(v, seconds) for v in (shared, each)] for _ in range(rounds)]
        alone = median(together / one for together, one in pairs)
        print(f"    {disk} disk{rates[0] / rates[1]:9.1f}{alone:15.1f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--seconds", type=int, default=3, help="for each cell and round (3)")
    parser.add_argument("--rounds", type=int, default=3, help="the median counts (3)")
    parser.add_argument("--serve", choices=VARIANTS, help=argparse.SUPPRESS)
    parser.add_argument("--port", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--store", choices=VARIANTS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve:
        serve(options.serve, options.port)
        return
    if options.store:
        append_alone(options.store, options.seconds)
        return
    require_tools("wrk")
    seconds = options.rounds * len(CLIENTS) * len(VARIANTS) * (options.seconds + 2)
    print(f"{os.cpu_count()} CPUs, {options.rounds} rounds of {options.seconds} s each; ", end="")
    print(f"wait {seconds // 60} minutes", flush=True)
    try:
        cells = measure_all(options.rounds, options.seconds)
    except KeyboardInterrupt:
        sys.exit("bench: stopped")
    print_table(cells)
    print_gain(cells, options.rounds, options.seconds)
    if any(cell.problem for cell in cells.values()):
        sys.exit(1)


if __name__ == "__main__":
    main()
