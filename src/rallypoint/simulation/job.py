"""Plays one job: nodes of the shipped code in a simulated world, faults for a while, then peace.

What happens is in the seed and the plan: `plan` has what a seed draws, `ledgers`, `programs`,
`faults` and `oracles` the parts, each with a table and a word on how to add one. `scene` is what
they share.

When the faults have ended, the job has a bounded time to go on or to end (R7): "If at least
min_nodes stay alive, connected and ready, and a coordinator and its ledger answer, a round is
formed."
"""

from __future__ import annotations

import random
from functools import partial
from typing import Final

from rallypoint.simulation.faults import FAULTS, some_s
from rallypoint.simulation.ledgers import LEDGERS
from rallypoint.simulation.oracles import ORACLES
from rallypoint.simulation.plan import Plan, PlannedFault
from rallypoint.simulation.programs import PROGRAMS
from rallypoint.simulation.scene import Scene, Undo

HEALED_WITHIN_S: Final = 240.0
"""How long after the last fault the job may take until it goes on or has ended."""
STARTS_WITHIN_S: Final = 2.0


class Job:
    """One job. `run` plays it; `problems` then has what did not hold."""

    def __init__(self, seed: int, *, plan: Plan | None = None) -> None:
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
        self._undo: dict[int, Undo] = {}

    def run(self) -> Job:
        """Play it: faults for a while, then peace, and then the checks."""
        world, scene = self.world, self.scene
        for index in range(self.plan.nodes):
            world.after(world.random.random() * STARTS_WITHIN_S, partial(scene.start, index))
        ends_s = STARTS_WITHIN_S
        for fault in self.plan.faults:
            world.at(fault.at_s, partial(self._begin, fault))
            ends_s = max(ends_s, fault.at_s)
        world.run_until(ends_s + 0.001)
        self._heal()
        healed_s = world.now_s
        if world.run_until(healed_s + HEALED_WITHIN_S, self._is_settled):
            self.settled_s = world.now_s - healed_s
        else:
            late = f"{HEALED_WITHIN_S:g} s after the last fault: {self._state()}"
            scene.broke("R7", late)
        for oracle in scene.oracles:
            oracle.at_end()
        world.close()
        return self

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
            self.world.after(lasts_s, partial(self._end, serial))

    def _end(self, serial: int) -> None:
        undo = self._undo.pop(serial, None)
        if undo is not None:
            undo()

    def _heal(self) -> None:
        self.scene.is_chaotic = False
        self.scene.say("world", "PEACE")
        for serial in list(self._undo):
            self._end(serial)

    # -- peace -------------------------------------------------------------------------------------

    def _is_settled(self) -> bool:
        living = self.scene.living
        if not living:
            return True
        if not all(each.is_working and each.tokens for each in living):
            return False
        return len({each.tokens[-1] for each in living}) == 1

    def _state(self) -> str:
        return "; ".join(
            f"{each.name} {'works in ' + str(each.tokens[-1]) if each.is_working else 'waits'}"
            + (f" ({each.node.looking})" if each.node is not None and each.node.looking else "")
            for each in self.scene.living
        )
