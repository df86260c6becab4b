"""The messages between nodes and coordinator, and how they become bytes.

They are tagged structs in msgpack, encoded as arrays: small and typed. Bytes that cannot be decoded
are refused with a reason. Every message has a stamp (ledger_id, term, round), by which its receiver
recognises a message that is older than what it has seen. A field may be added only at the end and
with a default, so that a coordinator of version N understands nodes of N - 1
(docs/compatibility.md).

This file must not send messages.
"""

from __future__ import annotations

from typing import Annotated, Final, TypeAlias

import msgspec

from rallypoint.core.effects import Standing
from rallypoint.core.progress import Progress
from rallypoint.core.reasons import Refusal, RefusalCode, Waiting
from rallypoint.core.stacks import Stacks
from rallypoint.core.store import LIMIT, StoreFailure, StoreOp, StoreResult
from rallypoint.core.values import (
    Address,
    Change,
    CloseRecord,
    Count,
    Drain,
    EndedOwner,
    Failure,
    FrozenStruct,
    HostReport,
    Name,
    NodeInfo,
    Outcome,
    RoundHead,
    RoundMember,
    RunSettings,
    Seat,
    Secret,
    Stamp,
    Text,
)
from rallypoint.errors import UsageError

VERSION: Final = 1
"""The wire version that this release uses."""
VERSION_MIN: Final = 1
"""The oldest wire version that it accepts: VERSION - 1, once that exists."""

MESSAGE_BYTES_MAX: Final = 8 * 1024**2
"""The longest message of a node. A longer one ends the connection."""
CALL_BYTES_MAX: Final = MESSAGE_BYTES_MAX - 64 * 1024
"""The longest call of the store. The rest of a message is for its other fields."""
ANSWER_BYTES_MAX: Final = 80 * 1024**2
"""The longest message of a coordinator (the answer to a multi_get, or a member table)."""

WATCHED_MAX: Final = 64
"""The most addresses of one `WatchHosts`. Mostly there are three."""

ATTACH_PATH: Final = "/v1/attach"
"""The path of a coordinator's WebSocket."""


class Message(FrozenStruct, frozen=True):
    """Base of all messages. `stamp`: the ledger, term and round of the sender."""

    stamp: Stamp


# -- from a node ---------------------------------------------------------------------------------


class Attach(Message, frozen=True, tag="attach"):
    """The first message of a connection: which node this is, and which run it joins.

    `reads_ledger`: the node can read the ledger and find another coordinator by itself. So a
    coordinator that has lost its ledger need not redirect it.
    `source`: the address and port of the node's socket, as the node sees them. If the coordinator
    sees others, something between the two may close the connection by itself.
    `resume_secret`: drawn by the node for this membership, and the same each time it attaches. Only
    a node with the secret of the first time is the same member. Empty: the node's release has none.
    `ended`: the run's owner, if it has ended as far as the node has seen.
    `takes_orders`: the node understands `AskedToLeave`, and that it can be evicted.
    `tells_stacks`: the node understands `AskStacks`.
    `is_witness`: the node understands `WatchHosts` and `AskWitness`.
    `agrees`: the node understands `Drains` and `StopAt`.
    """

    version: int
    run_id: Name
    node: NodeInfo
    settings: RunSettings
    software: Text = ""
    reads_ledger: bool = False
    source: Address | None = None
    resume_secret: Secret = b""
    ended: EndedOwner | None = None
    takes_orders: bool = False
    tells_stacks: bool = False
    is_witness: bool = False
    agrees: bool = False

    def __repr__(self) -> str:
        return f"Attach({self.stamp}, {self.run_id!r}, {self.node}, version={self.version})"


class Ready(Message, frozen=True, tag="ready"):
    """The node asks for the next round, and leaves `leaving_round` for it (R4).

    `change`: why that round ended, if an earlier coordinator has said so to the node. `unfit`: why
    the node's own check failed; "" if it did not. It is only sent to a coordinator that knows it.
    """

    leaving_round: int
    bootstrap: Address
    workers: Count
    change: Change | None = None
    unfit: Text = ""


class Failed(Message, frozen=True, tag="failed"):
    """A worker of the node failed."""

    round: int
    failure: Failure


class Done(Message, frozen=True, tag="done"):
    """All workers of the node have finished."""

    round: int


class Departing(Message, frozen=True, tag="depart"):
    """The node was asked to leave, and stops its workers."""

    reason: Text


class TakesPart(Message, frozen=True, tag="part"):
    """Each worker of the node asks at each step of this round whether it should stop (R14).

    This and the next two are only sent to a coordinator that `agrees`, as its `Welcome` says.
    """

    round: int


class Draining(Message, frozen=True, tag="drain"):
    """The node is going to leave this round, in `left_s` at the latest. Its workers go on."""

    round: int
    reason: Text
    left_s: Annotated[float, msgspec.Meta(ge=0, le=31_536_000)]


class Promise(Message, frozen=True, tag="promise"):
    """No worker of the node passes a later step of this round before the decision (R14)."""

    round: int
    step: Annotated[int, msgspec.Meta(ge=0, lt=2**62)]


class Goodbye(Message, frozen=True, tag="bye"):
    """The node has stopped its workers and leaves."""

    reason: Text


class CloseRun(Message, frozen=True, tag="close"):
    """Close the run for all nodes."""

    outcome: Outcome
    reason: Text


class Heartbeat(Message, frozen=True, tag="hb"):
    """The node is alive. Answered by `Beat`.

    `progress`: how far its workers are, if they have advanced since the last one on this
    connection.
    """

    progress: Progress | None = None


class Alive(Message, frozen=True, tag="alive"):
    """The answer to a `Probe`."""


class Witnessed(Message, frozen=True, tag="witnessed"):
    """The answer to `AskWitness`: whether the host still answers."""

    question: int
    report: HostReport


class StoreCall(Message, frozen=True, tag="call"):
    """A call of the round's store. A repeat with the same `request_id` is not applied again (R11).

    `acknowledged`: the node has the answers to all requests up to this id, except `still_open`; the
    coordinator need not remember them. `timeout_s` None: the call has no deadline.
    """

    request_id: int
    op: StoreOp
    timeout_s: float | None = None
    acknowledged: int = 0
    still_open: Annotated[tuple[int, ...], msgspec.Meta(max_length=20_000)] = ()


class StoreCancel(Message, frozen=True, tag="cancel"):
    """Withdraw a call of the store: nobody waits for its answer any more."""

    request_id: int


class AskMembers(Message, frozen=True, tag="members?"):
    """Ask for the member table of the round. Answered by `Members`."""

    request_id: int


class AskWaiting(Message, frozen=True, tag="waiting?"):
    """Ask why there is no round yet. Answered by `WaitingIs`."""

    request_id: int


class StacksTold(Message, frozen=True, tag="stacks"):
    """The answer to an `AskStacks`: where the node's workers stand.

    `progress`: how far they are, also if that was sent before; None if nothing is known.
    """

    request_id: int
    stacks: Stacks = ()
    progress: Progress | None = None


FromNode: TypeAlias = (
    Attach
    | Ready
    | Failed
    | Done
    | Departing
    | TakesPart
    | Draining
    | Promise
    | Goodbye
    | CloseRun
    | Heartbeat
    | Alive
    | Witnessed
    | StoreCall
    | StoreCancel
    | AskMembers
    | AskWaiting
    | StacksTold
)


# -- from a coordinator --------------------------------------------------------------------------


class Welcome(Message, frozen=True, tag="welcome"):
    """The node is attached. From now on both sides use wire version `version`.

    `heartbeat_s`: the time between two heartbeats of the node, in seconds. `in_memory`: the run is
    in the memory of the coordinator's process, and is lost with it. `lease_ttl_s`: the ttl of the
    coordinator's lease, in seconds; 0 if it has none, or is of a release that does not send it.
    `nodes_max`: how many nodes a round has at most; 0 from a release that does not tell it.
    `agrees`: the coordinator understands `TakesPart`, `Draining` and `Promise`.
    `takes_unfit`: it keeps a node out whose check fails. A node that is unfit does not ask another
    coordinator for a round.
    """

    version: int
    heartbeat_s: float
    standing: Standing
    software: str = ""
    in_memory: bool = False
    lease_ttl_s: Annotated[float, msgspec.Meta(ge=0, le=31_536_000)] = 0.0
    nodes_max: Annotated[int, msgspec.Meta(ge=0)] = 0
    agrees: bool = False
    takes_unfit: bool = False


class Refused(Message, frozen=True, tag="refused"):
    """The node is not attached, or not any more. The connection closes."""

    refusal: Refusal


class Formed(Message, frozen=True, tag="formed"):
    """A round was formed, and this is the node's seat in it."""

    head: RoundHead
    seat: Seat


class EncodedFormed(Message, frozen=True, tag="formed"):
    """`Formed` with its head already encoded, for a sender that sends it to all members."""

    head: msgspec.Raw
    seat: Seat


class Broken(Message, frozen=True, tag="broken"):
    """The round has ended."""

    change: Change


class CauseFound(Message, frozen=True, tag="cause"):
    """Why a round ended, found after it was reported as `Broken`."""

    change: Change


class Closed(Message, frozen=True, tag="closed"):
    """The run has ended."""

    close: CloseRecord


class Standby(Message, frozen=True, tag="standby"):
    """The round is active without this node, which joins when a place is free.

    `nodes_max`: how many nodes a round has at most; 0 from a release that does not tell it.
    `reason`: why the node stays out, and for how long; "" if it does not.
    """

    standby: bool
    nodes_max: Annotated[int, msgspec.Meta(ge=0)] = 0
    reason: Text = ""


class AskedToLeave(Message, frozen=True, tag="leave"):
    """An operator asks the node to leave in order, as at SIGTERM. It answers with `Departing`.

    It is only sent to a node that takes orders, and again each time that the node attaches.
    """

    by: str
    reason: str


class Drains(Message, frozen=True, tag="drains"):
    """Nodes of this round are going to leave it; the round goes on until then.

    If `drain.is_asked`, the node answers with `Promise`. This and `StopAt` are only sent to a node
    that `agrees`, and again each time that it attaches.
    """

    round: int
    drain: Drain


class StopAt(Message, frozen=True, tag="stop"):
    """All workers of this round stop at this step: no worker has passed it (R14)."""

    round: int
    step: int


class Probe(Message, frozen=True, tag="probe"):
    """Ask whether the node is alive. Answered by `Alive`."""


class AskStacks(Message, frozen=True, tag="stacks?"):
    """Ask where the node's workers stand. Answered by `StacksTold`, soon.

    It is only sent to a node that tells stacks. `bytes_max`: the most bytes of all texts.
    """

    request_id: int
    bytes_max: Annotated[int, msgspec.Meta(ge=0)]


class WatchHosts(Message, frozen=True, tag="watch"):
    """Connect once to these addresses of other members, and remember which of them answered.

    A refused connection is an answer, too. It is only sent to a node that is a witness.
    """

    addresses: Annotated[tuple[Address, ...], msgspec.Meta(max_length=WATCHED_MAX)]


class AskWitness(Message, frozen=True, tag="witness?"):
    """Ask whether this host, which has answered the node before, still does.

    Answered by `Witnessed`. It is only sent to a node that is a witness.
    """

    question: int
    host: Name


class Beat(Message, frozen=True, tag="beat"):
    """The answer to a heartbeat. `beat` increases while the coordinator renews its lease."""

    beat: int


class StoreAnswer(Message, frozen=True, tag="answer"):
    """The result of a store call."""

    request_id: int
    result: StoreResult


class Members(Message, frozen=True, tag="members"):
    """The member table, in node-rank order; `digest` is the one in the round's head (R2).

    Only members of the round get it; others get an empty one, without a digest. All incarnations in
    it are 0.
    """

    request_id: int
    round: int
    digest: str
    members: tuple[RoundMember, ...]


class EncodedMembers(Message, frozen=True, tag="members"):
    """`Members` with its table already encoded, for a sender that sends it to many."""

    request_id: int
    round: int
    digest: str
    members: msgspec.Raw


class WaitingIs(Message, frozen=True, tag="waiting"):
    """Why there is no round yet; `waiting` is None if there is one."""

    request_id: int
    waiting: Waiting | None


FromCoordinator: TypeAlias = (
    Welcome
    | Refused
    | Formed
    | Broken
    | CauseFound
    | Closed
    | Standby
    | AskedToLeave
    | Drains
    | StopAt
    | Probe
    | WatchHosts
    | AskWitness
    | Beat
    | StoreAnswer
    | Members
    | WaitingIs
    | AskStacks
)


# -- bytes ---------------------------------------------------------------------------------------


class MalformedError(Exception):
    """Bytes that are not a message. `refusal` is for their sender."""

    def __init__(self, why: str) -> None:
        super().__init__(why)
        self.refusal = Refusal(
            RefusalCode.MALFORMED,
            f"this is not a message of the Rallypoint protocol: {why}",
            hint="check that both sides run a current rallypoint, and that no other program "
            "connects here",
        )


UNDECODABLE: Final = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)
"""What msgspec raises for bytes that it cannot decode."""

_encoder = msgspec.msgpack.Encoder()
_from_node: msgspec.msgpack.Decoder[FromNode] = msgspec.msgpack.Decoder(FromNode)
_from_coordinator: msgspec.msgpack.Decoder[FromCoordinator] = msgspec.msgpack.Decoder(
    FromCoordinator
)
_op: msgspec.msgpack.Decoder[StoreOp] = msgspec.msgpack.Decoder(StoreOp)


def encode(message: Message) -> bytes:
    """The bytes of a message."""
    return _encoder.encode(message)


def decode_from_node(data: bytes) -> FromNode:
    """A node's message. Raises MalformedError."""
    if len(data) > MESSAGE_BYTES_MAX:
        raise _too_long(len(data), MESSAGE_BYTES_MAX)
    try:
        return _from_node.decode(data)
    except UNDECODABLE as error:
        raise MalformedError(str(error)) from error


def decode_from_coordinator(data: bytes) -> FromCoordinator:
    """A coordinator's message. Raises MalformedError."""
    if len(data) > ANSWER_BYTES_MAX:
        raise _too_long(len(data), ANSWER_BYTES_MAX)
    try:
        return _from_coordinator.decode(data)
    except UNDECODABLE as error:
        raise MalformedError(str(error)) from error


def _too_long(size: int, bytes_max: int) -> MalformedError:
    return MalformedError(f"it has {size} bytes; at most {bytes_max} are allowed")


def check_call(op: StoreOp) -> StoreFailure | None:
    """Check that a coordinator can decode this call. If it could not, the node would be removed.

    Returns the failure of a call that is too large for a message, else None.

    Raises:
        UsageError: a value has the wrong type, or a text is not valid Unicode.
    """
    try:
        body = _encoder.encode(op)
        _op.decode(body)
    except (*UNDECODABLE, UnicodeEncodeError, OverflowError, TypeError) as error:
        raise UsageError(f"this is not a valid call of a store: {error}") from error
    if len(body) > CALL_BYTES_MAX:
        message = f"a call may have at most {CALL_BYTES_MAX} bytes, and this one has {len(body)}"
        return StoreFailure(LIMIT, message)
    return None


_ACCEPTS: Final = "the coordinator accepts "
UPDATE_HINT: Final = "nodes and coordinator may be at most one release apart: update the older one"


def version_refusal(version: int) -> Refusal | None:
    """Why a node with this wire version is refused; None if it is not."""
    if VERSION_MIN <= version <= VERSION:
        return None
    accepted = str(VERSION) if VERSION_MIN == VERSION else f"{VERSION_MIN} to {VERSION}"
    return Refusal(
        RefusalCode.VERSION,
        f"this node uses wire version {version}; {_ACCEPTS}{accepted}",
        hint=UPDATE_HINT,
    )


def accepted_versions(message: FromCoordinator | None) -> range | None:
    """The wire versions that a coordinator accepts, from the refusal above; None if unknown."""
    if not isinstance(message, Refused) or message.refusal.code is not RefusalCode.VERSION:
        return None
    numbers = message.refusal.message.partition(_ACCEPTS)[2].split(" to ")
    if not all(each.isascii() and each.isdigit() and len(each) < 9 for each in numbers):
        return None
    return range(int(numbers[0]), int(numbers[-1]) + 1)
