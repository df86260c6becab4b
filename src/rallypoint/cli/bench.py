"""`rallypoint bench`: how fast nodes meet and regroup here, and what they cost."""

from __future__ import annotations

import contextlib
import enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from rallypoint.cli import output
from rallypoint.cli.common import TokenFileOption, token_of
from rallypoint.errors import RallypointError, UsageError

if TYPE_CHECKING:
    from rallypoint.bench.driver import Coordinator
    from rallypoint.bench.figure import Figure


class Scenario(enum.StrEnum):
    """One question."""

    MEET = "meet"
    REGROUP = "regroup"
    IDLE = "idle"
    STORE = "store"


class BenchFailedError(RallypointError):
    """A measurement could not be taken."""


def add_to(app: typer.Typer) -> None:
    """Add the command."""
    app.command("bench")(bench)


def bench(
    scenario: Annotated[
        Scenario,
        typer.Argument(
            help="meet: from the first call to the last answer; regroup: a node killed, leaving, "
            "arriving, frozen; idle: traffic, CPU and memory; store: calls a second, barriers."
        ),
    ],
    nodes: Annotated[
        str, typer.Option("--nodes", metavar="N[,N...]", help="How many nodes, one or more sizes.")
    ] = "8,32,128",
    repeats: Annotated[
        int, typer.Option("--repeats", metavar="N", min=1, help="How often each is measured.")
    ] = 10,
    processes: Annotated[
        int,
        typer.Option("--processes", metavar="N", min=1, help="Processes that carry the nodes."),
    ] = 1,
    seconds: Annotated[
        float, typer.Option("--seconds", metavar="S", min=0.1, help="How long idle watches.")
    ] = 10.0,
    at: Annotated[
        str,
        typer.Option(
            "--at",
            metavar="WHERE",
            help="served: a `rallypoint serve` of its own; embedded: a coordinator inside a "
            "node's process; or the HOST:PORT of one that runs.",
        ),
    ] = "served",
    token_file: TokenFileOption = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    plot: Annotated[
        Path | None,
        typer.Option("--plot", metavar="FILE", help="Draw the figures over the sizes (PNG, SVG)."),
    ] = None,
) -> None:
    """Measure on this machine, with nodes that are real for the coordinator. See docs/scale.md."""
    from rallypoint.bench import driver, idle, meet, regroup, report, store

    sizes = _sizes(nodes)
    measure = {
        Scenario.MEET: meet.measure,
        Scenario.REGROUP: regroup.measure,
        Scenario.IDLE: idle.measure,
        Scenario.STORE: store.measure,
    }[scenario]
    about = report.machine()
    figures: list[Figure] = []
    try:
        with _coordinator(at, token_of(token_file) or "") as where:
            plan = driver.Plan(where, repeats=repeats, processes=processes, seconds=seconds)
            for size in sizes:
                output.note(f"{scenario.value} with {size:,} nodes")
                figures += measure(plan, size)
    except driver.BenchError as error:
        raise BenchFailedError(str(error), hint=error.hint) from error
    if as_json:
        output.print_json(report.as_json(about, figures))
    else:
        output.show(report.table(figures))
    if plot is not None:
        _plot(figures, plot)


def _sizes(text: str) -> list[int]:
    try:
        sizes = [int(each) for each in text.split(",")]
    except ValueError:
        sizes = []
    if not sizes or min(sizes) < 2 or max(sizes) > 1_000_000:
        raise UsageError(
            f"--nodes must be numbers from 2 to 1,000,000 with commas between them, not {text!r}"
        )
    return sizes


def _coordinator(at: str, token: str) -> contextlib.AbstractContextManager[Coordinator]:
    from rallypoint.bench import driver

    if at == "served":
        return driver.served()
    if at == "embedded":
        return driver.embedded()
    return contextlib.nullcontext(driver.running(at, token))


def _plot(figures: list[Figure], path: Path) -> None:
    from rallypoint.bench import report

    try:
        report.plot(figures, path)
    except ImportError as error:
        raise UsageError(
            "--plot needs matplotlib, which is not installed", hint="pip install matplotlib"
        ) from error
    except (OSError, ValueError) as error:
        raise UsageError(f"cannot draw to {path}: {error}") from error
    output.note(f"drawn to {path}")
