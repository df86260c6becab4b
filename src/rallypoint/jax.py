"""JAX's distributed runtime for a world: `rallypoint.jax.initialize(world)`.

Nothing in the package imports this file: a program that uses it says `import rallypoint.jax`.
JAX is imported when a function here needs it.
"""

from __future__ import annotations

import atexit
import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Final

from rallypoint import errors, settings
from rallypoint.client.blocking import Run, World
from rallypoint.client.kept_service import keep, keep_beside, wait_for_end
from rallypoint.client.peer_sockets import PeerSockets, ServicePort, freed

INITIALIZATION_TIMEOUT_S: Final = 60
HEARTBEAT_TIMEOUT_S: Final = 30
"""After how long JAX counts a silent process as lost: as Rallypoint's own `lost_after_s`."""
SHUTDOWN_TIMEOUT_S: Final = 5
"""How long rank 0 of `worlds` waits for others that may be frozen, when its program ends.

`unwind_s` is added. A program that only calls `initialize` waits as long as JAX does, for 300 s: in
`jax.distributed.shutdown()`, which aborts all processes if one does not come.
"""

UNWIND_S: Final = 1.0
"""How long a program has by default, after the end of a world, to ask for the next."""


def initialize(
    world: World, local_device_ids: int | Sequence[int] | None = None, **options: Any
) -> None:
    """`jax.distributed.initialize` with the address, the size and the rank of this world.

    JAX does not look for a launcher: under Slurm it would count the agents as its processes. Its
    preemption notifier is off, because it catches the SIGTERM with which an agent stops a worker.

    All processes of the world must call it. It waits for them in the world's store first, because
    JAX would wait longer than the world lasts, and then abort the process.

    Args:
        world: the world, from `rallypoint.join`.
        local_device_ids: which of the visible GPUs this process uses. By default the one with the
            number of its local rank, if its node has several workers; all if it has one worker, or
            if CUDA_VISIBLE_DEVICES names just one.
        options: further arguments of `jax.distributed.initialize`.

    Raises:
        ImportError: JAX is not installed.
        RoundBrokenError: the world has ended.
        StoreTimeoutError: other processes have not called it within `initialization_timeout`
            seconds (60 by default). It names their ranks.
        RuntimeError: JAX has been used before in this process.
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
        **options,
    }
    world.barrier("rallypoint.jax", given["initialization_timeout"])
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

    Rank 0's process serves JAX's runtime to the others. If it leaves a world before them, it goes
    on to serve them until they have left it, too. At the end of its program it waits for them, for
    at most `unwind_s` and SHUTDOWN_TIMEOUT_S (5 s). JAX ends the others if that process is killed,
    or gone after this time. The loss of any other rank ends no process:
    `jax_enable_recoverability` is switched on.

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
    atexit.unregister(_end_all)
    atexit.register(_end_all)  # the last one runs first: before JAX's own
    while (world := _next_world(run)) is not None:
        sockets, is_ready = PeerSockets(), False
        service = ServicePort(world.bootstrap.port)
        _running[service] = unwind_s + SHUTDOWN_TIMEOUT_S
        try:
            with world:  # it may end while JAX waits for the others
                initialize(world, **options)
                service.learn()
                jax.devices()  # gloo listens from now on, and connects at the first collective
                sockets.meet(world.store, "rallypoint.jax", world.rank, world.size)
                is_ready = True
            if is_ready:
                with freed(world, unwind_s, sockets.shut_down):
                    yield world
        finally:
            _end(service, keep_beside)


def _next_world(run: Run) -> World | None:
    try:
        return next(run.worlds(), None)
    except errors.LaunchError:
        # A service that is kept may have the last port of a narrow --port-range.
        if not wait_for_end(INITIALIZATION_TIMEOUT_S):
            raise
        return next(run.worlds(), None)


_running: dict[ServicePort, float] = {}
"""The port of the world for which JAX runs; none between two worlds.

The value: how long rank 0 waits for the others at the end of its program.
"""


def _end_all() -> None:
    """End JAX in a program that ends inside of `worlds`."""
    for service in list(_running):
        _end(service, keep)


def _end(port: ServicePort, keep_service: Callable[..., None]) -> None:
    """End the runtime of a world, and forget what belongs to it, also if other processes are gone.

    JAX keeps its state if its own shutdown fails, and then refuses to be initialized again.
    """
    import jax
    import jax.extend.backend
    from jax._src import distributed

    last_s = _running.pop(port, None)
    if last_s is None:  # the interpreter has ended it, and now `worlds` is closed
        return
    state = distributed.global_state
    # The service goes on. JAX would end it now, and abort each process whose client still uses it:
    # with recoverability, no client waits for the others when it shuts down.
    service, state.service = state.service, None
    with contextlib.suppress(RuntimeError):  # JaxRuntimeError: a process is gone
        jax.distributed.shutdown()
    state.client = state.preemption_sync_manager = None
    port.hang_up()
    try:
        jax.clear_caches()
        jax.extend.backend.clear_backends()
    finally:
        if service is not None:
            keep_service(port, service.shutdown, last_s)


__all__ = ["initialize", "worlds"]
