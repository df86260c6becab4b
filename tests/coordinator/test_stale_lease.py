"""A coordinator whose last renewal is not fresh acknowledges nothing, and sends its nodes away.

In virtual time, without connections.
"""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest
from aiohttp import web
from aiohttp.test_utils import make_mocked_request

from rallypoint.coordinator import actions_api
from rallypoint.coordinator.coordinator import Coordinator
from rallypoint.coordinator.holding import HeldAnswers
from rallypoint.coordinator.http_api import COORDINATOR
from rallypoint.coordinator.run_ownership import RunOwnership
from rallypoint.coordinator.session import Session
from rallypoint.core.reasons import RefusalCode
from rallypoint.core.store import Add, Get, Set, StoreOp, Wait
from rallypoint.core.values import Address, Failure, FailureKind, Phase
from rallypoint.ledger.contract import AppendOutcome, SwapOutcome, Unknown
from rallypoint.ledger.keys import COORDINATORS
from rallypoint.ledger.memory import MemoryLedger
from rallypoint.wire import messages as wire
from tests.coordinator.lines import Line
from tests.coordinator.shared_ledger import CONFIG, new_coordinator, until
from tests.loops import VirtualLoop, run_virtual
from tests.outlets import WholeMessages

TTL_S = CONFIG.lease_ttl_s


class NoRenewal(MemoryLedger):
    """Answers all but the swaps of leases while `is_mute`: these have no known outcome."""

    def __init__(self) -> None:
        super().__init__()
        self.is_mute = False
        self.appends = 0

    async def swap(self, key: str, expected: int | None, value: bytes) -> SwapOutcome:
        if self.is_mute and key.startswith(COORDINATORS):
            return Unknown("no answer")
        return await super().swap(key, expected, value)

    async def append(self, log: str, index: int, value: bytes) -> AppendOutcome:
        self.appends += 1
        return await super().append(log, index, value)


class Case:
    """A coordinator with one run, whose round has one node, and its ledger."""

    def __init__(
        self, ledger: NoRenewal, shared: RunOwnership, coordinator: Coordinator, line: Line
    ) -> None:
        self.ledger, self.shared, self.coordinator, self.line = ledger, shared, coordinator, line

    @property
    def phase(self) -> Phase:
        return self.coordinator.runs["run"].membership.phase

    async def suspended(self) -> None:
        self.ledger.is_mute = True
        await until(lambda: self.phase is Phase.SUSPENDED)

    def ask(self, request_id: int, op: StoreOp) -> None:
        self.line.say(wire.StoreCall(self.line.said[-1].stamp, request_id, op))

    def answered(self) -> list[int]:
        said = self.line.said
        return [each.request_id for each in said if isinstance(each, wire.StoreAnswer)]


async def a_case(*, redials: bool = True, **options: Any) -> Case:
    ledger = NoRenewal()
    shared, coordinator = await new_coordinator(ledger, 1)
    line = Line(coordinator, "run", redials=redials, **options)
    await line.formed()
    case = Case(ledger, shared, coordinator, line)
    case.ask(1, Set("k", b"v"))
    await until(lambda: case.answered() == [1])
    return case


OPERATIONS = [Get("k"), Set("k", b"w"), Add("n", 1), Wait(("k",))]


@pytest.mark.parametrize("op", OPERATIONS, ids=lambda op: type(op).__name__)
def test_nothing_is_answered_before_a_renewal_succeeds(op: StoreOp) -> None:
    """R10: reads too. Another coordinator may have acknowledged a write by then."""

    async def main() -> None:
        case = await a_case()
        await case.suspended()
        appends = case.ledger.appends
        case.ask(2, op)
        await until(lambda: isinstance(op, Get | Wait) or case.ledger.appends > appends)
        await asyncio.sleep(2 * TTL_S)
        assert case.answered() == [1]
        case.ledger.is_mute = False
        await until(lambda: case.answered() == [1, 2])
        await case.shared.aclose()

    run_virtual(main())


def test_input_during_a_stall_is_not_answered_on_the_old_lease() -> None:
    """What has come meanwhile may be read before the lease's ticker has its turn."""

    async def main() -> None:
        case = await a_case()
        loop = asyncio.get_running_loop()
        assert isinstance(loop, VirtualLoop)
        loop._now_s += 10 * TTL_S
        case.ask(2, Get("k"))
        case.line.say(wire.Heartbeat(case.line.said[-1].stamp))
        assert case.answered() == [1]
        assert case.phase is Phase.SUSPENDED
        await until(lambda: case.answered() == [1, 2])
        await until(lambda: case.phase is Phase.ACTIVE)
        await case.shared.aclose()

    run_virtual(main())


def test_after_a_stall_no_node_is_judged_on_the_old_lease() -> None:
    async def main() -> None:
        case = await a_case()
        loop = asyncio.get_running_loop()
        assert isinstance(loop, VirtualLoop)
        loop._now_s += 10 * TTL_S
        case.ledger.is_mute = True
        case.line.say(wire.Ready(case.line.said[-1].stamp, 1, Address("h", 1), 1))
        assert case.phase is Phase.SUSPENDED  # Nothing that is decided now could be committed.
        assert case.line.count(wire.Formed) == 1
        case.ledger.is_mute = False
        await until(lambda: case.line.count(wire.Formed) == 2)
        await case.shared.aclose()

    run_virtual(main())


def test_kept_messages_are_dropped_when_another_owns_the_run() -> None:
    """R11: the node asks that one again, and the request is applied once."""

    async def main() -> None:
        case = await a_case(redials=False)
        await case.suspended()
        case.ask(2, Get("k"))
        second, other = await new_coordinator(MemoryLedger(), 2)
        case.shared._runs.deposed("run", "term 2 has begun")
        assert case.answered() == [1]
        assert [each.code for each in case.line.refusals()] == [RefusalCode.MOVED]
        case.ledger.is_mute = False
        await asyncio.sleep(2 * TTL_S)
        assert case.answered() == [1]
        for each in (case.shared, second):
            await each.aclose()
        assert other.runs == {}

    run_virtual(main())


def test_kept_messages_go_with_their_connection() -> None:
    async def main() -> None:
        case = await a_case(redials=False)
        await case.suspended()
        case.ask(2, Get("k"))
        held = case.coordinator.runs["run"].store._held
        assert held.bytes > 0
        case.line.close("it breaks")
        await asyncio.sleep(0.1)
        assert held.bytes == 0
        case.ledger.is_mute = False
        await until(lambda: case.phase is Phase.ACTIVE)
        assert case.answered() == [1]
        await case.shared.aclose()

    run_virtual(main())


def test_the_beat_stays_while_no_renewal_is_confirmed() -> None:
    """A node judges its coordinator by it, so tries do not count."""

    async def main() -> None:
        case = await a_case()
        before = case.shared.beat()
        await until(lambda: case.shared.beat() > before)
        await case.suspended()
        beats = set()
        for _ in range(20):
            case.line.say(wire.Heartbeat(case.line.said[-1].stamp))
            await asyncio.sleep(TTL_S / 4)
            said = case.line.said[-1]
            assert isinstance(said, wire.Beat)
            beats.add(said.beat)
        assert len(beats) == 1
        case.ledger.is_mute = False
        await until(lambda: case.shared.beat() > max(beats))
        await case.shared.aclose()

    run_virtual(main())


def test_a_node_that_resumes_gets_its_round_when_the_lease_is_renewed() -> None:
    async def main() -> None:
        case = await a_case()
        await case.suspended()
        back = Line(case.coordinator, "run", redials=True)
        assert back.count(wire.Welcome) == 1
        assert back.count(wire.Formed) == 0
        case.ledger.is_mute = False
        await until(lambda: back.count(wire.Formed) == 1)
        await case.shared.aclose()

    run_virtual(main())


def test_the_end_of_a_round_follows_the_round_that_was_kept() -> None:
    """A node that has missed the beginning of a round cannot place its end."""

    async def main() -> None:
        case = await a_case()
        await case.suspended()
        back = Line(case.coordinator, "run", redials=True)
        failed = wire.Failed(back.said[-1].stamp, 1, Failure(FailureKind.EXCEPTION, "ValueError"))
        back.say(failed)
        kinds = [type(each) for each in back.said if isinstance(each, wire.Formed | wire.Broken)]
        assert kinds == [wire.Formed, wire.Broken]
        await case.shared.aclose()

    run_virtual(main())


def test_a_node_that_waits_for_its_name_is_redirected_with_the_others() -> None:
    async def main() -> None:
        case = await a_case(redials=False)
        second = Line(case.coordinator, "run", redials=False, incarnation=2)
        assert second.said == []
        case.shared._runs.deposed("run", "term 2 has begun")
        for line in (case.line, second):
            assert [each.code for each in line.refusals()] == [RefusalCode.MOVED]
        await case.shared.aclose()

    run_virtual(main())


@pytest.mark.parametrize("reads_ledger", [True, False])
def test_nodes_without_the_ledger_are_redirected_with_growing_pauses(reads_ledger: bool) -> None:
    """They may reach another replica. Those that read the ledger find it by themselves."""

    async def main() -> None:
        case = await a_case(reads_ledger=reads_ledger)
        loop = asyncio.get_running_loop()
        await case.suspended()
        since_s = loop.time()
        sent_s: list[float] = []
        while loop.time() - since_s < 300.0:
            if len(case.line.refusals()) > len(sent_s):
                assert case.line.refusals()[-1].code is RefusalCode.MOVED
                sent_s.append(loop.time() - since_s)
            await asyncio.sleep(0.02)
        pauses_s = [after - before for before, after in zip([0.0, *sent_s], sent_s, strict=False)]
        if reads_ledger:
            assert sent_s == []
        else:
            wanted_s = [min(TTL_S * 2**number, 60.0) for number in range(len(pauses_s))]
            assert pauses_s == pytest.approx(wanted_s, abs=0.25)
            assert len(pauses_s) > 8
        case.ledger.is_mute = False
        await until(lambda: case.phase is Phase.ACTIVE)
        await case.shared.aclose()

    run_virtual(main())


class SlowLog(NoRenewal):
    """Its lease cannot be renewed from the moment on in which a log is read."""

    async def records(
        self, log: str, start: int = 0, limit: int | None = None
    ) -> tuple[tuple[int, bytes], ...]:
        self.is_mute = True
        await asyncio.sleep(2 * TTL_S)
        return await super().records(log, start, limit)


def test_a_run_begun_after_the_lease_expired_is_suspended() -> None:
    async def main() -> None:
        ledger = SlowLog()
        first, coordinator = await new_coordinator(ledger, 1)
        line = Line(coordinator, "run", redials=False)
        await line.formed()
        await first.aclose()
        second, other = await new_coordinator(ledger, 2)
        back = Line(other, "run", redials=True)
        await until(lambda: "run" in other.runs and other.runs["run"].is_claimed)
        assert other.runs["run"].membership.phase is Phase.SUSPENDED
        assert back.count(wire.Formed) == 0
        ledger.is_mute = False
        await until(lambda: other.runs["run"].membership.phase is Phase.ACTIVE)
        await until(lambda: back.count(wire.Formed) == 1)
        await second.aclose()

    run_virtual(main())


class Outlet(WholeMessages):
    """What a session has sent."""

    peer = "127.0.0.1"

    def __init__(self) -> None:
        self.sent: list[bytes] = []
        self.is_cut = False

    def send(self, payload: bytes) -> None:
        self.sent.append(payload)

    def backlog_bytes(self) -> int:
        return 0

    def close(self, reason: str) -> None:
        self.abort()

    def abort(self) -> None:
        self.is_cut = True


def test_kept_messages_are_bounded_and_missed_answers_are_asked_again() -> None:
    async def main() -> None:
        _, coordinator = await new_coordinator(MemoryLedger(), 1)
        a, b = Outlet(), Outlet()
        first, second = Session(coordinator, 1, a), Session(coordinator, 2, b)
        held = HeldAnswers(bytes_max=100)
        held.put(first, b"x" * 60)
        held.put(second, b"y" * 60)
        held.put(second, b"z")
        held.put(first, b"x" * 40)
        held.release()
        assert list(map(len, a.sent)) == [60, 40]
        assert not a.is_cut
        assert b.sent == []
        assert b.is_cut
        held.put(second, b"y" * 60)
        held.forget(second)
        held.put(first, b"x" * 100)
        held.release()
        assert len(a.sent) == 3

    run_virtual(main())


async def asked_to_close(coordinator: Coordinator) -> tuple[int, dict[str, Any]]:
    """What the coordinator answers to `rallypoint close`."""
    app = web.Application()
    app[COORDINATOR] = coordinator
    actions_api.add_routes(app)
    request = make_mocked_request("POST", "/api/v1/runs/run/close", app=app)
    resolved = await app.router.resolve(request)
    resolved.add_app(app)
    resolved.current_app = app
    request._match_info = resolved
    response = await resolved.handler(request)
    assert isinstance(response, web.Response)
    assert isinstance(response.body, bytes)
    return response.status, json.loads(response.body)


def test_a_close_is_confirmed_after_it_is_in_the_ledger() -> None:
    """R6: a successor never saw a close that was not committed."""

    async def main() -> None:
        case = await a_case()
        await case.suspended()
        status, said = await asked_to_close(case.coordinator)
        assert status == 503
        assert "is not closed yet: the ledger does not answer" in said["error"]
        asking = asyncio.ensure_future(asked_to_close(case.coordinator))
        await asyncio.sleep(TTL_S)
        assert not asking.done()
        case.ledger.is_mute = False
        assert await asking == (200, {"run_id": "run", "was_closed": False})
        assert case.coordinator.runs["run"].is_closed
        assert await asked_to_close(case.coordinator) == (
            200,
            {"run_id": "run", "was_closed": True},
        )
        await case.shared.aclose()

    run_virtual(main())


def test_a_close_lost_with_its_coordinator_is_not_confirmed() -> None:
    async def main() -> None:
        case = await a_case()
        await case.suspended()
        asking = asyncio.ensure_future(asked_to_close(case.coordinator))
        await asyncio.sleep(0.1)
        case.shared._runs.deposed("run", "another coordinator has it")
        status, said = await asking
        assert status == 503
        assert "this coordinator does not own it any more" in said["error"]
        await case.shared.aclose()

    run_virtual(main())
