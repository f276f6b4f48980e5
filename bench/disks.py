"""Show what slow and failing disks do to one, two and three workers.

    python bench/disks.py
    python bench/disks.py --workers 1,2 --sync-ms 500,1000 --seconds 5 --clients 16

Real servers, whose syncs take that long, or fail half of the time during 0.2 s of each 0.5 s
(tests/support/injected.py).  Each client posts its next event, on a new connection, when the
last one is answered.  Lost is what was answered as stored and is in no file afterwards.
"""

import argparse
import asyncio
import contextlib
import json
import sys
import time
import uuid
from collections.abc import Iterator
from itertools import product
from pathlib import Path
from typing import NamedTuple

from driver import ROOT, bench_directory, free_port, our_server, serving

sys.path.append(str(ROOT / "tests/support"))
from injected import Faults

FAILING = Faults(sync_errors=0.5, bad_seconds=0.2, period_seconds=0.5)
EVENT = {"nodeVersion": "v20.20.2", "packages": [], "projectFramework": "vite"}
PATIENCE_SECONDS = 30


class Sent(NamedTuple):
    project: str
    status: int  # 0: the connection was lost
    seconds: float


class Result(NamedTuple):
    stored: int
    refused: int
    unanswered: int
    lost: int
    slowest_seconds: float


async def post_until(end: float, port: int, sent: list[Sent]) -> None:
    while (began := time.monotonic()) < end:
        project, status = uuid.uuid4().hex, 0
        body = json.dumps(EVENT | {"projectId": project})
        head = f"POST /cli HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(body)}\r\n"
        with contextlib.suppress(OSError, TimeoutError, IndexError):
            async with asyncio.timeout(PATIENCE_SECONDS):
                reader, writer = await asyncio.open_connection("127.0.0.1", port)
                try:
                    writer.write(f"{head}Connection: close\r\n\r\n{body}".encode())
                    status = int((await reader.read()).split(None, 2)[1])
                finally:
                    writer.close()
        sent.append(Sent(project, status, time.monotonic() - began))


async def load(port: int, clients: int, seconds: float) -> list[Sent]:
    sent: list[Sent] = []
    end = time.monotonic() + seconds
    await asyncio.gather(*(post_until(end, port, sent) for _ in range(clients)))
    return sent


@contextlib.contextmanager
def faulty_server(workers: int) -> Iterator[tuple[int, Path, Path]]:
    """Yield the port, the data directory and the file of faults of a server without faults yet."""
    with bench_directory() as directory:
        port, faults, data = free_port(), directory / "faults.json", directory / "data"
        Faults().write(faults)
        command, environ = our_server(port, data, workers)
        command += ["--pythonpath", str(ROOT / "tests/support"), "injected:create_app()"]
        with serving(command, port, directory, environ | {"FAULTS": str(faults)}):
            yield port, data, faults
            Faults().write(faults)  # or it would stop slowly


def measure(workers: int, faults: Faults, clients: int, seconds: float) -> Result:
    with faulty_server(workers) as (port, data, file):
        asyncio.run(load(port, clients=8, seconds=0.5))  # so that every worker has its file open
        faults.write(file)
        sent = asyncio.run(load(port, clients, seconds))
        Faults().write(file)
        time.sleep(1.5)  # a worker that has lines to roll back does so with its next event
        asyncio.run(load(port, clients=8, seconds=0.5))
        lines = [line for path in data.glob("events-*.jsonl") for line in path.open()]
    stored = {json.loads(line)["payload"]["projectId"] for line in lines}
    return Result(
        stored=sum(one.status == 204 for one in sent),
        refused=sum(one.status == 503 for one in sent),
        unanswered=sum(one.status not in (204, 503) for one in sent),
        lost=sum(one.status == 204 and one.project not in stored for one in sent),
        slowest_seconds=max(one.seconds for one in sent),
    )


def numbers(text: str) -> list[int]:
    return [int(part) for part in text.split(",") if part]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--workers", type=numbers, default=[1, 2, 3], help="1,2,3")
    parser.add_argument("--sync-ms", type=numbers, default=[5, 100, 500, 700, 1000])
    parser.add_argument("--clients", type=numbers, default=[16, 1500], help="16,1500")
    parser.add_argument("--seconds", type=float, default=6, help="of each measurement (6)")
    parser.add_argument("--no-failing", action="store_true", help="slow syncs only")
    options = parser.parse_args()
    slow = [(f"{ms} ms", Faults(sync_seconds=ms / 1000)) for ms in options.sync_ms]
    cases = [("failing", FAILING, options.clients[0])][options.no_failing :]
    cases += [(*disk, clients) for disk, clients in product(slow, options.clients)]
    print("| syncs | clients | workers | stored | refused | unanswered | lost | slowest s |")
    print("|---|--:|--:|--:|--:|--:|--:|--:|")
    for (name, faults, clients), workers in product(cases, options.workers):
        result = measure(workers, faults, clients, options.seconds)
        figures = " | ".join(f"{figure:,}" for figure in result[:-1])
        slowest = f"{result.slowest_seconds:.1f}"
        print(f"| {name} | {clients:,} | {workers} | {figures} | {slowest} |", flush=True)


if __name__ == "__main__":
    main()
