"""A coordinator without a token answers to addresses and to its own names, and to no other."""

from __future__ import annotations

import asyncio
import json
import socket
import threading

import pytest

from rallypoint.cli import api
from rallypoint.coordinator import hosts
from rallypoint.coordinator.config import CoordinatorConfig
from rallypoint.coordinator.server import CoordinatorServer
from rallypoint.core.values import Address
from rallypoint.net import bind
from rallypoint.settings import parse_endpoint
from rallypoint.wire import headers, messages
from tests.loops import BOOTSTRAP, opened, run_clean, served

pytestmark = pytest.mark.sockets

OWN = socket.gethostname()


async def status(port: int, path: str, host: str | None, *more: str, method: str = "GET") -> int:
    lines = [f"{method} {path} HTTP/1.1", *([] if host is None else [f"Host: {host}"]), *more]
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(("\r\n".join([*lines, "Connection: close"]) + "\r\n\r\n").encode())
    try:
        head = await reader.readline()
        return int(head.split()[1])
    finally:
        writer.close()


UPGRADE = (
    "Upgrade: websocket",
    "Connection: Upgrade",
    "Sec-WebSocket-Version: 13",
    "Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==",
)
OURS = ["127.0.0.1", "127.0.0.1:{port}", "[::1]:{port}", "10.1.2.3:80", "127.1", "localhost:{port}"]
OURS += ["LOCALHOST.", OWN, f"{OWN.upper()}:{{port}}", "given.example", "told.example:{port}"]
THEIRS = ["evil.example", "evil.example:{port}", "localhost.evil.example", f"{OWN}.evil.example"]
THEIRS += [
    "127.0.0.1.evil.example",
    "1.2.3.4.5x",
    "given.example.evil",
    "[::1].evil.example",
    "x y",
]


@pytest.mark.parametrize("host", OURS + THEIRS)
def test_a_request_with_another_host_name_is_refused(host: str):
    expected = (200, 426) if host in OURS else (421, 421)

    async def main() -> None:
        sock = bind("127.0.0.1", 0)
        port = sock.getsockname()[1]
        name = host.format(port=port)
        async with CoordinatorServer(CoordinatorConfig(hosts=("given.example",))) as server:
            await server.start([sock], (Address("told.example", port),))
            found = await status(port, "/api/v1/runs", name)
            assert (found, await status(port, messages.ATTACH_PATH, name)) == expected

    run_clean(main)


def test_a_page_under_a_name_that_resolves_to_this_host_can_do_nothing():
    """Its Origin is its Host: DNS rebinding. All it learns is that something listens."""

    async def main() -> None:
        async with served() as (_, port), opened(f"http://127.0.0.1:{port}") as a:
            name = f"evil.example:{port}"
            page = f"Origin: http://{name}"
            assert await status(port, "/api/v1/runs", name, page) == 421
            assert await status(port, "/api/v1/runs/run/close", name, page, method="POST") == 421
            assert await status(port, messages.ATTACH_PATH, name, page, *UPGRADE) == 421
            assert await status(port, "/healthz", name) == 200
            two = (name, f"Host: 127.0.0.1:{port}")
            assert await status(port, "/api/v1/runs", *two) in (400, 421)
            assert a.closed is None
            assert await a.next_round(BOOTSTRAP) is not None

    run_clean(main)


def test_with_a_token_every_name_is_accepted():
    async def main() -> None:
        async with served(CoordinatorConfig(token="correct-horse")) as (_, port):
            bearer = "Authorization: Bearer correct-horse"
            assert await status(port, "/api/v1/runs", "coordinator.svc", bearer) == 200

    run_clean(main)


def test_the_refusal_says_what_to_do():
    async def main() -> None:
        async with served() as (_, port):
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(
                b"GET /api/v1/runs HTTP/1.1\r\nHost: e.example\r\nConnection: close\r\n\r\n"
            )
            body = json.loads((await reader.read()).partition(b"\r\n\r\n")[2])
            assert "'e.example'" in body["error"]
            assert "token" in body["hint"]
            writer.close()

    run_clean(main)


def test_nodes_and_commands_may_use_any_name(monkeypatch: pytest.MonkeyPatch):
    """As from the hosts file, a search domain, or a service of a cluster."""
    plain = socket.getaddrinfo

    def resolve(host, *args, **more):
        return plain("127.0.0.1" if host == "coordinator.svc" else host, *args, **more)

    monkeypatch.setattr(socket, "getaddrinfo", resolve)

    async def main() -> None:
        async with served() as (_, port), opened(f"http://coordinator.svc:{port}") as a:
            assert await a.next_round(BOOTSTRAP) is not None
            endpoint = parse_endpoint(f"http://coordinator.svc:{port}")
            found = await asyncio.to_thread(api.runs, endpoint, "")
            assert [each["run_id"] for each in found["runs"]] == ["run"]

    run_clean(main)


def test_the_proof_header_is_one_that_pages_cannot_set():
    assert headers.CLIENT.lower().startswith(("sec-", "proxy-"))


def test_the_full_name_is_looked_up_once_and_blocks_nothing(monkeypatch):
    looked, go = [], threading.Event()

    def slow() -> str:
        looked.append(1)
        go.wait(20)
        return "node7.cluster.example"

    monkeypatch.setattr(hosts, "LOOKUP_TIMEOUT_S", 0.05)
    monkeypatch.setattr(socket, "getfqdn", slow)

    async def main() -> None:
        known = hosts.KnownHosts()
        assert not await known.knows("node7.cluster.example")
        go.set()
        monkeypatch.setattr(hosts, "LOOKUP_TIMEOUT_S", 20.0)
        assert await known.knows("node7.cluster.example:29400")
        assert await known.knows("node7")
        assert not await known.knows("other.cluster.example")
        assert len(looked) == 1

    run_clean(main)
