"""What the parts of a simulated job share: its world, its nodes, and what has happened so far.

Programs, faults and oracles get the scene, and know nothing of each other. A scene decides nothing.
"""

from __future__ import annotations

import asyncio
import itertools
import random
from collections.abc import Callable, Coroutine, Sequence
from typing import Any, Concatenate, Final, ParamSpec, Protocol

import msgspec

from rallypoint.checkers.violations import InvariantViolation
from rallypoint.client.node import Node, Round
from rallypoint.coordinator.hosted_run import HostedRun
from rallypoint.core import effects as do
from rallypoint.core import events as on
from rallypoint.core.election import RunState
from rallypoint.core.store import StoreOp, StoreResult
from rallypoint.core.values import Change, CloseRecord, NodeId, RoundMember, RunSettings
from rallypoint.launch.agent_actions import Action as AgentAction
from rallypoint.launch.agent_events import Event as AgentEvent
from rallypoint.launch.machine import AgentMachine
from rallypoint.ledger.contract import Ledger
from rallypoint.simulation.clocks import MachineClock
from rallypoint.simulation.machine import SimulatedFront, SimulatedRuntime
from rallypoint.simulation.network import Network
from rallypoint.simulation.older import of_older
from rallypoint.simulation.plan import Plan
from rallypoint.simulation.workers import HowItEnds, SimulatedWorker
from rallypoint.simulation.world import Process, World

P = ParamSpec("P")

Undo = Callable[[], None]
"""Ends a fault. Called once."""
Token = tuple[int, int]
"""(term, number) of a round."""
LOOKS_S: Final = 0.5
"""How often the oracles look at the scene."""
QUIET_LOOKS_S: Final = 10.0
"""The same while nothing happens for hours."""


class Told(msgspec.Struct, frozen=True):
    """Something that has happened. `step`: how many events the world had then."""

    step: int
    at_s: float
    who: str
    """A process's name, or "world"."""
    what: str


class StartedNode(msgspec.Struct, eq=False):
    """One start of a node, or of a replica that only serves coordinators.

    `name`: its process's, which is new at each start. `index`: its place; the next start of that
    place has the same host. `run_id` is "" for a replica.
    """

    name: str
    index: int
    run_id: str
    process: Process
    host: str
    task: asyncio.Task[None] | None = None
    node: Node | None = None
    is_leaving: bool = False
    """Whether its program was told to end."""
    is_preempted: bool = False
    """Whether its machine will be taken away; when the faults end, if not before."""
    settings: RunSettings | None = None
    """The settings of the run that it brings."""
    drains_until_s: float | None = None
    """Until when it leaves, in the world's time, if it drains."""
    hangs_s: float = 0.0
    """How much longer its workers take to stop, the next time."""
    should_finish: bool = False
    """Whether its workers are to finish, though there are still faults."""
    tokens: list[Token] = msgspec.field(default_factory=list)
    is_working: bool = False
    """Whether it has a round, and its workers run."""
    has_finished: bool = False
    """Whether its workers have finished."""
    given_s: float = 0.0
    """When it was given a round last, in the world's time."""
    seen: dict[str, bytes] = msgspec.field(default_factory=dict)
    """The values of keys of its present round's store that it was told last."""
    answered_s: float = 0.0
    """When a call of its store was answered last, in the world's time."""
    is_over: bool = False
    """Whether its program has ended."""
    end: str = ""
    system: Any = None
    """The SimulatedSystem of its agent; None if it runs no agent, or has not started it."""

    @property
    def node_id(self) -> NodeId | None:
        """The name and the incarnation that its node has in the run; None before it has one."""
        info = self.node.info if self.node is not None else None
        return NodeId(info.name, info.incarnation) if info is not None else None

    @property
    def ended_term(self) -> int:
        """The term of the coordinator that told its node why its round ended."""
        return self.node._machine._ended_term if self.node is not None else 0

    @property
    def is_told_to_wait(self) -> bool:
        """Whether its coordinator has told it that it is on standby."""
        return self.node is not None and self.node._machine.is_standby

    @property
    def is_living(self) -> bool:
        """Whether its program still runs, though it may be frozen."""
        return self.process.is_alive and not self.is_over


class SimulatedLedger(Protocol):
    """The engine that all nodes of a job share: see `ledgers`."""

    endpoint: str
    """What a node gives as its endpoint."""
    is_on_one_machine: bool
    """Whether all nodes are on the machine with the engine, and lose power with it."""
    on_written: Callable[[str, bytes | None], None]
    """Called with the name and the value of each register that was written; None: removed."""
    on_logged: Callable[[str, int, bytes | None], None]
    """Called with the log, the index and the value of each record; None: removed."""

    def ledger(self, process: Process) -> Ledger:
        """The shipped ledger of one process, not opened yet."""

    def trouble(self, process: Process, draw: random.Random) -> Undo:
        """Something goes wrong with the engine, or with one process's way to it."""

    def limit(self, process: Process, draw: random.Random) -> Undo:
        """The engine comes to a limit of its own: space, history."""

    def cut(self, process: Process) -> Undo:
        """This process does not reach the engine any more."""

    def outage(self, process: Process, draw: random.Random) -> Undo:
        """Nothing is read or written any more."""

    def late(self, process: Process, draw: random.Random) -> Undo:
        """Some of a process's requests take effect after later ones, and are answered."""

    def small(self, process: Process, draw: random.Random) -> Undo:
        """Values that were not too large before are refused as too large."""

    def lost_power(self, host: str) -> None:
        """A host has lost power. Its processes have ended already."""

    def requests(self) -> int:
        """How many requests took effect; 0 if it does not count them."""

    def shown(self) -> list[str]:
        """What it holds, as lines for people."""


class Oracle:
    """What must hold. A subclass overrides what it looks at: see `oracles`.

    It calls `scene.broke` with its rule and what it saw, or raises InvariantViolation.
    """

    def __init__(self, scene: Scene) -> None:
        self.scene = scene

    def round_given(self, here: StartedNode, token: Token, digest: str) -> None:
        """A node's program was given a round."""

    def members_told(
        self, here: StartedNode, token: Token, given: Round, members: tuple[RoundMember, ...]
    ) -> None:
        """A node has asked for the members of its round."""

    def called(
        self,
        here: StartedNode,
        token: Token,
        call: int,
        operation: StoreOp,
        limit_s: float | None,
    ) -> None:
        """A node calls its round's store. `call`: counts the calls of the job.

        `limit_s`: how long it may take; None: as long as its round.
        """

    def answered(self, here: StartedNode, token: Token, call: int, result: StoreResult) -> None:
        """A call has its answer."""

    def withdrawn(self, here: StartedNode, call: int) -> None:
        """Its worker does not wait for a call any more, and will not hear its answer."""

    def serves(self, front: SimulatedFront) -> None:
        """A process begins to serve a coordinator, which has not started yet."""

    def hosts(self, front: SimulatedFront, run: HostedRun) -> None:
        """A coordinator begins a run, or a claim to it. Nothing has happened in it."""

    def stepped(
        self, front: SimulatedFront, run: HostedRun, event: on.Event, effects: list[do.Effect]
    ) -> None:
        """The core of a run has made a step. Its effects are carried out after this."""

    def restored(
        self,
        front: SimulatedFront,
        run: HostedRun,
        state: RunState,
        named: dict[str, Any],
        effects: list[do.Effect],
    ) -> None:
        """The core of a run was restored from the ledger. `named`: the other arguments."""

    def written(self, name: str, value: bytes | None) -> None:
        """A register of the ledger has a new value; None: it was removed."""

    def logged(self, log: str, index: int, value: bytes | None) -> None:
        """A record was added to a log of the ledger; None: it was removed."""

    def joins(self, here: StartedNode, node: Node) -> None:
        """A program has made its node, which is not open yet."""

    def round_ended(self, here: StartedNode, change: Change) -> None:
        """A node's program has learned why its round ended."""

    def run_ended(self, here: StartedNode, close: CloseRecord) -> None:
        """A node's program has learned how its run ended."""

    def agent_told(self, here: StartedNode, event: AgentEvent) -> None:
        """The machine of an agent is going to be told what has happened."""

    def agent_acted(
        self, here: StartedNode, agent: AgentMachine, actions: Sequence[AgentAction]
    ) -> None:
        """An agent has done what its machine decided. Called often."""

    def worker_started(self, here: StartedNode, worker: SimulatedWorker) -> None:
        """A worker of an agent runs."""

    def advanced(self, here: StartedNode, token: Token) -> None:
        """A worker has advanced, and its agent knows it."""

    def worker_ended(self, here: StartedNode, worker: SimulatedWorker, how: HowItEnds) -> None:
        """A worker has ended. Its agent does not know it yet, and may be dead."""

    def agent_ended(
        self, here: StartedNode, agent: AgentMachine, code: int, error: Exception | None
    ) -> None:
        """An agent ends with an exit code. `error`: what it raised, if that is the reason."""

    def step_asked(self, here: StartedNode, token: Token, rank: int, step: int) -> None:
        """A worker asks whether it stops at this step. It may have to wait for the answer."""

    def step_answered(
        self, here: StartedNode, token: Token, rank: int, step: int, is_last: bool | None
    ) -> None:
        """It has the answer; None: the round has ended."""

    def left(self, here: StartedNode) -> None:
        """A coordinator has answered a node's goodbye."""

    def killed_in_peace(self, here: StartedNode) -> None:
        """The process of a node was killed while all was well, and everybody else lives."""

    def looked(self) -> None:
        """LOOKS_S have passed: look at the scene between two events."""

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
        self.ledger.on_written = self._written
        self.ledger.on_logged = self._logged
        self.network.has_proxy, self.network.idle_s = plan.has_proxy, plan.proxy_idle_s
        self.network.unlogged_bytes_max = plan.unlogged_bytes_max
        self.network.has_witnesses = plan.has_witnesses
        self.run_settings = RunSettings(
            min_nodes=plan.min_nodes,
            max_nodes=plan.max_nodes or max(1, plan.nodes // plan.runs),
            max_restarts=plan.max_restarts,
            last_call_s=plan.last_call_s,
            suspect_after_s=plan.suspect_after_s,
            lost_after_s=plan.lost_after_s,
            mass_min=plan.mass_min,
            mass_grace_s=plan.mass_grace_s,
            restart_window_s=plan.restart_window_s,
            early_s=plan.early_s,
            same_failure=plan.same_failure,
            no_restart_exit_codes=plan.no_restart_exit_codes,
            max_restarts_per_node=plan.max_restarts_per_node,
            cooldown_s=plan.cooldown_s,
            cooldown_max_s=4 * plan.cooldown_s,
        )
        self.nodes: list[StartedNode] = []
        """Every start of a node or a replica, in order."""
        self.fronts: list[SimulatedFront] = []
        """The coordinators of all processes, in the order of their starts."""
        self.oracles: list[Oracle] = []
        self.problems: list[str] = []
        self.events: list[Told] = []
        """What has happened, in order."""
        self.is_chaotic = True
        """Whether faults may still come. Programs finish only after that."""
        self.is_quiet = False
        self.sizes: list[tuple[int, int]] = []
        """To how many nodes, at least and at most, operators have scaled a run."""
        """Whether the workers call nothing, for hours."""
        self.settled_s: float | None = None
        """Since when all nodes have been in one round, in peace."""
        self.peace_s = 0.0
        """When the last fault ended."""
        self.met: dict[tuple[str, Token, int | str], list[int]] = {}
        """How many ranks have come into each collective."""
        self.serial = itertools.count(1)
        """Numbers for whatever must be different in this job."""
        self._lives = lives
        self._broken: set[str] = set()
        self._told: dict[Any, list[Callable[..., None]]] = {}
        """By method of Oracle: those oracles that override it."""

    def look(self) -> None:
        """Let the oracles look at the scene, now and from now on."""
        self.tell(Oracle.looked)
        self.world.after(QUIET_LOOKS_S if self.is_quiet else LOOKS_S, self.look)

    def say(self, who: str, what: str) -> None:
        """Note an event."""
        self.events.append(Told(self.world.steps, self.world.now_s, who, what))

    def broke(self, rule: str, what: str) -> None:
        """A rule does not hold. `rule`: its number, or a word for what is no rule of the protocol.

        Only the first problem of each rule is kept: the others mostly follow from it.
        """
        if rule not in self._broken:
            self._broken.add(rule)
            self.say("world", f"BROKEN {rule}: {what}")
            self.problems.append(f"{rule}: {what}")

    @property
    def living(self) -> list[StartedNode]:
        """The nodes and replicas whose programs still run."""
        return [each for each in self.nodes if each.is_living]

    def nodes_of(self, run_id: str) -> list[StartedNode]:
        """The living nodes of a run, without those that have finished."""
        living = self.living
        return [each for each in living if each.run_id == run_id and not each.has_finished]

    @property
    def run_ids(self) -> list[str]:
        """The ids of all runs."""
        return [f"run-{index}" for index in range(self.plan.runs)]

    def lose_power(self, victim: StartedNode) -> list[StartedNode]:
        """The machine of a process goes without a word. Returns what ran there."""
        is_all = self.ledger.is_on_one_machine
        hosts = dict.fromkeys(each.host for each in self.nodes) if is_all else {victim.host: None}
        # Another node may have started there while the victim was ending.
        lost = [each for each in self.living if each.host in hosts]
        for host in hosts:
            self.network.lose(host)
        self.ledger.lost_power(victim.host)
        return lost

    def start_later(self, index: int, after_s: float) -> None:
        """Start the node or replica of this place after some time, if there are still faults.

        When they end, all places that are empty are filled.
        """
        self.world.after(after_s, lambda: self.start(index) if self.is_chaotic else None)

    def start_sometime(self, index: int, draw: random.Random) -> None:
        """As `start_later`: at once, after some seconds, or much later."""
        self.start_later(index, draw.expovariate(1.0 / draw.choice((0.2, 3.0, 20.0))))

    def start_again(self, index: int, after_s: float) -> None:
        """A scheduler starts the node of this place again, unless another runs there by then."""

        def fill() -> None:
            if not any(each.index == index for each in self.living):
                self.start(index)

        self.world.after(after_s, fill)

    def start(self, index: int) -> None:
        """Start the node or replica of this place: a new process, with a new name."""
        draw, world, plan = self.world.random, self.world, self.plan
        host = f"10.0.0.{index + 1}"
        is_node = index < plan.nodes
        name = f"{'node' if is_node else 'serve'}-{index}.{next(self.serial)}"
        clock = MachineClock(offset_s=draw.random() * 1e5)
        if plan.wild_clocks:
            clock.rate = draw.uniform(0.95, 1.05)
        process = world.process(name, clock, turn_cost_s=draw.choice((0.0, 0.0, 1e-5, 1e-3)))
        self.network.restart(host)
        self.network.attach(process, host)
        runtime = SimulatedRuntime(process, host, self.network, is_container=plan.is_container)
        if plan.same_pids:
            runtime.pid = 1
        if plan.has_older and random.Random(f"{world.seed}/{name}/release").random() < 0.5:
            process.sees = of_older
        run_id = f"run-{index % plan.runs}" if is_node else ""
        started = StartedNode(name, index, run_id, process, host)
        self.nodes.append(started)
        self.say(name, "starts")
        started.task = process.start(self._lives(self, started))

    def given(self, here: StartedNode, token: Token, digest: str) -> None:
        """A node's program was given a round."""
        self.tell(Oracle.round_given, here, token, digest)
        here.seen.clear()
        here.tokens.append(token)
        here.given_s = self.world.now_s

    def round_ended(self, here: StartedNode, change: Change) -> None:
        """A node's program has learned why its round ended."""
        self.tell(Oracle.round_ended, here, change)

    def run_ended(self, here: StartedNode, close: CloseRecord) -> None:
        """A node's program has learned how its run ended."""
        self.tell(Oracle.run_ended, here, close)

    # -- what the shipped code does ----------------------------------------------------------------

    def _serves(self, process: Process, front: SimulatedFront) -> None:
        """A process begins to serve: from now on, tell the oracles what its runs do."""
        self.fronts.append(front)
        coordinator = front.driver.coordinator
        open_run = coordinator.open_run

        def opened(run_id: str) -> HostedRun:
            is_new = run_id not in coordinator.runs
            run = open_run(run_id)
            if is_new:
                self._watch(front, run)
            return run

        coordinator.open_run = opened  # type: ignore[method-assign]
        self.tell(Oracle.serves, front)

    def _watch(self, front: SimulatedFront, run: HostedRun) -> None:
        membership = run.membership
        step, restore = membership.step, membership.restore

        def stepped(event: on.Event, now_s: float) -> list[do.Effect]:
            effects = step(event, now_s)
            self.tell(Oracle.stepped, front, run, event, effects)
            return effects

        def restored(state: RunState, **named: Any) -> list[do.Effect]:
            effects = restore(state, **named)
            self.tell(Oracle.restored, front, run, state, named, effects)
            return effects

        membership.step = stepped  # type: ignore[method-assign]
        membership.restore = restored  # type: ignore[method-assign]
        self.tell(Oracle.hosts, front, run)

    def _written(self, name: str, value: bytes | None) -> None:
        self.tell(Oracle.written, name, value)

    def _logged(self, log: str, index: int, value: bytes | None) -> None:
        self.tell(Oracle.logged, log, index, value)

    def tell(
        self, what: Callable[Concatenate[Oracle, P], None], /, *about: P.args, **named: P.kwargs
    ) -> None:
        """Tell all oracles that look at it. A rule that is broken is noted, and the job goes on.

        `what`: a method of Oracle, and then its arguments.
        """
        told = self._told.get(what)
        if told is None:
            told = self._told[what] = [
                getattr(oracle, what.__name__)
                for oracle in self.oracles
                if getattr(type(oracle), what.__name__) is not what
            ]
        for look in told:
            try:
                look(*about, **named)
            except InvariantViolation as violation:
                self.broke(violation.rule, violation.problem)
