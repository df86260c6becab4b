"""Planted bugs: each still binds to the shipped code, and the tools find it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from rallypoint.core.formation import Decision
from rallypoint.core.membership import _HANDLER_OF
from tests.kinds import LONG
from tests.simulation.planted import BUGS
from tests.simulation.planted.__main__ import PAGE, Found, is_lost, look_for, table, verdict
from tests.simulation.planted.known import KNOWN
from tests.simulation.planted.planting import BindingError, Bug, planted, replaces

NEAR = 40
WITH_SEED = [bug for bug in BUGS.values() if bug.seed is not None]


@pytest.fixture(autouse=True)
def _quiet(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    with caplog.at_level("CRITICAL", "rallypoint"):
        yield


@pytest.mark.parametrize("bug", BUGS.values(), ids=lambda bug: bug.name)
def test_each_bug_still_binds(bug: Bug) -> None:
    with planted(bug) as there:
        assert list(there.calls) == [part.target for part in bug.parts]  # each in its own place


def bug_of(*parts: Any) -> Bug:
    return Bug(name="here", rule="none", source="this test", parts=parts)


@replaces("rallypoint.core.membership:Membership._on_departed")
def _gone(original: Any, self: Any, event: Any) -> None:
    """No such method."""


@replaces("rallypoint.core.requests:on_departing")
def _other(original: Any, run: Any, happened: Any) -> None:
    """The parameter has another name."""


@pytest.mark.parametrize("part", [_gone, _other])
def test_a_bug_that_does_not_bind_is_an_error(part: Any) -> None:
    with pytest.raises(BindingError), planted(bug_of(part)):
        pass


@replaces("rallypoint.core.requests:on_departing")
def _ignored(original: Any, run: Any, event: Any) -> None:
    """A table of handlers refers to it."""


def test_a_bug_is_planted_wherever_the_code_refers_to_it() -> None:
    before = dict(_HANDLER_OF)
    with planted(bug_of(_ignored)):
        assert sum(_HANDLER_OF[each] is not before[each] for each in before) > 1
    assert before == _HANDLER_OF


@replaces("rallypoint.core.formation:decide")
def _never(original: Any, counts: Any) -> Any:
    return Decision.TOO_FEW


@replaces("rallypoint.core.sizes:size_text")
def _unused(original: Any, size: Any) -> str:
    return ""


def test_a_seed_that_finds_a_bug_is_reported() -> None:
    found = look_for(bug_of(_never), 0, 3)
    assert found.is_found
    assert "R7" in found.problem


def test_a_bug_that_is_never_called_is_reported() -> None:
    found = look_for(bug_of(_unused), 0, 1)
    assert not found.is_found
    assert found.problem.startswith("NOT CALLED")


def test_only_a_bug_that_was_found_before_is_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    """Those that no seed has found yet do not hide it."""
    before, never = (bug.name for bug in WITH_SEED[:2])
    monkeypatch.delitem(KNOWN, never)
    by_tests = next(bug.name for bug in BUGS.values() if bug.by == "tests")

    def not_found(name: str, why: str = "not found") -> Found:
        return Found(name, None, 9, 1.0, why, is_found=False)

    assert is_lost(not_found(before))
    assert is_lost(not_found(by_tests))
    assert is_lost(not_found(never, "also without it: R7"))
    assert not is_lost(not_found(never))
    assert verdict([not_found(before), not_found(never)]).splitlines() == [
        "2 bugs, 0 found or judged",
        f"NO LONGER FOUND: {before}",
        f"not found yet, as before: {never}",
    ]


@pytest.mark.verify
@pytest.mark.parametrize("bug", WITH_SEED if LONG else WITH_SEED[::6], ids=lambda bug: bug.name)
def test_the_known_seed_finds_the_bug(bug: Bug) -> None:
    assert bug.seed is not None
    # A change of the plans changes what a seed means, and then a seed near it finds the bug.
    found = look_for(bug, bug.seed, NEAR)
    assert found.is_found, found.problem


@pytest.mark.verify
def test_the_documentation_has_a_row_for_each_bug() -> None:
    assert table(KNOWN) in PAGE.read_text()
