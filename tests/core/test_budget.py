"""The bytes of a process and how runs share them: which run is refused, with which text."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from rallypoint.core.budget import MemoryBudget, MemoryShare
from tests.kinds import examples

MIB = 1024**2
LIMIT = 100 * MIB


def filled(share: MemoryShare, step: int = MIB) -> int:
    """How much the share has when it may have no more."""
    while share.excess(step) is None:
        share.add(step)
    return share.used


def test_one_run_alone_gets_half_of_the_budget() -> None:
    budget = MemoryBudget(LIMIT)
    assert filled(budget.share("first")) == LIMIT // 2
    assert filled(budget.share("second")) >= LIMIT // 3 - MIB
    assert budget.used <= LIMIT


def test_greedy_runs_leave_an_equal_part_for_one_more() -> None:
    budget = MemoryBudget(LIMIT)
    shares = [budget.share(str(number)) for number in range(4)]
    while any(share.excess(MIB) is None for share in shares):
        for share in shares:
            if share.excess(MIB) is None:
                share.add(MIB)
    assert all(LIMIT // 5 - MIB <= share.used <= LIMIT // 5 + MIB for share in shares)
    late = budget.share("late")
    assert filled(late) >= LIMIT // 6 - MIB


def test_a_refusal_names_the_run_the_limit_and_who_uses_it() -> None:
    budget = MemoryBudget(LIMIT)
    share = budget.share("run 'job'")
    share.add(60 * MIB)
    other = budget.share("run 'other'")
    other.add(5 * MIB)
    excess = share.excess(4 * MIB)
    assert excess is not None
    text = str(excess)
    for part in ("run 'job'", "60 MiB", "4 MiB more", "100 MiB", "65 MiB", "33.3 MiB"):
        assert part in text
    assert other.excess(4 * MIB) is None


def test_released_bytes_can_be_used_again() -> None:
    budget = MemoryBudget(LIMIT)
    share = budget.share("run")
    filled(share)
    share.add(-10 * MIB)
    assert share.excess(10 * MIB) is None


def test_an_ended_run_holds_nothing_and_late_releases_change_nothing() -> None:
    budget = MemoryBudget(LIMIT)
    share, other = budget.share("over"), budget.share("other")
    share.add(7 * MIB)
    other.add(MIB)
    share.close()
    assert (budget.used, budget.fair) == (MIB, LIMIT // 2)
    share.add(-7 * MIB)
    assert budget.used == MIB


def test_only_runs_that_hold_something_are_counted() -> None:
    budget = MemoryBudget(LIMIT)
    shares = [budget.share(str(number)) for number in range(1000)]
    assert budget.fair == LIMIT
    shares[0].add(1)
    shares[1].add(5)
    assert budget.fair == LIMIT // 3
    shares[1].add(-5)
    assert budget.fair == LIMIT // 2


class Sharing(RuleBasedStateMachine):
    """Runs that take bytes, give them back and end, in any order."""

    def __init__(self) -> None:
        super().__init__()
        self.budget = MemoryBudget(1000)
        self.shares = [self.budget.share(str(number)) for number in range(5)]

    @rule(which=st.integers(0, 4), size=st.integers(1, 400))
    def take(self, which: int, size: int) -> None:
        share = self.shares[which]
        fair, used, free = self.budget.fair, share.used, 1000 - self.budget.used
        excess = share.excess(size)
        if excess is None:
            assert used + size <= fair or used + size <= free - size
            share.add(size)
        else:
            assert used + size > fair, "a run below its fair part was refused"

    @rule(which=st.integers(0, 4), part=st.floats(0, 1))
    def give_back(self, which: int, part: float) -> None:
        self.shares[which].add(-int(self.shares[which].used * part))

    @rule(which=st.integers(0, 4))
    def end(self, which: int) -> None:
        self.shares[which].close()
        self.shares[which] = self.budget.share(str(which))

    @invariant()
    def the_sum_is_the_sum(self) -> None:
        used = [share.used for share in self.shares]
        assert self.budget.used == sum(used)
        assert self.budget.fair == 1000 // (sum(map(bool, used)) + 1)
        assert self.budget.used < 2000


TestSharing = Sharing.TestCase
TestSharing.settings = settings(max_examples=examples(60), stateful_step_count=40, deadline=None)


@given(st.lists(st.integers(1, 50), min_size=1, max_size=30))
@settings(deadline=None)
def test_borrowing_alone_never_passes_the_limit(sizes: list[int]) -> None:
    """However many runs borrow at once: only fair parts can exceed the limit."""
    budget = MemoryBudget(1000)
    shares = [budget.share(str(number)) for number in range(len(sizes))]
    for share in shares:
        share.add(1)
    for share, size in zip(shares, sizes, strict=True):
        while share.excess(size) is None and share.used + size > budget.fair:
            share.add(size)
    assert budget.used <= 1000
