"""Every code block of the pages is run by a test, is checked as a command, or says why not."""

from __future__ import annotations

import re
import shlex
import tomllib
from pathlib import PurePosixPath
from typing import Any

import pytest

from tests.docsite.pages import ROOT, all_blocks
from tools.docsite.blocks import Block, blocks, commands, problem
from tools.docsite.commands import commands as program_commands

COMMANDS = [(each, words) for each in all_blocks() for words in commands(each)]
OTHERS = frozenset({"export", "mpirun", "ssh", "srun"})
"""Programs that are not ours and that nothing here can check."""


def test_there_are_blocks_of_every_kind() -> None:
    languages = {each.language for each in all_blocks()}
    assert languages >= {"console", "python", "text", "sh"}
    assert len(COMMANDS) > 30


def test_every_block_has_a_test_or_a_mark() -> None:
    assert [problem(each) for each in all_blocks() if problem(each)] == []


def test_the_named_tests_exist() -> None:
    for each in all_blocks():
        if each.test:
            file, _, name = each.test.partition("::")
            assert re.search(rf"^def {name}\(", (ROOT / file).read_text(), re.MULTILINE), each


@pytest.mark.parametrize(
    ("block", "words"), COMMANDS, ids=[f"{each}:{words[0]}" for each, words in COMMANDS]
)
def test_every_command_exists(block: Block, words: list[str]) -> None:
    assert unknown(words) == "", f"{block}: {shlex.join(words)}"


# -- what a command calls ------------------------------------------------------------------------


def unknown(words: list[str]) -> str:
    """What a command names that is not there; "" if all is."""
    match words:
        case ["rallypoint", *rest]:
            return unknown_option(rest)
        case ["make", *rest]:
            makefile = (ROOT / "Makefile").read_text()
            return next(
                (f"target {each}" for each in rest if not is_in_makefile(makefile, each)), ""
            )
        case ["pip", "install", "-e", place]:
            extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
            named = re.findall(r"\[(.*)\]", place)
            known = extras["optional-dependencies"]
            wanted = [each for group in named for each in group.split(",")]
            return next((f"extra {each}" for each in wanted if each not in known), "")
        case ["python3", "-m", "venv", place] | [".", place]:
            return "" if place in {".venv", ".venv/bin/activate"} else f"environment {place}"
        case ["python", "-m", module, *_]:
            paths = [ROOT / part / module.replace(".", "/") for part in ("", "src")]
            is_there = any(each.is_dir() or each.with_suffix(".py").exists() for each in paths)
            return "" if is_there else f"module {module}"
        case ["python" | "pytest", *rest]:
            files = [each for each in rest if each.endswith(".py")]
            return next((f"file {each}" for each in files if not (ROOT / each).exists()), "")
        case ["torchrun", *_]:
            return ""  # tests/rendezvous/test_from_torch_doc.py gives them to torch's own parser
        case ["git", "worktree", "add", *_]:
            return ""
        case [other, *_] if other in OTHERS:
            return ""
    return f"program {words[0]}"


def is_in_makefile(makefile: str, word: str) -> bool:
    name, is_variable, _ = word.partition("=")
    pattern = rf"^{name} *\?=" if is_variable else rf"^{name}:"
    return re.search(pattern, makefile, re.MULTILINE) is not None


def unknown_option(words: list[str]) -> str:
    """The first word of a command line that its command does not have; "" if there is none."""
    known = dict(program_commands())
    name = "rallypoint"
    while words and f"{name} {words[0]}" in known:
        name = f"{name} {words.pop(0)}"
    command: Any = known[name]
    if getattr(command, "commands", None):
        return f"command {name} {' '.join(words[:1])}"
    options = {each for one in command.params for each in [*one.opts, *one.secondary_opts]}
    for word in words:
        if word.endswith(".py"):
            break  # what follows the program is its own
        written = word.partition("=")[0].replace("_", "-")
        if word.startswith("-") and written not in options:
            return f"option {word} of {name}"
    return ""


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("rallypoint run --nodes 2 train.py", "option --nodes of rallypoint run"),
        ("rallypoint token make", "command rallypoint token make"),
        ("rallypoint run --nnodes 2 train.py --nodes 2", ""),
        ("make dmeo", "target dmeo"),
        ("make fuzz FRAME=1", "target FRAME=1"),
        ("python benchmarks/no_such.py --only meet", "file benchmarks/no_such.py"),
        ("python -m tests.fuz", "module tests.fuz"),
        ("pip install -e '.[fats]'", "extra fats"),
        ("curl http://host0", "program curl"),
    ],
)
def test_a_missing_name_is_found(line: str, expected: str) -> None:
    assert unknown(shlex.split(line)) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("```\nx\n```\n", "p.md:1: it has no language"),
        ("\n```python\nx\n```\n", "p.md:2: a comment above must say"),
        ("```console\nmake demo\n```\n", "p.md:1: no line of it begins with $"),
        ("<!-- not run: -->\n```python\nx\n```\n", "p.md:2: a comment above must say"),
        ("<!-- not run: it needs Slurm -->\n```sh\nx\n```\n", ""),
        ("<!-- run by tests/x.py::test_x -->\n```python\nx\n```\n", ""),
        ("```text\nx\n```\n", ""),
    ],
)
def test_an_unfinished_block_is_found(text: str, expected: str) -> None:
    (block,) = blocks(PurePosixPath("p.md"), text)
    assert problem(block).startswith(expected)
    assert bool(problem(block)) == bool(expected)
