"""The coordinator on a real port: tokens, what people ask over HTTP, and its start and end."""

from __future__ import annotations

import asyncio
from typing import Any

import msgspec
import pytest

from rallypoint import errors
from rallypoint.coordinator import server as serving
from rallypoint.coordinator import status
from rallypoint.coordinator.config import CoordinatorConfig
from rallypoint.coordinator.listener import Listener
from rallypoint.core.values import Failure, FailureKind
from rallypoint.net import bind
from rallypoint.wire import messages as wire
from tests.coordinator.peers import TOKEN, TWO, attach, frame, get, post, raw, upgraded
from tests.loops import BOOTSTRAP, node, opened, run_clean, served, until

pytestmark = pytest.mark.sockets


# -- admission -------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", ["/api/v1/runs", "/api/v1/runs/run", wire.ATTACH_PATH])
def test_http_and_websocket_require_a_token(path: str):
    async def main() -> None:
        async with served(CoordinatorConfig(token=TOKEN)) as (_, port):
            status, body, headers = await get(port, path)
            assert (status, headers["WWW-Authenticate"]) == (401, "Bearer")
            assert body["error"] == "this coordinator needs a token, and the request has none"
            assert "RALLYPOINT_TOKEN" in body["hint"]
            for wrong in ("Bearer no", TOKEN[:-1], "Bearer ", f"Bearer {TOKEN}x"):
                status, body, _ = await get(port, path, Authorization=wrong)
                assert (status, body["error"]) == (401, "the token is wrong")
            status, _, _ = await get(port, path, Authorization=f"Bearer {TOKEN}")
            assert status != 401
            assert (await get(port, "/healthz"))[:2] == (200, "ok\n")

    run_clean(main)


def test_a_token_that_is_no_utf8_is_a_wrong_token():
    async def main() -> None:
        async with served(CoordinatorConfig(token=TOKEN)) as (_, port):
            request = b"GET /api/v1/runs HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n"
            answer = await raw(port, request + b"Authorization: Bearer \xff\xfe\r\n\r\n")
            assert answer.startswith(b"HTTP/1.1 401 ")

    run_clean(main)


@pytest.mark.parametrize(("origin", "may"), [("http://elsewhere.example", False), ("", True)])
def test_a_web_page_of_another_origin_can_end_no_run(origin: str, may: bool):
    """A browser lets every page post to a loopback port, and open a WebSocket there."""

    async def main() -> None:
        async with served() as (server, port):
            _, writer = await upgraded(port)
            writer.write(frame(attach()))
            await until(
                lambda: server.coordinator.runs and server.coordinator.runs["run"].attached_count,
                "none",
            )
            headers = {"Origin": origin or f"http://127.0.0.1:{port}"}
            status, _ = await post(port, "/api/v1/runs/run/close", b"", **headers)
            assert status == (200 if may else 403)
            status, _, _ = await get(port, wire.ATTACH_PATH, **headers)
            assert status == (426 if may else 403)
            writer.close()

    run_clean(main)


def test_closing_a_run_requires_the_token():
    async def main() -> None:
        async with served(CoordinatorConfig(token=TOKEN)) as (_, port):
            endpoint = f"http://127.0.0.1:{port}"
            async with opened(endpoint, token=TOKEN) as a:
                assert (await post(port, "/api/v1/runs/run/close"))[0] == 401
                assert a.closed is None

    run_clean(main)


@pytest.mark.parametrize("token", ["", "wrong"])
def test_a_node_without_the_right_token_gets_the_reason(token: str):
    async def main() -> None:
        async with served(CoordinatorConfig(token=TOKEN)) as (_, port):
            with pytest.raises(errors.TokenError, match="token") as caught:
                await node(f"http://127.0.0.1:{port}", token=token).open()
            assert "--token-file" in caught.value.hint

    run_clean(main)


def test_a_node_with_the_token_is_admitted():
    async def main() -> None:
        async with (
            served(CoordinatorConfig(token=TOKEN)) as (_, port),
            opened(f"http://127.0.0.1:{port}", token=TOKEN) as a,
        ):
            assert await a.next_round(BOOTSTRAP) is not None

    run_clean(main)


# -- what people ask -------------------------------------------------------------------------------


def test_the_path_for_nodes_explains_itself_to_browsers():
    async def main() -> None:
        async with served() as (_, port):
            status, body, headers = await get(port, wire.ATTACH_PATH)
            assert (status, headers["Upgrade"]) == (426, "websocket")
            assert (
                body["hint"] == "nodes attach here over WebSocket; for the status use /api/v1/runs"
            )

    run_clean(main)


def test_the_status_of_a_run_is_served_over_http():
    async def main() -> None:
        async with served() as (_, port):
            endpoint = f"http://127.0.0.1:{port}"
            empty = (await get(port, "/api/v1/runs"))[1]
            assert empty["runs"] == []
            assert list(empty["coordinator"]) == [
                "software",
                "ledger_id",
                "connections",
                "host",
                "node",
                "memory_bytes",
                "memory_bytes_max",
            ]
            async with (
                opened(endpoint, TWO, node_name="a", labels={"zone": "z"}) as a,
                opened(endpoint, TWO, node_name="b") as b,
            ):
                one = (await get(port, "/api/v1/runs"))[1]["runs"][0]
                assert (one["phase"], one["attached"]) == ("gathering", 2)
                assert one["waiting"]["minimum"] == 2
                assert one["reason"].startswith("0 of 2 nodes ready")
                await asyncio.gather(a.next_round(BOOTSTRAP), b.next_round(BOOTSTRAP))
                a.failed(Failure(FailureKind.EXCEPTION, "ValueError: no", 0))
                await a.cause(10)
                await asyncio.gather(a.next_round(BOOTSTRAP), b.next_round(BOOTSTRAP))
                check_detail((await get(port, "/api/v1/runs/run"))[1])
                few = (await get(port, "/api/v1/runs/run?members=1"))[1]
                assert (len(few["members"]), few["members_total"]) == (1, 2)
                assert (await get(port, "/api/v1/runs/run?members=x"))[0] == 400

    run_clean(main)


def check_detail(run: dict[str, Any]) -> None:
    msgspec.convert(run, status.RunStatus)  # every field, and no other
    assert (run["phase"], run["round"], run["size"]) == ("active", 2, 2)
    assert run["settings"]["min_nodes"] == 2
    assert run["bootstrap"] == str(BOOTSTRAP)
    first, second = run["members"]
    assert [(m["name"], m["node_rank"], m["ranks"]) for m in (first, second)] == [
        ("a", 0, [0]),
        ("b", 1, [1]),
    ]
    assert (first["state"], first["link"], first["labels"]) == (
        "active",
        "connected",
        {"zone": "z"},
    )
    ended, present = run["rounds"]
    assert ended["ended"] == "a worker failed on a: rank 0 failed (ValueError: no)"
    assert (ended["change"]["kind"], ended["change"]["confirmed"]) == ("worker_failed", True)
    assert ended["members"] == ["a", "b"]
    assert 0 <= ended["active_s"] < 20
    assert ended["formed_at"] <= ended["ended_at"] <= run["shown_at"]
    assert 0 <= ended["gathering_s"] < 20
    assert (present["ended"], present["active_s"], present["ended_at"]) == ("", None, None)
    assert present["restart_count"] == 1


@pytest.mark.parametrize("run_id", ["no", "%ff", "a%2Fb", "%7Bx%7D", "%20"])
def test_an_unknown_run_is_not_found(run_id: str):
    async def main() -> None:
        async with served() as (_, port), opened(f"http://127.0.0.1:{port}", run_id="other"):
            status, body, _ = await get(port, f"/api/v1/runs/{run_id}")
            assert (status, body["hint"]) == (404, "runs on this coordinator: other")

    run_clean(main)


def test_a_run_is_closed_for_all():
    async def main() -> None:
        async with served() as (_, port):
            endpoint = f"http://127.0.0.1:{port}"
            async with opened(endpoint) as a:
                await a.next_round(BOOTSTRAP)
                path = "/api/v1/runs/run/close"
                for bad in (b"[]", b"{", b'{"reason": 5}', b"\xff"):
                    assert (await post(port, path, bad))[0] == 400
                said = await post(port, path, b'{"reason": "maintenance"}')
                assert said == (200, {"run_id": "run", "was_closed": False})
                await until(lambda: a.closed, "the node was not told")
                assert a.closed is not None
                assert (a.closed.reason, a.closed.by) == (
                    "maintenance",
                    "operator at 127.0.0.1",
                )
                assert (await post(port, path))[1]["was_closed"] is True
                run = (await get(port, "/api/v1/runs/run"))[1]
                assert run["closed"]["reason"] == "maintenance"
                assert run["rounds"][-1]["ended"].startswith("stopped: maintenance")
                with pytest.raises(errors.RunClosedError, match="maintenance"):
                    await node(endpoint).open()
            assert (await post(port, "/api/v1/runs/no/close"))[0] == 404

    run_clean(main)


def test_an_operator_is_named_by_its_address(caplog: pytest.LogCaptureFixture):
    """A socket of both families shows IPv4 peers as ::ffff:127.0.0.1."""

    async def main() -> None:
        config = CoordinatorConfig(token=TOKEN)
        async with serving.CoordinatorServer(config) as server:
            sock = bind(None, 0)
            port = sock.getsockname()[1]
            await server.start([sock])
            async with opened(f"http://127.0.0.1:{port}", token=TOKEN) as a:
                assert (await get(port, "/api/v1/runs"))[0] == 401
                path, own = "/api/v1/runs/run/close", f"Bearer {TOKEN}"
                assert (await post(port, path, Authorization=own))[0] == 200
                await until(lambda: a.closed, "the node was not told")
                assert a.closed is not None
                assert a.closed.by == "operator at 127.0.0.1"
                assert not any(
                    "ffff" in each.outlet.peer for each in server.coordinator.sessions.values()
                )

    run_clean(main)
    assert any("a request from 127.0.0.1 was refused" in each for each in caplog.messages)


def test_closing_the_coordinator_is_bounded_for_any_peers(monkeypatch):
    monkeypatch.setattr(serving, "CLOSE_TIMEOUT_S", 0.5)

    async def main() -> float:
        loop = asyncio.get_running_loop()
        async with served(CoordinatorConfig(backlog_bytes_max=2**30)) as (server, port):
            writers = [(await upgraded(port))[1] for _ in range(3)]
            writers.append((await asyncio.open_connection("127.0.0.1", port))[1])
            writers[0].write(frame(attach()))
            await until(
                lambda: server.coordinator.runs and server.coordinator.runs["run"].attached_count,
                "none",
            )
            for session in server.coordinator.sessions.values():
                session.send(bytes(20 * 1024**2))
            began_s = loop.time()
            await server.aclose()
            await server.aclose()
            took_s = loop.time() - began_s
            for writer in writers:
                writer.close()
            return took_s

    assert run_clean(main) < 15.0


def test_it_looks_whether_it_was_replaced_while_it_can_be_reached():
    """Once its port is closed, others are refused rightly."""

    async def main() -> None:
        reached = []
        async with served() as (server, port):

            async def looks() -> None:
                _, writer = await asyncio.open_connection("127.0.0.1", port)
                reached.append(port)
                writer.close()

            server.ownership.before_close = looks  # type: ignore[method-assign]
        assert reached == [port]
        with pytest.raises(ConnectionRefusedError):
            await asyncio.open_connection("127.0.0.1", port)

    run_clean(main)


def test_a_coordinator_that_cannot_start_leaves_no_socket_open(monkeypatch):
    async def main() -> None:
        def fails(listener: object) -> None:
            raise OSError("no")

        monkeypatch.setattr(Listener, "start", fails)
        with pytest.raises(OSError, match="no"):
            async with served():
                pytest.fail("it started")

    run_clean(main)
