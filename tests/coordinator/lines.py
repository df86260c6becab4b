"""The connection of a node, driven by a test: its messages in both directions."""

from __future__ import annotations

import asyncio

from rallypoint.coordinator.coordinator import Coordinator
from rallypoint.core.reasons import Refusal
from rallypoint.core.store import StoreOp, StoreResult
from rallypoint.core.values import Address, Change, EndedOwner, NodeInfo, RunSettings, Stamp
from rallypoint.wire import messages as wire
from tests.coordinator.shared_ledger import until
from tests.outlets import WholeMessages

ALONE = RunSettings(min_nodes=1, max_nodes=1, last_call_s=0.1)


class Line(WholeMessages):
    """A node's connection. With `redials`, it attaches again whenever it is closed."""

    peer = "127.0.0.1"

    def __init__(
        self,
        coordinator: Coordinator,
        run_id: str = "run",
        *,
        name: str = "a",
        redials: bool = False,
        reads_ledger: bool = True,
        incarnation: int = 1,
        settings: RunSettings = ALONE,
        ended: EndedOwner | None = None,
    ) -> None:
        self.said: list[wire.FromCoordinator] = []
        self._coordinator, self._run_id, self._redials = coordinator, run_id, redials
        self._info = NodeInfo(name, incarnation, f"host-{name}")
        self._settings = settings
        self._ended = ended
        self._reads_ledger = reads_ledger
        self._dial()

    def _dial(self) -> None:
        self._session = self._coordinator.connected(self)
        self.say(
            wire.Attach(
                Stamp("", 0, 0),
                wire.VERSION,
                self._run_id,
                self._info,
                self._settings,
                reads_ledger=self._reads_ledger,
                ended=self._ended,
            )
        )

    def say(self, message: wire.FromNode) -> None:
        self._session.received(wire.encode(message))

    def hang_up(self) -> None:
        """The connection ends, and the coordinator has not closed it."""
        self._session.connection_lost()

    # -- Outlet --------------------------------------------------------------------------------

    def send(self, payload: bytes) -> None:
        self.said.append(wire.decode_from_coordinator(payload))

    def backlog_bytes(self) -> int:
        return 0

    def close(self, reason: str) -> None:
        session, loop = self._session, asyncio.get_running_loop()
        loop.call_later(0.01, session.connection_lost)
        if self._redials:
            loop.call_later(0.05, self._dial)

    def abort(self) -> None:
        self.close("aborted")

    # -- what a test asks of it ----------------------------------------------------------------

    @property
    def stamp(self) -> Stamp:
        return self.said[-1].stamp

    def count(self, kind: type[wire.Message]) -> int:
        return sum(isinstance(each, kind) for each in self.said)

    def refusals(self) -> list[Refusal]:
        return [each.refusal for each in self.said if isinstance(each, wire.Refused)]

    def broken(self) -> list[Change]:
        return [each.change for each in self.said if isinstance(each, wire.Broken)]

    async def formed(self) -> None:
        """Be welcome, and in a round."""
        await until(lambda: self.count(wire.Welcome) > 0)
        self.say(wire.Ready(self.stamp, 0, Address("127.0.0.1", 1), 1))
        await until(lambda: self.count(wire.Formed) > 0)

    async def answer_to(self, request_id: int, op: StoreOp) -> StoreResult:
        """Call the store, and wait for the answer."""
        self.say(wire.StoreCall(self.stamp, request_id, op))

        def answers() -> list[StoreResult]:
            told = (each for each in self.said if isinstance(each, wire.StoreAnswer))
            return [each.result for each in told if each.request_id == request_id]

        await until(lambda: bool(answers()))
        return answers()[0]
