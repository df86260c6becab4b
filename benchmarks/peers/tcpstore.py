"""torch's TCPStore alone: a barrier of N. Each node adds one; the last sets the key that all await.

It has no ranks, no members and no settings. c10d's rendezvous and NVRx's are built on it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import timedelta
from typing import Final

from torch.distributed import TCPStore

from benchmarks.peers import common

TIMEOUT: Final = timedelta(seconds=300)
COLD_MAX: Final = 3


def meet(nodes: int, repeats: int) -> common.Measured:
    """Cold: each node connects first. Warm: all nodes are connected."""
    wanted = {"cold": min(repeats, COLD_MAX), "warm": repeats}
    found = common.Measured(common.versions("torch"), "threads of one process", wanted)
    for repeat in range(wanted["cold"]):
        with common.served(__package__ + ".tcpstore") as server:
            port = int(server.first_line)
            stores: list[TCPStore | None] = [None] * nodes

            def cold(index: int, port: int = port, stores: list[TCPStore | None] = stores) -> None:
                stores[index] = TCPStore("127.0.0.1", port, timeout=TIMEOUT, wait_for_workers=False)
                barrier(stores[index], nodes, "cold")

            threads = common.Threads(nodes)
            found.add("cold", threads.round(cold).span_s)
            if repeat == 0:
                warm(found, server, threads, stores, repeats)
    return found


def warm(
    found: common.Measured,
    server: common.Server,
    threads: common.Threads,
    stores: Sequence[TCPStore | None],
    repeats: int,
) -> None:
    """Rounds of connected nodes; the first one is not counted."""
    for number in range(repeats + 1):
        before_s = server.cpu_s()
        done = threads.round(coming(stores, f"warm{number}"))
        if number:
            found.add("warm", done.span_s)
            found.add("skew", done.skew_s)
            found.add("server_cpu", server.cpu_s() - before_s)


def coming(stores: Sequence[TCPStore | None], name: str) -> Callable[[int], object]:
    """The function by which each node enters the barrier."""
    return lambda index: barrier(stores[index], len(stores), name)


def barrier(store: TCPStore | None, nodes: int, name: str) -> None:
    """Count this node, and wait until all are counted."""
    assert store is not None
    if store.add(f"{name}/come", 1) == nodes:
        store.set(f"{name}/go", "1")
    else:
        store.wait([f"{name}/go"])


def serve(arguments: Sequence[str]) -> None:
    """The store's server."""
    store = TCPStore("127.0.0.1", 0, is_master=True, timeout=TIMEOUT, wait_for_workers=False)
    print(store.port, flush=True)
    common.until_stdin_ends()


if __name__ == "__main__":
    common.main(meet, serve=serve)
