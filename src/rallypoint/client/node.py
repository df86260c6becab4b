"""One node of a run in an asyncio event loop: its rounds, its requests, and the end.

The agent, the blocking API and the async API use this class. `machine` decides what the node sends
and keeps its state. This class executes the machine's actions, and turns answers into results and
errors for the callers that wait. It must not dial or search: the connector provides the connection.
Every wait has a deadline, and its error names what was awaited.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import weakref
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Final

import msgspec

from rallypoint import errors, logs, runtime
from rallypoint._version import __version__
from rallypoint.client import actions as act
from rallypoint.client import machine as m
from rallypoint.client import network
from rallypoint.client.connector import Connector
from rallypoint.client.identity import node_info
from rallypoint.client.network import Connection
from rallypoint.client.orphan import OrphanTimer
from rallypoint.client.sockets import SocketKeeper
from rallypoint.client.store_calls import COORDINATOR_LOST, SILENT, no_answer, round_ended
from rallypoint.client.waiters import Waiters
from rallypoint.client.waiting import close_unconfirmed, join_timeout, left_run
from rallypoint.client.witness import Witness
from rallypoint.core.addresses import OwnAddress
from rallypoint.core.agreement import NO_STEP
from rallypoint.core.reasons import RefusalCode, Waiting
from rallypoint.core.stacks import WorkerStack
from rallypoint.core.store import BAD_REQUEST, StoreFailure, StoreOp, StoreResult, StoreValue
from rallypoint.core.values import (
    SECRET_BYTES,
    Address,
    Change,
    ChangeKind,
    CloseRecord,
    Drain,
    Failure,
    HostReport,
    Outcome,
    RoundHead,
    RoundMember,
    RunSettings,
    Seat,
)
from rallypoint.ledger.contract import Ledger
from rallypoint.settings import EndpointKind, NodeSettings, check_own_token
from rallypoint.wire import messages as wire

if TYPE_CHECKING:
    from rallypoint.client.hosting import EmbeddedCoordinator

_log = logging.getLogger("rallypoint.client")

WHY_TIMEOUT_S: Final = 1.0
"""How long, in seconds, an error waits for the coordinator's reason why there is no round yet."""
LET_IN_S: Final = 5.0
"""The least time for a coordinator to attach the node after it was reached, in seconds."""
STANDBY_LOOK_S: Final = 1.0
"""The pause between a standby's questions whether the round is active, after its deadline."""
ASK_TIMEOUT_S: Final = 30.0
"""How long the coordinator may take for a question that it can answer at once, in seconds."""
ANSWER_MARGIN_S: Final = 5.0
"""How many seconds after the coordinator's own limit this side gives up a call of the store."""


STACKS_WITHIN_S: Final = 1.7
"""How long a node may take to tell where its workers stand: the coordinator waits for 2 s."""
TellStacks = Callable[[int], Awaitable[tuple[WorkerStack, ...]]]


class Round(msgspec.Struct, frozen=True):
    """A round and this node's seat in it."""

    head: RoundHead
    seat: Seat


class Node:
    """One node. All methods are for the event loop in which `open` was called.

    The callbacks are called from the loop. `on_ended`: the round has ended; called again when its
    cause becomes known. `on_closed`: the run is closed. `on_gone`: the coordinator refused the node
    or is lost for good. `on_standby`: a round is active without this node.

    `on_drain`: nodes of the round are going to leave it; if it `is_asked`, call `promise` soon.
    `on_step`: all workers of the round stop at this step.

    `on_asked_to_leave`: an operator asks the node to leave, with the reason; it should `depart`.
    Called again if the coordinator asks again. None: this node cannot be asked.

    `tell_stacks`: finds out where the workers stand, with at most so many bytes of texts, within
    STACKS_WITHIN_S. None: this node is not asked.

    `ledger`: the endpoint's ledger, if the caller has opened it and will close it. `keeper`: what
    ends the node's connections if this process dies; None: only the kernel.
    """

    def __init__(
        self,
        settings: NodeSettings,
        run: RunSettings,
        *,
        workers: int = 1,
        ledger: Ledger | None = None,
        keeper: SocketKeeper | None = None,
        on_asked_to_leave: Callable[[str], None] | None = None,
        tell_stacks: TellStacks | None = None,
    ) -> None:
        self.settings = settings
        self.run = run
        self.info = node_info(settings, workers)
        self.on_ended: Callable[[Change], None] = lambda change: None
        self.on_closed: Callable[[CloseRecord], None] = lambda close: None
        self.on_gone: Callable[[errors.CoordinatorError], None] = lambda error: None
        self.on_standby: Callable[[], None] = lambda: None
        self.on_drain: Callable[[Drain], None] = lambda drain: None
        self.on_step: Callable[[int], None] = lambda step: None
        self._on_asked_to_leave = on_asked_to_leave
        self._machine = m.NodeMachine(
            settings.run_id,
            self.info,
            run,
            silence_s=settings.coordinator_silence_s,
            software=f"rallypoint {__version__}",
            is_elected=settings.endpoint.kind is EndpointKind.LEDGER,
            resume_secret=runtime.here().token_bytes(SECRET_BYTES),
            takes_orders=on_asked_to_leave is not None,
            tells_stacks=tell_stacks is not None,
            hang_timeout_s=settings.hang_timeout_s,
            is_witness=network.here().has_witnesses,
        )
        self._tell_stacks = tell_stacks
        self._telling: set[asyncio.Task[None]] = set()
        machine = weakref.ref(self._machine)  # A record's context may live longer than the node.
        self.place = logs.Place(settings.run_id, self.info.name, lambda: _stamp_of(machine()))
        """Where the log records of this node come from."""
        self._connector = Connector(settings, run, self.info, self._machine, self, ledger, keeper)
        self.gone: errors.CoordinatorError | None = None
        """The error that ended this node: refused, superseded, or the coordinator is lost."""
        self._ends_s: float | None = None
        """When the present wait ends; None if there is none, or if it has no limit."""
        self._taken = 0
        """The number of the last round that `next_round` has returned."""
        self._waiters = Waiters()
        self._witness = Witness(self._testify, self._coordinator_address)
        self.orphan = OrphanTimer(
            settings.orphan_s, lambda alone_s: self._act(self._machine.orphaned(alone_s))
        )
        self._tick: asyncio.TimerHandle | None = None
        self._tick_due_s = 0.0

    # -- queries -------------------------------------------------------------------------------

    @property
    def change(self) -> Change | None:
        """Why the node's last round ended; None while it is active."""
        return self._machine.ended

    @property
    def round(self) -> Round | None:
        """The last round in which the node had a seat."""
        head, seat = self._machine.head, self._machine.seat
        return Round(head, seat) if head is not None and seat is not None else None

    @property
    def ledger_id(self) -> str:
        """The id of the run's ledger; "" before a coordinator has sent it."""
        return self._machine.ledger_id

    @property
    def closed(self) -> CloseRecord | None:
        """How the run ended; None while it is open."""
        return self._machine.closed

    @property
    def is_connected(self) -> bool:
        """Whether this node is attached to a coordinator now."""
        return self._machine.is_attached

    @property
    def looking(self) -> str:
        """Why this node has no coordinator; "" if it has one, or is starting it."""
        return "" if self._machine.is_attached else self._connector.looking

    @property
    def hosted(self) -> EmbeddedCoordinator | None:
        """The coordinator that this node hosts."""
        return self._connector.own.hosted

    @property
    def is_at_own(self) -> bool:
        """Whether this node is connected to the coordinator that it hosts."""
        return self._connector.own.is_at(self._connector.connection)

    @property
    def hosts_run(self) -> bool:
        """Whether a run of several nodes ends with this node, as it hosts the only coordinator."""
        is_only_host = self.hosted is not None and self._connector.elected is None
        return is_only_host and self.run.max_nodes > 1

    @property
    def can_agree(self) -> bool:
        """Whether all workers of the node take part in agreements, and the coordinator, too."""
        return self._machine.can_agree

    @property
    def has_workers(self) -> bool:
        """Whether a round of this node is active, as far as is known here."""
        return self._machine.has_workers

    @property
    def all_go_on(self) -> bool:
        """Whether the workers of the round were told to go on after a node had drained (R14)."""
        return self._machine.step == NO_STEP

    @property
    def drain(self) -> Drain | None:
        """Who is going to leave the present round, as far as this node was told."""
        return self._machine.drain

    @property
    def step(self) -> int | None:
        """The step at which all workers of the present round stop, if it is decided."""
        return self._machine.step

    @property
    def nodes_max(self) -> int:
        """How many nodes a round has at most."""
        return self._machine.nodes_max

    @property
    def stays_out(self) -> str:
        """Why this node has to stay out while it is on standby; "" if it does not."""
        return self._machine.stays_out

    @property
    def left_s(self) -> float | None:
        """How long the present wait may still take, in seconds; None: no limit."""
        own_s = math.inf if self._ends_s is None else self._ends_s
        ends_s = min(own_s, self._connector.gives_up_s)
        return None if math.isinf(ends_s) else max(0.0, ends_s - _now_s())

    @property
    def own_address(self) -> OwnAddress | None:
        """The address where other machines reach this one, if it was found."""
        return self._connector.own.address

    @property
    def bootstrap_host(self) -> str:
        """An address of this machine that the other nodes can reach."""
        return self._connector.own.bootstrap_host(self._connector.connection)

    # -- joining ---------------------------------------------------------------------------------

    async def open(self) -> None:
        """Find the coordinator, or host it, and attach.

        Raises UnreachableError and LedgerUnreachableError after `connect_timeout_s`. Raises at once
        RefusedError, NotACoordinatorError, any other LedgerError, and UsageError for a token that
        cannot be read or is too weak for a host. An error or a cancellation leaves nothing open.
        """
        logs.enter(self.place)
        check_own_token(self.settings)
        await network.here().check_local_addr(self.settings, self.run.max_nodes)
        await self._connector.credentials.find()  # A slow home must not use up `connect_timeout`.
        began_s = _now_s()
        ends_s = self._ends_s = began_s + self.settings.connect_timeout_s
        self._connector.is_joining = True
        try:
            await self._connector.open(ends_s)
            await self._until_let_in(ends_s)
            if not self.is_connected and self.closed is None:
                raise self._connector.not_let_in(_now_s() - began_s)
        except BaseException:
            await self.aclose(linger=False)
            raise
        finally:
            self._ends_s = None
            self._connector.joined()

    async def _until_let_in(self, ends_s: float) -> None:
        """Wait for the coordinator's answer. Ask again if it has another run."""
        connector = self._connector
        while True:
            left_s = max(ends_s - _now_s(), LET_IN_S)
            await self._until(lambda: self.is_connected or connector.was_turned_away, left_s)
            if not connector.was_turned_away:
                return
            await connector.ask_again(ends_s)

    # -- calls of the connector: see ConnectedNode -------------------------------------------------

    def connected(self, connection: Connection) -> None:
        """A connection is open."""
        self._act(self._machine.connected(_now_s(), connection.source))

    def disconnected(self) -> None:
        """The connection has ended."""
        self._machine.disconnected(_now_s())
        self._schedule_tick()
        self._waiters.notify()

    def received(self, data: bytes) -> None:
        """A message has arrived."""
        try:
            message = wire.decode_from_coordinator(data)
        except wire.MalformedError as error:
            self._connector.drop(f"the coordinator sent an invalid message: {error}")
            return
        self._act(self._machine.received(message, asyncio.get_running_loop().time()))
        if self._connector.elected is not None:
            self._connector.watch_lease(self._machine.heartbeats.beat_stood_still_s)

    def reached_at(self, host: str, before: str) -> None:
        """Others reach this machine at `host`, and perhaps not at `before`."""
        self._act(self._machine.reached_at(host, before))

    def searching(self, since_s: float) -> None:
        """There has been no coordinator since this time."""
        self.orphan.start(since_s)

    def found_closed(self, close: CloseRecord) -> None:
        """The run is closed, by the ledger."""
        self._act(self._machine.found_closed(close))

    def found_replaced(self) -> None:
        """The run's ledger was replaced."""
        self._act(self._machine.found_replaced())

    def give_up(self, error: errors.CoordinatorError) -> None:
        """The search for a coordinator has ended for good with this error."""
        self.gone = error
        head = self._machine.head
        is_lost = isinstance(error, errors.RunLostError | errors.CoordinatorLostError)
        if is_lost and head is not None:
            self.orphan.run_lost(head.nodes)
        self._waiters.answer_all(error)
        self.on_gone(error)
        self._waiters.notify()

    # -- actions and ticks -------------------------------------------------------------------------

    def _act(self, actions: list[act.Action]) -> None:
        for action in actions:
            _DO[type(action)](self, action)
        self._schedule_tick()
        if self._connector.limit is not None:
            self._connector.follow_workers()

    def _schedule_tick(self) -> None:
        due_s = self._machine.heartbeats.next_tick_s
        # The time is stored here, because uvloop's handles do not have it after it has passed.
        if self._tick is not None and self._tick_due_s != due_s:
            self._tick.cancel()
            self._tick = None
        if due_s is not None and self._tick is None:
            self._tick = asyncio.get_running_loop().call_at(due_s, self._on_tick)
            self._tick_due_s = due_s

    def _on_tick(self) -> None:
        self._tick = None
        self._act(self._machine.tick(_now_s()))
        if self.is_connected:
            self.orphan.check(self._machine.heartbeats.led_s, self._connector.owner_ttl_s)

    def _send(self, action: act.Send) -> None:
        connection = self._connector.connection
        if connection is not None:
            connection.send(wire.encode(action.message))

    def _drop(self, action: act.Drop) -> None:
        self._connector.drop(action.reason)

    def _attached(self, action: act.Attached) -> None:
        self.orphan.cancel()
        self._connector.attached()
        self._waiters.notify()

    def _round_formed(self, action: act.RoundFormed) -> None:
        self._waiters.notify()

    def _round_ended(self, action: act.RoundEnded) -> None:
        result = round_ended(action.change)
        for request_id in self._waiters.requests:
            if request_id not in self._machine.requests.open:
                self._waiters.answer(request_id, result)
        self.on_ended(action.change)
        self._waiters.notify()

    def _run_ended(self, action: act.RunEnded) -> None:
        self.on_closed(action.close)
        self._waiters.notify()

    def _was_refused(self, action: act.WasRefused) -> None:
        if action.refusal.code is RefusalCode.OTHER_RUN and self._connector.is_joining:
            self._machine.comes_again()
            self._connector.turned_away(action.refusal)
            self._waiters.notify()
            return
        error = errors.refused(action.refusal)
        if isinstance(error, errors.TokenError):
            # The coordinator had accepted the token: it has read a message of this node.
            error.reason = "ended"
        self.give_up(error)

    def _redirected(self, action: act.Redirected) -> None:
        self._connector.redirected(action.addresses, action.reason)

    def _call_answered(self, action: act.CallAnswered) -> None:
        self._waiters.answer(action.request_id, action.result)

    def _told(self, action: act.MembersTold | act.WaitingTold) -> None:
        self._waiters.answer(action.request_id, action)

    def _watch(self, action: act.WatchWanted) -> None:
        self._witness.watch(action.addresses)

    def _look(self, action: act.HostReportWanted) -> None:
        self._witness.look(action, action.host)

    def _testify(self, asked: act.HostReportWanted, report: HostReport) -> None:
        self._act(self._machine.testify(asked, report))

    def _coordinator_address(self) -> Address | None:
        connection = self._connector.connection
        return None if connection is None else connection.address

    def _leave_wanted(self, action: act.LeaveWanted) -> None:
        if self._on_asked_to_leave is not None:
            self._on_asked_to_leave(action.reason)
            self._waiters.notify()

    def _stacks_wanted(self, action: act.StacksWanted) -> None:
        task = runtime.spawn(self._find_stacks(action), _stacks_failed)
        self._telling.add(task)
        task.add_done_callback(self._telling.discard)

    async def _find_stacks(self, action: act.StacksWanted) -> None:
        assert self._tell_stacks is not None
        stacks: tuple[WorkerStack, ...] = ()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(STACKS_WITHIN_S):
                stacks = await self._tell_stacks(action.bytes_max)
        self._act(self._machine.stacks_told(action.request_id, stacks, _now_s()))

    def _drain_told(self, action: act.DrainTold) -> None:
        self.on_drain(action.drain)

    def _step_decided(self, action: act.StepDecided) -> None:
        self.on_step(action.step)

    def _on_standby(self, action: act.PlacedOnStandby) -> None:
        self.on_standby()

    # -- rounds --------------------------------------------------------------------------------

    async def next_round(
        self,
        bootstrap: Address,
        *,
        workers: int | None = None,
        timeout_s: float | None = None,
        whole_s: float | None = None,
        is_given_up: Callable[[], bool] = lambda: False,
        unfit: str = "",
    ) -> Round | None:
        """Be ready, and wait for the next round. Returns None if the run was closed instead.

        Leaves the node's present round, which ends that round for all. A round that was formed
        after an earlier call timed out or was cancelled is returned, if it is still active.
        `timeout_s`: None means the settings' `join_timeout_s`. A standby has no deadline while a
        round is active without it. `whole_s`: for the error, the time of which `timeout_s` is left.
        `is_given_up`: whether the wait ends without a round, for example as this node departs.
        `unfit`: why this node's own check failed, see `fitness`.

        Raises JoinTimeoutError, RefusedError or CoordinatorLostError.
        """
        logs.enter(self.place)
        limit_s = self.settings.join_timeout_s if timeout_s is None else timeout_s
        self._ends_s = _now_s() + limit_s
        if not (self._has_untaken_round() and self.change is None):
            self._taken = self._machine.number
            count = workers if workers is not None else self.info.workers
            self._act(self._machine.ready(bootstrap, count, unfit))
        try:
            await self._until_round(limit_s, limit_s if whole_s is None else whole_s, is_given_up)
        finally:
            self._ends_s = None
        if not self._has_untaken_round():
            return None
        self._taken = self._machine.number
        return self.round

    def fitness(self, unfit: str) -> None:
        """Tell the coordinator why this node's check failed while it waits; "": it has passed."""
        self._act(self._machine.fitness(unfit))

    async def _until_round(
        self, limit_s: float, whole_s: float, is_given_up: Callable[[], bool]
    ) -> None:
        """Wait for a round or the end of the run. Raises the errors of `next_round`."""
        while True:
            await self._until(lambda: self._has_untaken_round() or is_given_up(), limit_s)
            if self._has_untaken_round() or self.closed is not None or is_given_up():
                return
            has_answered, waiting = await self._why_waiting()
            # A suspended run also has an active round without the standby.
            is_round_on = has_answered and (waiting is None or bool(waiting.suspended))
            is_on_standby = self._machine.is_standby and is_round_on
            if not is_on_standby and not self._has_untaken_round():
                hint = self._connector.own.address_hint
                run_id, looking = self.settings.run_id, self.looking
                raise join_timeout(run_id, whole_s, waiting, looking=looking, hint=hint)
            limit_s = max(limit_s, STANDBY_LOOK_S)
            self._ends_s = None  # A standby waits while the round is active without it.

    def _has_untaken_round(self) -> bool:
        return self._machine.number > self._taken

    async def _why_waiting(self) -> tuple[bool, Waiting | None]:
        """Whether the coordinator answers, and why there is no round."""
        if not self.is_connected:
            return False, None
        try:
            async with asyncio.timeout(WHY_TIMEOUT_S):
                return True, await self.waiting()
        except (TimeoutError, errors.CoordinatorError):
            return False, None

    async def waiting(self) -> Waiting | None:
        """Ask the coordinator why there is no round yet; None if there is one.

        Raises CoordinatorLostError.
        """
        told = await self._ask(*self._machine.ask_waiting(), ASK_TIMEOUT_S)
        assert isinstance(told, act.WaitingTold)
        return told.waiting

    async def members(self, timeout_s: float | None = ASK_TIMEOUT_S) -> tuple[RoundMember, ...]:
        """The members of the node's round, in node-rank order.

        Raises RoundBrokenError if the run is in another round now, or CoordinatorLostError.
        """
        head = self._machine.head
        told = await self._ask(*self._machine.ask_members(), timeout_s)
        assert isinstance(told, act.MembersTold)
        # R2: the table must be that of the round's head. Compare the digests and do not compute
        # one, because a later coordinator may include fields that this release does not know.
        if head is None or (told.number, told.digest) != (head.number, head.digest):
            number, detail = head.number if head else 0, "the run is in another round now"
            change = self.change or Change(ChangeKind.NODE_LOST, number, detail=detail)
            raise errors.RoundBrokenError(change)
        return told.members

    async def _ask(
        self, request_id: int, actions: list[act.Action], timeout_s: float | None
    ) -> object:
        try:
            told = await self._request(request_id, actions, timeout_s)
        except TimeoutError:
            silent = no_answer("the coordinator", timeout_s, self.looking)
            raise errors.CoordinatorLostError(silent.message, hint=SILENT) from None
        if isinstance(told, errors.CoordinatorError):
            raise told
        return told

    async def call(self, op: StoreOp, timeout_s: float | None) -> StoreResult:
        """Make one call of the round's store. See StoreCalls.call."""
        if self.gone is not None:
            return StoreFailure(COORDINATOR_LOST, self.gone.message)
        if self._machine.ended is not None:
            return round_ended(self._machine.ended)
        if self._machine.head is None:
            return StoreFailure(
                BAD_REQUEST, "this node is in no round, and each store belongs to a round"
            )
        too_large = wire.check_call(op)
        if too_large is not None:
            return too_large
        request_id, actions = self._machine.call(op, timeout_s, _now_s())
        limit_s = None if timeout_s is None else timeout_s + ANSWER_MARGIN_S
        try:
            result = await self._request(request_id, actions, limit_s)
        except TimeoutError:
            # A write waits for the ledger (R10), so the ledger's problem is the reason for a
            # missing answer.
            _, waiting = await self._why_waiting()
            why = str(waiting) if waiting is not None else self.looking
            return no_answer("the coordinator", limit_s, why)
        if isinstance(result, errors.CoordinatorError):
            return StoreFailure(COORDINATOR_LOST, result.message)
        assert isinstance(result, StoreValue | StoreFailure)
        return result

    def failed(self, failure: Failure) -> None:
        """Report a worker's failure. It ends the round, and the coordinator finds the cause."""
        self._act(self._machine.failed(failure))

    def advanced(self, step: int | None = None) -> None:
        """A worker of the present round has advanced. `step`: how far, if it has said that."""
        self._machine.progress.advanced(_now_s(), step)

    def watch_from_start(self) -> None:
        """Each round counts as hanging if no worker ever advances in it, also the first one."""
        self._machine.progress.counts_from_start = True

    def done(self) -> None:
        """Report that all workers have finished."""
        self._act(self._machine.done())

    async def cause(self, timeout_s: float) -> Change | None:
        """Wait for the confirmed cause of the round's end. None if it does not arrive in time."""
        await self._until(lambda: self.change is not None and self.change.confirmed, timeout_s)
        return self.change if self.change is not None and self.change.confirmed else None

    async def end_of_run(self, timeout_s: float) -> CloseRecord | None:
        """Wait until the run is closed. Returns how it ended; None if it is not over in time.

        Raises a CoordinatorError if the node is gone.
        """
        await self._until(lambda: self.closed is not None, timeout_s)
        return self.closed

    # -- leaving -------------------------------------------------------------------------------

    def takes_part(self) -> None:
        """Announce that each worker asks at each step of this round whether to stop (R14)."""
        self._act(self._machine.takes_part())

    def promise(self, step: int) -> None:
        """Promise that no worker passes a later step before the decision (R14)."""
        self._act(self._machine.promise(step))

    def drains(self, reason: str, left_s: float) -> None:
        """Announce that this node leaves its round within `left_s`. Its workers go on until then.

        `depart` follows: when all workers have stopped at the step of `on_step`, when the round has
        ended, or when the time is over.
        """
        self._act(self._machine.drains(reason, left_s, _now_s()))

    def depart(self, reason: str) -> None:
        """Announce that this node leaves. The others regroup without waiting for it."""
        self._act(self._machine.depart(reason))

    async def close_run(self, outcome: Outcome, reason: str, timeout_s: float) -> CloseRecord:
        """End the run for all. Returns how it ended, also if it was closed before.

        Raises a CoordinatorError if the coordinator does not confirm it in time.
        """
        self._act(self._machine.close(outcome, reason))
        await self._until(lambda: self.closed is not None, timeout_s)
        if self.closed is None:
            raise close_unconfirmed("the coordinator", timeout_s)
        return self.closed

    def goodbye(self, reason: str) -> None:
        """Tell the coordinator that no worker of this node runs any more."""
        self._act(self._machine.goodbye(reason))

    async def aclose(self, *, linger: bool = True) -> None:
        """Close the connection and then, after lingering, the coordinator that this node hosts.

        A goodbye has `goodbye_timeout_s` to arrive, even after the connection was just lost. A host
        stays for `linger_s`, so that the others can say goodbye, and as long as an open run needs
        it. A host that was elected through a ledger hands over instead. Idempotent. A cancellation
        ends all of this at once.
        """
        connector = self._connector
        for task in list(self._telling):
            task.cancel()
        hosts = [connector.own.take()]
        try:
            await self._hang_up()
            # Until here, a search for someone to hear the goodbye could make this node a host.
            hosts.append(connector.own.take())
            for hosted in hosts:
                if hosted is not None and linger and connector.elected is None:
                    if self.closed is None:
                        await connector.own.stay_for_the_run(hosted)
                    await hosted.linger(self.settings.linger_s)
        finally:
            for hosted in (*hosts, connector.own.take()):
                if hosted is not None:
                    await hosted.aclose()
            await connector.close_ledger()

    async def _hang_up(self) -> None:
        connector = self._connector
        if self._machine.has_said_goodbye and (connector.connection or connector.is_searching):
            # The coordinator answers a goodbye with a closing handshake.
            await self._until(lambda: self.gone is not None, self.settings.goodbye_timeout_s)
        self.orphan.cancel()
        self._waiters.answer_all(left_run())
        await self._witness.aclose()
        await connector.hang_up()

    # -- waiting -------------------------------------------------------------------------------

    async def _until(self, is_so: Callable[[], bool], timeout_s: float) -> None:
        """Wait until `is_so`, until the run is closed, or for `timeout_s`.

        Raises a CoordinatorError if the node is gone.
        """
        ends_s = _now_s() + timeout_s
        while not is_so():
            if self.gone is not None:
                raise self.gone
            left_s = ends_s - _now_s()
            if self.closed is not None or left_s <= 0:
                return
            await self._waiters.change(left_s)

    async def _request(
        self, request_id: int, actions: list[act.Action], timeout_s: float | None
    ) -> object:
        """Send a request. Returns its answer, or as a value the CoordinatorError that prevents it.

        Raises TimeoutError after `timeout_s`. None: it ends with the round or the coordinator.
        """
        if self.gone is not None or self._connector.is_closing:
            self._machine.cancel(request_id)
            return self.gone or left_run()
        future = self._waiters.expect(request_id)
        try:
            self._act(actions)
            async with asyncio.timeout(timeout_s):
                return await future
        finally:
            if not self._waiters.forget(request_id):
                self._act(self._machine.cancel(request_id))


def _stacks_failed(error: BaseException) -> None:
    _log.error("the stacks of the workers could not be read", exc_info=error)


def _now_s() -> float:
    return asyncio.get_running_loop().time()


_DO: dict[type[object], Callable[..., None]] = {
    act.Send: Node._send,
    act.Drop: Node._drop,
    act.Attached: Node._attached,
    act.RoundFormed: Node._round_formed,
    act.RoundEnded: Node._round_ended,
    act.RunEnded: Node._run_ended,
    act.WasRefused: Node._was_refused,
    act.Redirected: Node._redirected,
    act.CallAnswered: Node._call_answered,
    act.MembersTold: Node._told,
    act.WaitingTold: Node._told,
    act.LeaveWanted: Node._leave_wanted,
    act.StacksWanted: Node._stacks_wanted,
    act.WatchWanted: Node._watch,
    act.HostReportWanted: Node._look,
    act.DrainTold: Node._drain_told,
    act.StepDecided: Node._step_decided,
    act.PlacedOnStandby: Node._on_standby,
}


def _stamp_of(machine: m.NodeMachine | None) -> tuple[int, int]:
    return (0, 0) if machine is None else (machine.stamp.term, machine.stamp.round)
