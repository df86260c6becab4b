"""The engines that the nodes of a job can share: simulated, under the shipped ledgers.

To add one: write a class with the members of `scene.SimulatedLedger`, which takes (world, plan),
and put it into `LEDGERS`. `Plan.ledger` then names it. What goes wrong with it is its own:
`trouble` draws that, and returns what ends it.
"""

from __future__ import annotations

import random
import urllib.parse
from collections.abc import Callable
from typing import Final

from rallypoint.ledger import record_format
from rallypoint.ledger.contract import Ledger
from rallypoint.ledger.etcd.ledger import EtcdLedger
from rallypoint.ledger.etcd.options import EtcdOptions
from rallypoint.simulation.etcd import REQUEST_BYTES_MAX, Change, Cluster, Key, Trouble
from rallypoint.simulation.files import FilesInWorld, register_shown
from rallypoint.simulation.plan import Plan
from rallypoint.simulation.scene import SimulatedLedger, Undo
from rallypoint.simulation.world import Process, World

_ROOT: Final = "/rallypoint/"
_REFUSALS: Final = (
    (8, "etcdserver: too many requests"),
    (8, "etcdserver: mvcc: database space exceeded"),
    (14, "etcdserver: no leader"),
    (3, "etcdserver: request is too large"),
)
_UNSURE: Final = ((14, "etcdserver: leader changed"), (14, "etcdserver: request timed out"))
"""With these, the request may have been done."""
_REGISTERS: Final = "/rallypoint/r/"


class EtcdInWorld:
    """The shipped etcd ledger, over a simulated cluster."""

    endpoint = "etcd://10.9.0.1:2379/rallypoint"
    is_on_one_machine = False

    def __init__(self, world: World, plan: Plan) -> None:
        self.cluster = Cluster(world, plan.ledger_members)
        self.cluster.store.on_written = self._written
        self.on_written: Callable[[str, bytes | None], None] = lambda name, value: None
        self.on_logged: Callable[[str, int, bytes | None], None] = lambda log, index, value: None

    def ledger(self, process: Process) -> Ledger:
        """See SimulatedLedger."""
        hosts = tuple(url.removeprefix("http://") for url in self.cluster.urls)
        return EtcdLedger(EtcdOptions(endpoints=hosts), gateway=self.cluster.gateway(process))

    def trouble(self, process: Process, draw: random.Random) -> Undo:
        """See SimulatedLedger: with one member, or with the process's way to it."""
        cluster = self.cluster
        index = draw.randrange(len(cluster.members))
        trouble = draw.choice(
            (
                Trouble(delay_s=(0.1, 3.0)),
                Trouble(loses_answer=0.5),
                Trouble(loses_request=0.5, late=0.3),
                Trouble(delay_s=(0.0, 4.0), loses_answer=0.1),
                Trouble(late=0.3, late_s=4.0),
                Trouble(late=0.1, late_s=12.0),
                Trouble(is_gone=True),
                Trouble(is_frozen=True),
                Trouble(refuses=0.5, refusal=draw.choice(_REFUSALS), may_be_done=False),
                Trouble(refuses=0.5, refusal=draw.choice(_UNSURE), may_be_done=True),
            )
        )
        is_way = draw.random() < 0.5
        if is_way:
            cluster.ways[process, index] = trouble
        else:
            cluster.members[index] = trouble

        def mend() -> None:
            if is_way:
                cluster.ways.pop((process, index), None)
            else:
                cluster.members[index] = Trouble()
            cluster.go_on()

        return mend

    def limit(self, process: Process, draw: random.Random) -> Undo:
        """See SimulatedLedger: no space is left for writes, or the history is compacted."""
        store = self.cluster.store
        if draw.random() < 0.3:
            store.compact()
            return lambda: None
        store.quota_bytes = 0

        def freed() -> None:
            store.quota_bytes = None

        return freed

    def cut(self, process: Process) -> Undo:
        """See SimulatedLedger: no member answers it."""
        ways = self.cluster.ways
        for index in range(len(self.cluster.members)):
            ways[process, index] = Trouble(loses_request=1.0)

        def mend() -> None:
            for index in range(len(self.cluster.members)):
                ways.pop((process, index), None)

        return mend

    def outage(self, process: Process, draw: random.Random) -> Undo:
        """See SimulatedLedger: the members have no quorum."""
        self.cluster.has_quorum = False

        def found() -> None:
            self.cluster.has_quorum = True
            self.cluster.go_on()

        return found

    def late(self, process: Process, draw: random.Random) -> Undo:
        """See SimulatedLedger."""
        ways, part = self.cluster.ways, draw.choice((0.1, 0.3))
        keys = [(process, index) for index in range(len(self.cluster.members))]
        ways.update((key, Trouble(late=part, late_s=draw.choice((0.9, 0.9, 3.0)))) for key in keys)

        def mend() -> None:
            for key in keys:
                ways.pop(key, None)

        return mend

    def small(self, process: Process, draw: random.Random) -> Undo:
        """See SimulatedLedger: etcd's --max-request-bytes."""
        self.cluster.request_bytes_max = draw.choice((2_500, 4_000))

        def mend() -> None:
            self.cluster.request_bytes_max = REQUEST_BYTES_MAX

        return mend

    def lost_power(self, host: str) -> None:
        """See SimulatedLedger: nothing of the cluster is on a node's host."""

    def requests(self) -> int:
        """See SimulatedLedger."""
        return sum(self.cluster.store.requests.values())

    def shown(self) -> list[str]:
        """See SimulatedLedger."""
        shown = []
        for key in self.cluster.store.keys.values():
            value = record_format.unseal(key.value, "").value if _name(key) else b""
            shown.append(f"{key.key.decode()} @{key.mod_revision}: {register_shown(value)}")
        return shown

    def _written(self, change: Change) -> None:
        name = change.key.key.decode().removeprefix(_ROOT)
        if name == "ledger":
            return
        value = None if change.is_delete else record_format.unseal(change.key.value, name).value
        kind, _, name = name.partition("/")
        if kind == "r":
            self.on_written(name, value)
        else:
            log, _, index = name.rpartition("/")
            self.on_logged(urllib.parse.unquote(log), int(index, 16), value)


def _name(key: Key) -> str:
    """The name of the register in a key of etcd; "" if it has none."""
    name = key.key.decode()
    return name.removeprefix(_REGISTERS) if name.startswith(_REGISTERS) else ""


LEDGERS: Final[dict[str, Callable[[World, Plan], SimulatedLedger]]] = {
    "etcd": EtcdInWorld,
    "file": lambda world, plan: FilesInWorld(world, is_shared=True),
    "file-local": lambda world, plan: FilesInWorld(world, is_shared=False),
}
"""By the names of `Plan.ledger`. `file`: on a file server. `file-local`: on the only machine."""
