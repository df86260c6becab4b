"""What people and their tools ask over HTTP: `/healthz` and `/api/v1/...`, as JSON.

The fields are part of the public API (docs/compatibility.md). The token, where one is set, is
asked for here as it is for nodes, before any of these handlers is called (server.py); only
`/healthz`, which says nothing about any run, goes without.
"""

from __future__ import annotations

import asyncio
import time
from typing import Any

import msgspec
from aiohttp import web

from rallypoint.coordinator.hosts import KnownHosts
from rallypoint.coordinator.hub import Hub
from rallypoint.coordinator.runs import RunHost
from rallypoint.core import events as on
from rallypoint.core import reasons
from rallypoint.core.addresses import plain
from rallypoint.core.roster import Member
from rallypoint.core.values import MemberState, Outcome, named
from rallypoint.wire.headers import CLIENT

HUB: web.AppKey[Hub] = web.AppKey("hub", Hub)
SHOWN = "shown_token"
"""Under this name a request keeps the coordinator's token that it showed, if one is asked for."""

MEMBERS_SHOWN_DEFAULT = 1_000
"""How many members `/api/v1/runs/{run_id}` lists unless `?members=` asks for more or fewer."""


CLOSE_WAIT_S = 3.0
"""How long a request to close a run waits for the ledger. A command waits 5 s for its answer."""
CLOSE_LOOK_S = 0.02
REASON_CHARACTERS_MAX = 1_000
HEALTH_PATH = "/healthz"
"""Answers everybody, and says nothing of any run."""


class _CloseBody(msgspec.Struct):
    reason: str = ""


def add_routes(app: web.Application) -> None:
    """The HTTP face of a coordinator."""
    app.router.add_get(HEALTH_PATH, _healthz)
    app.router.add_get("/api/v1/runs", _runs)
    app.router.add_get("/api/v1/runs/{run_id:[^/]+}", _run)
    app.router.add_post("/api/v1/runs/{run_id:[^/]+}/close", _close)


def is_foreign_page(request: web.Request) -> bool:
    """Whether a web page of elsewhere asks, in the browser of somebody who can reach this port.

    For a coordinator without a token. Browsers let any page post to any address and open a
    WebSocket there. Where there is a token, the page does not have it; where there is none, a
    loopback port would be open to every page.
    """
    origin = request.headers.get("Origin")
    return origin is not None and origin.partition("://")[2] != request.host


def foreign_page(request: web.Request) -> web.Response:
    """The answer to a page of elsewhere."""
    message = f"a web page of {request.headers['Origin']} has nothing to ask here"
    return json_error(403, message, "set a token, and a page that holds it may ask")


async def is_for_another(request: web.Request, known: KnownHosts) -> bool:
    """Whether a web page may ask under a name of its own that leads here: see `hosts`.

    For a coordinator without a token.
    """
    if CLIENT in request.headers or request.path == HEALTH_PATH:
        return False
    for header in request.headers.getall("Host", ()):
        if not (known.knows_at_once(header) or await known.knows(header)):
            return True
    return False


def for_another(request: web.Request) -> web.Response:
    """The answer to a request under a name that this coordinator does not know."""
    message = f"this coordinator has no token, and does not answer to the name {request.host!r}"
    hint = "use its address, or set a token: then it answers to every name"
    return json_error(421, message, hint)


def json_error(status: int, message: str, hint: str = "") -> web.Response:
    """An error in JSON: {"error": ..., "hint": ...}."""
    return _json({"error": message, "hint": hint}, status)


def why_unauthorized(request: web.Request) -> str:
    """What is wrong with the token of a request that is not let in. Says nothing of any token."""
    if "Authorization" in request.headers:
        return "the token is wrong"
    return "this coordinator asks for a token, and got none"


def unauthorized(request: web.Request) -> web.Response:
    """The answer to a request without the right token."""
    message = why_unauthorized(request)
    hint = (
        "give the coordinator's own by --token-file (torchrun: token_file in --rdzv-conf) "
        "or RALLYPOINT_TOKEN"
    )
    response = json_error(401, message, hint)
    response.headers["WWW-Authenticate"] = "Bearer"
    return response


async def _healthz(request: web.Request) -> web.Response:
    return web.Response(text="ok\n")


async def _runs(request: web.Request) -> web.Response:
    hub = request.app[HUB]
    runs = [_summary(run) for run in hub.runs.values()]
    return _json({"coordinator": _coordinator(hub), "runs": runs})


async def _run(request: web.Request) -> web.Response:
    hub = request.app[HUB]
    run = hub.runs.get(request.match_info["run_id"])
    if run is None:
        return _no_such_run(hub, request.match_info["run_id"])
    try:
        shown = int(request.query.get("members", MEMBERS_SHOWN_DEFAULT))
    except ValueError:
        return json_error(400, "members must be a whole number")
    return _json(_detail(hub, run, max(0, shown)))


async def _close(request: web.Request) -> web.Response:
    hub = request.app[HUB]
    run = hub.runs.get(request.match_info["run_id"])
    if run is None:
        return _no_such_run(hub, request.match_info["run_id"])
    try:
        body = msgspec.json.decode(await request.read() or b"{}", type=_CloseBody)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return json_error(400, 'the body must be JSON such as {"reason": "..."}')
    reason = reasons.tidy(body.reason, REASON_CHARACTERS_MAX) or "closed by request"
    was_closed = run.is_closed
    by = f"operator at {plain(request.remote or 'a local socket')}"
    run.post(on.CloseRequested(by, Outcome.STOPPED, reason))
    why = await _why_not_closed(hub, run)
    if why:
        hint = "nobody can say yet whether it will be: ask again, or look with `rallypoint status`"
        return json_error(503, f"run {run.run_id!r} is not closed yet: {why}", hint)
    return _json({"run_id": run.run_id, "was_closed": was_closed})


async def _why_not_closed(hub: Hub, run: RunHost) -> str:
    """Wait until the end of the run is in the ledger. Else why it is not; "" if it is.

    A coordinator that has not committed it may be replaced, and its successor knows nothing of it.
    """
    loop = asyncio.get_running_loop()
    until_s = loop.time() + CLOSE_WAIT_S
    while not run.is_closed:
        if hub.runs.get(run.run_id) is not run:
            return "this coordinator has it no more"
        if loop.time() >= until_s:
            suspended = run.membership.suspended_reason
            return f"the ledger does not answer: {suspended}" if suspended else "the ledger is slow"
        await asyncio.sleep(CLOSE_LOOK_S)
    return ""


def _no_such_run(hub: Hub, run_id: str) -> web.Response:
    known = ", ".join(list(hub.runs)[:8]) or "none"
    return json_error(404, f"no run {run_id!r} here", f"runs on this coordinator: {known}")


# -- pictures ------------------------------------------------------------------------------------


def _coordinator(hub: Hub) -> dict[str, Any]:
    return {
        "software": hub.software,
        "ledger_id": hub.ledger_id,
        "connections": len(hub.sessions),
    }


def _summary(run: RunHost) -> dict[str, Any]:
    membership = run.membership
    waiting = run.waiting()
    head = membership.round.head if membership.round else None
    return {
        "run_id": run.run_id,
        "term": membership.term,
        "phase": membership.phase.value,
        "reason": _reason(run),
        "suspended": list(membership.suspension.reasons),
        "round": membership.number,
        "nodes": head.nodes if head else 0,
        "size": head.size if head else 0,
        "attached": len(membership.roster),
        "restart_count": membership.restart_count,
        "waiting": named(waiting) if waiting else None,
        "closed": named(membership.close) if membership.close else None,
    }


def _detail(hub: Hub, run: RunHost, members_shown: int) -> dict[str, Any]:
    membership = run.membership
    record = membership.round
    now_s = hub.now_s()
    seats = membership.seats()
    ranks = {m.name: seat for m, seat in zip(record.members if record else (), seats, strict=True)}
    members = [
        _member(run, member, ranks.get(member.name), now_s)
        for member, _ in zip(membership.roster, range(members_shown), strict=False)
    ]
    settings = membership.settings
    return {
        **_summary(run),
        "coordinator": _coordinator(hub),
        "settings": named(settings) if settings else None,
        "bootstrap": str(record.head.bootstrap) if record else "",
        "digest": record.head.digest if record else "",
        "members": members,
        "members_total": len(membership.roster),
        "rounds": [named(each) for each in run.history.rounds],
        "shown_at": time.time(),
    }


def _reason(run: RunHost) -> str:
    membership = run.membership
    if membership.close is not None:
        return reasons.describe_close(membership.close)
    waiting = run.waiting()
    return str(waiting) if waiting else ""


def _member(run: RunHost, member: Member, seat: Any, now_s: float) -> dict[str, Any]:
    is_seated = seat is not None and member.state in (MemberState.ACTIVE, MemberState.DONE)
    state = "standby" if run.membership.is_standby(member) else member.state.value
    return {
        "name": member.name,
        "host": member.info.host,
        "addresses": list(member.info.addresses),
        "labels": member.info.labels,
        "workers": member.workers,
        "state": state,
        "link": member.link.value,
        "troubled_s": now_s - member.trouble_since_s if member.is_troubled else 0.0,
        "node_rank": seat.node_rank if is_seated else None,
        "ranks": list(range(seat.first_rank, seat.first_rank + seat.workers)) if is_seated else [],
    }


def _json(body: dict[str, Any], status: int = 200) -> web.Response:
    return web.Response(
        body=msgspec.json.encode(body) + b"\n", status=status, content_type="application/json"
    )
