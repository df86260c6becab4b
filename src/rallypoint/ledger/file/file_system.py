"""The calls of the operating system that the file ledger makes. `POSIX` makes them.

This is the seam of the file ledger: a simulator has a file system of its own. All calls block, and
raise OSError with the system's errno. This file must not decide anything: what a call's outcome
means is known in `disk`.
"""

from __future__ import annotations

import contextlib
import grp
import os
import pwd
from pathlib import Path
from typing import Final, Protocol

import msgspec

_NEW_FILE: Final = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
_FOLDER: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC


class Space(msgspec.Struct, frozen=True):
    """What a file system has left. `free_bytes`: for this user."""

    free_bytes: int
    is_read_only: bool


class FileSystem(Protocol):
    """See above. A descriptor is an open file or folder. Several threads make calls at a time."""

    def create(self, path: Path, mode: int) -> int:
        """Make a new file and open it for writing. Raises FileExistsError if the name is taken."""

    def write(self, descriptor: int, data: bytes | memoryview) -> int:
        """Write at the end; the number of bytes that were written, which may be fewer."""

    def open_folder(self, path: Path) -> int:
        """Open a folder, so that it can be forced to the disk."""

    def sync(self, descriptor: int) -> None:
        """Force a file's content, or the names in a folder, to the disk."""

    def close(self, descriptor: int) -> None:
        """Close it."""

    def link(self, path: Path, name: Path) -> None:
        """Give a file one more name. Raises FileExistsError if that is taken."""

    def rename(self, path: Path, name: Path) -> None:
        """Give a folder another name in one step. An empty folder of that name is replaced."""

    def unlink(self, path: Path) -> None:
        """Remove a name of a file."""

    def make_folder(self, path: Path, mode: int) -> None:
        """Make a folder. Raises FileExistsError if the name is taken."""

    def remove_folder(self, path: Path) -> None:
        """Remove an empty folder."""

    def read(self, path: Path) -> bytes:
        """Open a file; all bytes in it."""

    def names(self, path: Path) -> list[str]:
        """Open a folder; the names in it, in any order."""

    def entries(self, path: Path) -> list[tuple[str, bool]]:
        """Open a folder; each name in it, and whether it is a folder's."""

    def status(self, path: Path) -> os.stat_result:
        """The type, owner, mode, number of names, size and times of a file or folder.

        Times are those of the disk's clock, which may be another machine's.
        """

    def space(self, path: Path) -> Space:
        """What the file system with this folder has left."""

    def mount_options(self, path: Path) -> list[str]:
        """The options of the mount with this folder, where the system reports them (Linux)."""

    def user(self) -> int:
        """The id of the user whose permissions count."""

    def is_own_group(self, group: int) -> bool:
        """Whether this user is the only member. Many systems give each user a group."""


class PosixFileSystem:
    """The system's own file system."""

    def create(self, path: Path, mode: int) -> int:
        """See FileSystem."""
        return os.open(path, _NEW_FILE, mode)

    def write(self, descriptor: int, data: bytes | memoryview) -> int:
        """See FileSystem."""
        return os.write(descriptor, data)

    def open_folder(self, path: Path) -> int:
        """See FileSystem."""
        return os.open(path, _FOLDER)

    def sync(self, descriptor: int) -> None:
        """See FileSystem."""
        os.fsync(descriptor)

    def close(self, descriptor: int) -> None:
        """See FileSystem."""
        os.close(descriptor)

    def link(self, path: Path, name: Path) -> None:
        """See FileSystem."""
        os.link(path, name)

    def rename(self, path: Path, name: Path) -> None:
        """See FileSystem."""
        path.rename(name)

    def unlink(self, path: Path) -> None:
        """See FileSystem."""
        path.unlink()

    def make_folder(self, path: Path, mode: int) -> None:
        """See FileSystem."""
        path.mkdir(mode)

    def remove_folder(self, path: Path) -> None:
        """See FileSystem."""
        path.rmdir()

    def read(self, path: Path) -> bytes:
        """See FileSystem."""
        return path.read_bytes()

    def names(self, path: Path) -> list[str]:
        """See FileSystem."""
        return os.listdir(path)  # noqa: PTH208 - for its speed

    def entries(self, path: Path) -> list[tuple[str, bool]]:
        """See FileSystem."""
        with os.scandir(path) as found:
            return [(each.name, each.is_dir(follow_symlinks=False)) for each in found]

    def status(self, path: Path) -> os.stat_result:
        """See FileSystem."""
        return os.stat(path)  # noqa: PTH116 - for its speed

    def space(self, path: Path) -> Space:
        """See FileSystem."""
        found = os.statvfs(path)
        return Space(found.f_bavail * found.f_frsize, bool(found.f_flag & os.ST_RDONLY))

    def mount_options(self, path: Path) -> list[str]:
        """See FileSystem."""
        best, options = "", ""
        resolved = str(path.resolve())
        with contextlib.suppress(OSError):
            for line in Path("/proc/self/mounts").read_text(errors="replace").splitlines():
                fields = line.split(" ")
                if len(fields) < 4:
                    continue
                point = fields[1].replace("\\040", " ").rstrip("/")
                holds = resolved == point or resolved.startswith(f"{point}/")
                if holds and len(point) >= len(best):
                    best, options = point, fields[3]
        return options.split(",")

    def user(self) -> int:
        """See FileSystem."""
        return os.geteuid()

    def is_own_group(self, group: int) -> bool:
        """See FileSystem."""
        with contextlib.suppress(KeyError):
            return grp.getgrgid(group).gr_name == pwd.getpwuid(os.geteuid()).pw_name
        return False


POSIX: Final = PosixFileSystem()
