"""A ledger in memory with faults, and a round on it whose coordinator has died."""

from __future__ import annotations

from rallypoint.coordinator.coordinator import Coordinator
from rallypoint.coordinator.round_log import first_log
from rallypoint.core.store import (
    Set,
)
from rallypoint.errors import (
    LedgerError,
    LedgerLimitError,
)
from rallypoint.ledger.contract import AppendOutcome, SwapOutcome, Unknown, Versioned
from rallypoint.ledger.memory import MemoryLedger
from rallypoint.wire import messages as wire
from tests.coordinator.lines import Line
from tests.coordinator.shared_ledger import new_coordinator, until

LOG = first_log(1, 1).name("run")


class Troubled(MemoryLedger):
    """A ledger with faults: those that are set are what it says."""

    def __init__(self) -> None:
        super().__init__()
        self.reading: LedgerError | None = None
        self.listing: LedgerError | None = None
        self.appending: LedgerError | None = None
        self.swapping: LedgerError | None = None
        self.leasing: LedgerError | None = None
        self.calls = 0

    async def read(self, key: str) -> Versioned | None:
        if self.reading is not None and key.startswith("runs/"):
            self.calls += 1
            raise self.reading
        return await super().read(key)

    async def records(
        self, log: str, start: int = 0, limit: int | None = None
    ) -> tuple[tuple[int, bytes], ...]:
        self.calls += 1
        if self.listing is not None:
            raise self.listing
        return await super().records(log, start, limit)

    async def append(self, log: str, index: int, value: bytes) -> AppendOutcome:
        if self.appending is None:
            return await super().append(log, index, value)
        self.calls += 1
        if isinstance(self.appending, LedgerLimitError):
            raise self.appending
        return Unknown(self.appending.message, self.appending)

    async def swap(self, key: str, expected: int | None, value: bytes) -> SwapOutcome:
        if self.swapping is not None and key.startswith("runs/") and expected is not None:
            raise self.swapping
        if self.leasing is not None and key.startswith("coordinators/"):
            raise self.leasing
        return await super().swap(key, expected, value)


async def a_round(ledger: Troubled) -> tuple[Coordinator, Line]:
    """A coordinator that dies after round 1 of one node was formed and a write was acknowledged."""
    shared, coordinator = await new_coordinator(ledger, 1)
    node = Line(coordinator)
    await node.formed()
    node.say(wire.StoreCall(node.stamp, 1, Set("k", b"v")))
    await until(lambda: any(isinstance(each, wire.StoreAnswer) for each in node.said))
    await shared.aclose()
    return coordinator, node
