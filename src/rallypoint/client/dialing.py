"""Dials the addresses of a coordinator: all addresses of a host, each with a time limit.

The result is an open connection, or an error that lists each address with the system's answer. This
file also decides whether this machine may host the coordinator of a `host:port` endpoint. The
connector decides when to dial, and whether to host.
"""

from __future__ import annotations

import asyncio
import enum
import errno
import logging
import math
from collections import deque
from collections.abc import Callable, Collection, Coroutine, Sequence
from functools import partial
from itertools import islice
from typing import Any, Final, TypeAlias

from rallypoint import runtime
from rallypoint.client import network
from rallypoint.client.network import Connection
from rallypoint.client.port_range import HINT as PORTS_HINT
from rallypoint.core.addresses import is_loopback, telling
from rallypoint.core.values import Address
from rallypoint.errors import (
    CoordinatorError,
    EndpointError,
    NotACoordinatorError,
    TokenError,
    UnreachableError,
    UntrustedCoordinatorError,
)
from rallypoint.net import SocketAddress, describe_os_error
from rallypoint.security.access import Access
from rallypoint.settings import Endpoint, EndpointKind, NodeSettings

_Dial: TypeAlias = Callable[[], Coroutine[Any, Any, Connection | None]]
_log = logging.getLogger("rallypoint.client")

ADDRESS_TIMEOUT_S: Final = 5.0
"""How long one address may take to connect and answer the handshake the first time, in seconds."""
ADDRESS_TIMEOUT_MAX_S: Final = 20.0
"""After a timeout the next dial has about twice the time, up to this many seconds.

A coordinator that thousands of nodes dial at once needs some seconds for all handshakes. If every
node gave up after the same 5 s, the coordinator would spend them on connections that are closed by
then.
"""
STALE_S: Final = 1.0
"""How long, in seconds, an address of the host's name that was silent may take to accept."""
PASSING_STATUSES: Final = (404, 429)
"""Besides 5xx, the answers of a proxy that has no coordinator behind it or is overloaded."""
ADDRESS_STAGGER_S: Final = 0.25
"""The pause between the dials of several addresses of one coordinator, in seconds, as RFC 8305
recommends it: most coordinators answer within it, so that few have to end a second connection.
"""
STAGGER_S: Final = 0.03
"""The pause between the dials of several coordinators while none has answered, in seconds."""
FIRST_PAUSE_S: Final = 0.01
"""About the time from a host's bind to its first answer, in seconds, as nodes often start together.
"""
LONGEST_PAUSE_S: Final = 1.0
CUT_OFF_HINT: Final = (
    "a machine that does not answer may be behind a firewall or in another network: use ports that "
    "the firewall lets through (--port-range, or that of --endpoint), and a network that all nodes "
    "have (--interface)"
)
ANSWERS_SHOWN: Final = 8
"""How many addresses an error lists with their answers."""


class Attempts:
    """The last answer of each address, for the error if no dial succeeds."""

    def __init__(self, target: Address | Endpoint) -> None:
        self.target = target
        self.answers: dict[str, str] = {}
        self.doing = ""
        """What is being tried now, until there is an answer."""
        self.stranger: NotACoordinatorError | None = None
        """An answer that is not a coordinator's, perhaps of a proxy that has none behind it yet.
        """
        self.refused: TokenError | None = None
        """The refusal of a coordinator that needs another token."""
        self.untrusted: UntrustedCoordinatorError | None = None
        """What a server could not prove, or that it uses TLS and this node has no token for it."""
        self.address_limit_s = ADDRESS_TIMEOUT_S
        """How long an address may take at the next dial, in seconds."""
        self.only_refused = False
        self.refusals: list[Address] = []
        """The addresses that have refused a connection."""
        self.silent: list[Address] = []
        """The addresses that have not answered, or to which no route leads."""
        self.unresolved = False
        self.is_other = False
        """Whether something else listens there than a coordinator that accepts this node's token.
        """
        self.not_hosting = ""
        self.is_port_in_use = False
        """Whether this node cannot host because something on this machine has bound the port."""
        self.problem = ""
        """Why the ledger cannot be read, so that the coordinator's address is unknown."""

    def error(self, tried_s: float) -> UnreachableError | NotACoordinatorError:
        """The error if no dial succeeded: what was tried, for how long, and the system's errors."""
        if self.stranger is not None:
            return self.stranger
        answers = dict(self.answers)
        if self.problem:
            answers[str(self.target)] = self.problem
        if self.not_hosting:
            here = {"hosting a coordinator here": self.not_hosting}
            answers = here | answers if self.is_port_in_use else answers | here
        listed = _listed(answers)
        where = "through" if self._is_elected else "at"
        text = f"no coordinator answered {where} {self.target} for {tried_s:.1f} s"
        return UnreachableError(
            f"{text} ({listed})" if listed else text,
            hint=f"{self._cause_hint()}{self._hint()}",
            attempts=tuple(answers.items()),
        )

    def record(self, tried: Attempts) -> None:
        """Record the results of one try at each address."""
        self.answers, self.stranger = tried.answers, tried.stranger
        self.refused, self.refusals, self.silent = tried.refused, tried.refusals, tried.silent
        self.only_refused, self.unresolved = tried.only_refused, tried.unresolved
        self.is_other, self.untrusted = tried.is_other, tried.untrusted

    @property
    def is_cut_off(self) -> bool:
        """Whether an address of another machine has not answered, perhaps behind a firewall."""
        return any(not is_loopback(each.host) for each in self.silent)

    @property
    def _is_elected(self) -> bool:
        return isinstance(self.target, Endpoint) and self.target.kind is EndpointKind.LEDGER

    def listed(self) -> str:
        """Each address with its answer."""
        return _listed(self.answers)

    def _cause_hint(self) -> str:
        """What to do about a cause that is known."""
        if self.problem:
            return ""
        if self.is_port_in_use and self._is_elected:
            return f"{PORTS_HINT}; else "
        return f"{CUT_OFF_HINT}; else " if self.is_cut_off else ""

    def _hint(self) -> str:
        if self.problem:
            return "check that the ledger runs, and that this node may use it"
        if self.unresolved and isinstance(self.target, Address):
            return f"check the spelling of {self.target.host!r}, or use an address"
        if isinstance(self.target, Address):
            wall = ", and that no firewall is in between (--port-range limits the ports)"
            return (
                f"check that the coordinator runs there{'' if self.is_cut_off else wall}; if that "
                "machine has several networks, give the address of another one as --endpoint"
            )
        if not self._is_elected:
            return (
                "check that the node that hosts the coordinator has started (--host-coordinator), "
                "that this node reaches it at one of these addresses, and that all nodes have the "
                "same --run-id, --port-range and --endpoint"
            )
        return (
            "check that a node or a `rallypoint serve` is elected, and that this node reaches its "
            "address; --interface or --local-addr there (serve: --advertise) gives another address "
            "and --port-range other ports"
        )


def _listed(answers: dict[str, str]) -> str:
    shown = [f"{where}: {answer}" for where, answer in islice(answers.items(), ANSWERS_SHOWN)]
    if len(answers) > len(shown):
        shown.append(f"and {len(answers) - len(shown)} more addresses")
    return "; ".join(shown)


class Patience(enum.Enum):
    """Which wrong answers of an address may be temporary, so that the node dials again."""

    NONE = enum.auto()
    """None of them: only the coordinator itself listens there."""
    PROXY = enum.auto()
    """404, 429 and 5xx, as a proxy answers until it has the coordinator behind it."""
    ANY = enum.auto()
    """All of them: there was a coordinator before, so only another one ends the search."""

    def allows(self, error: NotACoordinatorError) -> bool:
        """Whether this answer may be temporary."""
        if self is Patience.PROXY:
            return error.status in PASSING_STATUSES or error.status >= 500
        return self is Patience.ANY


async def dial(
    target: Address,
    access: Access,
    attempts: Attempts,
    limit_s: float = math.inf,
    patience: Patience = Patience.NONE,
) -> Connection | None:
    """Try each address of the host once. None if none answered; `attempts` has the reasons.

    Each address has at most `limit_s` seconds. Raises TokenError at once. Raises
    NotACoordinatorError if no address has a coordinator and one has something else, unless
    `patience` allows that.
    """
    tried = Attempts(target)
    try:
        connection = await _dial(target, access, tried, limit_s, patience, attempts)
    except CoordinatorError:
        attempts.record(tried)
        raise
    # Record all results at once, so that after a cancellation `attempts` has those of the last
    # whole try.
    attempts.record(tried)
    return connection


async def _dial(
    target: Address,
    access: Access,
    attempts: Attempts,
    limit_s: float,
    patience: Patience,
    shown: Attempts,
) -> Connection | None:
    attempts.only_refused = True
    shown.doing = f"{target.host}: the name is being looked up"
    limit_s = min(limit_s, shown.address_limit_s)
    found = await _resolve(target, attempts, limit_s)
    access = access.to(target.host)
    dials = [
        partial(_dial_one, target.port, each, access, attempts, limit_s, patience, shown)
        for each in found
    ]
    connection = await _answer_of(dials)
    not_ours, attempts.stranger = attempts.stranger, None
    if connection is None and not_ours is not None:
        if not patience.allows(not_ours):
            raise not_ours
        attempts.stranger = not_ours if patience is Patience.PROXY else None
    return connection


async def _dial_one(
    port: int,
    address: SocketAddress,
    access: Access,
    attempts: Attempts,
    limit_s: float,
    patience: Patience,
    shown: Attempts,
) -> Connection | None:
    """Dial one address of a name, and record its answer."""
    where = Address(address.host, port)
    shown.doing = f"{where}: no answer yet"
    try:
        async with asyncio.timeout(limit_s):
            return await network.here().connect(where, address, access)
    except TimeoutError:
        attempts.answers[str(where)] = f"no answer within {limit_s:.3g} s{_from_here(where)}"
        attempts.only_refused = False
        attempts.silent.append(where)
        # Random, so that many nodes do not give up at the same time.
        longer_s = shown.address_limit_s * runtime.here().chance.uniform(1.6, 2.0)
        shown.address_limit_s = min(longer_s, ADDRESS_TIMEOUT_MAX_S)
    except OSError as error:
        attempts.answers[str(where)] = describe_os_error(error)
        if error.errno == errno.ECONNREFUSED:
            attempts.refusals.append(where)
        else:
            attempts.answers[str(where)] += _from_here(where)
            attempts.only_refused = False
            attempts.silent.append(where)
    except TokenError as error:
        attempts.refused, attempts.is_other = error, True
        if patience is not Patience.ANY:
            raise
        attempts.answers[str(where)] = error.message
        attempts.only_refused = False
    except NotACoordinatorError as error:
        attempts.answers[str(where)] = error.message
        attempts.only_refused, attempts.is_other = False, True
        attempts.stranger = error
        if isinstance(error, UntrustedCoordinatorError):
            attempts.untrusted = error
    return None


def _from_here(where: Address) -> str:
    """From which address and interface of this machine it was dialled, in words."""
    own = network.here().own_address_towards(where.host)
    if own is None:
        return ", because no route leads there"
    return "" if is_loopback(own.host) else f" from {own}"


async def dial_elected(
    addresses: Sequence[Address], access: Access, attempts: Attempts, limit_s: float
) -> Connection | None:
    """Dial an elected coordinator at its addresses. None if no coordinator answered.

    They are tried as by `first_answer`, the best first. Raises nothing, because the coordinator may
    have ended and another program may have its port. `attempts` has the answers.
    """
    places = await _own_last(addresses)
    each = [Attempts(address) for address in places]

    async def dial_one(own: Attempts, address: Address) -> Connection | None:
        connection = await dial(address, access, own, limit_s, Patience.ANY)
        if connection is not None:
            connection.target = address
        return connection

    works = [partial(dial_one, own, address) for own, address in zip(each, places, strict=True)]
    connection = await _answer_of(works)
    if connection is not None:
        return connection
    attempts.answers = {where: said for own in each for where, said in own.answers.items()}
    attempts.refused = next((own.refused for own in each if own.refused is not None), None)
    attempts.refusals = [where for own in each for where in own.refusals]
    attempts.silent = [where for own in each for where in own.silent]
    attempts.only_refused = bool(each) and all(own.only_refused for own in each)
    return None


async def _own_last(addresses: Sequence[Address]) -> Sequence[Address]:
    """Those of this machine last, such as that of a bridge of guests, which each machine has.

    They are dialled, too: the coordinator may be on this machine, and one of the others may have
    left its interface since.
    """
    if len(addresses) < 2:
        return addresses
    own = [each for each in addresses if await network.here().is_this_host(each.host)]
    return tuple(dict.fromkeys((*telling(addresses, own), *own)))


async def dial_first(
    places: Sequence[tuple[Sequence[Address], Access]], attempts: Attempts, limit_s: float
) -> Connection | None:
    """Dial several coordinators, and return the first that answers within `limit_s`, or None.

    `places`: the addresses of each and how to dial them, the likeliest first.
    """
    each = [Attempts(attempts.target) for _ in places]
    works = [
        partial(dial_elected, addresses, access, own, limit_s)
        for (addresses, access), own in zip(places, each, strict=True)
    ]
    connection = await first_answer(works, STAGGER_S)
    if connection is None:
        attempts.answers |= {where: said for own in each for where, said in own.answers.items()}
    return connection


async def _answer_of(dials: Sequence[_Dial]) -> Connection | None:
    """As `first_answer`, for the addresses of one coordinator: one of them needs no task."""
    if len(dials) == 1:
        return await dials[0]()
    return await first_answer(dials, ADDRESS_STAGGER_S)


async def first_answer(dials: Sequence[_Dial], stagger_s: float) -> Connection | None:
    """The connection of the first dial that succeeds, or None. Raises the first error of a dial.

    As in RFC 8305, each dial begins `stagger_s` after the one before, which goes on, because a
    connection to a machine that is down takes seconds to fail.
    """
    left = deque(dials)
    dialling: set[asyncio.Task[Connection | None]] = set()
    try:
        while left or dialling:
            if left:
                dialling.add(asyncio.get_running_loop().create_task(left.popleft()()))
            done, _ = await asyncio.wait(
                dialling,
                timeout=stagger_s if left else None,
                return_when=asyncio.FIRST_COMPLETED,
            )
            for task in done:
                connection = task.result()
                dialling.discard(task)
                if connection is not None:
                    return connection
    finally:
        await give_up(dialling)
    return None


async def give_up(dialling: Collection[asyncio.Task[Connection | None]]) -> None:
    """Cancel all these dials, and close what they have opened."""
    for task in dialling:
        task.cancel()
    for made in await asyncio.gather(*dialling, return_exceptions=True):
        if made is not None and not isinstance(made, BaseException):
            made.abort("another coordinator answered first")


async def _resolve(target: Address, attempts: Attempts, limit_s: float) -> list[SocketAddress]:
    try:
        found = await network.here().look_up(target.host, target.port, limit_s)
    except (TimeoutError, OSError, UnicodeError, RuntimeError) as error:
        attempts.unresolved = True
        attempts.only_refused = False
        timed_out = isinstance(error, TimeoutError)
        why = f"no answer within {limit_s:.3g} s" if timed_out else describe_os_error(error)
        attempts.answers[target.host] = f"the name could not be resolved: {why}"
        return []
    attempts.unresolved = False
    return found


class Pauses:
    """Growing pauses with jitter, so that many nodes do not try again at the same time."""

    def __init__(self) -> None:
        self._pause_s = FIRST_PAUSE_S
        self.is_used = False

    def next_s(self) -> float:
        """The next pause, in seconds."""
        pause_s, self.is_used = self._pause_s, True
        self._pause_s = min(LONGEST_PAUSE_S, pause_s * 2)
        return pause_s * runtime.here().chance.uniform(0.5, 1.0)


def target_of(settings: NodeSettings) -> Address:
    """The host and port of the endpoint's coordinator."""
    if not settings.endpoint.host:
        raise EndpointError(
            f"endpoint {settings.endpoint} has no address to dial", hint="name a host"
        )
    return Address(settings.endpoint.host, settings.endpoint.port)


async def is_free(attempts: Attempts, settings: NodeSettings) -> bool:
    """Whether no coordinator is at the endpoint, so that this node may host it if it is the host.

    Each of its addresses refuses connections. But a name may still have an address that nothing has
    any more: if one of this machine refuses, others may be silent. With `host_coordinator` yes, all
    of them may be.
    """
    if attempts.only_refused or attempts.unresolved:
        return True
    here = network.here()
    own = [each for each in attempts.refusals if await here.is_this_host(each.host)]
    if attempts.is_other or not (own or settings.host_coordinator == "yes"):
        return False
    answers = [await runtime.here().refuses(each, STALE_S) for each in attempts.silent]
    return False not in answers  # one that accepts connections is alive, but slow


async def may_host(settings: NodeSettings) -> bool:
    """Whether this node may host the coordinator of its `host:port` endpoint."""
    if settings.endpoint.kind is not EndpointKind.HOST or settings.host_coordinator == "no":
        return False
    return settings.host_coordinator == "yes" or await is_known_as_own(settings.endpoint.host)


async def is_known_as_own(host: str) -> bool:
    """Whether this host is this machine, as far as its name is resolved within the limit."""
    try:
        async with asyncio.timeout(ADDRESS_TIMEOUT_S):
            return await network.here().is_this_host(host)
    except TimeoutError:
        return False
