"""The agent's machine: what it decides, for every event in every phase, and that it always ends."""

from __future__ import annotations

import signal
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rallypoint import errors
from rallypoint.client.node import Round
from rallypoint.client.reaching import Unreached
from rallypoint.core import reasons
from rallypoint.core.reasons import Refusal, RefusalCode
from rallypoint.core.values import (
    Address,
    Change,
    ChangeKind,
    CloseRecord,
    Failure,
    FailureKind,
    Outcome,
    RoundHead,
    Seat,
)
from rallypoint.launch import agent_actions as do
from rallypoint.launch import agent_events as on
from rallypoint.launch.machine import AgentMachine, End, Rules
from rallypoint.launch.phases import WAITS_FOR, Phase
from rallypoint.launch.worker_processes import WorkerExit

RULES = Rules(
    run_id="run",
    stop_timeout_s=25.0,
    regroup_stop_timeout_s=5.0,
    share_lines=30,
    culprit_s=0.5,
    signal_settle_s=0.3,
)
KEEPING = msgspec.structs.replace(RULES, unwind_s=4.0, explain_s=9.0, node_name="a")
CHECKED = msgspec.structs.replace(RULES, has_check=True, check_again_s=10.0, check_again_max_s=30.0)
WORKERS = 2
SUCCESS = CloseRecord(Outcome.SUCCEEDED, "all have finished")
LOST = errors.CoordinatorLostError("the coordinator is lost")
SUPERSEDED = errors.SupersededError(Refusal(RefusalCode.SUPERSEDED, "a newer start has joined"))

REVOKED = errors.TokenError(
    Refusal(RefusalCode.TOKEN, "this node's token was revoked by ann"), reason="ended"
)
EVICTED = errors.EvictedError(Refusal(RefusalCode.EVICTED, "node 'a' was evicted by ann"))


def a_round(number: int = 1, workers: int = WORKERS) -> Round:
    head = RoundHead(number, 1, 2, 2 * workers, Address("10.0.0.1", 29_500), "digest")
    return Round(head, Seat(0, 0, workers))


def a_change(number: int = 1, **more: Any) -> Change:
    return Change(ChangeKind.NODE_LOST, number, ("b",), 1, "its process ended", **more)


def an_exit(local_rank: int = 0, returncode: int | None = 1, by: int | None = None) -> WorkerExit:
    return WorkerExit(
        local_rank=local_rank,
        rank=local_rank,
        pid=100 + local_rank,
        returncode=None if by is not None else returncode,
        signal=by,
        oom=False,
    )


def a_failure(kind: FailureKind = FailureKind.EXCEPTION) -> Failure:
    return Failure(kind, "boom", rank=0, local_rank=0, exit_code=1)


class Played:
    """A machine, and what it has asked for. Time stands still unless a test moves it."""

    def __init__(self, rules: Rules = RULES) -> None:
        self.machine = AgentMachine(rules)
        self.now_s = 100.0
        self.actions: list[do.Action] = []
        self.look()

    def look(self) -> list[do.Action]:
        """Decide, and return the new actions."""
        new = self.machine.decide(self.now_s)
        self.actions += new
        return new

    def take(self, *events: on.Event) -> list[do.Action]:
        """Events of one turn, and then the decision. Returns the new actions."""
        new = [each for event in events for each in self.machine.step(event, self.now_s)]
        self.actions += new
        return new + self.look()

    def working(self, number: int = 1) -> Played:
        """In a round, with workers that run."""
        self.take(on.Prepared())
        self.take(on.Joined())
        self.take(on.RoundFound(a_round(number)))
        self.take(on.Started(tuple(range(WORKERS))))
        assert self.machine.phase is Phase.WORKING
        return self

    def finished(self) -> Played:
        self.working()
        self.take(*(on.WorkerExited(an_exit(rank, 0)) for rank in range(WORKERS)))
        assert self.machine.phase is Phase.FINISHED
        return self

    def ended(self) -> Played:
        """The shell releases what it has, and the node leaves."""
        assert self.machine.phase is Phase.ENDING
        self.take(on.LetGo())
        self.take(on.NodeClosed())
        return self

    def said(self) -> list[str]:
        return [each.text for each in self.actions if isinstance(each, do.Say)]


def in_phase(phase: Phase) -> Played:
    """A machine in this phase, by the shortest way."""
    played = Played()
    match phase:
        case Phase.NEW:
            played.machine, played.actions = AgentMachine(RULES), []
        case Phase.PREPARING:
            pass
        case Phase.JOINING:
            played.take(on.Prepared())
        case Phase.CHECKING:
            played = Played(CHECKED)
            played.take(on.Prepared())
            played.take(on.Joined())
        case Phase.GATHERING:
            played.take(on.Prepared())
            played.take(on.Joined())
        case Phase.STARTING:
            in_gathering = in_phase(Phase.GATHERING)
            in_gathering.take(on.RoundFound(a_round()))
            return in_gathering
        case Phase.WORKING:
            played.working()
        case Phase.EXPLAINING:
            played.working().take(on.WorkerExited(an_exit()))
        case Phase.UNWINDING:
            played = Played(KEEPING).working()
            played.take(on.WorkerJoined(0), on.RoundEnded(a_change()))
        case Phase.STOPPING:
            played.working().take(on.RoundEnded(a_change()))
        case Phase.CLOSING:
            played.working().take(on.RunClosed(SUCCESS))
        case Phase.FINISHED:
            played.finished()
        case Phase.ENDING:
            played.take(on.Signalled(signal.SIGTERM))
        case Phase.LEAVING:
            played.take(on.Signalled(signal.SIGTERM))
            played.take(on.LetGo())
        case Phase.ENDED:
            played.take(on.Signalled(signal.SIGTERM))
            played.ended()
    assert played.machine.phase is phase
    return played


NEWS: list[on.Event] = [
    on.WorkerExited(an_exit(1, 3)),
    on.WorkerExited(an_exit(1, 0)),
    on.WorkerExited(an_exit(1, by=signal.SIGTERM)),
    on.RoundEnded(a_change()),
    on.RoundEnded(a_change(confirmed=False, failure=a_failure(FailureKind.COMMUNICATION))),
    on.RunClosed(SUCCESS),
    on.RunClosed(CloseRecord(Outcome.FAILED, "restarts are used up")),
    on.Gone(LOST, 5.0),
    on.Gone(SUPERSEDED),
    on.Signalled(signal.SIGTERM),
    on.Rank0Dialled(Address("10.0.0.1", 29_500), None),
    on.Rank0Dialled(
        Address("10.0.0.1", 29_500), Unreached(Address("10.0.0.1", 29_500), "no answer")
    ),
    on.CheckRepeated(""),
    on.CheckRepeated("GPU 3 fell off"),
    on.RegroupAsked(),
    on.WorkerJoined(1),
    on.WorkerParted(0),
    on.WorldAsked(0, 1),
    on.WorldAsked(1, 1),
    on.WorkerRaised(0, a_failure(FailureKind.COMMUNICATION)),
    on.WorkerFails(1, an_exit(1), a_failure()),
    on.LeaveAsked("enough"),
    on.Drained("drained by ann"),
    on.Gone(EVICTED),
    on.Gone(REVOKED),
    on.CloseAsked(Outcome.SUCCEEDED, "trained"),
    on.CloseFailed("nobody answered"),
]


MAY_BE_NO_NEWS = (on.CloseAsked, on.WorkerParted, on.WorldAsked, on.WorkerRaised, on.WorkerFails)
"""Without --keep-workers, or outside of a round."""


WORKS = (
    *(do.Prepare, do.Join, do.RunCheck, do.AskRound, do.StartWorkers),
    *(do.FindFailures, do.StopWorkers, do.CloseNode),
)
UNDER_WAY = {Phase.PREPARING, Phase.JOINING, Phase.GATHERING, Phase.STARTING, Phase.EXPLAINING}
UNDER_WAY |= {Phase.STOPPING, Phase.LEAVING, Phase.CHECKING}


class Shell:
    """What stands behind the machine in a test: it ends each work that an action began.

    As in a real agent, each work ends only once, and after the actions that follow it.
    """

    def __init__(self, played: Played) -> None:
        self.played = played
        self.seen = len(played.actions)
        works = [each for each in played.actions if isinstance(each, WORKS)]
        is_under_way = played.machine.phase in UNDER_WAY
        self.open: do.Action | None = works[-1] if is_under_way and works else None
        self.living: set[int] = set(played.machine.running)
        self.number = 0 if played.machine.found is None else 1
        self.closed: CloseRecord | None = None

    def follow(self) -> None:
        """Take note of the new actions, and check them."""
        actions = self.played.actions[self.seen :]
        self.seen = len(self.played.actions)
        for action in actions:
            match action:
                case do.StartWorkers(kept=kept):
                    assert self.living <= set(kept), "R13: workers of two rounds"
                    self.open = action
                case _ if isinstance(action, WORKS):
                    self.open = action
                case do.GiveUpWait():
                    self.open = None

    def answer(self) -> on.Event | None:
        """How the present work ends."""
        work, self.open = self.open, None
        match work:
            case do.Prepare():
                return on.Prepared()
            case do.Join():
                return on.Joined()
            case do.AskRound() if self.closed is not None:
                return on.NoRound()
            case do.AskRound():
                self.number += 1
                return on.RoundFound(a_round(self.number))
            case do.StartWorkers(found=found, kept=kept):
                # As in a real agent, the ends of those that were kept are told at any time.
                self.living |= set(range(found.seat.workers)) - set(kept)
                return on.Started(tuple(self.living))
            case do.FindFailures(exits=exits):
                return on.FailuresFound(tuple(a_failure() for _ in exits))
            case do.StopWorkers(kept=kept):
                self.living &= set(kept)
                return on.Stopped(())
            case do.CloseNode():
                return on.NodeClosed()
        if self.played.machine.phase is Phase.ENDING:
            self.living = set()
            return on.LetGo()
        return None

    def finish(self) -> None:
        """Let all work end, and the time pass, until the agent has ended or waits for news."""
        for _ in range(60):
            self.follow()
            event = self.answer()
            if event is not None:
                self.played.take(event)
            elif self.played.machine.due_s is not None:
                self.played.now_s = self.played.machine.due_s
                self.played.look()
            else:
                return
        raise AssertionError(f"it goes round: {self.played.actions[-20:]}")


@pytest.mark.parametrize("phase", list(Phase))
@pytest.mark.parametrize("event", NEWS, ids=lambda event: type(event).__name__)
def test_every_event_is_allowed_in_every_phase(phase: Phase, event: on.Event) -> None:
    played = in_phase(phase)
    before = played.machine.freeze()
    played.take(event)
    changes = played.machine.freeze() != before or played.actions
    assert changes or phase in (Phase.ENDED, Phase.LEAVING) or isinstance(event, MAY_BE_NO_NEWS)


@pytest.mark.parametrize("phase", list(Phase))
def test_a_signal_ends_the_agent_from_every_phase(phase: Phase) -> None:
    played = in_phase(phase)
    was_over = played.machine.is_over
    shell = Shell(played)
    played.take(on.Signalled(signal.SIGINT))
    shell.finish()
    assert played.machine.phase is Phase.ENDED
    if not was_over and phase is not Phase.CLOSING:
        assert played.machine.end == End(128 + signal.SIGINT)
        assert played.actions.count(do.Depart("its agent got SIGINT")) == 1


@pytest.mark.parametrize("phase", list(Phase))
def test_a_drain_ends_the_agent_from_every_phase_as_a_signal_does(phase: Phase) -> None:
    played = in_phase(phase)
    was_over = played.machine.is_over
    shell = Shell(played)
    played.take(on.Drained("drained by ann"), on.Drained("drained by ann"))
    if phase is Phase.FINISHED:  # It waits for the others, whose failures fail the run.
        assert not played.machine.is_over
        return
    shell.finish()
    assert played.machine.phase is Phase.ENDED
    if not was_over and phase is not Phase.CLOSING:
        assert played.machine.end == End(0)
        assert played.actions.count(do.Depart("drained by ann")) == 1
        assert do.TellDeparture("drained by ann") in played.actions


@pytest.mark.parametrize("phase", list(Phase))
def test_the_end_of_the_run_ends_the_agent_from_every_phase(phase: Phase) -> None:
    played = in_phase(phase)
    shell = Shell(played)
    shell.closed = SUCCESS
    played.take(on.RunClosed(SUCCESS))
    shell.finish()
    assert played.machine.phase is Phase.ENDED
    assert played.machine.waits_for == ""


def test_each_phase_says_what_it_waits_for() -> None:
    assert set(WAITS_FOR) == set(Phase)
    assert [phase for phase, why in WAITS_FOR.items() if not why] == [Phase.ENDED]


events = st.sampled_from(
    [
        *NEWS,
        on.Signalled(signal.SIGINT),
        on.RoundEnded(a_change(2)),
        *(on.WorkerJoined(rank) for rank in range(WORKERS)),
        *(on.WorldAsked(rank, 2) for rank in range(WORKERS)),
    ]
)


exits = st.sampled_from(
    [on.WorkerExited(an_exit(rank, code)) for rank in range(WORKERS) for code in (0, 1)]
)


@given(
    st.sampled_from([Phase.NEW, Phase.WORKING, Phase.UNWINDING]),
    st.lists(st.one_of(exits, events, st.just("answer"), st.just("time")), max_size=40),
)
def test_any_history_keeps_the_rules_and_can_end(phase: Phase, history: list[Any]) -> None:
    """Workers of two rounds never run together, no failure is forgotten, and a signal ends it."""
    played = in_phase(phase)
    shell = Shell(played)
    failed: list[WorkerExit] = []
    for each in history:
        shell.follow()
        match each:
            case "answer":
                event = shell.answer()
                if event is not None:
                    played.take(event)
            case "time":
                if played.machine.due_s is not None:
                    played.now_s = played.machine.due_s
                played.look()
            case on.WorkerExited(exit=exit) if exit.local_rank not in shell.living:
                continue  # It does not run.
            case on.RoundEnded(change=change) if change.round > shell.number:
                continue
            case event:
                if isinstance(event, on.WorkerExited):
                    shell.living.discard(event.exit.local_rank)
                    if event.exit.returncode != 0 and played.machine.phase is Phase.WORKING:
                        failed.append(event.exit)
                if isinstance(event, on.RunClosed):
                    shell.closed = event.close
                played.take(event)
        assert (played.machine.end is None and played.machine.error is None) or (
            played.machine.is_over
        )
        assert set(played.machine.running) <= shell.living
        if played.machine.phase is Phase.WORKING and played.machine.due_s is None:
            asked = [each.exits for each in played.actions if isinstance(each, do.FindFailures)]
            assert {exit for exits in asked for exit in exits} >= set(failed)
    played.take(on.Signalled(signal.SIGTERM))
    shell.finish()
    assert played.machine.phase is Phase.ENDED
    assert not shell.living


# -- the life of a round -----------------------------------------------------------------------


def test_from_the_start_to_the_end_of_a_run() -> None:
    played = Played().finished()
    assert do.ReportDone() in played.actions
    assert played.said()[-1] == "round 1: all workers of this node have finished"
    played.take(on.RunClosed(SUCCESS))
    assert played.machine.end == End(0, reasons.describe_end_of_run("run", SUCCESS))
    played.ended()
    assert played.actions[-1] == do.CloseNode("its agent has ended", linger=True)


def test_a_round_that_ended_before_it_was_begun_is_not_worked_in() -> None:
    played = in_phase(Phase.GATHERING)
    played.take(on.RoundEnded(a_change(1)))
    assert played.take(on.RoundFound(a_round(1)))[1:] == [
        do.StartWorkers(a_round(1)),
        do.GiveUpStart(),
    ]
    assert played.take(on.Started(())) == [do.StopWorkers(5.0, signal.SIGTERM)]
    assert played.take(on.Stopped(())) == [do.AskRound()]


def test_the_end_of_an_earlier_round_does_not_stop_the_next() -> None:
    played = Played().working()
    played.take(on.RoundEnded(a_change(1)))
    played.take(on.Stopped(()))
    played.take(on.RoundFound(a_round(2)))
    played.take(on.Started((0, 1)))
    assert played.machine.phase is Phase.WORKING


def test_a_worker_that_exits_while_it_is_stopped_has_not_failed() -> None:
    played = Played().working()
    played.take(on.RoundEnded(a_change()))
    played.take(on.WorkerExited(an_exit(by=signal.SIGTERM)))
    assert played.take(on.Stopped(())) == [do.AskRound()]
    assert not any(isinstance(each, do.FindFailures) for each in played.actions)


def test_an_exit_that_comes_late_is_none_of_the_next_round() -> None:
    played = in_phase(Phase.STOPPING)
    played.take(on.Stopped((0,)))
    played.take(on.WorkerExited(an_exit(0)))
    played.take(on.RoundFound(a_round(2)))
    assert played.take(on.Started((0, 1))) == []


def test_workers_that_cannot_be_killed_are_named() -> None:
    played = Played().working()
    played.take(on.RoundEnded(a_change()))
    played.take(on.Stopped((1,)))
    assert "warning: workers of local rank 1 cannot be killed" in played.said()[-1]


# -- failures ------------------------------------------------------------------------------------


def test_a_failure_is_reported_and_ends_the_round() -> None:
    played = Played().working()
    exit = an_exit()
    assert played.take(on.WorkerExited(exit)) == [do.FindFailures((exit,))]
    said, reported, stopped = played.take(on.FailuresFound((a_failure(),)))
    assert said == do.Say("round 1: rank 0 exited with code 1 (boom)", is_trouble=True)
    assert reported == do.ReportFailure(a_failure())
    assert stopped == do.StopWorkers(5.0, signal.SIGTERM)


def test_a_failure_during_a_report_is_reported_after_it() -> None:
    played = Played().working()
    played.take(on.WorkerExited(an_exit(0)))
    late = an_exit(1)
    assert played.take(on.WorkerExited(late)) == []
    assert do.FindFailures((late,)) in played.take(on.FailuresFound((a_failure(),)))


def test_failures_in_one_turn_are_reported_together() -> None:
    played = Played().working()
    both = (an_exit(0), an_exit(1))
    assert played.take(*map(on.WorkerExited, both)) == [do.FindFailures(both)]


def test_only_a_likelier_cause_is_reported_again() -> None:
    played = Played().working()
    first = a_failure(FailureKind.COMMUNICATION)
    worse = a_failure(FailureKind.SIGNAL)
    played.take(on.WorkerExited(an_exit(0)))
    played.take(on.FailuresFound((first,)))
    played.take(on.WorkerExited(an_exit(1)))
    played.take(on.FailuresFound((worse,)))
    reports = [each.failure for each in played.actions if isinstance(each, do.ReportFailure)]
    assert reports == [first, worse]


def test_after_a_communication_error_the_others_may_still_show_the_cause() -> None:
    played = Played().working()
    played.take(on.WorkerExited(an_exit(0)))
    played.take(on.FailuresFound((a_failure(FailureKind.COMMUNICATION),)))
    assert played.machine.phase is Phase.WORKING
    assert played.machine.due_s == played.now_s + RULES.culprit_s
    played.now_s += RULES.culprit_s
    assert played.look() == [do.StopWorkers(5.0, signal.SIGTERM)]


@pytest.mark.parametrize("by", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_worker_ended_by_a_signal_is_judged_only_when_none_follows(by: int) -> None:
    played = Played().working()
    exit = an_exit(by=by)
    assert played.take(on.WorkerExited(exit)) == []
    assert played.machine.due_s == played.now_s + RULES.signal_settle_s
    again = Played().working()
    again.take(on.WorkerExited(exit))
    again.take(on.Signalled(by))
    assert not any(isinstance(each, do.FindFailures) for each in again.actions)
    played.now_s += RULES.signal_settle_s
    assert played.look() == [do.FindFailures((exit,))]


def test_a_communication_error_names_the_rank_that_had_finished_before() -> None:
    played = Played().working()
    played.take(on.WorkerExited(an_exit(1, 0)), on.WorkerExited(an_exit(0, 1)))
    played.take(on.FailuresFound((a_failure(FailureKind.COMMUNICATION),)))
    (report,) = (each for each in played.actions if isinstance(each, do.ReportFailure))
    assert report.failure.message == "boom; rank 1 had ended before, with exit code 0"


def test_no_start_is_an_error_with_its_reason_as_the_goodbye() -> None:
    played = in_phase(Phase.STARTING)
    error = errors.WorkerStartError("train.py", "no memory", hint="add some")
    played.take(on.StartFailed(error))
    played.ended()
    assert played.machine.error is error
    assert played.actions[-1] == do.CloseNode(
        f"its workers cannot be started: {error.message}", linger=True
    )


# -- rank 0's address -----------------------------------------------------------------------------


def as_node_1(number: int = 1, host: str = "10.0.0.1", port: int = 29_500) -> Round:
    head = RoundHead(number, 1, 2, 2 * WORKERS, Address(host, port), "digest")
    return Round(head, Seat(1, WORKERS, WORKERS))


def started(played: Played, found: Round) -> list[do.Action]:
    if played.machine.phase is Phase.WORKING:
        played.take(on.RoundEnded(a_change(found.head.number - 1)))
        played.take(on.Stopped(()))
    new = played.take(on.RoundFound(found))
    played.take(on.Started((0, 1)))
    return new


def test_each_host_of_rank_0_is_dialled_once_beside_the_start() -> None:
    played = in_phase(Phase.GATHERING)
    first = as_node_1()
    assert started(played, first)[-2:] == [
        do.StartWorkers(first),
        do.DialRank0(first.head.bootstrap),
    ]
    assert played.take(on.Rank0Dialled(first.head.bootstrap, None)) == []
    assert do.StartWorkers(as_node_1(2, port=2)) == started(played, as_node_1(2, port=2))[-1]
    other = as_node_1(3, host="10.0.0.7")
    assert started(played, other)[-1] == do.DialRank0(other.head.bootstrap)


def test_the_node_of_rank_0_does_not_dial_itself() -> None:
    played = in_phase(Phase.GATHERING)
    assert not any(isinstance(each, do.DialRank0) for each in started(played, a_round()))


def test_a_host_that_is_not_reached_is_said_and_dialled_again() -> None:
    played = in_phase(Phase.GATHERING)
    address = as_node_1().head.bootstrap
    started(played, as_node_1())
    unreached = Unreached(address, "no answer within 10 s", "eth1")
    assert played.take(on.Rank0Dialled(address, unreached)) == [
        do.Say(
            "error: this node cannot reach rank 0 at 10.0.0.1:29500 from eth1: no answer within "
            "10 s; see --port-range, --interface"
        )
    ]
    assert do.DialRank0(address) in started(played, as_node_1(2))


def test_a_host_that_is_reached_only_at_some_ports_is_said_once() -> None:
    played = in_phase(Phase.GATHERING)
    address = as_node_1().head.bootstrap
    started(played, as_node_1())
    walled = Unreached(Address(address.host, 40_000), "no answer within 10 s", "eth1")
    [said] = played.take(on.Rank0Dialled(address, None, walled))
    assert isinstance(said, do.Say)
    assert said.text.startswith(
        "warning: this node reaches rank 0 at 10.0.0.1:29500, but not at 10.0.0.1:40000 from eth1: "
        "no answer within 10 s. "
    )
    assert all(each in said.text for each in ("--port-range", "--interface"))
    assert do.DialRank0(address) not in started(played, as_node_1(2))


def test_a_host_that_is_not_reached_in_a_round_that_has_ended_may_have_died() -> None:
    played = in_phase(Phase.GATHERING)
    address = as_node_1().head.bootstrap
    started(played, as_node_1())
    played.take(on.RoundEnded(a_change()))
    assert played.take(on.Rank0Dialled(address, Unreached(address, "no answer"))) == []


# -- signals -------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGHUP])
def test_a_users_signal_is_no_notice_of_the_end_of_the_job(number: int) -> None:
    new = Played().working().take(on.Signalled(number, 900.0))
    assert new[-1] == do.StopWorkers(25.0, number)
    assert "because the job ends" not in str(new)
    # The workers stop to regroup when the signal arrives.
    played = Played().working()
    played.take(on.RoundEnded(a_change()))
    assert do.LengthenStop(25.0) in played.take(on.Signalled(number, 900.0))


def test_the_workers_get_the_agents_signal_and_a_second_one_kills_them() -> None:
    played = Played().working()
    departed, told, said, stopped = played.take(on.Signalled(signal.SIGHUP))
    assert departed == do.Depart("its agent got SIGHUP")
    assert told == do.TellDeparture("its agent got SIGHUP")
    assert said == do.Say("got SIGHUP: leaving the run; the workers have 25 s to stop")
    assert stopped == do.StopWorkers(25.0, signal.SIGHUP)
    killing = do.Say("second signal: killing the workers")
    assert played.take(on.Signalled(signal.SIGTERM)) == [killing, do.KillWorkers()]
    assert played.take(on.Signalled(signal.SIGTERM)) == []
    played.take(on.Stopped(()))
    assert played.machine.end == End(128 + signal.SIGHUP)
    played.ended()
    assert played.actions[-1] == do.CloseNode("its agent got SIGHUP", linger=False)


@pytest.mark.parametrize(
    ("left_s", "grace_s"), [(None, 25), (120, 115), (20, 25), (30, 25), (-5, 25), (901, 25)]
)
def test_the_workers_may_use_the_time_until_the_end_of_the_job(
    left_s: float | None, grace_s: float
) -> None:
    """But never less than the stop time, because the end is one of another host's clock (R9)."""
    new = Played().working().take(on.Signalled(signal.SIGTERM, left_s))
    assert new[-1] == do.StopWorkers(grace_s, signal.SIGTERM)
    said = f"got SIGTERM: leaving the run; the workers have {grace_s} s to stop"
    because = f", because the job ends in {left_s} s" if grace_s != 25 else ""
    assert do.Say(said + because) in new


def test_a_signal_while_the_workers_stop_to_regroup_gives_them_its_time() -> None:
    played = in_phase(Phase.STOPPING)
    new = played.take(on.Signalled(signal.SIGTERM, 120.0))
    assert new[-1] == do.LengthenStop(115.0)
    assert played.look() == []
    new = played.take(on.Stopped(()))
    assert played.machine.end == End(128 + signal.SIGTERM)
    assert not any(isinstance(each, do.AskRound) for each in new)


def test_a_failure_that_is_looked_into_when_the_signal_comes_is_part_of_the_departure() -> None:
    played = in_phase(Phase.EXPLAINING)
    played.take(on.Signalled(signal.SIGTERM))
    new = played.take(on.FailuresFound((a_failure(),)))
    assert new[-1] == do.StopWorkers(25.0, signal.SIGTERM)
    assert not any(isinstance(each, do.ReportFailure) for each in played.actions)


def test_two_signals_in_one_turn_kill_the_workers_at_once() -> None:
    played = Played().working()
    new = played.take(on.Signalled(signal.SIGINT), on.Signalled(signal.SIGINT))
    assert new[-1] == do.KillWorkers()


def test_a_signal_while_a_host_stays_ends_the_coordinator() -> None:
    played = Played().finished()
    played.take(on.RunClosed(SUCCESS))
    played.take(on.LetGo())
    said, cut = played.take(on.Signalled(signal.SIGTERM))[2:]
    assert said == do.Say("second signal: stopping the coordinator hosted here too")
    assert cut == do.CutLinger()
    assert played.machine.end is not None
    assert played.machine.end.code == 0


def test_a_signal_and_a_round_in_one_turn_depart() -> None:
    played = in_phase(Phase.GATHERING)
    new = played.take(on.RoundFound(a_round()), on.Signalled(signal.SIGTERM))
    assert do.GiveUpStart() in new
    played.take(on.Started(()))
    assert played.machine.phase is Phase.STOPPING


# -- what workers ask, and other ends ------------------------------------------------------------


def test_a_worker_asks_for_the_next_round() -> None:
    played = Played().working()
    assert played.take(on.RegroupAsked()) == [do.StopWorkers(5.0, signal.SIGTERM)]


def test_a_worker_asks_to_leave() -> None:
    played = Played().working()
    departed, told, said, stopped = played.take(on.LeaveAsked("enough"))
    assert departed == do.Depart("enough")
    assert told == do.TellDeparture("enough")
    assert said == do.Say("a worker asked to leave the run: enough")
    assert stopped == do.StopWorkers(25.0, signal.SIGTERM)
    played.take(on.Stopped(()))
    assert played.machine.end == End(0)


def test_after_a_success_workers_may_end_by_themselves() -> None:
    played = Played().working()
    played.take(on.RunClosed(SUCCESS))
    assert (played.machine.phase, played.machine.due_s) == (Phase.CLOSING, played.now_s + 5.0)
    played.take(on.WorkerExited(an_exit(0, 0)))
    assert played.take(on.WorkerExited(an_exit(1, 0))) == [do.StopWorkers(25.0, signal.SIGTERM)]


def test_after_a_failure_of_the_run_workers_are_stopped_at_once() -> None:
    played = Played().working()
    close = CloseRecord(Outcome.FAILED, "restarts are used up")
    assert played.take(on.RunClosed(close))[-1] == do.StopWorkers(25.0, signal.SIGTERM)


def test_the_loss_of_the_coordinator_does_not_disturb_the_workers() -> None:
    played = Played().working()
    (said,) = played.take(on.Gone(LOST, None))
    assert isinstance(said, do.Say)
    assert played.machine.phase is Phase.WORKING
    played = Played().finished()
    played.take(on.Gone(LOST, None))
    assert played.machine.end is not None
    assert played.machine.end.code == 0
    assert "the end of the run is unknown" in played.machine.end.message


def test_a_superseded_node_stops_its_workers() -> None:
    played = Played().working()
    assert played.take(on.Gone(SUPERSEDED)) == [
        do.TellExpulsion("a newer start has joined"),
        do.StopWorkers(5.0, signal.SIGTERM),
    ]
    played.take(on.Stopped(()))
    assert played.machine.error is SUPERSEDED


def test_a_node_whose_token_has_ended_tells_its_workers_why_and_stops_them() -> None:
    played = Played().working()
    assert played.take(on.Gone(REVOKED)) == [
        do.TellExpulsion("this node's token was revoked by ann"),
        do.StopWorkers(5.0, signal.SIGTERM),
    ]
    played.take(on.Stopped(()))
    assert played.machine.error is REVOKED


def test_a_coordinator_with_another_token_does_not_disturb_the_workers() -> None:
    played = Played().working()
    wrong = errors.TokenError(Refusal(RefusalCode.TOKEN, "the token is wrong"), fingerprint="abc")
    (said,) = played.take(on.Gone(wrong, None))
    assert isinstance(said, do.Say)
    assert played.machine.phase is Phase.WORKING


@pytest.mark.parametrize("phase", [Phase.WORKING, Phase.FINISHED, Phase.EXPLAINING])
def test_an_evicted_node_stops_its_workers_and_ends_with_the_reason(phase: Phase) -> None:
    played = in_phase(phase)
    shell = Shell(played)
    played.take(on.Gone(EVICTED))
    shell.finish()
    assert played.machine.error is EVICTED
    assert EVICTED.exit_code == 7


def test_a_drained_node_gives_its_workers_their_time() -> None:
    played = Played().working()
    departed, told, said, stopped = played.take(on.Drained("drained by ann: late"))
    assert (departed, told) == (
        do.Depart("drained by ann: late"),
        do.TellDeparture("drained by ann: late"),
    )
    text = "leaving the run: drained by ann: late; the workers have 25 s to stop"
    assert said == do.Say(text)
    assert stopped == do.StopWorkers(25.0, signal.SIGTERM)
    lengthened = in_phase(Phase.STOPPING).take(on.Drained("drained by ann"))[-1]
    assert lengthened == do.LengthenStop(25.0)


def test_no_other_round_in_time_is_an_error_only_before_the_first() -> None:
    error = errors.JoinTimeoutError("no round was formed", hint="wait longer")
    played = in_phase(Phase.GATHERING)
    played.take(on.Failed(error))
    assert played.machine.error is error
    played = in_phase(Phase.STOPPING)
    played.take(on.Stopped(()))
    played.take(on.Failed(error))
    assert played.machine.end == End(errors.ExitCode.NOT_ENOUGH_NODES, f"error: {error}")


# -- the check of a node ---------------------------------------------------------------------------


def test_a_node_asks_for_a_round_when_its_check_has_passed() -> None:
    played = in_phase(Phase.CHECKING)
    assert do.RunCheck() in played.actions
    assert played.take(on.CheckPassed()) == [do.AskRound()]
    assert played.machine.phase is Phase.GATHERING


def test_an_unfit_node_asks_too_and_repeats_its_check_with_growing_pauses() -> None:
    played = in_phase(Phase.CHECKING)
    asked = played.take(on.CheckFailed("GPU 3 fell off"))
    assert do.AskRound("GPU 3 fell off") in asked
    assert "its check failed: GPU 3 fell off" in played.said()[-1]
    for pause_s in (10.0, 20.0, 30.0, 30.0):
        assert played.machine.due_s == played.now_s + pause_s
        played.now_s += pause_s
        assert played.look() == [do.RepeatCheck()]
        assert played.machine.due_s is None
        assert do.TellFitness("still gone") in played.take(on.CheckRepeated("still gone"))
    played.now_s += 30.0
    played.look()
    assert do.TellFitness("") in played.take(on.CheckRepeated(""))
    assert played.machine.due_s is None


def test_a_repeated_check_ends_when_a_round_is_found() -> None:
    played = in_phase(Phase.CHECKING)
    played.take(on.CheckFailed("GPU 3 fell off"))
    played.now_s += 10.0
    played.look()
    found = played.take(on.RoundFound(a_round()))
    assert do.GiveUpRepeat() in found
    [warning] = [each for each in found if isinstance(each, do.Say) and "GPU 3" in each.text]
    assert warning.text.endswith("in this round for want of others")
    assert played.take(on.CheckRepeated("too late")) == []
    assert played.machine.phase is Phase.STARTING


@pytest.mark.parametrize("event", [on.Signalled(signal.SIGTERM), on.Drained("drained by ann")])
def test_a_check_does_not_keep_a_node_that_leaves(event: on.Event) -> None:
    played = in_phase(Phase.CHECKING)
    assert do.GiveUpWait() in played.take(event)
    assert played.machine.is_over


def test_each_round_is_checked_anew() -> None:
    played = in_phase(Phase.CHECKING)
    played.take(on.CheckPassed())
    played.take(on.RoundFound(a_round()))
    played.take(on.Started(tuple(range(WORKERS))))
    played.take(on.RoundEnded(a_change()))
    assert do.RunCheck() in played.take(on.Stopped(()))


def test_an_exit_code_that_ends_the_run_is_reported_after_another_failure() -> None:
    played = Played(msgspec.structs.replace(RULES, no_restart_exit_codes=(2,))).working()
    played.take(on.WorkerExited(an_exit(0, 1)), on.WorkerExited(an_exit(1, 2)))
    last = msgspec.structs.replace(a_failure(), exit_code=2)
    assert do.ReportFailure(last) in played.take(on.FailuresFound((a_failure(), last)))


# -- workers that are kept -----------------------------------------------------------------------


def keeping(*joined: int) -> Played:
    """In a round, with --keep-workers, and with these local ranks that have joined."""
    played = Played(KEEPING).working()
    played.take(*(on.WorkerJoined(each) for each in joined))
    return played


def test_workers_that_ask_in_time_stay_for_the_next_round() -> None:
    played = keeping(0, 1)
    assert played.take(on.RoundEnded(a_change()))[2:] == []
    assert (played.machine.phase, played.machine.due_s) == (Phase.UNWINDING, played.now_s + 4.0)
    assert played.take(on.WorldAsked(1, 1)) == []
    assert played.take(on.WorldAsked(0, 1)) == [do.StopWorkers(5.0, signal.SIGTERM, (0, 1))]
    assert played.take(on.Stopped(())) == [do.AskRound()]
    assert played.machine.running == (0, 1)
    begun = played.take(on.RoundFound(a_round(2)))
    assert do.StartWorkers(a_round(2), kept=(0, 1)) in begun
    played.take(on.Started((0, 1)))
    assert played.take(on.WorldAsked(0, 1)) == []  # It is of the round before.
    assert played.machine.phase is Phase.WORKING


def test_a_worker_that_has_failed_is_started_again_beside_one_that_is_kept() -> None:
    played = keeping(0, 1)
    played.take(on.WorkerExited(an_exit(0)))
    told = played.take(on.FailuresFound((a_failure(),)))[-1]
    assert isinstance(told, do.TellRoundEnded)
    assert (told.change.kind, told.change.confirmed) == (ChangeKind.WORKER_FAILED, False)
    assert played.take(on.WorldAsked(1, 1)) == [do.StopWorkers(5.0, signal.SIGTERM, (1,))]
    played.take(on.Stopped(()))
    assert do.StartWorkers(a_round(2), kept=(1,)) in played.take(on.RoundFound(a_round(2)))
    # Its end is told while the other one starts.
    played.take(on.WorkerExited(an_exit(1)))
    played.take(on.Started((0, 1)))
    assert played.machine.running == (0,)
    assert do.FindFailures((an_exit(1),)) in played.actions


def test_a_worker_that_does_not_ask_in_time_is_stopped_and_named() -> None:
    played = keeping(0, 1)
    played.take(on.RoundEnded(a_change()), on.WorldAsked(0, 1))
    played.now_s += 4.0
    said, stopped = played.look()
    assert isinstance(said, do.Say)
    assert "rank 1 has not asked for the next world within 4 s of the end of round 1" in said.text
    assert stopped == do.StopWorkers(5.0, signal.SIGTERM, (0,))


def test_workers_that_have_not_joined_are_stopped_at_once_and_named_once() -> None:
    played = Played(KEEPING).working()
    said, stopped = played.take(on.RoundEnded(a_change()))[2:]
    assert isinstance(said, do.Say)
    assert "ranks 0, 1 have not called rallypoint.join" in said.text
    assert stopped == do.StopWorkers(5.0, signal.SIGTERM)
    played.take(on.Stopped(()))
    played.take(on.RoundFound(a_round(2)))
    played.take(on.Started((0, 1)))
    assert played.take(on.RoundEnded(a_change(2)))[2:] == [do.StopWorkers(5.0, signal.SIGTERM)]


def test_one_that_asks_ends_the_round_for_the_others_of_its_node() -> None:
    played = keeping(0, 1)
    told = played.take(on.WorldAsked(0, 1))
    assert told == [do.TellRoundEnded(Change(ChangeKind.READY_AGAIN, 1, ("a",), 1))]


def test_an_error_in_a_block_is_reported_and_the_cause_awaited() -> None:
    played = keeping(0, 1)
    failure = a_failure(FailureKind.COMMUNICATION)
    said, reported = played.take(on.WorkerRaised(0, failure))
    assert isinstance(said, do.Say)
    assert reported == do.ReportFailure(failure)
    assert played.machine.due_s == played.now_s + 0.5
    # All that run have told their error: there is no other cause to wait for here.
    played.take(on.WorkerRaised(1, failure))
    assert played.machine.phase is Phase.UNWINDING


def test_a_worker_that_waits_for_the_cause_has_its_time_from_then_on() -> None:
    played = keeping(0, 1)
    failure = a_failure(FailureKind.COMMUNICATION)
    played.take(on.WorldAsked(1, 1), on.WorkerRaised(0, failure))
    unknown = a_change(confirmed=False, failure=failure)
    played.take(on.RoundEnded(unknown))
    assert (played.machine.phase, played.machine.due_s) == (Phase.UNWINDING, played.now_s + 13.0)
    played.now_s += 6.0
    played.take(on.RoundEnded(a_change()))
    assert played.machine.due_s == played.now_s + 4.0
    played.now_s += 2.0
    assert played.take(on.WorldAsked(0, 1)) == [do.StopWorkers(5.0, signal.SIGTERM, (0, 1))]


def test_one_that_fails_after_another_of_its_node_waits_for_the_cause_too() -> None:
    """The coordinator may be silent just then. Nobody has confirmed why the round ends."""
    played = keeping(0, 1)
    played.take(on.WorkerExited(an_exit(0)))
    played.take(on.FailuresFound((a_failure(),)))
    began_s = played.now_s
    assert (played.machine.phase, played.machine.due_s) == (Phase.UNWINDING, began_s + 4.0)
    assert played.take(on.WorkerRaised(1, a_failure(FailureKind.COMMUNICATION))) == []
    assert played.machine.due_s == began_s + 13.0
    played.now_s += 6.0
    played.take(on.RoundEnded(a_change()))
    assert played.machine.due_s == played.now_s + 4.0
    # Now the cause is known, and an error of that time makes nothing longer.
    played.now_s += 2.0
    played.take(on.WorkerRaised(1, a_failure(FailureKind.COMMUNICATION)))
    assert played.machine.due_s == played.now_s + 2.0


def test_the_exit_of_one_that_is_about_to_end_is_awaited_as_the_cause() -> None:
    """Its peers tell their errors at once, and an interpreter takes its time to end."""
    played = keeping(0, 1)
    played.take(on.WorkerParted(1), on.WorkerRaised(0, a_failure(FailureKind.COMMUNICATION)))
    assert played.machine.due_s == played.now_s + 4.0
    played.now_s += 3.0
    assert played.look() == []
    assert played.take(on.WorkerExited(an_exit(1, 3))) == [do.FindFailures((an_exit(1, 3),))]


def test_one_that_has_closed_its_connection_is_not_said_never_to_have_joined() -> None:
    played = keeping(0, 1)
    played.take(on.WorkerParted(1))
    assert played.take(on.RoundEnded(a_change()))[2:] == []
    assert played.take(on.WorldAsked(0, 1)) == [do.StopWorkers(5.0, signal.SIGTERM, (0,))]


def test_the_exit_code_of_an_error_counts_if_it_ends_the_run() -> None:
    rules = msgspec.structs.replace(KEEPING, no_restart_exit_codes=(1,))
    played = Played(rules).working()
    assert played.take(on.WorkerRaised(0, a_failure())) == []


# -- a failure that is known before the process has ended ------------------------------------------


def fails(local_rank: int = 0, kind: FailureKind = FailureKind.EXCEPTION) -> on.WorkerFails:
    return on.WorkerFails(1, an_exit(local_rank), a_failure(kind))


def test_a_failure_ends_the_round_before_its_process_has_ended() -> None:
    played = Played().working()
    said, reported, stopped = played.take(fails())
    assert isinstance(said, do.Say)
    assert reported == do.ReportFailure(a_failure())
    # R13: it is waited for, within the same grace. A signal would cut short what it still does.
    assert stopped == do.StopWorkers(5.0, signal.SIGTERM, ending=(0,))
    assert played.take(on.WorkerExited(an_exit(0)), on.WorkerExited(an_exit(1, by=15))) == []
    assert played.take(on.Stopped(())) == [do.AskRound()]


@pytest.mark.parametrize("code", [0, 1])
def test_a_failure_that_was_told_is_reported_once_however_its_process_ends(code: int) -> None:
    played = in_phase(Phase.EXPLAINING)
    assert do.ReportFailure(a_failure()) in played.take(fails(1))
    assert played.take(fails(1), on.WorkerExited(an_exit(1, code))) == []
    played.take(on.FailuresFound((a_failure(FailureKind.COMMUNICATION),)))
    assert played.machine.phase is Phase.STOPPING
    assert len([each for each in played.actions if isinstance(each, do.ReportFailure)]) == 1


@pytest.mark.parametrize("why", ["its code", "its kind", "signals", "the round", "its end"])
def test_an_exit_is_awaited_where_it_may_say_more(why: str) -> None:
    rules = msgspec.structs.replace(RULES, no_restart_exit_codes=(3,))
    played = Played(rules if why == "its code" else RULES).working()
    kind = FailureKind.EXCEPTION
    match why:
        case "its kind":
            kind = FailureKind.COMMUNICATION
        case "signals":
            played.take(on.WorkerExited(an_exit(1, by=signal.SIGTERM)))
        case "the round":
            played.take(on.RoundEnded(a_change()))
        case "its end":
            played.take(on.WorkerExited(an_exit(0)))
    assert played.take(fails(kind=kind)) == []
    if why in ("its code", "its kind"):
        assert played.take(on.WorkerExited(an_exit(0))) == [do.FindFailures((an_exit(0),))]


def test_a_failure_of_an_earlier_round_changes_nothing() -> None:
    played = Played().working()
    assert played.take(on.WorkerFails(7, an_exit(0), a_failure())) == []


def test_a_worker_that_fails_is_waited_for_while_others_are_kept() -> None:
    played = keeping(0, 1)
    played.take(fails())
    assert played.machine.phase is Phase.UNWINDING
    played.take(on.WorldAsked(1, 1))
    assert played.take(on.WorkerParted(0)) == [
        do.StopWorkers(5.0, signal.SIGTERM, (1,), ending=(0,))
    ]


def kept_in(phase: Phase) -> Played:
    """One worker was kept, and this agent has no round."""
    played = keeping(0)
    if phase is Phase.CHECKING:
        played = Played(msgspec.structs.replace(KEEPING, has_check=True))
        for event in (on.Prepared(), on.Joined(), on.CheckPassed(), on.RoundFound(a_round())):
            played.take(event)
        played.take(on.Started((0, 1)))
        played.take(on.WorkerJoined(0))
    played.take(on.RoundEnded(a_change()), on.WorldAsked(0, 1))
    played.take(on.Stopped(()))
    assert (played.machine.phase, played.machine.running) == (phase, (0,))
    return played


STOPS: list[tuple[on.Event, float]] = [
    (on.Signalled(signal.SIGTERM), 25.0),
    (on.Drained("drained by ann"), 25.0),
    (on.LeaveAsked("enough"), 25.0),
    (on.RunClosed(CloseRecord(Outcome.FAILED, "restarts are used up")), 25.0),
    (on.Failed(SUPERSEDED), 25.0),
]


@pytest.mark.parametrize("phase", [Phase.GATHERING, Phase.CHECKING])
@pytest.mark.parametrize(("event", "grace_s"), STOPS)
def test_workers_that_wait_for_a_round_are_stopped_with_a_grace(
    phase: Phase, event: on.Event, grace_s: float
) -> None:
    played = kept_in(phase)
    played.take(event)
    if isinstance(event, on.RunClosed) and phase is Phase.GATHERING:
        played.take(on.NoRound())
    assert played.actions[-1] == do.StopWorkers(grace_s, signal.SIGTERM)
    played.take(on.Stopped(()))
    assert (played.machine.phase, played.machine.running) == (Phase.ENDING, ())


def test_one_that_waits_and_closes_its_connection_is_stopped_before_the_round() -> None:
    played = kept_in(Phase.GATHERING)
    played.take(on.WorkerParted(0))
    assert played.take(on.RoundFound(a_round(2))) == [do.StopWorkers(5.0, signal.SIGTERM)]
    assert played.take(on.Stopped(())) == [do.AskRound()]


def test_one_that_ends_while_it_waits_is_started_again() -> None:
    played = kept_in(Phase.GATHERING)
    played.take(on.WorkerExited(an_exit(0)))
    assert do.StartWorkers(a_round(2)) in played.take(on.RoundFound(a_round(2)))


def test_a_signal_while_others_are_stopped_stops_the_kept_ones_too() -> None:
    played = keeping(0)
    played.take(on.RoundEnded(a_change()), on.WorldAsked(0, 1))
    assert played.take(on.Signalled(signal.SIGTERM))[-1] == do.LengthenStop(25.0)
    assert played.take(on.Stopped(())) == [do.StopWorkers(25.0, signal.SIGTERM)]
    played.take(on.Stopped(()))
    assert played.machine.end == End(128 + signal.SIGTERM)
