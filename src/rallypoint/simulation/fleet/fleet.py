"""A whole fleet: its nodes, its coordinator, its failures, and what became of its time.

`Fleet.run` plays one job. What fails when is drawn before (`failures`); the core decides what
follows. This file has the nodes' side and the machines. `coordinator` has the coordinator's side,
and `accounts` the time.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Final

from rallypoint.client import actions as act
from rallypoint.core import events as on
from rallypoint.core.values import (
    Change,
    CloseRecord,
    ConnectionEnd,
    FailureKind,
    NodeId,
)
from rallypoint.core.values import Failure as WorkerFailure
from rallypoint.simulation.fleet import failures as fail
from rallypoint.simulation.fleet.coordinator import (
    CONFIG,
    Arrival,
    FleetCoordinator,
    Parcel,
    Register,
    silence_begins_s,
)
from rallypoint.simulation.fleet.costs import NETWORK, PEER, WRITE
from rallypoint.simulation.fleet.failures import Failure
from rallypoint.simulation.fleet.nodes import BOOTSTRAP, FleetNode
from rallypoint.simulation.fleet.rounds import Rounds
from rallypoint.simulation.fleet.schedule import Schedule
from rallypoint.simulation.fleet.settings import FleetSettings
from rallypoint.simulation.fleet.takeovers import Takeovers
from rallypoint.simulation.fleet.workload import Workload

DIAL_STEP_S: Final = 0.01
"""Nodes that look for a coordinator dial in steps of this length."""
REDIAL_S: Final = 0.5
PEERS: Final = 2
"""How many workers' errors tell of a lost peer. More of them change nothing."""


class Fleet:
    """One simulated job. `failures`: what happens to its machines, in order of time."""

    def __init__(
        self,
        workload: Workload,
        settings: FleetSettings,
        failures: list[Failure],
        takeovers: Takeovers,
        seed: int,
    ) -> None:
        self.workload = workload
        self.settings = settings
        self.schedule = Schedule()
        self.register = Register(WRITE[workload.ledger].seconds)
        self.rounds = Rounds(self.schedule, self.register, workload, settings.run.min_nodes)
        self.coordinator: FleetCoordinator | None = None
        self.takeovers_s: list[float] = []
        """How long each loss of a coordinator left the run without one."""
        self.unhit = 0
        """How many failures met a machine that was down already."""
        self.past_events = 0
        self._takeovers = takeovers
        self._chance = random.Random(f"{seed}/fleet")
        self._slots: list[FleetNode | None] = [None] * workload.slots
        self._starts = [0] * workload.slots
        self._has_ledger = workload.ledger != "memory"
        self._replies: list[Arrival] = []
        self._stops: list[tuple[FleetNode, int]] = []
        self._seekers: dict[FleetNode, float] = {}
        """Nodes without a coordinator, and when each of them notices that."""
        self._lost_at_s = 0.0
        self._connections = 0
        self._plan(failures, seed)

    def _plan(self, failures: list[Failure], seed: int) -> None:
        schedule = self.schedule
        # A coordinator apart from the nodes is there before them.
        schedule.at(0.0, self._begin)
        for failure in failures:
            schedule.at(failure.at_s, self._fail, failure)
        for at_s in fail.coordinator_crashes(self.workload, seed):
            schedule.at(at_s, self._coordinator_lost, "crash")
        for at_s, away_s in fail.outages(self.workload):
            schedule.at(at_s, self._ledger_goes, away_s)

    @property
    def events(self) -> int:
        """How many events the core has taken."""
        return self.past_events + (self.coordinator.events if self.coordinator else 0)

    def run(self, go_on: Callable[[], bool]) -> bool:
        """Play the job. False if `go_on` said to stop; then the time so far is accounted."""
        schedule, until_s = self.schedule, self.workload.seconds
        is_whole = True
        while (next_s := schedule.next_s()) is not None and next_s < until_s:
            if not go_on():
                is_whole = False
                break
            schedule.step()
            self.rounds.note(self.coordinator)
        if is_whole:
            schedule.now_s = until_s
        self.rounds.accounts.finished(schedule.now_s, saves=True)
        return is_whole

    # -- what happens to machines ------------------------------------------------------------------

    def _begin(self) -> None:
        host = 0 if self.workload.coordinator == "node" else None
        self._new_coordinator(host)
        for slot in range(self.workload.slots):
            self._start(slot)
        self._flush()

    def _start(self, slot: int) -> None:
        """A node starts on this machine."""
        if self._slots[slot] is not None or self.rounds.end_reason:
            return
        self._starts[slot] += 1
        settings = self.settings
        node = FleetNode(
            slot,
            self._starts[slot],
            settings.run,
            nproc=self.workload.nproc,
            stop_s=min(60.0, settings.regroup_stop_timeout_s),
            silence_s=settings.coordinator_silence_s,
            is_elected=self._has_ledger,
        )
        self._slots[slot] = node
        node.machine.ready(BOOTSTRAP, self.workload.nproc)
        self._seek(node, self.schedule.now_s)

    def _start_one(self, slot: int) -> None:
        self._start(slot)
        self._flush()

    def _fail(self, failure: Failure) -> None:
        for slot in failure.slots:
            node = self._slots[slot]
            if node is None or node.is_departing or (node.is_frozen and failure.kind != "host"):
                self.unhit += 1
                continue
            if failure.kind == "worker":
                self._worker_fails(node)
            elif failure.kind == "freeze":
                self._freeze(node, failure.back_s)
            elif failure.kind == "preempt" and self.workload.notice_s > 0:
                self._depart(node)
                self.schedule.after(self.workload.notice_s + failure.back_s, self._start_one, slot)
            else:
                is_silent = failure.kind == "host"
                self._die(node, is_silent=is_silent)
                self.schedule.after(failure.back_s, self._start_one, slot)
        self._flush()

    def _die(self, node: FleetNode, *, is_silent: bool) -> None:
        """The node's process ends. `is_silent`: so does its machine, and no kernel says so."""
        self._slots[node.slot] = None
        node.is_alive = False
        self._seekers.pop(node, None)
        was_in_round = self._is_in_round(node)
        self._hurt(node)
        if is_silent:
            self._falls_silent(node)
        else:
            ended = on.ConnectionLost(node.id, node.connection_id, ConnectionEnd.PROCESS_ENDED)
            self._arrive_later([(node, node.connection_id, ended)])
            if was_in_round and self.workload.peers_fail:
                self.schedule.after(PEER.seconds, self._peers_fail, node.machine.number)
        if self.coordinator is not None and self.coordinator.host == node.slot:
            self._coordinator_lost("silence" if is_silent else "crash", former_host=node.id)

    def _peers_fail(self, number: int) -> None:
        """The workers of some peers of a dead process fail, each with a communication error."""
        found = 0
        for node in self._slots:
            if found == PEERS:
                break
            if node is not None and node.machine.number == number and self._is_in_round(node):
                found += 1
                error = WorkerFailure(FailureKind.COMMUNICATION, "connection closed by peer")
                self._act(node, node.machine.failed(error))
        self._flush()

    def _worker_fails(self, node: FleetNode) -> None:
        if not self._is_in_round(node) or not self.rounds.is_working_in(node):
            self.unhit += 1
            return
        self._hurt(node)
        error = WorkerFailure(FailureKind.EXCEPTION, "a fault of the program or a device")
        self._act(node, node.machine.failed(error))

    def _freeze(self, node: FleetNode, lasts_s: float) -> None:
        node.is_frozen = True
        self._hurt(node)
        self._falls_silent(node)
        self.schedule.after(lasts_s, self._thaw, node)
        hosts = self.coordinator is not None and self.coordinator.host == node.slot
        if hosts and lasts_s > self.settings.coordinator_silence_s + self.settings.lease_ttl_s:
            self._coordinator_lost("silence", former_host=node.id)

    def _thaw(self, node: FleetNode) -> None:
        """The node goes on: it reads what has arrived, and sees what has ended."""
        if not node.is_alive or not node.is_frozen:
            return
        node.is_frozen = False
        node.silence += 1
        self.rounds.is_well_again(node)
        waited, node.inbox = node.inbox, []
        if self.coordinator is not None:
            self.coordinator.heartbeat(node)
        for message in waited:
            self._act(node, node.machine.received(message, self.schedule.now_s))
        if node.ready_after_thaw:
            node.ready_after_thaw = False
            self._stops.append((node, node.machine.number))
        if node.was_cut:
            node.was_cut = False
            self._cut(node, self.schedule.now_s)
        self.rounds.goes_on(self.coordinator)
        self._flush()

    def _depart(self, node: FleetNode) -> None:
        """The machine will be taken away: the agent gets SIGTERM, and has some time."""
        node.is_departing = True
        hosts = self.coordinator is not None and self.coordinator.host == node.slot
        self._act(node, node.machine.depart("preempted"))
        self.schedule.after(self._stop_s(planned=True), self._goodbye, node)
        self.schedule.after(self.workload.notice_s, self._gone, node)
        if hosts:
            self._flush()
            self.schedule.after(NETWORK.seconds * 4, self._coordinator_lost, "handover")

    def _goodbye(self, node: FleetNode) -> None:
        if node.is_alive:
            self._act(node, node.machine.goodbye("preempted"))
            self._flush()

    def _gone(self, node: FleetNode) -> None:
        if node.is_alive and self._slots[node.slot] is node:
            self._die(node, is_silent=False)
            self._flush()

    def _hurt(self, node: FleetNode) -> None:
        if self._is_in_round(node):
            self.rounds.hurt(node)

    def _is_in_round(self, node: FleetNode) -> bool:
        return node.machine.has_workers

    def _falls_silent(self, node: FleetNode) -> None:
        """Its last heartbeat was at most one interval ago."""
        coordinator = self.coordinator
        if coordinator is None or not coordinator.is_attached(node):
            return
        suspect_s = self.settings.run.suspect_after_s
        phase = self._chance.random() / CONFIG.heartbeats_per_suspicion
        node.silence += 1
        silent = on.NodeSilent(node.id, suspect_s)
        self.schedule.after(
            suspect_s * (1 - phase), self._silent, node, node.silence, node.connection_id, silent
        )

    def _silent(
        self, node: FleetNode, silence: int, connection_id: int, event: on.NodeSilent
    ) -> None:
        if node.silence == silence and self.coordinator is not None:
            self.coordinator.arrive([(node, connection_id, event)])

    # -- coordinators ------------------------------------------------------------------------------

    def _new_coordinator(self, host: int | None) -> FleetCoordinator:
        made = FleetCoordinator(
            self.schedule, self.register, self, host=host, has_successor=self._has_ledger
        )
        self.coordinator = made
        return made

    def _coordinator_lost(self, how: str, former_host: NodeId | None = None) -> None:
        coordinator, now_s = self.coordinator, self.schedule.now_s
        if coordinator is None or self.rounds.end_reason:
            return
        coordinator.end()
        self.past_events += coordinator.events
        self.coordinator = None
        if not self._has_ledger:
            self.rounds.end("the run was in the memory of its coordinator, which was lost")
            return
        self._lost_at_s = now_s
        silence_s = self.settings.coordinator_silence_s
        for node in coordinator.links.values():
            # A node without a word from the coordinator looks three times in that time.
            notices_s = now_s
            if how == "silence":
                notices_s += silence_s * (1 + self._chance.random() / 3)
            if node.is_frozen:
                node.was_cut = True
            elif node.is_alive:
                self._cut(node, notices_s)
        waits_s = self._takeovers.takeover_s(how)
        back_s = self.register.away_until_s - now_s
        if back_s > 0:
            waits_s = max(waits_s, back_s + waits_s)
        self.schedule.after(waits_s, self._take_over, how, former_host)

    def _take_over(self, how: str, former_host: NodeId | None) -> None:
        if self.rounds.end_reason:
            return
        host: int | None = None
        if self.workload.coordinator == "node":
            able = (n for n in self._slots if n is not None and not (n.is_frozen or n.is_departing))
            chosen = next(able, None)
            if chosen is None:
                self.schedule.after(1.0, self._take_over, how, former_host)
                return
            host = chosen.slot
        self.takeovers_s.append(self.schedule.now_s - self._lost_at_s)
        coordinator = self._new_coordinator(host)
        coordinator.take_over(
            attach_grace_s=self.settings.attach_grace_s,
            former_host=former_host if how == "crash" or how == "silence" else None,
        )
        seekers, self._seekers = self._seekers, {}
        now_s = self.schedule.now_s
        by_step: dict[int, list[FleetNode]] = {}
        for node, notices_s in seekers.items():
            dials_s = max(now_s, notices_s) + self._takeovers.look_s()
            by_step.setdefault(round(dials_s / DIAL_STEP_S), []).append(node)
        for step, nodes in sorted(by_step.items()):
            self._seekers.update(dict.fromkeys(nodes, step * DIAL_STEP_S))
            self.schedule.at(step * DIAL_STEP_S, self._dial_all, nodes)

    def _ledger_goes(self, away_s: float) -> None:
        now_s, register = self.schedule.now_s, self.register
        register.away_until_s = max(register.away_until_s, now_s + away_s)
        still_s = silence_begins_s(self.settings.lease_ttl_s)
        if away_s > still_s and self.coordinator is not None:
            self.schedule.after(still_s, self._ledger_missed, self.coordinator, still_s)

    def _ledger_missed(self, coordinator: FleetCoordinator, away_s: float) -> None:
        if self.coordinator is coordinator:
            coordinator.ledger_away("the ledger does not answer", away_s)
            self.schedule.at(self.register.away_until_s, self._ledger_back, coordinator)

    def _ledger_back(self, coordinator: FleetCoordinator) -> None:
        if self.register.away_until_s > self.schedule.now_s:
            self.schedule.at(self.register.away_until_s, self._ledger_back, coordinator)
        elif self.coordinator is coordinator:
            # The next try to renew comes within this time.
            self.schedule.after(
                self.settings.lease_ttl_s / 3 * self._chance.random(), coordinator.ledger_back
            )

    # -- nodes -------------------------------------------------------------------------------------

    def _seek(self, node: FleetNode, notices_s: float) -> None:
        """Look for a coordinator, from that time on."""
        self._seekers[node] = notices_s
        if self.coordinator is not None:
            if notices_s > self.schedule.now_s:
                self.schedule.at(notices_s, self._dial_all, [node])
            else:
                self._dial(node)

    def _dial_all(self, nodes: list[FleetNode]) -> None:
        for node in nodes:
            self._dial(node)
        self._flush()

    def _dial(self, node: FleetNode) -> None:
        coordinator = self.coordinator
        if coordinator is None or node not in self._seekers or node.is_frozen:
            return
        del self._seekers[node]
        self._connections += 1
        node.connection_id = self._connections
        coordinator.links[node.connection_id] = node
        self._act(node, node.machine.connected(self.schedule.now_s))

    def _cut(self, node: FleetNode, notices_s: float) -> None:
        """Its connection has ended."""
        node.connection_id = 0
        node.machine.disconnected()
        if node.machine.is_over or node.machine.has_said_goodbye:
            return
        self._seek(node, notices_s)

    def deliver(self, parcels: list[Parcel]) -> None:
        """See coordinator.Watcher."""
        now_s = self.schedule.now_s
        for node, connection_id, message in parcels:
            if not node.is_alive or node.connection_id != connection_id:
                continue
            if message is None:
                if node.is_frozen:
                    node.was_cut = True
                else:
                    self._cut(node, now_s + REDIAL_S)
            elif node.is_frozen:
                node.inbox.append(message)
            else:
                self._act(node, node.machine.received(message, now_s))
        self._flush()

    def _act(self, node: FleetNode, actions: list[act.Action]) -> None:
        for action in actions:
            match action:
                case act.Send(message):
                    if node.connection_id:
                        self._replies.append((node, node.connection_id, message))
                case act.RoundFormed(head=head):
                    self.rounds.has_seat(head.number, head.nodes)
                case act.RoundEnded(change):
                    self._has_ended(node, change)
                case act.Drop() | act.Redirected():
                    self._cut(node, self.schedule.now_s + REDIAL_S)
                case _:
                    pass

    def _has_ended(self, node: FleetNode, change: Change) -> None:
        number = node.machine.number
        if node.stopped_round >= number:
            return  # The cause became known better.
        node.stopped_round = number
        self.rounds.work_ends(change)
        if not node.is_departing:
            self._stops.append((node, number))

    def _flush(self) -> None:
        """Send the nodes' messages, and let the workers of ended rounds stop."""
        replies, self._replies = self._replies, []
        self._arrive_later(replies)
        stops, self._stops = self._stops, []
        if stops:
            self.rounds.stopping += 1
            stop_s = self._stop_s(planned=self.rounds.is_planned)
            self.schedule.after(stop_s, self._stopped, stops)

    def _arrive_later(self, arrivals: list[Arrival]) -> None:
        if arrivals and self.coordinator is not None:
            self.schedule.after(NETWORK.seconds, self.coordinator.arrive, arrivals)

    def _stop_s(self, *, planned: bool) -> float:
        workload = self.workload
        saves_s = workload.checkpoint_s if planned and workload.saves_on_change else 0.0
        return min(workload.stop_s + saves_s, self.settings.regroup_stop_timeout_s)

    def _stopped(self, stops: list[tuple[FleetNode, int]]) -> None:
        self.rounds.stopping -= 1
        for node, number in stops:
            if not node.is_alive or node.machine.number != number:
                continue
            if node.is_frozen:
                node.ready_after_thaw = True
            elif node.machine.ended is not None:
                self._act(node, node.machine.ready(BOOTSTRAP, self.workload.nproc))
        self._flush()

    def broke(self, change: Change) -> None:
        """See coordinator.Watcher."""
        self.rounds.broke(change)

    def judged(self, change: Change) -> None:
        """See coordinator.Watcher."""
        self.rounds.judged(change)

    def closed(self, close: CloseRecord) -> None:
        """See coordinator.Watcher."""
        self.rounds.end(str(close))
