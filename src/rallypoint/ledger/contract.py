"""What a ledger must offer: registers, small values with compare-and-swap. The least that works.

A swap has three outcomes, and the third is the one that matters: *unknown*. The engine may or may
not have done it (a lost answer, a timeout). Whoever gets it may try the same bytes again and
nothing else, until the version moves.

Where the engine can, there is a log besides: records that are each created once. Whoever creates
the next index seals what is before it.

Atomicity is the same for all: each operation takes effect at once and whole, or not at all, and
those on one register or one log are linearizable. No two operations are atomic together. What
differs from engine to engine is declared: `is_durable`, `durability`, `has_log`, `limits`.
"""

from __future__ import annotations

import abc
import asyncio
import enum
import random
from types import TracebackType
from typing import ClassVar, Final, Self, TypeAlias

import msgspec

from rallypoint.core.registers import Conflict, SwapOutcome, Swapped, Unknown, Versioned
from rallypoint.errors import LedgerLimitError, UsageError

__all__ = [
    "KEY_BYTES_MAX",
    "POLL_S",
    "AppendOutcome",
    "Changed",
    "Conflict",
    "Created",
    "Durability",
    "Exists",
    "Gap",
    "Ledger",
    "LedgerLimits",
    "SwapOutcome",
    "Swapped",
    "Unknown",
    "Versioned",
    "check_name",
]

KEY_BYTES_MAX: Final = 1024
"""A register's or a log's name in UTF-8."""
POLL_S: Final = 0.2
"""How often an engine that cannot watch looks, on average."""


class Changed(msgspec.Struct, frozen=True):
    """The register has another version than the one waited at: `current` (None: nothing)."""

    current: Versioned | None


class Created(msgspec.Struct, frozen=True):
    """The record was created by this call, or by an earlier try of the same bytes within it."""


class Exists(msgspec.Struct, frozen=True):
    """Nothing was written: the record is there already, and this is its value."""

    value: bytes


class Gap(msgspec.Struct, frozen=True):
    """Nothing was written: the record before it is missing, as after `drop_log`."""


AppendOutcome: TypeAlias = Created | Exists | Gap | Unknown


class Durability(enum.StrEnum):
    """What what was acknowledged survives."""

    PROCESS = "process"
    """Nothing: it is lost with the process that keeps it."""
    DISK = "disk"
    """The end of every process and of the machine; not the loss of the disk."""
    REPLICATED = "replicated"
    """The loss of a minority of the engine's machines."""


class LedgerLimits(msgspec.Struct, frozen=True, kw_only=True):
    """What the engine takes. `registers_max`: None if there is no bound to speak of.

    `writes_per_s` is what one process may ask for and still leave room for others: a rate to stay
    below, which nothing enforces. `is_one_value`: all registers are one value of the engine, which
    each swap writes as a whole: what is kept there must be small, and few registers be used.
    `record_cost_bytes`: to read one record more takes about as long as to read so many bytes more;
    by this a log's owner decides when to write a snapshot.
    """

    value_bytes_max: int
    record_bytes_max: int
    writes_per_s: float
    registers_max: int | None = None
    is_one_value: bool = False
    record_cost_bytes: int = 4096


class Ledger(abc.ABC):
    """An engine's registers, and its log where it has one, under one `ledger_id`.

    `ledger_id` names this ledger for ever: two ledgers never have the same. A durable engine draws
    it at first use and keeps it; it is set once `open` has returned. `is_durable` says whether
    what was acknowledged survives the loss of the coordinator's process.

    One event loop owns a handle; any number of handles, in any number of processes, share a ledger.
    Every call is bounded in time. Cancelling a swap or an append leaves its outcome unknown.

    Raised besides what each method names: UsageError for a malformed name, LedgerLimitError for a
    value that is too large (nothing was sent in both cases).
    """

    ledger_id: str
    is_durable: bool
    durability: ClassVar[Durability] = Durability.PROCESS
    has_log: ClassVar[bool] = False
    can_watch: ClassVar[bool] = False
    """Whether `changed` is told by the engine; else it reads again and again."""
    limits: LedgerLimits = LedgerLimits(
        value_bytes_max=1 << 20, record_bytes_max=1 << 20, writes_per_s=100.0
    )

    # -- its life -----------------------------------------------------------------------------

    async def open(self) -> None:  # noqa: B027 - an engine may have nothing to do
        """Reach the engine and find out what can be known at start. Idempotent.

        Raises a LedgerError that says what is wrong: it is unreachable, refuses this process, holds
        something else, is unfit, full, damaged or of a newer format. Then nothing is left open.
        """

    async def aclose(self) -> None:  # noqa: B027 - the same
        """Let go of connections and threads. Idempotent, bounded in time, never raises."""

    async def __aenter__(self) -> Self:
        try:
            await self.open()
        except BaseException:
            await self.aclose()
            raise
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.aclose()

    # -- registers ----------------------------------------------------------------------------

    @abc.abstractmethod
    async def read(self, key: str) -> Versioned | None:
        """The register's value; None if it was never written.

        Raises LedgerUnreachableError (an OSError) if out of reach, or another LedgerError.
        """

    @abc.abstractmethod
    async def swap(self, key: str, expected: int | None, value: bytes) -> SwapOutcome:
        """Replace the value if the version is still `expected` (None: if there is none yet).

        A version is never given twice to one register, not even after it was deleted.
        """

    @abc.abstractmethod
    async def delete(self, key: str, version: int | None = None) -> bool:
        """Remove a register that nobody will need again, if this is still its version (None: any).

        Whether it is gone, which it is also if there was none; False if it has another version,
        and then nothing was done. Raises as `read`; then it may or may not be gone, and can be
        deleted again.
        """

    async def keys(self, prefix: str = "") -> tuple[str, ...]:
        """The registers whose name begins so, in order. Raises as `read`."""
        raise NotImplementedError(f"{type(self).__name__} cannot list its registers")

    async def changed(self, key: str, version: int | None, timeout_s: float) -> Changed | None:
        """Wait until the register has another version than `version` (None: until there is one).

        None if it still had that version at the end of `timeout_s`. Versions between may go unseen.
        Raises as `read`. This one looks again and again; an engine that can watch does better.
        """
        loop = asyncio.get_running_loop()
        deadline = loop.time() + timeout_s
        while True:
            current = await self.read(key)
            if (current.version if current else None) != version:
                return Changed(current)
            left_s = deadline - loop.time()
            if left_s <= 0:
                return None
            # Jitter, so that those who wait for one coordinator do not all look at once.
            await asyncio.sleep(min(left_s, POLL_S * random.uniform(0.5, 1.5)))

    # -- the log, where the engine can ----------------------------------------------------------

    async def append(self, log: str, index: int, value: bytes) -> AppendOutcome:
        """Create record `index` of `log`, which exists once for ever. The first index is 0.

        A record needs the one before it, so a log has no holes. The name of a log that was dropped
        is not used again.
        """
        raise NotImplementedError(f"{type(self).__name__} keeps no log")

    async def records(
        self, log: str, start: int = 0, limit: int | None = None
    ) -> tuple[tuple[int, bytes], ...]:
        """(index, value) of each record from `start` on, in order: all, or with `limit` a page.

        A page has at most `limit` records, and may have fewer than there are; it is empty only if
        there is none from `start` on. Each page has a deadline of its own. Raises as `read`.
        """
        raise NotImplementedError(f"{type(self).__name__} keeps no log")

    async def drop_log(self, log: str) -> None:
        """Remove a log that nobody will need again; nothing happens if there is none.

        Raises as `read`; then it may or may not be gone, and can be dropped again.
        """
        raise NotImplementedError(f"{type(self).__name__} keeps no log")

    async def logs(self, prefix: str = "") -> tuple[str, ...]:
        """The logs whose name begins so, in order. Raises as `read`."""
        raise NotImplementedError(f"{type(self).__name__} keeps no log")

    # -- for engines ------------------------------------------------------------------------------

    def check_value(self, key: str, value: bytes) -> None:
        """Raise UsageError or LedgerLimitError before anything is sent."""
        check_name(key)
        self._check_size(key, value, self.limits.value_bytes_max)

    def check_record(self, log: str, index: int, value: bytes) -> None:
        """The same for a record."""
        check_name(log)
        if index < 0:
            raise UsageError(f"record {index} of {log!r}: the first index is 0")
        self._check_size(f"{log}[{index}]", value, self.limits.record_bytes_max)

    def _check_size(self, what: str, value: bytes, bytes_max: int) -> None:
        if len(value) > bytes_max:
            raise LedgerLimitError(
                f"the value for {what!r} has {len(value)} bytes, and {type(self).__name__} takes "
                f"at most {bytes_max}",
                hint="a run with fewer nodes or shorter names needs less; other ledgers take more",
            )


def check_name(name: str) -> None:
    """Raise UsageError if no register or log can have this name."""
    if not name or "\0" in name or len(name.encode()) > KEY_BYTES_MAX:
        raise UsageError(
            f"{name[:80]!r} cannot name a register: 1 to {KEY_BYTES_MAX} bytes without a NUL"
        )
