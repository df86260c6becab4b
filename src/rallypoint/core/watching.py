"""Which members watch which hosts, so that they can testify when one falls silent (R8).

A *host* is the address from which its nodes connect, as both sides see it. Each host has up to
three watchers on other hosts: one that is near it and two that are far, so that a broken switch or
rack does not silence all of them. A watcher connects to its hosts once, and remembers which of them
answered. The choice depends on the addresses only, so it hardly changes when members come and go.

This file keeps where the members are, and who watches. `witnesses` decides whom to ask.
"""

from __future__ import annotations

import hashlib
from bisect import bisect_right
from collections.abc import Iterator
from typing import Final, TypeAlias

from rallypoint.core.addresses import literal
from rallypoint.core.effects import Effect, TimerKind, Watch
from rallypoint.core.roster import Member, Roster
from rallypoint.core.timers import Timers
from rallypoint.core.values import Address, Reachability

WATCHERS_MAX: Final = 3
"""How many members are asked about a host, at most."""
WATCHED_MAX: Final = 16
"""How many hosts a member watches, at most. It is about three, unless few members are witnesses."""
WATCH_AFTER_S: Final = 1.0
"""The watchers are chosen when this time has passed since a member came or went."""
SLICE: Final = 256
SLICE_EVERY_S: Final = 0.05
"""So many watchers are told at once, and the next ones after this time."""

_Place: TypeAlias = tuple[tuple[tuple[str, str], ...], int, bytes]
_Ring: TypeAlias = list[tuple[_Place | bytes, str]]


class Watching:
    """The hosts of the members, by their addresses, and the names of those that watch each."""

    def __init__(self, roster: Roster, timers: Timers) -> None:
        self._roster = roster
        self._timers = timers
        self._at: dict[str, dict[str, None]] = {}
        """The names of the members on each host."""
        self._host_of: dict[str, str] = {}
        self._witnesses: dict[str, None] = {}
        """The members that can be asked."""
        self._watchers: dict[str, tuple[str, ...]] = {}
        self._told: dict[str, tuple[int, tuple[Address, ...]]] = {}
        """What each watcher was told, and on which connection."""
        self._untold: list[tuple[str, tuple[Address, ...]]] = []
        self._is_changed = False

    @property
    def has_witnesses(self) -> bool:
        """Whether any member can be asked. Without, two missed heartbeats mean nothing. O(1)."""
        return bool(self._witnesses)

    def attached(self, member: Member) -> list[Effect]:
        """A member has attached, for the first time or again."""
        self._leave(member.name)
        host = host_of(member)
        if host is None:
            return []
        self._at.setdefault(host, {})[member.name] = None
        self._host_of[member.name] = host
        if member.is_witness:
            self._witnesses[member.name] = None
        return self._changed()

    def gone(self, member: Member) -> list[Effect]:
        """It is no member any more."""
        self._told.pop(member.name, None)
        return self._changed() if self._leave(member.name) else []

    def host_of(self, name: str) -> str | None:
        """The host of a member that can be watched, or None. O(1)."""
        return self._host_of.get(name)

    @property
    def host_count(self) -> int:
        """How many hosts have members. O(1)."""
        return len(self._at)

    def members_at(self, host: str) -> Iterator[Member]:
        """The members on a host."""
        found = map(self._roster.get, self._at.get(host, ()))
        return (member for member in found if member is not None)

    def watchers(self, host: str) -> tuple[str, ...]:
        """The names of the members that watch a host."""
        return self._watchers.get(host, ())

    def timer_fired(self) -> list[Effect]:
        """Choose the watchers, and tell those that have other hosts now, some at a time."""
        if not self._untold and self._is_changed:
            self._choose()
        # R8: a watcher is told again on each connection, as the message before may be lost.
        some, self._untold = self._untold[:SLICE], self._untold[SLICE:]
        effects: list[Effect] = []
        for name, addresses in some:
            member = self._roster.get(name)
            if member is None or member.reachability is not Reachability.CONNECTED:
                continue
            told = (member.connection_id, addresses)
            if self._told.get(name) != told:
                self._told[name] = told
                effects.append(Watch(member.id, addresses))
        if self._untold:
            effects.append(self._timers.set(TimerKind.WATCH, SLICE_EVERY_S))
        elif self._is_changed:
            effects.append(self._timers.set(TimerKind.WATCH, WATCH_AFTER_S))
        return effects

    def _changed(self) -> list[Effect]:
        self._is_changed = True
        if self._timers.is_set(TimerKind.WATCH) or not self._witnesses:
            return []
        return [self._timers.set(TimerKind.WATCH, WATCH_AFTER_S)]

    def _leave(self, name: str) -> bool:
        host = self._host_of.pop(name, None)
        if host is None:
            return False
        self._witnesses.pop(name, None)
        names = self._at[host]
        del names[name]
        if not names:
            del self._at[host]
        return True

    def _choose(self) -> None:
        """O(N log N), in its own step, after members came or went."""
        self._is_changed = False
        leads: dict[str, Member] = {}
        for host in self._at:
            # R8: only a node that understands the question is asked.
            lead = next((m for m in self.members_at(host) if m.is_witness), None)
            if lead is not None:
                leads[host] = lead
        near: _Ring = sorted((_near(host, lead), host) for host, lead in leads.items())
        far: _Ring = sorted((_far(host), host) for host in leads)
        self._watchers = {}
        targets: dict[str, list[Address]] = {}
        for host in self._at:
            member = next(self.members_at(host))
            # R8: the coordinator's own machine has no witness: its loss is the coordinator's.
            if member.is_beside:
                continue
            assert member.address is not None
            found = _next(near, _near(host, member), host, 1)
            found += _next(far, _far(host), host, WATCHERS_MAX)
            chosen: dict[str, None] = {}
            for each in found:
                # R8: members are no port scanners.
                is_free = len(targets.get(leads[each].name, ())) < WATCHED_MAX
                # R8: at most three.
                if is_free and len(chosen) < WATCHERS_MAX:
                    chosen[each] = None
            if chosen:
                self._watchers[host] = tuple(leads[each].name for each in chosen)
            for each in chosen:
                targets.setdefault(leads[each].name, []).append(member.address)
        self._untold = [(name, tuple(addresses)) for name, addresses in targets.items()]

    def freeze(self) -> tuple[object, ...]:
        """Its state, as a hashable value."""
        return (tuple(self._host_of.items()), tuple(self._watchers.items()), self._is_changed)


def host_of(member: Member) -> str | None:
    """By which address the members on one host are known as such. None: its host is unknown."""
    if member.address is None:
        return None  # Behind a translator, it may be that of another host.
    address = literal(member.address.host)
    # An address with a zone is one of several networks.
    return None if address is None or address.is_link_local else str(address)


def _near(host: str, member: Member) -> _Place:
    """Hosts with equal labels and neighbouring addresses are next to each other."""
    address = literal(host)
    assert address is not None
    return (tuple(sorted(member.info.labels.items())), address.version, address.packed)


def _far(host: str) -> bytes:
    """A place that has nothing to do with the network, and never changes."""
    return hashlib.sha256(host.encode()).digest()


def _next(ring: _Ring, place: _Place | bytes, host: str, count: int) -> list[str]:
    """The next hosts in a ring, behind this place, without the host itself."""
    begin = bisect_right(ring, (place, host))
    found = (ring[(begin + i) % len(ring)][1] for i in range(min(count + 1, len(ring))))
    # R8: a host is no witness of itself.
    return [each for each in found if each != host][:count]
