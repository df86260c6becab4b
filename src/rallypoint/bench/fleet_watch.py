"""How soon a coordinator answers ordinary nodes for a while: their heartbeats, and new nodes.

It must not make more requests than ordinary nodes.
"""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import Iterable
from typing import Any, Final, Protocol

from rallypoint.bench.counting import Count, FleetError, say
from rallypoint.bench.virtual import VirtualNode, connect, resolve
from rallypoint.core.values import NodeInfo, RunSettings

COME_S: Final = 10.0
"""How many seconds a new node may take to attach, and then to leave."""


class Nodes(Protocol):
    """What watching needs from the nodes of this process. `Fleet` implements it."""

    nodes: list[VirtualNode]
    lost: str


class Watch:
    """The driver's command that watches. For the fleet's event loop."""

    def __init__(self, nodes: Nodes) -> None:
        self._all = nodes

    async def watch(
        self, *, seconds: float, every_s: float, places: dict[str, dict[str, Any]]
    ) -> dict[str, Any]:
        """For `seconds`, time the heartbeats of all nodes, and new nodes that attach meanwhile.

        It goes on until at least one heartbeat of each run was answered. `places`: where each run
        has its coordinator. Every `every_s` one new node attaches at each, to another run, and
        leaves. Returns lists of seconds by run, and how many new nodes there were by run.
        """
        for node in self._all.nodes:
            node.round_trips_s = []
        attach_s: dict[str, list[float]] = {run_id: [] for run_id in places}
        comers: list[asyncio.Future[None]] = []
        ends_s = time.monotonic() + seconds
        while time.monotonic() < ends_s or not self._has_beats(places):
            for run_id, place in places.items():
                come = self._come_and_go(f"{run_id}-comers", len(comers), place, attach_s[run_id])
                comers.append(asyncio.ensure_future(come))
            await asyncio.sleep(every_s)
            if self._all.lost:
                raise FleetError(self._all.lost)
        await asyncio.gather(*comers)
        round_trips_s: dict[str, list[float]] = {run_id: [] for run_id in places}
        for node in self._all.nodes:
            found = round_trips_s[node.machine.run_id]
            found += node.round_trips_s or []
            waits_s = node.beat_waits_s()
            if waits_s is not None and waits_s > every_s:
                found.append(waits_s)
            node.round_trips_s = None
        tried = {run_id: len(comers) // len(places) for run_id in places}
        return {"round_trips_s": round_trips_s, "attach_s": attach_s, "tried": tried}

    def _has_beats(self, runs: Iterable[str]) -> bool:
        beating = {each.machine.run_id for each in self._all.nodes if each.round_trips_s}
        return beating >= set(runs)

    async def _come_and_go(
        self, run_id: str, number: int, place: dict[str, Any], attach_s: list[float]
    ) -> None:
        """One node attaches, which is timed if it succeeds, and leaves."""
        attached, gone = Count(1), Count(1)
        info = NodeInfo(f"comer{number}", secrets.randbits(62), f"comer{number}.example")
        # It leaves before a second node could complete a round.
        node = VirtualNode(run_id, info, RunSettings(min_nodes=2, max_nodes=2), place["token"])
        node.on_attached = lambda node: attached.one()

        def lost(node: VirtualNode, why: str) -> None:
            attached.fail(why)
            if not gone.seen:
                gone.one()

        node.on_lost = lost
        began_s = time.monotonic()
        try:
            await connect(node, await resolve(place["host"], place["port"]))
            await attached.all("was attached", COME_S)
            attach_s.append(attached.last_s - began_s)
            node.goodbye()
            await gone.all("had left", COME_S)
        except FleetError as error:
            say(f"a node could not join {run_id} and leave it: {error}")
            node.abort()
