"""The ledger over a rendezvous backend of PyTorch's: one value with compare-and-swap.

Anything with the methods of torch's RendezvousBackend will do, such as one that a site has written
for its own scheduler; torch itself is not needed. All registers stand on the backend's one value
(single_value.py), sealed with a nonce for each write (record_format.py). So a write is recognised
as one's own by its bytes, whatever the backend says about it, and no two writers ever write the
same.

What a backend may do, and what comes of it:

* It may raise, hang, or answer a set with None. The value is then read back, and the same bytes
  are tried again where they are not there. What stays in doubt is Unknown.
* It may answer None to everything. The ledger then looks empty, has an id that is this handle's
  own, and every swap is Unknown: nothing is ever taken to be kept.
* It may refuse a token that it gave out itself. Nothing is written then, and the swap is Unknown.
* It may lose its value (etcd's v2 backend gives it two hours). A handle that has seen the value
  says LedgerForeignError, and never begins anew under the old id.
* Its value may be something else's, such as the pickled state of torch's own rendezvous. That is
  refused and left as it is; bytes are only ever parsed as data, never executed.
"""

from __future__ import annotations

import asyncio
import math
import secrets
import threading
import time
from collections.abc import Callable
from typing import Any, Final, Protocol, TypeVar

import msgspec

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
"""All registers together. torch's backends write base64, and its TCPStore takes 8 MiB."""
_TRIES_MAX: Final = 4
"""How often the same bytes are offered to a backend that neither takes nor refuses them."""
_RETRY_S: Final = 0.02


class RendezvousBackend(Protocol):
    """What is used of torch.distributed.elastic.rendezvous.dynamic_rendezvous.RendezvousBackend."""

    @property
    def name(self) -> str:
        """For messages."""

    def get_state(self) -> tuple[bytes, Any] | None:
        """The value and its token; None if there is none."""

    def set_state(self, state: bytes, token: Any = None) -> tuple[bytes, Any, bool] | None:
        """Replace the value that has this token (None: create it); what is there then."""


class _Now(msgspec.Struct, frozen=True):
    """What the backend holds. `register_map` and `data` are None if it holds nothing."""

    register_map: RegisterMap | None
    data: bytes | None = None
    token: Any = None


class _Moved(msgspec.Struct, frozen=True):
    """A write did not take, for the value was another by then. `unsure`: unless it did before."""

    now: _Now
    unsure: bool


class _TakesNothingError(LedgerUnreachableError):
    """The backend answers, but keeps nothing."""


class TorchBackendLedger(Ledger):
    """Registers on a backend's value. Calls to the backend come one at a time, from threads."""

    is_durable = False  # not known of any backend: torch's own are a process's memory
    has_log = False
    limits = LedgerLimits(
        value_bytes_max=1 << 20, record_bytes_max=1 << 20, writes_per_s=20.0, is_one_value=True
    )

    def __init__(self, backend: RendezvousBackend, *, timeout_s: float = TIMEOUT_S) -> None:
        """`timeout_s` bounds each operation, which may be several calls of the backend."""
        if not (math.isfinite(timeout_s) and timeout_s > 0):
            raise UsageError(f"timeout_s must be a positive number of seconds, not {timeout_s}")
        self.ledger_id = ""
        self._backend = backend
        self._where = f"the value of the rendezvous backend {_name_of(backend)!r}"
        self._timeout_s = timeout_s
        self._threads = LimitedCalls()
        self._one_call = threading.Lock()
        self._seen = False
        """Whether the backend ever held this ledger, as far as this handle knows."""
        self.keeps_nothing = False
        """Whether the backend answered, when the ledger was opened, and kept nothing."""

    async def open(self) -> None:
        """See Ledger.open. The id is drawn by whoever stores it first."""
        if self.ledger_id:
            return
        deadline = self._deadline()
        register_map = (now := await self._get(deadline)).register_map
        if register_map is None:
            mine = RegisterMap.empty(secrets.token_hex(8))
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
        """See Ledger.aclose. The backend is the caller's, and stays as it is."""
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
            # A register that still has the version expected was not written by an earlier try, and
            # cannot be any more: what it named is gone. One that is not there may be gone again.
            if unsure and (expected is None or isinstance(after, Conflict)):
                return Unknown("the backend's answer was lost, and its value has moved on since")
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
                    f"whether {key!r} was deleted is not known: the answer was lost, and the "
                    "register was written since"
                )
            if version not in (None, found.version):
                return False
            seen = found.version
            register_map = self._register_map(now).delete(key)
            assert register_map is not None  # it was there just now
            moved = await self._put(now, register_map, deadline)
            if moved is None:
                return True
            now, unsure = moved.now, unsure or moved.unsure
        return True

    # -- the backend's one value ----------------------------------------------------------------

    async def _put(self, at: _Now, register_map: RegisterMap, deadline: float) -> _Moved | None:
        """Replace what is there `at` that time; None once it is done.

        Raises a LedgerError if it is not known to be done; it may be, then or later.
        """
        data = record_format.seal(single_value.encode(register_map), record_format.new_nonce())
        if len(data) > STATE_BYTES_MAX:
            raise LedgerFullError(
                f"all registers together would need {len(data)} bytes, and at most "
                f"{STATE_BYTES_MAX} are kept in a rendezvous backend",
                hint="give each run a backend of its own, or use another ledger",
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
            f"{self._where} stayed as it was after {_TRIES_MAX} writes, none of which was refused",
            hint="is the backend's server there, and does it take writes from here?",
        )

    async def _get(self, deadline: float) -> _Now:
        answer = await self._call(self._backend.get_state, deadline)
        return _Now(None) if answer is None else self._parsed(answer, 2)

    async def _set(self, data: bytes, token: Any, deadline: float) -> _Now | None:
        answer = await self._call(lambda: self._backend.set_state(data, token), deadline)
        # Whether the backend calls it done is not asked: the bytes that are there say it.
        return None if answer is None else self._parsed(answer, 3)

    def _parsed(self, answer: Any, length: int) -> _Now:
        if not (
            isinstance(answer, tuple)
            and len(answer) == length
            and isinstance(answer[0], bytes | bytearray | memoryview)
        ):
            raise LedgerUnfitError(
                f"{self._where} was not given as {length} values, the first of them bytes, but as "
                f"{type(answer).__name__}",
                hint="get_state returns (state, token) or None, "
                "set_state (state, token, has_set) or None",
            )
        data = bytes(answer[0])
        if not record_format.is_sealed(data):
            raise LedgerForeignError(
                f"{self._where} is not Rallypoint's: it begins with {data[:8]!r}",
                hint="torch's own rendezvous or another program uses it; "
                "give the backend a run id of its own",
            )
        register_map = single_value.decode(
            record_format.unseal(data, self._where).value, self._where
        )
        return _Now(register_map, data, answer[1])

    def _register_map(self, now: _Now) -> RegisterMap:
        """The registers, if they are those of this ledger."""
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
            hint="what the backend kept was lost, or something else removed it; begin the run anew",
        )

    def _deadline(self) -> float:
        return time.monotonic() + self._timeout_s

    async def _call(self, ask: Callable[[], T], deadline: float) -> T:
        """One call of the backend in a thread. Raises a LedgerError, whatever the backend raises.

        It may be done after its time is over. Nothing is asked for that nobody waits for any more.
        """

        def work() -> T | Exception:
            if not self._one_call.acquire(timeout=max(0, deadline - time.monotonic())):
                return TimeoutError("an earlier call has not come back")
            try:
                if time.monotonic() >= deadline:
                    return TimeoutError("an earlier call came back too late")
                return ask()
            except Exception as error:  # noqa: BLE001 - a stranger's code; told below
                return error
            finally:
                self._one_call.release()

        try:
            outcome = await self._threads.run(work, max(0, deadline - time.monotonic()))
        except TimeoutError as error:
            raise LedgerUnreachableError(
                f"{self._where}: no answer within {self._timeout_s:g} s",
                hint="is the backend's server there, and can it be reached from here?",
            ) from error
        if not isinstance(outcome, Exception):
            return outcome
        # Errors of this package's own backends have torch's text, and say more in a note (PEP 678).
        words = " ".join([str(outcome), *getattr(outcome, "__notes__", ())])
        told = f"{self._where}: {type(outcome).__name__}: {words}"
        # By name, as torch need not be there.
        if any(each.__name__ == "RendezvousStateError" for each in type(outcome).__mro__):
            raise LedgerCorruptError(
                told, hint="another program uses it, or it was damaged; use a run id of its own"
            ) from outcome
        raise LedgerUnreachableError(
            told, hint="is the backend's server there, and can it be reached from here?"
        ) from outcome


def _name_of(backend: RendezvousBackend) -> str:
    """For messages only: a backend without a name, or whose name fails, is used all the same."""
    try:
        return str(backend.name)
    except Exception:  # noqa: BLE001
        return type(backend).__name__
