"""The HTTP API for people and tools: `/healthz` and `/api/v1/...`, in JSON.

The fields are part of the public API (docs/compatibility.md). If a token is set, every request
except `/healthz` needs it, as nodes do. server.py checks it before it calls these handlers.
`/healthz` reveals nothing about any run.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
from collections.abc import Iterator
from itertools import islice
from typing import Any, Final

import msgspec
from aiohttp import web

from rallypoint.coordinator import guard, sending, status
from rallypoint.coordinator.coordinator import Coordinator
from rallypoint.coordinator.hosted_run import HostedRun
from rallypoint.coordinator.hosts import KnownHosts
from rallypoint.coordinator.nearest import did_you_mean, nearest
from rallypoint.coordinator.paging import Page, number_in, page_of
from rallypoint.coordinator.replicas import (
    LOOK_ERRORS,
    Answer,
    Caller,
    Replicas,
)
from rallypoint.core import reasons
from rallypoint.core.budget import HOW_TO_RAISE
from rallypoint.core.quotas import Account
from rallypoint.errors import LedgerError
from rallypoint.ledger.keys import run_key
from rallypoint.security.roles import Denial, Principal, Right
from rallypoint.tokens import fingerprint
from rallypoint.wire import api_paths
from rallypoint.wire.headers import CLIENT, ONLY_OWN

COORDINATOR: web.AppKey[Coordinator] = web.AppKey("coordinator", Coordinator)
SHOWN: web.RequestKey[str] = web.RequestKey("shown_token", str)
"""The token of a request, if the coordinator has one."""
ACCOUNT: web.RequestKey[Account] = web.RequestKey("account", Account)
"""The account of a request that was admitted."""
REPLICAS: web.AppKey[Replicas] = web.AppKey("replicas", Replicas)
"""Only on a shared ledger."""

MEMBERS_SHOWN_DEFAULT = 1_000
"""How many members `/api/v1/runs/{run_id}` lists unless `?members=` asks for more or fewer."""
MEMBERS_SHOWN_MAX: Final = 1_000_000
"""No run has as many."""
MEMBERS_AT_ONCE = 100
"""How many of them are encoded before other tasks run."""

HEALTH_PATH = "/healthz"
READY_PATH = "/readyz"
OPEN_PATHS = frozenset({HEALTH_PATH, READY_PATH})
"""The paths that need no token."""


def add_routes(app: web.Application) -> None:
    """Add the API of a coordinator."""
    app.router.add_get(HEALTH_PATH, _healthz)
    app.router.add_get(api_paths.ME, _me)
    app.router.add_get(api_paths.RUNS, _runs)
    app.router.add_get(f"{api_paths.RUNS}/{{run_id:[^/]+}}", _run)


def is_foreign_page(request: web.Request) -> bool:
    """Whether the request comes from a web page of another site.

    For requests without a token. A browser lets any page post to any address, and open a WebSocket
    there, and it may show a client's certificate by itself. So without this check, every web page
    could use a port on loopback, or a certificate of the reader.
    """
    origin = request.headers.get("Origin")
    return origin is not None and origin.partition("://")[2] != request.host


def is_sent_by_foreign_page(request: web.Request) -> bool:
    """Whether the browser says that code of another site sends this request.

    For every coordinator. With a token, another name of this host or a proxy's may be in Origin, so
    `is_foreign_page` would refuse too much. A browser sends this header over https and to loopback.
    """
    site = request.headers.get("Sec-Fetch-Site", "none")
    # A link on another site may lead to the page: a navigation shows it, and reads nothing.
    is_link = request.method == "GET" and request.headers.get("Sec-Fetch-Mode") == "navigate"
    return site not in ("same-origin", "none") and not is_link


def why_foreign(request: web.Request) -> str:
    """Why the request of a page of another site is refused."""
    origin = reasons.tidy(request.headers.get("Origin", "another site"), 200)
    return f"requests from a web page of {origin} are refused"


def foreign_page(request: web.Request) -> web.Response:
    """The answer to a page of another site."""
    message = why_foreign(request)
    hint = "open the coordinator's own page; a proxy must keep the Host header"
    return json_error(403, message, hint)


async def is_for_another(request: web.Request, known: KnownHosts) -> bool:
    """Whether the request names a host that is not this coordinator: see `hosts`.

    For a coordinator without a token.
    """
    if CLIENT in request.headers or request.path in OPEN_PATHS:
        return False
    for header in request.headers.getall("Host", ()):
        if not (known.knows_at_once(header) or await known.knows(header)):
            return True
    return False


def why_for_another(request: web.Request) -> str:
    """Why a request under a name that this coordinator does not know is refused."""
    return f"this coordinator has no token, and {request.host!r} is not a name of its machine"


def for_another(request: web.Request) -> web.Response:
    """The answer to such a request."""
    message = why_for_another(request)
    hint = "use its address, or set a token: then any name works"
    return json_error(421, message, hint)


def json_error(code: int, message: str, hint: str = "", **more: Any) -> web.Response:
    """An error in JSON: {"error": ..., "hint": ...} and the fields of `more`."""
    return answer({"error": message, "hint": hint, **more}, code)


def unauthorized(
    request: web.Request, token: str, denied: Denial, waits_s: float = 0.0
) -> web.Response:
    """The answer to a request without an accepted token. `denied`: why. `waits_s`: how long its
    address has to wait after too many of them, in seconds; the status is then 429.

    It has the fingerprint and the origin of `token`, the first accepted one. So the client can
    report whether its own token differs, and where each comes from.
    """
    hint = denied.hint or (
        "use the coordinator's token here: --token-file FILE (torchrun: token_file in "
        "--rdzv-conf), or set RALLYPOINT_TOKEN"
    )
    told = {
        "fingerprint": fingerprint(token),
        "origin": request.app[COORDINATOR].config.token_origin,
    }
    if denied.reason:
        told["reason"] = denied.reason
    response = json_error(429 if waits_s else 401, denied.message, hint, **told)
    if waits_s:
        response.headers["Retry-After"] = str(math.ceil(waits_s))
    else:
        response.headers["WWW-Authenticate"] = "Bearer"
    return response


async def _healthz(request: web.Request) -> web.Response:
    return web.Response(text="ok\n")


async def _me(request: web.Request) -> web.Response:
    """What the token may do: the page offers nothing else."""
    principal = guard.principal_of(request)
    rights = [each.name.lower() for each in Right if principal.has(each)]
    return answer(
        {
            "id": principal.id,
            "name": principal.name,
            "roles": list(principal.roles),
            "rights": rights,
            "runs": list(principal.patterns),
            "ends_at": principal.ends_at,
        }
    )


async def _runs(request: web.Request) -> web.StreamResponse:
    coordinator = request.app[COORDINATOR]
    try:
        page = page_of(request.query)
    except ValueError as error:
        return json_error(400, str(error))
    sees = guard.principal_of(request).sees
    own = [run for run in coordinator.runs.values() if run.is_claimed and sees(run.run_id)]
    shown = page.first(own, _key_of_run)
    lines = []
    for number, run in enumerate(shown, 1):
        line = status.summary_of(run, _owner(coordinator), guard.principal_of(request))
        lines.append(msgspec.to_builtins(line))
        if not number % MEMBERS_AT_ONCE:
            await asyncio.sleep(0)  # Let other tasks run.
    problem: str | None = None
    replicas = replicas_of(request)
    if replicas is not None and ONLY_OWN not in request.headers:
        try:
            ids = [run.run_id for run in own]
            others = await replicas.summaries(ids, caller_of(request), page)
            lines += others
            known = {str(line["run_id"]) for line in others}
            principal = guard.principal_of(request)
            lines += _not_claimed(coordinator, known, page, principal)
        except LOOK_ERRORS as error:
            problem = f"the runs of other coordinators are not listed: {why_unread(error)}"
    lines = page.first(lines, _key_of_line)
    following = lines[page.most - 1]["run_id"] if len(lines) > page.most else None
    about = status.coordinator_of(coordinator, guard.principal_of(request))
    body = {
        "coordinator": msgspec.to_builtins(about),
        "runs": lines[: page.most],
        "problem": problem,
        "next": following,
    }
    return await _large(request, msgspec.json.encode(body) + b"\n")


async def _large(request: web.Request, body: bytes) -> web.StreamResponse:
    """Send an answer. A large one counts as the coordinator's memory until the client read it."""
    if len(body) <= sending.PIECE_BYTES:
        return web.Response(body=body, content_type="application/json")
    share = request.app[COORDINATOR].people
    excess = share.excess(len(body))
    if excess is not None:
        return json_error(503, str(excess), HOW_TO_RAISE)
    share.add(len(body))
    try:
        return await sending.stream(request, sending.pieces_of(body))
    finally:
        share.add(-len(body))


def _key_of_run(run: HostedRun) -> str:
    return run.ledger_key


def _key_of_line(line: dict[str, Any]) -> str:
    return run_key(str(line["run_id"]))


def _not_claimed(
    coordinator: Coordinator, known: set[str], page: Page, principal: Principal
) -> list[dict[str, Any]]:
    """Runs for which nodes wait here, and which are not in the ledger yet."""
    new = [
        run
        for run in coordinator.runs.values()
        if not run.is_claimed and run.run_id not in known and principal.sees(run.run_id)
    ]
    first = page.first(new, _key_of_run)
    return [msgspec.to_builtins(status.summary_of(run, None, principal)) for run in first]


async def _run(request: web.Request) -> web.StreamResponse:
    coordinator, run_id = request.app[COORDINATOR], request.match_info["run_id"]
    try:
        given = number_in(request.query, "members", MEMBERS_SHOWN_MAX, least=0)
    except ValueError as error:
        return json_error(400, str(error))
    shown = MEMBERS_SHOWN_DEFAULT if given is None else given
    replicas, run = replicas_of(request), coordinator.runs.get(run_id)
    if replicas is not None and (run is None or not run.is_claimed):
        try:
            kept = await replicas.look(run_id)
            if kept is not None:
                may_ask = ONLY_OWN not in request.headers
                said = await replicas.status(kept, shown, caller_of(request), may_ask=may_ask)
                return passed_on(said)
        except LOOK_ERRORS as error:
            return unreadable(run_id, error)
        run = coordinator.runs.get(
            run_id
        )  # The run may still wait for its claim, and is then not in the ledger.
    if run is None:
        return await no_such_run(request, run_id)
    owner, principal = _owner(coordinator), guard.principal_of(request)
    members = status.members_of(coordinator, run, shown)
    first = list(islice(members, MEMBERS_AT_ONCE))
    if len(first) < MEMBERS_AT_ONCE:
        return answer(status.status_of(coordinator, run, owner, first, principal))
    whole = msgspec.json.encode(status.status_of(coordinator, run, owner, [], principal))
    return await sending.stream(request, _with_members(whole, first, members))


def _with_members(
    whole: bytes, first: list[status.MemberStatus], more: Iterator[status.MemberStatus]
) -> Iterator[bytes]:
    """The encoded status with these members in it, piece by piece."""
    before, empty, after = whole.partition(b'"members":[],"members_total":')
    assert empty
    yield before + b'"members":[' + msgspec.json.encode(first)[1:-1]
    while some := list(islice(more, MEMBERS_AT_ONCE)):
        yield b"," + msgspec.json.encode(some)[1:-1]
    yield b'],"members_total":' + after + b"\n"


async def no_such_run(request: web.Request, run_id: str) -> web.Response:
    """The answer about a run that does not exist: the names that are most like it."""
    coordinator = request.app[COORDINATOR]
    sees = guard.principal_of(request).sees
    own = list(islice(filter(sees, coordinator.runs), 8))
    known = dict.fromkeys(filter(sees, coordinator.runs))
    replicas = replicas_of(request)
    if replicas is not None:
        # Without the ledger's names the answer is still right.
        with contextlib.suppress(*LOOK_ERRORS):
            known |= dict.fromkeys(filter(sees, await replicas.names()))
    alike = nearest(run_id, known)
    listed = ", ".join(own) or "none"
    hint = f"{did_you_mean(alike)}runs on this coordinator: {listed}"
    return json_error(404, f"no run {run_id!r} here", hint, nearest=alike)


ASK_AGAIN: Final = "try again in a few seconds, or check with `rallypoint status`"


def replicas_of(request: web.Request) -> Replicas | None:
    """The other coordinators of the ledger; None in memory."""
    return request.app.get(REPLICAS)


def caller_of(request: web.Request) -> Caller:
    """Who sends a request that was admitted, to ask other coordinators in its name."""
    authorization = request.headers.get("Authorization", "") if request.get(SHOWN) else ""
    return Caller(authorization, guard.principal_of(request))


def _owner(coordinator: Coordinator) -> status.OwnerStatus | None:
    """This coordinator with the data of its lease; None in memory."""
    ownership = coordinator.ownership
    if ownership.is_in_memory:
        return None
    return status.owner_of(ownership.process, ownership.addresses)


def passed_on(said: Answer | status.RunStatus) -> web.Response:
    if isinstance(said, status.RunStatus):
        return answer(said)
    is_status = said.status == 200 and "phase" in said.body
    return answer(
        status.filled(said.body, status.RunStatus) if is_status else said.body, said.status
    )


def unreadable(run_id: str, error: Exception) -> web.Response:
    """The answer if the ledger cannot be read."""
    message = f"cannot find the coordinator of run {run_id!r}: {why_unread(error)}"
    return json_error(503, message, ASK_AGAIN)


def why_unread(error: Exception) -> str:
    """Why the ledger could not be read, for one of LOOK_ERRORS."""
    if isinstance(error, TimeoutError) and not isinstance(error, LedgerError):
        return "the ledger has not answered in time"
    return getattr(error, "message", None) or "this ledger cannot list runs"


def answer(body: object, code: int = 200) -> web.Response:
    """An answer in JSON."""
    return web.Response(
        body=msgspec.json.encode(body) + b"\n", status=code, content_type="application/json"
    )
