"""Connects to the coordinator of an endpoint that names it: `host:port` or `http://`.

It dials the endpoint's address until a coordinator answers, and hosts one if nothing listens there
and this is its machine. An endpoint with several addresses is dialled in rounds (`walk`). The
connector decides when to search, and uses the connection.
"""

from __future__ import annotations

import asyncio
import functools
import logging
import math
from collections.abc import Coroutine, Sequence
from itertools import compress
from typing import Any, Final

from rallypoint import runtime
from rallypoint.client import network
from rallypoint.client.credentials import Credentials
from rallypoint.client.dialing import (
    STAGGER_S,
    Attempts,
    Patience,
    Pauses,
    give_up,
    is_free,
    is_known_as_own,
    may_host,
)
from rallypoint.client.network import Connection
from rallypoint.client.own_coordinator import OwnCoordinator
from rallypoint.client.port_range import HINT, holder
from rallypoint.client.walk import Walk
from rallypoint.core.reasons import Refusal
from rallypoint.core.values import Address
from rallypoint.endpoints import is_loopback
from rallypoint.errors import CoordinatorError, UnreachableError
from rallypoint.settings import EndpointKind, NodeSettings

_log = logging.getLogger("rallypoint.client")

DIAL_MIN_S: Final = 0.5
"""The least time for an address to answer, in seconds, even if less time is left."""
PROXY_READY_S: Final = 10.0
"""How long, in seconds, a joining node waits for a proxy that answers 404, 429 or 5xx. After that
the address is probably wrong, so the node does not wait for the whole `connect_timeout`.
"""
IN_USE_S: Final = 2.0
"""How long, in seconds, a node goes on dialling an own port that something has bound meanwhile.
It may be another node of the run, whose coordinator answers only after a moment.
"""
TAKEN_AGAIN_S: Final = 2.0
"""How many seconds after the last time a node asks another run's coordinator again, if there are
other addresses.
"""
HELD_S: Final = 5.0
"""How many seconds the answer is kept whether something listens at each own port."""
LATER_PORTS: Final = 16
"""At how many own ports a node looks for its run if another node of its machine hosts it."""


class FixedCoordinator:
    """The search and the dials of one node. For one event loop."""

    def __init__(
        self, settings: NodeSettings, own: OwnCoordinator, credentials: Credentials
    ) -> None:
        self.settings = settings
        self._own = own
        self._credentials = credentials
        self._walk = Walk(settings.endpoint) if settings.endpoint.has_choice else None
        self._pauses = Pauses()
        self._is_host = False
        """Whether this node may host the coordinator. A name may be resolved late."""
        self._answers: dict[Address, str] = {}
        """The last answer of each address, of all rounds."""
        self._began_s: float | None = None
        self._asked_taken_s = -math.inf
        """When an address of another run was dialled again last."""
        self._own_places: list[Address] = []
        self._found: Address | None = None
        """Which of several addresses is the coordinator's."""
        self._silent: dict[Address, list[Address]] = {}
        """The addresses of each place that have not answered its last dial."""
        self._held = ""
        self._held_until_s = -math.inf

    @property
    def target(self) -> Address:
        """The address to dial after the coordinator was found once."""
        return self._own.target if self._own.hosted or self._found is None else self._found

    @property
    def not_hosting(self) -> str:
        """Why this node cannot host the coordinator at any of its own ports now; "" if it may.

        It is known before the first of them was dialled, which may take seconds.
        """
        if not self._own_places or self._own.hosted is not None:
            return ""
        if _now_s() >= self._held_until_s:
            held = network.here().held(sorted({each.port for each in self._own_places}))
            self._held = f"{_taken(self._own_places)} ({held})" if held else ""
            self._held_until_s = _now_s() + HELD_S
        return self._held

    # -- joining -----------------------------------------------------------------------------------

    async def find(self, attempts: Attempts, ends_s: float) -> Connection:
        """Dial until a coordinator answers. If none does, host it if this is its machine.

        Raises a CoordinatorError at `ends_s`.
        """
        if self._walk is not None and self._own.hosted is None:
            return await self._find_in_turn(self._walk, attempts, ends_s)
        began_s = _now_s()
        pauses = Pauses()
        # At host:port only a coordinator listens. An http:// address may be that of a proxy.
        is_direct = self.settings.endpoint.kind is EndpointKind.HOST
        patience = Patience.NONE if is_direct else Patience.PROXY
        while True:
            limit_s = max(ends_s - _now_s(), DIAL_MIN_S)
            target = self._own.target
            connection = await self._credentials.dial(target, attempts, limit_s, patience)
            if connection is not None:
                return connection
            if attempts.stranger is not None and not pauses.is_used:
                _log.warning("%s: waiting for a coordinator", attempts.stranger.message)
            is_host = await is_free(attempts, self.settings) and await self._may_host()
            if is_host and await self._own.serve_endpoint(self._credentials, attempts, target):
                continue
            is_too_long = _now_s() - began_s >= PROXY_READY_S
            left_s = ends_s - _now_s()
            if left_s <= 0 or (attempts.stranger is not None and is_too_long):
                raise self._credentials.unreachable(attempts, _now_s() - began_s)
            await asyncio.sleep(min(pauses.next_s(), left_s))

    async def _may_host(self) -> bool:
        # Asked again each time: a machine may be able to resolve its own name only after a while.
        if self._own.hosted is None and not self._is_host:
            self._is_host = await may_host(self.settings)
        return self._own.hosted is None and self._is_host

    def turned_away(self, place: Address, refusal: Refusal) -> bool:
        """The coordinator there has another run. Returns whether there are other addresses."""
        if self._walk is None:
            return False
        asked = self.settings.run_id
        what = f"it runs {refusal.run_id!r}; this node asked for {asked!r}"
        self._note_taken(self._walk, place, what if refusal.run_id else refusal.message)
        return True

    # -- several addresses -------------------------------------------------------------------------

    async def _find_in_turn(self, walk: Walk, attempts: Attempts, ends_s: float) -> Connection:
        if self._began_s is None:  # it comes here again after each coordinator of another run
            self._began_s = _now_s()
        dials = _Dials()
        try:
            while True:
                if await self._may_host():
                    connection = await self._at_own_ports(walk, attempts, ends_s)
                else:
                    connection = await self._one_round(walk, attempts, ends_s, dials)
                attempts.answers = self._listed(walk)
                attempts.silent = [each for some in self._silent.values() for each in some]
                left_s = ends_s - _now_s()
                if connection is None and left_s > 0:
                    connection = await dials.first(min(self._pauses.next_s(), left_s))
                if connection is not None:
                    self._found = connection.target
                    return connection
                if left_s <= 0:
                    raise self._unreachable(attempts, _now_s() - self._began_s)
        finally:
            await dials.give_up()

    async def _one_round(
        self, walk: Walk, attempts: Attempts, ends_s: float, dials: _Dials
    ) -> Connection | None:
        """Begin the dials of one round. That of a machine that does not answer goes on after it."""
        for place in (*walk.round(), *self._taken_to_ask(walk)):
            if place in dials.under_way.values():
                continue
            limit_s = max(ends_s - _now_s(), DIAL_MIN_S)
            dials.begin(place, self._dial(walk, place, place, attempts, limit_s))
            connection = await dials.first(STAGGER_S, is_enough=True)
            if connection is not None:
                return connection
        return None

    def _taken_to_ask(self, walk: Walk) -> list[Address]:
        """The address of another run to ask again now, if any."""
        taken = walk.taken_longest()
        if taken is None or _now_s() - self._asked_taken_s < TAKEN_AGAIN_S:
            return []
        self._asked_taken_s = _now_s()
        return [taken]

    async def _at_own_ports(
        self, walk: Walk, attempts: Attempts, ends_s: float
    ) -> Connection | None:
        """Host the coordinator at the first port that nothing else has, or use the one there."""
        if not self._own_places:
            self._own_places = await self._find_own_places(walk)
        free = [each for each in self._own_places if each not in walk.taken]
        again = [each for each in self._taken_to_ask(walk) if each in self._own_places]
        for place in (*free, *again):
            limit_s = max(ends_s - _now_s(), DIAL_MIN_S)
            here = _on_this_machine(place)
            connection = await self._dial(walk, place, here, attempts, limit_s)
            if connection is not None:
                return connection
            if place in walk.taken:
                continue
            claim = network.here().claim(self.settings.run_id)
            if claim is None:
                connection = await self._at_later_port(walk, place, attempts, ends_s)
                if connection is not None:
                    return connection
            if await self._own.serve_endpoint(self._credentials, attempts, place, claim):
                attempts.not_hosting = ""
                return await self._dial(walk, place, self._own.target, attempts, limit_s)
            connection = await self._bound_meanwhile(walk, place, here, attempts, ends_s)
            if connection is not None:
                attempts.not_hosting = ""
                return connection
        attempts.not_hosting = _taken(self._own_places)
        return None

    async def _at_later_port(
        self, walk: Walk, place: Address, attempts: Attempts, ends_s: float
    ) -> Connection | None:
        """Look for the run behind a free own port: another node of this machine says it hosts it.

        That node has passed this port if another run had it then. Its coordinator answers after a
        moment. Without its word nobody dials there: other programs may listen, such as workers.
        """
        later = self._own_places[self._own_places.index(place) :][:LATER_PORTS]
        until_s = min(_now_s() + IN_USE_S, ends_s)
        dials, pauses = _Dials(), Pauses()
        try:
            while (left_s := until_s - _now_s()) > 0:
                for each in later:
                    if each not in dials.under_way.values():
                        here = _on_this_machine(each)
                        dials.begin(each, self._dial(walk, each, here, attempts, left_s))
                connection = await dials.first(min(pauses.next_s(), left_s))
                if connection is not None:
                    return connection
        finally:
            await dials.give_up()
        return None

    async def _bound_meanwhile(
        self, walk: Walk, place: Address, here: Address, attempts: Attempts, ends_s: float
    ) -> Connection | None:
        """Dial an own port that refused, and that could not be bound just after.

        Nodes that start together on one machine all dial it first, and one of them binds it. The
        others must not host the run at the next port. None: `place` is taken.
        """
        until_s = min(_now_s() + IN_USE_S, ends_s)
        pauses = Pauses()
        while attempts.is_port_in_use:
            limit_s = max(ends_s - _now_s(), DIAL_MIN_S)
            connection = await self._dial(walk, place, here, attempts, limit_s)
            if connection is not None:
                return connection
            if place in walk.taken:
                return None
            left_s = until_s - _now_s()
            if left_s <= 0:
                break
            await asyncio.sleep(min(pauses.next_s(), left_s))
        held = await runtime.in_thread(functools.partial(holder, place.port))
        self._note_taken(walk, place, f"{attempts.not_hosting} ({held})")
        return None

    async def _find_own_places(self, walk: Walk) -> list[Address]:
        """The addresses of this machine in the endpoint, in the order in which it takes them."""
        hosts = self.settings.endpoint.hosts
        own = [hosts[0]]
        if len({each.port for each in hosts}) > 1:
            are_own = await asyncio.gather(*(is_known_as_own(each.host) for each in hosts))
            own = list(compress(hosts, are_own)) or own
        return [place for host in own for place in walk.ports_of(host)]

    async def _dial(
        self, walk: Walk, place: Address, target: Address, attempts: Attempts, limit_s: float
    ) -> Connection | None:
        """Dial one address of the endpoint, as `target`, and note its answer."""
        tried = Attempts(target)
        connection = await self._credentials.dial_one_of_several(target, tried, limit_s)
        if connection is not None and (what := self._why_not_ours(connection, place)):
            connection.abort(what)
            self._note_taken(walk, place, what)
            return None
        if connection is not None:
            connection.target = place
            return connection
        answer = "; ".join(tried.answers.values())
        attempts.refused = tried.refused or attempts.refused
        self._silent[place] = tried.silent
        if tried.is_other:
            self._note_taken(walk, place, answer)
        else:
            walk.note_free(place)
            self._note(place, answer)
        return None

    def _why_not_ours(self, connection: Connection, place: Address) -> str:
        """Why this cannot be the coordinator of this node's run; "" if it can.

        The nodes of a run look at several addresses at different times. If some stayed at a
        coordinator that admits any run, the others would meet at a listed host without them.
        """
        if not connection.has_one_run:
            return (
                "it is a `rallypoint serve`, which admits any run: "
                f"--endpoint http://{place} would use it"
            )
        if self._credentials.is_open(connection):
            return "it asks for no token, and this node has one"
        return ""

    def _note_taken(self, walk: Walk, place: Address, what: str) -> None:
        if not walk.taken:
            self._asked_taken_s = _now_s()
        walk.note_taken(place, what)
        self._note(place, what)

    def _note(self, place: Address, answer: str) -> None:
        self._answers[place] = answer

    def _listed(self, walk: Walk) -> dict[str, str]:
        """The answers, first those that explain most."""
        order = dict.fromkeys((*walk.taken, *self.settings.endpoint.hosts, *self._answers))
        return {str(each): self._answers[each] for each in order if each in self._answers}

    def _unreachable(self, attempts: Attempts, tried_s: float) -> CoordinatorError:
        if not attempts.not_hosting:
            return self._credentials.unreachable(attempts, tried_s)
        listed = attempts.listed()
        return UnreachableError(
            f"this node cannot host the coordinator of run {self.settings.run_id!r}: "
            f"{attempts.not_hosting} ({listed})",
            hint=f"{HINT}, the same on all nodes",
            attempts=tuple(attempts.answers.items()),
        )


class _Dials:
    """Dials under way, each with the address that it is for."""

    def __init__(self) -> None:
        self.under_way: dict[asyncio.Task[Connection | None], Address] = {}

    def begin(self, place: Address, work: Coroutine[Any, Any, Connection | None]) -> None:
        """Begin a dial."""
        self.under_way[asyncio.get_running_loop().create_task(work)] = place

    async def first(self, limit_s: float, *, is_enough: bool = False) -> Connection | None:
        """The first connection within `limit_s`, or None after that time.

        `is_enough`: return as soon as one dial has ended, whatever its result.
        """
        ends_s = _now_s() + limit_s
        while True:
            left_s = max(ends_s - _now_s(), 0.0)
            if not self.under_way:
                await asyncio.sleep(left_s)
                return None
            done, _ = await asyncio.wait(
                self.under_way, timeout=left_s, return_when=asyncio.FIRST_COMPLETED
            )
            for task in done:
                connection = task.result()
                del self.under_way[task]
                if connection is not None:
                    return connection
            if not done or is_enough:
                return None

    async def give_up(self) -> None:
        """See dialing.give_up."""
        await give_up(self.under_way)
        self.under_way.clear()


def _on_this_machine(place: Address) -> Address:
    """An own address as this machine reaches it: it may be unable to resolve its own name."""
    return Address(place.host if is_loopback(place.host) else "127.0.0.1", place.port)


def _taken(places: Sequence[Address]) -> str:
    first, last = places[0].port, places[-1].port
    if first == last:
        return f"port {first} of this machine is taken"
    return f"ports {first} to {last} of this machine are all taken"


def _now_s() -> float:
    return asyncio.get_running_loop().time()
