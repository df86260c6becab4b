"""What an owner may do and has to do: its lease, its nodes, and the closes that it was asked for.

Each is judged by what has happened in the world, and not by what the owner believes.
"""

from __future__ import annotations

from typing import Any, Final

from rallypoint.coordinator.hosted_run import HostedRun
from rallypoint.core import effects as do
from rallypoint.core import election as e
from rallypoint.core import events as on
from rallypoint.core.election import RunState
from rallypoint.core.values import (
    Change,
    ChangeKind,
    MemberState,
    NodeId,
    Phase,
    RoundMember,
    RoundRecord,
)
from rallypoint.ledger.keys import COORDINATORS, MISTAKE, RUNS
from rallypoint.simulation.machine import SimulatedFront
from rallypoint.simulation.scene import Oracle, Scene, StartedNode

ROUNDING_S: Final = 0.001
WITHOUT_LEASE_S: Final = 12.0
"""How long a coordinator may be without a lease in peace: it may have to wait for a last answer."""
SUCCEEDED_WITHIN_S: Final = 2.0
"""How long a run may be without a coordinator after the process of its own was killed."""
_DONE: Final = MemberState.DONE


class LeaseIsFresh(Oracle):
    """R5: a coordinator decides only for its ttl, less a margin, after its last renewal was sent.

    A renewal is sent before the ledger has it. So the ledger's time is the latest that can count.
    """

    def __init__(self, scene: Scene) -> None:
        super().__init__(scene)
        self._fronts: list[SimulatedFront] = []
        self._renewed: dict[str, tuple[e.Lease, float]] = {}
        """By process: its lease as it wrote it, and when, on its own clock."""

    def serves(self, front: SimulatedFront) -> None:
        """See Oracle."""
        self._fronts.append(front)

    def written(self, name: str, value: bytes | None) -> None:
        """See Oracle."""
        if value is None or not name.startswith(COORDINATORS):
            return
        lease = e.decode_lease(value)
        if lease.state is e.LeaseState.REVOKED:
            return  # Its process cannot know that yet.
        for front in self._fronts:
            if front.process.is_alive and front.driver.ownership.process == lease.process:
                self._renewed[lease.process] = lease, front.process.clock_s()

    def stepped(
        self, front: SimulatedFront, run: HostedRun, event: on.Event, effects: list[do.Effect]
    ) -> None:
        """See Oracle: a run whose lease is too old is SUSPENDED before the next event."""
        if run.membership.phase in (Phase.SUSPENDED, Phase.CLOSED):
            return
        known = self._renewed.get(front.driver.ownership.process)
        if known is None:
            return
        lease, written_s = known
        timing = e.Timing.of(lease.ttl_s)
        old_s, name = front.process.clock_s() - written_s, front.process.name
        if lease.state is e.LeaseState.MOVING:
            self.scene.broke("R5", f"{name} has given its lease away, and {run.run_id} goes on")
        if old_s > timing.ttl_s - timing.margin_s + ROUNDING_S:
            what = f"{name} decides, and the ledger had its last renewal {old_s:.3f} s ago"
            self.scene.broke("R5", f"{what}, with a ttl of {timing.ttl_s:g} s")


class ClosesAreKept(Oracle):
    """R6: a run that was asked to close gathers for no round, and none goes on."""

    def __init__(self, scene: Scene) -> None:
        super().__init__(scene)
        self._asked: dict[HostedRun, str] = {}

    def stepped(
        self, front: SimulatedFront, run: HostedRun, event: on.Event, effects: list[do.Effect]
    ) -> None:
        """See Oracle."""
        if isinstance(event, on.CloseRequested):
            self._asked[run] = event.reason
        if run in self._asked and run.membership.phase in (Phase.GATHERING, Phase.ACTIVE):
            what = f"{front.process.name} was asked to close {run.run_id}, and forgot it"
            self.scene.broke("R6", what)


class LostAreDropped(Oracle):
    """R8: a node that is no member has no connection as one: else it would wait for ever."""

    def looked(self) -> None:
        """See Oracle."""
        for front in self.scene.fronts:
            if front.process.is_alive and not front.has_ended:
                for run in front.driver.coordinator.runs.values():
                    self._look_at(front, run)

    def _look_at(self, front: SimulatedFront, run: HostedRun) -> None:
        roster = run.membership.roster
        if not run.is_claimed or run.has_failed:
            return
        for name, session in run.connections.by_name.items():
            if session.node is None or roster.living(session.node) is None:
                what = f"{front.process.name} keeps the connection of {name}, which is no member"
                self.scene.broke("R8", what)


class SurvivorsKeepRanks(Oracle):
    """R3: with the policy `stable`, a survivor keeps its node rank while the round is as large."""

    def __init__(self, scene: Scene) -> None:
        super().__init__(scene)
        self._before: dict[HostedRun, RoundRecord] = {}
        """The last round that was given to the ledger, which takes one at a time."""

    def stepped(
        self, front: SimulatedFront, run: HostedRun, event: on.Event, effects: list[do.Effect]
    ) -> None:
        """See Oracle."""
        for effect in effects:
            match effect:
                case do.Commit(record=RoundRecord() as record):
                    before = self._before.get(run)
                    if before is not None and before.head.number < record.head.number:
                        self._compare(front, before, record)
                    self._before[run] = record

    def restored(
        self,
        front: SimulatedFront,
        run: HostedRun,
        state: RunState,
        named: dict[str, Any],
        effects: list[do.Effect],
    ) -> None:
        """See Oracle."""
        if state.round is not None:
            self._before[run] = state.round

    def _compare(self, front: SimulatedFront, before: RoundRecord, after: RoundRecord) -> None:
        ranks = {row.name: rank for rank, row in enumerate(after.members)}
        for rank, row in enumerate(before.members[: len(after.members)]):
            if ranks.get(row.name, rank) != rank:
                moved = f"{row.name} went from rank {rank} to {ranks[row.name]}"
                told = f"{_names(before.members)}, then {_names(after.members)}"
                self.scene.broke("R3", f"{front.process.name}: {moved}: {told}")


class BreaksAreDue(Oracle):
    """R3, R7: newcomers end a round only if it has room, and no member of it is done.

    A member that should stay out, and was let in for want of others, leaves its place to them.
    The loss of a member that is done ends nothing. What was not the program's fault is not charged
    to the budget, and no run forms a round beyond its budget.
    """

    def __init__(self, scene: Scene) -> None:
        super().__init__(scene)
        self._rounds: dict[HostedRun, RoundRecord] = {}
        self._done: dict[HostedRun, dict[str, None]] = {}
        """The members of that round that are done."""
        self._let_in: dict[HostedRun, dict[NodeId, None]] = {}
        """The members that should stay out: of that round, or of the one that is formed next."""

    def stepped(
        self, front: SimulatedFront, run: HostedRun, event: on.Event, effects: list[do.Effect]
    ) -> None:
        """See Oracle."""
        record = self._rounds.get(run)
        if isinstance(event, on.NodeDone) and record is not None:
            member = run.membership.roster.living(event.node)
            if member is not None and event.round == record.head.number and member.state is _DONE:
                self._done[run][event.node.name] = None
        for effect in effects:
            match effect:
                case do.LetBackIn(node=node):
                    self._let_in.setdefault(run, {})[node] = None
                case do.Publish(record=record):
                    self._rounds[run], self._done[run] = record, {}
                    inside = {NodeId(row.name, row.incarnation) for row in record.members}
                    known = self._let_in.get(run, {})
                    self._let_in[run] = {each: None for each in known if each in inside}
                case do.Break(change=change) if record is not None:
                    self._must_be_due(front, run, record, change)
                case do.Verdict(change=change) if change.charged and change.failure is None:
                    self.scene.broke("budget", f"{front.process.name} charges {change}")
                case do.Commit(record=RoundRecord(head=head)):
                    settings = run.membership.settings
                    limit = settings.max_restarts if settings is not None else None
                    if settings is not None and settings.restart_window_s is not None:
                        limit = None  # Old charges are forgiven; `budget_checker` counts them.
                    if limit is not None and head.restart_count > limit:
                        what = f"round {head.number} begins after {head.restart_count} restarts"
                        self.scene.broke("budget", f"{what}, and the run has {limit}")

    def _must_be_due(
        self, front: SimulatedFront, run: HostedRun, record: RoundRecord, change: Change
    ) -> None:
        name, done = front.process.name, self._done[run]
        settings = run.membership.settings
        if change.kind is ChangeKind.NODES_JOINED and settings is not None:
            if done:
                self.scene.broke("R7", f"{name}: {change}, though {', '.join(done)} are done")
            places = settings.max_nodes - record.head.nodes + len(self._let_in.get(run, ()))
            if places <= 0:
                self.scene.broke("R3", f"{name}: {change}, and the round has no place")
        if change.kind in (ChangeKind.NODE_LOST, ChangeKind.NODE_LEFT):
            ended = [each for each in change.nodes if each in done]
            if ended:
                self.scene.broke("R8", f"{name}: {change}, and {ended[0]} was done")


class HostsAreGone(Oracle):
    """R8: the node that hosted the last owner is expected for a moment only, and no other node is.

    It is so if the last owner's lease was revoked. Who handed its lease over is alive.
    """

    def __init__(self, scene: Scene) -> None:
        super().__init__(scene)
        self._leases: dict[str, e.Lease] = {}
        self._heads: dict[str, e.RunRegister] = {}
        self._hosts: dict[tuple[str, int], NodeId | None] = {}
        """By run and term: the node of the owner before that, if its lease had been revoked."""

    def written(self, name: str, value: bytes | None) -> None:
        """See Oracle."""
        if name.startswith(COORDINATORS):
            lease = self._leases.pop(name.removeprefix(COORDINATORS), None)
            if value is not None:
                lease = e.decode_lease(value)
                self._leases[lease.process] = lease
        elif name.startswith(RUNS) and value is not None:
            head = e.decode_run(value)
            before = self._heads.get(head.run_id)
            if before is not None and head.term > before.term:
                self._hosts[head.run_id, head.term] = self._gone(before.owner, head.owner)
            self._heads[head.run_id] = head

    def _gone(self, before: str, after: str) -> NodeId | None:
        last, now = self._leases.get(before), self._leases.get(after)
        if last is None or last.state is not e.LeaseState.REVOKED:
            return None
        # A process that has lost its lease goes on under another name, in the same node.
        return last.node if now is None or last.node != now.node else None

    def restored(
        self,
        front: SimulatedFront,
        run: HostedRun,
        state: RunState,
        named: dict[str, Any],
        effects: list[do.Effect],
    ) -> None:
        """See Oracle."""
        known = self._hosts.get((run.run_id, state.term))
        if named["former_host"] != known:
            what = f"{front.process.name} took {named['former_host']} for the last owner's node"
            self.scene.broke("R8", f"{what} in term {state.term}, and it is {known}")


class EndsAreAdopted(Oracle):
    """R5: the last owner has told members that its round has ended, and did not write it.

    The successor ends it for the same reason, as soon as one of them says so.
    """

    def __init__(self, scene: Scene) -> None:
        super().__init__(scene)
        self._open: dict[HostedRun, int] = {}
        """By run: the number of the last owner's round, which goes on here."""

    def restored(
        self,
        front: SimulatedFront,
        run: HostedRun,
        state: RunState,
        named: dict[str, Any],
        effects: list[do.Effect],
    ) -> None:
        """See Oracle."""
        if run.membership.phase is Phase.ACTIVE:
            self._open[run] = run.membership.number

    def stepped(
        self, front: SimulatedFront, run: HostedRun, event: on.Event, effects: list[do.Effect]
    ) -> None:
        """See Oracle."""
        number = self._open.get(run)
        if number is None:
            return
        broken = [each.change for each in effects if isinstance(each, do.Break)]
        if broken or run.membership.phase is not Phase.ACTIVE:
            del self._open[run]
        match event:
            case on.NodeReady(node=node, change=Change(round=ended) as told) if ended == number:
                is_member = run.membership.roster.living(node) is not None
                is_kept = [(each.kind, each.nodes) for each in broken] == [(told.kind, told.nodes)]
                if is_member and event.leaving_round == number and not is_kept:
                    what = f"heard that round {number} has ended: {told}; and ended it: {broken}"
                    self.scene.broke("R5", f"{front.process.name} {what}")


class LostLeasesAreReplaced(Oracle):
    """R7: a coordinator that has lost its lease, and reaches the ledger, soon has another."""

    def __init__(self, scene: Scene) -> None:
        super().__init__(scene)
        self._serving: set[str] = set()
        self._since_s: dict[SimulatedFront, float] = {}
        """Since when a coordinator has had no lease, in peace."""
        self._was_well = False
        """Whether the job had settled: after that a fault may last."""

    def written(self, name: str, value: bytes | None) -> None:
        """See Oracle."""
        if name.startswith(COORDINATORS):
            process = name.removeprefix(COORDINATORS)
            self._serving.discard(process)
            if value is not None and e.decode_lease(value).state is e.LeaseState.SERVING:
                self._serving.add(process)

    def looked(self) -> None:
        """See Oracle."""
        scene, now_s = self.scene, self.scene.world.now_s
        before, self._since_s = self._since_s, {}
        is_well = scene.settled_s is not None
        self._was_well |= is_well
        if scene.is_chaotic or self._was_well > is_well:
            return
        for front in scene.fronts:
            is_running = front.process.is_alive and not front.process.is_frozen
            if front.has_ended or not is_running:
                continue
            if front.driver.ownership.process not in self._serving:
                since_s = self._since_s[front] = before.get(front, now_s)
                if now_s - since_s > WITHOUT_LEASE_S:
                    what = f"has had no lease for {now_s - since_s:.1f} s of peace"
                    scene.broke("R7", f"{front.process.name} {what}")


class DeadAreSucceeded(Oracle):
    """A coordinator whose process was killed is succeeded at once, without waiting for its ttl.

    Its host refuses connections to its port, so each node can see that it has ended. But after a
    mistake, only the ttl decides, and a proxy answers for the dead.
    """

    def __init__(self, scene: Scene) -> None:
        super().__init__(scene)
        self._terms: dict[str, int] = {}
        self._has_mistake = False
        self._due: dict[str, tuple[str, int, float]] = {}
        """By run: who was killed, in which term, and when the next term is due."""

    def written(self, name: str, value: bytes | None) -> None:
        """See Oracle."""
        if name == MISTAKE:
            self._has_mistake = value is not None
        elif name.startswith(RUNS) and value is not None:
            head = e.decode_run(value)
            self._terms[head.run_id] = head.term

    def killed_in_peace(self, here: StartedNode) -> None:
        """See Oracle."""
        plan = self.scene.plan
        if self._has_mistake or plan.has_proxy or plan.hosts == "no":
            return
        for front in self.scene.fronts:
            if front.process is not here.process or front.has_ended:
                continue
            for run in front.driver.coordinator.runs.values():
                if run.is_claimed and run.attached_count > 1:
                    due_s = self.scene.world.now_s + SUCCEEDED_WITHIN_S
                    self._due[run.run_id] = here.name, run.stamp.term, due_s

    def looked(self) -> None:
        """See Oracle."""
        for run_id, (name, term, due_s) in list(self._due.items()):
            if self._terms.get(run_id, term) > term:
                del self._due[run_id]
            elif self.scene.world.now_s > due_s:
                del self._due[run_id]
                what = f"{name} was killed, and {SUCCEEDED_WITHIN_S:g} s later nobody has its run"
                self.scene.broke("R7", what)


def _names(members: tuple[RoundMember, ...]) -> str:
    return " ".join(row.name for row in members)


OWNERSHIP_ORACLES: Final = (
    LeaseIsFresh,
    ClosesAreKept,
    LostAreDropped,
    SurvivorsKeepRanks,
    BreaksAreDue,
    HostsAreGone,
    EndsAreAdopted,
    LostLeasesAreReplaced,
    DeadAreSucceeded,
)
