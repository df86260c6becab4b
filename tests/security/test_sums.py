"""Records that strangers cause are few, and none is forgotten."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from rallypoint.security.sums import AT_ONCE, WINDOW_S, Sums


def test_some_are_written_and_the_others_are_counted() -> None:
    sums: Sums[str] = Sums()
    assert [sums.admits("a", 0.0) for _ in range(9)] == [True] * AT_ONCE + [False] * 4
    assert sums.over(WINDOW_S - 0.1) == []
    assert sums.ends_s() == WINDOW_S
    assert sums.over(WINDOW_S) == [("a", 4)]
    assert sums.ends_s() is None
    assert sums.admits("a", WINDOW_S)


def test_more_keys_than_there_is_room_for_are_summed_up_under_coarser_ones() -> None:
    sums: Sums[str] = Sums(lambda key: key[0], lambda key: "", keys_max=3)
    admitted = [sums.admits(f"a{number}", 0.0) for number in range(10_000)]
    assert (sum(admitted), len(sums)) == (3 + AT_ONCE, 4)
    admitted = [sums.admits(f"{chr(98 + number % 20)}x", 0.0) for number in range(2_000)]
    assert (sum(admitted), len(sums)) == (3 * AT_ONCE, 7)
    assert sums.over(WINDOW_S) == [("a", 9_992), ("b", 95), ("c", 95), ("", 1_795)]


@given(st.lists(st.tuples(st.sampled_from("abcdef"), st.floats(0.0, 3.0)), max_size=200))
def test_each_record_is_written_or_counted_once(came: list[tuple[str, float]]) -> None:
    sums: Sums[str] = Sums(lambda key: "others", keys_max=3)
    now_s, written, counted = 0.0, 0, 0
    for key, later_s in came:
        now_s += later_s
        counted += sum(count for _, count in sums.over(now_s))
        written += sums.admits(key, now_s)
    counted += sum(count for _, count in sums.over(float("inf")))
    assert written + counted == len(came)
