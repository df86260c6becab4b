"""The only file that uses torch, for stores and errors that need torch or must look like torch's.

torch is imported only when a function here needs it. Whether torch is in use is determined from the
process's imports (`loaded`). So `rallypoint.rendezvous` costs nothing in a program without torch.
Under torchrun, which imports torch first, errors and stores are torch's own classes as well.
"""

from __future__ import annotations

import importlib.util
import sys
from collections import deque
from collections.abc import Callable, Sequence
from datetime import timedelta
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeVar

from rallypoint import errors
from rallypoint.core import store as ops
from rallypoint.threads import within

if TYPE_CHECKING:
    from rallypoint.client.blocking import Runner
    from rallypoint.client.blocking import Store as BlockingStore
    from rallypoint.client.world import Store as AsyncStore

TORCH_ERRORS: Final = "torch.distributed.elastic.rendezvous.api"
TIMEOUT_S_MAX: Final = 365 * 86_400.0
"""A longer timeout is cut to this, as it would overflow in C++."""
LATE_S: Final = 1.0
"""How many seconds after its deadline a call ends if torch's store does not keep the deadline."""

KEPT_STORES: Final = 64
"""The stores of this many rounds are kept for torch's C++, even if the program has dropped them."""

_S = TypeVar("_S")


def is_available() -> bool:
    """Whether torch is installed."""
    return sys.modules.get("torch") is not None or importlib.util.find_spec("torch") is not None


def loaded() -> bool:
    """Whether this process has imported torch's distributed package."""
    return "torch.distributed" in sys.modules


def require(what: str) -> None:
    """Raises RuntimeError if torch is not installed.

    `what`: the part that needs it, for the text.
    """
    if not is_available():
        raise RuntimeError(
            f"{what} needs PyTorch, which is not installed; install it (pip install torch), or use "
            "the backend `rallypoint`, `etcd` or `static`, which need none"
        )


# -- torchrun itself -------------------------------------------------------------------------------


def is_torchrun() -> bool:
    """Whether this process is torchrun, so that its command line is torchrun's.

    Other programs may call it: `accelerate launch` does.
    """
    spec = getattr(sys.modules.get("__main__"), "__spec__", None)
    is_module = spec is not None and spec.name == "torch.distributed.run"
    return is_module or Path(sys.argv[0]).stem in ("torchrun", "torchrun-script")


def workers_of_torchrun() -> int | None:
    """How many workers this process, torchrun, starts; None if it is another program.

    torch tells a rendezvous backend no number. The command line and PET_NPROC_PER_NODE are read by
    torchrun's own functions, which have read them before.
    """
    if not is_torchrun():
        return None
    from torch.distributed import run

    workers: int = run.determine_local_world_size(run.parse_args(sys.argv[1:]).nproc_per_node)
    return workers


# -- stores of torch's own -----------------------------------------------------------------------


def tcp_store(
    host: str,
    port: int,
    *,
    is_server: bool,
    timeout_s: float,
    listen_fd: int | None = None,
    multi_tenant: bool = False,
) -> Any:
    """A torch.distributed.TCPStore; as a server, on the bound socket `listen_fd` if given.

    The server owns the descriptor then. Does not wait for other processes. Raises RuntimeError and
    its subclasses, and ValueError, as torch does.
    """
    require("a TCPStore")
    from torch.distributed import TCPStore

    return TCPStore(
        host,
        port,
        is_master=is_server,
        timeout=timedelta(seconds=timeout_s),
        wait_for_workers=False,
        multi_tenant=multi_tenant,
        master_listen_fd=listen_fd,
    )


def file_store(path: str) -> Any:
    """A torch.distributed.FileStore on this file, for any number of processes."""
    require("a FileStore")
    from torch.distributed import FileStore

    return FileStore(path)


def is_torch_store(store: object) -> bool:
    """Whether this is a store that torch itself can use."""
    if not loaded():
        return False
    from torch.distributed import Store

    return isinstance(store, Store)


def is_tcp_store(store: object) -> bool:
    """Whether this is torch's TCPStore."""
    if not loaded():
        return False
    from torch.distributed import TCPStore

    return isinstance(store, TCPStore)


def prefix_store(prefix: str, store: Any, on_add: Callable[[str], None] = lambda key: None) -> Any:
    """A torch.distributed.PrefixStore over a torch store. `on_add` is called with an added key."""
    return _prefix_store_class()(prefix, store, on_add)


def store_of(runner: Runner, store: AsyncStore) -> Any:
    """`store` as a torch.distributed.Store, for PrefixStore, init_process_group and the like.

    Its errors are both torch's DistStoreError and Rallypoint's. Keep a reference to it: torch's C++
    keeps only the C++ half of a store alive, but calls the Python half. `round_store_of` and
    `world_store` keep one themselves.
    """
    return _store_class()(runner, store)


def round_store_of(runner: Runner, store: AsyncStore) -> Any:
    """Like `store_of`, for a round's store, to which a program may not keep a reference."""
    return _kept_for_torch(store_of(runner, store))


def world_store(runner: Runner, store: AsyncStore) -> BlockingStore | None:
    """The store of a World as a torch.distributed.Store that is a rallypoint.Store as well.

    For a process that has imported torch.distributed. None if that has no Store, because torch can
    be built without its distributed package.
    """
    from torch import distributed

    if getattr(distributed, "Store", None) is None:
        return None
    both: BlockingStore = _kept_for_torch(_world_store_class()(runner, store))
    return both


_kept: deque[object] = deque(maxlen=KEPT_STORES)


def _kept_for_torch(store: _S) -> _S:
    _kept.append(store)
    return store


@cache
def _world_store_class() -> Any:
    from rallypoint.client.blocking import Store as BlockingStore

    class WorldStore(_store_class(), BlockingStore):  # type: ignore[misc,unused-ignore]
        """A torch Store with all calls of a BlockingStore, but without its attributes.

        The torch Store is the first base, because torch's C++ reads its timeout, which must be the
        only one.
        """

    return WorldStore


@cache
def _prefix_store_class() -> Any:
    from torch.distributed import DistNetworkError, PrefixStore

    class WatchedPrefixStore(PrefixStore):  # type: ignore[misc,unused-ignore]
        """A PrefixStore that reports to which counters its Python callers add.

        Their calls end in time, whereas torch's own calls to a TCPStore on a frozen host never end.
        """

        def __init__(self, prefix: str, store: Any, on_add: Callable[[str], None]) -> None:
            super().__init__(prefix, store)
            # torch keeps only the C++ half of a store that is written in Python, not the Python
            # half.
            self._below = store
            self._on_add = on_add

        def _in_time(self, call: Callable[[], Any], timeout: timedelta | None = None) -> Any:
            limit_s = (self.timeout if timeout is None else timeout).total_seconds() + LATE_S
            try:
                return within(limit_s, call)
            except TimeoutError as error:
                text = f"the store has not answered for {limit_s:g} s: is its host frozen or gone?"
                raise DistNetworkError(text) from error

        def set(self, key: str, value: str | bytes) -> None:
            base: Any = super()
            self._in_time(lambda: base.set(key, value))

        def get(self, key: str) -> bytes:
            base: Any = super()
            return bytes(self._in_time(lambda: base.get(key)))

        def add(self, key: str, amount: int) -> int:
            base: Any = super()
            count = int(self._in_time(lambda: base.add(key, amount)))
            self._on_add(key)
            return count

        def compare_set(self, key: str, expected: str, desired: str) -> bytes:
            base: Any = super()
            return bytes(self._in_time(lambda: base.compare_set(key, expected, desired)))

        def wait(self, keys: Sequence[str], timeout: timedelta | None = None) -> None:
            base: Any = super()
            more = () if timeout is None else (timeout,)
            self._in_time(lambda: base.wait(keys, *more), timeout)

        def check(self, keys: Sequence[str]) -> bool:
            base: Any = super()
            return bool(self._in_time(lambda: base.check(keys)))

        def multi_get(self, keys: Sequence[str]) -> list[bytes]:
            base: Any = super()
            return list(self._in_time(lambda: base.multi_get(keys)))

        def multi_set(self, keys: Sequence[str], values: Sequence[str | bytes]) -> None:
            base: Any = super()
            self._in_time(lambda: base.multi_set(keys, values))

        def append(self, key: str, value: str | bytes) -> None:
            base: Any = super()
            self._in_time(lambda: base.append(key, value))

        def delete_key(self, key: str) -> bool:
            base: Any = super()
            return bool(self._in_time(lambda: base.delete_key(key)))

        def num_keys(self) -> int:
            base: Any = super()
            return int(self._in_time(base.num_keys))

    return WatchedPrefixStore


@cache
def _store_class() -> Any:
    from torch.distributed import Store

    from rallypoint.client.world import seconds

    class CoordinatedStore(Store):  # type: ignore[misc,unused-ignore]
        """A torch Store whose calls go to the round's coordinator.

        torch's C++ calls these methods, too, from any thread, except num_keys and delete_key. These
        two work on this object, but fail through a PrefixStore.
        """

        def __init__(self, runner: Runner, store: AsyncStore) -> None:
            Store.__init__(self)
            self._runner = runner
            self._ours = store
            self.set_timeout(store.timeout_s)

        def __repr__(self) -> str:
            return f"<Store: calls wait for at most {self.timeout_s:g} s>"

        @property
        def timeout_s(self) -> float:
            return float(self.timeout.total_seconds())

        def set_timeout(self, timeout: timedelta | float) -> None:
            super().set_timeout(timedelta(seconds=min(seconds(timeout), TIMEOUT_S_MAX)))

        def _ask(self, op: ops.StoreOp, timeout: timedelta | float | None = None) -> Any:
            limit_s = seconds(self.timeout if timeout is None else timeout)
            try:
                return self._runner.run(self._ours._execute(op, limit_s))
            except (errors.StoreError, errors.RoundBrokenError, errors.CoordinatorError) as error:
                raise store_error(error) from error.__cause__  # it says the same

        def set(self, key: str, value: str | bytes) -> None:
            self._ask(ops.Set(key, _bytes(value)))

        def get(self, key: str) -> bytes:
            return bytes(self._ask(ops.Get(key)))

        def add(self, key: str, amount: int) -> int:
            return int(self._ask(ops.Add(key, amount)))

        def compare_set(self, key: str, expected: str | bytes, desired: str | bytes) -> bytes:
            return bytes(self._ask(ops.CompareSet(key, _bytes(expected), _bytes(desired))))

        def append(self, key: str, value: str | bytes) -> None:
            self._ask(ops.Append(key, _bytes(value)))

        def wait(self, keys: Sequence[str], timeout: timedelta | float | None = None) -> None:
            self._ask(ops.Wait(tuple(keys)), timeout)

        def check(self, keys: Sequence[str]) -> bool:
            return bool(self._ask(ops.Check(tuple(keys))))

        def multi_get(self, keys: Sequence[str]) -> list[bytes]:
            return list(self._ask(ops.MultiGet(tuple(keys))))

        def multi_set(self, keys: Sequence[str], values: Sequence[str | bytes]) -> None:
            if len(keys) != len(values):
                raise errors.UsageError(f"{len(keys)} keys for {len(values)} values")
            self._ask(ops.MultiSet(tuple(keys), tuple(map(_bytes, values))))

        def delete_key(self, key: str) -> bool:
            return bool(self._ask(ops.DeleteKey(key)))

        def num_keys(self) -> int:
            return int(self._ask(ops.NumKeys()))

        def has_extended_api(self) -> bool:
            return True

        def clone(self) -> CoordinatedStore:
            return self

    return CoordinatedStore


def _bytes(value: str | bytes | list[int]) -> bytes:
    """A value as it is stored. torch passes a str, bytes, or a list of numbers below 256.

    Raises UsageError for anything else: bytes(5) would be five zeros.
    """
    from rallypoint.client.world import as_bytes

    return bytes(value) if isinstance(value, list) else as_bytes(value)


# -- errors that both sides catch ----------------------------------------------------------------


def error_class(ours: type[Exception]) -> type[Exception]:
    """The class to raise for `ours`, an error of rallypoint.rendezvous.api.

    If torch's rendezvous is imported, it is a subclass of torch's error as well, so that callers of
    torch catch it.
    """
    module = sys.modules.get(TORCH_ERRORS)
    theirs = getattr(module, ours.__name__, None)
    return ours if theirs is None or issubclass(ours, theirs) else _both(ours, theirs)


def error_of(ours: type[Exception], text: str, detail: str) -> Exception:
    """An error of `error_class(ours)` with exactly torch's text, which programs and tests match.

    `detail` is a note (PEP 678), which a traceback shows.
    """
    error = error_class(ours)(text)
    error.add_note(detail)
    return error


def store_error(error: errors.RallypointError) -> Exception:
    """The error of a store's call as an error of torch, too, which callers of its stores catch.

    It is a DistNetworkError if the coordinator is lost, otherwise a DistStoreError. Both are
    RuntimeErrors.
    """
    from torch.distributed import DistNetworkError, DistStoreError

    is_network = isinstance(error, errors.CoordinatorError)
    both = _both(type(error), DistNetworkError if is_network else DistStoreError)
    same = both.__new__(both, *error.args)
    same.__dict__.update(error.__dict__)
    return same


def first_failure(error: BaseException) -> str:
    """Which worker failed first, and how, if this is torchrun's ChildFailedError; else "".

    Its own text is a table of many lines. It is recognized by its method, without an import.
    """
    if not hasattr(error, "get_first_failure"):
        return ""
    rank, failure = error.get_first_failure()
    if failure.exitcode < 0:
        return f"rank {rank} was killed by {failure.signal_name()} (signal {-failure.exitcode})"
    text = f"rank {rank} ended with exit code {failure.exitcode}"
    # A program under torch's @record leaves its error. Otherwise the message is advice to use
    # @record.
    said = failure.message.get("message", "") if isinstance(failure.message, dict) else ""
    return f"{text}: {said}" if said else text


_classes: dict[tuple[str, str], type[Exception]] = {}


def _both(ours: type[Exception], theirs: type[Exception]) -> type[Exception]:
    """A class that derives from both; the same one at each call."""
    names = (ours.__qualname__, theirs.__qualname__)
    if names not in _classes:
        _classes[names] = type(ours.__name__, (ours, theirs), {"__module__": ours.__module__})
    return _classes[names]
