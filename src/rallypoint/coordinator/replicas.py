"""Answers about runs of the ledger that another coordinator owns, by asking that one.

A request is forwarded only once, and only to an address in the lease of the run's owner. If the
owner does not answer, the run's register in the ledger is shown.

The token of the request is forwarded only to replicas of `serve`. A coordinator in a node belongs
to one job, which must not get the token of all jobs. If such a coordinator has drawn its own token,
that token is in its lease.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import urllib.parse
from collections.abc import AsyncIterator, Awaitable, Callable
from functools import partial
from typing import Any, Final, TypeVar

import aiohttp
import msgspec
from yarl import URL

from rallypoint import runtime
from rallypoint.coordinator import ledger_view, status
from rallypoint.coordinator.event_streams import EventReader
from rallypoint.coordinator.kept_events import kept_events
from rallypoint.coordinator.ledger_view import Kept, Unread
from rallypoint.coordinator.paging import Page
from rallypoint.coordinator.run_events import RunEvent
from rallypoint.coordinator.supervision import cancelled
from rallypoint.core import election as e
from rallypoint.core.values import Address
from rallypoint.errors import LedgerError
from rallypoint.ledger.contract import Ledger
from rallypoint.ledger.keys import RUNS
from rallypoint.security import first_look, tls, token_form
from rallypoint.security.access import CertificateFileError
from rallypoint.security.roles import Principal
from rallypoint.wire import api_paths
from rallypoint.wire.headers import ASKED_BY, CLIENT, LIMITS, ONLY_OWN

T = TypeVar("T")
ANSWER_WITHIN_S: Final = 3.0
"""The time limit for other coordinators, in seconds. A command waits 5 s in all."""
LEDGER_WITHIN_S: Final = 1.5
"""The time limit for the ledger."""
ANSWER_BYTES_MAX: Final = 64 * 1024**2
ASKED_AT_ONCE: Final = 16
ASKED_AT_ONE: Final = 8
"""How many requests to one coordinator are open at once. One that hangs does not block the others.
"""
STREAMS_MAX: Final = 128
"""How many streams of events are open at once."""
_BEING_TAKEN: Final = "the coordinator that answered takes it over"


class Caller(msgspec.Struct, frozen=True):
    """Who has sent a request: the Authorization header, "" for none, and the principal."""

    authorization: str
    principal: Principal

    def __repr__(self) -> str:
        return f"Caller({self.principal!r})"


class Answer(msgspec.Struct, frozen=True):
    """The answer of another coordinator."""

    status: int
    body: dict[str, Any]


class NoAnswerError(Exception):
    """Another coordinator has not answered the request. The text has the reason."""


class Replicas:
    """The runs of a shared ledger that other coordinators own. Owned by one event loop.

    `only_run`: the one run whose nodes have this coordinator's token; None: any. `host`: the host
    of this process. `process` returns the name of its lease. `reader`: of the events in the ledger.
    `trusted` returns how coordinators with the same tokens, at a host, are asked by TLS; None: they
    are asked in clear. It may block, so it is called in a thread.
    """

    def __init__(
        self,
        ledger: Ledger,
        only_run: str | None,
        host: str,
        process: Callable[[], str],
        reader: EventReader,
        trusted: Callable[[str], tls.Client | None] = lambda host: None,
    ) -> None:
        self._reader = reader
        self._ledger = ledger
        self._process = process
        self._only_run = only_run
        self._host = host
        self._trusted = trusted
        self._http: aiohttp.ClientSession | None = None
        self._streams: aiohttp.ClientSession | None = None

    async def aclose(self) -> None:
        """Close the connections. Idempotent."""
        for session in (self._http, self._streams):
            if session is not None:
                await session.close()

    # -- requests ------------------------------------------------------------------------------

    async def look(self, run_id: str) -> Kept | None:
        """The run in the ledger; None if there is none. Raises LedgerError, TimeoutError."""
        if self._only_run not in (None, run_id):
            return None
        async with asyncio.timeout(LEDGER_WITHIN_S):
            return await ledger_view.look(self._ledger, run_id)

    async def names(self) -> list[str]:
        """The ids of all runs in the ledger; long ones are cut. Raises LedgerError, TimeoutError.

        None for a coordinator of one run: its nodes must not learn of the others.
        """
        if self._only_run is not None:
            return []
        async with asyncio.timeout(LEDGER_WITHIN_S):
            keys = await self._ledger.keys(RUNS)
        return [urllib.parse.unquote(key.removeprefix(RUNS)) for key in keys]

    async def events(self, kept: Kept) -> tuple[list[RunEvent], str]:
        """What the ledger has of the run's events, and why some may be missing.

        Raises LedgerError, TimeoutError.
        """
        async with asyncio.timeout(LEDGER_WITHIN_S):
            return await kept_events(self._reader, kept.register)

    async def status(
        self, kept: Kept, members_shown: int, caller: Caller, *, may_ask: bool
    ) -> Answer | status.RunStatus:
        """The run in detail: from its owner's answer, or from the ledger.

        Raises LedgerError, TimeoutError.
        """
        run_id, problem = kept.register.run_id, ledger_view.NO_COORDINATOR
        if kept.lease is not None and kept.lease.process == self._process():
            problem = _BEING_TAKEN
        elif kept.lease is not None and may_ask and kept.register.close is None:
            path = f"{api_paths.run_path(run_id)}?members={members_shown}"
            try:
                answer = await self.ask(kept.lease, caller, path)
                if answer.status == 200 and answer.body.get("run_id") == run_id:
                    return answer
                raise NoAnswerError(_told(answer))
            except NoAnswerError as error:
                problem = no_answer(kept.lease, str(error))
        elif kept.lease is not None:
            problem = f"the ledger says that it is at {_listed(kept.lease)}"
        async with asyncio.timeout(LEDGER_WITHIN_S):
            return await ledger_view.detail(self._ledger, kept, members_shown, self._host, problem)

    async def summaries(self, own: list[str], caller: Caller, page: Page) -> list[dict[str, Any]]:
        """A summary of each run of this page that is not in `own`, and of the one after the page.

        Raises LedgerError, TimeoutError.
        """
        if self._only_run is not None:
            return []
        async with asyncio.timeout(LEDGER_WITHIN_S):
            sees = caller.principal.sees
            found = await ledger_view.look_at_all(self._ledger, own, page, sees)
        owners = {
            each.lease.process: each.lease
            for each in found
            if isinstance(each, Kept) and each.lease is not None and each.register.close is None
        }
        owners.pop(self._process(), None)
        told = await self._ask_all(list(owners.values()), caller, page)
        told[self._process()] = _BEING_TAKEN
        return [_line(each, told) for each in found]

    async def _ask_all(
        self, leases: list[e.Lease], caller: Caller, page: Page
    ) -> dict[str, dict[str, Any] | str]:
        """The answer of each coordinator about its runs, by process; or why it has not answered."""
        waiting = iter(leases)
        told: dict[str, dict[str, Any] | str] = {}

        async def ask_some() -> None:
            for lease in waiting:
                try:
                    told[lease.process] = await self._runs_of(lease, caller, page)
                except NoAnswerError as error:
                    told[lease.process] = no_answer(lease, str(error))

        askers = [asyncio.ensure_future(ask_some()) for _ in range(ASKED_AT_ONCE)]
        try:
            await asyncio.wait(askers, timeout=ANSWER_WITHIN_S)
        finally:
            await cancelled(askers)
        late = {lease.process: no_answer(lease, "no answer in time") for lease in leases}
        return late | told

    async def _runs_of(self, lease: e.Lease, caller: Caller, page: Page) -> dict[str, Any]:
        path = f"{api_paths.RUNS}?limit={page.most}&after={api_paths.quoted(page.after)}"
        answer = await self.ask(lease, caller, path)
        if answer.status != 200:
            raise NoAnswerError(_told(answer))
        runs = answer.body.get("runs")
        if not isinstance(runs, list) or not all(isinstance(each, dict) for each in runs):
            raise NoAnswerError("its answer lists no runs")
        return {str(each.get("run_id")): each for each in runs}

    async def ask(
        self,
        lease: e.Lease,
        caller: Caller,
        path: str,
        post: bytes | None = None,
        asked_by: str = "",
    ) -> Answer:
        """Ask the process with this lease, at each of its addresses in turn.

        `asked_by`: the address from which the request came. Raises NoAnswerError.
        """
        problem = "its lease names no address"
        try:
            async with asyncio.timeout(ANSWER_WITHIN_S):
                for address in lease.addresses:
                    try:
                        headers = _headers(lease, caller, asked_by)
                        asked = partial(self._ask, address, headers, path, post)
                        return await self._dial(lease, address, asked)
                    except (aiohttp.ClientError, OSError, NoAnswerError) as error:
                        problem = _problem(error)
        except TimeoutError:
            problem = f"no answer within {ANSWER_WITHIN_S:g} s"
        raise NoAnswerError(problem)

    @contextlib.asynccontextmanager
    async def stream(
        self, lease: e.Lease, caller: Caller, path: str, last_id: str, quiet_s: float
    ) -> AsyncIterator[aiohttp.ClientResponse]:
        """A stream of events of the process with this lease. Raises NoAnswerError.

        `last_id`: the last event that the client has. The stream ends if nothing comes for
        `quiet_s`.
        """
        if self._streams is None:
            self._streams = aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(limit=STREAMS_MAX, force_close=True),
                auto_decompress=False,
                cookie_jar=aiohttp.DummyCookieJar(),
            )
        headers = _headers(lease, caller, "") | {"Accept": "text/event-stream"}
        if last_id:
            headers["Last-Event-ID"] = last_id
        limits = aiohttp.ClientTimeout(total=None, sock_connect=ANSWER_WITHIN_S, sock_read=quiet_s)
        problem = "its lease names no address"

        async def begun(address: Address, client: tls.Client | None) -> aiohttp.ClientResponse:
            assert self._streams is not None
            scheme = "http" if client is None else "https"
            return await self._streams.get(
                URL(f"{scheme}://{address}{path}", encoded=True),
                headers=headers,
                timeout=limits,
                allow_redirects=False,
                **({} if client is None else client.options),
            )

        for address in lease.addresses:
            try:
                answer = await self._dial(lease, address, partial(begun, address))
            except (aiohttp.ClientError, OSError, NoAnswerError) as error:
                problem = _problem(error)
                continue
            async with answer:
                yield answer
            return
        raise NoAnswerError(problem)

    async def _dial(
        self,
        lease: e.Lease,
        address: Address,
        ask: Callable[[tls.Client | None], Awaitable[T]],
    ) -> T:
        """Ask the process with this lease: see `security`. `ask` gets None: in clear.

        Raises NoAnswerError for a lease with a damaged token, OSError, and the errors of `ask`.
        """
        try:
            parts = token_form.parse(lease.token)
        except ValueError as error:
            raise NoAnswerError(f"the token in its lease {error}") from None
        if parts is not None:

            async def where() -> dict[str, Any]:
                return {"host": address.host, "port": address.port}

            return await first_look.dial(parts, where, ask)
        if lease.token:
            return await ask(None)
        try:
            client = await runtime.in_thread(lambda: self._trusted(address.host))
        except CertificateFileError as error:
            raise NoAnswerError(str(error)) from None
        return await ask(client)

    async def _ask(
        self,
        address: Address,
        headers: dict[str, str],
        path: str,
        post: bytes | None,
        client: tls.Client | None,
    ) -> Answer:
        if self._http is None:
            self._http = aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(
                    limit=ASKED_AT_ONCE, limit_per_host=ASKED_AT_ONE, force_close=True
                ),
                auto_decompress=False,
                cookie_jar=aiohttp.DummyCookieJar(),
            )
        method = "GET" if post is None else "POST"
        url = f"{'http' if client is None else 'https'}://{address}{path}"
        # No redirections: the token must be sent only to the address in the ledger.
        async with self._http.request(
            method,
            URL(url, encoded=True),
            headers=headers,
            data=post,
            allow_redirects=False,
            **({} if client is None else client.options),
        ) as response:
            body = await response.content.read(ANSWER_BYTES_MAX + 1)
            while len(body) <= ANSWER_BYTES_MAX and not response.content.at_eof():
                body += await response.content.read(ANSWER_BYTES_MAX + 1 - len(body))
            if len(body) > ANSWER_BYTES_MAX:
                raise NoAnswerError("its answer is too long")
            found = _object(body)
            if found is None:
                raise NoAnswerError(f"the server there is not a coordinator ({response.status})")
            return Answer(response.status, found)


def no_answer(lease: e.Lease, why: str) -> str:
    """Why the run's coordinator has not answered."""
    return (
        f"its coordinator at {_listed(lease)} does not answer for it: {why}; if it is dead, "
        "another one takes the run over within seconds"
    )


def _line(each: Kept | Unread, told: dict[str, dict[str, Any] | str]) -> dict[str, Any]:
    problem = ledger_view.NO_COORDINATOR
    if isinstance(each, Kept) and each.lease is not None:
        said = told.get(each.lease.process, "")
        if isinstance(said, dict):
            line = said.get(each.register.run_id)
            if line is not None:
                return status.filled(line, status.RunSummary)
            said = no_answer(each.lease, "it does not own the run any more")
        problem = said
    fields: dict[str, Any] = msgspec.to_builtins(each.summary(problem))
    return fields


def _headers(lease: e.Lease, caller: Caller, asked_by: str) -> dict[str, str]:
    headers = {CLIENT: "coordinator", ONLY_OWN: "1", "Content-Type": "application/json"}
    if asked_by:
        headers[ASKED_BY] = asked_by
    if lease.token:
        headers["Authorization"] = f"Bearer {token_form.credential(lease.token)}"
    elif caller.authorization and not lease.only_run:
        headers["Authorization"] = caller.authorization
    # The other coordinator must not give this caller more rights than it has, whose token ever is
    # sent.
    if not caller.principal.is_unlimited:
        headers[LIMITS] = caller.principal.limits()
    return headers


def _object(body: bytes) -> dict[str, Any] | None:
    try:
        found = msgspec.json.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None
    return found if isinstance(found, dict) else None


def _told(answer: Answer) -> str:
    """The error in an answer."""
    return str(answer.body.get("error") or f"it answers with status {answer.status}")[:300]


def _problem(error: Exception) -> str:
    """The system's text of the error, without the address and more that aiohttp adds."""
    if isinstance(error, OSError) and error.errno is not None and error.errno > 0:
        return os.strerror(error.errno)
    return str(error) or type(error).__name__


def _listed(lease: e.Lease) -> str:
    return ", ".join(map(str, lease.addresses[:4])) or lease.process


LOOK_ERRORS: Final = (LedgerError, TimeoutError, NotImplementedError)
"""The errors when a ledger cannot be read."""
