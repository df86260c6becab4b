"""What marked lines of the coordinator's ownership promise, where a small change would be wrong.

`make mutants` changes the lines that keep a rule. Each test here fails for changes that no other
test noticed. In virtual time, without connections.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import msgspec
import pytest

from rallypoint.coordinator.claimed_run import ClaimedRun
from rallypoint.coordinator.coordinator import Coordinator
from rallypoint.coordinator.hosted_run import HostedRun
from rallypoint.coordinator.lease_manager import LeaseManager, NodesMustLeave, Suspended
from rallypoint.coordinator.log_reader import RETRY_S
from rallypoint.coordinator.log_records import decode_record
from rallypoint.coordinator.owned_runs import NOBODY_HEARD
from rallypoint.coordinator.run_ownership import RunOwnership
from rallypoint.core import election as e
from rallypoint.core import events as on
from rallypoint.core.values import NodeId, Outcome, Phase
from rallypoint.ledger.contract import AppendOutcome, SwapOutcome, Versioned
from rallypoint.ledger.keys import COORDINATORS
from rallypoint.ledger.memory import MemoryLedger
from rallypoint.wire import messages as wire
from tests.coordinator.large_run import CountingLedger, are_ready, come
from tests.coordinator.lines import Line
from tests.coordinator.shared_ledger import CONFIG, has_begun, new_coordinator, new_owner, until
from tests.coordinator.troubled_ledger import LOG, Troubled, a_round
from tests.core.claimant import CLOSE, TIMING, Claimant, serving
from tests.loops import VirtualLoop, run_virtual

# -- a claim, and the lease ----------------------------------------------------------------------


def test_r5_a_run_whose_register_was_read_is_not_owned_yet() -> None:
    me = Claimant()
    claimed = ClaimedRun("run", me.claim)
    assert not claimed.is_owned
    me.judges(serving(), 0.0)
    assert me.claim.register is not None
    assert not claimed.is_owned
    owner = Claimant()
    owner.wins()
    assert ClaimedRun("run", owner.claim).is_owned


def test_r7_nodes_are_sent_away_when_each_pause_is_over() -> None:
    manager = LeaseManager(MemoryLedger(), TIMING)
    (suspended,) = manager.judge(0.0, lambda: True)
    assert isinstance(suspended, Suspended)
    due_s = 0.0
    for pause_s in (TIMING.ttl_s, 2 * TIMING.ttl_s, 4 * TIMING.ttl_s):
        due_s += pause_s
        assert manager.judge(due_s - 0.1, lambda: True) == []
        (leave,) = manager.judge(due_s, lambda: True)
        assert isinstance(leave, NodesMustLeave)


# -- a takeover that is under way ----------------------------------------------------------------


class Waiting(Troubled):
    """The first reading of a log waits for `reads`. A seal may take long, and then is done."""

    def __init__(self) -> None:
        super().__init__()
        self.reads = asyncio.Event()
        self.is_first = True
        self.seal_s = 0.0

    async def records(
        self, log: str, start: int = 0, limit: int | None = None
    ) -> tuple[tuple[int, bytes], ...]:
        is_first, self.is_first = self.is_first, False
        if is_first:
            await self.reads.wait()
        return await super().records(log, start, limit)

    async def append(self, log: str, index: int, value: bytes) -> AppendOutcome:
        if index and decode_record(value).is_seal and self.seal_s:
            stand_still(self.seal_s)
        return await super().append(log, index, value)

    async def seals(self) -> list[int]:
        """The terms that have sealed the log."""
        records = [decode_record(each) for _, each in await super().records(LOG)]
        return [each.term for each in records if each.is_seal]


def stand_still(duration_s: float) -> None:
    """The whole process stands still for so long."""
    loop = asyncio.get_running_loop()
    assert isinstance(loop, VirtualLoop)
    loop._now_s += duration_s


async def taking_over() -> tuple[Waiting, RunOwnership, Coordinator, e.RunRegister]:
    """A coordinator that owns the run, and waits for the log of its round."""
    ledger = Waiting()
    ledger.is_first = False
    await a_round(ledger)
    ledger.is_first = True
    shared, coordinator = await new_coordinator(ledger, 2)
    shared.claim("run")
    await until(lambda: not ledger.is_first)
    return ledger, shared, coordinator, shared._claims["run"].register


def test_r5_a_run_is_taken_over_once_in_each_term() -> None:
    async def main() -> None:
        ledger, shared, coordinator, register = await taking_over()
        shared._runs.won("run", register, None)
        await asyncio.sleep(3 * RETRY_S)
        assert not coordinator.runs["run"].is_claimed, "it waits for the first reading"
        ledger.reads.set()
        await has_begun(coordinator, "run")
        assert await ledger.seals() == [2]
        await shared.aclose()

    run_virtual(main())


def test_r5_a_later_term_ends_the_takeover_of_an_earlier_one() -> None:
    async def main() -> None:
        ledger, shared, coordinator, register = await taking_over()
        shared._runs.won("run", msgspec.structs.replace(register, term=3), None)
        await has_begun(coordinator, "run")
        membership = coordinator.runs["run"].membership
        assert membership.term == 3
        ledger.reads.set()
        await asyncio.sleep(3 * RETRY_S)
        assert not membership.suspension
        assert await ledger.seals() == [3]
        await shared.aclose()

    run_virtual(main())


def test_r5_a_deposed_coordinator_does_not_seal_the_log() -> None:
    async def main() -> None:
        ledger, shared, coordinator, _ = await taking_over()
        shared._runs.deposed("run", "another coordinator has it")
        assert "run" not in coordinator.runs
        ledger.reads.set()
        await asyncio.sleep(3 * RETRY_S)
        assert await ledger.seals() == []
        await shared.aclose()

    run_virtual(main())


def test_r5_a_run_that_was_forgotten_during_its_takeover_does_not_begin() -> None:
    async def main() -> None:
        ledger, shared, coordinator, _ = await taking_over()
        run = coordinator.runs["run"]
        coordinator.drop_run(run)
        ledger.reads.set()
        await asyncio.sleep(3 * RETRY_S)
        assert not run.is_claimed
        await shared.aclose()

    run_virtual(main())


def test_r5_a_run_that_has_begun_does_not_begin_again() -> None:
    async def main() -> None:
        ledger, shared, coordinator, register = await taking_over()
        ledger.reads.set()
        await has_begun(coordinator, "run")
        run = coordinator.runs["run"]
        node = Line(coordinator)
        await until(lambda: node.count(wire.Welcome) > 0)
        shared._runs.won("run", register, None)
        await asyncio.sleep(3 * RETRY_S)
        assert not run.has_failed
        assert run.membership.phase is Phase.ACTIVE
        await shared.aclose()

    run_virtual(main())


def test_r5_a_run_begins_suspended_if_its_takeover_took_longer_than_the_lease(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    phases = []
    begin = HostedRun.begin

    def begun(run: HostedRun, *given: Any, **more: Any) -> None:
        begin(run, *given, **more)
        phases.append(run.membership.phase)

    async def main() -> None:
        ledger, shared, coordinator, _ = await taking_over()
        monkeypatch.setattr(HostedRun, "begin", begun)
        ledger.seal_s = 2 * CONFIG.lease_ttl_s
        ledger.reads.set()
        await has_begun(coordinator, "run")
        assert phases == [Phase.SUSPENDED]
        await until(lambda: coordinator.runs["run"].membership.phase is Phase.ACTIVE)
        await shared.aclose()

    run_virtual(main())


# -- a lease that is handed over -----------------------------------------------------------------


class Writing(CountingLedger):
    """Swaps of what begins with `waits` wait for `answers`."""

    def __init__(self) -> None:
        super().__init__()
        self.waits = ""
        self.answers = asyncio.Event()
        self.is_waiting = False
        self.moving: Callable[[], None] = lambda: None
        """What happens when a lease is given up."""

    async def swap(self, key: str, expected: int | None, value: bytes) -> SwapOutcome:
        if self.waits and key.startswith(self.waits):
            self.is_waiting = True
            await self.answers.wait()
        is_lease = key.startswith(COORDINATORS)
        if is_lease and e.decode_lease(value).state is e.LeaseState.MOVING:
            self.moving()
        return await super().swap(key, expected, value)


@pytest.mark.parametrize("waits", ["runs/", "chunks/"])
def test_r1_a_lease_is_handed_over_after_the_writes_under_way(waits: str) -> None:
    async def main() -> None:
        ledger = Writing()
        shared, coordinator = await new_owner(ledger, 1)
        for other in ("idle", "too"):
            coordinator.open_run(other)
            shared.claim(other)
            await has_begun(coordinator, other)
        ledger.waits = waits
        come(coordinator)
        are_ready(coordinator, 0)
        await until(lambda: ledger.is_waiting)
        handing = asyncio.ensure_future(shared.hand_over_lease(60.0))
        await asyncio.sleep(1.0)
        assert not shared.lease_manager.holder.has_moved
        ledger.answers.set()
        await handing
        assert shared.lease_manager.holder.has_moved
        assert (await ledger.head()).round is not None
        await shared.aclose()

    run_virtual(main())


def test_r5_all_runs_are_suspended_before_another_process_may_take_them() -> None:
    async def main() -> None:
        ledger = Writing()
        shared, coordinator = await new_owner(ledger, 1)
        phases = []
        membership = coordinator.runs["run"].membership
        come(coordinator, 1)
        ledger.moving = lambda: phases.append(membership.phase)
        await shared.hand_over_lease(60.0)
        assert phases == [Phase.SUSPENDED]
        await shared.aclose()

    run_virtual(main())


def test_r5_no_process_decides_for_a_run_that_it_never_claimed() -> None:
    async def main() -> None:
        shared, _ = await new_owner(Writing(), 1)
        assert shared.may_decide("run")
        assert not shared.may_decide("another")
        await shared.aclose()

    run_virtual(main())


# -- writes of an owner ---------------------------------------------------------------------------


class WithoutLogs(MemoryLedger):
    """As an engine with one register."""

    has_log = False

    async def append(self, log: str, index: int, value: bytes) -> AppendOutcome:
        raise AssertionError("this engine keeps no logs")


def test_r10_a_ledger_without_logs_is_not_asked_for_one() -> None:
    async def main() -> None:
        shared, coordinator = await new_owner(WithoutLogs(), 1)
        await Line(coordinator).formed()
        await shared.aclose()

    run_virtual(main())


def is_dropped(shared: RunOwnership) -> None:
    shared._forget("run")


def is_lost(shared: RunOwnership) -> None:
    shared._claims["run"].claim.deposed(0.0)


@pytest.mark.parametrize("happens", [is_dropped, is_lost])
def test_r5_a_table_is_not_committed_for_a_run_that_was_lost_meanwhile(
    happens: Callable[[RunOwnership], None],
) -> None:
    async def main() -> None:
        ledger = Writing()
        shared, coordinator = await new_owner(ledger, 1)
        run = coordinator.runs["run"]
        ledger.waits = "chunks/"
        come(coordinator)
        are_ready(coordinator, 0)
        await until(lambda: ledger.is_waiting)
        happens(shared)
        ledger.answers.set()
        await asyncio.sleep(1.0)
        assert (await ledger.head()).round is None
        assert not run.has_failed
        await shared.aclose()

    run_virtual(main())


class Claims:
    """An ownership that has not started, with a claim that it has won."""

    def __init__(self) -> None:
        self.shared = RunOwnership(MemoryLedger(), CONFIG)
        self.me = Claimant()
        self.me.wins()
        self.claimed = self.shared._claims["run"] = ClaimedRun("run", self.me.claim)
        self.term = self.claimed.register.term

    def is_owned(self, term: int) -> bool:
        return self.shared._is_owned_in(term, self.claimed)


def test_r5_a_plan_belongs_to_one_claim_in_one_term() -> None:
    claims = Claims()
    assert claims.is_owned(claims.term)
    assert not claims.is_owned(claims.term - 1)
    assert not claims.is_owned(claims.term + 1)
    claims.shared._claims["run"] = ClaimedRun("run", Claimant().claim)
    assert not claims.is_owned(claims.term)
    claims = Claims()
    claims.me.claim.deposed(0.2)
    assert not claims.is_owned(claims.term)


@pytest.mark.parametrize("is_known", [False, True])
def test_r5_a_run_that_is_not_owned_is_deposed_by_its_next_write(is_known: bool) -> None:
    async def main() -> None:
        ledger = Writing()
        shared, coordinator = await new_owner(ledger, 1)
        run = coordinator.runs["run"]
        before = await ledger.head()
        if is_known:
            shared._claims["run"].claim.deposed(0.0)
        else:
            shared._forget("run")
        shared.commit(run, CLOSE)
        assert run.membership.deposed
        await asyncio.sleep(0.5)
        assert await ledger.head() == before
        await shared.aclose()

    run_virtual(main())


# -- runs that are over, or were given up --------------------------------------------------------


def test_r1_a_run_is_not_removed_under_a_write_whose_outcome_is_unknown() -> None:
    async def main() -> None:
        ledger = Writing()
        shared, coordinator = await new_owner(ledger, 1)
        ledger.waits = "runs/"
        come(coordinator, 1)
        coordinator.runs["run"].post(on.CloseRequested("ann", Outcome.STOPPED, "enough"))
        await until(lambda: ledger.is_waiting)
        shared.forget("run")
        ledger.answers.set()
        await asyncio.sleep(1.0)
        assert (await ledger.head()).close is not None
        await shared.aclose()

    run_virtual(main())


def test_r5_only_an_owner_with_a_good_lease_removes_a_run() -> None:
    async def main() -> None:
        ledger = Writing()
        shared, _ = await new_owner(ledger, 1)
        shared.forget("another")
        stand_still(2 * CONFIG.lease_ttl_s)
        shared.forget("run")
        await asyncio.sleep(1.0)
        assert (await ledger.head()).owner
        await shared.aclose()

    run_virtual(main())


@pytest.mark.parametrize("hosts_a_node", [False, True])
def test_r5_only_another_node_ends_the_pause_of_a_process_that_resigned(hosts_a_node: bool) -> None:
    """The own node reaches its own process, whatever keeps the others away."""

    async def main() -> None:
        own = NodeId("own", 1) if hosts_a_node else None
        config = msgspec.structs.replace(CONFIG, own_node=own)
        shared, coordinator = await new_owner(MemoryLedger(), 1, config)
        claim = shared._claims["run"].claim
        claimed = shared._claims["run"]
        shared._do(claimed, claim.resign(asyncio.get_running_loop().time(), 5.0))
        await until(lambda: claim.state is e.ClaimState.IDLE)
        shared._runs.deposed("run", "it has resigned")
        coordinator.open_run("run")
        shared.claim("run")
        await asyncio.sleep(2.0)
        assert (claim.state is e.ClaimState.OWNED) is not hosts_a_node
        await shared.aclose()

    run_virtual(main())


@pytest.mark.parametrize("part", ["__init__", "begin"])
def test_r5_an_error_in_a_claim_does_not_reach_the_node_that_asks(
    part: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError("planted")

    async def main() -> None:
        shared, coordinator = await new_coordinator(MemoryLedger(), 1)
        monkeypatch.setattr(e.Claim, part, fail)
        monkeypatch.setattr(e.Claim, "resign", fail)
        coordinator.open_run("run")
        shared.claim("run")
        assert "run" not in shared._claims
        await shared.aclose()

    run_virtual(main())


# -- claims that were dropped --------------------------------------------------------------------


class Asked(MemoryLedger):
    """Counts the reads of runs."""

    reads = 0

    async def read(self, key: str) -> Versioned | None:
        self.reads += key.startswith("runs/")
        return await super().read(key)


def test_r5_a_claim_that_was_dropped_asks_nothing() -> None:
    async def main() -> None:
        ledger = Asked()
        shared, coordinator = await new_coordinator(ledger, 1)
        coordinator.open_run("run")
        shared.claim("run")
        shared._forget("run")
        await asyncio.sleep(1.0)
        assert ledger.reads == 0
        await shared.aclose()

    run_virtual(main())


def test_r5_a_late_answer_to_a_claim_that_was_dropped_begins_no_run() -> None:
    async def main() -> None:
        ledger = Writing()
        first, _ = await new_owner(ledger, 1)
        await first.hand_over_lease(60.0)
        await first.aclose()
        shared, coordinator = await new_coordinator(ledger, 2)
        run = coordinator.open_run("run")
        ledger.waits = "runs/"
        shared.claim("run")
        await until(lambda: ledger.is_waiting)
        shared._forget("run")
        ledger.answers.set()
        await asyncio.sleep(1.0)
        assert (await ledger.head()).owner == shared.process
        assert not run.is_claimed
        await shared.aclose()

    run_virtual(main())


def test_r5_only_a_claim_that_is_not_owned_is_dropped_when_its_run_cannot_be_read() -> None:
    async def main() -> None:
        shared, coordinator = await new_owner(MemoryLedger(), 1)
        shared._cannot_be_read("another", "damaged")
        shared._cannot_be_read("run", "damaged")
        assert shared.may_decide("run")
        assert coordinator.runs["run"].membership.suspension
        shared._claims["run"].claim.deposed(0.0)
        shared._cannot_be_read("run", "damaged")
        assert "run" not in shared._claims
        await shared.aclose()

    run_virtual(main())


# -- resignation ---------------------------------------------------------------------------------


class Resigns(e.Resignation):
    """It is always time to resign."""

    def should_resign(self, *_: object) -> bool:
        return True


def is_replaced(shared: RunOwnership) -> None:
    holder = shared.lease_manager.holder
    shared._claims["run"] = ClaimedRun("run", e.Claim("run", shared.ledger_id, holder))


def stands_still(_: RunOwnership) -> None:
    stand_still(2 * CONFIG.lease_ttl_s)


def is_over(shared: RunOwnership) -> None:
    setattr(shared._runs, "heard", lambda _: None)  # noqa: B010 - it is a method


@pytest.mark.parametrize(
    ("happens", "resigns"),
    [(None, True), (is_replaced, False), (stands_still, False), (is_over, False)],
)
def test_r5_only_an_owner_with_a_good_lease_resigns(
    happens: Callable[[RunOwnership], None] | None,
    resigns: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def main() -> None:
        shared, _ = await new_owner(MemoryLedger(), 1)

        async def others(_: str) -> list[tuple[e.Lease, int]]:
            if happens is not None:
                happens(shared)
            return []

        monkeypatch.setattr(shared.lease_manager, "others", others)
        claimed = shared._claims["run"]
        resignation = Resigns(1.0, CONFIG.lease_ttl_s)
        await shared._resigning._resign_for_another(claimed, resignation)
        is_owner = claimed.claim.state is e.ClaimState.OWNED
        assert is_owner is not resigns
        await shared.aclose()

    run_virtual(main())


@pytest.mark.parametrize("is_owner", [True, False])
def test_r5_only_an_owner_looks_for_another_process(is_owner: bool) -> None:
    async def main() -> None:
        shared, _ = await new_owner(MemoryLedger(), 1)
        claimed = shared._claims["run"]
        resignation = e.Resignation(1.0, CONFIG.lease_ttl_s)
        shared._resigning._resignations["run"] = resignation
        now_s = asyncio.get_running_loop().time()
        if not is_owner:
            claimed.claim.deposed(now_s)
        shared._resigning.tick(claimed, now_s)
        assert resignation.should_look(NOBODY_HEARD, now_s + 100.0) is is_owner
        await shared.aclose()

    run_virtual(main())
