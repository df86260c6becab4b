"""Calls in daemon threads: their outcome, their deadline, and that nothing waits for them."""

from __future__ import annotations

import asyncio
import gc
import threading
import time
from collections.abc import Callable

import pytest

from rallypoint import runtime, threads
from rallypoint.threads import LimitedCalls, OneAtATime, call_from_loop, new_event_loop, within
from tests.loops import until


def fails() -> None:
    raise LookupError("nothing there")


def current() -> threading.Thread:
    return threading.current_thread()


def test_a_call_has_a_daemon_thread_of_its_own() -> None:
    thread = threads.call(current).result(60)
    assert thread.daemon
    assert thread is not current()
    assert within(60, current) is not thread


def test_an_error_is_raised_where_the_call_is_awaited() -> None:
    with pytest.raises(LookupError, match="nothing there"):
        within(60, fails)

    async def scenario() -> None:
        for raising in (call_from_loop(fails), runtime.in_thread(fails)):
            with pytest.raises(LookupError, match="nothing there"):
                await raising
        with pytest.raises(LookupError, match="nothing there"):
            await LimitedCalls().run(fails, 60)

    asyncio.run(scenario())


def test_a_late_call_is_left_behind_and_logged() -> None:
    goes_on = threading.Event()
    try:
        with pytest.raises(TimeoutError, match=r"no answer within 0\.01 s"):
            within(0.01, goes_on.wait)
    finally:
        goes_on.set()


def test_the_timeout_of_the_work_itself_stays_as_it_is() -> None:
    def times_out() -> None:
        raise TimeoutError("the work's own")

    with pytest.raises(TimeoutError, match="the work's own"):
        within(60, times_out)


def test_one_place_has_one_call_at_a_time() -> None:
    one, goes_on = OneAtATime(), threading.Event()
    try:
        with pytest.raises(TimeoutError, match="no answer"):
            one.within(0.01, goes_on.wait)
        with pytest.raises(TimeoutError, match="an earlier call has not returned"):
            one.within(0.01, current)
    finally:
        goes_on.set()
    assert one.within(60, current).daemon


def test_a_late_call_holds_its_place_until_it_has_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(threads, "CALLS_MAX", 1)
    goes_on = threading.Event()

    async def scenario() -> None:
        calls = LimitedCalls()
        for hanging in (lambda: goes_on.wait(60), current):
            with pytest.raises(TimeoutError):
                await calls.run(hanging, 0.01)
        goes_on.set()
        assert (await calls.run(current, 60)).daemon

    try:
        asyncio.run(scenario())
    finally:
        goes_on.set()


def test_the_error_of_an_abandoned_call_is_not_reported() -> None:
    goes_on, reported = threading.Event(), []
    late_threads: list[threading.Thread] = []

    async def scenario() -> None:
        asyncio.get_running_loop().set_exception_handler(lambda _, said: reported.append(said))
        calls = LimitedCalls()

        def fails_late() -> None:
            late_threads.append(current())
            goes_on.wait(60)
            fails()

        with pytest.raises(TimeoutError):
            await calls.run(fails_late, 0.01)
        goes_on.set()
        await until(lambda: not any(each.is_alive() for each in late_threads), "they go on")
        await asyncio.sleep(0)
        gc.collect()

    asyncio.run(scenario())
    assert reported == []


def test_without_a_thread_a_place_is_released(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(threads, "CALLS_MAX", 1)

    async def scenario() -> None:
        calls = LimitedCalls()
        with monkeypatch.context() as refused:
            refused.setattr(threading.Thread, "start", no_thread)
            with pytest.raises(RuntimeError, match="can't start"):
                await calls.run(current, 60)
        assert (await calls.run(current, 60)).daemon

    def no_thread(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    asyncio.run(scenario())


def test_a_call_that_ends_after_its_loop_is_dropped() -> None:
    goes_on = threading.Event()
    ended: list[threading.Thread] = []

    def late() -> None:
        goes_on.wait(60)
        ended.append(current())

    async def scenario() -> None:
        call_from_loop(late)

    asyncio.run(scenario())
    goes_on.set()
    until_s = time.monotonic() + 60
    while not ended or ended[0].is_alive():
        assert time.monotonic() < until_s
        time.sleep(0.01)


@pytest.mark.parametrize("begin", [asyncio.to_thread, call_from_loop])
def test_a_call_that_hangs_does_not_keep_the_loop_from_ending(
    begin: Callable[..., asyncio.Future[bool]],
) -> None:
    hangs = threading.Event()

    async def scenario() -> None:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.01):
                await begin(hangs.wait)
        # Python waits at exit for every thread that is none.
        assert await asyncio.to_thread(lambda: current().daemon)

    started_s = time.monotonic()
    try:
        with asyncio.Runner(loop_factory=new_event_loop) as runner:
            runner.run(scenario())
        assert time.monotonic() - started_s < 10
    finally:
        hangs.set()
