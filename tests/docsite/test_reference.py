"""The reference has every public name, command, option, setting, error and exit code."""

from __future__ import annotations

import importlib
import inspect
import re
from pathlib import Path, PurePosixPath
from typing import Any

import pytest

from rallypoint import errors
from rallypoint.settings import SETTINGS
from tests.docsite.pages import ROOT
from tools.docsite import commands, hints, public, reference
from tools.docsite.model import SourceFile

SRC = ROOT / "src"
MODULES = public.modules(SRC)


def source_files() -> list[SourceFile]:
    """The package's files, without what only griffe finds in them."""
    return [
        SourceFile(
            PurePosixPath(path.relative_to(ROOT).as_posix()), "", "", path.read_text(), (), ()
        )
        for path in sorted(SRC.rglob("*.py"))
    ]


@pytest.fixture(scope="module")
def pages() -> dict[PurePosixPath, str]:
    return dict(reference.pages(ROOT, source_files()))


def imported_names(module: str) -> set[str]:
    """The public names of a module, as Python itself sees them."""
    loaded: Any = importlib.import_module(module)
    if hasattr(loaded, "__all__"):
        return {each for each in loaded.__all__ if not each.startswith("_")}
    return {
        name
        for name, value in vars(loaded).items()
        if not name.startswith("_") and getattr(value, "__module__", "") == module
    }


@pytest.mark.parametrize("module", MODULES)
def test_every_public_name_has_an_anchor(module: str, pages: dict[PurePosixPath, str]) -> None:
    page = pages[reference.page_of(module)]
    there = set(re.findall(rf"^::: {re.escape(module)}\.(\w+)$", page, re.MULTILINE))
    names = imported_names(module)
    assert names
    assert names <= there, names - there


def test_every_public_module_of_the_compatibility_page_has_a_page() -> None:
    text = (ROOT / "docs/compatibility.md").read_text()
    (row,) = re.findall(r"^\| public names \|(.*)$", text, re.MULTILINE)
    assert set(re.findall(r"`(rallypoint[\w.]*)`", row)) <= set(MODULES)


def test_every_rendezvous_module_with_public_names_has_a_page() -> None:
    folder = Path(str(importlib.import_module(public.SUBMODULES).__file__)).parent
    with_names = {
        f"{public.SUBMODULES}.{path.stem}"
        for path in folder.glob("*.py")
        if path.stem != "__init__" and "\n__all__ = " in path.read_text()
    }
    assert with_names
    assert with_names <= set(MODULES)


def test_the_index_links_to_every_name(pages: dict[PurePosixPath, str]) -> None:
    for module in MODULES:
        for name in imported_names(module):
            assert f"#{module}.{name})" in pages[reference.INDEX]


def test_every_command_and_option_is_listed(pages: dict[PurePosixPath, str]) -> None:
    sections = dict(
        re.findall(r"^## (.+?)\n(.*?)(?=^## |\Z)", pages[commands.PAGE], re.MULTILINE | re.DOTALL)
    )
    found = list(commands.commands())
    assert {"rallypoint run", "rallypoint token new"} <= {name for name, _ in found}
    for name, command in found:
        for parameter in command.params:
            if not getattr(parameter, "hidden", False):
                for written in commands.option_names(parameter):
                    assert f"`{written}`" in sections[name], (name, written)


def test_every_setting_is_listed(pages: dict[PurePosixPath, str]) -> None:
    for each in SETTINGS:
        assert f"- `{each.name}`, `{each.variable}`, " in pages[reference.SETTINGS]


def test_every_exit_code_and_every_error_is_listed(
    pages: dict[PurePosixPath, str],
) -> None:
    page = pages[reference.ERRORS]
    for each in errors.ExitCode:
        assert f"| {each.value} | `{each.name}` | " in page
    for name, kind in vars(errors).items():
        if inspect.isclass(kind) and issubclass(kind, errors.RallypointError):
            assert f"::: {errors.__name__}.{name}\n" in page
            assert name in (errors.__doc__ or ""), f"{name} is not in the tree of the docstring"


def test_the_errors_say_what_to_do(pages: dict[PurePosixPath, str]) -> None:
    found = hints.hints(source_files(), {})
    assert len(found["UsageError"]) > 10
    assert "hints say:" in pages[reference.ERRORS]


@pytest.mark.parametrize(
    ("lines", "expected"),
    [
        ('raise UsageError("no", hint="give one")', {"UsageError": ["give one"]}),
        ('raise errors.UsageError("no", hint=f"give {x}")', {"UsageError": ["give …"]}),
        ('raise UsageError("no", hint=WHERE)', {"UsageError": ["look there"]}),
        ('raise UsageError("no", hint="a" if x else "b")', {"UsageError": ["a", "b"]}),
        ('raise UsageError("no", hint=x or "a")', {"UsageError": ["a"]}),
        ('raise UsageError("no", hint="a" + WHERE)', {"UsageError": ["alook there"]}),
        ('y = "a"\n    raise UsageError("no", hint=y[:9])', {"UsageError": ["a"]}),
        ('y = "a"\n    y += "; b"\n    raise UsageError("no", hint=y)', {"UsageError": ["a", "b"]}),
        (
            'y = "a"\n    raise UsageError(hint=y)\n    y = "b"\n    raise LimitError(hint=y)',
            {"UsageError": ["a"], "LimitError": ["b"]},
        ),
        ('raise UsageError("no", hint=other())', {"UsageError": ["from there"]}),
        ('return Refusal(RefusalCode.TOKEN, "no", hint="a")', {"TokenError": ["a"]}),
        ('return Refusal(RefusalCode.TOKEN, "no", "a")', {"TokenError": ["a"]}),
        ('return Refusal(RefusalCode.ELSE, "no", "a")', {"RefusedError": ["a"]}),
        ('raise UsageError("no", hint=x)', {}),
        ('raise UsageError("no")', {}),
        ('print("no", hint="a")', {}),
    ],
)
def test_hints_are_read_from_the_source(lines: str, expected: dict[str, list[str]]) -> None:
    text = f'WHERE = "look there"\ndef f(x):\n    {lines}\ndef other():\n    return "from there"\n'
    file = SourceFile(PurePosixPath("x.py"), "x", "", text, (), ())
    found = hints.hints([file], {"TOKEN": "TokenError"})
    assert {name: [each.text for each in given] for name, given in found.items()} == expected
