"""The actions of the election: requests to the engine, and news about a run.

The answer to an action comes back together with the action. So an answer to an earlier action is
recognised as late. The engine's answers are in `core/registers.py`.
"""

from __future__ import annotations

from typing import TypeAlias

from rallypoint.core.election.records import RunRegister
from rallypoint.core.registers import Conflict, SwapOutcome, Swapped, Versioned
from rallypoint.core.values import (
    Address,
    FrozenStruct,
    NodeId,
)

# -- to be executed ----------------------------------------------------------------------------


class ReadRun(FrozenStruct, frozen=True):
    """Read the run's head. The answer goes to `run_read` of the machine that asks."""

    ticket: int = 0


class ReadLease(FrozenStruct, frozen=True):
    """Read a process's lease. The answer goes to `lease_read` of the machine that asks."""

    process: str
    ticket: int = 0


class ReadFloor(FrozenStruct, frozen=True):
    """Read the ledger's floor. The answer goes to `Claim.floor_read`."""

    ticket: int = 0


class ReadMistake(FrozenStruct, frozen=True):
    """Read whether a lease was revoked early by mistake. `Claim.mistake_read` gets the answer."""

    ticket: int = 0


class SwapRun(FrozenStruct, frozen=True):
    """Swap the run's head. The outcome goes to `Claim.run_swapped`."""

    expected: int | None
    value: bytes


class SwapLease(FrozenStruct, frozen=True):
    """Swap a process's lease. `LeaseHolder.swapped` or `Claim.lease_swapped` gets the outcome."""

    process: str
    expected: int | None
    value: bytes


# -- news about a run ----------------------------------------------------------------------------


class Elected(FrozenStruct, frozen=True):
    """This process owns the run now. It has to seal the end of the run's log before it serves.

    `former_host`: the node that hosted the last owner, if that owner's lease was revoked.
    """

    register: RunRegister
    version: int
    former_host: NodeId | None = None


class RegisterWritten(FrozenStruct, frozen=True):
    """The register that `Claim.commit` was given is in the ledger."""

    register: RunRegister
    version: int


class Deposed(FrozenStruct, frozen=True):
    """This process no longer owns the run."""

    reason: str


class OwnedElsewhere(FrozenStruct, frozen=True):
    """Another process that is alive owns the run. Nodes attach at these addresses."""

    addresses: tuple[Address, ...]
    process: str


Action: TypeAlias = (
    ReadRun
    | ReadLease
    | ReadFloor
    | ReadMistake
    | SwapRun
    | SwapLease
    | Elected
    | RegisterWritten
    | Deposed
    | OwnedElsewhere
)


def version_of(asked: SwapRun | SwapLease, outcome: SwapOutcome) -> int | None:
    """The version under which the value of this swap is in the register; None if it is not there.

    A conflict with this process's own bytes is a success: the engine has carried out an earlier
    try.
    """
    match outcome:
        case Swapped(version):
            return version
        case Conflict(Versioned(value, version)) if value == asked.value:
            return version
        case _:
            return None
