"""Situations that plans of many kinds of faults rarely come to: some seeds are about one of them.

A situation changes the plan of its seed: its sizes, its settings, and all of its faults, which are
kept few, so that its worlds are quick. It draws with a chance of its own, so the other seeds stay
as they are.

To add one: write a function of a plan and a Random, and put it into `LATER_SITUATIONS`. Then seeds
with another situation stay as they are. The faults that only situations have are in
`situation_faults`.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from typing import Final

import msgspec

from rallypoint.simulation.plan import ISOLATED, Plan, PlannedFault, chance_of

SHARE: Final = 0.2
"""In which part of all seeds there is a situation."""
ADDED_SHARE: Final = 0.05
"""The same for those in `ADDED`."""
LATER_SHARE: Final = 0.03
"""In which part of the seeds without another one there is one of those in `LATER_SITUATIONS`."""

HOURS_SHARE: Final = 0.005
"""In which part of all seeds a job lives for hours."""


def situated(seed: int, plan: Plan) -> Plan:
    """The plan of this seed: changed, if it is about a situation."""
    hours = random.Random(f"{seed}/hours")
    if hours.random() < HOURS_SHARE:
        return _hours(_plain("hours", plan), hours).sound()
    draw = random.Random(f"{seed}/more situations")
    if draw.random() < ADDED_SHARE and plan.lasting != ISOLATED:
        name = draw.choice(tuple(ADDED))
        return ADDED[name](_plain(name, plan), draw).sound()
    draw = random.Random(f"{seed}/situation")
    if plan.lasting == ISOLATED:
        return plan
    table = SITUATIONS
    if draw.random() >= SHARE:
        draw, table = random.Random(f"{seed}/later situation"), LATER_SITUATIONS
        if draw.random() >= LATER_SHARE:
            return plan
    name = draw.choice(tuple(table))
    return table[name](_plain(name, plan), draw).sound()


def _plain(name: str, plan: Plan) -> Plan:
    """The plan with bare nodes, over etcd, with one run, and without what makes it slow."""
    return msgspec.structs.replace(
        plan,
        situation=name,
        ledger="etcd",
        program="node",
        runs=1,
        faults=(),
        is_mixed=False,
        is_container=False,
        has_proxy=False,
        same_names=False,
        orphan_s=None,
        calls_per_s=1.0,
    )


def _faults(
    draw: random.Random,
    kinds: Sequence[str],
    count: int,
    calm_s: float,
    moments: Sequence[str] = ("",),
    at_s: float = 2.0,
) -> tuple[PlannedFault, ...]:
    faults = []
    for _ in range(count):
        at_s += draw.expovariate(1.0 / calm_s)
        kind, moment = draw.choice(kinds), draw.choice(moments)
        faults.append(PlannedFault(round(at_s, 3), kind, draw.getrandbits(32), moment))
    return tuple(faults)


# -- the situations --------------------------------------------------------------------------------


def _while_writing(plan: Plan, draw: random.Random) -> Plan:
    """The ledger is slow or falters just when a record is written to it; and nodes come and go."""
    troubles = ("slow ledger", "slow ledger", "no answers", "owner cut", "small requests", "full")
    nodes = ("leave", "depart", "kill another", "fail", "finish", "close now", "freeze")
    first = _faults(draw, ("slow ledger", "no answers", "small requests"), 1, 0.1, at_s=0.0)
    writing = ("COMMITTING", "COMMITTING", "SUSPENDED")
    return msgspec.structs.replace(
        plan,
        nodes=draw.choice((2, 3, 4)),
        min_nodes=draw.choice((1, 2)),
        max_nodes=0,
        replicas=0,
        hosts="auto",
        lease_ttl_s=draw.choice((2.0, 2.0, 5.0)),
        last_call_s=1.0,
        stop_s=draw.choice((0.0, 1.0)),
        faults=(
            *first,
            *_sorted(
                _faults(draw, troubles, draw.randrange(2, 5), 4.0, ("", "COMMITTING")),
                _faults(draw, nodes, draw.randrange(3, 8), 2.0, writing),
                _faults(draw, ("fail",), 2, 6.0),
            ),
        ),
    )


def _while_suspended(plan: Plan, draw: random.Random) -> Plan:
    """The coordinator does not reach its ledger, and nodes report, leave, close and come."""
    troubles = ("owner cut", "outage", "no answers", "full", "small requests")
    nodes = ("leave", "depart", "kill another", "fail", "close now", "away", "long freeze", "twin")
    return msgspec.structs.replace(
        plan,
        nodes=draw.choice((3, 4)),
        min_nodes=draw.choice((1, 2)),
        max_nodes=0,
        replicas=0,
        hosts="auto",
        lease_ttl_s=draw.choice((2.0, 5.0)),
        last_call_s=1.0,
        lost_after_s=10.0,
        suspect_after_s=2.0,
        same_names=draw.random() < 0.5,
        faults=_sorted(
            _faults(draw, troubles, draw.randrange(2, 5), 6.0),
            _faults(draw, nodes, draw.randrange(3, 8), 3.0, ("SUSPENDED",)),
        ),
    )


def _crowd(plan: Plan, draw: random.Random) -> Plan:
    """Many nodes, of which many are lost together, often with the host of their coordinator."""
    nodes = draw.randrange(8, 20)
    kinds = ("rack of owner", "rack of owner", "rack of others", "rack of others", "rack", "fail")
    return msgspec.structs.replace(
        plan,
        nodes=nodes,
        min_nodes=nodes // draw.choice((2, 3)),
        max_nodes=0,
        replicas=0,
        hosts="auto",
        lease_ttl_s=2.0,
        last_call_s=draw.choice((1.0, 3.0)),
        lost_after_s=10.0,
        mass_min=draw.choice((1, 1, 2, 3)),
        mass_grace_s=draw.choice((20.0, 120.0)),
        stop_s=1.0,
        calls_per_s=1.5,
        ends=draw.random() < 0.3,
        workers_max=1,
        lasting="",
        knobs=None,
        faults=_faults(draw, kinds, draw.randrange(1, 4), 12.0, at_s=3.0),
    )


def _unlike(plan: Plan, draw: random.Random) -> Plan:
    """Some nodes bring other settings of the run: they are refused, and come again with its own."""
    kinds = ("kill", "kill owner", "leave", "fail", "start_all", "lose")
    return msgspec.structs.replace(
        plan,
        nodes=draw.choice((3, 4, 5)),
        min_nodes=draw.choice((1, 2)),
        max_nodes=0,
        has_unlike=True,
        last_call_s=1.0,
        faults=_faults(draw, kinds, draw.randrange(3, 8), 4.0),
    )


def _again(plan: Plan, draw: random.Random) -> Plan:
    """A run ends, is removed from the ledger, and begins again under its id, more than once."""
    faults: list[PlannedFault] = []
    at_s = 3.0
    for _ in range(draw.choice((2, 3))):
        for kind, after_s in (("fail", -1.0), ("close now", 0.0), ("close now", 1.0)):
            faults.append(PlannedFault(at_s + after_s, kind, draw.getrandbits(32)))
        if draw.random() < 0.5:
            faults.append(PlannedFault(at_s + 4.0, "kill owner", draw.getrandbits(32)))
        if draw.random() < 0.3:
            faults.append(PlannedFault(at_s + draw.uniform(5, 20), "slow ledger", 1))
        at_s += draw.choice((12.0, 25.0, 150.0))
        faults.append(PlannedFault(round(at_s, 3), "start_all", draw.getrandbits(32)))
        at_s += draw.choice((3.0, 8.0))
    # Two runs share the ledger's floor.
    nodes, runs = draw.choice(((2, 1), (3, 1), (4, 2)))
    return msgspec.structs.replace(
        plan,
        nodes=nodes,
        runs=runs,
        min_nodes=1,
        max_nodes=0,
        replicas=draw.choice((1, 2)),
        hosts="no",
        lease_ttl_s=2.0,
        last_call_s=1.0,
        same_names=draw.random() < 0.3,
        closed_run_keep_s=draw.choice((5.0, 20.0)),
        lasting="",
        faults=_sorted(faults),
    )


def _late(plan: Plan, draw: random.Random) -> Plan:
    """Some nodes come late, and some hang when their round has ended. The others wait no longer."""
    nodes = draw.choice((3, 4, 5))
    return msgspec.structs.replace(
        plan,
        nodes=nodes,
        min_nodes=draw.randrange(1, nodes),
        max_nodes=0,
        last_call_s=draw.choice((1.0, 3.0)),
        stop_s=1.0,
        late_s=draw.choice((15.0, 40.0)),
        faults=_faults(draw, ("hang", "hang", "fail", "fail", "kill"), 6, 5.0, at_s=4.0),
    )


def _silent_owner(plan: Plan, draw: random.Random) -> Plan:
    """The coordinator goes on, and a node hears nothing from it; or its host goes silently."""
    kinds = ("away", "away", "away", "lose owner", "freeze owner", "fail")
    return msgspec.structs.replace(
        plan,
        nodes=draw.choice((3, 4)),
        min_nodes=draw.choice((1, 2)),
        max_nodes=0,
        last_call_s=1.0,
        lease_ttl_s=draw.choice((2.0, 5.0)),
        lost_after_s=draw.choice((10.0, 30.0)),
        faults=_faults(draw, kinds, draw.randrange(2, 5), 10.0),
    )


def _long_silence(plan: Plan, draw: random.Random) -> Plan:
    """Nodes are silent for longer than they may be, and go on. Twins of them come meanwhile."""
    kinds = ("long freeze", "long freeze", "long freeze", "twin", "fail", "kill another")
    nodes = draw.choice((3, 4))
    return msgspec.structs.replace(
        plan,
        nodes=nodes,
        min_nodes=draw.choice((1, 2, nodes)),
        max_nodes=0,
        last_call_s=1.0,
        lost_after_s=10.0,
        suspect_after_s=2.0,
        same_names=draw.random() < 0.5,
        lasting="",
        faults=_sorted(
            _faults(draw, kinds, draw.randrange(3, 6), 8.0),
            # A round ends, and enough nodes for the next one are not there for long.
            _faults(
                draw, ("long freeze", "kill another"), draw.choice((0, 2)), 5.0, ("GATHERING",)
            ),
        ),
    )


def _too_few(plan: Plan, draw: random.Random) -> Plan:
    """Some nodes are done, and others go for long: the rest may be too few for ever."""
    nodes = draw.choice((3, 4))
    return msgspec.structs.replace(
        plan,
        nodes=nodes,
        min_nodes=draw.choice((2, nodes - 1, nodes)),
        max_nodes=0,
        last_call_s=1.0,
        lost_after_s=10.0,
        faults=_sorted(
            _faults(draw, ("finish",), draw.choice((1, 2)), 2.0),
            _faults(draw, ("gone", "gone", "kill owner"), draw.choice((1, 2)), 2.0, at_s=4.0),
            _faults(draw, ("fail", "clock"), 2, 10.0, at_s=10.0),
        ),
    )


def _standby(plan: Plan, draw: random.Random) -> Plan:
    """More nodes than the run has places for: the others wait, and step in."""
    nodes = draw.choice((3, 4, 5))
    kinds = ("fail", "kill another", "kill owner", "leave another", "depart", "finish", "hang")
    return msgspec.structs.replace(
        plan,
        nodes=nodes,
        min_nodes=1,
        max_nodes=draw.randrange(1, nodes),
        last_call_s=1.0,
        stop_s=draw.choice((1.0, 5.0)),
        faults=_faults(draw, kinds, draw.randrange(3, 8), 4.0),
    )


def _refused(plan: Plan, draw: random.Random) -> Plan:
    """Something refuses connections to the coordinator, which is alive, again and again."""
    kinds = ("refuse owner", "refuse owner", "refuse one", "refuse one", "fail", "kill owner")
    has_replicas = draw.random() < 0.5
    return msgspec.structs.replace(
        plan,
        nodes=draw.choice((3, 4)),
        min_nodes=draw.choice((1, 2)),
        max_nodes=0,
        last_call_s=1.0,
        lease_ttl_s=draw.choice((5.0, 10.0)),
        replicas=2 if has_replicas else 0,
        hosts="no" if has_replicas else "auto",
        lasting="",
        faults=_faults(draw, kinds, draw.randrange(4, 8), 25.0, at_s=4.0),
    )


def _handed_over(plan: Plan, draw: random.Random) -> Plan:
    """The node that coordinates leaves in order, again and again, also while it is written to."""
    kinds = ("leave owner", "leave owner", "leave another", "depart", "fail", "kill another")
    return msgspec.structs.replace(
        plan,
        nodes=draw.choice((3, 4, 5)),
        min_nodes=draw.choice((1, 2)),
        max_nodes=0,
        last_call_s=1.0,
        max_restarts=draw.choice((None, 1, 2)),
        faults=_sorted(
            _faults(draw, kinds, draw.randrange(3, 8), 3.0, ("", "", "COMMITTING", "RESTORED")),
            _faults(draw, ("slow ledger",), draw.choice((0, 1)), 5.0),
            # The members are told of an end that is not written yet.
            _faults(draw, ("kill owner",), draw.choice((0, 1, 2)), 4.0, ("GATHERING",)),
        ),
    )


def _late_appends(plan: Plan, draw: random.Random) -> Plan:
    """Some requests to the ledger are late, and rounds end one after the other meanwhile.

    What is late is within the time that a client waits for one answer, so its outcome is known.
    """
    has_replicas = draw.random() < 0.5
    nodes = draw.choice((2, 3))
    return msgspec.structs.replace(
        plan,
        nodes=nodes,
        min_nodes=draw.choice((1, nodes)),
        max_nodes=0,
        replicas=2 if has_replicas else 0,
        hosts="no" if has_replicas else "auto",
        lease_ttl_s=draw.choice((5.0, 10.0)),
        last_call_s=1.0,
        stop_s=0.0,
        calls_per_s=8.0,
        lasting="",
        knobs=None,
        workers_max=1,
        faults=_sorted(
            _faults(draw, ("late requests",), 2, 1.0),
            _faults(draw, ("fail",), draw.randrange(6, 12), 1.5, at_s=3.0),
            # The owner is replaced alive, and a round ends as soon as the next one serves.
            _faults(draw, ("refuse owner",), draw.choice((0, 1)), 6.0, at_s=4.0),
            _faults(draw, ("fail",), 2, 0.1, ("RESTORED",), at_s=4.0),
        ),
    )


def _cut_calls(plan: Plan, draw: random.Random) -> Plan:
    """Calls wait for long, and the connections of their nodes break meanwhile."""
    nodes = draw.choice((2, 3))
    kinds = ("offline", "offline", "offline", "cut", "flicker")
    return msgspec.structs.replace(
        plan,
        nodes=nodes,
        min_nodes=nodes,
        max_nodes=0,
        replicas=draw.choice((0, 1)),
        hosts="auto",
        last_call_s=1.0,
        stop_s=0.0,
        lasting="",
        ends=False,
        wild_clocks=False,
        has_long_calls=True,
        faults=_sorted(
            _faults(draw, kinds, draw.randrange(4, 12), 2.0, at_s=4.0),
            _faults(draw, ("fail",), draw.choice((0, 1)), 8.0, at_s=6.0),
        ),
    )


def _offline(plan: Plan, draw: random.Random) -> Plan:
    """A node is offline just when its round is formed, ends, or its workers finish."""
    nodes = draw.choice((3, 4))
    faults: list[PlannedFault] = []
    at_s = 4.0
    for _ in range(draw.randrange(3, 7)):
        faults += _faults(draw, ("fail",), 1, 0.1, at_s=at_s)
        faults += _faults(draw, ("offline",), 1, 0.1, ("COMMITTING", "GATHERING"), at_s=at_s - 0.5)
        faults += _faults(draw, ("fail", "kill another"), 2, 0.1, ("ACTIVE", ""), at_s=at_s)
        at_s += draw.uniform(2.0, 6.0)
    if draw.random() < 0.4:
        faults += _faults(draw, ("finish offline",), 1, 5.0, at_s=4.0)
    return msgspec.structs.replace(
        plan,
        nodes=nodes,
        min_nodes=draw.choice((1, 2)),
        max_nodes=0,
        replicas=draw.choice((0, 1)),
        hosts="auto",
        last_call_s=1.0,
        stop_s=draw.choice((0.0, 1.0)),
        calls_per_s=4.0,
        lasting="",
        leaves=True,
        faults=_sorted(faults),
    )


def _namesakes(plan: Plan, draw: random.Random) -> Plan:
    """Nodes are started again while they live: some of them answer, and some do not."""
    nodes = draw.choice((2, 3))
    kinds = ("twin", "twin of frozen", "twin of frozen", "long freeze", "fail", "cut")
    return msgspec.structs.replace(
        plan,
        program=draw.choice(("node", "agent")),
        nodes=nodes,
        min_nodes=draw.choice((1, nodes)),
        max_nodes=0,
        replicas=draw.choice((0, 1)),
        hosts="auto",
        last_call_s=1.0,
        stop_s=draw.choice((0.0, 1.0)),
        suspect_after_s=5.0,
        lost_after_s=draw.choice((10.0, 30.0)),
        # Heartbeats are answers, too: with more calls, each node would answer.
        calls_per_s=0.3,
        same_names=True,
        lasting="",
        faults=_faults(draw, kinds, draw.randrange(3, 7), 5.0, at_s=4.0),
    )


def _two_owners(plan: Plan, draw: random.Random) -> Plan:
    """An owner is replaced alive, and its nodes go on reading and writing meanwhile."""
    nodes = draw.choice((2, 3))
    plan = msgspec.structs.replace(
        plan,
        nodes=nodes,
        min_nodes=nodes,
        max_nodes=0,
        replicas=0,
        hosts="auto",
        lease_ttl_s=10.0,
        last_call_s=1.0,
        suspect_after_s=5.0,
        lost_after_s=10.0,
        stop_s=0.0,
        calls_per_s=10.0,
        lasting="",
        ends=False,
        knobs=None,
        wild_clocks=False,
        is_store=True,
        faults=_sorted(
            _faults(draw, ("refuse one", "refuse owner"), 1, 2.0, at_s=4.0),
            _faults(draw, ("cut", "flicker"), 1, 2.0, at_s=8.0),
        ),
    )
    if draw.random() < 0.6:
        return plan
    # It has sent what it writes, and has no answer while the next one forms a round.
    return msgspec.structs.replace(
        plan,
        replicas=2,
        hosts="no",
        faults=_sorted(
            _faults(draw, ("no answers",), 1, 1.0, at_s=4.0),
            _faults(draw, ("refuse owner",), 1, 1.0, at_s=4.5),
            _faults(draw, ("fail",), 3, 0.5, ("RESTORED", ""), at_s=4.5),
            _faults(draw, ("fail",), 1, 1.0, at_s=10.0),
        ),
    )


def _hours(plan: Plan, draw: random.Random) -> Plan:
    """Hours pass in which nothing happens: what was written before them is old then.

    The limits that only hours reach have their own values: the ten minutes of a mistake, the hour
    for which a closed run and a lease are kept, and the pauses of who looks at them.
    """
    faults: list[PlannedFault] = []
    at_s = 6.0
    has_closed = draw.random() < 0.4
    for gap in range(draw.choice((1, 1, 1, 2, 3))):
        before = ("refuse owner", "refuse owner", "kill owner", "lose owner", "fail", "leave owner")
        kinds = ["close now"] if has_closed and not gap else [draw.choice(before)]
        lasts_s = 3_600.0 * (1.0 + draw.random() ** 2 * (2.0 if not gap else 0.1))
        # Who stops is found lost, and the next owner owns, before it is quiet; or while it is.
        kinds += ["quiet", "busy"]
        pauses_s = [draw.uniform(5.0, 15.0), draw.choice((1.0, 30.0, 150.0)), lasts_s]
        kinds += ["start_all"] if draw.random() < 0.7 else []
        kinds += draw.choices(("refuse owner", "kill owner", "fail", "kill another"), k=2)
        pauses_s += [draw.uniform(1.0, 40.0) for _ in range(3)]
        for kind, pause_s in zip(kinds, pauses_s, strict=False):
            at_s += pause_s
            faults.append(PlannedFault(round(at_s, 3), kind, draw.getrandbits(32)))
    # Somebody is there who removes a run that was closed: a replica, or the owner of another run.
    nodes, runs = draw.choice(((2, 1), (3, 1), (4, 2))) if has_closed else (draw.choice((2, 3)), 1)
    is_served = draw.random() < 0.4 or (has_closed and runs == 1)
    return msgspec.structs.replace(
        plan,
        nodes=nodes,
        runs=runs,
        min_nodes=1,
        max_nodes=0,
        replicas=1 if is_served else 0,
        hosts=draw.choice(("auto", "no")) if is_served else "auto",
        lease_ttl_s=draw.choice((30.0, 40.0)),
        last_call_s=1.0,
        suspect_after_s=30.0,
        lost_after_s=45.0,
        silence_s=45.0,
        closed_run_keep_s=3_600.0,
        empty_run_keep_s=600.0,
        wild_clocks=False,
        calls_per_s=0.5,
        knobs=None,
        lasting="",
        faults=tuple(faults),
    )


SITUATIONS: Final[dict[str, Callable[[Plan, random.Random], Plan]]] = {
    "while writing": _while_writing,
    "while suspended": _while_suspended,
    "crowd": _crowd,
    "unlike": _unlike,
    "again": _again,
    "late": _late,
    "silent owner": _silent_owner,
    "long silence": _long_silence,
    "standby": _standby,
    "too few": _too_few,
    "refused": _refused,
    "handed over": _handed_over,
}

ADDED: Final[dict[str, Callable[[Plan, random.Random], Plan]]] = {
    "late appends": _late_appends,
    "two owners": _two_owners,
    "cut calls": _cut_calls,
    "offline": _offline,
    "namesakes": _namesakes,
}
"""Those that are drawn with a chance of their own, so that the seeds of the others stay."""


def _reports_away(plan: Plan, draw: random.Random) -> Plan:
    """A node reports something, or asks for something, just when it has no coordinator."""
    nodes = draw.choice((2, 3, 4))
    faults: list[PlannedFault] = []
    at_s = 4.0
    for _ in range(draw.randrange(3, 8)):
        first = draw.choice(("cut", "cut", "flicker", "kill owner", "freeze owner", "isolate"))
        second = draw.choice(("fail", "fail", "depart", "finish", "leave", "close"))
        place = draw.randrange(nodes)
        after_s = draw.choice((0.0005, 0.01, 0.2, 1.0)) * draw.random()
        faults.append(PlannedFault(round(at_s, 4), first, chance_of(draw, place, nodes)))
        faults.append(PlannedFault(round(at_s + after_s, 4), second, chance_of(draw, place, nodes)))
        at_s += draw.choice((4.0, 8.0))
    return msgspec.structs.replace(
        plan,
        nodes=nodes,
        min_nodes=draw.choice((1, max(1, nodes - 1))),
        max_nodes=0,
        replicas=0,
        hosts="auto",
        lease_ttl_s=draw.choice((2.0, 5.0)),
        last_call_s=1.0,
        stop_s=draw.choice((0.0, 1.0)),
        faults=tuple(faults),
    )


def _one_by_one(plan: Plan, draw: random.Random) -> Plan:
    """Workers finish one node after the other, and the rounds of the others end meanwhile."""
    nodes = draw.choice((2, 2, 3))
    kinds = ("fail", "fail", "fail", "kill owner", "cut", "leave another")
    return msgspec.structs.replace(
        plan,
        nodes=nodes,
        min_nodes=1,
        max_nodes=0,
        replicas=draw.choice((0, 1)),
        hosts="auto",
        lease_ttl_s=2.0,
        last_call_s=1.0,
        stop_s=draw.choice((0.0, 1.0)),
        max_restarts=None,
        faults=_sorted(
            _faults(draw, ("finish",), draw.randrange(1, nodes + 1), 4.0, at_s=3.0),
            _faults(draw, kinds, draw.randrange(3, 8), 2.0, at_s=4.0),
        ),
    )


LATER_SITUATIONS: Final[dict[str, Callable[[Plan, random.Random], Plan]]] = {
    "reports away": _reports_away,
    "one by one": _one_by_one,
}


def _sorted(*faults: Sequence[PlannedFault]) -> tuple[PlannedFault, ...]:
    return tuple(sorted((each for some in faults for each in some), key=lambda each: each.at_s))
