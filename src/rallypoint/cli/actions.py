"""`rallypoint close`, `scale`, `drain`, `evict`, `admit` and `stacks`: what an operator does."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from typing import Annotated, Any

import typer

from rallypoint import settings
from rallypoint.cli import answers, api, output, run_locator
from rallypoint.cli.common import EndpointOption, TokenFileOption, endpoint_of, keys_of
from rallypoint.cli.events import known_events
from rallypoint.core.printable import size_of
from rallypoint.endpoints import Endpoint
from rallypoint.errors import RunClosedError, UsageError

RunArgument = Annotated[str, typer.Argument(metavar="RUN", help="The run's id.")]
NodeArgument = Annotated[
    str,
    typer.Argument(
        metavar="NODE", help="The node's name; or its host or rank, if no other node has it."
    ),
]
YesOption = Annotated[bool, typer.Option("--yes", "-y", help="Do not ask on a terminal.")]
ReasonOption = Annotated[
    str, typer.Option("--reason", metavar="TEXT", help="Shown to every node, and in events.")
]


def add_to(app: typer.Typer) -> None:
    """Add the commands."""
    app.command("close")(close)
    app.command("scale")(scale)
    app.command("drain")(drain)
    app.command("evict")(evict)
    app.command("admit")(admit)
    app.command("stacks")(stacks)


def close(
    run_id: RunArgument,
    endpoint: EndpointOption = None,
    token_file: TokenFileOption = None,
    reason: ReasonOption = "closed by request",
    yes: YesOption = False,
) -> None:
    """End a run for all its nodes. Their workers stop, and no further round forms."""
    _confirm(yes, f"Close run {run_id!r} for all its nodes?")
    try:
        answer = _act(endpoint, token_file, run_id, "close", {"reason": reason})
        was_closed = bool(answer.get("was_closed"))
    except RunClosedError:
        was_closed = True  # by the ledger; the run has no coordinator any more
    how = "had already ended" if was_closed else "is closed"
    output.tell_result(f"run {_shown(run_id)} {how}")


def scale(
    run_id: RunArgument,
    nnodes: Annotated[
        str, typer.Option("--nnodes", metavar="MIN:MAX", help="How many nodes: N or MIN:MAX.")
    ],
    endpoint: EndpointOption = None,
    token_file: TokenFileOption = None,
    reason: ReasonOption = "",
) -> None:
    """Change how many nodes a run has, while it goes on.

    Nodes that come later with other numbers accept it. With more places, nodes on standby are let
    in. With fewer, the round ends, and nodes without a place are on standby. With fewer nodes than
    the minimum, an active round goes on, and the next one waits.
    """
    known = settings.setting("nnodes")
    wanted = settings.read(known, nnodes, "--nnodes")
    body = {"min_nodes": wanted.min, "max_nodes": wanted.max, "reason": reason}
    answer = _act(endpoint, token_file, run_id, "scale", body)
    size = size_of(answer.get("min_nodes", wanted.min), answer.get("max_nodes", wanted.max))
    what = output.clean(str(answer.get("text") or ""))
    output.tell_result(f"run {_shown(run_id)} is scaled to {output.clean(size)}: {what}")


def drain(
    run_id: RunArgument,
    node: NodeArgument,
    endpoint: EndpointOption = None,
    token_file: TokenFileOption = None,
    reason: ReasonOption = "",
) -> None:
    """Ask a node to leave a run in order. The others form a round without it.

    The node does what it does at SIGTERM: it stops its workers, which have their stop time for
    that, and says goodbye. `rallypoint status` shows it as departing until then. The order
    survives the loss of the coordinator.
    """
    answer = _act(endpoint, token_file, run_id, "drain", {"node": node, "reason": reason})
    name, state = _shown(answer.get("node", node)), str(answer.get("state") or "")
    if state == "done":
        text = f"node {name} has finished its work, and leaves by itself"
    elif answer.get("was_asked"):
        text = f"node {name} was asked to leave before"
    else:
        text = f"node {name} is asked to leave run {_shown(run_id)}"
    output.tell_result(text)


def evict(
    run_id: RunArgument,
    node: NodeArgument,
    endpoint: EndpointOption = None,
    token_file: TokenFileOption = None,
    reason: ReasonOption = "",
    yes: YesOption = False,
) -> None:
    """Take a node out of a run at once, and keep it out.

    The others form a round without it. The node stops its workers and ends with exit code 7. Each
    later start of a node of that name is refused, with the reason, until `rallypoint admit`.
    """
    _confirm(yes, f"Evict node {node!r} from run {run_id!r}?")
    answer = _act(endpoint, token_file, run_id, "evict", {"node": node, "reason": reason})
    name = _shown(answer.get("node", node))
    how = "was evicted before" if answer.get("was_evicted") else "is evicted"
    output.tell_result(f"node {name} {how} from run {_shown(run_id)}")


def admit(
    run_id: RunArgument,
    node: Annotated[
        str, typer.Argument(metavar="NODE", help="The name of the node that was evicted.")
    ],
    endpoint: EndpointOption = None,
    token_file: TokenFileOption = None,
    reason: ReasonOption = "",
) -> None:
    """Lift the eviction of a node, so that it may join the run again.

    The node has ended with exit code 7: start it again.
    """
    answer = _act(endpoint, token_file, run_id, "admit", {"node": node, "reason": reason})
    name = _shown(answer.get("node", node))
    was = output.clean(str(answer.get("was") or ""))
    output.tell_result(f"node {name} may join run {_shown(run_id)} again; it was evicted by {was}")


def stacks(
    run_id: RunArgument,
    node: Annotated[
        str, typer.Argument(metavar="[NODE]", help="One node: its name, host or rank.")
    ] = "",
    endpoint: EndpointOption = None,
    token_file: TokenFileOption = None,
    last: Annotated[
        bool,
        typer.Option("--last", help="Those of the last hang, each of the equal ones once."),
    ] = False,
    json: Annotated[bool, typer.Option("--json", help="The whole answer, as JSON.")] = False,
) -> None:
    """Show where the workers of a run stand: a summary, and the stacks of each.

    It disturbs no worker. The stacks come from faulthandler (of workers that have joined), from
    py-spy where it is installed, or from /proc. With --last, nobody is asked: the events of the run
    have the stacks of its last hang, also after its end. See docs/hangs.md.
    """
    if last:
        if node:
            raise UsageError("--last shows the workers of all nodes", hint="leave NODE out")
        _show_last(endpoint, token_file, run_id, json)
        return
    body = {"node": node} if node else {}
    answer = _act(endpoint, token_file, run_id, "stacks", body)
    if json:
        output.print_json(answer)
        return
    lines = [str(answer.get("summary") or "")]
    for each in answer.get("nodes") or ():
        for worker in each.get("workers") or ():
            text = str(worker.get("text") or "").splitlines()
            lines += ["", _heading(str(each.get("node")), worker), *(f"  {each}" for each in text)]
    print("\n".join(map(output.clean, lines)), flush=True)
    for name in answer.get("silent") or ():
        output.warn(f"node {_shown(name)} has not answered in time")
    for name in answer.get("cannot") or ():
        output.warn(f"node {_shown(name)} cannot be asked: torchrun, or an older release")


def _show_last(endpoint: str | None, token_file: str | None, run_id: str, as_json: bool) -> None:
    """The stacks that the last hang has left in the events."""
    where = endpoint_of(endpoint)
    found = last_hang(known_events(where, keys_of(where, token_file), run_id))
    if as_json:
        output.print_json({"run_id": run_id, **found})
        return
    if not found["stacks"]:
        output.note(f"no round of run {_shown(run_id)} has ended as a hang, as far as is known")
        return
    lines = [str(found["why"])]
    for each in found["stacks"]:
        lines += ["", str(each.get("detail")), *(f"  {line}" for line in each["last_lines"])]
    print("\n".join(map(output.clean, lines)), flush=True)


def last_hang(events: Iterable[dict[str, Any]]) -> dict[str, Any]:
    """Of the last round that ended as a hang: `round`, `at`, `why`, and the `stacks` events."""
    found: dict[str, Any] = {"round": None, "at": None, "why": "", "stacks": []}
    stacks: list[dict[str, Any]] = []
    for event in events:
        if event.get("kind") == "stacks":
            stacks.append(event)
        elif event.get("kind") == "broken":
            if stacks:
                at, why = event.get("at"), event.get("text")
                found = {"round": event.get("round"), "at": at, "why": why, "stacks": stacks}
            stacks = []
    return found


def _heading(node: str, worker: dict[str, Any]) -> str:
    """The line above the stacks of a worker."""
    state = f"{worker['state']}, " if worker.get("state") else ""
    step = f", step {worker['step']}" if worker.get("step") is not None else ""
    what = f"{node} rank {worker.get('rank')}: {state}in {worker.get('place')}{step}"
    return f"{what} (by {worker.get('source')})"


def _act(
    endpoint: str | None, token_file: str | None, run_id: str, action: str, body: dict[str, Any]
) -> dict[str, Any]:
    where = endpoint_of(endpoint)
    keys = keys_of(where, token_file)
    coordinator = run_locator.coordinator_of(where, keys, run_id)

    def ask(at: Endpoint, secret: str) -> dict[str, Any]:
        answer = api.act(at, secret, run_id, action, body)
        return answers.checked(at, answer, answers.Stacks) if action == "stacks" else answer

    return coordinator.ask(ask)


def _confirm(is_sure: bool, question: str) -> None:
    """Ask a person. A script is not asked. Raises typer.Abort if the answer is no."""
    if is_sure or not (sys.stdin.isatty() and sys.stderr.isatty()):
        return
    typer.confirm(output.clean(question), abort=True, err=True)


def _shown(name: object) -> str:
    return output.clean(repr(str(name)))
