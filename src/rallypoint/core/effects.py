"""What a run wants done: imperatives, executed by the coordinator. The output of `Membership.step`.

An effect never grows with the number of nodes: `Publish` and `Announce` name their audience, and
whoever executes them goes through it once.
"""

from __future__ import annotations

import enum

from rallypoint.core.reasons import Refusal
from rallypoint.core.values import Change, CloseRecord, FrozenStruct, Marks, NodeId, RoundRecord


class TimerKind(enum.StrEnum):
    """What a timer is for."""

    LAST_CALL = "last_call"
    STOP = "stop"
    SETTLE = "settle"
    SCALE_UP = "scale_up"
    GRACE = "grace"
    LOST = "lost"
    PROBE = "probe"
    CASE = "case"
    NAME = "name"
    MASS = "mass"
    ATTACH = "attach"
    NOTE = "note"
    BURST = "burst"
    PACE = "pace"


class Timer(FrozenStruct, frozen=True):
    """A timer: `serial` tells it from earlier ones of its kind, so that a stale one is ignored."""

    kind: TimerKind
    serial: int
    name: str = ""
    round: int = 0


class Effect(FrozenStruct, frozen=True):
    """Base of all effects."""


class SetTimer(Effect, frozen=True):
    """Bring `timer` back as `TimerFired` after `delay_s`."""

    timer: Timer
    delay_s: float


class Welcome(Effect, frozen=True):
    """Let the node on connection `link` in. `resumed`: it is a member already."""

    connection_id: int
    node: NodeId
    resumed: bool
    standing: Standing


class Standing(FrozenStruct, frozen=True):
    """Where a node stands when it attaches, so that both sides agree again after a break.

    `round` is the round that it is in (0: none). `change` is why the last round that the run knows
    it to have been in ended, if it did.
    """

    round: int = 0
    change: Change | None = None
    ready: bool = False
    standby: bool = False


class Refuse(Effect, frozen=True):
    """Refuse the node on connection `link`, and close the connection."""

    connection_id: int
    refusal: Refusal


class Supersede(Effect, frozen=True):
    """Tell this incarnation, if it can still be told, that another has taken its place."""

    node: NodeId
    refusal: Refusal


class Commit(Effect, frozen=True):
    """Write the record to the ledger, and bring back Committed, CommitRefused or LedgerLost."""

    record: RoundRecord | CloseRecord


class Note(Effect, frozen=True):
    """Write what has become known of the round's members to the ledger, and bring back Noted.

    One at a time, and never beside a Commit. `restarts`: how many rounds have been charged by now.
    """

    serial: int
    marks: Marks
    restarts: int


class Dismiss(Effect, frozen=True):
    """The node said goodbye, and the ledger knows what a successor must know of it: end `link`."""

    connection_id: int
    reason: str


class Publish(Effect, frozen=True):
    """Give every member of the round its seat; its store opens."""

    record: RoundRecord


class Break(Effect, frozen=True):
    """Tell every member of the round that it has ended, and why; its store ends."""

    change: Change


class Verdict(Effect, frozen=True):
    """Tell every member of the ended round what its cause turned out to be."""

    change: Change


class Announce(Effect, frozen=True):
    """Tell everybody attached that the run has ended."""

    close: CloseRecord


class ProbeRound(Effect, frozen=True):
    """Ask every member of the last round to answer."""

    round: int


class ProbeNode(Effect, frozen=True):
    """Ask one node to answer."""

    node: NodeId


class Notify(Effect, frozen=True):
    """Tell one node how it is placed while it waits."""

    node: NodeId
    standby: bool


class Forget(Effect, frozen=True):
    """The node is no member any more: its requests can go.

    Its connection can go, too, unless `keeps_connection`: then a Dismiss follows. `loss`: it was
    lost, and that broke no round: none was on, or it was not in it. Else None.
    """

    node: NodeId
    reason: str
    keeps_connection: bool = False
    loss: Change | None = None


class StepDown(Effect, frozen=True):
    """Stop deciding for this run: a higher term has begun, or may begin by this one's own wish."""

    reason: str
    is_own_wish: bool = False
