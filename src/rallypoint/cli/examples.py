"""The examples at the end of each command's `--help`. tests/cli/test_examples.py checks them."""

from __future__ import annotations

from typing import Any, Final

import typer

EXAMPLES: Final[dict[str, tuple[tuple[str, str], ...]]] = {
    "run": (
        ("--nproc-per-node 4 train.py", "this machine, 4 workers"),
        ("--nnodes 2:4 --endpoint host0:29400 --run-id job-42 train.py", "the same on each node"),
        ("--nnodes 4 --log-dir logs --log-format json train.py", "all nodes of a job of Slurm"),
    ),
    "serve": (
        ("--host 0.0.0.0 --token-file token", "a coordinator for other machines"),
        ("--ledger file:/var/lib/rallypoint", "runs survive a restart"),
        ("--ledger etcd://a:2379,b:2379/rp --token-file token", "one of several replicas"),
        ("--state /etc/rallypoint --audit /var/log/rallypoint", "who changed a run"),
    ),
    "status": (
        ("--endpoint http://host0:29400", "all runs"),
        ("job-42 --endpoint http://host0:29400 --watch", "one run, until it is over"),
        ("job-42 --endpoint http://host0:29400 --json", "for programs: docs/status.md"),
    ),
    "wait": (
        ("job-42 --endpoint http://host0:29400", "until a round has begun"),
        ("job-42 --for closed --timeout 2h", "until it is over; 1 if it failed"),
    ),
    "events": (
        ("job-42 --since 10m", "the last ten minutes"),
        ("job-42 --follow --json", "each event as it happens, as JSON"),
    ),
    "close": (
        ("job-42 --endpoint http://host0:29400 --reason 'wrong data'", "end it on all nodes"),
    ),
    "scale": (
        ("job-42 --nnodes 2:6 --endpoint http://host0:29400", "between two and six nodes"),
        ("job-42 --nnodes 4 --reason 'half of the queue'", "exactly four"),
    ),
    "drain": (
        ("job-42 q2 --reason 'new kernel' --endpoint http://host0:29400", "it leaves in order"),
        ("job-42 host7", "the only node on that host"),
    ),
    "evict": (
        ("job-42 q2 --reason 'ECC errors'", "out at once, and kept out"),
        ("job-42 3 --yes", "the node of rank 3, without a question"),
    ),
    "admit": (("job-42 q2 --reason 'memory replaced'", "q2 may join again"),),
    "stacks": (
        ("job-42 --endpoint http://host0:29400", "who stands where, and all stacks"),
        ("job-42 host7 --json", "one node, for scripts"),
    ),
    "coordinators": (
        ("--endpoint etcd://a:2379,b:2379/rp", "replicas, and nodes that host a run"),
        ("--endpoint http://host0:29400 --json", "the one at an address"),
    ),
    "doctor": (
        ("", "this machine, and the launcher's endpoint"),
        ("head:29400", "where a node will host the coordinator"),
        ("http://head:29400 --json", "for scripts: 1 if something failed"),
        ("etcd://a:2379,b:2379/rp", "the ledger, and the coordinators in it"),
        ("--all-pairs", "under srun: each connection between the nodes"),
    ),
    "env": (
        ("", "each usual setting, and where its value comes from"),
        ("--all", "those for experts, too"),
        ("--json", "all of them, for programs"),
    ),
    "token new": (
        ("token", "a file that only you can read"),
        ("--state state", "a directory for `rallypoint serve --state`"),
        ("node --state state --role node --run 'job-*' --ttl 7d", "a claim for some runs"),
    ),
    "token list": (("--state state", "who may do what, and until when"),),
    "token revoke": (
        ("0a1b2c3d4e5f --state state", "for a `serve` with this directory"),
        ("0a1b2c3d4e5f --state state --ledger etcd://a:2379/rp", "for all coordinators"),
    ),
    "token rotate": (
        ("--state state --overlap 7d", "a new token; the old one counts for a week"),
        ("--state state --end-old", "only the newest one counts"),
    ),
    "token show": (("", "the token in use here, by its fingerprint"),),
    "demo": (("--nodes 4", "four nodes train, and lose one"),),
    "simulate": (("--nodes 256", "days of a job, in seconds"),),
    "bench": (("join --nodes 64", "how fast 64 nodes meet here"), ("kill", "kill -9 of one of 8")),
}
"""By command: arguments, and what the command then does."""


def add_to(app: typer.Typer) -> None:
    """Add the examples to the commands of the app, and to those of its groups."""
    _add(app, "rallypoint", "")
    for group in app.registered_groups:
        if group.typer_instance is not None:
            name = group.name or group.typer_instance.info.name
            _add(group.typer_instance, f"rallypoint {name}", f"{name} ")


def _add(app: typer.Typer, program: str, group: str) -> None:
    for command in app.registered_commands:
        lines = EXAMPLES.get(f"{group}{command.name}", ())
        if lines:
            command.epilog = _text(f"{program} {command.name}", lines)


def _text(command: str, lines: tuple[tuple[str, str], ...]) -> Any:
    """Each example is two lines, so that no terminal folds them."""
    shown = [f"  {' '.join(filter(None, (command, line)))}\n      {what}" for line, what in lines]
    # The first character keeps the line breaks of the paragraph.
    return "\b\nExamples:\n" + "\n".join(shown)
