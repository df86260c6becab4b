"""A node drains: all workers of its round agree on the step after which it leaves (R14).

The node is going to leave, and its round goes on. All members are told, and asked for a promise:
the last step that one of their workers has passed. No worker passes a later step before the
decision. The step S is the one after the highest promise. It is written to the ledger before any
member is told (R14), so a successor tells the same one. Every worker then stops at S.

A member is asked only if all members take part, because the others would wait in vain. `agreement`
keeps who drains, who takes part, and the promises; the functions below are the handlers and the
rule. This file must not decide when a draining node leaves: the node does, at S or at its deadline.
"""

from __future__ import annotations

from itertools import islice
from typing import Final

from rallypoint.core import effects as do
from rallypoint.core import events as on
from rallypoint.core import hangs
from rallypoint.core.agreement import NO_STEP
from rallypoint.core.effects import TimerKind
from rallypoint.core.printable import shortened
from rallypoint.core.roster import Bucket, Member
from rallypoint.core.state import MembershipState
from rallypoint.core.values import NAMES_SHOWN_MAX, Drain, Phase

_IN_ROUND: Final = Bucket.IN_ROUND
REASON_CHARACTERS_MAX: Final = 200
CLEAR_S: Final = 1.0
"""How long after the last member has attached a successor waits for word that all take part; and
how long further nodes that drain are collected, before all members are told of them."""


def on_takes_part(run: MembershipState, event: on.NodeTakesPart) -> None:
    """All workers of the node ask at each step whether to stop: `rules` may ask for promises."""
    member = _of_round(run, event, event.round)
    if member is not None:
        run._agreement.taking_part[member.id] = None


def on_draining(run: MembershipState, event: on.NodeDraining) -> None:
    """The node is going to leave, and its workers go on until then."""
    member = _of_round(run, event, event.round)
    # R11: a repeat changes nothing.
    if member is None or member.id in run._agreement.draining:
        return
    agreement = run._agreement
    is_first = not agreement.draining
    reason = shortened(event.reason, REASON_CHARACTERS_MAX)
    agreement.drains(member.id, run._now_s + event.left_s, reason)
    if is_first or not agreement.is_told:
        # `advance` asks for promises in the same message, if all members take part.
        agreement.is_told = False
        return
    # A scheduler may signal thousands of nodes at once: all are told of the others together.
    run._do(do.TellDrain(run.number, drain_of(run), member.id))
    agreement.has_news = True
    look_later(run)


def on_promised(run: MembershipState, event: on.StepPromised) -> None:
    """No worker of the node passes a later step than this before the decision."""
    member = _of_round(run, event, event.round)
    if member is not None:
        agreement = run._agreement
        # R14: the highest counts, whoever promised it.
        agreement.highest = max(agreement.highest, event.step)
        agreement.promises[member.id] = None


def _of_round(run: MembershipState, event: on.SignOfLife, number: int) -> Member | None:
    """The member, if it is in this round, and the round is active."""
    member = run.roster.living(event.node)
    # R4: a report about another round says nothing about this one.
    if member is None or member.bucket is not _IN_ROUND or number != run.number:
        return None
    return member if run.phase_of_work is Phase.ACTIVE else None


def advance(run: MembershipState) -> None:
    """The rule of the active round: tell all members, ask them, and decide."""
    agreement = run._agreement
    in_round = run.roster.count(_IN_ROUND)
    # R14: only if nobody waits in vain.
    if not agreement.is_asked and len(agreement.taking_part) == in_round:
        agreement.is_asked, agreement.is_told = True, False
    # R14: a node that is told that the others do not take part leaves, and steps are lost.
    is_news = not agreement.is_told and bool(agreement.draining)
    if is_news and (agreement.is_asked or is_clear(run)):
        agreement.is_told = True
        run._do(do.TellDrain(run.number, drain_of(run)))
    # R14: a step that was decided stays.
    if agreement.step is not None:
        return
    if not agreement.draining:
        # R14: the node that drained has finished. Who has promised waits, and goes on now.
        if is_clear(run):
            decide(run, NO_STEP)
    # R14: every member has promised to pass no later step.
    elif agreement.is_asked and len(agreement.promises) == in_round:
        # R14: no worker has passed it.
        decide(run, agreement.highest + 1)


def decide(run: MembershipState, step: int) -> None:
    run._agreement.step = step
    run._marking.stepped(step, run._now_s)
    if not run._has_successor:
        tell_step(run)


def is_taken_over(run: MembershipState) -> bool:
    """Whether members of the round may have said something to another coordinator."""
    return run.number == run._takeover.number


def is_clear(run: MembershipState) -> bool:
    """Whether all members could say if they take part, and drain. Asks again in CLEAR_S if not."""
    if not is_taken_over(run) or run._agreement.is_clear:
        return True
    look_later(run)
    return False


def look_later(run: MembershipState) -> None:
    if not run._timers.is_set(TimerKind.DRAIN):
        run._do(run._timers.set(TimerKind.DRAIN, CLEAR_S, round_number=run.number))


def timer_fired(run: MembershipState) -> None:
    """CLEAR_S have passed: after a takeover, since the last member has attached."""
    agreement = run._agreement
    # R14: who has yet to attach has said nothing. It attaches, or is lost.
    agreement.is_clear = hangs.are_heard(run)
    if agreement.has_news:
        agreement.has_news = agreement.is_told = False


def step_in_ledger(run: MembershipState) -> None:
    """The ledger has the marks: it may have the step, which is told then."""
    agreement = run._agreement
    # R14: in the ledger before it is told.
    if agreement.step is not None and not agreement.is_step_told and run._marking.has_step:
        tell_step(run)


def tell_step(run: MembershipState) -> None:
    agreement = run._agreement
    assert agreement.step is not None
    agreement.is_step_told = True
    run._do(do.TellStep(run.number, agreement.step))


def tell_again(run: MembershipState, member: Member) -> None:
    """The member has attached, here or again: it may not have heard of the drain or the step."""
    agreement = run._agreement
    if run.phase_of_work is not Phase.ACTIVE or member.bucket is not _IN_ROUND:
        return
    # R14: what it says follows.
    if run._timers.is_set(TimerKind.DRAIN) and is_taken_over(run):
        run._do(run._timers.set(TimerKind.DRAIN, CLEAR_S, round_number=run.number))
    if agreement.draining and agreement.is_told:
        run._do(do.TellDrain(run.number, drain_of(run), member.id))
    # R14: only a step that the ledger has.
    if agreement.is_step_told:
        assert agreement.step is not None
        run._do(do.TellStep(run.number, agreement.step, member.id))


def drain_of(run: MembershipState) -> Drain:
    """Who drains, for the members."""
    agreement = run._agreement
    ends_s, reason = agreement.soonest()
    # Of thousands only a few are named.
    names = tuple(node.name for node in islice(agreement.draining, NAMES_SHOWN_MAX))
    left_s = max(0.0, ends_s - run._now_s)
    # With NO_STEP no worker stops any more, so nobody waits for that.
    is_asked = agreement.is_asked and agreement.step != NO_STEP
    return Drain(names, len(agreement.draining), left_s, reason, is_asked)
