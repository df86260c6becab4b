"""The checks on a ledger's writes: each accepts correct writes and reports a broken rule."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from rallypoint.core.election import FORMAT, NO_FLOOR, Lease, LeaseState, RunRegister
from rallypoint.core.values import (
    Address,
    CloseRecord,
    Outcome,
    RoundHead,
    Stamp,
)
from rallypoint.testing.election_checker import ElectionChecker
from rallypoint.testing.violations import InvariantViolation

BEGUN = RunRegister(FORMAT, "ledger", "run", 1, "p1")
CLOSE = CloseRecord(Outcome.SUCCEEDED, "trained")


def then(register: RunRegister, **changes: Any) -> RunRegister:
    return msgspec.structs.replace(register, **{"sequence": register.sequence + 1, **changes})


def sealed(register: RunRegister, owner: str, **changes: Any) -> RunRegister:
    changed = {"term": register.term + 1, "owner": owner, "sequence": 0, **changes}
    return msgspec.structs.replace(register, **changed)


def a_round(number: int, term: int = 1, digest: str = "digest") -> RoundHead:
    return RoundHead(number, term, 1, 1, Address("host", 1), digest)


def lease(process: str, beat: int = 1, state: LeaseState = LeaseState.SERVING) -> Lease:
    return Lease(FORMAT, process, beat, state)


@pytest.fixture
def journal() -> ElectionChecker:
    """p1 owns the run; p2 and p3 have leases too."""
    made = ElectionChecker()
    for process in ("p1", "p2", "p3"):
        made.lease_written(lease(process))
    made.run_written(BEGUN)
    return made


def revoke(journal: ElectionChecker, process: str) -> None:
    journal.lease_written(lease(process, 1, LeaseState.REVOKED))


def test_an_ordinary_history_breaks_no_rule(journal: ElectionChecker):
    one = then(BEGUN, round=a_round(1))
    journal.run_written(one)
    journal.committed("run", 1, 1)
    revoke(journal, "p1")
    two = sealed(one, "p2")
    journal.run_written(two)
    three = then(two, round=a_round(2, term=2))
    journal.run_written(three)
    journal.run_written(then(three, owner=""))
    four = sealed(then(three, owner=""), "p3")
    journal.run_written(four)
    five = then(four, close=CLOSE)
    journal.run_written(five)
    journal.run_written(then(five, owner=""))
    assert journal.owner("run") == ("", 3)
    assert journal.is_closed("run")
    journal.lease_swept("p1")


SECOND = then(BEGUN, round=a_round(1))
CLOSED = then(BEGUN, close=CLOSE)


@pytest.mark.parametrize(
    ("rule", "writes"),
    [
        ("R1", [SECOND, then(SECOND, round=a_round(1, digest="another"))]),
        ("R1", [SECOND, then(SECOND, round=a_round(3))]),
        ("R1", [SECOND, then(SECOND, round=None)]),
        ("R1", [SECOND, then(SECOND, owner="", round=a_round(2))]),
        ("R1", [SECOND, sealed(SECOND, "p1", round=None)]),
        ("R5", [sealed(BEGUN, "p1"), then(BEGUN, round=a_round(1))]),
        ("R6", [CLOSED, then(CLOSED, round=a_round(1))]),
        ("R6", [CLOSED, then(CLOSED, close=None)]),
        ("R13", [sealed(BEGUN, "p1"), then(sealed(BEGUN, "p1"), round=a_round(1, term=1))]),
        ("terms", [sealed(BEGUN, "p1", term=3)]),
        ("terms", [then(BEGUN, owner="p2")]),
        ("terms", [then(BEGUN, sequence=5)]),
        ("terms", [then(BEGUN, owner=""), then(then(BEGUN, owner=""), owner="p1")]),
        ("lease", [sealed(BEGUN, "p2")]),
        ("lease", [sealed(BEGUN, "unknown")]),
    ],
)
def test_a_write_that_breaks_a_rule_is_found(
    journal: ElectionChecker, rule: str, writes: list[RunRegister]
):
    for right in writes[:-1]:
        journal.run_written(right)
    with pytest.raises(InvariantViolation) as broken:
        journal.run_written(writes[-1])
    assert broken.value.rule == rule
    assert len(broken.value.history) == 4 + len(writes)


@pytest.mark.parametrize(
    "begun", [sealed(BEGUN, "p1"), then(BEGUN), msgspec.structs.replace(BEGUN, round=a_round(1))]
)
def test_a_run_begins_in_term_1_with_nothing(begun: RunRegister):
    fresh = ElectionChecker()
    fresh.lease_written(lease("p1"))
    with pytest.raises(InvariantViolation, match="R1: a run began"):
        fresh.run_written(begun)


def test_a_lease_that_ended_is_final(journal: ElectionChecker):
    revoke(journal, "p1")
    with pytest.raises(InvariantViolation, match="lease: a lease that has ended"):
        journal.lease_written(lease("p1", 2))


def test_a_beat_advances_by_one(journal: ElectionChecker):
    with pytest.raises(InvariantViolation, match="the beat went from 1 to 3"):
        journal.lease_written(lease("p1", 3))


def test_a_serving_lease_is_not_removed(journal: ElectionChecker):
    with pytest.raises(InvariantViolation, match="while it was serving"):
        journal.lease_swept("p1")


def test_only_the_owner_in_the_ledger_may_decide(journal: ElectionChecker):
    journal.may_decide("run", "p1", 1)
    for process, term in (("p2", 1), ("p1", 2)):
        with pytest.raises(InvariantViolation, match="would decide for run"):
            journal.may_decide("run", process, term)


def test_a_commit_that_a_process_believes_in_is_in_the_ledger(journal: ElectionChecker):
    with pytest.raises(InvariantViolation, match="never committed"):
        journal.committed("run", 1, 1)


def test_the_fencing_token_never_falls(journal: ElectionChecker):
    journal.accepted("node", "run", Stamp("ledger", 2, 3))
    journal.accepted("node", "run", Stamp("ledger", 2, 3))
    journal.accepted("another", "run", Stamp("ledger", 1, 3))
    with pytest.raises(InvariantViolation, match="R13: node went back"):
        journal.accepted("node", "run", Stamp("ledger", 1, 4))


class TestRemovingRuns:
    """R1, R13."""

    CLOSE = then(then(BEGUN, round=a_round(1)), close=CLOSE)
    FLOOR = NO_FLOOR.raised(CLOSE)

    def removed(self, journal: ElectionChecker) -> None:
        for each in (then(BEGUN, round=a_round(1)), self.CLOSE):
            journal.run_written(each)
        journal.floor_written(self.FLOOR)
        journal.run_removed("run")

    def test_a_run_that_begins_again_is_above_the_floor(self, journal: ElectionChecker):
        self.removed(journal)
        again = msgspec.structs.replace(BEGUN, term=2, floor=1)
        journal.run_written(again)
        journal.run_written(then(again, round=a_round(2, term=2)))

    def test_a_run_below_the_floor_forms_no_round(self, journal: ElectionChecker):
        self.removed(journal)
        journal.run_written(BEGUN)
        with pytest.raises(InvariantViolation, match="R13"):
            journal.run_written(then(BEGUN, round=a_round(1)))

    def test_a_run_created_late_is_lifted(self, journal: ElectionChecker):
        self.removed(journal)
        journal.run_written(BEGUN)
        lifted = sealed(BEGUN, "p1", term=2, floor=1)
        journal.run_written(lifted)
        journal.run_written(then(lifted, round=a_round(2, term=2)))

    def test_the_floor_comes_before_the_removal(self, journal: ElectionChecker):
        for each in (then(BEGUN, round=a_round(1)), self.CLOSE):
            journal.run_written(each)
        with pytest.raises(InvariantViolation, match="R13"):
            journal.run_removed("run")

    def test_an_open_run_is_not_removed(self, journal: ElectionChecker):
        with pytest.raises(InvariantViolation, match="R6"):
            journal.run_removed("run")

    def test_the_floor_does_not_fall(self, journal: ElectionChecker):
        journal.floor_written(self.FLOOR)
        with pytest.raises(InvariantViolation, match="R13"):
            journal.floor_written(NO_FLOOR)

    def test_the_collector_closes_a_run_whose_owner_has_ended(self, journal: ElectionChecker):
        gone = sealed(BEGUN, "", close=CLOSE)
        with pytest.raises(InvariantViolation, match="lease"):
            journal.run_written(gone)
        revoke(journal, "p1")
        journal.run_written(gone)
        assert journal.is_closed("run")

    def test_the_collector_changes_nothing_else(self, journal: ElectionChecker):
        revoke(journal, "p1")
        with pytest.raises(InvariantViolation, match="R5"):
            journal.run_written(sealed(BEGUN, "", close=CLOSE, round=a_round(1, term=2)))
