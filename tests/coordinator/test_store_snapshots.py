"""R10, R11: a log that a snapshot has cut short leads to the same store."""

from __future__ import annotations

import pytest

from rallypoint.coordinator import store_log
from rallypoint.coordinator.log_records import (
    FORMAT,
    Record,
    UnreadableLogError,
    decode_record,
    encode_record,
    header_record,
    seal_record,
)
from rallypoint.coordinator.log_replay import Replay
from rallypoint.coordinator.round_log import LogId
from rallypoint.coordinator.store_log import LogAppend, StoreLog
from rallypoint.core.store import (
    TIMEOUT,
    Add,
    Answer,
    Append,
    Barrier,
    CompareSet,
    Get,
    Set,
    StoreFailure,
    StoreLimits,
    StoreValue,
)
from rallypoint.core.store.store import RoundStore
from tests.coordinator.log_segments import LOG, SEATS, Logs, new_store, served, successor_of, write

# -- snapshots -------------------------------------------------------------------------------------


def check_replay(logs: Logs, store: RoundStore) -> None:
    """A successor has all the data, and all answers that may be asked for again: no reads."""
    found = logs.read().replay.store.freeze()
    wanted = store.freeze()
    assert found.data == wanted.data
    answers = {(s.node, request_id): a for s in found.sessions for request_id, a in s.answered}
    for session in wanted.sessions:
        for request_id, answer in session.answered:
            assert answers[session.node, request_id] == answer


def test_a_snapshot_shortens_a_log_and_gives_the_same_store(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(store_log, "COMPACT_RECORDS", 20)
    store, logs = new_store(), Logs()
    for number in range(1, 1_001):
        key = f"k{number % 7}"
        served(store, "a", number, Set(key, b"%d" % number), number - 3)
        served(store, "b", number, Append("list", b"x"), number - 1)
        write(store, logs)
    assert len(logs.records) < 60
    assert len(logs.segments) == 1
    read = logs.read()
    check_replay(logs, store.store)
    assert read.replay.since.records < 40


def test_r11_a_snapshot_has_the_ended_and_the_open_calls(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(store_log, "COMPACT_RECORDS", 5)
    store, logs = new_store(), Logs()
    store.apply("a", 1, Barrier("start", 0), None, 0.0)
    for number in range(2, 40):
        served(store, "a", number, Add("n", 1), number - 1, (1,))
        write(store, logs)
    assert logs.read().log.segment > 0
    successor = successor_of(logs)
    assert successor.apply("a", 2, Add("n", 1), None, 0.0) == []
    assert write(successor, logs) == []
    (answer,) = successor.apply("b", 1, Get("n"), None, 0.0)
    assert answer.result == StoreValue(b"38")
    successor.apply("a", 1, Barrier("start", 0), None, 0.0)
    for rank in (1, 2):
        successor.apply("b", rank + 1, Barrier("start", rank), None, 0.0)
    assert [each.result for each in write(successor, logs)] == [StoreValue(None)] * 3


def test_calls_are_answered_while_a_snapshot_is_written(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store_log, "COMPACT_RECORDS", 5)
    monkeypatch.setattr(store_log, "PART_BYTES_MAX", 2_000)
    store, logs = new_store(100_000), Logs()
    for number in range(1, 300):
        served(store, "a", number, Set(f"k{number}", bytes(200)), number - 1)
    write(store, logs, 1)
    for number in range(300, 308):
        served(store, "a", number, Set("k", b"%d" % number), number - 1)
        write(store, logs, 1)
    assert store._snapshot is not None
    waits = []
    for number in range(308, 330):
        served(store, "a", number, Add("n", 1), number - 1)
        waited = 0
        while not write(store, logs, 1):
            waited += 1
        waits.append(waited)
        # A coordinator that takes over in the middle has all of it.
        check_replay(logs, store.store)
    assert logs.read().log.segment > 0
    assert max(waits) <= 3  # two of them for the move to the next segment


def test_large_values_and_answers_are_in_a_snapshot_in_pieces(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(store_log, "COMPACT_RECORDS", 30)
    store = StoreLog(
        RoundStore(SEATS), 1, run_id="run", log=LOG, batch_bytes_max=500, record_bytes_max=1_000
    )
    logs = Logs()
    for number in range(1, 25):
        served(store, "a", number, Append("k", bytes([number]) * 300), number - 1)
        write(store, logs)
    # It does not compare, so it answers all 7,200 bytes; these are not in its own entry.
    store.apply("b", 1, CompareSet("k", b"other", b"new"), None, 0.0)
    for number in range(25, 60):
        served(store, "a", number, Set("n", b"%d" % number), number - 1)
        write(store, logs)
    assert len(logs.segments) == 1
    assert logs.read().log.segment == 1
    assert max(map(len, logs.records)) <= 1_000
    check_replay(logs, store.store)


def test_a_log_without_its_beginning_is_refused() -> None:
    logs = Logs()
    segment = LogId(1, 1, 3, 1)
    logs.segments = {segment: [header_record("run", 1, 1, 3)]}
    logs.append(LogAppend(segment.name("run"), 1, encode_record(Record(FORMAT, 1))))
    with pytest.raises(UnreadableLogError, match="first records"):
        _ = logs.read().replay.store


def test_a_full_batch_takes_no_further_call() -> None:
    op = Set("k", b"v" * 100)
    store = new_store(batch=store_log._call_size("a", op))
    for number in (1, 2):
        assert store.apply("a", number, op, None, 0.0) == []
    records = []
    while (record := store.take_record()) is not None:
        records.append(decode_record(record.data))
        store.appended()
    assert [len(each.entries) for each in records] == [1, 1]


def test_a_barrier_over_several_records_is_released_to_all_or_none() -> None:
    seats = tuple((f"node{rank}", rank, 1) for rank in range(50))
    store = StoreLog(RoundStore(seats), 1, run_id="run", log=LOG, batch_bytes_max=200)
    for rank in range(50):
        store.apply(f"node{rank}", 1, Barrier("start", rank), 10.0, 0.0)
    logs = Logs()
    answers: list[Answer] = []
    records = 0
    while not answers:
        answers = write(store, logs, 1)
        records += 1
        replay = Replay(lambda: RoundStore(seats))
        replay.begin_segment(LOG)
        for data in [*logs.segments[LOG], seal_record(2)]:
            replay.take(decode_record(data), len(data))
        released = [node for node, _, _ in seats if replay.store.has_seen(node, 1)]
        assert released == [] or answers
    assert records > 5
    assert len(answers) == len(released) == 50


def test_an_open_barrier_still_times_out_after_a_takeover() -> None:
    """The node asks again, with the time that is left: no clocks of two hosts are compared (R9)."""
    store, logs = new_store(), Logs()
    assert store.apply("a", 1, Barrier("start", 0), 10.0, 0.0) == []
    write(store, logs)
    successor = successor_of(logs)
    assert successor.apply("a", 1, Barrier("start", 0), 4.0, 1_000.0) == []
    assert successor.store.next_deadline_s() == 1_004.0
    successor.expire(1_004.0)
    (answer,) = write(successor, logs)
    assert isinstance(answer.result, StoreFailure)
    assert answer.result.code == TIMEOUT


def test_two_releases_with_other_limits_replay_the_same_store() -> None:
    """The log has results: with other limits a release would refuse what this one has accepted."""
    store, logs = new_store(), Logs()
    store.apply("a", 1, Set("k", bytes(500)), None, 0.0)
    store.apply("a", 2, CompareSet("k", b"other", b"new"), None, 0.0)
    store.apply("a", 3, Add("n", 5), None, 0.0)
    write(store, logs)
    other = StoreLimits(value_bytes_max=10, keys_max=1)
    assert logs.read(other).replay.store.freeze() == logs.read().replay.store.freeze()
    check_replay(logs, store.store)
