"""What operators have ordered for a run, and how much of it the ledger has.

A *drain* asks a node to leave in order. An *eviction* takes a node out at once, and keeps its name
out until it is lifted. A *scale* changes how many nodes a run has. They are in the run's head, so
they outlive the coordinator that took them. This file keeps them. It must not decide what follows
from them: that is in `requests` and `rules`.
"""

from __future__ import annotations

from typing import Final

import msgspec

from rallypoint.core.printable import shortened, size_of
from rallypoint.core.values import FrozenStruct, NodeId, RunSettings

ORDERS_BYTES_MAX: Final = 8 * 1024
"""The most bytes of all orders of a run in its head, which is of limited size."""
REASON_CHARACTERS_MAX: Final = 200
BY_CHARACTERS_MAX: Final = 200


class Order(FrozenStruct, frozen=True):
    """An order about a node. `by`: who gave it. An eviction counts for every start of the node."""

    node: NodeId
    by: str
    reason: str

    def __str__(self) -> str:
        return f"{self.by}: {self.reason}" if self.reason else self.by


class Scale(FrozenStruct, frozen=True):
    """How many nodes a run has from now on, in place of what its nodes ask for."""

    min_nodes: int
    max_nodes: int
    by: str
    reason: str = ""

    def __str__(self) -> str:
        reason = f": {self.reason}" if self.reason else ""
        return f"scaled to {size_of(self.min_nodes, self.max_nodes)} by {self.by}{reason}"


class Orders(FrozenStruct, frozen=True):
    """All orders that count for a run. Of the drains, those whose node may still have to hear it.

    A drain is about one start of a node: the next start may join.
    """

    drains: tuple[Order, ...] = ()
    evictions: tuple[Order, ...] = ()
    scale: Scale | None = None

    def drain_of(self, node: NodeId) -> Order | None:
        """The drain of this start of the node, if one was ordered."""
        return next((each for each in self.drains if each.node == node), None)

    def eviction_of(self, name: str) -> Order | None:
        """The eviction of the node of this name, if there was one."""
        return next((each for each in self.evictions if each.node.name == name), None)

    def has_room_for(
        self,
        *,
        drain: Order | None = None,
        eviction: Order | None = None,
        scale: Scale | None = None,
    ) -> bool:
        """Whether the run's head has room for these orders. Old drains make room for them."""
        made = msgspec.structs.replace(
            self,
            drains=() if drain is None else (drain,),
            evictions=self.evictions if eviction is None else (*self.evictions, eviction),
            scale=scale or self.scale,
        )
        return _size(made) <= ORDERS_BYTES_MAX

    def with_drain(self, order: Order) -> Orders:
        """These orders and this drain. The oldest drains are dropped if there is no room.

        If the drain would have no room even then, nothing changes.
        """
        if not self.has_room_for(drain=order):
            return self
        drains = [each for each in self.drains if each.node != order.node]
        return self._with_drains((*drains, order))

    def with_eviction(self, order: Order) -> Orders:
        """These orders and this eviction, which ends a drain of the node."""
        drains = tuple(each for each in self.drains if each.node.name != order.node.name)
        evictions = (*self.evictions, order)
        return msgspec.structs.replace(self, evictions=evictions)._with_drains(drains)

    def without_eviction(self, name: str) -> Orders:
        """These orders without the eviction of that name."""
        evictions = tuple(each for each in self.evictions if each.node.name != name)
        return msgspec.structs.replace(self, evictions=evictions)

    def with_scale(self, scale: Scale) -> Orders:
        """These orders and these numbers of nodes, in place of earlier ones."""
        return msgspec.structs.replace(self, scale=scale)._with_drains(self.drains)

    def without_drain(self, node: NodeId) -> Orders:
        """These orders without the drain of a node that has left."""
        if self.drain_of(node) is None:
            return self
        drains = tuple(each for each in self.drains if each.node != node)
        return msgspec.structs.replace(self, drains=drains)

    def settings_of(self, asked: RunSettings) -> RunSettings:
        """The settings that count, if the nodes ask for these."""
        if self.scale is None:
            return asked
        least, most = self.scale.min_nodes, self.scale.max_nodes
        expected = asked.expected_nodes
        if expected is not None and not least <= expected <= most:
            expected = None
        return msgspec.structs.replace(
            asked, min_nodes=least, max_nodes=most, expected_nodes=expected
        )

    def _with_drains(self, drains: tuple[Order, ...]) -> Orders:
        made = msgspec.structs.replace(self, drains=drains)
        while _size(made) > ORDERS_BYTES_MAX and made.drains:
            made = msgspec.structs.replace(made, drains=made.drains[1:])
        return made


NO_ORDERS: Final = Orders()


def order(node: NodeId, by: str, reason: str) -> Order:
    """An order with its texts cut to what the ledger keeps."""
    by, reason = shortened(by, BY_CHARACTERS_MAX), shortened(reason, REASON_CHARACTERS_MAX)
    return Order(node, by, reason)


def scale(min_nodes: int, max_nodes: int, by: str, reason: str) -> Scale:
    """The same for the numbers of nodes."""
    by, reason = shortened(by, BY_CHARACTERS_MAX), shortened(reason, REASON_CHARACTERS_MAX)
    return Scale(min_nodes, max_nodes, by, reason)


class KeptOrders:
    """The orders of one run, and which of them its ledger has.

    `is_kept` False: no other coordinator can take the run over, so nothing waits for the ledger.
    """

    def __init__(self, *, is_kept: bool = True) -> None:
        self._is_kept = is_kept
        self.now = NO_ORDERS
        """The orders that count."""
        self.at_forming = NO_ORDERS
        """Those that are written with the record that is being written."""
        self._in_marks = NO_ORDERS
        self._written = NO_ORDERS
        self._is_forming = self._is_marking = False
        """Whether the ledger may get `at_forming`, or `_in_marks`, at any moment."""

    def restore(self, orders: Orders) -> None:
        """Begin with what the ledger has."""
        self.now = self.at_forming = self._in_marks = self._written = orders
        self._is_forming = self._is_marking = False

    @property
    def written(self) -> Orders:
        """The orders that the ledger has; all of them if nothing is written."""
        return self._written if self._is_kept else self.now

    @property
    def possible(self) -> tuple[Orders, ...]:
        """The orders of which the ledger may have any now: the last ones, and those on the way."""
        if not self._is_kept:
            return (self.now,)
        marks = (self._in_marks,) if self._is_marking else ()
        return (self._written, *marks, *((self.at_forming,) if self._is_forming else ()))

    def eviction_of(self, name: str) -> Order | None:
        """The eviction that keeps this name out. One that was lifted counts until it is written.

        So does one that was lifted while it was being written.
        """
        # R5: a successor that does not know that it was lifted would take the node out again.
        known = (each.eviction_of(name) for each in (self.now, *self.possible))
        return next(filter(None, known), None)

    @property
    def is_due(self) -> bool:
        """Whether an order is not in the ledger yet."""
        return self._is_kept and self.now != self._written

    def record_formed(self) -> None:
        """A record of the run is to be written, with the present orders."""
        # Kept, so that a record that is written again has the same bytes.
        self.at_forming, self._is_forming = self.now, True

    def marks_formed(self) -> Orders:
        """The marks are to be written, with the present orders, which are returned."""
        self._in_marks, self._is_marking = self.now, True
        return self.now

    def record_written(self) -> list[Order]:
        """The ledger has the record. Returns the drains that it did not have before."""
        self._is_forming = False
        return self._have(self.at_forming)

    def marks_written(self) -> list[Order]:
        """The ledger has the marks. Returns the drains that it did not have before."""
        self._is_marking = False
        return self._have(self._in_marks)

    def _have(self, orders: Orders) -> list[Order]:
        before, self._written = self._written, orders
        # A drain that was dropped meanwhile is not told any more.
        return [each for each in orders.drains if each not in before.drains and self._counts(each)]

    def _counts(self, drain: Order) -> bool:
        return self.now.drain_of(drain.node) == drain

    def freeze(self) -> tuple[object, ...]:
        """The state on which decisions depend, as a hashable value."""
        return (self.now, self.at_forming, self._in_marks, self.possible)


def _size(orders: Orders) -> int:
    return len(msgspec.msgpack.encode(orders))
