"""Simulated worker processes: they start, work, fail, hang when they are stopped, or finish.

A worker lives on its agent's host, in the world's time, and has no event loop: what it does is an
event of the world. It dies by a signal or by itself. Its agent learns of it when it has a turn.
If the agent dies, its guard ends the workers a moment later. This file must not know why a worker
fails: faults and programs decide that.
"""

from __future__ import annotations

import asyncio
import contextlib
import signal
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, Protocol

import msgspec

from rallypoint.errors import WorkerStartError
from rallypoint.launch.worker_processes import WorkerExit, WorkerSpec
from rallypoint.simulation.world import Process

WARM_START_S: Final = (0.001, 0.02)
"""How long the start of one worker takes as a fork of a preloader."""
START_S: Final = (0.005, 0.3)
"""How long the start of one worker takes, between these bounds, in seconds."""
STOP_S: Final = (0.001, 0.4)
"""How long a worker that handles a signal takes to end."""
UNWINDS_S: Final = (0.3, 2.0)
"""How long workers may take to ask for the next world, if they can be kept: one of these."""
GUARDED_S: Final = 0.05
"""How long after its agent a worker may live."""


class HowItEnds(msgspec.Struct, frozen=True):
    """The end of a worker. `lines`: what it writes to stderr before."""

    returncode: int | None = None
    signal: int | None = None
    oom: bool = False
    lines: tuple[str, ...] = ()


FINISHED: Final = HowItEnds(0)


class Owner(Protocol):
    """Whoever watches the workers of an agent: see agents.SimulatedSystem."""

    process: Process
    """The agent's process."""
    is_stubborn: bool
    """Whether the workers that are stopped now ignore every signal but SIGKILL."""
    cannot_start: bool
    """Whether the system starts no process now."""

    def worker_started(self, worker: SimulatedWorker) -> None:
        """A worker runs."""

    def worker_ended(self, worker: SimulatedWorker, how: HowItEnds) -> None:
        """A worker has ended. Its agent does not know it yet."""


class SimulatedWorker:
    """One worker process."""

    def __init__(self, owner: Owner, spec: WorkerSpec, pid: int) -> None:
        self.spec = spec
        self.pid = pid
        self.is_alive = True
        self.is_told = False
        """Whether its agent knows that it has ended."""
        self.hangs_since_s: float | None = None
        """Since when it does nothing any more, and the others wait for it; None: it works."""
        self.step = 0
        self.is_stopping = False
        """Whether its agent has sent it a signal."""
        self.joins = False
        """Whether its program has joined, so that it may be kept."""
        self.waits = False
        """Whether it has left its round, and waits for the next one."""
        self.how: HowItEnds | None = None
        self.on_end: Callable[[SimulatedWorker], None] = lambda worker: None
        self._owner = owner

    @property
    def token(self) -> tuple[int, int]:
        """(term, number) of its round, by its environment."""
        env = self.spec.env
        return int(env["RALLYPOINT_TERM"]), int(env["RALLYPOINT_ROUND"])

    def go_on(self, variables: Mapping[str, str]) -> None:
        """It is in another round."""
        env = {**self.spec.env, **variables}
        rank = int(env["RANK"])
        self.spec = msgspec.structs.replace(self.spec, env=env, rank=rank)
        self.waits = False
        self.step = 0

    def end(self, how: HowItEnds) -> None:
        """It ends now. Idempotent."""
        if not self.is_alive:
            return
        self.is_alive, self.how = False, how
        self._owner.worker_ended(self, how)
        self.on_end(self)

    def signalled(self, number: int) -> None:
        """It gets a signal. SIGKILL ends it at once, others in the time of a handler, or never."""
        world, draw = self._owner.process.world, self._owner.process.random
        self.is_stopping = True
        if number == signal.SIGKILL:
            self.end(HowItEnds(signal=int(number)))
        elif not self._owner.is_stubborn:
            how = draw.choice((HowItEnds(signal=int(number)), FINISHED, HowItEnds(1)))
            world.after(draw.uniform(*STOP_S), lambda: self.end(how))


class SimulatedWorkers:
    """The workers of one round on this host: see launch.system.Workers."""

    def __init__(
        self,
        owner: Owner,
        specs: Sequence[WorkerSpec],
        exits: Callable[[WorkerExit], None],
        *,
        is_warm: bool = False,
    ) -> None:
        self.all: list[SimulatedWorker] = []
        self._owner = owner
        self._specs = specs
        self._exits = exits
        self._start_s = WARM_START_S if is_warm else START_S
        self._has_started = False
        self._others_may_start = asyncio.Event()
        self._kill_at_s: float | None = None
        self._changed = asyncio.Event()
        self._stopping: asyncio.Task[tuple[int, ...]] | None = None

    @property
    def running(self) -> tuple[int, ...]:
        """See Workers."""
        if not self._has_started:
            return ()
        return tuple(each.spec.local_rank for each in self.all if not each.is_told)

    @property
    def pids(self) -> dict[int, int]:
        """See Workers."""
        return {each.spec.local_rank: each.pid for each in self.all}

    @property
    def living(self) -> list[SimulatedWorker]:
        """The workers that run, whatever the agent knows."""
        return [each for each in self.all if each.is_alive]

    async def start(self, *, is_first_alone: bool = False) -> None:
        """See Workers: one after the other, each in its time."""
        if not is_first_alone:
            self.start_others()
        owner, draw = self._owner, self._owner.process.random
        try:
            for spec in self._specs:
                await asyncio.sleep(draw.uniform(*self._start_s))
                if owner.cannot_start:
                    raise WorkerStartError(
                        spec.argv[0], "out of memory", hint="the simulator took it"
                    )
                pid = owner.process.random.randrange(2, 2**22)
                worker = SimulatedWorker(owner, spec, pid)
                worker.on_end = self._ended
                self.all.append(worker)
                owner.worker_started(worker)
                await self._others_may_start.wait()
        except BaseException:
            for worker in self.all:
                worker.signalled(signal.SIGKILL)
            raise
        self._has_started = True
        for worker in self.all:
            if not worker.is_alive:
                owner.process.soon(self._tell, worker)

    def start_others(self) -> None:
        """See Workers."""
        self._others_may_start.set()

    async def go_on(self) -> None:
        """See Workers. How a worker ends is planned."""

    async def stop(
        self, grace_s: float, first_signal: int = signal.SIGTERM, ending: Sequence[int] = ()
    ) -> tuple[int, ...]:
        """See Workers: each gets the signal, and SIGKILL when the grace is over."""
        kill_at_s = asyncio.get_running_loop().time() + grace_s
        if self._kill_at_s is not None:
            kill_at_s = min(kill_at_s, self._kill_at_s)
        self._kill_at_s = kill_at_s
        self._changed.set()
        if self._stopping is None:
            for worker in self.living:
                if worker.spec.local_rank not in ending:
                    worker.signalled(first_signal)
            self._stopping = asyncio.get_running_loop().create_task(self._finish())
        return await asyncio.shield(self._stopping)

    def lengthen_stop(self, grace_s: float) -> None:
        """See Workers."""
        if self._kill_at_s is not None:
            kill_at_s = asyncio.get_running_loop().time() + grace_s
            self._kill_at_s = max(self._kill_at_s, kill_at_s)
            self._changed.set()

    def signal_leaders(self, number: int) -> None:
        """See Workers."""
        for worker in self.living:
            worker.signalled(number)

    async def _finish(self) -> tuple[int, ...]:
        while self.living or (self._has_started and self.running):
            self._changed.clear()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout_at(self._kill_at_s if self.living else None):
                    await self._changed.wait()
            if self._kill_at_s is not None and (
                asyncio.get_running_loop().time() >= self._kill_at_s
            ):
                self.signal_leaders(signal.SIGKILL)
        return ()

    def _ended(self, worker: SimulatedWorker) -> None:
        if self._has_started:
            self._owner.process.soon(self._tell, worker)

    def _tell(self, worker: SimulatedWorker) -> None:
        if worker.is_told:
            return
        worker.is_told = True
        self._changed.set()
        self._exits(_exit_of(worker))


def _exit_of(worker: SimulatedWorker) -> WorkerExit:
    how: Any = worker.how
    return WorkerExit(
        local_rank=worker.spec.local_rank,
        rank=worker.spec.rank,
        pid=worker.pid,
        returncode=how.returncode,
        signal=how.signal,
        oom=how.oom,
    )
