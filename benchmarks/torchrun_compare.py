"""Runs the same job under torchrun with torch's own rendezvous and with Rallypoint's, side by side.

    python benchmarks/torchrun_compare.py [--only meet_2,kill] [--repeats 3] [--json]

Progress goes to stderr; a table, or with --json everything, to stdout. Exit code 0: everything was
measured; 1: a figure was not measured, or not in every repeat, and stderr says which and why; 2: it
could not begin. With torch's defaults, the end of the job is a result. See README.md beside it.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Final

ROOT: Final = Path(__file__).resolve().parents[1]
if not __package__:  # Run as a file: the checkout has the package `benchmarks`.
    sys.path[0] = str(ROOT)

from benchmarks import private_network  # noqa: E402
from benchmarks.parts import run_part  # noqa: E402
from benchmarks.torchrun_jobs import (  # noqa: E402
    C10D,
    C10D_DEFAULT,
    RALLYPOINT,
    JobFailedError,
    Node,
    Variant,
    job,
)
from rallypoint import __version__  # noqa: E402
from rallypoint.bench.figure import Column, Target  # noqa: E402
from rallypoint.bench.processes import BenchError  # noqa: E402
from rallypoint.net import free_port  # noqa: E402

IDLE_S: Final = 20.0
CALM_S: Final = 3.0
"""Between the last worker's first step in a round and what is done to the job."""
BOTH: Final = (RALLYPOINT, C10D)
ALL: Final = (RALLYPOINT, C10D, C10D_DEFAULT)

Sample = dict[str, float]


@dataclass(frozen=True)
class Group:
    """Columns that one job gives: what is timed, and the bound for Rallypoint's median.

    `times_better`: how many times less than torch's the first column's median must be; None if
    there is no such bound. A job with torch's defaults runs once, only to show what happens.
    """

    name: str
    repeats: int
    columns: tuple[Column, ...]
    sample: Callable[[Variant], Sample]
    variants: tuple[Variant, ...] = BOTH
    times_better: float | None = None
    needs_private_network: bool = False


@dataclass
class Measured:
    """The results of a column: every value of every variant, or why there is none."""

    column: Column
    times_better: float | None = None
    values: dict[str, list[float]] = field(default_factory=dict)
    notes: dict[str, str] = field(default_factory=dict)

    def median(self, variant: Variant) -> float | None:
        """The median of a variant's values."""
        values = self.values.get(variant.name)
        return statistics.median(values) if values else None

    @property
    def ratio(self) -> float | None:
        """torch's median, with the store not shared, divided by Rallypoint's."""
        ours, theirs = self.median(RALLYPOINT), self.median(C10D)
        return theirs / ours if ours and theirs is not None else None

    @property
    def reached(self) -> bool | None:
        """Whether the column's bound is met; None if it has none."""
        if self.column.target is not None:
            ours = self.values.get(RALLYPOINT.name)
            return bool(ours) and self.column.target.is_reached(tuple(ours or ()))
        if self.times_better is not None:
            return self.ratio is not None and self.ratio >= self.times_better
        return None


# -- meeting -------------------------------------------------------------------------------------


def _meet(count: int, variant: Variant) -> Sample:
    where = (variant.backend, count, free_port())
    lines = run_part("torchrun_meeting_part", *where, **variant.environment)
    failed = [line["error"] for line in lines if "error" in line]
    if failed:
        raise BenchError(f"{len(failed)} of {count} did not meet: {failed[0]}")
    first_s = min(line["asked_s"] for line in lines)
    return {"met": max(line["met_s"] for line in lines) - first_s}


def _meeting(count: int, times_better: float | None) -> Group:
    timed = (
        f"{count} handlers of torch's registry, a process each, that begin at one moment with "
        "everything imported; from the first call of get_rendezvous_handler() to the last return "
        "of next_rendezvous(); min = max"
    )
    columns = (Column("met", "s", timed),)
    return Group(f"meet_{count}", 5, columns, partial(_meet, count), times_better=times_better)


def _agents(variant: Variant) -> Sample:
    with job(variant, "2:2", "idle") as run:
        run.start(2, first_hosts=False)
        met_s = max(run.wait_for(run.nodes, "met"))
        asked = run.wait_for(run.nodes, "asked")
    return {"met": met_s - max(asked)}


# -- growing, and losing a node ------------------------------------------------------------------


def _last(nodes: Sequence[Node], *kinds: str, since_s: float, before_s: float) -> float:
    """When the last of the nodes had its first event of these kinds."""
    times = [node.first_s(*kinds, since_s=since_s) for node in nodes]
    found = [at_s for at_s in times if at_s is not None and at_s <= before_s]
    if len(found) != len(nodes):
        raise BenchError(f"not every node was {' or '.join(kinds)}")
    return max(found)


def _split(
    survivors: Sequence[Node], nodes: Sequence[Node], since_s: float, end_s: float
) -> Sample:
    """The parts of the time until the first step of the new round."""
    noticed_s = _last(survivors, "told", "worker_failed", since_s=since_s, before_s=end_s)
    stopped_s = _last(survivors, "called", since_s=since_s, before_s=end_s)
    met = [node.first_s("met", since_s=since_s, size=len(nodes)) for node in nodes]
    met_s = max(at_s for at_s in met if at_s is not None)
    return {
        "noticed": noticed_s - since_s,
        "stopped": stopped_s - noticed_s,
        "met": met_s - stopped_s,
        "started": end_s - met_s,
    }


def _grow(variant: Variant) -> Sample:
    with job(variant, "2:3", "train") as run:
        run.start(2)
        run.stepped(run.nodes)
        time.sleep(CALM_S)
        survivors = list(run.nodes)
        (newcomer,) = run.start(1)
        started_s = newcomer.started_s
        (arrived_s,) = run.wait_for([newcomer], "called")
        end_s = run.stepped(run.nodes, arrived_s)
        return {
            "first_step": end_s - arrived_s,
            "from_start_of_agent": end_s - started_s,
            **_split(survivors, run.nodes, arrived_s, end_s),
        }


def _kill(variant: Variant) -> Sample:
    with job(variant, "2:3", "train") as run:
        run.start(3)
        run.stepped(run.nodes)
        time.sleep(CALM_S)
        *survivors, victim = run.nodes
        killed_s = time.monotonic()
        victim.kill()
        end_s = run.stepped(survivors, killed_s)
        split = _split(survivors, survivors, killed_s, end_s)
        return {"first_step": end_s - killed_s, **split}


_PARTS: Final = {
    "noticed": "until the last survivor's agent was notified, or its worker had failed",
    "stopped": "until the last survivor's worker was stopped, and its agent called "
    "next_rendezvous(); torchrun looks every 0.1 s",
    "met": "until the last next_rendezvous() returned",
    "started": "until the restarted workers had done a step together: Python, `import torch`, "
    "gloo, DDP",
}


def _part_columns() -> tuple[Column, ...]:
    return tuple(Column(name, "s", f"of that, {timed}") for name, timed in _PARTS.items())


_JOB: Final = "agents of --nnodes=2:3 with one small DDP worker each, --max-restarts=3"

# -- nothing to do -------------------------------------------------------------------------------


def _idle(count: int, variant: Variant) -> Sample:
    with job(variant, f"{count}:{count}", "idle") as run:
        run.start(count)
        run.wait_for(run.nodes, "worker_began")
        time.sleep(CALM_S)
        before, began_s = private_network.loopback(), time.monotonic()
        time.sleep(IDLE_S)
        after, seconds = private_network.loopback(), time.monotonic() - began_s
    rate = [(b - a) / seconds / count for a, b in zip(before, after, strict=True)]
    return {"bytes": rate[0], "packets": rate[1]}


def _idling(count: int) -> Group:
    timed = (
        f"{count} torchrun agents in a round, a worker each that does nothing; the traffic on "
        f"loopback in {IDLE_S:g} s, with headers and ACKs, divided by nodes and seconds"
    )
    columns = (Column("bytes", "bytes/s", timed), Column("packets", "packets/s", timed))
    return Group(f"idle_{count}", 2, columns, partial(_idle, count), needs_private_network=True)


GROUPS: Final = {
    group.name: group
    for group in (
        _meeting(2, 20.0),
        _meeting(8, None),
        _meeting(32, None),
        Group(
            "agents",
            5,
            (
                Column(
                    "met",
                    "s",
                    "two torchrun agents that start at one moment, --nnodes=2:2; from the later "
                    "one's call of get_rendezvous_handler() to the last return of "
                    "next_rendezvous(), with what the backend imports",
                ),
            ),
            _agents,
        ),
        Group(
            "grow",
            3,
            (
                Column(
                    "first_step",
                    "s",
                    f"two {_JOB}; from a third agent's call of next_rendezvous() to the first "
                    "step of three",
                    Target(5.0),
                ),
                Column(
                    "from_start_of_agent",
                    "s",
                    "the same, from the start of the third agent's process",
                ),
                *_part_columns(),
            ),
            _grow,
            ALL,
        ),
        Group(
            "kill",
            3,
            (
                Column(
                    "first_step",
                    "s",
                    f"three {_JOB}; from kill -9 of one agent and its worker, not the host's, to "
                    "the first step of two",
                    Target(6.0),
                ),
                *_part_columns(),
            ),
            _kill,
            ALL,
        ),
        _idling(2),
        _idling(8),
    )
}


# -- measuring -----------------------------------------------------------------------------------


def say(text: str) -> None:
    """Print progress to stderr."""
    print(f"torchrun_compare: {text}", file=sys.stderr, flush=True)


def measure(group: Group, repeats: int) -> tuple[list[Measured], list[str]]:
    """All columns of a group, and which repeats were not measured, each with its reason.

    Variants take turns, so that other load affects all of them.
    """
    found = {
        column.name: Measured(column, group.times_better if index == 0 else None)
        for index, column in enumerate(group.columns)
    }
    not_measured: list[str] = []
    for index in range(repeats):
        for variant in group.variants:
            if variant is C10D_DEFAULT and index > 0:
                continue
            try:
                sample = group.sample(variant)
            except (JobFailedError, BenchError) as error:
                which = f"{group.name} {index + 1} of {repeats}, {variant.name}"
                say(f"{which}: {error}")
                reason = str(error).partition("\n")[0]
                found[group.columns[0].name].notes[variant.name] = reason
                # With torch's defaults a job that ends is what this comparison shows.
                if variant is not C10D_DEFAULT or isinstance(error, BenchError):
                    not_measured.append(f"{which}: {reason}")
                continue
            for name, value in sample.items():
                found[name].values.setdefault(variant.name, []).append(value)
            shown = ", ".join(f"{name} {rounded(value):g}" for name, value in sample.items())
            say(f"{group.name} {index + 1} of {repeats}, {variant.name}: {shown}")
    return list(found.values()), not_measured


def rounded(value: float) -> float:
    """Four significant digits: the measurement has no more."""
    return float(f"{value:.4g}")


def load_average() -> list[float]:
    """The load averages over 1, 5 and 15 minutes."""
    return [rounded(value) for value in os.getloadavg()]


def as_json(group: Group, measured: Measured, loads: dict[str, Any]) -> dict[str, Any]:
    """A figure as it is in the JSON: the values of every variant."""
    column = measured.column
    variants = {
        variant.name: {
            "median": None if median is None else rounded(median),
            "values": [rounded(value) for value in measured.values.get(variant.name, [])],
            "note": measured.notes.get(variant.name, ""),
        }
        for variant in group.variants
        for median in [measured.median(variant)]
    }
    return {
        "group": group.name,
        "name": column.name,
        "timed": column.about,
        "unit": column.unit,
        "variants": variants,
        "c10d_over_rallypoint": None if measured.ratio is None else rounded(measured.ratio),
        "expected": {
            "at_most": column.target.at_most if column.target is not None else None,
            "times_better": measured.times_better,
        },
        "reached": measured.reached,
        **loads,
    }


def table(figures: Sequence[dict[str, Any]]) -> str:
    """The rows side by side, as Markdown."""
    names = [variant.name for variant in ALL]
    head = ["figure", *names, "c10d : rallypoint", "expected"]
    lines = [f"| {' | '.join(head)} |", f"|{'---|' * len(head)}"]
    for each in figures:
        cells = [f"{each['group']}: {each['name'].replace('_', ' ')}"]
        cells += [_cell(each["variants"].get(name), each["unit"]) for name in names]
        ratio = each["c10d_over_rallypoint"]
        cells.append("–" if ratio is None else f"{ratio:.1f}")
        cells.append(_expected(each))
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _cell(found: dict[str, Any] | None, unit: str) -> str:
    if found is None:
        return "–"
    if found["median"] is None:
        return str(found["note"]) or "–"
    note = f"; else: {found['note']}" if found["note"] else ""
    values = found["values"]
    spread = f" ({min(values):.3g} – {max(values):.3g})" if len(values) > 1 else ""
    return f"{found['median']:.3g} {unit}{spread}{note}"


def _expected(each: dict[str, Any]) -> str:
    expected, unit = each["expected"], each["unit"]
    if each["reached"] is None:
        return "–"
    bound = (
        f"at most {expected['at_most']:g} {unit}"
        if expected["at_most"] is not None
        else f"{expected['times_better']:g} times less"
    )
    return f"{bound}: {'yes' if each['reached'] else '**no**'}"


def main(arguments: Sequence[str] | None = None) -> int:
    """See above."""
    options = _options(arguments)
    names = options.only.split(",") if options.only else list(GROUPS)
    unknown = [name for name in names if name not in GROUPS]
    if unknown:
        say(f"there is no {', '.join(unknown)}; there is {', '.join(GROUPS)}")
        return 2
    if importlib.util.find_spec("torch") is None:
        say("this compares with torch, which is not installed: pip install torch")
        return 2
    why_not = "not asked for" if options.no_private_network else private_network.enter()
    about = machine(why_not)
    for name, value in about.items():
        say(f"{name.replace('_', ' ')}: {value}")
    figures, not_measured = _measure_all(names, options.repeats, why_not)
    about["load_average_after"] = load_average()
    if options.json:
        print(json.dumps({"machine": about, "figures": figures, "not_measured": not_measured}))
    else:
        print(f"{_described(about)}\n\n{table(figures)}")
    return 1 if not_measured else 0


def _measure_all(
    names: Sequence[str], repeats: int | None, why_not_private: str | None
) -> tuple[list[dict[str, Any]], list[str]]:
    figures: list[dict[str, Any]] = []
    not_measured: list[str] = []
    for name in names:
        group = GROUPS[name]
        if group.needs_private_network and why_not_private is not None:
            not_measured.append(f"{name}: it needs a private network ({why_not_private})")
            say(not_measured[-1])
            continue
        before = load_average()
        measured, missing = measure(group, repeats or group.repeats)
        not_measured += missing
        loads = {"load_average_before": before, "load_average_after": load_average()}
        figures += [as_json(group, each, loads) for each in measured]
    return figures, not_measured


def machine(why_not_private: str | None) -> dict[str, Any]:
    """The machine and the versions with which it was measured."""
    from importlib.metadata import version

    is_private = why_not_private is None
    return {
        "rallypoint": __version__,
        "torch": version("torch"),
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
        "cpus": len(os.sched_getaffinity(0)),
        "host_names": "from the hosts file, in a private mount namespace"
        if is_private
        else f"as this machine answers them ({why_not_private})",
        "network": "a private one, loopback only" if is_private else "this machine's",
        "load_average_before": load_average(),
    }


def _described(about: dict[str, Any]) -> str:
    return "\n".join(f"{name.replace('_', ' ')}: {value}" for name, value in about.items())


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description="Compare torchrun with c10d and with rallypoint.",
        epilog="Exit code: 0 all was measured; 1 a figure was not measured, or not in every "
        "repeat; 2 it could not begin.",
    )
    parser.add_argument("--only", metavar="A,B", help=f"of: {', '.join(GROUPS)}")
    parser.add_argument("--repeats", type=int, metavar="N", help="instead of each group's own")
    parser.add_argument("--json", action="store_true", help="print JSON, no table")
    parser.add_argument(
        "--no-private-network",
        action="store_true",
        help="stay in this machine's network, with its host names; idle is then not measured",
    )
    return parser.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(main())
