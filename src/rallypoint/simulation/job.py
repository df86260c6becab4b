"""Plays one job: nodes of the shipped code in a simulated world, faults for a while, then peace.

What happens is in the seed and the plan: `plan` has what a seed draws, `ledgers`, `programs`,
`faults` and `oracles` the parts, each with a table and a word on how to add one. `scene` is what
they share.

When the faults have ended, the job has a bounded time to go on or to end (R7): "If at least
min_nodes stay alive, connected and ready, and a coordinator and its ledger answer, a round is
formed."
"""

from __future__ import annotations

import logging
import random
from functools import partial
from typing import Final

from rallypoint.simulation.faults import FAULTS, some_s
from rallypoint.simulation.ledgers import LEDGERS
from rallypoint.simulation.logs import listening
from rallypoint.simulation.oracles import ORACLES
from rallypoint.simulation.plan import Plan, PlannedFault
from rallypoint.simulation.programs import PROGRAMS
from rallypoint.simulation.scene import Scene, StartedNode, Undo

HEALED_WITHIN_S: Final = 240.0
"""How long after the last fault the job may take until it goes on or has ended."""
STARTS_WITHIN_S: Final = 2.0


class Job:
    """One job. `run` plays it; `problems` then has what did not hold.

    `is_told`: whether `events` also has what the shipped code logs, which takes time.
    """

    def __init__(self, seed: int, *, plan: Plan | None = None, is_told: bool = False) -> None:
        self.seed = seed
        self.plan = plan or Plan.draw(seed, tuple(FAULTS))
        program = PROGRAMS[self.plan.program]
        self.scene = Scene(seed, self.plan, LEDGERS[self.plan.ledger], program)
        self.scene.oracles = [oracle(self.scene) for oracle in ORACLES]
        self.world = self.scene.world
        self.problems = self.scene.problems
        self.events = self.scene.events
        self.settled_s: float | None = None
        """How long after the last fault the job went on, or had ended."""
        self._level = logging.INFO if is_told else logging.ERROR
        self._undo: dict[int, Undo] = {}
        self._stop_step: int | None = None

    def run(self) -> Job:
        """Play it: faults for a while, then peace, and then the checks."""
        try:
            self.play()
        finally:
            self.world.close()
        return self

    def play(self, stop_step: int | None = None) -> None:
        """Play it, and leave the world open. `stop_step`: until so many steps have been done.

        Can be called once. The caller closes the world.
        """
        self._stop_step = stop_step
        with listening(self.scene.say, self.world.troubles.append, self._level):
            self._play()

    def _play(self) -> None:
        world, scene = self.world, self.scene
        for index in range(self.plan.nodes):
            world.after(world.random.random() * STARTS_WITHIN_S, partial(scene.start, index))
        ends_s = STARTS_WITHIN_S
        for fault in self.plan.faults:
            world.at(fault.at_s, partial(self._begin, fault))
            ends_s = max(ends_s, fault.at_s)
        if world.run_until(ends_s + 0.001, self._is_stopped):
            return
        self._heal()
        healed_s = world.now_s
        is_over = world.run_until(healed_s + HEALED_WITHIN_S, self._is_settled)
        if self._is_stopped():
            return
        if is_over:
            self.settled_s = world.now_s - healed_s
        elif not self._cannot_go_on(scene.living):
            late = f"{HEALED_WITHIN_S:g} s after the last fault: {self._state()}"
            scene.broke("R7", late)
        scene.tell(lambda oracle: oracle.at_end())

    def _is_stopped(self) -> bool:
        return self._stop_step is not None and self.world.steps >= self._stop_step

    # -- faults ------------------------------------------------------------------------------------

    def _begin(self, fault: PlannedFault) -> None:
        scene, living = self.scene, self.scene.living
        if not living:
            return
        draw = random.Random(fault.chance)
        victim = draw.choice(living)
        scene.say(victim.name, f"FAULT {fault.kind}")
        lasts_s = some_s(draw)
        undo = FAULTS[fault.kind](scene, victim, draw)
        if undo is not None:
            serial = next(scene.serial)
            self._undo[serial] = undo
            self.world.after(lasts_s, partial(self._end, fault, victim.name, serial))

    def _end(self, fault: PlannedFault, name: str, serial: int) -> None:
        undo = self._undo.pop(serial, None)
        if undo is not None:
            self.scene.say(name, f"END OF {fault.kind}")
            undo()

    def _heal(self) -> None:
        self.scene.is_chaotic = False
        self.scene.say("world", "PEACE")
        undos, self._undo = list(self._undo.values()), {}
        for undo in undos:
            undo()

    # -- peace -------------------------------------------------------------------------------------

    def _is_settled(self) -> bool:
        if self._is_stopped():
            return True
        living = self.scene.living
        if self.plan.ends or not living:
            return not living
        if not all(each.is_working for each in living):
            return False
        return len({each.tokens[-1] for each in living}) == 1

    def _cannot_go_on(self, living: list[StartedNode]) -> bool:
        """Whether too few nodes are left that have not finished, and the others wait for more.

        R7 promises nothing then, and the nodes say whom they wait for.
        """
        left = [each for each in living if not each.has_finished]
        is_waiting = not any(each.is_working for each in left)
        return len(left) < self.plan.min_nodes and len(left) < len(living) and is_waiting

    def _state(self) -> str:
        return "; ".join(map(_doing, self.scene.living))


def _doing(here: StartedNode) -> str:
    """What a node does, in words."""
    doing = "waits"
    if here.has_finished:
        doing = "has finished, and waits for the end of the run"
    elif here.is_working:
        doing = f"works in {here.tokens[-1]}"
    looking = here.node.looking if here.node is not None else "its ledger is not open"
    return f"{here.name} {doing}" + (f" ({looking})" if looking else "")
