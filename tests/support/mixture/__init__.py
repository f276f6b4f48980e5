"""Situations in which a collector may lose events, four at once beside load on a real server.

Every client notes which of its events were acknowledged, every situation what it took away.
`run` says afterwards what is wrong with the files.  Knows only the contract.
"""

import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from random import Random

from mixture.judgement import judge
from mixture.situations import SITUATIONS
from mixture.world import Mixture, World, send_events, settles

CLIENTS = 4
RUN_SECONDS = 2
TOGETHER = 4  # situations in a run


def draw(seed: int) -> Mixture:
    """Draw situations; each run of consecutive seeds takes every situation in turn."""
    names = sorted(SITUATIONS)
    runs = len(names) // TOGETHER
    Random(seed // runs).shuffle(names)
    drawn = tuple(names[seed % runs * TOGETHER :][:TOGETHER])
    random = Random(seed)
    mode = "hashed" if "keys_are_deleted" in drawn else random.choice(["full", "hashed"])
    return Mixture(seed, drawn, random.randint(1, 3), mode)


def run(mixture: Mixture, root: Path) -> list[str]:
    """Return what went wrong, and print what happened."""
    world = World(root, mixture)
    world.make_old_days()
    acts = {name: SITUATIONS[name] for name in mixture.situations}
    acts |= {f"client {number}": send_events for number in range(CLIENTS)}
    try:
        world.servers.append(world.start())
        with ThreadPoolExecutor(len(acts)) as pool:
            running = {
                name: pool.submit(act, world, Random(f"{mixture.seed} {name}"))
                for name, act in acts.items()
            }
            time.sleep(RUN_SECONDS)
            settles(lambda: world.happened >= world.awaited)
            world.over.set()
        for name, act in running.items():
            if error := act.exception():
                world.findings.append(f"{name}: {error!r}")
        world.calm_down()
    finally:
        for server in world.started:
            server.kill()
    answers = Counter(sent.status for sent in world.sent if sent.began)
    slowest = max(sent.ended - sent.began for sent in world.sent)
    print(f"{mixture}: {dict(answers)}, slowest answer {slowest:.1f} s")
    return [*world.findings, *judge(world)]
