"""What a figure is: what was timed, its values, and whether they reach the target.

Nothing here measures. A figure keeps every value that was taken, so that a median can be doubted.
"""

from __future__ import annotations

import os
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from rallypoint.bench.figure import Figure as BenchFigure
from rallypoint.bench.figure import Target as Target


@dataclass(frozen=True, kw_only=True)
class Figure:
    """One figure, of as many values as there were repeats.

    `timed`: exactly what was measured, from which moment to which. `limited_by`: what the figure
    mostly consists of, for whoever wants to improve it.
    """

    name: str
    timed: str
    unit: str
    values: tuple[float, ...]
    target: Target | None = None
    limited_by: str = ""
    details: dict[str, Any] = field(default_factory=dict)

    @property
    def median(self) -> float:
        """The middle of the values."""
        return statistics.median(self.values)

    @property
    def reached(self) -> bool | None:
        """Whether the target is met; None if there is none."""
        return None if self.target is None else self.target.is_reached(self.values)

    @classmethod
    def of_bench(cls, figure: BenchFigure, *, over: str = "", suffix: str = "") -> Figure:
        """The same as a scenario of `rallypoint bench` gives it, with its size in its name.

        `over`: on what it was measured, which ends its name as `suffix`.
        """
        words = f"{figure.scenario} {figure.nodes} {figure.name} {suffix}"
        where = f"; over {over}" if over else ""
        return cls(
            name="_".join("".join(c if c.isalnum() else " " for c in words).split()).lower(),
            timed=f"{figure.about or figure.name}{where}",
            unit=figure.unit,
            values=figure.values,
            target=figure.target,
        )

    def as_json(self) -> dict[str, Any]:
        """The figure as it stands in the JSON."""
        target = self.target
        return {
            "name": self.name,
            "timed": self.timed,
            "unit": self.unit,
            "median": rounded(self.median),
            "min": rounded(min(self.values)),
            "max": rounded(max(self.values)),
            "repeats": len(self.values),
            "values": [rounded(value) for value in self.values],
            "target": target and {"at_most": target.at_most, "of": target.judged},
            "reached": self.reached,
            "limited_by": self.limited_by,
            "details": self.details,
        }


@dataclass(frozen=True)
class Group:
    """Figures that are measured together, and how often unless told otherwise."""

    name: str
    repeats: int
    measure: Callable[[int, Callable[[str], None]], list[Figure]]
    """Takes the number of repeats and something that says how far it is."""


def rounded(value: float) -> float:
    """Four significant digits: more would claim what nobody measured."""
    return float(f"{value:.4g}")


def load_average() -> list[float]:
    """How many processes wanted to run, over 1, 5 and 15 minutes."""
    return [rounded(value) for value in os.getloadavg()]


def markdown(figures: Sequence[dict[str, Any]]) -> str:
    """A table of figures as they stand in the JSON."""
    rows = [
        "| figure | median | min – max | repeats | target | reached |",
        "|---|---|---|---|---|---|",
    ]
    for each in figures:
        unit, target = each["unit"], each["target"]
        wanted = f"{target['of']} ≤ {target['at_most']:g} {unit}" if target else "–"
        reached = {True: "yes", False: "**no**", None: "–"}[each["reached"]]
        spread = f"{each['min']:g} – {each['max']:g}"
        row = (each["name"], f"{each['median']:g} {unit}", spread, each["repeats"], wanted, reached)
        rows.append(f"| {' | '.join(map(str, row))} |")
    return "\n".join(rows) + "\n"
