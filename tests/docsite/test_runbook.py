"""docs/runbook.md has a row for each reason, each error and each variable of a worker."""

from __future__ import annotations

import inspect
import re
from typing import Any

from rallypoint import errors
from rallypoint.core.reasons import RefusalCode, Waiting
from rallypoint.core.values import HANG, ChangeKind, FailureKind
from rallypoint.environments import LAUNCH
from rallypoint.launch.worker_env import WorkerContext, worker_environment
from tests.docsite.pages import ROOT

PAGE = (ROOT / "docs" / "runbook.md").read_text(encoding="utf-8")


def rows(heading: str) -> set[str]:
    """The names in the first cells of all tables below a heading."""
    section = PAGE.partition(f"\n## {heading}\n")[2].partition("\n## ")[0]
    cells = re.findall(r"^\| (`.*?`) \|", section, re.MULTILINE)
    return {name for cell in cells for name in re.findall(r"`([^`]+)`", cell)}


def test_each_field_of_a_wait_has_a_row() -> None:
    assert rows("Why no round is active") == set(Waiting.__struct_fields__)


def test_each_end_of_a_round_has_a_row() -> None:
    assert rows("Why a round ended") == {*ChangeKind, *FailureKind, HANG}


def test_each_refusal_has_a_row_and_names_its_error() -> None:
    assert rows("Why a node is refused") == set(RefusalCode)
    section = PAGE.partition("\n## Why a node is refused\n")[2].partition("\n## ")[0]
    for code, kind in errors._REFUSED.items():
        (row,) = [each for each in section.splitlines() if each.startswith(f"| `{code}`")]
        assert f"`{kind.__name__}`" in row


def test_each_error_has_a_row() -> None:
    known = {
        name
        for name, each in vars(errors).items()
        if inspect.isclass(each) and issubclass(each, errors.RallypointError)
    }
    assert rows("All errors") == known


def test_each_variable_of_a_worker_has_a_row() -> None:
    given: dict[str, Any] = {
        name: 2 if kind in ("int", int) else "x"
        for name, kind in WorkerContext.__annotations__.items()
    }
    given |= {"virtual_local_rank": False, "sees_own_device": False}
    made = worker_environment(WorkerContext(**given), {})
    assert LAUNCH in made
    assert rows("Variables of a worker") == set(made)
