"""What tests of a handler that is a node wait for, and the calls of torchrun's exit barrier.

What must not be here: a test.
"""

from __future__ import annotations

from datetime import timedelta
from typing import Any

from rallypoint.rendezvous._node_handler import NodeRendezvousHandler
from rallypoint.rendezvous._stores import TERMINAL_STATE
from tests.waiting import wait_until

SOON_S = 20.0
"""Far above what a push takes, far below every timeout that is not the one under test."""
LATE_S = 5.0


def told(handler: NodeRendezvousHandler) -> None:
    """Wait until the handler calls its node to rendezvous again."""
    wait_until(lambda: handler.num_nodes_waiting() > 0, SOON_S)


def exit_barrier(store: Any, size: int, timeout_s: float) -> None:
    """As torchrun's agent does when its workers have finished: these calls, and no others."""
    store.set_timeout(timedelta(seconds=timeout_s))
    if store.add(f"{TERMINAL_STATE}/num_members", 1) == size:
        store.set(f"{TERMINAL_STATE}/last_member", "<val_ignored>")
    store.wait([f"{TERMINAL_STATE}/last_member"])
