"""From the options of `rallypoint run` to what the agent is given.

Options and environment are read here and by settings.py, the program is looked for, and nothing is
started, joined or written. torchrun's names are taken where the idea is the same, and refused with
a hint where it is another.
"""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from rallypoint import settings
from rallypoint.cli import devices, output
from rallypoint.core.values import RunSettings
from rallypoint.errors import ProgramNotFoundError, UsageError
from rallypoint.settings import Endpoint, EndpointKind, NodeSettings

if TYPE_CHECKING:
    from rallypoint.launch.agent import AgentConfig

Options = Mapping[str, Any]
"""The options by name; None or an empty value where one was not given."""
Note = Callable[[str], None]


def build_config(
    options: Options,
    *,
    environ: Mapping[str, str] | None = None,
    note: Note = output.note,
) -> AgentConfig:
    """What the agent is given. `note` is told what a person may not expect.

    Raises:
        UsageError: for what cannot be, naming the option or variable.
        ProgramNotFoundError: if there is no such program here.
    """
    _refuse_decided_elsewhere(options)
    given = _given(options, note)
    node = settings.node_settings(
        environ=environ,
        token_file=given.get("token_file"),
        labels=_labels(options.get("label") or ()),
        **_named(given, NodeSettings.__struct_fields__),
    )
    run = settings.run_settings(
        environ=environ, **_named(given, (*RunSettings.__struct_fields__, "nnodes"))
    )
    _check_can_meet(node.endpoint, run)
    argv = program_argv(options)
    wanted = settings.resolve("nproc_per_node", given.get("nproc_per_node"), environ).value
    workers = devices.count_workers(wanted, environ=environ, note=note)
    # Last, so that a mistake is told before what the agent needs is loaded.
    from rallypoint.launch.agent import AgentConfig

    return AgentConfig(
        node=node,
        run=run,
        argv=argv,
        workers=workers,
        stop_timeout_s=_duration_s("stop_timeout_s", given, environ),
        regroup_stop_timeout_s=_duration_s("regroup_stop_timeout_s", given, environ),
        log_dir=settings.resolve("log_dir", given.get("log_dir"), environ).value,
        tee=bool(options.get("tee", True)),
        prefix=bool(options.get("prefix", True)),
    )


def _named(given: Mapping[str, Any], names: Iterable[str]) -> dict[str, Any]:
    return {name: given[name] for name in names if name in given}


def _duration_s(name: str, given: Mapping[str, Any], environ: Mapping[str, str] | None) -> float:
    seconds: float = settings.resolve(name, given.get(name), environ).value
    settings.check_duration_s(name, seconds)
    return seconds


def _check_can_meet(endpoint: Endpoint, run: RunSettings) -> None:
    if endpoint.kind is EndpointKind.LOCAL and run.max_nodes > 1:
        raise UsageError(
            f"up to {run.max_nodes} nodes cannot meet without an endpoint",
            hint="give every node the same --endpoint HOST:PORT, or --nnodes 1",
        )


# -- what was given ------------------------------------------------------------------------------

_OPTIONS: Final = (
    "nnodes",
    "nproc_per_node",
    "endpoint",
    "run_id",
    "node_name",
    "local_addr",
    "host_coordinator",
    "token_file",
    "join_timeout",
    "last_call",
    "expected_nodes",
    "rank_policy",
    "max_restarts",
    "stop_timeout",
    "regroup_stop_timeout",
    "log_dir",
)
"""Options that are settings, by the same name."""
_SECRETS: Final = {
    "token": ("token", "give --token-file, or set RALLYPOINT_TOKEN"),
    "etcd_password": ("password", "write password_file=FILE into the endpoint"),
}


class _Given(dict[str, Any]):
    """Settings by name, as they were given; which option each came from, for errors."""

    def __init__(self) -> None:
        super().__init__()
        self._labels: dict[str, str] = {}

    def add(self, name: str, text: str, label: str) -> None:
        """Take it, unless it cannot be read or another option says otherwise."""
        known = settings.setting(name)
        if known.secret:
            what, instead = _SECRETS[known.name]
            raise UsageError(
                f"{label}: a {what} on a command line is seen by every user of the machine",
                hint=instead,
            )
        settings.read(known, text, label)
        if self.get(known.name, text) != text:
            raise UsageError(
                f"{self._labels[known.name]} and {label} contradict each other: "
                f"{self[known.name]!r} and {text!r}",
                hint="give one of them",
            )
        self[known.name] = text
        self._labels[known.name] = label


def _given(options: Options, note: Note) -> dict[str, Any]:
    given = _Given()
    for name in _OPTIONS:
        if options.get(name) is not None:
            given.add(name, options[name], f"--{name.replace('_', '-')}")
    for name, text in _pairs(options.get("set") or (), "--set", "NAME=VALUE"):
        given.add(name, text, f"--set {name}")
    _add_torchrun(given, options, note)
    if options.get("standalone"):
        _stand_alone(given)
    return given


def _stand_alone(given: _Given) -> None:
    endpoint = given.get("endpoint")
    if endpoint:
        raise UsageError(
            f"--standalone has no endpoint, and {endpoint!r} is given", hint="leave out one of them"
        )
    if given.get("nnodes") not in (None, "1", "1:1"):
        raise UsageError(
            f"--standalone is one node, and --nnodes {given['nnodes']} is given",
            hint="leave out one of them",
        )
    given["endpoint"], given["nnodes"] = "", "1"  # whatever the environment says


def _labels(texts: Iterable[str]) -> dict[str, str]:
    return dict(_pairs(texts, "--label", "NAME=TEXT"))


def _pairs(texts: Iterable[str], option: str, form: str) -> list[tuple[str, str]]:
    """Each text as what is before and after its first equals sign."""
    found = []
    for text in texts:
        name, separator, value = text.partition("=")
        if not separator or not name.strip():
            raise UsageError(f"{option} must be {form}, not {text!r}")
        found.append((name.strip(), value))
    return found


# -- torchrun ------------------------------------------------------------------------------------

_OF_C10D: Final = {
    "join_timeout": "join_timeout",
    "last_call_timeout": "last_call",
    "read_timeout": "connect_timeout",
}
_OF_C10D_ONLY: Final = frozenset(
    {"close_timeout", "keep_alive_interval", "keep_alive_max_attempt", "heartbeat_timeout"}
    | {"store_type", "use_libuv", "timeout"}
)
"""What only torch's own rendezvous has: it polls, and its store is a server of its own."""


def _add_torchrun(given: _Given, options: Options, note: Note) -> None:
    backend = options.get("rdzv_backend") or "rallypoint"
    if backend not in ("rallypoint", "c10d"):
        raise UsageError(
            f"--rdzv-backend {backend} is none of rallypoint's",
            hint="leave it out: --endpoint says where the nodes meet",
        )
    for name, known in (("rdzv_endpoint", "endpoint"), ("rdzv_id", "run_id")):
        if options.get(name):
            given.add(known, options[name], f"--{name.replace('_', '-')}")
    for key, text in _conf(options.get("rdzv_conf") or ""):
        _add_conf(given, key, text, note)
    if options.get("monitor_interval") is not None:
        note("--monitor-interval has no effect: workers are watched, not polled")


def _conf(text: str) -> list[tuple[str, str]]:
    parts = [part for part in text.split(",") if part.strip()]
    return [(key, value.strip()) for key, value in _pairs(parts, "--rdzv-conf", "K=V,K=V")]


def _add_conf(given: _Given, key: str, text: str, note: Note) -> None:
    label = f"--rdzv-conf {key}"
    if key == "is_host":
        given.add("host_coordinator", _yes_or_no(text, label), label)
    elif key in _OF_C10D_ONLY:
        note(f"{label} has no effect: it belongs to torch's own rendezvous")
    else:
        given.add(_OF_C10D.get(key, key), text, label)


def _yes_or_no(text: str, label: str) -> str:
    # What torch's RendezvousParameters.get_as_bool takes (rendezvous/api.py).
    if text.lower() in ("1", "true", "t", "yes", "y"):
        return "yes"
    if text.lower() in ("0", "false", "f", "no", "n"):
        return "no"
    raise UsageError(f"{label} must be true or false, not {text!r}")


def _refuse_decided_elsewhere(options: Options) -> None:
    if options.get("node_rank") is not None:
        raise UsageError(
            "--node-rank cannot be given: the nodes agree on their ranks",
            hint="leave it out; --rank-policy natural orders nodes by their names",
        )
    for name in ("master_addr", "master_port"):
        if options.get(name) is not None:
            raise UsageError(
                f"--{name.replace('_', '-')} cannot be given: it is agreed anew for each round",
                hint="leave it out; --endpoint HOST:PORT says where the nodes meet",
            )


# -- the program ---------------------------------------------------------------------------------


def program_argv(options: Options) -> tuple[str, ...]:
    """What each worker executes. Raises UsageError, ProgramNotFoundError."""
    program = tuple(options.get("program") or ())
    if not program or not program[0]:
        raise UsageError(
            "no program to run",
            hint="put it after the options: rallypoint run --nproc-per-node 2 train.py",
        )
    if options.get("no_python"):
        return _executable_argv(program, options)
    python = _python(options.get("python"))
    if options.get("module"):
        return (python, "-u", "-m", *program)
    _check_script(program[0])
    return (python, "-u", *program)


def _executable_argv(program: tuple[str, ...], options: Options) -> tuple[str, ...]:
    for other in ("module", "python"):
        if options.get(other):
            raise UsageError(f"--no-python and --{other} exclude each other")
    if shutil.which(program[0]) is None:
        hint = "check the path, that the file is executable, and PATH"
        raise ProgramNotFoundError(program[0], hint=hint)
    return program


def _python(path: str | None) -> str:
    if path is None:
        return sys.executable
    if shutil.which(path) is None:
        raise ProgramNotFoundError(path, hint="--python names an interpreter on this node")
    return path


def _check_script(path: str) -> None:
    """A directory or a zip file with a __main__.py is a script too: Python will see."""
    if Path(path).exists():
        return
    raise ProgramNotFoundError(path, hint=_script_hint(path))


def _script_hint(path: str) -> str:
    if path.isdigit():
        return "torchrun's --tee takes a number; here it is --tee or --no-tee alone"
    if shutil.which(path) is not None:
        return "to run an executable, put --no-python before it"
    return "check the path; -m runs a module, --no-python an executable"
