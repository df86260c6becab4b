"""A rendezvous backend that keeps its state in a store of torch's, with torch's names.

    torch.rendezvous.<run_id>      the state in base64, as torch's module writes it

A token is the value of the key, as bytes. The state is read by `compare_set` and never by `get`,
which waits for an absent key, so that torch's module has to write a placeholder for it.

A call to a store on a frozen host never returns, with any timeout of the store. So each call, and
each connect, has its own thread, which is left behind when the time is over.
"""

from __future__ import annotations

import binascii
import ipaddress
import logging
import os
import socket
import tempfile
import time
from base64 import b64decode, b64encode
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any, Final, NoReturn

from rallypoint.client.dialing import Pauses
from rallypoint.core import addresses
from rallypoint.core.values import Address
from rallypoint.net import (
    SocketAddress,
    describe_os_error,
    is_own_name,
    is_this_host,
    numeric,
    resolve,
)
from rallypoint.rendezvous import _torch_bridge
from rallypoint.rendezvous.api import (
    RendezvousConnectionError,
    RendezvousError,
    RendezvousParameters,
    RendezvousStateError,
)
from rallypoint.rendezvous.dynamic_rendezvous import RendezvousBackend, Token
from rallypoint.rendezvous.utils import parse_rendezvous_endpoint
from rallypoint.threads import OneAtATime, within

__all__ = ["DEFAULT_PORT", "C10dRendezvousBackend", "create_backend"]

_log = logging.getLogger("rallypoint.rendezvous")

DEFAULT_PORT: Final = 29400
DEFAULT_READ_TIMEOUT_S: Final = 60
KNOCK_S: Final = 5.0
"""How many seconds one address may take to accept a connection."""
LEAST_S: Final = 0.5
"""The least time of each step, in seconds, so that it can end with its own error."""
_NOTHING: Final = "(nothing)"
"""Returned for an absent key. It is no base64, so it is never a state."""
_LOOPBACK: Final = "127.0.0.1"
_BROADCAST: Final = ipaddress.IPv4Address("255.255.255.255")


class C10dRendezvousBackend(RendezvousBackend):
    """A state in a torch store, with compare-and-swap. Any thread may call.

    A TCPStore is used over a connection of the backend's own, which the first call opens. One
    connection has one call at a time, so a `get` that waits would delay the coordinator.

    No call takes longer than the store's own timeout, even if the store's host is frozen. The
    constructor does not use the store.

    Args:
        store: a torch.distributed.Store, such as TCPStore, FileStore and HashStore.
        run_id: names the state; the same on all nodes.

    Raises:
        ValueError: the run id is empty.
    """

    def __init__(self, store: Any, run_id: str) -> None:
        if not run_id:
            raise ValueError("The run id must be a non-empty string.")
        self._store = store
        self._own: Any = None
        self._key = f"torch.rendezvous.{run_id}"
        self._calls = OneAtATime()

    @property
    def name(self) -> str:
        """See RendezvousBackend.name."""
        return "c10d"

    @property
    def server_host(self) -> str | None:
        """The TCPStore's host; None for another store."""
        host = getattr(self._store, "host", None)
        return host if isinstance(host, str) and host else None

    def get_state(self) -> tuple[bytes, Token] | None:
        """See RendezvousBackend.get_state."""
        # For an absent key this returns the expected value, and changes nothing.
        held = self._compare_set(_NOTHING, _NOTHING)
        return None if held == _NOTHING.encode() else (_decoded(held), held)

    def set_state(
        self, state: bytes, token: Token | None = None
    ) -> tuple[bytes, Token, bool] | None:
        """See RendezvousBackend.set_state. The same bytes count as set by this call."""
        expected = "" if not token else _text(token)
        if expected is None:
            found = self.get_state()
            return None if found is None else (*found, False)
        wanted = b64encode(state)
        held = self._compare_set(expected, wanted.decode())
        if expected and held == expected.encode():
            # Either the key is absent, or it has had the same bytes before.
            found = self.get_state()
            return None if found is None else (*found, found[1] == wanted)
        return _decoded(held), held, held == wanted

    def _compare_set(self, expected: str, desired: str) -> bytes:
        held = self._call(lambda: self._own_store().compare_set(self._key, expected, desired))
        return held.encode() if isinstance(held, str) else bytes(held)

    def _own_store(self) -> Any:
        """The store, over a connection of the backend's own if it is a TCPStore."""
        store = self._store
        if self._own is None and _torch_bridge.is_tcp_store(store):
            self._own = _torch_bridge.tcp_store(
                store.host, store.port, is_server=False, timeout_s=self._limit_s()
            )
        return store if self._own is None else self._own

    def _limit_s(self) -> float:
        timeout = getattr(self._store, "timeout", None)
        if isinstance(timeout, timedelta) and timeout > timedelta(0):
            return timeout.total_seconds()
        return float(DEFAULT_READ_TIMEOUT_S)

    def _call(self, work: Callable[[], Any]) -> Any:
        try:
            return self._calls.within(self._limit_s(), work)
        except (ValueError, RuntimeError, OSError) as error:
            _cannot_connect(
                f"The {type(self._store).__name__} that holds {self._key!r} has failed: "
                f"{_first_line(error)}",
                error,
            )


def _text(token: Token) -> str | None:
    """A token as the store compares it; None if it cannot be one."""
    try:
        return token.decode() if isinstance(token, bytes) else None
    except UnicodeDecodeError:
        return None


def _decoded(held: bytes) -> bytes:
    try:
        return b64decode(held, validate=True)
    except binascii.Error as error:
        raise _torch_bridge.error_of(
            RendezvousStateError,
            "The state object is corrupt. See inner exception for details.",
            f"The store's value is damaged, or another program's: it is not base64 ({error}).",
        ) from error


def _cannot_connect(detail: str, cause: BaseException | None = None) -> NoReturn:
    text = "The connection to the C10d store has failed. See inner exception for details."
    error = _torch_bridge.error_of(RendezvousConnectionError, text, detail)
    raise error from cause or ConnectionError(detail)


def _first_line(error: BaseException) -> str:
    """The first line of an error: torch's errors have the C++ stack after it."""
    return str(error).strip().partition("\n")[0] or type(error).__name__


# ---- from parameters -----------------------------------------------------------------------------


def create_backend(params: RendezvousParameters) -> tuple[C10dRendezvousBackend, Any]:
    """A backend and its store, from parameters. torch's RendezvousParameters works as well.

    Options:

    * `store_type`: "tcp" (the default), with `host:port` as the endpoint, or "file", with a path.
      Without a path it is a new temporary file, for handlers on one machine that get the store.
    * `read_timeout`: within how many seconds the store must answer; 60 by default.
    * `is_host`: whether this process serves the TCPStore. By default the endpoint decides, even on
      a machine that cannot resolve its own name. A second process on that machine connects to the
      first. An address of no machine, such as 0.0.0.0, is not this machine's.

    Raises:
        RendezvousConnectionError: the store cannot be reached or served within `read_timeout`. The
            text has the addresses that were tried, with the system's answers.
        ValueError: an option or the endpoint is wrong. The text names it.
        RuntimeError: torch is not installed.
        RendezvousError: a temporary file cannot be made.
    """
    _torch_bridge.require("the rendezvous backend 'c10d'")
    kind = str(params.get("store_type", "tcp")).strip().lower()
    if kind not in ("tcp", "file"):
        raise ValueError("Invalid store type given. Currently only supports file and tcp.")
    limit_s = params.get_as_int("read_timeout", DEFAULT_READ_TIMEOUT_S)
    limit_s = DEFAULT_READ_TIMEOUT_S if limit_s is None else limit_s
    if limit_s <= 0:
        raise ValueError("The read timeout must be a positive integer.")
    store = _file_store(params, limit_s) if kind == "file" else _tcp_store(params, limit_s)
    return C10dRendezvousBackend(store, params.run_id), store


def _file_store(params: RendezvousParameters, limit_s: float) -> Any:
    path = params.endpoint or _temporary_file()
    try:
        # Checked here, because torch tries for five minutes to open a file, and holds the GIL
        # meanwhile.
        within(limit_s, lambda: Path(path).open("ab").close())
        return _torch_bridge.file_store(path)
    except (ValueError, RuntimeError, OSError) as error:
        _cannot_connect(f"The file store at {path!r} cannot be used: {_first_line(error)}", error)


def _temporary_file() -> str:
    try:
        opened, path = tempfile.mkstemp(prefix="rallypoint-")
    except OSError as error:
        raise _torch_bridge.error_of(
            RendezvousError,
            "The file creation for C10d store has failed. See inner exception for details.",
            f"No temporary file could be made for the store: {error}",
        ) from error
    os.close(opened)
    return path


# -- over TCP --------------------------------------------------------------------------------------


def _tcp_store(params: RendezvousParameters, limit_s: float) -> Any:
    host, port = parse_rendezvous_endpoint(params.endpoint, DEFAULT_PORT)
    ends_s = time.monotonic() + limit_s
    told = params.get_as_bool("is_host")
    is_host = _is_here(host, limit_s) if told is None else told
    not_served = ""
    if is_host:
        try:
            return _served(_name_for(host, ends_s), port, limit_s, ends_s)
        except (ValueError, RuntimeError, OSError) as error:
            not_served = f"it cannot be served here: {_first_line(error)}"
            if told:
                _cannot_connect(f"No TCPStore at {Address(host, port)}: {not_served}", error)
    return _reached(host, port, limit_s, ends_s, not_served)


def _served(host: str, port: int, limit_s: float, ends_s: float) -> Any:
    """A TCPStore with its server, which the handlers of one process share, as in torch."""
    store = within(
        _left_s(ends_s),
        lambda: _torch_bridge.tcp_store(
            host, port, is_server=True, timeout_s=limit_s, multi_tenant=True
        ),
    )
    _log.info("this process serves the TCPStore at %s", Address(host, port))
    return store


def _reached(host: str, port: int, limit_s: float, ends_s: float, not_served: str) -> Any:
    """A TCPStore on another server, made when a program listens there."""
    # torch makes long pauses between its tries, and prints its stack for each failed one.
    answers = _knock(host, port, ends_s)
    if not answers:
        host = _name_for(host, ends_s)
        try:
            return within(
                _left_s(ends_s),
                lambda: _torch_bridge.tcp_store(host, port, is_server=False, timeout_s=limit_s),
            )
        except (ValueError, RuntimeError, OSError) as error:
            answers = [f"connections are accepted, but no TCPStore answers: {_first_line(error)}"]
    if not_served:
        answers.append(not_served)
    _cannot_connect(
        f"No TCPStore could be reached at {Address(host, port)} within {limit_s:g} s "
        f"({'; '.join(answers)}). Is the node with that address up, and does a firewall let this "
        "one through?"
    )


def _knock(host: str, port: int, ends_s: float) -> list[str]:
    """Wait until an address of the host accepts a connection.

    Returns no answers then, and otherwise the answer of each.
    """
    pauses = Pauses()
    while True:
        answers = _knock_once(host, port, ends_s)
        pause_s = pauses.next_s()
        left_s = ends_s - time.monotonic()
        if not answers or left_s <= 0:
            return answers
        if left_s <= pause_s:  # too late for another answer; the last ones have the reason
            time.sleep(left_s)
            return answers
        time.sleep(pause_s)


def _knock_once(host: str, port: int, ends_s: float) -> list[str]:
    try:
        found = _addresses(host, port, ends_s)
    except (OSError, UnicodeError) as error:
        if not is_own_name(host):
            return [f"{host}: the name could not be resolved: {describe_os_error(error)}"]
        found = [SocketAddress(socket.AF_INET, (_LOOPBACK, port))]
    answers: list[str] = []
    for address in found:
        limit_s = min(KNOCK_S, _left_s(ends_s))
        try:
            with socket.socket(address.family, socket.SOCK_STREAM) as sock:
                sock.settimeout(limit_s)
                sock.connect(address.sockaddr)
            return []
        except TimeoutError:
            why = f"no answer within {limit_s:.3g} s"
        except OSError as error:
            why = describe_os_error(error)
        answers.append(f"{Address(address.host, port)}: {why}")
    return answers


def _addresses(host: str, port: int, ends_s: float) -> list[SocketAddress]:
    """The addresses of a name. Raises OSError, including TimeoutError, or UnicodeError."""
    return within(_left_s(ends_s), lambda: resolve(host, port))


def _left_s(ends_s: float) -> float:
    return max(LEAST_S, ends_s - time.monotonic())


def _is_here(host: str, limit_s: float) -> bool:
    """Whether the endpoint is this machine; False if that cannot be determined in time.

    Every machine can bind 0.0.0.0 and a multicast address. Each would serve its own store, and no
    node would find another. So these addresses need `is_host`, as in torch.
    """
    if _names_no_machine(host):
        return False
    try:
        return within(min(KNOCK_S, limit_s), lambda: is_this_host(host))
    except TimeoutError:
        return False


def _names_no_machine(host: str) -> bool:
    """Whether this is an address, in any spelling, of no machine: 0.0.0.0, 0, ::, 224.0.0.1."""
    found = numeric(host)
    address = addresses.literal(found) if found is not None else None
    if address is None:
        return False  # a name
    return address.is_unspecified or address.is_multicast or address == _BROADCAST


def _name_for(host: str, ends_s: float) -> str:
    """The host's name for torch: loopback on a machine that cannot resolve its own name."""
    if not is_own_name(host):
        return host
    try:
        _addresses(host, 0, min(ends_s, time.monotonic() + KNOCK_S))
    except (OSError, UnicodeError):
        return _LOOPBACK
    return host
