"""The phases of an agent, and what it waits for in each. machine.py decides which comes next."""

from __future__ import annotations

import enum
from typing import Final


class Phase(enum.StrEnum):
    """What the agent waits for."""

    NEW = "new"
    PREPARING = "preparing"
    JOINING = "joining"
    CHECKING = "checking"
    """Whether this node is fit for the next round."""
    GATHERING = "gathering"
    STARTING = "starting"
    WORKING = "working"
    EXPLAINING = "explaining"
    """Workers have failed, and their last lines are read."""
    UNWINDING = "unwinding"
    """The round has ended, and the workers may ask for the next world."""
    STOPPING = "stopping"
    CLOSING = "closing"
    """The run has succeeded, and the workers may end by themselves for a moment."""
    FINISHED = "finished"
    """All workers have finished, and other nodes still work."""
    ENDING = "ending"
    """The end is decided. The agent releases what it has."""
    LEAVING = "leaving"
    ENDED = "ended"


WAITS_FOR: Final = {
    Phase.NEW: "its start",
    Phase.PREPARING: "a file system",
    Phase.JOINING: "a coordinator",
    Phase.CHECKING: "its check",
    Phase.GATHERING: "the next round",
    Phase.STARTING: "the start of its workers",
    Phase.WORKING: "the end of its workers or of the round",
    Phase.EXPLAINING: "the last lines of its failed workers",
    Phase.UNWINDING: "its workers to ask for the next world",
    Phase.STOPPING: "its workers to stop",
    Phase.CLOSING: "its workers to end by themselves",
    Phase.FINISHED: "the other nodes to finish",
    Phase.ENDING: "its workers and its local socket to end",
    Phase.LEAVING: "the coordinator, or the nodes that need the one hosted here",
    Phase.ENDED: "",
}
"""What an agent waits for in each phase. It waits for nothing at its end."""
