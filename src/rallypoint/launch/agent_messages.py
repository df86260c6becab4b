"""The texts of the agent, made from values. Pure.

Texts that other parts use as well are in core/reasons.py.
"""

from __future__ import annotations

import signal

from rallypoint.client.node import Round
from rallypoint.client.reaching import Unreached
from rallypoint.core import reasons
from rallypoint.core.addresses import OwnAddress
from rallypoint.core.printable import escaped
from rallypoint.core.values import Address, Change, CloseRecord, FailureKind


def of_check(unfit: str, again_s: float | None) -> str:
    """This node's check has failed, or has passed after it failed."""
    if not unfit:
        return "the check of this node has passed: it may be in a round again"
    again = "" if again_s is None else f"; it is repeated in {again_s:g} s"
    return f"warning: {reasons.unfit(unfit)}; this node stays out while there are others{again}"


def of_let_in(unfit: str) -> str:
    """A round has begun with this node, though its check has failed."""
    return f"warning: {reasons.unfit(unfit)}; it is in this round for want of others"


def of_round(found: Round) -> str:
    """A round has begun: this node's place in it."""
    return reasons.describe_round(found.head, found.seat)


def of_change(change: Change, before: Change | None) -> str:
    """A round has ended, or its cause is known; "" if the text for `before` is the same."""
    return reasons.describe_end_of_round(change, before)


def of_departure(number: int, grace_s: float, left_s: float | None = None) -> str:
    """A signal ends this node's part. `left_s`: in how many seconds the job ends, if it counts."""
    text = f"{of_leaving(number)}; the workers have {grace_s:.3g} s to stop"
    return text if left_s is None else f"{text}, because the job ends in {left_s:.0f} s"


def of_leaving(number: int) -> str:
    """A signal ends this node's part while it has no workers."""
    return f"got {signal.Signals(number).name}: leaving the run"


def of_drain(reason: str, grace_s: float | None = None) -> str:
    """An operator ends this node's part. `grace_s`: for its workers, if it has any."""
    text = f"leaving the run: {reason}"
    return text if grace_s is None else f"{text}; the workers have {grace_s:.3g} s to stop"


def of_draining(reason: str, left_s: float) -> str:
    """The node is going to leave; its round goes on until all agree on a last step."""
    return f"leaving within {left_s:.3g} s, at a step on which all workers agree: {reason}"


def of_loss(why: str, orphan_left_s: float | None) -> str:
    """The coordinator is lost for good. `orphan_left_s`: when the workers are stopped, if ever."""
    text = f"warning: {why}; the workers continue, but no other round can form"
    if orphan_left_s is None:
        return text
    left = reasons.duration(orphan_left_s)
    return f"{text}. This node stops them in {left} unless they finish before (setting: orphan)"


def of_end(run_id: str, close: CloseRecord) -> str:
    """The outcome and the cause, with the last lines of the failed worker. Equal on all nodes."""
    return reasons.describe_end_of_run(run_id, close)


def of_meeting(found: Round, own: OwnAddress | None, close: CloseRecord) -> str:
    """Where the workers met, if the run failed because they could not connect there; else "".

    `own`: the address where others reach this node, if known.
    """
    failure = close.cause.failure if close.cause is not None else None
    is_of_network = failure is not None and failure.kind is FailureKind.COMMUNICATION
    if not is_of_network or found.head.nodes == 1:
        return ""
    is_here = found.seat.node_rank == 0
    told_by = "this node" if is_here else "the node of rank 0"
    own_interface = own.interface if is_here and own is not None else ""
    by = f"{told_by} by its interface {own_interface}" if own_interface else told_by
    return (
        f"hint: the workers met at {found.head.bootstrap}, an address of {by}; if the others "
        "cannot reach it, give that node another one with --interface or --local-addr"
    )


def of_unreached(unreached: Unreached) -> str:
    """This node's workers cannot connect to rank 0."""
    by = f" from {unreached.interface}" if unreached.interface else ""
    return (
        f"error: this node cannot reach rank 0 at {unreached.address}{by}: {unreached.problem}; "
        "see --port-range, --interface"
    )


def of_walled(rank_0: Address, walled: Unreached) -> str:
    """This node's workers can connect to rank 0, but not to the ports that a library opens."""
    by = f" from {walled.interface}" if walled.interface else ""
    return (
        f"warning: this node reaches rank 0 at {rank_0}, but not at {walled.address}{by}: "
        f"{walled.problem}. gloo and NCCL listen on such ports, which the kernel chooses "
        "(net.ipv4.ip_local_port_range), outside of --port-range: let the hosts reach each other "
        "there, or at all ports by another --interface, or set that range to ports that are open"
    )


def of_strangers(ranks: tuple[int, ...]) -> str:
    """With --keep-workers, these workers have not joined."""
    return (
        f"--keep-workers: {_of_ranks(ranks)} not called rallypoint.join, so each round starts new "
        "processes for them, as without this option"
    )


def of_late(ranks: tuple[int, ...], number: int, unwind_s: float) -> str:
    """With --keep-workers, these workers have not left their round in time."""
    return (
        f"warning: {_of_ranks(ranks)} not asked for the next world within {unwind_s:g} s of the "
        f"end of round {number}: stopped, and started again. Leave `with world:` when world.change "
        "is set, with rallypoint.torch.process_group around collectives; or give more time: --set "
        "unwind=30s"
    )


def _of_ranks(ranks: tuple[int, ...]) -> str:
    shown = ", ".join(map(str, ranks))
    return f"rank {shown} has" if len(ranks) == 1 else f"ranks {shown} have"


def of_unkillable(left: tuple[int, ...]) -> str:
    """The workers of these local ranks have survived SIGKILL."""
    return (
        f"warning: workers of local rank {', '.join(map(str, left))} cannot be killed: "
        "they hang in the kernel (a driver or a file system)"
    )


def shown(text: str) -> str:
    """The text without terminal control characters, as parts come from other machines."""
    return escaped(text.expandtabs(), lines=True)
