"""Which hosts of other members have answered this node, and how often it may connect to hosts.

A member is no port scanner. It connects to an address that its coordinator has named once, or twice
if nobody answered, and then only to addresses that have answered it. All of this is limited in
number. Pure: `witness` connects.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import Final

from rallypoint.core.addresses import is_loopback, literal
from rallypoint.core.values import Address

DIALS_PER_MINUTE: Final = 40
"""How many connections a node tries in any minute, at most, to see whether hosts answer."""
SEEN_MAX: Final = 256
"""The most hosts that a node remembers. It watches about three at a time."""
OTHERS_MAX: Final = 3
"""How many other hosts are tried beside one about which the coordinator asks."""
TRIES_MAX: Final = 2
"""How often a node connects to an address that has never answered it."""


class Sightings:
    """What one node has seen of other hosts. All `now_s` are from one monotonic clock."""

    def __init__(self) -> None:
        self._seen: dict[str, Address] = {}
        """By host: where it has answered, the latest last."""
        self._tries: dict[Address, int] = {}
        self._dialled_s: deque[float] = deque()

    def to_try(self, addresses: Sequence[Address]) -> list[Address]:
        """Those of these addresses that the node should connect to, to see whether they answer."""
        found = []
        for each in addresses:
            host = literal(each.host)
            # R8: an address of this machine, or a name, says nothing about another host.
            if host is None or host.is_loopback or host.is_multicast or host.is_unspecified:
                continue
            # R8: members are no port scanners.
            if str(host) not in self._seen and self._tries.get(each, 0) < TRIES_MAX:
                found.append(each)
        return found

    def tried(self, address: Address, *, has_answered: bool) -> None:
        """The node has connected to an address that the coordinator has named."""
        self._tries[address] = self._tries.pop(address, 0) + 1
        if len(self._tries) > SEEN_MAX:
            del self._tries[next(iter(self._tries))]
        host = literal(address.host)
        if has_answered and host is not None:
            self._seen.pop(str(host), None)
            self._seen[str(host)] = address
            if len(self._seen) > SEEN_MAX:
                del self._seen[next(iter(self._seen))]

    def seen_at(self, host: str) -> Address | None:
        """Where this host has answered; None if it has not."""
        known = literal(host)
        # R8: a host that never answered says nothing by its silence.
        return self._seen.get(str(known)) if known is not None else None

    def others(self, host: str, coordinator: Address | None) -> list[Address]:
        """Where others have answered, to find out whether the network of this node is whole.

        The coordinator, which has answered too, counts only if no other member has: it may be cut
        off from the rest together with this node.
        """
        known = literal(host)
        # R8: the host itself is no proof that the network of this one is whole.
        found = [each for name, each in reversed(self._seen.items()) if name != str(known)][
            :OTHERS_MAX
        ]
        if not found and coordinator is not None and not is_loopback(coordinator.host):
            address = literal(coordinator.host)
            if address is not None and address != known:
                found.append(coordinator)
        return found

    def may_dial(self, count: int, now_s: float) -> bool:
        """Whether so many connections may be tried now. If so, they count."""
        dialled = self._dialled_s
        while dialled and dialled[0] <= now_s - 60.0:
            dialled.popleft()
        # R8: members are no port scanners.
        if len(dialled) + count > DIALS_PER_MINUTE:
            return False
        dialled.extend([now_s] * count)
        return True
