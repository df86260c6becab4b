"""Reasons for waiting, for a refusal and for an end, as data; and their texts.

The part that applies a rule makes the reason: `membership`, a session, a coordinator. The text is
made here, so that the error, the log, `rallypoint status` and the page have the same sentence.
"""

from __future__ import annotations

import enum
from collections.abc import Iterable, Sequence
from typing import Final

import msgspec

from rallypoint.core.orders import Order
from rallypoint.core.printable import are_ready, counted, escaped, some
from rallypoint.core.values import (
    NAME_LENGTH_MAX,
    NAMES_SHOWN_MAX,
    TEXT_LENGTH_MAX,
    Address,
    Change,
    CloseRecord,
    Failure,
    FrozenStruct,
    Outcome,
    RoundHead,
    RunSettings,
    Seat,
    SettingConflict,
    run_options,
)

PROCESS_ENDED: Final = "its process ended: the kernel closed its connection"
NOT_RESUMED: Final = "its connection closed and was not resumed"
NOT_HEARD: Final = "it fell silent and did not answer"
HOST_GONE: Final = "its host did not answer"
"""Begins the text of `host_gone`."""
SUPERSEDED: Final = "superseded by a newer start of the same name"
ENDED_AFTER_WORK: Final = "its connection ended after its workers had finished"
"""How a member left, as the detail of a change."""
UNSHARED: Final = "its text stays on its node: share_lines is 0"
"""In place of the text of a failure that its node may not share."""
OTHER_FORMAT_HINT: Final = (
    "use the release that wrote it; or stop every process of that release and give this release a "
    "ledger of its own (another folder, or another prefix in etcd)"
)
"""What to do about a record of a ledger that another release wrote in its own format."""
ALL_FINISHED: Final = "all nodes have finished"
"""Why a run succeeds."""


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
    """Other runs of the same coordinator whose nodes wait as well."""
    lost: tuple[str, ...] = ()
    """Nodes that were lost with the last round, or since, and have not come back."""
    lost_count: int = 0
    cooling: tuple[str, ...] = ()
    """Nodes that are ready, and stay out because they broke too many rounds."""
    cooling_count: int = 0
    idle: tuple[str, ...] = ()
    """Nodes that are attached and have not asked for a round yet; `idle_count` of them."""
    idle_count: int = 0

    def __str__(self) -> str:
        if self.ledger_away_s is not None:
            return f"suspended: {ledger_unreachable(self.ledger_away_s, self.suspended)}"
        if self.suspended:
            return f"suspended for {self.since_s:.0f} s: {self.suspended}"
        return "; ".join(self._clauses())

    def without_times(self) -> Waiting:
        """The same reason without its durations, so that it stays equal while only time passes."""
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
        clauses = [f"{are_ready(self.ready, self.minimum, self.maximum)}{ready}"]
        if self.idle:
            clauses.append(f"attached but not ready: {some(self.idle, self.idle_count)}")
        elif self.attached > self.ready and not self.missing:
            clauses.append(f"{self.attached - self.ready} attached but not ready")
        if self.missing:
            clauses.append(
                f"waiting for {some(self.missing, self.missing_count)}{self._stopping()}"
            )
        if self.lost:
            clauses.append(f"lost since the last round: {some(self.lost, self.lost_count)}")
        if self.cooling:
            out = some(self.cooling, self.cooling_count)
            clauses.append(f"to stay out, unless the minimum needs them: {out}")
        if self.last_call_s is not None:
            clauses.append(f"waiting {self.last_call_s:.1f} s for more nodes (last call)")
        if self.guard_s is not None:
            clauses.append(
                f"{some(self.suspects, len(self.suspects))} went missing together, so no node "
                f"is declared lost for {self.guard_s:.0f} s"
            )
        if self.held_back_s is not None:
            clauses.append(
                "the rounds of this run end too often, so the next one is held back for "
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
        """The probable fault and what to do about it; "" if unknown."""
        if not self.other_runs:
            return ""
        listed = ", ".join(map(repr, self.other_runs))
        return f"give all nodes of one job the same run id; other nodes here ask for {listed}"

    def _stopping(self) -> str:
        """How much longer missing nodes may take to stop their workers, in words."""
        if not self.stopping:
            return ""
        are_all = self.stopping_count == self.missing_count
        named = "" if are_all else f"{some(self.stopping, self.stopping_count)}: "
        return f" ({named}at most {self.stop_left_s:.0f} s to stop workers)"


def ledger_unreachable(away_s: float, why: str) -> str:
    """Why the ledger cannot be used. `away_s`: by the clock of the process that reports it (R9)."""
    if away_s < 0.05:  # the first failure
        return f"ledger unreachable: {why}"
    return f"ledger unreachable for {away_s:.1f} s: {why}"


def duration(seconds: float) -> str:
    """A duration in words: 9 min 50 s."""
    whole = max(0, round(seconds))
    if whole < 60:
        return f"{whole} s"
    minutes, rest_s = divmod(whole, 60)
    if minutes < 60:
        return f"{minutes} min {rest_s} s" if rest_s else f"{minutes} min"
    hours, rest = divmod(minutes, 60)
    return f"{hours} h {rest} min" if rest else f"{hours} h"


class RefusalCode(enum.StrEnum):
    """Why a coordinator refuses a node. The client has one class of error for each."""

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
    EVICTED = "evicted"
    """An operator has taken the node out of the run."""
    ELSEWHERE = "elsewhere"
    """Another process coordinates the run, at the refusal's addresses."""
    MOVED = "moved"
    """This process does not coordinate the run any more. The ledger names the process that does."""


class Refusal(FrozenStruct, frozen=True):
    """Why a node is refused, and what its user can do."""

    code: RefusalCode
    message: str
    hint: str = ""
    conflicts: tuple[SettingConflict, ...] = ()
    close: CloseRecord | None = None
    addresses: tuple[Address, ...] = ()
    run_id: str = ""
    """The only run of the coordinator, if that is inside a node."""

    def __str__(self) -> str:
        return self.message


def conflict(
    run_id: str, conflicts: tuple[SettingConflict, ...], set_by: str = "", *, is_new: bool = False
) -> Refusal:
    """The node's settings differ from those of the run. Both values of each are shown.

    `set_by`: the node that set the run's settings, and when. `is_new`: the run has had no round, so
    it can begin again.
    """
    listed = "; ".join(str(each) for each in conflicts)
    options = run_options(each.name for each in conflicts)
    hint = f"start every node of a run with the same settings ({options}); the first node sets them"
    if is_new:
        hint += (
            "; if that node is not part of this job, use another run id, or end its run with "
            "`rallypoint close` and start again"
        )
    return Refusal(
        RefusalCode.CONFLICT,
        f"this node's settings differ from those of run {run_id!r}: {listed}"
        + (f"; {set_by}" if set_by else ""),
        hint=hint,
        conflicts=conflicts,
    )


def unknown_policy(policy: str, known: Sequence[str]) -> Refusal:
    """The node's settings name a rank policy that this coordinator does not have."""
    message = f"unknown rank policy {policy!r}"
    return Refusal(RefusalCode.MALFORMED, message, hint=f"known policies: {', '.join(known)}")


def settings_set_by(name: str, host: str, ago_s: float) -> str:
    """The node that set the run's settings, which is its first one, in words."""
    return f"node {name!r} on host {host!r} set the run's settings {ago_s:.0f} s ago"


def name_taken(name: str, host: str) -> Refusal:
    """Another node has the name. It has answered a probe, so it is alive."""
    return Refusal(
        RefusalCode.NAME_TAKEN,
        f"a live node on host {host!r} already has the name {name!r} in this run",
        hint="give each node its own --node-name (torchrun: node_name in --rdzv-conf), or none",
    )


def not_the_member(name: str) -> Refusal:
    """A connection names the incarnation of a member, and does not prove to be that node."""
    return Refusal(
        RefusalCode.NAME_TAKEN,
        f"node {name!r} is a member of this run, but this connection did not show its secret",
        hint="only the process that attached can resume; start the node again to join as new",
    )


def superseded(name: str) -> Refusal:
    """A newer start of the node has its name now."""
    message = f"a newer start of node {name!r} has taken its place in the run"
    return Refusal(
        RefusalCode.SUPERSEDED,
        message,
        hint="stop this process; to run both, give each node its own --node-name",
    )


def drained(order: Order) -> str:
    """Why a node leaves that an operator has asked to leave."""
    return f"drained by {order}"


NOT_ALL_ASK_HERE: Final = (
    "not all workers of this node have called should_yield in this round, so no last step can be "
    "agreed on"
)
NOT_ALL_ASK: Final = (
    "not all workers of the round call should_yield, so no last step can be agreed on"
)
ALL_GO_ON: Final = (
    "the workers were asked for a last step once in this round, and told to go on as the node that "
    "drained had finished: no other last step can be agreed on in it"
)
"""Why a node that drains leaves without an agreed step."""


def no_agreement(*, all_go_on: bool) -> str:
    """Why not all workers are asked for a step. `all_go_on`: they have been told to go on."""
    return ALL_GO_ON if all_go_on else NOT_ALL_ASK


def evicted_by(order: Order) -> str:
    """How a member left that an operator has evicted."""
    return f"evicted by {order}"


def evicted(order: Order, *, knows: bool) -> Refusal:
    """An operator has evicted the node. `knows`: its release has the code for that."""
    # A node of an earlier release stops its workers for this other code.
    code = RefusalCode.EVICTED if knows else RefusalCode.SUPERSEDED
    return Refusal(
        code,
        f"node {order.node.name!r} was evicted by {order}",
        hint="ask the operator of the run, who can lift that with `rallypoint admit`; or use "
        "another --node-name for a machine that is sound",
    )


def other_run(run_id: str, asked: str) -> Refusal:
    """The coordinator is embedded in a node and has one run. The node asks for another run."""
    return Refusal(
        RefusalCode.OTHER_RUN,
        f"this coordinator has only run {run_id!r}, and this node asked for run {asked!r}",
        hint="give every node the same run id; for several runs at one address start "
        "`rallypoint serve` there, or give each run its own port",
        run_id=run_id,
    )


def no_room(run_id: str, members: int, needed: int, room: int, table_bytes_max: int) -> Refusal:
    """The run's ledger cannot keep a member table that has this node. Sizes in bytes."""
    return Refusal(
        RefusalCode.LIMIT,
        f"the ledger of run {run_id!r} keeps a member table of at most {table_bytes_max} bytes: "
        f"its {members} nodes leave {max(room, 0)} free, and this node needs {needed}; about "
        f"{table_bytes_max // needed} nodes like this one fit",
        hint="use fewer or shorter labels and names, fewer nodes, or another ledger: etcd or a "
        "shared folder",
    )


def run_lost(run_id: str, why: str) -> Refusal:
    """The records of the run are lost to this node. `why` goes on after "run ... was"."""
    hint = "start all nodes of the run again: it begins as a new run"
    return Refusal(RefusalCode.RUN_LOST, f"run {run_id!r} was {why}", hint)


def run_removed(run_id: str) -> Refusal:
    """The node was in a run that ended and was removed, and another run has its id."""
    return Refusal(
        RefusalCode.RUN_LOST,
        f"run {run_id!r} ended while this node could not be reached, and was removed; "
        "another run has its id now",
        hint="see the logs of its other nodes for how it ended; give each job its own run id",
    )


def too_many_members(run_id: str, members_max: int) -> Refusal:
    """The run has as many members as it may have."""
    message = f"run {run_id!r} already has {members_max} members, its maximum"
    hint = "split the job into several runs, each with fewer nodes"
    return Refusal(RefusalCode.LIMIT, message, hint)


def too_many_runs(runs_max: int, runs: int) -> Refusal:
    """There is no room for another run, or none for this account."""
    whose = _whose(runs_max, runs)
    return Refusal(
        RefusalCode.LIMIT,
        f"this coordinator keeps at most {runs_max} runs: {whose}",
        hint="end runs that are not needed, or start `rallypoint serve` with a larger "
        "RALLYPOINT_RUNS_MAX",
    )


def too_many_sessions(sessions_max: int, sessions: int) -> Refusal:
    """There is no room for another connection, or none for this account."""
    whose = _whose(sessions_max, sessions)
    return Refusal(
        RefusalCode.LIMIT,
        f"this coordinator takes at most {sessions_max} connections: {whose}",
        hint="raise the coordinator's limit on open files (ulimit -n) and its "
        "RALLYPOINT_SESSIONS_MAX, whichever is lower",
    )


def too_many_of_token(what: str, most: int, variable: str) -> Refusal:
    """One token has as many runs or connections as it may."""
    return Refusal(
        RefusalCode.LIMIT,
        f"this token has {most} {what} here, and may have no more",
        hint=f"end those that are not needed, or start `rallypoint serve` with a larger {variable}",
    )


def begins_too_many(per_s: float) -> Refusal:
    """An account begins runs too fast."""
    return Refusal(
        RefusalCode.LIMIT,
        f"this address starts runs faster than this coordinator allows ({per_s:g} a second)",
        hint="try again in a few seconds, or start `rallypoint serve` with a larger "
        "RALLYPOINT_NEW_RUN_RATE",
    )


def _whose(most: int, there_are: int) -> str:
    if there_are >= most:
        return "they are all in use"
    return f"{there_are} are in use, and the rest is kept for other tokens and addresses"


def elsewhere(run_id: str, process: str, addresses: tuple[Address, ...]) -> Refusal:
    """Another live process coordinates the run."""
    where = some(tuple(map(str, addresses[:NAMES_SHOWN_MAX])), len(addresses))
    at = f" at {where}" if addresses else ""
    return Refusal(
        RefusalCode.ELSEWHERE,
        f"run {run_id!r} is coordinated by {process}{at}",
        hint="attach there",
        addresses=addresses,
    )


def moved(run_id: str, why: str) -> Refusal:
    """This process does not coordinate the run any more. The ledger names the process that does."""
    return Refusal(
        RefusalCode.MOVED,
        f"run {run_id!r} is no longer coordinated here: {why}",
        hint="look for its coordinator in the ledger",
    )


def run_closed(
    run_id: str, close: CloseRecord, ago_s: float, again_after_s: float | None = None
) -> Refusal:
    """The run is over. `again_after_s`: when it can begin again, in seconds; None: never."""
    hint = "start again under another run id"
    if again_after_s is not None:
        hint += f", or in {again_after_s:.0f} s under this one, as the run never had a round"
    return Refusal(
        RefusalCode.CLOSED,
        f"run {run_id!r} was closed {ago_s:.0f} s ago: {close}",
        hint=hint,
        close=close,
    )


def run_over(run_id: str, close: CloseRecord) -> Refusal:
    """The run is over, as its record in the ledger says (R6)."""
    return Refusal(
        RefusalCode.CLOSED,
        f"run {run_id!r} was closed: {close}",
        hint="start again under another run id",
        close=close,
    )


def store_lost(why: str) -> str:
    """Why a round ends if its store is gone."""
    return f"the round's store was lost: {why}"


_NO_RESTARTS: Final = "the run allows no restarts (--max-restarts 0)"


def budget_spent(change: Change, settings: RunSettings, spent: int, weight: int) -> str:
    """Why a run ends with this change: its restart budget is spent.

    `weight`: how much this failure counts. `spent`: what the others have cost.
    """
    limit = settings.max_restarts
    if not limit:
        return f"{change}; {_NO_RESTARTS}"
    why = f"the run's restart budget (--max-restarts {limit}) is spent"
    if weight > 1:
        left = max(0, limit - spent)
        why += (
            f": a failure within {settings.early_s:g} s of the start counts double, "
            f"and {left} {'was' if left == 1 else 'were'} left"
        )
    elif settings.restart_window_s is not None:
        why += f" within {duration(settings.restart_window_s)}"
    return f"{change}; {why}"


def broke_rounds(rounds: int, last: str) -> str:
    """Why a node stays out."""
    return f"it broke {counted(rounds, 'round')}, the last one by: {last}"


def unfit(why: str) -> str:
    """Why a node stays out whose own check has failed."""
    return f"its check failed: {why}"


def stays_out(left_s: float, why: str) -> str:
    """For how long a node stays out, if that is known, and why."""
    return f"for {duration(left_s)}: {why}" if left_s else why


def same_failure(change: Change, times: int) -> str:
    """Why a run ends with this change: the program fails again and again in the same way."""
    return (
        f"{change}; the program has failed in the same way {times} times in a row (--same-failure)"
    )


def no_restart(change: Change) -> str:
    """Why a run ends with this change: the worker's exit code forbids a restart."""
    code = change.failure.exit_code if change.failure is not None else None
    return f"{change}; the run does not restart after exit code {code} (--no-restart-exit-codes)"


def too_few_remain(remaining: int, minimum: int, done: int) -> str:
    """Why a run ends: nodes have finished, and the others are fewer than the minimum."""
    return f"{remaining} of at least {minimum} nodes remain, and {done} finished"


def storm(rounds: int, within_s: float, last: Change | None) -> str:
    """Why the run is closed: its rounds end as soon as they begin (`pacing`)."""
    why = f"; the last one: {last}" if last is not None else ""
    return (
        f"{rounds} rounds of this run ended within {within_s:.0f} s, although new rounds were "
        f"held back{why}"
    )


def host_gone(witnesses: Sequence[str]) -> str:
    """The evidence that a host is gone. `witnesses`: at most a few names."""
    return f"{HOST_GONE} {_listed(witnesses)}, which had reached it before"


def host_lives(witnesses: Sequence[str]) -> str:
    """The evidence that a host lives."""
    return f"its host answered {_listed(witnesses)}, so only its process is stopped or cut off"


def _listed(names: Sequence[str]) -> str:
    *others, last = names
    return f"{', '.join(others)} and {last}" if others else last


def describe_round(head: RoundHead, seat: Seat | None, node_rank: int = 0) -> str:
    """One line: a round has begun, and the ranks of this node in it.

    `seat` None: the coordinator does not count workers, for example under torchrun. Then only
    `node_rank` is known.
    """
    if seat is None:
        return f"round {head.number}: {counted(head.nodes, 'node')}; this is node {node_rank}"
    last = seat.first_rank + seat.workers - 1
    ranks = f"rank {last}" if seat.workers == 1 else f"ranks {seat.first_rank} to {last}"
    return (
        f"round {head.number}: {counted(head.nodes, 'node')}, {counted(head.size, 'worker')}; "
        f"this is node {seat.node_rank} with {ranks}"
    )


ROUND_HAS_ENDED: Final = "round {round} has ended"
CAUSE_WAS: Final = "round {round} has ended: the cause was"
"""What nodes and coordinators say of the end of a round, before the cause."""


def describe_end_of_round(change: Change, before: Change | None) -> str:
    """One line: a round has ended, or its cause is known now. "" if `before` had the same text."""
    why = str(change)
    if before is not None and before.round == change.round:
        is_known = str(before) == why
        return "" if is_known else f"{CAUSE_WAS.format(round=change.round)}: {why}"
    text = f"{ROUND_HAS_ENDED.format(round=change.round)}: {why}"
    return text if change.confirmed else f"{text}; looking for the cause"


def describe_end_of_run(run_id: str, close: CloseRecord) -> str:
    """How the run ended, with the last lines of the worker at fault. Equal on all nodes."""
    if close.outcome is Outcome.SUCCEEDED:
        return f"run {run_id!r} has succeeded: {close.reason}"
    text = f"error: run {run_id!r} has ended: {close}"
    cause = close.cause
    if cause is None or cause.failure is None or not cause.failure.last_lines:
        return text
    who = f"rank {cause.failure.rank} on {some(cause.nodes)}"
    lines = "\n".join(f"  | {line}" for line in cause.failure.last_lines)
    return f"{text}\nthe last lines of {who}:\n{lines}"


def tidy_failure(failure: Failure) -> Failure:
    """The failure as it is kept and sent: its message and each of its last lines are one line."""
    return msgspec.structs.replace(
        failure,
        message=tidy(failure.message),
        last_lines=tuple(tidy(each.expandtabs()) for each in failure.last_lines),
    )


def tidy(text: str, characters_max: int = TEXT_LENGTH_MAX) -> str:
    """A node's text as it is kept and sent: one escaped line of limited length."""
    # Escaping lengthens the text, and nodes and other coordinators refuse one that is too long.
    return escaped(text[:characters_max])[:characters_max]


def tidy_change(change: Change) -> Change:
    """The same for the reason that a node gives for the end of a round."""
    return msgspec.structs.replace(
        change,
        nodes=tuple(tidy(each, NAME_LENGTH_MAX) for each in change.nodes[:NAMES_SHOWN_MAX]),
        detail=tidy(change.detail),
        failure=None if change.failure is None else tidy_failure(change.failure),
    )


def first_names(names: Iterable[str]) -> tuple[str, ...]:
    """The first NAMES_SHOWN_MAX of them."""
    shown: list[str] = []
    for name in names:
        if len(shown) == NAMES_SHOWN_MAX:
            break
        shown.append(name)
    return tuple(shown)


def advances(step: int | None, steps_per_s: float | None) -> str:
    """How far the workers of a round are."""
    if step is None:
        return "its workers advance"
    pace = f", {rate(steps_per_s)}" if steps_per_s else ""
    return f"step {step:,}{pace}"


def rate(steps_per_s: float) -> str:
    """A pace in words: 3.1 steps/s, or 12 s/step if that is slower than one."""
    if steps_per_s >= 1:
        return f"{steps_per_s:,.{1 if steps_per_s < 100 else 0}f} steps/s"
    return (
        f"{1 / steps_per_s:.1f} s/step"
        if steps_per_s > 1 / 60
        else f"{duration(1 / steps_per_s)}/step"
    )


def nobody_advances(still_s: float, step: int | None, timeout_s: float | None) -> str:
    """A round whose workers have not advanced for longer than usual."""
    at = f" after step {step:,}" if step is not None else ""
    then = f"; after {duration(timeout_s)} the round ends as a hang" if timeout_s else ""
    return f"no worker has advanced for {duration(still_s)}{at}{then}"


def where_do_they_stand(still_s: float) -> str:
    """The deadline for a hang has passed: the nodes are asked."""
    return (
        f"no worker has advanced for {duration(still_s)}: the nodes are asked where their workers "
        "stand, and then the round ends"
    )


def stand_behind(names: Sequence[str], count: int) -> str:
    """Members whose steps are behind those of others. `names`: the furthest behind first."""
    return f"{some(tuple(names), count)} {'stands' if count == 1 else 'stand'} behind the others"
