"""A program whose event loop is uvloop's can join: its transports are no asyncio.Transport."""

from __future__ import annotations

import asyncio

import pytest

from rallypoint import aio
from rallypoint.client.actions import Action
from rallypoint.client.node import Node
from rallypoint.core.values import RunSettings
from rallypoint.settings import node_settings

uvloop = pytest.importorskip("uvloop")


@pytest.mark.sockets
def test_a_node_in_a_loop_of_uvloops_meets_and_leaves():
    async def program() -> tuple[int, bytes]:
        async with await aio.join(min_nodes=1) as run:
            world = await run.next_world()
            assert world is not None
            await world.store.set("key", b"value")
            return world.size, await world.store.get("key")

    assert uvloop.run(program()) == (1, b"value")


def test_a_heartbeat_due_at_once_is_scheduled_again():
    """What uvloop gives for a time that has come has no `when`; a node once lost its coordinator
    by that.
    """

    async def program() -> float:
        node = Node(node_settings(), RunSettings())
        has_ticked: asyncio.Future[float] = asyncio.get_running_loop().create_future()

        def tick(now_s: float) -> list[Action]:
            has_ticked.set_result(now_s)
            return []

        node._machine.tick = tick  # type: ignore[method-assign]
        for due_s in (0.0, 1.0, 0.0):
            node._machine.heartbeats.next_tick_s = due_s
            node._schedule_tick()
        node._machine.heartbeats.next_tick_s = None
        return await has_ticked

    assert uvloop.run(program()) > 0
