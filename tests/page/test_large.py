"""The page of a run with a thousand members and two hundred rounds; and of hostile names."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from rallypoint.core import events as on
from rallypoint.core.values import Address, NodeId, NodeInfo, Phase, RunSettings
from tests.waiting import wait_until

pytestmark = [pytest.mark.verify, pytest.mark.processes, pytest.mark.sockets]

MEMBERS, ROUNDS = 1_000, 200

# What the browser had to do, from the first byte of the page on.
WATCH = """
    window.tasks = [];
    new PerformanceObserver((list) => {
      for (const each of list.getEntries()) window.tasks.push(each.duration);
    }).observe({ type: "longtask", buffered: true });
    new MutationObserver((_, observer) => {
      if (!document.querySelector("[aria-label=Members] tbody th")) return;
      observer.disconnect();
      const painted = () => (window.painted = performance.now());
      requestAnimationFrame(() => requestAnimationFrame(painted));
    }).observe(document, { childList: true, subtree: true });
"""
# A measure of this machine, now: how long a fixed piece of work takes.
CALIBRATE = """() => {
    const began = performance.now();
    let sum = 0;
    for (let i = 0; i < 2e7; i += 1) sum = (sum + i * 31) % 1000003;
    return sum >= 0 ? performance.now() - began : 0;
}"""


def large_run(coordinator: Any, members: int, rounds: int) -> None:
    """Members without connections, and rounds that end because one of them asks again."""
    settings = RunSettings(
        min_nodes=members, max_nodes=members, max_restarts=None, suspect_after_s=1e6,
        lost_after_s=2e6, reconnect_grace_s=1e6,
    )  # fmt: skip
    server = coordinator.server

    def begin() -> Any:
        run = server.coordinator.open_run("large")
        for number in range(members):
            labels = {"rack": f"r{number % 40}", "gpu": "H200"}
            info = NodeInfo(f"node-{number:04}", 1, f"host-{number:04}", labels=labels)
            run.post(on.NodeAttached(info, settings, number))
        return run

    run = coordinator.call(begin)

    def ready(leaving: int) -> None:
        for number in range(members):
            node = NodeId(f"node-{number:04}", 1)
            run.post(on.NodeReady(node, leaving, Address(f"host-{number:04}", 1), 1))

    for number in range(rounds):
        coordinator.call(lambda: ready(number and run.membership.number))  # noqa: B023
        wait_until(lambda: coordinator.call(lambda: run.membership.phase) is Phase.ACTIVE)
    assert run.membership.number >= rounds


def test_a_thousand_members_and_two_hundred_rounds_stay_quick(
    look: Callable[..., Any], coordinator: Callable[..., Any]
) -> None:
    one = coordinator(heartbeats_per_suspicion=3)
    large_run(one, MEMBERS, ROUNDS)
    page = look("about:blank")
    page.add_init_script(WATCH)
    unit_ms = page.evaluate(CALIBRATE)
    page.goto(f"{one.url}/#/runs/large")
    members = page.get_by_role("region", name="Members", exact=True).last
    members.get_by_role("row", name="node-0000").wait_for()
    page.get_by_role("button", name=str(ROUNDS), exact=True).wait_for()
    painted_ms = wait_until(lambda: page.evaluate("window.painted"))
    # Only what is in sight is in the document.
    assert page.locator("tbody tr").count() < 250
    members.evaluate("each => { each.scrollTop = each.scrollHeight; }")
    members.get_by_role("row", name="node-0999").wait_for()
    page.get_by_role("region", name="Timeline: what each node did").focus()
    for key in ("Home", "ArrowRight", "+", "+", "0", "End"):
        page.keyboard.press(key)
    page.locator(".detail h3", has_text=f"Round {ROUNDS}").wait_for()
    page.get_by_label("Filter members").fill("node-05 rack=r20")
    members.get_by_role("row", name="node-0500").wait_for()
    longest_ms = max(page.evaluate("window.tasks"), default=0.0)
    print(
        f"painted after {painted_ms:.0f} ms, the longest task {longest_ms:.0f} ms; "
        f"20 million steps of a loop take {unit_ms:.0f} ms here"
    )
    # 1 s and 100 ms are promised. Here other tests may have most of this machine, so these bounds
    # are generous, and grow with its slowness. What is in the document is counted above.
    assert painted_ms < max(4_000, 40 * unit_ms)
    assert longest_ms < max(400, 8 * unit_ms)


# As on a machine where each piece of work takes longer than a frame has time for.
SLOW = """
    let now_ms = 0;
    performance.now = () => (now_ms += 5);
"""
# The most new rows of tables that came into the document in one frame.
ROWS_AT_ONCE = """
    window.rowsAtOnce = 0;
    const known = new WeakSet();
    const isRow = (each) => each.matches?.("tbody tr:not(.space)") && !known.has(each);
    new MutationObserver((changes) => {
      const rows = changes.flatMap(({ addedNodes }) => [...addedNodes]).filter(isRow);
      for (const each of rows) known.add(each);
      window.rowsAtOnce = Math.max(window.rowsAtOnce, rows.length);
    }).observe(document, { childList: true, subtree: true });
"""


def test_work_that_takes_long_is_spread_over_frames(
    look: Callable[..., Any], coordinator: Callable[..., Any]
) -> None:
    one = coordinator(heartbeats_per_suspicion=3)
    large_run(one, 100, 30)
    page = look("about:blank")
    page.add_init_script(SLOW + ROWS_AT_ONCE)
    page.goto(f"{one.url}/#/runs/large")
    members = page.get_by_role("region", name="Members", exact=True).last
    members.get_by_role("row", name="node-0018").wait_for()
    page.get_by_role("button", name="30", exact=True).wait_for()
    members.evaluate("each => { each.scrollTop = each.scrollHeight; }")
    members.get_by_role("row", name="node-0099").wait_for()
    assert 0 < page.evaluate("window.rowsAtOnce") <= 10


HOSTILE = "<img src=x onerror=alert(1)>"


def test_names_from_outside_are_text(
    look: Callable[..., Any], coordinator: Callable[..., Any]
) -> None:
    one = coordinator()
    settings = RunSettings(min_nodes=2, max_nodes=2)
    run_id = f"{HOSTILE}/?#%2e&\"'"

    def begin() -> None:
        run = one.server.coordinator.open_run(run_id)
        for name in (HOSTILE, "‮gnp.exe\x07'\"><script>alert(2)</script>"):
            labels = {"<b>x": "</td><svg onload=alert(3)>"}
            run.post(on.NodeAttached(NodeInfo(name, 1, "<i>h</i>", labels=labels), settings, 1))

    one.call(begin)
    page = look(f"{one.url}/")
    page.get_by_role("link", name=run_id, exact=True).click()
    page.locator("h1", has_text=HOSTILE).wait_for()
    page.locator(".events li", has_text=f"{HOSTILE} attached").wait_for()
    members = page.get_by_role("region", name="Members", exact=True).last
    members.get_by_role("row").filter(has_text=HOSTILE).wait_for()
    page.get_by_role("button", name=f"Evict {HOSTILE}").click()
    dialog = page.get_by_role("dialog")
    assert HOSTILE in dialog.inner_text()
    assert (
        page.locator("main img, main script, main svg, td b, td i, li b:not(.legend b)").count()
        == 0
    )
    assert page.locator("dialog img, dialog svg").count() == 0
    assert page.title().startswith(HOSTILE)


def test_a_viewer_sees_why_it_may_not_act(
    look: Callable[..., Any], coordinator: Callable[..., Any]
) -> None:
    one = coordinator()

    def begin() -> None:
        run = one.server.coordinator.open_run("job")
        settings = RunSettings(min_nodes=2, max_nodes=2)
        run.post(on.NodeAttached(NodeInfo("n0", 1, "h"), settings, 1))

    one.call(begin)
    # The header takes rights away: the request is that of a viewer.
    page = look(f"{one.url}/#/runs/job", extra_http_headers={"Rallypoint-Limits": "viewer;"})
    page.get_by_text("a token needs the role operator; yours has viewer").wait_for()
    assert page.get_by_role("button", name="Close run").is_disabled()
    members = page.get_by_role("region", name="Members", exact=True).last
    members.get_by_role("row", name="n0").wait_for()
    assert page.get_by_role("button", name="Evict n0").count() == 0
