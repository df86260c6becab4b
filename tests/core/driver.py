"""Drives one checked membership by a logical clock, for scenarios, rules and properties.

Nodes are named by tokens: `b` is the first start of node b, `b'` its second. Due timers fire in
the order of their times. The ledger answers at once, unless `manual_commit` is set.
"""

from __future__ import annotations

import heapq
from typing import Any

import msgspec

from rallypoint.checkers.invariants import Checked
from rallypoint.core import effects as do
from rallypoint.core import events as on
from rallypoint.core.blame import Blame
from rallypoint.core.election import RunState
from rallypoint.core.membership import Membership
from rallypoint.core.orders import Orders, Scale
from rallypoint.core.progress import Progress
from rallypoint.core.stacks import WorkerStack
from rallypoint.core.suspension import SuspensionCause
from rallypoint.core.values import (
    Address,
    Change,
    CloseRecord,
    ConnectionEnd,
    Failure,
    FailureKind,
    HostReport,
    Marks,
    NodeId,
    NodeInfo,
    Outcome,
    Phase,
    Reachability,
    RoundRecord,
    RunSettings,
    secret_hash,
)

STOP_S = 5.0
"""The stop time of nodes, unless a test gives another."""


def node_id(token: str) -> NodeId:
    """`b` is the first start of node b, `b'` its second, `b''` its third."""
    name = token.rstrip("'")
    return NodeId(name, 1 + len(token) - len(name))


def token_of(node: NodeId) -> str:
    return node.name + "'" * (node.incarnation - 1)


class Driver:
    """One run with its clock, timers and ledger, and what each node of it knows."""

    def __init__(
        self,
        *,
        manual_commit: bool = False,
        manual_marks: bool = False,
        has_successor: bool = True,
        term: int = 1,
        **settings: Any,
    ) -> None:
        self.settings = msgspec.convert(settings, _Settings).settings()
        self.checked = Checked(Membership("run", term=term, has_successor=has_successor))
        self.manual_commit = manual_commit
        self.manual_marks = manual_marks
        self.now_s = 0.0
        self.effects: list[tuple[float, do.Effect]] = []
        self.fired: list[do.Timer] = []
        self.said: list[on.Event] = []
        self.good: list[str] = []
        self.hosts: dict[str, str] = {}
        """By the name of a node: from which address it connects, unless `attach` says another."""
        self._timers: list[tuple[float, int, do.Timer]] = []
        self._order = 0
        self._links: dict[str, int] = {}
        self._rounds: dict[str, int] = {}
        self._told: Change | None = None
        self._asked: tuple[RoundRecord | CloseRecord, int, Marks, Orders, Blame] | None = None
        self._marks: tuple[Marks, int, Orders, Blame] | None = None
        self._marks_serial = 0
        self.register = RunState(term)
        """What the ledger holds of the run."""

    # -- the run -------------------------------------------------------------------------------

    @property
    def run(self) -> Membership:
        return self.checked.membership

    @property
    def phase(self) -> Phase:
        return self.run.phase

    @property
    def names(self) -> list[str]:
        """The nodes of the last committed round, in rank order."""
        return [member.name for member in self.run.round.members] if self.run.round else []

    def take(self) -> list[tuple[float, do.Effect]]:
        """The effects since the last call, with their times."""
        effects, self.effects = self.effects, []
        return effects

    def step(self, *events: on.Event) -> list[do.Effect]:
        """Step these events, and the ledger's answers to their effects."""
        found: list[do.Effect] = []
        queue = list(events)
        self.said += [event for event in events if isinstance(event, on.SignOfLife)]
        while queue:
            event = queue.pop(0)
            if event == on.MarksWritten(self._marks_serial) and self._marks is not None:
                marks, restarts, orders, blame = self._marks
                self.register = msgspec.structs.replace(
                    self.register, marks=marks, restarts=restarts, orders=orders, blame=blame
                )
                self._marks = None
            effects = self.checked.step(event, self.now_s)
            found += effects
            self._keep()
            for effect in effects:
                self._execute(effect, queue)
        return found

    def _execute(self, effect: do.Effect, queue: list[on.Event]) -> None:
        self.effects.append((self.now_s, effect))
        match effect:
            case do.SetTimer(timer=timer, delay_s=delay_s):
                self._order += 1
                heapq.heappush(self._timers, (self.now_s + delay_s, self._order, timer))
            case do.Commit(record=record):
                written = (self.run.marks_with(record), self.run.orders_with_record)
                blame = self.run.blame_with_record
                self._asked = (record, self.run.restart_count, *written, blame)
                if not self.manual_commit:
                    queue.append(on.Committed())
            case do.WriteMarks(serial=serial, marks=marks, restarts=restarts, orders=orders):
                self._marks = (marks, restarts, orders, effect.blame)
                self._marks_serial = serial
                if not self.manual_marks:
                    queue.append(on.MarksWritten(serial))
            case do.Break(change=change) | do.Verdict(change=change):
                self._told = change
            case do.Publish(record=record):
                for row in record.members:
                    token = token_of(NodeId(row.name, row.incarnation))
                    self._rounds[token] = record.head.number

    def advance(self, duration_s: float) -> None:
        """Let time pass, and fire each timer at its time."""
        end_s = self.now_s + duration_s
        while self.advance_once(end_s):
            pass

    def advance_once(self, end_s: float) -> bool:
        """Fire the next timer that is due by `end_s`. If there is none, go to `end_s`: False."""
        if not self._timers or self._timers[0][0] > end_s:
            self.now_s = end_s
            return False
        due_s, _, timer = heapq.heappop(self._timers)
        self.now_s = max(self.now_s, due_s)
        self.fired.append(timer)
        self.step(on.TimerFired(timer))
        return True

    # -- another coordinator -------------------------------------------------------------------

    def _keep(self) -> None:
        """Keep what the ledger has."""
        kept = self.register
        if self._asked and (self.run.round is not kept.round or self.run.close is not kept.close):
            self.register = _with(kept, *self._asked)
            self._asked = None

    def fail_over(
        self, *, is_written: bool = False, attach_grace_s: float = 6.0, host: str = ""
    ) -> None:
        """The coordinator dies, and another one takes over. No node has attached to it yet.

        `is_written`: what it had just given to the ledger is in there. `host`: the node that it
        ran in, if that is known to have gone with it.
        """
        if self._asked is not None and is_written:
            self.register = _with(self.register, *self._asked)
        term = self.register.term + 1
        settings = self.register.settings or self.run.asked_settings
        self.register = msgspec.structs.replace(self.register, term=term, settings=settings)
        self._asked = self._marks = None
        self._timers.clear()
        self._links.clear()
        self.fired.clear()
        successor = Membership("run", term=term)
        for effect in self.checked.take_over(
            successor,
            self.register,
            attach_grace_s=attach_grace_s,
            now_s=self.now_s,
            former_host=node_id(host) if host else None,
        ):
            self._execute(effect, [])

    # -- what nodes do -------------------------------------------------------------------------

    def attach(
        self,
        *tokens: str,
        settings: RunSettings | None = None,
        stop_s: float = STOP_S,
        secret: str | None = None,
        takes_orders: bool = True,
        host: str = "",
        is_beside: bool = False,
        is_witness: bool = True,
    ) -> None:
        """Connect, for the first time or again, on a new link.

        `secret`: what is shown instead of the node's own resume secret; "" for none.
        `takes_orders` False: the node is of an older release. `host`: the address from which it
        connects; "" if something is between. `is_witness` False: of a release without witnesses.
        """
        for token in tokens:
            self._links[token] = len(self._links) + 1 + 1000 * (token in self._links)
            node = node_id(token)
            address = f"{node.name}.example"
            info = NodeInfo(node.name, node.incarnation, node.name, (address,), stop_s=stop_s)
            shown = secret_hash((token if secret is None else secret).encode())
            wanted = settings or self.settings
            link = self._links[token]
            where = host or self.hosts.get(node.name, "")
            seen = Address(where, 40_000 + link) if where else None
            more = (takes_orders, seen, is_beside, is_witness, takes_orders)
            self.step(on.NodeAttached(info, wanted, link, shown, *more))

    def ready(
        self, *tokens: str, leaving: int | None = None, workers: int = 1, unfit: str = ""
    ) -> None:
        """Ask for the next round, and leave the one that the node was given last."""
        for token in tokens:
            left = self._rounds.get(token, 0) if leaving is None else leaving
            bootstrap = Address(f"{node_id(token).name}.example", 29500)
            told = self._told if self._told and self._told.round == left else None
            self.step(on.NodeReady(node_id(token), left, bootstrap, workers, told, unfit))

    def join(self, *tokens: str) -> None:
        """All of them attach, and then ask for a round."""
        self.attach(*tokens)
        self.ready(*tokens)

    def fail(
        self, *tokens: str, kind: str = "exception", message: str = "", code: int | None = None
    ) -> None:
        for token in tokens:
            text = message or f"{kind} on {token}"
            failure = Failure(FailureKind(kind), text, exit_code=code)
            self.step(on.WorkerFailed(node_id(token), self._rounds.get(token, 0), failure))

    def done(self, *tokens: str) -> None:
        for token in tokens:
            self.step(on.NodeDone(node_id(token), self._rounds.get(token, 0)))

    def depart(self, *tokens: str) -> None:
        for token in tokens:
            self.step(on.NodeDeparting(node_id(token), "preempted"))

    def take_part(self, *tokens: str) -> None:
        """Each worker of the node asks at each step whether to stop."""
        for token in tokens:
            self.step(on.NodeTakesPart(node_id(token), self._rounds.get(token, 0)))

    def draining(self, *tokens: str, left_s: float = 20.0, reason: str = "spot notice") -> None:
        """The node is going to leave; its round goes on."""
        for token in tokens:
            number = self._rounds.get(token, 0)
            self.step(on.NodeDraining(node_id(token), number, reason, left_s))

    def promise(self, *tokens: str, step: int = 0) -> None:
        """No worker of the node passes a later step before the decision."""
        for token in tokens:
            self.step(on.StepPromised(node_id(token), self._rounds.get(token, 0), step))

    def leave(self, *tokens: str) -> None:
        for token in tokens:
            self.step(on.NodeLeft(node_id(token), "goodbye"))

    def answer(self, *tokens: str) -> None:
        for token in tokens:
            self.step(on.ProbeAnswered(node_id(token)))

    def progress(
        self,
        *tokens: str,
        step: int | None = None,
        ago_s: float = 0.0,
        timeout_s: float | None = 60.0,
        number: int | None = None,
    ) -> None:
        """The node says how far its workers are."""
        for token in tokens:
            of_round = self._rounds.get(token, 0) if number is None else number
            said = Progress(of_round, step, ago_s, timeout_s)
            self.step(on.NodeProgressed(node_id(token), said))

    def stacks(
        self,
        token: str,
        *workers: WorkerStack,
        serial: int | None = None,
        progress: Progress | None = None,
    ) -> None:
        """The node tells where its workers stand."""
        asked = self.run.progress.serial if serial is None else serial
        self.step(on.StacksTold(node_id(token), asked, progress, workers))

    def disconnect(self, *tokens: str, why: str = "") -> None:
        for token in tokens:
            how = ConnectionEnd.OURS if why else ConnectionEnd.UNKNOWN
            self.step(on.ConnectionLost(node_id(token), self._links[token], how, why))

    def die(self, *tokens: str) -> None:
        """The node's kernel closes its connection, as its process has ended."""
        how = ConnectionEnd.PROCESS_ENDED
        for token in tokens:
            self.step(on.ConnectionLost(node_id(token), self._links[token], how))

    def disconnect_if_linked(self, *tokens: str) -> None:
        self.disconnect(*(token for token in tokens if token in self._links))

    def die_if_linked(self, *tokens: str) -> None:
        self.die(*(token for token in tokens if token in self._links))

    def silent(self, *tokens: str, silent_s: float = 5.0) -> None:
        for token in tokens:
            self.step(on.NodeSilent(node_id(token), silent_s))

    def missed(self, *tokens: str, silent_s: float = 3.75) -> None:
        """Two heartbeats of these nodes are missing."""
        for token in tokens:
            self.step(on.BeatsMissed(node_id(token), silent_s))

    def testify(self, token: str, question: int, said: HostReport) -> None:
        self.step(on.HostReported(node_id(token), question, said))

    def heard(self, *tokens: str) -> None:
        for token in tokens:
            self.step(on.NodeHeard(node_id(token)))

    def close(
        self,
        outcome: Outcome = Outcome.STOPPED,
        reason: str = "asked to",
        by: str = "ann",
        *,
        by_operator: bool = True,
    ):
        self.step(on.CloseRequested(by, outcome, reason, by_operator=by_operator))

    def drain(self, *tokens: str, reason: str = "new kernel") -> None:
        """An operator asks a node to leave."""
        for token in tokens:
            self.step(on.DrainRequested(node_id(token), "operator ann", reason))

    def evict(self, *tokens: str, reason: str = "bad memory") -> None:
        """An operator takes a node out of the run."""
        for token in tokens:
            self.step(on.EvictRequested(node_id(token), "operator ann", reason))

    def admit(self, *tokens: str, reason: str = "memory replaced") -> None:
        """An operator lifts the eviction of a node."""
        for token in tokens:
            self.step(on.AdmitRequested(node_id(token), "operator ann", reason))

    def scale(self, min_nodes: int, max_nodes: int) -> None:
        """An operator changes how many nodes the run has."""
        self.step(on.ScaleRequested(Scale(min_nodes, max_nodes, "operator ann")))

    # -- what the ledger does ------------------------------------------------------------------

    def commit(self) -> None:
        # A ledger that cannot be reached says nothing about a record that it was not given.
        if self.phase is not Phase.SUSPENDED or self._asked is not None:
            self.step(on.Committed())

    def marks_written(self) -> None:
        """The ledger has the marks of the members."""
        self.step(on.MarksWritten(self._marks_serial))

    def refuse_commit(self) -> None:
        self.step(on.CommitRefused("term 2 has begun"))

    def lose_ledger(self, cause: SuspensionCause = SuspensionCause.LEASE) -> None:
        self.step(on.LedgerLost("etcd does not answer", cause=cause))

    def restore_ledger(self, cause: SuspensionCause = SuspensionCause.LEASE) -> None:
        self.step(on.LedgerRestored(cause))

    # -- what can be asked ---------------------------------------------------------------------

    def is_connected(self, token: str) -> bool:
        member = self.run.roster.living(node_id(token))
        return member is not None and member.reachability is Reachability.CONNECTED


def _with(
    register: RunState,
    record: RoundRecord | CloseRecord,
    restarts: int,
    marks: Marks,
    orders: Orders,
    blame: Blame,
) -> RunState:
    kept = msgspec.structs.replace(
        register, restarts=restarts, marks=marks, orders=orders, blame=blame
    )
    if isinstance(record, CloseRecord):
        return msgspec.structs.replace(kept, close=record)
    return msgspec.structs.replace(kept, round=record)


class _Settings(msgspec.Struct, forbid_unknown_fields=True):
    """The settings of a run, by the short names of scenarios. A run has 2 to 4 nodes by default."""

    min: int = 2
    max: int = 4
    expected: int | None = None
    restarts: int | None = 0
    last_call: float = 30.0
    settle: float = 0.05
    scale_up: float = 1.0
    grace: float = 1.0
    suspect: float = 5.0
    probe: float = 1.0
    lost: float = 30.0
    mass_min: int = 2
    mass_grace: float = 120.0
    window: float | None = None
    early: float = 0.0
    same: int | None = None
    codes: tuple[int, ...] = ()
    per_node: int | None = None
    cooldown: float = 60.0
    cooldown_max: float = 3_600.0

    def settings(self) -> RunSettings:
        return RunSettings(
            min_nodes=self.min,
            max_nodes=self.max,
            expected_nodes=self.expected,
            max_restarts=self.restarts,
            last_call_s=self.last_call,
            settle_s=self.settle,
            scale_up_delay_s=self.scale_up,
            reconnect_grace_s=self.grace,
            suspect_after_s=self.suspect,
            probe_s=self.probe,
            lost_after_s=self.lost,
            mass_min=self.mass_min,
            mass_grace_s=self.mass_grace,
            restart_window_s=self.window,
            early_s=self.early,
            same_failure=self.same,
            no_restart_exit_codes=self.codes,
            max_restarts_per_node=self.per_node,
            cooldown_s=self.cooldown,
            cooldown_max_s=self.cooldown_max,
        )
