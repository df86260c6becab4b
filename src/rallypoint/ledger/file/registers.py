"""The registers of a file ledger. All calls block; several threads and processes make them.

A register is a chain of versions (`chain`) in a folder that is in the index (`entries`).
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

from rallypoint.ledger import record_format
from rallypoint.ledger.contract import Conflict, SwapOutcome, Swapped, Unknown, Versioned
from rallypoint.ledger.file.chain import Advance, Chain
from rallypoint.ledger.file.disk import Disk, Scratch
from rallypoint.ledger.file.entries import TRIES_MAX, Entries, crowded, interrupted

TOMBSTONE: Final = b"\0deleted"
"""The last version of a register that was deleted at a given version."""


class Registers:
    """The registers of one ledger. Raises LedgerError, and OSError for errors of the system."""

    def __init__(self, entries: Entries, disk: Disk, scratch: Scratch) -> None:
        self._entries = entries
        self._disk = disk
        self._scratch = scratch

    def read(self, key: str) -> Versioned | None:
        """See Ledger.read."""
        for name in self._entries.candidates(key):
            chain = self._chain(name)
            head = chain.head()
            if head is not None and head.value == TOMBSTONE:
                # The process that deleted it was stopped before its removal, or is about to remove
                # it.
                self._entries.remove(key, name)
                continue
            if head is not None:
                # A power failure must not undo a version that a reader has seen, and its writer may
                # have died before it forced the version to the disk.
                if self._entries.synced.get(key) != (name, head.number):
                    chain.sync(head.number)
                    self._entries.synced[key] = (name, head.number)
                return Versioned(head.value, head.number)
        return None

    def replace(self, key: str, expected: int, value: bytes) -> SwapOutcome:
        """See Ledger.swap, with a version."""
        for name in self._entries.candidates(key):
            chain = self._chain(name)
            number = chain.number()
            if number is None:
                continue
            if number != expected:
                break
            with self._scratch.temporary(value) as temporary:
                advance = chain.advance(expected, temporary)
            if advance is Advance.DONE:
                return Swapped(expected + 1)
            if advance is Advance.UNSURE:
                return Unknown(interrupted().message)
            break
        return Conflict(self.read(key))

    def create(self, key: str, value: bytes) -> SwapOutcome:
        """See Ledger.swap, without a version."""

        def begin(folder: Path, number: int) -> None:
            sealed = record_format.seal(value, record_format.new_nonce())
            Chain(folder, self._scratch.trash, self._disk).begin(_first_version(number), sealed)

        for _ in range(TRIES_MAX):
            current = self.read(key)
            if current is not None:
                return Conflict(current)
            number = self._entries.add(key, begin)
            if number is not None:
                return Swapped(_first_version(number))
        raise crowded()

    def delete(self, key: str, version: int | None) -> bool:
        """See Ledger.delete.

        If a version is given, a tombstone is written first, so that of two processes that delete or
        write the register, only one writes the next version.
        """
        if version is None:
            self._entries.remove(key)
            return True
        for name in self._entries.candidates(key):
            chain = self._chain(name)
            if chain.number() != version:
                continue
            with self._scratch.temporary(TOMBSTONE) as temporary:
                advance = chain.advance(version, temporary)
            if advance is Advance.UNSURE:
                raise interrupted()
            if advance is Advance.DONE:
                self._entries.remove(key, name)
                return True
        return self.read(key) is None

    def keys(self, prefix: str) -> tuple[str, ...]:
        """See Ledger.keys."""
        return self._entries.keys(prefix)

    def _chain(self, name: str) -> Chain:
        return Chain(self._entries.folder / name, self._scratch.trash, self._disk)


def _first_version(number: int) -> int:
    """The first version of a folder. No other folder has a version in its range."""
    return number << 32
