"""What must hold in each node of a job, as its program and its machine see it."""

from __future__ import annotations

import urllib.parse
from typing import Any, Final

from rallypoint.client.actions import Drop, Send
from rallypoint.client.node import Node, Round
from rallypoint.coordinator.hosted_run import HostedRun
from rallypoint.core import effects as do
from rallypoint.core import events as on
from rallypoint.core.election import RunRegister, decode_run
from rallypoint.core.marking import ranks_in
from rallypoint.core.reasons import ALL_FINISHED, RefusalCode
from rallypoint.core.values import (
    Change,
    ChangeKind,
    CloseRecord,
    RoundHead,
    RoundMember,
    RunSettings,
    Seat,
    Stamp,
)
from rallypoint.errors import CoordinatorLostError
from rallypoint.ledger.keys import COORDINATORS, RUNS
from rallypoint.simulation.machine import SimulatedFront
from rallypoint.simulation.scene import LOOKS_S, Oracle, Scene, StartedNode, Token
from rallypoint.wire import messages as wire


class NodesNeverGoBack(Oracle):
    """R5: nodes refuse messages of a lower (term, round) than they have seen."""

    def joins(self, here: StartedNode, node: Node) -> None:
        """See Oracle."""
        machine: Any = node._machine
        received = machine.received

        def receives(message: Any, now_s: float) -> Any:
            before, floor = machine.stamp, machine._floor
            actions = received(message, now_s)
            after = machine.stamp
            if _is_older(after, before) or (after != before and _is_older(after, floor)):
                kind = type(message).__name__
                seen = f"{before.term, before.round}, in the ledger term {floor.term}"
                now = f"{after.term, after.round}"
                self.scene.broke("R5", f"{here.name} took {kind} of {now}, and had seen {seen}")
            is_done = any(not isinstance(each, Drop) for each in actions)
            if is_done and not isinstance(message, wire.Refused):
                # A late message changes nothing, also if this node has read the term in the ledger.
                sent = message.stamp
                if _is_older(sent, before) or _is_older(sent, floor):
                    told = f"{type(message).__name__} of {sent.term, sent.round} is late"
                    self.scene.broke("R5", f"{here.name}: {told}, and it did {actions}")
            return actions

        machine.received = receives


def _is_older(one: Stamp, other: Stamp) -> bool:
    """Terms first, then rounds, of one ledger."""
    is_same_ledger = one.ledger_id == other.ledger_id
    return is_same_ledger and (one.term, one.round) < (other.term, other.round)


class ProbesAreAnswered(Oracle):
    """R8: a member that answers is not lost, so a node that lives answers each probe at once."""

    def joins(self, here: StartedNode, node: Node) -> None:
        """See Oracle."""
        machine: Any = node._machine
        received = machine.received

        def receives(message: Any, now_s: float) -> Any:
            before, floor = machine.stamp, machine._floor
            actions = received(message, now_s)
            if isinstance(message, wire.Probe):
                is_late = _is_older(message.stamp, before) or _is_older(message.stamp, floor)
                if not is_late and not any(isinstance(each, Send) for each in actions):
                    self.scene.broke("R8", f"{here.name} did not answer {message}")
            return actions

        machine.received = receives


_EXPELLED: Final = (RefusalCode.SUPERSEDED, RefusalCode.EVICTED)


class SupersededStop(Oracle):
    """R13: a node that is superseded or evicted stops for good: it attaches nowhere any more."""

    def joins(self, here: StartedNode, node: Node) -> None:
        """See Oracle."""
        machine: Any = node._machine
        received, connected = machine.received, machine.connected
        told: list[wire.Refused] = []

        def receives(message: Any, now_s: float) -> Any:
            if isinstance(message, wire.Refused) and message.refusal.code in _EXPELLED:
                seen = machine.stamp
                # Another ledger, or an owner of an earlier term, does not know who has the name.
                is_known = message.stamp.ledger_id == seen.ledger_id
                if is_known and message.stamp.term >= max(seen.term, machine._floor.term):
                    told.append(message)
            return received(message, now_s)

        def connects(now_s: float, source: Any = None) -> Any:
            if told:
                self.scene.broke("R13", f"{here.name} attaches again, and was told: {told[0]}")
            return connected(now_s, source)

        machine.received, machine.connected = receives, connects


class RanksAreWhole(Oracle):
    """R3: ranks are 0 to n - 1, each once, and min_nodes <= n <= max_nodes. R1: one round each."""

    def __init__(self, scene: Scene) -> None:
        super().__init__(scene)
        self._rounds: dict[tuple[str, Token], tuple[RoundHead, dict[str, Seat]]] = {}
        self._tokens: dict[tuple[str, int], Token] = {}

    def round_given(self, here: StartedNode, token: Token, digest: str) -> None:
        """See Oracle."""
        given = here.node.round if here.node is not None else None
        if given is None or (given.head.term, given.head.number) != token:
            return
        head, seat = given.head, given.seat
        settings = self.scene.run_settings
        what = f"round {token} at {here.name}"
        if self._tokens.setdefault((here.run_id, token[1]), token) != token:
            self.scene.broke("R1", f"{what}, and round {self._tokens[here.run_id, token[1]]}")
        known, seats = self._rounds.setdefault((here.run_id, token), (head, {}))
        if known != head:
            self.scene.broke("R2", f"{what} is {head}, elsewhere {known}")
        sizes = ((settings.min_nodes, settings.max_nodes), *self.scene.sizes)
        if not any(least <= head.nodes <= most for least, most in sizes):
            bounds = " or ".join(f"{least} to {most}" for least, most in sizes)
            self.scene.broke("R3", f"{what} has {head.nodes} nodes, and the run {bounds}")
        seats[here.name] = seat
        nodes = sorted(each.node_rank for each in seats.values())
        workers = sorted(
            rank
            for each in seats.values()
            for rank in range(each.first_rank, each.first_rank + each.workers)
        )
        for ranks, size in ((nodes, head.nodes), (workers, head.size)):
            if len(set(ranks)) < len(ranks) or not set(ranks) <= set(range(size)):
                self.scene.broke("R3", f"{what}: ranks {ranks} of {size}")


class SettingsAgree(Oracle):
    """R2: all nodes of a round have the same settings of the run: others are refused."""

    def __init__(self, scene: Scene) -> None:
        super().__init__(scene)
        self._settings: dict[tuple[str, Token], tuple[RunSettings, str]] = {}

    def round_given(self, here: StartedNode, token: Token, digest: str) -> None:
        """See Oracle."""
        if here.node is None:
            return
        own = here.node.run
        known, by = self._settings.setdefault((here.run_id, token), (own, here.name))
        if known != own:
            unlike = ", ".join(map(str, known.conflicts(own)))
            self.scene.broke("R2", f"{by} and {here.name} are in round {token}: {unlike}")


class TablesAgree(Oracle):
    """R2: all members agree on the members, ranks, sizes and bootstrap address of a round."""

    def __init__(self, scene: Scene) -> None:
        super().__init__(scene)
        self._tables: dict[tuple[str, Token], tuple[RoundMember, ...]] = {}

    def members_told(
        self, here: StartedNode, token: Token, given: Round, members: tuple[RoundMember, ...]
    ) -> None:
        """See Oracle."""
        head, seat, what = given.head, given.seat, f"round {token} at {here.name}"
        known = self._tables.setdefault((here.run_id, token), members)
        if known != members:
            self.scene.broke("R2", f"{what} has {members}, elsewhere {known}")
        own = here.node_id
        at = [i for i, row in enumerate(members) if own is not None and row.name == own.name]
        if at != [seat.node_rank] or len(members) != head.nodes:
            self.scene.broke("R3", f"{what}: its rank is {seat.node_rank}, in the table {at}")
        before = sum(row.workers for row in members[: seat.node_rank])
        if before != seat.first_rank or sum(row.workers for row in members) != head.size:
            self.scene.broke("R3", f"{what}: {seat} of {head.size} is not that of {members}")
        # Rank 0 offers the address, and each node of the simulator offers its own host.
        hosts = [each.host for each in self.scene.nodes if _is_row(each, members[0])]
        if head.bootstrap.host not in hosts:
            self.scene.broke("R2", f"{what}: {head.bootstrap} is none of rank 0, {hosts}")


def _is_row(here: StartedNode, row: RoundMember) -> bool:
    """Whether the row may be this node's. The table that is told has no incarnations."""
    return here.node_id is not None and here.node_id.name == row.name


class EndsAgree(Oracle):
    """R6: a closed run is closed once, for all its nodes, and forms no further round.

    Once it was removed from the ledger, its id is that of another run.
    """

    def __init__(self, scene: Scene) -> None:
        super().__init__(scene)
        self._ends: dict[str, list[tuple[CloseRecord, str]]] = {}
        """The ends of a run's id, the latest last, and who saw each first."""
        self._is_removed: dict[str, bool] = {}

    def written(self, name: str, value: bytes | None) -> None:
        """See Oracle."""
        if name.startswith(RUNS) and value is None:
            self._is_removed[name.removeprefix(RUNS)] = True

    def round_given(self, here: StartedNode, token: Token, digest: str) -> None:
        """See Oracle."""
        ends = self._ends.get(here.run_id)
        if ends and not self._is_removed.get(here.run_id):
            close, by = ends[-1]
            if token > (close.term, close.round):
                self.scene.broke("R6", f"{here.name} got {token}, and {by} saw {close}")

    def run_ended(self, here: StartedNode, close: CloseRecord) -> None:
        """See Oracle."""
        ends = self._ends.setdefault(here.run_id, [])
        if any(_is_same(close, known) for known, _ in ends):
            return
        if ends and not self._is_removed.get(here.run_id):
            known, by = ends[-1]
            self.scene.broke("R6", f"{here.name} saw {close}, and {by} {known}")
        ends.append((close, here.name))
        self._is_removed[here.run_id] = False


def _is_same(one: CloseRecord, other: CloseRecord) -> bool:
    return (one.outcome, one.term, one.round) == (other.outcome, other.term, other.round)


class SuccessIsTrue(Oracle):
    """A run has succeeded by itself when all members of its last round are done."""

    def run_ended(self, here: StartedNode, close: CloseRecord) -> None:
        """See Oracle."""
        if self.scene.plan.program != "node" or close.reason != ALL_FINISHED:
            return
        for each in self.scene.nodes:
            is_last = bool(each.tokens) and each.tokens[-1][1] == close.round
            if each.run_id == here.run_id and is_last and not each.has_finished:
                what = f"{here.name} saw {close}, and {each.name} has not finished in its round"
                self.scene.broke("outcome", what)


class _KnowsTheLost(Oracle):
    """Keeps which members a coordinator has declared lost: their goodbyes come too late."""

    def __init__(self, scene: Scene) -> None:
        super().__init__(scene)
        self._lost: set[tuple[str, int, str]] = set()
        """Run, round and name of members that were lost before they left."""
        self._left: dict[str, None] = {}

    def stepped(
        self, front: SimulatedFront, run: HostedRun, event: on.Event, effects: list[do.Effect]
    ) -> None:
        """See Oracle."""
        for effect in effects:
            match effect:
                case do.Break(change=change) | do.Verdict(change=change):
                    self._add(run.run_id, change)
                case do.Forget(loss=Change() as loss):  # Its loss ended no round.
                    self._add(run.run_id, loss)

    def _add(self, run_id: str, loss: Change) -> None:
        lost = [name for name in loss.nodes if name not in self._left]
        self._lost.update((run_id, loss.round, name) for name in lost)

    def left(self, here: StartedNode) -> None:
        """See Oracle."""
        self._left[here.name] = None


class GoodbyesAreWritten(_KnowsTheLost):
    """R8: the goodbye of a member is answered when the ledger has its mark, or the next round.

    Else a coordinator that is killed after that leaves it as one that is expected.
    """

    def __init__(self, scene: Scene) -> None:
        super().__init__(scene)
        self._heads: dict[str, RunRegister] = {}

    def written(self, name: str, value: bytes | None) -> None:
        """See Oracle."""
        if name.startswith(RUNS):
            run_id = urllib.parse.unquote(name.removeprefix(RUNS))
            self._heads.pop(run_id, None)
            if value is not None:
                self._heads[run_id] = decode_run(value)

    def left(self, here: StartedNode) -> None:
        """See Oracle."""
        super().left(here)
        head, given = self._heads.get(here.run_id), here.node.round if here.node else None
        if given is not None and (here.run_id, given.head.number, here.name) in self._lost:
            return  # It is no member any more.
        if head is None or given is None or head.close is not None:
            return
        token = (given.head.term, given.head.number)
        # A program that was asked to end may not have taken the round.
        if not here.tokens or token != here.tokens[-1] or head.round != given.head:
            return
        marks, rank = head.marks, given.seat.node_rank
        is_marked = rank in ranks_in(marks.done) | ranks_in(marks.gone)
        if marks.round != head.number or not is_marked:
            what = f"{here.name} has left {here.tokens[-1]}, and the ledger does not have that"
            self.scene.broke("R8", what)


class LeftIsNotLost(_KnowsTheLost):
    """R8: a node whose goodbye was answered is not lost, whoever coordinates after that.

    If its workers had finished, its leaving ends no round.
    """

    def __init__(self, scene: Scene) -> None:
        super().__init__(scene)
        self._done: dict[str, int] = {}
        """The round of each node that had finished there before it left."""
        self._ended_by: dict[tuple[str, int, str], str] = {}
        """By run, round and the node whose leaving has ended it: who was told so."""

    def left(self, here: StartedNode) -> None:
        """See Oracle."""
        if not self.scene.plan.same_names:
            super().left(here)
            if here.has_finished and here.tokens:
                number = self._done[here.name] = here.tokens[-1][1]
                told = self._ended_by.get((here.run_id, number, here.name))
                if told is not None:
                    self._was_done(told, here.name, number)

    def round_ended(self, here: StartedNode, change: Any) -> None:
        """See Oracle."""
        run_id, number = here.run_id, change.round
        gone = [each for each in change.nodes if each in self._left]
        gone = [each for each in gone if (run_id, number, each) not in self._lost]
        if change.kind is ChangeKind.NODE_LOST and gone:
            self.scene.broke("R8", f"{here.name} is told that {gone[0]} is lost, which had left")
        done = [each for each in gone if self._done.get(each) == number]
        if change.kind is ChangeKind.NODE_LEFT and done:
            self._was_done(here.name, done[0], number)
        if change.kind is ChangeKind.NODE_LEFT:
            # Others may be told before the node knows that its goodbye was heard.
            self._ended_by.update(((run_id, number, each), here.name) for each in change.nodes)

    def _was_done(self, told: str, name: str, number: int) -> None:
        what = f"{told} is told that {name} has ended round {number}, and it was done"
        self.scene.broke("R8", what)


class WorkersGoOn(Oracle):
    """R13: without a coordinator the workers go on, and their node looks for one without end."""

    def looked(self) -> None:
        """See Oracle."""
        for here in self.scene.nodes:
            node = here.node
            if node is None or not (here.is_living and here.is_working) or node.change is not None:
                continue
            has_left = node._machine.has_said_goodbye or node.closed is not None
            if type(node.gone) is CoordinatorLostError and not has_left:
                what = f"{here.name} works, and looks for no coordinator: {node.gone.message}"
                self.scene.broke("R13", what)


class OrphansStop(Oracle):
    """R13: `orphan_s` stops workers that have no coordinator for that long, and no others.

    A coordinator counts until its lease has expired, because it has not been renewed.
    """

    LATE_S: Final = 14.0
    """A node may see the loss of its connection after 8 s, and a lease may be renewed by a third of
    its ttl before it is lost."""
    HEARD_S: Final = 4.0
    """In this time a node has heard of a lease that was renewed."""

    def __init__(self, scene: Scene) -> None:
        super().__init__(scene)
        self._alone: dict[str, float] = {}
        """How long each process had been awake when its node had a coordinator last."""
        self._led: dict[str, list[float]] = {}
        """How long it had been awake each time that its coordinator had just renewed its lease."""
        self._wrote_s: dict[str, float] = {}
        """When each process has written its lease."""

    def written(self, name: str, value: bytes | None) -> None:
        """See Oracle."""
        if name.startswith(COORDINATORS):
            self._wrote_s[name.removeprefix(COORDINATORS)] = self.scene.world.now_s

    def joins(self, here: StartedNode, node: Node) -> None:
        """See Oracle."""
        machine: Any = node._machine
        orphaned = machine.orphaned

        def ends(alone_s: float) -> Any:
            actions = orphaned(alone_s)
            if actions:
                self._has_ended(here, machine.ended)
            return actions

        machine.orphaned = ends

    def looked(self) -> None:
        """See Oracle."""
        orphan_s = self.scene.plan.orphan_s
        if orphan_s is None:
            return
        for here in self.scene.nodes:
            is_on = here.is_living and here.is_working and not here.process.is_frozen
            if here.node is None or not is_on:
                self._alone.pop(here.name, None)
                self._led.pop(here.name, None)
            elif here.node.change is None:
                self._works(here, here.node, orphan_s)

    def _works(self, here: StartedNode, node: Node, orphan_s: float) -> None:
        awake_s = here.process.awake_s()
        unled_s = self.scene.world.now_s - max(self._wrote_s.values(), default=0.0)
        if node.is_connected and unled_s < LOOKS_S:
            self._alone.pop(here.name, None)
            if self._is_led(here):
                self._led.setdefault(here.name, []).append(awake_s)
        alone_s = awake_s - self._alone.setdefault(here.name, awake_s)
        ttl_s = 10.0 if self.scene.plan.is_mixed else self.scene.plan.lease_ttl_s
        if alone_s > max(1.1 * orphan_s, ttl_s) + self.LATE_S:
            what = f"{here.name} works on, alone for {alone_s:.1f} s"
            self.scene.broke("R13", f"{what}; orphan_s is {orphan_s:g}")

    def _has_ended(self, here: StartedNode, change: Change) -> None:
        """It ends its round now, because it has no coordinator: not too soon."""
        orphan_s, led = self.scene.plan.orphan_s, self._led.get(here.name, [])
        if orphan_s is None:
            return
        awake_s = here.process.awake_s()
        soon = [each for each in led if self.HEARD_S < awake_s - each < 0.9 * orphan_s - 1.0]
        if soon:
            what = f"{here.name} had a coordinator {awake_s - soon[-1]:.1f} s ago"
            self.scene.broke("R13", f"{what}: {change.detail}")

    def _is_led(self, here: StartedNode) -> bool:
        """Whether it is attached to the only owner of its run, which has just renewed its lease."""
        owners = [
            (front, run)
            for front in self.scene.fronts
            if front.process.is_alive and not front.process.is_frozen
            for run in front.driver.coordinator.runs.values()
            if run.run_id == here.run_id and run.is_claimed
        ]
        if len(owners) != 1 or here.node_id is None:
            return False
        front, run = owners[0]
        wrote_s = self._wrote_s.get(front.driver.ownership.process, 0.0)
        is_attached = here.node_id.name in run.connections.by_name
        return is_attached and self.scene.world.now_s - wrote_s < LOOKS_S
