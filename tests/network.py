"""A network in memory: the shipped coordinator and node machines, joined by links and a clock.

No sockets, no threads, no waiting: messages are bytes in queues, delivered one at a time in an
order that depends on nothing, and time passes when a test says so. Each step of the membership is
checked against the rules.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from functools import partial

import msgspec

from rallypoint.checkers.invariants import RunChecker, check
from rallypoint.client import actions as act
from rallypoint.client import machine as m
from rallypoint.client.actions import Action
from rallypoint.clock import TICK_S, StallProofClock
from rallypoint.coordinator.config import CoordinatorConfig
from rallypoint.coordinator.coordinator import Coordinator
from rallypoint.coordinator.hosted_run import HostedRun
from rallypoint.coordinator.memory_ownership import MemoryOwnership
from rallypoint.coordinator.session import Session
from rallypoint.core import events as on
from rallypoint.core.effects import Effect
from rallypoint.core.quotas import NOBODY
from rallypoint.core.reasons import Refusal
from rallypoint.core.store import StoreOp, StoreResult
from rallypoint.core.values import (
    Address,
    Change,
    CloseRecord,
    NodeInfo,
    RoundHead,
    RunSettings,
    Seat,
    Stamp,
)
from rallypoint.wire import messages as wire

UNSENT_BYTES_MAX = 32 * 1024
"""How many bytes a link buffers before its session is paused."""

RECONNECT_S = 0.1
CLOSE_S = 2.0
RUN = "run"


class CheckedCoordinator(Coordinator):
    """A coordinator whose runs are checked against the rules at every step."""

    def open_run(self, run_id: str) -> HostedRun:
        is_new = run_id not in self.runs
        run = super().open_run(run_id)
        if is_new:
            check_every_step(run)
        return run


def check_every_step(run: HostedRun) -> None:
    """Check each step of its membership against the rules from now on."""
    membership, checker = run.membership, RunChecker(run.membership.term)
    step = membership.step

    def checked(event: on.Event, now_s: float) -> list[Effect]:
        effects = step(event, now_s)
        checker.note(event, now_s, effects)
        check(membership)
        return effects

    membership.step = checked  # type: ignore[method-assign]


class Part(bytes):
    """A part of a message."""


class Link:
    """One connection: what is under way in each direction. The coordinator's side is an Outlet."""

    def __init__(self, network: Network, node: Node) -> None:
        self.peer = node.machine.info.name
        self.account = NOBODY
        self.seen: Address | None = None
        self.is_beside = False
        self.is_open = True
        self.up: deque[bytes] = deque()
        self.down: deque[bytes] = deque()
        self.session: Session | None = None
        self._network = network
        self._node = node
        self._closes = False
        self._is_paused = False
        self._message = bytearray()
        self._size = 0

    # -- Outlet --------------------------------------------------------------------------------

    def begin(self, size: int) -> None:
        self._size = size

    def part(self, piece: bytes | memoryview) -> None:
        self.send(Part(piece))

    def pong(self, payload: bytes) -> None:
        raise AssertionError("nobody pings here")

    def send(self, payload: bytes) -> None:
        if self.is_open:
            self.down.append(payload)
            if not self._is_paused and self.backlog_bytes() > UNSENT_BYTES_MAX:
                self._is_paused = True
                assert self.session is not None
                self.session.paused()

    def backlog_bytes(self) -> int:
        return sum(map(len, self.down))

    def close(self, reason: str) -> None:
        self._closes = True
        self._network.call_in(CLOSE_S, self.cut)

    def abort(self) -> None:
        self.cut()

    # -- the network's side --------------------------------------------------------------------

    def cut(self) -> None:
        """Messages on the way are lost, and both sides learn that the connection is closed."""
        if self.is_open:
            self.is_open = False
            self.up.clear()
            self.down.clear()
            self._network.later(self._ended)

    def _deliver_down(self, payload: bytes) -> None:
        if isinstance(payload, Part):
            self._message += payload
            if len(self._message) < self._size:
                return
            payload, self._message = bytes(self._message), bytearray()
        self._network.count(self._node, payload, is_up=False)
        self._node.received(payload)

    def _go_on_sending(self) -> None:
        if self._is_paused and self.backlog_bytes() <= UNSENT_BYTES_MAX // 4:
            self._is_paused = False
            assert self.session is not None
            self.session.resumed()

    def _ended(self) -> None:
        assert self.session is not None
        self.session.connection_lost()
        self._node.lost(self)

    def deliver(self) -> bool:
        """Hand over one message, the node's first. False if there is none."""
        if not self.is_open:
            return False
        if self.up:
            payload = self.up.popleft()
            self._network.count(self._node, payload, is_up=True)
            assert self.session is not None
            self.session.received(payload)
        elif self.down and not (self._node.is_deaf or self._node.is_frozen):
            self._deliver_down(self.down.popleft())
            self._go_on_sending()
        elif self._closes and not self.down:
            self.cut()
        else:
            return False
        return True


class Node:
    """A node machine, its link, and its news. It connects again unless it is over."""

    def __init__(
        self,
        network: Network,
        info: NodeInfo,
        settings: RunSettings,
        silence_s: float,
        secret: bytes,
        run_id: str = RUN,
        at: Address | None = None,
    ):
        """`at`: where its socket is, as both sides see it. Such a node is a witness."""
        self.machine = m.NodeMachine(
            run_id,
            info,
            settings,
            silence_s=silence_s,
            resume_secret=secret,
            takes_orders=True,
            tells_stacks=True,
            is_witness=at is not None,
        )
        self._at = at
        self.asked_to_leave = ""
        self.link: Link | None = None
        self.rounds: list[tuple[RoundHead, Seat]] = []
        self.changes: list[Change] = []
        self.closed: CloseRecord | None = None
        self.refused: Refusal | None = None
        self.answers: dict[int, StoreResult] = {}
        self.told: list[act.MembersTold | act.WaitingTold] = []
        self.dropped: list[str] = []
        self.is_deaf = False
        """Takes no message, as if the path to it were blocked."""
        self.is_frozen = False
        """Sends nothing either, as if it were stopped."""
        self.reconnects = True
        self.on_action: Callable[[act.Action], None] = lambda action: None
        self._network = network

    @property
    def name(self) -> str:
        return self.machine.info.name

    @property
    def seat(self) -> tuple[int, int, int]:
        """(round, rank, size) of the last round."""
        head, seat = self.rounds[-1]
        return head.number, seat.first_rank, head.size

    def connect(self) -> Node:
        link = Link(self._network, self)
        link.seen = self._at
        self.link = link
        self._network.links.append(link)
        link.session = self._network.coordinator.connected(link)
        self.act(self.machine.connected(self._network.now_s, self._at))
        return self

    def lost(self, link: Link) -> None:
        if link is not self.link:
            return
        self.link = None
        self.machine.disconnected()
        is_wanted = not self.machine.is_over and self.machine.desired is not m.DesiredState.GONE
        if self.reconnects and is_wanted:
            self._network.call_in(RECONNECT_S, self._connect_again)

    def _connect_again(self) -> None:
        if self.link is None:
            self.connect()

    def received(self, payload: bytes) -> None:
        message = wire.decode_from_coordinator(payload)
        self.act(self.machine.received(message, self._network.now_s))

    def act(self, actions: list[Action]) -> None:
        for action in actions:
            self._do(action)
            self.on_action(action)

    def _do(self, action: Action) -> None:
        match action:
            case act.Send(message=message):
                if self.link is not None and self.link.is_open:
                    self.link.up.append(wire.encode(message))
            case act.Drop(reason=reason):
                self.dropped.append(reason)
                if self.link is not None:
                    self.link.cut()
            case act.RoundFormed(head=head, seat=seat):
                self.rounds.append((head, seat))
            case act.RoundEnded(change=change):
                self.changes.append(change)
            case act.RunEnded(close=close):
                self.closed = close
            case act.WasRefused(refusal=refusal):
                self.refused = refusal
            case act.CallAnswered(request_id=request_id, result=result):
                self.answers[request_id] = result
            case act.LeaveWanted(reason=reason):
                self.asked_to_leave = reason
            case act.MembersTold() | act.WaitingTold():
                self.told.append(action)

    # -- what a test asks of it ----------------------------------------------------------------

    def ready(self, port: int = 29500) -> None:
        workers = self.machine.info.workers
        self.act(self.machine.ready(Address(f"{self.name}.example", port), workers))

    def call(self, op: StoreOp, timeout_s: float | None = 60.0) -> int:
        request_id, actions = self.machine.call(op, timeout_s)
        self.act(actions)
        return request_id

    def cut(self) -> None:
        assert self.link is not None
        self.link.cut()


class Network:
    """One coordinator, nodes, the links between them, and the only clock."""

    def __init__(self, config: CoordinatorConfig | None = None, ledger_id: str = "ledger") -> None:
        self.now_s = 0.0
        self.nodes: dict[str, Node] = {}
        self.links: list[Link] = []
        self.commits_by_itself = True
        self.messages = 0
        self.traffic: dict[str, list[tuple[str, int]]] = {}
        """Per node: (kind, bytes) of each message that was delivered to it."""
        self.on_count: Callable[[int, Link | None], None] = lambda count, link: None
        self._soon: deque[Callable[[], None]] = deque()
        self._timed: list[tuple[float, int, Callable[[], None]]] = []
        self._serial = 0
        self.coordinator = self.new_coordinator(config, ledger_id)

    def new_coordinator(self, config: CoordinatorConfig | None, ledger_id: str) -> Coordinator:
        """A coordinator on this network's clock."""
        clock = StallProofClock(lambda: self.now_s)
        ownership = self.new_ownership(ledger_id)
        return CheckedCoordinator(config or CoordinatorConfig(), ownership, clock=clock)

    def new_ownership(self, ledger_id: str) -> MemoryOwnership:
        """Commits are answered when the network goes on, if `commits_by_itself`."""

        def committed(callback: Callable[[], None]) -> None:
            if self.commits_by_itself:
                callback()

        return MemoryOwnership(ledger_id, lambda callback: self.later(partial(committed, callback)))

    def replace_coordinator(self, ledger_id: str) -> None:
        """The process ends, and another takes its place at the same address."""
        for link in self.links:
            link.cut()
        self.settle()
        self.coordinator = self.new_coordinator(None, ledger_id)

    @property
    def run(self) -> HostedRun:
        return self.run_of(RUN)

    def run_of(self, run_id: str) -> HostedRun:
        return self.coordinator.runs[run_id]

    def node(
        self,
        name: str,
        settings: RunSettings | None = None,
        *,
        incarnation: int = 1,
        workers: int = 1,
        silence_s: float = 6.0,
        secret: bytes | None = None,
        run_id: str = RUN,
        at: Address | None = None,
    ) -> Node:
        """A node that has begun to connect. `secret`: instead of its own. `at`: its socket."""
        info = NodeInfo(name, incarnation, f"{name}.example", (), workers)
        own = f"secret of {name}/{incarnation}".encode()
        node = Node(self, info, settings or RunSettings(), silence_s, secret or own, run_id, at)
        self.nodes[f"{name}/{incarnation}{' (a stranger)' if secret else ''}"] = node
        return node.connect()

    # -- time ----------------------------------------------------------------------------------

    def later(self, callback: Callable[[], None]) -> None:
        self._soon.append(callback)

    def call_in(self, delay_s: float, callback: Callable[[], None]) -> None:
        self._serial += 1
        self._timed.append((self.now_s + delay_s, self._serial, callback))
        self._timed.sort()

    def count(self, node: Node, payload: bytes, *, is_up: bool) -> None:
        self.messages += 1
        if not is_up:
            kind = type(wire.decode_from_coordinator(payload)).__name__
            self.traffic.setdefault(node.name, []).append((kind, len(payload)))
        self.on_count(self.messages, node.link)

    def settle(self) -> None:
        """Deliver everything that is under way, at the present moment."""
        is_busy = True
        while is_busy:
            is_busy = False
            while self._soon:
                self._soon.popleft()()
                is_busy = True
            for link in list(self.links):
                is_busy = link.deliver() or is_busy
            self.links = [link for link in self.links if link.is_open]

    def advance(self, duration_s: float) -> None:
        """Let time pass in steps of the coordinator's ticks; timers fire in order."""
        ends_s = self.now_s + duration_s
        self.settle()
        while self.now_s < ends_s:
            self.now_s = min([ends_s, self.now_s + TICK_S, *self._due()])
            self._fire()
            self.settle()

    def jump(self, duration_s: float) -> None:
        """All processes stall, and time passes."""
        self.now_s += duration_s
        self._fire()
        self.settle()

    def until(self, is_so: Callable[[], bool], limit_s: float = 60.0) -> None:
        """Let time pass until something is so. Fails after `limit_s`."""
        ends_s = self.now_s + limit_s
        self.settle()
        while not is_so():
            assert self.now_s < ends_s, f"not so after {limit_s:g} s"
            self.advance(0.01)

    def _due(self) -> list[float]:
        ticks = [n.machine.heartbeats.next_tick_s for n in self.nodes.values() if not n.is_frozen]
        due = [each for each in ticks if each is not None]
        due += [self._timed[0][0]] if self._timed else []
        hub_s = self.coordinator.next_due_s()
        if hub_s is not None:
            due.append(self.now_s + max(0.0, hub_s - self.coordinator.now_s()))
        return [max(each, self.now_s + 1e-6) for each in due]

    def _fire(self) -> None:
        while self._timed and self._timed[0][0] <= self.now_s:
            self._timed.pop(0)[2]()
        self.coordinator.tick()
        for node in list(self.nodes.values()):
            if not node.is_frozen:
                node.act(node.machine.tick(self.now_s))


def newer(message: wire.Message, extra: object) -> bytes:
    """A message's bytes as a later release would send it: with a field more at the end."""
    fields = msgspec.msgpack.decode(wire.encode(message))
    return msgspec.msgpack.encode([*fields, extra])


def stamp(number: int = 0, *, term: int = 1, ledger_id: str = "ledger") -> Stamp:
    return Stamp(ledger_id, term, number)
