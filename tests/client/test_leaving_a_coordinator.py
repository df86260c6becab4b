"""A coordinator that is cut off from its ledger, or gone for good: what its nodes do."""

from __future__ import annotations

import asyncio
import contextlib
import math
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest

from rallypoint import errors
from rallypoint.client import orphan
from rallypoint.client.hosting import EmbeddedCoordinator
from rallypoint.client.node import Node
from rallypoint.coordinator.config import CoordinatorConfig
from rallypoint.coordinator.server import CoordinatorServer
from rallypoint.core.store import Get, Set, StoreValue
from rallypoint.core.values import Address, ChangeKind, RunSettings
from rallypoint.endpoints import Endpoint, EndpointKind
from rallypoint.errors import LedgerReplacedError, LedgerUnreachableError
from rallypoint.ledger.contract import AppendOutcome, Changed, SwapOutcome, Unknown, Versioned
from rallypoint.ledger.memory import MemoryLedger
from rallypoint.net import bind
from rallypoint.settings import NodeSettings
from tests.loops import node, run_clean, until
from tests.ports import free_port

pytestmark = pytest.mark.sockets

HERE = Address("127.0.0.1", 1)
TTL_S = 0.9
RUN = RunSettings(min_nodes=2, max_nodes=2, suspect_after_s=0.9, max_restarts=None)


class View(MemoryLedger):
    """One process's way to a ledger that others share: it can be cut."""

    def __init__(self, shared: MemoryLedger) -> None:
        super().__init__()
        self.ledger_id = shared.ledger_id
        self.away: errors.LedgerError | None = None
        self._registers, self._logs = shared._registers, shared._logs
        self._waiting = shared._waiting

    def cut(self) -> None:
        self.away = LedgerUnreachableError("the way is cut")

    def _check(self) -> None:
        if self.away is not None:
            raise self.away

    async def read(self, key: str) -> Versioned | None:
        self._check()
        return await super().read(key)

    async def changed(self, key: str, version: int | None, timeout_s: float) -> Changed | None:
        self._check()
        return await super().changed(key, version, timeout_s)

    async def keys(self, prefix: str = "") -> tuple[str, ...]:
        self._check()
        return await super().keys(prefix)

    async def swap(self, key: str, expected: int | None, value: bytes) -> SwapOutcome:
        return Unknown("cut") if self.away else await super().swap(key, expected, value)

    async def append(self, log: str, index: int, value: bytes) -> AppendOutcome:
        return Unknown("cut") if self.away else await super().append(log, index, value)


@contextlib.asynccontextmanager
async def replica(ledger: View) -> AsyncIterator[int]:
    """A `serve` on the ledger; its port."""
    sock = bind("127.0.0.1", 0)
    port: int = sock.getsockname()[1]
    async with CoordinatorServer(CoordinatorConfig(lease_ttl_s=TTL_S), ledger=ledger) as server:
        await server.start([sock], (Address("127.0.0.1", port),))
        yield port


@contextlib.asynccontextmanager
async def met(ledger: View, *names: str, **own: Any) -> AsyncIterator[list[Node]]:
    """Nodes in one round, that find their coordinator through the ledger."""
    known: dict[str, Any] = {
        "endpoint": Endpoint(EndpointKind.LEDGER, text="memory"),
        "run_id": "run",
        "local_addr": "127.0.0.1",
        "lease_ttl_s": TTL_S,
    }
    nodes = [
        Node(NodeSettings(**(known | own | {"node_name": each})), RUN, ledger=ledger)
        for each in names
    ]
    try:
        await asyncio.gather(*(each.open() for each in nodes))
        await asyncio.gather(*(each.next_round(HERE, timeout_s=20.0) for each in nodes))
        yield nodes
    finally:
        await asyncio.gather(*(each.aclose(linger=False) for each in nodes))


def port_of(one: Node) -> int:
    connection = one._connector.connection
    return connection.address.port if connection and one.is_connected else 0


# -- cut off from the ledger -----------------------------------------------------------------------


def test_nodes_leave_a_coordinator_without_its_ledger_for_another():
    async def main() -> None:
        shared = MemoryLedger()
        cut_off, well, seen = View(shared), View(shared), View(shared)
        async with replica(cut_off) as a, met(seen, "a", "b", host_coordinator="no") as nodes:
            assert await nodes[0].call(Set("k", b"1"), 20.0) == StoreValue(None)
            async with replica(well) as b:
                cut_off.cut()
                await until(lambda: {port_of(each) for each in nodes} == {b}, "not at the other")
                assert a != b
                assert [each.change for each in nodes] == [None, None]
                assert await nodes[1].call(Get("k"), 20.0) == StoreValue(b"1")
                # R10: all members read an acknowledged write.
                assert await nodes[0].call(Set("k", b"2"), 20.0) == StoreValue(None)
                assert await nodes[1].call(Get("k"), 20.0) == StoreValue(b"2")

    run_clean(main, 60.0)


def test_nodes_elect_one_of_their_own_if_there_is_no_other():
    async def main() -> None:
        shared = MemoryLedger()
        cut_off, seen = View(shared), View(shared)
        async with replica(cut_off) as a, met(seen, "a", "b") as nodes:
            # If the machine stalls for longer than the ttl, they leave even earlier.
            cut_off.cut()
            await until(lambda: not {port_of(each) for each in nodes} & {a, 0}, "still there")
            assert [each.change for each in nodes] == [None, None]
            assert await nodes[0].call(Set("k", b"2"), 20.0) == StoreValue(None)
            assert await nodes[1].call(Get("k"), 20.0) == StoreValue(b"2")

    run_clean(main, 60.0)


def test_nodes_stay_while_no_process_reaches_the_ledger():
    async def main() -> None:
        shared = MemoryLedger()
        theirs, seen, other = View(shared), View(shared), View(shared)
        async with (
            replica(theirs),
            met(seen, "a", "b") as nodes,
            replica(other),
        ):
            for view in (theirs, seen, other):
                view.cut()
            where = [(port_of(each), each.hosted) for each in nodes]
            await until(lambda: all(each._connector._beside for each in nodes), "they do not look")
            await asyncio.sleep(3 * TTL_S)
            assert [(port_of(each), each.hosted) for each in nodes] == where
            for view in (theirs, seen, other):
                view.away = None
            await until(
                lambda: not any(each._connector._beside for each in nodes), "they still look"
            )
            assert await nodes[0].call(Set("k", b"2"), 20.0) == StoreValue(None)
            assert await nodes[1].call(Get("k"), 20.0) == StoreValue(b"2")
            assert [each.change for each in nodes] == [None, None]

    run_clean(main, 60.0)


# -- lost for good ---------------------------------------------------------------------------------


@pytest.fixture
def soon_orphaned(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(orphan, "LOST_ORPHAN_S", 0.3)


@contextlib.asynccontextmanager
async def two_at(endpoint: str, *, nodes: int = 2, **own: Any) -> AsyncIterator[list[Node]]:
    run = RunSettings(min_nodes=nodes, max_nodes=nodes, max_restarts=None)
    made = [node(endpoint, run, node_name=f"n{each}", **own) for each in range(nodes)]
    try:
        await asyncio.gather(*(each.open() for each in made))
        await asyncio.gather(*(each.next_round(HERE, timeout_s=20.0) for each in made))
        yield made
    finally:
        await asyncio.gather(*(each.aclose(linger=False) for each in made))


def lost(**own: Any) -> Callable[[str, int], None]:
    """The coordinator of `nodes` nodes, in memory, ends for good."""

    def run(scheme: str, nodes: int) -> None:
        async def main() -> None:
            port = free_port()
            hosted = await EmbeddedCoordinator.start("run", "", "127.0.0.1", port)
            where = f"{scheme}127.0.0.1:{port}"
            own_settings = {"coordinator_lost_after_s": 0.5, "host_coordinator": "no"} | own
            async with two_at(where, nodes=nodes, **own_settings) as met:
                await hosted.aclose()
                await until(lambda: all(each.gone for each in met), "it is not given up")
                assert all(isinstance(each.gone, errors.CoordinatorLostError) for each in met)
                if nodes == 1 or own.get("orphan_s") == math.inf:
                    await asyncio.sleep(0.6)
                    assert [each.change for each in met] == [None] * nodes
                else:
                    await until(lambda: all(each.change for each in met), "the round goes on")
                    kinds = {each.change.kind for each in met if each.change}
                    assert kinds == {ChangeKind.NODE_LOST}

        run_clean(main, 60.0)

    return run


@pytest.mark.usefixtures("soon_orphaned")
@pytest.mark.parametrize("scheme", ["", "http://"])
def test_r13_nodes_of_a_run_lost_with_its_process_become_orphans(scheme: str):
    lost()(scheme, 2)


def test_an_orphan_of_a_lost_run_counts_from_the_loss_of_its_coordinator(
    monkeypatch: pytest.MonkeyPatch,
):
    """Not from when the node has given up its search, which may take minutes."""
    monkeypatch.setattr(orphan, "LOST_ORPHAN_S", 0.5)

    async def main() -> None:
        alone: list[float] = []
        timer = orphan.OrphanTimer(None, alone.append)
        timer.start(asyncio.get_running_loop().time() - 60.0)
        timer.run_lost(2)
        await until(lambda: alone, "the round goes on")
        assert alone[0] >= 60.5

        timer.cancel()  # A coordinator was found, and then the run is refused as lost.
        alone.clear()
        timer.run_lost(2)
        await until(lambda: alone, "the round goes on")
        assert alone[0] < 60.0

    run_clean(main)


@pytest.mark.usefixtures("soon_orphaned")
def test_a_node_alone_in_its_round_is_no_orphan():
    lost()("", 1)


@pytest.mark.usefixtures("soon_orphaned")
def test_an_orphan_waits_for_ever_only_if_configured():
    lost(orphan_s=math.inf)("", 2)


@pytest.mark.usefixtures("soon_orphaned")
def test_r13_another_ledger_at_the_address_ends_the_run_at_once():
    async def main() -> None:
        port = free_port()
        hosted = await EmbeddedCoordinator.start("run", "", "127.0.0.1", port)
        async with two_at(f"http://127.0.0.1:{port}", coordinator_lost_after_s=60.0) as met:
            await hosted.aclose()
            hosted = await EmbeddedCoordinator.start("run", "", "127.0.0.1", port)
            await until(lambda: all(each.gone for each in met), "they were not told")
            assert all(isinstance(each.gone, errors.RunLostError) for each in met)
            await until(lambda: all(each.change for each in met), "the round goes on")
            await hosted.aclose()

    run_clean(main, 60.0)


@contextlib.asynccontextmanager
async def muted_later(port: int) -> AsyncIterator[tuple[int, Callable[[], None]]]:
    """A port that leads to `port`; from a call on it takes connections and says nothing.

    At no moment does it refuse one, as an address would between the end of what listens there and
    the beginning of something else.
    """
    ends: list[asyncio.StreamWriter] = []
    is_mute = False

    async def pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            while data := await reader.read(65_536):
                writer.write(data)

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        ends.append(writer)
        if not is_mute:
            there, back = await asyncio.open_connection("127.0.0.1", port)
            ends.append(back)
            await asyncio.gather(pump(reader, back), pump(there, writer))

    def cut() -> None:
        nonlocal is_mute
        is_mute = True
        for each in ends:
            each.transport.abort()

    async with await asyncio.start_server(talk, "127.0.0.1", 0) as server:
        yield server.sockets[0].getsockname()[1], cut
        cut()


def test_a_silent_coordinator_is_searched_while_workers_run():
    async def main() -> None:
        port = free_port()
        hosted = await EmbeddedCoordinator.start("run", "", "127.0.0.1", port)
        async with (
            muted_later(port) as (front, cut),
            two_at(
                f"127.0.0.1:{front}", coordinator_lost_after_s=0.3, host_coordinator="no"
            ) as met,
        ):
            cut()
            await asyncio.sleep(1.5)
            assert [each.gone for each in met] == [None, None]
            met[0].done()
            await until(lambda: met[0].gone is not None, "who is done goes on looking")
            assert met[1].gone is None
        await hosted.aclose()

    run_clean(main, 60.0)


def test_a_replaced_ledger_has_lost_the_run():
    async def main() -> None:
        shared = MemoryLedger()
        theirs, seen = View(shared), View(shared)
        async with replica(theirs), met(seen, "a", "b", host_coordinator="no") as nodes:
            seen.away = LedgerReplacedError("the folder holds another ledger by now")
            for each in nodes:
                assert each._connector.connection is not None
                each._connector.connection.abort("the test cuts it")
            await until(lambda: all(each.gone for each in nodes), "they look on")
            assert all(isinstance(each.gone, errors.RunLostError) for each in nodes)

    run_clean(main, 60.0)
