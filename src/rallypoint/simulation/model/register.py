"""What the ledger holds of the run, and what must hold for each write of it.

A write takes effect only if the register still has the writer's term (R5). When it takes effect is
a move of its own, so it may do so long after it was sent, or after its writer has died, or never.
"""

from __future__ import annotations

from rallypoint.checkers.violations import InvariantViolation
from rallypoint.core.blame import NO_BLAME, Blame
from rallypoint.core.election import RunState
from rallypoint.core.marking import ranks_in
from rallypoint.core.orders import NO_ORDERS, Orders
from rallypoint.core.ranks import seats_of
from rallypoint.core.values import (
    CloseRecord,
    FrozenStruct,
    Marks,
    NodeId,
    RoundRecord,
    RunSettings,
    table_digest,
)

NO_MARKS = Marks()


class Write(FrozenStruct, frozen=True):
    """What a coordinator asks the ledger to write. `serial`: of marks; None for a record."""

    term: int
    settings: RunSettings | None
    record: RoundRecord | CloseRecord | None
    marks: Marks
    restarts: int
    serial: int | None = None
    blame: Blame = NO_BLAME
    orders: Orders = NO_ORDERS


class Register(FrozenStruct, frozen=True):
    """What the ledger holds of the run. `owner`: which coordinator; -1: none has had it.

    `rounds`: each round that it ever held. `restarts_before`: the charged rounds when the present
    round was written. `lifted`: the names of which an operator has lifted the eviction.
    """

    term: int = 0
    owner: int = -1
    settings: RunSettings | None = None
    round: RoundRecord | None = None
    close: CloseRecord | None = None
    restarts: int = 0
    marks: Marks = NO_MARKS
    blame: Blame = NO_BLAME
    orders: Orders = NO_ORDERS
    rounds: tuple[RoundRecord, ...] = ()
    restarts_before: int = 0
    lifted: tuple[str, ...] = ()

    @property
    def number(self) -> int:
        """The number of the last round."""
        return self.round.head.number if self.round is not None else 0

    def state(self) -> RunState:
        """What a new owner starts from."""
        return RunState(
            self.term,
            self.settings,
            self.round,
            self.close,
            self.restarts,
            0,
            self.marks,
            blame=self.blame,
            orders=self.orders,
        )

    def sealed(self, owner: int) -> Register:
        """The register after a takeover."""
        return _with(self, term=self.term + 1, owner=owner)

    def with_lifted(self, name: str) -> Register:
        """The register after an operator has asked to admit the node of this name again."""
        return _with(self, lifted=tuple(sorted({*self.lifted, name})))

    def written(self, write: Write) -> Register:
        """The register after a write of its owner. Raises InvariantViolation."""
        settings, marks, restarts = write.settings, write.marks, write.restarts
        kept = {"restarts": restarts, "blame": write.blame, "orders": write.orders, "marks": marks}
        _must(self.term == write.term, "R5", f"term {write.term} wrote over term {self.term}")
        _must(restarts >= self.restarts, "budget", f"{restarts} restarts after {self.restarts}")
        charged = restarts - self.restarts_before
        _must(charged <= 1, "budget", f"round {self.number} was charged {charged} times")
        self._must_keep(write.orders)
        record = write.record
        if record is None:
            _must(self.close is None, "R6", "marks after the close")
            return _with(self, **kept)
        if isinstance(record, CloseRecord):
            _must(self.close is None, "R6", "closed twice")
            return _with(self, settings=settings, close=record, **kept)
        self._must_follow(record, settings, write.orders)
        rounds = (*self.rounds, record)
        kept |= {"settings": settings, "round": record, "rounds": rounds}
        return _with(self, restarts_before=restarts, **kept)

    def _must_keep(self, orders: Orders) -> None:
        """Only an operator lifts an eviction, and a run that was scaled stays so."""
        for each in self.orders.evictions:
            name = each.node.name
            is_kept = each in orders.evictions or name in self.lifted
            _must(is_kept, "orders", f"the ledger has lost the eviction of {name}")
        was, now = self.orders.scale, orders.scale
        _must(was is None or now is not None, "orders", f"the ledger has lost that it was {was}")

    def must_have_orders(self, orders: Orders) -> None:
        """An operator was answered that the ledger has these."""
        for each in orders.evictions:
            name = each.node.name
            is_there = self.orders.eviction_of(name) is not None
            _must(is_there, "orders", f"the eviction of {name} was confirmed, and is not there")
        is_scaled = orders.scale is None or self.orders.scale == orders.scale
        _must(is_scaled, "orders", f"{orders.scale} was confirmed, and is not there")

    def _must_follow(
        self, record: RoundRecord, settings: RunSettings | None, orders: Orders
    ) -> None:
        head, members = record.head, record.members
        number = head.number
        _must(self.close is None, "R6", f"round {number} after the close")
        _must(number == self.number + 1, "R1", f"round {number} after round {self.number}")
        _must(head.term == self.term, "R5", f"round {number} of term {head.term} in {self.term}")
        digest = table_digest(number, members, head.bootstrap)
        _must(head.digest == digest, "R2", f"the digest of round {number}")
        names = [row.name for row in members]
        _must(len(set(names)) == len(names) == head.nodes, "R3", f"round {number} has {names}")
        _must(settings is not None, "R3", "a round without settings")
        if settings is not None:
            settings = orders.settings_of(settings)
            fits = settings.min_nodes <= len(names) <= settings.max_nodes
            _must(fits, "R3", f"round {number} has {len(names)} nodes")
        evicted = [name for name in names if orders.eviction_of(name) is not None]
        _must(not evicted, "R4", f"round {number} has {evicted}, evicted by an operator")
        if self.round is None:
            return
        done = ranks_in(self.marks.done) if self.marks.round == self.number else frozenset()
        for rank, row in enumerate(self.round.members):
            is_same = (row.name, row.incarnation) in {(r.name, r.incarnation) for r in members}
            _must(
                not (rank in done and is_same), "done", f"{row.name} is done, and in round {number}"
            )
            if row.name in names and rank < len(names):
                kept = names[rank] == row.name
                _must(kept, "ranks", f"{row.name} had rank {rank}, and has {names.index(row.name)}")

    def must_have(self, node: NodeId, head: object, seat: object) -> None:
        """A node got this seat: its round was committed, with this digest and this seat."""
        for record in self.rounds:
            if record.head == head:
                rows = [NodeId(row.name, row.incarnation) for row in record.members]
                _must(node in rows, "R4", f"{node.name} got a seat in {rows}")
                own = seats_of(record)[rows.index(node)]
                _must(seat == own, "R3", f"{node.name} has {seat} and not {own}")
                return
        _must(False, "R2", f"{node.name} got a round that was never committed: {head}")

    def must_know_end_of(self, node: NodeId) -> None:
        """The goodbye of this node was answered, so a successor must not expect it."""
        if self.round is None or self.close is not None:
            return
        marks = self.marks if self.marks.round == self.number else NO_MARKS
        known = ranks_in(marks.done) | ranks_in(marks.gone)
        for rank, row in enumerate(self.round.members):
            if (row.name, row.incarnation) == (node.name, node.incarnation):
                _must(rank in known, "marks", f"{node.name} was let go, and the ledger has no mark")


def _with(register: Register, **changes: object) -> Register:
    values = {name: getattr(register, name) for name in register.__struct_fields__}
    return Register(**{**values, **changes})


def _must(holds: bool, rule: str, problem: str) -> None:
    if not holds:
        raise InvariantViolation(rule, problem)
