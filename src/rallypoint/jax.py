"""JAX's distributed runtime for a world: `rallypoint.jax.initialize(world)`.

Nothing in the package imports this file: a program that uses it says `import rallypoint.jax`.
JAX is imported when a function here needs it.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any, Final

from rallypoint import settings
from rallypoint.client.blocking import Run, World
from rallypoint.client.peer_sockets import PeerSockets, freed

INITIALIZATION_TIMEOUT_S: Final = 60
HEARTBEAT_TIMEOUT_S: Final = 30
"""After how long JAX counts a silent process as lost: as Rallypoint's own `lost_after_s`."""
SHUTDOWN_TIMEOUT_S: Final = 5
"""How long JAX waits for the other processes when a world has ended. Some may be gone."""

UNWIND_S: Final = 1.0
"""How long a program has by default, after the end of a world, to ask for the next."""


def initialize(
    world: World, local_device_ids: int | Sequence[int] | None = None, **options: Any
) -> None:
    """`jax.distributed.initialize` with the address, the size and the rank of this world.

    JAX does not look for a launcher: under Slurm it would count the agents as its processes. Its
    preemption notifier is off, because it catches the SIGTERM with which an agent stops a worker.

    Args:
        world: the world, from `rallypoint.join`.
        local_device_ids: which of the visible GPUs this process uses. By default the one with the
            number of its local rank, if its node has several workers; all if it has one worker, or
            if CUDA_VISIBLE_DEVICES names just one.
        options: further arguments of `jax.distributed.initialize`.

    Raises:
        ImportError: JAX is not installed.
        RuntimeError: JAX has been used before in this process, or the other processes have not
            come within `initialization_timeout` seconds (60 by default).
    """
    import jax

    jax.config.update("jax_enable_preemption_service", False)
    if (
        local_device_ids is None
        and world.local_size > 1
        and len(settings.visible_gpus() or ()) != 1
    ):
        local_device_ids = [world.local_rank]
    given = {
        "initialization_timeout": INITIALIZATION_TIMEOUT_S,
        "heartbeat_timeout_seconds": HEARTBEAT_TIMEOUT_S,
        "shutdown_timeout_seconds": SHUTDOWN_TIMEOUT_S,
        **options,
    }
    jax.distributed.initialize(
        str(world.bootstrap),
        world.size,
        world.rank,
        local_device_ids=local_device_ids,
        cluster_detection_method="deactivate",
        **given,
    )


def worlds(run: Run, unwind_s: float = UNWIND_S, **options: Any) -> Iterator[World]:
    """`run.worlds()`, with JAX initialized for each world and shut down after it.

    Between two worlds all compiled functions, and all arrays on devices, are gone: keep the state
    as numpy arrays over the end of a world. Use each world as `with world:`.

    JAX ends the process if its rank 0 is lost, because rank 0 serves the others. The loss of any
    other rank ends no process: `jax_enable_recoverability` is switched on.

    If the world ends while a collective waits for a process that is frozen or gone, the program has
    `unwind_s` to ask for the next world. Then the collective is ended with an error, on CPUs under
    Linux: gloo's connections are shut down.

    Args:
        run: the run, from `rallypoint.join`.
        unwind_s: see above.
        options: as for `initialize`.

    Raises the errors of `run.worlds()` and of `initialize`.
    """
    import jax

    jax.config.update("jax_enable_recoverability", True)
    for world in run.worlds():
        sockets, is_ready = PeerSockets(), False
        try:
            with world:  # it may end while JAX waits for the others
                initialize(world, **options)
                jax.devices()  # gloo listens from now on, and connects at the first collective
                sockets.meet(world.store, "rallypoint.jax", world.rank, world.size)
                is_ready = True
            if is_ready:
                with freed(world, unwind_s, sockets.shut_down):
                    yield world
        finally:
            _shut_down()


def _shut_down() -> None:
    """End the runtime of a world, and forget what belongs to it, also if other processes are gone.

    JAX keeps its state if its own shutdown fails, and then refuses to be initialized again.
    """
    import jax
    import jax.extend.backend
    from jax._src import distributed

    with contextlib.suppress(RuntimeError):  # JaxRuntimeError: a process is gone
        jax.distributed.shutdown()
    state = distributed.global_state
    state.client = state.service = state.preemption_sync_manager = None
    jax.clear_caches()
    jax.extend.backend.clear_backends()


__all__ = ["initialize", "worlds"]
