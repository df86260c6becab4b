"""A ledger whose operations are counted and timed, for `/metrics`. It changes nothing else."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

from rallypoint.ledger.contract import (
    AppendOutcome,
    Changed,
    Ledger,
    SwapOutcome,
    Unknown,
    Versioned,
)

T = TypeVar("T")

Took = Callable[[str, float, str], None]
"""Called with the name of an operation, its seconds, and the kind of its error or ""."""


class TimedLedger(Ledger):
    """Passes on each call to `ledger`. `took` is called when it has ended."""

    def __init__(self, ledger: Ledger, took: Took) -> None:
        self._ledger = ledger
        self._took = took

    def __getattribute__(self, name: str) -> Any:
        # What an engine says about itself is its own: these are variables of the class.
        if name in _OF_THE_ENGINE:
            return getattr(object.__getattribute__(self, "_ledger"), name)
        return object.__getattribute__(self, name)

    async def open(self) -> None:
        await self._ledger.open()

    async def aclose(self) -> None:
        await self._ledger.aclose()

    async def read(self, key: str) -> Versioned | None:
        return await self._timed("read", self._ledger.read(key))

    async def swap(self, key: str, expected: int | None, value: bytes) -> SwapOutcome:
        return await self._timed("swap", self._ledger.swap(key, expected, value))

    async def delete(self, key: str, version: int | None = None) -> bool:
        return await self._timed("delete", self._ledger.delete(key, version))

    async def keys(self, prefix: str = "") -> tuple[str, ...]:
        return await self._timed("keys", self._ledger.keys(prefix))

    async def changed(self, key: str, version: int | None, timeout_s: float) -> Changed | None:
        return await self._ledger.changed(key, version, timeout_s)  # It waits on purpose.

    async def append(self, log: str, index: int, value: bytes) -> AppendOutcome:
        return await self._timed("append", self._ledger.append(log, index, value))

    async def records(
        self, log: str, start: int = 0, limit: int | None = None
    ) -> tuple[tuple[int, bytes], ...]:
        return await self._timed("records", self._ledger.records(log, start, limit))

    async def drop_log(self, log: str) -> None:
        await self._timed("drop_log", self._ledger.drop_log(log))

    async def logs(self, prefix: str = "") -> tuple[str, ...]:
        return await self._timed("logs", self._ledger.logs(prefix))

    async def _timed(self, operation: str, call: Coroutine[Any, Any, T]) -> T:
        loop = asyncio.get_running_loop()
        began_s = loop.time()
        error = ""
        try:
            answer = await call
            if isinstance(answer, Unknown):
                error = type(answer.error).__name__ if answer.error is not None else "Unknown"
            return answer
        except asyncio.CancelledError:
            error = "cancelled"
            raise
        except Exception as raised:
            error = type(raised).__name__
            raise
        finally:
            self._took(operation, loop.time() - began_s, error)


_OF_THE_ENGINE = frozenset(
    {"ledger_id", "is_durable", "durability", "has_log", "can_watch", "limits"}
)
