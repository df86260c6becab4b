"""Tests of everything that `ledger/contract.py` promises of a ledger.

All tests use two Ledger objects for one ledger, as two coordinators would. No test is about one
engine. An engine may answer Unknown at any time. Then the tests act as the contract requires from a
caller: they try the same bytes again until the version changes.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, ClassVar, TypeAlias

import pytest

from rallypoint.errors import LedgerLimitError, UsageError
from rallypoint.ledger.contract import (
    KEY_BYTES_MAX,
    AppendOutcome,
    Changed,
    Conflict,
    Created,
    Durability,
    Exists,
    Gap,
    Ledger,
    SwapOutcome,
    Swapped,
    Unknown,
    Versioned,
)

Connect: TypeAlias = Callable[[], Ledger]
"""Returns one more Ledger object for the same ledger, not open yet."""
Body: TypeAlias = Callable[[Ledger, Ledger], Coroutine[Any, Any, None]]
_UNKNOWNS_MAX = 20
_LATE_S = 30.0


class LedgerSuite:
    """The tests. To use them, define a subclass Test... with the fixture `connect`.

    `writers` and `rounds`: how many writers contend in some tests, and how often each writes.
    `odd_names`: names that an engine might handle wrongly.
    """

    writers: ClassVar[int] = 6
    rounds: ClassVar[int] = 8
    odd_names: ClassVar[tuple[str, ...]] = (
        "a", "A", "a/b", "a/", "/a", "..", ".", "a b", "a%2Fb", "a\tb", "é", "日本", "-", "a" * 200,
    )  # fmt: skip

    @pytest.fixture
    def connect(self) -> Connect:
        """A new, empty ledger for each test; see `Connect`."""
        raise NotImplementedError("define the fixture `connect` in your class")

    # -- declarations -------------------------------------------------------------------------

    def test_it_has_an_id_and_says_what_it_survives(self, connect: Connect) -> None:
        async def body(one: Ledger, two: Ledger) -> None:
            assert one.ledger_id
            assert one.ledger_id == two.ledger_id
            assert one.is_durable == (one.durability is not Durability.PROCESS)
            assert one.limits.value_bytes_max >= 1 << 16
            assert one.limits.record_bytes_max >= 1 << 16
            assert one.limits.writes_per_s >= 1

        _run(connect, body)

    def test_what_was_acknowledged_is_there_for_the_next_handle(self, connect: Connect) -> None:
        async def body() -> None:
            async with connect() as first:
                if not first.is_durable:
                    pytest.skip("not durable")
                await _create(first, "run", b"value")
                if first.has_log:
                    assert isinstance(await _append(first, "log", 0, b"record"), Created)
                ledger_id = first.ledger_id
            async with connect() as second:
                assert second.ledger_id == ledger_id
                assert await _value(second, "run") == b"value"
                if second.has_log:
                    assert await second.records("log") == ((0, b"record"),)

        asyncio.run(_bounded(body()))

    def test_opening_and_closing_may_be_repeated(self, connect: Connect) -> None:
        async def body() -> None:
            ledger = connect()
            await ledger.open()
            await ledger.open()
            await _create(ledger, "a", b"1")
            await ledger.aclose()
            await ledger.aclose()

        asyncio.run(_bounded(body()))

    # -- registers ----------------------------------------------------------------------------

    def test_a_register_that_was_never_written_is_not_there(self, connect: Connect) -> None:
        async def body(one: Ledger, _two: Ledger) -> None:
            assert await one.read("run") is None
            assert await one.keys() == ()
            assert await one.swap("run", 7, b"value") == Conflict(None)
            assert await one.read("run") is None

        _run(connect, body)

    def test_a_register_is_created_once(self, connect: Connect) -> None:
        async def body(one: Ledger, two: Ledger) -> None:
            version = await _create(one, "run", b"first")
            expected = Conflict(Versioned(b"first", version))
            assert await two.swap("run", None, b"second") == expected
            assert await one.swap("run", None, b"first") == expected
            assert await two.read("run") == Versioned(b"first", version)

        _run(connect, body)

    def test_a_swap_needs_the_version_that_is_there(self, connect: Connect) -> None:
        async def body(one: Ledger, two: Ledger) -> None:
            first = await _create(one, "run", b"1")
            second = await _swap(two, "run", first, b"2")
            assert second != first
            for wrong in (first, second + 1, second + 1_000, 0):
                outcome = await one.swap("run", wrong, b"3")
                assert outcome == Conflict(Versioned(b"2", second)), wrong
            assert await one.read("run") == Versioned(b"2", second)

        _run(connect, body)

    def test_the_same_bytes_again_are_another_version(self, connect: Connect) -> None:
        async def body(one: Ledger, _two: Ledger) -> None:
            first = await _create(one, "run", b"same")
            second = await _swap(one, "run", first, b"same")
            assert second != first
            assert isinstance(await one.swap("run", first, b"same"), Conflict)

        _run(connect, body)

    def test_a_value_may_be_any_bytes(self, connect: Connect) -> None:
        async def body(one: Ledger, two: Ledger) -> None:
            version: int | None = None
            for value in (b"", b"\0", bytes(range(256)), b"\xff" * 65_536, b"{}", b""):
                version = await _swap(one, "run", version, value)
                assert await two.read("run") == Versioned(value, version)

        _run(connect, body)

    def test_many_versions_in_a_row(self, connect: Connect) -> None:
        async def body(one: Ledger, two: Ledger) -> None:
            version, seen = None, set()
            for number in range(50):
                ledger = (one, two)[number % 2]
                version = await _swap(ledger, "run", version, b"%d" % number)
                seen.add(version)
            assert len(seen) == 50
            assert await _value(one, "run") == b"49"

        _run(connect, body)

    def test_registers_do_not_touch_each_other(self, connect: Connect) -> None:
        async def body(one: Ledger, two: Ledger) -> None:
            for name in self.odd_names:
                await _create(one, name, name.encode())
            for name in self.odd_names:
                assert await _value(two, name) == name.encode()
            await two.delete("a")
            assert await one.keys() == tuple(sorted(set(self.odd_names) - {"a"}))
            starting = sorted(name for name in self.odd_names if name.startswith("a/"))
            assert await one.keys("a/") == tuple(starting)

        _run(connect, body)

    def test_a_deleted_register_is_gone(self, connect: Connect) -> None:
        async def body(one: Ledger, two: Ledger) -> None:
            version = await _create(one, "run", b"value")
            await two.delete("run")
            assert await one.read("run") is None
            assert await two.keys() == ()
            assert await one.swap("run", version, b"late") == Conflict(None)
            assert await two.read("run") is None
            await one.delete("run")
            await one.delete("never")

        _run(connect, body)

    def test_a_register_that_has_moved_on_is_not_deleted(self, connect: Connect) -> None:
        async def body(one: Ledger, two: Ledger) -> None:
            first = await _create(one, "run", b"1")
            second = await _swap(two, "run", first, b"2")
            assert not await one.delete("run", first)
            assert await two.read("run") == Versioned(b"2", second)
            assert await one.delete("run", second)
            assert await two.read("run") is None
            assert await two.keys() == ()
            assert await two.delete("run", second)
            again = await _create(two, "run", b"3")
            assert not await one.delete("run", second)
            assert await one.read("run") == Versioned(b"3", again)

        _run(connect, body)

    def test_no_version_is_given_twice_even_after_a_delete(self, connect: Connect) -> None:
        async def body(one: Ledger, two: Ledger) -> None:
            seen = []
            for _ in range(3):
                version = await _create(one, "run", b"1")
                seen += [version, await _swap(one, "run", version, b"2")]
                await two.delete("run")
            current = await _create(two, "run", b"now")
            assert len({*seen, current}) == 7
            for late in seen:
                outcome = await one.swap("run", late, b"late")
                assert outcome == Conflict(Versioned(b"now", current))

        _run(connect, body)

    # -- contention -------------------------------------------------------------------------------

    def test_of_many_creators_one_creates(self, connect: Connect) -> None:
        async def body(one: Ledger, two: Ledger) -> None:
            for run in range(3):
                values = [b"%d" % writer for writer in range(self.writers)]
                outcomes = await _gather(
                    _settled(ledger, f"run-{run}", None, value)
                    for ledger, value in zip((one, two) * len(values), values, strict=False)
                )
                done = [
                    value
                    for value, outcome in zip(values, outcomes, strict=True)
                    if isinstance(outcome, Swapped)
                ]
                assert len(done) == 1
                assert await _value(one, f"run-{run}") == done[0]

        _run(connect, body)

    def test_of_many_swaps_none_is_lost(self, connect: Connect) -> None:
        async def add(ledger: Ledger, writer: int) -> None:
            for number in range(self.rounds):
                mark = b"%d.%d" % (writer, number)
                while True:
                    now = await ledger.read("list")
                    value = now.value + b" " + mark if now else mark
                    version = now.version if now else None
                    if isinstance(await _settled(ledger, "list", version, value), Swapped):
                        break

        async def body(one: Ledger, two: Ledger) -> None:
            await _gather(add((one, two)[writer % 2], writer) for writer in range(self.writers))
            marks = (await _value(one, "list") or b"").split()
            assert len(marks) == len(set(marks)) == self.writers * self.rounds

        _run(connect, body)

    def test_it_does_what_a_dictionary_does(self, connect: Connect) -> None:
        """A random sequence of calls through two objects, compared with a dictionary."""

        async def body(one: Ledger, two: Ledger) -> None:
            draw = random.Random(20)
            model: dict[str, Versioned] = {}
            known: dict[str, list[int | None]] = {key: [None] for key in "abc"}
            for step in range(150):
                ledger, key = draw.choice((one, two)), draw.choice("abc")
                action = draw.random()
                if action < 0.1:
                    await ledger.delete(key)
                    model.pop(key, None)
                elif action < 0.3:
                    assert await ledger.read(key) == model.get(key)
                elif action < 0.4:
                    assert await ledger.keys() == tuple(sorted(model))
                else:
                    now = model.get(key)
                    right = now.version if now else None
                    expected = right if draw.random() < 0.6 else draw.choice(known[key])
                    value = b"%d" % step
                    outcome = await _settled(ledger, key, expected, value)
                    if expected != right:
                        assert outcome == Conflict(now), (step, expected, right)
                        continue
                    assert isinstance(outcome, Swapped), (step, outcome)
                    assert outcome.version not in known[key]
                    known[key].append(outcome.version)
                    model[key] = Versioned(value, outcome.version)

        _run(connect, body)

    def test_a_cancelled_swap_leaves_the_handle_usable(self, connect: Connect) -> None:
        async def body(one: Ledger, two: Ledger) -> None:
            version = await _create(one, "run", b"before")
            swap = asyncio.ensure_future(one.swap("run", version, b"cancelled"))
            await asyncio.sleep(0)
            swap.cancel()
            await asyncio.gather(swap, return_exceptions=True)
            # The outcome is unknown: the write may have been done, or may be done later.
            while not isinstance(
                await _settled(one, "run", (await _there(one, "run")).version, b"after"), Swapped
            ):
                pass
            assert await _value(two, "run") == b"after"

        _run(connect, body)

    # -- waiting --------------------------------------------------------------------------------

    def test_changed_returns_at_once_for_another_version(self, connect: Connect) -> None:
        async def body(one: Ledger, two: Ledger) -> None:
            assert await one.changed("run", 1, 10) == Changed(None)
            version = await _create(one, "run", b"1")
            assert await two.changed("run", None, 10) == Changed(Versioned(b"1", version))
            later = await _swap(one, "run", version, b"2")
            assert await two.changed("run", version, 10) == Changed(Versioned(b"2", later))

        _run(connect, body)

    def test_changed_returns_none_when_its_time_is_over(self, connect: Connect) -> None:
        async def body(one: Ledger, two: Ledger) -> None:
            assert await one.changed("run", None, 0.05) is None
            version = await _create(one, "run", b"1")
            assert await two.changed("run", version, 0.3) is None
            assert await two.changed("run", version, 0) is None

        _run(connect, body)

    def test_changed_is_woken_by_another_handle(self, connect: Connect) -> None:
        async def body(one: Ledger, two: Ledger) -> None:
            waiting = asyncio.ensure_future(two.changed("run", None, _LATE_S))
            await _create(one, "another", b"")
            version = await _create(one, "run", b"1")
            assert await waiting == Changed(Versioned(b"1", version))
            waiting = asyncio.ensure_future(two.changed("run", version, _LATE_S))
            later = await _swap(one, "run", version, b"2")
            assert await waiting == Changed(Versioned(b"2", later))
            waiting = asyncio.ensure_future(two.changed("run", later, _LATE_S))
            await one.delete("run")
            assert await waiting == Changed(None)

        _run(connect, body)

    # -- the log ----------------------------------------------------------------------------------

    def test_a_record_is_created_once(self, connect: Connect) -> None:
        async def body(one: Ledger, two: Ledger) -> None:
            _needs_log(one)
            assert isinstance(await _append(one, "log", 0, b"first"), Created)
            assert await two.append("log", 0, b"second") == Exists(b"first")
            assert isinstance(await _append(two, "log", 1, b""), Created)
            assert await one.records("log") == ((0, b"first"), (1, b""))
            assert await two.records("log", 1) == ((1, b""),)
            assert await two.records("log", 2) == ()

        _run(connect, body)

    def test_a_log_has_no_holes(self, connect: Connect) -> None:
        async def body(one: Ledger, two: Ledger) -> None:
            _needs_log(one)
            assert await one.append("log", 1, b"early") == Gap()
            assert await one.records("log") == ()
            for index in range(20):
                ledger = (one, two)[index % 2]
                assert isinstance(await _append(ledger, "log", index, b"%d" % index), Created)
            assert await two.append("log", 21, b"early") == Gap()
            records = tuple((index, b"%d" % index) for index in range(20))
            assert await one.records("log") == records
            assert await two.records("log", 15) == records[15:]

        _run(connect, body)

    def test_a_log_can_be_read_in_pages(self, connect: Connect) -> None:
        """A page may have fewer records than the limit, but only the last one may be empty."""

        async def body(one: Ledger, two: Ledger) -> None:
            _needs_log(one)
            assert await two.records("log", 0, 10) == ()
            for index in range(10):
                await _append(one, "log", index, b"%d" % index)
            wanted = tuple((index, b"%d" % index) for index in range(10))
            for limit in (1, 3, 10, 11):
                found: tuple[tuple[int, bytes], ...] = ()
                while page := await two.records("log", len(found), limit):
                    assert len(page) <= limit
                    found += page
                assert found == wanted
            assert await two.records("log", 11, 1) == ()

        _run(connect, body)

    def test_no_index_of_a_dropped_log_is_free_for_whoever_comes_late(
        self, connect: Connect
    ) -> None:
        """Except the first record, because a caller never uses the name of a log twice."""

        async def body(one: Ledger, two: Ledger) -> None:
            _needs_log(one)
            for index in range(3):
                await _append(one, "log", index, b"%d" % index)
            await two.drop_log("log")
            for index in (1, 2, 3, 4):
                assert await one.append("log", index, b"late") == Gap()
            assert await one.records("log", 0, 5) == ()
            assert await two.logs() == ()

        _run(connect, body)

    def test_of_many_who_seal_the_tail_one_does(self, connect: Connect) -> None:
        async def add(ledger: Ledger, writer: int) -> list[int]:
            mine: list[int] = []
            index = 0
            while len(mine) < self.rounds:
                value = b"%d.%d" % (writer, len(mine))
                outcome = await _append(ledger, "log", index, value)
                if isinstance(outcome, Created):
                    mine.append(index)
                assert not isinstance(outcome, Gap)
                index += 1
            return mine

        async def body(one: Ledger, two: Ledger) -> None:
            _needs_log(one)
            mine = await _gather(
                add((one, two)[writer % 2], writer) for writer in range(self.writers)
            )
            total = self.writers * self.rounds
            assert sorted(index for each in mine for index in each) == list(range(total))
            records = await one.records("log")
            assert [index for index, _ in records] == list(range(total))
            for writer, indexes in enumerate(mine):
                for number, index in enumerate(indexes):
                    assert records[index][1] == b"%d.%d" % (writer, number)

        _run(connect, body)

    def test_a_dropped_log_is_gone(self, connect: Connect) -> None:
        async def body(one: Ledger, two: Ledger) -> None:
            _needs_log(one)
            for log in ("a", "a/b", "b"):
                for index in range(3):
                    await _append(one, log, index, log.encode())
            assert await two.logs() == ("a", "a/b", "b")
            assert await two.logs("a/") == ("a/b",)
            assert await two.logs("a") == ("a", "a/b")
            assert await two.logs("é/") == ()
            await two.drop_log("a")
            assert await one.records("a") == ()
            # The writer may have been frozen meanwhile. Its late appends have no effect.
            assert await one.append("a", 3, b"late") == Gap()
            assert await two.logs() == ("a/b", "b")
            assert len(await one.records("a/b")) == 3
            await one.drop_log("a")
            await one.drop_log("never")

        _run(connect, body)

    def test_logs_and_registers_have_names_of_their_own(self, connect: Connect) -> None:
        async def body(one: Ledger, two: Ledger) -> None:
            _needs_log(one)
            await _create(one, "same", b"register")
            await _append(one, "same", 0, b"record")
            assert await two.keys() == ("same",)
            await two.drop_log("same")
            assert await _value(two, "same") == b"register"

        _run(connect, body)

    # -- bad input ------------------------------------------------------------------------------

    def test_a_value_over_the_limit_is_refused_before_it_is_sent(self, connect: Connect) -> None:
        async def body(one: Ledger, two: Ledger) -> None:
            largest = bytes(one.limits.value_bytes_max)
            version = await _create(one, "run", largest)
            with pytest.raises(LedgerLimitError) as told:
                await one.swap("run", version, largest + b"1")
            assert told.value.hint
            assert await two.read("run") == Versioned(largest, version)
            if one.has_log:
                largest = bytes(one.limits.record_bytes_max)
                assert isinstance(await _append(one, "log", 0, largest), Created)
                with pytest.raises(LedgerLimitError):
                    await one.append("log", 1, largest + b"1")
                assert await two.records("log") == ((0, largest),)

        _run(connect, body)

    def test_a_malformed_name_is_refused(self, connect: Connect) -> None:
        async def body(one: Ledger, _two: Ledger) -> None:
            longest = "k" * KEY_BYTES_MAX
            await _create(one, longest, b"value")
            assert await one.keys() == (longest,)
            for name in ("", "a\0b", longest + "k", "é" * KEY_BYTES_MAX):
                with pytest.raises(UsageError):
                    await one.read(name)
                with pytest.raises(UsageError):
                    await one.swap(name, None, b"value")
                with pytest.raises(UsageError):
                    await one.delete(name)
            if one.has_log:
                with pytest.raises(UsageError):
                    await one.append("log", -1, b"value")
                with pytest.raises(UsageError):
                    await one.append("", 0, b"value")

        _run(connect, body)


# -- a caller that keeps the contract ------------------------------------------------------------


def _run(connect: Connect, body: Body) -> None:
    async def both() -> None:
        async with connect() as one, connect() as two:
            await body(one, two)

    asyncio.run(_bounded(both()))


async def _bounded(work: Awaitable[None]) -> None:
    async with asyncio.timeout(4 * _LATE_S):
        await work


async def _settled(ledger: Ledger, key: str, expected: int | None, value: bytes) -> SwapOutcome:
    """Swap, and try the same bytes again until the outcome is known. Never returns Unknown.

    No other writer may use `value`.
    """
    unknown = False
    for _ in range(_UNKNOWNS_MAX):
        outcome = await ledger.swap(key, expected, value)
        if isinstance(outcome, Unknown):
            unknown = True
            continue
        if unknown and isinstance(outcome, Conflict) and outcome.current is not None:
            if outcome.current.value == value:
                return Swapped(outcome.current.version)
            if value in outcome.current.value:
                # An earlier try has succeeded, and other writers have written after it.
                return Swapped(-1)
        return outcome
    raise AssertionError(f"{_UNKNOWNS_MAX} unknown outcomes in a row, the last: {outcome}")


async def _swap(ledger: Ledger, key: str, expected: int | None, value: bytes) -> int:
    outcome = await _settled(ledger, key, expected, value)
    assert isinstance(outcome, Swapped), outcome
    return outcome.version


async def _create(ledger: Ledger, key: str, value: bytes) -> int:
    return await _swap(ledger, key, None, value)


async def _append(ledger: Ledger, log: str, index: int, value: bytes) -> AppendOutcome:
    """Append, and try again until the outcome is known. Never returns Unknown."""
    unknown = False
    for _ in range(_UNKNOWNS_MAX):
        outcome = await ledger.append(log, index, value)
        if isinstance(outcome, Unknown):
            unknown = True
        elif unknown and outcome == Exists(value):
            return Created()
        else:
            return outcome
    raise AssertionError(f"{_UNKNOWNS_MAX} unknown outcomes in a row, the last: {outcome}")


async def _there(ledger: Ledger, key: str) -> Versioned:
    found = await ledger.read(key)
    assert found is not None
    return found


async def _value(ledger: Ledger, key: str) -> bytes | None:
    found = await ledger.read(key)
    return found.value if found else None


async def _gather(works: Any) -> list[Any]:
    """Run all of them at the same time. The first error ends them all."""
    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(work) for work in works]
    return [task.result() for task in tasks]


def _needs_log(ledger: Ledger) -> None:
    if not ledger.has_log:
        pytest.skip("keeps no log")
