"""The index of a file ledger, on the disk: which folder each register and each log has.

    index/               a chain (chain.py): the layout, written once
    index/<part>/        a chain: the folders of the names in this part

A single index would be written as a whole for each new run. So the index has PARTS parts. All names
of one run are in the same part, and its coordinator reads and writes only that. A part is made for
the first name in it.

A ledger of an earlier release has only one part, which is the chain `index/` itself. That is not
changed.
"""

from __future__ import annotations

import contextlib
import enum
import errno
import hashlib
from collections.abc import Iterable
from pathlib import Path
from typing import Final

import msgspec

from rallypoint import runtime
from rallypoint.errors import LedgerCorruptError
from rallypoint.ledger import record_format
from rallypoint.ledger.file.chain import SEGMENT, Advance, Chain
from rallypoint.ledger.file.disk import Disk
from rallypoint.ledger.keys import group_of, group_of_prefix

PARTS: Final = 64
"""The number of parts. A list of all runs reads all parts, and each takes a file server some time.
"""
INDEX: Final = "index"
WHOLE: Final = ""
"""The only part of a ledger of an earlier release."""
_THERE: Final = frozenset({errno.EEXIST, errno.ENOTEMPTY, errno.ENOENT})
"""The errors of a rename if another process has made the part. NFS repeats a request whose answer
was lost, and then does not find the folder that it has renamed."""


class Kind(enum.StrEnum):
    """The kinds of names in the index. The value is the name of the folder for their folders."""

    REGISTERS = "registers"
    LOGS = "logs"


class Index(msgspec.Struct, frozen=True):
    """The folder of each register and each log of one part."""

    registers: dict[str, str] = {}
    logs: dict[str, str] = {}

    def entries(self, kind: Kind) -> dict[str, str]:
        """The folders of one kind, by name."""
        return self.registers if kind is Kind.REGISTERS else self.logs

    def with_entries(self, kind: Kind, entries: dict[str, str]) -> Index:
        """The index with these folders of one kind."""
        if kind is Kind.REGISTERS:
            return Index(entries, self.logs)
        return Index(self.registers, entries)


class Layout(msgspec.Struct, frozen=True, array_like=True):
    """The number of parts. An array, so that no earlier release reads it as an Index."""

    parts: int


class Indexed(msgspec.Struct, frozen=True):
    """One version of a part. Number 0: the part has not been made."""

    number: int
    index: Index


def begin_index(place: Path, disk: Disk) -> None:
    """Make the index of a new ledger, which no other process knows yet."""
    _begin(place / INDEX, Layout(PARTS), place / "trash", disk)


def is_used(place: Path, disk: Disk) -> bool:
    """Whether this ledger was ever written to."""
    with contextlib.suppress(FileNotFoundError, LedgerCorruptError):
        made = any(_is_part(name) for name in disk.names(place / INDEX))
        return made or Chain(place / INDEX, place / "trash", disk).number() not in (None, SEGMENT)
    return False


class FileIndex:
    """The index of one ledger. Several threads and processes may use it at a time. Calls block.

    Raises FileNotFoundError if the ledger was removed, and LedgerCorruptError.
    """

    def __init__(self, place: Path, disk: Disk) -> None:
        self._folder = place / INDEX
        self._temporaries = place / "tmp"
        self._trash = place / "trash"
        self._disk = disk
        self._made: set[str] = set()
        """The parts whose names are known to be on the disk."""
        self._synced: dict[str, int] = {}
        """The version of each part that is known to be on the disk."""
        self._parts = self._read_layout()

    def part_of(self, name: str) -> str:
        """The part for a name. All names of one run have the same part."""
        return self._part(group_of(name))

    def parts_with(self, prefix: str) -> Iterable[str]:
        """The parts that may have names with this prefix."""
        if self._parts == 1:
            return (WHOLE,)
        group = group_of_prefix(prefix)
        if group is not None:
            return (self._part(group),)
        return [name for name in sorted(self._disk.names(self._folder)) if _is_part(name)]

    def read(self, part: str) -> Indexed:
        """The present version of a part."""
        head = self._chain(part).head()
        if head is None:
            if part == WHOLE or not self._disk.is_folder(self._folder):
                raise FileNotFoundError(2, "the ledger's index is gone", str(self._folder.parent))
            return Indexed(0, Index())
        return Indexed(head.number, self._decoded(head.value, head.number))

    def ready(self, part: str) -> Indexed:
        """The part as it is now, before a name is added. It is made if it does not exist."""
        if part != WHOLE and part not in self._made:
            if not self._disk.is_folder(self._folder / part):
                self._make(part)
            self._sync_name(part)
        return self.read(part)

    def sync(self, part: str, indexed: Indexed) -> None:
        """Force this version to the disk, before a name in it is used.

        A power failure must not take a register away that was read or written, and the process that
        added its name may have died before it forced that to the disk.
        """
        if self._synced.get(part) != indexed.number:
            self._chain(part).sync(indexed.number)
            if part != WHOLE and part not in self._made:
                self._sync_name(part)
            self._synced[part] = indexed.number

    def _sync_name(self, part: str) -> None:
        """The process that made a part may have died before it forced the name to the disk."""
        self._disk.sync(self._folder)
        self._made.add(part)

    def write(self, part: str, before: Indexed, temporary: Path) -> Advance:
        """Make the file `temporary` the part's next version, if `before` is still the newest."""
        return self._chain(part).advance(before.number, temporary)

    def _chain(self, part: str) -> Chain:
        return Chain(self._folder / part if part else self._folder, self._trash, self._disk)

    def _part(self, group: str) -> str:
        if self._parts == 1:
            return WHOLE
        number = int.from_bytes(hashlib.sha256(group.encode()).digest()[:4], "big")
        return f"{number % self._parts:02x}"

    def _read_layout(self) -> int:
        head = self._chain(WHOLE).head()
        if head is None:
            raise FileNotFoundError(2, "the ledger's index is gone", str(self._folder.parent))
        with contextlib.suppress(msgspec.MsgspecError):
            return msgspec.msgpack.decode(head.value, type=Layout).parts
        self._decoded(head.value, head.number)
        return 1

    def _make(self, part: str) -> None:
        """Make a part elsewhere, then rename it in one step, as another process may do the same."""
        aside = self._temporaries / runtime.token_hex(12)
        _begin(aside, Index(), self._trash, self._disk)
        try:
            self._disk.rename(aside, self._folder / part)
        except OSError as error:
            if error.errno not in _THERE or not self._disk.is_folder(self._folder / part):
                raise
            self._disk.move_away(aside, self._trash)

    def _decoded(self, value: bytes, number: int) -> Index:
        try:
            return msgspec.msgpack.decode(value, type=Index)
        except msgspec.MsgspecError as error:
            raise LedgerCorruptError(
                f"version {number} of the index in {self._folder.parent} is unreadable: {error}",
                hint=record_format.DAMAGED_HINT,
            ) from error


def _begin(folder: Path, value: Index | Layout, trash: Path, disk: Disk) -> None:
    sealed = record_format.seal(msgspec.msgpack.encode(value), record_format.new_nonce())
    Chain(folder, trash, disk).begin(SEGMENT, sealed)


def _is_part(name: str) -> bool:
    return len(name) == 2
