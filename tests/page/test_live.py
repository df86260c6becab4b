"""The page in a real Chromium, of real nodes: what happens to them is on it at once."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.agent.processes import Machine, Process
from tests.cli.conftest import Cli, Served

pytestmark = [pytest.mark.verify, pytest.mark.processes]

TOKEN = "the-token-of-the-page-that-nobody-guesses"

# When each event came into the document, in seconds since 1970: the machine is the same one.
STAMP = """
    window.stamps = {};
    const stamp = () => {
      for (const each of document.querySelectorAll(".events li")) {
        window.stamps[each.dataset.id] ??= (performance.timeOrigin + performance.now()) / 1000;
      }
    };
    new MutationObserver(stamp).observe(document, { childList: true, subtree: true });
"""


def nodes(machine: Machine, endpoint: str, count: int, *more: str) -> list[Process]:
    """Agents of one run, with a round."""
    options = ("--run-id", "job", "--max-restarts", "3", *more)
    found = [
        machine.agent(f"n{number}", *options, nnodes=f"{count - 1}:{count}", endpoint=endpoint)
        for number in range(count)
    ]
    for each in found:
        each.worker()
    return found


def test_a_killed_node_is_seen_and_why(
    look: Callable[..., Any], machine: Machine, serve: Callable[..., Served]
) -> None:
    endpoint = serve().endpoint
    page = look(f"{endpoint}/")
    page.get_by_text("No runs. A run begins").wait_for()
    found = nodes(machine, endpoint, 3)
    page.get_by_role("link", name="job", exact=True).click()
    members = page.get_by_role("region", name="Members", exact=True).last
    members.get_by_role("row", name="n2").wait_for()
    assert page.locator("h1").inner_text() == "job"
    page.locator(".chip", has_text="active").first.wait_for()
    page.evaluate(STAMP)
    os.kill(found[1].pid, signal.SIGKILL)
    page.locator(".events li[data-kind=lost]", has_text="n1 lost: its process ended").wait_for()
    page.locator(".events li[data-kind=formed]", has_text="with 2 nodes").wait_for()
    page.locator(".detail", has_text="n1 lost: its process ended").wait_for()
    members.get_by_role("row", name="n1").wait_for(state="detached")
    page.locator("#announcer", has_text="n1 lost").wait_for(state="attached")
    rounds = page.get_by_role("region", name="Rounds, the newest first")
    row = rounds.get_by_role("row", name="1", exact=False).filter(has_text="n1 lost")
    row.wait_for()
    # How long after it happened each event was in the document. All are of one machine's clock.
    delays = page.evaluate(
        """async () => {
          const answer = await fetch("api/v1/runs/job/events?limit=1000");
          const { events } = await answer.json();
          return events.filter((each) => each.id in window.stamps)
            .map((each) => window.stamps[each.id] - each.at);
        }"""
    )
    late = sorted(delays[-5:])
    print("events were on the page after", [f"{1000 * each:.0f} ms" for each in late])
    # 0.5 s is promised; this machine may do much else, and stop for seconds.
    assert late[0] < 3.0, late


def test_signing_in(
    look: Callable[..., Any], coordinator: Callable[..., Any], serve: Callable[..., Served]
) -> None:
    url = coordinator(token=TOKEN).url
    page = look(f"{url}/#/runs/none")
    page.get_by_role("heading", name="This coordinator needs a token").wait_for()
    field, button = page.get_by_label("Token"), page.get_by_role("button", name="Sign in")
    field.fill("not the token")
    button.click()
    page.get_by_text("This is not a token").wait_for()
    field.fill("wrong-token-that-is-long-enough")
    button.click()
    page.get_by_text("The token is wrong").wait_for()
    sent: list[str] = []
    page.on("request", lambda request: sent.append(request.url))
    field.fill(f" {TOKEN}\n")
    button.click()
    page.get_by_text("There is no run of this name.").wait_for()
    page.get_by_role("link", name="Runs").click()
    page.get_by_text("No runs.").wait_for()
    assert not [each for each in sent if TOKEN in each]
    assert page.context.cookies() == []
    assert page.evaluate("Object.keys(localStorage).length") == 0
    page.reload()  # the tab still has it
    page.get_by_text("No runs.").wait_for()
    page.get_by_role("button", name="Sign out").click()
    page.get_by_role("heading", name="This coordinator needs a token").wait_for()
    other = page.context.new_page()  # another tab does not
    other.goto(url)
    other.get_by_role("heading", name="This coordinator needs a token").wait_for()


def test_the_identity_of_a_host_is_not_sent(
    look: Callable[..., Any], coordinator: Callable[..., Any]
) -> None:
    page = look(f"{coordinator(token=TOKEN).url}/")
    secret = f"rlp1.{'a' * 64}.{'s' * 43}"
    shown: list[str] = []
    page.on("request", lambda request: shown.append(request.headers.get("authorization", "")))
    page.get_by_label("Token").fill(f"{secret}.{'k' * 300}")
    page.get_by_role("button", name="Sign in").click()
    page.get_by_text("The token is wrong").wait_for()
    assert f"Bearer {secret}" in shown
    assert not [each for each in shown if "kkk" in each]


def test_over_tls_with_the_token_of_a_host(
    look: Callable[..., Any], cli: Cli, serve: Callable[..., Served], tmp_path: Path
) -> None:
    """A browser does not know the token's authority: a person has to accept the certificate."""
    token = tmp_path / "token"
    assert cli("token", "new", str(token)).code == 0
    served = serve("--token-file", str(token))
    assert served.endpoint.startswith("https://")
    page = look(f"{served.endpoint}/", ignore_https_errors=True)
    shown: list[str] = []
    page.on("request", lambda request: shown.append(request.headers.get("authorization", "")))
    page.get_by_label("Token").fill(token.read_text())
    page.get_by_role("button", name="Sign in").click()
    page.get_by_text("No runs.").wait_for()
    # What proves that a process is a coordinator stays in the browser.
    assert max(map(len, shown)) < 200 < len(token.read_text())


def test_a_coordinator_that_is_gone_is_told_and_found_again(
    look: Callable[..., Any], serve: Callable[..., Served], tmp_path: Path
) -> None:
    ledger = ("--ledger", f"file:{tmp_path / 'ledger'}")
    first = serve(*ledger)
    page = look(f"{first.endpoint}/")
    page.get_by_text("No runs.").wait_for()
    first.stop()
    page.get_by_role("alert").get_by_text("The coordinator cannot be reached").wait_for()
    page.get_by_text("Next try in").wait_for()
    page.get_by_role("button", name="Try now").click()
    page.get_by_role("alert").get_by_text("The coordinator cannot be reached").wait_for()
    port = first.endpoint.rpartition(":")[2]
    again = Served("--port", port, *ledger)
    try:
        page.get_by_role("alert").wait_for(state="detached")
        page.locator("#link[data-state=live]").wait_for()
    finally:
        again.kill()


def test_any_replica_shows_the_run_and_its_events(
    look: Callable[..., Any], machine: Machine, serve: Callable[..., Served], tmp_path: Path
) -> None:
    """One coordinator owns it, the page is of the other; then the owner dies."""
    ledger = ("--ledger", f"file:{tmp_path / 'ledger'}")
    owner, other = serve(*ledger), serve(*ledger)
    page = look(f"{other.endpoint}/#/runs/job")
    page.get_by_text("There is no run of this name.").wait_for()
    # The nodes find the owner in the ledger, and its successor.
    options = ("--host-coordinator", "no")
    found = nodes(machine, f"file://{tmp_path / 'ledger'}", 2, *options)
    page.locator(".events li[data-kind=formed]", has_text="round 1 formed with 2 nodes").wait_for()
    coordinators = page.get_by_role("region", name="Coordinators", exact=True).last
    coordinators.get_by_role("row").filter(has_text="owner, term").wait_for()
    assert coordinators.get_by_role("row").count() == 3
    os.kill(found[1].pid, signal.SIGKILL)
    page.locator(".events li[data-kind=lost]", has_text="n1 lost").wait_for()
    owns = coordinators.get_by_role("row").filter(has_text="owner, term")
    is_own = "this page" in owns.inner_text()
    (other if is_own else owner).process.kill()
    if not is_own:
        page.locator(".events li[data-kind=took_over]").wait_for()
        owns.filter(has_text="this page").wait_for()


def test_axe_finds_nothing_serious(
    look: Callable[..., Any],
    machine: Machine,
    serve: Callable[..., Served],
    coordinator: Callable[..., Any],
) -> None:
    axe = pytest.importorskip("axe_playwright_python.sync_playwright").Axe()
    endpoint = serve().endpoint
    found = nodes(machine, endpoint, 2)
    page = look(f"{endpoint}/")

    def check(where: str, page: Any = page) -> None:
        for scheme in ("light", "dark"):
            page.emulate_media(color_scheme=scheme)
            result = axe.run(page).response
            bad = [
                f"{where}, {scheme}: {each['id']}: {[n['html'][:160] for n in each['nodes'][:3]]}"
                for each in result["violations"]
                if each["impact"] in ("serious", "critical")
            ]
            assert bad == []
            assert len(result["passes"]) > 10

    page.get_by_role("link", name="job", exact=True).wait_for()
    check("runs")
    os.kill(found[1].pid, signal.SIGKILL)
    page.get_by_role("link", name="job", exact=True).click()
    page.locator(".events li[data-kind=broken]").wait_for()
    page.locator(".detail h3").wait_for()
    check("run")
    page.get_by_role("button", name="Close run").click()
    page.get_by_role("dialog").wait_for()
    check("dialog")
    other = look(coordinator(token=TOKEN).url)
    other.get_by_label("Token").wait_for()
    check("sign in", other)


def test_rounds_are_selected_by_keyboard_and_the_run_is_closed_after_a_question(
    look: Callable[..., Any], machine: Machine, serve: Callable[..., Served]
) -> None:
    endpoint = serve().endpoint
    found = nodes(machine, endpoint, 3)
    os.kill(found[2].pid, signal.SIGKILL)
    page = look(f"{endpoint}/#/runs/job", viewport={"width": 390, "height": 800})
    page.locator(".events li[data-kind=formed]", has_text="round 2").wait_for()
    page.get_by_role("region", name="Timeline: what each node did").focus()
    page.keyboard.press("End")
    page.locator(".detail h3", has_text="Round 2").wait_for()
    page.keyboard.press("ArrowLeft")
    page.locator(".detail h3", has_text="Round 1").wait_for()
    page.locator(".detail", has_text="n2 lost").wait_for()
    page.get_by_role("button", name="2", exact=True).focus()
    page.keyboard.press("Enter")
    page.locator(".detail h3", has_text="Round 2").wait_for()
    page.keyboard.press("ArrowDown")
    page.locator(".detail h3", has_text="Round 1").wait_for()
    close = page.get_by_role("button", name="Close run")
    close.click()
    dialog = page.get_by_role("dialog", name="Close this run?")
    assert "Run job ends on all its nodes" in dialog.inner_text()
    page.keyboard.press("Escape")
    dialog.wait_for(state="detached")
    close.click()
    dialog.get_by_label("Reason, for the others").fill("<b>enough</b>")
    dialog.get_by_role("button", name="Close job").click()
    page.locator(".why-box", has_text="<b>enough</b>").wait_for()
    page.locator(".chip", has_text="stopped").wait_for()
    assert close.is_disabled()
    found[0].code()


def test_nodes_are_drained_and_evicted_and_the_run_is_scaled(
    look: Callable[..., Any], machine: Machine, serve: Callable[..., Served]
) -> None:
    endpoint = serve().endpoint
    found = nodes(machine, endpoint, 3)
    page = look(f"{endpoint}/#/runs/job")
    dialog = page.get_by_role("dialog")
    page.get_by_role("button", name="Change size").click()
    page.get_by_role("spinbutton", name="At least").fill("1")
    dialog.get_by_label("Reason, for the others").fill("fewer machines")
    dialog.get_by_role("button", name="Change job").click()
    dialog.wait_for(state="detached")
    page.locator(".orders li", has_text="1 to 3 nodes, by operator at").wait_for()
    page.get_by_role("button", name="Drain n1").click()
    assert "Node n1 of run job is asked to leave" in dialog.inner_text()
    dialog.get_by_label("Reason, for the others").fill("new kernel")
    dialog.get_by_role("button", name="Drain n1").click()
    page.locator(".events li[data-kind=drain_asked]", has_text="new kernel").wait_for()
    page.locator(".events li[data-kind=left]", has_text="n1").wait_for()
    found[1].ends(0)
    page.get_by_role("button", name="Evict n2").click()
    assert "Node n2 is taken out of run job at once" in dialog.inner_text()
    dialog.get_by_role("button", name="Evict n2").click()
    page.locator(".orders li", has_text="n2 was evicted by operator at").wait_for()
    page.locator(".events li[data-kind=evicted]").wait_for()
    found[2].ends(7)
    page.locator(".events li[data-kind=formed]", has_text="with 1 node").wait_for()
