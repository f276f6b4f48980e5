"""Four situations beside load: whatever meets, what is acknowledged is in the files, once.

    MIXTURE_SEEDS=4:204 .venv/bin/pytest -n 4 tests/test_mixture.py

draws two hundred other mixtures; numbers of workers and modes of addresses are drawn, too.
"""

import os
from pathlib import Path

import pytest

from mixture import draw, run
from mixture.world import Mixture

pytestmark = pytest.mark.slow

SEEDS = range(*map(int, os.environ.get("MIXTURE_SEEDS", "0:4").split(":")))
ATTEMPTS = 3  # what happens at the same moment is not drawn


@pytest.mark.parametrize("mixture", [draw(seed) for seed in SEEDS], ids=str)
def test_nothing_acknowledged_is_lost_where_situations_meet(
    mixture: Mixture, tmp_path: Path
) -> None:
    assert run(mixture, tmp_path) == []


def test_the_mixtures_catch_a_collector_that_loses_lines_and_writes_invalid_ones(
    tmp_path: Path,
) -> None:
    planted = "cuts_off_what_others_appended removes_null_where_there_is_no_address"
    situations = ("syncs_fail", "files_are_moved", "clients_trickle")
    found = set()
    for seed in range(ATTEMPTS):
        mixture = Mixture(seed, situations, workers=3, mode="hashed", planted=planted)
        found |= {finding.partition(":")[0] for finding in run(mixture, tmp_path / str(seed))}
        if found >= {"lost", "invalid"}:
            return
    pytest.fail(f"found only {found}")
