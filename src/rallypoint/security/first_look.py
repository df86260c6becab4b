"""How a client learns the certificate of the CA that its token names.

The token has only the CA's hash. So the first dial of a process looks at the certificates that the
server shows, before anything is said to it, and takes the one whose key has that hash. It is kept;
all later dials trust it and no other. A certificate that was shown proves nothing by itself: the
handshake that follows proves that the server has a key that this CA has signed.
"""

from __future__ import annotations

import socket
import ssl
from collections.abc import Awaitable, Callable
from typing import Any, Final, TypeVar

from rallypoint.security import tls
from rallypoint.security.der import public_key_hash
from rallypoint.security.token_form import Parts

KEPT_MAX: Final = 256
HAS_TLS_S: Final = 1.0
"""How long a server may take to show that it speaks TLS, in seconds, after it gave no answer."""
_known: dict[str, bytes] = {}


class OtherAuthorityError(OSError):
    """The server's certificates are of another CA than the token names.

    `shown`: the CA of the last of them, as in tokens; "" if there is none.
    """

    def __init__(self, shown: str) -> None:
        super().__init__(f"its certificate is of another authority: {shown[:16] or 'none'}")
        self.shown = shown


def known(parts: Parts) -> tls.Client | None:
    """How to dial servers of this CA, if its certificate is known already."""
    if parts.identity is not None:
        _keep(parts.ca, (parts.identity.ca,))
    found = _known.get(parts.ca)
    return tls.client(found) if found is not None else None


def learned(ca: str, shown: tuple[bytes, ...]) -> tls.Client:
    """How to dial servers of this CA, from the certificates (DER) that one shows.

    Raises OtherAuthorityError if it is not among them.
    """
    _keep(ca, shown)
    if ca not in _known:
        raise OtherAuthorityError(_hash_of(shown[-1]) if shown else "")
    return tls.client(_known[ca])


def _keep(ca: str, certificates: tuple[bytes, ...]) -> None:
    for each in certificates:
        if ca not in _known and _hash_of(each) == ca:
            while len(_known) >= KEPT_MAX:
                del _known[next(iter(_known))]
            _known[ca] = each


def _hash_of(certificate: bytes) -> str:
    try:
        return public_key_hash(certificate)
    except ValueError:
        return ""


async def client_of(parts: Parts, where: Callable[[], Awaitable[dict[str, Any]]]) -> tls.Client:
    """How to dial a server with this token; it looks at the server first if it has to.

    `where` returns what `loop.create_connection` needs to reach it: host and port, or a connected
    socket, which is closed after the look. Raises OtherAuthorityError; OSError, such as
    ssl.SSLError from a server without TLS. The caller limits the time.
    """
    found = known(parts)
    if found is not None:
        return found
    return learned(parts.ca, await shown_at(await where(), tls.server_name(parts.ca)))


async def has_tls(where: Callable[[], Awaitable[dict[str, Any]]]) -> bool:
    """Whether a server speaks TLS within HAS_TLS_S. `where`: as for `client_of`."""
    import asyncio  # here, because commands use this file, and not that

    try:
        async with asyncio.timeout(HAS_TLS_S):
            return bool(await shown_at(await where(), tls.NO_AUTHORITY))
    except OSError:  # also TimeoutError
        return False


async def authority_at(reached: dict[str, Any]) -> str:
    """The CA of the certificates that a server shows, as in tokens; "" for none. `reached`: what
    `where` of `client_of` returns. Raises OSError.
    """
    shown = await shown_at(reached, tls.NO_AUTHORITY)
    return _hash_of(shown[-1]) if shown else ""


async def shown_at(reached: dict[str, Any], server_name: str) -> tuple[bytes, ...]:
    """The certificates (DER) that a server shows for this name, its own first. Raises OSError.

    `reached`: what `where` of `client_of` returns.
    """
    import asyncio  # here, because commands use this file, and not that

    loop = asyncio.get_running_loop()
    try:
        transport, _ = await loop.create_connection(
            asyncio.Protocol, ssl=tls.looking_context(), server_hostname=server_name, **reached
        )
    except BaseException:
        if "sock" in reached:
            reached["sock"].close()
        raise
    try:
        return shown_by(transport.get_extra_info("ssl_object"))
    finally:
        transport.abort()


def shown_blocking(connected: socket.socket, server_name: str) -> tuple[bytes, ...]:
    """The certificates that a server shows, over a connection that is used up by it.

    Raises OSError. Its timeout counts.
    """
    with tls.looking_context().wrap_socket(connected, server_hostname=server_name) as looking:
        return shown_by(looking)


def authority_blocking(connected: socket.socket) -> str:
    """As `authority_at`, over a connection that is used up by it."""
    shown = shown_blocking(connected, tls.NO_AUTHORITY)
    return _hash_of(shown[-1]) if shown else ""


def client_of_blocking(parts: Parts, connected: socket.socket) -> tls.Client:
    """As `client_of`, over a connection that is used up by it. Its timeout counts."""
    return learned(parts.ca, shown_blocking(connected, tls.server_name(parts.ca)))


S = TypeVar("S", bound=ssl.SSLSocket)


def secured(parts: Parts, connect: Callable[[], socket.socket], kind: type[S]) -> S:
    """A connection by TLS to a server of this token, which blocks.

    `connect` returns a connected socket. It is called twice if the server's CA is not known.
    `kind`: the class of the result. Raises OtherAuthorityError and other OSErrors.
    """
    if known(parts) is None:
        client_of_blocking(parts, connect())
    client = tls.new_client(_known[parts.ca])
    client.context.sslsocket_class = kind
    found = client.context.wrap_socket(connect(), server_hostname=client.server_name)
    assert isinstance(found, kind)
    return found


def shown_by(connection: Any) -> tuple[bytes, ...]:
    """The certificates (DER) that the other side of a TLS connection shows, its own first."""
    # Public since Python 3.13; before that, the same method has a private place.
    if hasattr(connection, "get_unverified_chain"):
        return tuple(connection.get_unverified_chain())
    inner = getattr(connection, "_sslobj", connection)
    inner = getattr(inner, "_sslobj", inner)
    return tuple(each.public_bytes(ENCODING_DER) for each in inner.get_unverified_chain() or ())


ENCODING_DER: Final = 2
"""_ssl.ENCODING_DER"""
