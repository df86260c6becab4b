"""What operators do to a run over HTTP: close it, scale it, drain, evict or admit a node.

The core decides. This file passes the request to the coordinator that owns the run, waits until the
ledger has the order, and says what became of it. If the ledger does not have it in time, the answer
says so, because a successor may then know nothing of it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Annotated, Any, Final

import msgspec
from aiohttp import web

from rallypoint.coordinator import audit, guard, ledger_view, node_names, stacks_api
from rallypoint.coordinator.coordinator import Coordinator
from rallypoint.coordinator.hosted_run import HostedRun
from rallypoint.coordinator.http_api import (
    ASK_AGAIN,
    COORDINATOR,
    answer,
    caller_of,
    json_error,
    no_such_run,
    passed_on,
    replicas_of,
    unreadable,
)
from rallypoint.coordinator.nearest import did_you_mean, nearest
from rallypoint.coordinator.node_names import Ambiguous
from rallypoint.coordinator.replicas import LOOK_ERRORS, NoAnswerError, no_answer
from rallypoint.core import events as on
from rallypoint.core import reasons
from rallypoint.core.addresses import plain
from rallypoint.core.membership import Membership
from rallypoint.core.orders import order, scale
from rallypoint.core.printable import are_ready, escaped, some
from rallypoint.core.roster import Bucket, Member
from rallypoint.core.values import (
    NAME_LENGTH_MAX,
    CloseRecord,
    MemberState,
    Outcome,
    Phase,
)
from rallypoint.wire import api_paths
from rallypoint.wire.headers import ASKED_BY, ONLY_OWN

LEDGER_WAIT_S = 3.0
"""How long an action waits for the ledger, in seconds. A command waits 5 s for its answer."""
LOOK_S = 0.02
BODY_WITHIN_S = 10.0
"""The time limit for the body of a request, which has only a few bytes, in seconds."""
REASON_CHARACTERS_MAX = 1_000
NODES_MAX: Final = 1_000_000
CLOSED_BY_REQUEST: Final = "closed by request"
_MAY_STILL: Final = "the ledger may still store it: try again, or check with `rallypoint status`"


class _Body(msgspec.Struct):
    """The body of a request: JSON."""

    reason: str = ""


class _NodeBody(_Body, kw_only=True):
    node: str


class _StacksBody(_Body, kw_only=True):
    node: str = ""


class _ScaleBody(_Body, kw_only=True):
    min_nodes: Annotated[int, msgspec.Meta(ge=1, le=NODES_MAX)]
    max_nodes: Annotated[int, msgspec.Meta(ge=1, le=NODES_MAX)]

    def __post_init__(self) -> None:
        if self.min_nodes > self.max_nodes:
            raise ValueError(
                f"min_nodes ({self.min_nodes}) must not be above max_nodes ({self.max_nodes})"
            )


class Action(msgspec.Struct, frozen=True):
    """One action. `name`: the last part of its path. `is_done`: how a run is called after it.

    `example`: a body that is valid. `on_closed`: the answer for a run that is closed.
    """

    name: str
    body: type[_Body]
    example: str
    is_done: str
    carry_out: Callable[[web.Request, HostedRun, Any], Awaitable[web.Response]]
    on_closed: Callable[[str, CloseRecord], web.Response]


def add_routes(app: web.Application) -> None:
    """Add the actions of operators."""
    for action in ACTIONS:
        path = f"{api_paths.RUNS}/{{run_id:[^/]+}}/{action.name}"
        app.router.add_post(path, _handler_of(action))


def _handler_of(action: Action) -> Callable[[web.Request], Awaitable[web.Response]]:
    async def handle(request: web.Request) -> web.Response:
        return await _handle(action, request)

    return handle


async def _handle(action: Action, request: web.Request) -> web.Response:
    coordinator, run_id = request.app[COORDINATOR], request.match_info["run_id"]
    try:
        async with asyncio.timeout(BODY_WITHIN_S):
            data = await request.read()
    except TimeoutError:
        response = json_error(
            408, "the body of the request did not come in time", "send it at once"
        )
        response.force_close()
        return response
    try:
        body = msgspec.json.decode(data or b"{}", type=action.body)
    except msgspec.ValidationError as error:
        what = f"the body of the request does not fit: {escaped(str(error))}"
        return json_error(400, what, f"send JSON such as {action.example}")
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return json_error(400, f"the body must be JSON such as {action.example}")
    request[audit.REASON] = body.reason
    if isinstance(body, _ScaleBody):
        request[audit.SIZE] = f"{body.min_nodes}:{body.max_nodes}"
    if isinstance(body, _NodeBody | _StacksBody) and body.node:
        request[audit.NODE] = body.node
    run = coordinator.runs.get(run_id)
    if run is None or not run.is_claimed:
        other = await elsewhere(action, request, coordinator, run_id, data)
        if other is not None:
            return other
        run = coordinator.runs.get(run_id)
    if run is None:
        return await no_such_run(request, run_id)
    if run.membership.close is not None and run.is_closed:
        return action.on_closed(run_id, run.membership.close)
    return await action.carry_out(request, run, body)


async def elsewhere(
    action: Action, request: web.Request, coordinator: Coordinator, run_id: str, data: bytes
) -> web.Response | None:
    """Do something to a run of the ledger that this coordinator does not own: ask its owner.

    If the run has no owner, or its owner does not answer, claim it here. None: this coordinator
    owns it now, or there is no such run.
    """
    replicas = replicas_of(request)
    if replicas is None:
        return None
    problem = ledger_view.NO_COORDINATOR
    try:
        kept = await replicas.look(run_id)
    except LOOK_ERRORS as error:
        return unreadable(run_id, error)
    if kept is None:
        return None
    # R6: a closed run stays closed, whether or not its owner answers.
    if kept.register.close is not None:
        return action.on_closed(run_id, kept.register.close)
    if kept.lease is not None:
        if ONLY_OWN in request.headers:
            return json_error(503, f"another coordinator owns run {run_id!r} now", ASK_AGAIN)
        try:
            path, caller = api_paths.action_path(run_id, action.name), caller_of(request)
            by = plain(request.remote or "")
            return passed_on(await replicas.ask(kept.lease, caller, path, data or b"{}", by))
        except NoAnswerError as error:
            problem = no_answer(kept.lease, str(error))
    if await taken_over(coordinator, run_id):
        return None
    return json_error(503, f"run {run_id!r} is not {action.is_done}: {problem}", ASK_AGAIN)


async def taken_over(coordinator: Coordinator, run_id: str) -> bool:
    """Claim the run as if a node had asked for it. True if it is owned in time."""
    loop = asyncio.get_running_loop()
    until_s = loop.time() + LEDGER_WAIT_S
    coordinator.open_run(run_id)
    coordinator.claim(run_id)
    while loop.time() < until_s:
        run = coordinator.runs.get(run_id)
        if run is None:
            return False
        if run.is_claimed:
            return True
        await asyncio.sleep(LOOK_S)
    return False


def operator(request: web.Request) -> str:
    """Who asks: the origin of a request, and the coordinator that forwarded it, if any."""
    remote = plain(request.remote or "a local socket")
    asked_by = reasons.tidy(request.headers.get(ASKED_BY, ""), NAME_LENGTH_MAX)
    where = f"{asked_by} through {remote}" if asked_by else remote
    principal = guard.principal_of(request)
    # A token that may do everything is often the only one there is.
    token = "" if principal.is_unlimited else f" with token {principal.label}"
    return f"operator at {where}{token}"


async def _why_not(request: web.Request, run: HostedRun, is_so: Callable[[], bool]) -> str:
    """Wait until the ledger has it. Returns why it has not; "" if it has.

    If this coordinator is replaced before that, its successor has no record of it.
    """
    loop, coordinator = asyncio.get_running_loop(), request.app[COORDINATOR]
    until_s = loop.time() + LEDGER_WAIT_S
    while not is_so():
        if coordinator.runs.get(run.run_id) is not run:
            return "this coordinator does not own it any more"
        if loop.time() >= until_s:
            suspended = run.membership.suspended_reason
            return f"the ledger does not answer: {suspended}" if suspended else "the ledger is slow"
        await asyncio.sleep(LOOK_S)
    return ""


def _no_room(run: HostedRun) -> web.Response:
    """An order that the run's head cannot keep with the evictions that it has."""
    count = len(run.membership.orders.evictions)
    what = f"run {run.run_id!r} has no room for more orders: it keeps {count} evictions"
    hint = "give a shorter reason or none, or lift evictions with `rallypoint admit`"
    return json_error(409, what, hint)


def _refuse_closed(run_id: str, close: CloseRecord) -> web.Response:
    return json_error(409, f"run {run_id!r} is over: {close}", "nothing is left to do")


# -- close -----------------------------------------------------------------------------------------


async def _close(request: web.Request, run: HostedRun, body: _Body) -> web.Response:
    reason = reasons.tidy(body.reason, REASON_CHARACTERS_MAX) or CLOSED_BY_REQUEST
    run.post(on.CloseRequested(operator(request), Outcome.STOPPED, reason, by_operator=True))
    why = await _why_not(request, run, lambda: run.is_closed)
    if why:
        return json_error(503, f"run {run.run_id!r} is not closed yet: {why}", _MAY_STILL)
    return answer({"run_id": run.run_id, "was_closed": False})


def _was_closed(run_id: str, close: CloseRecord) -> web.Response:
    return answer({"run_id": run_id, "was_closed": True})


# -- drain, evict and admit ------------------------------------------------------------------------


async def _drain(request: web.Request, run: HostedRun, body: _NodeBody) -> web.Response:
    member = _node(request, run, body.node)
    if isinstance(member, web.Response):
        return member
    membership, node = run.membership, member.id
    before = membership.orders.drain_of(node)
    told = {"run_id": run.run_id, "node": member.name, "was_asked": before is not None}
    if member.state in (MemberState.DONE, MemberState.DEPARTING):
        return answer({**told, "was_asked": True, "state": member.state.value})
    if not member.takes_orders:
        return _cannot_be_asked(member)
    reason, by = reasons.tidy(body.reason, REASON_CHARACTERS_MAX), operator(request)
    if before is None and not membership.orders.has_room_for(drain=order(node, by, reason)):
        return _no_room(run)
    run.post(on.DrainRequested(node, by, reason))

    def is_asked() -> bool:
        living = membership.roster.living(node)
        is_going = living is None or living.state in (MemberState.DONE, MemberState.DEPARTING)
        return is_going or all(each.drain_of(node) for each in membership.orders_possible)

    why = await _why_not(request, run, is_asked)
    if why:
        what = f"node {member.name!r} was not asked to leave yet"
        return json_error(503, f"{what}: {why}", _MAY_STILL)
    living = membership.roster.living(node)
    return answer({**told, "state": living.state.value if living is not None else "left"})


def _cannot_be_asked(member: Member) -> web.Response:
    if member.is_absent:
        what = f"node {member.name!r} has not attached to this coordinator yet"
        return json_error(503, what, ASK_AGAIN)
    return json_error(
        409,
        f"node {member.name!r} cannot be asked to leave: torchrun started it, or an older release",
        "send SIGTERM to its launcher, or take it out with `rallypoint evict`",
    )


async def _evict(request: web.Request, run: HostedRun, body: _NodeBody) -> web.Response:
    membership = run.membership
    before = membership.orders.eviction_of(body.node)
    if before is not None:
        name = body.node
    else:
        member = _node(request, run, body.node)
        if isinstance(member, web.Response):
            return member
        name, by = member.name, operator(request)
        reason = reasons.tidy(body.reason, REASON_CHARACTERS_MAX)
        if not membership.orders.has_room_for(eviction=order(member.id, by, reason)):
            return _no_room(run)
        run.post(on.EvictRequested(member.id, by, reason))
    why = await _why_not(
        request, run, lambda: all(each.eviction_of(name) for each in membership.orders_possible)
    )
    if why:
        what = f"the ledger does not have the eviction of node {name!r} yet"
        return json_error(503, f"{what}: {why}", _MAY_STILL)
    told = {"run_id": run.run_id, "node": name, "was_evicted": before is not None}
    return answer({**told, "reason": before.reason if before is not None else body.reason})


async def _admit(request: web.Request, run: HostedRun, body: _NodeBody) -> web.Response:
    membership, name = run.membership, body.node
    # An eviction that was lifted before may be in the ledger still.
    known = (each.eviction_of(name) for each in (membership.orders, *membership.orders_possible))
    eviction = next(filter(None, known), None)
    if eviction is None:
        return _not_evicted(run, name)
    reason, by = reasons.tidy(body.reason, REASON_CHARACTERS_MAX), operator(request)
    run.post(on.AdmitRequested(eviction.node, by, reason))

    def is_admitted() -> bool:
        return not any(each.eviction_of(name) for each in membership.orders_possible)

    why = await _why_not(request, run, is_admitted)
    if why:
        what = f"the ledger still has the eviction of node {name!r}"
        return json_error(503, f"{what}: {why}", _MAY_STILL)
    return answer({"run_id": run.run_id, "node": name, "was": str(eviction)})


def _not_evicted(run: HostedRun, text: str) -> web.Response:
    """Only a name counts here: an evicted node has no host and no rank in the run."""
    evicted = [each.node.name for each in run.membership.orders.evictions]
    alike, names = nearest(text, dict.fromkeys(evicted)), reasons.first_names(evicted)
    listed = some(names, len(evicted)) if names else "none"
    hint = f"{did_you_mean(alike)}evicted nodes of this run: {listed}"
    what = f"node {reasons.tidy(text, NAME_LENGTH_MAX)!r} is not evicted from run {run.run_id!r}"
    return json_error(404, what, hint, nearest=alike)


# -- scale -----------------------------------------------------------------------------------------


async def _scale(request: web.Request, run: HostedRun, body: _ScaleBody) -> web.Response:
    membership = run.membership
    before, was_active = membership.settings, membership.phase_of_work is Phase.ACTIVE
    reason = reasons.tidy(body.reason, REASON_CHARACTERS_MAX)
    wanted = scale(body.min_nodes, body.max_nodes, operator(request), reason)
    if not membership.orders.has_room_for(scale=wanted):
        return _no_room(run)
    run.post(on.ScaleRequested(wanted))
    why = await _why_not(
        request, run, lambda: all(each.scale == wanted for each in membership.orders_possible)
    )
    if why:
        what = f"the ledger does not have the new size of run {run.run_id!r} yet"
        return json_error(503, f"{what}: {why}", _MAY_STILL)
    return answer(
        {
            "run_id": run.run_id,
            "min_nodes": wanted.min_nodes,
            "max_nodes": wanted.max_nodes,
            "was": None if before is None else [before.min_nodes, before.max_nodes],
            "text": _what_follows(membership, was_active),
        }
    )


def _what_follows(membership: Membership, was_active: bool) -> str:
    """What the new numbers of nodes mean for the run now, in words."""
    settings, roster, number = membership.settings, membership.roster, membership.number
    if settings is None:
        return "they count when the first node attaches"
    if membership.phase_of_work is not Phase.ACTIVE:
        if roster.ready_count < settings.min_nodes:
            ready = are_ready(roster.ready_count, settings.min_nodes, settings.max_nodes)
            return f"{ready}, so the next round waits"
        return (
            f"round {number} has ended for that" if was_active else "they count for the next round"
        )
    in_round, waiting = roster.count(Bucket.IN_ROUND), roster.count(Bucket.NEWCOMER)
    if in_round > settings.max_nodes:
        return f"round {number} goes on as it is, because a node has finished in it"
    if in_round + waiting < settings.min_nodes:
        return f"round {number} goes on with its nodes, and the next one waits for more"
    if waiting and in_round < settings.max_nodes:
        return "nodes on standby are let in"
    return f"round {number} goes on"


# -- stacks ----------------------------------------------------------------------------------------


async def _stacks(request: web.Request, run: HostedRun, body: _StacksBody) -> web.Response:
    if not body.node:
        return await stacks_api.told(run, "")
    member = _node(request, run, body.node)
    return member if isinstance(member, web.Response) else await stacks_api.told(run, member.name)


# -- which node ------------------------------------------------------------------------------------


def _node(request: web.Request, run: HostedRun, text: str) -> Member | web.Response:
    """The member that the operator means, or the answer that there is no such one, or several."""
    found = node_names.find(run.membership, text)
    if isinstance(found, Member):
        request[audit.NODE] = found.name
    shown = reasons.tidy(text, NAME_LENGTH_MAX)
    if isinstance(found, Ambiguous):
        what = f"{len(found.names)} nodes or more are {found.what}: {some(found.names)}"
        return json_error(409, what, "give the name of one of them", nodes=list(found.names))
    if found is not None:
        return found
    evicted = run.membership.orders.eviction_of(text)
    if evicted is not None:
        what = f"node {shown!r} was {reasons.evicted_by(evicted)}"
        return json_error(409, what, "it is not in the run any more")
    alike = nearest(text, dict.fromkeys(node_names.known(run.membership)))
    names = reasons.first_names(member.name for member in run.membership.roster)
    listed = some(names, len(run.membership.roster)) if names else "none"
    hint = f"{did_you_mean(alike)}nodes of this run: {listed}"
    return json_error(404, f"run {run.run_id!r} has no node {shown!r}", hint, nearest=alike)


ACTIONS: Final = (
    Action("close", _Body, '{"reason": "..."}', "closed", _close, _was_closed),
    Action(
        "drain", _NodeBody, '{"node": "...", "reason": "..."}', "changed", _drain, _refuse_closed
    ),
    Action(
        "evict", _NodeBody, '{"node": "...", "reason": "..."}', "changed", _evict, _refuse_closed
    ),
    Action(
        "admit", _NodeBody, '{"node": "...", "reason": "..."}', "changed", _admit, _refuse_closed
    ),
    Action(
        "scale",
        _ScaleBody,
        '{"min_nodes": 2, "max_nodes": 6}, with 1 <= min_nodes <= max_nodes',
        "changed",
        _scale,
        _refuse_closed,
    ),
    Action("stacks", _StacksBody, '{"node": "..."}, or {}', "asked", _stacks, _refuse_closed),
)
