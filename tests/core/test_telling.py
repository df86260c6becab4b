"""When a line about a wait is logged."""

from __future__ import annotations

from rallypoint.core.telling import AGAIN_S, KEPT_MAX, LEAST_S, Lines


def said(reasons: list[tuple[float, str]]) -> list[tuple[float, str]]:
    lines = Lines()
    return [(now_s, reason) for now_s, reason in reasons if lines.is_due(reason, now_s)]


def test_a_reason_is_reported_once_and_rarely_again() -> None:
    looks = [(second / 2, "a") for second in range(int(6 * AGAIN_S))]
    assert said(looks) == [(0.0, "a"), (AGAIN_S, "a"), (2 * AGAIN_S, "a")]


def test_a_new_reason_is_reported_at_once_but_not_right_after_a_line() -> None:
    assert said([(0.0, "a"), (LEAST_S, "b")]) == [(0.0, "a"), (LEAST_S, "b")]
    looks = [(0.0, "a"), (0.5, "b"), (1.0, "b"), (LEAST_S, "b"), (LEAST_S + 0.5, "b")]
    assert said(looks) == [(0.0, "a"), (LEAST_S, "b")]


def test_alternating_reasons_are_not_reported_each_time() -> None:
    looks = [(float(second), "ab"[second % 2]) for second in range(int(AGAIN_S))]
    assert [reason for _, reason in said(looks)] == ["a", "b"]


def test_the_memory_of_reasons_is_bounded_and_a_new_wait_clears_it() -> None:
    lines = Lines()
    for number in range(10 * KEPT_MAX):
        assert lines.is_due(number, number * LEAST_S)
    assert len(lines._said_s) <= KEPT_MAX
    now_s = 10 * KEPT_MAX * LEAST_S
    assert lines.is_due("a", now_s)
    assert not lines.is_due("a", now_s + LEAST_S)
    lines.forget()
    assert lines.is_due("a", now_s + LEAST_S)
