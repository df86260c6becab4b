"""An agent that drains: its departure waits until the workers have stopped at an agreed step."""

from __future__ import annotations

import signal

import msgspec
import pytest

from rallypoint.core import reasons
from rallypoint.launch import agent_actions as do
from rallypoint.launch import agent_events as on
from rallypoint.launch.machine import AgentMachine
from rallypoint.launch.phases import Phase
from tests.launch.test_machine import RULES, SUCCESS, WORKERS, Played, a_change, an_exit, in_phase

TERM = on.Signalled(signal.SIGTERM, can_agree=True)
BY_ANN = on.Drained("drained by ann", can_agree=True)
NOTICE = on.Drained("a notice", is_notice=True)


def draining(event: on.Event = TERM, timeout_s: float = 12.0) -> Played:
    """At work, and then asked to leave."""
    played = Played()
    played.machine = AgentMachine(msgspec.structs.replace(RULES, drain_timeout_s=timeout_s))
    played.look()
    played.working()
    played.take(event)
    return played


def departed(actions: list[do.Action]) -> bool:
    return any(isinstance(each, do.Depart) for each in actions)


@pytest.mark.parametrize("event", [TERM, BY_ANN, NOTICE])
def test_the_round_goes_on_until_the_time_is_over(event: on.Event) -> None:
    played = draining(event)
    [drain] = [each for each in played.actions if isinstance(each, do.Drain)]
    assert drain.left_s == 12.0
    assert not departed(played.actions)
    assert played.machine.due_s == played.now_s + 12.0
    played.now_s += 11.9
    assert not departed(played.look())
    played.now_s += 0.2
    assert departed(played.look())
    assert played.machine.phase is Phase.STOPPING


def test_the_workers_have_what_is_left_of_the_time_from_the_signal() -> None:
    played = draining()
    played.now_s += 12.0
    [stop] = [each for each in played.look() if isinstance(each, do.StopWorkers)]
    assert stop.grace_s == 25.0 - 12.0


def test_a_signal_leaves_the_workers_time_to_stop() -> None:
    [drain] = [e for e in draining(timeout_s=60.0).actions if isinstance(e, do.Drain)]
    assert drain.left_s == 25.0 - 5.0


@pytest.mark.parametrize(
    "event",
    [
        on.RegroupAsked(),
        on.RoundEnded(a_change()),
        on.LeaveAsked("done here"),
        on.DrainTold(is_asked=False),
    ],
)
def test_it_departs_when_there_is_nothing_to_wait_for(event: on.Event) -> None:
    assert departed(draining().take(event))


def test_it_departs_when_its_workers_have_ended() -> None:
    played = draining()
    assert not departed(played.take(on.DrainTold(is_asked=True), on.Yielded(0), on.Yielded(1)))
    assert departed(played.take(*(on.WorkerExited(an_exit(rank, 0)) for rank in range(WORKERS))))


def test_a_notice_is_patient_if_the_workers_cannot_agree() -> None:
    played = draining(NOTICE)
    assert not departed(played.take(on.DrainTold(is_asked=False)))
    played.now_s += 12.0
    assert departed(played.look())


def test_a_second_signal_ends_the_wait_and_the_grace() -> None:
    played = draining()
    actions = played.take(TERM)
    assert departed(actions)
    assert played.machine.phase is Phase.STOPPING
    assert do.KillWorkers() in actions + played.look()


def test_a_signal_after_a_notice_has_a_time_of_its_own() -> None:
    played = draining(NOTICE)
    played.now_s += 5.0
    assert not departed(played.take(TERM))
    assert played.machine.due_s == played.now_s + 12.0


@pytest.mark.parametrize(
    "event",
    [
        on.Signalled(signal.SIGTERM),
        on.Signalled(signal.SIGINT, can_agree=True),
        on.Drained("drained by ann"),
    ],
)
def test_without_workers_that_agree_it_departs_at_once(event: on.Event) -> None:
    assert departed(draining(event).actions)


@pytest.mark.parametrize("phase", [Phase.GATHERING, Phase.STARTING, Phase.FINISHED])
@pytest.mark.parametrize("event", [TERM, BY_ANN, NOTICE])
def test_without_a_round_at_work_it_departs_at_once(phase: Phase, event: on.Event) -> None:
    assert departed(in_phase(phase).take(event))


def test_workers_that_stopped_at_the_step_have_not_finished() -> None:
    """On a node that stays: the work goes on in the next round."""
    played = Played().working()
    played.take(on.Yielded(0), on.Yielded(1))
    actions = played.take(*(on.WorkerExited(an_exit(rank, 0)) for rank in range(WORKERS)))
    assert do.ReportDone() not in actions
    assert any(isinstance(each, do.StopWorkers) for each in actions)
    played.take(on.Stopped(()))
    assert played.machine.phase is Phase.GATHERING


def test_one_worker_that_has_stopped_at_the_step_stops_no_other() -> None:
    played = Played().working()
    assert not any(isinstance(each, do.StopWorkers) for each in played.take(on.Yielded(0)))
    assert not any(isinstance(each, do.StopWorkers) for each in played.look())


@pytest.mark.parametrize("event", [BY_ANN, NOTICE])
def test_a_draining_node_whose_workers_have_finished_is_done(event: on.Event) -> None:
    """Its departure would end the round of the others, and the run would never succeed."""
    played = draining(event)
    actions = played.take(*(on.WorkerExited(an_exit(rank, 0)) for rank in range(WORKERS)))
    kinds = [type(each) for each in actions]
    assert kinds.index(do.ReportDone) < kinds.index(do.Depart)
    assert do.StopWorkers not in kinds
    # A drained node that is done waits for the end of the run.
    assert played.machine.phase is Phase.FINISHED


def test_workers_that_end_after_a_signal_have_not_finished() -> None:
    """The launcher may have signalled them as well, and they end with 0 when they have saved."""
    played = draining(TERM)
    actions = played.take(*(on.WorkerExited(an_exit(rank, 0)) for rank in range(WORKERS)))
    assert departed(actions)
    assert do.ReportDone() not in actions


def test_a_signal_after_a_notice_that_was_refused_waits_for_nothing() -> None:
    """The others do not take part, and nobody says so twice."""
    played = draining(NOTICE)
    played.take(on.DrainTold(is_asked=False))
    played.now_s += 5.0
    assert departed(played.take(TERM))


@pytest.mark.parametrize("event", [TERM, BY_ANN, NOTICE])
def test_a_run_that_is_closed_meanwhile_is_how_the_agent_ends(event: on.Event) -> None:
    played = draining(event)
    actions = played.take(on.RunClosed(SUCCESS))
    played.take(*(on.WorkerExited(an_exit(rank, 0)) for rank in range(WORKERS)))
    played.take(on.Stopped(()))
    assert not departed(actions)
    assert played.machine.end is not None
    assert played.machine.end.code == 0


# -- why a node leaves without an agreed step ----------------------------------------------------


def said(played: Played) -> list[str]:
    return [each.text for each in played.actions if isinstance(each, do.Say)]


@pytest.mark.parametrize("all_go_on", [False, True])
@pytest.mark.parametrize("event", [TERM, BY_ANN, NOTICE])
def test_it_says_why_the_others_do_not_agree(event: on.Event, all_go_on: bool) -> None:
    played = draining(event)
    played.take(on.DrainTold(is_asked=False, all_go_on=all_go_on))
    played.now_s += 12.0
    played.look()
    assert departed(played.actions)
    assert said(played).count(reasons.no_agreement(all_go_on=all_go_on)) == 1


@pytest.mark.parametrize("event", [on.Signalled(signal.SIGTERM), on.Drained("drained by ann")])
@pytest.mark.parametrize("has_joined", [False, True])
def test_it_says_that_its_own_workers_have_not_asked(event: on.Event, has_joined: bool) -> None:
    """Not to users of programs that cannot ask, as they have not joined."""
    played = Played()
    played.machine = AgentMachine(msgspec.structs.replace(RULES, drain_timeout_s=12.0))
    played.look()
    played.working()
    played.take(*([on.WorkerJoined(0)] if has_joined else []), event, event)
    assert departed(played.actions)
    assert said(played).count(reasons.NOT_ALL_ASK_HERE) == has_joined


@pytest.mark.parametrize(
    ("timeout_s", "event"),
    [
        (0.0, on.Signalled(signal.SIGTERM)),
        (0.0, on.Drained("drained by ann")),
        (12.0, on.Signalled(signal.SIGINT)),
    ],
)
def test_it_does_not_say_so_if_nobody_would_wait(timeout_s: float, event: on.Event) -> None:
    played = Played()
    played.machine = AgentMachine(msgspec.structs.replace(RULES, drain_timeout_s=timeout_s))
    played.look()
    played.working()
    played.take(on.WorkerJoined(0), event)
    assert departed(played.actions)
    assert reasons.NOT_ALL_ASK_HERE not in said(played)
