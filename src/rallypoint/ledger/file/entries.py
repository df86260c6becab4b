"""The folder of each register, or of each log, of a file ledger: the entries of the index.

A name that is removed and used again gets another folder. So a process that was frozen meanwhile
finds no folder to write to. This file must not use the content of a folder.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

import msgspec

from rallypoint import runtime
from rallypoint.errors import LedgerUnreachableError
from rallypoint.ledger.file.chain import Advance
from rallypoint.ledger.file.disk import Disk, Scratch
from rallypoint.ledger.file.index import FileIndex, Index, Indexed, Kind

TRIES_MAX: Final = 1000
"""The attempts of a write while other processes are first."""
_RANDOM_DIGITS: Final = 12
_NOT_READ: Final = Indexed(-1, Index())


class Entries:
    """The folders of all registers, or of all logs, of one ledger. Several threads may use it."""

    def __init__(
        self, kind: Kind, place: Path, disk: Disk, index: FileIndex, scratch: Scratch
    ) -> None:
        self.folder = place / kind
        """The folder that contains theirs."""
        self._kind = kind
        self._disk = disk
        self._index = index
        self._scratch = scratch
        # A folder belongs to one register or log for ever. So an entry here is wrong only if the
        # folder is gone.
        self._known: dict[str, str] = {}
        self.synced: dict[str, tuple[str, int]] = {}
        """By name: a folder, and its version, or number of records, that is on the disk."""

    def candidates(self, key: str) -> Iterator[str]:
        """The folders that the key may have: first the known one, then that in the index."""
        known = self._known.get(key)
        if known is not None:
            yield known
        found = self._look_up(key)
        if found is not None and found != known:
            yield found

    def add(self, key: str, begin: Callable[[Path, int], None]) -> int | None:
        """Give the key a new folder, which `begin` makes from its path and its number.

        Returns the number, which no other folder of this part of the index has; None if another
        process was first.
        """
        part = self._index.part_of(key)
        before = self._index.ready(part)
        entries = before.index.entries(self._kind)
        present = entries.get(key)
        if present is not None and self._disk.is_folder(self.folder / present):
            return None
        # The number is that of the part's next version. A folder that is not in that version will
        # never be in the index, so it can be removed at any time.
        number = before.number + 1
        name = f"{number:016x}-{part}{runtime.token_hex(_RANDOM_DIGITS // 2)}"
        begin(self.folder / name, number)
        self._disk.sync(self.folder)
        index = before.index.with_entries(self._kind, {**entries, key: name})
        advance = self._write(part, before, index)
        if advance is Advance.DONE:
            self._known[key] = name
            return number
        if advance is Advance.UNSURE:
            raise interrupted()
        self._scratch.move_away(self.folder / name)
        _pause()
        return None

    def remove(self, key: str, folder: str | None = None) -> None:
        """Remove the key. With `folder`: only if this is still its folder."""
        name = folder or self._look_up(key)
        if name is None:
            return
        # The key is removed by this move: a process that writes now finds no folder.
        self._scratch.move_away(self.folder / name)
        self._disk.sync(self.folder)
        part = self._index.part_of(key)
        for _ in range(TRIES_MAX):
            before = self._index.read(part)
            entries = dict(before.index.entries(self._kind))
            if entries.get(key) != name:
                break
            del entries[key]
            index = before.index.with_entries(self._kind, entries)
            if self._write(part, before, index) is Advance.DONE:
                break
            _pause()
        self._forget(key)

    def keys(self, prefix: str) -> tuple[str, ...]:
        """The keys that begin with `prefix`, in order."""
        found: list[str] = []
        for part in self._index.parts_with(prefix):
            found += (
                key
                for key, name in self._index.read(part).index.entries(self._kind).items()
                if key.startswith(prefix) and self._disk.is_folder(self.folder / name)
            )
        return tuple(sorted(found))

    def sweep(self, parts: dict[str, Indexed]) -> None:
        """Remove folders that no later version of the index can have. `parts`: the whole index."""
        used: set[str] = set()
        for indexed in parts.values():
            used.update(indexed.index.entries(self._kind).values())
        for name in self._disk.names(self.folder):
            indexed = parts.get(_part_in(name), _NOT_READ)
            if name not in used and _number_in(name) <= indexed.number:
                self._scratch.move_away(self.folder / name)

    def _look_up(self, key: str) -> str | None:
        part = self._index.part_of(key)
        indexed = self._index.read(part)
        name = indexed.index.entries(self._kind).get(key)
        if name is None:
            self._forget(key)
        else:
            self._index.sync(part, indexed)
            self._known[key] = name
        return name

    def _write(self, part: str, before: Indexed, index: Index) -> Advance:
        with self._scratch.temporary(msgspec.msgpack.encode(index)) as temporary:
            return self._index.write(part, before, temporary)

    def _forget(self, key: str) -> None:
        self._known.pop(key, None)
        self.synced.pop(key, None)


def interrupted() -> LedgerUnreachableError:
    """The error for a write with an unknown outcome."""
    return LedgerUnreachableError(
        "this process was stopped in the middle of a write",
        hint="look at what the ledger has now, and try again",
    )


def crowded() -> LedgerUnreachableError:
    """The error after TRIES_MAX writes, in each of which another process was first."""
    return LedgerUnreachableError(
        "the ledger's index changes faster than it can be written",
        hint="try again when fewer runs begin and end in this ledger",
    )


def _part_in(name: str) -> str:
    """The part of the index that a folder was made for."""
    return name.partition("-")[2][:-_RANDOM_DIGITS]


def _number_in(name: str) -> float:
    """The number that a folder was made for; infinity for a name that is not a ledger's."""
    number, dash, _ = name.partition("-")
    with contextlib.suppress(ValueError):
        return int(number, 16) if dash else math.inf
    return math.inf


def _pause() -> None:
    """Wait after another process was first, so that both do not collide again."""
    here = runtime.here()
    here.sleep(here.chance.uniform(0.0005, 0.005))
