"""Long random runs, drawn from a seed and the state of the run. They go deeper than hypothesis.

The nodes of a walk mostly do what real ones do: ask again after a round ended, answer, come back.
So rounds form and end many times, with hostile events in between. `walk(seed)` repeats a walk.
"""

from __future__ import annotations

from random import Random

from rallypoint.core import effects as do
from rallypoint.core import events as on
from rallypoint.core.progress import Progress
from rallypoint.core.suspension import SuspensionCause
from rallypoint.core.values import (
    Address,
    Failure,
    FailureKind,
    HostReport,
    MemberState,
    NodeId,
    Phase,
    Reachability,
)
from tests.core.driver import Driver, token_of

NAMES = "abcdef"
EVICTED = "ef"
CAUSES = [SuspensionCause.LEASE] * 4 + [SuspensionCause.APPEND]
ADVANCES_S = (0.0, 0.01, 0.05, 0.06, 0.3, 0.5, 1.0, 1.01, 2.0, 5.0, 31.0, 61.0, 130.0)


def random_run(random: Random) -> Driver:
    """A run of at most four nodes, with any settings that matter to the rules."""
    minimum = random.randint(1, 3)
    maximum = random.randint(minimum, 4)
    return Driver(
        min=minimum,
        max=maximum,
        expected=random.choice([None, None, random.randint(minimum, maximum)]),
        restarts=random.choice([0, 1, 3, None, None]),
        mass_min=random.choice([1, 2, 2, 9]),
        manual_commit=random.random() < 0.5,
        manual_marks=random.random() < 0.5,
    )


def walk(
    seed: int, steps: int = 150, *, has_operator: bool = False, has_witnesses: bool = False
) -> Driver:
    """A run after so many steps. `has_operator`: somebody gives orders meanwhile.

    `has_witnesses`: nodes are asked whether the hosts of others answer, and say anything.
    """
    random = Random(seed)
    operator, witness = Random(f"{seed}/operator"), Random(f"{seed}/witness")
    agrees = Random(f"{seed}/agrees")
    driver = random_run(random)
    if has_witnesses:
        driver.hosts = {name: f"10.0.0.{witness.randint(1, 5)}" for name in NAMES}
    over = 0
    while steps > 0 and over < 20:
        steps -= 1
        over += driver.phase is Phase.CLOSED or driver.run.deposed
        if has_operator and operator.random() < 0.06:
            order_something(driver, operator)
        if has_witnesses and witness.random() < 0.3:
            miss_or_testify(driver, witness)
        if has_operator and agrees.random() < 0.2:
            agree_on_something(driver, agrees)
        stride(driver, random)
    return driver


def order_something(driver: Driver, random: Random) -> None:
    """Something that an operator might do."""
    deed = random.choice(["drain", "drain", "evict", "admit", "scale", "scale"])
    if deed == "scale":
        least = random.randint(1, 3)
        driver.scale(least, random.randint(least, 4))
        return
    # Names of `EVICTED` are the only ones that may be out for good.
    name = random.choice(EVICTED if deed in ("evict", "admit") else NAMES)
    if deed == "admit":
        driver.admit(name)
        return
    member = driver.run.roster.get(name)
    getattr(driver, deed)(token_of(member.id) if member is not None else name)


def miss_or_testify(driver: Driver, random: Random) -> None:
    """Heartbeats are missing, or a witness says something about a host."""
    member = driver.run.roster.get(random.choice(NAMES))
    if member is None:
        return
    questions = [each.question for _, each in driver.effects if isinstance(each, do.AskWitness)]
    if questions and random.random() < 0.7:
        said = random.choice([*HostReport, HostReport.NOT_ANSWERED])
        driver.testify(token_of(member.id), random.choice(questions[-4:]), said)
    else:
        driver.missed(token_of(member.id))


def agree_on_something(driver: Driver, random: Random) -> None:
    """Members of the round take part, drain, and promise; mostly as real ones do."""
    if driver.phase not in (Phase.ACTIVE, Phase.SUSPENDED) and random.random() < 0.9:
        return
    names = [m.name for m in driver.run.roster if m.state is MemberState.ACTIVE]
    names = names if random.random() < 0.8 else [random.choice(NAMES)]
    agreement = driver.run.agreement
    for name in names:
        member = driver.run.roster.get(name)
        token = token_of(member.id) if member is not None else name
        is_asked = member is not None and member.id in agreement.taking_part and agreement.is_asked
        if is_asked or (
            driver.phase not in (Phase.ACTIVE, Phase.SUSPENDED) and random.random() < 0.5
        ):
            # Always the same: a promise is never taken back.
            driver.promise(token, step=(7 * ord(name) + driver.run.number) % 6)
        elif random.random() < 0.3:
            driver.draining(token, left_s=random.choice([0.0, 1.0, 20.0]))
        else:
            driver.take_part(token)


def stride(driver: Driver, random: Random) -> None:
    """One step."""
    draw = random.random()
    if draw < 0.55:
        _live_on(driver, random, random.choice(NAMES))
    elif draw < 0.75:
        driver.advance(random.choice(ADVANCES_S))
    elif draw < 0.82:
        driver.step(strange_event(random))
    elif draw < 0.85 and driver.said:
        driver.step(random.choice(driver.said[-30:]))
    elif draw < 0.88 and driver.fired:
        driver.step(on.TimerFired(random.choice(driver.fired)))
    elif draw < 0.95:
        random.choice([driver.commit, driver.marks_written])()
    elif draw < 0.97:
        driver.lose_ledger(random.choice(CAUSES))
    elif draw < 0.992:
        driver.restore_ledger(random.choice(CAUSES))
    elif draw < 0.996:
        driver.close()
    else:
        driver.refuse_commit()


def _live_on(driver: Driver, random: Random, name: str) -> None:
    """Something that a real node might do next."""
    member = driver.run.roster.get(name)
    if member is None:
        driver.join(name + "'" * random.randint(0, 2))
        return
    token = token_of(member.id)
    if random.random() < 0.05:
        driver.attach(token + "'")
    elif member.reachability is not Reachability.CONNECTED:
        deeds = ["attach", "heard", "answer", "disconnect", "leave", "ready"]
        _do(driver, random.choice(deeds), token)
    elif member.state is MemberState.ACTIVE and driver.phase is Phase.ACTIVE:
        deeds = ["", "", "done", "done", "fail", "disconnect", "silent", "depart", "leave", "ready"]
        _do(driver, random.choice([*deeds, "stacks", "progress"]), token, random)
    elif member.state in (MemberState.IDLE, MemberState.ACTIVE):
        deeds = ["ready", "ready", "ready", "ready", "answer", "silent", "disconnect", "done"]
        _do(driver, random.choice([*deeds, "fail", "depart"]), token, random)
    else:
        _do(driver, random.choice(["", "", "disconnect", "silent", "leave", "depart"]), token)


def _do(driver: Driver, deed: str, token: str, random: Random | None = None) -> None:
    if deed == "disconnect":
        driver.disconnect_if_linked(token)
    elif deed == "fail":
        kind = random.choice(list(FailureKind)) if random else FailureKind.EXCEPTION
        driver.fail(token, kind=kind)
    elif deed == "stacks":
        driver.stacks(token)
    elif deed == "progress":
        timeout_s = random.choice([0.5, 2.0, None]) if random else None
        driver.progress(token, timeout_s=timeout_s)
    elif deed:
        getattr(driver, deed)(token)


def strange_event(random: Random) -> on.Event:
    """An event about a node, a round or a connection that may not exist."""
    node = NodeId(random.choice(NAMES), random.randint(1, 3))
    number = random.randint(-1, 9)
    return random.choice(
        [
            on.NodeReady(node, number, Address("host", 1), 1),
            on.WorkerFailed(node, number, Failure(FailureKind.SIGNAL, "signal", signal=9)),
            on.NodeDone(node, number),
            on.ConnectionLost(node, number),
            on.NodeSilent(node, 5.0 + max(0, number) * 10),
            on.NodeDeparting(node, "a reason"),
            on.NodeLeft(node, "a reason"),
            on.ProbeAnswered(node),
            on.NodeHeard(node),
            on.NodeProgressed(node, Progress(number, None, 3.0, 60.0)),
            on.StacksTold(node, 1, None, ()),
            on.StoreLost(number, "its log was removed"),
        ]
    )
