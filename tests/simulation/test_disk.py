"""The simulated disk: the shipped file ledger's own suite runs on it, and power failures lose."""

from __future__ import annotations

import asyncio
import errno
import itertools
import os
from collections.abc import Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any, TypeVar

import pytest

from rallypoint.ledger.contract import AppendOutcome, Created, Exists, Gap, Swapped, Unknown
from rallypoint.ledger.file.disk import Disk
from rallypoint.ledger.file.ledger import FileLedger
from rallypoint.simulation.disk import SimulatedFileSystem, Trouble, Volume
from rallypoint.simulation.machine import SimulatedRuntime
from rallypoint.simulation.network import Network
from rallypoint.simulation.world import Process, World
from rallypoint.testing.ledger_suite import Connect, LedgerSuite

T = TypeVar("T")
HOSTS = ("10.0.0.1", "10.0.0.2")
FOLDER = Path("/shared/ledger")


def run_in(world: World, process: Process, main: Coroutine[Any, Any, T], limit_s: float) -> T:
    """Run a coroutine in a simulated process, for at most so many seconds of the world."""
    task = process.start(main)
    assert world.run_until(world.now_s + limit_s, task.done), "it has not ended in time"
    return task.result()


class TestSuite(LedgerSuite):
    @pytest.fixture(params=["local", "nfs", "nfs that remembers"])
    def connect(
        self, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
    ) -> Iterator[Connect]:
        """Two handles, each on a host of its own if the disk is shared."""
        world = World(7)
        process = world.process("test")
        SimulatedRuntime(process, "10.0.0.1", Network(world))
        is_shared = request.param != "local"
        remembers_s = 30.0 if request.param == "nfs that remembers" else 0.0
        volume = Volume(world, is_shared=is_shared, remembers_s=remembers_s)
        hosts = iter(["a", "b"] * 50)

        def run(main: Coroutine[Any, Any, T]) -> T:
            return run_in(world, process, main, 600.0)

        monkeypatch.setattr(asyncio, "run", run)
        yield lambda: FileLedger(FOLDER, system=volume.file_system(process, next(hosts)))
        world.close()


class Machines:
    """Two hosts with a process each, and a disk."""

    def __init__(self, *, is_shared: bool = False, remembers_s: float = 0.0) -> None:
        self.world = World(1)
        self.volume = Volume(self.world, is_shared=is_shared, remembers_s=remembers_s)
        network = Network(self.world)
        self.processes = [self.world.process(host) for host in HOSTS]
        for process, host in zip(self.processes, HOSTS, strict=True):
            SimulatedRuntime(process, host, network)

    def run(self, index: int, work: Callable[[FileLedger], Coroutine[Any, Any, T]]) -> T:
        """Do it in one process, with a ledger that is opened for it."""
        process = self.processes[index]
        system = self.volume.file_system(process, HOSTS[index])

        async def main() -> T:
            async with FileLedger(FOLDER, system=system) as ledger:
                return await work(ledger)

        return run_in(self.world, process, main(), 60.0)


@pytest.fixture
def machines(request: pytest.FixtureRequest) -> Iterator[Machines]:
    made = Machines(**getattr(request, "param", {}))
    yield made
    made.world.close()


async def _write(ledger: FileLedger) -> str:
    assert isinstance(await ledger.swap("runs/a", None, b"1"), Swapped)
    assert await ledger.append("stores/a/1", 0, b"record") == Created()
    return ledger.ledger_id


async def _read(ledger: FileLedger) -> tuple[str, bytes, tuple[tuple[int, bytes], ...]]:
    now = await ledger.read("runs/a")
    assert now is not None
    return ledger.ledger_id, now.value, await ledger.records("stores/a/1")


def test_what_a_new_ledger_acknowledged_outlives_a_power_failure(machines: Machines) -> None:
    """Its own folder was made a moment before, in a parent that has it now."""
    ledger_id = machines.run(0, _write)
    machines.volume.lose_power(HOSTS[0], keeps=0.0)
    assert machines.run(1, _read) == (ledger_id, b"1", ((0, b"record"),))


def test_what_was_read_outlives_a_power_failure() -> None:
    """Its writer died after each link in turn, before it forced the link's name to the disk."""
    for at in range(60):
        machines = Machines()
        left = [at]
        has_linked = [False]

        def step(name: str, left: list[int] = left, has_linked: list[bool] = has_linked) -> None:
            left[0] -= 1
            if left[0] <= 0 and has_linked[0]:
                raise OSError(errno.EIO, "stopped here")
            has_linked[0] = name.startswith("link")

        async def begin(ledger: FileLedger) -> None:
            ledger._disk._step = step
            await ledger.swap("runs/a", None, b"1")
            await ledger.append("stores/a/1", 0, b"record")

        async def look(ledger: FileLedger) -> tuple[bytes | None, int]:
            now = await ledger.read("runs/a")
            return now.value if now is not None else None, len(await ledger.records("stores/a/1"))

        machines.run(0, begin)
        seen = machines.run(1, look)
        machines.volume.lose_power(HOSTS[0], keeps=0.0)
        assert machines.run(1, look) == seen, at
        machines.world.close()


def test_a_record_that_could_not_be_synced_is_synced_before_it_is_acknowledged(
    machines: Machines, monkeypatch: pytest.MonkeyPatch
) -> None:
    """R10: its first try failed after the record was there, so the second one finds it."""
    machines.run(0, _write)
    sync, failures = Disk.sync, iter([True, False])

    def fails_once(disk: Disk, folder: Path) -> None:
        if folder.parent.name == "logs" and next(failures, False):
            raise OSError(errno.EIO, "Input/output error")
        sync(disk, folder)

    async def twice(ledger: FileLedger) -> None:
        assert isinstance(await ledger.append("stores/a/1", 1, b"more"), Unknown)
        assert await ledger.append("stores/a/1", 1, b"more") == Exists(b"more")

    with monkeypatch.context() as patch:
        patch.setattr(Disk, "sync", fails_once)
        machines.run(0, twice)
    machines.volume.lose_power(HOSTS[0], keeps=0.0)
    assert machines.run(1, _read)[2][1:] == ((1, b"more"),)


def test_a_power_failure_takes_what_was_not_synced(
    machines: Machines, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The disk that other tests rely on: without syncs, all is lost or torn."""
    monkeypatch.setattr(SimulatedFileSystem, "sync", lambda *_given: None)
    machines.run(0, _write)
    machines.volume.lose_power(HOSTS[0], keeps=0.0)
    monkeypatch.undo()

    async def keys(ledger: FileLedger) -> tuple[str, ...]:
        return await ledger.keys()

    assert machines.run(1, keys) == ()


def test_a_rename_is_kept_as_a_whole() -> None:
    """One name of a folder that was moved is there after a power failure, and never both."""
    seen = set()
    for seed in range(20):
        world = World(seed)
        volume = Volume(world)
        system = volume.file_system(world.process("one"), HOSTS[0])
        for name in ("one", "two"):
            system.make_folder(Path("/shared") / name, 0o700)
        system.make_folder(Path("/shared/one/moved"), 0o700)
        for name in ("", "one"):
            system.sync(system.open_folder(Path("/shared") / name))
        system.rename(Path("/shared/one/moved"), Path("/shared/two/moved"))
        volume.lose_power(HOSTS[0], keeps=0.5)
        seen.add(tuple(len(system.names(Path("/shared") / name)) for name in ("one", "two")))
        world.close()
    assert seen == {(1, 0), (0, 1)}


@pytest.mark.parametrize("machines", [{"is_shared": True}], indirect=True)
def test_a_stale_handle_does_not_mean_that_a_register_is_gone(
    machines: Machines, monkeypatch: pytest.MonkeyPatch
) -> None:
    machines.run(0, _write)
    looks = itertools.count()
    find = SimulatedFileSystem._find

    def stale(system: SimulatedFileSystem, path: Path, *, asks: bool = False) -> Any:
        if next(looks) % 2:
            raise OSError(errno.ESTALE, os.strerror(errno.ESTALE))
        return find(system, path, asks=asks)

    monkeypatch.setattr(SimulatedFileSystem, "_find", stale)

    system = machines.volume.file_system(machines.processes[1], HOSTS[1])
    disk = Disk(system=system)
    (place,) = [each for each in disk.names(FOLDER) if each.startswith("ledger-")]
    assert disk.is_folder(FOLDER / place)
    assert len(disk.names(FOLDER / place / "registers")) == 1


@pytest.mark.parametrize("machines", [{"is_shared": True, "remembers_s": 60.0}], indirect=True)
def test_a_host_that_remembers_an_absent_record_reports_no_gap(machines: Machines) -> None:
    """Record 1 was absent when this host looked, and another host has created it since."""
    machines.run(0, _write)

    async def late(ledger: FileLedger) -> AppendOutcome:
        # It looks for record 1, which is absent.
        assert await ledger.append("stores/a/1", 2, b"early") == Gap()
        other = FileLedger(FOLDER, system=machines.volume.file_system(machines.processes[1], "b"))
        async with other:
            assert await other.append("stores/a/1", 1, b"theirs") == Created()
        return await ledger.append("stores/a/1", 2, b"mine")

    assert machines.run(1, late) == Created()


@pytest.mark.parametrize("machines", [{"is_shared": True, "remembers_s": 60.0}], indirect=True)
def test_a_record_in_the_trash_is_not_acknowledged(machines: Machines) -> None:
    """Another host has moved the log away, and died. This host remembers the folder."""
    machines.run(0, _write)
    theirs = machines.volume.file_system(machines.processes[0], HOSTS[0])
    (name,) = [each for each in theirs.names(FOLDER) if each.startswith("ledger-")]
    (log,) = theirs.names(FOLDER / name / "logs")

    async def late(ledger: FileLedger) -> AppendOutcome:
        assert await ledger.append("stores/a/1", 1, b"before") == Created()
        theirs.rename(FOLDER / name / "logs" / log, FOLDER / name / "trash" / log)
        late = await ledger.append("stores/a/1", 2, b"late")
        assert await ledger.append("stores/a/1", 1, b"late") == Gap()
        return late

    assert isinstance(machines.run(1, late), Unknown)


@pytest.mark.parametrize("machines", [{"is_shared": True, "remembers_s": 60.0}], indirect=True)
def test_a_log_that_is_being_removed_is_not_damaged(machines: Machines) -> None:
    """Some of its records are gone already, and this host remembers the folder."""
    machines.run(0, _write)
    theirs = machines.volume.file_system(machines.processes[0], HOSTS[0])
    (name,) = [each for each in theirs.names(FOLDER) if each.startswith("ledger-")]
    (log,) = theirs.names(FOLDER / name / "logs")

    async def late(ledger: FileLedger) -> tuple[tuple[int, bytes], ...]:
        assert await ledger.append("stores/a/1", 1, b"record") == Created()
        trash = FOLDER / name / "trash" / log
        theirs.rename(FOLDER / name / "logs" / log, trash)
        assert await ledger.records("stores/a/1", 0, 1) == ()
        theirs.unlink(trash / min(theirs.names(trash)))
        return await ledger.records("stores/a/1")

    assert machines.run(1, late) == ()


def test_a_killed_process_stops_in_its_call_for_ever(machines: Machines) -> None:
    machines.volume.trouble = machines.volume.usual = Trouble(delay_s=(0.1, 0.1), switches=1.0)
    killed = machines.processes[0]

    async def begun() -> None:
        await FileLedger(FOLDER, system=machines.volume.file_system(killed, HOSTS[0])).open()

    killed.start(begun())
    machines.world.run_until(0.35)
    killed.kill()
    there = dict(machines.volume.root.names or {})["shared"].names
    machines.world.run_until(100.0)
    assert there is not None
    before = sorted(there)
    machines.world.close()
    assert sorted(there) == before == ["ledger"]


def test_a_frozen_process_goes_on_with_its_call(machines: Machines) -> None:
    machines.volume.trouble = machines.volume.usual = Trouble(delay_s=(0.1, 0.1), switches=1.0)
    process = machines.processes[0]

    async def begun() -> str:
        ledger = FileLedger(
            FOLDER, system=machines.volume.file_system(process, HOSTS[0]), timeout_s=600.0
        )
        await ledger.open()
        return ledger.ledger_id

    task = process.start(begun())
    machines.world.run_until(0.35)
    process.freeze()
    machines.world.run_until(50.0)
    assert not task.done()
    process.thaw()
    assert machines.world.run_until(500.0, task.done)
    assert task.result()
