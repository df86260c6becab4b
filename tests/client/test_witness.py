"""R8: a node as a witness, in a simulated world: which hosts it sees, and what it says of them."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import socket
from collections.abc import Callable, Iterator

import pytest

from rallypoint import net
from rallypoint.client.sightings import (
    DIALS_PER_MINUTE,
    OTHERS_MAX,
    SEEN_MAX,
    TRIES_MAX,
    Sightings,
)
from rallypoint.client.witness import SPREAD_S, TRY_AGAIN_S, WATCH_S, Witness
from rallypoint.core.values import Address, HostReport
from rallypoint.core.witnesses import ANSWER_S, LOOK_S
from rallypoint.simulation.machine import SimulatedRuntime
from rallypoint.simulation.network import Network
from rallypoint.simulation.world import World
from tests.ports import free_port

OWN = "10.0.0.1"
DESK = Address("10.0.0.9", 29_400)
ANSWERED, SILENT = HostReport.ANSWERED, HostReport.NOT_ANSWERED
UNSURE, UNSEEN = HostReport.UNSURE, HostReport.UNSEEN


def at(number: int, port: int = 40_000) -> Address:
    return Address(f"10.0.0.{number}", port)


class Place:
    """A witness on a host of a world; all other hosts refuse connections."""

    def __init__(self, coordinator: Address | None = None) -> None:
        self.world = World(1)
        self.network = Network(self.world)
        self.process = self.world.process("witness")
        self.network.attach(self.process, OWN)
        SimulatedRuntime(self.process, OWN, self.network)
        self.said: list[tuple[int, HostReport]] = []
        self.dialled: list[Address] = []
        self.network.on_look = lambda process, address: self.dialled.append(address)
        self.witness: Witness[int] = Witness(
            lambda *said: self.said.append(said), lambda: coordinator
        )

    def do(self, work: Callable[[], None], within_s: float) -> None:
        async def run() -> None:
            work()

        self.process.start(run())
        self.world.run_until(self.world.now_s + within_s)

    def watch(self, *addresses: Address) -> None:
        self.do(lambda: self.witness.watch(addresses), 3 * (SPREAD_S + WATCH_S))

    def look(self, host: Address, within_s: float = LOOK_S + ANSWER_S) -> HostReport | None:
        """What it says of this host in time, if anything."""
        number = len(self.said) + 7
        self.do(lambda: self.witness.look(number, host.host), within_s)
        return dict(self.said).get(number)

    def cut(self, *others: Address) -> Callable[[], None]:
        """No packet goes to these hosts."""
        return self.network.block_all([(OWN, each.host) for each in others])


@pytest.fixture
def place() -> Iterator[Place]:
    made = Place()
    yield made
    assert not made.world.unread()
    made.world.close()


def test_it_connects_once_to_what_it_is_told_and_remembers_who_answered(place: Place) -> None:
    place.watch(at(2), at(3))
    place.watch(at(2), at(3))
    assert place.dialled == [at(2), at(3)]
    assert place.look(at(2)) is ANSWERED
    assert place.look(at(4)) is UNSEEN


def test_a_host_without_power_does_not_answer_though_another_one_does(place: Place) -> None:
    place.watch(at(2), at(3))
    place.network.lose(at(2).host)
    assert place.look(at(2)) is SILENT
    assert place.look(at(3)) is ANSWERED


def test_a_witness_that_is_cut_off_itself_is_unsure(place: Place) -> None:
    place.watch(at(2), at(3))
    place.cut(at(2), at(3))
    assert place.look(at(2)) is UNSURE


def test_another_host_that_is_gone_too_spoils_nothing(place: Place) -> None:
    place.watch(at(2), at(3), at(4))
    place.network.lose(at(2).host)
    place.network.lose(at(4).host)
    assert place.look(at(2)) is SILENT


def test_without_another_host_it_is_unsure(place: Place) -> None:
    place.watch(at(2))
    place.network.lose(at(2).host)
    assert place.look(at(2)) is UNSURE


def test_the_coordinator_counts_where_no_other_host_has_answered() -> None:
    place = Place(DESK)
    place.watch(at(2))
    place.network.lose(at(2).host)
    assert place.look(at(2)) is SILENT
    place.cut(DESK)
    assert place.look(at(2)) is UNSURE
    place.world.close()


@pytest.mark.parametrize("coordinator", [Address("127.0.0.1", 1), Address("desk", 1), at(2, 1)])
def test_a_coordinator_that_proves_nothing_does_not_count(coordinator: Address) -> None:
    sightings = Sightings()
    sightings.tried(at(2), has_answered=True)
    assert sightings.others(at(2).host, coordinator) == []


def test_a_host_that_comes_back_within_the_time_answers(place: Place) -> None:
    place.watch(at(2), at(3))
    place.world.after(1.9, place.cut(at(2)))
    assert place.look(at(2)) is ANSWERED


def test_a_witness_whose_network_is_back_late_is_unsure(place: Place) -> None:
    """Its own network was away for two of the three seconds."""
    place.watch(at(2), at(3))
    place.network.lose(at(2).host)
    place.world.after(1.9, place.cut(at(3)))
    assert place.look(at(2)) is UNSURE


def test_a_listener_is_connected_to_and_left_alone(place: Place) -> None:
    other = place.world.process("listener")
    place.network.attach(other, at(2).host)
    accepted: list[object] = []
    place.network.listen(other, at(2).host, at(2).port, accepted.append)
    place.watch(at(2), at(3))
    assert len(accepted) == 1
    assert place.look(at(2)) is ANSWERED


def test_a_frozen_witness_takes_what_its_kernel_knows(place: Place) -> None:
    place.watch(at(2), at(3))

    def freeze() -> None:
        place.process.freeze()
        place.world.after(60.0, place.process.thaw)

    place.world.after(0.0005, freeze)
    assert place.look(at(2), 90.0) is ANSWERED


def test_a_host_that_never_answered_is_tried_twice_and_then_never(place: Place) -> None:
    place.network.walls[at(2).host] = 1
    place.watch(at(2))
    place.do(lambda: None, 3 * TRY_AGAIN_S)
    assert place.dialled == [at(2)] * TRIES_MAX
    place.watch(at(3))
    place.watch(at(2), at(3))
    assert place.dialled == [at(2)] * TRIES_MAX + [at(3)]
    assert place.look(at(2)) is UNSEEN


def test_it_connects_to_no_more_in_a_minute_than_it_may(place: Place) -> None:
    place.watch(at(2), at(3))
    place.network.lose(at(2).host)
    said = [place.look(at(2)) for _ in range(8)]
    assert said[0] is SILENT
    assert said[-1] is UNSURE
    assert len(place.dialled) <= DIALS_PER_MINUTE
    place.do(lambda: None, 61.0)
    assert place.look(at(2)) is SILENT


def test_a_new_question_takes_the_place_of_one_about_the_same_host(place: Place) -> None:
    place.watch(at(2), at(3))
    place.network.lose(at(2).host)
    place.do(lambda: place.witness.look(1, at(2).host), 1.0)
    place.do(lambda: place.witness.look(2, at(2).host), 5.0)
    assert place.said == [(2, SILENT)]


def test_when_it_is_closed_it_stops(place: Place) -> None:
    place.watch(at(2), at(3))
    place.network.lose(at(2).host)
    place.do(lambda: place.witness.look(1, at(2).host), 1.0)
    place.process.start(place.witness.aclose())
    place.process.start(place.witness.aclose())
    place.world.run_until(place.world.now_s + 10.0)
    assert place.said == []


def test_the_limit_is_that_of_any_minute() -> None:
    sightings = Sightings()
    assert sightings.may_dial(DIALS_PER_MINUTE, 0.0)
    assert not sightings.may_dial(1, 59.9)
    assert sightings.may_dial(DIALS_PER_MINUTE, 60.0)
    assert not sightings.may_dial(1, 60.0)


@pytest.mark.parametrize("host", ["127.0.0.1", "::1", "0.0.0.0", "224.0.0.1", "desk.example"])
def test_what_is_no_host_of_another_member_is_never_tried(host: str) -> None:
    assert Sightings().to_try([Address(host, 1)]) == []


def test_what_it_remembers_is_bounded() -> None:
    sightings = Sightings()
    for number in range(2 * SEEN_MAX):
        address = Address(f"10.1.{number // 250}.{number % 250 + 1}", 1)
        sightings.tried(address, has_answered=True)
    assert len(sightings._seen) == len(sightings._tries) == SEEN_MAX
    latest = sightings.others("10.0.0.1", None)
    assert len(latest) == OTHERS_MAX
    assert sightings.seen_at(latest[0].host) == latest[0]
    assert sightings.seen_at("10.1.0.1") is None


@pytest.mark.sockets
def test_a_kernel_answers_by_accepting_and_by_refusing() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        assert asyncio.run(net.answers(Address("127.0.0.1", port), 10.0)) is True
    assert asyncio.run(net.answers(Address("127.0.0.1", free_port()), 10.0)) is True


@pytest.mark.sockets
def test_a_listener_whose_queue_is_full_does_not_answer_in_time() -> None:
    """As a host without power: the kernel drops what it cannot take."""
    with contextlib.ExitStack() as stack:
        server = stack.enter_context(socket.socket())
        server.bind(("127.0.0.1", 0))
        server.listen(0)
        for _ in range(4):
            sock = stack.enter_context(socket.socket())
            sock.setblocking(False)
            assert sock.connect_ex(server.getsockname()) in (0, errno.EINPROGRESS)
        assert asyncio.run(net.answers(Address(*server.getsockname()), 0.2)) is False


@pytest.mark.sockets
@pytest.mark.parametrize("address", [Address("no.such.name", 1), Address("255.255.255.255", 1)])
def test_without_a_way_there_it_cannot_tell(address: Address) -> None:
    assert asyncio.run(net.answers(address, 0.2)) is None
