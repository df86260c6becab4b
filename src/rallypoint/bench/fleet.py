"""Many virtual nodes in one process, which executes the driver's commands.

    python -m rallypoint.bench.fleet

A command is a line of JSON on stdin, and its answer a line of JSON on stdout. Times are seconds of
`time.monotonic()`. On Linux that is one clock for all processes of a machine, so the driver can
compare the first call of one fleet with the last answer of another. The process ends when its stdin
ends. Calls of the store are in fleet_calls.py, and watching is in fleet_watch.py.
"""

from __future__ import annotations

import asyncio
import gc
import heapq
import secrets
import sys
import time
from collections.abc import Awaitable, Callable
from itertools import count
from typing import Any, Final

import msgspec

from rallypoint.bench.counting import DEADLINE_S, Count, FleetError, new_event_loop, say
from rallypoint.bench.fleet_calls import Calls
from rallypoint.bench.fleet_steps import Steps
from rallypoint.bench.fleet_watch import Watch
from rallypoint.bench.flood import Flood
from rallypoint.bench.socket_baseline import FloorFleet
from rallypoint.bench.virtual import EARLY, SocketAddress, VirtualNode, connect, resolve
from rallypoint.core.reasons import Waiting
from rallypoint.core.values import Change, Failure, FailureKind, NodeInfo, RunSettings

CONNECTS_AT_ONCE: Final = 512
"""How many connects at once. More would only wait in the listener's queue, and one second each if
that is full.
"""
TICK_S: Final = 0.05
TELL_EVERY_S: Final = 10.0
GOLDEN_RATIO: Final = 0.618034
NAMES: Final = "node"
HANG_TIMEOUT_S: Final = 600.0
"""With a timeout, so that the coordinator watches the progress. No round is to end by it."""
BETWEEN_ROUNDS_S: Final = 0.2
"""The least seconds of a round of several machines, all of which must have it before it ends."""


class Fleet:
    """The nodes of this process. All methods are for its event loop."""

    def __init__(self) -> None:
        self.nodes: list[VirtualNode] = []
        self._attached = self._formed = self._ended = self._calls = Count(0)
        self.lost = ""
        """The first node that has lost its connection, and why; "" if none has. Removed nodes do
        not count.
        """
        self._due: list[tuple[float, int, VirtualNode]] = []
        self._order = count()
        self._ticking: asyncio.Task[None] | None = None
        self._tick_s = TICK_S
        self._change: Change | None = None
        self.floods: list[Flood] = []
        """The floods of nodes of this process. Each one's `tick` is called every TICK_S."""
        self._closed = asyncio.Event()
        self.hint = ""
        """What the user can do about the first error, if that is known."""

    # -- commands --------------------------------------------------------------------------------

    async def connect(
        self,
        *,
        host: str,
        port: int,
        run_id: str,
        first: int,
        nodes: int,
        settings: dict[str, Any],
        token: str = "",
        ready: bool = False,
        names: str = NAMES,
        within_s: float = DEADLINE_S,
        shared: bool = False,
    ) -> dict[str, Any]:
        """Make nodes `first` ... `first + nodes - 1`, connect and attach them.

        `ready`: each asks for the first round as soon as it is attached (a cold meeting); wait for
        that round, at most `within_s`. `names`: the prefix of the nodes' names. `shared`: other
        machines also have nodes of the run, so print on stderr why there is no round yet.
        """
        run = RunSettings(**settings)
        made = [self._node(run_id, f"{names}{first + i}", run, token) for i in range(nodes)]
        self._attached, self._formed, self._ended = Count(nodes), Count(nodes), Count(nodes)
        self.nodes += made
        if ready:
            for node in made:
                node.ready()  # The machine sends it when the node is attached.
        if self._ticking is None:
            self._ticking = asyncio.get_running_loop().create_task(self._tick())
        began_s = time.monotonic()
        gate = asyncio.Semaphore(CONNECTS_AT_ONCE)
        address = await resolve(host, port)
        await asyncio.gather(*(self._connect(node, address, gate) for node in made))
        await self._attached.all("were attached")
        if ready:
            telling = asyncio.ensure_future(self._tell_why(made if shared else [], within_s))
            try:
                await self._formed.all("were given the round", within_s)
            finally:
                telling.cancel()
        return {
            "began_s": began_s,
            "attached_s": self._attached.last_s,
            "first_formed_s": self._formed.first_s,
            "formed_s": self._formed.last_s,
        }

    async def meet(self, *, at_s: float = 0.0) -> dict[str, Any]:
        """All nodes ask for the next round, from `at_s` on; wait until each has it.

        Rounds are counted from `ended` on. A node that asked early (`again`) may have its round
        before this command comes, if the calls of other processes complete it.
        """
        await self._until(at_s)
        cpu_s = time.process_time()
        began_s = time.monotonic()
        for node in self.nodes:
            if node.told_round >= node.machine.number:
                node.ready()
        called_s = time.monotonic()
        await self._formed.all("were given the round")
        return {
            "began_s": began_s,
            "called_s": called_s,
            "first_formed_s": self._formed.first_s,
            "formed_s": self._formed.last_s,
            "cpu_s": time.process_time() - cpu_s,
        }

    async def share(self, *, repeats: int) -> dict[str, Any]:
        """Take part in the rounds of a run of several machines, until the run is closed.

        All nodes must be in a round. The process that has node rank 0 ends each round, and closes
        the run after `repeats` more. Nodes ask for the next round when they are notified of an end.
        """
        rounds: list[dict[str, Any]] = []
        while not await self._end_shared(len(rounds) == repeats):
            told, self._ended = self._ended, Count(len(self.nodes))
            met = await self.meet()
            rounds.append({**met, "first_told_s": told.first_s, "told_s": told.last_s})
        return {"rounds": rounds}

    async def _end_shared(self, is_last: bool) -> bool:
        """Wait for the round's end (node rank 0 ends it) or the run's.

        Returns whether the run is over.
        """
        self._formed = Count(len(self.nodes))
        leader = next((each for each in self.nodes if each.node_rank == 0), None)
        if leader is not None:
            await asyncio.sleep(BETWEEN_ROUNDS_S)
            if is_last:
                leader.close()
            else:
                leader.ready(EARLY)
        told = asyncio.ensure_future(self._ended.all("were notified that the round has ended"))
        closed = asyncio.ensure_future(self._closed.wait())
        await asyncio.wait({told, closed}, return_when=asyncio.FIRST_COMPLETED)
        if not self._closed.is_set():
            closed.cancel()
            await told
        told.cancel()
        return self._closed.is_set()

    async def expect_end(self, *, but: int = 0) -> dict[str, Any]:
        """From now on, count the nodes, except `but`, that are notified of the round's end."""
        self._ended = Count(len(self.nodes) - but)
        self._change = None
        return {}

    async def ended(self, *, within_s: float = DEADLINE_S) -> dict[str, Any]:
        """Wait until every node was notified that the round has ended."""
        await self._ended.all("were notified that the round has ended", within_s)
        self._formed = Count(len(self.nodes))
        kind = self._change.kind if self._change is not None else ""
        return {"first_s": self._ended.first_s, "last_s": self._ended.last_s, "kind": kind}

    async def fail(self, *, index: int, at_s: float = 0.0) -> dict[str, Any]:
        """A worker of one node fails at `at_s`, or now. That ends the round for all."""
        await self._until(at_s)
        failed_s = time.monotonic()
        failure = Failure(FailureKind.EXCEPTION, "the benchmark ends the round")
        self.nodes[index].failed(failure)
        return {"at_s": failed_s}

    async def again(self, *, index: int) -> dict[str, Any]:
        """One node asks for the next round, which ends the present one for all.

        It asks again with all others in `meet`, so that each node makes one call there.
        """
        self.nodes[index].ready(EARLY)
        return {"at_s": time.monotonic()}

    async def kill(self, *, index: int) -> dict[str, Any]:
        """End one node's connection as a killed process does. It is removed from this fleet."""
        node = self._taken_out(index)
        at_s = time.monotonic()
        node.die()
        return {"at_s": at_s}

    async def cut(self, *, index: int) -> dict[str, Any]:
        """Reset one node's connection. The node is removed from this fleet."""
        node = self._taken_out(index)
        at_s = time.monotonic()
        node.abort()
        return {"at_s": at_s}

    async def leave(self, *, index: int) -> dict[str, Any]:
        """One node says goodbye. It is removed from this fleet."""
        node = self._taken_out(index)
        at_s = time.monotonic()
        node.goodbye()
        return {"at_s": at_s}

    async def arrive(
        self, *, host: str, port: int, run_id: str, first: int, settings: dict[str, Any], token: str
    ) -> dict[str, Any]:
        """One more node attaches and asks for a round. It is in this fleet from then on."""
        self._attached = Count(1)
        node = self._node(run_id, f"{NAMES}{first}", RunSettings(**settings), token)
        node.ready()
        began_s = time.monotonic()
        await connect(node, await resolve(host, port))
        await self._attached.all("were attached")
        self.nodes.append(node)
        return {"began_s": began_s}

    async def freeze(self, *, index: int) -> dict[str, Any]:
        """One node becomes silent and keeps its connection. It is removed from this fleet."""
        node = self._taken_out(index)
        assert node.transport is not None
        node.transport.pause_reading()
        node.machine.disconnected()  # so that it sends no heartbeats
        return {"at_s": time.monotonic()}

    async def counts(self, *, at_s: float = 0.0) -> dict[str, Any]:
        """Messages and payload bytes of all nodes, both directions, since they were made.

        Raises FleetError if a node has lost its connection, because it would cause no cost.
        """
        await self._until(at_s)
        if self.lost:
            raise FleetError(self.lost)
        names = ("sent", "received", "beats", "sent_bytes", "received_bytes", "beats_bytes")
        total = {name: sum(getattr(node, name) for node in self.nodes) for name in names}
        return total | {"cpu_s": time.process_time(), "at_s": time.monotonic()}

    async def beat_on_time(self) -> dict[str, Any]:
        """From now on send each heartbeat at its own moment, as nodes on separate machines do."""
        # Heartbeats that arrive together cost a coordinator only half. An event loop's timers are a
        # millisecond apart, but heartbeats of thousands of nodes are closer, so never sleep.
        self._tick_s = 0.0
        return {}

    async def report_progress(self, *, on: bool) -> dict[str, Any]:
        """From now on, workers of all nodes report a step once a second, or none does."""
        for node in self.nodes:
            node.reports = on
            node.machine.progress.timeout_s = HANG_TIMEOUT_S
        return {}

    async def disconnect(self) -> dict[str, Any]:
        """Close the runs, say goodbye for all nodes, and remove them."""
        lost = Count(len(self.nodes))
        for node in {node.machine.run_id: node for node in self.nodes}.values():
            node.close()
        for node in self.nodes:
            node.on_lost = lambda node, why: lost.one()
            node.goodbye()
        try:
            await lost.all("had left", 10.0)
        except FleetError:
            for node in self.nodes:
                node.abort()
        self.nodes, self._due = [], []
        return {}

    # -- for the other parts of this process -----------------------------------------------------

    def count_calls(self, expected: int) -> Count:
        """Count the answers of this many calls. It fails as soon as a node loses its connection."""
        self._calls = Count(expected)
        return self._calls

    # -- helpers ---------------------------------------------------------------------------------

    async def _tell_why(self, nodes: list[VirtualNode], within_s: float) -> None:
        """Until cancelled, print on stderr why there is no round yet, and for how long."""
        ends_s = time.monotonic() + within_s

        def notify(node: VirtualNode, why: Waiting | None) -> None:
            say(f"{why}; waiting {ends_s - time.monotonic():.0f} s more")

        for node in nodes:
            node.on_standby = self._on_standby
        for node in nodes[:1]:
            node.on_waiting = notify
            while True:
                await asyncio.sleep(TELL_EVERY_S)
                node.ask_waiting()

    def _on_standby(self, node: VirtualNode) -> None:
        """Fail at once: the run has more nodes than a round, so this node will get no place."""
        self._formed.fail(
            f"{node.machine.info.name} has no place: the round is full with "
            f"{node.machine.settings.max_nodes} nodes, and the machines have more nodes than that"
        )

    def _node(self, run_id: str, name: str, run: RunSettings, token: str) -> VirtualNode:
        info = NodeInfo(name, secrets.randbits(62), f"{name}.example")
        node = VirtualNode(run_id, info, run, token)
        node.on_attached = self._on_attached
        node.on_formed = lambda node: self._formed.one()
        node.on_ended = self._on_ended
        node.on_closed = lambda node, close: self._closed.set()
        node.on_lost = self._on_lost
        return node

    def _taken_out(self, index: int) -> VirtualNode:
        """Remove a node. Messages to it from now on, such as the round's end, are not counted."""
        node = self.nodes.pop(index)
        node.on_ended = lambda node, change: None
        node.on_lost = lambda node, why: None
        return node

    def _on_attached(self, node: VirtualNode) -> None:
        self._watch(node, is_new=True)
        if self._attached.seen < self._attached.expected:
            self._attached.one()

    def _on_ended(self, node: VirtualNode, change: Change) -> None:
        self._change = change
        if self._ended.seen < self._ended.expected:
            self._ended.one()

    def _on_lost(self, node: VirtualNode, why: str) -> None:
        self.lost = f"{node.machine.info.name} lost its connection: {why}"
        if node.machine.refused is not None:
            self.lost, self.hint = f"a node was refused: {why}", node.machine.refused.hint
        for each in (self._attached, self._formed, self._ended, self._calls):
            each.fail(self.lost)

    async def _connect(
        self, node: VirtualNode, address: SocketAddress, gate: asyncio.Semaphore
    ) -> None:
        async with gate:
            await connect(node, address)

    async def _until(self, at_s: float) -> None:
        delay_s = at_s - time.monotonic()
        if delay_s > 0:
            await asyncio.sleep(delay_s)

    def _watch(self, node: VirtualNode, *, is_new: bool = False) -> None:
        due_s = node.machine.heartbeats.next_tick_s
        if due_s is not None:
            order = next(self._order)
            if is_new:
                # Nodes that attach together would always send their heartbeats together, whereas
                # real nodes start at different times. Multiples of the golden ratio spread them
                # evenly.
                due_s += (due_s - time.monotonic()) * (order * GOLDEN_RATIO % 1.0)
            heapq.heappush(self._due, (due_s, order, node))

    async def _tick(self) -> None:
        """Send heartbeats, with one timer for the whole fleet and a heap of nodes by due time."""
        while True:
            await asyncio.sleep(self._tick_s)
            now_s = time.monotonic()
            while self._due and self._due[0][0] <= now_s:
                due_s, _, node = heapq.heappop(self._due)
                # Use the time at which it was due, so that the next one is not late as well.
                node.tick(max(due_s, now_s - TICK_S))
                self._watch(node)
            for flood in self.floods:
                flood.tick()


# -- the process -----------------------------------------------------------------------------------


async def settle() -> dict[str, Any]:
    """Collect garbage now, and leave the objects that exist now out of later collections."""
    gc.collect()
    gc.freeze()
    return {}


Command = Callable[..., Awaitable[dict[str, Any]]]


def commands_of(fleet: Fleet) -> dict[str, Command]:
    """The commands of the driver, by name."""
    calls, watch, sockets = Calls(fleet), Watch(fleet), FloorFleet()
    steps = Steps(fleet)
    return {
        "connect": fleet.connect,
        "arrive": fleet.arrive,
        "disconnect": fleet.disconnect,
        "meet": fleet.meet,
        "share": fleet.share,
        "expect_end": fleet.expect_end,
        "ended": fleet.ended,
        "again": fleet.again,
        "fail": fleet.fail,
        "kill": fleet.kill,
        "cut": fleet.cut,
        "leave": fleet.leave,
        "freeze": fleet.freeze,
        "counts": fleet.counts,
        "report_progress": fleet.report_progress,
        "take_part": steps.take_part,
        "drain": steps.drain,
        "beat_on_time": fleet.beat_on_time,
        "settle": settle,
        "store": calls.store,
        "one_by_one": calls.one_by_one,
        "barrier": calls.barrier,
        "flood": calls.flood,
        "calm": calls.calm,
        "watch": watch.watch,
        "floor_connect": sockets.connect,
        "floor_meet": sockets.meet,
    }


async def _serve() -> None:
    """Execute the commands, one after another."""
    fleet = Fleet()
    commands = commands_of(fleet)
    loop = asyncio.get_running_loop()
    while line := await loop.run_in_executor(None, sys.stdin.buffer.readline):
        command = msgspec.json.decode(line)
        name = command.pop("do")
        answer: dict[str, Any]
        try:
            if name not in commands:
                raise FleetError(f"there is no command {name!r}")
            answer = await commands[name](**command)
        except (FleetError, OSError) as error:
            answer = {"error": str(error), "hint": fleet.hint}
        sys.stdout.buffer.write(msgspec.json.encode(answer) + b"\n")
        sys.stdout.buffer.flush()


def main() -> None:
    """Run until stdin ends."""
    gc.set_threshold(50_000, 50, 100)
    with asyncio.Runner(loop_factory=new_event_loop) as runner:
        runner.run(_serve())


if __name__ == "__main__":
    main()
