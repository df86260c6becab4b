"""A revoked token is refused by all replicas, and what is open with it ends."""

from __future__ import annotations

import asyncio
import contextlib
import datetime as dt

import aiohttp
import pytest

from rallypoint import errors
from rallypoint.coordinator import revocations
from rallypoint.coordinator.config import CoordinatorConfig
from rallypoint.coordinator.revocations import Revocations, revoke
from rallypoint.errors import LedgerCorruptError, LedgerFullError, LedgerUnreachableError
from rallypoint.ledger.contract import Versioned
from rallypoint.ledger.keys import REVOKED
from rallypoint.ledger.memory import MemoryLedger
from rallypoint.security import token_form as form
from rallypoint.security.authority import Authority, new_secret
from rallypoint.security.hashed import HashedToken, hash_of
from rallypoint.security.roles import Role
from tests.coordinator.peers import raw
from tests.coordinator.replica import replica
from tests.loops import BOOTSTRAP, node, opened, run_clean, run_virtual, served, until

AUTHORITY = Authority.new()
DAY = dt.timedelta(days=1)
HOST = form.written(AUTHORITY.ca, new_secret(), AUTHORITY.identity())


@pytest.fixture(autouse=True)
def often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(revocations, "LOOK_S", 0.02)


@pytest.mark.sockets
def test_every_replica_refuses_a_revoked_claim_and_ends_its_connections(
    caplog: pytest.LogCaptureFixture,
) -> None:
    claim, text = AUTHORITY.claim((Role.NODE,), "*", DAY)
    _, other = AUTHORITY.claim((Role.NODE,), "*", DAY)

    async def main() -> None:
        ledger = MemoryLedger()
        async with (
            replica(ledger, token=HOST) as a,
            replica(ledger, token=HOST) as b,
            opened(f"https://127.0.0.1:{a.port}", run_id="one", token=text, node_name="x") as x,
            opened(f"https://127.0.0.1:{b.port}", run_id="two", token=other) as y,
        ):
            assert await x.next_round(BOOTSTRAP) is not None
            assert await y.next_round(BOOTSTRAP) is not None
            for each in (a, b):
                assert (await each.ask("/api/v1/runs/one", token=text))[0] == 200
            await revoke(ledger, claim.id, claim.ends_at, claim.not_before)
            servers = (a.server, b.server)
            await until(lambda: all(each.tokens.revoked for each in servers), "it is not read")
            with pytest.raises(errors.TokenError, match="was revoked"):
                await x.next_round(BOOTSTRAP)
            for each in (a, b):
                code, said = await each.ask("/api/v1/runs/one", token=text)
                assert (code, said["reason"]) == (401, "revoked")
                assert (await each.ask("/api/v1/runs/one", token=other))[0] == 200
            assert b.server.coordinator.runs["two"].attached_count == 1
            told = f"token {claim.id} was revoked: the connections of one node are closed"
            assert told in caplog.text

    run_clean(main, 60.0)


@pytest.mark.sockets
def test_a_new_replica_refuses_from_its_first_request() -> None:
    claim, text = AUTHORITY.claim((Role.NODE,), "*", DAY)

    async def main() -> None:
        ledger = MemoryLedger()
        await revoke(ledger, claim.id, claim.ends_at, claim.not_before)
        async with replica(ledger, token=HOST) as a:
            with pytest.raises(errors.TokenError, match=f"claim {claim.id} was revoked"):
                await node(f"https://127.0.0.1:{a.port}", token=text).open()

    run_clean(main)


@pytest.mark.sockets
def test_a_stream_of_events_ends_with_its_token() -> None:
    text = "the-token-of-a-dashboard"
    hashed = (HashedToken("dash", hash_of(text), (Role.VIEWER,)),)
    config = CoordinatorConfig(token="t", hashed_tokens=hashed)

    async def main() -> None:
        async with served(config) as (server, port):
            url = f"http://127.0.0.1:{port}/api/v1/runs/run/events"
            shown = {"Authorization": f"Bearer {text}", "Accept": "text/event-stream"}
            async with (
                opened(f"http://127.0.0.1:{port}", token="t"),
                aiohttp.ClientSession() as http,
                http.get(url, headers=shown) as stream,
            ):
                assert stream.status == 200
                assert await stream.content.readline()
                server.replace_tokens(("t",), hashed, frozenset({"dash"}))
                with contextlib.suppress(aiohttp.ClientError):
                    await stream.content.read()  # what was sent before, and no more
                async with http.get(url, headers=shown) as again:
                    assert again.status == 401

    run_clean(main)


class Slow(MemoryLedger):
    """Answers what it is asked once `may_go` is set."""

    def __init__(self) -> None:
        super().__init__()
        self.may_go = asyncio.Event()
        self.may_go.set()

    async def read(self, key: str) -> Versioned | None:
        await self.may_go.wait()
        return await super().read(key)


@pytest.mark.sockets
def test_a_request_that_waits_while_its_token_is_revoked_is_told_so() -> None:
    """It has no answer yet, so its connection need not be cut: that would tell it nothing."""
    text = "the-token-of-a-dashboard"
    hashed = (HashedToken("dash", hash_of(text), (Role.VIEWER,)),)
    head = f"GET /api/v1/runs/none HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {text}\r\n\r\n"

    async def main() -> None:
        ledger = Slow()
        async with replica(ledger, token="t", hashed_tokens=hashed) as a:
            ledger.may_go.clear()
            waits = asyncio.create_task(raw(a.port, head.encode()))  # aiohttp would ask again
            await until(lambda: len(a.server._answering) == 1, "it was not asked")
            a.server.replace_tokens(("t",), hashed, frozenset({"dash"}))
            ledger.may_go.set()
            answer = await waits
            assert answer.startswith(b"HTTP/1.1 401 ")
            assert b'"reason":"revoked"' in answer

    run_clean(main)


@pytest.mark.sockets
def test_a_connection_that_is_closed_is_none_that_stays() -> None:
    text = "the-token-of-a-node"
    hashed = (HashedToken("n", hash_of(text), (Role.NODE,)),)
    config = CoordinatorConfig(token="t", hashed_tokens=hashed)

    async def main() -> None:
        async with (
            served(config) as (server, port),
            opened(f"http://127.0.0.1:{port}", token=text),
        ):
            assert server.replace_tokens(("t",), hashed) == 0
            assert server.replace_tokens(("t",), ()) == 1
            assert server.replace_tokens(("t",), hashed, frozenset({"n"})) == 0

    run_clean(main)


def test_of_many_that_revoke_at_once_none_is_lost() -> None:
    async def main() -> None:
        ledger = MemoryLedger()
        ids = [f"id{number}" for number in range(10)]
        await asyncio.gather(*(revoke(ledger, each, None, 1_000.0) for each in ids))
        seen: list[dict[str, str]] = []
        await Revocations(ledger, seen.append).look()
        assert seen == [dict.fromkeys(ids, "")]

    run_virtual(main())


def test_ids_are_forgotten_once_their_tokens_have_expired() -> None:
    async def main() -> None:
        ledger = MemoryLedger()
        await revoke(ledger, "old", 1_000.0, 900.0, "ann@host7")
        await revoke(ledger, "unknown", None, 900.0, "ann@host7")
        await revoke(ledger, "new", 10_000_000.0, 1_000.0 + revocations.KEPT_AFTER_S + 1)
        seen: list[dict[str, str]] = []
        await Revocations(ledger, seen.append).look()
        assert seen == [{"unknown": "ann@host7", "new": ""}]

    run_virtual(main())


def test_there_are_not_too_many(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(revocations, "IDS_MAX", 2)

    async def main() -> None:
        ledger = MemoryLedger()
        for each in ("a", "b", "a"):
            await revoke(ledger, each, None, 1_000.0)
        with pytest.raises(LedgerFullError):
            await revoke(ledger, "c", None, 1_000.0)

    run_virtual(main())


class Troubled(MemoryLedger):
    """A ledger that may fail to answer."""

    is_away = False

    async def read(self, key: str) -> Versioned | None:
        if self.is_away:
            raise LedgerUnreachableError("away")
        return await super().read(key)


def test_without_the_ledger_the_last_ids_hold() -> None:
    async def main() -> None:
        ledger = Troubled()
        seen: list[dict[str, str]] = []
        reader = Revocations(ledger, seen.append)
        await revoke(ledger, "a", None, 1_000.0)
        await reader.look()
        ledger.is_away = True
        await reader.look()
        ledger.is_away = False
        found = await ledger.read(REVOKED)
        assert found is not None
        await ledger.swap(REVOKED, found.version, b"damaged")
        await reader.look()
        assert seen == [{"a": ""}]
        with pytest.raises(LedgerCorruptError):
            await revoke(ledger, "b", None, 1_000.0)

    run_virtual(main())


@pytest.mark.sockets
def test_tokens_with_ids_wait_until_the_revoked_ones_are_known() -> None:
    _, text = AUTHORITY.claim((Role.NODE,), "*", DAY)
    dash = "the-token-of-a-dashboard"
    hashed = (HashedToken("dash", hash_of(dash), (Role.VIEWER,)),)

    async def main() -> None:
        ledger = Unreadable()
        async with replica(ledger, token=HOST, hashed_tokens=hashed) as a:
            for each in (text, dash):
                code, said = await a.ask("/api/v1/runs", token=each)
                assert (code, said["reason"]) == (429, "unchecked")
                assert "could not read yet which tokens were revoked" in said["error"]
            assert (await a.ask("/api/v1/runs", token=form.credential(HOST)))[0] == 200
            ledger.is_away = False
            await until(lambda: not a.server.tokens.awaits_revoked, "it is not read")
            for each in (text, dash):
                assert (await a.ask("/api/v1/runs", token=each))[0] == 200

    run_clean(main)


class Unreadable(Troubled):
    """Only the revoked tokens cannot be read."""

    is_away = True

    async def read(self, key: str) -> Versioned | None:
        return await (super().read(key) if key == REVOKED else MemoryLedger.read(self, key))


@pytest.mark.sockets
def test_a_coordinator_that_gets_tokens_with_ids_later_reads_the_revoked_ones() -> None:
    plain = "a-token-without-an-authority"
    hashed = (HashedToken("dash", hash_of("x" * 30), (Role.VIEWER,)),)

    async def main() -> None:
        ledger = MemoryLedger()
        await revoke(ledger, "dash", None, 1_000.0)
        async with replica(ledger, token=plain) as a:
            assert a.server._looking is None
            assert a.server._ending_soon is None
            a.server.replace_tokens((plain,), hashed)
            await until(lambda: "dash" in a.server.tokens.revoked, "it is not read")
            a.server.replace_tokens((HOST,), hashed, frozenset({"more"}))
            assert a.server._ending_soon is not None
            a.server.replace_tokens((HOST,), hashed)
            assert a.server.tokens.revoked == {"dash", "more"}

    run_clean(main)
