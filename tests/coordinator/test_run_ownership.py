"""Runs on a shared ledger, as the coordinator and its lease manager see them, without connections.

In virtual time: leases are short here, and a machine that pauses would let them run out.
"""

from __future__ import annotations

import asyncio

import msgspec
import pytest

from rallypoint.coordinator.coordinator import Coordinator
from rallypoint.coordinator.round_log import first_log
from rallypoint.coordinator.run_ownership import RunOwnership
from rallypoint.core import election as e
from rallypoint.core import events as on
from rallypoint.core.reasons import Refusal
from rallypoint.core.values import Address, NodeId, NodeInfo, Outcome, Phase, RunSettings
from rallypoint.errors import LedgerUnreachableError
from rallypoint.ledger.contract import SwapOutcome, Unknown, Versioned
from rallypoint.ledger.keys import COORDINATORS, run_key
from rallypoint.ledger.memory import MemoryLedger
from tests.coordinator.shared_ledger import (
    CONFIG,
    WITHIN_S,
    has_begun,
    new_coordinator,
    new_owner,
    until,
)
from tests.loops import run_virtual

LOG = first_log(1, 1).name("run")


def test_a_run_won_before_its_nodes_come_begins() -> None:
    async def main() -> None:
        ledger = MemoryLedger()
        first, _ = await new_owner(ledger, 1)
        # A node asks the second one, is sent to the first, and goes there; then that one dies.
        second, other = await new_coordinator(ledger, 2)
        other.open_run("run")
        second.claim("run")
        await until(lambda: not other.runs)
        await first.aclose()
        await has_begun(other, "run")
        assert other.runs["run"].membership.term == 2
        await second.aclose()

    run_virtual(main())


@pytest.mark.parametrize(
    ("port", "said"),
    [
        (2, "run 'run' has its coordinator at 127.0.0.1:1"),
        (1, "the coordinator at 127.0.0.1:1 was started again, and takes over run 'run' when the "
            "lease of its predecessor has expired"),
    ],
)  # fmt: skip
def test_a_coordinator_that_was_started_again_does_not_send_nodes_to_itself(
    port: int, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def main() -> None:
        ledger = MemoryLedger()
        first, _ = await new_owner(ledger, 1)
        second, other = await new_coordinator(ledger, port)
        told: list[Refusal] = []
        monkeypatch.setattr(other.open_run("run"), "turn_away", told.append)
        second.claim("run")
        await until(lambda: bool(told))
        assert told[0].message == said
        assert told[0].addresses == (Address("127.0.0.1", 1),)
        for each in (second, first):
            await each.aclose()

    run_virtual(main())


class MuteLedger(MemoryLedger):
    """While `is_mute` it does not answer; after the timeout the outcome is unknown."""

    is_mute = False

    async def swap(self, key: str, expected: int | None, value: bytes) -> SwapOutcome:
        if not self.is_mute:
            return await super().swap(key, expected, value)
        await asyncio.sleep(2 * CONFIG.lease_ttl_s)
        return Unknown("no answer from anywhere")


def test_a_suspended_run_reports_the_reason_and_the_duration() -> None:
    async def main() -> None:
        ledger = MuteLedger()
        shared, coordinator = await new_coordinator(ledger, 1)
        membership = coordinator.open_run("run").membership
        shared.claim("run")
        await has_begun(coordinator, "run")
        settings = RunSettings(min_nodes=2, max_nodes=2)
        coordinator.runs["run"].post(on.NodeAttached(NodeInfo("a", 1, "h"), settings, 1))
        ledger.is_mute = True
        await until(lambda: membership.phase is Phase.SUSPENDED)
        waiting = membership.waiting(coordinator.now_s())
        assert waiting is not None
        assert waiting.ledger_away_s is not None
        assert waiting.ledger_away_s >= CONFIG.lease_ttl_s / 2
        assert "ledger unreachable" in str(waiting)
        await until(lambda: "no answer from anywhere" in membership.suspended_reason)
        ledger.is_mute = False
        await until(lambda: membership.phase is not Phase.SUSPENDED)
        await shared.aclose()

    run_virtual(main())


class CutOffLedger(MemoryLedger):
    """What another one holds; does not answer while `is_cut_off`."""

    def __init__(self, behind: MemoryLedger) -> None:
        super().__init__()
        self.behind = behind
        self.is_cut_off = False

    async def open(self) -> None:
        await self.behind.open()
        self.ledger_id = self.behind.ledger_id

    async def read(self, key: str) -> Versioned | None:
        if self.is_cut_off:
            raise LedgerUnreachableError("no answer")
        return await self.behind.read(key)

    async def swap(self, key: str, expected: int | None, value: bytes) -> SwapOutcome:
        return (
            Unknown("no answer")
            if self.is_cut_off
            else await self.behind.swap(key, expected, value)
        )

    async def delete(self, key: str, version: int | None = None) -> bool:
        # What was asked for while it was cut off is carried out when it no longer is.
        await until(lambda: not self.is_cut_off)
        return await self.behind.delete(key, version)


def test_an_owner_that_was_cut_off_removes_no_run_of_another() -> None:
    async def main() -> None:
        ledger = MemoryLedger()
        own = CutOffLedger(ledger)
        config = msgspec.structs.replace(CONFIG, empty_run_keep_s=0.0)
        first, coordinator = await new_owner(own, 1, config)
        own.is_cut_off = True
        await until(lambda: coordinator.runs["run"].membership.phase is Phase.SUSPENDED)
        second, _ = await new_owner(ledger, 2)
        coordinator.tick()
        assert "run" in coordinator.runs
        coordinator.drop_run(coordinator.runs["run"])
        first.forget("run")  # Were it to do that all the same:
        process = first.lease_manager.process
        own.is_cut_off = False
        await until(lambda: first.lease_manager.process != process)
        register = await ledger.read(run_key("run"))
        assert register is not None
        assert e.decode_run(register.value).owner == second.lease_manager.process
        for each in (first, second):
            await each.aclose()

    run_virtual(main())


class LateLedger(CutOffLedger):
    """Its process stalls between listing a run's logs and dropping them."""

    async def logs(self, prefix: str = "") -> tuple[str, ...]:
        found = await self.behind.logs(prefix)
        self.is_cut_off = True
        await until(lambda: not self.is_cut_off)
        return found

    async def drop_log(self, log: str) -> None:
        await self.behind.drop_log(log)


def test_a_run_taken_over_during_its_removal_keeps_its_log() -> None:
    """R10: what was acknowledged in its round is in that log."""

    async def main() -> None:
        ledger = MemoryLedger()
        late = LateLedger(ledger)
        config = msgspec.structs.replace(CONFIG, empty_run_keep_s=0.0)
        first, coordinator = await new_owner(late, 1, config)
        await ledger.append(LOG, 0, b"record")
        await until(lambda: not swept(coordinator).runs)
        await until(lambda: late.is_cut_off)
        second, other = await new_owner(ledger, 2)
        run = other.runs["run"]
        late.is_cut_off = False
        process = first.lease_manager.process
        await until(lambda: first.lease_manager.process != process)
        # If it is over, then for good (R6); if it goes on, then with all that it had.
        assert run.is_closed or await ledger.logs() == (LOG,)
        for each in (first, second):
            await each.aclose()

    run_virtual(main())


def test_a_run_taken_over_before_its_removal_stays() -> None:
    async def main() -> None:
        ledger = MemoryLedger()
        shared, _ = await new_owner(ledger, 1)
        await ledger.append(LOG, 0, b"record")
        current = await ledger.read(run_key("run"))
        assert current is not None
        taken = msgspec.structs.replace(e.decode_run(current.value), term=2, owner="another")
        await ledger.swap(run_key("run"), current.version, e.encode(taken))
        shared.forget("run")
        await asyncio.sleep(0.1)
        found = await ledger.read(run_key("run"))
        assert found is not None
        assert e.decode_run(found.value) == taken
        assert await ledger.logs() == (LOG,)
        await shared.aclose()

    run_virtual(main())


def swept(coordinator: Coordinator) -> Coordinator:
    coordinator.tick()
    return coordinator


def test_an_empty_run_is_removed_by_its_owner() -> None:
    async def main() -> None:
        ledger = MemoryLedger()
        config = msgspec.structs.replace(CONFIG, empty_run_keep_s=0.0)
        shared, coordinator = await new_owner(ledger, 1, config)
        await ledger.append(LOG, 0, b"record")
        await until(lambda: not swept(coordinator).runs)
        while (register := await ledger.read(run_key("run"))) is not None:
            await ledger.changed(run_key("run"), register.version, WITHIN_S)
        assert await ledger.logs() == ()
        await shared.aclose()

    run_virtual(main())


YIELDING = msgspec.structs.replace(CONFIG, yield_after_s=0.6)


def test_an_unreachable_owner_resigns_to_another_candidate() -> None:
    async def main() -> None:
        ledger = MemoryLedger()
        first, coordinator = await new_owner(ledger, 1, YIELDING)
        second, other = await new_coordinator(ledger, 2, YIELDING)
        other.open_run("run")
        second.claim("run")
        await has_begun(other, "run")
        assert "run" not in coordinator.runs
        assert other.runs["run"].membership.term == 2
        for each in (first, second):
            await each.aclose()

    run_virtual(main())


@pytest.mark.parametrize("run_id", ["\U0001f680" * 256, "x" * 256, "team/job-42", "..", "a%2Fb"])
def test_a_run_of_any_id_is_taken_over_from_the_ledger(run_id: str) -> None:
    async def main() -> None:
        ledger = MemoryLedger()
        for term in (1, 2):
            shared, coordinator = await new_coordinator(ledger, term)
            shared.claim(run_id)
            await has_begun(coordinator, run_id)
            assert coordinator.runs[run_id].membership.term == term
            await shared.hand_over_lease(1.0)
            await shared.aclose()

    run_virtual(main())


def test_the_tokens_of_a_run_that_was_removed_do_not_come_back() -> None:
    """R1, R13: the same id on the same ledger begins above all that was removed."""

    async def a_round(
        shared: RunOwnership, coordinator: Coordinator, run_id: str, life: int
    ) -> tuple[int, int]:
        shared.claim(run_id)
        await has_begun(coordinator, run_id)
        run = coordinator.runs[run_id]
        node = NodeInfo("a", life, "h")
        run.post(on.NodeAttached(node, RunSettings(settle_s=0.0), life))
        run.post(on.NodeReady(node.id, 0, Address("h", 1), 1))
        await until(lambda: run.membership.phase is Phase.ACTIVE)
        assert run.membership.round is not None
        head = run.membership.round.head
        return head.term, head.number

    async def is_gone(coordinator: Coordinator, ledger: MemoryLedger, run_id: str) -> None:
        for _ in range(40):
            await asyncio.sleep(0.1)
            coordinator.tick()
        assert coordinator.runs == {}
        assert await ledger.read(run_key(run_id)) is None

    async def main() -> None:
        config = msgspec.structs.replace(CONFIG, empty_run_keep_s=1.0, closed_run_keep_s=1.0)
        ledger = MemoryLedger()
        shared, coordinator = await new_coordinator(ledger, 1, config)
        assert await a_round(shared, coordinator, "run", 1) == (1, 1)
        run = coordinator.runs["run"]
        run.post(on.NodeReady(NodeId("a", 1), 1, Address("h", 1), 1))
        await until(lambda: run.membership.number == 2)
        run.post(on.NodeLeft(NodeId("a", 1), "preempted"))
        await is_gone(coordinator, ledger, "run")
        assert await a_round(shared, coordinator, "run", 2) == (2, 3)
        # Another run begins above it too: one floor for all of them.
        assert await a_round(shared, coordinator, "another", 3) == (2, 3)
        await shared.aclose()
        # What the ledger says holds for another coordinator as well.
        second, other = await new_owner(ledger, 2, config)
        assert (other.runs["run"].membership.term, other.runs["run"].membership.number) == (3, 3)
        await second.aclose()

    run_virtual(main())


def test_an_unreachable_owner_stays_without_another_candidate() -> None:
    async def main() -> None:
        ledger = MemoryLedger()
        first, coordinator = await new_owner(ledger, 1, YIELDING)
        run = coordinator.runs["run"]
        of_another_run = msgspec.structs.replace(
            YIELDING, only_run="other", own_node=NodeId("n", 1)
        )
        second, _ = await new_coordinator(ledger, 2, of_another_run)
        await asyncio.sleep(2 * (YIELDING.yield_after_s or 0.0))
        assert coordinator.runs["run"] is run
        assert run.membership.phase is not Phase.SUSPENDED
        for each in (first, second):
            await each.aclose()

    run_virtual(main())


def test_a_replica_with_a_node_of_the_run_may_claim_it_again() -> None:
    async def main() -> None:
        ledger = MemoryLedger()
        config = msgspec.structs.replace(CONFIG, yield_after_s=60.0)
        shared, coordinator = await new_owner(ledger, 1, config)
        claimed = shared._claims["run"]
        claim = claimed.claim
        shared._do(claimed, claim.resign(asyncio.get_running_loop().time(), 120.0))
        coordinator.drop_run(coordinator.runs["run"])
        await until(lambda: claim.state is e.ClaimState.IDLE)
        coordinator.open_run("run")
        shared.claim("run")
        await has_begun(coordinator, "run")
        assert coordinator.runs["run"].membership.term == 2
        await shared.aclose()

    run_virtual(main())


def test_a_run_that_failed_here_is_left_to_others_for_a_while() -> None:
    async def main() -> None:
        loop = asyncio.get_running_loop()
        shared, coordinator = await new_owner(MemoryLedger(), 1)
        claim = shared._claims["run"].claim
        for longer in (1, 2, 4):
            began_s = loop.time()
            shared.give_up("run")
            coordinator.drop_run(coordinator.runs["run"])
            await until(lambda: claim.state is e.ClaimState.IDLE)
            coordinator.open_run("run")
            shared.claim("run")
            await has_begun(coordinator, "run")
            assert loop.time() - began_s >= longer * CONFIG.lease_ttl_s
        await shared.aclose()

    run_virtual(main())


@pytest.mark.parametrize("is_closed", [False, True], ids=["open", "closed"])
def test_a_clean_end_is_not_reported_as_deposition(
    is_closed: bool, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "rallypoint.coordinator")

    async def main() -> None:
        shared, coordinator = await new_owner(MemoryLedger(), 1)
        run = coordinator.runs["run"]
        if is_closed:
            run.post(on.NodeAttached(NodeInfo("a", 1, "h"), RunSettings(), 1))
            run.post(on.CloseRequested("a", Outcome.SUCCEEDED, "trained"))
            await until(lambda: run.is_closed)
        await shared.hand_over(WITHIN_S, "the coordinator is stopping")
        await shared.aclose()

    run_virtual(main())
    told = [each.getMessage() for each in caplog.records if "is stopping" in each.getMessage()]
    assert len(told) == 1
    assert told[0] == "run run: this coordinator gave the run up: the coordinator is stopping"
    assert {each.levelname for each in caplog.records} == {"INFO"}


class SlowAnswers(MemoryLedger):
    """Does what it is asked at once; the answers about leases take `answer_s`."""

    answer_s = 0.0

    async def swap(self, key: str, expected: int | None, value: bytes) -> SwapOutcome:
        outcome = await super().swap(key, expected, value)
        if key.startswith(COORDINATORS):
            await asyncio.sleep(self.answer_s)
        return outcome


def test_no_node_is_lost_during_a_handover() -> None:
    """R5, R8: then another coordinator may own the run, and hear nodes that are missing here."""

    async def main() -> None:
        settings = RunSettings(min_nodes=2, max_nodes=2, reconnect_grace_s=1.0)
        ledger = SlowAnswers()
        shared, coordinator = await new_owner(ledger, 1)
        run = coordinator.runs["run"]
        for connection_id, name in enumerate("ab", 1):
            run.post(on.NodeAttached(NodeInfo(name, 1, name), settings, connection_id))
            run.post(on.NodeReady(NodeId(name, 1), 0, Address(name, 1), 1))
        await until(lambda: run.membership.phase is Phase.ACTIVE)
        run.post(on.ConnectionLost(NodeId("b", 1), 2))
        ledger.answer_s = 4.0
        going = asyncio.ensure_future(shared.hand_over(3.0, "the coordinator is stopping"))
        for _ in range(25):
            await asyncio.sleep(0.1)
            coordinator.tick()
            assert run.membership.phase is Phase.SUSPENDED
            assert len(run.membership.roster) == 2
            assert run.membership.phase_of_work is Phase.ACTIVE
        await going
        assert run.membership.deposed
        await shared.aclose()

    run_virtual(main())
