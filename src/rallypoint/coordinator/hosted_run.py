"""One hosted run: steps the core, and carries out its effects.

It decides nothing: an `if` about ranks or rounds belongs in the core. The round's store is in
`store_service`, timers in `run_timers`, the history in `history`. A message to many nodes is
encoded once.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, Protocol

import msgspec

from rallypoint import logs, runtime
from rallypoint.clock import StallProofClock
from rallypoint.coordinator.config import SOFTWARE, CoordinatorConfig
from rallypoint.coordinator.connections import Connections
from rallypoint.coordinator.event_log import EventLog, Events
from rallypoint.coordinator.event_queue import EventQueue
from rallypoint.coordinator.history import History
from rallypoint.coordinator.log_reader import SealedLog
from rallypoint.coordinator.member_table import MemberTable
from rallypoint.coordinator.observer import Observer
from rallypoint.coordinator.progress_view import ProgressView
from rallypoint.coordinator.run_events import ABOUT, EventKind
from rallypoint.coordinator.run_memory import RunMemory
from rallypoint.coordinator.run_timers import RunTimers
from rallypoint.coordinator.session import Session
from rallypoint.coordinator.stack_requests import StackRequests
from rallypoint.coordinator.store_log import LogAppend, StoreLog
from rallypoint.coordinator.store_service import StoreService
from rallypoint.coordinator.supervision import error_text, guarded
from rallypoint.coordinator.timers import ScheduledCall
from rallypoint.core import effects as do
from rallypoint.core import events as on
from rallypoint.core import reasons
from rallypoint.core.agreement import NO_STEP
from rallypoint.core.budget import MemoryBudget
from rallypoint.core.effects import Effect
from rallypoint.core.election import RunState
from rallypoint.core.marking import may_call
from rallypoint.core.membership import Membership
from rallypoint.core.past import NO_PAST, Past
from rallypoint.core.printable import some
from rallypoint.core.progress import Progress
from rallypoint.core.quotas import NOBODY, Account, Idle
from rallypoint.core.ranks import seats_of
from rallypoint.core.reasons import Refusal, RefusalCode, Waiting
from rallypoint.core.store import StoreLimits
from rallypoint.core.store.store import RoundStore
from rallypoint.core.suspension import SuspensionCause
from rallypoint.core.values import (
    CloseRecord,
    ConnectionEnd,
    NodeId,
    Phase,
    RoundRecord,
    Seat,
    Stamp,
)
from rallypoint.ledger.keys import run_key
from rallypoint.security.roles import EVERYBODY
from rallypoint.wire import messages as wire

_log = logging.getLogger("rallypoint.coordinator")


class Logs(Protocol):
    """What a run needs of the logs of its rounds' stores."""

    def open(self, run: HostedRun, store: RoundStore, sealed: SealedLog | None) -> StoreLog | None:
        """The store of the present round with its log; None if the ledger keeps no logs.

        `sealed`: the log that `store` was read from, if it is not new.
        """

    def append(self, run: HostedRun, log: StoreLog, record: LogAppend) -> None:
        """Write a record of the round's log; `StoreService.appended` follows."""


class Ownership(Protocol):
    """What a run needs of the part that keeps its records and decides whether it is owned.

    In `memory_ownership` this process owns every run. In `run_ownership` it owns a run while its
    lease in the ledger is valid.
    """

    @property
    def is_in_memory(self) -> bool:
        """Whether the runs end with this process. Then there is no lease to check."""

    def commit(self, run: HostedRun, record: RoundRecord | CloseRecord) -> None:
        """Keep a record; Committed, CommitRefused or LedgerLost follows."""

    def write_marks(self, run: HostedRun, effect: do.WriteMarks) -> None:
        """Keep the marks of the round's members; MarksWritten follows."""

    @property
    def logs(self) -> Logs | None:
        """The logs of the rounds' stores; None if none are kept."""

    def check_lease(self) -> None:
        """Suspend all runs if the last renewal is too old. Call this before any decision."""

    def may_answer(self, run_id: str) -> bool:
        """Whether no other coordinator can own the run. If not, `lease_confirmed` follows later."""

    def connection_lost(self) -> None:
        """See RunOwnership."""

    def beat(self) -> int:
        """A counter that advances while the lease is renewed; in memory, with each call."""

    def gave_up(self, run: HostedRun) -> None:
        """An unexpected error has ended the run on this coordinator."""


class Host(Protocol):
    """What a run needs of its coordinator."""

    config: CoordinatorConfig
    clock: StallProofClock
    budget: MemoryBudget
    ledger_id: str
    events: Events

    @property
    def sessions(self) -> Mapping[int, Session]:
        """All connections, by their ids."""

    def call_at(self, due_s: float, callback: Callable[[], None]) -> ScheduledCall:
        """Call back at that time."""

    def listen(self, session: Session, due_s: float) -> None:
        """Check at `due_s` whether the session was silent for too long."""

    def other_runs(self, run: HostedRun) -> tuple[str, ...]:
        """Runs that may have the missing nodes of this one."""

    def run_is_busy(self, run: HostedRun) -> None:
        """A node has connected to the run."""

    def run_is_idle(self, run: HostedRun) -> None:
        """No node is connected to the run any more."""

    def run_closed(self, run: HostedRun) -> None:
        """The run has closed."""

    def drop_run(self, run: HostedRun) -> None:
        """Forget the run: another coordinator owns it, or an error has ended it here."""


class HostedRun:
    """One run on this coordinator. Owned by one thread, as the coordinator is.

    On a ledger the run is first claimed: until `begin`, events are only queued. This class must not
    have rules of the protocol, calls of the store, or I/O.
    """

    def __init__(
        self, host: Host, run_id: str, membership: Membership, ownership: Ownership
    ) -> None:
        self._now_s = host.clock.now_s  # Stored, because each message reads it twice.
        now_s = self._now_s()
        self.run_id = run_id
        self.ledger_key = run_key(run_id)
        self.begun_s = now_s
        self.membership = membership
        self.is_leased = not ownership.is_in_memory
        """Whether this process owns the run by a lease, which may end. It never changes."""
        self.is_claimed = ownership.is_in_memory
        """Whether this process owns the run."""
        self.has_failed = False
        self.is_forgotten = False
        """Whether the coordinator has forgotten this run."""
        self.share = host.budget.share(f"run {run_id!r}")
        """The memory of the run, in bytes."""
        self.memory = RunMemory(self.share, host.config.rounds_remembered)
        self.pins = self.memory.pins
        self.history = History(host.config.rounds_remembered, now_s, host.config.clock_host)
        self.account: Account = NOBODY
        """The account that began the run."""
        self.arrivals = 0
        """How many nodes were admitted as new members."""
        self.empty_since_s: float | None = now_s
        """Since when the run has had no members; None if it has some."""
        self.idle_since_s = now_s
        self.look_due_s = math.inf
        """When to check whether this run is over, if no node is connected."""
        # Until the run is claimed its messages have term 0, which is no term, so that nodes do not
        # take them for messages of an older coordinator.
        term = 0 if self.is_leased else membership.term
        self.stamp = Stamp(host.ledger_id, term, membership.number if term else 0)
        """The stamp of every message of this run."""
        self.events = EventLog(host.events, run_id, membership.term)
        """What happened, for people."""
        self.observer = Observer(self.events, host.events, membership, self.history, now_s)
        self._host = host
        self._ownership = ownership
        self.connections = Connections(membership, self.post, host.listen, self._now_s)
        self.stacks = StackRequests(membership, self.connections, self.post)
        """Questions to nodes where their workers stand."""
        self._unseated: dict[Session, None] = {}
        """Nodes whose seats are sent when the lease is valid again."""
        sessions = self.connections.by_name
        self.store = StoreService(self, ownership, sessions, host.budget, host.call_at, self._now_s)
        self._timers = RunTimers(
            host.call_at,
            lambda timer: self.post(on.TimerFired(timer)),
            lambda name: membership.roster.get(name) is not None,
        )
        self._queue = EventQueue()
        self._is_draining = False
        self._table = MemberTable(self.memory.count_table)

    # -- events in -----------------------------------------------------------------------------

    def post(self, event: on.Event) -> None:
        """Give the core an event. Events that its effects cause are taken in order, after it."""
        if self.has_failed:
            return
        if self._is_draining:
            self._queue.append(event)
            return
        if self.is_leased and self.is_claimed:
            # The event must find the run SUSPENDED if the lease is not valid any more.
            self._ownership.check_lease()
        if not self.is_claimed:
            self._queue.append(event)
        else:
            self._drain(event)

    def post_first(self, event: on.Event) -> None:
        """Give the core this event before all that wait for the claim."""
        self._queue.appendleft(event)

    def _drain(self, event: on.Event) -> None:
        self._is_draining = True
        try:
            self._step(event)
            while self._queue:
                self._step(self._queue.popleft())
        except Exception as error:  # noqa: BLE001 - it ends the run, and nothing else
            self.fail(error)
        self._is_draining = False

    def _step(self, event: on.Event) -> None:
        now_s = self._now_s()
        phase = self.membership.phase_of_work
        observer = self.observer
        before = observer.before(event, now_s) if type(event) in observer.watched else None
        effects = self.membership.step(event, now_s)
        is_empty = not len(self.membership.roster)
        if is_empty != (self.empty_since_s is not None):
            self.empty_since_s = now_s if is_empty else None
            if not is_empty:
                if not self.events.last_seq:
                    self.observer.record(EventKind.BEGAN)
                self.history.first_arrival(now_s)
        if effects:
            self.history.observe(effects, now_s, runtime.here().wall_s(), phase)
        if effects or before is not None:
            observer.after(event, before, effects, now_s)
        if effects:
            self._refresh_stamp()
            for effect in effects:
                _EXECUTE[type(effect)](self, effect)

    def _place(self) -> dict[str, Any]:
        """The fields of a log record about this run."""
        membership = self.membership
        return logs.fields(self.run_id, membership.term, membership.number)

    def _refresh_stamp(self) -> None:
        membership = self.membership
        if (self.stamp.term, self.stamp.round) != (membership.term, membership.number):
            self.stamp = Stamp(self._host.ledger_id, membership.term, membership.number)
            self.store.stamp = self.stamp

    # -- the run begins, and ends here ---------------------------------------------------------

    def begin(
        self,
        state: RunState,
        sealed: SealedLog | None = None,
        former_host: NodeId | None = None,
        *,
        store_lost: str = "",
        unsure_s: float = 0.0,
        formers: tuple[str, ...] = (),
    ) -> None:
        """This process owns the run now: continue where the last owner left it (R5, R10).

        `sealed`: the log of its round's store. `former_host`: the node that hosted the last
        coordinator, if that one's lease ran out. `store_lost`: why the store is missing; then the
        round has ended. `unsure_s`: for so long a former owner may be alive, see
        RunRegister. `formers`: the last processes that owned the run. Raises UnreadableLogError,
        and then has changed nothing.
        """
        now_s = self._now_s()
        store = sealed.replay.store if sealed is not None else None
        effects = self.membership.restore(
            state,
            attach_grace_s=self._host.config.attach_grace_s,
            now_s=now_s,
            former_host=former_host,
            store_lost=store_lost,
        )
        self._refresh_stamp()
        self.events.term, self.events.round = state.term, state.number
        last = state.round if state.close is None else None
        ended = state.marks.ended if state.marks.round == state.number else None
        self.history.restored(last, state.past, ended, now_s)
        if formers or last is not None or state.close is not None or state.past != NO_PAST:
            self.observer.record(EventKind.TOOK_OVER)
            earlier = self._host.events.earlier
            if earlier is None:
                self.observer.recall(state)
            else:
                guarded(self._host.events.failed, earlier, self, state, formers)
        if last is not None:
            self.history.observe(effects, now_s, runtime.here().wall_s())
            # What an earlier coordinator saw, it has recorded.
            if store_lost and ended is None:
                self.observer.after(None, None, effects, now_s)
            if not store_lost:
                self._open_store(last, store, sealed)
                # R10: a former owner whose lease was revoked early may still answer reads.
                if unsure_s:
                    self.store.hold(may_call(last, state.marks), unsure_s)
        for effect in effects:
            _EXECUTE[type(effect)](self, effect)
        self.is_claimed = True
        self.empty_since_s = None if len(self.membership.roster) else now_s
        if self._queue and not self._is_draining:
            self._drain(self._queue.popleft())

    def turn_away(self, refusal: Refusal) -> None:
        """Refuse all nodes that wait for the run to be claimed."""
        for event in self._queue.take_attached():
            session = self._host.sessions.get(event.connection_id)
            if session is not None:
                session.refuse(refusal)

    def fail(self, error: Exception) -> None:
        """End the run on this coordinator after an unexpected error in it. Other runs go on.

        Its state cannot be trusted any more. On a ledger the run continues from its register, here
        or on another coordinator. In memory it is lost, and its nodes are told so. Idempotent.
        """
        if self.has_failed:
            return
        self.has_failed = True
        self.observer.record(EventKind.GAVE_UP, detail=error_text(error))
        what = ABOUT[EventKind.GAVE_UP].text
        _log.error("run %s: %s", self.run_id, what, exc_info=error, extra=self._place())
        what = f"an unexpected error in the coordinator of run {self.run_id!r}: {error_text(error)}"
        refusal = Refusal(RefusalCode.MOVED, what)
        if not self.is_leased:
            hint = "start the run again; the coordinator's log has the traceback for a bug report"
            refusal = Refusal(RefusalCode.RUN_LOST, what, hint)
        self._refuse_all(refusal)
        self._ownership.gave_up(self)
        self._host.drop_run(self)

    def supervised(self, work: Callable[..., None], *args: Any) -> None:
        """Do some work. An unexpected error in it ends only this run."""
        if not self.has_failed:
            guarded(self.fail, work, *args)

    def _refuse_all(self, refusal: Refusal) -> None:
        """Refuse every node, including those that wait for a name or for the claim. O(N)."""
        for session in [each for each in self._host.sessions.values() if each.run is self]:
            session.refuse(refusal)
        self.turn_away(refusal)

    def past(self) -> Past:
        """The part of the run's history that the ledger keeps."""
        return self.history.kept(self._now_s(), runtime.here().wall_s())

    def forgotten(self) -> None:
        """The coordinator has forgotten this run: stop its timers, and release its memory."""
        self.is_forgotten = True
        # Drop the parts' references to the run. Otherwise its memory would stay until Python's
        # garbage collector runs.
        self._timers.close()
        self.connections.close()
        self.stacks.forgotten()
        self.store.close()
        self.share.close()
        guarded(self._host.events.failed, self.events.close)

    # -- connections ---------------------------------------------------------------------------

    def connection_lost(
        self, session: Session, node: NodeId, how: ConnectionEnd, why: str = ""
    ) -> None:
        """A connection that had attached, or waited for that, is closed."""
        if self.connections.remove(session, node.name):
            self._has_fewer()
        self._unseated.pop(session, None)
        self.store.forget_session(session)
        self.post(on.ConnectionLost(node, session.connection_id, how, why))
        if how is not ConnectionEnd.OURS:
            self._ownership.connection_lost()
        if not self.is_claimed:
            self._queue.connection_lost()

    def _has_fewer(self) -> None:
        if not len(self.connections) and not self.has_failed:
            self._host.run_is_idle(self)

    # -- queries of nodes ----------------------------------------------------------------------

    def beat(self) -> int:
        """A counter that advances while this coordinator may decide for the run."""
        return self._ownership.beat()

    def waiting(self, sees: Callable[[str], bool] = EVERYBODY.sees) -> Waiting | None:
        """Why there is no round yet. It names other runs only if `sees` says so."""
        waiting = self.membership.waiting(self._now_s())
        if waiting is None:
            return None
        others = tuple(filter(sees, self._host.other_runs(self)))
        roster = self.membership.roster
        lost = [each for each in self.history.lost_lately() if each not in roster]
        if not others and not lost:
            return waiting
        names = reasons.first_names(lost)
        return msgspec.structs.replace(waiting, other_runs=others, lost=names, lost_count=len(lost))

    def restarts_spent(self) -> int:
        """What counts against the restart budget now."""
        return self.membership.spent(self._now_s())

    def phase_s(self) -> float | None:
        """How long the run has been in its phase, as far as this coordinator has seen."""
        membership, now_s = self.membership, self._now_s()
        phase = membership.phase
        if phase is Phase.SUSPENDED:
            return max(0.0, now_s - membership.suspension.since_s)
        began_s = self.history.began_s(phase)
        return None if began_s is None else max(0.0, now_s - began_s)

    def send_members(self, session: Session, node: NodeId, request_id: int) -> None:
        """Send the member table of the last round; to a node that is not in it, an empty one."""
        record, number = self.membership.round, self.membership.number
        if record is None or not self.membership.is_of_last_round(node):
            session.send(wire.encode(wire.Members(self.stamp, request_id, number, "", ())))
        else:
            self._table.send(session, self.stamp, request_id, record)

    # -- how far the workers are -----------------------------------------------------------------

    def progressed(self, node: NodeId, progress: Progress) -> None:
        """The node has said how far its workers are."""
        event = on.NodeProgressed(node, progress)
        is_quick = self.is_claimed and not self._is_draining and not self.has_failed
        if not (is_quick and self.membership.progressed(event, self._now_s())):
            self.post(event)

    def progress_view(self) -> ProgressView:
        """How far the workers are, for people."""
        return ProgressView(self.membership, self._now_s())

    def stacks_told(self, node: NodeId, told: wire.StacksTold) -> None:
        """The node has told where its workers stand."""
        self.stacks.told(node, told)

    def _ask_stacks(self, effect: do.AskStacks) -> None:
        text = "run %s: round %d: no worker advances; the nodes are asked where their workers stand"
        _log.warning(text, self.run_id, effect.round, extra=self._place())
        self.stacks.ask_round(self.stamp, effect.serial)

    # -- the lease (on a ledger) ---------------------------------------------------------------

    def lease_confirmed(self) -> None:
        """A renewal has succeeded: send what was held, and continue."""
        self._send_held_seats()
        self.store.release_answers()
        self.post(on.LedgerRestored(SuspensionCause.LEASE))

    # -- effects out ---------------------------------------------------------------------------

    def _set_timer(self, effect: do.SetTimer) -> None:
        self._timers.set(effect, self._now_s())

    def _welcome(self, effect: do.Welcome) -> None:
        session = self._host.sessions.get(effect.connection_id)
        if session is None:
            return  # It disconnected while it waited; its ConnectionLost follows.
        name = effect.node.name
        before = self.connections.by_name.get(name)
        if before is not None and before is not session:
            before.close("the node has resumed on another connection")
        if not len(self.connections):
            self._host.run_is_busy(self)
        self.arrivals += not effect.resumed
        self.memory.count_member(name, session.attach_bytes)
        self.connections.add(session, effect.node)
        settings, standing = self.membership.settings, effect.standing
        assert settings is not None
        heartbeat_s = settings.suspect_after_s / self._host.config.heartbeats_per_suspicion
        welcome = wire.Welcome(
            self.stamp,
            wire.VERSION,
            heartbeat_s,
            standing,
            SOFTWARE,
            in_memory=not self.is_leased,
            lease_ttl_s=self._host.config.lease_ttl_s if self.is_leased else 0.0,
            nodes_max=settings.max_nodes,
            agrees=True,
            takes_unfit=True,
        )
        session.send(wire.encode(welcome))
        if standing.round:
            self.store.member_attached(name)
            if not self.is_leased or self._ownership.may_answer(self.run_id):
                self._send_seat(effect.node, session)
            else:
                self._unseated[session] = None

    def _send_seat(self, node: NodeId, session: Session) -> None:
        record, seat = self.membership.round, self.store.seats.get(node.name)
        if record is not None and seat is not None and self.connections.of(node) is session:
            session.send(wire.encode(wire.Formed(self.stamp, record.head, seat)))

    def _send_held_seats(self) -> None:
        sessions, self._unseated = self._unseated, {}
        for session in sessions:
            if session.node is not None:
                self._send_seat(session.node, session)

    def _refuse(self, effect: do.Refuse) -> None:
        session = self._host.sessions.get(effect.connection_id)
        if session is not None:
            session.refuse(effect.refusal)

    def _supersede(self, effect: do.Supersede) -> None:
        session = self.connections.of(effect.node)
        if session is not None:
            session.refuse(effect.refusal)

    def _ask_to_leave(self, effect: do.AskToLeave) -> None:
        order = effect.order
        asked = wire.AskedToLeave(self.stamp, order.by, order.reason)
        self.connections.send_to(order.node, asked)

    def _evict(self, effect: do.Evict) -> None:
        session = self.connections.of(effect.node)
        if session is not None:
            session.refuse(effect.refusal)

    def _for_people(self, effect: Effect) -> None:
        """The observer makes an event of it."""

    def _commit(self, effect: do.Commit) -> None:
        self._ownership.commit(self, effect.record)

    def _write_marks(self, effect: do.WriteMarks) -> None:
        self._ownership.write_marks(self, effect)

    def _publish(self, effect: do.Publish) -> None:
        record = effect.record
        members, stamp = record.members, self.stamp
        self.memory.past.began(members)
        self._open_store(record)
        head = msgspec.Raw(msgspec.msgpack.encode(record.head))
        sessions = self.connections.of_each(members)
        for session, seat in zip(sessions, self.store.seats.values(), strict=True):
            if session is not None:
                session.send(wire.encode(wire.EncodedFormed(stamp, head, seat)))

    def _open_store(
        self, record: RoundRecord, store: RoundStore | None = None, sealed: SealedLog | None = None
    ) -> None:
        seats = seats_of(record)
        if store is None:
            store = _store_of(record, seats, self._host.config.store_limits)
        named = {m.name: seat for m, seat in zip(record.members, seats, strict=True)}
        logs = self._ownership.logs
        log = logs.open(self, store, sealed) if logs is not None else None
        append = partial(logs.append, self) if logs is not None else None
        self.store.open(named, store, log, append)

    def _break(self, effect: do.Break) -> None:
        text = str(effect.change)
        self.memory.past.ended(effect.change)
        # A node would not recognise the end of a round that it never received.
        self._send_held_seats()
        self._tell_round(wire.encode(wire.Broken(self.stamp, effect.change)))
        self.store.end(f"round {effect.change.round} has ended: {text}")

    def _verdict(self, effect: do.Verdict) -> None:
        self.memory.past.ended(effect.change)
        self._tell_round(wire.encode(wire.CauseFound(self.stamp, effect.change)))

    def _announce(self, effect: do.Announce) -> None:
        text = str(effect.close)
        self.connections.send_to_all(wire.encode(wire.Closed(self.stamp, effect.close)))
        self.store.end(f"the run was closed: {text}")
        self._has_fewer()
        self._host.run_closed(self)

    def _probe_round(self, effect: do.ProbeRound) -> None:
        self._tell_round(wire.encode(wire.Probe(self.stamp)))

    def _tell_drain(self, effect: do.TellDrain) -> None:
        drain = effect.drain
        if effect.to is None:
            who, how = some(drain.nodes, drain.count), "" if drain.is_asked else "do not "
            what = "run %s: %s will leave within %.0f s: %s; the workers %sagree on a step"
            values = (self.run_id, who, drain.left_s, drain.reason, how)
            _log.info(what, *values, extra=self._place())
        self._tell_agreeing(wire.encode(wire.Drains(self.stamp, effect.round, drain)), effect.to)

    def _tell_step(self, effect: do.TellStep) -> None:
        if effect.to is None:
            is_none = effect.step == NO_STEP
            step = "no step: who drained has finished" if is_none else f"step {effect.step}"
            what = "run %s: all workers of round %d stop at %s"
            _log.info(what, self.run_id, effect.round, step, extra=self._place())
        told = wire.StopAt(self.stamp, effect.round, effect.step)
        self._tell_agreeing(wire.encode(told), effect.to)

    def _tell_agreeing(self, payload: bytes, to: NodeId | None) -> None:
        """Send it to the members of the round that understand it, or only to this node."""
        record = self.membership.round
        members = record.members if record else ()
        each_of = self.connections.of_each(members) if to is None else [self.connections.of(to)]
        for session in each_of:
            if session is not None and session.agrees:
                session.send(payload)

    def _tell_round(self, payload: bytes) -> None:
        record = self.membership.round
        for session in self.connections.of_each(record.members if record else ()):
            if session is not None:
                session.send(payload)

    def _probe_node(self, effect: do.ProbeNode) -> None:
        self.connections.send_to(effect.node, wire.Probe(self.stamp))

    def _watch(self, effect: do.Watch) -> None:
        self.connections.send_to(effect.node, wire.WatchHosts(self.stamp, effect.addresses))

    def _ask_witness(self, effect: do.AskWitness) -> None:
        asked = wire.AskWitness(self.stamp, effect.question, effect.host)
        self.connections.send_to(effect.node, asked)

    def _host_judged(self, effect: do.HostJudged) -> None:
        """The event for people says all of it."""

    def _notify(self, effect: do.Notify) -> None:
        settings = self.membership.settings
        assert settings is not None
        standby = wire.Standby(self.stamp, effect.standby, settings.max_nodes, effect.reason)
        self.connections.send_to(effect.node, standby)

    def _forget(self, effect: do.Forget) -> None:
        name = effect.node.name
        session = self.connections.of(effect.node)
        if session is not None:
            self.connections.remove(session, name)
            # Its messages must not count as those of the next node of its name.
            session.node = None
            if not effect.keeps_connection:
                session.close(effect.reason)
            self._has_fewer()
        self.connections.forget(name)
        self.memory.forget_member(name)
        self.store.forget_node(name)

    def _dismiss(self, effect: do.Dismiss) -> None:
        session = self._host.sessions.get(effect.connection_id)
        if session is not None:
            session.close(effect.reason)

    def _step_down(self, effect: do.StepDown) -> None:
        """R5: make every attached node look for the coordinator that owns the run now."""
        message = f"this coordinator no longer owns the run: {effect.reason}"
        self._refuse_all(Refusal(RefusalCode.MOVED, message))
        self._host.drop_run(self)

    # -- for the coordinator and the status ----------------------------------------------------

    @property
    def is_closed(self) -> bool:
        """Whether the run is over."""
        return self.membership.phase is Phase.CLOSED

    @property
    def idle_kind(self) -> Idle:
        """The kind of the run while no node is connected to it."""
        if self.is_closed:
            return Idle.CLOSED
        return Idle.UNFORMED if self.membership.round is None else Idle.EMPTY

    @property
    def attached_count(self) -> int:
        """How many nodes are connected to this run."""
        return len(self.connections)


def store_of(record: RoundRecord, limits: StoreLimits) -> RoundStore:
    """A new, empty store for the members of this round."""
    return _store_of(record, seats_of(record), limits)


def _store_of(record: RoundRecord, seats: list[Seat], limits: StoreLimits) -> RoundStore:
    rows = zip(record.members, seats, strict=True)
    return RoundStore([(m.name, s.first_rank, s.workers) for m, s in rows], limits)


_EXECUTE: dict[type[Effect], Callable[..., None]] = {
    do.SetTimer: HostedRun._set_timer,
    do.Welcome: HostedRun._welcome,
    do.Refuse: HostedRun._refuse,
    do.Supersede: HostedRun._supersede,
    do.AskToLeave: HostedRun._ask_to_leave,
    do.Evict: HostedRun._evict,
    do.Readmit: HostedRun._for_people,
    do.Rescale: HostedRun._for_people,
    do.StayOut: HostedRun._for_people,
    do.KeepStacks: HostedRun._for_people,
    do.LetBackIn: HostedRun._for_people,
    do.Forgive: HostedRun._for_people,
    do.Commit: HostedRun._commit,
    do.WriteMarks: HostedRun._write_marks,
    do.Dismiss: HostedRun._dismiss,
    do.Publish: HostedRun._publish,
    do.Break: HostedRun._break,
    do.Verdict: HostedRun._verdict,
    do.TellDrain: HostedRun._tell_drain,
    do.TellStep: HostedRun._tell_step,
    do.Announce: HostedRun._announce,
    do.ProbeRound: HostedRun._probe_round,
    do.ProbeNode: HostedRun._probe_node,
    do.AskStacks: HostedRun._ask_stacks,
    do.Watch: HostedRun._watch,
    do.AskWitness: HostedRun._ask_witness,
    do.HostJudged: HostedRun._host_judged,
    do.Notify: HostedRun._notify,
    do.Forget: HostedRun._forget,
    do.StepDown: HostedRun._step_down,
}
