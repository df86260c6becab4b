"""Who this node is: its name, its incarnation, its host and the address at which it is reached."""

from __future__ import annotations

import asyncio
import logging
from itertools import count
from typing import Final
from weakref import WeakKeyDictionary

from rallypoint import runtime
from rallypoint.client.interfaces import NOWHERE, interfaces, source_towards
from rallypoint.core import addresses
from rallypoint.core.addresses import OwnAddress
from rallypoint.core.values import NAME_LENGTH_MAX, NodeInfo
from rallypoint.endpoints import Endpoint, EtcdPlace, PackagePlace, is_loopback
from rallypoint.errors import UsageError
from rallypoint.net import SocketAddress, look_up
from rallypoint.settings import NodeSettings

_log = logging.getLogger("rallypoint.client")

MARK_LETTERS: Final = "bcdfghjkmnpqrstvwxz"
"""No vowels, so that a mark is never a word. No digits, because names are sorted by numbers."""
MARK_LENGTH: Final = 6
"""There are 19 ** 6 marks: of 100 processes with the same host name and pid, two have the same mark
once in 9,000 runs. The second of them is refused, like any node whose name is taken.
"""
LOOKUP_TIMEOUT_S: Final = 2.0
MEETING_HOSTS: Final = 8
"""How many hosts of an endpoint are looked up, to find the address towards them."""


async def own_addresses(endpoint: Endpoint, wanted: str | None = None) -> tuple[OwnAddress, ...]:
    """The addresses of this machine that other machines can use. Empty if it has only loopback.

    First the source addresses of packets to the endpoint's hosts, then that of packets to any
    network, then those of the interfaces that are up. `wanted`: the setting `interface`. Sends
    nothing.
    """
    hosts = [*await _meeting_hosts(endpoint), *((host, 0) for host in NOWHERE)]
    sources = [source_towards(host, scope) for host, scope in hosts]
    return addresses.own_addresses([each for each in sources if each], interfaces(), wanted or "")


def own_address_of(host: str) -> OwnAddress:
    """A given address of this machine, with its interface."""
    return OwnAddress(host, addresses.interface_of(host, interfaces()))


def own_address_towards(host: str) -> OwnAddress | None:
    """The address of this machine from which packets to an address leave; None without a route."""
    source = source_towards(host)
    return None if source is None else own_address_of(source)


async def check_local_addr(settings: NodeSettings, max_nodes: int) -> None:
    """Check that other machines can reach this one at `local_addr`, and `interface`.

    Raises UsageError.
    """
    if settings.interface is not None:
        check_interface(settings.interface)
    given, endpoint = settings.local_addr, settings.endpoint
    if given is None:
        return
    is_alone = max_nodes == 1 or may_be_one_machine(endpoint)
    found = [each.host for each in await _look_up(given)]
    if not found:
        _log.warning("local address %s cannot be resolved on this machine", given)
    has = interfaces()
    problem = addresses.local_addr_problem(found, has, is_alone=is_alone)
    # On Debian a machine resolves its own name to 127.0.1.1, and others to its real address.
    is_own_name = given.partition(".")[0] == runtime.here().host_name.partition(".")[0]
    if problem and not is_own_name:
        raise UsageError(
            f"local address {given!r} {problem}",
            hint="give an address of this machine that other machines can reach: it has "
            f"{addresses.named(has)}; without --local-addr (RALLYPOINT_LOCAL_ADDR) the node "
            "chooses one",
        )


def check_interface(wanted: str) -> None:
    """Check that other machines can reach this one by this interface or network: see `interface`.

    Raises UsageError.
    """
    has = interfaces()
    problem = addresses.interface_problem(wanted, has)
    if problem:
        raise UsageError(
            f"interface {wanted!r} {problem}",
            hint="--interface (RALLYPOINT_INTERFACE) is the name of an interface, or a network "
            f"such as 10.0.0.0/8: this machine has {addresses.named(has)}",
        )


def may_be_one_machine(endpoint: Endpoint) -> bool:
    """Whether the endpoint has no address of another machine."""
    if isinstance(endpoint.place, EtcdPlace):
        return all(is_loopback(_without_port(each)) for each in endpoint.place.hosts)
    if isinstance(endpoint.place, PackagePlace):
        return not endpoint.place.host or is_loopback(endpoint.place.host)
    return not endpoint.host or endpoint.is_loopback


def _without_port(authority: str) -> str:
    return authority.rpartition(":")[0].strip("[]")


async def _meeting_hosts(endpoint: Endpoint) -> list[tuple[str, int]]:
    """The addresses of an endpoint's hosts, each with its scope."""
    place = endpoint.place
    # A file ledger or a torch ledger has no host.
    hosts = [endpoint.host, *(each.host for each in endpoint.others)]
    if isinstance(place, EtcdPlace):
        hosts = [*map(_without_port, place.hosts)]
    elif isinstance(place, PackagePlace):
        hosts = [place.host]
    found = await asyncio.gather(*(_look_up(host) for host in hosts[:MEETING_HOSTS] if host))
    return [(each.host, each.scope) for one in found for each in one]


async def _look_up(host: str) -> list[SocketAddress]:
    """The addresses to which this machine resolves a name or an address; empty if unknown."""
    try:
        return await look_up(host, 0, LOOKUP_TIMEOUT_S)
    except (TimeoutError, OSError, UnicodeError):
        return []


def node_info(settings: NodeSettings, workers: int) -> NodeInfo:
    """The values that this node sends about itself.

    The default name has the host, the pid, a random mark of this process, and a counter, so it is
    new at every start. Host and pid alone are not unique: containers may share a host name, and
    each has a process with pid 1. The incarnation is random for every join.
    """
    process = runtime.here()
    host, pid = process.host_name[:NAME_LENGTH_MAX] or "unnamed", process.pid
    serial = next(_serials.setdefault(process, count()))
    own = f"{host}-{pid}-{_mark(process, pid)}-{serial}"
    name = settings.node_name or own[-NAME_LENGTH_MAX:]
    told = (settings.local_addr,) if settings.local_addr else ()
    return NodeInfo(
        name,
        int.from_bytes(process.token_bytes(8), "big") >> 2,
        host,
        told,
        workers,
        dict(settings.labels),
        settings.stop_s,
        settings.node_index,
    )


_serials: WeakKeyDictionary[runtime.Runtime, count[int]] = WeakKeyDictionary()
_marks: WeakKeyDictionary[runtime.Runtime, dict[int, str]] = WeakKeyDictionary()
"""By process: a simulated one must not be kept when its world has ended."""


def _mark(process: runtime.Runtime, pid: int) -> str:
    """One mark for all nodes of a process, so that the counter orders them. A fork has another."""
    marks = _marks.setdefault(process, {})
    if pid not in marks:
        drawn = process.token_bytes(8 * MARK_LENGTH)
        numbers = [int.from_bytes(drawn[8 * i : 8 * i + 8], "big") for i in range(MARK_LENGTH)]
        marks[pid] = "".join(MARK_LETTERS[number % len(MARK_LETTERS)] for number in numbers)
    return marks[pid]
