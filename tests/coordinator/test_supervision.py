"""An unexpected error ends one run with its cause, or the process's hold of its lease, and no more.

In virtual time, without connections.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

from rallypoint.clock import StallProofClock
from rallypoint.coordinator.config import CoordinatorConfig
from rallypoint.coordinator.coordinator import Coordinator
from rallypoint.coordinator.garbage_collector import LOOK_S
from rallypoint.coordinator.hosted_run import HostedRun
from rallypoint.coordinator.memory_ownership import MemoryOwnership
from rallypoint.coordinator.session import Session
from rallypoint.core import election as e
from rallypoint.core import events as on
from rallypoint.core.backoff import Backoff
from rallypoint.core.reasons import RefusalCode
from rallypoint.core.store import Set
from rallypoint.core.values import (
    NodeId,
    Outcome,
    Phase,
)
from rallypoint.ledger.contract import AppendOutcome, SwapOutcome, Versioned
from rallypoint.ledger.keys import run_key
from rallypoint.ledger.memory import MemoryLedger
from rallypoint.wire import messages as wire
from tests.coordinator.lines import Line
from tests.coordinator.shared_ledger import CONFIG, has_begun, new_coordinator, until
from tests.loops import run_virtual


class Fault(Exception):
    """An unexpected error."""


class Faulty(MemoryLedger):
    """Raises what no engine should, wherever `fault` says so: (operation, key) -> bool."""

    def __init__(self) -> None:
        super().__init__()
        self.fault: Callable[[str, str], bool] = lambda operation, key: False

    def _look(self, operation: str, key: str) -> None:
        if self.fault(operation, key):
            raise Fault(f"{operation} {key}")

    async def read(self, key: str) -> Versioned | None:
        self._look("read", key)
        return await super().read(key)

    async def swap(self, key: str, expected: int | None, value: bytes) -> SwapOutcome:
        self._look("swap", key)
        return await super().swap(key, expected, value)

    async def append(self, log: str, index: int, value: bytes) -> AppendOutcome:
        self._look("append", log)
        return await super().append(log, index, value)

    async def keys(self, prefix: str = "") -> tuple[str, ...]:
        self._look("keys", prefix)
        return await super().keys(prefix)


def failing(run: HostedRun, error: Exception) -> None:
    """The next event of this run brings the error."""

    def step(event: on.Event, now_s: float) -> list[Any]:
        raise error

    run.membership.step = step  # type: ignore[method-assign]


async def two_runs(ledger: MemoryLedger) -> tuple[Any, Coordinator, Line, Line]:
    shared, coordinator = await new_coordinator(ledger, 1)
    faulty, other = (
        Line(coordinator, "faulty", redials=True),
        Line(coordinator, "other", redials=True),
    )
    await faulty.formed()
    await other.formed()
    return shared, coordinator, faulty, other


async def is_well(coordinator: Coordinator, other: Line) -> None:
    """The other run goes on in its round, and can be ended."""
    assert other.refusals() == []
    run = coordinator.runs["other"]
    await until(lambda: run.membership.phase is Phase.ACTIVE)
    other.say(wire.CloseRun(other.said[-1].stamp, Outcome.SUCCEEDED, "trained"))
    await until(lambda: run.is_closed)


def test_an_error_in_one_run_ends_it_and_it_continues_from_its_register() -> None:
    async def main() -> None:
        ledger = MemoryLedger()
        shared, coordinator, faulty, other = await two_runs(ledger)
        failing(coordinator.runs["faulty"], Fault("a bug"))
        faulty.say(wire.Done(faulty.said[-1].stamp, 1))
        (refusal,) = faulty.refusals()
        code, message = refusal.code, refusal.message
        assert code is RefusalCode.MOVED
        assert "'faulty'" in message
        assert "Fault: a bug" in message
        await until(lambda: faulty.count(wire.Welcome) == 2)
        assert faulty.said[-1].stamp.term == 2
        assert coordinator.runs["faulty"].membership.number == 1
        await is_well(coordinator, other)
        await shared.aclose()

    run_virtual(main())


def test_an_error_in_a_claim_lets_go_of_its_run_once() -> None:
    """Twice would double the time for which this process stays away from the run."""

    async def main() -> None:
        shared, coordinator, _, other = await two_runs(MemoryLedger())
        ttl_s = CONFIG.lease_ttl_s
        for pause_s in (ttl_s, 2 * ttl_s):
            assert coordinator.runs["faulty"].is_claimed
            shared._run_failed("faulty", Fault("a bug"))
            stays_s = shared._stays_away_s["faulty"] - asyncio.get_running_loop().time()
            assert stays_s == pytest.approx(pause_s)
            await has_begun(coordinator, "faulty")
        await is_well(coordinator, other)
        await shared.aclose()

    run_virtual(main())


def test_one_run_that_fails_after_an_outage_does_not_suspend_others() -> None:
    async def main() -> None:
        ledger = Faulty()
        shared, coordinator, faulty, other = await two_runs(ledger)
        shared._runs.suspend_all("no answer", 1.0)
        shared.lease_manager.is_suspended = True
        assert coordinator.runs["other"].membership.phase is Phase.SUSPENDED
        failing(coordinator.runs["faulty"], Fault("a bug"))
        shared._runs.restore_all()
        await until(lambda: coordinator.runs["other"].membership.phase is Phase.ACTIVE)
        assert faulty.refusals()
        await is_well(coordinator, other)
        await shared.aclose()

    run_virtual(main())


class Stalling(MemoryLedger):
    """While `until_s` is set, swaps are answered then: the runs' before the lease's, or after."""

    def __init__(self, *, lease_last: bool) -> None:
        super().__init__()
        self.until_s = 0.0
        self._lease_last = lease_last

    async def swap(self, key: str, expected: int | None, value: bytes) -> SwapOutcome:
        loop = asyncio.get_running_loop()
        if self.until_s > loop.time():
            is_last = key.startswith("coordinators/") == self._lease_last
            await asyncio.sleep(self.until_s - loop.time() + 0.001 * is_last)
        return await super().swap(key, expected, value)


@pytest.mark.parametrize("lease_last", [True, False], ids=["run-first", "lease-first"])
@pytest.mark.parametrize("stall_ttls", [0.9, 1.1, 1.5, 3.0])
def test_a_stall_of_the_ledger_during_a_close_blocks_no_run(
    lease_last: bool, stall_ttls: float
) -> None:
    async def main() -> None:
        ledger = Stalling(lease_last=lease_last)
        shared, coordinator, closing, other = await two_runs(ledger)
        ledger.until_s = asyncio.get_running_loop().time() + stall_ttls * CONFIG.lease_ttl_s
        closing.say(wire.CloseRun(closing.said[-1].stamp, Outcome.SUCCEEDED, "trained"))
        await until(lambda: closing.count(wire.Closed) == 1)
        assert closing.refusals() == []
        register = await ledger.read(run_key("faulty"))
        assert register is not None
        close = e.decode_run(register.value).close
        assert close is not None
        assert close.outcome is Outcome.SUCCEEDED
        await is_well(coordinator, other)
        await shared.aclose()

    run_virtual(main())


@pytest.mark.parametrize("operation", ["swap", "append"])
def test_an_engine_error_in_the_request_of_a_run_ends_that_run(operation: str) -> None:
    async def main() -> None:
        ledger = Faulty()
        shared, coordinator, faulty, other = await two_runs(ledger)
        ledger.fault = lambda what, key: what == operation and "faulty" in key
        stamp = faulty.said[-1].stamp
        if operation == "swap":
            faulty.say(wire.CloseRun(stamp, Outcome.SUCCEEDED, "trained"))
        else:
            faulty.say(wire.StoreCall(stamp, 1, Set("k", b"v")))
        await until(lambda: bool(faulty.refusals()))
        code, message = faulty.refusals()[0].code, faulty.refusals()[0].message
        assert code is RefusalCode.MOVED
        assert f"Fault: {operation}" in message
        ledger.fault = lambda what, key: False
        await until(lambda: faulty.count(wire.Welcome) == 2)
        await is_well(coordinator, other)
        await shared.aclose()

    run_virtual(main())


def test_an_error_in_a_takeover_is_logged_and_the_takeover_repeated() -> None:
    async def main() -> None:
        ledger = Faulty()
        shared, coordinator = await new_coordinator(ledger, 1)
        other = Line(coordinator, "other", redials=True)
        await other.formed()
        ledger.fault = lambda what, key: what == "read" and key == run_key("faulty")
        faulty = Line(coordinator, "faulty", redials=True)
        await until(lambda: len(faulty.refusals()) >= 2)
        assert "Fault: read" in faulty.refusals()[0].message
        ledger.fault = lambda what, key: False
        await faulty.formed()
        await is_well(coordinator, other)
        await shared.aclose()

    run_virtual(main())


def test_an_engine_error_with_the_lease_releases_all_runs() -> None:
    async def main() -> None:
        ledger = Faulty()
        shared, _, faulty, other = await two_runs(ledger)
        process = shared.lease_manager.process
        ledger.fault = lambda what, key: what == "swap" and key.startswith("coordinators/")
        await until(lambda: bool(faulty.refusals()) and bool(other.refusals()))
        assert "Fault: swap" in other.refusals()[0].message
        ledger.fault = lambda what, key: False
        await until(lambda: faulty.count(wire.Welcome) == 2 and other.count(wire.Welcome) == 2)
        assert shared.lease_manager.process != process
        assert shared._ticker is not None
        assert not shared._ticker.done()
        await shared.aclose()

    run_virtual(main())


def test_an_error_of_the_garbage_collector_ends_one_pass() -> None:
    async def main() -> None:
        ledger = Faulty()
        looks = []

        def fault(operation: str, key: str) -> bool:
            looks.append(operation == "keys")
            return operation == "keys"

        ledger.fault = fault
        shared, _ = await new_coordinator(ledger, 1)
        await asyncio.sleep(3.5 * LOOK_S)
        assert sum(looks) == 3
        await shared.aclose()

    run_virtual(main())


def test_in_memory_a_failed_run_is_lost_and_its_nodes_get_the_reason() -> None:
    async def main() -> None:
        loop = asyncio.get_running_loop()
        ownership = MemoryOwnership(call_soon=loop.call_soon)
        coordinator = Coordinator(CoordinatorConfig(), ownership, clock=StallProofClock(loop.time))
        faulty, other = (
            Line(coordinator, "faulty", redials=False),
            Line(coordinator, "other", redials=True),
        )
        await faulty.formed()
        await other.formed()
        failing(coordinator.runs["faulty"], Fault("a bug"))
        coordinator.runs["faulty"].post(on.NodeLeft(NodeId("b", 1), "nobody"))
        (refusal,) = faulty.refusals()
        code, message = refusal.code, refusal.message
        assert code is RefusalCode.RUN_LOST
        assert "Fault: a bug" in message
        assert "faulty" not in coordinator.runs
        await is_well(coordinator, other)

    run_virtual(main())


def test_an_error_in_the_search_for_silence_ends_one_run() -> None:
    async def main() -> None:
        shared, coordinator, faulty, other = await two_runs(MemoryLedger())

        def check_silence(session: Session, now_s: float) -> None:
            raise Fault("a bug")

        connections = coordinator.runs["faulty"].connections
        connections.check_silence = check_silence  # type: ignore[method-assign]
        coordinator.tick(coordinator.now_s() + 60.0)
        assert "Fault: a bug" in faulty.refusals()[0].message
        await has_begun(coordinator, "faulty")
        await is_well(coordinator, other)
        await shared.aclose()

    run_virtual(main())


def test_pauses_grow_up_to_a_bound_and_are_reset_after_a_quiet_time() -> None:
    backoff = Backoff(3.0, 10.0)
    assert [backoff.next_s(0.0) for _ in range(4)] == [3.0, 6.0, 10.0, 10.0]
    assert backoff.next_s(101.0) == 3.0
