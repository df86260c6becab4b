"""What a worker and its agent say to each other over a local socket, and how it is framed.

Workers do not connect to the coordinator: their agent carries their calls. A message is four bytes
of length, big-endian, and as many of msgpack.
"""

from __future__ import annotations

import struct
from typing import Final, TypeAlias

import msgspec

from rallypoint.core.reasons import Waiting
from rallypoint.core.store import StoreOp, StoreResult
from rallypoint.core.values import (
    Change,
    CloseRecord,
    Outcome,
    RoundHead,
    RoundMember,
    Seat,
    repr_without,
)
from rallypoint.wire.messages import ANSWER_BYTES_MAX, UNDECODABLE, MalformedError


class LocalMessage(msgspec.Struct, frozen=True, array_like=True):
    """Base of all local messages."""


# -- from a worker -------------------------------------------------------------------------------


class Hello(LocalMessage, frozen=True, tag="hello"):
    """Which worker this is. `secret` is the round's, from its environment."""

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
    """The worker waits no more."""

    request_id: int


class AskMembers(LocalMessage, frozen=True, tag="members?"):
    """The member table, please."""

    request_id: int


class AskWaiting(LocalMessage, frozen=True, tag="waiting?"):
    """What keeps the run from going on, please."""

    request_id: int


class Regroup(LocalMessage, frozen=True, tag="regroup"):
    """The worker wants a new round."""


class Leave(LocalMessage, frozen=True, tag="leave"):
    """Take this node out of the run."""

    reason: str


class Close(LocalMessage, frozen=True, tag="close"):
    """End the run for all."""

    outcome: Outcome
    reason: str


FromWorker: TypeAlias = Hello | Call | Cancel | AskMembers | AskWaiting | Regroup | Leave | Close


# -- from an agent -------------------------------------------------------------------------------


class Admitted(LocalMessage, frozen=True, tag="admitted"):
    """The round and the node's seat in it. `ended`: why it is over already, if it is."""

    node: str
    head: RoundHead
    seat: Seat
    ended: Change | None = None


class Denied(LocalMessage, frozen=True, tag="denied"):
    """The worker is none of this agent's, or of a round that is over."""

    message: str


class Answer(LocalMessage, frozen=True, tag="answer"):
    """The result of a call."""

    request_id: int
    result: StoreResult


class Members(LocalMessage, frozen=True, tag="members"):
    """The member table, in node-rank order; `error` if it could not be had."""

    request_id: int
    members: tuple[RoundMember, ...]
    error: str = ""


class WaitingIs(LocalMessage, frozen=True, tag="waiting"):
    """What keeps the run from going on, if anything does; `error` if nobody can say."""

    request_id: int
    waiting: Waiting | None
    error: str = ""


class Ended(LocalMessage, frozen=True, tag="ended"):
    """The round has ended, or its cause became known."""

    change: Change


class RunClosed(LocalMessage, frozen=True, tag="closed"):
    """The run has ended."""

    close: CloseRecord


FromAgent: TypeAlias = Admitted | Denied | Answer | Members | WaitingIs | Ended | RunClosed


# -- bytes ---------------------------------------------------------------------------------------

LENGTH: Final = struct.Struct("!I")
HELLO_BYTES_MAX: Final = 4 * 1024
"""Who has not said hello is a stranger: any process of the machine can connect."""

_encoder = msgspec.msgpack.Encoder()
_from_worker: msgspec.msgpack.Decoder[FromWorker] = msgspec.msgpack.Decoder(FromWorker)
_from_agent: msgspec.msgpack.Decoder[FromAgent] = msgspec.msgpack.Decoder(FromAgent)


def encode(message: LocalMessage) -> bytes:
    """The bytes of a message, framed."""
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
    """Takes bytes as they come and gives whole messages' bodies, of at most `bytes_max` each."""

    def __init__(self, bytes_max: int = ANSWER_BYTES_MAX) -> None:
        self.bytes_max = bytes_max
        self._buffer = bytearray()

    @property
    def kept_bytes(self) -> int:
        """How much has come of a message that is not whole."""
        return len(self._buffer)

    def feed(self, data: bytes) -> list[bytes]:
        """The bodies that are whole now. Raises MalformedError for an absurd length."""
        self._buffer += data
        bodies = []
        while len(self._buffer) >= LENGTH.size:
            (length,) = LENGTH.unpack_from(self._buffer)
            if length > self.bytes_max:
                raise MalformedError(f"{length} bytes, where {self.bytes_max} are allowed")
            end = LENGTH.size + length
            if len(self._buffer) < end:
                break
            bodies.append(bytes(self._buffer[LENGTH.size : end]))
            del self._buffer[:end]
        return bodies
