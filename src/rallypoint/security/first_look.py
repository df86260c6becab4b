"""How a client learns the certificate of the CA that its token names.

The token has only the CA's hash. So the first dial of a process looks at the certificates that the
server shows, before anything is said to it, and takes the one whose key has that hash. A
certificate that was shown proves nothing by itself: another server can put the CA's public key into
a certificate of its own. The handshake that follows proves that the server has a key that this CA
has signed. Only then is the certificate kept, and later dials trust it. If a handshake with it
fails, they look once more: the CA may have a new certificate for the same key.
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
T = TypeVar("T")
S = TypeVar("S", bound=ssl.SSLSocket)
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


async def dial(
    parts: Parts,
    where: Callable[[], Awaitable[dict[str, Any]]],
    connect: Callable[[tls.Client], Awaitable[T]],
) -> T:
    """Connect to a server with this token; look at the server first if its CA is not known.

    `where` returns what `loop.create_connection` needs to reach it: host and port, or a connected
    socket, which is closed after the look. `connect` returns once the handshake has succeeded. It
    may be called twice; the second time after it has raised ssl.SSLCertVerificationError.

    Raises OtherAuthorityError; OSError, such as ssl.SSLError from a server without TLS; and the
    errors of `connect`. The caller limits the time.
    """
    kept, failed = _kept(parts), None
    if kept is not None:
        try:
            return await connect(tls.client(kept))
        except ssl.SSLCertVerificationError as error:
            failed = error
    found = _of(parts.ca, await shown_at(await where(), tls.server_name(parts.ca)))
    if failed is not None and found == kept:
        raise failed
    connected = await connect(tls.client(found))
    _keep(parts.ca, found)
    return connected


def secured(parts: Parts, connect: Callable[[], socket.socket], kind: type[S]) -> S:
    """As `dial`, for a connection by TLS that blocks.

    `connect` returns a connected socket. It is called up to three times: for a handshake, a look,
    and another handshake. `kind`: the class of the result. Raises OtherAuthorityError and other
    OSErrors.
    """

    def handshake(certificate: bytes) -> S:
        client = tls.new_client(certificate)
        client.context.sslsocket_class = kind
        found = client.context.wrap_socket(connect(), server_hostname=client.server_name)
        assert isinstance(found, kind)
        return found

    kept, failed = _kept(parts), None
    if kept is not None:
        try:
            return handshake(kept)
        except ssl.SSLCertVerificationError as error:
            failed = error
    found = _of(parts.ca, shown_blocking(connect(), tls.server_name(parts.ca)))
    if failed is not None and found == kept:
        raise failed
    connected = handshake(found)
    _keep(parts.ca, found)
    return connected


def _kept(parts: Parts) -> bytes | None:
    """The certificate of this CA, if it is known already. A host token has it, as its own."""
    if parts.identity is not None and parts.ca not in _known:
        _keep(parts.ca, parts.identity.ca)
    return _known.get(parts.ca)


def _of(ca: str, shown: tuple[bytes, ...]) -> bytes:
    """The certificate of this CA, of those (DER) that a server shows.

    Raises OtherAuthorityError if it is not among them.
    """
    found = next((each for each in shown if _hash_of(each) == ca), None)
    if found is None:
        raise OtherAuthorityError(_hash_of(shown[-1]) if shown else "")
    return found


def _keep(ca: str, certificate: bytes) -> None:
    while ca not in _known and len(_known) >= KEPT_MAX:
        del _known[next(iter(_known))]
    _known[ca] = certificate


def _hash_of(certificate: bytes) -> str:
    try:
        return public_key_hash(certificate)
    except ValueError:
        return ""


async def has_tls(where: Callable[[], Awaitable[dict[str, Any]]]) -> bool:
    """Whether a server speaks TLS within HAS_TLS_S. `where`: as for `dial`."""
    import asyncio  # here, because commands use this file, and not that

    try:
        async with asyncio.timeout(HAS_TLS_S):
            return bool(await shown_at(await where(), tls.NO_AUTHORITY))
    except OSError:  # also TimeoutError
        return False


async def authority_at(reached: dict[str, Any]) -> str:
    """The CA of the certificates that a server shows, as in tokens; "" for none. `reached`: what
    `where` of `dial` returns. Raises OSError.
    """
    shown = await shown_at(reached, tls.NO_AUTHORITY)
    return _hash_of(shown[-1]) if shown else ""


async def shown_at(reached: dict[str, Any], server_name: str) -> tuple[bytes, ...]:
    """The certificates (DER) that a server shows for this name, its own first. Raises OSError.

    `reached`: what `where` of `dial` returns.
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
