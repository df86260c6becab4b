"""The effects of a step: actions that the coordinator executes.

No effect grows with the number of nodes: `Publish` and `Announce` name their audience, and the
coordinator goes through it once.
"""

from __future__ import annotations

import enum

from rallypoint.core.blame import Blame
from rallypoint.core.orders import Order, Orders, Scale
from rallypoint.core.reasons import Refusal
from rallypoint.core.stacks import StackGroup
from rallypoint.core.values import (
    Address,
    Change,
    CloseRecord,
    Drain,
    FrozenStruct,
    Marks,
    NodeId,
    RoundRecord,
)


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
    MARKS = "marks"
    BURST = "burst"
    PACE = "pace"
    HANG = "hang"
    DRAIN = "drain"
    COOLDOWN = "cooldown"
    WATCH = "watch"
    WITNESS = "witness"


class Timer(FrozenStruct, frozen=True):
    """A timer. `serial` differs from that of earlier ones, so that a stale one is ignored."""

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
    """Admit the node on this connection. `resumed`: it is a member already."""

    connection_id: int
    node: NodeId
    resumed: bool
    standing: Standing


class Standing(FrozenStruct, frozen=True):
    """The state of a node when it attaches, so that both sides agree on it.

    `round`: the one that it is in (0: none). `change`: why its last round ended, if it did.
    """

    round: int = 0
    change: Change | None = None
    ready: bool = False
    standby: bool = False


class Refuse(Effect, frozen=True):
    """Refuse the node on this connection, and close the connection."""

    connection_id: int
    refusal: Refusal


class Supersede(Effect, frozen=True):
    """Tell this incarnation, if it can be reached, that a newer one has taken its place."""

    node: NodeId
    refusal: Refusal


class AskToLeave(Effect, frozen=True):
    """Ask the node to leave in order, as an operator wants. `is_repeat`: it was asked before."""

    order: Order
    is_repeat: bool = False


class Evict(Effect, frozen=True):
    """Tell this node, if it can be reached, that an operator has taken it out of the run."""

    node: NodeId
    order: Order
    refusal: Refusal


class Readmit(Effect, frozen=True):
    """An operator has lifted an eviction, which `order` names and says by whom. For people."""

    order: Order


class Rescale(Effect, frozen=True):
    """The run has another number of nodes from now on, as an operator wants. For people."""

    scale: Scale


class StayOut(Effect, frozen=True):
    """This node stays out for `left_s` seconds. For people.

    None: its own check has failed, and it stays out until it passes.
    """

    name: str
    reason: str
    left_s: float | None


class KeepStacks(Effect, frozen=True):
    """Where the workers of the round stand that ends as a hang. For people."""

    groups: tuple[StackGroup, ...]


class LetBackIn(Effect, frozen=True):
    """The node should stay out, and is in the next round: there are too few others. For people."""

    node: NodeId
    reason: str


class Forgive(Effect, frozen=True):
    """This node has stayed out for its time, or its check has passed. For people."""

    name: str


class Commit(Effect, frozen=True):
    """Write the record to the ledger, and answer with Committed, CommitRefused or LedgerLost."""

    record: RoundRecord | CloseRecord


class WriteMarks(Effect, frozen=True):
    """Write these marks to the ledger, and answer with MarksWritten.

    At most one write is open at a time, a Commit or a WriteMarks. `restarts`: how many rounds have
    been charged. `orders`: those of operators. `blame`: what the failures have cost.
    """

    serial: int
    marks: Marks
    restarts: int
    orders: Orders = Orders()
    blame: Blame = Blame()


class Dismiss(Effect, frozen=True):
    """Answer a goodbye and close the connection: the marks of the node are in the ledger."""

    connection_id: int
    reason: str


class Publish(Effect, frozen=True):
    """Give every member of the round its seat, and open the round's store."""

    record: RoundRecord


class Break(Effect, frozen=True):
    """Tell every member of the round that it has ended, and why. Close its store."""

    change: Change


class TellDrain(Effect, frozen=True):
    """Tell the members of the round that understand it who drains, or only this node (`to`)."""

    round: int
    drain: Drain
    to: NodeId | None = None


class TellStep(Effect, frozen=True):
    """Tell the members of the round the step at which all workers stop, or only this node (R14)."""

    round: int
    step: int
    to: NodeId | None = None


class Verdict(Effect, frozen=True):
    """Tell every member of the round that ended what the cause was."""

    change: Change


class Announce(Effect, frozen=True):
    """Tell all attached nodes that the run has ended."""

    close: CloseRecord


class ProbeRound(Effect, frozen=True):
    """Ask every member of the last round to answer."""

    round: int


class ProbeNode(Effect, frozen=True):
    """Ask one node to answer."""

    node: NodeId


class AskStacks(Effect, frozen=True):
    """Ask every member of the round where its workers stand. StacksTold with `serial` follows."""

    serial: int
    round: int


class Watch(Effect, frozen=True):
    """Ask a node to connect once to these addresses of other members' hosts.

    So it can say later that they answered it before. At most a few.
    """

    node: NodeId
    addresses: tuple[Address, ...]


class AskWitness(Effect, frozen=True):
    """Ask a node whether this host still answers it. `question`: the number of the question."""

    node: NodeId
    question: int
    host: str


class HostJudged(Effect, frozen=True):
    """Witnesses have said whether a host still answers. For people.

    `nodes`: the silent members on it, of which there are `count`. `lives`: whether it answered.
    `detail`: the evidence.
    """

    nodes: tuple[str, ...]
    count: int
    lives: bool
    detail: str


class Notify(Effect, frozen=True):
    """Tell one node whether it is on standby. `reason`: why it stays out; "" if it does not."""

    node: NodeId
    standby: bool
    reason: str = ""


class Forget(Effect, frozen=True):
    """The node is not a member any more: forget its requests.

    Close its connection, too, unless `keeps_connection`: then a Dismiss follows. `loss`: why the
    node was lost, if its loss ended no round (none was active, or the node was not in it); else
    None. `change`: why it is no member any more; `reason` is its text.
    """

    node: NodeId
    reason: str
    keeps_connection: bool = False
    loss: Change | None = None
    change: Change | None = None


class StepDown(Effect, frozen=True):
    """Stop deciding for this run: a higher term has begun, or may begin.

    `is_voluntary`: this coordinator gave the run up by itself.
    """

    reason: str
    is_voluntary: bool = False
