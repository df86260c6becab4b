"""Whether a coordinator's answer has the form that this release shows.

Another program, or another release, may answer. Fields that are missing, null or unknown are no
fault: the output says what it knows.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable
from typing import Any, Final

import msgspec
from msgspec import inspect

from rallypoint.core.printable import escaped
from rallypoint.core.values import Address
from rallypoint.endpoints import Endpoint
from rallypoint.errors import NotACoordinatorError, not_a_coordinator

Answer = dict[str, Any]


class StacksOfNode(msgspec.Struct):
    """The stacks of one node's workers."""

    node: str
    workers: list[dict[str, Any]]


class Stacks(msgspec.Struct):
    """The answer to `stacks`."""

    summary: str
    nodes: list[StacksOfNode]
    silent: list[str]
    cannot: list[str]


class EventsPage(msgspec.Struct):
    """A page of events, without them: they are checked one by one."""

    more: bool
    missing: int
    problem: str
    shown_at: float


def checked(where: Endpoint, answer: Answer, kind: type[msgspec.Struct]) -> Answer:
    """The answer. Raises NotACoordinatorError unless it fits. `where`: who has sent it."""
    fault = _misfit(answer, _form_of(kind))
    if fault is not None:
        raise _unreadable(where, fault)
    return answer


def checked_event(where: Endpoint, event: Answer) -> Answer:
    """As `checked`, for one event, which must name its place."""
    # Imported only here, because it loads the core.
    from rallypoint.coordinator.run_events import RunEvent, position_of

    try:
        position_of(str(event.get("id")))
    except ValueError:
        raise _unreadable(where, "id") from None
    return checked(where, event, RunEvent)


def _unreadable(where: Endpoint, field: str) -> NotACoordinatorError:
    what = f"a field {escaped(field)!r} of another form" if field else "another form"
    at = str(Address(where.host, where.port))
    return not_a_coordinator(at, f"its answer has {what} than those of this release")


@functools.cache
def _form_of(kind: type[msgspec.Struct]) -> inspect.Type:
    return inspect.type_info(kind)


def _misfit(value: object, form: inspect.Type) -> str | None:
    """Which part does not fit: "" for the whole; None if all of it fits."""
    if value is None:
        return None
    if isinstance(form, inspect.UnionType):
        found = [_misfit(value, each) for each in form.types if each != _NONE]
        return None if None in found else found[0]
    if isinstance(form, inspect.StructType):
        if not isinstance(value, dict):
            return ""
        known = ((each.encode_name, each.type) for each in form.fields)
        return _first((name, value.get(name), each) for name, each in known)
    if isinstance(form, inspect.DictType):
        if not isinstance(value, dict):
            return ""
        return _first((str(name), each, form.value_type) for name, each in value.items())
    if isinstance(form, inspect.ListType | inspect.VarTupleType):
        if not isinstance(value, list):
            return ""
        return _first((str(place), each, form.item_type) for place, each in enumerate(value))
    if isinstance(value, bool):  # It is an int, too.
        return None if isinstance(form, inspect.BoolType | inspect.AnyType) else ""
    return None if isinstance(value, _PLAIN.get(type(form), object)) else ""


def _first(parts: Iterable[tuple[str, object, inspect.Type]]) -> str | None:
    """The first part that does not fit, by its path."""
    for name, value, form in parts:
        found = _misfit(value, form)
        if found is not None:
            return f"{name}.{found}" if found else name
    return None


_NONE: Final = inspect.NoneType()
_PLAIN: Final[dict[type[inspect.Type], type | tuple[type, ...]]] = {
    inspect.BoolType: bool,
    inspect.EnumType: (str, int),
    inspect.FloatType: (int, float),
    inspect.IntType: (int, float),  # 1.0 is a whole number, too
    inspect.StrType: str,
}
