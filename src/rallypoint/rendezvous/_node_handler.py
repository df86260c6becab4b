"""A rendezvous handler that is a node: torchrun's agent calls it, and it uses Rallypoint's client.

All backends except `static` use it. They differ only in how the coordinator is found and in the
store of a round. The first call that needs a node opens it. The node lives in Rallypoint's thread
of the process, so heartbeats go on while the agent sleeps, and `num_nodes_waiting` needs no I/O.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import sys
import threading
import time
import weakref
from collections.abc import Callable, Coroutine, Iterator
from concurrent.futures import CancelledError
from typing import Any, Final, NoReturn, TypeVar

import msgspec

from rallypoint import errors, settings
from rallypoint.client.blocking import Portal, portal
from rallypoint.client.node import Node, Round
from rallypoint.core.values import Address, ChangeKind, CloseRecord, Outcome, RoundHead, RunSettings
from rallypoint.ledger.contract import Ledger
from rallypoint.rendezvous import _torch_bridge
from rallypoint.rendezvous._held_node import HeldNode
from rallypoint.rendezvous._stores import RoundCalls, prefixed, round_store
from rallypoint.rendezvous.api import (
    RendezvousClosedError,
    RendezvousConnectionError,
    RendezvousError,
    RendezvousGracefulExitError,
    RendezvousHandler,
    RendezvousInfo,
    RendezvousStateError,
    RendezvousStoreInfo,
    RendezvousTimeoutError,
)
from rallypoint.settings import NodeSettings, shares_torch_store

_log = logging.getLogger("rallypoint.rendezvous")
_T = TypeVar("_T")

REASON_CHARACTERS_MAX: Final = 500
LET_IN_S: Final = 1.0
"""How many seconds more than its limit an attach may take, so that the node's own error is raised.
"""
LAST_WORDS_S: Final = 1.5
"""How many seconds more than its limit a call may take, so that it can end with its own error."""
OWN_SHARE: Final = 0.8
"""The part of a close timeout after which an attempt ends by itself, with its own error."""


STOP_S = 30.0
"""How many seconds torchrun's agent takes to stop its workers, from SIGTERM to SIGKILL."""


def stop_s(given: float | None = None) -> float:
    """How many seconds this node may take to stop its workers. The default is torchrun's."""
    found = settings.resolve("stop_s", given)
    seconds: float = STOP_S if found.source == "default" else found.value
    return seconds


class HandlerPlan(msgspec.Struct, frozen=True, kw_only=True):
    """The parts from which a handler is made.

    Args:
        backend: the name that `get_backend` returns.
        node: the node's settings; `join_timeout_s` limits the whole of `next_rendezvous`.
        run: the run's settings, the same on all nodes.
        close_timeout_s: how long closing the run may take.
        open_ledger: makes the ledger through which the nodes elect a coordinator, if the endpoint
            in `node` does not name one. The handler opens and closes it.
        store: the caller's store, in which each round gets a prefix; None: the round's own store.
        ends_process: end the process as torchrun's launcher needs it. A node that is not needed any
            more ends by SystemExit(0), because the launcher fails on RendezvousGracefulExitError. A
            node that is done ends by a SystemExit with the cause if the run ends badly, because the
            agent's exit barrier passes no other error on.
    """

    backend: str
    node: NodeSettings
    run: RunSettings
    close_timeout_s: float = 30.0
    open_ledger: Callable[[], Ledger] | None = None
    store: Any = None
    ends_process: bool = False


class NodeRendezvousHandler(RendezvousHandler):
    """One node of a run, as a rendezvous handler. See HandlerPlan.

    Any thread may call, one `next_rendezvous` at a time. Every call that waits has a deadline: the
    settings' `join_timeout_s`, `connect_timeout_s` or `close_timeout_s`. Errors are those of
    `rallypoint.rendezvous.api`, and torch's own as well where torch's rendezvous is imported. The
    cause is in `__cause__`.

    A handler that is dropped without `shutdown` takes its node out of the run, even while a store
    that it returned is in use. So keep the handler while you need the round.
    """

    def __init__(self, plan: HandlerPlan) -> None:
        self._plan = plan
        # Callbacks of the node must not refer to the handler, because the node's thread would keep
        # it.
        self._hold = HeldNode()
        weakref.finalize(self, self._hold.leave, "its handler was dropped").atexit = False
        self._opening = threading.Lock()
        self._agent_store: Any = None
        self._seated = 0
        """The number of the last returned round; 0 if there was none."""
        self._is_out = False
        """Whether the last next_rendezvous failed for a reason of this node."""
        self._is_shut = False

    @property
    def _node(self) -> Node | None:
        return self._hold.node

    @property
    def _portal(self) -> Portal | None:
        return self._hold.portal

    @property
    def _is_done(self) -> bool:
        return self._hold.is_done

    # -- facts -----------------------------------------------------------------------------------

    def get_backend(self) -> str:
        """See RendezvousHandler.get_backend."""
        return self._plan.backend

    def get_run_id(self) -> str:
        """See RendezvousHandler.get_run_id."""
        return self._plan.node.run_id

    @property
    def use_agent_store(self) -> bool:
        """Whether node rank 0's agent serves a new TCPStore for the workers of each round.

        True if torch is imported, unless TORCH_DISABLE_SHARE_RDZV_TCP_STORE is 1.
        """
        return _torch_bridge.loaded() and shares_torch_store()

    # -- rounds ----------------------------------------------------------------------------------

    def next_rendezvous(self) -> RendezvousInfo:
        """Leave the round, and wait for the next. See RendezvousHandler.next_rendezvous.

        Raises RendezvousTimeoutError after `join_timeout_s`, even if the coordinator or the backend
        never answered. Raises RendezvousConnectionError if the coordinator was not found within a
        shorter `connect_timeout_s`, or if the backend answers only with errors.
        """
        if self._is_shut:
            _raise(RendezvousClosedError, f"run {self.get_run_id()!r} was shut down by this node")
        self._is_out = True
        limit_s = self._plan.node.join_timeout_s
        ends_s = time.monotonic() + limit_s
        found: Round | CloseRecord | None
        with _until(
            ends_s, f"no round of run {self.get_run_id()!r} was formed within {limit_s:g} s"
        ):
            node = self._opened(limit_s)
            found = close = _close_of(node)
            if close is None:
                left_s = max(0.0, ends_s - time.monotonic())
                found = self._asked(self._next_round(node, ends_s), left_s + LAST_WORDS_S)
        if close is not None:
            self._is_out = False
            _raise(RendezvousClosedError, self._over(close))
        if not isinstance(found, Round):
            self._end(found)
        self._is_out, self._seated = False, found.head.number
        self._hold.is_done = False
        return self._info(node, found)

    async def _next_round(self, node: Node, ends_s: float) -> Round | CloseRecord | None:
        """The next round, or how the run ended while this node waited for it.

        `ends_s`: when the join timeout ends. The search for the coordinator has used a part of it.
        """
        offered = Address(node.bootstrap_host, self._hold.reserve(node.settings.port_range))
        try:
            left_s = max(0.0, ends_s - time.monotonic())
            async with self._hold.teller.while_waiting(node):
                whole_s = self._plan.node.join_timeout_s
                found = await node.next_round(offered, timeout_s=left_s, whole_s=whole_s)
                return found or node.closed
        except errors.RunClosedError as error:
            return error.close

    def _info(self, node: Node, found: Round) -> RendezvousInfo:
        head, rank = found.head, found.seat.node_rank
        # The workers of the last round have ended, so their store can be closed.
        self._agent_store = None
        if rank == 0 and self.use_agent_store:
            self._agent_store = self._serve_agent_store(head.bootstrap)
        elif rank == 0 and self._hold.reservation is not None:
            self._hold.reservation.hand_over()
        self._hold.teller.round_began(found)
        bootstrap = RendezvousStoreInfo(head.bootstrap.host, head.bootstrap.port)
        # Neither this info nor the store may refer to the handler, so that a dropped handler leaves
        # the run.
        plan, hold, door = self._plan, self._hold, self._door()
        return RendezvousInfo(
            None,
            rank,
            head.nodes,
            bootstrap,
            store_factory=lambda: _store(plan, hold, door, node, head),
        )

    def _serve_agent_store(self, at: Address) -> Any:
        """The workers' TCPStore, on the socket that was bound before its port was announced."""
        reservation = self._hold.reservation
        assert reservation is not None
        try:
            return _torch_bridge.tcp_store(
                at.host,
                at.port,
                is_server=True,
                timeout_s=self._plan.node.connect_timeout_s,
                listen_fd=reservation.detach(),
            )
        except (RuntimeError, ValueError) as error:
            self._is_out = True
            _raise(
                RendezvousConnectionError,
                f"this node has rank 0 and cannot serve the workers' store at {at}: {error}",
                error,
            )

    def num_nodes_waiting(self) -> int:
        """More than 0 if the round is over, so that the agent has to rendezvous again.

        A round ends when newcomers are let in, when a member was lost or has left, and when another
        node's workers failed. The coordinator pushes this, so no I/O is needed. The result is 0
        after the run has succeeded, and for a node whose workers have finished. It is 1 if the run
        ended otherwise: then the agent stops its workers, and the next rendezvous raises an error
        with the reason.

        Raises RendezvousConnectionError if the coordinator is lost for good, and
        RendezvousStateError if a newer start of this node has taken its place. Then the workers
        must stop.
        """
        node = self._node
        if node is None or self._is_done or not self._seated:
            return 0
        close = _close_of(node)
        if close is not None:
            return 0 if close.outcome is Outcome.SUCCEEDED else 1
        change = node.change
        if change is not None and change.kind is not ChangeKind.CLOSED:
            return max(1, change.count)
        if node.gone is not None and not isinstance(node.gone, errors.RunClosedError):
            _raise_as(node.gone)
        return 0

    # -- the end ---------------------------------------------------------------------------------

    def is_closed(self) -> bool:
        """Whether the run is over. Attaches to it first, if this node has not attached yet."""
        if self._is_shut:
            return True
        try:
            node = self._opened()
        except RendezvousClosedError:
            return True
        return _close_of(node) is not None

    def set_closed(self) -> None:
        """End the run for all nodes, as succeeded. Does nothing if it is over.

        Raises RendezvousTimeoutError after `close_timeout_s`.
        """
        ends_s = time.monotonic() + self._plan.close_timeout_s
        self._close(Outcome.SUCCEEDED, "the rendezvous was closed by one of its nodes", ends_s)

    def shutdown(self) -> bool:
        """End the run for all nodes, and close everything. False if the end was not confirmed.

        If it is called while an exception is handled, as torchrun's launcher does, the run is
        closed as failed for that reason. A node that was not attached only leaves. So does a node
        that is done, because the run is over when all nodes are done, and the others go on until
        then (torchrun's agent gives up its exit barrier after 300 s).

        Takes at most `close_timeout_s`. Rallypoint's thread does the rest, and the end of the
        process waits for it: the goodbye, and a coordinator that this node hosts, until the other
        nodes have learned of the end, or while their run needs it.
        """
        if self._is_shut:
            return True
        ends_s = time.monotonic() + self._plan.close_timeout_s
        outcome, reason = _why(sys.exception())
        is_well = True
        try:
            # A node that was not attached or is done leaves alone, and the run goes on without it.
            if not (self._is_out or self._is_done):
                self._close(outcome, reason, ends_s)
        except RendezvousError as error:
            _log.warning("run %r was not closed: %s", self.get_run_id(), error)
            is_well = False
        finally:
            self._hang_up(reason, ends_s - time.monotonic())
        return is_well

    def _close(self, outcome: Outcome, reason: str, ends_s: float) -> None:
        """Raises RendezvousTimeoutError at `ends_s`, or RendezvousConnectionError."""
        limit_s = self._plan.close_timeout_s
        with _until(ends_s, f"run {self.get_run_id()!r} was not closed within {limit_s:g} s"):
            left_s = max(0.0, ends_s - time.monotonic())
            try:
                node = self._opened(left_s * OWN_SHARE, left_s * (1 - OWN_SHARE))
            except RendezvousClosedError:
                return
            if _close_of(node) is None:
                left_s = max(0.0, ends_s - time.monotonic())
                self._asked(node.close_run(outcome, reason, left_s * OWN_SHARE), left_s)

    def _hang_up(self, reason: str, limit_s: float) -> None:
        """Say goodbye and close everything. Waits up to `limit_s`; the thread does the rest."""
        self._is_shut = True
        self._agent_store = None
        leaving = self._hold.leave(reason)
        if leaving is None:
            return
        try:
            leaving.result(max(0.0, limit_s))
        except TimeoutError:
            _log.debug(
                "run %r: shutdown() ended before the goodbye was answered", self.get_run_id()
            )
        except (errors.RallypointError, OSError, CancelledError) as error:
            _log.warning("run %r: the goodbye could not be said: %s", self.get_run_id(), error)

    def _end(self, close: CloseRecord | None) -> NoReturn:
        """The run was closed while this node waited for a round of it."""
        # A node without a seat in the last round was a standby or a newcomer.
        is_spare = close is not None and (self._seated == 0 or self._seated < close.round)
        if close is not None and close.outcome is Outcome.SUCCEEDED and is_spare:
            self._end_unneeded(f"{self._over(close)}; this node was not needed")
        self._is_out = False
        _raise(RendezvousClosedError, self._over(close))

    def _over(self, close: CloseRecord | None) -> str:
        return _over(self.get_run_id(), close)

    def _end_unneeded(self, text: str) -> NoReturn:
        if self._plan.ends_process:
            _log.info("%s", text)
            raise SystemExit(0)
        _raise(RendezvousGracefulExitError, text)

    # -- the node --------------------------------------------------------------------------------

    def _door(self) -> Portal:
        if self._hold.portal is None or self._hold.portal.is_of_parent:
            self._hold.portal = portal()
        return self._hold.portal

    def _opened(self, limit_s: float = math.inf, last_words_s: float = LAST_WORDS_S) -> Node:
        """The node, attached within `limit_s` or `connect_timeout_s`, whichever is less.

        `last_words_s`: how much longer it may take, so that it can end with its own error.
        """
        limit_s = max(0.0, min(limit_s, self._plan.node.connect_timeout_s))
        if not self._opening.acquire(timeout=limit_s + last_words_s):
            text = f"another call is still looking for the coordinator of run {self.get_run_id()!r}"
            _raise(RendezvousTimeoutError, text)
        try:
            if self._hold.node is None:
                if self._is_shut:
                    _raise(RendezvousClosedError, f"this node has left run {self.get_run_id()!r}")
                self._asked(self._open(limit_s), limit_s + last_words_s)
            node = self._hold.node
            if node is None:  # shut down by another thread meanwhile
                _raise(RendezvousClosedError, f"this node has left run {self.get_run_id()!r}")
            return node
        finally:
            self._opening.release()

    async def _open(self, limit_s: float) -> None:
        await self._hold.keep(await self._open_node(limit_s))

    async def _open_node(self, limit_s: float) -> Node:
        plan, hold = self._plan, self._hold
        own = msgspec.structs.replace(plan.node, connect_timeout_s=limit_s)
        if plan.open_ledger is not None and hold.ledger is None:
            hold.ledger = plan.open_ledger()
        node = Node(own, plan.run, workers=1, ledger=hold.ledger)
        hold.coming = node
        hold.teller.listen(node)
        try:
            async with hold.teller.while_waiting(node):
                await _let_in(node, limit_s)
        except BaseException:
            await hold.close_ledger()
            raise
        return node

    def _asked(self, work: Coroutine[Any, Any, _T], limit_s: float | None = None) -> _T:
        """Wait up to `limit_s` for the node's work. Its errors become those of a rendezvous."""
        try:
            return self._door().run(work, limit_s)
        except (errors.RallypointError, OSError) as error:  # a TimeoutError is an OSError
            if self._is_shut:  # by another thread, while this one waited
                self._raise_left(error)
            if isinstance(error, TimeoutError) and not str(error):
                coming = self._hold.coming
                error = TimeoutError((coming and coming.looking) or "there was no answer in time")
            _raise_as(error)
        except CancelledError as error:
            self._raise_left(error)

    def _raise_left(self, error: BaseException) -> NoReturn:
        _raise(RendezvousClosedError, f"this node has left run {self.get_run_id()!r}", error)

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.get_backend()}, run {self.get_run_id()!r}>"


def _store(plan: HandlerPlan, hold: HeldNode, door: Portal, node: Node, head: RoundHead) -> Any:
    """The store of a round."""

    def on_terminal() -> None:
        hold.is_done = True
        node.done()

    def on_bad_end(close: CloseRecord) -> NoReturn:
        # torchrun's agent is in its exit barrier, which suppresses every Exception.
        text = _over(plan.node.run_id, close)
        raise SystemExit(f"error: {text}; the workers of this node had finished")

    if plan.store is None:
        calls = RoundCalls(node, head.number, on_terminal, tells_end=plan.ends_process)
        return round_store(door, calls, on_bad_end)
    # The caller's store may outlive the run, and another run may have the same id. Its round
    # numbers begin at 1 again, but its digests differ, because each node draws a new incarnation.
    prefix = f"torch.rendezvous.{plan.node.run_id}.{head.number}/{head.digest}"
    return prefixed(prefix, plan.store, lambda: door.run(_called(on_terminal)))


def _over(run_id: str, close: CloseRecord | None) -> str:
    text = f"run {run_id!r} is over"
    return text if close is None else f"{text}: {close}"


async def _let_in(node: Node, limit_s: float) -> None:
    """Open a node in `limit_s`. A coordinator that was reached has more time."""
    try:
        async with asyncio.timeout(limit_s + LET_IN_S):
            await node.open()
    except TimeoutError as error:
        raise errors.UnreachableError(
            f"{node.settings.endpoint} did not let this node in within {limit_s:g} s",
            hint="the coordinator may be stopped or overloaded, or its ledger takes no writes",
        ) from error


@contextlib.contextmanager
def _until(ends_s: float, what: str) -> Iterator[None]:
    """Turn a RendezvousConnectionError at the end of the time into a RendezvousTimeoutError.

    The error of a backend that has answered is not changed, as in torch.
    """
    began_s = time.monotonic()
    try:
        yield
    except RendezvousConnectionError as error:
        used_s = time.monotonic() - began_s
        if used_s < OWN_SHARE * (ends_s - began_s) or _has_answered(error):
            raise
        _raise(RendezvousTimeoutError, f"{what}: {error}", error)


def _has_answered(error: BaseException) -> bool:
    ledgers = error.__cause__
    if not isinstance(ledgers, errors.LedgerUnreachableError):
        return False
    said = ledgers.__cause__
    return said is not None and not isinstance(said, TimeoutError)


def _close_of(node: Node) -> CloseRecord | None:
    """How the run ended, from the coordinator or the ledger; None while it is open."""
    gone = node.gone
    return node.closed or (gone.close if isinstance(gone, errors.RunClosedError) else None)


# -- errors ----------------------------------------------------------------------------------------


def _raise(kind: type[Exception], text: str, cause: BaseException | None = None) -> NoReturn:
    """Raise a rendezvous error, which is torch's own as well if torch's are imported."""
    raise _torch_bridge.error_class(kind)(text) from cause


def _raise_as(error: Exception) -> NoReturn:
    """Raise the rendezvous error for one of Rallypoint's errors."""
    if isinstance(error, errors.UsageError):
        raise error
    _raise(_kind_of(error), str(error), error)


def _kind_of(error: Exception) -> type[RendezvousError]:
    match error:
        case errors.JoinTimeoutError() | errors.StoreTimeoutError():
            return RendezvousTimeoutError
        case errors.RunClosedError():
            return RendezvousClosedError
        case errors.LedgerForeignError() | errors.LedgerCorruptError() | errors.LedgerFormatError():
            return RendezvousStateError
        case errors.SupersededError() | errors.EvictedError() | errors.RunLostError():
            return RendezvousStateError
        case errors.SettingsConflictError() | errors.NameTakenError() | errors.LimitError():
            return RendezvousError
        case errors.CoordinatorError() | errors.LedgerError() | OSError():
            return RendezvousConnectionError
    return RendezvousError


def _why(error: BaseException | None) -> tuple[Outcome, str]:
    """The reason and outcome of a run whose node is shut down while `error` is handled."""
    if error is None or (isinstance(error, SystemExit) and not error.code):
        return Outcome.SUCCEEDED, "a node has finished"
    text = (_torch_bridge.first_failure(error) or str(error)).strip().partition("\n")[0]
    return Outcome.FAILED, f"{type(error).__name__}: {text}"[:REASON_CHARACTERS_MAX]


async def _called(function: Callable[[], None]) -> None:
    function()
