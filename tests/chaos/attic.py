"""Every version of every register of a file ledger, and its logs, kept before they are removed.

A register keeps its old versions for a while, each a file of its own, and removes eight at a time
(ledger/file/chain.py). Each process of chaos gives its versions a second name (program.py). One
that is killed just then, or whose disk is full, does not. So a thread also looks twenty times a
second. If both have missed one, `unseen` has its name: the checks of single steps would not hold.
"""

from __future__ import annotations

import contextlib
import threading
import time
import urllib.parse
from pathlib import Path
from typing import Any

import msgspec

from rallypoint.errors import LedgerError
from rallypoint.ledger import record_format
from rallypoint.ledger.file.disk import Disk
from rallypoint.ledger.file.index import FileIndex, Kind
from rallypoint.ledger.file.registers import TOMBSTONE
from tests.failover.etcd_history import Written

LOOK_EVERY_S = 0.05


class Kept(msgspec.Struct, frozen=True):
    """One file. `at_ns`: when it was linked, by the disk's clock."""

    at_ns: int
    number: int
    folder: str
    value: bytes


class Attic(threading.Thread):
    """Watches the ledger in a folder, until it is stopped."""

    def __init__(self, place: Path, second_names: Path) -> None:
        super().__init__(daemon=True)
        self._place = place
        self._second_names = second_names
        self._stopped = threading.Event()
        self._kept: dict[str, Kept] = {}
        self._keys: dict[str, str] = {}
        self.unseen: list[str] = []
        self.slowest_s = 0.0
        """The longest time between two looks."""

    def run(self) -> None:
        before_s = time.monotonic()
        while not self._stopped.wait(LOOK_EVERY_S):
            self.look()
            self.slowest_s = max(self.slowest_s, time.monotonic() - before_s)
            before_s = time.monotonic()

    def stop(self) -> None:
        """Look once more, and stop."""
        self._stopped.set()
        self.join()
        self.look()
        seen = {(each.folder, each.number): path for path, each in self._kept.items()}
        for path in self._second_names.iterdir():
            folder, number, linked_ns = path.name.split("~")
            found = seen.get((folder, int(number, 16)), str(path))
            kept = Kept(int(linked_ns), int(number, 16), folder, path.read_bytes())
            self._kept[found] = kept

    def look(self) -> None:
        """Keep what is new."""
        for place in self._place.glob("ledger-*"):
            with contextlib.suppress(LedgerError, FileNotFoundError):  # it is being made
                self._look_at_names(place)
            for kind in (Kind.REGISTERS, Kind.LOGS):
                for folder in _names(place / kind):
                    self._look_at_files(place / kind / folder, folder)

    def _look_at_names(self, place: Path) -> None:
        index = FileIndex(place, Disk())
        for part in index.parts_with(""):
            found = index.read(part).index
            for prefix, entries in (("r", found.registers), ("l", found.logs)):
                for key, folder in entries.items():
                    self._keys.setdefault(folder, f"{prefix}/{key}")

    def _look_at_files(self, where: Path, folder: str) -> None:
        """Those in a folder of a register or a log, or in one of a register's segments."""
        for name in _names(where):
            path = where / name
            if str(path) in self._kept:
                continue
            if path.is_dir():
                self._look_at_files(path, folder)
                continue
            # It has just been moved away. Or it is being written: the first version of a register
            # has its name at once, in a folder that is not in the index yet.
            with contextlib.suppress(ValueError, OSError, LedgerError):
                kept = Kept(path.stat().st_ctime_ns, int(name, 16), folder, path.read_bytes())
                record_format.unseal(kept.value, name)
                self._kept[str(path)] = kept

    def written(self) -> list[Written]:
        """Every version, in the order in which they were linked; None where one was deleted."""
        folders: dict[str, list[Kept]] = {}
        for each in sorted(self._kept.values(), key=lambda each: each.number):
            folders.setdefault(each.folder, []).append(each)
        found: list[tuple[Any, str, bytes | None]] = []
        for folder, versions in folders.items():
            key = self._keys.get(folder)
            if key is None:
                continue  # made by a process that lost, or that died before the index had it
            numbers = [each.number for each in versions]
            missing = sorted(set(range(numbers[0], numbers[-1])) - set(numbers))
            if missing:
                self.unseen.append(f"{key} {missing}")
            # A file's time changes once more when its writer removes the temporary name.
            at_ns = versions[-1].at_ns
            for each in reversed(versions):
                at_ns = min(at_ns, each.at_ns)
                value = record_format.unseal(each.value, key).value
                written = None if value == TOMBSTONE else value
                # The disk's clock has steps of milliseconds. A lease is revoked before a run is
                # sealed, and the floor is raised before a run is removed: heads come last.
                order = (at_ns, key.startswith("r/runs/"), folder, each.number)
                found.append((order, _key(key, each.number), written))
        found.sort(key=lambda each: each[0])
        return [(key, value) for _, key, value in found]


def _key(key: str, number: int) -> str:
    """As etcd has it."""
    kind, _, name = key.partition("/")
    return f"l/{urllib.parse.quote(name, safe='')}/{number:x}" if kind == "l" else key


def _names(folder: Path) -> list[str]:
    """None if it has just been moved away."""
    try:
        return [path.name for path in folder.iterdir()]
    except OSError:
        return []
