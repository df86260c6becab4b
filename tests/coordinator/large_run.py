"""A run of 600 nodes on a ledger that counts writes, refuses some and loses some.

What must not be here: a test.
"""

from __future__ import annotations

from rallypoint.coordinator.coordinator import Coordinator
from rallypoint.core import election as e
from rallypoint.core import events as on
from rallypoint.core.values import (
    Address,
    NodeId,
    NodeInfo,
    Phase,
    RunSettings,
)
from rallypoint.errors import LedgerLimitError
from rallypoint.ledger.contract import SwapOutcome, Unknown
from rallypoint.ledger.keys import run_key
from rallypoint.ledger.memory import MemoryLedger
from tests.coordinator.shared_ledger import until

NODES = 600
SETTINGS = RunSettings(min_nodes=NODES, max_nodes=NODES, reconnect_grace_s=0.1)


class CountingLedger(MemoryLedger):
    """Counts writes. Can be made to refuse or lose some of them."""

    def __init__(self) -> None:
        super().__init__()
        self.written_bytes = 0
        self.largest_bytes = 0
        self.too_large: list[str] = []
        """Of what begins so, the next write is refused for its size; one entry a time."""
        self.unsure: list[str] = []
        """Of what begins so, the next write is done and said to be unknown."""

    async def swap(self, key: str, expected: int | None, value: bytes) -> SwapOutcome:
        for prefix in self.too_large:
            if key.startswith(prefix):
                self.too_large.remove(prefix)
                raise LedgerLimitError("etcd refuses a request of this size")
        outcome = await super().swap(key, expected, value)
        self.written_bytes += len(key) + len(value)
        self.largest_bytes = max(self.largest_bytes, len(value))
        for prefix in self.unsure:
            if key.startswith(prefix):
                self.unsure.remove(prefix)
                return Unknown("the answer was lost")
        return outcome

    async def head(self) -> e.RunRegister:
        found = await self.read(run_key("run"))
        assert found is not None
        return e.decode_run(found.value)

    async def chunks(self) -> tuple[str, ...]:
        return await self.keys("chunks/")


def come(coordinator: Coordinator, count: int = NODES) -> None:
    run = coordinator.runs["run"]
    for i in range(count):
        run.post(on.NodeAttached(NodeInfo(f"n{i:04}", 1, f"h{i:04}"), SETTINGS, i))


def are_ready(coordinator: Coordinator, leaving: int, count: int = NODES) -> None:
    for i in range(count):
        name = f"n{i:04}"
        coordinator.runs["run"].post(on.NodeReady(NodeId(name, 1), leaving, Address(name, 1), 1))


async def met(ledger: CountingLedger, coordinator: Coordinator) -> None:
    come(coordinator)
    are_ready(coordinator, 0)
    await until(lambda: coordinator.runs["run"].membership.phase is Phase.ACTIVE)
