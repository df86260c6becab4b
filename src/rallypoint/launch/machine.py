"""The state machine of an agent, without I/O: what happened goes in, actions come out.

    join → next round → start workers → work → (finished | failed | the round ended | a signal)
             ▲                                     │          │
             └──────────── stop the workers ◀──────┴──────────┘
                           (but those that are kept)

`step` records an event. `decide` says what follows from all of them: several may come in one turn
of the event loop, and the order in which `decide` looks at them is their precedence. Processes,
sockets and tasks belong to `agent.py`, which executes the actions and brings the time.
"""

from __future__ import annotations

import signal
from collections.abc import Callable
from typing import Final, assert_never

import msgspec

from rallypoint import errors
from rallypoint.client.node import Round
from rallypoint.core import reasons
from rallypoint.core.addresses import OwnAddress
from rallypoint.core.values import (
    Change,
    ChangeKind,
    CloseRecord,
    Failure,
    FailureKind,
    Outcome,
)
from rallypoint.errors import ExitCode
from rallypoint.launch import agent_actions as do
from rallypoint.launch import agent_events as on
from rallypoint.launch import agent_messages, failures
from rallypoint.launch.draining import HeldDeparture
from rallypoint.launch.failures import outranks, worst_first
from rallypoint.launch.keeping import Keeping
from rallypoint.launch.phases import WAITS_FOR, Phase
from rallypoint.launch.warm_starts import Preload, WarmStarts
from rallypoint.launch.worker_processes import WorkerExit

STOPPING_SIGNALS: Final = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)

END_MARGIN_S: Final = 5.0
"""How many seconds before the end of the job the workers have stopped: for the goodbye."""
NOTICE_S_MAX: Final = 900.0
"""SIGTERM so long before the end of the job is the notice of that end, and may leave all the time
until then. An earlier one is a cancellation, after which a launcher does not wait long.
"""


_STARTED: Final = (Phase.STARTING, Phase.WORKING, Phase.EXPLAINING)
_OVER: Final = (Phase.ENDING, Phase.LEAVING, Phase.ENDED)
_BETWEEN: Final = (Phase.UNWINDING, Phase.STOPPING, Phase.CHECKING, Phase.GATHERING)
"""There is no round whose workers could fail."""
_WITHOUT_WORKERS: Final = (
    *(Phase.NEW, Phase.PREPARING, Phase.JOINING, Phase.CHECKING, Phase.GATHERING),
    *_OVER,
)


class Rules(msgspec.Struct, frozen=True, kw_only=True):
    """The settings on which an agent's decisions depend. Durations in seconds.

    `share_lines`: how many last lines of a failed worker are sent to other nodes; 0: no output.
    `culprit_s`: how long the other workers are not stopped after a communication error.
    `signal_settle_s`: how long a worker's end by a stopping signal is not judged.
    `no_restart_exit_codes`: those of the run. They end it, so each is reported. `preload`: what
    --preload asks for; None: workers start cold. `has_check`: whether this node is checked before
    each round. `check_again_s`: how long after a failed check it is repeated, twice as long each
    time, up to `check_again_max_s`. `unwind_s`, `explain_s`: see Keeping. `node_name`:
    of this node.
    """

    run_id: str
    stop_timeout_s: float
    regroup_stop_timeout_s: float
    share_lines: int
    culprit_s: float
    signal_settle_s: float
    drain_timeout_s: float = 0.0
    no_restart_exit_codes: tuple[int, ...] = ()
    has_check: bool = False
    check_again_s: float = 60.0
    check_again_max_s: float = 3_600.0
    preload: Preload | None = None
    unwind_s: float | None = None
    explain_s: float = 0.0
    node_name: str = ""


class End(msgspec.Struct, frozen=True):
    """How the agent ends: its exit code and its last message."""

    code: int
    message: str = ""


class AgentMachine:
    """One agent: its phase, its present round, and how it ends.

    `end`: its exit code and last message. `error`: what `Agent.run` raises in place of that. One of
    the two is set from ENDING on. `due_s`: when to call `decide` again if nothing happens; None:
    never. All `now_s` are from one monotonic clock, in seconds. Not thread-safe: one owner.
    """

    def __init__(self, rules: Rules) -> None:
        self.phase = Phase.NEW
        self.end: End | None = None
        self.error: Exception | None = None
        self.due_s: float | None = None
        self.found: Round | None = None
        """The last round that this agent has begun."""
        self._rules = rules
        self._answer: on.Answer | None = None
        self._is_given_up = False
        """Whether the present start, stop or goodbye was cut short."""
        self._after_stop: End | Exception | None = None
        """How the agent ends when its workers have stopped; None: the next round follows."""
        self._signals: list[int] = []
        self._signals_seen = 0
        self._reached: dict[str, None] = {}
        """The hosts of rank 0 that were reached, or are dialled now."""
        self._left_s: float | None = None
        """How long after the first signal the launcher ends the job, if that is known."""
        self._goodbye = "its agent has ended"
        self._change: Change | None = None
        self._told_change: Change | None = None
        self._closed: CloseRecord | None = None
        self._own: OwnAddress | None = None
        self._gone: errors.CoordinatorError | None = None
        self._wants_to_leave: str | None = None
        self._drained: str | None = None
        """Why an operator wants this node to leave; None if none does."""
        self._wants_regroup = False
        self._held: HeldDeparture | None = None
        """A departure that waits until the workers have stopped at an agreed step."""
        self._held_for_s = 0.0
        """How long the signal was held back."""
        self._yielded: dict[int, None] = {}
        """The local ranks of the workers that were told to stop at such a step."""
        self._running: tuple[int, ...] = ()
        self._kept: tuple[int, ...] = ()
        """The local ranks that the present stop leaves alone."""
        self._exits: list[WorkerExit] = []
        """The exits of this round's workers that have ended by themselves."""
        self._unreported: list[WorkerExit] = []
        self._failures: list[Failure] = []
        """The failures of this round so far."""
        self._ending: dict[int, None] = {}
        """The local ranks of the workers whose failure was told before their process had ended."""
        self._judged_from_s = 0.0
        self._patience_ends_s = 0.0
        self._unfit = ""
        """Why the last check of this node failed; "" if it did not."""
        self._is_repeating = False
        """Whether the check is being repeated."""
        self._check_at_s: float | None = None
        """When to repeat it; None: not yet known, or not at all."""
        self._pause_s = rules.check_again_s
        self.warm = WarmStarts(rules.preload)
        self._keeping = Keeping(rules.unwind_s, rules.explain_s)

    @property
    def waits_for(self) -> str:
        """What the agent waits for; "" at its end."""
        return WAITS_FOR[self.phase]

    @property
    def is_over(self) -> bool:
        """Whether the end is decided."""
        return self.phase in _OVER

    @property
    def running(self) -> tuple[int, ...]:
        """The local ranks of the workers that have started and not ended."""
        return self._running

    def freeze(self) -> tuple[object, ...]:
        """The state on which decisions depend, as a hashable value without times, for tests."""
        return (
            (self.phase, self.end, repr(self.error), self.found, self._answer),
            (self._is_given_up, repr(self._after_stop), tuple(self._signals), self._signals_seen),
            (self._goodbye, self._change, self._told_change, self._closed, repr(self._gone)),
            (self._wants_to_leave, self._drained, self._wants_regroup, self._running),
            (tuple(self._exits), tuple(self._unreported), tuple(self._failures)),
            tuple(self._ending),
            (tuple(self._reached), self.warm.freeze(), tuple(self._yielded)),
            self._held and (self._held.reason, self._held.number, self._held.refused),
            (self._unfit, self._is_repeating, self._pause_s, self._keeping.freeze()),
        )

    # -- events ------------------------------------------------------------------------------------

    def step(self, event: on.Event, now_s: float) -> list[do.Action]:
        """Record what happened, and return what is done about it at once. `decide` must follow."""
        match event:
            case on.WorkerExited(exit=exit):
                self._on_exit(exit, now_s)
            case on.RoundEnded(change=change):
                return self._on_ended(change)
            case on.RunClosed(close=close, own=own):
                self._closed, self._own = close, own
                return [do.TellRunClosed(close)]
            case on.Gone(error=error, orphan_left_s=left_s):
                return self._on_gone(error, left_s)
            case on.Signalled():
                return self._on_signal(event, now_s)
            case on.Rank0Dialled():
                return self._on_dialled(event)
            case on.RegroupAsked():
                self._wants_regroup = True
            case on.WorkerJoined(local_rank=local_rank):
                self._keeping.joined(local_rank)
            case on.WorkerParted(local_rank=local_rank):
                self._keeping.parted(local_rank)
            case on.WorldAsked():
                self._on_world_asked(event)
            case on.WorkerRaised():
                return self._on_raised(event)
            case on.WorkerFails():
                return self._on_fails(event, now_s)
            case on.LeaveAsked(reason=reason):
                self._wants_to_leave = reason
            case on.Drained():
                return self._on_drained(event, now_s)
            case on.DrainTold(is_asked=is_asked, all_go_on=all_go_on):
                if self._held is not None:
                    why = reasons.no_agreement(all_go_on=all_go_on)
                    self._held.refused = "" if is_asked else why
            case on.Yielded(local_rank=local_rank):
                self._yielded[local_rank] = None
            case on.CloseAsked(outcome=outcome, reason=reason):
                return [do.CloseRun(outcome, reason)]
            case on.CloseFailed(message=message):
                return [do.Say(f"warning: a worker closed the run, but {message}")]
            case on.CheckRepeated(unfit=unfit):
                return self._on_repeated(unfit, now_s)
            case on.LetGo():
                return self._on_let_go()
            case on.PreloadReady() | on.PreloadRefused() | on.PreloaderEnded() | on.ModulesRead():
                return [] if self.is_over else self.warm.step(event, now_s)
            case on.Started(running=running):
                # A worker that was kept may have ended before the others had started.
                ended = [exit.local_rank for exit in self._exits]
                self._running = tuple(each for each in running if each not in ended)
                self._answer = event
            case on.Stopped():
                self._answer = event
                self._running = tuple(each for each in self._running if each in self._kept)
            case (
                on.Prepared()
                | on.Joined()
                | on.CheckPassed()
                | on.CheckFailed()
                | on.RoundFound()
                | on.NoRound()
                | on.StartFailed()
                | on.FailuresFound()
                | on.Failed()
                | on.NodeClosed()
            ):
                self._answer = event
            case _:
                assert_never(event)
        return []

    def _on_exit(self, exit: WorkerExit, now_s: float) -> None:
        """A worker that ends by itself has finished or failed; a stopped one has done neither."""
        self._running = tuple(each for each in self._running if each != exit.local_rank)
        if self.phase in (*_BETWEEN, *_OVER):
            return
        if exit.local_rank in self._ending:
            # Its failure is reported. That stays so if its last code calls os._exit(0).
            failed = msgspec.structs.replace(exit, returncode=exit.returncode or 1, signal=None)
            self._exits.append(failed)
            return
        self._exits.append(exit)
        if exit.returncode != 0:
            self._unreported.append(exit)
        if failures.signal_of(exit) in STOPPING_SIGNALS:
            self._judged_from_s = now_s + self._rules.signal_settle_s

    def _on_world_asked(self, event: on.WorldAsked) -> None:
        """A worker leaves its round, and with it, its node. Its process may go on."""
        if event.round != self._number:
            return
        self._keeping.asked(event.local_rank)
        if self._change is None and not self._failures:
            self._wants_regroup = True

    def _on_raised(self, event: on.WorkerRaised) -> list[do.Action]:
        """Report the error of a worker that goes on, as it may be the cause."""
        if self.phase is Phase.UNWINDING and not self._knows_cause:
            self._keeping.raised(event.local_rank)
            return []
        # If the exit code of a Python error ends the run, the exit has to be awaited.
        is_early = self.phase not in _STARTED or bool(self._signals)
        if is_early or 1 in self._rules.no_restart_exit_codes:
            return []
        self._keeping.raised(event.local_rank)
        return self._tell_failures([event.failure])

    def _on_fails(self, event: on.WorkerFails, now_s: float) -> list[do.Action]:
        """Report the error of a worker before its process has ended, which may take a second.

        Wait for the exit if it may say more: its code may end the run; a communication error has a
        cause, whose process may end first; and if another worker was signalled, this agent may be
        signalled next.
        """
        local_rank = event.exit.local_rank
        is_known = local_rank not in self._running or local_rank in self._ending
        may_fail = self.phase in (Phase.WORKING, Phase.EXPLAINING) and not self._is_round_over
        if event.round != self._number or is_known or not may_fail:
            return []
        if (
            self._rules.no_restart_exit_codes
            or event.failure.kind is FailureKind.COMMUNICATION
            or now_s < self._judged_from_s
        ):
            return []
        self._ending[local_rank] = None
        return self._tell_failures([event.failure])

    def _on_ended(self, change: Change) -> list[do.Action]:
        text = agent_messages.of_change(change, self._told_change)
        actions: list[do.Action] = [do.TellRoundEnded(change)]
        if text and change.kind is not ChangeKind.CLOSED:  # the end of the run is logged last
            actions.append(do.Say(text, is_common=True))
        self._change = self._told_change = change
        return actions

    def _on_gone(
        self, error: errors.CoordinatorError, orphan_left_s: float | None
    ) -> list[do.Action]:
        """Loss of the coordinator does not disturb the workers; a node that is out stops them."""
        self._gone = error
        if self.phase in _WITHOUT_WORKERS:
            return []
        if self._is_expelled:
            self._goodbye = error.message
            return [do.TellExpulsion(error.message)]
        return [do.Say(agent_messages.of_loss(error.message, orphan_left_s))]

    def _on_signal(self, event: on.Signalled, now_s: float) -> list[do.Action]:
        """The first signal makes this node departing, so that the others regroup.

        It does so at once, or after a step on which all workers agree. A second signal ends that.
        """
        number, left_s = event.number, event.left_s
        held, self._held = self._held, None
        if held is not None and held.number is not None:
            return [*self._release(held, now_s), *self._depart_by_signal(number, left_s)]
        # After an operator's wish or a notice, a signal has a time of its own.
        if event.can_agree and number == signal.SIGTERM and not self._signals and self._may_hold:
            grace_s = self._grace_s(left_s)
            limit_s = min(self._rules.drain_timeout_s, grace_s - self._rules.regroup_stop_timeout_s)
            if limit_s > 0:
                reason = f"its agent got {signal.Signals(number).name}"
                # The coordinator says once whether all take part, and not again for this signal.
                refused = held.refused if held is not None else ""
                due_s = now_s + limit_s
                return self._hold(
                    HeldDeparture(reason, now_s, due_s, number, left_s, refused=refused),
                    limit_s,
                )
        is_first = number == signal.SIGTERM and not self._signals and held is None
        said = [] if event.can_agree or not is_first else self._say_who_does_not_ask()
        return [*said, *self._depart_by_signal(number, left_s)]

    def _say_who_does_not_ask(self) -> list[do.Action]:
        """Why this departure is not held back. For programs that have joined: others cannot ask."""
        is_missed = self._may_hold and self._rules.drain_timeout_s > 0 and self._keeping.has_joined
        return [do.Say(reasons.NOT_ALL_ASK_HERE)] if is_missed else []

    def _depart_by_signal(self, number: int, left_s: float | None) -> list[do.Action]:
        self._signals.append(number)
        if len(self._signals) > 1:
            return []
        # A launcher's notice is SIGTERM. Ctrl-C and a lost terminal are of a user, who waits.
        self._left_s = left_s if number == signal.SIGTERM else None
        self._goodbye = f"its agent got {signal.Signals(number).name}"
        return [do.Depart(self._goodbye), do.TellDeparture(self._goodbye)]

    def _on_drained(self, event: on.Drained, now_s: float) -> list[do.Action]:
        """An operator's wish does what a signal does. A repeat changes nothing."""
        if self._drained is not None or self._signals or self._held is not None or self.is_over:
            return []
        limit_s = self._rules.drain_timeout_s
        if self._may_hold and limit_s > 0 and (event.can_agree or event.is_notice):
            held = HeldDeparture(event.reason, now_s, now_s + limit_s, is_patient=event.is_notice)
            return self._hold(held, limit_s)
        said = [] if event.can_agree else self._say_who_does_not_ask()
        return [*said, *self._depart_drained(event.reason)]

    @property
    def _may_hold(self) -> bool:
        return self.phase in (Phase.WORKING, Phase.EXPLAINING) and not self._is_round_over

    def _hold(self, held: HeldDeparture, limit_s: float) -> list[do.Action]:
        """Let the round go on, until its workers have stopped at a step on which all agree."""
        self._held = held
        said = do.Say(agent_messages.of_draining(held.reason, limit_s))
        return [do.Drain(held.reason, limit_s), said]

    def _release_when_due(self, now_s: float) -> list[do.Action]:
        """Begin a departure that was held back: its round is over, or its time, or it is vain."""
        held = self._held
        # Workers that have finished are reported first: the departure of a node that is done ends
        # no round. But a launcher may have signalled the workers as well: then they have stopped.
        if held is None or (held.number is None and self._are_done):
            return []
        # The run is over, and its end is that of this agent: there is nothing to leave any more.
        if self._closed is not None:
            self._held = None
            return []
        is_vain = bool(held.refused) and not held.is_patient
        has_stopped = self._wants_regroup or not self._running
        if now_s < held.due_s and self._may_hold and not (is_vain or has_stopped):
            return []
        self._held = None
        is_alone = bool(held.refused) and self._may_hold and not has_stopped
        said = [do.Say(held.refused)] if is_alone else []
        return [*said, *self._release(held, now_s)]

    def _release(self, held: HeldDeparture, now_s: float) -> list[do.Action]:
        self._held_for_s = now_s - held.began_s
        if held.number is None:
            return self._depart_drained(held.reason)
        return self._depart_by_signal(held.number, held.left_s)

    def _depart_drained(self, reason: str) -> list[do.Action]:
        self._drained = self._goodbye = reason
        return [do.Depart(reason), do.TellDeparture(reason)]

    def _on_dialled(self, event: on.Rank0Dialled) -> list[do.Action]:
        """An address that was not reached counts while its round lasts: its host may have died."""
        if event.unreached is None and event.walled is None:
            return []
        if event.unreached is not None:
            self._reached.pop(event.address.host, None)
        is_present = self.found is not None and self.found.head.bootstrap == event.address
        if self.phase not in _STARTED or not is_present or self._is_round_over:
            return []
        if event.unreached is not None:
            return [do.Say(agent_messages.of_unreached(event.unreached))]
        assert event.walled is not None
        return [do.Say(agent_messages.of_walled(event.address, event.walled))]

    def _on_let_go(self) -> list[do.Action]:
        """Leave the run. A host stays for the other nodes, unless another signal arrives."""
        self.phase, self._answer, self._is_given_up = Phase.LEAVING, None, False
        self._signals_seen = len(self._signals)
        return [do.CloseNode(self._goodbye, linger=not self._is_hurried)]

    # -- decisions ---------------------------------------------------------------------------------

    def decide(self, now_s: float) -> list[do.Action]:
        """What follows from the events so far, and from the time."""
        actions = self._release_when_due(now_s)
        self.due_s = None
        before: Phase | None = None
        while self.phase is not before:
            before = self.phase
            if isinstance(self._answer, on.Failed) and not self.is_over:
                actions += self._end_by_error(self._answer.error)
            else:
                actions += _DECISIONS[self.phase](self, now_s)
        if not self.is_over:
            is_next_wanted = self.phase is Phase.UNWINDING or (
                self.phase is Phase.STOPPING and self._after_stop is None
            )
            is_round_over = is_next_wanted or self.phase is Phase.GATHERING
            actions += self.warm.decide(now_s, is_round_over=is_round_over)
            held_s = None if self._held is None else self._held.due_s
            dues_s = [each for each in (self.due_s, self.warm.due_s, held_s) if each is not None]
            self.due_s = min(dues_s, default=None)
        return actions

    def _take_answer(self) -> on.Answer | None:
        answer, self._answer = self._answer, None
        return answer

    @property
    def _is_hurried(self) -> bool:
        return len(self._signals) > 1

    @property
    def _is_expelled(self) -> bool:
        """Whether the coordinator has taken the node out: it has to stop its workers."""
        match self._gone:
            case errors.SupersededError() | errors.EvictedError():
                return True
            case errors.TokenError() as error:
                return error.has_ended
        return False

    def _begin(self, now_s: float) -> list[do.Action]:
        self.phase = Phase.PREPARING
        return [do.Prepare(), *self.warm.prepare()]

    def _prepare(self, now_s: float) -> list[do.Action]:
        if self._take_answer() is None:
            return self._leave_if_signalled()
        self.phase = Phase.JOINING
        return [do.Join()]

    def _join(self, now_s: float) -> list[do.Action]:
        if self._take_answer() is None:
            return self._leave_if_signalled()
        return self._ask_round()

    def _ask_round(self) -> list[do.Action]:
        if self._signals:
            return self._leave_by_signal()
        if self._drained is not None:
            return self._leave_drained(self._drained)
        if self._rules.has_check:
            self.phase = Phase.CHECKING
            return [do.RunCheck()]
        self.phase = Phase.GATHERING
        return [do.AskRound()]

    def _check(self, now_s: float) -> list[do.Action]:
        """Ask for a round when the check has ended, also if it failed: others may be too few."""
        answer = self._take_answer()
        if isinstance(answer, on.CheckPassed | on.CheckFailed):
            self._unfit = answer.reason if isinstance(answer, on.CheckFailed) else ""
            self.phase, self._pause_s = Phase.GATHERING, self._rules.check_again_s
            said = self._plan_repeat(now_s) if self._unfit else []
            return [*said, do.AskRound(self._unfit)]
        if self._closed is not None:
            return [do.GiveUpWait(), *self._end_of_run(self._closed, now_s)]
        return self._leave_if_signalled()

    def _plan_repeat(self, now_s: float) -> list[do.Action]:
        """Repeat a failed check after a pause, which grows."""
        pause_s, self._pause_s = self._pause_s, 2 * self._pause_s
        pause_s = min(pause_s, self._rules.check_again_max_s)
        self._check_at_s = now_s + pause_s
        return [do.Say(agent_messages.of_check(self._unfit, pause_s))]

    def _repeat_check(self, now_s: float) -> list[do.Action]:
        if self._is_repeating or self._check_at_s is None:
            return []
        if now_s < self._check_at_s:
            self.due_s = self._check_at_s
            return []
        self._is_repeating, self._check_at_s = True, None
        return [do.RepeatCheck()]

    def _on_repeated(self, unfit: str, now_s: float) -> list[do.Action]:
        """A repeat that ends when the node waits no more counts for nothing."""
        if not self._is_repeating:
            return []
        self._is_repeating, self._unfit = False, unfit
        if not unfit:
            return [do.TellFitness(""), do.Say(agent_messages.of_check("", None))]
        return [do.TellFitness(unfit), *self._plan_repeat(now_s)]

    def _give_up_repeat(self) -> list[do.Action]:
        self._check_at_s = None
        is_under_way, self._is_repeating = self._is_repeating, False
        return [do.GiveUpRepeat()] if is_under_way else []

    def _gather(self, now_s: float) -> list[do.Action]:
        answer = self._take_answer()
        if isinstance(answer, on.RoundFound):
            return [*self._give_up_repeat(), *self._begin_round(answer.found, now_s)]
        if isinstance(answer, on.NoRound):
            assert self._closed is not None
            return [*self._give_up_repeat(), *self._end_of_run(self._closed, now_s)]
        left = self._leave_if_signalled()
        return [*self._give_up_repeat(), *left] if left else self._repeat_check(now_s)

    def _leave_if_signalled(self) -> list[do.Action]:
        """End a wait without workers."""
        if self._signals:
            return [do.GiveUpWait(), *self._leave_by_signal()]
        if self._drained is not None:
            return [do.GiveUpWait(), *self._leave_drained(self._drained)]
        if self._wants_to_leave is not None and self._running:
            return [do.GiveUpWait(), *self._stop_to_leave(self._wants_to_leave)]
        return []

    def _leave_by_signal(self) -> list[do.Action]:
        if self._running:
            return self._stop_by_signal()
        said = do.Say(agent_messages.of_leaving(self._signals[0]))
        return [said, *self._end_with(self._end_by_signal())]

    def _leave_drained(self, reason: str) -> list[do.Action]:
        if self._running:
            return self._stop_drained(reason)
        return [do.Say(agent_messages.of_drain(reason)), *self._end_with(End(ExitCode.DONE))]

    def _begin_round(self, found: Round, now_s: float) -> list[do.Action]:
        """Start this round's workers. It may have ended already."""
        kept = self._keeping.kept(self._running)
        if kept != self._running:
            # R13: one of them has closed its connection, and cannot be told of this round.
            return self._stop(self._rules.regroup_stop_timeout_s, None, kept=kept)
        self._keeping.begin_round(kept)
        self.phase, self.found, self._is_given_up = Phase.STARTING, found, False
        if self._change is not None and self._change.round != found.head.number:
            self._change = None
        self._wants_regroup = False
        self._yielded = {}
        self._exits, self._unreported, self._failures = [], [], []
        self._ending = {}
        self._judged_from_s = self._patience_ends_s = 0.0
        said = do.Say(agent_messages.of_round(found), is_common=True)
        start = self.warm.how_to_start(now_s)
        actions: list[do.Action] = [said, do.StartWorkers(found, start, kept)]
        if self._unfit:
            actions.insert(1, do.Say(agent_messages.of_let_in(self._unfit)))
        rank_0 = found.head.bootstrap
        if found.seat.node_rank > 0 and rank_0.host not in self._reached:
            # Beside the start, as gloo would hang there for minutes in silence.
            self._reached[rank_0.host] = None
            actions.append(do.DialRank0(rank_0))
        return actions

    def _start(self, now_s: float) -> list[do.Action]:
        """Wait for the start, unless the round ends before, because a start can take long."""
        answer = self._take_answer()
        if isinstance(answer, on.StartFailed):
            self._goodbye = f"its workers cannot be started: {answer.error.message}"
            return self._end_by_error(answer.error)
        if isinstance(answer, on.Started):
            self.phase = Phase.WORKING
        elif self._is_round_over and not self._is_given_up:
            self._is_given_up = True
            return [do.GiveUpStart()]
        return []

    @property
    def _is_round_over(self) -> bool:
        """Whether this node's workers have to stop in any case."""
        return bool(
            self._signals
            or self._drained is not None
            or self._wants_to_leave is not None
            or self._closed is not None
            or self._is_expelled
            or self._change is not None
        )

    def _leave_round(self, now_s: float) -> list[do.Action]:
        """What ends this agent, or its part in the run. The order is the precedence."""
        if self._signals:
            return self._stop_by_signal()
        if self._drained is not None:
            return self._stop_drained(self._drained)
        if self._wants_to_leave is not None:
            return self._stop_to_leave(self._wants_to_leave)
        if self._closed is not None:
            return self._close_down(self._closed, now_s)
        if self._is_expelled:
            return self._stop(self._rules.regroup_stop_timeout_s, self._gone)
        return []

    def _work(self, now_s: float) -> list[do.Action]:
        """Handle what ends this round's work here. The order is the precedence."""
        left = self._leave_round(now_s)
        if left or self.phase is not Phase.WORKING:
            return left
        if self._unreported:
            return self._explain(now_s)
        # R14: they have stopped because a node leaves: their work goes on in the next round.
        if self._has_finished and self._yielded:
            return self._regroup(now_s)
        if self._has_finished:
            self.phase = Phase.FINISHED
            text = f"round {self._number}: all workers of this node have finished"
            held, self._held = self._held, None
            released = [] if held is None else self._release(held, now_s)
            return [do.ReportDone(), do.Say(text), *released]
        if self._must_regroup(now_s):
            return self._regroup(now_s)
        return []

    def _regroup(self, now_s: float) -> list[do.Action]:
        """End this round's work for the next one."""
        if not self._keeping.is_on:
            # R13: this round's workers have ended before those of the next round start.
            return self._stop(self._rules.regroup_stop_timeout_s, None)
        self.phase = Phase.UNWINDING
        strangers = self._keeping.begin_wait(self._running, now_s)
        actions: list[do.Action] = []
        if strangers:
            actions.append(do.Say(agent_messages.of_strangers(self._ranks(strangers))))
        if self._change is None:
            # The others of this node wait for the one that has left, and know nothing of it.
            actions.append(do.TellRoundEnded(self._own_change()))
        return actions

    def _own_change(self) -> Change:
        """Why this node ends its part in the round, before a coordinator has told it."""
        who = (self._rules.node_name,)
        if not self._failures:
            return Change(ChangeKind.READY_AGAIN, self._number, who, 1)
        failure = self._failures[0]
        failed = Change(ChangeKind.WORKER_FAILED, self._number, who, 1, failure=failure)
        return msgspec.structs.replace(failed, confirmed=False)

    def _unwind(self, now_s: float) -> list[do.Action]:
        """Wait for the workers that may be kept, and stop the others."""
        left = self._leave_round(now_s)
        if left or self.phase is not Phase.UNWINDING:
            return left
        late = self._keeping.late(self._running)
        ends_s = self._keeping.wait_ends_s(late, now_s, knows_cause=self._knows_cause)
        if late and now_s < ends_s:
            self.due_s = ends_s
            return []
        said: list[do.Action] = []
        if late:
            text = agent_messages.of_late(self._ranks(late), self._number, self._keeping.unwind_s)
            said.append(do.Say(text))
        # R13: who is kept has left this round; the others have ended before the next one starts.
        kept = self._keeping.kept(self._running)
        return [*said, *self._stop(self._rules.regroup_stop_timeout_s, None, kept=kept)]

    @property
    def _knows_cause(self) -> bool:
        """Whether the coordinator has said why the round ends."""
        return self._change is not None and self._change.confirmed

    def _ranks(self, local_ranks: tuple[int, ...]) -> tuple[int, ...]:
        assert self.found is not None
        return tuple(self.found.seat.first_rank + each for each in local_ranks)

    @property
    def _number(self) -> int:
        """The number of the present round; 0 before the first."""
        return self.found.head.number if self.found is not None else 0

    @property
    def _has_finished(self) -> bool:
        """Whether every worker has ended by itself with success."""
        assert self.found is not None
        finished = [exit for exit in self._exits if exit.returncode == 0]
        return len(finished) == self.found.seat.workers

    @property
    def _are_done(self) -> bool:
        """Whether the workers have finished, and have not stopped at an agreed step."""
        return self.phase is Phase.WORKING and self._has_finished and not self._yielded

    # -- failures ----------------------------------------------------------------------------------

    def _explain(self, now_s: float) -> list[do.Action]:
        """Judge the failures, unless a signal to this agent may follow.

        The sender that signalled a worker may signal this agent next. Then this node departs. This
        applies to all workers, because a worker that was signalled makes its peers fail.
        """
        if now_s < self._judged_from_s:
            self.due_s = self._judged_from_s
            return []
        self.phase = Phase.EXPLAINING
        exits, self._unreported = tuple(self._unreported), []
        return [do.FindFailures(exits)]

    def _report(self, now_s: float) -> list[do.Action]:
        """Report failures at once, because the coordinator finds the cause."""
        answer = self._take_answer()
        if not isinstance(answer, on.FailuresFound):
            return []
        self.phase = Phase.WORKING
        if self._signals:
            return []  # Slurm and systemd signal the workers as well: this is one departure.
        early = next((exit.rank for exit in self._exits if exit.returncode == 0), None)
        new = [
            each if early is None else failures.after_finish(each, early)
            for each in answer.failures
        ]
        return self._tell_failures(new)

    def _tell_failures(self, new: list[Failure]) -> list[do.Action]:
        known = self._failures
        self._failures = [*known, *new]
        actions: list[do.Action] = []
        for failure in worst_first(new):
            actions.append(do.Say(f"round {self._number}: {failure}", is_trouble=True))
            if outranks(failure, known) or self._ends_the_run(failure):
                shared = failures.shared(failure, self._rules.share_lines)
                actions.append(do.ReportFailure(shared))
                known = [*known, failure]
        return actions

    def _ends_the_run(self, failure: Failure) -> bool:
        """Whether it counts whatever else is known."""
        return failure.exit_code in self._rules.no_restart_exit_codes

    def _must_regroup(self, now_s: float) -> bool:
        """Whether to stop the workers for another round."""
        if self._wants_regroup:
            return True
        if self._change is None and not self._failures:
            return False
        return not self._may_yet_learn_the_cause(now_s)

    def _may_yet_learn_the_cause(self, now_s: float) -> bool:
        """Cause before consequence: whether a running worker may soon show the cause.

        True if only a communication error is known, for less than `culprit_s`; with --keep-workers
        for less than the time to unwind, while a worker is about to end.
        """
        known = [failure.kind for failure in self._failures]
        change = self._change
        if change is not None:
            if change.confirmed or change.failure is None:
                return False
            known.append(change.failure.kind)
        if any(kind is not FailureKind.COMMUNICATION for kind in known):
            return False
        self._patience_ends_s = self._patience_ends_s or now_s + self._rules.culprit_s
        ends_s = self._patience_ends_s
        if self._keeping.ending(self._running):
            # The others tell their errors at once. An interpreter with large libraries takes a
            # second to end, and its exit code may be what the run goes by.
            ends_s = max(ends_s, ends_s - self._rules.culprit_s + self._keeping.unwind_s)
        if not self._keeping.unaware(self._running) or now_s >= ends_s:
            return False
        self.due_s = ends_s
        return True

    # -- the ends of a round's work ----------------------------------------------------------------

    def _stop_by_signal(self) -> list[do.Action]:
        """Stop because of a signal. The other nodes were told; the workers get the signal."""
        grace_s, said = self._notice()
        return [said, *self._stop(grace_s, self._end_by_signal(), self._signals[0])]

    def _notice(self) -> tuple[float, do.Say]:
        """How many seconds the workers have after the first signal, and the line about it."""
        number, left_s = self._signals[0], self._left_s
        grace_s = self._grace_s(left_s)
        if grace_s == self._rules.stop_timeout_s:
            left_s = None
        # The time of a launcher counts from the signal, and a part of it has passed.
        least_s = min(grace_s, self._rules.regroup_stop_timeout_s)
        grace_s = max(grace_s - self._held_for_s, least_s)
        return grace_s, do.Say(agent_messages.of_departure(number, grace_s, left_s))

    def _grace_s(self, left_s: float | None) -> float:
        # Another host's clock has told this end. A wrong one makes the time longer, never shorter.
        grace_s = self._rules.stop_timeout_s
        if left_s is None or not grace_s + END_MARGIN_S < left_s <= NOTICE_S_MAX:
            return grace_s
        return left_s - END_MARGIN_S

    def _stop_drained(self, reason: str) -> list[do.Action]:
        """Leave the run at an operator's request. The other nodes were told."""
        grace_s = self._rules.stop_timeout_s
        said = do.Say(agent_messages.of_drain(reason, grace_s))
        return [said, *self._stop(grace_s, End(ExitCode.DONE))]

    def _stop_to_leave(self, reason: str) -> list[do.Action]:
        """Leave the run at a worker's request."""
        self._goodbye = reason
        return [
            do.Depart(reason),
            do.TellDeparture(reason),
            do.Say(f"a worker asked to leave the run: {reason}"),
            *self._stop(self._rules.stop_timeout_s, End(ExitCode.DONE)),
        ]

    def _close_down(self, close: CloseRecord, now_s: float) -> list[do.Action]:
        """End with the run. If it succeeded, give the workers a moment to end by themselves."""
        if self.phase is not Phase.CLOSING:
            self._patience_ends_s = now_s + self._rules.regroup_stop_timeout_s
        if (
            close.outcome is Outcome.SUCCEEDED
            and self._running
            and not self._is_hurried
            and now_s < self._patience_ends_s
        ):
            self.phase, self.due_s = Phase.CLOSING, self._patience_ends_s
            return []
        return self._stop(self._rules.stop_timeout_s, self._of_end(close))

    def _wait_for_own_end(self, now_s: float) -> list[do.Action]:
        assert self._closed is not None
        return self._close_down(self._closed, now_s)

    def _stop(
        self,
        grace_s: float,
        after: End | Exception | None,
        first_signal: int = signal.SIGTERM,
        *,
        kept: tuple[int, ...] = (),
    ) -> list[do.Action]:
        self.phase, self._after_stop, self._is_given_up = Phase.STOPPING, after, False
        self._kept = kept
        ending = tuple(each for each in self._running if each in self._ending)
        return [do.StopWorkers(grace_s, int(first_signal), kept, ending)]

    def _wait_for_stop(self, now_s: float) -> list[do.Action]:
        """Stop the workers with a grace. A second signal to the agent ends the grace."""
        answer = self._take_answer()
        if isinstance(answer, on.Stopped):
            left = [do.Say(agent_messages.of_unkillable(answer.left))] if answer.left else []
            return [*left, *self._go_on()]
        if self._is_hurried and not self._is_given_up:
            self._is_given_up = True
            return [do.Say("second signal: killing the workers"), do.KillWorkers()]
        if self._signals and self._after_stop is None:
            # A signal to all nodes reaches some first, and their departure ends the round of this
            # one. Its workers save their state now, and must have the same time for it.
            self._after_stop = self._end_by_signal()
            grace_s, said = self._notice()
            return [said, do.LengthenStop(grace_s)]
        if self._drained is not None and self._after_stop is None:
            # As with a signal: another node may have been drained just before.
            self._after_stop = End(ExitCode.DONE)
            grace_s = self._rules.stop_timeout_s
            said = do.Say(agent_messages.of_drain(self._drained, grace_s))
            return [said, do.LengthenStop(grace_s)]
        return []

    def _go_on(self) -> list[do.Action]:
        if self._running and self._after_stop is not None:
            # They were kept for a round that this agent does not wait for any more.
            grace_s = self._notice()[0] if self._signals else self._rules.stop_timeout_s
            first = self._signals[0] if self._signals else signal.SIGTERM
            return self._stop(0.0 if self._is_hurried else grace_s, self._after_stop, first)
        match self._after_stop:
            case None:
                return self._ask_round()
            case End() as end:
                return self._end_with(end)
            case error:
                return self._end_by_error(error)

    def _wait_for_others(self, now_s: float) -> list[do.Action]:
        """All workers have finished: wait for the other nodes, as their failures fail the run."""
        if self._closed is not None:
            return self._end_of_run(self._closed, now_s)
        if self._signals:
            return self._leave_by_signal()
        if isinstance(self._gone, errors.EvictedError):
            return self._end_by_error(self._gone)
        if self._gone is None:
            return []
        text = "this node's workers have finished; the end of the run is unknown: "
        return self._end_with(End(ExitCode.DONE, f"{text}{self._gone.message}"))

    # -- the end of the agent ----------------------------------------------------------------------

    def _end_by_signal(self) -> End:
        return End(128 + self._signals[0])

    def _end_of_run(self, close: CloseRecord, now_s: float) -> list[do.Action]:
        if self._running:
            return self._close_down(close, now_s)
        return self._end_with(self._of_end(close))

    def _of_end(self, close: CloseRecord) -> End:
        text = agent_messages.of_end(self._rules.run_id, close)
        found = self.found
        where = agent_messages.of_meeting(found, self._own, close) if found is not None else ""
        return End(errors.exit_code_of(close.outcome), f"{text}\n{where}" if where else text)

    def _end_by_error(self, error: Exception) -> list[do.Action]:
        """End with an error. After the first round, some errors are ends of the run."""
        if self._running and self.phase in (Phase.CHECKING, Phase.GATHERING, Phase.STARTING):
            return self._stop(self._rules.stop_timeout_s, error)
        if self._number > 0:
            if isinstance(error, errors.JoinTimeoutError):
                return self._end_with(End(ExitCode.NOT_ENOUGH_NODES, f"error: {error}"))
            if isinstance(error, errors.RunClosedError) and error.close is not None:
                return self._end_with(self._of_end(error.close))
        self.phase, self.error, self._answer = Phase.ENDING, error, None
        return []

    def _end_with(self, end: End) -> list[do.Action]:
        self.phase, self.end, self._answer = Phase.ENDING, end, None
        return [do.Say(end.message, is_trouble=end.code != 0)] if end.message else []

    def _wait_for_let_go(self, now_s: float) -> list[do.Action]:
        return []

    def _wait_for_goodbye(self, now_s: float) -> list[do.Action]:
        if self._take_answer() is not None:
            self.phase = Phase.ENDED
        elif len(self._signals) > self._signals_seen and not self._is_given_up:
            self._is_given_up = True
            text = "second signal: stopping the coordinator hosted here too"
            return [do.Say(text), do.CutLinger()]
        return []


_DECISIONS: Final[dict[Phase, Callable[[AgentMachine, float], list[do.Action]]]] = {
    Phase.NEW: AgentMachine._begin,
    Phase.PREPARING: AgentMachine._prepare,
    Phase.JOINING: AgentMachine._join,
    Phase.CHECKING: AgentMachine._check,
    Phase.GATHERING: AgentMachine._gather,
    Phase.STARTING: AgentMachine._start,
    Phase.WORKING: AgentMachine._work,
    Phase.EXPLAINING: AgentMachine._report,
    Phase.UNWINDING: AgentMachine._unwind,
    Phase.STOPPING: AgentMachine._wait_for_stop,
    Phase.CLOSING: AgentMachine._wait_for_own_end,
    Phase.FINISHED: AgentMachine._wait_for_others,
    Phase.ENDING: AgentMachine._wait_for_let_go,
    Phase.LEAVING: AgentMachine._wait_for_goodbye,
    Phase.ENDED: AgentMachine._wait_for_let_go,
}
