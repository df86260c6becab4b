"""The few things that the file ledger does to a disk, each whole or not at all.

Files are never changed once they have their name: a file is written under a name of its own, forced
to the disk, and then linked to the name that counts. link() fails if the name is taken, on a local
disk and on NFS alike, so no lock is needed and a frozen process cannot hold one.
"""

from __future__ import annotations

import contextlib
import enum
import errno
import os
from collections.abc import Callable
from pathlib import Path
from typing import Final

from rallypoint.errors import (
    LedgerAccessError,
    LedgerError,
    LedgerFullError,
    LedgerUnreachableError,
)

FILE_MODE: Final = 0o600
FOLDER_MODE: Final = 0o700
"""A lease holds what admits to a run, and a round what its programs printed last."""
_GONE: Final = frozenset({errno.ENOENT, errno.ESTALE, errno.ENOTDIR})
_ACCESS: Final = frozenset({errno.EACCES, errno.EPERM, errno.EROFS})
_FULL: Final = frozenset({errno.ENOSPC, errno.EDQUOT})


class LinkResult(enum.Enum):
    """What came of a link."""

    LINKED = enum.auto()
    TAKEN = enum.auto()
    """The name was there already, and is not ours."""
    GONE = enum.auto()
    """The folder for the name is not there."""


class Disk:
    """`on_step` is called with a name before each step that a crash could cut off; for tests."""

    def __init__(self, on_step: Callable[[str], None] | None = None) -> None:
        self._step = on_step or _nothing

    def write(self, path: Path, data: bytes) -> None:
        """A new file, on the disk when this returns; its name may not be yet."""
        self._step(f"create {path.name}")
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, FILE_MODE)
        try:
            half = len(data) // 2
            _write_all(descriptor, data[:half])
            self._step("write the rest")
            _write_all(descriptor, data[half:])
            self._step("sync the file")
            os.fsync(descriptor)
        finally:
            os.close(descriptor)

    def link(self, temporary: Path, name: Path) -> LinkResult:
        """Give a file that was written its name, unless that is taken. See `LinkResult`."""
        self._step(f"link {name.name}")
        try:
            os.link(temporary, name)
        except OSError as error:
            # NFS repeats a request whose answer was lost, and then answers that the name is taken:
            # what counts is whether both names are one file.
            if _is_same(temporary, name):
                return LinkResult.LINKED
            if error.errno == errno.EEXIST:
                return LinkResult.TAKEN
            if error.errno in _GONE and temporary.exists():
                return LinkResult.GONE
            raise
        return LinkResult.LINKED

    def sync(self, folder: Path) -> None:
        """Force the names in a folder to the disk. A folder that is gone needs none."""
        self._step(f"sync {folder.name}")
        with contextlib.suppress(FileNotFoundError):
            descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)

    def make_folder(self, folder: Path) -> None:
        """A folder for this user alone, which may be there already."""
        self._step(f"make {folder.name}")
        folder.mkdir(mode=FOLDER_MODE, exist_ok=True)

    def move_away(self, folder: Path, trash: Path) -> None:
        """Move a folder to where nobody looks, in one step, then empty it. It may be gone."""
        self._step(f"move {folder.name} away")
        target = trash / f"{folder.name}-{os.urandom(6).hex()}"
        try:
            folder.rename(target)
        except FileNotFoundError:
            return
        self.remove(target)

    def rename(self, folder: Path, name: Path) -> None:
        """Give a folder its name. Raises OSError if the name is taken by a folder with content."""
        self._step(f"rename to {name.name}")
        folder.rename(name)

    def remove(self, folder: Path) -> None:
        """Empty and remove a folder in the trash. What fails is left to the next sweep."""
        self._step(f"remove {folder.name}")
        for parent, folders, files in os.walk(folder, topdown=False):
            for name in files:
                with contextlib.suppress(OSError):
                    Path(parent, name).unlink()
            for name in folders:
                with contextlib.suppress(OSError):
                    Path(parent, name).rmdir()
        with contextlib.suppress(OSError):
            folder.rmdir()

    def forget(self, temporary: Path) -> None:
        """Remove a file's first name; its other one stays."""
        self._step("forget the temporary name")
        with contextlib.suppress(OSError):
            temporary.unlink()


def names(folder: Path) -> list[str]:
    """What is in a folder. Raises FileNotFoundError, also where NFS says that it is stale.

    Opening a folder makes an NFS client ask the server for news, unless mounted with `nocto`.
    """
    try:
        return [path.name for path in folder.iterdir()]
    except OSError as error:
        if error.errno in _GONE:
            raise FileNotFoundError(error.errno, os.strerror(error.errno), str(folder)) from error
        raise


def content(path: Path) -> bytes:
    """A file's bytes. Raises FileNotFoundError, also where NFS says that it is stale."""
    try:
        return path.read_bytes()
    except OSError as error:
        if error.errno in _GONE:
            raise FileNotFoundError(error.errno, os.strerror(error.errno), str(path)) from error
        raise


def as_ledger_error(error: OSError, folder: Path) -> LedgerError:
    """One of ours for one of the system's; the caller raises it from that."""
    said = error.strerror or str(error)
    if error.errno in _FULL:
        return LedgerFullError(
            f"the ledger in {str(folder)!r} cannot be written: {said}",
            hint="make room on that disk, or raise the quota; nothing has been lost",
        )
    if error.errno in _ACCESS:
        return LedgerAccessError(
            f"the ledger in {str(folder)!r} cannot be used: {said}",
            hint="this user needs to read and write the folder, on a disk mounted read-write",
        )
    return LedgerUnreachableError(
        f"the ledger in {str(folder)!r} is out of reach: {said}",
        hint="is the disk mounted, and does its server answer?",
    )


def _write_all(descriptor: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(descriptor, view) :]


def _is_same(one: Path, other: Path) -> bool:
    try:
        return os.path.samestat(one.stat(), other.stat())
    except OSError as error:
        if error.errno in _GONE:
            return False
        raise


def _nothing(_step: str) -> None:
    pass
