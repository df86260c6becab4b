"""One node of the fleet: the shipped machine of a node, and what its process goes through."""

from __future__ import annotations

from typing import Final

from rallypoint.client.machine import NodeMachine
from rallypoint.core.values import Address, NodeInfo, RunSettings
from rallypoint.wire import messages as wire

RUN: Final = "run"
BOOTSTRAP: Final = Address("10.0.0.1", 29_500)


class FleetNode:
    """One start of a node on one machine. `connection_id` 0: it has no connection."""

    __slots__ = (
        "connection_id",
        "id",
        "inbox",
        "is_alive",
        "is_departing",
        "is_frozen",
        "is_seeking",
        "machine",
        "ready_after_thaw",
        "silence",
        "slot",
        "stopped_round",
        "was_cut",
    )

    def __init__(
        self, slot: int, start: int, settings: RunSettings, *, nproc: int, stop_s: float,
        silence_s: float, is_elected: bool,
    ) -> None:  # fmt: skip
        host = f"node{slot}"
        # The default name of a node has its process's number: each start has a name of its own.
        name = host if start == 1 else f"{host}-{start}"
        info = NodeInfo(name, start, host, workers=nproc, stop_s=stop_s)
        self.slot = slot
        self.id = info.id
        self.machine = NodeMachine(RUN, info, settings, silence_s=silence_s, is_elected=is_elected)
        self.connection_id = 0
        self.is_alive = True
        self.is_departing = False
        self.is_frozen = False
        self.is_seeking = False
        """Whether it looks for a coordinator."""
        self.inbox: list[wire.FromCoordinator] = []
        """What arrived while it stood still."""
        self.was_cut = False
        """Whether its connection ended while it stood still."""
        self.ready_after_thaw = False
        self.stopped_round = 0
        """The last round whose workers it has begun to stop."""
        self.silence = 0
        """How often it fell silent, so that an older silence is not taken for this one."""
