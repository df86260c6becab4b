"""Whether the members of a round were told of a drain, and of a step, as R14 says.

It sees the same events and effects as `RunChecker`, and keeps its own account. Only tests use it.
"""

from __future__ import annotations

from collections.abc import Callable

from rallypoint.core import effects as do
from rallypoint.core import events as on
from rallypoint.core.agreement import NO_STEP
from rallypoint.core.values import Marks, NodeId, RoundRecord

Fail = Callable[[str, str], None]


class AgreementChecker:
    """The account of one round after the other. `fail`: reports a broken rule."""

    def __init__(self, fail: Fail) -> None:
        self._fail = fail
        self._number = 0
        self._is_on = False
        self._members: set[NodeId] = set()
        self._taking_part: set[NodeId] = set()
        self._promised: set[NodeId] = set()
        self._highest = -1
        self._draining: set[NodeId] = set()
        self._told: dict[int, int] = {}
        """The step that was told, by round, whoever coordinated."""
        self._in_ledger: int | None = None
        self._being_written: int | None = None
        self._has_ledger = False
        self._serial = 0

    def published(self, record: RoundRecord) -> None:
        """A round has begun."""
        self._begin(record)
        self._in_ledger = self._being_written = None

    def restored(self, record: RoundRecord | None, marks: Marks) -> None:
        """Another coordinator continues: it knows what is in the ledger, and nothing else."""
        self._has_ledger, self._serial = True, 0
        self._is_on = False
        if record is None:
            return
        self._begin(record)
        number = record.head.number
        self._in_ledger = marks.step if marks.round == number else None
        told = self._told.get(number)
        if told is not None and told != self._in_ledger:
            self._fail("R14", f"step {told} was told, and the ledger has {self._in_ledger}")

    def ended(self) -> None:
        """The round is over."""
        self._is_on = False

    def _begin(self, record: RoundRecord) -> None:
        self._number, self._is_on, self._highest = record.head.number, True, -1
        self._members = {NodeId(row.name, row.incarnation) for row in record.members}
        self._taking_part, self._promised, self._draining = set(), set(), set()

    def see_event(self, event: on.Event) -> None:
        """What a node has said, or the ledger."""
        match event:
            case on.NodeTakesPart(node=node, round=number) if self._counts(node, number):
                self._taking_part.add(node)
            case on.NodeDraining(node=node, round=number) if self._counts(node, number):
                self._draining.add(node)
            case on.StepPromised(node=node, round=number, step=step) if self._counts(node, number):
                self._promised.add(node)
                self._highest = max(self._highest, step)
            case on.NodeDone(node=node, round=number) if number == self._number:
                self._members.discard(node)
            case on.MarksWritten(serial=serial) if serial == self._serial:
                self._in_ledger = self._being_written

    def _counts(self, node: NodeId, number: int) -> bool:
        return self._is_on and number == self._number and node in self._members

    def see_effect(self, effect: do.Effect) -> None:
        """What a coordinator does."""
        match effect:
            case do.WriteMarks(serial=serial, marks=marks):
                self._serial, self._has_ledger = serial, True
                # Another round was written that nobody was given: nothing is known of its steps.
                is_of_round = marks.round == self._number
                self._being_written = marks.step if is_of_round else self._in_ledger
                if self._in_ledger not in (None, self._being_written):
                    self._fail("R14", f"the step {self._in_ledger} in the ledger is not kept")
                if self._being_written not in (None, self._in_ledger):
                    self._must_be_promised(self._being_written)
            case do.TellDrain(round=number, drain=drain):
                self._must_be_on(number)
                if not drain.count or not self._draining.issuperset(self._named(drain.nodes)):
                    self._fail("R14", f"{drain.nodes} drain, and did not say so")
                is_decided = self._in_ledger is not None
                if drain.is_asked and not is_decided and self._members - self._taking_part:
                    self._fail("R14", "members are asked for a promise, and not all take part")
            case do.TellStep(round=number, step=step):
                self._must_be_on(number)
                self._must_be_agreed(step)
                self._told[number] = step

    def _named(self, names: tuple[str, ...]) -> set[NodeId]:
        return {node for node in self._members if node.name in names}

    def _must_be_on(self, number: int) -> None:
        if not self._is_on or number != self._number:
            self._fail("R14", f"round {number} is told of a drain, and is not active")

    def _must_be_agreed(self, step: int) -> None:
        if self._told.setdefault(self._number, step) != step:
            self._fail("R14", f"two steps were told: {self._told[self._number]} and {step}")
        if self._has_ledger and self._in_ledger != step:
            self._fail("R14", f"step {step} was told, and the ledger has {self._in_ledger}")
        if not self._has_ledger:
            self._must_be_promised(step)

    def _must_be_promised(self, step: int | None) -> None:
        if step == NO_STEP:
            if self._draining & self._members:
                self._fail("R14", "no step is the last, and a node drains")
            return
        if step is None or step <= self._highest:
            self._fail("R14", f"step {step} was decided, and a worker may have passed it")
        if self._members - self._promised:
            self._fail("R14", f"step {step} was decided before all have promised")
