"""torchft's lighthouse (Rust and gRPC): a quorum of N replicas.

The server has the defaults of its command line (`torchft_lighthouse`): a tick of 100 ms, 60 s for
stragglers, a replica is gone after 5 s without a heartbeat.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from datetime import timedelta
from typing import Final

from torchft.coordination import LighthouseClient, LighthouseServer

from benchmarks.peers import common

TIMEOUT: Final = timedelta(seconds=300)
JOIN_TIMEOUT_MS: Final = 60_000
QUORUM_TICK_MS: Final = 100
HEARTBEAT_TIMEOUT_MS: Final = 5_000
HEARTBEAT_INTERVAL_S: Final = 0.1
"""The interval of torchft's manager."""
DEATH_NODES: Final = 8
COLD_MAX: Final = 3


def new(wanted: dict[str, int]) -> common.Measured:
    """An empty result with the version."""
    return common.Measured(common.versions("torchft"), "threads of one process", wanted)


def meet(nodes: int, repeats: int) -> common.Measured:
    """Cold: each node connects first. Warm: all are connected and have sent heartbeats."""
    found = new({"cold": min(repeats, COLD_MAX), "warm": repeats})
    for repeat in range(found.wanted["cold"]):
        with common.served(__package__ + ".torchft_lighthouse", nodes) as server:
            clients: list[LighthouseClient | None] = [None] * nodes
            threads = common.Threads(nodes)
            found.add("cold", threads.round(connecting(server, clients)).span_s)
            if repeat == 0:
                for number in range(repeats + 1):
                    before_s = server.cpu_s()
                    done = threads.round(asking(clients, number + 1))
                    if number:
                        found.add("warm", done.span_s)
                        found.add("skew", done.skew_s)
                        found.add("server_cpu", server.cpu_s() - before_s)
    return found


def connecting(
    server: common.Server, clients: list[LighthouseClient | None]
) -> Callable[[int], object]:
    """The function by which each node connects."""

    def connect(index: int) -> None:
        clients[index] = LighthouseClient(server.first_line, TIMEOUT)
        asking(clients, 0)(index)

    return connect


def asking(clients: Sequence[LighthouseClient | None], step: int) -> Callable[[int], object]:
    """The function by which each node asks for a quorum. Raises RuntimeError if it lacks nodes."""

    def ask(index: int) -> None:
        client = clients[index]
        assert client is not None
        quorum = client.quorum(name(index), TIMEOUT, step=step)
        if len(quorum.participants) != len(clients):
            raise RuntimeError(f"a quorum of {len(quorum.participants)}, not of {len(clients)}")

    return ask


def name(index: int) -> str:
    """A replica's name."""
    return f"replica{index:05d}"


def death(kind: str, repeats: int) -> common.Measured:
    """One of eight stops sending; the others ask at once: until the last one has its answer.

    The lighthouse watches heartbeats, not connections, so both kinds of death are the same to it.
    """
    found = new({kind: repeats})
    for _ in range(repeats):
        with common.served(__package__ + ".torchft_lighthouse", DEATH_NODES - 1) as server:
            clients: list[LighthouseClient | None] = [None] * DEATH_NODES
            for index in range(DEATH_NODES):
                client = clients[index] = LighthouseClient(server.first_line, TIMEOUT)
                client.heartbeat(name(index))
            beating = [threading.Event() for _ in clients]
            for index, ended in enumerate(beating):
                threading.Thread(target=beat, args=(clients[index], index, ended)).start()
            threads = common.Threads(DEATH_NODES)
            threads.round(asking(clients, 0))
            time.sleep(1.0)
            died_s = time.monotonic()
            beating[-1].set()
            survivors = common.Threads(DEATH_NODES - 1)
            done = survivors.round(asking(clients[:-1], 1))
            found.add(kind, done.span_s)
            assert time.monotonic() - died_s < TIMEOUT.total_seconds()
            for ended in beating:
                ended.set()
    return found


def beat(client: LighthouseClient | None, index: int, ended: threading.Event) -> None:
    """Send the heartbeats of a replica's manager."""
    assert client is not None
    while not ended.wait(HEARTBEAT_INTERVAL_S):
        client.heartbeat(name(index))


def serve(arguments: Sequence[str]) -> None:
    """Serve a lighthouse whose quorum needs at least this many replicas."""
    server = LighthouseServer(
        bind="127.0.0.1:0",
        min_replicas=int(arguments[0]),
        join_timeout_ms=JOIN_TIMEOUT_MS,
        quorum_tick_ms=QUORUM_TICK_MS,
        heartbeat_timeout_ms=HEARTBEAT_TIMEOUT_MS,
    )
    print(server.address(), flush=True)
    common.until_stdin_ends()


if __name__ == "__main__":
    common.main(meet, death, serve)
