"""Records that strangers cause are few, and none is forgotten."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from rallypoint.security.sums import AT_ONCE, WINDOW_S, Sums


def test_some_are_written_and_the_others_are_counted() -> None:
    sums: Sums[str] = Sums("others")
    assert [sums.admits("a", 0.0) for _ in range(9)] == [True] * AT_ONCE + [False] * 4
    assert sums.over(WINDOW_S - 0.1) == []
    assert sums.ends_s() == WINDOW_S
    assert sums.over(WINDOW_S) == [("a", 4)]
    assert sums.ends_s() is None
    assert sums.admits("a", WINDOW_S)


def test_more_keys_than_there_is_room_for_are_summed_up_together() -> None:
    sums: Sums[str] = Sums("others", keys_max=3)
    admitted = [sums.admits(f"key{number}", 0.0) for number in range(10_000)]
    assert (sum(admitted), len(sums)) == (3, 4)
    assert sums.over(WINDOW_S) == [("others", 9_997)]


@given(st.lists(st.tuples(st.sampled_from("abcdef"), st.floats(0.0, 3.0)), max_size=200))
def test_each_record_is_written_or_counted_once(came: list[tuple[str, float]]) -> None:
    sums: Sums[str] = Sums("others", keys_max=3)
    now_s, written, counted = 0.0, 0, 0
    for key, later_s in came:
        now_s += later_s
        counted += sum(count for _, count in sums.over(now_s))
        written += sums.admits(key, now_s)
    counted += sum(count for _, count in sums.over(float("inf")))
    assert written + counted == len(came)
