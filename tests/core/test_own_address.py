"""Which of its addresses a machine tells others, for real interfaces and routes."""

from __future__ import annotations

import pytest

from rallypoint.core.addresses import (
    ADDRESSES_MAX,
    Interface,
    OwnAddress,
    interface_of,
    interface_problem,
    local_addr_problem,
    named,
    own_addresses,
    with_zone,
)

LO = (Interface("lo", "127.0.0.1", is_inner=True), Interface("lo", "::1", is_inner=True))
ETH0 = Interface("eth0", "10.0.0.5")
ETH1 = Interface("eth1", "192.168.7.5")
DOWN = Interface("ib0", "10.9.0.5", is_up=False)
DOCKER = Interface("docker0", "172.17.0.1")
SIX = Interface("eth0", "2001:db8:1::5")
LINK = Interface("eth0", "fe80::5")
APIPA = Interface("eth0", "169.254.3.4")


@pytest.mark.parametrize(
    ("name", "sources", "interfaces", "told"),
    [
        ("a default route", ["10.0.0.5"], [*LO, ETH1, ETH0], "10.0.0.5 (eth0)"),
        ("a route to the peers first", ["192.168.7.5", "10.0.0.5"], [*LO, ETH0, ETH1],
         "192.168.7.5 (eth1)"),
        ("peers by loopback", ["127.0.0.1", "10.0.0.5"], [*LO, ETH0], "10.0.0.5 (eth0)"),
        ("peers by 127.0.1.1, as on Debian", ["127.0.1.1", "10.0.0.5"], [*LO, ETH0],
         "10.0.0.5 (eth0)"),
        ("no default route", [], [*LO, ETH0], "10.0.0.5 (eth0)"),
        ("no default route, one interface down", [], [*LO, DOWN, ETH1], "192.168.7.5 (eth1)"),
        ("no default route, a bridge of guests", [], [*LO, DOCKER, ETH0], "10.0.0.5 (eth0)"),
        ("only a bridge of guests", [], [*LO, DOCKER], "172.17.0.1 (docker0)"),
        ("IPv6 only, with a route", ["2001:db8:1::5"], [*LO, LINK, SIX], "2001:db8:1::5 (eth0)"),
        ("IPv6 only, without one", [], [*LO, LINK, SIX], "2001:db8:1::5 (eth0)"),
        ("both families, no route", [], [*LO, SIX, ETH1], "192.168.7.5 (eth1)"),
        ("link-local alone keeps its zone", [], [*LO, LINK], "fe80::5%eth0 (eth0)"),
        ("a link-local route keeps its zone", ["fe80::5"], [*LO, LINK], "fe80::5%eth0 (eth0)"),
        ("anything rather than link-local", ["fe80::5"], [*LO, LINK, ETH1], "192.168.7.5 (eth1)"),
        ("IPv4 link-local", [], [*LO, APIPA], "169.254.3.4 (eth0)"),
        ("an address on the loopback interface", [],
         [*LO, Interface("lo", "10.77.0.1", is_inner=True), ETH0], "10.0.0.5 (eth0)"),
        ("a route from there", ["10.77.0.1"],
         [*LO, Interface("lo", "10.77.0.1", is_inner=True), ETH0], "10.77.0.1 (lo)"),
        ("an interface that is not listed", ["10.0.0.9"], [*LO], "10.0.0.9"),
        ("IPv4 in IPv6", ["::ffff:127.0.0.1"], [*LO, ETH0], "10.0.0.5 (eth0)"),
    ],
)  # fmt: skip
def test_the_address_that_others_get(
    name: str, sources: list[str], interfaces: list[Interface], told: str
) -> None:
    assert str(own_addresses(sources, interfaces)[0]) == told


@pytest.mark.parametrize("interfaces", [[], [*LO], [*LO, DOWN]])
def test_loopback_is_not_advertised(interfaces: list[Interface]) -> None:
    assert own_addresses(["127.0.0.1", "::1", "0.0.0.0"], interfaces) == ()


def test_all_addresses_are_given_the_best_first() -> None:
    has = [*LO, DOCKER, DOWN, LINK, ETH1, SIX, ETH0]
    found = own_addresses(["10.0.0.5", "10.0.0.5"], has)
    assert list(map(str, found)) == [
        "10.0.0.5 (eth0)",
        "192.168.7.5 (eth1)",
        "2001:db8:1::5 (eth0)",
    ]
    many = [Interface(f"eth{number}", f"10.0.{number}.1") for number in range(100)]
    assert len(own_addresses([], many)) == ADDRESSES_MAX


def test_the_address_of_a_bridge_of_guests_is_given_only_if_there_is_a_reason() -> None:
    """Each machine may have the same one, so another machine may answer at it."""
    has = [*LO, DOCKER, ETH0]
    for sources, wanted, told in (
        ([], "", ["10.0.0.5 (eth0)"]),
        (["10.0.0.5"], "", ["10.0.0.5 (eth0)"]),
        (["172.17.0.1"], "", ["172.17.0.1 (docker0)", "10.0.0.5 (eth0)"]),
        (["10.0.0.5"], "docker0", ["172.17.0.1 (docker0)"]),
    ):
        assert list(map(str, own_addresses(sources, has, wanted))) == told
    assert list(map(str, own_addresses([], [*LO, DOCKER, LINK]))) == ["172.17.0.1 (docker0)"]


@pytest.mark.parametrize(
    ("wanted", "told"),
    [
        ("eth1", ["192.168.7.5 (eth1)"]),
        ("eth0", ["10.0.0.5 (eth0)", "2001:db8:1::5 (eth0)"]),
        ("192.168.0.0/16", ["192.168.7.5 (eth1)"]),
        ("192.168.7.9/24", ["192.168.7.5 (eth1)"]),
        ("10.0.0.5", ["10.0.0.5 (eth0)"]),
        ("2001:db8:1::/48", ["2001:db8:1::5 (eth0)"]),
        ("ib0", []),
        ("eth7", []),
    ],
)
def test_an_interface_or_a_network_limits_them(wanted: str, told: list[str]) -> None:
    has = [*LO, DOWN, ETH1, ETH0, SIX]
    assert list(map(str, own_addresses(["10.0.0.5"], has, wanted))) == told


@pytest.mark.parametrize(
    ("wanted", "problem"),
    [
        ("eth0", ""),
        ("10.0.0.0/8", ""),
        ("eth7", "does not exist on this machine"),
        ("11.0.0.0/8", "has no address of this machine"),
        ("ib0", "is down"),
        ("lo", "has no address that other machines can reach"),
    ],
)
def test_an_interface_that_cannot_be_used(wanted: str, problem: str) -> None:
    assert interface_problem(wanted, [*LO, DOWN, ETH0]) == problem
    assert interface_problem(wanted, []) == ""


def test_a_zone_is_added_only_where_one_is_needed() -> None:
    assert with_zone("fe80::5", "eth0") == "fe80::5%eth0"
    assert with_zone("fe80::5%eth1", "eth0") == "fe80::5%eth1"
    assert with_zone("2001:db8::5", "eth0") == "2001:db8::5"
    assert str(OwnAddress("10.0.0.5")) == "10.0.0.5"


@pytest.mark.parametrize(
    ("found", "is_alone", "problem"),
    [
        (["10.0.0.5"], False, ""),
        (["::ffff:10.0.0.5"], False, ""),
        (["fe80::5"], False, ""),
        (["127.0.0.1", "10.0.0.5"], False, ""),
        (["10.0.0.6"], False, "is not an address of this machine"),
        (["10.0.0.6"], True, "is not an address of this machine"),
        (["2001:db8:1::6"], False, "is not an address of this machine"),
        (["127.0.0.1"], True, ""),
        (
            ["127.0.0.1", "::1"],
            False,
            "reaches only this machine, but other machines are expected",
        ),
        (["127.0.1.1"], False, "reaches only this machine, but other machines are expected"),
        ([], False, ""),
    ],
)
def test_an_address_that_was_given(found: list[str], is_alone: bool, problem: str) -> None:
    has = [*LO, ETH0, LINK]
    assert local_addr_problem(found, has, is_alone=is_alone) == problem
    assert local_addr_problem(found, [], is_alone=is_alone) == ""


@pytest.mark.parametrize(
    ("host", "name"),
    [
        ("10.0.0.5", "eth0"),
        ("::ffff:10.0.0.5", "eth0"),
        ("fe80::5%eth0", "eth0"),
        ("127.0.0.1", "lo"),
        ("10.0.0.6", ""),
        ("node0", ""),
    ],
)
def test_the_interface_of_an_address(host: str, name: str) -> None:
    assert interface_of(host, [*LO, ETH0, LINK]) == name


def test_the_interfaces_of_a_machine_are_described() -> None:
    assert named([*LO, ETH0, DOWN, LINK]) == "10.0.0.5 (eth0), fe80::5%eth0 (eth0)"
    assert named([*LO]) == "only loopback"
