"""What a part of the seeds has besides what its plan draws, whatever the world is about.

Each is a small function of a plan and a Random of its own, so that the other seeds stay as they
are. To add one: write it, and put it into `VARIANTS`.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Final

import msgspec

from rallypoint.simulation.hanging import hanging
from rallypoint.simulation.plan import ISOLATED, Plan, PlannedFault, in_order

IDLE_PART: Final = 0.4
"""In which part of the worlds with a proxy it ends connections without messages."""

UNNAMED_PART: Final = 0.05
"""In which part of the others nodes make their names, besides the worlds of containers."""

FILES_PART: Final = 0.13
"""In which part of the worlds over etcd, without a situation, the ledger is in files instead."""
DISK_PART: Final = 0.7
"""In which part of the worlds over files the disk has faults of its own."""

BLIPS_PART: Final = 0.08
"""In which part of the worlds the owner is cut off, and nodes have a short trouble meanwhile."""
BLIPS: Final = ("cut", "flicker", "stutter", "freeze", "isolate")

OLDER_PART: Final = 0.06
"""In which part of the seeds some processes are of an older release."""

PRELOAD_PART: Final = 0.1
"""In which part of the seeds with agents some of them fork their workers from a preloader."""


def varied(seed: int, plan: Plan) -> Plan:
    """The plan of this seed, with what the seed draws besides."""
    for name, vary in VARIANTS.items():
        plan = vary(plan, random.Random(f"{seed}/{name}"))
    return plan.sound()


def _idle_proxy(plan: Plan, draw: random.Random) -> Plan:
    if not plan.has_proxy or draw.random() >= IDLE_PART:
        return plan
    return msgspec.structs.replace(plan, proxy_idle_s=draw.choice((0.5, 1.0, 1.5, 3.0, 5.0)))


def _unnamed(plan: Plan, draw: random.Random) -> Plan:
    if draw.random() >= UNNAMED_PART and not plan.is_container:
        return plan
    return msgspec.structs.replace(plan, has_unnamed=True, same_pids=draw.random() < 0.5)


def _files(plan: Plan, draw: random.Random) -> Plan:
    is_plain = not (plan.situation or plan.is_store or plan.is_container)
    if plan.ledger == "etcd" and is_plain and draw.random() < FILES_PART:
        plan = msgspec.structs.replace(plan, ledger=draw.choice(("file", "file", "file-local")))
    if plan.ledger == "etcd" or draw.random() >= DISK_PART:
        return plan
    ends_s = max((each.at_s for each in plan.faults), default=10.0)
    # Some begin just when the ledger is written to.
    moments = ("", "", "COMMITTING", "COMMITTING", "CLAIMED", "GATHERING")
    faults = [
        PlannedFault(
            round(draw.uniform(0.5, max(8.0, ends_s)), 3),
            "disk",
            draw.getrandbits(32),
            draw.choice(moments),
        )
        for _ in range(draw.choice((2, 3)))
    ]
    return msgspec.structs.replace(plan, faults=in_order((*plan.faults, *faults)))


def _blips(plan: Plan, draw: random.Random) -> Plan:
    if plan.situation or plan.is_store or plan.lasting == ISOLATED or draw.random() >= BLIPS_PART:
        return plan
    ends_s = max((each.at_s for each in plan.faults), default=10.0)
    at_s = round(draw.uniform(3.0, max(6.0, ends_s)), 3)
    ttl_s = min(plan.lease_ttl_s, 5.0)
    faults = [PlannedFault(at_s, "owner cut off", draw.getrandbits(32))]
    for _ in range(draw.choice((1, 2, 3))):
        kind = draw.choice(BLIPS)
        faults.append(PlannedFault(at_s, kind, draw.getrandbits(32), "SUSPENDED"))
    # It keeps the peace away for so long.
    faults.append(PlannedFault(round(at_s + ttl_s + 6.0, 3), "cut", 1))
    faults += plan.faults
    return msgspec.structs.replace(plan, lease_ttl_s=ttl_s, faults=in_order(faults))


def _older(plan: Plan, draw: random.Random) -> Plan:
    return msgspec.structs.replace(plan, has_older=draw.random() < OLDER_PART)


def _preloads(plan: Plan, draw: random.Random) -> Plan:
    if plan.program != "agent" or draw.random() >= PRELOAD_PART:
        return plan
    return msgspec.structs.replace(plan, preloads=True)


VARIANTS: Final[dict[str, Callable[[Plan, random.Random], Plan]]] = {
    "idle proxy": _idle_proxy,
    "unnamed": _unnamed,
    "files": _files,
    "blips": _blips,
    "older": _older,
    "preloads": _preloads,
    "hanging": hanging,
}
