"""The network of chaos: hosts on switches, and everything that may happen to their packets.

    one     the switch of all hosts that are well
    other   those that are cut off from the rest; they reach each other
    slow    those behind the slow line (relay.py), a program in user space, so that the kernel need
            not have netem. They reach each other without it
    walls   packets between two hosts are dropped in one direction, or answered by RST (nftables)
    down    a host whose cable is out

Several such faults may be there at once. Each is a `Trouble`; the network is what all of them say.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import msgspec

from tests.failover.netns import Host, Network

RELAY = Path(__file__).parent / "relay.py"


class Trouble(msgspec.Struct, frozen=True, eq=False):
    """One fault of the network. `kind`: cut, deafen, mute, reset, slow, lossy or down."""

    kind: str
    hosts: tuple[str, ...]
    amount: float = 0.0


class Wires(Network):
    """A network with troubles. `add` and `remove` take effect at once."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        self.by_name: dict[str, Host] = {}
        self._seed = seed
        self._troubles: list[Trouble] = []
        self._is_at: dict[str, str] = {}
        self._walled: dict[str, tuple[str, ...]] = {}
        self._relay: subprocess.Popen[bytes] | None = None
        self._on_switches("link", "add", "name", "slow", "type", "bridge")
        self._on_switches("link", "set", "slow", "up")

    def host(self, name: str) -> Host:
        made = self.by_name[name] = super().host(name)
        self._is_at[name] = "one"
        return made

    def add(self, trouble: Trouble) -> None:
        self._troubles.append(trouble)
        self._settle()

    def remove(self, trouble: Trouble) -> None:
        if trouble in self._troubles:
            self._troubles.remove(trouble)
            self._settle()

    def mend(self) -> None:
        """Everybody reaches everybody."""
        self._troubles.clear()
        self._settle()

    def is_down(self, name: str) -> bool:
        return self._is_at[name] == "down"

    def pids(self, name: str) -> list[int]:
        """The processes on the host."""
        command = ("ip", "netns", "pids", self.by_name[name].namespace)
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=30)
        return [int(each) for each in done.stdout.split()]

    def kill_all(self) -> None:
        """End every process on every host."""
        for name in self.by_name:
            self.kill(name)

    def kill(self, name: str) -> None:
        """As when the host's power goes."""
        for pid in self.pids(name):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    def close(self) -> None:
        self.kill_all()
        if self._relay is not None:
            assert self._relay.stdin is not None
            assert self._relay.stdout is not None
            self._relay.stdin.close()
            self._relay.stdout.close()
            self._relay.wait(timeout=20)
        super().close()

    # -- what the troubles say -----------------------------------------------------------------

    def _settle(self) -> None:
        slow = [each for each in self._troubles if each.kind in ("slow", "lossy")]
        if slow:
            delay_s = max((each.amount for each in slow if each.kind == "slow"), default=0.0)
            loss = max((each.amount for each in slow if each.kind == "lossy"), default=0.0)
            self._tell_relay(delay_s, loss)
        for host in self.hosts:
            self._place(host)
            self._wall(host)

    def _place(self, host: Host) -> None:
        kinds = {each.kind for each in self._troubles if host.name in each.hosts}
        place = "one"
        for kind, where in (
            ("slow", "slow"),
            ("lossy", "slow"),
            ("cut", "other"),
            ("down", "down"),
        ):
            if kind in kinds:
                place = where
        before, self._is_at[host.name] = self._is_at[host.name], place
        if place == before:
            return
        if "down" in (place, before):
            how = "down" if place == "down" else "up"
            self._on_switches("link", "set", host.switch_port, how)
        if place != "down":
            self._plug(host, place)

    def _wall(self, host: Host) -> None:
        kinds = {each.kind for each in self._troubles if host.name in each.hosts}
        rules = tuple(rule for kind, rule in _RULES if kind in kinds)
        before, self._walled[host.name] = self._walled.get(host.name, ()), rules
        if rules == before:
            return
        if before:
            host._nft("delete table inet chaos")
        if rules:
            host._nft("add table inet chaos")
            host._nft("add chain inet chaos in { type filter hook input priority 0; }")
            host._nft("add chain inet chaos out { type filter hook output priority 0; }")
            for rule in rules:
                host._nft(f"add rule inet chaos {rule}")

    def _tell_relay(self, delay_s: float, loss: float) -> None:
        if self._relay is None:
            self._relay = self._start_relay()
        assert self._relay.stdin is not None
        self._relay.stdin.write(f"{delay_s} {loss}\n".encode())
        self._relay.stdin.flush()

    def _start_relay(self) -> subprocess.Popen[bytes]:
        argv = [sys.executable, str(RELAY), str(self._seed), "near", "far"]
        with Host("switches", self._switches, "", "").inside():
            relay = subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        assert relay.stdout is not None
        assert relay.stdout.readline() == b"ready\n"
        for device, switch in (("near", "one"), ("far", "slow")):
            self._on_switches("link", "set", device, "master", switch)
            self._on_switches("link", "set", device, "up")
        return relay


_RULES = (
    ("deafen", "in iifname eth0 drop"),
    ("mute", "out oifname eth0 drop"),
    ("reset", "in iifname eth0 tcp flags & rst != rst reject with tcp reset"),
    ("reset", "out oifname eth0 tcp flags & rst != rst reject with tcp reset"),
)


@contextlib.contextmanager
def wires(seed: int) -> Iterator[Wires]:
    """A network that is gone at the end."""
    made = Wires(seed)
    try:
        yield made
    finally:
        made.close()
