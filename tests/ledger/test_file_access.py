"""The ledger in files: only its own user can read and write it."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

import pytest

from rallypoint.errors import (
    LedgerAccessError,
)
from rallypoint.ledger.contract import Created
from rallypoint.ledger.file import folder as file_folder
from rallypoint.ledger.file.disk import Disk
from rallypoint.ledger.file.file_system import PosixFileSystem
from rallypoint.ledger.file.ledger import FileLedger
from tests.ledger.file_ledgers import swap_on

# -- other users of the machine ------------------------------------------------------------------


def test_files_and_folders_are_for_this_user_only(folder) -> None:
    """A lease may have a token, and with the umask of most machines all users can read files."""

    async def main() -> None:
        async with FileLedger(str(folder)) as ledger:
            await swap_on(ledger, "key", 3)
            assert isinstance(await ledger.append("log", 0, b"x"), Created)

    before = os.umask(0o022)
    try:
        asyncio.run(main())
    finally:
        os.umask(before)
    for path in (folder, *folder.rglob("*")):
        wanted = 0o700 if path.is_dir() else 0o600
        assert path.stat().st_mode & 0o777 == wanted, path


@pytest.mark.parametrize(
    ("mode", "may"),
    [(0o755, True), (0o700, True), (0o1777, True), (0o777, False), (0o757, False), (0o775, False)],
)
def test_a_folder_that_others_may_write_into_is_refused(
    folder, monkeypatch: pytest.MonkeyPatch, mode: int, may: bool
) -> None:
    monkeypatch.setattr(PosixFileSystem, "is_own_group", lambda *_given: False)
    folder.mkdir()
    folder.chmod(mode)
    if may:
        asyncio.run(_opened(folder))
        return
    with pytest.raises(LedgerAccessError, match=f"mode {mode:o}") as caught:
        asyncio.run(_opened(folder))
    assert "chmod go-w" in caught.value.hint


def test_a_group_with_only_this_user_is_allowed(folder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(PosixFileSystem, "is_own_group", lambda *_given: True)
    folder.mkdir()
    folder.chmod(0o775)
    asyncio.run(_opened(folder))


def test_a_ledger_that_others_may_write_is_refused(folder) -> None:
    asyncio.run(_opened(folder))
    (place,) = folder.glob("ledger-*")
    place.chmod(0o777)
    with pytest.raises(LedgerAccessError, match="other users may write"):
        asyncio.run(_opened(folder))


def test_a_folder_of_another_user_is_refused(folder, monkeypatch: pytest.MonkeyPatch) -> None:
    folder.mkdir(mode=0o755)
    owner = folder.stat().st_uid
    if owner == 0:
        os.chown(folder, 12_345, 12_345)
    monkeypatch.setattr(os, "geteuid", lambda: 54_321)
    with pytest.raises(LedgerAccessError, match="belongs to another user"):
        file_folder.open_folder(folder, Disk())


async def _opened(folder: Path) -> None:
    async with FileLedger(str(folder)):
        pass
