"""See that a worker's memory stays flat: post many events, and look at intervals.

    python bench/soak.py --events 1000000

One worker takes an app's and a command's events in turn from wrk, with a new
connection for each and from 10,000 browsers.
"""

import argparse
import sys

from driver import (
    Load,
    Server,
    bench_directory,
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

CLIENTS = 32
GROWTH_MB = 2.0  # since the first interval, in which what is kept is filled
MAX_RSS_MB = 60
AGENTS = 10_000


def worker_rss_mb(server: Server) -> float:
    return process_tree(server.pid)[-1].rss_mb


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--events", type=int, default=50_000, help="at least (50,000)")
    parser.add_argument("--seconds", type=int, default=10, help="of each interval (10)")
    options = parser.parse_args()
    require_tools("wrk")
    port, requests = free_port(), mixed_requests(AGENTS)
    print("|   events | resident MB | events/s |\n|--:|--:|--:|")
    with bench_directory() as directory:
        command, environ = our_server(port, directory)
        with serving(command, port, directory, environ) as server:
            print(f"| 1 | {worker_rss_mb(server):.1f} | |", flush=True)
            taken, sizes = 0, []
            while taken < options.events:
                load: Load = run_wrk(
                    port, requests, clients=CLIENTS, seconds=options.seconds, directory=directory
                )
                if load.refused or load.failed:
                    sys.exit(f"bench: {load.refused} refused, {load.failed} failed")
                taken += load.taken
                sizes.append(worker_rss_mb(server))
                rate = f"{load.events_per_second:.0f}"
                print(f"| {taken:,} | {sizes[-1]:.1f} | {rate} |", flush=True)
        stored = count_lines(directory)
    growth = sizes[-1] - sizes[0]
    figure = f"{growth:+.1f} MB since the first interval (want {GROWTH_MB} at most), "
    figure += f"{max(sizes):.1f} MB at most (want under {MAX_RSS_MB}); {stored:,} lines stored"
    met = growth <= GROWTH_MB and max(sizes) < MAX_RSS_MB and stored > taken
    print_goal(f"memory over {taken:,} events", figure, met)


if __name__ == "__main__":
    main()
