"""Coordinators on a ledger that they share, in one process: what several tests begin with.

In virtual time: leases are short here, and a machine that pauses would let them run out.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from rallypoint.clock import StallProofClock
from rallypoint.coordinator.config import CoordinatorConfig
from rallypoint.coordinator.coordinator import Coordinator
from rallypoint.coordinator.run_ownership import RunOwnership
from rallypoint.core.values import Address
from rallypoint.ledger.memory import MemoryLedger

CONFIG = CoordinatorConfig(lease_ttl_s=0.3)
WITHIN_S = 10.0


async def new_coordinator(
    ledger: MemoryLedger, port: int, config: CoordinatorConfig = CONFIG
) -> tuple[RunOwnership, Coordinator]:
    """Another coordinator, with its own lease. `port`: of the address that the lease tells."""
    shared = RunOwnership(ledger, config)
    clock = StallProofClock(asyncio.get_running_loop().time)
    coordinator = Coordinator(config, shared, clock=clock)
    await shared.start(coordinator, (Address("127.0.0.1", port),))
    return shared, coordinator


async def new_owner(
    ledger: MemoryLedger, port: int, config: CoordinatorConfig = CONFIG
) -> tuple[RunOwnership, Coordinator]:
    """Another coordinator, which owns run `run`."""
    shared, coordinator = await new_coordinator(ledger, port, config)
    shared.claim("run")
    await has_begun(coordinator, "run")
    return shared, coordinator


async def has_begun(coordinator: Coordinator, run_id: str) -> None:
    """Wait until the coordinator owns the run."""
    await until(lambda: run_id in coordinator.runs and coordinator.runs[run_id].is_claimed)


async def until(is_so: Callable[[], bool]) -> None:
    """Wait until something is so. Fails after WITHIN_S."""
    loop = asyncio.get_running_loop()
    ends_s = loop.time() + WITHIN_S
    while not is_so():
        assert loop.time() < ends_s, "it did not come to that in time"
        await asyncio.sleep(0.01)
