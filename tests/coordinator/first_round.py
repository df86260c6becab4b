"""Nodes on a network of machines, in their first round.

What must not be here: a test, or what a single test breaks.
"""

from __future__ import annotations

from rallypoint.core.values import (
    Failure,
    FailureKind,
    RunSettings,
)
from tests.network import Network, Node

TWO = RunSettings(min_nodes=2, max_nodes=2, max_restarts=None)
UP_TO_FOUR = RunSettings(min_nodes=2, max_nodes=4, last_call_s=1.0, max_restarts=None)
FAILURE = Failure(FailureKind.EXCEPTION, "ValueError: no", rank=0)


def met(network: Network, count: int = 2, settings: RunSettings | None = None) -> list[Node]:
    """Nodes a, b, c ... in their first round."""
    settings = settings or RunSettings(min_nodes=count, max_nodes=count, max_restarts=None)
    nodes = [network.node(f"n{i}", settings) for i in range(count)]
    for node in nodes:
        node.ready()
    network.until(lambda: all(node.rounds for node in nodes))
    return nodes
