"""The tool that breaks marked lines: what it makes of them, and that it sees what survives."""

from __future__ import annotations

import ast
import json
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import ClassVar

import pytest

from tests.mutation import mutants as m
from tests.mutation.campaign import (
    FOLDERS,
    KILLERS,
    PAGE,
    Campaign,
    counted,
    judgements,
    killers_in,
)
from tests.mutation.killing import Reach, Verdict, line_key
from tests.mutation.marks import ROOT, files, marks_in

AGAIN = "python -m tests.mutation --new --keep"
EXAMPLE = """
class Gate:
    def may_pass(self, age, limit=18):
        # R3: a reason.
        if age >= limit and self.is_open:
            return True
        # R4: another.
        self.refused = max(self.refused, age + 1)
        return send(age, limit)  # R5: one more.
"""


@pytest.fixture
def example(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> m.MutableFile:
    monkeypatch.setattr(m, "SOURCE", tmp_path)
    path = tmp_path / "gate.py"
    path.write_text(EXAMPLE)
    return m.MutableFile(path)


def test_a_marked_line_is_broken_in_each_way(example: m.MutableFile) -> None:
    assert [each.now for each in example.mutants()] == [
        "if False:",
        "if True:",
        "if age >= limit or self.is_open:",
        "if self.is_open:",
        "if age > limit and self.is_open:",
        "if age >= limit:",
        "pass",
        "self.refused = min(self.refused, age + 1)",
        "self.refused = max(self.refused, age)",
        "self.refused = max(self.refused, age - 1)",
        "self.refused = max(self.refused, age + 2)",
        "return None",
        "return send(limit, age)",
    ]


def test_the_code_of_a_mutant_has_its_fault_and_the_tree_is_as_before(
    example: m.MutableFile,
) -> None:
    before = ast.unparse(example.tree)
    codes = set()
    for mutant in example.mutants():
        with m.made(mutant.edit):
            codes.add(example.compiled()[mutant.function])
        assert ast.unparse(example.tree) == before
    assert len(codes) == len(example.mutants())
    assert example.compiled()[mutant.function] not in codes


def test_a_mutant_keeps_its_key_when_other_lines_change(
    example: m.MutableFile, tmp_path: Path
) -> None:
    keys = [each.key for each in example.mutants()]
    (tmp_path / "gate.py").write_text("import ast\n\n" + EXAMPLE)
    assert [each.key for each in m.MutableFile(tmp_path / "gate.py").mutants()] == keys


def test_every_marked_line_of_the_source_has_a_mutant() -> None:
    for path in files():
        file = m.MutableFile(path)
        broken = {each.mark.line for each in file.mutants()}
        whole = {mark.line for mark in marks_in(path)}
        assert whole == broken, path


def test_the_tests_that_may_kill_a_mutant_exist() -> None:
    assert [each for each in FOLDERS if not list((ROOT / "tests" / each).glob("test_*.py"))] == []


@pytest.fixture(scope="module")
def known() -> dict[str, m.Mutant]:
    """All mutants of the source, by their keys."""
    return {each.key: each for path in files() for each in m.MutableFile(path).mutants()}


def test_each_mutant_is_killed_or_judged_and_counted(known: dict[str, m.Mutant]) -> None:
    killed, judged = killers_in(KILLERS).keys(), judgements().keys()
    neither = [each.diff for key, each in known.items() if key not in killed | judged]
    assert neither == [], f"look for tests that kill them: {AGAIN}"
    assert killed & judged == set(), "they are killed, so they need no judgement"
    assert killed - known.keys() == set(), f"these lines are gone: {AGAIN}"
    counts = counted(len(known), len(killed), len(judged))
    assert counts in PAGE.read_text("utf-8"), f"it has other counts: {AGAIN}"


def test_each_killer_exists() -> None:
    for killer in set(killers_in(KILLERS).values()):
        path, *names = killer.partition("[")[0].split("::")
        text = (ROOT / path).read_text("utf-8") if (ROOT / path).is_file() else ""
        is_there = all(
            re.search(rf"^ *(?:class|(?:async )?def) {each}\b", text, re.M) for each in names
        )
        assert is_there, f"{killer} is gone: remove its lines, and look for others ({AGAIN})"


def test_each_judged_survivor_is_still_there(known: dict[str, m.Mutant]) -> None:
    for key, judged in judgements().items():
        assert key in known, f"{key}: {judged.was} was changed: judge it again"
        assert (known[key].was, known[key].now) == (judged.was, judged.now)
        assert len(judged.reason.split()) > 3


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "tests.mutation", *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)


@pytest.mark.processes
@pytest.mark.parametrize(
    ("killer", "verdict", "code"),
    [
        ("test_formation.py::test_r3_a_formed_round_is_within_the_bounds", "killed", 0),
        ("test_marked_lines.py::test_r4_a_newcomer_may_name_a_round_that_it_missed", "survived", 1),
    ],
)
def test_a_mutant_is_killed_or_survives(
    tmp_path: Path, killer: str, verdict: str, code: int
) -> None:
    """The same mutant, once with a test that sees it and once with one that does not."""
    path = next(path for path in files() if path.name == "formation.py")
    mutant = next(each for each in m.MutableFile(path).mutants() if each.now == "if False:")
    killers = tmp_path / "killers.json"
    killers.write_text(json.dumps({mutant.key: f"tests/core/{killer}"}))
    done = run(
        *("--only", "core/formation.py", "--key", mutant.key, "--share", "60"),
        *("--killers", str(killers), "--state", str(tmp_path / "state.json")),
    )
    assert f"1 {verdict}" in done.stdout, done.stdout + done.stderr
    assert done.returncode == code


@pytest.mark.parametrize(("killer", "code"), [("", 1), ("a test", 130)])
def test_an_interrupted_campaign_tells_what_survived(
    killer: str, code: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    campaign = Campaign(tmp_path / "state.json", only="core/ranks.py", killers=tmp_path / "none")

    class Interrupted:
        items: ClassVar = {"a test": None}

        def kill(self, file: object, mutant: m.Mutant, *rest: object) -> Verdict:
            if mutant is campaign.mutants[1]:
                signal.raise_signal(signal.SIGTERM)
            return Verdict(killer)

    def read_reach(tests: object) -> None:
        campaign._reach = {"a test": Reach(0.1, list(map(line_key, campaign.mutants)))}

    monkeypatch.setattr(campaign, "_read_reach", read_reach)
    monkeypatch.setattr(campaign, "_run", lambda paths, work: work(Interrupted()))
    assert campaign.go() == code


@pytest.mark.verify
@pytest.mark.processes
@pytest.mark.timeout(900)
def test_a_share_of_the_mutants_is_killed_by_the_known_killers(tmp_path: Path) -> None:
    done = run("--share", "120", "--state", str(tmp_path / "state.json"))
    assert done.returncode == 0, done.stdout + done.stderr
    assert " killed" in done.stdout
