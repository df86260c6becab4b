"""The address for rank 0's listener, where the coordinator's machine has several."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest

from rallypoint.client import network
from rallypoint.client.actions import Send
from rallypoint.client.machine import NodeMachine
from rallypoint.client.own_coordinator import OwnCoordinator
from rallypoint.core.addresses import OwnAddress
from rallypoint.core.effects import Standing
from rallypoint.core.values import Address, NodeId, NodeInfo, RunSettings, Stamp
from rallypoint.settings import NodeSettings, parse_endpoint
from rallypoint.wire import messages as wire

DEAD, GOOD = OwnAddress("10.200.0.1", "eth1"), OwnAddress("10.0.0.1", "eth0")
SETTINGS = NodeSettings(endpoint=parse_endpoint("file:///ledger"), run_id="run")


class Hosted:
    """The coordinator that this node hosts."""

    def __init__(self) -> None:
        self.told: Any = None

    def on_attach(self, callback: Any) -> None:
        self.told = callback


@pytest.fixture
def own(monkeypatch: pytest.MonkeyPatch) -> OwnCoordinator:
    """A machine whose packets to 10.0.0.0/24 leave from GOOD, and all others from DEAD."""

    def towards(self: object, host: str) -> OwnAddress:
        return GOOD if host.startswith("10.0.0.") else DEAD

    monkeypatch.setattr(type(network.SOCKETS), "own_address_towards", towards)
    made = OwnCoordinator(SETTINGS, RunSettings(max_nodes=2), NodeId("a", 1))
    made.addresses = (DEAD, GOOD)
    hosted: Any = Hosted()
    made.hosted = hosted
    hosted.on_attach(made._attached)
    return made


def test_the_address_that_the_first_other_node_reaches_becomes_the_best(
    own: OwnCoordinator,
) -> None:
    moves: list[tuple[str, str]] = []
    own.on_reached = lambda host, before: moves.append((host, before))
    hosted: Any = own.hosted
    hosted.told(None)  # a node of an older release
    hosted.told(Address("127.0.0.1", 1))  # this node
    hosted.told(Address("10.200.0.1", 1))  # another one on this machine
    assert own.addresses == (DEAD, GOOD)
    hosted.told(Address("10.0.0.2", 1))
    assert own.addresses == (GOOD, DEAD)
    assert moves == [("10.0.0.1", "10.200.0.1")]
    assert own.bootstrap_host(None) == "10.0.0.1"
    assert hosted.told is None, "it is asked only once"


def test_nothing_moves_if_the_best_one_is_reached(own: OwnCoordinator) -> None:
    own.on_reached = lambda host, before: pytest.fail("it moved")
    hosted: Any = own.hosted
    hosted.told(Address("10.200.0.9", 1))
    assert own.addresses == (DEAD, GOOD)
    assert hosted.told is None


def machine() -> NodeMachine:
    made = NodeMachine("run", NodeInfo("a", 1, "host"), RunSettings(), silence_s=6.0)
    made.connected(0.0)
    made.received(wire.Welcome(Stamp("l", 1, 0), 1, 1.0, Standing()), 0.0)
    return made


def test_a_node_that_waits_offers_the_new_address_with_its_port() -> None:
    node = machine()
    node.ready(Address("10.200.0.1", 5), 2)
    (action,) = node.reached_at("10.0.0.1", "10.200.0.1")
    assert isinstance(action, Send)
    assert isinstance(action.message, wire.Ready)
    assert (action.message.bootstrap, action.message.workers) == (Address("10.0.0.1", 5), 2)


def test_a_node_that_offers_another_address_keeps_it() -> None:
    node = machine()
    assert node.reached_at("10.0.0.1", "10.200.0.1") == []
    node.ready(Address("node0", 5), 2)
    assert node.reached_at("10.0.0.1", "10.200.0.1") == []


def test_it_is_only_watched_where_there_is_a_choice() -> None:
    assert asyncio.run(_watched(DEAD, GOOD))
    assert not asyncio.run(_watched(GOOD))


async def _watched(*addresses: OwnAddress) -> bool:
    own = OwnCoordinator(SETTINGS, RunSettings(max_nodes=2), NodeId("a", 1))
    own.addresses = addresses
    hosted: Any = SimpleNamespace(told=None, claim=lambda *_: None, advertised=[""])
    hosted.on_attach = lambda callback: setattr(hosted, "told", callback)

    async def candidate(*_: object) -> Any:
        return hosted

    with pytest.MonkeyPatch.context() as patch:
        from rallypoint.client.hosting import EmbeddedCoordinator

        patch.setattr(EmbeddedCoordinator, "as_candidate", candidate)
        ledger: Any = None
        attempts: Any = SimpleNamespace()
        assert await own.become_candidate(ledger, attempts, None)
    return hosted.told is not None
