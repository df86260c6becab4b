"""The commands that the workflows run exist, and each job has a limit of time."""

from __future__ import annotations

import re

import pytest

from tests.docsite.pages import ROOT

WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))
NIGHTLY = ROOT / ".github" / "workflows" / "nightly.yml"
SEARCHES = ("simulate", "model", "chaos", "soak", "mutants", "fuzz", "planted", "verify")


def targets() -> set[str]:
    """The targets of the Makefile that a person may call."""
    return set(re.findall(r"^([a-z-]+):.*?## ", (ROOT / "Makefile").read_text(), re.MULTILINE))


def made_in(text: str) -> list[str]:
    return re.findall(r"\bmake ([a-z][a-z-]*)", text)


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.name)
def test_each_target_that_a_workflow_makes_exists(path) -> None:
    missing = [each for each in made_in(path.read_text()) if each not in targets()]
    assert missing == []


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.name)
def test_each_job_has_a_limit_and_each_action_a_version(path) -> None:
    text = path.read_text()
    assert text.count("timeout-minutes:") == text.count("runs-on:") > 0
    actions = re.findall(r"uses: (\S+)", text)
    assert actions
    assert [each for each in actions if not re.fullmatch(r"actions/[a-z-]+@v\d+", each)] == []


def test_every_search_runs_each_night() -> None:
    assert set(SEARCHES) <= set(made_in(NIGHTLY.read_text()))


@pytest.mark.parametrize("variable", ["SEEDS", "STATES", "FRAMES", "SEED", "HOURS", "LEDGER"])
def test_a_variable_of_a_nightly_command_is_one_of_the_makefiles(variable: str) -> None:
    assert re.search(rf"\b{variable}=", NIGHTLY.read_text())
    assert re.search(rf"^{variable} \?= ", (ROOT / "Makefile").read_text(), re.MULTILINE)
