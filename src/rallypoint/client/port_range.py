"""The ports of `port_range`: the first free one of them, and what holds those that are taken."""

from __future__ import annotations

import contextlib
import errno
from collections.abc import Awaitable, Callable, Iterable, Iterator
from pathlib import Path
from typing import Final, TypeVar

from rallypoint import runtime
from rallypoint.settings import PortRange

T = TypeVar("T")

HINT: Final = (
    "--port-range A:B (RALLYPOINT_PORT_RANGE) gives other ports: a range that no other program on "
    "this machine uses"
)
SHOWN_MAX: Final = 8
"""How many ports an error lists with their holders."""
_LISTENS: Final = "0A"
_TIME_WAIT: Final = "06"
"""States in /proc/net/tcp. Source: include/net/tcp_states.h of Linux."""


class PortsTakenError(OSError):
    """No port of the range is free. The text has each port's holder, where it is known."""

    def __init__(self, ports: PortRange, held: str) -> None:
        what = f"ports {ports} are all taken"
        if ports.first == ports.last:
            what = f"port {ports.first} is taken"
        super().__init__(errno.EADDRINUSE, f"{what} on this machine ({held})")


def reserve_in(ports: PortRange, reserve: Callable[[int], T], last: int | None) -> T:
    """Reserve a free port of the range, from its end: coordinators take the first free one.

    `last`: the port that was reserved before. It is tried last, because connections to it may have
    just ended. Raises PortsTakenError, and the other errors of `reserve`.
    """
    order = list(reversed(ports.ports))
    if last is not None and last in order:
        at = order.index(last) + 1
        order = order[at:] + order[:at]
    for port in order:
        try:
            return reserve(port)
        except OSError as error:
            if error.errno not in _TRIES_ANOTHER:
                raise
    raise PortsTakenError(ports, holders(ports.ports))


async def serve_in(ports: PortRange, serve: Callable[[int], Awaitable[T]]) -> T:
    """Serve at the first free port of the range. Raises as `reserve_in`."""
    for port in ports.ports:
        try:
            return await serve(port)
        except OSError as error:
            if error.errno not in _TRIES_ANOTHER:
                raise
    raise PortsTakenError(ports, await runtime.in_thread(lambda: holders(ports.ports)))


_TRIES_ANOTHER: Final = (errno.EADDRINUSE, errno.EACCES)
"""EACCES: a port below 1024, for another user than root."""


# -- what holds a port -----------------------------------------------------------------------------


def holders(ports: Iterable[int]) -> str:
    """What holds each of some ports of this machine, in words, as far as Linux tells this user."""
    sockets = _sockets()
    processes = _processes({inode for each in sockets.values() for _, inode in each})
    shown = [f"{port}: {_holder(sockets.get(port, []), processes)}" for port in ports]
    if len(shown) > SHOWN_MAX:
        shown[SHOWN_MAX:] = [f"and {len(shown) - SHOWN_MAX} more"]
    return "; ".join(shown)


def all_held(ports: Iterable[int]) -> str:
    """As `holders`, if something listens at each of these ports; else "", and without Linux."""
    sockets = _sockets()
    ports = list(ports)
    listened = [any(state == _LISTENS for state, _ in sockets.get(port, [])) for port in ports]
    return holders(ports) if ports and all(listened) else ""


def holder(port: int) -> str:
    """What holds a port of this machine: see `holders`."""
    return holders([port]).partition(": ")[2]


def _holder(sockets: list[tuple[str, str]], processes: dict[str, str]) -> str:
    known = [processes[inode] for _, inode in sockets if inode in processes]
    if known:
        return known[0]
    states = [state for state, _ in sockets]
    if _LISTENS in states:
        return "a process of another user"
    if states and all(state == _TIME_WAIT for state in states):
        return "connections that have just ended"
    return "a process that does not listen yet"


def _sockets() -> dict[int, list[tuple[str, str]]]:
    """State and inode of each socket, by local port."""
    found: dict[int, list[tuple[str, str]]] = {}
    for name in ("tcp", "tcp6"):
        with contextlib.suppress(OSError):
            for line in Path("/proc/self/net", name).read_text().splitlines()[1:]:
                fields = line.split()
                port = int(fields[1].rpartition(":")[2], 16)
                found.setdefault(port, []).append((fields[3], fields[9]))
    return found


def _processes(inodes: set[str]) -> dict[str, str]:
    """The process that has each socket, in words, by inode: those that this user may see."""
    wanted = {f"socket:[{inode}]": inode for inode in inodes if inode != "0"}
    found: dict[str, str] = {}
    for process in _listed(Path("/proc")):
        if not process.name.isdigit():
            continue
        for descriptor in _listed(process / "fd"):
            with contextlib.suppress(OSError):
                inode = wanted.get(str(descriptor.readlink()))
                if inode is not None and inode not in found:
                    found[inode] = f"{(process / 'comm').read_text().strip()}, pid {process.name}"
    return found


def _listed(folder: Path) -> Iterator[Path]:
    with contextlib.suppress(OSError):
        yield from folder.iterdir()
