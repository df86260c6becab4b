"""One coordinator of a world: the shipped `Membership`, and what its shell does with effects.

The shell of the product (`HostedRun`, `Session`, `Connections`, `RunOwnership`) has sockets, clocks
and memory limits. Here is what of it concerns the protocol, in a few lines each. `RunChecker` sees
each step, so R1 to R6, R8, R13 and R14 are checked in it as in the other tests.

Timers fire in the order of their times. Any message may come before the next one, and the time of
a coordinator goes on only by a timer.
"""

from __future__ import annotations

import enum
from collections.abc import Callable
from typing import Any, Final

import msgspec

from rallypoint.checkers.invariants import check
from rallypoint.checkers.run_checker import RunChecker
from rallypoint.checkers.violations import InvariantViolation
from rallypoint.core import effects as do
from rallypoint.core import events as on
from rallypoint.core.marking import ranks_in
from rallypoint.core.membership import Membership
from rallypoint.core.orders import Scale
from rallypoint.core.ranks import seats_of
from rallypoint.core.reasons import HOST_GONE, Refusal, RefusalCode
from rallypoint.core.suspension import SuspensionCause
from rallypoint.core.values import (
    Address,
    ConnectionEnd,
    MemberState,
    NodeId,
    Outcome,
    Stamp,
    secret_hash,
)
from rallypoint.core.witnesses import MISSED_PART
from rallypoint.simulation.model.canonical import canonical, digest
from rallypoint.simulation.model.register import Register, Write
from rallypoint.wire import messages as wire

RUN: Final = "run"
LEDGER: Final = "ledger"
OPERATOR: Final = "ann"
ATTACH_GRACE_S: Final = 15.0
HEARTBEAT_S: Final = 1.0
BEGAN_S: Final = 64.0


class Lease(enum.StrEnum):
    """What a coordinator knows of its lease."""

    HELD = "held"
    LOST = "lost"
    FROZEN = "frozen"
    """It stands still, and its lease has run out meanwhile."""


class Sent(msgspec.Struct, frozen=True):
    """A message on a connection."""

    slot: int
    message: wire.Message


class Ended(msgspec.Struct, frozen=True):
    """The coordinator closed a connection. What it had sent before still arrives.

    `is_answer`: to a goodbye.
    """

    slot: int
    is_answer: bool = False


class Lost(msgspec.Struct, frozen=True):
    """The coordinator has lost a node because witnesses said that its host is gone."""

    node: NodeId


Output = Sent | Ended | Lost

ORDERS: Final[dict[str, Callable[[NodeId, str, str], on.Event]]] = {
    "order drain": on.DrainRequested,
    "order evict": on.EvictRequested,
    "order admit": on.AdmitRequested,
}
"""What operators ask about a node."""
_NEEDS_THE_LEASE: Final = (
    *(do.Commit, do.WriteMarks, do.Publish, do.Announce, do.Supersede, do.Evict, do.Readmit),
)
"""What a coordinator without its lease must not do."""


class Coordinator:
    """One coordinator. `react` takes an input, changes the state and returns what was sent."""

    def __init__(self, *, has_order: bool = True) -> None:
        self._has_order = has_order
        """Whether it matters in which order nodes arrive: some may have no place."""
        self._outputs: list[Output] = []
        self._owns_nothing()

    def _owns_nothing(self) -> None:
        self.membership: Membership | None = None
        self.checker: RunChecker | None = None
        self.is_alive = True
        self.lease = Lease.HELD
        self.term = 0
        self.now_s = BEGAN_S
        self.timers: dict[tuple[str, str], tuple[float, int, do.Timer]] = {}
        self.serial = 0
        self.writing: Write | None = None
        self.effect: do.Commit | do.WriteMarks | None = None
        """The effect that asked for the write."""
        self.is_written: bool | None = None
        """Whether the register has taken what is being written; None: that is not known yet."""
        self.asked: dict[int, NodeId] = {}
        """The node that has asked to attach on each open connection."""
        self.attached: dict[str, int] = {}
        """The connection of each attached node, by name."""
        self.unseated: dict[int, None] = {}
        """The connections on which a seat is held back until the lease is confirmed."""
        self.silent: dict[str, None] = {}
        self.missed: dict[str, None] = {}
        """The nodes of which two heartbeats are missing."""
        self._queue: list[on.Event] = []

    # -- the state -------------------------------------------------------------------------------

    def key(self) -> bytes:
        """The name of this state."""
        if not self.is_alive:
            return b"dead"
        membership = self.membership
        known = membership._timers._set if membership is not None else {}
        timers = [
            (*name, known.get((timer.kind, timer.name)) == timer.serial, round(due - self.now_s, 3))
            for name, (due, _, timer) in sorted(self.timers.items(), key=lambda each: each[1][:2])
        ]
        shell = (self.term, self.lease, self.is_written, self.writing)
        connections = (
            sorted(self.asked.items()),
            sorted(self.attached.items()),
            sorted(self.unseated),
            sorted(self.silent),
            sorted(self.missed),
        )
        return digest(
            (
                canonical(membership, self.now_s, has_order=self._has_order),
                canonical(membership._clock if membership is not None else None, self.now_s),
                membership is not None and membership.settings is not None,
                timers,
                shell,
                canonical(connections, has_order=True),
            )
        )

    def __getstate__(self) -> dict[str, object]:
        if self.checker is not None:
            self.checker._history.clear()  # Another path may lead here: it has another history.
        return self.__dict__

    @property
    def referenced(self) -> frozenset[int]:
        """The connections that this coordinator knows: no new one may have their number."""
        slots = set(self.asked)
        if self.membership is not None:
            slots.update(each.connection_id for each in self.membership._marking._farewells)
        return frozenset(slots)

    # -- inputs ----------------------------------------------------------------------------------

    def react(self, what: str, *args: Any) -> list[Output]:
        """Take one input. Raises InvariantViolation if a rule is broken by it."""
        self._outputs = []
        INPUTS[what](self, *args)
        return self._outputs

    def _takes_over(self, register: Register, former_host: NodeId | None) -> None:
        self.term = register.term
        self.membership = membership = Membership(RUN, term=register.term)
        self.checker = RunChecker(0)
        self.now_s = BEGAN_S
        self.lease = Lease.HELD
        state = register.state()
        effects = membership.restore(
            state, attach_grace_s=ATTACH_GRACE_S, now_s=self.now_s, former_host=former_host
        )
        self.checker.restored(
            state,
            attach_grace_s=ATTACH_GRACE_S,
            now_s=self.now_s,
            effects=effects,
            former_host=former_host,
        )
        _must_have_taken_over(membership, register)
        self._execute(effects)
        check(membership)

    def _reads(self, slot: int, message: wire.FromNode) -> None:
        if self.membership is None:
            self._refuse(slot, Refusal(RefusalCode.MOVED, "this coordinator does not own the run"))
            return
        if isinstance(message, wire.Attach):
            self.asked[slot] = message.node.id
            shown = secret_hash(message.resume_secret)
            agrees = message.agrees
            asked = on.NodeAttached(
                message.node,
                message.settings,
                slot,
                shown,
                takes_orders=message.takes_orders,
                address=host_of(message.node.id) if message.is_witness else None,
                is_witness=message.is_witness,
                agrees=agrees,
            )
            self._post(asked)
            return
        node = self._node_on(slot)
        if node is None:
            return  # Another node of its name is probed first, or it is not a member any more.
        self._heard(node)
        if isinstance(message, wire.Heartbeat) and message.progress is not None:
            self._progressed(on.NodeProgressed(node, message.progress))
        event = _event(node, message)
        if event is not None:
            self._post(event)

    def _progressed(self, event: on.NodeProgressed) -> None:
        assert self.membership is not None
        if not self.membership.progressed(event, self.now_s):
            self._post(event)

    def _ends(self, slot: int, how: str) -> None:
        self._forget_connection(slot, ConnectionEnd(how))
        self._drain()

    def _timer(self) -> None:
        key = min(self.timers, key=lambda name: self.timers[name][:2])
        due_s, _, timer = self.timers.pop(key)
        self.now_s = max(self.now_s, due_s)
        self._post(on.TimerFired(timer))

    def _silent(self, slot: int) -> None:
        node, membership = self._node_on(slot), self.membership
        assert node is not None
        assert membership is not None
        assert membership.settings is not None
        self.silent[node.name] = None
        self._post(on.NodeSilent(node, membership.settings.suspect_after_s))

    def _misses(self, slot: int) -> None:
        node, membership = self._node_on(slot), self.membership
        assert node is not None
        assert membership is not None
        assert membership.settings is not None
        self.missed[node.name] = None
        self._post(on.BeatsMissed(node, MISSED_PART * membership.settings.suspect_after_s))

    def _heartbeat(self, slot: int) -> None:
        node = self._node_on(slot)
        assert node is not None
        self._heard(node)

    def _heard(self, node: NodeId) -> None:
        if node.name in self.silent or node.name in self.missed:
            self.silent.pop(node.name, None)
            self.missed.pop(node.name, None)
            self._post(on.NodeHeard(node))

    def _is_ordered(self, what: str, node: NodeId | None, size: tuple[int, int] | None) -> None:
        """An operator asks for something."""
        order: on.Event
        if node is not None:
            order = ORDERS[what](node, OPERATOR, "")
        elif size is not None:
            order = on.ScaleRequested(Scale(*size, OPERATOR))
        else:
            order = on.CloseRequested(OPERATOR, Outcome.STOPPED, "", by_operator=True)
        self._post(order)

    def _write_is_decided(self, is_written: bool) -> None:
        """The ledger has decided about the write; its answer has yet to come."""
        self.is_written = is_written

    def _is_answered(self) -> None:
        effect, is_written = self.effect, self.is_written
        self.effect = self.writing = self.is_written = None
        if not is_written:
            self._post(on.CommitRefused("another owner"))
            return
        done = isinstance(effect, do.WriteMarks)
        self._post(on.MarksWritten(effect.serial) if done else on.Committed())  # type: ignore[union-attr]
        self._post(on.LedgerRestored(SuspensionCause.COMMIT))

    def _is_limited(self) -> None:
        """The ledger does not accept the write now. It is tried again."""
        self._post(on.LedgerLost("too large", None, SuspensionCause.COMMIT))

    def _loses_lease(self) -> None:
        self.lease = Lease.LOST
        self._post(on.LedgerLost("no answer", None, SuspensionCause.LEASE))

    def _freezes(self) -> None:
        self.lease = Lease.FROZEN

    def _restores_lease(self, is_owner: bool) -> None:
        self.lease = Lease.HELD
        if not is_owner:
            self._post(on.CommitRefused("another owner"))
            return
        self._send_held_seats()
        self._post(on.LedgerRestored(SuspensionCause.LEASE))

    def _crashes(self) -> None:
        self._owns_nothing()
        self.is_alive = False

    # -- steps -----------------------------------------------------------------------------------

    def _post(self, event: on.Event) -> None:
        self._queue.append(event)
        if len(self._queue) == 1:
            self._drain()

    def _drain(self) -> None:
        """Events that effects cause are taken in order, after the one that causes them."""
        while self._queue:
            event, membership = self._queue[0], self.membership
            if membership is None:
                self._queue.clear()
                return
            assert self.checker is not None
            effects = membership.step(event, self.now_s)
            self.checker.note(event, self.now_s, effects)
            if self.lease is Lease.LOST and not isinstance(event, on.LedgerRestored):
                decided = [each for each in effects if isinstance(each, _NEEDS_THE_LEASE)]
                _must(not decided, "R5", f"decided without a lease: {decided}")
            check(membership)
            self._execute(effects)
            if self._queue:
                del self._queue[0]
            if not membership.progress.is_asking:
                # All messages arrive before it asks again, so its questions need no other numbers.
                membership.progress.serial = 0

    def _execute(self, effects: list[do.Effect]) -> None:
        for effect in effects:
            EFFECTS[type(effect)](self, effect)

    # -- effects ---------------------------------------------------------------------------------

    @property
    def _stamp(self) -> Stamp:
        membership = self.membership
        if membership is None:
            return Stamp(LEDGER, 0, 0)
        return Stamp(LEDGER, membership.term, membership.number)

    def _set_timer(self, effect: do.SetTimer) -> None:
        self.serial += 1
        due_s = self.now_s + effect.delay_s
        self.timers[str(effect.timer.kind), effect.timer.name] = (due_s, self.serial, effect.timer)

    def _write(self, effect: do.Commit | do.WriteMarks) -> None:
        if effect == self.effect:
            return  # It is asked for once more after an outage.
        _must(self.effect is None, "R1", f"two writes at a time: {self.effect} and {effect}")
        membership = self.membership
        assert membership is not None
        self.effect, self.is_written = effect, None
        if isinstance(effect, do.WriteMarks):
            self.writing = Write(
                self.term,
                membership.asked_settings,
                None,
                effect.marks,
                effect.restarts,
                0,  # its serial number only has to come back
                effect.blame,
                effect.orders,
            )
            return
        marks = membership.marks_with(effect.record)
        self.writing = Write(
            self.term,
            membership.asked_settings,
            effect.record,
            marks,
            membership.restart_count,
            blame=membership.blame_with_record,
            orders=membership.orders_with_record,
        )

    def _step_down(self, effect: do.StepDown) -> None:
        refusal = Refusal(RefusalCode.MOVED, "this coordinator no longer owns the run")
        for slot in list(self.asked):
            self._refuse(slot, refusal)
        self._owns_nothing()

    def _welcome(self, effect: do.Welcome) -> None:
        slot, node = effect.connection_id, effect.node
        if slot not in self.asked:
            return  # It disconnected while it waited.
        before = self.attached.get(node.name)
        if before is not None and before != slot:
            self._end(before)
        self.attached[node.name] = slot
        self.silent.pop(node.name, None)
        self.missed.pop(node.name, None)
        standing = effect.standing
        welcome = wire.Welcome(self._stamp, wire.VERSION, HEARTBEAT_S, standing, agrees=True)
        self._send(slot, welcome)
        if effect.standing.round:
            if self.lease is Lease.HELD:
                self._send_seat(slot, node)
            else:
                self.unseated[slot] = None

    def _send_seat(self, slot: int, node: NodeId) -> None:
        membership = self.membership
        assert membership is not None
        record = membership.round
        assert record is not None
        for row, seat in zip(record.members, seats_of(record), strict=True):
            if (row.name, row.incarnation) == (node.name, node.incarnation):
                self._send(slot, wire.Formed(self._stamp, record.head, seat))

    def _send_held_seats(self) -> None:
        slots, self.unseated = self.unseated, {}
        for slot in slots:
            node = self._node_on(slot)
            if node is not None:
                self._send_seat(slot, node)

    def _refuse_effect(self, effect: do.Refuse) -> None:
        self._refuse(effect.connection_id, effect.refusal)

    def _supersede(self, effect: do.Supersede) -> None:
        slot = self._slot_of(effect.node)
        if slot is not None:
            self._refuse(slot, effect.refusal)

    def _publish(self, effect: do.Publish) -> None:
        record = effect.record
        for row, seat in zip(record.members, seats_of(record), strict=True):
            slot = self._slot_of(NodeId(row.name, row.incarnation))
            if slot is not None:
                self._send(slot, wire.Formed(self._stamp, record.head, seat))

    def _break(self, effect: do.Break) -> None:
        self._send_held_seats()
        self._tell_round(wire.Broken(self._stamp, effect.change))

    def _verdict(self, effect: do.Verdict) -> None:
        self._tell_round(wire.CauseFound(self._stamp, effect.change))

    def _ask_to_leave(self, effect: do.AskToLeave) -> None:
        order = effect.order
        self._tell(wire.AskedToLeave(self._stamp, order.by, order.reason), order.node)

    def _evict(self, effect: do.Evict) -> None:
        slot = self._slot_of(effect.node)
        if slot is not None:
            self._refuse(slot, effect.refusal)

    def _for_people(self, effect: do.Effect) -> None:
        """The coordinator shows it, and does nothing."""

    def _ask_stacks(self, effect: do.AskStacks) -> None:
        self._tell_round(wire.AskStacks(self._stamp, effect.serial, 0))

    def _watch(self, effect: do.Watch) -> None:
        self._tell(wire.WatchHosts(self._stamp, effect.addresses), effect.node)

    def _ask_witness(self, effect: do.AskWitness) -> None:
        self._tell(wire.AskWitness(self._stamp, effect.question, effect.host), effect.node)

    def _tell_drain(self, effect: do.TellDrain) -> None:
        self._tell(wire.Drains(self._stamp, effect.round, effect.drain), effect.to)

    def _tell_step(self, effect: do.TellStep) -> None:
        self._tell(wire.StopAt(self._stamp, effect.round, effect.step), effect.to)

    def _tell(self, message: wire.Message, to: NodeId | None) -> None:
        slot = self._slot_of(to) if to is not None else None
        if to is None:
            self._tell_round(message)
        elif slot is not None:
            self._send(slot, message)

    def _announce(self, effect: do.Announce) -> None:
        for slot in list(self.attached.values()):
            self._send(slot, wire.Closed(self._stamp, effect.close))

    def _probe_round(self, effect: do.ProbeRound) -> None:
        self._tell_round(wire.Probe(self._stamp))

    def _probe_node(self, effect: do.ProbeNode) -> None:
        slot = self._slot_of(effect.node)
        if slot is not None:
            self._send(slot, wire.Probe(self._stamp))

    def _notify(self, effect: do.Notify) -> None:
        slot = self._slot_of(effect.node)
        if slot is not None:
            self._send(slot, wire.Standby(self._stamp, effect.standby))

    def _forget(self, effect: do.Forget) -> None:
        slot = self._slot_of(effect.node)
        self.silent.pop(effect.node.name, None)
        self.missed.pop(effect.node.name, None)
        if HOST_GONE in effect.reason:
            self._outputs.append(Lost(effect.node))
        if slot is None:
            return
        # Its messages must not count as those of the next node of its name.
        del self.attached[effect.node.name]
        self.unseated.pop(slot, None)
        if not effect.keeps_connection:
            event = self._queue[0] if self._queue else None
            has_said_it = isinstance(event, on.NodeLeft) and event.node == effect.node
            self._end(slot, is_answer=has_said_it)

    def _dismiss(self, effect: do.Dismiss) -> None:
        if effect.connection_id in self.asked:
            self._end(effect.connection_id, is_answer=True)

    def _tell_round(self, message: wire.Message) -> None:
        membership = self.membership
        assert membership is not None
        for row in membership.round.members if membership.round is not None else ():
            slot = self._slot_of(NodeId(row.name, row.incarnation))
            if slot is not None:
                self._send(slot, message)

    # -- connections -----------------------------------------------------------------------------

    def _node_on(self, slot: int) -> NodeId | None:
        node = self.asked.get(slot)
        return node if node is not None and self.attached.get(node.name) == slot else None

    def _slot_of(self, node: NodeId) -> int | None:
        slot = self.attached.get(node.name)
        return slot if slot is not None and self.asked[slot] == node else None

    def _send(self, slot: int, message: wire.Message) -> None:
        self._outputs.append(Sent(slot, message))

    def _refuse(self, slot: int, refusal: Refusal) -> None:
        self._send(slot, wire.Refused(self._stamp, refusal))
        self._end(slot)

    def _end(self, slot: int, *, is_answer: bool = False) -> None:
        """Close a connection. The core hears of it next, as a close takes no time here."""
        self._outputs.append(Ended(slot, is_answer))
        self._forget_connection(slot, ConnectionEnd.OURS)

    def _forget_connection(self, slot: int, how: ConnectionEnd) -> None:
        node = self.asked.pop(slot, None)
        if node is None:
            return
        if self.attached.get(node.name) == slot:
            del self.attached[node.name]
            self.silent.pop(node.name, None)
            self.missed.pop(node.name, None)
        self.unseated.pop(slot, None)
        self._queue.append(on.ConnectionLost(node, slot, how))


def host_of(node: NodeId) -> Address:
    """The address from which a node connects. Nodes are called n0, n1 and so on."""
    return Address(f"10.0.0.{int(node.name[1:]) + 1}", 1)


def _must_have_taken_over(membership: Membership, register: Register) -> None:
    """All of a member's state survives a takeover, done and departing too; and the orders."""
    _must(membership.orders == register.orders, "takeover", f"{membership.orders} were taken over")
    record = register.round
    if record is None or register.close is not None:
        return
    is_of_round = register.marks.round == register.number
    done = ranks_in(register.marks.done) if is_of_round else frozenset()
    gone = ranks_in(register.marks.gone) if is_of_round else frozenset()
    for rank, row in enumerate(record.members):
        member = membership.roster.get(row.name)
        if rank in gone:
            _must(member is None, "takeover", f"{row.name} has gone, and is expected")
            continue
        _must(member is not None, "takeover", f"{row.name} was forgotten")
        is_done = member is not None and member.state is MemberState.DONE
        _must(is_done == (rank in done), "takeover", f"{row.name} done: {is_done}")


def _event(node: NodeId, message: wire.FromNode) -> on.Event | None:
    """As the session does."""
    match message:
        case wire.Ready():
            return on.NodeReady(
                node, message.leaving_round, message.bootstrap, message.workers, message.change
            )
        case wire.Failed():
            return on.WorkerFailed(node, message.round, message.failure)
        case wire.Done():
            return on.NodeDone(node, message.round)
        case wire.Departing():
            return on.NodeDeparting(node, message.reason)
        case wire.TakesPart():
            return on.NodeTakesPart(node, message.round)
        case wire.Draining():
            return on.NodeDraining(node, message.round, message.reason, message.left_s)
        case wire.Promise():
            return on.StepPromised(node, message.round, message.step)
        case wire.Goodbye():
            return on.NodeLeft(node, message.reason)
        case wire.CloseRun():
            return on.CloseRequested(node.name, message.outcome, message.reason)
        case wire.Alive():
            return on.ProbeAnswered(node)
        case wire.StacksTold():
            return on.StacksTold(node, message.request_id, message.progress, message.stacks)
        case wire.Witnessed():
            return on.HostReported(node, message.question, message.report)
        case _:
            return None


INPUTS: Final[dict[str, Callable[..., None]]] = {
    "takes over": Coordinator._takes_over,
    "reads": Coordinator._reads,
    "ends": Coordinator._ends,
    "timer": Coordinator._timer,
    "silent": Coordinator._silent,
    "heartbeat": Coordinator._heartbeat,
    "misses": Coordinator._misses,
    "ordered": Coordinator._is_ordered,
    "decided": Coordinator._write_is_decided,
    "answered": Coordinator._is_answered,
    "limited": Coordinator._is_limited,
    "loses lease": Coordinator._loses_lease,
    "freezes": Coordinator._freezes,
    "restores lease": Coordinator._restores_lease,
    "crashes": Coordinator._crashes,
}
EFFECTS: Final[dict[type[do.Effect], Callable[[Coordinator, Any], None]]] = {
    do.SetTimer: Coordinator._set_timer,
    do.Commit: Coordinator._write,
    do.WriteMarks: Coordinator._write,
    do.StepDown: Coordinator._step_down,
    do.Welcome: Coordinator._welcome,
    do.Refuse: Coordinator._refuse_effect,
    do.Supersede: Coordinator._supersede,
    do.Publish: Coordinator._publish,
    do.Break: Coordinator._break,
    do.Verdict: Coordinator._verdict,
    do.AskToLeave: Coordinator._ask_to_leave,
    do.Evict: Coordinator._evict,
    do.AskStacks: Coordinator._ask_stacks,
    do.Watch: Coordinator._watch,
    do.AskWitness: Coordinator._ask_witness,
    do.HostJudged: Coordinator._for_people,
    do.Readmit: Coordinator._for_people,
    do.Rescale: Coordinator._for_people,
    do.TellDrain: Coordinator._tell_drain,
    do.TellStep: Coordinator._tell_step,
    do.Announce: Coordinator._announce,
    do.ProbeRound: Coordinator._probe_round,
    do.ProbeNode: Coordinator._probe_node,
    do.Notify: Coordinator._notify,
    do.Forget: Coordinator._forget,
    do.Dismiss: Coordinator._dismiss,
}


def _must(holds: bool, rule: str, problem: str) -> None:
    if not holds:
        raise InvariantViolation(rule, problem)
