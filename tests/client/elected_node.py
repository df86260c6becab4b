"""A program that elects its coordinator through a ledger, for tests that kill it.

    python elected_node.py NAME ENDPOINT NODES

It prints a line of JSON whenever its state has changed, and writes to its round's store.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from typing import NoReturn

from rallypoint.client.node import Node
from rallypoint.core.store import ROUND_ENDED, Add, StoreValue
from rallypoint.core.values import Address, RunSettings
from rallypoint.settings import NodeSettings, parse_endpoint


async def main(name: str, endpoint: str, nodes: int) -> None:
    run = RunSettings(min_nodes=nodes - 1, max_nodes=nodes, expected_nodes=nodes)
    settings = NodeSettings(
        endpoint=parse_endpoint(endpoint), run_id="run", node_name=name, local_addr="127.0.0.1"
    )
    node = Node(settings, run)
    await node.open()
    while await node.next_round(Address("127.0.0.1", 1)) is not None:
        await watch(node)
    await node.aclose()


async def watch(node: Node) -> None:
    """Until the round ends. The store may pause, so what is printed does not wait for it."""
    counting = asyncio.create_task(count(node))
    last: dict[str, object] = {}
    while node.change is None and node.closed is None:
        current = picture(node)
        if current != last:
            last = current
            print(json.dumps({**current, "at_s": time.monotonic()}), flush=True)
        await asyncio.sleep(0.02)
    if node.change is not None:
        print(json.dumps({**picture(node), "at_s": time.monotonic()}), flush=True)
    counting.cancel()
    (ended,) = await asyncio.gather(counting, return_exceptions=True)
    if not isinstance(ended, asyncio.CancelledError):
        raise ended


async def count(node: Node) -> NoReturn:
    """Write to the round's store, again and again."""
    while True:
        if node.is_connected:
            result = await node.call(Add("count", 1), 30.0)
            assert isinstance(result, StoreValue) or result.code == ROUND_ENDED, result
        await asyncio.sleep(0.02)


def picture(node: Node) -> dict[str, object]:
    assert node.round is not None
    return {
        "round": node.round.head.number,
        "term": node._machine.stamp.term,
        "connected": node.is_connected,
        "hosts": node.hosted is not None,
        "change": str(node.change) if node.change else "",
    }


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], sys.argv[2], int(sys.argv[3])))
