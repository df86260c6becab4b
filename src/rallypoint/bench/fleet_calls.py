"""Commands by which the nodes of one process call the store, meet at a barrier, and flood.

How nodes attach, meet and go is in fleet.py.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Any, Protocol

from rallypoint.bench.counting import DEADLINE_S, Count, FleetError
from rallypoint.bench.flood import Flood
from rallypoint.bench.virtual import VirtualNode
from rallypoint.core.store import operations as ops


class Nodes(Protocol):
    """What the calls need from the nodes of this process. `Fleet` implements it."""

    nodes: list[VirtualNode]
    floods: list[Flood]

    def count_calls(self, expected: int) -> Count: ...


class Calls:
    """The driver's commands that make calls. All are for the fleet's event loop."""

    def __init__(self, nodes: Nodes) -> None:
        self._all = nodes

    async def store(self, *, what: str, per_node: int, window: int) -> dict[str, Any]:
        """Each node makes `per_node` calls of one kind, `window` of them open at a time."""
        done = self._all.count_calls(len(self._all.nodes))
        began_s = time.monotonic()
        for index, node in enumerate(self._all.nodes):
            _Caller(node, index, what, per_node, done).begin(window)
        await done.all(f"got the answer to their {what}")
        return {"began_s": began_s, "done_s": done.last_s}

    async def one_by_one(self, *, what: str, times: int, gap_s: float) -> dict[str, Any]:
        """The first node makes one call after another. Returns how long each took, in seconds.

        `what`: a call of the store, or "beat" for a heartbeat.
        """
        node, took_s = self._all.nodes[0], []
        for number in range(times):
            asked_s, answered = time.monotonic(), Count(1)
            if what == "beat":
                node.on_beat = answered.one
                node.beat()
            else:
                node.call(_op(what, 0, number), DEADLINE_S, _told(answered))
            await answered.all(f"got the answer to their {what}")
            took_s.append(answered.last_s - asked_s)
            await asyncio.sleep(gap_s)
        return {"took_s": took_s}

    async def barrier(self, *, name: str) -> dict[str, Any]:
        """All nodes enter one barrier."""
        done = self._all.count_calls(len(self._all.nodes))

        def answered(result: ops.StoreResult) -> None:
            if isinstance(result, ops.StoreFailure):
                done.fail(f"a barrier failed: {result.message}")
            else:
                done.one()

        began_s = time.monotonic()
        for node in self._all.nodes:
            seat = node.machine.seat
            rank = seat.first_rank if seat is not None else 0
            node.call(ops.Barrier(name, rank), DEADLINE_S, answered)
        await done.all("passed the barrier")
        return {"began_s": began_s, "done_s": done.last_s}

    async def flood(self, *, kinds: list[str], warm_s: float) -> dict[str, Any]:
        """Each node floods the coordinator in one of these ways, until `calm`."""
        for number, node in enumerate(self._all.nodes):
            node.on_lost = lambda node, why: (
                None
            )  # The coordinator may disconnect it for the flood.
            self._all.floods.append(Flood(node, kinds[number % len(kinds)]))
            self._all.floods[-1].begin()
        await asyncio.sleep(warm_s)
        return {}

    async def calm(self, *, settle_s: float) -> dict[str, Any]:
        """End the floods, and wait `settle_s` for the answers that are due."""
        for flood in self._all.floods:
            flood.stop()
        self._all.floods.clear()
        await asyncio.sleep(settle_s)
        return {"connected": sum(node.transport is not None for node in self._all.nodes)}


def _op(what: str, node: int, number: int) -> ops.StoreOp:
    key = f"bench/{node}/{number % 100}"
    match what:
        case "set":
            return ops.Set(key, b"x" * 64)
        case "get":
            return ops.Get("bench/0/0")
        case "add":
            return ops.Add("bench/sum", 1)
    raise FleetError(f"there is no call {what!r}")


def _told(count: Count) -> Callable[[ops.StoreResult], None]:
    return lambda result: count.one()


class _Caller:
    """One node's calls, `window` of them open at a time, until all are answered."""

    def __init__(self, node: VirtualNode, index: int, what: str, calls: int, done: Count) -> None:
        self._node, self._index, self._what = node, index, what
        self._left_to_say = self._left_to_hear = calls
        self._done = done

    def begin(self, window: int) -> None:
        """Make the first calls; each answer makes the next."""
        for _ in range(min(window, self._left_to_say)):
            self._say()

    def _say(self) -> None:
        self._left_to_say -= 1
        op = _op(self._what, self._index, self._left_to_say)
        self._node.call(op, DEADLINE_S, self._answered)

    def _answered(self, result: ops.StoreResult) -> None:
        if isinstance(result, ops.StoreFailure):
            self._done.fail(f"a call of the store failed: {result.message}")
            return
        self._left_to_hear -= 1
        if self._left_to_say:
            self._say()
        elif not self._left_to_hear:
            self._done.one()
