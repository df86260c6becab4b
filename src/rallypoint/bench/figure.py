"""Figures, which every scenario returns, with all values and what exactly was timed."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence
from typing import Any

import msgspec


class Target(msgspec.Struct, frozen=True):
    """An upper bound of the median; with `worst`, of every value."""

    at_most: float
    worst: bool = False

    @property
    def judged(self) -> str:
        """The value that is compared with the bound."""
        return "max" if self.worst else "median"

    def is_reached(self, values: tuple[float, ...]) -> bool:
        """Whether these values meet the target."""
        value = max(values) if self.worst else statistics.median(values)
        return value <= self.at_most


class Figure(msgspec.Struct, frozen=True, kw_only=True):
    """One quantity at one size.

    `values`: one for each repeat, in `unit`. `about`: what was measured, from which moment to
    which. `target`: the bound that the project promises; None if it promises none.
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
        """The median of the values."""
        return statistics.median(self.values)

    @property
    def reached(self) -> bool | None:
        """Whether the target is met; None without a target."""
        return None if self.target is None else self.target.is_reached(self.values)

    def as_json(self) -> dict[str, Any]:
        """The figure for JSON, with its median, and whether it reaches its target."""
        target = self.target and {"at_most": self.target.at_most, "of": self.target.judged}
        return {
            **msgspec.to_builtins(self),
            "median": self.median,
            "target": target,
            "reached": self.reached,
        }


class Column(msgspec.Struct, frozen=True):
    """One of the quantities that each repeat of a scenario returns. The fields are a figure's."""

    name: str
    unit: str
    about: str = ""
    target: Target | None = None


def figures_of(
    scenario: str, nodes: int, columns: Sequence[Column], results: Iterable[Sequence[float]]
) -> list[Figure]:
    """A figure for each column. Each result, one for each repeat, has a value for every column."""
    return [
        Figure(
            scenario=scenario,
            name=column.name,
            nodes=nodes,
            unit=column.unit,
            values=values,
            about=column.about,
            target=column.target,
        )
        for column, values in zip(columns, zip(*results, strict=True), strict=True)
    ]
