"""A rendezvous over any store of one value with compare-and-swap, with torch's names.

In torch's module all nodes rewrite that value, at each round and each heartbeat. Here they only
elect a coordinator through it. So a user's `RendezvousBackend` is a register, in which
`ledger/torch_backend.py` keeps the lease and the round. A backend's value is never executed: it is
parsed as data, and refused if it is not Rallypoint's.

    handler = DynamicRendezvousHandler.from_backend(
        run_id="job-42", store=store, backend=backend, min_nodes=2, max_nodes=4
    )
    info = handler.next_rendezvous()
"""

from __future__ import annotations

import logging
import sys
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, ClassVar, Final, TypeAlias

import msgspec

from rallypoint import errors, settings
from rallypoint.client.node import Node
from rallypoint.core.values import RunSettings
from rallypoint.endpoints import Endpoint, EndpointKind
from rallypoint.ledger.torch_backend import TorchBackendLedger
from rallypoint.rendezvous._node_handler import HandlerPlan, NodeRendezvousHandler, stop_s
from rallypoint.rendezvous.api import RendezvousParameters

__all__ = [
    "DynamicRendezvousHandler",
    "RendezvousBackend",
    "RendezvousSettings",
    "RendezvousTimeout",
    "create_handler",
]

_log = logging.getLogger("rallypoint.rendezvous")

Token: TypeAlias = Any
"""Identifies one write of a backend's value. Its form is the backend's own."""


class RendezvousBackend(ABC):
    """One value that all nodes of a run share, with compare-and-swap.

    Its methods are called from threads, one at a time for each handler. A call that raises is
    repeated. A call that does not return is left behind when its time is over.
    """

    @property
    @abstractmethod
    def name(self) -> str:
        """The backend's name."""

    @property
    def server_host(self) -> str | None:
        """The host that keeps the value, if it is known.

        If this node coordinates, the other nodes get the address from which this machine reaches
        that host. torch's class has no such property, and a backend need not have it.
        """
        return None

    @abstractmethod
    def get_state(self) -> tuple[bytes, Token] | None:
        """The value and its token; None if there is none.

        Raises:
            RendezvousConnectionError: the backend does not answer.
            RendezvousStateError: its value cannot be read.
        """

    @abstractmethod
    def set_state(
        self, state: bytes, token: Token | None = None
    ) -> tuple[bytes, Token, bool] | None:
        """Replace the value that has this token. Without a token, create it if there is none.

        With a stale or wrong token nothing changes. Returns the value afterwards, its token, and
        whether this call has set it. None: the caller has to read it.

        Raises:
            RendezvousConnectionError: the backend does not answer.
            RendezvousStateError: its value cannot be read.
        """


# ---- settings ------------------------------------------------------------------------------------


class RendezvousTimeout:
    """How long the parts of a rendezvous may take. Read-only; each is positive.

    Args:
        join: `next_rendezvous` as a whole; 600 s if None.
        last_call: the wait for more nodes once the minimum is there; 30 s if None.
        close: ending the run, by `set_closed` or `shutdown`; 30 s if None.
        heartbeat: how long the answer to a heartbeat may take before the node connects to the
            coordinator again, and how long one call of the backend may take; 5 s if None.

    Raises:
        ValueError: one of them is not positive. The text names it.
    """

    _DEFAULTS: ClassVar[dict[str, timedelta]] = {
        "join": timedelta(seconds=600),
        "last_call": timedelta(seconds=30),
        "close": timedelta(seconds=30),
        "heartbeat": timedelta(seconds=5),
    }

    def __init__(
        self,
        join: timedelta | None = None,
        last_call: timedelta | None = None,
        close: timedelta | None = None,
        heartbeat: timedelta | None = None,
    ) -> None:
        self._join = self._checked("join", join)
        self._last_call = self._checked("last_call", last_call)
        self._close = self._checked("close", close)
        self._heartbeat = self._checked("heartbeat", heartbeat)

    def _checked(self, name: str, given: timedelta | None) -> timedelta:
        timeout = self._DEFAULTS[name] if given is None else given
        if timeout <= timedelta(0):
            raise ValueError(f"The {name} timeout ({timeout}) must be positive.")
        return timeout

    @property
    def join(self) -> timedelta:
        """How long `next_rendezvous` may take."""
        return self._join

    @property
    def last_call(self) -> timedelta:
        """The wait for more nodes once the minimum is there."""
        return self._last_call

    @property
    def close(self) -> timedelta:
        """How long ending the run may take."""
        return self._close

    @property
    def heartbeat(self) -> timedelta:
        """How long the answer to a heartbeat may take."""
        return self._heartbeat

    def __repr__(self) -> str:
        return (
            f"RendezvousTimeout(join={self._join}, last_call={self._last_call}, "
            f"close={self._close}, heartbeat={self._heartbeat})"
        )


@dataclass(frozen=True, eq=False)
class RendezvousSettings:
    """The settings of a dynamic rendezvous.

    A node is suspect after `keep_alive_interval` of silence, and lost after that times
    `keep_alive_max_attempt`. `run_settings` has the others as Rallypoint's settings.
    """

    run_id: str
    min_nodes: int
    max_nodes: int
    timeout: RendezvousTimeout
    keep_alive_interval: timedelta
    keep_alive_max_attempt: int


# ---- the handler ---------------------------------------------------------------------------------


class DynamicRendezvousHandler(NodeRendezvousHandler):
    """One node of a run whose coordinator is elected through a backend. See `from_backend`.

    Any thread may call, but only one `next_rendezvous` at a time. A process may have any number of
    handlers.
    """

    def __init__(
        self, plan: HandlerPlan, settings: RendezvousSettings, backend: RendezvousBackend
    ) -> None:
        super().__init__(plan)
        self._settings = settings
        self._backend = backend

    @classmethod
    def from_backend(
        cls,
        run_id: str,
        store: Any,
        backend: RendezvousBackend,
        min_nodes: int,
        max_nodes: int,
        local_addr: str | None = None,
        timeout: RendezvousTimeout | None = None,
        keep_alive_interval: int = 5,
        keep_alive_max_attempt: int = 3,
    ) -> DynamicRendezvousHandler:
        """A handler over `backend`, which is first used by the handler's first call.

        Args:
            run_id: the run's name, the same on all its nodes.
            store: each round's store is a prefix over this one. None: each round has a store that
                its coordinator keeps.
            backend: any object with the methods of RendezvousBackend, also one of torch's.
            min_nodes: the fewest nodes of a round, at least 1.
            max_nodes: the most nodes of a round, at least `min_nodes`.
            local_addr: the address at which other nodes reach this one; None: it is found out.
            timeout: None for the defaults.
            keep_alive_interval: seconds of silence after which a node is suspect; more than 0.
            keep_alive_max_attempt: after how many such intervals it is lost; at least 1.

        All but `store`, `backend` and `local_addr` must be equal on all nodes: the first node sets
        them for the run. Environment variables (RALLYPOINT_...) set what has no argument here.

        Raises:
            ValueError: the run id is empty, or a number is wrong. The text names it.
        """
        asked = RendezvousSettings(
            run_id,
            min_nodes,
            max_nodes,
            timeout or RendezvousTimeout(),
            timedelta(seconds=keep_alive_interval),
            keep_alive_max_attempt,
        )
        _check(asked)
        join_s = _bounded_s(asked.timeout.join)
        heartbeat_s = _bounded_s(asked.timeout.heartbeat)
        node = settings.node_settings(
            found=settings.NO_LAUNCHER,
            endpoint=_endpoint(backend),
            run_id=asked.run_id,
            local_addr=local_addr,
            stop_s=stop_s(),
            join_timeout_s=join_s,
            connect_timeout_s=_connect_timeout_s(None, join_s),
            coordinator_silence_s=_bounded_s(asked.keep_alive_interval) / 3 + heartbeat_s,
        )
        plan = HandlerPlan(
            backend=backend.name,
            node=node,
            run=run_settings(asked),
            close_timeout_s=_bounded_s(asked.timeout.close),
            open_ledger=_ledger_over(backend, min(heartbeat_s, join_s)),
            store=store,
        )
        return cls(plan, asked, backend)

    @property
    def settings(self) -> RendezvousSettings:
        """The settings of the rendezvous."""
        return self._settings

    def _connect_within(self, seconds: float) -> None:
        """How long to search for a coordinator, if less than the join timeout."""
        node = self._plan.node
        known_s = _connect_timeout_s(seconds, node.join_timeout_s)
        node = msgspec.structs.replace(node, connect_timeout_s=known_s)
        self._plan = msgspec.structs.replace(self._plan, node=node)

    def _stop_heartbeats(self) -> None:
        """Leave without closing the run. torch's tests end their handlers by this name."""
        if not self._is_shut:
            self._hang_up("its heartbeats were stopped", self._plan.close_timeout_s)

    async def _open_node(self, limit_s: float) -> Node:
        if self._settings.max_nodes == 1 and await self._keeps_nothing():
            return await self._open_alone()
        return await super()._open_node(limit_s)

    async def _keeps_nothing(self) -> bool:
        """Whether the backend answers every call with None. False if it does not answer now."""
        assert self._plan.open_ledger is not None
        ledger = self._plan.open_ledger()
        assert isinstance(ledger, TorchBackendLedger)
        try:
            await ledger.open()
            return ledger.keeps_nothing
        except errors.LedgerError:
            return False
        finally:
            await ledger.aclose()

    async def _open_alone(self) -> Node:
        """Settings for a run of one node, whose coordinator is in this process, in memory."""
        _log.warning(
            "the rendezvous backend %r keeps nothing: this node is alone in run %r",
            self.get_backend(),
            self.get_run_id(),
        )
        alone = msgspec.structs.replace(self._plan.node, endpoint=Endpoint(EndpointKind.LOCAL))
        node = Node(alone, self._plan.run, workers=1)
        self._hold.teller.listen(node)
        await node.open()
        return node


def run_settings(asked: RendezvousSettings) -> RunSettings:
    """Rallypoint's settings of the run for torch's.

    After `keep_alive_interval` of silence a node is suspect; heartbeats are sent at a third of it.
    After `keep_alive_max_attempt` intervals the node is lost, as in torch. A node whose process has
    ended is lost at once, as its connection ends.
    """
    interval_s = _bounded_s(asked.keep_alive_interval)
    return settings.run_settings(
        found=settings.NO_LAUNCHER,
        min_nodes=asked.min_nodes,
        max_nodes=asked.max_nodes,
        last_call_s=_bounded_s(asked.timeout.last_call),
        suspect_after_s=interval_s,
        lost_after_s=min(interval_s * asked.keep_alive_max_attempt, _LONGEST_S),
        # torchrun counts restarts itself, on each node, and does not report whose fault they were.
        max_restarts="any",
    )


_LONGEST_S: Final = 365 * 86_400.0
"""The longest timeout of Rallypoint, in seconds. A longer one is cut to it."""


def _bounded_s(time: timedelta) -> float:
    return min(time.total_seconds(), _LONGEST_S)


def _connect_timeout_s(given_s: float | None, join_s: float) -> float:
    known_s: float = settings.resolve("connect_timeout_s", given_s).value
    return min(join_s, known_s)


def _check(asked: RendezvousSettings) -> None:
    """Raises ValueError for a wrong setting."""
    if not asked.run_id:
        raise ValueError("The run id must be a non-empty string.")
    if asked.min_nodes < 1:
        raise ValueError(
            f"The minimum number of nodes ({asked.min_nodes}) must be greater than zero."
        )
    if asked.max_nodes < asked.min_nodes:
        raise ValueError(
            f"The maximum number of nodes ({asked.max_nodes}) must be greater than or equal to "
            f"the minimum number of nodes ({asked.min_nodes})."
        )
    if asked.keep_alive_interval <= timedelta(0):
        seconds = asked.keep_alive_interval.total_seconds()
        raise ValueError(f"keep_alive_interval must be more than 0 seconds, and is {seconds:g}.")
    if asked.keep_alive_max_attempt < 1:
        raise ValueError(
            f"keep_alive_max_attempt must be at least 1, and is {asked.keep_alive_max_attempt}."
        )


def _endpoint(backend: RendezvousBackend) -> Endpoint:
    """The endpoint for messages. Its host is the backend's, if that is known."""
    host = getattr(backend, "server_host", None)
    return Endpoint(
        EndpointKind.LEDGER,
        host=host if isinstance(host, str) else "",
        text=f"the rendezvous backend {backend.name!r}",
    )


def _ledger_over(backend: RendezvousBackend, timeout_s: float) -> Callable[[], TorchBackendLedger]:
    return lambda: TorchBackendLedger(backend, timeout_s=timeout_s)


# ---- from parameters -----------------------------------------------------------------------------


def create_handler(
    store: Any, backend: RendezvousBackend, params: RendezvousParameters
) -> DynamicRendezvousHandler:
    """A handler over `backend`, from parameters. torch's RendezvousParameters works as well.

    Options, in whole seconds unless said otherwise:

    * `join_timeout`, `last_call_timeout`, `close_timeout`, `heartbeat_timeout`: see
      RendezvousTimeout.
    * `keep_alive_interval` (5), and `keep_alive_max_attempt` (3, a number): see `from_backend`.
    * `read_timeout` (60): how long a node that joins searches for a coordinator, at most the join
      timeout. The c10d and etcd backends use it for their own first contact as well.

    Other options are the backend's. `timeout`, which torchrun always passes, is not used.

    Raises:
        ValueError: an option is wrong. The text names it. See also `from_backend`.
        TypeError: a keep-alive option was given as None.
    """
    connect_timeout_s = params.get_as_int("read_timeout")
    if connect_timeout_s is not None and connect_timeout_s <= 0:
        raise ValueError(f"read_timeout must be more than 0 seconds, and is {connect_timeout_s}.")
    handler = DynamicRendezvousHandler.from_backend(
        params.run_id,
        store,
        backend,
        params.min_nodes,
        params.max_nodes,
        params.local_addr,
        RendezvousTimeout(
            _seconds(params, "join_timeout"),
            _seconds(params, "last_call_timeout"),
            _seconds(params, "close_timeout"),
            _seconds(params, "heartbeat_timeout"),
        ),
        keep_alive_interval=_number(params, "keep_alive_interval", 5),
        keep_alive_max_attempt=_number(params, "keep_alive_max_attempt", 3),
    )
    if connect_timeout_s is not None:
        handler._connect_within(connect_timeout_s)
    return handler


def _seconds(params: RendezvousParameters, key: str) -> timedelta | None:
    seconds = params.get_as_int(key)
    return None if seconds is None else timedelta(seconds=seconds)


def _number(params: RendezvousParameters, key: str, default: int) -> int:
    number = params.get_as_int(key, default)
    if number is None:
        raise TypeError(
            f"The rendezvous configuration option '{key}' is None, and must be a number."
        )
    return number


def get_method_name(depth: int = 2) -> str:
    """The name of the function `depth` calls above this one; "no_method_name" if there is none."""
    frame = sys._getframe()
    for _ in range(depth):
        if frame.f_back is None:
            return "no_method_name"
        frame = frame.f_back
    return frame.f_code.co_name
