"""`FileLedger`: the engine over a folder on a local disk, or on one that several machines share.

All work on the disk is done in threads, with a deadline: a file server that hangs makes an outcome
unknown and blocks no other call. The work itself is in the other files of this package.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Final, TypeVar

import msgspec

from rallypoint import runtime
from rallypoint.errors import (
    LedgerError,
    LedgerUnreachableError,
)
from rallypoint.ledger.contract import (
    AppendOutcome,
    Durability,
    Ledger,
    LedgerLimits,
    SwapOutcome,
    Unknown,
    Versioned,
    check_name,
)
from rallypoint.ledger.file.disk import Disk, Scratch, as_ledger_error
from rallypoint.ledger.file.entries import Entries
from rallypoint.ledger.file.file_system import POSIX, FileSystem
from rallypoint.ledger.file.folder import find, open_folder, place_of, replaced
from rallypoint.ledger.file.index import FileIndex, Kind
from rallypoint.ledger.file.logs import Logs
from rallypoint.ledger.file.registers import Registers
from rallypoint.threads import LimitedCalls

T = TypeVar("T")
TIMEOUT_S: Final = 5.0
PAGE_RECORDS_MAX: Final = 1000
"""The most records that are read at a time when the caller asks for all."""


class _Files(msgspec.Struct, frozen=True):
    """An open ledger. Its parts block: they are used in threads."""

    ledger_id: str
    registers: Registers
    logs: Logs


class FileLedger(Ledger):
    """A ledger in a folder. `open` makes the folder, but not its parent."""

    is_durable = True
    durability = Durability.DISK
    has_log = True
    # A file server takes about 2 ms to open a file. In that time it sends record_cost_bytes.
    limits = LedgerLimits(
        value_bytes_max=16 << 20,
        record_bytes_max=16 << 20,
        writes_per_s=50.0,
        record_cost_bytes=256 << 10,
    )

    def __init__(
        self,
        folder: str | os.PathLike[str],
        *,
        timeout_s: float = TIMEOUT_S,
        on_step: Callable[[str], None] | None = None,
        system: FileSystem = POSIX,
    ) -> None:
        """`timeout_s` limits each call, in seconds. `on_step` is for tests: see `Disk`.

        `system`: the file system that has the folder; a simulator has its own.
        """
        self.ledger_id = ""
        self._root = Path(folder).absolute()
        self._timeout_s = timeout_s
        self._disk = Disk(on_step, system)
        self._threads = LimitedCalls(runtime.in_thread)
        self._files: _Files | None = None

    async def open(self) -> None:
        """See Ledger.open."""
        if self._files is None:
            self._files = await self._run(self._open)
            self.ledger_id = self._files.ledger_id

    async def find(self) -> str:
        """The id of the ledger in the folder; "" if `open` would make a new one.

        Makes nothing that stays. Raises as `open`.
        """
        return await self._run(lambda: find(self._root, self._disk))

    async def aclose(self) -> None:
        """See Ledger.aclose. No file stays open between calls."""
        self._files = None

    async def read(self, key: str) -> Versioned | None:
        """See Ledger.read."""
        check_name(key)
        files = self._opened()
        return await self._run(lambda: files.registers.read(key))

    async def swap(self, key: str, expected: int | None, value: bytes) -> SwapOutcome:
        """See Ledger.swap."""
        self.check_value(key, value)
        files = self._opened()
        try:
            if expected is None:
                return await self._run(lambda: files.registers.create(key, value))
            return await self._run(lambda: files.registers.replace(key, expected, value))
        except LedgerError as error:
            return Unknown(error.message, error)

    async def delete(self, key: str, version: int | None = None) -> bool:
        """See Ledger.delete."""
        check_name(key)
        files = self._opened()
        return await self._run(lambda: files.registers.delete(key, version))

    async def keys(self, prefix: str = "") -> tuple[str, ...]:
        """See Ledger.keys."""
        files = self._opened()
        return await self._run(lambda: files.registers.keys(prefix))

    async def append(self, log: str, index: int, value: bytes) -> AppendOutcome:
        """See Ledger.append."""
        self.check_record(log, index, value)
        files = self._opened()
        try:
            return await self._run(lambda: files.logs.append(log, index, value))
        except LedgerError as error:
            return Unknown(error.message, error)

    async def records(
        self, log: str, start: int = 0, limit: int | None = None
    ) -> tuple[tuple[int, bytes], ...]:
        """See Ledger.records. If `limit` is None, pages are read, each with its own deadline."""
        check_name(log)
        files = self._opened()
        found: list[tuple[int, bytes]] = []
        while True:
            at = start + len(found)
            left = PAGE_RECORDS_MAX if limit is None else limit
            page = await self._run(lambda: files.logs.records(log, at, left, self._timeout_s / 4))  # noqa: B023
            found += page
            if limit is not None or not page:
                return tuple(found)

    async def drop_log(self, log: str) -> None:
        """See Ledger.drop_log."""
        check_name(log)
        files = self._opened()
        await self._run(lambda: files.logs.drop(log))

    async def logs(self, prefix: str = "") -> tuple[str, ...]:
        """See Ledger.logs."""
        files = self._opened()
        return await self._run(lambda: files.logs.names(prefix))

    def _opened(self) -> _Files:
        if self._files is None:
            raise LedgerUnreachableError(f"the ledger in {str(self._root)!r} is not open")
        return self._files

    def _open(self) -> _Files:
        ledger_id = open_folder(self._root, self._disk)
        place = place_of(self._root, ledger_id)
        scratch, index = Scratch(place, self._disk), FileIndex(place, self._disk)
        registers, logs = (Entries(kind, place, self._disk, index, scratch) for kind in Kind)
        parts = {part: index.read(part) for part in index.parts_with("")}
        # Safe while any other process uses the ledger, or is frozen.
        for entries in (registers, logs):
            entries.sweep(parts)
        scratch.sweep()
        return _Files(
            ledger_id,
            Registers(registers, self._disk, scratch),
            Logs(logs, self._disk, scratch),
        )

    async def _run(self, work: Callable[[], T]) -> T:
        """Do the work in a thread. An error of the system becomes a LedgerError."""
        try:
            return await self._threads.run(lambda: self._translated(work), self._timeout_s)
        except LedgerError:
            raise
        except TimeoutError as error:
            raise LedgerUnreachableError(
                f"the disk of the ledger in {str(self._root)!r} did not answer within "
                f"{self._timeout_s:g} s",
                hint="check that its file server answers",
            ) from error

    def _translated(self, work: Callable[[], T]) -> T:
        try:
            return work()
        except LedgerError:
            raise
        except OSError as error:
            other = replaced(self._root, self.ledger_id, self._disk) if self.ledger_id else None
            raise other or as_ledger_error(error, self._root) from error
