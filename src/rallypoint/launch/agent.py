"""The agent: one node of a run, which starts and stops this machine's workers for each round.

`machine` decides, and this file executes: it runs the node, the processes, the local socket and the
signals, and tells the machine what happened.

It has one asyncio loop in the main thread of its process. The loop never waits for a file system, a
console or a worker, so that heartbeats and probes are answered even if those hang. Four waits have
no deadline: for the next round and for the end of the run (`Node` ends both when it has lost the
coordinator for `coordinator_lost_after_s`), for the end of the workers (as in any launcher), and,
on the node that hosts the coordinator, for the end of the other nodes. A signal ends all four.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
from collections.abc import Callable, Coroutine
from pathlib import Path
from string import Template
from typing import Any, Final, TypeVar

import msgspec

from rallypoint import errors, logs, settings
from rallypoint.client.node import Node, Round
from rallypoint.client.waiting import on_standby, while_waiting
from rallypoint.coordinator.listener import allow_many_descriptors
from rallypoint.core.values import Address, Drain, RunSettings
from rallypoint.launch import agent_actions as do
from rallypoint.launch import agent_events as on
from rallypoint.launch import round_workers
from rallypoint.launch.agent_log import AgentLog, LogOptions
from rallypoint.launch.channel import Requests
from rallypoint.launch.console_rule import SHOW_ALL, ConsoleRule
from rallypoint.launch.hang_watch import HangWatch
from rallypoint.launch.machine import AgentMachine, Rules
from rallypoint.launch.notices import NoticePlan, notice
from rallypoint.launch.output_streams import LAST_LINES
from rallypoint.launch.phases import Phase
from rallypoint.launch.preloader import REFILL_AFTER_S, PreloadPlan, modules_in
from rallypoint.launch.rank_0_first import Rank0First
from rallypoint.launch.round_workers import Assignment, RoundWorkers
from rallypoint.launch.system import LocalSystem, Port, System, WarmForks
from rallypoint.launch.warm_starts import Preload
from rallypoint.launch.worker_env import ROLE, preloader_environment, worker_variables
from rallypoint.launch.worker_processes import WorkerExit
from rallypoint.threads import new_event_loop

_T = TypeVar("_T")

FILE_SYSTEM_TIMEOUT_S: Final = 10.0
"""How many seconds a file system may take at the start before it counts as hanging."""
RANK_0_WITHIN_S: Final = 10.0
"""How many seconds rank 0's machine has to answer: Linux tries three times in 7 s."""
WARM: Final = (do.Start.WARM, do.Start.WHEN_READY)
LAST_WORDS_S: Final = 1.0
"""How many seconds the end waits for a hanging console, and for the removal of the agent's files.
"""


class AgentConfig(msgspec.Struct, frozen=True, kw_only=True):
    """The options of `rallypoint run`. Durations in seconds.

    `argv`: the workers' command. `workers`: how many on this node. `stdin`: the local rank that
    reads the agent's standard input; None for none. `console`: which output of the workers goes to
    the console. `prefix`: whether each line there begins with `prefix_template`, in torch's syntax
    ($ and {role_name}, {local_rank} or {rank}); None: with `[node:rank]`. `role`: the workers'
    ROLE_NAME. `virtual_local_rank`, `sees_own_device`: see WorkerContext. `cpus`: see
    Assignment. `share_lines`: how many last lines of a failed worker are sent to other nodes; 0: no
    output is sent. `ends_at_s`: when the launcher ends the job, as Unix time, if that is known and
    the user has not given a stop time. `preload`: see warm_starts.py; None: workers start cold.
    `log`: which of its own lines the agent writes, and how.
    `hang`: what shows that a worker advances, besides its own reports. `unwind_s`: workers that ask
    for the next world within this time keep their process; None: none does.
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
    sees_own_device: bool = False
    cpus: tuple[frozenset[int], ...] = ()
    ends_at_s: float | None = None
    preload: Preload | None = None
    notices: NoticePlan = NoticePlan()
    """Where a notice comes from that this machine will be taken away."""
    log: LogOptions = LogOptions()
    hang: settings.HangRule | None = None
    check: str | None = None
    check_timeout_s: float = 30.0
    unwind_s: float | None = None


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
    """One agent. `run` may be called once, from the main thread's loop.

    `machine` decides; this class executes its actions and tells it what happened. `system`: what it
    uses of its machine.
    """

    def __init__(self, config: AgentConfig, system: System | None = None) -> None:
        self._config = config
        self._system = LocalSystem() if system is None else system
        self._has_happened = asyncio.Event()
        ledger = self._system.ledger
        run = config.run
        explain_s = run.suspect_after_s + run.reconnect_grace_s + 2 * run.probe_s
        self._node = Node(
            config.node,
            config.run,
            workers=config.workers,
            ledger=ledger,
            keeper=self._system.guard,
            on_asked_to_leave=lambda reason: self._take(on.Drained(reason, self._node.can_agree)),
            tell_stacks=lambda bytes_max: self._watch.stacks(bytes_max),
        )
        self._machine = AgentMachine(
            Rules(
                run_id=config.node.run_id,
                stop_timeout_s=config.stop_timeout_s,
                regroup_stop_timeout_s=config.regroup_stop_timeout_s,
                share_lines=config.share_lines,
                culprit_s=round_workers.CULPRIT_S,
                signal_settle_s=round_workers.SIGNAL_SETTLE_S,
                drain_timeout_s=config.node.drain_timeout_s,
                no_restart_exit_codes=config.run.no_restart_exit_codes,
                has_check=config.check is not None,
                check_again_s=config.run.cooldown_s,
                check_again_max_s=config.run.cooldown_max_s,
                preload=config.preload,
                unwind_s=config.unwind_s,
                explain_s=explain_s,
                node_name=self._node.info.name,
            )
        )
        self._watch = HangWatch(
            self._node,
            config.hang,
            lambda text: self._log.say(text),
            lambda: {} if self._work is None else self._work.group.pids,
            self._system.stacks,
        )
        self._node.on_ended = lambda change: self._take(on.RoundEnded(change))
        self._node.on_closed = lambda close: self._take(on.RunClosed(close, self._node.own_address))
        self._node.on_gone = lambda error: self._take(on.Gone(error, self._node.orphan.left_s))
        self._node.on_drain = self._told_drain
        self._node.on_step = lambda step: self._channel.stop_at(step)
        self._node.on_standby = self._say_standby
        self._pump = self._system.output(
            run_id=config.node.run_id,
            log_dir=Path(config.log_dir) if config.log_dir else None,
            prefix=self._prefix if config.prefix else None,
            shows=config.console.shows,
            prompting=config.stdin,
            lines_kept=max(LAST_LINES, config.share_lines),
            node=self._node.info.name,
            tap=self._watch.seen if config.hang is not None else None,
        )
        self._log = AgentLog(
            self._node.place,
            self._pump.say,
            keep=self._pump.keep if config.log_dir else None,
            options=config.log,
            nodes_max=config.run.max_nodes,
            is_connected=lambda: self._node.is_connected,
            hosts=lambda: self._node.hosts_run,
        )
        self._channel = self._system.channel(
            self._node,
            Requests(
                regroup=lambda: self._take(on.RegroupAsked()),
                leave=lambda reason: self._take(on.LeaveAsked(reason)),
                close=lambda outcome, reason: self._take(on.CloseAsked(outcome, reason)),
                progressed=self._watch.progressed,
                dumps_stacks=self._watch.dumps_stacks,
                stacks_file=self._watch.stacks_file,
                yielded=lambda local_rank: self._take(on.Yielded(local_rank)),
                joined=lambda local_rank: self._take(on.WorkerJoined(local_rank)),
                parted=lambda local_rank: self._take(on.WorkerParted(local_rank)),
                asked=lambda local_rank, number: self._take(on.WorldAsked(local_rank, number)),
                raised=lambda local_rank, failure: self._take(on.WorkerRaised(local_rank, failure)),
                fails=self._fails,
                explain_s=None if config.unwind_s is None else explain_s,
            ),
        )
        self._work: RoundWorkers | None = None
        self._present: asyncio.Task[on.Answer] | None = None
        """The work that an action began, and for whose end the machine waits."""
        self._repeat: asyncio.Task[None] | None = None
        """The check that is repeated while the node waits."""
        self._preloader: WarmForks | None = None
        self._rank_0_first = Rank0First(self._node.call, self._system.listens)
        self._leading: asyncio.Task[None] | None = None
        self._watched: Path | None = None
        """Where the first worker of this round writes which modules it imports."""
        self._reservation: Port | None = None
        self._scratch: Path | None = None
        self._tasks: set[asyncio.Task[Any]] = set()

    # -- start and end of the agent ------------------------------------------------------------

    def _say_standby(self) -> None:
        node = self._node
        self._log.waits(on_standby(node.nodes_max, node.stays_out))

    async def run(self) -> int:
        """Join, work and leave. Returns the exit code."""
        logs.enter(self._node.place)
        self._system.handle_signals(self._signalled, self._forward)
        with self._system.loggers(self._log):
            try:
                await self._until(lambda: self._machine.is_over)
            finally:
                await self._let_go()
        if self._machine.error is not None:
            raise self._machine.error
        assert self._machine.end is not None
        return self._machine.end.code

    async def _until(self, is_so: Callable[[], bool]) -> None:
        """Do what the machine decides, each time something has happened, until `is_so`."""
        while True:
            # Cleared first, because an action may cause an event at once.
            self._has_happened.clear()
            self._act(self._machine.decide(_now_s()))
            if is_so():
                return
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout_at(self._machine.due_s):
                    await self._has_happened.wait()

    async def _let_go(self) -> None:
        """Clean up. Each step has a deadline, except a host's wait for the other nodes."""
        present = self._present
        if present is not None and not present.done():
            if not present.cancelling():  # A second one would cut short what it closes.
                present.cancel()
            await asyncio.wait({present})
        if self._work is not None:
            await self._work.stop(0)
            self._work = None
        if self._preloader is not None:
            self._preloader.close()
        self._watch.end_round()
        await self._channel.aclose()
        for task in list(self._tasks):
            task.cancel()
        if self._reservation is not None:
            self._reservation.close()
        self._take(on.LetGo())
        await self._until(lambda: self._machine.phase is Phase.ENDED)
        if self._machine.error is not None:
            self._log.fails(self._machine.error)
        await self._system.guard.close()
        await self._pump.close(LAST_WORDS_S)
        if self._scratch is not None:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(LAST_WORDS_S):
                    await self._system.remove_scratch(self._scratch)

    # -- the machine ---------------------------------------------------------------------------

    def _take(self, event: on.Event) -> None:
        """Tell the machine what happened. It decides in the loop of `run`."""
        self._act(self._machine.step(event, _now_s()))
        self._has_happened.set()

    def _act(self, actions: list[do.Action]) -> None:
        for action in actions:
            _DO[type(action)](self, action)

    def _begin(
        self, work: Coroutine[Any, Any, on.Answer], given_up: on.Answer | None = None
    ) -> None:
        """Start the work for whose end the machine waits. `given_up`: its answer if cancelled."""
        self._present = task = self._spawn(work)
        task.add_done_callback(functools.partial(self._ended, given_up))

    def _ended(self, given_up: on.Answer | None, task: asyncio.Task[on.Answer]) -> None:
        answer = given_up
        if not task.cancelled():
            error = task.exception()
            answer = on.Failed(error) if isinstance(error, Exception) else task.result()
        if answer is not None:
            self._take(answer)

    # -- before the workers --------------------------------------------------------------------

    def _say(self, action: do.Say) -> None:
        self._log.say(action.text, is_common=action.is_common, is_trouble=action.is_trouble)

    def _prepare(self, action: do.Prepare) -> None:
        self._begin(self._prepare_files())

    async def _prepare_files(self) -> on.Prepared:
        """Prepare files and folders, in threads and with a deadline."""
        try:
            async with asyncio.timeout(FILE_SYSTEM_TIMEOUT_S):
                if self._config.log_dir is not None:
                    await self._system.check_log_dir(Path(self._config.log_dir))
                self._log.may_keep()
                await self._make_scratch()
        except TimeoutError:
            raise errors.LaunchError(
                f"a file system has not answered for {FILE_SYSTEM_TIMEOUT_S:g} s",
                hint="is a network file system hanging? Check --log-dir and TMPDIR on this node",
            ) from None
        return on.Prepared()

    async def _make_scratch(self) -> None:
        try:
            scratch = await self._system.make_scratch()
        except OSError as error:
            self._log.say(f"warning: no directory for torch's error files: {error}")
        else:
            self._scratch = scratch
            self._system.guard.remove_in_the_end(scratch)

    def _join(self, action: do.Join) -> None:
        self._system.guard.start()
        self._begin(self._open())

    async def _open(self) -> on.Joined:
        async with while_waiting(self._node, self._log.waits):
            await self._node.open()
        await self._channel.start()
        plan = self._config.notices
        if plan.file is not None or plan.command:
            self._spawn(self._await_notice(plan))
        return on.Joined()

    async def _await_notice(self, plan: NoticePlan) -> None:
        reason = await notice(plan, self._system, self._log.say)
        self._take(on.Drained(reason, self._node.can_agree, is_notice=True))

    def _run_check(self, action: do.RunCheck) -> None:
        self._begin(self._checked())

    async def _checked(self) -> on.CheckPassed | on.CheckFailed:
        unfit = await self._unfit()
        return on.CheckFailed(unfit) if unfit else on.CheckPassed()

    async def _unfit(self) -> str:
        config = self._config
        assert config.check is not None
        return await self._system.check(config.check, config.check_timeout_s)

    def _repeat_check(self, action: do.RepeatCheck) -> None:
        self._repeat = self._spawn(self._repeated())

    async def _repeated(self) -> None:
        self._take(on.CheckRepeated(await self._unfit()))

    def _give_up_repeat(self, action: do.GiveUpRepeat) -> None:
        if self._repeat is not None:
            self._repeat.cancel()

    def _tell_fitness(self, action: do.TellFitness) -> None:
        self._node.fitness(action.unfit)

    def _ask_round(self, action: do.AskRound) -> None:
        self._begin(self._next_round(action.unfit))

    async def _next_round(self, unfit: str) -> on.RoundFound | on.NoRound:
        """Be ready, and return the next round or the end of the run."""
        bootstrap = Address(self._node.bootstrap_host, self._reserve().port)
        async with while_waiting(self._node, self._log.waits):
            found = await self._node.next_round(bootstrap, unfit=unfit)
        if found is not None:
            self._log.has_met(found.head.nodes, found.seat.node_rank)
        return on.NoRound() if found is None else on.RoundFound(found)

    def _reserve(self) -> Port:
        """Rank 0's port, held from before it is announced until the round's workers have ended."""
        last = self._reservation.port if self._reservation is not None else None
        if self._reservation is not None:
            self._reservation.close()
        self._reservation = self._system.reserve_port(self._config.node.port_range, last)
        return self._reservation

    def _give_up_wait(self, action: do.GiveUpWait) -> None:
        assert self._present is not None
        self._present.cancel()

    # -- the workers ---------------------------------------------------------------------------

    def _start_workers(self, action: do.StartWorkers) -> None:
        found = action.found
        is_watched = action.start is do.Start.WATCHED and self._scratch is not None
        if is_watched and self._scratch is not None:
            self._watched = self._scratch / f"modules-{found.head.number}"
        is_warm = action.start in WARM
        last, keeps = self._work, self._config.unwind_s is not None
        assignment = self._assignment(found, action.kept)
        self._watch.begin_round(found, self._scratch)
        work = self._work = RoundWorkers(
            found,
            msgspec.structs.replace(assignment, watched=self._watched if is_watched else None),
            exits=lambda exit: self._take(on.WorkerExited(exit)),
            output=self._pump,
            system=self._system,
            forks=self._preloader if is_warm else None,
            last=last,
            kept=action.kept if keeps else None,
        )
        self._channel.go_on(work.news)
        if found.seat.node_rank == 0 and self._reservation is not None:
            self._reservation.hand_over()
        self._begin(self._start(work, action.start), given_up=on.Started(action.kept))

    def _assignment(self, found: Round, kept: tuple[int, ...]) -> Assignment:
        own = self._node.own_address
        return Assignment(
            argv=self._config.argv,
            run_id=self._config.node.run_id,
            node_name=self._node.info.name,
            run=self._config.run,
            agent_path=self._channel.path,
            agent_secret=self._channel.begin_round(found, kept),
            base=self._system.environment,
            scratch=self._scratch,
            stdin=self._config.stdin if self._system.may_read_stdin else None,
            role=self._config.role,
            virtual_local_rank=self._config.virtual_local_rank,
            sees_own_device=self._config.sees_own_device,
            cpus=self._config.cpus,
            interface=own.interface if own is not None else "",
            is_interface_wanted=self._config.node.interface is not None,
        )

    async def _start(self, work: RoundWorkers, start: do.Start) -> on.Started | on.StartFailed:
        if start is do.Start.WHEN_READY and self._preloader is not None:
            await self._preloader.settled()
        try:
            await work.group.start(is_first_alone=await self._is_rank_0_alone(work, start))
        except errors.WorkerStartError as error:
            return on.StartFailed(error)
        if self._preloader is not None:
            asyncio.get_running_loop().call_later(REFILL_AFTER_S, self._preloader.refill)
        return on.Started(work.group.running)

    # -- warm starts ---------------------------------------------------------------------------

    async def _is_rank_0_alone(self, work: RoundWorkers, start: do.Start) -> bool:
        """Whether rank 0 starts before the other workers here. Elsewhere, wait for it."""
        if self._config.preload is None or self._config.unwind_s is not None:
            return False  # Workers that join use the store of the round, and not rank 0's.
        found, is_warm = work.found, start in WARM
        is_held = self._rank_0_first.holds(found, is_warm=is_warm)
        if found.seat.node_rank == 0:
            release = work.group.start_others
            leads = self._rank_0_first.lead(found, release, is_held=is_held)
            self._leading = self._spawn(leads)
        elif is_warm:
            await self._rank_0_first.follow()
        return is_held

    def _start_preloader(self, action: do.StartPreloader) -> None:
        if self._preloader is None:
            config = self._config
            plan = PreloadPlan(
                argv=config.argv,
                env=preloader_environment(self._system.environment, config.workers),
                watched=tuple(worker_variables()),
                workers=config.workers,
                may_fail=config.preload is not None and not config.preload.modules,
                has_stdin=config.stdin is not None and self._system.may_read_stdin,
            )
            try:
                self._preloader = self._system.preloader(plan, self._take, self._log.say)
            except OSError as error:
                self._take(on.PreloadRefused((on.Problem((), str(error)),)))
                return
        self._preloader.start(action.modules)

    def _read_modules(self, action: do.ReadModules) -> None:
        self._spawn(self._learn())

    async def _learn(self) -> None:
        text = ""
        if self._watched is not None:
            with contextlib.suppress(OSError, TimeoutError):
                async with asyncio.timeout(FILE_SYSTEM_TIMEOUT_S):
                    text = await self._system.read_text(self._watched)
        self._take(on.ModulesRead(modules_in(text, self._config.argv)))

    def _dial_rank_0(self, action: do.DialRank0) -> None:
        self._spawn(self._dial(action.address))

    async def _dial(self, address: Address) -> None:
        # The ports that gloo and NCCL choose are another matter than rank 0's, if that is limited.
        ports = self._config.node.port_range
        other = self._system.a_kernel_port(ports) if ports is not None else None
        dialled = [address] if other is None else [address, Address(address.host, other)]
        unreached, *walled = await asyncio.gather(
            *(self._system.unreached(each, RANK_0_WITHIN_S) for each in dialled)
        )
        self._take(on.Rank0Dialled(address, unreached, walled[0] if walled else None))

    def _give_up_start(self, action: do.GiveUpStart) -> None:
        assert self._present is not None
        self._present.cancel()

    def _find_failures(self, action: do.FindFailures) -> None:
        self._begin(self._explain(action.exits))

    async def _explain(self, exits: tuple[WorkerExit, ...]) -> on.FailuresFound:
        assert self._work is not None
        return on.FailuresFound(await self._work.failures_of(exits))

    def _fails(self, pid: int) -> None:
        """An exception has left the program of this process, which still runs."""
        work = self._work
        if work is None:
            return
        for local_rank, each in work.group.pids.items():
            if each == pid:
                self._spawn(self._explain_early(work, local_rank, pid))

    async def _explain_early(self, work: RoundWorkers, local_rank: int, pid: int) -> None:
        exit = work.exit_by_error(local_rank, pid)
        (failure,) = await work.failures_of([exit])
        self._take(on.WorkerFails(work.number, exit, failure))

    def _stop_workers(self, action: do.StopWorkers) -> None:
        if self._leading is not None:
            self._leading.cancel()  # Its word is for this round.
        self._begin(self._stop(action))

    async def _stop(self, action: do.StopWorkers) -> on.Stopped:
        assert self._work is not None
        left = await self._work.stop(
            action.grace_s, action.first_signal, action.ending, action.kept
        )
        self._watch.end_round()
        if not action.kept:
            self._work = None
        return on.Stopped(left)

    def _lengthen_stop(self, action: do.LengthenStop) -> None:
        if self._work is not None:
            self._work.group.lengthen_stop(action.grace_s)

    def _kill_workers(self, action: do.KillWorkers) -> None:
        if self._work is not None:
            self._spawn(self._kill(self._work))

    async def _kill(self, work: RoundWorkers) -> None:
        await work.stop(0)

    # -- the node ------------------------------------------------------------------------------

    def _report_failure(self, action: do.ReportFailure) -> None:
        self._node.failed(action.failure)

    def _report_done(self, action: do.ReportDone) -> None:
        self._node.done()

    def _depart(self, action: do.Depart) -> None:
        self._node.depart(action.reason)

    def _drain(self, action: do.Drain) -> None:
        self._node.drains(action.reason, action.left_s)

    def _told_drain(self, drain: Drain) -> None:
        self._channel.drain(drain)
        self._take(on.DrainTold(drain.is_asked, self._node.all_go_on))

    def _tell_departure(self, action: do.TellDeparture) -> None:
        self._channel.depart(action.reason)

    def _tell_expulsion(self, action: do.TellExpulsion) -> None:
        self._channel.expel(action.reason)

    def _close_run(self, action: do.CloseRun) -> None:
        self._spawn(self._close(action))

    async def _close(self, action: do.CloseRun) -> None:
        try:
            timeout_s = self._config.node.goodbye_timeout_s
            await self._node.close_run(action.outcome, action.reason, timeout_s)
        except errors.RallypointError as error:
            self._take(on.CloseFailed(error.message))

    def _tell_round_ended(self, action: do.TellRoundEnded) -> None:
        self._channel.end_round(action.change)

    def _tell_run_closed(self, action: do.TellRunClosed) -> None:
        self._channel.end_run(action.close)

    def _close_node(self, action: do.CloseNode) -> None:
        self._node.goodbye(action.reason)
        self._begin(self._leave(linger=action.linger), given_up=on.NodeClosed())

    async def _leave(self, *, linger: bool) -> on.NodeClosed:
        await self._node.aclose(linger=linger)
        return on.NodeClosed()

    def _cut_linger(self, action: do.CutLinger) -> None:
        assert self._present is not None
        self._present.cancel()

    # -- signals -------------------------------------------------------------------------------

    def _signalled(self, number: int) -> None:
        ends_at_s = self._config.ends_at_s
        left_s = None if ends_at_s is None else ends_at_s - self._system.wall_s()
        self._take(on.Signalled(number, left_s, self._node.can_agree))

    def _forward(self, number: int) -> None:
        if self._work is not None:
            self._work.group.signal_leaders(number)

    def _prefix(self, local_rank: int, rank: int) -> str:
        if self._config.prefix_template is None:
            return f"[{self._node.info.name}:{rank}] "
        names = {"role_name": self._config.role, "local_rank": local_rank, "rank": rank}
        return Template(self._config.prefix_template).safe_substitute(names)

    # -- tasks ---------------------------------------------------------------------------------

    def _spawn(self, work: Coroutine[Any, Any, _T]) -> asyncio.Task[_T]:
        """Start a task that is cancelled when the agent ends."""
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task


def _now_s() -> float:
    return asyncio.get_running_loop().time()


_DO: dict[type[object], Callable[..., None]] = {
    do.Say: Agent._say,
    do.Prepare: Agent._prepare,
    do.Join: Agent._join,
    do.RunCheck: Agent._run_check,
    do.RepeatCheck: Agent._repeat_check,
    do.GiveUpRepeat: Agent._give_up_repeat,
    do.TellFitness: Agent._tell_fitness,
    do.AskRound: Agent._ask_round,
    do.GiveUpWait: Agent._give_up_wait,
    do.StartWorkers: Agent._start_workers,
    do.StartPreloader: Agent._start_preloader,
    do.ReadModules: Agent._read_modules,
    do.DialRank0: Agent._dial_rank_0,
    do.GiveUpStart: Agent._give_up_start,
    do.FindFailures: Agent._find_failures,
    do.StopWorkers: Agent._stop_workers,
    do.LengthenStop: Agent._lengthen_stop,
    do.KillWorkers: Agent._kill_workers,
    do.ReportFailure: Agent._report_failure,
    do.ReportDone: Agent._report_done,
    do.Depart: Agent._depart,
    do.Drain: Agent._drain,
    do.TellDeparture: Agent._tell_departure,
    do.TellExpulsion: Agent._tell_expulsion,
    do.CloseRun: Agent._close_run,
    do.TellRoundEnded: Agent._tell_round_ended,
    do.TellRunClosed: Agent._tell_run_closed,
    do.CloseNode: Agent._close_node,
    do.CutLinger: Agent._cut_linger,
}
