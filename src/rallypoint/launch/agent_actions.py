"""The actions of an agent's machine, which `agent.py` executes."""

from __future__ import annotations

import enum
from typing import TypeAlias

import msgspec

from rallypoint.client.node import Round
from rallypoint.core.values import Address, Change, CloseRecord, Failure, Outcome
from rallypoint.launch.worker_processes import WorkerExit


class Say(msgspec.Struct, frozen=True):
    """Write a line of the agent.

    `is_common`: the agents of all nodes write it alike. `is_trouble`: it is an error, although its
    text does not begin so.
    """

    text: str
    is_common: bool = False
    is_trouble: bool = False


class Prepare(msgspec.Struct, frozen=True):
    """Prepare the agent's files and folders. Prepared or Failed follows."""


class Join(msgspec.Struct, frozen=True):
    """Attach to the run, and open the local socket. Joined or Failed follows."""


class RunCheck(msgspec.Struct, frozen=True):
    """Run the check of this node. CheckPassed or CheckFailed follows."""


class RepeatCheck(msgspec.Struct, frozen=True):
    """The same while the node waits for a round. CheckRepeated follows."""


class GiveUpRepeat(msgspec.Struct, frozen=True):
    """Cancel the RepeatCheck that is under way: the workers need the machine."""


class TellFitness(msgspec.Struct, frozen=True):
    """Tell the coordinator why the repeated check failed; "": it has passed."""

    unfit: str


class AskRound(msgspec.Struct, frozen=True):
    """Be ready for the next round. RoundFound, NoRound or Failed follows.

    `unfit`: why the check of this node failed; "" if it did not.
    """

    unfit: str = ""


class GiveUpWait(msgspec.Struct, frozen=True):
    """Cancel the Prepare, Join, RunCheck or AskRound that is under way."""


class Start(enum.StrEnum):
    """How the workers of a round start: see warm_starts.py."""

    COLD = "cold"
    """Each is a process of its own from the beginning."""
    WATCHED = "watched"
    """Cold, and the first one tells which modules it imports."""
    WARM = "warm"
    """Forks of the preloader; cold if it has gone."""
    WHEN_READY = "when ready"
    """Warm as soon as the preloader is ready; cold if it cannot become ready."""


class StartWorkers(msgspec.Struct, frozen=True):
    """Start the workers of this round. Started or StartFailed follows.

    `kept`: the local ranks whose workers of the last round go on in this one.
    """

    found: Round
    start: Start = Start.COLD
    kept: tuple[int, ...] = ()


class StartPreloader(msgspec.Struct, frozen=True):
    """Start a preloader in place of the last one, which imports these modules in this order.

    PreloadReady, PreloadRefused or PreloaderEnded follows.
    """

    modules: tuple[str, ...]


class ReadModules(msgspec.Struct, frozen=True):
    """Read what the watched worker has told. ModulesRead follows."""


class DialRank0(msgspec.Struct, frozen=True):
    """Look whether rank 0's address can be reached. Rank0Dialled follows; nothing waits for it."""

    address: Address


class GiveUpStart(msgspec.Struct, frozen=True):
    """Cancel the start of the workers. Started follows."""


class FindFailures(msgspec.Struct, frozen=True):
    """Find out why these workers have failed. FailuresFound follows."""

    exits: tuple[WorkerExit, ...]


class StopWorkers(msgspec.Struct, frozen=True):
    """Send a signal to the workers, and SIGKILL after `grace_s` seconds. Stopped follows.

    `kept`: the local ranks of those that wait for the next world, and are left alone. `ending`:
    those that end by themselves, and get no first signal.
    """

    grace_s: float
    first_signal: int
    kept: tuple[int, ...] = ()
    ending: tuple[int, ...] = ()


class LengthenStop(msgspec.Struct, frozen=True):
    """Give the StopWorkers that is under way `grace_s` seconds from now, if it has less."""

    grace_s: float


class KillWorkers(msgspec.Struct, frozen=True):
    """End the grace of the StopWorkers that is under way."""


class ReportFailure(msgspec.Struct, frozen=True):
    """Tell the coordinator of a worker's failure. It ends the round."""

    failure: Failure


class ReportDone(msgspec.Struct, frozen=True):
    """Tell the coordinator that all workers of this node have finished."""


class Depart(msgspec.Struct, frozen=True):
    """Tell the coordinator that this node is going to leave."""

    reason: str


class Drain(msgspec.Struct, frozen=True):
    """Tell the coordinator that this node leaves its round within `left_s`, which goes on."""

    reason: str
    left_s: float


class TellDeparture(msgspec.Struct, frozen=True):
    """Tell the workers that this node is going to leave: there is no other world for them."""

    reason: str


class TellExpulsion(msgspec.Struct, frozen=True):
    """Tell the workers that the coordinator has taken this node out of the round, and why."""

    reason: str


class CloseRun(msgspec.Struct, frozen=True):
    """End the run for all. CloseFailed follows if the coordinator does not confirm it."""

    outcome: Outcome
    reason: str


class TellRoundEnded(msgspec.Struct, frozen=True):
    """Tell the workers that their round has ended, or the cause of its end."""

    change: Change


class TellRunClosed(msgspec.Struct, frozen=True):
    """Tell the workers that the run has ended."""

    close: CloseRecord


class CloseNode(msgspec.Struct, frozen=True):
    """Say goodbye and leave the run. NodeClosed follows.

    `linger`: whether a node that hosts the coordinator stays for the other nodes.
    """

    reason: str
    linger: bool


class CutLinger(msgspec.Struct, frozen=True):
    """Cancel the CloseNode that is under way. NodeClosed follows."""


Action: TypeAlias = (
    Say
    | Prepare
    | Join
    | RunCheck
    | RepeatCheck
    | GiveUpRepeat
    | TellFitness
    | AskRound
    | GiveUpWait
    | StartWorkers
    | StartPreloader
    | ReadModules
    | DialRank0
    | GiveUpStart
    | FindFailures
    | StopWorkers
    | LengthenStop
    | KillWorkers
    | ReportFailure
    | ReportDone
    | Depart
    | Drain
    | TellDeparture
    | TellExpulsion
    | CloseRun
    | TellRoundEnded
    | TellRunClosed
    | CloseNode
    | CutLinger
)
