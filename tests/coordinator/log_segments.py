"""The segments of a round's log in memory, and a store that writes them.

What must not be here: a test, or a ledger that fails.
"""

from __future__ import annotations

from rallypoint.coordinator.log_reader import SealedLog
from rallypoint.coordinator.log_records import (
    decode_record,
    header_record,
    seal_record,
)
from rallypoint.coordinator.log_replay import Replay
from rallypoint.coordinator.round_log import LogId, first_of, parse
from rallypoint.coordinator.store_log import LogAppend, StoreLog
from rallypoint.core.store import (
    DEFAULT_LIMITS,
    Answer,
    StoreLimits,
    StoreOp,
)
from rallypoint.core.store.store import RoundStore

SEATS = (("a", 0, 1), ("b", 1, 2))


LOG = LogId(1, 1, 0, 1)


class Logs:
    """The segments of a round's log, in a ledger that answers at once."""

    def __init__(self) -> None:
        self.segments = {LOG: [header_record("run", 1, 1)]}

    def append(self, record: LogAppend) -> None:
        log = parse(record.name)
        assert log is not None
        segment = self.segments.setdefault(log, [])
        assert record.index == len(segment)
        segment.append(record.data)

    @property
    def records(self) -> list[bytes]:
        """Those of all segments, but for the headers."""
        return [data for segment in self.segments.values() for data in segment[1:]]

    def read(self, limits: StoreLimits = DEFAULT_LIMITS) -> SealedLog:
        """What a successor makes of it."""
        replay = Replay(lambda: RoundStore(SEATS, limits))
        log = first_of(tuple(each.name("run") for each in self.segments))
        while True:
            assert log is not None
            replay.begin_segment(log)
            moved = None
            for data in self.segments[log]:
                record = decode_record(data)
                moved = record.moved
                if moved is None:
                    replay.take(record, len(data))
            if moved is None:
                return SealedLog(replay, log, len(self.segments[log]))
            log = LogId(log.term, log.number, moved.segment, moved.writer)

    def drop_before(self, log: LogId) -> None:
        self.segments = {each: kept for each, kept in self.segments.items() if each >= log}


def new_store(batch: int = 1_000, limits: StoreLimits = DEFAULT_LIMITS) -> StoreLog:
    store = RoundStore(SEATS, limits)
    return StoreLog(store, 1, run_id="run", log=LOG, batch_bytes_max=batch)


def successor_of(logs: Logs, term: int = 2, batch: int = 1_000) -> StoreLog:
    """A coordinator of the next term, after it has sealed the log."""
    read = logs.read()
    logs.append(LogAppend(read.log.name("run"), read.next_index, seal_record(term)))
    read = logs.read()
    return StoreLog(
        read.replay.store,
        term,
        run_id="run",
        log=read.log,
        next_index=read.next_index,
        batch_bytes_max=batch,
        replay=read.replay,
    )


def served(
    store: StoreLog,
    node: str,
    request_id: int,
    op: StoreOp,
    acknowledged: int,
    still_open: tuple[int, ...] = (),
) -> list[Answer]:
    """A call with its acknowledgement, as the store service takes it."""
    store.store.acknowledge(node, acknowledged, still_open)
    return store.apply(node, request_id, op, None, 0.0)


def write(store: StoreLog, logs: Logs, at_most: int = 1_000_000) -> list[Answer]:
    """Append everything that waits, as a ledger that answers at once would."""
    released = []
    while at_most and (record := store.take_record()) is not None:
        logs.append(record)
        released += store.appended()
        logs.drop_before(store.base)
        at_most -= 1
    return released
