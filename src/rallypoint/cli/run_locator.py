"""Which coordinator to ask about a run that a ledger knows: its owner, where its lease says.

Reads the ledger, and writes nothing but what opening it writes.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final, TypeVar

import msgspec

from rallypoint.cli.api import NoSuchRunError
from rallypoint.core import reasons
from rallypoint.core.values import CloseRecord, repr_without
from rallypoint.endpoints import Endpoint, EndpointKind, FilePlace
from rallypoint.errors import (
    CoordinatorError,
    RunClosedError,
    TokenError,
    UnreachableError,
    UsageError,
)
from rallypoint.tokens import Keys

T = TypeVar("T")


_STALE_HINT: Final = (
    "the ledger still names it: if it is dead, another takes over; ask again in some seconds"
)


UNOWNED_HINT: Final = (
    "its nodes, or a `rallypoint serve` on the ledger, take it: ask again in some seconds"
)


class Owner(msgspec.Struct, frozen=True):
    """A coordinator process: where to ask it, and with which token.

    `keys`: what this command shows, and may show, in place of `token`; None for what is in a lease.
    """

    process: str
    endpoints: tuple[Endpoint, ...]
    token: str
    keys: Keys | None = None

    def __repr__(self) -> str:
        return repr_without(self, "token")

    def ask(self, question: Callable[[Endpoint, str], T]) -> T:
        """The first answer of its addresses. Raises what the last one did."""
        failed: UnreachableError | None = None
        for endpoint in self.endpoints:
            try:
                if self.keys is None:
                    return question(endpoint, self.token)
                return ask(self.keys, functools.partial(question, endpoint))
            except UnreachableError as error:
                failed = error
        if failed is None:
            raise CoordinatorError(f"coordinator {self.process} has no address")
        if self.process:
            failed.hint = _STALE_HINT
        raise failed


def ask(keys: Keys, question: Callable[[str], T]) -> T:
    """The answer to a question that is asked with a token. Raises what the question does.

    A TokenError names both tokens.
    """
    while True:
        try:
            return question(keys.token)
        except TokenError as error:
            if not keys.takes_home(error):
                raise keys.explained(error) from None


class Known(msgspec.Struct, frozen=True):
    """What the ledger says of a run: how it ended, and who has it if that one still serves.

    `picture`: the same for people, with the fields of a coordinator's own answers. It takes the
    reason why that coordinator has not answered.
    """

    run_id: str
    close: CloseRecord | None
    owner: Owner | None
    picture: Callable[[str], dict[str, Any]]


def find(endpoint: Endpoint, keys: Keys, run_id: str, members_shown: int = 0) -> Known:
    """What a ledger says of one run. Raises NoSuchRunError if it knows none, and LedgerError."""
    found = _known(endpoint, keys.token, run_id, members_shown)
    if not found:
        raise NoSuchRunError(
            f"ledger {endpoint} knows no run {run_id!r}",
            hint="`rallypoint status` without a run lists them",
        )
    return found[0]


def owner_of(endpoint: Endpoint, keys: Keys, run_id: str) -> Owner:
    """Who coordinates a run: the endpoint itself, unless that is a ledger.

    Raises UsageError if the ledger knows no such run, RunClosedError if it is over,
    CoordinatorError if it has no coordinator now, and any LedgerError.
    """
    if endpoint.kind is not EndpointKind.LEDGER:
        return Owner("", (endpoint,), keys.token, keys)
    return serving(find(endpoint, keys, run_id))


def serving(known: Known) -> Owner:
    """Who coordinates a run of a ledger. Raises RunClosedError and CoordinatorError."""
    if known.close is not None:
        # Whoever closed it may be gone: what the ledger says is final (R6).
        raise RunClosedError(reasons.run_over(known.run_id, known.close))
    if known.owner is not None:
        return known.owner
    raise CoordinatorError(f"run {known.run_id!r} has no coordinator now", hint=UNOWNED_HINT)


def owners(endpoint: Endpoint, keys: Keys) -> tuple[list[Owner], list[Known]]:
    """Every coordinator to ask, and all that a ledger says; the endpoint itself, if it is none."""
    if endpoint.kind is not EndpointKind.LEDGER:
        return [Owner("", (endpoint,), keys.token, keys)], []
    found = _known(endpoint, keys.token, None, 0)
    serving = {known.owner.process: known.owner for known in found if known.owner is not None}
    return list(serving.values()), found


def _known(endpoint: Endpoint, token: str, run_id: str | None, members_shown: int) -> list[Known]:
    place = endpoint.place
    if isinstance(place, FilePlace) and not Path(place.folder).is_dir():
        hint = "check the folder, and that it is mounted here: the first node or `serve` makes it"
        raise UsageError(f"there is no ledger at {endpoint}: no such folder", hint=hint)
    from rallypoint.cli import ledger_runs  # Only here: it loads an engine.

    return ledger_runs.read(endpoint, token, run_id, members_shown)
