"""Every "not yet" and every "no", as data: the same value feeds the error, the log and the page.

A reason is decided where the rule is (membership, sealing, a session) and put into words here, so
that a user reads the same sentence in a traceback, in `rallypoint status` and in the coordinator's
log.
"""

from __future__ import annotations

import enum
from collections.abc import Iterable, Sequence

import msgspec

from rallypoint.core.past import PastLoss
from rallypoint.core.printable import escaped
from rallypoint.core.values import (
    NAME_LENGTH_MAX,
    NAMES_SHOWN_MAX,
    TEXT_LENGTH_MAX,
    Address,
    Change,
    ChangeKind,
    CloseRecord,
    Failure,
    FailureKind,
    FrozenStruct,
    Outcome,
    Phase,
    RoundHead,
    Seat,
    SettingConflict,
)


class Waiting(FrozenStruct, frozen=True):
    """Why the next round has not begun. Durations in seconds, names bounded in number."""

    ready: int
    minimum: int
    maximum: int
    missing: tuple[str, ...] = ()
    missing_count: int = 0
    last_call_s: float | None = None
    suspects: tuple[str, ...] = ()
    guard_s: float | None = None
    committing: bool = False
    suspended: str = ""
    since_s: float = 0.0
    attached: int = 0
    ledger_away_s: float | None = None
    stopping: tuple[str, ...] = ()
    stopping_count: int = 0
    stop_left_s: float = 0.0
    held_back_s: float | None = None
    ready_names: tuple[str, ...] = ()
    other_runs: tuple[str, ...] = ()
    """Other runs for which nodes have come to the same coordinator, and wait as well."""

    def __str__(self) -> str:
        if self.ledger_away_s is not None:
            return f"suspended: {ledger_unreachable(self.ledger_away_s, self.suspended)}"
        if self.suspended:
            return f"suspended for {self.since_s:.0f} s: {self.suspended}"
        return "; ".join(self._clauses())

    def without_times(self) -> Waiting:
        """The same reason without its durations: equal as long as only time passes."""
        return msgspec.structs.replace(
            self,
            since_s=0.0,
            last_call_s=None if self.last_call_s is None else 0.0,
            guard_s=None if self.guard_s is None else 0.0,
            ledger_away_s=None if self.ledger_away_s is None else 0.0,
            held_back_s=None if self.held_back_s is None else 0.0,
            stop_left_s=0.0,
        )

    def _clauses(self) -> list[str]:
        ready = f": {some(self.ready_names, self.ready)}" if self.ready_names else ""
        clauses = [
            f"{self.ready} of at least {self.minimum} nodes ready (at most {self.maximum}){ready}"
        ]
        if self.attached > self.ready and not self.missing:
            clauses.append(f"{self.attached - self.ready} attached but not ready")
        if self.missing:
            clauses.append(
                f"waiting for {some(self.missing, self.missing_count)}{self._stopping()}"
            )
        if self.last_call_s is not None:
            clauses.append(f"last call ends in {self.last_call_s:.1f} s")
        if self.guard_s is not None:
            clauses.append(
                f"{some(self.suspects, len(self.suspects))} went missing together, so nobody is "
                f"declared lost for {self.guard_s:.0f} s"
            )
        if self.held_back_s is not None:
            clauses.append(
                "this run ends its rounds too often, so the next one is held back for "
                f"{self.held_back_s:.1f} s"
            )
        if self.committing:
            clauses.append("the round is being written to the ledger")
        if self.other_runs:
            listed = ", ".join(map(repr, self.other_runs))
            clauses.append(f"nodes of another run id wait here too: {listed}")
        return clauses

    @property
    def hint(self) -> str:
        """What is likely to be wrong, and what to do about it; "" if nothing is known."""
        if not self.other_runs:
            return ""
        listed = ", ".join(map(repr, self.other_runs))
        return f"give the nodes of one job the same run id; others here ask for {listed}"

    def _stopping(self) -> str:
        """How long those of the missing that stop their workers may still take."""
        if not self.stopping:
            return ""
        are_all = self.stopping_count == self.missing_count
        named = "" if are_all else f"{some(self.stopping, self.stopping_count)}: "
        return f" ({named}at most {self.stop_left_s:.0f} s to stop workers)"


def ledger_unreachable(away_s: float, why: str) -> str:
    """The same words wherever it is shown. `away_s` is by the clock of who says so (R9)."""
    return f"ledger unreachable for {away_s:.1f} s: {why}"


def duration(seconds: float) -> str:
    """A time as people say it: 9 min 50 s."""
    whole = max(0, round(seconds))
    if whole < 60:
        return f"{whole} s"
    minutes, rest_s = divmod(whole, 60)
    if minutes < 60:
        return f"{minutes} min {rest_s} s" if rest_s else f"{minutes} min"
    hours, rest = divmod(minutes, 60)
    return f"{hours} h {rest} min" if rest else f"{hours} h"


class RefusalCode(enum.StrEnum):
    """Why a coordinator refuses a node. `client` turns each into one class of error."""

    TOKEN = "token"
    VERSION = "version"
    MALFORMED = "malformed"
    CONFLICT = "conflicting_settings"
    NAME_TAKEN = "name_taken"
    CLOSED = "run_closed"
    RUN_LOST = "run_lost"
    OTHER_RUN = "other_run"
    LIMIT = "limit"
    SUPERSEDED = "superseded"
    ELSEWHERE = "elsewhere"
    """Another process coordinates the run, at the refusal's addresses."""
    MOVED = "moved"
    """This process coordinates the run no longer: look in the ledger who does."""


class Refusal(FrozenStruct, frozen=True):
    """A "no" to a node, with what it must know to put it right."""

    code: RefusalCode
    message: str
    hint: str = ""
    conflicts: tuple[SettingConflict, ...] = ()
    close: CloseRecord | None = None
    addresses: tuple[Address, ...] = ()
    run_id: str = ""
    """The run that the coordinator has instead, if it is a node's own."""

    def __str__(self) -> str:
        return self.message


def conflict(
    run_id: str, conflicts: tuple[SettingConflict, ...], set_by: str = "", *, is_new: bool = False
) -> Refusal:
    """The node's settings are not those of the run: both values are shown.

    `set_by`: who set them, and when. `is_new`: the run has had no round, so it can be begun anew.
    """
    listed = "; ".join(str(each) for each in conflicts)
    hint = "start every node of a run with the same settings; the first to arrive sets them"
    if is_new:
        hint += (
            "; if that node is not of this job, use another run id, or end its run with "
            "`rallypoint close`, and start again"
        )
    return Refusal(
        RefusalCode.CONFLICT,
        f"this node's settings differ from those of run {run_id!r}: {listed}"
        + (f"; {set_by}" if set_by else ""),
        hint=hint,
        conflicts=conflicts,
    )


def settings_set_by(name: str, host: str, ago_s: float) -> str:
    """Which node was the first of the run, and when it came."""
    return f"node {name!r} on host {host!r} has set them {ago_s:.0f} s ago"


def name_taken(name: str, host: str) -> Refusal:
    """Another live node has the name: it was probed, and answered."""
    return Refusal(
        RefusalCode.NAME_TAKEN,
        f"a live node on host {host!r} already has the name {name!r} in this run",
        hint="give each node its own --node-name (torchrun: node_name in --rdzv-conf), or none",
    )


def not_the_member(name: str) -> Refusal:
    """A connection claims to be a member, by its incarnation, and cannot prove it."""
    return Refusal(
        RefusalCode.NAME_TAKEN,
        f"node {name!r} is a member of this run, and this connection did not show its secret",
        hint="a node resumes only from the process that attached; start it again to attach anew",
    )


def other_run(run_id: str, asked: str) -> Refusal:
    """The coordinator is that of one run, in a node, and the node asks for another."""
    return Refusal(
        RefusalCode.OTHER_RUN,
        f"this coordinator runs {run_id!r}, and this node asked for {asked!r}",
        hint="give every node the same run id; several runs at one address need a "
        "`rallypoint serve` there, or a port for each",
        run_id=run_id,
    )


def no_room(run_id: str, members: int, needed: int, room: int, table_bytes_max: int) -> Refusal:
    """The run's ledger cannot keep a member table with this node in it. Sizes in bytes."""
    return Refusal(
        RefusalCode.LIMIT,
        f"the ledger of run {run_id!r} keeps a member table of at most {table_bytes_max} bytes: "
        f"its {members} nodes leave {max(room, 0)}, and this node's entry needs {needed}; about "
        f"{table_bytes_max // needed} nodes like this one fit",
        hint="use fewer or shorter labels and names, fewer nodes, or etcd or a shared folder",
    )


def too_many_members(run_id: str, members_max: int) -> Refusal:
    """The run has as many members as it may have."""
    message = f"run {run_id!r} has {members_max} members, and takes no more"
    return Refusal(RefusalCode.LIMIT, message)


def too_many_runs(runs_max: int, runs: int) -> Refusal:
    """No room for another run, or none for this account."""
    whose = _whose(runs_max, runs, "runs")
    return Refusal(
        RefusalCode.LIMIT,
        f"this coordinator keeps at most {runs_max} runs: {whose}",
        hint="end runs that are not needed, or start `rallypoint serve` with a larger "
        "RALLYPOINT_RUNS_MAX",
    )


def too_many_sessions(sessions_max: int, sessions: int) -> Refusal:
    """No room for another connection, or none for this account."""
    whose = _whose(sessions_max, sessions, "connections")
    return Refusal(
        RefusalCode.LIMIT,
        f"this coordinator takes at most {sessions_max} connections: {whose}",
        hint="raise the coordinator's limit on open files (ulimit -n) and its "
        "RALLYPOINT_SESSIONS_MAX, whichever is lower",
    )


def begins_too_many(per_s: float) -> Refusal:
    """An account begins runs faster than it may."""
    return Refusal(
        RefusalCode.LIMIT,
        f"from this address more runs were begun than this coordinator takes ({per_s:g} a second)",
        hint="try again in some seconds, or start `rallypoint serve` with a larger "
        "RALLYPOINT_NEW_RUN_RATE",
    )


def _whose(most: int, there_are: int, what: str) -> str:
    if there_are >= most:
        return "they are all in use"
    return f"{there_are} are in use, and those with this token and address may not take the rest"


def elsewhere(run_id: str, process: str, addresses: tuple[Address, ...]) -> Refusal:
    """Another live process owns the run: its nodes attach there."""
    where = some(tuple(map(str, addresses[:NAMES_SHOWN_MAX])), len(addresses))
    at = f" at {where}" if addresses else ""
    return Refusal(
        RefusalCode.ELSEWHERE,
        f"run {run_id!r} is coordinated by {process}{at}",
        hint="attach there",
        addresses=addresses,
    )


def moved(run_id: str, why: str) -> Refusal:
    """This process has let go of the run; the ledger says, or will say, who has it now."""
    return Refusal(
        RefusalCode.MOVED,
        f"run {run_id!r} is no longer coordinated here: {why}",
        hint="look for its coordinator in the ledger",
    )


def run_closed(
    run_id: str, close: CloseRecord, ago_s: float, anew_s: float | None = None
) -> Refusal:
    """The run is over: why, and since when. `anew_s`: after how long it can be begun anew."""
    hint = "start again under another run id"
    if anew_s is not None:
        hint += f", or in {anew_s:.0f} s under this one, as the run never had a round"
    return Refusal(
        RefusalCode.CLOSED,
        f"run {run_id!r} was closed {ago_s:.0f} s ago: {describe_close(close)}",
        hint=hint,
        close=close,
    )


def run_over(run_id: str, close: CloseRecord) -> Refusal:
    """The run is over, as its register says: nobody need be asked (R6)."""
    return Refusal(
        RefusalCode.CLOSED,
        f"run {run_id!r} was closed: {describe_close(close)}",
        hint="start again under another run id",
        close=close,
    )


def too_few_remain(remaining: int, minimum: int, done: int) -> str:
    """Why a run ends that cannot reach its minimum any more, as other nodes have finished."""
    return f"{remaining} of at least {minimum} nodes remain; done: {done}"


def storm(rounds: int, within_s: float, last: Change | None) -> str:
    """Why a run is closed that ends its own rounds again and again."""
    why = f"; the last one: {describe(last)}" if last is not None else ""
    return (
        f"this run ended {rounds} of its rounds within {within_s:.0f} s, and went on when it was "
        f"slowed{why}"
    )


def describe_close(close: CloseRecord) -> str:
    """One line: how the run ended, and the cause if it failed."""
    by = f" (by {close.by})" if close.by else ""
    return f"{close.outcome.value.replace('_', ' ')}: {close.reason}{by}"


def describe(change: Change) -> str:
    """One line that says why a round ended: what happened, to whom, since when."""
    who = some(change.nodes, change.count)
    detail = f": {change.detail}" if change.detail else ""
    match change.kind:
        case ChangeKind.NODE_LOST if not change.nodes and change.detail:
            return change.detail  # The round's store was lost, and no member was.
        case ChangeKind.NODE_LOST:
            return f"{who} lost{detail}"
        case ChangeKind.WORKER_FAILED:
            return f"a worker failed on {who}: {_failure(change)}"
        case ChangeKind.NODE_LEFT:
            return f"{who} left{detail}"
        case ChangeKind.NODES_JOINED:
            return f"{who} joined"
        case ChangeKind.READY_AGAIN:
            return f"{who} asked for a new round"
        case ChangeKind.CLOSED:
            return f"the run was closed{detail}"


def when_lost(loss: PastLoss) -> str:
    """What the run did when members were lost by which no round ended."""
    match loss.phase:
        case Phase.ACTIVE:
            return f"which was not in round {loss.round}"
        case Phase.COMMITTING:
            return "while the ledger was being written"
        case _:
            return f"while nodes gathered for round {loss.round + 1}"


def describe_round(head: RoundHead, seat: Seat | None, node_rank: int = 0) -> str:
    """One line: a round has begun, and the place of this node in it.

    `seat` None: the coordinator does not count the workers, as under torchrun, and `node_rank` is
    all that is known of the place.
    """
    if seat is None:
        return f"round {head.number}: {_count(head.nodes, 'node')}; this is node {node_rank}"
    last = seat.first_rank + seat.workers - 1
    ranks = f"rank {last}" if seat.workers == 1 else f"ranks {seat.first_rank} to {last}"
    return (
        f"round {head.number}: {_count(head.nodes, 'node')}, {_count(head.size, 'worker')}; "
        f"this is node {seat.node_rank} with {ranks}"
    )


def describe_end_of_round(change: Change, before: Change | None) -> str:
    """One line: a round has ended, or its cause is known now. "" if `before` says the same."""
    why = describe(change)
    if before is not None and before.round == change.round:
        is_known = describe(before) == why
        return "" if is_known else f"round {change.round} has ended: the cause was: {why}"
    text = f"round {change.round} has ended: {why}"
    return text if change.confirmed else f"{text}; looking for the cause"


def describe_end_of_run(run_id: str, close: CloseRecord) -> str:
    """The same on every node: the outcome, and the cause with the last lines of its worker."""
    if close.outcome is Outcome.SUCCEEDED:
        return f"run {run_id!r} has succeeded: {close.reason}"
    text = f"error: run {run_id!r} has ended: {describe_close(close)}"
    cause = close.cause
    if cause is None or cause.failure is None or not cause.failure.last_lines:
        return text
    who = f"rank {cause.failure.rank} on {some(cause.nodes)}"
    lines = "\n".join(f"  | {line}" for line in cause.failure.last_lines)
    return f"{text}\nthe last lines of {who}:\n{lines}"


def tidy_failure(failure: Failure) -> Failure:
    """The failure as it is kept and told to others: its message is one line, as each last line."""
    return msgspec.structs.replace(
        failure,
        message=tidy(failure.message),
        last_lines=tuple(tidy(each.expandtabs()) for each in failure.last_lines),
    )


def tidy(text: str, characters_max: int = TEXT_LENGTH_MAX) -> str:
    """A text of a node as it is kept and told to others: on one line, escaped, and bounded.

    Escaped, it is longer. It must still be a text that nodes and successors accept.
    """
    return escaped(text[:characters_max])[:characters_max]


def tidy_change(change: Change) -> Change:
    """The same for why a round ended, as a node tells it."""
    return msgspec.structs.replace(
        change,
        nodes=tuple(tidy(each, NAME_LENGTH_MAX) for each in change.nodes[:NAMES_SHOWN_MAX]),
        detail=tidy(change.detail),
        failure=None if change.failure is None else tidy_failure(change.failure),
    )


def describe_failure(failure: Failure) -> str:
    """One line on a worker's failure: the rank, the kind, the exit and the message."""
    rank = f"rank {failure.rank} " if failure.rank is not None else ""
    if failure.kind is FailureKind.OOM:
        how = "was killed for memory"
    elif failure.signal is not None:
        how = f"was killed by signal {failure.signal}"
    elif failure.exit_code is not None:
        how = f"exited with code {failure.exit_code}"
    else:
        how = "failed"
    return f"{rank}{how}" + (f" ({failure.message})" if failure.message else "")


def some(names: Sequence[str], count: int = 0) -> str:
    """A bounded list of names in words: 'a, b and 3 more'."""
    total = max(count, len(names))
    if not names:
        return f"{total} nodes" if total else "a node"
    shown = ", ".join(names)
    return f"{shown} and {total - len(names)} more" if total > len(names) else shown


def first_names(names: Iterable[str]) -> tuple[str, ...]:
    """At most NAMES_SHOWN_MAX of them, in order."""
    shown: list[str] = []
    for name in names:
        if len(shown) == NAMES_SHOWN_MAX:
            break
        shown.append(name)
    return tuple(shown)


def _failure(change: Change) -> str:
    return describe_failure(change.failure) if change.failure else change.detail


def _count(number: int, what: str) -> str:
    return f"{number} {what}" if number == 1 else f"{number} {what}s"
