"""The folder of a file ledger: how it is made and recognised, and which folders are refused.

<folder>/rallypoint-ledger       the marker: a sealed record with the ledger_id, made once
<folder>/ledger-<ledger_id>/     everything else, so that no process writes into another ledger
           index/                which folder each register and log has: index.py
           registers/  logs/     those folders; each name is used once
           tmp/  trash/          temporary files; folders that were removed
"""

from __future__ import annotations

import contextlib
import stat
from pathlib import Path
from typing import Final

import msgspec

from rallypoint import runtime
from rallypoint.errors import (
    LedgerAccessError,
    LedgerCorruptError,
    LedgerForeignError,
    LedgerReplacedError,
    LedgerUnreachableError,
)
from rallypoint.ledger import record_format
from rallypoint.ledger.file import probe
from rallypoint.ledger.file.disk import Disk, LinkResult
from rallypoint.ledger.file.index import begin_index, is_used
from rallypoint.ledger.marker import Marker, decode, new_marker

MARKER: Final = "rallypoint-ledger"
_INSIDE: Final = ("index", "registers", "logs", "tmp", "trash")
_LEDGER: Final = "ledger-"


def open_folder(root: Path, disk: Disk) -> str:
    """The id of the ledger in this folder. If there is none, a new ledger is made.

    Raises LedgerError, and OSError for errors of the system.
    """
    _refuse_place(root, disk)
    disk.make_folder(root)
    marker = _checked(root, disk)
    if marker is None:
        _make(root, disk)
        marker = _marker(root, disk)
    if marker is None:
        raise LedgerUnreachableError(
            f"the marker of the new ledger in {str(root)!r} has disappeared",
            hint="another process may have removed it: look at the folder, and start again",
        )
    # A power failure must not take the folder or its marker away from a ledger in use, and the
    # process that made them may have died before it forced them to the disk.
    disk.sync(root)
    with contextlib.suppress(
        PermissionError
    ):  # Another user has made a parent that we cannot read.
        disk.sync(root.parent)
    place = root / f"{_LEDGER}{marker.ledger_id}"
    _refuse_shared(place, disk)
    # An NFS client that looked while another host made the ledger remembers absent folders. To list
    # them makes it ask again.
    disk.names(place)
    missing = [name for name in _INSIDE if not disk.is_folder(place / name)]
    if missing:
        raise LedgerCorruptError(
            f"the ledger in {str(root)!r} has lost its {', '.join(missing)}",
            hint="restore the whole folder from a backup, or name another folder for a new ledger",
        )
    return marker.ledger_id


def find(root: Path, disk: Disk) -> str:
    """The id of the ledger in this folder; "" if there is none, and `open_folder` can make one.

    Makes nothing that stays. Raises as `open_folder`.
    """
    _refuse_place(root, disk)
    marker = _checked(root, disk) if disk.exists(root) else None
    return "" if marker is None else marker.ledger_id


def _refuse_place(root: Path, disk: Disk) -> None:
    if not disk.is_folder(root.parent):
        # No parent is made, because a disk that is not mounted must not look like an empty one.
        raise LedgerUnreachableError(
            f"there is no folder {str(root.parent)!r} for the ledger {root.name!r}",
            hint="is the disk mounted? Rallypoint creates only the last folder; create its parents",
        )
    if disk.exists(root) and not disk.is_folder(root):
        raise LedgerForeignError(
            f"{str(root)!r} is not a folder", hint="name a folder that is empty or does not exist"
        )


def _checked(root: Path, disk: Disk) -> Marker | None:
    """The marker of a folder that can hold a ledger; None if it has no ledger yet."""
    _refuse_shared(root, disk)
    marker = _marker(root, disk)
    if marker is None:
        _refuse_foreign(root, disk)
    probe.probe(root, disk.system)
    return marker


def place_of(root: Path, ledger_id: str) -> Path:
    """The folder of this ledger's files."""
    return root / f"{_LEDGER}{ledger_id}"


def replaced(root: Path, ledger_id: str, disk: Disk) -> LedgerReplacedError | None:
    """The error if the folder now has another ledger; otherwise None."""
    with contextlib.suppress(OSError, LedgerCorruptError):
        marker = _marker(root, disk)
        if marker is not None and marker.ledger_id != ledger_id:
            return LedgerReplacedError(
                f"{str(root)!r} held ledger {ledger_id} and now holds ledger {marker.ledger_id}",
                hint="this process belongs to the earlier ledger: start it again",
            )
    return None


def _marker(root: Path, disk: Disk) -> Marker | None:
    path = root / MARKER
    try:
        sealed = disk.content(path)
    except FileNotFoundError:
        return None
    if not record_format.is_sealed(sealed) and sealed:
        raise LedgerForeignError(
            f"{str(path)!r} is not a marker of Rallypoint", hint="name another folder"
        )
    opened = record_format.unseal(sealed, str(path))
    try:
        return decode(opened.value)
    except msgspec.MsgspecError as error:
        raise LedgerCorruptError(
            f"{path} does not name a ledger: {error}", hint=record_format.DAMAGED_HINT
        ) from error


def _refuse_shared(folder: Path, disk: Disk) -> None:
    """Refuse a folder in which another user could replace or remove the ledger.

    A folder with the sticky bit, like /tmp, is allowed: only the owner of a file can remove it.
    """
    system = disk.system
    status = system.status(folder)
    if status.st_uid not in (0, system.user()) and system.user() != 0:
        raise LedgerAccessError(
            f"{str(folder)!r} belongs to another user (uid {status.st_uid})",
            hint="name a folder of your own, or one that does not exist",
        )
    may_write = status.st_mode & (stat.S_IWGRP | stat.S_IWOTH)
    if may_write == stat.S_IWGRP and system.is_own_group(status.st_gid):
        return
    if may_write and not status.st_mode & stat.S_ISVTX:
        raise LedgerAccessError(
            f"other users may write into {str(folder)!r} (mode {stat.S_IMODE(status.st_mode):o})",
            hint=f"chmod go-w {folder}, or name a folder that does not exist",
        )


def _refuse_foreign(root: Path, disk: Disk) -> None:
    found = sorted(disk.names(root))
    foreign = [name for name in found if not name.startswith((_LEDGER, probe.PREFIX))]
    if foreign and MARKER not in foreign:
        more = ", ..." if len(foreign) > 3 else ""
        raise LedgerForeignError(
            f"{str(root)!r} is not empty and holds no ledger: {', '.join(foreign[:3])}{more}",
            hint="name an empty folder, or one that does not exist",
        )
    for name in found:
        # A ledger that has lost its marker must not be overwritten. A folder whose ledger was
        # never completely made has never been written to.
        if name.startswith(_LEDGER) and is_used(root / name, disk):
            raise LedgerCorruptError(
                f"{str(root)!r} holds {name}, but its marker {MARKER!r} is missing",
                hint="restore the folder from a backup, or name another one for a new ledger",
            )


def _make(root: Path, disk: Disk) -> None:
    """Make a new ledger. If another process does it at the same time, one of the two stays."""
    ledger_id, marker = new_marker("file")
    place = place_of(root, ledger_id)
    disk.make_folder(place)
    for name in _INSIDE[1:]:
        disk.make_folder(place / name)
    begin_index(place, disk)
    disk.sync(place)
    temporary = root / f"{probe.PREFIX}{runtime.token_hex(8)}"
    disk.write(temporary, marker)
    linked = disk.link(temporary, root / MARKER)
    disk.sync(root)
    disk.forget(temporary)
    if linked is not LinkResult.LINKED:
        disk.remove(place)
