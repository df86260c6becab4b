"""What must not stay once nobody needs it: held answers, timers, candidates, tasks, requests.

And what must not grow without bound: queued bytes.
"""

from __future__ import annotations

from typing import Final

from rallypoint.coordinator.holding import HELD_BYTES_MAX
from rallypoint.coordinator.hosted_run import HostedRun
from rallypoint.core import effects as do
from rallypoint.core import events as on
from rallypoint.core.store.data import Extend, Put
from rallypoint.core.store.snapshot import Settled
from rallypoint.simulation.machine import SimulatedFront
from rallypoint.simulation.scene import LOOKS_S, Oracle, Scene, StartedNode

SOON_S: Final = 10.0
"""A coordinator hands over its lease before it ends, and waits so long for a ledger at most."""
_PACKAGE: Final = "/rallypoint/coordinator/"


class HeldAnswersEnd(Oracle):
    """No answer is held for a connection that has ended: its node asks again (R11)."""

    def looked(self) -> None:
        """See Oracle."""
        for front in self.scene.fronts:
            if front.has_ended or not front.process.is_alive or front.process.is_frozen:
                continue
            for run in front.driver.coordinator.runs.values():
                for session in run.store._held._answers:
                    if session._has_ended:
                        what = f"holds answers for connection {session.connection_id}, which ended"
                        self.scene.broke("leak", f"{front.process.name} {what}")


class QueuesAreBounded(Oracle):
    """R12: what a coordinator queues has a limit in bytes, which it counts rightly.

    The writes that wait for a ledger, up to `unlogged_bytes_max`: beyond it calls are refused. And
    answers that wait for a lease. The limit is small in some jobs: `Plan.unlogged_bytes_max`.
    """

    def looked(self) -> None:
        """See Oracle."""
        for front in self.scene.fronts:
            if front.has_ended or not front.process.is_alive:
                continue
            for run in front.driver.coordinator.runs.values():
                self._look(f"{front.process.name}, {run.run_id}", run)

    def _look(self, where: str, run: HostedRun) -> None:
        held, log = run.store._held, run.store.log
        answers = sum(len(each) for payloads in held._answers.values() for each in payloads)
        if answers != held.bytes or answers > HELD_BYTES_MAX:
            what = f"{where} holds {answers} bytes of answers, and counts {held.bytes}"
            self.scene.broke("budget", what)
        if log is None:
            return
        queued, counted = sum(_payload(each) for each, _ in log._gathering), log._unlogged_bytes
        if queued > counted or (counted and not log._gathering):
            what = f"{where} queues {queued} bytes of writes, and counts {counted}"
            self.scene.broke("budget", what)
        # A call that finds the queue empty is never refused, and no call follows it then.
        sizes = [size for each, size in log._gathering if each.writes]
        most = log.store.limits.unlogged_bytes_max
        if len(sizes) > 1 and sum(sizes) > most:
            self.scene.broke("budget", f"{where} queues {sum(sizes)} bytes, at most {most}")


def _payload(entry: Settled) -> int:
    """The bytes of an entry that its caller has sent: keys and values."""
    values = (each.value for each in entry.writes if isinstance(each, Put | Extend))
    return sum(len(each.key) for each in entry.writes) + sum(map(len, values))


class ForgottenRunsRest(Oracle):
    """A run that its coordinator has forgotten has no timers any more."""

    def stepped(
        self, front: SimulatedFront, run: HostedRun, event: on.Event, effects: list[do.Effect]
    ) -> None:
        """See Oracle."""
        if run.is_forgotten and isinstance(event, on.TimerFired):
            what = f"a timer of {run.run_id}, which was forgotten, is due: {event.timer}"
            self.scene.broke("leak", f"{front.process.name}: {what}")


class CandidatesEnd(Oracle):
    """A candidate ends as soon as its node is attached to another coordinator, with all its tasks.

    So an idle run has one lease in the ledger.
    """

    def __init__(self, scene: Scene) -> None:
        super().__init__(scene)
        self._unneeded_s: dict[SimulatedFront, float] = {}
        """For how long its node was attached elsewhere, or for how long it has ended."""

    def looked(self) -> None:
        """See Oracle."""
        nodes = {each.process: each for each in self.scene.living if each.run_id}
        for front in self.scene.fronts:
            here, process = nodes.get(front.process), front.process
            if here is None or not process.is_alive:
                self._unneeded_s.pop(front, None)
            elif not (front.has_ended or _is_elsewhere(here)):
                self._unneeded_s[front] = 0.0
            elif not process.is_frozen and process.turn_cost_s < 0.005:
                self._unneeded_s[front] = self._unneeded_s.get(front, 0.0) + LOOKS_S
                if self._unneeded_s[front] > SOON_S and not front.has_ended:
                    what = "keeps its candidate, though it is attached to another coordinator"
                    self.scene.broke("leak", f"{here.name} {what}")

    def at_end(self) -> None:
        """See Oracle."""
        if self.scene.settled_s is None:
            return
        serving = {front.process for front in self.scene.fronts if not front.has_ended}
        for front, unneeded_s in self._unneeded_s.items():
            process = front.process
            if process in serving or not process.is_alive or unneeded_s <= SOON_S:
                continue
            names = [
                getattr(task.get_coro(), "__qualname__", "")
                for task in process.loop.tasks
                if _is_ours(task)
            ]
            if names:
                what = f"has ended its coordinator, which still has tasks: {names}"
                self.scene.broke("leak", f"{process.name} {what}")


def _is_elsewhere(here: StartedNode) -> bool:
    """Whether a node needs no candidate: it is at another coordinator, and looks for no better."""
    node = here.node
    if node is None or not node.is_connected or node.is_at_own:
        return False
    search = node._connector._beside  # The other coordinator has not renewed its lease.
    return search is None or search.done()


def _is_ours(task: object) -> bool:
    code = getattr(task.get_coro(), "cr_code", None)  # type: ignore[attr-defined]
    return code is not None and _PACKAGE in code.co_filename


class CallsAreForgotten(Oracle):
    """Nobody keeps a call for which no worker waits: its node drops it, and tells its coordinator.

    Else a worker that tries again and again fills the limits of its node.
    """

    LOOKS_MAX: Final = 6
    """At how many looks, one after the other, such a call may be there."""

    def __init__(self, scene: Scene) -> None:
        super().__init__(scene)
        self._kept: dict[tuple[str, str, int], int] = {}
        """By place, node and request: at how many looks nobody waited for it."""

    def looked(self) -> None:
        """See Oracle."""
        before, self._kept = self._kept, {}
        if self.scene.settled_s is None:
            return
        for here in self.scene.living:
            node = here.node
            if node is None or not node.is_connected or here.process.is_frozen:
                continue
            awaited = frozenset(node._waiters.requests)
            for request in node._machine.requests.open:
                if request not in awaited:
                    self._count(before, (here.name, here.name, request))
            for place, request in self._at_coordinators(here):
                if request not in awaited:
                    self._count(before, (place, here.name, request))

    def _at_coordinators(self, here: StartedNode) -> list[tuple[str, int]]:
        own = here.node_id
        found = []
        for front in self.scene.fronts:
            if front.has_ended or not front.process.is_alive or front.process.is_frozen:
                continue
            for run in front.driver.coordinator.runs.values():
                if own is None or run.run_id != here.run_id or run.connections.of(own) is None:
                    continue
                waiting = run.store.current._waiting if run.store.current is not None else ()
                found += [
                    (front.process.name, call.request_id)
                    for call in waiting
                    if call.node == own.name
                ]
        return found

    def _count(self, before: dict[tuple[str, str, int], int], kept: tuple[str, str, int]) -> None:
        looks = self._kept[kept] = before.get(kept, 0) + 1
        if looks > self.LOOKS_MAX:
            place, name, request = kept
            what = f"{place} keeps call {request} of {name}, for which nobody waits any more"
            self.scene.broke("leak", what)


LEAK_ORACLES: Final[tuple[type[Oracle], ...]] = (
    CallsAreForgotten,
    HeldAnswersEnd,
    QueuesAreBounded,
    ForgottenRunsRest,
    CandidatesEnd,
)
