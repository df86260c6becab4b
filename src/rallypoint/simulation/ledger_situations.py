"""Situations about owners and the ledger: see `situations`.

Each changes the plan of a seed, and draws with a chance of its own.
"""

from __future__ import annotations

import random

import msgspec

from rallypoint.simulation.plan import Plan, PlannedFault, merged, some_faults


def while_writing(plan: Plan, draw: random.Random) -> Plan:
    """The ledger is slow or falters just when a record is written to it; and nodes come and go."""
    troubles = ("slow ledger", "slow ledger", "no answers", "owner cut", "small requests", "full")
    nodes = ("leave", "depart", "kill another", "fail", "finish", "close now", "freeze")
    first = some_faults(draw, ("slow ledger", "no answers", "small requests"), 1, 0.1, at_s=0.0)
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
            *merged(
                some_faults(draw, troubles, draw.randrange(2, 5), 4.0, ("", "COMMITTING")),
                some_faults(draw, nodes, draw.randrange(3, 8), 2.0, writing),
                some_faults(draw, ("fail",), 2, 6.0),
            ),
        ),
    )


def while_suspended(plan: Plan, draw: random.Random) -> Plan:
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
        faults=merged(
            some_faults(draw, troubles, draw.randrange(2, 5), 6.0),
            some_faults(draw, nodes, draw.randrange(3, 8), 3.0, ("SUSPENDED",)),
        ),
    )


def late_appends(plan: Plan, draw: random.Random) -> Plan:
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
        faults=merged(
            some_faults(draw, ("late requests",), 2, 1.0),
            some_faults(draw, ("fail",), draw.randrange(6, 12), 1.5, at_s=3.0),
            # The owner is replaced alive, and a round ends as soon as the next one serves.
            some_faults(draw, ("refuse owner",), draw.choice((0, 1)), 6.0, at_s=4.0),
            some_faults(draw, ("fail",), 2, 0.1, ("RESTORED",), at_s=4.0),
        ),
    )


def again(plan: Plan, draw: random.Random) -> Plan:
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
        faults=merged(faults),
    )


def silent_owner(plan: Plan, draw: random.Random) -> Plan:
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
        faults=some_faults(draw, kinds, draw.randrange(2, 5), 10.0),
    )


def refused(plan: Plan, draw: random.Random) -> Plan:
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
        faults=some_faults(draw, kinds, draw.randrange(4, 8), 25.0, at_s=4.0),
    )


def handed_over(plan: Plan, draw: random.Random) -> Plan:
    """The node that coordinates leaves in order, again and again, also while it is written to."""
    kinds = ("leave owner", "leave owner", "leave another", "depart", "fail", "kill another")
    return msgspec.structs.replace(
        plan,
        nodes=draw.choice((3, 4, 5)),
        min_nodes=draw.choice((1, 2)),
        max_nodes=0,
        last_call_s=1.0,
        max_restarts=draw.choice((None, 1, 2)),
        faults=merged(
            some_faults(draw, kinds, draw.randrange(3, 8), 3.0, ("", "", "COMMITTING", "RESTORED")),
            some_faults(draw, ("slow ledger",), draw.choice((0, 1)), 5.0),
            # The members are told of an end that is not written yet.
            some_faults(draw, ("kill owner",), draw.choice((0, 1, 2)), 4.0, ("GATHERING",)),
        ),
    )


def two_owners(plan: Plan, draw: random.Random) -> Plan:
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
        faults=merged(
            some_faults(draw, ("refuse one", "refuse owner"), 1, 2.0, at_s=4.0),
            some_faults(draw, ("cut", "flicker"), 1, 2.0, at_s=8.0),
        ),
    )
    if draw.random() < 0.6:
        return plan
    # It has sent what it writes, and has no answer while the next one forms a round.
    return msgspec.structs.replace(
        plan,
        replicas=2,
        hosts="no",
        faults=merged(
            some_faults(draw, ("no answers",), 1, 1.0, at_s=4.0),
            some_faults(draw, ("refuse owner",), 1, 1.0, at_s=4.5),
            some_faults(draw, ("fail",), 3, 0.5, ("RESTORED", ""), at_s=4.5),
            some_faults(draw, ("fail",), 1, 1.0, at_s=10.0),
        ),
    )


def hours(plan: Plan, draw: random.Random) -> Plan:
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


def full_queues(plan: Plan, draw: random.Random) -> Plan:
    """A slow ledger, many writes, and little room for those that wait for it."""
    times_s = [4.0 + 6.0 * each + draw.uniform(0.0, 3.0) for each in range(3)]
    slow = [PlannedFault(round(at_s, 3), "slow ledger", draw.getrandbits(32)) for at_s in times_s]
    return msgspec.structs.replace(
        plan,
        nodes=4,
        min_nodes=4,
        max_nodes=0,
        replicas=0,
        hosts="auto",
        last_call_s=1.0,
        is_store=True,
        calls_per_s=20.0,
        unlogged_bytes_max=draw.choice((200, 400)),
        knobs=None,
        lasting="",
        faults=merged(slow, some_faults(draw, ("fail", "cut"), draw.choice((0, 1)), 10.0)),
    )
