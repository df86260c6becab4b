"""What must hold in each coordinator of a job, after each step of each of its runs.

The rules of the core are checked by `checkers`, with a clock of the world: a coordinator that
counts time wrongly is found, too. A run's checker has no more memory than its coordinator; what
must hold across coordinators is checked where nodes and the ledger see it.
"""

from __future__ import annotations

from typing import Any, Final

from rallypoint.checkers.invariants import check, kept_out
from rallypoint.checkers.loss_bounds import SLACK, guard_differs, overdue, waits_differ
from rallypoint.checkers.run_checker import RunChecker
from rallypoint.checkers.violations import InvariantViolation, short
from rallypoint.coordinator.hosted_run import HostedRun
from rallypoint.core import effects as do
from rallypoint.core import events as on
from rallypoint.core.election import RunState
from rallypoint.core.marking import ranks_in
from rallypoint.core.roster import Bucket
from rallypoint.core.values import (
    Change,
    ChangeKind,
    CloseRecord,
    ConnectionEnd,
    MemberState,
    NodeId,
    Phase,
    RoundRecord,
)
from rallypoint.simulation.machine import SimulatedFront
from rallypoint.simulation.scene import LOOKS_S, Oracle, Scene

FAST: Final = 1.08
"""The clock of the checks is faster than any of the world's, so that no bound seems too early."""
CLOCKS_AGREE: Final = 1.1
"""Where all clocks have one rate, a bound of R8 may be late by that of the checks, and no more."""
GRACES_S: Final = 25.0
"""A dead member is lost within `lost_after_s` after its silence, and after what was granted to all:
time to attach to a new coordinator, and time in which many were missing (R8)."""


class CoordinatorsKeepRules(Oracle):
    """R1 to R6, R8 and R13 in the steps of each run of each coordinator."""

    def __init__(self, scene: Scene) -> None:
        super().__init__(scene)
        self._runs: dict[HostedRun, RunChecker | None] = {}
        """Each run's checker; None after it has found something."""
        self._fronts: dict[HostedRun, SimulatedFront] = {}

    def hosts(self, front: SimulatedFront, run: HostedRun) -> None:
        """See Oracle."""
        self._runs[run] = RunChecker(run.membership.term)
        self._fronts[run] = front

    def looked(self) -> None:
        """See Oracle. R8: a dead or silent member is lost within its bound."""
        for run, front in list(self._fronts.items()):
            process, checker = front.process, self._runs[run]
            if not process.is_alive or run.is_forgotten or checker is None:
                del self._fronts[run]
            elif run.is_claimed and not process.is_frozen:
                # What is slow is not late.
                is_busy = process.turn_cost_s > 0.005
                agree = process.has_right_clock and not self.scene.plan.wild_clocks
                slack = CLOCKS_AGREE if agree else SLACK
                late = "" if is_busy else overdue(checker, _clock_s(front), slack)
                if late:
                    self.scene.broke("R8", f"at {process.name}: {late}")
                self._must_tell_why(process.name, run, checker)

    def _must_tell_why(self, name: str, run: HostedRun, checker: RunChecker) -> None:
        membership, last = run.membership, checker._published
        is_of_last = last is not None and last.head.number == membership.number
        waiting = membership.waiting(membership._now_s)
        if membership.phase is Phase.GATHERING and is_of_last and waiting is not None:
            differs = waits_differ(checker, waiting)
            if differs:
                self.scene.broke("reasons", f"at {name}: {differs}")

    def stepped(
        self, front: SimulatedFront, run: HostedRun, event: on.Event, effects: list[do.Effect]
    ) -> None:
        """See Oracle."""
        checker = self._runs[run]
        if checker is not None:
            own_s = run.membership._now_s
            self._check(run, lambda: checker.note(event, _clock_s(front), effects, own_s))
            self._check(run, lambda: checker.must_be_in(kept_out(run.membership.roster)))
            wrong = guard_differs(checker, run.membership._suspicion.guarding)
            if wrong:
                self.scene.broke("R8", f"at {front.process.name}: {wrong}")

    def restored(
        self,
        front: SimulatedFront,
        run: HostedRun,
        state: RunState,
        named: dict[str, Any],
        effects: list[do.Effect],
    ) -> None:
        """See Oracle."""
        checker = self._runs[run]
        if checker is not None and not named.get("store_lost"):
            known = {name: named[name] for name in ("attach_grace_s", "former_host")}
            known["run_s"] = named["now_s"]
            self._check(
                run,
                lambda: checker.restored(state, now_s=_clock_s(front), effects=effects, **known),
            )

    def _check(self, run: HostedRun, note: Any) -> None:
        try:
            note()
            check(run.membership)
        except InvariantViolation:
            self._runs[run] = None  # One line for one fault.
            raise


def _clock_s(front: SimulatedFront) -> float:
    return front.process.awake_s() * FAST


class DeathIsTrue(Oracle):
    """R8: who is taken for ended has ended; no member is judged because its coordinator slept."""

    def stepped(
        self, front: SimulatedFront, run: HostedRun, event: on.Event, effects: list[do.Effect]
    ) -> None:
        """See Oracle."""
        if isinstance(event, on.ConnectionLost) and event.how is ConnectionEnd.PROCESS_ENDED:
            for each in self.scene.nodes:
                if each.node_id == event.node and each.process.is_alive:
                    what = f"{front.process.name} takes {each.name} for ended, which is alive"
                    self.scene.broke("R8", what)
        if isinstance(event, on.NodeSilent):
            self._must_be_silent(front, run, event)
        for effect in effects:
            if isinstance(effect, do.Break | do.Verdict):
                self._must_have_its_store(front, effect.change)

    def _must_be_silent(self, front: SimulatedFront, run: HostedRun, event: on.NodeSilent) -> None:
        session = run.connections.of(event.node)
        end = getattr(session.outlet, "_end", None) if session is not None else None
        if end is None:
            return
        silent_s = front.process.awake_s() - end.heard_s
        least_s = 0.9 * self.scene.run_settings.suspect_after_s - 0.5
        if silent_s < least_s:
            what = f"{event.node.name} is silent, and was heard {silent_s:.2f} s ago"
            self.scene.broke("R8", f"{front.process.name} says that {what}, without its sleep")

    def _must_have_its_store(self, front: SimulatedFront, change: Change) -> None:
        # R10: no ledger of the simulator loses what it has.
        if change.kind is ChangeKind.NODE_LOST and not change.nodes:
            self.scene.broke("R10", f"{front.process.name}: {change}")


class ReportsAreTold(Oracle):
    """A node's report needs no ledger: it ends the round at once, also while the run is SUSPENDED.

    And nobody forms a round without a member that can be heard and has time left to stop (R7).
    """

    def __init__(self, scene: Scene) -> None:
        super().__init__(scene)
        self._rounds: dict[HostedRun, _Round] = {}

    def stepped(
        self, front: SimulatedFront, run: HostedRun, event: on.Event, effects: list[do.Effect]
    ) -> None:
        """See Oracle."""
        now = self._rounds.get(run)
        must_break = now is not None and now.must_break(event)
        if now is not None:
            now.see(event)
        for effect in effects:
            match effect:
                case do.Publish(record=record):
                    now = self._rounds[run] = _Round(record)
                    # Processes may have ended while the round was written.
                    now._has_burst = run.membership._suspicion.in_burst
                case do.Break() if now is not None:
                    now.end(front, run)
                case do.Commit(record=RoundRecord() as record) if now is not None:
                    self._must_have_survivors(front, run, now, record)
                case do.Commit(record=CloseRecord()) | do.StepDown():
                    now = self._rounds.pop(run, None)
        if must_break and now is not None and not now.is_over:
            what = f"{front.process.name} got {short(event)}, and its round goes on"
            self.scene.broke("R8", what)
            self._rounds.pop(run, None)

    def restored(
        self,
        front: SimulatedFront,
        run: HostedRun,
        state: RunState,
        named: dict[str, Any],
        effects: list[do.Effect],
    ) -> None:
        """See Oracle: a round that goes on is ended by its members as before."""
        has_ended = state.marks.round == state.number and state.marks.ended is not None
        if state.round is None or state.close is not None or has_ended or named.get("store_lost"):
            return
        now = self._rounds[run] = _Round(state.round)
        if state.marks.round == state.number:
            out = {*ranks_in(state.marks.done), *ranks_in(state.marks.gone)}
            for rank in out:
                row = state.round.members[rank]
                now.inside.pop(NodeId(row.name, row.incarnation), None)

    def _must_have_survivors(
        self, front: SimulatedFront, run: HostedRun, last: _Round, record: RoundRecord
    ) -> None:
        chosen = {NodeId(row.name, row.incarnation) for row in record.members}
        stopping_s = front.process.awake_s() - last.ended_s
        for node, (connection_id, stop_s) in last.stopping.items():
            session = run.connections.by_name.get(node.name)
            is_there = session is not None and session.connection_id == connection_id
            # An operator may have taken places away: then some that are ready have none.
            member = run.membership.roster.living(node)
            is_ready = member is not None and member.state is MemberState.READY
            is_out = run.membership.orders.eviction_of(node.name) is not None
            # It broke too many rounds.
            is_guilty = member is not None and member.stays_out
            is_excused = is_ready or is_out or is_guilty
            if is_there and node not in chosen and stopping_s < stop_s and not is_excused:
                what = f"{front.process.name} forms round {record.head.number} without "
                left = f"{node.name}, which has {stop_s - stopping_s:.1f} s left to stop"
                self.scene.broke("R7", what + left)


class _Round:
    """The last round of one run at one coordinator."""

    def __init__(self, record: RoundRecord) -> None:
        self.number = record.head.number
        self.stop_s = {NodeId(row.name, row.incarnation): row.stop_s for row in record.members}
        self.inside = dict.fromkeys(self.stop_s)
        """Its members that have said nothing yet that ends it."""
        self.stopping: dict[NodeId, tuple[int, float]] = {}
        """Survivors that could be heard when it ended: their connections and stop times."""
        self._silent: dict[NodeId, None] = {}
        self.is_over = False
        self.ended_s = 0.0
        self._has_burst = False

    def must_break(self, event: on.Event) -> bool:
        """Whether this event ends the round, whatever the ledger does."""
        if self.is_over or self._has_burst:
            return False
        match event:
            case on.WorkerFailed(node=node, round=number):
                return number == self.number and node in self.inside
            case on.NodeReady(node=node, leaving_round=number):
                return number == self.number and node in self.inside
            case on.NodeDeparting(node=node) | on.NodeLeft(node=node):
                return node in self.inside
        return False

    def end(self, front: SimulatedFront, run: HostedRun) -> None:
        """Its members are told that it is over."""
        self.is_over, self.ended_s = True, front.process.awake_s()
        for node in self.inside:
            session = run.connections.of(node)
            is_heard = session is not None and not session._has_ended and node not in self._silent
            if session is not None and is_heard:
                self.stopping[node] = (session.connection_id, self.stop_s[node])

    def see(self, event: on.Event) -> None:
        """Keep what the event says of its members."""
        node = getattr(event, "node", None)
        if isinstance(event, on.SignOfLife):
            self._silent.pop(event.node, None)
        match event:
            case on.NodeAttached():
                self._silent.pop(event.node.id, None)
            case on.NodeSilent() | on.ConnectionLost() if isinstance(node, NodeId):
                self.stopping.pop(node, None)
                self._silent[node] = None
                self._has_burst = True  # Processes may end, which is told first.
            case on.NodeDone() | on.NodeDeparting() | on.NodeLeft():
                self.inside.pop(event.node, None)
                self.stopping.pop(event.node, None)


class DeadAreLost(Oracle):
    """R8: a dead or silent member is lost within its bound, while a coordinator may judge."""

    def __init__(self, scene: Scene) -> None:
        super().__init__(scene)
        self._runs: dict[HostedRun, tuple[SimulatedFront, float, float]] = {}
        """The front of a run, when it was looked at, and for how long it could judge by then."""
        self._dead: dict[tuple[HostedRun, str], float] = {}

    def hosts(self, front: SimulatedFront, run: HostedRun) -> None:
        """See Oracle."""
        self._runs[run] = (front, front.process.awake_s(), 0.0)

    def looked(self) -> None:
        """See Oracle."""
        plan = self.scene.plan
        bound_s = plan.lost_after_s + plan.suspect_after_s + plan.mass_grace_s + GRACES_S
        dead = [each for each in self.scene.nodes if not each.process.is_alive and each.node_id]
        for run, (front, looked_s, judged_s) in list(self._runs.items()):
            if not front.process.is_alive or run.is_forgotten or run.is_closed:
                del self._runs[run]
                continue
            awake_s = front.process.awake_s()
            if run.is_claimed and run.membership.phase is not Phase.SUSPENDED:
                judged_s += min(awake_s - looked_s, 2 * LOOKS_S)
            self._runs[run] = (front, awake_s, judged_s)
            for each in dead:
                assert each.node_id is not None
                member = run.membership.roster.living(each.node_id)
                if member is None or member.bucket in (Bucket.DONE, Bucket.DEPARTING):
                    self._dead.pop((run, each.name), None)
                elif judged_s - self._dead.setdefault((run, each.name), judged_s) > bound_s:
                    what = f"{each.name} has been dead for {bound_s:g} s, and is a member at "
                    self.scene.broke("R8", what + front.process.name)


class NothingHangs(Oracle):
    """No run is COMMITTING or SUSPENDED under a good lease, and one coordinator has each run."""

    def at_end(self) -> None:
        """See Oracle."""
        owners: dict[str, str] = {}
        for front in self.scene.fronts:
            if not front.process.is_alive or front.has_ended or self.scene.settled_s is None:
                continue
            for run in front.driver.coordinator.runs.values():
                name, phase = front.process.name, run.membership.phase
                if not run.is_claimed or run.is_closed:
                    continue
                if phase in (Phase.COMMITTING, Phase.SUSPENDED):
                    self.scene.broke(
                        "R7", f"{run.run_id} is {phase.name} at {name}, and all is well"
                    )
                if run.run_id in owners:
                    what = f"{owners[run.run_id]} and {name} both coordinate {run.run_id}"
                    self.scene.broke("R5", what)
                owners[run.run_id] = name


class CoordinatorsLeakNothing(Oracle):
    """Each process keeps no more than it needs: runs, connections, tasks, timers, held answers."""

    TASKS_MAX: Final = 40
    TIMERS_MAX: Final = 60

    def at_end(self) -> None:
        """See Oracle."""
        for process in self.scene.world.processes:
            if not process.is_alive or process.is_frozen:
                continue
            tasks, timers = len(process.loop.tasks), process.loop.timers
            if tasks > self.TASKS_MAX or timers > self.TIMERS_MAX:
                self.scene.broke("leak", f"{process.name} has {tasks} tasks and {timers} timers")
        for front in self.scene.fronts:
            if front.process.is_alive and not front.has_ended:
                self._look_at(front)

    def _look_at(self, front: SimulatedFront) -> None:
        coordinator, name = front.driver.coordinator, front.process.name
        for session in coordinator.sessions.values():
            if session._has_ended:
                self.scene.broke("leak", f"{name} keeps connection {session.connection_id}")
        for run in coordinator.runs.values():
            for who, session in run.connections.by_name.items():
                if session.connection_id not in coordinator.sessions:
                    self.scene.broke("leak", f"{name} keeps the ended connection of {who}")
