"""How long programs take to meet if all call `rallypoint.join()` at one moment.

No coordinator runs yet: at a HOST:PORT endpoint, one of the programs becomes its host. Each repeat
has new processes, which have only done their imports. `bench meet` measures a coordinator with many
virtual nodes; this scenario measures how long a program waits.
"""

from __future__ import annotations

import secrets
import time
from typing import Final

import msgspec

from rallypoint.bench.driver import Plan, Process
from rallypoint.bench.figure import Figure, Target
from rallypoint.bench.joining import Met
from rallypoint.bench.processes import clean_environment, spread
from rallypoint.net import free_port

START_AFTER_S: Final = 0.1
"""The seconds between the last process's message that it is ready and the moment at which all call.
"""
TARGETS_MS: Final = {2: 50.0, 64: 500.0}
"""The targets, each up to a number of nodes. There is no target for more than the largest."""


def measure(plan: Plan, nodes: int) -> list[Figure]:
    """Meetings of this many nodes, which are threads of `plan.processes` processes."""
    shares = spread(nodes, plan.processes)
    met_s = tuple(_once(nodes, shares) for _ in range(plan.repeats))
    at_most_ms = next((ms for most, ms in TARGETS_MS.items() if nodes <= most), None)
    return [
        Figure(
            scenario="join",
            name="cold",
            nodes=nodes,
            unit="ms",
            values=tuple(1e3 * each for each in met_s),
            about="from the first call of rallypoint.join() to the last return of next_world(), "
            f"in {len(shares)} process(es) with a thread for each node; one of them becomes the "
            "host",
            target=None if at_most_ms is None else Target(at_most_ms),
        )
    ]


def _once(nodes: int, shares: list[int]) -> float:
    """Seconds from the first call to the last answer."""
    port, token = free_port(), secrets.token_urlsafe(32)
    processes: list[Process] = []
    try:
        for count in shares:
            arguments = ("-m", "rallypoint.bench.joining", str(count), str(nodes), str(port))
            own = clean_environment(RALLYPOINT_TOKEN=token)
            processes.append(Process(arguments, env=own))
        for each in processes:
            each.line("a program", "its imports")
        start_s = time.monotonic() + START_AFTER_S
        for each in processes:
            each.stdin.write(f"{start_s}\n".encode())
            each.stdin.flush()
        lines = [each.line("a program", "its round") for each in processes]
    finally:
        for each in processes:
            each.kill()  # Without goodbyes, which are not measured.
        for each in processes:
            each.end()
    met = [msgspec.json.decode(line, type=Met) for line in lines]
    return max(each.met_s for each in met) - min(each.called_s for each in met)
