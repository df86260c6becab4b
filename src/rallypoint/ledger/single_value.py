"""Many registers in one: for an engine that offers a single value with compare-and-swap.

A torch RendezvousBackend is such an engine. Its one value is a `RegisterMap`, on which every
register has its place and its own version. Pure: whoever talks to the engine reads the value, asks
the map what a swap would make of it, and swaps the whole. When the engine says that another was
faster, the map that is there now is asked, until one of the two answers:

    while True:
        after = register_map.swap(key, expected, value)
        if isinstance(after, Conflict):
            return after            # the register itself has another version
        ...swap the engine's value from `register_map` to `after.register_map`...
        if done:      return Swapped(after.version)
        if unknown:   return Unknown(...)       # the caller tries the same bytes again
        register_map = ...what the engine holds instead...

That is safe whenever the engine's own swap is: a register's version moves with each of its writes
and with no other's. A try that was done although nobody said so is found as the caller's own bytes.
"""

from __future__ import annotations

from typing import Annotated, Final

import msgspec

from rallypoint.errors import LedgerCorruptError, LedgerFormatError
from rallypoint.ledger.contract import Conflict, Versioned
from rallypoint.ledger.record_format import OTHER_FORMAT_HINT

FORMAT: Final = 2
"""What this release writes and reads. It stands first."""

Counter = Annotated[int, msgspec.Meta(ge=0, le=2**63 - 1)]


class Entry(msgspec.Struct, frozen=True, array_like=True):
    """A register's place on the map."""

    version: Counter
    value: bytes


class Placed(msgspec.Struct, frozen=True):
    """What the map will be once the swap is done, and the register's version then."""

    register_map: RegisterMap
    version: int


class RegisterMap(msgspec.Struct, frozen=True, array_like=True):
    """All registers of one ledger. `writes` counts them all, so no version comes twice.

    Not even after a register was removed; and no two maps of a ledger have the same bytes, which
    an engine that compares values instead of versions depends upon.
    """

    format: int
    ledger_id: str
    writes: Counter = 0
    entries: dict[str, Entry] = {}

    @classmethod
    def empty(cls, ledger_id: str) -> RegisterMap:
        """What a new ledger begins with. `ledger_id` is drawn by whoever puts it there first."""
        return cls(FORMAT, ledger_id)

    def read(self, key: str) -> Versioned | None:
        """The register's value; None if there is none."""
        entry = self.entries.get(key)
        return None if entry is None else Versioned(entry.value, entry.version)

    def swap(self, key: str, expected: int | None, value: bytes) -> Placed | Conflict:
        """See Ledger.swap; nothing is done to this map."""
        current = self.read(key)
        if (None if current is None else current.version) != expected:
            return Conflict(current)
        version = self.writes + 1
        entries = {**self.entries, key: Entry(version, value)}
        return Placed(RegisterMap(FORMAT, self.ledger_id, version, entries), version)

    def delete(self, key: str) -> RegisterMap | None:
        """The map without this register; None if it is not there."""
        if key not in self.entries:
            return None
        entries = {each: entry for each, entry in self.entries.items() if each != key}
        return RegisterMap(FORMAT, self.ledger_id, self.writes + 1, entries)

    def keys(self, prefix: str = "") -> tuple[str, ...]:
        """The registers whose name begins so, in order."""
        return tuple(sorted(key for key in self.entries if key.startswith(prefix)))


def encode(register_map: RegisterMap) -> bytes:
    """The engine's value."""
    return msgspec.msgpack.encode(register_map)


def decode(data: bytes, where: str) -> RegisterMap:
    """The map. `where` names the engine's value for people.

    Raises LedgerFormatError if another release wrote it, LedgerCorruptError if it is no such map.
    """
    try:
        register_map = msgspec.msgpack.decode(data, type=RegisterMap)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise LedgerCorruptError(
            f"{where} holds no registers of Rallypoint: {error}",
            hint="another program uses it, or it was damaged; give the run an id of its own",
        ) from error
    # A newer release may only have added fields: what can be read need not be all there is.
    if register_map.format < 1:
        raise LedgerCorruptError(
            f"{where} is in format {register_map.format}, which no release has"
        )
    if register_map.format != FORMAT:
        raise LedgerFormatError(
            f"{where} was written in format {register_map.format},"
            f" and this release reads {FORMAT} alone",
            hint=OTHER_FORMAT_HINT,
        )
    return register_map
