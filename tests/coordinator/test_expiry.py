"""A connection ends with the time of its token, in the same words as with a revocation."""

from __future__ import annotations

import asyncio
import contextlib
import datetime as dt
import json
import time
from collections.abc import AsyncIterator
from typing import Any

import aiohttp
import pytest

from rallypoint import errors
from rallypoint.coordinator import server as server_module
from rallypoint.coordinator.audit import Audit
from rallypoint.coordinator.config import CoordinatorConfig
from rallypoint.coordinator.server import CoordinatorServer
from rallypoint.core.values import Phase, RunSettings
from rallypoint.net import bind
from rallypoint.runtime import SystemRuntime
from rallypoint.security import token_form as form
from rallypoint.security.authority import Authority, new_secret
from rallypoint.security.claims import LEEWAY_S
from rallypoint.security.hashed import HashedToken, hash_of
from rallypoint.security.roles import Role
from tests.loops import BOOTSTRAP, opened, run_clean, until

pytestmark = pytest.mark.sockets

AUTHORITY = Authority.new()
HOST = form.written(AUTHORITY.ca, new_secret(), AUTHORITY.identity())
TTL_S = 3_600.0
TWO = RunSettings(min_nodes=1, max_nodes=2, last_call_s=5.0, max_restarts=None)


class Clock:
    """The time of day of this machine, which a test moves on."""

    def __init__(self) -> None:
        self.ahead_s = 0.0

    def wall_s(self) -> float:
        return time.time() + self.ahead_s


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    found = Clock()
    monkeypatch.setattr(SystemRuntime, "wall_s", lambda _: found.wall_s())
    monkeypatch.setattr(server_module, "ENDS_LOOK_S", 0.02)
    return found


@contextlib.asynccontextmanager
async def guarded(
    config: CoordinatorConfig, lines: list[bytes]
) -> AsyncIterator[tuple[CoordinatorServer, int]]:
    sock = bind("127.0.0.1", 0)
    async with CoordinatorServer(config, audit=Audit(lines.append)) as server:
        await server.start([sock])
        yield server, sock.getsockname()[1]


def closings(lines: list[bytes]) -> list[dict[str, Any]]:
    return [each for each in map(json.loads, lines) if each["action"] in ("attach", "read")]


def test_the_end_of_a_claim_closes_the_connection_of_its_node(
    clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    claim, text = AUTHORITY.claim((Role.NODE,), "*", dt.timedelta(seconds=TTL_S), name="gpu-7")
    lines: list[bytes] = []

    async def main() -> None:
        async with guarded(CoordinatorConfig(token=HOST), lines) as (server, port):
            endpoint = f"https://127.0.0.1:{port}"
            stays = form.credential(HOST)
            async with (
                opened(endpoint, TWO, token=stays, node_name="stays") as a,
                opened(endpoint, TWO, token=text, node_name="goes") as b,
            ):
                run = server.coordinator.runs["run"]
                await asyncio.gather(a.next_round(BOOTSTRAP), b.next_round(BOOTSTRAP))
                assert run.membership.phase is Phase.ACTIVE
                # R9 excepts claims: clocks may differ by five minutes.
                clock.ahead_s = TTL_S + LEEWAY_S - 30.0
                server._end_expired()
                assert run.attached_count == 2
                clock.ahead_s = TTL_S + LEEWAY_S + 30.0
                await until(lambda: run.membership.case is not None or a.change, "nothing ended")
                with pytest.raises(errors.TokenError) as raised:
                    await b.next_round(BOOTSTRAP)
                told = f"token {claim.id} (gpu-7) expired at "
                assert f"this node's {told}" in raised.value.message
                assert "token new" in (raised.value.hint or "")
                await until(lambda: a.change is not None, "the other node was not told")
                assert a.change is not None
                assert a.change.nodes == ("goes",)
                assert f"its {told}" in a.change.detail
                events = [str(each) for each in run.events.last(50)]
                assert any("goes lost" in each and f"its {told}" in each for each in events)
                (line,) = closings(lines)
                assert (line["action"], line["token"], line["name"]) == (
                    "attach",
                    claim.id,
                    "gpu-7",
                )
                assert told in line["detail"]
                assert f"token {claim.id} expired at" in caplog.text
                assert "the connections of one node are closed" in caplog.text

    run_clean(main, 60.0)


def test_the_end_of_a_listed_token_ends_its_stream_and_is_audited_once(clock: Clock) -> None:
    text = "the-token-of-a-dashboard"
    end = time.time() + TTL_S
    listed = (HashedToken("dash", hash_of(text), (Role.VIEWER,), ends_at=end),)
    lines: list[bytes] = []

    async def main() -> None:
        config = CoordinatorConfig(token="t", hashed_tokens=listed)
        async with guarded(config, lines) as (_, port):
            url = f"http://127.0.0.1:{port}/api/v1/runs/run/events"
            shown = {"Authorization": f"Bearer {text}", "Accept": "text/event-stream"}
            async with (
                opened(f"http://127.0.0.1:{port}", token="t") as other,
                aiohttp.ClientSession() as http,
                http.get(url, headers=shown) as stream,
            ):
                assert await stream.content.readline()
                clock.ahead_s = TTL_S + 1.0
                async with asyncio.timeout(20.0):
                    assert b"is over" in await stream.content.read()
                await until(lambda: closings(lines), "it is not in the audit log")
                (line,) = closings(lines)
                assert (line["token"], line["action"]) == ("dash", "read")
                assert "token dash expired at" in line["detail"]
                # A token without an end stays.
                assert other.is_connected

    run_clean(main, 60.0)
