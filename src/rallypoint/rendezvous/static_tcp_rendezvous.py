"""The `static` backend: the ranks are given, and node rank 0 serves a store at the endpoint.

With torch installed the store is torch's TCPStore, because torchrun's workers connect to it.
Without torch, rank 0 serves `_store_server`, which has the same calls. All nodes of a run need the
same kind. A node that finds the other kind raises an error.

This backend does not watch its nodes: it does not notice a node's death, and cannot replace a node.
"""

from __future__ import annotations

import logging
import math
import threading
import time
from datetime import timedelta
from typing import Any, Final, NoReturn

from rallypoint import errors
from rallypoint.rendezvous import _torch_bridge
from rallypoint.rendezvous.api import (
    RendezvousConnectionError,
    RendezvousError,
    RendezvousHandler,
    RendezvousInfo,
    RendezvousParameters,
    RendezvousStoreInfo,
    RendezvousTimeoutError,
)
from rallypoint.rendezvous.utils import parse_rendezvous_endpoint
from rallypoint.threads import within

__all__ = ["StaticTCPRendezvous", "create_rdzv_handler"]

DEFAULT_TIMEOUT_S: Final = 600
PROBE_S: Final = 1.0
"""How many seconds a listener may take to show its kind of store."""
UNKNOWN_S: Final = 10.0
"""How many seconds to wait for a listener of unknown kind, which may be a slow one of a known kind.
"""
RANKS_SHOWN_MAX: Final = 8
_SILENT: Final = "it accepts connections, but has not answered in time"
_OPTIONS: Final = ("rank", "timeout")

_log = logging.getLogger(__name__)


class StaticTCPRendezvous(RendezvousHandler):
    """A node of a run with fixed ranks.

    Args:
        master_addr: the host of node rank 0, at which the others reach it.
        master_port: the TCP port of its store.
        rank: this node's rank, 0 ... world_size - 1.
        world_size: how many nodes there are.
        run_id: the run's name. Different runs can share a store.
        timeout: how many seconds the meeting may take, and by default each call of the store.
    """

    def __init__(
        self,
        master_addr: str,
        master_port: int,
        rank: int,
        world_size: int,
        run_id: str,
        timeout: float,
    ) -> None:
        self.master_addr = master_addr
        self.master_port = master_port
        self.rank = rank
        self.world_size = world_size
        self.run_id = run_id
        self.timeout = timedelta(seconds=timeout)
        self._lock = threading.Lock()
        self._store: Any = None

    def get_backend(self) -> str:
        """ "static"."""
        return "static"

    @property
    def use_agent_store(self) -> bool:
        """True: node rank 0 serves the workers' store at the endpoint."""
        return True

    def next_rendezvous(self) -> RendezvousInfo:
        """Connect to the store at the first call. Each call returns the same round.

        Node rank 0 waits at the first call until every node has connected. All rounds of a run have
        the same keys.

        Raises:
            RendezvousConnectionError: rank 0's store cannot be served or reached.
            RendezvousTimeoutError: nodes did not connect in time. The text has their ranks.
        """
        with self._lock:
            if self._store is None:
                self._store = self._meet()
                self.master_port = self.master_port or self._store.port  # 0: any free port
            return RendezvousInfo(
                _prefixed(self.run_id, self._store),
                self.rank,
                self.world_size,
                RendezvousStoreInfo(self.master_addr, self.master_port),
            )

    def is_closed(self) -> bool:
        """False: a static rendezvous is never closed."""
        return False

    def set_closed(self) -> None:
        """Does nothing."""

    def num_nodes_waiting(self) -> int:
        """0: no node can be let in later."""
        return 0

    def get_run_id(self) -> str:
        """The run's name."""
        return self.run_id

    def shutdown(self) -> bool:
        """Does nothing, and returns True: other nodes may still need rank 0's store.

        That store lives as long as this handler, or a store that it returned.
        """
        return True

    # -- meeting

    def _meet(self) -> Any:
        deadline_s = time.monotonic() + self.timeout.total_seconds()
        kind = "PyTorch's TCPStore" if _torch_bridge.is_available() else "a Rallypoint store"
        role = "serving" if self.rank == 0 else "connecting to"
        _log.info("%s %s at %s", role, kind, self._where)
        store = self._torch_store() if _torch_bridge.is_available() else self._own_store()
        meeting = _prefixed(f"rallypoint/static/{self.run_id}", store)
        meeting.set(str(self.rank), b"1")
        if self.rank == 0:
            self._wait_for_all(meeting, deadline_s)
        return store

    def _wait_for_all(self, meeting: Any, deadline_s: float) -> None:
        ranks = [str(rank) for rank in range(self.world_size)]
        left_s = max(deadline_s - time.monotonic(), 0.001)
        try:
            meeting.wait(ranks, timedelta(seconds=left_s))
        except (RuntimeError, errors.StoreError) as error:  # torch's are RuntimeErrors
            missing = [rank for rank in ranks if not meeting.check([rank])]
            more = ", ..." if len(missing) > RANKS_SHOWN_MAX else ""
            raise _error(
                RendezvousTimeoutError,
                f"{len(missing)} of {self.world_size} nodes did not connect to {self._where} "
                f"within {self.timeout.total_seconds():g} s: those with node rank "
                f"{', '.join(missing[:RANKS_SHOWN_MAX])}{more}",
            ) from error

    @property
    def _where(self) -> str:
        host = f"[{self.master_addr}]" if ":" in self.master_addr else self.master_addr
        return f"{host}:{self.master_port}"

    # -- with torch

    def _torch_store(self) -> Any:
        """A TCPStore. Its constructor cannot be interrupted, so it runs in its own thread."""
        timeout_s = self.timeout.total_seconds()
        ends_s = time.monotonic() + timeout_s
        if self.rank != 0:
            self._wait_for_a_store(ends_s)
        left_s = max(PROBE_S, ends_s - time.monotonic())
        try:
            store = within(
                left_s + PROBE_S,
                lambda: _torch_bridge.tcp_store(
                    self.master_addr,
                    self.master_port,
                    is_server=self.rank == 0,
                    timeout_s=left_s,
                    multi_tenant=True,
                ),
            )
        except TimeoutError:
            self._fail(_SILENT)
        except RuntimeError as error:
            self._fail(str(error), error)
        store.set_timeout(self.timeout)
        return store

    def _wait_for_a_store(self, ends_s: float) -> None:
        """Wait until a TCPStore listens. Raises at once if the other kind of store listens.

        torch's client makes long pauses between its tries, and tries another kind of store until
        its whole timeout is over. So it is used only for a TCPStore, and for a listener whose kind
        is still unknown after a while: a frozen one, or one of an unknown release of torch.
        """
        from rallypoint.client.dialing import Pauses
        from rallypoint.net import describe_os_error
        from rallypoint.rendezvous._store_probe import StoreKind, kind_at

        pauses = Pauses()
        unknown_since_s = math.inf
        while True:
            now_s = time.monotonic()
            limit_s = max(PROBE_S, ends_s - now_s)
            try:
                kind = within(limit_s, lambda: kind_at(self.master_addr, self.master_port, PROBE_S))
            except (OSError, UnicodeError) as error:  # a TimeoutError is an OSError
                unknown_since_s = math.inf
                if time.monotonic() >= ends_s:
                    timeout_s, why = self.timeout.total_seconds(), describe_os_error(error)
                    self._fail(f"nothing has answered within {timeout_s:g} s: {why}", error)
            else:
                if kind is StoreKind.OURS:
                    self._fail(
                        f"node rank 0 has no PyTorch and serves {kind.value} there, but this node "
                        "has PyTorch; install PyTorch on all nodes, or on none"
                    )
                unknown_since_s = min(unknown_since_s, now_s)
                if kind is StoreKind.TORCH or now_s - unknown_since_s > UNKNOWN_S:
                    return
            left_s = ends_s - time.monotonic()
            if left_s <= 0:
                self._fail(_SILENT)
            time.sleep(min(pauses.next_s(), left_s))

    # -- without torch

    def _own_store(self) -> Any:
        from rallypoint.client.blocking import portal
        from rallypoint.rendezvous._store_client import open_store
        from rallypoint.rendezvous._store_server import serve_at

        timeout_s = self.timeout.total_seconds()
        try:
            if self.rank != 0:
                return open_store(portal(), self.master_addr, self.master_port, timeout_s)
            server = serve_at(portal(), self.master_port)
            return open_store(portal(), "127.0.0.1", server.port, timeout_s, keeps=server)
        except (OSError, errors.CoordinatorError) as error:
            self._fail(str(error), error)

    def _fail(self, why: str, error: Exception | None = None) -> NoReturn:
        verb = "served" if self.rank == 0 else "reached"
        raise _error(
            RendezvousConnectionError,
            f"The store of the static rendezvous at {self._where} cannot be {verb} by node rank "
            f"{self.rank}: {why}",
        ) from error


def create_rdzv_handler(params: RendezvousParameters) -> RendezvousHandler:
    """The handler of a node, from `endpoint` (host:port) and the options `rank` and `timeout`.

    `rank`: this node's rank, required. `timeout`: in seconds, 600 by default. The run has
    `params.max_nodes` nodes.

    Raises ValueError for an endpoint without host or port, a missing rank or one out of range, a
    wrong value, and an unknown option.
    """
    rank = params.get_as_int("rank")
    if rank is None:
        raise ValueError(
            "A static rendezvous needs this node's rank: give --node-rank to the launcher, or "
            "rank=... in the parameters."
        )
    endpoint = (params.endpoint or "").strip()
    if not endpoint:
        raise ValueError(
            "A static rendezvous needs the endpoint of node rank 0: give --master-addr and "
            "--master-port to the launcher, or host:port as the endpoint."
        )
    host, port = parse_rendezvous_endpoint(endpoint, -1)
    if port == -1:
        raise ValueError(
            f"The endpoint '{endpoint}' of a static rendezvous has no port: give --master-port to "
            "the launcher, or host:port as the endpoint."
        )
    _check_options(params, rank)
    timeout = params.get_as_int("timeout", DEFAULT_TIMEOUT_S)
    if timeout is None or timeout < 1:
        raise ValueError(
            f"The rendezvous configuration option 'timeout' is in seconds, at least 1, not "
            f"{timeout}."
        )
    return StaticTCPRendezvous(host, port, rank, params.max_nodes, params.run_id, timeout)


def _check_options(params: RendezvousParameters, rank: int) -> None:
    unknown = sorted(params.config.keys() - set(_OPTIONS))
    if unknown:
        raise ValueError(
            f"The static rendezvous has no configuration option '{unknown[0]}'; it has "
            f"{' and '.join(_OPTIONS)}."
        )
    if not 0 <= rank < params.max_nodes:
        raise ValueError(
            f"The rendezvous configuration option 'rank' is {rank}, but of {params.max_nodes} "
            f"nodes the ranks are 0 to {params.max_nodes - 1}."
        )


# ---- helpers -----------------------------------------------------------------------------------


def _prefixed(prefix: str, store: Any) -> Any:
    from rallypoint.rendezvous._stores import prefixed

    return prefixed(prefix, store, lambda: None)


def _error(kind: type[RendezvousError], message: str) -> Exception:
    return _torch_bridge.error_class(kind)(message)
