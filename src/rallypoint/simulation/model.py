"""A small world of the shipped core in which every order of events can be tried.

Each coordinator is the shipped `Membership`, each node the shipped `NodeMachine`. Around them are
queues of messages in both directions, timers, and one register: what a message, a timer or an
answer of the register does next is a choice, and each choice is a `Move`. Faults are moves, too,
and each kind has a budget, so the world is finite.

What the coordinator's shell does with an effect is written here once more, in a few lines each: the
shell has sockets and clocks. Not modelled: the store, lease times (a lease is lost, restored or
taken over as a move), and time itself. Timers of one coordinator fire in the order of their times,
and any message may come between two of them.
"""

from __future__ import annotations

import pickle
from collections.abc import Hashable, Iterator
from typing import Any, Final

import msgspec

from rallypoint.client import actions as act
from rallypoint.client.machine import DesiredState, NodeMachine
from rallypoint.core import effects as do
from rallypoint.core import events as on
from rallypoint.core.election import RunState
from rallypoint.core.membership import Membership
from rallypoint.core.ranks import seats_of
from rallypoint.core.reasons import Refusal, RefusalCode
from rallypoint.core.suspension import SuspensionCause
from rallypoint.core.values import (
    Address,
    CloseRecord,
    ConnectionEnd,
    Failure,
    FailureKind,
    FrozenStruct,
    Marks,
    NodeId,
    NodeInfo,
    Outcome,
    Phase,
    RoundRecord,
    RunSettings,
    Stamp,
    secret_hash,
)
from rallypoint.testing.invariants import check
from rallypoint.testing.violations import InvariantViolation
from rallypoint.wire import messages as wire

RUN: Final = "run"
LEDGER: Final = "ledger"
BOOTSTRAP: Final = Address("h", 1)
SILENCE_S: Final = 10.0
ATTACH_GRACE_S: Final = 15.0
HEARTBEAT_S: Final = 1.0
NO_MARKS: Final = Marks()


class Move(FrozenStruct, frozen=True):
    """One choice. `is_fault`: whether it is one that a healthy world does not make."""

    what: str
    who: int = 0
    detail: str = ""
    is_fault: bool = False

    def __str__(self) -> str:
        return f"{self.what} {self.who} {self.detail}".rstrip()


class Limits(FrozenStruct, frozen=True):
    """The size of a world, and how often each fault and each wish may come."""

    nodes: int = 3
    coordinators: int = 2
    rounds: int = 2
    min_nodes: int = 2
    max_restarts: int | None = 1
    cuts: int = 1
    """Connections that end though both processes live."""
    deaths: int = 1
    """Nodes that die: their kernels say so."""
    crashes: int = 1
    """Coordinators that die."""
    lost_leases: int = 1
    failures: int = 1
    departures: int = 1
    closes: int = 0
    successes: bool = True
    """Whether workers can finish."""


class Link(msgspec.Struct):
    """A connection of a node to a coordinator. One side may have ended it, unknown to the other."""

    connection_id: int
    coordinator: int
    to_coordinator: list[wire.Message] = msgspec.field(default_factory=list)
    to_node: list[wire.Message] = msgspec.field(default_factory=list)
    node_open: bool = True
    coordinator_open: bool = True
    attached: NodeId | None = None
    """The node that the coordinator has on this connection."""
    ends: str = ConnectionEnd.RESET
    """How the coordinator sees that the node's side has ended."""


class ModelNode(msgspec.Struct):
    """One node: its machine, and whether its process lives."""

    info: NodeInfo
    machine: NodeMachine
    is_alive: bool = True
    link: Link | None = None
    tokens: list[tuple[int, int]] = msgspec.field(default_factory=list)


class ModelCoordinator(msgspec.Struct):
    """One coordinator: its membership, while it owns the run as far as it knows."""

    membership: Membership | None = None
    is_alive: bool = True
    term: int = 0
    now_s: float = 0.0
    timers: dict[tuple[str, str], tuple[float, int, do.Timer]] = msgspec.field(default_factory=dict)
    serial: int = 0
    writing: do.Commit | do.WriteMarks | None = None
    is_written: bool = False
    """Whether the register has what is being written; the answer has yet to come."""
    has_lost_lease: bool = False


class Register(msgspec.Struct):
    """What the ledger holds of the run."""

    term: int = 0
    owner: int = -1
    settings: RunSettings | None = None
    round: RoundRecord | None = None
    close: CloseRecord | None = None
    restarts: int = 0
    marks: Marks = NO_MARKS

    def state(self) -> RunState:
        """What a new owner starts from."""
        return RunState(
            self.term, self.settings, self.round, self.close, self.restarts, 0, self.marks
        )


class ModelWorld:
    """One state of the world, with the moves out of it. `key` is equal for equal states."""

    def __init__(self, limits: Limits) -> None:
        self.limits = limits
        self.settings = RunSettings(
            min_nodes=limits.min_nodes, max_nodes=limits.nodes, max_restarts=limits.max_restarts
        )
        self.nodes = [self._new_node(index) for index in range(limits.nodes)]
        self.coordinators = [ModelCoordinator() for _ in range(limits.coordinators)]
        self.links: list[Link] = []
        self.register = Register()
        self.connections = 0
        self.left = {
            "cut": limits.cuts,
            "die": limits.deaths,
            "crash": limits.crashes,
            "lose lease": limits.lost_leases,
            "fail": limits.failures,
            "depart": limits.departures,
            "close": limits.closes,
        }
        self.committed: list[tuple[int, int, str]] = []
        """(term, number, digest) of each round that the register ever had."""

    def _new_node(self, index: int) -> ModelNode:
        info = NodeInfo(f"n{index}", index + 1, f"h{index}")
        machine = NodeMachine(
            RUN,
            info,
            self.settings,
            silence_s=SILENCE_S,
            is_elected=True,
            resume_secret=bytes([index + 1]) * 32,
        )
        return ModelNode(info, machine)

    def copy(self) -> ModelWorld:
        """An independent copy."""
        copied: ModelWorld = pickle.loads(pickle.dumps(self, -1))  # noqa: S301 - our own bytes
        return copied

    # -- the moves that there are ----------------------------------------------------------------

    def moves(self) -> Iterator[Move]:
        """All moves out of this state."""
        for index, node in enumerate(self.nodes):
            if node.is_alive:
                yield from self._moves_of_node(index, node)
        for link in self.links:
            owner = self.coordinators[link.coordinator]
            if link.coordinator_open and owner.is_alive:
                if link.to_coordinator:
                    yield Move("reads", link.connection_id)
                elif not link.node_open:
                    yield Move("notices the end", link.connection_id)
            far = self._node_of(link)
            if far is not None and link.node_open:
                if link.to_node:
                    yield Move("hears", link.connection_id)
                elif not link.coordinator_open:
                    yield Move("notices the loss", link.connection_id)
            if link.node_open and link.coordinator_open and self.left["cut"]:
                yield Move("cut", link.connection_id, is_fault=True)
        for index, each in enumerate(self.coordinators):
            if each.is_alive:
                yield from self._moves_of_coordinator(index, each)

    def _moves_of_node(self, index: int, node: ModelNode) -> Iterator[Move]:
        machine = node.machine
        if node.link is None and not machine.is_over:
            for number, each in enumerate(self.coordinators):
                if each.is_alive and each.membership is not None:
                    yield Move("dials", index, str(number))
        wants = machine.desired
        may_be_ready = wants is DesiredState.NOTHING or (
            wants is DesiredState.IN_ROUND and machine.ended is not None
        )
        if may_be_ready and not machine.is_over and machine.number < self.limits.rounds:
            yield Move("ready", index)
        if may_be_ready and not machine.is_over and machine.number >= self.limits.rounds:
            yield Move("goodbye", index)
        if machine.has_workers:
            if self.limits.successes:
                yield Move("done", index)
            if self.left["fail"]:
                yield Move("fail", index, is_fault=True)
        if wants in (DesiredState.READY, DesiredState.IN_ROUND) and self.left["depart"]:
            yield Move("depart", index, is_fault=True)
        if wants is DesiredState.DEPARTING:
            yield Move("goodbye", index)
        if self.left["close"] and machine.is_attached:
            yield Move("close", index, is_fault=True)
        if self.left["die"] and not machine.is_over and wants is not DesiredState.GONE:
            yield Move("die", index, is_fault=True)

    def _moves_of_coordinator(self, index: int, each: ModelCoordinator) -> Iterator[Move]:
        owner = self.register.owner
        if each.membership is None:
            # R5: an owner has stopped to decide before its lease can be taken.
            may_take = owner < 0 or not self.coordinators[owner].is_alive
            may_take = may_take or self.coordinators[owner].has_lost_lease
            wanted = any(n.is_alive and n.link is None for n in self.nodes)
            if may_take and owner != index and wanted:
                yield Move("takes over", index)
        else:
            if each.timers:
                yield Move("timer", index)
            if each.writing is not None and not each.is_written:
                yield Move("writes", index)
            if each.is_written or (each.writing is not None and owner != index):
                yield Move("is answered", index)
            if each.has_lost_lease:
                yield Move("restores lease", index)
            elif self.left["lose lease"] and owner == index:
                yield Move("lose lease", index, is_fault=True)
        if self.left["crash"]:
            yield Move("crash", index, is_fault=True)

    # -- what a move does ------------------------------------------------------------------------

    def make(self, move: Move) -> None:
        """Make a move of this state. Raises InvariantViolation if a rule is broken by it."""
        if move.what in self.left:
            self.left[move.what] -= 1
        _MAKE[move.what](self, move)
        self.links = [
            link
            for link in self.links
            if (link.coordinator_open and self.coordinators[link.coordinator].is_alive)
            or (link.node_open and self._node_of(link) is not None)
        ]
        for each in self.coordinators:
            if each.is_alive and each.membership is not None:
                check(each.membership)

    def _link(self, connection_id: int) -> Link:
        return next(each for each in self.links if each.connection_id == connection_id)

    def _node_of(self, link: Link) -> ModelNode | None:
        return next((each for each in self.nodes if each.is_alive and each.link is link), None)

    def _dials(self, move: Move) -> None:
        node, number = self.nodes[move.who], int(move.detail)
        self.connections += 1
        link = Link(self.connections, number)
        self.links.append(link)
        node.link = link
        register = self.register
        number_now = register.round.head.number if register.round is not None else 0
        # The node has read the register before it dials.
        node.machine.found_term(Stamp(LEDGER, register.term, number_now))
        self._act(node, node.machine.connected(0.0))

    def _ready(self, move: Move) -> None:
        node = self.nodes[move.who]
        self._act(node, node.machine.ready(BOOTSTRAP, 1))

    def _done(self, move: Move) -> None:
        node = self.nodes[move.who]
        self._act(node, node.machine.done())

    def _fail(self, move: Move) -> None:
        node = self.nodes[move.who]
        self._act(node, node.machine.failed(Failure(FailureKind.EXCEPTION, "boom")))

    def _depart(self, move: Move) -> None:
        node = self.nodes[move.who]
        self._act(node, node.machine.depart("asked"))

    def _goodbye(self, move: Move) -> None:
        node = self.nodes[move.who]
        self._act(node, node.machine.goodbye("bye"))

    def _close(self, move: Move) -> None:
        node = self.nodes[move.who]
        self._act(node, node.machine.close(Outcome.STOPPED, "asked"))

    def _die(self, move: Move) -> None:
        node = self.nodes[move.who]
        node.is_alive = False
        if node.link is not None:
            node.link.node_open, node.link.ends = False, ConnectionEnd.PROCESS_ENDED
            node.link = None

    def _cut(self, move: Move) -> None:
        """A reset by something between: what was on the way is lost, and both sides notice."""
        link = self._link(move.who)
        link.to_coordinator.clear()
        link.to_node.clear()
        link.ends = ConnectionEnd.RESET
        node = self._node_of(link)
        link.node_open = False
        if node is not None:
            node.link = None
            node.machine.disconnected()

    def _reads(self, move: Move) -> None:
        link = self._link(move.who)
        message = link.to_coordinator.pop(0)
        owner = self.coordinators[link.coordinator]
        if owner.membership is None:
            self._refuse(link, Refusal(RefusalCode.MOVED, "not here"))
            return
        if isinstance(message, wire.Attach):
            link.attached = message.node.id
            shown = secret_hash(message.resume_secret)
            event: on.Event = on.NodeAttached(
                message.node, message.settings, link.connection_id, shown
            )
            self._step(link.coordinator, event)
            return
        if link.attached is not None:
            found = _event(link.attached, message)
            if found is not None:
                self._step(link.coordinator, found)

    def _hears(self, move: Move) -> None:
        link = self._link(move.who)
        node = self._node_of(link)
        assert node is not None
        message: Any = link.to_node.pop(0)
        self._act(node, node.machine.received(message, 0.0))

    def _notices_end(self, move: Move) -> None:
        link = self._link(move.who)
        link.coordinator_open = False
        if link.attached is not None and self.coordinators[link.coordinator].membership is not None:
            how = ConnectionEnd(link.ends)
            self._step(link.coordinator, on.ConnectionLost(link.attached, link.connection_id, how))

    def _notices_loss(self, move: Move) -> None:
        link = self._link(move.who)
        node = self._node_of(link)
        assert node is not None
        link.node_open, node.link = False, None
        node.machine.disconnected()

    def _takes_over(self, move: Move) -> None:
        each, register = self.coordinators[move.who], self.register
        register.term += 1
        register.owner = move.who
        each.term = register.term
        each.membership = Membership(RUN, term=register.term)
        each.now_s += 1_000.0
        effects = each.membership.restore(
            register.state(), attach_grace_s=ATTACH_GRACE_S, now_s=each.now_s
        )
        self._do(move.who, effects)

    def _timer(self, move: Move) -> None:
        each = self.coordinators[move.who]
        key = min(each.timers, key=lambda name: each.timers[name][:2])
        due_s, _, timer = each.timers.pop(key)
        each.now_s = max(each.now_s, due_s)
        self._step(move.who, on.TimerFired(timer))

    def _writes(self, move: Move) -> None:
        """The write takes effect, if the register is still this coordinator's (R5)."""
        each, register = self.coordinators[move.who], self.register
        effect, membership = each.writing, each.membership
        assert effect is not None
        assert membership is not None
        if register.owner != move.who or register.term != each.term:
            return
        each.is_written = True
        register.settings = membership.settings
        if isinstance(effect, do.WriteMarks):
            register.marks, register.restarts = effect.marks, effect.restarts
            return
        record = effect.record
        register.marks = membership.marks_with(record)
        register.restarts = membership.restart_count
        if isinstance(record, CloseRecord):
            register.close = record
            return
        head = record.head
        for _, number, _ in self.committed:
            _must(head.number > number, "R1", f"round {head.number} after round {number}")
        _must(register.close is None, "R6", f"round {head.number} after the close")
        self.committed.append((register.term, head.number, head.digest))
        register.round = record

    def _is_answered(self, move: Move) -> None:
        each = self.coordinators[move.who]
        effect, each.writing = each.writing, None
        is_written, each.is_written = each.is_written, False
        if not is_written:
            self._step(move.who, on.CommitRefused("another owner"))
        elif isinstance(effect, do.WriteMarks):
            self._step(move.who, on.MarksWritten(effect.serial))
        else:
            self._step(move.who, on.Committed())

    def _lose_lease(self, move: Move) -> None:
        self.coordinators[move.who].has_lost_lease = True
        self._step(move.who, on.LedgerLost("no answer", None, SuspensionCause.LEASE))

    def _restores_lease(self, move: Move) -> None:
        each = self.coordinators[move.who]
        each.has_lost_lease = False
        if self.register.owner == move.who and self.register.term == each.term:
            self._step(move.who, on.LedgerRestored(SuspensionCause.LEASE))
        else:
            self._step(move.who, on.CommitRefused("another owner"))

    def _crash(self, move: Move) -> None:
        each = self.coordinators[move.who]
        each.is_alive, each.membership, each.writing = False, None, None
        each.timers.clear()
        for link in self.links:
            if link.coordinator == move.who:
                link.coordinator_open = False
                link.to_coordinator.clear()

    # -- the shells ------------------------------------------------------------------------------

    def _act(self, node: ModelNode, actions: list[act.Action]) -> None:
        for action in actions:
            match action:
                case act.Send(message):
                    if node.link is not None:
                        node.link.to_coordinator.append(message)
                case act.Drop() | act.Redirected() | act.WasRefused():
                    self._leave(node)
                case act.RoundFormed(head=head):
                    token = (head.term, head.number)
                    held = not node.tokens or token > node.tokens[-1]
                    _must(held, "R13", f"{node.info.name}: {token} after {node.tokens}")
                    known = [(term, number) for term, number, _ in self.committed]
                    _must(token in known, "R2", f"{token} was never committed: {known}")
                    node.tokens.append(token)
                case _:
                    pass

    def _leave(self, node: ModelNode) -> None:
        if node.link is not None:
            node.link.node_open, node.link.ends = False, ConnectionEnd.RESET
            node.link = None
            node.machine.disconnected()

    def _step(self, index: int, event: on.Event) -> None:
        each = self.coordinators[index]
        if each.membership is not None:
            self._do(index, each.membership.step(event, each.now_s))

    def _do(self, index: int, effects: list[do.Effect]) -> None:
        """As HostedRun does, each in a few lines."""
        for effect in effects:
            match effect:
                case do.SetTimer(timer=timer, delay_s=delay_s):
                    each = self.coordinators[index]
                    each.serial += 1
                    key = (str(timer.kind), timer.name)
                    each.timers[key] = (each.now_s + delay_s, each.serial, timer)
                case do.Commit() | do.WriteMarks():
                    each = self.coordinators[index]
                    if each.writing == effect:
                        continue  # It is asked for once more after an outage.
                    _must(each.writing is None, "R1", "two writes at a time")
                    each.writing, each.is_written = effect, False
                case do.StepDown():
                    self._step_down(index)
                    return
                case _:
                    self._tell(index, effect)

    def _step_down(self, index: int) -> None:
        each = self.coordinators[index]
        each.membership, each.writing, each.is_written = None, None, False
        each.has_lost_lease = False
        each.timers.clear()
        for link in self.links:
            if link.coordinator == index and link.coordinator_open:
                self._refuse(link, Refusal(RefusalCode.MOVED, "not here any more"))

    def _tell(self, index: int, effect: do.Effect) -> None:
        each = self.coordinators[index]
        membership = each.membership
        assert membership is not None
        stamp = Stamp(LEDGER, membership.term, membership.number)
        match effect:
            case do.Welcome():
                link = self._on(index, effect.connection_id)
                for other in self._links_of(index, effect.node):
                    if other is not link:
                        self._end(other)
                if link is None:
                    return
                welcome = wire.Welcome(stamp, wire.VERSION, HEARTBEAT_S, effect.standing)
                link.to_node.append(welcome)
                record = membership.round
                if effect.standing.round and record is not None:
                    self._send_seat(link, stamp, record, effect.node)
            case do.Refuse():
                link = self._on(index, effect.connection_id)
                if link is not None:
                    self._refuse(link, effect.refusal, stamp)
            case do.Supersede():
                for link in self._links_of(index, effect.node):
                    self._refuse(link, effect.refusal, stamp)
            case do.Publish(record=record):
                for row in record.members:
                    for link in self._links_of(index, NodeId(row.name, row.incarnation)):
                        self._send_seat(link, stamp, record, NodeId(row.name, row.incarnation))
            case do.Break(change=change):
                self._tell_round(index, wire.Broken(stamp, change))
            case do.Verdict(change=change):
                self._tell_round(index, wire.CauseFound(stamp, change))
            case do.Announce(close=close):
                for link in self._attached(index):
                    link.to_node.append(wire.Closed(stamp, close))
            case do.ProbeRound():
                self._tell_round(index, wire.Probe(stamp))
            case do.ProbeNode(node=node):
                for link in self._links_of(index, node):
                    link.to_node.append(wire.Probe(stamp))
            case do.Notify(node=node, standby=standby):
                for link in self._links_of(index, node):
                    link.to_node.append(wire.Standby(stamp, standby))
            case do.Forget(node=node, keeps_connection=keeps):
                for link in self._links_of(index, node):
                    link.attached = None
                    if not keeps:
                        self._end(link)
            case do.Dismiss(connection_id=connection_id):
                link = self._on(index, connection_id)
                if link is not None:
                    self._end(link)
            case _:
                raise AssertionError(f"an effect that the model does not have: {effect}")

    def _send_seat(self, link: Link, stamp: Stamp, record: RoundRecord, node: NodeId) -> None:
        for row, seat in zip(record.members, seats_of(record), strict=True):
            if (row.name, row.incarnation) == (node.name, node.incarnation):
                link.to_node.append(wire.Formed(stamp, record.head, seat))

    def _tell_round(self, index: int, message: wire.Message) -> None:
        membership = self.coordinators[index].membership
        assert membership is not None
        for row in membership.round.members if membership.round is not None else ():
            for link in self._links_of(index, NodeId(row.name, row.incarnation)):
                link.to_node.append(message)

    def _refuse(self, link: Link, refusal: Refusal, stamp: Stamp | None = None) -> None:
        link.to_node.append(wire.Refused(stamp or Stamp(LEDGER, 0, 0), refusal))
        self._end(link)

    def _end(self, link: Link) -> None:
        """The coordinator closes the connection. What it had sent before still arrives."""
        link.coordinator_open = False
        link.to_coordinator.clear()

    def _on(self, index: int, connection_id: int) -> Link | None:
        for link in self.links:
            if link.coordinator == index and link.connection_id == connection_id:
                return link if link.coordinator_open else None
        return None

    def _attached(self, index: int) -> list[Link]:
        return [
            link
            for link in self.links
            if link.coordinator == index and link.coordinator_open and link.attached is not None
        ]

    def _links_of(self, index: int, node: NodeId) -> list[Link]:
        return [link for link in self._attached(index) if link.attached == node]

    # -- states ----------------------------------------------------------------------------------

    @property
    def is_settled(self) -> bool:
        """Whether nothing has to happen any more.

        Every living node is over, or all are in one round that is on; or those that are left are
        too few, and wait for others; or no coordinator lives.
        """
        left = [each for each in self.nodes if each.is_alive and _wants_more(each.machine)]
        rounds = {each.machine.number for each in left}
        if all(each.machine.has_workers for each in left):
            return len(rounds) <= 1
        if not any(each.is_alive for each in self.coordinators):
            return True
        are_waiting = all(
            each.machine.desired is DesiredState.READY and each.machine.is_attached for each in left
        )
        return are_waiting and len(left) < self.limits.min_nodes

    def key(self) -> Hashable:
        """What distinguishes states: everything on which moves depend, and no times.

        Connections are named by their order, and nodes by their place.
        """
        ids = {link.connection_id: at for at, link in enumerate(self.links)}
        coordinators = tuple(_key_of_coordinator(each, ids) for each in self.coordinators)
        nodes = tuple(_key_of_node(each, ids) for each in self.nodes)
        links = tuple(
            (
                link.coordinator,
                tuple(map(repr, link.to_coordinator)),
                tuple(map(repr, link.to_node)),
                (link.node_open, link.coordinator_open, link.attached, link.ends),
            )
            for link in self.links
        )
        register = self.register
        kept = (register.term, register.owner, register.round, register.close, register.restarts)
        return (nodes, coordinators, links, kept, register.marks, tuple(self.left.values()))


def _wants_more(machine: NodeMachine) -> bool:
    return not machine.is_over and machine.desired not in (DesiredState.DONE, DesiredState.GONE)


def _key_of_coordinator(each: ModelCoordinator, ids: dict[int, int]) -> Hashable:
    if not each.is_alive:
        return None
    membership = each.membership
    order = sorted(each.timers, key=lambda name: each.timers[name][:2])
    members: tuple[tuple[str, int], ...] = ()
    if membership is not None:
        members = tuple(
            (member.name, ids.get(member.connection_id, -1)) for member in membership.roster
        )
    return (
        membership.freeze() if membership is not None else None,
        members,
        tuple(order),
        (each.term, repr(each.writing), each.is_written, each.has_lost_lease),
    )


def _key_of_node(node: ModelNode, ids: dict[int, int]) -> Hashable:
    if not node.is_alive:
        return None
    machine = node.machine
    return (
        ids[node.link.connection_id] if node.link is not None else -1,
        machine.freeze(),
        tuple(node.tokens),
    )


def _event(node: NodeId, message: wire.Message) -> on.Event | None:
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
        case wire.Goodbye():
            return on.NodeLeft(node, message.reason)
        case wire.CloseRun():
            return on.CloseRequested(node.name, message.outcome, message.reason)
        case wire.Alive():
            return on.ProbeAnswered(node)
        case _:
            return None


_MAKE: Final = {
    "dials": ModelWorld._dials,
    "ready": ModelWorld._ready,
    "done": ModelWorld._done,
    "fail": ModelWorld._fail,
    "depart": ModelWorld._depart,
    "goodbye": ModelWorld._goodbye,
    "close": ModelWorld._close,
    "die": ModelWorld._die,
    "cut": ModelWorld._cut,
    "reads": ModelWorld._reads,
    "hears": ModelWorld._hears,
    "notices the end": ModelWorld._notices_end,
    "notices the loss": ModelWorld._notices_loss,
    "takes over": ModelWorld._takes_over,
    "timer": ModelWorld._timer,
    "writes": ModelWorld._writes,
    "is answered": ModelWorld._is_answered,
    "lose lease": ModelWorld._lose_lease,
    "restores lease": ModelWorld._restores_lease,
    "crash": ModelWorld._crash,
}


def _must(holds: bool, rule: str, problem: str) -> None:
    if not holds:
        raise InvariantViolation(rule, problem)


def is_closed(world: ModelWorld) -> bool:
    """Whether some coordinator has the run closed."""
    return any(
        each.membership is not None and each.membership.phase is Phase.CLOSED
        for each in world.coordinators
    )
