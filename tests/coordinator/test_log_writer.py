"""R1, R5, R10: what becomes of a run when its log is created, and when a record is written to it.

Each answer of the ledger is given by the test. In virtual time, without connections.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, cast

import msgspec
import pytest

from rallypoint.coordinator.hosted_run import HostedRun
from rallypoint.coordinator.log_reader import RETRY_S
from rallypoint.coordinator.log_records import header_record
from rallypoint.coordinator.log_writer import LogWriter
from rallypoint.coordinator.round_log import first_log
from rallypoint.coordinator.store_log import LogAppend, StoreLog
from rallypoint.coordinator.supervision import Supervised
from rallypoint.core import events as on
from rallypoint.core.roster import Roster
from rallypoint.core.store import Set
from rallypoint.core.suspension import Suspension, SuspensionCause
from rallypoint.core.values import RoundRecord
from rallypoint.errors import LedgerLimitError
from rallypoint.ledger.contract import AppendOutcome, Created, Exists, Gap, Unknown
from rallypoint.ledger.memory import MemoryLedger
from tests.coordinator.log_segments import new_store
from tests.core.test_marked_lines import member, record
from tests.loops import run_virtual

UNKNOWN = Unknown("no answer")
REFUSED = LedgerLimitError("too large")


class Answering(MemoryLedger):
    """Gives these answers to appends, in order, and then does what it is asked."""

    def __init__(self, *answers: AppendOutcome | LedgerLimitError) -> None:
        super().__init__()
        self.answers = list(answers)
        self.does_first = False
        """Whether each append takes effect, whatever its answer says."""
        self.meanwhile: Callable[[], None] = lambda: None
        """What happens while an append is under way."""

    async def append(self, log: str, index: int, value: bytes) -> AppendOutcome:
        self.meanwhile()
        if not self.answers:
            return await super().append(log, index, value)
        answer = self.answers.pop(0)
        if self.does_first:
            await super().append(log, index, value)
        if isinstance(answer, LedgerLimitError):
            raise answer
        return answer


class Round(msgspec.Struct):
    """The membership of the run, as far as a writer asks for it."""

    unwritten: RoundRecord | None = None
    deposed: bool = False
    number: int = 1
    suspension: Suspension = msgspec.field(default_factory=Suspension)


class Run:
    """A run with a log, as far as a writer uses it. It is also its own store service."""

    run_id = "run"

    def __init__(self) -> None:
        self.membership = Round()
        self.is_forgotten = False
        self.store = self
        self.log: StoreLog | None = None
        self.acknowledged: list[StoreLog] = []
        self.posted: list[on.Event] = []
        self.committed: list[RoundRecord] = []

    def appended(self, log: StoreLog) -> None:
        self.acknowledged.append(log)

    def post(self, event: on.Event) -> None:
        self.posted.append(event)

    def commit(self, _run: HostedRun, record: RoundRecord) -> None:
        self.committed.append(record)

    @property
    def hosted(self) -> HostedRun:
        return cast(HostedRun, self)


class Case:
    """A writer, its ledger, and a run whose log has a record to write."""

    def __init__(self, *answers: AppendOutcome | LedgerLimitError, is_ours: bool = True) -> None:
        self.ledger = Answering(*answers)
        self.tasks = Supervised()
        self.errors: list[Exception] = []
        self.is_ours = is_ours
        self.writer = LogWriter(
            self.ledger, self.tasks, lambda _, error: self.errors.append(error), self.ask
        )
        self.run = Run()
        self.while_asking: Callable[[], None] = lambda: None

    async def ask(self, run_id: str) -> bool:
        assert run_id == "run"
        self.while_asking()
        return self.is_ours

    async def creates(self, *records: RoundRecord) -> None:
        for each in records:
            self.run.membership.unwritten = each
            self.writer.create(self.run.hosted, each, self.run.commit)
            await asyncio.sleep(RETRY_S / 2)
        await asyncio.sleep(10 * RETRY_S)
        assert not self.errors

    async def appends(self) -> LogAppend:
        log = new_store()
        log.apply("a", 1, Set("k", b"v"), None, 0.0)
        record = log.take_record()
        assert record is not None
        self.run.log = log
        await MemoryLedger.append(self.ledger, record.name, 0, header_record("run", 1, 1))
        self.writer.append(self.run.hosted, log, record)
        await asyncio.sleep(10 * RETRY_S)
        assert not self.errors
        return record


def a_record(number: int = 1) -> RoundRecord:
    return record(number, member(Roster(), "a"))


def case_of(work: Callable[[Case], Any], *answers: Any, **options: Any) -> Case:
    async def main() -> Case:
        case = Case(*answers, **options)
        await work(case)
        await case.tasks.aclose()
        return case

    return run_virtual(main())


# -- the log of a new round ----------------------------------------------------------------------


def test_r1_a_record_is_committed_once_though_it_is_given_again() -> None:
    case = case_of(lambda it: it.creates(a_record(), a_record()), UNKNOWN, UNKNOWN)
    assert case.run.committed == [a_record()]


def test_r1_the_log_of_a_later_record_does_not_wait_for_the_one_before() -> None:
    case = case_of(lambda it: it.creates(a_record(1), a_record(2)), UNKNOWN, UNKNOWN)
    assert case.run.committed == [a_record(2)]
    assert run_virtual(case.ledger.logs()) == (first_log(1, 2).name("run"),)


@pytest.mark.parametrize("answer", [UNKNOWN, Created()])
def test_r10_a_round_is_committed_when_its_header_is_in_the_ledger(answer: AppendOutcome) -> None:
    async def work(case: Case) -> None:
        case.ledger.does_first = True
        await case.creates(a_record())

    assert case_of(work, answer).run.committed == [a_record()]


def test_r10_a_round_is_not_committed_while_another_log_has_its_name() -> None:
    async def work(case: Case) -> None:
        await case.ledger.append(first_log(1, 1).name("run"), 0, b"of another")
        await case.creates(a_record())

    assert case_of(work).run.committed == []


def deposed(run: Run) -> None:
    run.membership.deposed = True


def forgotten(run: Run) -> None:
    run.is_forgotten = True


def has_another(run: Run) -> None:
    run.membership.unwritten = a_record(2)


def has_written(run: Run) -> None:
    run.membership.unwritten = None


@pytest.mark.parametrize("happens", [deposed, forgotten, has_another, has_written])
@pytest.mark.parametrize("answers", [(), (UNKNOWN,)])
def test_r5_a_record_that_is_not_to_be_committed_any_more_is_not(
    happens: Callable[[Run], None], answers: tuple[AppendOutcome, ...]
) -> None:
    async def work(case: Case) -> None:
        case.ledger.meanwhile = lambda: happens(case.run)
        await case.creates(a_record())

    assert case_of(work, *answers).run.committed == []


# -- a record of the log -------------------------------------------------------------------------


@pytest.mark.parametrize("answers", [(), (UNKNOWN,), (UNKNOWN, UNKNOWN), (REFUSED,)])
@pytest.mark.parametrize("does_first", [False, True])
def test_r10_a_record_is_acknowledged_once_the_ledger_has_it(
    answers: tuple[AppendOutcome, ...], does_first: bool
) -> None:
    async def work(case: Case) -> None:
        case.ledger.does_first = does_first
        case.ledger.answers = [*answers]
        record = await case.appends()
        assert (record.index, record.data) in await case.ledger.records(record.name)

    case = case_of(work)
    assert case.run.acknowledged == [case.run.log]


def test_r7_a_record_that_the_ledger_refuses_suspends_the_run_until_it_is_taken() -> None:
    case = case_of(lambda it: it.appends(), REFUSED, REFUSED)
    cause = SuspensionCause.APPEND
    lost = on.LedgerLost("too large", cause=cause)
    assert case.run.posted == [lost, lost, on.LedgerRestored(cause)]


def test_r5_a_seal_in_the_place_of_a_record_deposes_the_run() -> None:
    case = case_of(lambda it: it.appends(), Exists(b"a seal"))
    (refused,) = case.run.posted
    assert isinstance(refused, on.CommitRefused)
    assert case.run.acknowledged == []


@pytest.mark.parametrize("is_ours", [True, False])
def test_r5_a_log_that_was_removed_ends_the_round_of_its_owner_only(is_ours: bool) -> None:
    case = case_of(lambda it: it.appends(), Gap(), is_ours=is_ours)
    assert [type(each) for each in case.run.posted] == [on.StoreLost] * is_ours
    assert case.run.acknowledged == []


def ended(run: Run) -> None:
    assert run.log is not None
    run.log.end("over")


def has_the_next(run: Run) -> None:
    run.log = new_store()


over = pytest.mark.parametrize("happens", [deposed, ended, has_the_next])


@over
@pytest.mark.parametrize("outcome", [UNKNOWN, Created(), Exists(b"a seal"), Gap(), REFUSED])
def test_r10_a_record_of_a_round_that_is_over_changes_nothing(
    happens: Callable[[Run], None], outcome: AppendOutcome | LedgerLimitError
) -> None:
    async def work(case: Case) -> None:
        def meanwhile() -> None:
            if case.ledger.answers == [outcome]:
                happens(case.run)

        case.ledger.meanwhile = meanwhile
        await case.appends()

    case = case_of(work, outcome)
    assert case.run.acknowledged == []
    kinds = {type(each) for each in case.run.posted}
    assert kinds == ({on.LedgerLost, on.LedgerRestored} if outcome is REFUSED else set())


@over
def test_r5_a_log_that_was_removed_while_the_round_ended_is_no_loss(
    happens: Callable[[Run], None],
) -> None:
    async def work(case: Case) -> None:
        case.while_asking = lambda: happens(case.run)
        await case.appends()

    assert case_of(work, Gap()).run.posted == []
