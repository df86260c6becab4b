"""The ids of tokens that count no more, as the ledger has them: all replicas read them.

One small register, so that a claim, which is on no list, can be revoked for all replicas at once.
An id is kept until the claim would have expired anyway.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Final

import msgspec

from rallypoint import logs
from rallypoint.errors import LedgerCorruptError, LedgerError, LedgerFullError
from rallypoint.ledger.contract import Conflict, Ledger, Swapped, Versioned
from rallypoint.ledger.keys import REVOKED

_log = logging.getLogger("rallypoint.coordinator")

LOOK_S: Final = 2.0
"""How often a coordinator reads them, in seconds."""
KEPT_AFTER_S: Final = 86_400.0
"""How long an id is kept after its token's end, in seconds: clocks differ by much less."""
UNKNOWN_KEPT_S: Final = 10 * 365 * 86_400.0
"""The same for an id whose end is not known: as long as an authority counts."""
IDS_MAX: Final = 10_000
TRIES: Final = 20
_FORMAT: Final = 1


class _Revoked(msgspec.Struct, frozen=True, array_like=True):
    """The register. `ids`: until when each must be kept, in seconds since 1970.

    `by`: who has revoked them. An earlier release reads it without that, and writes it so.
    """

    format: int
    ids: dict[str, float]
    by: dict[str, str] = {}


class Revocations:
    """Reads the ids every LOOK_S, until cancelled. `changed` gets all of them after a change, and
    after the first time that they were read, each with who has revoked it; "" if unknown.

    While the ledger cannot be read, the ids of the last time hold.
    """

    def __init__(self, ledger: Ledger, changed: Callable[[dict[str, str]], None]) -> None:
        self._ledger = ledger
        self._changed = changed
        self._known: dict[str, str] | None = None

    async def run(self) -> None:
        """Look until cancelled."""
        while True:
            await self.look()
            await asyncio.sleep(LOOK_S)

    async def look(self) -> None:
        """Look once."""
        try:
            read = _read(await self._ledger.read(REVOKED))
        except (LedgerError, TimeoutError) as error:
            what = "no token with an id counts" if self._known is None else "those known hold"
            text = f"the revoked tokens cannot be read; {what}: %s"
            _log.warning(text, error, extra=logs.limit(1, 60.0))
            return
        found = {each: read.by.get(each, "") for each in read.ids}
        if found != self._known:
            self._known = found
            self._changed(found)


async def revoke(
    ledger: Ledger, token_id: str, keep_until: float | None, now_s: float, by: str = ""
) -> None:
    """Add an id. `keep_until`: the end of its token, if known; both times are of the wall clock.

    `by`: who revokes it, for people.

    Raises LedgerError.
    """
    until = (now_s + UNKNOWN_KEPT_S) if keep_until is None else keep_until + KEPT_AFTER_S
    found = await ledger.read(REVOKED)
    for _ in range(TRIES):
        before = _read(found)
        kept = {name: end for name, end in before.ids.items() if end > now_s}
        kept[token_id] = max(until, kept.get(token_id, until))
        who = {name: each for name, each in before.by.items() if name in kept}
        if by:
            who.setdefault(token_id, by)
        if len(kept) > IDS_MAX:
            raise LedgerFullError(
                f"the ledger has {IDS_MAX} revoked tokens already",
                hint="change the certificate authority: make a new state directory",
            )
        value = msgspec.msgpack.encode(_Revoked(_FORMAT, kept, who))
        outcome = await ledger.swap(REVOKED, None if found is None else found.version, value)
        if isinstance(outcome, Swapped):
            return
        # After an unknown outcome the id may be there already: then this writes it again.
        found = outcome.current if isinstance(outcome, Conflict) else await ledger.read(REVOKED)
    raise LedgerError(
        f"token {token_id} is not revoked: others write {REVOKED!r} all the time",
        hint="try again; `rallypoint token list` shows whether it is",
    )


def _read(found: Versioned | None) -> _Revoked:
    """The register. Raises LedgerCorruptError."""
    if found is None:
        return _Revoked(_FORMAT, {})
    try:
        return msgspec.msgpack.decode(found.value, type=_Revoked)
    except msgspec.DecodeError as error:
        raise LedgerCorruptError(
            f"register {REVOKED!r} of the ledger: {error}",
            hint="another program has written into this ledger's place: give each its own",
        ) from error
