"""torch's process group for one world: `with world, rallypoint.torch.process_group(world):`.

Nothing in the package imports this file: a program that uses it says `import rallypoint.torch`.
torch is imported when a function here needs it.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from datetime import timedelta
from typing import Any, Final
from weakref import WeakKeyDictionary

from rallypoint import errors
from rallypoint.client.blocking import World
from rallypoint.client.peer_sockets import PeerSockets, freed
from rallypoint.rendezvous import _torch_bridge

TIMEOUT_S: Final = 120.0
"""How long a collective waits by default. torch's own default is 30 minutes, 10 with NCCL."""
UNWIND_S: Final = 1.0
"""How long a program has by default, after the end of the world, to leave the block by itself."""

_blocks: WeakKeyDictionary[World, int] = WeakKeyDictionary()
"""How many groups each world has had. Each has its own keys in the world's store."""


@contextlib.contextmanager
def process_group(
    world: World,
    backend: str = "gloo",
    *,
    timeout: timedelta | float = TIMEOUT_S,
    unwind_s: float = UNWIND_S,
    **options: Any,
) -> Iterator[Any]:
    """torch's default process group for this world, until the end of the block.

    Enter it inside `with world:`, so that an error which the end of the world explains does not end
    the program. All workers of the world must enter it. In a later world, the same process may
    enter another one.

    If the world ends while a collective waits for a peer that is frozen or gone, the block has
    `unwind_s` to end by itself. Then the collective is ended with an error: NCCL's by abort, gloo's
    by shutting down the connections that it has opened to its peers (on Linux). Groups of
    `torch.distributed.new_group` end by their own timeout with gloo.

    Args:
        world: the world, from `rallypoint.join`.
        backend: as for `init_process_group`: "gloo", "nccl", "cpu:gloo,cuda:nccl", ...
        timeout: how long a collective waits, as a timedelta or in seconds. It must be longer than
            what one rank does alone between two collectives.
        unwind_s: see above.
        options: further arguments of `init_process_group`.

    Raises:
        RuntimeError: torch is not installed.
        UsageError: this process has a process group already, or `world` is none of these worlds.
        RoundBrokenError: the world has ended before the group was formed.
    """
    _torch_bridge.require("rallypoint.torch")
    import torch.distributed as dist

    if not isinstance(world, World):
        raise errors.UsageError(f"process_group needs a World of rallypoint.join, not {world!r}")
    if dist.is_initialized():
        raise errors.UsageError(
            "this process has a process group already; end its block, or call "
            "torch.distributed.destroy_process_group(), before the next one"
        )
    sockets = PeerSockets()
    prefix = f"rallypoint.torch/{world.term}.{world.number}/{_blocks.get(world, 0)}"
    _blocks[world] = _blocks.get(world, 0) + 1
    # Not world.store, whose timeout is the program's own. The bridge keeps the store alive for
    # torch's C++, which keeps only its own half.
    store = _torch_bridge.round_store_of(world._portal, world._world.store)
    store.set_timeout(timeout)
    limit = timeout if isinstance(timeout, timedelta) else timedelta(seconds=timeout)
    try:
        dist.init_process_group(
            backend,
            store=dist.PrefixStore(prefix, store),
            rank=world.rank,
            world_size=world.size,
            timeout=limit,
            **options,
        )
        if "gloo" in backend:
            sockets.meet(store, prefix, world.rank, world.size)
        with freed(world, unwind_s, lambda: _free(backend, sockets)):
            yield dist.group.WORLD
    except BaseException:
        # Before the group is destroyed: that would wait for NCCL's open collectives.
        _abort(backend)
        raise
    finally:
        if dist.is_initialized():
            dist.destroy_process_group()


def _free(backend: str, sockets: PeerSockets) -> None:
    _abort(backend)
    sockets.shut_down()


def _abort(backend: str) -> None:
    """End the collectives of NCCL, of all groups. The groups stay, so that later calls fail."""
    import torch
    import torch.distributed as dist

    if "nccl" in backend and dist.is_initialized():
        for group in reversed(list(dist.distributed_c10d._world.pg_names)):
            with contextlib.suppress(RuntimeError):  # it has no backend for GPUs
                group._get_backend(torch.device("cuda")).abort()


__all__ = ["process_group"]
