"""A ledger in the memory of one process: registers and logs in dictionaries.

It is lost with its process. A new process has another `ledger_id`, so nodes of the old one learn
that their run is lost.
"""

from __future__ import annotations

import asyncio

from rallypoint import runtime
from rallypoint.ledger.contract import (
    AppendOutcome,
    Changed,
    Conflict,
    Created,
    Exists,
    Gap,
    Ledger,
    LedgerLimits,
    SwapOutcome,
    Swapped,
    Versioned,
    check_name,
)


class MemoryLedger(Ledger):
    """Registers and logs in memory. Only one event loop may use it. No outcome is ever Unknown."""

    is_durable = False
    has_log = True
    can_watch = True
    limits = LedgerLimits(
        value_bytes_max=64 << 20, record_bytes_max=64 << 20, writes_per_s=1_000_000.0
    )

    def __init__(self) -> None:
        self.ledger_id = runtime.token_hex(8)
        self._registers: dict[str, Versioned] = {}
        self._logs: dict[str, list[bytes]] = {}
        self._deleted_version = 0
        """Registers that are created later get higher versions than this."""
        self._waiting: dict[str, set[asyncio.Event]] = {}

    async def read(self, key: str) -> Versioned | None:
        """See Ledger.read."""
        check_name(key)
        return self._registers.get(key)

    async def swap(self, key: str, expected: int | None, value: bytes) -> SwapOutcome:
        """See Ledger.swap."""
        self.check_value(key, value)
        current = self._registers.get(key)
        if (current.version if current else None) != expected:
            return Conflict(current)
        version = (self._deleted_version if expected is None else expected) + 1
        self._registers[key] = Versioned(value, version)
        self._tell(key)
        return Swapped(version)

    async def delete(self, key: str, version: int | None = None) -> bool:
        """See Ledger.delete."""
        check_name(key)
        current = self._registers.get(key)
        if current is not None and version not in (None, current.version):
            return False
        if current is not None:
            del self._registers[key]
            self._deleted_version = max(self._deleted_version, current.version)
            self._tell(key)
        return True

    async def keys(self, prefix: str = "") -> tuple[str, ...]:
        """See Ledger.keys."""
        return tuple(sorted(key for key in self._registers if key.startswith(prefix)))

    async def changed(self, key: str, version: int | None, timeout_s: float) -> Changed | None:
        """See Ledger.changed. Each write wakes the calls that wait."""
        check_name(key)
        event = asyncio.Event()
        waiting = self._waiting.setdefault(key, set())
        waiting.add(event)
        try:
            async with asyncio.timeout(timeout_s):
                while self._version(key) == version:
                    event.clear()
                    await event.wait()
        except TimeoutError:
            return None
        finally:
            waiting.discard(event)
            if not waiting and self._waiting.get(key) is waiting:
                del self._waiting[key]
        return Changed(self._registers.get(key))

    async def append(self, log: str, index: int, value: bytes) -> AppendOutcome:
        """See Ledger.append."""
        self.check_record(log, index, value)
        records = self._logs.get(log, [])
        if index < len(records):
            return Exists(records[index])
        if index > len(records):
            return Gap()
        self._logs.setdefault(log, records).append(value)
        return Created()

    async def records(
        self, log: str, start: int = 0, limit: int | None = None
    ) -> tuple[tuple[int, bytes], ...]:
        """See Ledger.records."""
        check_name(log)
        kept = self._logs.get(log, [])
        end = len(kept) if limit is None else min(len(kept), start + limit)
        return tuple((index, kept[index]) for index in range(start, end))

    async def drop_log(self, log: str) -> None:
        """See Ledger.drop_log."""
        check_name(log)
        self._logs.pop(log, None)

    async def logs(self, prefix: str = "") -> tuple[str, ...]:
        """See Ledger.logs."""
        return tuple(sorted(log for log in self._logs if log.startswith(prefix)))

    def _version(self, key: str) -> int | None:
        current = self._registers.get(key)
        return current.version if current else None

    def _tell(self, key: str) -> None:
        for event in self._waiting.get(key, ()):
            event.set()
