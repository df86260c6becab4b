"""`rallypoint serve`, which kills itself at one step of forming a round; once for all who share
the marker.

    python faulty_serve.py STEP MARKER serve --ledger ...
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable
from typing import Any, Final

from rallypoint.cli.main import main
from rallypoint.coordinator.frames import WebSocketOutlet
from rallypoint.coordinator.hosted_run import HostedRun
from rallypoint.coordinator.lease_manager import LeaseManager
from rallypoint.core import effects as do
from rallypoint.core import election as e
from rallypoint.core import events as on
from rallypoint.wire import messages as wire

_marker = ""


def die_once() -> None:
    """As `kill -9` does; a process that comes here after another one goes on."""
    try:
        os.close(os.open(_marker, os.O_CREAT | os.O_EXCL))
    except FileExistsError:
        return
    os.kill(os.getpid(), signal.SIGKILL)


def at_the_last_ready() -> None:
    step = HostedRun._step

    def faulty(self: HostedRun, event: on.Event) -> None:
        settings = self.membership.settings
        is_last = settings is not None and len(self.membership.roster) == settings.max_nodes
        if isinstance(event, on.NodeReady) and is_last:
            die_once()
        step(self, event)

    replace(HostedRun, "_step", faulty)


def at_the_commit() -> None:
    def faulty(self: HostedRun, effect: do.Commit) -> None:
        die_once()
        self._commit(effect)

    _in_table(do.Commit, faulty)


def at_the_first_read() -> None:
    read = LeaseManager.read

    async def faulty(self: LeaseManager, key: str) -> e.Versioned | None:
        found = await read(self, key)
        if key.startswith("runs/"):
            die_once()
        return found

    replace(LeaseManager, "read", faulty)


def around_the_swap(is_before: bool, number: int) -> None:
    """`number`: of the round that the register then has; 0: the run is claimed."""
    swap = LeaseManager.swap

    async def faulty(
        self: LeaseManager, key: str, expected: int | None, value: bytes
    ) -> e.SwapOutcome:
        forms = key.startswith("runs/") and e.decode_run(value).number == number
        if forms and is_before:
            die_once()
        outcome = await swap(self, key, expected, value)
        if forms:
            die_once()
        return outcome

    replace(LeaseManager, "swap", faulty)


def at_the_publication() -> None:
    def faulty(self: HostedRun, effect: do.Publish) -> None:
        die_once()
        self._publish(effect)

    _in_table(do.Publish, faulty)


def when_half_is_published() -> None:
    send = WebSocketOutlet.send
    formed: list[bytes] = []

    def faulty(self: WebSocketOutlet, payload: bytes) -> None:
        send(self, payload)
        if isinstance(wire.decode_from_coordinator(payload), wire.Formed):
            formed.append(payload)
            if len(formed) == 2:
                die_once()

    replace(WebSocketOutlet, "send", faulty)


def replace(kind: type, name: str, function: Callable[..., Any]) -> None:
    setattr(kind, name, function)


def _in_table(effect: type, function: Callable[..., None]) -> None:
    from rallypoint.coordinator import hosted_run

    hosted_run._EXECUTE[effect] = function


STEPS: Final[dict[str, Callable[[], None]]] = {
    "first_read": at_the_first_read,
    "before_claim": lambda: around_the_swap(True, 0),
    "after_claim": lambda: around_the_swap(False, 0),
    "last_ready": at_the_last_ready,
    "commit": at_the_commit,
    "before_swap": lambda: around_the_swap(True, 1),
    "after_swap": lambda: around_the_swap(False, 1),
    "publish": at_the_publication,
    "half_published": when_half_is_published,
}

if __name__ == "__main__":
    STEPS[sys.argv[1]]()
    _marker = sys.argv[2]
    del sys.argv[1:3]
    main()
