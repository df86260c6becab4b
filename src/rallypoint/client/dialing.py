"""Finding a coordinator: which addresses to try, for how long, and when to be it oneself.

An endpoint names a coordinator; this file turns it into an open connection, or into an error that
lists every address that was tried with the system's answer. `host:port` without anybody listening
there is taken by a node on that host, which then carries the coordinator (an embedded one).
"""

from __future__ import annotations

import asyncio
import enum
import errno
import logging
import math
import random
from collections import deque
from collections.abc import Sequence
from typing import Final

from rallypoint.client.transport import Connection, connect
from rallypoint.core.values import Address
from rallypoint.errors import (
    CoordinatorError,
    EndpointError,
    NotACoordinatorError,
    TokenError,
    UnreachableError,
)
from rallypoint.net import SocketAddress, describe_os_error, is_this_host, look_up
from rallypoint.settings import Endpoint, EndpointKind, NodeSettings

_log = logging.getLogger("rallypoint.client")

ADDRESS_TIMEOUT_S: Final = 5.0
"""How long one address may take to connect and answer the handshake, the first time."""
ADDRESS_TIMEOUT_MAX_S: Final = 20.0
"""Each time that an address takes longer than it may, it may take twice as long the next time.

A coordinator that thousands of nodes dial at once needs some seconds for all handshakes. If every
node gave up after the same 5 s, it would work for connections that are gone, again and again.
"""
PASSING_STATUSES: Final = (404, 429)
"""What a proxy answers while it has no coordinator behind it, or too much to do. 5xx, too."""
STAGGER_S: Final = 0.03
"""How long after one of several coordinators the next is dialled, while none has answered."""
FIRST_PAUSE_S: Final = 0.01
"""Nodes often start together: about what the host takes from its bind to its first answer."""
LONGEST_PAUSE_S: Final = 1.0


class Attempts:
    """What was tried: the last answer of each address. For the error, should nothing come of it."""

    def __init__(self, target: Address | Endpoint) -> None:
        self.target = target
        self.answers: dict[str, str] = {}
        self.doing = ""
        """What is tried now, as long as nothing has been answered."""
        self.stranger: NotACoordinatorError | None = None
        """What answers there instead of a coordinator, and may be a proxy that has none yet."""
        self.refused: TokenError | None = None
        """A coordinator that asks for another token."""
        self.address_limit_s = ADDRESS_TIMEOUT_S
        """How long an address may take, the next time that one is dialled."""
        self.only_refused = False
        self.unresolved = False
        self.not_hosting = ""
        self.problem = ""
        """What keeps the ledger from telling where the coordinator is."""

    def error(self, tried_s: float) -> UnreachableError | NotACoordinatorError:
        """Nobody answered: what was tried, for how long, and the system's errors."""
        if self.stranger is not None:
            return self.stranger
        answers = dict(self.answers)
        if self.problem:
            answers[str(self.target)] = self.problem
        if self.not_hosting:
            answers["being the coordinator here"] = self.not_hosting
        listed = _listed(answers)
        where = "at" if isinstance(self.target, Address) else "through"
        return UnreachableError(
            f"no coordinator answered {where} {self.target} for {tried_s:.1f} s"
            + (f" ({listed})" if listed else ""),
            hint=self._hint(),
            attempts=tuple(answers.items()),
        )

    def note(self, tried: Attempts) -> None:
        """What a try at each address has brought."""
        self.answers, self.stranger = tried.answers, tried.stranger
        self.refused = tried.refused
        self.only_refused, self.unresolved = tried.only_refused, tried.unresolved

    def listed(self) -> str:
        """Each address and what it answered."""
        return _listed(self.answers)

    def _hint(self) -> str:
        if self.problem:
            return "does the ledger run, and does it let this node in?"
        if self.unresolved and isinstance(self.target, Address):
            return f"check the spelling of {self.target.host!r}, or use an address"
        if isinstance(self.target, Address):
            return "is the coordinator running there, and does a firewall let this node through?"
        return (
            "is a node or a `rallypoint serve` elected, and can this node reach its address? "
            "--local-addr there (serve: --advertise) gives another"
        )


def _listed(answers: dict[str, str]) -> str:
    return "; ".join(f"{where}: {answer}" for where, answer in answers.items())


class Patience(enum.Enum):
    """What a node takes for final of what a coordinator's address answers, other than silence."""

    NONE = enum.auto()
    """Nothing but a coordinator can be meant to listen there."""
    PROXY = enum.auto()
    """A proxy may: it answers 404, 429 or 5xx until it knows of the coordinator behind it."""
    ANY = enum.auto()
    """There was a coordinator: only one that speaks the protocol ends the search for it."""

    def bears(self, error: NotACoordinatorError) -> bool:
        """Whether the answer may be another one soon."""
        if self is Patience.PROXY:
            return error.status in PASSING_STATUSES or error.status >= 500
        return self is Patience.ANY


async def dial(
    target: Address,
    token: str,
    attempts: Attempts,
    limit_s: float = math.inf,
    patience: Patience = Patience.NONE,
) -> Connection | None:
    """Try every address of the host once. None if none answered; `attempts` then says why.

    No address is given more than `limit_s`, in seconds. Raises TokenError at once, and
    NotACoordinatorError if that is what some address has and none has a coordinator, unless
    `patience` says that waiting may mend it.
    """
    tried = Attempts(target)
    try:
        connection = await _dial(target, token, tried, limit_s, patience, attempts)
    except CoordinatorError:
        attempts.note(tried)
        raise
    # All at once: who is cancelled in the middle of a try has the answers of the one before.
    attempts.note(tried)
    return connection


async def _dial(
    target: Address,
    token: str,
    attempts: Attempts,
    limit_s: float,
    patience: Patience,
    shown: Attempts,
) -> Connection | None:
    attempts.only_refused = True
    shown.doing = f"{target.host}: the name is being looked up"
    limit_s = min(limit_s, shown.address_limit_s)
    not_ours: NotACoordinatorError | None = None
    for address in await _resolve(target, attempts, limit_s):
        where = Address(address.host, target.port)
        shown.doing = f"{where}: no answer yet"
        try:
            async with asyncio.timeout(limit_s):
                return await connect(where, address.sockaddr, address.family, token)
        except TimeoutError:
            attempts.answers[str(where)] = f"no answer within {limit_s:.3g} s"
            attempts.only_refused = False
            # Chance, so that many nodes do not give up at the same time.
            longer_s = shown.address_limit_s * random.uniform(1.6, 2.0)
            shown.address_limit_s = min(longer_s, ADDRESS_TIMEOUT_MAX_S)
        except OSError as error:
            attempts.answers[str(where)] = describe_os_error(error)
            attempts.only_refused &= error.errno == errno.ECONNREFUSED
        except TokenError as error:
            attempts.refused = error
            if patience is not Patience.ANY:
                raise
            attempts.answers[str(where)] = error.message
            attempts.only_refused = False
        except NotACoordinatorError as error:
            attempts.answers[str(where)] = error.message
            attempts.only_refused = False
            not_ours = error
    if not_ours is not None and not patience.bears(not_ours):
        raise not_ours
    attempts.stranger = not_ours if patience is Patience.PROXY else None
    return None


async def dial_elected(
    addresses: Sequence[Address], token: str, attempts: Attempts, limit_s: float
) -> Connection | None:
    """Try every address of an elected coordinator once; None if none answered as one.

    Whoever listened there may be gone, and a stranger have its port: so nothing is raised, and
    `attempts` says what was answered.
    """
    answers: dict[str, str] = {}
    refused: TokenError | None = None
    for address in addresses:
        each = Attempts(address)
        connection = await dial(address, token, each, limit_s, Patience.ANY)
        if connection is not None:
            connection.target = address
            return connection
        answers |= each.answers
        refused = refused or each.refused
    attempts.answers, attempts.refused = answers, refused
    return None


async def dial_first(
    places: Sequence[tuple[Sequence[Address], str]], attempts: Attempts, limit_s: float
) -> Connection | None:
    """Whichever of several coordinators answers first; None if none does within `limit_s` each.

    `places`: addresses and token of each, the likeliest first. The next is tried beside those that
    have not answered yet, STAGGER_S later, as of RFC 8305: an address whose machine is gone answers
    nothing, and a connection to it takes seconds to fail.
    """
    each = [Attempts(attempts.target) for _ in places]
    left = deque(zip(places, each, strict=True))
    dialling: set[asyncio.Task[Connection | None]] = set()
    try:
        while left or dialling:
            if left:
                (addresses, token), own = left.popleft()
                work = dial_elected(addresses, token, own, limit_s)
                dialling.add(asyncio.get_running_loop().create_task(work))
            done, _ = await asyncio.wait(
                dialling,
                timeout=STAGGER_S if left else None,
                return_when=asyncio.FIRST_COMPLETED,
            )
            for task in done:
                connection = task.result()
                dialling.discard(task)
                if connection is not None:
                    return connection
    finally:
        await _give_up(dialling)
    attempts.answers |= {where: said for own in each for where, said in own.answers.items()}
    return None


async def _give_up(dialling: set[asyncio.Task[Connection | None]]) -> None:
    for task in dialling:
        task.cancel()
    for made in await asyncio.gather(*dialling, return_exceptions=True):
        if isinstance(made, Connection):
            made.abort("another coordinator was faster")


async def _resolve(target: Address, attempts: Attempts, limit_s: float) -> list[SocketAddress]:
    try:
        found = await look_up(target.host, target.port, limit_s)
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
    """Growing pauses with jitter, so that many nodes do not try again in step."""

    def __init__(self) -> None:
        self._pause_s = FIRST_PAUSE_S
        self.is_used = False

    def next_s(self) -> float:
        """The next pause, in seconds."""
        pause_s, self.is_used = self._pause_s, True
        self._pause_s = min(LONGEST_PAUSE_S, pause_s * 2)
        return pause_s * random.uniform(0.5, 1.0)


def target_of(settings: NodeSettings) -> Address:
    """Where the endpoint's coordinator is."""
    if not settings.endpoint.host:
        raise EndpointError(f"endpoint {settings.endpoint} has no address of its own to dial")
    return Address(settings.endpoint.host, settings.endpoint.port)


async def may_host(settings: NodeSettings) -> bool:
    """Whether this node may carry the coordinator of its `host:port` endpoint."""
    if settings.endpoint.kind is not EndpointKind.HOST or settings.host_coordinator == "no":
        return False
    if settings.host_coordinator == "yes":
        return True
    try:
        async with asyncio.timeout(ADDRESS_TIMEOUT_S):
            return await asyncio.to_thread(is_this_host, settings.endpoint.host)
    except TimeoutError:
        return False
