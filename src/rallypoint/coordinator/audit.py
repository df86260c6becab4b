"""The audit log: who changed a run from outside, and who was refused. JSON, one record a line.

Each request that needs the right ACT is recorded by the server, and so is each refusal. A handler
of such a request only adds what it is about: `request[audit.NODE] = name`, and so on.

Records that anybody can cause are limited: see `security/sums.py`. This file must not write to a
disk, which may hang: `sink` takes the lines.
"""

from __future__ import annotations

import asyncio
import datetime as dt
from collections.abc import Callable
from typing import Any, Final

import msgspec
from aiohttp import web

from rallypoint import runtime
from rallypoint.coordinator import guard
from rallypoint.core import reasons
from rallypoint.core.addresses import network, plain
from rallypoint.core.values import NAME_LENGTH_MAX
from rallypoint.security.roles import Denial, Principal
from rallypoint.security.sums import WINDOW_S, Sums
from rallypoint.wire.headers import ASKED_BY

NODE: web.RequestKey[str] = web.RequestKey("audited_node", str)
"""The node to which an action is done."""
REASON: web.RequestKey[str] = web.RequestKey("audited_reason", str)
"""Why the operator wants it."""
SIZE: web.RequestKey[str] = web.RequestKey("audited_size", str)
"""How many nodes a run is to have, as MIN:MAX."""
LOGIN: Final = "login"
ATTACH: Final = "attach"
DONE: Final = "done"
FAILED: Final = "failed"
REFUSED: Final = "refused"
UNKNOWN: Final = "unknown"
"""The outcomes. An action is UNKNOWN if its request ended before it was answered."""


class Record(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A line. docs/security.md has the fields. `sender`: the id of the token, which is not secret.
    `name`: of the token, for people. `size_before`, `size`: how many nodes a run had before
    `scale`, and is to have. `count`: how many like this one it stands for.
    """

    time: str
    action: str
    outcome: str
    status: int = 0
    sender: str = msgspec.field(default="", name="token")
    name: str = ""
    roles: str = ""
    address: str = ""
    asked_by: str = ""
    run: str = ""
    node: str = ""
    size_before: str = ""
    size: str = ""
    reason: str = ""
    detail: str = ""
    count: int = 1


OTHERS: Final = "others"
"""The address in a line that counts refusals of more addresses than are known at once."""


class _Key(msgspec.Struct, frozen=True):
    """What like records have in common. `address`: of IPv6, the /64 network.

    Who has one address of such a network has all of them.
    """

    action: str
    sender: str
    roles: str
    address: str
    name: str = ""


def _of_token(key: _Key) -> _Key:
    return _Key(key.action, key.sender, key.roles, OTHERS, key.name)


def _of_action(key: _Key) -> _Key:
    return _Key(key.action, "", "", OTHERS)


class Audit:
    """Makes the records of one coordinator. Owned by one event loop. `sink` None: makes none."""

    def __init__(self, sink: Callable[[bytes], None] | None = None) -> None:
        self._sink = sink
        # Strangers must not take the room of those who have a token.
        self._strangers: Sums[_Key] = Sums(_of_action)
        self._known: Sums[_Key] = Sums(_of_token, _of_action)
        self._timer: asyncio.TimerHandle | None = None

    # -- what happened -------------------------------------------------------------------------

    def login_refused(self, address: str | None, why: str, status: int) -> None:
        """A request without an accepted token, and the status of its answer."""
        self._refused(LOGIN, _address(address), detail=why, status=status)

    def certificate_refused(self, address: str | None, why: str) -> None:
        """A connection with a certificate that is not accepted. It has sent no request."""
        self._refused(LOGIN, _address(address), detail=why)

    def page_refused(self, request: web.Request, status: int, why: str) -> None:
        """A request that may come from a web page of another site."""
        self._refused(
            guard.action_of(request),
            _address(request.remote),
            request.get(guard.PRINCIPAL),
            detail=_tidy(why),
            status=status,
            run=_tidy(request.match_info.get("run_id", "")),
        )

    def denied(self, request: web.Request, principal: Principal, denial: Denial) -> None:
        """A request whose token does not allow it."""
        self._refused(
            guard.action_of(request),
            _address(request.remote),
            principal,
            detail=denial.message,
            status=403,
            run=_tidy(request.match_info.get("run_id", "")),
            asked_by=_asked_by(request),
        )

    def attach_denied(self, address: str, principal: Principal, run: str, denial: Denial) -> None:
        """A node whose token is not for the run."""
        self._refused(ATTACH, address, principal, detail=denial.message, run=_tidy(run))

    def connection_closed(self, address: str, principal: Principal, denial: Denial) -> None:
        """The open connection of a node was closed, because its token counts no more."""
        self._refused(ATTACH, address, principal, detail=denial.message)

    def stream_closed(self, request: web.Request, principal: Principal, denial: Denial) -> None:
        """An answer ended with the time of its token."""
        action, address = guard.action_of(request), _address(request.remote)
        self._refused(action, address, principal, detail=denial.message)

    def acted(
        self,
        request: web.Request,
        principal: Principal,
        status: int | None,
        answer: web.StreamResponse | None = None,
    ) -> None:
        """A request that changes a run was answered; None: it has ended before.

        `answer`: what it got, which says why it failed, and what the size of the run was. So the
        record has that also if another coordinator has done it.
        """
        if self._sink is None:
            return
        sender, name, roles = _named(principal)
        said = _said(answer)
        outcome = UNKNOWN if status is None else DONE if status < 400 else FAILED
        self._write(
            Record(
                time=_now(),
                action=guard.action_of(request),
                outcome=outcome,
                status=status or 0,
                sender=sender,
                name=name,
                roles=roles,
                address=_address(request.remote),
                asked_by=_asked_by(request),
                run=_tidy(request.match_info.get("run_id", "")),
                node=_tidy(request.get(NODE, "")),
                size_before=_size(said.was),
                size=request.get(SIZE, ""),
                reason=reasons.tidy(request.get(REASON, "")),
                detail=reasons.tidy(said.error),
            )
        )

    def close(self) -> None:
        """Write the sums of what was only counted."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._sum_up(float("inf"))

    # -- records -------------------------------------------------------------------------------

    def _refused(
        self, action: str, address: str, principal: Principal | None = None, **more: Any
    ) -> None:
        """`principal`: who sends the request; None for a stranger."""
        if self._sink is None:
            return
        now_s = asyncio.get_running_loop().time()
        sender, name, roles = ("", "", "") if principal is None else _named(principal)
        sums = self._strangers if principal is None else self._known
        if sums.admits(_Key(action, sender, roles, network(address), name), now_s):
            self._write(
                Record(
                    time=_now(),
                    action=action,
                    outcome=REFUSED,
                    sender=sender,
                    name=name,
                    roles=roles,
                    address=address,
                    **more,
                )
            )
        self._look_later(now_s)

    def _look_later(self, now_s: float) -> None:
        ends = [each.ends_s() for each in (self._known, self._strangers)]
        ends_s = min((each for each in ends if each is not None), default=None)
        if self._timer is None and ends_s is not None:
            after_s = min(WINDOW_S, max(0.0, ends_s - now_s))
            self._timer = asyncio.get_running_loop().call_later(after_s, self._look)

    def _look(self) -> None:
        self._timer = None
        now_s = asyncio.get_running_loop().time()
        self._sum_up(now_s)
        self._look_later(now_s)

    def _sum_up(self, now_s: float) -> None:
        for key, count in (*self._known.over(now_s), *self._strangers.over(now_s)):
            self._write(
                Record(time=_now(), outcome=REFUSED, count=count, **msgspec.structs.asdict(key))
            )

    def _write(self, record: Record) -> None:
        if self._sink is not None:
            self._sink(msgspec.json.encode(record) + b"\n")


class _Said(msgspec.Struct):
    """What a record has of the answer to an action."""

    error: str = ""
    was: Any = None


def _said(answer: web.StreamResponse | None) -> _Said:
    body = answer.body if isinstance(answer, web.Response) else None
    try:
        return msgspec.json.decode(body if isinstance(body, bytes) else b"{}", type=_Said)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return _Said()


def _size(numbers: Any) -> str:
    """How many nodes a run had, as MIN:MAX; "" if these are no such numbers."""
    is_size = isinstance(numbers, list) and len(numbers) == 2
    return f"{numbers[0]}:{numbers[1]}" if is_size else ""


def _named(principal: Principal) -> tuple[str, str, str]:
    return principal.id, principal.name, ",".join(principal.roles)


def _address(remote: str | None) -> str:
    return plain(remote) if remote else "local"


def _asked_by(request: web.Request) -> str:
    return _tidy(request.headers.get(ASKED_BY, ""))


def _tidy(text: str) -> str:
    return reasons.tidy(text, NAME_LENGTH_MAX)


def _now() -> str:
    """The time in UTC, as RFC 3339 has it, with milliseconds."""
    now = dt.datetime.fromtimestamp(runtime.here().wall_s(), dt.UTC)
    return now.isoformat(timespec="milliseconds").replace("+00:00", "Z")
