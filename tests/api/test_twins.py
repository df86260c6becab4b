"""What a library's author expects of both native APIs: twins, short reprs, errors at the top."""

from __future__ import annotations

import asyncio
import copy
import inspect
import itertools
import pickle
import threading
from collections.abc import Callable
from typing import Any

import msgspec
import pytest

import rallypoint
from rallypoint import aio, errors
from rallypoint.client import blocking
from rallypoint.core.telling import Intervals
from tests.ports import free_port

CLASSES = ("Run", "World", "Store")
BOTH = [(name, getattr(rallypoint, name), getattr(aio, name)) for name in CLASSES]


def public(kind: type) -> dict[str, Any]:
    return {name: inspect.getattr_static(kind, name) for name in dir(kind) if name[0] != "_"}


# -- twins ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "blocking", "asynchronous"), BOTH)
def test_both_apis_have_the_same_names(name: str, blocking: type, asynchronous: type) -> None:
    assert set(public(blocking)) == set(public(asynchronous))


@pytest.mark.parametrize(("name", "blocking", "asynchronous"), BOTH)
def test_both_have_the_same_properties_and_arguments(
    name: str, blocking: type, asynchronous: type
) -> None:
    others = public(asynchronous)
    for each, one in public(blocking).items():
        other = others[each]
        assert isinstance(one, property) == isinstance(other, property), each
        if not isinstance(one, property):
            given = inspect.signature(one).parameters
            assert list(given) == list(inspect.signature(other).parameters), each
            defaults = [parameter.default for parameter in given.values()]
            their = inspect.signature(other).parameters.values()
            assert defaults == [parameter.default for parameter in their], each
        assert inspect.getdoc(one), each
        assert inspect.getdoc(other), each


def test_both_joins_have_the_same_arguments() -> None:
    one, other = (inspect.signature(each) for each in (rallypoint.join, aio.join))
    assert list(one.parameters.values()) == list(other.parameters.values())


@pytest.mark.sockets
def test_the_former_calls_still_work_and_name_the_new_ones() -> None:
    async def main() -> None:
        async with await aio.join("job", min_nodes=1) as run:
            world = await run.next_world()
            assert world is not None
            (member,) = await world.members
            assert await run.waiting is None
            assert repr(run.waiting) == "<waiting: not awaited>"
            with pytest.deprecated_call(match=r"write `await \.\.\.members`"):
                assert await world.members() == (member,)
            with pytest.deprecated_call(match=r"write `await \.\.\.waiting`"):
                assert await asyncio.create_task(run.waiting()) is None

    asyncio.run(main())


# -- errors, reprs, pickle -----------------------------------------------------------------------


def test_each_error_is_at_the_top_level() -> None:
    found = {
        name: each
        for name, each in vars(errors).items()
        if inspect.isclass(each) and issubclass(each, errors.RallypointError)
    }
    assert len(found) > 30
    assert set(found) <= set(rallypoint.__all__)
    for name, each in found.items():
        assert getattr(rallypoint, name) is each
        assert name in errors.__doc__, "the tree at the top of errors.py"


@pytest.mark.sockets
def test_reprs_are_short_and_have_no_secret() -> None:
    secret = "correct-horse-battery-staple"

    async def main() -> list[str]:
        async with await aio.join("job", min_nodes=1, token=secret, node_name="me") as run:
            world = await run.next_world()
            assert world is not None
            return [repr(each) for each in (run, world, world.store, run.waiting, world.members)]

    shown = asyncio.run(main())
    with rallypoint.join("job", min_nodes=1, token=secret, node_name="me") as run:
        world = run.next_world()
        assert world is not None
        assert [repr(run), repr(world), repr(world.store)] == shown[:3]
        run.close("met")
        assert repr(run) == "<Run 'job' (succeeded): node me>"
    assert shown[:3] == [
        "<Run 'job' (open): node me>",
        "<World round 1 (on): rank 0 of 1, node 0 of 1>",
        "<Store: calls wait for at most 300 s>",
    ]
    assert not any(secret in each for each in shown)


@pytest.mark.sockets
@pytest.mark.parametrize("use", [pickle.dumps, copy.copy, copy.deepcopy])
def test_what_is_connected_cannot_be_pickled_and_says_what_to_do(
    use: Callable[[object], object],
) -> None:
    async def main() -> list[object]:
        async with await aio.join("job", min_nodes=1) as run:
            world = await run.next_world()
            assert world is not None
            return [run, world, world.store]

    with rallypoint.join("job", min_nodes=1) as run:
        world = run.next_world()
        assert world is not None
        for each in (run, world, world.store, *asyncio.run(main())):
            with pytest.raises(TypeError, match="cannot be pickled or copied") as caught:
                use({"held": each} if use is not copy.copy else each)
            assert "call rallypoint.join" in str(caught.value)
            name = type(each).__name__
            assert f"a {name} " in str(caught.value)
            assert ("world.rank" in str(caught.value)) == (name == "World")


# -- on_waiting ----------------------------------------------------------------------------------


def test_reports_come_after_some_seconds_and_at_growing_intervals() -> None:
    reports = Intervals()
    told = [second for second in range(400) if reports.is_due(float(second))]
    assert told[0] == 2
    gaps = [later - earlier for earlier, later in itertools.pairwise(told)]
    assert gaps == sorted(gaps)
    assert gaps[0] == 4
    assert gaps[-1] == 60


@pytest.mark.parametrize("given", [7, asyncio.sleep])
def test_a_callback_that_cannot_be_called_is_refused(given: Any) -> None:
    with pytest.raises(errors.UsageError, match="on_waiting must be a function"):
        rallypoint.join("job", "127.0.0.1:1", min_nodes=1, on_waiting=given)


@pytest.mark.sockets
def test_a_node_that_waits_for_others_is_told_why() -> None:
    told: list[tuple[rallypoint.StillWaiting, threading.Thread]] = []
    reported = threading.Event()

    def on_waiting(why: rallypoint.StillWaiting) -> None:
        told.append((why, threading.current_thread()))
        reported.set()

    endpoint = f"127.0.0.1:{free_port()}"
    with rallypoint.join(
        "job", endpoint, nnodes="2", node_name="me", join_timeout_s=40, on_waiting=on_waiting
    ) as run:
        waits = threading.Thread(target=run.next_world)
        waits.start()
        assert reported.wait(30)
        run.close("seen")
        waits.join(30)
    why, thread = told[0]
    assert thread.name == "rallypoint"
    assert why.waiting is not None
    assert (why.waiting.ready, why.waiting.minimum) == (1, 2)
    assert str(why.waiting) in str(why)  # the words of `rallypoint status`
    assert why.waited_s >= 2
    assert why.left_s is not None
    assert why.left_s < 40
    assert msgspec.json.encode(why)


@pytest.mark.parametrize("error", [SystemExit("enough"), KeyboardInterrupt()])
def test_a_callback_cannot_end_the_thread_of_rallypoint(
    error: BaseException, caplog: pytest.LogCaptureFixture
) -> None:
    """asyncio ends its loop for these errors, and no call would have an answer any more."""
    portal = blocking.portal()

    def on_change() -> None:
        raise error

    portal.post(on_change)
    assert portal.run(asyncio.sleep(0, "goes on"), 20.0) == "goes on"
    assert "a callback in Rallypoint's thread cannot end the program" in caplog.text


@pytest.mark.sockets
def test_the_asynchronous_callback_runs_in_the_loop_and_may_fail() -> None:
    told: list[threading.Thread] = []
    failed: list[dict[str, Any]] = []

    async def main() -> None:
        loop = asyncio.get_running_loop()
        loop.set_exception_handler(lambda loop, context: failed.append(context))
        reported = asyncio.Event()

        def on_waiting(why: rallypoint.StillWaiting) -> None:
            told.append(threading.current_thread())
            reported.set()
            raise LookupError(str(why))

        endpoint = f"127.0.0.1:{free_port()}"  # nobody listens there, and this node does not host
        joining = asyncio.create_task(
            aio.join("job", endpoint, nnodes="2", host_coordinator="no", on_waiting=on_waiting)
        )
        async with asyncio.timeout(30):
            await reported.wait()
            await asyncio.sleep(0)
        assert not joining.done()
        joining.cancel()
        await asyncio.gather(joining, return_exceptions=True)

    asyncio.run(main())
    assert told == [threading.current_thread()]
    assert [type(each["exception"]) for each in failed] == [LookupError]
    assert "does not answer" in str(failed[0]["exception"])
