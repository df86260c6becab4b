"""torch's static rendezvous, with given ranks and number of nodes: a process for each node.

Its one meeting is that all nodes connect to the first node's TCPStore. There is no second meeting.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, Final

from torch.distributed.elastic.rendezvous import RendezvousParameters
from torch.distributed.elastic.rendezvous.registry import get_rendezvous_handler

from benchmarks.peers import common

COLD_MAX: Final = 3


def meet(nodes: int, repeats: int) -> common.Measured:
    """Cold, from the first node that asks for a handler."""
    cold = min(repeats, COLD_MAX)
    found = common.Measured(common.versions("torch"), "a process each", {"cold": cold})
    for _ in range(cold):
        processes = common.Processes(nodes, 1, node(common.free_port(), nodes))
        try:
            found.add("cold", processes.round().span_s)
        finally:
            processes.end()
    return found


def node(port: int, nodes: int) -> Callable[[int], Callable[[], object]]:
    """The function that makes a node within its process."""

    def make(index: int) -> Callable[[], object]:
        params = RendezvousParameters(
            "static", f"127.0.0.1:{port}", "peers", nodes, nodes, rank=index, timeout=300
        )
        handler: Any = get_rendezvous_handler(params)
        return partial(handler.next_rendezvous)

    return make


if __name__ == "__main__":
    common.main(meet)
