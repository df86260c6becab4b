"""torch's dynamic rendezvous over c10d, which torchrun uses: a process for each node.

The first node's process holds the TCPStore, as it does in a job, so the CPU time of a server cannot
be measured. Handlers come from torch's registry, and everything is imported before the first call.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from typing import Any, Final

from torch.distributed.elastic.rendezvous import RendezvousParameters
from torch.distributed.elastic.rendezvous.registry import get_rendezvous_handler

from benchmarks.peers import common

WARM_MAX: Final = 3
COLD_MAX: Final = 3
DEATH_NODES: Final = 8
CALM_S: Final = 1.0


def node(port: int, least: int, most: int) -> Callable[[int], Callable[[], object]]:
    """The function that makes a node within its process, and its connection."""

    def make(index: int) -> Callable[[], object]:
        # As on separate machines, where only one of the nodes has the endpoint's address.
        params = RendezvousParameters(
            "c10d",
            f"127.0.0.1:{port}",
            "peers",
            least,
            most,
            local_addr="127.0.0.1",
            is_host=index == 0,
        )
        handler: Any = get_rendezvous_handler(params)
        return partial(handler.next_rendezvous)

    return make


def new(wanted: dict[str, int]) -> common.Measured:
    """An empty result with the version."""
    return common.Measured(common.versions("torch"), "a process each", wanted)


def meet(nodes: int, repeats: int) -> common.Measured:
    """Cold: from the first node that asks for a handler. Warm: all ask for one more round."""
    cold, warm = min(repeats, COLD_MAX), min(repeats, WARM_MAX)
    found = new({"cold": cold, "warm": warm})
    for repeat in range(cold):
        rounds = 1 + (warm if repeat == 0 else 0)
        processes = common.Processes(nodes, rounds, node(common.free_port(), nodes, nodes))
        try:
            found.add("cold", processes.round().span_s)
            for _ in range(rounds - 1):
                time.sleep(CALM_S)
                done = processes.round()
                found.add("warm", done.span_s)
                found.add("skew", done.skew_s)
        finally:
            processes.end()
    return found


def death(kind: str, repeats: int) -> common.Measured:
    """One of eight dies; the others ask for the next round at once, as when workers fail."""
    found = new({kind: repeats})
    for _ in range(repeats):
        port = common.free_port()
        processes = common.Processes(DEATH_NODES, 2, node(port, DEATH_NODES - 1, DEATH_NODES))
        try:
            processes.round()
            time.sleep(CALM_S)
            died_s = processes.kill(DEATH_NODES - 1, kind)
            processes.begin(0.0)
            found.add(kind, max(answered_s for _, answered_s in processes.answers()) - died_s)
        finally:
            processes.end()
    return found


if __name__ == "__main__":
    common.main(meet, death)
