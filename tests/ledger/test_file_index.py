"""The index of a file ledger has parts, so the cost of a new run does not grow with all runs."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

import msgspec
import pytest

from rallypoint.ledger import record_format
from rallypoint.ledger.contract import Created, Swapped
from rallypoint.ledger.file import folder as file_folder
from rallypoint.ledger.file import index as file_index
from rallypoint.ledger.file.chain import SEGMENT, Chain
from rallypoint.ledger.file.disk import Disk
from rallypoint.ledger.file.ledger import FileLedger
from rallypoint.ledger.keys import chunk_key, log_name, log_prefix, quoted, run_key


@pytest.fixture
def folder(fast_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)  # no power fails here
    return fast_path / "ledger"


async def run_begins(ledger: FileLedger, run_id: str) -> None:
    assert isinstance(await ledger.swap(run_key(run_id), None, b"head"), Swapped)
    assert await ledger.append(log_name(run_id, 1, 1, 0, 1), 0, b"header") == Created()


def test_one_more_run_costs_the_same(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written = 0
    write = Disk.write

    def counting(disk: Disk, path: Path, data: bytes) -> None:
        nonlocal written
        written += len(data)
        write(disk, path, data)

    monkeypatch.setattr(Disk, "write", counting)

    async def body() -> None:
        nonlocal written
        async with FileLedger(folder) as ledger:
            costs = []
            for number in range(400):
                written = 0
                await run_begins(ledger, "\U0001f600" * 250 + str(number))
                costs.append(written)
        assert sum(costs[-20:]) / 20 < 8_000  # two names of a run have 550 bytes
        assert max(costs) < 16_000

    asyncio.run(body())


def test_a_question_about_one_run_reads_one_part(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[str] = []
    real = file_index.FileIndex.read

    def noting(index: file_index.FileIndex, part: str) -> file_index.Indexed:
        read.append(part)
        return real(index, part)

    async def body() -> None:
        async with FileLedger(folder) as ledger:
            for number in range(50):
                await run_begins(ledger, f"run-{number}")
            await ledger.swap(chunk_key("run-7", 1, 1), None, b"rows")
            monkeypatch.setattr(file_index.FileIndex, "read", noting)
            assert len(await ledger.logs(log_prefix("run-7"))) == 1
            assert len(set(read)) == 1
            assert await ledger.read(run_key("run-7")) is not None
            assert len(await ledger.keys("chunks/run-7/")) == 1
            assert len(set(read)) == 1, "all that belongs to a run is in one part"
            read.clear()
            assert len(await ledger.keys("runs/")) == 50
            assert len(await ledger.keys("runs/run-1")) == 11
            assert len(await ledger.logs("stores/")) == 50
            assert await ledger.keys("runs/run-1/") == ()
            assert len(set(read)) > 1

    asyncio.run(body())


def as_before(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """New ledgers are made as by an earlier release."""

    def begin(place: Path, disk: Disk) -> None:
        sealed = record_format.seal(
            msgspec.msgpack.encode(file_index.Index()), record_format.new_nonce()
        )
        Chain(place / "index", place / "trash", disk).begin(SEGMENT, sealed)

    monkeypatch.setattr(file_folder, "begin_index", begin)


def test_a_ledger_of_an_earlier_release_is_unchanged(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    as_before(folder, monkeypatch)

    async def body() -> None:
        async with FileLedger(folder) as ledger:
            for number in range(20):
                await run_begins(ledger, f"run-{number}")
            await ledger.delete(run_key("run-3"))
        place = next(folder.glob("ledger-*"))
        head = Chain(place / "index", place / "trash", Disk()).head()
        assert head is not None
        index = msgspec.msgpack.decode(head.value, type=file_index.Index)
        assert len(index.registers) == 19
        async with FileLedger(folder) as ledger:
            assert len(await ledger.keys()) == 19
            assert len(await ledger.logs()) == 20
            assert await ledger.read(run_key("run-3")) is None
            await run_begins(ledger, "another")

    asyncio.run(body())


def test_an_earlier_release_does_not_read_the_parts_as_an_empty_index(folder: Path) -> None:
    async def body() -> None:
        async with FileLedger(folder):
            place = next(folder.glob("ledger-*"))
            head = Chain(place / "index", place / "trash", Disk()).head()
            assert head is not None
            with pytest.raises(msgspec.ValidationError):
                msgspec.msgpack.decode(head.value, type=file_index.Index)

    asyncio.run(body())


@pytest.mark.parametrize("is_answered", [True, False])
def test_two_processes_create_one_part(
    folder: Path, monkeypatch: pytest.MonkeyPatch, is_answered: bool
) -> None:
    """Also if a file server has done it and its answer was lost."""
    real = Disk.rename
    others: list[FileLedger] = []

    def late(disk: Disk, made: Path, name: Path) -> None:
        monkeypatch.setattr(Disk, "rename", real)
        if is_answered:
            files = others[0]._opened()
            assert isinstance(files.registers.create(run_key("theirs"), b"head"), Swapped)
        else:
            real(disk, made, name)
        real(disk, made, name)

    async def body() -> None:
        async with FileLedger(folder) as one, FileLedger(folder) as other:
            others.append(other)
            monkeypatch.setattr(file_index.FileIndex, "_part", lambda index, group: "0a")
            monkeypatch.setattr(Disk, "rename", late)
            assert isinstance(await one.swap(run_key("mine"), None, b"head"), Swapped)
            expected = {run_key("mine"), *([run_key("theirs")] if is_answered else [])}
            assert set(await one.keys()) == set(await other.keys()) == expected
            place = next(folder.glob("ledger-*"))
            assert list((place / "tmp").iterdir()) == []

    asyncio.run(body())


def test_registers_missing_in_the_index_are_removed(folder: Path) -> None:
    async def body() -> None:
        async with FileLedger(folder) as ledger:
            await run_begins(ledger, "run")
            place = next(folder.glob("ledger-*"))
            (used,) = [path.name for path in (place / "registers").iterdir()]
            number, _, rest = used.partition("-")
            part = rest[:2]
            lost = [f"{number}-{part}{'0' * 12}", f"{0:016x}-{part}{'1' * 12}"]
            later = [f"{int(number, 16) + 5:016x}-{part}{'2' * 12}", f"{number}-zz{'3' * 12}"]
            for name in lost + later:
                (place / "registers" / name).mkdir()
            aside = place / "tmp" / "half-made"
            (aside / "segment").mkdir(parents=True)
            os.utime(aside, (0, 0))
        async with FileLedger(folder) as ledger:
            there = {path.name for path in (place / "registers").iterdir()}
            assert there == {used, *later}
            assert not aside.exists()
            assert await ledger.keys() == (run_key("run"),)

    asyncio.run(body())


def test_names_without_a_run_have_parts_too(folder: Path) -> None:
    async def body() -> None:
        async with FileLedger(folder) as ledger:
            for name in ("floor", "coordinators/a", "coordinators/b", quoted("x")):
                assert isinstance(await ledger.swap(name, None, b"value"), Swapped)
            assert await ledger.keys("coordinators/") == ("coordinators/a", "coordinators/b")
            assert await ledger.keys("floor") == ("floor",)
            assert len(await ledger.keys()) == 4

    asyncio.run(body())
