"""Every error says what to do: it has a hint, or belongs to a kind that needs none."""

from __future__ import annotations

import ast
import inspect
from collections.abc import Iterator
from pathlib import Path

import pytest

from rallypoint import errors
from rallypoint.client.agent_client import AgentClient
from rallypoint.client.store_calls import COORDINATOR_LOST, no_answer, store_error
from rallypoint.core.reasons import RefusalCode
from rallypoint.core.store import BAD_REQUEST, LIMIT, NOT_AN_INTEGER, TIMEOUT, StoreFailure
from rallypoint.wire import local

SOURCE = Path(errors.__file__).parent

NEEDS_NO_HINT = (errors.UsageError, errors.RefusedError, errors.RoundBrokenError)
"""A UsageError says what is allowed. A refusal has the hint itself. A round that has ended says
why, and the next world follows."""

SEEN_BY_NO_USER = {
    "coordinator/run_removal.py": "the garbage collector logs it, and tries again",
    "coordinator/tables.py": "the coordinator logs it, and tries again",
    "ledger/etcd/gateway.py": "a ledger is opened before it is used",
    "ledger/file/ledger.py": "a ledger is opened before it is used",
    "ledger/torch_backend.py": "a ledger is opened before it is used",
}

REDIRECTS = {RefusalCode.MOVED.name, RefusalCode.ELSEWHERE.name}
"""A node that gets one looks for another coordinator, and shows nothing."""


def calls(path: Path) -> Iterator[tuple[str, ast.Call]]:
    """The calls of a file, each with the last part of the name that is called."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Call):
            match node.func:
                case ast.Attribute(attr=name) | ast.Name(id=name):
                    yield name, node


def has_hint(call: ast.Call) -> bool:
    return any(each.arg in ("hint", None) for each in call.keywords)


def test_every_error_that_a_user_can_see_has_a_hint() -> None:
    kinds = {
        name
        for name, kind in inspect.getmembers(errors, inspect.isclass)
        if issubclass(kind, errors.RallypointError) and not issubclass(kind, NEEDS_NO_HINT)
    }
    without, unseen = [], set()
    for path in SOURCE.rglob("*.py"):
        where = path.relative_to(SOURCE).as_posix()
        for name, call in calls(path):
            if name in kinds and not has_hint(call):
                unseen.add(where)
                if where not in SEEN_BY_NO_USER:
                    without.append(f"{where}:{call.lineno}: {name}")
    assert without == []
    assert unseen == set(SEEN_BY_NO_USER), "a file needs no exception any more"


def test_every_refusal_has_a_hint_unless_it_is_a_redirect() -> None:
    without = [
        f"{path.relative_to(SOURCE)}:{call.lineno}"
        for path in SOURCE.rglob("*.py")
        if "simulation" not in path.parts  # it refuses what it simulates
        for name, call in calls(path)
        if name == "Refusal" and len(call.args) < 3 and not has_hint(call)
        if not (isinstance(call.args[0], ast.Attribute) and call.args[0].attr in REDIRECTS)
    ]
    assert without == []


# -- calls of a store ----------------------------------------------------------------------------


def test_one_place_builds_the_timeout_of_a_store_call() -> None:
    built = [
        path.relative_to(SOURCE).as_posix()
        for path in SOURCE.rglob("*.py")
        for name, call in calls(path)
        if name == "StoreTimeoutError" and (call.args or call.keywords)
    ]
    assert built == ["client/store_calls.py"]


def test_a_call_without_an_answer_names_who_is_silent_and_where_to_look() -> None:
    error = store_error(no_answer("the store at host:1", 2.5, "the ledger does not answer"))
    assert isinstance(error, errors.StoreTimeoutError)
    assert str(error).splitlines() == [
        "the store at host:1 has not answered for 2.5 s: the ledger does not answer",
        "hint: it may be stopped, overloaded or cut off: look at its log and at its machine; or "
        "set a longer timeout",
    ]


def test_a_call_that_lacks_something_of_other_nodes_sends_the_user_to_them() -> None:
    error = store_error(StoreFailure(TIMEOUT, "1 of 1 keys does not exist: a", ("a",), 1))
    assert isinstance(error, errors.StoreTimeoutError)
    assert (error.missing, error.missing_count) == (("a",), 1)
    assert error.hint == (
        "look at what the other nodes do: `rallypoint status`, and their logs; or set a longer "
        "timeout"
    )


@pytest.mark.parametrize("code", [BAD_REQUEST, LIMIT, NOT_AN_INTEGER, COORDINATOR_LOST])
def test_each_failure_of_a_store_call_has_a_hint(code: str) -> None:
    assert store_error(StoreFailure(code, "it failed")).hint


async def _ask_a_silent_agent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rallypoint.client.agent_client.CONNECT_TIMEOUT_S", 0.0)
    client = AgentClient.__new__(AgentClient)
    client._lost, client._results, client._transport, client._requests = None, {}, None, 0
    await client._ask(local.AskWaiting(1), local.WaitingIs, 1)


def test_a_silent_agent_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    import asyncio

    with pytest.raises(errors.StoreTimeoutError, match="the agent has not answered") as told:
        asyncio.run(_ask_a_silent_agent(monkeypatch))
    assert told.value.hint
