"""Many registers in one value, for an engine that has a single value with compare-and-swap.

A RendezvousBackend of torch is such an engine. Its value is a `RegisterMap`, in which each register
has an entry with its own version. This file does no I/O. The caller reads the engine's value,
computes the map after a swap, and swaps the whole value. If the engine reports a conflict, the
caller does the same with the present map, until there is a result:

    while True:
        after = register_map.swap(key, expected, value)
        if isinstance(after, Conflict):
            return after            # the register itself has another version
        ...swap the engine's value from `register_map` to `after.register_map`...
        if done:      return Swapped(after.version)
        if unknown:   return Unknown(...)       # the caller tries the same bytes again
        register_map = ...what the engine holds instead...

This is safe if the engine's own swap is: the version of a register changes with each of its own
writes, and with no other. A swap that was done although its answer was lost is recognised by the
caller's own bytes in the map.
"""

from __future__ import annotations

from typing import Annotated, Final

import msgspec

from rallypoint.core.reasons import OTHER_FORMAT_HINT
from rallypoint.errors import LedgerCorruptError, LedgerFormatError
from rallypoint.ledger.contract import Conflict, Versioned

_FOREIGN_HINT: Final = "another program uses it, or it was damaged; give the run its own id"
FORMAT: Final = 2
"""The format that this release writes and reads: the first field of the map."""

Counter = Annotated[int, msgspec.Meta(ge=0, le=2**63 - 1)]


class Entry(msgspec.Struct, frozen=True, array_like=True):
    """One register."""

    version: Counter
    value: bytes


class Placed(msgspec.Struct, frozen=True):
    """The map after the swap, and the version that the register has in it."""

    register_map: RegisterMap
    version: int


class RegisterMap(msgspec.Struct, frozen=True, array_like=True):
    """All registers of one ledger.

    `writes` counts all writes, so no version is used twice, not even after a register was removed.
    For the same reason no two maps of a ledger have the same bytes. An engine that compares values
    instead of versions needs that.
    """

    format: int
    ledger_id: str
    writes: Counter = 0
    entries: dict[str, Entry] = {}

    @classmethod
    def empty(cls, ledger_id: str) -> RegisterMap:
        """The map of a new ledger. The process that stores it first draws `ledger_id`."""
        return cls(FORMAT, ledger_id)

    def read(self, key: str) -> Versioned | None:
        """The register's value and version; None if the register does not exist."""
        entry = self.entries.get(key)
        return None if entry is None else Versioned(entry.value, entry.version)

    def swap(self, key: str, expected: int | None, value: bytes) -> Placed | Conflict:
        """See Ledger.swap. This map is not changed."""
        current = self.read(key)
        if (None if current is None else current.version) != expected:
            return Conflict(current)
        version = self.writes + 1
        entries = {**self.entries, key: Entry(version, value)}
        return Placed(RegisterMap(FORMAT, self.ledger_id, version, entries), version)

    def delete(self, key: str) -> RegisterMap | None:
        """The map without this register; None if the register does not exist."""
        if key not in self.entries:
            return None
        entries = {each: entry for each, entry in self.entries.items() if each != key}
        return RegisterMap(FORMAT, self.ledger_id, self.writes + 1, entries)

    def keys(self, prefix: str = "") -> tuple[str, ...]:
        """The names of the registers that begin with `prefix`, in order."""
        return tuple(sorted(key for key in self.entries if key.startswith(prefix)))


def encode(register_map: RegisterMap) -> bytes:
    """The bytes of the engine's value."""
    return msgspec.msgpack.encode(register_map)


def decode(data: bytes, where: str) -> RegisterMap:
    """The map in the engine's value. `where` names that value in messages.

    Raises:
        LedgerFormatError: another release wrote the map, in its own format.
        LedgerCorruptError: these bytes are not a map.
    """
    try:
        register_map = msgspec.msgpack.decode(data, type=RegisterMap)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise LedgerCorruptError(
            f"{where} holds no registers of Rallypoint: {error}",
            hint=_FOREIGN_HINT,
        ) from error
    # Checked even if the map could be decoded, because another format may have unknown fields.
    if register_map.format < 1:
        raise LedgerCorruptError(
            f"{where} is in format {register_map.format}, which is not a format of any release",
            hint=_FOREIGN_HINT,
        )
    if register_map.format != FORMAT:
        raise LedgerFormatError(
            f"{where} was written in format {register_map.format}; this release reads only format "
            f"{FORMAT}",
            hint=OTHER_FORMAT_HINT,
        )
    return register_map
