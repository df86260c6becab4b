"""What stands behind a ledger: an etcd or a proxy that answers anything, a folder with any files.

The ledgers are the shipped ones. Between etcd's ledger and a simulated store, answers are bent:
wrong types, pieces of JSON, huge numbers, another cluster, an earlier answer again. In a folder,
files are bent, lost and doubled, and others are added.

A ledger cannot see that an answer is a lie. But each call has to end, with a value or with a
LedgerError.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
import shutil
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from pathlib import Path
from random import Random
from typing import Any, Final

import msgspec

from rallypoint.errors import LedgerError, LedgerForeignError
from rallypoint.ledger.contract import Ledger
from rallypoint.ledger.etcd.failures import BadEndpointError, LostError, NotSentError
from rallypoint.ledger.etcd.ledger import EtcdLedger
from rallypoint.ledger.etcd.options import EtcdOptions
from rallypoint.ledger.file import FileLedger
from rallypoint.ledger.record_format import seal
from rallypoint.simulation.etcd import Refusal, Store
from rallypoint.simulation.world import World
from tests.fuzz.making import bent
from tests.fuzz.watching import FuzzFailure, Watch, must

LEDGERS: Final = 40
CALLS: Final = 12
REQUESTS_MAX: Final = 400
"""One call makes fewer requests of an etcd that answers at once."""
CALL_S_MAX: Final = 120.0
"""One call takes less time, whatever does not answer."""
URLS: Final = ("a:2379", "b:2379")
_KEYS: Final = ("runs/a", "runs/b", "coordinators/1", "floor")
_LOGS: Final = ("stores/a/1.1.0.1", "stores/a/2.1.0.1", "stores/b/1.1.0.1")


# -- an etcd that answers anything -----------------------------------------------------------------


class Body(msgspec.Struct):
    """An answer of the gateway."""

    status: int
    data: bytes
    ends: bool = True

    async def parts(self) -> AsyncIterator[bytes]:
        for line in self.data.splitlines(keepends=True):
            yield line
        if not self.ends:
            await asyncio.sleep(1e6)


class HostileGateway:
    """The way to a store whose answers are sometimes bent. `answers`: in place of all of them, in
    their order, the last one again and again."""

    def __init__(self, rng: Random) -> None:
        self.requests = 0
        self.answers: list[bytes] | None = None
        self._rng = rng
        self._rate = 0.0
        self._store = Store(World(rng.getrandbits(32)), cluster_id=7)
        self._before: list[bytes] = [b"{}"]
        self._stuck: dict[tuple[str, bytes], Body] = {}
        """Answers that a proxy gives to the same request again and again."""

    def begin_call(self, rate: float) -> None:
        """The next call begins. `rate`: how often an answer is bent, 0 to 1."""
        self._rate, self.requests = rate, 0
        self._stuck.clear()

    async def open(self) -> None:
        """Nothing."""

    async def aclose(self) -> None:
        """Nothing."""

    @contextlib.asynccontextmanager
    async def post(
        self, url: str, path: str, data: bytes, headers: Mapping[str, str], try_s: float
    ) -> AsyncIterator[Body]:
        """See Gateway."""
        self.requests += 1
        must(self.requests <= REQUESTS_MAX, f"it asks without an end: {path} {data[:200]!r}")
        await asyncio.sleep(0.001)
        if self.answers is not None:
            yield Body(200, self.answers[min(self.requests, len(self.answers)) - 1])
            return
        if (path, data) in self._stuck:
            yield self._stuck[path, data]
            return
        honest = self._honest(path, data)
        answer = self._bent(honest) if self._rng.random() < self._rate else honest
        self._before.append(honest.data)
        if self._rng.random() < 0.3 * self._rate:
            self._stuck[path, data] = answer
        if path == "watch":
            answer.data = b"\n".join([answer.data, self._bent(honest).data, b""])
            answer.ends = self._rng.random() < 0.5
        yield answer

    def _honest(self, path: str, data: bytes) -> Body:
        if path == "watch":
            event = {"kv": {"key": "cnVucy9h", "mod_revision": "9"}}
            line = {"header": self._store.header(), "events": [event]}
            return Body(200, json.dumps({"result": line}).encode())
        try:
            return Body(200, json.dumps(self._store.do(path, json.loads(data))).encode())
        except Refusal as refusal:
            return Body(400, json.dumps({"code": refusal.code, "message": refusal.text}).encode())

    def _bent(self, honest: Body) -> Body:
        rng = self._rng
        match rng.randrange(12):
            case 0:
                return Body(200, bent(honest.data, rng))
            case 1:
                return Body(200, honest.data[: rng.randrange(len(honest.data) + 1)])
            case 2:
                return Body(200, rng.choice(self._before))
            case 3:
                return Body(rng.choice((401, 403, 404, 429, 500, 502, 503)), b"<html>no</html>")
            case 4:
                code = rng.choice((0, 2, 3, 4, 5, 7, 8, 9, 11, 13, 14, 16, 99, "x", -1))
                said = rng.choice(("", "x" * 5_000, "etcdserver: too large", "auth token", "\0"))
                return Body(400, json.dumps({"code": code, "message": said}).encode())
            case 5:
                problem = rng.choice((NotSentError("no"), LostError("gone")))
                raise problem
            case 6:
                raise BadEndpointError(LedgerForeignError("the server at x is not etcd"))
            case 7:
                return Body(200, b"", ends=False)
            case _:
                whole = json.loads(honest.data)
                for _ in range(rng.choice((1, 1, 2, 5))):
                    whole = bend(whole, rng)
                return Body(200, json.dumps(whole).encode())


_TEXTS: Final = (
    *("", "!", "AA==", "1", "-1", "9" * 30, "9223372036854775807", "18446744073709551615", "\x00"),
    *(
        base64.b64encode(each).decode()
        for each in (
            b"\xff\xfe",
            b"/rallypoint/r/\xff",
            b"/rallypoint/r/a",
            b"/rallypoint/l/\xff/1",
            b"/rallypoint/l/%ff/1",
            b"/rallypoint/l/a/%%",
            b"/",
            b"\0" * 40,
            b"RLPT",
            seal(b"", b"12345678"),
            seal(b"\xc1", b"12345678"),
        )
    ),
)
_ODD: Final[tuple[Any, ...]] = (
    None,
    True,
    False,
    0,
    -1,
    2**70,
    1.5,
    1e300,
    [],
    {},
    [[]],
    {"kvs": [{}]},
)
_ADDED: Final[dict[str, Any]] = {
    "more": True,
    "kvs": [{}],
    "responses": [],
    "succeeded": True,
    "count": "-5",
    "canceled": True,
    "compact_revision": "1",
    "error": "x",
    "header": {"cluster_id": "8"},
}


def bend(value: Any, rng: Random) -> Any:
    """The same JSON value with one of its parts changed."""
    if isinstance(value, dict) and value and rng.random() < 0.9:
        name = rng.choice(sorted(value))
        found = dict(value)
        match rng.randrange(8):
            case 0:
                del found[name]
            case 1 | 2:
                name = rng.choice(("more", *sorted(_ADDED)))
                found[name] = _ADDED[name]
            case _:
                found[name] = bend(value[name], rng)
        return found
    if isinstance(value, list) and value and rng.random() < 0.9:
        at = rng.randrange(len(value))
        match rng.randrange(4):
            case 0:
                return value[:at]
            case 1:
                return [*value, value[at]]
            case _:
                return [*value[:at], bend(value[at], rng), *value[at + 1 :]]
    return rng.choice(_TEXTS) if rng.random() < 0.7 else rng.choice(_ODD)


# -- the calls of a ledger -------------------------------------------------------------------------

Ask = Callable[[Ledger, Random], Awaitable[object]]

ASKED: Final[dict[str, Ask]] = {
    "read": lambda ledger, rng: ledger.read(rng.choice(_KEYS)),
    "create": lambda ledger, rng: ledger.swap(rng.choice(_KEYS), None, rng.randbytes(20)),
    "swap": lambda ledger, rng: ledger.swap(rng.choice(_KEYS), rng.randrange(1, 9), b"x"),
    "delete": lambda ledger, rng: ledger.delete(rng.choice(_KEYS)),
    "keys": lambda ledger, rng: _names(ledger.keys, rng.choice(("", "runs/", "x"))),
    "changed": lambda ledger, rng: ledger.changed(rng.choice(_KEYS), rng.choice((None, 2)), 1.0),
    "append": lambda ledger, rng: ledger.append(rng.choice(_LOGS), rng.randrange(3), b"r"),
    "records": lambda ledger, rng: ledger.records(
        rng.choice(_LOGS), rng.randrange(2), rng.choice((None, 1, 50))
    ),
    "logs": lambda ledger, rng: _names(ledger.logs, rng.choice(("", "stores/a/", "x"))),
    "drop": lambda ledger, rng: ledger.drop_log(rng.choice(_LOGS)),
}


async def _names(asked: Callable[[str], Awaitable[tuple[str, ...]]], prefix: str) -> None:
    for name in await asked(prefix):
        must(name.startswith(prefix), f"{name!r} does not begin with {prefix!r}")


async def ask(ledger: Ledger, name: str, rng: Random) -> None:
    """One call. It has to end, and may raise a LedgerError."""
    try:
        async with asyncio.timeout(CALL_S_MAX):
            await ASKED[name](ledger, rng)
    except LedgerError as error:
        must(len(str(error)) < 20_000, f"{name}: an error of {len(str(error))} characters")
    except TimeoutError as error:
        raise FuzzFailure(f"{name} has not ended after {CALL_S_MAX:g} s") from error


async def _fill(ledger: Ledger) -> None:
    """Write registers and logs, so that there is something to read."""
    with contextlib.suppress(LedgerError):
        for key in _KEYS[:3]:
            await ledger.swap(key, None, b"a value")
        for log in _LOGS[:2]:
            for index in range(3):
                await ledger.append(log, index, b"a record")


async def one_etcd(rng: Random) -> int:
    """One ledger over an etcd that answers anything. Returns how many requests it made."""
    gateway = HostileGateway(rng)
    ledger = EtcdLedger(EtcdOptions(endpoints=URLS), gateway=gateway)
    rate = rng.choice((0.02, 0.2, 0.6, 1.0))
    total = 0
    gateway.begin_call(rate if rng.random() < 0.3 else 0.0)
    with contextlib.suppress(LedgerError):
        await ledger.open()
    if ledger.ledger_id:
        gateway.begin_call(0.0)
        await _fill(ledger)
    for _ in range(CALLS if ledger.ledger_id else 0):
        total += gateway.requests
        gateway.begin_call(rate)
        await ask(ledger, rng.choice(tuple(ASKED)), rng)
    await ledger.aclose()
    return total + gateway.requests


async def replayed(call: str, answers: list[bytes]) -> None:
    """One call of an open ledger, which gets exactly these answers."""
    gateway = HostileGateway(Random(1))
    ledger = EtcdLedger(EtcdOptions(endpoints=URLS[:1]), gateway=gateway)
    await ledger.open()
    gateway.begin_call(0.0)
    gateway.answers = answers
    await ask(ledger, call, Random(0))
    await ledger.aclose()


# -- a folder with any files -----------------------------------------------------------------------


async def one_folder(rng: Random, folder: Path) -> int:
    """One ledger in a folder whose files are bent. Returns how many calls it got."""
    first = FileLedger(folder)
    await first.open()
    await _fill(first)
    for _ in range(3):
        await ask(first, rng.choice(("create", "append", "swap", "drop", "delete")), rng)
    await first.aclose()
    bend_folder(folder, rng)
    ledger = FileLedger(folder)
    try:
        await ledger.open()
    except LedgerError:
        return 1
    for name in _LOOKS:
        await ask(ledger, name, rng)
    await ledger.aclose()
    return len(_LOOKS)


_LOOKS: Final = (
    *("keys", "read", "read", "read", "read", "logs", "records", "records", "records"),
    *("create", "append", "delete", "drop", "keys", "logs"),
)
_NAMES: Final = ("x", "0", "1", "01", "-1", "9" * 30, "%ff", "%", ".tmp", "a~", "\udcff", "2.new")


def bend_folder(folder: Path, rng: Random) -> None:
    """Change, remove, double and add some of the files and folders."""
    for _ in range(rng.choice((1, 1, 2, 5))):
        paths = sorted(folder.rglob("*"))
        if not paths:
            return
        path = rng.choice(paths)
        with contextlib.suppress(OSError):
            match rng.randrange(7):
                case 0 | 1 if path.is_file():
                    data = bent(path.read_bytes(), rng)
                    path.unlink()
                    path.write_bytes(data)
                case 2:
                    shutil.rmtree(path) if path.is_dir() else path.unlink()
                case 3:
                    (path.parent / rng.choice(_NAMES)).write_bytes(rng.randbytes(5))
                case 4:
                    (path.parent / rng.choice(_NAMES)).mkdir()
                case 5 if path.is_file():
                    shutil.copy(path, path.parent / rng.choice(_NAMES))
                case 6 if path.is_file():
                    path.unlink()
                    path.symlink_to(rng.choice(("/nowhere", str(folder), "x")))


# -- episodes --------------------------------------------------------------------------------------


async def _etcd_episode(rng: Random, watch: Watch) -> int:
    asyncio.get_running_loop().set_exception_handler(watch.on_loop)
    inputs = 0
    for _ in range(LEDGERS):
        inputs += await one_etcd(rng)
    return inputs


def etcd_episode(rng: Random, watch: Watch) -> int:
    from tests.loops import run_virtual

    return run_virtual(_etcd_episode(rng, watch))


def folder_episode(rng: Random, watch: Watch) -> int:
    async def whole() -> int:
        asyncio.get_running_loop().set_exception_handler(watch.on_loop)
        inputs = 0
        for _ in range(4):
            with tempfile.TemporaryDirectory(prefix="rallypoint-fuzz-") as folder:
                inputs += await one_folder(rng, Path(folder) / "ledger")
        return inputs

    return asyncio.run(whole())
