"""The status of runs, for people and tools, with all its fields.

Every answer about a run has all fields of `RunStatus`, and every line of a list has all fields of
`RunSummary`. This holds in each phase, and also for values from the ledger. An unknown value is
null. `rallypoint status --json` prints the same. The fields are part of the public API:
docs/status.md describes them, and docs/compatibility.md says how they may change.

Names of durations end with `_s`; they are in seconds, measured by one clock, and never negative.
Names of times of day end with `_at`: seconds since 1970 by the clock of the host that is named
beside them.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from itertools import islice
from typing import TYPE_CHECKING, Any, Final

import msgspec

from rallypoint import runtime
from rallypoint.coordinator.config import SOFTWARE
from rallypoint.coordinator.progress_view import ProgressView
from rallypoint.coordinator.run_events import EventKind, RunEvent
from rallypoint.core import cooling, reasons
from rallypoint.core.blame import spent_of
from rallypoint.core.election.records import Lease, RunRegister
from rallypoint.core.marking import ranks_in
from rallypoint.core.orders import Orders
from rallypoint.core.past import PastLoss, PastRound
from rallypoint.core.ranks import seats_of
from rallypoint.core.roster import Bucket, Member
from rallypoint.core.values import (
    Address,
    MemberState,
    NodeId,
    RoundMember,
    RoundRecord,
    Seat,
    named,
)
from rallypoint.core.witnesses import Evidence
from rallypoint.security.roles import EVERYBODY, Principal

if TYPE_CHECKING:
    from rallypoint.coordinator.coordinator import Coordinator
    from rallypoint.coordinator.history import RoundHistory
    from rallypoint.coordinator.hosted_run import HostedRun

UNOWNED: Final = "unowned"
"""The phase of a run in the ledger without an owner."""
UNREACHABLE: Final = "unreachable"
"""The coordinator in the ledger does not answer, or does not have this run."""
UNKNOWN: Final = "unknown"
"""There is no such run, or its register cannot be read."""

FROM_COORDINATOR: Final = "coordinator"
FROM_LEDGER: Final = "ledger"

EVENTS_MAX: Final = 2_000
"""How many of a run's events are looked through for what its rounds waited for."""

_STOPPING: Final = (Bucket.STOPPING, Bucket.PLACE)
"""Members of a round that is over, which have to stop their workers."""

Named = dict[str, Any]
"""A value of `core`, with the names of its fields: `named(value)`."""


class _Shown(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Base of all classes here. No field has a default, so that no answer omits one."""


class CoordinatorStatus(_Shown, frozen=True, kw_only=True):
    """The coordinator that answers. The times of day are by the clock of `host`.

    `node`: the node that hosts it; null for `rallypoint serve`. `memory_bytes`: the memory of all
    runs, which is limited to about `memory_bytes_max`.
    """

    software: str
    ledger_id: str
    connections: int
    host: str
    node: str | None
    memory_bytes: int
    memory_bytes_max: int


class OwnerStatus(_Shown, frozen=True, kw_only=True):
    """The owner of the run, from the ledger. `process`: the name of its lease."""

    process: str
    addresses: list[str]


class MemberProgress(_Shown, frozen=True, kw_only=True):
    """How far the workers of a member are. `step`: the highest; null if they report none.

    `advanced_ago_s`: how long ago one of them advanced. `steps_per_s`: their pace; 0 if they stand
    still; null if it is unknown. `steps_behind`: behind the first member; null without steps.
    `is_behind`: the others were at its step a second ago or more.
    """

    step: int | None
    advanced_ago_s: float
    steps_per_s: float | None
    steps_behind: int | None
    is_behind: bool


class ProgressStatus(_Shown, frozen=True, kw_only=True):
    """How far the workers of the present round are. The first fields are as those of a member.

    `hang_timeout_s`: after how long without progress the round ends as a hang; null: never.
    `is_still`: nobody has advanced for longer than usual. `is_asking`: the nodes are asked where
    their workers stand. `in_words`: all of it as a sentence.
    """

    step: int | None
    advanced_ago_s: float
    steps_per_s: float | None
    hang_timeout_s: float | None
    is_still: bool
    is_asking: bool
    in_words: str


class MemberStatus(_Shown, frozen=True, kw_only=True):
    """A member. `state`, `link`, `troubled_s` and `index` are only known from its coordinator.

    `drained`: the operator who has asked it to leave, and why; null if none has. `draining`: why it
    leaves the round, `draining_left_s` from now at the latest; null if it stays. `cooling`: for how
    long it stays out of rounds, and why; null if it does not. `cooling_why`: only why;
    `cooling_left_s`: how long still; null until its own check passes.
    `evidence`: what witnesses have found about its host while it cannot be heard; null if nothing.
    """

    name: str
    index: int | None
    host: str
    addresses: list[str]
    labels: dict[str, str]
    workers: int
    state: str | None
    link: str | None
    troubled_s: float | None
    node_rank: int | None
    ranks: list[int]
    drained: str | None
    draining: str | None
    draining_left_s: float | None
    cooling: str | None
    cooling_why: str | None
    cooling_left_s: float | None
    evidence: str | None
    progress: MemberProgress | None


class RoundStatus(_Shown, frozen=True, kw_only=True):
    """A round. See `core.past.PastRound` for its times.

    `waited`: what it was waited for, for more than a second each, in words, from the run's events;
    null from the ledger.
    """

    number: int
    nodes: int
    size: int
    restart_count: int
    members: list[str] | None
    published: bool
    formed_at: float | None
    formed_on: str | None
    gathering_s: float | None
    committing_s: float | None
    active_s: float | None
    active_min_s: float
    ended_at: float | None
    ended_on: str | None
    ended: str
    change: Named | None
    waited: list[str] | None


class LossStatus(_Shown, frozen=True, kw_only=True):
    """Members that were lost beside a round. See `core.past.PastLoss`."""

    round: int
    phase: str
    lost_at: float
    lost_on: str
    nodes: list[str]
    count: int
    text: str


class EvictionStatus(_Shown, frozen=True, kw_only=True):
    """A node that an operator has taken out of the run."""

    node: str
    by: str
    reason: str


class ScaleStatus(_Shown, frozen=True, kw_only=True):
    """How many nodes an operator wants, in place of what the nodes ask for."""

    min_nodes: int
    max_nodes: int
    by: str
    reason: str


class RunSummary(_Shown, frozen=True, kw_only=True):
    """A run as a line of a list.

    `source`: "coordinator" if the owner of the run has answered, "ledger" if the values are from
    the ledger; null for an unknown run. `round`, `nodes`, `size`: of the last round; 0 before the
    first. `attached`: nodes that are attached. `memory_bytes`: the memory of the run. `phase_s`:
    for how long the run has been in this phase, as far as its coordinator has seen. `progress`: how
    far the workers of the present round are; null if nothing is known.
    """

    run_id: str
    term: int | None
    phase: str
    reason: str
    suspended: list[str] | None
    round: int | None
    nodes: int | None
    size: int | None
    attached: int | None
    restart_count: int | None
    restarts_spent: int | None
    waiting: Named | None
    closed: Named | None
    source: str | None
    owner: OwnerStatus | None
    memory_bytes: int | None
    phase_s: float | None
    progress: ProgressStatus | None


class RunStatus(RunSummary, frozen=True, kw_only=True):
    """A run in detail. `shown_at`: the time of the answer, by the clock of host `shown_on`.

    `behind`: some members that stand behind the others, the furthest first; `behind_total`: how
    many they are. null from the ledger.
    """

    coordinator: CoordinatorStatus | None
    settings: Named | None
    bootstrap: str | None
    digest: str | None
    members: list[MemberStatus] | None
    members_total: int | None
    behind: list[str] | None
    behind_total: int | None
    rounds: list[RoundStatus] | None
    losses: list[LossStatus] | None
    evicted: list[EvictionStatus] | None
    scaled: ScaleStatus | None
    shown_at: float
    shown_on: str


class RunList(_Shown, frozen=True, kw_only=True):
    """A page of runs. `problem`: why some may be missing; null if none is.

    `next`: the value of `?after=` for the next page; null if this is the last page.
    """

    coordinator: CoordinatorStatus | None
    runs: list[RunSummary]
    problem: str | None
    next: str | None


def filled(answer: dict[str, Any], kind: type[_Shown]) -> dict[str, Any]:
    """The answer with every field of `kind`, as another release may have omitted some."""
    return {name: answer.get(name) for name in kind.__struct_fields__} | answer


# -- from the run's coordinator --------------------------------------------------------------------


def coordinator_of(coordinator: Coordinator, principal: Principal = EVERYBODY) -> CoordinatorStatus:
    """The status of this coordinator for this principal."""
    config = coordinator.config
    node = config.own_node if config.only_run and principal.sees(config.only_run) else None
    return CoordinatorStatus(
        software=SOFTWARE,
        ledger_id=coordinator.ledger_id,
        connections=len(coordinator.sessions),
        host=config.clock_host,
        node=node.name if node is not None else None,
        memory_bytes=coordinator.budget.used,
        memory_bytes_max=coordinator.budget.bytes_max,
    )


def summary_of(
    run: HostedRun, owner: OwnerStatus | None, principal: Principal = EVERYBODY
) -> RunSummary:
    """A run of this coordinator as a line of a list for this principal."""
    return RunSummary(**_summary_fields(run, owner, principal))


def status_of(
    coordinator: Coordinator,
    run: HostedRun,
    owner: OwnerStatus | None,
    members: list[MemberStatus],
    principal: Principal = EVERYBODY,
) -> RunStatus:
    """A run of this coordinator in detail for this principal, with these members."""
    membership = run.membership
    record = membership.round
    settings = membership.settings
    behind, behind_total = run.progress_view().behind()
    return RunStatus(
        **_summary_fields(run, owner, principal),
        coordinator=coordinator_of(coordinator, principal),
        settings=named(settings) if settings else None,
        bootstrap=str(record.head.bootstrap) if record else None,
        digest=record.head.digest if record else None,
        members=members,
        members_total=len(membership.roster),
        behind=behind,
        behind_total=behind_total,
        rounds=_rounds(run),
        losses=[_loss(each) for each in run.history.losses],
        evicted=_evicted(membership.orders),
        scaled=_scaled(membership.orders),
        shown_at=runtime.here().wall_s(),
        shown_on=coordinator.config.clock_host,
    )


def members_of(coordinator: Coordinator, run: HostedRun, most: int) -> Iterator[MemberStatus]:
    """The run's present members, at most `most`. Each is computed when the iterator reaches it."""
    membership, now_s = run.membership, coordinator.now_s()
    shown = list(islice(membership.roster, most))
    names = {member.name for member in shown}
    record, seats = membership.round, {}
    if record is not None:
        rows = zip(record.members, seats_of(record), strict=True)
        seats = {row.name: seat for row, seat in rows if row.name in names}
    view = run.progress_view()
    return (_member(run, member, seats.get(member.name), now_s, view) for member in shown)


def _summary_fields(
    run: HostedRun, owner: OwnerStatus | None, principal: Principal
) -> dict[str, Any]:
    membership = run.membership
    waiting, close = run.waiting(principal.sees), membership.close
    head = membership.round.head if membership.round else None
    reason = str(close) if close is not None else str(waiting or "")
    return {
        "run_id": run.run_id,
        "term": membership.term,
        "phase": membership.phase.value,
        "reason": reason,
        "suspended": list(membership.suspension.reasons),
        "round": head.number if head else 0,
        "nodes": head.nodes if head else 0,
        "size": head.size if head else 0,
        "attached": len(membership.roster),
        "restart_count": membership.restart_count,
        "restarts_spent": run.restarts_spent(),
        "waiting": named(waiting) if waiting else None,
        "closed": named(close) if close else None,
        "source": FROM_COORDINATOR,
        "owner": owner,
        "memory_bytes": run.share.used,
        "phase_s": run.phase_s(),
        "progress": _progress(run.progress_view()),
    }


def _progress(view: ProgressView) -> ProgressStatus | None:
    if not view.is_known:
        return None
    return ProgressStatus(
        step=view.step,
        advanced_ago_s=view.still_s,
        steps_per_s=view.steps_per_s,
        hang_timeout_s=view.hang_timeout_s,
        is_still=view.is_still,
        is_asking=view.is_asking,
        in_words=view.in_words(),
    )


def _member_progress(view: ProgressView, name: str) -> MemberProgress | None:
    node = view.node(name)
    if node is None:
        return None
    return MemberProgress(
        step=node.step,
        advanced_ago_s=view.ago_s(node),
        steps_per_s=view.pace_of(node),
        steps_behind=view.steps_behind(node),
        is_behind=view.is_behind(node),
    )


def _member(
    run: HostedRun, member: Member, seat: Seat | None, now_s: float, view: ProgressView
) -> MemberStatus:
    # The core knows what it has been told: such a member is active until it is ready again.
    is_stopping = member.state is MemberState.ACTIVE and member.bucket in _STOPPING
    is_in_round = member.state in (MemberState.ACTIVE, MemberState.DONE) and not is_stopping
    place = seat if is_in_round else None
    state = "stopping" if is_stopping else member.state.value
    if run.membership.is_standby(member):
        state = "standby"
    why_out = cooling.why_out(run.membership, member)
    left_s = cooling.left_s(run.membership, member, now_s)
    due_s, why_leaves = run.membership.agreement.draining.get(member.id, (0.0, None))
    return MemberStatus(
        name=member.name,
        index=member.info.index,
        host=member.info.host,
        addresses=list(member.info.addresses),
        labels=member.info.labels,
        workers=member.workers,
        state=state,
        link=member.reachability.value,
        troubled_s=max(0.0, now_s - member.trouble_since_s) if member.is_troubled else 0.0,
        node_rank=place.node_rank if place else None,
        ranks=_ranks(place),
        drained=_drained(run.membership.orders, member.id),
        draining=why_leaves,
        draining_left_s=max(0.0, due_s - now_s) if why_leaves is not None else None,
        cooling=reasons.stays_out(left_s, why_out) if why_out else None,
        cooling_why=why_out or None,
        cooling_left_s=left_s if why_out and left_s else None,
        evidence=_evidence(run.membership.witnesses.evidence_of(member.name)),
        progress=_member_progress(view, member.name),
    )


def _evidence(evidence: Evidence | None) -> str | None:
    return None if evidence is None else str(evidence)


def _drained(orders: Orders, node: NodeId) -> str | None:
    drain = orders.drain_of(node)
    return None if drain is None else str(drain)


def _evicted(orders: Orders) -> list[EvictionStatus]:
    return [
        EvictionStatus(node=each.node.name, by=each.by, reason=each.reason)
        for each in orders.evictions
    ]


def _scaled(orders: Orders) -> ScaleStatus | None:
    scale = orders.scale
    return None if scale is None else ScaleStatus(**named(scale))


def _ranks(seat: Seat | None) -> list[int]:
    return list(range(seat.first_rank, seat.first_rank + seat.workers)) if seat else []


def _rounds(run: HostedRun) -> list[RoundStatus]:
    waited = waits_of(run.events.last(EVENTS_MAX))
    return [_round(each, waited.get(each.number, [])) for each in run.history.rounds]


def waits_of(events: Iterable[RunEvent]) -> dict[int, list[str]]:
    """By the number of a round: what it was waited for, in words. `events`: oldest first."""
    found: dict[int, list[str]] = {}
    waits: list[str] = []
    for event in events:
        if event.kind is EventKind.WAITED:
            waits.append(str(event))
        elif waits and event.kind in (EventKind.FORMED, EventKind.NOT_BEGUN):
            found[event.round] = waits
            waits = []
    return found


def _round(each: RoundHistory, waited: list[str]) -> RoundStatus:
    names = [name for name in RoundStatus.__struct_fields__ if name != "waited"]
    fields: dict[str, Any] = {name: getattr(each, name) for name in names}
    fields["waited"] = waited
    fields["change"] = named(each.change) if each.change is not None else None
    fields["formed_on"], fields["ended_on"] = each.formed_on or None, each.ended_on or None
    return RoundStatus(**fields)


def _loss(loss: PastLoss) -> LossStatus:
    return LossStatus(
        round=loss.round,
        phase=loss.phase,
        lost_at=loss.at,
        lost_on=loss.on,
        nodes=list(loss.nodes),
        count=loss.count,
        text=loss.text,
    )


# -- from the ledger -------------------------------------------------------------------------------


def owner_of(process: str, addresses: tuple[Address, ...]) -> OwnerStatus:
    """The owner of a run, from its lease."""
    return OwnerStatus(process=process, addresses=[str(each) for each in addresses])


def kept_summary(register: RunRegister, lease: Lease | None, problem: str) -> RunSummary:
    """A run in the ledger, as a line of a list.

    `lease`: the owner's lease, if it is serving. `problem`: why its coordinator has not answered.
    """
    return RunSummary(**_kept_fields(register, lease, problem))


def kept_status(
    register: RunRegister,
    lease: Lease | None,
    problem: str,
    members: tuple[RoundMember, ...] | None,
    members_shown: int,
    host: str,
) -> RunStatus:
    """A run in the ledger in detail. `members`: its member table; None if it is unreadable.

    `host`: the host of the process that answers.
    """
    head, orders = register.round, register.orders
    settings = orders.settings_of(register.settings) if register.settings is not None else None
    done = ranks_in(register.marks.done) if register.marks.round == register.number else frozenset()
    return RunStatus(
        **_kept_fields(register, lease, problem),
        coordinator=None,
        settings=named(settings) if settings else None,
        bootstrap=str(head.bootstrap) if head else None,
        digest=head.digest if head else None,
        members=None if members is None else _kept_members(register, members, done, members_shown),
        members_total=None if members is None else len(members),
        behind=None,
        behind_total=None,
        rounds=_kept_rounds(register),
        losses=[_loss(each) for each in register.past.losses],
        evicted=_evicted(register.orders),
        scaled=_scaled(register.orders),
        shown_at=runtime.here().wall_s(),
        shown_on=host,
    )


def _kept_fields(register: RunRegister, lease: Lease | None, problem: str) -> dict[str, Any]:
    head, close = register.round, register.close
    return {
        "run_id": register.run_id,
        "term": register.term,
        "phase": "closed" if close else UNREACHABLE if lease else UNOWNED,
        "reason": str(close) if close else problem,
        "suspended": [] if close else None,
        "round": head.number if head else 0,
        "nodes": head.nodes if head else 0,
        "size": head.size if head else 0,
        "attached": None,
        "restart_count": register.restarts,
        "restarts_spent": spent_of(register.blame, register.restarts),
        "waiting": None,
        "closed": named(close) if close else None,
        "source": FROM_LEDGER,
        "owner": owner_of(lease.process, lease.addresses) if lease else None,
        "memory_bytes": None,
        "phase_s": None,
        "progress": None,
    }


def _kept_members(
    register: RunRegister,
    members: tuple[RoundMember, ...],
    done: frozenset[int],
    members_shown: int,
) -> list[MemberStatus]:
    if register.round is None:
        return []
    seats = seats_of(RoundRecord(register.round, members))
    return [
        MemberStatus(
            name=row.name,
            index=None,
            host=row.host,
            addresses=list(row.addresses),
            labels=row.labels,
            workers=row.workers,
            state=MemberState.DONE.value if seat.node_rank in done else None,
            link=None,
            troubled_s=None,
            node_rank=seat.node_rank,
            ranks=_ranks(seat),
            drained=_drained(register.orders, NodeId(row.name, row.incarnation)),
            draining=None,
            draining_left_s=None,
            cooling=None,
            cooling_why=None,
            cooling_left_s=None,
            progress=None,
            evidence=None,
        )
        for row, seat in list(zip(members, seats, strict=True))[:members_shown]
    ]


def _kept_rounds(register: RunRegister) -> list[RoundStatus]:
    """The past rounds, without the texts and names that only their coordinators had."""
    ended = register.marks.ended if register.marks.round == register.number else None
    rounds, head = list(register.past.rounds), register.round
    if head is not None and not any(each.number == head.number for each in rounds):
        # The round was formed by a release without a past.
        rounds.append(PastRound(head.number, head.nodes, head.size, head.restart_count))
    shown: list[RoundStatus] = []
    for past in rounds:
        is_last = past.number == register.number
        change = ended if is_last else None
        shown.append(
            RoundStatus(
                number=past.number,
                nodes=past.nodes,
                size=past.size,
                restart_count=past.restart_count,
                members=None,
                published=past.published,
                formed_at=past.formed_at,
                formed_on=past.formed_on or None,
                gathering_s=past.gathering_s,
                committing_s=past.committing_s,
                active_s=past.active_s,
                active_min_s=past.active_min_s,
                ended_at=past.ended_at,
                ended_on=past.ended_on or None,
                ended=past.ended,
                change=named(change) if change is not None else None,
                waited=None,
            )
        )
    return shown


def unknown(run_id: str, reason: str, host: str) -> RunStatus:
    """A run in detail that does not exist or cannot be read."""
    unset: dict[str, Any] = dict.fromkeys(RunStatus.__struct_fields__)
    unset |= {"run_id": run_id, "phase": UNKNOWN, "reason": reason}
    return RunStatus(**unset | {"shown_at": runtime.here().wall_s(), "shown_on": host})


def unread(run_id: str, reason: str) -> RunSummary:
    """A run that cannot be read, as a line of a list."""
    unset: dict[str, Any] = dict.fromkeys(RunSummary.__struct_fields__)
    return RunSummary(**unset | {"run_id": run_id, "phase": UNKNOWN, "reason": reason})


def schema() -> dict[str, Any]:
    """The JSON schema of `rallypoint status --json`: of one run, and of a list of runs.

    docs/status.schema.json has it. A later release may add fields.
    """
    _, definitions = msgspec.json.schema_components(
        (RunStatus, RunList), ref_template="#/$defs/{name}"
    )
    for each in definitions.values():
        if each.get("type") == "object":
            each["additionalProperties"] = True
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "rallypoint status --json",
        "anyOf": [{"$ref": "#/$defs/RunStatus"}, {"$ref": "#/$defs/RunList"}],
        "$defs": dict(sorted(definitions.items())),
    }


if __name__ == "__main__":
    print(json.dumps(schema(), indent=2))
