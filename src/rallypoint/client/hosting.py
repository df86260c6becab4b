"""A coordinator inside a node: for `host:port`, for a single machine, or a candidate on a ledger.

It is imported only when a node hosts one, because it loads the server's libraries.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence

from rallypoint import tokens
from rallypoint.client import network
from rallypoint.client.network import Claim, Front
from rallypoint.client.port_range import serve_in
from rallypoint.coordinator.config import CoordinatorConfig
from rallypoint.core.election import Seen
from rallypoint.core.values import Address, EndedOwner, NodeId
from rallypoint.endpoints import is_loopback
from rallypoint.errors import UsageError
from rallypoint.ledger.contract import Ledger
from rallypoint.memory import default_budget
from rallypoint.security import token_form
from rallypoint.settings import NodeSettings, attach_grace_s, resolve

_log = logging.getLogger("rallypoint.client")

_warned: set[str] = set()


class EmbeddedCoordinator:
    """A coordinator of one run, in the running event loop.

    `address` is for this process, `advertised` for other nodes. They differ for a candidate.
    """

    def __init__(self, front: Front, address: Address, advertised: Sequence[Address] = ()) -> None:
        self.address = address
        self.advertised = tuple(advertised) or (address,)
        self.token = front.driver.config.token
        self.claim_of_run: Claim | None = None
        """What says on this machine that this process hosts the run. Closed with this."""
        self._front = front

    @classmethod
    async def start(
        cls,
        run_id: str,
        token: str,
        host: str,
        port: int,
        *,
        insecure: bool = False,
        token_origin: str = "",
        node: NodeId | None = None,
    ) -> EmbeddedCoordinator:
        """Bind and serve: on loopback if `host` is loopback, otherwise on all addresses.

        `port` 0: any port. `node`: the node that hosts it. Raises OSError, such as EADDRINUSE.
        Raises UsageError if other machines could reach the port without a token, unless `insecure`.
        """
        is_local = is_loopback(host)
        if not (is_local or token or insecure):
            raise UsageError(
                f"other machines can reach port {port} of this one, and there is no token",
                hint="give a token by --token-file or RALLYPOINT_TOKEN, or --insecure for none",
            )
        config = CoordinatorConfig(
            token=token,
            token_origin=token_origin,
            only_run=run_id,
            own_node=node,
            hosts=(host,),
            memory_bytes_max=_memory_bytes_max(),
        )
        loopback = host if is_local else None
        front = await network.here().serve(config, loopback=loopback, port=port)
        if not token and not is_local:
            _warn_once(run_id, front.port)
        return cls(front, Address("127.0.0.1", front.port))

    @classmethod
    async def as_candidate(
        cls,
        settings: NodeSettings,
        node: NodeId,
        ledger: Ledger,
        hosts: Sequence[str],
    ) -> EmbeddedCoordinator:
        """Become a candidate for the run: serve on all addresses with a lease. `claim` follows.

        `hosts`: where other machines reach this one, the best first. Nodes without a token use the
        one in this coordinator's lease. Raises OSError, such as PortsTakenError, or LedgerError. An
        error or a cancellation leaves nothing open.
        """
        token = settings.token or await network.here().draw_token()
        config = CoordinatorConfig(
            token=token,
            token_origin=tokens.Origin.GIVEN if settings.token else tokens.Origin.LEASE,
            lease_token="" if settings.token else token_form.credential(token),
            only_run=settings.run_id,
            own_node=node,
            lease_ttl_s=settings.lease_ttl_s,
            attach_grace_s=attach_grace_s(settings.attach_grace_s, settings.coordinator_silence_s),
            yield_after_s=settings.yield_after_s,
            memory_bytes_max=_memory_bytes_max(),
        )

        async def serve(port: int) -> Front:
            return await network.here().serve(config, port=port, ledger=ledger, advertised=hosts)

        ports = settings.port_range
        front = await (serve(0) if ports is None else serve_in(ports, serve))
        port = front.port
        return cls(front, Address("127.0.0.1", port), [Address(each, port) for each in hosts])

    def claim(self, seen: Seen | None = None, ended: EndedOwner | None = None) -> None:
        """Own the run as soon as nobody else does.

        `seen`: the former owner's lease, if this process has seen it expire. `ended`: the owner, if
        it has ended as far as this process has seen.
        """
        only_run = self._front.driver.config.only_run
        if only_run is not None:
            self._front.driver.ownership.claim(only_run, seen, ended)

    def on_attach(self, callback: Callable[[Address | None], None] | None) -> None:
        """Call this for each node that attaches, with the address from which it comes.

        The address is None if the node does not tell it. `callback` None: no longer.
        """
        self._front.driver.coordinator.on_attach = callback

    @property
    def process(self) -> str:
        """The name of its lease; "" without a ledger."""
        return self._front.driver.ownership.process

    @property
    def others(self) -> int:
        """How many connections of nodes there are."""
        return len(self._front.driver.coordinator.sessions)

    @property
    def is_run_open(self) -> bool:
        """Whether this coordinator has an open run."""
        return any(not run.is_closed for run in self._front.driver.coordinator.runs.values())

    async def linger(self, timeout_s: float) -> int:
        """Wait up to `timeout_s` until all nodes have said goodbye. Returns how many have not."""
        try:
            async with asyncio.timeout(timeout_s):
                await self._until(lambda: not self.others)
        except TimeoutError:
            _log.info("%d nodes have not said goodbye within %g s", self.others, timeout_s)
        return self.others

    async def run_over(self) -> None:
        """Wait until the run is closed, or all other nodes have disconnected."""
        await self._until(lambda: not (self.others and self.is_run_open))

    async def _until(self, is_so: Callable[[], bool]) -> None:
        fewer = asyncio.Event()
        self._front.driver.coordinator.on_fewer = fewer.set
        while not is_so():
            fewer.clear()
            await fewer.wait()

    async def aclose(self) -> None:
        """Close all connections and release the port. Idempotent, and bounded in time."""
        if self.claim_of_run is not None:
            self.claim_of_run.close()
        await self._front.aclose()


def _memory_bytes_max() -> int:
    given: int | None = resolve("memory").value
    return given or default_budget(is_embedded=True).bytes


def _warn_once(run_id: str, port: int) -> None:
    if run_id not in _warned:
        _warned.add(run_id)
        _log.warning(
            "insecure: anyone who reaches port %d of this machine can join run %r, and end it",
            port,
            run_id,
        )
