"""The coordinators in a ledger: their leases, looked at twice.

A lease tells no time, because clocks of hosts are not compared (R9). So only one that is renewed
between two looks is alive.
"""

from __future__ import annotations

import asyncio
import contextlib
from typing import Final

import msgspec

from rallypoint.core import election
from rallypoint.ledger.contract import Ledger
from rallypoint.ledger.keys import COORDINATORS

LEASES_MAX: Final = 64
"""How many leases are read. A killed process leaves its own for an hour."""
PAUSE_MAX_S: Final = 4.0


class Looked(msgspec.Struct, frozen=True):
    """A lease, and whether it was renewed within `pause_s` seconds."""

    lease: election.Lease
    is_renewed: bool
    pause_s: float


async def look_twice(ledger: Ledger) -> list[Looked]:
    """The leases of processes that serve, in the order of their names. Raises LedgerError."""
    first = await _leases(ledger)
    if not first:
        return []
    # A lease is renewed every third of its ttl.
    pause_s = min(PAUSE_MAX_S, 1.3 * max(each.ttl_s for each in first.values()) / 3)
    await asyncio.sleep(pause_s)
    second = await _leases(ledger)
    return [
        Looked(lease, process in second and second[process].beat != lease.beat, pause_s)
        for process, lease in first.items()
    ]


async def _leases(ledger: Ledger) -> dict[str, election.Lease]:
    found = {}
    for key in sorted(await ledger.keys(COORDINATORS))[-LEASES_MAX:]:
        value = await ledger.read(key)
        with contextlib.suppress(election.UnreadableError):
            lease = None if value is None else election.decode_lease(value.value)
            if lease is not None and lease.state is election.LeaseState.SERVING:
                found[lease.process] = lease
    return found
