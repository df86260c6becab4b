"""What `status` says of the workers' progress, of nodes that drain, and of nodes that stay out."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

import msgspec

from rallypoint.coordinator import status
from rallypoint.coordinator.progress_view import STILL_MIN_S, STILL_UNKNOWN_S
from rallypoint.coordinator.status import MemberProgress, MemberStatus, RunStatus
from rallypoint.core import events as on
from rallypoint.core.progress import Progress
from rallypoint.core.values import NodeId, Phase
from rallypoint.ledger.memory import MemoryLedger
from tests.coordinator.one_run import NAMES, Case
from tests.loops import run_virtual


def in_round(body: Callable[[Case], Coroutine[Any, Any, None]]) -> None:
    async def main() -> None:
        case = await Case.begun(MemoryLedger(), 1, "machine-a")
        case.come(*NAMES)
        case.ready(*NAMES)
        await case.is_in(Phase.ACTIVE, 1)
        await body(case)
        await case.aclose()

    run_virtual(main())


def report(case: Case, name: str, step: int | None, timeout_s: float | None = None) -> None:
    case.run.progressed(NodeId(name, 1), Progress(1, step, 0.0, timeout_s))


def shown(case: Case) -> tuple[RunStatus, dict[str, MemberStatus]]:
    members = list(status.members_of(case.coordinator, case.run, 10))
    found = status.status_of(case.coordinator, case.run, None, members)
    read = msgspec.json.decode(msgspec.json.encode(found), type=RunStatus)
    return read, {each.name: each for each in read.members or ()}


async def train(case: Case, seconds: int, **steps_per_s: int) -> None:
    """Each node reports once a second, half a second after the one before."""
    begun = {name: (case.run.membership.progress.nodes.get(name)) for name in steps_per_s}
    first = {name: (each.step or 0) if each else 0 for name, each in begun.items()}
    for second in range(1, seconds + 1):
        for name, pace in steps_per_s.items():
            report(case, name, first[name] + second * pace)
            case.run.post(on.NodeHeard(NodeId(name, 1)))
            await asyncio.sleep(1.0 / len(steps_per_s))


def test_without_a_report_nothing_is_said() -> None:
    async def body(case: Case) -> None:
        run, members = shown(case)
        assert run.progress is None
        assert (run.behind, run.behind_total) == ([], 0)
        assert members["a"].progress is None

    in_round(body)


def test_the_newest_step_its_age_and_the_pace() -> None:
    async def body(case: Case) -> None:
        await train(case, 4, a=10, b=10)
        run, members = shown(case)
        assert run.progress is not None
        assert (run.progress.step, run.progress.is_still) == (40, False)
        assert run.progress.in_words == "step 40, 10.0 steps/s"
        assert 0.4 < run.progress.advanced_ago_s < 0.6
        a = members["a"].progress
        assert isinstance(a, MemberProgress)
        assert (a.step, a.is_behind) == (40, False)
        assert 0.9 < a.advanced_ago_s < 1.1
        assert a.steps_per_s is not None
        assert 9.9 < a.steps_per_s < 10.1
        # Nodes in step report one after the other, and none of them is behind.
        assert run.behind == []

    in_round(body)


def test_who_stands_behind_is_named() -> None:
    async def body(case: Case) -> None:
        await train(case, 12, a=10, b=5)
        run, members = shown(case)
        b = members["b"].progress
        assert b is not None
        assert (b.steps_behind, b.is_behind) == (60, True)
        assert (run.behind, run.behind_total) == (["b"], 1)

    in_round(body)


def test_a_node_that_stands_still_falls_behind() -> None:
    async def body(case: Case) -> None:
        await train(case, 4, a=10, b=10)
        await train(case, 30, a=10)
        run, members = shown(case)
        b = members["b"].progress
        assert b is not None
        assert (b.steps_behind, b.is_behind, b.steps_per_s) == (300, True, 0.0)
        assert run.behind == ["b"]
        assert run.progress is not None
        assert not run.progress.is_still

    in_round(body)


def test_a_run_in_which_nobody_advances_says_so() -> None:
    async def body(case: Case) -> None:
        await train(case, 4, a=10, b=10)
        await asyncio.sleep(STILL_MIN_S - 1.0)
        assert shown(case)[0].progress.is_still is False  # type: ignore[union-attr]
        await asyncio.sleep(81.0)
        run = shown(case)[0].progress
        assert run is not None
        assert (run.is_still, run.steps_per_s) == (True, 0.0)
        assert run.in_words == "no worker has advanced for 1 min 30 s after step 40"

    in_round(body)


def test_slow_steps_and_a_first_step_are_no_standstill() -> None:
    async def body(case: Case) -> None:
        report(case, "a", 1)
        await asyncio.sleep(STILL_UNKNOWN_S - 1.0)
        assert shown(case)[0].progress.is_still is False  # type: ignore[union-attr]
        report(case, "a", 2)
        await asyncio.sleep(4 * STILL_UNKNOWN_S)
        run = shown(case)[0].progress
        assert run is not None
        assert (run.is_still, run.in_words) == (False, "step 2, 59.0 s/step")

    in_round(body)


def test_before_a_hang_the_limit_is_said_and_then_that_the_nodes_are_asked() -> None:
    async def body(case: Case) -> None:
        for name in NAMES:
            report(case, name, 7, timeout_s=20.0)
        await asyncio.sleep(11.0)
        run = shown(case)[0].progress
        assert run is not None
        assert run.hang_timeout_s == 20.0
        assert run.in_words == (
            "no worker has advanced for 11 s after step 7; after 20 s the round ends as a hang"
        )
        await asyncio.sleep(10.0)
        run = shown(case)[0].progress
        assert run is not None
        assert run.is_asking
        assert run.in_words.startswith("no worker has advanced for 21 s: the nodes are asked where")
        await asyncio.sleep(2.0)
        run_status, _ = shown(case)
        assert run_status.progress is None
        (event,) = [each for each in case.run.events.last(20) if each.kind == "broken"]
        assert event.cause == "hang"

    in_round(body)


def test_a_draining_node_has_a_deadline_and_a_reason() -> None:
    async def body(case: Case) -> None:
        case.run.post(on.NodeDraining(NodeId("b", 1), 1, "spot notice", 30.0))
        await asyncio.sleep(10.0)
        _, members = shown(case)
        assert members["a"].draining is None
        assert members["b"].draining == "spot notice"
        left_s = members["b"].draining_left_s
        assert left_s is not None
        assert 19.5 < left_s < 20.5

    in_round(body)
