"""What a ledger must offer, and the outcomes of its operations.

A ledger has registers: small values with compare-and-swap. Nothing less would do, so one small
class can connect almost any engine to Rallypoint. If the engine can, a ledger also has logs:
sequences of records, each created once. A new record seals all records before it.

A swap has three outcomes. The third is the important one: *unknown*. The engine may or may not have
done the swap, because an answer was lost or late. After it, a caller may only try the same bytes
again, until the version changes.

All engines are equally strict. Each operation takes effect at one moment and as a whole, or not at
all. The operations on one register, or on one log, are linearizable. Two operations are never
atomic together. Each engine declares its differences: `is_durable`, `durability`, `has_log`,
`can_watch` and `limits`.

An engine must not depend on the purpose of registers and logs. `ledger/keys.py` has their names.
"""

from __future__ import annotations

import abc
import asyncio
import enum
from types import TracebackType
from typing import ClassVar, Final, Self, TypeAlias

import msgspec

from rallypoint import runtime
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
"""The longest name of a register or log, in bytes of UTF-8."""
POLL_S: Final = 0.2
"""The average time between two reads of `Ledger.changed` if the engine cannot watch, in seconds.
"""


class Changed(msgspec.Struct, frozen=True):
    """The register has another version than the caller has.

    `current`: its present value; None if it has none.
    """

    current: Versioned | None


class Created(msgspec.Struct, frozen=True):
    """The record was created by this call."""


class Exists(msgspec.Struct, frozen=True):
    """Nothing was written, because the record exists already, with this `value`."""

    value: bytes


class Gap(msgspec.Struct, frozen=True):
    """Nothing was written, because the record before it does not exist (as after `drop_log`)."""


AppendOutcome: TypeAlias = Created | Exists | Gap | Unknown


class Durability(enum.StrEnum):
    """What an acknowledged write survives."""

    PROCESS = "process"
    """Nothing: the write is lost when the process that keeps it ends."""
    DISK = "disk"
    """The end of all processes and of the machine, but not the loss of the disk."""
    REPLICATED = "replicated"
    """The loss of a minority of the engine's machines."""


class LedgerLimits(msgspec.Struct, frozen=True, kw_only=True):
    """The limits of an engine.

    `value_bytes_max`: the largest value of a register, in bytes. `record_bytes_max`: the largest
    record of a log, in bytes. `writes_per_s`: the most writes per second that one process should
    make, so that others have room. It is not enforced. `registers_max`: the largest number of
    registers; None: no relevant limit. `is_one_value`: whether the engine keeps all registers in
    one value and writes it whole in each swap. Then values must be small, and registers few.
    `record_cost_bytes`: the number of bytes that are read in about the same time as one more
    record. The owner of a log decides by this when to write a snapshot.
    """

    value_bytes_max: int
    record_bytes_max: int
    writes_per_s: float
    registers_max: int | None = None
    is_one_value: bool = False
    record_cost_bytes: int = 4096


class Ledger(abc.ABC):
    """The registers of an engine, and its logs if it has them, under one `ledger_id`.

    One event loop owns an instance. Any number of instances, in any number of processes, may share
    a ledger. Every call ends within a bounded time. If a swap or append is cancelled, its outcome
    is unknown.

    Every method except `open` and `aclose` may raise the errors that it names, and:

    Raises:
        UsageError: a name is malformed. Nothing was sent.
        LedgerLimitError: a value is too large. Nothing was sent.
    """

    ledger_id: str
    """The id of this ledger, for ever; no other ledger has the same. It is set when `open` has
    returned. A durable engine draws it at the first use and keeps it.
    """
    is_durable: bool
    """Whether an acknowledged write survives the loss of the coordinator's process."""
    durability: ClassVar[Durability] = Durability.PROCESS
    has_log: ClassVar[bool] = False
    """Whether `append`, `records`, `drop_log` and `logs` work."""
    can_watch: ClassVar[bool] = False
    """Whether the engine reports changes to `changed`; otherwise `changed` reads repeatedly."""
    limits: LedgerLimits = LedgerLimits(
        value_bytes_max=1 << 20, record_bytes_max=1 << 20, writes_per_s=100.0
    )

    # -- opening and closing --------------------------------------------------------------------

    async def open(self) -> None:  # noqa: B027 - an engine may have nothing to do
        """Connect to the engine, and make all checks that are possible now. Idempotent.

        Raises:
            LedgerError: the engine is out of reach, refuses this process, has other contents, is
                unfit, full, damaged, or in a format of another release. The class and the text say
                which. Nothing is left open.
        """

    async def find(self) -> str:
        """The id of the ledger, for `rallypoint doctor`; "" if `open` would make a new one.

        This implementation opens the ledger, so it may make one. An engine that can look without
        writing should replace it. Close the ledger afterwards, as after `open`.

        Raises:
            LedgerError: as `open`.
        """
        await self.open()
        return self.ledger_id

    async def aclose(self) -> None:  # noqa: B027 - the same
        """Release connections and threads. Idempotent, bounded in time; raises nothing."""

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

    # -- registers ------------------------------------------------------------------------------

    @abc.abstractmethod
    async def read(self, key: str) -> Versioned | None:
        """The value of a register and its version; None if the register does not exist.

        Raises:
            LedgerUnreachableError: the engine is out of reach. It is an OSError.
            LedgerError: another problem, as its class says.
        """

    @abc.abstractmethod
    async def swap(self, key: str, expected: int | None, value: bytes) -> SwapOutcome:
        """Write `value` if the version is still `expected` (None: if the register does not exist).

        A register never has the same version twice, not even after it was deleted.

        Problems of the engine raise no error: the outcome is Unknown, with the error in it.
        """

    @abc.abstractmethod
    async def delete(self, key: str, version: int | None = None) -> bool:
        """Remove a register, if it still has this version (None: any version).

        Returns True if it does not exist any more, or did not exist before. Returns False if it has
        another version; then nothing was done.

        Raises:
            LedgerError: as `read`. It is unknown whether the register was deleted. Try again.
        """

    async def keys(self, prefix: str = "") -> tuple[str, ...]:
        """The names of the registers that begin with `prefix`, in order.

        Raises:
            LedgerError: as `read`.
            NotImplementedError: the engine cannot list its registers.
        """
        raise NotImplementedError(f"{type(self).__name__} cannot list its registers")

    async def changed(self, key: str, version: int | None, timeout_s: float) -> Changed | None:
        """Wait until the register has another version than `version` (None: until it exists).

        Returns None if it still has that version after `timeout_s` seconds. Versions in between may
        be missed. This implementation reads the register about every POLL_S; an engine that can
        watch should replace it.

        Raises:
            LedgerError: as `read`.
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
            # Jitter, so that nodes that wait for the same coordinator do not all read at one
            # moment.
            await asyncio.sleep(min(left_s, POLL_S * runtime.here().chance.uniform(0.5, 1.5)))

    # -- logs, if the engine has them -----------------------------------------------------------

    async def append(self, log: str, index: int, value: bytes) -> AppendOutcome:
        """Create record `index` of `log`, once and for ever. The first index is 0.

        A record needs the one before it, so that a log has no holes. The name of a log that was
        dropped is not used again.

        Problems of the engine raise no error: the outcome is Unknown, with the error in it.

        Raises:
            NotImplementedError: the engine has no logs.
        """
        raise NotImplementedError(f"{type(self).__name__} keeps no log")

    async def records(
        self, log: str, start: int = 0, limit: int | None = None
    ) -> tuple[tuple[int, bytes], ...]:
        """(index, value) of the records from `start` on, in order: all, or with `limit` a page.

        A page has at most `limit` records. It may have fewer than exist, but it is empty only if
        none exists from `start` on. Each page has its own deadline.

        Raises:
            LedgerError: as `read`.
            NotImplementedError: the engine has no logs.
        """
        raise NotImplementedError(f"{type(self).__name__} keeps no log")

    async def drop_log(self, log: str) -> None:
        """Remove a log. Does nothing if the log does not exist.

        Raises:
            LedgerError: as `read`. It is unknown whether the log was dropped. Try again.
            NotImplementedError: the engine has no logs.
        """
        raise NotImplementedError(f"{type(self).__name__} keeps no log")

    async def logs(self, prefix: str = "") -> tuple[str, ...]:
        """The names of the logs that begin with `prefix`, in order.

        Raises:
            LedgerError: as `read`.
            NotImplementedError: the engine has no logs.
        """
        raise NotImplementedError(f"{type(self).__name__} keeps no log")

    # -- for engines ----------------------------------------------------------------------------

    def check_value(self, key: str, value: bytes) -> None:
        """Check the arguments of `swap`. An engine calls it before it sends anything.

        Raises:
            UsageError: the name is malformed.
            LedgerLimitError: the value has more than `limits.value_bytes_max` bytes.
        """
        check_name(key)
        self._check_size(key, value, self.limits.value_bytes_max)

    def check_record(self, log: str, index: int, value: bytes) -> None:
        """Check the arguments of `append`. An engine calls it before it sends anything.

        Raises:
            UsageError: the name is malformed, or the index is negative.
            LedgerLimitError: the value has more than `limits.record_bytes_max` bytes.
        """
        check_name(log)
        if index < 0:
            raise UsageError(f"record {index} of {log!r}: the first index is 0")
        self._check_size(f"{log}[{index}]", value, self.limits.record_bytes_max)

    def _check_size(self, what: str, value: bytes, bytes_max: int) -> None:
        if len(value) > bytes_max:
            raise LedgerLimitError(
                f"the value for {what!r} has {len(value)} bytes; {type(self).__name__} takes at "
                f"most {bytes_max}",
                hint="use fewer nodes or shorter names, or a ledger that takes larger values",
            )


def check_name(name: str) -> None:
    """Check the name of a register or log.

    Raises:
        UsageError: it is empty, has a NUL, or has more than KEY_BYTES_MAX bytes of UTF-8.
    """
    if not name or "\0" in name or len(name.encode()) > KEY_BYTES_MAX:
        raise UsageError(
            f"{name[:80]!r} cannot name a register: use 1 to {KEY_BYTES_MAX} bytes, and no NUL"
        )
