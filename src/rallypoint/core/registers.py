"""A register with compare-and-swap: the result of a read, and the outcomes of a swap.

The election's machines and every ledger use these classes, so that an engine's answer reaches a
machine as it is. `rallypoint.ledger.contract` exports them. This file must not depend on how an
engine keeps registers, or on what their values mean.
"""

from __future__ import annotations

from typing import TypeAlias

from rallypoint.core.values import FrozenStruct


class Versioned(FrozenStruct, frozen=True):
    """A register's value, and the version that a swap must name to replace it."""

    value: bytes
    version: int


class Swapped(FrozenStruct, frozen=True):
    """The swap was done. The register now has this version."""

    version: int


class Conflict(FrozenStruct, frozen=True):
    """Nothing was written, because the register has another version.

    `current`: what the register holds instead; None if it holds nothing.
    """

    current: Versioned | None


class Unknown(FrozenStruct, frozen=True):
    """The outcome is unknown: the swap was done, was not done, or may be done later.

    An engine that is out of reach, full, or refuses this process also answers with this, because
    the caller does the same in all these cases: it waits, and tries the same bytes again.

    `reason`: the failure, for people. `error`: the same as a LedgerError, if there is one, for a
    caller that raises it. (The type is wider because `core` does not know that class.)
    """

    reason: str
    error: Exception | None = None


SwapOutcome: TypeAlias = Swapped | Conflict | Unknown
