"""Pairs of situations beside load: whatever meets, what is acknowledged is in the files, once.

    MIXTURE_SEEDS=12:212 .venv/bin/pytest -n 4 tests/test_mixture.py

draws two hundred other pairs; numbers of workers and modes of addresses are drawn, too.
"""

import os
from pathlib import Path

import pytest

from mixture import draw, run
from mixture.world import Mixture

pytestmark = pytest.mark.slow

SEEDS = range(*map(int, os.environ.get("MIXTURE_SEEDS", "0:12").split(":")))
ATTEMPTS = 3  # what happens at the same moment is not drawn


@pytest.mark.parametrize("mixture", [draw(seed) for seed in SEEDS], ids=str)
def test_nothing_acknowledged_is_lost_where_two_situations_meet(
    mixture: Mixture, tmp_path: Path
) -> None:
    assert run(mixture, tmp_path) == []


@pytest.mark.parametrize(
    ("planted", "pair", "workers", "mode", "finding"),
    [
        pytest.param(
            "cuts_off_what_others_appended",
            ("syncs_fail", "files_are_moved"),
            3,
            "full",
            "lost",
            id="cuts off what others appended",
        ),
        pytest.param(
            "runs_share_a_draft",
            ("somebody_is_forgotten", "work_files_are_deleted"),
            1,
            "full",
            "lost",
            id="lets two runs share a draft",
        ),
        pytest.param(
            "removes_null_where_there_is_no_address",
            ("clients_trickle", "files_are_moved"),
            1,
            "hashed",
            "invalid",
            id="removes null where there is no address",
        ),
        pytest.param(
            "keeps_refusals_that_no_job_will_write",
            ("no_thread_starts", "refusals_flood"),
            1,
            "none",
            "afterwards",
            id="keeps refusals that no job will write",
        ),
        pytest.param(
            "keeps_keys_in_memory",
            ("keys_are_deleted", "the_directory_is_renamed"),
            2,
            "hashed",
            "hash",
            id="keeps keys in memory",
        ),
    ],
)
def test_the_pairs_catch_a_collector_that(
    planted: str,
    pair: tuple[str, str],
    workers: int,
    mode: str,
    finding: str,
    tmp_path: Path,
) -> None:
    mixtures = [Mixture(seed, pair, workers, mode, planted=planted) for seed in range(ATTEMPTS)]

    assert any(
        found.startswith(finding)
        for mixture in mixtures
        for found in run(mixture, tmp_path / str(mixture.seed))
    )
