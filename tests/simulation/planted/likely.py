"""Bugs that a change could bring in: a check left out, a thing forgotten, a step not taken."""

from __future__ import annotations

import contextlib
from typing import Any

import msgspec

from rallypoint.coordinator.log_reader import _Sealed
from rallypoint.core import effects as do
from rallypoint.core import writing
from rallypoint.core.election.lease import lease_of
from rallypoint.core.registers import Conflict, Unknown
from rallypoint.core.roster import Bucket
from rallypoint.core.store import StoreValue
from rallypoint.core.store.data import Put
from rallypoint.core.values import CloseRecord, ConnectionEnd, Reachability, Stamp
from tests.simulation.planted.planting import Bug, replaces

# -- the node --------------------------------------------------------------------------------------


@replaces("rallypoint.client.machine:NodeMachine._is_stale")
def _nothing_is_stale(original: Any, self: Any, message: Any) -> bool:
    return False


@replaces("rallypoint.client.machine:NodeMachine._to_say_again")
def _says_nothing_again(original: Any, self: Any, now_s: Any) -> Any:
    return self.requests.to_send_again(now_s)


@replaces("rallypoint.client.machine:NodeMachine._catch_up")
def _misses_nothing(original: Any, self: Any, message: Any) -> Any:
    return []


@replaces("rallypoint.client.open_requests:OpenRequests.drop_calls")
def _keeps_calls(original: Any, self: Any) -> None:
    """Calls of a round that has ended stay open."""


@replaces("rallypoint.client.heartbeats:Heartbeats.tick")
def _never_silent(original: Any, self: Any, now_s: Any) -> Any:
    silent_s = original(self, now_s)
    if silent_s is not None:
        self.next_tick_s = now_s + 1.0
    return None


# -- admission and rounds --------------------------------------------------------------------------


@replaces("rallypoint.core.admission:Admission.refusal")
def _admits_anyone(
    original: Any,
    self: Any,
    node: Any,
    wanted: Any,
    settings: Any,
    roster: Any,
    *,
    is_new: Any,
    is_scaled: Any,
    now_s: Any,
) -> None:
    return None


@replaces("rallypoint.core.attaching:refusal_of")
def _last_settings_win(original: Any, run: Any, event: Any) -> None:
    run.settings = event.settings


@replaces("rallypoint.core.rules:advance_gathering")
def _minimum_ignored(original: Any, run: Any, settings: Any) -> None:
    original(run, msgspec.structs.replace(settings, min_nodes=1))


@replaces("rallypoint.core.gathering:Gathering.chosen")
def _more_than_maximum(original: Any, self: Any, settings: Any, previous: Any) -> Any:
    return self._roster.members(Bucket.READY_SURVIVOR) + self._roster.newcomers()


@replaces("rallypoint.core.requests:on_ready")
def _repeats_count(original: Any, run: Any, event: Any) -> None:
    member = run.roster.living(event.node)
    if member is not None and event.leaving_round < member.last_round:
        event = msgspec.structs.replace(event, leaving_round=member.last_round)
    original(run, event)


@replaces("rallypoint.core.committing:Committing.member_went")
def _loss_while_writing(original: Any, self: Any, member: Any, kind: Any, detail: Any) -> None:
    """A member that goes while the round is written is in it all the same."""


@replaces("rallypoint.core.writing:close_run")
def _closes_over_the_write(
    original: Any,
    run: Any,
    outcome: Any,
    reason: Any,
    *,
    by: Any = "",
    by_operator: Any = None,
    cause: Any = None,
) -> None:
    close = CloseRecord(outcome, reason, by, run.term, run.number, cause, by_operator)
    writing.commit_close(run, close)


@replaces("rallypoint.core.rounds:charge")
def _budget_not_kept(original: Any, run: Any, change: Any) -> None:
    run._do(do.Verdict(change))


@replaces("rallypoint.coordinator.claimed_run:with_record")
def _restarts_not_written(original: Any, register: Any, run: Any, record: Any) -> Any:
    return msgspec.structs.replace(original(register, run, record), restarts=0)


@replaces("rallypoint.core.ranks:stable_order")
def _stale_ranks(original: Any, previous: Any, candidates: Any) -> Any:
    return [each.name for each in candidates]


@replaces("rallypoint.core.committing:record_of")
def _bootstrap_of_the_last(
    original: Any,
    chosen: Any,
    *,
    number: Any,
    term: Any,
    rank_policy: Any,
    previous: Any,
    restart_count: Any,
) -> Any:
    return original(
        chosen,
        number=number,
        term=max(1, term - 1),
        rank_policy=rank_policy,
        previous=previous,
        restart_count=restart_count,
    )


# -- losses ----------------------------------------------------------------------------------------


@replaces("rallypoint.core.requests:on_left")
def _goodbye_ignored(original: Any, run: Any, event: Any) -> None:
    """The node is still a member."""


@replaces("rallypoint.core.suspicion:Suspicion.heard")
def _heard_in_vain(original: Any, self: Any, member: Any) -> None:
    """Its deadline is not cancelled."""
    timers = dict(self._timers.__dict__)
    original(self, member)
    del timers
    if member.reachability is Reachability.CONNECTED and member.due_s:
        self._overdue[member.name] = None


@replaces("rallypoint.core.endings:judge")
def _every_end_is_proof(original: Any, end: Any, *, told: Any, seen: Any, has_stalled: Any) -> Any:
    found = original(end, told=told, seen=seen, has_stalled=has_stalled)
    return ConnectionEnd.PROCESS_ENDED if end is ConnectionEnd.RESET else found


@replaces("rallypoint.core.suspicion:Suspicion.disconnected")
def _no_grace(original: Any, self: Any, member: Any, settings: Any, now_s: Any) -> Any:
    return original(self, member, msgspec.structs.replace(settings, reconnect_grace_s=0.1), now_s)


@replaces("rallypoint.core.suspicion:Suspicion.silent")
def _silence_is_free(
    original: Any, self: Any, member: Any, settings: Any, now_s: Any, silent_s: Any
) -> Any:
    return []


@replaces("rallypoint.core.losses:on_timer")
def _judges_while_suspended(original: Any, run: Any, event: Any) -> None:
    suspension, run.suspension = run.suspension, ()
    try:
        original(run, event)
    finally:
        run.suspension = suspension


@replaces("rallypoint.core.state:MembershipState._set_phase")
def _suspended_decides(original: Any, self: Any) -> None:
    self.phase = self.phase_of_work


@replaces("rallypoint.coordinator.hosted_run:HostedRun._forget")
def _session_stays(original: Any, self: Any, effect: Any) -> None:
    """A member that was lost keeps its connection, and its messages still count."""


@replaces("rallypoint.core.name_conflicts:NameConflicts.challenge")
def _newcomer_wins(
    original: Any, self: Any, member: Any, event: Any, settings: Any, now_s: Any
) -> Any:
    return original(self, member, event, msgspec.structs.replace(settings, probe_s=0.001), now_s)


# -- the lease, the claim and the registers --------------------------------------------------------


@replaces("rallypoint.core.election.lease:LeaseHolder.swapped")
def _renewed_after_lost(original: Any, self: Any, asked: Any, outcome: Any, now_s: Any) -> Any:
    if self._try is not None and asked == self._try.swap and isinstance(outcome, Conflict):
        self._try = None
        self._version = outcome.current.version if outcome.current is not None else None
        return self._write(now_s)
    return original(self, asked, outcome, now_s)


@replaces("rallypoint.core.election.lease:LeaseHolder._renewed")
def _counts_from_the_answer(original: Any, self: Any, done: Any, version: Any, now_s: Any) -> Any:
    return original(self, msgspec.structs.replace(done, first_sent_s=now_s), version, now_s)


@replaces("rallypoint.core.election.ownership:Claim.lease_read")
def _takes_at_once(original: Any, self: Any, asked: Any, found: Any, now_s: Any) -> Any:
    if asked == self._open and found is not None:
        lease = lease_of(asked.process, found)
        if now_s >= self._still.seen(lease.process, found.version, now_s).since_s:
            return self._seal(now_s)
    return original(self, asked, found, now_s)


@replaces("rallypoint.core.election.records:RunRegister.sealed")
def _same_term(original: Any, self: Any, process: Any, floor: Any, early: Any = None) -> Any:
    sealed = original(self, process, floor, early)
    return msgspec.structs.replace(sealed, term=max(1, self.term))


@replaces("rallypoint.ledger.etcd.ledger:EtcdLedger.swap")
async def _version_not_checked(
    original: Any, self: Any, key: Any, expected: Any, value: Any
) -> Any:
    if key.startswith("runs/"):
        current = await self.read(key)
        expected = None if current is None else current.version
    return await original(self, key, expected, value)


@replaces("rallypoint.core.election.actions:version_of")
def _unknown_is_done(original: Any, asked: Any, outcome: Any) -> Any:
    if isinstance(outcome, Unknown):
        return (asked.expected or 0) + 1
    return original(asked, outcome)


@replaces("rallypoint.core.election.ownership:Claim.deposed")
def _claim_remembers(original: Any, self: Any, now_s: Any, pause_s: Any = 0.0) -> None:
    register, version = self.register, self.version
    original(self, now_s, pause_s)
    self.register, self.version = register, version


@replaces("rallypoint.coordinator.run_ownership:RunOwnership.check_lease")
def _lease_not_checked(original: Any, self: Any) -> None:
    """Nothing is suspended before a tick sees it."""


@replaces("rallypoint.coordinator.owned_runs:OwnedRuns.suspend_all")
def _not_suspended(original: Any, self: Any, reason: Any, away_s: Any) -> None:
    """The runs go on."""


@replaces("rallypoint.coordinator.owned_runs:OwnedRuns.restore_all")
def _not_restored(original: Any, self: Any) -> None:
    """The runs stay suspended."""


@replaces("rallypoint.core.ledger_events:on_ledger_restored")
def _kept_events_lost(original: Any, run: Any, event: Any) -> None:
    run._suspended_events.take()
    original(run, event)


@replaces("rallypoint.coordinator.garbage_collector:GarbageCollector._stood_still_s")
def _collects_the_living(original: Any, self: Any, key: Any, current: Any, now_s: Any) -> float:
    original(self, key, current, now_s)
    return float("inf")


@replaces("rallypoint.core.takeover:Takeover.expect_members")
def _gone_is_expected(
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
    return original(
        self,
        record,
        msgspec.structs.replace(marks, gone=b""),
        history,
        attach_grace_s=attach_grace_s,
        former_host=former_host,
        now_s=now_s,
    )


@replaces("rallypoint.core.takeover:Takeover._begin_grace")
def _no_attach_grace(original: Any, self: Any, delay_s: Any) -> Any:
    return original(self, 0.01)


# -- the store and its log -------------------------------------------------------------------------


@replaces("rallypoint.core.store.data:Data._comparing")
def _always_sets(original: Any, self: Any, op: Any) -> Any:
    return self._writing(op.desired, Put(op.key, op.desired))


@replaces("rallypoint.core.store.data:Data.commit")
def _write_lost(original: Any, self: Any, writes: Any) -> None:
    writes = list(writes)
    if len(self.values) > 2:
        writes = writes[:-1]
    original(self, writes)


@replaces("rallypoint.core.store.store:ClientSession.restore")
def _answers_not_restored(original: Any, self: Any, answer: Any) -> None:
    """A successor does not know which calls were answered."""


@replaces("rallypoint.core.store.store:RoundStore._try_again")
def _released_without_key(original: Any, self: Any, call: Any) -> Any:
    effect = self._data.effect_of(call.op)
    result = effect.result if effect is not None else StoreValue(None)
    return [self._settle(call, result)]


@replaces("rallypoint.core.store.waits:Waits.met")
def _barrier_too_early(original: Any, self: Any, name: Any) -> Any:
    arrived = self.barriers[name].arrived
    return list(arrived.values()) if 2 * len(arrived) > self._seats.size else []


@replaces("rallypoint.core.store.waits:Waits.take_due")
def _no_timeouts(original: Any, self: Any, now_s: Any) -> None:
    return None


@replaces("rallypoint.core.store.snapshot:snapshot_items")
def _snapshot_misses_a_key(original: Any, data: Any, sessions: Any, bytes_max: Any) -> Any:
    return original(dict(list(data.items())[1:]), sessions, bytes_max)


@replaces("rallypoint.coordinator.log_reader:LogReader._try_to_seal")
async def _not_sealed(original: Any, self: Any, reading: Any) -> Any:
    return _Sealed.DONE


@replaces("rallypoint.coordinator.log_reader:LogReader._read_and_seal")
async def _sealed_too_early(original: Any, self: Any, reading: Any) -> Any:
    for _, data in await self._page(self._name(reading.log), reading.index):
        reading.take(data)
        if reading.index > 2:
            return _Sealed.DONE
    return await original(self, reading)


@replaces("rallypoint.coordinator.store_service:StoreService.call")
def _store_of_any_round(original: Any, self: Any, session: Any, node: Any, call: Any) -> None:
    stamp = Stamp(call.stamp.ledger_id, call.stamp.term, self.stamp.round)
    original(self, session, node, msgspec.structs.replace(call, stamp=stamp))


@replaces("rallypoint.coordinator.store_service:StoreService.hold")
def _no_hold(original: Any, self: Any, members: Any, limit_s: Any) -> None:
    """After an early takeover, answers do not wait for the members that have yet to attach."""


@replaces("rallypoint.coordinator.store_service:StoreService.forget_session")
def _held_answers_stay(original: Any, self: Any, session: Any) -> None:
    """Answers that were held for a connection that has ended are not dropped."""


@replaces("rallypoint.coordinator.store_service:StoreService.release_answers")
def _held_for_ever(original: Any, self: Any) -> None:
    """Answers that were held for the lease are never sent."""


# -- tasks, timers and memory ----------------------------------------------------------------------


@replaces("rallypoint.coordinator.run_timers:RunTimers.close")
def _timers_stay(original: Any, self: Any) -> None:
    """The timers of a run that was forgotten are not cancelled."""


@replaces("rallypoint.core.timers:Timers.take")
def _stale_timers_count(original: Any, self: Any, timer: Any) -> bool:
    original(self, timer)
    return True


@replaces("rallypoint.client.own_coordinator:OwnCoordinator.retire")
def _candidate_stays(original: Any, self: Any) -> None:
    """A candidate that was not elected keeps its lease and its port."""


@replaces("rallypoint.coordinator.supervision:Supervised.aclose")
async def _tasks_stay(original: Any, self: Any) -> None:
    """The tasks are not cancelled."""


@replaces("rallypoint.coordinator.supervision:guarded")
def _swallowed(original: Any, failed: Any, work: Any, *args: Any) -> None:
    with contextlib.suppress(Exception):
        work(*args)


@replaces("rallypoint.coordinator.connections:Connections.remove")
def _connection_stays(original: Any, self: Any, session: Any, name: Any) -> bool:
    return False


@replaces("rallypoint.coordinator.coordinator:Coordinator.disconnected")
def _session_leaks(original: Any, self: Any, session: Any) -> None:
    self.on_fewer()


def _likely(
    name: str,
    rule: str,
    *parts: Any,
    seed: int | None = None,
    tests: tuple[str, ...] = (),
    judged: str = "",
) -> Bug:
    by = "judged" if judged else "tests" if tests else "job"
    return Bug(
        name=name,
        rule=rule,
        source="own",
        parts=parts,
        by=by,
        seed=seed,
        tests=tests,
        judged=judged,
    )


LIKELY = (
    # A node has one connection, and what it reads in the ledger is never older than before.
    _likely(
        *("nothing-is-stale", "R5", _nothing_is_stale),
        tests=("tests/client/test_machine_rules.py",),
    ),
    _likely("says-nothing-again", "R7", _says_nothing_again),
    _likely("misses-nothing", "R13", _misses_nothing),
    _likely("keeps-calls", "R4", _keeps_calls),
    _likely("coordinator-never-silent", "R7", _never_silent),
    _likely("admits-anyone", "R3", _admits_anyone),
    _likely("last-settings-win", "R3", _last_settings_win),
    _likely("minimum-ignored", "R3", _minimum_ignored),
    _likely("more-than-maximum", "R3", _more_than_maximum),
    _likely("repeated-ready-counts", "R4", _repeats_count),
    _likely("loss-while-writing", "R4", _loss_while_writing),
    _likely("closes-over-the-write", "R1", _closes_over_the_write),
    _likely("budget-not-kept", "budget", _budget_not_kept),
    _likely("restarts-not-written", "budget", _restarts_not_written),
    _likely("stale-ranks", "R3", _stale_ranks),
    _likely("wrong-term", "R5", _bootstrap_of_the_last),
    _likely("goodbye-ignored", "R8", _goodbye_ignored),
    _likely("heard-in-vain", "R8", _heard_in_vain),
    _likely("reset-is-proof", "R8", _every_end_is_proof),
    _likely("no-grace", "R8", _no_grace),
    _likely("silence-is-free", "R8", _silence_is_free),
    _likely("judges-while-suspended", "R8", _judges_while_suspended),
    _likely("suspended-decides", "R5", _suspended_decides),
    _likely("session-of-the-lost-stays", "R8", _session_stays),
    _likely("newcomer-wins-name", "R8", _newcomer_wins),
    _likely("renewed-after-lost", "R5", _renewed_after_lost),
    _likely("lease-counts-from-answer", "R5", _counts_from_the_answer),
    _likely("takes-at-once", "R5", _takes_at_once),
    _likely("same-term", "R13", _same_term),
    _likely("version-not-checked", "R5", _version_not_checked),
    _likely("unknown-is-done", "R1", _unknown_is_done),
    _likely(
        *("claim-remembers", "R5", _claim_remembers),
        judged="a claim begins anew by reading the head, and swaps by that version",
    ),
    _likely("lease-not-checked", "R5", _lease_not_checked),
    _likely("not-suspended", "R8", _not_suspended),
    _likely("not-restored", "R7", _not_restored),
    _likely("kept-events-lost", "R7", _kept_events_lost),
    _likely("collects-the-living", "R10", _collects_the_living),
    _likely("gone-is-expected", "R8", _gone_is_expected),
    _likely("no-attach-grace", "R8", _no_attach_grace),
    _likely("compare-set-always-sets", "R10", _always_sets),
    _likely("write-lost", "R10", _write_lost),
    _likely("answers-not-restored", "R11", _answers_not_restored),
    _likely("released-without-key", "R10", _released_without_key),
    _likely("barrier-too-early", "R10", _barrier_too_early),
    _likely("no-timeouts", "R7", _no_timeouts),
    _likely("snapshot-misses-a-key", "R10", _snapshot_misses_a_key),
    _likely("log-not-sealed", "R5", _not_sealed),
    _likely("log-sealed-too-early", "R10", _sealed_too_early),
    # A call of a round that has ended is not sent at all: with only one of the two parts, the other
    # keeps it from the next round's store.
    _likely("store-of-any-round", "R4", _store_of_any_round, _keeps_calls),
    _likely("no-hold-after-early-takeover", "R10", _no_hold),
    _likely("held-answers-stay", "budget", _held_answers_stay),
    _likely("held-for-ever", "R7", _held_for_ever),
    _likely("timers-stay", "budget", _timers_stay),
    _likely("stale-timers-count", "R8", _stale_timers_count),
    _likely("candidate-stays", "budget", _candidate_stays),
    _likely("tasks-stay", "budget", _tasks_stay),
    # Nothing that the simulator does makes the shipped code raise an unexpected error.
    Bug(
        name="errors-swallowed",
        rule="R7",
        source="own",
        parts=(_swallowed,),
        by="tests",
        tests=("tests/coordinator/test_supervision.py",),
    ),
    _likely("connection-stays", "R8", _connection_stays),
    _likely("session-leaks", "budget", _session_leaks),
)
