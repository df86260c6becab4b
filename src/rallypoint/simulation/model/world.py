"""A world: its states, the moves out of each, and the state after a move.

A state is a tuple of numbers: the nodes, the coordinators, the register, what is left of each
budget of faults, and the connections (see `slots`). The parts are in `Parts`, `Links` and `Values`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Final, TypeAlias

import msgspec

from rallypoint.checkers.violations import InvariantViolation
from rallypoint.client.machine import DesiredState
from rallypoint.core.effects import TimerKind
from rallypoint.core.membership import Membership
from rallypoint.core.orders import NO_ORDERS, Orders
from rallypoint.core.reasons import RefusalCode
from rallypoint.core.roster import Bucket
from rallypoint.core.values import (
    ConnectionEnd,
    FrozenStruct,
    HostReport,
    NodeId,
    Phase,
    RoundHead,
    Seat,
)
from rallypoint.simulation.model.coordinator import (
    Coordinator,
    Ended,
    Lease,
    Lost,
    Sent,
    host_of,
)
from rallypoint.simulation.model.limits import FAULTS, Limits
from rallypoint.simulation.model.links import ANSWERED, CLOSED, GONE, OFF, OPEN, Link, Links
from rallypoint.simulation.model.node import NO_SLOT, Node, Status
from rallypoint.simulation.model.parts import Parts, Values
from rallypoint.simulation.model.register import Register, Write
from rallypoint.wire import messages as wire

State: TypeAlias = tuple[int, ...]
Move: TypeAlias = tuple[str, int, int]
"""What, who (a node, a coordinator or a connection), and which (a coordinator), or 0."""

_TABLES: Final = ("messages", "registers", "budgets", "links", "nodes", "coordinators")
_BUDGET: Final = {fault: at for at, fault in enumerate(FAULTS)}


class NodeFacts(FrozenStruct, frozen=True):
    """What the moves of a world need to know of a node."""

    id: NodeId
    slot: int
    status: Status
    requests: tuple[tuple[str, bool], ...]
    """What it can ask for now, and whether that is a fault."""
    may_dial: bool
    may_die: bool
    is_attached: bool
    is_over: bool
    desired: DesiredState
    has_workers: bool
    number: int
    token: tuple[int, int]
    passed: int
    """The last step that its worker has passed; -1: none."""
    stopped_at: int | None
    is_waiting: bool
    is_off: bool
    """Whether its host has no power."""
    hangs: bool
    questions: tuple[str, ...]
    """The hosts about which it was asked."""
    must_leave: bool
    """Whether an operator has asked it to leave, and it has not departed yet."""
    was_evicted: bool


class CoordinatorFacts(FrozenStruct, frozen=True):
    """What the moves of a world need to know of a coordinator."""

    is_alive: bool
    is_owner: bool
    """Whether it owned the run, as far as it knows."""
    lease: Lease
    term: int
    has_timers: bool
    write: Write | None
    is_written: bool | None
    is_limited: bool
    referenced: frozenset[int]
    attached: tuple[int, ...]
    silent: tuple[int, ...]
    missed: tuple[int, ...]
    waits_for: tuple[int, ...]
    """The connections on which all messages arrive before the next timer, that of a hang, fires."""
    phase: Phase | None
    number: int
    in_round: tuple[NodeId, ...]
    has_finished: bool
    """Whether a node has finished."""
    settles: bool
    """Whether nothing waits for a write."""
    members: tuple[NodeId, ...]
    evicted: tuple[str, ...]
    """The nodes of which an operator may lift the eviction."""
    orders_written: Orders
    """As far as the coordinator knows."""
    confirmed: Orders
    """What it has confirmed to operators, or would."""
    size: tuple[int, int]
    """How many nodes a round has, at least and at most."""


CLOSES: Final = 0
ANSWERS: Final = -1
LOSES: Final = -2


class NodeStep(msgspec.Struct, frozen=True):
    """What an input makes of a node: its next state, and what it did on the connection `slot`."""

    number: int
    sent: tuple[int, ...]
    has_left: bool
    seat: tuple[RoundHead, Seat] | None
    slot: int


class CoordinatorStep(msgspec.Struct, frozen=True):
    """What an input makes of a coordinator: its next state, and what it did on connections.

    `outputs`: connections and messages; instead of a message, CLOSES: it closed the connection, or
    ANSWERS: as the answer to a goodbye. LOSES: it has lost the node with this incarnation, in place
    of a connection, because witnesses say that its host is gone.
    """

    number: int
    outputs: tuple[tuple[int, int], ...]


class World:
    """The states of a world with these limits. Not thread-safe."""

    def __init__(self, limits: Limits) -> None:
        self.limits = limits
        self.nodes: Parts[Node, NodeFacts] = Parts(self._facts_of_node)
        self.coordinators: Parts[Coordinator, CoordinatorFacts] = Parts(_facts_of_coordinator)
        self.registers: Values[Register] = Values()
        self.budgets: Values[tuple[int, ...]] = Values()
        self.messages: Values[wire.Message] = Values()
        self.links = Links()
        self._node_steps: dict[tuple[object, ...], NodeStep] = {}
        self._of_orders: set[int] = set()
        """The messages that depend on what operators have ordered."""
        self._of_hangs: set[int] = set()
        """Those that say that a round has ended as a hang."""
        self._coordinator_steps: dict[tuple[object, ...], CoordinatorStep] = {}
        count = limits.nodes
        self._first_coordinator = count
        self._register_at = count + limits.coordinators
        self._budget_at = self._register_at + 1
        self._links_at = self._budget_at + 1
        self._slots = count * limits.slots_per_node

    def first(self) -> State:
        """The state in which a world begins."""
        limits = self.limits
        flags = {"is_witness": limits.has_witnesses, "reports": bool(limits.hangs)}
        nodes = [self.nodes.add(Node(at, limits.settings, **flags)) for at in range(limits.nodes)]
        has_order = limits.settings.max_nodes < limits.nodes
        new = Coordinator(has_order=has_order)
        coordinators = [self.coordinators.add(new) for _ in range(limits.coordinators)]
        register = self.registers.number(Register())
        budget = self.budgets.number(limits.budget)
        return (*nodes, *coordinators, register, budget, *(0 for _ in range(self._slots)))

    def link_at(self, state: State, slot: int) -> Link:
        """The connection in this place. There must be one."""
        link = self.links.all[state[self._links_at + slot]]
        assert link is not None
        return link

    def added(self) -> dict[str, Any]:
        """The parts that were added since the last call, for a search that goes on later."""
        return {name: getattr(self, name).added() for name in _TABLES}

    def add(self, added: dict[str, Any]) -> None:
        """Add what an earlier call of `added` returned, in the same order."""
        for name, each in added.items():
            getattr(self, name).add_saved(each)

    # -- the moves that there are ----------------------------------------------------------------

    def moves(self, state: State) -> Iterator[tuple[Move, bool]]:
        """All moves out of this state, and whether each is a fault."""
        left = self.budgets.all[state[self._budget_at]]
        coordinators = [
            self.coordinators.facts[number]
            for number in state[self._first_coordinator : self._register_at]
        ]
        nodes = [self.nodes.facts[number] for number in state[: self._first_coordinator]]
        register: Register = self.registers.all[state[self._register_at]]
        yield from self._moves_of_nodes(state, nodes, coordinators, left)
        yield from self._moves_of_links(state, coordinators, register.owner, left)
        wanted = any(each.may_dial for each in nodes)
        for at, each in enumerate(coordinators):
            if each.is_alive:
                yield from self._moves_of_coordinator(
                    state, at, each, coordinators, register, wanted, left
                )

    def _moves_of_nodes(
        self,
        state: State,
        nodes: list[NodeFacts],
        coordinators: list[CoordinatorFacts],
        left: tuple[int, ...],
    ) -> Iterator[tuple[Move, bool]]:
        may_begin = True
        for at, node in enumerate(nodes):
            if node.status is Status.NEW:
                if not may_begin:
                    continue
                # Nodes that have made no move yet differ only in their names.
                may_begin = not self.limits.first_in_order
            if node.may_dial and self._free_slot(state, at) != NO_SLOT:
                for which, each in enumerate(coordinators):
                    if each.is_alive and each.is_owner and each.lease is not Lease.FROZEN:
                        yield ("dials", at, which), False
            for what, is_fault in node.requests:
                if not is_fault or left[_BUDGET[what]]:
                    yield (what, at, 0), is_fault
            if node.may_die and left[_BUDGET["die"]]:
                yield ("die", at, 0), True
            if node.may_die and left[_BUDGET["power off"]]:
                yield ("power off", at, 0), True
            may_restart = node.status is Status.DEAD or node.was_evicted
            if may_restart and left[_BUDGET["restart"]]:
                yield ("restart", at, 0), True

    def _moves_of_links(
        self,
        state: State,
        coordinators: list[CoordinatorFacts],
        owner: int,
        left: tuple[int, ...],
    ) -> Iterator[tuple[Move, bool]]:
        for slot in range(self._slots):
            number = state[self._links_at + slot]
            if not number:
                continue
            link = self.links.all[number]
            assert link is not None
            far = coordinators[link.coordinator]
            if link.coordinator_side == OPEN and far.lease is not Lease.FROZEN:
                if link.to_coordinator:
                    yield ("reads", slot, 0), False
                elif link.node_end == OFF:
                    if slot in far.attached and slot not in far.missed:
                        yield ("beats stop", slot, 0), False
                    elif slot in far.attached and slot not in far.silent:
                        yield ("falls silent", slot, 0), False
                elif link.node_end:
                    yield ("notices the end", slot, 0), False
                else:
                    yield from self._silences_of(slot, far, left)
            if not link.node_end:
                if link.to_node:
                    yield ("hears", slot, 0), False
                elif link.coordinator_side != OPEN:
                    yield ("notices the loss", slot, 0), False
                elif far.lease is Lease.FROZEN or (owner != link.coordinator and far.is_owner):
                    # It is silent, or the node has read that there is a better one.
                    yield ("drops", slot, 0), False
                if link.coordinator_side == OPEN and left[_BUDGET["cut"]]:
                    yield ("cut", slot, 0), True

    def _silences_of(
        self, slot: int, far: CoordinatorFacts, left: tuple[int, ...]
    ) -> Iterator[tuple[Move, bool]]:
        """What a coordinator hears, or does not, of a node that lives."""
        if slot in far.silent or slot in far.missed:
            yield ("heartbeat", slot, 0), False
        elif slot in far.attached and left[_BUDGET["misses"]]:
            yield ("misses", slot, 0), True
        if slot in far.attached and slot not in far.silent and left[_BUDGET["silence"]]:
            yield ("silence", slot, 0), True

    def _moves_of_coordinator(
        self,
        state: State,
        at: int,
        each: CoordinatorFacts,
        coordinators: list[CoordinatorFacts],
        register: Register,
        wanted: bool,
        left: tuple[int, ...],
    ) -> Iterator[tuple[Move, bool]]:
        owner = register.owner
        is_owner = owner == at
        if each.lease is Lease.FROZEN:
            yield ("wakes", at, 0), False
            return
        if each.is_owner:
            yield from self._orders_to(at, each, left)
        if not each.is_owner:
            # An owner stops to decide before its lease can be taken (core/election).
            is_free = owner < 0 or not coordinators[owner].is_alive or is_owner
            if (is_free and wanted) or (
                not is_free and coordinators[owner].lease is not Lease.HELD
            ):
                yield ("takes over", at, 0), False
        else:
            if each.has_timers and not self._is_answered_soon(state, each):
                yield ("timer", at, 0), False
            if each.write is not None and each.is_written is None:
                yield ("writes", at, 0), False
                if left[_BUDGET["limit"]] and not each.is_limited:
                    yield ("limit", at, 0), True
            if each.is_written is not None:
                yield ("is answered", at, 0), False
            if each.lease is Lease.LOST:
                yield ("restores lease", at, 0), False
            elif is_owner:
                if left[_BUDGET["lose lease"]]:
                    yield ("lose lease", at, 0), True
                if left[_BUDGET["freeze"]]:
                    yield ("freeze", at, 0), True
        if left[_BUDGET["crash"]] and not self.limits.is_embedded:
            yield ("crash", at, 0), True

    def _is_answered_soon(self, state: State, each: CoordinatorFacts) -> bool:
        """Whether messages arrive before the next timer: a report that is late does not count."""
        for slot in each.waits_for:
            link = self.links.all[state[self._links_at + slot]]
            if link is not None and (link.to_coordinator or link.to_node):
                return True
        return False

    def _orders_to(
        self, at: int, each: CoordinatorFacts, left: tuple[int, ...]
    ) -> Iterator[tuple[Move, bool]]:
        """What operators may ask of this coordinator."""
        if each.phase is Phase.CLOSED:
            return
        for node in each.members:
            for what in ("order drain", "order evict"):
                if left[_BUDGET[what]]:
                    yield (what, _index_of(node.name), at), True
        if left[_BUDGET["order admit"]]:
            for name in each.evicted:
                yield ("order admit", _index_of(name), at), True
        if left[_BUDGET["order scale"]]:
            for size in range(len(self.limits.sizes)):
                yield ("order scale", at, size), True
        if left[_BUDGET["order close"]]:
            yield ("order close", at, 0), True

    # -- what a move does ------------------------------------------------------------------------

    def after(self, state: State, move: Move) -> State:
        """The state after a move of this state. Raises InvariantViolation if it breaks a rule."""
        what, who, which = move
        parts = list(state)
        at = _BUDGET.get(what)
        if at is not None:
            left = list(self.budgets.all[state[self._budget_at]])
            left[at] -= 1
            parts[self._budget_at] = self.budgets.number(tuple(left))
        match what:
            case "dials":
                self._dials(parts, who, which)
            case "die" | "power off":
                self._dies(parts, who, what)
            case "testifies":
                self._testifies(parts, who)
            case "reads":
                link, message = self._take(parts, who, "coordinator reads")
                self._step(parts, link.coordinator, "reads", who, message)
            case "hears":
                _, message = self._take(parts, who, "node hears")
                self._hears(parts, who // self.limits.slots_per_node, message)
            case "notices the end":
                self._notices_end(parts, who)
            case "notices the loss":
                self._notices_loss(parts, who)
            case "drops":
                self._act(parts, who // self.limits.slots_per_node, "drops")
            case "cut":
                self._cut(parts, who)
            case _ if what in _OF_SILENCE:
                at_link = self.links.all[parts[self._links_at + who]]
                assert at_link is not None
                self._step(parts, at_link.coordinator, _OF_SILENCE[what], who)
            case "takes over":
                self._takes_over(parts, who)
            case "writes":
                self._writes(parts, who)
            case "order drain" | "order evict" | "order admit":
                self._ordered(parts, what, who, which)
            case "order scale":
                self._step(parts, who, "ordered", what, None, self.limits.sizes[which])
            case "order close":
                self._step(parts, who, "ordered", what, None, None)
            case "restores lease":
                self._step(parts, who, "restores lease", self._owns(parts, who))
            case "crash":
                self._crashes(parts, who)
            case _ if what in _OF_A_COORDINATOR:
                self._step(parts, who, _OF_A_COORDINATOR[what])
            case _:
                self._act(parts, who, what)
        return tuple(parts)

    def _ordered(self, parts: list[int], what: str, who: int, which: int) -> None:
        facts = self.coordinators.facts[parts[self._first_coordinator + which]]
        named = [each for each in facts.members if _index_of(each.name) == who]
        # A node that was evicted may be no member any more.
        node = named[0] if named else self.nodes.facts[parts[who]].id
        if what == "order admit":
            register: Register = self.registers.all[parts[self._register_at]]
            lifted = register.with_lifted(node.name)
            parts[self._register_at] = self.registers.number(lifted)
        self._step(parts, which, "ordered", what, node, None)

    def _owns(self, parts: list[int], who: int) -> bool:
        register: Register = self.registers.all[parts[self._register_at]]
        facts = self.coordinators.facts[parts[self._first_coordinator + who]]
        return register.owner == who and register.term == facts.term

    def _dials(self, parts: list[int], who: int, which: int) -> None:
        register: Register = self.registers.all[parts[self._register_at]]
        slot = self._free_slot(parts, who)
        parts[self._links_at + slot] = self.links.number(Link(which))
        self._act(parts, who, "dials", slot, register.term)

    def _free_slot(self, parts: Sequence[int], who: int) -> int:
        """A place for a new connection of the node; NO_SLOT if it has too many that linger."""
        per_node = self.limits.slots_per_node
        known = [
            self.coordinators.facts[number].referenced
            for number in parts[self._first_coordinator : self._register_at]
        ]
        for slot in range(who * per_node, (who + 1) * per_node):
            if not parts[self._links_at + slot] and not any(slot in each for each in known):
                return slot
        return NO_SLOT

    def _take(self, parts: list[int], slot: int, what: str) -> tuple[Link, int]:
        at = self._links_at + slot
        link = self.links.all[parts[at]]
        assert link is not None
        queue = link.to_coordinator if what == "coordinator reads" else link.to_node
        parts[at] = self.links.changed(parts[at], what)
        return link, queue[0]

    def _hears(self, parts: list[int], who: int, message: int) -> None:
        if not isinstance(self.messages.all[message], wire.AskStacks):
            self._act(parts, who, "hears", message)
            return
        # While one worker of a round stands still, all others wait for it.
        number = self.nodes.facts[parts[who]].number
        nodes = [self.nodes.facts[each] for each in parts[: self._first_coordinator]]
        is_stuck = any(each.hangs and each.number == number for each in nodes)
        self._act(parts, who, "hears", message, is_stuck)

    def _testifies(self, parts: list[int], who: int) -> None:
        """R8: a kernel answers as long as its host has power."""
        asked = self.nodes.facts[parts[who]].questions[0]
        nodes = (self.nodes.facts[each] for each in parts[: self._first_coordinator])
        is_off = any(each.is_off for each in nodes if host_of(each.id).host == asked)
        self._act(
            parts, who, "testifies", HostReport.NOT_ANSWERED if is_off else HostReport.ANSWERED
        )

    def _dies(self, parts: list[int], who: int, how: str) -> None:
        slot = self.nodes.facts[parts[who]].slot
        self._act(parts, who, how)
        if slot != NO_SLOT:
            ended = OFF if how == "power off" else ConnectionEnd.PROCESS_ENDED.value
            self._change(parts, slot, "node ends", ended)
        if self.limits.is_embedded and who < self.limits.coordinators:
            at = self._first_coordinator + who
            if self.coordinators.facts[parts[at]].is_alive:
                self._crashes(parts, who)

    def _notices_end(self, parts: list[int], slot: int) -> None:
        link = self.links.all[parts[self._links_at + slot]]
        assert link is not None
        self._change(parts, slot, "coordinator ends", GONE)
        self._step(parts, link.coordinator, "ends", slot, link.node_end)

    def _notices_loss(self, parts: list[int], slot: int) -> None:
        link = self.links.all[parts[self._links_at + slot]]
        assert link is not None
        self._change(parts, slot, "node ends", ConnectionEnd.CLOSE.value)
        who = slot // self.limits.slots_per_node
        self._act(parts, who, "loses", link.coordinator_side != GONE)
        facts = self.nodes.facts[parts[who]]
        if link.coordinator_side == ANSWERED and facts.status is Status.LEFT:
            register: Register = self.registers.all[parts[self._register_at]]
            register.must_know_end_of(facts.id)

    def _cut(self, parts: list[int], slot: int) -> None:
        """A reset by something between: what was on the way is lost, and both sides notice."""
        self._change(parts, slot, "cut")
        self._act(parts, slot // self.limits.slots_per_node, "loses", False)

    def _takes_over(self, parts: list[int], who: int) -> None:
        before: Register = self.registers.all[parts[self._register_at]]
        register = before.sealed(who)
        parts[self._register_at] = self.registers.number(register)
        former = None
        if self.limits.is_embedded and before.owner >= 0 and before.owner != who:
            former = self.nodes.facts[parts[before.owner]].id
        self._step(parts, who, "takes over", parts[self._register_at], former)

    def _writes(self, parts: list[int], who: int) -> None:
        """The write takes effect, if the register is still this coordinator's (R5)."""
        facts = self.coordinators.facts[parts[self._first_coordinator + who]]
        assert facts.write is not None
        register: Register = self.registers.all[parts[self._register_at]]
        is_own = register.owner == who and register.term == facts.term
        if is_own:
            after = register.written(facts.write)
            parts[self._register_at] = self.registers.number(after)
        self._step(parts, who, "decided", is_own)

    def _crashes(self, parts: list[int], who: int) -> None:
        self._step(parts, who, "crashes")
        for slot in range(self._slots):
            number = parts[self._links_at + slot]
            link = self.links.all[number]
            if link is not None and link.coordinator == who and link.coordinator_side == OPEN:
                self._change(parts, slot, "coordinator ends", GONE)

    # -- steps of the parts, each made once ------------------------------------------------------

    def _change(self, parts: list[int], slot: int, what: str, detail: object = None) -> None:
        at = self._links_at + slot
        if parts[at]:
            parts[at] = self.links.changed(parts[at], what, detail)

    def _act(self, parts: list[int], who: int, what: str, *args: object) -> None:
        key = (parts[who], what, *args)
        step = self._node_steps.get(key)
        if step is None:
            step = self._node_steps[key] = self._node_step(parts[who], what, args)
        parts[who] = step.number
        if step.slot != NO_SLOT:
            at = self._links_at + step.slot
            if step.sent:
                parts[at] = self.links.changed(parts[at], "to coordinator", step.sent)
            if step.has_left:
                parts[at] = self.links.changed(parts[at], "node ends", ConnectionEnd.RESET.value)
        if what in _OF_STEPS:
            self._must_agree(parts, self.nodes.facts[step.number])
        if step.seat is not None:
            register: Register = self.registers.all[parts[self._register_at]]
            register.must_have(self.nodes.facts[step.number].id, *step.seat)

    def _must_agree(self, parts: Sequence[int], node: NodeFacts) -> None:
        """R14: no worker passes the step at which another one stops; the ledger has that step."""
        if node.stopped_at is not None:
            register: Register = self.registers.all[parts[self._register_at]]
            marks = register.marks
            if marks.round == node.number and marks.step != node.stopped_at:
                what = f"stops at {node.stopped_at}, and the ledger has {marks}"
                raise InvariantViolation("R14", f"{node.id.name} {what}")
        for number in parts[: self._first_coordinator]:
            other = self.nodes.facts[number]
            if other.token != node.token:
                continue
            for one, two in ((node, other), (other, node)):
                if one.stopped_at is not None and two.passed >= one.stopped_at:
                    what = f"{two.id.name} has passed step {two.passed}"
                    raise InvariantViolation("R14", f"{what}, {one.id.name} stops there")

    def _node_step(self, number: int, what: str, args: tuple[Any, ...]) -> NodeStep:
        node = self.nodes.copy(number)
        if what == "hears":
            args = (self.messages.all[args[0]], *args[1:])
        slot = args[0] if what == "dials" else node.slot
        reaction = node.react(what, *args)
        sent = tuple(map(self.messages.number, reaction.sent))
        number = self.nodes.add(node)
        return NodeStep(number, sent, reaction.has_left, reaction.seat, slot)

    def _step(self, parts: list[int], who: int, what: str, *args: object) -> None:
        at = self._first_coordinator + who
        key = (parts[at], what, *args)
        step = self._coordinator_steps.get(key)
        if step is None:
            step = self._coordinator_steps[key] = self._coordinator_step(parts[at], what, args)
        parts[at] = step.number
        confirmed = self.coordinators.facts[step.number].confirmed
        if confirmed is not NO_ORDERS and self._owns(parts, who):
            register: Register = self.registers.all[parts[self._register_at]]
            register.must_have_orders(confirmed)
        for slot, message in step.outputs:
            if message == LOSES:
                self._must_be_off(parts, slot)
                continue
            if message in self._of_orders:
                self._must_be_in_ledger(parts, who, slot, message)
            if message in self._of_hangs:
                self._must_hang(parts, message)
            if message > 0:
                self._change(parts, slot, "to node", message)
            else:
                side = ANSWERED if message == ANSWERS else CLOSED
                self._change(parts, slot, "coordinator ends", side)

    def _must_be_in_ledger(self, parts: list[int], who: int, slot: int, message: int) -> None:
        """An order to leave counts from when the ledger has it; an eviction until it has not."""
        if not self._owns(parts, who):
            return
        register: Register = self.registers.all[parts[self._register_at]]
        node = self.nodes.facts[parts[slot // self.limits.slots_per_node]].id
        if isinstance(self.messages.all[message], wire.Welcome):
            if register.orders.eviction_of(node.name) is not None:
                what = f"{node.name} is admitted, and the ledger has its eviction"
                raise InvariantViolation("R4", what)
        elif all(each.node.name != node.name for each in register.orders.drains):
            what = f"{node.name} is asked to leave, and the ledger does not have that"
            raise InvariantViolation("R5", what)

    def _must_be_off(self, parts: list[int], incarnation: int) -> None:
        """R8: no node is lost by witnesses whose host has power."""
        for number in parts[: self._first_coordinator]:
            node = self.nodes.facts[number]
            if node.id.incarnation == incarnation and not node.is_off:
                what = f"{node.id.name} is lost by witnesses, and its host has power"
                raise InvariantViolation("R8", what)

    def _must_hang(self, parts: list[int], message: int) -> None:
        """R15: a round ends as a hang only if a worker of it stands still."""
        change = self.messages.all[message].change
        nodes = (self.nodes.facts[number] for number in parts[: self._first_coordinator])
        if not any(each.hangs and each.number == change.round for each in nodes):
            raise InvariantViolation("R15", f"{change}, and no worker stands still")

    def _coordinator_step(self, number: int, what: str, args: tuple[Any, ...]) -> CoordinatorStep:
        coordinator = self.coordinators.copy(number)
        if what == "reads":
            args = (args[0], self.messages.all[args[1]])
        elif what == "takes over":
            args = (self.registers.all[args[0]], args[1])
        outputs = [
            (each.node.incarnation, LOSES)
            if isinstance(each, Lost)
            else (each.slot, self._number_of(each))
            for each in coordinator.react(what, *args)
        ]
        return CoordinatorStep(self.coordinators.add(coordinator), tuple(outputs))

    def _number_of(self, output: Sent | Ended) -> int:
        if isinstance(output, Sent):
            number = self.messages.number(output.message)
            if isinstance(output.message, wire.Welcome | wire.AskedToLeave):
                self._of_orders.add(number)
            if isinstance(output.message, wire.Broken):
                failure = output.message.change.failure
                if failure is not None and failure.is_hang:
                    self._of_hangs.add(number)
            return number
        return ANSWERS if output.is_answer else CLOSES

    # -- what a state is -------------------------------------------------------------------------

    def is_settled(self, state: State) -> bool:
        """R7: whether nothing has to happen any more.

        Each node that is left is at rest: the run is over for it, it has finished, or all those
        that are left are in one round, or they are too few, or too many and on standby. Nothing is
        on the way. Or no coordinator lives.
        """
        facts = self.coordinators.facts
        coordinators = [facts[at] for at in state[self._first_coordinator : self._register_at]]
        if not any(each.is_alive for each in coordinators):
            return True
        nodes = [self.nodes.facts[number] for number in state[: self._first_coordinator]]
        left = [
            each for each in nodes if each.status in (Status.NEW, Status.RUNS) and not each.is_over
        ]
        if not left:
            return True
        register: Register = self.registers.all[state[self._register_at]]
        owner = coordinators[register.owner] if register.owner >= 0 else None
        if owner is None or not owner.is_alive or not owner.is_owner or not owner.settles:
            return False
        if owner.lease is not Lease.HELD or owner.phase not in (Phase.ACTIVE, Phase.GATHERING):
            return False
        for node in left:
            if node.slot == NO_SLOT or not node.is_attached:
                return False
            link = self.links.all[state[self._links_at + node.slot]]
            if link is None or link.to_coordinator or link.to_node or link.node_end:
                return False
            if node.slot not in owner.attached:
                return False
        return self._are_at_rest(left, owner)

    def _are_at_rest(self, left: list[NodeFacts], owner: CoordinatorFacts) -> bool:
        if any(each.desired is DesiredState.GONE or each.must_leave for each in left):
            return False
        # A node that an operator has drained was asked, whoever owns the run.
        may_leave = [each for each in left if each.desired in _MAY_LEAVE]
        if any(owner.orders_written.drain_of(each.id) is not None for each in may_leave):
            return False
        least, most = owner.size
        at_work = [each for each in left if each.has_workers]
        ready = [each for each in left if each.desired is DesiredState.READY]
        done = [each for each in left if each.desired is DesiredState.DONE]
        if len(at_work) + len(ready) + len(done) < len(left):
            return False
        # R15: a round whose worker stands still ends.
        if any(each.hangs for each in at_work):
            return False
        # R14: nobody waits for a decision that does not come.
        if any(each.is_waiting for each in at_work):
            return False
        if owner.phase is Phase.ACTIVE:
            inside = {each.id for each in at_work}
            if inside != set(owner.in_round) or any(e.number != owner.number for e in at_work):
                return False
            # Once a node is done, newcomers are not let in any more.
            if owner.has_finished:
                return True
            are_too_few = len(at_work) + len(ready) < least
            return len(at_work) <= most and (not ready or len(at_work) == most or are_too_few)
        # A node that is done waits for the end of the run, so the run must not wait for it.
        return not at_work and not done and len(ready) < least

    # -- facts -----------------------------------------------------------------------------------

    def _facts_of_node(self, node: Node) -> NodeFacts:
        machine = node.machine
        runs = node.status in (Status.NEW, Status.RUNS)
        is_over = machine.is_over
        return NodeFacts(
            id=node.info.id,
            slot=node.slot,
            status=node.status,
            requests=tuple(self._requests_of(node)) if runs and not is_over else (),
            may_dial=runs and node.slot == NO_SLOT and not is_over,
            may_die=runs and not is_over,
            is_attached=machine.is_attached,
            is_over=is_over,
            desired=machine.desired,
            has_workers=machine.has_workers,
            number=machine.number,
            token=node.token,
            passed=node.next_step - 1,
            stopped_at=node.stopped_at,
            is_waiting=node.is_waiting,
            is_off=node.is_off,
            hangs=node.hangs,
            questions=tuple(each.host for each in node.questions),
            must_leave=node.must_leave and machine.desired in _MAY_LEAVE,
            was_evicted=machine.refused is not None and machine.refused.code is RefusalCode.EVICTED,
        )

    def _requests_of(self, node: Node) -> Iterator[tuple[str, bool]]:
        machine, wants = node.machine, node.machine.desired
        has_ended = wants is DesiredState.IN_ROUND and machine.ended is not None
        if node.must_leave and wants in _MAY_LEAVE:
            yield from self._leaves(node)
        elif wants is DesiredState.NOTHING or has_ended:
            yield ("ready" if machine.number < self.limits.rounds else "goodbye"), False
        if wants in (DesiredState.DONE, DesiredState.DEPARTING):
            yield "goodbye", False
        if machine.has_workers:
            if self.limits.successes:
                yield "done", False
            if self.limits.steps:
                yield from self._steps_of(node)
            if self.limits.hangs:
                if machine.is_attached and not node.has_reported:
                    yield "reports", False
                if not node.hangs:
                    yield "hang", True
            yield "fail", True
            yield "ready again", True
            yield "leave", True
        if wants in (DesiredState.READY, DesiredState.IN_ROUND):
            yield "depart", True
        if machine.is_attached:
            yield "close", True
        if node.questions:
            yield "testifies", False

    def _leaves(self, node: Node) -> Iterator[tuple[str, bool]]:
        """How it leaves, as an operator wants: at the agreed step, or when its time is over."""
        if not (self.limits.steps and node.machine.has_workers):
            yield "departs as asked", False
        elif not node.drains:
            yield "drains as asked", False
        elif node.stopped_at is None:
            yield "departs at last", False

    def _steps_of(self, node: Node) -> Iterator[tuple[str, bool]]:
        """What its worker and its thread may do next."""
        if node.is_asked:
            yield "promise", False
        if node.stopped_at is not None:
            last = "goodbye" if node.machine.number >= self.limits.rounds else "asks at last"
            yield ("departs at last" if node.drains else last), False
        elif not node.is_waiting and node.next_step < self.limits.steps:
            yield "step", False
        if not node.drains and node.stopped_at is None:
            yield "drain", True


_MAY_LEAVE: Final = (DesiredState.NOTHING, DesiredState.READY, DesiredState.IN_ROUND)
_OF_STEPS: Final = ("step", "hears")
_OF_SILENCE: Final = {
    "silence": "silent",
    "falls silent": "silent",
    "misses": "misses",
    "beats stop": "misses",
    "heartbeat": "heartbeat",
}
_OF_A_COORDINATOR: Final = {
    "timer": "timer",
    "is answered": "answered",
    "limit": "limited",
    "lose lease": "loses lease",
    "freeze": "freezes",
    "wakes": "loses lease",
}


def _facts_of_coordinator(each: Coordinator) -> CoordinatorFacts:
    membership = each.membership
    asked = membership.asked_settings if membership is not None else None
    settings = membership.orders.settings_of(asked) if membership and asked else None
    return CoordinatorFacts(
        is_alive=each.is_alive,
        is_owner=membership is not None,
        lease=each.lease,
        term=each.term,
        has_timers=bool(each.timers),
        write=each.writing,
        is_written=each.is_written,
        is_limited=membership is not None and "commit" in membership.suspension.causes,
        referenced=each.referenced,
        attached=tuple(each.attached.values()),
        silent=tuple(each.attached[name] for name in each.silent),
        missed=tuple(each.attached[name] for name in each.missed),
        waits_for=_waits_for(each),
        phase=membership.phase if membership is not None else None,
        number=membership.number if membership is not None else 0,
        in_round=tuple(m.id for m in membership.roster.members(Bucket.IN_ROUND))
        if membership is not None
        else (),
        has_finished=membership is not None and membership._finished.count > 0,
        settles=each.writing is None and (membership is None or not _has_unwritten(membership)),
        members=tuple(member.id for member in membership.roster) if membership is not None else (),
        evicted=_evicted(membership) if membership is not None else (),
        orders_written=membership.orders_written if membership is not None else NO_ORDERS,
        confirmed=_confirmed(membership) if membership is not None else NO_ORDERS,
        size=(settings.min_nodes, settings.max_nodes) if settings is not None else (0, 0),
    )


def _waits_for(each: Coordinator) -> tuple[int, ...]:
    membership = each.membership
    if membership is None or not each.timers:
        return ()
    _, _, timer = each.timers[min(each.timers, key=lambda name: each.timers[name][:2])]
    return tuple(each.attached.values()) if timer.kind is TimerKind.HANG else ()


def _has_unwritten(membership: Membership) -> bool:
    """Whether an order is not in the ledger yet. That a drained node has left is written later."""
    now, written = membership.orders, membership.orders_written
    if (now.evictions, now.scale) != (written.evictions, written.scale):
        return True
    return any(each not in written.drains for each in now.drains)


def _evicted(membership: Membership) -> tuple[str, ...]:
    known = (membership.orders, *membership.orders_possible)
    return tuple(sorted({each.node.name for orders in known for each in orders.evictions}))


def _confirmed(membership: Membership) -> Orders:
    """What the ledger has for certain: of evictions, and of the size of the run."""
    now, *possible = membership.orders, *membership.orders_possible
    evictions = [
        each
        for each in now.evictions
        if all(known.eviction_of(each.node.name) is not None for known in possible)
    ]
    is_scaled = now.scale is not None and all(each.scale == now.scale for each in possible)
    if not evictions and not is_scaled:
        return NO_ORDERS
    return Orders(evictions=tuple(evictions), scale=now.scale if is_scaled else None)


def _index_of(name: str) -> int:
    """Nodes are called n0, n1 and so on."""
    return int(name[1:])
