"""What must hold for agents and their workers, whatever happens to them."""

from __future__ import annotations

import urllib.parse
from collections.abc import Sequence
from typing import Final

from rallypoint.core.values import CloseRecord, Failure, FailureKind, Outcome
from rallypoint.launch import agent_actions as do
from rallypoint.launch import agent_events as on
from rallypoint.launch.machine import AgentMachine
from rallypoint.launch.phases import Phase
from rallypoint.ledger.keys import RUNS
from rallypoint.simulation.agent_stop_oracles import STOP_ORACLES
from rallypoint.simulation.scene import Oracle, Scene, StartedNode, Token
from rallypoint.simulation.workers import GUARDED_S, HowItEnds, SimulatedWorker

BOUNDS_S: Final = {
    Phase.PREPARING: 15.0,
    Phase.STARTING: 20.0,
    Phase.EXPLAINING: 2.0,
    Phase.STOPPING: 40.0,
    Phase.CLOSING: 7.0,
    Phase.ENDING: 5.0,
}
"""How long an agent may be in a phase that waits for nobody else, in peace, in seconds."""
_JUDGES: Final = (Phase.WORKING, Phase.EXPLAINING)
EXIT_CODES: Final = {
    Outcome.SUCCEEDED: 0,
    Outcome.FAILED: 1,
    Outcome.NOT_ENOUGH: 5,
    Outcome.STOPPED: 6,
}
"""As docs/compatibility.md promises them."""
WORST_FIRST: Final = (
    FailureKind.SIGNAL,
    FailureKind.OOM,
    FailureKind.EXCEPTION,
    FailureKind.COMMUNICATION,
)
EQUAL_NAMES: Final = ("WORLD_SIZE", "GROUP_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
EQUAL_NAMES_MORE: Final = ("TORCHELASTIC_RESTART_COUNT", "TORCHELASTIC_MAX_RESTARTS")


class WorkersAreFenced(Oracle):
    """R13: a node stops the workers of its round before those of another round start."""

    def __init__(self, scene: Scene) -> None:
        super().__init__(scene)
        self._living: dict[str, dict[SimulatedWorker, None]] = {}
        self._ended_s: dict[str, float] = {}

    def worker_started(self, here: StartedNode, worker: SimulatedWorker) -> None:
        """See Oracle."""
        living = self._living.setdefault(here.name, {})
        others = [each for each in living if each.token != worker.token]
        if others:
            what = f"{here.name} runs workers of {others[0].token} and of {worker.token}"
            self.scene.broke("R13", what)
        if here.tokens and worker.token != here.tokens[-1]:
            what = f"{here.name} starts a worker of {worker.token} in {here.tokens[-1]}"
            self.scene.broke("R13", what)
        living[worker] = None

    def worker_ended(self, here: StartedNode, worker: SimulatedWorker, how: HowItEnds) -> None:
        """See Oracle."""
        self._living[here.name].pop(worker, None)

    def agent_ended(
        self, here: StartedNode, agent: AgentMachine, code: int, error: Exception | None
    ) -> None:
        """See Oracle."""
        living = self._living.get(here.name)
        if living:
            self.scene.broke("left", f"{here.name} ends, and {len(living)} of its workers run")

    def at_end(self) -> None:
        """See Oracle."""
        for here in self.scene.nodes:
            living = self._living.get(here.name)
            if living and not here.process.is_alive and self._is_long_dead(here):
                self.scene.broke("left", f"{here.name} is dead, and {len(living)} workers run")

    def _is_long_dead(self, here: StartedNode) -> bool:
        """Whether its guard has had the time to end its workers."""
        return self.scene.world.now_s > self._ended_s.get(here.name, 0.0) + GUARDED_S


class WorkersAgree(Oracle):
    """R2, R3: the environments of a round's workers agree, and each rank is there once."""

    def __init__(self, scene: Scene) -> None:
        super().__init__(scene)
        self._rounds: dict[tuple[str, Token], tuple[dict[str, str], str, dict[int, str]]] = {}

    def worker_started(self, here: StartedNode, worker: SimulatedWorker) -> None:
        """See Oracle."""
        env = worker.spec.env
        told = {name: env[name] for name in (*EQUAL_NAMES, *EQUAL_NAMES_MORE)}
        known, by, ranks = self._rounds.setdefault(
            (here.run_id, worker.token), (told, here.name, {})
        )
        if known != told:
            self.scene.broke("R2", f"{here.name} gives its workers {told}, and {by} {known}")
        rank, size = int(env["RANK"]), int(env["WORLD_SIZE"])
        if not 0 <= rank < size or int(env["LOCAL_RANK"]) >= int(env["LOCAL_WORLD_SIZE"]):
            self.scene.broke("R3", f"{here.name} starts a worker of rank {rank} of {size}")
        if rank in ranks:
            what = f"{here.name} and {ranks[rank]} start rank {rank} of {worker.token}"
            self.scene.broke("R3", what)
        ranks[rank] = here.name


class AgentsEndRightly(Oracle):
    """An agent's exit code matches what has happened to it; a signal is never lost."""

    def __init__(self, scene: Scene) -> None:
        super().__init__(scene)
        self._signals: dict[str, list[int]] = {}
        self._closed: dict[str, CloseRecord] = {}
        self._gone: dict[str, None] = {}
        self._drained: dict[str, None] = {}

    def agent_told(self, here: StartedNode, event: on.Event) -> None:
        """See Oracle."""
        if isinstance(event, on.Signalled) and not here.system.machine.is_over:
            self._signals.setdefault(here.name, []).append(event.number)
        elif isinstance(event, on.Gone):
            self._gone[here.name] = None
        elif isinstance(event, on.Drained):
            self._drained[here.name] = None

    def run_ended(self, here: StartedNode, close: CloseRecord) -> None:
        """See Oracle."""
        self._closed[here.name] = close

    def agent_ended(
        self, here: StartedNode, agent: AgentMachine, code: int, error: Exception | None
    ) -> None:
        """See Oracle."""
        close, signals = self._closed.get(here.name), self._signals.get(here.name)
        by_signal = 128 + signals[0] if signals else None
        by_close = EXIT_CODES[close.outcome] if close is not None else None
        # A node whose workers have finished waits for the end of the run, as far as it can.
        is_done = here.system.has_finished and here.name in self._gone
        others = [0] if here.system.has_left or is_done or here.name in self._drained else []
        if error is not None:
            others.append(code)
        if signals and code not in (by_signal, by_close, *others):
            what = f"{here.name} was sent signal {signals[0]}, and ends with {code}"
            self.scene.broke("exit", what)
        if code not in (by_signal, by_close, *others):
            what = f"{here.name} ends with {code}: signals {signals}, closed {close}, {error}"
            self.scene.broke("exit", what)


class FailuresAreReported(Oracle):
    """A round in which a worker has failed is reported, unless something else has ended it here.

    Of several failures, only those are reported that are a likelier cause than the first.
    """

    def __init__(self, scene: Scene) -> None:
        super().__init__(scene)
        self._unreported: dict[str, int] = {}
        self._has_reason: dict[str, None] = {}
        """Agents that have another reason to stop the workers of their present round."""
        self._signalled: dict[str, None] = {}
        self._worst: dict[str, Failure] = {}
        """The likeliest cause that an agent knows in its round, and has not reported."""
        self._told: dict[str, int] = {}
        """How bad the worst is that an agent has reported in its round: see WORST_FIRST."""

    def agent_told(self, here: StartedNode, event: on.Event) -> None:
        """See Oracle."""
        match event:
            case on.RoundFound():
                self._unreported.pop(here.name, None)
                self._has_reason.pop(here.name, None)
                self._worst.pop(here.name, None)
                self._told.pop(here.name, None)
            case on.Signalled():
                self._signalled[here.name] = self._has_reason[here.name] = None
                self._worst.pop(here.name, None)
            case on.FailuresFound() if here.name in self._signalled:
                """It departs, and the signal may have reached its workers first."""
            case on.FailuresFound(failures=found) if _is_explaining(here):
                worst = min(found, key=_badness)
                if _badness(worst) < self._told.get(here.name, len(WORST_FIRST)):
                    self._worst[here.name] = worst
            case on.WorkerExited(exit=exit) if here.system.machine.phase in _JUDGES:
                if exit.returncode != 0 and here.name not in self._has_reason:
                    self._unreported[here.name] = exit.rank
            case on.RoundEnded() | on.RunClosed() | on.LeaveAsked() | on.RegroupAsked() | on.Gone():
                self._has_reason[here.name] = None
            case on.WorldAsked():
                self._has_reason[here.name] = None

    def agent_acted(
        self, here: StartedNode, agent: AgentMachine, actions: Sequence[do.Action]
    ) -> None:
        """See Oracle."""
        for action in actions:
            if isinstance(action, do.ReportFailure):
                self._unreported.pop(here.name, None)
                self._has_reason[here.name] = None
                told = self._told.get(here.name, len(WORST_FIRST))
                self._told[here.name] = min(told, _badness(action.failure))
                worst = self._worst.get(here.name)
                if worst is not None and _badness(action.failure) <= _badness(worst):
                    del self._worst[here.name]
        if any(isinstance(each, do.StopWorkers) for each in actions):
            self._judge(here)

    def agent_ended(
        self, here: StartedNode, agent: AgentMachine, code: int, error: Exception | None
    ) -> None:
        """See Oracle."""
        self._judge(here)

    def _judge(self, here: StartedNode) -> None:
        worst = self._worst.pop(here.name, None)
        if worst is not None:
            what = f"{here.name} has not reported the likeliest cause that it knows: {worst}"
            self.scene.broke("failure", what)
        rank = self._unreported.pop(here.name, None)
        if rank is not None and here.name not in self._has_reason:
            self.scene.broke("failure", f"{here.name} has not reported that rank {rank} failed")


def _is_explaining(here: StartedNode) -> bool:
    machine: AgentMachine = here.system.machine
    return machine.phase is Phase.EXPLAINING


def _badness(failure: Failure) -> int:
    return WORST_FIRST.index(failure.kind)


class RankZeroIsDialled(Oracle):
    """Each node looks whether rank 0 can be reached: once for each host, and beside the start.

    If it cannot, and the round goes on, the node says so.
    """

    def __init__(self, scene: Scene) -> None:
        super().__init__(scene)
        self._asked: dict[tuple[str, str], None] = {}
        """Nodes and the hosts that they dial, or that have answered them."""
        self._stops: dict[str, None] = {}
        """Agents whose round has ended, or that leave."""
        self._to_say: dict[str, str] = {}

    def agent_told(self, here: StartedNode, event: on.Event) -> None:
        """See Oracle."""
        match event:
            case on.RoundFound():
                self._stops.pop(here.name, None)
            case on.RoundEnded() | on.RunClosed() | on.Signalled() | on.LeaveAsked() | on.Gone():
                self._stops[here.name] = None
            case on.Rank0Dialled(address=address, unreached=unreached) if unreached is not None:
                self._asked.pop((here.name, address.host), None)
                machine: AgentMachine = here.system.machine
                is_present = machine.found is not None and machine.found.head.bootstrap == address
                works = is_present and machine.phase is Phase.WORKING
                if works and here.name not in self._stops:
                    self._to_say[here.name] = address.host

    def agent_acted(
        self, here: StartedNode, agent: AgentMachine, actions: Sequence[do.Action]
    ) -> None:
        """See Oracle."""
        for action in actions:
            if isinstance(action, do.DialRank0):
                asked = here.name, action.address.host
                if asked in self._asked:
                    self.scene.broke("dial", f"{here.name} dials {asked[1]} again")
                self._asked[asked] = None
        for action in actions:
            if isinstance(action, do.StartWorkers) and action.found.seat.node_rank > 0:
                host = action.found.head.bootstrap.host
                if (here.name, host) not in self._asked:
                    self.scene.broke("dial", f"{here.name} has not looked whether {host} answers")
        host = self._to_say.pop(here.name, "")
        texts = [each.text for each in actions if isinstance(each, do.Say)]
        if host and not any("cannot reach rank 0" in text for text in texts):
            self.scene.broke("dial", f"{here.name} does not say that {host} does not answer")


class RestartsAreCounted(Oracle):
    """The restart budget: each round that a worker's failure ended is charged at most once."""

    def __init__(self, scene: Scene) -> None:
        super().__init__(scene)
        self._failed: dict[str, dict[Token, None]] = {}
        self._counts: dict[str, dict[int, int]] = {}

    def written(self, name: str, value: bytes | None) -> None:
        """See Oracle. A run that begins again after its removal has its whole budget again."""
        if value is None and name.startswith(RUNS):
            run_id = urllib.parse.unquote(name.removeprefix(RUNS))
            self._failed.pop(run_id, None)
            self._counts.pop(run_id, None)

    def worker_ended(self, here: StartedNode, worker: SimulatedWorker, how: HowItEnds) -> None:
        """See Oracle."""
        if how.returncode != 0:
            self._failed.setdefault(here.run_id, {})[worker.token] = None

    def agent_told(self, here: StartedNode, event: on.Event) -> None:
        """See Oracle. A worker that is kept goes on after the failure that its node has reported.

        Any other one of that round is stopped, and is counted then.
        """
        if self.scene.plan.keeps and isinstance(event, on.RoundEnded) and event.change.failure:
            self._failed.setdefault(here.run_id, {})[0, event.change.round] = None

    def worker_started(self, here: StartedNode, worker: SimulatedWorker) -> None:
        """See Oracle."""
        number = worker.token[1]
        count = int(worker.spec.env["TORCHELASTIC_RESTART_COUNT"])
        limit = self.scene.run_settings.max_restarts
        failed = len({token[1] for token in self._failed.get(here.run_id, ()) if token[1] < number})
        if count > failed:
            what = f"round {number} counts {count} restarts, and workers failed in {failed} rounds"
            self.scene.broke("restarts", what)
        if limit is not None and count > limit:
            self.scene.broke("restarts", f"round {number} counts {count} of {limit} restarts")
        counts = self._counts.setdefault(here.run_id, {})
        for other, known in counts.items():
            if (other < number and known > count) or (other > number and known < count):
                what = f"round {number} counts {count} restarts, and round {other} {known}"
                self.scene.broke("restarts", what)
        counts[number] = count


class OutcomesAreTrue(Oracle):
    """A run succeeds if workers have finished, and fails if one has failed, or one says so."""

    def __init__(self, scene: Scene) -> None:
        super().__init__(scene)
        self._finished: dict[str, None] = {}
        self._failed: dict[str, None] = {}

    def worker_ended(self, here: StartedNode, worker: SimulatedWorker, how: HowItEnds) -> None:
        """See Oracle."""
        if how.returncode == 0 and not worker.is_stopping:
            self._finished[here.run_id] = None
        elif how.returncode != 0:
            self._failed[here.run_id] = None

    def run_ended(self, here: StartedNode, close: CloseRecord) -> None:
        """See Oracle."""
        if here.system is None:
            return
        is_asked = "a worker says so" in close.reason or "a user closed it" in close.reason
        if close.outcome is Outcome.SUCCEEDED and not (here.run_id in self._finished or is_asked):
            self.scene.broke("outcome", f"{here.name} saw {close}, and no worker has finished")
        if close.outcome is Outcome.FAILED and not (here.run_id in self._failed or is_asked):
            self.scene.broke("outcome", f"{here.name} saw {close}, and no worker has failed")


class AgentsDoNotWaitForNothing(Oracle):
    """In a phase in which an agent waits for nobody else, it stays only for a bounded time."""

    def __init__(self, scene: Scene) -> None:
        super().__init__(scene)
        self._since: dict[str, tuple[AgentMachine, float]] = {}
        self._phases: dict[str, Phase] = {}

    def agent_acted(
        self, here: StartedNode, agent: AgentMachine, actions: Sequence[do.Action]
    ) -> None:
        """See Oracle."""
        if self._phases.get(here.name) is not agent.phase:
            self._look(here, agent)
            self._phases[here.name] = agent.phase
            self._since[here.name] = agent, self.scene.world.now_s

    def at_end(self) -> None:
        """See Oracle."""
        for here in self.scene.living:
            if here.name in self._since:
                self._look(here, self._since[here.name][0])

    def _look(self, here: StartedNode, agent: AgentMachine) -> None:
        phase = self._phases.get(here.name)
        bound_s = BOUNDS_S.get(phase) if phase is not None else None
        if bound_s is None or phase is None or self.scene.is_chaotic:
            return
        since_s = max(self.scene.peace_s, self._since[here.name][1])
        took_s = self.scene.world.now_s - since_s
        if took_s > bound_s:
            self.scene.broke("waits", f"{here.name} was {phase.value} for {took_s:.1f} s in peace")


AGENT_ORACLES: Final[tuple[type[Oracle], ...]] = (
    WorkersAreFenced,
    WorkersAgree,
    AgentsEndRightly,
    FailuresAreReported,
    RankZeroIsDialled,
    RestartsAreCounted,
    OutcomesAreTrue,
    AgentsDoNotWaitForNothing,
    *STOP_ORACLES,
)
