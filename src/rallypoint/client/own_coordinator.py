"""The coordinator that this node hosts, if any, and the address where others reach this machine.

The connector decides when to host. `hosting` and `rallypoint.coordinator` have the coordinator;
they are loaded only if a node hosts one.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
from collections.abc import Callable
from typing import TYPE_CHECKING, Final

from rallypoint import errors, runtime
from rallypoint.client import network
from rallypoint.client.credentials import Credentials
from rallypoint.client.dialing import Attempts, target_of
from rallypoint.client.network import Claim, Connection
from rallypoint.client.port_range import PortsTakenError
from rallypoint.core import addresses
from rallypoint.core.addresses import OwnAddress, is_unspecified
from rallypoint.core.election import Lease, Seen
from rallypoint.core.values import Address, EndedOwner, NodeId, RunSettings
from rallypoint.ledger.contract import Ledger
from rallypoint.net import describe_os_error
from rallypoint.security.token_form import can_host
from rallypoint.settings import EndpointKind, NodeSettings

if TYPE_CHECKING:
    from rallypoint.client.hosting import EmbeddedCoordinator

_log = logging.getLogger("rallypoint.client")

CANNOT_HOST: Final = (
    "this node's token has no certificate, and only a host's token has one (`rallypoint token new "
    "--state DIR --role host`)"
)


class OwnCoordinator:
    """A node's own coordinator, `hosted`, if it has one now. For one event loop."""

    def __init__(self, settings: NodeSettings, run: RunSettings, node: NodeId) -> None:
        self.settings = settings
        self.run = run
        self.node = node
        self.hosted: EmbeddedCoordinator | None = None
        self.addresses: tuple[OwnAddress, ...] = ()
        """The addresses where other machines reach this one, the best first; empty if not searched
        or not found.
        """
        self.on_reached: Callable[[str, str], None] = lambda host, before: None
        """Called when another node has come to the hosted coordinator at another address of this
        machine than the best one: with the new best one, and the one before.
        """
        self.is_starting = False
        self._is_named_by_endpoint = False
        """Whether the endpoint's host is this machine, so that other nodes use its name."""
        self._retiring: dict[asyncio.Task[None], None] = {}

    # -- this machine's address ------------------------------------------------------------------

    async def find_address(self, connection: Connection | None) -> None:
        """Find the address where other machines reach this one, if others can use the endpoint."""
        endpoint = self.settings.endpoint
        # Of several hosts, this node may be any, and their names need not be known everywhere.
        is_named = endpoint.kind is EndpointKind.HOST and not (
            endpoint.others or is_unspecified(endpoint.host)
        )
        self._is_named_by_endpoint = (is_named and self.hosted is not None) and (
            self.settings.host_coordinator != "yes"  # `auto` has compared the addresses before
            or await network.here().is_this_host(endpoint.host)
        )
        wanted = self.settings.interface
        if self.settings.local_addr:
            self.addresses = (network.here().own_address_of(self.settings.local_addr),)
        elif endpoint.kind is not EndpointKind.LOCAL and not endpoint.is_loopback:
            reached = connection.local_host if connection is not None and not wanted else ""
            if reached and not addresses.is_loopback(reached):
                self.addresses = (network.here().own_address_of(reached),)
            else:
                self.addresses = await network.here().own_addresses(endpoint, wanted)
            if self.address is None and self.run.max_nodes > 1:
                _log.warning(
                    "this machine has no address but loopback, so nodes on other machines cannot "
                    "reach it (--local-addr or --interface gives another address)"
                )

    @property
    def address(self) -> OwnAddress | None:
        """The best of them; None if there is none."""
        return self.addresses[0] if self.addresses else None

    @property
    def advertised_host(self) -> str:
        """The address of this machine for other nodes; loopback if it has no other."""
        return self.address.host if self.address is not None else "127.0.0.1"

    def bootstrap_host(self, connection: Connection | None) -> str:
        """An address of this machine that the other nodes of the run can reach."""
        if self.settings.local_addr:
            return self.settings.local_addr
        if self.settings.interface and self.address is not None:
            return self.address.host
        if self.hosted is not None and self._is_named_by_endpoint:
            return self.settings.endpoint.host
        host = connection.local_host if connection else "127.0.0.1"
        # A node on the coordinator's own machine may have dialled it through loopback.
        return self.advertised_host if addresses.is_loopback(host) else host

    @property
    def address_hint(self) -> str:
        """A hint with the address of this node's candidate, which others may be unable to reach.

        "" without a candidate, or in a run of one node.
        """
        is_elected = self.settings.endpoint.kind is EndpointKind.LEDGER
        if self.hosted is None or not is_elected or self.run.max_nodes == 1:
            return ""
        where = " or ".join(map(str, self.hosted.advertised))
        own = ", ".join(map(str, self.addresses)) or "which only this machine reaches"
        return (
            f"start the missing nodes; they come to this one at {where}, {own}: --local-addr gives "
            "another address, --interface those of one interface"
        )

    # -- hosting -----------------------------------------------------------------------------------

    @property
    def target(self) -> Address:
        """Where to dial for the endpoint. A host dials itself by address, without a name."""
        return self.hosted.address if self.hosted else target_of(self.settings)

    async def serve_endpoint(
        self,
        credentials: Credentials,
        attempts: Attempts,
        place: Address,
        claim: Claim | None = None,
    ) -> bool:
        """Host the coordinator of `host:port`, which is `place`. False if the port is taken.

        `claim`: is closed with the coordinator, or at once if this fails.
        """
        if not can_host(credentials.keys.token):
            attempts.not_hosting, attempts.is_port_in_use = CANNOT_HOST, False
            return False
        self.is_starting = True
        try:
            with contextlib.ExitStack() as failed:
                if claim is not None:
                    failed.callback(claim.close)
                hosted = await self._start(credentials, place.host, place.port)
                failed.pop_all()
            hosted.claim_of_run = claim
        except OSError as error:
            attempts.not_hosting = describe_os_error(error)
            attempts.is_port_in_use = error.errno == errno.EADDRINUSE
            return False
        finally:
            self.is_starting = False
        return True

    async def serve_locally(self, credentials: Credentials) -> None:
        """Host the coordinator of a run on this machine alone. Raises UnreachableError."""
        try:
            await self._start(credentials, "127.0.0.1", 0)
        except OSError as error:
            why = describe_os_error(error)
            raise errors.UnreachableError(
                f"cannot listen on this machine: {why}",
                hint="a run without an endpoint needs a free port of 127.0.0.1, and a descriptor",
            ) from error

    async def _start(self, credentials: Credentials, host: str, port: int) -> EmbeddedCoordinator:
        from rallypoint.client.hosting import EmbeddedCoordinator

        self.hosted = hosted = await EmbeddedCoordinator.start(
            self.settings.run_id,
            credentials.keys.token,
            host,
            port,
            insecure=self.settings.insecure,
            token_origin=credentials.keys.known.origin,
            node=self.node,
        )
        return hosted

    async def become_candidate(
        self,
        ledger: Ledger,
        attempts: Attempts,
        seen: Seen | None,
        ended: EndedOwner | None = None,
    ) -> bool:
        """Become a candidate for the run. False if that is not allowed, or fails.

        `seen`: the former owner's lease, if this node has seen it expire. `ended`: the owner, if it
        has ended as far as this node has seen.
        """
        if self.settings.host_coordinator == "no":
            return False
        if not can_host(self.settings.token):
            attempts.not_hosting, attempts.is_port_in_use = CANNOT_HOST, False
            return False
        if self.hosted is not None:
            self.hosted.claim(seen, ended)
            return True
        from rallypoint.client.hosting import EmbeddedCoordinator

        try:
            self.hosted = await EmbeddedCoordinator.as_candidate(
                self.settings,
                self.node,
                ledger,
                [each.host for each in self.addresses] or [self.advertised_host],
            )
        except PortsTakenError as error:
            attempts.not_hosting, attempts.is_port_in_use = str(error.strerror), True
            return False
        except (OSError, errors.LedgerError) as error:
            attempts.not_hosting = describe_os_error(error)
            return False
        attempts.not_hosting, attempts.is_port_in_use = "", False
        self.hosted.claim(seen, ended)
        if len(self.addresses) > 1:
            self.hosted.on_attach(self._attached)
        own = ", ".join(map(str, self.addresses)) or "loopback only"
        where, run_id = self.hosted.advertised[0], self.settings.run_id
        _log.info("this node is a candidate to coordinate run %s, at %s (%s)", run_id, where, own)
        return True

    def _attached(self, source: Address | None) -> None:
        """A node has attached to the hosted coordinator, from this address.

        Packets to it leave from an address that others reach. The workers of rank 0's node listen
        there. Which one that is cannot be known before: the default route may lead elsewhere.
        """
        if source is None or addresses.is_loopback(source.host) or self.hosted is None:
            return
        found = network.here().own_address_towards(source.host)
        if found not in self.addresses or source.host in (each.host for each in self.addresses):
            return
        self.hosted.on_attach(None)
        before = self.advertised_host
        self.addresses = (found, *(each for each in self.addresses if each != found))
        if found.host != before:
            self.on_reached(found.host, before)

    def is_of(self, lease: Lease) -> bool:
        """Whether this is the lease of the hosted coordinator."""
        return self.hosted is not None and lease.process == self.hosted.process

    def is_at(self, connection: Connection | None) -> bool:
        """Whether the connection is to the hosted coordinator."""
        if self.hosted is None or connection is None:
            return False
        return connection.address in (self.hosted.address, *self.hosted.advertised)

    def retire(self) -> None:
        """Close the hosted coordinator in the background, because another one has the run."""
        hosted = self.take()
        if hosted is not None:
            task = runtime.spawn(hosted.aclose(), _close_failed)
            self._retiring[task] = None
            task.add_done_callback(lambda ended: self._retiring.pop(ended, None))

    def take(self) -> EmbeddedCoordinator | None:
        """Return the hosted coordinator, which the caller must close."""
        hosted, self.hosted = self.hosted, None
        return hosted

    async def retired(self) -> None:
        """Wait until all retired coordinators are closed."""
        if self._retiring:
            await asyncio.wait(self._retiring)

    async def stay_for_the_run(self, hosted: EmbeddedCoordinator) -> None:
        """Wait until the run is over or the other nodes have disconnected (R7)."""
        if not (hosted.is_run_open and hosted.others):
            return
        _log.warning(
            "this node hosts the coordinator of run %r and stays until the run ends: "
            "%d connections are left (Ctrl-C or a signal ends it now, and ends the run)",
            self.settings.run_id,
            hosted.others,
        )
        await hosted.run_over()


def _close_failed(error: Exception) -> None:
    """An unexpected error: the run has another coordinator already, so nothing else ends."""
    _log.error("the hosted coordinator was not closed as a whole", exc_info=error)
