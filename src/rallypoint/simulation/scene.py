"""What the parts of a simulated job share: its world, its nodes, and what has happened so far.

Programs, faults and oracles get the scene, and know nothing of each other. A scene decides nothing.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable, Coroutine
from typing import Any, Protocol

import msgspec

from rallypoint.client.node import Node
from rallypoint.core.store import StoreOp, StoreResult
from rallypoint.core.values import RunSettings
from rallypoint.ledger.contract import Ledger
from rallypoint.simulation.clocks import MachineClock
from rallypoint.simulation.machine import SimulatedFront, SimulatedRuntime
from rallypoint.simulation.network import Network
from rallypoint.simulation.plan import Plan
from rallypoint.simulation.world import Process, World

Undo = Callable[[], None]
"""Ends a fault. Called once."""
Token = tuple[int, int]
"""(term, number) of a round."""


class StartedNode(msgspec.Struct, eq=False):
    """One start of a node: its process, and what its program has seen.

    `index`: its place in the plan. The next start of that place has the same host, and a new name.
    """

    name: str
    index: int
    run_id: str
    process: Process
    host: str
    node: Node | None = None
    tokens: list[Token] = msgspec.field(default_factory=list)
    is_working: bool = False
    """Whether it has a round, or nothing more to wait for."""
    is_over: bool = False
    """Whether its program has ended."""
    end: str = ""

    @property
    def is_living(self) -> bool:
        """Whether its program still runs, though it may be frozen."""
        return self.process.is_alive and not self.is_over


class SimulatedLedger(Protocol):
    """The engine that all nodes of a job share: see `ledgers`."""

    endpoint: str
    """What a node gives as its endpoint."""

    def ledger(self, process: Process) -> Ledger:
        """The shipped ledger of one process, not opened yet."""

    def trouble(self, process: Process, draw: random.Random) -> Undo:
        """Something goes wrong with the engine, or with one process's way to it."""

    def outage(self, process: Process, draw: random.Random) -> Undo:
        """Nothing is read or written any more."""


class Oracle:
    """What must hold. A subclass overrides what it looks at: see `oracles`.

    It calls `scene.broke` with its rule and what it saw.
    """

    def __init__(self, scene: Scene) -> None:
        self.scene = scene

    def round_given(self, here: StartedNode, token: Token, digest: str) -> None:
        """A node's program was given a round."""

    def called(self, here: StartedNode, token: Token, call: int, operation: StoreOp) -> None:
        """A node calls its round's store. `call`: counts the calls of the job."""

    def answered(self, here: StartedNode, token: Token, call: int, result: StoreResult) -> None:
        """A call has its answer."""

    def serves(self, here: StartedNode, front: SimulatedFront) -> None:
        """A node's process hosts a coordinator, which has not started yet."""

    def after_step(self) -> None:
        """Something has happened in the world. Called very often."""

    def at_end(self) -> None:
        """The job has settled, or had the time for it."""


class Scene:
    """See above. `lives` is the program of a started node."""

    def __init__(
        self,
        seed: int,
        plan: Plan,
        ledger: Callable[[World, Plan], SimulatedLedger],
        lives: Callable[[Scene, StartedNode], Coroutine[Any, Any, None]],
    ) -> None:
        self.world = World(seed)
        self.plan = plan
        self.network = Network(self.world)
        self.network.on_front = self._serves
        self.ledger = ledger(self.world, plan)
        self.run_settings = RunSettings(
            min_nodes=plan.min_nodes,
            max_nodes=plan.nodes,
            max_restarts=None,
            last_call_s=3.0,
            mass_grace_s=20.0,
        )
        self.nodes: list[StartedNode] = []
        self.oracles: list[Oracle] = []
        self.problems: list[str] = []
        self.events: list[tuple[float, str, str]] = []
        """(time, process, what happened), in order."""
        self.is_chaotic = True
        """Whether faults may still come. Programs finish only after that."""
        self.serial = itertools.count(1)
        """Numbers for whatever must be different in this job."""
        self._lives = lives

    def say(self, who: str, what: str) -> None:
        """Note an event."""
        self.events.append((self.world.now_s, who, what))

    def broke(self, rule: str, what: str) -> None:
        """A rule does not hold. `rule`: such as "R13", and what it says."""
        self.problems.append(f"{rule}: {what}")

    @property
    def living(self) -> list[StartedNode]:
        """The nodes whose programs still run."""
        return [each for each in self.nodes if each.is_living]

    def start(self, index: int) -> None:
        """Start the node of this place: a new process, with a new name."""
        draw, world = self.world.random, self.world
        host = f"10.0.0.{index + 1}"
        name = f"node-{index}.{next(self.serial)}"
        clock = MachineClock(offset_s=draw.random() * 1e5)
        if self.plan.wild_clocks:
            clock.rate = draw.uniform(0.95, 1.05)
        process = world.process(name, clock, turn_cost_s=draw.choice((0.0, 0.0, 1e-5, 1e-3)))
        self.network.restart(host)
        self.network.attach(process, host)
        SimulatedRuntime(process, host, self.network)
        started = StartedNode(name, index, "run", process, host)
        self.nodes.append(started)
        self.say(name, "starts")
        process.start(self._lives(self, started))

    def _serves(self, process: Process, front: SimulatedFront) -> None:
        for each in self.nodes:
            if each.process is process:
                for oracle in self.oracles:
                    oracle.serves(each, front)
