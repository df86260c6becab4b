"""Who coordinates a run: leases, terms, takeover and stepping down. Pure, as all of `core/`.

There are two kinds of register. A *lease* belongs to one coordinator process, however many runs it
has: a beat that advances, and where the process listens. A *run's register* says which process
owns the run, since which term, and what was last committed. Whoever sees a lease stand still on its
own clock, for the ttl that the lease names, may revoke it (a swap), and may then make a run of that
process its own (another swap, with the next term). That second swap is the seal: whatever the
former owner still tries to commit names a version that is gone (R5). Safety rests on the swaps
alone; the times only say when it is worth trying.

What the times add, as long as two clocks' rates differ by less than the margin allows: at every
moment, a process whose claim is OWNED and whose lease lets it decide is the one that the run's
register names, with that term. A lease is final once it is revoked or moving, so reading that is
reason enough to seal. Only such leases may be swept: one that is merely missing is taken for dead.

Answers of the engine may be lost, late, repeated or in conflict. The discipline: after an unknown
outcome only the same bytes are tried again, until the version moves; then what is there counts.

`LeaseHolder` keeps one process's own lease, `Claim` its claim to one run. Both take answers and
ticks and return actions; who carries those out is not known here, nor whether the engine keeps the
two registers in one blob. Every answer comes with the action that it answers, so that one to an
earlier question is known for late. `Discovery` is a node's side: where is the run's coordinator?

This file holds no code: the parts are in `records`, `actions`, `lease`, `ownership`, `resignation`
and `discovery`, and all their names are here.
"""

from __future__ import annotations

from rallypoint.core.election.actions import (
    Action,
    Deposed,
    Elected,
    OwnedElsewhere,
    ReadFloor,
    ReadLease,
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
    OtherFormatError,
    RunRegister,
    RunState,
    Table,
    UnreadableError,
    decode_floor,
    decode_lease,
    decode_run,
    encode,
)
from rallypoint.core.election.resignation import Resignation
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
    "Lease",
    "LeaseHolder",
    "LeaseState",
    "OtherFormatError",
    "OwnedElsewhere",
    "ReadFloor",
    "ReadLease",
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
    "decode_run",
    "encode",
    "lease_of",
    "may_take",
    "revoked_by",
    "version_of",
    "where",
]
