"""Many nodes over one connection: the protocol allows a relay.

A relay would sit near its nodes and carry all of them over one connection to the coordinator, as
the inner nodes of PMIx's radix tree do (docs/scale.md). There is none in this release; this is what
one would have to be, in the least form: a frame is a message with the number of its node's channel
before it. The relay reads no message, so it needs no part of the protocol, and whatever holds for a
node on a connection of its own has to hold for one behind it.
"""

from __future__ import annotations

import struct
from collections import deque
from collections.abc import Callable

from rallypoint.client import actions as act
from rallypoint.client import machine as m
from rallypoint.clock import StallProofClock
from rallypoint.coordinator.config import CoordinatorConfig
from rallypoint.coordinator.coordinator import Coordinator
from rallypoint.coordinator.memory_ownership import MemoryOwnership
from rallypoint.coordinator.session import Session
from rallypoint.core.store import Add, StoreResult, StoreValue
from rallypoint.core.values import (
    Address,
    Change,
    ChangeKind,
    NodeInfo,
    Reachability,
    RoundHead,
    RunSettings,
    Seat,
)
from rallypoint.wire import messages as wire
from tests.outlets import WholeMessages

RUN = "run"
CHANNEL = struct.Struct("!I")
CUT = 0
"""The channel on which either end says, by its number, that a node's channel is closed."""


class Cable:
    """The one connection: frames under way in each direction, in order."""

    def __init__(self) -> None:
        self.up: deque[bytes] = deque()
        self.down: deque[bytes] = deque()
        self.frames = 0


def frame(channel: int, payload: bytes) -> bytes:
    return CHANNEL.pack(channel) + payload


def unframe(data: bytes) -> tuple[int, bytes]:
    return CHANNEL.unpack_from(data)[0], data[CHANNEL.size :]


# -- the coordinator's end -------------------------------------------------------------------------


class ChannelOutlet(WholeMessages):
    """What one node's session sees of the cable: an Outlet like any other."""

    def __init__(self, end: CoordinatorsEnd, channel: int) -> None:
        self.peer = f"relay, channel {channel}"
        self.channel = channel
        self._end = end

    def send(self, payload: bytes) -> None:
        self._end.cable.down.append(frame(self.channel, payload))

    def backlog_bytes(self) -> int:
        """This channel's own: one node that does not read must not cost the others theirs."""
        frames = map(unframe, self._end.cable.down)
        return sum(len(payload) for channel, payload in frames if channel == self.channel)

    def close(self, reason: str) -> None:
        self._end.cable.down.append(frame(CUT, CHANNEL.pack(self.channel)))

    def abort(self) -> None:
        self.close("aborted")


class CoordinatorsEnd:
    """Makes one session of the coordinator for each channel of one cable."""

    def __init__(self, coordinator: Coordinator, cable: Cable) -> None:
        self.cable = cable
        self.sessions: dict[int, Session] = {}
        self._coordinator = coordinator

    def take(self, data: bytes) -> None:
        channel, payload = unframe(data)
        if channel == CUT:
            (closed,) = CHANNEL.unpack(payload)
            session = self.sessions.pop(closed, None)
            if session is not None:
                session.connection_lost()
            return
        if channel not in self.sessions:
            self.sessions[channel] = self._coordinator.connected(ChannelOutlet(self, channel))
        self.sessions[channel].received(payload)

    def lost(self) -> None:
        """The cable is cut, and with it the connection of every node behind it."""
        sessions, self.sessions = self.sessions, {}
        for session in sessions.values():
            session.connection_lost()


# -- the relay, and nodes behind it ----------------------------------------------------------------


class Behind:
    """A shipped node machine, whose connection ends in a relay."""

    def __init__(self, relay: Relay, name: str, settings: RunSettings) -> None:
        info = NodeInfo(name, 1, f"{name}.example")
        self.machine = m.NodeMachine(RUN, info, settings, silence_s=6.0)
        self.rounds: list[tuple[RoundHead, Seat]] = []
        self.changes: list[Change] = []
        self.answers: dict[int, StoreResult] = {}
        self.members: act.MembersTold | None = None
        self.stamps: list[int] = []
        self.channel = 0
        self._relay = relay

    def received(self, payload: bytes) -> None:
        message = wire.decode_from_coordinator(payload)
        self.stamps.append(message.stamp.round)
        self.act(self.machine.received(message, self._relay.now_s))

    def act(self, actions: list[act.Action]) -> None:
        for action in actions:
            match action:
                case act.Send(message=message):
                    self._relay.up(self, wire.encode(message))
                case act.RoundFormed(head=head, seat=seat):
                    self.rounds.append((head, seat))
                case act.RoundEnded(change=change):
                    self.changes.append(change)
                case act.CallAnswered(request_id=request_id, result=result):
                    self.answers[request_id] = result
                case act.MembersTold():
                    self.members = action

    def ready(self) -> None:
        self.act(self.machine.ready(Address(f"{self.machine.info.name}.example", 29500), 1))

    def add(self) -> int:
        request_id, actions = self.machine.call(Add("n", 1), 60.0)
        self.act(actions)
        return request_id


class Relay:
    """One cable to a coordinator, a channel for each node, and a clock. It reads no message."""

    def __init__(self) -> None:
        self.now_s = 0.0
        self._later: list[Callable[[], None]] = []
        self.coordinator = Coordinator(
            CoordinatorConfig(),
            MemoryOwnership("ledger", lambda callback: self._later.append(callback)),
            clock=StallProofClock(lambda: self.now_s),
        )
        self.cables = 0
        self.nodes: dict[int, Behind] = {}
        self.deaf: set[int] = set()
        self._channels = 0
        self.connect()

    def connect(self) -> None:
        """A cable, the first or another one."""
        self.cables += 1
        self.cable = Cable()
        self.end = CoordinatorsEnd(self.coordinator, self.cable)

    def attach(self, node: Behind) -> None:
        """A node's connection, as the relay took it: a channel of its own."""
        self._channels += 1
        node.channel = self._channels
        self.nodes[node.channel] = node
        node.act(node.machine.connected(self.now_s))

    def hang_up(self, node: Behind) -> None:
        """A node's connection to the relay is closed."""
        del self.nodes[node.channel]
        node.machine.disconnected()
        self.cable.up.append(frame(CUT, CHANNEL.pack(node.channel)))

    def cut(self) -> None:
        """The cable is cut: what is under way is lost; the relay has a new one, as have all."""
        self.end.lost()
        nodes, self.nodes = list(self.nodes.values()), {}
        self.connect()
        for node in nodes:
            node.machine.disconnected()
            self.attach(node)

    def up(self, node: Behind, payload: bytes) -> None:
        self.cable.up.append(frame(node.channel, payload))

    def settle(self) -> None:
        """Deliver all that is under way."""
        while self.cable.up or self.cable.down or self._later:
            later, self._later = self._later, []
            for callback in later:
                callback()
            if self.cable.up:
                self.cable.frames += 1
                self.end.take(self.cable.up.popleft())
            elif self.cable.down:
                self.cable.frames += 1
                channel, payload = unframe(self.cable.down.popleft())
                node = self.nodes.get(channel)
                if node is not None and channel not in self.deaf:
                    node.received(payload)

    def advance(self, seconds: float) -> None:
        """Let time pass, with the nodes' heartbeats and the coordinator's timers."""
        ends_s = self.now_s + seconds
        while self.now_s < ends_s:
            self.now_s += 0.01
            for node in list(self.nodes.values()):
                node.act(node.machine.tick(self.now_s))
            self.coordinator.tick()
            self.settle()


def met(count: int, **more: float) -> tuple[Relay, list[Behind]]:
    """So many nodes behind one relay, in their first round."""
    relay = Relay()
    settings = RunSettings(min_nodes=2, max_nodes=count, max_restarts=None, **more)  # type: ignore[arg-type]
    nodes = [Behind(relay, f"n{i}", settings) for i in range(count)]
    for node in nodes:
        relay.attach(node)
        node.ready()
    relay.settle()
    assert all(len(node.rounds) == 1 for node in nodes)
    return relay, nodes


def test_a_thousand_nodes_meet_over_one_connection() -> None:
    relay, nodes = met(1_000)
    assert relay.cables == 1
    assert len(relay.coordinator.sessions) == 1_000
    assert sorted(node.rounds[0][1].node_rank for node in nodes) == list(range(1_000))
    assert len({node.rounds[0][0].digest for node in nodes}) == 1  # R2
    assert relay.cable.frames == 4 * 1_000  # attach, ready, welcome, formed


def test_every_message_carries_its_stamp_through_the_relay() -> None:
    relay, nodes = met(3)
    for node in nodes:
        node.ready()
    relay.settle()
    assert [node.stamps for node in nodes] == [[0, 1, 1, 2]] * 3
    assert [node.machine.stamp.round for node in nodes] == [2, 2, 2]


def test_addresses_are_those_of_nodes_not_of_the_relay() -> None:
    relay, nodes = met(3)
    assert nodes[2].rounds[0][0].bootstrap == Address("n0.example", 29500)
    nodes[0].act(nodes[0].machine.ask_members()[1])
    relay.settle()
    assert nodes[0].members is not None
    assert [row.host for row in nodes[0].members.members] == [f"n{i}.example" for i in range(3)]


def test_one_lost_node_behind_the_relay_does_not_affect_the_others() -> None:
    relay, nodes = met(8)
    *others, gone = nodes
    relay.hang_up(gone)
    relay.advance(6.0)  # reconnect_grace_s is 5 s
    for node in others:
        assert node.changes[-1].kind is ChangeKind.NODE_LOST
        assert node.changes[-1].nodes == ("n7",)
    assert len(relay.coordinator.sessions) == 7


def test_a_silent_node_behind_the_relay_is_no_reason_to_suspect_the_others() -> None:
    relay, nodes = met(8)
    del relay.nodes[nodes[3].channel]  # It sends nothing more, and its channel stays open.
    relay.advance(8.0)  # suspect_after_s is 5 s
    found = relay.coordinator.runs[RUN].membership.roster
    suspects = [each.info.name for each in found if each.reachability is not Reachability.CONNECTED]
    assert suspects == ["n3"]


def test_a_cut_connection_of_the_relay_loses_no_node() -> None:
    """All connections close at once: while many are missing together, no member is judged."""
    relay, nodes = met(50)
    relay.cut()
    relay.advance(3.0)
    assert relay.cables == 2
    assert not any(node.changes for node in nodes)
    assert all(node.machine.is_attached for node in nodes)


def test_a_call_during_the_cut_is_applied_once() -> None:
    relay, nodes = met(4)
    relay.deaf.update(node.channel for node in nodes)  # the answers are lost with the cable
    first = [node.add() for node in nodes]
    relay.settle()
    relay.deaf.clear()
    relay.cut()
    relay.settle()
    again = [node.add() for node in nodes]
    relay.settle()
    answered = [n.answers[r] for n, r in zip(nodes * 2, first + again, strict=True)]
    values = {a.value for a in answered if isinstance(a, StoreValue)}
    assert (len(answered), values) == (8, set(range(1, 9)))  # R11


def test_a_node_that_resumes_on_another_channel_keeps_its_place() -> None:
    relay, nodes = met(3)
    resumed = nodes[1]
    old = resumed.channel
    relay.attach(resumed)  # on another channel, while the first one is still open
    relay.settle()
    assert resumed.channel != old
    assert [node.machine.is_attached for node in nodes] == [True, True, True]
    assert not any(node.changes for node in nodes)
