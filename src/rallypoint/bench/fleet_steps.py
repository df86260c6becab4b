"""Virtual nodes that agree on the step at which their workers stop, when one of them drains."""

from __future__ import annotations

import time
from typing import Any, Final, Protocol

from rallypoint.bench.counting import Count
from rallypoint.bench.virtual import VirtualNode

LEFT_S: Final = 100.0
"""How long the draining node may take: much longer than the agreement."""


class Nodes(Protocol):
    """What agreeing needs from the nodes of this process. `Fleet` implements it."""

    nodes: list[VirtualNode]

    def count_calls(self, expected: int) -> Count:
        """Count events; fail as soon as a node loses its connection."""


class Steps:
    """The driver's commands about drains. For the fleet's event loop."""

    def __init__(self, nodes: Nodes) -> None:
        self._all = nodes
        self._decided: Count | None = None

    async def take_part(self, *, step: int) -> dict[str, Any]:
        """The workers of all nodes ask at each step whether to stop, and have passed `step`.

        Wait until the coordinator knows that. Returns each node's messages about it.
        """
        nodes = self._all.nodes
        is_known = self._all.count_calls(len(nodes))
        for node in nodes:
            node.promises = step
            node.takes_part()
            node.on_beat = is_known.one
            node.beat()  # Its answer comes after the coordinator has read the message before it.
        await is_known.all("were answered")
        for node in nodes:
            node.on_beat = lambda: None
        decided = self._decided = self._all.count_calls(len(nodes))
        for node in nodes:
            node.on_step_decided = lambda node: decided.one()
        return {"messages": [node.step_messages for node in nodes]}

    async def drain(self, *, is_here: bool) -> dict[str, Any]:
        """The first node drains, if it is of this process. Wait until all know the decided step.

        Returns the decided steps, and each node's messages about drains so far.
        """
        assert self._decided is not None
        nodes = self._all.nodes
        began_s = time.monotonic()
        if is_here:
            nodes[0].drains(LEFT_S)
        await self._decided.all("were told the step")
        return {
            "began_s": began_s,
            "decided_s": self._decided.last_s,
            "steps": sorted({node.machine.step or 0 for node in nodes}),
            "messages": [node.step_messages for node in nodes],
        }
