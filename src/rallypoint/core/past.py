"""The last rounds of a run, and the losses between them, as the ledger keeps them for people.

They are in the head of the run, which must stay small, so they are few and short. No decision may
depend on them. Every duration was measured by one coordinator, on a monotonic clock. Every time of
day comes with the host whose clock it is. Times of two hosts are never subtracted (R9).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import msgspec

from rallypoint.core.printable import shortened
from rallypoint.core.values import Change, ChangeKind, FrozenStruct

PAST_BYTES_MAX: Final = 2_048
"""The most bytes of the past in a head. Each node that looks for a coordinator reads them."""
ROUNDS_KEPT: Final = 10
LOSSES_KEPT: Final = 4
TEXT_KEPT: Final = 160
"""The most characters of a reason. The full reason is in the coordinator that saw the end."""
HOST_KEPT: Final = 64
NAMES_KEPT: Final = 3


class PastRound(FrozenStruct, frozen=True):
    """One round. Durations in seconds, times of day in seconds since 1970.

    `formed_at`, `ended_at`: by the clocks of the hosts `formed_on` and `ended_on`. `gathering_s`:
    from the end of the round before, or the first node's arrival, until it was formed;
    `committing_s`: from then to the ledger's answer; `active_s`: from there to the end. Each is
    None if no single coordinator has measured all of it, or if it is not over. `active_min_s`: how
    long the round is known to have been active. It may have been longer while its coordinators
    changed. `published`: whether its members were told of it; else a member went while it was
    committed.
    """

    number: int
    nodes: int
    size: int
    restart_count: int
    formed_at: float | None = None
    formed_on: str = ""
    gathering_s: float | None = None
    committing_s: float | None = None
    active_s: float | None = None
    active_min_s: float = 0.0
    ended_at: float | None = None
    ended_on: str = ""
    ended: str = ""
    published: bool = True


class PastLoss(FrozenStruct, frozen=True):
    """Members that were lost while no round was active, or that were not in it.

    `round`: the last that was committed by then. `phase`: "gathering" for the next round,
    "committing" it, or "active" in a round that continues without them. `at`: by the clock of host
    `on`.
    """

    round: int
    phase: str
    at: float
    on: str
    nodes: tuple[str, ...]
    count: int
    text: str


class Past(FrozenStruct, frozen=True):
    """The past in a head, oldest first."""

    rounds: tuple[PastRound, ...] = ()
    losses: tuple[PastLoss, ...] = ()


NO_PAST: Final = Past()


def bounded_past(rounds: Sequence[PastRound], losses: Sequence[PastLoss]) -> Past:
    """The newest of them, cut so that all has at most PAST_BYTES_MAX bytes.

    The newest round is kept first, because it may be active.
    """
    left = PAST_BYTES_MAX
    kept_rounds: list[PastRound] = []
    kept_losses: list[PastLoss] = []
    newest = [_cut_round(each) for each in rounds[-ROUNDS_KEPT:][::-1]]
    for one in newest[:1]:
        left -= _size(one)
        kept_rounds.append(one)
    for loss in map(_cut_loss, losses[-LOSSES_KEPT:][::-1]):
        if _size(loss) > left:
            break
        left -= _size(loss)
        kept_losses.append(loss)
    for one in newest[1:]:
        if _size(one) > left:
            break
        left -= _size(one)
        kept_rounds.append(one)
    return Past(tuple(kept_rounds[::-1]), tuple(kept_losses[::-1]))


def loss_of(changes: Sequence[Change]) -> Change:
    """One change for all members that were lost in one step, given the change of each."""
    first = changes[0]
    names = tuple(name for each in changes[:NAMES_KEPT] for name in each.nodes)
    since_s = max(each.since_s for each in changes)
    return Change(ChangeKind.NODE_LOST, first.round, names, len(changes), first.detail, since_s)


def _cut_round(one: PastRound) -> PastRound:
    return msgspec.structs.replace(
        one,
        formed_on=one.formed_on[:HOST_KEPT],
        ended_on=one.ended_on[:HOST_KEPT],
        ended=shortened(one.ended, TEXT_KEPT),
    )


def _cut_loss(loss: PastLoss) -> PastLoss:
    names = tuple(shortened(name, TEXT_KEPT) for name in loss.nodes[:NAMES_KEPT])
    return msgspec.structs.replace(
        loss, on=loss.on[:HOST_KEPT], nodes=names, text=shortened(loss.text, TEXT_KEPT)
    )


def _size(value: FrozenStruct) -> int:
    return len(msgspec.msgpack.encode(value))
