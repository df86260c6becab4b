"""A chain: one register as files. Each version is a file; the highest number has the value.

    <chain>/0000000100000000/          a segment: SEGMENT versions, numbered on from its name
              0000000100000000           each a sealed record, linked to its name, never changed
              0000000100000001
    <chain>/0000000100000008/          the next segment, made before it is needed

A late writer does no harm (R5). Within a segment no version is ever removed. So a free name was
never used, and only one link() takes it, after the version before it. Old versions are removed only
as whole segments, which are moved away when the next segment is in use. A process that was frozen
before its link then finds no folder, which is a conflict. The folder of the next segment is made
ahead of time, and not by the process that is about to link into it.

One case is left. A process is frozen just before it makes a folder, and wakes after that folder was
made, filled and moved away. It then makes the folder again. `_is_current` detects this.
"""

from __future__ import annotations

import contextlib
import enum
import errno
from pathlib import Path
from typing import Final

import msgspec

from rallypoint.errors import LedgerCorruptError, LedgerUnreachableError
from rallypoint.ledger import record_format
from rallypoint.ledger.file.disk import Disk, LinkResult

SEGMENT: Final = 8
"""The versions of a segment. A register keeps at most as many old versions."""
_READS_MAX: Final = 1000
_DIGITS: Final = 16


class Head(msgspec.Struct, frozen=True):
    """The newest version: its number, its value, and the nonce of its write."""

    number: int
    value: bytes
    nonce: bytes


class Advance(enum.Enum):
    """The outcome of an attempt to write the next version."""

    DONE = enum.auto()
    LOST = enum.auto()
    """Another writer was first, or the chain was removed."""
    UNSURE = enum.auto()
    """The version was written, but perhaps not into the chain that is in use."""


class Chain:
    """The versions in one folder. All calls block. Any number of processes may use one chain."""

    def __init__(self, folder: Path, trash: Path, disk: Disk) -> None:
        self._folder = folder
        self._trash = trash
        self._disk = disk

    def begin(self, number: int, sealed: bytes) -> None:
        """Make the chain with its first version, whose number is a multiple of SEGMENT.

        This takes several steps, so no other process may know of the folder yet.
        """
        assert number % SEGMENT == 0
        self._disk.make_folder(self._folder)
        segment = self._segment(number)
        self._disk.make_folder(segment)
        self._disk.write(segment / _name(number), sealed)
        self._disk.make_folder(self._segment(number + SEGMENT))
        self._disk.sync(segment)
        self._disk.sync(self._folder)

    def number(self) -> int | None:
        """The number of the newest version; None if there is no chain. Raises LedgerError."""
        for _ in range(_READS_MAX):
            try:
                segments = self._segments()
            except FileNotFoundError:
                return None
            with contextlib.suppress(FileNotFoundError):
                return self._newest(segments)
        raise LedgerUnreachableError(
            f"{self._folder} changes faster than it can be read",
            hint="too many processes write this register",
        )

    def head(self) -> Head | None:
        """The newest version; None if the chain does not exist.

        Raises LedgerCorruptError or LedgerFormatError for a newest version that cannot be read. An
        older one is never returned instead, because that would undo acknowledged writes (R1).
        """
        for _ in range(_READS_MAX):
            number = self.number()
            if number is None:
                return None
            path = self._path(number)
            try:
                sealed = self._disk.content(path)
            except FileNotFoundError:
                continue
            opened = record_format.unseal(sealed, str(path))
            return Head(number, opened.value, opened.nonce)
        raise LedgerUnreachableError(
            f"{self._folder} changes faster than it can be read",
            hint="too many processes write this register",
        )

    def sync(self, number: int) -> None:
        """Force the name of this version to the disk, as its writer may have died before that."""
        self._disk.sync(self._segment(number))
        if number % SEGMENT == 0:
            self._disk.sync(self._folder)

    def advance(self, expected: int, temporary: Path) -> Advance:
        """Make the file `temporary` the version after `expected`, if that is still the newest."""
        number = expected + 1
        for _ in range(2):
            if self.number() != expected:
                return Advance.LOST
            linked = self._disk.link(temporary, self._path(number))
            if linked is LinkResult.TAKEN:
                return Advance.LOST
            if linked is LinkResult.LINKED:
                return self._settle(number)
            # The process that began this segment died before it made the next one.
            with contextlib.suppress(FileNotFoundError):
                self._disk.make_folder(self._segment(number))
        return Advance.LOST

    def _settle(self, number: int) -> Advance:
        """Complete a link: force it to the disk, check that it counts, and remove old segments."""
        self.sync(number)
        current = self._is_current(number)
        if current is None:
            return Advance.UNSURE
        if not current:
            with contextlib.suppress(FileNotFoundError):
                self._disk.system.unlink(self._path(number))
            return Advance.LOST
        if number % SEGMENT == 0:
            with contextlib.suppress(FileNotFoundError):
                self._disk.make_folder(self._segment(number + SEGMENT))
                # Oldest first, so that the remaining segments are always the newest.
                for segment in self._segments():
                    if segment < number:
                        self._disk.move_away(self._segment(segment), self._trash)
        return Advance.DONE

    def _is_current(self, number: int) -> bool | None:
        """Whether the link was made in the chain that is in use; None if that cannot be known.

        In that chain, a segment is full before the next one has any version.
        """
        own = _first(number)
        try:
            for _ in range(_READS_MAX):
                segments = self._segments()
                if own not in segments:
                    return None
                if any(self._versions(each) for each in segments if each > own):
                    count = len(self._versions(own))
                    # It may have been emptied during the listing. To list the chain makes an NFS
                    # client ask again, which may remember the segment.
                    return count == SEGMENT if own in self._segments() else None
                if self._segments() == segments:
                    return True if self._disk.is_named(self._folder) else None
        except FileNotFoundError:
            return None
        return None

    def _newest(self, segments: list[int]) -> int:
        """The newest version. Raises FileNotFoundError if a segment was moved away meanwhile."""
        for segment in reversed(segments):
            versions = self._versions(segment)
            if versions:
                # If the segment still has its name, nothing was removed during the listing.
                self._disk.check(self._path(versions[-1]))
                return versions[-1]
        # A folder that was moved away is emptied, and may have been listed meanwhile: a segment, or
        # the chain of a register that was deleted.
        if not self._disk.is_named(self._folder) or self._segments() != segments:
            raise FileNotFoundError(errno.ENOENT, "the segments have changed", str(self._folder))
        raise LedgerCorruptError(
            f"{self._folder} holds no version of its register",
            hint="stop every process that uses this ledger, and restore the folder from a backup",
        )

    def _segments(self) -> list[int]:
        return _numbers(self._disk.names(self._folder))

    def _versions(self, segment: int) -> list[int]:
        return _numbers(self._disk.names(self._segment(segment)))

    def _segment(self, number: int) -> Path:
        return self._folder / _name(_first(number))

    def _path(self, number: int) -> Path:
        return self._segment(number) / _name(number)


def _first(number: int) -> int:
    return number - number % SEGMENT


def _name(number: int) -> str:
    return f"{number:0{_DIGITS}x}"


def _numbers(listed: list[str]) -> list[int]:
    """The numbers among names, in order. Other names (`.nfs...`) are not of this chain."""
    found = []
    for name in listed:
        if len(name) == _DIGITS:
            with contextlib.suppress(ValueError):
                found.append(int(name, 16))
    return sorted(found)
