"""A coordinator that runs: its clock ticks, and it owns its runs. It has no sockets.

`server` puts it on sockets. What brings it messages is not decided here: a simulated network can,
too.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from rallypoint import runtime
from rallypoint.clock import TICK_S, InputFirst, StallProofClock
from rallypoint.coordinator.config import CoordinatorConfig
from rallypoint.coordinator.coordinator import Coordinator, Ownership
from rallypoint.coordinator.memory_ownership import MemoryOwnership
from rallypoint.coordinator.run_ownership import RunOwnership
from rallypoint.core.values import Address
from rallypoint.ledger.contract import Ledger


class CoordinatorDriver:
    """One coordinator and its ownership, in the running event loop of `start`.

    `ledger` None: the runs are in memory.
    """

    def __init__(self, config: CoordinatorConfig, ledger: Ledger | None = None) -> None:
        self.config = config
        self.ownership: Ownership
        if ledger is None:
            self.ownership = MemoryOwnership(call_soon=_call_soon)
        else:
            self.ownership = RunOwnership(ledger, config)
        clock = StallProofClock(runtime.here().monotonic_s)
        self.coordinator = Coordinator(config, self.ownership, clock=clock, wake=self._schedule)
        self._tick: asyncio.Handle | None = None
        self._tick_due_s = 0.0
        self._input_first = InputFirst()
        self._loop: asyncio.AbstractEventLoop | None = None

    async def start(self, addresses: tuple[Address, ...] = ()) -> None:
        """Take the lease, if there is a ledger, and let the clock tick.

        `addresses`: where nodes reach it; they are written to the lease. Raises LedgerError if the
        ledger is unfit or unreachable.
        """
        await self.ownership.start(self.coordinator, addresses)
        self._loop = asyncio.get_running_loop()
        self.coordinator.turns.loop = self._loop
        self._schedule()

    def stop_ticking(self) -> None:
        """Let no deadline pass any more. Idempotent."""
        self._loop = None
        if self._tick is not None:
            self._tick.cancel()
            self._tick = None

    # -- time ----------------------------------------------------------------------------------

    def _on_tick(self) -> None:
        assert self._loop is not None
        late_s = self._loop.time() - self._tick_due_s
        until_s = self._input_first.tick(self.coordinator.now_s(), late_s)
        try:
            # R8: messages that arrived in time may still be in the kernel.
            if until_s is not None:
                self.coordinator.tick(until_s)
        finally:
            # An error in one run must not stop the clock of the others.
            self._tick = None
            self._schedule()

    def _schedule(self) -> None:
        """Tick when the next deadline is due, and at least every TICK_S (the clock needs it)."""
        if self._loop is None:
            return
        now_s = self._loop.time()
        if self._tick is not None:
            if self._tick_due_s <= now_s:
                return  # The tick is about to run, and measures how late it is.
            self._tick.cancel()
        delay_s = self._input_first.next_tick_s
        if delay_s is None:
            due_s = self.coordinator.next_due_s()
            delay_s = TICK_S if due_s is None else min(TICK_S, due_s - self.coordinator.now_s())
        self._tick_due_s = now_s + max(0.0, delay_s)
        if delay_s > 0:
            self._tick = self._loop.call_at(self._tick_due_s, self._on_tick)
        else:
            self._tick = self._loop.call_soon(self._on_tick)


def _call_soon(callback: Callable[[], None]) -> None:
    asyncio.get_running_loop().call_soon(callback)
