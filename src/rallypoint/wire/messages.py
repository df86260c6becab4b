"""The messages, and how they become bytes.

Tagged msgspec structs in msgpack, as arrays: small, typed, and refused with a reason when they do
not decode. Every message carries (ledger_id, term, round), so that what is older than what its
receiver has seen can be told. Fields are only ever added at the end and with a default, so that a
coordinator of version N understands nodes of N - 1 (docs/compatibility.md).

How they travel (WebSocket, a local socket, a simulated network) is not known here.
"""

from __future__ import annotations

from typing import Annotated, Final, TypeAlias

import msgspec

from rallypoint.core.effects import Standing
from rallypoint.core.reasons import Refusal, RefusalCode, Waiting
from rallypoint.core.store import LIMIT, StoreOp, StoreResult
from rallypoint.core.values import (
    Address,
    Change,
    CloseRecord,
    Count,
    Failure,
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
from rallypoint.errors import StoreError, UsageError

VERSION: Final = 1
"""The wire version that this release speaks."""
VERSION_MIN: Final = 1
"""The oldest that it still accepts: VERSION - 1, once there has been one."""

MESSAGE_BYTES_MAX: Final = 8 * 1024**2
"""No message of a node is longer; one that is closes the connection."""
CALL_BYTES_MAX: Final = MESSAGE_BYTES_MAX - 64 * 1024
"""What a call of the store may take of that: the rest is for what stands around it."""
ANSWER_BYTES_MAX: Final = 80 * 1024**2
"""No message of a coordinator is longer (a multi_get or a large member table may be large)."""

ATTACH_PATH: Final = "/v1/attach"
"""Where a coordinator takes WebSocket connections."""


class Message(msgspec.Struct, frozen=True, array_like=True):
    """Base of all messages. `stamp` is what the sender knows of ledger, term and round."""

    stamp: Stamp


# -- from a node ---------------------------------------------------------------------------------


class Attach(Message, frozen=True, tag="attach"):
    """The first message of a connection: who this is, and which run it wants to be in.

    `reads_ledger`: the node can read the ledger and find another coordinator by itself, so that
    one that has lost its ledger need not send it away.
    `source`: the address and port of this side's socket, as the node sees it. A coordinator that
    sees another one has something in between that may close the connection by itself.
    `resume_secret`: drawn by the node for this membership, and the same whenever it attaches. Only
    who shows the secret of the first time is the same member. Empty: a node of a release that has
    none.
    """

    version: int
    run_id: Name
    node: NodeInfo
    settings: RunSettings
    software: Text = ""
    reads_ledger: bool = False
    source: Address | None = None
    resume_secret: Secret = b""

    def __repr__(self) -> str:
        return f"Attach({self.stamp}, {self.run_id!r}, {self.node}, version={self.version})"


class Ready(Message, frozen=True, tag="ready"):
    """The node wants the next round and leaves `leaving_round` for it (R4).

    `change`: why that round ended, if an earlier coordinator has told the node.
    """

    leaving_round: int
    bootstrap: Address
    workers: Count
    change: Change | None = None


class Failed(Message, frozen=True, tag="failed"):
    """A worker failed."""

    round: int
    failure: Failure


class Done(Message, frozen=True, tag="done"):
    """All workers have finished."""

    round: int


class Departing(Message, frozen=True, tag="depart"):
    """The node was asked to leave, and is stopping its workers."""

    reason: Text


class Goodbye(Message, frozen=True, tag="bye"):
    """Nothing of the node runs any more."""

    reason: Text


class CloseRun(Message, frozen=True, tag="close"):
    """End the run for all."""

    outcome: Outcome
    reason: Text


class Heartbeat(Message, frozen=True, tag="hb"):
    """The node is there. Answered by `Beat`."""


class Alive(Message, frozen=True, tag="alive"):
    """The answer to a `Probe`."""


class StoreCall(Message, frozen=True, tag="call"):
    """A call of the round's store. A repeat with the same `request_id` is applied once (R11).

    `acknowledged`: every request up to this one has been answered and need not be remembered,
    but for `still_open`. `timeout_s` None: no deadline of its own.
    """

    request_id: int
    op: StoreOp
    timeout_s: float | None = None
    acknowledged: int = 0
    still_open: Annotated[tuple[int, ...], msgspec.Meta(max_length=20_000)] = ()


class StoreCancel(Message, frozen=True, tag="cancel"):
    """Nobody waits for this call any more."""

    request_id: int


class AskMembers(Message, frozen=True, tag="members?"):
    """The member table of the round, please."""

    request_id: int


class AskWaiting(Message, frozen=True, tag="waiting?"):
    """Why is there no round yet?"""

    request_id: int


FromNode: TypeAlias = (
    Attach
    | Ready
    | Failed
    | Done
    | Departing
    | Goodbye
    | CloseRun
    | Heartbeat
    | Alive
    | StoreCall
    | StoreCancel
    | AskMembers
    | AskWaiting
)


# -- from a coordinator --------------------------------------------------------------------------


class Welcome(Message, frozen=True, tag="welcome"):
    """The node is in. It sends a heartbeat every `heartbeat_s`; `version` is spoken from now on.

    `in_memory`: the run is kept in the memory of the coordinator's process, and is lost with it.
    """

    version: int
    heartbeat_s: float
    standing: Standing
    software: str = ""
    in_memory: bool = False


class Refused(Message, frozen=True, tag="refused"):
    """The node is not in, or no longer; the connection closes."""

    refusal: Refusal


class Formed(Message, frozen=True, tag="formed"):
    """A round was formed, and this is the node's seat in it."""

    head: RoundHead
    seat: Seat


class EncodedFormed(Message, frozen=True, tag="formed"):
    """`Formed` with its head already in bytes: for a sender that tells all members of it."""

    head: msgspec.Raw
    seat: Seat


class Broken(Message, frozen=True, tag="broken"):
    """The round has ended."""

    change: Change


class CauseFound(Message, frozen=True, tag="cause"):
    """What the end of a round turned out to be due to."""

    change: Change


class Closed(Message, frozen=True, tag="closed"):
    """The run has ended."""

    close: CloseRecord


class Standby(Message, frozen=True, tag="standby"):
    """The round is on without this node; it steps in when a place is free."""

    standby: bool


class Probe(Message, frozen=True, tag="probe"):
    """Are you there? Answered by `Alive`."""


class Beat(Message, frozen=True, tag="beat"):
    """The answer to a heartbeat; `beat` advances while the coordinator holds its lease."""

    beat: int


class StoreAnswer(Message, frozen=True, tag="answer"):
    """The result of a store call."""

    request_id: int
    result: StoreResult


class Members(Message, frozen=True, tag="members"):
    """The member table, in node-rank order; `digest` is the one in the round's head (R2).

    For members of the round: others get an empty one, without a digest. Incarnations are 0.
    """

    request_id: int
    round: int
    digest: str
    members: tuple[RoundMember, ...]


class EncodedMembers(Message, frozen=True, tag="members"):
    """`Members` with its table already in bytes: for a sender that encodes it once for many."""

    request_id: int
    round: int
    digest: str
    members: msgspec.Raw


class WaitingIs(Message, frozen=True, tag="waiting"):
    """Why there is no round yet; None if there is one."""

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
    | Probe
    | Beat
    | StoreAnswer
    | Members
    | WaitingIs
)


# -- bytes ---------------------------------------------------------------------------------------


class MalformedError(Exception):
    """Bytes that are no message. `refusal` is what their sender is told."""

    def __init__(self, why: str) -> None:
        super().__init__(why)
        self.refusal = Refusal(
            RefusalCode.MALFORMED,
            f"this is no message of the Rallypoint protocol: {why}",
            hint="check that both sides run a current rallypoint, and nothing else sends here",
        )


UNDECODABLE: Final = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)
"""What msgspec raises for bytes that are not what was expected."""

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
    return MalformedError(f"{size} bytes, where {bytes_max} are allowed")


def check_call(op: StoreOp) -> None:
    """Whether a coordinator would read this call: one that it refuses costs the node its place.

    Raises UsageError for a value of a wrong type or a text that is no Unicode, and StoreError for
    a call that is too large for a message.
    """
    try:
        body = _encoder.encode(op)
        _op.decode(body)
    except (*UNDECODABLE, UnicodeEncodeError, OverflowError, TypeError) as error:
        raise UsageError(f"this cannot be asked of a store: {error}") from error
    if len(body) > CALL_BYTES_MAX:
        message = f"a call has at most {CALL_BYTES_MAX} bytes, and this one has {len(body)}"
        raise StoreError(message, code=LIMIT)


def version_refusal(version: int) -> Refusal | None:
    """Why a node that speaks `version` cannot be understood; None if it can."""
    if VERSION_MIN <= version <= VERSION:
        return None
    accepted = str(VERSION) if VERSION_MIN == VERSION else f"{VERSION_MIN} to {VERSION}"
    return Refusal(
        RefusalCode.VERSION,
        f"this node speaks wire version {version}; the coordinator accepts {accepted}",
        hint="install releases of rallypoint on nodes and coordinator that are at most one apart",
    )
