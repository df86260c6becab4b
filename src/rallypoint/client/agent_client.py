"""A worker's side of the local socket to its agent: the RunClient under `rallypoint run`.

The agent is the node. A worker has one world, and for the next round the agent starts a new worker;
or, with `--keep-workers`, a worker that asks for the next world keeps its process.
"""

from __future__ import annotations

import asyncio
import contextlib
import traceback
from collections.abc import Callable
from typing import Final, cast

import msgspec

from rallypoint import errors
from rallypoint.client import fork_safety
from rallypoint.client.run_client import WorldFacts, failure_of, is_programs_own, left_error
from rallypoint.client.stack_dump import dump_on_signal
from rallypoint.client.store_calls import COORDINATOR_LOST, no_answer, round_ended, store_error
from rallypoint.client.waiting import close_unconfirmed
from rallypoint.core.reasons import Waiting
from rallypoint.core.stacks import STEP_MAX
from rallypoint.core.store import StoreFailure, StoreOp, StoreResult
from rallypoint.core.values import (
    TEXT_LENGTH_MAX,
    Change,
    ChangeKind,
    CloseRecord,
    Drain,
    Outcome,
    RoundMember,
)
from rallypoint.settings import WorkerChannel, set_variables
from rallypoint.wire import local
from rallypoint.wire.messages import MalformedError, check_call

CONNECT_TIMEOUT_S: Final = 30.0
ANSWER_MARGIN_S: Final = 10.0
CLOSE_TIMEOUT_S: Final = 30.0
TRACE_LINES_MAX: Final = 30
"""How many last lines of its traceback a worker tells of an error."""
STEP_PAUSE_S: Final = 0.2
"""The least time between two messages to the agent about steps, in seconds."""

_SEE_AGENT: Final = "look at the log of this node's agent, `rallypoint run`"
_DENIED: Final = (
    "only workers of the agent's present round join through it; a program that is not a worker of "
    "`rallypoint run` must not have RALLYPOINT_AGENT set"
)


class AgentClient(asyncio.Protocol):
    """The RunClient of a worker: its connection to its agent."""

    def __init__(self, channel: WorkerChannel) -> None:
        loop = asyncio.get_running_loop()
        self.on_ended: Callable[[Change], None] = lambda change: None
        self.on_drain: Callable[[Drain], None] = lambda drain: None
        self.on_step: Callable[[int], None] = lambda step: None
        self.run_id = channel.run_id
        self.node_name = channel.node
        self._channel = channel
        self._transport: asyncio.Transport | None = None
        self._unframer = local.Unframer()
        self._admitted: asyncio.Future[local.Admitted] = loop.create_future()
        self._change: Change | None = None
        self._close: CloseRecord | None = None
        self._run_over: asyncio.Event = asyncio.Event()
        self._no_more_worlds: asyncio.Event = asyncio.Event()
        """The run is over, or the node departs."""
        self._results: dict[int, tuple[type, asyncio.Future[object]]] = {}
        """For each open request, the type of its answer and the future that gets it."""
        self._requests = 0
        self._step: int | None = None
        """The newest step that the agent does not know yet."""
        self._telling: asyncio.TimerHandle | None = None
        self._given = 0
        """The number of the last round that the program was given; 0 before the first."""
        self._asked = 0
        """The number of the last round that this worker has left for the next one."""
        self._raised = 0
        """The number of the last round of which this worker has told its error."""
        self._untold: local.Raised | None = None
        """An error of the present round that the agent learns by the end of this process."""
        self._news: asyncio.Event = asyncio.Event()
        """Set by each message that may end a wait."""
        self._has_left = False
        self._departs = False
        self._drain: Drain | None = None
        self._stops_at: int | None = None
        self._lost: errors.CoordinatorLostError | None = None

    @classmethod
    async def open(cls, channel: WorkerChannel) -> AgentClient:
        """Connect to the agent, which must admit this worker. Raises UnreachableError."""
        loop = asyncio.get_running_loop()
        address = socket_address(channel.agent)
        try:
            async with asyncio.timeout(CONNECT_TIMEOUT_S):
                _, client = await loop.create_unix_connection(lambda: cls(channel), address)
                await client._until_admitted()
        except OSError as error:
            raise errors.UnreachableError(
                f"this worker's agent does not answer at {channel.agent}: {error}",
                hint="RALLYPOINT_AGENT is set by `rallypoint run`; start the program with it",
            ) from error
        return client

    async def _until_admitted(self) -> None:
        try:
            await self._admitted
        except BaseException:
            await self.aclose()
            raise

    # -- RunClient -----------------------------------------------------------------------------

    @property
    def closed(self) -> CloseRecord | None:
        return self._close

    @property
    def change(self) -> Change | None:
        return self._change

    @property
    def gone(self) -> errors.CoordinatorError | None:
        return self._lost

    async def next_world(self, timeout_s: float | None) -> WorldFacts | None:
        """The next world of this worker. A second call leaves the present one.

        If the agent keeps workers, it answers with the next round. Else it stops this process, and
        starts another one for it. Returns None if the run is closed before, or if the node is going
        to leave it.
        """
        if self._has_no_more_worlds():
            return None
        if self._has_left:
            raise left_error()
        admitted = await self._admitted
        given = self._given
        if admitted.head.number == given and admitted.explain_s is not None:
            await self._until_next(given)
            if self._has_no_more_worlds():
                return None
            if self._lost is not None:
                raise self._lost
            admitted = self._admitted.result()
        # Two threads that have asked at once get the same round.
        if admitted.head.number != given:
            self._given = admitted.head.number
            # Here, as the program waits for this call: C libraries may read variables meanwhile.
            set_variables(admitted.variables)
            local_rank, place = self._channel.local_rank, (self.run_id, admitted.ledger_id)
            return WorldFacts(admitted.node, admitted.head, admitted.seat, local_rank, *place)
        if self._change is None:
            self._send(local.Regroup())
        await self._no_more_worlds.wait()
        if not self._has_no_more_worlds() and self._lost is not None:
            raise self._lost
        return None

    async def _until_next(self, number: int) -> None:
        """Leave round `number`, and wait for the next one, or for the end of the run."""
        if self._asked != number:
            self._asked = number
            if self._change is None:
                if self._untold is not None:
                    # The program has caught it, and goes on: no end of a process tells of it.
                    self._send(self._untold)
                # R4: from now on, no call of this world reaches the store of the next one.
                self._take_change(Change(ChangeKind.READY_AGAIN, number, (self.node_name,), 1))
            self._send(local.AskWorld(number))
        while not self._no_more_worlds.is_set():
            self._news.clear()
            if self._admitted.result().head.number != number:
                return
            await self._news.wait()

    def _has_no_more_worlds(self) -> bool:
        return self._close is not None or self._departs

    @property
    def drain(self) -> Drain | None:
        return self._drain

    @property
    def step(self) -> int | None:
        return self._stops_at

    def takes_part(self) -> None:
        self._send(local.TakesPart())

    def promise(self, step: int) -> None:
        self._send(local.Promise(step))

    def yielded(self, number: int) -> None:
        if number == self._channel.round and number != self._asked:
            self._send(local.Yielded())

    async def call(self, op: StoreOp, timeout_s: float | None) -> StoreResult:
        if self._change is not None:
            return round_ended(self._change)
        too_large = check_call(op)
        if too_large is not None:
            return too_large
        request_id = self._next_request()
        limit_s = None if timeout_s is None else timeout_s + ANSWER_MARGIN_S
        call = local.Call(request_id, op, timeout_s)
        try:
            told = await self._request(call, local.Answer, request_id, limit_s)
        except TimeoutError:
            return no_answer("the agent", limit_s)
        if isinstance(told, errors.CoordinatorLostError):
            return StoreFailure(COORDINATOR_LOST, told.message)
        assert isinstance(told, local.Answer)
        return told.result

    async def members(self) -> tuple[RoundMember, ...]:
        request_id = self._next_request()
        told = await self._ask(local.AskMembers(request_id), local.Members, request_id)
        assert isinstance(told, local.Members)
        if told.error:
            raise errors.StoreError(told.error, hint=_SEE_AGENT)
        return told.members

    async def waiting(self) -> Waiting | None:
        """What the run waits for, from the agent's node; None if nothing.

        Raises CoordinatorLostError, with the agent's reason, if there is no coordinator.
        """
        request_id = self._next_request()
        told = await self._ask(local.AskWaiting(request_id), local.WaitingIs, request_id)
        assert isinstance(told, local.WaitingIs)
        if told.error:
            raise errors.CoordinatorLostError(told.error, hint=_SEE_AGENT)
        return told.waiting

    async def is_explained(self, error: Exception, number: int) -> bool:
        """Whether the end of the round explains the error.

        If the agent keeps no workers, it learns of this worker's failure by its exit. While the
        cause is not known, this error may be the cause, so the worker must exit with it. If it
        keeps them, it is told of the error, and the worker waits for the cause.
        """
        is_own = is_programs_own(error)
        is_confirmed = self._change is not None and self._change.confirmed
        if not is_own and (is_confirmed or isinstance(error, errors.RoundBrokenError)):
            return True
        admitted = self._admitted.result() if self._is_admitted else None
        is_other = isinstance(error, errors.CoordinatorError | errors.UsageError)
        if admitted is None or admitted.explain_s is None or is_other or is_confirmed:
            return False
        if admitted.head.number != number or self._raised == number:
            return False
        told = self._raised_by(error, admitted)
        if is_own:
            self._untold = told
            return False
        self._raised = number
        self._send(told)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(admitted.explain_s):
                await self._until_confirmed()
        return self._is_explained_by(self._change)

    def _raised_by(self, error: Exception, admitted: local.Admitted) -> local.Raised:
        lines = "".join(traceback.format_exception(error)).splitlines()[-TRACE_LINES_MAX:]
        lines = [line[:TEXT_LENGTH_MAX] for line in lines]
        failure = failure_of(error, admitted.seat.first_rank + self._channel.local_rank)
        return local.Raised(msgspec.structs.replace(failure, last_lines=tuple(lines)))

    async def _until_confirmed(self) -> None:
        while self._change is None or not self._change.confirmed:
            if self._no_more_worlds.is_set():
                return
            self._news.clear()
            await self._news.wait()

    def _is_explained_by(self, change: Change | None) -> bool:
        """Whether this cause is another one than this worker's own error."""
        if change is None or not change.confirmed:
            return False
        failure = change.failure
        is_here = change.kind is ChangeKind.WORKER_FAILED and self.node_name in change.nodes
        return not is_here or (
            failure is not None and failure.local_rank not in (None, self._channel.local_rank)
        )

    def progress(self, number: int, step: int) -> None:
        admitted = self._admitted.result() if self._is_admitted else None
        if admitted is None or not admitted.takes_progress or self._change is not None:
            return
        if number != self._channel.round:
            return
        # A program may report a thousand steps a second. The agent needs the newest one soon.
        self._step = step
        if self._telling is None:
            self._tell_step()
            loop = asyncio.get_running_loop()
            self._telling = loop.call_later(STEP_PAUSE_S, self._may_tell_again)

    def _may_tell_again(self) -> None:
        self._telling = None
        if self._step is not None:
            self.progress(self._channel.round, self._step)

    def _tell_step(self) -> None:
        assert self._step is not None
        self._send(local.Progressed(max(-STEP_MAX, min(self._step, STEP_MAX))))
        self._step = None

    @property
    def _is_admitted(self) -> bool:
        return self._admitted.done() and self._admitted.exception() is None

    async def leave(self, reason: str) -> None:
        self._has_left = True
        self._send(local.Leave(reason))

    @property
    def has_left(self) -> bool:
        return self._has_left

    async def give_up(self, error: BaseException) -> None:
        """Does nothing: the agent sees how this process ends, and reports that."""

    async def close(self, outcome: Outcome, reason: str) -> CloseRecord:
        self._send(local.Close(outcome, reason))
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(CLOSE_TIMEOUT_S):
                await self._run_over.wait()
        if self._close is None:
            raise self._lost or close_unconfirmed("the agent", CLOSE_TIMEOUT_S)
        return self._close

    async def aclose(self) -> None:
        if self._transport is not None:
            self._transport.close()

    def filenos(self) -> list[int]:
        """See fork_safety.Group."""
        sock = self._transport.get_extra_info("socket") if self._transport else None
        return [sock.fileno()] if sock is not None else []

    # -- asyncio.Protocol ----------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Tell the agent which worker this is."""
        # uvloop's transports have these methods, but do not derive from asyncio's classes.
        self._transport = cast(asyncio.Transport, transport)
        fork_safety.close_all_in_children(self)
        channel = self._channel
        self._send(local.Hello(channel.secret, channel.round, channel.local_rank))

    def data_received(self, data: bytes) -> None:
        """Handle the agent's messages."""
        try:
            for body in self._unframer.feed(data):
                self._take(local.decode_from_agent(body))
        except MalformedError:
            assert self._transport is not None
            self._transport.abort()

    def connection_lost(self, error: Exception | None) -> None:
        """The agent has ended, or this side has closed."""
        self._lost = errors.CoordinatorLostError(
            "this worker's agent is gone", hint="the agent of this node has ended or was killed"
        )
        self._refuse(self._lost)
        for _, future in self._results.values():
            if not future.done():
                future.set_result(self._lost)
        self._end_run()

    def _take(self, message: local.FromAgent) -> None:
        match message:
            case local.Admitted():
                self._take_round(message)
                if message.ended is not None:
                    self._take_change(message.ended)
            case local.Denied():
                self._refuse(errors.UnreachableError(message.message, hint=_DENIED))
            case local.Answer() | local.Members() | local.WaitingIs():
                self._resolve(message)
            case local.Ended():
                self._take_change(message.change)
            case local.RunClosed():
                self._close = message.close
                self._end_run()
            case local.Drains():
                self._drain = message.drain
                self.on_drain(message.drain)
            case local.StopAt():
                self._stops_at = message.step
                self.on_step(message.step)
            case local.Departing():
                self._depart(message.reason)

    def _refuse(self, error: errors.RallypointError) -> None:
        if not self._admitted.done():
            self._admitted.set_exception(error)
            self._admitted.exception()  # The caller may have given up.

    def _take_round(self, admitted: local.Admitted) -> None:
        """This worker has a place in a round: its first one, or it was kept for another."""
        if self._admitted.done():
            self._admitted = asyncio.get_running_loop().create_future()
            head, seat = admitted.head, admitted.seat
            self._channel = msgspec.structs.replace(
                self._channel,
                secret=admitted.variables.get("RALLYPOINT_AGENT_SECRET", ""),
                round=head.number,
                term=head.term,
                rank=seat.first_rank + self._channel.local_rank,
                world_size=head.size,
                node_rank=seat.node_rank,
                nodes=head.nodes,
            )
            self._change = self._drain = self._stops_at = self._step = self._untold = None
        self._admitted.set_result(admitted)
        self._offer_stacks(admitted.stacks)
        self._news.set()

    def _offer_stacks(self, path: str) -> None:
        """Let the agent see where this process stands, also while it holds the GIL."""
        dumps = dump_on_signal(path) if path else None
        if dumps is not None:
            self._send(local.DumpsStacks(*dumps))

    def _end_run(self) -> None:
        self._run_over.set()
        self._no_more_worlds.set()
        self._news.set()

    def _depart(self, reason: str) -> None:
        """End the world here, because the coordinator may never tell the end of the round."""
        self._departs = True
        self._no_more_worlds.set()
        self._news.set()
        if self._change is None:
            channel = self._channel
            left = ChangeKind.NODE_LEFT
            self._take_change(Change(left, channel.round, (channel.node,), 1, reason))

    def _take_change(self, change: Change) -> None:
        self._change = change
        self._news.set()
        self.on_ended(change)

    # -- requests ------------------------------------------------------------------------------

    def _send(self, message: local.LocalMessage) -> None:
        if self._transport is not None and not self._transport.is_closing():
            self._transport.write(local.encode(message))

    def _next_request(self) -> int:
        self._requests += 1
        return self._requests

    async def _ask(self, message: local.LocalMessage, kind: type, request_id: int) -> object:
        """Like `_request`, but raises StoreTimeoutError or CoordinatorLostError."""
        try:
            told = await self._request(message, kind, request_id, CONNECT_TIMEOUT_S)
        except TimeoutError:
            raise store_error(no_answer("the agent", CONNECT_TIMEOUT_S)) from None
        if isinstance(told, errors.CoordinatorLostError):
            raise told
        return told

    async def _request(
        self, message: local.LocalMessage, kind: type, request_id: int, timeout_s: float | None
    ) -> object:
        """The answer, or the CoordinatorLostError that prevents it. Raises TimeoutError."""
        if self._lost is not None:
            return self._lost
        future: asyncio.Future[object] = asyncio.get_running_loop().create_future()
        self._results[request_id] = kind, future
        self._send(message)
        try:
            async with asyncio.timeout(timeout_s):
                return await future
        finally:
            del self._results[request_id]
            if not future.done() or future.cancelled():
                self._send(local.Cancel(request_id))

    def _resolve(self, answer: local.Answer | local.Members | local.WaitingIs) -> None:
        kind, future = self._results.get(answer.request_id, (type(answer), None))
        if not isinstance(answer, kind):
            raise MalformedError("the type of an answer does not match its request")
        if future is not None and not future.done():
            future.set_result(answer)


def socket_address(path: str) -> str:
    """A channel's path in the system's form: "@name" is in Linux's namespace without files."""
    return "\0" + path[1:] if path.startswith("@") else path
