"""Tests whether a folder's file system can hold a ledger.

Not every file system has hard links, exclusive creation and fsync, and an NFS client may be
configured not to ask for changes. Such a folder is refused before a ledger is made in it.
"""

from __future__ import annotations

import contextlib
import errno
import os
from pathlib import Path
from typing import Final

from rallypoint import runtime
from rallypoint.errors import LedgerAccessError, LedgerFullError, LedgerUnfitError
from rallypoint.ledger.file.disk import FILE_MODE
from rallypoint.ledger.file.file_system import FileSystem

PREFIX: Final = ".rallypoint-"
"""The beginning of the names of files that are made for a trial and removed at once."""
_FREE_BYTES_MIN: Final = 1 << 20
_NO_LINKS: Final = frozenset(
    {errno.EPERM, errno.ENOSYS, errno.EOPNOTSUPP, errno.EMLINK, errno.EXDEV, errno.EINVAL}
)


def probe(root: Path, system: FileSystem) -> None:
    """Test whether the folder's file system can hold a ledger.

    Raises LedgerUnfitError, LedgerAccessError, LedgerFullError, and OSError for errors of the
    system.
    """
    _refuse_mount(root, system)
    _refuse_disk(root, system)
    one = root / f"{PREFIX}{runtime.token_hex(8)}"
    other = one.with_name(f"{one.name}-link")
    try:
        _try_writing(one, system)
        _try_links(one, other, system)
        _try_folders(root, system)
    finally:
        for path in (one, other):
            with contextlib.suppress(OSError):
                system.unlink(path)


def _try_writing(path: Path, system: FileSystem) -> None:
    descriptor = system.create(path, FILE_MODE)
    try:
        system.write(descriptor, b"probe")
        try:
            system.sync(descriptor)
        except OSError as error:
            if error.errno in (errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP):
                raise _unfit(path.parent, "cannot force a file to the disk (fsync)") from error
            raise
    finally:
        system.close(descriptor)
    try:
        system.close(system.create(path, FILE_MODE))
    except FileExistsError:
        return
    raise _unfit(path.parent, "lets two processes create the same file exclusively (O_EXCL)")


def _try_links(one: Path, other: Path, system: FileSystem) -> None:
    try:
        system.link(one, other)
    except OSError as error:
        if error.errno in _NO_LINKS:
            raise _unfit(one.parent, f"has no hard links ({error.strerror})") from error
        raise
    status = system.status(one)
    if not os.path.samestat(status, system.status(other)) or status.st_nlink != 2:
        raise _unfit(one.parent, "does not show two names of one file as the same file")
    try:
        system.link(one, other)
    except FileExistsError:
        return
    raise _unfit(one.parent, "lets a link replace an existing file")


def _try_folders(root: Path, system: FileSystem) -> None:
    descriptor = system.open_folder(root)
    try:
        system.sync(descriptor)
    except OSError as error:
        if error.errno in (errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP, errno.EBADF):
            raise _unfit(root, "cannot force the names in a folder to the disk") from error
        raise
    finally:
        system.close(descriptor)


def _refuse_disk(root: Path, system: FileSystem) -> None:
    space = system.space(root)
    if space.is_read_only:
        raise LedgerAccessError(
            f"{str(root)!r} is on a disk mounted read-only", hint="mount it read-write"
        )
    if space.free_bytes < _FREE_BYTES_MIN:
        raise LedgerFullError(
            f"the disk of {str(root)!r} has {space.free_bytes} bytes free",
            hint=f"a ledger needs at least {_FREE_BYTES_MIN}; make room, or name another folder",
        )


def _refuse_mount(root: Path, system: FileSystem) -> None:
    """Refuse an NFS mount whose client does not ask for changes: it would read old folders."""
    options = system.mount_options(root)
    if "nocto" in options:
        raise _unfit(root, "is mounted with 'nocto', so processes would not see each other's files")


def _unfit(root: Path, what: str) -> LedgerUnfitError:
    return LedgerUnfitError(
        f"{str(root)!r} {what}",
        hint="use a local disk or an NFS folder mounted as usual, or an etcd:// ledger",
    )
