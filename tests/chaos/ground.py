"""Where a job of chaos takes place: its hosts, and the processes that belong on each.

A host has one place for a process. When that process is gone, another one is started there, once
its time has come and the host is there. What must not be here: faults, and what must hold.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec
import pytest

from tests.agent.processes import SRC, Process, alive
from tests.chaos.plan import AGENTS, ETCDS, NODES, SERVES, JobPlan
from tests.chaos.wires import Wires, wires
from tests.failover import netns
from tests.failover.fleet import AGENT, Agent, Fleet, Log
from tests.failover.netns import Host
from tests.failover.spread import RALLYPOINT, SERVE_PORT, Etcd, HostedReplica, Member
from tests.ledger.etcd_processes import Program, programs

ROOT = Path(__file__).parents[2]
NATIVE = Path(__file__).parent / "native_node.py"
WORKER = Path(__file__).parent / "worker.py"
PROGRAM = Path(__file__).parent / "program.py"
CLOCKS = Path(__file__).parent / "clocks"
DISK_BYTES = 64 << 20
"""The ledger's disk. A job needs a fraction of it."""
PREFIX = "chaos"
RUN_ID = "job"
SETTINGS = {
    "RALLYPOINT_RUN_ID": RUN_ID,
    "RALLYPOINT_NNODES": f"2:{len(NODES)}",
    "RALLYPOINT_EXPECTED_NODES": str(len(NODES)),
    "RALLYPOINT_MAX_RESTARTS": "any",
    "RALLYPOINT_REGROUP_STOP_TIMEOUT": "1",
    "RALLYPOINT_STOP": "1",
    "RALLYPOINT_LAST_CALL": "2",
    "RALLYPOINT_SUSPECT_AFTER": "2",
    "RALLYPOINT_ATTACH_GRACE": "6",
    "RALLYPOINT_YIELD_AFTER": "5",
    "RALLYPOINT_MASS_GRACE": "6",
    "FAILOVER_EVERY_S": "0.1",
}


class AheadLog(Log):
    """The records of processes whose monotonic clock is ahead, in the time of this process."""

    def __init__(self, path: Path, ahead_s: float) -> None:
        super().__init__(path)
        self._ahead_s = ahead_s

    def _read(self) -> None:
        known = len(self._events)
        super()._read()
        for each in self._events[known:]:
            for name in ("at_s", "asked_s"):
                if name in each:
                    each[name] -= self._ahead_s


class Place(msgspec.Struct):
    """A host's place for one process."""

    host: Host
    start: Callable[[], None]
    process: Process | None = None
    agent: Agent | None = None
    back_s: float = 0.0
    """When the next process is started, if there is none."""
    was_asked: bool = False
    """Whether a fault has ended the process, or has asked it to end."""

    @property
    def is_alive(self) -> bool:
        return self.process is not None and self.process.popen.poll() is None


class Ground(Fleet):
    """The hosts and processes of one job."""

    def __init__(
        self, plan: JobPlan, folder: Path, net: Wires, program: Program | None, bug: str
    ) -> None:
        self.plan = plan
        self.net = net
        self.etcd: Etcd | None = None
        self._program = program
        self.disk = folder / "disk"
        self.kept = self.disk / "kept"
        """The old versions of registers: see attic.py."""
        ledger, endpoint = self._make_ledger(folder)
        super().__init__(folder, ledger, endpoint, RUN_ID)
        path = os.pathsep.join(map(str, (CLOCKS, SRC, ROOT)))
        self.machine.env |= SETTINGS | plan.settings
        self.machine.env |= {"PYTHONPATH": path, "RALLYPOINT_ENDPOINT": endpoint}
        self.machine.env |= {"CHAOS_BUG": bug} if bug else {}
        if plan.ledger == "file":
            self.machine.env |= {"CHAOS_KEPT": str(self.kept)}
        if plan.who == "replicas":
            self.machine.env["RALLYPOINT_HOST_COORDINATOR"] = "no"
        self.places: dict[str, Place] = {}
        for name in NODES:
            starts = self._start_agent if name in AGENTS else self._start_native
            self._place(name, starts)
        for name in SERVES if plan.who != "nodes" else ():
            self._place(name, self._start_serve)
        self.names = 0

    def _place(self, name: str, start: Callable[[str], None]) -> None:
        self.places[name] = Place(self.net.host(name), lambda: start(name))
        self.set_clock(name, 0.0)

    def _make_ledger(self, folder: Path) -> tuple[str, str]:
        if self.plan.ledger == "etcd":
            assert self._program is not None
            hosts = [self.net.host(name) for name in ETCDS]
            (folder / "etcd").mkdir(parents=True)
            self.etcd = Etcd(self._program, hosts, folder / "etcd")
            place = f"etcd://{','.join(self.etcd.options.endpoints)}/{PREFIX}"
            return place, place
        self.disk.mkdir(parents=True)
        options = f"size={DISK_BYTES}"
        mount = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(self.disk)]
        subprocess.run(mount, check=True, timeout=60)
        self.kept.mkdir()
        where = self.disk / "ledger"
        return f"file:{where}", f"file://{where}"

    # -- processes -----------------------------------------------------------------------------

    def fill(self) -> None:
        """Start what is missing, where its time has come."""
        now_s = time.monotonic()
        for name, place in self.places.items():
            if not place.is_alive and place.back_s <= now_s and not self.net.is_down(name):
                place.was_asked = False
                with place.host.inside():
                    place.start()

    def members(self) -> list[Place]:
        """The places of nodes."""
        return [self.places[name] for name in NODES]

    def restart_member(self, index: int) -> None:
        """Start a member of etcd again, on its disk."""
        assert self.etcd is not None
        old = self.etcd.members[index]
        assert old.process.poll() is not None
        hosts = [member.host for member in self.etcd.members]
        assert self._program is not None
        self.etcd.members[index] = Member(self._program, old.host, self.folder / "etcd", hosts)

    def _start_agent(self, name: str) -> None:
        files = (str(self.pause), str(self.fail))
        self._start_node(name, [str(AGENT), "run", str(WORKER), *files])

    def _start_native(self, name: str) -> None:
        self._start_node(name, [str(NATIVE), str(self.pause)])

    def _start_node(self, name: str, argv: list[str]) -> None:
        place, node_name = self.places[name], self._node_name(name)
        path = self.folder / f"{node_name}.{len(self.agents)}.jsonl"
        env = {"FAILOVER_LOG": str(path), "RALLYPOINT_NODE_NAME": node_name}
        process = self._start(name, argv, node_name, env)
        place.process = process
        place.agent = Agent(node_name, process, AheadLog(path, self.plan.clocks_s[name]))
        self.agents.append(place.agent)

    def _start_serve(self, name: str) -> None:
        place = self.places[name]
        argv = [*RALLYPOINT, "serve", "--port", str(SERVE_PORT), "--host", "0.0.0.0"]
        argv += ["--advertise", place.host.address, "--insecure", "--ledger", self.ledger]
        place.process = self._start(name, argv, f"{name}.{len(self.replicas)}", {})
        self.replicas.append(HostedReplica(place.process, SERVE_PORT, place.host))

    def _start(self, name: str, argv: list[str], title: str, env: dict[str, str]) -> Process:
        ahead = str(self.plan.clocks_s[name])
        in_time = ("unshare", "--time", "--monotonic", ahead, "--boottime", ahead)
        env |= {"CHAOS_CLOCK": str(self.folder / f"{name}.clock")}
        return self._process([*in_time, sys.executable, str(PROGRAM), *argv], title, env)

    def _node_name(self, host: str) -> str:
        """Each start has its own name, but every third has the name of its predecessor."""
        self.names += 1
        place = self.places[host]
        if place.agent is not None and self.names % 3 == 0:
            return place.agent.name
        return f"{host}-{self.names}"

    # -- faults of a host ----------------------------------------------------------------------

    def set_clock(self, name: str, wrong_s: float) -> None:
        """The host's wall clock is wrong by this much from now on."""
        path = self.folder / f"{name}.clock"
        path.with_suffix(".new").write_text(str(wrong_s))
        path.with_suffix(".new").replace(path)

    def fill_disk(self) -> None:
        """No byte is left on the ledger's disk."""
        with contextlib.suppress(OSError), (self.disk / "ballast").open("ab", buffering=0) as file:
            while True:
                file.write(bytes(1 << 12))

    def empty_disk(self) -> None:
        (self.disk / "ballast").unlink(missing_ok=True)

    def worker_pid(self, name: str) -> int | None:
        """The agent's worker, if it is alive."""
        agent = self.places[name].agent
        told = agent.log.events("working") if agent is not None else []
        return told[-1]["pid"] if told and alive(told[-1]["pid"]) else None

    def coordinator(self) -> str | None:
        """The host whose process decides, as far as can be seen from outside."""
        for name in SERVES if self.plan.who != "nodes" else ():
            place = self.places[name]
            if place.is_alive:
                replica = next(r for r in self.replicas if r.process is place.process)
                picture = replica.picture(RUN_ID, timeout_s=0.5)
                if picture and picture["attached"]:
                    return name
        latest = {
            name: told[-1]
            for name in NODES
            if (place := self.places[name]).is_alive
            and place.agent is not None
            and (told := place.agent.log.events("attached"))
        }
        top = max((each["term"] for each in latest.values()), default=0)
        hosts = [name for name, each in latest.items() if each["hosts"] and each["term"] == top]
        return hosts[0] if hosts else None

    def close(self) -> None:
        """End all, whatever state it is in."""
        self.net.kill_all()
        super().close()
        if self.etcd is not None:
            self.etcd.close()


@contextlib.contextmanager
def ground(plan: JobPlan, folder: Path, bug: str = "", release: str = "") -> Iterator[Ground]:
    """The hosts of one job, which are gone at the end.

    `bug`: planted in each process. `release`: of etcd; the newest one if it is empty.
    """
    program = None
    if plan.ledger == "etcd":
        program = next(each for each in programs() if release in ("", each.release))
    with wires(plan.seed) as net:
        made = None
        try:
            made = Ground(plan, folder, net, program, bug)
            yield made
        finally:
            if made is not None:
                made.close()
            if (folder / "disk").is_mount():
                umount = ["umount", "--lazy", str(folder / "disk")]
                subprocess.run(umount, check=True, timeout=60)


def skip_unless_possible() -> None:
    """Skip, with the reason, where this user or system cannot have such hosts."""
    netns.skip_unless_possible()
    if not Path("/dev/net/tun").exists():
        pytest.skip("there is no /dev/net/tun here, which the slow line needs")
    in_time = ["unshare", "--time", "--monotonic", "1", "true"]
    if subprocess.run(in_time, capture_output=True, timeout=30, check=False).returncode:
        pytest.skip("there are no time namespaces here (Linux 5.6, util-linux 2.36)")
