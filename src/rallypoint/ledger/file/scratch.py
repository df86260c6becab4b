"""Where a file ledger keeps files before they have their name, and folders after their use.

`tmp/` has files that are written but not linked yet, `trash/` has folders that were moved away in
one step and are being emptied. Nothing that counts is ever in either.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from rallypoint.ledger import record_format
from rallypoint.ledger.file.disk import Disk, names

_STALE_S: Final = 3600.0
"""A file that was not linked for so long is removed, by the disk's own clock (R9)."""


class Scratch:
    """The `tmp/` and `trash/` of one ledger. Any number of threads and processes use them."""

    def __init__(self, place: Path, disk: Disk) -> None:
        self.temporaries = place / "tmp"
        self.trash = place / "trash"
        self._disk = disk

    @contextlib.contextmanager
    def temporary(self, value: bytes) -> Iterator[Path]:
        """A file with this value in a sealed record, on the disk and ready to be linked."""
        path = self.temporaries / os.urandom(12).hex()
        try:
            self._disk.write(path, record_format.seal(value, record_format.new_nonce()))
            yield path
        finally:
            self._disk.forget(path)

    def move_away(self, folder: Path) -> None:
        """Remove a folder: nobody sees a part of it. It may be gone already."""
        self._disk.move_away(folder, self.trash)

    def sweep(self) -> None:
        """Remove what processes that crashed have left here."""
        for name in names(self.trash):
            self._disk.remove(self.trash / name)
        with self.temporary(b"") as fresh:
            now_s = fresh.stat().st_mtime
            for name in names(self.temporaries):
                path = self.temporaries / name
                with contextlib.suppress(OSError):
                    if now_s - path.stat().st_mtime <= _STALE_S:
                        continue
                    if path.is_dir():
                        self.move_away(path)
                    else:
                        path.unlink()
