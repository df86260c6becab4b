"""Counts a coordinator's calls of its ledger. Each result is a line of JSON.

idle LEDGER RUNS SECONDS     the calls of a coordinator with so many active runs of two nodes
rounds LEDGER|memory ROUNDS  rounds of two nodes: how long each takes, and its calls
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, Final

from rallypoint.bench.real_nodes import BOOTSTRAP, node
from rallypoint.client.node import Node
from rallypoint.coordinator.config import CoordinatorConfig
from rallypoint.coordinator.server import CoordinatorServer
from rallypoint.core.values import Address
from rallypoint.endpoints import parse_ledger
from rallypoint.ledger.contract import Ledger
from rallypoint.ledger.open import open_ledger
from rallypoint.net import bind

READS: Final = ("read", "keys", "records", "logs")
WRITES: Final = ("swap", "delete", "append", "drop_log")


def show(**values: Any) -> None:
    """One line of JSON."""
    print(json.dumps(values), flush=True)


async def meet(nodes: list[Node]) -> None:
    """All nodes ask for their next round; wait until each has it."""
    await asyncio.gather(*(each.next_round(BOOTSTRAP) for each in nodes))


# -- the calls of a ledger -------------------------------------------------------------------------


class Count:
    """Counts the calls of a ledger by name, and by the kind of register or log."""

    def __init__(self, ledger: Ledger) -> None:
        self.operations: Counter[str] = Counter()
        for name in (*READS, *WRITES):
            setattr(ledger, name, self._counted(name, getattr(ledger, name)))

    def _counted(
        self, name: str, operation: Callable[..., Awaitable[object]]
    ) -> Callable[..., Awaitable[object]]:
        async def counted(key: str = "", *more: Any, **named: Any) -> object:
            self.operations[f"{name} {key.partition('/')[0]}"] += 1
            return await operation(key, *more, **named)

        return counted

    def taken(self) -> dict[str, int]:
        """The counts since the last call of this."""
        taken, self.operations = dict(self.operations), Counter()
        return taken


@contextlib.asynccontextmanager
async def coordinator(ledger: str) -> AsyncIterator[tuple[str, Count | None]]:
    """A coordinator in this process, over that ledger: its endpoint, and the counts."""
    async with contextlib.AsyncExitStack() as stack:
        engine, count = None, None
        if ledger != "memory":
            engine = await stack.enter_async_context(open_ledger(parse_ledger(ledger)))
            count = Count(engine)
        server = await stack.enter_async_context(
            CoordinatorServer(CoordinatorConfig(), ledger=engine)
        )
        sock = bind("127.0.0.1", 0)
        address = Address("127.0.0.1", sock.getsockname()[1])
        await server.start([sock], (address,))
        yield f"http://{address}", count


async def pair(run_id: str, endpoint: str) -> list[Node]:
    """Two nodes in their first round."""
    nodes = [node(Node, f"{run_id}-{index}", run_id, 2, endpoint) for index in range(2)]
    await asyncio.gather(*(each.open() for each in nodes))
    await meet(nodes)
    return nodes


async def idle(ledger: str, runs: int, seconds: float) -> None:
    """All runs are active, and do nothing."""
    async with coordinator(ledger) as (endpoint, count):
        assert count is not None
        pairs = [await pair(f"run{index}", endpoint) for index in range(runs)]
        await asyncio.sleep(1.0)
        count.taken()
        began_s = time.monotonic()
        await asyncio.sleep(seconds)
        taken, took_s = count.taken(), time.monotonic() - began_s
        writes = sum(times for name, times in taken.items() if name.split()[0] in WRITES)
        show(writes_per_s=writes / took_s, operations=taken)
        await asyncio.gather(*(each.aclose(linger=False) for those in pairs for each in those))


async def rounds(ledger: str, number: int) -> None:
    """Two nodes ask for one round after another."""
    async with coordinator(ledger) as (endpoint, count):
        nodes = await pair("rounds", endpoint)
        for _ in range(number):
            await asyncio.sleep(0.2)
            if count is not None:
                count.taken()
            began_s = time.monotonic()
            await meet(nodes)
            took_s = time.monotonic() - began_s
            await asyncio.sleep(0.1)  # Calls right after the round belong to it.
            taken = count.taken() if count is not None else {}
            own = {k: v for k, v in taken.items() if not k.endswith(" coordinators")}
            show(ms=took_s * 1_000, operations=own)
        await asyncio.gather(*(each.aclose(linger=False) for each in nodes))


def main() -> None:
    """See above."""
    match sys.argv[1:]:
        case ["idle", ledger, runs, seconds]:
            asyncio.run(idle(ledger, int(runs), float(seconds)))
        case ["rounds", ledger, number]:
            asyncio.run(rounds(ledger, int(number)))
        case other:
            raise SystemExit(f"what is {other}?")


if __name__ == "__main__":
    main()
