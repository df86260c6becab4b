"""No secret shows in the repr of what holds it: reprs end in logs, tracebacks and bug reports."""

from __future__ import annotations

import dataclasses
import importlib
import inspect
import pkgutil
import re
from collections.abc import Iterator
from typing import Any

import msgspec
import pytest

import rallypoint

SECRET = re.compile(r"(^|_)(token|secret|password)s?$")
MARK = "s3cr3t-m4rk"
EXEMPT = {
    "rallypoint.core.quotas.Account": "its token is a name of the token",
    "rallypoint.simulation.scene.StartedNode": "its tokens are fencing tokens",
    "rallypoint.client.fencing.Writer": "its token is a fencing token",
    "rallypoint.simulation.model.world.NodeFacts": "its token is a fencing token",
    "rallypoint.ledger.torch_backend._Now": "its token is torch's version of a value",
}


def needed(kind: type[Any]) -> list[str] | None:
    """The fields without a default; None for what is neither struct nor dataclass."""
    if issubclass(kind, msgspec.Struct):
        return [each.name for each in msgspec.structs.fields(kind) if each.required]
    if dataclasses.is_dataclass(kind):
        missing = dataclasses.MISSING
        return [
            each.name
            for each in dataclasses.fields(kind)
            if each.default is missing and each.default_factory is missing
        ]
    return None


def holders() -> Iterator[tuple[type[Any], list[str]]]:
    """Every struct and dataclass of the package with a field that is named as a secret."""
    for found in pkgutil.walk_packages(rallypoint.__path__, "rallypoint."):
        if found.name.endswith(("__main__", ".ddp_worker")):  # programs
            continue
        try:
            module = importlib.import_module(found.name)
        except ImportError:  # an optional library
            continue
        for value in vars(module).values():
            if not isinstance(value, type) or value.__module__ != found.name:
                continue
            secret = [name for name in inspect.get_annotations(value) if SECRET.search(name)]
            name = f"{found.name}.{value.__name__}"
            if secret and needed(value) is not None and name not in EXEMPT:
                yield value, secret


HOLDERS = list(holders())


def test_some_classes_have_secrets() -> None:
    assert {"CoordinatorConfig", "NodeSettings", "Lease", "CoordinatorClient", "Hello"} <= {
        each.__name__ for each, _ in HOLDERS
    }


@pytest.mark.parametrize(("kind", "names"), HOLDERS, ids=[each.__name__ for each, _ in HOLDERS])
def test_a_repr_shows_no_secret(kind: type[Any], names: list[str]) -> None:
    fields = dict.fromkeys(needed(kind) or [], "run") | dict.fromkeys(names, MARK)
    made = kind(**fields)
    assert all(getattr(made, name) == MARK for name in names)
    assert MARK not in repr(made)
    assert MARK not in str(made)
