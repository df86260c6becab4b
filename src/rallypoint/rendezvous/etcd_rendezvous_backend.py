"""A rendezvous backend that keeps its state in one key of etcd, under torch's names.

    <key_prefix>/<run_id>      the state in base64, as torch's module writes it

A token is the key's revision in etcd (`mod_revision`). The key stands on a lease, which ends `ttl`
seconds after the last write, so that what a finished run leaves behind goes by itself.
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
"""A lease is renewed by a write once a tenth of its time is over, so most writes are one call."""


class EtcdRendezvousBackend(RendezvousBackend):
    """A state in etcd, with compare-and-swap. Any thread may call.

    Args:
        client: the connection to etcd.
        run_id: names the state; the same on all nodes.
        key_prefix: what comes before the run id, with a slash between them; None for nothing.
        ttl: how many seconds the state lives after its last write; two hours if None or not
            positive. etcd rounds less than about 2 s up.

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

        None where nothing is there, and where etcd's answer was lost and the state has moved on
        since, so that nobody knows whether it was set: read it back.
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
        # It ended sooner than this host's clock said: a stopped process, a restored etcd.
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
        """A lease with about `ttl` before it."""
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
    """The revision that a token names; 0: the key must not exist; None: it names none."""
    if not token:
        return 0
    try:
        revision = int(token) if isinstance(token, int | str) else -1
    except ValueError:
        return None
    return revision if 0 <= revision <= _REVISION_MAX else None


def create_backend(params: RendezvousParameters) -> tuple[EtcdRendezvousBackend, EtcdStore]:
    """A backend and a store for `params`. etcd must answer.

    `endpoint` is "host:port", several with commas between them; the port is 2379 if left out.
    Options: `read_timeout` (60; whole seconds, bounds every call), `protocol` ("http", or "https"),
    `ssl_cert`, `ssl_cert_key` (the client's certificate and its key), `ca_cert`: PEM files.

    Raises:
        ValueError: an option or the endpoint cannot be read, or the run id is empty.
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
