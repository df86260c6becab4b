"""How much memory this process may use: its cgroup's limit, or the machine's."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Final

import msgspec

from rallypoint.core.budget import BYTES_MIN

EMBEDDED_BYTES_MAX: Final = 1024**3
"""The default limit for a coordinator inside a training process, which needs the memory itself. It
is enough for the largest store of a round (256 MiB) and thousands of nodes.
"""
_NO_LIMIT_FROM: Final = 1 << 60
"""Version 1 of cgroups writes a little less than 2^63 for "no limit"."""


class MemoryLimit(msgspec.Struct, frozen=True):
    """A limit in bytes, and its source as text."""

    bytes: int
    source: str


def memory_limit(root: Path = Path("/")) -> MemoryLimit:
    """The smallest limit of this process's cgroup and those around it, else the machine's memory.

    `root`: where /proc and the cgroups' file systems are.
    """
    machine = MemoryLimit(_machine_bytes(), "this machine's memory")
    found = [MemoryLimit(size, str(path)) for path, size in _cgroup_limits(root)]
    return min([machine, *found], key=lambda limit: limit.bytes)


def default_budget(*, is_embedded: bool) -> MemoryLimit:
    """How many bytes a coordinator keeps for its peers by default: half of the limit.

    The rest is for the program itself, for temporary data of single messages, and for the kernel's
    buffers of the process's sockets.
    """
    limit = memory_limit()
    half = max(BYTES_MIN, limit.bytes // 2)
    if is_embedded and half > EMBEDDED_BYTES_MAX:
        return MemoryLimit(EMBEDDED_BYTES_MAX, "the maximum inside a node")
    return MemoryLimit(half, f"half of {limit.source}")


def _machine_bytes() -> int:
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (ValueError, OSError):
        return 2 * EMBEDDED_BYTES_MAX  # the system does not report it


def _cgroup_limits(root: Path) -> Iterator[tuple[Path, int]]:
    for mount, path, name in _cgroups(root):
        for folder in (path, *path.parents):
            size = _limit_in(root, mount / folder / name)
            if size is not None:
                yield Path("/") / mount / folder / name, size


def _cgroups(root: Path) -> Iterator[tuple[PurePosixPath, PurePosixPath, str]]:
    """The cgroups of both versions, as (mount, path below it, file with the limit).

    Some systems mount both versions, and only one of them limits memory.
    """
    own = _own_cgroups(root)
    for where, mounted, kind, options in _mounts(root):
        if kind == "cgroup2" and "" in own:
            yield where, _below(own[""], mounted), "memory.max"
        elif kind == "cgroup" and "memory" in options and "memory" in own:
            yield where, _below(own["memory"], mounted), "memory.limit_in_bytes"


def _own_cgroups(root: Path) -> dict[str, PurePosixPath]:
    """By controller; "" for version 2. See cgroups(7)."""
    own = {}
    for line in _lines(root, "proc/self/cgroup"):
        _, _, rest = line.partition(":")
        controllers, separator, path = rest.partition(":")
        for each in controllers.split(",") if separator else ():
            own[each] = PurePosixPath(path)
    return own


def _mounts(root: Path) -> Iterator[tuple[PurePosixPath, PurePosixPath, str, list[str]]]:
    """The mounts as (folder, root within the file system, kind, options). See proc(5)."""
    for line in _lines(root, "proc/self/mountinfo"):
        before, separator, after = line.partition(" - ")
        fields, more = before.split(), after.split()
        if separator and len(fields) >= 5 and len(more) >= 3:
            where = PurePosixPath(fields[4].replace("\\040", " ")).relative_to("/")
            yield where, PurePosixPath(fields[3]), more[0], more[2].split(",")


def _below(path: PurePosixPath, mounted: PurePosixPath) -> PurePosixPath:
    """The path of a cgroup below its mount. A container often sees only its own cgroup."""
    if ".." in path.parts or not path.is_relative_to(mounted):
        return PurePosixPath()
    return path.relative_to(mounted)


def _limit_in(root: Path, path: PurePosixPath) -> int | None:
    text = next(iter(_lines(root, path)), "").strip()
    size = int(text) if text.isascii() and text.isdigit() else _NO_LIMIT_FROM
    return size if 0 < size < _NO_LIMIT_FROM else None


def _lines(root: Path, path: PurePosixPath | str) -> list[str]:
    try:
        return (root / path).read_text(errors="replace").splitlines()
    except OSError:
        return []  # not Linux, no cgroups, or no permission
