"""The hints of errors: every `hint` that the source gives to an error or a refusal."""

from __future__ import annotations

import ast
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath

from tools.docsite.model import SourceFile

GAP = "…"
"""Replaces a part of a text that exists only when the error is created."""


@dataclass(frozen=True)
class Hint:
    """One hint, and where it is given."""

    text: str
    path: PurePosixPath
    line: int


def hints(files: Iterable[SourceFile], refused: Mapping[str, str]) -> dict[str, list[Hint]]:
    """The hints of each class of error, by its name.

    `refused` maps the name of each refusal code to the class of its error.
    """
    found: dict[str, list[Hint]] = defaultdict(list)
    for file in files:
        reader = _Reader(ast.parse(file.text))
        for call, scope in reader.calls:
            name, value = _error_and_hint(call, refused)
            if value is None:
                continue
            for text in reader.texts(value, scope):
                if text.strip(f"{GAP}; "):
                    found[name].append(Hint(text.strip(",; "), file.path, value.lineno))
    return {name: _without_repeats(given) for name, given in found.items()}


def _without_repeats(given: Sequence[Hint]) -> list[Hint]:
    return list({each.text: each for each in given}.values())


def _error_and_hint(call: ast.Call, refused: Mapping[str, str]) -> tuple[str, ast.expr | None]:
    """The class of the error that a call creates, and its hint; None without error or hint."""
    given = next((each.value for each in call.keywords if each.arg == "hint"), None)
    match call:
        case ast.Call(
            func=ast.Name(id="Refusal") | ast.Attribute(attr="Refusal"),
            args=[ast.Attribute(attr=code), *rest],
        ):
            name = refused.get(code, "RefusedError")
            return name, rest[1] if given is None and len(rest) > 1 else given
        case ast.Call(func=ast.Name(id=name) | ast.Attribute(attr=name)) if name.endswith("Error"):
            return name, given
    return "", None


@dataclass(frozen=True)
class _Assigned:
    value: ast.expr
    is_added: bool
    """Whether it was appended to the earlier text, by `+=`."""


_Scope = Mapping[str, list[_Assigned]]
_Function = ast.FunctionDef | ast.AsyncFunctionDef
_DEPTH_MAX = 6


class _Reader:
    """One file: its calls, and the texts that an expression in it may be."""

    def __init__(self, tree: ast.Module) -> None:
        self._constants = _assigned(tree.body)
        self._returned: dict[str, tuple[list[ast.expr], _Scope]] = {}
        self.calls: list[tuple[ast.Call, _Scope]] = []
        for node in ast.walk(tree):
            if isinstance(node, _Function):
                inside = list(ast.walk(node))
                scope = _assigned(inside)
                values = [each.value for each in inside if isinstance(each, ast.Return)]
                self._returned[node.name] = ([each for each in values if each], scope)
                self.calls += [(each, scope) for each in inside if isinstance(each, ast.Call)]

    def texts(self, value: ast.expr, scope: _Scope, depth: int = 0) -> list[str]:
        """Every text that an expression may have, judging by this file."""
        if depth > _DEPTH_MAX:
            return [GAP]

        def within(*parts: ast.expr) -> list[str]:
            return [text for each in parts for text in self.texts(each, scope, depth + 1)]

        match value:
            case ast.Constant(value=str(text)):
                return [text]
            case ast.JoinedStr(values=parts):
                return ["".join(_part(each) for each in parts)]
            case ast.BinOp(left=left, op=ast.Add(), right=right):
                ends = within(right)
                return [begin + end for begin in within(left) for end in ends]
            case ast.IfExp(body=one, orelse=other):
                return within(one, other)
            case ast.BoolOp(values=parts):
                return within(*parts)
            case ast.Subscript(value=whole, slice=ast.Slice()):
                return within(whole)
            case ast.Name(id=name) if name in scope:
                return within(*_last_before(scope[name], value.lineno))
            case ast.Name(id=name) if name in self._constants:
                return within(*(each.value for each in self._constants[name]))
            case ast.Call(func=ast.Name(id=name)) if name in self._returned:
                values, inner = self._returned[name]
                return [text for each in values for text in self.texts(each, inner, depth + 1)]
        return [GAP]


def _assigned(nodes: Iterable[ast.AST]) -> dict[str, list[_Assigned]]:
    """What each name is set to, in the order of the lines."""
    found: dict[str, list[_Assigned]] = defaultdict(list)
    for node in nodes:
        match node:
            case ast.Assign(targets=[ast.Name(id=name)], value=value):
                found[name].append(_Assigned(value, is_added=False))
            case ast.AnnAssign(target=ast.Name(id=name), value=ast.expr() as value):
                found[name].append(_Assigned(value, is_added=False))
            case ast.AugAssign(target=ast.Name(id=name), value=value):
                found[name].append(_Assigned(value, is_added=True))
    return {
        name: sorted(given, key=lambda each: each.value.lineno) for name, given in found.items()
    }


def _last_before(given: Sequence[_Assigned], line: int) -> list[ast.expr]:
    """The values of a name at a line: the last assignment, and the additions since then.

    If two branches both assign it, only the lower one counts.
    """
    found: list[ast.expr] = []
    for each in given:
        if each.value.lineno < line:
            found = [*found, each.value] if each.is_added else [each.value]
    return found


def _part(value: ast.expr) -> str:
    return str(value.value) if isinstance(value, ast.Constant) else GAP
