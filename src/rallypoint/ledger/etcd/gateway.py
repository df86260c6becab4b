"""How the client's requests travel to etcd's JSON gateway: HTTP, by aiohttp.

Here each error of aiohttp becomes one of three: the request was not sent, its answer was lost, or
the endpoint is no use. What is sent, and what is done about an error, is the client's.
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import AsyncIterator, Mapping
from contextlib import AbstractAsyncContextManager
from typing import Final, Protocol

import aiohttp

from rallypoint.errors import LedgerAccessError, LedgerUnreachableError, UsageError
from rallypoint.ledger.etcd.failures import (
    BadEndpointError,
    LostError,
    NotSentError,
    certificate_error,
    system_words,
)
from rallypoint.ledger.etcd.options import EtcdOptions, tls_context
from rallypoint.ledger.etcd.wire import not_etcd

_CONNECTING: Final = 0.9
"""The part of an attempt's time after which it must be connected."""


class Answer(Protocol):
    """An answer that has begun. `status`: of HTTP."""

    @property
    def status(self) -> int:
        """HTTP's status."""

    def parts(self) -> AsyncIterator[bytes]:
        """The body piece by piece, as it arrives."""


class Gateway(Protocol):
    """What carries requests to etcd's members, named by their URLs."""

    async def open(self) -> None:
        """Prepare connections. Raises LedgerAccessError if a certificate cannot be used."""

    async def aclose(self) -> None:
        """Close all connections. Idempotent."""

    def post(
        self, url: str, path: str, data: bytes, headers: Mapping[str, str], try_s: float
    ) -> AbstractAsyncContextManager[Answer]:
        """Send a request to one member.

        The caller has to limit the time, to `try_s` or more. A connect has a little less time, so
        that a request that was never sent is not treated as lost.

        Raises NotSentError, LostError, BadEndpointError, UsageError and LedgerUnreachableError.
        """


class _HttpAnswer:
    def __init__(self, response: aiohttp.ClientResponse) -> None:
        self.status = response.status
        self._response = response

    def parts(self) -> AsyncIterator[bytes]:
        return self._response.content.iter_any()


class HttpGateway:
    """The gateway over HTTP or HTTPS. Owned by one event loop."""

    def __init__(self, options: EtcdOptions) -> None:
        self._options = options
        self._session: aiohttp.ClientSession | None = None

    async def open(self) -> None:
        """See Gateway."""
        if self._session is None:
            context = tls_context(self._options) if self._options.tls else False
            self._session = aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(ssl=context, limit=0),
                auto_decompress=False,
                trust_env=False,
            )

    async def aclose(self) -> None:
        """See Gateway."""
        session, self._session = self._session, None
        if session is not None:
            await session.close()

    @contextlib.asynccontextmanager
    async def post(
        self, url: str, path: str, data: bytes, headers: Mapping[str, str], try_s: float
    ) -> AsyncIterator[Answer]:
        """See Gateway."""
        if self._session is None:
            raise LedgerUnreachableError("the etcd client is not open")
        timeout = aiohttp.ClientTimeout(total=None, sock_connect=_CONNECTING * try_s)
        try:
            # A file object, because aiohttp sends bytes in one piece and warns if they are large.
            content = io.BytesIO(data)
            async with self._session.post(
                f"{url}/v3/{path}", data=content, headers=headers, timeout=timeout
            ) as response:
                yield _HttpAnswer(response)
        except aiohttp.ClientSSLError as error:
            raise BadEndpointError(self._certificate_error(url, error)) from error
        except (aiohttp.ClientConnectorError, aiohttp.ConnectionTimeoutError) as error:
            raise NotSentError(system_words(error)) from error
        except aiohttp.InvalidURL as error:
            raise UsageError(f"{url} is not a valid endpoint of etcd") from error
        except aiohttp.ClientResponseError as error:
            raise BadEndpointError(not_etcd(url, error.message or "no HTTP")) from error
        except (aiohttp.ClientError, OSError) as error:
            if "SSL" in str(error):  # TLS 1.3 reports a missing certificate after the handshake
                raise BadEndpointError(self._certificate_error(url, error)) from error
            raise LostError(system_words(error)) from error

    def _certificate_error(self, url: str, error: Exception) -> LedgerAccessError:
        return certificate_error(url, error, self._options.ca_file, self._options.cert_file)
