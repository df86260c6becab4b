"""The workers of one round on this node: what they are given, and why they have failed.

worker_processes.py handles processes, machine.py decides what an exit means for the round.
"""

from __future__ import annotations

import asyncio
import contextlib
import signal
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Final

import msgspec

from rallypoint.client.node import Round
from rallypoint.core.values import Failure, RunSettings, repr_without
from rallypoint.launch import failures, preloader
from rallypoint.launch.kept_processes import EachWorker
from rallypoint.launch.system import Output, System, Workers
from rallypoint.launch.worker_env import (
    ROLE,
    WorkerContext,
    changing_variables,
    worker_environment,
)
from rallypoint.launch.worker_processes import Forks, WorkerExit, WorkerSpec

DRAIN_S: Final = 0.2
"""How many seconds a failure report waits for the worker's last lines, and for its error file."""
CULPRIT_S: Final = 0.5
"""How many seconds the other workers are not stopped after a communication error, so that the
worker that caused it can report its error: an exception closes a program's sockets before its
process ends.
"""
SIGNAL_SETTLE_S: Final = 0.3
"""How many seconds a worker's end by SIGTERM or similar is not judged: Slurm and systemd signal the
workers and the agent some milliseconds apart, in either order.
"""
UNCAUGHT_ERROR: Final = 1
"""Python's exit code after an exception that the program has not caught."""
NO_LIMIT: Final = 2**31 - 1
"""The value of TORCHELASTIC_MAX_RESTARTS without a limit."""


class Assignment(msgspec.Struct, frozen=True, kw_only=True):
    """What the workers of a round get besides the round.

    `scratch`: a directory of this agent for torch's error files; None if there is none. `stdin`:
    the local rank that reads the agent's standard input; None for none. `cpus`: those of
    each worker, by its local rank; empty: the agent's. `watched`: a file to which the first worker
    writes which modules it imports. The other ones: see WorkerContext.
    """

    argv: tuple[str, ...]
    run_id: str
    node_name: str
    run: RunSettings
    agent_path: str
    agent_secret: str
    base: dict[str, str]
    scratch: Path | None
    stdin: int | None = None
    role: str = ROLE
    virtual_local_rank: bool = False
    sees_own_device: bool = False
    interface: str = ""
    is_interface_wanted: bool = False
    cpus: tuple[frozenset[int], ...] = ()
    watched: Path | None = None

    def __repr__(self) -> str:
        return repr_without(self, "agent_secret", "base")


class RoundWorkers:
    """The workers of one round on this node. `exits` is called whenever one has ended.

    `kept`: None if no worker stays for another round; else the local ranks of those of the `last`
    round that go on.
    """

    def __init__(
        self,
        found: Round,
        assignment: Assignment,
        *,
        exits: Callable[[WorkerExit], None],
        output: Output,
        system: System,
        forks: Forks | None = None,
        last: RoundWorkers | None = None,
        kept: Sequence[int] | None = None,
    ) -> None:
        self.found = found
        self._assignment = assignment
        self._output = output
        self._system = system
        specs = [self._spec(index) for index in range(found.seat.workers)]
        output.begin_round(self.number, {each: specs[each].rank for each in kept or ()})
        self._kept = kept or ()
        self._last = {} if last is None else {each: last.env(each) for each in self._kept}
        self._each: EachWorker | None = None
        if kept is not None:
            self._each = EachWorker(
                specs,
                exits,
                lambda spec, exits: system.workers([spec], exits, forks),
                last._each if last is not None else None,
                kept,
            )
        self.group: Workers = self._each or system.workers(specs, exits, forks)
        self._specs: list[WorkerSpec] = specs

    @property
    def number(self) -> int:
        """The round's number."""
        return self.found.head.number

    async def stop(
        self,
        grace_s: float,
        first_signal: int = signal.SIGTERM,
        ending: Sequence[int] = (),
        kept: Sequence[int] = (),
    ) -> tuple[int, ...]:
        """See WorkerGroup.stop. `kept`: the local ranks of workers that are left alone."""
        if self._each is not None:
            return await self._each.stop(grace_s, first_signal, ending, kept)
        return await self.group.stop(grace_s, first_signal, ending)

    def env(self, local_rank: int) -> Mapping[str, str]:
        """The environment of this worker in this round."""
        return self._specs[local_rank].env

    @property
    def news(self) -> dict[int, dict[str, str]]:
        """What changes in the environment of the workers that were kept, by their local ranks."""
        return {
            each: changing_variables(self._specs[each].env, self._last[each]) for each in self._kept
        }

    # -- failures ------------------------------------------------------------------------------

    def exit_by_error(self, local_rank: int, pid: int) -> WorkerExit:
        """How a process ends whose program an exception has left."""
        rank = self._specs[local_rank].rank
        code = UNCAUGHT_ERROR
        return WorkerExit(
            local_rank=local_rank, rank=rank, pid=pid, returncode=code, signal=None, oom=False
        )

    async def failures_of(self, exits: Sequence[WorkerExit]) -> tuple[Failure, ...]:
        """Why these workers have failed. Takes at most 2 x DRAIN_S."""
        return tuple(await asyncio.gather(*map(self._failure, exits)))

    async def _failure(self, exit: WorkerExit) -> Failure:
        await self._output.drain(DRAIN_S, exit.local_rank)
        lines = self._output.last_lines(exit.local_rank)
        return failures.classify(exit, lines, await self._error_text(exit.local_rank))

    async def _error_text(self, local_rank: int) -> str | None:
        path = self._error_file(local_rank)
        if path is None:
            return None
        with contextlib.suppress(OSError, TimeoutError):
            async with asyncio.timeout(DRAIN_S):
                return await self._system.read_text(path)
        return None

    # -- start ---------------------------------------------------------------------------------

    def _spec(self, index: int) -> WorkerSpec:
        given, head, seat = self._assignment, self.found.head, self.found.seat
        limit, error_file = given.run.max_restarts, self._error_file(index)
        context = WorkerContext(
            run_id=given.run_id,
            rank=seat.first_rank + index,
            local_rank=index,
            world_size=head.size,
            local_world_size=seat.workers,
            node_rank=seat.node_rank,
            nodes=head.nodes,
            restart_count=head.restart_count,
            max_restarts=NO_LIMIT if limit is None else limit,
            master_addr=head.bootstrap.host,
            master_port=head.bootstrap.port,
            node_name=given.node_name,
            term=head.term,
            round_number=head.number,
            min_nodes=given.run.min_nodes,
            max_nodes=given.run.max_nodes,
            agent_path=given.agent_path,
            agent_secret=given.agent_secret,
            error_file=str(error_file) if error_file is not None else None,
            role=given.role,
            virtual_local_rank=given.virtual_local_rank,
            sees_own_device=given.sees_own_device,
            interface=given.interface,
            is_interface_wanted=given.is_interface_wanted,
        )
        env = worker_environment(context, given.base)
        if index == 0 and given.watched is not None:
            env = preloader.watched_environment(env, given.watched)
        return WorkerSpec(
            argv=given.argv,
            env=env,
            cwd=None,
            local_rank=index,
            rank=context.rank,
            has_stdin=index == given.stdin,
            cpus=given.cpus[index] if given.cpus else None,
        )

    def _error_file(self, local_rank: int) -> Path | None:
        scratch = self._assignment.scratch
        return scratch / f"error-{self.number}-{local_rank}.json" if scratch is not None else None
