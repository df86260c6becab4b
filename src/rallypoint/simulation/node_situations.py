"""Situations about nodes: many, late, silent, unlike, finished: see `situations`.

Each changes the plan of a seed, and draws with a chance of its own.
"""

from __future__ import annotations

import random

import msgspec

from rallypoint.simulation.plan import Plan, PlannedFault, chance_of, merged, some_faults


def crowd(plan: Plan, draw: random.Random) -> Plan:
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
        faults=some_faults(draw, kinds, draw.randrange(1, 4), 12.0, at_s=3.0),
    )


def unlike(plan: Plan, draw: random.Random) -> Plan:
    """Some nodes bring other settings of the run: they are refused, and come again with its own."""
    kinds = ("kill", "kill owner", "leave", "fail", "start_all", "lose")
    return msgspec.structs.replace(
        plan,
        nodes=draw.choice((3, 4, 5)),
        min_nodes=draw.choice((1, 2)),
        max_nodes=0,
        has_unlike=True,
        last_call_s=1.0,
        faults=some_faults(draw, kinds, draw.randrange(3, 8), 4.0),
    )


WITNESSED: tuple[str, ...] = (
    "power off",
    "power off",
    "stop",
    "blip",
    "blip",
    "mute",
    "alone",
    "unplugged",
    "wall",
    "stalled owner",
    "starve",
)


def witnesses(plan: Plan, draw: random.Random) -> Plan:
    """Nodes fall silent for many reasons, and others are asked whether their hosts answer."""
    nodes = draw.choice((4, 5, 6, 8))
    has_serve = draw.random() < 0.6
    kinds = draw.sample(WITNESSED, draw.choice((1, 2, 4)))
    return msgspec.structs.replace(
        plan,
        nodes=nodes,
        min_nodes=draw.choice((1, 2, nodes - 1)),
        max_nodes=0,
        has_witnesses=True,
        replicas=int(has_serve),
        hosts="no" if has_serve and draw.random() < 0.7 else "auto",
        lease_ttl_s=draw.choice((5.0, 10.0)),
        last_call_s=1.0,
        suspect_after_s=draw.choice((2.0, 5.0)),
        lost_after_s=30.0,
        mass_min=draw.choice((2, 8)),
        silence_s=draw.choice((None, 30.0)),
        stop_s=1.0,
        workers_max=1,
        lasting="",
        knobs=None,
        ends=False,
        wild_clocks=False,
        has_older=draw.random() < 0.2,
        faults=some_faults(draw, kinds, draw.randrange(2, 9), draw.choice((6.0, 15.0)), at_s=8.0),
    )


def late(plan: Plan, draw: random.Random) -> Plan:
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
        faults=some_faults(draw, ("hang", "hang", "fail", "fail", "kill"), 6, 5.0, at_s=4.0),
    )


def long_silence(plan: Plan, draw: random.Random) -> Plan:
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
        faults=merged(
            some_faults(draw, kinds, draw.randrange(3, 6), 8.0),
            # A round ends, and enough nodes for the next one are not there for long.
            some_faults(
                draw, ("long freeze", "kill another"), draw.choice((0, 2)), 5.0, ("GATHERING",)
            ),
        ),
    )


def standby(plan: Plan, draw: random.Random) -> Plan:
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
        faults=some_faults(draw, kinds, draw.randrange(3, 8), 4.0),
    )


def departures(plan: Plan, draw: random.Random) -> Plan:
    """Nodes drain while their workers train in steps, and coordinators come and go meanwhile."""
    nodes = draw.choice((2, 3, 4, 5))
    drains = ("preempt", "preempt", "drain")
    troubles = ("kill owner", "kill owner", "freeze owner", "leave owner", "kill another")
    more = ("slow ledger", "no answers", "outage", "cut", "freeze", "suspend", "fail", "late")
    moments = ("", "", "", "SUSPENDED", "RESTORED", "ACTIVE")
    return msgspec.structs.replace(
        plan,
        nodes=nodes,
        min_nodes=draw.choice((1, 1, 2)),
        max_nodes=0,
        replicas=draw.choice((0, 1, 2)),
        hosts="auto",
        has_older=draw.random() < 0.1,
        same_names=draw.random() < 0.3,
        lease_ttl_s=2.0,
        last_call_s=1.0,
        lost_after_s=10.0,
        suspect_after_s=2.0,
        stop_s=draw.choice((0.0, 1.0)),
        workers_max=draw.choice((1, 2, 3)),
        lasting="",
        knobs=None,
        has_steps=True,
        faults=merged(
            some_faults(draw, drains, draw.randrange(2, 7), 5.0, moments, at_s=5.0),
            some_faults(draw, troubles, draw.randrange(0, 4), 6.0, moments, at_s=5.0),
            some_faults(draw, more, draw.randrange(0, 4), 6.0, moments, at_s=5.0),
        ),
    )


def operators(plan: Plan, draw: random.Random) -> Plan:
    """Operators drain and evict nodes, and scale the run, while other things happen."""
    nodes, is_agents = draw.choice((4, 5)), draw.random() < 0.4
    orders = ("drain", "drain", "evict", "scale", "scale", "scale")
    more = () if is_agents else ("fail", "leave owner", "finish")
    troubles = ("kill owner", "kill another", "slow ledger", *more)
    moments = ("", "", "", "COMMITTING", "SUSPENDED", "GATHERING", "RESTORED")
    return msgspec.structs.replace(
        plan,
        nodes=nodes,
        min_nodes=draw.choice((1, 1, 2)),
        max_nodes=draw.choice((0, 0, 2, 3)),
        program="agent" if is_agents else "node",
        replicas=draw.choice((0, 1, 2)),
        hosts="auto",
        has_older=draw.random() < 0.2,
        same_names=draw.random() < 0.3,
        lease_ttl_s=2.0,
        last_call_s=1.0,
        lost_after_s=10.0,
        suspect_after_s=2.0,
        stop_s=draw.choice((0.0, 1.0, 5.0)),
        lasting="",
        knobs=None,
        faults=merged(
            some_faults(draw, orders, draw.randrange(2, 6), 4.0, moments),
            some_faults(draw, troubles, draw.randrange(0, 5), 5.0, moments),
        ),
    )


def too_few(plan: Plan, draw: random.Random) -> Plan:
    """Some nodes are done, and others go for long: the rest may be too few for ever."""
    nodes = draw.choice((3, 4))
    return msgspec.structs.replace(
        plan,
        nodes=nodes,
        min_nodes=draw.choice((2, nodes - 1, nodes)),
        max_nodes=0,
        last_call_s=1.0,
        lost_after_s=10.0,
        faults=merged(
            some_faults(draw, ("finish",), draw.choice((1, 2)), 2.0),
            some_faults(draw, ("gone", "gone", "kill owner"), draw.choice((1, 2)), 2.0, at_s=4.0),
            some_faults(draw, ("fail", "clock"), 2, 10.0, at_s=10.0),
        ),
    )


def cut_calls(plan: Plan, draw: random.Random) -> Plan:
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
        faults=merged(
            some_faults(draw, kinds, draw.randrange(4, 12), 2.0, at_s=4.0),
            some_faults(draw, ("fail",), draw.choice((0, 1)), 8.0, at_s=6.0),
        ),
    )


def offline(plan: Plan, draw: random.Random) -> Plan:
    """A node is offline just when its round is formed, ends, or its workers finish."""
    nodes = draw.choice((3, 4))
    faults: list[PlannedFault] = []
    at_s = 4.0
    for _ in range(draw.randrange(3, 7)):
        faults += some_faults(draw, ("fail",), 1, 0.1, at_s=at_s)
        faults += some_faults(
            draw, ("offline",), 1, 0.1, ("COMMITTING", "GATHERING"), at_s=at_s - 0.5
        )
        faults += some_faults(draw, ("fail", "kill another"), 2, 0.1, ("ACTIVE", ""), at_s=at_s)
        at_s += draw.uniform(2.0, 6.0)
    if draw.random() < 0.4:
        faults += some_faults(draw, ("finish offline",), 1, 5.0, at_s=4.0)
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
        faults=merged(faults),
    )


def namesakes(plan: Plan, draw: random.Random) -> Plan:
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
        faults=some_faults(draw, kinds, draw.randrange(3, 7), 5.0, at_s=4.0),
    )


def reports_away(plan: Plan, draw: random.Random) -> Plan:
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


def one_by_one(plan: Plan, draw: random.Random) -> Plan:
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
        faults=merged(
            some_faults(draw, ("finish",), draw.randrange(1, nodes + 1), 4.0, at_s=3.0),
            some_faults(draw, kinds, draw.randrange(3, 8), 2.0, at_s=4.0),
        ),
    )
