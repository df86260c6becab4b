"""Sizes of the shipped code that are made small in some jobs, so that what is rare happens often.

A log is compacted after 500 records, and a table is split at 512 rows: no short job comes so far.
FoundationDB's simulator draws its knobs likewise. Each is a constant that no user can set, and any
value of it must keep every rule.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, Final

import msgspec

from rallypoint.coordinator import garbage_collector, log_reader, run_ownership, store_log
from rallypoint.coordinator.garbage_collector import Keeping
from rallypoint.core import tables
from rallypoint.core.store import store
from rallypoint.ledger.contract import LedgerLimits
from rallypoint.ledger.etcd import ledger as etcd_ledger
from rallypoint.ledger.etcd.ledger import EtcdLedger

KNOBS: Final[tuple[tuple[Any, str, tuple[Any, ...]], ...]] = (
    (store_log, "COMPACT_RECORDS", (4, 20)),
    (store_log, "PART_BYTES_MAX", (128, 1024)),
    (log_reader, "PAGE_RECORDS", (1, 3)),
    (tables, "CHUNK_BYTES", (1, 200)),
    (tables, "INLINE_BYTES_MAX", (0,)),
    (garbage_collector, "Keeping", (partial(Keeping, lease_s=15.0, open_run_s=60.0),)),
    (garbage_collector, "ELECTED_LOOK_S", (5.0, 20.0)),
    (garbage_collector, "ELECTED_SAMPLE", (1, 2)),
    (store, "REMEMBERED_READ_BYTES_MAX", (0,)),
    (etcd_ledger, "_PAGE", (1, 3)),
    (garbage_collector, "Keeping", (partial(Keeping, lease_s=3.0, open_run_s=60.0),)),
    (garbage_collector, "LOOK_S", (2.0,)),
)
"""Where a constant is, its name, and small values for it."""


def _limits(record_bytes_max: int) -> LedgerLimits:
    known = EtcdLedger.limits
    return msgspec.structs.replace(known, record_bytes_max=record_bytes_max)


RARE: Final = 0.15
"""How often each of RARE_KNOBS is turned in a job with knobs."""
RARE_KNOBS: Final[tuple[tuple[Any, str, tuple[Any, ...]], ...]] = (
    # Some answers of one barrier need two records, and some calls are too large for any.
    (EtcdLedger, "limits", (_limits(1_200), _limits(4_000))),
)
"""Others, which draw with a chance of their own."""

_TICK: Final = (run_ownership, "LONGEST_TICK_S")
_QUIET_TICK_S: Final = 1.0
_TICK_S: Final = run_ownership.LONGEST_TICK_S


def tick(*, is_quiet: bool) -> None:
    """Let owners look at their leases rarely while nothing happens for hours. `turned` ends it."""
    setattr(*_TICK, _QUIET_TICK_S if is_quiet else _TICK_S)


@contextmanager
def turned(seed: int | None) -> Iterator[None]:
    """While this is open, each knob has a value that the seed draws, mostly its own. None: all."""
    names = [*((module, name) for module, name, _ in (*KNOBS, *RARE_KNOBS)), _TICK]
    before = [(module, name, getattr(module, name)) for module, name in names]
    rare = random.Random(f"{seed}/rare knobs")
    draw = random.Random(f"{seed}/knobs")
    try:
        for module, name, values in KNOBS:
            if seed is not None and draw.random() < 0.5:
                setattr(module, name, draw.choice(values))
        for module, name, values in RARE_KNOBS:
            if seed is not None and rare.random() < RARE:
                setattr(module, name, rare.choice(values))
        yield
    finally:
        for module, name, value in before:
            setattr(module, name, value)
