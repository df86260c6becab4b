"""Failed logins: who waits how long, and that memory and work are bounded."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from rallypoint.security import logins
from rallypoint.security.logins import (
    ADDRESSES_MAX,
    CHECKS_PER_S,
    FAILED_CHECKS_PER_S,
    FORGOTTEN_AFTER_S,
    FREE,
    LONGEST_S,
    Logins,
)


def test_the_wait_doubles_with_each_failure_that_counts() -> None:
    known, now_s, waits = Logins(), 1_000.0, []
    for _ in range(FREE - 1):
        assert known.failed("a", now_s) == 0.0
        assert known.waits_s("a", now_s) == 0.0
    for _ in range(7):
        assert known.failed("a", now_s) == 0.0
        waits.append(known.waits_s("a", now_s))
        now_s += waits[-1]
    assert waits == [1.0, 2.0, 4.0, 8.0, 16.0, LONGEST_S, LONGEST_S]
    assert known.waits_s("b", now_s) == 0.0


def test_failures_during_a_wait_do_not_make_it_longer() -> None:
    """So a stranger cannot lock out others at the same address for ever."""
    known = Logins()
    for _ in range(FREE):
        known.failed("a", 1_000.0)
    waits = [known.failed("a", 1_000.0 + number / 100) for number in range(99)]
    assert waits == sorted(waits, reverse=True)
    assert 0.0 < waits[-1] <= waits[0] == 1.0
    assert known.failed("a", 1_001.0) == 0.0


def test_an_address_is_forgotten_after_a_while() -> None:
    known = Logins()
    for _ in range(FREE):
        known.failed("a", 1_000.0)
    later_s = 1_001.0 + FORGOTTEN_AFTER_S + 0.1
    assert known.failed("a", later_s) == known.waits_s("a", later_s) == 0.0
    assert len(known) == 1


def test_few_addresses_are_known() -> None:
    known = Logins()
    for number in range(3 * ADDRESSES_MAX):
        known.failed(f"address {number}", 1_000.0)
    assert len(known) == ADDRESSES_MAX


def test_signatures_are_checked_rarely_for_an_address_that_waits() -> None:
    known = Logins()
    for _ in range(FREE):
        assert known.may_check("a", 1_000.0)
        known.failed("a", 1_000.0)
    assert sum(known.may_check("a", 1_000.5) for _ in range(1_000)) == CHECKS_PER_S
    assert all(known.may_check("b", 1_000.5) for _ in range(1_000))
    assert known.may_check("a", 1_001.5)


def test_signatures_that_are_checked_in_vain_are_bounded_over_all_addresses() -> None:
    known, checks = Logins(), 0
    for number in range(10 * FAILED_CHECKS_PER_S):
        if known.may_check(f"address {number}", 1_000.2):
            checks += 1
            known.check_failed(1_000.2)
            known.failed(f"address {number}", 1_000.2)
    assert checks == FAILED_CHECKS_PER_S
    assert known.may_check("another", 1_001.0)


@given(st.lists(st.tuples(st.sampled_from("abc"), st.floats(0.0, 20.0)), max_size=300))
def test_no_wait_is_longer_than_the_longest_and_each_has_an_end(
    came: list[tuple[str, float]],
) -> None:
    known, now_s = Logins(), 0.0
    ends: dict[str, float] = {}
    for address, later_s in came:
        now_s += later_s
        waits_s = known.waits_s(address, now_s)
        assert 0.0 <= waits_s <= logins.LONGEST_S
        if waits_s:
            assert now_s + waits_s <= ends[address] + 1e-6
        known.failed(address, now_s)
        ends[address] = now_s + known.waits_s(address, now_s)
