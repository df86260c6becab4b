"""A coordinator in virtual time, and its connections, which keep what they are sent.

What must not be here: a test.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from rallypoint.clock import StallProofClock
from rallypoint.coordinator.config import CoordinatorConfig
from rallypoint.coordinator.coordinator import Coordinator
from rallypoint.coordinator.memory_ownership import MemoryOwnership
from rallypoint.core.quotas import Account
from rallypoint.core.reasons import Refusal
from rallypoint.core.values import (
    Address,
    ConnectionEnd,
    NodeInfo,
    RunSettings,
    Stamp,
)
from rallypoint.wire import messages as wire
from tests.outlets import WholeMessages

HERE, THERE = Account("t", "10.0.0.1"), Account("t", "10.0.0.2")


class Peer(WholeMessages):
    """A connection, as its outlet, with the messages that it was sent."""

    peer = "10.0.0.1:1"

    def __init__(self, coordinator: OneCoordinator, account: Account) -> None:
        self.account = account
        self.told: list[wire.FromCoordinator] = []
        self.sent_in_parts = 0
        self.is_closed = False
        self.session = coordinator.coordinator.connected(self)

    def send(self, payload: bytes) -> None:
        self.told.append(wire.decode_from_coordinator(payload))

    def part(self, piece: bytes | memoryview) -> None:
        self.sent_in_parts += len(piece)
        super().part(piece)

    def backlog_bytes(self) -> int:
        return 0

    def close(self, reason: str) -> None:
        self.is_closed = True
        self.session.connection_lost()

    def abort(self) -> None:
        self.close("aborted")

    def say(self, message: Any) -> None:
        self.session.received(wire.encode(message))

    def hang_up(self) -> None:
        self.session.connection_lost(ConnectionEnd.UNKNOWN)

    @property
    def is_welcome(self) -> bool:
        return any(isinstance(each, wire.Welcome) for each in self.told)

    @property
    def refusal(self) -> Refusal:
        (refused,) = [each for each in self.told if isinstance(each, wire.Refused)]
        return refused.refusal


class OneCoordinator:
    def __init__(self, **config: Any) -> None:
        self.now_s = 1_000.0
        self._committed: list[Callable[[], None]] = []
        self.coordinator = Coordinator(
            CoordinatorConfig(**config),
            MemoryOwnership("ledger", self._committed.append),
            clock=StallProofClock(lambda: self.now_s),
        )

    def pass_time(self, seconds: float) -> None:
        """In steps that the clock does not take for a stall."""
        end_s = self.now_s + seconds
        while self.now_s < end_s:
            self.now_s = min(end_s, self.now_s + 0.2)
            self.coordinator.tick()
            self.commit()

    def commit(self) -> None:
        while self._committed:
            self._committed.pop()()

    def attach(
        self, run_id: str, name: str = "n", account: Account = HERE, **settings: Any
    ) -> Peer:
        self.now_s += 1e-6
        peer = Peer(self, account)
        chosen = RunSettings(**{"suspect_after_s": 1e7, "lost_after_s": 2e7, **settings})
        peer.say(wire.Attach(Stamp(), wire.VERSION, run_id, NodeInfo(name, 1, "h"), chosen))
        return peer

    def with_round(self, run_id: str, account: Account = HERE) -> Peer:
        peer = self.attach(run_id, account=account)
        peer.say(wire.Ready(Stamp(), 0, Address("127.0.0.1", 1), 1, None))
        self.commit()
        assert any(isinstance(each, wire.Formed) for each in peer.told)
        return peer
