"""With which seed each planted bug is found: `make planted` measures them anew, from seed 0.

A change of plans, faults or programs changes what a seed means. Then a bug's seed is looked for
again: `python -m tests.simulation.planted NAME --seeds 5000`.
"""

from __future__ import annotations

from typing import Final

KNOWN_SEEDS: Final[dict[str, int]] = {
    "04-hostages": 1301,
    "15-own-ttl": 52,
    "16-standby-not-told": 77,
    "18-survivors-shut-out": 23,
    "acknowledge-before-commit": 1,
    "barrier-too-early": 5,
    "clocks-compared": 26,
    "close-forgotten": 63,
    "compare-set-always-sets": 0,
    "coordinator-never-silent": 163,
    "deposed-goes-on": 2671,
    "heard-in-vain": 112,
    "minimum-ignored": 51,
    "more-than-maximum": 57,
    "nobody-notified": 1,
    "publish-before-commit": 100,
    "rank-twice": 1,
    "reset-is-proof": 163,
    "same-term": 107,
    "says-nothing-again": 107,
    "stale-store": 9,
    "standby-never-promoted": 101,
    "write-lost": 1,
    "wrong-term": 107,
}
