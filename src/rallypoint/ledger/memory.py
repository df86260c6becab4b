"""The ledger that dies with its process: registers in a dictionary.

A new process has another `ledger_id`, so nodes of the old one can be told that their run is lost.
"""

from __future__ import annotations

import secrets

from rallypoint.ledger.contract import Conflict, Ledger, SwapOutcome, Swapped, Versioned


class MemoryLedger(Ledger):
    """Registers in memory. One event loop uses it."""

    is_durable = False

    def __init__(self) -> None:
        self.ledger_id = secrets.token_hex(8)
        self._registers: dict[str, Versioned] = {}

    async def read(self, key: str) -> Versioned | None:
        """See Ledger.read."""
        return self._registers.get(key)

    async def swap(self, key: str, expected: int | None, value: bytes) -> SwapOutcome:
        """See Ledger.swap. Never unknown."""
        current = self._registers.get(key)
        if (current.version if current else None) != expected:
            return Conflict(current)
        version = (expected or 0) + 1
        self._registers[key] = Versioned(value, version)
        return Swapped(version)

    async def delete(self, key: str) -> None:
        """See Ledger.delete."""
        self._registers.pop(key, None)
