"""The election: which process owns a run, and why two processes can never both commit.

Two kinds of register. A *lease* belongs to one coordinator process and serves for all its runs. It
has the addresses where the process listens, and a beat that the process increases at regular times.
The *head* of a run names the process that owns the run, the term in which it became the owner, and
the last committed record.

A takeover has two steps, each a swap:

1. Revoke the owner's lease. A process may try this when it has seen the lease at one version for
   the ttl that the lease contains, by its own clock (R9).
2. Seal the run's head with the next term, and become its owner. From then on, every commit that the
   former owner tries names a version of the head that is gone (R5).

Safety rests on the swaps alone. Times only say when a takeover is worth trying.

The times add one promise, which holds while the rates of two clocks differ by less than the margin.
Take any process whose claim is OWNED and whose lease lets it decide: at that moment, the run's head
names this process and its term.

**A dead coordinator is succeeded at once.** A process that is killed closes its connections, and
its address then refuses new ones. A node that sees both knows that the process has ended, and need
not wait for the ttl (`EndedOwner`, `Claim.contest`). The same two swaps follow. The sight may be
wrong: something between, such as a proxy, may refuse connections for a process that is alive. Then
the promise above does not hold for that process, until its next renewal fails. So
- a lease that is revoked early says so, and the next owner's head has `unsure_s`: for that time the
  owner sends no answer of the store that it has taken over, unless all members of the round have
  attached to it. A member that has attached accepts nothing of an earlier term (R5);
- a process that finds its own lease revoked early is alive, and writes a `Mistake` into the ledger.
  While it is there, leases are revoked only after their ttl. It is removed after ten minutes;
- a claim tries this once in a term, and only with the version of the lease that was read before the
  connection was refused. So a lease that was renewed since is not revoked.

A lease that is revoked or moving is final. A process that reads such a lease may seal at once, and
only such a lease may be removed from the ledger. A lease that is missing counts as final, too.

The engine's answers may be lost, late, repeated or in conflict. After an unknown outcome, only the
same bytes are tried again, until the version changes. Then the value that is read counts.

`LeaseHolder` keeps the lease of its own process. `Claim` is the process's claim to one run.
`Discovery` is the node's side: it finds the coordinator of the run. All three take ticks and
answers and return actions. They do not execute them, and do not know whether the engine keeps the
two kinds of register in one value. Each answer comes with the action that it answers, so that an
answer to an earlier question is recognised as late.

This file has no code. The parts are `records`, `actions`, `lease`, `ownership`, `resignation` and
`discovery`; this package exports all their names, and those of `core/registers.py`.
"""

from __future__ import annotations

from rallypoint.core.election.actions import (
    Action,
    Deposed,
    Elected,
    OwnedElsewhere,
    ReadFloor,
    ReadLease,
    ReadMistake,
    ReadRun,
    RegisterWritten,
    SwapLease,
    SwapRun,
    version_of,
)
from rallypoint.core.election.discovery import (
    AttachTo,
    BecomeCandidate,
    Discovery,
    DiscoveryAction,
    RunOver,
    may_take,
    where,
)
from rallypoint.core.election.lease import (
    LeaseHolder,
    Seen,
    Standstill,
    Timing,
    lease_of,
    revoked_by,
    was_revoked_early,
)
from rallypoint.core.election.ownership import Claim, ClaimState
from rallypoint.core.election.records import (
    FORMAT,
    NO_FLOOR,
    Chunk,
    Counter,
    Floor,
    Lease,
    LeaseState,
    Mistake,
    OtherFormatError,
    RunRegister,
    RunState,
    Table,
    UnreadableError,
    decode_floor,
    decode_lease,
    decode_mistake,
    decode_run,
    encode,
)
from rallypoint.core.election.resignation import Heard, Other, Resignation
from rallypoint.core.registers import Conflict, SwapOutcome, Swapped, Unknown, Versioned

__all__ = [
    "FORMAT",
    "NO_FLOOR",
    "Action",
    "AttachTo",
    "BecomeCandidate",
    "Chunk",
    "Claim",
    "ClaimState",
    "Conflict",
    "Counter",
    "Deposed",
    "Discovery",
    "DiscoveryAction",
    "Elected",
    "Floor",
    "Heard",
    "Lease",
    "LeaseHolder",
    "LeaseState",
    "Mistake",
    "Other",
    "OtherFormatError",
    "OwnedElsewhere",
    "ReadFloor",
    "ReadLease",
    "ReadMistake",
    "ReadRun",
    "RegisterWritten",
    "Resignation",
    "RunOver",
    "RunRegister",
    "RunState",
    "Seen",
    "Standstill",
    "SwapLease",
    "SwapOutcome",
    "SwapRun",
    "Swapped",
    "Table",
    "Timing",
    "Unknown",
    "UnreadableError",
    "Versioned",
    "decode_floor",
    "decode_lease",
    "decode_mistake",
    "decode_run",
    "encode",
    "lease_of",
    "may_take",
    "revoked_by",
    "version_of",
    "was_revoked_early",
    "where",
]
