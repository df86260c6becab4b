"""`/metrics` and `/readyz`: true numbers, documented names, and a bounded number of series."""

from __future__ import annotations

import re
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from prometheus_client.parser import text_string_to_metric_families

from rallypoint.coordinator import metrics, tallies
from rallypoint.coordinator.config import CoordinatorConfig
from rallypoint.coordinator.metrics import _Collector
from rallypoint.coordinator.run_events import EventKind, RunEvent
from rallypoint.coordinator.server import CoordinatorServer
from rallypoint.coordinator.tallies import Counts, Histogram, Tallies
from rallypoint.coordinator.timed_ledger import TimedLedger
from rallypoint.errors import LedgerUnreachableError
from rallypoint.ledger.contract import Swapped, Unknown
from rallypoint.ledger.memory import MemoryLedger
from rallypoint.net import bind
from tests.coordinator.one_coordinator import OneCoordinator
from tests.coordinator.replica import TOKEN, Replica, replica
from tests.loops import run_clean, run_virtual, until

DOC = Path(__file__).parents[2] / "docs" / "metrics.md"
Samples = dict[tuple[str, tuple[tuple[str, str], ...]], float]


@asynccontextmanager
async def in_memory() -> AsyncIterator[Replica]:
    sock = bind("127.0.0.1", 0)
    port = sock.getsockname()[1]
    async with CoordinatorServer(CoordinatorConfig(token=TOKEN)) as server:
        await server.start([sock])
        yield Replica(server, port)


async def get(one: Replica, path: str, token: str = TOKEN) -> tuple[int, str, str]:
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    url = f"http://127.0.0.1:{one.port}{path}"
    async with aiohttp.ClientSession() as http, http.get(url, headers=headers) as answer:
        return answer.status, answer.headers["Content-Type"], await answer.text()


def samples_of(text: str) -> Samples:
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


async def scraped(one: Replica) -> Samples:
    code, kind, text = await get(one, "/metrics")
    assert code == 200, text
    assert kind.startswith("text/plain; version=")
    return samples_of(text)


def documented() -> set[str]:
    """The names in the table of the page."""
    rows = [line for line in DOC.read_text().splitlines() if line.startswith("| `rallypoint_")]
    return {name for row in rows for name in re.findall(r"`(rallypoint_\w+)`", row.split("|")[1])}


@pytest.mark.sockets
def test_the_numbers_are_those_of_the_runs() -> None:
    async def main() -> None:
        async with in_memory() as a:
            await a.has("one")
            await a.has("two")
            found = await scraped(a)
            assert found["rallypoint_runs", (("phase", "gathering"),)] == 2
            assert found["rallypoint_members", (("state", "idle"),)] == 2
            assert found["rallypoint_run_members", (("run", "one"), ("state", "idle"))] == 1
            assert found["rallypoint_nodes_attached_total", ()] == 2
            assert found["rallypoint_ready", ()] == 1
            assert found["process_open_fds", ()] > 0
            await get(a, "/api/v1/runs", token="wrong")
            assert (await scraped(a))["rallypoint_logins_refused_total", ()] == 1
            assert (await get(a, "/metrics", token=""))[0] == 401

    run_clean(main)


@pytest.mark.sockets
@pytest.mark.parametrize("version", ["x", "1.x.0", "-", "1.0.0; escaping=x", '"1', "9" * 5_000])
@pytest.mark.parametrize("kind", ["application/openmetrics-text", "text/plain"])
def test_a_version_that_is_none_is_answered_all_the_same(kind: str, version: str) -> None:
    async def main() -> None:
        async with in_memory() as a:
            url = f"http://127.0.0.1:{a.port}/metrics"
            headers = {"Authorization": f"Bearer {TOKEN}", "Accept": f"{kind}; version={version}"}
            async with aiohttp.ClientSession() as http, http.get(url, headers=headers) as answer:
                assert answer.status == 200
                assert "rallypoint_runs" in await answer.text()

    run_clean(main)


@pytest.mark.sockets
def test_openmetrics_is_given_to_a_client_that_asks_for_it() -> None:
    async def main() -> None:
        async with in_memory() as a:
            url = f"http://127.0.0.1:{a.port}/metrics"
            headers = {"Authorization": f"Bearer {TOKEN}"}
            headers["Accept"] = "application/openmetrics-text; version=1.0.0"
            async with aiohttp.ClientSession() as http, http.get(url, headers=headers) as answer:
                assert answer.content_type == "application/openmetrics-text"
                assert (await answer.text()).endswith("# EOF\n")

    run_clean(main)


@pytest.mark.sockets
def test_every_metric_is_on_the_page_and_the_reverse() -> None:
    async def main() -> None:
        async with replica(MemoryLedger()) as a:
            await a.has("one")
            tally = a.server.tallies
            for kind in EventKind:
                tally.take("one", event(kind, cause="x", seconds=1.0, phases={"ready_s": 1.0}))
            tally.ledger_took("read", 0.1, "LedgerUnreachableError")
            tally.certificate_ends_at = 2e9  # as with TLS
            _, _, text = await get(a, "/metrics")
            names = {
                f"{family.name}_total" if family.type == "counter" else family.name
                for family in text_string_to_metric_families(text)
            }
            assert {name for name in names if not name.startswith("process_")} == documented()

    run_clean(main)


@pytest.mark.sockets
def test_ready_without_a_token_and_not_ready_without_a_lease() -> None:
    async def main() -> None:
        async with in_memory() as a:
            assert (await get(a, "/readyz", token=""))[0] == 200
        async with replica(MemoryLedger()) as b:
            await until(lambda: b.server.ownership.may_decide_now, "it has no lease")
            assert (await get(b, "/readyz", token=""))[0] == 200
            b.server.ownership.lease_manager.is_suspended = True  # type: ignore[attr-defined]
            code, _, text = await get(b, "/readyz", token="")
            assert (code, text) == (
                503,
                "not ready: the ledger has not renewed the lease\n",
            )
            assert (await get(b, "/healthz", token=""))[0] == 200

    run_clean(main)


def with_runs(runs: int, nodes: int) -> OneCoordinator:
    one = OneCoordinator(new_runs_per_s=1e9, runs_max=10_000, sessions_max=1_000_000)
    for run in range(runs):
        for node in range(nodes):
            one.attach(f"run-{run}", f"n{node}", min_nodes=nodes, max_nodes=nodes)
    return one


def families(one: OneCoordinator) -> Iterator[Any]:
    return _Collector(one.coordinator, Tallies()).collect()


def test_only_so_many_runs_have_series_of_their_own() -> None:
    one = with_runs(metrics.RUNS_LABELLED + 30, 1)
    one.attach("run-129", "another", min_nodes=1, max_nodes=1)
    found = {family.name: family for family in families(one)}
    labelled = {sample.labels["run"] for sample in found["rallypoint_run_round"].samples}
    assert len(labelled) == metrics.RUNS_LABELLED
    (left,) = found["rallypoint_runs_without_series"].samples
    assert left.value == 30


def test_a_scrape_of_100_runs_with_100_nodes_takes_50_ms_at_most() -> None:
    from prometheus_client import CollectorRegistry, generate_latest

    one = with_runs(100, 100)
    registry = CollectorRegistry()
    registry.register(_Collector(one.coordinator, Tallies()))  # type: ignore[arg-type,unused-ignore]
    took_s = []
    for _ in range(7):
        begun_s = time.process_time()
        text = generate_latest(registry)
        took_s.append(time.process_time() - begun_s)
    assert text.count(b"\nrallypoint_run_members{") == 100 * len(metrics._STATES)
    assert min(took_s) < 0.05


def event(kind: EventKind, **more: Any) -> RunEvent:
    return RunEvent(term=1, seq=1, kind=kind, at=1.0, offset_s=1.0, on="h", **more)


def test_counts_are_made_from_events() -> None:
    tally = Tallies()
    tally.take("r", event(EventKind.ATTACHED, count=1_000))
    tally.take("r", event(EventKind.FORMED, phases={"ready_s": 2.0, "writing_s": 0.02}))
    tally.take("r", event(EventKind.LOST, node="a", seconds=0.04))
    tally.take("r", event(EventKind.LOST, count=3, seconds=31.0))
    tally.take("r", event(EventKind.BROKEN, cause="node_lost"))
    tally.take("r", event(EventKind.BROKEN, cause="node_lost", is_late=True))
    assert tally.nodes_attached == 1_000
    assert tally.nodes_lost == 4
    assert tally.rounds_ended == {"node_lost": 1}
    assert tally.phases["ready"].sum == 2.0
    assert tally.phases["forming"].sum == 0.0
    assert dict(tally.detection.buckets())["0.1"] == 1
    assert dict(tally.detection.buckets())["+Inf"] == 4


def test_a_label_has_a_bounded_number_of_values() -> None:
    counts = Counts()
    for number in range(1_000):
        counts.add(f"error-{number}")
    assert len(counts) == tallies.LABELS_MAX + 1
    assert counts["other"] == 1_000 - tallies.LABELS_MAX


def test_a_histogram_counts_what_is_at_most_each_bound() -> None:
    histogram = Histogram((1.0, 2.0))
    for value in (0.5, 1.0, 1.5, 9.0):
        histogram.add(value)
    assert histogram.buckets() == [("1.0", 2.0), ("2.0", 3.0), ("+Inf", 4.0)]
    assert histogram.sum == 12.0


def test_a_timed_ledger_is_the_ledger_and_counts_its_operations() -> None:
    class Troubled(MemoryLedger):
        async def keys(self, prefix: str = "") -> tuple[str, ...]:
            raise LedgerUnreachableError("no quorum")

        async def delete(self, key: str, version: int | None = None) -> bool:
            return await super().delete(key, version)

    async def main() -> None:
        inner, tally = Troubled(), Tallies()
        ledger = TimedLedger(inner, tally.ledger_took)
        await ledger.open()
        assert (ledger.ledger_id, ledger.has_log) == (inner.ledger_id, inner.has_log)
        assert (ledger.limits, ledger.is_durable) == (inner.limits, inner.is_durable)
        assert isinstance(await ledger.swap("runs/x", None, b"1"), Swapped)
        assert (await ledger.read("runs/x")) is not None
        with pytest.raises(LedgerUnreachableError):
            await ledger.keys("runs/")
        assert set(tally.ledger) == {"swap", "read", "keys"}
        assert tally.ledger_errors == {"LedgerUnreachableError": 1}
        tally.ledger_took("swap", 0.1, "Unknown")
        assert tally.ledger["swap"].buckets()[-1] == ("+Inf", 2.0)
        await ledger.aclose()

    run_virtual(main())


def test_an_unknown_outcome_is_an_error() -> None:
    class Unsure(MemoryLedger):
        async def swap(self, key: str, expected: int | None, value: bytes) -> Any:
            return Unknown("the answer is lost", None)

    async def main() -> None:
        tally = Tallies()
        ledger = TimedLedger(Unsure(), tally.ledger_took)
        await ledger.swap("runs/x", None, b"1")
        assert tally.ledger_errors == {"Unknown": 1}

    run_virtual(main())
