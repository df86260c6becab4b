"""Whether a machine can be reached at a port where nobody needs to listen yet.

A machine that refuses a connection was reached: its kernel has answered. Only a firewall that
rejects, instead of dropping, cannot be told from it.
"""

from __future__ import annotations

import asyncio
import errno
import socket
from pathlib import Path
from typing import Final

from rallypoint import runtime
from rallypoint.client.interfaces import interfaces, source_towards
from rallypoint.core.addresses import interface_of
from rallypoint.core.values import Address, FrozenStruct
from rallypoint.net import SocketAddress, describe_os_error, look_up
from rallypoint.settings import PortRange

_KERNEL_PORTS: Final = "/proc/sys/net/ipv4/ip_local_port_range"
"""Of IPv6, too. Source: Documentation/networking/ip-sysctl.rst of Linux."""


class Unreached(FrozenStruct, frozen=True):
    """An address that cannot be reached, and why. `interface`: by which it was tried, if known."""

    address: Address
    problem: str
    interface: str = ""


async def unreached(address: Address, limit_s: float) -> Unreached | None:
    """Why an address is not reached within `limit_s` seconds; None if one of its hosts answers."""
    try:
        found = await look_up(address.host, address.port, limit_s)
    except (OSError, TimeoutError, UnicodeError, RuntimeError) as error:
        return Unreached(address, describe_os_error(error))
    problems = await asyncio.gather(*(_problem(each, limit_s) for each in found))
    if not all(problems):
        return None
    source = source_towards(str(found[0].sockaddr[0])) or ""
    return Unreached(address, problems[0], interface_of(source, interfaces()))


def a_kernel_port(
    ports: PortRange, chance: runtime.Chance | None = None, path: str = _KERNEL_PORTS
) -> int | None:
    """One of the ports that the kernel gives to a program that asks for any, outside of `ports`.

    None if there is none, or if this system does not tell its own. Other hosts may have others.
    `chance`: by default the runtime's.
    """
    try:
        first, last = map(int, Path(path).read_text().split())
    except (OSError, ValueError):
        return None
    below = range(first, min(last + 1, ports.first))
    above = range(max(first, ports.last + 1), last + 1)
    outside: list[int] = [*below, *above]
    if not outside:
        return None
    drawn = runtime.here().chance if chance is None else chance
    return outside[drawn.randrange(len(outside))]


async def _problem(address: SocketAddress, limit_s: float) -> str:
    with socket.socket(address.family, socket.SOCK_STREAM) as sock:
        sock.setblocking(False)
        try:
            async with asyncio.timeout(limit_s):
                await asyncio.get_running_loop().sock_connect(sock, address.sockaddr)
        except TimeoutError:
            return f"no answer within {limit_s:g} s"
        except OSError as error:
            return "" if error.errno == errno.ECONNREFUSED else describe_os_error(error)
    return ""
