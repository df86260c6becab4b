"""Which addresses of a `host:port` endpoint a node dials next, if there are several. Pure.

An endpoint may name several hosts, and may leave open which of some ports the coordinator has. All
nodes start at the likeliest address, so that usually the first dial succeeds. The others follow a
few at a time, so that the nodes of a large job do not dial thousands of hosts at once.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import chain, cycle, islice
from typing import Final

from rallypoint.core.values import Address
from rallypoint.endpoints import Endpoint

LIKELY_HOSTS: Final = 3
"""So many hosts are dialled in every round, each at the port that its coordinator would have now.
"""
FURTHER: Final = 4
"""How many further addresses a round has, the next ones in turn."""


class Walk:
    """The rounds of one search. A host takes its first port that no other run has.

    `taken`: the addresses where something else listens than the coordinator of this run, with what
    it is. They are dialled one at a time, after all others, because they answer first.
    """

    def __init__(self, endpoint: Endpoint) -> None:
        self.taken: dict[Address, str] = {}
        self._hosts = endpoint.hosts
        self._spare_ports = endpoint.spare_ports
        self._next = cycle(self._all())

    def ports_of(self, host: Address) -> list[Address]:
        """A host at each of its ports, in the order in which it takes them."""
        return [Address(host.host, host.port + spare) for spare in range(1 + self._spare_ports)]

    def round(self) -> list[Address]:
        """The addresses to dial now, the likeliest first: each is dialled once in a while."""
        busy = {each.host for each in self.taken}
        likely = [*self._hosts[:LIKELY_HOSTS], *(each for each in self._hosts if each.host in busy)]
        expected = [self._expected(each) for each in dict.fromkeys(likely)]
        further = islice(self._next, FURTHER)
        found = dict.fromkeys(each for each in chain(expected, further) if each is not None)
        return [each for each in found if each not in self.taken]

    def taken_longest(self) -> Address | None:
        """The taken address that was not dialled for the longest time: its run may have ended."""
        return next(iter(self.taken), None)

    def note_taken(self, address: Address, what: str) -> None:
        """Something else than this run's coordinator listens there."""
        self.taken.pop(address, None)  # so that it is the last one again
        self.taken[address] = what

    def note_free(self, address: Address) -> None:
        """Nothing listens there any more."""
        self.taken.pop(address, None)

    def _expected(self, host: Address) -> Address | None:
        return next((each for each in self.ports_of(host) if each not in self.taken), None)

    def _all(self) -> Iterator[Address]:
        """Every address once: all of the likely hosts, then the first port of each other one."""
        likely, rest = self._hosts[:LIKELY_HOSTS], self._hosts[LIKELY_HOSTS:]
        yield from chain.from_iterable(map(self.ports_of, likely))
        yield from rest
        yield from (each for host in rest for each in self.ports_of(host)[1:])
