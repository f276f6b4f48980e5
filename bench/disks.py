"""Show what slow and failing disks do to one, two and three workers.

    .venv/bin/python bench/disks.py
    .venv/bin/python bench/disks.py --workers 1 2 --sync-ms 500 1000 --seconds 5 --clients 16

Real servers, whose syncs take that long, or fail half of the time during 0.2 s of each 0.5 s
(tests/support/injected.py).  Each client posts its next event, on a new connection, when the
last one is answered.  Lost is what was answered as stored and is in no file afterwards.
"""

import argparse
import time
from itertools import product

from driver import ROOT, bench_directory

from injected import Faults
from server import Load, Server

FAILING = Faults(sync_errors=0.5, bad_seconds=0.2, period_seconds=0.5)
APP = ["--pythonpath", str(ROOT / "tests/support"), "injected:create_app()"]


def measure(workers: int, faults: Faults, clients: int, seconds: float) -> str:
    """Return the cells of a row."""
    with bench_directory() as directory:
        file, healthy = directory / "faults.json", Faults()
        healthy.write(file)
        environ = {"FAULTS": str(file)}
        with Server(directory / "data", f"--workers={workers}", *APP, environ=environ) as server:
            with Load(server) as before:  # so that every worker has its file open
                before.wait_for(204, 20 * workers)
            faults.write(file)
            with Load(server, clients) as load:
                time.sleep(seconds)
            healthy.write(file)
            time.sleep(1.5)  # a worker that has lines to roll back does so with its next event
            with Load(server) as after:
                after.wait_for(204, 20 * workers)
            stored = set(server.projects())
    slowest = max(sent.seconds for sent in load.sent)
    acknowledged, refused = load.projects(204), load.projects(503)
    unanswered = len(load.sent) - len(acknowledged) - len(refused)
    lost = len(acknowledged - stored)
    return f"{len(acknowledged)} | {len(refused)} | {unanswered} | {lost} | {slowest:.1f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--sync-ms", type=int, nargs="+", default=[5, 100, 500, 700, 1000])
    parser.add_argument("--clients", type=int, nargs="+", default=[16, 1500])
    parser.add_argument("--seconds", type=float, default=6, help="of each measurement (6)")
    options = parser.parse_args()
    disks = [("failing", FAILING)]
    disks += [(f"{ms} ms", Faults(sync_seconds=ms / 1000)) for ms in options.sync_ms]
    print("| syncs | clients | workers | stored | refused | unanswered | lost | slowest s |")
    print("|---|--:|--:|--:|--:|--:|--:|--:|")
    for (name, faults), clients, workers in product(disks, options.clients, options.workers):
        cells = measure(workers, faults, clients, options.seconds)
        print(f"| {name} | {clients} | {workers} | {cells} |", flush=True)


if __name__ == "__main__":
    main()
