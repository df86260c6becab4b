"""What a ledger keeps of a run's past: the newest of it, in few bytes."""

from __future__ import annotations

import msgspec
from hypothesis import given
from hypothesis import strategies as st

from rallypoint.core.past import (
    LOSSES_KEPT,
    NAMES_KEPT,
    PAST_BYTES_MAX,
    ROUNDS_KEPT,
    Past,
    PastLoss,
    PastRound,
    bounded_past,
    loss_of,
)
from rallypoint.core.values import Change, ChangeKind

texts = st.text(max_size=600)
seconds = st.none() | st.floats(0, 1e9)
a_round = st.builds(
    PastRound,
    number=st.integers(1, 2**40),
    nodes=st.integers(1, 100_000),
    size=st.integers(1, 400_000_000),
    restart_count=st.integers(0, 2**40),
    formed_at=seconds,
    formed_on=texts,
    gathering_s=seconds,
    committing_s=seconds,
    active_s=seconds,
    active_min_s=st.floats(0, 1e9),
    ended_at=seconds,
    ended_on=texts,
    ended=texts,
)
a_loss = st.builds(
    PastLoss,
    round=st.integers(0, 2**40),
    phase=st.sampled_from(["gathering", "committing", "active"]),
    at=st.floats(0, 1e10),
    on=texts,
    nodes=st.lists(st.text(max_size=256), max_size=8).map(tuple),
    count=st.integers(1, 100_000),
    text=texts,
)


@given(st.lists(a_round, max_size=15), st.lists(a_loss, max_size=10))
def test_the_past_is_bounded_and_has_the_newest_rounds(
    rounds: list[PastRound], losses: list[PastLoss]
) -> None:
    kept = bounded_past(rounds, losses)
    framing = 16  # of the two lists
    assert len(msgspec.msgpack.encode(kept)) <= PAST_BYTES_MAX + framing
    count = len(kept.rounds)
    assert [each.number for each in kept.rounds] == [
        r.number for r in rounds[len(rounds) - count :]
    ]
    assert (count > 0) == (len(rounds) > 0)  # that of the round that may be on
    assert len(kept.losses) <= LOSSES_KEPT
    assert msgspec.msgpack.decode(msgspec.msgpack.encode(kept), type=Past) == kept


def test_usual_rounds_all_fit() -> None:
    why = "a worker failed on node0007: rank 7 exited with code 1 (RuntimeError: CUDA error)"
    rounds = [
        PastRound(
            number, 100, 800, 3, formed_at=1.7e9, gathering_s=3.25, committing_s=0.01,
            active_s=60.5, active_min_s=60.5, ended_at=1.7e9, ended=why,
            formed_on="coordinator-0", ended_on="coordinator-0",
        )
        for number in range(1, 20)
    ]  # fmt: skip
    kept = bounded_past(rounds, ())
    assert [each.number for each in kept.rounds] == [*range(10, 20)]
    assert len(kept.rounds) == ROUNDS_KEPT
    assert kept.rounds[-1] == rounds[-1]


def test_members_lost_in_one_step_are_one_loss() -> None:
    lost = [
        Change(ChangeKind.NODE_LOST, 3, (f"n{number}",), 1, "silent", float(number))
        for number in range(NAMES_KEPT + 4)
    ]
    one = loss_of(lost[::-1])
    assert (one.round, one.count, len(one.nodes)) == (3, len(lost), NAMES_KEPT)
    assert one.since_s == max(each.since_s for each in lost)
    assert loss_of(lost).since_s == one.since_s
