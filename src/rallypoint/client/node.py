"""One node of a run in an asyncio event loop: the machine, its connection, and what waits for it.

This is what the agent, the blocking API and the async API stand on. It carries out the machine's
actions, keeps a connection open (or carries the coordinator itself), and turns what the machine is
told into results and errors for whoever waits. Every wait has a deadline and says what it was for.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import TYPE_CHECKING, Final

import msgspec

from rallypoint import errors
from rallypoint._version import __version__
from rallypoint.client import machine as m
from rallypoint.client.finding import (
    Attempts,
    Pauses,
    describe_os_error,
    dial,
    may_host,
    target_of,
)
from rallypoint.client.identity import node_info
from rallypoint.client.transport import Connection
from rallypoint.core.reasons import Waiting
from rallypoint.core.store import ROUND_ENDED, TIMEOUT, StoreFailure, StoreOp
from rallypoint.core.values import (
    Address,
    Change,
    ChangeKind,
    CloseRecord,
    Failure,
    Outcome,
    RoundHead,
    RoundMember,
    RunSettings,
    Seat,
)
from rallypoint.settings import EndpointKind, NodeSettings
from rallypoint.wire import messages as wire

if TYPE_CHECKING:
    from rallypoint.client.embedded import EmbeddedCoordinator

_log = logging.getLogger("rallypoint.client")

WHY_TIMEOUT_S: Final = 1.0
"""How long an error waits to be told why a round is not there yet."""
LET_IN_S: Final = 5.0
"""How long a coordinator that was reached may take to let the node in, at least."""
DIAL_MIN_S: Final = 0.5
"""How long an address is given, however little time is left: else the error would say nothing."""
STANDBY_LOOK_S: Final = 1.0
"""How often, at most, a standby whose time is over looks whether a round is on without it."""
ASK_TIMEOUT_S: Final = 30.0
"""How long a question may take that waits for nothing."""
ANSWER_MARGIN_S: Final = 5.0
"""How much later than the coordinator this side gives up a call of the store."""
LOOPBACKS: Final = ("127.0.0.1", "::1", "::ffff:127.0.0.1")


class Round(msgspec.Struct, frozen=True):
    """A round and this node's seat in it."""

    head: RoundHead
    seat: Seat


class Node:
    """One node. All methods are for the event loop in which `open` was called.

    `on_ended`, `on_closed`, `on_gone` are called from the loop when the round ends (again, when
    its cause becomes known), when the run is closed, and when nothing can come any more because
    the coordinator refused the node or is lost.
    """

    def __init__(self, settings: NodeSettings, run: RunSettings, *, workers: int = 1) -> None:
        self.settings = settings
        self.info = node_info(settings, workers)
        self.on_ended: Callable[[Change], None] = lambda change: None
        self.on_closed: Callable[[CloseRecord], None] = lambda close: None
        self.on_gone: Callable[[errors.CoordinatorError], None] = lambda error: None
        self.on_standby: Callable[[], None] = lambda: None
        self.hosted: EmbeddedCoordinator | None = None
        self._machine = m.NodeMachine(
            settings.run_id,
            self.info,
            run,
            silence_s=settings.coordinator_silence_s,
            software=f"rallypoint {__version__}",
        )
        self._gone: errors.CoordinatorError | None = None
        self._connection: Connection | None = None
        self._reconnecting: asyncio.Task[None] | None = None
        self._tick: asyncio.TimerHandle | None = None
        self._results: dict[int, asyncio.Future[object]] = {}
        self._changed: list[asyncio.Future[None]] = []
        self._is_closing = False
        self._lost_s: float | None = None
        self._taken = 0

    # -- what is known -------------------------------------------------------------------------

    @property
    def change(self) -> Change | None:
        """Why the node's last round ended; None while it is on."""
        return self._machine.ended

    @property
    def round(self) -> Round | None:
        """The last round that the node had a seat in."""
        head, seat = self._machine.head, self._machine.seat
        return Round(head, seat) if head is not None and seat is not None else None

    @property
    def closed(self) -> CloseRecord | None:
        """How the run ended; None while it is on."""
        return self._machine.closed

    @property
    def gone(self) -> errors.CoordinatorError | None:
        """Why nothing can come any more: refused, superseded, or the coordinator is lost."""
        return self._gone

    @property
    def is_connected(self) -> bool:
        """Whether the coordinator has this node attached now."""
        return self._machine.is_attached

    @property
    def bootstrap_host(self) -> str:
        """An address of this machine that the other nodes can reach."""
        if self.settings.local_addr:
            return self.settings.local_addr
        if self.hosted is not None and self.settings.endpoint.kind is EndpointKind.HOST:
            return self.settings.endpoint.host
        host = self._connection.local_host if self._connection else "127.0.0.1"
        return "127.0.0.1" if host in LOOPBACKS else host.removeprefix("::ffff:")

    # -- coming --------------------------------------------------------------------------------

    async def open(self) -> None:
        """Find the coordinator, or become it, and attach.

        Raises UnreachableError after `connect_timeout_s`, and any RefusedError or
        NotACoordinatorError at once. Cancelling it, or an error, leaves nothing open.
        """
        limit_s = self.settings.connect_timeout_s
        began_s = self._now_s()
        try:
            if self.settings.endpoint.kind is EndpointKind.LOCAL:
                await self._host_for_itself()
            await self._connect(began_s + limit_s)
            left_s = began_s + limit_s - self._now_s()
            await self._until(lambda: self.is_connected, max(left_s, LET_IN_S))
            if not self.is_connected and self.closed is None:
                raise errors.UnreachableError(
                    f"{self._target()} was reached, but did not let this node in within "
                    f"{self._now_s() - began_s:.1f} s",
                    hint="the coordinator may be stopped or overloaded",
                )
        except BaseException:
            await self.aclose(linger=False)
            raise

    async def _connect(self, ends_s: float) -> None:
        """Dial until somebody answers; if that is nobody, and this the host, be it."""
        began_s = self._now_s()
        attempts, pauses = Attempts(self._target()), Pauses()
        may_be_host: bool | None = None if self.hosted is None else False
        while True:
            left_s = ends_s - self._now_s()
            connection = await dial(
                self._target(), self.settings.token, attempts, max(left_s, DIAL_MIN_S)
            )
            if connection is not None:
                self._use(connection)
                return
            if may_be_host is None:
                may_be_host = await may_host(self.settings)
            if may_be_host and (attempts.only_refused or attempts.unresolved):
                may_be_host = not await self._host(attempts)
                if not may_be_host:
                    continue
            left_s = ends_s - self._now_s()
            if left_s <= 0:
                raise attempts.error(self._now_s() - began_s)
            await asyncio.sleep(min(pauses.next_s(), left_s))

    def _target(self) -> Address:
        """Where to dial: whoever carries the coordinator reaches it without any name."""
        return self.hosted.address if self.hosted else target_of(self.settings)

    async def _host(self, attempts: Attempts) -> bool:
        """Become the coordinator. False if that cannot be: most often, another node has."""
        target = self._target()
        try:
            await self._start_hosting(target.host, target.port)
        except OSError as error:
            attempts.not_hosting = describe_os_error(error)
            return False
        return True

    async def _host_for_itself(self) -> None:
        try:
            await self._start_hosting("127.0.0.1", 0)
        except OSError as error:
            why = describe_os_error(error)
            raise errors.UnreachableError(f"cannot listen on this machine: {why}") from error

    async def _start_hosting(self, host: str, port: int) -> None:
        from rallypoint.client.embedded import EmbeddedCoordinator

        self.hosted = await EmbeddedCoordinator.start(
            self.settings.run_id, self.settings.token, host, port
        )

    def _use(self, connection: Connection) -> None:
        self._connection = connection
        connection.on_message = self._received
        connection.on_closed = lambda reason: self._lost(connection, reason)
        self._act(self._machine.connected(self._now_s()))

    # -- losing and finding the coordinator again ----------------------------------------------

    def _lost(self, connection: Connection, reason: str) -> None:
        if connection is not self._connection:
            return
        self._connection = None
        self._machine.disconnected()
        self._schedule_tick()
        if self._is_closing or self._machine.is_over or self._gone is not None:
            self._notify()
        elif self._machine.wish is m.Wish.GONE and connection.was_closed_by_peer:
            self._give_up(errors.CoordinatorLostError("this node has left the run"))
        elif self._reconnecting is None:
            _log.info("the connection to the coordinator is lost: %s", reason)
            self._lost_s = self._lost_s or self._now_s()
            self._reconnecting = asyncio.get_running_loop().create_task(self._reconnect(reason))

    async def _reconnect(self, reason: str) -> None:
        """Dial until somebody answers, or `coordinator_lost_after_s` is over.

        That time begins when the node was last attached: to be answered is not to be let in.
        """
        lost_s = self._lost_s or self._now_s()
        ends_s = lost_s + self.settings.coordinator_lost_after_s
        attempts, pauses = Attempts(self._target()), Pauses()
        try:
            while True:
                left_s = ends_s - self._now_s()
                connection = await dial(
                    self._target(), self.settings.token, attempts, max(left_s, DIAL_MIN_S)
                )
                left_s = ends_s - self._now_s()
                if connection is not None and left_s > 0:
                    self._use(connection)
                    return
                if connection is not None:
                    connection.abort("too late")
                if left_s <= 0:
                    raise attempts.error(self._now_s() - lost_s)
                await asyncio.sleep(min(pauses.next_s(), left_s))
        except errors.CoordinatorError as error:
            self._give_up(self._lost_error(error, reason))
        finally:
            self._reconnecting = None

    def _lost_error(
        self, error: errors.CoordinatorError, reason: str
    ) -> errors.CoordinatorLostError:
        return errors.CoordinatorLostError(
            f"the coordinator of run {self.settings.run_id!r} is lost ({reason}): {error.message}",
            hint="the run ends with its coordinator's process; start it again, or use "
            "`rallypoint serve` on a machine that stays",
        )

    def _give_up(self, error: errors.CoordinatorError) -> None:
        self._gone = error
        self._fail_results(error)
        self.on_gone(error)
        self._notify()

    # -- messages and ticks --------------------------------------------------------------------

    def _received(self, data: bytes) -> None:
        try:
            message = wire.decode_from_coordinator(data)
        except wire.MalformedError as error:
            if self._connection is not None:
                self._connection.abort(f"it sent what is no message: {error}")
            return
        self._act(self._machine.received(message, self._now_s()))

    def _act(self, actions: list[m.Action]) -> None:
        for action in actions:
            _DO[type(action)](self, action)
        self._schedule_tick()

    def _now_s(self) -> float:
        return asyncio.get_running_loop().time()

    def _schedule_tick(self) -> None:
        due_s = self._machine.next_tick_s()
        if self._tick is not None and self._tick.when() != due_s:
            self._tick.cancel()
            self._tick = None
        if due_s is not None and self._tick is None:
            self._tick = asyncio.get_running_loop().call_at(due_s, self._on_tick)

    def _on_tick(self) -> None:
        self._tick = None
        self._act(self._machine.tick(self._now_s()))

    def _send(self, action: m.Send) -> None:
        if self._connection is not None:
            self._connection.send(wire.encode(action.message))

    def _drop(self, action: m.Drop) -> None:
        if self._connection is not None:
            self._connection.abort(action.reason)

    def _attached(self, action: m.Attached) -> None:
        self._lost_s = None
        self._notify()

    def _round_formed(self, action: m.RoundFormed) -> None:
        self._notify()

    def _round_ended(self, action: m.RoundEnded) -> None:
        broken = errors.RoundBrokenError(action.change)
        for request_id in [i for i in self._results if not self._machine.is_open(i)]:
            self._fail(request_id, broken)
        self.on_ended(action.change)
        self._notify()

    def _run_ended(self, action: m.RunEnded) -> None:
        self.on_closed(action.close)
        self._notify()

    def _was_refused(self, action: m.WasRefused) -> None:
        self._give_up(errors.refused(action.refusal))

    def _call_answered(self, action: m.CallAnswered) -> None:
        self._resolve(action.request_id, action.result)

    def _told(self, action: m.MembersTold | m.WaitingTold) -> None:
        self._resolve(action.request_id, action)

    def _on_standby(self, action: m.PlacedOnStandby) -> None:
        self.on_standby()

    # -- rounds --------------------------------------------------------------------------------

    async def next_round(
        self, bootstrap: Address, *, workers: int | None = None, timeout_s: float | None = None
    ) -> Round | None:
        """Be ready, and wait for the next round. None if the run was closed instead.

        Leaves the round the node is in, which breaks it for all. A round that was formed when
        nobody waited any more (an earlier call timed out or was cancelled) is taken if it is still
        on. `timeout_s` None: the settings' `join_timeout_s`. A standby has no deadline while the
        round is on without it.

        Raises JoinTimeoutError, RefusedError or CoordinatorLostError.
        """
        limit_s = self.settings.join_timeout_s if timeout_s is None else timeout_s
        if not (self._has_untaken_round() and self.change is None):
            self._taken = self._machine.number
            count = workers if workers is not None else self.info.workers
            self._act(self._machine.ready(bootstrap, count))
        await self._until_round(limit_s)
        if not self._has_untaken_round():
            return None
        self._taken = self._machine.number
        return self.round

    async def _until_round(self, limit_s: float) -> None:
        """Wait for a round or the end of the run. Raises as `next_round`."""
        while True:
            await self._until(self._has_untaken_round, limit_s)
            if self._has_untaken_round() or self.closed is not None:
                return
            has_answered, waiting = await self._why_waiting()
            is_on_standby = self._machine.is_standby and has_answered and waiting is None
            if not is_on_standby and not self._has_untaken_round():
                raise self._join_timeout(limit_s, waiting)
            limit_s = max(limit_s, STANDBY_LOOK_S)

    def _has_untaken_round(self) -> bool:
        return self._machine.number > self._taken

    def _join_timeout(self, limit_s: float, waiting: Waiting | None) -> errors.RallypointError:
        why = str(waiting) if waiting else "the coordinator does not say why"
        return errors.JoinTimeoutError(
            f"no round of run {self.settings.run_id!r} was formed within {limit_s:g} s: {why}",
            hint="start the missing nodes, lower the minimum, or raise the join timeout",
            waiting=waiting,
        )

    async def _why_waiting(self) -> tuple[bool, Waiting | None]:
        """Whether the coordinator answers, and what."""
        try:
            async with asyncio.timeout(WHY_TIMEOUT_S):
                return True, await self.waiting()
        except (TimeoutError, errors.CoordinatorError):
            return False, None

    async def waiting(self) -> Waiting | None:
        """Why there is no round yet, from the coordinator; None if there is one.

        Raises CoordinatorLostError.
        """
        request_id, actions = self._machine.ask_waiting()
        told = await self._ask(request_id, actions, ASK_TIMEOUT_S)
        assert isinstance(told, m.WaitingTold)
        return told.waiting

    async def members(self, timeout_s: float | None = ASK_TIMEOUT_S) -> tuple[RoundMember, ...]:
        """The members of the node's round, in node-rank order.

        Raises RoundBrokenError if the run has gone on to another round meanwhile.
        """
        current = self.round
        request_id, actions = self._machine.ask_members()
        told = await self._ask(request_id, actions, timeout_s)
        assert isinstance(told, m.MembersTold)
        # R2: the table is the one that the round's head was made of. The digest is compared and
        # not computed, as a later coordinator may count fields that this side does not know.
        head = current.head if current else None
        if head is None or (told.number, told.digest) != (head.number, head.digest):
            raise errors.RoundBrokenError(self._stale_change(current))
        return told.members

    async def _ask(
        self, request_id: int, actions: list[m.Action], timeout_s: float | None
    ) -> object:
        try:
            return await self._request(request_id, actions, timeout_s)
        except TimeoutError:
            message = f"the coordinator has not answered for {timeout_s:g} s"
            raise errors.CoordinatorLostError(message) from None

    def _stale_change(self, current: Round | None) -> Change:
        number = current.head.number if current else 0
        detail = "the run has gone on to another round"
        return self.change or Change(ChangeKind.NODE_LOST, number, detail=detail)

    async def call(self, op: StoreOp, timeout_s: float | None) -> object:
        """A call of the round's store; its result.

        Raises StoreTimeoutError, StoreError, RoundBrokenError, or a CoordinatorError.
        """
        self._check_round()
        wire.check_call(op)
        request_id, actions = self._machine.call(op, timeout_s)
        limit_s = None if timeout_s is None else timeout_s + ANSWER_MARGIN_S
        try:
            result = await self._request(request_id, actions, limit_s)
        except TimeoutError:
            message = f"the coordinator has not answered for {limit_s:g} s"
            raise errors.StoreTimeoutError(message) from None
        if isinstance(result, StoreFailure):
            raise self._store_error(result)
        return result.value  # type: ignore[attr-defined]

    def _check_round(self) -> None:
        if self._gone is not None:
            raise self._gone
        if self.change is not None:
            raise errors.RoundBrokenError(self.change)
        if self.round is None:
            raise errors.StoreError("the store belongs to a round, and this node has had none")

    def _store_error(self, failure: StoreFailure) -> errors.RallypointError:
        if failure.code == ROUND_ENDED:
            return errors.RoundBrokenError(self._stale_change(self.round))
        if failure.code == TIMEOUT:
            return errors.StoreTimeoutError(
                failure.message, missing=failure.missing, count=failure.missing_count
            )
        return errors.StoreError(failure.message, code=failure.code)

    def failed(self, failure: Failure) -> None:
        """Report a worker's failure: it breaks the round, and the cause is looked for."""
        self._act(self._machine.failed(failure))

    def done(self) -> None:
        """Report that all workers have finished."""
        self._act(self._machine.done())

    async def cause(self, timeout_s: float) -> Change | None:
        """Wait until the end of the round is confirmed: its cause. None if it is not in time."""
        await self._until(lambda: self.change is not None and self.change.confirmed, timeout_s)
        return self.change if self.change is not None and self.change.confirmed else None

    # -- going ---------------------------------------------------------------------------------

    def depart(self, reason: str) -> None:
        """Say that this node is going to leave: the others regroup without waiting for it."""
        self._act(self._machine.depart(reason))

    async def close_run(self, outcome: Outcome, reason: str, timeout_s: float) -> CloseRecord:
        """End the run for all; how it ended (somebody may have closed it before).

        Raises CoordinatorLostError or TimeoutError.
        """
        self._act(self._machine.close(outcome, reason))
        await self._until(lambda: self.closed is not None, timeout_s)
        if self.closed is None:
            if self._gone is not None:
                raise self._gone
            raise errors.CoordinatorLostError(
                f"the coordinator did not confirm within {timeout_s:g} s that the run is closed"
            )
        return self.closed

    def goodbye(self, reason: str) -> None:
        """Say that nothing of this node runs any more."""
        self._act(self._machine.goodbye(reason))

    async def aclose(self, *, linger: bool = True) -> None:
        """Close the connection and, after lingering, the coordinator that this node carries.

        A goodbye has `goodbye_timeout_s` to be heard, also over a connection that is lost just now.
        A host stays `linger_s` for the others to say goodbye, and while a live run needs it.
        Idempotent. Cancelling it cuts everything short.
        """
        hosted, self.hosted = self.hosted, None
        try:
            await self._hang_up(hosted)
            if hosted is not None and linger:
                await self._stay_for_the_run(hosted)
                await hosted.linger(self.settings.linger_s)
        finally:
            if hosted is not None:
                await hosted.aclose()

    async def _hang_up(self, hosted: EmbeddedCoordinator | None) -> None:
        if self._machine.wish is m.Wish.GONE and (self._connection or self._reconnecting):
            # The coordinator answers a goodbye by closing the connection in due form.
            await self._until(lambda: self._gone is not None, self.settings.goodbye_timeout_s)
        self._is_closing = True
        reconnecting = self._reconnecting
        if reconnecting is not None:
            reconnecting.cancel()
            await asyncio.wait([reconnecting])
        self._fail_results(errors.CoordinatorLostError("this node has left the run"))
        connection, self._connection = self._connection, None
        self._machine.disconnected()
        self._schedule_tick()
        if connection is not None:
            connection.close("this node is going")
            try:
                await connection.wait_closed()
            except asyncio.CancelledError:
                connection.abort("this node is going")
                raise

    async def _stay_for_the_run(self, hosted: EmbeddedCoordinator) -> None:
        """R7: the run of the others does not end because its host has left it."""
        if self.closed is not None or not (hosted.is_run_open and hosted.others):
            return
        _log.warning(
            "this node carries the coordinator of run %r and stays until the run ends: "
            "%d connections are left (ending it now, by Ctrl-C or a signal, ends the run)",
            self.settings.run_id,
            hosted.others,
        )
        await hosted.run_over()

    # -- waiting -------------------------------------------------------------------------------

    async def _until(self, is_so: Callable[[], bool], timeout_s: float) -> None:
        """Wait until something is so, the run is closed, the node is gone, or the time is over.

        Raises what made the node gone, unless what was waited for is so.
        """
        loop = asyncio.get_running_loop()
        ends_s = loop.time() + timeout_s
        while not is_so():
            if self._gone is not None:
                raise self._gone
            left_s = ends_s - loop.time()
            if self.closed is not None or left_s <= 0:
                return
            await self._wait_for_change(left_s)

    async def _wait_for_change(self, timeout_s: float) -> None:
        waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._changed.append(waiter)
        try:
            async with asyncio.timeout(timeout_s):
                await waiter
        except TimeoutError:
            pass
        finally:
            if waiter in self._changed:
                self._changed.remove(waiter)

    def _notify(self) -> None:
        waiters, self._changed = self._changed, []
        for waiter in waiters:
            if not waiter.done():
                waiter.set_result(None)

    async def _request(
        self, request_id: int, actions: list[m.Action], timeout_s: float | None
    ) -> object:
        """Send a request and wait for its answer. Raises TimeoutError, on this side's deadline.

        Without one the wait still ends: with the round, or with the coordinator.
        """
        if self._gone is not None or self._is_closing:
            self._machine.cancel(request_id)
            raise self._gone or errors.CoordinatorLostError("this node has left the run")
        future: asyncio.Future[object] = asyncio.get_running_loop().create_future()
        self._results[request_id] = future
        try:
            self._act(actions)
            async with asyncio.timeout(timeout_s):
                return await future
        finally:
            self._results.pop(request_id, None)
            self._act(self._machine.cancel(request_id))

    def _resolve(self, request_id: int, result: object) -> None:
        future = self._results.get(request_id)
        if future is not None and not future.done():
            future.set_result(result)

    def _fail(self, request_id: int, error: Exception) -> None:
        future = self._results.get(request_id)
        if future is not None and not future.done():
            future.set_exception(error)

    def _fail_results(self, error: Exception) -> None:
        for request_id in list(self._results):
            self._fail(request_id, error)


_DO: dict[type[object], Callable[..., None]] = {
    m.Send: Node._send,
    m.Drop: Node._drop,
    m.Attached: Node._attached,
    m.RoundFormed: Node._round_formed,
    m.RoundEnded: Node._round_ended,
    m.RunEnded: Node._run_ended,
    m.WasRefused: Node._was_refused,
    m.CallAnswered: Node._call_answered,
    m.MembersTold: Node._told,
    m.WaitingTold: Node._told,
    m.PlacedOnStandby: Node._on_standby,
}
