"""A small asyncio client of etcd v3, over its JSON gateway.

Why not a library: no client has several endpoints with failover, TLS with client certificates, a
user with a password, a deadline on everything, and asyncio. Most of them need gRPC, which is larger
than all of Rallypoint. etcd serves the same calls as JSON over HTTP (`/v3/...`, since 3.4), and
Rallypoint uses aiohttp anyway.

A request may be *refused*, may *never be sent*, or its answer may be *lost*. The client
distinguishes these. If the answer to a change is lost, it raises EtcdUnknownError, because only the
caller can decide whether the request may be sent again. In all other cases it tries the next
endpoint by itself.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, AsyncIterator, Mapping, Sequence
from typing import Any, Final, TypeVar

import msgspec

from rallypoint import runtime
from rallypoint.errors import (
    LedgerError,
    LedgerForeignError,
    LedgerUnreachableError,
    UsageError,
)
from rallypoint.ledger.etcd.failures import (
    BadEndpointError,
    LostError,
    NotSentError,
)
from rallypoint.ledger.etcd.gateway import Gateway, HttpGateway
from rallypoint.ledger.etcd.options import EtcdOptions
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
    range_problem,
    refusal,
    said_no,
)

T = TypeVar("T")
ANSWER_BYTES_MAX: Final = 64 << 20
_LINE_BYTES_MAX: Final = 16 << 20
_BACKOFF_S: Final = 0.05
_BACKOFF_MAX_S: Final = 0.5
_AUTHENTICATIONS_MAX: Final = 3


class EtcdClient:
    """A client of one cluster, owned by one event loop.

    Every call raises only LedgerErrors (some of them are defined in `wire`).
    """

    def __init__(self, options: EtcdOptions, gateway: Gateway | None = None) -> None:
        """`gateway`: what carries the requests; None: HTTP."""
        if not options.endpoints:
            raise UsageError("etcd needs at least one endpoint")
        scheme = "https" if options.tls else "http"
        self.options = options
        self._gateway = gateway or HttpGateway(options)
        self._urls = [f"{scheme}://{endpoint}" for endpoint in options.endpoints]
        # Clients begin with different endpoints, so that not all use the first one.
        self._preferred = runtime.here().chance.randrange(len(self._urls))
        self._token = ""
        self._authenticating = asyncio.Lock()
        self._cluster_id = 0

    async def open(self) -> None:
        """Prepare connections. Raises LedgerAccessError if a certificate cannot be used."""
        await self._gateway.open()

    async def aclose(self) -> None:
        """Close all connections. Idempotent."""
        await self._gateway.aclose()

    # -- keys -----------------------------------------------------------------------------------

    async def range(self, key: bytes, range_end: bytes = b"", **options: Any) -> RangeResult:
        """The keys from `key` up to `range_end` (only `key` if that is empty). Linearizable."""
        body = {"key": key, "range_end": range_end, **options}
        found = await self._call("kv/range", body, RangeResult)
        problem = range_problem(found, key, range_end)
        if problem:
            raise not_etcd(self._urls[self._preferred], problem)
        return found

    async def txn(
        self,
        conditions: Sequence[Mapping[str, Any]],
        then: Sequence[Mapping[str, Any]],
        otherwise: Sequence[Mapping[str, Any]] = (),
    ) -> TxnResult:
        """Do all of `then` if all conditions hold, otherwise all of `otherwise`, as one step.

        Raises:
            EtcdUnknownError: it may have been done, or may be done much later by a member that is
                frozen now. So make each change conditional on what it changes.
        """
        body = {"compare": conditions, "success": then, "failure": otherwise}
        result = await self._call("kv/txn", body, TxnResult, repeatable=False)
        found, asked = len(result.responses), len(then if result.succeeded else otherwise)
        if found != asked:
            # A broken proxy, for example. The callers count on one result for each operation.
            said = f"{found} results of {asked} operations"
            raise not_etcd(self._urls[self._preferred], said)
        return result

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
        """Yield every change from a revision on, in order, each once. Close it (`aclosing`).

        If a connection ends or is silent, the watch continues at the next endpoint.

        Raises:
            EtcdCompactedError: etcd no longer has the revision.
            LedgerUnreachableError: no endpoint has accepted the watch for `timeout_s`.
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
        """Grant a new lease. If an answer is lost, that lease ends by itself."""
        return await self._call("lease/grant", {"TTL": str(ttl_s)}, Lease)

    async def keepalive(self, lease_id: int) -> Lease:
        """Renew a lease. Its `TTL` is 0 if it has ended."""
        body = {"ID": str(lease_id)}
        return (await self._call("lease/keepalive", body, LeaseStream)).result

    async def revoke(self, lease_id: int) -> None:
        """End a lease and delete its keys. Does nothing if it has ended."""
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
        """Make one call.

        `repeatable`: sending it twice does no harm, so it is sent again after a lost answer.
        """
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
            except (NotSentError, LostError) as problem:
                if isinstance(problem, LostError) and not repeatable:
                    self._next(url)
                    raise EtcdUnknownError(f"no answer from etcd at {url}: {problem}") from problem
                if url not in problems or loop.time() < deadline:
                    problems[url] = str(problem)
                # Otherwise the end of the time has cut this attempt short, and an earlier one has
                # learned more.
            except BadEndpointError as problem:
                refused[url] = problem.error
                problems[url] = problem.error.message
            self._next(url)
        raise self._unreachable(problems)

    async def _try(self, url: str, path: str, data: bytes, deadline: float) -> bytes:
        """One attempt at one endpoint. Returns the bytes of the answer."""
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
                return _NO_TOKEN  # as in etcd's own client: etcd does not require the user
            raise
        except LostError as error:
            raise NotSentError(str(error)) from error  # the caller's request was not sent
        return decode(answer, Token, url).token

    async def _exchange(
        self, url: str, path: str, data: bytes, headers: Mapping[str, str], deadline: float
    ) -> tuple[int, bytes]:
        """Send a request. Returns the status and the bytes of the whole answer.

        A large value takes long over a slow line, but that does not mean that the member is frozen.
        So the time limit is on the silence of the endpoint, and `deadline` on the whole exchange.
        """
        loop = asyncio.get_running_loop()
        quiet_s, left_s = self.options.try_timeout_s, deadline - loop.time()
        if left_s <= 0:
            raise NotSentError("no time was left")
        problem = f"no answer within {min(left_s, quiet_s):g} s"
        parts: list[bytes] = []
        try:
            async with (
                asyncio.timeout(min(left_s, quiet_s + len(data) / 1e6)) as silence,
                self._gateway.post(url, path, data, headers, min(left_s, quiet_s)) as response,
            ):
                async for part in _limited(response.parts(), url):
                    parts.append(part)
                    problem = f"it began to answer, then sent nothing for {quiet_s:g} s"
                    silence.reschedule(min(deadline, loop.time() + quiet_s))
        except TimeoutError as error:
            if parts and loop.time() >= deadline:
                problem = f"its answer was not complete within {self.options.timeout_s:g} s"
            raise LostError(problem) from error
        return response.status, b"".join(parts)

    async def _stream(self, url: str, body: Mapping[str, Any]) -> AsyncGenerator[WatchResult, None]:
        """The results of one watch on one connection. Ends when the endpoint is silent for long."""
        data = msgspec.json.encode(body)
        quiet_s = self.options.try_timeout_s
        loop = asyncio.get_running_loop()
        headers = await self._headers(url, loop.time() + self.options.timeout_s)
        async with contextlib.AsyncExitStack() as stack:
            try:
                async with asyncio.timeout(quiet_s):
                    response = await stack.enter_async_context(
                        self._gateway.post(url, "watch", data, headers, quiet_s)
                    )
                    if response.status != 200:
                        answer = b"".join([part async for part in _limited(response.parts(), url)])
                        _raise_refusal(response.status, answer, url)
            except TimeoutError as error:
                raise LostError(f"no answer within {quiet_s:g} s") from error
            lines = _lines(response.parts())
            idle_s = quiet_s  # until etcd confirms that the watch was created
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

    def _check_cluster(self, header: Header | None, url: str) -> None:
        """Refuse an endpoint of another cluster, because its port may have another owner by now."""
        if header is None or not header.cluster_id:
            return
        if not self._cluster_id:
            self._cluster_id = header.cluster_id
        if header.cluster_id != self._cluster_id:
            raise BadEndpointError(
                LedgerForeignError(
                    f"etcd at {url} belongs to cluster {header.cluster_id:x}, but another endpoint "
                    f"belongs to cluster {self._cluster_id:x}",
                    hint="name only endpoints of one cluster",
                )
            )

    def _next(self, url: str) -> None:
        """Prefer the endpoint after this one, unless another call has already done so."""
        if self._urls[self._preferred] == url:
            self._preferred = (self._preferred + 1) % len(self._urls)

    @property
    def _tls_hint(self) -> str:
        return "uses TLS there" if self.options.tls else "uses no TLS there"

    def _unreachable(self, problems: Mapping[str, str]) -> LedgerUnreachableError:
        said = "; ".join(f"{url}: {what}" for url, what in problems.items()) or "no answer"
        return LedgerUnreachableError(
            f"no endpoint of etcd answered within {self.options.timeout_s:g} s ({said})",
            hint=f"check that etcd runs, has a leader, listens at this port, and {self._tls_hint}",
        )


_NO_TOKEN: Final = "-"
"""Used in place of a token if etcd does not need one."""


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


async def _limited(parts: AsyncIterator[bytes], url: str) -> AsyncGenerator[bytes, None]:
    """The answer piece by piece, with a limit (R12)."""
    size = 0
    async for part in parts:
        size += len(part)
        if size > ANSWER_BYTES_MAX:
            raise BadEndpointError(not_etcd(url, f"more than {ANSWER_BYTES_MAX} bytes"))
        yield part


async def _lines(parts: AsyncIterator[bytes]) -> AsyncGenerator[bytes, None]:
    """The lines of an answer. (The limit of aiohttp's readline is below the size of a value.)"""
    buffer = bytearray()
    async for part in parts:
        buffer += part
        while (end := buffer.find(b"\n")) >= 0:
            line = bytes(buffer[:end])
            del buffer[: end + 1]
            if line:
                yield line
        if len(buffer) > _LINE_BYTES_MAX:
            raise LostError(f"it sent a line of more than {_LINE_BYTES_MAX} bytes")


def _backoff(turn: int) -> float:
    return runtime.here().chance.uniform(0.5, 1.0) * min(
        _BACKOFF_MAX_S, _BACKOFF_S * 2.0 ** min(turn, 10)
    )
