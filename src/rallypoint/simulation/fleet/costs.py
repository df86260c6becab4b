"""What the parts around the core cost, in seconds, and where each number comes from.

The fleet runs the core. It does not run sockets, so the time of their work is added here. All were
measured with rallypoint 0.1.0 on two cores, unless the source says that a number is assumed.
"""

from __future__ import annotations

from typing import Final

import msgspec


class Cost(msgspec.Struct, frozen=True):
    """One number. `source`: a measurement, a setting of the shipped code, or an assumption."""

    name: str
    seconds: float
    source: str


TELL: Final = Cost(
    "coordinator: send one message to one node",
    107e-3 / 9_000,
    "docs/scale.md, regroup: leaving: told, 9,000 nodes",
)
READ: Final = Cost(
    "coordinator: read one message of a node and handle it",
    (243e-3 - 107e-3) / 9_000,
    "docs/scale.md, meet: warm, less the sending, 9,000 nodes",
)
ATTACH: Final = Cost(
    "coordinator: accept one connection and attach its node",
    (2_407e-3 - 243e-3) / 9_000,
    "docs/scale.md, meet: cold less meet: warm, 9,000 nodes (on two cores, with the nodes' part)",
)
NETWORK: Final = Cost("one way of a message", 0.25e-3, "assumed: one data centre")
WRITE: Final = {
    "memory": Cost("ledger: one write", 0.0, "none: the run is in the coordinator's memory"),
    "etcd": Cost("ledger: one write", 4e-3, "assumed: etcd with disks that sync in 1 to 2 ms"),
    "file": Cost("ledger: one write", 10e-3, "assumed: a shared disk"),
}
PEER: Final = Cost(
    "a worker's error after its peer's process has ended",
    0.02,
    "rallypoint bench preempted (gloo: 11 to 22 ms)",
)


def all_of(ledger: str) -> tuple[Cost, ...]:
    """The numbers of a simulation over this kind of ledger."""
    return (TELL, READ, ATTACH, NETWORK, WRITE[ledger], PEER)
