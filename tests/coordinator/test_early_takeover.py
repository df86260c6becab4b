"""A coordinator that has ended, as its nodes see it, is succeeded before its ttl has passed.

In virtual time, without connections. The ttl is long, so nothing here is the end of a lease.
"""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from rallypoint import runtime
from rallypoint.coordinator import owned_runs, takeover
from rallypoint.coordinator.config import CoordinatorConfig
from rallypoint.coordinator.coordinator import Coordinator
from rallypoint.coordinator.ended_owner import LOOK_WITHIN_S, MISTAKE_PAUSE_MAX_S, record_mistake
from rallypoint.coordinator.garbage_collector import GarbageCollector, Keeping
from rallypoint.core import election as e
from rallypoint.core.reasons import RefusalCode
from rallypoint.core.store import Get, Set
from rallypoint.core.values import Address, EndedOwner, RunSettings
from rallypoint.errors import (
    LedgerAccessError,
    LedgerCorruptError,
    LedgerError,
    LedgerUnreachableError,
)
from rallypoint.ledger.contract import Versioned
from rallypoint.ledger.keys import MISTAKE, lease_key, run_key
from rallypoint.ledger.memory import MemoryLedger
from rallypoint.wire import messages as wire
from tests.coordinator.lines import Line
from tests.coordinator.shared_ledger import has_begun, new_coordinator, until
from tests.loops import run_virtual

TTL_S = 60.0
CONFIG = CoordinatorConfig(lease_ttl_s=TTL_S, attach_grace_s=2 * TTL_S)
TWO = RunSettings(min_nodes=2, max_nodes=2, last_call_s=0.1)


@pytest.fixture
def refused(monkeypatch: pytest.MonkeyPatch) -> set[Address]:
    """The addresses that refuse connections. None is this machine's."""
    addresses: set[Address] = set()

    async def refuses(self: object, address: Address, limit_s: float) -> bool:
        return address in addresses

    async def is_own(self: object, host: str) -> bool:
        return False

    monkeypatch.setattr(runtime.SystemRuntime, "refuses", refuses)
    monkeypatch.setattr(runtime.SystemRuntime, "is_own", is_own)
    return addresses


class Case:
    """Two nodes in a round of the first coordinator; a second one is there."""

    def __init__(self) -> None:
        self.ledger = MemoryLedger()

    async def begin(self) -> None:
        self.first, self.owner = await new_coordinator(self.ledger, 1, CONFIG)
        self.second, self.next = await new_coordinator(self.ledger, 2, CONFIG)
        self._ticking = asyncio.ensure_future(self._tick())
        self.a, self.b = self.node(self.owner, "a"), self.node(self.owner, "b")
        await asyncio.gather(self.a.formed(), self.b.formed())
        await self.a.answer_to(1, Set("k", b"v"))

    async def _tick(self) -> None:
        while True:
            self.next.tick()
            await asyncio.sleep(0.1)

    async def lives(self, line: Line, seconds: float) -> None:
        """So much time passes, and the node is heard meanwhile."""
        for _ in range(int(seconds)):
            line.say(wire.Heartbeat(line.stamp))
            await asyncio.sleep(1.0)

    def node(self, at: Coordinator, name: str, ended: EndedOwner | None = None) -> Line:
        return Line(at, "run", name=name, settings=TWO, ended=ended)

    async def seen(self) -> EndedOwner:
        """What a node has read of the first one's lease, before it was refused."""
        found = await self.ledger.read(lease_key(self.first.process))
        assert found is not None
        return EndedOwner(self.first.process, found.version)

    async def head(self) -> e.RunRegister:
        found = await self.ledger.read(run_key("run"))
        assert found is not None
        return e.decode_run(found.value)

    async def aclose(self) -> None:
        self._ticking.cancel()
        for each in (self.first, self.second):
            await each.aclose()


def test_the_second_one_takes_the_run_at_once(refused: set[Address]) -> None:
    async def main() -> None:
        case = Case()
        await case.begin()
        refused.add(Address("127.0.0.1", 1))
        case.node(case.next, "a", await case.seen())
        loop = asyncio.get_running_loop()
        began_s = loop.time()
        await has_begun(case.next, "run")
        assert loop.time() - began_s < 1.0
        head = await case.head()
        assert (head.term, head.owner, head.unsure_s) == (2, case.second.process, TTL_S)
        await case.aclose()

    run_virtual(main())


def test_a_node_whose_sight_is_wrong_is_sent_to_the_owner(refused: set[Address]) -> None:
    """The second coordinator looks for itself, and is not refused."""

    async def main() -> None:
        case = Case()
        await case.begin()
        line = case.node(case.next, "a", await case.seen())
        await until(lambda: bool(line.refusals()))
        assert line.refusals()[0].code is RefusalCode.ELSEWHERE
        assert (await case.head()).term == 1
        await case.aclose()

    run_virtual(main())


def test_a_lease_that_was_renewed_since_is_kept(refused: set[Address]) -> None:
    async def main() -> None:
        case = Case()
        await case.begin()
        refused.add(Address("127.0.0.1", 1))
        before = await case.seen()
        await asyncio.sleep(TTL_S / 2)
        assert (await case.seen()).version != before.version
        line = case.node(case.next, "a", before)
        await until(lambda: bool(line.refusals()))
        assert (await case.head()).term == 1
        await case.aclose()

    run_virtual(main())


def test_r10_no_answer_before_all_members_have_attached(refused: set[Address]) -> None:
    """The first one may be alive: `b` is still attached to it, and reads what it has there."""

    async def main() -> None:
        case = Case()
        await case.begin()
        refused.add(Address("127.0.0.1", 1))
        a = case.node(case.next, "a", await case.seen())
        await has_begun(case.next, "run")
        await until(lambda: a.count(wire.Formed) > 0)
        a.say(wire.StoreCall(a.stamp, 7, Set("k", b"w")))
        await asyncio.sleep(2.0)
        assert a.count(wire.StoreAnswer) == 0
        assert (await case.b.answer_to(8, Get("k"))).value == b"v"  # type: ignore[union-attr]
        b = case.node(case.next, "b")
        await until(lambda: a.count(wire.StoreAnswer) == 1)
        assert (await b.answer_to(9, Get("k"))).value == b"w"  # type: ignore[union-attr]
        await case.aclose()

    run_virtual(main())


def test_r10_the_answers_come_after_the_ttl_without_the_others(refused: set[Address]) -> None:
    async def main() -> None:
        case = Case()
        await case.begin()
        refused.add(Address("127.0.0.1", 1))
        a = case.node(case.next, "a", await case.seen())
        await has_begun(case.next, "run")
        await until(lambda: a.count(wire.Formed) > 0)
        a.say(wire.StoreCall(a.stamp, 7, Set("k", b"w")))
        await case.lives(a, TTL_S - 5.0)
        assert a.count(wire.StoreAnswer) == 0
        await case.lives(a, 6.0)
        assert a.count(wire.StoreAnswer) == 1
        await case.aclose()

    run_virtual(main())


def test_r10_a_slow_takeover_holds_the_answers_no_longer_than_a_quick_one(
    refused: set[Address], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The time for which the former owner may be alive counts from when the run begins here."""
    read_and_seal = takeover.read_and_seal

    async def slow(*arguments: Any) -> Any:
        await asyncio.sleep(TTL_S + 5.0)
        return await read_and_seal(*arguments)

    async def main() -> None:
        case = Case()
        await case.begin()
        refused.add(Address("127.0.0.1", 1))
        a = case.node(case.next, "a", await case.seen())
        monkeypatch.setattr(owned_runs, "read_and_seal", slow)
        await asyncio.sleep(TTL_S + 10.0)
        await has_begun(case.next, "run")
        await until(lambda: a.count(wire.Formed) > 0)
        a.say(wire.StoreCall(a.stamp, 7, Set("k", b"w")))
        await case.lives(a, 1.0)
        assert a.count(wire.StoreAnswer) == 0
        await case.lives(a, TTL_S)
        assert a.count(wire.StoreAnswer) == 1
        await case.aclose()

    run_virtual(main())


def test_one_that_was_alive_says_so_and_the_ttl_counts_again(refused: set[Address]) -> None:
    async def main() -> None:
        case = Case()
        await case.begin()
        refused.add(Address("127.0.0.1", 1))
        case.node(case.next, "a", await case.seen())
        await has_begun(case.next, "run")
        await asyncio.sleep(TTL_S / 2)
        found = await case.ledger.read(MISTAKE)
        assert found is not None
        assert e.decode_mistake(found.value).process != case.second.process

        refused.add(Address("127.0.0.1", 2))
        third, another = await new_coordinator(case.ledger, 3, CONFIG)
        lease = await case.ledger.read(lease_key(case.second.process))
        assert lease is not None
        line = case.node(another, "a", EndedOwner(case.second.process, lease.version))
        await until(lambda: bool(line.refusals()))
        assert line.refusals()[0].code is RefusalCode.ELSEWHERE
        assert (await case.head()).owner == case.second.process
        await third.aclose()
        await case.aclose()

    run_virtual(main())


class Away(MemoryLedger):
    """Answers nobody while it is away, and counts what it is asked meanwhile."""

    is_away = False
    asked = 0

    async def read(self, key: str) -> Versioned | None:
        if self.is_away:
            self.asked += 1
            raise LedgerUnreachableError("away", hint="wait")
        return await super().read(key)


def test_a_mistake_is_recorded_when_the_ledger_is_back_however_late() -> None:
    async def main() -> None:
        ledger = Away()
        ledger.is_away = True
        recording = asyncio.create_task(record_mistake(ledger, "p", [Address("h", 1)]))
        away_s = 3_600.0
        await asyncio.sleep(away_s)
        assert ledger.asked < 10 + away_s / MISTAKE_PAUSE_MAX_S
        ledger.is_away = False
        async with asyncio.timeout(MISTAKE_PAUSE_MAX_S + 1.0):
            await recording
        found = await ledger.read(MISTAKE)
        assert found is not None
        assert e.decode_mistake(found.value).process == "p"

    run_virtual(main())


def test_one_that_is_ending_was_no_mistake(refused: set[Address]) -> None:
    """It closes its port before it has handed over, if the ledger is slow."""

    async def main() -> None:
        case = Case()
        await case.begin()
        refused.add(Address("127.0.0.1", 1))
        case.first.lease_manager.is_going = True
        case.node(case.next, "a", await case.seen())
        await has_begun(case.next, "run")
        await asyncio.sleep(TTL_S / 2)
        assert await case.ledger.read(MISTAKE) is None
        await case.aclose()

    run_virtual(main())


def test_a_mistake_is_forgotten_after_ten_minutes() -> None:
    async def main() -> None:
        ledger = MemoryLedger()
        await ledger.swap(MISTAKE, None, e.encode(e.Mistake(e.FORMAT, "p")))
        collector = GarbageCollector(ledger, Keeping(), lambda run_id: False, None)
        await collector.sweep(0.0)
        await collector.sweep(599.0)
        assert await ledger.read(MISTAKE) is not None
        await collector.sweep(600.0)
        assert await ledger.read(MISTAKE) is None

    run_virtual(main())


def test_a_mistake_that_is_repeated_begins_the_ten_minutes_again() -> None:
    async def main() -> None:
        ledger = MemoryLedger()
        await ledger.swap(MISTAKE, None, e.encode(e.Mistake(e.FORMAT, "p")))
        collector = GarbageCollector(ledger, Keeping(), lambda run_id: False, None)
        await collector.sweep(0.0)
        found = await ledger.read(MISTAKE)
        assert found is not None
        await ledger.swap(MISTAKE, found.version, e.encode(e.Mistake(e.FORMAT, "q")))
        await collector.sweep(600.0)
        assert await ledger.read(MISTAKE) is not None

    run_virtual(main())


def test_the_owner_of_a_round_of_its_own_is_sure() -> None:
    """The head of the next round says so: a successor need not wait for what is over."""

    async def main() -> None:
        ledger = MemoryLedger()
        shared, coordinator = await new_coordinator(ledger, 1, CONFIG)
        await _leave_unsure(ledger)
        a, b = (Line(coordinator, "run", name=each, settings=TWO) for each in ("a", "b"))
        await asyncio.gather(a.formed(), b.formed())
        found = await ledger.read(run_key("run"))
        assert found is not None
        head = e.decode_run(found.value)
        assert (head.number, head.unsure_s) == (1, 0.0)
        await shared.aclose()

    run_virtual(main())


async def _leave_unsure(ledger: MemoryLedger) -> None:
    head = e.RunRegister(e.FORMAT, ledger.ledger_id, "run", 1, "", unsure_s=9.0)
    await ledger.swap(run_key("run"), None, e.encode(head))


def test_an_owner_that_cannot_be_checked_is_succeeded_after_its_ttl(
    refused: set[Address], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Once no thread was left for the look-up of its name, and then the look-up takes long."""
    looks = 0

    async def is_own(self: object, host: str) -> bool:
        nonlocal looks
        looks += 1
        if looks == 1:
            raise RuntimeError("can't start new thread")
        await asyncio.sleep(100.0)
        return False

    async def main() -> None:
        case = Case()
        await case.begin()
        refused.update(case.first.addresses)
        ended = await case.seen()
        await case.first.aclose()
        monkeypatch.setattr(runtime.SystemRuntime, "is_own", is_own)
        for _ in range(int(TTL_S + 20.0)):
            case.node(case.next, "a", ended)
            await asyncio.sleep(1.0)
        assert looks > 1
        assert (await case.head()).owner == case.second.process
        await case.aclose()

    run_virtual(main())


@pytest.mark.parametrize("error", [LedgerCorruptError, LedgerAccessError])
def test_a_record_of_a_mistake_that_cannot_be_read_counts_as_one(
    refused: set[Address], error: type[LedgerError]
) -> None:
    class Damaged(MemoryLedger):
        async def read(self, key: str) -> Versioned | None:
            if key == MISTAKE:
                raise error("damaged", hint="repair it")
            return await super().read(key)

    async def main() -> None:
        case = Case()
        case.ledger = Damaged()
        await case.begin()
        refused.update(case.first.addresses)
        ended = await case.seen()
        await case.first.aclose()
        for at_s in range(int(TTL_S + 20.0)):
            line = case.node(case.next, "a", ended)
            await asyncio.sleep(1.0)
            refusals = {each.code for each in line.refusals()}
            assert refusals <= {RefusalCode.ELSEWHERE}
            if at_s < TTL_S / 2:
                assert (await case.head()).owner == case.first.process
        assert (await case.head()).owner == case.second.process
        await case.aclose()

    run_virtual(main())


def test_a_coordinator_that_is_closed_still_records_the_mistake(refused: set[Address]) -> None:
    """Its own node attaches to the next one, and has no more need of it."""

    class Flaky(MemoryLedger):
        failures = 0

        async def read(self, key: str) -> Versioned | None:
            if key == MISTAKE and self.failures:
                self.failures -= 1
                raise LedgerUnreachableError("away", hint="wait")
            return await super().read(key)

    async def main() -> None:
        case = Case()
        case.ledger = ledger = Flaky()
        await case.begin()
        refused.update(case.first.addresses)
        case.node(case.next, "a", await case.seen())
        await has_begun(case.next, "run")
        ledger.failures = 2
        before = case.first.process
        while case.first.process == before:  # noqa: ASYNC110 - it polls
            await asyncio.sleep(0.05)
        await case.first.aclose()
        assert await ledger.read(MISTAKE) is not None
        await case.aclose()

    run_virtual(main())


@pytest.mark.parametrize("answers", [True, False])
def test_one_that_is_closed_before_it_learns_of_it_records_the_mistake(
    refused: set[Address], answers: bool
) -> None:
    """Its own node attaches to the next one before a renewal has failed."""

    async def main() -> None:
        case = Case()
        case.ledger = ledger = Away()
        await case.begin()
        refused.update(case.first.addresses)
        case.node(case.next, "a", await case.seen())
        await has_begun(case.next, "run")
        assert not case.first.lease_manager.holder.is_lost
        ledger.is_away = not answers
        loop = asyncio.get_running_loop()
        began_s = loop.time()
        await case.first.before_close()
        assert loop.time() - began_s <= LOOK_WITHIN_S
        ledger.is_away = False
        await case.first.hand_over(5.0, "its node has found another")
        await case.first.aclose()
        assert (await ledger.read(MISTAKE) is not None) == answers
        await case.aclose()

    run_virtual(main())


def test_one_that_is_closed_in_peace_records_nothing(refused: set[Address]) -> None:
    async def main() -> None:
        case = Case()
        await case.begin()
        await case.first.before_close()
        refused.update(case.first.addresses)  # It closes its port, and others see that rightly.
        case.node(case.next, "a", await case.seen())
        await has_begun(case.next, "run")
        await case.first.hand_over(5.0, "a signal")
        await case.first.aclose()
        assert await case.ledger.read(MISTAKE) is None
        await case.aclose()

    run_virtual(main())


def test_the_welcome_tells_the_ttl_of_the_lease() -> None:
    async def main() -> None:
        case = Case()
        await case.begin()
        (welcome,) = (each for each in case.a.said if isinstance(each, wire.Welcome))
        assert welcome.lease_ttl_s == TTL_S
        await case.aclose()

    run_virtual(main())


def test_r8_an_owner_whose_node_is_cut_off_shows_that_it_lives(refused: set[Address]) -> None:
    async def main() -> None:
        case = Case()
        await case.begin()
        await asyncio.sleep(2.0)
        before = await case.seen()
        case.a.hang_up()
        await asyncio.sleep(0.3)
        assert await case.seen() != before
        await case.aclose()

    run_virtual(main())
