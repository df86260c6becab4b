"""`python -m rallypoint.simulation`: play seeds, look at one, make a failing plan smaller.

    python -m rallypoint.simulation --seeds 0:1000 --jobs 2
    python -m rallypoint.simulation --seeds 0:1000000 --jobs 2 --state simulate.json --seconds 3600
    python -m rallypoint.simulation --seeds 0:200 --digests > 3.13
    python -m rallypoint.simulation --seed 90 --last 200
    python -m rallypoint.simulation --seed 90 --at 5120
    python -m rallypoint.simulation --seed 90 --shrink

Exit codes: 0, no problem; 1, a problem was found, also if the run was interrupted after that; 2,
the arguments are wrong; 130, interrupted by SIGINT or SIGTERM before a problem was found.
"""

from __future__ import annotations

import argparse
import math
import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

import msgspec

from rallypoint.simulation import report
from rallypoint.simulation.job import Job, problem_of
from rallypoint.simulation.plan import Plan
from rallypoint.simulation.seeds import Progress, digests, play_all
from rallypoint.simulation.shrink import shrunk


def _range(text: str) -> range:
    first, colon, end = text.partition(":")
    try:
        seeds = range(int(first), int(end)) if colon else range(int(first))
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not A:B, such as 0:1000") from None
    if not seeds:
        raise argparse.ArgumentTypeError(f"{text!r} has no seed")
    return seeds


def _plan(text: str) -> Plan:
    try:
        return msgspec.json.decode(text, type=Plan, strict=True)
    except msgspec.MsgspecError as error:
        raise argparse.ArgumentTypeError(f"this is not a plan: {error}") from None


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        "python -m rallypoint.simulation",
        description="Play jobs of the shipped code in a simulated world, each from a seed.",
        epilog="exit codes: 0 no problem, 1 a problem was found, 2 wrong arguments, "
        "130 interrupted before a problem was found",
    )
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--seeds", type=_range, metavar="A:B", help="play seeds A to B - 1")
    what.add_argument("--seed", type=int, metavar="N", help="play one seed, and show what happened")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="how many processes")
    parser.add_argument(
        "--seconds", type=float, metavar="S", help="begin no more seeds after this time"
    )
    parser.add_argument("--first", action="store_true", help="stop at the first problem")
    parser.add_argument(
        "--state", type=Path, metavar="FILE", help="keep the progress here, and go on from it"
    )
    parser.add_argument(
        "--digests", action="store_true", help="print a digest of each seed's history, and no more"
    )
    parser.add_argument("--plan", type=_plan, metavar="JSON", help="play this, not the seed's plan")
    parser.add_argument("--last", type=int, default=60, help="how many events to show; 0: all")
    parser.add_argument("--at", type=int, metavar="STEP", help="show the state after this step")
    parser.add_argument(
        "--shrink", action="store_true", help="look for a smaller plan with the same problem"
    )
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """See above."""
    parser = _parser()
    options = parser.parse_args(arguments)
    _check(parser, options)
    if options.seeds is not None:
        return _many(options)
    if options.at is not None:
        return _at(options)
    job = Job(options.seed, plan=options.plan, is_told=True).run()
    if options.shrink and not job.problems:
        print(f"seed {options.seed} has no problem, so nothing is made smaller")
    if options.shrink and job.problems:
        plan = shrunk(options.seed, job.plan, job.problems, lambda line: print(line, flush=True))
        job = Job(options.seed, plan=plan, is_told=True).run()
        options.plan = plan
    print(report.told(job, last=options.last, is_whole_plan=options.plan is not None))
    return 1 if job.problems else 0


def _check(parser: argparse.ArgumentParser, options: argparse.Namespace) -> None:
    """Refuse what would have no effect, and plans that no job can be made of."""
    of_one = {"--at": options.at is not None, "--shrink": options.shrink, "--plan": options.plan}
    of_many = {"--digests": options.digests, "--first": options.first, "--state": options.state}
    of_many["--seconds"] = options.seconds is not None
    unused = of_one if options.seeds is not None else of_many
    other = "--seed" if options.seeds is not None else "--seeds"
    for name, is_given in unused.items():
        if is_given:
            parser.error(f"{name} goes with {other}")
    if options.digests and (options.state or options.first or options.seconds is not None):
        parser.error("--digests prints all seeds: leave out --state, --seconds and --first")
    if options.at is not None and options.shrink:
        parser.error("--at shows one state, and --shrink looks for a smaller plan: leave one out")
    if options.jobs < 1 or options.last < 0 or (options.at is not None and options.at < 0):
        parser.error("--jobs is at least 1; --last and --at are not negative")
    if options.state is not None and not options.state.parent.is_dir():
        parser.error(f"--state: there is no folder {str(options.state.parent)!r}")
    problem = problem_of(options.plan) if options.plan is not None else ""
    if problem:
        parser.error(f"--plan: {problem}")


def _at(options: argparse.Namespace) -> int:
    job = Job(options.seed, plan=options.plan)
    try:
        job.play(stop_step=options.at)
        if job.world.steps < options.at:
            print(
                f"the history of seed {options.seed} has {job.world.steps} steps; this is its end"
            )
        print(report.state(job))
    finally:
        job.world.close()
    return 0


def _many(options: argparse.Namespace) -> int:
    if options.digests:
        for seed, digest in digests(options.seeds, options.jobs):
            print(seed, digest, flush=True)
        return 0
    try:
        progress = Progress.read(options.state, options.seeds)
    except ValueError as error:
        print(f"{error}\nhint: name another file for --state", file=sys.stderr)
        return 2
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        code = 0
        play_all(
            progress,
            options.jobs,
            options.state,
            is_first_enough=options.first,
            seconds_max=math.inf if options.seconds is None else options.seconds,
        )
    except KeyboardInterrupt:
        code = 130
    finally:
        signal.signal(signal.SIGTERM, before)
    print(progress.told(), flush=True)
    return 1 if progress.findings else code


if __name__ == "__main__":
    sys.exit(main())
