"""Bugs of the agreement on a last step, when a node drains (R14)."""

from __future__ import annotations

import math
from typing import Any

from rallypoint.client.step_gate import Pass
from rallypoint.core import agreeing
from rallypoint.wire import messages as wire
from tests.simulation.planted.planting import Bug, Replacement, replaces


@replaces("rallypoint.client.step_gate:StepGate.enter")
def _goes_on_beyond_its_promise(original: Any, self: Any, step: Any) -> Pass:
    """A worker does not wait for the decision."""
    passed: Pass = original(self, step)
    if passed is Pass.WAIT:
        self._passed = step
        return Pass.GO_ON
    return passed


@replaces("rallypoint.client.step_gate:StepGate.promise")
def _promises_too_little(original: Any, self: Any) -> int | None:
    """It promises a step that it has passed long ago."""
    step = original(self)
    return None if step is None else max(0, step - 2)


@replaces("rallypoint.core.agreeing:advance")
def _tells_before_the_ledger_has_it(original: Any, run: Any) -> None:
    had = run._agreement.step
    original(run)
    if had is None and run._agreement.step is not None and not run._agreement.is_step_told:
        agreeing.tell_step(run)


@replaces("rallypoint.core.agreeing:on_promised")
def _decides_when_the_first_has_promised(original: Any, run: Any, event: Any) -> None:
    original(run, event)
    if run._agreement.promises:
        run._agreement.promises.update(dict.fromkeys(run._agreement.taking_part))


@replaces("rallypoint.core.agreement:Agreement.__init__")
def _forgets_the_step_at_a_takeover(original: Any, self: Any, step: Any = None) -> None:
    original(self, None)


@replaces("rallypoint.client.machine:NodeMachine._of_agreement")
def _promises_no_successor(original: Any, self: Any, now_s: Any) -> Any:
    """A coordinator that takes the run over is not told what was promised before."""
    said = original(self, now_s)
    return [each for each in said if not isinstance(each, wire.Promise)]


@replaces("rallypoint.client.steps:Steps.told")
def _waits_without_a_limit(original: Any, self: Any, drain: Any) -> None:
    original(self, drain)
    self._ends_s = math.inf


@replaces("rallypoint.client.steps:Steps.decided")
def _is_not_woken(original: Any, self: Any, step: Any) -> None:
    self.gate.decide(step)


@replaces("rallypoint.core.agreeing:is_clear")
def _says_too_early_that_not_all_take_part(original: Any, run: Any) -> bool:
    """A successor has not heard yet that they do, and the node that drains leaves at once."""
    return True


@replaces("rallypoint.core.agreement:Agreement.is_open")
def _leaves_those_waiting_that_have_promised(original: Any, self: Any) -> bool:
    """The node that drained has finished, and nobody needs a step any more."""
    return bool(self.draining) and (self.step is None or not self.is_told)


def _bug(name: str, *parts: Replacement, judged: str = "", tests: tuple[str, ...] = ()) -> Bug:
    by = "judged" if judged else "tests" if tests else "departures"
    return Bug(
        name=f"drain-{name}",
        rule="R14",
        source="none",
        parts=parts,
        by=by,
        judged=judged,
        tests=tests,
    )


_RULES = ("tests/core/test_agreeing.py",)

AGREEMENTS = (
    _bug("goes-on-beyond-its-promise", _goes_on_beyond_its_promise),
    _bug("promises-too-little", _promises_too_little),
    _bug("tells-before-the-ledger-has-it", _tells_before_the_ledger_has_it),
    _bug("decides-at-the-first-promise", _decides_when_the_first_has_promised),
    _bug(
        "forgets-the-step-at-a-takeover",
        _forgets_the_step_at_a_takeover,
        judged="promises never change, so the successor decides the same step again",
    ),
    _bug("promises-no-successor", _promises_no_successor, tests=("tests/client/test_drains.py",)),
    _bug("says-too-early-that-it-cannot-be", _says_too_early_that_not_all_take_part, tests=_RULES),
    _bug(
        "leaves-those-waiting-that-have-promised",
        _leaves_those_waiting_that_have_promised,
        tests=_RULES,
    ),
    _bug("is-not-woken", _waits_without_a_limit, _is_not_woken),
)
