"""A test for each rule of docs/protocol.md that the core can keep alone. Each quotes its rule.

R1 to R6 and R8 are also checked after every step of all other tests here (`invariants.Checked`).
The core has no clock and no bytes, so it keeps R9 and R12. The store and the ledger keep R10 and
R11, the agent keeps R13.
"""

import pytest

from rallypoint.checkers.invariants import InvariantViolation, RunChecker, check
from rallypoint.core import effects as do
from rallypoint.core import events as on
from rallypoint.core.ranks import seats_of
from rallypoint.core.values import (
    Address,
    ChangeKind,
    NodeId,
    NodeInfo,
    Phase,
    RoundRecord,
    RunSettings,
    table_digest,
)
from tests.core.driver import Driver, node_id


def committed(driver: Driver) -> list[RoundRecord]:
    records = (effect.record for _, effect in driver.effects if isinstance(effect, do.Commit))
    return [record for record in records if isinstance(record, RoundRecord)]


def effects_of(driver: Driver, kind: type[do.Effect]) -> list[do.Effect]:
    return [effect for _, effect in driver.effects if isinstance(effect, kind)]


def test_r1_a_number_is_committed_once_and_numbers_only_grow() -> None:
    """R1. For one ledger, at most one round is committed with a given number, and numbers only
    grow."""
    driver = Driver(min=1, max=3, last_call=1)
    for _ in range(3):
        driver.join("a", "b", "c")
        driver.ready("a", "b", "c")
        driver.leave("b")
        driver.ready("a", "c")
        driver.advance(2.0)
        driver.leave("a", "c")
    numbers = [record.head.number for record in committed(driver)]
    assert len(numbers) > 5
    assert numbers == sorted(set(numbers))


def test_r1_an_unconfirmed_record_is_written_again_unchanged() -> None:
    """R1 with an outage of the ledger: the same number is the same round."""
    driver = Driver(max=2, manual_commit=True)
    driver.join("a", "b")
    driver.lose_ledger()
    driver.join("c")
    driver.leave("a")
    driver.restore_ledger()
    first, second = committed(driver)
    assert first == second


def test_r2_the_digest_is_of_all_that_members_must_agree_on() -> None:
    """R2. All members of a round agree on its members, ranks, sizes and bootstrap address."""
    driver = Driver(max=2)
    driver.join("a", "b")
    [record] = committed(driver)
    head, members = record.head, record.members
    assert head.digest == table_digest(head.number, members, head.bootstrap)
    others = {
        table_digest(head.number + 1, members, head.bootstrap),
        table_digest(head.number, members[::-1], head.bootstrap),
        table_digest(head.number, members[:1], head.bootstrap),
        table_digest(head.number, members, Address("elsewhere", 1)),
    }
    assert len(others) == 4
    assert head.digest not in others


@pytest.mark.parametrize("workers", [(1, 1, 1), (2, 2, 2), (3, 1, 8)])
def test_r3_every_rank_is_given_once(workers: tuple[int, ...]) -> None:
    """R3. Worker ranks are 0 to size - 1 and node ranks 0 to n - 1, each once;
    min_nodes <= n <= max_nodes."""
    driver = Driver(max=3)
    driver.attach("a", "b", "c")
    for name, count in zip("abc", workers, strict=True):
        driver.ready(name, workers=count)
    assert driver.run.round is not None
    seats = seats_of(driver.run.round)
    assert [seat.node_rank for seat in seats] == [0, 1, 2]
    given = [rank for s in seats for rank in range(s.first_rank, s.first_rank + s.workers)]
    assert given == list(range(sum(workers)))
    assert driver.run.round is not None
    assert driver.run.round.head.size == sum(workers)


def test_r4_a_node_gets_only_rounds_that_it_was_ready_for() -> None:
    """R4. A node never receives a round that it was not ready for."""
    driver = Driver(max=4)
    driver.attach("a", "b", "c")
    driver.ready("a", "b")
    driver.advance(30.0)
    assert driver.names == ["a", "b"]
    driver.ready("a", "b")
    driver.advance(1.0)
    assert driver.names == ["a", "b"]


def test_r4_a_repeat_of_ready_breaks_nothing() -> None:
    """R4. `ready` names the round it leaves, so that a repeat cannot break the next."""
    driver = Driver(max=2)
    driver.join("a", "b")
    driver.ready("a", "b")
    assert driver.run.number == 2
    for leaving in (0, 1):
        driver.ready("a", leaving=leaving)
        driver.ready("b", leaving=leaving)
    assert driver.run.number == 2
    assert driver.phase is Phase.ACTIVE


def test_r5_each_commit_has_the_term() -> None:
    """R5. Commits and closes follow only from a swap conditioned on the term."""
    driver = Driver(max=2, term=7)
    driver.join("a", "b")
    driver.close()
    assert [record.head.term for record in committed(driver)] == [7]
    assert driver.run.close is not None
    assert driver.run.close.term == 7


def test_r5_a_deposed_coordinator_decides_nothing_more() -> None:
    """R5. Nothing that an older term decides takes effect once a newer one has sealed."""
    driver = Driver(max=2, manual_commit=True)
    driver.join("a", "b")
    driver.refuse_commit()
    driver.take()
    driver.commit()
    driver.restore_ledger()
    driver.join("c")
    driver.leave("a")
    driver.close()
    driver.advance(1000.0)
    assert [effect for _, effect in driver.take() if not isinstance(effect, do.Welcome)] == []


def test_r6_a_closed_run_forms_no_further_round() -> None:
    """R6. A closed run forms no further round, whoever coordinates."""
    driver = Driver(max=2)
    driver.join("a", "b")
    driver.close()
    driver.take()
    driver.ready("a", "b")
    driver.join("c", "d")
    driver.advance(1000.0)
    assert {type(effect) for _, effect in driver.take()} == {do.Refuse}


@pytest.mark.parametrize("hung", [0, 1, 2, 3])
def test_r7_a_round_is_formed_within_the_last_call(hung: int) -> None:
    """R7. If at least min_nodes stay alive, connected and ready, and a coordinator and its ledger
    answer, a round is formed within the last call plus one second."""
    driver = Driver(min=2, max=4)
    driver.join("a", "b", "c", "d")
    driver.leave("a")
    survivors = ["b", "c", "d"]
    driver.ready(*survivors[hung:])
    driver.join("x", "y")
    driver.advance(driver.settings.last_call_s + 1.0)
    assert driver.phase is Phase.ACTIVE
    assert driver.run.number == 2
    assert not set(survivors[:hung]) & set(driver.names)


def test_r8_a_member_whose_connection_stays_closed_is_lost_after_the_grace() -> None:
    """R8. A dead or silent member is lost within its bound ..."""
    driver = Driver(max=3)
    driver.join("a", "b", "c")
    driver.disconnect("c")
    driver.advance(0.999)
    assert driver.run.roster.get("c")
    driver.advance(0.001)
    assert driver.run.roster.get("c") is None
    assert driver.phase is Phase.GATHERING


def test_r8_a_silent_member_is_lost_within_its_bound() -> None:
    """R8. A dead or silent member is suspect within `suspect_after_s` and lost within its bound."""
    driver = Driver(max=3)
    driver.join("a", "b", "c")
    driver.silent("c", silent_s=5.0)
    driver.advance(24.9)
    assert driver.run.roster.get("c")
    driver.advance(0.1)
    assert driver.run.roster.get("c") is None


def test_r8_a_member_that_answers_is_never_lost() -> None:
    """R8. ... a member that answers is never declared lost ..."""
    driver = Driver(max=3, restarts=None)
    driver.join("a", "b", "c")
    driver.silent("c")
    driver.fail("a")
    driver.advance(0.9)
    driver.answer("c")
    driver.advance(100.0)
    assert driver.is_connected("c")


def test_r8_no_member_is_lost_while_many_are_missing_together() -> None:
    """R8. ... nobody is, while many are missing together (`mass_grace_s`)."""
    driver = Driver(min=2, max=6)
    driver.join(*"abcdef")
    driver.disconnect("a", "b", "c")
    driver.silent("d", "e")
    driver.advance(119.9)
    assert len(driver.run.roster) == 6
    assert driver.phase is Phase.ACTIVE
    driver.advance(0.2)
    assert len(driver.run.roster) == 1


# -- each check must be able to fail -----------------------------------------------------------


SETTINGS = RunSettings(min_nodes=1, max_nodes=2)


class Forger:
    """A run of one node, whose effects were tampered with."""

    def __init__(self) -> None:
        self.checker = RunChecker(term=1)
        self.driver = Driver(min=1, max=1)
        self.driver.join("a")
        self.welcome = next(e for e in effects_of(self.driver, do.Welcome))
        [self.record] = committed(self.driver)
        attached = on.NodeAttached(NodeInfo("a", 1, "a"), SETTINGS, 1)
        self.checker.note(attached, 0.0, [self.welcome])

    def note(self, event: on.Event, *effects: do.Effect, now_s: float = 0.0) -> None:
        self.checker.note(event, now_s, effects)

    def ready(self, *effects: do.Effect) -> None:
        self.note(on.NodeReady(node_id("a"), 0, Address("a", 1), 1), *effects)


def test_the_checker_finds_a_round_committed_twice() -> None:
    forger = Forger()
    forger.ready(do.Commit(forger.record))
    forger.note(on.Committed(), do.Publish(forger.record))
    with pytest.raises(InvariantViolation, match="R1"):
        forger.note(on.NodeHeard(node_id("a")), do.Commit(forger.record))


def test_the_checker_finds_a_round_that_was_never_committed() -> None:
    forger = Forger()
    with pytest.raises(InvariantViolation, match="R1"):
        forger.ready(do.Publish(forger.record))


def test_the_checker_finds_a_member_that_was_not_ready() -> None:
    forger = Forger()
    forger.note(on.NodeHeard(node_id("a")), do.Commit(forger.record))
    with pytest.raises(InvariantViolation, match="R4") as seen:
        forger.note(on.Committed(), do.Publish(forger.record))
    assert len(seen.value.history) == 3
    assert "NodeHeard(a/1)" in str(seen.value)


def test_the_checker_finds_another_term_and_effects_after_a_deposition() -> None:
    driver = Driver(min=1, max=1, term=2)
    driver.join("a")
    forger = Forger()
    with pytest.raises(InvariantViolation, match="R5"):
        forger.ready(do.Commit(*committed(driver)))
    forger = Forger()
    forger.ready(do.Commit(forger.record))
    forger.note(on.CommitRefused("deposed"), do.StepDown("deposed"))
    with pytest.raises(InvariantViolation, match="R5"):
        forger.note(on.LedgerRestored(), do.Commit(forger.record))


def test_the_checker_finds_a_false_loss() -> None:
    forget = do.Forget(NodeId("a", 1), "lost")
    with pytest.raises(InvariantViolation, match="R8: a answers"):
        Forger().note(on.LedgerRestored(), forget)
    forger = Forger()
    forger.note(on.ConnectionLost(node_id("a"), 1))
    with pytest.raises(InvariantViolation, match="R8: a was declared lost before its time"):
        forger.note(on.LedgerRestored(), forget, now_s=0.5)


def test_the_checker_finds_an_effect_that_grows_with_the_nodes() -> None:
    names = tuple(f"n{number}" for number in range(100))
    change = Driver(max=2)
    change.join("a", "b")
    change.leave("a")
    [broken] = effects_of(change, do.Break)
    assert isinstance(broken, do.Break)
    assert broken.change.kind is ChangeKind.NODE_LEFT
    grown = do.Break(type(broken.change)(ChangeKind.NODE_LOST, 1, names))
    with pytest.raises(InvariantViolation, match="grows"):
        Forger().note(on.LedgerRestored(), grown)


def test_the_checker_finds_a_roster_that_was_not_reindexed() -> None:
    driver = Driver(max=2)
    driver.join("a", "b")
    check(driver.run)
    member = driver.run.roster.get("a")
    assert member is not None
    member.survivor = True
    with pytest.raises(InvariantViolation, match="buckets"):
        check(driver.run)
