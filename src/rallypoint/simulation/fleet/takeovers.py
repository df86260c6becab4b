"""How soon a lost coordinator is succeeded.

The election itself is not run for each loss: it is the same few processes in a fleet of any size.
Its times follow from its rules, and are those that `rallypoint bench failover` measures
(docs/operations.md): a candidate may take the lease when it has seen it unchanged for its ttl.
"""

from __future__ import annotations

import random
from typing import Final

HANDOVER_S: Final = 0.2
"""A coordinator that ends cleanly hands its runs over (measured with 8 nodes over etcd)."""
ELECTED_S: Final = 0.2
"""From the end of the ttl until the next coordinator owns the run (measured, as above)."""
LOOK_S: Final = 1.0
"""A node without a coordinator looks about this often into the ledger."""


class Takeovers:
    """The takeovers of one job, drawn from its seed. Times in seconds."""

    def __init__(self, *, lease_ttl_s: float, silence_s: float, seed: int) -> None:
        self._lease_ttl_s = lease_ttl_s
        self._silence_s = silence_s
        self._chance = random.Random(f"{seed}/takeovers")

    def takeover_s(self, how: str) -> float:
        """From the loss to the next owner.

        `how`: "handover", "crash" (connections end at once) or "silence" (nodes notice it by the
        coordinator's silence, of which a node takes note at least three times in that time).
        """
        if how == "handover":
            return HANDOVER_S
        noticed_s = 0.0 if how == "crash" else self._silence_s * (1 + self._chance.random() / 3)
        return noticed_s + self._lease_ttl_s + ELECTED_S

    def look_s(self) -> float:
        """From the takeover until one node dials the next coordinator."""
        return self._chance.random() * LOOK_S
