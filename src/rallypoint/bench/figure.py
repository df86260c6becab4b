"""What every scenario gives: figures, each with all its values, and what exactly was timed."""

from __future__ import annotations

import statistics
from typing import Any

import msgspec


class Figure(msgspec.Struct, frozen=True, kw_only=True):
    """One quantity at one size.

    `values`: one per repeat, in `unit`. `about`: from which moment to which, or of what.
    """

    scenario: str
    name: str
    nodes: int
    unit: str
    values: tuple[float, ...]
    about: str = ""

    @property
    def median(self) -> float:
        """The middle of the values."""
        return statistics.median(self.values)

    def as_json(self) -> dict[str, Any]:
        """The figure with its median, for machines."""
        return {**msgspec.to_builtins(self), "median": self.median}
