"""The messages between a worker and its agent over a local socket, and their frames.

Workers do not connect to the coordinator: their agent forwards their calls. A frame is the length
of a message in four bytes, big-endian, and the message in msgpack.
"""

from __future__ import annotations

import struct
from typing import Annotated, Final, TypeAlias

import msgspec

from rallypoint.core.progress import Step
from rallypoint.core.reasons import Waiting
from rallypoint.core.store import StoreOp, StoreResult
from rallypoint.core.values import (
    Change,
    CloseRecord,
    Drain,
    Failure,
    FrozenStruct,
    Outcome,
    RoundHead,
    RoundMember,
    Seat,
    repr_without,
)
from rallypoint.wire.messages import ANSWER_BYTES_MAX, UNDECODABLE, MalformedError


class LocalMessage(FrozenStruct, frozen=True):
    """Base of all local messages."""


# -- from a worker -------------------------------------------------------------------------------


class Hello(LocalMessage, frozen=True, tag="hello"):
    """The first message: which worker this is. `secret`: the round's, from its environment."""

    secret: str
    round: int
    local_rank: int

    def __repr__(self) -> str:
        return repr_without(self, "secret")


class Call(LocalMessage, frozen=True, tag="call"):
    """A call of the round's store."""

    request_id: int
    op: StoreOp
    timeout_s: float | None


class Cancel(LocalMessage, frozen=True, tag="cancel"):
    """Withdraw a call: the worker does not wait for its answer any more."""

    request_id: int


class AskMembers(LocalMessage, frozen=True, tag="members?"):
    """Ask for the member table. Answered by `Members`."""

    request_id: int


class AskWaiting(LocalMessage, frozen=True, tag="waiting?"):
    """Ask what the run waits for. Answered by `WaitingIs`."""

    request_id: int


class Regroup(LocalMessage, frozen=True, tag="regroup"):
    """The worker asks for a new round."""


class AskWorld(LocalMessage, frozen=True, tag="world?"):
    """The worker has left this round, and waits in its process for the next one.

    Only for an agent that keeps workers: see `Admitted`. Answered by the next `Admitted`.
    """

    round: int


class Raised(LocalMessage, frozen=True, tag="raised"):
    """The block of the worker's world has ended with an error. The process goes on.

    Only for an agent that keeps workers. It waits for the cause: see `Admitted.explain_s`.
    """

    failure: Failure


class Fails(LocalMessage, frozen=True, tag="fails"):
    """An exception has left the worker's program, and its process is about to end.

    It needs no `Hello`: the kernel tells the agent which process has sent it.
    """


class Leave(LocalMessage, frozen=True, tag="leave"):
    """Take this node out of the run."""

    reason: str


class Close(LocalMessage, frozen=True, tag="close"):
    """Close the run for all nodes."""

    outcome: Outcome
    reason: str


class Progressed(LocalMessage, frozen=True, tag="progress"):
    """The worker has advanced to this step. Only for an agent that takes it: see `Admitted`."""

    step: Step


class DumpsStacks(LocalMessage, frozen=True, tag="dumps"):
    """The worker writes its stacks to the file of `Admitted` when it gets this signal."""

    pid: Annotated[int, msgspec.Meta(gt=0, le=2**31)]
    signal: Annotated[int, msgspec.Meta(gt=0, le=128)]


class TakesPart(LocalMessage, frozen=True, tag="part"):
    """The worker asks at each step of its round whether it is the last one (R14)."""


class Promise(LocalMessage, frozen=True, tag="promise"):
    """The worker passes no later step than this before the decision (R14)."""

    step: Annotated[int, msgspec.Meta(ge=0, lt=2**62)]


class Yielded(LocalMessage, frozen=True, tag="yielded"):
    """The worker was told to stop at a step. If it ends with success now, it has not finished."""


FromWorker: TypeAlias = (
    Hello
    | Call
    | Cancel
    | AskMembers
    | AskWaiting
    | Regroup
    | AskWorld
    | Raised
    | Fails
    | Leave
    | Close
    | Progressed
    | DumpsStacks
    | TakesPart
    | Promise
    | Yielded
)


# -- from an agent -------------------------------------------------------------------------------


class Admitted(LocalMessage, frozen=True, tag="admitted"):
    """The round and the node's seat in it. `ended`: why the round has already ended, if it has.

    `ledger_id`: of the run's ledger. `takes_progress`: the agent takes `Progressed`. `stacks`: the
    file to which the worker writes its stacks on a signal; "" for none. `explain_s`: the agent
    keeps workers that ask for the next world, and may not know for so many seconds why a round has
    ended; None: it keeps none. `variables`: what changes in the environment of a worker that was
    kept.
    """

    node: str
    head: RoundHead
    seat: Seat
    ended: Change | None = None
    ledger_id: str = ""
    takes_progress: bool = False
    stacks: str = ""
    explain_s: float | None = None
    variables: dict[str, str] = msgspec.field(default_factory=dict)

    def __repr__(self) -> str:
        return repr_without(self, "variables")


class Denied(LocalMessage, frozen=True, tag="denied"):
    """The worker is not one of this agent's, or its round has ended."""

    message: str


class Answer(LocalMessage, frozen=True, tag="answer"):
    """The result of a call."""

    request_id: int
    result: StoreResult


class Members(LocalMessage, frozen=True, tag="members"):
    """The member table, in node-rank order. `error`: why it is missing."""

    request_id: int
    members: tuple[RoundMember, ...]
    error: str = ""


class WaitingIs(LocalMessage, frozen=True, tag="waiting"):
    """What the run waits for; None for nothing. `error`: why that is unknown."""

    request_id: int
    waiting: Waiting | None
    error: str = ""


class Ended(LocalMessage, frozen=True, tag="ended"):
    """The round has ended, or the cause of its end was found."""

    change: Change


class RunClosed(LocalMessage, frozen=True, tag="closed"):
    """The run has ended."""

    close: CloseRecord


class Drains(LocalMessage, frozen=True, tag="drains"):
    """Nodes of the round are going to leave it. If the drain `is_asked`, answer with `Promise`."""

    drain: Drain


class StopAt(LocalMessage, frozen=True, tag="stop"):
    """All workers of the round stop at this step (R14)."""

    step: int


class Departing(LocalMessage, frozen=True, tag="departing"):
    """The node is going to leave the run, so the worker gets no other world."""

    reason: str


FromAgent: TypeAlias = (
    Admitted
    | Denied
    | Answer
    | Members
    | WaitingIs
    | Ended
    | RunClosed
    | Drains
    | StopAt
    | Departing
)


# -- bytes ---------------------------------------------------------------------------------------

LENGTH: Final = struct.Struct("!I")
HELLO_BYTES_MAX: Final = 4 * 1024
"""The longest message before `Hello` was accepted: any process of the machine can connect."""

_encoder = msgspec.msgpack.Encoder()
_from_worker: msgspec.msgpack.Decoder[FromWorker] = msgspec.msgpack.Decoder(FromWorker)
_from_agent: msgspec.msgpack.Decoder[FromAgent] = msgspec.msgpack.Decoder(FromAgent)


def encode(message: LocalMessage) -> bytes:
    """The bytes of a message in its frame."""
    body = _encoder.encode(message)
    return LENGTH.pack(len(body)) + body


def decode_from_worker(body: bytes) -> FromWorker:
    """A worker's message, without its frame. Raises MalformedError."""
    try:
        return _from_worker.decode(body)
    except UNDECODABLE as error:
        raise MalformedError(str(error)) from error


def decode_from_agent(body: bytes) -> FromAgent:
    """An agent's message, without its frame. Raises MalformedError."""
    try:
        return _from_agent.decode(body)
    except UNDECODABLE as error:
        raise MalformedError(str(error)) from error


class Unframer:
    """Takes bytes as they arrive, and returns whole messages of at most `bytes_max` bytes."""

    def __init__(self, bytes_max: int = ANSWER_BYTES_MAX) -> None:
        self.bytes_max = bytes_max
        self._buffer = bytearray()

    @property
    def kept_bytes(self) -> int:
        """How many bytes of an incomplete message have arrived."""
        return len(self._buffer)

    def feed(self, data: bytes) -> list[bytes]:
        """The messages that are complete now. Raises MalformedError for a length over the limit."""
        self._buffer += data
        bodies = []
        while len(self._buffer) >= LENGTH.size:
            (length,) = LENGTH.unpack_from(self._buffer)
            if length > self.bytes_max:
                raise MalformedError(f"it has {length} bytes; at most {self.bytes_max} are allowed")
            end = LENGTH.size + length
            if len(self._buffer) < end:
                break
            bodies.append(bytes(self._buffer[LENGTH.size : end]))
            del self._buffer[:end]
        return bodies
