"""A coordinator with one run on a ledger, in virtual time, and what the run's nodes say.

What must not be here: a test.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import msgspec

from rallypoint.coordinator import status
from rallypoint.coordinator.config import CoordinatorConfig
from rallypoint.coordinator.coordinator import Coordinator
from rallypoint.coordinator.hosted_run import HostedRun
from rallypoint.coordinator.run_ownership import RunOwnership
from rallypoint.coordinator.status import RunStatus
from rallypoint.core import events as on
from rallypoint.core.values import (
    Address,
    ConnectionEnd,
    Failure,
    FailureKind,
    NodeId,
    NodeInfo,
    Phase,
    RunSettings,
)
from rallypoint.ledger.contract import SwapOutcome
from rallypoint.ledger.keys import run_key
from rallypoint.ledger.memory import MemoryLedger
from tests.coordinator.shared_ledger import has_begun, new_coordinator, until

SETTINGS = RunSettings(
    min_nodes=2, max_nodes=2, max_restarts=None, last_call_s=2.0, reconnect_grace_s=0.5
)
NAMES = ("a", "b")
FAILURE = Failure(FailureKind.EXCEPTION, "ValueError: no", 0)


class Held(MemoryLedger):
    """A ledger whose next swap of the run's head can be made to wait."""

    def __init__(self) -> None:
        super().__init__()
        self.may_write = asyncio.Event()
        self.may_write.set()

    async def swap(self, key: str, expected: int | None, value: bytes) -> SwapOutcome:
        if key == run_key("run"):
            await self.may_write.wait()
        return await super().swap(key, expected, value)


class Case:
    """A coordinator with the run, and what its nodes say. Its clock ticks."""

    def __init__(self, shared: RunOwnership, coordinator: Coordinator) -> None:
        self.shared, self.coordinator = shared, coordinator
        self._ticking = asyncio.ensure_future(self._tick())

    @classmethod
    async def begun(
        cls,
        ledger: MemoryLedger,
        port: int,
        host: str,
        started: Callable[[RunOwnership, Coordinator], None] | None = None,
    ) -> Case:
        """`started` is called before the run is claimed."""
        config = CoordinatorConfig(lease_ttl_s=0.3, clock_host=host)
        case = cls(*await new_coordinator(ledger, port, config))
        if started is not None:
            started(case.shared, case.coordinator)
        case.shared.claim("run")
        await has_begun(case.coordinator, "run")
        return case

    async def _tick(self) -> None:
        while True:
            self.coordinator.tick()
            await asyncio.sleep(0.01)

    async def aclose(self) -> None:
        self._ticking.cancel()
        await asyncio.gather(self._ticking, return_exceptions=True)
        await self.shared.aclose()

    @property
    def run(self) -> HostedRun:
        return self.coordinator.runs["run"]

    def come(self, *names: str, incarnation: int = 1) -> None:
        for name in names:
            info = NodeInfo(name, incarnation, "host")
            self.run.post(on.NodeAttached(info, SETTINGS, 100 * incarnation + ord(name)))

    def ready(self, *names: str, incarnation: int = 1, leaving: int | None = None) -> None:
        number = self.run.membership.number if leaving is None else leaving
        for name in names:
            node = NodeId(name, incarnation)
            self.run.post(on.NodeReady(node, number, Address("host", 1), 1))

    def ended(self, name: str, incarnation: int = 1) -> None:
        """The kernel closes its connection: it is lost."""
        connection_id = 100 * incarnation + ord(name)
        process_ended = ConnectionEnd.PROCESS_ENDED
        self.run.post(on.ConnectionLost(NodeId(name, incarnation), connection_id, process_ended))

    def fail(self, name: str) -> None:
        """A worker fails, and all answer the probe."""
        membership = self.run.membership
        self.run.post(on.WorkerFailed(NodeId(name, 1), membership.number, FAILURE))
        for each in NAMES:
            self.run.post(on.ProbeAnswered(NodeId(each, 1)))

    async def lives_for_three_rounds(self) -> None:
        """Both nodes meet, a worker of `a` fails, and the process of `b` ends and starts again."""
        self.come(*NAMES)
        self.ready(*NAMES)
        await self.is_in(Phase.ACTIVE, 1)
        self.fail("a")
        await asyncio.sleep(0.1)  # until the verdict
        self.ready(*NAMES)
        await self.is_in(Phase.ACTIVE, 2)
        self.ended("b")
        await asyncio.sleep(0.1)
        self.come("b", incarnation=2)
        self.ready("a")
        self.ready("b", incarnation=2)
        await self.is_in(Phase.ACTIVE, 3)

    async def is_in(self, phase: Phase, number: int) -> None:
        membership = self.run.membership
        await until(lambda: (membership.phase, membership.number) == (phase, number))

    def status(self) -> RunStatus:
        """As HTTP gives it, so that it has all fields, of the right types."""
        shown = status.status_of(self.coordinator, self.run, None, [])
        return msgspec.json.decode(msgspec.json.encode(shown), type=RunStatus)
