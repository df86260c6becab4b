"""What the agent waits for, and how long the report of a cause may take."""

from __future__ import annotations

import asyncio

from rallypoint.core.values import Failure, FailureKind
from rallypoint.launch.change_notifier import ChangeNotifier
from rallypoint.launch.round_workers import outranks, worst_first


def failure(kind: FailureKind, message: str = "") -> Failure:
    return Failure(kind, message)


def test_failures_are_ordered_by_precedence_and_then_by_time() -> None:
    kinds = (
        FailureKind.COMMUNICATION,
        FailureKind.EXCEPTION,
        FailureKind.SIGNAL,
        FailureKind.EXCEPTION,
    )
    found = worst_first([failure(kind, str(i)) for i, kind in enumerate(kinds)])
    assert [each.message for each in found] == ["2", "1", "3", "0"]


def test_only_a_more_specific_failure_outranks() -> None:
    exception = failure(FailureKind.EXCEPTION)
    assert outranks(exception, [])
    assert outranks(exception, [failure(FailureKind.COMMUNICATION)])
    assert not outranks(exception, [exception])
    assert not outranks(exception, [failure(FailureKind.SIGNAL)])


def test_a_change_wakes_all_waiters_and_each_checks_its_condition() -> None:
    async def scenario() -> None:
        notifier, seen = ChangeNotifier(), list[int]()

        async def wait_for(count: int) -> None:
            assert await notifier.until(lambda: len(ends) >= count)
            seen.append(count)

        ends: list[int] = []
        waiters = [asyncio.create_task(wait_for(count)) for count in (3, 1, 2)]
        for number in range(3):
            await asyncio.sleep(0)
            ends.append(number)
            notifier.notify()
        await asyncio.wait_for(asyncio.gather(*waiters), 10)
        assert sorted(seen) == [1, 2, 3]
        assert not await notifier.until(lambda: False, 0.01)

    asyncio.run(scenario())
