"""`rallypoint doctor --all-pairs`: its options, and how it shows the table."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any, Final

import msgspec
import typer

from rallypoint import settings
from rallypoint.cli import output
from rallypoint.doctor.findings import Verdict, took_text
from rallypoint.errors import ExitCode, UsageError

if TYPE_CHECKING:
    from rallypoint.doctor.all_pairs import Outcome, Table
    from rallypoint.doctor.case import Case

NODES_SHOWN: Final = 50


class Given(msgspec.Struct, frozen=True):
    """The options that were typed; None for those that were not."""

    endpoint: str | None
    token_file: str | None
    interface: str | None
    local_addr: str | None
    port_range: str | None


def run(
    case: Case, given: Given, nnodes: str | None, run_id: str | None, timeout: str, *, as_json: bool
) -> None:
    """Try all connections, and print the table on the node of rank 0.

    Ends with 1 on all nodes if a connection failed or a node is missing. Raises UsageError, and the
    errors of a node that does not meet the others.
    """
    nodes, name = _meeting(given, nnodes, run_id)
    try:
        timeout_s = settings.parse_duration_s(timeout)
    except ValueError as error:
        raise UsageError(f"--timeout {error}") from None
    options = {
        name: text
        for name, text in msgspec.structs.asdict(given).items()
        if name != "endpoint" and text is not None
    }
    _show_waiting()
    from rallypoint.doctor import all_pairs

    outcome = all_pairs.run(case, given.endpoint, name, nodes, timeout_s, **options)
    _show(outcome, as_json=as_json)
    if outcome.verdict is Verdict.FAILED:
        raise typer.Exit(ExitCode.PROGRAM_FAILED)


def _meeting(given: Given, nnodes: str | None, run_id: str | None) -> tuple[int, str]:
    """How many nodes meet, and under which name."""
    found = settings.launched(is_node=True, endpoint=given.endpoint, nnodes=nnodes, run_id=run_id)
    nodes = settings.resolve("nnodes", nnodes, found=found).value.max
    if nodes < 2:
        raise UsageError(
            "--all-pairs needs several nodes, and this is one",
            hint="start it on all nodes with --nnodes N, or under a launcher that tells it: "
            "srun rallypoint doctor --all-pairs",
        )
    name = settings.resolve("run_id", run_id, found=found).value
    if name is None:
        raise UsageError(
            "--all-pairs needs a name for the nodes to meet",
            hint="give all nodes the same --run-id, another one each time",
        )
    return nodes, name


def _show_waiting() -> None:
    """Print why the node waits, as it is logged."""
    logger = logging.getLogger("rallypoint.client")
    logger.addHandler(_Notes())
    logger.setLevel(logging.INFO)


class _Notes(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        output.note(record.getMessage())


def _show(outcome: Outcome, *, as_json: bool) -> None:
    table = outcome.table
    if table is None:
        own = outcome.own
        failed = f", {len(own.failures)} with trouble" if own.failures else ""
        reached = f"this node, {own.shown}, reached {own.reached} others{failed}"
        output.note(f"{reached}; {outcome.rank_0} has the table")
    elif as_json:
        output.print_json(msgspec.to_builtins(table))
    else:
        _show_table(table)


def _show_table(table: Table) -> None:
    head = f"{table.verdict}: {table.reached} of {table.pairs} connections between "
    output.show(output.cell(f"{head}{len(table.nodes)} nodes work"))
    for line in table.lines:
        output.show(output.cell(f"  {line}"))
    for line in table.what_to_do:
        output.show(output.cell(f"  do: {line}"))
    headings = ("node", "address", "reaches", "connect: median", "slowest")
    output.show(output.table(headings, [_row(table, each) for each in table.nodes[:NODES_SHOWN]]))
    if len(table.nodes) > NODES_SHOWN:
        output.note(f"{len(table.nodes) - NODES_SHOWN} more nodes are in --json")


def _row(table: Table, node: Any) -> list[Any]:
    slowest = ""
    if node.slowest is not None:
        slowest = f"{took_text(node.connect_max_s)} to {table.nodes[node.slowest].shown}"
    median = "" if node.connect_median_s is None else took_text(node.connect_median_s)
    reaches = f"{node.reached} of {len(table.nodes) - 1}"
    return [output.cell(each) for each in (node.shown, node.addresses[0], reaches, median, slowest)]
