"""Many virtual nodes in one process, which does what the driver's lines of JSON say.

    python -m rallypoint.bench.fleet

Commands come on stdin, one per line, and each is answered by one line on stdout. Times are seconds
of `time.monotonic()`, which on Linux is one clock for all processes of a machine, so that the
driver can tell the first call of one fleet from the last answer of another. The process keeps no
other clock, and ends with its stdin.
"""

from __future__ import annotations

import asyncio
import gc
import heapq
import secrets
import socket
import sys
import time
from collections.abc import Awaitable, Callable, Iterable
from itertools import count
from typing import Any, Final

import msgspec

from rallypoint.bench.counting import DEADLINE_S, Count, FleetError, new_event_loop
from rallypoint.bench.flood import Flood
from rallypoint.bench.socket_baseline import FloorFleet
from rallypoint.bench.virtual import EARLY, VirtualNode
from rallypoint.core import store as ops
from rallypoint.core.reasons import Waiting
from rallypoint.core.values import Change, Failure, FailureKind, NodeInfo, RunSettings

CONNECTS_AT_ONCE: Final = 512
"""More at once only wait in the listener's queue, and a full one costs a second each."""
TICK_S: Final = 0.05
TELL_EVERY_S: Final = 10.0
GOLDEN_RATIO: Final = 0.618034
NAMES: Final = "node"
COME_S: Final = 10.0
"""How long a node may take to be let in, or to be let go, while it is watched."""
BETWEEN_ROUNDS_S: Final = 0.2
"""How long a round of several machines lasts, so that all of them have taken it before it ends."""


class Fleet:
    """The nodes of this process. All methods are for its event loop."""

    def __init__(self) -> None:
        self.nodes: list[VirtualNode] = []
        self._attached = self._formed = self._ended = self._calls = Count(0)
        self._lost = ""
        self._due: list[tuple[float, int, VirtualNode]] = []
        self._order = count()
        self._ticking: asyncio.Task[None] | None = None
        self._tick_s = TICK_S
        self._change: Change | None = None
        self._floor = FloorFleet()
        self._floods: list[Flood] = []
        self._closed = asyncio.Event()
        self.hint = ""
        """What to do about the first error, if that is known."""

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

        `ready`: each wants the first round as soon as it is attached (a cold meet); wait for that,
        at most `within_s`. `names`: what the nodes' names begin with. `shared`: other machines have
        nodes of the run too, so that it is worth saying what it waits for.
        """
        run = RunSettings(**settings)
        made = [self._node(run_id, f"{names}{first + i}", run, token) for i in range(nodes)]
        self._attached, self._formed, self._ended = Count(nodes), Count(nodes), Count(nodes)
        self.nodes += made
        if ready:
            for node in made:
                node.ready()  # A wish is said as soon as there is somebody to say it to.
        if self._ticking is None:
            self._ticking = asyncio.get_running_loop().create_task(self._tick())
        began_s = time.monotonic()
        gate = asyncio.Semaphore(CONNECTS_AT_ONCE)
        address = await _resolved(host, port)
        await asyncio.gather(*(self._connect(node, address, gate) for node in made))
        await self._attached.all("were let in")
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
        """All nodes want the next round, from `at_s` on; wait until each has it.

        It is counted from `ended` on: with a node that called early (`again`), the calls of other
        processes may complete the round before this one is asked. Then that node has it already.
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
        """Take part in rounds that nodes elsewhere are in as well, until the run is closed.

        All must be in a round. The process that has node rank 0 ends each, and the run after
        `repeats` more; that end is the signal for everybody to want the next.
        """
        rounds: list[dict[str, Any]] = []
        while not await self._end_shared(len(rounds) == repeats):
            told, self._ended = self._ended, Count(len(self.nodes))
            met = await self.meet()
            rounds.append({**met, "first_told_s": told.first_s, "told_s": told.last_s})
        return {"rounds": rounds}

    async def _end_shared(self, is_last: bool) -> bool:
        """End the round, or the run, if that is this process's affair; whether the run is over."""
        self._formed = Count(len(self.nodes))
        leader = next((each for each in self.nodes if each.node_rank == 0), None)
        if leader is not None:
            await asyncio.sleep(BETWEEN_ROUNDS_S)
            if is_last:
                leader.close()
            else:
                leader.ready(EARLY)
        told = asyncio.ensure_future(self._ended.all("were told that the round has ended"))
        closed = asyncio.ensure_future(self._closed.wait())
        await asyncio.wait({told, closed}, return_when=asyncio.FIRST_COMPLETED)
        if not self._closed.is_set():
            closed.cancel()
            await told
        told.cancel()
        return self._closed.is_set()

    async def expect_end(self, *, but: int = 0) -> dict[str, Any]:
        """Count from now on who is told that the round has ended: all but so many."""
        self._ended = Count(len(self.nodes) - but)
        self._change = None
        return {}

    async def ended(self, *, within_s: float = DEADLINE_S) -> dict[str, Any]:
        """Wait until every node has been told that the round has ended."""
        await self._ended.all("were told that the round has ended", within_s)
        self._formed = Count(len(self.nodes))
        kind = self._change.kind if self._change is not None else ""
        return {"first_s": self._ended.first_s, "last_s": self._ended.last_s, "kind": kind}

    async def fail(self, *, index: int, at_s: float = 0.0) -> dict[str, Any]:
        """A worker of one node fails, then or now, which ends the round for all."""
        await self._until(at_s)
        failed_s = time.monotonic()
        failure = Failure(FailureKind.EXCEPTION, "the benchmark ends the round")
        self.nodes[index].failed(failure)
        return {"at_s": failed_s}

    async def again(self, *, index: int) -> dict[str, Any]:
        """One node wants the next round, which ends the present one for all.

        It says so again when all do (`meet`), so that each makes one call within the time.
        """
        self.nodes[index].ready(EARLY)
        return {"at_s": time.monotonic()}

    async def kill(self, *, index: int) -> dict[str, Any]:
        """End one node as a killed process ends; it is no node of this fleet any more."""
        node = self._taken_out(index)
        at_s = time.monotonic()
        node.die()
        return {"at_s": at_s}

    async def cut(self, *, index: int) -> dict[str, Any]:
        """Reset one node's connection; it is no node of this fleet any more."""
        node = self._taken_out(index)
        at_s = time.monotonic()
        node.abort()
        return {"at_s": at_s}

    async def leave(self, *, index: int) -> dict[str, Any]:
        """One node says goodbye."""
        node = self._taken_out(index)
        at_s = time.monotonic()
        node.goodbye()
        return {"at_s": at_s}

    async def arrive(
        self, *, host: str, port: int, run_id: str, first: int, settings: dict[str, Any], token: str
    ) -> dict[str, Any]:
        """One more node comes and wants to be in; whoever waits is told of it in time."""
        self._attached = Count(1)
        node = self._node(run_id, f"{NAMES}{first}", RunSettings(**settings), token)
        node.ready()
        began_s = time.monotonic()
        await self._connect(node, await _resolved(host, port), asyncio.Semaphore(1))
        await self._attached.all("were let in")
        self.nodes.append(node)
        return {"began_s": began_s}

    async def freeze(self, *, index: int) -> dict[str, Any]:
        """One node goes silent and keeps its connection."""
        node = self._taken_out(index)
        assert node.transport is not None
        node.transport.pause_reading()
        node.machine.disconnected()  # It has no heartbeat any more.
        return {"at_s": time.monotonic()}

    async def store(self, *, what: str, per_node: int, window: int) -> dict[str, Any]:
        """Each node makes `per_node` calls of one kind, `window` of them open at a time."""
        done = self._calls = Count(len(self.nodes))
        began_s = time.monotonic()
        for index, node in enumerate(self.nodes):
            _Caller(node, index, what, per_node, done).begin(window)
        await done.all(f"had their {what} answered")
        return {"began_s": began_s, "done_s": done.last_s}

    async def one_by_one(self, *, what: str, times: int, gap_s: float) -> dict[str, Any]:
        """The first node asks for one thing after another: how long each took, in seconds.

        `what`: a call of the store, or "beat".
        """
        node, took_s = self.nodes[0], []
        for number in range(times):
            asked_s, answered = time.monotonic(), Count(1)
            if what == "beat":
                node.on_beat = answered.one
                node.beat()
            else:
                node.call(_op(what, 0, number), DEADLINE_S, _told(answered))
            await answered.all(f"had their {what} answered")
            took_s.append(answered.last_s - asked_s)
            await asyncio.sleep(gap_s)
        return {"took_s": took_s}

    async def flood(self, *, kinds: list[str], warm_s: float) -> dict[str, Any]:
        """Each node floods the coordinator in one of these ways, until `calm`."""
        for number, node in enumerate(self.nodes):
            node.on_lost = lambda node, why: None  # It may be disconnected for what it does.
            self._floods.append(Flood(node, kinds[number % len(kinds)]))
            self._floods[-1].begin()
        await asyncio.sleep(warm_s)
        return {}

    async def calm(self, *, settle_s: float) -> dict[str, Any]:
        """The floods end, and what was asked is answered."""
        for flood in self._floods:
            flood.stop()
        self._floods.clear()
        await asyncio.sleep(settle_s)
        return {"connected": sum(node.transport is not None for node in self.nodes)}

    async def barrier(self, *, name: str) -> dict[str, Any]:
        """All nodes come to one barrier."""
        done = self._calls = Count(len(self.nodes))

        def answered(result: ops.StoreResult) -> None:
            if isinstance(result, ops.StoreFailure):
                done.fail(f"a barrier failed: {result.message}")
            else:
                done.one()

        began_s = time.monotonic()
        for node in self.nodes:
            seat = node.machine.seat
            rank = seat.first_rank if seat is not None else 0
            node.call(ops.Barrier(name, rank), DEADLINE_S, answered)
        await done.all("were let through the barrier")
        return {"began_s": began_s, "done_s": done.last_s}

    async def counts(self, *, at_s: float = 0.0) -> dict[str, Any]:
        """Messages and payload bytes of all nodes, both directions, since they were made.

        Raises FleetError if one has lost its connection: it costs nothing any more.
        """
        await self._until(at_s)
        if self._lost:
            raise FleetError(self._lost)
        names = ("sent", "received", "beats", "sent_bytes", "received_bytes", "beats_bytes")
        total = {name: sum(getattr(node, name) for node in self.nodes) for name in names}
        return total | {"cpu_s": time.process_time(), "at_s": time.monotonic()}

    async def watch(
        self, *, seconds: float, every_s: float, places: dict[str, dict[str, Any]]
    ) -> dict[str, Any]:
        """For so long, time the heartbeats of all nodes, and new nodes that attach in between.

        It goes on until each run has had a heartbeat answered at least.
        `places`: where each run has its coordinator. Every `every_s` one node comes to each, into a
        run of its own, and leaves. Returns lists of seconds by run, and how many have tried to.
        """
        for node in self.nodes:
            node.round_trips_s = []
        attach_s: dict[str, list[float]] = {run_id: [] for run_id in places}
        comers: list[asyncio.Future[None]] = []
        ends_s = time.monotonic() + seconds
        while time.monotonic() < ends_s or not self._has_beats(places):
            for run_id, place in places.items():
                come = self._come_and_go(f"{run_id}-comers", len(comers), place, attach_s[run_id])
                comers.append(asyncio.ensure_future(come))
            await asyncio.sleep(every_s)
            if self._lost:
                raise FleetError(self._lost)
        await asyncio.gather(*comers)
        round_trips_s: dict[str, list[float]] = {run_id: [] for run_id in places}
        for node in self.nodes:
            found = round_trips_s[node.machine.run_id]
            found += node.round_trips_s or []
            waits_s = node.beat_waits_s()
            if waits_s is not None and waits_s > every_s:
                found.append(waits_s)
            node.round_trips_s = None
        tried = {run_id: len(comers) // len(places) for run_id in places}
        return {"round_trips_s": round_trips_s, "attach_s": attach_s, "tried": tried}

    def _has_beats(self, runs: Iterable[str]) -> bool:
        return {node.machine.run_id for node in self.nodes if node.round_trips_s} >= set(runs)

    async def _come_and_go(
        self, run_id: str, number: int, place: dict[str, Any], attach_s: list[float]
    ) -> None:
        """One node attaches, which is timed if it is let in, and leaves."""
        attached, gone = Count(1), Count(1)
        info = NodeInfo(f"comer{number}", secrets.randbits(62), f"comer{number}.example")
        # Nobody stays there long enough for a round.
        node = VirtualNode(run_id, info, RunSettings(min_nodes=2, max_nodes=2), place["token"])
        node.on_attached = lambda node: attached.one()

        def lost(node: VirtualNode, why: str) -> None:
            attached.fail(why)
            if not gone.seen:
                gone.one()

        node.on_lost = lost
        began_s = time.monotonic()
        try:
            address = await _resolved(place["host"], place["port"])
            await self._connect(node, address, asyncio.Semaphore(1))
            await attached.all("was let in", COME_S)
            attach_s.append(attached.last_s - began_s)
            node.goodbye()
            await gone.all("was let go", COME_S)
        except FleetError as error:
            _say(f"a node could not come to {run_id} and go: {error}")
            node.abort()

    async def beat_on_time(self) -> dict[str, Any]:
        """From now on say each heartbeat at its moment, as nodes on machines of their own do.

        What comes in bunches costs a coordinator half as much. So this process does not sleep any
        more: an event loop's timers are a millisecond apart, and thousands of nodes nearer.
        """
        self._tick_s = 0.0
        return {}

    async def floor_connect(self, *, port: int, nodes: int) -> dict[str, Any]:
        """Connections to the floor's server, instead of nodes."""
        self._floor = FloorFleet()
        return await self._floor.connect(port, nodes)

    async def floor_meet(self) -> dict[str, Any]:
        """One message on each, and one back on each."""
        return await self._floor.meet()

    async def settle(self) -> dict[str, Any]:
        """Collect garbage now, and leave what is here out of later collections."""
        gc.collect()
        gc.freeze()
        return {}

    async def disconnect(self) -> dict[str, Any]:
        """End the runs, say goodbye for all nodes, and forget them."""
        lost = Count(len(self.nodes))
        for node in {node.machine.run_id: node for node in self.nodes}.values():
            node.close()
        for node in self.nodes:
            node.on_lost = lambda node, why: lost.one()
            node.goodbye()
        try:
            await lost.all("were let go", 10.0)
        except FleetError:
            for node in self.nodes:
                node.abort()
        self.nodes, self._due = [], []
        return {}

    # -- helpers ---------------------------------------------------------------------------------

    async def _tell_why(self, nodes: list[VirtualNode], within_s: float) -> None:
        """As long as there is no round: on stderr, what it waits for and how much longer."""
        ends_s = time.monotonic() + within_s

        def tell(node: VirtualNode, why: Waiting | None) -> None:
            _say(f"{why}; waiting {ends_s - time.monotonic():.0f} s more")

        for node in nodes:
            node.on_standby = self._on_standby
        for node in nodes[:1]:
            node.on_waiting = tell
            while True:
                await asyncio.sleep(TELL_EVERY_S)
                node.ask_waiting()

    def _on_standby(self, node: VirtualNode) -> None:
        """The run has more nodes than a round: a place would be waited for in vain."""
        self._formed.fail(
            f"{node.machine.info.name} has no place: the round is full with "
            f"{node.machine.settings.max_nodes} nodes, and all machines together have more"
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
        """A node of which nothing counts any more: whoever leaves is told of the end as well."""
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
        self._lost = f"{node.machine.info.name} lost its connection: {why}"
        if node.machine.refused is not None:
            self._lost, self.hint = f"a node was refused: {why}", node.machine.refused.hint
        for each in (self._attached, self._formed, self._ended, self._calls):
            each.fail(self._lost)

    async def _connect(
        self, node: VirtualNode, address: tuple[Any, ...], gate: asyncio.Semaphore
    ) -> None:
        family, where = address
        loop = asyncio.get_running_loop()
        async with gate:
            sock = socket.socket(family, socket.SOCK_STREAM)
            sock.setblocking(False)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            try:
                await loop.sock_connect(sock, where)
            except OSError as error:
                sock.close()
                raise FleetError(f"{where[0]}:{where[1]}: {error.strerror or error}") from error
            node.sock = sock
            await loop.create_connection(lambda: node, sock=sock)

    async def _until(self, at_s: float) -> None:
        delay_s = at_s - time.monotonic()
        if delay_s > 0:
            await asyncio.sleep(delay_s)

    def _watch(self, node: VirtualNode, *, is_new: bool = False) -> None:
        due_s = node.machine.next_tick_s()
        if due_s is not None:
            order = next(self._order)
            if is_new:
                # Nodes that attach in one burst would beat in one burst for ever; real ones, which
                # started at different times, do not. Multiples of the golden ratio spread evenly.
                due_s += (due_s - time.monotonic()) * (order * GOLDEN_RATIO % 1.0)
            heapq.heappush(self._due, (due_s, order, node))

    async def _tick(self) -> None:
        """Heartbeats: one timer for the whole fleet, and a heap of who is due when."""
        while True:
            await asyncio.sleep(self._tick_s)
            now_s = time.monotonic()
            while self._due and self._due[0][0] <= now_s:
                due_s, _, node = heapq.heappop(self._due)
                # As if it were said when it was due: what is said in one bunch is not so for ever.
                node.tick(max(due_s, now_s - TICK_S))
                self._watch(node)
            for flood in self._floods:
                flood.tick()


async def _resolved(host: str, port: int) -> tuple[Any, ...]:
    """Family and socket address of the first thing that the name stands for."""
    found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return found[0][0], found[0][4]


def _say(text: str) -> None:
    print(f"rallypoint: {text}", file=sys.stderr, flush=True)


# -- calls of the store ----------------------------------------------------------------------------


def _op(what: str, node: int, number: int) -> ops.StoreOp:
    key = f"bench/{node}/{number % 100}"
    match what:
        case "set":
            return ops.Set(key, b"x" * 64)
        case "get":
            return ops.Get("bench/0/0")
        case "add":
            return ops.Add("bench/sum", 1)
    raise FleetError(f"there is no call {what!r}")


def _told(count: Count) -> Callable[[ops.StoreResult], None]:
    return lambda result: count.one()


class _Caller:
    """One node's calls: `window` of them open at a time, until all are answered."""

    def __init__(self, node: VirtualNode, index: int, what: str, calls: int, done: Count) -> None:
        self._node, self._index, self._what = node, index, what
        self._left_to_say = self._left_to_hear = calls
        self._done = done

    def begin(self, window: int) -> None:
        """Make the first calls; each answer makes the next."""
        for _ in range(min(window, self._left_to_say)):
            self._say()

    def _say(self) -> None:
        self._left_to_say -= 1
        op = _op(self._what, self._index, self._left_to_say)
        self._node.call(op, DEADLINE_S, self._answered)

    def _answered(self, result: ops.StoreResult) -> None:
        if isinstance(result, ops.StoreFailure):
            self._done.fail(f"a call of the store failed: {result.message}")
            return
        self._left_to_hear -= 1
        if self._left_to_say:
            self._say()
        elif not self._left_to_hear:
            self._done.one()


# -- the process -----------------------------------------------------------------------------------

_COMMANDS: Final = (
    "connect", "meet", "expect_end", "ended", "fail", "again", "kill", "cut", "leave", "freeze",
    "store", "counts", "settle", "disconnect", "floor_connect", "floor_meet",
    "arrive", "barrier", "one_by_one", "flood", "calm", "share", "beat_on_time", "watch",
)  # fmt: skip


async def _serve() -> None:
    """Do what stdin says, one command after another."""
    fleet = Fleet()
    loop = asyncio.get_running_loop()
    while line := await loop.run_in_executor(None, sys.stdin.buffer.readline):
        command = msgspec.json.decode(line)
        name = command.pop("do")
        answer: dict[str, Any]
        try:
            if name not in _COMMANDS:
                raise FleetError(f"there is no command {name!r}")
            work: Callable[..., Awaitable[dict[str, Any]]] = getattr(fleet, name)
            answer = await work(**command)
        except (FleetError, OSError) as error:
            answer = {"error": str(error), "hint": fleet.hint}
        sys.stdout.buffer.write(msgspec.json.encode(answer) + b"\n")
        sys.stdout.buffer.flush()


def main() -> None:
    """The process: until stdin ends."""
    gc.set_threshold(50_000, 50, 100)
    with asyncio.Runner(loop_factory=new_event_loop) as runner:
        runner.run(_serve())


if __name__ == "__main__":
    main()
