"""Figures as a table, as JSON, and as a picture."""

from __future__ import annotations

import os
import platform
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from rallypoint._version import __version__
from rallypoint.bench.counting import loop_name
from rallypoint.bench.figure import Figure

if TYPE_CHECKING:
    from rich.console import RenderableType


RATIO: Final = "x"
"""The unit of a ratio."""


def machine() -> dict[str, Any]:
    """The machine that measures. `load`: its load average over the last minute."""
    return {
        "rallypoint": __version__,
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
        "cores": len(os.sched_getaffinity(0))
        if hasattr(os, "sched_getaffinity")
        else os.cpu_count(),
        "event_loop": loop_name(),
        "load": round(os.getloadavg()[0], 2),
    }


def as_json(about: dict[str, Any], figures: Sequence[Figure]) -> dict[str, Any]:
    """All figures with all their values."""
    return {"machine": about, "figures": [each.as_json() for each in figures]}


def table(figures: Sequence[Figure]) -> RenderableType:
    """One row for each figure: its median, and the least and the greatest value.

    If a figure has a target, there are two more columns: the target, and whether it is reached.
    """
    from rich.table import Table

    has_targets = any(each.target is not None for each in figures)
    made = Table(box=None, pad_edge=False, header_style="bold", padding=(0, 2, 0, 0))
    for heading, side in (
        ("scenario", "left"),
        ("nodes", "right"),
        ("figure", "left"),
        ("median", "right"),
        ("min", "right"),
        ("max", "right"),
        ("repeats", "right"),
        ("unit", "left"),
        *((("target", "left"), ("reached", "left")) if has_targets else ()),
    ):
        made.add_column(heading, justify="right" if side == "right" else "left")
    for each in figures:
        spread = [rounded(min(each.values)), rounded(max(each.values))]
        if len(each.values) == 1:
            spread = ["", ""]
        made.add_row(
            each.scenario,
            f"{each.nodes:,}",
            each.name,
            rounded(each.median),
            *spread,
            str(len(each.values)),
            each.unit,
            *(_judged(each) if has_targets else ()),
        )
    return made


def _judged(figure: Figure) -> tuple[str, str]:
    """The target, and whether it is reached."""
    if figure.target is None:
        return "", ""
    at_most = f"{figure.target.judged} \N{LESS-THAN OR EQUAL TO} {figure.target.at_most:,g}"
    return at_most, "yes" if figure.reached else "no"


def rounded(value: float) -> str:
    """Three significant digits."""
    if value >= 1_000:
        return f"{value:,.0f}"
    if value >= 100:
        return f"{value:.0f}"
    return f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def plot(figures: Sequence[Figure], path: Path) -> None:
    """The figures over the number of nodes, on two logarithmic axes; one picture for each unit.

    Raises ImportError without matplotlib, OSError if the file cannot be written.
    """
    from matplotlib.figure import Figure as Picture  # an optional dependency
    from matplotlib.ticker import NullFormatter

    units = list(dict.fromkeys(each.unit for each in figures))
    nodes = sorted({each.nodes for each in figures})
    picture = Picture(figsize=(9, 4.5 * len(units)), layout="constrained")
    for index, unit in enumerate(units):
        axes = picture.add_subplot(len(units), 1, index + 1)
        named: dict[str, list[Figure]] = {}
        for each in figures:
            if each.unit == unit:
                named.setdefault(f"{each.scenario}: {each.name}", []).append(each)
        for name, sizes in named.items():
            axes.plot([e.nodes for e in sizes], [e.median for e in sizes], marker="o", label=name)
        axes.set_xscale("log")
        axes.set_xticks(nodes, [f"{n:,}" for n in nodes])
        axes.xaxis.set_minor_formatter(NullFormatter())
        if unit == RATIO:
            axes.set_ylim(bottom=0)
        else:
            axes.set_yscale("symlog" if any(e.median <= 0 for e in figures) else "log")
            axes.yaxis.set_major_formatter(lambda value, _: rounded(value) if value else "0")
        axes.set_xlabel("nodes")
        axes.set_ylabel(unit)
        axes.grid(True, which="both", alpha=0.3)
        axes.legend(fontsize="small", loc="center left", bbox_to_anchor=(1.0, 0.5))
    picture.savefig(path)


def described(about: dict[str, Any]) -> str:
    """The machine, in one line above a table."""
    return (
        f"version {about['rallypoint']} on {about['cores']} cores, {about['system']}, Python "
        f"{about['python']}, {about['event_loop']}; load average before: {about['load']}"
    )
