"""Tests whether a folder's file system can hold a ledger.

Not every file system has hard links, exclusive creation and fsync, and an NFS client may be
configured not to ask for changes. Such a folder is refused before a ledger is made in it.
"""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
from pathlib import Path
from typing import Final

from rallypoint.errors import LedgerAccessError, LedgerFullError, LedgerUnfitError
from rallypoint.ledger.file.disk import FILE_MODE

PREFIX: Final = ".rallypoint-"
"""The beginning of the names of files that are made for a trial and removed at once."""
_FREE_BYTES_MIN: Final = 1 << 20
_NO_LINKS: Final = frozenset(
    {errno.EPERM, errno.ENOSYS, errno.EOPNOTSUPP, errno.EMLINK, errno.EXDEV, errno.EINVAL}
)


def probe(root: Path) -> None:
    """Test whether the folder's file system can hold a ledger.

    Raises LedgerUnfitError, LedgerAccessError, LedgerFullError, and OSError for errors of the
    system.
    """
    _refuse_mount(root)
    _refuse_disk(root)
    one = root / f"{PREFIX}{secrets.token_hex(8)}"
    other = one.with_name(f"{one.name}-link")
    try:
        _try_writing(one)
        _try_links(one, other)
        _try_folders(root)
    finally:
        for path in (one, other):
            with contextlib.suppress(OSError):
                path.unlink()


def _try_writing(path: Path) -> None:
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
    descriptor = os.open(path, flags, FILE_MODE)
    try:
        os.write(descriptor, b"probe")
        try:
            os.fsync(descriptor)
        except OSError as error:
            if error.errno in (errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP):
                raise _unfit(path.parent, "cannot force a file to the disk (fsync)") from error
            raise
    finally:
        os.close(descriptor)
    try:
        os.close(os.open(path, flags, FILE_MODE))
    except FileExistsError:
        return
    raise _unfit(path.parent, "lets two processes create the same file exclusively (O_EXCL)")


def _try_links(one: Path, other: Path) -> None:
    try:
        os.link(one, other)
    except OSError as error:
        if error.errno in _NO_LINKS:
            raise _unfit(one.parent, f"has no hard links ({error.strerror})") from error
        raise
    if not os.path.samestat(one.stat(), other.stat()) or one.stat().st_nlink != 2:
        raise _unfit(one.parent, "does not show two names of one file as the same file")
    try:
        os.link(one, other)
    except FileExistsError:
        return
    raise _unfit(one.parent, "lets a link replace an existing file")


def _try_folders(root: Path) -> None:
    descriptor = os.open(root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno in (errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP, errno.EBADF):
            raise _unfit(root, "cannot force the names in a folder to the disk") from error
        raise
    finally:
        os.close(descriptor)


def _refuse_disk(root: Path) -> None:
    space = os.statvfs(root)
    if space.f_flag & os.ST_RDONLY:
        raise LedgerAccessError(
            f"{str(root)!r} is on a disk mounted read-only", hint="mount it read-write"
        )
    if space.f_bavail * space.f_frsize < _FREE_BYTES_MIN:
        raise LedgerFullError(
            f"the disk of {str(root)!r} has {space.f_bavail * space.f_frsize} bytes free",
            hint=f"a ledger needs at least {_FREE_BYTES_MIN}; make room, or name another folder",
        )


def _refuse_mount(root: Path) -> None:
    """Refuse an NFS mount whose client does not ask for changes: it would read old folders."""
    options = _mount_options(root)
    if "nocto" in options:
        raise _unfit(root, "is mounted with 'nocto', so processes would not see each other's files")


def _mount_options(root: Path) -> list[str]:
    """The options of the mount with this folder, where the system reports them (Linux)."""
    best, options = "", ""
    resolved = str(root.resolve())
    with contextlib.suppress(OSError):
        for line in Path("/proc/self/mounts").read_text(errors="replace").splitlines():
            fields = line.split(" ")
            if len(fields) < 4:
                continue
            point = fields[1].replace("\\040", " ").rstrip("/")
            if (resolved == point or resolved.startswith(f"{point}/")) and len(point) >= len(best):
                best, options = point, fields[3]
    return options.split(",")


def _unfit(root: Path, what: str) -> LedgerUnfitError:
    return LedgerUnfitError(
        f"{str(root)!r} {what}",
        hint="use a local disk or an NFS folder mounted as usual, or an etcd:// ledger",
    )
