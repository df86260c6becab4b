"""NVRx's barrier rendezvous (nvidia-resiliency-ext): counters in a TCPStore, polled.

A process a node, with the handler as its launcher makes it. The first node's process holds the
store and closes the rounds. A warm round is opened, and all have read that, before any of them
calls. Its launcher's nodes find that out in the call, and then sleep a second.
"""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Callable
from datetime import timedelta
from types import SimpleNamespace
from typing import Any, Final

from nvidia_resiliency_ext.fault_tolerance import ft_rendezvous_barrier as nvrx
from torch.distributed import TCPStore

from benchmarks.peers import common

WARM_MAX: Final = 5
COLD_MAX: Final = 2
TIMEOUT: Final = timedelta(seconds=300)


def meet(nodes: int, repeats: int) -> common.Measured:
    """Cold: each node connects to the store and makes its handler. Warm: the rounds after that."""
    cold, warm = min(repeats, COLD_MAX), min(repeats, WARM_MAX)
    versions = common.versions("nvidia-resiliency-ext", "torch")
    found = common.Measured(versions, "a process each", {"cold": cold, "warm": warm})
    for repeat in range(cold):
        rounds = 1 + (2 * warm if repeat == 0 else 0)
        processes = common.Processes(nodes, rounds, node(common.free_port(), nodes))
        try:
            found.add("cold", processes.round().span_s)
            for _ in range(rounds // 2):
                processes.round()  # Here the round is opened, and each node reads that.
                done = processes.round()
                found.add("warm", done.span_s)
                found.add("skew", done.skew_s)
        finally:
            processes.end()
    return found


def node(port: int, nodes: int) -> Callable[[int], Callable[[], object]]:
    """The function that makes a node within its process. Then it syncs and meets in turns."""

    def make(index: int) -> Callable[[], object]:
        os.environ["SLURM_PROCID"] = str(index)
        # Its name has the id of the process that imported it, from which this one was forked.
        nvrx.FT_LAUNCHER_IPC_SOCKET = f"{tempfile.gettempdir()}/_ft_launcher{os.getpid()}.socket"
        store = TCPStore(
            "127.0.0.1", port, is_master=index == 0, timeout=TIMEOUT, wait_for_workers=False
        )
        handler = nvrx.FtRendezvousBarrierHandler.from_backend(
            "peers", store, None, nodes, nodes, f"127.0.0.{index}", is_store_host=index == 0
        )
        spec: Any = SimpleNamespace(local_world_size=1)
        handler.set_worker_group(SimpleNamespace(spec=spec))
        turns = {"calls": 0}

        def act() -> None:
            turns["calls"] += 1
            if turns["calls"] % 2:
                handler.next_rendezvous()
            else:
                state = handler._barrier_state
                if index == 0:
                    state.open_rendezvous()
                # Every node reads it here; the nodes of its launcher read it in the call.
                while not state.is_next_round_open():
                    time.sleep(0.01)
                state._sync_from_per_round_state()

        return act

    return make


if __name__ == "__main__":
    common.main(meet)
