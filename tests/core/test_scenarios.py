"""The scenarios in tests/core/scenarios: commands, `----`, and what the run does about them.

They are documentation, and are compared as text. `make rewrite-scenarios` writes the results again;
read the diff to see whether they are right. The commands:

    run min=2 max=4 ...           a run, with the settings of driver._Settings; commit=manual: the
                                  ledger answers only to `commit`; successor=yes: what another
                                  coordinator has to know is written to the ledger
    attach a b, ready a b, join a b (both), leave a, depart a, done a, disconnect a, die a (its
    kernel closes its connection), silent a 5, heard a, answer a, fail a kind=exception, close
                                  what nodes do; `a'` is the second start of node a. `attach` of a
                                  member resumes it; `ready a leaving=1` repeats;
                                  `attach a stop=20` takes 20 s to stop its workers, and not 5
    progress a step=3 ago=0 timeout=60, stacks a 0 all_reduce
                                  what a node says of its workers: how far they are, and where the
                                  one of that rank stands
    drain a, evict a, scale 2:6   what an operator does; `attach a older=yes` cannot be drained
    commit, commit refused, ledger lost cause=append, ledger restored cause=append
                                  what the ledger does; the cause is the lease if none is given
    advance 1.5                   time passes, and timers fall due
    waiting, state                what can be asked

The results are the effects in words, each with its time if that is not the command's; then the
phase. A timer that is set is shown as `in 30 s: last_call`.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from rallypoint.core import effects as do
from rallypoint.core.stacks import WorkerStack
from rallypoint.core.suspension import SuspensionCause
from rallypoint.core.values import (
    Change,
    CloseRecord,
    MemberState,
    Phase,
    Reachability,
    RoundRecord,
)
from tests.core.driver import Driver, token_of

SCENARIOS = sorted((Path(__file__).parent / "scenarios").glob("*.txt"))


@pytest.mark.parametrize("path", SCENARIOS, ids=lambda path: path.stem)
def test_scenario(path: Path, pytestconfig: pytest.Config) -> None:
    written = path.read_text(encoding="utf-8")
    played = play(written)
    if pytestconfig.getoption("--rewrite-scenarios"):
        path.write_text(played, encoding="utf-8")
    else:
        assert played == written


def play(text: str) -> str:
    """The same scenario with the results of the code."""
    driver: Driver | None = None
    blocks: list[str] = []
    for commands in _blocks(text):
        result: list[str] = []
        for command in commands:
            if not command or command.startswith("#"):
                continue
            words, options = _parse(command)
            if words[0] == "run":
                driver = _new_run(options)
                continue
            assert driver is not None, "a scenario begins with `run`"
            result += _play(driver, words, options)
        if driver is not None and result[-1:] != [""]:
            result.append(_phase(driver))
        blocks.append("\n".join([*commands, "----", *filter(None, result)]))
    return "\n\n".join(blocks) + "\n"


def _blocks(text: str) -> Iterator[list[str]]:
    """The commands of each block, with their comments; results are dropped."""
    commands: list[str] = []
    is_result = False
    for line in text.splitlines():
        if line == "----":
            yield commands
            commands, is_result = [], True
        elif not line:
            is_result = False
            if commands:
                commands.append(line)
        elif not is_result:
            commands.append(line)
    assert not commands, f"commands without a `----` at the end: {commands}"


def _parse(command: str) -> tuple[list[str], dict[str, str]]:
    words = command.split()
    options = dict(word.split("=", 1) for word in words if "=" in word)
    return [word for word in words if "=" not in word], options


def _new_run(options: dict[str, str]) -> Driver:
    manual = options.pop("commit", "auto") == "manual"
    has_successor = options.pop("successor", "no") == "yes"
    return Driver(
        manual_commit=manual,
        has_successor=has_successor,
        **{key: _value(each) for key, each in options.items()},
    )


def _value(text: str) -> Any:
    if text == "none":
        return None
    if "," in text:
        return tuple(int(each) for each in text.split(",") if each)
    return float(text) if "." in text else int(text)


def _play(driver: Driver, words: list[str], options: dict[str, str]) -> list[str]:
    began_s = driver.now_s
    match words:
        case ["attach", *nodes] if list(options) == ["stop"]:
            driver.attach(*nodes, stop_s=float(options["stop"]))
        case ["attach", *nodes] if list(options) == ["older"]:
            driver.attach(*nodes, takes_orders=False)
        case ["scale", numbers]:
            least, _, most = numbers.partition(":")
            driver.scale(int(least), int(most))
        case ["attach", *nodes] if options:
            other = Driver(**{key: _value(each) for key, each in options.items()})
            driver.attach(*nodes, settings=other.settings)
        case ["ready", *nodes]:
            leaving = int(options["leaving"]) if "leaving" in options else None
            driver.ready(*nodes, leaving=leaving, workers=int(options.get("workers", 1)))
        case ["draining", *nodes, seconds]:
            driver.draining(*nodes, left_s=float(seconds))
        case ["promise", *nodes, last]:
            driver.promise(*nodes, step=int(last))
        case ["take-part", *nodes]:
            driver.take_part(*nodes)
        case ["fail", *nodes]:
            code = int(options.pop("code")) if "code" in options else None
            driver.fail(*nodes, code=code, **options)
        case ["progress", *nodes]:
            step = int(options["step"]) if "step" in options else None
            ago_s, timeout_s = float(options.get("ago", 0)), float(options.get("timeout", 60))
            driver.progress(*nodes, step=step, ago_s=ago_s, timeout_s=timeout_s)
        case ["stacks", node, rank, place]:
            waits = place == "all_reduce"
            driver.stacks(node, WorkerStack(int(rank), place=place, is_waiting=waits))
        case ["silent", *nodes, seconds]:
            driver.silent(*nodes, silent_s=float(seconds))
        case ["advance", seconds]:
            driver.advance(float(seconds))
        case ["commit", "refused"]:
            driver.refuse_commit()
        case ["ledger", "lost"]:
            driver.lose_ledger(SuspensionCause(options.get("cause", "lease")))
        case ["ledger", "restored"]:
            driver.restore_ledger(SuspensionCause(options.get("cause", "lease")))
        case ["waiting"]:
            return [str(driver.run.waiting(driver.now_s)), ""]
        case ["state"]:
            return [*_state(driver), ""]
        case [
            "attach"
            | "join"
            | "leave"
            | "depart"
            | "done"
            | "disconnect"
            | "die"
            | "drain"
            | "evict"
            | "admit"
            | "heard"
            | "answer" as command,
            *nodes,
        ]:
            getattr(driver, command)(*nodes)
        case ["close" | "commit" as command]:
            getattr(driver, command)()
        case _:
            raise ValueError(f"no such command: {' '.join(words)}")
    return [_line(effect, time_s - began_s) for time_s, effect in driver.take()]


def _line(effect: do.Effect, after_s: float) -> str:
    when = f"+{after_s:g} s  " if after_s > 1e-9 else ""
    return when + _words(effect)


def _words(effect: do.Effect) -> str:
    match effect:
        case do.SetTimer(timer=timer, delay_s=delay_s):
            return f"in {delay_s:g} s: {timer.kind} {timer.name}".rstrip()
        case do.Welcome(node=node, resumed=resumed, standing=standing):
            return f"welcome {token_of(node)}{_standing(standing, resumed)}"
        case do.Refuse(refusal=refusal):
            return f"refuse ({refusal.code}): {refusal.message}"
        case do.Supersede(node=node, refusal=refusal):
            return f"supersede {token_of(node)}: {refusal.message}"
        case do.Commit(record=RoundRecord() as record):
            return f"commit round {record.head.number}: {_members(record)}"
        case do.Commit(record=CloseRecord() as record):
            return f"commit the end: {record}"
        case do.Publish(record=record):
            return f"publish round {record.head.number}: {_members(record)}"
        case do.Break(change=change):
            open_case = "" if change.confirmed else " (the cause is not known yet)"
            return f"break round {change.round}: {_change(change)}{open_case}"
        case do.Verdict(change=change):
            charged = "charged" if change.charged else "not charged"
            return f"verdict on round {change.round}, {charged}: {_change(change)}"
        case do.AskStacks(round=number):
            return f"ask for the stacks of round {number}"
        case do.Announce(close=close):
            return f"announce the end: {close}"
        case do.ProbeRound(round=number):
            return f"probe round {number}"
        case do.ProbeNode(node=node):
            return f"probe {token_of(node)}"
        case do.Notify(node=node, reason=reason):
            why = f" ({reason})" if reason else ""
            return f"tell {token_of(node)}: standby{why}"
        case do.StayOut(name=name, reason=reason, left_s=left_s):
            return f"keep {name} out for {left_s:g} s: {reason}"
        case do.KeepStacks(groups=groups):
            return f"keep the stacks: {'; '.join(each.in_words for each in groups)}"
        case do.LetBackIn(node=node, reason=reason):
            return f"let {token_of(node)} back in: {reason}"
        case do.Forgive(name=name):
            return f"forgive {name}"
        case do.Forget(node=node, reason=reason):
            return f"forget {token_of(node)}: {reason}"
        case do.AskToLeave(order=order, is_repeat=is_repeat):
            again = " again" if is_repeat else ""
            return f"ask {token_of(order.node)}{again} to leave: {order}"
        case do.Evict(node=node, refusal=refusal):
            return f"evict {token_of(node)} ({refusal.code}): {refusal.message}"
        case do.Readmit(order=order):
            return f"admit {order.node.name} again: {order}"
        case do.Rescale(scale=scale):
            return str(scale)
        case do.WriteMarks(orders=orders):
            evicted = [each.node.name for each in orders.evictions]
            drained = [each.node.name for each in orders.drains]
            return f"write marks: drained {drained}, evicted {evicted}, {orders.scale}"
        case do.TellDrain(round=number, drain=drain, to=to):
            who = f"{token_of(to)}" if to is not None else f"round {number}"
            asked = ", and ask for promises" if drain.is_asked else ""
            drains = ", ".join(drain.nodes)
            return f"tell {who}: {drains} will leave in {drain.left_s:g} s: {drain.reason}{asked}"
        case do.TellStep(round=number, step=step, to=to):
            who = f"{token_of(to)}" if to is not None else f"round {number}"
            return f"tell {who}: stop at step {step}"
        case do.StepDown(reason=reason):
            return f"step down: {reason}"
    raise AssertionError(effect)


def _standing(standing: do.Standing, resumed: bool) -> str:
    told = ["resumed"] if resumed else []
    told += [f"in round {standing.round}"] if standing.round else []
    told += ["ready"] if standing.ready and not standing.standby else []
    told += ["standby"] if standing.standby else []
    told += [_change(standing.change)] if standing.change else []
    return f" ({', '.join(told)})" if told else ""


def _change(change: Change) -> str:
    since = f", {change.since_s:g} s ago" if change.since_s else ""
    return str(change) + since


def _members(record: RoundRecord) -> str:
    return " ".join(row.name for row in record.members)


def _phase(driver: Driver) -> str:
    run = driver.run
    match run.phase:
        case Phase.ACTIVE:
            assert run.round is not None
            return f"= active in round {run.number}: {_members(run.round)}"
        case Phase.SUSPENDED:
            return f"= suspended: {run.suspended_reason}"
        case Phase.CLOSED:
            return "= closed"
    return f"= {run.phase}"


def _state(driver: Driver) -> list[str]:
    lines = []
    for member in driver.run.roster:
        standby = driver.run.is_standby(member)
        state = "standby" if standby else str(member.state)
        passive = " (passive)" if member.state is MemberState.IDLE else ""
        reach = "" if member.reachability is Reachability.CONNECTED else f", {member.reachability}"
        lines.append(f"{token_of(member.id)}: {state}{passive}{reach}")
    return lines
