"""The mutants of a marked line: small changes of the code there, each of which breaks it.

`of_file` finds them. A mutant is an edit of the file's syntax tree, which is made while its code is
compiled and then undone, so nothing is written to the disk.
"""

from __future__ import annotations

import ast
import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import CodeType
from typing import Final, TypeAlias

import msgspec

from tests.mutation.marks import SOURCE, Mark, marks_in

Function: TypeAlias = tuple[str, int]
"""The qualified name of a function and its first line, decorators included."""

OPPOSITES: Final[dict[type[ast.cmpop], type[ast.cmpop]]] = {
    ast.Lt: ast.LtE,
    ast.LtE: ast.Lt,
    ast.Gt: ast.GtE,
    ast.GtE: ast.Gt,
    ast.Eq: ast.NotEq,
    ast.NotEq: ast.Eq,
    ast.Is: ast.IsNot,
    ast.IsNot: ast.Is,
    ast.In: ast.NotIn,
    ast.NotIn: ast.In,
}
EXCHANGED: Final = {"max": "min", "min": "max", "any": "all", "all": "any"}


class Edit(msgspec.Struct):
    """One node in place of another. `index`: in the field, if that is a list."""

    parent: ast.AST
    field: str
    index: int | None
    new: ast.AST | list[ast.expr] | None
    """A list in place of a list. None takes the node out of its list."""


class Mutant(msgspec.Struct):
    """`key` stays the same when other lines of the file change."""

    key: str
    mark: Mark
    function: Function
    was: str
    now: str
    edit: Edit

    @property
    def diff(self) -> str:
        """For people."""
        where = f"{self.mark.path.relative_to(SOURCE)}:{self.mark.line}"
        return f"{where} in {self.function[0]}  {self.mark.text}\n  - {self.was}\n  + {self.now}"


class MutableFile:
    """One file of the source, and its mutants."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.tree = ast.parse(path.read_text("utf-8"), str(path))
        self._parents = {
            child: (node, field, index)
            for node in ast.walk(self.tree)
            for field, index, child in _children(node)
        }

    def mutants(self) -> list[Mutant]:
        """The mutants of all marked lines, in order."""
        found: dict[str, Mutant] = {}
        for mark in marks_in(self.path):
            for each in self._of_mark(mark):
                found.setdefault(each.key, each)
        return list(found.values())

    def _of_mark(self, mark: Mark) -> Iterator[Mutant]:
        node = self._node_at(mark.line)
        functions = self._functions_around(node)
        if not functions:
            return
        function = self.name_of(functions[-1])
        kinds = (ast.stmt, ast.match_case)
        whole = next(each for each in self._upwards(node) if isinstance(each, kinds))
        was = _line(whole)
        shown = {was}
        for edit in _edits(node, self._parents):
            with made(edit):
                now = _line(self._replaced(whole, edit))
            if now in shown:
                continue
            shown.add(now)
            where = self.path.relative_to(SOURCE).as_posix()
            name = "\n".join((where, function[0], was, now))
            key = hashlib.sha256(name.encode()).hexdigest()[:12]
            yield Mutant(key, mark, function, was, now, edit)

    def _replaced(self, whole: ast.AST, edit: Edit) -> ast.AST:
        parent, field, index = self._parents[whole]
        if (parent, field, index) == (edit.parent, edit.field, edit.index):
            return edit.new if isinstance(edit.new, ast.AST) else ast.Pass()
        return whole

    def _node_at(self, line: int) -> ast.AST:
        """The outermost statement, expression or guard that begins on the line."""
        for node in ast.walk(self.tree):
            if isinstance(node, ast.match_case) and node.pattern.lineno == line:
                assert node.guard is not None, (self.path, line)
                return node.guard
            if isinstance(node, ast.Module | ast.match_case | ast.pattern):
                continue
            if getattr(node, "lineno", 0) == line:
                return node
        raise ValueError(f"{self.path}:{line} has no code")

    def _upwards(self, node: ast.AST) -> Iterator[ast.AST]:
        yield node
        while node in self._parents:
            node = self._parents[node][0]
            yield node

    def _functions_around(self, node: ast.AST) -> list[ast.FunctionDef | ast.AsyncFunctionDef]:
        """The functions that contain the node, the innermost first."""
        kinds = (ast.FunctionDef, ast.AsyncFunctionDef)
        return [each for each in self._upwards(node) if isinstance(each, kinds)]

    def name_of(self, function: ast.FunctionDef | ast.AsyncFunctionDef) -> Function:
        """As its code object has it. Only for functions that no other function contains."""
        names = [
            each.name
            for each in self._upwards(function)
            if isinstance(each, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef)
        ]
        first = min([function.lineno, *(each.lineno for each in function.decorator_list)])
        return ".".join(reversed(names)), first

    def statement_of(self, mutant: Mutant) -> tuple[ast.AST, str, int]:
        """Where the statement of a mutant is, for `reached`: its list, and its place there."""
        for each in self._upwards(self._node_at(mutant.mark.line)):
            parent, field, index = self._parents[each]
            if isinstance(each, ast.stmt) and index is not None:
                return parent, field, index
        raise AssertionError(mutant)

    def compiled(self) -> dict[Function, CodeType]:
        """The code of the functions of the tree, as it is now."""
        ast.fix_missing_locations(self.tree)
        return codes_in(compile(self.tree, str(self.path), "exec"))


@contextmanager
def made(edit: Edit) -> Iterator[None]:
    """Make the edit, and undo it at the end."""
    held = getattr(edit.parent, edit.field)
    changed = held if edit.index is None else list(held)
    if isinstance(edit.new, ast.AST) and not hasattr(edit.new, "lineno"):
        ast.copy_location(edit.new, held if edit.index is None else held[edit.index])
    if edit.index is None:
        changed = edit.new
    elif edit.new is None:
        del changed[edit.index]
    else:
        changed[edit.index] = edit.new
    setattr(edit.parent, edit.field, changed)
    try:
        yield
    finally:
        setattr(edit.parent, edit.field, held)


def codes_in(code: CodeType) -> dict[Function, CodeType]:
    """The code of all functions in a module's code, also in classes and functions."""
    found: dict[Function, CodeType] = {}
    for each in code.co_consts:
        if isinstance(each, CodeType):
            found[each.co_qualname, each.co_firstlineno] = each
            found.update(codes_in(each))
    return found


def _children(node: ast.AST) -> Iterator[tuple[str, int | None, ast.AST]]:
    for field, value in ast.iter_fields(node):
        if isinstance(value, ast.AST):
            yield field, None, value
        elif isinstance(value, list):
            for index, each in enumerate(value):
                if isinstance(each, ast.AST):
                    yield field, index, each


def _line(node: ast.AST) -> str:
    """The code of a statement without its body."""
    text = ast.unparse(node)
    if isinstance(node, ast.If | ast.While | ast.For | ast.Try):
        return text.split("\n", 1)[0]
    if isinstance(node, ast.match_case):
        return text.strip().split("\n", 1)[0]
    return " ".join(text.split())


# -- the edits -----------------------------------------------------------------------------------


def _edits(
    node: ast.AST, parents: dict[ast.AST, tuple[ast.AST, str, int | None]]
) -> Iterator[Edit]:
    """All edits of the code that belongs to a mark."""
    before = 0
    for before, each in enumerate(_edits_of(node, *parents[node]), 1):  # noqa: B007
        yield each
    if not before:
        # Such as an argument that is only a name.
        yield Edit(*_value_in(node, parents), ast.Constant(None))


def _value_in(
    node: ast.AST, parents: dict[ast.AST, tuple[ast.AST, str, int | None]]
) -> tuple[ast.AST, str, int | None]:
    has_value = isinstance(node, ast.keyword | ast.Assign | ast.AnnAssign)
    return (node, "value", None) if has_value else parents[node]


def _edits_of(node: ast.AST, parent: ast.AST, field: str, index: int | None) -> Iterator[Edit]:
    place = (parent, field, index)
    match node:
        case ast.If() | ast.While():
            # A test that finds both finds the negation as well. A loop must end.
            yield Edit(node, "test", None, ast.Constant(False))
            if isinstance(node, ast.If):
                yield Edit(node, "test", None, ast.Constant(True))
            yield from _edits_of(node.test, node, "test", None)
        case ast.For():
            yield Edit(node, "iter", None, ast.Tuple([], ast.Load()))
            yield from _edits_of(node.iter, node, "iter", None)
        case ast.Expr() | ast.AugAssign() | ast.Delete() | ast.Raise():
            yield Edit(*place, ast.Pass())
            yield from _edits_inside(node)
        case ast.Assign():
            if any(isinstance(each, ast.Attribute | ast.Subscript) for each in node.targets):
                yield Edit(*place, ast.Pass())
            yield from _edits_of(node.value, node, "value", None)
        case ast.Assert():
            yield Edit(node, "test", None, _negated(node.test))
        case ast.Return() if node.value is not None:
            yield Edit(node, "value", None, ast.Constant(None))
            if _is_condition(node.value):
                yield Edit(node, "value", None, _negated(node.value))
            yield from _edits_of(node.value, node, "value", None)
        case ast.keyword():
            yield from _edits_of(node.value, node, "value", None)
        case ast.Compare():
            for at, op in enumerate(node.ops):
                yield Edit(node, "ops", at, OPPOSITES[type(op)]())
            yield from _edits_inside(node)
        case ast.BoolOp():
            other: ast.boolop = ast.Or() if isinstance(node.op, ast.And) else ast.And()
            yield Edit(node, "op", None, other)
            for at, value in enumerate(node.values):
                rest = [each for each in node.values if each is not value]
                left = rest[0] if len(rest) == 1 else ast.BoolOp(node.op, rest)
                yield Edit(*place, left)
                yield from _edits_of(value, node, "values", at)
        case ast.UnaryOp(op=ast.Not()):
            yield Edit(*place, node.operand)
            yield from _edits_of(node.operand, node, "operand", None)
        case ast.IfExp():
            yield Edit(*place, node.body)
            yield Edit(*place, node.orelse)
            yield from _edits_inside(node)
        case ast.BinOp(op=ast.Add()) | ast.BinOp(op=ast.Sub()):
            yield Edit(*place, node.left)
            swapped: ast.operator = ast.Sub() if isinstance(node.op, ast.Add) else ast.Add()
            yield Edit(node, "op", None, swapped)
            yield from _edits_inside(node)
        case ast.Call():
            yield from _edits_of_call(node)
        case ast.Constant():
            yield from _edits_of_constant(node, place)
        case ast.Tuple() | ast.Set() if len(node.elts) > 1 and isinstance(parent, ast.Compare):
            for at in range(len(node.elts)):
                yield Edit(node, "elts", at, None)
            yield from _edits_inside(node)
        case ast.comprehension():
            for at in range(len(node.ifs)):
                yield Edit(node, "ifs", at, None)
            yield from _edits_inside(node)
        case ast.stmt() | ast.expr():
            yield from _edits_inside(node)


def _edits_inside(node: ast.AST) -> Iterator[Edit]:
    for field, index, child in _children(node):
        yield from _edits_of(child, node, field, index)


def _edits_of_call(node: ast.Call) -> Iterator[Edit]:
    first_two = node.args[:2]
    if isinstance(node.func, ast.Name) and node.func.id in EXCHANGED:
        yield Edit(node, "func", None, ast.Name(EXCHANGED[node.func.id], ast.Load()))
    elif len(first_two) == 2 and not any(isinstance(each, ast.Starred) for each in first_two):
        yield Edit(node, "args", None, [*reversed(first_two), *node.args[2:]])
    yield from _edits_inside(node)


def _edits_of_constant(
    node: ast.Constant, place: tuple[ast.AST, str, int | None]
) -> Iterator[Edit]:
    match node.value:
        case bool():
            yield Edit(*place, ast.Constant(not node.value))
        case int() | float():
            yield Edit(*place, ast.Constant(node.value + 1))


def _is_condition(node: ast.expr) -> bool:
    is_not = isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not)
    return is_not or isinstance(node, ast.Compare | ast.BoolOp)


def _negated(node: ast.expr) -> ast.expr:
    return ast.UnaryOp(ast.Not(), node)
