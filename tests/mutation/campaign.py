"""All mutants of the marked lines, tried one after the other, with what is known about each.

Known are: which tests reach a line (one run of all tests), what killed a mutant before
(killers.json, in the repository), and which survivors were judged (judged.toml).
"""

from __future__ import annotations

import hashlib
import json
import signal
import time
import tomllib
from collections import Counter
from pathlib import Path
from typing import Any, Final

import msgspec
import pytest

from benchmarks import doc_tables
from tests.kinds import UNIT
from tests.mutation.killing import Reach, Tests, Verdict, line_key
from tests.mutation.marks import ROOT, SOURCE, files
from tests.mutation.mutants import MutableFile, Mutant

HERE: Final = Path(__file__).parent
KILLERS: Final = HERE / "killers.json"
JUDGED: Final = HERE / "judged.toml"
PAGE: Final = ROOT / "docs" / "verification.md"
BY: Final = "tests/mutation"
FOLDERS: Final = ("core", "coordinator", "client", "checkers", "launch", "simulation")
"""The tests that may kill a mutant: the pure ones of these folders, simulated worlds among them."""
FIRST_TRIED: Final = 12
"""How many tests are tried first: those that have killed other mutants of the same function, and
then so many of the same file."""

INTERRUPTED: Final = 130
JUDGED_S: Final = 5.0
"""So many seconds of tests are enough for a survivor that was judged."""


class Judgement(msgspec.Struct, frozen=True):
    """A survivor that a person has looked at. `reason`: why no test has to find it."""

    key: str
    function: str
    was: str
    now: str
    reason: str


def judgements() -> dict[str, Judgement]:
    """The judged survivors, by their keys."""
    listed = tomllib.loads(JUDGED.read_text("utf-8")).get("survivor", [])
    found = msgspec.convert(listed, list[Judgement])
    return {each.key: each for each in found}


def killers_in(path: Path) -> dict[str, str]:
    """Which test kills each mutant, by the mutants' keys. Empty if there is no such file."""
    found: dict[str, str] = json.loads(path.read_text("utf-8")) if path.exists() else {}
    return found


def counted(mutants: int, killed: int, judged: int) -> str:
    """How many mutants there are, and what is known of them, for docs/verification.md."""
    return (
        f"**Mutation**: {mutants:,} mutants of the lines that keep a rule. {killed:,} are killed, "
        "each by a test that\n"
        f"`tests/mutation/killers.json` names; {judged:,} are judged, each in a sentence of "
        "`tests/mutation/judged.toml`."
    )


class Campaign:
    """One run of the tool. `state`: a file that is written as it goes, to go on from.

    `seconds`: the most seconds of tests for one mutant, by what they take without a mutant.
    `worlds`: how many simulated worlds a mutant is tried in that all tests leave alive.
    `killers`: the file with the known killers. `is_only_new`: leave out the mutants that have one
    there, and those that were judged.
    """

    def __init__(
        self,
        state: Path,
        *,
        only: str = "",
        key: str = "",
        seconds: float = 60.0,
        worlds: int = 0,
        killers: Path = KILLERS,
        is_only_new: bool = False,
    ) -> None:
        self.files = {str(path): MutableFile(path) for path in files(only)}
        mutants = [each for file in self.files.values() for each in file.mutants()]
        self._current = {each.key for each in mutants}
        self._is_whole = not only
        self._seconds = seconds
        self._worlds = worlds
        self._killers_file = killers
        self._file = state
        self._judged = judgements()
        self._killers = killers_in(killers)
        known = {*self._killers, *self._judged} if is_only_new else set()
        self.mutants = [each for each in mutants if key in ("", each.key) and each.key not in known]
        self._state: dict[str, Any] = {"reach": {}, "lines": [], "of": "", "done": {}}
        if state.exists():
            self._state |= json.loads(state.read_text())
        if key:
            self._state["done"].pop(key, None)
        self._reach: dict[str, Reach] = {}
        self._stop_after_s: float | None = None
        self._code = 0
        self._is_interrupted = False

    # -- the whole -----------------------------------------------------------------------------

    def go(self, stop_after_s: float | None = None) -> int:
        """Try all mutants. The exit code: 1 if one survives that is not judged.

        After SIGINT or SIGTERM, it is 130 if none has survived until then.
        """
        self._stop_after_s = stop_after_s
        before = signal.signal(signal.SIGTERM, signal.default_int_handler)
        try:
            self._run([f"tests/{each}" for each in FOLDERS], self._try_all)
        finally:
            signal.signal(signal.SIGTERM, before)
        return self._code or (INTERRUPTED if self._is_interrupted else 0)

    def share(self, seconds: float) -> int:
        """Run the known killer of each mutant, for about so many seconds.

        It begins elsewhere each day, so that several runs together try all of them.
        """
        self._stop_after_s = seconds
        known = {self._killers[m.key] for m in self.mutants if m.key in self._killers}
        paths = sorted({each.split("::")[0] for each in known})
        self._run([each for each in paths if (ROOT / each).exists()], self._try_known)
        return self._code

    def _run(self, paths: list[str], work: Any) -> None:
        options = ["-q", "-p", "no:cacheprovider", "-o", "timeout=0", "-p", "no:xdist"]
        marks = ["-m", UNIT]
        code = pytest.main([*options, *marks, *paths], plugins=[Tests(work)])
        if code == pytest.ExitCode.INTERRUPTED:
            self._is_interrupted = True
        elif code not in (pytest.ExitCode.OK, pytest.ExitCode.NO_TESTS_COLLECTED):
            self._code = int(code)

    # -- all tests -----------------------------------------------------------------------------

    def _try_all(self, tests: Tests) -> None:
        began_s = time.monotonic()
        try:
            self._read_reach(tests)
            self._try_each(tests, began_s)
        except KeyboardInterrupt:
            self._is_interrupted = True
            print("interrupted; what is known until now:", flush=True)
        self._write(len(self.mutants))
        self._report()

    def _try_each(self, tests: Tests, began_s: float) -> None:
        by_part: dict[str, dict[str, None]] = {}
        for name, each in self._reach.items():
            for part in dict.fromkeys(part for line in each.lines for part in _parts(line)):
                by_part.setdefault(part, {})[name] = None
        killed_by: dict[str, dict[str, None]] = {}
        for number, mutant in enumerate(self.mutants):
            file = self.files[str(mutant.mark.path)]
            of_file = killed_by.setdefault(str(mutant.mark.path), {})
            own = killed_by.setdefault(f"{mutant.mark.path}:{mutant.function[0]}", {})
            if mutant.key in self._done:
                continue
            if self._stop_after_s is not None and time.monotonic() - began_s > self._stop_after_s:
                break
            first = [*reversed(own)][:FIRST_TRIED] + [*reversed(of_file)][:FIRST_TRIED]
            names = self._in_order(mutant, self._reaching(mutant, by_part), first, tests)
            usual_s = sum(map(self._seconds_of, names))
            verdict = Verdict()
            if names:
                worlds = 0 if mutant.key in self._judged else self._worlds
                verdict = tests.kill(file, mutant, names, usual_s, worlds)
            for known in (own, of_file):
                if verdict.killer in tests.items:
                    known.pop(verdict.killer, None)
                    known[verdict.killer] = None
            self._done[mutant.key] = msgspec.to_builtins(verdict)
            if verdict.killer and mutant.key in self._judged:
                print(f"{mutant.key} is judged, but is killed: remove the judgement", flush=True)
            if not verdict.killer and not verdict.now_invalid:
                self._print_survivor(mutant, verdict)
            if number % 50 == 0:
                self._write(number)

    def _reaching(self, mutant: Mutant, by_part: dict[str, dict[str, None]]) -> list[str]:
        """The tests that reach the line. If it is newer: its function, and all of its folder."""
        line, function = _parts(line_key(mutant))
        if line in self._state["lines"]:
            return list(by_part.get(line, ()))
        folder = f"tests/{mutant.mark.path.relative_to(SOURCE).parts[0]}/"
        of_function = by_part.get(function, {})
        return [n for n in self._reach if n in of_function or n.startswith(folder)]

    def _in_order(
        self, mutant: Mutant, reaching: list[str], first: list[str], tests: Tests
    ) -> list[str]:
        """The tests to run: its known killer, killers of its neighbours, and then all others that
        reach the line, the quickest first."""
        reached = set(reaching)
        likely = sorted((each for each in first if each in reached), key=self._seconds_of)
        likely.insert(0, self._killers.get(mutant.key, ""))
        names = {each: None for each in likely if each in tests.items}
        budget_s = JUDGED_S if mutant.key in self._judged else self._seconds
        for each in reaching:
            budget_s -= self._seconds_of(each)
            if budget_s < 0:
                break
            names[each] = None
        return [each for each in names if each in tests.items]

    def _seconds_of(self, test: str) -> float:
        known = self._reach.get(test)
        return known.seconds if known is not None else 0.05

    def _read_reach(self, tests: Tests) -> None:
        """Which test reaches which marked line: as known, or from a run of the tests.

        Only new tests are run. Remove the state to have all of it anew.
        """
        everything = {str(path): MutableFile(path) for path in files()}
        mutants = [each for file in everything.values() for each in file.mutants()]
        reach = self._state["reach"]
        if not reach:
            self._state["lines"] = sorted(set(map(line_key, mutants)))
        new = [name for name in tests.items if name not in reach]
        if new:
            reach.update(msgspec.to_builtins(tests.reach(everything, mutants, new)))
            self._write(0)
        state = _digest_of_sources()
        if self._state["of"] != state:
            self._state["of"] = state
            self._state["done"] = self._still_valid()
        found = msgspec.convert(reach, dict[str, Reach])
        self._reach = dict(sorted(found.items(), key=lambda each: each[1].seconds))

    def _still_valid(self) -> dict[str, Any]:
        """After a change of source or tests, survivors are tried again, and the killed are not."""
        done = self._state["done"].items()
        return {key: each for key, each in done if each["killer"] and not each["is_timeout"]}

    @property
    def _done(self) -> dict[str, Any]:
        found: dict[str, Any] = self._state["done"]
        return found

    # -- known killers -------------------------------------------------------------------------

    def _try_known(self, tests: Tests) -> None:
        began_s = time.monotonic()
        begin = int(time.time() // 86_400) * 997 % max(1, len(self.mutants))
        counts: Counter[str] = Counter()
        for mutant in (*self.mutants[begin:], *self.mutants[:begin]):
            killer = self._killers.get(mutant.key, "")
            if mutant.key in self._judged or killer not in tests.items:
                counts["judged" if mutant.key in self._judged else "without a known killer"] += 1
                continue
            if self._stop_after_s is not None and time.monotonic() - began_s > self._stop_after_s:
                counts["not tried"] += 1
                continue
            file = self.files[str(mutant.mark.path)]
            verdict = tests.kill(file, mutant, [killer], 5.0)
            if not verdict.killer:
                # The killer was changed: perhaps another test beside it has its part now.
                path = killer.split("::")[0]
                beside = [name for name in tests.items if name.startswith(path)]
                verdict = tests.kill(file, mutant, beside, 60.0)
            if verdict.now_invalid:
                counts["whose code these tests do not load"] += 1
                continue
            counts["killed" if verdict.killer else "survived"] += 1
            if verdict.killer:
                self._killers[mutant.key] = verdict.killer
            else:
                self._code = 1
                self._print_survivor(mutant, verdict)
        print(", ".join(f"{count} {what}" for what, count in sorted(counts.items())), flush=True)

    # -- what is told and kept -----------------------------------------------------------------

    def _print_survivor(self, mutant: Mutant, verdict: Verdict) -> None:
        judged = self._judged.get(mutant.key)
        what = f"judged: {judged.reason}" if judged else "SURVIVED"
        print(f"{mutant.key} {what} ({verdict.tests} tests) {mutant.diff}", flush=True)

    def _report(self) -> None:
        counts: Counter[str] = Counter()
        for mutant in self.mutants:
            found = self._done.get(mutant.key)
            verdict = msgspec.convert(found, Verdict) if found is not None else None
            match verdict:
                case None:
                    counts["not tried"] += 1
                case Verdict(now_invalid=reason) if reason:
                    counts["invalid"] += 1
                case Verdict(is_timeout=True):
                    counts["timeouts"] += 1
                case Verdict(killer=killer) if killer:
                    counts["killed"] += 1
                case _ if mutant.key in self._judged:
                    counts["survived, judged"] += 1
                case _:
                    counts["survived"] += 1
                    self._code = 1
        print(f"{len(self.mutants)} mutants of {len(self.files)} files: ", end="")
        print(", ".join(f"{count} {what}" for what, count in sorted(counts.items())), flush=True)

    def _write(self, number: int) -> None:
        temporary = self._file.with_suffix(".new")
        temporary.write_text(json.dumps(self._state))
        temporary.replace(self._file)
        if number:
            print(f"{number} of {len(self.mutants)}", flush=True)

    def write_killers(self) -> None:
        """Keep which test killed each mutant, for `share`. All of them are counted in the docs."""
        current = self._current
        known = {k: v for k, v in self._killers.items() if k in current or not self._is_whole}
        for key, found in self._done.items():
            if key in current and "::" in found["killer"] and not found["is_timeout"]:
                known[key] = found["killer"]
        # A judgement stays until a person removes it.
        known = {key: test for key, test in known.items() if key not in self._judged}
        self._killers_file.write_text(json.dumps(dict(sorted(known.items())), indent=0) + "\n")
        if self._is_whole and self._killers_file == KILLERS:
            counts = counted(len(current), len(known), len(self._judged))
            PAGE.write_text(doc_tables.put(counts, PAGE.read_text("utf-8"), BY), "utf-8")


def _parts(line: str) -> tuple[str, ...]:
    """A `line_key`, and its function."""
    return line, ":".join(line.split(":", 2)[:2])


def _digest_of_sources() -> str:
    digest = hashlib.sha256()
    for part in ("src", "tests"):
        for path in sorted((ROOT / part).rglob("*.py")):
            if "mutation" not in path.parts:
                digest.update(path.read_bytes())
    return digest.hexdigest()
