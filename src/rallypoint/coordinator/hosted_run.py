"""One hosted run: steps the core, and carries out its effects on sessions, timers and the ledger.

Decides nothing: an `if` about ranks or rounds belongs in the core. Everything that goes to many
nodes is encoded once.
"""

from __future__ import annotations

import logging
import math
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import TYPE_CHECKING, Any, Final, Protocol

import msgspec

from rallypoint.coordinator.history import History, PastSizes
from rallypoint.coordinator.holding import Held
from rallypoint.coordinator.log_reader import SealedLog
from rallypoint.coordinator.outgoing import Pins
from rallypoint.coordinator.session import CONNECTION_BYTES, Session
from rallypoint.coordinator.store_log import LogAppend, StoreLog
from rallypoint.coordinator.supervision import guarded, told
from rallypoint.coordinator.timers import ScheduledCall
from rallypoint.core import effects as do
from rallypoint.core import events as on
from rallypoint.core import reasons
from rallypoint.core.budget import HOW_TO_RAISE, Excess
from rallypoint.core.effects import Effect
from rallypoint.core.election import RunState
from rallypoint.core.membership import Membership
from rallypoint.core.past import Past
from rallypoint.core.quotas import NOBODY, Account, Idle
from rallypoint.core.reasons import Refusal, RefusalCode, Waiting
from rallypoint.core.rounds import seats_of
from rallypoint.core.store import BAD_REQUEST, LIMIT, ROUND_ENDED, Answer, StoreFailure, StoreLimits
from rallypoint.core.store.data import Tally
from rallypoint.core.store.store import RoundStore
from rallypoint.core.suspension import SuspensionCause
from rallypoint.core.values import (
    CloseRecord,
    ConnectionEnd,
    NodeId,
    Phase,
    RoundMember,
    RoundRecord,
    Seat,
    Stamp,
    told_rows,
)
from rallypoint.ledger.keys import run_key
from rallypoint.wire import messages as wire
from rallypoint.wire import parts

if TYPE_CHECKING:
    from rallypoint.coordinator.coordinator import Coordinator

_log = logging.getLogger("rallypoint.coordinator")

TIMERS_FEW: Final = 64
"""It is not looked which of so few timers of a run are stale."""
_OF_A_MEMBER: Final = (do.TimerKind.GRACE, do.TimerKind.LOST)
MEMBER_BYTES: Final = 2 * 1024
"""What a member takes besides its names, addresses and labels."""
INFO_COPIES: Final = 4
"""How often those are kept: by the member, in the round, in its table and in what is written."""
QUEUED_FEW: Final = 64
"""So few connections that were lost are left in the queue of a run that has yet to be claimed."""
LISTEN_MAX_S: Final = 60.0
"""A session is looked at this often at least, so that one that has ended is not kept for long."""

Commit = Callable[["HostedRun", RoundRecord | CloseRecord], None]
"""Gives a record to the ledger, and posts Committed, CommitRefused or LedgerLost to the run."""


class Shared(Protocol):
    """What a run on a shared ledger asks for besides commits. See coordinator/run_ownership.py."""

    def new_store(
        self, run: HostedRun, store: RoundStore, sealed: SealedLog | None
    ) -> StoreLog | None:
        """The round's store with its log; None where the ledger keeps none.

        `sealed`: the log that `store` is from, if it is not new.
        """

    def append(self, run: HostedRun, store: StoreLog, record: LogAppend) -> None:
        """Write a record of the round's log; `HostedRun.appended` follows."""

    def note(self, run: HostedRun, effect: do.Note) -> None:
        """Write what is known of the round's members; Noted follows."""

    def stepped_down(self, run: HostedRun) -> None:
        """The run is not this coordinator's any more."""

    def check_lease(self) -> None:
        """Suspend the runs if the lease does not stand; to be called before anything is decided."""

    def may_answer(self, run: HostedRun) -> bool:
        """Whether the lease stands, so that no other coordinator can have the run."""

    def gave_up(self, run: HostedRun) -> None:
        """An unexpected error has ended the run on this coordinator."""


class HostedRun:
    """One run on this coordinator. Owned by one thread, as the coordinator is.

    On a shared ledger the run is first claimed: until `begin`, events only gather.
    """

    def __init__(
        self, coordinator: Coordinator, run_id: str, commit: Commit, shared: Shared | None = None
    ) -> None:
        self._now_s = coordinator.clock.now_s  # Each message asks twice.
        now_s = self._now_s()
        self.run_id = run_id
        self.ledger_key = run_key(run_id)
        self.begun_s = now_s
        self.membership = Membership(
            run_id,
            ledger_id=coordinator.ledger_id,
            term=max(coordinator.term, coordinator.floor_term + 1),
            floor=coordinator.floor_number,
            members_max=coordinator.config.members_max,
            table_bytes_max=coordinator.table_bytes_max,
            has_successor=shared is not None,
        )
        self.share = coordinator.budget.share(f"run {run_id!r}")
        """What the run keeps, in bytes."""
        self.pins = Pins(self.share.add)
        self._kept_store = 0
        self._tally: Tally | None = None
        self._kept_members: dict[str, int] = {}
        self._past = PastSizes(coordinator.config.rounds_remembered, self.share.add)
        self.history = History(
            coordinator.config.rounds_remembered, now_s, coordinator.config.clock_host
        )
        self.store: RoundStore | StoreLog | None = None
        self.is_claimed = shared is None
        self.has_failed = False
        self._ownership = shared
        self.empty_since_s: float | None = now_s
        self._coordinator = coordinator
        self._commit = commit
        self._sessions: dict[str, Session] = {}
        self._held = Held(count=self.share.add)
        self._seats: dict[str, Seat] = {}
        self._silent: dict[str, NodeId] = {}
        self.account: Account = NOBODY
        """Who has begun it."""
        self.arrivals = 0
        """How many nodes were let in that were no members."""
        self.idle_since_s = now_s
        self.look_due_s = math.inf
        """When the coordinator looks whether this run is over, if nobody is connected."""
        self._store_timer: ScheduledCall | None = None
        self._timers: dict[tuple[do.TimerKind, str], ScheduledCall] = {}
        self._timers_looked_at = TIMERS_FEW
        self._is_forgotten = False
        self._store_due_s: float | None = None
        self._queue: deque[on.Event] = deque()
        self._lost_in_queue = 0
        self._is_draining = False
        # A run that has yet to be claimed has no term: a node must not take what is said of it for
        # the words of an older coordinator.
        term = self.membership.term if shared is None else 0
        self._stamp = Stamp(coordinator.ledger_id, term, self.membership.number if term else 0)
        self._table: tuple[int, msgspec.Raw] | None = None
        self._kept_table = 0

    # -- events in -----------------------------------------------------------------------------

    def post(self, event: on.Event) -> None:
        """Give the core an event. Those that its effects bring are taken in order, after it."""
        if self.has_failed:
            return
        if self._is_draining:
            self._queue.append(event)
            return
        if self._ownership is not None:
            self._check_lease()
        if not self.is_claimed:
            self._queue.append(event)
        else:
            self._drain(event)

    def _check_lease(self) -> None:
        """What comes in must find the run SUSPENDED if the lease does not stand any more."""
        if self._ownership is not None and self.is_claimed:
            self._ownership.check_lease()

    def _drain(self, event: on.Event) -> None:
        self._is_draining = True
        try:
            self._step(event)
            while self._queue:
                self._step(self._queue.popleft())
        except Exception as error:  # noqa: BLE001 - it ends the run, and nothing else
            self.fail(error)
        self._is_draining = False

    def fail(self, error: Exception) -> None:
        """End the run on this coordinator after an unexpected error in it. Its neighbours go on.

        Nothing of its state can be trusted any more. On a shared ledger it goes on from its
        register, here or elsewhere; in memory it is lost, and its nodes are told so. Idempotent.
        """
        if self.has_failed:
            return
        self.has_failed = True
        _log.error("run %s: ended here by an unexpected error", self.run_id, exc_info=error)
        self._refuse_all(self._failure_refusal(error))
        if self._ownership is not None:
            self._ownership.gave_up(self)
        else:
            self._coordinator.run_lost(self)

    def _refuse_all(self, refusal: Refusal) -> None:
        """Refuse all nodes: also those that wait for a name, or for the run to be claimed. O(N)."""
        for session in [each for each in self._coordinator.sessions.values() if each.run is self]:
            session.refuse(refusal)
        self.turn_away(refusal)

    def _failure_refusal(self, error: Exception) -> Refusal:
        what = f"an unexpected error in the coordinator of run {self.run_id!r}: {told(error)}"
        if self._ownership is not None:
            return Refusal(RefusalCode.MOVED, what)
        hint = "start the run again; the coordinator's log has the traceback for a bug report"
        return Refusal(RefusalCode.RUN_LOST, what, hint)

    def supervised(self, work: Callable[..., None], *args: Any) -> None:
        """Do what belongs to this run alone: an unexpected error ends it, and nothing else."""
        if not self.has_failed:
            guarded(self.fail, work, *args)

    def begin(
        self,
        state: RunState,
        sealed: SealedLog | None = None,
        former_host: NodeId | None = None,
        *,
        store_lost: str = "",
    ) -> None:
        """The run is this coordinator's: go on where the last one left it (R5, R10).

        `sealed`: the log of its round's store. `former_host`: the node that the last coordinator
        ended with, if it did. `store_lost`: why there is no store though there should be; then the
        round has ended. Raises UnreadableLogError, before anything is done.
        """
        now_s = self._now_s()
        grace_s = self._coordinator.config.attach_grace_s
        store = sealed.replay.store if sealed is not None else None
        effects = self.membership.restore(
            state,
            attach_grace_s=grace_s,
            now_s=now_s,
            former_host=former_host,
            store_lost=store_lost,
        )
        self._refresh_stamp()
        last = state.round if state.close is None else None
        ended = state.marks.ended if state.marks.round == state.number else None
        self.history.restored(last, state.past, ended, now_s)
        if state.round is not None and state.close is None:
            self.history.observe(effects, now_s, time.time())
            if not store_lost:
                self._open_store(state.round, store, sealed)
        for effect in effects:
            _EXECUTE[type(effect)](self, effect)
        self.is_claimed = True
        self.empty_since_s = None if len(self.membership.roster) else now_s
        if self._queue and not self._is_draining:
            self._drain(self._queue.popleft())

    def turn_away(self, refusal: Refusal) -> None:
        """Refuse all that wait for the run to be claimed."""
        events, self._queue = self._queue, deque()
        for event in events:
            session = (
                self._coordinator.sessions.get(event.connection_id)
                if isinstance(event, on.NodeAttached)
                else None
            )
            if session is not None:
                session.refuse(refusal)

    def _step(self, event: on.Event) -> None:
        now_s = self._now_s()
        phase = self.membership.phase_of_work
        effects = self.membership.step(event, now_s)
        is_empty = not len(self.membership.roster)
        if is_empty != (self.empty_since_s is not None):
            self.empty_since_s = now_s if is_empty else None
            if not is_empty:
                self.history.first_arrival(now_s)
        if effects:
            loss = self.history.observe(effects, now_s, time.time(), phase)
            if loss is not None:
                when = reasons.when_lost(loss)
                _log.info("run %s: %s, %s", self.run_id, loss.text, when)
            self._refresh_stamp()
            for effect in effects:
                _EXECUTE[type(effect)](self, effect)

    def past(self) -> Past:
        """What the ledger keeps of the run's history."""
        return self.history.kept(self._now_s(), time.time())

    def _refresh_stamp(self) -> None:
        membership = self.membership
        if (self._stamp.term, self._stamp.round) != (membership.term, membership.number):
            self._stamp = Stamp(self._coordinator.ledger_id, membership.term, membership.number)

    def connection_lost(self, session: Session, node: NodeId, how: ConnectionEnd) -> None:
        """A connection that had attached, or wanted to, is closed."""
        if self._sessions.get(node.name) is session:
            del self._sessions[node.name]
            self._silent.pop(node.name, None)
            self._has_fewer()
        self._held.forget(session)
        self.post(on.ConnectionLost(node, session.connection_id, how))
        if not self.is_claimed:
            self._lost_in_queue += 1
            if self._lost_in_queue > max(QUEUED_FEW, len(self._queue) // 4):
                self._drop_those_that_went()

    def _drop_those_that_went(self) -> None:
        """Forget nodes that came and went while the run had yet to be claimed.

        The ledger may be away for hours, and they may come and go as often as they like. One that
        was a member has its grace all the same, from the takeover on. O(1) over many of them.
        """
        gone = {each.connection_id for each in self._queue if isinstance(each, on.ConnectionLost)}
        attached = (on.NodeAttached, on.ConnectionLost)
        self._queue = deque(
            each
            for each in self._queue
            if not (isinstance(each, attached) and each.connection_id in gone)
        )
        self._lost_in_queue = 0

    def _has_fewer(self) -> None:
        if not self._sessions and not self.has_failed:
            self._coordinator.run_is_idle(self)

    # -- silence -------------------------------------------------------------------------------

    def heard(self, session: Session, node: NodeId) -> None:
        """Any message is a sign of life: so this is all that it costs."""
        session.heard_s = self._now_s()
        if self._silent and node.name in self._silent:
            self._listen(session, node)

    def _listen(self, session: Session, node: NodeId) -> None:
        """From now on it is noticed if nothing is heard of it."""
        if self._silent.pop(node.name, None) is not None:
            self.post(on.NodeHeard(node))
        self._listen_until(session, session.heard_s)

    def _listen_until(self, session: Session, now_s: float) -> None:
        settings = self.membership.settings
        if settings is not None:
            due_s = session.heard_s + settings.suspect_after_s
            self._coordinator.listen(session, min(due_s, now_s + LISTEN_MAX_S))

    def check_silence(self, session: Session, now_s: float) -> None:
        """Tell the core if this node was not heard for `suspect_after_s`.

        Each session is looked at about once in that time, however often it is heard.
        """
        node, settings = session.node, self.membership.settings
        if settings is None or node is None or self._sessions.get(node.name) is not session:
            return
        if session.is_put_off:
            session.heard_s = now_s  # R8: what it says waits here.
        if session.heard_s + settings.suspect_after_s > now_s:
            self._listen_until(session, now_s)
        else:
            self._silent[node.name] = node
            self.post(on.NodeSilent(node, now_s - session.heard_s))

    def hears_another_than(self, name: str) -> bool:
        """Whether a node of another name is attached and not silent. O(1)."""
        is_own_heard = name in self._sessions and name not in self._silent
        return len(self._sessions) - len(self._silent) > is_own_heard

    # -- what nodes ask ------------------------------------------------------------------------

    def stamp(self) -> Stamp:
        """What every message of this run carries."""
        return self._stamp

    def beat(self) -> int:
        """The coordinator's beat: advances while it holds its lease (in memory: always)."""
        return self._coordinator.beat()

    def waiting(self) -> Waiting | None:
        """Why there is no round yet."""
        waiting = self.membership.waiting(self._now_s())
        if waiting is None or not (others := self._coordinator.other_runs(self)):
            return waiting
        return msgspec.structs.replace(waiting, other_runs=others)

    def send_members(self, session: Session, node: NodeId, request_id: int) -> None:
        """The member table of the last round, for a member of it; for others an empty one.

        The table is encoded once per round.
        """
        record = self.membership.round
        number = self.membership.number
        if record is None or not self.membership.is_of_last_round(node):
            session.send(wire.encode(wire.Members(self._stamp, request_id, number, "", ())))
            return
        if self._table is None or self._table[0] != number:
            rows = msgspec.msgpack.encode(told_rows(record.members))
            self._table = (number, msgspec.Raw(rows))
            self.share.add(len(rows) - self._kept_table)
            self._kept_table = len(rows)
        digest = record.head.digest
        message = wire.EncodedMembers(self._stamp, request_id, number, digest, self._table[1])
        if self._kept_table < parts.LARGE_FROM_BYTES:
            session.send(wire.encode(message))
        else:
            session.send_parts(parts.members_parts(message))

    def store_call(self, session: Session, node: NodeId, call: wire.StoreCall) -> None:
        """Apply one call of the round's store, if the node is in the round.

        It was `heard` a moment ago, and its timeout counts from then.
        """
        if self._ownership is not None:
            self._check_lease()
        store = self.store
        if store is None or call.stamp.round != self.membership.number:
            ended = StoreFailure(ROUND_ENDED, f"round {call.stamp.round} has ended")
            self._answer([Answer(node.name, call.request_id, ended)])
        elif node.name not in self._seats:
            # R4: nobody has the store of a round that it is not in.
            outside = StoreFailure(BAD_REQUEST, "this node is not in the round")
            self._answer([Answer(node.name, call.request_id, outside)])
        else:
            if self.share.used > self._coordinator.budget.surely:
                excess = self._no_room_to_call(store, node, call)
                if excess is not None:
                    full = StoreFailure(LIMIT, f"{excess}; {HOW_TO_RAISE}")
                    self._answer([Answer(node.name, call.request_id, full)])
                    return
            self._answer(self._apply(store, node, call, session.heard_s))
            if self._tally is None or self._tally.kept != self._kept_store:
                self._count_store()
            self._arm_store_timer()
            if self._ownership is not None:
                self._write_log()

    def _apply(
        self, store: RoundStore | StoreLog, node: NodeId, call: wire.StoreCall, now_s: float
    ) -> list[Answer]:
        request = (node.name, call.request_id, call.op, call.timeout_s, now_s)
        if isinstance(store, StoreLog):
            return store.apply(*request, call.acknowledged, call.still_open)
        store.acknowledge(node.name, call.acknowledged, call.still_open)
        return store.apply(*request)

    # -- what the run keeps (core/budget.py) ---------------------------------------------------

    def no_room_for(self, name: str) -> Excess | None:
        """Why a node that is no member cannot become one; None if it can, or is one."""
        if name in self._kept_members:
            return None
        return self.share.excess(CONNECTION_BYTES + MEMBER_BYTES)

    def _no_room_to_call(
        self, store: RoundStore | StoreLog, node: NodeId, call: wire.StoreCall
    ) -> Excess | None:
        """Why a call cannot be applied. Then nothing is done, and it may be sent again (R11)."""
        store.acknowledge(node.name, call.acknowledged, call.still_open)
        self._count_store()
        if store.has_seen(node.name, call.request_id):
            return None
        growth = store.growth_of(call.op)
        return self.share.excess(growth) if growth > 0 else None

    def _count_store(self) -> None:
        kept = self.store.footprint() if self.store is not None else 0
        if kept != self._kept_store:
            self.share.add(kept - self._kept_store)
            self._kept_store = kept

    def _count_member(self, name: str, size: int) -> None:
        self.share.add(size - self._kept_members.pop(name, 0))
        if size:
            self._kept_members[name] = size

    # -- answers -------------------------------------------------------------------------------

    def _write_log(self) -> None:
        """R10: what changes the store is in the log before it is acknowledged."""
        if self._ownership is None or not isinstance(self.store, StoreLog):
            return
        record = self.store.take_record()
        if record is not None:
            self._ownership.append(self, self.store, record)

    def appended(self, store: StoreLog) -> None:
        """The record that was being written is in the log of this store."""
        if store is self.store:
            self._answer(store.appended())
            self._write_log()
            self._count_store()

    def store_cancel(self, node: NodeId, request_id: int) -> None:
        """Nobody waits for the call any more."""
        if self.store is not None:
            self.store.cancel(node.name, request_id)
            self._count_store()
            self._arm_store_timer()
            self._write_log()

    def _answer(self, answers: list[Answer]) -> None:
        """R5, R10: an answer is sent only while no other coordinator can have the run."""
        may_answer = self._ownership is None or not answers or self._may_answer()
        for answer in answers:
            session = self._sessions.get(answer.node)
            if session is not None:
                message = wire.StoreAnswer(self._stamp, answer.request_id, answer.result)
                if may_answer:
                    session.answer(message)
                else:
                    self._held.answer(session, wire.encode(message))

    def _may_answer(self) -> bool:
        if self._ownership is None or self._ownership.may_answer(self):
            return True
        self._ownership.check_lease()  # so that `lease_stands` follows
        return False

    def lease_stands(self) -> None:
        """A renewal has succeeded: send what was kept, and go on."""
        for session in self._held.take_seats():
            if session.node is not None:
                self._send_seat(session.node, session)
        self._held.release_answers()
        self.post(on.LedgerRestored(SuspensionCause.LEASE))

    def send_away(self, refusal: Refusal) -> None:
        """Refuse the nodes that cannot find another coordinator by themselves."""
        for session in list(self._sessions.values()):
            if not session.reads_ledger:
                session.refuse(refusal)

    def _arm_store_timer(self) -> None:
        """One timer at most, for the first deadline, and none if nothing waits any more.

        Where the first deadline is a later one by now, the timer stays and arms the next: short
        waits beside a long one would arm the long one's again and again.
        """
        due_s = self.store.next_deadline_s() if self.store else None
        if due_s is not None and self._store_due_s is not None and self._store_due_s <= due_s:
            return
        if self._store_timer is not None:
            self._store_timer.cancel()
        self._store_timer, self._store_due_s = None, due_s
        if due_s is not None:
            expire = partial(self.supervised, self._expire_store)
            self._store_timer = self._coordinator.call_at(due_s, expire)

    def _expire_store(self) -> None:
        self._store_timer = self._store_due_s = None
        if self.store is not None:
            self._answer(self.store.expire(self._now_s()))
            self._count_store()
            self._arm_store_timer()
            self._write_log()

    # -- effects out ---------------------------------------------------------------------------

    def _set_timer(self, effect: do.SetTimer) -> None:
        """The newest timer of a kind and a name is the only one that counts
        (`effects.ScheduledCall`).

        The others go at once: settings of a run may let a timer stand for a year.
        """
        if self._is_forgotten:
            return
        if effect.timer.kind is do.TimerKind.PACE:
            why = "it ends its rounds too often, and the next one is held back"
            _log.warning("run %s: %s for %.1f s", self.run_id, why, effect.delay_s)
        what = effect.timer.kind, effect.timer.name
        before = self._timers.get(what)
        if before is not None:
            before.cancel()
        fire = partial(self._fire, what, effect.timer)
        self._timers[what] = self._coordinator.call_at(self._now_s() + effect.delay_s, fire)
        if len(self._timers) > self._timers_looked_at:
            self._drop_timers_of_former_members()

    def _fire(self, what: tuple[do.TimerKind, str], timer: do.Timer) -> None:
        del self._timers[what]
        self.post(on.TimerFired(timer))

    def _drop_timers_of_former_members(self) -> None:
        for what in list(self._timers):
            kind, name = what
            if kind in _OF_A_MEMBER and self.membership.roster.get(name) is None:
                self._timers.pop(what).cancel()
        self._timers_looked_at = max(TIMERS_FEW, 2 * len(self._timers))  # O(1) a timer

    def end_timers(self) -> None:
        """The run is forgotten here: nothing of it is to come."""
        self._is_forgotten = True
        for timer in self._timers.values():
            timer.cancel()
        self._timers.clear()
        if self._store_timer is not None:
            self._store_timer.cancel()
            self._store_timer = None

    def _welcome(self, effect: do.Welcome) -> None:
        session = self._coordinator.sessions.get(effect.connection_id)
        if session is None:
            return  # It went away while it waited; its ConnectionLost is on the way.
        before = self._sessions.get(effect.node.name)
        if before is not None and before is not session:
            before.close("the node has resumed on another connection")
        session.node = effect.node
        if not self._sessions:
            self._coordinator.run_is_busy(self)
        self._sessions[effect.node.name] = session
        self.arrivals += not effect.resumed
        session.heard_s = self._now_s()
        if effect.node.name not in self._kept_members:
            size = MEMBER_BYTES + INFO_COPIES * session.attach_bytes
            self._count_member(effect.node.name, size)
        self._listen(session, effect.node)
        session.send(self._welcome_message(effect))
        if effect.standing.round and self._may_answer():
            self._send_seat(effect.node, session)
        elif effect.standing.round:
            self._held.seat(session)

    def _welcome_message(self, effect: do.Welcome) -> bytes:
        settings = self.membership.settings
        assert settings is not None
        heartbeat_s = settings.suspect_after_s / self._coordinator.config.heartbeats_per_suspicion
        software = self._coordinator.software
        return wire.encode(
            wire.Welcome(
                self._stamp,
                wire.VERSION,
                heartbeat_s,
                effect.standing,
                software,
                in_memory=self._coordinator.is_kept_here,
            )
        )

    def _send_seat(self, node: NodeId, session: Session) -> None:
        record, seat = self.membership.round, self._seats.get(node.name)
        if record is not None and seat is not None and self._session_of(node) is session:
            session.send(wire.encode(wire.Formed(self._stamp, record.head, seat)))

    def _refuse(self, effect: do.Refuse) -> None:
        session = self._coordinator.sessions.get(effect.connection_id)
        if session is not None:
            session.refuse(effect.refusal)

    def _supersede(self, effect: do.Supersede) -> None:
        session = self._session_of(effect.node)
        if session is not None:
            session.refuse(effect.refusal)

    def _commit_record(self, effect: do.Commit) -> None:
        self._commit(self, effect.record)

    def _note(self, effect: do.Note) -> None:
        assert self._ownership is not None
        self._ownership.note(self, effect)

    def _publish(self, effect: do.Publish) -> None:
        record = effect.record
        self._past.began(record.members)
        self._open_store(record)
        members, stamp = record.members, self._stamp
        head = msgspec.Raw(msgspec.msgpack.encode(record.head))
        sessions = self._sessions_of(members)
        for session, seat in zip(sessions, self._seats.values(), strict=True):
            if session is not None:
                session.send(wire.encode(wire.EncodedFormed(stamp, head, seat)))
        _log.info("run %s: round %d with %d nodes", self.run_id, record.head.number, len(members))

    def _open_store(
        self, record: RoundRecord, store: RoundStore | None = None, sealed: SealedLog | None = None
    ) -> None:
        seats = self.membership.seats()
        self._seats = {m.name: seat for m, seat in zip(record.members, seats, strict=True)}
        if store is None:
            store = _store_of(record, seats, self._coordinator.config.store_limits)
        durable = (
            self._ownership.new_store(self, store, sealed) if self._ownership is not None else None
        )
        self.store = durable or store
        self._tally = store.tally if durable is None else None
        self._count_store()

    def _break(self, effect: do.Break) -> None:
        text = reasons.describe(effect.change)
        self._past.ended(effect.change)
        _log.info("run %s: round %d ended: %s", self.run_id, effect.change.round, text)
        for session in self._held.take_seats():
            # Its node could not place the end of a round of which it was never told.
            if session.node is not None:
                self._send_seat(session.node, session)
        self._tell_round(wire.encode(wire.Broken(self._stamp, effect.change)))
        self._end_store(f"round {effect.change.round} has ended: {text}")

    def _verdict(self, effect: do.Verdict) -> None:
        self._past.ended(effect.change)
        self._tell_round(wire.encode(wire.CauseFound(self._stamp, effect.change)))

    def _announce(self, effect: do.Announce) -> None:
        text = reasons.describe_close(effect.close)
        _log.info("run %s closed: %s", self.run_id, text)
        payload = wire.encode(wire.Closed(self._stamp, effect.close))
        for session in list(self._sessions.values()):
            session.send(payload)
        self._end_store(f"the run was closed: {text}")
        self._has_fewer()
        self._coordinator.on_fewer()

    def _end_store(self, message: str) -> None:
        if self.store is not None:
            self._answer(self.store.end(message))
            self._count_store()

    def _probe_round(self, effect: do.ProbeRound) -> None:
        self._tell_round(wire.encode(wire.Probe(self._stamp)))

    def _probe_node(self, effect: do.ProbeNode) -> None:
        session = self._session_of(effect.node)
        if session is not None:
            session.send(wire.encode(wire.Probe(self._stamp)))

    def _notify(self, effect: do.Notify) -> None:
        session = self._session_of(effect.node)
        if session is not None:
            session.send(wire.encode(wire.Standby(self._stamp, effect.standby)))

    def _forget(self, effect: do.Forget) -> None:
        name = effect.node.name
        session = self._session_of(effect.node)
        if session is not None:
            del self._sessions[name]
            session.node = None  # What it still says must not count for the next of its name.
            if not effect.keeps_connection:
                session.close(effect.reason)
            self._has_fewer()
        self._silent.pop(name, None)
        self._count_member(name, 0)
        self._seats.pop(name, None)  # R4: the round's seat is not the next incarnation's.
        if self.store is not None:
            self.store.forget_node(name)
            self._count_store()

    def _dismiss(self, effect: do.Dismiss) -> None:
        session = self._coordinator.sessions.get(effect.connection_id)
        if session is not None:
            session.close(effect.reason)

    def _step_down(self, effect: do.StepDown) -> None:
        """R5: whoever is attached looks for the coordinator that has the run now."""
        if effect.is_own_wish:
            what = "over" if self.is_closed else "handed over"
            _log.info("run %s: %s, and let go of: %s", self.run_id, what, effect.reason)
        else:
            _log.warning(
                "run %s: this coordinator has been deposed: %s", self.run_id, effect.reason
            )
        message = f"this coordinator has the run no more: {effect.reason}"
        self._refuse_all(Refusal(RefusalCode.MOVED, message))
        if self._ownership is not None:
            self._ownership.stepped_down(self)

    # -- helpers -------------------------------------------------------------------------------

    def _session_of(self, node: NodeId) -> Session | None:
        session = self._sessions.get(node.name)
        return session if session is not None and session.node == node else None

    def _sessions_of(self, members: Iterable[RoundMember]) -> Iterator[Session | None]:
        """The connection of each of them; None for who is not connected, or came back as another.

        O(N) of a round, twice a round: so without a call for each.
        """
        sessions = self._sessions
        for member in members:
            session = sessions.get(member.name)
            node = session.node if session is not None else None
            is_it = node is not None and node.incarnation == member.incarnation
            yield session if is_it else None

    def _tell_round(self, payload: bytes) -> None:
        record = self.membership.round
        for session in self._sessions_of(record.members if record else ()):
            if session is not None:
                session.send(payload)

    @property
    def is_closed(self) -> bool:
        """Whether the run is over."""
        return self.membership.phase is Phase.CLOSED

    @property
    def idle_kind(self) -> Idle:
        """What it is while no node is connected to it."""
        if self.is_closed:
            return Idle.CLOSED
        return Idle.UNFORMED if self.membership.round is None else Idle.EMPTY

    @property
    def attached_count(self) -> int:
        """How many connections have this run."""
        return len(self._sessions)

    def close_sessions(self, reason: str) -> None:
        """Close every connection: the coordinator is going away."""
        for session in list(self._sessions.values()):
            session.close(reason)


def store_of(record: RoundRecord, limits: StoreLimits) -> RoundStore:
    """An empty store for the members of this round."""
    return _store_of(record, seats_of(record), limits)


def _store_of(record: RoundRecord, seats: list[Seat], limits: StoreLimits) -> RoundStore:
    rows = zip(record.members, seats, strict=True)
    return RoundStore([(m.name, s.first_rank, s.workers) for m, s in rows], limits)


_EXECUTE: dict[type[Effect], Callable[..., None]] = {
    do.SetTimer: HostedRun._set_timer,
    do.Welcome: HostedRun._welcome,
    do.Refuse: HostedRun._refuse,
    do.Supersede: HostedRun._supersede,
    do.Commit: HostedRun._commit_record,
    do.Note: HostedRun._note,
    do.Dismiss: HostedRun._dismiss,
    do.Publish: HostedRun._publish,
    do.Break: HostedRun._break,
    do.Verdict: HostedRun._verdict,
    do.Announce: HostedRun._announce,
    do.ProbeRound: HostedRun._probe_round,
    do.ProbeNode: HostedRun._probe_node,
    do.Notify: HostedRun._notify,
    do.Forget: HostedRun._forget,
    do.StepDown: HostedRun._step_down,
}
