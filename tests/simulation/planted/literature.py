"""Bugs that other systems had, or that papers warn of, in the places where ours would have them."""

from __future__ import annotations

from typing import Any

import msgspec

from rallypoint.coordinator.log_records import decode_record, encode_record
from rallypoint.core import events as on
from rallypoint.core.effects import TimerKind
from rallypoint.core.election import RunOver
from rallypoint.core.election.actions import ReadLease
from rallypoint.core.election.lease import lease_of
from rallypoint.core.election.records import LeaseState, decode_lease, encode
from rallypoint.core.formation import Call
from rallypoint.core.store import StoreValue
from tests.simulation.planted.planting import Bug, replaces


@replaces("rallypoint.coordinator.store_log:StoreLog._hold")
def _answer_before_the_log(original: Any, self: Any, answers: Any) -> Any:
    return answers


@replaces("rallypoint.coordinator.run_ownership:RunOwnership._commit")
def _publish_before_the_swap(original: Any, self: Any, run: Any, record: Any) -> None:
    original(self, run, record)
    run.post(on.Committed())


@replaces("rallypoint.core.ledger_events:on_commit_refused")
def _goes_on_deposed(original: Any, run: Any, event: Any) -> None:
    """The deposed coordinator keeps its nodes, and goes on."""


@replaces("rallypoint.core.election.lease:LeaseHolder.may_decide")
def _decides_without_lease(original: Any, self: Any, now_s: Any) -> bool:
    return not (self.is_lost or self._is_moving or self._renewed_s is None)


@replaces("rallypoint.core.election.lease:LeaseHolder._write")
def _writes_its_clock(original: Any, self: Any, now_s: Any) -> Any:
    (swap,) = original(self, now_s)
    timed = msgspec.structs.replace(decode_lease(swap.value), beat=int(now_s * 1000))
    swap = msgspec.structs.replace(swap, value=encode(timed))
    self._try = msgspec.structs.replace(self._try, swap=swap)
    return [swap]


@replaces("rallypoint.core.election.ownership:Claim.lease_read")
def _compares_clocks(original: Any, self: Any, asked: Any, found: Any, now_s: Any) -> Any:
    if asked == self._open and found is not None and isinstance(asked, ReadLease):
        lease = lease_of(asked.process, found)
        is_old = now_s - lease.beat / 1000 > lease.ttl_s
        if lease.state is LeaseState.SERVING and is_old:
            return self._revoke(lease, found.version, now_s)
    return original(self, asked, found, now_s)


@replaces("rallypoint.core.ranks:seats_of")
def _rank_twice(original: Any, record: Any) -> Any:
    seats = original(record)
    if len(seats) > 2:
        seats[-1] = msgspec.structs.replace(seats[-1], node_rank=seats[-2].node_rank)
    return seats


@replaces("rallypoint.core.store.waits:Waits.written")
def _lost_wake_up(original: Any, self: Any, writes: Any) -> Any:
    """A call that waits is woken only if it was the last to wait for its key."""
    return original(self, writes)[-1:]


@replaces("rallypoint.client.waiters:Waiters.notify")
def _notify_one(original: Any, self: Any) -> None:
    """Nobody is woken: who waits looks again when its time is over."""


@replaces("rallypoint.core.store.store:ClientSession.has_seen")
def _applied_twice(original: Any, self: Any, request_id: Any) -> bool:
    return request_id in self.calls and not isinstance(
        getattr(self.calls[request_id], "result", None), StoreValue
    )


@replaces("rallypoint.core.store.store:ClientSession.admit")
def _admits_again(original: Any, self: Any, call: Any) -> None:
    self.calls[call.request_id] = call
    original(self, call)


@replaces("rallypoint.core.scale_up:ScaleUp.take")
def _standby_never_promoted(original: Any, self: Any, now_s: Any) -> Any:
    return []


@replaces("rallypoint.core.gathering:Gathering.timer_fired")
def _last_call_for_ever(original: Any, self: Any, kind: Any, now_s: Any) -> None:
    if kind is TimerKind.LAST_CALL:
        self.call = Call.NOT_YET
    else:
        original(self, kind, now_s)


@replaces("rallypoint.coordinator.log_reader:_Reading.take")
def _stale_store(original: Any, self: Any, data: Any) -> None:
    """The last record before the seal is not replayed: a follower that lags becomes the leader."""
    record = decode_record(data)
    if record.entries and record.part is None and self.index > 2:
        record = msgspec.structs.replace(record, entries=record.entries[:-1])
        last = data
        original(self, encode_record(record))
        self.last = last
        return
    original(self, data)


@replaces("rallypoint.core.election.records:RunRegister.state")
def _close_forgotten(original: Any, self: Any, members: Any) -> Any:
    return msgspec.structs.replace(original(self, members), close=None)


@replaces("rallypoint.core.election.discovery:Discovery.run_read")
def _looks_past_close(
    original: Any, self: Any, asked: Any, found: Any, now_s: Any, jitter: Any
) -> Any:
    actions = original(self, asked, found, now_s, jitter)
    if actions and isinstance(actions[0], RunOver):
        return self._nobody(now_s, jitter)
    return actions


def _known(name: str, rule: str, source: str, *parts: Any, seed: int | None = None) -> Bug:
    return Bug(name=name, rule=rule, source=source, parts=parts, seed=seed)


RAFT = "Ongaro and Ousterhout, Raft, section 5"
LITERATURE = (
    _known("acknowledge-before-commit", "R10", "MongoDB, w:1 (Jepsen)", _answer_before_the_log),
    _known("publish-before-commit", "R1", RAFT, _publish_before_the_swap),
    _known("deposed-goes-on", "R5", "Elasticsearch, split brain", _goes_on_deposed),
    _known("lease-without-end", "R5", "Chubby, section 2.4", _decides_without_lease),
    _known("clocks-compared", "R9", "torch c10d, keep-alive", _writes_its_clock, _compares_clocks),
    _known("rank-twice", "R3", "torch etcd rendezvous", _rank_twice),
    _known("lost-wake-up", "R7", "torch TCPStore, wait", _lost_wake_up),
    _known("nobody-notified", "R7", "condition variables", _notify_one),
    _known("resend-applied-twice", "R11", "Raft, section 8", _applied_twice, _admits_again),
    _known("standby-never-promoted", "R7", "torch c10d, redundancy list", _standby_never_promoted),
    _known("last-call-for-ever", "R7", "torch c10d, last_call_timeout", _last_call_for_ever),
    _known("stale-store", "R10", "ZooKeeper, a follower that lags", _stale_store),
    _known("close-forgotten", "R6", "torch etcd rendezvous", _close_forgotten, _looks_past_close),
)
