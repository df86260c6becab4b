"""Compares Rallypoint with its peers: same method, same machine, same run. See docs/benchmarks.md.

    python benchmarks/peers/run.py --install             # each into an environment of its own
    python benchmarks/peers/run.py                       # all of them; a table
    python benchmarks/peers/run.py --only rallypoint,torchft --nodes 8,128 --repeats 5
    python benchmarks/peers/run.py --write               # docs/benchmarks.md, .json and images/

Progress goes to stderr, tables to stdout. Exit code 0: it measured, even if some peers could not do
something, for which the table gives the reasons. 1: some could not be installed, or nothing could
be measured. 2: it could not begin. SIGTERM and SIGHUP end all started processes, and then this one,
with 128 plus the signal's number.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import platform
import shlex
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from types import FrameType
from typing import Any, Final

ROOT: Final = Path(__file__).resolve().parents[2]
if not __package__:  # Run as a file: the checkout has the package `benchmarks`.
    sys.path[0] = str(ROOT)

from benchmarks import doc_tables, private_network, wait_idle  # noqa: E402
from benchmarks.peers import common, install, report  # noqa: E402
from benchmarks.peers.catalogue import PEERS, Peer  # noqa: E402
from benchmarks.peers.harness import Bench, Outcome  # noqa: E402

SIZES: Final = (2, 8, 32, 128, 256, 512, 1_024)
DEADLINE_S: Final = 120.0
DEATH_DEADLINE_S: Final = 180.0
"""A death takes as long as the peer's time limits, on any machine."""
REPEATS: Final = 10
DEATH_REPEATS: Final = 3
SLOW_DEATHS: Final = ("c10d", "tooz")
"""One death takes most of a minute here, so it is measured once."""
KINDS: Final = (common.KILLED, common.SILENT)
STOPPING: Final = (signal.SIGTERM, signal.SIGHUP)
FOLDERS: Final = {"--environments": "DIR", "--output": "FILE"}
"""Options that do not change what is measured."""
DOCUMENT: Final = ROOT / "docs" / "benchmarks.md"


def say(text: str) -> None:
    """Print progress to stderr."""
    print(f"peers: {text}", file=sys.stderr, flush=True)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    options = _options(arguments)
    names = options.only.split(",") if options.only else [peer.name for peer in PEERS]
    unknown = sorted(set(names) - {peer.name for peer in PEERS})
    if unknown:
        say(f"there is no {', '.join(unknown)}; there is {', '.join(p.name for p in PEERS)}")
        return 2
    peers = [peer for peer in PEERS if peer.name in names]
    folder = options.environments.resolve()
    if options.install:
        wanted = {p.environment.name: p.environment for p in peers if p.environment}
        return 1 if install.install(wanted.values(), folder, say) else 0
    if options.again:
        run = json.loads(DOCUMENT.with_suffix(".json").read_text(encoding="utf-8"))
        return _write(run)
    why_not_private = "not asked for" if options.here else private_network.enter()
    _raise_on_signals()
    given = sys.argv[1:] if arguments is None else arguments
    run = {"command": _command(given)} | measure(peers, options, folder, why_not_private)
    if options.output:
        _write_json(run, options.output)
    if options.write:
        return _write(run)
    print(report.markdown(run))
    return 0 if any(row["values"] for row in run["results"] + run["deaths"]) else 1


def measure(
    peers: Sequence[Peer], options: argparse.Namespace, folder: Path, why_not_private: str | None
) -> dict[str, Any]:
    """Everything, as it is in the JSON. All peers at one size before any at the next."""
    peers = in_turn(peers)
    bench = Bench(folder, options.deadline, options.repeats)
    about = machine(why_not_private)
    for name, value in about.items():
        say(f"{name.replace('_', ' ')}: {value}")
    results, deaths, seen = [], [], dict[str, Outcome]()
    for nodes in options.nodes:
        for peer in peers:
            load = _load()
            outcome = bench.meet(peer, nodes)
            if peer.name not in seen or not seen[peer.name].version:
                seen[peer.name] = outcome
            say(f"{nodes:,} nodes, {peer.name}: {_in_short(outcome)}")
            results.append(_result(peer, outcome, nodes=nodes, load=load))
    for peer in peers if not options.no_deaths else ():
        repeats = 1 if peer.name in SLOW_DEATHS else min(DEATH_REPEATS, options.repeats)
        for kind in KINDS:
            load = _load()
            outcome = bench.death(peer, kind, repeats, DEATH_DEADLINE_S)
            say(f"{kind}, {peer.name}: {_in_short(outcome)}")
            deaths.append(_result(peer, outcome, kind=kind, load=load))
    return {
        "machine": about | {"load_after": _load()},
        "method": {
            "sizes": options.nodes,
            "repeats": options.repeats,
            "deadline_s": options.deadline,
            "death_deadline_s": DEATH_DEADLINE_S,
            "quiet": {"runnable_max": wait_idle.RUNNABLE_MAX, "wait_max_s": wait_idle.WAIT_MAX_S},
        },
        "peers": [_peer(peer, seen[peer.name]) for peer in peers],
        "results": results,
        "deaths": deaths,
    }


def in_turn(peers: Sequence[Peer]) -> list[Peer]:
    """Peers with a process for each node come last: hundreds of processes take a while to end."""
    return sorted(peers, key=lambda peer: peer.a_process_each)


def _result(peer: Peer, outcome: Outcome, **more: Any) -> dict[str, Any]:
    values = {
        name: [float(f"{value:.4g}") for value in each] for name, each in outcome.values.items()
    }
    if outcome.busy is not None:
        more["busy"] = outcome.busy
    if outcome.wanted:
        more["wanted"] = outcome.wanted
    return {"peer": peer.name, **more, "values": values, "why_not": outcome.why_not}


def _peer(peer: Peer, outcome: Outcome) -> dict[str, Any]:
    return {
        "name": peer.name,
        "title": peer.title,
        "does": peer.does,
        "version": outcome.version,
        "event_loop": outcome.event_loop,
        "carried": outcome.carried,
        "no_server": peer.server,
        "no_warm": peer.warm,
    }


def _in_short(outcome: Outcome) -> str:
    medians = [
        f"{name} {report.rounded(sorted(values)[len(values) // 2])} ms"
        for name, values in outcome.values.items()
        if name != "skew"
    ]
    busy = "" if outcome.busy is None else f"busy {outcome.busy}"
    return ", ".join([*medians, *filter(None, [outcome.why_not, busy])])


def _raise_on_signals() -> None:
    """Let SIGTERM and SIGHUP raise SystemExit, so that what was started is ended. Once."""

    def stop(number: int, frame: FrameType | None) -> None:
        for each in stopping:
            signal.signal(each, signal.SIG_IGN)
        sys.exit(128 + number)

    # A signal that is ignored (nohup) stays ignored.
    stopping = [n for n in STOPPING if signal.getsignal(n) is not signal.SIG_IGN]
    for each in stopping:
        signal.signal(each, stop)


def _command(arguments: Sequence[str]) -> str:
    """The command that makes this run again, without paths of this machine."""
    script = Path(__file__).resolve().relative_to(ROOT).as_posix()
    said: list[str] = []
    for argument in arguments:
        option, given, _ = argument.partition("=")
        if said and said[-1] in FOLDERS:
            argument = FOLDERS[said[-1]]
        elif given and option in FOLDERS:
            argument = f"{option}={FOLDERS[option]}"
        said.append(argument)
    return f"python {script} {shlex.join(said)}".strip()


def _load() -> float:
    """The load average of the last minute."""
    return round(os.getloadavg()[0], 2)


def machine(why_not_private: str | None) -> dict[str, Any]:
    """The machine on which it was measured."""
    is_private = why_not_private is None
    fields = {}
    if Path("/proc/cpuinfo").exists():
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        fields = {k.strip(): v.strip() for k, _, v in (line.partition(":") for line in lines)}
    memory_bytes = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return {
        "when": datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "cores": len(os.sched_getaffinity(0)),
        "processor": fields.get("model name", platform.machine()),
        "memory": f"{memory_bytes / 2**30:.0f} GiB",
        "system": f"{platform.system()} {platform.release().partition('-')[0]}",
        "python": platform.python_version(),
        "network": "a private one, loopback only" if is_private else "this machine's loopback",
        "host_names": "from the hosts file, in a private mount namespace, for all alike"
        if is_private
        else f"as this machine answers them ({why_not_private})",
        "load_before": _load(),
    }


# -- what is written -------------------------------------------------------------------------------


def _write(run: dict[str, Any]) -> int:
    """The document, its JSON and its pictures."""
    try:
        report.draw(run, DOCUMENT.parent / "images")
    except ImportError:
        say("no new pictures: they need matplotlib (pip install 'rallypoint[bench]')")
    shown = report.shown(DOCUMENT.parent / "images", DOCUMENT.parent)
    document = DOCUMENT.read_text(encoding="utf-8")
    text = doc_tables.put(report.markdown(run, shown), document, report.WRITER)
    DOCUMENT.write_text(text, encoding="utf-8")
    _write_json(run, DOCUMENT.with_suffix(".json"))
    say(f"written to {DOCUMENT.relative_to(ROOT)}, its .json, and images/")
    return 0


def _write_json(run: dict[str, Any], path: Path) -> None:
    """Write one result on each line, so that a diff can be read."""
    lists = {"peers", "results", "deaths"}
    lines = []
    for name, value in run.items():
        if name in lists:
            rows = ",\n  ".join(json.dumps(row, ensure_ascii=False) for row in value)
            lines.append(f'"{name}": [\n  {rows}\n ]')
        else:
            lines.append(f'"{name}": {json.dumps(value, ensure_ascii=False)}')
    path.write_text("{\n " + ",\n ".join(lines) + "\n}\n", encoding="utf-8")


def _sizes(text: str) -> list[int]:
    sizes = [int(each) for each in text.split(",")]
    if min(sizes) < 2:
        raise argparse.ArgumentTypeError("nodes meet from two on")
    return sizes


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description="Rallypoint and its peers, side by side.", allow_abbrev=False
    )
    parser.add_argument("--install", action="store_true", help="install the peers, measure nothing")
    parser.add_argument("--only", metavar="A,B", help=f"of: {', '.join(p.name for p in PEERS)}")
    parser.add_argument("--nodes", type=_sizes, default=list(SIZES), metavar="N[,N...]")
    parser.add_argument(
        "--repeats", type=int, default=REPEATS, metavar="N", help="warm meetings at each size"
    )
    parser.add_argument(
        "--deadline", type=float, default=DEADLINE_S, metavar="S", help="of a peer at one size"
    )
    parser.add_argument("--no-deaths", action="store_true", help="only meetings")
    parser.add_argument(
        "--environments",
        type=Path,
        default=install.FOLDER,
        metavar="DIR",
        help="where peers are installed",
    )
    parser.add_argument("--output", type=Path, metavar="FILE", help="write the JSON there")
    parser.add_argument("--write", action="store_true", help="write docs/benchmarks.md")
    parser.add_argument("--again", action="store_true", help="write it from its JSON once more")
    parser.add_argument("--here", action="store_true", help="no network and names of its own")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(main())
