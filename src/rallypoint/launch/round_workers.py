"""The workers of one round on this node: which of them failed, and why.

worker_processes.py handles processes, agent.py the run. This file interprets exits: a worker that
ends by itself has finished or failed; a worker that the agent stopped has done neither.
"""

from __future__ import annotations

import asyncio
import contextlib
import signal
from pathlib import Path
from typing import Final

import msgspec

from rallypoint.client.node import Round
from rallypoint.core.values import Change, Failure, FailureKind, RunSettings, repr_without
from rallypoint.launch import failures
from rallypoint.launch.change_notifier import ChangeNotifier
from rallypoint.launch.guard import Guard
from rallypoint.launch.logs import LogPump
from rallypoint.launch.oom import OomCounter
from rallypoint.launch.worker_env import ROLE, WorkerContext, worker_environment
from rallypoint.launch.worker_processes import WorkerExit, WorkerGroup, WorkerSpec

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
STOPPING_SIGNALS: Final = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
NO_LIMIT: Final = 2**31 - 1
"""The value of TORCHELASTIC_MAX_RESTARTS without a limit."""

_WORST_FIRST: Final = tuple(FailureKind)


class Assignment(msgspec.Struct, frozen=True, kw_only=True):
    """What the workers of a round get besides the round.

    `scratch`: a directory of this agent for torch's error files; None if there is none. `stdin`:
    the local rank that reads the agent's standard input; None for none.
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

    def __repr__(self) -> str:
        return repr_without(self, "agent_secret", "base")


class RoundWorkers:
    """The workers of one round on this node. `failures`: the failures reported so far.

    `notifier` is notified whenever a worker ends.
    """

    def __init__(
        self,
        found: Round,
        assignment: Assignment,
        *,
        notifier: ChangeNotifier,
        pump: LogPump,
        guard: Guard,
        oom_counter: OomCounter,
    ) -> None:
        self.found = found
        self.failures: list[Failure] = []
        self.patience_ends_s = 0.0
        self._assignment = assignment
        self._notifier = notifier
        self._pump = pump
        self._exits: list[WorkerExit] = []
        self._unreported: list[WorkerExit] = []
        self._judged_from_s = 0.0
        self._is_stopping = False
        pump.begin_round(self.number)
        specs = [self._spec(index) for index in range(found.seat.workers)]
        self.group = WorkerGroup(
            specs, output=pump, exits=self._on_exit, guard=guard, oom_counter=oom_counter
        )

    @property
    def number(self) -> int:
        """The round's number."""
        return self.found.head.number

    @property
    def has_finished(self) -> bool:
        """Whether every worker has ended by itself with success."""
        ended_well = [exit for exit in self._exits if exit.returncode == 0]
        return len(ended_well) == self.found.seat.workers

    @property
    def has_unreported(self) -> bool:
        """Whether there is a failure that `new_failures` has not returned yet."""
        return bool(self._unreported)

    def _on_exit(self, exit: WorkerExit) -> None:
        if not self._is_stopping:
            self._exits.append(exit)
            if exit.returncode != 0:
                self._unreported.append(exit)
            if failures.signal_of(exit) in STOPPING_SIGNALS:
                self._judged_from_s = asyncio.get_running_loop().time() + SIGNAL_SETTLE_S
        self._notifier.notify()

    async def stop(self, grace_s: float, first_signal: int = signal.SIGTERM) -> tuple[int, ...]:
        """See WorkerGroup.stop. Workers that end from now on have neither finished nor failed."""
        self._is_stopping = True
        return await self.group.stop(grace_s, first_signal)

    def judged_in_s(self, now_s: float) -> float:
        """How long to wait before failures are judged, as a signal to this agent may follow.

        This applies to all workers, because a worker that was signalled makes its peers fail.
        """
        return max(0.0, self._judged_from_s - now_s)

    # -- failures ------------------------------------------------------------------------------

    async def new_failures(self) -> list[Failure]:
        """The failures since the last call. Takes at most 2 x DRAIN_S."""
        exits, self._unreported = self._unreported, []
        found = list(await asyncio.gather(*map(self._failure, exits)))
        self.failures += found
        return found

    async def _failure(self, exit: WorkerExit) -> Failure:
        await self._pump.drain(DRAIN_S, exit.local_rank)
        lines = self._pump.last_lines(exit.local_rank)
        failure = failures.classify(exit, lines, await self._error_text(exit.local_rank))
        early = next((each.rank for each in self._exits if each.returncode == 0), None)
        return failure if early is None else failures.after_finish(failure, early)

    async def _error_text(self, local_rank: int) -> str | None:
        path = self._error_file(local_rank)
        if path is None:
            return None
        with contextlib.suppress(OSError, TimeoutError):
            async with asyncio.timeout(DRAIN_S):
                return await asyncio.to_thread(path.read_text, "utf-8", "replace")
        return None

    def may_yet_tell_the_cause(self, change: Change | None, now_s: float) -> bool:
        """Cause before consequence: whether a running worker may soon show the cause.

        True if only a communication error is known, for less than CULPRIT_S.
        """
        known = [failure.kind for failure in self.failures]
        if change is not None:
            if change.confirmed or change.failure is None:
                return False
            known.append(change.failure.kind)
        if any(kind is not FailureKind.COMMUNICATION for kind in known):
            return False
        self.patience_ends_s = self.patience_ends_s or now_s + CULPRIT_S
        return bool(self.group.running) and now_s < self.patience_ends_s

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
        )
        env = worker_environment(context, given.base)
        return WorkerSpec(
            argv=given.argv,
            env=env,
            cwd=None,
            local_rank=index,
            rank=context.rank,
            has_stdin=index == given.stdin,
        )

    def _error_file(self, local_rank: int) -> Path | None:
        scratch = self._assignment.scratch
        return scratch / f"error-{self.number}-{local_rank}.json" if scratch is not None else None


def worst_first(found: list[Failure]) -> list[Failure]:
    """Failures in the order of their precedence as a cause, and within a kind in time order."""
    return sorted(found, key=lambda failure: _WORST_FIRST.index(failure.kind))


def outranks(failure: Failure, others: list[Failure]) -> bool:
    """Whether a failure is a more likely cause than all others."""
    rank = _WORST_FIRST.index(failure.kind)
    return all(rank < _WORST_FIRST.index(other.kind) for other in others)
