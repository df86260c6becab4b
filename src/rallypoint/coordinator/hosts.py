"""Checks the Host header of requests, for a coordinator without a token.

A web page can point its own name to the address of this machine (DNS rebinding). The browser then
sends the page's requests here, and lets the page read the answers. But the Host header still has
the page's name. So a coordinator without a token answers only if the Host header is an address or
one of its own names.
"""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import re
import socket
from collections.abc import Iterable
from typing import Final

from rallypoint import runtime

LOOKUP_TIMEOUT_S: Final = 2.0
"""How many seconds a request with an unknown name waits for the lookup of this machine's name.
"""
_LOCAL_NAMES: Final = ("localhost", "localhost.localdomain", "ip6-localhost", "ip6-loopback")
_PORT: Final = re.compile(r":[0-9]{0,5}$")
_IPV4: Final = re.compile(r"(0x[0-9a-f]+|[0-9]+)(\.(0x[0-9a-f]+|[0-9]+)){0,3}")


class KnownHosts:
    """The names to which a coordinator answers. Uses the running event loop."""

    def __init__(self, given: Iterable[str] = ()) -> None:
        """`given`: names that nodes use, such as an endpoint's host."""
        self._names = {*_LOCAL_NAMES, *_with_first_label(socket.gethostname())}
        self._names |= {_plain(each) for each in given}
        self._lookup: asyncio.Future[str] | None = None

    def add(self, host: str) -> None:
        """Add a name."""
        self._names.add(_plain(host))

    def knows_at_once(self, header: str) -> bool:
        """Whether a Host header is an address or a known name. Makes no lookup."""
        host = host_of(header)
        return host in self._names or is_address(host)

    async def knows(self, header: str) -> bool:
        """Whether a Host header names this coordinator. Looks up the machine's full name once."""
        if self.knows_at_once(header):
            return True
        host = host_of(header)
        if self._lookup is None:
            self._lookup = runtime.in_thread(_full_name)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(LOOKUP_TIMEOUT_S):
                self._names.update(_with_first_label(await asyncio.shield(self._lookup)))
        return host in self._names


def host_of(header: str) -> str:
    """The host in a Host header, without port, brackets and the dot of a full name."""
    return _plain(_PORT.sub("", header.strip()))


def _plain(host: str) -> str:
    return host.removeprefix("[").removesuffix("]").removesuffix(".").lower()


def is_address(host: str) -> bool:
    """Whether this is an address, including the short forms of browsers and inet_aton: 127.1."""
    if _IPV4.fullmatch(host) is not None:
        return True
    with contextlib.suppress(ValueError):
        ipaddress.IPv6Address(host)
        return True
    return False


def _with_first_label(name: str) -> tuple[str, ...]:
    plain = _plain(name)
    return (plain, plain.partition(".")[0]) if plain and not is_address(plain) else ()


def _full_name() -> str:
    try:
        return socket.getfqdn()
    except (OSError, UnicodeError):
        return ""
