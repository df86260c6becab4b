"""The command `rallypoint`, with an event log of its node and its workers. For `bench`.

    python -m rallypoint.cli.logged_agent FILE run ...

It logs the decisions of the node's machine (bench/logged_node.py), and when the agent has stopped a
round's workers. The command does not differ in any other way.
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
    """A class of round workers that log when they have been stopped."""

    class LoggedWork(RoundWorkers):
        async def stop(self, grace_s: float, first_signal: int = signal.SIGTERM) -> tuple[int, ...]:
            left = await super().stop(grace_s, first_signal)
            log.write("stopped", round=self.number)
            return left

    return LoggedWork


if __name__ == "__main__":
    log = EventWriter(sys.argv[1])
    replaced = {"Node": logged(log), "RoundWorkers": logged_work(log)}
    # If the agent used a class of another name, its events would be missing without an error.
    assert replaced.keys() <= vars(agent).keys()
    vars(agent).update(replaced)
    main(sys.argv[2:])
