"""A client of etcd, and servers on loopback that pass on, answer badly or say nothing.

What must not be here: a test, or a real etcd.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable

from rallypoint.ledger.etcd.client import EtcdClient
from rallypoint.ledger.etcd.options import EtcdOptions
from rallypoint.ledger.etcd.wire import Event, prefix_end
from tests.ledger.etcd_processes import EtcdCluster

Handler = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


@contextlib.asynccontextmanager
async def client_of(options: EtcdOptions) -> AsyncIterator[EtcdClient]:
    client = EtcdClient(options)
    await client.open()
    try:
        yield client
    finally:
        await client.aclose()


@contextlib.asynccontextmanager
async def listening(handler: Handler) -> AsyncIterator[str]:
    """A server on loopback. Yields its endpoint."""
    tasks: set[asyncio.Task[None]] = set()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        tasks.add(task)
        try:
            await handler(reader, writer)
        except asyncio.CancelledError:
            pass
        finally:
            writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    try:
        yield f"127.0.0.1:{server.sockets[0].getsockname()[1]}"
    finally:
        server.close()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def prefer(client: EtcdClient, index: int) -> None:
    client._preferred = index


# -- endpoints that fail --------------------------------------------------------------------------


def proxy_of(
    cluster: EtcdCluster,
    *,
    cut: asyncio.Event | None = None,
    swallow: Callable[[bytes], bool] = lambda _request: False,
) -> Handler:
    """Passes bytes on to etcd. `cut` ends all connections; a request for which `swallow` is true

    reaches etcd, and its answer goes nowhere.
    """

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        host, port = cluster.endpoints[0].split(":")
        up_reader, up_writer = await asyncio.open_connection(host, int(port))
        lost = asyncio.Event()

        async def up() -> None:
            while data := await reader.read(1 << 20):
                if swallow(data):
                    lost.set()
                up_writer.write(data)
                await up_writer.drain()

        async def down() -> None:
            while data := await up_reader.read(1 << 20):
                if lost.is_set():
                    return
                writer.write(data)
                await writer.drain()

        async def until_cut() -> None:
            if cut is None:
                await asyncio.Event().wait()
            else:
                await cut.wait()
                cut.clear()

        tasks = [asyncio.ensure_future(work()) for work in (up, down, until_cut)]
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            up_writer.close()

    return handle


async def never_answers(reader: asyncio.StreamReader, _writer: asyncio.StreamWriter) -> None:
    """Reads everything and never answers, like a frozen member."""
    while await reader.read(1 << 16):
        pass


ANSWER = b'{"header":{"cluster_id":"1","revision":"5"}}'


def answers_in_parts(*parts: bytes, every_s: float = 0.0, size: int = len(ANSWER)) -> Handler:
    """Begins an answer of so many bytes and sends these parts of it. Then it is silent."""

    async def speak(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % size)
        for part in parts:
            writer.write(part)
            await asyncio.sleep(every_s)
        await never_answers(reader, writer)

    return speak


async def take(client: EtcdClient, key: bytes, start_revision: int, count: int) -> list[Event]:
    taken: list[Event] = []
    watch = client.watch(key, prefix_end(key), start_revision=start_revision)
    async with contextlib.aclosing(watch) as changes:
        async for events in changes:
            taken += events
            if len(taken) >= count:
                break
    return taken
