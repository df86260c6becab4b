"""The rules of the election, as checks on all that is written to a ledger.

An `ElectionChecker` gets every write of an engine, in the engine's order. From these alone it
checks R1, R5, R6 and R13 across coordinators, and each change of ownership. Tests also report the
views of processes and nodes, which it compares with the ledger: `may_decide` for a process that
decides, `accepted` for a message that a node accepts.

Only tests use it; no coordinator does.
"""

from __future__ import annotations

from collections import deque

import msgspec

from rallypoint.checkers.violations import HISTORY_LENGTH, InvariantViolation
from rallypoint.core.election import NO_FLOOR, Floor, Lease, LeaseState, RunRegister
from rallypoint.core.values import Stamp


class _Run:
    """The writes of one run."""

    def __init__(self, register: RunRegister, floor: Floor) -> None:
        self.register = register
        self.floor = floor
        """The ledger's floor when the run began. The tokens of its rounds must be above it."""
        self.digests: dict[int, str] = {}
        self.tokens: set[tuple[int, int]] = set()


class ElectionChecker:
    """Checks the writes of one ledger."""

    def __init__(self) -> None:
        self._history: deque[str] = deque(maxlen=HISTORY_LENGTH)
        self._runs: dict[str, _Run] = {}
        self._removed: dict[str, set[tuple[int, int]]] = {}
        """The tokens of the rounds of runs that were removed."""
        self._floor = NO_FLOOR
        self._leases: dict[str, Lease] = {}
        self._ended: dict[str, LeaseState] = {}
        self._accepted: dict[tuple[str, str], Stamp] = {}

    @property
    def history(self) -> tuple[str, ...]:
        """The latest writes as short lines, oldest first."""
        return tuple(self._history)

    def owner(self, run_id: str) -> tuple[str, int]:
        """The owner of the run and its term, by the ledger; ("", 0) before the first owner."""
        run = self._runs.get(run_id)
        return (run.register.owner, run.register.term) if run else ("", 0)

    def is_closed(self, run_id: str) -> bool:
        """Whether the run is closed, by the ledger."""
        run = self._runs.get(run_id)
        return run is not None and run.register.close is not None

    # -- writes of the engine ------------------------------------------------------------------

    def run_written(self, after: RunRegister) -> None:
        """The head of a run was written. Raises InvariantViolation."""
        self._note(_summary(after))
        run = self._runs.get(after.run_id)
        if run is None:
            self._must_begin(after)
            run = self._runs[after.run_id] = _Run(after, self._floor)
        elif after.term != run.register.term:
            self._must_seal(run, after)
        else:
            self._must_continue(run.register, after)
        self._must_be_once(run, after)
        run.register = after

    def run_removed(self, run_id: str) -> None:
        """The head of a run was removed. Raises InvariantViolation."""
        self._note(f"run {run_id} removed")
        run = self._runs.pop(run_id, None)
        if run is None:
            return
        if run.register.close is None:
            self._fail("R6", f"an open run was removed: {_summary(run.register)}")
        self._removed.setdefault(run_id, set()).update(run.tokens)
        if self._floor.raised(run.register) != self._floor:
            self._fail("R13", f"{_summary(run.register)} was removed; the floor is {self._floor}")

    def floor_written(self, after: Floor) -> None:
        """The ledger's floor was written. Raises InvariantViolation."""
        self._note(f"floor {after.term} {after.number}")
        if after.term < self._floor.term or after.number < self._floor.number:
            self._fail("R13", f"the floor went from {self._floor} to {after}")
        self._floor = after

    def lease_written(self, after: Lease) -> None:
        """A lease was written. Raises InvariantViolation."""
        self._note(f"lease {after.process} beat {after.beat} {after.state} {after.revoked_by}")
        before = self._leases.get(after.process)
        self._leases[after.process] = after
        if after.state is not LeaseState.SERVING:
            self._ended.setdefault(after.process, after.state)
        if before is None:
            return
        if before.state is not LeaseState.SERVING:
            self._fail("lease", f"a lease that has ended was written again: {before} -> {after}")
        step = 0 if after.state is LeaseState.REVOKED else 1
        if after.beat != before.beat + step:
            self._fail("lease", f"the beat went from {before.beat} to {after.beat}")

    def lease_swept(self, process: str) -> None:
        """A lease was removed. Raises InvariantViolation."""
        self._note(f"lease {process} swept")
        if process not in self._ended:
            self._fail("lease", f"the lease of {process} was swept while it was serving")
        self._leases.pop(process, None)

    # -- views of processes and nodes ----------------------------------------------------------

    def may_decide(self, run_id: str, process: str, term: int) -> None:
        """This process would decide for the run now. Raises InvariantViolation.

        The rule holds only while the rates of clocks differ by less than the margin. That such a
        decision has no effect (R5) always holds; `run_written` checks it. Nor does it hold for a
        process whose lease was revoked early.
        """
        lease = self._leases.get(process)
        if lease is not None and lease.is_early:
            return
        if self.owner(run_id) != (process, term):
            owner, current = self.owner(run_id)
            self._fail(
                "lease",
                f"{process} would decide for {run_id} in term {term}, "
                f"but the ledger names {owner or 'nobody'} in term {current}",
            )

    def committed(self, run_id: str, term: int, number: int) -> None:
        """A coordinator has learned that this was committed. Raises InvariantViolation."""
        run = self._runs.get(run_id)
        # The process may have been frozen while the run was removed, and learns it late.
        tokens = self._removed.get(run_id, set()) | (run.tokens if run is not None else set())
        was_there = run is not None or run_id in self._removed
        if not was_there or (number and (term, number) not in tokens):
            self._fail("R1", f"round {number} of term {term} was never committed for {run_id}")

    def accepted(self, node: str, run_id: str, stamp: Stamp) -> None:
        """A node accepts a message with this stamp. Raises InvariantViolation.

        R13: the fencing token (term, round) of a node never decreases.
        """
        before = self._accepted.get((node, run_id))
        if before is not None and stamp.is_older_than(before):
            self._fail("R13", f"{node} went back from {before} to {stamp}")
        self._accepted[node, run_id] = stamp

    # -- the rules -----------------------------------------------------------------------------

    def _must_begin(self, after: RunRegister) -> None:
        is_above = after.term > self._floor.term + 1 or after.floor > self._floor.number
        is_bare = not after.sequence and after.round is None and after.close is None
        if is_above or not is_bare or after.term < 1:
            self._fail("R1", f"a run began with {_summary(after)}")
        self._must_serve(after)

    def _must_seal(self, run: _Run, after: RunRegister) -> None:
        before = run.register
        if not after.owner and after.close is not None and before.close is None:
            # The garbage collector closes a run whose owner has ended, and seals it so.
            self._must_be_abandoned(before, after)
            return
        # R5: after a newer term has sealed, no write of an older one takes effect.
        if after.term < before.term:
            self._fail("R5", f"term {after.term} wrote over term {before.term}")
        # A head that was created late is sealed again, above the floor that it missed.
        is_lifted = before.round is None and before.term < after.term <= self._floor.term + 1
        if (after.term != before.term + 1 and not is_lifted) or after.sequence:
            self._fail("terms", f"{_summary(before)} was sealed by {_summary(after)}")
        if _without_owner(before) != _without_owner(after):
            is_floor_only = before.round is None and before.floor < after.floor
            is_floor_only = is_floor_only and after.floor <= self._floor.number
            unlike = msgspec.structs.replace(after, floor=before.floor)
            if not is_floor_only or _without_owner(before) != _without_owner(unlike):
                self._fail("R1", f"a seal changed what was committed: {before} -> {after}")
        self._must_serve(after)
        # R10: a former owner whose lease was revoked early may still answer reads for a while.
        lease = self._leases.get(before.owner)
        unsure_s = lease.ttl_s if lease is not None and lease.is_early else 0.0
        if after.unsure_s < max(unsure_s, before.unsure_s):
            self._fail("R10", f"{after.owner} is sure at once, but {before.owner} may be alive")
        deposes = before.owner not in ("", after.owner)
        if deposes and before.owner in self._leases and before.owner not in self._ended:
            self._fail("lease", f"{after.owner} deposed {before.owner}, whose lease serves")

    def _must_be_abandoned(self, before: RunRegister, after: RunRegister) -> None:
        unlike = msgspec.structs.replace(after, close=None)
        if after.term != before.term + 1 or _without_owner(before) != _without_owner(unlike):
            self._fail("R5", f"{_summary(before)} was wrongly closed: {_summary(after)}")
        if before.owner in self._leases and before.owner not in self._ended:
            self._fail(
                "lease",
                f"the run of {before.owner}, whose lease serves, was closed as abandoned",
            )

    def _must_serve(self, after: RunRegister) -> None:
        """The process that seals must have had a lease."""
        if after.owner not in self._leases and after.owner not in self._ended:
            self._fail("lease", f"{after.owner or 'nobody'} sealed without a lease")

    def _must_continue(self, before: RunRegister, after: RunRegister) -> None:
        if not before.owner or after.owner not in (before.owner, ""):
            self._fail("terms", f"{after.owner} wrote in the term of {before.owner or 'nobody'}")
        if after.sequence != before.sequence + 1:
            self._fail("terms", f"{_summary(before)} was followed by {_summary(after)}")
        if not after.owner and _without_owner(before) != _without_owner(after):
            self._fail("R1", f"resigning changed what was committed: {before} -> {after}")
        if before.close is not None and _without_owner(before) != _without_owner(after):
            self._fail("R6", f"a closed run was changed: {_summary(before)} -> {_summary(after)}")
        if before.round != after.round and after.number != before.number + 1:
            self._fail("R1", f"round {before.number} was followed by {after.number}")
        charged = after.round.restart_count if after.round is not None else 0
        if after.restarts < max(before.restarts, charged):
            told = f"{before.restarts} rounds were charged, and {charged} in the last one"
            self._fail("budget", f"{told}, but the head says {after.restarts}")

    def _must_be_once(self, run: _Run, after: RunRegister) -> None:
        if after.round is None:
            return
        head = after.round
        if run.digests.setdefault(head.number, head.digest) != head.digest:
            self._fail("R1", f"two rounds {head.number} of {after.run_id}")
        token = (head.term, head.number)
        is_new = token not in run.tokens
        if is_new and (head.term != after.term or token <= max(run.tokens, default=(0, 0))):
            # R13: the token of a new round is above those of all earlier rounds.
            self._fail("R13", f"round {token} was committed in term {after.term}")
        if is_new and (head.term <= run.floor.term or head.number <= run.floor.number):
            self._fail("R13", f"round {token} is not above the floor {run.floor}")
        run.tokens.add(token)

    def _note(self, line: str) -> None:
        self._history.append(line)

    def _fail(self, rule: str, problem: str) -> None:
        raise InvariantViolation(rule, problem, tuple(self._history))


def _without_owner(register: RunRegister) -> RunRegister:
    # A release that knows more fields than the writer writes these too. What a newer release has
    # added must stay, byte for byte.
    added = register.as_read[len(register.__struct_fields__) - 1 :]
    return msgspec.structs.replace(
        register,
        format=0,
        term=0,
        owner="",
        sequence=0,
        unsure_s=0.0,
        formers=(),
        as_read=added,
    )


def _summary(register: RunRegister) -> str:
    closed = " closed" if register.close is not None else ""
    return (
        f"run {register.run_id} term {register.term} owner {register.owner or '-'} "
        f"sequence {register.sequence} round {register.number}{closed}"
    )
