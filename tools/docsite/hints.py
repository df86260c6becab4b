"""What errors tell people to do: every `hint` that the source gives to an error or a refusal."""

from __future__ import annotations

import ast
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath

from tools.docsite.model import SourceFile

GAP = "…"
"""Stands for what is filled in when the error is made."""


@dataclass(frozen=True)
class Hint:
    """One hint, and where it is given."""

    text: str
    path: PurePosixPath
    line: int


def hints(files: Iterable[SourceFile], refused: Mapping[str, str]) -> dict[str, list[Hint]]:
    """The hints of each class of error, by its name.

    `refused` has the class that each code of a refusal becomes, by the code's name.
    """
    found: dict[str, list[Hint]] = defaultdict(list)
    for file in files:
        tree = ast.parse(file.text)
        constants = _constants(tree)
        for node in ast.walk(tree):
            if not isinstance(node, ast.Call):
                continue
            name = _class_of(node, refused)
            for keyword in node.keywords:
                if name and keyword.arg == "hint":
                    for text in _texts(keyword.value, constants):
                        if text.strip(f"{GAP}; "):
                            found[name].append(Hint(text, file.path, keyword.value.lineno))
    return {name: _without_repeats(given) for name, given in found.items()}


def _without_repeats(given: Sequence[Hint]) -> list[Hint]:
    return list({each.text: each for each in given}.values())


def _class_of(call: ast.Call, refused: Mapping[str, str]) -> str:
    match call:
        case ast.Call(
            func=ast.Name(id="Refusal") | ast.Attribute(attr="Refusal"),
            args=[ast.Attribute(attr=code), *_],
        ):
            return refused.get(code, "RefusedError")
        case ast.Call(func=ast.Name(id=name) | ast.Attribute(attr=name)):
            return name if name.endswith("Error") else ""
    return ""


def _constants(tree: ast.Module) -> dict[str, ast.expr]:
    found: dict[str, ast.expr] = {}
    for statement in tree.body:
        match statement:
            case ast.Assign(targets=[ast.Name(id=name)], value=value):
                found[name] = value
            case ast.AnnAssign(target=ast.Name(id=name), value=ast.expr() as value):
                found[name] = value
    return found


def _texts(value: ast.expr, constants: Mapping[str, ast.expr]) -> list[str]:
    """Every text that an expression may be, as far as the source shows it."""
    match value:
        case ast.Constant(value=str(text)):
            return [text]
        case ast.JoinedStr(values=parts):
            return ["".join(_part(each) for each in parts)]
        case ast.BinOp(left=left, op=ast.Add(), right=right):
            ends = _texts(right, constants)
            return [a + b for a in _texts(left, constants) for b in ends]
        case ast.IfExp(body=one, orelse=other):
            return _texts(one, constants) + _texts(other, constants)
        case ast.Name(id=name) if name in constants:
            return _texts(constants[name], constants)
    return [GAP]


def _part(value: ast.expr) -> str:
    return str(value.value) if isinstance(value, ast.Constant) else GAP
