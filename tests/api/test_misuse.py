"""The native API used in ways that cannot be, and programs that end by an error."""

from __future__ import annotations

import subprocess
import sys
import threading
import typing
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest

import rallypoint
from rallypoint import ChangeKind, settings
from rallypoint.client import options
from rallypoint.core.values import RunSettings
from rallypoint.ledger.memory import MemoryLedger
from tests.api.adapters import together
from tests.waiting import wait_until

pytestmark = pytest.mark.sockets

ELASTIC: dict[str, Any] = {
    "min_nodes": 1,
    "max_nodes": 2,
    "expected_nodes": 2,
    "last_call_s": 60.0,
    "scale_up_delay_s": 0.1,
}


# -- arguments -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "words", "hint"),
    [
        ({"labels": {"a": 1}}, "label 'a': names and values are text", 'labels={"rack": "7"}'),
        ({"labels": {1: "a"}}, "label 1: names and values are text", ""),
        ({"labels": ["a"]}, "labels must be a mapping", 'labels={"rack": "7"}'),
        ({"labels": "a=b"}, "labels must be a mapping", ""),
        ({"join_timeout": 3}, "no option 'join_timeout'", "did you mean join_timeout_s?"),
        ({"min_node": 3}, "no option 'min_node'", "did you mean"),
        ({"zebra": 3}, "no option 'zebra'", "rallypoint env"),
        ({"min_nodes": "2"}, "min_nodes must be a whole number", ""),
        ({"max_nodes": 2.5}, "max_nodes must be a whole number", ""),
        ({"min_nodes": True}, "min_nodes must be a whole number", ""),
        ({"min_nodes": 0}, "min_nodes must be at least 1", ""),
        ({"join_timeout_s": [1]}, "join_timeout_s must be a number of seconds", ""),
        (
            {"join_timeout_s": timedelta(seconds=1)},
            "join_timeout_s must be a number of seconds",
            "",
        ),
        ({"join_timeout_s": True}, "join_timeout_s must be a number of seconds", ""),
        ({"join_timeout_s": "soon"}, "join_timeout_s must be a duration", ""),
        ({"candidates": 1.5}, "candidates must be a number", ""),
        ({"node_name": 7}, "node_name must be text", ""),
        ({"token": b"t"}, "token must be text", ""),
        ({"token_file": 5}, "token_file must be text", ""),
        ({"run_id": 5}, "run_id must be text", ""),
        ({"endpoint": MemoryLedger()}, "endpoint must be text", "file:///FOLDER"),
        ({"endpoint": 29400}, "endpoint must be text", ""),
    ],
)
def test_a_bad_argument_of_join_is_a_usage_error(api, given, words, hint):
    arguments = {"run_id": "run", "endpoint": None} | given
    with pytest.raises(rallypoint.UsageError) as caught:
        api.join(**arguments)
    assert words in caught.value.message
    assert hint in caught.value.hint


def test_a_value_that_may_be_a_secret_is_not_shown(api):
    with pytest.raises(rallypoint.UsageError) as caught:
        api.join("run", None, token=b"hunter2")
    assert "hunter2" not in str(caught.value)


def test_the_typed_options_are_all_settings_that_join_takes():
    known = set(typing.get_type_hints(options.JoinOptions))
    own = {*settings.NodeSettings.__struct_fields__, "token_file"}
    own -= {"endpoint", "run_id", "token", "token_place", "labels"}
    shared = {*RunSettings.__struct_fields__, "nnodes"} - {"min_nodes", "max_nodes"}
    assert known == own | shared | {"check", "check_timeout_s"}
    assert rallypoint.JoinOptions is options.JoinOptions


def test_an_option_of_none_counts_as_left_out(api):
    nothing = dict.fromkeys(typing.get_type_hints(options.JoinOptions))
    with api.join("run", None, labels=None, token=None, **nothing) as run:
        assert run.next_world().size == 1


@pytest.mark.processes
def test_importing_the_package_provides_the_asynchronous_api():
    code = "import rallypoint; print(rallypoint.aio.join.__module__, 'aio' in dir(rallypoint))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["rallypoint.aio", "True"]


# -- after leaving ---------------------------------------------------------------------------------


def test_a_call_after_leaving_is_an_error_that_says_so(api):
    with api.join("run", None) as run:
        run.next_world()
        run.leave()
        run.leave()
        for call in (run.next_world, lambda: run.close("no")):
            with pytest.raises(rallypoint.UsageError, match="this node has left the run"):
                call()
        assert list(run.worlds()) == []


def test_a_waiting_call_ends_when_another_thread_leaves():
    run = rallypoint.join("run", None, min_nodes=2)
    found: list[BaseException | list[Any]] = []

    def wait(call: Callable[[], Any]) -> None:
        try:
            found.append(call())
        except rallypoint.RallypointError as error:
            found.append(error)

    waiting = threading.Thread(target=wait, args=(run.next_world,))
    waiting.start()
    wait_until(lambda: (now := run.waiting) is not None and now.ready)  # it asks for a round
    run.leave()
    waiting.join(20)
    assert isinstance(found[0], rallypoint.UsageError)
    run.aclose()


# -- how a program ends ----------------------------------------------------------------------------


ENDS = [
    (RuntimeError("no luck"), "RuntimeError: no luck"),
    (rallypoint.UsageError("a bad call"), "UsageError: a bad call"),
    (SystemExit(3), "SystemExit: 3"),
    (SystemExit("no data"), "SystemExit: no data"),
    (SystemExit(0), None),
    (SystemExit(), None),
    (KeyboardInterrupt(), None),
]


@pytest.mark.parametrize(("error", "told"), ENDS, ids=[repr(error) for error, _ in ENDS])
def test_each_end_of_a_program_is_a_failure_or_a_leave(error, told, coordinator):
    with rallypoint.join("job", coordinator, **ELASTIC) as stay:
        try:
            with rallypoint.join("job", coordinator, **ELASTIC) as go:
                world: Any = together(stay.next_world, go.next_world)[0]
                raise error
        except type(error):
            pass
        again: Any = stay.next_world()
        assert (again.number, again.size) == (2, 1)
        change: Any = world.change
        assert change.nodes == (go.node,)
        if told is None:
            assert change.kind is ChangeKind.NODE_LEFT
            assert change.detail.startswith(f"the program ended with {type(error).__name__}")
        else:
            assert change.kind is ChangeKind.WORKER_FAILED
            assert change.failure.message == told
            assert again.restart_count == 1


@pytest.mark.parametrize("error", [RuntimeError("hunter2"), SystemExit("hunter2")], ids=repr)
@pytest.mark.parametrize("is_given", [True, False], ids=["option", "environment"])
def test_last_output_stays_on_its_node_if_nothing_is_shared(
    error, is_given, coordinator, monkeypatch
):
    options: Any = {"share_lines": 0} if is_given else {}
    if not is_given:
        monkeypatch.setenv("RALLYPOINT_SHARE_LINES", "0")
    with rallypoint.join("job", coordinator, **ELASTIC) as stay:
        try:
            with rallypoint.join("job", coordinator, **ELASTIC, **options) as go:
                world: Any = together(stay.next_world, go.next_world)[0]
                raise error
        except type(error):
            pass
        stay.next_world()
        change: Any = world.change
        assert change.kind is ChangeKind.WORKER_FAILED
        assert type(error).__name__ in change.failure.message
        assert "share_lines is 0" in change.failure.message
        assert "hunter2" not in repr(change)


def test_a_leave_omits_the_exception_if_nothing_is_shared(coordinator):
    interrupt = KeyboardInterrupt("hunter2")
    with rallypoint.join("job", coordinator, **ELASTIC) as stay:
        try:
            with rallypoint.join("job", coordinator, **ELASTIC, share_lines=0) as go:
                world: Any = together(stay.next_world, go.next_world)[0]
                raise interrupt
        except KeyboardInterrupt:
            pass
        stay.next_world()
        assert world.change.kind is ChangeKind.NODE_LEFT
        assert "KeyboardInterrupt" in world.change.detail
        assert "hunter2" not in repr(world.change)


PROGRAM = """
import sys, rallypoint
run = rallypoint.join("job", sys.argv[1], min_nodes=1, max_nodes=2, expected_nodes=2,
                      last_call_s=60.0, scale_up_delay_s=0.1)
world = run.next_world()
{}
"""


@pytest.mark.processes
@pytest.mark.parametrize(
    ("last", "kind"),
    [
        ("raise RuntimeError('no luck')", ChangeKind.WORKER_FAILED),
        ("{}['key']", ChangeKind.WORKER_FAILED),
        ("", ChangeKind.NODE_LEFT),
        ("sys.exit(0)", ChangeKind.NODE_LEFT),
        ("""
try: raise ValueError
except ValueError: pass""", ChangeKind.NODE_LEFT),
    ],
)  # fmt: skip
def test_without_a_block_an_uncaught_exception_is_a_failure(last, kind, coordinator):
    with rallypoint.join("job", coordinator, **ELASTIC) as stay:
        program = [sys.executable, "-c", PROGRAM.format(last), coordinator]
        with subprocess.Popen(program, stderr=subprocess.DEVNULL) as going:
            world = stay.next_world()
            assert world is not None
            again = stay.next_world() if world.size == 1 else None
            assert again is None
            later = threading.Event()
            world.on_change(lambda change: later.set())
            assert later.wait(30)
            assert world.change is not None
            assert world.change.kind is kind
            going.wait(30)
