"""Measure what an event costs in process, without HTTP: CPU, and what it must not depend on.

    python bench/inprocess.py

Parsing, validation, enrichment and serialisation are what the app's collect() does, in a
request context and with a store that keeps nothing, with what shipped clients sent.  The
day's file is grown to 5 GB: of allocated blocks that hold nothing, with real lines behind
them.  Figures are medians.
"""

import argparse
import gc
import os
import shutil
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from typing import Any

from driver import ROOT, Request, bench_directory, mixed_requests, print_goal

sys.path.insert(0, str(ROOT))

import app as ours
import parsing
import storage

GOAL_US = 60
SAME_RATIO = 1.25  # above that, a cost is not called flat
DISTINCT_AGENTS = 10_000
REAL_BYTES = 32 * 2**20  # at the file's end: more than the storage looks at when it opens one
EVENTS_PER_PASS = 2000
TAKEN = ours.NO_CONTENT


def cpu_us(call: Callable[[], object], times: int) -> float:
    """Return the microseconds of CPU that a call takes, all threads together."""
    began = time.process_time()
    for _ in range(times):
        call()
    return (time.process_time() - began) / times * 1e6


class Encoder:
    """Stands in for the store, and does the part of its work that is counted here."""

    def submit(self, event: dict[str, Any]) -> None:
        self.event = event
        storage.encode(event)


def collect(request: Request) -> Callable[[], object]:
    """Return what handles an event; to be called in the request's context."""
    body = request.body
    if request.path == "/cli":
        return lambda: ours.collect("cli", lambda: parsing.parse_cli(body.encode()), TAKEN)
    return lambda: ours.collect("core", lambda: parsing.parse_core(body), TAKEN)


@contextmanager
def in_context(request: Request) -> Iterator[None]:
    peer = {"REMOTE_ADDR": "127.0.0.1"}
    ours.app.extensions["collector"].store = Encoder()
    with ours.app.test_request_context(
        request.path, method="POST", headers=request.headers, environ_base=peer
    ):
        yield


def cost_of(requests: Iterable[Request], times: int) -> float:
    """Return the CPU of one event, on average over the requests."""
    costs = []
    for request in requests:
        with in_context(request):
            costs.append(cpu_us(collect(request), times))
    return sum(costs) / len(costs)


def measure_lines(rounds: int) -> None:
    core, cli = mixed_requests(agents=1)
    print("\n| CPU µs of one event | core | cli |\n|---|--:|--:|")
    rows: dict[str, list[list[float]]] = {}
    for _ in range(rounds):
        for request in (core, cli):
            for title, call in steps_of(request).items():
                with in_context(request):
                    call()  # what is made once
                    cost = cpu_us(call, EVENTS_PER_PASS)
                rows.setdefault(title, [[], []])[request is cli].append(cost)
    for title, costs in rows.items():
        cells = [f"{median(each):.1f}" if each else "" for each in costs]
        print(f"| {title} | {' | '.join(cells)} |")
    worst = max(median(each) for each in rows[WHOLE])
    print_goal(
        "an event in process", f"{worst:.1f} µs of CPU (want under {GOAL_US})", worst < GOAL_US
    )


WHOLE = "parsing, validation, enrichment, serialisation"


def steps_of(request: Request) -> dict[str, Callable[[], object]]:
    event = event_of(request)
    here, day = ours.app.extensions["collector"], event["received_at"][:10]
    environ = {"REMOTE_ADDR": "127.0.0.1"}
    steps = {WHOLE: collect(request)}
    if request.path == "/cli":
        body = request.body.encode()
        steps["… parsing and validation"] = lambda: parsing.parse_cli(body)
    else:
        agent, origin = request.headers["User-Agent"], request.headers["Origin"]
        steps["… parsing and validation"] = lambda: parsing.parse_core(request.body)
        steps["… host name"] = lambda: parsing.parse_hostname(origin)
        steps["… user agent, seen before"] = lambda: parsing.describe_agent(agent)
    steps["… address"] = lambda: ours.stored_address(here, environ, day)
    steps["… serialisation"] = lambda: storage.encode(event)
    return steps


def event_of(request: Request) -> dict[str, Any]:
    with in_context(request):
        collect(request)()
        event: dict[str, Any] = ours.collector().store.event
    return event


def measure_agents() -> None:
    """Every agent is new in the first pass; in the second the oldest are forgotten again."""
    requests = mixed_requests(agents=DISTINCT_AGENTS)[::2]
    same = cost_of([requests[0]] * 100, 100)
    new, again = cost_of(requests, 1), cost_of(requests, 1)
    print(f"\n| user agents | CPU µs of one core event |\n|---|--:|\n| one | {same:.1f} |")
    print(f"| {DISTINCT_AGENTS:,} different | {new:.1f} |\n| the same ones again | {again:.1f} |")
    ratio = max(new, again) / same
    figure = f"{ratio:.2f} times the cost of one in process, "
    figure += f"{max(new, again) - same:+.0f} µs an event (want {SAME_RATIO} at most)"
    print_goal(f"{DISTINCT_AGENTS:,} user agents", figure, ratio <= SAME_RATIO)


def measure_growth(gigabytes: float, rounds: int) -> None:
    """Append to an empty file and to a large one, in turn."""
    size = int(gigabytes * 1e9)
    with bench_directory() as directory:
        if shutil.disk_usage(directory).free < size + 2**30:
            sys.exit(f"bench: {gigabytes} GB for a file are not free, and one more")
        event = event_of(mixed_requests(agents=1)[0])
        name = f"events-{event['received_at'][:10]}.jsonl"
        stores = []
        for title, start in ("empty", 0), ("large", size):
            (directory / title).mkdir()
            if start:
                fill(directory / title / name, start, f"{storage.encode(event)}\n".encode())
            stores.append(storage.Store(directory / title))
        first, cpu, wall = [], ([], []), ([], [])
        for store in stores:
            began = time.perf_counter()
            store.append(event)
            first.append((time.perf_counter() - began) * 1e3)
        for _ in range(rounds):
            for i, store in enumerate(stores):
                began = time.perf_counter()
                cpu[i].append(cpu_us(lambda store=store: store.append(event), 500))
                wall[i].append((time.perf_counter() - began) / 500 * 1e6)
        for store in stores:
            store.close()
    print("\n| the day's file | CPU µs of one append | µs with its sync | first append, ms |")
    print("|---|--:|--:|--:|")
    for i, title in enumerate(("empty", f"{gigabytes:g} GB")):
        print(f"| {title} | {median(cpu[i]):.0f} | {median(wall[i]):.0f} | {first[i]:.1f} |")
    ratio = median(large / empty for empty, large in zip(*cpu, strict=True))
    waited = median(large / empty for empty, large in zip(*wall, strict=True))
    figure = f"{ratio:.2f} times the CPU, {waited:.2f} times the wait of an empty one "
    figure += f"(want {SAME_RATIO} at most)"
    print_goal(f"a file of {gigabytes:g} GB", figure, max(ratio, waited) <= SAME_RATIO)


def fill(path: Path, size: int, line: bytes) -> None:
    """Make a file of about that size, whose last part is lines."""
    tail = line * (REAL_BYTES // len(line))
    with path.open("wb") as file:
        os.posix_fallocate(file.fileno(), 0, size - len(tail))
        file.seek(size - len(tail) - 1)
        file.write(b"\n" + tail)
        os.fsync(file.fileno())


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=7, help="the median counts (7)")
    parser.add_argument("--gigabytes", type=float, default=5, help="of the large file (5)")
    options = parser.parse_args()
    gc.freeze()
    measure_lines(options.rounds)
    measure_agents()
    measure_growth(options.gigabytes, options.rounds)


if __name__ == "__main__":
    main()
