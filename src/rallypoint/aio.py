"""The asynchronous native API: the same names as `rallypoint`, with `async`.

    async with await rallypoint.aio.join("job-42", "host0:29400", min_nodes=2) as run:
        async for world in run.worlds():
            async with world:
                await world.barrier("start")

A Run belongs to the event loop in which it was joined.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Unpack

from rallypoint.client import join_plan
from rallypoint.client.border import BORDER
from rallypoint.client.options import JoinOptions
from rallypoint.client.waiting import StillWaiting
from rallypoint.client.world import Run, Store, World

__all__ = ["Run", "Store", "World", "join"]


async def join(
    run_id: str | None = None,
    endpoint: str | None = None,
    *,
    min_nodes: int | None = None,
    max_nodes: int | None = None,
    token: str | None = None,
    labels: Mapping[str, str] | None = None,
    ledger: str | None = None,
    on_waiting: Callable[[StillWaiting], None] | None = None,
    **options: Unpack[JoinOptions],
) -> Run:
    """Join a run. Arguments and errors as `rallypoint.join`; cancelling it leaves nothing open.

    `on_waiting` is called from the event loop.
    """
    with BORDER:
        planned = join_plan.plan(
            run_id,
            endpoint,
            min_nodes=min_nodes,
            max_nodes=max_nodes,
            token=token,
            labels=labels,
            ledger=ledger,
            on_waiting=on_waiting,
            options=options,
        )
        return Run(await join_plan.open_client(planned), planned.join_timeout_s)
