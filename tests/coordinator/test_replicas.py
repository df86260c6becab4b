"""Any coordinator on a ledger answers for all of its runs, and no token goes astray."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator
from typing import Any

import msgspec
import pytest
from aiohttp import web

from rallypoint.coordinator import replicas
from rallypoint.coordinator import server as serving
from rallypoint.core import election as e
from rallypoint.core.values import Address
from rallypoint.ledger.contract import Swapped
from rallypoint.ledger.keys import lease_key, run_key
from rallypoint.ledger.memory import MemoryLedger
from rallypoint.net import bind
from rallypoint.security.authority import Authority, new_host_token, new_secret
from rallypoint.security.token_form import credential, with_identity, written
from tests.coordinator.replica import TOKEN, Replica, replica
from tests.loops import run_clean

pytestmark = pytest.mark.sockets


@pytest.fixture(autouse=True)
def patience(monkeypatch: pytest.MonkeyPatch) -> None:
    """A pause of this machine is no coordinator that does not answer."""
    monkeypatch.setattr(replicas, "ANSWER_WITHIN_S", 20.0)
    monkeypatch.setattr(replicas, "LEDGER_WITHIN_S", 20.0)


@pytest.fixture
def no_goodbye_is_late(monkeypatch: pytest.MonkeyPatch) -> None:
    """A coordinator that ends has all the time to give its lease back.

    Not for a test that rewrites a lease: its owner cannot give that back, and would try so long.
    """
    monkeypatch.setattr(serving, "CLOSE_TIMEOUT_S", 20.0)


async def lease_of(ledger: MemoryLedger, one: Replica) -> e.Lease:
    found = await ledger.read(lease_key(one.server.ownership.process))
    assert found is not None
    return e.decode_lease(found.value)


async def rewrite_lease(ledger: MemoryLedger, process: str, **changes: Any) -> None:
    key = lease_key(process)
    found = await ledger.read(key)
    assert found is not None
    changed = msgspec.structs.replace(e.decode_lease(found.value), **changes)
    assert isinstance(await ledger.swap(key, found.version, e.encode(changed)), Swapped)


def test_every_replica_answers_for_every_run() -> None:
    async def main() -> None:
        ledger = MemoryLedger()
        async with replica(ledger) as a, replica(ledger) as b, replica(ledger) as c:
            await a.has("one")
            await b.has("two/2 ")
            for each in (a, b, c):
                one, two = await each.status("one"), await each.status("two%2F2%20")
                assert [one.run_id, two.run_id] == ["one", "two/2 "]
                assert [one.source, two.source] == ["coordinator", "coordinator"]
                assert [one.attached, two.attached] == [1, 1]
                assert one.owner is not None
                assert one.owner.addresses == [f"127.0.0.1:{a.port}"]
                listed = await each.list()
                assert sorted(line.run_id for line in listed.runs) == ["one", "two/2 "]
                assert {line.source for line in listed.runs} == {"coordinator"}
                assert listed.problem is None
                assert (await each.ask("/api/v1/runs/nope"))[0] == 404
                assert (await each.ask("/api/v1/runs/one?members=x"))[0] == 400
            assert (await c.ask("/api/v1/runs/one?members=0"))[1]["members"] == []

    run_clean(main)


def test_any_replica_closes_a_run() -> None:
    async def main() -> None:
        ledger = MemoryLedger()
        async with replica(ledger) as a, replica(ledger) as b:
            await a.has("one")
            said = await b.ask("/api/v1/runs/one/close", post=b'{"reason": "enough"}')
            assert said == (200, {"run_id": "one", "was_closed": False})
            close = a.server.coordinator.runs["one"].membership.close
            assert close is not None
            assert close.by == "operator at 127.0.0.1 through 127.0.0.1"
            again = await b.ask("/api/v1/runs/one/close", post=b"{}")
            assert again == (200, {"run_id": "one", "was_closed": True})
            shown = await b.status("one")
            assert (shown.phase, shown.reason.startswith("stopped: enough")) == ("closed", True)
            assert (await b.ask("/api/v1/runs/nope/close", post=b"{}"))[0] == 404
            assert (await b.ask("/api/v1/runs/one/close", post=b"["))[0] == 400

    run_clean(main)


@pytest.mark.usefixtures("no_goodbye_is_late")
def test_a_run_without_an_owner_is_shown_and_can_be_closed() -> None:
    async def main() -> None:
        ledger = MemoryLedger()
        async with replica(ledger) as b:
            async with replica(ledger) as a:
                await a.has("one")
            shown = await b.status("one")
            assert (shown.phase, shown.source, shown.owner) == ("unowned", "ledger", None)
            assert "no coordinator owns it now" in shown.reason
            (line,) = (await b.list()).runs
            assert (line.phase, line.attached) == ("unowned", None)
            said = await b.ask("/api/v1/runs/one/close", post=b"{}")
            assert said == (200, {"run_id": "one", "was_closed": False})
            assert (await b.status("one")).phase == "closed"

    run_clean(main)


def test_an_owner_that_does_not_answer_is_named() -> None:
    async def main() -> None:
        ledger = MemoryLedger()
        async with replica(ledger) as a, replica(ledger) as b:
            await a.has("one")
            lease = await lease_of(ledger, a)
            with contextlib.closing(bind("127.0.0.1", 0)) as sock:
                nobody = Address("127.0.0.1", sock.getsockname()[1])
            await rewrite_lease(ledger, lease.process, addresses=(nobody,))
            shown = await b.status("one")
            assert (shown.phase, shown.source) == ("unreachable", "ledger")
            assert str(nobody) in shown.reason
            assert shown.owner is not None
            assert shown.owner.addresses == [str(nobody)]
            (line,) = (await b.list()).runs
            assert (line.phase, str(nobody) in line.reason) == ("unreachable", True)
            code, said = await b.ask("/api/v1/runs/one/close", post=b"{}")
            assert (code, str(nobody) in said["error"]) == (503, True)

    run_clean(main)


def test_without_the_ledger_the_answer_says_what_is_unknown(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(replicas, "LEDGER_WITHIN_S", 0.5)

    async def main() -> None:
        ledger = Silent()
        async with replica(ledger) as a, replica(ledger) as b:
            await a.has("one")
            await b.has("two")
            ledger.answers.clear()
            listed = await a.list()
            assert [each.run_id for each in listed.runs] == ["one"]
            assert "the ledger has not answered in time" in (listed.problem or "")
            assert (await a.status("one")).source == "coordinator"
            code, said = await a.ask("/api/v1/runs/two")
            assert (code, "cannot find the coordinator" in said["error"]) == (503, True)
            assert (await a.ask("/api/v1/runs/two/close", post=b"{}"))[0] == 503
            ledger.answers.set()

    run_clean(main)


class Silent(MemoryLedger):
    """Reads of runs can be made to hang."""

    def __init__(self) -> None:
        super().__init__()
        self.answers = asyncio.Event()
        self.answers.set()

    async def keys(self, prefix: str = "") -> tuple[str, ...]:
        await self.answers.wait()
        return await super().keys(prefix)

    async def read(self, key: str) -> Any:
        if key.startswith(run_key("")):
            await self.answers.wait()
        return await super().read(key)


# -- the token -------------------------------------------------------------------------------------


class Listening:
    """Something that has a coordinator's address. It keeps what it is shown."""

    def __init__(self) -> None:
        self.shown: list[str | None] = []
        self.asked: list[str] = []
        self.location = ""
        self.body = b"{}"

    @contextlib.asynccontextmanager
    async def started(self) -> AsyncIterator[Address]:
        async def answer(request: web.Request) -> web.Response:
            self.shown.append(request.headers.get("Authorization"))
            self.asked.append(request.path)
            if self.location:
                return web.Response(status=307, headers={"Location": self.location})
            return web.Response(body=self.body, content_type="application/json")

        app = web.Application()
        app.router.add_route("*", "/{path:.*}", answer)
        runner = web.AppRunner(app)
        await runner.setup()
        sock = bind("127.0.0.1", 0)
        try:
            await web.SockSite(runner, sock).start()
            yield Address("127.0.0.1", sock.getsockname()[1])
        finally:
            await runner.cleanup()


@contextlib.asynccontextmanager
async def other_address_in_the_lease() -> AsyncIterator[tuple[Replica, Listening]]:
    """Run "one" is another's, in whose lease a stranger's address stands. The replica to ask, and
    the stranger."""
    ledger, own = MemoryLedger(), Listening()
    async with replica(ledger) as a, replica(ledger) as b, own.started() as address:
        await a.has("one")
        lease = await lease_of(ledger, a)
        await rewrite_lease(ledger, lease.process, addresses=(address,))
        yield b, own


async def all_ways(one: Replica, run_id: str) -> None:
    await one.ask(f"/api/v1/runs/{run_id}")
    await one.ask("/api/v1/runs")
    await one.ask(f"/api/v1/runs/{run_id}/close", post=b"{}")


def test_the_token_is_sent_to_replicas_but_not_to_a_node() -> None:
    async def main() -> None:
        ledger, own, other, nodes = MemoryLedger(), Listening(), Listening(), Listening()
        async with (
            replica(ledger) as a,
            replica(ledger) as b,
            own.started() as address,
            other.started() as elsewhere,
            nodes.started() as inside,
        ):
            await a.has("one")
            lease = await lease_of(ledger, a)
            await rewrite_lease(ledger, lease.process, addresses=(address,))
            await all_ways(b, "one")
            assert own.shown == [f"Bearer {TOKEN}"] * 3
            # A redirect is not followed, with or without the token.
            own.location = f"http://{elsewhere}/"
            await all_ways(b, "one")
            assert (len(own.shown), other.shown) == (6, [])
            # A coordinator inside a node: none, or that of its lease.
            await rewrite_lease(ledger, lease.process, addresses=(inside,), only_run="one")
            await all_ways(b, "one")
            assert nodes.shown == [None] * 3
            await rewrite_lease(ledger, lease.process, token="drawn")
            await all_ways(b, "one")
            assert nodes.shown == [None] * 3 + ["Bearer drawn"] * 3

    run_clean(main)


def test_a_request_without_the_token_is_not_forwarded() -> None:
    async def main() -> None:
        async with other_address_in_the_lease() as (b, own):
            for token in ("", "wrong"):
                for path in ("/api/v1/runs/one", "/api/v1/runs"):
                    assert (await b.ask(path, token=token))[0] == 401
                said = await b.ask("/api/v1/runs/one/close", token=token, post=b"{}")
                assert said[0] == 401
            assert own.asked == []

    run_clean(main)


def test_a_coordinator_in_a_node_answers_for_its_own_run_only() -> None:
    """Its token is that of one run, whose nodes may not look at others."""

    async def main() -> None:
        ledger = MemoryLedger()
        async with (
            replica(ledger) as a,
            replica(ledger, token="of-run-two", only_run="two") as inside,
        ):
            await a.has("one")
            listed = await inside.ask("/api/v1/runs", token="of-run-two")
            assert listed[1]["runs"] == []
            assert (await inside.ask("/api/v1/runs/one", token="of-run-two"))[0] == 404
            close = await inside.ask("/api/v1/runs/one/close", token="of-run-two", post=b"{}")
            assert close[0] == 404
            assert not a.server.coordinator.runs["one"].is_closed

    run_clean(main)


def test_two_replicas_that_name_each_other_do_not_loop() -> None:
    async def main() -> None:
        ledger = MemoryLedger()
        async with replica(ledger) as a, replica(ledger) as b:
            await a.has("one")
            coordinator = a.server.coordinator
            coordinator.drop_run(
                coordinator.runs["one"]
            )  # the lease names it, but it does not own the run
            shown = await b.status("one")
            assert (shown.phase, shown.source) == ("unreachable", "ledger")
            assert (await a.status("one")).source == "ledger"

    run_clean(main)


def test_an_answer_of_something_else_is_not_passed_on() -> None:
    async def main() -> None:
        async with other_address_in_the_lease() as (b, own):
            for body in (b"", b"<html>", b"[]", b"[" * 100_000, b'{"runs": 5}', b"\xff\xfe"):
                own.body = body
                listed = await b.list()
                assert [each.phase for each in listed.runs] == ["unreachable"]
                assert (await b.status("one")).phase == "unreachable"

    run_clean(main)


def test_an_answer_about_another_run_or_an_endless_one_is_not_passed_on(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(replicas, "ANSWER_BYTES_MAX", 10_000)

    async def main() -> None:
        async with other_address_in_the_lease() as (b, own):
            own.body = json.dumps({"run_id": "two", "phase": "active"}).encode()
            assert (await b.status("one")).phase == "unreachable"
            own.body = json.dumps({"run_id": "one", "reason": "x" * 10_000}).encode()
            shown = await b.status("one")
            assert (shown.phase, "its answer is too long" in shown.reason) == ("unreachable", True)

    run_clean(main)


def test_for_a_closed_run_no_coordinator_is_asked() -> None:
    async def main() -> None:
        ledger, own = MemoryLedger(), Listening()
        async with replica(ledger) as a, replica(ledger) as b, own.started() as address:
            await a.has("one")
            assert (await a.ask("/api/v1/runs/one/close", post=b"{}"))[0] == 200
            lease = await lease_of(ledger, a)
            await rewrite_lease(ledger, lease.process, addresses=(address,))
            assert (await b.status("one")).phase == "closed"
            assert [each.phase for each in (await b.list()).runs] == ["closed"]
            assert own.asked == []

    run_clean(main)


def test_replicas_with_tls_ask_each_other_by_tls() -> None:
    """Each has a certificate of its own, of the authority that the nodes' token names."""

    async def main() -> None:
        ledger, authority = MemoryLedger(), Authority.new()
        nodes = written(authority.ca, new_secret())
        a_token, b_token = (with_identity(nodes, authority.identity()) for _ in range(2))
        async with replica(ledger, token=a_token) as a, replica(ledger, token=b_token) as b:
            await a.has("one")
            for each in (a, b):
                found = await each.status("one")
                assert (found.source, found.attached) == ("coordinator", 1)
                assert [line.source for line in (await each.list()).runs] == ["coordinator"]
            assert (await b.ask("/api/v1/runs/one/close", post=b"{}"))[0] == 200

    run_clean(main)


def test_a_replica_asks_an_elected_coordinator_by_the_authority_in_its_lease() -> None:
    async def main() -> None:
        ledger, own, drawn = MemoryLedger(), new_host_token(), new_host_token()
        elected = {"token": drawn, "lease_token": credential(drawn), "only_run": "one"}
        async with replica(ledger, token=own) as a, replica(ledger, **elected) as b:
            await b.has("one")
            found = await a.status("one")
            assert (found.source, found.attached) == ("coordinator", 1)
            # Whoever has the port now, without a certificate of that authority, hears nothing.
            other = credential(new_host_token())
            await rewrite_lease(ledger, b.server.ownership.process, token=other)
            found = await a.status("one")
            assert found.source == "ledger"
            assert "its certificate is of another authority" in str(found)
            await rewrite_lease(ledger, b.server.ownership.process, token="rlp1.damaged")
            found = await a.status("one")
            assert "the token in its lease is not complete" in str(found)

    run_clean(main)
