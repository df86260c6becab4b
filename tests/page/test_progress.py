"""What the page shows of the workers' progress, of hangs, and of nodes that leave or stay out."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from rallypoint.core import events as on
from rallypoint.core.progress import Progress
from rallypoint.core.values import Address, NodeId, NodeInfo, Phase, RunSettings
from tests.agent.processes import Machine
from tests.agent.test_hangs import JOINED
from tests.cli.conftest import Served
from tests.waiting import wait_until

pytestmark = [pytest.mark.verify, pytest.mark.processes, pytest.mark.sockets]

NAMES = ("n0", "n1", "n2", "n3")


class Job:
    """A run with a round, whose nodes say what a test wants."""

    def __init__(self, coordinator: Any, run_id: str = "job") -> None:
        self._one = coordinator
        settings = RunSettings(
            min_nodes=len(NAMES), max_nodes=len(NAMES), max_restarts=None, suspect_after_s=1e6,
            lost_after_s=2e6, reconnect_grace_s=1e6,
        )  # fmt: skip

        def begin() -> Any:
            run = self._one.server.coordinator.open_run(run_id)
            for number, name in enumerate(NAMES):
                run.post(on.NodeAttached(NodeInfo(name, 1, "h"), settings, number))
                run.post(on.NodeReady(NodeId(name, 1), 0, Address("h", 1), 1))
            return run

        self.run = coordinator.call(begin)
        wait_until(lambda: coordinator.call(lambda: self.run.membership.phase) is Phase.ACTIVE)

    def says(
        self, name: str, step: int, ago_s: float = 0.0, timeout_s: float | None = None
    ) -> None:
        report = Progress(1, step, ago_s, timeout_s)
        self._one.call(lambda: self.run.progressed(NodeId(name, 1), report))

    def post(self, event: on.Event) -> None:
        self._one.call(lambda: self.run.post(event))


def rows(page: Any) -> Any:
    return page.get_by_role("region", name="Members", exact=True).last.get_by_role("row")


def test_each_members_step_its_age_and_its_pace_and_who_stands_behind(
    look: Callable[..., Any], coordinator: Callable[..., Any]
) -> None:
    one = coordinator()
    job = Job(one)
    page = look(f"{one.url}/#/runs/job")
    rows(page).filter(has_text="n0").wait_for()
    # Without reports there is nothing to show.
    assert page.get_by_role("columnheader", name="Step").is_hidden()
    for name in NAMES:
        job.says(name, 0, ago_s=100.0)
    for name in NAMES[:3]:
        job.says(name, 2_000)
    job.says("n3", 1_800)
    page.get_by_role("columnheader", name="Step").wait_for()
    page.locator(".facts", has_text="step 2,000, 20.0 steps/s").wait_for()
    first, last = rows(page).filter(has_text="n0"), rows(page).filter(has_text="n3")
    first.filter(has_text="s ago, 20.0 steps/s").wait_for()
    last.filter(has_text="1,800, 200 behind").wait_for()
    page.locator(".why-box", has_text="n3 stands behind the others.").wait_for()
    page.get_by_role("link", name="Runs").click()
    page.get_by_role("row", name="job").filter(has_text="step 2,000").wait_for()


def test_a_run_in_which_nobody_advances(
    look: Callable[..., Any], coordinator: Callable[..., Any]
) -> None:
    one = coordinator()
    job = Job(one)
    for name in NAMES:
        job.says(name, 41, ago_s=1_000.0, timeout_s=1_600.0)
    page = look(f"{one.url}/")
    page.get_by_role("row", name="job").filter(has_text="no worker has advanced").wait_for()
    page.get_by_text("one needs attention").wait_for()
    page.get_by_role("link", name="job", exact=True).click()
    box = page.locator(".why-box", has_text="No worker has advanced for 16 min")
    box.filter(has_text="after 26 min 40 s the round ends as a hang").wait_for()
    # A screen reader is told once.
    page.locator("#announcer", has_text="job: no worker has advanced").wait_for()


def test_the_cause_of_a_hang_is_who_stands_where(
    look: Callable[..., Any], machine: Machine, serve: Callable[..., Served]
) -> None:
    axe = pytest.importorskip("axe_playwright_python.sync_playwright").Axe()
    endpoint = serve().endpoint
    program = machine.program(JOINED, "joined.py")
    options = ("--run-id", "job", "--hang-timeout", "3s", "--set", "suspect_after=3")
    for name in "ab":
        machine.agent(name, *options, nnodes="2", program=program, endpoint=endpoint)
    page = look(f"{endpoint}/#/runs/job")
    detail = page.locator(".detail", has_text="rank 1 hangs")
    detail.filter(has_text="rank 0 in barrier").filter(has_text="rank 1 in load").wait_for()
    detail.get_by_text("The stack of the worker that keeps the others waiting").wait_for()
    detail.locator("pre", has_text="in load").last.wait_for()
    stood = detail.locator(".stacks summary")
    stood.filter(has_text="rank 0 in barrier").wait_for()
    assert stood.count() == 2
    stood.first.focus()
    page.keyboard.press("Enter")
    detail.locator(".stacks details[open] pre").wait_for()
    page.locator(".events li[data-cause=hang]", has_text="no worker has advanced").first.wait_for()
    for scheme in ("light", "dark"):
        page.emulate_media(color_scheme=scheme)
        found = axe.run(page).response["violations"]
        assert [each["id"] for each in found if each["impact"] in ("serious", "critical")] == []


def test_nodes_that_drain_and_nodes_that_stay_out_say_until_when_and_why(
    look: Callable[..., Any], coordinator: Callable[..., Any]
) -> None:
    one = coordinator()
    job = Job(one)
    job.post(on.NodeDraining(NodeId("n1", 1), 1, "spot notice", 300.0))
    page = look(f"{one.url}/#/runs/job")
    said = page.locator(".orders li", has_text="n1: draining, leaves by")
    said.filter(has_text="spot notice").wait_for()
    rows(page).filter(has_text="n1").filter(has_text="draining, leaves by").wait_for()
