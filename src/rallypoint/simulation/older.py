"""Processes of an older release among those of this one: some fields do not exist for them.

Such a process neither sends nor writes these fields, and does not see them in what it receives. It
keeps them in registers that it writes again, as docs/compatibility.md promises. Its decisions are
those of this release for peers that do not send them.
"""

from __future__ import annotations

from typing import Any, Final

import msgspec

from rallypoint.core.election.records import FORMAT, Lease, Mistake, RunRegister, encode
from rallypoint.core.registers import Conflict, SwapOutcome, Swapped, Versioned
from rallypoint.ledger.contract import Changed, Ledger
from rallypoint.ledger.keys import COORDINATORS, MISTAKE, RUNS
from rallypoint.wire.messages import Attach, Heartbeat, Welcome

_Fields = tuple[msgspec.Raw, ...]

_MESSAGES: Final = {
    b"\xa6attach": 1 + Attach.__struct_fields__.index("ended"),
    b"\xa2hb": 1 + Heartbeat.__struct_fields__.index("progress"),
    b"\xa7welcome": 1 + Welcome.__struct_fields__.index("lease_ttl_s"),
}
"""By the tag: how many fields of a message it knows, with the tag."""
_REGISTERS: Final = {
    COORDINATORS: (Lease.__struct_fields__.index("is_early"), False),
    RUNS: (RunRegister.__struct_fields__.index("unsure_s"), 0.0),
}
"""By the prefix of their names: how many fields it knows, and what the next one is without it."""

_NEVER_EARLY: Final = Versioned(encode(Mistake(FORMAT, "")), 1)
"""It revokes no lease early: this release does not while the ledger has such a record."""


def of_older(message: bytes) -> bytes:
    """A message as an older release sends it, or as it sees it."""
    for tag, count in _MESSAGES.items():
        if message.startswith(tag, 1):
            return _encoded(_fields(message)[:count])
    return message


class _Registers:
    """What an older release reads and writes. `kept`: the newer fields of each version."""

    def __init__(self) -> None:
        self._kept: dict[tuple[str, int], _Fields] = {}

    def read(self, key: str, found: Versioned | None) -> Versioned | None:
        """What it sees of a value."""
        known = _known(key)
        if known is None or found is None:
            return found
        (count, default), fields = known, _fields(found.value)
        if len(fields) > count:
            self._kept[key, found.version] = fields[count:]
            fields = (*fields[:count], msgspec.Raw(msgspec.msgpack.encode(default)))
        return Versioned(_encoded(fields), found.version)

    def written(self, key: str, expected: int | None, value: bytes) -> bytes:
        """What it writes in place of this version."""
        known = _known(key)
        if known is None:
            return value
        kept = self._kept.get((key, expected), ()) if expected is not None else ()
        return _encoded(_fields(value)[: known[0]] + kept)

    def swapped(self, key: str, expected: int | None, version: int) -> None:
        """It has written this version, with the newer fields of the one before."""
        if expected is not None and (key, expected) in self._kept:
            self._kept[key, version] = self._kept[key, expected]


def make_older(ledger: Ledger) -> None:
    """From now on this process reads and writes registers as an older release does."""
    registers = _Registers()
    read, swap, changed = ledger.read, ledger.swap, ledger.changed

    async def read_older(key: str) -> Versioned | None:
        found = registers.read(key, await read(key))
        return _NEVER_EARLY if key == MISTAKE else found

    async def swap_older(key: str, expected: int | None, value: bytes) -> SwapOutcome:
        outcome = await swap(key, expected, registers.written(key, expected, value))
        if isinstance(outcome, Swapped):
            registers.swapped(key, expected, outcome.version)
        if isinstance(outcome, Conflict):
            return Conflict(registers.read(key, outcome.current))
        return outcome

    async def changed_older(key: str, version: int | None, timeout_s: float) -> Changed | None:
        found = await changed(key, version, timeout_s)
        return found and Changed(registers.read(key, found.current))

    patched: Any = ledger
    patched.read, patched.swap, patched.changed = read_older, swap_older, changed_older


def _known(key: str) -> tuple[int, Any] | None:
    return next((each for prefix, each in _REGISTERS.items() if key.startswith(prefix)), None)


def _fields(data: bytes) -> _Fields:
    return msgspec.msgpack.decode(data, type=_Fields)


def _encoded(fields: _Fields) -> bytes:
    return msgspec.msgpack.encode(fields)
