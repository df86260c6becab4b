"""The coordinator dies while a round is being formed, at each step of that: it is formed once."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.failover.fleet import HERE, Fleet

NODES = 4
TTL_S = 1.0
GRACE_S = 6.0
LAST_CALL_S = 1.0
BEFORE_ALL_ARE_THERE = ("first_read", "before_claim", "after_claim")
"""The first node is enough for these; the others are still being started."""
STEPS = (
    *BEFORE_ALL_ARE_THERE,
    "last_ready",
    "commit",
    "before_swap",
    "after_swap",
    "publish",
    "half_published",
)
FORMED_WITHIN_S = LAST_CALL_S + TTL_S + GRACE_S + 10.0
"""R7, on a machine that pauses. Its bound itself is held where the clock is virtual."""

pytestmark = pytest.mark.processes
# `make test` has the step at which most is under way, once for each engine.
STEPS_BY_SET = [
    pytest.param(step, marks=() if step == "commit" else pytest.mark.verify) for step in STEPS
]


@pytest.mark.parametrize("step", STEPS_BY_SET)
def test_one_round_has_all_ready_nodes(
    step: str, engine: Callable[[], Fleet], tmp_path: Path
) -> None:
    fleet = engine()
    fleet.machine.env |= {
        "RALLYPOINT_LEASE_TTL": str(TTL_S),
        "RALLYPOINT_ATTACH_GRACE": str(GRACE_S),
    }
    marker = tmp_path / "died"
    program = (str(HERE / "faulty_serve.py"), step, str(marker))
    try:
        fleet.serve(program)
        fleet.serve(program)
        fleet.start(NODES)
        fleet.wait(marker.exists)
        died_s = time.monotonic()
        fleet.wait(lambda: all(agent.first("formed") for agent in fleet.agents))
        formed = [agent.log.events("formed") for agent in fleet.agents]
        if step not in BEFORE_ALL_ARE_THERE:
            assert max(each[0]["at_s"] for each in formed) - died_s < FORMED_WITHIN_S
        told = fleet.at_work(1)
        assert sum(replica.is_alive for replica in fleet.replicas) == 1
        assert {tuple(sorted(each["members"])) for each in told} == {
            tuple(f"node{number}" for number in range(NODES))
        }
        fleet.counts_since(time.monotonic())
        # R1: every node got one round, and got it once.
        assert len({(each["round"], each["digest"]) for those in formed for each in those}) == 1
        assert all(len(agent.log.events("formed")) == 1 for agent in fleet.agents)
        status = fleet.is_in_phase("active")
        assert (status["round"], status["phase"], status["nodes"]) == (1, "active", NODES)
        fleet.check_counter(1)
        fleet.check_rounds()
    finally:
        fleet.close()
