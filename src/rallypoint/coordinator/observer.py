"""Makes the events of one run for people, from the input, the effects and the state of its core.

It only reads, and an error in it ends nothing. It runs at each step of the core, so it looks only
at the member that an event names, and in a large run it only counts.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from itertools import islice
from typing import Any, Final

import msgspec

from rallypoint.coordinator.event_log import SUMMARISED_ABOVE, EventLog, Events
from rallypoint.coordinator.history import History
from rallypoint.coordinator.past_events import past_events
from rallypoint.coordinator.run_events import LINE_MAX, LINES_MAX, EventKind, RunEvent
from rallypoint.coordinator.waits import WAIT_MIN_S, Wait, Waits
from rallypoint.core import effects as do
from rallypoint.core import events as on
from rallypoint.core.effects import Effect
from rallypoint.core.election import RunState
from rallypoint.core.membership import Membership
from rallypoint.core.orders import Order
from rallypoint.core.printable import shortened
from rallypoint.core.reasons import RefusalCode, Waiting, first_names
from rallypoint.core.suspension import SuspensionCause
from rallypoint.core.values import (
    NAMES_SHOWN_MAX,
    Change,
    ChangeKind,
    ConnectionEnd,
    Failure,
    MemberState,
    Phase,
    Reachability,
    RoundHead,
    RoundRecord,
)

REFUSED_EVERY_S: Final = 60.0
REFUSALS_KEPT: Final = 64
"""How often refusals of one node for one reason are told, and for how many nodes that is known."""
_COMMITTING: Final = Phase.COMMITTING
_ABOUT_A_MEMBER: Final = frozenset(
    {
        on.NodeReady,
        on.NodeDone,
        on.NodeDeparting,
        on.NodeSilent,
        on.NodeHeard,
        on.ConnectionLost,
        on.WorkerFailed,
    }
)
_ABOUT_THE_LEDGER: Final = frozenset({on.LedgerLost, on.LedgerRestored})
WATCHED: Final = _ABOUT_A_MEMBER | _ABOUT_THE_LEDGER | {on.Committed}
"""The events of the core that change what their effects do not tell."""


_HOW: Final = {
    ConnectionEnd.UNKNOWN: "how is not known",
    ConnectionEnd.PROCESS_ENDED: "its process ended",
    ConnectionEnd.FIN: "its side, or something between, ended it",
    ConnectionEnd.RESET: "it was reset",
    ConnectionEnd.TIMEOUT: "nothing was acknowledged any more",
    ConnectionEnd.CLOSE: "the node closed it",
    ConnectionEnd.OURS: "this coordinator closed it; its log says why",
}
"""How a connection ended, in words."""


class Before(msgspec.Struct, frozen=True):
    """What a step may change: the state of the member, or of the run."""

    state: MemberState | None = None
    reachability: Reachability | None = None
    trouble_since_s: float = 0.0
    number: int = 0
    phase: Phase = Phase.GATHERING
    causes: tuple[SuspensionCause, ...] = ()
    suspended_s: float = 0.0


class _Refusals:
    """Which refusals were told: a node that asks again and again is told once a minute."""

    def __init__(self) -> None:
        self._told: dict[tuple[str, str], tuple[float, int]] = {}
        """Until when refusals of this node for this reason are only counted, and their number."""

    def of(self, key: tuple[str, str], now_s: float) -> int:
        """How many refusals to tell now, with those that were only counted; 0: none."""
        told = self._told
        if key not in told and len(told) >= REFUSALS_KEPT:
            self._told = told = {each: kept for each, kept in told.items() if kept[0] > now_s}
            if len(told) >= REFUSALS_KEPT:
                key = ("", key[1])  # Too many names: only their number is told.
        until_s, counted = told.get(key, (now_s, 0))
        if now_s < until_s:
            told[key] = until_s, counted + 1
            return 0
        told[key] = now_s + REFUSED_EVERY_S, 0
        return counted + 1


class Observer:
    """The events of one run. `history` has seen each step before this."""

    def __init__(
        self, log: EventLog, events: Events, membership: Membership, history: History, now_s: float
    ) -> None:
        self.log = log
        self._events = events
        self._membership = membership
        self._history = history
        self._waits = Waits(now_s)
        self._commit_s = now_s
        self._committed: RoundHead | None = None
        """Of the round that was given to the ledger last."""
        self.watched = WATCHED
        """For which events of the core `before` is to be called."""
        self._told_ready = 0
        """Of a large run, how many of the ready members are in the log."""
        self._refusals = _Refusals()
        log.gather = self._gather

    # -- a step of the core --------------------------------------------------------------------

    def before(self, event: Any, now_s: float) -> Before | None:
        """What to compare after the step of a WATCHED event. None: its effects say all."""
        try:
            return self._before(event, now_s)
        except Exception as error:  # noqa: BLE001 - no event for people ends a run
            self._events.failed(error)
            return None

    def _before(self, event: Any, now_s: float) -> Before | None:
        membership = self._membership
        roster = membership.roster
        kind = type(event)
        if kind in _ABOUT_A_MEMBER:
            member = roster.get(event.node.name)
            if member is None:
                return None
            return Before(
                state=member.state,
                reachability=member.reachability,
                trouble_since_s=member.trouble_since_s,
                number=membership.number,
            )
        if kind is on.Committed:
            return Before(phase=membership.phase_of_work)
        suspension = membership.suspension
        return Before(causes=suspension.causes, suspended_s=now_s - suspension.since_s)

    def after(
        self, event: Any, before: Before | None, effects: Sequence[Effect], now_s: float
    ) -> None:
        """Record what this step has changed. `effects`: what the core has returned."""
        try:
            if before is not None:
                handler = _AFTER.get(type(event))
                if handler is not None:
                    handler(self, event, before, now_s)
            if effects:
                if self.log.is_large:
                    self._gather()
                self._see(event, effects, now_s)
            if before is not None and before.phase is _COMMITTING:
                self._see_not_begun()
            # Members that attach or go change it, and both have effects.
            is_large = len(self._membership.roster) > SUMMARISED_ABOVE
            if is_large is not self.log.is_large:
                self.log.is_large = is_large
                # A thousand nodes that are ready at once cost nothing each: `_gather` counts them.
                self.watched = WATCHED - {on.NodeReady} if is_large else WATCHED
                self._told_ready = self._membership.roster.ready_count
        except Exception as error:  # noqa: BLE001 - no event for people ends a run
            self._events.failed(error)

    def record(self, kind: EventKind, **fields: Any) -> None:
        """Record an event that is no step of the core."""
        try:
            self.log.add(kind, **fields)
        except Exception as error:  # noqa: BLE001 - no event for people ends a run
            self._events.failed(error)

    def recall(self, state: RunState, known: Collection[RunEvent] = ()) -> None:
        """Record what the run's head has of earlier coordinators, besides the `known` events."""
        try:
            ended = state.marks.ended if state.marks.round == state.number else None
            for each in past_events(state.past, state.number, ended, state.close, known):
                self.log.add_late(each)
        except Exception as error:  # noqa: BLE001 - no event for people ends a run
            self._events.failed(error)

    # -- what became of the member that an event names -----------------------------------------

    def _after_ready(self, event: on.NodeReady, before: Before, now_s: float) -> None:
        member = self._membership.roster.living(event.node)
        if member is not None and member.state is MemberState.READY is not before.state:
            name = event.node.name
            self._waits.ready((name,), 1, now_s)
            self.log.add_node(EventKind.READY, name, now_s)

    def _gather(self) -> None:
        """Put the members of a large run that are ready by now into the log. O(1)."""
        if not self.log.is_large:
            return
        membership = self._membership
        count = membership.roster.ready_count
        new, self._told_ready = count - self._told_ready, count
        settings = membership.settings
        if new <= 0 or settings is None:
            return
        latest = membership.roster.latest_ready(max(2, min(new, NAMES_SHOWN_MAX)))
        # The core knows when a node may be let in, which is so long after it was ready.
        asked_s = [member.eligible_s - settings.scale_up_delay_s for member in latest]
        names = [member.name for member in latest[:new]]
        if new > 1 and len(latest) > 1:
            self._waits.ready(names[1:], new - 1, asked_s[1])
        self._waits.ready(names[:1], 1, asked_s[0])
        self.log.add_nodes(EventKind.READY, names, new, self._waits.ready_s)

    def _after_done(self, event: on.NodeDone, before: Before, now_s: float) -> None:
        member = self._membership.roster.living(event.node)
        if member is not None and member.state is MemberState.DONE is not before.state:
            self.log.add_node(EventKind.DONE, event.node.name, now_s)

    def _after_departing(self, event: on.NodeDeparting, before: Before, now_s: float) -> None:
        member = self._membership.roster.living(event.node)
        if member is not None and member.state is MemberState.DEPARTING is not before.state:
            self.log.add_node(EventKind.DEPARTING, event.node.name, now_s, detail=event.reason)

    def _after_silent(self, event: on.NodeSilent, before: Before, now_s: float) -> None:
        member = self._membership.roster.living(event.node)
        if before.reachability is Reachability.CONNECTED and (
            member is not None and member.reachability is Reachability.SILENT
        ):
            self.log.add_node(EventKind.SUSPECT, event.node.name, now_s, event.silent_s)

    def _after_heard(self, event: on.NodeHeard, before: Before, now_s: float) -> None:
        member = self._membership.roster.living(event.node)
        if before.reachability is Reachability.SILENT and (
            member is not None and member.reachability is Reachability.CONNECTED
        ):
            silent_s = now_s - before.trouble_since_s
            self.log.add_node(EventKind.HEARD, event.node.name, now_s, silent_s)

    def _after_lost_connection(
        self, event: on.ConnectionLost, before: Before, now_s: float
    ) -> None:
        roster = self._membership.roster
        member = roster.living(event.node)
        is_new = before.reachability is not Reachability.DISCONNECTED
        # A member that was removed in this step has a LOST or LEFT event.
        if is_new and member is not None and member.reachability is Reachability.DISCONNECTED:
            name = event.node.name
            self.log.add_node(
                EventKind.DISCONNECTED, name, now_s, detail=event.why or _HOW[event.how]
            )

    def _after_failed(self, event: on.WorkerFailed, before: Before, now_s: float) -> None:
        if event.round != before.number:
            return
        log, failure, name = self.log, event.failure, event.node.name
        if log.is_large:
            log.add_node(EventKind.WORKER_FAILED, name, now_s, detail=str(failure))
            return
        log.add(
            EventKind.WORKER_FAILED,
            node=name,
            cause=failure.kind_name,
            detail=str(failure),
            last_lines=_last_lines(failure),
        )

    def _after_ledger(self, event: Any, before: Before, now_s: float) -> None:
        suspension = self._membership.suspension
        new = [each for each in suspension.causes if each not in before.causes]
        # A deposed coordinator has a DEPOSED event.
        if new and new[0] is not SuspensionCause.DEPOSED:
            self.log.add(EventKind.SUSPENDED, cause=new[0].value, detail=event.reason)
        elif before.causes and not suspension.causes:
            cause = event.cause.value
            self.log.add(EventKind.RESTORED, cause=cause, seconds=before.suspended_s)
            self._waits.not_before(now_s)

    def _see_not_begun(self) -> None:
        """A round was written, and is not published."""
        membership = self._membership
        rounds = self._history.rounds
        if membership.phase_of_work is Phase.GATHERING and rounds and not rounds[-1].published:
            why = str(membership.case.change) if membership.case is not None else ""
            self.log.round = membership.number
            self.log.add(EventKind.NOT_BEGUN, detail=why)
            # What was waited for was told: from now on the next round is waited for.
            self._waits.go_on(self._commit_s)

    # -- effects -------------------------------------------------------------------------------

    def _see(self, event: Any, effects: Sequence[Effect], now_s: float) -> None:
        gone: list[Change] = []
        superseded = False
        for effect in effects:
            kind = type(effect)
            if kind is do.Forget:
                assert isinstance(effect, do.Forget)
                if effect.change is not None and not superseded:
                    gone.append(effect.change)
                superseded = False
                continue
            if gone and kind in _ENDINGS:
                # Who is gone comes before what follows from it.
                self._see_gone(gone)
                gone = []
            superseded = kind is do.Supersede or kind is do.Evict
            handler = _SEE.get(kind)
            if handler is not None:
                handler(self, event, effect, now_s)
        if gone:
            self._see_gone(gone)

    def _see_gone(self, gone: list[Change]) -> None:
        """Members were removed: one event for those that went for the same reason."""
        alike: dict[tuple[ChangeKind, str], list[Change]] = {}
        for change in gone:
            alike.setdefault((change.kind, change.detail), []).append(change)
        for (kind, detail), changes in alike.items():
            names = [name for each in changes[:NAMES_SHOWN_MAX] for name in each.nodes]
            is_one = len(changes) == 1
            is_loss = kind is ChangeKind.NODE_LOST
            self.log.add(
                EventKind.LOST if is_loss else EventKind.LEFT,
                node=names[0] if is_one else "",
                nodes=() if is_one else tuple(names),
                count=0 if is_one else len(changes),
                seconds=max(each.since_s for each in changes) if is_loss else None,
                detail=detail,
            )

    def _see_welcome(self, event: Any, effect: do.Welcome, now_s: float) -> None:
        name = effect.node.name
        member = self._membership.roster.get(name)
        if len(self._membership.roster) == 1 and not effect.resumed:
            self._waits.begin(now_s)
        host = member.info.host if member is not None else ""
        kind = EventKind.RESUMED if effect.resumed else EventKind.ATTACHED
        away_s = now_s - member.trouble_since_s if member and member.trouble_since_s else None
        self.log.add_node(
            kind,
            name,
            now_s,
            away_s if effect.resumed else None,
            detail="" if effect.resumed or host == name else host,
        )

    def _see_refusal(self, event: Any, effect: do.Refuse, now_s: float) -> None:
        is_its = isinstance(event, on.NodeAttached) and event.connection_id == effect.connection_id
        refusal = effect.refusal
        if refusal.code is RefusalCode.MOVED:
            return  # The node goes on at the next coordinator.
        name = event.node.name if is_its else ""
        count = self._refusals.of((name, refusal.code.value), now_s)
        if not count:
            return
        self.log.add(
            EventKind.REFUSED,
            node=name,
            count=count if count > 1 else 0,
            cause=refusal.code.value,
            detail=refusal.message,
        )

    def _see_superseded(self, event: Any, effect: do.Supersede, now_s: float) -> None:
        self.log.add(EventKind.SUPERSEDED, node=effect.node.name)

    def _see_drain(self, event: Any, effect: do.AskToLeave, now_s: float) -> None:
        if not effect.is_repeat:
            self._order(EventKind.DRAIN_ASKED, effect.order)

    def _see_eviction(self, event: Any, effect: do.Evict, now_s: float) -> None:
        self._order(EventKind.EVICTED, effect.order)

    def _order(self, kind: EventKind, order: Order) -> None:
        self.log.add(kind, node=order.node.name, by=order.by, detail=order.reason)

    def _see_admission(self, event: Any, effect: do.Readmit, now_s: float) -> None:
        self._order(EventKind.READMITTED, effect.order)

    def _see_scale(self, event: Any, effect: do.Rescale, now_s: float) -> None:
        scale = effect.scale
        self.log.add(
            EventKind.SCALED,
            min_nodes=scale.min_nodes,
            max_nodes=scale.max_nodes,
            by=scale.by,
            detail=scale.reason,
        )

    def _see_stay_out(self, event: Any, effect: do.StayOut, now_s: float) -> None:
        self.log.add(
            EventKind.COOLING, node=effect.name, seconds=effect.left_s, detail=effect.reason
        )

    def _see_stacks(self, event: Any, effect: do.KeepStacks, now_s: float) -> None:
        for each in effect.groups:
            self.log.add(
                EventKind.STACKS,
                nodes=each.nodes,
                count=each.count,
                detail=each.in_words,
                last_lines=each.lines,
            )

    def _see_let_back_in(self, event: Any, effect: do.LetBackIn, now_s: float) -> None:
        self.log.add(EventKind.LET_BACK_IN, node=effect.node.name, detail=effect.reason)

    def _see_forgiven(self, event: Any, effect: do.Forgive, now_s: float) -> None:
        self.log.add(EventKind.FORGIVEN, node=effect.name)

    def _see_host_judged(self, event: Any, effect: do.HostJudged, now_s: float) -> None:
        is_one = effect.count == 1
        self.log.add(
            EventKind.WITNESSED,
            node=effect.nodes[0] if is_one else "",
            nodes=() if is_one else effect.nodes,
            count=0 if is_one else effect.count,
            detail=effect.detail,
        )

    def _see_standby(self, event: Any, effect: do.Notify, now_s: float) -> None:
        if effect.standby:
            self.log.add_node(EventKind.STANDBY, effect.node.name, now_s)

    def _see_timer(self, event: Any, effect: do.SetTimer, now_s: float) -> None:
        kind, delay_s = effect.timer.kind, effect.delay_s
        membership = self._membership
        if kind is do.TimerKind.LAST_CALL:
            ready = membership.roster.ready_count
            self.log.add(EventKind.LAST_CALL, count=ready, seconds=delay_s)
        elif kind is do.TimerKind.PACE:
            self.log.add(EventKind.HELD_BACK, seconds=delay_s)
            self._waits.not_before(now_s + delay_s)
        elif kind is do.TimerKind.MASS:
            names = membership.roster.troubled_names
            first = tuple(islice(names, NAMES_SHOWN_MAX))
            self.log.add(EventKind.GUARDED, nodes=first, count=len(names), seconds=delay_s)

    def _see_commit(self, event: Any, effect: do.Commit, now_s: float) -> None:
        record = effect.record
        # The same record is given to the ledger again after an outage, and nobody was waited for.
        if not isinstance(record, RoundRecord) or record.head == self._committed:
            return
        self._committed, self._commit_s = record.head, now_s
        for each in self._waits.told():
            self._see_wait(each)
        idle_s = self._waits.idle_s(now_s)
        waiting = self._membership.waiting(now_s)
        if idle_s >= WAIT_MIN_S and waiting is not None:
            self._see_absent(waiting, idle_s)

    def _see_wait(self, wait: Wait) -> None:
        self.log.add(
            EventKind.WAITED,
            node=wait.node,
            nodes=() if wait.node else tuple(wait.names),
            count=0 if wait.node else wait.count,
            seconds=wait.seconds,
            detail=wait.detail,
        )

    def _see_absent(self, waiting: Waiting, idle_s: float) -> None:
        """The round is formed without nodes that were waited for."""
        names, count, detail = waiting.missing, waiting.missing_count, "not ready in time"
        if not count:
            lost = [
                each for each in self._history.lost_lately() if each not in self._membership.roster
            ]
            names, count = first_names(lost), len(lost)
            detail = "lost, and not back in time" if lost else "none came"
        self.log.add(EventKind.WAITED, nodes=names, count=count, seconds=idle_s, detail=detail)

    def _see_round(self, event: Any, effect: do.Publish, now_s: float) -> None:
        record = effect.record
        head, rounds = record.head, self._history.rounds
        log = self.log
        if log.waits:
            log.flush()
        log.round = head.number
        self._told_ready = self._membership.roster.ready_count
        gathering_s = rounds[-1].gathering_s if rounds else None
        phases = {}
        if gathering_s is not None:
            phases = {
                "ready_s": max(0.0, self._waits.ready_s - self._waits.began_s),
                "forming_s": max(0.0, self._commit_s - self._waits.ready_s),
                "writing_s": now_s - self._commit_s,
            }
        log.add(
            EventKind.FORMED,
            nodes=tuple(member.name for member in record.members[:NAMES_SHOWN_MAX]),
            count=head.nodes,
            seconds=gathering_s,
            phases=phases,
        )

    def _see_end(self, event: Any, effect: do.Break, now_s: float) -> None:
        change = effect.change
        if change.kind is ChangeKind.NODES_JOINED:
            is_one = change.count == 1
            self.log.add(
                EventKind.LET_IN,
                node=change.nodes[0] if is_one else "",
                nodes=() if is_one else change.nodes,
                count=0 if is_one else change.count,
            )
        rounds = self._history.rounds
        active_s = rounds[-1].active_s if rounds and rounds[-1].number == change.round else None
        # Nodes on standby are ready, and so is the one that has ended the round by asking again.
        self._waits.begin(now_s, has_ready=self._membership.roster.ready_count > 0)
        # Members on standby were told. Who ended the round by asking for the next was not.
        self._told_ready = self._membership.roster.ready_count - isinstance(event, on.NodeReady)
        self.log.add(EventKind.BROKEN, seconds=active_s, **_fields_of(change))

    def _see_verdict(self, event: Any, effect: do.Verdict, now_s: float) -> None:
        self.log.add(EventKind.CAUSE, **_fields_of(effect.change))

    def _see_close(self, event: Any, effect: do.Announce, now_s: float) -> None:
        close = effect.close
        self.log.add(EventKind.CLOSED, cause=close.outcome.value, detail=str(close))

    def _see_step_down(self, event: Any, effect: do.StepDown, now_s: float) -> None:
        kind = EventKind.HANDED_OVER if effect.is_voluntary else EventKind.DEPOSED
        self.log.add(kind, detail=effect.reason)


def _fields_of(change: Change) -> dict[str, Any]:
    return {
        "round": change.round,
        "nodes": change.nodes,
        "count": change.count,
        "cause": change.cause,
        "detail": str(change),
        "last_lines": _last_lines(change.failure),
    }


def _last_lines(failure: Failure | None) -> tuple[str, ...]:
    if failure is None:
        return ()
    # Of a stack, the innermost frames are first.
    lines = failure.last_lines[:LINES_MAX] if failure.is_hang else failure.last_lines[-LINES_MAX:]
    return tuple(shortened(line, LINE_MAX) for line in lines)


_ENDINGS: Final = frozenset({do.Break, do.Verdict, do.Commit, do.Announce})
_AFTER: Final[dict[type[on.Event], Callable[..., None]]] = {
    on.NodeReady: Observer._after_ready,
    on.NodeDone: Observer._after_done,
    on.NodeDeparting: Observer._after_departing,
    on.NodeSilent: Observer._after_silent,
    on.NodeHeard: Observer._after_heard,
    on.ConnectionLost: Observer._after_lost_connection,
    on.WorkerFailed: Observer._after_failed,
    on.LedgerLost: Observer._after_ledger,
    on.LedgerRestored: Observer._after_ledger,
}
_SEE: Final[dict[type[Effect], Callable[..., None]]] = {
    do.Welcome: Observer._see_welcome,
    do.Refuse: Observer._see_refusal,
    do.Supersede: Observer._see_superseded,
    do.AskToLeave: Observer._see_drain,
    do.Evict: Observer._see_eviction,
    do.Readmit: Observer._see_admission,
    do.Rescale: Observer._see_scale,
    do.StayOut: Observer._see_stay_out,
    do.KeepStacks: Observer._see_stacks,
    do.LetBackIn: Observer._see_let_back_in,
    do.Forgive: Observer._see_forgiven,
    do.HostJudged: Observer._see_host_judged,
    do.Notify: Observer._see_standby,
    do.SetTimer: Observer._see_timer,
    do.Commit: Observer._see_commit,
    do.Publish: Observer._see_round,
    do.Break: Observer._see_end,
    do.Verdict: Observer._see_verdict,
    do.Announce: Observer._see_close,
    do.StepDown: Observer._see_step_down,
}
