"""The marks of a round's members go through a real ledger, to another coordinator (A3).

In virtual time, as shared_ledger.py.
"""

from __future__ import annotations

import asyncio

from rallypoint.core import events as on
from rallypoint.core.marking import ranks_in
from rallypoint.core.values import Failure, FailureKind, MemberState, NodeId, Phase
from tests.coordinator.large_run import NODES, CountingLedger, come, met
from tests.coordinator.shared_ledger import new_owner, until
from tests.loops import run_virtual


def node(i: int) -> NodeId:
    return NodeId(f"n{i:04}", 1)


def test_many_done_nodes_need_few_swaps_and_are_not_awaited_later() -> None:
    async def main() -> None:
        ledger = CountingLedger()
        first, coordinator = await new_owner(ledger, 1)
        await met(ledger, coordinator)
        before = await ledger.head()
        ledger.unsure.append("runs/")
        for i in range(NODES - 1):
            coordinator.runs["run"].post(on.NodeDone(node(i), 1))
        while len(ranks_in((await ledger.head()).marks.done)) < NODES - 1:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
        after = await ledger.head()
        assert after.sequence - before.sequence == 2
        assert after.table == before.table
        await first.aclose()

        second, other = await new_owner(ledger, 2)
        membership = other.runs["run"].membership
        states = [member.state for member in membership.roster]
        assert states.count(MemberState.DONE) == NODES - 1
        come(other)
        last = node(NODES - 1)
        other.runs["run"].post(on.NodeDone(last, 1))
        await until(lambda: membership.phase is Phase.CLOSED)
        await second.aclose()

    run_virtual(main())


def test_a_broken_round_stays_broken_after_a_takeover_and_is_charged_once() -> None:
    async def main() -> None:
        ledger = CountingLedger()
        first, coordinator = await new_owner(ledger, 1)
        await met(ledger, coordinator)
        run = coordinator.runs["run"]
        run.post(on.WorkerFailed(node(0), 1, Failure(FailureKind.COMMUNICATION, "gloo")))
        run.post(on.NodeLeft(node(1), "preempted"))
        while (await ledger.head()).marks.ended is None:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
        head = await ledger.head()
        assert ranks_in(head.marks.gone) == {1}
        await first.aclose()

        second, other = await new_owner(ledger, 2)
        membership = other.runs["run"].membership
        assert membership.phase is Phase.GATHERING
        assert membership.roster.get("n0001") is None
        assert membership.restart_count == head.restarts
        await second.aclose()

    run_virtual(main())
