"""A coordinator on a ledger and a real port, as one of several replicas.

What must not be here: a test.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import AsyncIterator
from typing import Any

import aiohttp
import msgspec

from rallypoint.coordinator.config import CoordinatorConfig
from rallypoint.coordinator.server import CoordinatorServer
from rallypoint.coordinator.status import RunList, RunStatus
from rallypoint.core import events as on
from rallypoint.core.values import Address, NodeInfo, RunSettings
from rallypoint.ledger.memory import MemoryLedger
from rallypoint.net import bind
from rallypoint.security.token_form import credential
from tests.loops import until

TOKEN = "the-token-of-all-replicas"
SETTINGS = RunSettings(min_nodes=2, max_nodes=2)


class Replica:
    """A coordinator on the ledger. With TLS if its token has a certificate."""

    def __init__(self, server: CoordinatorServer, port: int) -> None:
        self.server, self.port = server, port
        self._client = server._identities.client_to("127.0.0.1")
        self._token = credential(server.config.token)

    async def ask(
        self, path: str, *, token: str | None = None, post: bytes | None = None, **headers: str
    ) -> tuple[int, Any]:
        method = "GET" if post is None else "POST"
        by_tls: dict[str, Any] = {}
        if self._client is not None:
            name = self._client.server_name
            by_tls = {"ssl": self._client.context, "server_hostname": name}
        url = f"{'https' if by_tls else 'http'}://127.0.0.1:{self.port}{path}"
        token = self._token if token is None else token
        shown = {"Authorization": f"Bearer {token}"} if token else {}
        async with (
            aiohttp.ClientSession() as http,
            http.request(method, url, data=post, headers=shown | headers, **by_tls) as answer,
        ):
            return answer.status, json.loads(await answer.text())

    async def has(self, run_id: str) -> None:
        """It has the run from now on, with a node that waits."""
        run = self.server.coordinator.open_run(run_id)
        self.server.coordinator.claim(run_id)
        await until(lambda: run.is_claimed, "the run is not claimed")
        run.post(on.NodeAttached(NodeInfo("a", 1, "host"), SETTINGS, 1_000))

    async def status(self, run_id: str) -> RunStatus:
        code, body = await self.ask(f"/api/v1/runs/{run_id}")
        assert code == 200, body
        return msgspec.convert(body, RunStatus)

    async def list(self) -> RunList:
        code, body = await self.ask("/api/v1/runs")
        assert code == 200, body
        return msgspec.convert(body, RunList)


@contextlib.asynccontextmanager
async def replica(ledger: MemoryLedger, **more: Any) -> AsyncIterator[Replica]:
    config = msgspec.structs.replace(CoordinatorConfig(token=TOKEN, lease_ttl_s=60.0), **more)
    sock = bind("127.0.0.1", 0)
    port = sock.getsockname()[1]
    async with CoordinatorServer(config, ledger=ledger) as server:
        await server.start([sock], (Address("127.0.0.1", port),))
        await until(server.ownership.beat, "it has no lease")
        yield Replica(server, port)
