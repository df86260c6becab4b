"""JAX's coordination service (jaxlib, C++ and gRPC): its barrier.

Ranks and the number of nodes are given beforehand, so this is less than a rendezvous: nodes do not
find each other. `connect` (cold) waits until all have connected.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from typing import Any, Final

from jaxlib import _jax

from benchmarks.peers import common

TIMEOUT_S: Final = 300
COLD_MAX: Final = 3


def meet(nodes: int, repeats: int) -> common.Measured:
    """Cold: `connect`, which is a barrier too. Warm: a barrier of connected nodes."""
    wanted = {"cold": min(repeats, COLD_MAX), "warm": repeats}
    found = common.Measured(common.versions("jaxlib"), "threads of one process", wanted)
    for repeat in range(wanted["cold"]):
        port = common.free_port()
        # A client ends its process when its service ends, so the service is kept until then.
        server = _kept.enter_context(common.served(__package__ + ".jax_coordination", port, nodes))
        clients: list[Any] = [None] * nodes
        _clients.append(clients)

        def cold(index: int, port: int = port, clients: list[Any] = clients) -> None:
            clients[index] = _jax.get_distributed_runtime_client(
                f"127.0.0.1:{port}",
                index,
                init_timeout=TIMEOUT_S,
                shutdown_on_destruction=False,
            )
            clients[index].connect()

        threads = common.Threads(nodes)
        found.add("cold", threads.round(cold).span_s)
        if repeat == 0:
            warm(found, server, threads, clients, repeats)
    return found


_kept = contextlib.ExitStack()
_clients: list[list[Any]] = []


def warm(
    found: common.Measured,
    server: common.Server,
    threads: common.Threads,
    clients: Sequence[Any],
    repeats: int,
) -> None:
    """Barriers of all nodes; the first one is not counted."""
    for number in range(repeats + 1):
        before_s = server.cpu_s()
        done = threads.round(coming(clients, f"warm{number}"))
        if number:
            found.add("warm", done.span_s)
            found.add("skew", done.skew_s)
            found.add("server_cpu", server.cpu_s() - before_s)


def coming(clients: Sequence[Any], name: str) -> Callable[[int], object]:
    """The function by which each node enters the barrier."""
    return lambda index: clients[index].wait_at_barrier(name, TIMEOUT_S * 1_000)


def serve(arguments: Sequence[str]) -> None:
    """Serve the coordination service."""
    port, nodes = arguments
    service = _jax.get_distributed_runtime_service(f"127.0.0.1:{port}", int(nodes))
    print(port, flush=True)
    common.until_stdin_ends()
    del service


if __name__ == "__main__":
    common.main(meet, serve=serve)
