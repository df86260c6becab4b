"""A round whose workers do not advance: the nodes are asked for stacks, and then it ends.

`progress` keeps the reports and the deadline, and `stacks` finds who stands where.
"""

from __future__ import annotations

from typing import Final

from rallypoint.core import cooling, rounds, stacks
from rallypoint.core import effects as do
from rallypoint.core import events as on
from rallypoint.core.printable import shortened
from rallypoint.core.progress import AGAIN_S
from rallypoint.core.reasons import duration, first_names
from rallypoint.core.roster import Bucket, Member
from rallypoint.core.state import MembershipState
from rallypoint.core.values import (
    TEXT_LENGTH_MAX,
    Change,
    ChangeKind,
    Failure,
    FailureKind,
    NodeId,
    Phase,
)

LINES_KEPT: Final = 40
"""How many lines of the guilty worker's stack the cause has: the innermost frames."""
LINE_CHARACTERS_MAX: Final = 300


def on_progressed(run: MembershipState, event: on.NodeProgressed) -> None:
    """Note how far the workers of a node are, and watch the deadline."""
    if note(run, event.node, event) is None:
        return
    progress = run._progress
    if progress.timeout_s is None or run.suspension:
        return
    # R15: a worker has advanced after all.
    if progress.is_asking and progress.left_s(run._now_s) > 0:
        progress.stop_asking()
        run._do(progress.watch(progress.left_s(run._now_s)))
    elif not progress.is_watched:
        run._do(progress.watch(max(0.0, progress.left_s(run._now_s))))


def note(run: MembershipState, node: NodeId, event: on.NodeProgressed) -> Member | None:
    """Note a report, if it is about the present round. The member; None if it is not."""
    member = run.roster.living(node)
    # R4: a report about another round says nothing about this one.
    if member is None or not event.progress.round == run.number == member.last_round:
        return None
    if member.bucket is not Bucket.IN_ROUND or run.phase_of_work is not Phase.ACTIVE:
        return None
    run._progress.note(member.name, event.progress, run._now_s)
    return member


def is_quick(run: MembershipState, event: on.NodeProgressed, now_s: float) -> bool:
    """Note a report to which nothing else follows. False: it needs a step of the core.

    Thousands of nodes report in each second. Nearly all of these reports only move the deadline,
    and its timer looks at that when it fires.
    """
    progress = run._progress
    if progress.is_asking or not progress.is_watched or event.progress.round != progress.round:
        return False
    member = run.roster.living(event.node)
    if member is None or member.bucket is not Bucket.IN_ROUND:
        return False
    progress.note(member.name, event.progress, now_s)
    return True


def look(run: MembershipState) -> None:
    """The deadline's timer has fired."""
    progress = run._progress
    if run.phase_of_work is not Phase.ACTIVE or progress.round != run.number:
        return
    if progress.timeout_s is None:
        return
    left_s = progress.left_s(run._now_s)
    # R15: a node that cannot be heard may have workers that advance. It is lost, or heard again;
    # then all are asked, also if they were before.
    if not are_heard(run):
        progress.stop_asking()
        run._do(progress.watch(AGAIN_S))
    elif progress.is_asking:
        # R15: whoever has not answered by now is named as silent.
        conclude(run)
    # R15: a worker has advanced since the timer was set.
    elif left_s > 0:
        run._do(progress.watch(left_s))
    # R15: the workers may wait for the step at which a draining node leaves. It leaves in time.
    elif (drains_s := drains_for_s(run)) > 0:
        run._do(progress.watch(drains_s))
    else:
        names = [member.name for member in run.roster.members(Bucket.IN_ROUND)]
        run._do(progress.ask(names), do.AskStacks(progress.serial, run.number))


def drains_for_s(run: MembershipState) -> float:
    """How long, at most, a node of the round still drains, in seconds; 0 or less if none does."""
    ends = (due_s for due_s, _ in run._agreement.draining.values())
    return max(ends, default=run._now_s) - run._now_s


def are_heard(run: MembershipState) -> bool:
    """Whether every member of the round can be heard."""
    # R15: a node on standby that nobody hears has no workers, and delays nothing.
    return all(member.bucket is not Bucket.IN_ROUND for member in run.roster.troubled())


def on_stacks_told(run: MembershipState, event: on.StacksTold) -> None:
    """A node has told where its workers stand."""
    progress = run._progress
    member = run.roster.living(event.node)
    # R15: an answer to an earlier question says where the workers stood then.
    if member is None or not progress.is_asking or event.serial != progress.serial:
        return
    if event.progress is not None:
        on_progressed(run, on.NodeProgressed(event.node, event.progress))
    if member.name not in progress.unanswered:
        return  # It has answered before, or a worker has advanced after all.
    progress.told[member.name] = event.stacks
    del progress.unanswered[member.name]
    if not progress.unanswered:
        conclude(run)


def go_on(run: MembershipState) -> None:
    """The run is not SUSPENDED any more. The deadline has the time that it had left."""
    progress = run._progress
    progress.stop_asking()
    if progress.timeout_s is not None and run.phase_of_work is Phase.ACTIVE:
        run._do(progress.watch(max(0.0, progress.left_s(run._now_s))))


def conclude(run: MembershipState) -> None:
    """End the round: its workers hang. The guilty one is the odd one out, if there is one."""
    change = verdict(run)
    groups = stacks.grouped(run._progress.told)
    if groups:
        run._do(do.KeepStacks(groups))
    rounds.break_round(run, change)
    rounds.charge(run, change)
    cooling.blamed(run, change)


def verdict(run: MembershipState) -> Change:
    """Why the round ends, with who stands where."""
    progress = run._progress
    still_s = progress.still_s(run._now_s)
    where = stacks.summary(progress.told, progress.unanswered)
    message = shortened(f"no worker has advanced for {duration(still_s)}: {where}", TEXT_LENGTH_MAX)
    odd = stacks.odd_one(progress.told, are_all=not progress.unanswered)
    node, guilty = odd if odd is not None else ("", None)
    # A node that does not answer while others do may be the one that hangs.
    names = (node,) if node else tuple(progress.unanswered if progress.told else ())
    failure = Failure(
        FailureKind.EXCEPTION,
        message,
        rank=guilty.rank if guilty is not None else None,
        local_rank=guilty.local_rank if guilty is not None else None,
        last_lines=lines_of(guilty.text) if guilty is not None else (),
        is_hang=True,
    )
    return Change(
        ChangeKind.WORKER_FAILED,
        run.number,
        first_names(names),
        len(names),
        detail=message,
        since_s=still_s,
        failure=failure,
        charged=True,
    )


def lines_of(text: str) -> tuple[str, ...]:
    """The first lines of a stack's text: the innermost frames of its main thread."""
    lines = stacks.lines_of(text)
    return tuple(shortened(line, LINE_CHARACTERS_MAX) for line in lines[:LINES_KEPT])
