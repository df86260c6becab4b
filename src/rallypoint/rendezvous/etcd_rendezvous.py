"""The handler of the backend `etcd`, with the names of torch's older one.

The nodes elect a coordinator through etcd, which sends them the rounds. A ledger of this package,
in etcd below the prefix, has the data that must outlive a coordinator. Only etcd's v3 API is used.

torch's classes do the rendezvous themselves, in steps that are public methods. These classes have
only the constructors, `rendezvous_barrier`, `set_closed`, `setup_kv_store` and the handler's
methods.
"""

from __future__ import annotations

from typing import Final
from urllib.parse import quote

from rallypoint import errors, settings
from rallypoint.endpoints import Endpoint, EndpointKind, EtcdPlace
from rallypoint.rendezvous._node_handler import HandlerPlan, NodeRendezvousHandler, stop_s
from rallypoint.rendezvous.api import RendezvousParameters
from rallypoint.rendezvous.etcd_blocking import EtcdConnection, connection, connection_of
from rallypoint.rendezvous.etcd_store import EtcdStore

__all__ = [
    "EtcdRendezvous",
    "EtcdRendezvousHandler",
    "EtcdRendezvousRetryImmediately",
    "EtcdRendezvousRetryableFailure",
    "create_rdzv_handler",
]

BACKEND: Final = "etcd"
DEFAULT_PREFIX: Final = "/torchelastic/p2p"
_DEFAULT_TIMEOUT_S: Final = 600
_DEFAULT_LAST_CALL_S: Final = 30

# torch's times to live, in seconds, for programs that read them. A ledger's keys live until the
# garbage collector removes their run, and a coordinator's lease for `lease_ttl_s`.
CONST_ETCD_SETUP_TTL: Final = 5
CONST_ETCD_FROZEN_TTL: Final = 10
CONST_ETCD_JOINABLE_EPHEMERAL_TTL: Final = 10
CONST_WORKER_KEEPALIVE_TTL: Final = 10
CONST_RUNID_SUBROOT_TTL: Final = 7200


class EtcdRendezvousRetryableFailure(Exception):
    """For programs that use the name. torch raises it internally; rallypoint never raises it."""


class EtcdRendezvousRetryImmediately(Exception):
    """For programs that use the name. torch raises it internally; rallypoint never raises it."""


class EtcdRendezvous:
    """One node's rendezvous through etcd.

    Args:
        client: the connection to etcd, which must answer.
        prefix: the ledger is below it, and nothing else may be. Many runs can share it.
        run_id: the run's name.
        num_min_workers: the fewest nodes of a round.
        num_max_workers: the most nodes of a round.
        timeout: how many seconds a rendezvous may take.
        last_call_timeout: how many seconds to wait for more nodes once the minimum is there.

    Raises:
        RendezvousConnectionError: etcd does not answer within its `read_timeout`, or 10 s if that
            is less.
        ValueError: an argument is wrong.
        TypeError: `client` is something else.
    """

    def __init__(
        self,
        client: EtcdConnection,
        prefix: str,
        run_id: str | int,
        num_min_workers: int,
        num_max_workers: int,
        timeout: float,
        last_call_timeout: float,
    ) -> None:
        self.client = connection(client)
        self._prefix = "/" + prefix.strip("/")
        self._run_id = str(run_id)
        if self._prefix == "/":
            raise errors.UsageError(
                f"the etcd prefix {prefix!r} is all of etcd's keys",
                hint=f"name one that nothing else uses, such as {DEFAULT_PREFIX}",
            )
        self._run = settings.run_settings(
            found=settings.NO_LAUNCHER,
            min_nodes=num_min_workers,
            max_nodes=num_max_workers,
            last_call_s=float(last_call_timeout),
            # torchrun counts restarts itself, on each node.
            max_restarts="any",
        )
        self._timeout_s = float(timeout)
        self._handler: EtcdRendezvousHandler | None = None
        self._plan(None)  # raises for a wrong argument at once
        self.client.contact()

    def rendezvous_barrier(self) -> tuple[int, int, int]:
        """Leave the round, and wait for the next: its number, this node's rank, and its size.

        Raises the errors of RendezvousHandler.next_rendezvous.
        """
        handler = self._own_handler()
        info = handler.next_rendezvous()
        return handler.round_number, info.rank, info.world_size

    def set_closed(self) -> None:
        """End the run for all its nodes."""
        self._own_handler().set_closed()

    def setup_kv_store(self, rdzv_version: int) -> EtcdStore:
        """A store in etcd for the round of this number."""
        return EtcdStore(self.client, f"{self._prefix}/kv/{self._run_id}/{rdzv_version}")

    def _own_handler(self) -> EtcdRendezvousHandler:
        return self._handler or EtcdRendezvousHandler(self)

    def _plan(self, local_addr: str | None) -> HandlerPlan:
        node = settings.node_settings(
            found=settings.NO_LAUNCHER,
            endpoint=_endpoint(self.client, self._prefix),
            run_id=self._run_id,
            local_addr=local_addr,
            stop_s=stop_s(),
            join_timeout_s=self._timeout_s,
            connect_timeout_s=float(self.client.read_timeout),
        )
        return HandlerPlan(backend=BACKEND, node=node, run=self._run)


class EtcdRendezvousHandler(NodeRendezvousHandler):
    """The handler over an EtcdRendezvous. See NodeRendezvousHandler.

    Args:
        rdzv_impl: the rendezvous. It can have one handler.
        local_addr: the address at which other nodes reach this one; None: it is found out.
    """

    def __init__(self, rdzv_impl: EtcdRendezvous, local_addr: str | None = None) -> None:
        if rdzv_impl._handler is not None:
            raise ValueError("this EtcdRendezvous has a handler already: a node joins a run once")
        super().__init__(rdzv_impl._plan(local_addr))
        rdzv_impl._handler = self

    @property
    def round_number(self) -> int:
        """The number of the round that the last next_rendezvous returned; 0 before the first."""
        return self._seated


def create_rdzv_handler(params: RendezvousParameters) -> EtcdRendezvousHandler:
    """A handler for `params`. etcd must answer.

    `endpoint` is "host:port", or several with commas between them. The default port is 2379.
    Options: `timeout` (600 s, for a rendezvous), `last_call_timeout` (30 s), `etcd_prefix`
    ("/torchelastic/p2p"), `protocol` ("http", or "https"), the PEM files `cert` and `key` (of the
    client) and `cacert`, and `read_timeout` (60 s, for each call to etcd).

    Raises:
        ValueError: an option or the endpoint is wrong.
        RendezvousConnectionError: etcd does not answer within `read_timeout`, or 10 s if that is
            less.
    """
    client = connection_of(
        params,
        protocol=params.get("protocol"),
        cert=params.get("cert"),
        key=params.get("key"),
        ca_cert=params.get("cacert"),
    )
    timeout = params.get_as_int("timeout", _DEFAULT_TIMEOUT_S)
    last_call = params.get_as_int("last_call_timeout", _DEFAULT_LAST_CALL_S)
    rendezvous = EtcdRendezvous(
        client=client,
        prefix=params.get("etcd_prefix", DEFAULT_PREFIX),
        run_id=params.run_id,
        num_min_workers=params.min_nodes,
        num_max_workers=params.max_nodes,
        timeout=_DEFAULT_TIMEOUT_S if timeout is None else timeout,
        last_call_timeout=_DEFAULT_LAST_CALL_S if last_call is None else last_call,
    )
    return EtcdRendezvousHandler(rendezvous, params.local_addr)


def _endpoint(client: EtcdConnection, prefix: str) -> Endpoint:
    options = client.options
    place = EtcdPlace(
        hosts=options.endpoints,
        prefix=prefix,
        tls=options.tls,
        ca=options.ca_file or "",
        cert=options.cert_file or "",
        key=options.key_file or "",
    )
    scheme = "etcds" if options.tls else "etcd"
    text = f"{scheme}://{','.join(options.endpoints)}{quote(prefix)}"
    return Endpoint(EndpointKind.LEDGER, text=text, place=place)
