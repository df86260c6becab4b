"""A coordinator as it is shipped, in virtual time, with connections in memory and an honest run.

The server's own listener takes the connections, and its own parsers read them: nothing of what is
tested is written again here.
"""

from __future__ import annotations

import asyncio
import socket
from typing import Final, Protocol

import msgspec
from aiohttp.web_app import _cached_build_middleware

from rallypoint.clock import StallProofClock
from rallypoint.coordinator.config import CoordinatorConfig
from rallypoint.coordinator.coordinator import Coordinator
from rallypoint.coordinator.hosted_run import HostedRun
from rallypoint.coordinator.server import CoordinatorServer
from rallypoint.coordinator.websocket import FRAMES_PER_TURN
from rallypoint.core import store as st
from rallypoint.core.values import Address, NodeInfo, RunSettings, Stamp
from rallypoint.ledger.memory import MemoryLedger
from rallypoint.wire import messages as wire
from tests.fuzz.memory import MemoryTransport
from tests.fuzz.watching import must
from tests.network import check_every_step

TOKEN: Final = "fuzz-token-with-more-than-128-bits-of-chance"
HONEST_RUN: Final = "the honest run"
LEDGER_ID: Final = "0123456789abcdef"
KEEP_S: Final = 5.0
CONFIG: Final = CoordinatorConfig(token=TOKEN, closed_run_keep_s=KEEP_S, empty_run_keep_s=KEEP_S)
PATIENT: Final = RunSettings(suspect_after_s=1e6, lost_after_s=2e6)
HANDSHAKE_TURNS: Final = 12

HANDSHAKE: Final = (
    f"GET {wire.ATTACH_PATH} HTTP/1.1\r\nHost: 127.0.0.1\r\nUpgrade: websocket\r\n"
    "Connection: Upgrade\r\nSec-WebSocket-Version: 13\r\n"
    "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n"
    f"Authorization: Bearer {TOKEN}\r\n\r\n"
).encode()


async def turns(count: int) -> None:
    """Let the event loop go round so many times."""
    for _ in range(count):
        await asyncio.sleep(0)


class Connection(Protocol):
    """The fuzzer's end of a connection: see `MemoryTransport`."""

    is_gone: bool

    def bring(self, data: bytes) -> None: ...

    def take(self) -> bytes: ...

    def end(self, error: Exception | None = None) -> None: ...

    def is_closing(self) -> bool: ...


class Connecting(Protocol):
    """A coordinator to which the fuzzer connects."""

    def connect(self) -> Connection: ...


class World:
    """The server. Use it as an asynchronous context manager, in a virtual loop."""

    def __init__(
        self, *, is_shared: bool = False, is_checked: bool = False, is_open: bool = False
    ) -> None:
        """`is_shared`: over a ledger, in memory. `is_checked`: each step against the rules.

        `is_open`: it asks for no token.
        """
        ledger = MemoryLedger() if is_shared else None
        config = msgspec.structs.replace(CONFIG, token="") if is_open else CONFIG
        self.server = CoordinatorServer(config, ledger=ledger)
        self.coordinator = self.server.coordinator
        # Drawn by chance otherwise, and what nodes send holds it.
        self.coordinator.ledger_id = LEDGER_ID
        if ledger is not None:
            ledger.ledger_id = LEDGER_ID
        if is_checked:
            _check_every_run(self.coordinator)
        # The coordinator's own clock is this process's, and no time passes there.
        self.coordinator.clock = StallProofClock(asyncio.get_running_loop().time)
        self._peers = 0

    async def __aenter__(self) -> World:
        await self.server.start([])
        self.honest = Honest(self)
        await self.honest.begin()
        await turns(10)
        self._timers = len(self.coordinator._timers)
        self._tasks = len(asyncio.all_tasks())
        return self

    async def __aexit__(self, *error: object) -> None:
        self.honest.transport.end()
        await turns(5)
        await self.server.aclose()
        # aiohttp keeps a thousand handlers of applications that are gone, and these with them.
        _cached_build_middleware.cache_clear()

    def connect(self) -> MemoryTransport:
        """A new connection without a token."""
        listener = self.server._listener
        assert listener is not None
        self._peers += 1
        with socket.socket() as unused:  # the transport has no socket
            stranger = listener._new_stranger(unused)
        return MemoryTransport(stranger, ("192.0.2.7", 1_024 + self._peers % 60_000))

    async def check_empty(self) -> None:
        """All connections but the honest one have ended: so must all that they brought about."""
        await asyncio.sleep(4 * KEEP_S)
        coordinator, listener, runner = self.coordinator, self.server._listener, self.server._runner
        assert listener is not None
        assert runner is not None
        assert runner.server is not None
        kept = [_told(run) for run in coordinator.runs.values() if not self._may_stay(run)]
        must(not kept, f"runs are left: {kept[:5]}")
        must(
            len(coordinator.sessions) == 1,
            f"{len(coordinator.sessions)} sessions are left, of which 1 is honest",
        )
        must(not coordinator.turns._lines, f"work of {list(coordinator.turns._lines)} is put off")
        must(
            not coordinator.admission._attach_due_s,
            f"{len(coordinator.admission._attach_due_s)} connections have not attached",
        )
        must(not listener._strangers, f"{len(listener._strangers)} strangers are left")
        left = len(runner.server.connections)
        must(left == 1, f"{left} connections are left, of which 1 is honest")
        timers = len(coordinator._timers)
        must(timers <= self._timers, f"{timers} timers are left, where there were {self._timers}")
        tasks = asyncio.all_tasks()
        must(len(tasks) <= self._tasks, f"{len(tasks)} tasks are left, not {self._tasks}: {tasks}")

    def _may_stay(self, run: HostedRun) -> bool:
        """Settings that the fuzzer made by chance may keep a lost member's place for a year."""
        settings = run.membership.settings
        is_known = settings is None or settings.reconnect_grace_s + settings.mass_grace_s <= KEEP_S
        return run.run_id == HONEST_RUN or not is_known


def _told(run: HostedRun) -> str:
    phase = run.membership.phase
    return f"{run.run_id!r} is {phase}, with {run.attached_count} attached"


def _check_every_run(coordinator: Coordinator) -> None:
    open_run = coordinator.open_run

    def opened(run_id: str) -> HostedRun:
        is_new = run_id not in coordinator.runs
        run = open_run(run_id)
        if is_new:
            check_every_step(run)
        return run

    coordinator.open_run = opened  # type: ignore[method-assign]


class Honest:
    """A node of another run. Hostile input must not affect it."""

    def __init__(self, world: Connecting) -> None:
        self._world = world
        self._reader = Answers()
        self._sum = 0
        self._request = 0
        self._stamp = Stamp()

    async def begin(self) -> None:
        self.transport = self._world.connect()
        self.transport.bring(HANDSHAKE)
        for _ in range(2_000):
            await asyncio.sleep(0.01)
            must(not self._heard(), "a coordinator speaks before it is asked")
            if self._reader.is_open:
                break
        must(self._reader.is_open, "the honest node was not answered")
        node = NodeInfo("honest", 1, "honest-host")
        self._say(wire.Attach(Stamp(), wire.VERSION, HONEST_RUN, node, PATIENT))
        for _ in range(100):
            await asyncio.sleep(0.1)
            for message in self._heard():
                if isinstance(message, wire.Welcome):
                    self._say(wire.Ready(Stamp(), 0, Address("honest-host", 1), 1))
                if isinstance(message, wire.Formed):
                    self._stamp = message.stamp
                    return
        must(False, "the honest run has no round")

    async def check(self) -> None:
        """It adds one, and hears what it must."""
        self._request += 1
        self._sum += 1
        call = wire.StoreCall(
            self._stamp, self._request, st.Add("n", 1), 5.0, acknowledged=self._request - 1
        )
        # More than is taken in one turn, so that it has to be given another.
        beats = framed(wire.encode(wire.Heartbeat(self._stamp))) * (2 * FRAMES_PER_TURN)
        self._bring(beats + framed(wire.encode(call)))
        heard: list[wire.FromCoordinator] = []
        for number in range(1_000):
            await asyncio.sleep(0.01 if number > 5 else 0)
            heard += self._heard()
            if any(isinstance(each, wire.StoreAnswer) for each in heard):
                break
        answers = [each for each in heard if isinstance(each, wire.StoreAnswer)]
        others = [each for each in heard if not isinstance(each, wire.StoreAnswer | wire.Beat)]
        must(not others, f"the honest node was told: {others[:2]}")
        must(len(answers) == 1, f"the honest node has {len(answers)} answers")
        got = answers[0].result
        must(got == st.StoreValue(self._sum), f"the honest node's sum is {got}, not {self._sum}")

    def _say(self, message: wire.Message) -> None:
        self._bring(framed(wire.encode(message)))

    def _bring(self, data: bytes) -> None:
        must(not self.transport.is_closing(), "the honest node's connection was closed")
        self.transport.bring(data)

    def _heard(self) -> list[wire.FromCoordinator]:
        return self._reader.take(self.transport.take())


class Answers:
    """Reads what a server sends on one WebSocket: each binary message must be one of ours."""

    def __init__(self) -> None:
        self._rest = b""
        self.is_open = False

    def take(self, data: bytes) -> list[wire.FromCoordinator]:
        data = self._rest + data
        if not self.is_open:
            head, end, rest = data.partition(b"\r\n\r\n")
            if not end or not head.startswith(b"HTTP/1.1 101 "):
                self._rest = data
                return []
            self.is_open, data = True, rest
        found: list[wire.FromCoordinator] = []
        at = 0
        while len(data) - at >= 2:
            size, head_size = data[at + 1], 2
            if size >= 126:
                head_size = 4 if size == 126 else 10
                size = int.from_bytes(data[at + 2 : at + head_size])
            if len(data) - at < head_size + size:
                break
            if data[at] == 0x82:
                # Raises MalformedError for what a node would not take.
                found.append(wire.decode_from_coordinator(data[at + head_size :][:size]))
            at += head_size + size
        self._rest = data[at:]
        return found


def framed(payload: bytes, first: int = 0x82, key: bytes = b"\0\0\0\0") -> bytes:
    """A client's frame. The key of a mask may be zero; then the payload stays as it is."""
    size = len(payload)
    if size < 126:
        head = bytes((first, 0x80 | size))
    elif size < 65_536:
        head = bytes((first, 0xFE)) + size.to_bytes(2)
    else:
        head = bytes((first, 0xFF)) + size.to_bytes(8)
    if any(key):
        whole = (key * (size // 4 + 1))[:size]
        mixed = int.from_bytes(payload) ^ int.from_bytes(whole)
        payload = mixed.to_bytes(size)
    return head + key + payload
