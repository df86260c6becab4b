"""Runs on a shared ledger, as hub and office see them, without connections."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

from rallypoint.coordinator.config import CoordinatorConfig
from rallypoint.coordinator.hub import Hub
from rallypoint.coordinator.shared import SharedRuns
from rallypoint.core.values import Address
from rallypoint.ledger.memory import MemoryLedger

CONFIG = CoordinatorConfig(lease_ttl_s=0.3)
WITHIN_S = 10.0


async def coordinator(ledger: MemoryLedger, port: int) -> tuple[SharedRuns, Hub]:
    shared = SharedRuns(ledger, CONFIG)
    hub = Hub(
        CONFIG,
        ledger_id="",
        term=0,
        commit=shared.commit,
        wake=lambda: None,
        forget=shared.sweep,
        shared=shared,
    )
    await shared.start(hub, (Address("127.0.0.1", port),))
    return shared, hub


async def has_begun(hub: Hub, run_id: str) -> None:
    await until(lambda: run_id in hub.runs and hub.runs[run_id].is_claimed)


async def until(is_so: Callable[[], bool]) -> None:
    ends_s = time.monotonic() + WITHIN_S
    while not is_so():
        assert time.monotonic() < ends_s, "it did not come to that in time"
        await asyncio.sleep(0.01)


def test_a_run_that_is_won_before_its_nodes_come_is_begun() -> None:
    async def main() -> None:
        ledger = MemoryLedger()
        first, hub = await coordinator(ledger, 1)
        first.claim("run")
        await has_begun(hub, "run")
        # A node asks the second one, is sent to the first, and goes there; then that one dies.
        second, other = await coordinator(ledger, 2)
        other.open_run("run")
        second.claim("run")
        await until(lambda: not other.runs)
        await first.aclose()
        await has_begun(other, "run")
        assert other.runs["run"].membership.term == 2
        await second.aclose()

    asyncio.run(main())
