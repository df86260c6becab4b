"""docs/from-torch.md says what is there: every option, every name, and examples that run."""

from __future__ import annotations

import ast
import importlib
import importlib.util
import os
import re
import shlex
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from rallypoint.rendezvous import rallypoint_rendezvous
from rallypoint.rendezvous._node_handler import NodeRendezvousHandler
from rallypoint.rendezvous.api import RendezvousParameters
from tests.kinds import only_long
from tests.ports import free_port

ROOT = Path(__file__).parents[2]
DOC = ROOT / "docs" / "from-torch.md"
README = ROOT / "README.md"
TORCH = "torch.distributed.elastic.rendezvous"
OURS = "rallypoint.rendezvous"
MODULES = (
    "api",
    "registry",
    "utils",
    "static_tcp_rendezvous",
    "dynamic_rendezvous",
    "c10d_rendezvous_backend",
    "etcd_rendezvous_backend",
    "etcd_rendezvous",
    "etcd_store",
    "etcd_server",
)
SPANS = frozenset(re.findall(r"`([^`\n]+)`", DOC.read_text(encoding="utf-8")))

needs_torch = pytest.mark.skipif(
    importlib.util.find_spec("torch") is None, reason="torch is not installed"
)


def blocks(path: Path, language: str) -> list[str]:
    """The code blocks of a page in one language, in order."""
    text = path.read_text(encoding="utf-8")
    return re.findall(rf"^```{language}\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)


def section(path: Path, heading: str) -> str:
    """What is below a heading of a page."""
    text = path.read_text(encoding="utf-8")
    return text.partition(f"\n## {heading}\n")[2].partition("\n## ")[0]


def torchrun_commands(text: str) -> list[list[str]]:
    """The commands in a page's blocks, lines that go on with a backslash put together."""
    lines = text.replace("\\\n", " ")
    found = re.findall(r"^(?:\$ |\s+)(torchrun [^\n&]+)", lines, re.MULTILINE)
    return [shlex.split(command) for command in found]


# -- options -------------------------------------------------------------------------------------


def test_each_option_has_one_row() -> None:
    rows = re.findall(r"^\| (`.*?) \|", section(DOC, "Options of --rdzv-conf"), re.MULTILINE)
    listed = [name for row in rows for name in re.findall(r"`(\w+)`", row)]
    assert sorted(listed) == sorted(rallypoint_rendezvous.OPTIONS)


@pytest.mark.parametrize("option", ["orphan=never", "last_call=500ms", "is_host=true"])
def test_values_are_parsed_as_the_page_says(option: str) -> None:
    name, _, value = option.partition("=")
    made = RendezvousParameters("rallypoint", "host0:1", "job", 2, 4, **{name: value})
    assert isinstance(rallypoint_rendezvous.create_handler(made), NodeRendezvousHandler)


# -- names ---------------------------------------------------------------------------------------


def public_names(name: str) -> set[str]:
    """What a module of torch's exports, or defines without an underscore.

    Read from its source: torch's etcd modules cannot be imported without packages of their own.
    """
    spec = importlib.util.find_spec(f"{TORCH}.{name}")
    assert spec is not None
    assert spec.origin is not None
    names: set[str] = set()
    for statement in ast.parse(Path(spec.origin).read_text(encoding="utf-8")).body:
        match statement:
            case ast.ClassDef(name=defined) | ast.FunctionDef(name=defined):
                names.add(defined)
            case ast.Assign(targets=[ast.Name(id="__all__")], value=exported):
                names |= set(ast.literal_eval(exported))
            case ast.Assign(targets=[ast.Name(id=defined)]) if defined.isupper():
                names.add(defined)
    return {each for each in names if not each.startswith("_")}


@pytest.mark.torch
@needs_torch
@pytest.mark.parametrize("name", MODULES)
def test_every_public_name_of_torchs_modules_is_listed(
    name: str,
) -> None:
    names = public_names(name)
    assert names
    assert names <= SPANS
    ours = importlib.import_module(f"{OURS}.{name}")
    absent = {each for each in names if not hasattr(ours, each)}
    assert not absent


@pytest.mark.parametrize("name", MODULES)
def test_every_module_and_what_it_exports_is_listed(name: str) -> None:
    assert name in SPANS
    ours = importlib.import_module(f"{OURS}.{name}")
    assert set(ours.__all__) <= SPANS


# -- commands and programs -----------------------------------------------------------------------


@pytest.mark.torch
@needs_torch
@pytest.mark.parametrize("path", [DOC, README], ids=lambda path: path.name)
def test_torchrun_takes_the_commands_and_the_backend_their_options(path: Path) -> None:
    from torch.distributed.run import config_from_args, get_args_parser

    commands = torchrun_commands(path.read_text(encoding="utf-8"))
    assert commands
    for _, *arguments in commands:
        parsed = get_args_parser().parse_args(arguments)
        assert parsed.rdzv_backend == "rallypoint"
        parsed.nproc_per_node = "1"
        config, _, _ = config_from_args(parsed)
        made = RendezvousParameters(
            "rallypoint",
            config.rdzv_endpoint,
            config.run_id,
            config.min_nodes,
            config.max_nodes,
            **config.rdzv_configs,
        )
        rallypoint_rendezvous.create_handler(made)


def test_the_python_examples_are_python() -> None:
    examples = blocks(DOC, "python")
    assert len(examples) == 5
    for example in examples:
        ast.parse(example)


@pytest.mark.processes
@pytest.mark.parametrize(
    ("number", "said"),
    [(1, ["0 1 "]), (2, ["reduced 1.0"]), (3, ["rank 0 of 2", "rank 1 of 2"]), (4, [])],
    ids=["handler", "world-store", "own-backend", "override"],
)
def test_the_examples_run_unchanged(number: int, said: list[str]) -> None:
    example = blocks(DOC, "python")[number].replace("29400", str(free_port()))
    kept = {k: v for k, v in os.environ.items() if not k.startswith("RALLYPOINT_")}
    env = kept | {"PYTHONPATH": str(ROOT / "src")}
    command = [sys.executable, "-c", example]
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    for line in said:
        assert line in done.stdout


@only_long
@needs_torch
@pytest.mark.processes
@pytest.mark.verify
@pytest.mark.timeout(300)  # where no name server answers, torch waits for names
@pytest.mark.skipif(not (ROOT / "examples").exists(), reason="there are no examples here")
def test_the_command_of_the_readme_works_as_pasted(tmp_path: Path) -> None:
    (command,) = [each for each in blocks(README, "sh") if "torchrun" in each]
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    kept = {k: v for k, v in os.environ.items() if not k.startswith("RALLYPOINT_")}
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    done = subprocess.run(
        ["bash", "-c", command.replace("29400", str(free_port()))],
        env=kept | {"PATH": path, "PYTHONPATH": str(ROOT / "src")},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=280,
    )
    assert "2 workers go on from epoch 0 of 20" in done.stdout, done.stderr
    assert "test accuracy 0.9" in done.stdout, done.stderr
    assert "Traceback" not in done.stderr, done.stderr


def test_the_entry_point_is_of_torchs_group() -> None:
    (example,) = blocks(DOC, "toml")
    assert "torchrun.handlers" in tomllib.loads(example)["project"]["entry-points"]


def test_links_have_a_target() -> None:
    targets = re.findall(r"\]\(([^)#]+)\)", DOC.read_text(encoding="utf-8"))
    assert targets
    assert [each for each in targets if not (DOC.parent / each).exists()] == []
