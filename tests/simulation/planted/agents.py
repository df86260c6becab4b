"""Bugs of the agent and its machine: each breaks a promise about workers, signals or exit codes."""

from __future__ import annotations

from typing import Any

import msgspec

from rallypoint.launch import agent_actions as do
from rallypoint.launch import agent_events as on
from rallypoint.launch.machine import End
from tests.simulation.planted.planting import Bug, replaces


@replaces("rallypoint.launch.machine:AgentMachine._stop")
def _does_not_stop(
    original: Any, self: Any, grace_s: Any, after: Any, first_signal: Any = 15, *, kept: Any = ()
) -> Any:
    """The next round begins beside the workers of the last."""
    if after is not None:
        return original(self, grace_s, after, first_signal, kept=kept)
    self._running = ()
    return self._ask_round()


@replaces("rallypoint.launch.machine:AgentMachine._begin_round")
def _forgets_the_end(original: Any, self: Any, found: Any, now_s: Any) -> Any:
    self._change = None
    return original(self, found, now_s)


@replaces("rallypoint.launch.machine:AgentMachine._leave_if_signalled")
def _waits_on(original: Any, self: Any) -> Any:
    return []


@replaces("rallypoint.launch.machine:AgentMachine._end_by_signal")
def _ends_with_success(original: Any, self: Any) -> Any:
    return End(0)


@replaces("rallypoint.launch.machine:AgentMachine._report")
def _reports_nothing(original: Any, self: Any, now_s: Any) -> Any:
    return [each for each in original(self, now_s) if not isinstance(each, do.ReportFailure)]


@replaces("rallypoint.launch.machine:AgentMachine._explain")
def _explains_one(original: Any, self: Any, now_s: Any) -> Any:
    """Only the last of several failures is explained, and the failures are looked at too soon."""
    self._unreported = [each for each in self._unreported if each.rank % 2 == 0]
    if not self._unreported:
        return []
    return original(self, now_s)


@replaces("rallypoint.launch.round_workers:RoundWorkers._spec")
def _ranks_by_node(original: Any, self: Any, index: Any) -> Any:
    seat = msgspec.structs.replace(self.found.seat, first_rank=self.found.seat.node_rank)
    self.found = msgspec.structs.replace(self.found, seat=seat)
    return original(self, index)


@replaces("rallypoint.launch.machine:AgentMachine._end_by_error")
def _leaves_at_once(original: Any, self: Any, error: Any) -> Any:
    actions = original(self, error)
    self.end = self.end or End(0)
    self.error = None
    return actions


@replaces("rallypoint.launch.machine:AgentMachine._must_regroup")
def _never_regroups(original: Any, self: Any, now_s: Any) -> bool:
    return bool(self._wants_regroup)


@replaces("rallypoint.launch.machine:AgentMachine.step")
def _takes_exits_for_finished(original: Any, self: Any, event: Any, now_s: Any) -> Any:
    """A worker that is killed by a signal counts as finished."""
    if isinstance(event, on.WorkerExited) and event.exit.returncode is None:
        event = on.WorkerExited(msgspec.structs.replace(event.exit, returncode=0, signal=None))
    return original(self, event, now_s)


@replaces("rallypoint.launch.machine:AgentMachine._on_signal")
def _tells_nobody(original: Any, self: Any, event: Any, now_s: Any) -> Any:
    """The others learn of it when the node says goodbye."""
    return [each for each in original(self, event, now_s) if not isinstance(each, do.Depart)]


@replaces("rallypoint.launch.machine:AgentMachine._wait_for_stop")
def _has_patience(original: Any, self: Any, now_s: Any) -> Any:
    self._is_given_up = True
    return original(self, now_s)


@replaces("rallypoint.launch.machine:AgentMachine._stop")
def _stops_slowly(
    original: Any, self: Any, grace_s: Any, after: Any, first_signal: Any = 15, *, kept: Any = ()
) -> Any:
    return original(self, self._rules.stop_timeout_s, after, first_signal, kept=kept)


@replaces("rallypoint.launch.machine:AgentMachine._wait_for_others")
def _waits_for_nobody(original: Any, self: Any, now_s: Any) -> Any:
    return original(self, now_s) or self._end_with(End(0))


@replaces("rallypoint.launch.machine:AgentMachine._is_expelled")
def _never_superseded(original: Any, self: Any) -> bool:
    return False


@replaces("rallypoint.launch.machine:worst_first")
def _first_first(original: Any, found: Any) -> Any:
    return list(reversed(original(found)))[:1]


@replaces("rallypoint.launch.machine:outranks")
def _first_only(original: Any, failure: Any, others: Any) -> Any:
    return not list(others)


@replaces("rallypoint.errors:exit_code_of")
def _fails_softly(original: Any, outcome: Any) -> Any:
    return 0 if original(outcome) == 1 else original(outcome)


@replaces("rallypoint.launch.machine:AgentMachine._may_yet_learn_the_cause")
def _waits_for_a_cause(original: Any, self: Any, now_s: Any) -> bool:
    """The time of patience begins again each time."""
    self._patience_ends_s = 0.0
    return original(self, now_s)


AGENTS = (
    Bug(
        name="agent-tells-nobody-of-a-signal",
        rule="signals",
        source="torchrun",
        parts=(_tells_nobody,),
        seed=11,
    ),
    Bug(
        name="agent-second-signal-in-vain",
        rule="signals",
        source="none",
        parts=(_has_patience,),
        seed=176,
    ),
    Bug(
        name="agent-regroups-slowly",
        rule="stop time",
        source="none",
        parts=(_stops_slowly,),
        seed=933,
    ),
    Bug(
        name="agent-waits-for-nobody",
        rule="exit codes",
        source="none",
        parts=(_waits_for_nobody,),
        seed=11,
    ),
    Bug(name="agent-lives-on-superseded", rule="R13", source="none", parts=(_never_superseded,)),
    Bug(
        name="agent-reports-the-consequence",
        rule="failures",
        source="none",
        parts=(_first_first,),
        seed=29,
    ),
    Bug(
        name="agent-keeps-its-first-cause",
        rule="failures",
        source="none",
        parts=(_first_only,),
        seed=1939,
    ),
    Bug(
        name="agent-forgives-failures",
        rule="exit codes",
        source="none",
        parts=(_fails_softly,),
        seed=3,
    ),
    Bug(
        name="agent-patience-without-end",
        rule="R7",
        source="none",
        parts=(_waits_for_a_cause,),
        seed=3096,
    ),
    Bug(
        name="agent-starts-beside-the-last-round",
        rule="R13",
        source="torch: workers of two generations",
        parts=(_does_not_stop,),
        seed=3,
    ),
    Bug(
        name="agent-forgets-an-early-end",
        rule="R7",
        source="a lost wake-up",
        parts=(_forgets_the_end,),
        seed=3060,
    ),
    Bug(
        name="agent-loses-a-signal", rule="signals", source="torchrun", parts=(_waits_on,), seed=11
    ),
    Bug(
        name="agent-hides-a-signal",
        rule="exit codes",
        source="torchrun: exit code 0 after SIGTERM",
        parts=(_ends_with_success,),
        seed=11,
    ),
    Bug(
        name="agent-keeps-a-failure",
        rule="failures",
        source="none",
        parts=(_reports_nothing,),
        seed=3,
    ),
    Bug(
        name="agent-forgets-a-failure",
        rule="failures",
        source="none",
        parts=(_explains_one,),
        seed=43,
    ),
    Bug(name="agent-mixes-ranks", rule="R3", source="none", parts=(_ranks_by_node,), seed=21),
    Bug(
        name="agent-hides-an-error",
        rule="exit codes",
        source="none",
        parts=(_leaves_at_once,),
        seed=3,
    ),
    Bug(name="agent-never-regroups", rule="R7", source="none", parts=(_never_regroups,), seed=24),
    Bug(
        name="agent-takes-a-kill-for-success",
        rule="outcomes",
        source="none",
        parts=(_takes_exits_for_finished,),
        seed=190,
    ),
)
