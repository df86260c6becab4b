"""The store of a run's present round: it takes calls of its members, and answers them.

The store is a machine without I/O (`core/store`), and so is its log (`store_log`). This part gives
them calls and time, counts their memory, and sends the answers. In memory it answers at once; on a
ledger when the call is in the log and while the lease is valid (R5, R10). It must not handle
membership, or write to the ledger itself.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Any, Protocol

from rallypoint.coordinator.holding import HeldAnswers
from rallypoint.coordinator.session import Session
from rallypoint.coordinator.store_log import LogAppend, StoreLog
from rallypoint.coordinator.timers import ScheduledCall
from rallypoint.core.budget import HOW_TO_RAISE, Excess, MemoryBudget, MemoryShare
from rallypoint.core.store import BAD_REQUEST, LIMIT, ROUND_ENDED, Answer, StoreFailure
from rallypoint.core.store.store import RoundStore
from rallypoint.core.values import NodeId, Seat, Stamp
from rallypoint.wire import messages as wire


class Ownership(Protocol):
    """The lease of the run, as far as the service asks for it."""

    @property
    def is_in_memory(self) -> bool:
        """Whether the run ends with this process. Then the lease is never asked for."""

    def check_lease(self) -> None:
        """Suspend all runs if the lease is not valid."""

    def may_answer(self, run_id: str) -> bool:
        """Whether no other coordinator can own the run."""


class Run(Protocol):
    """What the service needs of its run."""

    run_id: str
    stamp: Stamp
    share: MemoryShare

    def supervised(self, work: Callable[..., None], *args: Any) -> None:
        """Do some work. An unexpected error in it ends the run."""


class StoreService:
    """The store of one run's present round. Owned by one thread, as the run is.

    `sessions`: the connections of the run, by the names of their nodes. `call_at` and `now_s`: the
    coordinator's clock.
    """

    def __init__(
        self,
        run: Run,
        ownership: Ownership,
        sessions: Mapping[str, Session],
        budget: MemoryBudget,
        call_at: Callable[[float, Callable[[], None]], ScheduledCall],
        now_s: Callable[[], float],
    ) -> None:
        self.current: RoundStore | None = None
        """None before the first round, and once the run is forgotten."""
        self.log: StoreLog | None = None
        """The log of `current`, if it has one."""
        self.seats: dict[str, Seat] = {}
        """The members of the round by name. No other node may call (R4)."""
        self.stamp = run.stamp
        """The run's stamp, which is in every answer."""
        self._run: Run | None = run
        self._append: Callable[[StoreLog, LogAppend], None] | None = None
        self._ownership = ownership
        self._is_leased = not ownership.is_in_memory
        self._sessions = sessions
        self._share = run.share
        self._budget = budget
        self._call_at = call_at
        self._now_s = now_s
        self._held = HeldAnswers(count=run.share.add)
        self._not_attached: set[str] = set()
        """R10: members that may still read from a former owner: see `hold`."""
        self._hold_timer: ScheduledCall | None = None
        self._kept = 0
        self._timer: ScheduledCall | None = None
        self._timer_due_s: float | None = None

    # -- rounds --------------------------------------------------------------------------------

    def open(
        self,
        seats: dict[str, Seat],
        store: RoundStore,
        log: StoreLog | None = None,
        append: Callable[[StoreLog, LogAppend], None] | None = None,
    ) -> None:
        """A round begins with this store, and its log if it has one.

        `append` writes a record of the log; `appended` follows.
        """
        self._append = append
        self.seats = seats
        self.current, self.log = store, log
        self._end_hold()
        self._count()

    def hold(self, members: Iterable[str], limit_s: float) -> None:
        """R10: hold all answers of this round until all these members have attached here.

        But no longer than `limit_s`: then no former owner answers any more.

        A former owner may be alive, and answer reads of the members that are attached to it. A
        member that has attached here accepts nothing more from it (R5). Nobody may see a write here
        while another member does not see it there.
        """
        self._not_attached = set(members)
        if self._not_attached and self._run is not None:
            work = partial(self._run.supervised, self._end_hold)
            self._hold_timer = self._call_at(self._now_s() + limit_s, work)

    def member_attached(self, name: str) -> None:
        """A member of the round has attached, as the member that it was."""
        if name in self._not_attached:
            self._not_attached.discard(name)
            if not self._not_attached:
                self._end_hold()

    def _end_hold(self) -> None:
        """No former owner can answer calls of this round any more. Idempotent."""
        self._not_attached = set()
        if self._hold_timer is not None:
            self._hold_timer.cancel()
            self._hold_timer = None
        if self._run is not None and self._ownership.may_answer(self._run.run_id):
            self._held.release()  # Otherwise `release_answers` follows.

    def end(self, message: str) -> None:
        """The round has ended: answer every call that waits."""
        if self.current is not None:
            # R4: no call of this round waits in the next.
            self._answer((self.log or self.current).end(message))
            self._count()

    def forget_node(self, name: str) -> None:
        """The node is no member any more."""
        self.seats.pop(name, None)  # R4: the next incarnation does not have the seat in this round.
        if self.current is not None:
            self.current.forget_node(name)
            self._count()

    def close(self) -> None:
        """The run was forgotten here: drop its store and the held answers."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self.current = self.log = self._run = self._append = None
        self._end_hold()
        self._held = HeldAnswers()

    # -- calls ---------------------------------------------------------------------------------

    def call(self, session: Session, node: NodeId, call: wire.StoreCall) -> None:
        """Apply one call, if the node is in the round.

        The call's timeout counts from when the session was last heard, a moment ago.
        """
        if self._is_leased:
            # R5: before any call takes effect.
            self._ownership.check_lease()
        store = self.current
        # R4: a late call of another round does not reach this one.
        if store is None or call.stamp.round != self.stamp.round:
            ended = StoreFailure(ROUND_ENDED, f"round {call.stamp.round} has ended")
            self._answer([Answer(node.name, call.request_id, ended)])
            return
        if node.name not in self.seats:
            # R4: a node must not use the store of a round that it is not in.
            outside = StoreFailure(BAD_REQUEST, "this node is not in the round")
            self._answer([Answer(node.name, call.request_id, outside)])
            return
        store.acknowledge(node.name, call.acknowledged, call.still_open)
        if self._share.used > self._budget.surely or self._share.group is not None:
            excess = self._no_room(store, node, call)
            if excess is not None:
                full = StoreFailure(LIMIT, f"{excess}; {HOW_TO_RAISE}")
                self._answer([Answer(node.name, call.request_id, full)])
                return
        log = self.log
        answers = (log or store).apply(
            node.name, call.request_id, call.op, call.timeout_s, session.heard_s
        )
        self._answer(answers)
        if log is not None or store.tally.kept != self._kept:
            self._count()
        self._arm_timer()
        if log is not None:
            self._write_log()

    def cancel(self, node: NodeId, request_id: int) -> None:
        """Withdraw a call that waits."""
        if self.current is not None:
            self.current.cancel(node.name, request_id)
            self._count()
            self._arm_timer()
            self._write_log()

    def _no_room(self, store: RoundStore, node: NodeId, call: wire.StoreCall) -> Excess | None:
        """Why a call cannot be applied; None if it can. A refused call may be sent again (R11)."""
        self._count()  # Its acknowledgement has made room.
        # R11: a repeat is answered, however full it is.
        if store.has_seen(node.name, call.request_id):
            return None
        growth = store.growth_of(call.op)
        return self._share.excess(growth) if growth > 0 else None

    def _count(self) -> None:
        kept = self.current.tally.kept if self.current is not None else 0
        if self.log is not None:
            kept += self.log.footprint()
        if kept != self._kept:
            self._share.add(kept - self._kept)
            self._kept = kept

    # -- answers -------------------------------------------------------------------------------

    def _answer(self, answers: list[Answer]) -> None:
        """R5, R10: send an answer only while no other coordinator can own the run."""
        run = self._run
        may_answer = (
            not self._is_leased
            or not answers
            or run is None
            or (not self._not_attached and self._ownership.may_answer(run.run_id))
        )
        for answer in answers:
            session = self._sessions.get(answer.node)
            if session is not None:
                message = wire.StoreAnswer(self.stamp, answer.request_id, answer.result)
                # R10: held until the lease is known to be valid.
                if may_answer:
                    session.answer(message)
                else:
                    self._held.put(session, wire.encode(message))

    def release_answers(self) -> None:
        """The lease is valid again: send the held answers."""
        if not self._not_attached:
            self._held.release()

    def forget_session(self, session: Session) -> None:
        """The connection has ended: drop the answers that were held for it."""
        self._held.forget(session)

    # -- the log -------------------------------------------------------------------------------

    def _write_log(self) -> None:
        """R10: write changes of the store to the log before they are acknowledged."""
        if self._append is not None and self.log is not None:
            record = self.log.take_record()
            if record is not None:
                self._append(self.log, record)

    def appended(self, log: StoreLog) -> None:
        """The record that was being written is now in this log."""
        # R4: not the log of an earlier round.
        if log is self.log:
            self._answer(log.appended())
            self._write_log()
            self._count()

    # -- timeouts ------------------------------------------------------------------------------

    def _arm_timer(self) -> None:
        """Keep one timer, for the first deadline; none if no call waits."""
        due_s = self.current.next_deadline_s() if self.current else None
        # A timer that is due too early stays, and sets the next one when it fires. Otherwise each
        # short wait beside a long one would set the timer again.
        if due_s is not None and self._timer_due_s is not None and self._timer_due_s <= due_s:
            return
        if self._timer is not None:
            self._timer.cancel()
        self._timer, self._timer_due_s = None, due_s
        if due_s is not None and self._run is not None:
            self._timer = self._call_at(due_s, partial(self._run.supervised, self._expire))

    def _expire(self) -> None:
        self._timer = self._timer_due_s = None
        if self.current is not None:
            self._answer((self.log or self.current).expire(self._now_s()))
            self._count()
            self._arm_timer()
            self._write_log()
