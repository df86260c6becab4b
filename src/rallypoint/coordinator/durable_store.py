"""The round's store on a ledger with a log: nothing is acknowledged before it is written (R10).

The store is a deterministic machine, so what is logged is the calls that change it, in order; a
successor applies them again and has the same data, the same barriers and the same remembered
answers (R11). Calls are batched: while one record is being written, the next one gathers. Every
answer is held until the record that it depends on is there, answers to reads as well, so that
nobody sees what a successor might not have.

Without I/O: `take_record` gives the bytes to append, `appended` says that they are there.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Sequence
from typing import Final, TypeAlias

import msgspec

from rallypoint.core.store import (
    LIMIT,
    Answer,
    Check,
    Get,
    MultiGet,
    NumKeys,
    RoundStore,
    StoreFailure,
    StoreOp,
    Wait,
)

FORMAT: Final = 2
"""The format of a record; it stands first in each. A reader refuses any other."""
READS: Final = (Get, MultiGet, Wait, Check, NumKeys)
CALL_OVERHEAD_BYTES: Final = 64
"""Of a record, and of an entry in it: the format, the tags and the numbers."""
NUMBER_BYTES_MAX: Final = 9
"""What MessagePack needs for a number, or before a text, bytes or an array."""
RECORD_BYTES_MAX: Final = 16 << 20
"""Where the ledger says nothing else."""


class Applied(msgspec.Struct, frozen=True, array_like=True, tag="do"):
    """A call that changes the store, and what its node acknowledged with it."""

    node: str
    request_id: int
    op: StoreOp
    acknowledged: int
    still_open: tuple[int, ...]


class Withdrawn(msgspec.Struct, frozen=True, array_like=True, tag="un"):
    """A call that waited, and waits no more: it ran out of time, or nobody waits for it."""

    node: str
    request_id: int


Entry: TypeAlias = Applied | Withdrawn


class Header(msgspec.Struct, frozen=True, array_like=True):
    """The first record of a log: what it is a log of.

    It is created before the round is committed, so a log without it was removed.
    """

    run_id: str
    number: int
    segment: int = 0


class Record(msgspec.Struct, frozen=True, array_like=True):
    """One record of the log. A seal has no entries: nothing of an earlier term follows it (R5)."""

    format: int
    term: int
    entries: tuple[Entry, ...] = ()
    is_seal: bool = False
    header: Header | None = None


class UnreadableLogError(Exception):
    """A record is not ours, damaged, or of a newer format. The text says which."""


def encode_record(record: Record) -> bytes:
    """A record's bytes."""
    return msgspec.msgpack.encode(record)


def header_record(run_id: str, number: int, term: int) -> bytes:
    """The first record of a round's log. The same again for the same round and term."""
    return encode_record(Record(FORMAT, term, header=Header(run_id, number)))


def decode_record(data: bytes) -> Record:
    """A record. Raises UnreadableLogError."""
    try:
        record = msgspec.msgpack.decode(data, type=Record)
    except (msgspec.DecodeError, RecursionError) as error:
        raise UnreadableLogError(_why_unreadable(data, error)) from error
    if record.format != FORMAT:
        raise UnreadableLogError(_other_format(record.format))
    return record


def _why_unreadable(data: bytes, error: Exception) -> str:
    """The format is told first: a record of another one need not look like ours at all."""
    try:
        first = msgspec.msgpack.decode(data, type=list)[0]
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError, IndexError):
        first = FORMAT
    if type(first) is int and first != FORMAT:
        return _other_format(first)
    return f"a record of the round's store is damaged: {error}"


def _other_format(found: int) -> str:
    age = "a newer" if found > FORMAT else "an older"
    return (
        f"a record of the round's store has format {found}, of {age} release; this one reads "
        f"format {FORMAT}: let that release finish the run, or start it under another id"
    )


class DurableStore:
    """A RoundStore whose answers wait for the log. The same calls, besides the log's own.

    `next_index`: of the first record that this term writes. `batch_bytes_max`: about how large a
    record of several calls may become. `record_bytes_max`: what the ledger takes; a call that needs
    more is refused before anything of it is applied.
    """

    def __init__(
        self,
        store: RoundStore,
        term: int,
        *,
        next_index: int = 0,
        batch_bytes_max: int,
        record_bytes_max: int = RECORD_BYTES_MAX,
    ) -> None:
        self._store = store
        self._term = term
        self._next_index = next_index
        self._batch_bytes_max = batch_bytes_max
        self._record_bytes_max = record_bytes_max
        self._is_over = False
        self._gathering: deque[tuple[Entry, int]] = deque()
        self._writing: int = 0
        self._logged = 0
        self._durable = 0
        self._held: deque[tuple[int, list[Answer]]] = deque()

    @property
    def is_over(self) -> bool:
        """Whether the round has ended: then nothing more is to be written."""
        return self._is_over

    # -- the store's calls ---------------------------------------------------------------------

    def apply(
        self,
        node: str,
        request_id: int,
        op: StoreOp,
        timeout_s: float | None,
        now_s: float,
        acknowledged: int = 0,
        still_open: Sequence[int] = (),
    ) -> list[Answer]:
        """Apply a call; the answers that may leave now."""
        self._store.acknowledge(node, acknowledged, still_open)
        if isinstance(op, READS) or self._store.has_seen(node, request_id):
            return self._hold(self._store.apply(node, request_id, op, timeout_s, now_s))
        entry = Applied(node, request_id, op, acknowledged, tuple(still_open))
        size = _size(entry)
        if size > self._record_bytes_max - CALL_OVERHEAD_BYTES:
            return self._hold([Answer(node, request_id, self._too_large(size))])
        answers = self._store.apply(node, request_id, op, timeout_s, now_s)
        if not _was_refused(answers, node, request_id):
            self._log(entry, size)
        return self._hold(answers)

    def _too_large(self, size: int) -> StoreFailure:
        return StoreFailure(
            LIMIT,
            f"this call came to {size} bytes, and the ledger of this run keeps at most "
            f"{self._record_bytes_max} of one call",
        )

    def cancel(self, node: str, request_id: int) -> None:
        """Nobody waits for the call any more."""
        self._store.cancel(node, request_id)
        self._withdraw(node, request_id)

    def forget_node(self, node: str) -> None:
        """The node is no member any more."""
        self._store.forget_node(node)

    def next_deadline_s(self) -> float | None:
        """When `expire` will have something to do."""
        return self._store.next_deadline_s()

    def expire(self, now_s: float) -> list[Answer]:
        """Answer what ran out of time."""
        answers = self._store.expire(now_s)
        for answer in answers:
            self._withdraw(answer.node, answer.request_id)
        return self._hold(answers)

    def end(self, message: str) -> list[Answer]:
        """The round is over. What is not in the log yet was never acknowledged, and never is."""
        self._is_over = True
        self._gathering.clear()
        held = {(a.node, a.request_id) for _, answers in self._held for a in answers}
        self._held.clear()
        ended = StoreFailure("round_ended", message)
        unanswered = [Answer(node, request_id, ended) for node, request_id in sorted(held)]
        return unanswered + self._store.end(message)

    # -- the log -------------------------------------------------------------------------------

    def take_record(self) -> tuple[int, bytes] | None:
        """The next record to append, and its index; None while one is being written, or if there
        is nothing to write."""
        if self._is_over or self._writing or not self._gathering:
            return None
        entries: list[Entry] = []
        size = 0
        while self._gathering and (not entries or self._fits(size)):
            entry, entry_size = self._gathering.popleft()
            entries.append(entry)
            size += entry_size
        self._writing = len(entries)
        return self._next_index, encode_record(Record(FORMAT, self._term, tuple(entries)))

    def _fits(self, size: int) -> bool:
        """Whether the next entry may still be in a record that is so large by now."""
        next_size = self._gathering[0][1]
        most = self._record_bytes_max - CALL_OVERHEAD_BYTES
        return size < self._batch_bytes_max and size + next_size <= most

    def appended(self) -> list[Answer]:
        """The record that was taken last is in the log; the answers that may leave now."""
        self._next_index += 1
        self._durable += self._writing
        self._writing = 0
        released: list[Answer] = []
        while self._held and self._held[0][0] <= self._durable:
            released += self._held.popleft()[1]
        return released

    def replay(self, records: Iterable[bytes]) -> None:
        """Take what earlier terms wrote. Their answers were sent, or will be asked for again.

        Raises UnreadableLogError.
        """
        count = 0
        for data in records:
            for entry in decode_record(data).entries:
                self._replay(entry)
            count += 1
        self._next_index = count or self._next_index

    def _replay(self, entry: Entry) -> None:
        if isinstance(entry, Withdrawn):
            self._store.cancel(entry.node, entry.request_id)
            return
        self._store.acknowledge(entry.node, entry.acknowledged, entry.still_open)
        self._store.apply(entry.node, entry.request_id, entry.op, None, 0.0)

    def _withdraw(self, node: str, request_id: int) -> None:
        self._log(Withdrawn(node, request_id), CALL_OVERHEAD_BYTES + 4 * len(node))

    def _log(self, entry: Entry, size: int) -> None:
        self._logged += 1
        self._gathering.append((entry, size))

    def _hold(self, answers: list[Answer]) -> list[Answer]:
        if self._durable == self._logged or not answers:
            return answers
        self._held.append((self._logged, answers))
        return []


def _was_refused(answers: list[Answer], node: str, request_id: int) -> bool:
    """Whether the call itself was refused for a limit: then nothing was applied."""
    own = next((a for a in answers if (a.node, a.request_id) == (node, request_id)), None)
    return own is not None and isinstance(own.result, StoreFailure) and own.result.code == LIMIT


def _size(entry: Applied) -> int:
    """No less than what an entry comes to in a record."""
    values = sum(_length(getattr(entry.op, name)) for name in entry.op.__struct_fields__)
    numbers = NUMBER_BYTES_MAX * len(entry.still_open)
    return CALL_OVERHEAD_BYTES + 4 * len(entry.node) + values + numbers


def _length(value: object) -> int:
    """No less than what a field of a call comes to: text, bytes, a number, or some of these."""
    if isinstance(value, str):
        return NUMBER_BYTES_MAX + (len(value) if value.isascii() else len(value.encode()))
    if isinstance(value, bytes):
        return NUMBER_BYTES_MAX + len(value)
    if isinstance(value, tuple | list):
        return NUMBER_BYTES_MAX + sum(map(_length, value))
    return NUMBER_BYTES_MAX
