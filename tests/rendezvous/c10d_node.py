"""One node over the c10d backend, in a process of its own. Steps come by stdin, answers go out.

    python c10d_node.py ENDPOINT MIN MAX [OPTION=VALUE ...]

next: next_rendezvous; waiting: num_nodes_waiting; hosts: whether the run's coordinator is in this
process; shutdown: shutdown, and end. Each answer is one line of JSON.
"""

from __future__ import annotations

import json
import sys

import torch.distributed  # noqa: F401 - as under torchrun

from rallypoint.rendezvous import RendezvousError, RendezvousParameters
from rallypoint.rendezvous.c10d_rendezvous_backend import create_backend
from rallypoint.rendezvous.dynamic_rendezvous import DynamicRendezvousHandler, create_handler


def answer(handler: DynamicRendezvousHandler, step: str) -> object:
    match step:
        case "next":
            info = handler.next_rendezvous()
            at = info.bootstrap_store_info
            assert at is not None
            # Rank 0 writes and all read: the store is the round's.
            if info.rank == 0:
                info.store.set("rank 0", str(at.master_port))
            said = info.store.get("rank 0").decode()
            return [info.rank, info.world_size, at.master_addr, at.master_port, int(said)]
        case "waiting":
            return handler.num_nodes_waiting()
        case "hosts":
            return handler._node is not None and handler._node.is_at_own
        case "shutdown":
            return handler.shutdown()
    raise ValueError(step)


def main() -> None:
    endpoint, least, most, *options = sys.argv[1:]
    config = dict(option.split("=", 1) for option in options)
    params = RendezvousParameters(
        "c10d", endpoint, "run", int(least), int(most), local_addr="127.0.0.1", **config
    )
    backend, store = create_backend(params)
    handler = create_handler(store, backend, params)
    print(json.dumps("ready"), flush=True)
    for line in sys.stdin:
        try:
            said = answer(handler, line.strip())
        except RendezvousError as error:
            said = {"error": type(error).__name__, "text": str(error)}
        print(json.dumps(said), flush=True)
        if line.strip() == "shutdown":
            return


if __name__ == "__main__":
    main()
