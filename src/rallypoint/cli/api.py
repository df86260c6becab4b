"""A client of a coordinator's HTTP API for the command line.

It uses http.client and not aiohttp, because that loads in a tenth of the time and uses no proxies.
Every answer is bounded in time and size. If another program listens at an endpoint, the error names
it.
"""

from __future__ import annotations

import contextlib
import errno
import http.client
import json
import math
import socket
import ssl
import time
from collections.abc import Iterator
from typing import Any, Final

import msgspec

from rallypoint import settings
from rallypoint.client import untrusted
from rallypoint.core.values import Address
from rallypoint.errors import (
    CoordinatorError,
    NotACoordinatorError,
    UnreachableError,
    UsageError,
    not_a_coordinator,
)
from rallypoint.security import claims, first_look, pki, token_form
from rallypoint.security.access import CertificateFileError, Certificates
from rallypoint.settings import Endpoint, EndpointKind
from rallypoint.tokens import check_may_be_sent, token_error
from rallypoint.wire import api_paths
from rallypoint.wire.headers import CLIENT, ONLY_OWN

TIMEOUT_S: Final = 5.0
ANSWER_BYTES_MAX: Final = 256 * 1024**2
QUIET_S: Final = 45.0
"""A stream of events sends a comment three times in this time."""
EVENT_BYTES_MAX: Final = 1024**2
PAGES_MAX: Final = 1_000
"""The most pages of runs to read, with 1,000 runs each, because another program may send pages
without end.
"""


class NoSuchRunError(UsageError):
    """The coordinator has no run or no node of that name."""


def runs(endpoint: Endpoint, token: str, *, only_own: bool = False) -> dict[str, Any]:
    """The coordinator and a summary of each run. Raises the errors of `request`.

    `only_own`: only runs that it has itself, without those of its ledger's other coordinators.
    """
    body = _page_of_runs(endpoint, token, "", only_own)
    pages = 1
    while isinstance(body.get("next"), str):
        if pages >= PAGES_MAX:
            raise _not_ours(endpoint, "its list of runs has no end")
        more = _page_of_runs(endpoint, token, f"?after={api_paths.quoted(body['next'])}", only_own)
        problem = body.get("problem") or more.get("problem")
        body = {**more, "runs": [*body["runs"], *more["runs"]], "problem": problem}
        pages += 1
    return body


def _page_of_runs(endpoint: Endpoint, token: str, query: str, only_own: bool) -> dict[str, Any]:
    body = request(endpoint, token, "GET", f"{api_paths.RUNS}{query}", only_own=only_own)
    if not isinstance(body.get("runs"), list) or not isinstance(body.get("coordinator"), dict):
        raise _not_ours(endpoint, "its answer lists no runs")
    return body


def run(endpoint: Endpoint, token: str, run_id: str, members: int | None = None) -> dict[str, Any]:
    """One run in detail. Raises NoSuchRunError, and the errors of `request`."""
    query = "" if members is None else f"?members={members}"
    return request(endpoint, token, "GET", f"{api_paths.run_path(run_id)}{query}")


def act(
    endpoint: Endpoint, token: str, run_id: str, action: str, body: dict[str, Any]
) -> dict[str, Any]:
    """What an operator does to a run. `action`: the last part of its path.

    Raises NoSuchRunError if there is no such run or node, and the errors of `request`.
    """
    return request(endpoint, token, "POST", api_paths.action_path(run_id, action), body)


def events(endpoint: Endpoint, token: str, path: str) -> dict[str, Any]:
    """A page of the events of a run. Raises NoSuchRunError, and the errors of `request`."""
    body = request(endpoint, token, "GET", path)
    found = body.get("events")
    if not isinstance(found, list) or not all(isinstance(each, dict) for each in found):
        raise _not_ours(endpoint, "its answer lists no events")
    return body


def stream(
    endpoint: Endpoint, token: str, path: str, last_id: str
) -> Iterator[tuple[str, dict[str, Any]]]:
    """The messages of a stream of events: the kind and the body of each.

    It is open when this returns. It ends when the coordinator ends it, or when nothing has come for
    QUIET_S. Raises the errors of `request`, also while it is read.
    """
    headers = _headers(token, only_own=False) | {"Accept": "text/event-stream"}
    if last_id:
        headers["Last-Event-ID"] = last_id
    connection = http.client.HTTPConnection(endpoint.host, endpoint.port, timeout=TIMEOUT_S)
    with _as_ours(endpoint, token):
        try:
            connection.sock = sock = _connected(endpoint, token, time.monotonic() + TIMEOUT_S)
            connection.request("GET", path, headers=headers)
            response = connection.getresponse()
            if response.status != 200:
                _checked(endpoint, response.status, _read(response))
            sock.until_s = math.inf
        except BaseException:
            connection.close()
            raise
    return _messages(endpoint, token, connection, response)


def _messages(
    endpoint: Endpoint,
    token: str,
    connection: http.client.HTTPConnection,
    response: http.client.HTTPResponse,
) -> Iterator[tuple[str, dict[str, Any]]]:
    """Server-sent events (WHATWG HTML, 9.2), as far as a coordinator sends them."""
    kind = ""
    with contextlib.closing(connection), contextlib.closing(response), _as_ours(endpoint, token):
        while line := response.readline(EVENT_BYTES_MAX):
            name, _, value = line.decode(errors="replace").rstrip("\r\n").partition(": ")
            if name == "event":
                kind = value
            elif name == "data":
                body = _object(value)
                if body is None:
                    raise _not_ours(endpoint, "its events are not JSON")
                yield kind, body


def request(
    endpoint: Endpoint,
    token: str,
    method: str,
    path: str,
    body: Any = None,
    *,
    only_own: bool = False,
) -> dict[str, Any]:
    """Send a request, and return the JSON of the coordinator's answer.

    Raises:
        UnreachableError: nobody answers there, within TIMEOUT_S.
        NotACoordinatorError: another program answers.
        UsageError: the token would be sent to another machine in clear.
        UntrustedCoordinatorError: the server cannot prove that it is the token's coordinator.
        TokenError: the coordinator requires another token.
        NoSuchRunError: the coordinator has no such run or node.
    """
    with _as_ours(endpoint, token):
        status, answer = _exchange(endpoint, token, method, path, body, only_own)
    return _checked(endpoint, status, answer)


@contextlib.contextmanager
def _as_ours(endpoint: Endpoint, token: str) -> Iterator[None]:
    """Raise errors of the connection as those of `request`."""
    try:
        yield
    except TimeoutError as error:
        raise _unreachable(endpoint, f"no answer within {TIMEOUT_S:g} s", error) from error
    except first_look.OtherAuthorityError as error:
        raise untrusted.other_authority(
            _where(endpoint), token_form.ca_of(token), error.shown
        ) from None
    except ssl.SSLError as error:
        raise _untrusted(endpoint, token, error) from error
    except CertificateFileError as error:
        raise UsageError(str(error), hint=untrusted.FILES_HINT) from None
    except (ConnectionResetError, BrokenPipeError) as error:
        # Also if it closes without an answer (RemoteDisconnected), which a coordinator never does,
        # unless it does not accept this side's certificate, or has TLS, and was asked in clear.
        own = settings.certificates_of_command(endpoint, token)
        if own is not None:
            raise _ended_by_pki(endpoint, own, untrusted.closed_by_pki(own)) from error
        if not token_form.names_ca(token) and _authority_at(endpoint) is not None:
            raise untrusted.needs_token(_where(endpoint)) from None
        raise _not_ours(endpoint, "it closed the connection without an answer") from error
    except OSError as error:
        raise _unreachable(endpoint, error.strerror or str(error), error) from error
    except http.client.HTTPException as error:
        raise _not_ours(endpoint, "its answer is not HTTP") from error


def _headers(token: str, *, only_own: bool) -> dict[str, str]:
    headers = {CLIENT: "command"} | ({ONLY_OWN: "1"} if only_own else {})
    return headers | ({"Authorization": f"Bearer {token_form.credential(token)}"} if token else {})


def _untrusted(endpoint: Endpoint, token: str, error: ssl.SSLError) -> Exception:
    """The error for a handshake that failed."""
    where, ca = _where(endpoint), token_form.ca_of(token)
    own = settings.certificates_of_command(endpoint, token)
    if own is not None:
        return _untrusted_by_pki(endpoint, own, error)
    if (
        isinstance(error, ssl.SSLCertVerificationError)
        and error.verify_code in untrusted.OTHER_AUTHORITY
    ):
        return untrusted.other_authority(where, ca, _authority_at(endpoint) or "")
    failed = untrusted.failed_handshake(where, ca, error)
    return _not_ours(endpoint, str(failed)) if isinstance(failed, OSError) else failed


def _untrusted_by_pki(endpoint: Endpoint, own: Certificates, error: ssl.SSLError) -> Exception:
    where = _where(endpoint)
    if isinstance(error, ssl.SSLCertVerificationError):
        shown: tuple[bytes, ...] = ()
        with contextlib.suppress(OSError):
            reached = socket.create_connection((endpoint.host, endpoint.port), TIMEOUT_S)
            shown = first_look.shown_blocking(reached, endpoint.host)
        return untrusted.by_pki(where, endpoint.host, own, error, shown)
    return _ended_by_pki(endpoint, own, untrusted.refused_by_pki(where, own, error))


def _ended_by_pki(endpoint: Endpoint, own: Certificates, failed: Exception) -> Exception:
    """The error for a connection that the server has closed, or that `failed` otherwise."""
    if not isinstance(failed, OSError):
        return failed
    if own.cert is None:
        return _not_ours(endpoint, str(failed))
    return UnreachableError(
        f"the server at {_where(endpoint)} {failed}",
        hint=untrusted.NEW_CERTIFICATE,
        attempts=((_where(endpoint), str(failed)),),
    )


def _authority_at(endpoint: Endpoint) -> str | None:
    """The authority of the certificates that the server shows; None if it speaks no TLS."""
    try:
        where = (endpoint.host, endpoint.port)
        return first_look.authority_blocking(socket.create_connection(where, TIMEOUT_S))
    except OSError:
        return None


def _exchange(
    endpoint: Endpoint, token: str, method: str, path: str, body: Any, only_own: bool
) -> tuple[int, bytes]:
    until_s = time.monotonic() + TIMEOUT_S
    connection = http.client.HTTPConnection(endpoint.host, endpoint.port, timeout=TIMEOUT_S)
    headers = _headers(token, only_own=only_own)
    payload = None if body is None else json.dumps(body).encode()
    if payload is not None:
        headers["Content-Type"] = "application/json"
    try:
        connection.sock = _connected(endpoint, token, until_s)
        connection.request(method, path, body=payload, headers=headers)
        response = connection.getresponse()
        return response.status, _read(response)
    finally:
        connection.close()


def _connected(endpoint: Endpoint, token: str, until_s: float) -> _Socket | _TlsSocket:
    """A connection, by TLS if the token names an authority. See `_Socket`."""
    own = settings.certificates_of_command(endpoint, token)
    if own is None:
        check_may_be_sent(token, endpoint.host)

    def connect() -> socket.socket:
        return socket.create_connection((endpoint.host, endpoint.port), TIMEOUT_S)

    if own is not None:
        secured = pki.secured(own, endpoint.host, connect, _TlsSocket)
        secured.until_s = until_s
        return secured
    parts = token_form.parse(token)
    if parts is None:
        return _Socket(connect(), until_s)
    found = first_look.secured(parts, connect, _TlsSocket)
    found.until_s = until_s
    return found


class _Socket(socket.socket):
    """A connected socket with one deadline, in `time.monotonic()`, for all reads together.

    http.client limits only each single read, and a line of the headers may take thousands of reads.
    Without a deadline (math.inf) each read has QUIET_S.
    """

    def __init__(self, connected: socket.socket, until_s: float) -> None:
        super().__init__(fileno=connected.detach())
        self.until_s = until_s

    def recv_into(self, *arguments: Any) -> int:
        left_s = self.until_s - time.monotonic()
        if left_s <= 0:
            raise TimeoutError
        self.settimeout(min(left_s, QUIET_S))
        return super().recv_into(*arguments)


class _TlsSocket(ssl.SSLSocket):
    """As `_Socket`, by TLS."""

    until_s: float
    """Set once it is connected."""

    def recv_into(self, *arguments: Any) -> int:
        left_s = self.until_s - time.monotonic()
        if left_s <= 0:
            raise TimeoutError
        self.settimeout(min(left_s, QUIET_S))
        return super().recv_into(*arguments)


def _read(response: http.client.HTTPResponse) -> bytes:
    """The body, of at most ANSWER_BYTES_MAX."""
    chunks: list[bytes] = []
    size = 0
    while chunk := response.read1(65_536):
        chunks.append(chunk)
        size += len(chunk)
        if size > ANSWER_BYTES_MAX:
            raise http.client.HTTPException("the answer is too long")
    return b"".join(chunks)


def _checked(endpoint: Endpoint, status: int, answer: bytes) -> dict[str, Any]:
    body = _object(answer)
    if body is None:
        raise _not_ours(endpoint, f"it answers with status {status} and no JSON")
    if status == 200:
        return body
    if not isinstance(body.get("error"), str):
        raise _not_ours(endpoint, f"it answers with status {status}")
    hint = str(body.get("hint") or "")
    reason = str(body.get("reason") or "")
    is_wrong = status == 401 or (status == 429 and reason != claims.UNCHECKED.reason)
    if is_wrong or (status == 403 and reason):
        told = (str(body.get("fingerprint") or ""), str(body.get("origin") or ""), reason)
        raise token_error(body["error"], hint, *told)
    raise _refused(status, body["error"], hint)


def _object(data: bytes | str) -> dict[str, Any] | None:
    """The object in this JSON; None if there is none.

    Unlike `json`, msgspec refuses numbers and characters that cannot be written again: infinity,
    and halves of surrogate pairs.
    """
    try:
        found = msgspec.json.decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None
    return found if isinstance(found, dict) else None


def _refused(status: int, message: str, hint: str) -> UsageError | CoordinatorError:
    if status == 404:
        return NoSuchRunError(message, hint=hint)
    if status == 409:
        return UsageError(message, hint=hint)
    return CoordinatorError(f"the coordinator answered: {message}", hint=hint)


def _not_ours(endpoint: Endpoint, why: str) -> NotACoordinatorError:
    return not_a_coordinator(_where(endpoint), why)


def _unreachable(endpoint: Endpoint, problem: str, error: OSError) -> UnreachableError:
    where = _where(endpoint)
    if isinstance(error, socket.gaierror):
        message = f"cannot resolve host {endpoint.host!r}: {problem}"
        hint = "check the name, or give an address"
    elif error.errno == errno.ECONNREFUSED:
        message = f"nothing listens at {where}: {problem}"
        hint = "start `rallypoint serve` there, or check --endpoint"
        if endpoint.kind is EndpointKind.HOST:
            # Usually it was a coordinator inside a node, which has ended.
            hint = (
                "a coordinator inside a node ends with its run; `rallypoint serve` stays; "
                "or check --endpoint"
            )
    else:
        message = f"cannot reach {where}: {problem}"
        hint = "check --endpoint, the network and the firewalls between"
    return UnreachableError(message, hint=hint, attempts=((where, problem),))


def _where(endpoint: Endpoint) -> str:
    return str(Address(endpoint.host, endpoint.port))
