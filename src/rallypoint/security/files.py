"""Whether files with tokens or certificates were replaced, or may be used by others now."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path


def signature(path: Path) -> tuple[tuple[int, ...], ...] | None:
    """What differs once the file, the directory, or a file in it was replaced, written, or given
    another owner or other rights.

    None if it is missing or cannot be looked at. It may block as long as a file system does.
    """
    try:
        files = [path, *sorted(path.iterdir())] if path.is_dir() else [path]
        found = [each.stat() for each in files]
    except (OSError, ValueError):
        return None
    # chmod and chown change only the last of these. A file that was refused may count after them.
    return tuple((each.st_ino, each.st_size, each.st_mtime_ns, each.st_ctime_ns) for each in found)


def signatures(paths: Iterable[Path]) -> tuple[object, ...] | None:
    """The `signature` of each. None if one is missing."""
    found = [signature(each) for each in paths]
    return None if None in found else tuple(found)
