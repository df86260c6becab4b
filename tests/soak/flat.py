"""Whether a series of measurements is flat: a straight line through it, and the error of its slope.

`growth` is the slope times the measured range, so it has the unit of the measurements. A series is
flat if its growth is certainly (by two standard errors) not above what is allowed. The beginning is
left out: caches and pools fill then.

The residuals of memory are not independent, so the error of a straight line is too small. It is
therefore taken from the means of blocks, which are nearly independent.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import msgspec

WARM_UP = 0.25
"""The part of the measurements that is left out at the beginning."""
BLOCKS = 8
BLOCKS_MIN = 5
SIGMAS = 2.0


class Line(msgspec.Struct, frozen=True):
    """`growth` over the range that was measured, and its standard error."""

    mean: float
    growth: float
    error: float

    def grows_by_more_than(self, allowed: float) -> bool:
        """Whether it certainly does."""
        return self.growth - SIGMAS * self.error > allowed

    def is_flat(self, allowed: float) -> bool:
        """Whether it certainly does not. Neither holds for a series that is too noisy."""
        return self.growth + SIGMAS * self.error <= allowed


def fitted(at: Sequence[float], values: Sequence[float]) -> Line:
    """The line through the measurements after the warm-up. At least 2 * BLOCKS_MIN are needed then.

    A quick machine plays many rounds between two measurements, so a short soak has fewer blocks.
    """
    first = int(len(at) * WARM_UP)
    at, values = at[first:], values[first:]
    assert len(at) >= 2 * BLOCKS_MIN, f"{len(at)} measurements are too few"
    blocks = min(BLOCKS, len(at) // 2)
    edges = [round(index * len(at) / blocks) for index in range(blocks + 1)]
    x = [_mean(at[low:high]) for low, high in itertools.pairwise(edges)]
    y = [_mean(values[low:high]) for low, high in itertools.pairwise(edges)]
    mean_x, mean_y = _mean(x), _mean(y)
    spread = sum((each - mean_x) ** 2 for each in x)
    slope = sum((a - mean_x) * (b - mean_y) for a, b in zip(x, y, strict=True)) / spread
    left = sum((b - mean_y - slope * (a - mean_x)) ** 2 for a, b in zip(x, y, strict=True))
    error = math.sqrt(left / (blocks - 2) / spread)
    whole = at[-1] - at[0]
    return Line(mean_y, slope * whole, error * whole)


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
