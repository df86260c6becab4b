"""A program whose event loop is uvloop's can join: its transports are no asyncio.Transport."""

from __future__ import annotations

import pytest

from rallypoint import aio

uvloop = pytest.importorskip("uvloop")


def test_a_node_in_a_loop_of_uvloops_meets_and_leaves():
    async def program() -> tuple[int, bytes]:
        async with await aio.join(min_nodes=1) as run:
            world = await run.next_world()
            assert world is not None
            await world.store.set("key", b"value")
            return world.size, await world.store.get("key")

    assert uvloop.run(program()) == (1, b"value")
