"""The output of `rallypoint simulate`: tables for people."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Final

from rallypoint.cli import output
from rallypoint.simulation.fleet.play import LABEL, Result

if TYPE_CHECKING:
    from rallypoint.simulation.fleet.accounts import Distribution

BREAKS: Final = {
    "node_lost": "a node was lost",
    "node_left": "a node left (preempted)",
    "nodes_joined": "nodes joined",
    "worker_failed": "a worker failed",
    "ready_again": "a node asked for a new round",
}
SHARE_SHOWN_MIN: Final = 0.000_05


def show(results: Sequence[tuple[str, Result]], compared: str) -> None:
    """Print everything. `results`: each with the value that was compared."""
    first = results[0][1]
    headings = ["", *(f"{compared}={value}" if compared else "" for value, _ in results)]
    rows = [
        _row(
            "simulated", results, lambda r: duration(r.seconds) + ("" if r.is_whole else " (part)")
        ),
        _row("useful time", results, lambda r: percent(r.useful)),
        _row("useful, by nodes in the round", results, lambda r: percent(r.capacity)),
        _row("rounds", results, lambda r: f"{r.rounds:,}"),
        _row("failures", results, lambda r: f"{r.failures:,}"),
    ]
    for index, lost in enumerate(first.lost):
        if any(r.lost[index].share >= SHARE_SHOWN_MIN for _, r in results):
            name = f"lost: {lost.cause.replace('_', ' ')}"
            rows.append(_row(name, results, partial(_lost, index)))
    for kind in sorted({kind for _, r in results for kind in r.breaks}):
        name = f"ended: {BREAKS.get(kind, kind)}"
        rows.append(_row(name, results, partial(_ended, kind)))
    rows += [
        _row("regroup", results, lambda r: _times(r.regroups)),
        _row("regroup, Rallypoint's part", results, lambda r: _times(r.own)),
        _row("coordinator's takeover", results, lambda r: _times(r.takeovers)),
    ]
    made = output.table(headings, [tuple(map(output.cell, row)) for row in rows])
    output.show(output.cell(LABEL), made)
    for value, result in results:
        if result.ended:
            which = f"with {compared}={value}: " if compared else ""
            output.note(f"{which}the run ended before its time: {result.ended}")
            if result.breaks.get("worker_failed") and "restart" in result.ended:
                output.note("give --set max_restarts=N to simulate with a larger budget")


def _row(
    name: str, results: Sequence[tuple[str, Result]], cell: Callable[[Result], str]
) -> list[str]:
    return [name, *(cell(result) for _, result in results)]


def _ended(kind: str, result: Result) -> str:
    return f"{result.breaks.get(kind, 0):,}"


def _lost(index: int, result: Result) -> str:
    lost = result.lost[index]
    return f"{percent(lost.share)}  {duration(lost.seconds)}"


def _times(times: Distribution) -> str:
    if not times.count:
        return "–"
    values = (times.p50_s, times.p90_s, times.p99_s, times.max_s)
    parts = zip(("p50", "p90", "p99", "max"), values, strict=True)
    return ", ".join(f"{name} {duration(value or 0.0)}" for name, value in parts)


def percent(share: float) -> str:
    """ "93.4 %"; small shares with more digits."""
    return f"{share:.1%}" if share >= 0.01 or share == 0 else f"{share:.2%}"


def duration(seconds: float) -> str:
    """A time for people: two units at most."""
    if seconds < 1:
        return f"{seconds * 1e3:.0f} ms"
    if seconds < 60:
        return f"{seconds:.1f} s"
    if seconds < 3_600:
        return f"{int(seconds // 60)} min {int(seconds % 60)} s"
    return f"{int(seconds // 3_600)} h {int(seconds % 3_600 // 60)} min"
