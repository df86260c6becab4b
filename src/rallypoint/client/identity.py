"""Who this node is: its name, its incarnation, its host and the address at which it is reached."""

from __future__ import annotations

import asyncio
import ipaddress
import os
import secrets
import socket
from functools import cache
from itertools import count
from typing import Final

from rallypoint.core.values import NAME_LENGTH_MAX, NodeInfo
from rallypoint.endpoints import Endpoint, EtcdPlace
from rallypoint.settings import NodeSettings

_counter = count()

MARK_LETTERS: Final = "bcdfghjkmnpqrstvwxz"
"""Neither vowels, so that no word comes of them, nor digits: names are sorted by their numbers."""
MARK_LENGTH: Final = 6
"""19 ** 6 marks: among 100 processes that share host name and pid, two get the same once in 9,000
runs. Those two are told so, as two nodes of one name are."""
LOOKUP_TIMEOUT_S: Final = 2.0


NOWHERE: Final = (("192.0.2.1", socket.AF_INET), ("2001:db8::1", socket.AF_INET6))
"""Addresses for documentation (RFC 5737, RFC 3849): what leads there is the way to the network."""


async def reachable_host(endpoint: Endpoint) -> str:
    """An address of this machine for others to come to: the one by which it reaches the network.

    As a packet to the ledger's first host would leave; to anywhere, if that is this machine; else
    loopback. Nothing is sent.
    """
    for host, family in [*await _ledger_hosts(endpoint), *NOWHERE]:
        own = _source_address(host, family)
        if own is not None and not ipaddress.ip_address(own.partition("%")[0]).is_loopback:
            return own
    return "127.0.0.1"


async def _ledger_hosts(endpoint: Endpoint) -> list[tuple[str, int]]:
    place = endpoint.place
    host = endpoint.host  # of a ledger that only its opener knows
    if isinstance(place, EtcdPlace):
        host = place.hosts[0].rpartition(":")[0].strip("[]")
    if not host:
        return []
    try:
        async with asyncio.timeout(LOOKUP_TIMEOUT_S):
            found = await asyncio.get_running_loop().getaddrinfo(host, 0, type=socket.SOCK_DGRAM)
    except (TimeoutError, OSError, UnicodeError):
        return []
    return [(str(where[0]), family) for family, _, _, _, where in found]


def _source_address(host: str, family: int) -> str | None:
    try:
        with socket.socket(family, socket.SOCK_DGRAM) as sock:
            sock.connect((host, 9))
            return str(sock.getsockname()[0])
    except OSError:
        return None


def node_info(settings: NodeSettings, workers: int) -> NodeInfo:
    """What this node tells of itself.

    The default name is host, pid, a mark drawn by chance for this process, and a counter: new at
    every start. Containers may share a host name (with the host's network they do), and each has a
    pid 1 of its own, so host and pid alone name nobody. The incarnation is drawn for every join.
    """
    host = socket.gethostname()[:NAME_LENGTH_MAX] or "unnamed"
    own = f"{host}-{os.getpid()}-{_mark(os.getpid())}-{next(_counter)}"
    name = settings.node_name or own[-NAME_LENGTH_MAX:]
    addresses = (settings.local_addr,) if settings.local_addr else ()
    return NodeInfo(
        name,
        secrets.randbits(62),
        host,
        addresses,
        workers,
        dict(settings.labels),
        settings.stop_s,
    )


@cache
def _mark(pid: int) -> str:
    """The same for all nodes of a process, so that its counter orders them; a fork draws anew."""
    return "".join(secrets.choice(MARK_LETTERS) for _ in range(MARK_LENGTH))
