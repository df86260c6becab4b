"""Every built-in ledger passes `rallypoint.testing`. Those over etcd: test_etcd_ledger.py."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from rallypoint.ledger.contract import Ledger, SwapOutcome, Swapped, Versioned
from rallypoint.ledger.file.ledger import FileLedger
from rallypoint.ledger.memory import MemoryLedger
from rallypoint.testing import Connect, LedgerSuite


class TestMemoryLedger(LedgerSuite):
    writers = 20
    rounds = 20

    @pytest.fixture
    def connect(self) -> Connect:
        ledger = MemoryLedger()
        return lambda: ledger


class TestFileLedger(LedgerSuite):
    @pytest.fixture
    def connect(self, fast_path: Path) -> Connect:
        return lambda: FileLedger(fast_path / "ledger")


class Registers(MemoryLedger):
    """The simplest engine: without logs and without watching."""

    has_log = False
    changed = Ledger.changed
    append = Ledger.append
    records = Ledger.records


class TestRegistersOnly(LedgerSuite):
    @pytest.fixture
    def connect(self) -> Connect:
        ledger = Registers()
        return lambda: ledger


# -- the suite itself: it must find a ledger out -------------------------------------------------


class ReadsThenWrites(MemoryLedger):
    """Compares, lets other tasks run, and then writes: the worst mistake of a ledger."""

    async def swap(self, key: str, expected: int | None, value: bytes) -> SwapOutcome:
        current = await self.read(key)
        if (current.version if current else None) != expected:
            return await super().swap(key, expected, value)
        await asyncio.sleep(0)
        version = (expected or 0) + 1
        self._registers[key] = Versioned(value, version)
        return Swapped(version)


class ForgetsVersions(MemoryLedger):
    """Counts from 1 again after a delete."""

    async def delete(self, key: str, version: int | None = None) -> bool:
        self._registers.pop(key, None)
        return True


class DeletesAnything(MemoryLedger):
    """Ignores the version at a delete."""

    async def delete(self, key: str, version: int | None = None) -> bool:
        return await super().delete(key)


class Overwrites(MemoryLedger):
    """Overwrites the records of a log."""

    async def append(self, log, index, value):
        outcome = await super().append(log, index, value)
        self._logs.setdefault(log, [value])[min(index, len(self._logs[log]) - 1)] = value
        return outcome


@pytest.mark.parametrize(
    ("ledger", "test"),
    [
        (ReadsThenWrites, LedgerSuite.test_of_many_creators_one_creates),
        (ReadsThenWrites, LedgerSuite.test_of_many_swaps_none_is_lost),
        (ForgetsVersions, LedgerSuite.test_no_version_is_given_twice_even_after_a_delete),
        (DeletesAnything, LedgerSuite.test_a_register_that_has_moved_on_is_not_deleted),
        (Overwrites, LedgerSuite.test_a_record_is_created_once),
    ],
)
def test_the_suite_finds_a_bad_ledger(ledger, test) -> None:
    bad = ledger()
    with pytest.raises((AssertionError, ExceptionGroup)):
        test(LedgerSuite(), lambda: bad)
