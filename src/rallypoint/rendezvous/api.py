"""The names of `torch.distributed.elastic.rendezvous.api`, without torch.

A handler, its parameters and its results are plain classes here. torchrun uses only their methods
and not their base classes, so torch need not be installed.

    RendezvousError
    ├── RendezvousClosedError         the run has ended, or was closed
    ├── RendezvousTimeoutError        no round was formed in time
    ├── RendezvousConnectionError     the backend does not answer
    ├── RendezvousStateError          the backend's value cannot be read
    └── RendezvousGracefulExitError   this node is not needed: it ends, and nothing failed

The texts of ValueErrors are torch's, because its tests and those of plugins match whole texts.
Further details are in a note (PEP 678), which a traceback shows.

This file must not open connections. The libraries of a backend are loaded when it is used.
"""

from __future__ import annotations

import socket
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol, TypeAlias

__all__ = [
    "RendezvousClosedError",
    "RendezvousConnectionError",
    "RendezvousError",
    "RendezvousGracefulExitError",
    "RendezvousHandler",
    "RendezvousHandlerCreator",
    "RendezvousHandlerRegistry",
    "RendezvousInfo",
    "RendezvousParameters",
    "RendezvousStateError",
    "RendezvousStoreInfo",
    "RendezvousTimeoutError",
    "rendezvous_handler_registry",
]


# ---- errors ------------------------------------------------------------------------------------


class RendezvousError(Exception):
    """Base of all errors of a rendezvous."""


class RendezvousClosedError(RendezvousError):
    """The run has ended or was closed: it forms no further round."""


class RendezvousTimeoutError(RendezvousError):
    """No round was formed in time."""


class RendezvousConnectionError(RendezvousError):
    """The backend could not be reached, or no longer answers."""


class RendezvousStateError(RendezvousError):
    """The backend's value is damaged, or another program's."""


class RendezvousGracefulExitError(RendezvousError):
    """This node is not needed and should end; nothing has failed."""


# ---- the result of a rendezvous ----------------------------------------------------------------


class _KeyValueStore(Protocol):
    """The two calls by which an address is exchanged. Every store of torch has them."""

    def set(self, key: str, value: Any, /) -> Any: ...

    def get(self, key: str, /) -> bytes: ...


@dataclass
class RendezvousStoreInfo:
    """The address of the workers' own store: host and TCP port, equal on all nodes."""

    MASTER_ADDR_KEY: ClassVar[str] = "MASTER_ADDR"
    MASTER_PORT_KEY: ClassVar[str] = "MASTER_PORT"
    master_addr: str
    master_port: int

    @staticmethod
    def build(
        rank: int,
        store: _KeyValueStore,
        local_addr: str | None,
        server_port: int | None = None,
    ) -> RendezvousStoreInfo:
        """Agree on an address through `store`: node rank 0 writes it, and every node reads it.

        Rank 0 writes `local_addr`, else this machine's fully qualified name, and `server_port`,
        else a port that is free now. The other ranks wait as long as `store` does, and raise its
        errors.
        """
        if rank == 0:
            address = local_addr or socket.getfqdn()
            # imported here, because only this function needs sockets
            from rallypoint.net import free_port

            port = server_port or free_port()
            store.set(RendezvousStoreInfo.MASTER_ADDR_KEY, address.encode())
            store.set(RendezvousStoreInfo.MASTER_PORT_KEY, str(port).encode())
        return RendezvousStoreInfo(
            master_addr=store.get(RendezvousStoreInfo.MASTER_ADDR_KEY).decode(),
            master_port=int(store.get(RendezvousStoreInfo.MASTER_PORT_KEY)),
        )


class RendezvousInfo:
    """One round, as `RendezvousHandler.next_rendezvous` returns it. Read-only.

    Args:
        store: the round's store, with the semantics of torch.distributed.Store. None if there is
            a `store_factory`.
        rank: this node's rank, 0 ... world_size - 1.
        world_size: how many nodes are in the round.
        bootstrap_store_info: where the workers' own store will be; None if there is none.
        store_factory: makes the store at the first access of `store`, once. So a store that needs
            torch is made only if torch is in use. `store` raises its errors.
    """

    def __init__(
        self,
        store: Any,
        rank: int,
        world_size: int,
        bootstrap_store_info: RendezvousStoreInfo | None,
        *,
        store_factory: Callable[[], Any] | None = None,
    ) -> None:
        self._store = store
        self._store_factory = store_factory
        self._store_lock = threading.Lock()
        self._rank = rank
        self._world_size = world_size
        self._bootstrap_store_info = bootstrap_store_info

    @property
    def store(self) -> Any:
        """The round's store."""
        with self._store_lock:
            if self._store_factory is not None:
                self._store = self._store_factory()
                self._store_factory = None
            return self._store

    @property
    def rank(self) -> int:
        """This node's rank in the round."""
        return self._rank

    @property
    def world_size(self) -> int:
        """How many nodes are in the round."""
        return self._world_size

    @property
    def bootstrap_store_info(self) -> RendezvousStoreInfo | None:
        """The address of the workers' own store."""
        return self._bootstrap_store_info

    def __repr__(self) -> str:
        return (
            f"<RendezvousInfo rank {self._rank} of {self._world_size}, "
            f"bootstrap {self._bootstrap_store_info}>"
        )


# ---- a handler ---------------------------------------------------------------------------------


class RendezvousHandler(ABC):
    """One node's side of a rendezvous, which torchrun's agent calls."""

    @abstractmethod
    def get_backend(self) -> str:
        """The name under which the backend is registered."""

    @property
    def use_agent_store(self) -> bool:
        """Whether the workers use a store that an agent serves at the bootstrap address.

        If so, node rank 0 must serve a real TCPStore there as long as workers run. If not, the
        worker with rank 0 serves one there itself, and the port must be free.
        """
        return False

    @abstractmethod
    def next_rendezvous(self) -> RendezvousInfo:
        """Wait for a round with this node.

        Raises:
            RendezvousClosedError: the run has ended.
            RendezvousTimeoutError: no round was formed in time.
            RendezvousConnectionError: the backend does not answer.
            RendezvousStateError: the backend's value cannot be read.
            RendezvousGracefulExitError: the run does not need this node.
        """

    @abstractmethod
    def is_closed(self) -> bool:
        """Whether this node knows that the run is over. It may be over earlier."""

    @abstractmethod
    def set_closed(self) -> None:
        """End the run for all its nodes: no further round is formed."""

    @abstractmethod
    def num_nodes_waiting(self) -> int:
        """How many nodes wait to join. If more than 0, the agent rendezvouses again.

        torchrun's agent calls it ten times a second, so it must not wait for the network.
        """

    @abstractmethod
    def get_run_id(self) -> str:
        """The run's name, the same on all its nodes."""

    @abstractmethod
    def shutdown(self) -> bool:
        """Close everything. Returns whether that succeeded. Idempotent."""


# ---- its parameters ----------------------------------------------------------------------------

_TRUE = frozenset({"1", "true", "t", "yes", "y"})
_FALSE = frozenset({"0", "false", "f", "no", "n"})


class RendezvousParameters:
    """The parameters of a backend's creator. The attributes have the arguments' names.

    Args:
        backend: the name of a registered backend.
        endpoint: where the nodes meet, in the backend's own form; most often `host:port`.
        run_id: the run's name, the same on all its nodes. Not checked here.
        min_nodes: the fewest nodes of a round, at least 1.
        max_nodes: the most nodes of a round, at least `min_nodes`.
        local_addr: the address at which other nodes reach this one; None: it is found out.
        **kwargs: the backend's own options, kept as the dict `config`.

    Raises:
        ValueError: the name is empty, or a number of nodes is wrong.
    """

    def __init__(
        self,
        backend: str,
        endpoint: str,
        run_id: str,
        min_nodes: int,
        max_nodes: int,
        local_addr: str | None = None,
        **kwargs: Any,
    ) -> None:
        _require_name(backend)
        if min_nodes < 1:
            raise ValueError(
                f"The minimum number of rendezvous nodes ({min_nodes}) must be greater than zero."
            )
        if max_nodes < min_nodes:
            raise ValueError(
                f"The maximum number of rendezvous nodes ({max_nodes}) must be greater than or "
                f"equal to the minimum number of rendezvous nodes ({min_nodes})."
            )
        self.backend = backend
        self.endpoint = endpoint
        self.run_id = run_id
        self.min_nodes = min_nodes
        self.max_nodes = max_nodes
        self.config: dict[str, Any] = kwargs
        self.local_addr = local_addr

    def get(self, key: str, default: Any = None) -> Any:
        """The option `key`, or `default` if it was not given."""
        return self.config.get(key, default)

    def get_as_bool(self, key: str, default: bool | None = None) -> bool | None:
        """The option `key` as a bool; None stays None.

        A bool, 0 or 1, or in any case 1/true/t/yes/y and 0/false/f/no/n; else ValueError.
        """
        value = self.get(key, default)
        if value is None or isinstance(value, bool):
            return value
        if isinstance(value, int) and value in (0, 1):
            return value == 1
        if isinstance(value, str) and value.lower() in _TRUE | _FALSE:
            return value.lower() in _TRUE
        raise ValueError(
            f"The rendezvous configuration option '{key}' does not represent a valid boolean value."
        )

    def get_as_int(self, key: str, default: int | None = None) -> int | None:
        """The option `key` as an int, by `int(value)`; None stays None. Raises ValueError."""
        value = self.get(key, default)
        if value is None:
            return None
        try:
            return int(value)
        except (ValueError, TypeError, OverflowError) as error:
            raise ValueError(
                f"The rendezvous configuration option '{key}' does not represent a valid integer "
                "value."
            ) from error

    def __repr__(self) -> str:
        low, high = self.min_nodes, self.max_nodes
        # Without the options, which may include a token.
        return (
            f"<RendezvousParameters {self.backend} at {self.endpoint!r}, run {self.run_id!r}, "
            f"{low if low == high else f'{low} to {high}'} nodes>"
        )


def _require_name(backend: str) -> None:
    if not backend:
        raise ValueError("The rendezvous backend name must be a non-empty string.")


# ---- the registry ------------------------------------------------------------------------------

RendezvousHandlerCreator: TypeAlias = Callable[[RendezvousParameters], RendezvousHandler]


class RendezvousHandlerRegistry:
    """Backends by name.

    Args:
        discover: called once with this registry, when a name is first used that is not
            registered; it may register more.
    """

    def __init__(
        self, *, discover: Callable[[RendezvousHandlerRegistry], None] | None = None
    ) -> None:
        self._registry: dict[str, RendezvousHandlerCreator] = {}
        self._discover = discover
        # Reentrant, as `discover` may use the registry itself.
        self._discovering = threading.RLock()

    def register(
        self, backend: str, creator: RendezvousHandlerCreator, *, override: bool = False
    ) -> None:
        """Register `creator` as the one that makes the handlers of `backend`.

        `override`: replace the creator of that name, even of a built-in backend. Without it the
        same creator may be registered again, but another one raises ValueError. An empty name
        raises ValueError, too.
        """
        _require_name(backend)
        current = self._registry.get(backend)
        # Compared by equality, because each access of a bound method makes another object.
        if current is not None and current != creator and not override:
            error = ValueError(
                f"The rendezvous backend '{backend}' cannot be registered with '{creator}' as it "
                f"is already registered with '{current}'."
            )
            error.add_note("Give override=True to replace it.")
            raise error
        self._registry[backend] = creator

    def create_handler(self, params: RendezvousParameters) -> RendezvousHandler:
        """A new handler of the backend that `params` names.

        Raises ValueError if no backend has that name, RuntimeError if the handler is of another
        backend, and the errors of the backend's creator.
        """
        creator = self._registry.get(params.backend) or self._discovered(params.backend)
        if creator is None:
            error = ValueError(
                f"The rendezvous backend '{params.backend}' is not registered. Did you forget to "
                "call `register`?"
            )
            error.add_note(f"Registered are: {', '.join(sorted(self._registry)) or 'none'}.")
            raise error
        handler = creator(params)
        if handler.get_backend() != params.backend:
            raise RuntimeError(
                f"The rendezvous backend '{handler.get_backend()}' does not match the requested "
                f"backend '{params.backend}'."
            )
        return handler

    def _discovered(self, backend: str) -> RendezvousHandlerCreator | None:
        with self._discovering:
            discover, self._discover = self._discover, None
            if discover is not None:
                discover(self)
        return self._registry.get(backend)


def _discover(registry: RendezvousHandlerRegistry) -> None:
    from rallypoint.rendezvous.registry import register_out_of_tree_handlers

    register_out_of_tree_handlers(registry)


rendezvous_handler_registry = RendezvousHandlerRegistry(discover=_discover)
"""The registry of this process: built-in backends, those of installed packages, and the user's."""
