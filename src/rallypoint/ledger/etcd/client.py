"""A small asyncio client of etcd v3, over its JSON gateway: the one file that connects to etcd.

Why our own: of the clients there are, none has several endpoints with failover, TLS with client
certificates, a user with a password, a deadline on everything, and asyncio, all at once; and most
bring gRPC, which is larger than all of Rallypoint. etcd itself serves the same calls as JSON over
HTTP (`/v3/...`, since 3.4), and aiohttp is here anyway.

What matters most is kept apart here: a request that was *refused*, one that was *never sent*, and
one whose answer was *lost*. The last, for whatever changes something, is EtcdUnknownError, and only
the caller can know whether it may be sent again. All else goes on to the next endpoint by itself.
"""

from __future__ import annotations

import asyncio
import contextlib
import io
import random
from collections.abc import AsyncGenerator, AsyncIterator, Mapping, Sequence
from typing import Any, Final, TypeVar

import aiohttp
import msgspec

from rallypoint.errors import (
    LedgerAccessError,
    LedgerError,
    LedgerForeignError,
    LedgerUnreachableError,
    UsageError,
)
from rallypoint.ledger.etcd.failures import (
    BadEndpointError,
    LostError,
    NotSentError,
    certificate_error,
    system_words,
)
from rallypoint.ledger.etcd.options import EtcdOptions, tls_context
from rallypoint.ledger.etcd.wire import (
    DeleteResult,
    EtcdCompactedError,
    EtcdRefusedError,
    EtcdTokenError,
    EtcdUnknownError,
    Event,
    Header,
    Lease,
    LeaseStream,
    Member,
    Members,
    PutResult,
    RangeResult,
    Status,
    Token,
    TxnResult,
    WatchResult,
    WatchStream,
    decode,
    not_etcd,
    refusal,
    said_no,
)

T = TypeVar("T")
ANSWER_BYTES_MAX: Final = 64 << 20
_LINE_BYTES_MAX: Final = 16 << 20
_BACKOFF_S: Final = 0.05
_BACKOFF_MAX_S: Final = 0.5
_AUTHENTICATIONS_MAX: Final = 3
_CONNECTING: Final = 0.9
"""The part of an attempt's time in which it has to be connected."""


class EtcdClient:
    """One event loop owns it. Every call raises a LedgerError and nothing else (see etcd_wire)."""

    def __init__(self, options: EtcdOptions) -> None:
        if not options.endpoints:
            raise UsageError("etcd needs at least one endpoint")
        scheme = "https" if options.tls else "http"
        self.options = options
        self._urls = [f"{scheme}://{endpoint}" for endpoint in options.endpoints]
        # Not everybody begins with the first one.
        self._preferred = random.randrange(len(self._urls))
        self._session: aiohttp.ClientSession | None = None
        self._token = ""
        self._authenticating = asyncio.Lock()
        self._cluster_id = 0

    async def open(self) -> None:
        """Make ready to connect. Raises LedgerAccessError if a certificate cannot be used."""
        if self._session is None:
            context = tls_context(self.options) if self.options.tls else False
            self._session = aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(ssl=context, limit=0),
                auto_decompress=False,
                trust_env=False,
            )

    async def aclose(self) -> None:
        """Close all connections. Idempotent."""
        session, self._session = self._session, None
        if session is not None:
            await session.close()

    # -- keys -----------------------------------------------------------------------------------

    async def range(self, key: bytes, range_end: bytes = b"", **options: Any) -> RangeResult:
        """Keys from `key` up to `range_end` (that one key if empty). Linearizable."""
        body = {"key": key, "range_end": range_end, **options}
        return await self._call("kv/range", body, RangeResult)

    async def txn(
        self,
        conditions: Sequence[Mapping[str, Any]],
        then: Sequence[Mapping[str, Any]],
        otherwise: Sequence[Mapping[str, Any]] = (),
    ) -> TxnResult:
        """All of `then` if all conditions hold, else all of `otherwise`; at once.

        Raises EtcdUnknownError if it may have been done: also much later, by a member that was
        frozen. So what it changes must be conditional on what it changes.
        """
        body = {"compare": conditions, "success": then, "failure": otherwise}
        return await self._call("kv/txn", body, TxnResult, repeatable=False)

    async def put(self, key: bytes, value: bytes, *, lease: int = 0) -> PutResult:
        """Write without a condition. Raises EtcdUnknownError, as `txn`."""
        body = {"key": key, "value": value, "lease": str(lease)}
        return await self._call("kv/put", body, PutResult, repeatable=False)

    async def delete(self, key: bytes, range_end: bytes = b"") -> DeleteResult:
        """Delete without a condition. Raises EtcdUnknownError, as `txn`."""
        body = {"key": key, "range_end": range_end}
        return await self._call("kv/deleterange", body, DeleteResult, repeatable=False)

    async def watch(
        self, key: bytes, range_end: bytes = b"", *, start_revision: int
    ) -> AsyncGenerator[tuple[Event, ...], None]:
        """Every change from a revision on, in order, none left out, none twice.

        Goes on at the next endpoint when a connection ends or is silent. Close it (`aclosing`).
        Raises EtcdCompactedError if the revision is no longer there, LedgerUnreachableError when no
        endpoint took it up for `timeout_s`.
        """
        loop = asyncio.get_running_loop()
        request = {"key": key, "range_end": range_end}
        next_revision, tried_since, tries = start_revision, loop.time(), 0
        while True:
            url = self._urls[self._preferred]
            try:
                body = {"create_request": {**request, "start_revision": str(next_revision)}}
                async with contextlib.aclosing(self._stream(url, body)) as results:
                    async for result in results:
                        tried_since, tries = loop.time(), 0
                        if result.events:
                            next_revision = result.events[-1].kv.mod_revision + 1
                            yield result.events
            except (NotSentError, LostError, BadEndpointError, EtcdTokenError) as problem:
                if isinstance(problem, EtcdTokenError):
                    self._token = ""
                tries += 1
                if loop.time() - tried_since > self.options.timeout_s:
                    raise self._unreachable({url: str(problem)}) from problem
                await asyncio.sleep(_backoff(tries // len(self._urls)))
            self._next(url)

    # -- leases ---------------------------------------------------------------------------------

    async def grant(self, ttl_s: int) -> Lease:
        """A new lease. One whose answer is lost ends by itself, so this may repeat."""
        return await self._call("lease/grant", {"TTL": str(ttl_s)}, Lease)

    async def keepalive(self, lease_id: int) -> Lease:
        """Renew a lease; `TTL` is 0 if it has ended."""
        body = {"ID": str(lease_id)}
        return (await self._call("lease/keepalive", body, LeaseStream)).result

    async def revoke(self, lease_id: int) -> None:
        """End a lease, and with it its keys. Nothing happens if it has ended."""
        try:
            await self._call("lease/revoke", {"ID": str(lease_id)}, PutResult)
        except EtcdRefusedError as error:
            if "not found" not in error.message:
                raise

    # -- the cluster ----------------------------------------------------------------------------

    async def status(self) -> Status:
        """The state of the member that answers first."""
        return await self._call("maintenance/status", {}, Status)

    async def members(self) -> tuple[Member, ...]:
        """The cluster's members."""
        return (await self._call("cluster/member/list", {}, Members)).members

    # -- one call over several endpoints ----------------------------------------------------------

    async def _call(
        self, path: str, body: Mapping[str, Any], type: type[T], *, repeatable: bool = True
    ) -> T:
        """`repeatable`: sending it twice does no harm, so a lost answer is no unknown outcome."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + self.options.timeout_s
        data = msgspec.json.encode(body)
        problems: dict[str, str] = {}
        refused: dict[str, LedgerError] = {}
        authentications = 0
        for attempt in range(1_000_000):
            if attempt and attempt % len(self._urls) == 0:
                if len(refused) == len(self._urls):
                    raise next(iter(refused.values()))
                pause_s = _backoff(attempt // len(self._urls))
                await asyncio.sleep(min(pause_s, max(0.0, deadline - loop.time())))
            if loop.time() >= deadline:
                break
            url = self._urls[self._preferred]
            try:
                answer = decode(await self._try(url, path, data, deadline), type, url)
                self._check_cluster(getattr(answer, "header", None), url)
                return answer
            except EtcdTokenError:
                self._token = ""
                authentications += 1
                if authentications > _AUTHENTICATIONS_MAX:
                    raise
                continue
            except NotSentError as problem:
                problems[url] = str(problem)
            except LostError as problem:
                if not repeatable:
                    self._next(url)
                    raise EtcdUnknownError(f"etcd at {url} did not say: {problem}") from problem
                problems[url] = str(problem)
            except BadEndpointError as problem:
                refused[url] = problem.error
                problems[url] = problem.error.message
            self._next(url)
        raise self._unreachable(problems)

    async def _try(self, url: str, path: str, data: bytes, deadline: float) -> bytes:
        """One attempt at one endpoint: the answer's bytes."""
        headers = await self._headers(url, deadline)
        status, answer = await self._exchange(url, path, data, headers, deadline)
        _raise_refusal(status, answer, url)
        return answer

    async def _headers(self, url: str, deadline: float) -> dict[str, str]:
        if not self.options.user:
            return {}
        async with self._authenticating:
            if not self._token:
                self._token = await self._authenticate(url, deadline)
        return {"Authorization": self._token} if self._token != _NO_TOKEN else {}

    async def _authenticate(self, url: str, deadline: float) -> str:
        body = {"name": self.options.user, "password": self.options.password}
        data = msgspec.json.encode(body)
        try:
            status, answer = await self._exchange(url, "auth/authenticate", data, {}, deadline)
            _raise_refusal(status, answer, url)
        except EtcdRefusedError as error:
            if "not enabled" in error.message:
                return _NO_TOKEN  # as etcd's own client: a user where none is asked for
            raise
        except LostError as error:
            raise NotSentError(str(error)) from error  # what the token was for was not sent
        return decode(answer, Token, url).token

    async def _exchange(
        self, url: str, path: str, data: bytes, headers: Mapping[str, str], deadline: float
    ) -> tuple[int, bytes]:
        """A request and its whole answer: the status, and the bytes.

        A large value over a slow line is no sign of a frozen member, there and back: what is
        bounded is how long the endpoint says nothing, and all of it by `deadline`.
        """
        loop = asyncio.get_running_loop()
        quiet_s, left_s = self.options.try_timeout_s, deadline - loop.time()
        if left_s <= 0:
            raise NotSentError("there was no time left for it")
        problem = f"no answer within {min(left_s, quiet_s):g} s"
        parts: list[bytes] = []
        try:
            async with (
                asyncio.timeout(min(left_s, quiet_s + len(data) / 1e6)) as silence,
                self._post(url, path, data, headers, min(left_s, quiet_s)) as response,
            ):
                async for part in _parts(response, url):
                    parts.append(part)
                    problem = f"it began to answer, and then said nothing for {quiet_s:g} s"
                    silence.reschedule(min(deadline, loop.time() + quiet_s))
        except TimeoutError as error:
            if parts and loop.time() >= deadline:
                problem = f"not all of its answer came within {self.options.timeout_s:g} s"
            raise LostError(problem) from error
        return response.status, b"".join(parts)

    async def _stream(self, url: str, body: Mapping[str, Any]) -> AsyncGenerator[WatchResult, None]:
        """The results of one watch on one connection; ends when it was silent for long."""
        data = msgspec.json.encode(body)
        quiet_s = self.options.try_timeout_s
        loop = asyncio.get_running_loop()
        headers = await self._headers(url, loop.time() + self.options.timeout_s)
        async with contextlib.AsyncExitStack() as stack:
            try:
                async with asyncio.timeout(quiet_s):
                    response = await stack.enter_async_context(
                        self._post(url, "watch", data, headers, quiet_s)
                    )
                    if response.status != 200:
                        answer = b"".join([part async for part in _parts(response, url)])
                        _raise_refusal(response.status, answer, url)
            except TimeoutError as error:
                raise LostError(f"no answer within {quiet_s:g} s") from error
            lines = _lines(response)
            idle_s = quiet_s  # until it says that the watch was created
            while True:
                try:
                    async with asyncio.timeout(idle_s):
                        line = await anext(lines, b"")
                except TimeoutError:
                    if idle_s == self.options.watch_idle_s:
                        return
                    raise LostError(f"no answer within {idle_s:g} s") from None
                if not line:
                    raise LostError("the watch was ended")
                result = _watch_result(decode(line, WatchStream, url), url)
                self._check_cluster(result.header, url)
                yield result
                idle_s = self.options.watch_idle_s

    @contextlib.asynccontextmanager
    async def _post(
        self, url: str, path: str, data: bytes, headers: Mapping[str, str], try_s: float
    ) -> AsyncIterator[aiohttp.ClientResponse]:
        """A request; what aiohttp says becomes one of three: not sent, lost, a bad endpoint.

        Whoever calls bounds it, by `try_s` at least: the connection has a little less than that, so
        that what was certainly not sent is not taken for lost.
        """
        if self._session is None:
            raise LedgerUnreachableError("the client of etcd is not open")
        timeout = aiohttp.ClientTimeout(total=None, sock_connect=_CONNECTING * try_s)
        try:
            # A file, because aiohttp warns of large bytes: it would send them in one piece.
            content = io.BytesIO(data)
            async with self._session.post(
                f"{url}/v3/{path}", data=content, headers=headers, timeout=timeout
            ) as response:
                yield response
        except aiohttp.ClientSSLError as error:
            raise BadEndpointError(self._certificate_error(url, error)) from error
        except (aiohttp.ClientConnectorError, aiohttp.ConnectionTimeoutError) as error:
            raise NotSentError(system_words(error)) from error
        except aiohttp.InvalidURL as error:
            raise UsageError(f"{url} is no endpoint of etcd") from error
        except aiohttp.ClientResponseError as error:
            raise BadEndpointError(not_etcd(url, error.message or "no HTTP")) from error
        except (aiohttp.ClientError, OSError) as error:
            if "SSL" in str(error):  # TLS 1.3: a missing certificate is told after the handshake
                raise BadEndpointError(self._certificate_error(url, error)) from error
            raise LostError(system_words(error)) from error

    def _check_cluster(self, header: Header | None, url: str) -> None:
        """Endpoints of two clusters (or a port that somebody else has by now) are never mixed."""
        if header is None or not header.cluster_id:
            return
        if not self._cluster_id:
            self._cluster_id = header.cluster_id
        if header.cluster_id != self._cluster_id:
            raise BadEndpointError(
                LedgerForeignError(
                    f"etcd at {url} belongs to cluster {header.cluster_id:x}, and those asked "
                    f"before to {self._cluster_id:x}",
                    hint="name the endpoints of one cluster only",
                )
            )

    def _next(self, url: str) -> None:
        """Prefer the endpoint after this one, unless another call has done so already."""
        if self._urls[self._preferred] == url:
            self._preferred = (self._preferred + 1) % len(self._urls)

    def _certificate_error(self, url: str, error: Exception) -> LedgerAccessError:
        return certificate_error(url, error, self.options.ca_file, self.options.cert_file)

    @property
    def _tls_hint(self) -> str:
        return "does it speak TLS" if self.options.tls else "does it do so without TLS"

    def _unreachable(self, problems: Mapping[str, str]) -> LedgerUnreachableError:
        said = "; ".join(f"{url}: {what}" for url, what in problems.items()) or "no answer"
        return LedgerUnreachableError(
            f"no endpoint of etcd answered within {self.options.timeout_s:g} s ({said})",
            hint=f"is etcd running, has it a leader, is this its port, and {self._tls_hint}?",
        )


_NO_TOKEN: Final = "-"
"""Instead of a token, where etcd asks for none."""


def _raise_refusal(status: int, answer: bytes, url: str) -> None:
    if status == 200:
        return
    error = refusal(status, answer, url)
    if error is None:
        raise LostError(f"HTTP {status}: {answer[:200].decode(errors='replace').strip()}")
    if isinstance(error, LedgerForeignError):
        raise BadEndpointError(error)
    raise error


def _watch_result(line: WatchStream, url: str) -> WatchResult:
    if line.result is None:
        raise LostError(f"the watch was ended: {line.error}")
    if line.result.compact_revision:
        raise EtcdCompactedError(
            f"etcd has compacted its history up to revision {line.result.compact_revision}"
        )
    if line.result.canceled:
        reason = line.result.cancel_reason
        code = 7 if "permission denied" in reason else 0
        if code or "auth token" in reason:
            raise said_no(code, reason, url)
        raise LostError(f"the watch was ended: {reason}")
    return line.result


async def _parts(response: aiohttp.ClientResponse, url: str) -> AsyncGenerator[bytes, None]:
    """The answer as it comes, bounded (R12)."""
    size = 0
    async for part in response.content.iter_any():
        size += len(part)
        if size > ANSWER_BYTES_MAX:
            raise BadEndpointError(not_etcd(url, f"more than {ANSWER_BYTES_MAX} bytes"))
        yield part


async def _lines(response: aiohttp.ClientResponse) -> AsyncGenerator[bytes, None]:
    """Its lines as they come; aiohttp's own readline has a limit below a value's size."""
    buffer = bytearray()
    async for part in response.content.iter_any():
        buffer += part
        while (end := buffer.find(b"\n")) >= 0:
            line = bytes(buffer[:end])
            del buffer[: end + 1]
            if line:
                yield line
        if len(buffer) > _LINE_BYTES_MAX:
            raise LostError("a line without end")


def _backoff(turn: int) -> float:
    return random.uniform(0.5, 1.0) * min(_BACKOFF_MAX_S, _BACKOFF_S * 2.0 ** min(turn, 10))
