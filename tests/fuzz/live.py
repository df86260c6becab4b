"""The same hostile nodes and requests over real sockets, at a real `rallypoint serve`."""

from __future__ import annotations

import asyncio
import contextlib
import os
import select
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator
from pathlib import Path
from random import Random
from typing import Final

from tests.fuzz import people
from tests.fuzz.nodes import Peer
from tests.fuzz.watching import FuzzFailure, must
from tests.fuzz.world import TOKEN, Honest

PEERS: Final = 6
GROWTH_MIB_MAX: Final = 64.0
KEEP_S: Final = 2
ANSWER_WAIT_S: Final = 0.002


class SocketConnection:
    """See world.Connection."""

    def __init__(self, port: int) -> None:
        self.is_gone = False
        self._sock = socket.create_connection(("127.0.0.1", port), timeout=10)
        self._sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def bring(self, data: bytes) -> None:
        try:
            self._sock.sendall(data)
        except OSError:
            self.end()

    def take(self) -> bytes:
        found = b""
        while not self.is_gone and select.select([self._sock], [], [], ANSWER_WAIT_S)[0]:
            try:
                data = self._sock.recv(1 << 20)
            except OSError:
                data = b""
            if not data:
                self.end()
            found += data
        return found

    def end(self, error: Exception | None = None) -> None:
        if error is not None and not self.is_gone:
            with contextlib.suppress(OSError):
                self._sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.is_gone = True
        self._sock.close()

    def is_closing(self) -> bool:
        return self.is_gone


class Served:
    """The process, and how to connect to it."""

    def __init__(self, process: subprocess.Popen[str], port: int, log: Path) -> None:
        self.process = process
        self._port = port
        self._log = log

    def connect(self) -> SocketConnection:
        return SocketConnection(self._port)

    def memory_mib(self) -> float:
        pages = Path(f"/proc/{self.process.pid}/statm").read_text().split()[1]
        return int(pages) * os.sysconf("SC_PAGE_SIZE") / 2**20

    def descriptors(self) -> int:
        return len(list(Path(f"/proc/{self.process.pid}/fd").iterdir()))

    def log_end(self) -> str:
        return self._log.read_text(errors="replace")[-3_000:]

    def check_log(self) -> None:
        text = self._log.read_text(errors="replace")
        for sign in ("Traceback", " ERROR "):
            before, found, after = text.partition(sign)
            must(not found, f"in the log: {before[-500:]}{found}{after[:6_000]}")


@contextlib.asynccontextmanager
async def served() -> AsyncIterator[Served]:
    with tempfile.TemporaryDirectory(prefix="rallypoint-fuzz-") as folder:
        log = Path(folder) / "log"
        environ = {k: v for k, v in os.environ.items() if not k.startswith("RALLYPOINT_")}
        environ |= {
            "RALLYPOINT_TOKEN": TOKEN,
            "RALLYPOINT_CLOSED_RUN_KEEP": f"{KEEP_S}s",
            "RALLYPOINT_EMPTY_RUN_KEEP": f"{KEEP_S}s",
        }
        command = [sys.executable, "-m", "rallypoint", "serve", "--port", "0"]
        with log.open("w") as errors:
            process = subprocess.Popen(  # noqa: ASYNC220 - it is only started
                command, stdout=subprocess.PIPE, stderr=errors, text=True, env=environ
            )
        assert process.stdout is not None
        try:
            line = process.stdout.readline().strip()
            must(line.startswith("http://"), f"it does not serve: {log.read_text()}")
            yield Served(process, int(line.rpartition(":")[2]), log)
            process.send_signal(signal.SIGTERM)
            must(process.wait(30) == 0, f"it ended with {process.returncode}")
        finally:
            process.kill()
            process.wait()
            process.stdout.close()


async def _run(rng: Random, inputs_max: int) -> int:
    async with served() as server:
        honest = Honest(server)
        await honest.begin()
        peers = [Peer(server, rng) for _ in range(PEERS)]
        inputs, before = 0, (0.0, 0)
        while inputs < inputs_max:
            for _ in range(100):
                inputs += await rng.choice(peers).step()
            for _ in range(10):
                inputs += await people.exchange(server, rng)
            await _checked(server, honest, inputs)
            must(server.process.poll() is None, f"it ended with {server.process.returncode}")
            if before[1] == 0:
                before = server.memory_mib(), server.descriptors() - PEERS
        for peer in peers:
            peer.end()
        await _back_to(server, before)
        await honest.check()
        honest.transport.end()
        server.check_log()
    return inputs


async def _checked(server: Served, honest: Honest, inputs: int) -> None:
    try:
        await honest.check()
    except FuzzFailure as failure:
        server.check_log()  # which says more, if there was an error
        raise FuzzFailure(
            f"after {inputs} inputs: {failure}; the log: {server.log_end()}"
        ) from None


async def _back_to(server: Served, before: tuple[float, int]) -> None:
    """All that was taken for the fuzzer is given back."""
    until_s = time.monotonic() + 60
    while server.descriptors() > before[1] + PEERS and time.monotonic() < until_s:  # noqa: ASYNC110
        await asyncio.sleep(0.5)
    left = server.descriptors()
    must(left <= before[1] + PEERS, f"{left} descriptors are left, where there were {before[1]}")
    grown = server.memory_mib() - before[0]
    must(grown < GROWTH_MIB_MAX, f"it has grown by {grown:.0f} MiB")


def run(seed: int, inputs_max: int) -> int:
    """So many inputs, at least. How many they were. Raises FuzzFailure."""
    return asyncio.run(_run(Random(f"live:{seed}"), inputs_max))
