"""The two native APIs behind one interface: each scenario is written once and run on both."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Awaitable, Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import rallypoint
from rallypoint import aio

T = TypeVar("T")
DEADLINE_S = 60.0


class BlockingApi:
    """`rallypoint` as it is."""

    name = "blocking"

    def join(self, run_id: str, endpoint: str | None, **options: Any) -> rallypoint.Run:
        return rallypoint.join(run_id, endpoint, **options)

    def close(self) -> None:
        """The portal serves the whole process."""


class AsyncApi:
    """`rallypoint.aio` in a loop of its own, called from outside."""

    name = "async"

    def __init__(self) -> None:
        self.loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self.loop.run_forever, daemon=True)
        self._thread.start()

    def wait(self, work: Any) -> Any:
        return asyncio.run_coroutine_threadsafe(work, self.loop).result(DEADLINE_S)

    def join(self, run_id: str, endpoint: str | None, **options: Any) -> AsyncRun:
        return AsyncRun(self, self.wait(aio.join(run_id, endpoint, **options)))

    def close(self) -> None:
        async def others() -> set[asyncio.Task[Any]]:
            await self.loop.shutdown_default_executor()
            return asyncio.all_tasks() - {asyncio.current_task()}

        left = self.wait(others())
        self.loop.call_soon_threadsafe(self.loop.stop)
        self._thread.join()
        self.loop.close()
        assert not left, f"tasks are left: {left}"


async def _awaited(answer: Awaitable[T]) -> T:
    return await answer


class AsyncRun:
    """An aio.Run with the blocking one's face."""

    def __init__(self, api: AsyncApi, run: aio.Run) -> None:
        self._api = api
        self._run = run

    def __getattr__(self, name: str) -> Any:
        return getattr(self._run, name)

    def worlds(self) -> Iterator[AsyncWorld]:
        worlds = self._run.worlds()
        while True:
            world = self._api.wait(anext(worlds, None))
            if world is None:
                return
            yield AsyncWorld(self._api, world)

    def next_world(self) -> AsyncWorld | None:
        world = self._api.wait(self._run.next_world())
        return AsyncWorld(self._api, world) if world is not None else None

    @property
    def waiting(self) -> Any:
        return self._api.wait(_awaited(self._run.waiting))

    def leave(self, *reason: str) -> None:
        self._api.wait(self._run.leave(*reason))

    def close(self, reason: str, *, failed: bool = False) -> Any:
        return self._api.wait(self._run.close(reason, failed=failed))

    def aclose(self) -> None:
        self._api.wait(self._run.aclose())

    def __enter__(self) -> AsyncRun:
        return self

    def __exit__(self, *error: Any) -> None:
        self._api.wait(self._run.__aexit__(*error))


class AsyncStore:
    """An aio.Store with the blocking one's face."""

    def __init__(self, api: AsyncApi, store: aio.Store) -> None:
        self._api = api
        self._store = store

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._store, name)
        if not asyncio.iscoroutinefunction(found):
            return found
        return lambda *args, **more: self._api.wait(found(*args, **more))


class AsyncWorld:
    """An aio.World with the blocking one's face."""

    def __init__(self, api: AsyncApi, world: aio.World) -> None:
        self._api = api
        self._world = world
        self.store = AsyncStore(api, world.store)

    def __repr__(self) -> str:
        return repr(self._world)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._world, name)

    @property
    def members(self) -> Any:
        return self._api.wait(_awaited(self._world.members))

    def barrier(self, *args: Any, **more: Any) -> None:
        self._api.wait(self._world.barrier(*args, **more))

    def newest(self, *args: Any, **more: Any) -> Any:
        return self._api.wait(self._world.newest(*args, **more))

    def on_change(self, callback: Any) -> None:
        async def call() -> None:
            self._world.on_change(callback)

        self._api.wait(call())

    def __enter__(self) -> AsyncWorld:
        return self

    def __exit__(self, *error: Any) -> bool:
        return bool(self._api.wait(self._world.__aexit__(*error)))


def together(*programs: Callable[[], T]) -> list[T]:
    """Run programs at once, each in a thread. Raises the first error, after all have ended."""
    with ThreadPoolExecutor(len(programs)) as pool:
        return [future.result(DEADLINE_S) for future in [pool.submit(each) for each in programs]]


def abandon(run: Any) -> None:
    """End the run's connection as the kernel does when it kills the process."""
    inner = run._run
    node = inner._client._node

    async def cut() -> None:
        node._connector.is_closing = True
        node._connector.connection._socket.ends_in_order = True  # a FIN, and not a word
        node._connector.connection._transport.abort()

    if isinstance(run, AsyncRun):
        run._api.wait(cut())
    else:
        run._portal.run(cut())


@contextlib.contextmanager
def joined(api: Any, count: int, endpoint: str, **options: Any) -> Iterator[Sequence[Any]]:
    """Several runs of one job in this process; all are closed at the end."""
    runs = together(*([lambda: api.join("job", endpoint, **options)] * count))
    try:
        yield runs
    finally:
        for run in runs:
            run.aclose()
