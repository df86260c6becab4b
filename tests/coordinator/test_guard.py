"""Which token may do what at a coordinator: over HTTP, as a node, and through another replica."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import AsyncIterator

import aiohttp
import pytest
from aiohttp import web

from rallypoint import errors
from rallypoint.coordinator import guard, http_api, replicas
from rallypoint.coordinator.config import CoordinatorConfig
from rallypoint.coordinator.server import CoordinatorServer, account_of
from rallypoint.core.values import Address, RunSettings
from rallypoint.ledger.memory import MemoryLedger
from rallypoint.net import bind
from rallypoint.security.hashed import HashedToken
from rallypoint.security.roles import EVERYBODY, Principal, Right, Role
from tests.coordinator.replica import TOKEN, Replica, replica
from tests.coordinator.test_replicas import lease_of, rewrite_lease
from tests.loops import BOOTSTRAP, node, opened, run_clean, served

pytestmark = pytest.mark.sockets


@pytest.fixture(autouse=True)
def patience(monkeypatch: pytest.MonkeyPatch) -> None:
    """A pause of this machine is no coordinator that does not answer."""
    monkeypatch.setattr(replicas, "ANSWER_WITHIN_S", 20.0)
    monkeypatch.setattr(replicas, "LEDGER_WITHIN_S", 20.0)


def hashed(role: Role, runs: str = "team-*") -> HashedToken:
    """A token whose text is `role:runs`."""
    digest = hashlib.sha256(f"{role}:{runs}".encode()).hexdigest()
    return HashedToken(f"id-{role}", digest, (role,), runs)


HASHED = tuple(map(hashed, Role))
VIEWER, OPERATOR, NODE, HOST = (
    f"{role}:team-*" for role in (Role.VIEWER, Role.OPERATOR, Role.NODE, Role.HOST)
)
CONFIG = CoordinatorConfig(token=TOKEN, hashed_tokens=HASHED)


@contextlib.asynccontextmanager
async def in_memory() -> AsyncIterator[Replica]:
    async with served(CONFIG) as (server, port):
        yield Replica(server, port)


async def app_of(server: CoordinatorServer) -> web.Application:
    assert server._runner is not None
    return server._runner.app


def test_each_route_of_the_app_is_in_the_table_and_the_table_has_no_other() -> None:
    async def main() -> None:
        async with served() as (server, _):
            app = await app_of(server)
            found = {
                (route.method, route.resource.canonical)
                for route in app.router.routes()
                if route.resource is not None and route.method != "HEAD"
            }
            assert found == set(guard.NEEDS)
            free = {path for (_, path), right in guard.NEEDS.items() if right is Right.NOTHING}
            assert free == http_api.OPEN_PATHS | {"/", "/page/{name}"}

    run_clean(main)


def test_a_route_that_is_not_in_the_table_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    # Another table, because a restored entry would be the last one of this one.
    others = {each: right for each, right in guard.NEEDS.items() if each[1] != "/api/v1/runs"}
    monkeypatch.setattr(guard, "NEEDS", others)

    async def main() -> None:
        for config in (CONFIG, None):
            async with served(config) as (server, port):
                code, said = await Replica(server, port).ask("/api/v1/runs", token=TOKEN)
                assert (code, said["reason"]) == (403, "role")

    run_clean(main)


@pytest.mark.parametrize(
    ("token", "may"),
    [
        (TOKEN, {"list", "run", "events", "metrics", "close"}),
        (VIEWER, {"list", "run", "events", "metrics"}),
        (OPERATOR, {"list", "run", "events", "metrics", "close"}),
        (NODE, {"list", "run", "events"}),
        (HOST, {"list", "run", "events"}),
    ],
)
def test_each_role_may_what_the_table_says(token: str, may: set[str]) -> None:
    asked = {
        "list": "/api/v1/runs",
        "run": "/api/v1/runs/team-1",
        "events": "/api/v1/runs/team-1/events",
        "metrics": "/metrics",
        "close": "/api/v1/runs/team-1/close",
    }

    async def main() -> None:
        async with in_memory() as a:
            await a.has("team-1")
            for name, path in asked.items():
                url = f"http://127.0.0.1:{a.port}{path}"
                method = "POST" if name == "close" else "GET"
                shown = {"Authorization": f"Bearer {token}"}
                async with (
                    aiohttp.ClientSession() as http,
                    http.request(method, url, headers=shown) as answer,
                ):
                    assert answer.status == (200 if name in may else 403), name
                    if name not in may:
                        said = await answer.json()
                        assert "this token (" in said["error"]
                        assert said["hint"].startswith("use a token of the role ")
            closed = a.server.coordinator.runs["team-1"].is_closed
            assert closed is ("close" in may)

    run_clean(main)


def test_lists_and_names_show_only_runs_that_match() -> None:
    async def main() -> None:
        async with in_memory() as a:
            for run_id in ("team-1", "team-2", "tear-1"):
                await a.has(run_id)
            code, listed = await a.ask("/api/v1/runs", token=VIEWER)
            assert (code, [each["run_id"] for each in listed["runs"]]) == (
                200,
                ["team-1", "team-2"],
            )
            code, said = await a.ask("/api/v1/runs/team-3", token=VIEWER)
            assert (code, said["nearest"]) == (404, ["team-2", "team-1"])
            assert "tear" not in str(said)
            # The answer about a run that exists is that about one that does not.
            there, _ = await a.ask("/api/v1/runs/tear-1", token=VIEWER)
            answers = [
                await a.ask(f"/api/v1/runs/{each}{path}", token=OPERATOR, post=post)
                for each in ("tear-1", "tear-2")
                for path, post in (("", None), ("/events", None), ("/close", b"{}"))
            ]
            assert there == 403
            assert {code for code, _ in answers} == {403}
            assert {str(said).replace("tear-1", "tear-2") for _, said in answers} == {
                str(answers[0][1]).replace("tear-1", "tear-2")
            }
            url = f"http://127.0.0.1:{a.port}/metrics"
            for token, count in ((VIEWER, 2), (TOKEN, 3), (VIEWER, 2)):
                shown = {"Authorization": f"Bearer {token}"}
                async with (
                    aiohttp.ClientSession() as http,
                    http.get(url, headers=shown) as answer,
                ):
                    text = await answer.text()
                assert f'rallypoint_runs{{phase="gathering"}} {count}.0' in text
                assert ("tear-1" in text) is (token == TOKEN)

    run_clean(main)


def test_pages_of_a_list_have_no_holes_for_runs_that_do_not_match() -> None:
    async def main() -> None:
        ledger = MemoryLedger()
        async with (
            replica(ledger, hashed_tokens=HASHED) as a,
            replica(ledger, hashed_tokens=HASHED) as b,
        ):
            for number in range(4):
                await a.has(f"s-{number}")
                await a.has(f"team-{number}")
                await b.has(f"team-b{number}")
            for each in (a, b):
                found, after = [], ""
                while after is not None:
                    path = f"/api/v1/runs?limit=3&after={after}"
                    _, said = await each.ask(path, token=VIEWER)
                    found += [line["run_id"] for line in said["runs"]]
                    after = said["next"]
                assert found == [
                    *(f"team-{n}" for n in range(4)),
                    *(f"team-b{n}" for n in range(4)),
                ]

    run_clean(main)


def test_why_a_run_waits_names_no_run_that_does_not_match() -> None:
    """Nodes with one token wait in two runs, because their run ids differ by mistake."""

    async def main() -> None:
        async with in_memory() as a:
            endpoint = f"http://127.0.0.1:{a.port}"
            two = RunSettings(min_nodes=2, max_nodes=2, max_restarts=None)
            async with (
                opened(endpoint, two, run_id="team-1", token=TOKEN, node_name="x"),
                opened(endpoint, two, run_id="tear-1", token=TOKEN, node_name="y"),
            ):
                for token in (TOKEN, VIEWER):
                    _, one = await a.ask("/api/v1/runs/team-1", token=token)
                    _, listed = await a.ask("/api/v1/runs", token=token)
                    [line] = [x for x in listed["runs"] if x["run_id"] == "team-1"]
                    for said in (one, line):
                        assert ("'tear-1'" in said["reason"]) is (token == TOKEN), said["reason"]

    run_clean(main)


# -- nodes -----------------------------------------------------------------------------------------


def test_an_account_is_of_a_principal_and_not_of_a_text() -> None:
    peer = ("10.0.0.1", 1)
    one, other = Principal("a", source="a signed claim"), Principal("a", source="tokens.toml")
    assert account_of(peer, one) == account_of(peer, one.narrowed("viewer;team-*"))
    accounts = {account_of(peer, each) for each in (one, other, EVERYBODY)}
    assert len(accounts) == 3
    assert account_of(peer, EVERYBODY).token == ""


def test_a_node_enters_only_runs_that_its_token_names() -> None:
    async def main() -> None:
        async with served(CONFIG) as (server, port):
            endpoint = f"http://127.0.0.1:{port}"
            async with opened(endpoint, run_id="team-1", token=NODE) as a:
                assert await a.next_round(BOOTSTRAP) is not None
            with pytest.raises(errors.TokenError, match="runs that match 'team-\\*'") as caught:
                await node(endpoint, run_id="job-1", token=NODE).open()
            assert "job-1" in caught.value.message
            assert set(server.coordinator.runs) == {"team-1"}

    run_clean(main)


@pytest.mark.parametrize("token", [VIEWER, OPERATOR])
def test_a_token_without_the_role_is_an_error_at_once(token: str) -> None:
    async def main() -> None:
        async with served(CONFIG) as (server, port):
            with pytest.raises(errors.TokenError, match="may not join a run") as caught:
                await node(f"http://127.0.0.1:{port}", run_id="team-1", token=token).open()
            assert "node" in caught.value.hint
            assert not server.coordinator.runs

    run_clean(main)


# -- replicas --------------------------------------------------------------------------------------


@pytest.mark.parametrize("lease_token", ["", TOKEN])
def test_a_request_that_is_forwarded_has_the_rights_of_its_sender(lease_token: str) -> None:
    """Also where the forwarding coordinator sends the token in the owner's lease."""

    async def main() -> None:
        ledger = MemoryLedger()
        async with (
            replica(ledger, hashed_tokens=HASHED) as a,
            replica(ledger, hashed_tokens=HASHED) as b,
        ):
            await a.has("team-1")
            await a.has("job-1")
            lease = await lease_of(ledger, a)
            await rewrite_lease(ledger, lease.process, token=lease_token)
            code, said = await b.ask("/api/v1/runs/team-1", token=VIEWER)
            assert (code, said["source"]) == (200, "coordinator")
            assert (await b.ask("/api/v1/runs/job-1", token=VIEWER))[0] == 403
            code, listed = await b.ask("/api/v1/runs", token=VIEWER)
            assert [each["run_id"] for each in listed["runs"]] == ["team-1"]
            close = "/api/v1/runs/team-1/close"
            assert (await b.ask(close, token=VIEWER, post=b"{}"))[0] == 403
            # As if the forwarding coordinator had not looked.
            for limits, path, post in (
                ("viewer;team-*", close, b"{}"),
                ("viewer;job-*", "/api/v1/runs/team-1", None),
                ("nonsense", "/api/v1/runs/team-1", None),
            ):
                asked = await a.ask(path, post=post, **{"Rallypoint-Limits": limits})
                assert asked[0] == 403, limits
            assert not a.server.coordinator.runs["team-1"].is_closed
            assert (await b.ask(close, token=OPERATOR, post=b"{}"))[0] == 200
            assert a.server.coordinator.runs["team-1"].is_closed

    run_clean(main)


def test_what_is_sent_to_another_coordinator_has_the_limits_of_the_sender() -> None:
    seen: list[str | None] = []

    async def told(request: web.Request) -> web.Response:
        seen.append(request.headers.get("Rallypoint-Limits"))
        return web.json_response({"run_id": "team-1", "phase": "active"})

    async def main() -> None:
        ledger = MemoryLedger()
        app = web.Application()
        app.router.add_get("/{path:.*}", told)
        runner = web.AppRunner(app)
        await runner.setup()
        sock = bind("127.0.0.1", 0)
        await web.SockSite(runner, sock).start()
        port = sock.getsockname()[1]
        async with (
            replica(ledger, hashed_tokens=HASHED) as a,
            replica(ledger, hashed_tokens=HASHED) as b,
        ):
            await a.has("team-1")
            lease = await lease_of(ledger, a)
            there = (Address("127.0.0.1", port),)
            await rewrite_lease(ledger, lease.process, token=TOKEN, addresses=there)
            assert (await b.ask("/api/v1/runs/team-1", token=VIEWER))[0] == 200
            assert (await b.ask("/api/v1/runs/team-1"))[0] == 200
        await runner.cleanup()
        assert seen == ["viewer;team-*", None]

    run_clean(main)
