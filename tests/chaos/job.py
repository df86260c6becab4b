"""One job of chaos, from its start to its close: faults, peace at times, and then the checks."""

from __future__ import annotations

import contextlib
import json
import math
import subprocess
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import msgspec

from rallypoint.errors import RallypointError
from tests.chaos import oracles
from tests.chaos.attic import Attic
from tests.chaos.faults import Faults
from tests.chaos.ground import RUN_ID, Ground, Place, ground
from tests.chaos.plan import NODES, PEACE_EVERY, SERVES, JobPlan
from tests.chaos.store_calls import call_of
from tests.failover import etcd_history
from tests.failover.etcd_history import Written
from tests.failover.fleet import Agent
from tests.failover.records import Story

STARTS_WITHIN_S = 120.0
WELL_WITHIN_S = 90.0
"""R7: after the last fault all nodes are in one round. It includes starting processes on a busy
machine, a lease, an attach grace, a last call, and what was asked to end before."""
SETTLES_WITHIN_S = 30.0
"""After that a process has no more descriptors and memory than it needs."""
CLOSED_WITHIN_S = 45.0
LOOK_EVERY_S = 0.05
LAST_S = 4.0
"""How long the last fault before a peace may take, at most."""
EVENTS_SHOWN = 40
STARTUP_REFUSED = (1, 2, 3, 4)
"""How a process may end that was started during a fault and was never admitted."""


class Summary(msgspec.Struct):
    """What a job was, in numbers."""

    faults: dict[str, int]
    rounds: int
    starts: int
    """Nodes that were started."""
    steps: int
    """Acknowledged steps of workers."""
    calls: int
    """Other calls of stores that were answered."""
    undecided: int
    """Keys with too many calls to find an order of them, or to see that there is none."""
    terms: int
    longest_regroup_s: float
    longest_heal_s: float
    unchecked: int
    """1 if the ledger's writes were not checked, because one of them was not seen."""
    took_s: float


class ChaosFailed(AssertionError):
    """A rule was broken. The text is for a person; the folder has all records."""


def _are_answered(agents: Sequence[Agent], kind: str, since_s: float) -> bool:
    """Whether each has the answer to such a call of its store, made after this moment."""
    for agent in agents:
        answered = {call_of(each) for each in agent.log.events("answered", since_s)}
        called = agent.log.events("called", since_s)
        if not any(each["operation"][0] == kind and call_of(each) in answered for each in called):
            return False
    return True


class Job:
    """Plays a plan on a ground."""

    def __init__(self, plan: JobPlan, here: Ground, say: Callable[[str], None]) -> None:
        self.plan = plan
        self.here = here
        self.faults = Faults(here)
        self.done: list[tuple[float, str]] = []
        self.heals_s: list[float] = []
        self._say = say
        self._began_s = time.monotonic()
        self._began_at: dict[int, float] = {}
        self._sizes = oracles.Size()
        self._attic = Attic(here.disk / "ledger", here.kept) if plan.ledger == "file" else None

    def play(self) -> Summary:
        """All of it. Raises ChaosFailed."""
        if self._attic is not None:
            self._attic.start()
        self._note("all start")
        self._until(self._is_whole, STARTS_WITHIN_S, "R7: the first round of all nodes")
        for number, fault in enumerate(self.plan.faults, start=1):
            self._pass(fault.after_s)
            self._note(self.faults.begin(fault))
            if number % PEACE_EVERY == 0 or number == len(self.plan.faults):
                self._pass(min(fault.lasts_s, LAST_S))
                self._peace()
        self._close()
        written = self._written()
        stories = [Story(agent.name, agent.log.all()) for agent in self.here.agents]
        calls, undecided = oracles.check(stories, self.faults)
        if self._attic is not None and self._attic.unseen:
            self._note(f"the ledger was not checked: {self._attic.unseen}, {self._attic.slowest_s}")
        else:
            oracles.check_ledger(stories, written, is_whole=self._attic is None)
        return self._summary(stories, calls, undecided)

    # -- time passes ---------------------------------------------------------------------------

    def _pass(self, for_s: float) -> None:
        ends_s = time.monotonic() + for_s
        while True:
            self._look()
            left_s = ends_s - time.monotonic()
            if left_s <= 0:
                return
            time.sleep(min(LOOK_EVERY_S, left_s))

    def _look(self) -> None:
        """Mend what is due, start what is missing, and see that nobody ends by itself."""
        self.faults.mend_due(time.monotonic())
        for name, place in self.here.places.items():
            if place.process is not None and not place.is_alive and not place.was_asked:
                self._ended_by_itself(name, place)
        self.here.fill()
        for place in self.here.places.values():
            if place.process is not None:
                self._began_at.setdefault(place.process.pid, time.monotonic())

    def _ended_by_itself(self, name: str, place: Place) -> None:
        """A process may end so only if it was started in bad times and was never admitted."""
        assert place.process is not None
        code = place.process.popen.returncode
        began_s = self._began_at.get(place.process.pid, self._began_s)
        was_bad = any(to_s >= began_s - 1 for _, to_s in self.faults.windows)
        was_admitted = (
            place.agent.first("attached") is not None
            if place.agent is not None
            else "is ready at" in place.process.text
        )
        is_program = name not in SERVES and "asked to fail" in place.process.text
        if (was_bad and not was_admitted and code in STARTUP_REFUSED) or is_program:
            self._note(f"{name} did not start ({code}): {place.process.lines[-1:]}")
            place.was_asked = True
            place.back_s = time.monotonic() + 0.5
            return
        raise AssertionError(f"{place.process.name} ended by itself with {code}")

    def _until(self, is_so: Callable[[], object], within_s: float, what: str) -> None:
        began_s = time.monotonic()
        while True:
            self._look()
            if is_so():
                return
            waited_s = time.monotonic() - began_s
            assert waited_s < within_s, f"{what}: not within {within_s:g} s; {self._state()}"
            time.sleep(LOOK_EVERY_S)

    # -- peace ---------------------------------------------------------------------------------

    def _peace(self) -> None:
        """All is mended, and then must be well."""
        self.faults.mend()
        self._note("peace")
        asked = [place for place in self.here.places.values() if place.was_asked and place.is_alive]
        self._until(
            lambda: not any(each.is_alive and each.was_asked for each in asked), 60.0, "end"
        )
        began_s = time.monotonic()
        self._until(self._is_whole, WELL_WITHIN_S, "R7: all nodes in one round")
        self.heals_s.append(time.monotonic() - began_s)
        at_s = time.monotonic()
        living = [place.agent for place in self.here.members() if place.agent is not None]
        self._until(
            lambda: all(
                (asked := agent.first("asked", at_s)) and agent.first("added", asked["at_s"])
                for agent in living
            ),
            WELL_WITHIN_S,
            "R10: a step of each worker is acknowledged",
        )
        for kind in ("get", "wait", "bar", "cas"):
            self._until(
                partial(_are_answered, living, kind, at_s),
                WELL_WITHIN_S,
                f"R10: a call {kind!r} of each worker is answered",
            )
        # Connections to the ledger stay open for a while after their last request.
        ends_s = time.monotonic() + SETTLES_WITHIN_S
        while (growth := oracles.grown(self._sizes, now := self._sizes_now())) != "":
            assert time.monotonic() < ends_s, growth
            self._look()
            time.sleep(LOOK_EVERY_S)
        self._sizes = oracles.Size(now | self._sizes)  # the first size of each
        self._note(f"all is well after {self.heals_s[-1]:.1f} s")

    def _sizes_now(self) -> oracles.Size:
        places = self.here.places.values()
        return oracles.sizes(each.process.pid for each in places if each.process is not None)

    def _is_whole(self) -> bool:
        places = self.here.members()
        if not all(place.is_alive and place.agent is not None for place in places):
            return False
        told = [place.agent.log.events("working") for place in places if place.agent is not None]
        last = [each[-1] for each in told if each]
        return len(last) == len(NODES) and all(
            each["size"] == len(NODES) and each["round"] == last[0]["round"] for each in last
        )

    def _state(self) -> str:
        """Why it is not whole."""
        found = []
        for name, place in self.here.places.items():
            agent = place.agent
            told = agent.log.events("working") if agent is not None else []
            last = f"round {told[-1]['round']} of {told[-1]['size']}" if told else "no round"
            found.append(f"{name} {last if place.is_alive else 'is not there'}")
        return ", ".join(found)

    # -- the end -------------------------------------------------------------------------------

    def _close(self) -> None:
        """R6: the run ends for all, a later node gets that answer, and nothing is left."""
        here = self.here
        at_s = time.monotonic()
        here.pause.touch()
        living = [place.agent for place in here.members() if place.agent is not None]
        self._until(
            lambda: all(a.first("paused", at_s) for a in living), WELL_WITHIN_S, "R10: a read"
        )
        closing = here.places[NODES[0]].host
        with closing.inside():
            close = here.machine.command("close", RUN_ID, "--endpoint", here.endpoint)
        close.ends(0)
        closed_s = time.monotonic()
        for name in NODES:
            here.places[name].was_asked = True
            here.places[name].back_s = math.inf
        self._until(lambda: not here.living, CLOSED_WITHIN_S, "R6: all nodes end after the close")
        late = here.places[NODES[0]]
        with late.host.inside():
            late.start()
        assert late.process is not None
        late.process.code()
        assert "closed" in late.process.text, f"R6: a late node was told: {late.process.text}"
        formed = [each for agent in here.agents for each in agent.log.events("formed", closed_s)]
        assert not formed, f"R6: {formed}"
        self._until(lambda: not any(here.net.pids(name) for name in NODES), 20.0, "leak: a process")
        self._note("closed")

    def _written(self) -> list[Written]:
        if self._attic is not None:
            self._attic.stop()
            return self._attic.written()
        etcd = self.here.etcd
        assert etcd is not None
        with etcd.members[0].host.inside():
            return etcd_history.history(etcd.options, "/" + self.here.endpoint.rpartition("/")[2])

    def _summary(self, stories: list[Story], calls: int, undecided: int) -> Summary:
        formed: dict[int, float] = {}
        ended: dict[int, float] = {}
        terms = set()
        for story in stories:
            for each in story.events:
                match each["event"]:
                    case "formed":
                        formed[each["round"]] = max(formed.get(each["round"], 0.0), each["at_s"])
                        terms.add(each["term"])
                    case "ended":
                        first = min(ended.get(each["round"], math.inf), each["at_s"])
                        ended[each["round"]] = first
        regroups = [formed[n + 1] - at_s for n, at_s in ended.items() if n + 1 in formed]
        return Summary(
            faults=self.faults.done,
            rounds=len(formed),
            starts=len(self.here.agents),
            steps=sum(len(story.of("added")) for story in stories),
            calls=calls,
            undecided=undecided,
            terms=len(terms),
            longest_regroup_s=round(max(regroups, default=0.0), 2),
            longest_heal_s=round(max(self.heals_s, default=0.0), 2),
            unchecked=int(self._attic is not None and bool(self._attic.unseen)),
            took_s=round(time.monotonic() - self._began_s, 1),
        )

    def _note(self, what: str) -> None:
        self.done.append((time.monotonic(), what))
        self._say(f"{time.monotonic() - self._began_s:7.1f}  {what}")

    def keep(self, problem: str) -> None:
        """Write everything into the folder, for who looks for the cause."""
        folder = self.here.folder
        for process in self.here.machine.processes:
            (folder / f"{process.name}.{process.pid}.txt").write_text(process.text)
        began_s = self._began_s
        events = [
            (each["at_s"] - began_s, agent.name, each)
            for agent in self.here.agents
            for each in agent.log.all()
        ] + [(at_s - began_s, "CHAOS", {"event": what}) for at_s, what in self.done]
        events.sort(key=lambda each: each[0])
        quiet = ("asked", "added", "called", "answered")
        lines = [
            f"{at_s:9.3f}  {who:10} {json.dumps({k: v for k, v in each.items() if k != 'at_s'})}"
            for at_s, who, each in events
            if each["event"] not in quiet
        ]
        (folder / "events.txt").write_text("\n".join(lines) + "\n")
        text = f"{problem}\n\n{self.plan.shown()}\n\nthe last events:\n"
        (folder / "FAILED.txt").write_text(text + "\n".join(lines[-EVENTS_SHOWN:]) + "\n")


def play(
    plan: JobPlan,
    folder: Path,
    say: Callable[[str], None],
    command: str,
    bug: str = "",
    release: str = "",
) -> Summary:
    """Play one job. Raises ChaosFailed, whose folder then has everything that was written down.

    `command`: what repeats the job, for the message. `bug` and `release`: see `ground`.
    """
    folder.mkdir(parents=True)
    with ground(plan, folder, bug, release) as here:
        job = Job(plan, here, say)
        try:
            return job.play()
        except (AssertionError, RallypointError, OSError, subprocess.SubprocessError) as error:
            with contextlib.suppress(OSError):
                job.keep(f"{error}\n\nrepeat: {command}")
            told = "\n".join(f"  {at_s - job._began_s:7.1f}  {what}" for at_s, what in job.done)
            raise ChaosFailed(
                f"{error}\n\n{plan.shown()}\n\nwhat was done:\n{told}\n\nall records: {folder}\n"
                f"repeat: {command}"
            ) from error
