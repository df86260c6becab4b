"""Whether a round is formed now: one pure function, which answers with the reason.

The rule:

* at once, when `max_nodes` are ready, or as many nodes as a scheduler said it started; but if an
  operator has taken places away, survivors that hold one are waited for, as after any round;
* after a round that ended, `settle_s` after all of its surviving members are ready, so that nodes
  that arrive at the same time are in the round;
* otherwise when the last call is over. It begins when the minimum is ready, and never begins again.

Survivors keep their places until they are ready, are lost, or the last call ends. Newcomers get
only free places (R3, R7). Two kinds of survivors keep their places after the last call: those that
can be heard and have time left to stop their workers, and those that have yet to attach after a
takeover. Without this, newcomers could form a round beside members that are alive.

Nodes that have to stay out (`cooling`) keep no place. They count as ready where the question is how
long to wait, and get the places that are missing for the minimum when the round is formed. So they
delay no round: it begins when it would have begun with them. Every other node comes before them.
"""

from __future__ import annotations

import enum
from typing import Final

from rallypoint.core.values import FrozenStruct


class Call(enum.StrEnum):
    """The last call of this gathering."""

    NOT_YET = "not_yet"
    RUNNING = "running"
    OVER = "over"


class Counts(FrozenStruct, frozen=True, kw_only=True):
    """The input of the decision: counts of nodes."""

    minimum: int
    maximum: int
    expected: int | None = None
    ready_survivors: int = 0
    places_held: int = 0
    stopping: int = 0
    absent: int = 0
    newcomers: int = 0
    cooling_survivors: int = 0
    cooling: int = 0
    settled: bool = False
    call: Call = Call.NOT_YET

    @property
    def ready(self) -> int:
        """How many nodes are ready, including those without a place."""
        return self.ready_survivors + self.newcomers

    @property
    def able(self) -> int:
        """The same, with those that have to stay out if there are enough others."""
        return self.ready + self.cooling_survivors + self.cooling

    @property
    def held(self) -> int:
        """How many places are kept for survivors that are not ready."""
        # R7: these places last for one last call.
        for_now = 0 if self.call is Call.OVER else self.places_held
        # R7: survivors that stop their workers keep their places longer.
        return self.stopping + self.absent + for_now

    @property
    def chosen(self) -> int:
        """How many would be in the round if it were formed now, when no place is kept."""
        # R7: those that have to stay out are taken as far as the minimum needs them.
        needed = max(self.ready, min(self.able, self.minimum))
        # R3: never above the maximum.
        return min(self.maximum, needed)


class Decision(enum.StrEnum):
    """What to do about a gathering, and by which rule."""

    FORM_MAXIMUM = "the maximum is ready"
    FORM_EXPECTED = "all expected nodes are ready"
    FORM_SURVIVORS = "every survivor of the last round is ready"
    FORM_LAST_CALL = "the last call is over"
    STOPPING = "survivors that still answer are stopping their workers"
    ATTACHING = "some survivors have not attached to this coordinator yet"
    SETTLE = "every survivor is ready; waiting a moment for simultaneous arrivals"
    LAST_CALL = "the minimum is ready; the last call is running"
    TOO_FEW = "fewer than the minimum are ready"

    @property
    def forms_round(self) -> bool:
        return self in _FORMING


_FORMING: Final = frozenset(each for each in Decision if each.name.startswith("FORM_"))


def decide(counts: Counts) -> Decision:
    """Decide what to do now. Pure: the same counts always get the same answer."""
    chosen = counts.chosen
    # R3: never below the minimum.
    if counts.able < counts.minimum:
        return Decision.TOO_FEW
    # R7: no other node can come. If an operator has taken places away, survivors may still hold
    # more than there are, and all of them are waited for.
    if chosen >= counts.maximum and not counts.held:
        return Decision.FORM_MAXIMUM
    # R7: their stop time bounds the wait.
    if counts.call is Call.OVER and counts.stopping:
        return Decision.STOPPING
    # R7: the attach grace bounds the wait.
    if counts.call is Call.OVER and counts.absent:
        return Decision.ATTACHING
    # R7: nothing else delays a round.
    if counts.call is Call.OVER:
        return Decision.FORM_LAST_CALL
    # R7: survivors that hang, or cannot be heard, keep their places for one last call and no
    # longer. This holds even if they leave fewer places than the minimum.
    if counts.held:
        return Decision.LAST_CALL
    # R7: all that were started are here.
    if counts.expected is not None and min(counts.maximum, counts.able) >= counts.expected:
        return Decision.FORM_EXPECTED
    if counts.ready_survivors or counts.cooling_survivors:
        # R7: survivors need no last call.
        return Decision.FORM_SURVIVORS if counts.settled else Decision.SETTLE
    return Decision.LAST_CALL
