"""Situations that plans of many kinds of faults rarely come to: some seeds are about one of them.

A situation changes the plan of its seed: its sizes, its settings, and all of its faults, which are
kept few, so that its worlds are quick. It draws with a chance of its own, so the other seeds stay
as they are.

To add one: write a function of a plan and a Random, and put it into `SITUATIONS`. A fault that only
situations have is in `SITUATION_FAULTS`. They meet the coordinator that owns the run, wherever it
is, or a node that does not.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from typing import Final

import msgspec

from rallypoint.simulation.etcd import Trouble
from rallypoint.simulation.ledgers import EtcdInWorld
from rallypoint.simulation.operations import OPERATIONS
from rallypoint.simulation.plan import ISOLATED, Plan, PlannedFault
from rallypoint.simulation.scene import Scene, StartedNode, Undo
from rallypoint.simulation.world import Process

SHARE: Final = 0.2
"""In which part of all seeds there is a situation."""


def situated(seed: int, plan: Plan) -> Plan:
    """The plan of this seed: changed, if it is about a situation."""
    draw = random.Random(f"{seed}/situation")
    if draw.random() >= SHARE or plan.lasting == ISOLATED:
        return plan
    name = draw.choice(tuple(SITUATIONS))
    return SITUATIONS[name](_plain(name, plan), draw).sound()


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
        ),
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
    "refused": _refused,
    "handed over": _handed_over,
}


def _sorted(*faults: Sequence[PlannedFault]) -> tuple[PlannedFault, ...]:
    return tuple(sorted((each for some in faults for each in some), key=lambda each: each.at_s))


# -- the faults ------------------------------------------------------------------------------------

Fault = Callable[[Scene, StartedNode, random.Random], Undo | None]


def _owner(scene: Scene, victim: StartedNode) -> StartedNode:
    """The process that coordinates a run; if there is none, this one."""
    for front in scene.fronts:
        runs = front.driver.coordinator.runs.values()
        if not front.has_ended and any(run.is_claimed and run.attached_count for run in runs):
            for each in scene.living:
                if each.process is front.process:
                    return each
    return victim


def _another(scene: Scene, victim: StartedNode, draw: random.Random) -> StartedNode:
    """A node that does not coordinate the run."""
    owner = _owner(scene, victim)
    others = [each for each in scene.living if each is not owner and each.run_id]
    return draw.choice(others) if others else victim


def _start_again(scene: Scene, victim: StartedNode, draw: random.Random) -> None:
    scene.start_later(victim.index, draw.expovariate(1.0 / draw.choice((0.2, 3.0, 20.0))))


def _kill_owner(scene: Scene, victim: StartedNode, draw: random.Random) -> None:
    """The coordinator's process is killed."""
    owner = _owner(scene, victim)
    owner.process.kill()
    _start_again(scene, owner, draw)


def _kill_another(scene: Scene, victim: StartedNode, draw: random.Random) -> None:
    """The process of a node that is not the coordinator's is killed."""
    other = _another(scene, victim, draw)
    other.process.kill()
    _start_again(scene, other, draw)


def _lose_owner(scene: Scene, victim: StartedNode, draw: random.Random) -> None:
    """The coordinator's host loses power, and comes back late."""
    for each in scene.lose_power(_owner(scene, victim)):
        scene.start_later(each.index, draw.choice((1.0, 30.0, 60.0)))


def _rack_of_owner(scene: Scene, victim: StartedNode, draw: random.Random) -> Undo:
    """The coordinator's host and some others go at the same moment, and come back late."""
    owner = _owner(scene, victim)
    others = [each for each in scene.living if each is not owner]
    count = round(draw.choice((0.1, 0.2, 0.4, 0.6)) * len(others))
    gone = [owner, *draw.sample(others, count)]
    thaws: list[Process] = []
    for each in gone:
        match draw.choice(("lose", "lose", "kill", "freeze")):
            case "lose":
                scene.lose_power(each)
            case "kill":
                each.process.kill()
            case _:
                each.process.freeze()
                thaws.append(each.process)
        if not each.process.is_alive:
            scene.start_later(each.index, draw.choice((1.0, 30.0, 60.0)))

    def undo() -> None:
        for process in thaws:
            process.thaw()

    return undo


def _rack_of_others(scene: Scene, victim: StartedNode, draw: random.Random) -> Undo:
    """Many are silent together. Some of them are back at the same time, and the others are gone."""
    owner = _owner(scene, victim)
    others = [each for each in scene.living if each is not owner]
    silent = draw.sample(others, round(draw.choice((0.2, 0.4, 0.6)) * len(others)))
    thaws: list[Process] = []
    for each in silent:
        if draw.random() < 0.3:
            scene.lose_power(each)
            scene.start_later(each.index, draw.choice((30.0, 60.0)))
        else:
            each.process.freeze()
            thaws.append(each.process)

    def undo() -> None:
        for process in thaws:
            process.thaw()

    return undo


def _freeze_owner(scene: Scene, victim: StartedNode, draw: random.Random) -> Undo:
    """The coordinator's process has no turns."""
    owner = _owner(scene, victim)
    owner.process.freeze()
    return owner.process.thaw


def _long_freeze(scene: Scene, victim: StartedNode, draw: random.Random) -> Undo:
    """A node has no turns for so long that it is lost."""
    other = _another(scene, victim, draw)
    other.process.freeze()
    return other.process.thaw


def _refuse_owner(scene: Scene, victim: StartedNode, draw: random.Random) -> Undo:
    """Something on the way ends the coordinator's connections, and refuses new ones: it lives."""
    network, owner = scene.network, _owner(scene, victim)
    network.refuse(owner.host)
    for _ in range(draw.randrange(2, 8)):
        network.cut_one(owner.process, draw)
    return lambda: network.accept_again(owner.host)


def _refuse_one(scene: Scene, victim: StartedNode, draw: random.Random) -> Undo:
    """The same for the connections of one node: others reach the coordinator."""
    network, owner, other = scene.network, _owner(scene, victim), _another(scene, victim, draw)
    network.refuse(owner.host, other.host)
    for _ in range(draw.randrange(2, 8)):
        network.cut_one(other.process, draw)
    return lambda: network.accept_again(owner.host, other.host)


def _leave_owner(scene: Scene, victim: StartedNode, draw: random.Random) -> None:
    """The node that coordinates leaves in order."""
    OPERATIONS["leave"](scene, _owner(scene, victim), draw)


def _leave_another(scene: Scene, victim: StartedNode, draw: random.Random) -> None:
    """A node that does not coordinate leaves in order."""
    OPERATIONS["leave"](scene, _another(scene, victim, draw), draw)


def _away(scene: Scene, victim: StartedNode, draw: random.Random) -> Undo:
    """A node does not hear the coordinator, or is not heard, or both. Others are."""
    owner, other = _owner(scene, victim), _another(scene, victim, draw)
    there, back = (owner.host, other.host), (other.host, owner.host)
    pairs = draw.choice(([there], [back], [there, back]))
    for pair in pairs:
        scene.network.block(*pair)

    def undo() -> None:
        for pair in pairs:
            scene.network.unblock(*pair)

    return undo


def _twin(scene: Scene, victim: StartedNode, draw: random.Random) -> None:
    """A node is started again while it lives."""
    scene.start(_another(scene, victim, draw).index)


def _hang(scene: Scene, victim: StartedNode, draw: random.Random) -> None:
    """A node's workers take long to stop, the next time that they have to."""
    victim.hangs_s = draw.choice((10.0, 40.0))


def _close_now(scene: Scene, victim: StartedNode, draw: random.Random) -> None:
    """Somebody closes the run, as in `operations`, but surely."""

    class Surely(random.Random):
        def random(self) -> float:
            return 0.0

    OPERATIONS["close"](scene, victim, Surely(draw.getrandbits(32)))


def _on_ledger(trouble: Callable[[random.Random], Trouble], *, is_way: bool) -> Fault:
    """A fault of all members of etcd, or of the coordinator's way to each."""

    def fault(scene: Scene, victim: StartedNode, draw: random.Random) -> Undo | None:
        ledger, drawn = scene.ledger, trouble(draw)
        if not isinstance(ledger, EtcdInWorld):
            return None
        cluster, process = ledger.cluster, _owner(scene, victim).process
        indices = range(len(cluster.members))
        for index in indices:
            if is_way:
                cluster.ways[process, index] = drawn
            else:
                cluster.members[index] = drawn

        def mend() -> None:
            for index in indices:
                if is_way and cluster.ways.get((process, index)) is drawn:
                    del cluster.ways[process, index]
                elif not is_way and cluster.members[index] is drawn:
                    cluster.members[index] = Trouble()
            cluster.go_on()

        return mend

    return fault


def _full(scene: Scene, victim: StartedNode, draw: random.Random) -> Undo | None:
    """The ledger has no space left for writes."""
    if not isinstance(scene.ledger, EtcdInWorld):
        return None
    store = scene.ledger.cluster.store
    store.quota_bytes = 0

    def freed() -> None:
        store.quota_bytes = None

    return freed


SITUATION_FAULTS: Final[dict[str, Fault]] = {
    "kill owner": _kill_owner,
    "kill another": _kill_another,
    "lose owner": _lose_owner,
    "rack of owner": _rack_of_owner,
    "rack of others": _rack_of_others,
    "freeze owner": _freeze_owner,
    "long freeze": _long_freeze,
    "refuse owner": _refuse_owner,
    "refuse one": _refuse_one,
    "leave owner": _leave_owner,
    "leave another": _leave_another,
    "away": _away,
    "twin": _twin,
    "hang": _hang,
    "close now": _close_now,
    "slow ledger": _on_ledger(
        lambda draw: Trouble(delay_s=(0.05, draw.choice((0.5, 1.5, 3.0)))), is_way=False
    ),
    "no answers": _on_ledger(lambda draw: Trouble(loses_answer=1.0), is_way=True),
    "owner cut": _on_ledger(lambda draw: Trouble(loses_request=1.0), is_way=True),
    # A lease fits, and a head or a record of a log may not.
    "small requests": _on_ledger(
        lambda draw: Trouble(bytes_max=draw.choice((850, 1000, 1150))), is_way=False
    ),
    "full": _full,
}


def lasts_s(kind: str, draw: random.Random) -> float | None:
    """How long a fault of a situation lasts; None: as long as any."""
    match kind:
        case "long freeze" | "rack of others":
            return draw.uniform(11.0, 30.0)
        case "refuse owner" | "refuse one":
            return draw.uniform(2.0, 8.0)
        case "away" | "freeze owner":
            return draw.uniform(3.0, 40.0)
        case "no answers" | "owner cut" | "full" | "slow ledger" | "small requests":
            return draw.choice((2.0, 5.0, 12.0))
        case _:
            return None
