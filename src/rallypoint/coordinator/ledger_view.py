"""Reads runs and their owners from a ledger. Writes nothing.

It serves coordinators that answer about runs of others, and commands that reach only the ledger.
"""

from __future__ import annotations

import asyncio
import urllib.parse
from collections.abc import Callable, Iterable
from typing import Final, TypeVar

import msgspec

from rallypoint.coordinator import status
from rallypoint.coordinator.paging import Page
from rallypoint.coordinator.supervision import cancelled
from rallypoint.coordinator.tables import read_members
from rallypoint.core import election as e
from rallypoint.core.values import RoundMember
from rallypoint.errors import LedgerCorruptError, LedgerFormatError, RallypointError
from rallypoint.ledger.contract import Ledger
from rallypoint.ledger.keys import RUNS, lease_key, run_key

T = TypeVar("T")

READS_MAX: Final = 8
"""How many registers to read at once. The number is small because the engine serves others, too."""
NO_COORDINATOR: Final = (
    "no coordinator owns it now; one of its nodes or a `rallypoint serve` on the ledger takes it"
)


class Kept(msgspec.Struct, frozen=True):
    """A run's register, and the lease of its owner if it is serving."""

    register: e.RunRegister
    lease: e.Lease | None

    @property
    def run_id(self) -> str:
        return self.register.run_id

    def summary(self, problem: str = NO_COORDINATOR) -> status.RunSummary:
        """The run as a line of a list. `problem`: why its coordinator has not answered."""
        return status.kept_summary(self.register, self.lease, problem)


class Unread(msgspec.Struct, frozen=True):
    """A run whose register cannot be read."""

    run_id: str
    problem: str

    def summary(self, problem: str = "") -> status.RunSummary:
        """The run as a line of a list."""
        return status.unread(self.run_id, self.problem)


async def look(ledger: Ledger, run_id: str) -> Kept | None:
    """One run; None if the ledger has no run of that name. Raises LedgerError."""
    register = await _decoded(ledger, run_key(run_id), e.decode_run)
    return None if register is None else Kept(register, await _lease(ledger, register.owner))


async def look_at_all(
    ledger: Ledger,
    without: Iterable[str] = (),
    page: Page | None = None,
    sees: Callable[[str], bool] = lambda run_id: True,
) -> list[Kept | Unread]:
    """All runs except those in `without`, in order; with `page`, only its runs and the next one.

    `sees`: whether a run of this id is to be listed. Raises LedgerError if the ledger does not
    answer.
    """
    skipped = frozenset(map(run_key, without))
    keys = [key for key in sorted(await ledger.keys(RUNS)) if key not in skipped]
    if page is not None:
        keys = [key for key in keys if key > page.after_key]
    # The name in a key may be cut, so the head of the run decides. Read no more than is needed.
    most = len(keys) if page is None else page.most + 1
    listed: list[Kept | Unread] = []
    leases: dict[str, asyncio.Task[e.Lease | None]] = {}
    try:
        for at in range(0, len(keys), max(1, most)):
            found = await _read_all(ledger, keys[at : at + most], leases)
            listed += [each for each in found if sees(each.run_id)]
            if len(listed) >= most:
                break
    finally:
        await cancelled(leases.values())
    return listed[:most]


async def _read_all(
    ledger: Ledger, keys: list[str], leases: dict[str, asyncio.Task[e.Lease | None]]
) -> list[Kept | Unread]:
    found: dict[str, Kept | Unread] = {}
    waiting = iter(keys)

    async def read_some() -> None:
        for key in waiting:
            try:
                register = await _decoded(ledger, key, e.decode_run)
                if register is None:
                    continue  # It was removed meanwhile.
                task = leases.get(register.owner)
                if task is None:
                    work = _lease(ledger, register.owner)
                    task = leases[register.owner] = asyncio.ensure_future(work)
                found[key] = Kept(register, await asyncio.shield(task))
            except (LedgerCorruptError, LedgerFormatError) as error:
                name = urllib.parse.unquote(key.removeprefix(RUNS))
                found[key] = Unread(name, error.message)

    readers = [asyncio.ensure_future(read_some()) for _ in range(READS_MAX)]
    try:
        await asyncio.gather(*readers)
    finally:
        await cancelled(readers)
    return [found[key] for key in keys if key in found]


async def detail(
    ledger: Ledger, kept: Kept, members_shown: int, host: str, problem: str = NO_COORDINATOR
) -> status.RunStatus:
    """The run in detail; without its members if the member table cannot be read."""
    members: tuple[RoundMember, ...] | None
    try:
        members = await read_members(ledger, kept.register.run_id, kept.register.table)
    except (RallypointError, e.UnreadableError):
        members = None
    return status.kept_status(kept.register, kept.lease, problem, members, members_shown, host)


async def _lease(ledger: Ledger, process: str) -> e.Lease | None:
    """The lease of a process, if it is serving."""
    if not process:
        return None
    try:
        lease = await _decoded(ledger, lease_key(process), e.decode_lease)
    except (LedgerCorruptError, LedgerFormatError):
        return None
    return lease if lease is not None and lease.state is e.LeaseState.SERVING else None


async def _decoded(ledger: Ledger, key: str, decode: Callable[[bytes], T]) -> T | None:
    found = await ledger.read(key)
    try:
        return None if found is None else decode(found.value)
    except e.OtherFormatError as error:
        raise LedgerFormatError(
            f"register {key!r} of the ledger: {error}", hint=error.hint
        ) from error
    except e.UnreadableError as error:
        raise LedgerCorruptError(
            f"register {key!r} of the ledger: {error}", hint=error.hint
        ) from error
