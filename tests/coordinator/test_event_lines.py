"""The coordinator's log lines about runs: each is made from an event, once, and says the same."""

from __future__ import annotations

import asyncio
import logging

import msgspec
import pytest

from rallypoint import logs
from rallypoint.coordinator.event_lines import LEVELS, NO_LINE, level_of, write_line
from rallypoint.coordinator.hosted_run import HostedRun
from rallypoint.coordinator.run_events import ABOUT, EventKind, RunEvent
from rallypoint.core import events as on
from rallypoint.core.suspension import SuspensionCause
from rallypoint.core.values import ChangeKind, NodeId, Outcome, Phase
from rallypoint.launch.agent_log import COORDINATORS_OWN
from rallypoint.ledger.memory import MemoryLedger
from tests.coordinator.one_run import NAMES, Case
from tests.coordinator.test_run_events import events_of
from tests.coordinator.troubled_ledger import Troubled
from tests.loops import run_virtual


@pytest.fixture(autouse=True)
def _all_levels(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG, "rallypoint.coordinator")


def made_of_events(caplog: pytest.LogCaptureFixture) -> list[logging.LogRecord]:
    return [each for each in caplog.records if getattr(each, "event", None)]


def about_runs(caplog: pytest.LogCaptureFixture) -> list[str]:
    """All lines about runs, made from events or not."""
    told = [each.getMessage() for each in caplog.records]
    return [each.removeprefix("run run: ") for each in told if each.startswith("run run: ")]


def test_each_kind_of_event_has_a_line_or_a_reason_why_not() -> None:
    assert sorted([*LEVELS, *NO_LINE]) == sorted(EventKind)
    assert all(NO_LINE.values())


async def life(case: Case) -> None:
    await case.lives_for_three_rounds()
    case.run.post(on.DrainRequested(NodeId("a", 1), "operator ann", "new kernel"))
    case.run.post(on.EvictRequested(NodeId("a", 1), "operator ann", "hot"))
    case.run.post(on.AdmitRequested(NodeId("a", 1), "operator ann", "cool"))
    await asyncio.sleep(1.0)
    case.run.post(on.CloseRequested("b", Outcome.FAILED, "enough"))
    await asyncio.sleep(0.1)


def test_the_log_says_what_the_events_say_each_once(caplog: pytest.LogCaptureFixture) -> None:
    async def main() -> None:
        case = await Case.begun(MemoryLedger(), 1, "machine-a")
        run = case.run
        await life(case)
        found = events_of(run)
        await case.aclose()
        assert {each.kind for each in found} > {EventKind.LOST, EventKind.CAUSE, EventKind.CLOSED}
        assert about_runs(caplog)[: len(found)] == [str(each) for each in found]
        for record, event in zip(made_of_events(caplog), found, strict=False):
            said = (record.event, record.run, record.term, record.round)  # type: ignore[attr-defined]
            assert said == (event.kind.value, "run", event.term, event.round or None)
            assert record.levelno == level_of(event)

    run_virtual(main())


def test_a_takeover_logs_what_happens_here_and_nothing_of_the_past(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def main() -> None:
        ledger = MemoryLedger()
        first = await Case.begun(ledger, 1, "machine-a")
        first.come(*NAMES)
        first.ready(*NAMES)
        await first.is_in(Phase.ACTIVE, 1)
        await first.aclose()
        caplog.clear()
        second = await Case.begun(ledger, 2, "machine-b")
        await asyncio.sleep(1.0)
        events = [each for each in events_of(second.run) if each.term == second.run.membership.term]
        assert any(each.is_late for each in events)
        here = [str(each) for each in events if not each.is_late]
        assert here[0] == "this coordinator took the run over"
        assert about_runs(caplog) == here
        await second.aclose()

    run_virtual(main())


def test_a_round_whose_store_is_lost_at_a_takeover_ends_with_an_event() -> None:
    class Forgetful(Troubled):
        has_log = False

    async def main() -> None:
        ledger = Forgetful()
        first = await Case.begun(ledger, 1, "machine-a")
        first.come(*NAMES)
        first.ready(*NAMES)
        await first.is_in(Phase.ACTIVE, 1)
        await first.aclose()
        second = await Case.begun(ledger, 2, "machine-b")
        await asyncio.sleep(1.0)
        (broken,) = [each for each in events_of(second.run) if each.kind is EventKind.BROKEN]
        assert broken.round == 1
        assert "store" in broken.detail
        await second.aclose()

    run_virtual(main())


def test_an_outage_of_the_lease_is_one_warning_and_not_one_of_each_run(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def main() -> None:
        case = await Case.begun(MemoryLedger(), 1, "machine-a")
        case.come("a")
        caplog.clear()
        case.shared._runs.suspend_all("no answer", 2.0)
        case.shared._runs.restore_all()
        warnings = [each for each in caplog.records if each.levelno >= logging.WARNING]
        assert [each.getMessage().partition(" ")[0] for each in warnings] == ["suspended:", "the"]
        assert [each.levelname for each in made_of_events(caplog)] == ["DEBUG", "DEBUG"]
        # A record that the ledger refuses is a trouble of this run alone.
        case.run.post(on.LedgerLost("too large", cause=SuspensionCause.APPEND))
        case.run.post(on.LedgerRestored(SuspensionCause.APPEND))
        assert [each.levelname for each in made_of_events(caplog)[2:]] == ["WARNING", "INFO"]
        assert about_runs(caplog)[2] == "suspended: too large"
        await case.aclose()

    run_virtual(main())


def test_a_second_cause_of_a_suspension_is_told_with_its_own_reason() -> None:
    async def main() -> None:
        case = await Case.begun(MemoryLedger(), 1, "machine-a")
        case.come("a")
        case.run.post(on.LedgerLost("no lease", cause=SuspensionCause.LEASE))
        case.run.post(on.LedgerLost("too large", cause=SuspensionCause.APPEND))
        told = [each.detail for each in events_of(case.run) if each.kind is EventKind.SUSPENDED]
        assert told == ["no lease", "too large"]
        await case.aclose()

    run_virtual(main())


def test_an_unexpected_error_has_one_line_with_its_traceback(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def main() -> None:
        case = await Case.begun(MemoryLedger(), 1, "machine-a")
        run: HostedRun = case.run
        caplog.clear()
        run.fail(ValueError("a bug"))
        (line,) = [each for each in caplog.records if "unexpected error" in each.getMessage()]
        assert line.getMessage() == f"run run: {ABOUT[EventKind.GAVE_UP].text}"
        assert line.exc_info
        await case.aclose()

    run_virtual(main())


def event(kind: EventKind, cause: str = "") -> RunEvent:
    return RunEvent(term=1, seq=1, kind=kind, at=0.0, offset_s=0.0, on="here", cause=cause)


@pytest.mark.parametrize(
    ("kind", "cause", "level"),
    [
        (EventKind.BROKEN, ChangeKind.NODE_LOST, logging.WARNING),
        (EventKind.BROKEN, ChangeKind.WORKER_FAILED, logging.WARNING),
        (EventKind.BROKEN, ChangeKind.NODES_JOINED, logging.INFO),
        (EventKind.CLOSED, Outcome.SUCCEEDED, logging.INFO),
        (EventKind.CLOSED, Outcome.STOPPED, logging.INFO),
        (EventKind.CLOSED, Outcome.FAILED, logging.WARNING),
        (EventKind.LOST, "", logging.WARNING),
        (EventKind.READY, "", logging.DEBUG),
    ],
)
def test_only_what_needs_somebody_is_a_warning(kind: EventKind, cause: str, level: int) -> None:
    assert level_of(event(kind, cause)) == level


def test_lines_of_one_kind_are_limited_whatever_they_say(caplog: pytest.LogCaptureFixture) -> None:
    """Nodes with ever new names must not fill a disk."""
    for number in range(100):
        write_line("noisy", attached(number))
    assert len(made_of_events(caplog)) < 40
    write_line("noisy", event(EventKind.FORMED))
    write_line("quiet", attached(0))
    told = [each.getMessage() for each in made_of_events(caplog)[-2:]]
    assert told == ["run noisy: round 0 formed with 0 nodes", "run quiet: xa0 attached"]


def attached(number: int) -> RunEvent:
    name = f"x{chr(97 + number % 26)}{number}"
    return msgspec.structs.replace(event(EventKind.ATTACHED), node=name)


def test_a_line_in_json_names_the_kind_of_its_event(caplog: pytest.LogCaptureFixture) -> None:
    write_line("job", event(EventKind.LAST_CALL))
    logs.tidy("rallypoint.coordinator").info("something else")
    first, second = [logs.JsonFormatter().format(each) for each in caplog.records]
    assert '"event": "last_call"' in first
    assert '"event": null' in second


def test_the_events_that_an_agent_shows_are_events() -> None:
    assert {EventKind(each) for each in COORDINATORS_OWN} <= set(LEVELS)
