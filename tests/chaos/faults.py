"""How each kind of fault is done to a ground, and how it is mended.

`begin` does it at once; what must be undone later is kept with its time, and `mend_due` does that.
All harm to nodes is noted, because R8 speaks of it.
"""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Callable
from typing import Final

import msgspec

from tests.chaos.ground import Ground, Place
from tests.chaos.plan import COORDINATOR, NODES, SERVES, Fault
from tests.chaos.wires import Trouble


class Harm(msgspec.Struct, frozen=True):
    """A node may have been unheard from one moment to another, by this process's clock."""

    node: str
    from_s: float
    to_s: float
    why: str


class Faults:
    """What is done to one ground."""

    def __init__(self, ground: Ground) -> None:
        self.ground = ground
        self.harm: list[Harm] = []
        self.done: dict[str, int] = {}
        """By kind: how many faults found somebody to hit."""
        self.program_failures = 0
        """How many workers were made to fail, or may have been seen to."""
        self.windows: list[tuple[float, float]] = []
        """When a network, an engine or a disk was not well."""
        self._due: list[tuple[float, Callable[[], None]]] = []

    def begin(self, fault: Fault) -> str:
        """Do it. Returns what was done, for a person."""
        hosts = fault.hosts
        if hosts == (COORDINATOR,):
            found = self.ground.coordinator()
            if found is None:
                return f"{fault.kind}: nobody"
            hosts = (found,)
        said = _BEGIN[fault.kind](self, msgspec.structs.replace(fault, hosts=hosts))
        if not said:
            self.done[fault.kind] = self.done.get(fault.kind, 0) + 1
        return f"{fault.kind} {' '.join(hosts)}{f': {said}' if said else ''}"

    def mend_due(self, now_s: float) -> None:
        """Undo what is due. With infinity: everything."""
        due = [undo for at_s, undo in self._due if at_s <= now_s]
        self._due = [each for each in self._due if each[0] > now_s]
        for undo in due:
            undo()

    def mend(self) -> None:
        """Undo everything now."""
        self.mend_due(float("inf"))
        self.ground.net.mend()
        for place in self.ground.places.values():
            place.back_s = min(place.back_s, time.monotonic())

    # -- processes -----------------------------------------------------------------------------

    def kill(self, fault: Fault) -> str:
        """The process of each host, by SIGKILL. A guard ends the workers of an agent."""
        for place in self._places(fault):
            self._harmed(place, fault, "killed")
            self._end(place, fault.lasts_s, signal.SIGKILL)
        return ""

    def end(self, fault: Fault) -> str:
        """The same by SIGTERM, which is a wish."""
        for place in self._places(fault):
            self._harmed(place, fault, "asked to end")
            self._end(place, fault.lasts_s, signal.SIGTERM)
        return ""

    def kill_worker(self, fault: Fault) -> str:
        (name,) = fault.hosts
        pid = self.ground.worker_pid(name)
        if pid is None:
            return "no worker"
        self.program_failures += 1
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
        return ""

    def fail_worker(self, fault: Fault) -> str:
        """One of the agents' workers: the first one that sees the file."""
        self.program_failures += 1
        self.ground.fail.touch()
        return ""

    def freeze(self, fault: Fault) -> str:
        for place in self._places(fault):
            if place.is_alive and place.process is not None:
                self._harmed(place, fault, "frozen")
                self._freeze(place.process.pid, fault.lasts_s)
        return ""

    def freeze_with_worker(self, fault: Fault) -> str:
        (name,) = fault.hosts
        pid = self.ground.worker_pid(name)
        if pid is not None:
            self._freeze(pid, fault.lasts_s)
        return self.freeze(fault)

    def lose_host(self, fault: Fault) -> str:
        """Its cable is out, then all processes end: nobody is told."""
        (name,) = fault.hosts
        place = self.ground.places[name]
        self._harmed(place, fault, "host lost")
        trouble = Trouble("down", fault.hosts)
        self.ground.net.add(trouble)
        self._end(place, 0.0, signal.SIGKILL)
        self.ground.net.kill(name)
        self._later(fault.lasts_s, lambda: self.ground.net.remove(trouble))
        return ""

    def restart_all(self, fault: Fault) -> str:
        """Every node and coordinator is killed at the same moment."""
        for place in self.ground.places.values():
            self._harmed(place, fault, "all restarted")
            self._end(place, fault.lasts_s, signal.SIGKILL)
        return ""

    def step_clock(self, fault: Fault) -> str:
        for name in fault.hosts:
            if name in self.ground.places:
                self.ground.set_clock(name, fault.amount)
        return ""

    # -- the ledger ----------------------------------------------------------------------------

    def kill_etcd(self, fault: Fault) -> str:
        etcd = self.ground.etcd
        assert etcd is not None
        index = next(i for i, each in enumerate(etcd.members) if each.host.name in fault.hosts)
        if etcd.members[index].process.poll() is not None:
            return "it is dead"
        etcd.members[index].close()
        self._later(fault.lasts_s, lambda: self.ground.restart_member(index))
        self._unwell(fault)
        return ""

    def freeze_etcd(self, fault: Fault) -> str:
        etcd = self.ground.etcd
        assert etcd is not None
        for member in etcd.members:
            if not fault.hosts or member.host.name in fault.hosts:
                self._freeze(member.process.pid, fault.lasts_s)
        self._unwell(fault)
        return ""

    def full_disk(self, fault: Fault) -> str:
        self.ground.fill_disk()
        self._later(fault.lasts_s, self.ground.empty_disk)
        self._unwell(fault)
        return ""

    # -- the network ---------------------------------------------------------------------------

    def trouble(self, fault: Fault) -> str:
        """A trouble of the network; its kind is the fault's."""
        trouble = Trouble(fault.kind, fault.hosts, fault.amount)
        decides = set(fault.hosts) & set(SERVES if self.ground.plan.who == "replicas" else NODES)
        for place in self.ground.members():
            # A coordinator that is cut off hears nobody, and any node may be the coordinator.
            if decides or place.host.name in fault.hosts or self.ground.plan.who == "both":
                self._harmed(place, fault, fault.kind)
        self._unwell(fault)
        self.ground.net.add(trouble)
        self._later(fault.lasts_s, lambda: self.ground.net.remove(trouble))
        return ""

    # -- shared --------------------------------------------------------------------------------

    def _places(self, fault: Fault) -> list[Place]:
        return [self.ground.places[name] for name in fault.hosts if name in self.ground.places]

    def _end(self, place: Place, away_s: float, number: int) -> None:
        if place.is_alive and place.process is not None:
            place.was_asked = True
            place.process.signal(number)
            if number == signal.SIGKILL:
                place.process.popen.wait()
        place.back_s = max(place.back_s, time.monotonic() + away_s)

    def _freeze(self, pid: int, lasts_s: float) -> None:
        with contextlib.suppress(ProcessLookupError):  # it ends when it likes
            self.ground.machine.freeze(pid)
        self._later(lasts_s, lambda: self.ground.machine.thaw(pid))

    def _later(self, after_s: float, undo: Callable[[], None]) -> None:
        self._due.append((time.monotonic() + after_s, undo))

    def _harmed(self, place: Place, fault: Fault, why: str) -> None:
        if place.agent is not None:
            now_s = time.monotonic()
            self.harm.append(Harm(place.agent.name, now_s, now_s + fault.lasts_s, why))

    def _unwell(self, fault: Fault) -> None:
        now_s = time.monotonic()
        self.windows.append((now_s, now_s + fault.lasts_s))


_BEGIN: Final[dict[str, Callable[[Faults, Fault], str]]] = {
    "kill": Faults.kill,
    "kill coordinator": Faults.kill,
    "kill worker": Faults.kill_worker,
    "fail worker": Faults.fail_worker,
    "depart": Faults.end,
    "freeze": Faults.freeze,
    "freeze with worker": Faults.freeze_with_worker,
    "freeze coordinator": Faults.freeze,
    "kill serve": Faults.kill,
    "end serve": Faults.end,
    "kill etcd": Faults.kill_etcd,
    "freeze etcd": Faults.freeze_etcd,
    "freeze all etcd": Faults.freeze_etcd,
    "cut": Faults.trouble,
    "deafen": Faults.trouble,
    "mute": Faults.trouble,
    "reset": Faults.trouble,
    "slow": Faults.trouble,
    "lossy": Faults.trouble,
    "lose host": Faults.lose_host,
    "full disk": Faults.full_disk,
    "step clock": Faults.step_clock,
    "restart all": Faults.restart_all,
}
