"""What a node uses of its machine's network: addresses, connections, and a port to serve on.

`here` gives the network of the running process: its sockets, or what a simulator has in their
place. Which address to dial, and when to serve, is decided elsewhere.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Final, Protocol

from rallypoint import runtime
from rallypoint.client import fork_safety, identity, port_range, transport
from rallypoint.client.sockets import SocketKeeper
from rallypoint.core.addresses import OwnAddress
from rallypoint.core.values import Address
from rallypoint.endpoints import Endpoint
from rallypoint.net import (
    SocketAddress,
    answers,
    bind,
    bind_loopback,
    bind_name,
    is_this_host,
    look_up,
)
from rallypoint.security.access import Access
from rallypoint.security.authority import new_host_token
from rallypoint.settings import NodeSettings

if TYPE_CHECKING:
    from rallypoint.coordinator.config import CoordinatorConfig
    from rallypoint.coordinator.driver import CoordinatorDriver
    from rallypoint.ledger.contract import Ledger


class Connection(Protocol):
    """An open connection to a coordinator. Its callbacks are called from the event loop."""

    address: Address
    target: Address
    """What was dialled: a name or an address."""
    on_message: Callable[[bytes], None]
    on_closed: Callable[[str], None]
    """Called once, with the reason, whichever side closed."""
    asks_no_token: bool
    has_one_run: bool
    """Whether the coordinator is one that a node hosts for its run, and no `rallypoint serve`."""

    @property
    def local_host(self) -> str:
        """This side's address, at which the coordinator's machine can reach this one."""

    @property
    def source(self) -> Address:
        """The address and port of this side."""

    @property
    def was_closed_by_peer(self) -> bool:
        """Whether the coordinator said that it closes: it has read all before that."""

    @property
    def was_ended_by_peer(self) -> bool:
        """Whether the other side's kernel ended it, by a FIN or a reset.

        False while it is open, and if this side has ended it.
        """

    def keep_with(self, keeper: SocketKeeper) -> None:
        """Give the keeper a copy of the socket until it is closed. Call it at most once."""

    def send(self, payload: bytes) -> None:
        """Queue one message. Does nothing if the connection is closed."""

    def close(self, reason: str) -> None:
        """Close in order, which takes a bounded time."""

    def abort(self, reason: str) -> None:
        """Cut the connection by a reset."""

    async def wait_closed(self) -> None:
        """Wait until the connection is closed."""


class Front(Protocol):
    """A coordinator that is served. `port`: where."""

    @property
    def port(self) -> int:
        """The port on which it listens."""

    @property
    def driver(self) -> CoordinatorDriver:
        """The coordinator that runs behind it."""

    async def aclose(self) -> None:
        """Stop serving, and end the coordinator. Idempotent, and bounded in time."""


class Claim(Protocol):
    """What a process says on its machine, until it closes this or ends."""

    def close(self) -> None:
        """Say it no longer. Idempotent."""


class Network(Protocol):
    """See above. Everything is for the process's event loop."""

    async def look_up(self, host: str, port: int, limit_s: float) -> list[SocketAddress]:
        """See net.look_up."""

    async def is_this_host(self, host: str) -> bool:
        """See net.is_this_host."""

    def claim(self, run_id: str) -> Claim | None:
        """Say on this machine that this process hosts the run.

        None if another one says so, or if it cannot be said: another one may host it then.
        """

    async def check_local_addr(self, settings: NodeSettings, max_nodes: int) -> None:
        """See identity.check_local_addr."""

    async def own_addresses(self, endpoint: Endpoint, wanted: str | None) -> tuple[OwnAddress, ...]:
        """See identity.own_addresses."""

    def own_address_of(self, host: str) -> OwnAddress:
        """See identity.own_address_of."""

    def own_address_towards(self, host: str) -> OwnAddress | None:
        """See identity.own_address_towards."""

    def held(self, ports: Sequence[int]) -> str:
        """See port_range.all_held."""

    async def draw_token(self) -> str:
        """A new token for a coordinator of this process alone, as security.new_host_token."""

    async def connect(self, address: Address, found: SocketAddress, access: Access) -> Connection:
        """See transport.connect."""

    @property
    def has_witnesses(self) -> bool:
        """Whether nodes here connect to the hosts of other members, to testify about them."""

    async def answers(self, address: Address, limit_s: float) -> bool | None:
        """See net.answers."""

    async def serve(
        self,
        config: CoordinatorConfig,
        *,
        loopback: str | None = None,
        port: int = 0,
        ledger: Ledger | None = None,
        advertised: Sequence[str] = (),
    ) -> Front:
        """Bind a port and serve a coordinator on it.

        `loopback`: the only host to bind, which is this machine; None: all addresses. `port` 0: any
        port. `ledger`: where its runs are kept; the lease then names `advertised` as its hosts.
        Raises OSError, such as EADDRINUSE, or LedgerError; then nothing is left open.
        """


class SocketNetwork:
    """The network of a real process."""

    has_witnesses = True

    async def look_up(self, host: str, port: int, limit_s: float) -> list[SocketAddress]:
        """See Network."""
        return await look_up(host, port, limit_s)

    async def is_this_host(self, host: str) -> bool:
        """See Network."""
        return await runtime.in_thread(lambda: is_this_host(host))

    def claim(self, run_id: str) -> Claim | None:
        """See Network."""
        name = hashlib.sha256(run_id.encode()).hexdigest()[:32]
        try:
            sock = bind_name(f"rallypoint/host/{name}")
        except OSError:
            return None
        if sock is not None:
            fork_safety.close_in_children(sock)
        return sock

    async def check_local_addr(self, settings: NodeSettings, max_nodes: int) -> None:
        """See Network."""
        await identity.check_local_addr(settings, max_nodes)

    async def own_addresses(self, endpoint: Endpoint, wanted: str | None) -> tuple[OwnAddress, ...]:
        """See Network."""
        return await identity.own_addresses(endpoint, wanted)

    def own_address_of(self, host: str) -> OwnAddress:
        """See Network."""
        return identity.own_address_of(host)

    def own_address_towards(self, host: str) -> OwnAddress | None:
        """See Network."""
        return identity.own_address_towards(host)

    def held(self, ports: Sequence[int]) -> str:
        """See Network."""
        return port_range.all_held(ports)

    async def draw_token(self) -> str:
        """See Network."""
        # In a thread: it loads a large library.
        return await runtime.in_thread(new_host_token)

    async def connect(self, address: Address, found: SocketAddress, access: Access) -> Connection:
        """See Network."""
        return await transport.connect(address, found.sockaddr, found.family, access)

    async def answers(self, address: Address, limit_s: float) -> bool | None:
        """See Network."""
        return await answers(address, limit_s)

    async def serve(
        self,
        config: CoordinatorConfig,
        *,
        loopback: str | None = None,
        port: int = 0,
        ledger: Ledger | None = None,
        advertised: Sequence[str] = (),
    ) -> Front:
        """See Network."""
        # Loaded only when a node hosts a coordinator, because it loads the server's libraries.
        from rallypoint.coordinator.server import CoordinatorServer

        sockets = [bind(None, port)] if loopback is None else bind_loopback(loopback, port)
        bound_port = sockets[0].getsockname()[1]
        server = CoordinatorServer(config, ledger=ledger)
        await server.start(sockets, tuple(Address(each, bound_port) for each in advertised))
        fork_safety.close_all_in_children(server)
        return server


SOCKETS: Final = SocketNetwork()


def here() -> Network:
    """The network of the running process."""
    network: Network = getattr(runtime.here(), "network", SOCKETS)
    return network
