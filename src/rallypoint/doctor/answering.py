"""Who answers at an address: a coordinator, or what else. Each call blocks, and ends in time.

It asks as a command does, without a token, then in the other ways that programs of this field
understand: torch's TCPStore, etcd and TLS. A stranger gets no more than a question.
"""

from __future__ import annotations

import contextlib
import errno
import http.client
import json
import re
import socket
import ssl
import time
from email.utils import parsedate_to_datetime
from typing import Any, Final

import msgspec

from rallypoint.core.printable import escaped, shortened
from rallypoint.core.values import Address
from rallypoint.net import SocketAddress, describe_os_error, resolve
from rallypoint.rendezvous._store_probe import StoreKind, kind_at
from rallypoint.security import first_look, pki, token_form
from rallypoint.security.access import NO_ACCESS, Access
from rallypoint.wire import api_paths
from rallypoint.wire.headers import CLIENT, ONLY_OWN
from rallypoint.wire.messages import ATTACH_PATH

CONNECT_S: Final = 3.0
"""How long an address may take to accept a connection, in seconds."""
ANSWER_S: Final = 3.0
"""How long a program may take to answer a question, in seconds."""
_STORE_S: Final = 1.0
_BODY_BYTES_MAX: Final = 1 << 20
_SHOWN_MAX: Final = 60
_FINGERPRINT: Final = re.compile(r"[0-9a-f]{12}")


class Kind:
    """What is at an address. docs/doctor.md lists them."""

    COORDINATOR: Final = "coordinator"
    REFUSED: Final = "refused"
    SILENT: Final = "silent"
    UNREACHABLE: Final = "unreachable"
    MUTE: Final = "mute"
    TLS: Final = "tls"
    TCP_STORE: Final = "tcpstore"
    STATIC_STORE: Final = "static-store"
    ETCD: Final = "etcd"
    HTTP: Final = "http"
    OTHER: Final = "other"


REFUSED: Final = (401, 429)
"""The answers of a coordinator that does not accept a token."""


class Answer(msgspec.Struct, frozen=True, kw_only=True):
    """What an address has answered.

    `where`: as the endpoint names it; `at`: the address that was dialled. `software`: what it calls
    itself; "" if unknown. `status`: of HTTP. `is_locked`: it asks for a token, of which
    `fingerprint` and `origin` are known. `is_accepted`: it has accepted this node's. `reason`: why
    it has not, if it knows that token. `authority`: of its certificates, as in tokens, if it uses
    TLS. `date_s`: its clock when it answered, in whole seconds of Unix time, and `asked_s` and
    `heard_s`: this machine's clock before and after.
    `took_s`: to connect.
    """

    where: Address
    at: str
    kind: str
    detail: str = ""
    software: str = ""
    status: int = 0
    is_locked: bool = False
    is_accepted: bool = False
    fingerprint: str = ""
    authority: str = ""
    origin: str = ""
    message: str = ""
    hint: str = ""
    reason: str = ""
    date_s: float | None = None
    asked_s: float = 0.0
    heard_s: float = 0.0
    took_s: float = 0.0

    @property
    def is_coordinator(self) -> bool:
        """Whether a coordinator of Rallypoint answers there."""
        return self.kind == Kind.COORDINATOR


def who_answers(where: Address, access: Access = NO_ACCESS) -> list[Answer]:
    """What each address of a host answers; with a token, a coordinator is asked with that.

    Raises OSError or UnicodeError if the name cannot be resolved.
    """
    return [_at(where, each, access) for each in resolve(where.host, where.port)]


def _at(where: Address, address: SocketAddress, access: Access) -> Answer:
    began_s = time.monotonic()
    try:
        with _connected(address):
            took_s = time.monotonic() - began_s
    except TimeoutError:
        text = f"no answer within {CONNECT_S:g} s: a firewall, another network, or a dead machine"
        return Answer(where=where, at=address.host, kind=Kind.SILENT, detail=text)
    except OSError as error:
        kind = Kind.REFUSED if error.errno == errno.ECONNREFUSED else Kind.UNREACHABLE
        return Answer(where=where, at=address.host, kind=kind, detail=describe_os_error(error))
    answer = _of_http(where, address, access)
    if not answer.is_coordinator:
        answer = _of_stranger(where, address, answer)
    return msgspec.structs.replace(answer, took_s=took_s)


def connected(where: Address, at: str) -> socket.socket:
    """A connection to the address `at` of a host. Raises OSError."""
    found = [each for each in resolve(where.host, where.port) if each.host == at]
    if not found:
        raise OSError(f"{where.host} has not the address {at} any more")
    return _connected(found[0])


def _connected(address: SocketAddress) -> socket.socket:
    sock = socket.socket(address.family, socket.SOCK_STREAM)
    try:
        sock.settimeout(CONNECT_S)
        sock.connect(address.sockaddr)
        sock.settimeout(ANSWER_S)
    except OSError:
        sock.close()
        raise
    return sock


class Reply(msgspec.Struct, frozen=True):
    """An answer of HTTP. `date`: its Date header."""

    status: int
    server: str
    date: str
    body: bytes


def ask(address: SocketAddress, where: Address, path: str, access: Access = NO_ACCESS) -> Reply:
    """GET a path at an address. Raises OSError, or HTTPException if the answer is not HTTP."""
    token = access.token
    connection = http.client.HTTPConnection(where.host, where.port, timeout=ANSWER_S)
    headers = {CLIENT: "command", ONLY_OWN: "1", "Connection": "close"}
    if token:
        headers["Authorization"] = f"Bearer {token_form.credential(token)}"
    parts = token_form.parse(token)
    with contextlib.closing(connection):
        if access.own is not None:
            own, name = access.own, where.host
            connection.sock = pki.secured(own, name, lambda: _connected(address), ssl.SSLSocket)
        elif parts is None:
            connection.sock = _connected(address)
        else:
            connection.sock = first_look.secured(parts, lambda: _connected(address), ssl.SSLSocket)
        connection.request("GET", path, headers=headers)
        found = connection.getresponse()
        server, date = found.headers.get("Server", ""), found.headers.get("Date", "")
        return Reply(found.status, server, date, found.read1(_BODY_BYTES_MAX))


def _of_http(where: Address, address: SocketAddress, access: Access) -> Answer:
    answer = Answer(where=where, at=address.host, kind=Kind.OTHER)
    try:
        asked_s = time.time()
        # At the nodes' path, a coordinator expects a first question without a token.
        reply = ask(address, where, ATTACH_PATH) if access == NO_ACCESS else None
        if reply is None or reply.status not in REFUSED:
            asked_s = time.time()
            reply = ask(address, where, f"{api_paths.RUNS}?limit=1", access)
    except TimeoutError:
        text = f"it accepts connections, and answers nothing within {ANSWER_S:g} s"
        return msgspec.structs.replace(answer, kind=Kind.MUTE, detail=text)
    except ConnectionError:
        text = "it closes the connection without an answer"
        return msgspec.structs.replace(answer, detail=text)
    except (OSError, http.client.HTTPException) as error:
        said = shortened(escaped(str(error)), _SHOWN_MAX)
        return msgspec.structs.replace(answer, detail=f"its answer is not HTTP: {said}")
    answer = msgspec.structs.replace(
        answer,
        kind=Kind.HTTP,
        status=reply.status,
        detail=_named(reply),
        date_s=_seconds(reply.date),
        asked_s=asked_s,
        heard_s=time.time(),
    )
    return _of_coordinator(answer, reply) or answer


def _of_coordinator(answer: Answer, reply: Reply) -> Answer | None:
    """The answer of a coordinator of Rallypoint; None if this is another program."""
    body = _object(reply.body)
    coordinator = body.get("coordinator")
    if reply.status == 200 and isinstance(coordinator, dict):
        software = shortened(escaped(str(coordinator.get("software", ""))), _SHOWN_MAX)
        if software.startswith("rallypoint"):
            kind = Kind.COORDINATOR
            return msgspec.structs.replace(answer, kind=kind, software=software, detail=software)
    if (
        reply.status not in REFUSED
        or "fingerprint" not in body
        or not isinstance(body.get("error"), str)
    ):
        return None
    mark = str(body["fingerprint"])
    return msgspec.structs.replace(
        answer,
        kind=Kind.COORDINATOR,
        detail="a coordinator that needs a token",
        is_locked=True,
        fingerprint=mark if _FINGERPRINT.fullmatch(mark) else "",
        origin=str(body.get("origin") or ""),
        message=str(body["error"]),
        hint=str(body.get("hint") or ""),
        reason=str(body.get("reason") or ""),
    )


def _object(data: bytes) -> dict[str, Any]:
    try:
        found = json.loads(data)
    except (ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def _named(reply: Reply) -> str:
    server = f" ({shortened(escaped(reply.server), _SHOWN_MAX)})" if reply.server else ""
    return f"an HTTP server{server} that answers with status {reply.status}"


def _seconds(date: str) -> float | None:
    try:
        return parsedate_to_datetime(date).timestamp()
    except (TypeError, ValueError):
        return None


# -- strangers -----------------------------------------------------------------------------------


def _of_stranger(where: Address, address: SocketAddress, answer: Answer) -> Answer:
    """A program that is no coordinator, named more exactly where it answers another question."""
    if answer.kind == Kind.HTTP:
        version = etcd_version(address, where)
        if version:
            name = f"etcd {version}"
            return msgspec.structs.replace(answer, kind=Kind.ETCD, software=name, detail=name)
    if answer.kind != Kind.HTTP or answer.status == 400:
        certificate = _tls(address, where.host)
        if certificate is not None:
            text = f"it uses TLS{certificate}, and was asked without"
            authority = _authority(address)
            return msgspec.structs.replace(answer, kind=Kind.TLS, detail=text, authority=authority)
    if answer.kind == Kind.HTTP:
        return answer
    with contextlib.suppress(OSError):
        found = kind_at(address.host, where.port, _STORE_S)
        if found is not StoreKind.UNKNOWN:
            kind = Kind.TCP_STORE if found is StoreKind.TORCH else Kind.STATIC_STORE
            return msgspec.structs.replace(answer, kind=kind, detail=found.value)
    return answer


def etcd_version(address: SocketAddress, where: Address) -> str:
    """The release of the etcd that answers there; "" if it is none."""
    try:
        reply = ask(address, where, "/version")
    except (OSError, http.client.HTTPException):
        return ""
    found = _object(reply.body).get("etcdserver")
    return shortened(escaped(found), _SHOWN_MAX) if isinstance(found, str) else ""


def _authority(address: SocketAddress) -> str:
    """The authority of its certificates, as in tokens; "" if it shows none."""
    try:
        return first_look.authority_blocking(_connected(address))
    except OSError:
        return ""


def _tls(address: SocketAddress, host: str) -> str | None:
    """What is known of TLS at an address, as text; None if it does not speak it.

    The certificate is not checked: this only finds out what listens.
    """
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    try:
        with _connected(address) as plain, context.wrap_socket(plain, server_hostname=host) as sock:
            return f" ({sock.version()})"
    except ssl.SSLError as error:
        # An alert is an answer of TLS, too; a wrong version number is that of another program.
        is_alert = "ALERT" in (error.reason or "")
        return "" if is_alert else None
    except (OSError, ValueError):
        return None
