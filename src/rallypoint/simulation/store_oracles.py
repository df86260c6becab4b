"""What must hold in the store of each round, as the nodes that call it see it (R10, R11).

The account is one across coordinators: whoever serves the store, its calls have one order.
"""

from __future__ import annotations

import math
import urllib.parse
from typing import Any, Final

import msgspec

from rallypoint.client.node import Node
from rallypoint.core.store import (
    LIMIT,
    READS,
    TIMEOUT,
    Barrier,
    DeleteKey,
    Get,
    MultiGet,
    MultiSet,
    Set,
    StoreFailure,
    StoreOp,
    StoreResult,
    StoreValue,
    Wait,
)
from rallypoint.core.store.operations import keys_of
from rallypoint.core.store.snapshot import Settled
from rallypoint.ledger.keys import log_of
from rallypoint.simulation.ledger_oracles import record_of
from rallypoint.simulation.linearizability import Call, explained
from rallypoint.simulation.scene import Oracle, Scene, StartedNode, Token
from rallypoint.simulation.store_history import (
    NOTHING,
    changes_nothing,
    family,
    is_free,
    shown,
    step,
)
from rallypoint.wire import messages as wire

STATES_MAX: Final = 10_000
"""How long to look for an order of one key's calls."""
UNDECIDED: Final = "the search for an order was too long (STATES_MAX):"
WAKES_WITHIN_S: Final = 1.0
"""How long a call may wait for a key that has been set."""
MEET_WITHIN_S: Final = 0.5
"""How long the last rank that comes to a barrier may wait there."""
LOOKS: Final = 4
"""At how many looks a call may be open although its round is over."""
SLOW_S: Final = 0.005
"""A process whose turns take longer is late with everything."""
CALM_S: Final = 4.0
"""After this time of peace, all nodes have a coordinator, and its answers come at once."""
ANSWERED_WITHIN_S: Final = 2.0
SLOWEST_CLOCK: Final = 1.1
"""So much longer takes a second of the slowest clock."""
HARMLESS_S: Final = 1.0
"""The bound for the answer in a job whose faults are harmless to calls; its clocks are right."""


class StoreIsOne(Oracle):
    """R10, R11: the calls of a round's store have one order, whoever coordinates meanwhile."""

    def __init__(self, scene: Scene) -> None:
        super().__init__(scene)
        self._calls: dict[tuple[str, Token, str], dict[int, Call]] = {}
        self._keys: dict[int, tuple[str, Token, str]] = {}

    def called(
        self, here: StartedNode, token: Token, call: int, operation: StoreOp, limit_s: float | None
    ) -> None:
        """See Oracle. Its answer is unknown, and stays so if the process is killed."""
        if isinstance(operation, Barrier):
            return
        where = self._keys[call] = here.run_id, token, family(operation)
        calls = self._calls.setdefault(where, {})
        calls[call] = Call(here.name, self.scene.world.now_s, math.inf, operation, None)

    def answered(self, here: StartedNode, token: Token, call: int, result: StoreResult) -> None:
        """See Oracle. What a failure left undone is unknown. What a limit refused was not done."""
        where = self._keys.get(call)
        if where is None:
            return
        if isinstance(result, StoreFailure) and result.code == LIMIT:
            del self._calls[where][call]
        if not isinstance(result, StoreValue):
            return
        asked, now_s = self._calls[where][call], self.scene.world.now_s
        done = Call(asked.caller, asked.began_s, now_s, asked.operation, result)
        self._calls[where][call] = done

    def at_end(self) -> None:
        """See Oracle."""
        for (run_id, token, key), by_call in self._calls.items():
            # A read that nobody has an answer of may have any place, so it has none here.
            calls = [each for each in by_call.values() if not is_free(each)]
            found = explained(calls, NOTHING, step, states_max=STATES_MAX, is_read=changes_nothing)
            if found:
                continue
            where = f"run {run_id}, round {token}, key {key}"
            if found is None:  # Many calls at a time, most without an answer: no rule is broken.
                self.scene.say("world", f"{where}: {UNDECIDED} {len(calls)} calls")
                continue
            told = "; ".join(map(shown, calls))
            self.scene.broke("R10/R11", f"{where}: no order explains {told}")


class WaitsEnd(Oracle):
    """R10: once all is well, a call that waits for a key is answered when the key is set."""

    def __init__(self, scene: Scene) -> None:
        super().__init__(scene)
        self._asked: dict[int, tuple[StoreOp, float]] = {}
        self._set_s: dict[tuple[str, Token, str], float] = {}
        """Since when a key has certainly been set."""

    def called(
        self, here: StartedNode, token: Token, call: int, operation: StoreOp, limit_s: float | None
    ) -> None:
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
            case MultiSet(keys=keys), StoreValue():
                for key in keys:
                    self._set_s.setdefault((here.run_id, token, key), now_s)
            case ((Get() | MultiGet() | Wait()), StoreFailure(code=code)) if code == TIMEOUT:
                keys = keys_of(operation)
                set_s = max(self._set_s.get((here.run_id, token, key), math.inf) for key in keys)
                is_well = settled_s is not None and began_s >= settled_s
                if is_well and now_s - max(began_s, set_s) > WAKES_WITHIN_S:
                    what = f"{here.name} waited for {keys} until {now_s:.3f} s, set {set_s:.3f} s"
                    self.scene.broke("R10", what)


class BarriersMeet(Oracle):
    """R10: "a barrier counts for all of its ranks or for none".

    It is passed once every rank of the round waits there, and not before. So at some moment of a
    call that has passed, each rank had a call there that has not failed.
    """

    def __init__(self, scene: Scene) -> None:
        super().__init__(scene)
        self._calls: dict[tuple[str, Token, str], dict[int, list[_AtBarrier]]] = {}
        """The calls at each barrier of a round, by their ranks."""
        self._open: dict[int, tuple[tuple[str, Token, str], _AtBarrier]] = {}
        self._sizes: dict[tuple[str, Token], int] = {}

    def called(
        self, here: StartedNode, token: Token, call: int, operation: StoreOp, limit_s: float | None
    ) -> None:
        """See Oracle."""
        if isinstance(operation, Barrier):
            where = here.run_id, token, operation.name
            at = _AtBarrier(here.name, self.scene.world.now_s)
            self._open[call] = where, at
            self._calls.setdefault(where, {}).setdefault(operation.rank, []).append(at)

    def answered(self, here: StartedNode, token: Token, call: int, result: StoreResult) -> None:
        """See Oracle. A call that its node has given up may still wait there."""
        where, at = self._open.pop(call, (None, None))
        given = here.node.round if here.node is not None else None
        if where is None or at is None:
            return
        if given is not None and (given.head.term, given.head.number) == token:
            self._sizes[here.run_id, token] = given.head.size
        if isinstance(result, StoreValue):
            at.ended_s, at.has_passed = self.scene.world.now_s, True
        elif result.missing_count:
            # The coordinator has answered: it has not met the others, and never will.
            at.ended_s, at.has_failed = self.scene.world.now_s, True

    def withdrawn(self, here: StartedNode, call: int) -> None:
        """See Oracle."""
        self._open.pop(call, None)

    def looked(self) -> None:
        """See Oracle: once all is well, ranks that all wait there have passed at once."""
        settled_s, now_s = self.scene.settled_s, self.scene.world.now_s
        if settled_s is None:
            return
        waiting: dict[tuple[str, Token, str], list[float]] = {}
        for where, at in self._open.values():
            waiting.setdefault(where, []).append(at.began_s)
        for (run_id, token, name), began in waiting.items():
            size = self._sizes.get((run_id, token))
            is_well = max(began) >= settled_s and now_s - max(began) > MEET_WITHIN_S
            if len(began) == size and is_well:
                what = f"all ranks of round {token} of {run_id} wait at {name}"
                self.scene.broke("R10", f"{what}, the last since {max(began):.3f} s")

    def at_end(self) -> None:
        """See Oracle."""
        for (run_id, token, name), by_rank in self._calls.items():
            size = self._sizes.get((run_id, token))
            if size is None:
                continue
            may_meet = [
                [each for each in calls if not each.has_failed] for calls in by_rank.values()
            ]
            for each in (each for calls in may_meet for each in calls if each.has_passed):
                if len(may_meet) < size or not _have_met(each, may_meet):
                    what = f"{each.caller} has passed {name} of round {token} of {run_id} between "
                    when = f"{each.began_s:.3f} and {each.ended_s:.3f} s, without some rank"
                    self.scene.broke("R10", what + when)


class _AtBarrier(msgspec.Struct):
    """A call at a barrier."""

    caller: str
    began_s: float
    ended_s: float = math.inf
    """When its coordinator has answered it, as its node knows."""
    has_passed: bool = False
    has_failed: bool = False


def _have_met(passed: _AtBarrier, by_rank: list[list[_AtBarrier]]) -> bool:
    """Whether there was a moment of this call at which each rank had one."""
    began = {each.began_s for calls in by_rank for each in calls}
    moments = [at_s for at_s in began if passed.began_s <= at_s <= passed.ended_s]
    return any(
        all(any(each.began_s <= at_s <= each.ended_s for each in calls) for calls in by_rank)
        for at_s in moments
    )


class AcknowledgedIsLogged(Oracle):
    """R10: on a durable ledger a write is acknowledged once its batch is in the log."""

    def __init__(self, scene: Scene) -> None:
        super().__init__(scene)
        self._logged: set[tuple[str, int, str, int]] = set()
        """By run, number of the round, node and request."""
        self._unfinished: dict[tuple[str, int], tuple[Settled, ...]] = {}
        """By run and round: entries that count once the next record is there."""

    def logged(self, log: str, index: int, value: bytes | None) -> None:
        """See Oracle."""
        named = log_of(log)
        if value is None or named is None:
            return
        record = record_of(value)
        run_id, number = urllib.parse.unquote(log.split("/")[1]), named[0]
        entries = () if record.is_seal else self._unfinished.pop((run_id, number), ())
        entries += record.entries
        if record.unfinished:
            self._unfinished[run_id, number] = entries[-record.unfinished :]
            entries = entries[: -record.unfinished]
        self._logged.update((run_id, number, each.node, each.request_id) for each in entries)

    def joins(self, here: StartedNode, node: Node) -> None:
        """See Oracle."""
        machine: Any = node._machine
        received = machine.received

        def receives(message: Any, now_s: float) -> Any:
            if type(message) is wire.StoreAnswer and type(message.result) is StoreValue:
                self._must_be_logged(here, node, machine.requests.open.get(message.request_id))
            return received(message, now_s)

        machine.received = receives

    def _must_be_logged(self, here: StartedNode, node: Node, asked: Any) -> None:
        if not isinstance(asked, wire.StoreCall) or type(asked.op) in READS:
            return
        name = node.info.name
        if (here.run_id, asked.stamp.round, name, asked.request_id) not in self._logged:
            what = f"{here.name} has an answer to {asked.op} of round {asked.stamp.round}"
            self.scene.broke("R10", f"{what}, which is not in the log")


class CallsEnd(Oracle):
    """A call ends with its round (R4), and, once all is well, within its time.

    A worker that waits for a call must not outlive its round: its node waits for it. A call of a
    node that has lost its coordinator ends soon after the node has one again.
    """

    def __init__(self, scene: Scene) -> None:
        super().__init__(scene)
        self._open: dict[int, tuple[StartedNode, Token, StoreOp, float]] = {}
        """By call: who made it, in which round, and when its time is over."""
        self._ended: dict[str, int] = {}
        """By node: at how many looks its round was over, one after the other."""
        self._attached_s: dict[str, float] = {}
        """By node: since when it has been attached."""

    def called(
        self,
        here: StartedNode,
        token: Token,
        call: int,
        operation: StoreOp,
        limit_s: float | None,
    ) -> None:
        """See Oracle."""
        slowest = 1.0 if self.scene.plan.has_long_calls else SLOWEST_CLOCK
        due_s = math.inf if limit_s is None else self.scene.world.now_s + slowest * limit_s
        self._open[call] = here, token, operation, due_s

    def answered(self, here: StartedNode, token: Token, call: int, result: StoreResult) -> None:
        """See Oracle."""
        self._open.pop(call, None)

    def withdrawn(self, here: StartedNode, call: int) -> None:
        """See Oracle."""
        self._open.pop(call, None)

    def looked(self) -> None:
        """See Oracle."""
        scene, now_s = self.scene, self.scene.world.now_s
        bound_s = HARMLESS_S if scene.plan.has_long_calls else ANSWERED_WITHIN_S
        ended = {here.name: here for here, *_ in self._open.values() if _is_without_round(here)}
        self._ended = {name: self._ended.get(name, 0) + 1 for name in ended}
        for call, (here, token, operation, due_s) in list(self._open.items()):
            if not here.is_living:
                del self._open[call]
                continue
            what = f"{here.name} waits for {operation} of round {token}"
            if self._ended.get(here.name, 0) > LOOKS:
                scene.broke("R4", f"{what}, which is over")
            if here.node is None or not here.node.is_connected:
                self._attached_s.pop(here.name, None)
            calm_s, attached_s = self._calm_s(), self._attached_s.setdefault(here.name, now_s)
            late_s = now_s - max(due_s, attached_s)
            if calm_s < due_s and late_s > bound_s and here.is_working:
                scene.broke("R10", f"{what}, and its time was over at {due_s:.1f} s")

    def _calm_s(self) -> float:
        """Since when no fault has any effect on calls; infinite while there are faults."""
        scene = self.scene
        if scene.plan.has_long_calls:
            return 0.0  # Its faults are no excuse.
        is_calm = scene.settled_s is not None and not scene.is_chaotic
        return scene.peace_s + CALM_S if is_calm else math.inf


def _is_without_round(here: StartedNode) -> bool:
    """Whether this node knows that its round is over, and can tell its workers."""
    node, process = here.node, here.process
    if node is None or not here.is_living or process.is_frozen or process.turn_cost_s > SLOW_S:
        return False
    return node.change is not None
