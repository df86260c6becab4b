"""Which backends there are, and what importing the package costs.

Backends of installed packages are tested with a distribution made up on the search path, each in a
process of its own: what a process has found stays registered.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tomllib
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from rallypoint.rendezvous import (
    RendezvousHandler,
    RendezvousHandlerRegistry,
    RendezvousParameters,
    registry,
    rendezvous_handler_registry,
)
from tests.rendezvous.dummy_handler import DummyHandler, parameters

ROOT = Path(__file__).parents[2]


def run(program: str, *search: Path, timeout_s: float = 60) -> subprocess.CompletedProcess[str]:
    """Run a program in which torch cannot be imported."""
    path = [str(ROOT / "src"), *map(str, search)]
    prelude = f"import sys; sys.path[:0] = {path!r}; sys.modules['torch'] = None\n"
    return subprocess.run(
        [sys.executable, "-c", prelude + program],
        capture_output=True,
        text=True,
        timeout=timeout_s,
        check=False,
    )


def result_of(program: str, *search: Path) -> Any:
    """The JSON that a program prints last."""
    done = run(program, *search)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


# -- built in ------------------------------------------------------------------------------------


def test_only_the_handler_of_parameters_is_public() -> None:
    assert registry.__all__ == ["get_rendezvous_handler"]


@pytest.mark.parametrize(
    ("backend", "modules"),
    [
        ("static", ["static_tcp_rendezvous"]),
        ("etcd", ["etcd_rendezvous"]),
        ("etcd-v2", ["etcd_rendezvous_backend", "dynamic_rendezvous"]),
        ("c10d", ["c10d_rendezvous_backend", "dynamic_rendezvous"]),
        ("rallypoint", ["rallypoint_rendezvous"]),
    ],
)
def test_a_built_in_backend_is_made_by_its_module(
    monkeypatch: pytest.MonkeyPatch, backend: str, modules: list[str]
) -> None:
    params = parameters(backend)
    made: list[object] = []

    def create(*given: object) -> RendezvousHandler:
        made.extend(given)
        return DummyHandler(params, backend)

    for name in modules:
        fake = SimpleNamespace(
            create_backend=lambda params: ("its backend", "its store"),
            create_handler=create,
            create_rdzv_handler=create,
        )
        monkeypatch.setitem(sys.modules, f"rallypoint.rendezvous.{name}", fake)
        monkeypatch.setattr(f"rallypoint.rendezvous.{name}", fake, raising=False)
    assert registry.get_rendezvous_handler(params).get_backend() == backend
    stores = ["its store", "its backend"] if len(modules) == 2 else []
    assert made == [*stores, params]


def test_a_user_can_replace_a_built_in_backend(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(rendezvous_handler_registry._registry, "static", registry._create_static)
    rendezvous_handler_registry.register(
        "static", lambda params: DummyHandler(params, "static"), override=True
    )
    assert isinstance(registry.get_rendezvous_handler(parameters("static")), DummyHandler)


# -- of installed packages -----------------------------------------------------------------------


@pytest.fixture
def install(tmp_path: Path) -> Callable[..., Path]:
    """Makes a distribution up: its entry points, and the source of its module `plugin`."""

    def make(source: str, **entries: str) -> Path:
        (tmp_path / "plugin.py").write_text(source)
        information = tmp_path / "made_up-1.0.dist-info"
        information.mkdir()
        (information / "METADATA").write_text("Metadata-Version: 2.1\nName: made-up\nVersion: 1\n")
        lines = [f"{name} = {value}" for name, value in entries.items()]
        (information / "entry_points.txt").write_text("\n".join(["[torchrun.handlers]", *lines]))
        return tmp_path

    return make


PLUGIN = """
from rallypoint.rendezvous import RendezvousHandler
class Mine(RendezvousHandler):
    def __init__(self, params): self.params = params
    def get_backend(self): return self.params.backend
    def next_rendezvous(self): raise NotImplementedError
    def is_closed(self): return False
    def set_closed(self): pass
    def num_nodes_waiting(self): return 0
    def get_run_id(self): return self.params.run_id
    def shutdown(self): return True
def creator(): return Mine
def fails(): raise OSError("no licence")
"""

MAKE = """
import json, logging
logging.basicConfig(level="WARNING", stream=sys.stderr)
from rallypoint.rendezvous import RendezvousParameters, rendezvous_handler_registry
from rallypoint.rendezvous.registry import get_rendezvous_handler
def make(backend): return get_rendezvous_handler(RendezvousParameters(backend, "h:1", "r", 1, 1))
"""


@pytest.mark.processes
def test_a_backend_of_an_installed_package_is_found_on_demand(
    install: Callable[..., Path],
) -> None:
    folder = install(PLUGIN, mine="plugin:creator")
    program = MAKE + (
        "before = 'plugin' in sys.modules\n"
        "print(json.dumps([before, type(make('mine')).__name__, make('mine').get_backend()]))"
    )
    assert result_of(program, folder) == [False, "Mine", "mine"]


@pytest.mark.processes
def test_a_broken_backend_causes_a_warning_and_the_others_load(
    install: Callable[..., Path],
) -> None:
    folder = install(PLUGIN, broken="plugin:fails", absent="nowhere:creator", mine="plugin:creator")
    done = run(MAKE + "print(type(make('mine')).__name__)\nmake('broken')", folder)
    assert done.stdout == "Mine\n"
    assert "'broken' of an installed package (plugin:fails) cannot be used" in done.stderr
    assert "OSError: no licence" in done.stderr
    assert "'absent' of an installed package (nowhere:creator) cannot be used" in done.stderr
    assert "No module named 'nowhere'" in done.stderr
    *_, error, note = done.stderr.splitlines()
    assert error.startswith("ValueError: The rendezvous backend 'broken' is not registered.")
    assert note == "Registered are: c10d, etcd, etcd-v2, mine, rallypoint, static."


@pytest.mark.processes
def test_a_package_cannot_replace_a_registered_name(install: Callable[..., Path]) -> None:
    folder = install(PLUGIN, static="plugin:creator", mine="plugin:creator")
    program = MAKE + "make('mine')\nprint(rendezvous_handler_registry._registry['static'].__name__)"
    done = run(program, folder)
    assert done.stdout == "_create_static\n", done.stderr
    assert "'static' of an installed package (plugin:creator) cannot be used" in done.stderr


@pytest.mark.processes
def test_our_entry_point_is_for_torchs_registry_only(install: Callable[..., Path]) -> None:
    folder = install(PLUGIN, rallypoint="plugin:creator", mine="plugin:creator")
    program = MAKE + (
        "make('mine')\nprint(rendezvous_handler_registry._registry['rallypoint'].__name__)"
    )
    done = run(program, folder)
    assert (done.stdout, done.stderr) == ("_create_rallypoint\n", "")


@pytest.mark.processes
def test_they_can_be_registered_at_once_as_torchs_package_does(
    install: Callable[..., Path],
) -> None:
    folder = install(PLUGIN, mine="plugin:creator")
    program = MAKE + (
        "from rallypoint import rendezvous\n"
        "rendezvous._register_out_of_tree_handlers()\n"
        "print(json.dumps('mine' in rendezvous.rendezvous_handler_registry._registry))"
    )
    assert result_of(program, folder) is True


def test_a_separate_registry_has_only_its_own_backends() -> None:
    own = RendezvousHandlerRegistry()
    with pytest.raises(ValueError, match="Registered are: none"):
        own.create_handler(RendezvousParameters("static", "h:1", "r", 1, 1))


def test_torchrun_finds_us_by_the_entry_point() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert project["entry-points"][registry.ENTRY_POINT_GROUP] == {
        "rallypoint": "rallypoint.rendezvous.rallypoint_rendezvous:torchrun_handler"
    }


# -- importing -----------------------------------------------------------------------------------


@pytest.mark.processes
def test_importing_the_package_imports_little_and_no_torch() -> None:
    loaded = result_of(
        "import json, rallypoint.rendezvous, rallypoint.rendezvous.registry\n"
        "import rallypoint.rendezvous.api, rallypoint.rendezvous.utils\n"
        "print(json.dumps(sorted(sys.modules)))"
    )
    heavy = {"aiohttp", "websockets", "msgspec", "asyncio", "numpy", "importlib.metadata"}
    assert heavy & set(loaded) == set()
    assert [name for name in loaded if name.startswith("torch.")] == []
    assert [name for name in loaded if name.startswith("rallypoint.")] == [
        "rallypoint._version",
        # What log lines are cleaned and limited with.
        "rallypoint.core",
        "rallypoint.core.printable",
        "rallypoint.line_limits",
        "rallypoint.logs",
        "rallypoint.rendezvous",
        "rallypoint.rendezvous.api",
        "rallypoint.rendezvous.registry",
        "rallypoint.rendezvous.utils",
    ]


@pytest.mark.processes
def test_the_static_backend_imports_its_client_on_demand() -> None:
    loaded = result_of(
        "import json, rallypoint.rendezvous.static_tcp_rendezvous\n"
        "print(json.dumps(sorted(sys.modules)))"
    )
    assert {"aiohttp", "websockets", "asyncio", "rallypoint.client"} & set(loaded) == set()


@pytest.mark.processes
def test_every_module_can_be_imported_without_torch() -> None:
    names = sorted(path.stem for path in (ROOT / "src/rallypoint/rendezvous").glob("[a-z]*.py"))
    assert "static_tcp_rendezvous" in names
    imports = "\n".join(f"import rallypoint.rendezvous.{name}" for name in names)
    loaded = result_of(f"import json\n{imports}\nprint(json.dumps(sorted(sys.modules)))")
    assert [each for each in loaded if each.startswith("torch.")] == []
