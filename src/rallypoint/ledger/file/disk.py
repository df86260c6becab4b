"""The operations of the file ledger on a disk. Each is done as a whole or not at all.

A file is never changed after it has its name. It is written under a temporary name, forced to the
disk, and then linked to its name. link() fails if the name exists, on a local disk and on NFS. So
no lock is needed that a frozen process could hold.
"""

from __future__ import annotations

import contextlib
import enum
import errno
import os
import stat
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final, TypeVar

from rallypoint import runtime
from rallypoint.errors import (
    LedgerAccessError,
    LedgerError,
    LedgerFullError,
    LedgerUnreachableError,
)
from rallypoint.ledger import record_format
from rallypoint.ledger.file.file_system import POSIX, FileSystem

T = TypeVar("T")
FILE_MODE: Final = 0o600
FOLDER_MODE: Final = 0o700
"""Only this user may read: a lease may contain a token, and a round the output of programs."""
_STALE_S: Final = 3600.0
"""A file that was not linked for this many seconds, by the disk's clock (R9), is removed."""
_GONE: Final = frozenset({errno.ENOENT, errno.ENOTDIR})
_STALE_TRIES: Final = 3
"""How often to look again after a stale handle."""
_ABSENT: Final = frozenset({errno.ENOENT, errno.ENOTDIR, errno.EBADF, errno.ELOOP})
"""The errors after which a name does not exist. (Those of pathlib's `exists`.)"""
_ACCESS: Final = frozenset({errno.EACCES, errno.EPERM, errno.EROFS})
_FULL: Final = frozenset({errno.ENOSPC, errno.EDQUOT})


class LinkResult(enum.Enum):
    """The outcome of a link."""

    LINKED = enum.auto()
    TAKEN = enum.auto()
    """Another file has the name."""
    GONE = enum.auto()
    """The folder for the name does not exist."""


class Disk:
    """The operations on a file system. Several threads use one Disk at a time.

    For tests, `on_step` is called before each step that a crash may prevent.
    """

    def __init__(
        self, on_step: Callable[[str], None] | None = None, system: FileSystem = POSIX
    ) -> None:
        self._step = on_step or (lambda step: None)
        self.system = system

    # -- what is there -----------------------------------------------------------------------------

    def names(self, folder: Path) -> list[str]:
        """The names in a folder. Raises FileNotFoundError.

        To open a folder makes an NFS client ask the server for changes, unless mounted with
        `nocto`.
        """
        try:
            return self.system.names(folder)
        except OSError as error:
            return self._again(self.system.names, folder, error)

    def content(self, path: Path) -> bytes:
        """The bytes of a file. Raises FileNotFoundError."""
        try:
            return self.system.read(path)
        except OSError as error:
            return self._again(self.system.read, path, error)

    def exists(self, path: Path) -> bool:
        """Whether there is a file or a folder of this name."""
        return self._found(path) is not None

    def is_folder(self, path: Path) -> bool:
        """Whether there is a folder of this name."""
        found = self._found(path)
        return found is not None and stat.S_ISDIR(found.st_mode)

    def is_named(self, folder: Path) -> bool:
        """Whether a folder still has its name, also for an NFS client that remembers it.

        Such a client reaches a folder under its old name for some time after another host has moved
        it away. To open the parent makes the client ask for the names in that.
        """
        try:
            self.system.close(self.system.open_folder(folder.parent))
        except FileNotFoundError:
            return False
        return self.is_folder(folder)

    def check(self, path: Path) -> None:
        """Raises FileNotFoundError if there is no file or folder of this name."""
        try:
            self.system.status(path)
        except OSError as error:
            self._again(self.system.status, path, error)

    def _found(self, path: Path) -> os.stat_result | None:
        try:
            return self.system.status(path)
        except OSError as error:
            if error.errno in _ABSENT:
                return None
            with contextlib.suppress(FileNotFoundError):
                return self._again(self.system.status, path, error)
            return None

    def _again(self, look: Callable[[Path], T], path: Path, error: OSError) -> T:
        """Look again after a stale handle. Raises FileNotFoundError if the name is gone.

        A stale handle does not say that the name is gone, but only that this NFS client has to ask
        for it again. A server that has just started may say so of a file that is still there.
        """
        for _ in range(_STALE_TRIES):
            if error.errno != errno.ESTALE:
                break
            try:
                return look(path)
            except OSError as other:
                error = other
        if error.errno in _GONE:
            raise FileNotFoundError(error.errno, error.strerror, str(path)) from error
        raise error

    # -- changes -----------------------------------------------------------------------------------

    def write(self, path: Path, data: bytes) -> None:
        """Write a new file and force it to the disk. Its name may not be on the disk yet."""
        self._step(f"create {path.name}")
        descriptor = self.system.create(path, FILE_MODE)
        try:
            half = len(data) // 2
            self._write_all(descriptor, data[:half])
            self._step("write the rest")
            self._write_all(descriptor, data[half:])
            self._step("sync the file")
            self.system.sync(descriptor)
        finally:
            self.system.close(descriptor)

    def link(self, temporary: Path, name: Path) -> LinkResult:
        """Give a written file its name, unless that is taken. See `LinkResult`."""
        self._step(f"link {name.name}")
        try:
            self.system.link(temporary, name)
        except OSError as error:
            # NFS repeats a request whose answer was lost, and then reports that the name is taken.
            # So the outcome depends only on whether both names are the same file.
            if self._is_same(temporary, name):
                return LinkResult.LINKED
            if error.errno == errno.EEXIST:
                return LinkResult.TAKEN
            if error.errno in _GONE and self.exists(temporary):
                return LinkResult.GONE
            raise
        return LinkResult.LINKED

    def sync(self, folder: Path) -> None:
        """Force the names in a folder to the disk. Does nothing if the folder does not exist."""
        self._step(f"sync {folder.name}")
        with contextlib.suppress(FileNotFoundError):
            descriptor = self.system.open_folder(folder)
            try:
                self.system.sync(descriptor)
            finally:
                self.system.close(descriptor)

    def make_folder(self, folder: Path) -> None:
        """Make a folder that only this user can use. It may exist already."""
        self._step(f"make {folder.name}")
        try:
            self.system.make_folder(folder, FOLDER_MODE)
        except OSError as error:
            if isinstance(error, FileNotFoundError) or not self.is_folder(folder):
                raise

    def move_away(self, folder: Path, trash: Path) -> None:
        """Move a folder to the trash in one step, then remove it. It need not exist."""
        self._step(f"move {folder.name} away")
        target = trash / f"{folder.name}-{runtime.token_hex(6)}"
        try:
            self.system.rename(folder, target)
        except FileNotFoundError:
            return
        self.remove(target)

    def rename(self, folder: Path, name: Path) -> None:
        """Give a folder its name. Raises OSError if the name is taken by a folder with content."""
        self._step(f"rename to {name.name}")
        self.system.rename(folder, name)

    def remove(self, folder: Path) -> None:
        """Remove a folder in the trash. Files that cannot be removed are left to the next sweep."""
        self._step(f"remove {folder.name}")
        self._empty(folder)
        with contextlib.suppress(OSError):
            self.system.remove_folder(folder)

    def forget(self, temporary: Path) -> None:
        """Remove the temporary name of a file; its other name stays."""
        self._step("forget the temporary name")
        with contextlib.suppress(OSError):
            self.system.unlink(temporary)

    def _empty(self, folder: Path) -> None:
        try:
            entries = self.system.entries(folder)
        except OSError:
            return
        # The newest versions last: another host may still read them under the folder's old name.
        for name, is_folder in sorted(entries):
            path = folder / name
            if is_folder:
                self._empty(path)
            with contextlib.suppress(OSError):
                if is_folder:
                    self.system.remove_folder(path)
                else:
                    self.system.unlink(path)

    def _write_all(self, descriptor: int, data: bytes) -> None:
        view = memoryview(data)
        while view:
            view = view[self.system.write(descriptor, view) :]

    def _is_same(self, one: Path, other: Path) -> bool:
        own, found = self._found(one), self._found(other)
        return own is not None and found is not None and os.path.samestat(own, found)


class Scratch:
    """The `tmp/` and `trash/` of one ledger. Any number of threads and processes use them.

    `tmp/` has files that are written but not linked yet. `trash/` has folders that were moved away
    in one step and are being emptied. A ledger never depends on the content of either.
    """

    def __init__(self, place: Path, disk: Disk) -> None:
        self.temporaries = place / "tmp"
        self.trash = place / "trash"
        self._disk = disk

    @contextlib.contextmanager
    def temporary(self, value: bytes) -> Iterator[Path]:
        """A file with this value in a sealed record, on the disk and ready to be linked."""
        path = self.temporaries / runtime.token_hex(12)
        try:
            self._disk.write(path, record_format.seal(value, record_format.new_nonce()))
            yield path
        finally:
            self._disk.forget(path)

    def link(self, value: bytes, name: Path) -> LinkResult:
        """Make a file of this name with this value in a sealed record. See `Disk.link`."""
        with self.temporary(value) as temporary:
            return self._disk.link(temporary, name)

    def move_away(self, folder: Path) -> None:
        """Remove a folder in one step: no process sees a part of it. It may be gone already."""
        self._disk.move_away(folder, self.trash)

    def sweep(self) -> None:
        """Remove the files and folders of processes that have crashed."""
        for name in self._disk.names(self.trash):
            self._disk.remove(self.trash / name)
        system = self._disk.system
        with self.temporary(b"") as fresh:
            now_s = system.status(fresh).st_mtime
            for name in self._disk.names(self.temporaries):
                path = self.temporaries / name
                with contextlib.suppress(OSError):
                    found = system.status(path)
                    if now_s - found.st_mtime <= _STALE_S:
                        continue
                    if stat.S_ISDIR(found.st_mode):
                        self.move_away(path)
                    else:
                        system.unlink(path)


def as_ledger_error(error: OSError, folder: Path) -> LedgerError:
    """The LedgerError for an error of the system. The caller raises it from that error."""
    said = error.strerror or str(error)
    if error.errno in _FULL:
        return LedgerFullError(
            f"the ledger in {str(folder)!r} cannot be written: {said}",
            hint="make room on that disk, or raise the quota; nothing is lost",
        )
    if error.errno in _ACCESS:
        return LedgerAccessError(
            f"the ledger in {str(folder)!r} cannot be used: {said}",
            hint="this user needs to read and write the folder, on a disk mounted read-write",
        )
    return LedgerUnreachableError(
        f"the ledger in {str(folder)!r} is out of reach: {said}",
        hint="check that the disk is mounted and its server answers",
    )
