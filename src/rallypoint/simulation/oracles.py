"""What must hold in a job, whatever faults meet it. Each check quotes its rule.

An oracle is a subclass of `scene.Oracle`: it is told what programs and coordinators see, and may
look at the scene after each step and at the end. It keeps its own account and shares no state with
the code that it checks, so that it remembers what a coordinator forgot.

To add one: write the class, let it call `scene.broke` with the rule, and put it into `ORACLES`. See
it fail once, with a bug that is planted in the shipped code.
"""

from __future__ import annotations

import math
from typing import Any, Final

from rallypoint.core.store import (
    TIMEOUT,
    Add,
    CompareSet,
    Get,
    Set,
    StoreFailure,
    StoreOp,
    StoreResult,
    StoreValue,
)
from rallypoint.simulation.coordinator_oracles import (
    CoordinatorsKeepRules,
    CoordinatorsLeakNothing,
    DeadAreLost,
    DeathIsTrue,
    NothingHangs,
)
from rallypoint.simulation.ledger_oracles import LedgerKeepsRules, LogsKeepRules
from rallypoint.simulation.linearizability import Call, explained
from rallypoint.simulation.node_oracles import (
    EndsAgree,
    LeftIsNotLost,
    NodesNeverGoBack,
    RanksAreWhole,
)
from rallypoint.simulation.scene import Oracle, Scene, StartedNode, Token

WAKES_WITHIN_S: Final = 1.0
"""How long a call may wait for a key that has been set."""


class TokensGrow(Oracle):
    """R13: (term, number) is the fencing token that workers are given."""

    def round_given(self, here: StartedNode, token: Token, digest: str) -> None:
        """See Oracle."""
        if here.tokens and token <= here.tokens[-1]:
            self.scene.broke("R13", f"{here.name} has {token} after {here.tokens[-1]}")


class RoundsAgree(Oracle):
    """R2: all members of a round agree on its members, ranks, sizes and bootstrap address."""

    def __init__(self, scene: Scene) -> None:
        super().__init__(scene)
        self._digests: dict[tuple[str, int], tuple[str, str]] = {}

    def round_given(self, here: StartedNode, token: Token, digest: str) -> None:
        """See Oracle."""
        known, by = self._digests.setdefault((here.run_id, token[1]), (digest, here.name))
        if known != digest:
            self.scene.broke("R2", f"round {token[1]} differs at {here.name} and {by}")


class StoreIsOne(Oracle):
    """R10, R11: the calls of a round's store have one order, whoever coordinates meanwhile."""

    def __init__(self, scene: Scene) -> None:
        super().__init__(scene)
        self._calls: dict[tuple[str, Token, str], dict[int, Call]] = {}

    def called(self, here: StartedNode, token: Token, call: int, operation: StoreOp) -> None:
        """See Oracle. Its answer is unknown, and stays so if the process is killed."""
        calls = self._calls.setdefault(self._key(here, token, operation), {})
        calls[call] = Call(here.name, self.scene.world.now_s, math.inf, operation, None)

    def answered(self, here: StartedNode, token: Token, call: int, result: StoreResult) -> None:
        """See Oracle. What a failure left undone is unknown."""
        if not isinstance(result, StoreValue):
            return
        for calls in self._calls.values():
            if call in calls:
                asked = calls[call]
                now_s = self.scene.world.now_s
                calls[call] = Call(
                    asked.caller, asked.began_s, now_s, asked.operation, result.value
                )

    def at_end(self) -> None:
        """See Oracle."""
        for (run_id, token, key), by_call in self._calls.items():
            calls = list(by_call.values())
            if explained(calls, None, _step, states_max=200_000) is False:
                told = "; ".join(map(_shown, calls))
                what = f"run {run_id}, round {token}, key {key}: no order explains {told}"
                self.scene.broke("R10/R11", what)

    def _key(self, here: StartedNode, token: Token, operation: Any) -> tuple[str, Token, str]:
        return here.run_id, token, operation.key


class WaitsEnd(Oracle):
    """R10: once all is well, a call that waits for a key is answered when the key is set."""

    def __init__(self, scene: Scene) -> None:
        super().__init__(scene)
        self._asked: dict[int, tuple[StoreOp, float]] = {}
        self._set_s: dict[tuple[str, Token, str], float] = {}
        """Since when a key has certainly been set."""

    def called(self, here: StartedNode, token: Token, call: int, operation: StoreOp) -> None:
        """See Oracle."""
        self._asked[call] = (operation, self.scene.world.now_s)

    def answered(self, here: StartedNode, token: Token, call: int, result: StoreResult) -> None:
        """See Oracle."""
        operation, began_s = self._asked.pop(call)
        now_s, settled_s = self.scene.world.now_s, self.scene.settled_s
        match operation, result:
            case Set(key=key), StoreValue():
                self._set_s.setdefault((here.run_id, token, key), now_s)
            case Get(key=key), StoreFailure(code=code) if code == TIMEOUT:
                set_s = self._set_s.get((here.run_id, token, key), math.inf)
                is_well = settled_s is not None and began_s >= settled_s
                if is_well and now_s - max(began_s, set_s) > WAKES_WITHIN_S:
                    what = f"{here.name} waited for {key} until {now_s:.3f} s, set {set_s:.3f} s"
                    self.scene.broke("R10", what)


def _step(state: bytes | None, operation: Any, result: Any) -> tuple[bool, bytes | None]:
    """One key of a store: (whether the answer can be, the value after it)."""
    match operation:
        case Add(amount=amount):
            total = int(state or b"0") + amount
            return result in (None, total), b"%d" % total
        case Set(value=value):
            return True, value
        case CompareSet(expected=expected, desired=desired):
            matches = state == expected if expected else state is None or state == expected
            after = desired if matches else state
            return result is None or result == (after if after is not None else expected), after
        case Get():
            return result in (None, state), state
    raise AssertionError(operation)


def _shown(call: Call) -> str:
    ended = "?" if call.is_unknown else f"{call.ended_s:.3f}"
    return f"{call.caller} {call.began_s:.3f}-{ended} {call.operation} = {call.result}"


class NothingUnread(Oracle):
    """Any exception of a task that nobody reads fails."""

    def at_end(self) -> None:
        """See Oracle."""
        for trouble in self.scene.world.unread():
            self.scene.broke("unread", trouble)


ORACLES: Final[tuple[type[Oracle], ...]] = (
    TokensGrow,
    RoundsAgree,
    StoreIsOne,
    WaitsEnd,
    NothingUnread,
    CoordinatorsKeepRules,
    DeathIsTrue,
    DeadAreLost,
    NothingHangs,
    CoordinatorsLeakNothing,
    LedgerKeepsRules,
    LogsKeepRules,
    NodesNeverGoBack,
    RanksAreWhole,
    EndsAgree,
    LeftIsNotLost,
)
