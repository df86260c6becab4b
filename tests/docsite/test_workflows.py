"""The commands that the workflows run exist, and each job has a limit of time."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys

import pytest

from tests.docsite.pages import ROOT

WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))
NIGHTLY = ROOT / ".github" / "workflows" / "nightly.yml"
CI = ROOT / ".github" / "workflows" / "ci.yml"
WITHOUT_END = ("simulate", "model", "mutants", "fuzz")
MARGIN_MINUTES = 30
"""For the installation, and for what follows the search."""
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


def nightly_commands() -> list[tuple[int, list[str]]]:
    """The limit of each job in minutes, and what it runs."""
    rows = re.findall(r"minutes: (\d+), .*command: \"(.*)\"", NIGHTLY.read_text())
    filled = [(int(minutes), re.sub(r"\$\{\{.*?\}\}", "7", command)) for minutes, command in rows]
    return [(minutes, shlex.split(command)) for minutes, command in filled]


COMMANDS = [words for _, words in nightly_commands()]


def commanded(words: list[str]) -> str:
    """What make would run."""
    make = shutil.which("make")
    if make is None:
        pytest.skip("there is no make here")
    env = {name: value for name, value in os.environ.items() if not name.startswith(("MAKE", "MF"))}
    told = subprocess.run(
        [make, "--dry-run", *words[1:]],
        cwd=ROOT,
        env=env | {"TORCH": ""},
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    return told.stdout.replace("\\\n", " ")


@pytest.mark.parametrize("words", COMMANDS, ids=" ".join)
def test_each_variable_of_a_nightly_command_changes_what_is_run(words: list[str]) -> None:
    assert words[0] == "make"
    variables = [each for each in words if "=" in each and not each.startswith("PYTHON=")]
    for each in variables:
        name, _, value = each.partition("=")
        assert re.search(rf"^{name} \?=", (ROOT / "Makefile").read_text(), re.MULTILINE), each
        other = [word if word != each else f"{name}=8{value}" for word in words]
        assert commanded(other) != commanded(words), each


@pytest.mark.parametrize("words", COMMANDS, ids=" ".join)
def test_each_option_of_a_nightly_command_exists(words: list[str]) -> None:
    (line,) = [each for each in commanded(words).splitlines() if "python -m " in each][-1:]
    module, *rest = line.partition("python -m ")[2].split()
    if module == "pytest":
        return
    told = subprocess.run(
        [sys.executable, "-m", module, "--help"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
        timeout=100,
    )
    options = [each for each in rest if each.startswith("--")]
    assert [each for each in options if not re.search(rf"{each}\b", told.stdout)] == []


def test_a_search_without_an_end_stops_before_the_limit_of_its_job() -> None:
    """If it was cut off, its exit code would be lost."""
    found = set()
    for limit_minutes, words in nightly_commands():
        minutes = [int(each.partition("=")[2]) for each in words if each.startswith("MINUTES=")]
        if words[1] in WITHOUT_END:
            found.add(words[1])
            assert minutes, words
        assert all(each <= limit_minutes - MARGIN_MINUTES for each in minutes), words
    assert found == set(WITHOUT_END)


def test_a_search_that_finds_something_fails_its_job() -> None:
    """No exit code is replaced by another one."""
    step = NIGHTLY.read_text().partition("- name: ${{ matrix.command }}")[2].partition("- name:")[0]
    assert "shell: bash\n" in step, "without pipefail, tee's exit code counts"
    assert re.search(r"\|\||code=|continue-on-error|exit|set \+e", step) is None


def test_the_tests_that_need_root_run_somewhere() -> None:
    (step,) = re.findall(r"- run: (.*\.ci/run)", CI.read_text())
    assert step.startswith("${{ matrix.root }} env")
    assert 'root: "sudo"' in CI.read_text()
