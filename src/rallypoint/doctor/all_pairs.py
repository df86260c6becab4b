"""`rallypoint doctor --all-pairs`: the nodes of a job meet, and each dials each other.

They meet as the nodes of any run do, in a run of their own. Its store carries the addresses and the
results. The node of rank 0 has the whole table at the end, and the others know whether it is good.
"""

from __future__ import annotations

import contextlib
import statistics
from collections.abc import Sequence
from typing import Any, Final

import msgspec

from rallypoint import aio, runtime, threads
from rallypoint.client.identity import own_addresses
from rallypoint.client.world import World
from rallypoint.core.values import RoundMember
from rallypoint.doctor import tournament
from rallypoint.doctor.case import Case
from rallypoint.doctor.findings import Verdict
from rallypoint.doctor.pairs import SECRET_BYTES, PairListener, dial
from rallypoint.doctor.tournament import Failure, NodeResult, Problem
from rallypoint.errors import CoordinatorError, RoundBrokenError
from rallypoint.settings import PortRange

PREFIX: Final = "doctor-"
"""The beginning of the run's id, so that it is never that of a job."""
LAST_CALL_S: Final = 20.0
"""How long the first two nodes wait for the others, in seconds."""
STORE_S: Final = 30.0
"""How long a node waits for the others' entries in the store beyond the tournament, in seconds."""
ROUNDS_MAX: Final = 5
"""Nodes that come late or leave end a round. How often the nodes begin again."""
_SECRET, _SUMMARY = "secret", "summary"


class Table(msgspec.Struct, frozen=True):
    """The result of all nodes.

    `expected`: how many nodes were to come; `nodes`: those that came. `pairs`: how many dials there
    were to make; `reached`: how many succeeded. `lines`: the failures in words.
    """

    verdict: Verdict
    expected: int
    nodes: tuple[NodeResult, ...]
    pairs: int
    reached: int
    failures: tuple[Failure, ...]
    lines: tuple[str, ...]
    what_to_do: tuple[str, ...]


class Outcome(msgspec.Struct, frozen=True):
    """What one node knows at the end. `table`: only at rank 0. `own`: this node's dials."""

    verdict: Verdict
    rank: int
    own: NodeResult
    table: Table | None = None
    rank_0: str = ""


class _Entry(msgspec.Struct, frozen=True):
    """What a node tells the others about itself."""

    addresses: tuple[str, ...]
    port: int


async def try_all(
    case: Case, endpoint: str | None, run_id: str, nodes: int, timeout_s: float, **options: Any
) -> Outcome:
    """Meet the other nodes, and try all connections. Each of the two may take `timeout_s`.

    `endpoint`: None for that of the environment or the launcher. `options`: as for `join`. Raises
    RallypointError if the nodes do not meet, or lose each other.
    """
    async with await aio.join(
        f"{PREFIX}{run_id}",
        endpoint,
        min_nodes=min(2, nodes),
        max_nodes=nodes,
        expected_nodes=nodes,
        last_call_s=min(LAST_CALL_S, timeout_s / 2),
        join_timeout_s=timeout_s,
        connect_timeout_s=timeout_s,
        **options,
    ) as run:
        for left in range(ROUNDS_MAX - 1, -1, -1):
            world = await run.next_world()
            if world is None:
                break
            try:
                return await _play(case, world, nodes, timeout_s, case.port_range)
            except RoundBrokenError:
                if not left:
                    raise
        raise CoordinatorError(
            f"the run {run.run_id!r} was closed before all connections were tried",
            hint="start it again on all nodes, with another --run-id",
        )


async def _play(
    case: Case, world: World, expected: int, timeout_s: float, ports: PortRange | None
) -> Outcome:
    world.store.set_timeout(timeout_s + STORE_S)
    rank = world.rank
    if rank == 0:
        await world.store.set(_SECRET, runtime.here().token_bytes(SECRET_BYTES))
    secret = await world.store.get(_SECRET)
    names = _names(await world.members)
    own = (case.local_addr,) if case.local_addr else await _own(case)
    async with PairListener(secret, ports) as listener:
        entry = _Entry(own, listener.port)
        await world.store.set(_key("entry", rank), msgspec.json.encode(entry))
        entries = await _all(world, "entry", _Entry)
        result = await _dial_all(rank, entries, secret, timeout_s, names)
        await world.store.set(_key("result", rank), msgspec.json.encode(result))
        table = None
        if rank == 0:
            table = table_of(await _all(world, "result", NodeResult), expected)
            await world.store.set(_SUMMARY, table.verdict)
        verdict = Verdict((await world.store.get(_SUMMARY)).decode())
        # Nobody leaves before all have the result, as that would end the round for the others.
        with contextlib.suppress(RoundBrokenError):
            await world.barrier("end")
    return Outcome(verdict, rank, result, table, names[0])


async def _own(case: Case) -> tuple[str, ...]:
    found = await own_addresses(case.endpoint, case.interface)
    return tuple(each.host for each in found) or ("127.0.0.1",)


def _key(what: str, rank: int) -> str:
    return f"{what}/{rank}"


async def _all(world: World, what: str, kind: type[Any]) -> list[Any]:
    """The entries of all nodes, in the order of their ranks."""
    found = await world.store.multi_get([_key(what, rank) for rank in range(world.size)])
    return [msgspec.json.decode(each, type=kind) for each in found]


def _names(members: Sequence[RoundMember]) -> list[str]:
    """The nodes for people: by their hosts if those differ."""
    hosts = [each.host for each in members]
    if len(set(hosts)) == len(hosts):
        return hosts
    return [each.name for each in members]


async def _dial_all(
    rank: int, entries: Sequence[_Entry], secret: bytes, timeout_s: float, names: Sequence[str]
) -> NodeResult:
    ends_s = runtime.now_s() + timeout_s
    took: dict[int, float] = {}
    failures = []
    for target in tournament.targets(rank, len(entries)):
        entry = entries[target]
        if runtime.now_s() > ends_s:
            text = f"the {timeout_s:g} s were over before"
            where = f"{entry.addresses[0]}:{entry.port}"
            failures.append(Failure(rank, target, where, Problem.NOT_TRIED, text))
            continue
        reached, failure = await dial(rank, target, entry.addresses, entry.port, secret)
        if reached is not None:
            took[target] = reached.connect_s
        if failure is not None:
            failures.append(failure)
    slowest = max(took, key=lambda each: took[each]) if took else None
    return NodeResult(
        rank,
        names[rank],
        entries[rank].addresses,
        len(took),
        round(statistics.median(took.values()), 6) if took else None,
        None if slowest is None else round(took[slowest], 6),
        slowest,
        tuple(failures),
    )


def table_of(results: Sequence[NodeResult], expected: int) -> Table:
    """The results of all nodes together."""
    failures = tuple(each for result in results for each in result.failures)
    names = {each.rank: each.shown for each in results}
    lines = tournament.describe(failures, names)
    advice = tournament.advice(failures)
    missing = expected - len(results)
    if missing > 0:
        came = ", ".join(each.shown for each in results[: tournament.LINES_MAX])
        lines.insert(0, f"{len(results)} of {expected} nodes came: {came}")
        advice.insert(0, "run `rallypoint doctor` on the machines that are missing")
    pairs = len(results) * (len(results) - 1)
    reached = sum(each.reached for each in results)
    is_bad = missing > 0 or reached < pairs
    verdict = Verdict.FAILED if is_bad else Verdict.WARNING if failures else Verdict.OK
    return Table(
        verdict,
        expected,
        tuple(msgspec.structs.replace(each, failures=()) for each in results),
        pairs,
        reached,
        failures,
        tuple(lines),
        tuple(advice),
    )


def run(
    case: Case, endpoint: str | None, run_id: str, nodes: int, timeout_s: float, **options: Any
) -> Outcome:
    """As `try_all`, for a caller without an event loop."""
    return threads.run(try_all(case, endpoint, run_id, nodes, timeout_s, **options))
