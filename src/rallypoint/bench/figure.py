"""What every scenario gives: figures, each with all its values, and what exactly was timed."""

from __future__ import annotations

import statistics
from typing import Any

import msgspec


class Target(msgspec.Struct, frozen=True):
    """The median, or with `worst` the largest value, is to be at most this much."""

    at_most: float
    worst: bool = False

    @property
    def judged(self) -> str:
        """Which of the values is compared."""
        return "max" if self.worst else "median"

    def is_reached(self, values: tuple[float, ...]) -> bool:
        """Whether these values meet the target."""
        value = max(values) if self.worst else statistics.median(values)
        return value <= self.at_most


class Figure(msgspec.Struct, frozen=True, kw_only=True):
    """One quantity at one size.

    `values`: one per repeat, in `unit`. `about`: from which moment to which, or of what.
    `target`: what the project promises, if it promises something.
    """

    scenario: str
    name: str
    nodes: int
    unit: str
    values: tuple[float, ...]
    about: str = ""
    target: Target | None = None

    @property
    def median(self) -> float:
        """The middle of the values."""
        return statistics.median(self.values)

    @property
    def reached(self) -> bool | None:
        """Whether the target is met; None if there is none."""
        return None if self.target is None else self.target.is_reached(self.values)

    def as_json(self) -> dict[str, Any]:
        """The figure with its median and whether it reaches its target, for machines."""
        target = self.target and {"at_most": self.target.at_most, "of": self.target.judged}
        return {
            **msgspec.to_builtins(self),
            "median": self.median,
            "target": target,
            "reached": self.reached,
        }
