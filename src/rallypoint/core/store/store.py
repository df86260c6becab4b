"""The machine that serves one round's store: calls and times go in, answers come out.

The semantics are those of torch.distributed.Store, with barriers. The same inputs in the same order
give the same answers. Where torch's stores differ from each other, this one follows HashStore, with
one exception: `add` to a value that only begins like an integer ("12x") is an error.

`RoundStore` joins the parts: keys and values (`data`), the calls that wait (`waits`), and the
answers to each node (`ClientSession`). Sockets, durability and the choice of the round belong to
the layers above. The layer that makes the store durable takes the writes and the answer of each
call (`take_settled`), repeats them (`redo`), and reads and loads the whole store (`snapshot`,
`load`).
"""

from __future__ import annotations

import enum
import math
from collections.abc import Iterable, Iterator, Sequence
from heapq import heappop, heappush
from typing import Final

from rallypoint.core.store.data import Data, Extend, Put, Tally, Write
from rallypoint.core.store.operations import (
    BAD_REQUEST,
    DEFAULT_LIMITS,
    READS,
    ROUND_ENDED,
    TIMEOUT,
    Answer,
    Barrier,
    CompareSet,
    DataOp,
    StoreFailure,
    StoreLimits,
    StoreOp,
    StoreResult,
    StoreValue,
    keys_of,
    listed,
    malformed,
    refusal,
    shown,
)
from rallypoint.core.store.snapshot import (
    Acknowledged,
    AsStored,
    MoreBytes,
    Settled,
    SnapshotItem,
    snapshot_items,
)
from rallypoint.core.store.waits import WAITING_CALL_BYTES, Call, Seats, Waits, waiting_bytes
from rallypoint.core.values import NAMES_SHOWN_MAX, FrozenStruct

# Measured with CPython 3.11 to 3.13, and rounded up.
CALL_BYTES: Final = 220
"""Memory of a call besides its answer, until it is acknowledged."""
OPEN_ID_BYTES: Final = 100
"""Memory of a request id that an acknowledgement leaves open."""
REMEMBERED_READ_BYTES_MAX: Final = 1024
"""A longer answer of a read is not kept. When its node asks again, the read is repeated. Thousands
of such answers would keep values in memory that were overwritten since."""


class StorePicture(FrozenStruct, frozen=True):
    """A round's store at one moment, hashable and in a canonical order.

    `waiting` has (node, request id, call, deadline), in the order in which the waits began;
    `barriers` has (name, ranks that wait, ranks that gave up).
    """

    data: tuple[tuple[str, bytes], ...]
    waiting: tuple[tuple[str, int, StoreOp, float | None], ...]
    barriers: tuple[tuple[str, tuple[int, ...], tuple[int, ...]], ...]
    sessions: tuple[ClientSessionPicture, ...]
    ended: str | None


class RoundStore:
    """The store of one round.

    `seats` has (name, first worker rank, number of workers) of each node of the round. R4: no other
    node is served. A call costs O(1) amortised for each key that it names, and O(log n) for its
    deadline; a barrier of N arrivals costs O(N) in all. Not thread-safe.

    Raises:
        ValueError: from the constructor, if the ranks are not 0 ... size - 1, each once.
    """

    def __init__(
        self, seats: Sequence[tuple[str, int, int]], limits: StoreLimits = DEFAULT_LIMITS
    ) -> None:
        self._limits = limits
        self.tally = self._tally = Tally()
        self._seats = Seats(seats)
        # only of nodes that have called, so that a new round costs nothing
        self._sessions: dict[str, ClientSession] = {}
        self._data = Data(limits, self._tally)
        self._waits = Waits(self._seats, limits, self._tally)
        self._waiting = self._waits.calls  # the same dict, because every call reads it
        self._calls_admitted = 0
        self._ended: str | None = None
        self._settled: list[Settled] | None = None

    # -- calls of a node -------------------------------------------------------------------------

    def apply(
        self, node: str, request_id: int, op: StoreOp, timeout_s: float | None, now_s: float
    ) -> list[Answer]:
        """Apply a call once, and return all answers that it causes, its own first.

        A call that has to wait is answered later. `timeout_s` counts from `now_s`; None waits as
        long as the round lasts. Request ids are per incarnation of a node, in any order.

        R11: a repeat of an answered request returns the same answer. A repeat of a read whose
        answer had more than REMEMBERED_READ_BYTES_MAX is applied again. A repeat of a request that
        waits, was cancelled or was acknowledged returns no answer. A wait ends by the earlier of
        its deadlines: the node knows how much of its timeout is over, even if this machine's clock
        has stood still meanwhile.

        One answer is not remembered: the refusal because too much is unacknowledged. The call was
        not applied, and the node may send the request again.
        """
        session = self._session_of(node)
        if session is None:
            message = f"node {shown(node)} is not in this round"
            return [Answer(node, request_id, StoreFailure(BAD_REQUEST, message))]
        is_again = session.has_seen(request_id)  # R11: a repeat is not applied.
        if is_again and not session.may_ask_again(request_id):  # R11: it gets the same answer.
            known = session.calls.get(request_id)
            if isinstance(known, Call):
                self._waits.shorten(known, timeout_s, now_s)
            return session.remembered(request_id)
        if self._ended is not None:  # R4: the store of a round that is over takes nothing.
            return [Answer(node, request_id, StoreFailure(ROUND_ENDED, self._ended))]
        if not is_again:  # R12: the unacknowledged calls of a node are bounded.
            excess = self._limits.excess(
                unacknowledged_calls_per_node_max=len(session.calls) + 1,
                unacknowledged_bytes_per_node_max=session.answer_bytes,
            )
            if excess:
                return [Answer(node, request_id, excess)]
        self._calls_admitted += 1
        call = Call(node, request_id, op, timeout_s, self._calls_admitted)
        if is_again:
            session.calls[request_id] = call
        else:
            session.admit(call)  # R11: from now on its id is known.
        return self._begin(call, now_s)

    def acknowledge(self, node: str, up_to_request_id: int, still_open: Sequence[int] = ()) -> None:
        """Forget the answers that the node has: those up to this id, except `still_open` ones.

        An acknowledged request is never applied or answered again. A long wait keeps a low id open;
        with `still_open`, all others can be acknowledged meanwhile. A call that still waits when it
        is acknowledged is cancelled. A late acknowledgement (of a lower id) has no effect.
        """
        session = self._session_of(node)
        if session is None:
            return
        for request_id in session.close(up_to_request_id, still_open):
            self.cancel(node, request_id)
            # R11: an acknowledged id is never applied again, and costs nothing.
            session.forget(request_id)

    def has_seen(self, node: str, request_id: int) -> bool:
        """Whether the request would be a repeat: it was applied, cancelled or acknowledged."""
        session = self._sessions.get(node)
        # R11: applied, cancelled or acknowledged.
        return session is not None and session.has_seen(request_id)

    def remembers(self, node: str, request_id: int) -> bool:
        """Whether the node can get the answer to this request again."""
        session = self._sessions.get(node)
        if session is None:
            return False
        is_kept = isinstance(session.calls.get(request_id), Answer)
        return is_kept or session.may_ask_again(request_id)

    def cancel(self, node: str, request_id: int) -> None:
        """Withdraw a call that waits: it gets no answer, and a repeat is not applied.

        Does nothing if the call does not wait.
        """
        session = self._sessions.get(node)
        call = session.calls.get(request_id) if session else None
        if session and isinstance(call, Call):
            self._waits.end(call)
            session.calls[request_id] = None  # R11: a repeat of it is not applied either.

    def forget_node(self, node: str) -> None:
        """Drop a node's waits and answers: another incarnation takes its place."""
        session = self._sessions.get(node)
        if session is None:
            return
        for call in list(session.calls.values()):
            if isinstance(call, Call):
                self._waits.end(call)
        self._tally.kept -= session.kept()
        del self._sessions[node]  # R11: ids are per incarnation.

    # -- time, and the end -----------------------------------------------------------------------

    def next_deadline_s(self) -> float | None:
        """When the next call times out if it is not answered before; None if no call will."""
        return self._waits.next_deadline_s() if self._waiting else None

    def expire(self, now_s: float) -> list[Answer]:
        """Answer `timeout` to the calls whose deadline has come, with the missing keys or ranks."""
        answers: list[Answer] = []
        while (call := self._waits.take_due(now_s)) is not None:
            after = f"after {call.timeout_s:g} s: "
            if isinstance(call.op, Barrier):
                failure = self._waits.ranks_missing(after, call.op.name)
                self._waits.give_up(call.op)
            else:
                failure = self._keys_missing(after, call.op)
            answers.append(self._settle(call, failure))
        return answers

    def end(self, message: str) -> list[Answer]:
        """The round is over: answer `round_ended` to all calls that wait, and to all later ones.

        Earlier answers stay remembered; the data is dropped. Idempotent: the first message stays.
        """
        if self._ended is not None:  # R4: a round ends once.
            return []
        self._ended = message
        self._settled = None
        self._data.drop_all()  # R4: nothing of it is seen in the next.
        failure = StoreFailure(ROUND_ENDED, message)
        return [self._settle(call, failure) for call in list(self._waiting)]

    # -- its size --------------------------------------------------------------------------------

    @property
    def limits(self) -> StoreLimits:
        """The limits of this store."""
        return self._limits

    def usage(self) -> tuple[int, int]:
        """The number of keys, and the bytes of keys and values."""
        return self._data.usage()

    def footprint(self) -> int:
        """About the memory of the data, the waits and the answers, in bytes. O(1)."""
        return self._tally.kept

    def growth_of(self, op: StoreOp) -> int:
        """The most bytes that this call would add to the footprint, until it is acknowledged.

        0 or less if the call only reads or removes. This costs as much as the call itself.
        """
        if malformed(op):
            return 0
        effect = None if isinstance(op, Barrier) else self._data.effect_of(op)
        if effect is None:
            return WAITING_CALL_BYTES + waiting_bytes(op)
        answer = 0 if type(op) in READS else result_bytes(effect.result)
        return self._data.growth_of(effect.writes) + answer

    # -- for the layer that makes the store durable ----------------------------------------------

    def note_settled(self) -> None:
        """Begin to collect the answers for `take_settled`."""
        self._settled = []
        self._tally.tells_reads = True

    def take_settled(self) -> list[Settled]:
        """The calls answered since the last time, in order, without reads: they can be repeated.

        All answers that one call has caused (such as those of a barrier) must be logged together.
        """
        settled = self._settled
        if not settled:
            return []
        self._settled = []
        return settled

    def redo(self, settled: Settled) -> None:
        """Repeat a call of another coordinator's store. No node may have called this store yet."""
        self._data.commit(settled.writes)  # R10: the same data.
        session, result = self._session_of(settled.node), settled.result
        # R11: the same answer, also where the log refers to a key.
        if isinstance(result, AsStored):
            result = StoreValue(self._data.value(result.key))
        if session is not None:
            # R11: and remembered for the same request.
            session.restore(Answer(settled.node, settled.request_id, result))

    def snapshot(self, item_bytes_max: int) -> Iterator[SnapshotItem]:
        """The whole store at this moment, in items of at most `item_bytes_max` bytes.

        The store may change while the items are taken. Waiting calls are left out, because a node
        sends each call without an answer again. This costs O(keys + answers), little for each key,
        and each item costs O(its size). `item_bytes_max` must be larger than any key.
        """
        sessions = [(n, s.acknowledged(), s.written()) for n, s in self._sessions.items()]
        return snapshot_items(self._data.copy(), sessions, item_bytes_max)

    def load(self, items: Iterable[SnapshotItem]) -> None:
        """Take a whole snapshot. No node may have called this store yet."""
        for item in items:
            match item:
                case Put() | Extend():
                    self._data.commit((item,))  # R10: the data of the snapshot.
                case Settled():
                    self.redo(item)
                case Acknowledged(node, up_to, still_open):
                    session = self._session_of(node)
                    if session is not None:
                        # R11: acknowledged requests stay acknowledged.
                        session.restore_acknowledged(up_to, still_open)
                case MoreBytes(node, request_id, value):
                    session = self._session_of(node)
                    if session is not None:
                        session.lengthen(request_id, value)  # R11: the whole of a long answer.

    def freeze(self) -> StorePicture:
        """The store as a hashable value; O(size)."""
        return StorePicture(
            data=tuple(self._data.items()),
            waiting=tuple((c.node, c.request_id, c.op, c.deadline_s) for c in self._waiting),
            barriers=tuple(
                (name, tuple(sorted(barrier.arrived)), tuple(sorted(barrier.gave_up)))
                for name, barrier in sorted(self._waits.barriers.items())
            ),
            sessions=tuple(s.picture(node) for node, s in sorted(self._sessions.items())),
            ended=self._ended,
        )

    # -- how a call is applied -------------------------------------------------------------------

    def _session_of(self, node: str) -> ClientSession | None:
        session = self._sessions.get(node)
        if session is None and node in self._seats.nodes:  # R4: no other node has a session here.
            session = self._sessions[node] = ClientSession(self._tally)
        return session

    def _begin(self, call: Call, now_s: float) -> list[Answer]:
        objection = self._objection(call)
        if objection:  # R12: a call beyond the limits is refused before it is applied.
            return [self._settle(call, objection)]
        op = call.op
        effect = None if isinstance(op, Barrier) else self._data.effect_of(op)
        if effect is None:
            excess = self._waits.begin(call, now_s)
            if excess:
                return [self._settle(call, excess)]
            if isinstance(op, Barrier):
                return self._arrive(call, op)
            self._waits.watch(call, self._data.missing(keys_of(op)))
            return []
        writes = effect.writes
        if writes:
            self._data.commit(writes)  # R10: the writes that the log will have.
        answers = [self._settle(call, effect.result, writes)]
        if writes and self._waits.by_key:
            # R7: a write wakes the calls that wait for its key.
            for waiting in self._waits.written(writes):
                answers += self._try_again(waiting)
        return answers

    def _objection(self, call: Call) -> StoreFailure | None:
        """Why this call is refused, with any data; None if it is not."""
        op = call.op
        if call.timeout_s is not None and math.isnan(call.timeout_s):
            return StoreFailure(BAD_REQUEST, "the timeout is not a number")
        # R4: no node stands at a barrier for another.
        if isinstance(op, Barrier) and not self._seats.has(call.node, op.rank):
            return StoreFailure(BAD_REQUEST, f"node {shown(call.node)} has no rank {op.rank}")
        return refusal(op, self._limits)

    def _settle(self, call: Call, result: StoreResult, writes: tuple[Write, ...] = ()) -> Answer:
        """End a call, waiting or not. This happens at most once for each admitted call."""
        if call in self._waiting:  # R11: a call is answered once.
            self._waits.end(call)
        answer = Answer(call.node, call.request_id, result)
        op = call.op
        # R11: so that a repeat gets the same answer.
        self._sessions[call.node].remember(answer, op)
        # R10: every answer that is no read goes into the log.
        if self._settled is not None and type(op) not in READS:
            logged: StoreResult | AsStored = result
            if (
                isinstance(op, CompareSet)
                and isinstance(result, StoreValue)
                and op.key in self._data
            ):
                # R11: the answer of a compare_set is the key's value now.
                logged = AsStored(op.key)
            self._settled.append(Settled(call.node, call.request_id, logged, writes))
        return answer

    def _try_again(self, call: Call) -> list[Answer]:
        """Answer a call whose last missing key was written, or let it wait for another key."""
        assert not isinstance(call.op, Barrier)
        effect = self._data.effect_of(call.op)
        if effect is not None:
            return [self._settle(call, effect.result)]
        self._waits.watch(call, self._data.missing(keys_of(call.op)))
        return []

    def _arrive(self, call: Call, op: Barrier) -> list[Answer]:
        replaced = self._waits.arrive(call, op)
        if replaced is not None:
            # No rank has arrived that was not there before, so no call is released.
            after = f"a newer call of rank {op.rank} took over: "
            return [self._settle(replaced, self._waits.ranks_missing(after, op.name))]
        met = self._waits.met(op.name)
        # R10: a barrier counts for all of its ranks or for none.
        # The call that completes the barrier is the last to arrive. It is answered first.
        return [self._settle(each, StoreValue(None)) for each in (*met[-1:], *met[:-1])]

    def _keys_missing(self, after: str, op: DataOp) -> StoreFailure:
        keys = keys_of(op)
        missing = self._data.missing(keys)
        count, names = len(missing), tuple(missing[:NAMES_SHOWN_MAX])
        message = f"{after}{listed('keys do not exist', len(set(keys)), count, names)}"
        return StoreFailure(TIMEOUT, message, names, count)


# ---- what is remembered of a node ---------------------------------------------------------------


class AskAgain(enum.Enum):
    """In place of the answer of a large read, which is repeated when its node asks again."""

    ASK_AGAIN = enum.auto()


class ClientSessionPicture(FrozenStruct, frozen=True):
    """The acknowledged ids and the remembered answers of a node.

    An answer is None if the call was cancelled, or was a large read.
    """

    node: str
    acknowledged: float
    still_open: tuple[int, ...]
    answered: tuple[tuple[int, Answer | None], ...]


class ClientSession:
    """The calls of one incarnation of a node, and the answers to them. The term is Raft's.

    A call that is sent again is answered from here, and is not applied again (R11). This class must
    not use the data or the waits.
    """

    def __init__(self, tally: Tally) -> None:
        self._tally = tally
        # By request id: a call that waits, an answer that the node may ask for again, or None for a
        # call that was cancelled.
        self.calls: dict[int, Call | Answer | AskAgain | None] = {}
        self._reads: set[int] = set()  # The ids in `calls` of reads that were answered.
        self.answer_bytes = 0
        # Ids up to `_floor` are acknowledged, except those in `_open`. Larger ids are in the heap.
        self._floor: float = -math.inf
        self._open: dict[int, None] = {}
        self._ids: list[int] = []

    def admit(self, call: Call) -> None:
        """Record a new call, which is going to be applied."""
        self.calls[call.request_id] = call
        self._tally.kept += CALL_BYTES
        if call.request_id > self._floor:
            heappush(self._ids, call.request_id)

    def has_seen(self, request_id: int) -> bool:
        """Whether the request is a repeat."""
        # R11: up to the floor, except what is still open.
        acknowledged = request_id <= self._floor and request_id not in self._open
        return acknowledged or request_id in self.calls  # R11: or known here.

    def may_ask_again(self, request_id: int) -> bool:
        """Whether the request was a large read, which is made again."""
        return self.calls.get(request_id) is AskAgain.ASK_AGAIN

    def remembered(self, request_id: int) -> list[Answer]:
        """The answer to this request, if it is kept."""
        call = self.calls.get(request_id)
        return [call] if isinstance(call, Answer) else []  # R11: the same answer again.

    def remember(self, answer: Answer, op: StoreOp | None = None) -> None:
        """Keep the answer to an admitted call. `op` is None if it was no read."""
        size = result_bytes(answer.result)
        if size > REMEMBERED_READ_BYTES_MAX and type(op) in READS:
            self.calls[answer.request_id] = AskAgain.ASK_AGAIN
            return
        if self._tally.tells_reads and type(op) in READS:
            self._reads.add(answer.request_id)
        self.calls[answer.request_id] = answer
        if size:
            self.answer_bytes += size
            self._tally.kept += size

    def close(self, up_to: int, still_open: Iterable[int]) -> list[int]:
        """Acknowledge ids up to `up_to`. Returns the newly acknowledged ids that are known here."""
        if up_to < self._floor:  # R11: a late acknowledgement opens nothing again.
            return []  # A later acknowledgement has arrived before this one.
        # R11: open requests may be sent again.
        stays = {i: None for i in still_open if i in self._open or self._floor < i <= up_to}
        closed = [i for i in self._open if i not in stays]
        while self._ids and self._ids[0] <= up_to:
            closed.append(heappop(self._ids))
        if len(stays) != len(self._open):
            self._tally.kept += OPEN_ID_BYTES * (len(stays) - len(self._open))
        self._floor, self._open = up_to, stays
        # R11: an open call keeps its answer.
        return [i for i in closed if i in self.calls and i not in stays]

    def forget(self, request_id: int) -> None:
        """Drop an acknowledged request, and its answer."""
        call = self.calls.pop(request_id)
        self._tally.kept -= CALL_BYTES
        if isinstance(call, Answer):
            size = result_bytes(call.result)
            if size:
                self.answer_bytes -= size
                self._tally.kept -= size
            if self._reads:
                self._reads.discard(request_id)

    def kept(self) -> int:
        """This session's share of the tally, in bytes, if none of its calls waits."""
        own = CALL_BYTES * len(self.calls) + OPEN_ID_BYTES * len(self._open)
        return own + self.answer_bytes

    # -- for a snapshot, and from one ------------------------------------------------------------

    def acknowledged(self) -> tuple[int, tuple[int, ...]] | None:
        """The last acknowledgement, as it was passed to `close`; None if there was none."""
        return None if self._floor == -math.inf else (int(self._floor), tuple(self._open))

    def written(self) -> list[Answer]:
        """The remembered answers of calls other than reads."""
        answers = (each for each in self.calls.values() if isinstance(each, Answer))
        # R11: answers of calls that wrote go into the snapshot.
        return [each for each in answers if each.request_id not in self._reads]

    def restore_acknowledged(self, up_to: int, still_open: Iterable[int]) -> None:
        """Take the result of `acknowledged`, in one call or several, before any `restore`."""
        self._floor = up_to  # R11: the floor of the coordinator before.
        before = len(self._open)
        self._open.update(dict.fromkeys(still_open))
        self._tally.kept += OPEN_ID_BYTES * (len(self._open) - before)

    def restore(self, answer: Answer) -> None:
        """Remember an answer that another coordinator gave."""
        known = self.calls.get(answer.request_id)
        if isinstance(known, Answer):
            size = result_bytes(known.result)
            self.answer_bytes -= size
            self._tally.kept -= size
        else:
            self._tally.kept += CALL_BYTES
            if answer.request_id > self._floor:
                heappush(self._ids, answer.request_id)  # R11: so that it can be acknowledged.
        self.remember(answer)  # R11: the answer that the node may ask for again.

    def lengthen(self, request_id: int, more: bytes) -> None:
        """Add the next bytes of an answer that was restored in part."""
        known = self.calls.get(request_id)
        if isinstance(known, Answer):
            assert isinstance(known.result, StoreValue)
            assert isinstance(known.result.value, bytes)
            whole = StoreValue(known.result.value + more)
            self.restore(Answer(known.node, request_id, whole))

    def picture(self, node: str) -> ClientSessionPicture:
        """This session as a hashable value."""
        known = sorted(
            (i, c if isinstance(c, Answer) else None)
            for i, c in self.calls.items()
            if not isinstance(c, Call)
        )
        return ClientSessionPicture(node, self._floor, tuple(sorted(self._open)), tuple(known))


def result_bytes(result: StoreResult) -> int:
    """Memory of an answer's values or texts, in bytes."""
    if isinstance(result, StoreFailure):
        return len(result.message) + sum(map(len, result.missing))
    if isinstance(result.value, tuple):
        return sum(map(len, result.value))
    return len(result.value) if isinstance(result.value, bytes) else 0
