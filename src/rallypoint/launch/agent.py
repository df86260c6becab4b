"""The agent: one node of a run, which keeps this machine's workers matching the round.

    join → next round → start workers → wait → (finished | failed | the round ended | told to go)
             ▲                                       │          │
             └────────────── stop the workers ◀──────┴──────────┘

One asyncio loop in the main thread of a process of ours; it never waits for a file system, a
console or a worker, so that heartbeats and probes are answered whatever those do.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import shutil
import signal
import tempfile
from collections.abc import Coroutine
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, TypeVar

from rallypoint import errors, settings
from rallypoint.client.bootstrap import Reservation, reserve_port
from rallypoint.client.node import Node, Round
from rallypoint.core import reasons
from rallypoint.core.values import (
    Address,
    Change,
    CloseRecord,
    Failure,
    Outcome,
    RunSettings,
)
from rallypoint.errors import ExitCode
from rallypoint.launch import failures
from rallypoint.launch.channel import Channel, Requests
from rallypoint.launch.guard import Guard
from rallypoint.launch.logs import LogPump, check_log_dir
from rallypoint.launch.oom import OomCounter
from rallypoint.launch.worker_env import (
    WorkerContext,
    inherited_environment,
    worker_environment,
)
from rallypoint.launch.workers import WorkerExit, WorkerGroup, WorkerSpec

_T = TypeVar("_T")

DRAIN_S: Final = 0.2
"""How long a failure report waits for the failed worker's last lines."""
FILE_SYSTEM_TIMEOUT_S: Final = 10.0
"""How long a file system may take at the start before it counts as hanging."""
STILL_WAITING_S: Final = 10.0
"""How often the agent says what it waits for."""
STOPPING_SIGNALS: Final = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
FORWARDED_SIGNALS: Final = (signal.SIGUSR1, signal.SIGUSR2)


@dataclass(frozen=True, kw_only=True)
class AgentConfig:
    """What `rallypoint run` was asked for. Durations in seconds.

    `argv`: the workers' command. `workers`: how many on this node. `tee`: the workers' output goes
    to the console also where it goes to `log_dir`. `prefix`: with `[node:rank]` before each line.
    """

    node: settings.NodeSettings
    run: RunSettings
    argv: tuple[str, ...]
    workers: int
    stop_timeout_s: float
    regroup_stop_timeout_s: float
    log_dir: str | None = None
    tee: bool = True
    prefix: bool = True


@dataclass(frozen=True)
class End:
    """How the agent ends: its exit code, and what it says last."""

    code: int
    message: str = ""


def main(config: AgentConfig) -> int:
    """Run the agent to its end; the process's exit code.

    Raises RallypointError for what the user can mend; nothing of the workers is left then.
    """
    settings.check_platform()
    logging.basicConfig(level=logging.WARNING, format="rallypoint: %(message)s")
    with asyncio.Runner() as runner:
        return runner.run(Agent(config).run())


class Agent:
    """One agent. `run` may be called once, from the main thread's loop."""

    def __init__(self, config: AgentConfig) -> None:
        self._config = config
        self._node = Node(config.node, config.run, workers=config.workers)
        self._node.on_ended = self._on_ended
        self._node.on_closed = self._on_closed
        self._node.on_gone = self._on_gone
        self._node.on_standby = lambda: self._say("the round is full: this node is on standby")
        self._guard = Guard()
        self._pump: LogPump | None = None
        self._channel = Channel(
            self._node, Requests(self._regroup, self._worker_leaves, self._worker_closes)
        )
        self._oom = OomCounter()
        self._group: WorkerGroup | None = None
        self._happened = asyncio.Event()
        self._exits: list[WorkerExit] = []
        self._signal: int | None = None
        self._leave_reason: str | None = None
        self._wants_regroup = False
        self._reservation: Reservation | None = None
        self._scratch: Path | None = None
        self._tasks: set[asyncio.Task[Any]] = set()
        self._number = 0

    # -- the life of the agent -----------------------------------------------------------------

    async def run(self) -> int:
        """Join, work, leave. The exit code."""
        await self._prepare()
        self._pump = LogPump(
            run_id=self._config.node.run_id,
            log_dir=Path(self._config.log_dir) if self._config.log_dir else None,
            prefix=self._prefix if self._config.prefix else None,
            console=self._config.tee or self._config.log_dir is None,
        )
        try:
            self._guard.start()
            self._handle_signals()
            end = await self._live()
            if end.message:
                self._say(end.message)
            return end.code
        finally:
            await self._let_go()

    async def _prepare(self) -> None:
        """What touches a file system, in a thread and with a deadline."""
        await _in_time(self._touch_file_systems(), "the file system")

    async def _touch_file_systems(self) -> None:
        scratch = await asyncio.to_thread(tempfile.mkdtemp, prefix="rallypoint-")
        self._scratch = Path(scratch)
        log_dir = self._config.log_dir
        if log_dir is not None:
            await asyncio.to_thread(check_log_dir, Path(log_dir))

    async def _let_go(self) -> None:
        """Leave nothing behind. Every step is bounded in time."""
        if self._group is not None:
            await self._group.stop(0)
        await self._channel.aclose()
        for task in list(self._tasks):
            task.cancel()
        if self._reservation is not None:
            self._reservation.close()
        await self._leave_run()
        await self._guard.close()
        if self._pump is not None:
            await self._pump.close(1.0)
        if self._scratch is not None:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(1.0):
                    await asyncio.to_thread(shutil.rmtree, self._scratch, True)

    async def _leave_run(self) -> None:
        """Say goodbye; a host stays for the others, unless a second signal hurries it."""
        self._node.goodbye(self._leave_reason or "its agent has ended")
        self._signal = None
        closing = asyncio.create_task(self._node.aclose())
        if await self._signal_comes_before(closing):
            self._say("told again to go: the coordinator that this node carries goes with it")
            closing.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await closing

    async def _live(self) -> End:
        try:
            opened = await self._unless_told_to_go(self._node.open())
            if opened is _TOLD:
                return self._told_to_go()
            await self._channel.start()
            while True:
                found = await self._next_round()
                if isinstance(found, End):
                    return found
                end = await self._work(found)
                if end is not None:
                    return end
        except errors.JoinTimeoutError as error:
            if self._number == 0:
                raise
            return End(ExitCode.NOT_ENOUGH_NODES, f"error: {error}")
        except errors.RunClosedError as error:
            if error.close is None or self._number == 0:
                raise
            return self._end_of_run(error.close)

    # -- a round -------------------------------------------------------------------------------

    async def _next_round(self) -> Round | End:
        """Be ready, say why it takes long, and take the next round."""
        if self._reservation is not None:
            self._reservation.close()
        self._reservation = reserve_port()
        bootstrap = Address(self._node.bootstrap_host, self._reservation.port)
        telling = self._spawn(self._tell_why_it_waits())
        try:
            found = await self._unless_told_to_go(self._node.next_round(bootstrap))
        finally:
            telling.cancel()
        if found is _TOLD:
            return self._told_to_go()
        if found is None:
            assert self._node.closed is not None
            return self._end_of_run(self._node.closed)
        assert isinstance(found, Round)
        return found

    async def _tell_why_it_waits(self) -> None:
        while True:
            await asyncio.sleep(STILL_WAITING_S)
            if not self._node.is_connected:
                self._say("still waiting: the coordinator cannot be reached; trying again")
                continue
            with contextlib.suppress(errors.RallypointError):
                waiting = await self._node.waiting()
                self._say(f"still waiting: {waiting}" if waiting else "still on standby")

    async def _work(self, found: Round) -> End | None:
        """Run this round's workers to whatever ends them. None: another round is wanted."""
        self._number = found.head.number
        self._wants_regroup = False
        self._exits = []
        self._say(_describe_round(found))
        await self._start_workers(found)
        group = self._group
        assert group is not None
        try:
            return await self._watch(group, found)
        finally:
            self._group = None

    async def _start_workers(self, found: Round) -> None:
        assert self._pump is not None
        self._pump.begin_round(found.head.number)
        secret = self._channel.begin_round(found)
        base = inherited_environment()
        specs = [self._spec(found, i, secret, base) for i in range(found.seat.workers)]
        self._group = WorkerGroup(
            specs,
            output=self._pump,
            exits=self._on_exit,
            guard=self._guard,
            oom_counter=self._oom,
        )
        try:
            await self._group.start()
        except errors.WorkerStartError as error:
            self._leave_reason = f"it cannot start its workers: {error.message}"
            raise

    def _spec(self, found: Round, index: int, secret: str, base: dict[str, str]) -> WorkerSpec:
        head, seat, run = found.head, found.seat, self._config.run
        context = WorkerContext(
            run_id=self._config.node.run_id,
            rank=seat.first_rank + index,
            local_rank=index,
            world_size=head.size,
            local_world_size=seat.workers,
            node_rank=seat.node_rank,
            nodes=head.nodes,
            restart_count=head.restart_count,
            max_restarts=run.max_restarts if run.max_restarts is not None else 2**31 - 1,
            master_addr=head.bootstrap.host,
            master_port=head.bootstrap.port,
            node_name=self._node.info.name,
            term=head.term,
            round_number=head.number,
            min_nodes=run.min_nodes,
            max_nodes=run.max_nodes,
            agent_path=self._channel.path,
            agent_secret=secret,
            error_file=str(self._error_file(found.head.number, index)),
        )
        env = worker_environment(context, base)
        return WorkerSpec(
            argv=self._config.argv, env=env, cwd=None, local_rank=index, rank=context.rank
        )

    def _error_file(self, number: int, local_rank: int) -> Path:
        assert self._scratch is not None
        return self._scratch / f"error-{number}-{local_rank}.json"

    async def _watch(self, group: WorkerGroup, found: Round) -> End | None:
        """Wait for the first thing that ends this round's work here, and act on it."""
        count = found.seat.workers
        while True:
            failed = next((e for e in self._exits if e.returncode != 0), None)
            change, closed = self._node.change, self._node.closed
            if self._signal is not None:
                return await self._depart(group, self._signal)
            if self._leave_reason is not None:
                return await self._leave(group, self._leave_reason)
            if closed is not None:
                return await self._close_down(group, closed)
            if isinstance(self._node.gone, errors.SupersededError):
                await group.stop(self._config.regroup_stop_timeout_s)
                raise self._node.gone
            if change is not None:
                await self._regroup_after(group, change)
                return None
            if failed is not None:
                return await self._report(group, failed)
            if len(self._exits) == count:
                return await self._finish()
            if self._wants_regroup:
                await group.stop(self._config.regroup_stop_timeout_s)
                return None
            await self._next_happening()

    async def _next_happening(self) -> None:
        self._happened.clear()
        await self._happened.wait()

    # -- what ends a round's work --------------------------------------------------------------

    async def _regroup_after(self, group: WorkerGroup, change: Change) -> None:
        """R13: this round's workers are gone before the next round's start."""
        self._say(f"round {change.round} ended: {reasons.describe(change)}")
        await group.stop(self._config.regroup_stop_timeout_s)

    async def _report(self, group: WorkerGroup, exit: WorkerExit) -> End | None:
        """A worker failed: say so at once, stop the others, and hear the verdict by regrouping."""
        failure = await self._failure(exit)
        self._node.failed(failure)
        self._say(f"round {self._number}: {reasons.describe_failure(failure)}")
        await group.stop(self._config.regroup_stop_timeout_s)
        if isinstance(self._node.gone, errors.CoordinatorLostError | errors.RunLostError):
            raise self._node.gone
        return None

    async def _failure(self, exit: WorkerExit) -> Failure:
        assert self._pump is not None
        await self._pump.drain(DRAIN_S, exit.local_rank)
        lines = self._pump.last_lines(exit.local_rank)
        return failures.classify(exit, lines, await self._error_text(exit.local_rank))

    async def _error_text(self, local_rank: int) -> str | None:
        path = self._error_file(self._number, local_rank)
        try:
            async with asyncio.timeout(DRAIN_S):
                return await asyncio.to_thread(path.read_text, "utf-8", "replace")
        except (OSError, TimeoutError):
            return None

    async def _finish(self) -> End | None:
        """All workers have finished: wait for the others, whose failure would be the run's."""
        self._node.done()
        self._say(f"round {self._number}: all workers of this node have finished")
        while True:
            if self._node.closed is not None:
                return self._end_of_run(self._node.closed)
            if self._node.gone is not None:
                return End(ExitCode.DONE, f"warning: {self._node.gone.message}")
            if self._signal is not None:
                self._leave_reason = "its workers have finished"
                return End(ExitCode.DONE)
            await self._next_happening()

    async def _close_down(self, group: WorkerGroup, close: CloseRecord) -> End:
        """The run is over. If it succeeded, the workers get a moment to end by themselves."""
        if close.outcome is Outcome.SUCCEEDED:
            await self._wait_for_exits(group, self._config.regroup_stop_timeout_s)
        await group.stop(self._config.stop_timeout_s)
        return self._end_of_run(close)

    async def _wait_for_exits(self, group: WorkerGroup, timeout_s: float) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                while group.running and self._signal is None:
                    await self._next_happening()

    async def _depart(self, group: WorkerGroup, number: int) -> End:
        """Told to go: the others hear of it first, then the workers get the signal and a grace."""
        name = signal.Signals(number).name
        self._leave_reason = f"its agent got {name}"
        self._node.depart(self._leave_reason)
        self._say(f"got {name}: leaving the run and stopping the workers")
        stopping = asyncio.create_task(group.stop(self._config.stop_timeout_s, number))
        self._signal = None
        if await self._signal_comes_before(stopping):
            await group.stop(0)
        await stopping
        return End(128 + number)

    async def _leave(self, group: WorkerGroup, reason: str) -> End:
        """A worker takes this node out of the run."""
        self._node.depart(reason)
        self._say(f"leaving the run: {reason}")
        await group.stop(self._config.stop_timeout_s)
        return End(ExitCode.DONE)

    def _end_of_run(self, close: CloseRecord) -> End:
        """The same on every node: the outcome, and the cause with the last lines of who failed."""
        code = errors.exit_code_of(close.outcome)
        run_id = self._config.node.run_id
        if close.outcome is Outcome.SUCCEEDED:
            return End(code, f"run {run_id!r} has succeeded: {close.reason}")
        text = f"error: run {run_id!r} has ended: {reasons.describe_close(close)}"
        failure = close.cause.failure if close.cause else None
        if failure is not None and failure.last_lines:
            lines = "\n".join(f"  | {line}" for line in failure.last_lines)
            text += f"\nthe last lines of rank {failure.rank}:\n{lines}"
        return End(code, text)

    def _told_to_go(self) -> End:
        number = self._signal or signal.SIGTERM
        self._leave_reason = f"its agent got {signal.Signals(number).name}"
        return End(128 + number)

    # -- what happens --------------------------------------------------------------------------

    def _on_exit(self, exit: WorkerExit) -> None:
        self._exits.append(exit)
        self._happened.set()

    def _on_ended(self, change: Change) -> None:
        self._channel.end_round(change)
        self._happened.set()

    def _on_closed(self, close: CloseRecord) -> None:
        self._channel.end_run(close)
        self._happened.set()

    def _on_gone(self, error: errors.CoordinatorError) -> None:
        """Losing the coordinator does not disturb the workers; being superseded ends them."""
        if self._group is not None:
            self._say(f"warning: {error.message}; the workers go on without it")
        self._happened.set()

    def _regroup(self) -> None:
        self._wants_regroup = True
        self._happened.set()

    def _worker_leaves(self, reason: str) -> None:
        self._leave_reason = reason
        self._happened.set()

    def _worker_closes(self, outcome: Outcome, reason: str) -> None:
        self._spawn(self._close_run(outcome, reason))

    async def _close_run(self, outcome: Outcome, reason: str) -> None:
        try:
            timeout_s = self._config.node.goodbye_timeout_s
            await self._node.close_run(outcome, reason, timeout_s)
        except errors.RallypointError as error:
            self._say(f"warning: a worker closed the run, but {error.message}")

    # -- signals -------------------------------------------------------------------------------

    def _handle_signals(self) -> None:
        loop = asyncio.get_running_loop()
        for number in STOPPING_SIGNALS:
            loop.add_signal_handler(number, self._on_signal, number)
        for number in FORWARDED_SIGNALS:
            loop.add_signal_handler(number, self._forward, number)

    def _on_signal(self, number: int) -> None:
        self._signal = number
        self._happened.set()

    def _forward(self, number: int) -> None:
        if self._group is not None:
            self._group.signal_all(number)

    async def _unless_told_to_go(self, work: Coroutine[Any, Any, _T]) -> _T | _Told:
        """Wait for `work`, or for a signal; then `work` is cancelled."""
        task = asyncio.create_task(work)
        try:
            return _TOLD if await self._signal_comes_before(task) else task.result()
        finally:
            task.cancel()
            await asyncio.wait({task})

    async def _signal_comes_before(self, task: asyncio.Task[Any]) -> bool:
        """Wait for the task's end or a signal; whether the signal was first."""
        while not task.done() and self._signal is None:
            self._happened.clear()
            waiter = asyncio.create_task(self._happened.wait())
            await asyncio.wait({task, waiter}, return_when=asyncio.FIRST_COMPLETED)
            waiter.cancel()
        return not task.done()

    # -- helpers -------------------------------------------------------------------------------

    def _spawn(self, work: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    def _say(self, text: str) -> None:
        """One message of the agent on stderr, without waiting for the console."""
        name = self._node.info.name
        if self._pump is not None:
            self._pump.say(f"[{name}] {text}")

    def _prefix(self, rank: int) -> str:
        return f"[{self._node.info.name}:{rank}] "


class _Told:
    """A signal came first."""


_TOLD: Final = _Told()


def _describe_round(found: Round) -> str:
    head, seat = found.head, found.seat
    last = seat.first_rank + seat.workers - 1
    ranks = f"rank {last}" if seat.workers == 1 else f"ranks {seat.first_rank} to {last}"
    return (
        f"round {head.number}: {head.nodes} nodes, {head.size} workers; "
        f"this is node {seat.node_rank} with {ranks}"
    )


async def _in_time(work: Coroutine[Any, Any, None], what: str) -> None:
    try:
        async with asyncio.timeout(FILE_SYSTEM_TIMEOUT_S):
            await work
    except TimeoutError:
        raise errors.LaunchError(
            f"{what} has not answered for {FILE_SYSTEM_TIMEOUT_S:g} s",
            hint="a network file system may be hanging: check --log-dir and TMPDIR on this node",
        ) from None
