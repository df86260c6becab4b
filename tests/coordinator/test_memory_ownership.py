"""Runs in memory: records are safe at once, and a commit is answered in its order."""

from __future__ import annotations

import asyncio
import gc
import weakref
from collections.abc import Callable

from rallypoint.clock import StallProofClock
from rallypoint.coordinator.config import CoordinatorConfig
from rallypoint.coordinator.coordinator import Coordinator
from rallypoint.coordinator.hosted_run import HostedRun
from rallypoint.coordinator.memory_ownership import MemoryOwnership
from rallypoint.core import effects as do
from rallypoint.core import events as on
from rallypoint.core.values import Address, NodeId, NodeInfo, Outcome, RunSettings

ALONE = RunSettings(min_nodes=1, max_nodes=1)


def coordinator_over(ownership: MemoryOwnership, **more: float) -> Coordinator:
    return Coordinator(
        CoordinatorConfig(**more),  # type: ignore[arg-type]
        ownership,
        clock=StallProofClock(lambda: 0.0),
    )


def recorded_steps(run: HostedRun) -> list[tuple[type, type]]:
    """What happens from now on: the type of each event, and of each of its effects."""
    happened: list[tuple[type, type]] = []
    step = run.membership.step

    def noting(event: on.Event, now_s: float) -> list[do.Effect]:
        happened.append((on.Event, type(event)))
        effects = step(event, now_s)
        happened.extend((do.Effect, type(effect)) for effect in effects)
        return effects

    run.membership.step = noting  # type: ignore[method-assign]
    return happened


def ready(run: HostedRun, name: str = "a") -> None:
    run.post(on.NodeAttached(NodeInfo(name, 1, "host"), ALONE, 1))
    run.post(on.NodeReady(NodeId(name, 1), 0, Address("host", 1), 1))


def test_a_commit_is_answered_after_the_event_that_caused_it() -> None:
    """Without an event loop, too: the answer is an event, and no call within the step."""
    coordinator = coordinator_over(MemoryOwnership())
    run = coordinator.open_run("run")
    happened = recorded_steps(run)
    ready(run)
    kinds = [kind for _, kind in happened]
    committed = kinds.index(on.Committed)
    assert kinds.index(do.Commit) < committed < kinds.index(do.Publish)
    events = [kind for group, kind in happened if group is on.Event]
    assert events == [on.NodeAttached, on.NodeReady, on.Committed]
    run.post(on.CloseRequested("ann", Outcome.STOPPED, "enough"))
    assert run.is_closed


def test_a_round_is_published_in_a_later_turn_of_the_loop() -> None:
    """The connection whose node was ready last is not charged for telling all the others."""

    async def main() -> None:
        ownership = MemoryOwnership(call_soon=asyncio.get_running_loop().call_soon)
        run = coordinator_over(ownership).open_run("run")
        ready(run)
        assert run.membership.number == 0
        await asyncio.sleep(0)
        assert run.membership.number == 1

    asyncio.run(main())


def test_a_run_removed_during_a_commit_gets_no_answer() -> None:
    later: list[Callable[[], None]] = []
    coordinator = coordinator_over(MemoryOwnership(call_soon=later.append))
    run = coordinator.open_run("run")
    failed: list[Exception] = []
    run.fail = failed.append  # type: ignore[assignment,method-assign]
    ready(run)
    coordinator.drop_run(run)
    for callback in later:
        callback()
    assert len(later) == 1
    assert not failed
    assert run.membership.number == 0
    assert not coordinator.budget.used


def test_r1_r13_a_run_that_begins_again_in_memory_has_higher_tokens() -> None:
    coordinator = coordinator_over(MemoryOwnership())
    for number in (1, 2, 3):
        run = coordinator.open_run("run")
        ready(run)
        assert (run.membership.term, run.membership.number) == (number, number)
        run.fail(ValueError("a bug"))
        assert "run" not in coordinator.runs


def test_a_run_that_is_forgotten_leaves_memory_at_once() -> None:
    """Its store may have gigabytes. The garbage collector counts objects, and not their bytes."""
    coordinator = coordinator_over(MemoryOwnership())
    run = coordinator.open_run("run")
    ready(run)
    left = [weakref.ref(each) for each in (run, run.membership, run.store.current)]
    gc.disable()
    try:
        coordinator.drop_run(run)
        del run
        assert [each() for each in left] == [None, None, None]
    finally:
        gc.enable()


def test_each_process_has_a_ledger_id_of_its_own() -> None:
    drawn = {MemoryOwnership().ledger_id for _ in range(3)}
    assert len(drawn) == 3
    assert coordinator_over(MemoryOwnership("given")).ledger_id == "given"
