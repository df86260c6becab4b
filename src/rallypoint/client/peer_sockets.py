"""The connections that a library, such as gloo, opens from this process to the other workers.

A collective waits for a frozen peer for as long as the library's own timeout, and gloo has no call
that ends it earlier. It ends with an error as soon as its connections are shut down. They belong to
the library, so this file only asks the kernel about descriptors, and never closes one of them.

What must not be here: knowledge of torch or JAX.
"""

from __future__ import annotations

import contextlib
import os
import socket
import stat
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Final

_DESCRIPTORS: Final = Path("/proc/self/fd")
"""Only Linux has it. Elsewhere nothing is found, so nothing is shut down."""
_INTERNET: Final = (socket.AF_INET, socket.AF_INET6)


class PeerSockets:
    """The sockets that this process opens from now on, until `keep` is called.

    Other threads open sockets at the same time. So a connection counts only if one of its ends is a
    port at which the library listens, here or at another worker. Each worker tells the others
    `listening()`, and passes what they all said to `keep`.
    """

    def __init__(self) -> None:
        self._before = {inode for inode, _ in _sockets()}
        self._kept: frozenset[int] = frozenset()

    def listening(self) -> list[str]:
        """Where this process listens since this object was made, as `host:port`."""
        return [
            _text(sock.getsockname())
            for inode, sock in _sockets()
            if inode not in self._before and _listens(sock)
        ]

    def keep(self, listening: Iterable[str]) -> int:
        """Remember the connections that were opened since. Returns how many there are."""
        ends = frozenset(listening)
        self._kept = frozenset(
            inode
            for inode, sock in _sockets()
            if inode not in self._before and not _listens(sock) and not ends.isdisjoint(_ends(sock))
        )
        return len(self._kept)

    def shut_down(self) -> int:
        """End what is still open of the kept connections. Any thread may call it, at any time.

        Returns how many they were.
        """
        count = 0
        for inode, sock in _sockets():
            if inode in self._kept:
                with contextlib.suppress(OSError):
                    sock.shutdown(socket.SHUT_RDWR)
                    count += 1
        return count


def _sockets() -> Iterator[tuple[int, socket.socket]]:
    """(inode, socket) of each Internet socket of this process.

    The socket is a copy of the descriptor, and closed after its turn. So the library may close its
    own meanwhile, and a descriptor with the same number does not take its place.
    """
    try:
        numbers = [int(each.name) for each in _DESCRIPTORS.iterdir()]
    except OSError:
        return
    for number in numbers:
        try:
            what = os.fstat(number)
            if not stat.S_ISSOCK(what.st_mode):
                continue
            copy = os.dup(number)
        except OSError:  # closed meanwhile
            continue
        try:
            sock = socket.socket(fileno=copy)
        except OSError:
            os.close(copy)
            continue
        with sock:
            if sock.family in _INTERNET and os.fstat(copy).st_ino == what.st_ino:
                yield what.st_ino, sock


def _listens(sock: socket.socket) -> bool:
    return bool(sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN))


def _ends(sock: socket.socket) -> set[str]:
    """Both addresses of a connection; empty if it is not connected."""
    try:
        return {_text(sock.getsockname()), _text(sock.getpeername())}
    except OSError:
        return set()


def _text(address: tuple[str, int]) -> str:
    return f"{address[0]}:{address[1]}"
