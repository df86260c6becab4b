"""The public modules and their names, read from the source without importing it."""

from __future__ import annotations

import ast
from pathlib import Path

MODULES = {
    "rallypoint": "The native API, blocking.",
    "rallypoint.aio": "The native API for asyncio.",
    "rallypoint.torch": "torch's process group over the worlds of a run.",
    "rallypoint.jax": "JAX over the worlds of a run.",
    "rallypoint.rendezvous": "torch's elastic rendezvous, name for name.",
    "rallypoint.ledger.contract": "What a ledger must offer.",
    "rallypoint.testing": "What the author of a ledger runs against it.",
    "rallypoint.settings": "Settings: their names, defaults and how their text is read.",
    "rallypoint.errors": "Every error, with its exit code and what to do.",
}
"""The public modules. The modules of the package `SUBMODULES` with an `__all__` are added."""

SUBMODULES = "rallypoint.rendezvous"


def modules(src: Path) -> list[str]:
    """Every public module: those of `MODULES`, each followed by its public submodules."""
    found: list[str] = []
    for name in MODULES:
        found.append(name)
        if name == SUBMODULES:
            folder = src.joinpath(*name.split("."))
            files = sorted(folder.glob("[a-z]*.py"))
            found += [f"{name}.{each.stem}" for each in files if _exported(_tree(each)) is not None]
    return found


def names(src: Path, module: str) -> list[str]:
    """The public names of a module: its `__all__`, or else its definitions without underscore."""
    tree = _tree(source_of(src, module))
    exported = _exported(tree)
    found = _defined(tree) if exported is None else exported
    return sorted(each for each in found if not each.startswith("_"))


def source_of(src: Path, module: str) -> Path:
    """The file of a module."""
    path = src.joinpath(*module.split("."))
    return path / "__init__.py" if path.is_dir() else path.with_suffix(".py")


def docstring(src: Path, module: str) -> str:
    """The docstring of a module; "" if it has none."""
    return ast.get_docstring(_tree(source_of(src, module))) or ""


def _tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"), filename=str(path))


def _exported(tree: ast.Module) -> list[str] | None:
    for statement in tree.body:
        match statement:
            case ast.Assign(targets=[ast.Name(id="__all__")], value=value):
                return [str(each) for each in ast.literal_eval(value)]
    return None


def _defined(tree: ast.Module) -> list[str]:
    found: list[str] = []
    for statement in tree.body:
        match statement:
            case ast.ClassDef(name=name) | ast.FunctionDef(name=name):
                found.append(name)
            case ast.AsyncFunctionDef(name=name):
                found.append(name)
            case ast.AnnAssign(target=ast.Name(id=name)) | ast.Assign(targets=[ast.Name(id=name)]):
                found.append(name)
            case ast.ImportFrom(names=imported):  # `import X as X` re-exports X
                found += [each.name for each in imported if each.asname == each.name]
    return found
