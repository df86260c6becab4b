"""Faults that keep a node from being heard, and of which witnesses have to tell one from another.

To add one: write it as in `faults`, and put it into `WITNESS_FAULTS`.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Final

from rallypoint.simulation.scene import Scene, StartedNode, Undo

BLIP_S: Final = 2.0


def _others(scene: Scene, host: str) -> list[str]:
    return sorted({each.host for each in scene.nodes} - {host})


def _owner_hosts(scene: Scene) -> list[str]:
    owners = [front.process for front in scene.fronts if front.is_owner]
    return [each.host for each in scene.living if each.process in owners]


def _power_off(scene: Scene, victim: StartedNode, draw: random.Random) -> None:
    """Its host loses power, and is switched on again much later."""
    for each in scene.lose_power(victim):
        scene.start_later(each.index, draw.uniform(15.0, 40.0))


def _stop(scene: Scene, victim: StartedNode, draw: random.Random) -> Undo:
    """Its process is stopped for longer than until it is suspect; its kernel answers."""
    victim.process.freeze()
    return victim.process.thaw


def _blip(scene: Scene, victim: StartedNode, draw: random.Random) -> None:
    """The network of its host is away for two seconds."""
    host = victim.host
    pairs = [pair for each in _others(scene, host) for pair in ((host, each), (each, host))]
    scene.world.after(BLIP_S, scene.network.block_all(pairs))


def _mute(scene: Scene, victim: StartedNode, draw: random.Random) -> Undo:
    """No packet goes from its host to that of the coordinator; all others go."""
    hosts = [each for each in _owner_hosts(scene) if each != victim.host]
    return scene.network.block_all([(victim.host, each) for each in hosts])


def _alone(scene: Scene, victim: StartedNode, draw: random.Random) -> Undo:
    """The host of the coordinator is cut off from all others, in one direction or in both."""
    host = next(iter(_owner_hosts(scene)), victim.host)
    there = [(host, each) for each in _others(scene, host)]
    back = [(each, host) for each in _others(scene, host)]
    return scene.network.block_all(draw.choice((there, back, there + back)))


def _unplugged(scene: Scene, victim: StartedNode, draw: random.Random) -> Undo:
    """Its cable is pulled: no packet leaves or reaches its host."""
    host = victim.host
    pairs = [pair for each in _others(scene, host) for pair in ((host, each), (each, host))]
    return scene.network.block_all(pairs)


def _wall(scene: Scene, victim: StartedNode, draw: random.Random) -> Undo:
    """A firewall before its host drops new connections, and its process is stopped meanwhile."""
    walls, host = scene.network.walls, victim.host
    walls[host] = walls.get(host, 0) + 1

    def gone() -> None:
        walls[host] -= 1
        if not walls[host]:
            del walls[host]

    return gone


def _stalled_owner(scene: Scene, victim: StartedNode, draw: random.Random) -> Undo:
    """The coordinator's process is stopped."""
    owners = [front.process for front in scene.fronts if front.is_owner]
    at = next((each.process for each in scene.living if each.process in owners), victim.process)
    at.freeze()
    return at.thaw


WITNESS_FAULTS: Final[dict[str, Callable[[Scene, StartedNode, random.Random], Undo | None]]] = {
    "power off": _power_off,
    "stop": _stop,
    "blip": _blip,
    "mute": _mute,
    "alone": _alone,
    "unplugged": _unplugged,
    "wall": _wall,
    "stalled owner": _stalled_owner,
}
