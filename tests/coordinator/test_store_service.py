"""The store of a run's present round, as its members reach it: without connections."""

from __future__ import annotations

import asyncio

from rallypoint.core.store import (
    BAD_REQUEST,
    ROUND_ENDED,
    Get,
    NumKeys,
    Set,
    StoreFailure,
    StoreValue,
    Wait,
)
from rallypoint.core.values import Address, NodeId, Phase, Stamp
from rallypoint.ledger.memory import MemoryLedger
from rallypoint.wire import messages as wire
from tests.coordinator.lines import Line
from tests.coordinator.shared_ledger import CONFIG, new_coordinator, until
from tests.loops import VirtualLoop, run_virtual


def test_r4_a_call_of_another_round_does_not_reach_this_one() -> None:
    async def main() -> None:
        shared, coordinator = await new_coordinator(MemoryLedger(), 1)
        node = Line(coordinator)
        await node.formed()
        store = coordinator.runs["run"].store
        log = store.log
        assert log is not None
        stamp = node.stamp
        node.say(wire.Ready(node.stamp, 1, Address("127.0.0.1", 1), 1))
        await until(lambda: node.stamp.round == 2)
        assert log.is_over
        for number, each in enumerate([stamp, Stamp(stamp.ledger_id, stamp.term, 3)], 1):
            store.call(node._session, NodeId("a", 1), wire.StoreCall(each, number, Set("k", b"v")))
            await until(lambda number=number: node.count(wire.StoreAnswer) == number)  # type: ignore[misc]
            answer = node.said[-1]
            assert isinstance(answer, wire.StoreAnswer)
            assert isinstance(answer.result, StoreFailure)
            assert answer.result.code == ROUND_ENDED
        assert store.current is not None
        assert store.current.usage() == (0, 0)
        await shared.aclose()

    run_virtual(main())


def test_r4_a_call_after_the_last_round_reaches_no_store() -> None:
    async def main() -> None:
        shared, coordinator = await new_coordinator(MemoryLedger(), 1)
        node = Line(coordinator)
        await node.formed()
        coordinator.runs["run"].store.close()
        result = await node.answer_to(1, Get("k"))
        assert isinstance(result, StoreFailure)
        assert result.code == ROUND_ENDED
        await shared.aclose()

    run_virtual(main())


def test_r4_a_node_outside_the_round_does_not_reach_its_store() -> None:
    async def main() -> None:
        shared, coordinator = await new_coordinator(MemoryLedger(), 1)
        node = Line(coordinator)
        await node.formed()
        other = Line(coordinator, name="b")
        await until(lambda: other.count(wire.Welcome) > 0)
        result = await other.answer_to(1, Set("k", b"v"))
        assert isinstance(result, StoreFailure)
        assert result.code == BAD_REQUEST
        assert await node.answer_to(1, NumKeys()) == StoreValue(0)
        await shared.aclose()

    run_virtual(main())


def test_r5_a_call_under_a_lease_that_is_too_old_suspends_the_run_first() -> None:
    async def main() -> None:
        shared, coordinator = await new_coordinator(MemoryLedger(), 1)
        node = Line(coordinator)
        await node.formed()
        loop = asyncio.get_running_loop()
        assert isinstance(loop, VirtualLoop)
        loop._now_s += 2 * CONFIG.lease_ttl_s
        membership = coordinator.runs["run"].membership
        assert not membership.suspension
        node.say(wire.StoreCall(node.stamp, 1, Wait(("k",))))
        assert membership.suspension
        await until(lambda: membership.phase is Phase.ACTIVE)
        node.say(wire.StoreCall(node.stamp, 2, Set("k", b"v")))
        assert await node.answer_to(3, Get("k")) == StoreValue(b"v")
        await shared.aclose()

    run_virtual(main())
