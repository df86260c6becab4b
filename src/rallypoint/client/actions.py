"""The actions of a node's machine, which `client/node.py` executes."""

from __future__ import annotations

from typing import TypeAlias

import msgspec

from rallypoint.core.reasons import Refusal, Waiting
from rallypoint.core.store import StoreResult
from rallypoint.core.values import (
    Address,
    Change,
    CloseRecord,
    Drain,
    RoundHead,
    RoundMember,
    Seat,
    Stamp,
)
from rallypoint.wire import messages as wire


class Send(msgspec.Struct, frozen=True):
    """Send this message."""

    message: wire.Message


class Drop(msgspec.Struct, frozen=True):
    """Close the connection, and search for a coordinator again."""

    reason: str


class Attached(msgspec.Struct, frozen=True):
    """The coordinator has attached the node, for the first time or again."""


class RoundFormed(msgspec.Struct, frozen=True):
    """The node has a seat in a new round."""

    head: RoundHead
    seat: Seat


class RoundEnded(msgspec.Struct, frozen=True):
    """The node's round has ended, or the cause of its end became known (`change.confirmed`)."""

    change: Change


class RunEnded(msgspec.Struct, frozen=True):
    """The run is closed."""

    close: CloseRecord


class WasRefused(msgspec.Struct, frozen=True):
    """The coordinator has refused the node for good."""

    refusal: Refusal


class Redirected(msgspec.Struct, frozen=True):
    """This coordinator does not own the run: search for its owner.

    `addresses`: where the owner listens; empty if the coordinator does not know.
    """

    addresses: tuple[Address, ...]
    reason: str


class CallAnswered(msgspec.Struct, frozen=True):
    """A call of the round's store has its result."""

    request_id: int
    result: StoreResult


class MembersTold(msgspec.Struct, frozen=True):
    """The member table of round `number`."""

    request_id: int
    number: int
    digest: str
    members: tuple[RoundMember, ...]


class WaitingTold(msgspec.Struct, frozen=True):
    """The coordinator's answer: why there is no round yet."""

    request_id: int
    waiting: Waiting | None


class WatchWanted(msgspec.Struct, frozen=True):
    """Connect once to these addresses of other members' hosts, and remember which answered."""

    addresses: tuple[Address, ...]


class HostReportWanted(msgspec.Struct, frozen=True):
    """The coordinator asks whether this host still answers. `question`: for the answer.

    `asked_by`: the stamp of the coordinator that asks.
    """

    question: int
    host: str
    asked_by: Stamp


class LeaveWanted(msgspec.Struct, frozen=True):
    """An operator asks the node to leave in order. `reason`: who, and why."""

    reason: str


class StacksWanted(msgspec.Struct, frozen=True):
    """The coordinator asks where this node's workers stand. `NodeMachine.stacks_told` follows."""

    request_id: int
    bytes_max: int


class DrainTold(msgspec.Struct, frozen=True):
    """Nodes of the round are going to leave it. If it `is_asked`, the node must promise a step."""

    drain: Drain


class StepDecided(msgspec.Struct, frozen=True):
    """All workers of the round stop at this step."""

    step: int


class PlacedOnStandby(msgspec.Struct, frozen=True):
    """A round is active without the node."""


Action: TypeAlias = (
    Send
    | Drop
    | Attached
    | RoundFormed
    | RoundEnded
    | RunEnded
    | WasRefused
    | Redirected
    | CallAnswered
    | MembersTold
    | WaitingTold
    | WatchWanted
    | HostReportWanted
    | LeaveWanted
    | StacksWanted
    | DrainTold
    | StepDecided
    | PlacedOnStandby
)
