"""The shipped agent in a simulated process, with simulated workers on its host.

`Agent`, its machine and its node are the shipped ones. Only what launch/system.py names is the
world's: worker processes, their guard, signals, files, the console and the local socket.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import random
import signal
import socket
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from functools import partial
from pathlib import Path
from typing import Any, Final

from rallypoint import runtime
from rallypoint.client.node import Node, Round
from rallypoint.client.reaching import Unreached
from rallypoint.client.waiting import left_run
from rallypoint.core.stacks import WorkerStack
from rallypoint.core.values import Address, Change, CloseRecord, Drain
from rallypoint.errors import (
    CoordinatorError,
    JoinTimeoutError,
    RallypointError,
    RefusedError,
)
from rallypoint.launch import agent_actions as do
from rallypoint.launch import agent_events as on
from rallypoint.launch.agent import Agent, AgentConfig
from rallypoint.launch.agent_events import PreloadEvent
from rallypoint.launch.agent_log import AgentLog
from rallypoint.launch.channel import Requests
from rallypoint.launch.machine import AgentMachine
from rallypoint.launch.phases import Phase
from rallypoint.launch.preloader import PreloadPlan
from rallypoint.launch.system import EndGuard, LocalSocket, Output, Port, WarmForks, Workers
from rallypoint.launch.warm_starts import Preload
from rallypoint.launch.worker_processes import Forks, WorkerExit, WorkerSpec
from rallypoint.launch.worker_stacks import Asked
from rallypoint.ledger.contract import Ledger
from rallypoint.settings import PortRange
from rallypoint.simulation.calls import drawn, make
from rallypoint.simulation.programs import judge, opened_ledger, settings_of
from rallypoint.simulation.scene import Oracle, Scene, StartedNode, Token
from rallypoint.simulation.workers import (
    FINISHED,
    GUARDED_S,
    UNWINDS_S,
    HowItEnds,
    SimulatedWorker,
    SimulatedWorkers,
)
from rallypoint.simulation.world import Process

WORKS_S: Final = 0.5
"""How long a worker works between two calls, on average, in seconds."""
IMPORTS_S: Final = (0.1, 5.0)
"""How long a preloader imports modules, between these bounds, in seconds."""
REFUSED: Final = 0.2
"""The part of the preloaders that refuse their modules."""
PRELOADER_LIVES_S: Final = 20.0
"""How long a preloader lives, on average, in seconds."""
BROKEN_AFTER_S: Final = (0.001, 0.05)
"""How long after a worker its peers fail with an error of their connections."""
JOINS: Final = 0.8
"""The part of the workers that join, if agents keep workers."""
JOINS_S: Final = (0.001, 0.5)
"""How long after its start one joins, between these bounds, in seconds."""
LEAVES: Final = 0.8
"""How often one leaves its world when it ends."""
LOADS: Final = "data loading (data.py:9)"
WAITS: Final = "all_reduce (train.py:41)"
BROKEN: Final = HowItEnds(
    1, lines=("Traceback (most recent call last):", "ConnectionResetError: Connection reset")
)
"""How a worker fails whose peer has ended."""


class SimulatedPort:
    """See launch.system.Port."""

    def __init__(self, port: int) -> None:
        self.port = port

    def hand_over(self) -> None:
        """See Port."""

    def close(self) -> None:
        """See Port."""


class SimulatedGuard:
    """See launch.system.EndGuard. The workers themselves know when their agent ends.

    It has no copy of a connection, so an agent that dies with unread data resets it. That is the
    harder case, which a real guard leaves too if it is frozen or dies with its agent.
    """

    def start(self) -> None:
        """See EndGuard."""

    def remove_in_the_end(self, path: Path) -> None:
        """See EndGuard."""

    def keep(self, connection: socket.socket) -> Callable[[], None]:
        """See EndGuard."""
        return lambda: None

    async def close(self) -> None:
        """See EndGuard."""


class SimulatedOutput:
    """See launch.system.Output. The lines of the agent are events of the scene."""

    def __init__(self, say: Callable[[str], None]) -> None:
        self.kept: dict[int, tuple[str, ...]] = {}
        self.say = say

    def begin_round(self, number: int, kept: Mapping[int, int] | None = None) -> None:
        """See Output."""
        self.kept = {}

    def keep(self, text: str) -> None:
        """See Output. A simulated agent has no file."""

    async def drain(self, timeout_s: float, local_rank: int | None = None) -> bool:
        """See Output."""
        await asyncio.sleep(0)
        return True

    def last_lines(self, local_rank: int) -> tuple[str, ...]:
        """See Output."""
        return self.kept.get(local_rank, ())

    async def close(self, timeout_s: float) -> bool:
        """See Output."""
        return True


class SimulatedSocket:
    """See launch.system.LocalSocket. `ask` is what workers send to the agent itself."""

    def __init__(self, node: Node, ask: Requests, system: SimulatedSystem) -> None:
        self.system = system
        self.node = node
        self.ask = ask
        self.path = ""
        self.round: Round | None = None
        self.is_open = False
        self.departs = ""
        """Why the workers were told that the node leaves; "" before."""

    async def start(self) -> None:
        """See LocalSocket."""
        self.path, self.is_open = f"@{self.node.info.name}", True

    def begin_round(self, found: Round, kept: Sequence[int] = ()) -> str:
        """See LocalSocket."""
        self.round = found
        return f"secret of round {found.head.number}"

    def go_on(self, variables: Mapping[int, dict[str, str]]) -> None:
        """See LocalSocket. What a worker does next, it does in the new round."""
        assert self.round is not None
        for worker in self.system.living:
            kept = variables.get(worker.spec.local_rank)
            if kept is None or not worker.waits:
                what = f"{self.node.info.name} begins a round beside a worker of {worker.token}"
                self.system.scene.broke("R13", what)
                continue
            worker.go_on(kept)

    def end_round(self, change: Change) -> None:
        """See LocalSocket. Some workers leave their world soon, and some never."""
        for worker in self.system.living:
            if worker.joins and not worker.waits and worker.token[1] == change.round:
                self.system.leaves_soon(worker)

    def end_run(self, close: CloseRecord) -> None:
        """See LocalSocket."""

    def drain(self, drain: Drain) -> None:
        """See LocalSocket. Simulated workers of agents take no steps."""

    def expel(self, reason: str) -> None:
        """See LocalSocket. The agent stops simulated workers, which need no reason."""

    def stop_at(self, step: int) -> None:
        """See LocalSocket."""

    def depart(self, reason: str) -> None:
        """See LocalSocket."""
        self.departs = reason

    async def aclose(self) -> None:
        """See LocalSocket."""
        self.is_open = False


class SimulatedPreloader:
    """See launch.system.WarmForks. Its workers start sooner; it may refuse its modules, or die."""

    def __init__(
        self, process: Process, plan: PreloadPlan, tell: Callable[[PreloadEvent], None]
    ) -> None:
        self.is_ready = False
        self._process = process
        self._plan = plan
        self._tell = tell
        self._present = 0
        self._settled = asyncio.Event()

    def start(self, modules: Sequence[str]) -> None:
        """See WarmForks."""
        self.close()
        self._settled.clear()
        draw, present = self._process.random, self._present
        took_s = draw.uniform(*IMPORTS_S)
        if draw.random() < REFUSED:
            problem = on.Problem((draw.choice(modules),), "it starts a thread of Python")
            self._after(took_s, present, on.PreloadRefused((problem,)))
            return
        self._after(took_s, present, on.PreloadReady(len(modules), took_s, 2**28))
        lives_s = draw.expovariate(1.0 / PRELOADER_LIVES_S)
        self._after(took_s + lives_s, present, on.PreloaderEnded("signal 9"))

    def _after(self, delay_s: float, present: int, event: PreloadEvent) -> None:
        def happens() -> None:
            if self._process.is_alive and present == self._present:
                self.is_ready = isinstance(event, on.PreloadReady)
                self._process.soon(self._told, present, event)

        self._process.world.after(delay_s, happens)

    def _told(self, present: int, event: PreloadEvent) -> None:
        if present == self._present:
            self._tell(event)
            self._settled.set()

    async def settled(self) -> None:
        """See WarmForks."""
        await self._settled.wait()

    def take(self, spec: WorkerSpec, stdin: int, stdout: int, stderr: int) -> None:
        """See Forks. A simulated worker is no process."""

    def refill(self) -> None:
        """See WarmForks."""

    def close(self) -> None:
        """See WarmForks."""
        self._present += 1
        self.is_ready = False
        self._settled.set()


class SimulatedSystem:
    """See launch.system.System. The system of one agent, and the owner of its workers."""

    may_read_stdin = False

    def __init__(self, scene: Scene, here: StartedNode, ledger: Ledger) -> None:
        self.scene = scene
        self.here = here
        self.process = here.process
        self.ledger: Ledger | None = ledger
        self.guard: EndGuard = SimulatedGuard()
        self.environment: dict[str, str] = {}
        self.stop_timeout_s = 25.0
        self.ends_at_s: float | None = None
        """When the launcher ends the job, by this host's wall clock."""
        self.is_stubborn = False
        self.cannot_start = False
        self.signals: list[int] = []
        """What the agent was sent."""
        self.groups: list[SimulatedWorkers] = []
        self.socket: SimulatedSocket | None = None
        self.machine: AgentMachine | None = None
        self.has_finished = False
        """Whether its workers have finished in their last round."""
        self.has_left = False
        """Whether a worker has asked it to leave the run."""
        self._output = SimulatedOutput(lambda text: scene.say(here.name, text))
        self._ports = itertools.count(29_500)
        self._stopping: Callable[[int], None] | None = None
        self.process.on_end.append(self._agent_ended)

    @property
    def living(self) -> list[SimulatedWorker]:
        """The workers that run."""
        return [worker for group in self.groups for worker in group.living]

    def signal(self, number: int) -> None:
        """The agent gets a signal."""
        if self._stopping is None:
            self.process.kill()  # It has no handler yet.
        else:
            self.signals.append(number)
            self.process.soon(self._stopping, number)

    def end_at(self, ends_at_s: float) -> None:
        """The launcher sends a notice some time before, and SIGKILL in the end."""
        self.ends_at_s = ends_at_s
        draw = random.Random(f"{self.scene.world.seed}/{self.here.name}/notice")
        notice_s = draw.uniform(*NOTICE_S)
        left_s = ends_at_s - self.wall_s()
        self.scene.world.after(left_s - notice_s, lambda: self._get_notice(notice_s))

    def _get_notice(self, notice_s: float) -> None:
        if self.scene.is_chaotic and self.process.is_alive:
            self.scene.say(self.here.name, f"its job ends in {notice_s:.1f} s")
            self.signal(signal.SIGTERM)
            self.scene.world.after(notice_s, self.process.kill)
            # The job is submitted again.
            self.scene.start_again(self.here.index, notice_s + STARTS_AGAIN_S)

    def _agent_ended(self) -> None:
        """The guard, or the parent-death signal, ends the workers of a dead agent."""
        for worker in self.living:
            within_s = self.process.random.uniform(0.0, GUARDED_S)
            self.scene.world.after(within_s, partial(worker.signalled, signal.SIGKILL))

    # -- launch.system.System ----------------------------------------------------------------------

    def wall_s(self) -> float:
        """See System."""
        return self.process.clock_s() + self.process.clock.wall_offset_s

    def handle_signals(
        self, stopping: Callable[[int], None], forwarded: Callable[[int], None]
    ) -> None:
        """See System."""
        self._stopping = stopping

    def loggers(self, log: AgentLog) -> AbstractContextManager[None]:
        """See System: what is logged is an event of the scene already."""
        return contextlib.nullcontext()

    def output(self, **options: Any) -> Output:
        """See System."""
        return self._output

    def channel(self, node: Node, requests: Requests) -> LocalSocket:
        """See System."""
        self.socket = SimulatedSocket(node, requests, self)
        return self.socket

    def workers(
        self,
        specs: Sequence[WorkerSpec],
        exits: Callable[[WorkerExit], None],
        forks: Forks | None = None,
    ) -> Workers:
        """See System."""
        is_warm = isinstance(forks, SimulatedPreloader) and forks.is_ready
        group = SimulatedWorkers(self, specs, exits, is_warm=is_warm)
        self.groups = [each for each in self.groups if each.living or not each.all] + [group]
        return group

    def preloader(
        self, plan: PreloadPlan, tell: Callable[[PreloadEvent], None], said: Callable[[str], None]
    ) -> WarmForks:
        """See System."""
        return SimulatedPreloader(self.process, plan, tell)

    def reserve_port(self, ports: PortRange | None, last: int | None) -> Port:
        """See System."""
        return SimulatedPort(next(self._ports))

    async def check(self, command: str, limit_s: float) -> str:
        """See System. The seed says how long it takes, and whether it fails."""
        draw = self.process.random
        await asyncio.sleep(draw.uniform(0.0, 0.5))
        return "a device does not answer" if draw.random() < CHECK_FAILS else ""

    async def unreached(self, address: Address, limit_s: float) -> Unreached | None:
        """See System."""
        draw = random.Random(f"{self.scene.world.seed}/{self.here.name}/{address}/wall")
        if draw.random() < WALLED_PORTS:
            await asyncio.sleep(limit_s)
            return Unreached(address, f"no answer within {limit_s:g} s")
        has_answered = await runtime.here().refuses(address, limit_s) is not None
        return None if has_answered else Unreached(address, f"no answer within {limit_s:g} s")

    async def listens(self, port: int) -> bool:
        """See System. Whether rank 0 of this round does so soon, the seed says."""
        draw = random.Random(f"{self.scene.world.seed}/{self.here.name}/{port}/listens")
        return draw.random() < LISTENS_SOON

    def a_kernel_port(self, ports: PortRange) -> int | None:
        """See System. Simulated workers open no ports."""
        return None

    async def check_log_dir(self, path: Path) -> None:
        """See System."""

    async def make_scratch(self) -> Path:
        """See System."""
        await asyncio.sleep(self.process.random.random() * 0.01)
        return Path("/scratch") / self.here.name

    async def remove_scratch(self, path: Path) -> None:
        """See System."""

    async def read_text(self, path: Path) -> str:
        """See System: workers write only which modules they have imported."""
        if path.name.startswith("modules"):
            return "numpy\ntorch\n"
        raise FileNotFoundError(str(path))

    async def stacks(self, workers: list[Asked], bytes_max: int) -> tuple[WorkerStack, ...]:
        """See System. A worker that has stopped working is the odd one out."""
        await asyncio.sleep(self.process.random.uniform(0.0, 0.3))
        living = {each.pid: each for each in self.living}
        return tuple(
            WorkerStack(
                each.rank,
                each.local_rank,
                place=WAITS if living[each.pid].hangs_since_s is None else LOADS,
                is_waiting=living[each.pid].hangs_since_s is None,
                step=each.step,
            )
            for each in workers
            if each.pid in living
        )

    async def run_command(self, argv: tuple[str, ...], limit_s: float) -> tuple[int, str]:
        """See System: there is no command."""
        raise FileNotFoundError(argv[0])

    # -- the life of a worker ----------------------------------------------------------------------

    def worker_started(self, worker: SimulatedWorker) -> None:
        """See Owner."""
        self.scene.tell(Oracle.worker_started, self.here, worker)
        self._works(worker)
        draw = self.process.random
        if self.scene.plan.keeps and draw.random() < JOINS:
            self.scene.world.after(draw.uniform(*JOINS_S), lambda: self._join(worker))

    def _join(self, worker: SimulatedWorker) -> None:
        """It connects to its agent, which admits it if its round is still the present one."""
        socket = self.socket
        if socket is None or not worker.is_alive or not self.process.is_alive:
            return
        found = socket.round
        if found is not None and (found.head.term, found.head.number) == worker.token:
            worker.joins = True
            self.process.soon(socket.ask.joined, worker.spec.local_rank)
            if socket.node.change is not None and socket.node.round == found:
                self.leaves_soon(worker)

    def leaves_soon(self, worker: SimulatedWorker) -> None:
        """It comes out of its block, and asks for the next world; or it never does."""
        draw = self.process.random
        if draw.random() < LEAVES:
            token = worker.token
            self.scene.world.after(draw.expovariate(1.0), lambda: self._ask_world(worker, token))

    def _ask_world(self, worker: SimulatedWorker, token: Token) -> None:
        socket = self.socket
        is_here = worker.is_alive and not worker.waits and worker.token == token
        if socket is not None and is_here and socket.is_open and self.process.is_alive:
            worker.waits = True
            self.process.soon(socket.ask.asked, worker.spec.local_rank, token[1])

    def worker_ended(self, worker: SimulatedWorker, how: HowItEnds) -> None:
        """See Owner. Its peers may fail for that: gloo and NCCL notice a lost connection."""
        self._output.kept[worker.spec.local_rank] = how.lines
        self.scene.tell(Oracle.worker_ended, self.here, worker, how)
        if how.returncode != 0 and not (worker.is_stopping and self.process.is_alive):
            self.scene.say(self.here.name, f"worker {worker.spec.rank} ends: {shown(how)}")
        if how.returncode != 0 and self.process.random.random() < 0.5:
            self.scene.world.after(
                self.process.random.uniform(*BROKEN_AFTER_S), lambda: self._break_peers(worker)
            )

    def _break_peers(self, worker: SimulatedWorker) -> None:
        for system in systems_of(self.scene, self.here.run_id):
            for peer in system.living:
                if peer.token == worker.token and not peer.is_stopping:
                    peer.end(BROKEN)

    def _works(self, worker: SimulatedWorker) -> None:
        pause_s = self.process.random.expovariate(1.0 / WORKS_S)
        self.scene.world.after(pause_s, lambda: self._has_worked(worker))

    def _has_worked(self, worker: SimulatedWorker) -> None:
        if not worker.is_alive:
            return
        if self._stands_still(worker) or worker.waits:
            self._works(worker)
            return
        wants = self.process.random.random()
        if not self.scene.is_chaotic and self.scene.plan.ends and wants < 0.2:
            worker.end(FINISHED)
            return
        if not worker.is_stopping:
            self.process.soon(self._call, worker)
            if self.scene.plan.hang_timeout_s:
                self.process.soon(self._progress, worker)
        self._works(worker)

    def _stands_still(self, worker: SimulatedWorker) -> bool:
        """Whether it, or another worker of its round, hangs: they wait for each other."""
        if not self.scene.plan.hang_timeout_s:
            return False
        return any(
            each.hangs_since_s is not None and each.token == worker.token
            for system in systems_of(self.scene, self.here.run_id)
            for each in system.living
        )

    def _progress(self, worker: SimulatedWorker) -> None:
        """A worker's report arrives at its agent."""
        socket = self.socket
        if socket is None or not socket.is_open or not worker.is_alive or socket.round is None:
            return
        head = socket.round.head
        if (head.term, head.number) == worker.token and socket.node.round == socket.round:
            worker.step += 1
            socket.ask.progressed(worker.spec.local_rank, worker.step)
            self.scene.tell(Oracle.advanced, self.here, worker.token)

    def _call(self, worker: SimulatedWorker) -> None:
        """A worker's call arrives at its agent."""
        socket = self.socket
        if socket is None or not socket.is_open or not worker.is_alive:
            return
        found = socket.round
        if found is not None and (found.head.term, found.head.number) == worker.token:
            self.process.loop.create_task(self._carry(socket, found, worker.token))

    async def _carry(self, socket: SimulatedSocket, found: Round, token: Token) -> None:
        """The agent carries a call to the coordinator, as channel.WorkerLink does."""
        if socket.node.round != found:
            return
        call = drawn(self.scene, self.here, socket.node)
        await make(self.scene, self.here, socket.node, token, call)


class WatchedAgent(Agent):
    """The shipped agent. The scene is told what happens to it."""

    def __init__(self, config: AgentConfig, system: SimulatedSystem) -> None:
        super().__init__(config, system)
        self._scene = system.scene
        self._here = system.here
        self.node = self._node
        self.machine = system.machine = self._machine

    def _take(self, event: on.Event) -> None:
        scene, here = self._scene, self._here
        scene.tell(Oracle.agent_told, here, event)
        match event:
            case on.RoundFound(found=found):
                head = found.head
                scene.given(here, (head.term, head.number), head.digest)
            case on.Stopped() if self._node.change is not None and not self._machine.is_over:
                scene.round_ended(here, self._node.change)
            case on.RunClosed(close=close):
                scene.run_ended(here, close)
            case on.LeaveAsked():
                here.system.has_left = True
        super()._take(event)

    def _act(self, actions: list[do.Action]) -> None:
        super()._act(actions)
        phase = self._machine.phase
        self._here.is_working = phase is Phase.WORKING
        self._here.has_finished = phase is Phase.FINISHED
        self._here.system.has_finished |= phase is Phase.FINISHED
        if self._here.process.is_alive:  # Else its coroutine is closed with the world.
            self._scene.tell(Oracle.agent_acted, self._here, self._machine, actions)


CHECK_FAILS: Final = 0.3
"""How often the check of a simulated node fails, if it has one."""
LISTENS_SOON: Final = 0.7
"""How likely rank 0 is to listen at its port at once."""
WALLED_PORTS: Final = 0.1
"""The part of rank 0's ports that a firewall keeps from a node."""
ENDED_AGENTS: Final = 0.1
"""The part of the agents whose job has a known end."""
ENDED_AFTER_S: Final = (10.0, 30.0)
"""How long after its start such a job ends, in seconds."""
NOTICE_S: Final = (0.5, 10.0)
"""How long before the end of its job an agent gets SIGTERM."""
STARTS_AGAIN_S: Final = 3.0
"""How long after its end a scheduler starts an agent again, on average, in seconds."""


async def agent_program(scene: Scene, here: StartedNode) -> None:
    """The shipped agent, from its start to the end of its process."""
    ledger = await opened_ledger(scene, here)
    system = here.system = SimulatedSystem(scene, here, ledger)
    draw = here.process.random
    config = AgentConfig(
        node=settings_of(scene, here),
        run=scene.run_settings,
        argv=("train",),
        workers=draw.choice((1, 1, 2, 3)),
        stop_timeout_s=draw.choice((1.0, 25.0)),
        regroup_stop_timeout_s=scene.plan.stop_s,
        ends_at_s=_end_of_the_job(scene, here),
        preload=_preload(scene, here),
        check="check" if scene.plan.has_check else None,
        unwind_s=draw.choice(UNWINDS_S) if scene.plan.keeps else None,
    )
    system.stop_timeout_s = config.stop_timeout_s
    if config.ends_at_s is not None:
        system.end_at(config.ends_at_s)
    agent = WatchedAgent(config, system)
    node = here.node = agent.node
    scene.tell(Oracle.joins, here, node)
    failed: RallypointError | None = None
    try:
        code = await agent.run()
    except RallypointError as error:
        failed, code = error, error.exit_code
    if node.gone is not None and node.gone.message == left_run().message:
        scene.tell(Oracle.left, here)
    here.end = f"exit code {code:d}" + (f": {failed.message}" if failed is not None else "")
    scene.say(here.name, here.end)
    scene.tell(Oracle.agent_ended, here, agent.machine, code, failed)
    if isinstance(failed, CoordinatorError | JoinTimeoutError):
        judge(scene, here, failed)
    await ledger.aclose()
    here.is_over, here.is_working, here.has_finished = True, False, False
    scene.world.after(0.0, here.process.kill)
    if node.closed is None and not system.has_finished and not isinstance(failed, RefusedError):
        scene.world.after(
            draw.expovariate(1.0 / STARTS_AGAIN_S), partial(_start_again, scene, here)
        )


def _preload(scene: Scene, here: StartedNode) -> Preload | None:
    """What this agent preloads: named modules, learned ones, or none."""
    draw = random.Random(f"{scene.world.seed}/{here.name}/preload")
    if not scene.plan.preloads:
        return None
    named = Preload(modules=("numpy", "torch"))
    return draw.choice((None, named, Preload(learn_after_s=draw.uniform(0.5, 5.0))))


def _end_of_the_job(scene: Scene, here: StartedNode) -> float | None:
    """When the launcher ends this agent, whatever it does; for few agents, and in the chaos."""
    draw = random.Random(f"{scene.world.seed}/{here.name}/end")
    if not scene.is_chaotic or draw.random() >= ENDED_AGENTS:
        return None
    return runtime.here().wall_s() + draw.uniform(*ENDED_AFTER_S)


def _start_again(scene: Scene, here: StartedNode) -> None:
    """As a scheduler does."""
    if all(each.index != here.index for each in scene.living):
        scene.start(here.index)


def systems_of(scene: Scene, run_id: str) -> Iterator[SimulatedSystem]:
    """The systems of all agents of a run, dead ones too."""
    for each in scene.nodes:
        if each.run_id == run_id and isinstance(each.system, SimulatedSystem):
            yield each.system


def shown(how: HowItEnds) -> str:
    """How a worker ended, in words."""
    if how.oom:
        return "out of memory"
    return f"signal {how.signal}" if how.signal is not None else f"exit code {how.returncode}"
