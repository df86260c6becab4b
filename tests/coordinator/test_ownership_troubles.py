"""A shared ledger that does not take what it is given, or loses it: without connections."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from rallypoint.coordinator import owned_runs, store_log, takeover
from rallypoint.coordinator.log_reader import RETRY_S
from rallypoint.coordinator.log_records import (
    Header,
    decode_record,
)
from rallypoint.coordinator.round_log import first_log
from rallypoint.core import events as on
from rallypoint.core import tables
from rallypoint.core.effects import Effect
from rallypoint.core.election import decode_lease, decode_run, encode, revoked_by
from rallypoint.core.membership import Membership
from rallypoint.core.reasons import RefusalCode
from rallypoint.core.store import (
    ROUND_ENDED,
    Add,
    Barrier,
    Check,
    Set,
    StoreFailure,
    StoreValue,
    Wait,
)
from rallypoint.core.suspension import SuspensionCause
from rallypoint.core.values import Address, Outcome, Phase, Stamp
from rallypoint.errors import (
    LedgerFullError,
    LedgerLimitError,
    LedgerUnreachableError,
)
from rallypoint.ledger.contract import AppendOutcome, SwapOutcome, Versioned
from rallypoint.ledger.keys import lease_key
from rallypoint.ledger.memory import MemoryLedger
from rallypoint.wire import messages as wire
from tests.coordinator.lines import Line
from tests.coordinator.shared_ledger import CONFIG, has_begun, new_coordinator, new_owner, until
from tests.coordinator.troubled_ledger import LOG, Troubled
from tests.loops import run_virtual


def test_a_commit_that_does_not_fit_suspends_the_run_with_the_reason() -> None:
    async def main() -> None:
        ledger = Troubled()
        shared, coordinator = await new_coordinator(ledger, 1)
        ledger.swapping = LedgerLimitError("too large", hint="use another ledger")
        node = Line(coordinator)
        await until(lambda: any(isinstance(each, wire.Welcome) for each in node.said))
        node.say(wire.Ready(node.stamp, 0, Address("127.0.0.1", 1), 1))
        membership = coordinator.runs["run"].membership
        await until(lambda: membership.phase is Phase.SUSPENDED)
        assert "too large" in membership.suspended_reason
        assert "use another ledger" in membership.suspended_reason
        ledger.swapping = None
        await until(lambda: any(isinstance(each, wire.Formed) for each in node.said))
        await asyncio.sleep(RETRY_S)
        assert _sequence(ledger) == 1, "what is in the ledger is not given to it again"
        await shared.aclose()

    run_virtual(main())


def test_a_close_that_did_not_fit_is_written_when_there_is_room() -> None:
    async def main() -> None:
        ledger = Troubled()
        shared, coordinator = await new_coordinator(ledger, 1)
        node = Line(coordinator)
        await node.formed()
        run, before = coordinator.runs["run"], _sequence(ledger)
        ledger.swapping = LedgerLimitError("too large", hint="use another ledger")
        node.say(wire.CloseRun(node.stamp, Outcome.SUCCEEDED, "trained"))
        await until(lambda: run.membership.phase is Phase.SUSPENDED)
        ledger.swapping = None
        await until(lambda: run.is_closed)
        await asyncio.sleep(RETRY_S)
        assert _sequence(ledger) == before + 1
        assert coordinator.runs["run"] is run
        assert not node.refusals()
        await shared.aclose()

    run_virtual(main())


def test_a_record_that_the_engine_refuses_waits_for_the_engine() -> None:
    async def main() -> None:
        ledger = Troubled()
        shared, coordinator = await new_coordinator(ledger, 1)
        node = Line(coordinator)
        await node.formed()
        ledger.appending = LedgerLimitError("too large")
        node.say(wire.StoreCall(node.stamp, 1, Set("k", b"v")))
        membership = coordinator.runs["run"].membership
        await until(lambda: membership.phase is Phase.SUSPENDED)
        assert not any(isinstance(each, wire.StoreAnswer) for each in node.said)
        ledger.appending = None
        await until(lambda: any(isinstance(each, wire.StoreAnswer) for each in node.said))
        await until(lambda: membership.phase is Phase.ACTIVE)
        await shared.aclose()

    run_virtual(main())


def test_a_missing_log_ends_the_round_with_the_reason() -> None:
    """A successor would not find the acknowledged writes, so the round does not go on.

    It used to suspend the run until the log was put back, which no person can be asked to do.
    """

    async def main() -> None:
        ledger = Troubled()
        shared, coordinator = await new_coordinator(ledger, 1)
        node = Line(coordinator)
        await node.formed()
        await node.answer_to(1, Set("k", b"v"))
        ledger._logs.pop(LOG)
        node.say(wire.StoreCall(node.stamp, 2, Set("k", b"w")))
        await until(lambda: bool(node.broken()))
        (change,) = node.broken()
        assert "store was lost" in str(change)
        assert LOG in str(change)
        assert not change.charged
        node.say(wire.Ready(node.stamp, 1, Address("127.0.0.1", 1), 1))
        await until(lambda: node.stamp.round == 2)
        assert await node.answer_to(3, Check(("k",))) == StoreValue(False)
        assert await node.answer_to(4, Set("k", b"x")) == StoreValue(None)
        await shared.aclose()

    run_virtual(main())


def test_r5_a_log_dropped_by_a_successor_ends_no_round() -> None:
    """Its owner is deposed, and has yet to see that: its nodes may be in the successor's round."""

    async def main() -> None:
        ledger = Troubled()
        shared, coordinator = await new_coordinator(ledger, 1)
        node = Line(coordinator)
        await node.formed()
        await node.answer_to(1, Set("k", b"v"))
        key = lease_key(shared.lease_manager.process)
        lease = await ledger.read(key)
        assert lease is not None
        revoked = revoked_by(decode_lease(lease.value), "successor")
        await ledger.swap(key, lease.version, encode(revoked))
        ledger._logs.pop(LOG)
        node.say(wire.StoreCall(node.stamp, 2, Set("k", b"w")))
        await until(lambda: bool(node.refusals()))
        assert [each.code for each in node.refusals()] == [RefusalCode.MOVED]
        assert not node.broken()
        await shared.aclose()

    run_virtual(main())


@pytest.mark.parametrize("ends", ["the round", "the run"])
def test_a_wait_is_answered_when_its_store_ends(ends: str) -> None:
    """Its node may be of a release that waits for the answer."""

    async def main() -> None:
        ledger = Troubled()
        shared, coordinator = await new_coordinator(ledger, 1)
        node = Line(coordinator)
        await node.formed()
        node.say(wire.StoreCall(node.stamp, 1, Wait(("never",))))
        if ends == "the round":
            node.say(wire.Ready(node.stamp, 1, Address("127.0.0.1", 1), 1))
        else:
            node.say(wire.CloseRun(node.stamp, Outcome.STOPPED, "enough"))
        await until(lambda: any(isinstance(each, wire.StoreAnswer) for each in node.said))
        (answer,) = [each for each in node.said if isinstance(each, wire.StoreAnswer)]
        assert answer.request_id == 1
        assert isinstance(answer.result, StoreFailure)
        assert answer.result.code == ROUND_ENDED
        await shared.aclose()

    run_virtual(main())


def test_a_barriers_timeout_is_logged_before_it_is_answered() -> None:
    """R10, R11: a successor gives the same answer about the broken barrier."""

    async def main() -> None:
        ledger = Troubled()
        shared, coordinator = await new_coordinator(ledger, 1)
        node = Line(coordinator)
        await until(lambda: any(isinstance(each, wire.Welcome) for each in node.said))
        node.say(wire.Ready(node.stamp, 0, Address("127.0.0.1", 1), workers=2))
        await until(lambda: any(isinstance(each, wire.Formed) for each in node.said))
        node.say(wire.StoreCall(node.stamp, 1, Barrier("all", 0), timeout_s=0.5))
        await asyncio.sleep(0.1)
        before = len(ledger._logs[LOG])
        assert not any(isinstance(each, wire.StoreAnswer) for each in node.said)
        for _ in range(5):
            await asyncio.sleep(0.1)
            coordinator.tick()
        await until(lambda: any(isinstance(each, wire.StoreAnswer) for each in node.said))
        assert len(ledger._logs[LOG]) == before + 1
        await shared.aclose()

    run_virtual(main())


class Late(Troubled):
    """A ledger that takes `late_s` for an append."""

    late_s = 0.0

    async def append(self, log: str, index: int, value: bytes) -> AppendOutcome:
        await asyncio.sleep(self.late_s)
        return await super().append(log, index, value)


def test_an_append_answered_after_its_round_is_ignored() -> None:
    """The next round drops the log, so the late append finds none: that is no loss of anything."""

    async def main() -> None:
        ledger = Late()
        shared, coordinator = await new_coordinator(ledger, 1)
        node = Line(coordinator)
        await node.formed()
        await node.answer_to(1, Set("k", b"v"))
        ledger.late_s = 0.5
        node.say(wire.StoreCall(node.stamp, 2, Set("k", b"w")))
        await asyncio.sleep(0.01)
        ledger.late_s = 0.0
        node.say(wire.Ready(node.stamp, 1, Address("127.0.0.1", 1), 1))
        await until(lambda: node.stamp.round == 2)
        await until(lambda: LOG not in ledger._logs)
        await asyncio.sleep(1.0)
        membership = coordinator.runs["run"].membership
        assert membership.phase is Phase.ACTIVE
        assert membership.number == 2
        assert LOG not in ledger._logs
        assert await node.answer_to(3, Set("k", b"x")) == StoreValue(None)
        await shared.aclose()

    run_virtual(main())


def test_a_cancelled_wait_for_the_engine_does_not_stop_the_run() -> None:
    """The engine refuses a record, so the run is suspended; then the round ends, and nothing needs
    that record any more."""

    async def main() -> None:
        ledger = Troubled()
        shared, coordinator = await new_coordinator(ledger, 1)
        node = Line(coordinator)
        await node.formed()
        ledger.appending = LedgerLimitError("too large")
        node.say(wire.StoreCall(node.stamp, 1, Set("k", b"v")))
        membership = coordinator.runs["run"].membership
        await until(lambda: membership.phase is Phase.SUSPENDED)
        log = coordinator.runs["run"].store.log
        assert log is not None
        log.end("as when the round ends")
        await until(lambda: membership.phase is Phase.ACTIVE)
        await shared.aclose()

    run_virtual(main())


class OwnWay(Troubled):
    """One process's way to a ledger. Nothing that it asks arrives while `is_open` is not set."""

    def __init__(self, behind: Troubled) -> None:
        super().__init__()
        self.__dict__.update(behind.__dict__)
        self.is_open = asyncio.Event()
        self.is_open.set()

    async def read(self, key: str) -> Versioned | None:
        await self.is_open.wait()
        return await super().read(key)

    async def swap(self, key: str, expected: int | None, value: bytes) -> SwapOutcome:
        await self.is_open.wait()
        return await super().swap(key, expected, value)

    async def append(self, log: str, index: int, value: bytes) -> AppendOutcome:
        await self.is_open.wait()
        return await super().append(log, index, value)


def test_a_deposed_coordinator_acknowledges_nothing_and_makes_no_log() -> None:
    """R5: its first write of the round arrives once the successor has dropped the round's log."""

    async def main() -> None:
        ledger = Troubled()
        own = OwnWay(ledger)
        first, coordinator = await new_coordinator(own, 1)
        node = Line(coordinator)
        await node.formed()
        own.is_open.clear()
        node.say(wire.StoreCall(node.stamp, 1, Set("k", b"v")))
        second, other_hub = await new_owner(ledger, 2)
        again = Line(other_hub)
        await until(lambda: any(isinstance(each, wire.Formed) for each in again.said))
        again.say(wire.Ready(again.stamp, 1, Address("127.0.0.1", 1), 1))
        await until(lambda: again.stamp.round == 2)
        await until(lambda: LOG not in ledger._logs)
        own.is_open.set()
        await until(lambda: bool(node.refusals()))
        await asyncio.sleep(1.0)
        assert not any(isinstance(each, wire.StoreAnswer) for each in node.said)
        assert not node.broken()
        assert await ledger.logs() == (first_log(2, 2).name("run"),)
        for each in (first, second):
            await each.aclose()

    run_virtual(main())


def test_a_round_is_committed_after_its_log_exists() -> None:
    async def main() -> None:
        ledger = Troubled()
        shared, coordinator = await new_coordinator(ledger, 1)
        ledger.appending = LedgerFullError("no room")
        node = Line(coordinator)
        await until(lambda: any(isinstance(each, wire.Welcome) for each in node.said))
        node.say(wire.Ready(node.stamp, 0, Address("127.0.0.1", 1), 1))
        await until(lambda: ledger.calls > 2)
        assert coordinator.runs["run"].membership.phase is Phase.COMMITTING
        ledger.appending = None
        await until(lambda: any(isinstance(each, wire.Formed) for each in node.said))
        record = decode_record(ledger._logs[LOG][0])
        assert record.header == Header("run", 1)
        await shared.aclose()

    run_virtual(main())


def test_an_unpublished_round_leaves_no_log() -> None:
    async def main() -> None:
        ledger = Late()
        shared, coordinator = await new_coordinator(ledger, 1)
        node = Line(coordinator)
        await node.formed()
        other = Line(coordinator, name="b")
        await until(lambda: any(isinstance(each, wire.Welcome) for each in other.said))
        ledger.late_s = 0.3
        node.say(wire.Ready(node.stamp, 1, Address("127.0.0.1", 1), 1))
        membership = coordinator.runs["run"].membership
        await until(lambda: membership.phase is Phase.COMMITTING)
        node.say(wire.Goodbye(node.stamp, "preempted"))
        other.say(wire.Ready(other.stamp, 0, Address("127.0.0.1", 1), 1))
        await until(lambda: membership.number == 2)
        assert membership.phase is not Phase.ACTIVE
        await until(lambda: any(isinstance(each, wire.Formed) for each in other.said))
        await until(lambda: len(ledger._logs) == 1)
        assert await ledger.logs() == (first_log(1, 3).name("run"),)
        await shared.aclose()

    run_virtual(main())


def test_a_record_is_not_retried_after_another_owns_the_run() -> None:
    async def main() -> None:
        ledger = Troubled()
        shared, coordinator = await new_coordinator(ledger, 1)
        node = Line(coordinator)
        await node.formed()
        ledger.appending = LedgerFullError("no room")
        node.say(wire.StoreCall(node.stamp, 1, Set("k", b"v")))
        await until(lambda: ledger.calls > 2)
        shared._runs.deposed("run", "term 2 has begun")
        await asyncio.sleep(2 * RETRY_S)
        calls = ledger.calls
        await asyncio.sleep(3 * RETRY_S)
        assert ledger.calls == calls
        await shared.aclose()

    run_virtual(main())


def test_a_round_of_many_writes_keeps_a_short_log_and_can_be_taken_over(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(store_log, "COMPACT_RECORDS", 10)

    async def main() -> None:
        ledger = Troubled()
        shared, coordinator = await new_coordinator(ledger, 1)
        node = Line(coordinator)
        await node.formed()
        for number in range(1, 301):
            assert await node.answer_to(number, Add("n", 1)) == StoreValue(number)
        # Which of them are dropped is decided by their age, so the first one is gone.
        await until(lambda: LOG not in ledger._logs)
        assert sum(map(len, ledger._logs.values())) < 100
        await shared.aclose()
        second, other_hub = await new_owner(ledger, 2)
        again = Line(other_hub)
        await until(lambda: any(isinstance(each, wire.Formed) for each in again.said))
        # R11: the answer that it did not acknowledge; R10: what was acknowledged.
        assert await again.answer_to(300, Add("n", 1)) == StoreValue(300)
        assert await again.answer_to(301, Add("n", 1)) == StoreValue(301)
        await second.aclose()

    run_virtual(main())


class Gated(Troubled):
    """Swaps of the run's register and appends can be made to wait."""

    def __init__(self) -> None:
        super().__init__()
        self.swaps = asyncio.Event()
        self.appends = asyncio.Event()
        self.swaps.set()
        self.appends.set()

    async def swap(self, key: str, expected: int | None, value: bytes) -> SwapOutcome:
        if key.startswith("runs/") and b"host-a" in value:
            await self.swaps.wait()
        return await super().swap(key, expected, value)

    async def append(self, log: str, index: int, value: bytes) -> AppendOutcome:
        await self.appends.wait()
        return await super().append(log, index, value)


def test_a_round_repeated_in_two_outages_is_written_once() -> None:
    """Given again when its first write is still under way, and its log's header is slow."""

    async def main() -> None:
        ledger = Gated()
        shared, coordinator = await new_coordinator(ledger, 1, CONFIG)
        ledger.swaps.clear()
        node = Line(coordinator)
        await has_begun(coordinator, "run")
        run = coordinator.runs["run"]
        stamp = Stamp(ledger.ledger_id, 1, 0)
        node.say(wire.Ready(stamp, 0, Address("h", 1), 1))
        await until(lambda: run.membership.committing is not None)
        await asyncio.sleep(RETRY_S)
        away = on.LedgerLost("no answer", 1.0, SuspensionCause.LEASE)
        back = on.LedgerRestored(SuspensionCause.LEASE)
        ledger.appends.clear()
        run.post(away)
        run.post(back)  # The round is given again, and waits for its log's header.
        run.post(away)
        ledger.swaps.set()
        await until(lambda: _sequence(ledger) == 1)
        await asyncio.sleep(RETRY_S)
        ledger.appends.set()
        await asyncio.sleep(RETRY_S)
        run.post(back)
        await until(lambda: any(isinstance(each, wire.Formed) for each in node.said))
        await asyncio.sleep(RETRY_S)
        assert _sequence(ledger) == 1
        await shared.aclose()

    run_virtual(main())


class SlowTables(MemoryLedger):
    """Chunks of member tables wait, and are counted."""

    def __init__(self) -> None:
        super().__init__()
        self.may_write = asyncio.Event()
        self.chunks = 0

    async def swap(self, key: str, expected: int | None, value: bytes) -> SwapOutcome:
        if key.startswith("chunks/"):
            self.chunks += 1
            await self.may_write.wait()
        return await super().swap(key, expected, value)


def test_the_member_table_of_a_repeated_round_is_written_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(tables, "INLINE_BYTES_MAX", 0)  # as a table of many members

    async def main() -> None:
        ledger = SlowTables()
        shared, coordinator = await new_coordinator(ledger, 1, CONFIG)
        node = Line(coordinator)
        await has_begun(coordinator, "run")
        run = coordinator.runs["run"]
        node.say(wire.Ready(Stamp(ledger.ledger_id, 1, 0), 0, Address("h", 1), 1))
        await until(lambda: ledger.chunks > 0)
        run.post(on.LedgerLost("no answer", 1.0, SuspensionCause.LEASE))
        run.post(on.LedgerRestored(SuspensionCause.LEASE))  # the round is given again
        await asyncio.sleep(RETRY_S)
        ledger.may_write.set()
        await until(lambda: any(isinstance(each, wire.Formed) for each in node.said))
        await asyncio.sleep(RETRY_S)
        assert ledger.chunks == 1
        assert _sequence(ledger) == 1
        await shared.aclose()

    run_virtual(main())


def _sequence(ledger: MemoryLedger) -> int:
    """How often the run's owner has written its register."""
    return decode_run(ledger._registers["runs/run"].value).sequence


def test_r5_a_run_that_is_taken_over_too_late_decides_nothing_for_nodes_that_wait(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The takeover takes so long that the lease is too old by then. Nodes have come meanwhile.

    They used to be handled before the run was SUSPENDED. Found by seed 486.
    """
    steps: list[tuple[Phase, on.Event]] = []
    step, read = Membership.step, takeover.read_and_seal

    def stepped(membership: Membership, event: on.Event, now_s: float) -> list[Effect]:
        effects = step(membership, event, now_s)
        steps.append((membership.phase, event))
        return effects

    async def main() -> None:
        ledger = Troubled()

        async def slowly(*arguments: Any) -> Any:
            left = await read(*arguments)
            ledger.leasing = LedgerUnreachableError("nobody answers")
            await asyncio.sleep(2 * CONFIG.lease_ttl_s)
            return left

        monkeypatch.setattr(owned_runs, "read_and_seal", slowly)
        shared, coordinator = await new_coordinator(ledger, 1)
        Line(coordinator)
        await has_begun(coordinator, "run")
        assert [type(event) for _, event in steps[:2]] == [on.LedgerLost, on.NodeAttached]
        assert {phase for phase, _ in steps} == {Phase.SUSPENDED}
        await shared.aclose()

    monkeypatch.setattr(Membership, "step", stepped)
    run_virtual(main())


def test_r7_a_node_that_waits_for_its_name_is_heard() -> None:
    """All nodes were started again under their names, and wait until the attach grace is over.

    Their coordinators used to resign before that, because no other node was attached, and the next
    one began the grace anew. Found by seed 1146.
    """

    async def main() -> None:
        ledger = Troubled()
        first, coordinator = await new_coordinator(ledger, 1)
        node = Line(coordinator)
        await node.formed()
        await first.aclose()
        second, other = await new_owner(ledger, 2)
        heard = second._runs.heard("run")
        assert heard is not None
        assert heard.is_alone
        Line(other, incarnation=2)
        await asyncio.sleep(0.01)
        heard = second._runs.heard("run")
        assert heard is not None
        assert not heard.is_alone
        await second.aclose()

    run_virtual(main())
