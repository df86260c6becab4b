"""The member table of a round as a ledger keeps it: in the head if it is small, else in chunks.

Every node that looks for its coordinator reads the head, and every change of the run writes it. So
the head stays small, and the table of a large round is kept apart. Its chunks are written before
the head that names them, and removed after a head that no longer names them. A chunk whose rows did
not change is not written again: node ranks are stable between rounds, and chunks are cut at fixed
ranks.

A chunk's name is (term, serial): its writer's term, and a number that the writer uses once. So two
contents never have the same name, and a late removal cannot remove another chunk. Only the seal of
the run's head decides what may be removed (R5), never time:

* The owner of a term removes chunks of its own term and of earlier ones, unless the head that it
  committed last, or the one that it is about to commit, names them. Nobody will name them again:
  owners of earlier terms cannot commit any more, and an owner names only its own chunks and those
  of the head that it found.
* It never removes a chunk of a later term. So an owner that was deposed, and does not know it yet,
  removes nothing that its successor's head names.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from typing import Annotated, Final

import msgspec

from rallypoint.core.election.records import FORMAT, Chunk, Table, UnreadableError
from rallypoint.core.values import SECRET_HASH_BYTES, FrozenStruct, NodeInfo, RoundMember

RANKS_PER_CHUNK: Final = 512
"""A chunk ends before each multiple of this node rank, so that equal rows make equal chunks."""
CHUNK_BYTES: Final = 192 * 1024
"""A chunk ends after the row with which it reaches this size. An engine takes at least 1 MiB."""
INLINE_BYTES_MAX: Final = 8 * 1024
"""A table of at most this size is in the head, which saves small runs a second write."""
TABLE_BYTES_MAX: Final = 128 << 20
"""The largest table. The names of its chunks fit into a head."""
ROW_OVERHEAD_BYTES: Final = 16 + 2 + SECRET_HASH_BYTES


class Piece(FrozenStruct, frozen=True):
    """The content of a chunk."""

    digest: bytes
    rows: int
    data: bytes


class Plan(FrozenStruct, frozen=True):
    """How to store a table: write the chunks of `new` before a head names `table`."""

    table: Table
    new: tuple[tuple[Chunk, bytes], ...]


class _Rows(FrozenStruct, frozen=True):
    format: int
    rows: Annotated[tuple[RoundMember, ...], msgspec.Meta(max_length=RANKS_PER_CHUNK)]


def row_bytes(node: NodeInfo) -> int:
    """The size of a node's row in a table, in bytes, or a little more."""
    return ROW_OVERHEAD_BYTES + len(msgspec.msgpack.encode(node))


def pieces(members: tuple[RoundMember, ...]) -> tuple[Piece, ...]:
    """The table, cut into chunks."""
    found: list[Piece] = []
    for first in range(0, len(members), RANKS_PER_CHUNK):
        rows: list[RoundMember] = []
        size = 0
        for row in members[first : first + RANKS_PER_CHUNK]:
            rows.append(row)
            size += len(msgspec.msgpack.encode(row))
            if size >= CHUNK_BYTES:
                found.append(_piece(rows))
                rows, size = [], 0
        if rows:
            found.append(_piece(rows))
    return tuple(found)


def _piece(rows: list[RoundMember]) -> Piece:
    data = msgspec.msgpack.encode(_Rows(FORMAT, tuple(rows)))
    return Piece(_digest(data), len(rows), data)


def _digest(data: bytes) -> bytes:
    return hashlib.sha256(data).digest()[:16]


def members_of(table: Table, contents: Mapping[Chunk, bytes | None]) -> tuple[RoundMember, ...]:
    """The rows of a table, given what the ledger holds under each chunk's name.

    Raises UnreadableError if a chunk is missing, damaged, or of another format.
    """
    rows = list(table.rows)
    for chunk in table.chunks:
        # R2: all chunks, in order.
        rows += _rows_of(chunk, contents[chunk])
    return tuple(rows)


def _rows_of(chunk: Chunk, data: bytes | None) -> tuple[RoundMember, ...]:
    what = f"chunk {chunk.term}-{chunk.serial} of the member table"
    # R2: a table with a hole is no table.
    if data is None:
        raise UnreadableError(f"{what} is missing")
    # R2: exactly the rows that were committed.
    if _digest(data) != chunk.digest:
        raise UnreadableError(f"{what} is damaged: its digest does not fit its content")
    try:
        read = msgspec.msgpack.decode(data, type=_Rows)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise UnreadableError(f"{what} cannot be read: {error}") from error
    # R12: an unknown format is refused.
    if read.format != FORMAT or len(read.rows) != chunk.rows:
        raise UnreadableError(f"{what} has format {read.format} and {len(read.rows)} rows")
    return read.rows


class TableKeeper:
    """The chunks of one run's tables, from the view of the owner of one term.

    Call `plan` before each round and `committed` after each head. They return what to write and
    what to remove.
    """

    def __init__(self, term: int, table: Table | None, *, is_inline: bool = False) -> None:
        """`table`: of the head that the owner found. `is_inline`: the engine has no chunks."""
        self.term = term
        self._is_inline = is_inline
        self._present: dict[bytes, Chunk] = {c.digest: c for c in table.chunks} if table else {}
        self._planned: dict[bytes, Chunk] = {}
        self._serial = 0

    def plan(self, members: tuple[RoundMember, ...]) -> Plan:
        """How to store this table. Chunks of an earlier plan that failed are reused or removed."""
        size = sum(len(msgspec.msgpack.encode(row)) for row in members[:RANKS_PER_CHUNK])
        is_small = len(members) <= RANKS_PER_CHUNK and size <= INLINE_BYTES_MAX
        if self._is_inline or is_small:
            return Plan(Table(rows=members), ())
        new: dict[Chunk, bytes] = {}
        chunks: list[Chunk] = []
        for piece in pieces(members):
            # R5: only chunks of the head that it found, or of its own.
            chunk = self._present.get(piece.digest) or self._planned.get(piece.digest)
            if chunk is None:
                # R2: no name has two contents.
                self._serial += 1
                chunk = Chunk(self.term, self._serial, piece.rows, piece.digest)
                self._planned[piece.digest] = chunk
            # R2: a chunk is written before a head names it.
            if piece.digest not in self._present:
                new[chunk] = piece.data
            chunks.append(chunk)
        return Plan(Table(chunks=tuple(chunks)), tuple(new.items()))

    def committed(self, table: Table | None) -> tuple[Chunk, ...]:
        """A head with this table is in the ledger. Returns the chunks that can be removed now."""
        named = {chunk.digest: chunk for chunk in table.chunks} if table else {}
        before = {*self._present.values(), *self._planned.values()}
        self._present, self._planned = named, {}
        # R2: chunks that the head names stay.
        return tuple(sorted(before - set(named.values())))

    def leftovers(self, found: Iterable[tuple[int, int]]) -> list[tuple[int, int]]:
        """Those of these chunks that nobody needs, including chunks of earlier owners."""
        needed = {(c.term, c.serial) for c in (*self._present.values(), *self._planned.values())}
        # R5: a later owner's chunks are not touched.
        return [name for name in found if name[0] <= self.term and name not in needed]
