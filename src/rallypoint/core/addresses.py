"""Addresses as text: their kinds, and which of this machine's addresses others can use. Pure.

The caller finds out which interfaces and routes there are (`client/interfaces.py`).
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Sequence
from functools import lru_cache
from typing import Final, TypeAlias

from rallypoint.core.values import NAMES_SHOWN_MAX, Address, FrozenStruct

IpAddress: TypeAlias = ipaddress.IPv4Address | ipaddress.IPv6Address


@lru_cache(maxsize=1_024)
def literal(text: str) -> IpAddress | None:
    """The address, in its plain form; None if the text is not an address but a name.

    A socket of both families shows IPv4 peers as ::ffff:1.2.3.4. A zone (fe80::1%eth0) names an
    interface of the machine that uses it. Remembered, as each connection asks for the same ones.
    """
    try:
        address = ipaddress.ip_address(text.partition("%")[0])
    except ValueError:
        return None
    mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
    return mapped or address


def plain(text: str) -> str:
    """An address as people write it: IPv4 without the prefix that IPv6 sockets give it.

    Any other text stays as it is.
    """
    address = literal(text)
    return str(address) if isinstance(address, ipaddress.IPv4Address) else text


def network(text: str) -> str:
    """The addresses that one owner has: of IPv6 the /64 network; any other text is `plain`."""
    address = literal(text)
    if not isinstance(address, ipaddress.IPv6Address):
        return plain(text)
    return str(ipaddress.ip_network((address, 64), strict=False))


def is_loopback(text: str) -> bool:
    """Whether this is an address that reaches only this machine. For a name it is False."""
    address = literal(text)
    return address is not None and address.is_loopback


def telling(addresses: Sequence[Address], own: Sequence[Address]) -> Sequence[Address]:
    """The addresses of a process whose refusal of a connection tells that the process has ended.

    `own`: those that are addresses of the machine that dials. They count only if there are no
    others: then the process is on this machine. Otherwise this machine answers for another one.
    """
    if len(own) == len(addresses):
        return addresses
    return [each for each in addresses if each not in own]


def is_unspecified(text: str) -> bool:
    """Whether this is an address that means all of a machine's addresses: 0.0.0.0 or ::."""
    address = literal(text)
    return address is not None and address.is_unspecified


def needs_zone(text: str) -> bool:
    """Whether this is an IPv6 link-local address without its zone.

    Every interface has a link-local network of its own, so an address without a zone is ambiguous.
    """
    address = literal(text)
    if not isinstance(address, ipaddress.IPv6Address) or not address.is_link_local:
        return False
    return not text.partition("%")[2]


# -- which address to give to others -------------------------------------------------------------

ADDRESSES_MAX: Final = 8
"""How many of its addresses a machine gives to others."""
_VIRTUAL: Final = re.compile(r"(docker|br-|virbr|veth|cni|flannel|cali|lxc|lxd|podman|vmnet)")
"""Interfaces to guests of this machine, and not to other machines."""


class Interface(FrozenStruct, frozen=True):
    """One address of an interface of this machine. `address`: a literal without a zone.

    `is_inner`: it is the loopback interface, which may have other addresses as well.
    """

    name: str
    address: str
    is_up: bool = True
    is_inner: bool = False


class OwnAddress(FrozenStruct, frozen=True):
    """An address of this machine that is given to other machines. `interface`: "" if unknown."""

    host: str
    interface: str = ""

    def __str__(self) -> str:
        return f"{self.host} ({self.interface})" if self.interface else self.host


def own_addresses(
    sources: Sequence[str], interfaces: Sequence[Interface], wanted: str = ""
) -> tuple[OwnAddress, ...]:
    """The addresses to give to other machines, the best first; empty if there is only loopback.

    There are at most ADDRESSES_MAX. `wanted`: an interface or a network, to which they then belong.
    `sources`: the addresses from which packets would leave, towards peers first, then towards the
    network at large; without zones. Where no route leads anywhere, the address of an interface that
    is up. An address that means something else on each link, or that each machine may have for its
    guests, is given only if there is no other. The latter also if `wanted`, or if it is a source.
    """
    up = [each for each in interfaces if each.is_up]
    if wanted:
        up = list(matching(wanted, up))
        sources = [each for each in sources if any(each == own.address for own in up)]
    by_address = {each.address: each for each in reversed(up)}
    routed = [by_address.get(source, Interface("", source)) for source in sources]
    # In the system's order, which is that in which they were set up.
    outer = [each for each in up if not each.is_inner]
    rest = sorted(
        outer, key=lambda each: (_VIRTUAL.match(each.name) is not None, ":" in each.address)
    )
    usable = [each for each in (*routed, *rest) if _is_for_others(each.address)]
    global_ones = [each for each in usable if not _is_link_local(each.address)]
    found = global_ones or usable
    unique = [each for each in found if each in routed or not _VIRTUAL.match(each.name)]
    given = found if wanted or not unique else unique
    own = [OwnAddress(with_zone(each.address, each.name), each.name) for each in given]
    return tuple(dict.fromkeys(own))[:ADDRESSES_MAX]


def matching(wanted: str, interfaces: Sequence[Interface]) -> list[Interface]:
    """The addresses of an interface, by its name, or in a network, as ADDRESS/BITS."""
    try:
        network = ipaddress.ip_network(wanted, strict=False)
    except ValueError:
        return [each for each in interfaces if each.name == wanted]
    return [each for each in interfaces if _is_in(each.address, network)]


def interface_problem(wanted: str, interfaces: Sequence[Interface]) -> str:
    """Why the interface or network that a user gave cannot be used; "" if it can."""
    found = matching(wanted, interfaces)
    if not interfaces or any(each.is_up and _is_for_others(each.address) for each in found):
        return ""  # Some systems list no addresses.
    if any(each.is_up for each in found):
        return "has no address that other machines can reach"
    if found:
        return "is down"
    is_network = "/" in wanted or literal(wanted) is not None
    return "has no address of this machine" if is_network else "does not exist on this machine"


def _is_in(text: str, network: ipaddress.IPv4Network | ipaddress.IPv6Network) -> bool:
    address = literal(text)
    return address is not None and address.version == network.version and address in network


def interface_of(host: str, interfaces: Sequence[Interface]) -> str:
    """The interface that has an address; "" if none has, or the host is a name."""
    address = literal(host)
    has = (each.name for each in interfaces if literal(each.address) == address)
    return next(has, "") if address is not None else ""


def with_zone(address: str, interface: str) -> str:
    """The address with its interface as its zone, if it needs one."""
    return f"{address}%{interface}" if needs_zone(address) and interface else address


def local_addr_problem(
    found: Sequence[str], interfaces: Sequence[Interface], *, is_alone: bool
) -> str:
    """Why other machines cannot use the address that a user gave for this one; "" if they can.

    `found`: the addresses to which the text resolves here. `is_alone`: no other machine is
    expected.
    """
    if not found or not interfaces:
        return ""  # Others may resolve the name, and some systems list no addresses.
    if all(map(is_loopback, found)):
        return "" if is_alone else "reaches only this machine, but other machines are expected"
    own = {literal(each.address) for each in interfaces}
    is_own = any(is_loopback(each) or literal(each) in own for each in found)
    return "" if is_own else "is not an address of this machine"


def named(interfaces: Sequence[Interface]) -> str:
    """The addresses that can be given to other machines, in words."""
    shown = [
        str(OwnAddress(with_zone(each.address, each.name), each.name))
        for each in interfaces
        if each.is_up and not each.is_inner and _is_for_others(each.address)
    ]
    return ", ".join(shown[:NAMES_SHOWN_MAX]) or "only loopback"


def _is_for_others(text: str) -> bool:
    address = literal(text)
    return address is not None and not (
        address.is_loopback or address.is_unspecified or address.is_multicast
    )


def _is_link_local(text: str) -> bool:
    address = literal(text)
    return address is not None and address.is_link_local
