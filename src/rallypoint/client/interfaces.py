"""The addresses of this machine, and the source address of a packet to some host.

It asks the system, and sends nothing. `core/addresses.py` chooses among the addresses.
"""

from __future__ import annotations

import ctypes
import ipaddress
import socket
import struct
from typing import Any, Final

from rallypoint.core.addresses import Interface

NOWHERE: Final = ("192.0.2.1", "2001:db8::1")
"""Addresses for documentation (RFC 5737, RFC 3849): packets to them would take the default route.
"""
_IS_UP: Final = 0x1
_IS_INNER: Final = 0x8
"""IFF_UP and IFF_LOOPBACK, the same on Linux, BSD and macOS."""


def source_towards(host: str, scope: int = 0) -> str | None:
    """The source address of a packet to this address; None if there is no route."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    where: tuple[Any, ...] = (host, 9, 0, scope) if family == socket.AF_INET6 else (host, 9)
    try:
        with socket.socket(family, socket.SOCK_DGRAM) as sock:
            sock.connect(where)
            return str(sock.getsockname()[0]).partition("%")[0]
    except OSError:
        return None


class _IfAddrs(ctypes.Structure):
    """struct ifaddrs of getifaddrs(3), the fields that are the same on all systems."""


_IfAddrs._fields_ = [
    ("next", ctypes.POINTER(_IfAddrs)),
    ("name", ctypes.c_char_p),
    ("flags", ctypes.c_uint),
    ("address", ctypes.c_void_p),
]


def interfaces() -> list[Interface]:
    """Each address of each interface, in the system's order; empty if the system has no list."""
    try:
        libc = ctypes.CDLL(None, use_errno=True)
        first = ctypes.POINTER(_IfAddrs)()
        if libc.getifaddrs(ctypes.byref(first)):
            return []
    except (OSError, AttributeError):
        return []
    try:
        found = []
        each: Any = first  # a null pointer is false
        while each:
            entry = each.contents
            address = _address(entry.address)
            if address is not None:
                name = entry.name.decode(errors="replace")
                is_up, is_inner = bool(entry.flags & _IS_UP), bool(entry.flags & _IS_INNER)
                found.append(Interface(name, address, is_up, is_inner))
            each = entry.next
        return found
    finally:
        libc.freeifaddrs(first)


def _address(at: int | None) -> str | None:
    """The address in a struct sockaddr; None if it is of another family."""
    if not at:
        return None
    head = ctypes.string_at(at, 2)
    # Linux has two bytes of family, BSD and macOS one byte of length and one of family.
    families = (struct.unpack("=H", head)[0], head[1])
    if socket.AF_INET in families:
        return str(ipaddress.IPv4Address(ctypes.string_at(at + 4, 4)))
    if socket.AF_INET6 in families:
        packed = ctypes.string_at(at + 8, 16)
        if packed[:2] == b"\xfe\x80":  # macOS stores the interface's number inside the address
            packed = packed[:2] + b"\0\0" + packed[4:]
        return str(ipaddress.IPv6Address(packed))
    return None
