"""`/api/v1/coordinators`: the processes with a lease in the ledger, and how old each lease is.

A lease has no time of day, because clocks of hosts are not compared (R9). Its age is how long this
process has seen it unchanged. So each look is remembered.
"""

from __future__ import annotations

import asyncio
from typing import Final

import msgspec
from aiohttp import web

from rallypoint.coordinator import guard, http_api, replicas
from rallypoint.coordinator.http_api import COORDINATOR
from rallypoint.core import election as e
from rallypoint.errors import LedgerError
from rallypoint.ledger.contract import Ledger
from rallypoint.ledger.keys import COORDINATORS, lease_key
from rallypoint.security.roles import Principal
from rallypoint.wire import api_paths

LEASES_MAX: Final = 64
"""How many leases are read. A killed process leaves its own for an hour."""
LOOK_EVERY_S: Final = 1.0
"""All who ask within this time get the same look at the ledger."""


class CoordinatorLease(msgspec.Struct, frozen=True, kw_only=True):
    """A process with a lease.

    `unchanged_s`: for how long this process has seen it without a renewal; a lease that is older
    than `ttl_s` may be revoked. `is_own`: it is that of the process that answers. `node`: the node
    that hosts the process; null for `rallypoint serve`. `only_run`: the one run that it serves.
    """

    process: str
    addresses: list[str]
    ttl_s: float
    unchanged_s: float
    is_own: bool
    node: str | None
    only_run: str | None


class LeaseList(msgspec.Struct, frozen=True, kw_only=True):
    """The answer. `problem`: why leases may be missing; null if none is."""

    coordinators: list[CoordinatorLease]
    problem: str | None
    shown_on: str


class Leases:
    """The leases of a ledger, as this process has seen them. Owned by one event loop.

    `only_own`: read no other lease than that of `process`.
    """

    def __init__(self, ledger: Ledger, *, only_own: bool) -> None:
        self._ledger = ledger
        self._only_own = only_own
        self._seen: dict[str, tuple[e.Lease, float]] = {}
        """Each lease, and when it was first seen with its beat."""
        self._looked_s = float("-inf")
        self._looking = asyncio.Lock()

    async def look(self, process: str) -> list[CoordinatorLease]:
        """The leases of processes that serve, this one's first. Raises LedgerError, TimeoutError.

        `process`: the name of this process's lease.
        """
        loop = asyncio.get_running_loop()
        async with self._looking:
            if loop.time() - self._looked_s >= LOOK_EVERY_S:
                async with asyncio.timeout(replicas.LEDGER_WITHIN_S):
                    await self._read(process)
                self._looked_s = loop.time()
        now_s = loop.time()
        shown = [
            _shown(lease, now_s - since_s, lease.process == process)
            for lease, since_s in self._seen.values()
        ]
        return sorted(shown, key=lambda each: (not each.is_own, each.process))

    async def _read(self, process: str) -> None:
        own = lease_key(process)
        keys = [own]
        if not self._only_own:
            others = [key for key in sorted(await self._ledger.keys(COORDINATORS)) if key != own]
            keys += others[-LEASES_MAX + 1 :]
        seen: dict[str, tuple[e.Lease, float]] = {}
        for key in keys:
            value = await self._ledger.read(key)
            if value is None:
                continue
            try:
                lease = e.decode_lease(value.value)
            except e.UnreadableError:
                continue  # Another release has written it.
            if lease.state is not e.LeaseState.SERVING:
                continue  # Its process has ended, or is about to.
            before = self._seen.get(key)
            is_same = before is not None and before[0].beat == lease.beat
            now_s = asyncio.get_running_loop().time()
            seen[key] = (lease, before[1] if is_same and before is not None else now_s)
        self._seen = seen


LEASES: web.AppKey[Leases] = web.AppKey("leases", Leases)
"""Only on a shared ledger."""


def add_routes(app: web.Application) -> None:
    """Add the leases to the API of a coordinator."""
    app.router.add_get(api_paths.COORDINATORS, _coordinators)


async def _coordinators(request: web.Request) -> web.Response:
    coordinator = request.app[COORDINATOR]
    leases, found = request.app.get(LEASES), []
    problem: str | None = None
    if leases is not None:
        try:
            found = await leases.look(coordinator.ownership.process)
            principal = guard.principal_of(request)
            found = [seen for each in found if (seen := _as_seen(each, principal)) is not None]
        except (LedgerError, TimeoutError, NotImplementedError) as error:
            problem = f"the leases cannot be read: {http_api.why_unread(error)}"
    answer = LeaseList(coordinators=found, problem=problem, shown_on=coordinator.config.clock_host)
    return web.Response(body=msgspec.json.encode(answer) + b"\n", content_type="application/json")


def _as_seen(each: CoordinatorLease, principal: Principal) -> CoordinatorLease | None:
    """Without names of runs for which the principal's roles do not count, nor of their nodes."""
    if each.only_run is not None:
        return each if principal.sees(each.only_run) else None
    # A node without a run's name may be of any run.
    return msgspec.structs.replace(each, node=None) if principal.patterns else each


def _shown(lease: e.Lease, unchanged_s: float, is_own: bool) -> CoordinatorLease:
    return CoordinatorLease(
        process=lease.process,
        addresses=[str(each) for each in lease.addresses],
        ttl_s=lease.ttl_s,
        unchanged_s=unchanged_s,
        is_own=is_own,
        node=lease.node.name if lease.node is not None else None,
        only_run=lease.only_run or None,
    )
