"""Bugs of membership, election and ownership: a comparison, a count or a memory that is wrong."""

from __future__ import annotations

from typing import Any

import msgspec

from rallypoint.core import effects as do
from rallypoint.core.election.actions import Elected
from rallypoint.core.election.ownership import ClaimState
from rallypoint.core.election.records import NO_FLOOR
from rallypoint.core.roster import Bucket
from rallypoint.core.values import Marks, MemberState, table_digest
from tests.simulation.planted.planting import Bug, replaces

# -- who is lost -----------------------------------------------------------------------------------


@replaces("rallypoint.core.suspicion:Suspicion.update_guard")
def _guard_too_early(original: Any, self: Any, settings: Any, now_s: Any) -> Any:
    """One missing member fewer is enough: `<` in place of `<=`."""
    fewer = msgspec.structs.replace(settings, mass_min=max(0, settings.mass_min - 1))
    return original(self, fewer, now_s)


@replaces("rallypoint.core.suspicion:Suspicion.update_guard")
def _no_guard(original: Any, self: Any, settings: Any, now_s: Any) -> Any:
    return []


@replaces("rallypoint.core.suspicion:Suspicion.deadline_passed")
def _guard_for_ever(original: Any, self: Any, timer: Any) -> None:
    """The end of the mass guard is not noticed."""
    if timer.name:
        original(self, timer)


@replaces("rallypoint.core.suspicion:Suspicion._end_guard")
def _no_second_grace(original: Any, self: Any, settings: Any, now_s: Any) -> Any:
    """The last members to return after a mass loss have no grace."""
    self._mass_since_s, self._mass_over = None, False
    return []


@replaces("rallypoint.core.judging:JudgingClock.go_on")
def _outage_counts(original: Any, self: Any, now_s: Any) -> None:
    """The time of an outage counts for each member."""
    self._stopped_s = None


@replaces("rallypoint.core.suspicion:Suspicion.attach_over")
def _absent_stay(original: Any, self: Any) -> None:
    """Members that never attach are not lost when their time is over."""


@replaces("rallypoint.core.probing:Probe.answered")
def _answers_do_not_count(original: Any, self: Any, name: Any) -> None:
    """A probe is never answered."""


@replaces("rallypoint.core.suspicion:Suspicion.ended")
def _ended_has_grace(original: Any, self: Any, member: Any, now_s: Any) -> Any:
    """A member whose kernel closed its connection is not lost."""
    original(self, member, now_s)
    self._ended.pop(member.name, None)
    self._ended_missing.pop(member.name, None)
    return []


# -- whose place it is -----------------------------------------------------------------------------


@replaces("rallypoint.core.stopping:Stopping.begin")
def _no_time_to_stop(original: Any, self: Any, survivors: Any, now_s: Any) -> None:
    original(self, survivors, now_s - 60.0)


@replaces("rallypoint.core.gathering:Gathering.chosen")
def _newcomers_first(original: Any, self: Any, settings: Any, previous: Any) -> Any:
    members = self._roster.newcomers() + self._roster.members(Bucket.READY_SURVIVOR)
    return members[: self.counts(settings).chosen]


@replaces("rallypoint.core.rounds:_leave_last_round")
def _passive_is_awaited(original: Any, members: Any, ended_by: Any) -> None:
    """A survivor that hung keeps its place in each later round, too."""
    survivors = [each for each in members if each.survivor]
    original(members, ended_by)
    for each in survivors:
        each.survivor = True


@replaces("rallypoint.core.requests:on_departing")
def _departing_is_awaited(original: Any, run: Any, event: Any) -> None:
    """The round ends, and the next one waits for the member that departs."""
    member = run.roster.living(event.node)
    was_in_round = member is not None and member.bucket is Bucket.IN_ROUND
    original(run, event)
    if member is not None and was_in_round:
        member.state, member.survivor = MemberState.ACTIVE, True
        run.roster.reindex(member)


@replaces("rallypoint.core.rules:advance_active")
def _joins_the_full(original: Any, run: Any, settings: Any) -> None:
    """Newcomers end a round that has no place for them."""
    more = msgspec.structs.replace(settings, max_nodes=settings.max_nodes + 1)
    original(run, more)


@replaces("rallypoint.core.finished:Finished.add")
def _joins_the_finished(original: Any, self: Any, node: Any, *, is_in_round: Any) -> None:
    """A member that is done is not counted, so newcomers are let in."""


# -- what is written, and read at a takeover -------------------------------------------------------


@replaces("rallypoint.core.election.records:RunRegister.state")
def _marks_forgotten(original: Any, self: Any, members: Any) -> Any:
    """A successor does not read the marks."""
    return msgspec.structs.replace(original(self, members), marks=Marks(self.number))


@replaces("rallypoint.core.marking:Marking.farewell")
def _goodbye_before_the_mark(
    original: Any,
    self: Any,
    node: Any,
    connection_id: Any,
    reason: Any,
    *,
    is_being_written: Any = False,
) -> bool:
    return False


@replaces("rallypoint.core.committing:record_of")
def _digest_of_another(
    original: Any,
    chosen: Any,
    *,
    number: Any,
    term: Any,
    rank_policy: Any,
    previous: Any,
    restart_count: Any,
) -> Any:
    """The digest is that of the members in the order in which they came."""
    record = original(
        chosen,
        number=number,
        term=term,
        rank_policy=rank_policy,
        previous=previous,
        restart_count=restart_count,
    )
    rows = tuple(member.row() for member in chosen)
    digest = table_digest(number, rows, record.head.bootstrap)
    return msgspec.structs.replace(record, head=msgspec.structs.replace(record.head, digest=digest))


@replaces("rallypoint.core.causes:Case.close")
def _loss_is_charged(original: Any, self: Any, unresolved: Any) -> Any:
    """What a lost node explains is charged to the program."""
    found = original(self, unresolved)
    self._change = msgspec.structs.replace(found, charged=True)
    return self._change


@replaces("rallypoint.core.blame:is_covered")
def _budget_without_end(original: Any, spent: Any, weight: Any, limit: Any) -> Any:
    return True


# -- the claim and the lease -----------------------------------------------------------------------


@replaces("rallypoint.core.election.ownership:Claim.floor_read")
def _floor_not_read(original: Any, self: Any, asked: Any, found: Any, now_s: Any) -> Any:
    if asked != self._open:
        return []
    self._floor, self._is_unchecked = NO_FLOOR, False
    return self._seal(now_s) if self.state.value == "checking" else []


@replaces("rallypoint.core.election.lease:LeaseHolder.may_decide")
def _decides_while_moving(original: Any, self: Any, now_s: Any) -> bool:
    is_moving, self._is_moving = self._is_moving, False
    try:
        return bool(original(self, now_s))
    finally:
        self._is_moving = is_moving


@replaces("rallypoint.coordinator.ended_owner:has_ended")
async def _contests_the_living(original: Any, ledger: Any, owner: Any) -> bool:
    return True


@replaces("rallypoint.core.election.ownership:Claim.mistake_read")
def _mistake_ignored(original: Any, self: Any, asked: Any, has_mistake: Any, now_s: Any) -> Any:
    return original(self, asked, False, now_s)


@replaces("rallypoint.coordinator.ended_owner:record_mistake")
async def _mistake_not_recorded(original: Any, ledger: Any, process: Any, addresses: Any) -> None:
    """Nobody learns that an owner was replaced alive."""


@replaces("rallypoint.core.election.ownership:Claim._record_end")
def _sure_at_once(original: Any, self: Any, lease: Any) -> None:
    """A lease that was revoked early counts as one that ran out."""
    original(self, msgspec.structs.replace(lease, is_early=False))


@replaces("rallypoint.core.election.ownership:Claim._record_end")
def _host_not_known(original: Any, self: Any, lease: Any) -> None:
    """A successor does not know which node hosted the former coordinator."""
    original(self, msgspec.structs.replace(lease, node=None))


@replaces("rallypoint.core.election.ownership:Claim._record_end")
def _another_host(original: Any, self: Any, lease: Any) -> None:
    """A lease that was handed over counts as revoked: its node is taken for gone."""
    original(self, lease)
    self.former_host = lease.node


@replaces("rallypoint.core.election.ownership:Claim.resign")
def _resigns_without_a_word(
    original: Any, self: Any, now_s: Any, pause_s: Any = 0.0, *, is_yielding: Any = False
) -> Any:
    """The owner gives the run up, and its head still names it."""
    self.deposed(now_s, pause_s)
    return []


@replaces("rallypoint.core.values:Stamp.is_older_than")
def _terms_are_not_compared(original: Any, self: Any, other: Any) -> bool:
    """Only the numbers of rounds count."""
    return bool(self.ledger_id == other.ledger_id and self.round < other.round)


# -- what nodes are told ---------------------------------------------------------------------------


@replaces("rallypoint.core.attaching:resume")
def _still_in_its_round(original: Any, run: Any, member: Any, event: Any) -> None:
    """A node that attaches again is not told that its round has ended."""
    original(run, member, event)
    for at, effect in enumerate(run._effects):
        if isinstance(effect, do.Welcome):
            standing = msgspec.structs.replace(
                effect.standing, round=member.last_round, change=None
            )
            run._effects[at] = msgspec.structs.replace(effect, standing=standing)


@replaces("rallypoint.core.state:MembershipState.waiting")
def _waits_for_nobody(original: Any, self: Any, now_s: Any) -> Any:
    """Nodes are not told for whom they wait."""
    found = original(self, now_s)
    if found is None:
        return None
    return msgspec.structs.replace(found, missing=(), missing_count=0)


# -- who owns a run, and what is removed -----------------------------------------------------------


@replaces("rallypoint.core.election.lease:Standstill.seen")
def _beats_ignored(original: Any, self: Any, process: Any, version: Any, now_s: Any) -> Any:
    """A lease that is renewed counts as one that stands still."""
    known = self._seen
    if known is not None and known.process == process:
        self._seen = msgspec.structs.replace(known, version=version)
        return self._seen
    return original(self, process, version, now_s)


@replaces("rallypoint.core.election.ownership:Claim._own")
def _owns_late(original: Any, self: Any, register: Any, now_s: Any) -> Any:
    """A seal whose outcome came late elects an owner whose lease is too old."""
    self._rest(ClaimState.OWNED, None)
    return [Elected(register, self.version, self.former_host)]


@replaces("rallypoint.core.election.records:Floor.raised")
def _floor_falls(original: Any, self: Any, register: Any) -> Any:
    """The floor is that of the run that was removed last."""
    return msgspec.structs.replace(self, term=register.term, number=register.number)


@replaces("rallypoint.core.election.records:RunRegister.sealed")
def _floor_not_carried(
    original: Any, self: Any, process: Any, floor: Any, early: Any = None
) -> Any:
    return msgspec.structs.replace(original(self, process, floor, early), floor=self.floor)


@replaces("rallypoint.coordinator.owned_runs:OwnedRuns.deposed")
def _deposed_unheard(original: Any, self: Any, run_id: Any, reason: Any) -> None:
    """A run that was lost to another owner is not told."""
    self.stop_taking_over(run_id)


@replaces("rallypoint.coordinator.run_ownership:RunOwnership._renewed")
async def _renewed_before(original: Any, self: Any) -> None:
    """Any earlier renewal proves that the lease is still held."""


@replaces("rallypoint.coordinator.lease_manager:LeaseManager._new_holder")
def _same_process_again(original: Any, self: Any) -> Any:
    """A lost lease is begun again under its name."""
    holder = original(self)
    before = getattr(self, "holder", None)
    if before is not None:
        holder.process = before.process
    return holder


@replaces("rallypoint.core.candidacy:candidate_after_s")
def _no_candidates(
    original: Any, chance: Any, nodes: Any, candidates: Any, doubling_s: Any
) -> float:
    return 1e6


@replaces("rallypoint.core.requests:adopt_end")
def _end_not_adopted(original: Any, run: Any, speaker: Any, event: Any) -> None:
    """What the last coordinator told of the end of the round is forgotten."""


@replaces("rallypoint.core.rules:is_ending")
def _never_ends(original: Any, run: Any, settings: Any) -> bool:
    return False


@replaces("rallypoint.core.rounds:begin_again")
def _interrupted_lose_places(original: Any, run: Any, record: Any, change: Any) -> None:
    """The members of a round that was interrupted while it was written lose their places."""
    original(run, record, change)
    for member in run.roster:
        member.survivor = False
        if member.state is MemberState.READY:
            member.state = MemberState.IDLE
    run.roster.reindex_all()


@replaces("rallypoint.core.roster:Roster.living")
def _any_start(original: Any, self: Any, node: Any) -> Any:
    """What another start of a node says counts, too."""
    return self._members.get(node.name)


@replaces("rallypoint.core.losses:on_connection_lost")
def _any_connection(original: Any, run: Any, event: Any) -> None:
    """The end of an earlier connection counts as that of the present one."""
    member = run.roster.living(event.node)
    if member is not None:
        event = msgspec.structs.replace(event, connection_id=member.connection_id)
    original(run, event)


@replaces("rallypoint.core.takeover:Takeover.expect_members")
def _done_is_expected(
    original: Any,
    self: Any,
    record: Any,
    marks: Any,
    history: Any,
    *,
    attach_grace_s: Any,
    former_host: Any,
    now_s: Any,
) -> Any:
    """A member that is done has to attach to the next coordinator."""
    return original(
        self,
        record,
        msgspec.structs.replace(marks, done=b""),
        history,
        attach_grace_s=attach_grace_s,
        former_host=former_host,
        now_s=now_s,
    )


@replaces("rallypoint.core.election.ownership:Claim._look_later")
def _looks_once(original: Any, self: Any, lease: Any, now_s: Any, dead_s: Any) -> Any:
    """The owner's lease is not looked at again."""
    found = original(self, lease, now_s, dead_s)
    self._look_again_s = None
    return found


def _bug(name: str, rule: str, *parts: Any, tests: tuple[str, ...] = (), judged: str = "") -> Bug:
    by = "judged" if judged else "tests" if tests else "job"
    return Bug(name=name, rule=rule, source="own", parts=parts, by=by, tests=tests, judged=judged)


MEMBERSHIP = (
    _bug("guard-too-early", "R8", _guard_too_early),
    _bug("no-guard", "R8", _no_guard),
    _bug("guard-for-ever", "R8", _guard_for_ever),
    _bug("no-second-grace", "R8", _no_second_grace),
    _bug("outage-counts", "R8", _outage_counts),
    _bug("absent-stay", "R8", _absent_stay),
    _bug("answers-do-not-count", "R8", _answers_do_not_count),
    _bug("ended-has-grace", "R8", _ended_has_grace),
    _bug("no-time-to-stop", "R7", _no_time_to_stop),
    _bug("newcomers-first", "R7", _newcomers_first),
    _bug("passive-is-awaited", "R7", _passive_is_awaited),
    _bug("departing-is-awaited", "R7", _departing_is_awaited),
    _bug("joins-the-full", "R3", _joins_the_full),
    _bug("joins-the-finished", "R7", _joins_the_finished),
    _bug("marks-forgotten", "R8", _marks_forgotten),
    _bug("goodbye-before-the-mark", "R8", _goodbye_before_the_mark),
    _bug("digest-of-another", "R2", _digest_of_another),
    _bug("loss-is-charged", "budget", _loss_is_charged),
    _bug("budget-without-end", "budget", _budget_without_end),
    _bug("floor-not-read", "R13", _floor_not_read),
    _bug("decides-while-moving", "R5", _decides_while_moving),
    _bug("contests-the-living", "R9", _contests_the_living),
    _bug("mistake-ignored", "R9", _mistake_ignored),
    _bug("mistake-not-recorded", "R9", _mistake_not_recorded),
    _bug("sure-at-once", "R10", _sure_at_once),
    _bug("host-not-known", "R8", _host_not_known),
    _bug("another-host", "R8", _another_host),
    _bug("resigns-without-a-word", "R7", _resigns_without_a_word),
    _bug(
        *("terms-are-not-compared", "R5", _terms_are_not_compared),
        tests=("tests/client/test_machine_rules.py",),
    ),
    _bug("still-in-its-round", "R13", _still_in_its_round),
    _bug("waits-for-nobody", "R7", _waits_for_nobody),
    _bug("beats-ignored", "R9", _beats_ignored),
    _bug(
        *("owns-late", "R5", _owns_late),
        judged="a run that is taken over on a lease that is too old begins SUSPENDED",
    ),
    _bug("floor-falls", "R13", _floor_falls),
    _bug("floor-not-carried", "R1", _floor_not_carried),
    _bug("deposed-unheard", "R5", _deposed_unheard),
    _bug("renewed-before", "R5", _renewed_before),
    _bug("same-process-again", "R5", _same_process_again),
    _bug("no-candidates", "R7", _no_candidates),
    _bug("end-not-adopted", "R7", _end_not_adopted),
    _bug("never-ends", "R7", _never_ends),
    _bug("interrupted-lose-places", "R7", _interrupted_lose_places),
    _bug("any-start", "R4", _any_start),
    _bug("any-connection", "R8", _any_connection),
    _bug("done-is-expected", "R8", _done_is_expected),
    _bug("looks-once", "R7", _looks_once),
)
