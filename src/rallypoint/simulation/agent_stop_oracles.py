"""When an agent stops its workers, and how soon they have ended.

All times are those in which the agent's process ran. These checks look at the workers, and not at
what the agent believes of them.
"""

from __future__ import annotations

import signal
from collections.abc import Sequence
from typing import Final

import msgspec

from rallypoint.errors import EvictedError, SupersededError
from rallypoint.launch import agent_actions as do
from rallypoint.launch import agent_events as on
from rallypoint.launch.machine import AgentMachine
from rallypoint.simulation.scene import Oracle, Scene, StartedNode
from rallypoint.simulation.workers import UNWINDS_S, SimulatedWorker

JUDGES_S: Final = 2.0
"""How long an agent may look for a cause before it stops the other workers."""
TURNS: Final = 3
"""In so many turns of its loop an agent cancels the start of its workers."""
MARGIN_S: Final = 2.5
"""For the turns of a starved process, for late timers of its clock, and for the looks."""


class _Reason(msgspec.Struct, frozen=True):
    """Why the workers of an agent have to stop. `number`: only those of this round; None: all."""

    what: str
    at_s: float
    turns: int
    """How many turns its process had had."""
    number: int | None = None
    first_signal: int | None = None


class WorkersAreStopped(Oracle):
    """R7, R13: an agent whose round has ended for it stops its workers, whatever ended it."""

    def __init__(self, scene: Scene) -> None:
        super().__init__(scene)
        self._reasons: dict[str, _Reason] = {}

    def agent_told(self, here: StartedNode, event: on.Event) -> None:
        """See Oracle."""
        at_s, turns = here.process.awake_s(), here.process.turns
        match event:
            case on.RoundEnded(change=change):
                self._because(here, _Reason("its round has ended", at_s, turns, change.round))
            case on.RunClosed():
                # If the run has succeeded, they may end by themselves for the stop time.
                ends_s = at_s + self.scene.plan.stop_s
                self._because(here, _Reason("its run has ended", ends_s, turns))
            case on.Signalled(number=number):
                self._because(here, _Reason(f"it got signal {number}", at_s, turns, None, number))
            case on.LeaveAsked():
                self._because(here, _Reason("a worker asked it to leave", at_s, turns))
            case on.Drained():
                self._because(here, _Reason("an operator asked it to leave", at_s, turns))
            case on.Gone(error=SupersededError()):
                self._because(here, _Reason("another node has its name", at_s, turns))
            case on.Gone(error=EvictedError()):
                self._because(here, _Reason("an operator has evicted it", at_s, turns))
            case on.FailuresFound() if here.tokens:
                number = here.tokens[-1][1]
                self._because(here, _Reason("its worker has failed", at_s, turns, number))
            case on.RoundFound(found=found):
                known = self._reasons.get(here.name)
                if known is not None and known.number not in (None, found.head.number):
                    del self._reasons[here.name]

    def _because(self, here: StartedNode, reason: _Reason) -> None:
        """What ends the agent's work counts for ever, and the end of a round for that round."""
        known = self._reasons.get(here.name)
        if known is None or (known.number is not None and known.number != reason.number):
            self._reasons[here.name] = reason

    def worker_started(self, here: StartedNode, worker: SimulatedWorker) -> None:
        """See Oracle."""
        reason = self._reasons.get(here.name)
        if reason is None or reason.number not in (None, worker.token[1]):
            return
        if here.process.turns > reason.turns + TURNS:
            what = f"{here.name} starts a worker of {worker.token}, although {reason.what}"
            self.scene.broke("R13", what)

    def looked(self) -> None:
        """See Oracle."""
        for here in self.scene.nodes:
            reason = self._reasons.get(here.name)
            if reason is None or not here.is_living:
                continue
            late_s = here.process.awake_s() - reason.at_s - JUDGES_S
            if self.scene.plan.keeps:
                late_s -= max(UNWINDS_S)  # So long they may ask for the next world.
            if late_s > MARGIN_S + 30 * here.process.turn_cost_s:
                self._judge(here, reason)

    def _judge(self, here: StartedNode, reason: _Reason) -> None:
        work = [
            worker
            for worker in here.system.living
            if not (worker.is_stopping or (worker.waits and reason.number is not None))
            and reason.number in (None, worker.token[1])
        ]
        if work:
            what = f"{here.name} does not stop a worker of {work[0].token}: {reason.what}"
            self.scene.broke("R13", what)
        if reason.first_signal is not None and not (here.system.living or _is_over(here)):
            self.scene.broke("signal", f"{here.name} has no workers and goes on: {reason.what}")


class StopsAreShort(Oracle):
    """A stopped worker has ended within the stop time, and at once after a second signal.

    The stop time may be longer if the launcher ends the job anyway: then it ends before that.
    """

    def __init__(self, scene: Scene) -> None:
        super().__init__(scene)
        self._ends_s: dict[str, float] = {}
        """When the workers of an agent must have ended, which stops them."""
        self._signals: dict[str, int] = {}
        self._left_s: dict[str, float] = {}
        """How long after its first signal the launcher ends an agent's job, if that is known."""
        self._leaves: dict[str, None] = {}
        """Agents that stop their workers because they leave the run, or because it has ended."""

    def agent_told(self, here: StartedNode, event: on.Event) -> None:
        """See Oracle."""
        match event:
            case on.Signalled(number=number, left_s=left_s):
                count = self._signals[here.name] = self._signals.get(here.name, 0) + 1
                if count == 1 and number == signal.SIGTERM and left_s is not None:
                    self._left_s[here.name] = left_s
                self._leaves[here.name] = None
                if count > 1 and here.name in self._ends_s:
                    ends_s = here.process.awake_s()
                    self._ends_s[here.name] = min(self._ends_s[here.name], ends_s)
            case on.LeaveAsked() | on.Drained() | on.RunClosed():
                self._leaves[here.name] = None
            case on.Stopped():
                self._ends_s.pop(here.name, None)

    def agent_acted(
        self, here: StartedNode, agent: AgentMachine, actions: Sequence[do.Action]
    ) -> None:
        """See Oracle."""
        for action in actions:
            if isinstance(action, do.StopWorkers | do.LengthenStop):
                grace_s = max(here.system.stop_timeout_s, self._left_s.get(here.name, 0.0))
                if here.name not in self._leaves:
                    grace_s = self.scene.plan.stop_s
                if self._signals.get(here.name, 0) > 1:
                    grace_s = 0.0
                self._ends_s[here.name] = here.process.awake_s() + grace_s

    def looked(self) -> None:
        """See Oracle."""
        for here in self.scene.nodes:
            ends_s = self._ends_s.get(here.name)
            if ends_s is None or not here.is_living:
                continue
            living = [each for each in here.system.living if not each.waits]
            if not living:
                continue
            # A clock may be slower by 6 %.
            late_s = 0.94 * here.process.awake_s() - 0.94 * ends_s
            if late_s > MARGIN_S + 30 * here.process.turn_cost_s:
                count = len(living)
                self.scene.broke("stop", f"{here.name} was to stop, and {count} workers run")


class DeparturesAreTold(Oracle):
    """An agent that gets a signal, or is drained, departs at once, so that the others hear it (R7).

    Its workers are told as well: they must not wait for a world that never comes.
    """

    def __init__(self, scene: Scene) -> None:
        super().__init__(scene)
        self._got: dict[str, None] = {}
        """Agents that have got their first signal, and have done nothing since."""
        self._had: dict[str, None] = {}

    def agent_told(self, here: StartedNode, event: on.Event) -> None:
        """See Oracle."""
        if isinstance(event, on.Signalled | on.Drained) and here.name not in self._had:
            self._got[here.name] = self._had[here.name] = None

    def agent_acted(
        self, here: StartedNode, agent: AgentMachine, actions: Sequence[do.Action]
    ) -> None:
        """See Oracle."""
        if here.name not in self._got:
            return
        del self._got[here.name]
        desired = here.node._machine.desired.value if here.node is not None else ""
        if desired not in ("departing", "done", "gone"):
            self.scene.broke("signal", f"{here.name} got a signal, and is {desired}")
        socket = here.system.socket
        if here.system.living and socket is not None and not socket.departs:
            self.scene.broke("signal", f"{here.name} got a signal, and its workers do not know it")


def _is_over(here: StartedNode) -> bool:
    machine: AgentMachine | None = here.system.machine
    return machine is None or machine.is_over


STOP_ORACLES: Final[tuple[type[Oracle], ...]] = (
    WorkersAreStopped,
    StopsAreShort,
    DeparturesAreTold,
)
