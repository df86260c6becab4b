"""Disks and values that a ledger cannot take, as a user meets them."""

from __future__ import annotations

import asyncio
import contextlib
import secrets
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from rallypoint.errors import ExitCode
from rallypoint.ledger.etcd.client import EtcdClient
from rallypoint.ledger.etcd.ledger import EtcdLedger
from rallypoint.ledger.etcd.options import EtcdOptions
from tests.agent.processes import MAIN, Process
from tests.failover.fleet import Fleet
from tests.failover.refusals import check, clean_env, is_refused, one_etcd, run, serve
from tests.ledger.etcd_processes import EtcdCluster
from tests.waiting import wait_until

pytestmark = [pytest.mark.processes, pytest.mark.verify]


# -- disks that are full, or read-only ------------------------------------------------------------


@contextlib.contextmanager
def mounted(folder: Path, *arguments: str) -> Iterator[Path]:
    """A mount at this folder; skips where this process may not mount."""
    folder.mkdir()
    made = subprocess.run(
        ["mount", *arguments, str(folder)], capture_output=True, text=True, timeout=60, check=False
    )
    if made.returncode != 0:
        pytest.skip(f"cannot mount here: {made.stderr.strip()}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], timeout=60, check=True)


def small_disk(folder: Path, size: str) -> contextlib.AbstractContextManager[Path]:
    return mounted(folder, "-t", "tmpfs", "-o", f"size={size}", "tmpfs")


def remount(folder: Path, how: str) -> None:
    """While a file is being written the system calls the mount busy: so it is tried again."""
    command = ["mount", "-o", f"remount,{how},bind", str(folder)]

    def is_done() -> bool:
        return subprocess.run(command, timeout=60, capture_output=True, check=False).returncode == 0

    wait_until(is_done)


@contextlib.contextmanager
def read_only(folder: Path) -> Iterator[None]:
    remount(folder, "ro")
    try:
        yield
    finally:
        remount(folder, "rw")


@contextlib.contextmanager
def full(disk: Path) -> Iterator[None]:
    """Nothing more can be written to this disk."""
    filler = disk / "filler"
    with filler.open("wb", buffering=0) as file, contextlib.suppress(OSError):
        while True:
            file.write(bytes(4096))
    try:
        yield
    finally:
        filler.unlink()


def test_a_disk_that_is_too_small_is_refused(tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", "512k") as disk:
        full_code = ExitCode.COULD_NOT_MEET
        is_refused(f"file:{disk}", full_code, "bytes free", hint="make room")
        assert not list(disk.iterdir())


def test_a_read_only_folder_is_refused(tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    with mounted(tmp_path / "disk", "--bind", str(source)) as disk:
        assert run(f"file:{disk}/old").code == ExitCode.DONE
        with read_only(disk):
            for name in ("old", "new"):
                is_refused(f"file:{disk}/{name}", ExitCode.USAGE, "ead-only", hint="read-write")


class TwoAgents:
    """Two agents of a run over a folder on a disk of which something becomes."""

    def __init__(self, folder: Path, disk: Path) -> None:
        self.fleet = Fleet(folder, f"file:{disk}/ledger", f"file://{disk}/ledger")
        # No other process coordinates, so the run sees what happens to `serve`.
        self.fleet.machine.env["RALLYPOINT_HOST_COORDINATOR"] = "no"
        self.replica = self.fleet.serve()
        self.fleet.start(2)
        self.fleet.at_work(1)
        self.pids = self.fleet.worker_pids()

    def is_suspended_by(self, said: str) -> None:
        """The coordinator says why, the log does, and the workers go on."""

        def says() -> bool:
            picture = self.replica.picture("job") or {}
            return picture.get("phase") == "suspended" and said in str(picture)

        self.fleet.wait(says)
        self.replica.process.line(f"suspended: .*{said}")
        assert all(agent.is_alive for agent in self.fleet.agents)

    def goes_on(self, since_s: float) -> None:
        """The same round, the same workers, and every acknowledged write is there once."""
        self.fleet.counts_since(since_s)
        status = self.fleet.is_in_phase("active")
        assert (status["round"], status["attached"]) == (1, 2)
        assert self.fleet.worker_pids() == self.pids
        assert not any(agent.first("ended") for agent in self.fleet.agents)
        assert self.fleet.check_counter(1) > 0
        self.fleet.check_rounds()


def test_a_disk_that_becomes_full_suspends_the_run(tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", "4m") as disk:
        agents = TwoAgents(tmp_path / "fleet", disk)
        fleet = agents.fleet
        try:
            with full(disk):
                agents.is_suspended_by("No space left on device")
                told = serve(fleet.ledger)
                check(told, ExitCode.COULD_NOT_MEET, "bytes free", hint="make room")
            agents.goes_on(time.monotonic())
            # The same with a coordinator that dies while nothing can be written.
            with full(disk):
                agents.is_suspended_by("No space left on device")
                agents.replica.process.popen.kill()
                agents.replica.process.popen.wait()
            fleet.serve()
            agents.goes_on(time.monotonic())
        finally:
            fleet.close()


def test_a_disk_that_becomes_read_only_suspends_the_run(tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    with mounted(tmp_path / "disk", "--bind", str(source)) as disk:
        agents = TwoAgents(tmp_path / "fleet", disk)
        try:
            with read_only(disk):
                agents.is_suspended_by("Read-only file system")
            agents.goes_on(time.monotonic())
        finally:
            agents.fleet.close()


def test_an_etcd_that_becomes_full_suspends_the_run(tmp_path: Path) -> None:
    with one_etcd(f"--quota-backend-bytes={4 << 20}") as cluster:
        place = f"etcd://{cluster.endpoints[0]}/x"
        fleet = Fleet(tmp_path, place, place)
        fleet.machine.env["RALLYPOINT_HOST_COORDINATOR"] = "no"
        try:
            replica = fleet.serve()
            fleet.start(2)
            fleet.at_work(1)
            pids = fleet.worker_pids()
            asyncio.run(fill(cluster.options))
            replica.process.line("suspended: .*is full")
            told = serve(place)
            check(told, ExitCode.COULD_NOT_MEET, "is full", hint="compact and defragment")
            asyncio.run(make_room(cluster.options))
            fleet.counts_since(time.monotonic())
            assert fleet.worker_pids() == pids
            assert fleet.check_counter(1) > 0
            fleet.check_rounds()
        finally:
            fleet.close()


async def fill(options: EtcdOptions) -> None:
    """Until it takes no more: etcd then raises an alarm, and refuses all writes."""
    async with EtcdLedger(options, "/filler") as ledger:
        version = None
        for _ in range(40):
            outcome = await ledger.swap("large", version, bytes(1 << 20))
            if (version := getattr(outcome, "version", None)) is None:
                return
    raise AssertionError("etcd keeps more than its quota")


async def make_room(options: EtcdOptions) -> None:
    """What etcd's documentation says to do: compact, defragment, disarm."""
    client = EtcdClient(options)
    await client.open()
    try:
        now = await client.range(b"x")
        compaction = {"revision": str(now.header.revision), "physical": True}
        await client._call("kv/compaction", compaction, dict)
        await client._call("maintenance/defragment", {}, dict)
        found = await client._call("maintenance/alarm", {"action": "GET"}, dict)
        for alarm in found["alarms"]:
            await client._call("maintenance/alarm", {"action": "DEACTIVATE", **alarm}, dict)
    finally:
        await client.aclose()


# -- what is larger than the engine takes ---------------------------------------------------------

LARGE = """
import rallypoint
run = rallypoint.join()
world = next(iter(run.worlds()))
for size in (3 << 20, 900_000, 900_000):
    try:
        world.store.set(f"k{size}", bytes(size))
        print("kept", size, flush=True)
    except rallypoint.StoreError as error:
        print("refused", size, error.code, error, flush=True)
print("still there", len(world.store.get("k900000")), flush=True)
"""


def agent(folder: Path, *arguments: str, code: str = LARGE) -> Process:
    program = folder / "program.py"
    program.write_text(code)
    argv = [sys.executable, "-c", MAIN, "run", *arguments, str(program)]
    return Process(argv, clean_env(), folder, "agent")


def finished(process: Process) -> str:
    """All that it said, once it has ended; it is ended if it has not."""
    try:
        return process.ends(ExitCode.DONE)
    finally:
        if process.popen.poll() is None:
            process.popen.kill()
        process.close()


def test_a_value_too_large_for_the_engine_is_refused(
    three_etcd: EtcdCluster, tmp_path: Path
) -> None:
    """The call fails and says why; the run, and what follows, go on."""
    place = f"etcd://{','.join(three_etcd.endpoints)}/test-{secrets.token_hex(6)}"
    text = finished(agent(tmp_path, "--endpoint", place, "--run-id", "job"))
    assert "refused 3145728 limit" in text
    assert "stores at most 1048576 for one call" in text
    assert text.count("kept 900000") == 2
    assert "still there 900000" in text


def test_a_round_too_large_for_the_engine_is_reported(tmp_path: Path) -> None:
    """Nothing can be done but to say so: by the agent that waits, and by the coordinator."""
    with one_etcd("--max-request-bytes=2048") as cluster:
        place = f"etcd://{cluster.endpoints[0]}/x"
        labels = [f"--label=name{number}={'x' * 200}" for number in range(15)]
        process = agent(tmp_path, "--endpoint", place, "--run-id", "job", *labels)
        try:
            process.line("suspended: .*refuses a request of this size")
            process.line("--max-request-bytes")
            process.line("waiting: suspended for .*refuses a request of this size")
        finally:
            process.popen.kill()
            process.close()
