"""Receives SIGHUP from the start of `rallypoint serve` on. Quick to import."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import asyncio


class Hangups:
    """Receives SIGHUP. `came`: one arrived before there was an event loop to handle it."""

    def __init__(self) -> None:
        self.came = False

    def _note(self, number: int, frame: object) -> None:
        self.came = True

    @contextlib.contextmanager
    def taken(self) -> Iterator[None]:
        """Note each SIGHUP from now on, even if it was ignored (nohup), because it is a request."""
        before = signal.signal(signal.SIGHUP, self._note)
        try:
            yield
        finally:
            signal.signal(signal.SIGHUP, before)

    def pass_on(self, loop: asyncio.AbstractEventLoop, ask: Callable[[], None]) -> None:
        """Call `ask` in this loop for each SIGHUP from now on, and once for those before."""
        loop.add_signal_handler(signal.SIGHUP, ask)
        if self.came:
            ask()
