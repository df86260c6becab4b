"""docs/openapi.json says what a coordinator does: its routes, and answers of each status."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator
from typing import Any

import aiohttp
import pytest

from rallypoint.coordinator import guard
from rallypoint.coordinator.config import CoordinatorConfig
from rallypoint.coordinator.server import CoordinatorServer
from rallypoint.core.values import RunSettings
from rallypoint.ledger.memory import MemoryLedger
from rallypoint.net import bind
from rallypoint.security.roles import Right
from tests.coordinator.replica import TOKEN
from tests.coordinator.test_guard import CONFIG, NODE, VIEWER, app_of
from tests.loops import BOOTSTRAP, opened, run_clean, served
from tools import openapi

pytestmark = pytest.mark.sockets

DOCUMENT = json.loads(openapi.PAGE.read_text("utf-8"))
RUN = "/api/v1/runs/{run_id}"
PAIR = RunSettings(min_nodes=1, max_nodes=2, expected_nodes=1, max_restarts=None)


class Asks:
    """Sends requests, and compares each answer with the document."""

    def __init__(self, port: int, http: aiohttp.ClientSession) -> None:
        self.url, self._http = f"http://127.0.0.1:{port}", http
        self.seen: set[tuple[str, str, int]] = set()

    async def __call__(
        self,
        method: str,
        path: str,
        code: int,
        *,
        run_id: str = "team-1",
        token: str = TOKEN,
        query: str = "",
        body: object = None,
        **headers: str,
    ) -> Any:
        """The answer, which must have this status."""
        url = self.url + path.replace("{run_id}", run_id).replace("{name}", "main.js") + query
        shown = {"Authorization": f"Bearer {token}"} if token else {}
        data = None if body is None else json.dumps(body).encode()
        async with self._http.request(method, url, headers=shown | headers, data=data) as answer:
            text = await answer.text()
            assert answer.status == code, (method, path, text)
            found = responses(method, path)
            assert str(code) in found, f"{method} {path} {code} is not documented: {text}"
            kind = answer.content_type
            if "content" in found[str(code)]:
                content = found[str(code)]["content"]
                assert kind in content, f"{method} {path} {code}: {kind} is not documented"
                if kind == "application/json":
                    check(json.loads(text), content[kind]["schema"])
            self.seen.add((method, path, code))
            return json.loads(text) if kind == "application/json" else text


def responses(method: str, path: str) -> dict[str, Any]:
    found: dict[str, Any] = DOCUMENT["paths"][path][method.lower()]["responses"]
    return found


def check(value: object, schema: dict[str, Any]) -> None:
    """Fails unless the value has the shape, and no field that the document does not name."""
    jsonschema = pytest.importorskip("jsonschema")
    whole = {**schema, "components": strict(DOCUMENT["components"])}
    jsonschema.Draft202012Validator(whole).validate(value)


def strict(schema: Any) -> Any:
    """The same without room for other fields, which only a later release may have."""
    if isinstance(schema, dict):
        made = {key: strict(value) for key, value in schema.items()}
        if isinstance(schema.get("properties"), dict) and schema.get("type") == "object":
            made["additionalProperties"] = False
        return made
    return [strict(each) for each in schema] if isinstance(schema, list) else schema


@contextlib.asynccontextmanager
async def asked(config: CoordinatorConfig | None) -> AsyncIterator[Asks]:
    async with served(config) as (_, port), aiohttp.ClientSession() as http:
        yield Asks(port, http)


# -- the document --------------------------------------------------------------------------------


def test_the_document_is_what_the_tool_writes() -> None:
    assert openapi.PAGE.read_text("utf-8") == openapi.text(), "run python -m tools.openapi"


def test_it_is_valid() -> None:
    validator = pytest.importorskip("openapi_spec_validator")
    validator.validate(DOCUMENT)


def test_it_has_each_route_of_the_server_and_no_other() -> None:
    async def main() -> None:
        async with served() as (server, _):
            app = await app_of(server)
            routes = {
                (route.method, route.resource.canonical)
                for route in app.router.routes()
                if route.resource is not None and route.method != "HEAD"
            }
            listed = {
                (method.upper(), path)
                for path, methods in DOCUMENT["paths"].items()
                for method in methods
            }
            assert listed == routes

    run_clean(main)


def test_the_page_has_a_row_for_each_request_and_each_status() -> None:
    page = (openapi.PAGE.parent / "http-api.md").read_text("utf-8")
    rows = [line.split("|")[1] for line in page.splitlines() if line.startswith("|")]
    for (method, path), right in guard.NEEDS.items():
        assert any(f"`{method} {path}`" in row for row in rows), (method, path)
        assert right is not None
    used = {
        code
        for methods in DOCUMENT["paths"].values()
        for each in methods.values()
        for code in each["responses"]
    }
    assert used - {row.strip() for row in rows} == {"101", "200"}


# -- answers of a real coordinator ---------------------------------------------------------------


def test_answers_to_who_may_ask() -> None:
    reads = {path for (method, path) in guard.NEEDS if method == "GET" and path != "/v1/attach"}

    async def main() -> None:
        async with asked(CONFIG) as ask:
            endpoint = ask.url
            async with opened(endpoint, PAIR, "team-1", token=TOKEN, node_name="a") as node:
                assert await node.next_round(BOOTSTRAP) is not None
                for path in sorted(reads):
                    await ask("GET", path, 200)
                page = await ask("GET", f"{RUN}/events", 200, query="?last=2")
                assert len(page["events"]) == 2
                status = await ask("GET", RUN, 200)
                assert [each["name"] for each in status["members"]] == ["a"]
                assert status["rounds"]
                await ask("GET", "/v1/attach", 426)
                scale = {"min_nodes": 1, "max_nodes": 3, "reason": "more"}
                await ask("POST", f"{RUN}/scale", 200, body=scale)
                await ask("POST", f"{RUN}/evict", 200, body={"node": "a"})
                assert (await ask("GET", RUN, 200))["evicted"]
            other = opened(endpoint, PAIR, "team-2", token=TOKEN, node_name="b")
            async with other as node:
                assert await node.next_round(BOOTSTRAP) is not None
                # A node that nobody asks to leave refuses the order.
                await ask("POST", f"{RUN}/drain", 409, run_id="team-2", body={"node": "b"})
                await ask("POST", f"{RUN}/close", 200, run_id="team-2")
                assert (await ask("GET", RUN, 200, run_id="team-2"))["closed"]
                body: dict[str, object] = {"node": "b"}
                await ask("POST", f"{RUN}/evict", 409, run_id="team-2", body=body)
                assert (await ask("POST", f"{RUN}/close", 200, run_id="team-2"))["was_closed"]
            assert {code for _, _, code in ask.seen} == {200, 409, 426}

    run_clean(main)


def test_a_stream_of_events_has_the_documented_type() -> None:
    async def main() -> None:
        async with asked(CONFIG) as ask:
            endpoint = ask.url
            async with (
                opened(endpoint, PAIR, "team-1", token=TOKEN),
                ask._http.get(
                    f"{endpoint}/api/v1/runs/team-1/events",
                    headers={"Authorization": f"Bearer {TOKEN}", "Accept": "text/event-stream"},
                ) as answer,
            ):
                assert answer.content_type in responses("GET", f"{RUN}/events")["200"]["content"]

    run_clean(main)


def test_answers_to_who_may_not_ask() -> None:
    async def main() -> None:
        async with asked(CONFIG) as ask:
            for (method, path), right in guard.NEEDS.items():
                if right is not Right.NOTHING:
                    await ask(method, path, 401, token="")
            for (method, path), right in guard.NEEDS.items():
                body = None if method == "GET" else {"node": "a", "min_nodes": 1, "max_nodes": 1}
                if right is Right.ACT:
                    await ask(method, path, 403, token=VIEWER, body=body)
                    await ask(method, path, 403, token=NODE, body=body)
                if "{run_id}" in path:
                    await ask(method, path, 403, token=VIEWER, run_id="other", body=body)
                # Code of another site, whose requests a browser marks.
                await ask(method, path, 403, **{"Sec-Fetch-Site": "cross-site"})
            await ask("GET", "/metrics", 403, token=NODE)
            await ask("GET", "/v1/attach", 403, token=VIEWER)

    run_clean(main)


def test_answers_to_what_does_not_exist_or_cannot_be_read() -> None:
    async def main() -> None:
        async with (
            asked(CONFIG) as ask,
            opened(ask.url, PAIR, "team-1", token=TOKEN, node_name="a"),
        ):
            found = await ask("GET", RUN, 404, run_id="team-l")
            assert found["nearest"] == ["team-1"]
            for (method, path), right in guard.NEEDS.items():
                body = {"node": "a", "min_nodes": 1, "max_nodes": 1}
                if "{run_id}" in path:
                    given = body if right is Right.ACT else None
                    await ask(method, path, 404, run_id="nobody", body=given)
                if right is Right.ACT:
                    await ask(method, path, 400, body=[])
            for action in ("drain", "evict"):
                await ask("POST", f"{RUN}/{action}", 404, body={"node": "zz"})
            await ask("GET", RUN, 400, query="?members=x")
            await ask("GET", f"{RUN}/events", 400, query="?limit=0")
            await ask("GET", "/api/v1/runs", 400, query="?limit=x")
            async with ask._http.get(f"{ask.url}/page/nothing.js") as answer:
                assert answer.status == 404
                content = responses("GET", "/page/{name}")["404"]["content"]
                check(await answer.json(), content["application/json"]["schema"])

    run_clean(main)


def test_answers_to_too_many_wrong_tokens() -> None:
    async def main() -> None:
        async with asked(CONFIG) as ask:
            for _ in range(30):
                with contextlib.suppress(AssertionError):
                    await ask("GET", "/api/v1/runs", 401, token="wrong")
                    continue
                break
            for (method, path), right in guard.NEEDS.items():
                if right is not Right.NOTHING:
                    await ask(method, path, 429, token="wrong")

    run_clean(main)


def test_answers_without_a_token_under_another_name() -> None:
    async def main() -> None:
        async with asked(None) as ask:
            for (method, path), right in guard.NEEDS.items():
                if path in ("/healthz", "/readyz"):
                    await ask(method, path, 200, token="", Host="evil.example")
                else:
                    assert right is not None
                    await ask(method, path, 421, token="", Host="evil.example")

    run_clean(main)


class AwayLedger(MemoryLedger):
    """A ledger that does not answer from a moment on."""

    is_durable = True

    def __init__(self) -> None:
        super().__init__()
        self.is_away = False

    async def read(self, key: str) -> Any:
        if self.is_away:
            await asyncio.Event().wait()
        return await super().read(key)

    async def swap(self, key: str, expected: int | None, value: bytes) -> Any:
        if self.is_away:
            await asyncio.Event().wait()
        return await super().swap(key, expected, value)

    async def keys(self, prefix: str = "") -> tuple[str, ...]:
        if self.is_away:
            await asyncio.Event().wait()
        return await super().keys(prefix)


def test_answers_while_the_ledger_is_away(monkeypatch: pytest.MonkeyPatch) -> None:
    from rallypoint.coordinator import actions_api, replicas

    monkeypatch.setattr(replicas, "LEDGER_WITHIN_S", 0.05)
    monkeypatch.setattr(actions_api, "LEDGER_WAIT_S", 0.05)

    async def main() -> None:
        ledger, sock = AwayLedger(), bind("127.0.0.1", 0)
        async with CoordinatorServer(CONFIG, ledger=ledger) as server:
            await server.start([sock])
            async with aiohttp.ClientSession() as http:
                ask = Asks(sock.getsockname()[1], http)
                ledger.is_away = True
                for (method, path), right in guard.NEEDS.items():
                    if "{run_id}" in path:
                        body = {"node": "a", "min_nodes": 1, "max_nodes": 1}
                        given = body if right is Right.ACT else None
                        await ask(method, path, 503, body=given)
                assert (await ask("GET", "/api/v1/runs", 200))["problem"]
                assert (await ask("GET", "/api/v1/coordinators", 200))["problem"]
                ledger.is_away = False

    run_clean(main)
