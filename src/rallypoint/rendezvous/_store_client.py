"""The client of `_store_server`: the blocking store of nodes without torch.

All threads share one connection. Each call has its own deadline, and keeps it even if the server is
frozen or has ended. After a lost connection the next call connects again, if the same server still
runs. A call that was in progress fails, because it is unknown whether the server has executed it.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import weakref
from typing import Final

from rallypoint import errors
from rallypoint.client import fork_safety
from rallypoint.client.blocking import Portal
from rallypoint.client.blocking import Store as BlockingStore
from rallypoint.client.store_calls import no_answer, store_error
from rallypoint.client.world import Store as AsyncStore
from rallypoint.core.store import StoreFailure, StoreOp, StoreResult
from rallypoint.core.values import Address
from rallypoint.rendezvous import _store_server as wire
from rallypoint.rendezvous._store_probe import StoreKind, kind_at
from rallypoint.wire import local
from rallypoint.wire.messages import MalformedError, check_call

ANSWER_MARGIN_S: Final = 0.5
"""How many seconds after the server's limit a call waits for its answer, which names what is
missing.
"""
PAUSE_MIN_S: Final = 0.05
PAUSE_MAX_S: Final = 1.0
SILENCE_S: Final = 2.0
"""A server whose greeting takes longer than this, in seconds, is frozen or is another program."""
STRANGERS_MAX: Final = 3
"""How often to try again: a server that ends may cut a connection, but one that always does so is
another program.
"""


def open_store(
    portal: Portal, host: str, port: int, timeout_s: float, *, keeps: object = None
) -> TcpStore:
    """Connect, and try again until `timeout_s` has passed, which is also the store's timeout.

    `keeps`: an object that the store keeps alive.

    Raises UnreachableError, with what was tried, and NotACoordinatorError if another program
    listens there.
    """
    calls = _TcpCalls(host, port)
    portal.run(calls.open(timeout_s))
    return TcpStore(portal, calls, timeout_s, keeps)


_STORE_LOST: Final = "store_lost"
"""The code of a call whose connection failed, or ended before the answer arrived."""


class TcpStore(BlockingStore):
    """A store at `host` and `port`. See rallypoint.client.blocking.Store for its calls.

    Every call may raise StoreTimeoutError, which names what is missing, or StoreError. The
    connection is closed when the last reference to the store is dropped.
    """

    def __init__(self, portal: Portal, calls: _TcpCalls, timeout_s: float, keeps: object) -> None:
        store = AsyncStore(calls, _error_of)
        store.set_timeout(timeout_s)
        super().__init__(portal, store)
        self.host = calls.host
        self.port = calls.port
        self._keeps = keeps
        weakref.finalize(self, calls.let_go).atexit = False

    def __repr__(self) -> str:
        return f"<TcpStore at {Address(self.host, self.port)}>"


class _TcpCalls:
    """The connection and its open calls. For the portal's loop; any thread may call `let_go`."""

    def __init__(self, host: str, port: int) -> None:
        self.host = host
        self.port = port
        self._link: _Link | None = None
        self._server_id = ""
        self._dialling = asyncio.Lock()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._pid = os.getpid()

    async def open(self, timeout_s: float) -> None:
        """See open_store."""
        self._loop = asyncio.get_running_loop()
        problem = "no address was tried"
        strangers = 0
        pause_s = PAUSE_MIN_S
        try:
            async with asyncio.timeout(timeout_s):
                while True:
                    try:
                        self._link = await self._dial()
                        return
                    except _StrangerError as error:
                        problem, strangers = str(error), strangers + 1
                        if strangers == STRANGERS_MAX:
                            raise self._not_a_store(problem) from error
                    except _SilentError as error:
                        problem = str(error)
                        if await self._kind() is StoreKind.TORCH:
                            raise self._not_a_store(f"it is {StoreKind.TORCH.value}") from error
                    except OSError as error:
                        problem = str(error) or type(error).__name__
                    await asyncio.sleep(pause_s)
                    pause_s = min(2 * pause_s, PAUSE_MAX_S)
        except TimeoutError:
            raise self._unreachable(timeout_s, problem) from None

    async def call(self, op: StoreOp, timeout_s: float | None) -> StoreResult:
        """See StoreCalls.call."""
        too_large = check_call(op)
        if too_large is not None:
            return too_large
        where = Address(self.host, self.port)
        limit_s = None if timeout_s is None else timeout_s + ANSWER_MARGIN_S
        try:
            async with asyncio.timeout(limit_s):
                link = await self._connected()
                return await link.request(op, timeout_s)
        except TimeoutError:
            return no_answer(f"the store at {where}", limit_s)
        except OSError as error:
            return StoreFailure(_STORE_LOST, f"the store at {where} is lost: {error}")

    def let_go(self) -> None:
        """Close the connection, from any thread, without waiting for it."""
        if self._loop is not None and self._pid == os.getpid():  # not a child made by fork()
            with contextlib.suppress(RuntimeError):  # the loop has ended, and the connection too
                self._loop.call_soon_threadsafe(self._close)

    def _close(self) -> None:
        if self._link is not None:
            self._link.cut()

    async def _connected(self) -> _Link:
        async with self._dialling:
            if self._link is None or self._link.is_lost:
                self._link = await self._dial()
            return self._link

    async def _dial(self) -> _Link:
        """Connect once. Raises OSError, also if the server is silent or is another one."""
        loop = asyncio.get_running_loop()
        _, link = await loop.create_connection(_Link, self.host, self.port)
        try:
            greeting = await link.greeted()
            if self._server_id not in ("", greeting.server_id):
                raise ConnectionError("another store is there now, without this one's keys")
        except BaseException:
            link.cut()
            raise
        self._server_id = greeting.server_id
        return link

    async def _kind(self) -> StoreKind:
        try:
            return await asyncio.to_thread(kind_at, self.host, self.port, SILENCE_S)
        except OSError:
            return StoreKind.UNKNOWN

    def _unreachable(self, timeout_s: float, problem: str) -> errors.UnreachableError:
        where = str(Address(self.host, self.port))
        return errors.UnreachableError(
            f"no store answered at {where} within {timeout_s:g} s: {problem}",
            hint="node rank 0 serves it: check that it runs, and that this machine reaches it",
            attempts=((where, problem),),
        )

    def _not_a_store(self, problem: str) -> errors.NotACoordinatorError:
        where = Address(self.host, self.port)
        return errors.NotACoordinatorError(
            f"the server at {where} is not a Rallypoint store: {problem}",
            hint="if node rank 0 has PyTorch, it serves PyTorch's own TCPStore: install PyTorch on "
            "all nodes, or on none; if it has not, another program uses the port",
        )


def _error_of(failure: StoreFailure) -> errors.RallypointError:
    if failure.code == _STORE_LOST:
        return errors.StoreError(failure.message, hint="node rank 0 serves it: see its log")
    return store_error(failure)


class _StrangerError(ConnectionError):
    """The program that listens there does not use this protocol."""


class _SilentError(ConnectionError):
    """The program accepts connections but sends nothing: it is frozen, or has another protocol."""


class _Link(asyncio.Protocol):
    """One connection to a server."""

    def __init__(self) -> None:
        self.is_lost = False
        self._unframer = local.Unframer()
        self._transport: asyncio.Transport | None = None
        self._greeting: asyncio.Future[wire.Greeting] = asyncio.get_running_loop().create_future()
        self._results: dict[int, asyncio.Future[StoreResult]] = {}
        self._requests = 0

    # -- asyncio.Protocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        sock = transport.get_extra_info("socket")
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        fork_safety.close_all_in_children(self)
        self._send(wire.Greeting(wire.VERSION))

    def data_received(self, data: bytes) -> None:
        try:
            for body in self._unframer.feed(data):
                self._take(wire.decode_from_server(body))
        except MalformedError as error:
            self._fail(_StrangerError(str(error)))
            self.cut()

    def connection_lost(self, error: Exception | None) -> None:
        why = str(error) if error is not None else "the connection was closed"
        self._fail(ConnectionError(why) if self._greeting.done() else _StrangerError(why))

    # -- for the calls

    async def greeted(self) -> wire.Greeting:
        """Wait for the server's greeting. Raises OSError."""
        try:
            async with asyncio.timeout(SILENCE_S):
                return await self._greeting
        except TimeoutError:
            raise _SilentError("it accepts connections, but does not answer") from None

    async def request(self, op: StoreOp, timeout_s: float | None) -> StoreResult:
        """Send a call, and wait for its answer. Raises OSError if the connection is lost."""
        self._requests += 1
        request_id = self._requests
        future: asyncio.Future[StoreResult] = asyncio.get_running_loop().create_future()
        self._results[request_id] = future
        self._send(local.Call(request_id, op, timeout_s))
        try:
            return await future
        finally:
            del self._results[request_id]
            if future.cancelled():
                self._send(local.Cancel(request_id))

    def cut(self) -> None:
        """End the connection at once."""
        self.is_lost = True
        if self._transport is not None:
            self._transport.abort()

    def filenos(self) -> list[int]:
        """See fork_safety.Group."""
        found = self._transport.get_extra_info("socket") if self._transport else None
        return [found.fileno()] if found is not None else []

    def _take(self, message: wire.FromServer) -> None:
        match message:
            case wire.Greeting():
                if not self._greeting.done():
                    self._greeting.set_result(message)
            case local.Answer(request_id, result):
                future = self._results.get(request_id)
                if future is not None and not future.done():
                    future.set_result(result)
            case local.Denied(why):
                self._fail(ConnectionError(f"refused: {why}"))
                self.cut()

    def _fail(self, error: OSError) -> None:
        self.is_lost = True
        if not self._greeting.done():
            self._greeting.set_exception(error)
            # Mark the exception as retrieved, in case the caller has given up waiting.
            self._greeting.exception()
        for result in self._results.values():
            if not result.done():
                result.set_exception(error)

    def _send(self, message: local.LocalMessage) -> None:
        if self._transport is not None and not self._transport.is_closing():
            self._transport.write(local.encode(message))
