"""Show the collector beside what people would use instead: one table.

    make bench
    .venv/bin/python bench/compare.py --seconds 3 --rounds 5 --only fastify
    .venv/bin/python bench/compare.py --before ../a-checkout-of-an-earlier-commit

Each contestant is started on an empty directory, on the disk that holds the project, and takes the
same events from `wrk` (github.com/wg/wrk): an app's and a command's in turn, once with a new
connection for each event, as real clients make, and once on connections that are kept, as a proxy
does.  All sync before they respond; on the slow disk a sync takes half a second.  The contestants
take turns within each round; every other round goes backwards.  A figure is the median of the
rounds, a ratio to ours the median of the ratios within each round.

CPU is the kernel's count of all of a server's processes.  `wrk` shares the cores with them, so two
workers are compared by the CPU that an event costs them, too.  Memory is the sum of the processes'
proportional set sizes.  What is in the files afterwards is counted.
"""

import argparse
from collections.abc import Callable
from functools import partial
from pathlib import Path
from statistics import median

from driver import ROOT, bench_directory, cpu_seconds, memory_mb, run_wrk

from injected import Faults
from server import Server

WARM_UP_SECONDS = 1
CONTESTANTS = ROOT / "bench/contestants"
UVICORN = ["-m", "uvicorn", "--loop=uvloop", "--http=httptools", "--no-access-log", "--port=0"]

Figures = dict[str, float]


def ours(data_dir: Path, workers: int = 1, root: Path = ROOT) -> Server:
    return Server(data_dir, f"--workers={workers}", launcher=["env", f"--chdir={root}"])


def ours_on_a_slow_disk(data_dir: Path, workers: int) -> Server:
    faults = data_dir / "faults.json"
    Faults().write(faults)
    app = ["--pythonpath=tests/support", "injected:create_app()"]
    server = Server(data_dir, f"--workers={workers}", *app, environ={"FAULTS": str(faults)})
    for _ in range(20 * workers):  # until each has its file open
        server.send_cli()
    Faults(sync_seconds=0.5).write(faults)
    return server


def fastapi(data_dir: Path) -> Server:
    python, app = ROOT / "bench/.venv/bin/python", ["--app-dir", CONTESTANTS, "fastapi_app:app"]
    return Server(data_dir, command=[python, *UVICORN, *app])


def fastify(data_dir: Path) -> Server:
    command = ["node", CONTESTANTS / "fastify/app.mjs"]
    return Server(data_dir, command=command, environ={"NODE_ENV": "production"})


def measure(start: Callable[[Path], Server], clients: int, seconds: int) -> Figures:
    figures: Figures = {}
    taken = failed = 0.0
    with bench_directory() as data_dir, start(data_dir) as server:
        pid = server.process.pid
        for kind, keep_alive in (("new", False), ("kept", True)):
            for duration in (WARM_UP_SECONDS, seconds):
                before = cpu_seconds(pid)
                load = run_wrk(
                    server.port, clients=clients, seconds=duration, keep_alive=keep_alive
                )
                used = cpu_seconds(pid) - before
                taken += load.requests - load.failed
                failed += load.failed
            figures[f"events/s, {kind}"] = load.requests / load.seconds
            figures[f"p99 ms, {kind}"] = load.p99_ms
            figures[f"CPU µs/event, {kind}"] = used / load.requests * 1e6
        figures["memory MB"] = memory_mb(pid)
        server.stop()
        stored = len(server.lines("events*"))
    # More may be stored: wrk does not wait, at its end, for what is under way.
    if failed or stored < taken:
        print(f"wrong: {taken:.0f} taken, {stored} stored, {failed:.0f} failed", flush=True)
    return figures


def print_table(rounds: list[dict[str, Figures]]) -> None:
    titles = list(rounds[0]["ours"])
    print(f"\n| | {' (×) | '.join(titles)} (×) |\n|---{'|--:' * len(titles)}|")
    for name in sorted(rounds[0]):
        cells = []
        for title in titles:
            figure = median(one[name][title] for one in rounds)
            ratio = median(one[name][title] / one["ours"][title] for one in rounds)
            cells.append(f"{figure:.0f} ({ratio:.2f})")
        print(f"| {name} | {' | '.join(cells)} |")


def main() -> None:
    starts: dict[str, Callable[[Path], Server]] = {
        "ours": ours,
        "ours, 2 workers": partial(ours, workers=2),
        "ours, slow disk": partial(ours_on_a_slow_disk, workers=1),
        "ours, 3 workers, slow disk": partial(ours_on_a_slow_disk, workers=3),
        "fastapi": fastapi,
        "fastify": fastify,
    }
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--seconds", type=int, default=3, help="of each load (3)")
    parser.add_argument("--rounds", type=int, default=5, help="the median counts (5)")
    parser.add_argument("--clients", type=int, default=32, help="at once (32)")
    parser.add_argument("--only", choices=starts, action="append", help="beside one worker of ours")
    parser.add_argument("--before", type=Path, help="another checkout of ours, to join the table")
    options = parser.parse_args()
    if options.only:
        starts = {name: starts[name] for name in ("ours", *options.only)}
    if options.before:
        starts["ours, before"] = partial(ours, root=options.before)
    names, rounds = list(starts), []
    for _ in range(options.rounds):
        rounds.append(
            {name: measure(starts[name], options.clients, options.seconds) for name in names}
        )
        names.reverse()
    print_table(rounds)


if __name__ == "__main__":
    main()
