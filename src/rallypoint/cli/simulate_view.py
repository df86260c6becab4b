"""The output of `rallypoint simulate`: tables for people."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Final

from rallypoint.cli import output
from rallypoint.simulation.fleet.play import LABEL, Result
from rallypoint.simulation.fleet.workload import HOUR_S

if TYPE_CHECKING:
    from rallypoint.simulation.fleet.accounts import Distribution
    from rallypoint.simulation.fleet.workload import Workload

BREAKS: Final = {
    "node_lost": "a node was lost",
    "node_left": "a node left (preempted)",
    "nodes_joined": "nodes joined",
    "worker_failed": "a worker failed",
    "ready_again": "a node asked for a new round",
}
SHARE_SHOWN_MIN: Final = 0.000_05


def show(
    results: Sequence[tuple[str, Result]], compared: str, workload: Workload, *, is_traced: bool
) -> None:
    """Print everything. `results`: each with the value that was compared.

    `workload`: of the first of them. `is_traced`: the failures are those of a trace.
    """
    first = results[0][1]
    headings = ["", *(f"{compared}={value}" if compared else "" for value, _ in results)]
    rows = [
        _row(
            "simulated", results, lambda r: duration(r.seconds) + ("" if r.is_whole else " (part)")
        ),
        _row("useful time", results, lambda r: percent(r.useful)),
        _row("useful, by nodes in the round", results, lambda r: percent(r.capacity)),
        _row("rounds in which workers ran", results, lambda r: f"{r.rounds:,}"),
        _row("failures (a preemption is one)", results, lambda r: f"{r.failures:,}"),
    ]
    for index, lost in enumerate(first.lost):
        if any(r.lost[index].share >= SHARE_SHOWN_MIN for _, r in results):
            name = f"lost: {lost.cause.replace('_', ' ')}"
            rows.append(_row(name, results, partial(_lost, index)))
    for kind in sorted({kind for _, r in results for kind in r.breaks}):
        name = f"rounds ended: {BREAKS.get(kind, kind)}"
        rows.append(_row(name, results, partial(_ended, kind)))
    rows += [
        _row("regroup", results, lambda r: _times(r.regroups)),
        _row("regroup, Rallypoint's part", results, lambda r: _times(r.own)),
        _row("coordinator's takeover", results, lambda r: _times(r.takeovers)),
    ]
    made = output.table(headings, [tuple(map(output.cell, row)) for row in rows])
    lines = [LABEL, *assumptions(workload, compared, is_traced=is_traced)]
    output.show(*map(output.cell, lines), *([output.cell("")] if compared else []), made)
    for value, result in results:
        if result.ended:
            which = f"with {compared}={value}: " if compared else ""
            output.note(f"{which}the run ended before its time: {result.ended}")
            if result.breaks.get("worker_failed") and "restart" in result.ended:
                output.note("give --set max_restarts=N to simulate with a larger budget")


def assumptions(workload: Workload, compared: str, *, is_traced: bool) -> list[str]:
    """What the result assumes of the job and its machines, as lines."""
    every = _kinds(workload.shares)
    if is_traced:
        fails = "failures are those of the trace"
    elif math.isinf(workload.mtbf_s):
        fails = "no node fails by itself"
    else:
        fails = f"a node fails every {workload.mtbf_s / HOUR_S:,g} h in the mean ({every})"
    saves = "no checkpoints"
    if not math.isinf(workload.checkpoint_every_s):
        cost, between = workload.checkpoint_s, workload.checkpoint_every_s
        saves = f"a checkpoint takes {_length(cost)} after {_length(between)} of work"
    starts = f"workers start in {_length(workload.start_s)}, stop in {_length(workload.stop_s)}"
    but = f", but for what is compared ({compared})" if compared else ""
    return [
        f"assumed{but}: {workload.nodes:,} nodes and {workload.spares:,} spares, at least "
        f"{workload.least:,} in a round; ledger {workload.ledger};",
        f"{fails};",
        f"{starts}; {saves}. Options change each of these.",
    ]


def _length(seconds: float) -> str:
    """A time that was given, such as "15 min"."""
    return duration(seconds).replace(".0 s", " s").replace(" min 0 s", " min")


def _kinds(shares: Mapping[str, float]) -> str:
    return ", ".join(f"{kind} {share:.0%}" for kind, share in shares.items() if share)


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
