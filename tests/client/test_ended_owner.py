"""What a node knows of the owner of its run: whether it has ended, and for how long it may lead."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest

from rallypoint.client import network
from rallypoint.client.connector import Connector
from rallypoint.client.dialing import Attempts
from rallypoint.client.elected import ElectedCoordinator
from rallypoint.client.machine import NodeMachine
from rallypoint.core.effects import Standing
from rallypoint.core.election import FORMAT, AttachTo, Lease
from rallypoint.core.values import Address, NodeInfo, RunSettings, Stamp
from rallypoint.endpoints import Endpoint, EndpointKind
from rallypoint.ledger.memory import MemoryLedger
from rallypoint.settings import NodeSettings
from rallypoint.wire import messages as wire

OWNER, OTHER = Address("127.0.0.1", 7), Address("127.0.0.1", 8)
SETTINGS = NodeSettings(
    endpoint=Endpoint(EndpointKind.LEDGER, text="memory"), run_id="run", lease_ttl_s=1.0
)
INFO = NodeInfo("a", 1, "host")


def a_connection(address: Address, *, was_ended_by_peer: bool = True) -> Any:
    return SimpleNamespace(address=address, target=address, was_ended_by_peer=was_ended_by_peer)


@pytest.fixture(autouse=True)
def _one_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every address is one of this machine."""

    async def is_this_host(self: object, host: str) -> bool:
        return True

    monkeypatch.setattr(type(network.SOCKETS), "is_this_host", is_this_host)


class Sight:
    """One node, which was attached to the owner until that one's side ended the connection."""

    def __init__(self) -> None:
        self.term = 1
        known: Any = self
        self.elected = ElectedCoordinator(SETTINGS, known, known, known, known, MemoryLedger())
        self.elected.attached()
        self.elected.has_closed(a_connection(OWNER), was_attached=True)

    def dials(self, answer: str = "refused", *, term: int = 1) -> Address | None:
        """The address by which the owner has ended, after this answer at it."""
        attempts = Attempts(OWNER)
        attempts.answers = {str(OWNER): answer}
        attempts.refusals = [OWNER] if answer == "refused" else []
        owner = AttachTo(Lease(FORMAT, "owner", 1, addresses=(OWNER,)), Stamp("ledger", term, 0))
        return asyncio.run(self.elected._has_seen_end(owner, attempts))


def test_an_owner_that_refuses_after_its_side_has_ended_the_connection_has_ended() -> None:
    sight = Sight()
    assert sight.dials() == OWNER
    assert not sight.dials(), "once a term is enough"


@pytest.mark.parametrize("first", ["no answer within 2 s", "Connection reset by peer"])
def test_a_later_dial_shows_it_too(first: str) -> None:
    """A process that is being killed may still have its port for a moment."""
    sight = Sight()
    assert not sight.dials(first)
    assert sight.dials()


def test_a_redirect_by_another_process_says_nothing_about_the_owner() -> None:
    sight = Sight()
    sight.elected.has_closed(a_connection(OTHER), was_attached=False)
    assert sight.dials()


def test_an_owner_that_has_answered_since_has_not_ended() -> None:
    sight = Sight()
    sight.elected.has_closed(a_connection(OWNER), was_attached=False)
    assert not sight.dials()


def test_a_connection_that_the_node_has_ended_itself_is_no_evidence() -> None:
    sight = Sight()
    sight.elected.has_closed(a_connection(OWNER, was_ended_by_peer=False), was_attached=True)
    assert not sight.dials()


def test_nor_is_one_before_the_node_was_attached_again() -> None:
    sight = Sight()
    sight.elected.attached()
    assert not sight.dials()


def test_nor_is_one_to_the_owner_of_an_earlier_term() -> None:
    sight = Sight()
    assert not sight.dials(term=2)
    sight.term = 2
    assert not sight.dials(term=2)


@pytest.mark.parametrize("elected", [True, False], ids=["ledger", "fixed-address"])
def test_r13_the_coordinator_tells_the_ttl_of_its_lease_however_it_was_found(elected: bool) -> None:
    """A redirect does not tell it, nor does an address. `orphan` counts when it has expired."""
    endpoint = SETTINGS.endpoint if elected else Endpoint(EndpointKind.SERVED, "h", 7)
    settings = NodeSettings(endpoint=endpoint, run_id="run", lease_ttl_s=1.0)
    run = RunSettings()
    machine = NodeMachine("run", INFO, run, silence_s=6.0, is_elected=elected)
    node: Any = None
    connector = Connector(settings, run, INFO, machine, node, MemoryLedger())
    before_s = connector.owner_ttl_s
    for told_s, counts_s in ((9.0, 9.0), (0.0, before_s)):
        machine.connected(0.0)
        machine.received(
            wire.Welcome(Stamp("l", 1, 0), 1, 1.0, Standing(), lease_ttl_s=told_s), 0.0
        )
        assert connector.owner_ttl_s == counts_s
