"""Nodes that elect their coordinator through a ledger: meeting, handing over, losing it."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest

from rallypoint.client.hosting import EmbeddedCoordinator
from rallypoint.client.node import Node
from rallypoint.coordinator import status
from rallypoint.coordinator.run_ownership import RunOwnership
from rallypoint.coordinator.server import CoordinatorServer
from rallypoint.core.store import Add, Get, Set, StoreValue
from rallypoint.core.values import Address, ChangeKind, Outcome, RunSettings
from rallypoint.endpoints import Endpoint, EndpointKind, parse_endpoint
from rallypoint.errors import (
    CoordinatorLostError,
    JoinTimeoutError,
    LedgerUnreachableError,
    RunClosedError,
    UnreachableError,
)
from rallypoint.ledger.contract import Ledger, SwapOutcome, Unknown, Versioned
from rallypoint.ledger.memory import MemoryLedger
from rallypoint.settings import NodeSettings

pytestmark = pytest.mark.sockets

RUN = RunSettings(min_nodes=2, max_nodes=8, last_call_s=0.2)
LONG_TTL_S = 6.0
"""For who counts terms and waits for no lease to run out: none does because this process, which has
all nodes, stood still."""
IN_MEMORY = Endpoint(EndpointKind.LEDGER, text="memory")
HERE = Address("127.0.0.1", 1)

Scenario = Callable[["Nodes"], Awaitable[None]]


class Nodes:
    """Nodes of one run in one process, on one ledger."""

    def __init__(self, endpoint: Endpoint, ledger: Ledger | None, run: RunSettings) -> None:
        self.endpoint, self.ledger, self.run = endpoint, ledger, run
        self.all: list[Node] = []

    def new(self, name: str, **settings: Any) -> Node:
        known = {
            "endpoint": self.endpoint,
            "run_id": "run",
            "node_name": name,
            "local_addr": "127.0.0.1",
            "lease_ttl_s": 0.6,
            "attach_grace_s": 2.0,
            "connect_timeout_s": 20.0,
        }
        node = Node(NodeSettings(**{**known, **settings}), self.run, ledger=self.ledger)
        self.all.append(node)
        return node

    async def meet(self, *names: str, **settings: Any) -> list[Node]:
        nodes = [self.new(name, **settings) for name in names]
        await asyncio.gather(*(node.open() for node in nodes))
        await asyncio.gather(*(node.next_round(HERE, timeout_s=20.0) for node in nodes))
        return nodes

    async def aclose(self) -> None:
        await asyncio.gather(*(node.aclose(linger=False) for node in self.all))


def nodes_on(
    endpoint: Endpoint, ledger: Ledger | None, scenario: Scenario, run: RunSettings = RUN
) -> None:
    async def main() -> None:
        nodes = Nodes(endpoint, ledger, run)
        try:
            async with asyncio.timeout(60):
                await scenario(nodes)
        finally:
            await nodes.aclose()

    asyncio.run(main())


@pytest.fixture(params=["memory", "file"])
def on_ledger(request: pytest.FixtureRequest, tmp_path: Path) -> Callable[..., None]:
    """Run a scenario on a ledger that the nodes share."""
    if request.param == "memory":
        return lambda scenario, **more: nodes_on(IN_MEMORY, MemoryLedger(), scenario, **more)
    endpoint = parse_endpoint(f"file://{tmp_path}/ledger")
    return lambda scenario, **more: nodes_on(endpoint, None, scenario, **more)


async def until(is_so: Callable[[], bool]) -> None:
    while not is_so():  # noqa: ASYNC110 - nodes set no event for this
        await asyncio.sleep(0.005)


def hosts(nodes: list[Node]) -> list[Node]:
    return [node for node in nodes if node.hosted is not None]


async def the_host(nodes: list[Node]) -> Node:
    """Once the candidates that lost have gone."""
    await until(lambda: len(hosts(nodes)) == 1)
    return hosts(nodes)[0]


def terms(nodes: list[Node]) -> set[int]:
    return {node._machine.stamp.term for node in nodes}


def taken(host: Node) -> EmbeddedCoordinator:
    """The coordinator that a node hosts, taken from it."""
    hosted = host._connector.own.take()
    assert hosted is not None
    return hosted


async def kill_coordinator_of(host: Node) -> None:
    """As its process would end: nothing is said, in the ledger neither."""
    server = taken(host)._front
    assert isinstance(server, CoordinatorServer)
    assert isinstance(server.ownership, RunOwnership)
    await server.ownership.aclose()
    for session in list(server.coordinator.sessions.values()):
        session.outlet.abort()

    async def say_nothing(timeout_s: float, reason: str) -> None:
        pass

    server.ownership.hand_over = say_nothing  # type: ignore[method-assign]
    await server.aclose()


def test_nodes_meet_and_one_of_them_coordinates(on_ledger: Callable[..., None]) -> None:
    async def scenario(nodes: Nodes) -> None:
        met = await nodes.meet("a", "b", "c")
        rounds = [node.round for node in met]
        assert {each.head.number for each in rounds if each} == {1}
        assert {each.head.digest for each in rounds if each} == {rounds[0].head.digest}  # type: ignore[union-attr]
        await the_host(met)

    on_ledger(scenario, run=RunSettings(min_nodes=3, max_nodes=3))


def test_a_newcomer_finds_the_coordinator_without_being_a_candidate(
    on_ledger: Callable[..., None],
) -> None:
    async def scenario(nodes: Nodes) -> None:
        met = await nodes.meet("a", "b")
        host = await the_host(met)
        late = nodes.new("c", host_coordinator="no")
        await late.open()
        assert hosts(nodes.all) == [host]
        assert late.is_connected

    on_ledger(scenario)


def test_a_host_that_leaves_hands_over_and_the_others_continue(
    on_ledger: Callable[..., None],
) -> None:
    async def scenario(nodes: Nodes) -> None:
        met = await nodes.meet("a", "b", "c", lease_ttl_s=LONG_TTL_S)
        host = await the_host(met)
        others = [node for node in met if node is not host]
        host.goodbye("enough")
        began_s = asyncio.get_running_loop().time()
        await host.aclose()
        assert asyncio.get_running_loop().time() - began_s < 20.0  # it would linger for 30
        await asyncio.gather(*(node.next_round(HERE, timeout_s=20.0) for node in others))
        assert terms(others) == {2}
        assert {node.round.head.number for node in others if node.round} == {2}

    on_ledger(scenario, run=msgspec.structs.replace(RUN, max_nodes=3))


def test_a_handover_does_not_disturb_nodes(on_ledger: Callable[..., None]) -> None:
    async def scenario(nodes: Nodes) -> None:
        met = await nodes.meet("a", "b", "c", lease_ttl_s=LONG_TTL_S)
        host = await the_host(met)
        for _ in range(3):
            hosted = taken(host)
            waiting = asyncio.ensure_future(met[0].call(Get(f"from-{_}"), 20.0))
            await hosted.aclose()
            assert await met[1].call(Set(f"from-{_}", b"v"), 20.0) == StoreValue(None)
            assert await waiting == StoreValue(b"v")
            host = await the_host(met)
        assert [node.change for node in met] == [None, None, None]
        assert terms(met) == {4}

    on_ledger(scenario, run=msgspec.structs.replace(RUN, max_nodes=3))


def test_the_death_of_a_coordinator_loses_nothing_acknowledged(
    on_ledger: Callable[..., None],
) -> None:
    async def scenario(nodes: Nodes) -> None:
        met = await nodes.meet("a", "b", "c", lease_ttl_s=2.0)
        ended = [node.on_ended for node in met]
        assert ended
        host = await the_host(met)
        counts = [await met[0].call(Add("count", 1), 20.0) for _ in range(5)]
        adding = [asyncio.ensure_future(node.call(Add("count", 1), 20.0)) for node in met]
        await kill_coordinator_of(host)
        counts += await asyncio.gather(*adding)
        # R11: each was applied once, under either coordinator.
        values = [each.value for each in counts if isinstance(each, StoreValue)]
        assert sorted(values) == list(range(1, 9))  # type: ignore[type-var]
        assert await met[2].call(Add("count", 0), 20.0) == StoreValue(8)
        assert [node.change for node in met] == [None, None, None]
        assert {node.round.head.number for node in met if node.round} == {1}
        assert terms(met) == {2}

    on_ledger(scenario, run=msgspec.structs.replace(RUN, max_nodes=3))


def test_a_host_that_dies_with_its_node_costs_no_attach_grace(
    on_ledger: Callable[..., None],
) -> None:
    """A19. The lease named its node: the others go on at once, however long the attach grace is."""

    async def scenario(nodes: Nodes) -> None:
        met = await nodes.meet("a", "b", "c", attach_grace_s=600.0)
        host = await the_host(met)
        await kill_coordinator_of(host)
        await host.aclose(linger=False)  # and no goodbye was said
        others = [node for node in met if node is not host]
        await until(lambda: all(node.change is not None for node in others))
        assert {node.change.kind for node in others if node.change} == {ChangeKind.NODE_LOST}
        assert {node.change.nodes for node in others if node.change} == {(host.info.name,)}
        await asyncio.gather(*(node.next_round(HERE, timeout_s=20.0) for node in others))
        assert {node.round.head.nodes for node in others if node.round} == {2}

    on_ledger(scenario, run=msgspec.structs.replace(RUN, max_nodes=3))


def test_the_next_coordinator_does_not_miss_a_done_node(
    on_ledger: Callable[..., None],
) -> None:
    """A3."""

    async def scenario(nodes: Nodes) -> None:
        met = await nodes.meet("a", "b", "c", lease_ttl_s=2.0)
        host = await the_host(met)
        finished, other = [node for node in met if node is not host]
        finished.done()
        finished.goodbye("its work is done")
        await finished.aclose()
        await kill_coordinator_of(host)
        await until(lambda: terms([host, other]) == {2})
        await until(lambda: host.is_connected and other.is_connected)
        assert (host.change, other.change) == (None, None)
        other.done()
        host.done()
        await until(lambda: host.closed is not None and other.closed is not None)
        assert host.closed is not None
        assert host.closed.outcome is Outcome.SUCCEEDED

    on_ledger(scenario, run=msgspec.structs.replace(RUN, min_nodes=3, max_nodes=3))


def test_a_run_closed_while_a_node_was_away_is_closed_for_it() -> None:
    async def scenario(nodes: Nodes) -> None:
        first, second = await nodes.meet("a", "b")
        host = await the_host([first, second])
        other = second if host is first else first
        # The node that is away gets no message, and finds it in the ledger.
        assert other._connector.connection is not None
        other._connector.connection.on_message = lambda data: None
        await host.close_run(Outcome.SUCCEEDED, "trained", 20.0)
        await host.aclose()
        await until(lambda: other.closed is not None)
        assert other.closed is not None
        assert other.closed.reason == "trained"
        late = nodes.new("late")
        with pytest.raises(RunClosedError, match="trained"):
            await late.open()

    nodes_on(IN_MEMORY, MemoryLedger(), scenario)


class Reads(MemoryLedger):
    """Counts how often it is read."""

    count = 0

    async def read(self, key: str) -> Versioned | None:
        self.count += 1
        return await super().read(key)


def test_a_node_that_waits_for_a_lease_to_expire_reads_with_pauses() -> None:
    """Its own candidate redirects it to the dead coordinator until the lease has expired."""
    ledger = Reads()

    async def scenario(nodes: Nodes) -> None:
        others = await nodes.meet("a", "b", "c", lease_ttl_s=2.0)
        host = await the_host(others)
        before = terms(others)
        await kill_coordinator_of(host)
        ledger.count = 0
        await until(
            lambda: all(node.is_connected for node in others) and min(terms(others)) > max(before)
        )
        # Each looks some times a second, and so does each of their candidates.
        assert ledger.count < 150

    # The round waits for all three: the last call may be over before the last one has come.
    nodes_on(IN_MEMORY, ledger, scenario, run=msgspec.structs.replace(RUN, min_nodes=3))


def test_a_node_that_may_not_host_waits_and_logs_it() -> None:
    async def scenario(nodes: Nodes) -> None:
        node = nodes.new("a", host_coordinator="no", connect_timeout_s=0.3)
        with pytest.raises(UnreachableError, match="through memory") as caught:
            await node.open()
        assert "rallypoint serve" in caught.value.hint

    nodes_on(IN_MEMORY, MemoryLedger(), scenario)


class Outage(MemoryLedger):
    """A ledger that can be away."""

    is_away = False

    async def open(self) -> None:
        self._check()

    async def read(self, key: str) -> Versioned | None:
        self._check()
        return await super().read(key)

    async def swap(self, key: str, expected: int | None, value: bytes) -> SwapOutcome:
        if self.is_away:
            return Unknown("no answer")
        return await super().swap(key, expected, value)

    def _check(self) -> None:
        if self.is_away:
            raise LedgerUnreachableError("no answer from the engine")


def test_a_coordinator_at_a_useless_address_is_named() -> None:
    async def scenario(nodes: Nodes) -> None:
        host = nodes.new("a", local_addr="a.invalid")
        await host.open()
        # At first it finds no coordinator there; later its own candidate redirects it there.
        for limit_s in (0.5, 4.0):
            with pytest.raises(UnreachableError, match=r"a\.invalid.*could not be resolved"):
                await nodes.new(f"b{limit_s}", connect_timeout_s=limit_s).open()

    nodes_on(IN_MEMORY, MemoryLedger(), scenario)


def test_a_ledger_that_is_away_at_start_is_the_error() -> None:
    async def scenario(nodes: Nodes) -> None:
        node = nodes.new("a", connect_timeout_s=0.3)
        with pytest.raises(LedgerUnreachableError, match="no answer from the engine"):
            await node.open()

    ledger = Outage()
    ledger.is_away = True
    nodes_on(IN_MEMORY, ledger, scenario)


def test_without_ledger_and_coordinator_a_node_keeps_its_round() -> None:
    ledger = Outage()

    async def scenario(nodes: Nodes) -> None:
        met = await nodes.meet("a", "b")
        host = await the_host(met)
        ledger.is_away = True
        await kill_coordinator_of(host)
        await until(lambda: "ledger unreachable for" in met[0].looking)
        assert [node.change for node in met] == [None, None]
        ledger.is_away = False
        await until(lambda: all(node.is_connected for node in met))
        assert [node.change for node in met] == [None, None]
        assert met[0].looking == ""

    nodes_on(IN_MEMORY, ledger, scenario)


def test_a_node_that_waits_for_a_round_learns_of_the_ledgers_outage() -> None:
    ledger = Outage()

    async def scenario(nodes: Nodes) -> None:
        node = nodes.new("a")
        await node.open()
        ledger.is_away = True
        await kill_coordinator_of(node)
        await until(lambda: "ledger unreachable for" in node.looking)
        with pytest.raises(JoinTimeoutError, match="ledger unreachable for"):
            await node.next_round(HERE, timeout_s=0.1)

    nodes_on(IN_MEMORY, ledger, scenario)


def test_a_node_without_workers_gives_up_after_a_while() -> None:
    ledger = Outage()

    async def scenario(nodes: Nodes) -> None:
        met = await nodes.meet("a", "b", coordinator_lost_after_s=2.0)
        host = await the_host(met)
        ledger.is_away = True
        await kill_coordinator_of(host)
        await asyncio.sleep(2.5)
        assert [node.gone for node in met] == [None, None]
        for node in met:
            node.done()
        await until(lambda: all(node.gone is not None for node in met))
        for node in met:
            assert isinstance(node.gone, CoordinatorLostError)
            assert "no answer from the engine" in node.gone.message

    nodes_on(IN_MEMORY, ledger, scenario)


def test_an_orphan_ends_its_round_and_regroups_when_there_is_a_coordinator_again() -> None:
    ledger = Outage()

    async def scenario(nodes: Nodes) -> None:
        met = await nodes.meet("a", "b", orphan_s=0.3)
        host = await the_host(met)
        ledger.is_away = True
        await kill_coordinator_of(host)
        await until(lambda: all(node.change is not None for node in met))
        assert {node.change.kind for node in met if node.change} == {ChangeKind.NODE_LOST}
        ledger.is_away = False
        await asyncio.gather(*(node.next_round(HERE, timeout_s=20.0) for node in met))
        assert {node.round.head.number for node in met if node.round} == {2}

    nodes_on(IN_MEMORY, ledger, scenario, run=msgspec.structs.replace(RUN, max_nodes=2))


def test_for_an_orphan_a_coordinator_without_its_ledger_counts_as_none() -> None:
    ledger = Outage()

    async def scenario(nodes: Nodes) -> None:
        met = await nodes.meet("a", "b", orphan_s=1.0)
        ledger.is_away = True
        await until(lambda: all(node.change is not None for node in met))
        assert all(node.is_connected for node in met)
        assert all("holds its lease" in node.change.detail for node in met if node.change)
        ledger.is_away = False
        await asyncio.gather(*(node.next_round(HERE, timeout_s=20.0) for node in met))
        assert {node.round.head.number for node in met if node.round} == {2}

    run = msgspec.structs.replace(RUN, max_nodes=2, suspect_after_s=0.6)
    nodes_on(IN_MEMORY, ledger, scenario, run=run)


def test_without_an_orphan_limit_a_node_continues() -> None:
    ledger = Outage()

    async def scenario(nodes: Nodes) -> None:
        met = await nodes.meet("a", "b")
        ledger.is_away = True
        await kill_coordinator_of(await the_host(met))
        await asyncio.sleep(0.5)
        assert [node.change for node in met] == [None, None]

    nodes_on(IN_MEMORY, ledger, scenario)


@pytest.mark.parametrize("endpoint", [Endpoint(EndpointKind.LOCAL), IN_MEMORY])
def test_a_hosted_coordinator_names_its_node(endpoint: Endpoint) -> None:
    async def scenario(nodes: Nodes) -> None:
        node = nodes.new("alone")
        await node.open()
        assert node.hosted is not None
        coordinator = node.hosted._front.driver.coordinator
        assert status.coordinator_of(coordinator).node == "alone"

    nodes_on(endpoint, MemoryLedger(), scenario, run=RunSettings())
