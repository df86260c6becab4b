"""The order in which a node dials the addresses of an endpoint that has several."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from rallypoint.client.walk import FURTHER, LIKELY_HOSTS, Walk
from rallypoint.core.values import Address
from rallypoint.endpoints import Endpoint, EndpointKind


def endpoint(hosts: int, spare_ports: int = 0) -> Endpoint:
    first, *others = [Address(f"n{number}", 29400) for number in range(hosts)]
    return Endpoint(
        EndpointKind.HOST, first.host, first.port, others=tuple(others), spare_ports=spare_ports
    )


def test_the_first_round_begins_at_the_first_host_and_at_its_first_port() -> None:
    assert Walk(endpoint(1, 15)).round()[0] == Address("n0", 29400)
    first = Walk(endpoint(64, 15)).round()
    assert first[:3] == [Address(f"n{number}", 29400) for number in range(3)]
    assert len(first) <= LIKELY_HOSTS + FURTHER


@given(st.integers(1, 200), st.integers(0, 15), st.sets(st.integers(0, 200), max_size=5))
def test_rounds_are_small_and_come_to_every_address(
    hosts: int, spare_ports: int, busy: set[int]
) -> None:
    walk, count = Walk(endpoint(hosts, spare_ports)), hosts * (1 + spare_ports)
    taken = {Address(f"n{number}", 29400) for number in busy if number < hosts}
    for each in taken:
        walk.note_taken(each, "it runs another run")
    dialled: set[Address] = set()
    for _ in range(-(-count // FURTHER)):
        found = walk.round()
        assert len(found) == len(set(found)) <= LIKELY_HOSTS + FURTHER + len(taken)
        dialled |= set(found)
    assert len(dialled) == count - len(taken)
    assert not dialled & taken


def test_the_port_behind_one_of_another_run_is_likely_on_any_host() -> None:
    walk = Walk(endpoint(64, 15))
    walk.note_taken(Address("n0", 29400), "another run")
    walk.note_taken(Address("n50", 29400), "another run")
    walk.note_taken(Address("n50", 29401), "a third run")
    for _ in range(3):
        assert {Address("n0", 29401), Address("n50", 29402)} <= set(walk.round())
    walk.note_free(Address("n0", 29400))
    assert walk.round()[0] == Address("n0", 29400)


def test_taken_addresses_are_asked_again_in_turn() -> None:
    walk = Walk(endpoint(1, 2))
    assert walk.taken_longest() is None
    one, other = Address("n0", 29400), Address("n0", 29401)
    walk.note_taken(one, "a")
    walk.note_taken(other, "b")
    assert walk.taken_longest() == one
    walk.note_taken(one, "a")
    assert walk.taken_longest() == other
