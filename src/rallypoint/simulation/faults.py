"""The kinds of faults, each a small function.

A fault gets the scene, the process that it meets, and the chance that the plan gave it. It returns
what ends it, or None if it is over at once: the job ends each fault after some time, and all of
them before it waits for peace. So a fault must not rely on anything but its own undoing.

To add one: write the function, and put it into `FAULTS`. Plans of known seeds change then. What
users do at bad moments (leave, close, fail) is in `operations`.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from functools import partial
from typing import Final

from rallypoint.simulation.agent_faults import AGENT_FAULTS, RARE_AGENT_FAULTS, on_agent
from rallypoint.simulation.network import Quality
from rallypoint.simulation.operations import OPERATIONS
from rallypoint.simulation.racks import neighbours, preempted
from rallypoint.simulation.scene import Scene, StartedNode, Undo
from rallypoint.simulation.situation_faults import SITUATION_FAULTS
from rallypoint.simulation.world import Process

Fault = Callable[[Scene, StartedNode, random.Random], Undo | None]


# -- processes and machines ------------------------------------------------------------------------


def _kill(scene: Scene, victim: StartedNode, draw: random.Random) -> None:
    """Its process is killed. Another one starts on the same host, sooner or later."""
    victim.process.kill()
    scene.start_sometime(victim.index, draw)


def _lose(scene: Scene, victim: StartedNode, draw: random.Random) -> None:
    """Its host loses power: nobody says so."""
    for each in scene.lose_power(victim):
        scene.start_sometime(each.index, draw)


def _freeze(scene: Scene, victim: StartedNode, draw: random.Random) -> Undo:
    """Its process has no turns, as after SIGSTOP."""
    victim.process.freeze()
    return victim.process.thaw


def _suspend(scene: Scene, victim: StartedNode, draw: random.Random) -> Undo | None:
    """Its machine sleeps, with its monotonic clock."""
    if victim.process.is_frozen:
        return None
    victim.process.suspend()
    return victim.process.resume


def _stutter(scene: Scene, victim: StartedNode, draw: random.Random) -> None:
    """Its process stops many times, each time for less than a second."""
    process, after_s = victim.process, 0.0
    for _ in range(draw.randrange(3, 12)):
        after_s += draw.expovariate(2.0)
        scene.world.after(after_s, partial(_stop_for, scene, process, draw.random()))


def _stop_for(scene: Scene, process: Process, seconds: float) -> None:
    if scene.is_chaotic:
        process.freeze()
        scene.world.after(seconds, process.thaw)


def _starve(scene: Scene, victim: StartedNode, draw: random.Random) -> Undo:
    """It gets little CPU: each turn of its loop takes long."""
    process = victim.process
    before_s, process.turn_cost_s = process.turn_cost_s, draw.choice((0.01, 0.05, 0.3))

    def fed() -> None:
        process.turn_cost_s = min(before_s, process.turn_cost_s)

    return fed


def _clock(scene: Scene, victim: StartedNode, draw: random.Random) -> Undo | None:
    """Its wall clock is set, or its monotonic clock runs a little faster or slower."""
    process = victim.process
    if draw.random() < 0.5:
        process.clock.wall_offset_s += draw.choice((-1.0, 1.0)) * 10.0 ** draw.uniform(0.0, 8.0)
        return None
    rate = process.clock.rate
    process.set_rate(rate * draw.uniform(0.99, 1.01))

    def right() -> None:
        if process.is_alive:
            process.set_rate(rate)

    return right


def _rack(scene: Scene, victim: StartedNode, draw: random.Random) -> Undo:
    """Several processes meet the same fault together: a rack, a switch, a spot market."""
    kind = draw.choice((_kill, _lose, _freeze, _isolate, _cut))
    living = scene.living
    count = max(1, round(draw.choice((0.3, 0.5, 0.8)) * len(living)))
    met = neighbours(scene, draw.sample(living, count), living)
    undos = [] if preempted(scene, met) else [kind(scene, each, draw) for each in met]

    def undo() -> None:
        for each in undos:
            if each is not None:
                each()

    return undo


# -- the network -----------------------------------------------------------------------------------


def _cut(scene: Scene, victim: StartedNode, draw: random.Random) -> None:
    """Something on the way resets one of its connections."""
    scene.network.cut_one(victim.process, draw)


def _flicker(scene: Scene, victim: StartedNode, draw: random.Random) -> None:
    """Its connections are reset again and again."""
    for _ in range(draw.randrange(3, 15)):
        scene.world.after(draw.random() * 8.0, partial(_cut_again, scene, victim, draw))


def _cut_again(scene: Scene, victim: StartedNode, draw: random.Random) -> None:
    if scene.is_chaotic:
        _cut(scene, victim, draw)


def _block(scene: Scene, victim: StartedNode, draw: random.Random) -> Undo:
    """No packet goes between it and another host, in one direction or in both."""
    other = draw.choice([each.host for each in scene.nodes])
    there, back = (victim.host, other), (other, victim.host)
    return scene.network.block_all(draw.choice(([there], [back], [there, back])))


def _isolate(scene: Scene, victim: StartedNode, draw: random.Random) -> Undo:
    """No packet leaves its host, or none arrives, or both. The ledger is reached another way."""
    others = sorted({each.host for each in scene.nodes} - {victim.host})
    there = [(victim.host, other) for other in others]
    back = [(other, victim.host) for other in others]
    return scene.network.block_all(draw.choice((there, back, there + back)))


def _refuse(scene: Scene, victim: StartedNode, draw: random.Random) -> Undo:
    """Something on the way resets connections to its host and refuses new ones: it lives."""
    network, host = scene.network, victim.host
    network.refuse(host)
    for _ in range(draw.randrange(1, 5)):
        network.cut_one(victim.process, draw)
    return lambda: network.accept_again(host)


def _slow(scene: Scene, victim: StartedNode, draw: random.Random) -> Undo:
    """The whole network is slow and loses packets."""
    network = scene.network
    quality = network.quality = _poor(draw)

    def quick() -> None:
        if network.quality is quality:
            network.quality = Quality()

    return quick


def _link(scene: Scene, victim: StartedNode, draw: random.Random) -> Undo:
    """The way from or to its host is slow and loses packets; the other direction is not."""
    network, quality = scene.network, _poor(draw)
    others = sorted({each.host for each in scene.nodes} - {victim.host})
    pairs = [(victim.host, other) for other in others]
    if draw.random() < 0.5:
        pairs = [(other, victim.host) for other in others]
    for pair in pairs:
        network.qualities[pair] = quality

    def quick() -> None:
        for pair in pairs:
            if network.qualities.get(pair) is quality:
                del network.qualities[pair]

    return quick


def _poor(draw: random.Random) -> Quality:
    return Quality(delay_s=(0.0, draw.choice((0.1, 1.0, 3.0))), loss=draw.choice((0.0, 0.05, 0.3)))


def _proxy(scene: Scene, victim: StartedNode, draw: random.Random) -> Undo:
    """Who dials a coordinator, mostly that of a run, gets the answer of a proxy or of a stranger.

    The proxy has been started again, so some of the connections through it have ended.
    """
    owners = owners_of_runs(scene)
    at = draw.choice(owners) if owners and draw.random() < 0.8 else victim
    answers, host = scene.network.answers, at.host
    answers[host] = draw.choice((0, 404, 429, 502))
    for _ in range(draw.randrange(1, 6)):
        scene.network.cut_one(at.process, draw)

    def gone() -> None:
        answers.pop(host, None)

    return gone


# -- the ledger ------------------------------------------------------------------------------------


def _ledger(scene: Scene, victim: StartedNode, draw: random.Random) -> Undo:
    """Something is wrong with the ledger's engine, or with the process's way to it."""
    return scene.ledger.trouble(victim.process, draw)


def _limit(scene: Scene, victim: StartedNode, draw: random.Random) -> Undo:
    """The ledger's engine has come to a limit."""
    return scene.ledger.limit(victim.process, draw)


def _outage(scene: Scene, victim: StartedNode, draw: random.Random) -> Undo:
    """The ledger's engine answers nobody."""
    return scene.ledger.outage(victim.process, draw)


def _late(scene: Scene, victim: StartedNode, draw: random.Random) -> Undo:
    """Some requests to the ledger take effect long after others that were sent later.

    Meanwhile rounds end, and late requests are those of a round before.
    """
    for _ in range(draw.randrange(2, 8)):
        scene.world.after(draw.random() * 10.0, partial(_fail_one, scene, draw))
    owners = owners_of_runs(scene)
    at = draw.choice(owners) if owners and draw.random() < 0.8 else victim
    return scene.ledger.late(at.process, draw)


def _fail_one(scene: Scene, draw: random.Random) -> None:
    living = scene.living
    if scene.is_chaotic and living:
        OPERATIONS["fail"](scene, draw.choice(living), draw)


def _large(scene: Scene, victim: StartedNode, draw: random.Random) -> Undo:
    """The ledger's engine takes only small requests: what was acceptable is too large now."""
    return scene.ledger.small(victim.process, draw)


# -- the coordinator -------------------------------------------------------------------------------


def _part(scene: Scene, victim: StartedNode, draw: random.Random) -> Undo:
    """The network falls apart: some hosts and the ledger, and the others with the coordinator.

    Some of the others may still reach the ledger, as by another network.
    """
    owners = owners_of_runs(scene)
    cut = [draw.choice(owners) if owners and draw.random() < 0.8 else victim]
    cut += [each for each in scene.living if each is not cut[0] and draw.random() < 0.4]
    inside = dict.fromkeys(each.host for each in cut)
    outside = dict.fromkeys(each.host for each in scene.nodes if each.host not in inside)
    undos = [
        scene.ledger.cut(each.process)
        for index, each in enumerate(cut)
        if not index or draw.random() < 0.7
    ]
    pairs = [(here, there) for here in inside for there in outside]
    undos.append(scene.network.block_all(pairs + [(there, here) for here, there in pairs]))

    def undo() -> None:
        for each in undos:
            each()

    return undo


def owners_of_runs(scene: Scene) -> list[StartedNode]:
    """The processes whose coordinators own runs, or believe so."""
    owners = [front.process for front in scene.fronts if front.is_owner]
    return [each for each in scene.living if each.process in owners]


def _at_owner(fault: Fault) -> Fault:
    def begin(scene: Scene, victim: StartedNode, draw: random.Random) -> Undo | None:
        owners = owners_of_runs(scene)
        return fault(scene, draw.choice(owners) if owners else victim, draw)

    return begin


OF_OWNERS: Final = ("kill", "freeze", "ledger", "refuse", "cut", "flicker")
"""The faults that a job about stores has at its coordinator."""
FAULTS: Final[dict[str, Fault]] = {
    "kill": _kill,
    "lose": _lose,
    "freeze": _freeze,
    "suspend": _suspend,
    "stutter": _stutter,
    "starve": _starve,
    "clock": _clock,
    "rack": _rack,
    "cut": _cut,
    "flicker": _flicker,
    "block": _block,
    "isolate": _isolate,
    "refuse": _refuse,
    "slow": _slow,
    "link": _link,
    "proxy": _proxy,
    "ledger": _ledger,
    "limit": _limit,
    "outage": _outage,
    **OPERATIONS,
}
"""Those of any node, of which each plan draws."""
STORE_FAULTS: Final[dict[str, Fault]] = {
    "part": _part,
    "late": _late,
    "large": _large,
    **{kind: FAULTS[kind] for kind in ("outage", "flicker")},
    **{f"owner's {kind}": _at_owner(FAULTS[kind]) for kind in OF_OWNERS},
}
"""Those of a job about its rounds' stores: see `Plan.is_store`."""
ALL_FAULTS: Final[dict[str, Fault]] = {
    **FAULTS,
    **STORE_FAULTS,
    **{kind: on_agent(fault) for kind, fault in (AGENT_FAULTS | RARE_AGENT_FAULTS).items()},
    **SITUATION_FAULTS,
}


def some_s(draw: random.Random) -> float:
    """How long a fault takes: mostly seconds, at times longer than any lease."""
    return draw.expovariate(1.0 / draw.choice((0.3, 2.0, 8.0, 30.0)))


def long_s(draw: random.Random) -> float:
    """How long a fault takes in a job about stores: mostly until another coordinator serves."""
    return draw.choice((2.0, 10.0, 10.0, 20.0)) * draw.uniform(0.5, 1.5)
