"""A ledger over a RendezvousBackend of PyTorch: one value with compare-and-swap.

Any object with the methods of torch's RendezvousBackend can be used, such as one that a site has
written for its scheduler. torch itself is not needed. All registers are in the backend's one value
(`single_value`), sealed with a new nonce for each write (`record_format`). So no two writers ever
write the same bytes, and a writer recognises its own after any answer of the backend.

What a backend may do, and the result:

* It raises, hangs, or answers a set with None. The ledger reads the value, and tries the same bytes
  again if they are not there. If doubt remains, the outcome is Unknown.
* It answers every call with None. The ledger is then empty, has an id that only this object has,
  and every swap is Unknown. No value ever counts as stored.
* It refuses a token that it gave out itself. Nothing is written, and the swap is Unknown.
* It loses its value (etcd's v2 backend keeps it for two hours). An object that has seen the value
  raises LedgerForeignError, and never starts again under the old id.
* Its value is another program's, such as the pickled state of torch's own rendezvous. The ledger
  raises LedgerForeignError and leaves it as it is. Bytes are parsed as data, and never executed.
"""

from __future__ import annotations

import asyncio
import math
import threading
import time
from collections.abc import Callable
from typing import Any, Final, Protocol, TypeVar

import msgspec

from rallypoint import runtime
from rallypoint.errors import (
    LedgerCorruptError,
    LedgerError,
    LedgerForeignError,
    LedgerFullError,
    LedgerUnfitError,
    LedgerUnreachableError,
    UsageError,
)
from rallypoint.ledger import record_format, single_value
from rallypoint.ledger.contract import (
    Conflict,
    Ledger,
    LedgerLimits,
    SwapOutcome,
    Swapped,
    Unknown,
    Versioned,
    check_name,
)
from rallypoint.ledger.single_value import RegisterMap
from rallypoint.threads import LimitedCalls

T = TypeVar("T")
TIMEOUT_S: Final = 5.0
STATE_BYTES_MAX: Final = 4 << 20
"""The largest size of all registers together. torch's backends encode in base64, and TCPStore takes
8 MiB."""
_TRIES_MAX: Final = 4
"""How often to try the same bytes with a backend that neither stores nor refuses them."""
_UNREACHABLE_HINT: Final = "check that the backend's server runs and can be reached from this host"
_RETRY_S: Final = 0.02


class RendezvousBackend(Protocol):
    """The part of torch's class of this name (dynamic_rendezvous) that a ledger uses."""

    @property
    def name(self) -> str:
        """The name for messages."""

    def get_state(self) -> tuple[bytes, Any] | None:
        """The value and its token; None if there is none."""

    def set_state(self, state: bytes, token: Any = None) -> tuple[bytes, Any, bool] | None:
        """Replace the value that has this token (None: create it). Returns what is stored then."""


class _Now(msgspec.Struct, frozen=True):
    """The backend's present value. `register_map` and `data` are None if there is none."""

    register_map: RegisterMap | None
    data: bytes | None = None
    token: Any = None


class _Moved(msgspec.Struct, frozen=True):
    """A write was not done, because `now` is stored. `unsure`: an earlier try may be done later."""

    now: _Now
    unsure: bool


class _TakesNothingError(LedgerUnreachableError):
    """The backend answers, but stores nothing."""


class TorchBackendLedger(Ledger):
    """Registers in a backend's value. The backend is called from threads, one call at a time."""

    is_durable = False  # no backend promises durability: torch's own are in the memory of a process
    has_log = False
    limits = LedgerLimits(
        value_bytes_max=1 << 20, record_bytes_max=1 << 20, writes_per_s=20.0, is_one_value=True
    )

    def __init__(self, backend: RendezvousBackend, *, timeout_s: float = TIMEOUT_S) -> None:
        """`timeout_s` limits each operation, which may make several calls of the backend.

        Raises:
            UsageError: `timeout_s` is not positive and finite.
        """
        if not (math.isfinite(timeout_s) and timeout_s > 0):
            raise UsageError(f"timeout_s must be a positive number of seconds, not {timeout_s}")
        self.ledger_id = ""
        self._backend = backend
        self._where = f"the value of the rendezvous backend {_name_of(backend)!r}"
        self._timeout_s = timeout_s
        self._threads = LimitedCalls()
        self._one_call = threading.Lock()
        self._seen = False
        """Whether the backend is known to have stored this ledger."""
        self.keeps_nothing = False
        """Whether the backend answered when the ledger was opened, but stored nothing."""

    async def open(self) -> None:
        """See Ledger.open. The process that stores the ledger first draws the id."""
        if self.ledger_id:
            return
        deadline = self._deadline()
        register_map = (now := await self._get(deadline)).register_map
        if register_map is None:
            mine = RegisterMap.empty(runtime.token_hex(8))
            try:
                moved = await self._put(now, mine, deadline)
            except _TakesNothingError:
                self.ledger_id, self.keeps_nothing = mine.ledger_id, True
                return
            register_map = moved.now.register_map if moved else mine
            if register_map is None:
                raise self._gone()
        self.ledger_id, self._seen = register_map.ledger_id, True

    async def aclose(self) -> None:
        """See Ledger.aclose. The backend belongs to the caller and is not closed."""
        self.ledger_id, self._seen, self.keeps_nothing = "", False, False

    # -- registers ------------------------------------------------------------------------------

    async def read(self, key: str) -> Versioned | None:
        """See Ledger.read."""
        check_name(key)
        return self._register_map(await self._get(self._deadline())).read(key)

    async def keys(self, prefix: str = "") -> tuple[str, ...]:
        """See Ledger.keys."""
        return self._register_map(await self._get(self._deadline())).keys(prefix)

    async def swap(self, key: str, expected: int | None, value: bytes) -> SwapOutcome:
        """See Ledger.swap."""
        self.check_value(key, value)
        try:
            return await self._swap(key, expected, value)
        except LedgerError as error:
            return Unknown(error.message, error)

    async def _swap(self, key: str, expected: int | None, value: bytes) -> SwapOutcome:
        deadline = self._deadline()
        now = await self._get(deadline)
        unsure = False
        while True:
            after = self._register_map(now).swap(key, expected, value)
            # A register that still has the expected version was not written by an earlier try, and
            # never will be, because the token of that try is stale. A register that does not exist
            # may have been created and deleted.
            if unsure and (expected is None or isinstance(after, Conflict)):
                return Unknown("the backend's answer was lost, and its value has changed since")
            if isinstance(after, Conflict):
                return after
            moved = await self._put(now, after.register_map, deadline)
            if moved is None:
                return Swapped(after.version)
            now, unsure = moved.now, unsure or moved.unsure

    async def delete(self, key: str, version: int | None = None) -> bool:
        """See Ledger.delete."""
        check_name(key)
        deadline = self._deadline()
        now = await self._get(deadline)
        seen, unsure = version, False
        while (found := self._register_map(now).read(key)) is not None:
            if unsure and found.version != seen:
                raise LedgerUnreachableError(
                    f"it is not known whether {key!r} was deleted: the answer was lost, and the "
                    "register has been written since",
                    hint="check whether the register is there, and delete it again",
                )
            if version not in (None, found.version):
                return False
            seen = found.version
            register_map = self._register_map(now).delete(key)
            assert register_map is not None  # the register exists: see the loop
            moved = await self._put(now, register_map, deadline)
            if moved is None:
                return True
            now, unsure = moved.now, unsure or moved.unsure
        return True

    # -- the backend's one value ----------------------------------------------------------------

    async def _put(self, at: _Now, register_map: RegisterMap, deadline: float) -> _Moved | None:
        """Replace the value that was stored `at` that time. Returns None if that was done.

        Raises:
            LedgerError: it is unknown whether it was done. It may be done later.
        """
        data = record_format.seal(single_value.encode(register_map), record_format.new_nonce())
        if len(data) > STATE_BYTES_MAX:
            raise LedgerFullError(
                f"all registers together need {len(data)} bytes; a rendezvous backend may hold at "
                f"most {STATE_BYTES_MAX}",
                hint="give each run its own backend, or use another ledger",
            )
        unsure, answered, token = False, True, at.token
        for tries in range(_TRIES_MAX):
            if tries:
                await asyncio.sleep(min(_RETRY_S * 2**tries, max(0, deadline - time.monotonic())))
            try:
                now = await self._set(data, token, deadline)
            except LedgerUnreachableError:
                now, answered = None, False
            if now is None:
                unsure = True
                now = await self._get(deadline)
            if now.data == data:
                self._seen = True
                return None
            if now.data != at.data:
                return _Moved(now, unsure)
            token = now.token
        kind = _TakesNothingError if answered else LedgerUnreachableError
        raise kind(
            f"{self._where} did not change after {_TRIES_MAX} writes, though none was refused",
            hint="check that the backend's server runs and accepts writes from this host",
        )

    async def _get(self, deadline: float) -> _Now:
        answer = await self._call(self._backend.get_state, deadline)
        return _Now(None) if answer is None else self._parsed(answer, 2)

    async def _set(self, data: bytes, token: Any, deadline: float) -> _Now | None:
        answer = await self._call(lambda: self._backend.set_state(data, token), deadline)
        # Ignore the backend's answer: the stored bytes show what was done.
        return None if answer is None else self._parsed(answer, 3)

    def _parsed(self, answer: Any, length: int) -> _Now:
        if not (
            isinstance(answer, tuple)
            and len(answer) == length
            and isinstance(answer[0], bytes | bytearray | memoryview)
        ):
            raise LedgerUnfitError(
                f"{self._where} must be a tuple of {length} values with bytes first, not "
                f"{type(answer).__name__}",
                hint="get_state returns (state, token) or None, "
                "set_state (state, token, has_set) or None",
            )
        data = bytes(answer[0])
        if not record_format.is_sealed(data):
            raise LedgerForeignError(
                f"{self._where} was not written by Rallypoint: it begins with {data[:8]!r}",
                hint="torch's own rendezvous or another program uses it; give the backend its own "
                "run id",
            )
        register_map = single_value.decode(
            record_format.unseal(data, self._where).value, self._where
        )
        return _Now(register_map, data, answer[1])

    def _register_map(self, now: _Now) -> RegisterMap:
        """The registers, checked to be those of this ledger."""
        if not self.ledger_id:
            raise LedgerUnreachableError(f"the ledger in {self._where} is not open")
        if now.register_map is None:
            if self._seen:
                raise self._gone()
            return RegisterMap.empty(self.ledger_id)
        if now.register_map.ledger_id != self.ledger_id:
            raise self._gone(f"but ledger {now.register_map.ledger_id}")
        self._seen = True
        return now.register_map

    def _gone(self, instead: str = "and is empty") -> LedgerForeignError:
        return LedgerForeignError(
            f"{self._where} no longer holds ledger {self.ledger_id or 'that was here'}, {instead}",
            hint="the backend lost its value, or another program removed it; start the run again",
        )

    def _deadline(self) -> float:
        return time.monotonic() + self._timeout_s

    async def _call(self, ask: Callable[[], T], deadline: float) -> T:
        """One call of the backend, in a thread. Every error of it becomes a LedgerError.

        A late call goes on in its thread. A call that waits for it is not begun if its own time is
        over by then.
        """

        def work() -> T | Exception:
            if not self._one_call.acquire(timeout=max(0, deadline - time.monotonic())):
                return TimeoutError("an earlier call has not returned")
            try:
                if time.monotonic() >= deadline:
                    return TimeoutError("an earlier call returned too late")
                return ask()
            except Exception as error:  # noqa: BLE001 - foreign code; reported below
                return error
            finally:
                self._one_call.release()

        try:
            outcome = await self._threads.run(work, max(0, deadline - time.monotonic()))
        except TimeoutError as error:
            raise LedgerUnreachableError(
                f"{self._where}: no answer within {self._timeout_s:g} s",
                hint=_UNREACHABLE_HINT,
            ) from error
        if not isinstance(outcome, Exception):
            return outcome
        # Errors of this package's own backends have torch's text, and more in a note (PEP 678).
        words = " ".join([str(outcome), *getattr(outcome, "__notes__", ())])
        told = f"{self._where}: {type(outcome).__name__}: {words}"
        # By name, because torch may not be installed.
        if any(each.__name__ == "RendezvousStateError" for each in type(outcome).__mro__):
            raise LedgerCorruptError(
                told, hint="another program uses it, or it was damaged; use another run id"
            ) from outcome
        raise LedgerUnreachableError(told, hint=_UNREACHABLE_HINT) from outcome


def _name_of(backend: RendezvousBackend) -> str:
    """For messages only: a backend is used even if it has no name, or its name raises."""
    try:
        return str(backend.name)
    except Exception:  # noqa: BLE001
        return type(backend).__name__
