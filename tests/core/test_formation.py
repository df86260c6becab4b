"""Whether a round is formed now: the rule of `formation.decide`, as a table and as properties."""

from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rallypoint.core.formation import Call, Counts, Decision, decide

NOT_YET, RUNNING, OVER = Call.NOT_YET, Call.RUNNING, Call.OVER


def gathering(survivors: int = 0, held: int = 0, newcomers: int = 0, **more: Any) -> Counts:
    """A gathering for rounds of 2 to 4 nodes."""
    fields: dict[str, Any] = {"minimum": 2, "maximum": 4} | more
    return Counts(ready_survivors=survivors, places_held=held, newcomers=newcomers, **fields)


@pytest.mark.parametrize(
    ("counts", "more", "decision"),
    [
        # The first round: there are no survivors.
        ((0, 0, 0), {}, Decision.TOO_FEW),
        ((0, 0, 1), {}, Decision.TOO_FEW),
        ((0, 0, 2), {}, Decision.LAST_CALL),
        ((0, 0, 3), {"call": RUNNING}, Decision.LAST_CALL),
        ((0, 0, 2), {"call": OVER}, Decision.FORM_LAST_CALL),
        ((0, 0, 1), {"call": OVER}, Decision.TOO_FEW),
        ((0, 0, 4), {}, Decision.FORM_MAXIMUM),
        ((0, 0, 9), {}, Decision.FORM_MAXIMUM),
        ((0, 0, 2), {"expected": 3}, Decision.LAST_CALL),
        ((0, 0, 3), {"expected": 3}, Decision.FORM_EXPECTED),
        # A round ended, and every survivor is ready.
        ((3, 0, 0), {}, Decision.SETTLE),
        ((3, 0, 0), {"settled": True}, Decision.FORM_SURVIVORS),
        ((2, 0, 1), {"settled": True}, Decision.FORM_SURVIVORS),
        ((3, 0, 1), {}, Decision.FORM_MAXIMUM),
        ((1, 0, 0), {"settled": True}, Decision.TOO_FEW),
        # A round ended, and a survivor is not ready: it keeps its place for one last call.
        ((2, 1, 0), {"settled": True}, Decision.LAST_CALL),
        ((3, 1, 5), {}, Decision.LAST_CALL),
        ((3, 1, 5), {"call": OVER}, Decision.FORM_MAXIMUM),
        ((2, 1, 0), {"call": OVER}, Decision.FORM_LAST_CALL),
        ((2, 1, 1), {"expected": 3}, Decision.LAST_CALL),
        # R7: also if the survivors that hang leave fewer places than the minimum.
        ((0, 3, 2), {}, Decision.LAST_CALL),
        ((0, 4, 2), {"call": OVER}, Decision.FORM_LAST_CALL),
        # One that stops its workers, or has yet to attach after a takeover, keeps it longer.
        ((0, 0, 2), {"stopping": 2, "call": RUNNING}, Decision.LAST_CALL),
        ((0, 0, 2), {"stopping": 2, "call": OVER}, Decision.STOPPING),
        ((0, 0, 3), {"stopping": 2, "call": OVER}, Decision.STOPPING),
        ((0, 0, 9), {"stopping": 4, "call": OVER}, Decision.STOPPING),
        ((2, 0, 0), {"stopping": 1, "settled": True}, Decision.LAST_CALL),
        ((1, 1, 1), {"stopping": 1, "call": OVER}, Decision.STOPPING),
        ((2, 0, 1), {"absent": 1, "call": OVER}, Decision.ATTACHING),
        ((2, 0, 1), {"absent": 1, "stopping": 1, "call": OVER}, Decision.STOPPING),
        ((0, 0, 1), {"stopping": 3, "call": OVER}, Decision.TOO_FEW),
        ((3, 0, 1), {"stopping": 0, "call": OVER}, Decision.FORM_MAXIMUM),
        # All survivors are lost, so this is like a first round.
        ((0, 0, 2), {"settled": True}, Decision.LAST_CALL),
    ],
)
def test_formation_follows_the_truth_table(
    counts: tuple[int, int, int], more: dict[str, Any], decision: Decision
) -> None:
    assert decide(gathering(*counts, **more)) is decision


@st.composite
def gatherings(draw: st.DrawFn) -> Counts:
    minimum = draw(st.integers(1, 5))
    maximum = draw(st.integers(minimum, 6))
    survivors = draw(st.integers(0, maximum))
    stopping = draw(st.integers(0, maximum - survivors))
    absent = draw(st.integers(0, maximum - survivors - stopping))
    return Counts(
        minimum=minimum,
        maximum=maximum,
        expected=draw(st.none() | st.integers(minimum, maximum)),
        ready_survivors=survivors,
        places_held=draw(st.integers(0, maximum - survivors - stopping - absent)),
        stopping=stopping,
        absent=absent,
        newcomers=draw(st.integers(0, 9)),
        settled=draw(st.booleans()),
        call=draw(st.sampled_from(Call)),
    )


@given(gatherings())
def test_r3_a_formed_round_is_within_the_bounds(given_: Counts) -> None:
    if decide(given_).forms_round:
        assert given_.minimum <= given_.chosen <= given_.maximum


@given(gatherings())
def test_survivors_hold_their_places_until_the_last_call_is_over(given_: Counts) -> None:
    if decide(given_).forms_round and given_.call is not OVER:
        assert given_.places_held == 0


@given(gatherings())
def test_no_round_is_formed_while_survivors_stop_their_workers(given_: Counts) -> None:
    if given_.stopping or given_.absent:
        assert not decide(given_).forms_round


@given(gatherings())
def test_r7_the_minimum_is_enough_once_the_last_call_is_over(given_: Counts) -> None:
    is_waiting = given_.stopping or given_.absent
    if given_.call is OVER and given_.ready >= given_.minimum and not is_waiting:
        assert decide(given_).forms_round


@given(gatherings())
def test_r7_the_last_call_runs_as_soon_as_the_minimum_is_ready(given_: Counts) -> None:
    is_enough = given_.ready >= given_.minimum
    assert (decide(given_) is not Decision.TOO_FEW) == is_enough


@pytest.mark.parametrize("held", [{"stopping": 1}, {"absent": 1}, {"places_held": 1}])
def test_r7_survivors_are_waited_for_though_an_operator_has_taken_their_places(
    held: dict[str, Any],
) -> None:
    """Three were in the round, two are ready, and there are two places now."""
    counts = Counts(minimum=1, maximum=2, ready_survivors=2, **held)
    assert decide(counts) is Decision.LAST_CALL
    assert decide(Counts(minimum=1, maximum=2, ready_survivors=3)) is Decision.FORM_MAXIMUM
    over = msgspec.structs.replace(counts, call=Call.OVER)
    assert decide(over).forms_round is ("places_held" in held)


def test_r3_no_more_are_chosen_than_an_operator_wants() -> None:
    assert Counts(minimum=1, maximum=2, ready_survivors=4, newcomers=3).chosen == 2
