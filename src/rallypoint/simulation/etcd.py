"""A simulated etcd v3: one store behind the JSON gateway of its members.

It is the engine that is simulated here, not Rallypoint's client of it: the bytes of a request are
those that the shipped client sends, and those of an answer are what etcd's gateway would send.
What a client can see of etcd is modelled: revisions, transactions, leases that end, watches and
compaction, limits, a full disk, members that are slow, frozen or gone, and a lost quorum. How the
members agree is not: the store is one, and each request takes effect at one moment.

Source: etcd, api/etcdserverpb/rpc.proto and server/etcdserver/api/v3rpc.
"""

from __future__ import annotations

import asyncio
import base64
import bisect
import contextlib
import json
from collections.abc import AsyncIterator, Callable, Mapping
from typing import Any, Final

import msgspec

from rallypoint.ledger.etcd.failures import NotSentError
from rallypoint.ledger.etcd.gateway import Answer
from rallypoint.simulation.world import Process, World

REQUEST_BYTES_MAX: Final = 1_572_864
"""etcd's default limit of a request, in bytes."""
OPERATIONS_MAX: Final = 128
"""How many operations a transaction may have."""
_INVALID, _EXHAUSTED, _OUT_OF_RANGE, _UNAVAILABLE = 3, 8, 11, 14


class Key(msgspec.Struct):
    """A key of the store."""

    key: bytes
    value: bytes
    create_revision: int
    mod_revision: int
    version: int
    lease: int = 0


class Change(msgspec.Struct):
    """One event of the store's history."""

    revision: int
    key: Key
    is_delete: bool


class Grant(msgspec.Struct):
    """A lease. `ends_s` is on the world's clock: leases are the leader's."""

    ttl_s: int
    ends_s: float
    keys: dict[bytes, None] = msgspec.field(default_factory=dict)


class Refusal(Exception):
    """An answer other than 200: gRPC's code, and etcd's text."""

    def __init__(self, code: int, text: str) -> None:
        super().__init__(text)
        self.code = code
        self.text = text


class Store:
    """What all members agree on. Requests and answers are the gateway's, as Python objects."""

    def __init__(self, world: World, cluster_id: int) -> None:
        self.world = world
        self.cluster_id = cluster_id
        self.revision = 1
        self.compacted = 0
        self.keys: dict[bytes, Key] = {}
        self.history: list[Change] = []
        self.leases: dict[int, Grant] = {}
        self.quota_bytes: int | None = None
        """More than this, and writes are refused; None: no quota."""
        self.on_change: Callable[[], None] = lambda: None
        self.on_written: Callable[[Change], None] = lambda change: None
        """Called with each change, in their order."""
        self.requests: dict[str, int] = {}
        """How many requests of each kind took effect."""
        self.read_bytes = 0
        """Bytes of values that were read."""
        self._sorted: list[bytes] = []

    @property
    def size_bytes(self) -> int:
        """The bytes of all keys and values."""
        return sum(len(each.key) + len(each.value) for each in self.keys.values())

    def do(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        """One request takes effect. Raises Refusal."""
        self._end_leases()
        self.requests[path] = self.requests.get(path, 0) + 1
        answer: dict[str, Any]
        match path:
            case "kv/range":
                answer = self._range(body)
            case "kv/put":
                answer = self._changed([{"request_put": body}])[0]["response_put"]
            case "kv/deleterange":
                answer = self._changed([{"request_delete_range": body}])[0]["response_delete_range"]
            case "kv/txn":
                answer = self._txn(body)
            case "lease/grant":
                answer = self._grant(int(body["TTL"]), int(body.get("ID", 0)))
            case "lease/keepalive":
                answer = {"result": self._keepalive(int(body["ID"]))}
            case "lease/revoke":
                answer = self._revoke(int(body["ID"]))
            case "maintenance/status":
                answer = {"version": "3.5.1", "leader": "1", "dbSize": str(self.size_bytes)}
            case "cluster/member/list":
                answer = {"members": []}
            case "kv/compaction":
                answer = self._compact(int(body["revision"]))
            case _:
                raise Refusal(12, f"unknown method {path}")
        answer["header"] = self.header()
        return answer

    def header(self) -> dict[str, str]:
        """The header of an answer."""
        return {
            "cluster_id": str(self.cluster_id),
            "member_id": "1",
            "revision": str(self.revision),
        }

    def changes_from(self, revision: int, key: bytes, end: bytes) -> list[Change]:
        """The changes of a range since a revision. Raises Refusal if that was compacted."""
        if revision <= self.compacted:
            raise Refusal(_OUT_OF_RANGE, "etcdserver: mvcc: required revision has been compacted")
        first = bisect.bisect_left(self.history, revision, key=lambda each: each.revision)
        return [each for each in self.history[first:] if _is_in(each.key.key, key, end)]

    # -- requests --------------------------------------------------------------------------------

    def _range(self, body: dict[str, Any]) -> dict[str, Any]:
        key, end = _bytes(body.get("key", "")), _bytes(body.get("range_end", ""))
        limit = int(body.get("limit", 0))
        found = self._in_range(key, end)
        shown = found[:limit] if limit else found
        keys_only = bool(body.get("keys_only"))
        self.read_bytes += sum(len(each.key) + len(each.value) for each in shown)
        answer: dict[str, Any] = {"kvs": [_shown(each, keys_only) for each in shown]}
        answer["count"] = str(len(found))
        if len(shown) < len(found):
            answer["more"] = True
        return answer

    def _in_range(self, key: bytes, end: bytes) -> list[Key]:
        if not end:
            return [self.keys[key]] if key in self.keys else []
        names = self._sorted
        first = bisect.bisect_left(names, key)
        last = len(names) if end == b"\0" else bisect.bisect_left(names, end)
        return [self.keys[name] for name in names[first:last]]

    def _txn(self, body: dict[str, Any]) -> dict[str, Any]:
        holds = all(self._holds(each) for each in body.get("compare", ()))
        branch = body.get("success" if holds else "failure", [])
        if max(len(body.get("success", ())), len(body.get("failure", ()))) > OPERATIONS_MAX:
            raise Refusal(_INVALID, "etcdserver: too many operations in txn request")
        answer: dict[str, Any] = {"responses": self._changed(branch)}
        if holds:
            answer["succeeded"] = True
        return answer

    def _holds(self, compare: dict[str, Any]) -> bool:
        key, end = _bytes(compare["key"]), _bytes(compare.get("range_end", ""))
        found: list[Key | None] = list(self._in_range(key, end))
        if not end and not found:
            found = [None]
        return all(_compared(each, compare) for each in found)

    def _changed(self, operations: list[dict[str, Any]]) -> list[dict[str, Any]]:
        writes = any("request_put" in each for each in operations)
        if writes and self.quota_bytes is not None and self.size_bytes > self.quota_bytes:
            raise Refusal(_EXHAUSTED, "etcdserver: mvcc: database space exceeded")
        revision = self.revision + 1
        answers: list[dict[str, Any]] = []
        changes: list[Change] = []
        for operation in operations:
            if "request_put" in operation:
                changes.append(self._put(operation["request_put"], revision))
                answers.append({"response_put": {"header": {"revision": str(revision)}}})
            elif "request_delete_range" in operation:
                gone = self._delete(operation["request_delete_range"], revision)
                changes += gone
                answers.append({"response_delete_range": {"deleted": str(len(gone))}})
            else:
                answers.append({"response_range": self._range(operation["request_range"])})
        if changes:
            self._commit(revision, changes)
        return answers

    def _put(self, body: dict[str, Any], revision: int) -> Change:
        key, value = _bytes(body["key"]), _bytes(body.get("value", ""))
        lease = int(body.get("lease", 0))
        if lease and lease not in self.leases:
            raise Refusal(5, "etcdserver: requested lease not found")
        before = self.keys.get(key)
        if before is None:
            bisect.insort(self._sorted, key)
            made = Key(key, value, revision, revision, 1, lease)
        else:
            self._leave_lease(before)
            made = Key(key, value, before.create_revision, revision, before.version + 1, lease)
        if lease:
            self.leases[lease].keys[key] = None
        self.keys[key] = made
        return Change(revision, made, is_delete=False)

    def _delete(self, body: dict[str, Any], revision: int) -> list[Change]:
        found = self._in_range(_bytes(body["key"]), _bytes(body.get("range_end", "")))
        for each in found:
            self._leave_lease(each)
            del self.keys[each.key]
            del self._sorted[bisect.bisect_left(self._sorted, each.key)]
        gone = [Key(each.key, b"", 0, revision, 0) for each in found]
        return [Change(revision, each, is_delete=True) for each in gone]

    def _commit(self, revision: int, changes: list[Change]) -> None:
        self.revision = revision
        self.history += changes
        for change in changes:
            self.on_written(change)
        self.on_change()

    # -- leases ----------------------------------------------------------------------------------

    def _grant(self, ttl_s: int, lease_id: int) -> dict[str, Any]:
        lease_id = lease_id or len(self.leases) + 1_000 + self.world.random.getrandbits(32)
        self.leases[lease_id] = Grant(ttl_s, self.world.now_s + ttl_s)
        return {"ID": str(lease_id), "TTL": str(ttl_s)}

    def _keepalive(self, lease_id: int) -> dict[str, Any]:
        grant = self.leases.get(lease_id)
        if grant is None:
            return {"header": self.header(), "ID": str(lease_id)}
        grant.ends_s = self.world.now_s + grant.ttl_s
        return {"header": self.header(), "ID": str(lease_id), "TTL": str(grant.ttl_s)}

    def _revoke(self, lease_id: int) -> dict[str, Any]:
        if lease_id not in self.leases:
            raise Refusal(5, "etcdserver: requested lease not found")
        self._end_lease(lease_id)
        return {}

    def _end_leases(self) -> None:
        for lease_id in [i for i, each in self.leases.items() if each.ends_s <= self.world.now_s]:
            self._end_lease(lease_id)

    def _end_lease(self, lease_id: int) -> None:
        keys = list(self.leases.pop(lease_id).keys)
        revision, changes = self.revision + 1, []
        for key in keys:
            changes += self._delete({"key": base64.b64encode(key).decode()}, revision)
        if changes:
            self._commit(revision, changes)

    def _leave_lease(self, key: Key) -> None:
        grant = self.leases.get(key.lease)
        if grant is not None:
            grant.keys.pop(key.key, None)

    def compact(self) -> None:
        """Forget all history up to now, as an etcd that compacts by itself does."""
        self._compact(self.revision)

    def _compact(self, revision: int) -> dict[str, Any]:
        if revision > self.revision:
            raise Refusal(_OUT_OF_RANGE, "etcdserver: mvcc: required revision is a future revision")
        self.compacted = max(self.compacted, revision)
        self.history = [each for each in self.history if each.revision > self.compacted]
        return {}


class Trouble(msgspec.Struct):
    """What is wrong with one member, or with the way to it, for one client or for all.

    `delay_s`: how long a request, and then its answer, takes, between these bounds. `loses_request`
    and `loses_answer`: the part of both that is lost; the client then hears nothing. `is_gone`: its
    port refuses. `is_frozen`: it takes requests, and does them once it goes on, or never. `late`:
    the part of requests that take effect up to `late_s` after their client has given up. `refuses`:
    the part that is answered by `refusal`; half of these take effect if `may_be_done`. `bytes_max`:
    the largest request that it takes.
    """

    delay_s: tuple[float, float] = (0.0005, 0.004)
    loses_request: float = 0.0
    loses_answer: float = 0.0
    late: float = 0.0
    late_s: float = 20.0
    is_gone: bool = False
    is_frozen: bool = False
    refuses: float = 0.0
    refusal: tuple[int, str] = (0, "")
    may_be_done: bool = False
    bytes_max: int = REQUEST_BYTES_MAX


class Cluster:
    """The members of one etcd. `has_quorum`: without it nothing is read or written."""

    def __init__(self, world: World, members: int = 1) -> None:
        self.world = world
        self.store = Store(world, cluster_id=world.random.getrandbits(60))
        self.store.on_change = self._changed
        self.members = [Trouble() for _ in range(members)]
        self.urls = [f"http://10.9.0.{index + 1}:2379" for index in range(members)]
        self.has_quorum = True
        self.request_bytes_max = REQUEST_BYTES_MAX
        self.ways: dict[tuple[Process, int], Trouble] = {}
        """Troubles of one process with one member, in place of the member's own."""
        self._waiting: list[Callable[[], None]] = []
        self.watchers: dict[Watcher, None] = {}

    def mend(self) -> None:
        """All troubles end. What members had taken while they were frozen is done now."""
        self.members = [Trouble() for _ in self.members]
        self.ways.clear()
        self.has_quorum = True
        self.go_on()

    def go_on(self) -> None:
        """Do what waits, as far as its member can do it now."""
        waiting, self._waiting = self._waiting, []
        for each in waiting:
            each()

    def trouble(self, process: Process, member: int) -> Trouble:
        """What a request of this process to this member meets now."""
        return self.ways.get((process, member), self.members[member])

    def gateway(self, process: Process) -> SimulatedGateway:
        """What the client of this process sends its requests by."""
        return SimulatedGateway(self, process)

    def _changed(self) -> None:
        for watcher in list(self.watchers):
            watcher.look()

    def reach(self, member: int, work: Callable[[], None]) -> None:
        """Do it at the member: now, or when it has a quorum and is not frozen any more."""
        if self.members[member].is_frozen or not self.has_quorum:
            self._waiting.append(lambda: self.reach(member, work))
        elif not self.members[member].is_gone:
            work()


class _Answer:
    """An answer. `lines`: of a watch, which does not end; None: the body is whole."""

    def __init__(self, status: int, body: bytes, lines: asyncio.Queue[bytes] | None = None) -> None:
        self.status = status
        self._body = body
        self._lines = lines

    async def parts(self) -> AsyncIterator[bytes]:
        """The body piece by piece."""
        if self._lines is None:
            yield self._body
            return
        while True:
            yield await self._lines.get() + b"\n"


class SimulatedGateway:
    """The way of one process to the cluster: see `ledger.etcd.gateway.Gateway`."""

    def __init__(self, cluster: Cluster, process: Process) -> None:
        self.cluster = cluster
        self.process = process

    async def open(self) -> None:
        """Nothing: there are no connections to keep."""

    async def aclose(self) -> None:
        """Nothing."""

    @contextlib.asynccontextmanager
    async def post(
        self, url: str, path: str, data: bytes, headers: Mapping[str, str], try_s: float
    ) -> AsyncIterator[Answer]:
        """See Gateway. Waits for ever if no answer comes."""
        cluster = self.cluster
        member = cluster.urls.index(url)
        trouble = cluster.trouble(self.process, member)
        if trouble.is_gone:
            await asyncio.sleep(self.delay_s(trouble))
            raise NotSentError("Connection refused")
        if path != "watch":
            yield _Answer(*await self._answer(member, path, data))
            return
        watcher = Watcher(self, member, json.loads(data)["create_request"])
        await asyncio.sleep(self.delay_s(trouble))
        cluster.reach(member, watcher.begin)
        try:
            yield _Answer(200, b"", watcher.lines)
        finally:
            cluster.watchers.pop(watcher, None)
            watcher.is_over = True

    async def _answer(self, member: int, path: str, data: bytes) -> tuple[int, bytes]:
        world, cluster = self.cluster.world, self.cluster
        trouble = cluster.trouble(self.process, member)
        answered: asyncio.Future[tuple[int, bytes]] = asyncio.get_running_loop().create_future()
        draw = world.random

        def answer(status: int, body: bytes) -> None:
            if draw.random() >= trouble.loses_answer:
                world.after(self.delay_s(trouble), lambda: self.process.soon(told, status, body))

        def told(status: int, body: bytes) -> None:
            if not answered.done():
                answered.set_result((status, body))

        def arrived() -> None:
            cluster.reach(member, lambda: answer(*self._done(path, data, trouble)))

        if draw.random() >= trouble.loses_request:
            delay_s = self.delay_s(trouble)
            if draw.random() < trouble.late:
                delay_s += draw.random() * trouble.late_s
            world.after(delay_s, arrived)
        return await answered

    def _done(self, path: str, data: bytes, trouble: Trouble) -> tuple[int, bytes]:
        draw = self.cluster.world.random
        if trouble.refuses and draw.random() < trouble.refuses:
            refusal = Refusal(*trouble.refusal)
            if trouble.may_be_done and draw.random() < 0.5:
                with contextlib.suppress(Refusal):
                    self.cluster.store.do(path, json.loads(data))
            return 503 if refusal.code == _UNAVAILABLE else 400, _problem(refusal)
        if len(data) > min(trouble.bytes_max, self.cluster.request_bytes_max):
            return 400, _problem(Refusal(_INVALID, "etcdserver: request is too large"))
        try:
            return 200, json.dumps(self.cluster.store.do(path, json.loads(data))).encode()
        except Refusal as refusal:
            return 503 if refusal.code == _UNAVAILABLE else 400, _problem(refusal)

    def delay_s(self, trouble: Trouble) -> float:
        """How long a request or an answer takes."""
        low, high = trouble.delay_s
        return low + (high - low) * self.cluster.world.random.random()


class Watcher:
    """One watch of one client at one member."""

    def __init__(self, client: SimulatedGateway, member: int, create: dict[str, Any]) -> None:
        self.lines: asyncio.Queue[bytes] = asyncio.Queue()
        self._client = client
        self._member = member
        self._key = _bytes(create["key"])
        self._end = _bytes(create.get("range_end", ""))
        self._next = int(create.get("start_revision", 0))
        self._arrives_s = 0.0
        self.is_over = False
        """Whether its client has closed it."""

    def begin(self) -> None:
        """The member has created the watch."""
        if self.is_over:
            return
        store = self._client.cluster.store
        self._next = self._next or store.revision + 1
        self._client.cluster.watchers[self] = None
        self._tell({"result": {"header": store.header(), "created": True}})
        self.look()

    def look(self) -> None:
        """Send what has changed."""
        cluster = self._client.cluster
        if self.is_over:
            return
        if cluster.members[self._member].is_frozen or cluster.members[self._member].is_gone:
            cluster._waiting.append(self.look)
            return
        store = cluster.store
        try:
            changes = store.changes_from(self._next, self._key, self._end)
        except Refusal:
            cancelled = {"canceled": True, "compact_revision": str(store.compacted + 1)}
            self._tell({"result": {"header": store.header(), **cancelled}})
            cluster.watchers.pop(self, None)
            return
        self._next = store.revision + 1
        if changes:
            events = [_event(each) for each in changes]
            self._tell({"result": {"header": store.header(), "events": events}})

    def _tell(self, line: dict[str, Any]) -> None:
        client, cluster = self._client, self._client.cluster
        trouble = cluster.trouble(client.process, self._member)
        if cluster.world.random.random() < trouble.loses_answer:
            return  # The way is cut without a sign: the client's own limit has to find out.
        due_s = cluster.world.now_s + client.delay_s(trouble)
        self._arrives_s = max(self._arrives_s, due_s)
        data = json.dumps(line).encode()
        cluster.world.at(self._arrives_s, lambda: client.process.soon(self.lines.put_nowait, data))


def _bytes(text: str) -> bytes:
    return base64.b64decode(text)


def _is_in(key: bytes, first: bytes, end: bytes) -> bool:
    if not end:
        return key == first
    return key >= first and (end == b"\0" or key < end)


def _shown(key: Key, keys_only: bool = False) -> dict[str, Any]:
    shown = {
        "key": base64.b64encode(key.key).decode(),
        "create_revision": str(key.create_revision),
        "mod_revision": str(key.mod_revision),
        "version": str(key.version),
    }
    if not keys_only:
        shown["value"] = base64.b64encode(key.value).decode()
    if key.lease:
        shown["lease"] = str(key.lease)
    return shown


def _event(change: Change) -> dict[str, Any]:
    event: dict[str, Any] = {"kv": _shown(change.key)}
    if change.is_delete:
        event["type"] = "DELETE"
    return event


def _compared(key: Key | None, compare: dict[str, Any]) -> bool:
    target = compare.get("target", "VERSION")
    if target == "VALUE":
        # As in etcd: a comparison with the value of a key that does not exist never holds.
        return key is not None and _holds(key.value, compare, _bytes(compare.get("value", "")))
    names = {"VERSION": "version", "CREATE": "create_revision", "MOD": "mod_revision"}
    name = names[target]
    return _holds(getattr(key, name) if key is not None else 0, compare, int(compare.get(name, 0)))


def _holds(found: Any, compare: dict[str, Any], wanted: Any) -> bool:
    match compare.get("result", "EQUAL"):
        case "EQUAL":
            return bool(found == wanted)
        case "NOT_EQUAL":
            return bool(found != wanted)
        case "GREATER":
            return bool(found > wanted)
        case _:
            return bool(found < wanted)


def _problem(refusal: Refusal) -> bytes:
    return json.dumps({"code": refusal.code, "message": refusal.text}).encode()
