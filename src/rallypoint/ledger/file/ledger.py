"""The ledger in files: a folder on a local disk, or on one that several machines share.

Nothing here locks: a register is a chain of versions, each taken by one exclusive link
(chain.py), and a log a folder of records, each linked once. Which folder a register or log
has stands in the index, itself such a chain. So a name that is deleted and used again gets another
folder and other versions, and whoever was frozen in between finds nothing to write to.

All work on the disk is done in threads with a deadline: a file server that hangs makes an outcome
unknown, and blocks nobody.
"""

from __future__ import annotations

import contextlib
import math
import os
import random
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final, TypeVar

import msgspec

from rallypoint.errors import (
    LedgerCorruptError,
    LedgerError,
    LedgerUnreachableError,
)
from rallypoint.ledger import record_format
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
from rallypoint.ledger.file.chain import Advance, Chain
from rallypoint.ledger.file.disk import Disk, LinkResult, as_ledger_error, content, names
from rallypoint.ledger.file.folder import open_folder, place_of, replaced
from rallypoint.ledger.file.index import FileIndex, Index, Indexed
from rallypoint.threads import LimitedCalls

T = TypeVar("T")
TIMEOUT_S: Final = 5.0
_STALE_S: Final = 3600.0
"""Files that were never linked are swept after this, by the disk's own clock (R9)."""
_TRIES_MAX: Final = 1000
PAGE_RECORDS_MAX: Final = 1000
"""How many records are read at a time where the caller asks for all."""
TOMBSTONE: Final = b"\0deleted"
"""The last version of a register that was deleted only if it had a certain one."""


class FileLedger(Ledger):
    """A ledger in a folder. The folder is made by `open` if only it, not its parent, is missing."""

    is_durable = True
    durability = Durability.DISK
    has_log = True
    # On a file server to open a file takes about 2 ms, in which it could send so many bytes.
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
    ) -> None:
        """`timeout_s` bounds each call. `on_step` is for tests: see `Disk`."""
        self.ledger_id = ""
        self._root = Path(folder).absolute()
        self._timeout_s = timeout_s
        self._disk = Disk(on_step)
        self._threads = LimitedCalls()
        self._files: _Files | None = None

    async def open(self) -> None:
        """See Ledger.open."""
        if self._files is None:
            self._files = await self._run(self._open)
            self.ledger_id = self._files.ledger_id

    async def aclose(self) -> None:
        """See Ledger.aclose. There is nothing to close: no file stays open between calls."""
        self._files = None

    async def read(self, key: str) -> Versioned | None:
        """See Ledger.read."""
        check_name(key)
        files = self._opened()
        return await self._run(lambda: files.read(key))

    async def swap(self, key: str, expected: int | None, value: bytes) -> SwapOutcome:
        """See Ledger.swap."""
        self.check_value(key, value)
        files = self._opened()
        try:
            if expected is None:
                return await self._run(lambda: files.create(key, value))
            return await self._run(lambda: files.replace(key, expected, value))
        except LedgerError as error:
            return Unknown(error.message, error)

    async def delete(self, key: str, version: int | None = None) -> bool:
        """See Ledger.delete."""
        check_name(key)
        files = self._opened()
        return await self._run(lambda: files.delete(key, version))

    async def keys(self, prefix: str = "") -> tuple[str, ...]:
        """See Ledger.keys."""
        files = self._opened()
        return await self._run(lambda: files.keys(prefix))

    async def append(self, log: str, index: int, value: bytes) -> AppendOutcome:
        """See Ledger.append."""
        self.check_record(log, index, value)
        files = self._opened()
        try:
            return await self._run(lambda: files.append(log, index, value))
        except LedgerError as error:
            return Unknown(error.message, error)

    async def records(
        self, log: str, start: int = 0, limit: int | None = None
    ) -> tuple[tuple[int, bytes], ...]:
        """See Ledger.records. All are read in pages, too: each file takes as long as it takes."""
        check_name(log)
        files = self._opened()
        found: list[tuple[int, bytes]] = []
        while True:
            at = start + len(found)
            left = PAGE_RECORDS_MAX if limit is None else limit
            page = await self._run(lambda: files.records(log, at, left, self._timeout_s / 4))  # noqa: B023
            found += page
            if limit is not None or not page:
                return tuple(found)

    async def drop_log(self, log: str) -> None:
        """See Ledger.drop_log."""
        check_name(log)
        files = self._opened()
        await self._run(lambda: files.drop_log(log))

    async def logs(self, prefix: str = "") -> tuple[str, ...]:
        """See Ledger.logs."""
        files = self._opened()
        return await self._run(lambda: files.logs(prefix))

    def _opened(self) -> _Files:
        if self._files is None:
            raise LedgerUnreachableError(f"the ledger in {str(self._root)!r} is not open")
        return self._files

    def _open(self) -> _Files:
        files = _Files(self._root, open_folder(self._root, self._disk), self._disk)
        files.sweep()
        return files

    async def _run(self, work: Callable[[], T]) -> T:
        """The work in a thread; what the system says becomes one of our errors."""
        try:
            return await self._threads.run(lambda: self._translated(work), self._timeout_s)
        except LedgerError:
            raise
        except TimeoutError as error:
            raise LedgerUnreachableError(
                f"the disk of the ledger in {str(self._root)!r} did not answer within "
                f"{self._timeout_s:g} s",
                hint="does its file server answer?",
            ) from error

    def _translated(self, work: Callable[[], T]) -> T:
        try:
            return work()
        except LedgerError:
            raise
        except OSError as error:
            other = replaced(self._root, self.ledger_id) if self.ledger_id else None
            raise other or as_ledger_error(error, self._root) from error


class _Files:
    """What is done in a thread. Several threads may be in here at a time."""

    def __init__(self, root: Path, ledger_id: str, disk: Disk) -> None:
        self.ledger_id = ledger_id
        place = place_of(root, ledger_id)
        self._registers = place / "registers"
        self._logs = place / "logs"
        self._temporaries = place / "tmp"
        self._trash = place / "trash"
        self._disk = disk
        self._index = FileIndex(place, disk)
        # A folder that once was a register's is that register's or nobody's: so what is known of it
        # can be wrong only in that it is gone.
        self._known: dict[tuple[Path, str], str] = {}
        self._synced: dict[tuple[Path, str], tuple[str, int]] = {}
        """The folder and the version, or the number of records, that is known to be on the disk."""

    # -- registers ------------------------------------------------------------------------------

    def read(self, key: str) -> Versioned | None:
        for name in self._names(self._registers, key):
            chain = self._chain(name)
            head = chain.head()
            if head is not None and head.value == TOMBSTONE:
                # Whoever deleted it was stopped on the way, or is about to do this.
                self._remove(self._registers, key, name)
                continue
            if head is not None:
                # What is told on must not be undone by a power failure, and its writer may have
                # died before it had forced it to the disk.
                known = self._synced.get((self._registers, key))
                if known != (name, head.number):
                    chain.sync(head.number)
                    self._synced[self._registers, key] = (name, head.number)
                return Versioned(head.value, head.number)
        return None

    def replace(self, key: str, expected: int, value: bytes) -> SwapOutcome:
        for name in self._names(self._registers, key):
            chain = self._chain(name)
            number = chain.number()
            if number is None:
                continue
            if number != expected:
                break
            with self._temporary(value) as temporary:
                advance = chain.advance(expected, temporary)
            if advance is Advance.DONE:
                return Swapped(expected + 1)
            if advance is Advance.UNSURE:
                return Unknown("this process was stopped in the middle of a write")
            break
        return Conflict(self.read(key))

    def create(self, key: str, value: bytes) -> SwapOutcome:
        def begin(folder: Path, number: int) -> None:
            # No other register, and no earlier life of this one, has a version in this range.
            Chain(folder, self._trash, self._disk).begin(_first_version(number), _sealed(value))

        for _ in range(_TRIES_MAX):
            current = self.read(key)
            if current is not None:
                return Conflict(current)
            number = self._add(self._registers, key, begin)
            if number is not None:
                return Swapped(_first_version(number))
        raise _crowded()

    def delete(self, key: str, version: int | None) -> bool:
        """One of a given version is first written over, as one of two who do that is the first."""
        if version is None:
            self._remove(self._registers, key)
            return True
        for name in self._names(self._registers, key):
            chain = self._chain(name)
            if chain.number() != version:
                continue
            with self._temporary(TOMBSTONE) as temporary:
                advance = chain.advance(version, temporary)
            if advance is Advance.UNSURE:
                raise LedgerUnreachableError("this process was stopped in the middle of a write")
            if advance is Advance.DONE:
                self._remove(self._registers, key, name)
                return True
        return self.read(key) is None

    def keys(self, prefix: str) -> tuple[str, ...]:
        return self._listed(self._registers, prefix)

    # -- the log --------------------------------------------------------------------------------

    def append(self, log: str, index: int, value: bytes) -> AppendOutcome:
        def begin(folder: Path, _number: int) -> None:
            self._disk.make_folder(folder)
            self._disk.write(folder / _record(0), _sealed(value))
            self._disk.sync(folder)

        for _ in range(_TRIES_MAX):
            for name in self._names(self._logs, log):
                outcome = self._append(self._logs / name, index, value)
                if outcome is not None:
                    return outcome
            if index > 0:
                return Gap()
            if self._add(self._logs, log, begin) is not None:
                return Created()
        raise _crowded()

    def _append(self, folder: Path, index: int, value: bytes) -> AppendOutcome | None:
        """None: the log has no such folder any more."""
        path = folder / _record(index)
        if not path.exists():
            if not folder.is_dir():
                return None
            if index > 0 and not (folder / _record(index - 1)).exists():
                return Gap()
            with self._temporary(value) as temporary:
                linked = self._disk.link(temporary, path)
            if linked is LinkResult.GONE:
                return None
            self._disk.sync(folder)
            if linked is LinkResult.LINKED:
                return Created()
        try:
            return Exists(record_format.unseal(content(path), str(path)).value)
        except FileNotFoundError:
            return None

    def records(self, log: str, start: int, limit: int, seconds: float) -> list[tuple[int, bytes]]:
        """The next records: as many as can be read in so many seconds, but one at least."""
        for name in self._names(self._logs, log):
            folder = self._logs / name
            with contextlib.suppress(FileNotFoundError):
                found = self._page(folder, start, limit, seconds)
                self._know_synced(log, name, start + len(found))
                return found
        return []

    def _page(
        self, folder: Path, start: int, limit: int, seconds: float
    ) -> list[tuple[int, bytes]]:
        """Raises FileNotFoundError if the log is gone."""
        ends_s = time.monotonic() + seconds
        found: list[tuple[int, bytes]] = []
        for index in range(start, start + limit):
            path = folder / _record(index)
            try:
                value = record_format.unseal(content(path), str(path)).value
            except FileNotFoundError:
                self._check_end(folder, index)
                break
            found.append((index, value))
            if time.monotonic() >= ends_s:
                break
        return found

    def _check_end(self, folder: Path, count: int) -> None:
        """There are so many records, as it seems. Raises FileNotFoundError if the log is gone."""
        later = [name for name in names(folder) if _is_record(name) and int(name, 16) > count]
        # Others may have written since: only what stays missing is missing.
        if later and not (folder / _record(count)).exists():
            names(folder)
            raise LedgerCorruptError(
                f"record {count} of the log in {folder} is missing, and later ones are there",
                hint="stop every process that uses this ledger, and restore it from a backup",
            )

    def _know_synced(self, log: str, name: str, count: int) -> None:
        """What is told on must not be undone by a power failure: as `read` does."""
        known = self._synced.get((self._logs, log))
        if known is None or known[0] != name or known[1] < count:
            self._disk.sync(self._logs / name)
            self._synced[self._logs, log] = (name, count)

    def drop_log(self, log: str) -> None:
        self._remove(self._logs, log)

    def logs(self, prefix: str) -> tuple[str, ...]:
        return self._listed(self._logs, prefix)

    # -- the index ------------------------------------------------------------------------------

    def _names(self, kind: Path, key: str) -> Iterator[str]:
        """The folders that may be the key's: what is known, then what the index says."""
        known = self._known.get((kind, key))
        if known is not None:
            yield known
        found = self._look_up(kind, key)
        if found is not None and found != known:
            yield found

    def _look_up(self, kind: Path, key: str) -> str | None:
        part = self._index.part_of(key)
        name = self._entries(self._index.read(part).index, kind).get(key)
        if name is None:
            self._forget(kind, key)
        else:
            self._known[kind, key] = name
        return name

    def _entries(self, index: Index, kind: Path) -> dict[str, str]:
        return index.registers if kind == self._registers else index.logs

    def _write_index(self, part: str, before: Indexed, index: Index) -> Advance:
        with self._temporary(msgspec.msgpack.encode(index)) as temporary:
            return self._index.write(part, before, temporary)

    def _add(self, kind: Path, key: str, begin: Callable[[Path, int], None]) -> int | None:
        """Give the key a new folder. Its number in the index; None if another was first."""
        part = self._index.part_of(key)
        before = self._index.ready(part)
        entries = self._entries(before.index, kind)
        present = entries.get(key)
        if present is not None and (kind / present).is_dir():
            return None
        # The number is the part's next, so a folder that did not get into the index by then never
        # will: it can be swept at any time.
        number = before.number + 1
        name = f"{number:016x}-{part}{os.urandom(_RANDOM_DIGITS // 2).hex()}"
        begin(kind / name, number)
        self._disk.sync(kind)
        index = self._with(before.index, kind, {**entries, key: name})
        advance = self._write_index(part, before, index)
        if advance is Advance.DONE:
            self._known[kind, key] = name
            return number
        if advance is Advance.UNSURE:
            raise LedgerUnreachableError("this process was stopped in the middle of a write")
        self._disk.move_away(kind / name, self._trash)
        _breathe()
        return None

    def _remove(self, kind: Path, key: str, folder: str | None = None) -> None:
        """Remove the key, or, if it has another folder by now, nothing but this one."""
        name = folder or self._look_up(kind, key)
        if name is None:
            return
        # Moving it away is what deletes it; whoever would write then finds no folder.
        self._disk.move_away(kind / name, self._trash)
        self._disk.sync(kind)
        part = self._index.part_of(key)
        for _ in range(_TRIES_MAX):
            before = self._index.read(part)
            entries = dict(self._entries(before.index, kind))
            if entries.get(key) != name:
                break
            del entries[key]
            advance = self._write_index(part, before, self._with(before.index, kind, entries))
            if advance is Advance.DONE:
                break
            _breathe()
        self._forget(kind, key)

    def _forget(self, kind: Path, key: str) -> None:
        self._known.pop((kind, key), None)
        self._synced.pop((kind, key), None)

    def _listed(self, kind: Path, prefix: str) -> tuple[str, ...]:
        found: list[str] = []
        for part in self._index.parts_with(prefix):
            entries = self._entries(self._index.read(part).index, kind)
            found += (
                key
                for key, name in entries.items()
                if key.startswith(prefix) and (kind / name).is_dir()
            )
        return tuple(sorted(found))

    def _with(self, index: Index, kind: Path, entries: dict[str, str]) -> Index:
        if kind == self._registers:
            return Index(entries, index.logs)
        return Index(index.registers, entries)

    # -- files ----------------------------------------------------------------------------------

    def sweep(self) -> None:
        """Remove what crashes have left. Safe beside any other process, frozen or not."""
        parts = {part: self._index.read(part) for part in self._index.parts_with("")}
        for kind in (self._registers, self._logs):
            used: set[str] = set()
            for indexed in parts.values():
                used.update(self._entries(indexed.index, kind).values())
            for name in names(kind):
                indexed = parts.get(_part_in(name), _NOT_READ)
                if name not in used and _number_in(name) <= indexed.number:
                    self._disk.move_away(kind / name, self._trash)
        for name in names(self._trash):
            self._disk.remove(self._trash / name)
        with self._temporary(b"") as fresh:
            now_s = fresh.stat().st_mtime
            for name in names(self._temporaries):
                path = self._temporaries / name
                with contextlib.suppress(OSError):
                    if now_s - path.stat().st_mtime <= _STALE_S:
                        continue
                    if path.is_dir():
                        self._disk.move_away(path, self._trash)
                    else:
                        path.unlink()

    def _chain(self, name: str) -> Chain:
        return Chain(self._registers / name, self._trash, self._disk)

    @contextlib.contextmanager
    def _temporary(self, value: bytes) -> Iterator[Path]:
        path = self._temporaries / os.urandom(12).hex()
        try:
            self._disk.write(path, _sealed(value))
            yield path
        finally:
            self._disk.forget(path)


def _first_version(number: int) -> int:
    return number << 32


_RANDOM_DIGITS: Final = 12
_NOT_READ: Final = Indexed(-1, Index())


def _part_in(name: str) -> str:
    """The part of the index that a folder was made for."""
    return name.partition("-")[2][:-_RANDOM_DIGITS]


def _number_in(name: str) -> float:
    """The number that a folder was made for; of a name that is none of ours, infinity."""
    number, dash, _ = name.partition("-")
    with contextlib.suppress(ValueError):
        return int(number, 16) if dash else math.inf
    return math.inf


def _record(index: int) -> str:
    return f"{index:016x}"


def _is_record(name: str) -> bool:
    return len(name) == 16 and all(digit in "0123456789abcdef" for digit in name)


def _sealed(value: bytes) -> bytes:
    return record_format.seal(value, record_format.new_nonce())


def _crowded() -> LedgerUnreachableError:
    return LedgerUnreachableError("the ledger's index changes faster than it can be written")


def _breathe() -> None:
    """Another process was first: let those who contend not meet again at once."""
    time.sleep(random.uniform(0.0005, 0.005))
