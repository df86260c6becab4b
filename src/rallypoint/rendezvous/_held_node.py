"""The node of a rendezvous handler, which outlives the handler while it says goodbye.

A handler can be dropped, or its process can end, without `shutdown`. Then the node must leave the
run by itself. It lives in Rallypoint's thread, so it must not refer to the handler. `_node_handler`
has what the handler does with its node.
"""

from __future__ import annotations

import atexit
import logging
import os
from concurrent.futures import CancelledError, Future

from rallypoint import errors
from rallypoint.client.blocking import Portal
from rallypoint.client.bootstrap_port import Reservation, reserve_for_rank_0
from rallypoint.client.node import Node
from rallypoint.ledger.contract import Ledger
from rallypoint.rendezvous._telling import Teller
from rallypoint.settings import PortRange

_log = logging.getLogger("rallypoint.rendezvous")


class HeldNode:
    """The open node, ledger and port of a handler. Any thread may call `leave`."""

    def __init__(self) -> None:
        self.teller = Teller()
        self.portal: Portal | None = None
        self.coming: Node | None = None
        """The node that was made last, even if it is not attached, because its error lists what it
        tried.
        """
        self.node: Node | None = None
        self.ledger: Ledger | None = None
        self.reservation: Reservation | None = None
        self.is_done = False
        """Whether the workers of the round have finished."""
        self._has_left = False
        self._leaving: Future[None] | None = None

    def reserve(self, ports: PortRange | None) -> int:
        """Reserve another port, for rank 0 of the next round to listen on. Returns the port.

        `ports`: the setting `port_range`. Raises LaunchError.
        """
        last = self.reservation.port if self.reservation is not None else None
        if self.reservation is not None:
            self.reservation.close()
        self.reservation = reserve_for_rank_0(ports, last)
        return self.reservation.port

    async def keep(self, node: Node) -> None:
        """Keep an open node, or close it if `leave` was called meanwhile."""
        if self._has_left:
            self.teller.leaves()
            await self._let_go(node, "its handler was shut down")
            return
        self.node = node
        _held.add(self)

    def leave(self, reason: str) -> Future[None] | None:
        """Start to say goodbye and close everything. None if no node is open.

        Idempotent. It does not wait, so any thread and a finalizer may call it.
        """
        self._has_left = True
        if self.reservation is not None:
            self.reservation.close()
        node, self.node, self.coming = self.node, None, None
        if node is not None and self.portal is not None and not self.portal.is_of_parent:
            self.teller.leaves()
            self._leaving = self.portal.start(self._let_go(node, reason))
            self._leaving.add_done_callback(lambda _: _held.discard(self))
        return self._leaving

    async def _let_go(self, node: Node, reason: str) -> None:
        node.goodbye(reason)
        await node.aclose()
        await self.close_ledger()

    async def close_ledger(self) -> None:
        """Close the ledger, if the handler has opened one."""
        ledger, self.ledger = self.ledger, None
        if ledger is not None:
            await ledger.aclose()


# -- the end of the process ------------------------------------------------------------------------

_held: set[HeldNode] = set()
"""Those with an open node, even if their handler was shut down or dropped."""


def _at_exit() -> None:
    """Say goodbye for an agent that ends without `shutdown`, as torchrun's does after a signal.

    It waits for each leaving node, which may host a coordinator that other nodes still need.
    """
    for hold in list(_held):
        leaving = hold.leave("its agent has ended")
        if leaving is None:
            continue
        try:
            leaving.result()
        except (errors.RallypointError, TimeoutError, CancelledError) as error:
            _log.debug("the goodbye could not be said: %s", error)
        except BaseException:
            leaving.cancel()
            raise


def _in_forked_child() -> None:
    _held.clear()


atexit.register(_at_exit)
os.register_at_fork(after_in_child=_in_forked_child)
