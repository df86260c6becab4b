"""The worlds that are explored, by name."""

from __future__ import annotations

from typing import Final

from rallypoint.simulation.model.limits import Limits

WORLDS: Final[dict[str, Limits]] = {
    # Small: each is explored whole in seconds.
    "two": Limits(nodes=2, coordinators=1, rounds=1),
    "again": Limits(nodes=2, coordinators=1, rounds=2, ready_again=1, successes=False),
    "crash": Limits(nodes=2, rounds=1, crashes=1),
    "close": Limits(nodes=2, rounds=1, closes=1, crashes=1, successes=False),
    "embedded": Limits(nodes=2, rounds=1, min_nodes=1, deaths=1, successes=False, is_embedded=True),
    "death": Limits(nodes=2, coordinators=1, rounds=2, min_nodes=1, deaths=1, successes=False),
    "three": Limits(coordinators=1, deaths=1, successes=False, begins_in_round=True),
    "restart": Limits(
        nodes=2, coordinators=1, rounds=1, min_nodes=1, deaths=1, restarts=1, successes=False
    ),
    "cut": Limits(nodes=2, coordinators=1, rounds=1, cuts=1, successes=False),
    "fail": Limits(nodes=2, coordinators=1, rounds=2, failures=1, successes=False),
    "depart": Limits(nodes=2, coordinators=1, rounds=1, min_nodes=1, departures=1),
    "leave": Limits(nodes=2, coordinators=1, rounds=1, min_nodes=1, leaves=1),
    "drain": Limits(
        nodes=2,
        coordinators=1,
        rounds=1,
        min_nodes=1,
        drains=1,
        steps=2,
        successes=False,
        begins_in_round=True,
    ),
    "limit": Limits(nodes=2, coordinators=1, rounds=1, refused_writes=1, deaths=1, min_nodes=1),
    "standby": Limits(nodes=3, coordinators=1, rounds=1, max_nodes=2, deaths=1, successes=False),
    # Medium: some ten thousand states of each.
    "lease": Limits(nodes=2, rounds=1, lost_leases=1, successes=False),
    "freeze": Limits(nodes=2, rounds=1, freezes=1, successes=False),
    "budget": Limits(
        nodes=2,
        rounds=1,
        failures=1,
        crashes=1,
        max_restarts=0,
        successes=False,
        begins_in_round=True,
    ),
    "charge": Limits(nodes=2, failures=1, crashes=1, successes=False, begins_in_round=True),
    "silence": Limits(
        nodes=2,
        coordinators=1,
        rounds=1,
        silences=1,
        failures=1,
        successes=False,
        begins_in_round=True,
    ),
    "rack": Limits(rounds=1, crashes=1, deaths=1, successes=False, begins_in_round=True),
    "drained": Limits(
        nodes=2, rounds=1, drains=1, steps=2, crashes=1, successes=False, begins_in_round=True
    ),
    # Large: by breadth, as far as the time goes.
    "whole": Limits(
        begins_in_round=True,
        slots_per_node=3,
        cuts=1,
        silences=1,
        deaths=1,
        restarts=1,
        crashes=1,
        freezes=1,
        lost_leases=1,
        refused_writes=1,
        failures=1,
        ready_again=1,
        departures=1,
        leaves=1,
        closes=1,
    ),
    "takeovers": Limits(begins_in_round=True, crashes=1, lost_leases=1, deaths=1, departures=1),
    "drains": Limits(begins_in_round=True, drains=1, steps=2, crashes=1, lost_leases=1, deaths=1),
    "standbys": Limits(begins_in_round=True, max_nodes=2, crashes=1, deaths=1, cuts=1),
}
LARGE: Final = ("whole", "takeovers", "drains", "standbys")
MEDIUM: Final = ("lease", "freeze", "budget", "charge", "silence", "rack", "drained")
SMALL: Final = tuple(name for name in WORLDS if name not in (*LARGE, *MEDIUM))
