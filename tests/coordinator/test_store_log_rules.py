"""R10: what the log of a round's store promises about groups, segments and its limits.

Each test fails for a change of a marked line (`make mutants`) that no other test noticed.
"""

from __future__ import annotations

import pytest

from rallypoint.coordinator import store_log
from rallypoint.coordinator.log_records import Record, decode_record
from rallypoint.coordinator.round_log import LogId
from rallypoint.coordinator.store_log import StoreLog
from rallypoint.core.store import (
    DEFAULT_LIMITS,
    LIMIT,
    Answer,
    Barrier,
    Get,
    Set,
    StoreFailure,
    StoreLimits,
)
from rallypoint.core.store.store import RoundStore

SEATS = (("a", 0, 1), ("b", 1, 1))


def a_log(
    *,
    log: LogId = LogId(2, 5, 0, 2),  # noqa: B008 - a value that nobody changes
    batch_bytes_max: int = 1 << 20,
    limits: StoreLimits = DEFAULT_LIMITS,
) -> StoreLog:
    store = RoundStore(SEATS, limits)
    return StoreLog(store, 2, run_id="run", log=log, batch_bytes_max=batch_bytes_max)


def taken(log: StoreLog) -> Record:
    record = log.take_record()
    assert record is not None
    return decode_record(record.data)


def is_refused(answers: list[Answer]) -> bool:
    return [each.result.code for each in answers if isinstance(each.result, StoreFailure)] == [
        LIMIT
    ]


def test_r10_a_group_that_is_split_is_unfinished_until_its_last_record() -> None:
    log = a_log(batch_bytes_max=1)
    log.apply("a", 1, Set("k", b"v"), None, 0.0)
    log.apply("a", 2, Barrier("b", 0), None, 0.0)
    log.apply("b", 1, Barrier("b", 1), None, 0.0)
    log.apply("b", 2, Set("k", b"w"), None, 0.0)
    found = []
    for _ in range(4):
        record = taken(log)
        found.append((len(record.entries), record.unfinished))
        log.appended()
    assert found == [(1, 0), (1, 1), (1, 0), (1, 0)]


def test_r10_calls_since_the_snapshot_began_are_not_in_the_segment_before_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(store_log, "COMPACT_RECORDS", 1)
    log = a_log()
    log.apply("a", 1, Set("k", b"1"), None, 0.0)
    taken(log)
    log.apply("a", 2, Set("k", b"2"), None, 0.0)
    log.appended()
    log.apply("a", 3, Set("k", b"3"), None, 0.0)
    assert [each.request_id for each in taken(log).entries] == [2]
    log.appended()
    header = log.take_record()
    assert header is not None
    assert (header.name, header.index) == (LogId(2, 5, 1, 2).name("run"), 0)


def test_r10_an_answer_that_nobody_asked_for_releases_nothing() -> None:
    log = a_log()
    assert log.appended() == []
    log.apply("a", 1, Set("k", b"1"), None, 0.0)
    taken(log)
    log.end("over")
    assert log.appended() == []
    assert log.take_record() is None


def test_r11_a_repeat_is_not_refused_however_much_waits_for_the_log() -> None:
    log = a_log(limits=StoreLimits(unlogged_bytes_max=1))
    assert log.apply("a", 1, Set("k", b"1"), None, 0.0) == []
    assert log.apply("a", 1, Set("k", b"1"), None, 0.0) == []
    assert is_refused(log.apply("a", 2, Set("k", b"2"), None, 0.0))


def test_r12_reads_wait_for_the_log_and_need_no_room_in_it() -> None:
    log = a_log(limits=StoreLimits(unlogged_bytes_max=1))
    assert log.apply("a", 1, Set("k", b"1"), None, 0.0) == []
    assert log.apply("b", 1, Get("k"), None, 0.0) == []
    taken(log)
    assert [each.node for each in log.appended()] == ["a", "b"]


def test_r12_answers_that_wait_are_bounded_though_there_is_room_for_bytes() -> None:
    log = a_log(limits=StoreLimits(unlogged_answers_max=1))
    assert log.apply("a", 1, Set("k", b"1"), None, 0.0) == []
    assert is_refused(log.apply("b", 1, Set("k", b"2"), None, 0.0))
