"""What must hold in the ledger of a job: all that is written to it, in the engine's order.

Nothing is read back through the code that is checked.
"""

from __future__ import annotations

import functools
import math
import urllib.parse
from typing import Final

from rallypoint.checkers.election_checker import ElectionChecker
from rallypoint.checkers.violations import InvariantViolation
from rallypoint.coordinator import garbage_collector, store_log
from rallypoint.coordinator.hosted_run import HostedRun
from rallypoint.coordinator.log_records import Record, decode_record
from rallypoint.core import effects as do
from rallypoint.core import election as e
from rallypoint.core import events as on
from rallypoint.core.values import CloseRecord
from rallypoint.ledger.keys import COORDINATORS, MISTAKE, RUNS
from rallypoint.settings.table import BY_NAME
from rallypoint.simulation.machine import SimulatedFront
from rallypoint.simulation.scene import Oracle, Scene, StartedNode, Token

SLOWEST: Final = 0.9
"""A process whose clock is fast sees a lease stand still for at least this part of its ttl."""
SLACK: Final = 1.2
MARGIN_S: Final = 2.0
"""For clocks of other rates, and for requests that are under way."""
CANDIDATES: Final[int] = BY_NAME["candidates"].default
ASKED_WITHIN_S: Final = 60.0
"""How old the sight may be on which a lease is revoked early: what is written may take long."""


class LedgerKeepsRules(Oracle):
    """R1, R5, R6, R13: what may follow what in heads, leases, the floor and logs.

    R9: a lease is revoked only after it stood still for its ttl, on the clock of the world; or
    early, if its process has ended or is refused, and no mistake is in the ledger.
    """

    def __init__(self, scene: Scene) -> None:
        super().__init__(scene)
        self._checker = ElectionChecker()
        self._leases: dict[str, tuple[e.Lease, float]] = {}
        """Each lease that serves, and when it was written."""
        self._fronts: dict[SimulatedFront, str] = {}
        """Each coordinator, and its host. Its process may have ended since."""
        self._mistaken_s = math.inf
        """Since when the ledger has a mistake."""
        self._is_broken = False

    def serves(self, front: SimulatedFront) -> None:
        """See Oracle."""
        self._fronts[front] = self.scene.network.host_of(front.process)

    def written(self, name: str, value: bytes | None) -> None:
        """See Oracle."""
        if not self._is_broken:
            try:
                self._register(name, value)
            except InvariantViolation:
                self._is_broken = True  # What follows is judged by what was there before.
                raise

    def stepped(
        self, front: SimulatedFront, run: HostedRun, event: on.Event, effects: list[do.Effect]
    ) -> None:
        """See Oracle: what a coordinator publishes is in the ledger, and it owns the run."""
        if self._is_broken:
            return
        for effect in effects:
            match effect:
                case do.Publish(record=record):
                    head = record.head
                    self._checker.committed(run.run_id, head.term, head.number)
                    self._must_own(front, run)
                case do.Announce() if not self._checker.is_closed(run.run_id):
                    what = f"announced that {run.run_id} is over, which the ledger does not say"
                    raise InvariantViolation("R5", f"{front.process.name} {what}")

    def round_given(self, here: StartedNode, token: Token, digest: str) -> None:
        """See Oracle: R1, R5: a node is given no round that is not in the ledger."""
        if not self._is_broken:
            self._checker.committed(here.run_id, *token)

    def run_ended(self, here: StartedNode, close: CloseRecord) -> None:
        """See Oracle: R6: a node is told of no end that is not in the ledger, or was swept."""
        term = self._checker.owner(here.run_id)[1]
        is_known = term == close.term and not self._is_broken
        if is_known and not self._checker.is_closed(here.run_id):
            raise InvariantViolation("R6", f"{here.name} saw {close}, which is not in the ledger")

    def _must_own(self, front: SimulatedFront, run: HostedRun) -> None:
        # R5: while its clock is right, a coordinator knows when its lease may have been revoked.
        process = front.process
        is_right = not self.scene.plan.wild_clocks and process.has_right_clock
        if is_right:
            lease = front.driver.ownership.process
            self._checker.may_decide(run.run_id, lease, run.membership.term)

    def _register(self, key: str, value: bytes | None) -> None:
        kind, _, name = key.partition("/")
        checker = self._checker
        if kind == "runs" and value is None:
            checker.run_removed(urllib.parse.unquote(name))
        elif kind == "runs" and value is not None:
            checker.run_written(e.decode_run(value))
        elif kind == "floor":
            if value is None:
                raise InvariantViolation("R13", "the floor was removed")
            checker.floor_written(e.decode_floor(value))
        elif kind == "mistake":
            self._mistaken_s = math.inf if value is None else self.scene.world.now_s
        elif kind == "coordinators" and value is None:
            checker.lease_swept(name)
        elif kind == "coordinators" and value is not None:
            self._lease(e.decode_lease(value))

    def _lease(self, lease: e.Lease) -> None:
        now_s = self.scene.world.now_s
        before = self._leases.pop(lease.process, None)
        if lease.state is e.LeaseState.SERVING:
            self._leases[lease.process] = (lease, now_s)
        elif lease.state is e.LeaseState.REVOKED and before is not None:
            held, since_s = before
            if lease.is_early:
                self._early(lease, now_s)
            elif now_s - since_s < SLOWEST * held.ttl_s:
                what = f"{lease.revoked_by} revoked the lease of {lease.process} after "
                ttl = f"{now_s - since_s:.2f} s, and its ttl is {held.ttl_s:g} s"
                raise InvariantViolation("R9", what + ttl)
        self._checker.lease_written(lease)

    def _early(self, lease: e.Lease, now_s: float) -> None:
        network = self.scene.network
        if now_s - self._mistaken_s > ASKED_WITHIN_S:
            told = f"{lease.revoked_by} revoked the lease of {lease.process} early after a mistake"
            raise InvariantViolation("R9", told)
        revokers = (
            host for each, host in self._fronts.items() if self._is_of(each, lease.revoked_by)
        )
        source = next(revokers, "")
        for front, host in self._fronts.items():
            process, is_it = front.process, self._is_of(front, lease.process)
            if not (is_it and process.is_alive and network.listens(process)):
                continue
            if not network.was_refused(host, source, ASKED_WITHIN_S):
                told = f"{lease.revoked_by} revoked early the lease of {lease.process}: it listens"
                raise InvariantViolation("R9", told)

    def _is_of(self, front: SimulatedFront, lease: str) -> bool:
        """Whether it has the lease of this name."""
        return front.driver.ownership.process == lease


class MistakesAreRecorded(Oracle):
    """A coordinator whose lease was revoked early, and which is alive, says so in the ledger."""

    MARGIN_S: Final = 5.0
    """After the ttl, in which it learns of it, and a pause between two tries."""
    PAUSE_MAX_S: Final = 30.0

    def __init__(self, scene: Scene) -> None:
        super().__init__(scene)
        self._fronts: list[SimulatedFront] = []
        self._owed: dict[str, tuple[SimulatedFront, float]] = {}
        """By the name of the lease: the coordinator, and when it was revoked."""

    def serves(self, front: SimulatedFront) -> None:
        """See Oracle."""
        self._fronts.append(front)

    def written(self, name: str, value: bytes | None) -> None:
        """See Oracle."""
        if value is None:
            return
        if name == MISTAKE:
            self._owed.pop(e.decode_mistake(value).process, None)
        elif name.startswith(COORDINATORS):
            lease = e.decode_lease(value)
            if lease.state is e.LeaseState.REVOKED and lease.is_early:
                self._revoked(lease)

    def _revoked(self, lease: e.Lease) -> None:
        for front in self._fronts:
            if front.process.is_alive and front.driver.ownership.process == lease.process:
                self._owed[lease.process] = (front, self.scene.world.now_s)

    def at_end(self) -> None:
        """See Oracle."""
        scene = self.scene
        for name, (front, revoked_s) in self._owed.items():
            # While the ledger was away, the pauses were no longer than the time before them.
            pause_s = min(self.PAUSE_MAX_S, max(0.0, scene.peace_s - revoked_s))
            within_s = scene.plan.lease_ttl_s + pause_s + self.MARGIN_S
            due_s = max(revoked_s, scene.peace_s) + within_s
            # One that is closed, because its node has found another, records nothing.
            lives = front.process.is_alive and not front.has_ended
            lives = lives and front.process.sees is None  # An older release does not know how.
            if lives and scene.world.now_s > due_s:
                what = f"has not recorded that its lease {name} was revoked while it was alive"
                scene.broke("mistake", f"{front.process.name} {what}")


class LedgerIsSpared(Oracle):
    """Budgets: the requests that all processes make, however they fail and search."""

    AT_ONCE: Final = 200
    PER_S: Final = 15.0
    """For each place. The most that a sound job has made is 7."""
    PER_RECORD: Final = 2
    """For each record of a log: it is written, and may be read."""

    def __init__(self, scene: Scene) -> None:
        super().__init__(scene)
        self._records = 0

    def logged(self, log: str, index: int, value: bytes | None) -> None:
        """See Oracle."""
        self._records += value is not None

    def at_end(self) -> None:
        """See Oracle."""
        scene = self.scene
        places = len({each.index for each in scene.nodes})
        most = self.AT_ONCE + self.PER_S * places * scene.world.now_s
        most += self.PER_RECORD * self._records
        if scene.ledger.requests() > most:
            what = f"{scene.ledger.requests()} requests in {scene.world.now_s:.0f} s"
            scene.broke("budget", f"{what} of {places} places, at most {most:.0f}")


@functools.lru_cache(maxsize=4)
def record_of(value: bytes) -> Record:
    """A record of a log. Several oracles look at each."""
    return decode_record(value)


class LogsKeepRules(Oracle):
    """R5: after a seal, no earlier term writes to a log; without one, no later term does.

    A term seals no log of its own.

    Budget: a run has the log of its round, and leaves no others.
    """

    LOGS_MAX: Final = 3
    """Of each run: segments of one round, and what is being removed."""

    def __init__(self, scene: Scene) -> None:
        super().__init__(scene)
        self._terms: dict[str, int] = {}
        """The last term that wrote to a log. It has the logs that exist."""
        self._sealed: dict[str, None] = {}
        """The logs that have a seal."""

    def at_end(self) -> None:
        """See Oracle."""
        runs: dict[str, list[str]] = {}
        for log in self._terms:
            runs.setdefault(log.rpartition("/")[0], []).append(log)
        for run, logs in runs.items():
            if len(logs) > self.LOGS_MAX and self.scene.settled_s is not None:
                self.scene.broke("budget", f"{run} has {len(logs)} logs: {logs}")

    def logged(self, log: str, index: int, value: bytes | None) -> None:
        """See Oracle."""
        if value is None:
            self._terms.pop(log, None)
            self._sealed.pop(log, None)
            return
        record = record_of(value)
        last = self._terms.get(log)
        if last is not None and record.term < last:
            self.scene.broke("R5", f"term {record.term} wrote to {log} after term {last}")
        if last == record.term and record.is_seal and log not in self._sealed:
            self.scene.broke("R5", f"term {record.term} sealed {log}, to which it has written")
        if record.is_seal:
            self._sealed[log] = None
        if last is not None and record.term > last and not record.is_seal:
            self.scene.broke("R5", f"term {record.term} wrote to {log} of term {last}, unsealed")
        self._terms[log] = record.term


class LedgerStaysSmall(Oracle):
    """Budgets: the logs of old rounds are removed, and the log of a round is compacted."""

    LOGS_MAX: Final = 10
    """Of one run. A log that could not be removed is removed after the next round."""
    MORE_RECORDS: Final = 40
    """A segment has so many records besides those after which it is compacted: what was written
    while the next snapshot was. A snapshot of many parts takes long, and may cost as much again."""
    COST_BYTES: Final = 1024
    """To read a record costs at least as much as so many bytes of a snapshot."""

    def __init__(self, scene: Scene) -> None:
        super().__init__(scene)
        self._records: dict[str, int] = {}
        """How many records a log has."""
        self._parts: dict[str, int] = {}
        """By run: how many parts a snapshot has had at most."""
        self._part_bytes: dict[str, int] = {}
        """By run: how many bytes all parts of a snapshot have had at most."""
        self._of_log: dict[str, tuple[int, int]] = {}
        """By log: its parts, and their bytes."""

    def logged(self, log: str, index: int, value: bytes | None) -> None:
        """See Oracle."""
        if value is None:
            self._records.pop(log, None)
            self._of_log.pop(log, None)
            return
        run = log.rpartition("/")[0]
        parts, size = self._of_log.get(log, (0, 0))
        if record_of(value).part is not None:
            parts, size = self._of_log[log] = parts + 1, size + len(value)
        self._parts[run] = max(parts, self._parts.get(run, 0))
        self._part_bytes[run] = max(size, self._part_bytes.get(run, 0))
        records = self._records[log] = self._records.get(log, 0) + 1
        most = store_log.COMPACT_RECORDS + 3 * self._parts[run] + self.MORE_RECORDS
        if records > most + self._part_bytes[run] / self.COST_BYTES:
            self.scene.broke("budget", f"{log} has {records} records; it should be compacted")

    def at_end(self) -> None:
        """See Oracle."""
        logs: dict[str, int] = {}
        for log in self._records:
            run = log.rpartition("/")[0]
            logs[run] = logs.get(run, 0) + 1
        for run, count in logs.items():
            if count > self.LOGS_MAX and self.scene.settled_s is not None:
                self.scene.broke("budget", f"{run} has {count} logs, of old rounds")


class OldIsRemoved(Oracle):
    """What is in the ledger for nobody is removed in time, while a replica serves: see `Keeping`.

    It is the leases of processes that have ended, runs that are closed, and the record of a
    mistake.
    """

    def __init__(self, scene: Scene) -> None:
        super().__init__(scene)
        self._there: dict[str, tuple[bytes, float]] = {}
        """What each register holds, and since when."""
        self._since_s: dict[SimulatedFront, float] = {}
        """Since when a replica could sweep."""

    def written(self, name: str, value: bytes | None) -> None:
        """See Oracle."""
        self._there.pop(name, None)
        if value is not None:
            self._there[name] = value, self.scene.world.now_s

    def looked(self) -> None:
        """See Oracle."""
        scene, now_s = self.scene, self.scene.world.now_s
        before, self._since_s = self._since_s, {}
        if scene.is_chaotic:
            return
        for front in scene.fronts:
            process = front.process
            is_able = process.is_alive and not process.is_frozen and not front.has_ended
            if is_able and front.driver.coordinator.config.only_run is None:
                self._since_s[front] = before.get(front, now_s)
        began_s = max(min(self._since_s.values(), default=now_s), scene.peace_s)
        for name, (value, written_s) in self._there.items():
            since_s, kept_s = max(written_s, began_s), self._kept_s(name, value)
            if now_s - since_s > SLACK * (kept_s + 2 * garbage_collector.LOOK_S) + MARGIN_S:
                what = f"{name} has not changed since {written_s:.1f} s, and is still there"
                scene.broke("leak", what)

    def _kept_s(self, name: str, value: bytes) -> float:
        keeping = garbage_collector.Keeping(closed_run_s=self.scene.plan.closed_run_keep_s)
        if name == MISTAKE:
            return keeping.mistake_s
        if name.startswith(COORDINATORS):
            return max(keeping.lease_s, e.decode_lease(value).ttl_s)
        if name.startswith(RUNS) and e.decode_run(value).close is not None:
            return keeping.closed_run_s
        return math.inf


class FailoversAreCheap(Oracle):
    """Budgets: few of many nodes become candidates, and a takeover costs few requests.

    Without that, thousands of nodes would write to a ledger at the moment at which it is needed.
    """

    MORE: Final = 3
    """So many times `candidates` may be candidates at once: it is an average."""
    REQUESTS: Final = 60
    """What a takeover may cost: so many requests, and some for each node and each second."""
    PER_NODE_S: Final = 15
    PER_RECORD: Final = 4
    """The log of the round is read, by more than one owner if the first one dies."""

    def __init__(self, scene: Scene) -> None:
        super().__init__(scene)
        self._leases: dict[str, tuple[e.Lease, float]] = {}
        """The leases of candidates, and when each was written."""
        self._terms: dict[str, int] = {}
        self._lost: tuple[float, int] | None = None
        """Since when no process owns a run, and how many requests there were until then."""
        self._records: dict[str, int] = {}
        """How many records each log has."""

    def logged(self, log: str, index: int, value: bytes | None) -> None:
        """See Oracle."""
        if value is None:
            self._records.pop(log, None)
        else:
            self._records[log] = self._records.get(log, 0) + 1

    def written(self, name: str, value: bytes | None) -> None:
        """See Oracle."""
        if name.startswith(COORDINATORS):
            self._leases.pop(name, None)
            lease = None if value is None else e.decode_lease(value)
            if lease is not None and lease.only_run and lease.state is e.LeaseState.SERVING:
                self._leases[name] = lease, self.scene.world.now_s
                self._are_few(lease.only_run)
        elif name.startswith(RUNS) and value is not None:
            term = e.decode_run(value).term
            if term > self._terms.get(name, term):
                self._was_cheap()
            self._terms[name] = term

    def looked(self) -> None:
        """See Oracle."""
        serving = [
            each for each in self.scene.fronts if each.process.is_alive and not each.has_ended
        ]
        if any(each.is_owner for each in serving):
            self._lost = None
        elif self._lost is None:
            self._lost = self.scene.world.now_s, self.scene.ledger.requests()

    def _are_few(self, run_id: str) -> None:
        now_s, most = self.scene.world.now_s, self.MORE * CANDIDATES
        fresh = (
            each for each, written_s in self._leases.values() if now_s - written_s < each.ttl_s
        )
        count = sum(each.only_run == run_id for each in fresh)
        if count > most:
            what = f"{count} processes are candidates for {run_id} at once, and {most} are enough"
            self.scene.broke("budget", what)

    def _was_cheap(self) -> None:
        if self._lost is None:
            return
        since_s, before = self._lost
        self._lost = None
        lasted_s, count = self.scene.world.now_s - since_s, self.scene.ledger.requests() - before
        per_node = self.PER_NODE_S * (1 + lasted_s)
        places = self.scene.plan.nodes + self.scene.plan.replicas
        read = self.PER_RECORD * sum(self._records.values())
        if count > self.REQUESTS + per_node * places + read:
            what = f"a takeover after {lasted_s:.1f} s cost {count} requests of {places} processes"
            self.scene.broke("budget", what)
