"""A name for the state of a part of a world: equal states have equal names.

A name covers all attributes of the shipped objects inside, found by walking through them, so it
does not depend on a `freeze` that leaves something out. Three things are left out on purpose:
caches, serial numbers (only their order counts), and how long ago something was. A time in the
future counts by its distance from now. A time in the past is only "past": two states that differ in
nothing else are taken for one, and the first one found stands for both.
"""

from __future__ import annotations

import enum
import hashlib
import math
from typing import Any, Final

import msgspec

from rallypoint.core.agreement import Agreement
from rallypoint.core.committing import Committing
from rallypoint.core.gathering import Gathering
from rallypoint.core.marking import Marking
from rallypoint.core.membership import Membership
from rallypoint.core.name_conflicts import NameConflicts
from rallypoint.core.pacing import Pace
from rallypoint.core.probing import Probe
from rallypoint.core.progress import RunProgress
from rallypoint.core.roster import Bucket, Member, Roster
from rallypoint.core.suspicion import Suspicion
from rallypoint.core.takeover import Takeover
from rallypoint.core.timers import Timers
from rallypoint.core.values import Reachability

PAST: Final = -1.0

_LEFT_OUT: Final[dict[type, frozenset[str]]] = {
    Membership: frozenset(
        {"run_id", "settings", "_now_s", "_effects", "_timers", "_clock", "_admission", "_since_s"}
        | {"_closed_at_s"}
    ),
    Suspicion: frozenset({"_roster", "_timers", "_clock", "_probe"}),
    Takeover: frozenset({"_roster", "_timers", "_clock", "_suspicion"}),
    NameConflicts: frozenset({"_timers", "_clock", "_suspicion"}),
    Gathering: frozenset({"_roster", "_timers", "_call_ends_s", "_pause_ends_s"}),
    Probe: frozenset({"_timers", "_clock"}),
    Committing: frozenset({"_members"}),
}
_LEFT_OUT_ANYWHERE: Final = frozenset(
    {"_roster", "_timers", "_row", "_ranks", "trouble_since_s", "attached_s", "row_bytes"}
)
_JUDGED: Final = frozenset(
    {
        (Member, "due_s"),
        (Member, "grace_ends_s"),
        (Probe, "_settle_due_s"),
        (Probe, "_due_s"),
        (Takeover, "_due_s"),
        (NameConflicts, "_due_s"),
        (Suspicion, "_mass_since_s"),
    }
)
"""The deadlines on the judging clock, which stands still while the run is SUSPENDED."""


def digest(value: object) -> bytes:
    """A name of a canonical value, 12 bytes; the same in each process."""
    return hashlib.blake2b(msgspec.msgpack.encode(value), digest_size=12).digest()


class Clocks(msgspec.Struct, frozen=True):
    """From when times count, and whether the order in which members arrived counts."""

    now_s: float
    judged_s: float
    has_order: bool


def canonical(value: Any, now_s: float = 0.0, *, has_order: bool = True) -> Any:
    """The value as lists, strings and numbers, without what is left out.

    `has_order`: whether the order in which members arrived counts. It decides who gets a place, so
    it does not count where all have one.
    """
    judged_s = value._clock.at(now_s) if isinstance(value, Membership) else now_s
    return _walk(value, Clocks(now_s, judged_s, has_order), None)


def _walk(value: Any, clocks: Clocks, base_s: float | None) -> Any:
    kind = type(value)
    if value is None or kind in _PLAIN:
        return value
    if kind is float:
        return _time(value, base_s) if base_s is not None else round(value, 6)
    if isinstance(value, enum.Enum):
        return value.value
    if isinstance(value, msgspec.Struct):
        return [kind.__name__, value]
    if isinstance(value, dict):
        return [
            [_walk(key, clocks, None), _walk(each, clocks, base_s)] for key, each in value.items()
        ]
    if isinstance(value, list | tuple):
        return [_walk(each, clocks, base_s) for each in value]
    if isinstance(value, set | frozenset):
        return sorted((_walk(each, clocks, None) for each in value), key=repr)
    special = _SPECIAL.get(kind)
    if special is not None:
        return special(value, clocks)
    return _attributes(value, clocks)


_PLAIN: Final = frozenset({int, bool, str, bytes, bytearray})


def _attributes(value: Any, clocks: Clocks, *, without: frozenset[str] | None = None) -> Any:
    kind = type(value)
    left_out = _LEFT_OUT.get(kind, frozenset()) if without is None else without
    names = kind.__slots__ if hasattr(kind, "__slots__") else value.__dict__
    walked = [kind.__name__]
    for name in names:
        if name in left_out or name in _LEFT_OUT_ANYWHERE:
            continue
        base_s = None
        if name.endswith("_s") or name == "_ends":
            base_s = clocks.judged_s if (kind, name) in _JUDGED else clocks.now_s
        walked.append(_walk(getattr(value, name), clocks, base_s))
    return walked


def _time(time_s: float, base_s: float) -> float:
    if math.isinf(time_s):
        return time_s
    return round(time_s - base_s, 3) if time_s > base_s else PAST


def _roster(roster: Roster, clocks: Clocks) -> Any:
    """The members in their order, the order of their arrivals, and that in each bucket."""
    members = list(roster)
    if not clocks.has_order:
        return [_member(each, clocks) for each in sorted(members, key=lambda each: each.name)]
    order = sorted(range(len(members)), key=lambda at: members[at].arrival)
    buckets = [list(roster.names(bucket)) for bucket in Bucket]
    troubled = list(roster.troubled_names)
    return [[_member(each, clocks) for each in members], order, buckets, troubled]


_OF_A_CONNECTED: Final = frozenset({"arrival", "due_s", "grace_ends_s"})
_ARRIVAL: Final = frozenset({"arrival"})


def _member(member: Member, clocks: Clocks) -> Any:
    is_heard = member.reachability is Reachability.CONNECTED
    without = _OF_A_CONNECTED if is_heard else _ARRIVAL
    if member.bucket is not Bucket.NEWCOMER:
        without = without | {"eligible_s"}
    return _attributes(member, clocks, without=without)


def _marking(marking: Marking, clocks: Clocks) -> Any:
    times = (marking.due_s, marking._timer_at_s, marking._last_write_s)
    waiting = [
        (each.node, each.connection_id, each.serial - marking._written)
        for each in marking._farewells
    ]
    serials = (
        marking._serial - marking._written,
        marking._writing - marking._written,
        max(0, marking._step_serial - marking._written),
    )
    has_record = marking._record is not None
    before = (marking._finished_before, marking._finished_nodes)
    known = (bytes(marking._done), bytes(marking._gone), marking._ended, *before, marking._step)
    due = [None if each is None else _time(each, clocks.now_s) for each in times]
    return [has_record, known, serials, waiting, due]


def _progress(progress: RunProgress, clocks: Clocks) -> Any:
    """How far each worker is does not count, nor how long ago it has said so."""
    left_s = None
    if progress.timeout_s is not None:
        left_s = _time(progress.advanced_s + progress.timeout_s, clocks.judged_s)
    unanswered, told = list(progress.unanswered), sorted(progress.told)
    known = (progress.round, bool(progress.nodes), progress.is_asking, progress.serial)
    return [*known, left_s, unanswered, told]


def _agreement(agreement: Agreement, clocks: Clocks) -> Any:
    draining = [
        [node, _time(ends_s, clocks.now_s), reason]
        for node, (ends_s, reason) in agreement.draining.items()
    ]
    return [draining, *agreement.freeze()]


_SPECIAL: Final[dict[type, Any]] = {
    Roster: _roster,
    Marking: _marking,
    Agreement: _agreement,
    RunProgress: _progress,
    Pace: lambda pace, clocks: pace.freeze(),
    Timers: lambda timers, clocks: None,
}
