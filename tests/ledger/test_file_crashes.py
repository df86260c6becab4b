"""The ledger in files: writers that are killed at any step, frozen, or many at once."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import json
import os
import signal
import subprocess
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from rallypoint.ledger import record_format
from rallypoint.ledger.contract import Conflict, Created, Swapped, Versioned
from rallypoint.ledger.file.chain import SEGMENT, Advance, Chain
from rallypoint.ledger.file.disk import Disk
from rallypoint.ledger.file.ledger import FileLedger
from tests.ledger.file_ledgers import child_process, left_over, swap_on, version_files

# -- a crash at any step (real processes, SIGKILL) ------------------------------------------------


@pytest.mark.processes
@pytest.mark.parametrize("action", ["open", "create", "swap", "cross", "delete", "append", "drop"])
def test_a_crash_at_any_step_leaves_a_whole_ledger(fast_path: Path, action: str) -> None:
    """Do the same on copies of a ledger, each time in a child process that is killed.

    The child dies before step 1, before step 2, and so on, until an attempt gets through.
    """
    with child_process(fast_path, "crash", action) as child:
        told, _ = child.communicate(timeout=100)
    reports = [json.loads(line) for line in told.splitlines()]
    assert child.returncode == 0
    assert len(reports) >= 4, "there are steps to crash at"
    assert [report["killed"] for report in reports] == [True] * (len(reports) - 1) + [False]
    asyncio.run(_check_all(fast_path, action, len(reports)))


async def _check_all(tmp_path: Path, action: str, count: int) -> None:
    ids = json.loads((tmp_path / "before.json").read_text())
    for step in range(count):
        folder = tmp_path / f"step-{step}"
        async with FileLedger(folder) as ledger:
            if action != "open":
                assert ledger.ledger_id == ids["ledger_id"]
            await _check(ledger, action, ids, finished=step == count - 1)
            # Everything left behind was removed, and nothing blocks the next calls.
            outcome = await ledger.swap("next", None, b"next")
            assert isinstance(outcome, Swapped)
            now = await ledger.read("register")
            outcome = await ledger.swap("register", now.version if now else None, b"after")
            assert isinstance(outcome, Swapped)
            assert outcome.version not in ids["versions"]
            count_now = len(await ledger.records("log"))
            if action != "drop":
                assert await ledger.append("log", count_now, b"after") == Created()
            assert set(await ledger.keys()) == {"next", "register"} | set(ids["keys"])
        assert [path for path in left_over(folder) if "/tmp/" not in path] == []


async def _check(ledger: FileLedger, action: str, ids: dict[str, Any], finished: bool) -> None:
    """The register has its value from before, or the one that was being written."""
    now = await ledger.read("register")
    value = now.value if now else None
    before = None if action in ("open", "create") else b"before"
    after = {"create": b"new", "swap": b"new", "cross": b"new", "delete": None}.get(action, before)
    assert value == after or (value == before and not finished)
    assert await ledger.keys() == tuple(sorted([*ids["keys"], *(["register"] if now else [])]))
    records = [value for _, value in await ledger.records("log")]
    if action == "append":
        assert records == [b"0", b"1", b"new"] or (records == [b"0", b"1"] and not finished)
    elif action == "drop":
        assert records == [] or (records == [b"0", b"1"] and not finished)


# -- frozen writers -----------------------------------------------------------------------------


@pytest.mark.processes
@pytest.mark.parametrize("others", [1, SEGMENT, 5 * SEGMENT])
@pytest.mark.parametrize("step", ["create", "link"])
def test_a_stopped_writer_that_thaws_gets_a_conflict(folder, others, step) -> None:
    async def prepare() -> int:
        async with FileLedger(folder) as ledger:
            return await swap_on(ledger, "run", 3)

    async def go_on(version: int) -> None:
        async with FileLedger(folder) as ledger:
            await swap_on(ledger, "run", others, version)

    async def check(told: str) -> None:
        async with FileLedger(folder) as ledger:
            now = await ledger.read("run")
            assert now is not None
            assert now.value == b"%d" % (others - 1)
            assert json.loads(told) == ["Conflict", now.version]
            assert await ledger.swap("run", now.version, b"next") == Swapped(now.version + 1)

    version = asyncio.run(prepare())
    with child_process(folder, "freeze", str(version), step) as child:
        _wait_until_stopped(child)
        asyncio.run(go_on(version))
        child.send_signal(signal.SIGCONT)
        told, _ = child.communicate(timeout=30)
    asyncio.run(check(told))


@pytest.mark.processes
def test_a_writer_that_thaws_after_a_new_register_gets_a_conflict(folder) -> None:
    async def prepare() -> int:
        async with FileLedger(folder) as ledger:
            return await swap_on(ledger, "run", 3)

    async def make_again() -> Versioned:
        async with FileLedger(folder) as ledger:
            await ledger.delete("run")
            await swap_on(ledger, "run", 3)
            now = await ledger.read("run")
            assert now is not None
            return now

    async def check(now: Versioned, told: str) -> None:
        assert json.loads(told) == ["Conflict", now.version]
        async with FileLedger(folder) as ledger:
            assert await ledger.read("run") == now

    version = asyncio.run(prepare())
    with child_process(folder, "freeze", str(version), "link") as child:
        _wait_until_stopped(child)
        now = asyncio.run(make_again())
        child.send_signal(signal.SIGCONT)
        told, _ = child.communicate(timeout=30)
    asyncio.run(check(now, told))


def test_a_link_into_a_folder_made_by_a_frozen_writer_does_not_count(folder) -> None:
    """The only case in which a link succeeds and must not count: two processes are frozen."""

    async def body() -> None:
        async with FileLedger(folder) as ledger, FileLedger(folder, timeout_s=60) as late:
            version = await swap_on(ledger, "run", SEGMENT)
            last_of_segment = version
            gate, reached = threading.Event(), threading.Event()

            def freeze(step: str) -> None:
                if step == f"link {last_of_segment + 1:016x}":
                    reached.set()
                    assert gate.wait(30)

            late._disk._step = freeze
            swap = asyncio.ensure_future(late.swap("run", last_of_segment, b"late"))
            await asyncio.to_thread(reached.wait, 30)
            await swap_on(ledger, "run", 4 * SEGMENT, version)
            now = await ledger.read("run")
            chain = version_files(folder)[0].parent.parent
            gone = chain / f"{last_of_segment + 1:016x}"
            assert not gone.exists()
            gone.mkdir()  # the other frozen process, which would have made it long ago
            gate.set()
            assert await swap == Conflict(now)
            assert await ledger.read("run") == now
            assert now is not None
            await swap_on(ledger, "run", 2 * SEGMENT, now.version)
            assert not gone.exists()

    asyncio.run(body())


def _chain(folder: Path) -> tuple[Chain, Callable[[int], Advance]]:
    """A chain with one full segment, and a function that adds the version after another."""
    disk, trash = Disk(), folder / "trash"
    trash.mkdir(parents=True)
    chain = Chain(folder / "chain", trash, disk)
    sealed = record_format.seal(b"value", record_format.new_nonce())
    chain.begin(SEGMENT, sealed)

    def advance(expected: int) -> Advance:
        temporary = folder / f"temporary-{expected}-{os.urandom(4).hex()}"
        disk.write(temporary, sealed)
        return chain.advance(expected, temporary)

    for number in range(SEGMENT, 2 * SEGMENT - 1):
        assert advance(number) is Advance.DONE
    return chain, advance


def _while_listed(
    monkeypatch: pytest.MonkeyPatch, name: str, then: Callable[[], object], seen: int
) -> None:
    """While the folder of this name is listed, it is moved away and emptied, after `seen` names."""

    names = Disk.names

    def listing(disk: Disk, folder: Path) -> list[str]:
        if folder.name == name:
            found = sorted(names(disk, folder))[:seen]
            monkeypatch.setattr(Disk, "names", names)
            then()
            return found
        return names(disk, folder)

    monkeypatch.setattr(Disk, "names", listing)


def test_a_segment_that_is_emptied_while_a_reader_lists_it(folder, monkeypatch) -> None:
    for seen in range(SEGMENT):
        chain, advance = _chain(folder / str(seen))
        written = functools.partial(advance, 2 * SEGMENT - 1)
        _while_listed(monkeypatch, f"{SEGMENT:016x}", written, seen)
        assert chain.number() == 2 * SEGMENT


def test_a_register_that_is_deleted_while_a_reader_lists_it(folder, monkeypatch) -> None:
    trash = folder / "trash"
    trash.mkdir(parents=True)
    for seen in range(3):  # it has two segments
        chain, _ = _chain(folder / str(seen))
        deleted = functools.partial(Disk().move_away, folder / str(seen) / "chain", trash)
        _while_listed(monkeypatch, "chain", deleted, seen)
        assert chain.head() is None


def test_a_segment_that_is_emptied_while_its_writer_looks_whether_it_counts(
    folder, monkeypatch
) -> None:
    """Other processes have written after its version, so its outcome must not be a conflict."""
    for seen in range(SEGMENT):
        chain, advance = _chain(folder / str(seen))
        last = 2 * SEGMENT - 1
        advance(last)
        (folder / str(seen) / "chain" / f"{SEGMENT:016x}").mkdir()
        gone = folder / str(seen) / "chain" / f"{SEGMENT:016x}"
        _while_listed(monkeypatch, gone.name, gone.rmdir, seen)
        assert chain._is_current(last) is None


def _wait_until_stopped(child: subprocess.Popen[str]) -> None:
    _, status = os.waitpid(child.pid, os.WUNTRACED)
    assert os.WIFSTOPPED(status), status


# -- many processes -----------------------------------------------------------------------------


@pytest.mark.processes
@pytest.mark.parametrize("where", ["tmp_path", "fast_path"])
def test_processes_that_write_at_once_lose_nothing(request, where) -> None:
    """Four processes add marks to one register, and create records of one log. No mark is lost,

    none is there twice, and the log has each record that a process was told it created.
    """
    folder = request.getfixturevalue(where) / "ledger"
    writers, rounds = 4, 15
    with contextlib.ExitStack() as stack:
        children = [
            stack.enter_context(child_process(folder, "write", str(writer), str(rounds)))
            for writer in range(writers)
        ]
        told = [json.loads(child.communicate(timeout=100)[0]) for child in children]

    async def body() -> None:
        async with FileLedger(folder) as ledger:
            now = await ledger.read("list")
            assert now is not None
            marks = now.value.decode().split()
            assert sorted(marks) == sorted(
                f"{writer}.{number}" for writer in range(writers) for number in range(rounds)
            )
            for writer in range(writers):
                mine = [mark for mark in marks if mark.startswith(f"{writer}.")]
                assert mine == [f"{writer}.{number}" for number in range(rounds)]
            records = [value.decode() for _, value in await ledger.records("log")]
            assert len(records) == writers * rounds
            for writer, indexes in enumerate(told):
                assert [records[index] for index in indexes] == [
                    f"{writer}.{number}" for number in range(rounds)
                ]
        # Old versions are removed meanwhile: a register keeps a segment, or two.
        chains = list(folder.glob("ledger-*/registers/*"))
        assert chains
        for chain in chains:
            assert len([path for path in chain.rglob("*") if path.is_file()]) <= 2 * SEGMENT
        assert left_over(folder) == []

    asyncio.run(body())
