"""The cost of a node for its coordinator, fitted from a few sizes, and predictions for others.

Every quantity is fitted twice: as `fixed + per node * N`, by least squares of the relative errors,
and as `N ** exponent`, over all sizes and over the last two. The exponent shows whether a quantity
grows faster than the number of nodes. A prediction follows the line, but is never below the cost
for each node at the largest measured size, where caches are full that are not full at small sizes.
It is marked as a prediction everywhere, and ends at PREDICTED_TIMES_MAX times the largest measured
size.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any, Final

import msgspec

from rallypoint.bench import driver, idle, meet
from rallypoint.bench.figure import Figure

if TYPE_CHECKING:
    from pathlib import Path

    from rich.console import RenderableType

PREDICTED: Final = (10_000, 30_000, 100_000)
PREDICTED_TIMES_MAX: Final = 12
"""There are no predictions above this many times the largest measured number of nodes."""
EXPONENT_MAX: Final = 1.1
"""The bound for time, bytes and CPU. More would approach the square of N."""

CPU_PER_S: Final = "ms per s"
_ROUND: Final = "a round: the end of one, and the next"
_IDLE: Final = "a second in which nothing happens"


class Cost(msgspec.Struct, frozen=True, kw_only=True):
    """One quantity for all nodes together, over the sizes that were measured.

    It is about `fixed + per_node * nodes`. It grows as `nodes ** exponent`, and between the two
    largest sizes as `nodes ** last_exponent`.
    """

    name: str
    unit: str
    about: str
    measured: dict[int, float]
    per_node: float
    fixed: float
    exponent: float
    last_exponent: float

    def fitted(self, nodes: int) -> float:
        """The line at this size."""
        return self.fixed + self.per_node * nodes

    def predict(self, nodes: int) -> float | None:
        """The prediction for this size; None if it is too much larger than the measured ones."""
        largest = max(self.measured)
        if nodes > largest * PREDICTED_TIMES_MAX:
            return None
        per_node = (self.measured[largest] - self.fixed) / largest
        return self.fixed + max(self.per_node, per_node) * nodes

    def as_json(self) -> dict[str, Any]:
        """For JSON. Each prediction has `is_prediction`."""
        return {
            **msgspec.to_builtins(self),
            "measured": [{"nodes": n, "value": v} for n, v in self.measured.items()],
            "predicted": [
                {"nodes": n, "value": value, "is_prediction": True}
                for n in PREDICTED
                if (value := self.predict(n)) is not None
            ],
        }


# -- fitting ---------------------------------------------------------------------------------------


def fit(name: str, unit: str, about: str, measured: dict[int, float]) -> Cost:
    """The cost for these measurements, by number of nodes. Values of 0 are left out of the fit.

    Raises BenchError if fewer than two sizes are left.
    """
    sizes = sorted(nodes for nodes, value in measured.items() if value > 0)
    values = [measured[nodes] for nodes in sizes]
    if len(sizes) < 2:
        seen = ", ".join(f"{value:g} at {nodes:,} nodes" for nodes, value in measured.items())
        raise driver.BenchError(
            f"{name} ({unit}, {about}) cannot be fitted: {seen}",
            "measure for longer (--seconds), or at larger sizes (--nodes)",
        )
    fixed, per_node = _line(sizes, values)
    return Cost(
        name=name,
        unit=unit,
        about=about,
        measured=measured,
        per_node=per_node,
        fixed=fixed,
        exponent=_exponent(sizes, values),
        last_exponent=_exponent(sizes[-2:], values[-2:]),
    )


def _line(sizes: Sequence[int], values: Sequence[float]) -> tuple[float, float]:
    """`fixed` and `per node`, both at least 0, with the least squares of relative errors."""
    a = [1 / v for v in values]
    b = [n / v for n, v in zip(sizes, values, strict=True)]
    aa, bb = sum(x * x for x in a), sum(x * x for x in b)
    ab, sa, sb = sum(x * y for x, y in zip(a, b, strict=True)), sum(a), sum(b)
    determinant = aa * bb - ab * ab
    if determinant > 0:
        fixed = (sa * bb - sb * ab) / determinant
        per_node = (sb * aa - sa * ab) / determinant
        if fixed >= 0 and per_node >= 0:
            return fixed, per_node
    through_zero = sb / bb
    level = sa / aa
    # The best line has a negative part. So one part is set to 0: that which gives the smaller
    # errors.
    if _errors(a, b, 0.0, through_zero) <= _errors(a, b, level, 0.0):
        return 0.0, through_zero
    return level, 0.0


def _errors(a: Sequence[float], b: Sequence[float], fixed: float, per_node: float) -> float:
    return sum((fixed * x + per_node * y - 1) ** 2 for x, y in zip(a, b, strict=True))


def _exponent(sizes: Sequence[int], values: Sequence[float]) -> float:
    """The slope of the values over the sizes, both as logarithms."""
    x, y = [math.log(n) for n in sizes], [math.log(v) for v in values]
    middle_x, middle_y = sum(x) / len(x), sum(y) / len(y)
    above = sum((p - middle_x) * (q - middle_y) for p, q in zip(x, y, strict=True))
    return above / sum((p - middle_x) ** 2 for p in x)


# -- measuring -------------------------------------------------------------------------------------


def measure(
    at: Callable[[], AbstractContextManager[driver.Coordinator]],
    sizes: Sequence[int],
    plan_for: Callable[[driver.Coordinator], driver.Plan],
    say: Callable[[str], None],
) -> list[Cost]:
    """All costs at these sizes. `at` gives the coordinator for each size."""
    found: dict[tuple[str, str, str], dict[int, float]] = {}
    for nodes in sizes:
        say(f"model with {nodes:,} nodes")
        with at() as where:
            for figure in _measure_one(plan_for(where), nodes):
                key = (figure.name, figure.unit, figure.about)
                found.setdefault(key, {})[nodes] = figure.median
    return [fit(*key, measured) for key, measured in found.items()]


def _measure_one(plan: driver.Plan, nodes: int) -> list[Figure]:
    driver.check_descriptors(nodes)
    base = plan.usage()
    with driver.fleets(plan.processes) as fleets:
        connected = fleets.connect(
            plan.at, run_id=plan.run_id(), nodes=nodes, settings=meet.settings(nodes), ready=True
        )
        fleets.ask("settle")
        before, began_s = fleets.ask("counts"), plan.cpu_s()
        spans_s = meet.warm_rounds(plan, fleets, plan.repeats)["span_s"]
        after, ended_s = fleets.ask("counts"), plan.cpu_s()
        first, last = idle.watch(plan, fleets, connected, 1)
        seconds = last.at_s - first.at_s
        fleets.ask("disconnect")

    def figure(name: str, unit: str, about: str, values: Sequence[float]) -> Figure:
        return Figure(
            scenario="model", name=name, nodes=nodes, unit=unit, values=tuple(values), about=about
        )

    messages, payload_bytes = ("sent", "received"), ("sent_bytes", "received_bytes")
    rounds = plan.repeats

    def of_rounds(names: tuple[str, str], beats: str) -> list[float]:
        """The counts without heartbeats, which depend on time and not on rounds."""
        grown = driver.grown(before, after, *names) - driver.grown(before, after, beats)
        return [grown / rounds]

    def idle_per_s(names: tuple[str, str]) -> list[float]:
        return [driver.grown(first.counts, last.counts, *names) / seconds]

    figures = [
        figure("time of a warm meeting", "ms", "first call to last answer", _ms(spans_s)),
        figure("messages", "per round", _ROUND, of_rounds(messages, "beats")),
        figure("bytes", "per round", _ROUND, of_rounds(payload_bytes, "beats_bytes")),
        figure("messages", "per s", _IDLE, idle_per_s(messages)),
        figure("bytes", "per s", _IDLE, idle_per_s(payload_bytes)),
    ]
    if base and first.usage and last.usage and began_s is not None and ended_s is not None:
        grown_mib = (last.usage.memory_bytes - base.memory_bytes) / 2**20
        idle_cpu_s = last.usage.cpu_s - first.usage.cpu_s
        figures += [
            figure(
                "coordinator's CPU", "ms per round", _ROUND, _ms([(ended_s - began_s) / rounds])
            ),
            figure("coordinator's CPU", CPU_PER_S, _IDLE, _ms([idle_cpu_s / seconds])),
            figure("coordinator's memory", "MiB", "above the memory at its start", [grown_mib]),
        ]
    return figures


def _ms(values_s: Sequence[float]) -> list[float]:
    return [value * 1e3 for value in values_s]


# -- showing ---------------------------------------------------------------------------------------


def as_json(about: dict[str, Any], costs: Sequence[Cost]) -> dict[str, Any]:
    """For JSON."""
    return {
        "machine": about,
        "exponent_wanted_at_most": EXPONENT_MAX,
        "model": [each.as_json() for each in costs],
    }


def rows(costs: Sequence[Cost]) -> tuple[list[str], list[list[str]]]:
    """Headings and rows of the table: measurements, fit and predictions."""
    from rallypoint.bench.report import rounded

    sizes = list(costs[0].measured)
    headings = ["cost", "unit", *(f"{n:,}" for n in sizes), "fixed", "per node", "exponent"]
    headings += ["last step", *(f"{n:,} (predicted)" for n in PREDICTED)]
    made = []
    for each in costs:
        cells = [each.name, each.unit, *(rounded(each.measured[n]) for n in sizes)]
        cells += [rounded(each.fixed), f"{each.per_node:.3g}"]
        cells += [f"{each.exponent:.2f}", f"{each.last_exponent:.2f}"]
        predicted = (each.predict(n) for n in PREDICTED)
        made.append([*cells, *("–" if p is None else rounded(p) for p in predicted)])
    return headings, made


def table(costs: Sequence[Cost]) -> RenderableType:
    """The same table for a terminal."""
    from rich.table import Table

    headings, made = rows(costs)
    drawn = Table(box=None, pad_edge=False, header_style="bold", padding=(0, 2, 0, 0))
    for index, heading in enumerate(headings):
        drawn.add_column(heading, justify="left" if index < 2 else "right")
    for row in made:
        drawn.add_row(*row)
    return drawn


def remarks(costs: Sequence[Cost]) -> list[str]:
    """Sentences on what the table shows: growth, and that predictions are not measurements."""
    sizes = sorted(costs[0].measured)
    steep = _steep(costs, lambda each: each.exponent)
    last = _steep(costs, lambda each: each.last_exponent)
    said = []
    if len(sizes) == 2:
        said.append("an exponent from two sizes is only their ratio: measure more sizes")
    elif steep:
        said.append(f"these grow faster than N to the {EXPONENT_MAX:g}: {steep}")
    else:
        said.append(f"nothing grows faster than N to the {EXPONENT_MAX:g}")
        if last:
            said.append(f"but from {sizes[-2]:,} to {sizes[-1]:,} nodes these do: {last}")
    said.append(
        "predicted values were not measured: they extend the figures of up to "
        f"{sizes[-1]:,} nodes, to at most {PREDICTED_TIMES_MAX} times as many"
    )
    full = [f"{n:,}" for n in PREDICTED if any(_is_over_a_core(each, n) for each in costs)]
    if full:
        said.append(
            f"{' and '.join(full)} idle nodes would need more than 1,000 ms of CPU a second, "
            "but one process has one core"
        )
    return said


def _steep(costs: Sequence[Cost], exponent: Callable[[Cost], float]) -> str:
    found = ((each, exponent(each)) for each in costs)
    return ", ".join(f"{e.name} {e.unit} ({x:.2f})" for e, x in found if x > EXPONENT_MAX)


def _is_over_a_core(cost: Cost, nodes: int) -> bool:
    return cost.unit == CPU_PER_S and (cost.predict(nodes) or 0.0) > 1_000


def plot(costs: Sequence[Cost], path: Path) -> None:
    """Measurements as dots, the fitted line, and predictions as hollow dots.

    Raises ImportError without matplotlib, OSError or ValueError if the file cannot be written.
    """
    from matplotlib.figure import Figure as Picture  # optional: only for this

    picture = Picture(figsize=(8, 3.5 * len(costs)), layout="constrained")
    for index, each in enumerate(costs):
        axes = picture.add_subplot(len(costs), 1, index + 1)
        sizes = sorted({*each.measured, *PREDICTED})
        predicted = {n: p for n in PREDICTED if (p := each.predict(n)) is not None}
        axes.plot(sizes, [each.fitted(n) for n in sizes], "--", color="0.6", label="fitted")
        axes.plot(list(each.measured), list(each.measured.values()), "o", label="measured")
        axes.plot(list(predicted), list(predicted.values()), "o", mfc="none", label="predicted")
        axes.set_xscale("log")
        axes.set_yscale("log")
        axes.set_xlabel("nodes")
        axes.set_ylabel(each.unit)
        axes.set_title(f"{each.name} ({each.about}), exponent {each.exponent:.2f}", fontsize=10)
        axes.grid(True, which="both", alpha=0.3)
        axes.legend(fontsize="small")
    picture.savefig(path)
