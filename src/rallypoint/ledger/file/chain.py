"""One register as files: each version a file, its number the name, the highest is the value.

    <chain>/0000000100000000/          a segment: SEGMENT versions, numbered on from its name
              0000000100000000           each an envelope, linked to its name and never changed
              0000000100000001
    <chain>/0000000100000008/          the next segment, made before anybody needs it

What makes a late writer harmless (R5): within a segment no version is ever removed, so a name that
is free was never taken, and the one link() that takes it follows the version before it. Old
versions go only as whole segments, moved away once the next one is in use: who was frozen before
its link then finds no folder, which is a conflict. That next folder is never made by who is about
to link into it, but ahead of time. One case is left: somebody frozen just before making a folder
wakes when it was used up and moved away, and makes it again; that is what `_is_current` looks for.
"""

from __future__ import annotations

import contextlib
import enum
from pathlib import Path
from typing import Final

import msgspec

from rallypoint.errors import LedgerCorruptError, LedgerUnreachableError
from rallypoint.ledger import record_format
from rallypoint.ledger.file.disk import Disk, LinkResult, content, names

SEGMENT: Final = 8
"""Versions in a segment. A register keeps up to as many besides its newest."""
_READS_MAX: Final = 1000
_DIGITS: Final = 16


class Head(msgspec.Struct, frozen=True):
    """The newest version: its number and what it holds."""

    number: int
    value: bytes
    nonce: bytes


class Advance(enum.Enum):
    """What came of an attempt to be the next version."""

    DONE = enum.auto()
    LOST = enum.auto()
    """Another writer was first, or the chain is gone."""
    UNSURE = enum.auto()


class Chain:
    """The versions in one folder. All calls block; any number of processes use one chain."""

    def __init__(self, folder: Path, trash: Path, disk: Disk) -> None:
        self._folder = folder
        self._trash = trash
        self._disk = disk

    def begin(self, number: int, sealed: bytes) -> None:
        """Make the chain with its first version, a multiple of SEGMENT.

        Nobody else may know of the folder yet: this takes several steps.
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
        """The newest version's number; None if there is no such chain. Raises LedgerError."""
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
        """The newest version; None if there is no such chain.

        Raises LedgerCorruptError or LedgerFormatError: never an older version for a damaged one,
        because what was acknowledged since (R1) would be undone by that.
        """
        for _ in range(_READS_MAX):
            number = self.number()
            if number is None:
                return None
            path = self._path(number)
            try:
                sealed = content(path)
            except FileNotFoundError:
                continue
            opened = record_format.unseal(sealed, str(path))
            return Head(number, opened.value, opened.nonce)
        raise LedgerUnreachableError(
            f"{self._folder} changes faster than it can be read",
            hint="too many processes write this register",
        )

    def sync(self, number: int) -> None:
        """Force this version's name to the disk: its writer may have died before it did so."""
        self._disk.sync(self._segment(number))
        if number % SEGMENT == 0:
            self._disk.sync(self._folder)

    def advance(self, expected: int, temporary: Path) -> Advance:
        """Make a written file the version after `expected`, if that is still the newest."""
        number = expected + 1
        for _ in range(2):
            if self.number() != expected:
                return Advance.LOST
            linked = self._disk.link(temporary, self._path(number))
            if linked is LinkResult.TAKEN:
                return Advance.LOST
            if linked is LinkResult.LINKED:
                return self._settle(number)
            # Whoever began this segment died before it made the next.
            with contextlib.suppress(FileNotFoundError):
                self._disk.make_folder(self._segment(number))
        return Advance.LOST

    def _settle(self, number: int) -> Advance:
        """The link was made: force it to the disk, see that it counts, and tidy up."""
        self.sync(number)
        current = self._is_current(number)
        if current is None:
            return Advance.UNSURE
        if not current:
            with contextlib.suppress(FileNotFoundError):
                self._path(number).unlink()
            return Advance.LOST
        if number % SEGMENT == 0:
            with contextlib.suppress(FileNotFoundError):
                self._disk.make_folder(self._segment(number + SEGMENT))
                # Oldest first: what is there is never older than what is missing.
                for segment in self._segments():
                    if segment < number:
                        self._disk.move_away(self._segment(segment), self._trash)
        return Advance.DONE

    def _is_current(self, number: int) -> bool | None:
        """Whether the link went into the living chain; None if that cannot be told any more.

        In the living chain a segment is full before the next one has anything.
        """
        own = _first(number)
        try:
            for _ in range(_READS_MAX):
                segments = self._segments()
                if own not in segments:
                    return None
                if any(self._versions(each) for each in segments if each > own):
                    count = len(self._versions(own))
                    self._segment(own).stat()  # else it was emptied while it was listed
                    return count == SEGMENT
                if self._segments() == segments:
                    return True
        except FileNotFoundError:
            return None
        return None

    def _newest(self, segments: list[int]) -> int:
        """Raises FileNotFoundError if a segment was moved away meanwhile."""
        for segment in reversed(segments):
            versions = self._versions(segment)
            if versions:
                # If it still has its name, nothing was removed while it was listed.
                self._path(versions[-1]).stat()
                return versions[-1]
        for segment in segments:
            # The same: one that was moved away is emptied, maybe while it was listed.
            self._segment(segment).stat()
        raise LedgerCorruptError(
            f"{self._folder} holds no version of its register",
            hint="stop every process that uses this ledger, and restore the folder from a backup",
        )

    def _segments(self) -> list[int]:
        return _numbers(names(self._folder))

    def _versions(self, segment: int) -> list[int]:
        return _numbers(names(self._segment(segment)))

    def _segment(self, number: int) -> Path:
        return self._folder / _name(_first(number))

    def _path(self, number: int) -> Path:
        return self._segment(number) / _name(number)


def _first(number: int) -> int:
    return number - number % SEGMENT


def _name(number: int) -> str:
    return f"{number:0{_DIGITS}x}"


def _numbers(listed: list[str]) -> list[int]:
    """Numbers among names, in order. Other names (`.nfs...`) are none of ours."""
    found = []
    for name in listed:
        if len(name) == _DIGITS:
            with contextlib.suppress(ValueError):
                found.append(int(name, 16))
    return sorted(found)
