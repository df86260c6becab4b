"""`rallypoint run`: the options, as a person gives them. What they come to: run_config.py."""

from __future__ import annotations

from typing import Annotated, Any, Final

import typer

from rallypoint import settings
from rallypoint.cli.common import EndpointOption, TokenFileOption, warn_if_exposed
from rallypoint.cli.run_config import build_config

_WORKERS: Final = "Workers"
_OUTPUT: Final = "Output"
_TORCHRUN: Final = "Taken from torchrun"


def add_to(app: typer.Typer) -> None:
    """Add the command. What follows the program belongs to it, options too."""
    context_settings = {"allow_interspersed_args": False}
    app.command("run", context_settings=context_settings)(run)


def _text(name: str, metavar: str, help: str, panel: str | None = None) -> Any:
    """An option whose text settings.py reads, as it does the environment's."""
    return typer.Option(name, metavar=metavar, help=help, rich_help_panel=panel)


def _flag(names: str, help: str, panel: str | None = None) -> Any:
    return typer.Option(*names.split(), help=help, rich_help_panel=panel)


def run(
    context: typer.Context,
    program: Annotated[
        list[str] | None,
        typer.Argument(metavar="PROGRAM", help="A Python script, then its own arguments."),
    ] = None,
    nnodes: Annotated[
        str | None, _text("--nnodes", "MIN:MAX", "How many nodes: N or MIN:MAX; 1 if left out.")
    ] = None,
    nproc_per_node: Annotated[
        str | None,
        _text("--nproc-per-node", "N", "Workers here: N, auto, gpu or cpu; 1 if left out."),
    ] = None,
    endpoint: EndpointOption = None,
    run_id: Annotated[
        str | None, _text("--run-id", "ID", "The run's name, the same on every node.")
    ] = None,
    standalone: Annotated[
        bool, _flag("--standalone", "This machine alone: no endpoint, one node.")
    ] = False,
    node_name: Annotated[
        str | None, _text("--node-name", "NAME", "This node's name, unique in the run.")
    ] = None,
    local_addr: Annotated[
        str | None, _text("--local-addr", "ADDR", "Where other nodes reach this one.")
    ] = None,
    host_coordinator: Annotated[
        str | None,
        _text("--host-coordinator", "auto|yes|no", "Whether this node hosts the coordinator."),
    ] = None,
    token_file: TokenFileOption = None,
    join_timeout: Annotated[
        str | None, _text("--join-timeout", "TIME", "How long to wait for a round; 10m.")
    ] = None,
    last_call: Annotated[
        str | None, _text("--last-call", "TIME", "The wait for more than the minimum; 30s.")
    ] = None,
    expected_nodes: Annotated[
        str | None, _text("--expected-nodes", "N", "How many nodes were started, if known.")
    ] = None,
    rank_policy: Annotated[
        str | None, _text("--rank-policy", "NAME", "How ranks are given: stable or natural.")
    ] = None,
    label: Annotated[
        list[str] | None, _text("--label", "NAME=TEXT", "A label of this node; repeatable.")
    ] = None,
    set: Annotated[
        list[str] | None,
        _text("--set", "NAME=VALUE", "Any other setting of `rallypoint env`; repeatable."),
    ] = None,
    module: Annotated[bool, _flag("-m --module", "PROGRAM is a Python module.", _WORKERS)] = False,
    no_python: Annotated[bool, _flag("--no-python", "PROGRAM is an executable.", _WORKERS)] = False,
    python: Annotated[
        str | None, _text("--python", "PATH", "The Python to run it with; this one.", _WORKERS)
    ] = None,
    max_restarts: Annotated[
        str | None,
        _text("--max-restarts", "N", "Rounds that may end by the program's fault; 0.", _WORKERS),
    ] = None,
    stop_timeout: Annotated[
        str | None,
        _text("--stop-timeout", "TIME", "From the first signal to SIGKILL; 25s.", _WORKERS),
    ] = None,
    regroup_stop_timeout: Annotated[
        str | None,
        _text("--regroup-stop-timeout", "TIME", "The same before a new round; 5s.", _WORKERS),
    ] = None,
    log_dir: Annotated[
        str | None, _text("--log-dir", "DIR", "Write each worker's output to files.", _OUTPUT)
    ] = None,
    tee: Annotated[
        bool, _flag("--tee/--no-tee", "Pass the workers' output on to this terminal.", _OUTPUT)
    ] = True,
    prefix: Annotated[
        bool, _flag("--prefix/--no-prefix", "Begin each of its lines with the rank.", _OUTPUT)
    ] = True,
    rdzv_endpoint: Annotated[
        str | None, _text("--rdzv-endpoint", "HOST:PORT", "Same as --endpoint.", _TORCHRUN)
    ] = None,
    rdzv_id: Annotated[str | None, _text("--rdzv-id", "ID", "Same as --run-id.", _TORCHRUN)] = None,
    rdzv_backend: Annotated[
        str | None, _text("--rdzv-backend", "NAME", "rallypoint or c10d: no matter.", _TORCHRUN)
    ] = None,
    rdzv_conf: Annotated[
        str | None,
        _text("--rdzv-conf", "K=V,...", "join_timeout, last_call_timeout, is_host.", _TORCHRUN),
    ] = None,
    monitor_interval: Annotated[
        str | None, _text("--monitor-interval", "S", "No effect: nothing is polled.", _TORCHRUN)
    ] = None,
    node_rank: Annotated[
        str | None, _text("--node-rank", "N", "Refused: the nodes agree on ranks.", _TORCHRUN)
    ] = None,
    master_addr: Annotated[
        str | None, _text("--master-addr", "HOST", "Refused: give --endpoint.", _TORCHRUN)
    ] = None,
    master_port: Annotated[
        str | None, _text("--master-port", "PORT", "Refused: give --endpoint.", _TORCHRUN)
    ] = None,
) -> None:
    """Meet the other nodes of a run, start this node's workers, and regroup when one is lost."""
    settings.check_platform()
    config = build_config(context.params)
    warn_if_exposed(token_file)
    from rallypoint.launch import agent

    raise typer.Exit(agent.main(config))
