"""Keeps the layers: what each part of Rallypoint may import, read from its source; finds circles.

Every import counts: at the top of a file, inside a function (lazy), and under
``if TYPE_CHECKING``. The checker reports and never imports, so it also sees what would only
run on another platform. Its own tests, further down, give it packages that break each rule.
"""

from __future__ import annotations

import ast
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

SRC = Path(__file__).parents[1] / "src"
ROOT = "__init__"  # the package's own __init__.py, as a layer

# A layer is a module or a folder directly below rallypoint/. Lowest first; each names what it
# may import besides itself, and only layers above it in this table.
LAYERS: dict[str, frozenset[str]] = {
    "_version": frozenset(),
    "clock": frozenset(),
    "threads": frozenset(),
    "core": frozenset(),
    "net": frozenset({"core"}),
    "runtime": frozenset({"core", "net", "threads"}),
    "errors": frozenset({"core"}),
    "memory": frozenset({"core"}),
    "line_limits": frozenset(),
    "logs": frozenset({"core", "line_limits"}),
    "wire": frozenset({"core", "errors", "_version"}),
    "ledger_schemes": frozenset({"errors"}),
    "endpoints": frozenset({"core", "errors", "ledger_schemes"}),
    "security": frozenset({"core"}),
    "ledger": frozenset({"core", "endpoints", "errors", "ledger_schemes", "runtime", "threads"}),
    "environments": frozenset({"core", "endpoints", "errors"}),
    "settings": frozenset({"core", "endpoints", "environments", "errors", "security"}),
    "tokens": frozenset({"core", "endpoints", "errors", "security", "settings"}),
    "coordinator": frozenset({"core", "wire", "ledger", "errors", "logs", "security", "settings"})
    | {"_version", "clock", "net", "runtime", "threads", "tokens"},
    "client": frozenset({"core", "wire", "ledger", "coordinator", "endpoints", "errors", "logs"})
    | {"memory", "net", "security", "settings", "_version", "clock", "runtime", "threads"}
    | {"tokens"},
    "aio": frozenset({"client", "core", "errors", "settings", "_version"}),
    "rendezvous": frozenset({"client", "core", "wire", "ledger", "coordinator", "endpoints"})
    | {"errors", "logs", "memory", "net", "settings", "_version", "threads"},
    "torch": frozenset({"client", "errors", "rendezvous"}),
    "jax": frozenset({"client", "errors", "settings"}),
    # rendezvous: a World's store is torch's too, and only _torch_bridge.py imports torch.
    ROOT: frozenset({"aio", "client", "core", "errors", "rendezvous", "settings", "_version"}),
    "launch": frozenset(
        {
            "clock",
            "client",
            "core",
            "wire",
            "coordinator",
            "environments",
            "errors",
            "ledger",
            "logs",
            "runtime",
            "settings",
            "threads",
            "_version",
        }
    ),
    "doctor": frozenset({"aio", "client", "core", "endpoints", "errors", "ledger", "memory", "net"})
    | {"rendezvous", "runtime", "security", "settings", "threads", "tokens", "wire", "_version"}
    | {"ledger_schemes"},
    "checkers": frozenset({"core", "wire", "client", "coordinator"}),
    "testing": frozenset({"client", "coordinator", "core", "errors", "ledger", "net", "settings"}),
    "pytest_plugin": frozenset({"testing"}),
    "simulation": frozenset(
        {"client", "coordinator", "core", "endpoints", "errors", "launch", "ledger", "net"}
    )
    | {"runtime", "security", "settings", "checkers", "wire"},
    "bench": frozenset({ROOT, "client", "coordinator", "core", "endpoints", "errors", "settings"})
    | {"environments", "net", "security", "wire", "_version"},
}
ABOVE_ALL = frozenset({"cli", "__main__"})  # what a person types may import everything

# An allow-list, so that whatever is new (a clock, a socket, a logger) has to be argued for here.
CORE_MAY_IMPORT = frozenset(
    {"__future__", "collections", "dataclasses", "enum", "typing", "types", "itertools"}
    | {"functools", "bisect", "heapq", "operator", "re", "math", "string", "hashlib", "json"}
    | {"textwrap", "msgspec", "ipaddress"}
)

# What torch's classes look like is known in one file, so that all else runs and is tested without.
TORCH_FILE = "rendezvous/_torch_bridge.py"
# Adapters, each for programs with its framework. No layer may import them.
ADAPTERS = {"torch.py": "torch", "jax.py": "jax"}
# Programs of their own, which `bench recover --ddp` starts as workers.
TORCH_PROGRAMS = (
    "bench/ddp_worker.py",
    "bench/ddp_yielding_worker.py",
    "bench/kept_ddp_worker.py",
)

# Only settings reads the environment, so that one place has every variable's name, type and
# precedence. Other modules that read it are named here, with the reason.
ENVIRONMENT_EXEMPT = {
    "settings/environment.py": "the reader",
    "bench/processes.py": "starts what is measured without this shell's settings, reads none",
    "launch/preload_process.py": "watches the environment for its workers, reads no setting",
    "launch/worker_env.py": "copies the agent's environment into its workers', reads no setting",
}
ENVIRONMENT_NAMES = frozenset(
    {"environ", "environb", "getenv", "getenvb", "putenv", "unsetenv", "expandvars"}
)

# A computed import cannot be checked here. Modules that need one are named with the reason.
COMPUTED_IMPORT_EXEMPT = {
    "launch/preload_process.py": "imports what the user names, in a process of its own",
    "__init__.py": "public names are loaded when first used, from a table of its own modules",
}


# Modules that import each other, at the top or inside a function or for types alone. Each circle is
# the set of its modules, below rallypoint/. There is one, and none may come in addition.
CIRCLES_ALLOWED: frozenset[frozenset[str]] = frozenset(
    {
        # Torch's shape: the registry of its `api` module, which all backends import, has to load
        # the backends.
        frozenset(
            {
                "rendezvous._node_handler",
                "rendezvous.api",
                "rendezvous.c10d_rendezvous_backend",
                "rendezvous.dynamic_rendezvous",
                "rendezvous.etcd_blocking",
                "rendezvous.etcd_rendezvous",
                "rendezvous.etcd_rendezvous_backend",
                "rendezvous.etcd_store",
                "rendezvous.rallypoint_rendezvous",
                "rendezvous.registry",
                "rendezvous.static_tcp_rendezvous",
            }
        ),
    }
)


@dataclass(frozen=True)
class Import:
    line: int
    name: str  # dotted and absolute; "" where the name is computed


def violations(package: Path) -> list[str]:
    """Everything in `package`, a folder holding rallypoint's source, that breaks a layer.

    Each is one line, ``path:line: what and what would be allowed``, in order of path and line.
    """
    found: list[str] = []
    for path in sorted(package.rglob("*.py")):
        where = path.relative_to(package)
        source = ast.parse(path.read_text(encoding="utf-8"), filename=str(path))
        layer = where.parts[0].removesuffix(".py")
        if layer not in LAYERS and layer not in ABOVE_ALL:
            found.append(f"{where}:1: {layer} is no layer; give it a place in LAYERS")
            continue
        imports = sorted(_imports(source, _package_of(package, path)), key=lambda i: i.line)
        for each in imports:
            problem = _import_problem(package, layer, where, each)
            if problem:
                found.append(f"{where}:{each.line}: {problem}")
        if str(where) not in ENVIRONMENT_EXEMPT:
            found += [
                f"{where}:{line}: touches the environment ({name}); only settings may"
                for line, name in _environment_uses(source)
            ]
    return found


def _import_problem(package: Path, layer: str, where: Path, each: Import) -> str | None:
    if each.name == "":
        if str(where) in COMPUTED_IMPORT_EXEMPT:
            return None
        return "imports a computed name, which no test can check"
    top = _top(each.name)
    if top == package.name:
        target = _layer_of(package, each.name)
        if target == layer or layer in ABOVE_ALL or target in LAYERS[layer]:
            return None
        if target == "torch" and where.as_posix() in TORCH_PROGRAMS:
            return None
        allowed = ", ".join(sorted(LAYERS[layer])) or "nothing else of the package"
        return f"{layer} imports {target}; it may import {allowed}"
    if layer == "core" and top not in CORE_MAY_IMPORT:
        return (
            f"core imports {top}; outside itself it may import {', '.join(sorted(CORE_MAY_IMPORT))}"
        )
    if top in ("torch", "jax") and ADAPTERS.get(where.as_posix()) != top:
        if top == "torch" and where.as_posix() in (TORCH_FILE, *TORCH_PROGRAMS):
            return None
        return f"{layer} imports {top}; only {TORCH_FILE} and {top}.py may"
    return None


def circles(package: Path) -> set[frozenset[str]]:
    """The sets of modules in `package` that can reach each other by imports; dotted names."""
    modules = {_module_of(package, path): path for path in package.rglob("*.py")}
    graph = {name: _imported(package, path, modules) - {name} for name, path in modules.items()}
    reached = {name: _reachable(graph, name) for name in graph}
    return {
        frozenset(other for other in reached[name] if name in reached[other])
        for name in graph
        if name in reached[name]
    }


def _module_of(package: Path, path: Path) -> str:
    parts = path.relative_to(package).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def _imported(package: Path, path: Path, modules: dict[str, Path]) -> set[str]:
    """The modules that this file loads by its imports: those named, and the packages around them.

    The packages around the file itself are not among them, as they are loaded before it.
    """
    source = ast.parse(path.read_text(encoding="utf-8"), filename=str(path))
    around = {"", *_packages_around(_module_of(package, path))}
    found: set[str] = set()
    for each in _imports(source, _package_of(package, path)):
        parts = each.name.split(".")
        if parts[0] == package.name:
            names = [".".join(parts[1:end]) for end in range(len(parts), 0, -1)]
            for name in [name for name in names if name in modules][:1]:
                found |= {name} | ({*_packages_around(name)} & modules.keys()) - around
    return found


def _packages_around(module: str) -> list[str]:
    parts = module.split(".")
    return [".".join(parts[:end]) for end in range(1, len(parts))]


def _reachable(graph: dict[str, set[str]], start: str) -> set[str]:
    found: set[str] = set()
    waiting = [start]
    while waiting:
        for name in graph[waiting.pop()] - found:
            found.add(name)
            waiting.append(name)
    return found


def _top(name: str) -> str:
    return name.partition(".")[0]


def _package_of(package: Path, path: Path) -> list[str]:
    """The dotted package that relative imports in `path` start from."""
    return [package.name, *path.relative_to(package).parent.parts]


def _layer_of(package: Path, name: str) -> str:
    """The layer of an absolute name inside the package: ``rallypoint.core.ranks`` -> ``core``.

    What is no module of its own (``rallypoint.join``) is a name in the package's __init__.
    """
    parts = name.split(".")
    if len(parts) == 1:
        return ROOT
    module = package / parts[1]
    known = module.is_dir() or module.with_suffix(".py").exists()
    return parts[1] if known or parts[1] in LAYERS or parts[1] in ABOVE_ALL else ROOT


def _imports(source: ast.Module, inside: list[str]) -> Iterator[Import]:
    for node in ast.walk(source):
        if isinstance(node, ast.Import):
            yield from (Import(node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            start = inside[: len(inside) - node.level + 1] if node.level else []
            module = ".".join([*start, *([node.module] if node.module else [])])
            # `from rallypoint import core` names the layer only in its last part.
            yield from (Import(node.lineno, f"{module}.{alias.name}") for alias in node.names)
        elif isinstance(node, ast.Call) and _called(node) in {"import_module", "__import__"}:
            yield Import(node.lineno, _literal_import(node, inside))


def _called(call: ast.Call) -> str:
    match call.func:
        case ast.Name(id=name) | ast.Attribute(attr=name):
            return name
    return ""


def _literal_import(call: ast.Call, inside: list[str]) -> str:
    match call.args:
        case [ast.Constant(value=str(name)), *_]:
            stripped = name.lstrip(".")
            level = len(name) - len(stripped)
            start = inside[: len(inside) - level + 1] if level else []
            return ".".join([*start, stripped])
    return ""


def _environment_uses(source: ast.Module) -> Iterator[tuple[int, str]]:
    os_names = {
        alias.asname or alias.name
        for node in ast.walk(source)
        if isinstance(node, ast.Import)
        for alias in node.names
        if alias.name in {"os", "posix"}
    }
    for node in ast.walk(source):
        match node:
            case ast.ImportFrom(module="os" | "posix" | "os.path", names=names):
                yield from (
                    (node.lineno, alias.name) for alias in names if alias.name in ENVIRONMENT_NAMES
                )
            case ast.Attribute(value=ast.Name(id=name), attr=attr) if (
                name in os_names and attr in ENVIRONMENT_NAMES
            ):
                yield node.lineno, f"{name}.{attr}"
            case ast.Attribute(attr="expandvars"):
                yield node.lineno, "expandvars"
            # typer and click would read the variable themselves.
            case ast.keyword(arg="envvar" | "auto_envvar_prefix" as option):
                yield node.value.lineno, f"{option}="


# --- the package as it is ---------------------------------------------------------------------


def test_the_package_keeps_its_layers() -> None:
    assert (SRC / "rallypoint").is_dir()
    assert violations(SRC / "rallypoint") == []


def test_only_the_named_modules_import_each_other() -> None:
    assert circles(SRC / "rallypoint") == CIRCLES_ALLOWED


def test_the_table_is_ordered_so_no_layer_can_import_one_above_it() -> None:
    order = list(LAYERS)
    for layer, allowed in LAYERS.items():
        assert allowed <= set(order[: order.index(layer)]), layer


@pytest.mark.processes
def test_importing_the_package_imports_little() -> None:
    heavy = ["aiohttp", "websockets", "typer", "rich", "torch", "jax", "numpy"]
    program = (
        "import json, sys, rallypoint\n"
        "print(json.dumps([rallypoint.__file__, sorted(sys.modules)]))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        env=os.environ | {"PYTHONPATH": str(SRC)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    file, loaded = json.loads(done.stdout)
    # Without an __init__.py the import would succeed, empty, and prove nothing.
    assert file == str(SRC / "rallypoint" / "__init__.py")
    assert [name for name in heavy if name in loaded] == []


# --- the checker itself -----------------------------------------------------------------------


def _check(tmp_path: Path, **sources: str) -> list[str]:
    """What the checker says of a package of `sources`; `__` in a name stands for a slash."""
    package = tmp_path / "rallypoint"
    for name, text in sources.items():
        path = package / f"{name.replace('__', '/')}.py"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    return violations(package)


@pytest.mark.parametrize(
    ("where", "source", "told"),
    [
        ("core__ranks", "import asyncio", "core imports asyncio"),
        ("core__ranks", "from time import monotonic", "core imports time"),
        ("core__ranks", "import os.path", "core imports os"),
        ("core__ranks", "def f():\n    import random", "core imports random"),
        (
            "core__ranks",
            "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import socket",
            "core imports socket",
        ),
        ("core__ranks", "import aiohttp", "core imports aiohttp"),
        ("core__ranks", "from rallypoint.errors import Closed", "core imports errors"),
        ("core__ranks", "from ..wire import messages", "core imports wire"),
        ("core__deep__ranks", "from ... import wire", "core imports wire"),
        ("core__ranks", "__import__('logging')", "core imports logging"),
        ("wire__messages", "from rallypoint import client", "wire imports client"),
        ("wire__messages", "import rallypoint.settings", "wire imports settings"),
        ("ledger__file", "from ..wire.messages import Hello", "ledger imports wire"),
        ("coordinator__server", "from ..client import node", "coordinator imports client"),
        ("coordinator__server", "from rallypoint import join", "coordinator imports __init__"),
        (
            "client__node",
            "def f():\n    from rallypoint.launch.agent import Agent",
            "client imports launch",
        ),
        ("launch__agent", "from rallypoint.cli import main", "launch imports cli"),
        (
            "client__node",
            "import importlib\nimportlib.import_module('rallypoint.cli')",
            "client imports cli",
        ),
        (
            "client__node",
            "import importlib\nimportlib.import_module('..cli', __package__)",
            "client imports cli",
        ),
        (
            "client__node",
            "import importlib\nimportlib.import_module(name)",
            "imports a computed name",
        ),
        ("client__node", "import torch", "client imports torch"),
        ("client__node", "import jax", "client imports jax"),
        ("client__node", "import rallypoint.torch", "client imports torch"),
        ("torch", "import jax", "torch imports jax"),
        ("cli__doctor", "def f():\n    from torch import distributed", "cli imports torch"),
        ("launch__agent", "import torch.distributed", "launch imports torch"),
        ("rendezvous__api", "import torch", "rendezvous imports torch"),
        ("client__node", "import os\nos.environ['A']", "environment (os.environ)"),
        ("client__node", "import os as _os\n_os.getenv('A')", "environment (_os.getenv)"),
        ("client__node", "from os import environ", "environment (environ)"),
        ("cli__run", "typer.Option(1, envvar='A')", "environment (envvar=)"),
        ("launch__agent", "import os\nos.environ.copy()", "environment (os.environ)"),
        ("extras__thing", "", "extras is no layer"),
    ],
)
def test_the_checker_finds(tmp_path: Path, where: str, source: str, told: str) -> None:
    found = _check(tmp_path, **{where: source})
    line = source.count("\n") + 1  # the last one breaks the rule
    assert len(found) == 1, found
    assert found[0].startswith(f"{where.replace('__', '/')}.py:{line}: ")
    assert told in found[0]


def test_the_checker_allows_what_the_layers_allow(tmp_path: Path) -> None:
    found = _check(
        tmp_path,
        core__ranks="from __future__ import annotations\nimport msgspec\nfrom . import values",
        core__values="from collections.abc import Sequence\nfrom .ranks import x",
        errors="from rallypoint.core.reasons import Reason",
        settings__environment="import os\nfrom ..errors import SettingsError\nos.environ.get('A')",
        wire__messages="import time\nfrom rallypoint.core import values",
        coordinator__server="import aiohttp\nfrom ..wire import messages\nfrom .. import ledger",
        client__node="def f():\n    from rallypoint.coordinator import server",
        rendezvous__api="import rallypoint.core\nfrom rallypoint import endpoints, ledger, wire",
        rendezvous___torch_bridge="def f():\n    import torch.distributed",
        torch="import torch.distributed\nfrom rallypoint.client import blocking",
        launch__worker_env="import os\nos.environ.copy()\nos.getpid()",
        cli__main="import typer\nfrom rallypoint import join\nfrom ..launch import agent",
    )
    assert found == []


def test_import_circles_are_found_at_any_place_of_an_import(tmp_path: Path) -> None:
    package = tmp_path / "rallypoint"
    sources = {
        "core/__init__.py": "from rallypoint.core.ranks import rank",
        "core/ranks.py": "from . import values",
        "core/values.py": "def f():\n    from rallypoint.core.ranks import rank",
        "client/node.py": "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n"
        "    from ..client import world",
        "client/world.py": "import rallypoint.client.dialing",
        "client/dialing.py": "from rallypoint.client.node import Node",
        "client/identity.py": "from rallypoint.client import world, identity",
        "ledger/file/__init__.py": "from rallypoint.ledger.file.disk import Disk",
        "ledger/file/disk.py": "from rallypoint.ledger.open import Ledger",
        "ledger/open.py": "from rallypoint.ledger.file.names import Names",
        "ledger/file/names.py": "",
    }
    for name, text in sources.items():
        (package / name).parent.mkdir(parents=True, exist_ok=True)
        (package / name).write_text(text, encoding="utf-8")
    assert circles(package) == {
        frozenset({"core.ranks", "core.values"}),
        frozenset({"client.node", "client.world", "client.dialing"}),
        # To load ledger.file.names is to load its package.
        frozenset({"ledger.file", "ledger.file.disk", "ledger.open"}),
    }


# Torch's modules have these as dataclasses, and programs use them as such.
DATACLASSES_ALLOWED = frozenset({"rendezvous/api.py", "rendezvous/dynamic_rendezvous.py"})


def test_values_are_of_one_kind() -> None:
    """A value is a msgspec struct: no dataclass and no named tuple."""
    package = SRC / "rallypoint"
    other = {
        path.relative_to(package).as_posix()
        for path in package.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text("utf-8")))
        if isinstance(node, ast.ClassDef)
        and any(
            each in ast.unparse(part)
            for part in (*node.decorator_list, *node.bases)
            for each in ("dataclass", "NamedTuple")
        )
    }
    assert other == DATACLASSES_ALLOWED
