"""A service of a library in rank 0's process, which must not end before its clients have.

A process leaves a world when it is ready for the next one, so rank 0 may be the first. Then the
library would take the end of its service for the loss of rank 0.

What must not be here: knowledge of torch or JAX.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable
from typing import Final

from rallypoint.client import blocking
from rallypoint.client.peer_sockets import ServicePort

_PAUSE_S: Final = 0.02
_PAUSE_S_MAX: Final = 0.5
"""How often a service is looked at: less often, the longer a client stays."""

_keepers: list[threading.Thread] = []


def keep(port: ServicePort, end: Callable[[], object], last_s: float) -> None:
    """Call `end` as soon as no client is connected to the port. Blocks until then.

    While the program runs, clients may take any time. When it ends, they have `last_s`, and so they
    have where the system does not tell who is connected. What is connected after that is cut.
    """
    deadline_s, pause_s = math.inf, _PAUSE_S
    while time.monotonic() < deadline_s and (port.is_used() or not port.is_visible):
        is_ending = _is_program_ending()
        if math.isinf(deadline_s) and (is_ending or not port.is_visible):
            deadline_s = time.monotonic() + last_s
        if is_ending:
            blocking.leave_open_runs()  # the other processes leave the world when they learn it
        time.sleep(pause_s)
        pause_s = min(_PAUSE_S_MAX, 1.5 * pause_s)
    port.cut()
    end()


def _is_program_ending() -> bool:
    """Whether the interpreter waits only for services."""
    ended = threading.main_thread()
    others = (each for each in threading.enumerate() if each not in (ended, *_keepers))
    return not ended.is_alive() and all(each.daemon for each in others)


def keep_beside(port: ServicePort, end: Callable[[], object], last_s: float) -> None:
    """As `keep`, in a thread. The interpreter waits for it before it ends."""
    keeper = threading.Thread(target=keep, args=(port, end, last_s), name="rallypoint-service")
    _keepers[:] = [each for each in _keepers if each.is_alive()]
    _keepers.append(keeper)
    keeper.start()


def wait_for_end(within_s: float) -> bool:
    """Wait until no service is kept any more. Returns whether one was kept when this was called."""
    kept = [each for each in _keepers if each.is_alive()]
    deadline_s = time.monotonic() + within_s
    for each in kept:
        each.join(max(0.0, deadline_s - time.monotonic()))
    return bool(kept)
