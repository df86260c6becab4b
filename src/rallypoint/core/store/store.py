"""The key-value store of one round, with the semantics of torch.distributed.Store, and barriers.

A deterministic machine: calls and times go in, answers come out, and the same inputs in the same
order give the same answers. What a call does to the data is decided apart from who waits and who
is answered: `Data.effect_of` decides and changes nothing, `Data.commit` carries out `Write`s and
can do so again from a log. Sockets, durability and the choice of the round belong to the layers
above. For the layer that makes it durable the store lists what each call wrote and was answered
(`take_settled`), repeats that (`redo`), and lists all that it holds (`snapshot`, `load`).

Where torch's stores differ among themselves, HashStore is followed, but for one thing: `add` on a
value that only begins like an integer ("12x") is an error here, not 12.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from heapq import heapify, heappop, heappush
from itertools import islice

import msgspec

from rallypoint.core.store.data import Data, Drop, Extend, Put, Tally, Write
from rallypoint.core.store.operations import (
    BAD_REQUEST,
    DEFAULT_LIMITS,
    READS,
    ROUND_ENDED,
    TIMEOUT,
    UTF8_BYTES_MAX,
    Answer,
    Barrier,
    CompareSet,
    DataOp,
    StoreFailure,
    StoreLimits,
    StoreOp,
    StoreResult,
    StoreValue,
    key_bytes,
    keys_of,
    listed,
    shape_objection,
    shown,
)
from rallypoint.core.store.sessions import Session, SessionPicture, result_bytes
from rallypoint.core.store.snapshot import (
    Acknowledged,
    AsStored,
    MoreBytes,
    Settled,
    SnapshotItem,
    snapshot_items,
)
from rallypoint.core.store.waits import WAITING_CALL_BYTES, Call, OpenBarrier, Seats, waiting_bytes
from rallypoint.core.values import NAMES_SHOWN_MAX


class StorePicture(msgspec.Struct, frozen=True):
    """A round's store at one moment, hashable and in a canonical order.

    `waiting` has (node, request id, call, deadline), in the order in which the waits began;
    `barriers` has (name, ranks that wait, ranks that gave up).
    """

    data: tuple[tuple[str, bytes], ...]
    waiting: tuple[tuple[str, int, StoreOp, float | None], ...]
    barriers: tuple[tuple[str, tuple[int, ...], tuple[int, ...]], ...]
    sessions: tuple[SessionPicture, ...]
    ended: str | None


class RoundStore:
    """The store of one round.

    `seats` has (name, first worker rank, number of workers) of each node of the round; R4: nobody
    else is served. A call costs O(1) amortised and per key that it names, and O(log n) for its
    deadline; a barrier of N arrivals O(N) in all. Not thread-safe.

    Raises ValueError if the seats' ranks are not 0 ... size - 1, each once.
    """

    def __init__(
        self, seats: Sequence[tuple[str, int, int]], limits: StoreLimits = DEFAULT_LIMITS
    ) -> None:
        self._limits = limits
        self.tally = self._tally = Tally()
        self._seats = Seats(seats)
        self._sessions: dict[str, Session] = {}  # of who has called: a new round costs nothing
        self._data = Data(limits, self._tally)
        self._waits: dict[Call, None] = {}  # in the order in which they began
        # A key that is here does not exist, and no call is under a key that it has seen exist.
        self._by_key: dict[str, dict[Call, None]] = {}
        self._barriers: dict[str, OpenBarrier] = {}
        self._deadlines: list[tuple[float, int, Call]] = []  # a heap; some no longer wait
        self._calls_admitted = 0
        self._ended: str | None = None
        self._settled: list[Settled] | None = None

    def apply(
        self, node: str, request_id: int, op: StoreOp, timeout_s: float | None, now_s: float
    ) -> list[Answer]:
        """Apply a call once, and return the answers that it brings about: its own first.

        R11: a repeat of an answered request brings the same answer again, but a read of more than
        REMEMBERED_READ_BYTES_MAX is made again; a repeat of one that waits, was cancelled or was
        acknowledged brings nothing. Ids are per incarnation of a node
        and may come in any order. `timeout_s` counts from `now_s`; None waits as long as the
        round lasts.

        A refusal because too much is unacknowledged is the one answer that is not remembered:
        nothing was applied, and the request may be sent again.
        """
        session = self._session_of(node)
        if session is None:
            message = f"node {shown(node)} is not in this round"
            return [Answer(node, request_id, StoreFailure(BAD_REQUEST, message))]
        is_again = session.has_seen(request_id)
        if is_again and not session.may_ask_again(request_id):
            return session.remembered(request_id)
        refusal = self._closing() or (None if is_again else self._overload(session))
        if refusal:
            return [Answer(node, request_id, refusal)]
        self._calls_admitted += 1
        call = Call(node, request_id, op, timeout_s, self._calls_admitted)
        if is_again:
            session.calls[request_id] = call
        else:
            session.admit(call)
        return self._begin(call, now_s)

    def acknowledge(self, node: str, up_to_request_id: int, still_open: Sequence[int] = ()) -> None:
        """The node has the answers up to this id, but for those `still_open`: forget them.

        What is acknowledged is never applied again, nor answered. A long wait keeps a low id open;
        `still_open` lets all the others be acknowledged meanwhile. A call that still waits and is
        acknowledged all the same is cancelled. Late acknowledgements (a lower id) do nothing.
        """
        session = self._session_of(node)
        if session is None:
            return
        for request_id in session.close(up_to_request_id, still_open):
            self.cancel(node, request_id)
            session.forget(request_id)

    def has_seen(self, node: str, request_id: int) -> bool:
        """Whether the request would be a repeat: it was applied, cancelled or acknowledged."""
        session = self._sessions.get(node)
        return session is not None and session.has_seen(request_id)

    def cancel(self, node: str, request_id: int) -> None:
        """Withdraw a call that waits: it gets no answer, and a repeat is not applied.

        Nothing happens if it does not wait (any more).
        """
        session = self._sessions.get(node)
        call = session.calls.get(request_id) if session else None
        if session and isinstance(call, Call):
            self._leave(call)
            session.calls[request_id] = None

    def forget_node(self, node: str) -> None:
        """Another incarnation takes the node's place: drop the old one's waits and memory."""
        session = self._sessions.get(node)
        if session is None:
            return
        for call in list(session.calls.values()):
            if isinstance(call, Call):
                self._leave(call)
        self._tally.kept -= session.kept()
        del self._sessions[node]

    def next_deadline_s(self) -> float | None:
        """When `expire` will have something to do, unless an answer comes first; None: never."""
        while self._deadlines and self._deadlines[0][2] not in self._waits:
            heappop(self._deadlines)
        return self._deadlines[0][0] if self._deadlines else None

    def expire(self, now_s: float) -> list[Answer]:
        """Answer `timeout`, and what was missing, to the calls whose deadline is not after now."""
        answers: list[Answer] = []
        while (deadline_s := self.next_deadline_s()) is not None and deadline_s <= now_s:
            answers.append(self._time_out(heappop(self._deadlines)[2]))
        return answers

    def end(self, message: str) -> list[Answer]:
        """The round is over: answer `round_ended` to all that wait, and to whoever calls later.

        What was answered before is still remembered; the data is dropped. Idempotent: the first
        message stays.
        """
        if self._ended is not None:
            return []
        self._ended = message
        self._settled = None
        self._data.drop_all()
        failure = StoreFailure(ROUND_ENDED, message)
        return [self._settle(call, failure) for call in list(self._waits)]

    def usage(self) -> tuple[int, int]:
        """How many keys there are, and how many bytes keys and values have."""
        return self._data.usage()

    def footprint(self) -> int:
        """About how many bytes of memory all takes that is stored, awaited or remembered. O(1)."""
        return self._tally.kept

    def growth_of(self, op: StoreOp) -> int:
        """By how much the footprint would grow with this call until it is acknowledged, at most.

        0 or less where it only reads or removes. Costs what the call does.
        """
        if shape_objection(op):
            return 0
        effect = None if isinstance(op, Barrier) else self._data.effect_of(op)
        if effect is None:
            return WAITING_CALL_BYTES + waiting_bytes(op)
        answer = 0 if type(op) in READS else result_bytes(effect.result)
        return self._data.growth_of(effect.writes) + answer

    @property
    def limits(self) -> StoreLimits:
        """What this store holds at most."""
        return self._limits

    def remembers(self, node: str, request_id: int) -> bool:
        """Whether the answer to this request is kept, as its node may ask for it again."""
        session = self._sessions.get(node)
        if session is None:
            return False
        is_kept = isinstance(session.calls.get(request_id), Answer)
        return is_kept or session.may_ask_again(request_id)

    # -- for the layer that makes the store durable ----------------------------------------------

    def note_settled(self) -> None:
        """From now on keep what `take_settled` returns."""
        self._settled = []
        self._tally.tells_reads = True

    def take_settled(self) -> list[Settled]:
        """What was answered since the last time, but for reads: those can be asked again.

        In order. What one call brought about (a barrier's release) stands or falls together.
        """
        settled = self._settled
        if not settled:
            return []
        self._settled = []
        return settled

    def redo(self, settled: Settled) -> None:
        """Do once more what another coordinator's store did. It is a store nobody has called."""
        self._data.commit(settled.writes)
        session, result = self._session_of(settled.node), settled.result
        if isinstance(result, AsStored):
            result = StoreValue(self._data.value(result.key))
        if session is not None:
            session.restore(Answer(settled.node, settled.request_id, result))

    def snapshot(self, item_bytes_max: int) -> Iterator[SnapshotItem]:
        """All that the store holds now, whatever is done to it while the items are taken.

        Calls that wait are not in it: a node asks again for whatever it has no answer to. To call
        this costs O(keys + answers), little for each key, and each item O(its size). No item needs
        more than `item_bytes_max`, if each key does with some to spare.
        """
        sessions = [(n, s.acknowledged(), s.written()) for n, s in self._sessions.items()]
        return snapshot_items(self._data.copy(), sessions, item_bytes_max)

    def load(self, items: Iterable[SnapshotItem]) -> None:
        """Take a whole snapshot. It is a store nobody has called."""
        for item in items:
            match item:
                case Put() | Extend():
                    self._data.commit((item,))
                case Settled():
                    self.redo(item)
                case Acknowledged(node, up_to, still_open):
                    session = self._session_of(node)
                    if session is not None:
                        session.restore_acknowledged(up_to, still_open)
                case MoreBytes(node, request_id, value):
                    self._lengthen(node, request_id, value)

    def _lengthen(self, node: str, request_id: int, more: bytes) -> None:
        session = self._session_of(node)
        for answer in session.remembered(request_id) if session else ():
            assert session is not None
            assert isinstance(answer.result, StoreValue)
            assert isinstance(answer.result.value, bytes)
            session.restore(Answer(node, request_id, StoreValue(answer.result.value + more)))

    def freeze(self) -> StorePicture:
        """The store as a hashable value; O(size)."""
        return StorePicture(
            data=tuple(self._data.items()),
            waiting=tuple((c.node, c.request_id, c.op, c.deadline_s) for c in self._waits),
            barriers=tuple(
                (name, tuple(sorted(barrier.arrived)), tuple(sorted(barrier.gave_up)))
                for name, barrier in sorted(self._barriers.items())
            ),
            sessions=tuple(s.picture(node) for node, s in sorted(self._sessions.items())),
            ended=self._ended,
        )

    # -- a call's way through the store

    def _session_of(self, node: str) -> Session | None:
        session = self._sessions.get(node)
        if session is None and node in self._seats:
            session = self._sessions[node] = Session(self._tally)
        return session

    def _closing(self) -> StoreFailure | None:
        return None if self._ended is None else StoreFailure(ROUND_ENDED, self._ended)

    def _overload(self, session: Session) -> StoreFailure | None:
        count, size = len(session.calls) + 1, session.answer_bytes
        return self._limits.excess(
            "unacknowledged_calls_per_node_max", count
        ) or self._limits.excess("unacknowledged_bytes_per_node_max", size)

    def _begin(self, call: Call, now_s: float) -> list[Answer]:
        objection = self._objection(call)
        if objection:
            return [self._settle(call, objection)]
        if isinstance(call.op, Barrier):
            return self._wait(call, now_s) or self._arrive(call, call.op)
        effect = self._data.effect_of(call.op)
        if effect is None:
            return self._wait(call, now_s) or self._watch(call)
        self._data.commit(effect.writes)
        return [self._settle(call, effect.result, effect.writes), *self._wake(effect.writes)]

    def _objection(self, call: Call) -> StoreFailure | None:
        """What is wrong with a call, whatever the data."""
        if call.timeout_s is not None and math.isnan(call.timeout_s):
            return StoreFailure(BAD_REQUEST, "the timeout is not a number")
        if isinstance(call.op, Barrier) and not self._seats.has(call.node, call.op.rank):
            message = f"rank {call.op.rank} is not a rank of node {shown(call.node)}"
            return StoreFailure(BAD_REQUEST, message)
        return shape_objection(call.op) or self._key_objection(keys_of(call.op))

    def _key_objection(self, keys: tuple[str, ...]) -> StoreFailure | None:
        if len(keys) == 1 and UTF8_BYTES_MAX * len(keys[0]) <= self._limits.key_bytes_max:
            return None  # as nearly always: this is done for every call
        longest = max(map(key_bytes, keys), default=0)
        return self._limits.excess("keys_per_call_max", len(keys)) or self._limits.excess(
            "key_bytes_max", longest
        )

    def _settle(self, call: Call, result: StoreResult, writes: tuple[Write, ...] = ()) -> Answer:
        """End a call, waiting or not: each admitted call gets here at most once."""
        if call in self._waits:
            self._leave(call)
        answer = Answer(call.node, call.request_id, result)
        self._sessions[call.node].remember(answer, call.op)
        if self._settled is not None and type(call.op) not in READS:
            told = self._told(call.op, result)
            self._settled.append(Settled(call.node, call.request_id, told, writes))
        return answer

    def _told(self, op: StoreOp, result: StoreResult) -> StoreResult | AsStored:
        """The result as it is logged: a value that is in the store is not written once more."""
        if isinstance(op, CompareSet) and isinstance(result, StoreValue) and op.key in self._data:
            return AsStored(op.key)
        return result

    # -- waiting

    def _wait(self, call: Call, now_s: float) -> list[Answer]:
        """Count the call among those that wait, or refuse it: then the answer says so."""
        session = self._sessions[call.node]
        footprint = waiting_bytes(call.op)
        refusal = self._limits.excess(
            "waiting_calls_per_node_max", session.waiting + 1
        ) or self._limits.excess("waiting_bytes_per_node_max", session.waiting_bytes + footprint)
        if refusal:
            return [self._settle(call, refusal)]
        session.waiting += 1
        session.waiting_bytes += footprint
        self._tally.kept += WAITING_CALL_BYTES + footprint
        self._waits[call] = None
        self._set_deadline(call, now_s)
        return []

    def _set_deadline(self, call: Call, now_s: float) -> None:
        if call.timeout_s is None or call.timeout_s == math.inf:
            return
        call.deadline_s = now_s + max(call.timeout_s, 0.0)
        heappush(self._deadlines, (call.deadline_s, call.serial, call))
        # Calls that were answered in time leave their entry behind. Sweeping when these are the
        # most keeps the heap within a constant of the waits, at an amortised cost of O(1).
        if len(self._deadlines) > 2 * len(self._waits) + 64:
            self._deadlines = [entry for entry in self._deadlines if entry[2] in self._waits]
            heapify(self._deadlines)

    def _leave(self, call: Call) -> None:
        """The call waits no more, for whichever reason."""
        session = self._sessions[call.node]
        footprint = waiting_bytes(call.op)
        session.waiting -= 1
        session.waiting_bytes -= footprint
        self._tally.kept -= WAITING_CALL_BYTES + footprint
        del self._waits[call]
        if isinstance(call.op, Barrier):
            self._withdraw(call, call.op)
        elif call.missing:
            self._unwatch(call)

    def _time_out(self, call: Call) -> Answer:
        after = f"after {call.timeout_s:g} s: "
        if not isinstance(call.op, Barrier):
            return self._settle(call, self._keys_missing(after, call.op))
        barrier = self._barriers[call.op.name]
        failure = self._ranks_missing(after, call.op.name, barrier)
        barrier.give_up(call.op.rank)
        return self._settle(call, failure)

    # -- waiting for keys

    def _watch(self, call: Call) -> list[Answer]:
        missing = self._data.missing(keys_of(call.op))
        for key in missing:
            self._by_key.setdefault(key, {})[call] = None
        call.missing = len(missing)
        return []

    def _unwatch(self, call: Call) -> None:
        for key in keys_of(call.op):
            waiters = self._by_key.get(key)
            if waiters is not None:
                waiters.pop(call, None)
                if not waiters:
                    del self._by_key[key]

    def _wake(self, writes: Iterable[Write]) -> list[Answer]:
        """Answer those for whom the last missing key was written."""
        answers: list[Answer] = []
        for write in writes:
            for call in () if isinstance(write, Drop) else self._by_key.pop(write.key, ()):
                call.missing -= 1
                if not call.missing:
                    answers += self._try_again(call)
        return answers

    def _try_again(self, call: Call) -> list[Answer]:
        # A key that was there when the call began to wait may have been deleted since; then the
        # call waits for that one. So deleting costs nothing, however many wait for other keys.
        assert not isinstance(call.op, Barrier)
        effect = self._data.effect_of(call.op)
        return self._watch(call) if effect is None else [self._settle(call, effect.result)]

    def _keys_missing(self, after: str, op: DataOp) -> StoreFailure:
        keys = keys_of(op)
        missing = self._data.missing(keys)
        count, names = len(missing), tuple(missing[:NAMES_SHOWN_MAX])
        message = f"{after}{listed('keys do not exist', len(set(keys)), count, names)}"
        return StoreFailure(TIMEOUT, message, names, count)

    # -- waiting at a barrier

    def _arrive(self, call: Call, op: Barrier) -> list[Answer]:
        barrier = self._barriers.setdefault(op.name, OpenBarrier())
        replaced = barrier.arrived.get(op.rank)
        barrier.place(op.rank, call)
        if replaced is not None:
            # As many have come as before, so nobody is released.
            after = f"a newer call of rank {op.rank} took over: "
            return [self._settle(replaced, self._ranks_missing(after, op.name, barrier))]
        full = len(barrier.arrived) == self._seats.size
        return self._release(barrier, call) if full else []

    def _release(self, barrier: OpenBarrier, last: Call) -> list[Answer]:
        others = [call for call in barrier.arrived.values() if call is not last]
        return [self._settle(call, StoreValue(None)) for call in (last, *others)]

    def _withdraw(self, call: Call, op: Barrier) -> None:
        barrier = self._barriers[op.name]
        barrier.withdraw(op.rank, call)
        if not barrier.arrived:
            del self._barriers[op.name]

    def _ranks_missing(self, after: str, name: str, barrier: OpenBarrier) -> StoreFailure:
        count = self._seats.size - len(barrier.arrived) - len(barrier.gave_up)
        ranks = self._absent(barrier)
        if not count:
            count, ranks = len(barrier.gave_up), tuple(islice(barrier.gave_up, NAMES_SHOWN_MAX))
        names = tuple(map(self._seats.label, ranks))
        what = f"ranks are not at barrier {shown(name)}"
        message = f"{after}{listed(what, self._seats.size, count, names)}"
        return StoreFailure(TIMEOUT, message, names, count)

    def _absent(self, barrier: OpenBarrier) -> tuple[int, ...]:
        if barrier.absent is None:
            came = (barrier.arrived, barrier.gave_up)
            never = (r for r in range(self._seats.size) if not any(r in ranks for ranks in came))
            barrier.absent = tuple(islice(never, NAMES_SHOWN_MAX))
        return barrier.absent
