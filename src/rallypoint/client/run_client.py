"""How a program takes part in a run: as its own node, or through its agent.

`Run` and `World` use a RunClient, so they work alike in a plain Python process (NodeRunClient,
here) and in a worker of `rallypoint run` (AgentClient).
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine
from typing import Any, Final, Protocol

import msgspec

from rallypoint import errors, logs, runtime
from rallypoint.client.bootstrap_port import Reservation, reserve_for_rank_0
from rallypoint.client.node import Node
from rallypoint.client.self_check import SelfCheck
from rallypoint.client.sockets import SocketKeeper
from rallypoint.client.stack_dump import own_stacks
from rallypoint.client.store_calls import StoreCalls
from rallypoint.client.waiting import ON_STANDBY, WAITING, StillWaiting, Why, while_waiting
from rallypoint.core import failure_patterns, reasons
from rallypoint.core.reasons import Waiting, duration
from rallypoint.core.stacks import WorkerStack, stack
from rallypoint.core.store import StoreOp, StoreResult
from rallypoint.core.telling import Intervals, Lines
from rallypoint.core.values import (
    Address,
    Change,
    ChangeKind,
    CloseRecord,
    Drain,
    Failure,
    FailureKind,
    Outcome,
    RoundHead,
    RoundMember,
    RunSettings,
    Seat,
)
from rallypoint.settings import NodeSettings

_log = logging.getLogger("rallypoint.client")

MESSAGE_CHARACTERS_MAX = 500


class WorldFacts(msgspec.Struct, frozen=True):
    """What a program has of its round: the head, its node's seat, and its rank on the node.

    `run_id`, `ledger_id`: where the round is from; its token can be compared only with theirs.
    """

    node: str
    head: RoundHead
    seat: Seat
    local_rank: int
    run_id: str = ""
    ledger_id: str = ""

    @property
    def rank(self) -> int:
        return self.seat.first_rank + self.local_rank


class RunClient(StoreCalls, Protocol):
    """A run from the view of one program. `call` is a call of the round's store.

    All methods are for the event loop in which the client was opened.
    """

    run_id: str
    node_name: str
    on_ended: Callable[[Change], None]
    on_drain: Callable[[Drain], None]
    """Nodes of the round are going to leave it; if it `is_asked`, call `promise` at once."""
    on_step: Callable[[int], None]
    """All workers of the round stop at this step (R14)."""

    @property
    def closed(self) -> CloseRecord | None:
        """How the run ended; None while it is open."""

    @property
    def has_left(self) -> bool:
        """Whether the program has taken its node out of the run."""

    @property
    def change(self) -> Change | None:
        """Why the last returned round has ended; None while it is active."""

    @property
    def gone(self) -> errors.CoordinatorError | None:
        """The error that ended this client: refused, or the coordinator is lost."""

    async def next_world(self, timeout_s: float | None) -> WorldFacts | None:
        """Leave the round, and wait for the next. Returns None if the run is closed.

        None also if an operator has asked the node to leave (`rallypoint drain`). Raises UsageError
        if the node has left the run, also if it leaves while this waits.
        """

    @property
    def drain(self) -> Drain | None:
        """Who is going to leave the last returned round, as far as this side was told."""

    @property
    def step(self) -> int | None:
        """The step at which all workers of that round stop, if it is decided."""

    def takes_part(self) -> None:
        """The program asks at each step of its round whether it is the last one."""

    def promise(self, step: int) -> None:
        """The program passes no later step than this before the decision."""

    def yielded(self, number: int) -> None:
        """The program was told to stop at a step of round `number`."""

    async def members(self) -> tuple[RoundMember, ...]:
        """The members of the round."""

    async def waiting(self) -> Waiting | None:
        """Why there is no round yet."""

    async def is_explained(self, error: Exception, number: int) -> bool:
        """Whether the confirmed end of round `number` explains the error."""

    def progress(self, number: int, step: int) -> None:
        """A worker has come to this step of round `number`. Does nothing if the round is over."""

    async def leave(self, reason: str) -> None:
        """Take this node out of the run."""

    async def give_up(self, error: BaseException) -> None:
        """The program ends with this error: report it as a failure, and leave.

        Does nothing in a worker, because its agent does this.
        """

    async def close(self, outcome: Outcome, reason: str) -> CloseRecord:
        """End the run for all."""

    async def aclose(self) -> None:
        """Close everything. Idempotent."""


def _check_failed(error: BaseException) -> None:
    _log.error("the check cannot be repeated", exc_info=error)


_TAKEN_OUT: Final = (errors.TokenError, errors.EvictedError, errors.SupersededError)
"""The coordinator has taken the node out of its round, and the others go on without it."""


class NodeRunClient:
    """The RunClient of a program that is a node itself."""

    def __init__(
        self,
        settings: NodeSettings,
        run: RunSettings,
        keeper: SocketKeeper | None = None,
        on_waiting: Callable[[StillWaiting], None] | None = None,
        check: SelfCheck | None = None,
    ) -> None:
        """`keeper`: see Node. `on_waiting`, `check`: see rallypoint.join."""
        self._check = check
        self._check_again_s = (run.cooldown_s, run.cooldown_max_s)
        self._on_waiting = on_waiting
        self._reports = Intervals()
        self._waits_since_s = 0.0
        self.on_ended: Callable[[Change], None] = lambda change: None
        self.on_drain: Callable[[Drain], None] = lambda drain: None
        self.on_step: Callable[[int], None] = lambda step: None
        self._node = Node(
            settings,
            run,
            workers=1,
            keeper=keeper,
            on_asked_to_leave=self._asked_to_leave,
            tell_stacks=self._tell_stacks,
        )
        self._step: int | None = None
        """The last step of the present round that the program has reported."""
        self._node.on_gone = self._is_gone
        self._out: Change | None = None
        """Why this node is not in its round any more, if the coordinator has taken it out."""
        self._node.on_ended = self._ended
        self._node.on_drain = self._told_drain
        self._node.on_step = lambda step: self.on_step(step)
        self._drains: str | None = None
        """Why this node drains: it departs when its world has ended, or its time is over."""
        self._reservation: Reservation | None = None
        self._was_given = False
        self._explain_s = run.suspect_after_s + run.reconnect_grace_s + 2 * run.probe_s
        # A program that is its own node sends only the text of its exception to others.
        self._shares = settings.share_lines > 0
        self.run_id = settings.run_id
        self.node_name = self._node.info.name
        self._has_left = False
        self._departs = False
        """Whether an operator has asked this node to leave: there is no other world for it."""
        self._failed_in = 0
        self._lines = Lines()

    @property
    def has_left(self) -> bool:
        return self._has_left

    @property
    def closed(self) -> CloseRecord | None:
        return self._node.closed

    @property
    def change(self) -> Change | None:
        return self._node.change or self._out

    @property
    def gone(self) -> errors.CoordinatorError | None:
        return self._node.gone

    async def open(self) -> None:
        """Attach. Raises the errors of Node.open."""
        logs.enter(self._node.place)
        self._begin_wait()
        async with while_waiting(self._node, self._waits):
            await self._node.open()

    async def next_world(self, timeout_s: float | None) -> WorldFacts | None:
        if self.closed is not None:
            return None
        self._check_is_in()
        if self._drains is not None:
            # The program has stopped at the step on which all agreed, or earlier.
            self._depart(self._drains)
        if self._departs:
            return None
        if self._was_given or self._reservation is None:
            last = self._reservation.port if self._reservation is not None else None
            self._release()
            ports = self._node.settings.port_range
            self._reservation, self._was_given = reserve_for_rank_0(ports, last), False
        bootstrap = Address(self._node.bootstrap_host, self._reservation.port)
        logs.enter(self._node.place)
        unfit = await self._check.why_unfit() if self._check is not None else ""
        self._begin_wait()
        repeat = runtime.spawn(self._check_again(unfit), _check_failed) if unfit else None
        try:
            async with while_waiting(self._node, self._waits):
                found = await self._node.next_round(
                    bootstrap,
                    timeout_s=timeout_s,
                    is_given_up=lambda: self._departs,
                    unfit=unfit,
                )
        except errors.CoordinatorLostError:
            self._check_is_in()  # it may have left meanwhile
            raise
        finally:
            if repeat is not None:
                repeat.cancel()
                await asyncio.wait({repeat})  # A command is ended before the round begins.
        self._was_given, self._step = True, None
        self._lines.forget()
        if found is not None and found.seat.node_rank == 0:
            self._reservation.hand_over()
        if found is None:
            return None
        place = self.run_id, self._node.ledger_id
        return WorldFacts(self.node_name, found.head, found.seat, 0, *place)

    async def _check_again(self, unfit: str) -> None:
        """Repeat a failed check while the node waits, with pauses that grow."""
        assert self._check is not None
        pause_s, longest_s = self._check_again_s
        while unfit:
            why = reasons.unfit(unfit)
            _log.warning("%s: %s; it is checked again in %g s", self.node_name, why, pause_s)
            await asyncio.sleep(pause_s)
            pause_s = min(2 * pause_s, longest_s)
            unfit = await self._check.why_unfit()
            self._node.fitness(unfit)

    def _asked_to_leave(self, reason: str) -> None:
        """Leave at a step on which all agree; if that cannot be, leave at once."""
        if self._has_left or self._departs or self._drains is not None:
            return
        if not self._node.can_agree:
            if self._node.has_workers:
                _log.warning("%s: %s", self.node_name, reasons.NOT_ALL_ASK_HERE)
            self._depart(reason)
            return
        self._drains = reason
        limit_s = self._node.settings.drain_timeout_s
        _log.warning("%s: leaving the run within %g s: %s", self.node_name, limit_s, reason)
        self._node.drains(reason, limit_s)
        asyncio.get_running_loop().call_later(limit_s, self._depart, reason)

    def _told_drain(self, drain: Drain) -> None:
        self.on_drain(drain)
        if self._drains is not None and not (drain.is_asked or self._departs):
            why = reasons.no_agreement(all_go_on=self._node.all_go_on)
            _log.warning("%s: %s", self.node_name, why)
            self._depart(self._drains)

    def _ended(self, change: Change) -> None:
        self.on_ended(change)
        if self._drains is not None:
            self._depart(self._drains)

    def _depart(self, reason: str) -> None:
        """As an agent's worker: the world ends, and the program gets no other one."""
        if not (self._has_left or self._departs):
            self._departs = True
            _log.warning("%s: leaving the run: %s", self.node_name, reason)
            self._node.depart(reason)

    def _is_gone(self, error: errors.CoordinatorError) -> None:
        """If the coordinator has taken this node out, its world is over, and nobody says how."""
        found = self._node.round
        if not isinstance(error, _TAKEN_OUT) or found is None or self._node.change is not None:
            return
        number, who = found.head.number, (self.node_name,)
        self._out = Change(ChangeKind.NODE_LOST, number, who, 1, error.message)
        _log.warning("%s: this node is out of the run: %s", self.node_name, error.message)
        self.on_ended(self._out)

    @property
    def drain(self) -> Drain | None:
        return self._node.drain

    @property
    def step(self) -> int | None:
        return self._node.step

    def takes_part(self) -> None:
        self._node.takes_part()

    def promise(self, step: int) -> None:
        self._node.promise(step)

    def yielded(self, number: int) -> None:
        """Does nothing: the program asks for the next world, or ends."""

    def _begin_wait(self) -> None:
        self._waits_since_s = asyncio.get_running_loop().time()
        self._reports = Intervals()

    def _waits(self, why: Why) -> None:
        loop = asyncio.get_running_loop()
        now_s = loop.time()
        waited_s = now_s - self._waits_since_s
        if self._on_waiting is not None and self._reports.is_due(waited_s):
            text = f"{why.text.removeprefix(WAITING)} (for {duration(waited_s)})"
            # So that an error of the callback goes to the loop's exception handler, as on_change's.
            loop.call_soon(
                self._on_waiting, StillWaiting(waited_s, text, why.waiting, self._node.left_s)
            )
        # A warning is shown even in a program that has not set up logging.
        if self._lines.is_due(why.reason, now_s):
            level = logging.INFO if why.reason == ON_STANDBY else logging.WARNING
            _log.log(level, "%s: %s", self.node_name, why.text)

    def _release(self) -> None:
        if self._reservation is not None:
            self._reservation.close()
            self._reservation = None

    def _check_is_in(self) -> None:
        if self._has_left:
            raise left_error()

    def call(self, op: StoreOp, timeout_s: float | None) -> Coroutine[Any, Any, StoreResult]:
        return self._node.call(op, timeout_s)

    async def members(self) -> tuple[RoundMember, ...]:
        self._check_is_in()
        return await self._node.members()

    async def waiting(self) -> Waiting | None:
        self._check_is_in()
        return await self._node.waiting()

    async def is_explained(self, error: Exception, number: int) -> bool:
        """Report the error as this node's, and wait for the confirmed cause."""
        logs.enter(self._node.place)
        found = self._node.round
        if found is None or found.head.number != number or self._has_left:
            return False
        if isinstance(error, errors.CoordinatorError | errors.UsageError):
            return False
        self._tell_failure(error)
        if is_programs_own(error):
            return False
        if self._out is not None:
            return True  # The next call has the reason.
        try:
            cause = await self._node.cause(self._explain_s)
        except errors.CoordinatorError:
            return False
        is_failure_here = (
            cause is not None
            and cause.kind is ChangeKind.WORKER_FAILED
            and self.node_name in cause.nodes
        )
        if cause is None or is_failure_here:
            return False
        _log.info("round %d: %s: %s: as %s", number, type(error).__name__, error, cause)
        return True

    def progress(self, number: int, step: int) -> None:
        found = self._node.round
        if found is not None and found.head.number == number:
            self._step = step
            self._node.advanced(step)

    async def _tell_stacks(self, bytes_max: int) -> tuple[WorkerStack, ...]:
        """Where the threads of this process stand. Rallypoint's own is left out."""
        found = self._node.round
        if found is None:
            return ()
        found_here = stack(
            found.seat.first_rank,
            0,
            own_stacks()[:bytes_max],
            step=self._step,
            source="its own process",
        )
        return (found_here if self._shares else msgspec.structs.replace(found_here, text=""),)

    async def leave(self, reason: str) -> None:
        if not self._has_left:
            self._has_left = True
            self._node.goodbye(reason)

    def _tell_failure(self, error: BaseException) -> None:
        """Report a failure, once for each round and only while it is active."""
        found = self._node.round
        if found is None or self._node.change is not None or self._failed_in == found.head.number:
            return
        self._failed_in = found.head.number
        self._node.failed(failure_of(error, found.seat.first_rank, shares=self._shares))

    async def give_up(self, error: BaseException) -> None:
        if not self._has_left and is_failure(error):
            self._tell_failure(error)
        await self.leave(f"the program ended with {_said(error, self._shares)}"[:500])

    async def close(self, outcome: Outcome, reason: str) -> CloseRecord:
        if self.closed is None:
            self._check_is_in()
        limit_s = self._node.settings.goodbye_timeout_s
        return await self._node.close_run(outcome, reason, limit_s)

    async def drop(self) -> None:
        """Close everything without a goodbye."""
        self._has_left = True
        self._release()
        await self._node.aclose(linger=False)

    async def aclose(self) -> None:
        if not self._has_left:
            await self.leave("the program has left the run")
        self._release()
        await self._node.aclose()


_MISTAKES = (
    ArithmeticError,
    AssertionError,
    AttributeError,
    ImportError,
    LookupError,
    MemoryError,
    NameError,
    SyntaxError,
    TypeError,
    ValueError,
)


def is_programs_own(error: Exception) -> bool:
    """Whether the error's class shows a mistake of the program, which no end of a round explains.

    After the loss of a peer, libraries raise RuntimeError and many others. They raise the classes
    of mistakes only with a text that names the loss.
    """
    is_mistake = isinstance(error, _MISTAKES) and not isinstance(error, errors.RallypointError)
    return is_mistake and failure_patterns.kind_of(str(error)) is not FailureKind.COMMUNICATION


def is_failure(error: BaseException) -> bool:
    """Whether a program that ends with this error failed by itself, and not by the run's end."""
    if isinstance(error, SystemExit):
        return error.code not in (None, 0)
    of_the_run = errors.CoordinatorError | errors.RoundBrokenError | errors.JoinTimeoutError
    return isinstance(error, Exception) and not isinstance(error, of_the_run)


def left_error() -> errors.UsageError:
    """The error of a call that needs the run, after the program has left it."""
    return errors.UsageError("this node has left the run", hint="call join to join it again")


def _said(error: BaseException, shares: bool) -> str:
    name = type(error).__name__
    # A hint is for the one who reads the traceback, and not for the other nodes.
    text = error.message if isinstance(error, errors.RallypointError) else str(error)
    return f"{name}: {text}" if shares else f"{name} ({reasons.UNSHARED})"


def failure_of(error: BaseException, rank: int, *, shares: bool = True) -> Failure:
    """An exception of the program as a worker's failure. Its text determines the kind.

    `shares` False: its class is sent to other nodes, but not its text.
    """
    text = _said(error, shares=True)
    kind = failure_patterns.kind_of(text) or FailureKind.EXCEPTION
    if isinstance(error, ConnectionError | errors.RoundBrokenError):
        kind = FailureKind.COMMUNICATION
    line = _said(error, shares).splitlines()[0][:MESSAGE_CHARACTERS_MAX]
    return Failure(kind, line, rank=rank, local_rank=0)


async def open_node(
    settings: NodeSettings,
    run: RunSettings,
    on_waiting: Callable[[StillWaiting], None] | None = None,
    check: SelfCheck | None = None,
) -> NodeRunClient:
    """Open a program's own node. Raises the errors of Node.open."""
    client = NodeRunClient(settings, run, on_waiting=on_waiting, check=check)
    await client.open()
    return client
