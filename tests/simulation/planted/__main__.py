"""`python -m tests.simulation.planted`: plants each bug, and looks for a seed that finds it.

Exits with 1 if a bug is no longer found that `known.json` has a seed for, or that tests find; and
if a seed, or a test, also fails without its bug. Bugs that no seed has found yet are listed only.
"""

from __future__ import annotations

import argparse
import logging
import multiprocessing
import sys
import time
from pathlib import Path

import msgspec

from benchmarks import doc_tables
from tests.simulation.planted import BUGS
from tests.simulation.planted.known import KNOWN, Known, write
from tests.simulation.planted.planting import TOOLS, Bug, failing_tests, planted

SHOWN_CHARACTERS = 110
PAGE = Path(__file__).parents[3] / "docs" / "verification.md"
BY = "tests/simulation/planted"
WITHOUT = "also without it"


class Found(msgspec.Struct, frozen=True):
    """How a bug was looked for. `seed`: the one that found it; None: no seed did."""

    name: str
    seed: int | None
    seeds: int
    cpu_s: float
    problem: str
    is_found: bool


def look_for(bug: Bug, first: int, seeds: int) -> Found:
    """Plant the bug, and run seeds from `first` on until one finds it."""
    if bug.by == "tests":
        return _look_in_tests(bug)
    if bug.judged:
        return Found(bug.name, None, 0, 0.0, bug.judged, is_found=True)
    tool, began_s = TOOLS[bug.by], time.process_time()
    with planted(bug) as there:
        for seed in range(first, first + seeds):
            problems = tool(seed)
            if problems:
                break
        else:
            problems = []
    cpu_s = time.process_time() - began_s
    tried = seed - first + 1 if seeds else 0
    if not problems:
        unused = there.unused()
        why = f"NOT CALLED: {', '.join(unused)}" if unused else "not found"
        return Found(bug.name, None, tried, cpu_s, why, is_found=False)
    without = tool(seed)
    if without:
        why = f"{WITHOUT}: {without[0]}"
        return Found(bug.name, seed, tried, cpu_s, why, is_found=False)
    return Found(bug.name, seed, tried, cpu_s, problems[0], is_found=True)


def _look_in_tests(bug: Bug) -> Found:
    began_s = time.monotonic()
    failed, without = failing_tests(bug, bug.tests), failing_tests(None, bug.tests)
    took_s = time.monotonic() - began_s
    said = failed[0] if failed else "no test fails"
    if without:
        said = f"{WITHOUT}: {without[0]}"
    is_found = bool(failed) and not without
    return Found(bug.name, None, len(failed), took_s, said, is_found=is_found)


def _look(work: tuple[str, int | None, int]) -> Found:
    # Not `logging.disable`: an error that is logged with its traceback is a finding.
    logging.getLogger("rallypoint").addHandler(logging.NullHandler())
    name, first, seeds = work
    bug = BUGS[name]
    start = first if first is not None else bug.seed or 0
    found = look_for(bug, start, seeds)
    is_beyond = bug.seed is not None and bug.seed not in range(start, start + seeds)
    if found.is_found or bug.seed is None or not is_beyond:
        return found
    alone = look_for(bug, bug.seed, 1)
    # How long a scan would have taken is not known.
    return msgspec.structs.replace(alone, cpu_s=0.0) if alone.is_found else found


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.simulation.planted")
    parser.add_argument("names", nargs="*", metavar="NAME", help="only these bugs")
    parser.add_argument("--seeds", type=int, default=1000, help="at most so many seeds for each")
    parser.add_argument("--first", type=int, default=0, help="the first seed")
    parser.add_argument("--known", action="store_true", help="begin at each bug's known seed")
    parser.add_argument("--write", action="store_true", help="write what was found into the docs")
    parser.add_argument("--jobs", type=int, default=1, help="processes")
    given = parser.parse_args(arguments)
    unknown = [name for name in given.names if name not in BUGS]
    if unknown:
        parser.error(f"no bug is called {unknown[0]}; there are: {', '.join(BUGS)}")
    first = None if given.known else given.first
    work = [(name, first, given.seeds) for name in given.names or BUGS]
    _print("bug", "tool", "seed", "seeds", "CPU s", "what the tool said")
    told: list[Found] = []
    with multiprocessing.Pool(given.jobs, maxtasksperchild=1) as pool:
        for found in pool.imap(_look, work):
            seed = "-" if found.seed is None else str(found.seed)
            said = found.problem.split("\n")[0][:SHOWN_CHARACTERS]
            by = BUGS[found.name].by
            _print(found.name, by, seed, str(found.seeds), f"{found.cpu_s:.1f}", said)
            told.append(found)
    if given.write:
        _write(told)
    print(verdict(told))
    return 1 if any(map(is_lost, told)) else 0


def is_lost(found: Found) -> bool:
    """Whether this bug was found before, and is not now; or a tool fails without it."""
    was_found = found.name in KNOWN or BUGS[found.name].by == "tests"
    return not found.is_found and (was_found or found.problem.startswith(WITHOUT))


def verdict(told: list[Found]) -> str:
    """What came out, in words."""
    lost = [found.name for found in told if is_lost(found)]
    never = [found.name for found in told if not found.is_found and not is_lost(found)]
    lines = [f"{len(told)} bugs, {sum(found.is_found for found in told)} found or judged"]
    lines += [f"NO LONGER FOUND: {', '.join(lost)}"] if lost else []
    lines += [f"not found yet, as before: {', '.join(never)}"] if never else []
    return "\n".join(lines)


def _write(told: list[Found]) -> None:
    """Keep the seeds, and put the table of all bugs into the docs."""
    known = {name: each for name, each in KNOWN.items() if name in BUGS}
    for found in told:
        known.pop(found.name, None)
        if found.is_found and found.seed is not None:
            rule = found.problem.partition(":")[0]
            known[found.name] = Known(found.seed, round(found.cpu_s, 1), rule)
    write(known)
    page = PAGE.read_text()
    PAGE.write_text(doc_tables.put(table(known), page, BY))


def table(known: dict[str, Known]) -> str:
    """A row for each bug, as Markdown."""
    rows = []
    for bug in BUGS.values():
        if bug.by == "tests":
            cells = ["tests", "", "", ", ".join(Path(path).stem for path in bug.tests)]
        elif bug.judged:
            cells = ["judged", "", "", bug.judged]
        elif bug.name in known:
            found = known[bug.name]
            seconds = f"{found.cpu_s:.1f}" if found.cpu_s else "played alone"
            cells = ["simulator", f"{found.seed + 1}", seconds, found.said]
        else:
            cells = ["simulator", "not found", "", ""]
        rows.append([bug.name, bug.source, *cells])
    headings = ("bug", "from", "tool", "seeds", "seconds", "what it said")
    return doc_tables.table(headings, rows)


def _print(name: str, tool: str, seed: str, seeds: str, cpu: str, said: str) -> None:
    print(f"{name:34} {tool:8} {seed:>6} {seeds:>6} {cpu:>7}  {said}", flush=True)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
