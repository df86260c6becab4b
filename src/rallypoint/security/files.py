"""Whether files with tokens or certificates were replaced."""

from __future__ import annotations

from pathlib import Path


def signature(path: Path) -> tuple[tuple[int, int, int], ...] | None:
    """What differs once the file, or a file of the directory, was replaced or written.

    None if it is missing or cannot be looked at. It may block as long as a file system does.
    """
    try:
        files = sorted(path.iterdir()) if path.is_dir() else [path]
        found = [each.stat() for each in files]
    except (OSError, ValueError):
        return None
    return tuple((each.st_ino, each.st_size, each.st_mtime_ns) for each in found)
