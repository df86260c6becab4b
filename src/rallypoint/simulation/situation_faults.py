"""Faults that only situations have: they meet the coordinator that owns a run, or another node.

To add one: write it as in `faults`, and put it into `SITUATION_FAULTS`. How long it lasts is in
`lasts_s`.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from functools import partial
from typing import Final

from rallypoint.simulation.etcd import Trouble
from rallypoint.simulation.files import FilesInWorld
from rallypoint.simulation.guilt import GUILT_FAULTS, LASTS_S
from rallypoint.simulation.knobs import tick
from rallypoint.simulation.ledgers import EtcdInWorld
from rallypoint.simulation.operations import OPERATIONS
from rallypoint.simulation.operator_faults import OPERATOR_FAULTS
from rallypoint.simulation.racks import neighbours, preempted
from rallypoint.simulation.scene import Scene, StartedNode, Undo
from rallypoint.simulation.witness_faults import WITNESS_FAULTS
from rallypoint.simulation.world import Process

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


def _kill_owner(scene: Scene, victim: StartedNode, draw: random.Random) -> None:
    """The coordinator's process is killed."""
    owner = _owner(scene, victim)
    owner.process.kill()
    scene.start_sometime(owner.index, draw)


def _kill_another(scene: Scene, victim: StartedNode, draw: random.Random) -> None:
    """The process of a node that is not the coordinator's is killed."""
    other = _another(scene, victim, draw)
    other.process.kill()
    scene.start_sometime(other.index, draw)


def _gone(scene: Scene, victim: StartedNode, draw: random.Random) -> None:
    """A node that does not coordinate ends, and comes back very late."""
    other = _another(scene, victim, draw)
    if draw.random() < 0.5:
        other.process.kill()
    else:
        scene.lose_power(other)
    scene.start_later(other.index, 60.0)


def _lose_owner(scene: Scene, victim: StartedNode, draw: random.Random) -> None:
    """The coordinator's host loses power, and comes back late."""
    for each in scene.lose_power(_owner(scene, victim)):
        scene.start_later(each.index, draw.choice((1.0, 30.0, 60.0)))


def _rack_of_owner(scene: Scene, victim: StartedNode, draw: random.Random) -> Undo:
    """The coordinator's host and some others go at the same moment, and come back late."""
    owner = _owner(scene, victim)
    others = [each for each in scene.living if each is not owner]
    count = round(draw.choice((0.1, 0.2, 0.4, 0.6)) * len(others))
    gone = neighbours(scene, [owner, *draw.sample(others, count)], scene.living)
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
    return partial(_thaw, thaws)


def _rack_of_others(scene: Scene, victim: StartedNode, draw: random.Random) -> Undo:
    """Many are silent together. Some of them are back at the same time, and the others are gone."""
    owner = _owner(scene, victim)
    others = [each for each in scene.living if each is not owner]
    silent = draw.sample(others, round(draw.choice((0.2, 0.4, 0.6)) * len(others)))
    thaws: list[Process] = []
    met = neighbours(scene, silent, others)
    for each in () if preempted(scene, met) else met:
        if draw.random() < 0.3:
            scene.lose_power(each)
            scene.start_later(each.index, draw.choice((30.0, 60.0)))
        else:
            each.process.freeze()
            thaws.append(each.process)
    return partial(_thaw, thaws)


def _thaw(processes: Sequence[Process]) -> None:
    for process in processes:
        process.thaw()


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
    return scene.network.block_all(draw.choice(([there], [back], [there, back])))


def _offline(scene: Scene, victim: StartedNode, draw: random.Random) -> Undo:
    """A node loses its connections, and finds no way to the others until a moment later."""
    return _cut_off(scene, _another(scene, victim, draw), draw)


def _cut_off(scene: Scene, here: StartedNode, draw: random.Random) -> Undo:
    for _ in range(4):
        scene.network.cut_one(here.process, draw)
    hosts = sorted({each.host for each in scene.nodes} - {here.host})
    pairs = [pair for each in hosts for pair in ((here.host, each), (each, here.host))]
    return scene.network.block_all(pairs)


def _finish_offline(scene: Scene, victim: StartedNode, draw: random.Random) -> Undo:
    """A node is offline, and its workers finish meanwhile."""
    other = _another(scene, victim, draw)
    other.should_finish = True
    return _cut_off(scene, other, draw)


def _twin_of_frozen(scene: Scene, victim: StartedNode, draw: random.Random) -> Undo:
    """A node is started again while it lives, and has no turns."""
    other = _another(scene, victim, draw)
    other.process.freeze()
    scene.start(other.index)
    return other.process.thaw


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


def _quiet(scene: Scene, victim: StartedNode, draw: random.Random) -> None:
    """From now on the workers call nothing."""
    scene.is_quiet = True
    tick(is_quiet=True)


def _busy(scene: Scene, victim: StartedNode, draw: random.Random) -> None:
    """They do again."""
    scene.is_quiet = False
    tick(is_quiet=False)


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


def _owner_cut_off(scene: Scene, victim: StartedNode, draw: random.Random) -> Undo:
    """The coordinator does not reach its ledger for longer than its lease is valid."""
    return scene.ledger.cut(_owner(scene, victim).process)


def _disk(scene: Scene, victim: StartedNode, draw: random.Random) -> Undo | None:
    """The disk of a file ledger reports errors, often to the coordinator's host alone."""
    if not isinstance(scene.ledger, FilesInWorld):
        return None
    return scene.ledger.disk(_owner(scene, victim).process, draw)


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
    "gone": _gone,
    "rack of owner": _rack_of_owner,
    "rack of others": _rack_of_others,
    "freeze owner": _freeze_owner,
    "long freeze": _long_freeze,
    "refuse owner": _refuse_owner,
    "refuse one": _refuse_one,
    "leave owner": _leave_owner,
    "leave another": _leave_another,
    "away": _away,
    "offline": _offline,
    "finish offline": _finish_offline,
    "twin": _twin,
    "twin of frozen": _twin_of_frozen,
    "hang": _hang,
    "close now": _close_now,
    "quiet": _quiet,
    "busy": _busy,
    "slow ledger": _on_ledger(
        lambda draw: Trouble(delay_s=(0.05, draw.choice((0.5, 1.5, 3.0)))), is_way=False
    ),
    "no answers": _on_ledger(lambda draw: Trouble(loses_answer=1.0), is_way=True),
    # Not as late as `EtcdOptions.try_timeout_s`, after which the outcome is unknown.
    "late requests": _on_ledger(
        lambda draw: Trouble(late=draw.choice((0.2, 0.4)), late_s=0.9), is_way=True
    ),
    "owner cut": _on_ledger(lambda draw: Trouble(loses_request=1.0), is_way=True),
    # A lease fits, and a head or a record of a log may not.
    "small requests": _on_ledger(
        lambda draw: Trouble(bytes_max=draw.choice((850, 1000, 1150))), is_way=False
    ),
    "full": _full,
    "disk": _disk,
    "owner cut off": _owner_cut_off,
    **OPERATOR_FAULTS,
    **GUILT_FAULTS,
    **WITNESS_FAULTS,
}


def lasts_s(kind: str, draw: random.Random) -> float | None:
    """How long a fault of a situation lasts; None: as long as any."""
    match kind:
        case "long freeze" | "rack of others":
            return draw.uniform(11.0, 30.0)
        case "refuse owner" | "refuse one":
            return draw.uniform(2.0, 8.0)
        case "owner cut off":
            return draw.uniform(8.0, 14.0)
        case "away" | "freeze owner":
            return draw.uniform(3.0, 40.0)
        case "offline" | "finish offline":
            return draw.uniform(0.5, 4.0)
        case "always fails":
            return draw.uniform(0.3, 1.0) * LASTS_S
        case "mute" | "alone" | "unplugged" | "wall" | "stop":
            return draw.uniform(3.0, 20.0)
        case "stalled owner":
            return draw.uniform(1.0, 12.0)
        case "twin of frozen":
            return draw.uniform(2.0, 15.0)
        case "late requests":
            return draw.uniform(10.0, 20.0)
        case "no answers" | "owner cut" | "full" | "slow ledger" | "small requests" | "disk":
            return draw.choice((2.0, 5.0, 12.0))
        case _:
            return None
