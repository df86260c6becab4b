"""The kinds of faults, each a small function.

A fault gets the scene, the node that it meets, and the chance that the plan gave it. It returns
what ends it, or None if it is over at once: the job ends each fault after some time, and all of
them before it waits for peace. So a fault must not rely on anything but its own undoing.

To add one: write the function, and put it into `FAULTS`. Plans of known seeds change then.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from functools import partial
from typing import Final

from rallypoint.simulation.network import Quality
from rallypoint.simulation.scene import Scene, StartedNode, Undo

Fault = Callable[[Scene, StartedNode, random.Random], Undo | None]


def _kill(scene: Scene, victim: StartedNode, draw: random.Random) -> None:
    """Its process is killed. Another one starts on the same host, sooner or later."""
    victim.process.kill()
    _start_again(scene, victim, draw)


def _lose(scene: Scene, victim: StartedNode, draw: random.Random) -> None:
    """Its host loses power: nobody says so."""
    is_all = scene.ledger.is_on_one_machine
    lost = [each for each in scene.living if is_all or each is victim]
    for host in {each.host: None for each in scene.nodes if is_all or each is victim}:
        scene.network.lose(host)
    scene.ledger.lost_power(victim.host)
    for each in lost:
        _start_again(scene, each, draw)


def _start_again(scene: Scene, victim: StartedNode, draw: random.Random) -> None:
    scene.world.after(draw.expovariate(0.3), partial(scene.start, victim.index))


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


def _cut(scene: Scene, victim: StartedNode, draw: random.Random) -> None:
    """Something on the way resets one of its connections."""
    scene.network.cut_one(victim.process, draw)


def _block(scene: Scene, victim: StartedNode, draw: random.Random) -> Undo:
    """No packet goes between it and another host, in one direction or in both."""
    other = draw.choice([each.host for each in scene.nodes])
    there, back = (victim.host, other), (other, victim.host)
    pairs = draw.choice(([there], [back], [there, back]))
    for pair in pairs:
        scene.network.block(*pair)

    def unblock() -> None:
        for pair in pairs:
            scene.network.unblock(*pair)

    return unblock


def _slow(scene: Scene, victim: StartedNode, draw: random.Random) -> Undo:
    """The whole network is slow and loses packets."""
    network = scene.network
    quality = network.quality = Quality(delay_s=(0.0, draw.choice((0.1, 1.0))), loss=0.05)

    def quick() -> None:
        if network.quality is quality:
            network.quality = Quality()

    return quick


def _ledger(scene: Scene, victim: StartedNode, draw: random.Random) -> Undo:
    """Something is wrong with the ledger's engine, or with the node's way to it."""
    return scene.ledger.trouble(victim.process, draw)


def _outage(scene: Scene, victim: StartedNode, draw: random.Random) -> Undo:
    """The ledger's engine answers nobody."""
    return scene.ledger.outage(victim.process, draw)


FAULTS: Final[dict[str, Fault]] = {
    "kill": _kill,
    "lose": _lose,
    "freeze": _freeze,
    "suspend": _suspend,
    "cut": _cut,
    "block": _block,
    "slow": _slow,
    "ledger": _ledger,
    "outage": _outage,
}


def some_s(draw: random.Random) -> float:
    """How long a fault takes: mostly seconds, at times longer than any lease."""
    return draw.expovariate(1.0 / draw.choice((0.3, 2.0, 8.0, 30.0)))
