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
from collections.abc import Callable
from functools import partial
from typing import Any, Final

from rallypoint.coordinator.hosted_run import HostedRun
from rallypoint.core.values import RunSettings
from rallypoint.simulation import lasting, situation_faults
from rallypoint.simulation.agent_faults import AGENT_FAULTS
from rallypoint.simulation.agents import agent_program
from rallypoint.simulation.faults import ALL_FAULTS, FAULTS, STORE_FAULTS, long_s, some_s
from rallypoint.simulation.knobs import tick, turned
from rallypoint.simulation.ledgers import LEDGERS
from rallypoint.simulation.logs import listening
from rallypoint.simulation.machine import SimulatedFront
from rallypoint.simulation.oracles import ORACLES
from rallypoint.simulation.plan import MOMENTS, Plan, PlannedFault
from rallypoint.simulation.programs import PROGRAMS, serve
from rallypoint.simulation.scene import Oracle, Scene, StartedNode, Undo
from rallypoint.simulation.situations import situated
from rallypoint.simulation.variants import varied
from rallypoint.simulation.world import Process

HEALED_WITHIN_S: Final = 240.0
"""How long after the last fault the job may take until it goes on or has ended."""
STARTS_WITHIN_S: Final = 2.0
LATEST_S: Final = 100_000.0
"""When a fault of a plan may begin at the latest, in seconds after the world."""
CALM_AFTER_S: Final = 10.0
"""After this time of peace, no outage of the ledger has any effect."""
CALM_S: Final = 6.0
LOOK_S: Final = 0.25
"""How often to look whether the job has settled."""


class Job:
    """One job. `run` plays it; `problems` then has what did not hold.

    `is_told`: whether `events` also has what the shipped code logs, which takes time.
    """

    def __init__(self, seed: int, *, plan: Plan | None = None, is_told: bool = False) -> None:
        self.seed = seed
        drawn = Plan.draw(seed, tuple(FAULTS), tuple(AGENT_FAULTS), tuple(STORE_FAULTS))
        self.plan = plan or varied(seed, drawn if drawn.is_store else situated(seed, drawn))
        self.scene = Scene(seed, self.plan, LEDGERS[self.plan.ledger], _lives)
        self.scene.oracles = [oracle(self.scene) for oracle in ORACLES]
        self._moments = _Moments(self.scene, self._begin_now)
        self.scene.oracles.append(self._moments)
        self.world = self.scene.world
        self.problems = self.scene.problems
        self.events = self.scene.events
        self.settled_s: float | None = None
        """How long after the last fault the job went on, or had ended."""
        self._level = logging.INFO if is_told else logging.ERROR
        self._undo: dict[int, Undo] = {}
        self._stop_step: int | None = None
        self._look_s = 0.0

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
        told = listening(self.scene.say, self.world.troubles.append, self._level)
        with told, turned(self.plan.knobs):
            self._play()

    def _play(self) -> None:
        world, scene = self.world, self.scene
        scene.look()
        for index in range(self.plan.nodes + self.plan.replicas):
            late_s = self.plan.late_s if index % 2 else 0.0
            scene.start_later(index, late_s + world.random.random() * STARTS_WITHIN_S)
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
            self._stay()
        elif not all(self._goes_on(run) or self._waits_for_more(run) for run in scene.run_ids):
            late = f"{HEALED_WITHIN_S:g} s after the last fault: {self._state()}"
            scene.broke("R7", late)
        if is_over and self.plan.lasting and not self.plan.ends:
            self._last(self.plan.lasting)
        if not self._is_stopped():
            scene.tell(Oracle.at_end)

    def _last(self, kind: str) -> None:
        """Let a fault last. The rest has to go on; and when it has ended, all have to."""
        world, scene = self.world, self.scene
        began_s, scene.settled_s = world.now_s, None
        rest = lasting.begin(scene, kind)
        if rest is None:
            return
        scene.settled_s = None  # All is not well any more.
        if not rest.groups:
            world.run_until(began_s + rest.lasts_s, self._is_stopped)
        kind = rest.kind
        ends_s = began_s + lasting.BOUND_S[kind]
        if rest.groups and not world.run_until(
            ends_s, lambda: self._is_stopped() or rest.goes_on(began_s)
        ):
            bound = f"{lasting.BOUND_S[kind]:g} s after a node was {kind}"
            scene.broke("R7", f"{bound}, the others do not go on: {self._state()}")
        if rest.undo is not None:
            rest.undo()
        scene.peace_s = world.now_s
        self._look_s = 0.0
        if not world.run_until(world.now_s + lasting.HEALED_S[kind], self._is_settled):
            scene.broke("R7", f"{lasting.HEALED_S[kind]:g} s after that: {self._state()}")

    def _stay(self) -> None:
        """All is well: let the job go on for a moment, and see that it stays so."""
        scene, world = self.scene, self.world
        if self.plan.ends or not any(each.is_working for each in scene.living):
            return
        scene.settled_s = max(world.now_s, scene.peace_s + CALM_AFTER_S)
        world.run_until(scene.settled_s + CALM_S, self._is_stopped)
        for run_id in scene.run_ids:
            # A node that a scheduler has started meanwhile may be on standby.
            working = [each for each in scene.nodes_of(run_id) if each.is_working]
            if len({each.tokens[-1] for each in working}) > 1:
                scene.broke("R7", f"{run_id} does not stay in one round: {self._state()}")

    def _is_stopped(self) -> bool:
        return self._stop_step is not None and self.world.steps >= self._stop_step

    # -- faults ------------------------------------------------------------------------------------

    def _begin(self, fault: PlannedFault) -> None:
        if fault.moment:
            self._moments.awaited.setdefault(fault.moment, []).append(fault)
        else:
            self._begin_now(fault, None)

    def _begin_now(self, fault: PlannedFault, where: Process | None) -> None:
        """Begin it. `where`: the process in which its moment has come, which it often meets."""
        scene = self.scene
        living, draw = scene.living, random.Random(fault.chance)
        if not living or not scene.is_chaotic:
            return
        victim = draw.choice(living)
        here = [each for each in living if each.process is where]
        if here and draw.random() < 0.6:
            victim = here[0]
        scene.say(victim.name, f"FAULT {fault.kind}" + (f" at {fault.moment}" if where else ""))
        lasts_s = long_s(draw) if self.plan.is_store else some_s(draw)
        lasts_s = situation_faults.lasts_s(fault.kind, draw) or lasts_s
        undo = ALL_FAULTS[fault.kind](scene, victim, draw)
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
        """End all faults, and start all nodes that do not run."""
        scene = self.scene
        scene.is_chaotic, scene.peace_s = False, self.world.now_s
        scene.network.idle_s, scene.is_quiet = 0.0, False
        tick(is_quiet=False)
        scene.say("world", "PEACE")
        undos, self._undo = list(self._undo.values()), {}
        for undo in undos:
            undo()
        for each in scene.living:
            # Whoever started it with other settings corrects that.
            if each.is_preempted or each.settings not in (None, scene.run_settings):
                each.is_leaving = True
                each.process.kill()
        running = {each.index for each in scene.living if not each.is_leaving}
        for index in range(self.plan.nodes + self.plan.replicas):
            if index not in running:
                scene.start(index)

    # -- peace -------------------------------------------------------------------------------------

    def _is_settled(self) -> bool:
        if self._is_stopped():
            return True
        if self.world.now_s < self._look_s:
            return False
        self._look_s = self.world.now_s + LOOK_S
        if self.plan.ends:
            return not any(each.run_id for each in self.scene.living)
        return all(self._goes_on(run_id) for run_id in self.scene.run_ids)

    def _goes_on(self, run_id: str) -> bool:
        """Whether the nodes of a run are in one round, or wait for nothing that R7 promises."""
        nodes = self.scene.nodes_of(run_id)
        working = [each for each in nodes if each.is_working]
        if not nodes:
            return True
        waits = [each for each in nodes if not each.is_working]
        has_place = len(working) < self._settings_of(run_id).max_nodes
        if waits and has_place and not self._has_finished(run_id):
            return False
        if not all(each.is_told_to_wait for each in waits):
            return False
        if any(each.answered_s < self.scene.peace_s for each in working):
            return False  # Its calls of the store are answered, too.
        return bool(working) and len({each.tokens[-1] for each in working}) == 1

    def _settings_of(self, run_id: str) -> RunSettings:
        """The settings of the run, as its coordinator has them: an operator may have scaled it."""
        fronts = [each for each in self.scene.fronts if each.process.is_alive]
        hosted = [each.driver.coordinator.runs.get(run_id) for each in fronts]
        owned = [run.membership for run in hosted if run is not None and run.is_claimed]
        newest = max(owned, key=lambda membership: membership.term, default=None)
        settings = newest.settings if newest is not None else None
        return settings or self.scene.run_settings

    def _has_finished(self, run_id: str) -> bool:
        """Whether a node of the run has finished: then no newcomer is let in."""
        return any(each.has_finished for each in self.scene.nodes if each.run_id == run_id)

    def _waits_for_more(self, run_id: str) -> bool:
        """Whether too few nodes are left that have not finished, and the others wait for more.

        R7 promises nothing then, and the nodes say whom they wait for.
        """
        scene, nodes = self.scene, self.scene.nodes_of(run_id)
        is_waiting = not any(each.is_working for each in nodes)
        # One that lives has been heard as done, so the others do not wait for it.
        ends = any(each.has_finished for each in scene.living if each.run_id == run_id)
        is_short = len(nodes) < self._settings_of(run_id).min_nodes and self._has_finished(run_id)
        return is_short and is_waiting and not ends

    def _state(self) -> str:
        return "; ".join(map(_doing, (each for each in self.scene.living if each.run_id)))


def problem_of(plan: Plan) -> str:
    """Why no job can be made of a plan that somebody wrote; "" if one can."""
    names = {
        "ledger": (plan.ledger, LEDGERS),
        "program": (plan.program, (*PROGRAMS, "agent")),
        "hosts": (plan.hosts, ("auto", "no")),
        "lasting": (plan.lasting, ("", *lasting.LASTING)),
    }
    for what, (name, known) in names.items():
        if name not in known:
            return f"{what} is {name!r}, and not one of {', '.join(filter(None, known))}"
    for fault in plan.faults:
        if fault.kind not in ALL_FAULTS:
            return f"there is no fault {fault.kind!r}; there are: {', '.join(ALL_FAULTS)}"
        if fault.moment not in ("", *MOMENTS):
            return f"there is no moment {fault.moment!r}; there are: {', '.join(MOMENTS)}"
        if not 0 <= fault.at_s <= LATEST_S:
            return f"a fault begins after 0 to {LATEST_S:g} s, not after {fault.at_s:g} s"
    each = plan.nodes // max(1, plan.runs)
    if plan.runs < 1 or not 1 <= plan.min_nodes <= each:
        return f"a run has {each} nodes, so runs is at least 1, and min_nodes 1 to {each}"
    if plan.hosts == "no" and plan.replicas < 1:
        return 'with hosts "no" some replica has to coordinate: replicas is at least 1'
    if not plan.suspect_after_s <= plan.lost_after_s or not plan.lease_ttl_s >= 1.0:
        return "lease_ttl_s is at least 1 s, and lost_after_s at least suspect_after_s"
    return ""


class _Moments(Oracle):
    """Begins the faults that wait for a moment. It only looks, as an oracle does."""

    def __init__(self, scene: Scene, begin: Callable[[PlannedFault, Process], None]) -> None:
        super().__init__(scene)
        self.awaited: dict[str, list[PlannedFault]] = {}
        """The faults that wait, by their moments."""
        self._begin = begin
        self._phases: dict[HostedRun, str] = {}

    def stepped(self, front: SimulatedFront, run: HostedRun, *rest: Any) -> None:
        """See Oracle."""
        phase = run.membership.phase.name
        if self.awaited and phase != self._phases.get(run):
            self._come(phase, front)
        self._phases[run] = phase

    def restored(self, front: SimulatedFront, run: HostedRun, *rest: Any) -> None:
        """See Oracle."""
        self._come("RESTORED", front)

    def hosts(self, front: SimulatedFront, run: HostedRun) -> None:
        """See Oracle."""
        self._come("CLAIMED", front)

    def _come(self, moment: str, front: SimulatedFront) -> None:
        for fault in self.awaited.pop(moment, ()):
            # After this step, and before or after what it has begun.
            after_s = random.Random(fault.chance).choice((0.0, 0.001, 0.05))
            self.scene.world.after(after_s, partial(self._begin, fault, front.process))


async def _lives(scene: Scene, here: StartedNode) -> None:
    """What runs in a process: the plan's program, or a replica."""
    if not here.run_id:
        await serve(scene, here)
    elif scene.plan.program == "agent":
        await agent_program(scene, here)
    else:
        await PROGRAMS[scene.plan.program](scene, here)


def _doing(here: StartedNode) -> str:
    """What a node does, in words."""
    doing = "waits"
    if here.has_finished:
        doing = "has finished, and waits for the end of the run"
    elif here.is_working:
        doing = f"works in {here.tokens[-1]}"
    elif here.node is not None and here.node._machine.is_standby:
        doing = "is on standby"
    looking = "its ledger is not open"
    if here.node is not None:
        with here.process.loop.running():
            looking = here.node.looking
    return f"{here.name} {doing}" + (f" ({looking})" if looking else "")
