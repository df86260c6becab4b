"""Keeps the events of a coordinator's runs in memory, bounded, and tells who waits for them.

In a run of more than 100 nodes, events of single nodes are collected for up to a second, and become
one event with their number. So a thousand nodes that attach are a few events.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Iterator
from itertools import chain, islice
from typing import Any, Final

from rallypoint import runtime
from rallypoint.coordinator.past_events import PastEvent
from rallypoint.coordinator.run_events import TEXT_MAX, EventKind, RunEvent
from rallypoint.core.election import RunState
from rallypoint.core.printable import shortened
from rallypoint.core.values import NAMES_SHOWN_MAX

_log = logging.getLogger("rallypoint.coordinator")

EVENTS_MAX: Final = 2_000
EVENTS_BYTES_MAX: Final = 1024**2
"""How many events of one run are kept, and how many bytes they take."""
ALL_BYTES_MAX: Final = 64 * 1024**2
"""The most bytes of the events of all runs. Above it, each run that gets an event drops old ones of
its own, down to KEPT_FEW."""
LASTING_MAX: Final = 500
"""How many events that say most about a run are kept longer than the others."""
LASTING: Final = frozenset(
    {
        EventKind.BEGAN,
        EventKind.TOOK_OVER,
        EventKind.DROPPED,
        EventKind.FORMED,
        EventKind.BROKEN,
        EventKind.CAUSE,
        EventKind.LOST,
        EventKind.DRAIN_ASKED,
        EventKind.EVICTED,
        EventKind.READMITTED,
        EventKind.SCALED,
        EventKind.COOLING,
        EventKind.LET_BACK_IN,
        EventKind.CLOSED,
    }
)
KEPT_FEW: Final = 16
SUMMARISED_ABOVE: Final = 100
"""In a run with more members, events of single nodes are collected."""
COLLECTED_S: Final = 1.0
"""How long events of single nodes are collected, in seconds."""
SHOWN_AFTER_S: Final = 0.25
"""A reader gets what was collected for this long."""

Sink = Callable[[str, RunEvent], None]
"""Called with the id of a run and its new event. Must not block."""


class Events:
    """The events of all runs of one coordinator: their memory, and who gets each new one.

    `host`: whose wall clock the events have.
    """

    def __init__(self, host: str, bytes_max: int = ALL_BYTES_MAX) -> None:
        self.host = host
        self.started_s = runtime.here().monotonic_s()
        self.bytes_max = bytes_max
        self.bytes = 0
        self.sinks: list[Sink] = []
        self.is_over = False
        """Whether the coordinator ends."""
        self.waiting_bytes: Callable[[], int] = int
        """How many bytes of events wait for the ledger."""
        self.earlier: Callable[[Any, RunState, tuple[str, ...]], None] | None = None
        """Finds the events of a run from before this coordinator: called with the run that it has
        taken over, the state that it began with, and its former owners. None: only the run's head
        has some."""
        self.failures = 0
        """How many events could not be recorded, because of an unexpected error."""

    def failed(self, error: Exception) -> None:
        """An event could not be recorded: that ends nothing. Only the first error is logged."""
        self.failures += 1
        if self.failures == 1:
            _log.error("an unexpected error while an event was recorded", exc_info=error)


class _Collected:
    """Events of one kind about single nodes that become one event."""

    __slots__ = ("at", "begun_s", "count", "detail", "names", "offset_s", "round", "seconds")

    def __init__(self, begun_s: float, at: float, offset_s: float, round_number: int) -> None:
        self.begun_s = begun_s
        self.at = at
        self.offset_s = offset_s
        self.round = round_number
        self.count = 0
        self.names: list[str] = []
        self.seconds: float | None = None
        self.detail = ""


class EventLog:
    """The last events of one run, oldest first. `term`: of the next events."""

    def __init__(self, events: Events, run_id: str, term: int) -> None:
        self.run_id = run_id
        self.term = term
        self.last_seq = 0
        self.dropped = 0
        """How many events of this coordinator are not kept here any more."""
        self.is_over = False
        """Whether no further event comes from this coordinator."""
        self.is_large = False
        """Whether events of single nodes are collected."""
        self.round = 0
        self.gather: Callable[[], None] | None = None
        """Called before the events are read: it may add some."""
        self.listeners: dict[Callable[[], None], None] = {}
        """Called after each new event."""
        self._events = events
        self._ring: deque[RunEvent] = deque()
        self._lasting: deque[RunEvent] = deque()
        """Those before the ring that say most: single nodes that come and go must not hide them."""
        self._bytes = 0
        self._lasting_bytes = 0
        self._collected: dict[EventKind, _Collected] = {}

    def __len__(self) -> int:
        return len(self._lasting) + len(self._ring)

    # -- new events ----------------------------------------------------------------------------

    def add(self, kind: EventKind, **fields: Any) -> None:
        """Record an event now. `fields`: those of RunEvent that are not the same for all."""
        if self._collected:
            self.flush()
        here = runtime.here()
        self._append(kind, here.wall_s(), here.monotonic_s() - self._events.started_s, fields)

    def add_late(self, past: PastEvent) -> None:
        """Record an event that the run's head has, and that no coordinator wrote elsewhere.

        It has the time and the host of that coordinator.
        """
        fields = dict(past.fields)
        offset_s = runtime.here().monotonic_s() - self._events.started_s
        self._append(past.kind, fields.pop("at"), offset_s, fields | {"is_late": True})

    def add_node(
        self,
        kind: EventKind,
        name: str,
        now_s: float,
        seconds: float | None = None,
        detail: str = "",
    ) -> None:
        """Record an event of one node. `now_s`: the coordinator's time."""
        if not self.is_large:
            self.add(kind, node=name, seconds=seconds, detail=detail)
            return
        some = self._collected.get(kind)
        if some is None or now_s - some.begun_s >= COLLECTED_S:
            if some is not None:
                self.flush()
            some = self._collected[kind] = self._begin(now_s)
            some.seconds, some.detail = seconds, detail
            if self.listeners:
                self._tell()
        some.count += 1
        if some.count <= NAMES_SHOWN_MAX:
            some.names.append(name)
        if seconds is not None and (some.seconds is None or seconds > some.seconds):
            some.seconds = seconds

    def add_nodes(self, kind: EventKind, names: list[str], count: int, now_s: float) -> None:
        """Record that this has happened to `count` nodes; `names`: of some of them."""
        some = self._collected.get(kind)
        if some is None:
            some = self._collected[kind] = self._begin(now_s)
        some.count += count
        some.names += names[: NAMES_SHOWN_MAX - len(some.names)]

    def _begin(self, now_s: float) -> _Collected:
        here = runtime.here()
        offset_s = here.monotonic_s() - self._events.started_s
        return _Collected(now_s, here.wall_s(), offset_s, self.round)

    def flush(self) -> None:
        """Record what was collected."""
        collected, self._collected = self._collected, {}
        for kind, some in collected.items():
            is_one = some.count == 1
            fields: dict[str, Any] = {
                "round": some.round,
                "node": some.names[0] if is_one else "",
                "nodes": () if is_one else tuple(some.names),
                "count": 0 if is_one else some.count,
                "seconds": some.seconds,
                "detail": some.detail if is_one else "",
            }
            self._append(kind, some.at, some.offset_s, fields)

    def _append(self, kind: EventKind, at: float, offset_s: float, fields: dict[str, Any]) -> None:
        if self.is_over:
            return
        self.last_seq += 1
        fields.setdefault("round", self.round)
        detail = fields.get("detail")
        if detail and len(detail) > TEXT_MAX:
            fields["detail"] = shortened(detail, TEXT_MAX)
        event = RunEvent(
            term=self.term,
            seq=self.last_seq,
            kind=kind,
            at=at,
            offset_s=offset_s,
            on=fields.pop("on", self._events.host),
            **fields,
        )
        self._keep(event)
        for sink in self._events.sinks:
            sink(self.run_id, event)
        if self.listeners:
            self._tell()

    def _keep(self, event: RunEvent) -> None:
        self._ring.append(event)
        self._count(event.bytes)
        while self._ring and (len(self) > EVENTS_MAX or self._bytes > EVENTS_BYTES_MAX):
            self._drop()
        if self._events.bytes > self._events.bytes_max:
            # Two for one, so that many runs come below the limit again.
            for _ in range(min(2, len(self._ring) - KEPT_FEW)):
                self._drop()

    def _drop(self) -> None:
        """Drop the oldest event, or keep it among the lasting ones."""
        oldest = self._ring.popleft()
        if oldest.kind in LASTING:
            self._lasting.append(oldest)
            self._lasting_bytes += oldest.bytes
            if (
                len(self._lasting) <= LASTING_MAX
                and self._lasting_bytes <= EVENTS_BYTES_MAX // 4
                and self._events.bytes <= self._events.bytes_max
            ):
                return
            oldest = self._lasting.popleft()
            self._lasting_bytes -= oldest.bytes
        self._count(-oldest.bytes)
        self.dropped += 1

    def _count(self, size: int) -> None:
        self._bytes += size
        self._events.bytes += size

    def _tell(self) -> None:
        for listener in tuple(self.listeners):
            listener()

    # -- readers -------------------------------------------------------------------------------

    def restored(self, earlier: list[RunEvent]) -> None:
        """Put events of earlier coordinators before those of this one, as far as there is room."""
        for event in reversed(earlier if not self._lasting else ()):
            is_full = len(self._ring) >= EVENTS_MAX or self._bytes + event.bytes > EVENTS_BYTES_MAX
            if is_full or self._events.bytes > self._events.bytes_max:
                break
            self._ring.appendleft(event)
            self._count(event.bytes)

    def after(self, position: tuple[int, int], most: int, now_s: float) -> list[RunEvent]:
        """The events after this place, at most `most`. `now_s`: the coordinator's time."""
        if self.gather is not None:
            self.gather()
        if self._collected:
            oldest_s = min(each.begun_s for each in self._collected.values())
            if now_s - oldest_s >= SHOWN_AFTER_S:
                self.flush()
        ring = self._ring
        if not ring or ring[-1].position <= position:
            return []
        if position >= ring[0].position:
            # Readers are mostly near the end.
            new = 0
            for event in reversed(ring):
                if event.position <= position:
                    break
                new += 1
            found: Iterator[RunEvent] = islice(ring, len(ring) - new, len(ring))
        else:
            every = chain(self._lasting, ring)
            found = (event for event in every if event.position > position)
        return list(islice(found, most))

    def last(self, most: int) -> list[RunEvent]:
        """The last events, at most `most`."""
        every = chain(self._lasting, self._ring)
        return list(islice(every, max(0, len(self) - most), None))

    @property
    def waits(self) -> bool:
        """Whether events are being collected."""
        return bool(self._collected)

    @property
    def first_position(self) -> tuple[int, int] | None:
        """The place of the oldest event that is kept."""
        oldest = next(chain(self._lasting, self._ring), None)
        return oldest.position if oldest is not None else None

    @property
    def last_position(self) -> tuple[int, int]:
        """The place of the newest event."""
        return self._ring[-1].position if self._ring else (self.term, self.last_seq)

    def end(self) -> None:
        """No event follows: tell the readers. Idempotent."""
        if not self.is_over:
            if self.gather is not None:
                self.gather()
            if self._collected:
                self.flush()
            self.is_over = True
            self._tell()

    def close(self) -> None:
        """The run is forgotten: its memory counts no more. Readers may still take the rest."""
        self.end()
        self._count(-self._bytes)
        self.gather = None  # Its reference to the run would keep the run's memory.
