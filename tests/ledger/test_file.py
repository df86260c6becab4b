"""The ledger in files: damage, folders and disks that it refuses, and a disk that hangs."""

from __future__ import annotations

import asyncio
import errno
import os
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from rallypoint.errors import (
    LedgerAccessError,
    LedgerCorruptError,
    LedgerError,
    LedgerForeignError,
    LedgerFormatError,
    LedgerFullError,
    LedgerUnfitError,
    LedgerUnreachableError,
)
from rallypoint.ledger import record_format
from rallypoint.ledger.contract import Created, Exists, Gap, Swapped, Unknown, Versioned
from rallypoint.ledger.file import folder as file_folder
from rallypoint.ledger.file.file_system import PosixFileSystem
from rallypoint.ledger.file.ledger import FileLedger
from tests.ledger.file_ledgers import CHILD, SRC, swap_on, version_files

# -- what is damaged ------------------------------------------------------------------------------


@pytest.mark.parametrize("damage", ["cut", "empty", "flip", "other"])
def test_a_damaged_version_is_refused_and_named(folder, damage) -> None:
    async def body() -> None:
        async with FileLedger(folder) as ledger:
            version = await swap_on(ledger, "run", 3)
            newest = version_files(folder)[-1]
            whole = newest.read_bytes()
            flipped = whole[:-1] + bytes((whole[-1] ^ 1,))
            newest.write_bytes(
                {"cut": whole[:-1], "empty": b"", "flip": flipped, "other": b"x" * 99}[damage]
            )
            with pytest.raises(LedgerCorruptError, match=newest.name) as told:
                await ledger.read("run")
            assert "backup" in told.value.hint
            outcome = await ledger.swap("run", None, b"over it")
            assert isinstance(outcome, Unknown)
            assert isinstance(outcome.error, LedgerCorruptError)
            # Refused, and not emptied: the bytes are as they were, and come to life when mended.
            newest.write_bytes(whole)
            assert await ledger.read("run") == Versioned(b"2", version)

    asyncio.run(body())


def test_a_half_written_record_is_not_read(folder) -> None:
    async def body() -> None:
        async with FileLedger(folder) as ledger:
            version = await swap_on(ledger, "run", 2)
            (next(folder.glob("ledger-*/tmp")) / "0123").write_bytes(b"RLP")
        async with FileLedger(folder) as ledger:
            assert await ledger.read("run") == Versioned(b"1", version)

    asyncio.run(body())


def test_a_missing_or_damaged_record_is_named(folder) -> None:
    async def body() -> None:
        async with FileLedger(folder) as ledger:
            for index in range(3):
                assert await ledger.append("log", index, b"%d" % index) == Created()
            files = sorted(folder.glob("ledger-*/logs/*/*"))
            whole = files[1].read_bytes()
            files[1].write_bytes(whole[:-1])
            with pytest.raises(LedgerCorruptError, match=files[1].name):
                await ledger.records("log")
            files[1].unlink()
            with pytest.raises(LedgerCorruptError, match="record 1"):
                await ledger.records("log")
            files[1].write_bytes(whole)
            assert len(await ledger.records("log")) == 3

    asyncio.run(body())


@pytest.mark.parametrize(("format", "by"), [(1, "an older"), (record_format.FORMAT + 1, "a newer")])
def test_another_format_is_refused(folder, format: int, by: str) -> None:
    async def body() -> None:
        other = record_format.seal(b"value", record_format.new_nonce(), format=format)
        async with FileLedger(folder) as ledger:
            await swap_on(ledger, "run", 1)
            version_files(folder)[-1].write_bytes(other)
            with pytest.raises(LedgerFormatError, match=f"format {format} by {by}") as told:
                await ledger.read("run")
            assert "ledger of its own" in told.value.hint
        (folder / file_folder.MARKER).write_bytes(other)
        with pytest.raises(LedgerFormatError):
            await FileLedger(folder).open()

    asyncio.run(body())


def test_an_incomplete_ledger_is_not_created_again(folder) -> None:
    async def body() -> None:
        async with FileLedger(folder) as ledger:
            await swap_on(ledger, "run", 1)
        marker = (folder / file_folder.MARKER).read_bytes()
        (folder / file_folder.MARKER).unlink()
        with pytest.raises(LedgerCorruptError, match="marker"):
            await FileLedger(folder).open()
        (folder / file_folder.MARKER).write_bytes(marker[:-1])
        with pytest.raises(LedgerCorruptError):
            await FileLedger(folder).open()
        (folder / file_folder.MARKER).write_bytes(marker)
        place = next(folder.glob("ledger-*"))
        (place / "index").rename(place / "elsewhere")
        with pytest.raises(LedgerCorruptError, match="index"):
            await FileLedger(folder).open()
        (place / "elsewhere").rename(place / "index")
        async with FileLedger(folder) as ledger:
            assert await ledger.keys() == ("run",)

    asyncio.run(body())


def test_a_replaced_ledger_refuses_earlier_writes(folder) -> None:
    async def body() -> None:
        async with FileLedger(folder) as old:
            version = await swap_on(old, "run", 1)
            folder.rename(folder.with_name("elsewhere"))
            with pytest.raises(LedgerUnreachableError):
                await old.read("run")
            async with FileLedger(folder) as new:
                assert new.ledger_id != old.ledger_id
                outcome = await old.swap("run", version, b"late")
                assert isinstance(outcome, Unknown)
                assert isinstance(outcome.error, LedgerForeignError)
                assert await new.keys() == ()

    asyncio.run(body())


# -- folders that will not do ---------------------------------------------------------------------


def _refused(folder: Path, kind: type[LedgerError], match: str, **options: Any) -> None:
    with pytest.raises(kind, match=match) as told:
        asyncio.run(FileLedger(folder, **options).open())
    assert told.value.hint


def test_a_folder_with_other_data_is_refused(folder) -> None:
    folder.mkdir()
    (folder / "data.csv").write_text("theirs")
    _refused(folder, LedgerForeignError, "data.csv")
    assert [path.name for path in folder.iterdir()] == ["data.csv"]


def test_a_file_in_place_of_the_marker_is_refused(folder) -> None:
    folder.mkdir()
    (folder / file_folder.MARKER).write_text("theirs")
    _refused(folder, LedgerForeignError, file_folder.MARKER)


def test_a_file_in_place_of_the_folder_is_refused(folder) -> None:
    folder.write_text("theirs")
    _refused(folder, LedgerForeignError, "is not a folder")


def test_a_folder_without_a_parent_is_not_created(folder) -> None:
    _refused(folder / "deeper", LedgerUnreachableError, "no folder")
    assert not folder.exists()


@pytest.mark.parametrize(
    ("number", "kind"),
    [
        (errno.ENOSPC, LedgerFullError),
        (errno.EDQUOT, LedgerFullError),
        (errno.EROFS, LedgerAccessError),
        (errno.EACCES, LedgerAccessError),
        (errno.EIO, LedgerUnreachableError),
    ],
)
def test_a_disk_that_refuses_a_write_loses_nothing(folder, number, kind) -> None:
    """After a crash at every step of a swap, the register is as before, or as after the swap."""
    failing: list[Callable[[], bool]] = [lambda: False]

    def step(_name: str) -> None:
        if failing[0]():
            raise OSError(number, os.strerror(number))

    async def body() -> None:
        async with FileLedger(folder, on_step=step) as ledger:
            version = await swap_on(ledger, "run", 1)
            for at in range(4):
                countdown = [at]

                def now(countdown: list[int] = countdown) -> bool:
                    countdown[0] -= 1
                    return countdown[0] < 0

                failing[0] = now
                outcome = await ledger.swap("run", version, b"new")
                failing[0] = lambda: False
                assert isinstance(outcome, Unknown)
                assert isinstance(outcome.error, kind)
                assert outcome.error.hint
                assert await ledger.read("run") == Versioned(b"0", version)
            assert await ledger.swap("run", version, b"new") == Swapped(version + 1)

    asyncio.run(body())


@pytest.mark.parametrize(
    ("call", "replacement", "told"),
    [
        ("link", OSError(errno.EPERM, "Operation not permitted"), "no hard links"),
        ("link", OSError(errno.EOPNOTSUPP, "Not supported"), "no hard links"),
        ("fsync", OSError(errno.EINVAL, "Invalid argument"), "fsync"),
    ],
)
def test_a_disk_without_the_guarantees_is_unfit(
    folder, monkeypatch, call, replacement, told
) -> None:
    def refuse(*_arguments: Any) -> None:
        raise replacement

    monkeypatch.setattr(os, call, refuse)
    _refused(folder, LedgerUnfitError, told)


def test_a_disk_whose_links_are_copies_is_unfit(folder, monkeypatch) -> None:
    def copy(source: Path, target: Path) -> None:
        target.write_bytes(source.read_bytes())

    monkeypatch.setattr(os, "link", copy)
    _refused(folder, LedgerUnfitError, "two names")


def test_a_share_with_a_stale_cache_is_unfit(folder, monkeypatch) -> None:
    monkeypatch.setattr(PosixFileSystem, "mount_options", lambda *_given: ["rw", "nocto"])
    _refused(folder, LedgerUnfitError, "nocto")


@pytest.mark.processes
@pytest.mark.parametrize(
    ("mount", "kind"),
    [("size=256k", "LedgerFullError"), ("ro", "LedgerAccessError"), ("size=4m", "full later")],
)
def test_a_full_or_read_only_disk_is_an_error(tmp_path, mount, kind) -> None:
    """In its own mount namespace, where the system allows one."""
    disk = tmp_path / "disk"
    disk.mkdir()
    script = 'mount -t tmpfs -o "$1" none "$2" || exit 77; exec "$3" "$4" "$2/ledger" real "$5"'
    command = ["unshare", "--mount", "--map-root-user", "sh", "-c", script, "sh"]
    command += [mount, str(disk), sys.executable, str(CHILD), kind]
    try:
        done = subprocess.run(
            command,
            env={**os.environ, "PYTHONPATH": str(SRC)},
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
    except FileNotFoundError:
        pytest.skip("there is no unshare here")
    if done.returncode == 77 or "unshare" in done.stderr:
        pytest.skip(f"no mount namespace here: {done.stderr.strip()}")
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == kind


def test_a_disk_that_hangs_makes_outcomes_unknown_and_blocks_nothing(folder) -> None:
    async def body() -> None:
        gate, reached = threading.Event(), threading.Event()
        hanging = [False]

        def hang(_step: str) -> None:
            if hanging[0]:
                reached.set()
                gate.wait(30)

        async with FileLedger(folder, on_step=hang) as ledger:
            version = (await ledger.swap("run", None, b"0")).version  # type: ignore[union-attr]
            hanging[0] = True
            ledger._timeout_s = 0.2
            outcome = await ledger.swap("run", version, b"1")
            assert isinstance(outcome, Unknown)
            assert isinstance(outcome.error, LedgerUnreachableError)
            assert await asyncio.to_thread(reached.wait, 30)
            ledger._timeout_s = 30
            hanging[0] = False
            # It was unknown: once the disk answers again, the write is done after all.
            gate.set()
            changed = await ledger.changed("run", version, 30)
            assert changed is not None
            assert changed.current == Versioned(b"1", version + 1)

    asyncio.run(body())


# -- NFS: the answer to a link was lost -----------------------------------------------------------


def test_a_link_that_was_done_counts_despite_its_answer(folder, monkeypatch) -> None:
    real = os.link

    def lost(source: Path, target: Path) -> None:
        real(source, target)
        raise FileExistsError(errno.EEXIST, "File exists")

    async def body() -> None:
        async with FileLedger(folder) as ledger:
            version = await swap_on(ledger, "run", 1)
            monkeypatch.setattr(os, "link", lost)
            assert await ledger.swap("run", version, b"1") == Swapped(version + 1)
            assert await ledger.append("log", 0, b"0") == Created()
            assert await ledger.append("log", 1, b"1") == Created()
            monkeypatch.setattr(os, "link", real)
            assert await ledger.append("log", 1, b"2") == Exists(b"1")
            assert await ledger.append("log", 3, b"3") == Gap()

    asyncio.run(body())
