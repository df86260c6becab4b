"""Thousands of failed logins cost little, and lock out nobody with a right token."""

from __future__ import annotations

import asyncio
import datetime as dt
import time
from typing import Any

import aiohttp
import pytest

from rallypoint import errors
from rallypoint.coordinator.config import CoordinatorConfig
from rallypoint.security import authority
from rallypoint.security import token_form as form
from rallypoint.security.authority import Authority, new_secret
from rallypoint.security.logins import CHECKS_PER_S, FREE
from rallypoint.security.roles import Role
from tests.coordinator.replica import TOKEN, Replica
from tests.loops import BOOTSTRAP, node, opened, run_clean, served

pytestmark = pytest.mark.sockets

AUTHORITY = Authority.new()
HOST = form.written(AUTHORITY.ca, new_secret(), AUTHORITY.identity())
DAY = dt.timedelta(days=1)


async def statuses(one: Replica, count: int, token: Any) -> list[int]:
    found = []
    for number in range(count):
        code, _ = await one.ask("/api/v1/runs", token=token(number))
        found.append(code)
    return found


def test_after_some_failures_an_address_is_told_to_wait() -> None:
    async def main() -> None:
        async with served(CoordinatorConfig(token=TOKEN)) as (server, port):
            one = Replica(server, port)
            assert await statuses(one, FREE, lambda number: f"no{number}") == [401] * FREE
            shown = {"Authorization": "Bearer no"}
            url = f"http://127.0.0.1:{port}/api/v1/runs"
            async with aiohttp.ClientSession() as http, http.get(url, headers=shown) as answer:
                assert answer.status == 429
                assert 1 <= int(answer.headers["Retry-After"]) <= 30
                assert "WWW-Authenticate" not in answer.headers
                assert (await answer.json())["error"] == "the token is wrong"

    run_clean(main)


def test_a_right_token_at_the_same_address_is_admitted_at_once() -> None:
    async def main() -> None:
        async with served(CoordinatorConfig(token=TOKEN)) as (server, port):
            one = Replica(server, port)
            assert (await statuses(one, FREE + 5, lambda number: f"no{number}"))[-1] == 429
            assert (await one.ask("/api/v1/runs"))[0] == 200
            endpoint = f"http://127.0.0.1:{port}"
            async with opened(endpoint, token=TOKEN) as a:
                assert await a.next_round(BOOTSTRAP) is not None
            with pytest.raises(errors.TokenError, match="the token is wrong"):
                await node(endpoint, token="wrong").open()

    run_clean(main)


def damaged(number: int) -> str:
    """A claim of the right authority with another signature each."""
    _, text = AUTHORITY.claim((Role.NODE,), "*", DAY)
    head, _, signature = text.rpartition(".")
    return f"{head}.{signature[:-4]}AAAA"


@pytest.fixture
def checked(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """When each signature was checked."""
    found: list[float] = []
    really = authority.has_signed

    def has_signed(*given: Any) -> bool:
        found.append(time.monotonic())
        return really(*given)

    monkeypatch.setattr(authority, "has_signed", has_signed)
    monkeypatch.setattr("rallypoint.security.logins.CHECKS_PER_S", 3)
    return found


def test_few_signatures_are_checked_for_an_address_that_fails(
    checked: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    count = FREE + 60

    async def main() -> None:
        async with served(CoordinatorConfig(token=HOST)) as (server, port):
            one = Replica(server, port)
            began_s = time.monotonic()
            monkeypatch.setattr("rallypoint.security.logins.CHECKS_PER_S", 0)
            found = await statuses(one, count, damaged)
            seconds = time.monotonic() - began_s
            assert found[:FREE] == [401] * FREE
            assert found.count(429) > 10
            # One at the end of each wait; five waits are shorter than the longest.
            assert len(checked) <= FREE + 6 + seconds / 30
            monkeypatch.setattr("rallypoint.security.logins.CHECKS_PER_S", 3)
            # A claim that was not seen yet is soon checked, and then known.
            _, text = AUTHORITY.claim((Role.VIEWER,), "*", DAY)
            async with asyncio.timeout(60):
                while (await one.ask("/api/v1/runs", token=text))[0] != 200:
                    """until the second of its Retry-After is over"""
            before = len(checked)
            for _ in range(5):
                assert (await one.ask("/api/v1/runs", token=text))[0] == 200
            assert len(checked) == before

    assert CHECKS_PER_S == 20
    run_clean(main, 120.0)


def test_a_node_whose_claim_is_not_checked_now_tries_again(checked: list[float]) -> None:
    async def main() -> None:
        async with served(CoordinatorConfig(token=HOST)) as (server, port):
            one = Replica(server, port)
            assert (await statuses(one, FREE + 20, damaged))[-1] == 429
            _, text = AUTHORITY.claim((Role.NODE,), "*", DAY)
            async with opened(f"https://127.0.0.1:{port}", token=text) as a:
                assert await a.next_round(BOOTSTRAP) is not None

    run_clean(main, 120.0)
