"""What happens to an agent: the input of its machine (machine.py)."""

from __future__ import annotations

from typing import TypeAlias

import msgspec

from rallypoint.client.node import Round
from rallypoint.client.reaching import Unreached
from rallypoint.core.addresses import OwnAddress
from rallypoint.core.values import Address, Change, CloseRecord, Failure, Outcome
from rallypoint.errors import CoordinatorError, WorkerStartError
from rallypoint.launch.worker_processes import WorkerExit

# -- work that an action began has ended ---------------------------------------------------------


class Prepared(msgspec.Struct, frozen=True):
    """The agent's files and folders are ready."""


class Joined(msgspec.Struct, frozen=True):
    """The node is attached to the run, and the local socket is open."""


class CheckPassed(msgspec.Struct, frozen=True):
    """The check says that this node is fit for a round."""


class CheckFailed(msgspec.Struct, frozen=True):
    """The check has failed, or has not ended in time. `reason`: its last line."""

    reason: str


class RoundFound(msgspec.Struct, frozen=True):
    """This node has a seat in a round."""

    found: Round


class NoRound(msgspec.Struct, frozen=True):
    """The run was closed before there was another round with this node."""


class Started(msgspec.Struct, frozen=True):
    """The start of the workers has ended. `running`: their local ranks; none if it was given up."""

    running: tuple[int, ...]


class StartFailed(msgspec.Struct, frozen=True):
    """No worker runs, because one could not be started."""

    error: WorkerStartError


class FailuresFound(msgspec.Struct, frozen=True):
    """Why the workers failed whose exits FindFailures had, in the order of the exits."""

    failures: tuple[Failure, ...]


class Stopped(msgspec.Struct, frozen=True):
    """The workers have ended, but those that are kept.

    `left`: the local ranks of those that cannot be killed.
    """

    left: tuple[int, ...]


class Failed(msgspec.Struct, frozen=True):
    """Work that an action began has raised this."""

    error: Exception


class LetGo(msgspec.Struct, frozen=True):
    """No worker runs any more, and the local socket is closed. The node may leave the run."""


class NodeClosed(msgspec.Struct, frozen=True):
    """The node has left the run, with the coordinator that it hosts."""


# -- news ----------------------------------------------------------------------------------------


class WorkerExited(msgspec.Struct, frozen=True):
    """A worker of this round has ended, by itself or because it was stopped."""

    exit: WorkerExit


class RoundEnded(msgspec.Struct, frozen=True):
    """The node's round has ended, or the cause of its end is known."""

    change: Change


class RunClosed(msgspec.Struct, frozen=True):
    """The run has ended. `own`: the address where others reach this node, if known."""

    close: CloseRecord
    own: OwnAddress | None = None


class Gone(msgspec.Struct, frozen=True):
    """The coordinator is lost for good, or has refused this node.

    `orphan_left_s`: in how many seconds the workers are stopped for that; None: never.
    """

    error: CoordinatorError
    orphan_left_s: float | None = None


class Signalled(msgspec.Struct, frozen=True):
    """The agent has got a signal that asks it to stop.

    `left_s`: in how many seconds the launcher ends the job, if that is known. `can_agree`: the
    workers take part in agreements on a last step (R14).
    """

    number: int
    left_s: float | None = None
    can_agree: bool = False


class Rank0Dialled(msgspec.Struct, frozen=True):
    """Rank 0's address was dialled. `unreached`: why it was not reached, if so.

    `walled`: a port of the kernel's that was not reached there, although rank 0's own was.
    """

    address: Address
    unreached: Unreached | None
    walled: Unreached | None = None


class CheckRepeated(msgspec.Struct, frozen=True):
    """The repeated check has ended. `unfit`: why it failed; "": it has passed."""

    unfit: str


class RegroupAsked(msgspec.Struct, frozen=True):
    """A worker asks for the next round."""


class WorkerJoined(msgspec.Struct, frozen=True):
    """A worker has called `join`."""

    local_rank: int


class WorkerParted(msgspec.Struct, frozen=True):
    """The last connection of a worker has ended."""

    local_rank: int


class WorldAsked(msgspec.Struct, frozen=True):
    """A worker has left this round, and waits in its process for the next one."""

    local_rank: int
    round: int


class WorkerRaised(msgspec.Struct, frozen=True):
    """The block of a worker's world has ended with an error. Its process waits for the cause."""

    local_rank: int
    failure: Failure


class WorkerFails(msgspec.Struct, frozen=True):
    """An exception has left the program of a worker, whose process still has to end.

    `exit`: how it will end. `failure`: why, as far as can be seen.
    """

    round: int
    exit: WorkerExit
    failure: Failure


class LeaveAsked(msgspec.Struct, frozen=True):
    """A worker asks that its node leaves the run."""

    reason: str


class Drained(msgspec.Struct, frozen=True):
    """An operator asks that this node leaves the run. `reason`: who, and why.

    `can_agree`: see Signalled. `is_notice`: not an operator, but a notice that the machine will be
    taken away, so the node need not leave before its time is over.
    """

    reason: str
    can_agree: bool = False
    is_notice: bool = False


class DrainTold(msgspec.Struct, frozen=True):
    """Nodes of the round drain. `is_asked`: all its workers take part in the agreement (R14).

    `all_go_on`: they do not, as they were told to go on after an earlier one.
    """

    is_asked: bool
    all_go_on: bool = False


class Yielded(msgspec.Struct, frozen=True):
    """A worker was told to stop at a step. If it ends with success now, it has not finished."""

    local_rank: int


class CloseAsked(msgspec.Struct, frozen=True):
    """A worker asks that the run ends for all."""

    outcome: Outcome
    reason: str


class CloseFailed(msgspec.Struct, frozen=True):
    """The coordinator has not confirmed the close that a worker asked for."""

    message: str


# -- the preloader -------------------------------------------------------------------------------


class Problem(msgspec.Struct, frozen=True):
    """Why modules cannot be preloaded.

    `modules`: those concerned; none: it is not known which. `detail`: a traceback, or "".
    """

    modules: tuple[str, ...]
    why: str
    detail: str = ""


class PreloadReady(msgspec.Struct, frozen=True):
    """The preloader can fork workers.

    `modules`: how many are loaded. `took_s`: how long their imports took, in seconds.
    """

    modules: int
    took_s: float
    memory_bytes: int


class PreloadRefused(msgspec.Struct, frozen=True):
    """The preloader has ended, because its forks would not be like cold workers, or not safe."""

    problems: tuple[Problem, ...]


class PreloaderEnded(msgspec.Struct, frozen=True):
    """The preloader has ended by itself, or could not be started."""

    why: str


class ModulesRead(msgspec.Struct, frozen=True):
    """The modules that the watched worker has imported, in the order of their imports."""

    modules: tuple[str, ...]


PreloadEvent: TypeAlias = PreloadReady | PreloadRefused | PreloaderEnded | ModulesRead

Answer: TypeAlias = (
    Prepared
    | Joined
    | CheckPassed
    | CheckFailed
    | RoundFound
    | NoRound
    | Started
    | StartFailed
    | FailuresFound
    | Stopped
    | Failed
    | NodeClosed
)
"""The end of the work on which the agent waits. There is one such work at a time."""

Event: TypeAlias = (
    Answer
    | LetGo
    | WorkerExited
    | RoundEnded
    | RunClosed
    | Gone
    | Signalled
    | Rank0Dialled
    | CheckRepeated
    | RegroupAsked
    | WorkerJoined
    | WorkerParted
    | WorldAsked
    | WorkerRaised
    | WorkerFails
    | LeaveAsked
    | Drained
    | DrainTold
    | Yielded
    | CloseAsked
    | CloseFailed
    | PreloadEvent
)
