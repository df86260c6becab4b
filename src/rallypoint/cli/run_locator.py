"""Finds the coordinator to ask about a run: at the endpoint, or through a ledger.

A ledger is only read, after it was opened as by any process. Modules that load an engine are
imported where they are used, so that commands without a ledger start quickly.
"""

from __future__ import annotations

import functools
import socket
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeVar

import msgspec

from rallypoint import settings, threads
from rallypoint.cli.api import NoSuchRunError
from rallypoint.core import reasons
from rallypoint.core.values import CloseRecord, repr_without
from rallypoint.endpoints import Endpoint, EndpointKind, FilePlace
from rallypoint.errors import (
    CoordinatorError,
    NotACoordinatorError,
    RunClosedError,
    TokenError,
    UnreachableError,
    UntrustedCoordinatorError,
    UsageError,
)
from rallypoint.tokens import Keys

if TYPE_CHECKING:
    from rallypoint.coordinator.ledger_view import Kept, Unread
    from rallypoint.core.election import Lease
    from rallypoint.ledger.contract import Ledger

T = TypeVar("T")

ADDRESSES_ASKED_MAX: Final = 64
"""How many addresses of one endpoint a command asks, in the order of the hosts."""
UNOWNED_HINT: Final = (
    "a node of the run or a `rallypoint serve` on the ledger takes it over: try again in a few "
    "seconds"
)
_STALE_HINT: Final = (
    "the ledger still names this coordinator: if it has failed, another one takes over; try again "
    "in a few seconds"
)


class CoordinatorClient(msgspec.Struct, frozen=True):
    """How to ask one coordinator: its addresses and the token to send.

    `process`: the name of its lease; "" without a ledger. `keys`: this command's tokens, which
    are used in place of `token`; None for the token of a lease.
    """

    process: str
    endpoints: tuple[Endpoint, ...]
    token: str
    keys: Keys | None = None

    def __repr__(self) -> str:
        return repr_without(self, "token")

    def ask(self, question: Callable[[Endpoint, str], T]) -> T:
        """The first answer of its addresses.

        Raises the error of the last address; if only some of them could be reached, of the last one
        of those.
        """
        failed: CoordinatorError | NoSuchRunError | None = None
        for endpoint in self.endpoints:
            try:
                if self.keys is None:
                    return question(endpoint, self.token)
                return ask(self.keys, functools.partial(question, endpoint))
            except UnreachableError as error:
                if failed is None or isinstance(failed, UnreachableError):
                    failed = error
            except (NoSuchRunError, NotACoordinatorError, TokenError) as error:
                if self.process or len(self.endpoints) == 1:
                    raise
                failed = error
        if failed is None:
            raise CoordinatorError(f"coordinator {self.process} has no address", hint=_STALE_HINT)
        if self.process:
            failed.hint = _STALE_HINT
        raise failed


def _at_each_address(endpoint: Endpoint, keys: Keys) -> CoordinatorClient:
    """The coordinator of an endpoint, which may have several addresses."""
    spare = range(endpoint.spare_ports + 1)
    every = [(host, host.port + more) for more in spare for host in endpoint.hosts]
    endpoints = [
        Endpoint(endpoint.kind, host.host, port, endpoint.text, is_tls=endpoint.is_tls)
        for host, port in every[:ADDRESSES_ASKED_MAX]
    ]
    return CoordinatorClient("", tuple(endpoints), keys.token, keys)


def ask(keys: Keys, question: Callable[[str], T]) -> T:
    """The answer to a question that needs a token. Raises the question's error.

    A TokenError names both tokens.
    """
    while True:
        try:
            return question(keys.token)
        except TokenError as error:
            if not keys.takes_home(error):
                raise keys.explained(error) from None
        except UntrustedCoordinatorError as error:
            if not keys.takes_home(error):
                raise keys.explained_authority(error) from None


class LedgerRun(msgspec.Struct, frozen=True):
    """A run in a ledger: how it ended, and its owner, if that has a valid lease.

    `status`: the run's status with the fields of a coordinator's own answer. Its argument is the
    reason why that coordinator has not answered. `events`: what the ledger has of them, as a
    coordinator answers: after the event with an id, with the same reason.
    """

    run_id: str
    close: CloseRecord | None
    owner: CoordinatorClient | None
    status: Callable[[str], dict[str, Any]]
    events: Callable[[str, str], dict[str, Any]]


# -- finding the coordinator ---------------------------------------------------------------------


def coordinator_of(endpoint: Endpoint, keys: Keys, run_id: str) -> CoordinatorClient:
    """The coordinator of a run: the endpoint itself, unless that is a ledger.

    Raises UsageError if the ledger has no such run, RunClosedError if it is over,
    CoordinatorError if it has no coordinator now, and any LedgerError.
    """
    if endpoint.kind is not EndpointKind.LEDGER:
        return _at_each_address(endpoint, keys)
    return owner_of(find(endpoint, keys, run_id))


def coordinators(endpoint: Endpoint, keys: Keys) -> tuple[list[CoordinatorClient], list[LedgerRun]]:
    """Every coordinator to ask, and all runs of a ledger; only the endpoint if it is no ledger."""
    if endpoint.kind is not EndpointKind.LEDGER:
        return [_at_each_address(endpoint, keys)], []
    found = _runs_of(endpoint, keys.token, None, 0)
    by_process = {run.owner.process: run.owner for run in found if run.owner is not None}
    return list(by_process.values()), found


def find(
    endpoint: Endpoint,
    keys: Keys,
    run_id: str,
    members_shown: int = 0,
    *,
    with_events: bool = False,
) -> LedgerRun:
    """One run in a ledger. Raises NoSuchRunError if there is none, and LedgerError."""
    found = _runs_of(endpoint, keys.token, run_id, members_shown, with_events=with_events)
    return found[0]


def owner_of(run: LedgerRun) -> CoordinatorClient:
    """The coordinator of a run of a ledger. Raises RunClosedError and CoordinatorError."""
    if run.close is not None:
        # The coordinator that closed it may have ended: the close in the ledger is final (R6).
        raise RunClosedError(reasons.run_over(run.run_id, run.close))
    if run.owner is not None:
        return run.owner
    raise CoordinatorError(f"run {run.run_id!r} has no coordinator now", hint=UNOWNED_HINT)


# -- reading a ledger ----------------------------------------------------------------------------


def _runs_of(
    endpoint: Endpoint,
    token: str,
    run_id: str | None,
    members_shown: int,
    *,
    with_events: bool = False,
) -> list[LedgerRun]:
    """One run in detail, or a line for each. Raises UsageError and LedgerError."""
    place = endpoint.place
    if isinstance(place, FilePlace) and not Path(place.folder).is_dir():
        hint = (
            "check the path, and that the folder is mounted on this machine; the first node or "
            "`rallypoint serve` creates the ledger"
        )
        raise UsageError(f"there is no ledger at {endpoint}: no such folder", hint=hint)
    return threads.run(_read(endpoint, token, run_id, members_shown, with_events))


async def _read(
    endpoint: Endpoint, token: str, run_id: str | None, members_shown: int, with_events: bool
) -> list[LedgerRun]:
    from rallypoint.coordinator import events_api, ledger_view
    from rallypoint.coordinator.event_streams import EventReader
    from rallypoint.coordinator.kept_events import kept_events
    from rallypoint.ledger.open import open_ledger

    async with open_ledger(endpoint, settings.etcd_password(endpoint)) as ledger:
        if run_id is None:
            return [_summary(each, token) for each in await ledger_view.look_at_all(ledger)]
        kept = await ledger_view.look(ledger, run_id)
        if kept is None:
            raise await _no_such_run(ledger, endpoint, run_id)
        shown = await ledger_view.detail(ledger, kept, members_shown, socket.gethostname())

        def status(problem: str) -> dict[str, Any]:
            # The summary has the reason why no coordinator answers, unless the run is over.
            reason = kept.summary(problem).reason
            return _as_dict(msgspec.structs.replace(shown, reason=reason))

        reader = EventReader(ledger)
        known = await kept_events(reader, kept.register) if with_events else ([], "")

        def events(problem: str, after: str) -> dict[str, Any]:
            asked = events_api.asked({"since": after, "limit": "1000"})
            return _as_dict(
                events_api.kept_page(kept.register, *known, asked, problem, socket.gethostname())
            )

        return [_ledger_run(kept, token, status, events)]


async def _no_such_run(ledger: Ledger, endpoint: Endpoint, run_id: str) -> NoSuchRunError:
    """With the names that are most like it, and the same hint as if it could not list them."""
    import urllib.parse

    from rallypoint.coordinator.nearest import did_you_mean, nearest
    from rallypoint.ledger.keys import RUNS

    try:
        names = [urllib.parse.unquote(key.removeprefix(RUNS)) for key in await ledger.keys(RUNS)]
    except NotImplementedError:
        names = []
    hint = f"{did_you_mean(nearest(run_id, names))}`rallypoint status` without a run lists them"
    return NoSuchRunError(f"ledger {endpoint} has no run {run_id!r}", hint=hint)


def _summary(each: Kept | Unread, token: str) -> LedgerRun:
    from rallypoint.coordinator.ledger_view import Unread

    def status(problem: str) -> dict[str, Any]:
        return _as_dict(each.summary(problem))

    if isinstance(each, Unread):
        return LedgerRun(each.run_id, None, None, status, _no_events)
    return _ledger_run(each, token, status)


def _no_events(problem: str, after: str) -> dict[str, Any]:
    return {"events": [], "problem": problem}


def _ledger_run(
    kept: Kept,
    token: str,
    status: Callable[[str], dict[str, Any]],
    events: Callable[[str, str], dict[str, Any]] = _no_events,
) -> LedgerRun:
    owner = None if kept.lease is None else client_of(kept.lease, token)
    return LedgerRun(kept.register.run_id, kept.register.close, owner, status, events)


def client_of(lease: Lease, token: str) -> CoordinatorClient:
    """How to ask the coordinator with this lease. `token`: "" for the lease's own."""
    endpoints = (
        Endpoint(EndpointKind.SERVED, each.host, each.port, f"http://{each}")
        for each in lease.addresses
    )
    return CoordinatorClient(lease.process, tuple(endpoints), token or lease.token)


def _as_dict(value: msgspec.Struct) -> dict[str, Any]:
    fields: dict[str, Any] = msgspec.to_builtins(value)
    return fields
