"""Elections with all kinds of faults, by seed. A failure names its seed. To run that again:

python -m tests.core.election_sim SEED
"""

from __future__ import annotations

import pytest

from tests.core import election_sim
from tests.kinds import seeds

SEEDS_EACH = 100


@pytest.mark.parametrize("chunk", seeds(5, verify=22, long=220))
def test_no_rule_is_broken_and_all_agree_once_the_faults_heal(chunk: int) -> None:
    for seed in range(chunk * SEEDS_EACH, (chunk + 1) * SEEDS_EACH):
        try:
            election_sim.run(seed)
        except Exception as error:
            raise AssertionError(
                f"seed {seed}: {error}\nagain: python -m tests.core.election_sim {seed}"
            ) from error


def test_one_seed_is_one_history() -> None:
    first, second = election_sim.run(7), election_sim.run(7)
    assert first.steps == second.steps
    assert first.checker.history == second.checker.history


def test_the_seeds_reach_each_kind_of_fault() -> None:
    worlds = [election_sim.run(seed) for seed in range(60)]
    plans = [world.plan for world in worlds]
    terms = [world.checker.owner(run)[1] for world in worlds for run in world.runs]
    closes = [world.checker.is_closed(run) for world in worlds for run in world.runs]
    assert {plan.has_one_register for plan in plans} == {True, False}
    assert {plan.are_clocks_wild for plan in plans} == {True, False}
    assert max(terms) >= 5
    assert sum(world.removed for world in worlds) >= 1
    assert sum(terms) > 2 * len(terms)
    assert any(closes)
    assert not all(closes)
