"""`/api/v1/runs/X/events`: the events of a run, as pages of JSON or as a stream (SSE).

A stream has no queue: it is a place in the run's log, and writes what is behind it. A client that
does not read costs one batch; it misses what the log drops meanwhile, and is told how much.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any, Final

import msgspec
from aiohttp import ClientError, StreamReader, hdrs, web

from rallypoint import runtime
from rallypoint.coordinator import guard, http_api, ledger_view, sending
from rallypoint.coordinator.event_log import SHOWN_AFTER_S, EventLog
from rallypoint.coordinator.hosted_run import HostedRun
from rallypoint.coordinator.http_api import COORDINATOR, json_error
from rallypoint.coordinator.ledger_view import Kept
from rallypoint.coordinator.paging import number_in
from rallypoint.coordinator.replicas import (
    LOOK_ERRORS,
    Caller,
    NoAnswerError,
    Replicas,
    no_answer,
)
from rallypoint.coordinator.run_events import RunEvent, position_of, shown
from rallypoint.core.election.records import RunRegister
from rallypoint.core.quotas import Holdings
from rallypoint.security import claims
from rallypoint.wire import api_paths
from rallypoint.wire.headers import ONLY_OWN

EVENTS_SHOWN: Final = 200
EVENTS_SHOWN_MAX: Final = 1_000
"""How many events an answer has: the default, and the most."""
STREAMS_MAX: Final = 128
"""The most open streams of all accounts. They are half of all requests, so that others find room.
"""
HEARTBEAT_S: Final = 15.0
TIME_LOOK_S: Final = 1.0
"""A stream whose token has an end looks for it so often."""
LOOK_S: Final = 0.4
"""A stream without an event sends a comment, and one of a large run looks for events, so often, in
seconds."""
BATCH: Final = 100
"""How many events a stream encodes at once."""
COALESCE_S: Final = 0.05
"""How long a stream waits after an event for others that happen together."""
RETRY_MS: Final = 1_000
"""When a client connects again after a stream has ended."""
_STREAM: Final = "text/event-stream"
_STREAM_HEADERS: Final = {
    "Content-Type": _STREAM,
    "Cache-Control": "no-store",
    "X-Accel-Buffering": "no",
}
"""Proxies must pass on each event at once."""
_STREAMS: web.AppKey[Holdings] = web.AppKey("streams", Holdings)


class Asked(msgspec.Struct, frozen=True):
    """What a request asks for: events after the place `since`, at most `most`.

    `last`: the newest ones instead. `is_new`: the request names no place.
    """

    since: tuple[int, int]
    most: int
    last: int | None
    is_new: bool


class EventPage(msgspec.Struct, frozen=True, kw_only=True):
    """An answer. `next`: the value of `?since=` for the events that follow.

    `more`: whether there are more events now. `missing`: how many events after `since` are not kept
    any more; null: unknown. `source`: "coordinator", or "ledger" if the run has no coordinator
    that answers. `problem`: why events may be missing; null if none are.
    """

    run_id: str
    ledger_id: str
    source: str
    events: list[dict[str, Any]]
    next: str
    more: bool
    missing: int | None
    problem: str | None
    shown_at: float
    shown_on: str


def add_routes(app: web.Application) -> None:
    """Add the events to the API of a coordinator."""
    app[_STREAMS] = Holdings()
    app.router.add_get(f"{api_paths.RUNS}/{{run_id:[^/]+}}/events", _events)


async def _events(request: web.Request) -> web.StreamResponse:
    coordinator, run_id = request.app[COORDINATOR], request.match_info["run_id"]
    try:
        asking = asked(request.query, request.headers.get("Last-Event-ID"))
    except ValueError as error:
        return json_error(400, str(error))
    is_stream = _STREAM in request.headers.get("Accept", "")
    replicas, run = http_api.replicas_of(request), coordinator.runs.get(run_id)
    if replicas is not None and (run is None or not run.is_claimed):
        try:
            kept = await replicas.look(run_id)
        except LOOK_ERRORS as error:
            return http_api.unreadable(run_id, error)
        if kept is not None:
            if is_stream and request.method == hdrs.METH_HEAD:
                return _head()
            return await _elsewhere(request, replicas, kept, asking, is_stream)
        run = coordinator.runs.get(run_id)
    if run is None:
        return await http_api.no_such_run(request, run_id)
    if is_stream and request.method == hdrs.METH_HEAD:
        return _head()
    if is_stream:
        return await _limited(request, run, asking)
    return _page(request, run, asking)


def asked(query: Mapping[str, str], last_id: str | None = None) -> Asked:
    """What a query asks for. `last_id`: the last event that the client has, if it says so.

    Raises ValueError with a text that names the fault.
    """
    since = last_id or query.get("since", "")
    most = number_in(query, "limit", EVENTS_SHOWN_MAX)
    last = number_in(query, "last", EVENTS_SHOWN_MAX)
    place = position_of(since) if since else (0, 0)
    return Asked(place, EVENTS_SHOWN if most is None else most, last, not since)


# -- pages -----------------------------------------------------------------------------------------


def _page(request: web.Request, run: HostedRun, asking: Asked) -> web.Response:
    coordinator, log = request.app[COORDINATOR], run.events
    since = _within(log, asking.since)
    if asking.last is not None:
        log.after(log.last_position, 1, coordinator.now_s())  # what was collected
        found = log.last(asking.last)
    else:
        found = log.after(since, asking.most, coordinator.now_s())
    last = found[-1].position if found else since
    page = EventPage(
        run_id=run.run_id,
        ledger_id=coordinator.ledger_id,
        source="coordinator",
        events=[shown(event) for event in found],
        next=_text_of(last),
        more=bool(found) and log.last_position > last,
        missing=0 if asking.last is not None else _missing(since, found),
        problem=None,
        shown_at=runtime.here().wall_s(),
        shown_on=coordinator.config.clock_host,
    )
    return _json(page)


def _within(log: EventLog, since: tuple[int, int]) -> tuple[int, int]:
    """The place, or the beginning if the log has not come so far.

    Then a coordinator in memory was started again, and the place is one of its predecessor.
    """
    return since if since <= log.last_position else (0, 0)


def _missing(since: tuple[int, int], found: list[RunEvent]) -> int:
    """How many events from the place to the last one found are not kept.

    The numbers of a term begin with 1, and have no gaps.
    """
    missing, (term, seq) = 0, since
    for event in found:
        if event.term != term:
            term, seq = event.term, 0
        missing += event.seq - seq - 1
        seq = event.seq
    return missing


def _text_of(position: tuple[int, int]) -> str:
    return f"{position[0]}.{position[1]}"


def _json(page: EventPage) -> web.Response:
    return web.Response(body=msgspec.json.encode(page) + b"\n", content_type="application/json")


# -- runs of other coordinators --------------------------------------------------------------------


async def _elsewhere(
    request: web.Request, replicas: Replicas, kept: Kept, asking: Asked, is_stream: bool
) -> web.StreamResponse:
    """The answer of the run's owner; if there is none, what the ledger has."""
    run_id, problem = kept.register.run_id, ledger_view.NO_COORDINATOR
    lease = kept.lease if kept.register.close is None else None
    if lease is not None and ONLY_OWN not in request.headers:
        path = api_paths.events_path(run_id)
        if request.query_string:
            # As it was sent: what is decoded may have characters that end a line or a path.
            path += f"?{request.rel_url.raw_query_string}"
        caller = http_api.caller_of(request)
        try:
            if is_stream:
                return await _relayed(request, replicas, kept, caller, path)
            said = await replicas.ask(lease, caller, path)
            if said.status != 404:
                return web.Response(
                    body=msgspec.json.encode(said.body) + b"\n",
                    status=said.status,
                    content_type="application/json",
                )
            problem = no_answer(lease, "it does not own the run any more")
        except NoAnswerError as error:
            problem = no_answer(lease, str(error))
    if is_stream:
        hint = "try again in a few seconds; without a stream, the ledger's events are shown"
        return json_error(503, f"run {run_id!r} has no events now: {problem}", hint)
    try:
        every, gaps = await replicas.events(kept)
    except LOOK_ERRORS as error:
        return http_api.unreadable(run_id, error)
    host = request.app[COORDINATOR].config.clock_host
    return _json(kept_page(kept.register, every, gaps, asking, problem, host))


def kept_page(
    register: RunRegister,
    every: list[RunEvent],
    gaps: str,
    asking: Asked,
    problem: str,
    host: str,
) -> EventPage:
    """The events that the ledger has. `gaps`: why some may be missing; `problem`: why no
    coordinator has answered; `host`: of this process.
    """
    after = [event for event in every if event.position > asking.since]
    found = every[-asking.last :] if asking.last is not None else after[: asking.most]
    last = found[-1].position if found else asking.since
    return EventPage(
        run_id=register.run_id,
        ledger_id=register.ledger_id,
        source="ledger",
        events=[shown(event) for event in found],
        next=_text_of(last),
        more=bool(found) and every[-1].position > last,
        missing=None,
        problem="; ".join(filter(None, (problem if register.close is None else "", gaps))) or None,
        shown_at=runtime.here().wall_s(),
        shown_on=host,
    )


async def _relayed(
    request: web.Request, replicas: Replicas, kept: Kept, caller: Caller, path: str
) -> web.StreamResponse:
    """Pass on the owner's stream. Raises NoAnswerError if there is none."""
    assert kept.lease is not None
    streams, account = request.app[_STREAMS], request[http_api.ACCOUNT]
    if not streams.has_room(account, STREAMS_MAX):
        return _too_many(streams)
    streams.take(account)
    try:
        last_id = request.headers.get("Last-Event-ID", "")
        async with replicas.stream(kept.lease, caller, path, last_id, 3 * HEARTBEAT_S) as owner:
            if owner.status != 200 or owner.content_type != _STREAM:
                raise NoAnswerError(f"it answers with status {owner.status}")
            response = await _begun(request)
            try:
                while await _passed_on(request, response, owner.content):
                    if _has_expired(request):
                        await _write(response, _EXPIRED)
                        break
            except (TimeoutError, OSError, ClientError):
                """The owner has ended, or the client does not read: the client asks again."""
                if request.transport is not None:
                    request.transport.abort()
            return response
    finally:
        streams.give_back(account)


async def _passed_on(
    request: web.Request, response: web.StreamResponse, owner: StreamReader
) -> bool:
    """Pass on what has come. False: the stream has ended, or the client or this coordinator has."""
    try:
        async with asyncio.timeout(LOOK_S):
            piece = await owner.readany()
    except TimeoutError:
        is_here = request.transport is not None and not request.transport.is_closing()
        return is_here and not request.app[COORDINATOR].events.is_over
    if piece:
        await _write(response, piece)
    return bool(piece)


# -- streams ---------------------------------------------------------------------------------------


def _too_many(streams: Holdings) -> web.Response:
    said = f"too many streams of events: {streams.total}"
    return json_error(
        503, said, "try again later, or read pages: without Accept: text/event-stream"
    )


async def _limited(request: web.Request, run: HostedRun, asking: Asked) -> web.StreamResponse:
    streams, account = request.app[_STREAMS], request[http_api.ACCOUNT]
    if not streams.has_room(account, STREAMS_MAX):
        return _too_many(streams)
    streams.take(account)
    try:
        return await _stream(request, run, asking)
    finally:
        streams.give_back(account)


def _head() -> web.Response:
    """The answer to HEAD: RFC 9110, 9.3.2 allows it no body."""
    return web.Response(headers=_STREAM_HEADERS)


async def _begun(request: web.Request) -> web.StreamResponse:
    response = web.StreamResponse(headers=_STREAM_HEADERS)
    response.force_close()
    async with asyncio.timeout(sending.SEND_S):
        await response.prepare(request)
        await response.write(f"retry: {RETRY_MS}\n\n".encode())
    return response


async def _stream(request: web.Request, run: HostedRun, asking: Asked) -> web.StreamResponse:
    """Write each event behind the place, until the run is over here or the client goes."""
    log = run.events
    news = asyncio.Event()
    loop = asyncio.get_running_loop()
    written_s = loop.time()
    log.listeners[news.set] = None
    response = web.StreamResponse()
    try:
        response = await _begun(request)
        place = _within(log, asking.since)
        if asking.is_new and asking.last is not None:
            last = log.last(asking.last)
            place = (last[0].term, last[0].seq - 1) if last else place
        while True:
            news.clear()
            before = place
            if _has_expired(request):
                await _write(response, _EXPIRED)
                return response
            place = await _write_new(request, response, log, place)
            if place != before:
                written_s = loop.time()
            if log.is_over:
                await _write(response, _message("end", {"reason": "the run is not here any more"}))
                return response
            if await _has_news(news, log, has_end=_ends(request)):
                continue
            if loop.time() - written_s >= HEARTBEAT_S:
                await _write(response, b": heartbeat\n\n")
                written_s = loop.time()
    except TimeoutError:
        """The client does not read."""
        if request.transport is not None:
            request.transport.abort()
        return response
    finally:
        log.listeners.pop(news.set, None)


def _ends(request: web.Request) -> bool:
    return guard.principal_of(request).ends_at is not None


def _has_expired(request: web.Request) -> bool:
    """Whether the token or the certificate of the request counts no more."""
    return claims.has_ended(guard.principal_of(request), runtime.here().wall_s())


async def _has_news(news: asyncio.Event, log: EventLog, *, has_end: bool) -> bool:
    """Wait for an event, and for others that happen together. False: it is time for a heartbeat,
    or to look at the time (`has_end`).
    """
    look_s = TIME_LOOK_S if has_end else HEARTBEAT_S
    try:
        # A large run does not tell when nodes are ready: look for them.
        async with asyncio.timeout(LOOK_S if log.is_large else look_s):
            await news.wait()
    except TimeoutError:
        return False
    # Events that are being collected are shown after this time. If this sleep was cut, or a little
    # too short, they would be shown at the look after the next.
    await asyncio.sleep(SHOWN_AFTER_S + COALESCE_S if log.waits else COALESCE_S)
    return True


async def _write_new(
    request: web.Request, response: web.StreamResponse, log: EventLog, place: tuple[int, int]
) -> tuple[int, int]:
    """Write all events behind the place. Returns the place of the last one."""
    coordinator = request.app[COORDINATOR]
    while True:
        found = log.after(place, BATCH, coordinator.now_s())
        if not found:
            return place
        parts = []
        missing = _missing(place, found)
        if missing:
            parts.append(_message("missing", {"count": missing}))
        parts += [_message(each.kind.value, shown(each), each.id) for each in found]
        await _write(response, b"".join(parts))
        place = found[-1].position


async def _write(response: web.StreamResponse, payload: bytes) -> None:
    async with asyncio.timeout(sending.SEND_S):
        await response.write(payload)


def _message(kind: str, body: object, event_id: str = "") -> bytes:
    """One event of a stream. JSON has no line break, so it is one line of data."""
    place = f"id: {event_id}\n" if event_id else ""
    return f"{place}event: {kind}\ndata: ".encode() + msgspec.json.encode(body) + b"\n\n"


_EXPIRED: Final = _message("end", {"reason": "the time of the token or certificate is over"})
