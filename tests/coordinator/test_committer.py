"""The committer over a ledger that loses answers, refuses, and is away for a while."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import msgspec

from rallypoint.clock import StallProofClock
from rallypoint.coordinator import committer as committing
from rallypoint.coordinator.committer import Committer, RunRecord
from rallypoint.coordinator.config import CoordinatorConfig
from rallypoint.coordinator.coordinator import Coordinator
from rallypoint.coordinator.hosted_run import HostedRun
from rallypoint.core import events as on
from rallypoint.core.values import Address, NodeId, NodeInfo, Outcome, Phase, RunSettings
from rallypoint.errors import LedgerLimitError
from rallypoint.ledger.contract import Ledger, SwapOutcome, Unknown, Versioned
from rallypoint.ledger.keys import run_key
from rallypoint.ledger.memory import MemoryLedger
from tests.loops import run_virtual


class FlakyLedger(Ledger):
    """A memory ledger whose swaps end as the test wants. `script`: one word for each swap.

    "done": as it should. "lost": done, and the answer is lost. "refused": not done, and unknown.
    "away": the same, and reads fail until `is_away` is cleared. "limit": an error of the engine.
    """

    is_durable = False

    def __init__(self, script: list[str]) -> None:
        self.inner = MemoryLedger()
        self.ledger_id = self.inner.ledger_id
        self.script = script
        self.is_away = False
        self.tried: list[bytes] = []

    async def read(self, key: str) -> Versioned | None:
        if self.is_away:
            raise ConnectionError("the ledger is away")
        return await self.inner.read(key)

    async def swap(self, key: str, expected: int | None, value: bytes) -> SwapOutcome:
        self.tried.append(value)
        how = self.script.pop(0) if self.script else "done"
        if how == "limit":
            raise LedgerLimitError("too large")
        self.is_away = how == "away"
        if how in ("refused", "away"):
            return Unknown(f"{how}: no answer")
        outcome = await self.inner.swap(key, expected, value)
        return Unknown("the answer was lost") if how == "lost" else outcome

    async def delete(self, key: str, version: int | None = None) -> bool:
        if self.is_away:
            raise ConnectionError("the ledger is away")
        return await self.inner.delete(key, version)


class Bench:
    """One run on a coordinator whose commits go to a flaky ledger, with one node that wants a
    round."""

    def __init__(self, script: list[str]) -> None:
        self.ledger = FlakyLedger(script)
        self.committer = Committer(self.ledger)
        self.coordinator = Coordinator(
            CoordinatorConfig(),
            ledger_id=self.ledger.ledger_id,
            commit=self.committer.commit,
            clock=StallProofClock(asyncio.get_running_loop().time),
        )
        self.run: HostedRun = self.coordinator.open_run("run")
        self.phases: list[Phase] = []

    def node(self, name: str) -> None:
        info = NodeInfo(name, 1, "host")
        self.run.post(on.NodeAttached(info, RunSettings(max_restarts=None), 1))
        self.run.post(on.NodeReady(NodeId(name, 1), 0, Address("host", 1), 1))

    async def until(self, is_so: Callable[[], bool]) -> None:
        async with asyncio.timeout(20):
            while not is_so():
                phase = self.run.membership.phase
                if not self.phases or self.phases[-1] is not phase:
                    self.phases.append(phase)
                self.coordinator.tick()
                await asyncio.sleep(0.001)


def meet(monkeypatch, script: list[str]) -> Bench:
    """Let one node meet itself over such a ledger."""
    monkeypatch.setattr(committing, "RETRY_S", 0.01)

    async def main() -> Bench:
        bench = Bench(script)
        bench.node("a")
        await bench.until(lambda: bench.run.membership.number == 1 or bench.run.membership.deposed)
        await bench.committer.aclose()
        return bench

    return asyncio.run(main())


def register(bench: Bench) -> RunRecord:
    kept = asyncio.run(bench.ledger.inner.read("runs/run"))
    assert kept is not None
    return msgspec.msgpack.decode(kept.value, type=RunRecord)


def test_a_round_is_written_with_its_writer_and_number(monkeypatch):
    record = register(meet(monkeypatch, ["done"]))
    assert (record.format, record.term, record.close) == (committing.RECORD_FORMAT, 1, None)
    assert record.record is not None
    assert record.record.head.number == 1
    assert (len(record.writer), record.sequence) == (16, 1)


def test_after_an_unknown_outcome_the_same_bytes_are_tried_again(monkeypatch):
    bench = meet(monkeypatch, ["refused", "refused", "done"])
    assert len(bench.ledger.tried) == 3
    assert len(set(bench.ledger.tried)) == 1
    assert Phase.SUSPENDED in bench.phases


def test_an_outcome_that_was_done_though_unknown_is_found_in_the_conflict(monkeypatch):
    bench = meet(monkeypatch, ["lost"])
    assert len(set(bench.ledger.tried)) == 1
    assert len(bench.ledger.tried) == 2
    assert not bench.run.membership.deposed
    assert bench.run.membership.phase is Phase.ACTIVE


def test_the_bytes_stay_the_same_though_the_run_has_changed(monkeypatch):
    """They may be in the ledger already: others would look like another coordinator's."""
    monkeypatch.setattr(committing, "RETRY_S", 0.01)

    async def main() -> Bench:
        bench = Bench(["lost", "done"])
        bench.node("a")
        await bench.until(lambda: bench.run.membership.phase is Phase.SUSPENDED)
        bench.run.membership.budget.spent += 1
        await bench.until(lambda: bench.run.membership.number == 1 or bench.run.membership.deposed)
        await bench.committer.aclose()
        return bench

    bench = asyncio.run(main())
    assert not bench.run.membership.deposed
    assert len(set(bench.ledger.tried)) == 1


def test_while_the_ledger_is_away_the_run_is_suspended_and_says_why(monkeypatch):
    monkeypatch.setattr(committing, "RETRY_S", 0.01)

    async def main() -> None:
        bench = Bench(["away", "done"])
        bench.node("a")
        await bench.until(lambda: bench.run.membership.suspended_reason == "the ledger is away")
        waiting = bench.run.waiting()
        assert str(waiting) == "suspended for 0 s: the ledger is away"
        bench.ledger.is_away = False
        await bench.until(lambda: bench.run.membership.number == 1)
        assert bench.run.waiting() is None
        await bench.committer.aclose()

    run_virtual(main())  # on a machine that pauses it may be 1 s


def test_what_the_engine_will_not_take_is_shown_and_tried_again(monkeypatch):
    bench = meet(monkeypatch, ["limit", "done"])
    assert Phase.SUSPENDED in bench.phases
    assert bench.run.membership.number == 1


def test_r5_a_register_that_another_has_written_deposes(monkeypatch):
    monkeypatch.setattr(committing, "RETRY_S", 0.01)

    async def main() -> None:
        bench = Bench(["done"])
        await bench.ledger.inner.swap("runs/run", None, b"another's")
        bench.node("a")
        await bench.until(lambda: bench.run.membership.deposed)
        assert bench.run.membership.number == 0
        kept = await bench.ledger.read("runs/run")
        assert kept is not None
        assert kept.value == b"another's"
        await bench.committer.aclose()

    asyncio.run(main())


def test_a_close_is_written_with_the_last_round(monkeypatch):
    async def main() -> RunRecord:
        bench = Bench(["done", "refused", "done"])
        bench.node("a")
        await bench.until(lambda: bench.run.membership.number == 1)
        bench.run.post(on.CloseRequested("ann", Outcome.STOPPED, "enough"))
        await bench.until(lambda: bench.run.is_closed)
        await bench.committer.aclose()
        kept = await bench.ledger.read("runs/run")
        assert kept is not None
        assert kept.version == 2
        return msgspec.msgpack.decode(kept.value, type=RunRecord)

    monkeypatch.setattr(committing, "RETRY_S", 0.01)
    record = asyncio.run(main())
    assert record.record is not None
    assert record.record.head.number == 1
    assert record.close is not None
    assert record.close.reason == "enough"


def test_closing_gives_up_what_is_being_written():
    async def main() -> None:
        bench = Bench(["away"])
        bench.node("a")
        await bench.until(lambda: bench.run.membership.phase is Phase.SUSPENDED)
        await bench.committer.aclose()
        assert asyncio.all_tasks() == {asyncio.current_task()}

    asyncio.run(main())


def test_a_run_that_is_forgotten_leaves_no_register(caplog):
    async def main() -> None:
        bench = Bench([])
        bench.node("a")
        await bench.until(lambda: bench.run.membership.number == 1)
        bench.ledger.is_away = True
        bench.committer.forget("run")
        await bench.until(lambda: "stays in the ledger" in caplog.text)
        await bench.committer.aclose()

    asyncio.run(main())


def test_a_run_that_goes_while_its_record_is_written_leaves_no_record():
    async def main() -> None:
        at = Bench([])
        key = run_key("run")
        is_written, may_answer = asyncio.Event(), asyncio.Event()
        swap = at.ledger.inner.swap

        async def slow(key: str, expected: int | None, value: bytes) -> SwapOutcome:
            outcome = await swap(key, expected, value)
            is_written.set()
            await may_answer.wait()
            return outcome

        at.ledger.inner.swap = slow  # type: ignore[method-assign]
        failed: list[object] = []
        at.run.fail = failed.append  # type: ignore[method-assign,assignment]
        at.node("a")
        await at.until(is_written.is_set)
        at.committer.forget("run")
        may_answer.set()
        async with asyncio.timeout(20):
            while await at.ledger.inner.read(key) is not None:  # noqa: ASYNC110
                await asyncio.sleep(0.001)
        assert not failed
        await at.committer.aclose()

    run_virtual(main())
