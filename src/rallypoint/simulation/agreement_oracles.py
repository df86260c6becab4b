"""What must hold when a node drains and all workers agree on their last step (R14).

`RunChecker` checks the coordinator's side after each step of the core. These oracles see what the
workers are told, and what the ledger has when they are told.
"""

from __future__ import annotations

import urllib.parse
from typing import Final

import msgspec

from rallypoint.client.steps import LATE_S
from rallypoint.coordinator.hosted_run import HostedRun
from rallypoint.core import effects as do
from rallypoint.core import events as on
from rallypoint.core.election import decode_run
from rallypoint.core.roster import Bucket
from rallypoint.core.values import Marks, Phase, Reachability
from rallypoint.ledger.keys import RUNS
from rallypoint.simulation.machine import SimulatedFront
from rallypoint.simulation.progress_oracles import MARGIN_S, SLACK, SLOW_S, EndsInTime
from rallypoint.simulation.scene import Oracle, Scene, StartedNode, Token
from rallypoint.simulation.steps import LEFT_S

TOLD_S: Final = 2.0
"""How long a worker may wait after its node was told the step."""


class StepsAgree(Oracle):
    """All workers of a round stop at the same step, and none passes it."""

    def __init__(self, scene: Scene) -> None:
        super().__init__(scene)
        self._last: dict[tuple[str, Token], tuple[int, str]] = {}
        """By round: the step at which its workers stop, and who was told so first."""
        self._passed: dict[tuple[str, Token], tuple[int, str]] = {}
        """By round: the highest step that a worker has passed."""

    def step_answered(
        self, here: StartedNode, token: Token, rank: int, step: int, is_last: bool | None
    ) -> None:
        """See Oracle."""
        round_, who = (here.run_id, token), f"rank {rank} on {here.name}"
        if is_last is None:
            return
        if is_last:
            last, first = self._last.setdefault(round_, (step, who))
            if step != last:
                self.scene.broke("R14", f"{who} stops at step {step}, and {first} at {last}")
        else:
            self._passed[round_] = max(self._passed.get(round_, (-1, "")), (step, who))
        passed, by = self._passed.get(round_, (-1, ""))
        if round_ in self._last and passed >= self._last[round_][0]:
            self.scene.broke("R14", f"{by} has passed step {passed}; {self._last[round_]} stops")


class StepsAreWritten(Oracle):
    """The ledger has the step before any node is told."""

    def __init__(self, scene: Scene) -> None:
        super().__init__(scene)
        self._marks: dict[str, Marks] = {}

    def written(self, name: str, value: bytes | None) -> None:
        """See Oracle."""
        if name.startswith(RUNS):
            run_id = urllib.parse.unquote(name.removeprefix(RUNS))
            self._marks[run_id] = decode_run(value).marks if value is not None else Marks()

    def stepped(
        self, front: SimulatedFront, run: HostedRun, event: on.Event, effects: list[do.Effect]
    ) -> None:
        """See Oracle."""
        marks = self._marks.get(run.run_id, Marks())
        for effect in effects:
            # A coordinator that is deposed without knowing it may tell what its successor has.
            if isinstance(effect, do.TellStep) and marks.round <= effect.round:
                known = marks.step if marks.round == effect.round else None
                if known != effect.step:
                    self.scene.broke(
                        "R14", f"step {effect.step} is told, and the ledger has {known}"
                    )


class _Wait(msgspec.Struct):
    """A worker waits. The times are of those in which its process ran.

    `told_s`: since when its node has known the step.
    """

    here: StartedNode
    began_s: float
    told_s: float | None = None


class WorkersWaitNotLong(Oracle):
    """A worker waits until the decision, the end of its round, or some time after the deadline."""

    def __init__(self, scene: Scene) -> None:
        super().__init__(scene)
        self._waits: dict[tuple[str, int], _Wait] = {}

    def step_asked(self, here: StartedNode, token: Token, rank: int, step: int) -> None:
        """See Oracle."""
        self._waits[here.name, rank] = _Wait(here, here.process.awake_s())

    def step_answered(
        self, here: StartedNode, token: Token, rank: int, step: int, is_last: bool | None
    ) -> None:
        """See Oracle."""
        self._waits.pop((here.name, rank), None)

    def looked(self) -> None:
        """See Oracle."""
        bound_s = SLACK * (LEFT_S[1] + LATE_S) + SLOW_S + MARGIN_S
        for key, wait in list(self._waits.items()):
            if not wait.here.is_living or wait.here.is_leaving:
                del self._waits[key]
                continue
            now_s, node = wait.here.process.awake_s(), wait.here.node
            if wait.told_s is None and node is not None and node.step is not None:
                wait.told_s = now_s
            is_told = wait.told_s is not None and now_s - wait.told_s > TOLD_S
            if is_told or now_s - wait.began_s > bound_s:
                del self._waits[key]
                what = "its node knows the step" if is_told else "nothing comes"
                self.scene.broke("R14", f"rank {key[1]} on {key[0]} waits, and {what}")


class PromisesAreDecided(EndsInTime):
    """If all members can be heard, and were asked, the step is decided at once."""

    def is_due(self, run: HostedRun) -> bool:
        """See EndsInTime."""
        membership = run.membership
        agreement = membership.agreement
        if membership.phase is not Phase.ACTIVE or not agreement.is_asked or agreement.step:
            return False
        names = membership.roster.names(Bucket.IN_ROUND)
        members = [membership.roster.get(name) for name in names]
        return all(m is not None and m.reachability is Reachability.CONNECTED for m in members)

    def bound_s(self) -> float:
        """See EndsInTime: until a frozen node is suspect, and a slow line has brought its word."""
        return 2 * (self.scene.plan.suspect_after_s + SLOW_S) + MARGIN_S

    def late(self, run: HostedRun) -> str:
        """See EndsInTime."""
        return f"the members of {run.run_id} were asked for their steps, and none is decided"


AGREEMENT_ORACLES: Final[tuple[type[Oracle], ...]] = (
    StepsAgree,
    StepsAreWritten,
    WorkersWaitNotLong,
    PromisesAreDecided,
)
