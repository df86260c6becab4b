"""What the program's failures have cost, whether they are all the same, and which nodes they meet.

A verdict that charges a round is counted here. What counts against the restart budget may differ
from the number of charged rounds: an early failure counts double, and an old one is forgiven. The
same failure again and again ends the run, as does a worker's exit code that forbids a restart. A
node that breaks too many rounds has to stay out for a while (`cooling`).

All of it is in the run's head, as `Blame`. It has no times of day: it says how many seconds are
left, and a new coordinator counts them from its takeover on (R9). This file only counts. What
follows is decided in `rounds` and `formation`.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable
from typing import Final

import msgspec

from rallypoint.core.printable import escaped, shortened
from rallypoint.core.values import Change, ChangeKind, Failure, FrozenStruct, RunSettings

BLAME_BYTES_MAX: Final = 4 * 1024
"""The most bytes of the blame in a run's head, which is of limited size."""
CHARGES_KEPT: Final = 64
"""How many charges are forgiven one by one. Older ones are forgiven together with the next."""
OFFENDERS_MAX: Final = 64
"""How many nodes are remembered that broke rounds."""
FINGERPRINT_CHARACTERS_MAX: Final = 200
DOUBLINGS_MAX: Final = 30
"""More than enough to reach any longest cooldown, and small enough for a float."""

LAST_MAX: Final = 120
"""The most characters of the last failure of a node."""

_NEVER: Final = math.inf
_ROUNDING_S: Final = 1e-6
"""A timer may fire so much too early, by rounding."""
_PLACES: Final = 3
"""Seconds in the head are whole milliseconds."""
_VARYING: Final = (
    (re.compile(r"(?<!\S)[^\s/\\]*+[/\\]\S*"), "/"),  # a path or an URL
    (re.compile(r"0[xX][0-9a-fA-F]+|\b[0-9a-fA-F]{8,}+\b"), "#"),  # an address in memory, a hash
    # An address of IPv6, a time.
    (re.compile(r"(?<![0-9a-fA-F:])[0-9a-fA-F]*+(?::[0-9a-fA-F]*+){2,}"), "#"),
    (re.compile(r"[0-9]+(?:[.,:][0-9]+)*"), "#"),  # a number, an address of IPv4, a port
    (re.compile(r"\s+"), " "),
)
"""What differs between two failures of one kind, and what stands in its place.

A pattern begins only where a word begins, and gives nothing back: so its time grows with the text
and not faster. The text is a stranger's.
"""


class Charge(FrozenStruct, frozen=True):
    """Rounds that count against the budget for `left_s` more seconds."""

    weight: int
    left_s: float


class Offender(FrozenStruct, frozen=True):
    """A node that broke `rounds` rounds, the last one by `last`.

    It stays out for `left_s` more seconds; 0: not. It is forgiven `forgiven_s` after that.
    """

    name: str
    rounds: int
    left_s: float
    forgiven_s: float
    last: str = ""


class Blame(FrozenStruct, frozen=True):
    """What a successor has to know of it.

    `restarts`: how many charged rounds it is about. A release without it may have charged more, and
    each of these counts once. `spent`: what counts against the budget, of which `charges` will be
    forgiven. `fingerprint`: of the last failure, which came `repeats` times in a row; None in
    `row_left_s`: the row is not forgiven by time. `row_step`: the highest step in its
    rounds; None if none was reported.
    """

    restarts: int = 0
    spent: int = 0
    charges: tuple[Charge, ...] = ()
    fingerprint: str = ""
    repeats: int = 0
    row_left_s: float | None = None
    offenders: tuple[Offender, ...] = ()
    row_step: int | None = None


NO_BLAME: Final = Blame()


def spent_of(blame: Blame, restarts: int) -> int:
    """What counted against the budget when this was written, if `restarts` rounds were charged."""
    return blame.spent + max(0, restarts - blame.restarts)


def fingerprint(failure: Failure) -> str:
    """What two failures of one cause have in common: one printable line.

    It has the kind, how the worker ended, and the error's text without numbers, addresses and
    paths. It does not depend on the node or the rank.
    """
    text = escaped(failure.message)
    for varying, instead in _VARYING:
        text = varying.sub(instead, text)
    ended = f"signal {failure.signal}" if failure.signal else f"exit code {failure.exit_code}"
    line = f"{failure.kind.value}, {ended}: {text.strip()}"
    return shortened(line, FINGERPRINT_CHARACTERS_MAX)


def weight_of(lasted_s: float, settings: RunSettings) -> int:
    """How much a charged round counts that lasted so long; infinite: that is not known."""
    return 2 if lasted_s < settings.early_s else 1


def is_covered(spent: int, weight: int, limit: int | None) -> bool:
    """Whether the restart budget `limit` has room for one more charge. None: there is no limit.

    There is one budget for all nodes of a run. A charge that it does not cover ends the run, and
    then nothing is spent.
    """
    return limit is None or spent + weight <= limit


def ends_at_once(failure: Failure | None, settings: RunSettings) -> bool:
    """Whether the worker's exit code says that no restart helps."""
    return failure is not None and failure.exit_code in settings.no_restart_exit_codes


def breaker_of(change: Change) -> str:
    """The one node that broke a round, by its confirmed cause; "" if there is none.

    Nodes that are lost together have a common cause, such as a switch: none of them is to blame.
    """
    is_failure = change.kind is ChangeKind.WORKER_FAILED and change.charged
    is_loss = change.kind is ChangeKind.NODE_LOST
    is_one = change.confirmed and change.count == len(change.nodes) == 1
    return change.nodes[0] if is_one and (is_failure or is_loss) else ""


class Offence:
    """What is known of one node that broke rounds. Times on the run's clock."""

    def __init__(self, rounds: int, cools_until_s: float, forgiven_at_s: float, last: str) -> None:
        self.rounds = rounds
        self.cools_until_s = cools_until_s
        self.forgiven_at_s = forgiven_at_s
        self.last = last
        self.is_cooling = cools_until_s > 0.0
        """Whether nobody has been told yet that it is over."""

    def left_s(self, now_s: float) -> float:
        """For how many seconds it has to stay out still."""
        return max(0.0, self.cools_until_s - now_s) if self.is_cooling else 0.0


class KeptBlame:
    """The counts of one run. All `now_s` are of the run's clock, in seconds."""

    def __init__(self) -> None:
        self._kept = 0
        """What counts against the budget and is never forgiven."""
        self._charges: list[tuple[float, int]] = []
        """When each other charge is forgiven, and what it counts; the oldest first."""
        self._fingerprint = ""
        self._repeats = 0
        self._row_ends_s = _NEVER
        self._row_step: int | None = None
        self._offences: dict[str, Offence] = {}
        self.at_forming = NO_BLAME
        """What is written with the record that is being written."""

    # -- the budget ------------------------------------------------------------------------------

    def spent(self, now_s: float) -> int:
        """What counts against the restart budget now."""
        # R11: what is forgiven does not count again.
        self._charges = [each for each in self._charges if each[0] > now_s]
        return self._kept + sum(weight for _, weight in self._charges)

    def charge(self, weight: int, settings: RunSettings, now_s: float) -> None:
        """A round is charged."""
        if settings.restart_window_s is None:
            self._kept += weight
            return
        self._charges.append((now_s + settings.restart_window_s, weight))
        if len(self._charges) > CHARGES_KEPT:
            # Forgiven with the next one: later than it could be, and never earlier.
            (_, oldest), (until_s, next_one) = self._charges[:2]
            self._charges[:2] = [(until_s, oldest + next_one)]

    # -- the same failure ------------------------------------------------------------------------

    def failed(
        self,
        failure: Failure | None,
        settings: RunSettings,
        now_s: float,
        step: int | None = None,
    ) -> int:
        """A charged round ended by this failure. Returns how often in a row it was the same.

        `step`: the highest that was reported in that round; None if none was. A round that came
        further than those before it begins a new row.
        """
        if settings.same_failure is None or failure is None:
            return 0
        found = fingerprint(failure)
        row_step = self._row_step
        has_advanced = step is not None and row_step is not None and step > row_step
        is_same = found == self._fingerprint and now_s < self._row_ends_s
        is_again = is_same and not has_advanced
        if step is not None:
            self._row_step = max(step, row_step) if is_again and row_step is not None else step
        elif not is_again:
            self._row_step = None
        self._repeats = self._repeats + 1 if is_again else 1
        self._fingerprint = found
        window_s = settings.restart_window_s
        self._row_ends_s = _NEVER if window_s is None else now_s + window_s
        return self._repeats

    # -- the nodes -------------------------------------------------------------------------------

    def broke(self, name: str, last: str, settings: RunSettings, now_s: float) -> Offence:
        """This node broke a round, by `last`. Above the limit it has to stay out from now on."""
        limit = settings.max_restarts_per_node
        assert limit is not None
        known = self._offences.pop(name, None)
        before = known.rounds if known is not None and now_s < known.forgiven_at_s else 0
        cools_s = cooldown_s(before + 1 - limit, settings)
        until_s = now_s + cools_s
        window_s = settings.restart_window_s
        forgiven_at_s = until_s + (settings.cooldown_max_s if window_s is None else window_s)
        found = Offence(before + 1, until_s, forgiven_at_s, shortened(escaped(last), LAST_MAX))
        found.is_cooling = cools_s > 0
        self._offences[name] = found
        self._forget_some(now_s)
        return found

    def _forget_some(self, now_s: float) -> None:
        """Keep the memory bounded: those who are forgiven go first, then those with least blame."""
        if len(self._offences) <= OFFENDERS_MAX:
            return
        least = min(self._offences.items(), key=lambda each: _weight(each[1], now_s))
        del self._offences[least[0]]

    def offence(self, name: str) -> Offence | None:
        """What is known of this node."""
        return self._offences.get(name)

    def names(self) -> list[str]:
        """The nodes that broke rounds."""
        return list(self._offences)

    def next_end_s(self, now_s: float) -> float | None:
        """In how many seconds the first node may come in again; None if none stays out."""
        lefts = [each.cools_until_s for each in self._offences.values() if each.is_cooling]
        return max(0.0, min(lefts) - now_s) if lefts else None

    def cooled(self, now_s: float) -> list[str]:
        """The nodes whose time is over. Each is named once."""
        found = [
            name
            for name, each in self._offences.items()
            if each.is_cooling and each.cools_until_s <= now_s + _ROUNDING_S
        ]
        for name in found:
            self._offences[name].is_cooling = False
        return found

    # -- the ledger ------------------------------------------------------------------------------

    def restore(
        self, blame: Blame, restarts: int, settings: RunSettings | None, now_s: float
    ) -> None:
        """Begin with what the ledger has, and that `restarts` rounds were charged."""
        window_s = settings.restart_window_s if settings is not None else None
        forgivable = sum(each.weight for each in blame.charges)
        # R9: seconds that were left count from now on.
        self._charges = [(now_s + each.left_s, each.weight) for each in blame.charges]
        # R11: a release without blame has charged these.
        uncounted = max(0, restarts - blame.restarts)
        if uncounted and window_s is not None:
            self._charges.append((now_s + window_s, uncounted))
            uncounted = 0
        self._kept = blame.spent - forgivable + uncounted
        self._fingerprint, self._repeats = blame.fingerprint, blame.repeats
        left_s = blame.row_left_s
        self._row_ends_s = _NEVER if left_s is None else now_s + left_s
        self._row_step = blame.row_step
        self._offences = {
            each.name: Offence(
                each.rounds,
                now_s + each.left_s,
                now_s + each.left_s + each.forgiven_s,
                each.last,
            )
            for each in blame.offenders
        }
        for each in blame.offenders:
            self._offences[each.name].is_cooling = each.left_s > 0
        self.at_forming = blame

    def now(self, restarts: int, settings: RunSettings, now_s: float) -> Blame:
        """What a successor has to know now. NO_BLAME if no setting needs more than `restarts`."""
        if not is_used(settings):
            return NO_BLAME
        spent = self.spent(now_s)
        charges = (Charge(weight, _left_s(until_s, now_s)) for until_s, weight in self._charges)
        ends_s = self._row_ends_s
        row = (self._fingerprint, self._repeats)
        made = Blame(
            restarts,
            spent,
            tuple(charges),
            *(row if now_s < ends_s else ("", 0)),
            None if ends_s == _NEVER else _left_s(ends_s, now_s),
            row_step=self._row_step if now_s < ends_s else None,
        )
        return _with_offenders(made, self._offenders(now_s))

    def _offenders(self, now_s: float) -> list[Offender]:
        """The nodes that broke rounds, and are not forgiven: those with the most blame first."""
        found = [
            Offender(
                name,
                each.rounds,
                round(each.left_s(now_s), _PLACES),
                _left_s(each.forgiven_at_s, max(now_s, each.cools_until_s)),
                each.last,
            )
            for name, each in self._offences.items()
            if each.forgiven_at_s > now_s
        ]
        return sorted(found, key=lambda each: (-each.left_s, -each.rounds))

    def record_formed(self, restarts: int, settings: RunSettings, now_s: float) -> None:
        """A record of the run is to be written, with the present counts."""
        # R1: kept, so that a record that is written again has the same bytes.
        self.at_forming = self.now(restarts, settings, now_s)

    def freeze(self) -> tuple[object, ...]:
        """The state on which decisions depend, as a hashable value, without times."""
        weights = tuple(weight for _, weight in self._charges)
        offences = tuple(
            (name, each.rounds, each.is_cooling) for name, each in self._offences.items()
        )
        row = (self._fingerprint, self._repeats, self._row_step)
        return (self._kept, weights, *row, offences, self.at_forming)


def cooldown_s(above: int, settings: RunSettings) -> float:
    """How long a node stays out that broke so many rounds more than it may; 0: it does not."""
    if above <= 0:
        return 0.0
    doubled = settings.cooldown_s * float(2 ** min(above - 1, DOUBLINGS_MAX))
    return min(settings.cooldown_max_s, doubled)


def _weight(offence: Offence, now_s: float) -> tuple[bool, bool, int]:
    return (offence.forgiven_at_s > now_s, offence.is_cooling, offence.rounds)


def is_used(settings: RunSettings) -> bool:
    """Whether a setting needs more than the number of charged rounds."""
    return bool(
        settings.restart_window_s is not None
        or settings.early_s
        or settings.same_failure is not None
        or settings.max_restarts_per_node is not None
    )


def _left_s(until_s: float, now_s: float) -> float:
    return round(max(0.0, until_s - now_s), _PLACES)


def _with_offenders(blame: Blame, offenders: Iterable[Offender]) -> Blame:
    """The blame with as many of these nodes as there is room for."""
    kept: list[Offender] = []
    left = BLAME_BYTES_MAX - len(msgspec.msgpack.encode(blame))
    for each in offenders:
        left -= len(msgspec.msgpack.encode(each))
        if left < 0 or len(kept) == OFFENDERS_MAX:
            break
        kept.append(each)
    return msgspec.structs.replace(blame, offenders=tuple(kept))
