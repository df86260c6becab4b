"""`rallypoint bench`: how fast nodes meet and regroup here, and what they cost."""

from __future__ import annotations

import contextlib
import logging
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from rallypoint.cli import api, bench_plot, output, run_locator
from rallypoint.cli.bench_scenarios import (
    NEEDS,
    NODES_HELP,
    SCENARIOS_HELP,
    At,
    Measure,
    Scenario,
    measure_of,
)
from rallypoint.cli.common import TokenFileOption, keys_of
from rallypoint.core.values import Address
from rallypoint.endpoints import EndpointKind, parse_endpoint
from rallypoint.errors import RallypointError, UnreachableError, UsageError

if TYPE_CHECKING:
    from rallypoint.bench.driver import Coordinator, Plan
    from rallypoint.bench.figure import Figure


class BenchFailedError(RallypointError):
    """A measurement could not be taken."""


_RUNS: Final = 200
_PLACES: Final = ("served", "embedded")


def add_to(app: typer.Typer) -> None:
    """Add the command."""
    app.command("bench")(bench)


def bench(
    scenario: Annotated[
        Scenario,
        typer.Argument(
            metavar="SCENARIO",
            help=SCENARIOS_HELP,
        ),
    ],
    nodes: Annotated[
        str | None,
        typer.Option(
            "--nodes",
            metavar="N[,N...]",
            help=NODES_HELP,
        ),
    ] = None,
    repeats: Annotated[
        int,
        typer.Option(
            "--repeats",
            metavar="N",
            min=1,
            help="How often each is measured (what loses nodes or coordinators, but for kill: at "
            "most 5 times).",
        ),
    ] = 10,
    processes: Annotated[
        int | None,
        typer.Option(
            "--processes",
            metavar="N",
            min=1,
            help="Processes that carry the nodes (default: 1; failover: one for each node).",
        ),
    ] = None,
    seconds: Annotated[
        float | None,
        typer.Option(
            "--seconds",
            metavar="S",
            min=0.1,
            help="How long idle and model watch, how long etcd stands still in ledger-away "
            "(default: 10), and how long strangers attack (default: 60).",
        ),
    ] = None,
    at: Annotated[
        str,
        typer.Option(
            "--at",
            metavar="WHERE",
            help="served: a `rallypoint serve` of its own; embedded: a coordinator inside a "
            "node's process; or the HOST:PORT of one that runs. failover, host-lost, rack: the "
            "ledger, etcd://HOST:PORT,.../PREFIX, file:///FOLDER, or etcd for one that is started "
            "(default: a folder of its own).",
        ),
    ] = "served",
    ddp: Annotated[
        bool, typer.Option("--ddp", help="recover: workers are a small torch DDP job (gloo).")
    ] = False,
    runs: Annotated[
        int | None,
        typer.Option(
            "--runs", metavar="N", min=2, help=f"runs: how many there are (default: {_RUNS})."
        ),
    ] = None,
    run: Annotated[
        str | None,
        typer.Option(
            "--run",
            metavar="NAME",
            help="meet on several machines: the run's name, the same on all, and new each time.",
        ),
    ] = None,
    of: Annotated[
        int | None,
        typer.Option(
            "--of",
            metavar="N",
            min=2,
            help="meet on several machines: how many nodes the run has on all together; --nodes "
            "is this machine's share.",
        ),
    ] = None,
    token_file: TokenFileOption = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    plot: Annotated[
        Path | None,
        typer.Option("--plot", metavar="FILE", help="Draw the figures over the sizes (PNG, SVG)."),
    ] = None,
) -> None:
    """Measure on this machine, with nodes that are real for the coordinator. See docs/scale.md."""
    from rallypoint.bench import driver, report

    sizes = _sizes(nodes or NEEDS[scenario].nodes)
    _check_together(scenario, sizes, at, ddp=ddp, runs=runs, run=run, of=of)
    if plot is not None:
        bench_plot.check(plot)
    about = report.machine()

    def plan_for(where: Coordinator) -> Plan:
        ledger = at if NEEDS[scenario].at is At.LEDGER and at not in _PLACES else ""
        return driver.Plan(
            where,
            repeats=repeats,
            processes=processes or 1,
            seconds=seconds or NEEDS[scenario].seconds,
            ddp=ddp,
            runs=runs or _RUNS,
            ledger=ledger,
            place=at,
        )

    def place() -> contextlib.AbstractContextManager[Coordinator]:
        return _coordinator(scenario, at, token_file)

    if scenario is Scenario.RECOVER:
        _check_recover(plan_for(driver.NOWHERE), sizes)
    with _ended_by_signals(), _long_waits_told(), _as_failure():
        # Before a coordinator is started, which inherits the limit of open files.
        connections = _connections(scenario, max(sizes), runs or _RUNS)
        driver.check_descriptors(connections)
        driver.check_ports(connections)
        if scenario is Scenario.MODEL:
            _model(about, sizes, place, plan_for, as_json=as_json, plot=plot)
            return
        measure = _measure(scenario, run, of)
        figures: list[Figure] = []
        with place() as where:
            plan = plan_for(where)
            for index, size in enumerate(sizes):
                number = f" ({index + 1} of {len(sizes)} sizes)" if len(sizes) > 1 else ""
                output.note(f"{scenario.value} with {size:,} nodes{number}")
                if scenario is Scenario.FAILOVER and processes is None:
                    plan.processes = size
                figures += measure(plan, size)
    if as_json:
        output.print_json(report.as_json(about, figures))
    else:
        output.note(report.described(about))
        output.show(report.table(figures))
    if plot is not None:
        bench_plot.draw_to(plot, lambda path: report.plot(figures, path))


def _measure(scenario: Scenario, run: str | None, of: int | None) -> Measure:
    if run is None or of is None:
        return measure_of(scenario)
    from rallypoint.bench import multi_host

    share = multi_host.HostShare(run, of)
    return lambda plan, nodes: multi_host.measure(plan, nodes, share)


def _model(
    about: dict[str, Any],
    sizes: Sequence[int],
    place: Callable[[], contextlib.AbstractContextManager[Coordinator]],
    plan_for: Callable[[Coordinator], Plan],
    *,
    as_json: bool,
    plot: Path | None,
) -> None:
    from rallypoint.bench import model, report

    costs = model.measure(place, sizes, plan_for, output.note)
    if as_json:
        output.print_json(model.as_json(about, costs))
    else:
        output.note(report.described(about))
        output.show(model.table(costs))
        for text in model.remarks(costs):
            output.note(text)
    if plot is not None:
        bench_plot.draw_to(plot, lambda path: model.plot(costs, path))


# -- while it is measured --------------------------------------------------------------------------


class _Stopped(BaseException):
    """A signal came. As with KeyboardInterrupt, nothing but the end of the command catches it."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


@contextlib.contextmanager
def _ended_by_signals() -> Iterator[None]:
    """Ctrl-C, SIGTERM and SIGHUP end what was started, and then the command, with 128 + signal.

    A second one ends it at once; the processes are then ended by the kernel. What whoever started
    this has ignored (nohup) stays so.
    """
    before: dict[int, Any] = {}

    def stop(number: int, frame: object) -> None:
        for each in before:
            signal.signal(each, signal.SIG_DFL)
        raise _Stopped(number)

    if threading.current_thread() is threading.main_thread():
        for each in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            if signal.getsignal(each) is not signal.SIG_IGN:
                before[each] = signal.signal(each, stop) or signal.SIG_DFL
    try:
        yield
    except _Stopped as stopped:
        with contextlib.suppress(OSError):  # The terminal may be what has ended.
            output.note(f"{signal.Signals(stopped.number).name}: what was started has ended")
        raise typer.Exit(128 + stopped.number) from None
    finally:
        for known, handler in before.items():
            signal.signal(known, handler)


class _Notes(logging.Handler):
    """Lines of the log as messages of this command."""

    def emit(self, record: logging.LogRecord) -> None:
        output.note(record.getMessage())


@contextlib.contextmanager
def _long_waits_told() -> Iterator[None]:
    """What `bench` logs, a wait that takes long, is said on stderr."""
    log, notes = logging.getLogger("rallypoint.bench"), _Notes()
    log.addHandler(notes)
    try:
        yield
    finally:
        log.removeHandler(notes)


@contextlib.contextmanager
def _as_failure() -> Iterator[None]:
    from rallypoint.bench.driver import BenchError

    try:
        yield
    except BenchError as error:
        raise BenchFailedError(str(error), hint=error.hint) from error


# -- what was asked for ----------------------------------------------------------------------------


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


def _check_together(
    scenario: Scenario,
    sizes: Sequence[int],
    at: str,
    *,
    ddp: bool,
    runs: int | None,
    run: str | None,
    of: int | None,
) -> None:
    """Whether these options make sense with each other. Raises UsageError."""
    for name, given, where in (
        ("--ddp", ddp, Scenario.RECOVER),
        ("--runs", runs is not None, Scenario.RUNS),
        ("--run", run is not None, Scenario.MEET),
        ("--of", of is not None, Scenario.MEET),
    ):
        if given and scenario is not where:
            raise UsageError(f"{name} is for `bench {where}`, not for `bench {scenario}`")
    if scenario is Scenario.MODEL and len(set(sizes)) < 2:
        raise UsageError(
            "a model is fitted from two sizes at least", hint="for example --nodes 128,256,512"
        )
    may_be = NEEDS[scenario].at
    if may_be is At.LEDGER and at not in ("served", "etcd") and "://" not in at:
        raise UsageError(
            f"`bench {scenario}` starts its own coordinators, over a ledger: {at!r} is none",
            hint="write --at etcd, etcd://HOST:PORT,.../PREFIX or file:///FOLDER, or leave it out",
        )
    if may_be in (At.SERVED, At.NONE) and at != "served":
        raise UsageError(
            f"`bench {scenario}` starts its own coordinators and ledger", hint="leave --at out"
        )
    if may_be is At.STARTED and at not in _PLACES:
        raise UsageError(
            f"`bench {scenario}` attacks a coordinator that it starts itself, not {at!r}",
            hint="write --at served or --at embedded",
        )
    if (run is None) != (of is None):
        raise UsageError(
            "--run and --of belong together: the name of a run of several machines, and its size",
            hint="--at HOST:PORT --run NAME --nodes SHARE --of ALL",
        )
    if of is not None:
        _check_share(sizes, at, of)


def _check_recover(plan: Plan, sizes: Sequence[int]) -> None:
    """Raises UsageError."""
    from rallypoint.bench import driver, recover

    try:
        for size in sizes:
            recover.check(plan, size)
    except driver.BenchError as error:
        raise UsageError(str(error), hint=error.hint) from error


def _check_share(sizes: Sequence[int], at: str, of: int) -> None:
    if at in _PLACES:
        raise UsageError(
            "several machines need a coordinator that all of them reach",
            hint="start `rallypoint serve --host 0.0.0.0` on one, and give --at HOST:PORT to all",
        )
    if len(sizes) > 1:
        raise UsageError("with --of, --nodes is one number: this machine's share")
    if sizes[0] > of:
        raise UsageError(f"this machine's share of {sizes[0]:,} nodes is more than --of {of:,}")


def _connections(scenario: Scenario, nodes: int, runs: int) -> int:
    """How many a coordinator has at most."""
    if scenario in (Scenario.RECOVER, Scenario.KILL):
        return 0
    return nodes * runs if scenario is Scenario.RUNS else nodes


def _coordinator(
    scenario: Scenario, at: str, token_file: str | None
) -> contextlib.AbstractContextManager[Coordinator]:
    from rallypoint.bench import driver

    own = NEEDS[scenario].at in (At.STARTED, At.LEDGER, At.NONE)
    if own or (scenario is Scenario.RECOVER and at == "embedded"):
        return contextlib.nullcontext(driver.NOWHERE)
    if at == "served":
        return driver.served()
    if at == "embedded":
        return driver.embedded()
    return contextlib.nullcontext(_running(at, token_file))


def _running(at: str, token_file: str | None) -> Coordinator:
    """A coordinator that somebody runs, and that lets this in. Raises UsageError, and as api.runs.

    An ordinary web server would have all nodes fail later, one by one.
    """
    from rallypoint.bench import driver

    place = parse_endpoint(at)
    if place.kind not in (EndpointKind.HOST, EndpointKind.SERVED):
        raise UsageError(
            f"--at {at!r} does not name a coordinator that runs",
            hint="write HOST:PORT or http://...",
        )
    keys = keys_of(place, token_file)
    try:
        run_locator.ask(keys, lambda token: api.runs(place, token))
    except UnreachableError as error:
        raise UnreachableError(
            error.message,
            hint="start one with `rallypoint serve`, or leave --at out",
            attempts=error.attempts,
        ) from error
    return driver.Coordinator(Address(place.host, place.port), None, keys.token, at)
