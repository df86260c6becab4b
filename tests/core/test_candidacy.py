"""Chance decides which nodes become candidates: enough, but few, over many seeds."""

from __future__ import annotations

import random
import statistics

import pytest

from rallypoint.core.candidacy import candidate_after_s

CANDIDATES = 3
TTL_S = 5.0
DOUBLING_S = TTL_S / 10
SEEN_AFTER_S = 0.3
"""An engine that takes 100 ms for a write: a lease, the run's register, and a read of it."""
SEEDS = 300


def stand(seed: int, nodes: int, dead: float) -> list[float]:
    """When each live node would become a candidate after the vacancy, in order of time."""
    rng = random.Random(seed)
    alive = max(1, round(nodes * (1 - dead)))
    chances = (rng.random() for _ in range(alive))
    return sorted(candidate_after_s(each, nodes, CANDIDATES, DOUBLING_S) for each in chances)


def seen(times: list[float]) -> int:
    """How many have become candidates before the others see the first of them."""
    return sum(each <= times[0] + SEEN_AFTER_S for each in times)


@pytest.mark.parametrize("nodes", [10, 1_000, 10_000])
def test_about_the_wanted_number_of_nodes_become_candidates(nodes: int) -> None:
    counts = [seen(stand(seed, nodes, 0.0)) for seed in range(SEEDS // (nodes // 1_000 or 1))]
    assert 1.5 <= statistics.mean(counts) <= 4.5
    assert max(counts) <= 12


@pytest.mark.parametrize("dead", [0.3, 0.7, 0.99])
@pytest.mark.parametrize("nodes", [2, 10, 1_000, 10_000])
def test_some_node_is_a_candidate_in_seconds_whichever_are_dead(nodes: int, dead: float) -> None:
    times = [stand(seed, nodes, dead) for seed in range(SEEDS // (nodes // 1_000 or 1))]
    first = [each[0] for each in times]
    assert statistics.median(first) <= 4.0
    assert max(first) <= 8.0
    assert statistics.mean(map(seen, times)) <= 4.5


def test_the_last_of_ten_thousand_nodes_becomes_a_candidate() -> None:
    times = [stand(seed, 10_000, 0.9999)[0] for seed in range(SEEDS)]
    assert max(times) <= 9.0


@pytest.mark.parametrize("nodes", [1, 2, 3])
def test_in_a_small_run_all_are_candidates_at_once(nodes: int) -> None:
    assert {
        candidate_after_s(each / 100, nodes, CANDIDATES, DOUBLING_S) for each in range(100)
    } == {0}


def test_one_candidate_is_about_one() -> None:
    counts = []
    for seed in range(SEEDS):
        rng = random.Random(seed)
        times = sorted(candidate_after_s(rng.random(), 1_000, 1, DOUBLING_S) for _ in range(1_000))
        counts.append(seen(times))
    assert statistics.mean(counts) <= 2.5


def test_a_greater_chance_means_a_longer_wait() -> None:
    times = [
        candidate_after_s(each / 1_000, 1_000, CANDIDATES, DOUBLING_S) for each in range(1_000)
    ]
    assert times == sorted(times)
    assert times[0] == 0.0
