"""What a seed draws before a job begins: its sizes, its settings, and the faults that meet it.

A plan is data: it can be printed, changed and played again (`Job(seed, plan=...)`). Each fault has
a chance of its own, so that a plan with fewer faults plays the others as before.

To add a size or a setting, add a field with a default, and draw it in `Plan.draw`.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Final

import msgspec

MOMENTS = ("GATHERING", "COMMITTING", "ACTIVE", "SUSPENDED", "CLOSED", "RESTORED", "CLAIMED")
"""When a fault can begin, besides a time: a run comes into this phase somewhere, a coordinator has
restored it from the ledger, or begins to claim it."""

LASTING: Final = ("cut from the ledger", "dead", "lost", "frozen")
"""The faults that may begin after the peace: see `lasting`."""
ISOLATED: Final = "isolated"
"""One more of them, in plans of its own."""
ISOLATED_PART: Final = 0.03
"""In how many of the seeds."""
UNHEARD_PART: Final = 0.02
"""In how many of the seeds nodes finish while they are not heard."""


STORES: Final = 0.05
"""The part of the seeds whose jobs are about their stores."""
OF_BARE_NODES: Final = ("fail", "finish", "depart", "leave", "close")
"""Faults that ask a node for what its agent would ask it for."""


BURSTS: Final = (
    ("workers hang", "signal", "signal"),
    ("workers hang", "worker fails"),
    ("workers hang", "worker asks"),
    ("worker fails", "worker fails", "worker fails"),
    ("worker fails", "signal"),
    ("worker fails", "freeze", "worker fails"),
    ("outage", "worker fails", "worker fails"),
    ("isolate", "worker breaks"),
    ("worker breaks", "worker fails"),
    ("workers finish", "worker fails"),
)
"""Faults that meet one agent, one soon after the other."""


class PlannedFault(msgspec.Struct, frozen=True, omit_defaults=True):
    """One fault. `kind`: its name in `faults.FAULTS`."""

    at_s: float
    """When it begins, in seconds after the world."""
    kind: str
    chance: int
    """The seed of its details: whom it meets, how, and for how long."""
    moment: str = ""
    """It begins at the first of such moments after `at_s`: see MOMENTS."""


class Plan(msgspec.Struct, frozen=True, omit_defaults=True):
    """See above. Times in seconds."""

    nodes: int
    min_nodes: int
    """Of each run."""
    faults: tuple[PlannedFault, ...] = ()
    ledger: str = "etcd"
    """A name in `ledgers.LEDGERS`."""
    program: str = "node"
    """What each node runs: a name in `programs.PROGRAMS`, or "agent"."""
    ledger_members: int = 1
    max_nodes: int = 0
    """Of each run; the others are on standby. 0: all nodes."""
    runs: int = 1
    """How many runs share the ledger; each has every so manieth node."""
    replicas: int = 0
    """How many processes serve coordinators and nothing else."""
    hosts: str = "auto"
    """Whether nodes become candidates: the setting `host_coordinator`."""
    lease_ttl_s: float = 5.0
    last_call_s: float = 3.0
    suspect_after_s: float = 5.0
    lost_after_s: float = 30.0
    mass_min: int = 8
    workers_max: int = 1
    """How many workers a node has at most; the nodes have different numbers."""
    stop_s: float = 5.0
    """How long, at most, a node's program takes to stop when its round has ended."""
    is_mixed: bool = False
    """Whether each node has settings of its own."""
    same_names: bool = False
    """Whether a node has the same name after each start."""
    is_container: bool = False
    """Whether all processes have one host name and one pid."""
    has_unnamed: bool = False
    """Whether some nodes are given no name, so that they make one of their host's and their pid."""
    same_pids: bool = False
    """Whether all processes have one pid, each on its host, as the first ones of containers."""
    has_proxy: bool = False
    """Whether a proxy stands before each coordinator."""
    proxy_idle_s: float = 0.0
    """After how long it ends a connection without messages, until there is peace; 0: never."""
    wild_clocks: bool = False
    """Whether the machines' clocks run at different rates."""
    ends: bool = False
    """Whether workers finish once there is peace."""
    knobs: int | None = None
    """What draws small sizes for the shipped code: see `knobs`. None: its own."""
    leaves: bool = False
    """Whether a node that has finished leaves at once, and does not wait for the others."""
    calls_per_s: float = 2.0
    """How often each node calls its round's store."""
    lasting: str = ""
    """A fault that begins after the peace and stays: a name in `lasting.LASTING`."""
    max_restarts: int | None = None
    """The restart budget of each run."""
    situation: str = ""
    """What the world is about: a name in `situations.SITUATIONS`; "" for most."""
    mass_grace_s: float = 20.0
    closed_run_keep_s: float = 20.0
    """How long a replica keeps a closed run."""
    empty_run_keep_s: float = 30.0
    """How long a replica keeps a run without nodes."""
    silence_s: float | None = None
    """For how long a node hears nothing until it drops its coordinator; None: its own default."""
    late_s: float = 0.0
    """How late, at most, some nodes start. 0: all start at once."""
    has_older: bool = False
    """Whether about half of the processes are of an older release: see `older`."""
    hang_timeout_s: float = 0.0
    """After how long without progress a round ends as a hang. 0: never."""
    has_unlike: bool = False
    """Whether some nodes bring other settings of the run, until there is peace."""
    orphan_s: float | None = None
    """The setting of each node: for how long its workers go on without a coordinator."""
    preloads: bool = False
    """Whether some agents fork their workers from a preloader."""
    keeps: bool = False
    """Whether agents keep the workers that ask for the next world."""
    is_store: bool = False
    """Whether the job is about its rounds' stores: see `calls`."""
    has_steps: bool = False
    """Whether the workers train in steps, and agree on the last one when a node drains."""
    has_long_calls: bool = False
    """Whether each node waits for keys that nobody sets. Its faults are harmless to calls then."""
    restart_window_s: float | None = None
    early_s: float = 0.0
    same_failure: int | None = None
    no_restart_exit_codes: tuple[int, ...] = ()
    max_restarts_per_node: int | None = None
    cooldown_s: float = 60.0
    has_check: bool = False
    """Whether agents check their nodes before each round, with checks that fail at times."""
    """See RunSettings, for these."""
    unlogged_bytes_max: int = 0
    """How many bytes of writes wait for the ledger at most. 0: as in the product."""
    has_witnesses: bool = False
    """Whether nodes can be asked whether the hosts of others answer."""

    @classmethod
    def draw(
        cls,
        seed: int,
        kinds: Sequence[str],
        agent_kinds: Sequence[str] = (),
        store_kinds: Sequence[str] = (),
    ) -> Plan:
        """The plan of a seed. `kinds`: of which its faults are. `agent_kinds`: those of agents.

        `store_kinds`: those of a job about its stores.

        Most seeds have few kinds, many of each, so that faults of a kind meet each other.
        """
        draw = random.Random(f"{seed}/plan")
        nodes = draw.choice((2, 3, 3, 4, 5))
        runs = 2 if nodes >= 4 and draw.random() < 0.1 else 1
        each = nodes // runs
        kinds = draw.sample(kinds, min(len(kinds), draw.choice((2, 4, 8, len(kinds)))))
        has_replicas = draw.random() < 0.2
        is_odd = draw.random() < 0.5
        plan = cls(
            nodes=nodes,
            min_nodes=draw.choice((1, max(1, each - 1), each)),
            faults=_faults(draw, kinds),
            ledger_members=draw.choice((1, 3)),
            max_nodes=draw.choice((0, 0, 0, max(1, each - 1))),
            runs=runs,
            replicas=draw.choice((1, 2)) if has_replicas else 0,
            hosts=draw.choice(("auto", "no")) if has_replicas else "auto",
            lease_ttl_s=draw.choice((2.0, 5.0, 10.0)),
            last_call_s=draw.choice((1.0, 3.0, 10.0)),
            suspect_after_s=draw.choice((2.0, 5.0)),
            lost_after_s=draw.choice((10.0, 30.0)),
            mass_min=draw.choice((1, 8)),
            stop_s=draw.choice((0.0, 1.0, 5.0)),
            is_mixed=is_odd and draw.random() < 0.3,
            same_names=is_odd and draw.random() < 0.3,
            is_container=is_odd and draw.random() < 0.2,
            has_proxy=is_odd and draw.random() < 0.2,
            wild_clocks=is_odd and draw.random() < 0.3,
            ends=draw.random() < 0.5,
            knobs=draw.getrandbits(16) if draw.random() < 0.5 else None,
            leaves=draw.random() < 0.3,
            calls_per_s=draw.choice((2.0, 2.0, 2.0, 8.0)),
            lasting=draw.choice(LASTING) if draw.random() < 0.4 else "",
            ledger=draw.choices(("etcd", "file", "file-local"), (8, 0.5, 0.5))[0],
            workers_max=draw.choice((1, 1, 3)),
            max_restarts=draw.choice((None, None, None, 1, 4)),
        ).sound()
        if store_kinds and random.Random(f"{seed}/store").random() < STORES:
            return cls._of_a_store(seed, store_kinds)
        plan = plan._shortened(seed)
        special = plan._with_isolation(seed) or plan._with_unheard_ends(seed)
        if special is not None:
            return special
        return plan._with_agents(seed, agent_kinds)._with_rare(seed) if agent_kinds else plan

    def _shortened(self, seed: int) -> Plan:
        """In half of the seeds, few faults: two short jobs find more than a long one."""
        draw = random.Random(f"{seed}/short")
        if draw.random() < 0.5:
            return self
        return msgspec.structs.replace(self, faults=self.faults[: draw.randrange(2, 9)])

    def _with_isolation(self, seed: int) -> Plan | None:
        """In a few seeds, after few faults, no node reaches the coordinator's host any more."""
        if random.Random(f"{seed}/isolated").random() >= ISOLATED_PART:
            return None
        faults = tuple(each for each in self.faults[:3] if each.kind not in OF_BARE_NODES)
        return msgspec.structs.replace(
            self,
            faults=faults,
            lasting=ISOLATED,
            # All nodes are in one round then, which nobody leaves.
            ends=False,
            is_mixed=False,
            runs=1,
            max_nodes=0,
        )

    @classmethod
    def _of_a_store(cls, seed: int, kinds: Sequence[str]) -> Plan:
        """A small job whose nodes call their store much, and whose coordinator has troubles."""
        draw = random.Random(f"{seed}/stores")
        nodes, at_s = draw.choice((2, 3, 3, 4)), 2.0
        # Some stories are one fault only, with the time to show what follows from it.
        is_pure = draw.random() < 0.5
        chosen = draw.sample(kinds, 1 if is_pure else draw.choice((2, 3)))
        if draw.random() < 0.6:
            chosen[0] = draw.choice(("part", "part", "owner's refuse", "late"))
        calm_s = 10.0 if is_pure else draw.choice((2.0, 5.0, 10.0))
        faults = []
        for _ in range(draw.choice((2, 3, 4) if is_pure else (3, 5, 8))):
            at_s += draw.expovariate(1.0 / calm_s)
            kind, moment = draw.choice(chosen), "RESTORED" if draw.random() < 0.1 else ""
            # Now and then a round ends, or the run while its ledger is away.
            if draw.random() < 0.2:
                kind, moment = "fail", draw.choice(("", "", "SUSPENDED"))
            elif draw.random() < 0.05:
                kind, moment = "close", "SUSPENDED"
            faults.append(PlannedFault(round(at_s, 3), kind, draw.getrandbits(32), moment))
        # The faults before this one have time to show what follows from them.
        at_s += 15.0 if "part" in chosen else draw.choice((0.0, 3.0, 10.0))
        faults.append(PlannedFault(round(at_s, 3), chosen[0], draw.getrandbits(32)))
        return cls(
            nodes=nodes,
            min_nodes=draw.choice((1, 1, nodes - 1)),
            faults=tuple(faults),
            ledger=draw.choices(("etcd", "file"), (10, 1))[0],
            ledger_members=draw.choice((1, 3)),
            replicas=draw.choice((0, 0, 1)),
            lease_ttl_s=draw.choice((2.0, 5.0)) if "owner's refuse" not in chosen else 10.0,
            last_call_s=1.0,
            suspect_after_s=draw.choice((2.0, 5.0)),
            lost_after_s=10.0,
            stop_s=draw.choice((0.0, 1.0)),
            knobs=draw.getrandbits(16),
            calls_per_s=draw.choice((5.0, 10.0)),
            lasting=draw.choice(("", "", "cut from the ledger")),
            workers_max=draw.choice((1, 1, 3)),
            is_store=True,
            orphan_s=draw.choice((None, 3.0)) if not is_pure else None,
        ).sound()

    def _with_unheard_ends(self, seed: int) -> Plan | None:
        """In a few seeds, workers finish while their node is frozen or cut off, and is lost."""
        draw = random.Random(f"{seed}/unheard")
        if draw.random() >= UNHEARD_PART:
            return None
        faults, at_s = [], 5.0
        for _ in range(draw.randrange(1, 4)):
            at_s += draw.uniform(0.0, 3.0)
            ends_s = at_s + draw.uniform(0.0, 2.0)
            faults.append((at_s, draw.choice(("freeze", "isolate", "suspend"))))
            faults.append((ends_s, "finish"))
            if draw.random() < 0.4:
                faults.append((at_s + draw.uniform(0.0, 9.0), draw.choice(("kill", "fail", "cut"))))
        # The last one only keeps the peace away, until the nodes are lost.
        faults.append((draw.uniform(25.0, 45.0), "cut"))
        nodes = draw.choice((2, 2, 3))
        return Plan(
            nodes=nodes,
            min_nodes=draw.choice((1, nodes, nodes)),
            faults=tuple(
                PlannedFault(round(each_s, 3), kind, draw.getrandbits(32))
                for each_s, kind in sorted(faults)
            ),
            replicas=draw.choice((0, 1)),
            lease_ttl_s=draw.choice((2.0, 5.0)),
            suspect_after_s=2.0,
            lost_after_s=10.0,
            ends=True,
        )

    def _with_agents(self, seed: int, kinds: Sequence[str]) -> Plan:
        """In a third of the seeds, each node is an agent, and more faults meet it."""
        draw = random.Random(f"{seed}/agents")
        if draw.random() > 1 / 3:
            return self
        # What users do to a bare node, an agent does for them.
        faults = [each for each in self.faults if each.kind not in OF_BARE_NODES]
        ends_s = max((each.at_s for each in self.faults), default=10.0) + 2.0
        for _ in range(draw.randrange(1, 16)):
            at_s = round(draw.uniform(2.0, ends_s), 3)
            moment = draw.choice(MOMENTS) if draw.random() < 0.2 else ""
            kind = draw.choice(kinds)
            faults.append(PlannedFault(at_s, kind, draw.getrandbits(32), moment))
        return msgspec.structs.replace(
            self,
            program="agent",
            faults=tuple(sorted(faults, key=lambda fault: fault.at_s)),
            lasting="",
            max_restarts=draw.choice((None, None, 0, 1, 3)),
            # Once a node has finished, the run waits for the end of the others.
            ends=self.ends or any(fault.kind == "workers finish" for fault in faults),
        )

    def _with_rare(self, seed: int) -> Plan:
        """In a few seeds: faults that meet one agent together, second nodes of a name, orphans."""
        draw = random.Random(f"{seed}/rare")
        kind, ends_s = draw.random(), max((each.at_s for each in self.faults), default=10.0)
        if kind < 0.03:
            return msgspec.structs.replace(
                self,
                program="agent",
                faults=tuple(_bursts(draw, self.nodes)),
                lasting="",
                last_call_s=1.0,
                replicas=0,
                hosts="auto",
                ends=True,
                max_restarts=draw.choice((None, 4)),
                stop_s=draw.choice((0.0, 1.0)),
            )
        if kind < 0.05:
            twins = [_fault(draw, draw.uniform(3.0, ends_s), "twin") for _ in range(3)]
            return msgspec.structs.replace(
                self, faults=in_order((*self.faults, *twins)), same_names=True
            )
        if kind < 0.07:
            outages = [
                _fault(draw, draw.uniform(3.0, ends_s), draw.choice(("outage", "isolate")))
                for _ in range(2)
            ]
            return msgspec.structs.replace(
                self,
                faults=in_order((*self.faults, *outages)),
                orphan_s=draw.choice((1.0, 4.0, 12.0)),
            )
        return self

    def sound(self) -> Plan:
        """The plan with sizes that a run accepts: at least as many places as nodes it needs."""
        max_nodes = self.max_nodes if self.max_nodes >= self.min_nodes else 0
        # The mounts of a file server are told apart by their hosts' names.
        is_container = self.is_container and self.ledger == "etcd"
        return msgspec.structs.replace(self, max_nodes=max_nodes, is_container=is_container)


def _bursts(draw: random.Random, nodes: int) -> list[PlannedFault]:
    """What meets one agent within a moment."""
    faults, at_s = [], 0.0
    for _ in range(draw.randrange(1, 4)):
        at_s += draw.uniform(5.0, 10.0)  # Until the agents are in a round again.
        place = draw.randrange(nodes)
        for kind in draw.choice(BURSTS):
            faults.append(PlannedFault(round(at_s, 3), kind, chance_of(draw, place, nodes)))
            at_s += draw.choice((0.001, 0.01, 0.1, 1.0)) * draw.random()
    return faults


def chance_of(draw: random.Random, place: int, living: int) -> int:
    """A chance of a fault that meets the process at this place among so many."""
    while True:
        chance = draw.getrandbits(32)
        if random.Random(chance).choice(range(living)) == place:
            return chance


def _fault(draw: random.Random, at_s: float, kind: str) -> PlannedFault:
    return PlannedFault(round(at_s, 3), kind, draw.getrandbits(32))


def in_order(faults: Sequence[PlannedFault]) -> tuple[PlannedFault, ...]:
    """The faults in the order in which they begin."""
    return tuple(sorted(faults, key=lambda fault: fault.at_s))


def _faults(draw: random.Random, kinds: Sequence[str]) -> tuple[PlannedFault, ...]:
    faults, at_s = [], draw.choice((0.0, 2.0))
    count, calm_s = draw.randrange(4, 24), draw.choice((0.3, 1.0, 4.0))
    # Seconds for most, and hours for one of a thousand: each of these takes as long as a hundred.
    quiet_s = draw.choice((30.0, 60.0)) if draw.random() < 0.999 else 4_000.0
    quiet_at = draw.randrange(200)
    for at in range(count):
        at_s += draw.expovariate(1.0 / (quiet_s if at == quiet_at else calm_s))
        moment = draw.choice(MOMENTS) if draw.random() < 0.25 else ""
        kind = draw.choice(kinds)
        faults.append(PlannedFault(round(at_s, 3), kind, draw.getrandbits(32), moment))
    return tuple(faults)


def some_faults(
    draw: random.Random,
    kinds: Sequence[str],
    count: int,
    calm_s: float,
    moments: Sequence[str] = ("",),
    at_s: float = 2.0,
) -> tuple[PlannedFault, ...]:
    """So many faults of these kinds, from `at_s` on, on average `calm_s` apart, in seconds."""
    faults = []
    for _ in range(count):
        at_s += draw.expovariate(1.0 / calm_s)
        kind, moment = draw.choice(kinds), draw.choice(moments)
        faults.append(PlannedFault(round(at_s, 3), kind, draw.getrandbits(32), moment))
    return tuple(faults)


def merged(*faults: Sequence[PlannedFault]) -> tuple[PlannedFault, ...]:
    """All of them, in the order in which they begin."""
    return in_order([each for some in faults for each in some])
