"""A coordinator that takes a run over goes on where the last one left it (R5, R7, R8)."""

from __future__ import annotations

import msgspec

from rallypoint.core import effects as do
from rallypoint.core import events as on
from rallypoint.core.election import RunState
from rallypoint.core.membership import Membership
from rallypoint.core.values import (
    Address,
    Change,
    ChangeKind,
    CloseRecord,
    Failure,
    FailureKind,
    NodeId,
    NodeInfo,
    Outcome,
    Phase,
    RoundRecord,
    RunSettings,
)

SETTINGS = RunSettings(min_nodes=2, max_nodes=3, max_restarts=1)
GRACE_S = 6.0


def info(name: str) -> NodeInfo:
    return NodeInfo(name, 7, f"host-{name}")


def a_round() -> RoundRecord:
    """Round 1 of a, b and c, made by a first coordinator."""
    first = Membership("run")
    record = None
    for connection_id, name in enumerate("abc"):
        first.step(on.NodeAttached(info(name), SETTINGS, connection_id), 0.0)
        for effect in first.step(on.NodeReady(NodeId(name, 7), 0, Address(name, 1), 1), 0.0):
            if isinstance(effect, do.Commit):
                record = effect.record
    assert isinstance(record, RoundRecord)
    return record


class Successor:
    """A coordinator of the next term, with a clock."""

    def __init__(
        self, close: CloseRecord | None = None, restarts: int = 0, *, store_lost: str = ""
    ) -> None:
        self.membership = Membership("run", term=2)
        register = RunState(2, SETTINGS, a_round(), close, restarts)
        self.now_s = 100.0
        self.timers: list[tuple[float, on.TimerFired]] = []
        self.effects: list[do.Effect] = []
        self._take(
            self.membership.restore(
                register, attach_grace_s=GRACE_S, now_s=self.now_s, store_lost=store_lost
            )
        )

    def step(self, event: on.Event) -> list[do.Effect]:
        return self._take(self.membership.step(event, self.now_s))

    def attach(self, name: str) -> list[do.Effect]:
        return self.step(on.NodeAttached(info(name), SETTINGS, ord(name)))

    def ready(self, name: str, change: Change | None = None, leaving: int = 1) -> list[do.Effect]:
        return self.step(on.NodeReady(NodeId(name, 7), leaving, Address(name, 2), 1, change))

    def advance(self, seconds: float) -> list[do.Effect]:
        found = []
        until_s = self.now_s + seconds
        while due := sorted((t for t in self.timers if t[0] <= until_s), key=lambda t: t[0]):
            self.timers.remove(due[0])
            self.now_s = due[0][0]
            found += self.step(due[0][1])
        self.now_s = until_s
        return found

    def _take(self, effects: list[do.Effect]) -> list[do.Effect]:
        for effect in effects:
            if isinstance(effect, do.SetTimer):
                self.timers.append((self.now_s + effect.delay_s, on.TimerFired(effect.timer)))
        self.effects += effects
        for effect in effects:
            if isinstance(effect, do.WriteMarks):
                self.step(on.MarksWritten(effect.serial))
        return effects

    def broken(self) -> list[Change]:
        return [e.change for e in self.effects if isinstance(e, do.Break)]


def test_members_that_attach_again_keep_their_round() -> None:
    successor = Successor()
    for name in "abc":
        (welcome,) = successor.attach(name)
        assert isinstance(welcome, do.Welcome)
        assert welcome.resumed
        assert welcome.standing.round == 1
    successor.advance(60.0)
    assert successor.membership.phase is Phase.ACTIVE
    assert not successor.broken()
    assert successor.membership.term == 2


def test_a_member_that_attaches_again_says_its_index_again() -> None:
    """The member table of a round does not have it."""
    successor = Successor()
    node = msgspec.structs.replace(info("a"), index=2)
    successor.step(on.NodeAttached(node, SETTINGS, 1))
    a, b = map(successor.membership.roster.get, "ab")
    assert a is not None
    assert b is not None
    assert (a.info.index, b.info.index) == (2, None)


def test_a_missing_member_breaks_the_round_after_the_attach_grace() -> None:
    successor = Successor()
    successor.attach("a")
    successor.attach("b")
    successor.advance(GRACE_S - 0.1)
    assert not successor.broken()
    successor.advance(0.2)
    (change,) = successor.broken()
    assert change.kind is ChangeKind.NODE_LOST
    assert change.nodes == ("c",)


def test_an_ended_round_ends_for_the_same_reason_after_a_takeover() -> None:
    successor = Successor()
    told = Change(ChangeKind.NODE_LOST, 1, ("c",), 1, "its connection closed")
    successor.attach("a")
    successor.ready("a", told)
    assert successor.broken() == [told]
    successor.attach("b")
    successor.ready("b", told)
    assert successor.membership.phase is Phase.GATHERING
    successor.advance(GRACE_S + 1.0)
    records = [e.record for e in successor.effects if isinstance(e, do.Commit)]
    (record,) = records
    assert isinstance(record, RoundRecord)
    assert record.head.number == 2
    assert record.head.term == 2
    assert [m.name for m in record.members] == ["a", "b"]


def test_an_uncommitted_charge_is_charged_once_by_the_successor() -> None:
    failure = Failure(FailureKind.EXCEPTION, "ValueError", rank=0)
    told = Change(
        ChangeKind.WORKER_FAILED, 1, ("a",), 1, "", 0.0, failure, charged=True, confirmed=True
    )
    successor = Successor()
    for name in "abc":
        successor.attach(name)
        successor.ready(name, told)
    successor.advance(2.0)
    assert successor.membership.restart_count == 1


def test_the_restart_budget_survives_a_takeover() -> None:
    successor = Successor(restarts=1)
    failure = Failure(FailureKind.EXCEPTION, "ValueError", rank=0)
    for name in "abc":
        successor.attach(name)
    successor.step(on.WorkerFailed(NodeId("a", 7), 1, failure))
    for name in "abc":
        successor.step(on.ProbeAnswered(NodeId(name, 7)))
    successor.advance(1.0)
    records = [e.record for e in successor.effects if isinstance(e, do.Commit)]
    assert isinstance(records[-1], CloseRecord)
    assert records[-1].outcome is Outcome.FAILED


def test_a_closed_run_stays_closed() -> None:
    """R6."""
    successor = Successor(close=CloseRecord(Outcome.SUCCEEDED, "trained"))
    (refuse,) = successor.attach("a")
    assert isinstance(refuse, do.Refuse)
    assert refuse.refusal.close is not None


def test_a_node_that_did_not_get_the_round_yet_is_in_it() -> None:
    """Published to some, and then the coordinator died: the others are in the round as well."""
    successor = Successor()
    (welcome,) = successor.attach("a")
    assert isinstance(welcome, do.Welcome)
    assert welcome.standing.round == 1
    assert successor.ready("a", leaving=0) == []
    assert not successor.broken()


def test_missing_members_are_lost_despite_outages_of_the_ledger() -> None:
    """R7: the attach grace ended while no member could be judged; afterwards it begins again."""
    successor = Successor()
    successor.attach("a")
    successor.attach("b")
    successor.step(on.LedgerLost("etcd does not answer"))
    successor.advance(2 * GRACE_S)
    successor.step(on.LedgerRestored())
    successor.advance(GRACE_S - 0.1)
    assert not successor.broken()
    successor.advance(0.2)
    (change,) = successor.broken()
    assert change.nodes == ("c",)


def test_without_its_store_a_round_ends_and_members_regroup() -> None:
    """R10: no node continues with an empty store, and the program is not charged."""
    successor = Successor(store_lost="its log was removed")
    (change,) = successor.broken()
    assert change.round == 1
    assert not change.charged
    assert str(change) == "the round's store was lost: its log was removed"
    for name in "abc":
        welcome = successor.attach(name)[0]
        assert isinstance(welcome, do.Welcome)
        assert welcome.standing.round == 0
        assert welcome.standing.change == change
        successor.ready(name)
    (record,) = [e.record for e in successor.effects if isinstance(e, do.Commit)]
    assert isinstance(record, RoundRecord)
    assert record.head.number == 2
    assert record.head.restart_count == 0


def test_only_the_present_round_ends_with_its_store() -> None:
    successor = Successor()
    for name in "abc":
        successor.attach(name)
    assert successor.step(on.StoreLost(0, "its log was removed")) == []
    successor.step(on.LedgerLost("etcd does not answer"))
    successor.step(on.StoreLost(1, "its log was removed"))
    (change,) = successor.broken()
    assert "its log was removed" in str(change)
