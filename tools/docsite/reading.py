"""Reads the repository's Python files. The only file that uses griffe.

griffe provides the definitions. Imports are read from the syntax tree, because griffe omits those
in functions, and lazy imports count, too.
"""

from __future__ import annotations

import ast
from collections.abc import Iterable, Iterator
from pathlib import Path, PurePosixPath

import griffe

from tools.docsite.model import Definition, Import, Kind, SourceFile
from tools.docsite.text import first_sentence

PARTS = ("src", "tests", "examples", "benchmarks", "tools")
"""The folders whose files have a page each."""


def python_files(root: Path) -> list[PurePosixPath]:
    """Every Python file of the parts, by path."""
    found = (path for part in PARTS for path in (root / part).rglob("*.py"))
    return sorted(PurePosixPath(path.relative_to(root).as_posix()) for path in found)


def read_all(root: Path) -> tuple[SourceFile, ...]:
    """Every Python file of the parts, read, by path."""
    return tuple(read(root, path) for path in python_files(root))


def read(root: Path, path: PurePosixPath) -> SourceFile:
    """One file. Raises SyntaxError if it is not Python."""
    text = (root / path).read_text(encoding="utf-8")
    module = module_name(path)
    is_package = path.name == "__init__.py"
    tree = ast.parse(text, filename=str(path))
    seen = griffe.visit(module, filepath=root / path, code=text)
    return SourceFile(
        path=path,
        module=module,
        purpose=ast.get_docstring(tree) or "",
        text=text,
        definitions=tuple(_definitions(seen)),
        imports=tuple(_imports(tree, module if is_package else module.rpartition(".")[0])),
    )


def module_name(path: PurePosixPath) -> str:
    """The dotted name by which a file is imported; files in src are imported from there."""
    parts = [*path.with_suffix("").parts]
    if parts[0] == "src":
        del parts[0]
    if parts[-1] == "__init__":
        del parts[-1]
    return ".".join(parts)


def _definitions(module: griffe.Module) -> Iterator[Definition]:
    for member in _own(module):
        if member.is_class:
            yield _definition(member, member.name, "class")
            for part in _own(member):
                if part.is_function or "property" in part.labels:
                    yield _definition(part, f"{member.name}.{part.name}", "method")
        elif member.is_function:
            yield _definition(member, member.name, "function")
        elif member.is_attribute and member.name.isupper():
            yield _definition(member, member.name, "constant")


def _own(holder: griffe.Object) -> Iterable[griffe.Object]:
    """Its members in the order of their lines, without imported names."""
    members = [
        each
        for each in holder.members.values()
        if isinstance(each, griffe.Object) and each.lineno is not None
    ]
    return sorted(members, key=lambda each: each.lineno or 0)


def _definition(member: griffe.Object, name: str, kind: Kind) -> Definition:
    return Definition(
        name=name,
        kind=kind,
        line=member.lineno or 1,
        signature=f"{member.name}{_parameters(member)}",
        purpose=first_sentence(member.docstring.value) if member.docstring else "",
    )


def _parameters(member: griffe.Object) -> str:
    """Only the names: the listing has types and defaults. "" if it takes none, like a class."""
    if not isinstance(member, griffe.Function):
        return ""
    shown: list[str] = []
    for each in member.parameters:
        if each.kind is griffe.ParameterKind.keyword_only and not any(
            name.startswith("*") for name in shown
        ):
            shown.append("*")
        stars = {
            griffe.ParameterKind.var_positional: "*",
            griffe.ParameterKind.var_keyword: "**",
        }.get(each.kind, "")
        if each.name not in ("self", "cls"):
            shown.append(f"{stars}{each.name}")
    return f"({', '.join(shown)})"


def _imports(tree: ast.Module, package: str) -> Iterator[Import]:
    """Every import, at any level; `package` is the start of relative imports."""
    pending: list[tuple[ast.AST, bool]] = [(tree, False)]
    while pending:
        node, is_lazy = pending.pop(0)
        if isinstance(node, ast.Import):
            yield from (Import(each.name, node.lineno, is_lazy) for each in node.names)
        elif isinstance(node, ast.ImportFrom):
            module = node.module or ""
            if node.level:
                above = package.split(".")[: len(package.split(".")) - node.level + 1]
                module = ".".join([*above, *([module] if module else [])])
            yield from (
                Import(f"{module}.{each.name}", node.lineno, is_lazy) for each in node.names
            )
        inside = is_lazy or isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        pending += [(child, inside) for child in ast.iter_child_nodes(node)]
