"""A run's history survives its coordinators, and says whose clock each time is by (R9).

In virtual time, as shared_ledger.py; the wall clocks of the two coordinators are an hour
apart.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Iterator

import msgspec
import pytest

from rallypoint.coordinator.ledger_view import detail, look
from rallypoint.core import events as on
from rallypoint.core.past import NO_PAST
from rallypoint.core.suspension import SuspensionCause
from rallypoint.core.values import (
    Outcome,
    Phase,
)
from rallypoint.ledger.contract import Swapped
from rallypoint.ledger.keys import run_key
from rallypoint.ledger.memory import MemoryLedger
from tests.coordinator.one_run import NAMES, Case, Held
from tests.coordinator.shared_ledger import until
from tests.loops import run_virtual


class Clocks:
    """The wall clock of the coordinator that runs now: that of the first is an hour ahead."""

    def __init__(self) -> None:
        self.ahead_s = 3_600.0

    def time(self) -> float:
        return 1_700_000_000.0 + self.ahead_s + asyncio.get_running_loop().time()


@pytest.fixture
def clocks(monkeypatch: pytest.MonkeyPatch) -> Iterator[Clocks]:
    made = Clocks()
    with monkeypatch.context() as patch:
        patch.setattr(time, "time", made.time)
        yield made


async def three_rounds(case: Case) -> None:
    """Two rounds that a failure ends, after 2 s and 1 s of gathering, and one that goes on."""
    case.come(*NAMES)
    await asyncio.sleep(2.0)
    case.ready(*NAMES)
    await case.is_in(Phase.ACTIVE, 1)
    for number, gathering_s in ((2, 1.0), (3, 1.0)):
        await asyncio.sleep(10.0)
        case.fail("a")
        await asyncio.sleep(gathering_s)
        case.ready(*NAMES)
        await case.is_in(Phase.ACTIVE, number)


def test_past_rounds_and_the_present_one_survive_a_takeover(clocks: Clocks) -> None:
    async def main() -> None:
        ledger = MemoryLedger()
        first = await Case.begun(ledger, 1, "machine-a")
        await three_rounds(first)
        before = first.status()
        assert before.rounds is not None
        await asyncio.sleep(5.0)
        await first.aclose()

        clocks.ahead_s = 0.0
        second = await Case.begun(ledger, 2, "machine-b")
        after = second.status()
        assert after.rounds is not None
        for was, now in zip(before.rounds, after.rounds, strict=True):
            for field in (
                *("number", "nodes", "size", "restart_count", "formed_at", "formed_on"),
                *("gathering_s", "active_s", "ended_at", "ended_on", "ended"),
            ):
                assert getattr(now, field) == getattr(was, field), field
        assert [each.restart_count for each in after.rounds] == [0, 1, 2]
        assert [each.formed_on for each in after.rounds] == ["machine-a"] * 3
        assert "ValueError: no" in after.rounds[1].ended
        gathered = [each.gathering_s for each in after.rounds]
        assert gathered == pytest.approx([2.0, 1.0, 1.0], abs=0.2)
        assert after.rounds[0].active_s == pytest.approx(10.0, abs=0.2)
        assert after.rounds[-1].members == ["a", "b"]
        assert after.rounds[0].members is None

        # It ends here. How long it was on is known in part; no two clocks are mixed.
        second.come(*NAMES)
        await asyncio.sleep(4.0)
        second.fail("b")
        await asyncio.sleep(1.0)
        second.ready(*NAMES)
        await second.is_in(Phase.ACTIVE, 4)
        third, fourth = (second.status().rounds or [])[-2:]
        assert (third.formed_on, third.ended_on) == ("machine-a", "machine-b")
        assert third.formed_at is not None
        assert third.ended_at is not None
        assert third.ended_at < third.formed_at  # two clocks: which is why neither is used
        assert third.active_s is None
        assert 4.0 <= third.active_min_s < 5.0
        assert "failed on b" in third.ended
        assert fourth.formed_on == "machine-b"
        assert fourth.gathering_s == pytest.approx(1.0, abs=0.2)
        await second.aclose()

    run_virtual(main())


def test_a_round_ended_by_the_last_coordinator_is_not_ended_again(clocks: Clocks) -> None:
    async def main() -> None:
        ledger = MemoryLedger()
        first = await Case.begun(ledger, 1, "machine-a")
        first.come(*NAMES)
        first.ready(*NAMES)
        await first.is_in(Phase.ACTIVE, 1)
        await asyncio.sleep(10.0)
        first.fail("a")
        await asyncio.sleep(1.0)  # for the note of it to be in the ledger
        before = (first.status().rounds or [])[0]
        await first.aclose()
        clocks.ahead_s = 0.0
        second = await Case.begun(ledger, 2, "machine-b")
        after = (second.status().rounds or [])[0]
        assert (after.ended_at, after.ended_on) == (before.ended_at, "machine-a")
        assert after.active_s == before.active_s == pytest.approx(10.0, abs=0.2)
        assert "ValueError: no" in after.ended
        assert after.change is not None
        second.come(*NAMES)
        second.ready(*NAMES)
        await second.is_in(Phase.ACTIVE, 2)
        # How long its nodes gathered is unknown: it began under the other coordinator.
        assert (second.status().rounds or [])[-1].gathering_s is None
        await second.aclose()

    run_virtual(main())


def test_a_record_without_a_past_gives_an_unknown_past() -> None:
    async def main() -> None:
        ledger = MemoryLedger()
        first = await Case.begun(ledger, 1, "machine-a")
        first.come(*NAMES)
        first.ready(*NAMES)
        await first.is_in(Phase.ACTIVE, 1)
        await first.aclose()
        kept = await look(ledger, "run")
        found = await ledger.read(run_key("run"))
        assert kept is not None
        assert found is not None
        old = msgspec.structs.replace(kept.register, past=NO_PAST)
        fields = [getattr(old, name) for name in old.__struct_fields__[:-2]]  # without `past`
        written = await ledger.swap(run_key("run"), found.version, msgspec.msgpack.encode(fields))
        assert isinstance(written, Swapped)
        shown = await detail(ledger, await look(ledger, "run") or kept, 10, "here")
        second = await Case.begun(ledger, 2, "machine-b")
        for told in (shown, second.status()):
            (only,) = told.rounds or []
            assert (only.number, only.nodes) == (1, 2)
            assert (only.formed_at, only.formed_on, only.gathering_s) == (None, None, None)
        await second.aclose()

    run_virtual(main())


def test_the_end_of_a_run_is_in_the_ledger_with_its_last_round(clocks: Clocks) -> None:
    async def main() -> None:
        ledger = MemoryLedger()
        first = await Case.begun(ledger, 1, "machine-a")
        await three_rounds(first)
        await asyncio.sleep(7.0)
        first.run.post(on.CloseRequested("somebody", Outcome.STOPPED, "enough"))
        await first.is_in(Phase.CLOSED, 3)
        own = (first.status().rounds or [])[-1]
        await first.aclose()
        kept = await look(ledger, "run")
        assert kept is not None
        shown = await detail(ledger, kept, 10, "here")
        assert (shown.phase, shown.source) == ("closed", "ledger")
        last = (shown.rounds or [])[-1]
        assert last.ended == own.ended == "stopped: enough (by node 'somebody')"
        assert last.active_s == pytest.approx(7.0, abs=0.2)
        assert own.active_s == pytest.approx(7.0, abs=0.2)
        # The same from a coordinator that has taken the run over since.
        second = await Case.begun(ledger, 2, "machine-b")
        again = second.status()
        assert [each.number for each in again.rounds or []] == [1, 2, 3]
        assert (again.rounds or [])[-1].ended == own.ended
        await second.aclose()

    run_virtual(main())


# -- losses by which no round ends -----------------------------------------------------------------


def test_losses_between_rounds_are_logged_and_survive(
    clocks: Clocks, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "rallypoint.coordinator")

    async def main() -> None:
        ledger = Held()
        case = await Case.begun(ledger, 1, "machine-a")
        case.come("x")  # before any round
        case.ended("x")
        await until(lambda: len(case.run.membership.roster) == 0)
        case.come(*NAMES, "s")
        case.ready(*NAMES)
        await case.is_in(Phase.ACTIVE, 1)
        case.ready("s")
        case.ended("s")  # a standby
        await until(lambda: len(case.run.membership.roster) == 2)
        assert case.run.membership.phase is Phase.ACTIVE

        case.fail("a")
        case.ended("b")  # while the next round is gathered
        await until(lambda: case.run.membership.roster.get("b") is None)

        ledger.may_write.clear()
        case.come("c")
        case.ready("a", "c")
        await until(lambda: case.run.membership.phase is Phase.COMMITTING)
        case.ended("c")  # while the next one is written
        await until(lambda: case.run.membership.roster.get("c") is None)
        ledger.may_write.set()
        await case.is_in(Phase.GATHERING, 2)

        case.come("d")
        case.run.post(on.LedgerLost("away", cause=SuspensionCause.COMMIT))
        case.ended("d")  # while no member is judged
        await asyncio.sleep(1.0)
        assert case.run.membership.roster.get("d") is not None
        case.run.post(on.LedgerRestored(SuspensionCause.COMMIT))
        await until(lambda: case.run.membership.roster.get("d") is None)

        waiting = case.run.waiting()
        assert waiting is not None
        assert (waiting.lost, waiting.lost_count) == (("d",), 1)  # the others before round 2
        assert "lost since the last round: d" in str(waiting)
        case.come("d")
        waiting = case.run.waiting()
        assert waiting is not None
        assert waiting.lost == ()

        losses = case.status().losses or []
        ended = "lost: its process ended: the kernel closed its connection"
        assert [(each.round, each.phase, each.nodes, each.text) for each in losses] == [
            (0, "gathering", ["x"], f"x {ended}"),
            (1, "active", ["s"], f"s {ended}"),
            (1, "gathering", ["b"], f"b {ended}"),
            (1, "committing", ["c"], f"c {ended}"),
            (2, "gathering", ["d"], f"d {ended}"),
        ]
        assert {each.lost_on for each in losses} == {"machine-a"}
        for line in (
            f"x {ended}",
            f"s {ended}",
            f"b {ended}",
            f"c {ended}",
            f"d {ended}",
        ):
            assert caplog.messages.count(f"run run: {line}") == 1
        rounds = case.status().rounds or []
        assert [(each.number, each.published) for each in rounds] == [(1, True), (2, False)]

        case.come("e")
        case.ready("a", "e")  # a round in whose head they are
        await case.is_in(Phase.ACTIVE, 3)
        await case.aclose()
        second = await Case.begun(ledger, 2, "machine-b")
        kept = second.status().losses or []
        assert kept == losses[-len(kept) :]
        assert len(kept) == 4
        assert [each.published for each in second.status().rounds or []] == [True, False, True]
        await second.aclose()

    run_virtual(main())


def test_many_losses_together_are_one_line(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "rallypoint.coordinator")

    async def main() -> None:
        case = await Case.begun(MemoryLedger(), 1, "machine-a")
        names = [chr(ord("c") + i) for i in range(20)]
        case.come(*names)
        for name in names:
            case.ended(name)
        await until(lambda: len(case.run.membership.roster) == 0)
        (loss,) = case.status().losses or []
        assert (loss.count, loss.nodes) == (20, ["c", "d", "e"])
        assert loss.text.startswith("c, d, e and 17 more lost")
        lines = [each for each in caplog.messages if "lost" in each]
        assert len(lines) == 1
        await case.aclose()

    run_virtual(main())
