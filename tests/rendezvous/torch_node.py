"""A node in a process that uses torch as torchrun's agent does; what it found, as a line of JSON.

torch_node.py ENDPOINT ROUNDS
"""

import json
import os
import sys
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.elastic.rendezvous import (
    RendezvousConnectionError,
    RendezvousError,
    RendezvousParameters,
    RendezvousTimeoutError,
)
from torch.distributed.elastic.rendezvous.registry import get_rendezvous_handler

import rallypoint.rendezvous as ours


def listeners() -> int:
    """How many TCP ports this process listens on."""
    sockets = {
        os.readlink(f"/proc/self/fd/{fd}")  # noqa: PTH115
        for fd in os.listdir("/proc/self/fd")  # noqa: PTH208
        if os.path.islink(f"/proc/self/fd/{fd}")  # noqa: PTH114
    }
    count = 0
    for table in ("tcp", "tcp6"):
        with open(f"/proc/net/{table}") as file:  # noqa: PTH123
            for line in file:
                fields = line.split()
                count += fields[3] == "0A" and f"socket:[{fields[9]}]" in sockets
    return count


def group(store: Any, rank: int, size: int) -> float:
    """The sum of all ranks plus one, by gloo over this store."""
    dist.init_process_group(
        "gloo", store=store, rank=rank, world_size=size, timeout=timedelta(seconds=60)
    )
    numbers = torch.tensor([rank + 1.0])
    dist.all_reduce(numbers)
    dist.barrier()
    dist.destroy_process_group()
    return float(numbers.item())


def main() -> None:
    endpoint, rounds = sys.argv[1], int(sys.argv[2])
    params = RendezvousParameters(
        "rallypoint", endpoint, "run", 2, 2, local_addr="127.0.0.1", last_call=1
    )
    handler = get_rendezvous_handler(params)
    found: dict[str, Any] = {"use_agent_store": handler.use_agent_store, "rounds": []}
    for _ in range(rounds):
        info = handler.next_rendezvous()
        store, at = info.store, info.bootstrap_store_info
        assert isinstance(store, dist.Store)
        sums = [
            group(dist.PrefixStore("plain", store), info.rank, 2),
            group(
                # What a worker does under torchrun: a client of the store that rank 0's agent has.
                dist.TCPStore(at.master_addr, at.master_port, is_master=False),
                info.rank,
                2,
            ),
        ]
        missing = "no error"
        store.set_timeout(timedelta(seconds=2.0))
        try:
            store.get("what nobody writes")
        except dist.DistStoreError as error:
            missing = str(error)
        found["rounds"].append(
            {
                "rank": info.rank,
                "address": f"{at.master_addr}:{at.master_port}",
                "sums": sums,
                "missing": missing,
                "listeners": listeners(),
                "fds": len(os.listdir("/proc/self/fd")),  # noqa: PTH208
                "threads": len(os.listdir("/proc/self/task")),  # noqa: PTH208
            }
        )
    other = RendezvousParameters(
        "rallypoint", endpoint, f"lone{os.getpid()}", 2, 2, join_timeout=0.2
    )
    lone = get_rendezvous_handler(other)
    lone.is_closed()  # admitted, however long that takes
    try:
        lone.next_rendezvous()
    except RendezvousTimeoutError as error:
        found["timeout"] = [
            isinstance(error, RendezvousError),
            isinstance(error, ours.RendezvousTimeoutError),
        ]
    lone.shutdown()
    nobody = RendezvousParameters(
        "rallypoint", "127.0.0.1:1", "run", 2, 2, read_timeout=0.2, is_host=False
    )
    try:
        get_rendezvous_handler(nobody).next_rendezvous()
    except RendezvousConnectionError as error:
        found["unreachable"] = str(error)
    found["closed"] = handler.shutdown()
    print(json.dumps(found), flush=True)


if __name__ == "__main__":
    main()
