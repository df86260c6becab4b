"""Bugs of a node: how it finds a coordinator, attaches, resumes, departs, and is left alone."""

from __future__ import annotations

import math
from typing import Any

import msgspec

from rallypoint.client import actions as act
from rallypoint.core.election import RunOver
from rallypoint.core.reasons import RefusalCode
from rallypoint.wire import messages as wire
from tests.simulation.planted.planting import Bug, Replacement, replaces


@replaces("rallypoint.client.machine:NodeMachine.connected")
def _a_new_secret(original: Any, self: Any, now_s: Any, source: Any = None) -> Any:
    """The node draws its secret anew for each connection, so that it cannot resume."""
    number = int.from_bytes(self._resume_secret, "big") + 1
    self._resume_secret = number.to_bytes(len(self._resume_secret), "big")
    return original(self, now_s, source)


@replaces("rallypoint.client.machine:NodeMachine._miss")
def _misses_no_round(original: Any, self: Any, number: Any) -> None:
    """A round that it was in, and that has ended while it was away, is not noted."""


@replaces("rallypoint.client.machine:NodeMachine.goodbye")
def _leaves_undone(original: Any, self: Any, reason: Any) -> Any:
    actions = original(self, reason)
    self._was_done = False
    return actions


@replaces("rallypoint.client.machine:NodeMachine.received")
def _answers_no_probe(original: Any, self: Any, message: Any, now_s: Any) -> Any:
    actions = original(self, message, now_s)
    return [] if isinstance(message, wire.Probe) else actions


@replaces("rallypoint.client.heartbeats:Heartbeats.attached")
def _beats_once(original: Any, self: Any, heartbeat_s: Any, now_s: Any) -> None:
    """The interval is ten times what the coordinator asks for."""
    original(self, heartbeat_s, now_s)
    self._every_s *= 10


@replaces("rallypoint.client.connector:Connector._has_heard_goodbye")
def _believes_it_was_heard(original: Any, self: Any, connection: Any) -> bool:
    return bool(self._state.has_said_goodbye)


@replaces("rallypoint.client.connector:Connector._follow_redirect")
async def _follows_to_the_end(original: Any, self: Any) -> bool:
    """A redirect is followed as if it had led somewhere."""
    had = bool(self._redirected_to)
    return await original(self) or had


@replaces("rallypoint.client.machine:NodeMachine._on_refused")
def _is_never_refused(original: Any, self: Any, refusal: Any, ledger_id: Any) -> Any:
    """A node whose name another one has by now tries again, for ever."""
    if refusal.code is RefusalCode.SUPERSEDED:
        return [act.Drop(refusal.message)]
    return original(self, refusal, ledger_id)


@replaces("rallypoint.core.election.discovery:Discovery.run_read")
def _goes_on_after_the_end(
    original: Any, self: Any, asked: Any, found: Any, now_s: Any, jitter: Any
) -> Any:
    """A node that finds its run closed in the ledger looks on."""
    actions = original(self, asked, found, now_s, jitter)
    if any(isinstance(each, RunOver) for each in actions):
        self._look_again_s = now_s + 1.0
        return []
    return actions


@replaces("rallypoint.core.election.discovery:Discovery.lease_read")
def _trusts_each_lease(
    original: Any, self: Any, asked: Any, found: Any, now_s: Any, jitter: Any
) -> Any:
    """The owner is alive as long as its lease exists."""
    self._still = type(self._still)()
    return original(self, asked, found, now_s, jitter)


@replaces("rallypoint.client.discovery:Search.again")
def _never_beside(original: Any, self: Any) -> bool:
    """Nobody stands against an owner that nobody reaches."""
    original(self)
    return False


@replaces("rallypoint.client.own_coordinator:OwnCoordinator.retire")
def _keeps_its_coordinator(original: Any, self: Any) -> None:
    """A candidate that was not needed goes on, for nobody."""
    self.take()


@replaces("rallypoint.client.orphan:OrphanTimer.start")
def _no_orphans(original: Any, self: Any, since_s: Any) -> None:
    self._since_s = since_s


@replaces("rallypoint.client.orphan:OrphanTimer.check")
def _any_coordinator_will_do(original: Any, self: Any, led_s: Any, ttl_s: Any) -> None:
    """A coordinator without a lease counts, too."""


@replaces("rallypoint.client.orphan:OrphanTimer.cancel")
def _orphaned_though_found(original: Any, self: Any) -> None:
    """The time goes on after a coordinator was found."""


@replaces("rallypoint.client.connector:Connector._ends_s")
def _gives_up_while_it_works(original: Any, self: Any) -> float:
    """The search ends though the workers run."""
    ends_s = original(self)
    if math.isinf(ends_s) and self._outage.lost_s is not None:
        return float(self._outage.lost_s + 5.0)
    return float(ends_s)


@replaces("rallypoint.client.open_requests:OpenRequests.to_send_again")
def _asks_anew(original: Any, self: Any, now_s: Any) -> Any:
    """A call that is sent again has another id, and counts again."""
    again = []
    for each in original(self, now_s):
        if isinstance(each, wire.StoreCall):
            del self.open[each.request_id]
            self._last_id += 1
            each = msgspec.structs.replace(each, request_id=self._last_id)
            self.open[self._last_id] = each
        again.append(each)
    return again


def _bug(name: str, rule: str, part: Replacement, seed: int | None = None) -> Bug:
    return Bug(name=f"node-{name}", rule=rule, source="none", parts=(part,), seed=seed)


NODES = (
    _bug("draws-a-new-secret", "R7", _a_new_secret, 14),
    _bug("misses-no-round", "R4", _misses_no_round),
    _bug("leaves-undone", "R6", _leaves_undone),
    _bug("answers-no-probe", "R8", _answers_no_probe),
    _bug("beats-slowly", "R8", _beats_once, 0),
    _bug("believes-it-was-heard", "R8", _believes_it_was_heard, 167),
    _bug("follows-to-the-end", "R7", _follows_to_the_end, 9),
    _bug("is-never-superseded", "R13", _is_never_refused),
    _bug("goes-on-after-the-end", "R6", _goes_on_after_the_end, 3),
    _bug("trusts-each-lease", "R7", _trusts_each_lease),
    _bug("never-beside-an-owner", "R7", _never_beside),
    _bug("keeps-its-coordinator", "nothing leaks", _keeps_its_coordinator),
    _bug("has-no-orphans", "R13", _no_orphans, 593),
    _bug("orphaned-by-any-coordinator", "R13", _any_coordinator_will_do, 414),
    _bug("orphaned-though-found", "R13", _orphaned_though_found),
    _bug("gives-up-while-it-works", "R7", _gives_up_while_it_works, 171),
    _bug("asks-anew", "R11", _asks_anew, 7),
)
