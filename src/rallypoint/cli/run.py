"""`rallypoint run`: its options. run_config.py turns them into the agent's configuration."""

from __future__ import annotations

import tempfile
from typing import Annotated, Any, Final

import msgspec
import typer
from typer.core import TyperCommand

from rallypoint import settings
from rallypoint.cli import limits, output
from rallypoint.cli.common import (
    EndpointOption,
    InsecureOption,
    LogFormatOption,
    QuietOption,
    TokenFileOption,
    VerboseOption,
    log_choice,
    warn_if_exposed,
)
from rallypoint.cli.run_config import build_config
from rallypoint.cli.torchrun_args import rewritten

_WORKERS: Final = "Workers"
_RESTARTS: Final = "Restarts"
_OUTPUT: Final = "Output"
_TORCHRUN: Final = "Taken from torchrun"


def add_to(app: typer.Typer) -> None:
    """Add the command. All arguments after the program belong to it, including options."""
    context_settings = {"allow_interspersed_args": False}
    app.command("run", cls=_RunCommand, context_settings=context_settings)(run)


class _RunCommand(TyperCommand):
    """Accepts options as torchrun's users write them."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        takes_value = {
            name: not getattr(option, "is_flag", False)
            for option in self.params
            for name in (*option.opts, *option.secondary_opts)
            if name.startswith("-")
        }
        return super().parse_args(ctx, rewritten(args, takes_value))


def _text(name: str, metavar: str, help: str, panel: str | None = None, *short: str) -> Any:
    """An option whose text rallypoint/settings reads, like the text of a variable."""
    return typer.Option(name, *short, metavar=metavar, help=help, rich_help_panel=panel)


def _without_effect(name: str) -> Any:
    """An option of torchrun without effect here; run_config.py has the reasons."""
    return typer.Option(name, metavar="X", hidden=True)


def _flag(names: str, help: str, panel: str | None = None) -> Any:
    return typer.Option(*names.split(), help=help, rich_help_panel=panel)


def run(
    context: typer.Context,
    program: Annotated[
        list[str] | None,
        typer.Argument(metavar="PROGRAM", help="A Python script, then its own arguments."),
    ] = None,
    nnodes: Annotated[
        str | None,
        _text(
            "--nnodes", "MIN:MAX", "How many nodes: N or MIN:MAX (default: the launcher's, or 1)."
        ),
    ] = None,
    nproc_per_node: Annotated[
        str | None,
        _text("--nproc-per-node", "N", "Workers here: N, auto, gpu or cpu (default: 1)."),
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
        str | None,
        _text("--local-addr", "ADDR", "The address at which other nodes reach this one."),
    ] = None,
    interface: Annotated[
        str | None,
        _text("--interface", "NAME|CIDR", "The interface by which other nodes reach this one."),
    ] = None,
    port_range: Annotated[
        str | None,
        _text("--port-range", "A:B", "The ports for this node's coordinator and for rank 0."),
    ] = None,
    host_coordinator: Annotated[
        str | None,
        _text("--host-coordinator", "auto|yes|no", "Whether this node hosts the coordinator."),
    ] = None,
    token_file: TokenFileOption = None,
    tls_ca: Annotated[
        str | None,
        _text(
            "--tls-ca",
            "FILE|system",
            "Trust these authorities of https:// coordinators, and not the token's.",
        ),
    ] = None,
    tls_cert: Annotated[
        str | None, _text("--tls-cert", "FILE", "A certificate that shows who this node is.")
    ] = None,
    tls_key: Annotated[
        str | None, _text("--tls-key", "FILE", "Its private key (default: in --tls-cert).")
    ] = None,
    insecure: InsecureOption = False,
    join_timeout: Annotated[
        str | None, _text("--join-timeout", "TIME", "How long to wait for a round (default: 10m).")
    ] = None,
    last_call: Annotated[
        str | None,
        _text("--last-call", "TIME", "How long to wait for more than MIN nodes (default: 30s)."),
    ] = None,
    expected_nodes: Annotated[
        str | None, _text("--expected-nodes", "N", "How many nodes were started, if known.")
    ] = None,
    rank_policy: Annotated[
        str | None,
        _text("--rank-policy", "NAME", "How ranks are assigned: stable, index or natural."),
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
        str | None,
        _text("--python", "PATH", "The Python that runs it (default: this one).", _WORKERS),
    ] = None,
    export: Annotated[
        str | None,
        _text("--export", "tf", "Give each worker TF_CONFIG, for TensorFlow.", _WORKERS),
    ] = None,
    preload: Annotated[
        bool,
        _flag(
            "--preload",
            "Keep processes with the workers' modules loaded, and fork workers from them; "
            "--preload=torch,my.module names the modules (default: they are learned).",
            _WORKERS,
        ),
    ] = False,
    preload_modules: Annotated[
        str | None, typer.Option("--preload-modules", metavar="NAMES", hidden=True)
    ] = None,
    keep_workers: Annotated[
        bool,
        _flag(
            "--keep-workers",
            "A worker that asks for the next world (rallypoint.join) keeps its process, model and "
            "device; --set unwind=5s is its time for that.",
            _WORKERS,
        ),
    ] = False,
    max_restarts: Annotated[
        str | None,
        _text(
            "--max-restarts",
            "N",
            "How many rounds may end by a failure of the program (default: 0).",
            _RESTARTS,
        ),
    ] = None,
    restart_window: Annotated[
        str | None,
        _text(
            "--restart-window",
            "TIME",
            "How long a failure counts against --max-restarts (default: to the end).",
            _RESTARTS,
        ),
    ] = None,
    early: Annotated[
        str | None,
        _text(
            "--early",
            "TIME",
            "A failure so soon after a start counts double (default: 0, none does).",
            _RESTARTS,
        ),
    ] = None,
    same_failure: Annotated[
        str | None,
        _text(
            "--same-failure",
            "N",
            "End the run after N equal failures in a row (default: never).",
            _RESTARTS,
        ),
    ] = None,
    no_restart_exit_codes: Annotated[
        str | None,
        _text(
            "--no-restart-exit-codes",
            "N,...",
            "End the run at once if a worker exits with one of these.",
            _RESTARTS,
        ),
    ] = None,
    max_restarts_per_node: Annotated[
        str | None,
        _text(
            "--max-restarts-per-node",
            "N",
            "A node that breaks more rounds stays out for a while (default: never).",
            _RESTARTS,
        ),
    ] = None,
    cooldown: Annotated[
        str | None,
        _text(
            "--cooldown",
            "MIN:MAX",
            "How long it stays out: at first, and at most (default: 1m:1h).",
            _RESTARTS,
        ),
    ] = None,
    check: Annotated[
        str | None,
        _text(
            "--check",
            "CMD",
            "A command that says before each round whether this node is fit.",
            _RESTARTS,
        ),
    ] = None,
    check_timeout: Annotated[
        str | None,
        _text("--check-timeout", "TIME", "How long the check may take (default: 30s).", _RESTARTS),
    ] = None,
    stop_timeout: Annotated[
        str | None,
        _text(
            "--stop-timeout",
            "TIME",
            "How long workers have from the first signal to SIGKILL (default: 25s).",
            _WORKERS,
        ),
    ] = None,
    regroup_stop_timeout: Annotated[
        str | None,
        _text(
            "--regroup-stop-timeout",
            "TIME",
            "The same when they stop for a new round (default: 5s).",
            _WORKERS,
        ),
    ] = None,
    hang: Annotated[
        str | None,
        _text(
            "--hang",
            "REGEX|output|file:PATH",
            "What shows that a worker advances, such as 'step=(\\d+)' in its output.",
            _WORKERS,
        ),
    ] = None,
    hang_timeout: Annotated[
        str | None,
        _text(
            "--hang-timeout",
            "TIME",
            "End a round in which no worker advances for so long (default with --hang: 10m).",
            _WORKERS,
        ),
    ] = None,
    drain_timeout: Annotated[
        str | None,
        _text(
            "--drain-timeout",
            "TIME",
            "How long to agree with the others on a last step before leaving (default: 20s).",
            _WORKERS,
        ),
    ] = None,
    notice_file: Annotated[
        str | None,
        _text(
            "--notice-file",
            "PATH",
            "Leave when this file appears: this machine will be taken away.",
            _WORKERS,
        ),
    ] = None,
    notice_command: Annotated[
        str | None,
        _text(
            "--notice-command",
            "CMD",
            "The same when this command, run each second, exits with 0.",
            _WORKERS,
        ),
    ] = None,
    visible_devices: Annotated[
        str | None,
        _text(
            "--visible-devices",
            "WHICH",
            "Which devices a worker sees: all (default), or own, the one of its local rank.",
            _WORKERS,
        ),
    ] = None,
    stdin: Annotated[
        str | None,
        _text(
            "--stdin",
            "RANK|none",
            "The local rank that reads stdin (default: the worker, if it is the only one).",
            _WORKERS,
        ),
    ] = None,
    log_dir: Annotated[
        str | None, _text("--log-dir", "DIR", "Write each worker's output to files.", _OUTPUT)
    ] = None,
    log_format: LogFormatOption = None,
    verbose: VerboseOption = False,
    quiet: QuietOption = False,
    share_lines: Annotated[
        str | None,
        _text(
            "--share-lines",
            "N",
            "How many last lines of a failed worker all nodes get (default: 20; 0: none).",
            _OUTPUT,
        ),
    ] = None,
    tee: Annotated[
        bool,
        _flag(
            "--tee/--no-tee",
            "Pass the workers' output on to this terminal; --tee N and -t N as in torchrun.",
            _OUTPUT,
        ),
    ] = True,
    tee_streams: Annotated[
        str | None, typer.Option("--tee-streams", metavar="N", hidden=True)
    ] = None,
    redirects: Annotated[
        str | None,
        _text(
            "--redirects",
            "N",
            "Write these streams only to files: 1 stdout, 2 stderr, 3 both.",
            _OUTPUT,
            "-r",
        ),
    ] = None,
    local_ranks_filter: Annotated[
        str | None,
        _text(
            "--local-ranks-filter", "0,1", "Show only these local ranks on the terminal.", _OUTPUT
        ),
    ] = None,
    log_line_prefix_template: Annotated[
        str | None,
        _text(
            "--log-line-prefix-template",
            "TEXT",
            "The prefix, with ${role_name}, ${local_rank} and ${rank}.",
            _OUTPUT,
        ),
    ] = None,
    prefix: Annotated[
        bool,
        _flag("--prefix/--no-prefix", "Begin each line on the terminal with the rank.", _OUTPUT),
    ] = True,
    rdzv_endpoint: Annotated[
        str | None, _text("--rdzv-endpoint", "HOST:PORT", "Same as --endpoint.", _TORCHRUN)
    ] = None,
    rdzv_id: Annotated[str | None, _text("--rdzv-id", "ID", "Same as --run-id.", _TORCHRUN)] = None,
    rdzv_backend: Annotated[
        str | None,
        _text("--rdzv-backend", "NAME", "rallypoint or c10d: both are the same.", _TORCHRUN),
    ] = None,
    rdzv_conf: Annotated[
        str | None,
        _text("--rdzv-conf", "K=V,...", "join_timeout, last_call_timeout, is_host.", _TORCHRUN),
    ] = None,
    monitor_interval: Annotated[
        str | None,
        _text("--monitor-interval", "S", "No effect: workers are not polled.", _TORCHRUN),
    ] = None,
    role: Annotated[
        str | None, _text("--role", "NAME", "The workers' ROLE_NAME (default: default).", _TORCHRUN)
    ] = None,
    virtual_local_rank: Annotated[
        bool,
        _flag("--virtual-local-rank", "Each worker has LOCAL_RANK 0 and sees one GPU.", _TORCHRUN),
    ] = False,
    shutdown_timeout: Annotated[
        str | None, _text("--shutdown-timeout", "S", "Same as --stop-timeout.", _TORCHRUN)
    ] = None,
    node_rank: Annotated[
        str | None, _text("--node-rank", "N", "No effect: the nodes agree on ranks.", _TORCHRUN)
    ] = None,
    master_addr: Annotated[
        str | None, _text("--master-addr", "HOST", "No effect with --endpoint.", _TORCHRUN)
    ] = None,
    master_port: Annotated[
        str | None, _text("--master-port", "PORT", "No effect with --endpoint.", _TORCHRUN)
    ] = None,
    start_method: Annotated[str | None, _without_effect("--start-method")] = None,
    signals_to_handle: Annotated[str | None, _without_effect("--signals-to-handle")] = None,
    event_log_handler: Annotated[str | None, _without_effect("--event-log-handler")] = None,
    logs_specs: Annotated[str | None, _without_effect("--logs-specs")] = None,
    numa_binding: Annotated[
        str | None,
        _text(
            "--numa-binding",
            "MODE",
            "CPUs near the worker's GPU: node, socket, exclusive or core-complex.",
            _TORCHRUN,
        ),
    ] = None,
    duplicate_stdout_filters: Annotated[
        str | None, _without_effect("--duplicate-stdout-filters")
    ] = None,
    duplicate_stderr_filters: Annotated[
        str | None, _without_effect("--duplicate-stderr-filters")
    ] = None,
    run_path: Annotated[bool, typer.Option("--run-path", hidden=True)] = False,
) -> None:
    """Meet the other nodes of a run, start this node's workers, and regroup when one is lost."""
    settings.check_platform()
    log = log_choice(log_format, verbose=verbose, quiet=quiet)
    config = build_config(context.params)
    warn_if_exposed(token_file)
    has_files = config.log_dir is not None or config.console.needs_files
    limits.check(
        f"`rallypoint run` with {config.workers} worker{'s' * (config.workers > 1)}",
        limits.agent_files(config.workers, has_log_files=has_files),
    )
    from rallypoint.launch import agent
    from rallypoint.launch.agent_log import LogOptions

    options = LogOptions(is_json=log.is_json, level=log.level)
    config = msgspec.structs.replace(config, log=options)
    if config.console.needs_files and config.log_dir is None:
        config = msgspec.structs.replace(
            config, log_dir=tempfile.mkdtemp(prefix="rallypoint-logs-")
        )
        output.note(f"the workers' output is in {config.log_dir}; --log-dir sets another folder")
    raise typer.Exit(agent.main(config))
