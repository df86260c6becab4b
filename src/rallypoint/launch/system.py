"""What an agent uses of its machine: processes, signals, files, a console and a local socket.

A real agent has `LocalSystem`. A simulated one has the same from its world.
The network is client/network.py. This file must not decide anything.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Final, Protocol

from rallypoint.client.bootstrap_port import reserve_for_rank_0
from rallypoint.client.node import Node, Round
from rallypoint.client.reaching import Unreached, a_kernel_port, unreached
from rallypoint.client.sockets import SocketKeeper
from rallypoint.core.stacks import WorkerStack
from rallypoint.core.values import Address, Change, CloseRecord, Drain
from rallypoint.launch.agent_events import PreloadEvent
from rallypoint.launch.agent_log import AgentLog
from rallypoint.launch.channel import Channel, Requests
from rallypoint.launch.check_process import run_check, run_notice
from rallypoint.launch.guard import Guard
from rallypoint.launch.logs import LogPump, check_log_dir
from rallypoint.launch.machine import STOPPING_SIGNALS
from rallypoint.launch.oom import OomCounter
from rallypoint.launch.orphans import OrphanReaper, is_first
from rallypoint.launch.preloader import Preloader, PreloadPlan, become_subreaper
from rallypoint.launch.rank_0_first import listens
from rallypoint.launch.worker_env import inherited_environment
from rallypoint.launch.worker_processes import Forks, WorkerExit, WorkerGroup, WorkerSpec
from rallypoint.launch.worker_stacks import Asked, stacks_of
from rallypoint.ledger.contract import Ledger
from rallypoint.settings import PortRange

FORWARDED_SIGNALS: Final = (signal.SIGUSR1, signal.SIGUSR2)


class Workers(Protocol):
    """The worker processes of one round: see worker_processes.WorkerGroup."""

    @property
    def running(self) -> tuple[int, ...]:
        """The local ranks of the workers whose end has not been reported yet."""

    @property
    def pids(self) -> Mapping[int, int]:
        """The pid of each worker by its local rank, including ended ones."""

    async def start(self, *, is_first_alone: bool = False) -> None:
        """Start all workers or none. A cancellation gives up the start.

        `is_first_alone`: the others start after `start_others`.
        """

    def start_others(self) -> None:
        """Let the workers after the first one start."""

    async def go_on(self) -> None:
        """Their next round begins: what happened on this machine before is of an earlier one."""

    async def stop(
        self, grace_s: float, first_signal: int = signal.SIGTERM, ending: Sequence[int] = ()
    ) -> tuple[int, ...]:
        """End every worker. Returns the local ranks of those that cannot be killed.

        `ending`: the local ranks of those that end by themselves, and get no first signal.
        """

    def lengthen_stop(self, grace_s: float) -> None:
        """Give the stop that is under way `grace_s` seconds from now, if it has less."""

    def signal_leaders(self, number: int) -> None:
        """Send a signal to the workers and not to their children."""


class WarmForks(Forks, Protocol):
    """Processes that have imported modules already: see preloader.Preloader."""

    def start(self, modules: Sequence[str]) -> None:
        """Start a preloader in place of the last one."""

    async def settled(self) -> None:
        """Wait until the present one can fork, or never will."""

    def refill(self) -> None:
        """Have as many standbys as workers again."""

    def close(self) -> None:
        """End the present one and its standbys."""


class Output(Protocol):
    """The console, and the workers' output: see logs.LogPump."""

    def begin_round(self, number: int, kept: Mapping[int, int] | None = None) -> None:
        """The workers that start from now on are of this round.

        `kept`: the local ranks of those that go on in it, and their new ranks.
        """

    def say(self, text: str) -> None:
        """Write the agent's own line."""

    def keep(self, text: str) -> None:
        """Write the agent's own line to its file."""

    async def drain(self, timeout_s: float, local_rank: int | None = None) -> bool:
        """Wait until the output of workers (or one) from before this call was passed on."""

    def last_lines(self, local_rank: int) -> tuple[str, ...]:
        """The last lines that a worker of this round wrote to stderr."""

    async def close(self, timeout_s: float) -> bool:
        """Drain, and end."""


class EndGuard(SocketKeeper, Protocol):
    """Ends what the agent leaves, however the agent ends: see guard.Guard."""

    def start(self) -> None:
        """Begin. Called before the first worker starts."""

    def remove_in_the_end(self, path: Path) -> None:
        """Remove this folder when the agent has ended."""

    async def close(self) -> None:
        """The agent ends in order."""


class LocalSocket(Protocol):
    """Where the workers reach the agent: see channel.Channel."""

    @property
    def path(self) -> str:
        """What the workers get as its address; "" before `start`."""

    async def start(self) -> None:
        """Open it."""

    def begin_round(self, found: Round, kept: Sequence[int] = ()) -> str:
        """Admit only the workers of this round. Returns the secret that they must send.

        `kept`: the local ranks of those that wait for it: see `go_on`.
        """

    def go_on(self, variables: Mapping[int, dict[str, str]]) -> None:
        """Give the workers that were kept the round, with what changes in their environment."""

    def end_round(self, change: Change) -> None:
        """Tell the workers that their round has ended, or that its cause is known."""

    def end_run(self, close: CloseRecord) -> None:
        """Tell the workers that the run has ended."""

    def drain(self, drain: Drain) -> None:
        """Tell the workers that nodes of the round are going to leave it."""

    def stop_at(self, step: int) -> None:
        """Tell the workers at which step all workers of the round stop."""

    def depart(self, reason: str) -> None:
        """Tell the workers, also those that connect later, that this node is going to leave."""

    def expel(self, reason: str) -> None:
        """Tell the workers, also those that connect later, that this node is out of its round."""

    async def aclose(self) -> None:
        """Close it, and every connection."""


class Port(Protocol):
    """A port that is held for rank 0: see client/bootstrap_port.py."""

    @property
    def port(self) -> int:
        """Its number."""

    def hand_over(self) -> None:
        """Let rank 0 take it."""

    def close(self) -> None:
        """Release it."""


class System(Protocol):
    """See above. One agent uses it once, from its event loop."""

    guard: EndGuard

    @property
    def ledger(self) -> Ledger | None:
        """The endpoint's ledger, if it is open already; None: the node opens it."""

    @property
    def environment(self) -> dict[str, str]:
        """The environment of this process."""

    @property
    def may_read_stdin(self) -> bool:
        """Whether this job may read the standard input."""

    def wall_s(self) -> float:
        """Unix time, in seconds. It may jump."""

    def handle_signals(
        self, stopping: Callable[[int], None], forwarded: Callable[[int], None]
    ) -> None:
        """Call these with the numbers of signals, from the event loop.

        From then on, the first process of a container waits for the orphans that it inherits.
        """

    def loggers(self, log: AgentLog) -> AbstractContextManager[None]:
        """In this block, the records of all loggers are lines of the agent."""

    def output(
        self,
        *,
        run_id: str,
        log_dir: Path | None,
        prefix: Callable[[int, int], str] | None,
        shows: Callable[[int, int], bool],
        prompting: int | None,
        lines_kept: int,
        node: str,
        tap: Callable[[int, int, bytes], object] | None,
    ) -> Output:
        """Open the console and the log files. Called once, before `workers`."""

    def channel(self, node: Node, requests: Requests) -> LocalSocket:
        """A local socket that is not open yet."""

    def workers(
        self,
        specs: Sequence[WorkerSpec],
        exits: Callable[[WorkerExit], None],
        forks: Forks | None = None,
    ) -> Workers:
        """Workers that have not started yet. `exits` is called for each when it has ended.

        `forks`: what `preloader` has returned, if they are to start warm.
        """

    def preloader(
        self, plan: PreloadPlan, tell: Callable[[PreloadEvent], None], said: Callable[[str], None]
    ) -> WarmForks:
        """A preloader that has not started yet: see preloader.Preloader. Raises OSError.

        From then on, this process waits for the orphans that it inherits.
        """

    def reserve_port(self, ports: PortRange | None, last: int | None) -> Port:
        """A port for rank 0: see client/bootstrap_port.py. Raises LaunchError."""

    async def check(self, command: str, limit_s: float) -> str:
        """Why this node is unfit for a round, as the command says: see check_process.run_check."""

    async def unreached(self, address: Address, limit_s: float) -> Unreached | None:
        """See client/reaching.py."""

    async def listens(self, port: int) -> bool:
        """See rank_0_first.listens."""

    def a_kernel_port(self, ports: PortRange) -> int | None:
        """See client/reaching.py."""

    async def check_log_dir(self, path: Path) -> None:
        """Try to write there. May hang. Raises LogDirectoryError."""

    async def make_scratch(self) -> Path:
        """A new folder for the files of this agent. May hang. Raises OSError."""

    async def remove_scratch(self, path: Path) -> None:
        """Remove it as far as possible. May hang."""

    async def read_text(self, path: Path) -> str:
        """What is in a file. May hang. Raises OSError."""

    async def stacks(self, workers: list[Asked], bytes_max: int) -> tuple[WorkerStack, ...]:
        """Where these workers stand, within about 1.5 s: see worker_stacks.py."""

    async def run_command(self, argv: tuple[str, ...], limit_s: float) -> tuple[int, str]:
        """The exit code of a command, and its output. Raises OSError and TimeoutError."""


class LocalSystem:
    """The System of a real agent."""

    ledger: Ledger | None = None

    def __init__(self) -> None:
        self._guard = Guard()
        self.guard: EndGuard = self._guard
        self._oom = OomCounter()
        self._pump: LogPump | None = None
        self._reaping: asyncio.Task[None] | None = None
        """Ends with the event loop."""

    @property
    def environment(self) -> dict[str, str]:
        """See System."""
        return inherited_environment()

    @property
    def may_read_stdin(self) -> bool:
        """See System.

        A job in the background must not read what is typed for another job. Workers have their own
        sessions, so the terminal would not stop them.
        """
        try:
            return not os.isatty(0) or os.tcgetpgrp(0) == os.getpgrp()
        except OSError:
            return False

    def wall_s(self) -> float:
        """See System."""
        return time.time()

    def handle_signals(
        self, stopping: Callable[[int], None], forwarded: Callable[[int], None]
    ) -> None:
        """See System."""
        loop = asyncio.get_running_loop()
        for number in STOPPING_SIGNALS:
            # A signal that is ignored at the start (nohup, `&` in a script) stays ignored.
            if signal.getsignal(number) is not signal.SIG_IGN:
                loop.add_signal_handler(number, stopping, int(number))
        for number in FORWARDED_SIGNALS:
            loop.add_signal_handler(number, forwarded, int(number))
        if is_first():
            self._reap_orphans()

    def loggers(self, log: AgentLog) -> AbstractContextManager[None]:
        """See System."""
        return log.with_loggers()

    def output(
        self,
        *,
        run_id: str,
        log_dir: Path | None,
        prefix: Callable[[int, int], str] | None,
        shows: Callable[[int, int], bool],
        prompting: int | None,
        lines_kept: int,
        node: str,
        tap: Callable[[int, int, bytes], object] | None,
    ) -> Output:
        """See System."""
        self._pump = LogPump(
            run_id=run_id,
            log_dir=log_dir,
            prefix=prefix,
            shows=shows,
            prompting=prompting,
            lines_kept=lines_kept,
            node=node,
            tap=tap,
        )
        return self._pump

    def channel(self, node: Node, requests: Requests) -> LocalSocket:
        """See System."""
        return Channel(node, requests)

    def workers(
        self,
        specs: Sequence[WorkerSpec],
        exits: Callable[[WorkerExit], None],
        forks: Forks | None = None,
    ) -> Workers:
        """See System."""
        assert self._pump is not None
        return WorkerGroup(
            specs,
            output=self._pump,
            exits=exits,
            guard=self._guard,
            oom_counter=self._oom,
            forks=forks,
        )

    def preloader(
        self, plan: PreloadPlan, tell: Callable[[PreloadEvent], None], said: Callable[[str], None]
    ) -> WarmForks:
        """See System."""
        become_subreaper()
        self._reap_orphans()
        return Preloader(plan, tell=tell, said=said, guard=self._guard)

    def _reap_orphans(self) -> None:
        if self._reaping is None:
            loop = asyncio.get_running_loop()
            self._reaping = loop.create_task(OrphanReaper(self._guard.children).run())

    def reserve_port(self, ports: PortRange | None, last: int | None) -> Port:
        """See System."""
        return reserve_for_rank_0(ports, last)

    async def check(self, command: str, limit_s: float) -> str:
        """See System."""
        return await run_check(command, limit_s, self.environment, self._guard)

    async def unreached(self, address: Address, limit_s: float) -> Unreached | None:
        """See System."""
        return await unreached(address, limit_s)

    async def listens(self, port: int) -> bool:
        """See System."""
        return await listens(port)

    def a_kernel_port(self, ports: PortRange) -> int | None:
        """See System."""
        return a_kernel_port(ports)

    async def check_log_dir(self, path: Path) -> None:
        """See System."""
        await asyncio.to_thread(check_log_dir, path)

    async def make_scratch(self) -> Path:
        """See System."""
        return Path(await asyncio.to_thread(tempfile.mkdtemp, prefix="rallypoint-"))

    async def remove_scratch(self, path: Path) -> None:
        """See System."""
        await asyncio.to_thread(shutil.rmtree, path, True)

    async def read_text(self, path: Path) -> str:
        """See System."""
        return await asyncio.to_thread(path.read_text, "utf-8", "replace")

    async def stacks(self, workers: list[Asked], bytes_max: int) -> tuple[WorkerStack, ...]:
        """See System."""
        return await stacks_of(workers, bytes_max)

    async def run_command(self, argv: tuple[str, ...], limit_s: float) -> tuple[int, str]:
        """See System."""
        return await run_notice(argv, limit_s, self.environment, self._guard)
