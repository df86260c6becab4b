"""The records of a round's log: their contents, and their bytes.

They contain *results*: the writes and the answer of each call. Two releases that replay a log get
the same store, even if they would answer a call differently.

A log is a segment of a round's store (`round_log`). Its first record is its header. A segment that
follows another begins with a *snapshot* of the store, from the time when the segment began. The
snapshot has several records, and records of later calls are between and after them. The segment
before is needed until the last part of the snapshot is written.
"""

from __future__ import annotations

from typing import Final

import msgspec

from rallypoint.core.store.snapshot import Settled, SnapshotItem

FORMAT: Final = 2
"""The format of a record, its first field. A reader refuses any other."""


class Header(msgspec.Struct, frozen=True, array_like=True):
    """The first record of a log: its run, round and segment.

    It is written before the round is committed. So a log without a header was removed.
    """

    run_id: str
    number: int
    segment: int = 0


class Moved(msgspec.Struct, frozen=True, array_like=True):
    """The last record of a segment: it names the next one, which the term `writer` created."""

    segment: int
    writer: int


class Part(msgspec.Struct, frozen=True, array_like=True):
    """A part of the snapshot. A snapshot without its last part is ignored."""

    items: tuple[SnapshotItem, ...]
    is_last: bool


class Record(msgspec.Struct, frozen=True, array_like=True):
    """One record of a log. A seal has no entries; no record of an earlier term can follow it (R5).

    `unfinished`: how many of the last entries, in this record and those before it, belong together
    with the first entries of the next record. They are ignored if that record is missing, because
    the answers of a barrier must count for all nodes or for none.
    """

    format: int
    term: int
    entries: tuple[Settled, ...] = ()
    is_seal: bool = False
    header: Header | None = None
    unfinished: int = 0
    part: Part | None = None
    moved: Moved | None = None


class Cost(msgspec.Struct):
    """The cost of reading a part of a log."""

    records: int = 0
    bytes: int = 0

    def add(self, size: int) -> None:
        """Add one record of this size."""
        self.records += 1
        self.bytes += size


class UnreadableLogError(Exception):
    """A record is not Rallypoint's, is damaged, or has another format. The text says which."""


_ENCODER: Final = msgspec.msgpack.Encoder()
_DECODER: Final = msgspec.msgpack.Decoder(Record)


def encode_record(record: Record) -> bytes:
    """A record's bytes."""
    return _ENCODER.encode(record)


def header_record(run_id: str, number: int, term: int, segment: int = 0) -> bytes:
    """The first record of a log. The same log always has the same bytes."""
    return encode_record(Record(FORMAT, term, header=Header(run_id, number, segment)))


def seal_record(term: int) -> bytes:
    """The seal that a coordinator appends to a log that it takes over."""
    return encode_record(Record(FORMAT, term, is_seal=True))


def decode_record(data: bytes) -> Record:
    """A record. Raises UnreadableLogError."""
    try:
        record = _DECODER.decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        # R12: bytes that are no record are refused.
        raise UnreadableLogError(_why_unreadable(data, error)) from error
    # R12: so is another format.
    if record.format != FORMAT:
        raise UnreadableLogError(_other_format(record.format))
    return record


def _why_unreadable(data: bytes, error: Exception) -> str:
    # Check the format first: a record of another format may have any other fields.
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
