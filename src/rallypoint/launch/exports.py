"""`rallypoint run --export tf`: gives a worker TF_CONFIG, and then becomes the worker's program.

The agent starts `python -m rallypoint.launch.exports PROGRAM...` in place of PROGRAM. Every
process of TensorFlow listens at a port of its own, and each needs the list of all. So the workers
choose their ports, and tell them to each other in the round's store, before the programs begin.
"""

from __future__ import annotations

import json
import os
import socket
import sys
from collections.abc import Sequence
from typing import Final

from rallypoint.client.blocking import World, join
from rallypoint.client.join_plan import plan
from rallypoint.core.values import Address
from rallypoint.launch.worker_env import inherited_environment

_PREFIX: Final = "rallypoint.exports/tf"


def tf_config(workers: Sequence[str], rank: int) -> str:
    """TF_CONFIG for the worker of this rank. `workers`: the `host:port` of all, in rank order.

    Source: tf.distribute.cluster_resolver.TFConfigClusterResolver of TensorFlow 2.
    """
    cluster = {"worker": list(workers)}
    return json.dumps({"cluster": cluster, "task": {"type": "worker", "index": rank}})


def workers_of(world: World) -> list[str]:
    """Choose a port for this worker, and return the addresses of all workers in rank order."""
    with socket.create_server(("", 0)) as sock:
        member = world.members[world.node_rank]
        host = member.addresses[0] if member.addresses else member.host
        keys = [f"{_PREFIX}/{rank}" for rank in range(world.size)]
        world.store.set(keys[world.rank], str(Address(host, sock.getsockname()[1])))
        # The port is held until all have one, so that no two workers of a host have the same.
        return [each.decode() for each in world.store.multi_get(keys)]


def main(command: Sequence[str]) -> None:
    """Become this command, with the variable."""
    run = join(
        plan(None, None, min_nodes=None, max_nodes=None, token=None, labels=None, options={})
    )
    world = run.next_world()
    if world is None:
        sys.exit("the run is over")
    config = tf_config(workers_of(world), world.rank)
    # The connection to the agent is closed by it. The program may join again, as the same worker.
    os.execvpe(command[0], list(command), inherited_environment() | {"TF_CONFIG": config})


if __name__ == "__main__":
    main(sys.argv[1:])
