"""`rallypoint`, as it is, but that it writes down when its node was told what: for `bench`.

    python -m rallypoint.cli.logged_agent FILE run ...

Beside what the node's machine decides (bench/logged_node.py) it notes when the agent has stopped a
round's workers. Nothing else of the command differs.
"""

from __future__ import annotations

import signal
import sys

from rallypoint.bench.event_log import EventWriter
from rallypoint.bench.logged_node import logged
from rallypoint.cli.main import main
from rallypoint.launch import agent
from rallypoint.launch.round_workers import RoundWorkers


def logged_work(log: EventWriter) -> type[RoundWorkers]:
    """A class of work that writes down when it has been stopped."""

    class LoggedWork(RoundWorkers):
        async def stop(self, grace_s: float, first_signal: int = signal.SIGTERM) -> tuple[int, ...]:
            left = await super().stop(grace_s, first_signal)
            log.write("stopped", round=self.number)
            return left

    return LoggedWork


if __name__ == "__main__":
    log = EventWriter(sys.argv[1])
    replaced = {"Node": logged(log), "RoundWorkers": logged_work(log)}
    # A class that the agent imports under another name would be measured as never doing anything.
    assert replaced.keys() <= vars(agent).keys()
    vars(agent).update(replaced)
    main(sys.argv[2:])
