"""The members of a run, in buckets, so that no event costs O(N).

After every event the rules need counts ("how many are ready?", "how many keep a place?") of a run
that may have ten thousand members. `Roster.reindex` moves a member to another bucket when something
about it changed. Everything else only reads the buckets. This file must not decide anything.
"""

from __future__ import annotations

import enum
from collections.abc import Iterator
from itertools import islice
from typing import Final

from rallypoint.core.tables import row_bytes
from rallypoint.core.values import (
    Address,
    Change,
    MemberState,
    NodeId,
    NodeInfo,
    Reachability,
    RoundMember,
)


class Bucket(enum.StrEnum):
    """The groups of members that the rules count. Each member is in exactly one."""

    IN_ROUND = "in_round"
    """Active in the present round."""
    READY_SURVIVOR = "ready_survivor"
    """Was in the round that ended, and is ready for the next one."""
    STOPPING = "stopping"
    """Was in the round that ended, can be heard, and has time left to stop its workers. It keeps
    its place even after the last call.
    """
    ABSENT = "absent"
    """Was in the round that ended, and has yet to attach to a new coordinator. It keeps its place
    even after the last call.
    """
    PLACE = "place"
    """Was in the round that ended, and cannot be heard or has used up its stop time. It keeps its
    place until the last call is over.
    """
    NEWCOMER = "newcomer"
    """Ready, and was not in the last round."""
    COOLING_SURVIVOR = "cooling_survivor"
    """Was in the round that ended, is ready, and has to stay out, if there are enough others."""
    COOLING = "cooling"
    """The same, and was not in the last round."""
    DEPARTING = "departing"
    DONE = "done"
    OTHER = "other"
    """Attached without asking for a round; or a newcomer that cannot be heard; or a survivor that
    is not ready, and keeps no place because it has to stay out."""


# Each event reindexes its member. A global is found ten times faster than a member of an enum.
_CONNECTED = Reachability.CONNECTED
_READY, _ACTIVE = MemberState.READY, MemberState.ACTIVE
_IN_ROUND = Bucket.IN_ROUND
_READY_SURVIVOR, _NEWCOMER = Bucket.READY_SURVIVOR, Bucket.NEWCOMER
_STOPPING = Bucket.STOPPING
READY: Final = (_READY_SURVIVOR, _NEWCOMER, Bucket.COOLING_SURVIVOR, Bucket.COOLING)
"""The buckets of the members that ask for the next round and can be heard."""


class Member:
    """The coordinator's data about one member. Only `membership` and its parts change it."""

    __slots__ = (
        "_row",
        "address",
        "agrees",
        "arrival",
        "attached_s",
        "bootstrap",
        "bucket",
        "closed_because",
        "connection_id",
        "due_s",
        "eligible_s",
        "grace_ends_s",
        "info",
        "is_absent",
        "is_beside",
        "is_cooling",
        "is_late",
        "is_witness",
        "last_change",
        "last_round",
        "name",
        "reachability",
        "rounds_broken",
        "row_bytes",
        "secret_hash",
        "state",
        "stop_ends_s",
        "survivor",
        "takes_orders",
        "told_standby",
        "trouble_since_s",
        "unfit",
        "workers",
    )

    def __init__(
        self,
        info: NodeInfo,
        connection_id: int,
        arrival: int,
        attached_s: float,
        secret_hash: bytes,
    ) -> None:
        self.info = info
        self.secret_hash = secret_hash
        """The hash of the secret that it showed when it first attached; empty if it has none."""
        self.name = info.name
        self.row_bytes = row_bytes(info)
        self.connection_id = connection_id
        self.closed_because = ""
        """Why this coordinator closed its connection, if it took the node's right to be here."""
        self.arrival = arrival
        self.attached_s = attached_s
        self.last_round = 0
        self.last_change: Change | None = None
        self.reachability = Reachability.CONNECTED
        self.due_s = 0.0
        """When it is lost if it is not heard; on the judging clock."""
        self.grace_ends_s = 0.0
        """When the time ends that it was given last; on the judging clock. After an outage of the
        ledger this is later than `due_s`."""
        self.state = MemberState.IDLE
        self.survivor = False
        self.is_absent = False
        """Whether it has yet to attach to this coordinator, and has time for that."""
        self.stop_ends_s: float | None = None
        """When its workers should have stopped; None before it was told that its round ended."""
        self.is_late = False
        """Whether that time has passed."""
        self.is_cooling = False
        """Whether it broke too many rounds, and has to stay out."""
        self.rounds_broken = 0
        self.unfit = ""
        """Why its own check failed; "" if it did not. It stays out then, too."""
        self.told_standby = False
        self.takes_orders = False
        """Whether its node can be asked to leave."""
        self.agrees = False
        """Whether its node understands what a drain is."""
        self.bootstrap = Address("", 0)
        self.address: Address | None = None
        """Of its side of its connection, as both sides see it; None if they see different ones."""
        self.is_beside = False
        """Whether it is on the machine of this coordinator."""
        self.is_witness = False
        """Whether its node can be asked whether a host answers."""
        self.workers = info.workers
        self.trouble_since_s = 0.0
        self.eligible_s = 0.0
        self.bucket = Bucket.OTHER
        self._row: RoundMember | None = None

    def row(self) -> RoundMember:
        """Its row in the table of a round: the same object until something in it changes."""
        info = self.info
        # R2: the row with its present number of workers.
        if self._row is None or self._row.workers != self.workers:
            self._row = RoundMember(
                info.name,
                info.incarnation,
                info.host,
                info.addresses,
                self.workers,
                info.labels,
                info.stop_s,
                self.secret_hash,
            )
        return self._row

    @property
    def id(self) -> NodeId:
        return NodeId(self.info.name, self.info.incarnation)

    def is_proved_by(self, secret_hash: bytes) -> bool:
        """Whether this secret proves that a connection is the member's own.

        A node of an earlier release has no secret, so nothing is checked.
        """
        # R5: an incarnation alone proves nothing.
        return not self.secret_hash or self.secret_hash == secret_hash

    @property
    def is_awaited(self) -> bool:
        """Whether it is neither done nor departing."""
        return self.state not in (MemberState.DONE, MemberState.DEPARTING)

    @property
    def is_troubled(self) -> bool:
        """Whether it cannot be heard, and is neither done nor departing."""
        # R8: done and departing members are not missed.
        return self.is_awaited and self.reachability is not Reachability.CONNECTED

    def trouble_s(self, now_s: float) -> float:
        """How long it has not been heard, in seconds; 0 if it can be heard."""
        return 0.0 if self.reachability is _CONNECTED else now_s - self.trouble_since_s

    @property
    def stays_out(self) -> bool:
        """Whether a round has it only if there are too few others."""
        return self.is_cooling or self.unfit != ""

    def where(self) -> Bucket:
        """The bucket for this member in its present state."""
        state = self.state
        # `stays_out`, without a call: each member is looked at several times in each round.
        stays_out = self.is_cooling or self.unfit
        # R7: a node that cannot be heard is in no round.
        if state is _READY and self.reachability is _CONNECTED:
            if stays_out:
                return Bucket.COOLING_SURVIVOR if self.survivor else Bucket.COOLING
            # R3: survivors before newcomers.
            return _READY_SURVIVOR if self.survivor else _NEWCOMER
        if state is _ACTIVE:
            if not self.survivor:
                return _IN_ROUND
            # R7: no round waits for it.
            if stays_out:
                return Bucket.OTHER
            if self.is_absent:
                return Bucket.ABSENT
            return (
                _STOPPING if self.reachability is _CONNECTED and not self.is_late else Bucket.PLACE
            )
        if state is MemberState.DONE:
            return Bucket.DONE
        if state is MemberState.DEPARTING:
            return Bucket.DEPARTING
        # R7: no round waits for one that has to stay out.
        if not self.survivor or stays_out:
            return Bucket.OTHER
        return Bucket.ABSENT if self.is_absent else Bucket.PLACE

    def freeze(self) -> tuple[object, ...]:
        """Its state as the rules see it, without times, as a hashable value."""
        return (
            self.info.name,
            self.info.incarnation,
            self.secret_hash,
            self.state,
            self.reachability,
            self.survivor,
            self.is_absent,
            self.is_late,
            self.is_cooling,
            self.unfit,
            self.told_standby,
            self.workers,
            self.last_round,
            self.closed_because,
        )


class Roster:
    """All members of a run, in order of arrival, and their buckets."""

    def __init__(self) -> None:
        self._members: dict[str, Member] = {}
        self._buckets: dict[Bucket, dict[str, None]] = {bucket: {} for bucket in Bucket}
        self._ready = tuple(self._buckets[bucket] for bucket in READY)
        self.troubled_names: dict[str, None] = {}
        """Of the members that cannot be heard and are missed."""
        self._arrivals = 0
        self.table_bytes = 0
        """The most bytes that the rows of all members take in a member table."""

    def __len__(self) -> int:
        return len(self._members)

    def __iter__(self) -> Iterator[Member]:
        return iter(self._members.values())

    def __contains__(self, name: str) -> bool:
        return name in self._members

    def get(self, name: str) -> Member | None:
        """The member of that name, with any incarnation."""
        return self._members.get(name)

    def living(self, node: NodeId) -> Member | None:
        """The member, if it has that incarnation."""
        member = self._members.get(node.name)
        # R4: not another start of the node.
        return member if member and member.info.incarnation == node.incarnation else None

    def add(
        self, info: NodeInfo, connection_id: int, now_s: float, secret_hash: bytes = b""
    ) -> Member:
        """Add a member. Its name must be free."""
        assert info.name not in self._members
        self._arrivals += 1
        member = Member(info, connection_id, self._arrivals, now_s, secret_hash)
        self._members[info.name] = member
        self.table_bytes += member.row_bytes
        self._buckets[member.bucket][info.name] = None
        return member

    def queue(self, member: Member) -> None:
        """Move it behind all others, because it asked for a round after them."""
        self._arrivals += 1
        member.arrival = self._arrivals

    def remove(self, member: Member) -> None:
        """Take a member out of every bucket."""
        del self._members[member.name]
        self.table_bytes -= member.row_bytes
        del self._buckets[member.bucket][member.name]
        self.troubled_names.pop(member.name, None)

    def reindex(self, member: Member) -> None:
        """Call this after any change to a member's state, reachability or place."""
        bucket = member.where()
        if bucket is not member.bucket:
            del self._buckets[member.bucket][member.name]
            self._buckets[bucket][member.name] = None
            member.bucket = bucket
        if self.troubled_names or member.reachability is not _CONNECTED:  # This is rare.
            self._record_trouble(member)

    def reindex_all(self) -> None:
        """The same for all members, after a change to all of them. O(N)."""
        buckets = self._buckets
        for member in self._members.values():
            bucket = member.where()
            if bucket is not member.bucket:
                name = member.name
                del buckets[member.bucket][name]
                buckets[bucket][name] = None
                member.bucket = bucket
            if self.troubled_names or member.reachability is not _CONNECTED:
                self._record_trouble(member)

    def _record_trouble(self, member: Member) -> None:
        if member.is_troubled:
            self.troubled_names[member.name] = None
        else:
            self.troubled_names.pop(member.name, None)

    def count(self, bucket: Bucket) -> int:
        """How many members are in a bucket. O(1)."""
        return len(self._buckets[bucket])

    @property
    def ready_count(self) -> int:
        """How many are ready for the next round, also if they have to stay out. O(1)."""
        first, second, third, fourth = self._ready
        return len(first) + len(second) + len(third) + len(fourth)

    def names(self, bucket: Bucket) -> Iterator[str]:
        """The names in a bucket, in the order in which they came into it."""
        return iter(self._buckets[bucket])

    def members(self, bucket: Bucket) -> list[Member]:
        """The members of a bucket. The caller may reindex them. O(its length)."""
        return [self._members[name] for name in self._buckets[bucket]]

    def latest_ready(self, most: int) -> list[Member]:
        """The ready members that asked last for a round, the latest first. O(most)."""
        ready = (self._buckets[_READY_SURVIVOR], self._buckets[_NEWCOMER])
        names = [name for bucket in ready for name in islice(reversed(bucket), most)]
        latest = [self._members[name] for name in names]
        return sorted(latest, key=lambda member: -member.arrival)[:most]

    def newcomers(self) -> list[Member]:
        """The newcomers, in the order in which they asked for a round. O(n log n)."""
        # R7: in the order of their requests, so that none waits for ever.
        return sorted(self.members(_NEWCOMER), key=lambda member: member.arrival)

    def cooling(self) -> list[Member]:
        """Those that are ready and have to stay out, the one with the least blame first."""
        out = self.members(Bucket.COOLING_SURVIVOR) + self.members(Bucket.COOLING)
        # One whose check fails is surely bad. One that broke rounds is so only probably.
        return sorted(
            out,
            key=lambda each: (
                each.unfit != "",
                each.rounds_broken,
                not each.survivor,
                each.arrival,
            ),
        )

    def troubled(self) -> list[Member]:
        """The members for which `is_troubled` holds."""
        return [self._members[name] for name in self.troubled_names]

    @property
    def awaited_count(self) -> int:
        """How many members are neither done nor departing. O(1)."""
        return len(self._members) - self.count(Bucket.DONE) - self.count(Bucket.DEPARTING)
