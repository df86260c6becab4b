"""What a simulated process has in place of its machine: chance, names, threads and a network.

Nodes and coordinators exchange whole messages, as their WebSockets give them. So nothing of HTTP
and of frames is simulated; those are tested with real sockets.
"""

from __future__ import annotations

import asyncio
import hashlib
import random
import socket
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, TypeVar

import msgspec

from rallypoint.client import network as client_network
from rallypoint.client.sockets import SocketKeeper
from rallypoint.client.transport import RETRIED_STATUSES
from rallypoint.coordinator.driver import CoordinatorDriver
from rallypoint.core.addresses import OwnAddress
from rallypoint.core.quotas import Account
from rallypoint.core.values import Address, ConnectionEnd
from rallypoint.errors import not_a_coordinator
from rallypoint.net import SocketAddress
from rallypoint.simulation.network import End, Ending, Listener, Network
from rallypoint.simulation.world import Process

if TYPE_CHECKING:
    from rallypoint.coordinator.config import CoordinatorConfig
    from rallypoint.endpoints import Endpoint
    from rallypoint.ledger.contract import Ledger
    from rallypoint.security.access import Access
    from rallypoint.settings import NodeSettings

T = TypeVar("T")

CLOSE_S = 2.0
"""After this time a connection that is being closed is aborted, as by the real transports."""
LAST_TURNS = 3
"""In so many turns of its loop a process that stood still reads what its kernel knows."""
_ENDS = {Ending.FIN: ConnectionEnd.FIN, Ending.RESET: ConnectionEnd.RESET}


class SimulatedRuntime:
    """The Runtime of one simulated process. `host`: the name of its machine.

    `is_container`: it has the host name and the pid that all such processes have.
    """

    def __init__(
        self, process: Process, host: str, network: Network, *, is_container: bool = False
    ) -> None:
        self.process = process
        self.host_name = host if not is_container else "container"
        self.pid = 1_000 + len(process.world.processes) if not is_container else 1
        self.chance = random.Random(f"{process.world.seed}/{process.name}/chance")
        self.network = SimulatedNetwork(process, host, network)
        self._secrets = random.Random(f"{process.world.seed}/{process.name}/secrets")
        process.loop.runtime = self

    def token_bytes(self, count: int) -> bytes:
        """See Runtime. Drawn from the seed, and different in each process."""
        return self._secrets.randbytes(count)

    def monotonic_s(self) -> float:
        """See Runtime."""
        return self.process.clock_s()

    def wall_s(self) -> float:
        """See Runtime."""
        return self.process.clock_s() + self.process.clock.wall_offset_s

    async def refuses(self, address: Address, limit_s: float) -> bool | None:
        """See Runtime."""
        try:
            async with asyncio.timeout(limit_s):
                await self.network.look_at(address)
        except ConnectionRefusedError:
            return True
        except TimeoutError:
            return None
        return False

    async def is_own(self, host: str) -> bool:
        """See Runtime."""
        return await self.network.is_this_host(host)

    def in_thread(self, work: Callable[[], T]) -> asyncio.Future[T]:
        """See Runtime, and `threads`."""
        return self.process.world.threads.call(self.process, work)

    def sleep(self, seconds: float) -> None:
        """See Runtime."""
        self.process.world.threads.step(seconds)


def _as_found(address: Address) -> SocketAddress:
    return SocketAddress(socket.AF_INET, (address.host, address.port))


class SimulatedNetwork:
    """The network of one simulated process: see client.network.Network.

    A host is named by its address.
    """

    def __init__(self, process: Process, host: str, network: Network) -> None:
        self._process = process
        self._host = host
        self._network = network

    async def look_up(self, host: str, port: int, limit_s: float) -> list[SocketAddress]:
        """See Network: each host is named by its address."""
        return [_as_found(Address(host, port))]

    async def is_this_host(self, host: str) -> bool:
        """See Network."""
        return host in (self._host, "127.0.0.1", "localhost")

    def claim(self, run_id: str) -> client_network.Claim:
        """See Network: a simulated endpoint has one port, so nobody asks."""
        raise NotImplementedError

    async def check_local_addr(self, settings: NodeSettings, max_nodes: int) -> None:
        """See Network: each is good."""

    async def own_addresses(self, endpoint: Endpoint, wanted: str | None) -> tuple[OwnAddress, ...]:
        """See Network: a host has one."""
        return (self.own_address_of(self._host),)

    def own_address_of(self, host: str) -> OwnAddress:
        """See Network."""
        return OwnAddress(host, "eth0")

    def own_address_towards(self, host: str) -> OwnAddress | None:
        """See Network: a host has one."""
        return self.own_address_of(self._host)

    def held(self, ports: Sequence[int]) -> str:
        """See Network: nothing is known of a host's other programs."""
        return ""

    async def draw_token(self) -> str:
        """See Network: connections are in clear."""
        return f"of {self._host}"

    async def connect(
        self, address: Address, found: SocketAddress, access: Access
    ) -> client_network.Connection:
        """See Network."""
        host = self._host_of(address)
        end = await self._network.dial(self._process, (host, address.port))
        status = self._network.answers.get(host)
        if status is not None and host != self._host:
            end.abort()
            raise _answered_by_a_proxy(address, status)
        return SimulatedConnection(end, address)

    @property
    def has_witnesses(self) -> bool:
        """See Network."""
        return self._network.has_witnesses

    async def answers(self, address: Address, limit_s: float) -> bool | None:
        """See Network. What the kernel knows at the end counts, as in net.answers."""
        target = (self._host_of(address), address.port)
        self._network.on_look(self._process, address)
        dialling = self._process.loop.create_task(self._network.dial(self._process, target))
        try:
            await asyncio.wait([dialling], timeout=limit_s)
            for _ in range(LAST_TURNS):
                await asyncio.sleep(0)
        finally:
            if not dialling.done():
                dialling.cancel()
            elif not dialling.cancelled():
                dialling.exception()  # Nobody reads it if this is cancelled.
        if dialling.cancelled() or not dialling.done():
            has_answered = False
        elif dialling.exception() is None:
            dialling.result().abort()
            has_answered = True
        else:
            has_answered = isinstance(dialling.exception(), ConnectionRefusedError)
        self._network.on_looked(self._process, address, has_answered)
        return has_answered

    def _host_of(self, address: Address) -> str:
        return self._host if address.host in ("127.0.0.1", "localhost") else address.host

    async def look_at(self, address: Address) -> None:
        """Connect, and say nothing: a proxy accepts that, too. Raises as `Network.dial`."""
        end = await self._network.dial(self._process, (self._host_of(address), address.port))
        end.abort()

    async def serve(
        self,
        config: CoordinatorConfig,
        *,
        loopback: str | None = None,
        port: int = 0,
        ledger: Ledger | None = None,
        advertised: Sequence[str] = (),
    ) -> client_network.Front:
        """See Network."""
        most = self._network.unlogged_bytes_max
        if most:
            limits = msgspec.structs.replace(config.store_limits, unlogged_bytes_max=most)
            config = msgspec.structs.replace(config, store_limits=limits)
        driver = CoordinatorDriver(config, ledger)
        front = SimulatedFront(driver, self._process, self._host, self._network)
        front.listen(port or self._network.free_port(self._host))
        self._network.on_front(self._process, front)
        try:
            await driver.start(tuple(Address(each, front.port) for each in advertised))
        except BaseException:
            await front.aclose()
            raise
        return front


def _answered_by_a_proxy(address: Address, status: int) -> Exception:
    """The error of transport.connect for a server that answers so."""
    if not status:
        return ConnectionResetError("closed the connection without an answer")
    if status in RETRIED_STATUSES:
        return ConnectionRefusedError(f"HTTP status {status}")
    return not_a_coordinator(str(address), f"HTTP status {status}", status)


class SimulatedConnection:
    """A node's side of a connection: see client.network.Connection."""

    asks_no_token = False
    has_one_run = True

    def __init__(self, end: End, address: Address) -> None:
        self.was_ended_by_peer = False
        self.address = self.target = address
        self.on_message: Callable[[bytes], None] = lambda message: None
        self.on_closed: Callable[[str], None] = lambda reason: None
        self._end = end
        self._closed: asyncio.Future[None] = end.process.loop.create_future()
        self._why = "the connection ended"
        self._is_closing = False
        self.was_closed_by_peer = False
        end.on_message = lambda message: self.on_message(message)
        end.on_end = self._ended_by_peer

    @property
    def local_host(self) -> str:
        """This side's host."""
        return self._end.address[0]

    @property
    def source(self) -> Address:
        """The address and port of this side."""
        return Address(*self._end.address)

    def keep_with(self, keeper: SocketKeeper) -> None:
        """See Connection. There is no socket."""

    def send(self, payload: bytes) -> None:
        """See Connection."""
        self._end.send(payload)

    def close(self, reason: str) -> None:
        """See Connection. The other side hears that this one closes, and not that it has ended."""
        self._why, self._is_closing = reason, True
        self._end.says_goodbye = True
        self._end.close()
        self._end.process.loop.call_later(CLOSE_S, self.abort, reason)

    def abort(self, reason: str) -> None:
        """See Connection."""
        self._why, self._is_closing = reason, True
        self._end.abort()
        self._end.process.soon(self._ended, reason)

    async def wait_closed(self) -> None:
        """See Connection."""
        await asyncio.shield(self._closed)

    def _ended_by_peer(self, ending: Ending) -> None:
        # A closing handshake comes after all that the other side has read and sent.
        self.was_closed_by_peer = ending is Ending.FIN and self._end.other.says_goodbye
        self.was_ended_by_peer = not self._is_closing
        self._ended(f"{self._why} ({ending.name})")

    def _ended(self, reason: str) -> None:
        if not self._closed.done():
            self._closed.set_result(None)
            self.on_closed(reason)


class SimulatedOutlet:
    """A coordinator's side of a connection: see coordinator.outgoing.Outlet."""

    token: str | None = None

    def __init__(self, end: End, *, has_proxy: bool = False) -> None:
        self._end = end
        self._parts = bytearray()
        self._size = 0
        self.account: Account = Account("", _account_host(end.other.address[0]))
        self.seen: Address | None = Address(*end.other.address)
        if has_proxy:
            self.seen = Address("10.8.0.1", end.other.address[1])
        self.is_beside = end.address[0] == end.other.address[0]
        self.peer = f"{end.other.address[0]}:{end.other.address[1]}"

    def send(self, payload: bytes) -> None:
        """See Outlet."""
        self._end.send(payload)

    def begin(self, size: int) -> None:
        """See Outlet."""
        self._parts, self._size = bytearray(), size

    def part(self, piece: bytes | memoryview) -> None:
        """See Outlet."""
        self._parts += piece
        if len(self._parts) == self._size:
            self._end.send(bytes(self._parts))

    def pong(self, payload: bytes) -> None:
        """See Outlet: nobody pings."""

    def backlog_bytes(self) -> int:
        """See Outlet."""
        return self._end.backlog_bytes

    def close(self, reason: str) -> None:
        """See Outlet."""
        self._end.says_goodbye = True
        self._end.close()
        self._end.process.loop.call_later(CLOSE_S, self._end.abort)

    def abort(self) -> None:
        """See Outlet."""
        self._end.abort()


def _account_host(host: str) -> str:
    return hashlib.sha256(host.encode()).hexdigest()[:8]


class SimulatedFront:
    """A coordinator on a port of a simulated host: see client.network.Front."""

    def __init__(
        self, driver: CoordinatorDriver, process: Process, host: str, network: Network
    ) -> None:
        self.driver = driver
        self.port = 0
        self.process = process
        self._host = host
        self._network = network
        self._listener: Listener | None = None
        self._ending: asyncio.Task[None] | None = None
        self.has_ended = False

    @property
    def is_owner(self) -> bool:
        """Whether its coordinator owns a run, or believes so."""
        return any(run.is_claimed for run in self.driver.coordinator.runs.values())

    def listen(self, port: int) -> None:
        """Accept connections. Raises OSError if the port is taken."""
        self._listener = self._network.listen(self.process, self._host, port, self._accept)
        self.port = port

    def _accept(self, end: End) -> None:
        if self.has_ended:
            end.abort()
            return
        outlet = SimulatedOutlet(end, has_proxy=self._network.has_proxy)
        session = self.driver.coordinator.connected(outlet)
        seen = outlet.seen
        end.on_message = session.received

        def ended(ending: Ending) -> None:
            how = _ENDS[ending]
            if ending is Ending.FIN:
                how = ConnectionEnd.CLOSE if end.other.says_goodbye else ConnectionEnd.FIN
            session.connection_lost(how, seen)

        end.on_end = ended

    async def aclose(self) -> None:
        """See Front: as CoordinatorServer does. If cancelled, it still waits for the end."""
        if self._ending is None:
            self._ending = asyncio.get_running_loop().create_task(self._close())
        try:
            await asyncio.shield(self._ending)
        except asyncio.CancelledError:
            await asyncio.wait([self._ending])
            raise

    async def _close(self) -> None:
        self.has_ended = True
        self.driver.stop_ticking()
        await self.driver.ownership.before_close()
        if self._listener is not None:
            self._network.unlisten(self._listener)
        await self.driver.ownership.hand_over(CLOSE_S, "the coordinator is stopping")
        self.driver.coordinator.close("the coordinator is stopping")
        await self.driver.ownership.aclose()
