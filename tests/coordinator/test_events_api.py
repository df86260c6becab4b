"""The events of a run over HTTP: pages, streams, and what other coordinators pass on."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator
from typing import Any

import aiohttp
import msgspec
import pytest

from rallypoint.coordinator import events_api, replicas, sending
from rallypoint.coordinator import server as serving
from rallypoint.coordinator.config import CoordinatorConfig
from rallypoint.coordinator.event_log import EventLog, Events
from rallypoint.coordinator.events_api import EventPage
from rallypoint.coordinator.frames import CLOSE_TIMEOUT_S
from rallypoint.coordinator.run_events import EventKind
from rallypoint.coordinator.server import CoordinatorServer
from rallypoint.core import events as on
from rallypoint.core.values import NodeInfo, Outcome
from rallypoint.ledger.memory import MemoryLedger
from rallypoint.net import bind
from rallypoint.runtime import SystemRuntime
from rallypoint.security.hashed import HashedToken, hash_of
from rallypoint.security.roles import Role
from tests.coordinator.replica import SETTINGS, TOKEN, Replica, replica
from tests.loops import run_clean, run_virtual, until

pytestmark = pytest.mark.sockets
PATH = "/api/v1/runs/one/events"


@pytest.fixture(autouse=True)
def patience(monkeypatch: pytest.MonkeyPatch) -> None:
    """A pause of this machine is no coordinator that does not answer."""
    monkeypatch.setattr(replicas, "ANSWER_WITHIN_S", 20.0)
    monkeypatch.setattr(replicas, "LEDGER_WITHIN_S", 20.0)
    monkeypatch.setattr(serving, "CLOSE_TIMEOUT_S", 20.0)


class Stream:
    """A client of a stream, which reads one message after the other."""

    def __init__(self, answer: aiohttp.ClientResponse) -> None:
        self.answer = answer
        self.comments = 0

    async def next(self) -> dict[str, Any]:
        """The next message with an event: its id, its kind, its data."""
        found: dict[str, Any] = {}
        while True:
            line = (await self.answer.content.readline()).decode()
            assert line, "the stream has ended"
            name, _, value = line.rstrip("\n").partition(": ")
            if line == "\n":
                if "event" in found:
                    return found | {"data": json.loads(found["data"])}
                found = {}
            elif not name:
                self.comments += 1
            else:
                found[name] = value

    async def until(self, kind: str) -> list[str]:
        """The kinds of all messages up to one of this kind."""
        kinds: list[str] = []
        while kind not in kinds:
            kinds.append((await self.next())["event"])
        return kinds


@contextlib.asynccontextmanager
async def stream(one: Replica, query: str = "", **headers: str) -> AsyncIterator[Stream]:
    shown = {"Authorization": f"Bearer {TOKEN}", "Accept": "text/event-stream"} | headers
    url = f"http://127.0.0.1:{one.port}{PATH}{query}"
    async with aiohttp.ClientSession() as http, http.get(url, headers=shown) as answer:
        assert answer.status == 200, await answer.text()
        assert answer.content_type == "text/event-stream"
        yield Stream(answer)


async def page(one: Replica, query: str = "") -> EventPage:
    code, body = await one.ask(f"{PATH}{query}")
    assert code == 200, body
    return msgspec.convert(body, EventPage)


def close(one: Replica) -> None:
    one.server.coordinator.runs["one"].post(
        on.CloseRequested("somebody", Outcome.STOPPED, "enough")
    )


def test_pages_go_on_where_the_last_one_ended() -> None:
    async def main() -> None:
        async with replica(MemoryLedger()) as a:
            await a.has("one")
            run = a.server.coordinator.runs["one"]
            run.post(on.NodeAttached(NodeInfo("b", 1, "host"), SETTINGS, 1_001))
            whole = await page(a)
            assert [each["kind"] for each in whole.events] == ["began", "attached", "attached"]
            assert whole.events[1]["text"] == "a attached: host"
            assert (whole.more, whole.missing, whole.source) == (False, 0, "coordinator")
            first = await page(a, "?limit=2")
            assert (first.more, first.next) == (True, "1.2")
            second = await page(a, f"?since={first.next}")
            assert [each["id"] for each in second.events] == ["1.3"]
            nothing = await page(a, f"?since={second.next}")
            assert (nothing.events, nothing.next, nothing.more) == ([], "1.3", False)
            assert [each["id"] for each in (await page(a, "?last=1")).events] == ["1.3"]

    run_clean(main)


def test_a_place_that_a_new_coordinator_has_not_reached_begins_anew() -> None:
    async def main() -> None:
        async with replica(MemoryLedger()) as a:
            await a.has("one")
            assert len((await page(a, "?since=1.500")).events) == 2

    run_clean(main)


def test_dropped_events_are_counted() -> None:
    async def main() -> None:
        async with replica(MemoryLedger()) as a:
            await a.has("one")
            log = a.server.coordinator.runs["one"].events
            for number in range(2_100):
                log.add(EventKind.READY, node=f"n{number}")
            shown = await page(a, "?since=1.2&limit=3")
            assert shown.missing == log.dropped - 1  # one of them is before that place
            assert len(shown.events) == 3
            async with stream(a, Last_Event_ID="") as live:
                assert (await live.next())["event"] == "missing"

    run_clean(main)


@pytest.mark.parametrize(
    "more", ["%20", "%0d%0aX:%20y", "%23", "%00", "%C3%BC", "a+b", "%26last=1"]
)
def test_a_query_is_passed_on_to_the_owner_as_it_was_sent(more: str) -> None:
    async def main() -> None:
        ledger = MemoryLedger()
        async with replica(ledger) as a, replica(ledger) as b:
            await a.has("one")
            code, body = await b.ask(f"{PATH}?x={more}&limit=1")
            assert code == 200, body
            shown = msgspec.convert(body, EventPage)
            assert (shown.source, shown.problem) == ("coordinator", None)
            assert len(shown.events) == 1

    run_clean(main)


@pytest.mark.parametrize("query", ["?since=x", "?limit=0", "?limit=x", "?last=-1", "?since=1.2.3"])
def test_bad_questions_are_answered_with_400(query: str) -> None:
    async def main() -> None:
        async with replica(MemoryLedger()) as a:
            await a.has("one")
            code, body = await a.ask(f"{PATH}{query}")
            assert code == 400
            assert "must be" in body["error"]

    run_clean(main)


def test_a_stream_has_each_event_and_ends_with_the_run() -> None:
    async def main() -> None:
        async with replica(MemoryLedger()) as a:
            await a.has("one")
            async with stream(a) as live:
                assert await live.until("attached") == ["began", "attached"]
                loop = asyncio.get_running_loop()
                begun_s = loop.time()
                close(a)
                closed = await live.next()
                assert loop.time() - begun_s < 5.0
                assert (closed["event"], closed["id"]) == ("closed", "1.3")
                assert closed["data"]["text"].startswith("the run was closed: stopped: enough")
                a.server.coordinator.forget_run(a.server.coordinator.runs["one"])
                assert (await live.next())["event"] == "end"
            await until(
                lambda: not a.server.coordinator.events.bytes, "the memory is still counted"
            )

    run_clean(main)


def test_a_stream_goes_on_after_the_last_event_that_the_client_has() -> None:
    async def main() -> None:
        async with replica(MemoryLedger()) as a:
            await a.has("one")
            async with stream(a, **{"Last-Event-ID": "1.1"}) as live:
                assert (await live.next())["id"] == "1.2"
            async with stream(a, "?last=1") as live:
                assert (await live.next())["id"] == "1.2"

    run_clean(main)


def test_a_quiet_stream_sends_comments(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(events_api, "HEARTBEAT_S", 0.05)

    async def main() -> None:
        async with replica(MemoryLedger()) as a:
            await a.has("one")
            async with stream(a) as live:
                await live.until("attached")
                assert (await live.answer.content.readuntil(b"\n\n")) == b": heartbeat\n\n"

    run_clean(main)


def test_a_client_that_does_not_read_is_disconnected(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sending, "SEND_S", 0.2)

    async def main() -> None:
        async with replica(MemoryLedger()) as a:
            await a.has("one")
            log = a.server.coordinator.runs["one"].events
            reader, writer = await asyncio.open_connection("127.0.0.1", a.port, limit=1024)
            head = f"GET {PATH} HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer {TOKEN}\r\n"
            writer.write(f"{head}Accept: text/event-stream\r\n\r\n".encode())
            await reader.readuntil(b"\r\n\r\n")
            writer.transport.pause_reading()  # type: ignore[attr-defined]
            while log.listeners:
                for _ in range(1_000):
                    log.add(EventKind.READY, detail="x" * 400)
                await asyncio.sleep(0.01)
            writer.close()

    run_clean(main)


@pytest.mark.parametrize("is_relayed", [False, True])
def test_a_stream_ends_with_the_time_of_its_token(
    is_relayed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(events_api, "TIME_LOOK_S", 0.02)
    at_s = [1_000.0]
    monkeypatch.setattr(SystemRuntime, "wall_s", lambda _: at_s[0])
    token = "the-token-of-a-dashboard"
    ending = (HashedToken("dash", hash_of(token), (Role.VIEWER,), ends_at=1_060.0),)

    async def main() -> None:
        ledger = MemoryLedger()
        async with (
            replica(ledger, hashed_tokens=ending) as a,
            replica(ledger, hashed_tokens=ending) as b,
        ):
            await a.has("run")
            port = (b if is_relayed else a).port
            url = f"http://127.0.0.1:{port}/api/v1/runs/run/events"
            shown = {"Authorization": f"Bearer {token}", "Accept": "text/event-stream"}
            async with aiohttp.ClientSession() as http, http.get(url, headers=shown) as stream:
                assert stream.status == 200
                assert await stream.content.readline()
                at_s[0] = 1_061.0
                async with asyncio.timeout(20.0):
                    assert b"is over" in await stream.content.read()
                async with http.get(url, headers=shown) as again:
                    assert (again.status, (await again.json())["reason"]) == (401, "expired")

    run_clean(main)


def test_a_stream_does_not_keep_a_coordinator_from_ending() -> None:
    async def main() -> None:
        config, sock = CoordinatorConfig(token=TOKEN), bind("127.0.0.1", 0)
        port = sock.getsockname()[1]
        async with CoordinatorServer(config) as server:
            await server.start([sock])
            one = Replica(server, port)
            await one.has("one")
            async with stream(one) as live:
                await live.until("attached")
                loop = asyncio.get_running_loop()
                begun_s = loop.time()
                ending = asyncio.ensure_future(server.aclose())
                assert "end" in await live.until("end")
                await ending
                assert loop.time() - begun_s < CLOSE_TIMEOUT_S

    run_clean(main)


def test_streams_are_limited_for_each_account(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(events_api, "STREAMS_MAX", 2)

    async def main() -> None:
        async with replica(MemoryLedger()) as a:
            await a.has("one")
            async with stream(a), stream(a):
                code, body = await a.ask(PATH, Accept="text/event-stream")
                assert code == 503
                assert "too many streams" in body["error"]
                assert (await a.ask(PATH))[0] == 200

    run_clean(main)


def test_another_replica_passes_on_pages_and_streams() -> None:
    async def main() -> None:
        ledger = MemoryLedger()
        async with replica(ledger) as a, replica(ledger) as b:
            await a.has("one")
            assert (await page(b)).events == (await page(a)).events
            assert (await b.ask(f"{PATH}?since=x"))[0] == 400
            async with stream(b, **{"Last-Event-ID": "1.1"}) as live:
                assert (await live.next())["id"] == "1.2"
                close(a)
                assert (await live.next())["event"] == "closed"

    run_clean(main)


def test_the_head_of_a_stream_has_no_body_and_ends() -> None:
    request = (
        f"HEAD {PATH} HTTP/1.1\r\nHost: here\r\nAuthorization: Bearer {TOKEN}\r\n"
        "Accept: text/event-stream\r\nConnection: close\r\n\r\n"
    )

    async def main() -> None:
        ledger = MemoryLedger()
        async with replica(ledger) as a, replica(ledger) as b:
            await a.has("one")
            for each in (a, b):
                reader, writer = await asyncio.open_connection("127.0.0.1", each.port)
                writer.write(request.encode())
                head, _, body = (await reader.read()).partition(b"\r\n\r\n")
                assert head.startswith(b"HTTP/1.1 200 ")
                assert b"text/event-stream" in head
                assert body == b""
                writer.close()

    run_clean(main)


def test_a_stream_of_a_replica_ends_with_the_owner() -> None:
    async def main() -> None:
        ledger = MemoryLedger()
        async with replica(ledger) as b:
            async with replica(ledger) as a:
                await a.has("one")
                async with stream(b) as live:
                    await live.until("attached")
                    await a.server.aclose()
                    assert "handed_over" in await live.until("end")
            code, body = await b.ask(PATH, Accept="text/event-stream")
            assert code == 503
            assert "no coordinator owns it now" in body["error"]
            shown = await page(b)
            assert (shown.source, shown.missing) == ("ledger", None)
            assert "no coordinator owns it now" in str(shown.problem)

    run_clean(main)


def test_an_unknown_run_is_answered_with_the_nearest_names() -> None:
    async def main() -> None:
        ledger = MemoryLedger()
        async with replica(ledger) as a, replica(ledger) as b:
            for run_id in ("one", "job-42", "job-43"):
                await a.has(run_id)
            for path, body in (
                ("/api/v1/runs/jb-42", None),
                ("/api/v1/runs/jb-42/events", None),
                ("/api/v1/runs/jb-42/close", b"{}"),
            ):
                code, said = await b.ask(path, post=body)
                assert code == 404, path
                assert said["nearest"] == ["job-42", "job-43"]
                assert said["hint"].startswith("did you mean 'job-42' or 'job-43'? ")
            assert (await a.ask("/api/v1/runs/quite-different"))[1]["nearest"] == []

    run_clean(main)


@pytest.mark.parametrize("waited_s", [0.0, 0.2, 0.35])
def test_what_is_collected_in_a_large_run_is_shown_soon_whenever_it_happens(
    waited_s: float,
) -> None:
    """`waited_s`: how long the stream has waited for an event before there is one."""

    async def main() -> None:
        loop, news = asyncio.get_running_loop(), asyncio.Event()
        log = EventLog(Events("h"), "run", 1)
        log.is_large = True
        log.listeners[news.set] = None
        loop.call_later(
            waited_s, lambda: log.add_node(EventKind.ATTACHED, "n", loop.time(), None, "")
        )
        while not await events_api._has_news(news, log, has_end=False):
            pass
        (event,) = log.after((0, 0), 10, loop.time())
        assert event.node == "n"
        assert loop.time() - 1_000.0 - waited_s < 0.4

    run_virtual(main())
