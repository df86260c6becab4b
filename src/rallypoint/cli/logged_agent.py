"""The command `rallypoint`, with an event log of its node and its workers. For `bench`.

    python -m rallypoint.cli.logged_agent FILE run ...

It logs the decisions of the node's machine (bench/logged_node.py), when the agent has stopped a
round's workers, and when its preloader is ready. The command does not differ in any other way.
"""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable, Sequence

from rallypoint.bench.event_log import EventWriter
from rallypoint.bench.logged_node import logged
from rallypoint.cli.main import main
from rallypoint.launch import agent
from rallypoint.launch.agent_events import PreloadEvent, PreloadReady
from rallypoint.launch.preloader import PreloadPlan
from rallypoint.launch.round_workers import RoundWorkers
from rallypoint.launch.system import LocalSystem, WarmForks


def logged_work(log: EventWriter) -> type[RoundWorkers]:
    """A class of round workers that log when they have been stopped."""

    class LoggedWork(RoundWorkers):
        async def stop(
            self,
            grace_s: float,
            first_signal: int = signal.SIGTERM,
            ending: Sequence[int] = (),
            kept: Sequence[int] = (),
        ) -> tuple[int, ...]:
            left = await super().stop(grace_s, first_signal, ending, kept)
            log.write("stopped", round=self.number)
            return left

    return LoggedWork


def logged_system(log: EventWriter) -> type[LocalSystem]:
    """A system whose preloader logs when it is ready."""

    class LoggedSystem(LocalSystem):
        def preloader(
            self,
            plan: PreloadPlan,
            tell: Callable[[PreloadEvent], None],
            said: Callable[[str], None],
        ) -> WarmForks:
            def told(event: PreloadEvent) -> None:
                if isinstance(event, PreloadReady):
                    log.write("preloaded")
                tell(event)

            return super().preloader(plan, told, said)

    return LoggedSystem


if __name__ == "__main__":
    log = EventWriter(sys.argv[1])
    replaced = {
        "Node": logged(log),
        "RoundWorkers": logged_work(log),
        "LocalSystem": logged_system(log),
    }
    # If the agent used a class of another name, its events would be missing without an error.
    assert replaced.keys() <= vars(agent).keys()
    vars(agent).update(replaced)
    main(sys.argv[2:])
