"""The history that is shown to people: the last rounds of a run, and losses between them.

It reads the effects of the core and changes nothing. The part that a successor shows as well is in
the ledger, with the run's head (`core/past.py`).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from typing import Final

import msgspec

from rallypoint.core import effects as do
from rallypoint.core.effects import Effect
from rallypoint.core.past import (
    ROUNDS_KEPT,
    Past,
    PastLoss,
    PastRound,
    bounded_past,
    loss_of,
)
from rallypoint.core.values import Change, ChangeKind, CloseRecord, Phase, RoundMember, RoundRecord

NAMES_KEPT_MAX: Final = 64
LOSSES_REMEMBERED: Final = 50
ROUND_BYTES: Final = 600
"""The memory of a round besides its names and texts, in bytes."""
_WATCHED: Final = frozenset({do.Commit, do.Publish, do.Break, do.Verdict, do.Announce, do.Forget})


class RoundHistory(msgspec.Struct, kw_only=True):
    """One round. `core.past.PastRound` describes its times.

    `members`: at most NAMES_KEPT_MAX names; None for rounds before the one that was taken over.
    """

    number: int
    nodes: int
    size: int
    restart_count: int
    members: list[str] | None
    formed_at: float | None
    formed_on: str
    gathering_s: float | None = None
    committing_s: float | None = None
    published: bool = True
    active_s: float | None = None
    active_min_s: float = 0.0
    ended_at: float | None = None
    ended_on: str = ""
    ended: str = ""
    change: Change | None = None


class History:
    """The last rounds of one run, and the last losses between them, oldest first.

    `host`: the host whose wall clock gives the times of day, for display only (R9). `now_s` is
    always the coordinator's clock, which leaves out the time for which the process slept.
    """

    def __init__(self, rounds_max: int, now_s: float, host: str = "") -> None:
        self.rounds: deque[RoundHistory] = deque(maxlen=rounds_max)
        self.losses: deque[PastLoss] = deque(maxlen=LOSSES_REMEMBERED)
        self._host = host
        self._gathering_since_s: float | None = now_s
        """None: the gathering began under another coordinator, so its duration is unknown."""
        self._formed_s = now_s
        self._began_s: float | None = None
        """When the last round became active here; None if it is not active."""
        self._before_s = 0.0
        """The least time for which it was active under earlier coordinators."""
        self._is_whole = True
        """Whether it became active here."""
        self._close = ""
        self._closed_s: float | None = None

    def began_s(self, phase: Phase) -> float | None:
        """Since when the run has been in this phase here, on `now_s`' clock; None if unknown."""
        match phase:
            case Phase.GATHERING:
                return self._gathering_since_s
            case Phase.COMMITTING:
                return self._formed_s
            case Phase.ACTIVE:
                return self._began_s
            case Phase.CLOSED:
                return self._closed_s
        return None

    # -- events --------------------------------------------------------------------------------

    def observe(
        self,
        effects: list[Effect],
        now_s: float,
        wall_s: float,
        phase: Phase = Phase.GATHERING,
    ) -> None:
        """Record the effects of one step of the core.

        `phase`: the run's phase before that step.
        """
        lost: list[Change] = []
        for effect in effects:
            if type(effect) not in _WATCHED:
                continue  # This runs for every message of a node.
            match effect:
                case do.Commit(record=RoundRecord() as record):
                    self._formed(record, now_s, wall_s)
                case do.Commit(record=CloseRecord() as close):
                    self._close = str(close)
                case do.Publish():
                    self._published(now_s)
                case do.Break(change=change):
                    self._ended(change, now_s, wall_s)
                case do.Verdict(change=change):
                    self._explain(change)
                case do.Announce(close=close):
                    self._closed(close, now_s, wall_s)
                case do.Forget(loss=Change() as loss):
                    lost.append(loss)
        if lost:
            self._record_loss(lost, phase, wall_s)

    def restored(
        self, record: RoundRecord | None, past: Past, ended: Change | None, now_s: float
    ) -> None:
        """Begin with the history in the ledger. `ended`: why the last round is over, if it is.

        `record`: the last round; None if there was none, or the run is closed.
        """
        number = record.head.number if record is not None else None
        self.losses.extend(past.losses)
        self.rounds.extend(_read(each) for each in past.rounds if each.number != number)
        if record is None:
            return
        last = next((_read(each) for each in past.rounds if each.number == number), None)
        if last is None:  # a release without a past has written it
            last = _of_record(record, None, "")
        last.members = [member.name for member in record.members[:NAMES_KEPT_MAX]]
        self.rounds.append(last)
        self._is_whole, self._before_s = False, last.active_min_s
        if ended is not None:
            self._gathering_since_s = None
            self._explain(ended)
        else:
            last.active_s = last.ended_at = None
            last.ended = last.ended_on = ""
            last.published, self._began_s = True, now_s

    def first_arrival(self, now_s: float) -> None:
        """The first node is here: the gathering for the first round begins."""
        self._gathering_since_s = now_s

    def _formed(self, record: RoundRecord, now_s: float, wall_s: float) -> None:
        since_s = self._gathering_since_s
        if self.rounds and self.rounds[-1].number == record.head.number:
            return  # The same record is committed again, after an outage.
        self._formed_s, self._began_s = now_s, None
        self.rounds.append(_of_record(record, wall_s, self._host))
        self.rounds[-1].gathering_s = None if since_s is None else now_s - since_s

    def _published(self, now_s: float) -> None:
        self._began_s, self._before_s, self._is_whole = now_s, 0.0, True
        if self.rounds:
            self.rounds[-1].published = True
            self.rounds[-1].committing_s = now_s - self._formed_s

    def _ended(self, change: Change, now_s: float, wall_s: float) -> None:
        if self._began_s is not None:  # None: it ended under the last coordinator
            self._gathering_since_s = now_s
            self._over(now_s, wall_s)
        self._explain(change)

    def _over(self, now_s: float, wall_s: float) -> None:
        if self.rounds and self._began_s is not None:
            last, here_s = self.rounds[-1], now_s - self._began_s
            last.active_min_s = self._before_s + here_s
            last.active_s = here_s if self._is_whole else None
            last.ended_at, last.ended_on = wall_s, self._host
            self._began_s = None

    def _explain(self, change: Change) -> None:
        """A verdict may arrive after the next round was formed."""
        for each in reversed(self.rounds):
            if each.number == change.round:
                each.change, each.ended = change, str(change)
                return

    def _closed(self, close: CloseRecord, now_s: float, wall_s: float) -> None:
        self._closed_s = now_s
        if self._began_s is not None:
            self._over(now_s, wall_s)
            self.rounds[-1].ended = str(close)

    def _record_loss(self, lost: list[Change], phase: Phase, wall_s: float) -> None:
        change = loss_of(lost)
        text = str(change)
        names, count = change.nodes, change.count
        loss = PastLoss(change.round, phase.value, wall_s, self._host, names, count, text)
        self.losses.append(loss)

    def lost_lately(self) -> list[str]:
        """The nodes that were lost with the last round or since, each once; those that are named.

        At most NAMES_KEPT_MAX.
        """
        last = self.rounds[-1] if self.rounds else None
        change = None if last is None else last.change
        found: dict[str, None] = {}
        if change is not None and change.kind is ChangeKind.NODE_LOST:
            found |= dict.fromkeys(change.nodes)
        number = 0 if last is None else last.number
        for loss in self.losses:
            if loss.round >= number:
                found |= dict.fromkeys(loss.nodes)
        return list(found)[:NAMES_KEPT_MAX]

    # -- for a successor -----------------------------------------------------------------------

    def kept(self, now_s: float, wall_s: float) -> Past:
        """The past to write to the ledger with the run's head. Its size is bounded."""
        rounds = [_written(each) for each in list(self.rounds)[-ROUNDS_KEPT:]]
        if rounds and self._began_s is not None:
            here_s = now_s - self._began_s
            last = msgspec.structs.replace(rounds[-1], active_min_s=self._before_s + here_s)
            if self._close:  # The round ends with the run when this is in the ledger.
                last = msgspec.structs.replace(
                    last,
                    active_s=here_s if self._is_whole else None,
                    ended_at=wall_s,
                    ended_on=self._host,
                    ended=self._close,
                )
            rounds[-1] = last
        return bounded_past(rounds, tuple(self.losses))


def _of_record(record: RoundRecord, wall_s: float | None, host: str) -> RoundHistory:
    head = record.head
    return RoundHistory(
        number=head.number,
        nodes=head.nodes,
        size=head.size,
        restart_count=head.restart_count,
        members=[member.name for member in record.members[:NAMES_KEPT_MAX]],
        formed_at=wall_s,
        formed_on=host,
        published=wall_s is None,
    )


_KEPT: Final = PastRound.__struct_fields__


def _read(past: PastRound) -> RoundHistory:
    return RoundHistory(members=None, **{name: getattr(past, name) for name in _KEPT})


def _written(each: RoundHistory) -> PastRound:
    return PastRound(**{name: getattr(each, name) for name in _KEPT})


class PastSizes:
    """Estimates the memory of the last rounds, mostly texts. `count` is called with each change."""

    def __init__(self, rounds_max: int, count: Callable[[int], None]) -> None:
        self._sizes: deque[int] = deque(maxlen=rounds_max)
        self._count = count

    @property
    def bytes(self) -> int:
        """The memory of all rounds."""
        return sum(self._sizes)

    def began(self, members: Sequence[RoundMember]) -> None:
        """Add a round with these members, and drop the oldest one if there are too many."""
        dropped = self._sizes[0] if len(self._sizes) == self._sizes.maxlen else 0
        names = sum(_text_bytes(member.name) for member in members[:NAMES_KEPT_MAX])
        self._sizes.append(ROUND_BYTES + names)
        self._count(self._sizes[-1] - dropped)

    def ended(self, change: Change) -> None:
        """A round has ended for this reason, or its verdict has replaced the reason."""
        if self._sizes:
            size = _change_bytes(change)
            self._sizes[-1] += size
            self._count(size)


def _change_bytes(change: Change) -> int:
    failure, texts = change.failure, (change.detail, *change.nodes)
    if failure is not None:
        texts += (failure.message, *failure.last_lines)
    # Its text is kept once as a value and once in the sentence that is shown.
    return ROUND_BYTES + 2 * sum(map(_text_bytes, texts))


def _text_bytes(text: str) -> int:
    """The memory of a text: up to four bytes a character if it is not ASCII."""
    return 60 + len(text) * (1 if text.isascii() else 4)
