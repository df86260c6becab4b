"""Hosts on one machine: network namespaces on a bridge, whose cables can be pulled.

Each host has a network of its own, with an address and a loopback; processes that are started
`inside` it have that one only. `part` plugs hosts into another switch: packets to the other hosts
are lost silently, as without power, and no process learns that a connection has ended.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import random
import secrets
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Final

CLONE_NEWNET: Final = 0x40000000
NAMESPACES: Final = Path("/run/netns")
_COMMAND_S: Final = 30.0


class Host:
    """One host. `address` is its own on the switch."""

    def __init__(self, name: str, namespace: str, address: str, port: str) -> None:
        self.name = name
        self.namespace = namespace
        self.address = address
        self.switch_port = port

    def __repr__(self) -> str:
        return f"{self.name} ({self.address})"

    @contextlib.contextmanager
    def inside(self) -> Iterator[None]:
        """What this thread opens or starts meanwhile is on this host."""
        with _descriptor(Path("/proc/thread-self/ns/net")) as own:
            with _descriptor(NAMESPACES / self.namespace) as there:
                _enter(there)
            try:
                yield
            finally:
                _enter(own)

    def add_dead_interface(self, name: str, address: str, *, has_default_route: bool) -> None:
        """A second interface that is up, in a network of its own to which no other host belongs."""
        inside = ("ip", "-n", self.namespace)
        run(*inside, "link", "add", "name", name, "type", "veth", "peer", "name", f"{name}-end")
        run(*inside, "link", "set", f"{name}-end", "up")
        run(*inside, "address", "add", f"{address}/24", "dev", name)
        run(*inside, "link", "set", name, "up")
        if has_default_route:
            run(*inside, "route", "add", "default", "dev", name)

    def drop_incoming(self, *match: str) -> None:
        """A firewall that throws away packets that come from other hosts and match, silently.

        `match`: as nft says it, for example "tcp dport 80".
        """
        self._nft("add table inet wall")
        self._nft("add chain inet wall in { type filter hook input priority 0; }")
        self._nft(f"add rule inet wall in iifname eth0 {' '.join(match)} counter drop")

    def _nft(self, command: str) -> None:
        run("ip", "netns", "exec", self.namespace, "nft", command)


class Network:
    """Hosts on one switch, and another switch for those that are cut off from the rest."""

    def __init__(self) -> None:
        self.hosts: list[Host] = []
        self.id = f"rp{secrets.token_hex(3)}"
        self._subnet = f"10.{random.randrange(64, 128)}.{random.randrange(256)}"
        self._switches = f"{self.id}-switches"
        run("ip", "netns", "add", self._switches)
        for switch in ("one", "other"):
            self._on_switches("link", "add", "name", switch, "type", "bridge")
            self._on_switches("link", "set", switch, "up")

    def host(self, name: str) -> Host:
        """Another host, plugged in."""
        number = len(self.hosts) + 1
        host = Host(name, f"{self.id}-{name}", f"{self._subnet}.{number}", f"port{number}")
        run("ip", "netns", "add", host.namespace)
        self.hosts.append(host)
        cable = ("type", "veth", "peer", "name", "eth0", "netns", host.namespace)
        self._on_switches("link", "add", "name", host.switch_port, *cable)
        self._plug(host, "one")
        self._on_switches("link", "set", host.switch_port, "up")
        inside = ("ip", "-n", host.namespace)
        run(*inside, "address", "add", f"{host.address}/24", "dev", "eth0")
        run(*inside, "link", "set", "lo", "up")
        run(*inside, "link", "set", "eth0", "up")
        return host

    def part(self, *hosts: Host) -> None:
        """Cut these off from the rest. They still reach each other."""
        for host in hosts:
            self._plug(host, "other")

    def heal(self) -> None:
        """Everybody reaches everybody."""
        for host in self.hosts:
            self._plug(host, "one")

    def close(self) -> None:
        """Remove all. What runs inside must have ended."""
        for namespace in [self._switches, *(host.namespace for host in self.hosts)]:
            run("ip", "netns", "delete", namespace)

    def _plug(self, host: Host, switch: str) -> None:
        self._on_switches("link", "set", host.switch_port, "master", switch)

    def _on_switches(self, *command: str) -> None:
        run("ip", "-n", self._switches, *command)


@contextlib.contextmanager
def network() -> Iterator[Network]:
    """A network that is gone at the end."""
    made = Network()
    try:
        yield made
    finally:
        made.close()


def why_not() -> str:
    """Why this user or system can have no network namespaces; "" if it can."""
    if os.geteuid() != 0:
        return "network namespaces need root"
    for program in ("ip", "nft"):
        if shutil.which(program) is None:
            return f"there is no `{program}` here (Debian: iproute2, nftables)"
    name = f"rp{secrets.token_hex(3)}-try"
    try:
        run("ip", "netns", "add", name)
        try:
            run("ip", "-n", name, "link", "add", "name", "switch", "type", "bridge")
            run(
                "ip",
                "-n",
                name,
                "link",
                "add",
                "name",
                "here",
                "type",
                "veth",
                "peer",
                "name",
                "there",
            )
            run("ip", "netns", "exec", name, "nft", "add table inet wall")
        finally:
            run("ip", "netns", "delete", name)
    except CommandError as error:
        return f"no network namespaces here: {error}"
    return ""


class CommandError(Exception):
    """A command of the system failed; the text is what it said."""


def run(*command: str) -> None:
    """Run a command of the system. Raises CommandError."""
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=_COMMAND_S)
    if done.returncode:
        said = (done.stderr or done.stdout).strip()
        raise CommandError(f"`{' '.join(command)}`: {said or done.returncode}")


@contextlib.contextmanager
def _descriptor(path: Path) -> Iterator[int]:
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def _enter(descriptor: int) -> None:
    """os.setns is there from Python 3.12 on only."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.setns(descriptor, CLONE_NEWNET):
        error = ctypes.get_errno()
        raise OSError(error, os.strerror(error))
