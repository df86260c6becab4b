"""A process with real nodes of one run, which finds whoever coordinates by itself.

    python -m rallypoint.bench.real_nodes FILE NAME COUNT TOTAL ENDPOINT

COUNT nodes of a run of TOTAL. They write down whenever one is attached, `met` once all of this
process are in the round, and `ended` should it end; then they stay until stdin ends or they are
killed. Virtual nodes (virtual.py) would not do: they know one address, and do not look for another
coordinator.
"""

from __future__ import annotations

import asyncio
import os
import sys
from typing import Final

from rallypoint.bench.counting import new_event_loop
from rallypoint.bench.logged_node import logged
from rallypoint.bench.notes import Writer
from rallypoint.client.node import Node
from rallypoint.core.values import Address, RunSettings
from rallypoint.settings import NodeSettings, parse_endpoint

RUN_ID: Final = "failover"
BOOTSTRAP: Final = Address("127.0.0.1", 1)
"""Nobody is to listen there."""


def node(kind: type[Node], name: str, run_id: str, total: int, endpoint: str) -> Node:
    """One node of a run that has so many, which never coordinates itself."""
    settings = NodeSettings(
        endpoint=parse_endpoint(endpoint),
        run_id=run_id,
        node_name=name,
        local_addr="127.0.0.1",
        host_coordinator="no",
    )
    return kind(settings, RunSettings(min_nodes=total, max_nodes=total, max_restarts=None))


async def _stay(notes: Writer, name: str, count: int, total: int, endpoint: str) -> None:
    """Until stdin ends. The end of the round would be the end of the measurement."""
    asyncio.get_running_loop().add_reader(sys.stdin.fileno(), os._exit, 0)
    kind = logged(notes)
    nodes = [node(kind, f"{name}-{index}", RUN_ID, total, endpoint) for index in range(count)]
    await asyncio.gather(*(each.open() for each in nodes))
    await asyncio.gather(*(each.next_round(BOOTSTRAP) for each in nodes))
    notes.note("met")
    over = asyncio.Event()
    for each in nodes:
        each.on_ended = lambda change: over.set()
        each.on_gone = lambda error: over.set()
    await over.wait()
    notes.note("ended")


def main(path: str, name: str, count: str, total: str, endpoint: str) -> None:
    """See above."""
    with asyncio.Runner(loop_factory=new_event_loop) as runner:
        runner.run(_stay(Writer(path), name, int(count), int(total), endpoint))


if __name__ == "__main__":
    main(*sys.argv[1:])
