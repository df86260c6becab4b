"""Ports for what a test starts: free, and given to no other test before they are used."""

from __future__ import annotations

import contextlib
import os
import random
import socket


def free_ports(count: int) -> list[int]:
    """Ports that were free a moment ago, at any address, below those of connections.

    One of those that the system gives could become another test's before it is used; and a client
    that looks for a server which is dead just now could be given its port as its own, and be
    connected to itself. Tests that run side by side (pytest -n) are not given the same ones.
    """
    own = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw"))
    step = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
    # Drawn by the system: hypothesis seeds `random` alike in all processes.
    chance = random.SystemRandom()
    ports: list[int] = []
    while len(ports) < count:
        port = chance.randrange(15_000 + own, 29_000, step)
        if port not in ports and _is_free(port):
            ports.append(port)
    return ports


def free_port() -> int:
    """One of them."""
    return free_ports(1)[0]


def _is_free(port: int) -> bool:
    is_dual = socket.has_dualstack_ipv6()
    with socket.socket(socket.AF_INET6 if is_dual else socket.AF_INET) as sock:
        if is_dual:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        with contextlib.suppress(OSError):
            sock.bind(("", port))
            return True
    return False
