"""What a coordinator owes its nodes in time: rounds that form, suspicion.

Each counts the time in which its coordinator could act: its process ran, owned the run, and was not
suspended.
"""

from __future__ import annotations

from typing import Any, Final

from rallypoint.coordinator.hosted_run import HostedRun
from rallypoint.core import effects as do
from rallypoint.core import events as on
from rallypoint.core.roster import Bucket
from rallypoint.core.values import MemberState, Phase, Reachability
from rallypoint.simulation.machine import SimulatedFront
from rallypoint.simulation.scene import LOOKS_S, Oracle, Scene, StartedNode

MARGIN_S: Final = 3.0
"""For the looks, and for messages that are under way."""
SLACK: Final = 1.1
"""Clocks of nodes may be slower than the world's."""
STOP_MARGIN_S: Final = 5.0
"""Survivors hold their places for their stop time and a margin."""
SLOW_S: Final = 12.0
"""What a silent node has sent may arrive so much later on a slow line."""


class _Acting:
    """For how long the coordinator of a run could act, since a condition has held."""

    def __init__(self, front: SimulatedFront) -> None:
        self._front = front
        self._looked_s = front.process.awake_s()
        self.acted_s = 0.0

    @property
    def is_alive(self) -> bool:
        """Whether its process runs, though it may be frozen."""
        return self._front.process.is_alive

    def look(self, run: HostedRun) -> None:
        """Count the time since the last look."""
        awake_s = self._front.process.awake_s()
        if run.is_claimed and run.membership.phase is not Phase.SUSPENDED:
            self.acted_s += min(awake_s - self._looked_s, 2 * LOOKS_S)
        self._looked_s = awake_s


class EndsInTime(Oracle):
    """What `is_due` finds in a run may last for so long, while its coordinator could act."""

    def __init__(self, scene: Scene) -> None:
        super().__init__(scene)
        self._runs: dict[HostedRun, _Acting] = {}
        self._since_s: dict[HostedRun, float] = {}
        """By run: how long its coordinator had acted when it began."""

    def is_due(self, run: HostedRun) -> bool:
        """Whether it is so now."""
        raise NotImplementedError

    def bound_s(self) -> float:
        """How long it may last, in seconds."""
        raise NotImplementedError

    def late(self, run: HostedRun) -> str:
        """What is said of a run in which it lasts for longer."""
        raise NotImplementedError

    def hosts(self, front: SimulatedFront, run: HostedRun) -> None:
        """See Oracle."""
        self._runs[run] = _Acting(front)

    def stepped(
        self, front: SimulatedFront, run: HostedRun, event: on.Event, effects: list[do.Effect]
    ) -> None:
        """See Oracle: also between two looks it may have ended."""
        if not self.is_due(run):
            self._since_s.pop(run, None)

    def looked(self) -> None:
        """See Oracle."""
        for run, acting in list(self._runs.items()):
            if run.is_forgotten or run.is_closed or not acting.is_alive:
                del self._runs[run]
                continue
            acting.look(run)
            if self.is_due(run):
                since_s = self._since_s.setdefault(run, acting.acted_s)
                if acting.acted_s - since_s > self.bound_s():
                    waiting = run.membership.waiting(run.membership._now_s)
                    self.scene.broke("R7", f"{self.late(run)}: {waiting}")


class RoundsForm(EndsInTime):
    """R7: a round is formed within the last call plus one second, the stop time and any grace."""

    def is_due(self, run: HostedRun) -> bool:
        """Whether enough nodes are ready, and nobody has time left to attach."""
        membership = run.membership
        settings = membership.settings
        is_enough = settings is not None and membership.roster.ready_count >= settings.min_nodes
        has_grace = bool(membership.roster.count(Bucket.ABSENT))
        return is_enough and membership.phase is Phase.GATHERING and not has_grace

    def bound_s(self) -> float:
        """See EndsInTime."""
        plan = self.scene.plan
        return plan.last_call_s + 1.0 + plan.stop_s + STOP_MARGIN_S + MARGIN_S

    def late(self, run: HostedRun) -> str:
        """See EndsInTime."""
        return f"no round of {run.run_id} in {self.bound_s():g} s"


class HopelessRunsEnd(EndsInTime):
    """R7: a run that cannot reach its minimum any more, because others are done, ends at once.

    An open case may name the cause first.
    """

    WITHIN_S: Final = 8.0

    def __init__(self, scene: Scene) -> None:
        super().__init__(scene)
        self._has_done: dict[HostedRun, None] = {}
        """The runs of which a member is done."""

    def stepped(
        self, front: SimulatedFront, run: HostedRun, event: on.Event, effects: list[do.Effect]
    ) -> None:
        """See Oracle."""
        if isinstance(event, on.NodeDone):
            member = run.membership.roster.living(event.node)
            if member is not None and member.state is MemberState.DONE:
                self._has_done[run] = None
        super().stepped(front, run, event, effects)

    def is_due(self, run: HostedRun) -> bool:
        """Whether too few members are left that have not finished."""
        membership = run.membership
        settings = membership.settings
        if run not in self._has_done or settings is None:
            return False
        ended = (MemberState.DONE, MemberState.DEPARTING)
        remaining = sum(member.state not in ended for member in membership.roster)
        return membership.phase is Phase.GATHERING and remaining < settings.min_nodes

    def bound_s(self) -> float:
        """See EndsInTime."""
        return self.WITHIN_S

    def late(self, run: HostedRun) -> str:
        """See EndsInTime."""
        return f"{run.run_id} cannot reach its minimum, and goes on"


class SilentAreSuspect(Oracle):
    """R8: a dead or silent member is suspect within `suspect_after_s`."""

    def __init__(self, scene: Scene) -> None:
        super().__init__(scene)
        self._runs: dict[HostedRun, tuple[SimulatedFront, _Acting]] = {}
        self._silent: dict[tuple[HostedRun, str, float], float] = {}
        """By run, process and its own time: how long its coordinator had acted when the process
        fell silent. One that went on for a moment, between two looks, has another time."""

    def hosts(self, front: SimulatedFront, run: HostedRun) -> None:
        """See Oracle."""
        self._runs[run] = (front, _Acting(front))

    def looked(self) -> None:
        """See Oracle."""
        silent = [each for each in self.scene.nodes if each.node_id and _is_silent(each)]
        before, self._silent = self._silent, {}
        for run, (front, acting) in list(self._runs.items()):
            if not front.process.is_alive or run.is_forgotten or run.is_closed:
                del self._runs[run]
                continue
            acting.look(run)
            for each in silent:
                node = each.node_id
                if node is None or run.membership.roster.living(node) is None:
                    continue  # It may wait for its name, and is watched once it has it.
                key = run, each.name, each.process.awake_s()
                since_s = self._silent[key] = before.get(key, acting.acted_s)
                self._judge(front, run, each, acting.acted_s - since_s)

    def _judge(
        self, front: SimulatedFront, run: HostedRun, here: StartedNode, silent_s: float
    ) -> None:
        node, plan = here.node_id, self.scene.plan
        member = run.membership.roster.living(node) if node is not None else None
        if member is None or member.bucket in (Bucket.DONE, Bucket.DEPARTING):
            return
        where = f"{here.name} has been silent for {silent_s:.1f} s, and at {front.process.name}"
        is_heard = member.reachability is Reachability.CONNECTED
        if is_heard and silent_s > plan.suspect_after_s + SLOW_S:
            self.scene.broke("R8", f"{where} it is not suspect")


def _is_silent(here: StartedNode) -> bool:
    return not here.process.is_alive or here.process.is_frozen


class SilenceIsNoticed(Oracle):
    """R7: a node that hears nothing from its coordinator looks for the next one, in a known time.

    It takes a third of `coordinator_silence_s` more until the node looks.
    """

    def looked(self) -> None:
        """See Oracle."""
        for here in self.scene.nodes:
            process, node = here.process, here.node
            # What is slow is not late.
            is_running = here.is_living and not process.is_frozen and process.turn_cost_s < 0.005
            if node is None or not is_running:
                continue
            connection: Any = node._connector.connection
            end = getattr(connection, "_end", None)
            if end is None or connection._is_closing or connection._closed.done():
                continue
            silent_s = process.awake_s() - end.heard_s
            bound_s = SLACK * (4.0 / 3.0) * node.settings.coordinator_silence_s + MARGIN_S
            if silent_s > bound_s:
                what = f"{here.name} has not noticed that it heard nothing for {silent_s:.1f} s"
                self.scene.broke("R7", what)
