"""When a node of a run without a coordinator becomes a candidate: drawn by chance, by each alone.

Nothing is known of who else is alive, so nothing here depends on it: neither on ranks nor on the
member table. Each of the `nodes` draws once per vacancy, as from a hazard that begins with
`candidates * AT_ONCE` expected candidates in the first moment and doubles every `doubling_s`. If
all nodes live, about `candidates` of them have stood before the first of them is seen by the rest,
as long as that takes not much more than `doubling_s`. If only one in a thousand lives, ten
doublings later it stands all the same.
"""

from __future__ import annotations

import math
from typing import Final

AT_ONCE: Final = 2 / 3
"""The part of `candidates` that stands at once, on average: the rest comes while those become
visible. With three candidates nobody stands at once in one vacancy of seven (e ** -2)."""


def stands_after_s(chance: float, nodes: int, candidates: int, doubling_s: float) -> float:
    """How long after it has seen the vacancy a node stands, in seconds.

    `chance` is drawn from [0, 1). `nodes`: how many nodes the run has, dead or alive. If they are
    no more than `candidates`, all stand at once.
    """
    if nodes <= candidates:
        return 0.0
    hazard = -math.log1p(-chance)  # exponentially distributed, with mean 1
    growth = hazard * nodes / (candidates * AT_ONCE)
    return doubling_s * math.log2(growth) if growth > 1 else 0.0
