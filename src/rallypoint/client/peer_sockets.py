"""The connections that a library, such as gloo, opens from this process to the other workers.

A collective waits for a frozen peer for as long as the library's own timeout, and gloo has no call
that ends it earlier. It ends with an error as soon as its connections are shut down. They belong to
the library, so this file only asks the kernel about descriptors, and never closes one of them. It
asks by the C library: if the program has set a default timeout (socket.setdefaulttimeout), one of
Python's socket objects would make the connection non-blocking, for the library too.

What must not be here: knowledge of torch or JAX.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import json
import logging
import os
import socket
import stat
import struct
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Final, Protocol

from rallypoint.client.blocking import World
from rallypoint.core.values import Change

_log = logging.getLogger("rallypoint.client")

_DESCRIPTORS: Final = Path("/proc/self/fd")
"""Only Linux has it. Elsewhere nothing is found, so nothing is shut down."""
_ADDRESS_BYTES: Final = {socket.AF_INET: slice(4, 8), socket.AF_INET6: slice(8, 24)}
"""Where sockaddr_in and sockaddr_in6 have the address. Source: Linux, ip(7) and ipv6(7)."""
_ADDRESS_BYTES_MAX: Final = 128


class KeyValues(Protocol):
    """What is used of a world's store, or of torch's."""

    def set(self, key: str, value: str) -> None:
        """Store a value."""

    def multi_get(self, keys: Sequence[str]) -> list[bytes]:
        """Wait until all keys exist, and return their values."""


class PeerSockets:
    """The connections of a library that begins to listen after this object was made.

    Other threads open sockets at the same time. So a connection counts only if one of its ends is a
    port at which the library listens, here or at another worker.
    """

    def __init__(self) -> None:
        self._before = {inode for inode, _ in _sockets()}
        self._ports: frozenset[str] = frozenset()

    def meet(self, store: KeyValues, prefix: str, rank: int, size: int) -> None:
        """Learn the ports of the library in all workers: each calls it once its own listens.

        `prefix`: of the keys that it uses in the store. Raises the errors of the store.
        """
        keys = [f"{prefix}/listening/{each}" for each in range(size)]
        store.set(keys[rank], json.dumps(self.listening()))
        self.learn(port for told in store.multi_get(keys) for port in json.loads(told))

    def listening(self) -> list[str]:
        """Where this process listens since this object was made, as `host:port`."""
        return [
            _own_end(number)
            for inode, number in _sockets()
            if inode not in self._before and _listens(number)
        ]

    def learn(self, ports: Iterable[str]) -> None:
        """Remember at which ports the library listens, in this process and in the others."""
        self._ports = frozenset(ports)

    def shut_down(self) -> int:
        """End the library's connections. Any thread may call it, at any time.

        Returns how many they were.
        """
        count = 0
        for inode, number in _sockets():
            if inode not in self._before and not self._ports.isdisjoint(_ends(number)):
                count += _shut_down(number)
        return count


class ServicePort:
    """The port at which rank 0 runs a service of a library, for the clients of all workers.

    Make it before the library connects.
    """

    def __init__(self, port: int) -> None:
        self._end = f":{port}"
        self._before = {inode for inode, _ in _sockets()}
        self._dialled: set[str] = set()

    @property
    def is_visible(self) -> bool:
        """Whether this system tells who is connected. If not, nobody seems to be."""
        return _DESCRIPTORS.is_dir()

    def learn(self) -> None:
        """Remember the address that the library has dialled in this process."""
        peers = (_peer(number) for inode, number in _sockets() if inode not in self._before)
        self._dialled = {each for each in peers if each.endswith(self._end)}

    def hang_up(self) -> None:
        """End this process's connections to the service. Its client must be shut down.

        The library ends them only with the last object that uses the client, which the program may
        keep.
        """
        for inode, number in _sockets():
            if inode not in self._before and _peer(number) in self._dialled:
                _shut_down(number)

    def is_used(self) -> bool:
        """At rank 0: whether a client is connected to the service of this process."""
        return any(self._serves(number) for _, number in _sockets())

    def cut(self) -> None:
        """At rank 0: end the connections of all clients."""
        for _, number in _sockets():
            if self._serves(number):
                _shut_down(number)

    def _serves(self, number: int) -> bool:
        return _own_end(number).endswith(self._end) and bool(_peer(number))


@contextlib.contextmanager
def freed(world: World, unwind_s: float, free: Callable[[], object]) -> Iterator[None]:
    """A block that may hang when the world ends. If it has not ended `unwind_s` later, call `free`.

    `free` is called in a thread of its own. If the block has not ended another `unwind_s` later,
    the program is told: gloo does not end a send that had begun before it saw the end of its
    connection, as happens to a process that was frozen. Nothing but gloo's own timeout does.
    Source: gloo, transport/tcp/pair.cc, signalException, which tells the buffers of all operations
    but of those that wait to be written.
    """
    has_ended = threading.Event()

    def wait() -> None:
        if has_ended.wait(unwind_s):
            return
        free()
        if not has_ended.wait(unwind_s):
            _log.warning(
                "round %s has ended, but this worker is still in its block, %g s after the "
                "connections of its collectives were ended. It hangs in a collective that its "
                "library does not end before its own timeout, or in the program's own code. "
                "`rallypoint run --keep-workers` starts such a worker again",
                world.number,
                unwind_s,
            )

    def start(change: Change) -> None:
        threading.Thread(target=wait, name="rallypoint-unwind", daemon=True).start()

    world.on_change(start)
    try:
        yield
    finally:
        has_ended.set()


def _sockets() -> Iterator[tuple[int, int]]:
    """(inode, descriptor) of each Internet socket of this process.

    The descriptor is a copy, and closed after its turn. So the library may close its own meanwhile,
    and a descriptor with the same number does not take its place.
    """
    try:
        numbers = [int(each.name) for each in _DESCRIPTORS.iterdir()]
    except OSError:
        return
    for number in numbers:
        try:
            if not stat.S_ISSOCK(os.fstat(number).st_mode):
                continue
            copy = os.dup(number)
        except OSError:  # closed meanwhile
            continue
        try:
            if _own_end(copy):
                yield os.fstat(copy).st_ino, copy
        finally:
            os.close(copy)


@functools.cache
def _kernel() -> ctypes.CDLL:
    return ctypes.CDLL(None)


def _listens(number: int) -> bool:
    value, size = ctypes.c_int(0), ctypes.c_uint32(ctypes.sizeof(ctypes.c_int))
    option = (int(socket.SOL_SOCKET), int(socket.SO_ACCEPTCONN))
    _kernel().getsockopt(number, *option, ctypes.byref(value), ctypes.byref(size))
    return bool(value.value)


def _ends(number: int) -> set[str]:
    """Both addresses of a connection; empty if it is not connected, as one that listens."""
    peer = _peer(number)
    return {_own_end(number), peer} if peer else set()


def _own_end(number: int) -> str:
    return _address(_kernel().getsockname, number)


def _peer(number: int) -> str:
    """The other end of a connection; "" if it is not connected."""
    return _address(_kernel().getpeername, number)


def _shut_down(number: int) -> bool:
    return bool(_kernel().shutdown(number, int(socket.SHUT_RDWR)) == 0)


def _address(asked: Callable[..., int], number: int) -> str:
    """`host:port` of one end; "" without one, and for a socket that is not of the Internet."""
    found = ctypes.create_string_buffer(_ADDRESS_BYTES_MAX)
    size = ctypes.c_uint32(_ADDRESS_BYTES_MAX)
    if asked(number, found, ctypes.byref(size)) != 0:
        return ""
    (family,), (port,) = struct.unpack_from("=H", found), struct.unpack_from("!H", found, 2)
    if family not in _ADDRESS_BYTES:
        return ""
    host = socket.inet_ntop(family, found.raw[_ADDRESS_BYTES[family]])
    return f"{host}:{port}"
