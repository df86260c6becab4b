"""What kind of address a text is."""

from __future__ import annotations

import pytest

from rallypoint.core import addresses


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("::ffff:10.0.0.7", "10.0.0.7"),
        ("::FFFF:0a00:0007", "10.0.0.7"),
        ("10.0.0.7", "10.0.0.7"),
        ("2001:db8::7", "2001:db8::7"),
        ("fe80::1%eth0", "fe80::1%eth0"),
        ("node0", "node0"),
        ("", ""),
    ],
)
def test_an_ipv4_address_is_shown_as_one(text: str, shown: str) -> None:
    assert addresses.plain(text) == shown


@pytest.mark.parametrize("text", ["127.0.0.1", "127.0.1.1", "::1", "::ffff:127.0.0.1"])
def test_loopback_addresses_are_loopback(text: str) -> None:
    assert addresses.is_loopback(text)
    assert not addresses.is_unspecified(text)


@pytest.mark.parametrize("text", ["0.0.0.0", "::", "0::0", "::ffff:0.0.0.0"])
def test_wildcards_mean_every_address(text: str) -> None:
    assert addresses.is_unspecified(text)
    assert not addresses.is_loopback(text)


@pytest.mark.parametrize("text", ["10.0.0.7", "169.254.1.1", "2001:db8::7", "localhost", "1"])
def test_other_addresses_are_neither(text: str) -> None:
    assert not addresses.is_loopback(text)
    assert not addresses.is_unspecified(text)
    assert not addresses.needs_zone(text)


def test_an_address_may_have_a_zone() -> None:
    assert addresses.needs_zone("fe80::1")
    assert addresses.needs_zone("FEBF::1")
    assert not addresses.needs_zone("fe80::1%eth0")
    assert not addresses.needs_zone("fec0::1")


def test_an_ipv6_network_counts_as_one_owner() -> None:
    assert addresses.network("2001:db8:0:1::7%eth0") == "2001:db8:0:1::/64"
    assert addresses.network("::ffff:10.0.0.7") == addresses.network("10.0.0.7") == "10.0.0.7"
    assert addresses.network("local") == "local"
