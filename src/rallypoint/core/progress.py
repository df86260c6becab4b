"""How far the workers of the present round are, and when the round counts as hanging.

The nodes report when their workers advance. A round hangs if no worker of it has advanced for the
timeout that the nodes have. Time in which the run is SUSPENDED does not count. This file keeps the
reports and the deadline; `hangs` asks the nodes for the stacks and ends the round.
"""

from __future__ import annotations

from typing import Annotated, Final

import msgspec

from rallypoint.core.effects import Effect, TimerKind
from rallypoint.core.judging import JudgingClock
from rallypoint.core.stacks import STEP_MAX, WorkerStack
from rallypoint.core.timers import Timers
from rallypoint.core.values import FrozenStruct

ASK_S: Final = 2.0
"""How long the nodes have to answer with the stacks of their workers, in seconds."""
PACE_S: Final = 10.0
"""A node's pace is that of its last 10 to 20 s, or of its last two reports if they are rarer."""
AGAIN_S: Final = 1.0
"""The pause before the next look, if a member of the round cannot be heard."""
Step = Annotated[int, msgspec.Meta(ge=-STEP_MAX, le=STEP_MAX)]
Ago = Annotated[float, msgspec.Meta(ge=0, le=31_536_000)]
HangTimeout = Annotated[float, msgspec.Meta(gt=0, le=31_536_000)]


class Progress(FrozenStruct, frozen=True):
    """How far the workers of a node are in round `round`, as the node says.

    `step`: the highest that a worker has reported; None if none has. `ago_s`: how long ago a worker
    advanced, or how long the round has lasted if none has, without the time in which the node had
    no coordinator. `timeout_s`: after how long without progress the node wants the round to end;
    None: never.
    """

    round: int
    step: Step | None = None
    ago_s: Ago = 0.0
    timeout_s: HangTimeout | None = None


class Pace(FrozenStruct, frozen=True):
    """How quickly steps follow one another, for people. All times are on the judging clock.

    `step`, `at_s`: the last report. `from_step`, `from_s`: an earlier one. `next_step`, `next_s`:
    one between them, from which the pace is counted later.
    """

    step: int
    at_s: float
    from_step: int
    from_s: float
    next_step: int
    next_s: float

    @property
    def steps_per_s(self) -> float | None:
        """The steps in a second; None if there was one report only."""
        if self.step <= self.from_step or self.at_s <= self.from_s:
            return None
        return (self.step - self.from_step) / (self.at_s - self.from_s)


def pace_of(pace: Pace | None, step: int, at_s: float) -> Pace:
    """The pace after one more report. O(1)."""
    if pace is None:
        return Pace(step, at_s, step, at_s, step, at_s)
    if step <= pace.step:
        return pace
    if at_s - pace.next_s < PACE_S:
        return Pace(step, at_s, pace.from_step, pace.from_s, pace.next_step, pace.next_s)
    return Pace(step, at_s, pace.next_step, pace.next_s, step, at_s)


class NodeProgress(FrozenStruct, frozen=True):
    """What is known of one node. `advanced_s`: when a worker advanced, on the judging clock.

    For people: `steps_behind`: by how many steps it was behind the highest one when it reported,
    as far as that was known; `pace`: None if it has reported no step.
    """

    step: int | None
    advanced_s: float
    steps_behind: int = 0
    pace: Pace | None = None


class RunProgress:
    """The reports about the present round, and the deadline. It must not end anything."""

    def __init__(self, timers: Timers, clock: JudgingClock) -> None:
        self._timers = timers
        self._clock = clock
        self.round = 0
        """The round of these reports."""
        self.timeout_s: float | None = None
        self.nodes: dict[str, NodeProgress] = {}
        self.step: int | None = None
        self.pace: Pace | None = None
        """Of the highest step that any node has reported."""
        self._ended: tuple[int, int | None] = (0, None)
        """The last round that has ended, and the highest step in it."""
        self.advanced_s = 0.0
        """When a worker of the round advanced last, on the judging clock."""
        self.serial = 0
        """The number of the last question for stacks."""
        self.unanswered: dict[str, None] = {}
        """The members that have yet to answer it."""
        self.told: dict[str, tuple[WorkerStack, ...]] = {}
        self.is_asking = False

    def freeze(self) -> tuple[object, ...]:
        """The state on which decisions depend, without times, for tests."""
        is_set = self._timers.is_set(TimerKind.HANG)
        return (self.round, self.timeout_s is not None, self.is_asking, is_set, tuple(self.told))

    def note(self, name: str, progress: Progress, now_s: float) -> None:
        """A node has said how far its workers are. O(1).

        A node's own clock has measured how long ago that was. So a report never moves the deadline
        to an earlier time.
        """
        if progress.round != self.round:
            self.forget()
            self.round = progress.round
        since_s = self._clock.at(now_s) - self._clock.counted_s(progress.ago_s, now_s)
        known = self.nodes.get(name)
        # R15: a repeat of an older report takes no time from the run.
        if known is not None:
            since_s = max(since_s, known.advanced_s)
        if not self.nodes or since_s > self.advanced_s:
            self.advanced_s = since_s
        step, pace, behind = progress.step, None if known is None else known.pace, 0
        if step is not None:
            pace = pace_of(pace, step, since_s)
            if self.step is None or step > self.step:
                self.step, self.pace = step, pace_of(self.pace, step, since_s)
            behind = self.step - step
        self.nodes[name] = NodeProgress(step, since_s, behind, pace)
        if progress.timeout_s is not None:
            # R15: of several timeouts the longest counts.
            self.timeout_s = max(progress.timeout_s, self.timeout_s or 0.0)

    def forget(self) -> None:
        """The round is over."""
        self._timers.cancel(TimerKind.HANG)
        if self.round:
            self._ended = (self.round, self.step)
        self.round, self.timeout_s, self.step, self.pace = 0, None, None, None
        self.nodes.clear()
        self.stop_asking()

    def step_of(self, number: int) -> int | None:
        """The highest step that was reported in this round, or in the one that has just ended."""
        if self.round == number:
            return self.step
        ended, step = self._ended
        return step if ended == number else None

    def ago_s(self, node: NodeProgress, now_s: float) -> float:
        """How long ago a worker of this node advanced, in seconds."""
        return max(0.0, self._clock.at(now_s) - node.advanced_s)

    @property
    def is_watched(self) -> bool:
        """Whether the deadline's timer is set."""
        return self._timers.is_set(TimerKind.HANG)

    def still_s(self, now_s: float) -> float:
        """For how long no worker has advanced, in seconds; 0 if nothing is known."""
        return self._clock.at(now_s) - self.advanced_s if self.nodes else 0.0

    def left_s(self, now_s: float) -> float:
        """The time until the deadline, in seconds; 0 or less if it has passed."""
        assert self.timeout_s is not None
        return self.advanced_s + self.timeout_s - self._clock.at(now_s)

    def watch(self, delay_s: float) -> Effect:
        """Look again after this time."""
        return self._timers.set(TimerKind.HANG, delay_s, round_number=self.round)

    def ask(self, names: list[str]) -> Effect:
        """These members are asked for stacks. They have ASK_S."""
        self.serial += 1
        self.is_asking, self.told = True, {}
        self.unanswered = dict.fromkeys(names)
        return self.watch(ASK_S)

    def stop_asking(self) -> None:
        """The answers do not count any more. Idempotent."""
        self.is_asking, self.told, self.unanswered = False, {}, {}
