"""`/metrics` for Prometheus, and `/readyz`: whether this coordinator may decide.

The names are part of the public API (docs/metrics.md). The number of time series is bounded: a run
has a label of its own only up to a limit, and every other label has few values.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Mapping
from itertools import islice
from typing import TYPE_CHECKING, Any, Final

from aiohttp import web

from rallypoint._version import __version__
from rallypoint.coordinator import guard
from rallypoint.coordinator.coordinator import Coordinator
from rallypoint.coordinator.hosted_run import HostedRun
from rallypoint.coordinator.http_api import COORDINATOR, READY_PATH, json_error
from rallypoint.coordinator.tallies import Histogram, Tallies
from rallypoint.core.roster import READY, Bucket
from rallypoint.security.roles import EVERYBODY, Principal

if TYPE_CHECKING:
    from prometheus_client import CollectorRegistry

METRICS_PATH: Final = "/metrics"
RUNS_LABELLED: Final = 100
"""How many runs have series of their own: those with the most members come first."""
LAG_EVERY_S: Final = 0.5
"""How often the lag of the event loop is measured, in seconds."""
TALLIES: web.AppKey[Tallies] = web.AppKey("tallies", Tallies)
_REGISTRY: web.AppKey[dict[str, Any]] = web.AppKey("registry", dict)

_STATES: Final[dict[str, tuple[Bucket, ...]]] = {
    "active": (Bucket.IN_ROUND,),
    "ready": READY,
    "stopping": (Bucket.STOPPING,),
    "missing": (Bucket.ABSENT, Bucket.PLACE),
    "departing": (Bucket.DEPARTING,),
    "done": (Bucket.DONE,),
    "idle": (Bucket.OTHER,),
}
"""The states of members that are counted, each from its buckets. O(1) for each run."""

Labels = tuple[str, ...]


def add_routes(app: web.Application, tallies: Tallies) -> None:
    """Add both to the API of a coordinator."""
    app[TALLIES] = tallies
    app[_REGISTRY] = {}
    app.router.add_get(METRICS_PATH, _metrics)
    app.router.add_get(READY_PATH, _readyz)


async def measure_lag(tallies: Tallies) -> None:
    """Measure how late the event loop wakes a task, until cancelled."""
    loop = asyncio.get_running_loop()
    while True:
        due_s = loop.time() + LAG_EVERY_S
        await asyncio.sleep(LAG_EVERY_S)
        tallies.loop_lag.add(max(0.0, loop.time() - due_s))


async def _readyz(request: web.Request) -> web.Response:
    """200 if this coordinator may decide, else 503. It reveals no more, as it needs no token."""
    if request.app[COORDINATOR].ownership.may_decide_now:
        return web.Response(text="ready\n")
    return web.Response(text="not ready: the ledger has not renewed the lease\n", status=503)


async def _metrics(request: web.Request) -> web.Response:
    try:
        # Only a scrape loads the library: it takes as long as all of `import rallypoint`.
        from prometheus_client import exposition
    except ImportError:
        hint = "pip install prometheus-client"
        return json_error(501, "prometheus-client is not installed", hint)
    registry = _registry(request.app, guard.principal_of(request))
    try:
        encode, content_type = exposition.choose_encoder(request.headers.get("Accept", ""))
    except (TypeError, ValueError):
        # The library fails at a version that is no number. RFC 9110, 12.5.1: a server may answer as
        # if nothing were asked for.
        encode, content_type = exposition.choose_encoder("")
    body = encode(registry)
    return web.Response(body=body, headers={"Content-Type": content_type})


def _registry(app: web.Application, principal: Principal) -> CollectorRegistry:
    """With the series of the runs that the principal sees. It is kept for those who see all."""
    from prometheus_client import CollectorRegistry, ProcessCollector

    made: CollectorRegistry | None = None if principal.patterns else app[_REGISTRY].get("registry")
    if made is None:
        made = CollectorRegistry()
        collector = _Collector(app[COORDINATOR], app[TALLIES], principal)
        made.register(collector)  # type: ignore[arg-type,unused-ignore]
        ProcessCollector(registry=made)
        if not principal.patterns:
            app[_REGISTRY]["registry"] = made
    return made


class _Collector:
    """The metrics of one coordinator, as prometheus_client asks for them."""

    def __init__(
        self, coordinator: Coordinator, tallies: Tallies, principal: Principal = EVERYBODY
    ) -> None:
        self._sees = principal.sees
        self._coordinator = coordinator
        self._tallies = tallies

    def collect(self) -> Iterator[Any]:
        """All metrics, each computed now."""
        yield from self._runs()
        yield from self._from_events()
        yield from self._of_the_process()

    def _runs(self) -> Iterator[Any]:
        runs = [
            run
            for run in self._coordinator.runs.values()
            if run.is_claimed and self._sees(run.run_id)
        ]
        phases: dict[Labels, float] = {}
        members: dict[Labels, float] = dict.fromkeys([(state,) for state in _STATES], 0.0)
        unheard = standby = 0
        for run in runs:
            phase = (run.membership.phase.value,)
            phases[phase] = phases.get(phase, 0.0) + 1
            unheard += len(run.membership.roster.troubled_names)
            standby += _standby(run)
            for state, buckets in _STATES.items():
                members[state,] += _count(run, buckets)
        yield _gauge(
            "rallypoint_runs", "Runs that this coordinator owns, by phase", ("phase",), phases
        )
        yield _gauge("rallypoint_members", "Members of all runs, by state", ("state",), members)
        yield _gauge(
            "rallypoint_members_standby", "Members that are ready and have no place", (), standby
        )
        yield _gauge(
            "rallypoint_members_cooling",
            "Members that are ready, and stay out because they broke too many rounds",
            (),
            sum(_count(run, _COOLING) for run in runs),
        )
        yield _gauge(
            "rallypoint_members_unheard", "Members that cannot be heard and are missed", (), unheard
        )
        largest = sorted(runs, key=lambda run: -len(run.membership.roster))
        shown = list(islice(largest, RUNS_LABELLED))
        yield _gauge(
            "rallypoint_run_members",
            "Members of a run, by state; only the largest runs have series of their own",
            ("run", "state"),
            {
                (run.run_id, state): _count(run, buckets)
                for run in shown
                for state, buckets in _STATES.items()
            },
        )
        yield _gauge(
            "rallypoint_run_round",
            "The number of the last round of a run",
            ("run",),
            {(run.run_id,): float(run.membership.number) for run in shown},
        )
        yield _gauge(
            "rallypoint_run_restarts",
            "Rounds of a run that were charged to its restart budget",
            ("run",),
            {(run.run_id,): float(run.membership.restart_count) for run in shown},
        )
        yield _gauge(
            "rallypoint_runs_without_series", "Runs without series", (), len(runs) - len(shown)
        )

    def _from_events(self) -> Iterator[Any]:
        tallies = self._tallies
        yield _counter(
            "rallypoint_rounds_formed_total", "Rounds that were formed", (), tallies.rounds_formed
        )
        yield _counts(
            "rallypoint_rounds_ended_total", "Rounds that ended", "cause", tallies.rounds_ended
        )
        yield _counts(
            "rallypoint_runs_closed_total", "Runs that were closed", "outcome", tallies.runs_closed
        )
        yield _counter("rallypoint_nodes_attached_total", "New members", (), tallies.nodes_attached)
        yield _counter(
            "rallypoint_nodes_lost_total", "Members that were lost", (), tallies.nodes_lost
        )
        yield _counter(
            "rallypoint_reconnects_total", "Members that attached again", (), tallies.reconnects
        )
        yield _counts(
            "rallypoint_nodes_refused_total", "Nodes that were refused", "reason", tallies.refused
        )
        yield _counts(
            "rallypoint_worker_failures_total", "Failed workers", "kind", tallies.worker_failures
        )
        yield _counts("rallypoint_events_total", "Events of runs", "kind", tallies.events)
        yield _histograms(
            "rallypoint_round_wait_seconds",
            "From the end of a round until the next was formed, by phase: until its last member "
            "was ready, until it was given to the ledger, until the ledger had it",
            "phase",
            tallies.phases,
        )
        yield _histograms(
            "rallypoint_loss_detection_seconds",
            "How long a member could not be heard before it was lost",
            "",
            {"": tallies.detection},
        )

    def _of_the_process(self) -> Iterator[Any]:
        coordinator, tallies = self._coordinator, self._tallies
        events, budget = coordinator.events, coordinator.budget
        yield _gauge("rallypoint_info", "The release", ("version",), {(__version__,): 1.0})
        may_decide = float(coordinator.ownership.may_decide_now)
        yield _gauge(
            "rallypoint_ready", "Whether this coordinator may decide: 1 or 0", (), may_decide
        )
        yield _gauge(
            "rallypoint_connections", "Connections of nodes", (), len(coordinator.sessions)
        )
        unread = len(coordinator.unread)
        yield _gauge(
            "rallypoint_connections_backlogged", "Connections with unread output", (), unread
        )
        yield _gauge("rallypoint_memory_bytes", "Memory of all peers, as counted", (), budget.used)
        yield _gauge("rallypoint_memory_limit_bytes", "The most of it", (), budget.bytes_max)
        yield _gauge(
            "rallypoint_events_bytes", "Memory of the events of all runs", (), events.bytes
        )
        yield _gauge("rallypoint_events_limit_bytes", "About the most of it", (), events.bytes_max)
        waiting = events.waiting_bytes()
        yield _gauge(
            "rallypoint_events_waiting_bytes", "Events that wait for the ledger", (), waiting
        )
        yield _counter(
            "rallypoint_event_failures_total",
            "Events lost to an unexpected error",
            (),
            events.failures,
        )
        if tallies.certificate_ends_at is not None:
            yield _gauge(
                "rallypoint_certificate_expiry_timestamp_seconds",
                "When the first of this coordinator's certificates ends, in Unix time",
                (),
                tallies.certificate_ends_at,
            )
        refused = tallies.logins_refused
        yield _counter(
            "rallypoint_logins_refused_total", "Requests without an accepted token", (), refused
        )
        yield _histograms(
            "rallypoint_ledger_operation_seconds",
            "Operations of the ledger",
            "operation",
            tallies.ledger,
        )
        errors = tallies.ledger_errors
        yield _counts(
            "rallypoint_ledger_errors_total",
            "Operations of the ledger that failed",
            "error",
            errors,
        )
        yield _histograms(
            "rallypoint_loop_lag_seconds",
            "How late the event loop runs a task",
            "",
            {"": tallies.loop_lag},
        )


_COOLING: Final = (Bucket.COOLING, Bucket.COOLING_SURVIVOR)


def _count(run: HostedRun, buckets: tuple[Bucket, ...]) -> float:
    return float(sum(map(run.membership.roster.count, buckets)))


def _standby(run: HostedRun) -> int:
    """Members that are ready while a round is active without them. O(1)."""
    membership = run.membership
    is_active = membership.phase_of_work.value == "active"
    return membership.roster.count(Bucket.NEWCOMER) if is_active else 0


# -- families of prometheus_client -----------------------------------------------------------------


def _gauge(name: str, about: str, labels: Labels, values: Mapping[Labels, float] | float) -> Any:
    from prometheus_client.core import GaugeMetricFamily

    family = GaugeMetricFamily(name, about, labels=labels)
    return _filled(family, values)


def _counter(name: str, about: str, labels: Labels, values: Mapping[Labels, float] | float) -> Any:
    from prometheus_client.core import CounterMetricFamily

    family = CounterMetricFamily(name, about, labels=labels)
    return _filled(family, values)


def _filled(family: Any, values: Mapping[Labels, float] | float) -> Any:
    found = values if isinstance(values, Mapping) else {(): float(values)}
    for labels, value in found.items():
        family.add_metric(labels, value)
    return family


def _counts(name: str, about: str, label: str, counts: Mapping[str, int]) -> Any:
    return _counter(name, about, (label,), {(key,): float(each) for key, each in counts.items()})


def _histograms(name: str, about: str, label: str, found: Mapping[str, Histogram]) -> Any:
    from prometheus_client.core import HistogramMetricFamily

    labels = (label,) if label else ()
    family = HistogramMetricFamily(name, about, labels=labels)
    for key, histogram in found.items():
        family.add_metric((key,) if label else (), histogram.buckets(), histogram.sum)
    return family
