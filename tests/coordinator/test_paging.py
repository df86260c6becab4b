"""A list of runs is bounded, no matter which coordinator answers and how many runs there are."""

from __future__ import annotations

import msgspec
import pytest

from rallypoint.cli import api
from rallypoint.coordinator.paging import RUNS_SHOWN_MAX, Page, page_of
from rallypoint.coordinator.status import RunList
from rallypoint.endpoints import parse_endpoint
from rallypoint.errors import CoordinatorError
from rallypoint.ledger.keys import run_key
from rallypoint.ledger.memory import MemoryLedger
from rallypoint.wire.api_paths import quoted
from tests.coordinator.replica import Replica, replica
from tests.loops import run_clean

IDS = sorted(
    ["one", "two/2", "a b", "A", "z", "\U0001f600" * 60, "é", "run-1", "run-10"], key=run_key
)


async def all_pages(one: Replica, limit: int) -> list[list[str]]:
    pages: list[list[str]] = []
    query = f"?limit={limit}"
    while True:
        code, body = await one.ask(f"/api/v1/runs{query}")
        assert code == 200, body
        listed = msgspec.convert(body, RunList)
        assert listed.problem is None
        pages.append([line.run_id for line in listed.runs])
        if body["next"] is None:
            return pages
        query = f"?limit={limit}&after={quoted(body['next'])}"


@pytest.mark.sockets
@pytest.mark.parametrize("limit", [1, 2, len(IDS) - 1, len(IDS), 1_000])
def test_all_replicas_return_the_same_pages(limit: int) -> None:
    """Also of runs that another one has, and of those that no coordinator has any more."""

    async def main() -> None:
        ledger = MemoryLedger()
        async with replica(ledger) as a, replica(ledger) as b:
            async with replica(ledger) as gone:
                for number, run_id in enumerate(IDS):
                    await (a, b, gone)[number % 3].has(run_id)
            for each in (a, b):
                pages = await all_pages(each, limit)
                assert [run_id for page in pages for run_id in page] == IDS
                assert all(len(page) <= limit for page in pages)

    run_clean(main)


def test_without_a_limit_in_the_request_there_is_a_default() -> None:
    runs = [f"run-{number}" for number in range(RUNS_SHOWN_MAX + 5)]
    assert page_of({}).first(runs, run_key) == sorted(runs)[: RUNS_SHOWN_MAX + 1]
    assert page_of({"limit": "1000000"}).most == RUNS_SHOWN_MAX
    assert page_of({"after": "run-1", "limit": "3"}) == Page("run-1", 3)


@pytest.mark.sockets
@pytest.mark.parametrize("query", ["limit=0", "limit=-1", "limit=x", "limit=%d9%a1", "after=%1b"])
def test_a_bad_page_request_is_refused(query: str) -> None:
    async def main() -> None:
        async with replica(MemoryLedger()) as one:
            code, body = await one.ask(f"/api/v1/runs?{query}")
            assert code == 400
            assert "must be" in body["error"]

    run_clean(main)


def test_the_command_requests_all_pages(monkeypatch: pytest.MonkeyPatch) -> None:
    answers = {
        "/api/v1/runs": {"coordinator": {}, "runs": [1], "problem": "a", "next": "x/y"},
        "/api/v1/runs?after=x%2Fy": {"coordinator": {}, "runs": [2], "problem": None, "next": "z"},
        "/api/v1/runs?after=z": {"coordinator": {}, "runs": [3], "problem": None, "next": None},
    }
    monkeypatch.setattr(api, "request", lambda at, token, method, path, **_: answers[path])
    listed = api.runs(parse_endpoint("http://localhost:1"), "")
    assert (listed["runs"], listed["problem"], listed["next"]) == ([1, 2, 3], "a", None)


def test_an_endless_list_is_no_answer_of_a_coordinator(monkeypatch: pytest.MonkeyPatch) -> None:
    page: dict[str, object] = {"coordinator": {}, "runs": [], "problem": None, "next": "x"}
    monkeypatch.setattr(api, "request", lambda *_, **__: page)
    with pytest.raises(CoordinatorError, match="has no end"):
        api.runs(parse_endpoint("http://localhost:1"), "")


@pytest.mark.sockets
@pytest.mark.parametrize(
    "path",
    [
        "/api/v1/runs?limit=%s",
        "/api/v1/runs/one?members=%s",
        "/api/v1/runs/one/events?limit=%s",
        "/api/v1/runs/one/events?last=%s",
    ],
)
def test_a_number_is_cut_to_the_most_and_what_is_none_is_refused(path: str) -> None:
    async def main() -> None:
        async with replica(MemoryLedger()) as one:
            await one.has("one")
            for number in ("1" + "0" * 9, "9" * 30, "0" * 30 + "1", "9" * 5_000):
                code, body = await one.ask(path % number)
                assert code == 200, body
            for text in ("-1", "+1", "1e3", "1_0", "%d9%a1", "", "%00"):
                code, body = await one.ask(path % text)
                assert code == 400, text
                assert "must be a whole number" in body["error"]

    run_clean(main)
