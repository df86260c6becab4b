"""The ledger over a rendezvous backend: well-behaved ones, bad ones, and torch's own."""

from __future__ import annotations

import asyncio
import pickle
import random
import threading
import time
from typing import Any

import pytest

from rallypoint.errors import (
    LedgerCorruptError,
    LedgerError,
    LedgerForeignError,
    LedgerFormatError,
    LedgerFullError,
    LedgerUnfitError,
    LedgerUnreachableError,
    UsageError,
)
from rallypoint.ledger import record_format
from rallypoint.ledger.contract import Conflict, Swapped, Unknown, Versioned
from rallypoint.ledger.torch_backend import TorchBackendLedger
from rallypoint.testing import Connect, LedgerSuite


class Backend:
    """Keeps every promise. A token is a count."""

    name = "fake"

    def __init__(self) -> None:
        self.state: bytes | None = None
        self.count = 0
        self._lock = threading.Lock()

    def get_state(self) -> Any:
        with self._lock:
            return self._now()

    def set_state(self, state: bytes, token: Any = None) -> Any:
        with self._lock:
            if token != (None if self.state is None else self.count):
                now = self._now()
                return None if now is None else (*now, False)
            self.state, self.count = state, self.count + 1
            return state, self.count, True

    def _now(self) -> Any:
        return None if self.state is None else (self.state, self.count)


class SaysNothing(Backend):
    """Stores the value, and answers a set with None."""

    def set_state(self, state: bytes, token: Any = None) -> Any:
        super().set_state(state, token)


class LosesAnswers(Backend):
    """Fails at times, before or after it has stored the value."""

    def __init__(self, share: float = 0.2) -> None:
        super().__init__()
        self.share = share
        self._draw = random.Random(7)

    def set_state(self, state: bytes, token: Any = None) -> Any:
        drawn = self._draw.random()
        if drawn < self.share / 2:
            raise ConnectionError("not sent")
        answer = super().set_state(state, token)
        if drawn < self.share:
            raise ConnectionError("answer lost")
        return answer


class Comparing(Backend):
    """Like torch's c10d backend: the token is the value, and a set counts as done by comparison."""

    def set_state(self, state: bytes, token: Any = None) -> Any:
        with self._lock:
            if token == self.state:
                self.state = state
            return None if self.state is None else (self.state, self.state, self.state == state)

    def _now(self) -> Any:
        return None if self.state is None else (self.state, self.state)


class KeepsNothing(Backend):
    """Answers None to everything."""

    def get_state(self) -> Any:
        return None

    def set_state(self, state: bytes, token: Any = None) -> Any:
        return None


class TestWellBehaved(LedgerSuite):
    backend: type[Backend] = Backend

    @pytest.fixture
    def connect(self) -> Connect:
        backend = self.backend()
        return lambda: TorchBackendLedger(backend)


class TestComparing(TestWellBehaved):
    backend = Comparing


class TestSaysNothing(TestWellBehaved):
    backend = SaysNothing


class TestLosesAnswers(TestWellBehaved):
    backend = LosesAnswers


@pytest.mark.torch
class TestTorchsOwn(LedgerSuite):
    @pytest.fixture
    def connect(self) -> Connect:
        pytest.importorskip("torch")
        from torch.distributed import HashStore
        from torch.distributed.elastic.rendezvous.c10d_rendezvous_backend import (
            C10dRendezvousBackend,
        )

        store = HashStore()
        return lambda: TorchBackendLedger(C10dRendezvousBackend(store, "run"))


# -- what a backend may do wrong -------------------------------------------------------------------


async def opened(backend: Any, timeout_s: float = 5.0) -> TorchBackendLedger:
    ledger = TorchBackendLedger(backend, timeout_s=timeout_s)
    await ledger.open()
    return ledger


def test_a_backend_that_keeps_nothing_is_an_empty_ledger_whose_swaps_are_unknown():
    async def body() -> None:
        ledger = await opened(KeepsNothing())
        assert ledger.ledger_id
        assert await ledger.read("run") is None
        assert await ledger.keys() == ()
        outcome = await ledger.swap("run", None, b"1")
        assert isinstance(outcome, Unknown)
        assert isinstance(outcome.error, LedgerUnreachableError)
        assert await ledger.swap("run", 3, b"1") == Conflict(None)
        await ledger.delete("run")

    asyncio.run(body())


def test_a_ledger_that_could_be_stored_only_later_keeps_its_id():
    class Late(Backend):
        late = False

        def set_state(self, state: bytes, token: Any = None) -> Any:
            return super().set_state(state, token) if self.late else None

    async def body() -> None:
        backend = Late()
        ledger = await opened(backend)
        backend.late = True
        assert isinstance(await ledger.swap("run", None, b"1"), Swapped)
        assert (await opened(backend)).ledger_id == ledger.ledger_id

    asyncio.run(body())


def test_two_processes_that_open_at_once_get_one_id():
    class Raced(Backend):
        def get_state(self) -> Any:
            now = super().get_state()
            time.sleep(0.05)
            return now

    async def body() -> None:
        backend = Raced()
        one, two = await asyncio.gather(opened(backend), opened(backend))
        assert one.ledger_id == two.ledger_id

    asyncio.run(body())


def test_one_of_two_equal_writes_wins():
    """Although the backend tells both that their value is stored."""

    class Raced(Comparing):
        def get_state(self) -> Any:
            now = super().get_state()
            time.sleep(0.05)
            return now

    async def body() -> None:
        backend = Raced()
        one, two = await opened(backend), await opened(backend)
        outcomes = await asyncio.gather(*(each.swap("run", None, b"1") for each in (one, two)))
        assert sorted(type(each).__name__ for each in outcomes) == ["Conflict", "Swapped"]

    asyncio.run(body())


def test_a_senseless_token_changes_nothing():
    class Senseless(Backend):
        def _now(self) -> Any:
            return None if self.state is None else (self.state, "?")

    async def body() -> None:
        backend = Senseless()
        ledger = await opened(backend)
        before = backend.state
        assert isinstance(await ledger.swap("run", None, b"1"), Unknown)
        assert backend.state == before

    asyncio.run(body())


@pytest.mark.parametrize(
    ("state", "kind"),
    [
        (b"", LedgerForeignError),
        (b"garbage", LedgerForeignError),
        (record_format.MAGIC, LedgerCorruptError),
        (record_format.seal(b"", b"12345678")[:-1] + b"?", LedgerCorruptError),
        (record_format.seal(b"garbage", b"12345678"), LedgerCorruptError),
        (record_format.seal(b"", b"12345678", format=99), LedgerFormatError),
    ],
)
def test_a_value_that_is_no_ledger_is_refused_and_unchanged(state: bytes, kind: type[LedgerError]):
    async def body() -> None:
        backend = Backend()
        backend.state = state
        with pytest.raises(kind) as told:
            await opened(backend)
        assert told.value.hint
        assert backend.state == state

    asyncio.run(body())


class Boom:
    """Does harm if it is unpickled."""

    def __reduce__(self) -> Any:
        return exploded.append, (True,)


exploded: list[bool] = []


def test_a_pickle_is_never_executed():
    async def body() -> None:
        backend = Backend()
        ledger = await opened(backend)
        assert isinstance(await ledger.swap("run", None, b"1"), Swapped)
        backend.state, backend.count = pickle.dumps(Boom()), backend.count + 1
        with pytest.raises(LedgerForeignError, match="rendezvous"):
            await ledger.read("run")
        outcome = await ledger.swap("run", 1, b"2")
        assert isinstance(outcome, Unknown)
        assert isinstance(outcome.error, LedgerForeignError)
        assert not exploded

    asyncio.run(body())


@pytest.mark.parametrize("another", [False, True])
def test_a_lost_ledger_is_not_created_again_under_its_id(another: bool):
    async def body() -> None:
        backend = Backend()
        ledger = await opened(backend)
        assert isinstance(await ledger.swap("run", None, b"1"), Swapped)
        backend.state = None
        if another:
            await opened(backend)
        left = backend.state
        with pytest.raises(LedgerForeignError):
            await ledger.read("run")
        assert isinstance(await ledger.swap("run", None, b"1"), Unknown)
        with pytest.raises(LedgerForeignError):
            await ledger.delete("run")
        assert backend.state == left

    asyncio.run(body())


@pytest.mark.parametrize("answer", [b"state", (b"state",), ("state", 1), (None, 1), 7])
def test_an_answer_that_no_backend_gives_is_refused(answer: Any):
    class Odd(Backend):
        def get_state(self) -> Any:
            return answer

    with pytest.raises(LedgerUnfitError):
        asyncio.run(opened(Odd()))


def test_an_error_of_torch_about_damage_is_damage():
    class RendezvousStateError(Exception):
        pass

    class Damaged(Backend):
        def get_state(self) -> Any:
            raise RendezvousStateError("corrupt")

    with pytest.raises(LedgerCorruptError):
        asyncio.run(opened(Damaged()))


def test_a_backend_that_hangs_makes_outcomes_unknown():
    class Hangs(Backend):
        def __init__(self) -> None:
            super().__init__()
            self.free = threading.Event()
            self.free.set()

        def get_state(self) -> Any:
            self.free.wait(30)
            return super().get_state()

    async def body() -> None:
        backend = Hangs()
        ledger = await opened(backend)
        ledger._timeout_s = 0.2
        backend.free.clear()
        start = time.monotonic()
        outcomes = await asyncio.gather(*(ledger.swap("run", None, b"1") for _ in range(40)))
        assert time.monotonic() - start < 20
        for outcome in outcomes:
            assert isinstance(outcome, Unknown)
            assert isinstance(outcome.error, LedgerUnreachableError)
        with pytest.raises(LedgerUnreachableError):
            await ledger.read("run")
        backend.free.set()
        ledger._timeout_s = 20
        assert isinstance(await ledger.swap("run", None, b"2"), Swapped)

    asyncio.run(body())


@pytest.mark.parametrize("error", [OSError("gone"), StopIteration(), KeyError("x")])
def test_any_error_of_a_backend_means_unreachable(error: Exception):
    class Raises(Backend):
        def get_state(self) -> Any:
            raise error

    with pytest.raises(LedgerUnreachableError, match=type(error).__name__) as told:
        asyncio.run(opened(Raises()))
    assert told.value.hint
    assert told.value.__cause__ is error


def test_a_write_done_without_an_answer_and_replaced_is_unknown():
    async def body() -> None:
        backend = Backend()
        ledger, other = await opened(backend), await opened(backend)
        set_state = backend.set_state
        loop = asyncio.get_running_loop()

        def loses(state: bytes, token: Any = None) -> Any:
            backend.set_state = set_state  # type: ignore[method-assign]
            set_state(state, token)
            asyncio.run_coroutine_threadsafe(other.swap("run", 1, b"2"), loop).result()

        backend.set_state = loses  # type: ignore[method-assign]
        assert isinstance(await ledger.swap("run", None, b"1"), Unknown)
        assert await ledger.read("run") == Versioned(b"2", 2)

    asyncio.run(body())


def test_too_many_registers_are_refused_and_the_others_stay():
    async def body() -> None:
        ledger = await opened(Backend())
        full = bytes(ledger.limits.value_bytes_max)
        outcomes = [await ledger.swap(f"run-{n}", None, full) for n in range(4)]
        assert all(isinstance(each, Swapped) for each in outcomes[:3])
        last = outcomes[3]
        assert isinstance(last, Unknown)
        assert isinstance(last.error, LedgerFullError)
        assert last.error.hint
        assert await ledger.keys() == ("run-0", "run-1", "run-2")

    asyncio.run(body())


def test_a_closed_ledger_is_an_error():
    async def body() -> None:
        ledger = TorchBackendLedger(Backend())
        with pytest.raises(LedgerUnreachableError, match="not open"):
            await ledger.read("run")
        assert isinstance(await ledger.swap("run", None, b"1"), Unknown)

    asyncio.run(body())


@pytest.mark.parametrize("timeout_s", [0, -1, float("inf"), float("nan")])
def test_a_bad_timeout_is_refused(timeout_s: float):
    with pytest.raises(UsageError):
        TorchBackendLedger(Backend(), timeout_s=timeout_s)


@pytest.mark.torch
def test_the_largest_value_fits_into_torchs_tcp_store():
    pytest.importorskip("torch")
    from torch.distributed import TCPStore
    from torch.distributed.elastic.rendezvous.c10d_rendezvous_backend import C10dRendezvousBackend

    store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)

    async def body() -> None:
        ledger = await opened(C10dRendezvousBackend(store, "run"))
        for n in range(3):
            largest = bytes(ledger.limits.value_bytes_max)
            assert isinstance(await ledger.swap(f"run-{n}", None, largest), Swapped)
        assert len(await ledger.keys()) == 3

    asyncio.run(body())
