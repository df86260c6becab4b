"""Many candidates and one engine, with all faults drawn from one seed.

Requests and answers are lost, delayed, repeated and overtake each other. Processes freeze while
other clocks go on, wake with all that has arrived meanwhile, die, and start again under another
name. Candidates are cut off from the engine. Clocks differ in rate and offset. Owners commit
rounds, close the run, hand over and resign. In the first phase the rules must hold (safety). Then
all faults heal, and soon every live candidate must know the one owner (liveness). To run one seed:

    python -m tests.core.election_sim SEED
"""

from __future__ import annotations

import sys

from rallypoint.core import election as e
from tests.core.election_engine import SETTLE_S, TIMING
from tests.core.election_world import World


class SearchingNode:
    """A node without a coordinator, after the faults have healed."""

    def __init__(self, world: World, run: str) -> None:
        self.world, self.run = world, run
        self.attached = ""
        self.is_over = False
        self._discovery = e.Discovery("node-a", TIMING, candidates=3)
        self._seek()

    def _seek(self) -> None:
        self._discovery.search(self.world.now_s, self.world.rng.random())
        self._rest()

    def _rest(self) -> None:
        due_s = self._discovery.next_tick_s()
        if due_s is not None:
            self.world.at(max(0.0, due_s - self.world.now_s), self._tick)

    def _tick(self) -> None:
        self._do(self._discovery.tick(self.world.now_s, self.world.rng.random()))
        self._rest()

    def _do(self, findings: list[e.DiscoveryAction]) -> None:
        now_s, jitter = self.world.now_s, self.world.rng.random()
        logical = self.world.engine._logical()
        for finding in findings:
            match finding:
                case e.ReadRun():
                    found = logical.get(f"run/{self.run}")
                    self._do(self._discovery.run_read(finding, found, now_s, jitter))
                case e.ReadLease(process=process):
                    found = logical.get(f"lease/{process}")
                    self._do(self._discovery.lease_read(finding, found, now_s, jitter))
                case e.AttachTo(lease=e.Lease(process=process)):
                    live = [each for each in self.world.processes if each.is_awake]
                    if process in [each.holder.process for each in live]:
                        self.attached = process
                    else:
                        # As a node does if it cannot attach to the owner that it found.
                        self._discovery.search_again(now_s, jitter)
                case e.RunOver():
                    self.is_over = True


def run(seed: int) -> World:
    """One seed, both phases. Raises AssertionError (of which InvariantViolation is one)."""
    world = World(seed)
    world.chaos()
    world.heal()
    node = SearchingNode(world, world.runs[0])
    if world.plan.are_clocks_wild:
        # With such clocks any owner may be deposed; only the rules must hold.
        world.run_until(world.now_s + SETTLE_S)
        return world
    world.run_until(world.now_s + SETTLE_S)
    problems = world.why_not_settled()
    assert not problems, problems
    owners = [world.checker.owner(each) for each in world.runs]
    assert node.is_over or node.attached, "a node has found no coordinator"
    world.run_until(world.now_s + TIMING.ttl_s / 2)
    # Without faults no owner is deposed.
    assert owners == [world.checker.owner(each) for each in world.runs]
    assert not world.why_not_settled()
    return world


if __name__ == "__main__":
    done = run(int(sys.argv[1]))
    print(done.plan)
    print("\n".join(done.checker.history))
