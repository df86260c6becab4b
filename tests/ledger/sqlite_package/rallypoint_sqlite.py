"""A ledger in a SQLite file, as a package of its own: `sqlite:///FOLDER/FILE`.

Its processes share one machine. tests/ledger/test_packages.py installs it into a folder.
"""

from __future__ import annotations

import asyncio
import secrets
import sqlite3
from collections.abc import Callable
from typing import TypeVar
from urllib.parse import unquote, urlsplit

from rallypoint.errors import LedgerUnreachableError, UsageError
from rallypoint.ledger.contract import (
    AppendOutcome,
    Conflict,
    Created,
    Durability,
    Exists,
    Gap,
    Ledger,
    LedgerLimits,
    SwapOutcome,
    Swapped,
    Unknown,
    Versioned,
    check_name,
)

T = TypeVar("T")
TABLES = """
CREATE TABLE IF NOT EXISTS about (id TEXT, versions INTEGER);
CREATE TABLE IF NOT EXISTS registers (name TEXT PRIMARY KEY, version INTEGER, value BLOB);
CREATE TABLE IF NOT EXISTS records (log TEXT, place INTEGER, value BLOB, PRIMARY KEY (log, place));
"""


def open_ledger(url: str, call_timeout_s: float) -> Ledger:
    """See rallypoint.ledger.open: the entry point."""
    path = unquote(urlsplit(url).path)
    if path in ("", "/"):
        raise UsageError(f"{url} names no file", hint="write sqlite:///FOLDER/FILE")
    return SqliteLedger(path, call_timeout_s)


class SqliteLedger(Ledger):
    """Each operation is one transaction, in a thread."""

    is_durable = True
    durability = Durability.DISK
    has_log = True
    limits = LedgerLimits(value_bytes_max=8 << 20, record_bytes_max=8 << 20, writes_per_s=50.0)

    def __init__(self, path: str, call_timeout_s: float = 5.0) -> None:
        self.ledger_id = ""
        self._path, self._timeout_s = path, call_timeout_s

    async def open(self) -> None:
        def work(db: sqlite3.Connection) -> str:
            row = db.execute("SELECT id FROM about").fetchone()
            if row is None:
                row = (secrets.token_hex(8),)
                db.execute("INSERT INTO about VALUES (?, 0)", row)
            return str(row[0])

        self.ledger_id = await self._do(work)

    async def read(self, key: str) -> Versioned | None:
        check_name(key)
        return await self._do(lambda db: _read(db, key))

    async def swap(self, key: str, expected: int | None, value: bytes) -> SwapOutcome:
        self.check_value(key, value)

        def work(db: sqlite3.Connection) -> SwapOutcome:
            current = _read(db, key)
            if (current.version if current else None) != expected:
                return Conflict(current)
            db.execute("UPDATE about SET versions = versions + 1")
            (version,) = db.execute("SELECT versions FROM about").fetchone()
            db.execute("INSERT OR REPLACE INTO registers VALUES (?, ?, ?)", (key, version, value))
            return Swapped(version)

        try:
            return await self._do(work)
        except LedgerUnreachableError as error:
            return Unknown(error.message, error)

    async def delete(self, key: str, version: int | None = None) -> bool:
        check_name(key)

        def work(db: sqlite3.Connection) -> bool:
            current = _read(db, key)
            if current is not None and version not in (None, current.version):
                return False
            db.execute("DELETE FROM registers WHERE name = ?", (key,))
            return True

        return await self._do(work)

    async def keys(self, prefix: str = "") -> tuple[str, ...]:
        return await self._do(lambda db: _names(db, "SELECT name FROM registers", prefix))

    async def append(self, log: str, index: int, value: bytes) -> AppendOutcome:
        self.check_record(log, index, value)

        def work(db: sqlite3.Connection) -> AppendOutcome:
            kept = "SELECT value FROM records WHERE log = ? AND place = ?"
            row = db.execute(kept, (log, index)).fetchone()
            if row is not None:
                return Exists(row[0])
            if index and db.execute(kept, (log, index - 1)).fetchone() is None:
                return Gap()
            db.execute("INSERT INTO records VALUES (?, ?, ?)", (log, index, value))
            return Created()

        try:
            return await self._do(work)
        except LedgerUnreachableError as error:
            return Unknown(error.message, error)

    async def records(
        self, log: str, start: int = 0, limit: int | None = None
    ) -> tuple[tuple[int, bytes], ...]:
        check_name(log)
        page = "SELECT place, value FROM records WHERE log = ? AND place >= ? ORDER BY 1 LIMIT ?"
        bounds = (log, start, -1 if limit is None else limit)
        return await self._do(lambda db: tuple(db.execute(page, bounds).fetchall()))

    async def drop_log(self, log: str) -> None:
        check_name(log)
        await self._do(lambda db: db.execute("DELETE FROM records WHERE log = ?", (log,)).rowcount)

    async def logs(self, prefix: str = "") -> tuple[str, ...]:
        return await self._do(lambda db: _names(db, "SELECT DISTINCT log FROM records", prefix))

    async def _do(self, work: Callable[[sqlite3.Connection], T]) -> T:
        def transaction() -> T:
            db = sqlite3.connect(self._path, timeout=self._timeout_s, isolation_level=None)
            try:
                db.executescript(TABLES)
                db.execute("BEGIN IMMEDIATE")
                result = work(db)
                db.execute("COMMIT")
                return result
            finally:
                db.close()

        try:
            return await asyncio.to_thread(transaction)
        except sqlite3.Error as error:
            raise LedgerUnreachableError(f"SQLite cannot use {self._path}: {error}") from error


def _read(db: sqlite3.Connection, key: str) -> Versioned | None:
    row = db.execute("SELECT value, version FROM registers WHERE name = ?", (key,)).fetchone()
    return Versioned(*row) if row else None


def _names(db: sqlite3.Connection, query: str, prefix: str) -> tuple[str, ...]:
    return tuple(sorted(name for (name,) in db.execute(query) if name.startswith(prefix)))
