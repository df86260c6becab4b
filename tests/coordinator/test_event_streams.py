"""The history of a run is true after takeovers and restarts, and says where it is not whole.

In virtual time; the coordinators share a ledger in memory.
"""

from __future__ import annotations

import asyncio
from typing import Any

import msgspec
import pytest

from rallypoint.coordinator import event_keeper, event_streams
from rallypoint.coordinator.event_keeper import EventKeeper
from rallypoint.coordinator.event_log import Events
from rallypoint.coordinator.event_streams import EventReader, EventWriter, with_gaps
from rallypoint.coordinator.event_sweeper import EventSweeper
from rallypoint.coordinator.kept_events import kept_events
from rallypoint.coordinator.ledger_view import look
from rallypoint.coordinator.run_events import FROM_HEAD, EventKind, RunEvent
from rallypoint.core import election as e
from rallypoint.core import events as on
from rallypoint.core.values import Outcome, Phase
from rallypoint.errors import LedgerUnreachableError
from rallypoint.ledger.contract import AppendOutcome, Unknown
from rallypoint.ledger.keys import EVENTS, lease_key
from rallypoint.ledger.memory import MemoryLedger
from tests.coordinator.one_run import NAMES, Case
from tests.coordinator.shared_ledger import until
from tests.loops import run_virtual


class Away(MemoryLedger):
    """A ledger that takes no records of logs while it is away."""

    def __init__(self) -> None:
        super().__init__()
        self.is_away = False
        self.appends = 0

    async def append(self, log: str, index: int, value: bytes) -> AppendOutcome:
        if log.startswith(EVENTS):
            self.appends += 1
            if self.is_away:
                return Unknown("no quorum", None)
        return await super().append(log, index, value)


class Kept:
    """A coordinator with the run whose events are kept in the ledger."""

    def __init__(self, case: Case, keeper: EventKeeper) -> None:
        self.case, self.keeper = case, keeper

    @classmethod
    async def begun(cls, ledger: MemoryLedger, port: int, host: str) -> Kept:
        kept: list[EventKeeper] = []

        def started(shared: Any, coordinator: Any) -> None:
            keeper = EventKeeper(ledger, coordinator.events, lambda: shared.process)
            keeper.start()
            kept.append(keeper)

        case = await Case.begun(ledger, port, host, started)
        return cls(case, kept[0])

    async def dies(self) -> None:
        """It writes nothing more: neither its events nor its lease."""
        self.keeper.writer._waiting.clear()
        self.keeper.writer._record = None
        await self.keeper.aclose()
        await self.case.aclose()

    async def ends(self) -> None:
        """It hands over, and writes its last events."""
        await self.case.shared.hand_over(5.0, "it ends")
        await self.keeper.aclose()
        await self.case.aclose()

    def events(self) -> list[RunEvent]:
        return self.case.run.events.after((0, 0), 10_000, 1e9)

    def kinds(self) -> list[str]:
        return [event.kind.value for event in self.events()]

    async def two_rounds(self) -> None:
        self.case.come(*NAMES)
        self.case.ready(*NAMES)
        await self.case.is_in(Phase.ACTIVE, 1)
        self.case.fail("a")
        await asyncio.sleep(0.1)
        self.case.ready(*NAMES)
        await self.case.is_in(Phase.ACTIVE, 2)

    async def has_read(self) -> None:
        """It has read what the coordinators before have left."""
        await until(lambda: any(event.term == 1 for event in self.events()))
        await asyncio.sleep(2 * event_keeper.WRITTEN_WITHIN_S)


TWO_ROUNDS = [
    *("began", "attached", "attached", "ready", "ready", "formed"),
    *("worker_failed", "broken", "cause", "ready", "ready", "formed"),
]


def test_a_successor_has_the_whole_history_of_a_coordinator_that_has_ended() -> None:
    async def main() -> None:
        ledger = MemoryLedger()
        first = await Kept.begun(ledger, 1, "machine-a")
        await first.two_rounds()
        before = first.events()
        await first.ends()
        second = await Kept.begun(ledger, 2, "machine-b")
        await second.has_read()
        assert second.kinds() == [*TWO_ROUNDS, "suspended", "handed_over", "took_over"]
        assert second.events()[: len(before)] == before
        assert [event.on for event in second.events()[-2:]] == ["machine-a", "machine-b"]
        assert not any(event.is_late for event in second.events())
        await second.ends()
        third = await Kept.begun(ledger, 3, "machine-c")
        await third.has_read()
        assert third.kinds() == [*TWO_ROUNDS, *("suspended", "handed_over", "took_over") * 2]
        assert [event.term for event in third.events()[-4:]] == [2, 2, 2, 3]
        await third.ends()

    run_virtual(main())


def test_a_successor_of_a_dead_coordinator_says_what_may_be_missing() -> None:
    async def main() -> None:
        ledger = MemoryLedger()
        first = await Kept.begun(ledger, 1, "machine-a")
        await first.two_rounds()
        await asyncio.sleep(2.0)  # these are written
        first.case.come("a", incarnation=7)  # and this is not
        await first.dies()
        second = await Kept.begun(ledger, 2, "machine-b")
        await second.has_read()
        assert second.kinds() == [*TWO_ROUNDS, "took_over", "dropped"]
        last = second.events()[-1]
        assert last.detail.startswith("the last one that was written before term 2 is 1.12; ")
        assert (last.count, last.term) == (0, 2)
        assert str(last).startswith("some events not kept: ")
        await second.ends()

    run_virtual(main())


def test_rounds_that_were_not_written_are_read_from_the_head() -> None:
    async def main() -> None:
        ledger = Away()
        first = await Kept.begun(ledger, 1, "machine-a")
        ledger.is_away = True
        await first.two_rounds()
        first.case.run.post(on.CloseRequested("a", Outcome.SUCCEEDED, "trained"))
        await first.case.is_in(Phase.CLOSED, 2)
        formed = [event for event in first.events() if event.kind is EventKind.FORMED]
        await first.dies()
        second = await Kept.begun(ledger, 2, "machine-b")
        await until(lambda: "closed" in second.kinds())
        assert second.kinds() == ["took_over", "dropped", "formed", "broken", "formed", "closed"]
        late = [event for event in second.events() if event.is_late]
        assert [event.kind for event in late] == [
            *(EventKind.FORMED, EventKind.BROKEN, EventKind.FORMED, EventKind.CLOSED)
        ]
        assert [event.round for event in late] == [1, 1, 2, 2]
        assert {event.on for event in late} == {"machine-a"}
        for now, then in zip(late[::2], formed, strict=True):
            assert (now.round, now.count) == (then.round, then.count)
            assert now.at == pytest.approx(then.at, abs=1.0)
        assert late[1].detail.startswith("a worker failed on a")
        assert "trained" in late[-1].detail
        await second.dies()

    run_virtual(main())


def test_late_events_are_written_once() -> None:
    async def main() -> None:
        ledger = Away()
        first = await Kept.begun(ledger, 1, "machine-a")
        ledger.is_away = True
        await first.two_rounds()
        await first.dies()
        ledger.is_away = False
        for port in (2, 3):
            later = await Kept.begun(ledger, port, f"machine-{port}")
            await until(lambda each=later: each.kinds().count("formed") == 2)  # type: ignore[misc]
            await asyncio.sleep(2 * event_keeper.WRITTEN_WITHIN_S)
            assert later.kinds().count("formed") == 2
            assert later.kinds().count("broken") == 1
            await later.ends()

    run_virtual(main())


def test_a_run_without_a_coordinator_is_read_from_the_ledger() -> None:
    async def main() -> None:
        ledger = MemoryLedger()
        first = await Kept.begun(ledger, 1, "machine-a")
        await first.two_rounds()
        await asyncio.sleep(2.0)
        before = first.events()
        found = await look(ledger, "run")
        assert found is not None
        shown, problem = await kept_events(EventReader(ledger), found.register)
        assert shown == before
        assert problem == "the last events of its coordinator may be missing"
        await first.dies()

    run_virtual(main())


def test_a_closed_run_is_whole_in_the_ledger() -> None:
    async def main() -> None:
        ledger = MemoryLedger()
        first = await Kept.begun(ledger, 1, "machine-a")
        await first.two_rounds()
        first.case.run.post(on.CloseRequested("a", Outcome.SUCCEEDED, "trained"))
        await first.case.is_in(Phase.CLOSED, 2)
        await asyncio.sleep(2.0)
        found = await look(ledger, "run")
        assert found is not None
        shown, problem = await kept_events(EventReader(ledger), found.register)
        assert [event.kind.value for event in shown] == [*TWO_ROUNDS, "closed"]
        assert problem == ""
        await first.dies()

    run_virtual(main())


def test_events_that_only_the_head_has_get_numbers_of_their_own() -> None:
    async def main() -> None:
        ledger = Away()
        ledger.is_away = True
        first = await Kept.begun(ledger, 1, "machine-a")
        await first.two_rounds()
        found = await look(ledger, "run")
        assert found is not None
        shown, _ = await kept_events(EventReader(ledger), found.register)
        assert [event.kind.value for event in shown] == ["formed", "broken", "formed"]
        assert [event.seq for event in shown] == [FROM_HEAD, FROM_HEAD + 1, FROM_HEAD + 2]
        await first.dies()

    run_virtual(main())


# -- writing ---------------------------------------------------------------------------------------


def event(seq: int, term: int = 1, kind: EventKind = EventKind.READY, **more: Any) -> RunEvent:
    return RunEvent(term=term, seq=seq, kind=kind, at=1.0, offset_s=1.0, on="h", **more)


async def writing(ledger: MemoryLedger) -> tuple[EventWriter, asyncio.Task[None]]:
    await ledger.open()
    writer = EventWriter(ledger, lambda: "p")
    return writer, asyncio.get_running_loop().create_task(writer.run())


async def stopped(task: asyncio.Task[None]) -> None:
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


async def read(ledger: MemoryLedger, run_id: str = "r") -> list[RunEvent]:
    return (await EventReader(ledger).of_run(run_id, ["p"])).events


def test_a_coordinator_writes_at_most_once_a_second() -> None:
    async def main() -> None:
        ledger = Away()
        writer, task = await writing(ledger)
        for number in range(3_000):
            writer.take(f"r{number % 100}", event(1 + number // 100))
            await asyncio.sleep(0.02)
        await asyncio.sleep(2.0)
        assert 55 <= ledger.appends <= 63
        written = [await read(ledger, f"r{number}") for number in range(100)]
        assert [each.seq for each in written[7]] == list(range(1, 31))
        quiet = ledger.appends
        await asyncio.sleep(60.0)
        assert ledger.appends == quiet
        await stopped(task)

    run_virtual(main())


def test_events_wait_for_a_ledger_that_is_away_and_the_oldest_are_dropped_and_counted(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(event_streams, "WAITING_BYTES_MAX", 10_000)

    async def main() -> None:
        ledger = Away()
        writer, task = await writing(ledger)
        writer.take("r", event(1))
        await asyncio.sleep(2.0)
        ledger.is_away = True
        for seq in range(2, 102):
            writer.take("r", event(seq))
        await asyncio.sleep(30.0)
        assert len(await read(ledger)) == 1
        for seq in range(102, 104):
            writer.take("r", event(seq))
        ledger.is_away = False
        await asyncio.sleep(10.0)
        found = await read(ledger)
        (gap,) = [each for each in found if each.kind is EventKind.DROPPED]
        assert (gap.seq, gap.count) == (2, writer.dropped)
        assert found[-1].seq == 103
        assert str(gap).startswith(f"{gap.count} events not kept: ")
        assert len(found) == 103 - gap.count + 1
        await stopped(task)

    run_virtual(main())


def test_the_same_record_is_tried_again_until_its_outcome_is_known() -> None:
    class Unsure(MemoryLedger):
        tries = 0

        async def append(self, log: str, index: int, value: bytes) -> AppendOutcome:
            self.tries += 1
            outcome = await super().append(log, index, value)
            return Unknown("the answer is lost", None) if self.tries < 3 else outcome

    async def main() -> None:
        ledger = Unsure()
        writer, task = await writing(ledger)
        writer.take("r", event(1))
        await asyncio.sleep(10.0)
        writer.take("r", event(2))
        await asyncio.sleep(10.0)
        assert [each.seq for each in await read(ledger)] == [1, 2]
        assert ledger.tries == 4
        await stopped(task)

    run_virtual(main())


def test_a_record_that_was_being_written_is_flushed() -> None:
    async def main() -> None:
        ledger = Away()
        writer, task = await writing(ledger)
        ledger.is_away = True
        writer.take("r", event(1))
        await asyncio.sleep(0.5)
        writer.take("r", event(2))
        await stopped(task)
        ledger.is_away = False
        await writer.flush(1.0)
        assert [each.seq for each in await read(ledger)] == [1, 2]

    run_virtual(main())


def test_a_flush_is_bounded_in_time() -> None:
    async def main() -> None:
        ledger = Away()
        writer, task = await writing(ledger)
        ledger.is_away = True
        writer.take("r", event(1))
        await stopped(task)
        loop = asyncio.get_running_loop()
        begun_s = loop.time()
        await writer.flush(1.0)
        assert loop.time() - begun_s == pytest.approx(1.0, abs=0.1)

    run_virtual(main())


def test_old_segments_are_dropped_and_the_reader_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(event_streams, "SEGMENT_RECORDS", 3)

    async def main() -> None:
        ledger = MemoryLedger()
        writer, task = await writing(ledger)
        for seq in range(1, 31):
            writer.take("r", event(seq))
            await asyncio.sleep(1.5)
        assert len(await ledger.logs(EVENTS)) == event_streams.SEGMENTS_KEPT
        found = await read(ledger)
        assert (found[0].kind, found[0].count) == (EventKind.DROPPED, found[1].seq - 1)
        assert found[-1].seq == 30
        await stopped(task)

    run_virtual(main())


def test_a_segment_that_was_removed_is_followed_by_another() -> None:
    async def main() -> None:
        ledger = MemoryLedger()
        writer, task = await writing(ledger)
        writer.take("r", event(1))
        await asyncio.sleep(2.0)
        await ledger.drop_log("events/p/0")
        writer.take("r", event(2))
        await asyncio.sleep(5.0)
        assert await ledger.logs(EVENTS) == ("events/p/1",)
        assert [each.seq for each in await read(ledger)] == [1, 2]
        await stopped(task)

    run_virtual(main())


def test_a_new_lease_has_a_stream_of_its_own() -> None:
    async def main() -> None:
        ledger, names = MemoryLedger(), ["p", "q"]
        await ledger.open()
        writer = EventWriter(ledger, lambda: names[0])
        writer.take("r", event(1))
        names.pop(0)
        writer.take("r", event(1, term=2))
        await writer.flush(5.0)
        assert await ledger.logs(EVENTS) == ("events/p/0", "events/q/0")

    run_virtual(main())


# -- reading ---------------------------------------------------------------------------------------


def test_gaps_between_numbers_become_events() -> None:
    found = with_gaps([event(2), event(3), event(7), event(1, term=2), event(3, term=2)])
    shown = [(each.term, each.seq, each.kind.value, each.count) for each in found]
    assert shown == [
        *((1, 1, "dropped", 1), (1, 2, "ready", 0), (1, 3, "ready", 0), (1, 4, "dropped", 3)),
        *((1, 7, "ready", 0), (2, 1, "ready", 0), (2, 2, "dropped", 1), (2, 3, "ready", 0)),
    ]


def test_a_stream_is_read_once_for_all_runs_that_a_coordinator_has_left() -> None:
    class Counting(MemoryLedger):
        listed = 0

        async def logs(self, prefix: str = "") -> tuple[str, ...]:
            self.listed += 1
            return await super().logs(prefix)

    async def main() -> None:
        ledger = Counting()
        writer, task = await writing(ledger)
        for number in range(50):
            writer.take(f"r{number}", event(1))
        await asyncio.sleep(3.0)
        reader = EventReader(ledger)
        found = await asyncio.gather(*(reader.of_run(f"r{n}", ["p"]) for n in range(50)))
        assert all(len(each.events) == 1 for each in found)
        assert ledger.listed == 1
        await reader.aclose()
        await stopped(task)

    run_virtual(main())


@pytest.mark.parametrize("data", [b"\xc1", b"\x81\xa4runs\x01", msgspec.msgpack.encode([1])])
def test_a_damaged_stream_is_a_problem_and_no_error(data: bytes) -> None:
    async def main() -> None:
        ledger = MemoryLedger()
        await ledger.open()
        await ledger.append("events/p/0", 0, data)
        found = await EventReader(ledger).of_run("r", ["p", "never"])
        assert found.events == []
        assert found.problem.startswith("the events of coordinator p are damaged")

    run_virtual(main())


def test_a_ledger_that_does_not_answer_is_a_problem_and_no_error() -> None:
    class Silent(MemoryLedger):
        async def logs(self, prefix: str = "") -> tuple[str, ...]:
            raise LedgerUnreachableError("no quorum")

    async def main() -> None:
        found = await EventReader(Silent()).of_run("r", ["p"])
        assert found.problem == "the events of coordinator p: no quorum"

    run_virtual(main())


# -- removing --------------------------------------------------------------------------------------


async def lease(ledger: MemoryLedger, process: str, state: e.LeaseState) -> None:
    value = e.Lease(e.FORMAT, process, 1, state)
    key = lease_key(process)
    found = await ledger.read(key)
    await ledger.swap(key, found.version if found else None, e.encode(value))


def test_the_events_of_coordinators_that_have_ended_are_removed_later() -> None:
    async def main() -> None:
        ledger = MemoryLedger()
        await ledger.open()
        for name in ("alive/0", "moved/0", "moved/1", "gone/0"):
            await ledger.append(f"{EVENTS}{name}", 0, b"")
        await lease(ledger, "alive", e.LeaseState.SERVING)
        await lease(ledger, "moved", e.LeaseState.MOVING)
        sweeper = EventSweeper(ledger, kept_s=100.0)
        for now_s in (0.0, 50.0, 99.0):
            await sweeper.sweep(now_s)
        assert len(await ledger.logs(EVENTS)) == 4
        await ledger.append(f"{EVENTS}gone/1", 0, b"")  # it is written to, whatever its lease says
        await sweeper.sweep(100.0)
        assert await ledger.logs(EVENTS) == ("events/alive/0", "events/gone/0", "events/gone/1")
        await sweeper.sweep(200.0)
        assert await ledger.logs(EVENTS) == ("events/alive/0",)

    run_virtual(main())


def test_at_most_so_many_streams_of_coordinators_that_have_ended_are_kept() -> None:
    async def main() -> None:
        ledger = MemoryLedger()
        await ledger.open()
        sweeper = EventSweeper(ledger, streams_kept=2)
        for number in range(4):
            await ledger.append(f"{EVENTS}p{number}/0", 0, b"")
            await sweeper.sweep(float(number))
        assert await ledger.logs(EVENTS) == ("events/p2/0", "events/p3/0")

    run_virtual(main())


def test_a_coordinator_without_the_keeper_writes_no_events() -> None:
    """As in the simulator: its histories must not change."""

    async def main() -> None:
        ledger = Away()
        case = await Case.begun(ledger, 1, "machine-a")
        case.come(*NAMES)
        case.ready(*NAMES)
        await case.is_in(Phase.ACTIVE, 1)
        await asyncio.sleep(5.0)
        assert ledger.appends == 0
        assert await ledger.logs(EVENTS) == ()
        assert not Events("h").sinks
        await case.aclose()

    run_virtual(main())
