"""Gives this process its own network and host names, so that figures depend on nothing outside.

Its network namespace has only loopback, whose counters show exactly what was measured. In its mount
namespace, host names come only from the hosts file. Otherwise torch's TCPStore looks up names for
addresses, and waits 5 s and more where no name server answers. It needs root on Linux, and
`unshare` and `mount` (Debian: util-linux, mount).
"""

from __future__ import annotations

import fcntl
import os
import socket
import struct
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Final

_MARK: Final = "BENCHMARK_PRIVATE"
_UNSHARE: Final = ("unshare", "--mount", "--net")
_NAMES: Final = Path("/etc/nsswitch.conf")
_SIOCSIFFLAGS: Final = 0x8914
_IFF_UP_AND_RUNNING: Final = 0x1 | 0x40


def enter() -> str | None:
    """Start this program again in its own network. Returns None there, or why it cannot.

    Must be called before anything else is started.
    """
    if os.environ.pop(_MARK, "") == "1":
        _bring_up_loopback()
        _answer_names_from_the_hosts_file()
        return None
    why_not = _why_not()
    if why_not is None:
        os.environ[_MARK] = "1"
        os.execvp(_UNSHARE[0], [*_UNSHARE, sys.executable, *sys.argv])
    return why_not


def _why_not() -> str | None:
    if not sys.platform.startswith("linux"):
        return "this is not Linux"
    if os.geteuid() != 0:
        return "it takes root"
    try:
        tried = subprocess.run([*_UNSHARE, "true"], capture_output=True, text=True, check=False)
    except FileNotFoundError:
        return "there is no `unshare`"
    return tried.stderr.strip() or "`unshare` failed" if tried.returncode else None


def _bring_up_loopback() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        request = struct.pack("16sh22x", b"lo", _IFF_UP_AND_RUNNING)
        fcntl.ioctl(sock, _SIOCSIFFLAGS, request)


def _answer_names_from_the_hosts_file() -> None:
    """`unshare` made the mounts private, so no other process sees this one."""
    lines = _NAMES.read_text(encoding="utf-8").splitlines() if _NAMES.exists() else []
    kept = [line for line in lines if not line.startswith("hosts:")]
    with tempfile.NamedTemporaryFile("w", encoding="utf-8") as file:
        file.write("\n".join([*kept, "hosts: files", ""]))
        file.flush()
        subprocess.run(["mount", "--bind", file.name, str(_NAMES)], check=True)


def loopback() -> tuple[int, int]:
    """Bytes and packets that have passed loopback so far, with TCP/IP headers and ACKs."""
    for line in Path("/proc/self/net/dev").read_text(encoding="ascii").splitlines():
        name, _, counts = line.partition(":")
        if name.strip() == "lo":
            received = counts.split()
            return int(received[0]), int(received[1])
    raise RuntimeError("this network has no loopback")
