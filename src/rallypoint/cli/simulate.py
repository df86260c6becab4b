"""`rallypoint simulate`: how a job would fare with these settings and these machines.

The command and its options. simulate_options.py reads their texts, simulate_view.py prints, and
rallypoint/simulation/fleet simulates.
"""

from __future__ import annotations

import contextlib
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from rallypoint.cli import output
from rallypoint.errors import ExitCode, UsageError
from rallypoint.settings import parse_duration_s

if TYPE_CHECKING:
    from rallypoint.cli.simulate_options import Comparison
    from rallypoint.simulation.fleet.failures import Failure
    from rallypoint.simulation.fleet.play import Result
    from rallypoint.simulation.fleet.trace import Trace
    from rallypoint.simulation.fleet.workload import Workload

PROGRESS_S: Final = 1.0
_JOB: Final = "The job"
_MACHINES: Final = "Machines and failures"
_EXAMPLES: Final = (
    "Examples: `rallypoint simulate --nodes 10000 --hours 24 --mtbf-hours 5000 --preempt 30%@3h`; "
    "`rallypoint simulate --nodes 512 --compare spares=0,8`; "
    "`rallypoint simulate --trace failures.csv --compare lost_after=10s,30s --json`."
)


def add_to(app: typer.Typer) -> None:
    """Add the command."""
    app.command("simulate", epilog=_EXAMPLES)(simulate)


def _text(name: str, metavar: str, help: str, panel: str | None = None) -> Any:
    return typer.Option(name, metavar=metavar, help=help, rich_help_panel=panel)


def simulate(
    nodes: Annotated[
        str | None,
        _text(
            "--nodes", "N", "How many nodes the job has (default: 64; those of the trace).", _JOB
        ),
    ] = None,
    min_nodes: Annotated[
        str | None, _text("--min-nodes", "N", "With how many it goes on (default: half).", _JOB)
    ] = None,
    spares: Annotated[
        str | None, _text("--spares", "N", "Nodes beyond it, on standby (default: 0).", _JOB)
    ] = None,
    nproc: Annotated[
        str | None, _text("--nproc", "N", "Workers on each node (default: 1).", _JOB)
    ] = None,
    hours: Annotated[
        str | None,
        _text("--hours", "H", "How long to simulate (default: 24; until the trace ends).", _JOB),
    ] = None,
    start: Annotated[
        str | None,
        _text("--start", "TIME", "Until the workers of a round work (default: 30s).", _JOB),
    ] = None,
    stop: Annotated[
        str | None,
        _text(
            "--stop",
            "TIME",
            "Until workers have stopped; at most regroup_stop_timeout (default: 1s).",
            _JOB,
        ),
    ] = None,
    checkpoint: Annotated[
        str | None,
        _text(
            "--checkpoint", "TIME", "Work between two checkpoints, or never (default: 15m).", _JOB
        ),
    ] = None,
    checkpoint_cost: Annotated[
        str | None,
        _text("--checkpoint-cost", "TIME", "How long one stops the work (default: 10s).", _JOB),
    ] = None,
    save_on_change: Annotated[
        str | None,
        _text(
            "--save-on-change",
            "yes|no",
            "Whether workers also save when nodes join or leave as announced (default: no).",
            _JOB,
        ),
    ] = None,
    peers: Annotated[
        str | None,
        _text(
            "--peers",
            "fail|hang",
            "What the workers of a dead process's peers do (default: fail).",
            _JOB,
        ),
    ] = None,
    mtbf_hours: Annotated[
        str | None,
        _text(
            "--mtbf-hours",
            "H",
            "Mean time between two failures of one node, or never (default: 5000).",
            _MACHINES,
        ),
    ] = None,
    kinds: Annotated[
        str | None,
        _text(
            "--kinds",
            "KIND=SHARE,...",
            "Shares of failures: process (its kernel closes its connections), host (silence), "
            "freeze, worker (default: process=40%,host=50%,freeze=10%).",
            _MACHINES,
        ),
    ] = None,
    mttr: Annotated[
        str | None,
        _text("--mttr", "TIME", "Until a lost machine is replaced (default: 10m).", _MACHINES),
    ] = None,
    restart: Annotated[
        str | None,
        _text("--restart", "TIME", "Until a dead process runs again (default: 30s).", _MACHINES),
    ] = None,
    freeze: Annotated[
        str | None,
        _text("--freeze", "TIME", "Mean length of a freeze (default: 20s).", _MACHINES),
    ] = None,
    preempt: Annotated[
        list[str] | None,
        _text(
            "--preempt",
            "SHARE@TIME",
            "This part of the nodes is preempted at that time; 5%/3h: every 3 hours. Repeatable.",
            _MACHINES,
        ),
    ] = None,
    notice: Annotated[
        str | None,
        _text(
            "--notice",
            "TIME",
            "From the SIGTERM of a preempted node to its end; 0: none (default: 30s).",
            _MACHINES,
        ),
    ] = None,
    rack: Annotated[
        str | None,
        _text("--rack", "N", "Nodes of a rack, which can be lost together.", _MACHINES),
    ] = None,
    rack_mtbf_hours: Annotated[
        str | None,
        _text(
            "--rack-mtbf-hours",
            "H",
            "Mean time between two losses of one rack (default: 50000).",
            _MACHINES,
        ),
    ] = None,
    trace: Annotated[
        Path | None,
        _text(
            "--trace",
            "FILE",
            "Failures from a CSV file, in place of --mtbf-hours: time,node,event[,kind] or "
            "start,end,node[,kind].",
            _MACHINES,
        ),
    ] = None,
    coordinator: Annotated[
        str | None,
        _text(
            "--coordinator",
            "node|apart",
            "Whether a node of the job hosts the coordinator (default: node).",
            _MACHINES,
        ),
    ] = None,
    coordinator_mtbf_hours: Annotated[
        str | None,
        _text(
            "--coordinator-mtbf-hours",
            "H",
            "Mean time between two crashes of the coordinator alone, or never (default: never).",
            _MACHINES,
        ),
    ] = None,
    ledger: Annotated[
        str | None,
        _text("--ledger", "etcd|file|memory", "Where the run is kept (default: etcd).", _MACHINES),
    ] = None,
    ledger_away: Annotated[
        list[str] | None,
        _text(
            "--ledger-away",
            "TIME@TIME",
            "The ledger does not answer for that long, at that time; 2m/6h: every 6 hours. "
            "Repeatable.",
            _MACHINES,
        ),
    ] = None,
    set: Annotated[
        list[str] | None,
        _text("--set", "NAME=VALUE", "A setting of the run or its nodes; repeatable."),
    ] = None,
    compare: Annotated[
        str | None,
        _text(
            "--compare",
            "NAME=A,B",
            "Simulate once for each value of this setting or option, with the same failures.",
        ),
    ] = None,
    seed: Annotated[
        int, typer.Option("--seed", metavar="N", min=0, help="Draws the failures.")
    ] = 0,
    limit: Annotated[
        str,
        _text("--limit", "TIME", "Simulate for at most so long in real time; print what is known."),
    ] = "10m",
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> int:
    """Simulate a job: regroups, useful time, and what takes the rest.

    The shipped core decides, in virtual time. Heartbeats are left out: silence is noticed as late
    as with them. Bytes are not simulated. The same seed gives the same result.
    """
    from rallypoint.cli import simulate_options as options

    given: dict[str, str | None] = {
        "nodes": nodes,
        "min-nodes": min_nodes,
        "spares": spares,
        "nproc": nproc,
        "hours": hours,
        "mtbf-hours": mtbf_hours,
        "kinds": kinds,
        "mttr": mttr,
        "restart": restart,
        "freeze": freeze,
        "preempt": ",".join(preempt) if preempt else None,
        "notice": notice,
        "rack": rack,
        "rack-mtbf-hours": rack_mtbf_hours,
        "start": start,
        "stop": stop,
        "checkpoint": checkpoint,
        "checkpoint-cost": checkpoint_cost,
        "save-on-change": save_on_change,
        "peers": peers,
        "coordinator": coordinator,
        "coordinator-mtbf-hours": coordinator_mtbf_hours,
        "ledger": ledger,
        "ledger-away": ",".join(ledger_away) if ledger_away else None,
    }
    texts = {name: text for name, text in given.items() if text is not None}
    compared = options.comparison(compare) if compare is not None else None
    settings = options.assignments(set or [])
    read = _read_trace(trace, texts) if trace is not None else None
    plans = _plans(texts, settings, compared)
    return _simulate(plans, compared, read, seed, _limit_s(limit), as_json=as_json)


def _limit_s(text: str) -> float:
    try:
        return parse_duration_s(text)
    except ValueError as error:
        raise UsageError(f"--limit {error}", hint="for example --limit 5m") from error


def _read_trace(path: Path, texts: dict[str, str]) -> Trace:
    """Read the trace, and take from it what is not given. Raises UsageError."""
    from rallypoint.simulation.fleet import trace
    from rallypoint.simulation.fleet.workload import HOUR_S

    for name in ("mtbf-hours", "kinds", "rack", "rack-mtbf-hours", "preempt"):
        if name in texts:
            raise UsageError(
                f"--trace has the failures, so --{name} has no effect", hint=f"leave --{name} out"
            )
    found = trace.load(path)
    texts.setdefault("nodes", str(len(found.nodes)))
    texts.setdefault("hours", repr(max(found.last_s / HOUR_S, 0.01)))
    return found


def _plans(
    texts: dict[str, str], settings: dict[str, str], compared: Comparison | None
) -> list[tuple[str, Workload, dict[str, str]]]:
    """Each value that is compared, with its workload and settings. All are checked here."""
    from rallypoint.cli import simulate_options as options
    from rallypoint.simulation.fleet.settings import full_name, settings_of

    plans = []
    for value in compared.values if compared is not None else ("",):
        here, chosen = dict(texts), dict(settings)
        if compared is not None and compared.option:
            here[compared.option] = value
        elif compared is not None:
            chosen[full_name(compared.name)] = value
        workload = options.workload_of(here)
        settings_of(chosen, nodes=workload.nodes, min_nodes=workload.least)
        plans.append((value, workload, chosen))
    return plans


def _failures(workload: Workload, read: Trace | None, seed: int) -> list[Failure]:
    from rallypoint.simulation.fleet import play

    if read is None:
        return play.drawn(workload, seed)
    if len(read.nodes) > workload.slots:
        raise UsageError(
            f"the trace has {len(read.nodes):,} nodes, and --nodes and --spares are "
            f"{workload.slots:,} together",
            hint="give at least as many nodes as the trace has, or leave --nodes out",
        )
    return [each for each in read.failures if each.at_s < workload.seconds]


def _simulate(
    plans: list[tuple[str, Workload, dict[str, str]]],
    compared: Comparison | None,
    read: Trace | None,
    seed: int,
    limit_s: float,
    *,
    as_json: bool,
) -> int:
    from rallypoint.cli import simulate_view
    from rallypoint.simulation.fleet import play

    name = compared.name if compared is not None else ""
    watch = _Watch(limit_s)
    results: list[tuple[str, Result]] = []
    with watch.interrupts():
        for value, workload, settings in plans:
            failures = _failures(workload, read, seed)
            which = f"{name}={value}: " if name else ""
            results.append(
                (value, play.play(workload, settings, failures, seed, watch.of(which, workload)))
            )
            if watch.why:
                break
    watch.clear()
    if as_json:
        output.print_json(play.as_json(results, name, plans[0][1]))
    else:
        simulate_view.show(results, name, plans[0][1], is_traced=read is not None)
    if watch.why:
        output.warn(f"{watch.why}: the result is about the time until then")
    return 128 + signal.SIGINT if watch.is_interrupted else ExitCode.DONE


class _Watch:
    """Shows the progress on a terminal, and ends a simulation at its limit or by Ctrl-C."""

    def __init__(self, limit_s: float) -> None:
        self.why = ""
        self.is_interrupted = False
        self._began_s = time.monotonic()
        self._limit_s = limit_s
        self._shown_s = 0.0
        self._has_shown = False

    @contextlib.contextmanager
    def interrupts(self) -> Iterator[None]:
        """Ctrl-C only sets a mark: the simulation ends between two steps."""

        def interrupted(number: int, frame: object) -> None:
            if self.is_interrupted:
                raise KeyboardInterrupt  # The second one ends the command at once.
            self.is_interrupted = True

        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = signal.signal(signal.SIGINT, interrupted)
        try:
            yield
        finally:
            signal.signal(signal.SIGINT, before)

    def of(self, which: str, workload: Workload) -> Callable[[float, int], bool]:
        """The question whether this simulation may go on."""

        def go_on(at_s: float, rounds: int) -> bool:
            passed_s = time.monotonic() - self._began_s
            if self.is_interrupted:
                self.why = "interrupted"
            elif passed_s > self._limit_s:
                self.why = f"--limit {self._limit_s:g} s has passed"
            elif passed_s > self._shown_s + PROGRESS_S and sys.stderr.isatty():
                self._shown_s, self._has_shown = passed_s, True
                part = at_s / workload.seconds
                print(
                    f"\r{which}{part:.0%} of the simulated time, {rounds:,} rounds, "
                    f"{passed_s:.0f} s\x1b[K",
                    end="",
                    file=sys.stderr,
                    flush=True,
                )
            return not self.why

        return go_on

    def clear(self) -> None:
        """Remove the line of the progress."""
        if self._has_shown:
            print("\r\x1b[K", end="", file=sys.stderr, flush=True)
