"""The events of a run, facts and requests: the input of `Membership.step`.

Every event about a node names its incarnation, so events of an earlier start of the node are
ignored. Events have no time: `step` gets it beside them, as `now_s`.
"""

from __future__ import annotations

from rallypoint.core.effects import Timer
from rallypoint.core.orders import Scale
from rallypoint.core.progress import Progress
from rallypoint.core.stacks import Stacks
from rallypoint.core.suspension import SuspensionCause
from rallypoint.core.values import (
    Address,
    Change,
    ConnectionEnd,
    Failure,
    FrozenStruct,
    HostReport,
    NodeId,
    NodeInfo,
    Outcome,
    RunSettings,
)


class Event(FrozenStruct, frozen=True):
    """Base of all events."""


class SignOfLife(Event, frozen=True):
    """An event that only a living node can cause, so it answers every probe.

    NodeLeft is not one: no probe waits for a node that has left.
    """

    node: NodeId


class NodeAttached(Event, frozen=True):
    """A node attached with this connection, for the first time or again.

    `settings`: those that the node was started with; the first node's become the run's.
    `secret_hash`: of the resume secret that it showed; empty if it showed none. `takes_orders`: it
    can be asked to leave, and knows that it can be evicted. `address`: of its side of the
    connection, if both sides see the same; else None. `is_beside`: it is on the coordinator's
    machine. `is_witness`: it can be asked whether another member's host answers. `agrees`: it knows
    what a drain is.
    """

    node: NodeInfo
    settings: RunSettings
    connection_id: int
    secret_hash: bytes = b""
    takes_orders: bool = False
    address: Address | None = None
    is_beside: bool = False
    is_witness: bool = False
    agrees: bool = False


class NodeReady(SignOfLife, frozen=True):
    """A node asks for the next round, and leaves round `leaving_round` (0: it has had none).

    R4: a repeat names an older round than the one the node is in, and so ends nothing. `change`:
    why that round ended, if the node was told. A coordinator that has just taken over the run may
    not know it. `unfit`: why the node's own check failed; "" if it did not, or there is none.
    """

    leaving_round: int
    bootstrap: Address
    workers: int
    change: Change | None = None
    unfit: str = ""


class WorkerFailed(SignOfLife, frozen=True):
    """A worker of the node failed in this round."""

    round: int
    failure: Failure


class NodeDone(SignOfLife, frozen=True):
    """All workers of the node have finished in this round."""

    round: int


class NodeDeparting(SignOfLife, frozen=True):
    """The node is going to leave, and is stopping its workers."""

    reason: str


class NodeTakesPart(SignOfLife, frozen=True):
    """Each worker of the node asks at each step of this round whether it should stop (R14)."""

    round: int


class NodeDraining(SignOfLife, frozen=True):
    """The node is going to leave this round, in `left_s` at the latest. Its workers go on."""

    round: int
    reason: str
    left_s: float


class StepPromised(SignOfLife, frozen=True):
    """No worker of the node passes a later step of this round before the decision (R14)."""

    round: int
    step: int


class NodeLeft(Event, frozen=True):
    """The node said goodbye: none of its workers runs any more."""

    node: NodeId
    reason: str


class CloseRequested(Event, frozen=True):
    """A node or an operator asked for the end of the run. `by`: its name, or which operator."""

    by: str
    outcome: Outcome
    reason: str
    by_operator: bool = False


class DrainRequested(Event, frozen=True):
    """An operator asks that the node leaves the run in order."""

    node: NodeId
    by: str
    reason: str


class EvictRequested(Event, frozen=True):
    """An operator takes the node out of the run, and keeps every later start of its name out."""

    node: NodeId
    by: str
    reason: str


class AdmitRequested(Event, frozen=True):
    """An operator lifts the eviction of the node of this name: a start of it may join again."""

    node: NodeId
    by: str
    reason: str


class ScaleRequested(Event, frozen=True):
    """An operator changes how many nodes the run has."""

    scale: Scale


class ProbeAnswered(SignOfLife, frozen=True):
    """The node answered a probe."""


class NodeProgressed(SignOfLife, frozen=True):
    """The node has said how far its workers are in the present round."""

    progress: Progress


class StacksTold(SignOfLife, frozen=True):
    """The node has told where its workers stand, as the AskStacks of this serial number asks."""

    serial: int
    progress: Progress | None
    stacks: Stacks


class ConnectionLost(Event, frozen=True):
    """The node's connection closed without a goodbye, from either side.

    `why`: the reason of this coordinator, if it took the node's right to be here.
    """

    node: NodeId
    connection_id: int
    how: ConnectionEnd = ConnectionEnd.UNKNOWN
    why: str = ""


class BeatsMissed(Event, frozen=True):
    """Two heartbeats of the node are missing: nothing was heard from it for `silent_s`."""

    node: NodeId
    silent_s: float


class HostReported(SignOfLife, frozen=True):
    """The node was asked whether a host answers it, and says this."""

    question: int
    report: HostReport


class NodeSilent(Event, frozen=True):
    """Nothing was heard from the node for `silent_s`, which is at least `suspect_after_s`."""

    node: NodeId
    silent_s: float


class NodeHeard(SignOfLife, frozen=True):
    """A silent node was heard again."""


class TimerFired(Event, frozen=True):
    """A timer that an effect set has run out."""

    timer: Timer


class Committed(Event, frozen=True):
    """The ledger holds the record of the last Commit."""


class MarksWritten(Event, frozen=True):
    """The ledger holds the marks of the WriteMarks with this serial number."""

    serial: int


class CommitRefused(Event, frozen=True):
    """This coordinator has been deposed: the run's register has, or may have, a higher term.

    `is_voluntary`: it gave up the run by itself, because it is about to exit.
    """

    reason: str
    is_voluntary: bool = False


class LedgerLost(Event, frozen=True):
    """The ledger cannot be reached, or does not accept a write.

    `away_s`: for how long it has not answered, in seconds; None if it answers. `cause`: which part
    of the coordinator says so. That part posts LedgerRestored with the same cause later.
    """

    reason: str
    away_s: float | None = None
    cause: SuspensionCause = SuspensionCause.LEASE


class LedgerRestored(Event, frozen=True):
    """The cause of a LedgerLost is over. Another cause may still apply."""

    cause: SuspensionCause = SuspensionCause.LEASE


class StoreLost(Event, frozen=True):
    """The store of this round is gone from the ledger, so the round cannot go on."""

    round: int
    reason: str


EVENTS: tuple[type[Event], ...] = (
    NodeAttached,
    NodeReady,
    WorkerFailed,
    NodeDone,
    NodeDeparting,
    NodeTakesPart,
    NodeDraining,
    StepPromised,
    NodeLeft,
    CloseRequested,
    DrainRequested,
    EvictRequested,
    AdmitRequested,
    ScaleRequested,
    ProbeAnswered,
    NodeProgressed,
    StacksTold,
    ConnectionLost,
    BeatsMissed,
    HostReported,
    NodeSilent,
    NodeHeard,
    TimerFired,
    Committed,
    MarksWritten,
    CommitRefused,
    LedgerLost,
    LedgerRestored,
    StoreLost,
)
"""All of them, in the order in which docs/protocol.md lists them."""
