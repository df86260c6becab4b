"""The agent: one node of a run, which starts and stops this machine's workers for each round.

    join → next round → start workers → wait → (finished | failed | the round ended | a signal)
             ▲                                       │          │
             └────────────── stop the workers ◀──────┴──────────┘

It has one asyncio loop in the main thread of its process. The loop never waits for a file system, a
console or a worker, so that heartbeats and probes are answered even if those hang. Four waits have
no deadline: for the next round and for the end of the run (`Node` ends both when it has lost the
coordinator for `coordinator_lost_after_s`), for the end of the workers (as in any launcher), and,
on the node that hosts the coordinator, for the end of the other nodes. A signal ends all four.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import signal
import tempfile
from collections.abc import Coroutine
from pathlib import Path
from string import Template
from typing import Any, Final, TypeVar

import msgspec

from rallypoint import errors, settings
from rallypoint.client.bootstrap_port import Reservation, reserve_port
from rallypoint.client.node import Node, Round
from rallypoint.client.waiting import on_standby, while_waiting
from rallypoint.coordinator.listener import allow_many_descriptors
from rallypoint.core.values import (
    Address,
    Change,
    ChangeKind,
    CloseRecord,
    Failure,
    Outcome,
    RunSettings,
)
from rallypoint.errors import ExitCode
from rallypoint.launch import agent_messages, failures
from rallypoint.launch.agent_log import AgentLog
from rallypoint.launch.change_notifier import ChangeNotifier
from rallypoint.launch.channel import Channel, Requests
from rallypoint.launch.console_rule import SHOW_ALL, ConsoleRule
from rallypoint.launch.guard import Guard
from rallypoint.launch.logs import LogPump, check_log_dir
from rallypoint.launch.oom import OomCounter
from rallypoint.launch.output_streams import LAST_LINES
from rallypoint.launch.round_workers import (
    STOPPING_SIGNALS,
    Assignment,
    RoundWorkers,
    outranks,
    worst_first,
)
from rallypoint.launch.worker_env import ROLE, inherited_environment
from rallypoint.threads import new_event_loop

_T = TypeVar("_T")

FILE_SYSTEM_TIMEOUT_S: Final = 10.0
"""How many seconds a file system may take at the start before it counts as hanging."""
LAST_WORDS_S: Final = 1.0
"""How many seconds the end waits for a hanging console, and for the removal of the agent's files.
"""
FORWARDED_SIGNALS: Final = (signal.SIGUSR1, signal.SIGUSR2)


class AgentConfig(msgspec.Struct, frozen=True, kw_only=True):
    """The options of `rallypoint run`. Durations in seconds.

    `argv`: the workers' command. `workers`: how many on this node. `stdin`: the local rank that
    reads the agent's standard input; None for none. `console`: which output of the workers goes to
    the console. `prefix`: whether each line there begins with `prefix_template`, in torch's syntax
    ($ and {role_name}, {local_rank} or {rank}); None: with `[node:rank]`. `role`: the workers'
    ROLE_NAME. `virtual_local_rank`: see WorkerContext. `share_lines`: how many last lines of a
    failed worker are sent to other nodes; 0: no output is sent.
    """

    node: settings.NodeSettings
    run: RunSettings
    argv: tuple[str, ...]
    workers: int
    stop_timeout_s: float
    regroup_stop_timeout_s: float
    log_dir: str | None = None
    share_lines: int = LAST_LINES
    stdin: int | None = None
    console: ConsoleRule = SHOW_ALL
    prefix: bool = True
    prefix_template: str | None = None
    role: str = ROLE
    virtual_local_rank: bool = False


class End(msgspec.Struct, frozen=True):
    """How the agent ends: its exit code and its last message."""

    code: int
    message: str = ""


class _Signalled(Exception):
    """A signal arrived while the agent waited for something else."""


def main(config: AgentConfig) -> int:
    """Run the agent to its end, and return the process's exit code.

    Raises RallypointError for errors that the user can correct. Then no worker process is left.
    """
    settings.check_platform()
    # Workers get the limit with which this process was started: see worker_processes.py.
    allow_many_descriptors()
    with asyncio.Runner(loop_factory=new_event_loop) as runner:
        return runner.run(Agent(config).run())


class Agent:
    """One agent. `run` may be called once, from the main thread's loop."""

    def __init__(self, config: AgentConfig) -> None:
        self._config = config
        self._notifier = ChangeNotifier()
        self._node = Node(config.node, config.run, workers=config.workers)
        self._node.on_ended = self._on_ended
        self._node.on_closed = self._on_closed
        self._node.on_gone = self._on_gone
        self._node.on_standby = lambda: self._log.waits(on_standby(config.run.max_nodes))
        self._guard = Guard()
        self._pump = LogPump(
            run_id=config.node.run_id,
            log_dir=Path(config.log_dir) if config.log_dir else None,
            prefix=self._prefix if config.prefix else None,
            shows=config.console.shows,
            prompting=config.stdin,
            lines_kept=max(LAST_LINES, config.share_lines),
        )
        self._log = AgentLog(self._node.info.name, self._pump)
        self._channel = Channel(
            self._node, Requests(self._regroup, self._worker_leaves, self._worker_closes)
        )
        self._oom = OomCounter()
        self._signals: list[int] = []
        self._work: RoundWorkers | None = None
        self._number = 0
        self._wants_regroup = False
        self._wants_to_leave: str | None = None
        self._told_change: Change | None = None
        self._goodbye = "its agent has ended"
        self._reservation: Reservation | None = None
        self._scratch: Path | None = None
        self._tasks: set[asyncio.Task[Any]] = set()

    # -- start and end of the agent ------------------------------------------------------------

    async def run(self) -> int:
        """Join, work and leave. Returns the exit code."""
        self._handle_signals()
        with self._log.with_loggers():
            try:
                end = await self._live()
                if end.message:
                    self._log.say(end.message)
                return end.code
            finally:
                await self._let_go()

    async def _live(self) -> End:
        try:
            await self._unless_signalled(self._prepare())
            self._guard.start()
            async with while_waiting(self._node, self._log.waits):
                await self._unless_signalled(self._node.open())
            await self._channel.start()
            end: End | None = None
            while end is None:
                found = await self._next_round()
                end = found if isinstance(found, End) else await self._do_round(found)
            return end
        except _Signalled:
            self._log.say(agent_messages.of_leaving(self._signals[0]))
            return self._end_by_signal()
        except errors.JoinTimeoutError as error:
            if self._number == 0:
                raise
            return End(ExitCode.NOT_ENOUGH_NODES, f"error: {error}")
        except errors.RunClosedError as error:
            if error.close is None or self._number == 0:
                raise
            return self._end_of_run(error.close)

    async def _prepare(self) -> None:
        """Prepare files and folders, in threads and with a deadline."""
        try:
            async with asyncio.timeout(FILE_SYSTEM_TIMEOUT_S):
                if self._config.log_dir is not None:
                    await asyncio.to_thread(check_log_dir, Path(self._config.log_dir))
                await self._make_scratch()
        except TimeoutError:
            raise errors.LaunchError(
                f"a file system has not answered for {FILE_SYSTEM_TIMEOUT_S:g} s",
                hint="is a network file system hanging? Check --log-dir and TMPDIR on this node",
            ) from None

    async def _make_scratch(self) -> None:
        try:
            scratch = await asyncio.to_thread(tempfile.mkdtemp, prefix="rallypoint-")
        except OSError as error:
            self._log.say(f"warning: no directory for torch's error files: {error}")
        else:
            self._scratch = Path(scratch)
            self._guard.remove_in_the_end(self._scratch)

    async def _let_go(self) -> None:
        """Clean up. Each step has a deadline, except a host's wait for the other nodes."""
        if self._work is not None:
            await self._work.stop(0)
            self._work = None
        await self._channel.aclose()
        for task in list(self._tasks):
            task.cancel()
        if self._reservation is not None:
            self._reservation.close()
        await self._leave_run()
        await self._guard.close()
        await self._pump.close(LAST_WORDS_S)
        if self._scratch is not None:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(LAST_WORDS_S):
                    await asyncio.to_thread(shutil.rmtree, self._scratch, True)

    async def _leave_run(self) -> None:
        """Say goodbye. A host stays for the other nodes, unless another signal arrives."""
        self._node.goodbye(self._goodbye)
        seen = len(self._signals)
        closing = self._spawn(self._node.aclose(linger=not self._is_hurried))
        await self._notifier.until(lambda: closing.done() or len(self._signals) > seen)
        if not closing.done():
            self._log.say("second signal: stopping the coordinator hosted here too")
            closing.cancel()
            await asyncio.wait({closing})

    # -- a round -------------------------------------------------------------------------------

    async def _next_round(self) -> Round | End:
        """Be ready, and return the next round or the end of the run."""
        bootstrap = Address(self._node.bootstrap_host, self._reserve().port)
        async with while_waiting(self._node, self._log.waits):
            found = await self._unless_signalled(self._node.next_round(bootstrap))
        if found is None:
            assert self._node.closed is not None
            return self._end_of_run(self._node.closed)
        return found

    def _reserve(self) -> Reservation:
        """Rank 0's port, held from before it is announced until the round's workers have ended."""
        if self._reservation is not None:
            self._reservation.close()
        try:
            self._reservation = reserve_port()
        except OSError as error:
            raise errors.LaunchError(
                f"cannot reserve a port for rank 0: {error.strerror or error}",
                hint="check this machine's limits on ports and open files (ulimit -n)",
            ) from error
        return self._reservation

    async def _do_round(self, found: Round) -> End | None:
        """Run this round's workers until they end. Returns None if another round follows."""
        self._number = found.head.number
        self._wants_regroup = False
        self._log.has_met()
        self._log.say(agent_messages.of_round(found))
        work = self._work = RoundWorkers(
            found,
            self._assignment(found),
            notifier=self._notifier,
            pump=self._pump,
            guard=self._guard,
            oom_counter=self._oom,
        )
        if found.seat.node_rank == 0 and self._reservation is not None:
            self._reservation.hand_over()
        await self._start(work)
        end = await self._watch(work)
        self._work = None
        return end

    def _assignment(self, found: Round) -> Assignment:
        return Assignment(
            argv=self._config.argv,
            run_id=self._config.node.run_id,
            node_name=self._node.info.name,
            run=self._config.run,
            agent_path=self._channel.path,
            agent_secret=self._channel.begin_round(found),
            base=inherited_environment(),
            scratch=self._scratch,
            stdin=self._config.stdin if _may_read_stdin() else None,
            role=self._config.role,
            virtual_local_rank=self._config.virtual_local_rank,
        )

    async def _start(self, work: RoundWorkers) -> None:
        """Start the workers, unless the round ends before, because a start can take long."""
        starting = self._spawn(work.group.start())
        await self._notifier.until(lambda: starting.done() or self._is_round_over)
        starting.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            try:
                await starting
            except errors.WorkerStartError as error:
                self._goodbye = f"its workers cannot be started: {error.message}"
                raise

    @property
    def _is_round_over(self) -> bool:
        """Whether this node's workers have to stop in any case."""
        node = self._node
        return bool(
            self._signals
            or self._wants_to_leave is not None
            or node.closed is not None
            or isinstance(node.gone, errors.SupersededError)
            or node.change is not None
        )

    async def _watch(self, work: RoundWorkers) -> End | None:
        """Wait for what ends this round's work here, and handle it. The order is the precedence."""
        while True:
            if self._signals:
                return await self._depart(work)
            if self._wants_to_leave is not None:
                return await self._leave(work, self._wants_to_leave)
            if self._node.closed is not None:
                return await self._close_down(work, self._node.closed)
            if isinstance(self._node.gone, errors.SupersededError):
                await self._stop(work, self._config.regroup_stop_timeout_s)
                raise self._node.gone
            if work.has_unreported and await self._may_be_signalled(work):
                continue
            if work.has_unreported:
                self._report(work.failures.copy(), await work.new_failures())
            elif work.has_finished:
                return await self._finish(work)
            elif await self._must_regroup(work):
                # R13: this round's workers have ended before those of the next round start.
                await self._stop(work, self._config.regroup_stop_timeout_s)
                return None

    async def _may_be_signalled(self, work: RoundWorkers) -> bool:
        """Whether a signal to this agent may follow, so that failures cannot be judged yet.

        The sender that signalled a worker may signal this agent next. Then this node departs.
        While it is too early, this waits for the next change.
        """
        left_s = work.judged_in_s(asyncio.get_running_loop().time())
        if left_s > 0:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(left_s):
                    await self._notifier.next()
        return left_s > 0

    async def _must_regroup(self, work: RoundWorkers) -> bool:
        """Whether to stop the workers for another round. If not, waits for the next change."""
        change = self._node.change
        if not (change is not None or work.failures or self._wants_regroup):
            await self._notifier.next()
            return False
        now_s = asyncio.get_running_loop().time()
        if self._wants_regroup or not work.may_yet_tell_the_cause(change, now_s):
            return True
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(work.patience_ends_s - now_s):
                await self._notifier.next()
        return False

    def _report(self, known: list[Failure], new: list[Failure]) -> None:
        """Report failures at once, because the coordinator finds the cause."""
        for failure in worst_first(new):
            self._log.say(f"round {self._number}: {failure}")
            if outranks(failure, known):
                self._node.failed(failures.shared(failure, self._config.share_lines))
                known = [*known, failure]

    # -- the ends of a round's work ------------------------------------------------------------

    async def _finish(self, work: RoundWorkers) -> End:
        """All workers have finished: wait for the other nodes, as their failures fail the run."""
        node = self._node
        node.done()
        self._log.say(f"round {work.number}: all workers of this node have finished")
        await self._notifier.until(lambda: bool(node.closed or node.gone or self._signals))
        if node.closed is not None:
            return self._end_of_run(node.closed)
        if self._signals:
            self._log.say(agent_messages.of_leaving(self._signals[0]))
            return self._end_by_signal()
        assert node.gone is not None
        return End(
            ExitCode.DONE,
            "this node's workers have finished; the end of the run is unknown: "
            f"{node.gone.message}",
        )

    async def _close_down(self, work: RoundWorkers, close: CloseRecord) -> End:
        """End with the run. If it succeeded, give the workers a moment to end by themselves."""
        if close.outcome is Outcome.SUCCEEDED:
            await self._notifier.until(
                lambda: not work.group.running or self._is_hurried,
                self._config.regroup_stop_timeout_s,
            )
        await self._stop(work, self._config.stop_timeout_s)
        return self._end_of_run(close)

    async def _depart(self, work: RoundWorkers) -> End:
        """Stop because of a signal. The other nodes are told; the workers get the signal."""
        number = self._signals[0]
        self._log.say(agent_messages.of_departure(number, self._config.stop_timeout_s))
        await self._stop(work, self._config.stop_timeout_s, number)
        return self._end_by_signal()

    async def _leave(self, work: RoundWorkers, reason: str) -> End:
        """Leave the run at a worker's request."""
        self._goodbye = reason
        self._node.depart(reason)
        self._log.say(f"a worker asked to leave the run: {reason}")
        await self._stop(work, self._config.stop_timeout_s)
        return End(ExitCode.DONE)

    async def _stop(
        self, work: RoundWorkers, grace_s: float, first_signal: int = signal.SIGTERM
    ) -> None:
        """Stop the workers with a grace. A second signal to the agent ends the grace."""
        stopping = self._spawn(work.stop(grace_s, first_signal))
        await self._notifier.until(lambda: stopping.done() or self._is_hurried)
        if not stopping.done():
            self._log.say("second signal: killing the workers")
            await work.stop(0)
        left = await stopping
        if left:
            local_ranks = ", ".join(map(str, left))
            self._log.say(
                f"warning: workers of local rank {local_ranks} cannot be killed: "
                "they hang in the kernel (a driver or a file system)"
            )

    def _end_of_run(self, close: CloseRecord) -> End:
        code = errors.exit_code_of(close.outcome)
        text = agent_messages.of_end(self._config.node.run_id, close)
        found = self._node.round
        where = (
            agent_messages.of_meeting(found, self._node.own_address, close)
            if found is not None
            else ""
        )
        return End(code, f"{text}\n{where}" if where else text)

    def _end_by_signal(self) -> End:
        return End(128 + self._signals[0])

    # -- callbacks of the node -----------------------------------------------------------------

    def _on_ended(self, change: Change) -> None:
        self._channel.end_round(change)
        text = agent_messages.of_change(change, self._told_change)
        if text and change.kind is not ChangeKind.CLOSED:  # the end of the run is logged last
            self._log.say(text)
        self._told_change = change
        self._notifier.notify()

    def _on_closed(self, close: CloseRecord) -> None:
        self._channel.end_run(close)
        self._notifier.notify()

    def _on_gone(self, error: errors.CoordinatorError) -> None:
        """Loss of the coordinator does not disturb the workers; a superseded node stops them."""
        if self._work is not None and not isinstance(error, errors.SupersededError):
            self._log.say(agent_messages.of_loss(error.message, self._node.orphan.left_s))
        self._notifier.notify()

    def _regroup(self) -> None:
        self._wants_regroup = True
        self._notifier.notify()

    def _worker_leaves(self, reason: str) -> None:
        self._wants_to_leave = reason
        self._notifier.notify()

    def _worker_closes(self, outcome: Outcome, reason: str) -> None:
        self._spawn(self._close_run(outcome, reason))

    async def _close_run(self, outcome: Outcome, reason: str) -> None:
        try:
            timeout_s = self._config.node.goodbye_timeout_s
            await self._node.close_run(outcome, reason, timeout_s)
        except errors.RallypointError as error:
            self._log.say(f"warning: a worker closed the run, but {error.message}")

    # -- signals -------------------------------------------------------------------------------

    def _handle_signals(self) -> None:
        loop = asyncio.get_running_loop()
        for number in STOPPING_SIGNALS:
            # A signal that is ignored at the start (nohup, `&` in a script) stays ignored.
            if signal.getsignal(number) is not signal.SIG_IGN:
                loop.add_signal_handler(number, self._on_signal, int(number))
        for number in FORWARDED_SIGNALS:
            loop.add_signal_handler(number, self._forward, number)

    def _on_signal(self, number: int) -> None:
        """Handle a signal: the first one makes this node departing, so that the others regroup."""
        self._signals.append(number)
        if len(self._signals) == 1:
            self._goodbye = f"its agent got {signal.Signals(number).name}"
            self._node.depart(self._goodbye)
        self._notifier.notify()

    @property
    def _is_hurried(self) -> bool:
        return len(self._signals) > 1

    def _forward(self, number: int) -> None:
        if self._work is not None:
            self._work.group.signal_leaders(number)

    async def _unless_signalled(self, work: Coroutine[Any, Any, _T]) -> _T:
        """The result of `work`. A signal before that cancels it and raises _Signalled."""
        task = self._spawn(work)
        try:
            await self._notifier.until(lambda: task.done() or bool(self._signals))
            if not task.done():
                raise _Signalled
            return task.result()
        finally:
            task.cancel()
            await asyncio.wait({task})

    def _prefix(self, local_rank: int, rank: int) -> str:
        if self._config.prefix_template is None:
            return f"[{self._node.info.name}:{rank}] "
        names = {"role_name": self._config.role, "local_rank": local_rank, "rank": rank}
        return Template(self._config.prefix_template).safe_substitute(names)

    # -- tasks ---------------------------------------------------------------------------------

    def _spawn(self, work: Coroutine[Any, Any, _T]) -> asyncio.Task[_T]:
        """Start a task that notifies when it ends, and that is cancelled when the agent ends."""
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        task.add_done_callback(self._notifier.notify)
        return task


def _may_read_stdin() -> bool:
    """Whether this job may read the standard input.

    A job in the background must not read what is typed for another job. Workers have their own
    sessions, so the terminal would not stop them.
    """
    try:
        return not os.isatty(0) or os.tcgetpgrp(0) == os.getpgrp()
    except OSError:
        return False
