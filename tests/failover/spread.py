"""etcd, coordinators and agents, each on a host of its own; and all that etcd was ever told."""

from __future__ import annotations

import asyncio
import contextlib
import secrets
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from rallypoint.checkers.election_checker import ElectionChecker
from rallypoint.core import election as e
from rallypoint.ledger import record_format
from rallypoint.ledger.etcd.options import EtcdOptions
from rallypoint.ledger.etcd.wire import Event as EtcdEvent
from rallypoint.ledger.etcd.wire import prefix_end
from tests.agent.processes import MAIN, Process
from tests.failover.fleet import Agent, Event, Fleet, Replica
from tests.failover.netns import Host
from tests.ledger.etcd_endpoints import client_of
from tests.ledger.etcd_processes import Program
from tests.waiting import wait_until

CLIENT_PORT = 2379
PEER_PORT = 2380
SERVE_PORT = 29400
READY_S = 30.0
RALLYPOINT = ("-c", MAIN)


class Member:
    """One member of etcd, with etcd's own timing, on a host."""

    def __init__(self, program: Program, host: Host, folder: Path, peers: Sequence[Host]) -> None:
        self.host = host
        client, peer = (f"http://{host.address}:{port}" for port in (CLIENT_PORT, PEER_PORT))
        options = {
            "name": host.name,
            "data-dir": str(folder / host.name),
            "listen-client-urls": client,
            "advertise-client-urls": client,
            "listen-peer-urls": peer,
            "initial-advertise-peer-urls": peer,
            "initial-cluster": ",".join(f"{h.name}=http://{h.address}:{PEER_PORT}" for h in peers),
        }
        argv = [program.path, *(f"--{name}={value}" for name, value in options.items())]
        with (folder / f"{host.name}.log").open("ab") as log, host.inside():
            self.process = subprocess.Popen(argv, stdout=log, stderr=log, stdin=subprocess.DEVNULL)

    @property
    def endpoint(self) -> str:
        return f"{self.host.address}:{CLIENT_PORT}"

    def leads(self) -> bool:
        """Whether it says so itself."""

        async def ask() -> bool:
            async with client_of(EtcdOptions(endpoints=(self.endpoint,))) as client:
                status = await client.status()
            return status.leader == status.header.member_id

        with self.host.inside():
            return asyncio.run(ask())

    def close(self) -> None:
        self.process.kill()
        self.process.wait(timeout=20)


class Etcd:
    """A cluster with a member on each of these hosts, ready."""

    def __init__(self, program: Program, hosts: Sequence[Host], folder: Path) -> None:
        self.members = [Member(program, host, folder, hosts) for host in hosts]
        self.options = EtcdOptions(
            endpoints=tuple(member.endpoint for member in self.members), timeout_s=READY_S
        )

        async def ready() -> None:
            async with client_of(self.options) as client:
                await client.range(b"ready")

        with hosts[0].inside():
            asyncio.run(ready())

    def leader(self) -> Member:
        """The leader; waits for one during an election."""
        return wait_until(lambda: [member for member in self.members if member.leads()])[0]

    def writes(self, seen_from: Host, prefix: str) -> list[EtcdEvent]:
        """All that was ever written or deleted under the prefix, in order."""

        async def read() -> list[EtcdEvent]:
            start, end = prefix.encode(), prefix_end(prefix.encode())
            events: list[EtcdEvent] = []
            async with client_of(self.options) as client:
                kvs = (await client.range(start, end, keys_only=True)).kvs
                last = max(each.mod_revision for each in kvs)
                watch = client.watch(start, end, start_revision=1)
                async with contextlib.aclosing(watch), asyncio.timeout(READY_S):
                    async for some in watch:
                        events += some
                        if events[-1].kv.mod_revision >= last:
                            break
            return events

        with seen_from.inside():
            return asyncio.run(read())

    def close(self) -> None:
        for member in self.members:
            member.close()


class HostedReplica(Replica):
    """A `rallypoint serve` on a host, asked from that host, so that no partition hides it."""

    def __init__(self, process: Process, port: int, host: Host) -> None:
        super().__init__(process, port)
        self.host = host

    def picture(self, run_id: str, timeout_s: float = 2.0) -> Event | None:
        with self.host.inside():
            return super().picture(run_id, timeout_s)


class Spread(Fleet):
    """One run whose coordinators and agents are on several hosts, and its ledger in etcd."""

    def __init__(self, folder: Path, etcd: Etcd) -> None:
        self.prefix = f"/test-{secrets.token_hex(6)}"
        place = f"etcd://{','.join(etcd.options.endpoints)}{self.prefix}"
        super().__init__(folder, place, place)
        # The defaults.
        del self.machine.env["RALLYPOINT_LAST_CALL"]
        self.etcd = etcd
        self.host_of: dict[str, Host] = {}

    def serve_on(self, host: Host, *options: str) -> HostedReplica:
        """A coordinator on this host, for all hosts."""
        argv = [sys.executable, *RALLYPOINT, "serve", "--port", str(SERVE_PORT)]
        argv += ["--host", "0.0.0.0", "--advertise", host.address, "--insecure"]
        argv += ["--ledger", self.ledger, *options]
        with host.inside():
            process = self._process(argv, f"replica{len(self.replicas)}", {})
        process.line("is ready at")
        replica = HostedReplica(process, SERVE_PORT, host)
        self.replicas.append(replica)
        return replica

    def start_on(
        self, hosts: Sequence[Host], nnodes: str, *options: str, **env: str
    ) -> list[Agent]:
        """An agent on each of these hosts."""
        started: list[Agent] = []
        for host in hosts:
            with host.inside():
                started += self.start(1, nnodes, *options, **env)
            self.host_of[started[-1].name] = host
        return started

    def hosting(self) -> Agent:
        """The agent whose node is the coordinator of the others, once there is one."""

        def look() -> list[Agent]:
            attached = [(a, a.log.events("attached")) for a in self.living]
            latest = {a.name: each[-1] for a, each in attached if each}
            top = max((each["term"] for each in latest.values()), default=0)
            return [
                a for a in self.living
                if a.name in latest and latest[a.name]["hosts"] and latest[a.name]["term"] == top
            ]  # fmt: skip

        return self.wait(look)[0]

    def status_at(self, host: Host) -> str:
        """What `rallypoint status` prints there of the coordinator at that host."""
        argv = [sys.executable, *RALLYPOINT, "status", self.run_id]
        argv += ["--endpoint", f"http://{host.address}:{SERVE_PORT}"]
        with host.inside():
            done = subprocess.run(
                argv, env=self.machine.env, capture_output=True, text=True, timeout=30, check=False
            )
        return done.stdout + done.stderr

    def check_ledger(self, seen_from: Host) -> None:
        """R1, R5, R6, R13 hold for every write, and nodes got the same."""
        checker = ElectionChecker()
        rounds: dict[int, tuple[int, str]] = {}
        root = f"{self.prefix}/r/"
        for event in self.etcd.writes(seen_from, root):
            key = event.kv.key.decode().removeprefix(root)
            value = (
                b"" if event.type == "DELETE" else record_format.unseal(event.kv.value, key).value
            )
            kind, _, name = key.partition("/")
            if kind == "coordinators":
                checker.lease_written(e.decode_lease(value)) if value else checker.lease_swept(name)
            elif kind == "runs" and value:
                register = e.decode_run(value)
                checker.run_written(register)
                if register.round is not None:
                    head = register.round
                    rounds[head.number] = (head.term, head.digest)
        told = [each for agent in self.agents for each in agent.log.events("formed")]
        for each in told:
            term, digest = rounds[each["round"]]
            assert each["digest"] == digest, f"round {each['round']} differs: {each}"
            assert each["term"] == term, f"round {each['round']} was committed in term {term}"
        self.check_rounds()

    def close(self) -> None:
        super().close()
        self.etcd.close()
