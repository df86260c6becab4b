"""What a child made by fork() must let go of: the parent's sockets.

A child that keeps a copy of a connection keeps it open when the parent is killed, and the parent's
death then goes unnoticed for as long as the child lives. So each descriptor is replaced in the
child: by /dev/null and not by nothing, since the objects of the parent's event loop still hold the
number there, and must not close somebody else's file.
"""

from __future__ import annotations

import contextlib
import os
import socket
import weakref
from typing import Protocol


class Group(Protocol):
    """Whatever has several descriptors, now these and then others."""

    def filenos(self) -> list[int]:
        """The descriptors that are open now; -1 for one that is closed."""


_sockets: weakref.WeakSet[socket.socket] = weakref.WeakSet()
_groups: weakref.WeakSet[Group] = weakref.WeakSet()


def close_in_children(sock: socket.socket) -> None:
    """See to it that no child made by fork() keeps this socket. Held weakly."""
    _sockets.add(sock)


def close_all_in_children(group: Group) -> None:
    """See to it that no child made by fork() keeps any of these descriptors. Held weakly."""
    _groups.add(group)


def _let_go() -> None:
    filenos = [sock.fileno() for sock in list(_sockets)]
    for group in list(_groups):
        filenos += group.filenos()
    with contextlib.suppress(OSError), open(os.devnull, "r+b") as nothing:  # noqa: PTH123
        for fileno in filenos:
            if fileno >= 0:
                with contextlib.suppress(OSError):
                    os.dup2(nothing.fileno(), fileno, inheritable=False)


os.register_at_fork(after_in_child=_let_go)
