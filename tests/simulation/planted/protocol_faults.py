"""The faults that an earlier release had: each puts its old behaviour back in a few lines.

CHANGELOG.md and docs/protocol.md say how each was mended.
"""

from __future__ import annotations

import urllib.parse
from typing import Any

import msgspec

from rallypoint.coordinator.log_writer import suspend
from rallypoint.core.formation import Call, Decision
from rallypoint.core.suspension import SuspensionCause
from rallypoint.core.tables import _piece
from rallypoint.ledger.contract import Created, Gap
from tests.simulation.planted.planting import Bug, replaces

# -- 1: a late append suspends a run for ever ------------------------------------------------------


@replaces("rallypoint.coordinator.log_writer:LogWriter._appended")
async def _gap_is_theft(
    original: Any, self: Any, run: Any, log: Any, record: Any, outcome: Any
) -> None:
    if isinstance(outcome, Gap):
        suspend(run, SuspensionCause.APPEND, "the log is gone")
    else:
        await original(self, run, log, record, outcome)


# -- 2: a commit that is confirmed while the run is suspended is written again ---------------------


@replaces("rallypoint.core.ledger_events:record_committed")
def _forget_committed(original: Any, run: Any, event: Any) -> None:
    """The event is ignored."""


# -- 3: "done" is not durable ----------------------------------------------------------------------


@replaces("rallypoint.core.marking:Marking.done")
def _no_mark_of_done(original: Any, self: Any, node: Any, now_s: Any) -> None:
    """No mark is written."""


# -- 4: a coordinator cut off from its ledger goes on ----------------------------------------------


@replaces("rallypoint.coordinator.run_ownership:RunOwnership.may_answer")
def _answers_always(original: Any, self: Any, run_id: Any) -> bool:
    return True


@replaces("rallypoint.client.connector:Connector.watch_lease")
def _stay_with_it(original: Any, self: Any, still_s: Any) -> None:
    """The node never looks for another coordinator while it is connected."""


# -- 5: who becomes a candidate depends on who is dead ---------------------------------------------


@replaces("rallypoint.core.candidacy:candidate_after_s")
def _by_rank(original: Any, chance: Any, nodes: Any, candidates: Any, doubling_s: Any) -> float:
    return 30.0 * nodes if nodes > 1 else 0.0


# -- 6: a status of a proxy is final ---------------------------------------------------------------


@replaces("rallypoint.client.dialing:Patience.allows")
def _status_is_final(original: Any, self: Any, error: Any) -> bool:
    return False


# -- 7: after "value over the engine's limit" a run never resumes ----------------------------------


@replaces("rallypoint.coordinator.owned_runs:OwnedRuns.written")
def _stays_suspended(original: Any, self: Any, run_id: Any, event: Any) -> None:
    run = self._run(run_id)
    if run is not None:
        run.post(event)


@replaces("rallypoint.core.tables:pieces")
def _one_piece(original: Any, members: Any) -> Any:
    return (_piece(list(members)),) if members else ()


# -- 8: tokens go back -----------------------------------------------------------------------------


@replaces("rallypoint.coordinator.run_removal:raise_floor")
async def _no_floor(original: Any, ledger: Any, register: Any) -> None:
    """The ledger's floor stays."""


# -- 9: the log of a round grows for ever ----------------------------------------------------------


@replaces("rallypoint.coordinator.store_log:StoreLog._is_snapshot_due")
def _no_snapshot(original: Any, self: Any) -> bool:
    return False


# -- 10: a dropped log's records are free again ----------------------------------------------------


@replaces("rallypoint.ledger.etcd.ledger:EtcdLedger.append")
async def _append_after_drop(original: Any, self: Any, log: Any, index: Any, value: Any) -> Any:
    outcome = await original(self, log, index, value)
    return Created() if isinstance(outcome, Gap) else outcome


# -- 11: herds -------------------------------------------------------------------------------------


@replaces("rallypoint.core.candidacy:candidate_after_s")
def _all_at_once(original: Any, chance: Any, nodes: Any, candidates: Any, doubling_s: Any) -> float:
    return 0.0


# -- 12: what waits for the ledger has no bound ----------------------------------------------------


@replaces("rallypoint.coordinator.store_log:StoreLog._refusal")
def _no_bound(original: Any, self: Any, size: Any) -> None:
    return None


# -- 13: stalls of the coordinator count -----------------------------------------------------------


@replaces("rallypoint.clock:StallProofClock.now_s")
def _counts_stalls(original: Any, self: Any) -> Any:
    return self._source()


@replaces("rallypoint.clock:InputFirst.tick")
def _judges_at_once(original: Any, self: Any, now_s: Any, late_s: Any) -> Any:
    return now_s


# -- 14: each restoration of the ledger begins every deadline again --------------------------------


@replaces("rallypoint.core.judging:JudgingClock.left_s")
def _begins_again(original: Any, self: Any, due_s: Any, least_s: Any, now_s: Any) -> Any:
    return max(least_s, 10.0)


# -- 15: a lease is judged by the ttl of the process that looks ------------------------------------


@replaces("rallypoint.core.election.lease:lease_of")
def _own_ttl(original: Any, process: Any, found: Any) -> Any:
    return msgspec.structs.replace(original(process, found), ttl_s=2.0)


# -- 16: several -----------------------------------------------------------------------------------


@replaces("rallypoint.coordinator.log_writer:LogWriter._drop_older")
async def _leave_logs(original: Any, self: Any, run_id: Any, live: Any) -> None:
    """Old logs stay in the ledger."""


@replaces("rallypoint.core.rounds:consider_newcomer")
def _tell_no_standby(original: Any, run: Any, member: Any) -> None:
    member.told_standby = True
    original(run, member)


@replaces("rallypoint.coordinator.takeover:_sealed_log")
async def _empty_store(
    original: Any, ledger: Any, run_id: Any, state: Any, limits: Any, renewed: Any
) -> None:
    """A successor begins with an empty store."""


@replaces("rallypoint.client.identity:_mark")
def _no_mark(original: Any, process: Any, pid: Any) -> str:
    return "a"


@replaces("rallypoint.ledger.keys:quoted")
def _no_cut(original: Any, run_id: Any) -> str:
    return urllib.parse.quote(run_id, safe="")


@replaces("rallypoint.core.election.records:encode")
def _newer_fields_lost(original: Any, value: Any) -> bytes:
    return bytes(original(msgspec.structs.replace(value, as_read=())))


# -- 17: by reading --------------------------------------------------------------------------------


@replaces("rallypoint.core.membership:Membership._as_in_phase_of_work")
def _withhold(original: Any, self: Any, event: Any) -> None:
    """SUSPENDED: what a node reports waits for the ledger."""
    self._suspended_events.keep(event)


@replaces("rallypoint.client.open_requests:OpenRequests.to_send_again")
def _whole_timeout_again(original: Any, self: Any, now_s: Any) -> Any:
    self._ends_s.clear()
    return original(self, now_s)


@replaces("rallypoint.coordinator.supervision:Supervised.spawn")
def _no_supervisor(original: Any, self: Any, work: Any, failed: Any) -> Any:
    return original(self, work, lambda error: None)


@replaces("rallypoint.coordinator.garbage_collector:GarbageCollector.sweep")
async def _sweeps_nothing(original: Any, self: Any, now_s: Any) -> None:
    """Elected nodes remove nothing."""


# -- 18: survivors are shut out --------------------------------------------------------------------


@replaces("rallypoint.core.formation:decide")
def _shut_out(original: Any, counts: Any) -> Any:
    decision = original(counts)
    if counts.call is Call.OVER and decision in (Decision.STOPPING, Decision.ATTACHING):
        return Decision.FORM_LAST_CALL
    return decision


# -- 19: the successor waits for the node of the dead coordinator ----------------------------------


@replaces("rallypoint.core.suspicion:Suspicion.absent_host")
def _waits_for_host(original: Any, self: Any, member: Any, now_s: Any, grace_s: Any) -> list[Any]:
    self.absent(member, now_s)
    return []


@replaces("rallypoint.core.suspicion:Suspicion.attach_over")
def _mass_of_absent(original: Any, self: Any) -> None:
    self._arrived = 0
    original(self)


def _fault(
    number: int,
    name: str,
    rule: str,
    *parts: Any,
    seed: int | None = None,
    tests: tuple[str, ...] = (),
) -> Bug:
    return Bug(
        name=f"{number:02}-{name}",
        rule=rule,
        source=f"fault {number}",
        parts=parts,
        by="tests" if tests else "job",
        seed=seed,
        tests=tests,
    )


PROTOCOL_FAULTS = (
    _fault(1, "late-append-suspends", "R7", _gap_is_theft),
    _fault(2, "committed-ignored", "R6", _forget_committed),
    _fault(3, "done-not-durable", "R8", _no_mark_of_done),
    _fault(
        *(4, "answers-without-lease", "R10", _answers_always),
        tests=("tests/coordinator/test_stale_lease.py",),
    ),
    _fault(4, "hostages", "R7", _stay_with_it),
    _fault(5, "candidates-by-rank", "R7", _by_rank),
    _fault(6, "status-is-final", "R7", _status_is_final),
    _fault(7, "never-resumes", "R7", _stays_suspended),
    _fault(7, "table-in-one-piece", "budget", _one_piece, tests=("tests/core/test_tables.py",)),
    _fault(8, "tokens-go-back", "R13", _no_floor),
    _fault(9, "log-grows", "budget", _no_snapshot),
    _fault(10, "append-after-drop", "R5", _append_after_drop, _answers_always),
    _fault(11, "herd", "budget", _all_at_once),
    _fault(12, "queue-without-bound", "budget", _no_bound),
    _fault(13, "stalls-count", "R8", _counts_stalls),
    _fault(
        *(13, "deadlines-before-input", "R8", _judges_at_once),
        tests=("tests/coordinator/test_slow_loop.py", "tests/test_clock.py"),
    ),
    _fault(14, "deadlines-begin-again", "R8", _begins_again),
    _fault(15, "own-ttl", "R5", _own_ttl),
    _fault(16, "logs-leak", "budget", _leave_logs),
    _fault(16, "standby-not-told", "R7", _tell_no_standby),
    _fault(16, "store-emptied", "R10", _empty_store),
    _fault(16, "same-name", "R7", _no_mark),
    _fault(16, "run-id-too-long", "R7", _no_cut, tests=("tests/ledger/test_keys.py",)),
    _fault(
        *(16, "newer-fields-lost", "R1", _newer_fields_lost),
        tests=("tests/core/test_election_records.py",),
    ),
    _fault(
        *(17, "no-supervisor", "R7", _no_supervisor),
        tests=("tests/coordinator/test_supervision.py",),
    ),
    _fault(17, "sweeps-nothing", "leak", _sweeps_nothing),
    _fault(17, "reports-withheld", "R8", _withhold),
    _fault(17, "timeout-begins-again", "R10", _whole_timeout_again),
    _fault(18, "survivors-shut-out", "R7", _shut_out),
    _fault(19, "waits-for-dead-host", "R8", _waits_for_host),
    _fault(19, "absent-feed-mass-guard", "R8", _mass_of_absent),
)
