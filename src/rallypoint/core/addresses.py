"""Addresses as text: what kind each is, and which of a machine's own others can use. Pure.

Who asks has found out what interfaces and routes there are (`client/interfaces.py`).
"""

from __future__ import annotations

import ipaddress
from typing import TypeAlias

IpAddress: TypeAlias = ipaddress.IPv4Address | ipaddress.IPv6Address


def literal(text: str) -> IpAddress | None:
    """The address, without how a socket writes it; None if the text is none (a name).

    A socket of both families shows IPv4 peers as ::ffff:1.2.3.4. A zone (fe80::1%eth0) names an
    interface of the machine that says it.
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


def is_loopback(text: str) -> bool:
    """Whether this is an address that means this machine alone. A name is none."""
    address = literal(text)
    return address is not None and address.is_loopback


def is_unspecified(text: str) -> bool:
    """Whether this is an address that means every one of a machine: 0.0.0.0 or ::."""
    address = literal(text)
    return address is not None and address.is_unspecified


def needs_zone(text: str) -> bool:
    """Whether this is an IPv6 link-local address without its zone.

    Each interface has such addresses in a network of its own: without a zone it leads nowhere.
    """
    address = literal(text)
    if not isinstance(address, ipaddress.IPv6Address) or not address.is_link_local:
        return False
    return not text.partition("%")[2]
