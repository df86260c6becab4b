"""Closes the parent's sockets in a child made by fork().

A child's copy of a connection keeps it open after the parent was killed. Peers would then not
notice the parent's death while the child is alive. So the child replaces each descriptor by
/dev/null. It does not just close them, because objects of the parent's event loop still have the
numbers, and would close other files later.
"""

from __future__ import annotations

import contextlib
import os
import socket
import weakref
from typing import Protocol


class Group(Protocol):
    """An object whose open descriptors change."""

    def filenos(self) -> list[int]:
        """The open descriptors; -1 for a closed one."""


_sockets: weakref.WeakSet[socket.socket] = weakref.WeakSet()
_groups: weakref.WeakSet[Group] = weakref.WeakSet()


def close_in_children(sock: socket.socket) -> None:
    """Close this socket in each child made by fork(). Only a weak reference is kept."""
    _sockets.add(sock)


def close_all_in_children(group: Group) -> None:
    """Close these descriptors in each child made by fork(). Only a weak reference is kept."""
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
