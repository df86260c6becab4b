"""Who gets a place in the next round, who has to wait for one, and why a round has ended.

Each keeps its own account of what nodes have said and of what their coordinator has done.
"""

from __future__ import annotations

from typing import Any, Final

import msgspec

from rallypoint.client.machine import DesiredState
from rallypoint.client.node import Node
from rallypoint.coordinator.hosted_run import HostedRun
from rallypoint.core import effects as do
from rallypoint.core import events as on
from rallypoint.core.election import RunState
from rallypoint.core.marking import ranks_in
from rallypoint.core.roster import Bucket
from rallypoint.core.store import StoreOp, StoreResult, StoreValue
from rallypoint.core.values import (
    Change,
    ChangeKind,
    FailureKind,
    MemberState,
    NodeId,
    Phase,
    RoundRecord,
)
from rallypoint.simulation.machine import SimulatedFront
from rallypoint.simulation.scene import Oracle, Scene, StartedNode, Token

CLOCKS: Final = 0.8
"""By so much, at least, a clock of another rate counts."""
ROUNDING_S: Final = 0.01
STEADY_S: Final = 60.0
"""A stay of this length is long."""
DOUBLINGS_MAX: Final = 6
HEARD_S: Final = 1.0
"""A node that is attached has told its coordinator everything within this time."""


class PlacesAreKept(Oracle):
    """R7: a survivor that is not ready keeps its place until the last call is over, or longer.

    So if a round is formed without a member of the one before, the last call has passed since then.
    """

    def __init__(self, scene: Scene) -> None:
        super().__init__(scene)
        self._inside: dict[HostedRun, dict[NodeId, None]] = {}
        """The members of the last round that have not gone, until the next one is formed."""
        self._ended_s: dict[HostedRun, float] = {}

    def stepped(
        self, front: SimulatedFront, run: HostedRun, event: on.Event, effects: list[do.Effect]
    ) -> None:
        """See Oracle."""
        inside = self._inside.setdefault(run, {})
        if isinstance(event, on.NodeDone | on.NodeDeparting | on.NodeLeft):
            inside.pop(event.node, None)
        for effect in effects:
            match effect:
                case do.Forget(node=node):
                    inside.pop(node, None)
                case do.Publish(record=record):
                    self._inside[run] = inside = _nodes_of(record)
                case do.Break():
                    self._ended_s[run] = front.process.awake_s()
                case do.Commit(record=RoundRecord() as record) if run in self._ended_s:
                    self._must_have(front, run, record, inside)
                    del self._ended_s[run]

    def restored(
        self,
        front: SimulatedFront,
        run: HostedRun,
        state: RunState,
        named: dict[str, Any],
        effects: list[do.Effect],
    ) -> None:
        """See Oracle."""
        self._ended_s.pop(run, None)
        if state.round is None or state.close is not None:
            return
        marks = state.marks
        out = ranks_in(marks.done) | ranks_in(marks.gone) if marks.round == state.number else ()
        members = [NodeId(row.name, row.incarnation) for row in state.round.members]
        inside = dict.fromkeys(node for rank, node in enumerate(members) if rank not in out)
        self._inside[run] = inside
        if any(isinstance(effect, do.Break) for effect in effects):
            self._ended_s[run] = front.process.awake_s()

    def _must_have(
        self,
        front: SimulatedFront,
        run: HostedRun,
        record: RoundRecord,
        inside: dict[NodeId, None],
    ) -> None:
        settings, passed_s = run.membership.settings, front.process.awake_s() - self._ended_s[run]
        assert settings is not None
        # An operator may have taken places away: then some that are ready have none.
        roster, is_full = run.membership.roster, record.head.nodes >= settings.max_nodes
        ready = {m.id for m in roster if is_full and m.state is MemberState.READY}
        # Those that broke too many rounds keep no place.
        ready |= {m.id for m in roster if m.stays_out}
        out = [node for node in inside if node not in _nodes_of(record)]
        left_out = [node.name for node in out if node not in ready]
        least_s = _least_s(self.scene, front, settings.last_call_s)
        if left_out and passed_s < least_s:
            what = f"{front.process.name} forms round {record.head.number} {passed_s:.2f} s after "
            without = f"the one before, without {left_out}, whose places last for the last call"
            self.scene.broke("R7", what + without)


class _Queue:
    """The newcomers of one run at one coordinator, as they asked for a round."""

    def __init__(self) -> None:
        self.asked: dict[NodeId, tuple[int, float, float]] = {}
        """Their places, when each asked, and when it may be let in at the earliest."""
        self._asked = 0
        self._came_s: dict[NodeId, float] = {}
        self._short_stays: dict[str, int] = {}

    def came(self, node: NodeId, now_s: float) -> None:
        """It was admitted as a new member."""
        self._came_s[node] = now_s

    def asks(self, node: NodeId, delay_s: float, now_s: float) -> None:
        """It is ready. A repeat changes nothing."""
        if node in self.asked:
            return
        self._asked += 1
        if now_s - self._came_s.get(node, now_s) < STEADY_S:
            delay_s *= 2 ** min(self._short_stays.get(node.name, 0), DOUBLINGS_MAX)
        self.asked[node] = (self._asked, now_s, now_s + delay_s)

    def gone(self, node: NodeId, now_s: float, *, is_done: bool) -> None:
        """It is no member any more."""
        self.asked.pop(node, None)
        stayed_s = now_s - self._came_s.pop(node, now_s - STEADY_S)
        if stayed_s >= STEADY_S:
            self._short_stays.pop(node.name, None)
        elif not is_done:
            self._short_stays[node.name] = self._short_stays.get(node.name, 0) + 1


class NewcomersWaitInTurn(Oracle):
    """R7: newcomers get places in the order of their requests, and are let in after a delay.

    "After each short stay a name waits twice as long, at most 64 times as long."
    """

    def __init__(self, scene: Scene) -> None:
        super().__init__(scene)
        self._queues: dict[HostedRun, _Queue] = {}
        self._done: dict[HostedRun, dict[NodeId, None]] = {}
        self._formed: dict[HostedRun, RoundRecord] = {}
        """The last record of each run that was looked at, when it was formed."""

    def stepped(
        self, front: SimulatedFront, run: HostedRun, event: on.Event, effects: list[do.Effect]
    ) -> None:
        """See Oracle."""
        queue, now_s = self._queues.setdefault(run, _Queue()), front.process.awake_s()
        done, roster = self._done.setdefault(run, {}), run.membership.roster
        for effect in effects:
            match effect:
                case do.Welcome(node=node, resumed=False):
                    queue.came(node, now_s)
                case do.Forget(node=node):
                    queue.gone(node, now_s, is_done=done.pop(node, 1) is None)
                case do.Publish(record=record):
                    for node in _nodes_of(record):
                        queue.asked.pop(node, None)
        settings = run.membership.settings
        if settings is None:
            return
        if isinstance(event, on.NodeReady | on.NodeDone):
            member = roster.living(event.node)
            if member is not None and member.state is MemberState.READY:
                queue.asks(event.node, settings.scale_up_delay_s, now_s)
            elif member is not None and member.state is MemberState.DONE:
                done[event.node] = None
        newcomers = [member.id for member in roster.members(Bucket.NEWCOMER)]
        for effect in effects:
            match effect:
                case do.Break(change=change) if change.kind is ChangeKind.NODES_JOINED:
                    # A survivor may say that an earlier coordinator has let them in.
                    if getattr(event, "node", None) in (None, *newcomers):
                        self._must_have_waited(front, queue, newcomers, change)
        # Not when it is given to the ledger, or given again: a node that had to stay out may be a
        # newcomer by then, with an earlier request.
        formed = run.membership.committing
        if isinstance(formed, RoundRecord) and formed is not self._formed.get(run):
            self._formed[run] = formed
            self._must_be_first(front, queue, newcomers, formed)

    def _must_have_waited(
        self, front: SimulatedFront, queue: _Queue, newcomers: list[NodeId], change: Change
    ) -> None:
        waits = [queue.asked[node] for node in newcomers if node in queue.asked]
        now_s = front.process.awake_s()
        is_due = [
            now_s - asked_s >= _least_s(self.scene, front, due_s - asked_s)
            for _, asked_s, due_s in waits
        ]
        if is_due and not any(is_due):
            early_s = min(due_s for *_, due_s in waits) - now_s
            self.scene.broke("R7", f"{front.process.name}: {change}, {early_s:.2f} s too early")

    def _must_be_first(
        self, front: SimulatedFront, queue: _Queue, newcomers: list[NodeId], record: RoundRecord
    ) -> None:
        chosen, places = _nodes_of(record), queue.asked
        inside = [places[node][0] for node in newcomers if node in chosen and node in places]
        waiting = [
            (places[node][0], node) for node in newcomers if node not in chosen and node in places
        ]
        if inside and waiting and min(waiting)[0] < max(inside):
            what = f"{front.process.name} forms round {record.head.number} without "
            asked = f"{min(waiting)[1].name}, which has asked before another newcomer"
            self.scene.broke("R7", what + asked)


class CausesAreNamed(Oracle):
    """The verdict names the first cause that applies, among what was reported until then.

    A lost node comes before a killed worker, and that before an exception in a program. A
    communication error is the last, and is explained by a departure.
    """

    def __init__(self, scene: Scene) -> None:
        super().__init__(scene)
        self._cases: dict[HostedRun, _Case] = {}

    def stepped(
        self, front: SimulatedFront, run: HostedRun, event: on.Event, effects: list[do.Effect]
    ) -> None:
        """See Oracle."""
        case = self._cases.get(run)
        if case is not None and isinstance(event, on.WorkerFailed) and event.round == case.number:
            member = run.membership.roster.living(event.node)
            if member is not None and member.last_round == case.number:
                case.reported.append(event.failure.kind)
        for effect in effects:
            match effect:
                case do.Break(change=change):
                    self._cases.pop(run, None)
                    if change.failure is not None and not change.confirmed:
                        kind = change.failure.kind
                        case = self._cases[run] = _Case(change.round, [kind])
                case do.Forget(node=node, loss=Change()) if case is not None:
                    record = run.membership.round
                    case.has_loss |= record is not None and node in _nodes_of(record)
                case do.Verdict(change=change) if case is not None:
                    self._cases.pop(run, None)
                    self._must_be_worst(front, case, change)

    def _must_be_worst(self, front: SimulatedFront, case: _Case, change: Change) -> None:
        told = f"{front.process.name} gives the verdict {change} on round {case.number}"
        if case.has_loss and change.kind is not ChangeKind.NODE_LOST:
            self.scene.broke("cause", f"{told}, and a member of it was lost")
        if change.failure is None:
            return
        worst = min(case.reported, key=_WORST_FIRST.index)
        if _rank_of(change.failure.kind) > _rank_of(worst):
            self.scene.broke("cause", f"{told}, and {worst} was reported, too")


class _Case(msgspec.Struct):
    """The end of a round whose cause is not named yet."""

    number: int
    reported: list[FailureKind]
    has_loss: bool = False


_WORST_FIRST: Final = (
    FailureKind.SIGNAL,
    FailureKind.OOM,
    FailureKind.EXCEPTION,
    FailureKind.COMMUNICATION,
)


def _rank_of(kind: FailureKind) -> int:
    """A worker that was killed by a signal counts as much as one for lack of memory."""
    return max(1, _WORST_FIRST.index(kind))


class FailuresAreHeard(Oracle):
    """R7: a node says again what it wants and what it knows, until a coordinator has heard it.

    So a worker's failure ends its round, whatever happens to the connection meanwhile, and the
    round does not end because the node asks for the next one.
    """

    def __init__(self, scene: Scene) -> None:
        super().__init__(scene)
        self._failed: dict[str, int] = {}
        """The round in which a worker of each node has failed last."""
        self._after: dict[int, None] = {}
        """Calls of nodes that had failed in their round: whoever gets them has heard of that."""

    def joins(self, here: StartedNode, node: Node) -> None:
        """See Oracle."""
        machine: Any = node._machine
        failed = machine.failed

        def fails(failure: Any) -> Any:
            if machine.desired is DesiredState.IN_ROUND and machine.ended is None:
                self._failed[here.name] = machine.number
            return failed(failure)

        machine.failed = fails

    def called(
        self, here: StartedNode, token: Token, call: int, operation: StoreOp, limit_s: float | None
    ) -> None:
        """See Oracle."""
        if self._failed.get(here.name) == token[1]:
            self._after[call] = None

    def answered(self, here: StartedNode, token: Token, call: int, result: StoreResult) -> None:
        """See Oracle."""
        if call not in self._after or not isinstance(result, StoreValue) or here.node_id is None:
            return
        for front in self.scene.fronts:
            runs = front.driver.coordinator.runs.values() if not front.has_ended else ()
            for run in runs:
                membership = run.membership
                # While processes end, they are the cause of the end, and are told first.
                is_on = membership.phase_of_work is Phase.ACTIVE and not membership.deposed
                if not is_on or membership.number != token[1] or membership._suspicion.in_burst:
                    continue
                if run.run_id == here.run_id and run.connections.of(here.node_id) is not None:
                    what = f"{here.name} failed in round {token[1]}, which {front.process.name} "
                    self.scene.broke("R7", what + "does not know, and it answers its calls")

    def looked(self) -> None:
        """See Oracle."""
        scene = self.scene
        if scene.settled_s is None or scene.world.now_s < scene.settled_s + HEARD_S:
            return
        for here in scene.living:
            node = here.node
            if node is None or here.process.is_frozen or node.change is not None:
                continue
            number = node._machine.number
            if self._failed.get(here.name) == number and node._machine.has_workers:
                self.scene.broke("R7", f"{here.name} failed in round {number}, which goes on")

    def round_ended(self, here: StartedNode, change: Change) -> None:
        """See Oracle."""
        own = here.node_id
        is_own = own is not None and change.nodes == (own.name,)
        has_failed = self._failed.get(here.name) == change.round
        if change.kind is ChangeKind.READY_AGAIN and is_own and has_failed:
            self.scene.broke("R7", f"{here.name} has failed, and its round ended by {change}")


def _nodes_of(record: RoundRecord) -> dict[NodeId, None]:
    return dict.fromkeys(NodeId(row.name, row.incarnation) for row in record.members)


def _least_s(scene: Scene, front: SimulatedFront, due_s: float) -> float:
    """What is left of a time if it was counted by this process's clock, which may be fast."""
    is_right = front.process.has_right_clock and not scene.plan.wild_clocks
    return (1.0 if is_right else CLOCKS) * due_s - ROUNDING_S


ROUND_ORACLES: Final = (PlacesAreKept, NewcomersWaitInTurn, CausesAreNamed, FailuresAreHeard)
