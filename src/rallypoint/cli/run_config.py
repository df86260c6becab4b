"""Turns the options of `rallypoint run` into the agent's configuration.

This file and settings/ read options and environment, and search the program. It must not start,
join or write anything. An option of torchrun is accepted if it has the same meaning here, and
refused with a hint if not.
"""

from __future__ import annotations

import re
import secrets
import shlex
import shutil
import sys
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeVar

import msgspec

from rallypoint import settings
from rallypoint.cli import devices, output
from rallypoint.core.values import RUN_OPTIONS, STOP_S_MAX, RunSettings
from rallypoint.endpoints import asks_for_any_port
from rallypoint.environments import Found
from rallypoint.errors import LauncherError, ProgramNotFoundError, UsageError
from rallypoint.launch.console_rule import (
    NO_STREAMS,
    ConsoleRule,
    Streams,
    read_local_ranks,
    read_streams,
)
from rallypoint.launch.worker_env import ROLE
from rallypoint.settings import Endpoint, EndpointKind, NodeSettings
from rallypoint.settings.environment import variables
from rallypoint.settings.table import BY_NAME

if TYPE_CHECKING:
    from rallypoint.launch.agent import AgentConfig
    from rallypoint.launch.notices import NoticePlan
    from rallypoint.launch.warm_starts import Preload

HANG_TIMEOUT_S: Final = 600.0
"""After how long without progress a round ends, with --hang and without --hang-timeout."""
Options = Mapping[str, Any]
"""The options by name; None or an empty value for those that were not given."""
Note = Callable[[str], None]
_T = TypeVar("_T")


def build_config(
    options: Options,
    *,
    environ: Mapping[str, str] | None = None,
    note: Note = output.note,
) -> AgentConfig:
    """The agent's settings. `note` is called with remarks for the user.

    Raises:
        UsageError: a value is not allowed. The text names the option or variable.
        ProgramNotFoundError: the program does not exist here.
    """
    given = _given(options, note)
    try:
        return _config(options, given, environ, note)
    except UsageError as error:
        named = _options_of(error, given)
        if not named:
            raise
        told = f"{', '.join(named)} {'sets it' if len(named) == 1 else 'set them'}"
        hint = f"{error.hint}; {told}" if error.hint else told
        raise UsageError(error.message, hint=hint) from None


def _config(
    options: Options, given: _Given, environ: Mapping[str, str] | None, note: Note
) -> AgentConfig:
    found = settings.launched(environ, is_node=True, **given)
    run = settings.run_settings(
        environ=environ, found=found, **_named(given, (*RunSettings.__struct_fields__, "nnodes"))
    )
    if run.max_nodes == 1:
        _complete_alone(given, environ, found)
    given.check_endpoint()
    node = settings.node_settings(
        environ=environ,
        found=found,
        token_file=given.get("token_file"),
        labels=_labels(options.get("label") or ()),
        **_named(given, NodeSettings.__struct_fields__),
    )
    _check_can_meet(node.endpoint, run)
    _warn_if_alone(node.endpoint, run, note)
    _note_agreed(options, node.endpoint, note)
    regroup_stop_timeout_s = _duration_s("regroup_stop_timeout_s", given, environ)
    check = settings.resolve("check", given.get("check"), environ).value
    check_timeout_s = _duration_s("check_timeout_s", given, environ)
    # The node is ready for the next round when its workers have stopped, and its check has ended.
    stop_s = regroup_stop_timeout_s + (check_timeout_s if check is not None else 0.0)
    unwind_s = _unwind_s(options, given, environ)
    stop_s += unwind_s or 0.0
    node = msgspec.structs.replace(node, stop_s=min(stop_s, STOP_S_MAX))
    hang = settings.resolve("hang", given.get("hang"), environ).value
    if hang is not None and node.hang_timeout_s is None:
        node = msgspec.structs.replace(node, hang_timeout_s=HANG_TIMEOUT_S)
    argv = _exported(program_argv(options), options.get("export"))
    wanted = settings.resolve("nproc_per_node", given.get("nproc_per_node"), environ, found).value
    workers = devices.count_workers(wanted, environ=environ, note=note)
    if workers > 1 and found.crowded is not None:
        raise LauncherError(found.crowded.message, hint=found.crowded.hint)
    for warning in found.warnings:
        note(f"warning: {warning}")
    log_dir = settings.resolve("log_dir", given.get("log_dir"), environ).value
    # Last, so that a mistake is reported before the agent's libraries are loaded.
    from rallypoint.launch.agent import AgentConfig

    return AgentConfig(
        node=node,
        run=run,
        argv=argv,
        workers=workers,
        stop_timeout_s=_duration_s("stop_timeout_s", given, environ),
        regroup_stop_timeout_s=regroup_stop_timeout_s,
        log_dir=log_dir,
        check=check,
        check_timeout_s=check_timeout_s,
        share_lines=settings.resolve("share_lines", given.get("share_lines"), environ).value,
        stdin=_stdin(options.get("stdin"), workers),
        console=_console_rule(options, has_files=log_dir is not None),
        prefix=bool(options.get("prefix", True)),
        prefix_template=options.get("log_line_prefix_template"),
        role=_role(options.get("role")),
        virtual_local_rank=bool(options.get("virtual_local_rank")),
        sees_own_device=_sees_own_device(options.get("visible_devices")),
        cpus=_cpus(options.get("numa_binding"), workers, environ),
        preload=_preload(options, argv, given, environ),
        hang=hang,
        unwind_s=unwind_s,
        notices=_notices(options),
        ends_at_s=found.ends_at_s if _is_default("stop_timeout_s", given, environ) else None,
    )


def _options_of(error: UsageError, given: _Given) -> tuple[str, ...]:
    """The options of the settings that an error names, if it names no option.

    Such a text is also for programs, which have no options.
    """
    if type(error) is not UsageError or "--" in str(error):
        return ()
    names = re.findall(r"[a-z]+(?:_[a-z]+)+", error.message)
    return tuple(dict.fromkeys(each for name in names if (each := given.option_of(name))))


def _named(given: Mapping[str, Any], names: Iterable[str]) -> dict[str, Any]:
    return {name: given[name] for name in names if name in given}


def _notices(options: Options) -> NoticePlan:
    """Raises UsageError for a command that cannot be read."""
    from rallypoint.launch.notices import NoticePlan

    file, command = options.get("notice_file"), options.get("notice_command")
    try:
        words = tuple(shlex.split(command)) if command else ()
    except ValueError as error:
        raise UsageError(f"--notice-command {command!r} cannot be read: {error}") from error
    return NoticePlan(Path(file) if file else None, words)


def _duration_s(name: str, given: Mapping[str, Any], environ: Mapping[str, str] | None) -> float:
    seconds: float = settings.resolve(name, given.get(name), environ).value
    settings.check_duration_s(name, seconds)
    return seconds


def _is_default(name: str, given: Mapping[str, Any], environ: Mapping[str, str] | None) -> bool:
    return settings.resolve(name, given.get(name), environ).source == "default"


def _check_can_meet(endpoint: Endpoint, run: RunSettings) -> None:
    if endpoint.kind is EndpointKind.LOCAL and run.max_nodes > 1:
        raise UsageError(
            f"up to {run.max_nodes} nodes need --endpoint: they have no place to meet",
            hint="give every node the same --endpoint HOST:PORT, or --nnodes 1",
        )


def _complete_alone(given: _Given, environ: Mapping[str, str] | None, found: Found) -> None:
    """Complete the settings of a single node, which needs no fixed port and no run id."""
    if given.any_port:
        given["endpoint"] = ""
    has_id = settings.resolve("run_id", given.get("run_id"), environ, found).value is not None
    if not has_id and settings.resolve("endpoint", given.get("endpoint"), environ, found).value:
        given["run_id"] = f"local-{secrets.token_hex(6)}"


def _warn_if_alone(endpoint: Endpoint, run: RunSettings, note: Note) -> None:
    if endpoint.kind is not EndpointKind.HOST or run.max_nodes == 1:
        return
    if endpoint.host in ("localhost", "0.0.0.0", "::"):
        note(
            f"warning: {endpoint.host} means each machine itself: nodes on other machines cannot "
            "find this one; give the name or address of one host"
        )


def _stdin(text: str | None, workers: int) -> int | None:
    """The local rank that reads this command's standard input."""
    if text is None:
        return 0 if workers == 1 else None
    if text == "none":
        return None
    if not (text.isascii() and text.isdigit() and len(text) < 10 and int(text) < workers):
        raise UsageError(f"--stdin must be a local rank below {workers}, or none, not {text!r}")
    return int(text)


# -- the workers' output -------------------------------------------------------------------------


def _console_rule(options: Options, *, has_files: bool) -> ConsoleRule:
    ranks = options.get("local_ranks_filter")
    return ConsoleRule(
        # Without files --no-tee would throw the output away.
        tee=bool(options.get("tee", True)) or not has_files,
        redirected=_streams(options.get("redirects"), "--redirects"),
        teed=_streams(options.get("tee_streams"), "--tee"),
        local_ranks=_read(read_local_ranks, ranks, "--local-ranks-filter") if ranks else None,
    )


def _streams(text: str | None, option: str) -> Streams:
    return NO_STREAMS if text is None else _read(read_streams, text, option)


def _read(read: Callable[[str], _T], text: str, option: str) -> _T:
    try:
        return read(text)
    except ValueError as error:
        raise UsageError(f"{option} {error}") from error


def _role(text: str | None) -> str:
    if text is None:
        return ROLE
    if not text or not text.isprintable():
        raise UsageError(f"--role must be a printable name, not {text!r}")
    return text


def _sees_own_device(text: str | None) -> bool:
    if text not in (None, "all", "own"):
        raise UsageError(
            f"--visible-devices must be all or own, not {text!r}",
            hint="all: every worker sees all devices; own: only that of its local rank",
        )
    return text == "own"


def _cpus(
    text: str | None, workers: int, environ: Mapping[str, str] | None
) -> tuple[frozenset[int], ...]:
    """The CPUs of each worker; empty without --numa-binding."""
    if text is None:
        return ()
    from rallypoint.launch import affinity

    mode = affinity.parse(text)
    topology = affinity.read_topology(variables(environ))
    return tuple(affinity.cpus_of(mode, local_rank, topology) for local_rank in range(workers))


# -- warm starts ---------------------------------------------------------------------------------


def _preload(
    options: Options, argv: tuple[str, ...], given: _Given, environ: Mapping[str, str] | None
) -> Preload | None:
    """What --preload asks for; None without it."""
    names = options.get("preload_modules")
    if names is None and not options.get("preload"):
        return None
    from rallypoint.launch.warm_starts import Preload

    modules = tuple(dict.fromkeys(each.strip() for each in (names or "").split(",")))
    if names is not None:
        _check_modules(modules, options)
    return Preload(
        modules=modules if names is not None else (),
        learn_after_s=_duration_s("preload_after_s", given, environ),
        problem=_why_cold(options, argv),
    )


def _unwind_s(options: Options, given: _Given, environ: Mapping[str, str] | None) -> float | None:
    """How long a worker has to ask for the next world; None without --keep-workers."""
    if not options.get("keep_workers"):
        return None
    if options.get("export"):
        raise UsageError(
            f"--keep-workers and --export {options['export']} exclude each other: the exported "
            "variables are those of one round",
            hint="leave out one of them",
        )
    return _duration_s("unwind_s", given, environ)


def _check_modules(modules: tuple[str, ...], options: Options) -> None:
    for each in modules:
        if not _are_modules([each]):
            raise UsageError(
                f"--preload must be names of modules such as torch,my.module, not {each!r}",
                hint="without =NAMES the modules are learned from the first round",
            )
    program = options["program"][0]
    if options.get("module") and {program, f"{program}.__main__"} & {*modules}:
        raise UsageError(
            f"--preload names the program itself, {program}",
            hint="name the modules that it imports",
        )


def _are_modules(names: Iterable[str]) -> bool:
    return all(part.isidentifier() for each in names for part in each.split("."))


def _why_cold(options: Options, argv: tuple[str, ...]) -> str:
    """Why workers cannot be forks of a process of this interpreter; "" if they can."""
    if sys.platform != "linux":
        return "this system is not Linux"
    if options.get("no_python"):
        return "with --no-python, the program need not be Python's"
    if options.get("python") and argv[0] != sys.executable:
        return f"--python {argv[0]} is another interpreter than the agent's, {sys.executable}"
    if options.get("export"):
        return f"with --export {options['export']}, another program starts each worker"
    if options.get("numa_binding"):
        return "with --numa-binding, libraries must see a worker's CPUs when they are loaded"
    return ""


# -- the given options ---------------------------------------------------------------------------

_READ_ELSEWHERE: Final = ("cooldown", "insecure", "log_format")
_OPTIONS: Final = tuple(
    stem
    for each in settings.SETTINGS
    if (stem := each.name.removesuffix("_s")) not in _READ_ELSEWHERE
    and each.option == f"--{stem.replace('_', '-')}"
)
"""Options that are settings, by the same name."""
_SECRETS: Final = {
    "token": ("token", "give --token-file, or set RALLYPOINT_TOKEN"),
    "etcd_password": ("password", "write password_file=FILE into the endpoint"),
}


class _Given(dict[str, Any]):
    """The given settings by name, with the option of each, for errors."""

    def __init__(self) -> None:
        super().__init__()
        self._labels: dict[str, str] = {}
        self.any_port = ""
        """The option that gave an endpoint with port 0, if one did."""

    def add(self, name: str, text: str, label: str) -> None:
        """Set the value. Raises UsageError if it cannot be read, or contradicts another option."""
        known = settings.setting(name)
        if known.secret:
            what, instead = _SECRETS[known.name]
            raise UsageError(
                f"{label}: a {what} on a command line is seen by every user of the machine",
                hint=instead,
            )
        if known.name == "endpoint" and asks_for_any_port(text):
            self.any_port = label
        else:
            settings.read(known, text, label)
        if self.get(known.name, text) != text:
            raise UsageError(
                f"{self._labels[known.name]} and {label} contradict each other: "
                f"{self[known.name]!r} and {text!r}",
                hint="give one of them",
            )
        self[known.name] = text
        self._labels[known.name] = label

    def option_of(self, name: str) -> str:
        """What has set it, or can set it; "" if that is no setting."""
        if name in self._labels:
            return self._labels[name]
        known = BY_NAME.get(name)
        return RUN_OPTIONS.get(name, "") if known is None else known.option

    def check_endpoint(self) -> None:
        """Refuse port 0 if other nodes have to know the port. Raises EndpointError."""
        if self.get("endpoint"):
            settings.read(settings.setting("endpoint"), self["endpoint"], self._labels["endpoint"])


def _given(options: Options, note: Note) -> _Given:
    given = _Given()
    for name in _OPTIONS:
        if options.get(name) is not None:
            given.add(name, options[name], f"--{name.replace('_', '-')}")
    if options.get("cooldown") is not None:
        _add_cooldown(given, options["cooldown"])
    for name, text in _pairs(options.get("set") or (), "--set", "NAME=VALUE"):
        given.add(name, text, f"--set {name}")
    if options.get("insecure"):
        given.add("insecure", "yes", "--insecure")
    _add_torchrun(given, options, note)
    if options.get("standalone"):
        _stand_alone(given)
    return given


def _add_cooldown(given: _Given, text: str) -> None:
    """MIN:MAX, or MIN alone, as two settings."""
    least, separator, most = text.partition(":")
    given.add("cooldown", least, "--cooldown")
    if separator:
        given.add("cooldown_max", most, "--cooldown")


def _stand_alone(given: _Given) -> None:
    endpoint = given.get("endpoint")
    if endpoint and not given.any_port:
        raise UsageError(
            f"--standalone uses no endpoint, but {endpoint!r} is given", hint="remove one of them"
        )
    if given.get("nnodes") not in (None, "1", "1:1"):
        raise UsageError(
            f"--standalone is one node, but --nnodes {given['nnodes']} is given",
            hint="remove one of them",
        )
    given["endpoint"], given["nnodes"] = "", "1"  # with any environment


def _labels(texts: Iterable[str]) -> dict[str, str]:
    return dict(_pairs(texts, "--label", "NAME=TEXT"))


def _pairs(texts: Iterable[str], option: str, form: str) -> list[tuple[str, str]]:
    """Each text, split at its first equals sign."""
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
"""Options that only torch's own rendezvous has, because it polls and has a separate store server.
"""


_WITHOUT_EFFECT: Final = {
    "monitor_interval": "workers are watched, not polled",
    "start_method": "each worker is a separate program",
    "signals_to_handle": "SIGTERM, SIGINT and SIGHUP stop the workers; "
    "SIGUSR1 and SIGUSR2 are passed on to them",
    "event_log_handler": "`rallypoint status --json` and /api/v1 show what happened",
    "logs_specs": "--log-dir, --redirects and --tee say where output goes",
    "duplicate_stdout_filters": "--log-dir keeps every line",
    "duplicate_stderr_filters": "--log-dir keeps every line",
    "run_path": "the script is run by Python as it is",
}
"""Options of torchrun that change nothing here, with the reasons."""
_AGREED: Final = {
    "node_rank": "the nodes agree on their ranks",
    "master_addr": "the nodes agree on it for each round",
    "master_port": "the nodes agree on it for each round",
}


def _add_torchrun(given: _Given, options: Options, note: Note) -> None:
    backend = options.get("rdzv_backend") or "rallypoint"
    if backend not in ("rallypoint", "c10d"):
        raise UsageError(
            f"--rdzv-backend {backend} is not supported by `rallypoint run`",
            hint="remove it: --endpoint says where the nodes meet",
        )
    for name, known in (("rdzv_endpoint", "endpoint"), ("rdzv_id", "run_id")):
        if options.get(name):
            given.add(known, options[name], f"--{name.replace('_', '-')}")
    for key, text in _conf(options.get("rdzv_conf") or ""):
        _add_conf(given, key, text, note)
    if options.get("shutdown_timeout") is not None:
        given.add("stop_timeout", options["shutdown_timeout"], "--shutdown-timeout")
    for name, why in _WITHOUT_EFFECT.items():
        if options.get(name):
            note(f"--{name.replace('_', '-')} has no effect: {why}")


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


def _note_agreed(options: Options, endpoint: Endpoint, note: Note) -> None:
    """Note options of a static rendezvous, which batch scripts often give beside an endpoint.

    Raises UsageError without an endpoint: these options alone cannot make the nodes meet.
    """
    for name, why in _AGREED.items():
        option = f"--{name.replace('_', '-')}"
        if options.get(name) is None:
            continue
        if endpoint.kind is EndpointKind.LOCAL and not options.get("standalone"):
            raise UsageError(
                f"{option} alone is not enough: the nodes need an endpoint to meet at",
                hint="give every node the same --endpoint HOST:PORT and --run-id",
            )
        note(f"{option} has no effect: {why}")


# -- the program ---------------------------------------------------------------------------------


def program_argv(options: Options) -> tuple[str, ...]:
    """The command of each worker. Raises UsageError and ProgramNotFoundError."""
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
    _check_script(program, options)
    return (python, "-u", *program)


def _exported(argv: tuple[str, ...], export: str | None) -> tuple[str, ...]:
    """The command of a worker that first gets the variables of `--export`."""
    if export is None:
        return argv
    if export != "tf":
        raise UsageError(f"--export must be tf, not {export!r}")
    return (sys.executable, "-m", "rallypoint.launch.exports", *argv)


def _executable_argv(program: tuple[str, ...], options: Options) -> tuple[str, ...]:
    for other in ("module", "python"):
        if options.get(other):
            raise UsageError(f"--no-python and --{other} cannot be given together")
    if shutil.which(program[0]) is None:
        hint = "check the path, that the file is executable, and PATH"
        raise ProgramNotFoundError(program[0], hint=hint)
    return program


def _python(path: str | None) -> str:
    if path is None:
        return sys.executable
    if shutil.which(path) is None:
        raise ProgramNotFoundError(path, hint="--python needs an interpreter on this node")
    return path


def _check_script(program: tuple[str, ...], options: Options) -> None:
    """Check the script.

    A directory or a zip file with a __main__.py is one, too; Python checks that.
    """
    path = program[0]
    if Path(path).exists():
        return
    is_list = options.get("preload") and program[1:] and _are_modules(path.split(","))
    hint = f"to name modules, write --preload={path}" if is_list else _script_hint(path)
    raise ProgramNotFoundError(path, hint=hint)


def _script_hint(path: str) -> str:
    if shutil.which(path) is not None:
        return "to run an executable, put --no-python before it"
    return "check the path; -m runs a module, --no-python an executable"
