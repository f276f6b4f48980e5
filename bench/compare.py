"""Show the collector beside what people would use instead: one table, and the goals.

    make bench
    python bench/compare.py --seconds 3 --rounds 5
    python bench/compare.py --only ours-1 --only fastify
    python bench/compare.py --only ours-1 --before ../a-checkout-of-an-earlier-commit

Each contestant is started on an empty directory, on the disk that holds the
project, and takes the same events from `wrk` (github.com/wg/wrk): an app's and a
command's in turn, from 32 browsers, once with a new connection for each event, as
real clients make, and once on connections that are kept, as a proxy does.
All but the bare routes sync before they respond.  The contestants take turns within
each round; every other round goes backwards.  A figure is the median of the rounds,
a ratio the median of the ratios within each round.

CPU is the kernel's count of all of a server's processes.  `wrk` shares the cores with them, so
two workers are compared by the CPU that an event costs them, too.
Memory is the sum of its processes' proportional set sizes; a start lasts until the
first event is taken.  What is in the files afterwards is counted.
"""

import argparse
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

from driver import (
    BENCH,
    ROOT,
    bench_directory,
    bench_python,
    count_lines,
    free_port,
    mixed_requests,
    our_server,
    print_goal,
    process_tree,
    require_tools,
    run_wrk,
    serving,
)

WARM_UP_SECONDS = 1
NEW, KEPT = "new connections", "kept connections"
GUNICORN = [sys.executable, "-m", "gunicorn", "--pythonpath", BENCH / "contestants"]
UVICORN = "--loop=uvloop --http=httptools --no-access-log --log-level=warning"

Command = tuple[list[Any], dict[str, str]]


def flask_stock(port: int, directory: Path) -> Command:
    stock = ["--config", "/dev/null", "--worker-class=gthread", "--threads=4"]
    return [*GUNICORN, *stock, "--bind", f"127.0.0.1:{port}", "flask_bare:app"], {}


def flask_bare(port: int, directory: Path) -> Command:
    return [*GUNICORN, "--bind", f"127.0.0.1:{port}", "flask_bare:app"], {}


def fastapi(port: int, directory: Path) -> Command:
    uvicorn = [bench_python(), "-m", "uvicorn", *UVICORN.split(), f"--port={port}"]
    where = ["--app-dir", BENCH / "contestants", "fastapi_app:app"]
    return [*uvicorn, *where], {"DATA_DIR": str(directory)}


def fastify(port: int, directory: Path) -> Command:
    environ = {"DATA_DIR": str(directory), "PORT": str(port), "NODE_ENV": "production"}
    return ["node", BENCH / "contestants/fastify/app.mjs"], environ


class Contestant(NamedTuple):
    title: str
    command: Callable[[int, Path], Command]
    stores: bool = True
    root: Path = ROOT  # where it is started


OURS, BEFORE = "ours-1", "before"
CONTESTANTS = {
    OURS: Contestant("**ours, 1 worker**", our_server),
    "ours-2": Contestant("**ours, 2 workers**", lambda p, d: our_server(p, d, workers=2)),
    "fastapi": Contestant("FastAPI", fastapi),
    "fastify": Contestant("Fastify", fastify),
    "flask-bare": Contestant("a bare Flask route on our worker", flask_bare, stores=False),
    "flask-stock": Contestant(
        "a bare Flask route on gunicorn's gthread", flask_stock, stores=False
    ),
}

# One measurement: figures by name, for each kind of connection and for the whole run.
Figures = dict[str, dict[str, float]]
Round = dict[str, Figures]


def measure(contestant: Contestant, clients: int, seconds: int) -> Figures:
    port, requests = free_port(), mixed_requests()
    figures: Figures = {}
    taken = refused = failed = 0
    with bench_directory() as directory:
        command, environ = contestant.command(port, directory)
        with serving(command, port, directory, environ, contestant.root) as server:
            for kind in (NEW, KEPT):
                for duration in (WARM_UP_SECONDS, seconds):
                    before = server.cpu_seconds()
                    load = run_wrk(
                        port,
                        requests,
                        clients=clients,
                        seconds=duration,
                        directory=directory,
                        keep_alive=kind == KEPT,
                    )
                    cpu_seconds = server.cpu_seconds() - before
                    taken += load.taken
                    refused += load.refused
                    failed += load.failed
                figures[kind] = {
                    "events": load.events_per_second,
                    "p50": load.p50_ms,
                    "p99": load.p99_ms,
                    "cpu": cpu_seconds / load.taken * 1e6,
                }
            tree = process_tree(server.pid)
            figures["process"] = {
                "memory": sum(process.pss_mb for process in tree),
                "worker_rss": tree[-1].rss_mb,
                "start": server.start_seconds,
            }
        stored = count_lines(directory)
    # The one that it started with; then, four times, what wrk did not wait for at the end.
    most = taken + 1 + 4 * clients
    if refused or failed or (contestant.stores and not taken < stored <= most):
        print(f"wrong: {contestant.title}: {taken} taken, {stored} stored, ", end="")
        print(f"{refused} refused, {failed} failed", flush=True)
    return figures


class Table:
    """The medians of all rounds, and ratios to be trusted though the machine's speed drifts."""

    def __init__(self, rounds: list[Round]) -> None:
        self.rounds = rounds

    def figure(self, name: str, kind: str, what: str) -> float:
        return median(a_round[name][kind][what] for a_round in self.rounds)

    def ratio(self, name: str, kind: str, what: str, base: str = OURS) -> float:
        return median(r[name][kind][what] / r[base][kind][what] for r in self.rounds)

    def has(self, *names: str) -> bool:
        return all(name in a_round for name in names for a_round in self.rounds)


COLUMNS = (
    # title, kind (None: the one of the table), name, format
    ("events/s", None, "events", "{:.0f}"),
    ("p50 ms", None, "p50", "{:.1f}"),
    ("p99 ms", None, "p99", "{:.1f}"),
    ("CPU µs/event", None, "cpu", "{:.0f}"),
    ("memory MB", "process", "memory", "{:.0f}"),
    ("start s", "process", "start", "{:.2f}"),
)


def print_table(table: Table, kind: str) -> None:
    titles = [f"{title} (×)" for title, *_ in COLUMNS]
    print(f"\n| {kind} | {' | '.join(titles)} |")
    print(f"|---{'|--:' * len(COLUMNS)}|")
    for name, contestant in CONTESTANTS.items():
        if not table.has(name):
            continue
        cells = []
        for _, own_kind, what, form in COLUMNS:
            cell = form.format(table.figure(name, own_kind or kind, what))
            if table.has(OURS):
                cell += f" ({table.ratio(name, own_kind or kind, what):.2f})"
            cells.append(cell)
        print(f"| {contestant.title} | {' | '.join(cells)} |")


# Ours is to be at least, or at most, that many times the other.
GOALS = (
    # other, kind, figure, at least (else at most), wanted
    (BEFORE, NEW, "events", True, 1.5),
    (BEFORE, NEW, "cpu", False, 0.7),
    (BEFORE, KEPT, "events", True, 1.2),
    (BEFORE, KEPT, "cpu", False, 0.85),
    ("fastapi", NEW, "events", True, 2.0),
    ("fastify", NEW, "events", True, 1.15),
    ("fastify", NEW, "cpu", False, 0.7),
    ("flask-bare", NEW, "events", True, 0.66),
    ("flask-bare", NEW, "p99", False, 1.3),
)


def print_goals(table: Table) -> None:
    print("\nGoals, one worker of ours:")
    for other, kind, what, at_least, wanted in GOALS:
        if table.has(OURS, other):
            ratio = table.ratio(OURS, kind, what, other)
            met = ratio >= wanted if at_least else ratio <= wanted
            limit = "at least" if at_least else "at most"
            name = f"{what} of {CONTESTANTS[other].title}, {kind}"
            print_goal(name, f"{ratio:.2f} (want {limit} {wanted:.2f})", met)
    if table.has(OURS, "ours-2"):
        measured = table.ratio("ours-2", NEW, "events")
        cpu = table.ratio("ours-2", NEW, "cpu")
        figure = f"{measured:.2f} measured (want 1.60); an event costs {cpu:.2f} of the CPU"
        print_goal("two workers over one", figure, measured >= 1.6)
    if table.has(OURS):
        rss = table.figure(OURS, "process", "worker_rss")
        start = table.figure(OURS, "process", "start")
        print_goal("memory of a worker", f"{rss:.1f} MB resident (want under 60)", rss < 60)
        print_goal("first event taken", f"{start:.2f} s after the start (want 1)", start <= 1)


def install_node_packages() -> None:
    wanted, installed = BENCH / "package-lock.json", BENCH / "node_modules/.package-lock.json"
    if not installed.exists() or installed.stat().st_mtime < wanted.stat().st_mtime:
        subprocess.check_call(["npm", "ci", "--silent", "--prefix", BENCH])


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--seconds", type=int, default=3, help="of each load (3)")
    parser.add_argument("--rounds", type=int, default=5, help="the median counts (5)")
    parser.add_argument("--clients", type=int, default=32, help="at once (32)")
    parser.add_argument("--only", choices=CONTESTANTS, action="append", help="may be repeated")
    parser.add_argument("--before", type=Path, help="another checkout of ours, to join the table")
    options = parser.parse_args()
    require_tools("wrk", "node", "npm")
    bench_python()
    install_node_packages()
    if options.before:
        CONTESTANTS[BEFORE] = Contestant("ours, before", our_server, root=options.before)
    names = list(options.only or CONTESTANTS)
    if options.before and BEFORE not in names:
        names.append(BEFORE)
    rounds: list[Round] = []
    print(f"{os.cpu_count()} CPUs, {options.clients} clients, ", end="")
    print(f"{options.rounds} rounds of {options.seconds} s each; ", end="")
    seconds = options.rounds * len(names) * 2 * (options.seconds + WARM_UP_SECONDS + 1)
    print(f"wait {seconds // 60 + 1} minutes", flush=True)
    try:
        for i in range(options.rounds):
            order = names if i % 2 == 0 else names[::-1]
            rounds.append(
                {n: measure(CONTESTANTS[n], options.clients, options.seconds) for n in order}
            )
    except KeyboardInterrupt:
        if not rounds:
            sys.exit("bench: stopped")
    table = Table(rounds)
    for kind in (NEW, KEPT):
        print_table(table, kind)
    print_goals(table)


if __name__ == "__main__":
    main()
