"""The floor: bare asyncio sockets, with a message of 120 and one of 200 bytes for each."""

from __future__ import annotations

from typing import Final

from benchmarks.peers import common
from rallypoint._version import __version__
from rallypoint.bench import driver

COLD_MAX: Final = 3


def meet(nodes: int, repeats: int) -> common.Measured:
    """The floor of `rallypoint bench`: its server in one process, all clients in another."""
    wanted = {"cold": min(repeats, COLD_MAX), "warm": repeats}
    found = common.Measured(f"rallypoint {__version__}", "sockets of one process", wanted)
    driver.check_descriptors(nodes)
    for repeat in range(wanted["cold"]):
        with driver.floor(nodes) as (server, fleet, answer):
            found.event_loop = common.event_loop(server.pid, fleet.process.pid)
            found.add("cold", driver.span([answer], "formed_s"))
            fleet.ask("settle")
            for _ in range(repeats if repeat == 0 else 0):
                before_s = common.cpu_s(server.pid)
                found.add("warm", driver.span([fleet.ask("floor_meet")], "formed_s"))
                found.add("server_cpu", common.cpu_s(server.pid) - before_s)
    return found


if __name__ == "__main__":
    common.main(meet)
