"""`rallypoint bench`: how fast nodes meet and regroup on this machine, and what they cost.

The command, its options and their checks. bench_scenarios.py has the needs of each scenario,
rallypoint/bench the measurements, and bench_plot.py the file of a picture.
"""

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
    """Nothing could be measured."""


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
            help="How often to measure (scenarios that lose nodes or coordinators: at most 5 "
            "times; kill has no limit).",
        ),
    ] = 10,
    processes: Annotated[
        int | None,
        typer.Option(
            "--processes",
            metavar="N",
            min=1,
            help="How many processes run the nodes (default: 1; failover: one for each node). In "
            "join, each node is a thread.",
        ),
    ] = None,
    seconds: Annotated[
        float | None,
        typer.Option(
            "--seconds",
            metavar="S",
            min=0.1,
            help="How long to watch (idle, model) or to stop etcd (ledger-away) (default: 10); how "
            "long to stop the coordinator (frozen-coordinator, default: 20); how long to attack "
            "(strangers, default: 60).",
        ),
    ] = None,
    at: Annotated[
        str,
        typer.Option(
            "--at",
            metavar="WHERE",
            help="served: start a `rallypoint serve`; embedded: start a coordinator as it runs "
            "inside a node; or the HOST:PORT of a running one. For failover, host-lost and rack: "
            "the ledger, as etcd://HOST:PORT,.../PREFIX, file:///FOLDER, or etcd to start one "
            "(default: a new folder).",
        ),
    ] = "served",
    ddp: Annotated[
        bool,
        typer.Option("--ddp", help="recover, drain: workers are a small torch DDP job (gloo)."),
    ] = False,
    ways: Annotated[
        str | None,
        typer.Option(
            "--ways",
            metavar="A,B",
            help="recover, drain --ddp: how the job is started, in turn: of cold, preload, "
            "keep-workers, torchrun-rallypoint, torchrun-c10d (default: all; drain: only cold and "
            "preload).",
        ),
    ] = None,
    progress: Annotated[
        bool,
        typer.Option(
            "--progress",
            help="idle: in every second window of two seconds, each node's workers report a step "
            "once a second.",
        ),
    ] = False,
    runs: Annotated[
        int | None,
        typer.Option(
            "--runs", metavar="N", min=2, help=f"runs: how many runs to start (default: {_RUNS})."
        ),
    ] = None,
    run: Annotated[
        str | None,
        typer.Option(
            "--run",
            metavar="NAME",
            help="meet on several machines: the run's name. It must be the same on all of them, "
            "and new each time.",
        ),
    ] = None,
    of: Annotated[
        int | None,
        typer.Option(
            "--of",
            metavar="N",
            min=2,
            help="meet on several machines: how many nodes the run has on all of them; --nodes is "
            "this machine's part of them.",
        ),
    ] = None,
    token_file: TokenFileOption = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    plot: Annotated[
        Path | None,
        typer.Option("--plot", metavar="FILE", help="Draw the figures over the sizes (PNG, SVG)."),
    ] = None,
) -> None:
    """Measure Rallypoint on this machine. docs/scale.md explains the scenarios."""
    from rallypoint.bench import driver, report

    sizes = _sizes(nodes or NEEDS[scenario].nodes)
    _check_only_for(
        scenario, ddp=ddp, ways=ways is not None, progress=progress, runs=runs is not None
    )
    _check_together(scenario, sizes, at, run=run, of=of)
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
            ways=tuple(ways.split(",")) if ways else (),
            progress=progress,
            runs=runs or _RUNS,
            ledger=ledger,
            place=at,
        )

    def place() -> contextlib.AbstractContextManager[Coordinator]:
        return _coordinator(scenario, at, token_file)

    if scenario in _OF_JOBS:
        _check_jobs(scenario, plan_for(driver.NOWHERE), sizes)
    with _ended_by_signals(), _log_on_stderr(), _as_failure():
        # Before a coordinator is started, because it inherits the limit of open files.
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


# -- during a measurement --------------------------------------------------------------------------


class _Stopped(BaseException):
    """A signal arrived. As with KeyboardInterrupt, only the end of the command catches it."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


@contextlib.contextmanager
def _ended_by_signals() -> Iterator[None]:
    """Ctrl-C, SIGTERM and SIGHUP end all started processes and the command, with 128 + signal.

    A second signal ends the command at once; the kernel then ends the processes. Signals that were
    ignored when the command started (nohup) stay ignored.
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
        with contextlib.suppress(OSError):  # Ignored, because the terminal may be closed.
            output.note(f"{signal.Signals(stopped.number).name}: all started processes have ended")
        raise typer.Exit(128 + stopped.number) from None
    finally:
        for known, handler in before.items():
            signal.signal(known, handler)


class _LogAsMessages(logging.Handler):
    """Shows log lines as messages of this command."""

    def emit(self, record: logging.LogRecord) -> None:
        output.note(record.getMessage())


@contextlib.contextmanager
def _log_on_stderr() -> Iterator[None]:
    """Show the scenarios' log lines about long waits on stderr."""
    log, messages = logging.getLogger("rallypoint.bench"), _LogAsMessages()
    log.addHandler(messages)
    try:
        yield
    finally:
        log.removeHandler(messages)


@contextlib.contextmanager
def _as_failure() -> Iterator[None]:
    from rallypoint.bench.driver import BenchError

    try:
        yield
    except BenchError as error:
        raise BenchFailedError(str(error), hint=error.hint) from error


# -- the options -----------------------------------------------------------------------------------


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


_OF_JOBS: Final = (Scenario.RECOVER, Scenario.DRAIN)
_ONLY_FOR: Final = {
    "ddp": _OF_JOBS,
    "ways": _OF_JOBS,
    "progress": (Scenario.IDLE,),
    "runs": (Scenario.RUNS,),
    "run": (Scenario.MEET,),
    "of": (Scenario.MEET,),
}
"""Options that only some scenarios have."""


def _check_only_for(scenario: Scenario, **given: bool) -> None:
    """Raise UsageError if an option is given that the scenario does not have."""
    for name, is_given in given.items():
        if is_given and scenario not in _ONLY_FOR[name]:
            where = " and ".join(f"`bench {each}`" for each in _ONLY_FOR[name])
            raise UsageError(f"--{name} is for {where}, not for `bench {scenario}`")


def _check_together(
    scenario: Scenario, sizes: Sequence[int], at: str, *, run: str | None, of: int | None
) -> None:
    """Raise UsageError if these options cannot be used together."""
    _check_only_for(scenario, run=run is not None, of=of is not None)
    if scenario is Scenario.MODEL and len(set(sizes)) < 2:
        raise UsageError("a model needs at least two sizes", hint="for example --nodes 128,256,512")
    may_be = NEEDS[scenario].at
    if may_be is At.LEDGER and at not in ("served", "etcd") and "://" not in at:
        raise UsageError(
            f"--at {at!r} is not a ledger: `bench {scenario}` starts its own coordinators over one",
            hint="write --at etcd, etcd://HOST:PORT,.../PREFIX or file:///FOLDER, or leave it out",
        )
    if may_be in (At.SERVED, At.NONE) and at != "served":
        raise UsageError(
            f"`bench {scenario}` starts all that it needs and takes no --at", hint="leave --at out"
        )
    if may_be is At.STARTED and at not in _PLACES:
        raise UsageError(
            f"`bench {scenario}` only attacks a coordinator that it has started, not {at!r}",
            hint="write --at served or --at embedded",
        )
    if (run is None) != (of is None):
        raise UsageError(
            "--run and --of must be given together: the name of a run of several machines, and its "
            "size",
            hint="--at HOST:PORT --run NAME --nodes SHARE --of ALL",
        )
    if of is not None:
        _check_share(sizes, at, of)


def _check_jobs(scenario: Scenario, plan: Plan, sizes: Sequence[int]) -> None:
    """Raises UsageError."""
    from rallypoint.bench import drain, driver, recover

    check = recover.check if scenario is Scenario.RECOVER else drain.check
    try:
        for size in sizes:
            check(plan, size)
    except driver.BenchError as error:
        raise UsageError(str(error), hint=error.hint) from error


def _check_share(sizes: Sequence[int], at: str, of: int) -> None:
    if at in _PLACES:
        raise UsageError(
            "several machines need a coordinator that all of them can reach",
            hint="start `rallypoint serve --host 0.0.0.0` on one, and give --at HOST:PORT to all",
        )
    if len(sizes) > 1:
        raise UsageError("with --of, --nodes must be one number: this machine's part of the nodes")
    if sizes[0] > of:
        raise UsageError(f"this machine has {sizes[0]:,} nodes, which is more than --of {of:,}")


def _connections(scenario: Scenario, nodes: int, runs: int) -> int:
    """How many connections a coordinator has at most."""
    if scenario in (*_OF_JOBS, Scenario.FIRST_START, Scenario.HANG, Scenario.KILL):
        return 0
    return nodes * runs if scenario is Scenario.RUNS else nodes


def _coordinator(
    scenario: Scenario, at: str, token_file: str | None
) -> contextlib.AbstractContextManager[Coordinator]:
    from rallypoint.bench import driver

    own = NEEDS[scenario].at in (At.STARTED, At.LEDGER, At.NONE)
    if own or (scenario in _OF_JOBS and at == "embedded"):
        return contextlib.nullcontext(driver.NOWHERE)
    if at == "served":
        return driver.served()
    if at == "embedded":
        return driver.embedded()
    return contextlib.nullcontext(_running(at, token_file))


def _running(at: str, token_file: str | None) -> Coordinator:
    """A coordinator that runs already and accepts this command.

    Raises UsageError, and the errors of api.runs.
    """
    # Checked now, because with an ordinary web server all nodes would fail later, one by one.
    from rallypoint.bench import driver

    place = parse_endpoint(at)
    if place.kind not in (EndpointKind.HOST, EndpointKind.SERVED):
        raise UsageError(
            f"--at {at!r} is not the address of a coordinator",
            hint="write HOST:PORT or http://HOST:PORT",
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
