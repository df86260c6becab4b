"""The round's store with a log: no call is acknowledged before it is in the log (R10).

The log has the writes and the answer of each call, in order, so that a successor gets the same data
and the same remembered answers (R11). Waiting calls are not logged, because a node sends each call
without an answer again, with the rest of its time. Entries are batched: while one record is
written, the next one is collected. Every answer is held until the record on which it depends is in
the log. This includes reads, because no node may see a value that a successor might not have.

The log is kept short. When the records since the last snapshot cost more to read than a snapshot,
the store continues in a new segment, which begins with a snapshot. The segment before is dropped
when the snapshot is complete. Writing goes on meanwhile.

No I/O: `take_record` returns the bytes to append. Call `appended` when they are in the log.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from typing import Final

import msgspec

from rallypoint.coordinator.log_records import (
    FORMAT,
    Cost,
    Moved,
    Part,
    Record,
    encode_record,
    header_record,
)
from rallypoint.coordinator.log_replay import Replay
from rallypoint.coordinator.round_log import LogId
from rallypoint.core.store import LIMIT, READS, Answer, CompareSet, Set, StoreFailure, StoreOp
from rallypoint.core.store.data import Drop, Extend, Put
from rallypoint.core.store.snapshot import Acknowledged, AsStored, MoreBytes, Settled, SnapshotItem
from rallypoint.core.store.store import RoundStore

CALL_OVERHEAD_BYTES: Final = 96
"""The bytes of a record, and of an entry in it, for the format, the tags and the numbers."""
NUMBER_BYTES_MAX: Final = 9
"""The bytes that MessagePack needs for a number, or before a text, bytes or an array."""
RECORD_BYTES_MAX: Final = 16 << 20
"""The default if the ledger gives no other value."""
PART_BYTES_MAX: Final = 1 << 20
"""About the largest part of a snapshot. Its encoding blocks the event loop for 1 ms."""
RECORD_COST_BYTES: Final = 4096
"""The default if the ledger gives no other value."""
ENTRY_MEMORY_BYTES: Final = 512
"""The memory of a waiting entry besides its values."""
HELD_ANSWER_BYTES: Final = 256
"""The memory of an answer that waits for the log, without its value, which is counted elsewhere.
"""
COMPACT_RECORDS: Final = 500
COMPACT_BYTES: Final = 8 << 20
"""A log below both limits needs no snapshot, even if the store is small."""


class LogAppend(msgspec.Struct, frozen=True):
    """A record to append: the name of the log in the ledger, the record's index, and its bytes."""

    name: str
    index: int
    data: bytes


class _Writing(msgspec.Struct, frozen=True):
    """The record that is being written, of `size` bytes, with entries or of another kind."""

    size: int
    entries: int = 0
    header_of: LogId | None = None
    moves_to: LogId | None = None
    is_part: bool = False
    is_last_part: bool = False


class _Snapshot:
    """A snapshot that is being written: its items, with the next one read ahead."""

    def __init__(self, items: Iterator[SnapshotItem]) -> None:
        self._items = items
        self._next = next(items, None)
        self.cost = Cost()

    def part(self, bytes_max: int) -> Part:
        """The next items: at least one, and otherwise at most `bytes_max` bytes."""
        items: list[SnapshotItem] = []
        size = 0
        while (item := self._next) is not None:
            item_size = _item_size(item)
            if items and size + item_size > bytes_max:
                return Part(tuple(items), is_last=False)
            items.append(item)
            size += item_size
            self._next = next(self._items, None)
        return Part(tuple(items), is_last=True)


class StoreLog:
    """The log of a RoundStore, whose answers wait for it.

    Calls that may write or be answered come through here: `apply`, `expire` and `end` are the
    store's, except that they return only the answers that may be sent now. Everything else is asked
    of `store` itself. `is_over`: the round has ended, so nothing more is written. `base`: the
    first segment that is still needed to make the store.

    `log`: the segment to write to, from `next_index` on; its header is written. `term`: of the
    coordinator that writes. `batch_bytes_max`: about the largest record of several calls.
    `record_bytes_max`: the largest record that the ledger accepts; a larger call is refused before
    any part of it is applied. `record_cost_bytes`: the number of bytes that are read in the same
    time as one more record. `replay`: the source of `store`, if it is not new.
    """

    def __init__(
        self,
        store: RoundStore,
        term: int,
        *,
        run_id: str = "",
        log: LogId = LogId(0, 0),  # noqa: B008 - a value that nobody changes
        next_index: int = 1,
        batch_bytes_max: int,
        record_bytes_max: int = RECORD_BYTES_MAX,
        record_cost_bytes: int = RECORD_COST_BYTES,
        replay: Replay | None = None,
    ) -> None:
        self.store = store
        self._term = term
        self._run_id = run_id
        self._log = log
        self._name = log.name(run_id)
        self._next_index = next_index
        self._batch_bytes_max = batch_bytes_max
        self._record_bytes_max = record_bytes_max
        self._record_cost_bytes = record_cost_bytes
        self.is_over = False
        # Entries that wait for the log, with their sizes. Counts since the first entry: `_logged`
        # were queued, `_taken` were put into a record, `_durable` are in the log.
        self._gathering: deque[tuple[Settled, int]] = deque()
        self._unlogged_bytes = 0
        self._logged = self._taken = self._durable = 0
        self._groups: deque[tuple[int, int]] = deque()
        self._writing: _Writing | None = None
        # Answers, each with the number of entries that must be in the log before it is sent.
        self._held: deque[tuple[int, list[Answer]]] = deque()
        self._held_count = 0
        self._held_max = store.limits.unlogged_answers_max
        self._unlogged_bytes_max = store.limits.unlogged_bytes_max
        self._call_bytes_max = record_bytes_max - CALL_OVERHEAD_BYTES
        self._calls_until_sweep = 0
        # The move to the next segment.
        self._since = replay.since if replay is not None else Cost()
        self._snapshot_cost = replay.snapshot if replay is not None else Cost()
        self._snapshot: _Snapshot | None = None
        self._moves_at: int | None = None
        self._next_log: LogId | None = None
        self._was_part = False
        self.base = log if replay is None or replay.base is None else replay.base
        store.note_settled()

    # -- the store's calls ---------------------------------------------------------------------

    def apply(
        self,
        node: str,
        request_id: int,
        op: StoreOp,
        timeout_s: float | None,
        now_s: float,
    ) -> list[Answer]:
        """Apply a call. Returns the answers that may be sent now.

        A call for which there is no room is refused at once, without effect, and may be sent again.
        """
        is_read = type(op) in READS
        size = 0 if is_read else _call_size(node, op)
        is_full = self._held_count >= self._held_max or (
            size > self._call_bytes_max or self._unlogged_bytes + size > self._unlogged_bytes_max
        )
        # R11: a repeat is answered, however full it is.
        if is_full and not self.store.has_seen(node, request_id):
            refusal = self._refusal(size)
            if refusal is not None:
                return [Answer(node, request_id, refusal)]
        answers = self.store.apply(node, request_id, op, timeout_s, now_s)
        if not is_read:
            # R10: all answers that the call has caused go into the log.
            self._log_settled(size)
        # R10: no answer before its entry is in the log.
        return self._hold(answers)

    def _refusal(self, size: int) -> StoreFailure | None:
        """Why a call cannot be applied now; None if it can. The store is not changed (R11)."""
        # R10: a call that the ledger cannot take is not applied.
        if size > self._call_bytes_max:
            return StoreFailure(
                LIMIT,
                f"this call needs {size} bytes, and the ledger of this run stores at most "
                f"{self._record_bytes_max} for one call",
            )
        if self._held_count >= self._held_max:
            self._drop_unwanted()
        limits = self.store.limits
        # R12: the number of calls that wait is bounded.
        excess = limits.excess(unlogged_answers_max=self._held_count + 1)
        # R12: its bytes, too.
        if excess is None and size and self._unlogged_bytes:
            excess = limits.excess(unlogged_bytes_max=self._unlogged_bytes + size)
        if excess is None:
            return None
        waits = "the ledger has not stored earlier calls yet, so this call was not applied"
        return StoreFailure(LIMIT, f"{excess.message}: {waits}")

    def footprint(self) -> int:
        """About the memory of the answers and entries that are not in the log, in bytes."""
        writing = self._writing.size if self._writing is not None else 0
        return self._unlogged_bytes + HELD_ANSWER_BYTES * self._held_count + writing

    def expire(self, now_s: float) -> list[Answer]:
        """Answer the calls that have timed out."""
        answers = self.store.expire(now_s)
        # R10: a timeout is an answer, too.
        self._log_settled(0)
        # R10: no answer before its entry is in the log.
        return self._hold(answers)

    def end(self, message: str) -> list[Answer]:
        """The round is over. Drop entries that are not in the log: none was acknowledged."""
        # R10: nothing of it is acknowledged from now on.
        self.is_over = True
        self._gathering.clear()
        self._unlogged_bytes = 0
        self._snapshot = None
        held = {(a.node, a.request_id) for _, answers in self._held for a in answers}
        # R10: none of these answers was acknowledged.
        self._held.clear()
        self._held_count = 0
        ended = StoreFailure("round_ended", message)
        # R7: each caller is told that the round is over.
        unanswered = [Answer(node, request_id, ended) for node, request_id in sorted(held)]
        return unanswered + self.store.end(message)

    # -- the log -------------------------------------------------------------------------------

    def take_record(self) -> LogAppend | None:
        """The next record to append. None while one is being written, or if there is none."""
        # R10: one record at a time, in order.
        if self.is_over or self._writing is not None:
            return None
        # R10: entries before the move are in this segment.
        if self._taken == self._moves_at:
            return self._take_move()
        # Parts and entries alternate, so that neither delays the other.
        has_turn = not (self._was_part and self._gathering)
        if self._snapshot is not None and self._moves_at is None and has_turn:
            return self._take_part(self._snapshot)
        return self._take_entries() if self._gathering else None

    def appended(self) -> list[Answer]:
        """The last taken record is in the log. Returns the answers that may be sent now."""
        writing, self._writing = self._writing, None
        # R10: nothing of a round that is over is acknowledged.
        if writing is None or self.is_over:
            return []
        if writing.header_of is not None:
            self._next_log = writing.header_of
        elif writing.moves_to is not None:
            # R10: the next segment, behind its header.
            self._log, self._next_index = writing.moves_to, 1
            self._name = self._log.name(self._run_id)
            self._moves_at = self._next_log = None
        else:
            # R10: the next record follows this one.
            self._next_index += 1
            self._record_written(writing)
        released: list[Answer] = []
        # R10: only answers whose entries are in the log.
        while self._held and self._held[0][0] <= self._durable:
            released += self._held.popleft()[1]
        self._held_count -= len(released)
        return released

    def _record_written(self, writing: _Writing) -> None:
        if writing.is_part:
            assert self._snapshot is not None
            self._snapshot.cost.add(writing.size)
            # R10: a snapshot counts when it is whole.
            if writing.is_last_part:
                self._snapshot_cost, self._snapshot = self._snapshot.cost, None
                self.base = self._log
            return
        self._since.add(writing.size)
        # R10: so many entries are in the log.
        self._durable += writing.entries
        if self._is_snapshot_due():
            # Queued entries are still written to this segment, and are in the snapshot as well.
            items = self.store.snapshot(self._part_bytes_max())
            # R10: the snapshot has all up to this entry.
            self._snapshot, self._moves_at = _Snapshot(items), self._logged

    def _take_entries(self) -> LogAppend:
        entries: list[Settled] = []
        size = unlogged = 0
        # R10: not beyond the snapshot.
        stop = self._moves_at if self._moves_at is not None else self._logged
        while self._taken < stop and (not entries or self._fits(size)):
            entry, entry_size = self._gathering.popleft()
            entries.append(entry)
            size += entry_size
            unlogged += entry_size + ENTRY_MEMORY_BYTES
            self._taken += 1
        self._unlogged_bytes -= unlogged
        self._was_part = False
        # R5: the term that writes.
        record = Record(FORMAT, self._term, tuple(entries), unfinished=self._unfinished())
        return self._take(record, entries=len(entries))

    def _fits(self, size: int) -> bool:
        """Whether a record of this size has room for the next entry."""
        next_size = self._gathering[0][1]
        most = self._record_bytes_max - CALL_OVERHEAD_BYTES
        return size < self._batch_bytes_max and size + next_size <= most

    def _unfinished(self) -> int:
        """How many taken entries belong to a group of which more entries follow."""
        # R10: groups that are whole need no mark.
        while self._groups and self._groups[0][1] <= self._taken:
            self._groups.popleft()
        # R10: a group counts as a whole.
        return max(0, self._taken - self._groups[0][0]) if self._groups else 0

    def _take_part(self, snapshot: _Snapshot) -> LogAppend:
        part = snapshot.part(self._part_bytes_max())
        self._was_part = True
        record = Record(FORMAT, self._term, part=part)
        return self._take(record, is_part=True, is_last_part=part.is_last)

    def _take_move(self) -> LogAppend:
        """Move to the next segment: first write its header, then the last record of this one."""
        # R5: a segment of this writer, so that no other creates it.
        following = LogId(self._log.term, self._log.number, self._log.segment + 1, self._term)
        # R10: the next segment exists before this one names it.
        if self._next_log is None:
            header = header_record(self._run_id, following.number, self._term, following.segment)
            self._writing = _Writing(len(header), header_of=following)
            return LogAppend(following.name(self._run_id), 0, header)
        self._since = Cost()
        moved = Record(FORMAT, self._term, moved=Moved(following.segment, following.writer))
        return self._take(moved, moves_to=following)

    def _take(
        self,
        record: Record,
        *,
        entries: int = 0,
        moves_to: LogId | None = None,
        is_part: bool = False,
        is_last_part: bool = False,
    ) -> LogAppend:
        data = encode_record(record)
        self._writing = _Writing(
            len(data),
            entries,
            moves_to=moves_to,
            is_part=is_part,
            is_last_part=is_last_part,
        )
        # R5: behind the last record, where a seal would be.
        return LogAppend(self._name, self._next_index, data)

    def _is_snapshot_due(self) -> bool:
        """Whether the records since the last snapshot cost more to read than the snapshot."""
        since = self._since
        if self._snapshot is not None:
            return False
        if since.records < COMPACT_RECORDS and since.bytes < COMPACT_BYTES:
            return False
        return self._price(since) >= self._price(self._snapshot_cost)

    def _price(self, cost: Cost) -> int:
        return cost.bytes + cost.records * self._record_cost_bytes

    def _part_bytes_max(self) -> int:
        return min(PART_BYTES_MAX, self._batch_bytes_max)

    def _log_settled(self, size: int) -> None:
        """Queue answered calls for the log. `size`: of the call that caused the answers, if any."""
        settled = self.store.take_settled()
        if not settled:
            return
        # R10: the answers that one call caused count together.
        if len(settled) > 1:
            self._groups.append((self._logged, self._logged + len(settled)))
        for entry in settled:
            # For a call that wrote something, the call is larger than its entry.
            entry_size = size if entry.writes else _entry_size(entry)
            # R10: in the order in which it was applied.
            self._gathering.append((entry, entry_size))
            self._unlogged_bytes += entry_size + ENTRY_MEMORY_BYTES
        # R10: later answers wait for these entries.
        self._logged += len(settled)

    def _hold(self, answers: list[Answer]) -> list[Answer]:
        # R10: also reads wait for the writes that they have seen.
        if self._durable == self._logged or not answers:
            return answers
        # R10: until all entries so far are in the log.
        self._held.append((self._logged, answers))
        self._held_count += len(answers)
        return []

    def _drop_unwanted(self) -> None:
        """Drop held answers for which no node waits any more. O(held), but not at each call.

        Entries stay in the queue: later calls depend on them.
        """
        self._calls_until_sweep -= 1
        if self._calls_until_sweep > 0:
            return
        before = self._held_count
        kept = deque[tuple[int, list[Answer]]]()
        for position, answers in self._held:
            # R11: only answers for which no node waits are dropped.
            wanted = [a for a in answers if self.store.remembers(a.node, a.request_id)]
            if wanted:
                kept.append((position, wanted))
        self._held = kept
        self._held_count = sum(len(answers) for _, answers in kept)
        has_helped = self._held_count <= before // 2
        self._calls_until_sweep = 0 if has_helped else before // 16


def _call_size(node: str, op: StoreOp) -> int:
    """An upper bound for the size of a call's entry in a record."""
    if type(op) is Set:
        size = CALL_OVERHEAD_BYTES + 4 * len(node) + 2 * NUMBER_BYTES_MAX
        return size + 4 * len(op.key) + len(op.value)
    values = sum(_length(getattr(op, name)) for name in op.__struct_fields__)
    # The answer to a compare_set refers to its key.
    key = _length(op.key) if isinstance(op, CompareSet) else 0
    return CALL_OVERHEAD_BYTES + 4 * len(node) + values + key


def _entry_size(entry: Settled) -> int:
    """An upper bound for the size of an entry in a record."""
    size = CALL_OVERHEAD_BYTES + 4 * len(entry.node)
    result = entry.result
    if isinstance(result, StoreFailure):
        size += len(msgspec.msgpack.encode(result))
    elif isinstance(result, AsStored):
        size += _length(result.key)
    elif isinstance(result.value, bytes):
        size += _length(result.value)
    for write in entry.writes:
        size += NUMBER_BYTES_MAX + _length(write.key)
        if not isinstance(write, Drop):
            size += _length(write.value)
    return size


def _item_size(item: SnapshotItem) -> int:
    """An upper bound for the size of an item of a snapshot."""
    match item:
        case Put() | Extend():
            return CALL_OVERHEAD_BYTES + _length(item.key) + _length(item.value)
        case Settled():
            return _entry_size(item)
        case Acknowledged():
            numbers = NUMBER_BYTES_MAX * len(item.still_open)
            return CALL_OVERHEAD_BYTES + 4 * len(item.node) + numbers
        case MoreBytes():
            return CALL_OVERHEAD_BYTES + 4 * len(item.node) + _length(item.value)


def _length(value: object) -> int:
    """An upper bound for a field of a call: a text, bytes, a number, or several of them."""
    if isinstance(value, str):
        return NUMBER_BYTES_MAX + (len(value) if value.isascii() else len(value.encode()))
    if isinstance(value, bytes):
        return NUMBER_BYTES_MAX + len(value)
    if isinstance(value, tuple | list):
        return NUMBER_BYTES_MAX + sum(map(_length, value))
    return NUMBER_BYTES_MAX
