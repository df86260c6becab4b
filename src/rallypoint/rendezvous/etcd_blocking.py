"""A blocking client of etcd: the ledger's etcd client, in Rallypoint's thread of the process.

All rendezvous modules for etcd use this connection, and take one as `client`. It uses etcd's v3
API, which every etcd since 3.4 has. torch's modules use v2, which etcd 3.6 has removed, so a client
of the package python-etcd does not work here.
"""

from __future__ import annotations

import asyncio
import atexit
import contextlib
import os
import weakref
from collections.abc import Coroutine
from concurrent.futures import CancelledError
from typing import Any, Final, TypeVar

import msgspec

from rallypoint import errors
from rallypoint.client.blocking import portal
from rallypoint.core.values import Address
from rallypoint.ledger.etcd.client import EtcdClient
from rallypoint.ledger.etcd.options import EtcdOptions
from rallypoint.ledger.etcd.wire import KeyValue, prefix_end
from rallypoint.rendezvous import _torch_bridge
from rallypoint.rendezvous.api import (
    RendezvousConnectionError,
    RendezvousParameters,
    RendezvousStateError,
)
from rallypoint.rendezvous.utils import parse_rendezvous_endpoint

__all__ = ["EtcdConnection"]

_T = TypeVar("_T")
DEFAULT_PORT: Final = 2379
DEFAULT_READ_TIMEOUT_S: Final = 60
FIRST_CONTACT_S: Final = 10.0
"""How many seconds an etcd has for its first answer: enough to start together with the job, and few
enough that a wrong address fails soon.
"""
_CLOSE_S: Final = 1.0


class EtcdConnection:
    """A blocking client of etcd v3. Any number of threads may use it.

    The first call connects. After a fork, the child's first call opens its own connections. Keys
    are bytes, or str stored as UTF-8.

    Args:
        host: a name or an address; IPv6 without brackets.
        port: etcd's client port.
        read_timeout: the limit of each call, in seconds, even if etcd is frozen.
        protocol: "http" or "https".
        cert: the client's certificate, a PEM file; or a pair with the key's file.
        ca_cert: the PEM file of the authority that signed etcd's certificate; None for the
            system's authorities.
        endpoints: the members of a cluster, each "host:port", instead of `host` and `port`.

    Raises:
        ValueError: a wrong timeout or protocol.

    Every call may raise RendezvousConnectionError, whose text has what was tried, where, and the
    system's answer. The cause is in `__cause__`.
    """

    def __init__(
        self,
        host: str = "127.0.0.1",
        port: int = DEFAULT_PORT,
        *,
        read_timeout: float = DEFAULT_READ_TIMEOUT_S,
        protocol: str = "http",
        cert: str | tuple[str, str] | None = None,
        ca_cert: str | None = None,
        endpoints: tuple[str, ...] = (),
    ) -> None:
        if not read_timeout > 0:
            raise ValueError("The read timeout must be a positive number of seconds.")
        scheme = protocol.strip().lower()
        if scheme not in ("http", "https"):
            raise ValueError("The protocol must be HTTP or HTTPS.")
        cert_file, key_file = (cert, None) if cert is None or isinstance(cert, str) else cert
        self.options = EtcdOptions(
            endpoints=endpoints or (str(Address(host, port)),),
            tls=scheme == "https",
            ca_file=ca_cert,
            cert_file=cert_file,
            key_file=key_file,
            timeout_s=_own_timeout_s(read_timeout),
            try_timeout_s=min(5.0, 0.4 * read_timeout / max(1, len(endpoints))),
        )
        self.read_timeout = read_timeout
        self._client: EtcdClient | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        _connections.add(self)

    @property
    def endpoints(self) -> tuple[str, ...]:
        """etcd's addresses, each "host:port"."""
        return self.options.endpoints

    @property
    def protocol(self) -> str:
        """ "http" or "https"."""
        return "https" if self.options.tls else "http"

    @property
    def version(self) -> str:
        """The release of the member that answers first, such as "3.5.1"."""
        return self.run(self.within(self.read_timeout, self._version()), "ask for its version")

    def members(self) -> tuple[str, ...]:
        """The names of the cluster's members."""
        return self.run(self.within(self.read_timeout, self._members()), "ask for its members")

    def read(self, key: str | bytes) -> KeyValue | None:
        """A key with its value; None if it does not exist."""
        return self.run(self.within(self.read_timeout, self._read(as_key(key))), f"read {key!r}")

    def write(self, key: str | bytes, value: str | bytes) -> None:
        """Store a value. After an error it may still be stored, now or later."""
        data = value.encode() if isinstance(value, str) else bytes(value)
        work = self._write(as_key(key), data)
        self.run(self.within(self.read_timeout, work), f"write {key!r}")

    def delete(self, key: str | bytes, recursive: bool = False, dir: bool = False) -> int:
        """Delete a key, and with `recursive` all below it. Returns how many there were.

        `dir` is an argument of python-etcd's, and is ignored: v3 has no directories.
        """
        work = self._delete(as_key(key), recursive=recursive)
        return self.run(self.within(self.read_timeout, work), f"delete {key!r}")

    def close(self) -> None:
        """Close all connections. A later call opens new ones."""
        client, loop = self._client, self._loop
        self._client = self._loop = None
        if client is None or loop is None or not loop.is_running():
            return
        closing = asyncio.run_coroutine_threadsafe(client.aclose(), loop)
        with contextlib.suppress(TimeoutError, CancelledError):
            closing.result(_CLOSE_S)

    # -- for the modules that use this connection --------------------------------------------------

    def run(self, work: Coroutine[Any, Any, _T], what: str = "read or write") -> _T:
        """Run a coroutine in Rallypoint's thread. `what`: its purpose, for the error's text.

        Raises RendezvousConnectionError, and RendezvousStateError for a damaged record.
        """
        try:
            return portal().run(work)
        except (errors.LedgerCorruptError, errors.LedgerFormatError) as error:
            raise _torch_bridge.error_class(RendezvousStateError)(str(error)) from error
        except errors.LedgerError as error:
            where = ", ".join(self.endpoints)
            raise _torch_bridge.error_of(
                RendezvousConnectionError,
                "The connection to etcd has failed. See inner exception for details.",
                f"At {where}, trying to {what}: {error}",
            ) from error

    async def within(self, seconds: float, work: Coroutine[Any, Any, _T]) -> _T:
        """The work's result. Raises LedgerUnreachableError if it takes longer."""
        try:
            async with asyncio.timeout(seconds):
                return await work
        except TimeoutError as error:
            raise errors.LedgerUnreachableError(
                f"no answer within {seconds:g} s",
                hint="check that etcd runs and has a leader, and that this is its client port",
            ) from error

    async def client(self) -> EtcdClient:
        """The client, ready to use, for coroutines in Rallypoint's thread.

        Raises LedgerAccessError if a certificate cannot be used.
        """
        loop = asyncio.get_running_loop()
        if self._client is None:
            self._client, self._loop = EtcdClient(self.options), loop
            weakref.finalize(self, _let_go, self._client, loop, os.getpid()).atexit = False
        await self._client.open()
        return self._client

    def contact(self) -> None:
        """Raises RendezvousConnectionError unless etcd answers in time.

        It must answer within `read_timeout` and FIRST_CONTACT_S.
        """
        self.run(self._contact(min(FIRST_CONTACT_S, self.read_timeout)), "connect")

    async def _contact(self, limit_s: float) -> None:
        client = EtcdClient(
            msgspec.structs.replace(self.options, timeout_s=_own_timeout_s(limit_s))
        )
        await client.open()
        try:
            await self.within(limit_s, client.status())
        finally:
            await client.aclose()

    async def _version(self) -> str:
        return (await (await self.client()).status()).version

    async def _members(self) -> tuple[str, ...]:
        return tuple(each.name for each in await (await self.client()).members())

    async def _read(self, key: bytes) -> KeyValue | None:
        found = (await (await self.client()).range(key)).kvs
        return found[0] if found else None

    async def _write(self, key: bytes, value: bytes) -> None:
        await (await self.client()).put(key, value)

    async def _delete(self, key: bytes, *, recursive: bool) -> int:
        client = await self.client()
        deleted = (await client.delete(key)).deleted
        if recursive:
            below = key.rstrip(b"/") + b"/"
            deleted += (await client.delete(below, prefix_end(below))).deleted
        return deleted

    def __repr__(self) -> str:
        return f"<EtcdConnection {self.protocol}, {', '.join(self.endpoints)}>"


def connection(client: object) -> EtcdConnection:
    """`client`, if it is an EtcdConnection. Otherwise raises TypeError with advice."""
    if isinstance(client, EtcdConnection):
        return client
    kind = type(client)
    raise TypeError(
        f"client must be a rallypoint.rendezvous.etcd_blocking.EtcdConnection, not "
        f"{kind.__module__}.{kind.__qualname__}: this package uses etcd's v3 API, and clients of "
        "python-etcd use v2; write EtcdConnection(host, port), or use EtcdServer.get_client()"
    )


def connection_of(
    params: RendezvousParameters,
    *,
    cert: str | None,
    key: str | None,
    ca_cert: str | None,
    protocol: str | None,
) -> EtcdConnection:
    """The connection of `params`. `endpoint` may name several members, with commas.

    Does not connect. Raises ValueError, which names the option.
    """
    read_timeout = params.get_as_int("read_timeout", DEFAULT_READ_TIMEOUT_S)
    if read_timeout is None or read_timeout <= 0:
        raise ValueError("The read timeout must be a positive integer.")
    return EtcdConnection(
        read_timeout=read_timeout,
        protocol=protocol or "http",
        cert=(cert, key) if cert and key else cert or None,
        ca_cert=ca_cert or None,
        endpoints=endpoints_of(params.endpoint),
    )


def endpoints_of(endpoint: str | None) -> tuple[str, ...]:
    """The members of an endpoint: "host:port", or several with commas between them."""
    each = (endpoint or "").split(",")
    parsed = [parse_rendezvous_endpoint(one.strip(), DEFAULT_PORT) for one in each]
    return tuple(dict.fromkeys(str(Address(host, port)) for host, port in parsed))


def as_key(key: str | bytes) -> bytes:
    """A key as etcd stores it."""
    return key.encode() if isinstance(key, str) else bytes(key)


def _own_timeout_s(limit_s: float) -> float:
    """How many seconds the ledger's client may try, so that its own error comes before the limit.

    That error has the system's answer, and not only a timeout. The client checks its limit after
    pauses of up to half a second.
    """
    return max(0.4 * limit_s, limit_s - 0.6)


# -- the end ---------------------------------------------------------------------------------------

_connections: weakref.WeakSet[EtcdConnection] = weakref.WeakSet()
_kept_for_ever: list[EtcdClient] = []


def _let_go(client: EtcdClient, loop: asyncio.AbstractEventLoop, pid: int) -> None:
    """Close a client without waiting, from any thread."""
    if os.getpid() == pid and loop.is_running():
        asyncio.run_coroutine_threadsafe(client.aclose(), loop)


@atexit.register
def _at_exit() -> None:
    for each in list(_connections):
        each.close()


def _in_forked_child() -> None:
    for each in list(_connections):
        if each._client is not None:
            _kept_for_ever.append(each._client)
        each._client = each._loop = None


os.register_at_fork(after_in_child=_in_forked_child)
