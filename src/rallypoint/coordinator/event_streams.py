"""The events of a coordinator's runs in the ledger: one stream of records for each coordinator.

A stream is a log under the name of the coordinator's lease, in segments. A record is a batch: the
new events of about a second, by run. So a coordinator makes at most one write a second for all of
its runs, and none while nothing happens. The head of a run names its former owners, and so their
streams.

The numbers of a run's events have no gaps, so a reader sees what was not written. What must not be
lost is in the head of the run as well (`past_events`).
"""

from __future__ import annotations

import asyncio
import logging
import math
from collections import deque
from collections.abc import Callable, Sequence
from typing import Final

import msgspec

from rallypoint.coordinator.run_events import EventKind, RunEvent
from rallypoint.coordinator.supervision import cancelled
from rallypoint.errors import LedgerError, LedgerLimitError
from rallypoint.ledger.contract import Created, Exists, Gap, Ledger
from rallypoint.ledger.keys import event_log_name, event_log_prefix, segment_of

_log = logging.getLogger("rallypoint.coordinator")

WRITE_EVERY_S: Final = 1.0
"""How long events are collected before they are written, in seconds."""
RETRY_S: Final = 1.0
WAITING_BYTES_MAX: Final = 4 * 1024**2
"""While the ledger is away, the newest events wait, and older ones are dropped."""
BATCH_BYTES_MAX: Final = 128 * 1024
"""The size of a record, estimated. It may have four times as many bytes."""
SEGMENT_RECORDS: Final = 256
SEGMENT_BYTES: Final = 2 * 1024**2
SEGMENTS_KEPT: Final = 4
"""How long a segment is, and how many segments of a stream are kept."""
READ_WITHIN_S: Final = 10.0
READ_PAGE: Final = 64
REMEMBERED_S: Final = 60.0
"""How long a stream that was read is kept in memory: all runs of a dead coordinator need it."""
_ENDS: Final = frozenset({EventKind.HANDED_OVER, EventKind.DEPOSED, EventKind.CLOSED})
"""The kinds after which a coordinator has no more events of a run that matter."""


class Batch(msgspec.Struct, frozen=True, omit_defaults=True):
    """A record: the events of each run, oldest first."""

    runs: dict[str, list[RunEvent]]


class _Encoded(msgspec.Struct, frozen=True):
    """A record whose events are not decoded yet: a reader wants those of one run."""

    runs: dict[str, msgspec.Raw] = {}


class Earlier(msgspec.Struct, frozen=True):
    """What the streams have of a run, oldest first. `problem`: why some are missing; "" if none."""

    events: list[RunEvent]
    problem: str = ""


# -- writing ---------------------------------------------------------------------------------------


class EventWriter:
    """Writes the events of all runs to this coordinator's stream. Owned by one event loop.

    `process` returns the name of the lease. Nothing waits for this part, and an error in it ends
    only this part.
    """

    def __init__(self, ledger: Ledger, process: Callable[[], str]) -> None:
        self._ledger = ledger
        self._process = process
        self._waiting: deque[tuple[str, str, RunEvent]] = deque()
        self._bytes = 0
        self._news = asyncio.Event()
        self._stream = ""
        self._segment = 0
        self._index = 0
        self._segment_bytes = 0
        self._written_s = float("-inf")
        limits = ledger.limits
        self._batch_bytes = min(BATCH_BYTES_MAX, limits.record_bytes_max // 4)
        self._every_s = max(WRITE_EVERY_S, 10.0 / limits.writes_per_s)
        self._record: tuple[str, bytes] | None = None
        """The process and the data of the record that is being written."""
        self._problem = ""
        self.dropped = 0
        """How many events could not wait any longer."""
        self.writes = 0

    def take(self, run_id: str, event: RunEvent) -> None:
        """A new event: see event_log.Sink."""
        self._waiting.append((self._process(), run_id, event))
        self._bytes += event.bytes
        while self._bytes > WAITING_BYTES_MAX:
            self._bytes -= self._waiting.popleft()[2].bytes
            self.dropped += 1
        self._news.set()

    @property
    def waiting_bytes(self) -> int:
        """About how many bytes wait for the ledger."""
        return self._bytes

    async def run(self) -> None:
        """Write until cancelled."""
        loop = asyncio.get_running_loop()
        while True:
            await self._news.wait()
            await asyncio.sleep(max(0.0, self._written_s + self._every_s - loop.time()))
            await self._write_some()

    async def flush(self, timeout_s: float) -> None:
        """Write what waits, within this time. `run` must have ended."""
        try:
            async with asyncio.timeout(timeout_s):
                while self._waiting or self._record is not None:
                    await self._write_some()
        except TimeoutError:
            _log.info("%d events were not written to the ledger in time", len(self._waiting))

    async def _write_some(self) -> None:
        """Write one record. Retries until its outcome is known."""
        if self._record is None:
            self._record = self._next_record()
        try:
            # If this is cancelled, `flush` tries the same record again.
            await self._append(*self._record)
        except LedgerLimitError as error:
            _log.warning("events could not be written to the ledger: %s", error)
        self._record = None
        self._written_s = asyncio.get_running_loop().time()
        if not self._waiting:
            self._news.clear()

    def _next_record(self) -> tuple[str, bytes]:
        """Take the first events of one process that fit into a record, and encode them."""
        process, size = "", 0
        taken: list[tuple[str, RunEvent]] = []
        for of_process, run_id, event in self._waiting:
            size += event.bytes
            if taken and (of_process != process or size > self._batch_bytes):
                break
            process = of_process
            taken.append((run_id, event))
        runs: dict[str, list[RunEvent]] = {}
        for run_id, event in taken:
            self._bytes -= self._waiting.popleft()[2].bytes
            runs.setdefault(run_id, []).append(event)
        return process, msgspec.msgpack.encode(Batch(runs))

    async def _append(self, process: str, data: bytes) -> None:
        if process != self._stream:
            # A lost lease is never regained: the process has another name.
            self._stream, self._segment, self._index, self._segment_bytes = process, 0, 0, 0
        elif self._index >= SEGMENT_RECORDS or self._segment_bytes >= SEGMENT_BYTES:
            await self._next_segment()
        while True:
            name = event_log_name(process, self._segment)
            self.writes += 1
            try:
                outcome = await self._ledger.append(name, self._index, data)
            except LedgerLimitError:
                raise
            except LedgerError as error:
                self._failed(error.message)
            else:
                if isinstance(outcome, Created) or outcome == Exists(data):
                    self._index += 1
                    self._segment_bytes += len(data)
                    self._problem = ""
                    return
                if isinstance(outcome, Gap | Exists):
                    # The segment was removed, or another program has written to it.
                    self._segment, self._index, self._segment_bytes = self._segment + 1, 0, 0
                else:
                    self._failed(outcome.reason)
            await asyncio.sleep(max(RETRY_S, self._every_s))

    def _failed(self, why: str) -> None:
        if why != self._problem:
            self._problem = why
            _log.info("events wait for the ledger: %s", why)

    async def _next_segment(self) -> None:
        self._segment, self._index, self._segment_bytes = self._segment + 1, 0, 0
        if self._segment >= SEGMENTS_KEPT:
            try:
                oldest = self._segment - SEGMENTS_KEPT
                await self._ledger.drop_log(event_log_name(self._stream, oldest))
            except LedgerError as error:
                # `event_sweeper` removes the whole stream later.
                _log.debug("an old segment of events could not be removed: %s", error)


# -- reading ---------------------------------------------------------------------------------------


class EventReader:
    """Reads the streams of other coordinators. Owned by one event loop."""

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger
        self._reading: dict[str, tuple[float, asyncio.Task[dict[str, list[msgspec.Raw]]]]] = {}
        """When the reading of each stream began, and its result."""
        self._one_at_a_time = asyncio.Lock()

    async def of_run(
        self, run_id: str, processes: Sequence[str], read_after_s: float = -math.inf
    ) -> Earlier:
        """The events of a run in the streams of these processes. Raises nothing of the ledger.

        `read_after_s`: a stream that was read before this time of the loop is read again.
        """
        if not self._ledger.has_log:
            return Earlier([], "this ledger keeps no events")
        found: dict[tuple[int, int], RunEvent] = {}
        problems: list[str] = []
        for process in processes:
            try:
                for raw in (await self._stream(process, read_after_s)).get(run_id, ()):
                    for event in msgspec.msgpack.decode(raw, type=list[RunEvent]):
                        found[event.position] = event
            except LedgerError as error:
                problems.append(f"the events of coordinator {process}: {error.message}")
            except TimeoutError:
                problems.append(f"the events of coordinator {process} were not read in time")
            except (msgspec.DecodeError, UnicodeDecodeError) as error:
                problems.append(f"the events of coordinator {process} are damaged: {error}")
        return Earlier(with_gaps([found[key] for key in sorted(found)]), "; ".join(problems))

    async def aclose(self) -> None:
        """Stop reading. Idempotent."""
        reading, self._reading = self._reading, {}
        await cancelled([task for _, task in reading.values()])

    async def _stream(self, process: str, read_after_s: float) -> dict[str, list[msgspec.Raw]]:
        """The stream by run. All runs that a process has left need it at the same time."""
        loop = asyncio.get_running_loop()
        now_s = loop.time()
        began_s, task = self._reading.get(process, (-math.inf, None))
        if task is None or began_s < max(read_after_s, now_s - REMEMBERED_S):
            task = asyncio.ensure_future(self._read(process))
            self._reading[process] = now_s, task
            for other, (since_s, _) in list(self._reading.items()):
                if since_s < now_s - REMEMBERED_S:
                    del self._reading[other]
        return await asyncio.shield(task)

    async def _read(self, process: str) -> dict[str, list[msgspec.Raw]]:
        runs: dict[str, list[msgspec.Raw]] = {}
        async with self._one_at_a_time, asyncio.timeout(READ_WITHIN_S):
            names = await self._ledger.logs(event_log_prefix(process))
            for name in sorted(names, key=segment_of):
                start = 0
                while page := await self._ledger.records(name, start, READ_PAGE):
                    for index, data in page:
                        start = index + 1
                        for run_id, raw in msgspec.msgpack.decode(data, type=_Encoded).runs.items():
                            runs.setdefault(run_id, []).append(raw)
                    await asyncio.sleep(0)  # Let other tasks run between two pages.
        return runs


def with_gaps(events: Sequence[RunEvent]) -> list[RunEvent]:
    """The events, with one in the place of those that are missing between them."""
    found: list[RunEvent] = []
    term, expected = 0, 1
    for event in events:
        if event.term != term:
            term, expected = event.term, 1
        missing = event.seq - expected
        if missing > 0:
            found.append(_gap(event, expected, missing))
        found.append(event)
        expected = event.seq + 1
    return found


def _gap(event: RunEvent, seq: int, count: int) -> RunEvent:
    return RunEvent(
        term=event.term,
        seq=seq,
        kind=EventKind.DROPPED,
        at=event.at,
        offset_s=event.offset_s,
        on=event.on,
        round=event.round,
        count=count,
        detail="they were removed, or not written while the ledger was away",
    )


def unsure_after(events: Sequence[RunEvent], term: int) -> str:
    """Which events may be missing before this term begins, in words; "" if it is known that none.

    `events`: of earlier terms, oldest first.
    """
    if not events:
        return f"no event from before term {term} was written"
    last = events[-1]
    if last.kind in _ENDS and last.term == term - 1:
        return ""
    return (
        f"the last one that was written before term {term} is {last.id}; what happened after it "
        "and before this takeover may be missing"
    )
