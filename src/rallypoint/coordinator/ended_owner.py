"""Whether the owner of a run has ended, as this process sees it; and that such a sight was wrong.

A node has lost its connection to the owner, and was refused a new one. Before this process revokes
the owner's lease early, it checks for itself. What the claim does with the result is decided in
`core/election`.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from typing import Final

from rallypoint import runtime
from rallypoint.coordinator.supervision import Supervised
from rallypoint.core import election as e
from rallypoint.core.addresses import telling
from rallypoint.core.backoff import Backoff
from rallypoint.core.values import Address, EndedOwner
from rallypoint.errors import LedgerError, LedgerUnreachableError
from rallypoint.ledger.contract import Ledger, Swapped
from rallypoint.ledger.keys import MISTAKE, lease_key

_log = logging.getLogger("rallypoint.coordinator")

CHECK_WITHIN_S: Final = 2.0
"""How long the whole check may take. After that the owner counts as alive, and its ttl decides."""
REFUSED_WITHIN_S: Final = 1.0
"""How long an address may take to refuse. One that says nothing tells nothing."""
LOOK_WITHIN_S: Final = 1.0
"""How long a process that is closed looks whether its lease was revoked early."""
RECORDED_WITHIN_S: Final = 10.0
"""How long a process that is closed goes on trying to record that it was replaced alive."""
MISTAKE_PAUSE_S: Final = 1.0
MISTAKE_PAUSE_MAX_S: Final = 30.0
"""The first and the longest pause between two tries to write a mistake into the ledger."""
MISTAKE_TRIES: Final = 3_000
"""How often it is tried: for a day, if the ledger is away for so long."""


async def has_ended(ledger: Ledger, owner: EndedOwner) -> bool:
    """Whether the lease is as the node has read it, and the address that refused it refuses again.

    False if that cannot be found out: the lease cannot be read, or no thread is left for a look-up.
    """
    try:
        async with asyncio.timeout(CHECK_WITHIN_S):
            return await _has_ended(ledger, owner)
    except (LedgerError, e.UnreadableError, OSError, RuntimeError) as error:
        _log.debug("whether a coordinator has ended cannot be found out: %r", error)
        return False


async def has_mistake(ledger: Ledger) -> bool:
    """Whether a lease was revoked early by mistake, as far as the ledger tells: if in doubt, yes.

    Raises LedgerUnreachableError.
    """
    try:
        return await ledger.read(MISTAKE) is not None
    except LedgerUnreachableError:
        raise
    except LedgerError as error:
        _log.warning(
            "the record %r cannot be read, so no lease is revoked early: %s", MISTAKE, error
        )
        return True


async def _has_ended(ledger: Ledger, owner: EndedOwner) -> bool:
    found = await ledger.read(lease_key(owner.process))
    if found is None or found.version != owner.version:
        return False
    lease = e.lease_of(owner.process, found)
    if lease.state is not e.LeaseState.SERVING:
        return False
    own = [each for each in lease.addresses if await runtime.here().is_own(each.host)]
    asked = telling(lease.addresses, own)
    answers = await asyncio.gather(*map(_refuses, asked))
    # An address that is silent tells nothing: it may be in a network that is not reached from here.
    # One that accepts is that of a process that is alive. Not every address of a lease is the
    # process's alone, such as that of a bridge of guests: so the one that refused the node counts.
    refusing = [each for each, refuses in zip(asked, answers, strict=True) if refuses]
    is_confirmed = owner.refused in refusing if owner.refused is not None else bool(refusing)
    return is_confirmed and False not in answers


async def _refuses(address: Address) -> bool | None:
    return await runtime.here().refuses(address, REFUSED_WITHIN_S)


class Mistakes:
    """The records of one process that it was replaced although it is alive.

    `failed` is called with an unexpected error.
    """

    def __init__(self, ledger: Ledger, failed: Callable[[Exception], None]) -> None:
        self._ledger = ledger
        self._failed = failed
        self._recording = Supervised()
        self._recorded = ""

    def record(self, process: str, addresses: Sequence[Address]) -> None:
        """The lease of this name was revoked early, and its process is alive."""
        if process != self._recorded:
            self._recorded = process
            self._recording.spawn(record_mistake(self._ledger, process, addresses), self._failed)

    async def look(self, process: str, addresses: Sequence[Address]) -> None:
        """Look whether the lease of this name, which is this process's, was revoked early.

        Nothing is recorded if the ledger does not answer within LOOK_WITHIN_S.
        """
        try:
            async with asyncio.timeout(LOOK_WITHIN_S):
                found = await self._ledger.read(lease_key(process))
        except (LedgerError, TimeoutError) as error:
            _log.debug("whether this coordinator was replaced cannot be found out: %r", error)
            return
        if e.was_revoked_early(found):
            self.record(process, addresses)

    async def aclose(self) -> None:
        """Wait up to RECORDED_WITHIN_S for a record under way. Idempotent."""
        if self._recording.running:
            await asyncio.wait(self._recording.running, timeout=RECORDED_WITHIN_S)
        await self._recording.aclose()


async def record_mistake(ledger: Ledger, process: str, addresses: Sequence[Address]) -> None:
    """Tell people and all coordinators that this process was alive when its lease was revoked."""
    _log.warning(
        "nodes were refused at %s, so this coordinator was replaced although it is alive; look for "
        "a proxy or firewall that refuses connections to it. For ten minutes, coordinators on this "
        "ledger are replaced only after their ttl",
        ", ".join(map(str, addresses)),
    )
    value = e.encode(e.Mistake(e.FORMAT, process))
    pauses, now_s = Backoff(MISTAKE_PAUSE_S, MISTAKE_PAUSE_MAX_S), asyncio.get_running_loop().time
    for _ in range(MISTAKE_TRIES):
        try:
            found = await ledger.read(MISTAKE)
            if found is not None and found.value == value:
                return
            version = None if found is None else found.version
            if isinstance(await ledger.swap(MISTAKE, version, value), Swapped):
                return
        except LedgerError as error:
            _log.debug("the mistake could not be recorded yet: %s", error)
        await asyncio.sleep(pauses.next_s(now_s()))
