"""`rallypoint doctor`: what keeps nodes from meeting. The checks are in the package doctor/."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Final

import msgspec
import typer

from rallypoint import settings, tokens
from rallypoint.cli import doctor_pairs, output
from rallypoint.cli.common import TokenFileOption
from rallypoint.errors import ExitCode, UsageError
from rallypoint.settings import Endpoint

if TYPE_CHECKING:
    from rich.text import Text

    from rallypoint.doctor.case import Case
    from rallypoint.doctor.findings import Finding, Report

EVIDENCE_SHOWN: Final = 4
"""How many lines of evidence a finding without trouble shows. All are in the JSON."""
_STYLES: Final = {"ok": "green", "warning": "yellow", "failed": "bold red", "skipped": "dim"}


def add_to(app: typer.Typer) -> None:
    """Add the command."""
    app.command("doctor")(doctor)


def doctor(
    endpoint: Annotated[
        str | None,
        typer.Argument(
            metavar="[ENDPOINT]",
            help="Where the nodes meet; if left out, RALLYPOINT_ENDPOINT or the launcher's.",
        ),
    ] = None,
    token_file: TokenFileOption = None,
    interface: Annotated[
        str | None,
        typer.Option("--interface", metavar="NAME|CIDR", help="As for `rallypoint run`."),
    ] = None,
    local_addr: Annotated[
        str | None,
        typer.Option("--local-addr", metavar="ADDR", help="As for `rallypoint run`."),
    ] = None,
    port_range: Annotated[
        str | None,
        typer.Option("--port-range", metavar="A:B", help="As for `rallypoint run`."),
    ] = None,
    all_pairs: Annotated[
        bool,
        typer.Option(
            "--all-pairs", help="Started on all nodes: meet, and try each connection among them."
        ),
    ] = False,
    nnodes: Annotated[
        str | None,
        typer.Option(
            "--nnodes", metavar="N", help="--all-pairs: how many nodes (default: the launcher's)."
        ),
    ] = None,
    run_id: Annotated[
        str | None,
        typer.Option(
            "--run-id", metavar="ID", help="--all-pairs: the same on all nodes, and of no job."
        ),
    ] = None,
    timeout: Annotated[
        str,
        typer.Option(
            "--timeout", metavar="TIME", help="--all-pairs: how long to wait for the nodes."
        ),
    ] = "2m",
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Check what keeps nodes from meeting: names, ports, token, ledger, limits, clocks, versions.

    Each check prints its verdict, what it has seen, and what to do. Nothing is changed.

    Exit codes: 0 nothing failed, 1 a check failed, 2 usage.
    """
    case = _case(endpoint, token_file, interface, local_addr, port_range)
    if all_pairs:
        given = doctor_pairs.Given(endpoint, token_file, interface, local_addr, port_range)
        doctor_pairs.run(case, given, nnodes, run_id, timeout, as_json=as_json)
        return
    from rallypoint.doctor.examination import examine

    report = examine(case)
    if as_json:
        output.print_json(msgspec.to_builtins(report))
    else:
        _show(report)
    if report.verdict == "failed":
        raise typer.Exit(ExitCode.PROGRAM_FAILED)


def _case(
    endpoint: str | None,
    token_file: str | None,
    interface: str | None,
    local_addr: str | None,
    port_range: str | None,
) -> Case:
    """The settings of a node here. Raises UsageError for those that cannot be read."""
    from rallypoint.doctor.case import Case

    found = settings.launched(
        is_node=True, endpoint=endpoint, interface=interface, local_addr=local_addr
    )
    for warning in found.warnings:
        output.warn(warning)
    resolved = settings.resolve("endpoint", endpoint, found=found)
    ports = settings.resolve("port_range", port_range, found=found).value
    where = settings.with_ports(resolved, ports)
    keys, no_keys = _keys(where, token_file)
    return Case(
        endpoint=where,
        source=resolved.source,
        keys=keys,
        no_keys=no_keys,
        token_file=token_file,
        certificates=settings.certificates_of_command(where, keys.token if keys else ""),
        interface=settings.resolve("interface", interface, found=found).value,
        local_addr=settings.resolve("local_addr", local_addr, found=found).value,
        port_range=ports,
        etcd_password=settings.etcd_password(where),
        environ=settings.process_environment(),
    )


def _keys(where: Endpoint, token_file: str | None) -> tuple[tokens.Keys | None, tuple[str, str]]:
    """This node's tokens, or the reason why there are none."""
    try:
        return tokens.Keys.of_command(where, token_file), ("", "")
    except UsageError as error:
        return None, (error.message, error.hint)


def _show(report: Report) -> None:
    """The findings as text, and the sum on stderr."""
    output.show(*(line for each in report.checks for line in _lines(each)))
    count = {name: sum(each.verdict == name for each in report.checks) for name in _STYLES}
    told = ", ".join(f"{number} {name}" for name, number in count.items() if number)
    where = report.endpoint or "no endpoint"
    output.note(f"{report.host}, {where}: {told}")


def _lines(finding: Finding) -> list[Text]:
    head = output.cell(f"{finding.verdict:<8} ", _STYLES[finding.verdict])
    head.append_text(output.cell(f"{finding.check:<10} ", "bold"))
    head.append_text(output.cell(finding.summary))
    # Evidence of what is in order is for --json and for a finding that has trouble.
    seen = finding.evidence if finding.verdict != "ok" else finding.evidence[:EVIDENCE_SHOWN]
    lines = [output.cell(f"{'':20}{each}", "dim") for each in seen]
    return [head, *lines, *(output.cell(f"{'':20}do: {each}") for each in finding.what_to_do)]
