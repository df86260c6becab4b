"""Where the run's coordinator is, as a ledger tells it: a node's search.

`core/election/discovery.py` says when to look, and when it is this node's turn to coordinate; this
file reads the ledger for it. A node looks only while it has no coordinator, or one whose lease is
not renewed: spread by chance, and woken when the run's register changes. Nothing is written here.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections import deque
from collections.abc import Coroutine
from typing import Any, Final, TypeAlias, TypeVar

import msgspec

from rallypoint.core import election as e
from rallypoint.core.reasons import ledger_unreachable
from rallypoint.core.values import Address, CloseRecord, Stamp, repr_without
from rallypoint.errors import (
    LedgerAccessError,
    LedgerCorruptError,
    LedgerError,
    LedgerForeignError,
    LedgerFormatError,
    LedgerReplacedError,
    LedgerUnreachableError,
)
from rallypoint.ledger.contract import Ledger, Versioned
from rallypoint.ledger.keys import COORDINATORS, lease_key, run_key
from rallypoint.settings import NodeSettings

_log = logging.getLogger("rallypoint.client")
_T = TypeVar("_T")

RETRY_S: Final = 0.3
ANSWER_MIN_S: Final = 0.5
"""How long the ledger is given for an answer, however little time is left."""
REPLICAS_READ_MAX: Final = 64
"""More leases than this are not read at once for one run's sake."""
POLLED_NODES_MAX: Final = 64
"""In a larger run, nodes on an engine that cannot watch look only when it is time to look."""
_WILL_NOT_MEND: Final = (
    LedgerAccessError,
    LedgerCorruptError,
    LedgerForeignError,
    LedgerFormatError,
)


class Place(msgspec.Struct, frozen=True):
    """A coordinator process listens here. `token`: what its lease says to use; "" if nothing.

    `ttl_s`: for how long its lease stands without being renewed, in seconds; 0 if that is unknown.
    """

    addresses: tuple[Address, ...]
    process: str
    token: str = ""
    ttl_s: float = 0.0

    def __repr__(self) -> str:
        return repr_without(self, "token")


class Turn(msgspec.Struct, frozen=True):
    """Nobody coordinates the run, and it is this node's turn. `seen`: see `BecomeCandidate`."""

    seen: e.Seen | None = None


class Over(msgspec.Struct, frozen=True):
    """The run is closed."""

    close: CloseRecord


Sight: TypeAlias = Place | Turn | Over


class Search:
    """One node's search. Owned by one event loop; the ledger stays the caller's.

    `nodes`: how many nodes the run is to have, as long as the ledger does not say.
    """

    def __init__(self, settings: NodeSettings, node: str, ledger: Ledger, nodes: int = 1) -> None:
        self.ledger = ledger
        self.error: LedgerError | None = None
        """Why the ledger cannot be used; None while it can."""
        self._away_since_s = 0.0
        self._run_key = run_key(settings.run_id)
        self._where = str(settings.endpoint)
        timing = e.Timing.of(settings.lease_ttl_s)
        self._seeker = e.Discovery(node, timing, settings.candidates, nodes)
        self._version: int | None = None
        self._is_spreading = False
        self._replicas: dict[str, _Lease] = {}

    @property
    def problem(self) -> str:
        """For how long the ledger has not answered, and what it says; "" while it does."""
        if self.error is None:
            return ""
        if isinstance(self.error, LedgerUnreachableError):
            return ledger_unreachable(_now_s() - self._away_since_s, self.error.message)
        return f"the ledger cannot be used: {self.error.message}"

    async def open(self, ends_s: float) -> None:
        """Reach the ledger, which may start later than this node.

        Raises LedgerUnreachableError at `ends_s`, and any other LedgerError at once.
        """
        began_s = _now_s()
        while True:
            try:
                await self._bounded(self.ledger.open(), ends_s)
                self._answers()
                return
            except LedgerUnreachableError as error:
                self._note(error, began_s)
                left_s = ends_s - _now_s()
                if left_s <= 0:
                    raise
            await asyncio.sleep(min(RETRY_S * random.uniform(0.5, 1.5), left_s))

    @property
    def floor(self) -> Stamp:
        """The ledger, and the lowest term that can still be the run's. Empty before the first look.

        Its ledger_id is not that of before if the engine has begun anew.
        """
        return self._seeker.floor

    @property
    def nodes(self) -> int:
        """How many nodes the run has, as far as is known."""
        return self._seeker.nodes

    def begin(self, *, at_once: bool, is_new: bool = False) -> None:
        """There is no coordinator. `at_once`: look now; else spread by chance, in a large run.

        A node that `is_new` watches meanwhile: those who come have not all lost the same
        coordinator at the same time, and there may be one already.
        """
        self._is_spreading = not (at_once or is_new)
        self._seeker.seek(_now_s(), 0.0 if at_once else random.random())

    def again(self) -> bool:
        """Who was found cannot be reached: look again in a while.

        Whether this node is to stand by as a candidate: see `Discovery.stands_by`.
        """
        self._seeker.seek_again(_now_s(), random.random())
        return self._seeker.stands_by(_now_s(), random.random())

    async def next(self, ends_s: float, *, is_new: bool = False) -> Sight | None:
        """What is to be done; None if nothing is by `ends_s`, or in this ledger never again.

        Looks at least once.
        A node that `is_new` to the run has nothing to lose: it is told at once, by a LedgerError,
        what waiting would not mend. One that was in the run looks on, as somebody may mend it.
        """
        while True:
            await self._until_due(ends_s)
            sight = await self._look(ends_s)
            if is_new and isinstance(self.error, _WILL_NOT_MEND):
                raise self.error
            is_lost = isinstance(self.error, LedgerReplacedError)
            if sight is not None or is_lost or _now_s() >= ends_s:
                return sight

    async def replicas(self) -> list[Place]:
        """Coordinators that serve any run, those first whose lease has been seen to move.

        Else in an order of chance. A lease that has stood still for its ttl is left out; one that
        was read only once may be of a process that is dead.
        """
        try:
            keys = list(await self.ledger.keys(COORDINATORS))
            random.shuffle(keys)
            keys.sort(key=self._is_known_dead)
            found = await asyncio.gather(*map(self.ledger.read, keys[:REPLICAS_READ_MAX]))
        except LedgerError as error:
            self._note(error)
            return []
        except NotImplementedError:
            return []  # One register holds all there is: nobody but the nodes can be elected.
        leases = zip(keys, found, strict=False)
        seen = {key: _seen(self._replicas.get(key), each, _now_s()) for key, each in leases}
        listed = set(keys)
        kept = {key: each for key, each in self._replicas.items() if key in listed}
        self._replicas = {**kept, **seen}
        alive = [each for each in seen.values() if each.place and not each.is_dead(_now_s())]
        alive.sort(key=lambda each: not each.has_moved)
        return [each.place for each in alive if each.place is not None]

    def _is_known_dead(self, key: str) -> bool:
        known = self._replicas.get(key)
        return known is not None and (known.place is None or known.is_dead(_now_s()))

    # -- helpers -------------------------------------------------------------------------------

    async def _until_due(self, ends_s: float) -> None:
        """Wait until it is time to look, or the run's register changes."""
        due_s = self._seeker.next_tick_s()
        assert due_s is not None, "begin or again comes before next"
        left_s = min(due_s, ends_s) - _now_s()
        if left_s <= 0:
            return
        if self._is_spreading or self.error is not None:
            # What it was when the last search ended says nothing: a wake-up would be for all.
            self._is_spreading = False
            await asyncio.sleep(left_s)
            return
        if not self.ledger.can_watch and self.nodes > POLLED_NODES_MAX:
            await asyncio.sleep(left_s)
            return
        try:
            if await self.ledger.changed(self._run_key, self._version, left_s) is None:
                return
        except LedgerError as error:
            self._note(error)
            await asyncio.sleep(min(RETRY_S, left_s))
            return
        # All nodes of the run are told at the same moment.
        self._seeker.look_now(_now_s(), random.random())
        due_s = min(self._seeker.next_tick_s() or ends_s, ends_s)
        await asyncio.sleep(max(0.0, due_s - _now_s()))

    async def _look(self, ends_s: float) -> Sight | None:
        try:
            todo = deque(self._seeker.tick(_now_s(), random.random()))
            lease: e.Lease | None = None
            while todo:
                asked = todo.popleft()
                match asked:
                    case e.ReadRun():
                        found = await self._bounded(self._read(self._run_key), ends_s)
                        self._version = found.version if found else None
                        todo += self._seeker.run_read(asked, found, _now_s(), random.random())
                    case e.ReadLease():
                        found = await self._bounded(self._read(lease_key(asked.process)), ends_s)
                        lease = e.decode_lease(found.value) if found else None
                        todo += self._seeker.lease_read(asked, found, _now_s(), random.random())
                    case e.AttachTo():
                        assert lease is not None
                        return Place(asked.addresses, asked.process, lease.token, lease.ttl_s)
                    case e.BecomeCandidate():
                        return Turn(asked.seen)
                    case e.RunOver():
                        return Over(asked.close)
        except LedgerError as error:
            self._note(error)
        except e.OtherFormatError as error:
            problem = f"the register of the run cannot be read: {error}"
            self._note(LedgerFormatError(problem, hint=error.hint))
        except e.UnreadableError as error:
            self._note(
                LedgerCorruptError(
                    f"the register of the run cannot be read: {error}",
                    hint="another release or program may have written it; nothing has been changed",
                )
            )
        return None

    async def _bounded(self, work: Coroutine[Any, Any, _T], ends_s: float) -> _T:
        """The ledger's answer, if it comes by `ends_s`; it is given some time in any case.

        A ledger bounds each of its calls, by a time that may be more than there is left here.
        """
        began_s = _now_s()
        try:
            async with asyncio.timeout_at(max(ends_s, began_s + ANSWER_MIN_S)):
                return await work
        except TimeoutError as error:
            if isinstance(self.error, LedgerUnreachableError):
                raise self.error from error  # It had longer, and says what it tried.
            raise LedgerUnreachableError(
                f"{self._where} has not answered within {_now_s() - began_s:.1f} s",
                hint="is it running, and within reach? connect_timeout bounds the search",
            ) from error

    async def _read(self, key: str) -> Versioned | None:
        found = await self.ledger.read(key)
        self._answers()
        return found

    def _note(self, error: LedgerError, since_s: float | None = None) -> None:
        is_news, self.error = self.error is None, error
        if is_news:
            self._away_since_s = _now_s() if since_s is None else since_s
            _log.warning("%s", self.problem)

    def _answers(self) -> None:
        if self.error is not None:
            self.error = None
            _log.warning("the ledger answers again")


class _Lease(msgspec.Struct, frozen=True):
    """A lease as it was last read. `place`: where it serves any run; None if it does not."""

    place: Place | None
    version: int
    since_s: float
    ttl_s: float
    has_moved: bool

    def is_dead(self, now_s: float) -> bool:
        """Whether it was seen to stand still for longer than a living process leaves it."""
        return now_s >= self.since_s + self.ttl_s


def _seen(before: _Lease | None, found: Versioned | None, now_s: float) -> _Lease:
    try:
        lease = e.decode_lease(found.value) if found is not None else None
    except e.UnreadableError:
        lease = None
    if found is None or lease is None:
        return _Lease(None, 0, now_s, 0.0, has_moved=False)
    serves = lease.state is e.LeaseState.SERVING and not lease.only_run and lease.addresses
    place = Place(lease.addresses, lease.process, lease.token, lease.ttl_s) if serves else None
    if before is None or before.version == found.version:
        since_s = now_s if before is None else before.since_s
        return _Lease(place, found.version, since_s, lease.ttl_s, has_moved=False)
    return _Lease(place, found.version, now_s, lease.ttl_s, has_moved=True)


def _now_s() -> float:
    return asyncio.get_running_loop().time()
