"""The network of a world: hosts, ports, and connections that keep the order of their messages.

It is simulated above TCP: a connection carries whole messages, in order, each once, or it ends.
What TCP hides is hidden here too: a lost packet is a delay. What TCP shows is shown: a FIN, a
reset, or silence. The directions of a connection are independent: a partition may be asymmetric.

The kernel of a host is not its processes: while a process is frozen, its kernel accepts connections
and takes messages. When a process dies, its kernel closes what it had open. When a host is lost,
nobody says anything.
"""

from __future__ import annotations

import asyncio
import enum
import errno
import math
import os
import random
from collections import deque
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import msgspec

from rallypoint.core.values import Address
from rallypoint.simulation.world import Process, World

WINDOW_BYTES = 256 * 1024
"""How many bytes a kernel takes for a process that does not read them."""
RETRANSMIT_MIN_S, RETRANSMIT_MAX_S = 0.2, 3.0
"""The pauses between two tries to send the same packet; each is twice the one before."""


class Ending(enum.Enum):
    """How a connection ended, as the other side's kernel sees it."""

    FIN = enum.auto()
    RESET = enum.auto()


class Quality(msgspec.Struct):
    """How packets travel. `delay_s`: between these bounds. `loss`: the part that is sent again."""

    delay_s: tuple[float, float] = (0.0002, 0.002)
    loss: float = 0.0


class Host(msgspec.Struct):
    """One machine. `is_on`: whether its kernel answers."""

    name: str
    is_on: bool = True
    processes: list[Process] = msgspec.field(default_factory=list)


class End:
    """One side of a connection. Its callbacks run in its process's event loop.

    `on_message` gets each message of the other side, `on_end` how the connection ended, once.
    """

    def __init__(self, network: Network, process: Process, address: tuple[str, int]) -> None:
        self.process = process
        self.address = address
        """This side's host and port."""
        self.other: End
        self.on_message: Callable[[bytes], None] = lambda message: None
        self.on_end: Callable[[Ending], None] = lambda ending: None
        self.is_open = True
        """Whether this side can still send."""
        self.heard_s = process.awake_s()
        """When this side's process read something last, on the clock of its wakefulness."""
        self.sent_s = network.world.now_s
        """When this side sent something last, in the world's time."""
        self.says_goodbye = False
        """Whether this side closes by a closing handshake, so that its FIN is no process's end."""
        self._network = network
        self._queue: deque[bytes] = deque()
        self._queued = 0
        self._in_flight = 0
        """Bytes that were sent and that the other process has not read."""
        self._packets: deque[tuple[float, Callable[[], None]]] = deque()
        """What is on the way to the other side: (earliest arrival, what it does there)."""
        self._has_ended = False
        self._closes = False

    def __repr__(self) -> str:
        return f"{self.process.name} {self.address[0]}:{self.address[1]}"

    @property
    def backlog_bytes(self) -> int:
        """How many bytes the other side's kernel has not taken."""
        return self._queued

    @property
    def unread_bytes(self) -> int:
        """How many bytes of the other side wait for this process."""
        return self.other._in_flight

    def send(self, message: bytes) -> None:
        """Send a message. Does nothing after this side has closed."""
        if self.is_open and self.process.is_alive:
            if self.process.sees is not None:
                message = self.process.sees(message)
            self._queue.append(message)
            self._queued += len(message)
            self._pump()

    def close(self) -> None:
        """Send what is queued, then a FIN."""
        if self.is_open and self.process.is_alive:
            self.is_open, self._closes = False, True
            self._pump()

    def abort(self) -> None:
        """Send a reset at once. What is queued is lost. This side hears of no end."""
        if self.process.is_alive:
            self._drop(Ending.RESET)

    # -- the kernel ------------------------------------------------------------------------------

    def _pump(self) -> None:
        queue = self._queue
        while queue and self._in_flight < WINDOW_BYTES:
            message = queue.popleft()
            self._queued -= len(message)
            self._in_flight += len(message)
            self._network._carry(self, partial(self._arrived, message))
        if self._closes and not queue:
            self._closes = False
            self._network._carry(self, lambda: self.other._ended(Ending.FIN))

    def _arrived(self, message: bytes) -> None:
        other = self.other
        if not other.process.is_alive or other._has_ended:
            # A kernel answers data for a socket that is closed with a reset.
            self._network._carry(other, lambda: self._ended(Ending.RESET))
            return
        other.process.soon(self._read, message)

    def _read(self, message: bytes) -> None:
        """The other process reads a message of this side."""
        self._in_flight -= len(message)
        self.other.heard_s = self.other.process.awake_s()
        if not self.other._has_ended:
            sees = self.other.process.sees
            self.other.on_message(message if sees is None else sees(message))
        if self._queue or self._closes:
            self._pump()

    def _ended(self, ending: Ending) -> None:
        """The other side's end has arrived at this side's kernel."""
        if self._has_ended or not self.process.is_alive:
            return
        if ending is Ending.RESET:
            self.is_open = False
            self._queue.clear()
            self._queued = 0
        self.process.soon(self._tell_end, ending)

    def _tell_end(self, ending: Ending) -> None:
        if not self._has_ended:
            self._has_ended = True
            self._network._forget(self)
            self.is_open = False
            self.on_end(ending)

    def _drop(self, ending: Ending) -> None:
        if not self._has_ended:
            self._has_ended, self.is_open = True, False
            self._network._forget(self)
            self._queue.clear()
            self._queued = 0
            self._network._carry(self, lambda: self.other._ended(ending))

    def _process_ended(self) -> None:
        """The kernel closes the socket of a dead process: by a reset if something was not read."""
        ending = Ending.RESET if self.unread_bytes else Ending.FIN
        # What the kernel had taken is still sent; what it had not is lost with the process.
        self._drop(ending)


class Listener(msgspec.Struct):
    """A port on which a process accepts connections. `answers`: see `Network.listen`."""

    process: Process
    host: str
    port: int
    accept: Callable[[End], None]
    is_open: bool = True


class Network:
    """The hosts of a world and what connects them.

    `blocked` has the pairs of hosts between which no packet goes, in this direction only.
    """

    def __init__(self, world: World) -> None:
        self.world = world
        self.hosts: dict[str, Host] = {}
        self.blocked: dict[tuple[str, str], int] = {}
        self.refused: dict[tuple[str, str], int] = {}
        """Hosts to which something on the way refuses connections, and of which: see `refuse`."""
        self._accepted_s: dict[tuple[str, str], float] = {}
        self.quality = Quality()
        self.qualities: dict[tuple[str, str], Quality] = {}
        """Of single directions; `quality` is that of all others."""
        self.has_proxy = False
        """Whether a proxy stands before all listeners, so that no connection is direct."""
        self.idle_s = 0.0
        """After so many seconds without a message that proxy ends a connection; 0: it does not."""
        self.ended_idle = 0
        """How many connections it has ended so."""
        self.unlogged_bytes_max = 0
        """A limit of all coordinators, in bytes: see core.store.StoreLimits. 0: their own."""
        self.answers: dict[str, int] = {}
        """What answers for the listeners of a host: an HTTP status, or 0 for an end at once."""
        self.has_witnesses = False
        """Whether nodes connect to the hosts of other members, to testify about them."""
        self.on_look: Callable[[Process, Address], None] = lambda process, address: None
        self.on_looked: Callable[[Process, Address, bool], None] = lambda process, address, has: (
            None
        )
        """Called with each such connection, before it and after, and whether it was answered."""
        self.walls: dict[str, int] = {}
        """Hosts whose firewall drops new connections from others, silently. Counted."""
        self.on_front: Callable[[Process, Any], None] = lambda process, front: None
        """Called with each coordinator that a process serves, before it starts."""
        self._listeners: dict[tuple[str, int], Listener] = {}
        self._ends: dict[Process, dict[End, None]] = {}
        self._ports: dict[str, int] = {}

    # -- hosts and processes ---------------------------------------------------------------------

    def host(self, name: str) -> Host:
        """The host of that name; a new one if there is none."""
        return self.hosts.setdefault(name, Host(name))

    def attach(self, process: Process, host: str) -> None:
        """The process runs on this host. When it ends, its kernel closes its sockets."""
        where = self.host(host)
        where.processes.append(process)
        process.on_end.append(lambda: self._process_ended(where, process))

    def lose(self, host: str) -> None:
        """Power fails: all processes of the host end, and nobody says so."""
        where = self.host(host)
        where.is_on = False
        for process in list(where.processes):
            process.kill()

    def restart(self, host: str) -> None:
        """Its kernel answers again, and refuses what it does not know."""
        self.host(host).is_on = True

    def _process_ended(self, host: Host, process: Process) -> None:
        host.processes.remove(process)
        for listener in [each for each in self._listeners.values() if each.process is process]:
            self.unlisten(listener)
        ends = list(self._ends.pop(process, ()))
        if host.is_on:
            for end in ends:
                end._process_ended()

    def host_of(self, process: Process) -> str:
        """The name of the host on which a process runs."""
        for name, host in self.hosts.items():
            if process in host.processes:
                return name
        raise ValueError(f"{process.name} runs on no host")

    # -- partitions ------------------------------------------------------------------------------

    def block(self, source: str, target: str) -> None:
        """No packet goes from one host to another. Blocks are counted."""
        pair = (source, target)
        self.blocked[pair] = self.blocked.get(pair, 0) + 1

    def unblock(self, source: str, target: str) -> None:
        """Undo one block."""
        pair = (source, target)
        self.blocked[pair] -= 1
        if not self.blocked[pair]:
            del self.blocked[pair]

    def block_all(self, pairs: Sequence[tuple[str, str]]) -> Callable[[], None]:
        """Block each of these pairs of a source and a target. Returns what undoes it, once."""
        for pair in pairs:
            self.block(*pair)

        def undo() -> None:
            for pair in pairs:
                self.unblock(*pair)

        return undo

    def refuse(self, host: str, source: str = "") -> None:
        """Something on the way refuses new connections to a host, which lives. Counted.

        `source`: those from this host; "": from all others.
        """
        self.refused[host, source] = self.refused.get((host, source), 0) + 1

    def accept_again(self, host: str, source: str = "") -> None:
        """Undo one `refuse`."""
        self.refused[host, source] -= 1
        if not self.refused[host, source]:
            del self.refused[host, source]
            self._accepted_s[host, source] = self.world.now_s

    def was_refused(self, host: str, source: str, within_s: float) -> bool:
        """Whether connections from one host to another were refused, now or not long ago."""
        pairs = ((host, ""), (host, source))
        since_s = max(self._accepted_s.get(pair, -math.inf) for pair in pairs)
        return self._is_refused(host, source) or self.world.now_s - since_s <= within_s

    def _is_refused(self, host: str, source: str) -> bool:
        is_other = host != source
        return is_other and ((host, "") in self.refused or (host, source) in self.refused)

    def listens(self, process: Process) -> bool:
        """Whether a process accepts connections somewhere."""
        return any(each.process is process for each in self._listeners.values())

    def cut_one(self, process: Process, draw: random.Random) -> None:
        """Something on the way resets one of the process's connections: both sides hear of it.

        A proxy may also end it in order, on both sides.
        """
        ends = list(self._ends.get(process, ()))
        if ends:
            how = Ending.FIN if self.has_proxy and draw.random() < 0.5 else Ending.RESET
            end = draw.choice(ends)
            other = end.other
            end._ended(how)
            other._ended(how)

    # -- listening and dialing -------------------------------------------------------------------

    def free_port(self, host: str) -> int:
        """A port of the host that was never used."""
        self._ports[host] = port = self._ports.get(host, 20_000) + 1
        return port

    def listen(
        self, process: Process, host: str, port: int, accept: Callable[[End], None]
    ) -> Listener:
        """Accept connections. `accept` runs in the process's loop, with this side's end.

        Raises OSError (EADDRINUSE) if another process listens there.
        """
        where = (host, port)
        if where in self._listeners:
            raise OSError(errno.EADDRINUSE, os.strerror(errno.EADDRINUSE))
        listener = self._listeners[where] = Listener(process, host, port, accept)
        return listener

    def unlisten(self, listener: Listener) -> None:
        """Refuse connections from now on. Idempotent."""
        listener.is_open = False
        if self._listeners.get((listener.host, listener.port)) is listener:
            del self._listeners[listener.host, listener.port]

    async def dial(self, process: Process, target: tuple[str, int]) -> End:
        """Connect from a process to a port. Raises ConnectionRefusedError if nobody listens.

        Waits for ever if no answer comes; cancelling it is safe.
        """
        source = self.host_of(process)
        made = asyncio.get_running_loop().create_future()
        here = End(self, process, (source, self.free_port(source)))
        self._send(source, target[0], lambda: self._syn(here, target, made), 0)
        try:
            end: End = await made
        except asyncio.CancelledError:
            if made.done() and not made.cancelled() and made.exception() is None:
                here.abort()  # it was accepted in the same turn
            raise
        return end

    def _syn(self, here: End, target: tuple[str, int], made: asyncio.Future[End]) -> None:
        host, source = target[0], here.address[0]
        if not self.host(host).is_on or (host in self.walls and host != source):
            return
        listener = self._listeners.get(target)

        def refused() -> None:
            if not made.done():
                number = errno.ECONNREFUSED
                made.set_exception(ConnectionRefusedError(number, os.strerror(number)))

        if listener is None or self._is_refused(host, source):
            self._send(host, source, lambda: here.process.soon(refused), 0)
            return
        there = End(self, listener.process, target)
        here.other, there.other = there, here
        self._ends.setdefault(listener.process, {})[there] = None
        listener.process.soon(listener.accept, there)

        def accepted() -> None:
            if made.done():
                here._drop(Ending.RESET)  # the caller has given up
            else:
                made.set_result(here)

        def established() -> None:
            if here.process.is_alive:
                self._ends.setdefault(here.process, {})[here] = None
                here.process.soon(accepted)
                self._look_whether_idle(here)
            else:
                here._has_ended = True
                self._carry(here, lambda: there._ended(Ending.RESET))

        self._send(host, source, established, 0)

    def _look_whether_idle(self, end: End) -> None:
        """The proxy ends a connection in order if nothing was sent for too long, or looks again."""
        if not self.idle_s or end._has_ended:
            return
        left_s = max(end.sent_s, end.other.sent_s) + self.idle_s - self.world.now_s
        if left_s > 0.0:
            self.world.after(left_s, partial(self._look_whether_idle, end))
            return
        self.ended_idle += 1
        other = end.other
        end._ended(Ending.FIN)
        other._ended(Ending.FIN)

    # -- packets ---------------------------------------------------------------------------------

    def _carry(self, end: End, arrive: Callable[[], None]) -> None:
        """Bring something of one side to the other side's host, after all that was sent before."""
        end.sent_s = self.world.now_s
        due_s = end.sent_s + self._delay_s(end.address[0], end.other.address[0])
        end._packets.append((due_s, arrive))
        if len(end._packets) == 1:
            self.world.at(due_s, lambda: self._deliver(end, 0))

    def _deliver(self, end: End, tries: int) -> None:
        """The first packet on the way arrives, or is lost on a cut line and sent again."""
        source, target = end.address[0], end.other.address[0]
        if not self.host(source).is_on or not self.host(target).is_on:
            end._packets.clear()
            return
        if (source, target) in self.blocked:
            self.world.after(_pause_s(tries), lambda: self._deliver(end, tries + 1))
            return
        _, arrive = end._packets.popleft()
        if end._packets:
            self.world.at(end._packets[0][0], lambda: self._deliver(end, 0))
        arrive()

    def _send(self, source: str, target: str, arrive: Callable[[], None], tries: int) -> None:
        """Bring a packet without a connection from host to host; lost ones are sent again."""

        def go() -> None:
            if not self.host(source).is_on or not self.host(target).is_on:
                return
            if (source, target) in self.blocked:
                again = partial(self._send, source, target, arrive, tries + 1)
                self.world.after(_pause_s(tries), again)
            else:
                arrive()

        self.world.after(self._delay_s(source, target), go)

    def _delay_s(self, source: str, target: str) -> float:
        quality = self.qualities.get((source, target), self.quality)
        draw = self.world.random
        low, high = quality.delay_s
        delay_s = low + (high - low) * draw.random()
        tries = 0
        while quality.loss and draw.random() < quality.loss:
            delay_s += _pause_s(tries)
            tries += 1
        return delay_s

    def _forget(self, end: End) -> None:
        ends = self._ends.get(end.process)
        if ends is not None:
            ends.pop(end, None)


def _pause_s(tries: int) -> float:
    """How long a kernel waits before it sends a packet again."""
    return min(RETRANSMIT_MAX_S, RETRANSMIT_MIN_S * 2.0 ** min(tries, 10))
