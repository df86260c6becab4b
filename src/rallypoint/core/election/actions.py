"""What an election asks of the engine, what it is answered, and what it tells of a run.

An answer comes back with the action that it answers, so that one to an earlier question is known
for late.
"""

from __future__ import annotations

from typing import TypeAlias

from rallypoint.core.election.records import RunRegister
from rallypoint.core.registers import Conflict, SwapOutcome, Swapped
from rallypoint.core.values import (
    Address,
    FrozenStruct,
    NodeId,
)

# -- what is wanted ------------------------------------------------------------------------------


class ReadRun(FrozenStruct, frozen=True):
    """Read the run's register, and answer by `run_read` of who asked."""

    ticket: int = 0


class ReadLease(FrozenStruct, frozen=True):
    """Read a process's lease, and answer by `lease_read` of who asked."""

    process: str
    ticket: int = 0


class ReadFloor(FrozenStruct, frozen=True):
    """Read the ledger's floor, and answer by `Claim.floor_read`."""

    ticket: int = 0


class SwapRun(FrozenStruct, frozen=True):
    """Swap the run's register, and answer by `Claim.run_swapped`."""

    expected: int | None
    value: bytes


class SwapLease(FrozenStruct, frozen=True):
    """Swap a process's lease, and answer by `LeaseHolder.swapped` or `Claim.lease_swapped`."""

    process: str
    expected: int | None
    value: bytes


class Elected(FrozenStruct, frozen=True):
    """The run is this process's from now on. Its log's tail is to be sealed before it serves.

    `former_host`: the node that hosted the last owner, if that owner's lease was revoked.
    """

    register: RunRegister
    version: int
    former_host: NodeId | None = None


class RegisterWritten(FrozenStruct, frozen=True):
    """What `Claim.commit` was given is in the ledger."""

    register: RunRegister
    version: int


class Deposed(FrozenStruct, frozen=True):
    """The run is no longer this process's."""

    reason: str


class OwnedElsewhere(FrozenStruct, frozen=True):
    """Another live process owns the run; its nodes attach there."""

    addresses: tuple[Address, ...]
    process: str


Action: TypeAlias = (
    ReadRun
    | ReadLease
    | ReadFloor
    | SwapRun
    | SwapLease
    | Elected
    | RegisterWritten
    | Deposed
    | OwnedElsewhere
)


def version_of(asked: SwapRun | SwapLease, outcome: SwapOutcome) -> int | None:
    """The version of what was asked for, if it is there: own bytes in a conflict are a success."""
    if isinstance(outcome, Swapped):
        return outcome.version
    if isinstance(outcome, Conflict) and outcome.current is not None:
        return outcome.current.version if outcome.current.value == asked.value else None
    return None
