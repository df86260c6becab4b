"""Slows addresses from which logins fail. Pure: time is an argument, in seconds.

After some failures, further wrong tokens of the address are answered with 429 for a time that
doubles with each failure that counts. That saves work for the logs, and tells programs to wait.

It must not lock out the right tokens of others at the same address, as many nodes may be behind one
NAT. So a token that can be judged cheaply (a comparison, a hash, a claim that was checked before)
always is, and a right one is admitted. Only the signatures of unknown claims, which cost 0.1 ms
each, are limited: CHECKS_PER_S for an address that waits. A node with a new claim there may have to
try again, and is soon checked.

Guessing a token is hopeless, as it has 128 bits; it need not be slowed for that.
"""

from __future__ import annotations

from typing import Final

FREE: Final = 10
"""How many failures of an address have no consequence: a job with an old token, say."""
FIRST_S: Final = 1.0
LONGEST_S: Final = 30.0
FORGOTTEN_AFTER_S: Final = 300.0
"""After so long without a failure that counts, an address is forgotten."""
ADDRESSES_MAX: Final = 4_096
"""How many addresses are known. One more lets the one be forgotten that has not failed longest."""
CHECKS_PER_S: Final = 20
"""How many signatures are checked a second for an address that waits."""
FAILED_CHECKS_PER_S: Final = 500
"""How many signatures may be checked in vain a second, of all addresses together."""


class _Address:
    __slots__ = ("checks", "failures", "last_s", "second", "until_s")

    def __init__(self) -> None:
        self.failures = 0
        self.last_s = 0.0
        self.until_s = 0.0
        self.second = 0
        self.checks = 0


class Logins:
    """The addresses from which logins have failed. Owned by one event loop."""

    def __init__(self) -> None:
        self._addresses: dict[str, _Address] = {}
        """The one that has failed last comes last."""
        self._second = 0
        self._failed_checks = 0

    def __len__(self) -> int:
        return len(self._addresses)

    def waits_s(self, address: str, now_s: float) -> float:
        """For how long wrong tokens of this address are answered with 429; 0.0: they are not."""
        known = self._known(address, now_s)
        return 0.0 if known is None else max(0.0, known.until_s - now_s)

    def failed(self, address: str, now_s: float) -> float:
        """A login has failed. Returns as `waits_s`, before this failure counts.

        While an address waits, its failures do not count: the wait has an end for others there.
        """
        waits_s = self.waits_s(address, now_s)
        if waits_s:
            return waits_s
        known = self._known(address, now_s) or _Address()
        known.failures += 1
        known.last_s = now_s
        over = known.failures - FREE
        if over >= 0:
            known.until_s = now_s + min(LONGEST_S, FIRST_S * 2.0 ** min(over, 10))
        self._addresses.pop(address, None)
        self._addresses[address] = known
        while len(self._addresses) > ADDRESSES_MAX:
            del self._addresses[next(iter(self._addresses))]
        return 0.0

    def may_check(self, address: str, now_s: float) -> bool:
        """Whether to check the signature of an unknown claim now. This counts as a check."""
        if self._failed_checks >= FAILED_CHECKS_PER_S and int(now_s) == self._second:
            return False
        known = self._known(address, now_s)
        if known is None or known.until_s <= now_s:
            return True
        if int(now_s) != known.second:
            known.second, known.checks = int(now_s), 0
        known.checks += 1
        return known.checks <= CHECKS_PER_S

    def check_failed(self, now_s: float) -> None:
        """A signature was checked in vain."""
        if int(now_s) != self._second:
            self._second, self._failed_checks = int(now_s), 0
        self._failed_checks += 1

    def _known(self, address: str, now_s: float) -> _Address | None:
        known = self._addresses.get(address)
        if known is not None and now_s - max(known.last_s, known.until_s) > FORGOTTEN_AFTER_S:
            del self._addresses[address]
            return None
        return known
