"""What a ledger must offer: registers, small values with compare-and-swap. The least that works.

A swap has three outcomes, and the third is the one that matters: *unknown*. The engine may or may
not have done it (a lost answer, a timeout). Whoever gets it may try the same bytes again and
nothing else, until the version moves.
"""

from __future__ import annotations

import abc
from typing import TypeAlias

import msgspec


class Versioned(msgspec.Struct, frozen=True):
    """A register's value, and the version that a swap must name to replace it."""

    value: bytes
    version: int


class Swapped(msgspec.Struct, frozen=True):
    """The swap was done; the register now has this version."""

    version: int


class Conflict(msgspec.Struct, frozen=True):
    """The register has another version: `current` is what is there (None: nothing)."""

    current: Versioned | None


class Unknown(msgspec.Struct, frozen=True):
    """The engine did not say. `reason` is for people."""

    reason: str


SwapOutcome: TypeAlias = Swapped | Conflict | Unknown


class Ledger(abc.ABC):
    """An engine's registers under one `ledger_id`.

    `ledger_id` names this ledger for ever: two ledgers never have the same. `is_durable` says
    whether what was acknowledged survives the loss of the coordinator's process.
    """

    ledger_id: str
    is_durable: bool

    @abc.abstractmethod
    async def read(self, key: str) -> Versioned | None:
        """The register's value; None if it was never written. Raises OSError if out of reach."""

    @abc.abstractmethod
    async def swap(self, key: str, expected: int | None, value: bytes) -> SwapOutcome:
        """Replace the value if the version is still `expected` (None: if there is none yet)."""

    @abc.abstractmethod
    async def delete(self, key: str) -> None:
        """Remove a register that nobody will need again."""
