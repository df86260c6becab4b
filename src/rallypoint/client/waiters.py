"""The callers that wait in one node for the answer to a request, or for a change of its state.

The node decides which answer belongs to which request, and what counts as a change.
"""

from __future__ import annotations

import asyncio


class Waiters:
    """The waiting callers of one node. For one event loop."""

    def __init__(self) -> None:
        self._answers: dict[int, asyncio.Future[object]] = {}
        self._changed: list[asyncio.Future[None]] = []

    @property
    def requests(self) -> list[int]:
        """The requests for whose answers a caller waits."""
        return list(self._answers)

    def expect(self, request_id: int) -> asyncio.Future[object]:
        """A future for the answer to a request. Call `forget` when it is not needed any more."""
        future: asyncio.Future[object] = asyncio.get_running_loop().create_future()
        self._answers[request_id] = future
        return future

    def forget(self, request_id: int) -> bool:
        """No caller waits for this answer any more. Returns whether it has arrived."""
        future = self._answers.pop(request_id, None)
        return future is not None and future.done() and not future.cancelled()

    def answer(self, request_id: int, result: object) -> None:
        """Give a request its answer. Only the first answer counts."""
        future = self._answers.get(request_id)
        if future is not None and not future.done():
            future.set_result(result)

    def answer_all(self, result: object) -> None:
        """Give this answer to all requests that still wait."""
        for request_id in self.requests:
            self.answer(request_id, result)

    async def change(self, timeout_s: float) -> None:
        """Wait for the next `notify`, for at most `timeout_s`."""
        waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._changed.append(waiter)
        try:
            async with asyncio.timeout(timeout_s):
                await waiter
        except TimeoutError:
            pass
        finally:
            if waiter in self._changed:
                self._changed.remove(waiter)

    def notify(self) -> None:
        """Wake all callers that wait for a change."""
        waiters, self._changed = self._changed, []
        for waiter in waiters:
            if not waiter.done():
                waiter.set_result(None)
