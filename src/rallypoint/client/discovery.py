"""A node's search for the run's coordinator in a ledger.

`core/election/discovery.py` decides when to look, and when this node becomes a candidate. This file
reads the ledger for it, and must not write. A node looks only while it has no coordinator, or one
that does not renew its lease. The times of looks are random, and a change of the run's register
wakes every waiting node.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Coroutine
from typing import Any, Final, TypeAlias, TypeVar

import msgspec

from rallypoint import runtime
from rallypoint.core import election as e
from rallypoint.core.reasons import ledger_unreachable
from rallypoint.core.values import Address, Stamp
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
"""The least time for the ledger to answer, in seconds, even if less time is left."""
REPLICAS_READ_MAX: Final = 64
"""How many leases one search reads at once at most."""
POLLED_NODES_MAX: Final = 64
"""In a run with more nodes than this, on an engine that cannot watch, a node does not poll the
register but waits for its next look.
"""
_WILL_NOT_MEND: Final = (
    LedgerAccessError,
    LedgerCorruptError,
    LedgerForeignError,
    LedgerFormatError,
)


Finding: TypeAlias = e.AttachTo | e.BecomeCandidate | e.RunOver


class Search:
    """One node's search. It belongs to one event loop. The caller closes the ledger.

    `nodes`: the expected number of nodes, used until it is read from the ledger.
    """

    def __init__(self, settings: NodeSettings, node: str, ledger: Ledger, nodes: int = 1) -> None:
        self.ledger = ledger
        self.error: LedgerError | None = None
        """Why the ledger cannot be used; None while it can."""
        self._failing_since_s = 0.0
        self._run_key = run_key(settings.run_id)
        self._where = str(settings.endpoint)
        timing = e.Timing.of(settings.lease_ttl_s)
        self._discovery = e.Discovery(node, timing, settings.candidates, nodes)
        self._version: int | None = None
        self._is_spreading = False
        self._replicas: dict[str, _SeenLease] = {}

    @property
    def problem(self) -> str:
        """How long the ledger has not answered, with its error; "" while it answers."""
        if self.error is None:
            return ""
        if isinstance(self.error, LedgerUnreachableError):
            return ledger_unreachable(_now_s() - self._failing_since_s, self.error.message)
        return f"the ledger cannot be used: {self.error.message}"

    async def open(self, ends_s: float) -> None:
        """Open the ledger. Tries until `ends_s`, because the ledger may start later than this node.

        Raises LedgerUnreachableError at `ends_s`, and any other LedgerError at once.
        """
        began_s = _now_s()
        while True:
            try:
                await self._bounded(self.ledger.open(), ends_s)
                self._record_answer()
                return
            except LedgerUnreachableError as error:
                self._note(error, began_s)
                left_s = ends_s - _now_s()
                if left_s <= 0:
                    raise
            await asyncio.sleep(min(RETRY_S * runtime.here().chance.uniform(0.5, 1.5), left_s))

    @property
    def floor(self) -> Stamp:
        """The ledger's id, and the lowest term that the run can still have (R5).

        Empty before the first look. Another ledger_id than before means that the ledger was
        replaced.
        """
        return self._discovery.floor

    @property
    def nodes(self) -> int:
        """The number of the run's nodes, as far as this node knows."""
        return self._discovery.nodes

    def begin(self, *, at_once: bool, is_new: bool = False) -> None:
        """Start to look. `at_once`: now. Otherwise at a random time, later in a larger run.

        `is_new`: the node joins for the first time. It watches the register meanwhile.
        """
        # Nodes that lost the same coordinator at the same moment must not all wake at the next
        # change. Nodes that join start at different times, and may find a coordinator right away.
        self._is_spreading = not (at_once or is_new)
        self._discovery.search(_now_s(), 0.0 if at_once else runtime.here().chance.random())

    def again(self) -> bool:
        """The coordinator that was found did not answer: look again later.

        Returns whether this node becomes a candidate meanwhile: see
        `Discovery.is_candidate_beside_owner`.
        """
        self._discovery.search_again(_now_s(), runtime.here().chance.random())
        return self._discovery.is_candidate_beside_owner(_now_s(), runtime.here().chance.random())

    def owner_ended(self, refused: Address) -> bool:
        """The owner that was found last has ended: see `Discovery.owner_ended`."""
        return self._discovery.owner_ended(_now_s(), runtime.here().chance.random(), refused)

    async def next(self, ends_s: float, *, is_new: bool = False) -> Finding | None:
        """The next finding; None if there is none by `ends_s`, or if the ledger was replaced.

        Looks at least once. With `is_new`, raises a LedgerError that is permanent. A node that was
        in the run keeps looking instead, because an operator may repair the ledger.
        """
        while True:
            await self._until_due(ends_s)
            finding = await self._look(ends_s)
            if is_new and isinstance(self.error, _WILL_NOT_MEND):
                raise self.error
            is_lost = isinstance(self.error, LedgerReplacedError)
            if finding is not None or is_lost or _now_s() >= ends_s:
                return finding

    async def replicas(self) -> list[e.Lease]:
        """Leases of the `rallypoint serve` processes on this ledger, in random order.

        Leases that this node has seen renewed are first. Expired ones are left out. A lease that
        was read only once may belong to a process that has ended.
        """
        try:
            keys = list(await self.ledger.keys(COORDINATORS))
            runtime.here().chance.shuffle(keys)
            keys.sort(key=self._is_known_dead)
            found = await asyncio.gather(*map(self.ledger.read, keys[:REPLICAS_READ_MAX]))
        except LedgerError as error:
            self._note(error)
            return []
        except NotImplementedError:
            return []  # An engine with one register: only the run's nodes can be elected.
        leases = zip(keys, found, strict=False)
        seen = {key: _seen(self._replicas.get(key), each, _now_s()) for key, each in leases}
        listed = set(keys)
        kept = {key: each for key, each in self._replicas.items() if key in listed}
        self._replicas = {**kept, **seen}
        alive = [each for each in seen.values() if not each.has_expired(_now_s())]
        alive.sort(key=lambda each: not each.was_renewed)
        return [each.lease for each in alive if each.lease is not None]

    def _is_known_dead(self, key: str) -> bool:
        known = self._replicas.get(key)
        return known is not None and (known.lease is None or known.has_expired(_now_s()))

    # -- helpers -------------------------------------------------------------------------------

    async def _until_due(self, ends_s: float) -> None:
        """Wait until the next look is due, or the run's register changes."""
        due_s = self._discovery.next_tick_s()
        assert due_s is not None, "begin or again comes before next"
        left_s = min(due_s, ends_s) - _now_s()
        if left_s <= 0:
            return
        if self._is_spreading or self.error is not None:
            # The register may have changed since the last search. A watch from that version would
            # wake all nodes of the run at once.
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
        # The change wakes all nodes of the run at once, so each looks a little later.
        self._discovery.look_now(_now_s(), runtime.here().chance.random())
        due_s = min(self._discovery.next_tick_s() or ends_s, ends_s)
        await asyncio.sleep(max(0.0, due_s - _now_s()))

    async def _look(self, ends_s: float) -> Finding | None:
        try:
            todo = deque(self._discovery.tick(_now_s(), runtime.here().chance.random()))
            while todo:
                match todo.popleft():
                    case e.ReadRun() as asked:
                        found = await self._bounded(self._read(self._run_key), ends_s)
                        self._version = found.version if found else None
                        todo += self._discovery.run_read(
                            asked, found, _now_s(), runtime.here().chance.random()
                        )
                    case e.ReadLease() as asked:
                        found = await self._bounded(self._read(lease_key(asked.process)), ends_s)
                        todo += self._discovery.lease_read(
                            asked, found, _now_s(), runtime.here().chance.random()
                        )
                    case finding:
                        return finding
        except LedgerError as error:
            self._note(error)
        except e.UnreadableError as error:
            is_foreign = isinstance(error, e.OtherFormatError)
            kind = LedgerFormatError if is_foreign else LedgerCorruptError
            problem = f"the register of the run cannot be read: {error}"
            self._note(kind(problem, hint=error.hint))
        return None

    async def _bounded(self, work: Coroutine[Any, Any, _T], ends_s: float) -> _T:
        """The ledger's answer, which must come by `ends_s`, but has at least ANSWER_MIN_S.

        Raises LedgerUnreachableError then, because the ledger's own limit may be longer.
        """
        began_s = _now_s()
        try:
            async with asyncio.timeout_at(max(ends_s, began_s + ANSWER_MIN_S)):
                return await work
        except TimeoutError as error:
            if isinstance(self.error, LedgerUnreachableError):
                # Keep the error of the earlier call, which had more time and reports what it tried.
                raise self.error from error
            raise LedgerUnreachableError(
                f"{self._where} has not answered within {_now_s() - began_s:.1f} s",
                hint="check that it runs and that this node can reach it; connect_timeout "
                "limits the search",
            ) from error

    async def _read(self, key: str) -> Versioned | None:
        found = await self.ledger.read(key)
        self._record_answer()
        return found

    def _note(self, error: LedgerError, since_s: float | None = None) -> None:
        is_news, self.error = self.error is None, error
        if is_news:
            self._failing_since_s = _now_s() if since_s is None else since_s
            _log.warning("%s", self.problem)

    def _record_answer(self) -> None:
        if self.error is not None:
            self.error = None
            _log.warning("the ledger answers again")


class _SeenLease(msgspec.Struct, frozen=True):
    """A lease that was read. `lease`: None if its process does not serve every run."""

    lease: e.Lease | None
    version: int
    since_s: float
    ttl_s: float
    was_renewed: bool

    def has_expired(self, now_s: float) -> bool:
        return now_s >= self.since_s + self.ttl_s


def _seen(before: _SeenLease | None, found: Versioned | None, now_s: float) -> _SeenLease:
    try:
        lease = e.decode_lease(found.value) if found is not None else None
    except e.UnreadableError:
        lease = None
    if found is None or lease is None:
        return _SeenLease(None, 0, now_s, 0.0, was_renewed=False)
    serves = lease.state is e.LeaseState.SERVING and not lease.only_run and lease.addresses
    replica, was_renewed = lease if serves else None, False
    since_s = now_s
    if before is not None:
        was_renewed = before.version != found.version
        since_s = now_s if was_renewed else before.since_s
    return _SeenLease(replica, found.version, since_s, lease.ttl_s, was_renewed)


def _now_s() -> float:
    return asyncio.get_running_loop().time()
