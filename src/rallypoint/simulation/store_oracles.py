"""What must hold in the store of each round, as the nodes that call it see it (R10, R11).

The account is one across coordinators: whoever serves the store, its calls have one order.
"""

from __future__ import annotations

import math
from typing import Any, Final

from rallypoint.core.store import (
    TIMEOUT,
    Add,
    Append,
    Barrier,
    CompareSet,
    DeleteKey,
    Get,
    Set,
    StoreFailure,
    StoreOp,
    StoreResult,
    StoreValue,
)
from rallypoint.simulation.linearizability import Call, explained
from rallypoint.simulation.scene import Oracle, Scene, StartedNode, Token

WAKES_WITHIN_S: Final = 1.0
"""How long a call may wait for a key that has been set."""


class StoreIsOne(Oracle):
    """R10, R11: the calls of a round's store have one order, whoever coordinates meanwhile."""

    def __init__(self, scene: Scene) -> None:
        super().__init__(scene)
        self._calls: dict[tuple[str, Token, str], dict[int, Call]] = {}
        self._keys: dict[int, tuple[str, Token, str]] = {}

    def called(self, here: StartedNode, token: Token, call: int, operation: StoreOp) -> None:
        """See Oracle. Its answer is unknown, and stays so if the process is killed."""
        if isinstance(operation, Barrier):
            return
        where = self._keys[call] = here.run_id, token, getattr(operation, "key", "")
        calls = self._calls.setdefault(where, {})
        calls[call] = Call(here.name, self.scene.world.now_s, math.inf, operation, None)

    def answered(self, here: StartedNode, token: Token, call: int, result: StoreResult) -> None:
        """See Oracle. What a failure left undone is unknown."""
        where = self._keys.get(call)
        if where is None or not isinstance(result, StoreValue):
            return
        asked, now_s = self._calls[where][call], self.scene.world.now_s
        done = Call(asked.caller, asked.began_s, now_s, asked.operation, result)
        self._calls[where][call] = done

    def at_end(self) -> None:
        """See Oracle."""
        for (run_id, token, key), by_call in self._calls.items():
            calls = list(by_call.values())
            if explained(calls, None, _step, states_max=200_000) is False:
                told = "; ".join(map(_shown, calls))
                what = f"run {run_id}, round {token}, key {key}: no order explains {told}"
                self.scene.broke("R10/R11", what)


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
        if isinstance(operation, DeleteKey):
            self._set_s[here.run_id, token, operation.key] = math.inf

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


def _step(
    state: bytes | None, operation: Any, result: StoreValue | None
) -> tuple[bool, bytes | None]:
    """One key of a store: (whether the answer can be, the value after it)."""
    match operation:
        case Add(amount=amount):
            total = int(state or b"0") + amount
            return result in (None, StoreValue(total)), b"%d" % total
        case Set(value=value):
            return result in (None, StoreValue(None)), value
        case Append(value=value):
            return result in (None, StoreValue(None)), (state or b"") + value
        case DeleteKey():
            return result in (None, StoreValue(state is not None)), None
        case CompareSet(expected=expected, desired=desired):
            matches = state == expected if expected else state is None or state == expected
            after = desired if matches else state
            return result in (None, StoreValue(after if after is not None else expected)), after
        case Get():
            # It waits for the key.
            return result is None or (state is not None and result == StoreValue(state)), state
    raise AssertionError(operation)


def _shown(call: Call) -> str:
    ended = "?" if call.is_unknown else f"{call.ended_s:.3f}"
    return f"{call.caller} {call.began_s:.3f}-{ended} {call.operation} = {call.result}"


class BarriersMeet(Oracle):
    """A barrier is passed once every rank of the round waits there, and not before."""

    def __init__(self, scene: Scene) -> None:
        super().__init__(scene)
        self._waiting: dict[tuple[str, Token, str], dict[int, float]] = {}
        """When each rank came to a barrier, or came last."""
        self._at: dict[int, tuple[tuple[str, Token, str], float]] = {}

    def called(self, here: StartedNode, token: Token, call: int, operation: StoreOp) -> None:
        """See Oracle."""
        if isinstance(operation, Barrier):
            where, now_s = (here.run_id, token, operation.name), self.scene.world.now_s
            self._at[call] = where, now_s
            self._waiting.setdefault(where, {})[operation.rank] = now_s

    def answered(self, here: StartedNode, token: Token, call: int, result: StoreResult) -> None:
        """See Oracle."""
        place = self._at.pop(call, None)
        given = here.node.round if here.node is not None else None
        if place is None or given is None or not isinstance(result, StoreValue):
            return
        came = self._waiting[place[0]]
        if (given.head.term, given.head.number) == token and len(came) < given.head.size:
            what = (
                f"{here.name} has passed {place[0][2]} of round {token} with ranks {sorted(came)}"
            )
            self.scene.broke("R10", what)
