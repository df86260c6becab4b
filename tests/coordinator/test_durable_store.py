"""R10, R11: what is acknowledged is in the log, and a successor that replays it has the same."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rallypoint.coordinator.durable_store import (
    FORMAT,
    DurableStore,
    Record,
    UnreadableLogError,
    decode_record,
    encode_record,
)
from rallypoint.core.journal import InvariantViolation
from rallypoint.core.store import (
    LIMIT,
    Add,
    Answer,
    Append,
    Barrier,
    CompareSet,
    DeleteKey,
    Get,
    MultiSet,
    NumKeys,
    RoundStore,
    Set,
    StoreFailure,
    StoreOp,
    Value,
)
from rallypoint.core.store_journal import StoreJournal

SEATS = (("a", 0, 1), ("b", 1, 2))


def new_store(batch: int = 1_000) -> DurableStore:
    return DurableStore(RoundStore(SEATS), 1, batch_bytes_max=batch)


def write(store: DurableStore, log: list[bytes]) -> list[Any]:
    """Append everything that waits, as a ledger that answers at once would."""
    released = []
    while (record := store.take_record()) is not None:
        index, data = record
        assert index == len(log)
        log.append(data)
        released += store.appended()
    return released


def test_a_write_is_answered_once_it_is_in_the_log() -> None:
    store = new_store()
    assert store.apply("a", 1, Set("k", b"v"), None, 0.0) == []
    record = store.take_record()
    assert record is not None
    (answer,) = store.appended()
    assert (answer.node, answer.request_id, answer.result) == ("a", 1, Value(None))


def test_a_read_does_not_show_what_a_successor_might_not_have() -> None:
    store = new_store()
    store.apply("a", 1, Set("k", b"v"), None, 0.0)
    store.take_record()
    assert store.apply("b", 1, Get("k"), None, 0.0) == []
    answers = store.appended()
    assert [(a.node, a.result) for a in answers] == [("a", Value(None)), ("b", Value(b"v"))]


def test_a_read_with_nothing_unwritten_is_answered_at_once() -> None:
    store, log = new_store(), list[bytes]()
    store.apply("a", 1, Set("k", b"v"), None, 0.0)
    write(store, log)
    (answer,) = store.apply("b", 1, Get("k"), None, 0.0)
    assert answer.result == Value(b"v")


def test_while_one_record_is_written_the_next_gathers() -> None:
    store = new_store()
    store.apply("a", 1, Set("k", b"1"), None, 0.0)
    first = store.take_record()
    for request_id in range(2, 10):
        store.apply("a", request_id, Add("n", 1), None, 0.0)
    assert first is not None
    assert store.take_record() is None
    assert [a.request_id for a in store.appended()] == [1]
    second = store.take_record()
    assert second is not None
    assert second[0] == 1
    assert len(decode_record(second[1]).entries) == 8
    assert [a.request_id for a in store.appended()] == list(range(2, 10))


def test_a_record_is_bounded() -> None:
    store = new_store(batch=1_000)
    for request_id in range(1, 21):
        store.apply("a", request_id, Set(f"k{request_id}", b"x" * 400), None, 0.0)
    sizes, log = [], list[bytes]()
    write(store, log)
    sizes = [len(data) for data in log]
    assert len(sizes) > 5
    assert max(sizes) < 2_000


def test_a_successor_answers_a_resend_from_memory_and_counts_it_once() -> None:
    """R11, across a failover."""
    store, log = new_store(), list[bytes]()
    store.apply("a", 1, Add("n", 5), None, 0.0)
    write(store, log)
    successor = new_store()
    successor.replay(log)
    (answer,) = successor.apply("a", 1, Add("n", 5), None, 0.0)
    assert answer.result == Value(5)
    successor.apply("a", 2, Add("n", 1), None, 0.0)
    (answer,) = write(successor, log)
    assert answer.result == Value(6)


def test_a_barrier_released_to_some_is_released_to_all() -> None:
    store, log = new_store(), list[bytes]()
    for rank, node in ((0, "a"), (1, "b"), (2, "b")):
        store.apply(node, rank + 1, Barrier("start", rank), 10.0, 0.0)
    assert len(write(store, log)) == 3
    successor = new_store()
    successor.replay(log)
    (answer,) = successor.apply("b", 3, Barrier("start", 2), 10.0, 0.0)
    assert answer.result == Value(None)


def test_a_rank_that_gave_up_is_not_counted_by_the_successor() -> None:
    store, log = new_store(), list[bytes]()
    store.apply("a", 1, Barrier("start", 0), 1.0, 0.0)
    write(store, log)
    store.expire(2.0)
    write(store, log)
    successor = new_store()
    successor.replay(log)
    for rank in (1, 2):
        successor.apply("b", rank, Barrier("start", rank), 10.0, 3.0)
    assert write(successor, log) == []


def test_what_was_not_written_is_never_acknowledged_once_the_round_has_ended() -> None:
    store = new_store()
    store.apply("a", 1, Set("k", b"v"), None, 0.0)
    store.take_record()
    (answer,) = store.end("over")
    assert answer.request_id == 1
    assert answer.result != Value(None)
    assert store.appended() == []


def test_a_damaged_or_newer_record_is_refused() -> None:
    with pytest.raises(UnreadableLogError, match="damaged"):
        decode_record(b"garbage")
    with pytest.raises(UnreadableLogError, match="newer"):
        decode_record(encode_record(Record(FORMAT + 1, 1)))


def test_a_seal_holds_nothing() -> None:
    store = new_store()
    store.replay([encode_record(Record(FORMAT, 2, (), is_seal=True))])
    store.apply("a", 1, Set("k", b"v"), None, 0.0)
    record = store.take_record()
    assert record is not None
    assert record[0] == 1


KEYS = st.sampled_from(["x", "y", "z"])
VALUES = st.binary(max_size=3)
OPS = st.one_of(
    st.builds(Set, KEYS, VALUES),
    st.builds(Get, KEYS),
    st.builds(Add, KEYS, st.integers(-3, 3)),
    st.builds(Append, KEYS, VALUES),
    st.builds(CompareSet, KEYS, VALUES, VALUES),
    st.builds(DeleteKey, KEYS),
    st.builds(Barrier, st.just("b"), st.sampled_from([0])),
)


@settings(max_examples=200)
@given(st.lists(st.tuples(st.sampled_from(["a", "b"]), OPS, st.booleans()), max_size=30))
def test_every_acknowledged_call_is_in_what_a_successor_replays(
    calls: list[tuple[str, StoreOp, bool]],
) -> None:
    store, log = new_store(), list[bytes]()
    acknowledged: dict[tuple[str, int], Any] = {}
    asked: dict[tuple[str, int], StoreOp] = {}
    for number, (node, op, is_written) in enumerate(calls):
        asked[node, number] = op
        answers = store.apply(node, number, op, None, 0.0)
        if is_written:
            answers += write(store, log)
        acknowledged |= {(a.node, a.request_id): a.result for a in answers}
    successor = new_store()
    successor.replay(log)
    for (node, request_id), result in acknowledged.items():
        op = asked[node, request_id]
        if isinstance(op, Get):
            continue  # A read is not logged: asked again, it may see what came later.
        answers = successor.apply(node, request_id, op, None, 0.0)
        assert [a.result for a in answers] == [result]


STEPS = st.one_of(
    st.tuples(st.sampled_from(["a", "b"]), OPS),
    st.tuples(st.sampled_from(["a", "b"]), OPS),
    st.tuples(st.just("again"), st.integers(0, 20)),
    st.just(("write", None)),
    st.just(("die", None)),
)


@settings(max_examples=300)
@given(st.lists(STEPS, max_size=40))
def test_r10_r11_hold_whatever_is_resent_and_whoever_coordinates(
    steps: list[tuple[str, Any]],
) -> None:
    store, log, journal = new_store(), list[bytes](), StoreJournal()
    said: list[tuple[str, int, StoreOp]] = []

    def call(node: str, request_id: int, op: StoreOp) -> None:
        journal.asked(node, request_id, op)
        journal.acknowledged(store.apply(node, request_id, op, None, 0.0))

    for who, what in steps:
        if who == "write":
            journal.acknowledged(write(store, log))
        elif who == "die":
            restored = RoundStore(SEATS)
            store = DurableStore(restored, 1, batch_bytes_max=1_000)
            store.replay(log)
            journal.taken_over(restored)
        elif who == "again" and said:
            call(*said[-1 - what % len(said)])
        elif who != "again":
            said.append((who, len(said) + 1, what))
            call(*said[-1])


def test_the_store_journal_finds_a_bad_store_out() -> None:
    journal = StoreJournal()
    journal.asked("a", 1, Add("x", 1))
    journal.acknowledged([Answer("a", 1, Value(1))])
    with pytest.raises(InvariantViolation, match="R11: request 1 of a"):
        journal.acknowledged([Answer("a", 1, Value(2))])
    with pytest.raises(InvariantViolation, match="R10: request 1 of a"):
        journal.taken_over(RoundStore(SEATS))
    journal.let_go("a", 1)
    journal.taken_over(RoundStore(SEATS))


# -- the ledger's limit ----------------------------------------------------------------------------


def test_a_call_that_the_ledger_could_not_keep_is_refused_before_it_is_applied() -> None:
    store = DurableStore(RoundStore(SEATS), 1, batch_bytes_max=500, record_bytes_max=1_000)
    calls: list[StoreOp] = [
        Set("k", bytes(1_000)),
        Append("k", bytes(1_000)),
        CompareSet("k", b"", bytes(1_000)),
        Set("k" * 1_000, b""),
        MultiSet(("k", "l"), (bytes(500), bytes(500))),
    ]
    for number, op in enumerate(calls, 1):
        (answer,) = store.apply("a", number, op, None, 0.0)
        assert isinstance(answer.result, StoreFailure)
        assert answer.result.code == LIMIT
        assert "1000 of one call" in answer.result.message
    assert store.take_record() is None
    (answer,) = store.apply("a", 9, NumKeys(), None, 0.0)
    assert answer.result == Value(0)


@given(st.lists(st.tuples(st.integers(0, 950), st.integers(0, 40)), max_size=40))
def test_no_record_is_larger_than_the_ledger_takes(calls: list[tuple[int, int]]) -> None:
    most = 1_000
    store = DurableStore(RoundStore(SEATS), 1, batch_bytes_max=most // 2, record_bytes_max=most)
    accepted = 0
    for number, (value_bytes, open_count) in enumerate(calls, 1):
        still_open = range(1 << 33, (1 << 33) + open_count)
        op = Set("é" * 10, bytes(value_bytes))
        answers = store.apply("näme", number, op, None, 0.0, 0, tuple(still_open))
        accepted += not answers
    log: list[bytes] = []
    assert len(write(store, log)) == accepted
    assert all(len(data) <= most for data in log)
    DurableStore(RoundStore(SEATS), 2, batch_bytes_max=most).replay(log)
