"""What happens to a run: facts in the past tense, and requests. The input of `Membership.step`.

Every event about a node names its incarnation: what an earlier life of the node did no longer
counts. Time is not in the events but beside them, as `step`'s `now_s`.
"""

from __future__ import annotations

from rallypoint.core.effects import Timer
from rallypoint.core.suspension import SuspensionCause
from rallypoint.core.values import (
    Address,
    Change,
    ConnectionEnd,
    Failure,
    FrozenStruct,
    NodeId,
    NodeInfo,
    Outcome,
    RunSettings,
)


class Event(FrozenStruct, frozen=True):
    """Base of all events."""


class SignOfLife(Event, frozen=True):
    """What only a living node can say, so that each is an answer to every probe.

    (A NodeLeft is too, but nobody needs to know any more.)
    """

    node: NodeId


class NodeAttached(Event, frozen=True):
    """A node's connection `link` presented itself, for the first time or again.

    `settings` are what the node was started with; the first node's become the run's.
    `secret_hash`: of the resume secret that it showed; empty if it showed none.
    """

    node: NodeInfo
    settings: RunSettings
    connection_id: int
    secret_hash: bytes = b""


class NodeReady(SignOfLife, frozen=True):
    """A node wants the next round, and leaves `leaving_round` for it (0: it has had none).

    R4: a repeat of this names an older round than the one it is in, and so breaks nothing.
    `change`: why that round ended, if the node was told; a coordinator that has just taken the run
    over was not.
    """

    leaving_round: int
    bootstrap: Address
    workers: int
    change: Change | None = None


class WorkerFailed(SignOfLife, frozen=True):
    """A worker of the node, in this round, failed."""

    round: int
    failure: Failure


class NodeDone(SignOfLife, frozen=True):
    """The node's workers, in this round, have all finished."""

    round: int


class NodeDeparting(SignOfLife, frozen=True):
    """The node asked to leave, and is stopping its workers."""

    reason: str


class NodeLeft(Event, frozen=True):
    """The node said goodbye: nothing of it runs any more."""

    node: NodeId
    reason: str


class CloseRequested(Event, frozen=True):
    """Somebody wants the run to end for all."""

    by: str
    outcome: Outcome
    reason: str


class ProbeAnswered(SignOfLife, frozen=True):
    """The node answered a probe."""


class ConnectionLost(Event, frozen=True):
    """The node's connection `link` closed without a goodbye, whoever closed it."""

    node: NodeId
    connection_id: int
    how: ConnectionEnd = ConnectionEnd.UNKNOWN


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
    """The ledger holds the record that was last given to it."""


class Noted(Event, frozen=True):
    """The ledger holds the marks that Note gave to it with this serial number."""

    serial: int


class CommitRefused(Event, frozen=True):
    """This coordinator has been deposed: the run's register has, or may have, a higher term.

    `is_own_wish`: it has given the run up by itself, as one does that is going.
    """

    reason: str
    is_own_wish: bool = False


class LedgerLost(Event, frozen=True):
    """The ledger cannot be reached, or does not take what must be written.

    `away_s`: for how long it has not answered, in seconds; None if it answers. `cause`: who says
    so. Whoever posts this with a cause posts LedgerRestored with the same cause later.
    """

    reason: str
    away_s: float | None = None
    cause: SuspensionCause = SuspensionCause.LEASE


class LedgerRestored(Event, frozen=True):
    """What LedgerLost with the same cause said is over; another cause may still apply."""

    cause: SuspensionCause = SuspensionCause.LEASE


class StoreLost(Event, frozen=True):
    """The store of this round is gone from the ledger, so its members cannot go on with it."""

    round: int
    reason: str


EVENTS: tuple[type[Event], ...] = (
    NodeAttached,
    NodeReady,
    WorkerFailed,
    NodeDone,
    NodeDeparting,
    NodeLeft,
    CloseRequested,
    ProbeAnswered,
    ConnectionLost,
    NodeSilent,
    NodeHeard,
    TimerFired,
    Committed,
    Noted,
    CommitRefused,
    LedgerLost,
    LedgerRestored,
    StoreLost,
)
"""All of them, in the order in which docs/protocol.md lists them."""
