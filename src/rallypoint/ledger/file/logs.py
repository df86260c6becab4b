"""The logs of a file ledger. All calls block; several threads and processes make them.

A log is a folder of records, each linked to its name once. The index names the folder (`entries`).
"""

from __future__ import annotations

import contextlib
import errno
from pathlib import Path

from rallypoint import runtime
from rallypoint.errors import LedgerCorruptError
from rallypoint.ledger import record_format
from rallypoint.ledger.contract import AppendOutcome, Created, Exists, Gap
from rallypoint.ledger.file.disk import Disk, LinkResult, Scratch
from rallypoint.ledger.file.entries import TRIES_MAX, Entries, crowded, interrupted
from rallypoint.ledger.keys import is_record_name, record_name


class Logs:
    """The logs of one ledger. Raises LedgerError, and OSError for errors of the system."""

    def __init__(self, entries: Entries, disk: Disk, scratch: Scratch) -> None:
        self._entries = entries
        self._disk = disk
        self._scratch = scratch

    def append(self, log: str, index: int, value: bytes) -> AppendOutcome:
        """See Ledger.append."""

        def begin(folder: Path, _number: int) -> None:
            self._disk.make_folder(folder)
            sealed = record_format.seal(value, record_format.new_nonce())
            self._disk.write(folder / record_name(0), sealed)
            self._disk.sync(folder)

        for _ in range(TRIES_MAX):
            for name in self._entries.candidates(log):
                outcome = self._append(self._entries.folder / name, index, value)
                if outcome is not None:
                    return outcome
            if index > 0:
                return Gap()
            if self._entries.add(log, begin) is not None:
                return Created()
        raise crowded()

    def records(self, log: str, start: int, limit: int, seconds: float) -> list[tuple[int, bytes]]:
        """The next records: as many as can be read in `seconds`, but at least one."""
        for name in self._entries.candidates(log):
            folder = self._entries.folder / name
            with contextlib.suppress(FileNotFoundError):
                found = self._page(folder, start, limit, seconds)
                self._check_named(folder)
                self._sync(log, name, start + len(found))
                return found
        return []

    def drop(self, log: str) -> None:
        """See Ledger.drop_log."""
        self._entries.remove(log)

    def names(self, prefix: str) -> tuple[str, ...]:
        """See Ledger.logs."""
        return self._entries.keys(prefix)

    def _append(self, folder: Path, index: int, value: bytes) -> AppendOutcome | None:
        """Append to the log in this folder. None: the folder does not exist."""
        path = folder / record_name(index)
        if not self._disk.exists(path):
            if not self._disk.is_folder(folder):
                return None
            if index > 0 and not self._is_there(folder / record_name(index - 1)):
                return Gap()
            linked = self._scratch.link(value, path)
            if linked is LinkResult.GONE:
                return None
            self._disk.sync(folder)
            if linked is LinkResult.LINKED:
                # The log may have been dropped, and the record be in the trash.
                if not self._disk.is_named(folder):
                    raise interrupted()
                return Created()
        try:
            there = record_format.unseal(self._disk.content(path), str(path)).value
            # Who wrote it may not have forced it to the disk: its own try before this one, too.
            self._disk.sync(folder)
        except FileNotFoundError:
            return None
        return Exists(there) if self._disk.is_named(folder) else None

    def _is_there(self, path: Path) -> bool:
        """Whether a record exists, also if an NFS client remembers that it did not."""
        if self._disk.exists(path):
            return True
        with contextlib.suppress(FileNotFoundError):
            self._disk.content(path)  # To open a file makes the client ask its server.
            return True
        return False

    def _sync(self, log: str, name: str, count: int) -> None:
        """Force the names of the first `count` records to the disk. See `Registers.read`."""
        known = self._entries.synced.get(log)
        if known is None or known[0] != name or known[1] < count:
            self._disk.sync(self._entries.folder / name)
            self._entries.synced[log] = (name, count)

    def _page(
        self, folder: Path, start: int, limit: int, seconds: float
    ) -> list[tuple[int, bytes]]:
        """Read a page. Raises FileNotFoundError if the log was removed."""
        ends_s = runtime.here().monotonic_s() + seconds
        found: list[tuple[int, bytes]] = []
        for index in range(start, start + limit):
            path = folder / record_name(index)
            try:
                value = record_format.unseal(self._disk.content(path), str(path)).value
            except FileNotFoundError:
                self._check_end(folder, index)
                break
            found.append((index, value))
            if runtime.here().monotonic_s() >= ends_s:
                break
        return found

    def _check_end(self, folder: Path, count: int) -> None:
        """Check that the log ends there. Raises FileNotFoundError if it was removed."""
        found = self._disk.names(folder)
        later = [name for name in found if is_record_name(name) and int(name, 16) > count]
        # Another process may have written it since. It is missing only if it still does not exist.
        if later and not self._disk.exists(folder / record_name(count)):
            self._check_named(folder)
            raise LedgerCorruptError(
                f"record {count} of the log in {folder} is missing, but later records exist",
                hint=record_format.DAMAGED_HINT,
            )

    def _check_named(self, folder: Path) -> None:
        """Raises FileNotFoundError if the log was removed: its records may be in the trash."""
        if not self._disk.is_named(folder):
            raise FileNotFoundError(errno.ENOENT, "the log was removed", str(folder))
