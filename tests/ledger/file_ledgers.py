"""Writers of a ledger in files: in another process, and what they leave in its folder.

What must not be here: a test.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from rallypoint.ledger.contract import Swapped
from rallypoint.ledger.file.ledger import FileLedger

CHILD = Path(__file__).with_name("file_child.py")
SRC = Path(__file__).parents[2] / "src"


@contextlib.contextmanager
def child_process(folder: Path, *arguments: str) -> Iterator[subprocess.Popen[str]]:
    child = subprocess.Popen(
        [sys.executable, str(CHILD), str(folder), *arguments],
        env={**os.environ, "PYTHONPATH": str(SRC)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        yield child
    finally:
        child.kill()
        child.communicate()


async def swap_on(ledger: FileLedger, key: str, times: int, version: int | None = None) -> int:
    for number in range(times):
        outcome = await ledger.swap(key, version, b"%d" % number)
        assert isinstance(outcome, Swapped), outcome
        version = outcome.version
    assert version is not None
    return version


def version_files(folder: Path) -> list[Path]:
    """The files of all registers' versions, oldest first."""
    return sorted(path for path in folder.glob("ledger-*/registers/*/*/*") if path.is_file())


def left_over(folder: Path) -> list[str]:
    """The content of the folders that are empty between calls."""
    found = [*folder.glob("ledger-*/tmp/*"), *folder.glob("ledger-*/trash/*")]
    return [str(path) for path in found]
