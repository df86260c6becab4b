"""The checks on a ledger's writes: each accepts correct writes and reports a broken rule."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from rallypoint.checkers.election_checker import ElectionChecker
from rallypoint.checkers.violations import InvariantViolation
from rallypoint.core.election import FORMAT, NO_FLOOR, Lease, LeaseState, RunRegister
from rallypoint.core.election.records import decode_run, encode
from rallypoint.core.values import (
    Address,
    CloseRecord,
    Outcome,
    RoundHead,
    Stamp,
)

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
def checker() -> ElectionChecker:
    """p1 owns the run; p2 and p3 have leases too."""
    made = ElectionChecker()
    for process in ("p1", "p2", "p3"):
        made.lease_written(lease(process))
    made.run_written(BEGUN)
    return made


def revoke(checker: ElectionChecker, process: str) -> None:
    checker.lease_written(lease(process, 1, LeaseState.REVOKED))


def test_an_ordinary_history_breaks_no_rule(checker: ElectionChecker):
    one = then(BEGUN, round=a_round(1))
    checker.run_written(one)
    checker.committed("run", 1, 1)
    revoke(checker, "p1")
    two = sealed(one, "p2")
    checker.run_written(two)
    three = then(two, round=a_round(2, term=2))
    checker.run_written(three)
    checker.run_written(then(three, owner=""))
    four = sealed(then(three, owner=""), "p3")
    checker.run_written(four)
    five = then(four, close=CLOSE)
    checker.run_written(five)
    checker.run_written(then(five, owner=""))
    assert checker.owner("run") == ("", 3)
    assert checker.is_closed("run")
    checker.lease_swept("p1")


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
    checker: ElectionChecker, rule: str, writes: list[RunRegister]
):
    for right in writes[:-1]:
        checker.run_written(right)
    with pytest.raises(InvariantViolation) as broken:
        checker.run_written(writes[-1])
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


def of_another_release(register: RunRegister, *, fields: int) -> RunRegister:
    """As a release wrote it that knows fewer fields, or more."""
    known = msgspec.msgpack.decode(encode(register))
    return decode_run(msgspec.msgpack.encode((known + ["added"] * fields)[:fields]))


def test_a_release_may_know_more_fields_than_the_writer_of_a_head(checker: ElectionChecker):
    known = len(msgspec.msgpack.decode(encode(BEGUN)))
    older = of_another_release(then(BEGUN, round=a_round(1)), fields=known - 1)
    assert older.as_read
    checker.run_written(older)
    revoke(checker, "p1")
    checker.run_written(sealed(older, "p2", as_read=()))


def test_what_a_newer_release_has_added_to_a_head_must_stay(checker: ElectionChecker):
    known = len(msgspec.msgpack.decode(encode(BEGUN)))
    newer = of_another_release(then(BEGUN, round=a_round(1)), fields=known + 1)
    checker.run_written(newer)
    revoke(checker, "p1")
    with pytest.raises(InvariantViolation, match="R1"):
        checker.run_written(sealed(newer, "p2", as_read=()))
    checker.run_written(sealed(newer, "p3"))


def test_a_lease_that_ended_is_final(checker: ElectionChecker):
    revoke(checker, "p1")
    with pytest.raises(InvariantViolation, match="lease: a lease that has ended"):
        checker.lease_written(lease("p1", 2))


def test_a_beat_advances_by_one(checker: ElectionChecker):
    with pytest.raises(InvariantViolation, match="the beat went from 1 to 3"):
        checker.lease_written(lease("p1", 3))


def test_a_serving_lease_is_not_removed(checker: ElectionChecker):
    with pytest.raises(InvariantViolation, match="while it was serving"):
        checker.lease_swept("p1")


def test_only_the_owner_in_the_ledger_may_decide(checker: ElectionChecker):
    checker.may_decide("run", "p1", 1)
    for process, term in (("p2", 1), ("p1", 2)):
        with pytest.raises(InvariantViolation, match="would decide for run"):
            checker.may_decide("run", process, term)


def test_a_commit_that_a_process_believes_in_is_in_the_ledger(checker: ElectionChecker):
    with pytest.raises(InvariantViolation, match="never committed"):
        checker.committed("run", 1, 1)


def test_the_fencing_token_never_falls(checker: ElectionChecker):
    checker.accepted("node", "run", Stamp("ledger", 2, 3))
    checker.accepted("node", "run", Stamp("ledger", 2, 3))
    checker.accepted("another", "run", Stamp("ledger", 1, 3))
    with pytest.raises(InvariantViolation, match="R13: node went back"):
        checker.accepted("node", "run", Stamp("ledger", 1, 4))


class TestRemovingRuns:
    """R1, R13."""

    CLOSE = then(then(BEGUN, round=a_round(1)), close=CLOSE)
    FLOOR = NO_FLOOR.raised(CLOSE)

    def removed(self, checker: ElectionChecker) -> None:
        for each in (then(BEGUN, round=a_round(1)), self.CLOSE):
            checker.run_written(each)
        checker.floor_written(self.FLOOR)
        checker.run_removed("run")

    def test_a_run_that_begins_again_is_above_the_floor(self, checker: ElectionChecker):
        self.removed(checker)
        again = msgspec.structs.replace(BEGUN, term=2, floor=1)
        checker.run_written(again)
        checker.run_written(then(again, round=a_round(2, term=2)))

    def test_a_run_below_the_floor_forms_no_round(self, checker: ElectionChecker):
        self.removed(checker)
        checker.run_written(BEGUN)
        with pytest.raises(InvariantViolation, match="R13"):
            checker.run_written(then(BEGUN, round=a_round(1)))

    def test_a_run_created_late_is_lifted(self, checker: ElectionChecker):
        self.removed(checker)
        checker.run_written(BEGUN)
        lifted = sealed(BEGUN, "p1", term=2, floor=1)
        checker.run_written(lifted)
        checker.run_written(then(lifted, round=a_round(2, term=2)))

    def test_the_floor_comes_before_the_removal(self, checker: ElectionChecker):
        for each in (then(BEGUN, round=a_round(1)), self.CLOSE):
            checker.run_written(each)
        with pytest.raises(InvariantViolation, match="R13"):
            checker.run_removed("run")

    def test_an_open_run_is_not_removed(self, checker: ElectionChecker):
        with pytest.raises(InvariantViolation, match="R6"):
            checker.run_removed("run")

    def test_the_floor_does_not_fall(self, checker: ElectionChecker):
        checker.floor_written(self.FLOOR)
        with pytest.raises(InvariantViolation, match="R13"):
            checker.floor_written(NO_FLOOR)

    def test_the_collector_closes_a_run_whose_owner_has_ended(self, checker: ElectionChecker):
        gone = sealed(BEGUN, "", close=CLOSE)
        with pytest.raises(InvariantViolation, match="lease"):
            checker.run_written(gone)
        revoke(checker, "p1")
        checker.run_written(gone)
        assert checker.is_closed("run")

    def test_the_collector_changes_nothing_else(self, checker: ElectionChecker):
        revoke(checker, "p1")
        with pytest.raises(InvariantViolation, match="R5"):
            checker.run_written(sealed(BEGUN, "", close=CLOSE, round=a_round(1, term=2)))
