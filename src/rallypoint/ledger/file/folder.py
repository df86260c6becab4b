"""A folder that holds a ledger: made, recognised, and tried out before anybody relies on it.

<folder>/rallypoint-ledger       the marker: an envelope with the ledger_id, created once
<folder>/ledger-<ledger_id>/     all the rest, so that nobody writes into another ledger
           index/                which folder each register and log has: index.py
           registers/  logs/     those folders, each name used once
           tmp/  trash/          files before their link; folders after their use
"""

from __future__ import annotations

import contextlib
import errno
import grp
import os
import pwd
import secrets
import stat
from pathlib import Path
from typing import Final

import msgspec

from rallypoint.errors import (
    LedgerAccessError,
    LedgerCorruptError,
    LedgerForeignError,
    LedgerFullError,
    LedgerReplacedError,
    LedgerUnfitError,
    LedgerUnreachableError,
)
from rallypoint.ledger import record_format
from rallypoint.ledger.file.disk import FILE_MODE, Disk, LinkResult, content, names
from rallypoint.ledger.file.index import begin_index, is_used

MARKER: Final = "rallypoint-ledger"
_INSIDE: Final = ("index", "registers", "logs", "tmp", "trash")
_LEDGER: Final = "ledger-"
_PROBE: Final = ".rallypoint-"
_FREE_BYTES_MIN: Final = 1 << 20
_NO_LINKS: Final = frozenset(
    {errno.EPERM, errno.ENOSYS, errno.EOPNOTSUPP, errno.EMLINK, errno.EXDEV, errno.EINVAL}
)


class Marker(msgspec.Struct, frozen=True):
    """What the marker file says."""

    ledger_id: str
    engine: str = "file"


def open_folder(root: Path, disk: Disk) -> str:
    """The id of the ledger in this folder; a new one is made where there is none.

    Raises LedgerError, or OSError for what the system says in the middle of it.
    """
    if not root.parent.is_dir():
        # Made only below what is there: a disk that is not mounted must not look like an empty one.
        raise LedgerUnreachableError(
            f"there is no folder {str(root.parent)!r} for the ledger {root.name!r}",
            hint="is the disk mounted? The last folder of the path is made, those above it are not",
        )
    if root.exists() and not root.is_dir():
        raise LedgerForeignError(
            f"{str(root)!r} is no folder", hint="name a folder, empty or not there yet"
        )
    disk.make_folder(root)
    _refuse_shared(root)
    marker = _marker(root)
    if marker is None:
        _refuse_foreign(root)
    probe(root)
    if marker is None:
        _make(root, disk)
        marker = _marker(root)
    if marker is None:
        raise LedgerUnreachableError(f"the marker of a new ledger in {str(root)!r} is gone again")
    place = root / f"{_LEDGER}{marker.ledger_id}"
    _refuse_shared(place)
    missing = [name for name in _INSIDE if not (place / name).is_dir()]
    if missing:
        raise LedgerCorruptError(
            f"the ledger in {str(root)!r} has lost its {', '.join(missing)}",
            hint="restore the whole folder from a backup; or name another folder to begin anew",
        )
    return marker.ledger_id


def place_of(root: Path, ledger_id: str) -> Path:
    """Where this ledger's files are."""
    return root / f"{_LEDGER}{ledger_id}"


def replaced(root: Path, ledger_id: str) -> LedgerReplacedError | None:
    """An error if the folder holds another ledger by now."""
    with contextlib.suppress(OSError, LedgerCorruptError):
        marker = _marker(root)
        if marker is not None and marker.ledger_id != ledger_id:
            return LedgerReplacedError(
                f"{str(root)!r} held ledger {ledger_id}, and now holds {marker.ledger_id}",
                hint="this process belongs to the earlier ledger: start it again",
            )
    return None


def _marker(root: Path) -> Marker | None:
    path = root / MARKER
    try:
        sealed = content(path)
    except FileNotFoundError:
        return None
    if not record_format.is_sealed(sealed) and sealed:
        raise LedgerForeignError(
            f"{str(path)!r} is not a marker of Rallypoint's", hint="name another folder"
        )
    opened = record_format.unseal(sealed, str(path))
    try:
        return msgspec.msgpack.decode(opened.value, type=Marker)
    except msgspec.MsgspecError as error:
        raise LedgerCorruptError(f"{path} does not name a ledger: {error}") from error


def _refuse_shared(folder: Path) -> None:
    """A folder in which another user could put a ledger of his own, or take this one away.

    Not one with the sticky bit, as /tmp has it: there nobody can touch what is another's.
    """
    status = folder.stat()
    if status.st_uid not in (0, os.geteuid()) and os.geteuid() != 0:
        raise LedgerAccessError(
            f"{str(folder)!r} belongs to another user (uid {status.st_uid})",
            hint="name a folder of your own, or one that is not there yet",
        )
    may_write = status.st_mode & (stat.S_IWGRP | stat.S_IWOTH)
    if may_write == stat.S_IWGRP and _is_own_group(status.st_gid):
        return
    if may_write and not status.st_mode & stat.S_ISVTX:
        raise LedgerAccessError(
            f"other users may write into {str(folder)!r} (mode {stat.S_IMODE(status.st_mode):o})",
            hint=f"chmod go-w {folder}, or name a folder that is not there yet",
        )


def _is_own_group(group: int) -> bool:
    """Whether it is the group of this user alone, as many systems give each user one."""
    with contextlib.suppress(KeyError):
        return grp.getgrgid(group).gr_name == pwd.getpwuid(os.geteuid()).pw_name
    return False


def _refuse_foreign(root: Path) -> None:
    found = sorted(names(root))
    foreign = [name for name in found if not name.startswith((_LEDGER, _PROBE))]
    if foreign and MARKER not in foreign:
        more = ", ..." if len(foreign) > 3 else ""
        raise LedgerForeignError(
            f"{str(root)!r} is not empty and holds no ledger: {', '.join(foreign[:3])}{more}",
            hint="name an empty folder, or one that is not there yet",
        )
    for name in found:
        # A ledger of which only the marker is lost must not be taken for none. One whose making
        # was cut off has never been written to.
        if name.startswith(_LEDGER) and is_used(root / name):
            raise LedgerCorruptError(
                f"{str(root)!r} holds {name}, and its marker {MARKER!r} is missing",
                hint="restore the folder from a backup, or name another one to begin anew",
            )


def _make(root: Path, disk: Disk) -> None:
    """A new ledger; if another process makes one at the same time, one of the two counts."""
    ledger_id = secrets.token_hex(8)
    place = place_of(root, ledger_id)
    disk.make_folder(place)
    for name in _INSIDE[1:]:
        disk.make_folder(place / name)
    begin_index(place, disk)
    disk.sync(place)
    temporary = root / f"{_PROBE}{secrets.token_hex(8)}"
    marker = msgspec.msgpack.encode(Marker(ledger_id))
    disk.write(temporary, record_format.seal(marker, record_format.new_nonce()))
    linked = disk.link(temporary, root / MARKER)
    disk.sync(root)
    disk.forget(temporary)
    if linked is not LinkResult.LINKED:
        disk.remove(place)


# -- the probe ---------------------------------------------------------------------------------


def probe(root: Path) -> None:
    """Find out by trying whether the folder can give what a ledger needs.

    Raises LedgerUnfitError, LedgerFullError, or OSError where the system refuses.
    """
    _refuse_mount(root)
    _refuse_disk(root)
    one = root / f"{_PROBE}{secrets.token_hex(8)}"
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
    raise _unfit(path.parent, "lets two processes create one file exclusively (O_EXCL)")


def _try_links(one: Path, other: Path) -> None:
    try:
        os.link(one, other)
    except OSError as error:
        if error.errno in _NO_LINKS:
            raise _unfit(one.parent, f"has no hard links ({error.strerror})") from error
        raise
    if not os.path.samestat(one.stat(), other.stat()) or one.stat().st_nlink != 2:
        raise _unfit(one.parent, "does not show two names of one file as one file")
    try:
        os.link(one, other)
    except FileExistsError:
        return
    raise _unfit(one.parent, "lets a link replace a file that is there")


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
            hint=f"a ledger needs {_FREE_BYTES_MIN} at least; make room, or name another folder",
        )


def _refuse_mount(root: Path) -> None:
    """An NFS client that was told not to ask for news reads folders that have long changed."""
    options = _mount_options(root)
    if "nocto" in options:
        raise _unfit(root, "is mounted with 'nocto', so processes would not see each other's files")


def _mount_options(root: Path) -> list[str]:
    """The options of the mount that a folder is on, where the system tells (Linux)."""
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
