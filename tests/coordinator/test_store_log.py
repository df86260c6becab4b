"""R10, R11: what is acknowledged is in the log, and a successor that replays it has the same."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rallypoint.checkers.store_checker import StoreChecker
from rallypoint.checkers.violations import InvariantViolation
from rallypoint.coordinator import store_log
from rallypoint.coordinator.log_records import (
    FORMAT,
    Record,
    UnreadableLogError,
    decode_record,
    encode_record,
)
from rallypoint.coordinator.store_log import StoreLog
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
    Set,
    StoreFailure,
    StoreLimits,
    StoreOp,
    StoreValue,
)
from rallypoint.core.store.store import RoundStore
from tests.coordinator.log_segments import LOG, SEATS, Logs, new_store, served, successor_of, write
from tests.kinds import examples


def test_a_write_is_answered_once_it_is_in_the_log() -> None:
    store = new_store()
    assert store.apply("a", 1, Set("k", b"v"), None, 0.0) == []
    record = store.take_record()
    assert record is not None
    (answer,) = store.appended()
    assert (answer.node, answer.request_id, answer.result) == ("a", 1, StoreValue(None))


def test_a_read_waits_for_the_writes_that_it_shows() -> None:
    store = new_store()
    store.apply("a", 1, Set("k", b"v"), None, 0.0)
    store.take_record()
    assert store.apply("b", 1, Get("k"), None, 0.0) == []
    answers = store.appended()
    assert [(a.node, a.result) for a in answers] == [
        ("a", StoreValue(None)),
        ("b", StoreValue(b"v")),
    ]


def test_a_read_without_pending_writes_is_answered_at_once() -> None:
    store, logs = new_store(), Logs()
    store.apply("a", 1, Set("k", b"v"), None, 0.0)
    write(store, logs)
    (answer,) = store.apply("b", 1, Get("k"), None, 0.0)
    assert answer.result == StoreValue(b"v")


def test_while_one_record_is_written_the_next_one_fills() -> None:
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
    assert second.index == first.index + 1
    assert len(decode_record(second.data).entries) == 8
    assert [a.request_id for a in store.appended()] == list(range(2, 10))


def test_a_record_is_bounded() -> None:
    store = new_store(batch=1_000)
    for request_id in range(1, 21):
        store.apply("a", request_id, Set(f"k{request_id}", b"x" * 400), None, 0.0)
    logs = Logs()
    write(store, logs)
    sizes = [len(data) for data in logs.records]
    assert len(sizes) > 5
    assert max(sizes) < 2_000


def test_a_successor_answers_a_resend_from_memory_and_counts_it_once() -> None:
    """R11, across a failover."""
    store, logs = new_store(), Logs()
    store.apply("a", 1, Add("n", 5), None, 0.0)
    write(store, logs)
    successor = successor_of(logs)
    (answer,) = successor.apply("a", 1, Add("n", 5), None, 0.0)
    assert answer.result == StoreValue(5)
    successor.apply("a", 2, Add("n", 1), None, 0.0)
    (answer,) = write(successor, logs)
    assert answer.result == StoreValue(6)


def test_a_barrier_released_to_some_is_released_to_all() -> None:
    store, logs = new_store(), Logs()
    for rank, node in ((0, "a"), (1, "b"), (2, "b")):
        store.apply(node, rank + 1, Barrier("start", rank), 10.0, 0.0)
    assert len(write(store, logs)) == 3
    successor = successor_of(logs)
    (answer,) = successor.apply("b", 3, Barrier("start", 2), 10.0, 0.0)
    assert answer.result == StoreValue(None)


def test_the_successor_does_not_count_a_rank_that_gave_up() -> None:
    store, logs = new_store(), Logs()
    store.apply("a", 1, Barrier("start", 0), 1.0, 0.0)
    write(store, logs)
    store.expire(2.0)
    write(store, logs)
    successor = successor_of(logs)
    for rank in (1, 2):
        successor.apply("b", rank, Barrier("start", rank), 10.0, 3.0)
    assert write(successor, logs) == []


def test_unwritten_calls_are_not_acknowledged_after_the_rounds_end() -> None:
    store = new_store()
    store.apply("a", 1, Set("k", b"v"), None, 0.0)
    store.take_record()
    (answer,) = store.end("over")
    assert answer.request_id == 1
    assert answer.result != StoreValue(None)
    assert store.appended() == []


def test_a_damaged_record_or_another_format_is_refused_with_the_reason() -> None:
    with pytest.raises(UnreadableLogError, match="damaged"):
        decode_record(b"garbage")
    with pytest.raises(UnreadableLogError, match="format 3, of a newer release"):
        decode_record(encode_record(Record(FORMAT + 1, 1)))
    # As release 1 wrote it: calls, which cannot be read as results.
    old = msgspec.msgpack.encode([1, 1, [["do", "a", 1, ["set", "k", b"v"], 0, []]], False])
    with pytest.raises(UnreadableLogError, match="format 1, of an older release"):
        decode_record(old)


def test_a_seal_has_no_calls() -> None:
    logs = Logs()
    store = successor_of(logs)
    store.apply("a", 1, Set("k", b"v"), None, 0.0)
    record = store.take_record()
    assert record is not None
    assert record.index == 2


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


@settings(max_examples=examples(200))
@given(st.lists(st.tuples(st.sampled_from(["a", "b"]), OPS, st.booleans()), max_size=30))
def test_a_successor_replays_every_acknowledged_call(
    calls: list[tuple[str, StoreOp, bool]],
) -> None:
    store, logs = new_store(), Logs()
    acknowledged: dict[tuple[str, int], Any] = {}
    asked: dict[tuple[str, int], StoreOp] = {}
    for number, (node, op, is_written) in enumerate(calls):
        asked[node, number] = op
        answers = store.apply(node, number, op, None, 0.0)
        if is_written:
            answers += write(store, logs)
        acknowledged |= {(a.node, a.request_id): a.result for a in answers}
    successor = successor_of(logs)
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
    st.tuples(st.just("write"), st.integers(1, 8)),
    st.tuples(st.just("let go"), st.sampled_from(["a", "b"])),
    st.tuples(st.just("die"), st.booleans()),
)


@settings(max_examples=examples(400))
@given(st.lists(STEPS, max_size=60), st.sampled_from([1, 2, 5, 1_000]))
def test_r10_r11_hold_for_any_resends_and_takeovers(
    steps: list[tuple[str, Any]], compact_records: int
) -> None:
    """Also while a snapshot is written, and whichever of its records was the last one."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(store_log, "COMPACT_RECORDS", compact_records)
        _live(steps)


def _live(steps: list[tuple[str, Any]]) -> None:
    batch = 150  # A snapshot has several parts.
    store, logs, checker, term = new_store(batch), Logs(), StoreChecker(), 1
    said: list[tuple[str, int, StoreOp]] = []
    acknowledged = {"a": 0, "b": 0}

    def call(node: str, request_id: int, op: StoreOp) -> None:
        checker.asked(node, request_id, op)
        floor = acknowledged[node]
        checker.acknowledged(served(store, node, request_id, op, floor))

    for who, what in steps:
        if who == "write":
            checker.acknowledged(write(store, logs, what))
        elif who == "die":
            record = store.take_record() if what else None
            if record is not None:
                logs.append(record)  # It is there, and was not acknowledged.
            term += 1
            store = successor_of(logs, term, batch)
            checker.taken_over(logs.read().replay.store)
        elif who == "let go":
            # It has all answers, so it asks for none of these again.
            acknowledged[what] = len(said)
            checker.let_go(what, len(said))
        elif who == "again" and said:
            node, request_id, op = said[-1 - what % len(said)]
            if request_id > acknowledged[node]:
                call(node, request_id, op)
        elif who != "again":
            said.append((who, len(said) + 1, what))
            call(*said[-1])


def test_the_store_checker_finds_a_bad_store() -> None:
    checker = StoreChecker()
    checker.asked("a", 1, Add("x", 1))
    checker.acknowledged([Answer("a", 1, StoreValue(1))])
    with pytest.raises(InvariantViolation, match="R11: request 1 of a"):
        checker.acknowledged([Answer("a", 1, StoreValue(2))])
    with pytest.raises(InvariantViolation, match="R10: request 1 of a"):
        checker.taken_over(RoundStore(SEATS))
    checker.let_go("a", 1)
    checker.taken_over(RoundStore(SEATS))


# -- the ledger's limit ----------------------------------------------------------------------------


def test_a_call_too_large_for_the_ledger_is_refused_unapplied() -> None:
    store = StoreLog(RoundStore(SEATS), 1, batch_bytes_max=500, record_bytes_max=1_000)
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
        assert "1000 for one call" in answer.result.message
    assert store.take_record() is None
    (answer,) = store.apply("a", 9, NumKeys(), None, 0.0)
    assert answer.result == StoreValue(0)


@given(st.lists(st.tuples(st.integers(0, 950), st.integers(0, 40)), max_size=40))
def test_no_record_exceeds_the_ledgers_limit(calls: list[tuple[int, int]]) -> None:
    most = 1_000
    store = StoreLog(
        RoundStore(SEATS),
        1,
        run_id="run",
        log=LOG,
        batch_bytes_max=most // 2,
        record_bytes_max=most,
    )
    accepted = 0
    for number, (value_bytes, open_count) in enumerate(calls, 1):
        still_open = range(1 << 33, (1 << 33) + open_count)
        op = Set("é" * 10, bytes(value_bytes))
        answers = served(store, "näme", number, op, 0, tuple(still_open))
        accepted += not answers
    logs = Logs()
    assert len(write(store, logs)) == accepted
    assert all(len(data) <= most for data in logs.records)


# -- a ledger that is away -------------------------------------------------------------------------


def test_bytes_waiting_for_the_log_are_bounded_and_refused_calls_unapplied() -> None:
    store, logs = new_store(100_000, StoreLimits(unlogged_bytes_max=10_000)), Logs()
    store.apply("a", 1, Set("k", b"first"), None, 0.0)
    first = store.take_record()
    refused = {}
    for number in range(2, 100):
        for answer in served(store, "a", number, Set("k", bytes(900)), number - 1):
            refused[answer.request_id] = answer.result
    assert 80 < len(refused) < 98
    assert all(isinstance(each, StoreFailure) and each.code == LIMIT for each in refused.values())
    assert "unlogged_bytes_max" in refused[99].message  # type: ignore[union-attr]
    # Reads wait for what they depend on; the same request is applied once it is sent again.
    assert store.apply("b", 1, NumKeys(), None, 0.0) == []
    assert first is not None
    logs.append(first)
    store.appended()
    write(store, logs)
    store.apply("b", 2, Add("n", 1), None, 0.0)
    served(store, "a", 99, Add("n", 1), 98)
    answers = write(store, logs)
    assert [answer.result for answer in answers] == [StoreValue(1), StoreValue(2)]


def test_answers_waiting_for_the_log_are_bounded_and_cancelled_ones_dropped() -> None:
    limits = StoreLimits(unlogged_answers_max=50)
    store = new_store(1_000, limits)
    store.apply("a", 1, Set("k", b"v"), None, 0.0)
    store.take_record()
    for number in range(2, 500):
        # Its caller gives each of them up before it makes the next call.
        assert served(store, "a", number, Get("k"), number - 1) == []
    assert store._held_count <= 50
    # Callers that go on waiting are refused above the limit.
    store = new_store(1_000, limits)
    store.apply("a", 1, Set("k", b"v"), None, 0.0)
    store.take_record()
    answers = [a for n in range(2, 200) for a in store.apply("b", n, Get("k"), None, 0.0)]
    assert 140 <= len(answers) <= 150
    assert all(isinstance(each.result, StoreFailure) for each in answers)
    assert store._held_count <= 50


def test_sent_answers_are_no_longer_counted() -> None:
    store, logs = new_store(), Logs()
    store.apply("a", 1, Set("k", b"v"), None, 0.0)
    write(store, logs)
    store.store.acknowledge("a", 1)
    before = store.store.footprint() + store.footprint()
    store.apply("a", 2, Set("k", b"v"), None, 0.0)
    for number in range(1, 21):
        assert store.apply("b", number, Get("k"), None, 0.0) == []
    assert len(write(store, logs)) == 21
    store.store.acknowledge("a", 2)
    store.store.acknowledge("b", 20)
    assert store.store.footprint() + store.footprint() == before
