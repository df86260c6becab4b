"""`rallypoint bench`: how fast nodes meet and regroup here, and what they cost."""

from __future__ import annotations

import contextlib
import enum
import importlib.util
import logging
import signal
import tempfile
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from rallypoint.cli import api, output, run_locator
from rallypoint.cli.common import TokenFileOption, keys_of
from rallypoint.core.values import Address
from rallypoint.endpoints import EndpointKind, parse_endpoint
from rallypoint.errors import RallypointError, UnreachableError, UsageError

if TYPE_CHECKING:
    from rallypoint.bench.driver import Coordinator, Plan
    from rallypoint.bench.figure import Figure


class Scenario(enum.StrEnum):
    """One question."""

    MEET = "meet"
    REGROUP = "regroup"
    RECOVER = "recover"
    KILL = "kill"
    CUT = "cut"
    PREEMPTED = "preempted"
    FAILOVER = "failover"
    HOST_LOST = "host-lost"
    RACK = "rack"
    LEDGER_AWAY = "ledger-away"
    LEDGER_READS = "ledger-reads"
    LEDGER_WRITES = "ledger-writes"
    IDLE = "idle"
    STORE = "store"
    RUNS = "runs"
    STRANGERS = "strangers"
    NEIGHBOUR = "neighbour"
    MODEL = "model"


class BenchFailedError(RallypointError):
    """A measurement could not be taken."""


_SIZES: Final = {
    Scenario.RECOVER: "3",
    Scenario.KILL: "8",
    Scenario.CUT: "8",
    Scenario.PREEMPTED: "100",
    Scenario.FAILOVER: "8",
    Scenario.HOST_LOST: "8",
    Scenario.RACK: "1000",
    Scenario.LEDGER_AWAY: "8",
    Scenario.LEDGER_READS: "10,100,1000",
    Scenario.LEDGER_WRITES: "10000",
    Scenario.RUNS: "16",
    Scenario.STRANGERS: "64",
    Scenario.NEIGHBOUR: "12",
    Scenario.MODEL: "128,256,512,1024",
}
_SIZES_ELSE: Final = "8,32,128"
_SECONDS: Final = {Scenario.STRANGERS: 60.0}
_SECONDS_ELSE: Final = 10.0
_RUNS: Final = 200
_PLACES: Final = ("served", "embedded")
_OVER_A_LEDGER: Final = (Scenario.FAILOVER, Scenario.HOST_LOST, Scenario.RACK)
"""Their `--at` is a ledger."""
_OVER_THEIR_OWN: Final = (
    Scenario.KILL,
    Scenario.CUT,
    Scenario.PREEMPTED,
    Scenario.LEDGER_AWAY,
    Scenario.LEDGER_READS,
    Scenario.LEDGER_WRITES,
)
"""They start all that they need, and `--at` is not for them."""
_SERVED: Final = (Scenario.CUT, Scenario.PREEMPTED)
_NO_COORDINATOR: Final = (
    Scenario.STRANGERS,
    *_OVER_A_LEDGER,
    *set(_OVER_THEIR_OWN) - set(_SERVED),
)
"""What they measure has its own coordinators."""


def add_to(app: typer.Typer) -> None:
    """Add the command."""
    app.command("bench")(bench)


def bench(
    scenario: Annotated[
        Scenario,
        typer.Argument(
            metavar="SCENARIO",
            help="meet: from the first call to the last answer; regroup: a node killed, leaving, "
            "arriving, frozen; recover: real agents and workers, from a kill to the next step; "
            "kill: kill -9 of real agents; cut: the network of one node is cut; preempted: 30 % "
            "of the nodes killed at once; failover: the coordinator is killed, terminated or "
            "frozen; host-lost: an elected coordinator lost with its node; rack: the first 30 % "
            "of the ranks lost with the coordinator; ledger-away: etcd stands still; "
            "ledger-reads, ledger-writes: bytes that etcd is asked for and given; idle: traffic, "
            "CPU and memory; store: calls a second, barriers; runs: one of many runs; neighbour: "
            "one run beside another that floods; strangers: an attack without a token; model: what "
            "a node costs, and what follows for "
            "more of them.",
        ),
    ],
    nodes: Annotated[
        str | None,
        typer.Option(
            "--nodes",
            metavar="N[,N...]",
            help="How many nodes, one or more sizes (default: 8,32,128; recover 3; kill, cut, "
            "failover, host-lost and ledger-away 8; preempted 100; rack 1000; ledger-reads "
            "10,100,1000; ledger-writes 10000; runs 16; neighbour 12; strangers 64; "
            "model 128,256,512,1024).",
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

    sizes = _sizes(nodes or _SIZES.get(scenario, _SIZES_ELSE))
    _check_together(scenario, sizes, at, ddp=ddp, runs=runs, run=run, of=of)
    if plot is not None:
        _check_plot(plot)
    about = report.machine()

    def plan_for(where: Coordinator) -> Plan:
        ledger = at if scenario in _OVER_A_LEDGER and at not in _PLACES else ""
        return driver.Plan(
            where,
            repeats=repeats,
            processes=processes or 1,
            seconds=seconds or _SECONDS.get(scenario, _SECONDS_ELSE),
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
        _plot(lambda path: report.plot(figures, path), plot)


_Measure = Callable[["Plan", int], "list[Figure]"]


def _measure(scenario: Scenario, run: str | None, of: int | None) -> _Measure:
    from rallypoint.bench import (
        cut,
        failover,
        host_lost,
        idle,
        kill,
        ledger_away,
        ledger_reads,
        ledger_writes,
        meet,
        multi_host,
        neighbour,
        preempted,
        rack,
        recover,
        regroup,
        runs,
        store,
        strangers,
    )

    if run is not None and of is not None:
        shared = multi_host.HostShare(run, of)
        return lambda plan, nodes: multi_host.measure(plan, nodes, shared)
    return {
        Scenario.MEET: meet.measure,
        Scenario.REGROUP: regroup.measure,
        Scenario.RECOVER: recover.measure,
        Scenario.KILL: kill.measure,
        Scenario.CUT: cut.measure,
        Scenario.PREEMPTED: preempted.measure,
        Scenario.FAILOVER: failover.measure,
        Scenario.HOST_LOST: host_lost.measure,
        Scenario.RACK: rack.measure,
        Scenario.LEDGER_AWAY: ledger_away.measure,
        Scenario.LEDGER_READS: ledger_reads.measure,
        Scenario.LEDGER_WRITES: ledger_writes.measure,
        Scenario.IDLE: idle.measure,
        Scenario.STORE: store.measure,
        Scenario.RUNS: runs.measure,
        Scenario.STRANGERS: strangers.measure,
        Scenario.NEIGHBOUR: neighbour.measure,
    }[scenario]


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
        _plot(lambda path: model.plot(costs, path), plot)


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
    if scenario in _OVER_A_LEDGER and at not in ("served", "etcd") and "://" not in at:
        raise UsageError(
            f"`bench {scenario}` starts its own coordinators, over a ledger: {at!r} is none",
            hint="write --at etcd, etcd://HOST:PORT,.../PREFIX or file:///FOLDER, or leave it out",
        )
    if scenario in _OVER_THEIR_OWN and at != "served":
        raise UsageError(
            f"`bench {scenario}` starts its own coordinators and ledger", hint="leave --at out"
        )
    if scenario is Scenario.STRANGERS and at not in _PLACES:
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

    if scenario in _NO_COORDINATOR or (scenario is Scenario.RECOVER and at == "embedded"):
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


# -- pictures --------------------------------------------------------------------------------------


def _check_plot(path: Path) -> None:
    """Whether it can be drawn, before anything is measured. Raises UsageError."""
    if importlib.util.find_spec("matplotlib") is None:
        raise UsageError(
            "--plot needs matplotlib, which is not installed", hint="pip install matplotlib"
        )
    folder = path.absolute().parent
    if path.is_dir():
        raise UsageError(
            f"cannot draw to {path}: it is a folder", hint=f"name a file: {path / 'figures.png'}"
        )
    if not folder.is_dir():
        raise UsageError(
            f"cannot draw to {path}: there is no folder {path.parent}",
            hint=f"mkdir -p {path.parent}",
        )
    _check_suffix(path)
    try:
        if path.exists():
            path.open("ab").close()
        else:
            tempfile.TemporaryFile(dir=folder).close()
    except OSError as error:
        raise UsageError(
            f"cannot draw to {path}: {error.strerror or error}",
            hint="name a file in a folder that you may write",
        ) from error


def _check_suffix(path: Path) -> None:
    from matplotlib.figure import Figure as Picture  # optional: only for this

    known = sorted(Picture().canvas.get_supported_filetypes())
    if path.suffix.lower().lstrip(".") not in known:
        raise UsageError(
            f"cannot draw to {path}: matplotlib tells by its suffix what it is to be, "
            f"and knows no {path.suffix!r}",
            hint=f"one of {', '.join(f'.{each}' for each in known)}",
        )


def _plot(draw: Callable[[Path], None], path: Path) -> None:
    try:
        draw(path)
    except (OSError, ValueError) as error:
        raise UsageError(f"cannot draw to {path}: {error}") from error
    output.note(f"drawn to {path}")
