"""A rendezvous backend that keeps its state in one key of etcd, with torch's names.

    <key_prefix>/<run_id>      the state in base64, as torch's module writes it

A token is the key's revision in etcd (`mod_revision`). The key has a lease, which ends `ttl`
seconds after the last write: then etcd removes the key of a finished run.
"""

from __future__ import annotations

import asyncio
import binascii
from base64 import b64decode, b64encode
from typing import Any, ClassVar, Final

from rallypoint.ledger.etcd.client import EtcdClient
from rallypoint.ledger.etcd.txn import compare, decided, get, put
from rallypoint.ledger.etcd.wire import EtcdRefusedError, KeyValue
from rallypoint.rendezvous import _torch_bridge
from rallypoint.rendezvous.api import RendezvousParameters, RendezvousStateError
from rallypoint.rendezvous.dynamic_rendezvous import RendezvousBackend, Token
from rallypoint.rendezvous.etcd_blocking import EtcdConnection, as_key, connection, connection_of
from rallypoint.rendezvous.etcd_store import EtcdStore

__all__ = ["EtcdRendezvousBackend", "create_backend"]

STATE_PREFIX: Final = "/torch/elastic/rendezvous"
STORE_PREFIX: Final = "/torch/elastic/store"
_REVISION_MAX: Final = (1 << 63) - 1
_RENEWALS: Final = 10
"""A write renews the lease only if a tenth of its time is over, so most writes are one call."""


class EtcdRendezvousBackend(RendezvousBackend):
    """A state in etcd, with compare-and-swap. Any thread may call.

    Args:
        client: the connection to etcd.
        run_id: names the state; the same on all nodes.
        key_prefix: the text before the run id, with a slash between them; None: no prefix.
        ttl: how many seconds the state lives after its last write; two hours if None or not
            positive. etcd raises less than about 2 s.

    Raises:
        ValueError: the run id is empty.
        TypeError: `client` is something else.
    """

    _DEFAULT_TTL: ClassVar[int] = 7200

    def __init__(
        self,
        client: EtcdConnection,
        run_id: str,
        key_prefix: str | None = None,
        ttl: int | None = None,
    ) -> None:
        if not run_id:
            raise ValueError("The run id must be a non-empty string.")
        self._client = connection(client)
        self._key = f"{key_prefix}/{run_id}" if key_prefix else run_id
        self._ttl = ttl if ttl and ttl > 0 else self._DEFAULT_TTL
        self._lease = 0
        self._renewed_at = 0.0

    @property
    def name(self) -> str:
        """See RendezvousBackend.name."""
        return "etcd-v2"

    def get_state(self) -> tuple[bytes, Token] | None:
        """See RendezvousBackend.get_state."""
        found = self._client.read(self._key)
        return None if found is None else self._opened(found)

    def set_state(
        self, state: bytes, token: Token | None = None
    ) -> tuple[bytes, Token, bool] | None:
        """See RendezvousBackend.set_state.

        Returns None if there is no state. Returns None also if etcd's answer was lost and the state
        has changed since, so that it is unknown whether it was set. Then the caller has to read it.
        """
        revision = _revision(token)
        if revision is None:
            current = self.get_state()
            return None if current is None else (*current, False)
        value = b64encode(bytes(state))
        work = self._client.within(self._client.read_timeout, self._set(value, revision))
        found, is_set = self._client.run(work, f"write {self._key!r}")
        return None if found is None else (*self._opened(found), is_set)

    async def _set(self, value: bytes, revision: int) -> tuple[KeyValue | None, bool]:
        client = await self._client.client()
        try:
            return await self._put(client, value, revision)
        except EtcdRefusedError as error:
            if "lease not found" not in error.message:
                raise
        # The lease ended earlier than by this host's clock: this process was frozen, or etcd
        # restored.
        self._lease = 0
        return await self._put(client, value, revision)

    async def _put(
        self, client: EtcdClient, value: bytes, revision: int
    ) -> tuple[KeyValue | None, bool]:
        key, lease = as_key(self._key), await self._live_lease(client)
        result, unsure = await decided(
            client,
            [compare(key, "mod_revision", revision)],
            [put(key, value, lease=lease), get(key)],
            [get(key)],
        )
        if result.succeeded:
            return result.range(1).kvs[0], True
        found = next(iter(result.range(0).kvs), None)
        if not unsure:
            return found, False
        is_mine = found is not None and found.value == value and found.lease == lease
        return (found, True) if is_mine else (None, False)

    async def _live_lease(self, client: EtcdClient) -> int:
        """A lease that still lives for about `ttl`."""
        now = asyncio.get_running_loop().time()
        if self._lease and now - self._renewed_at >= self._ttl / _RENEWALS:
            if (await client.keepalive(self._lease)).TTL == 0:
                self._lease = 0
            self._renewed_at = now
        if not self._lease:
            self._lease = (await client.grant(self._ttl)).ID
            self._renewed_at = now
        return self._lease

    def _opened(self, found: KeyValue) -> tuple[bytes, Token]:
        try:
            return b64decode(found.value, validate=True), found.mod_revision
        except binascii.Error as error:
            raise _torch_bridge.error_of(
                RendezvousStateError,
                "The state object is corrupt. See inner exception for details.",
                f"etcd's key {self._key!r} at {', '.join(self._client.endpoints)} holds no base64 "
                f"({error}).",
            ) from error


def _revision(token: Any) -> int | None:
    """The revision of a token; 0: the key must not exist; None: the token is none."""
    if not token:
        return 0
    try:
        revision = int(token) if isinstance(token, int | str) else -1
    except ValueError:
        return None
    return revision if 0 <= revision <= _REVISION_MAX else None


def create_backend(params: RendezvousParameters) -> tuple[EtcdRendezvousBackend, EtcdStore]:
    """A backend and a store for `params`. etcd must answer.

    `endpoint` is "host:port", or several with commas between them. The default port is 2379.
    Options: `read_timeout` (60; whole seconds, for each call), `protocol` ("http", or "https"), and
    the PEM files `ssl_cert` and `ssl_cert_key` (of the client) and `ca_cert`.

    Raises:
        ValueError: an option or the endpoint is wrong, or the run id is empty.
        RendezvousConnectionError: etcd does not answer within `read_timeout`, or 10 s if that is
            less.
    """
    client = connection_of(
        params,
        protocol=params.get("protocol"),
        cert=params.get("ssl_cert"),
        key=params.get("ssl_cert_key"),
        ca_cert=params.get("ca_cert"),
    )
    backend = EtcdRendezvousBackend(client, params.run_id, key_prefix=STATE_PREFIX)
    client.contact()
    return backend, EtcdStore(client, STORE_PREFIX)
