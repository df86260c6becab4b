"""How a person uses the page in a real Chromium: signs in, by keyboard, with a screen reader."""

from __future__ import annotations

import itertools
import os
import re
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from rallypoint import tokens
from rallypoint.core import events as on
from rallypoint.core.values import NodeInfo, RunSettings
from tests.agent.processes import Machine
from tests.cli.conftest import Cli, Served
from tests.page.conftest import nodes

pytestmark = [pytest.mark.verify, pytest.mark.processes, pytest.mark.sockets]

TOKEN = "the-token-of-the-page-that-nobody-guesses"


def test_signing_in(
    look: Callable[..., Any], coordinator: Callable[..., Any], serve: Callable[..., Served]
) -> None:
    url = coordinator(token=TOKEN).url
    page = look(f"{url}/#/runs/none")
    page.get_by_role("heading", name="This coordinator needs a token").wait_for()
    mark = tokens.fingerprint(TOKEN)
    # Before a token was wrong there is nothing to compare.
    assert mark not in page.inner_text("main")
    field, button = page.get_by_label("Token"), page.get_by_role("button", name="Sign in")
    field.fill("not the token")
    button.click()
    page.get_by_text("This is not a token").wait_for()
    field.fill("wrong-token-that-is-long-enough")
    button.click()
    page.get_by_text("The token is wrong").wait_for()
    said = page.get_by_role("alert").inner_text()
    assert "rallypoint token show FILE prints the fingerprint of a token file." in said
    assert mark in said
    sent: list[str] = []
    page.on("request", lambda request: sent.append(request.url))
    field.fill(f" {TOKEN}\n")
    button.click()
    page.get_by_text("No run 'none' here.").wait_for()
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


def test_after_many_wrong_tokens_the_page_says_when_to_try_again(
    look: Callable[..., Any], coordinator: Callable[..., Any]
) -> None:
    one = coordinator(token=TOKEN)
    page = look(f"{one.url}/")
    field, button = page.get_by_label("Token"), page.get_by_role("button", name="Sign in")
    field.wait_for()
    # To see that a token is needed is no failed login.
    assert one.server.tallies.logins_refused == 0
    codes: list[int] = []
    while 429 not in codes:
        assert len(codes) < 100, codes
        field.fill(f"wrong-token-number-{len(codes)}")
        with page.expect_response("**/api/v1/runs?limit=1") as answer:
            button.click()
        codes.append(answer.value.status)
    page.get_by_text("Try again in").wait_for()
    field.fill(TOKEN)
    button.click()
    page.get_by_text("No runs.").wait_for()


def test_a_name_that_is_like_others_leads_to_them(
    look: Callable[..., Any], coordinator: Callable[..., Any]
) -> None:
    one = coordinator()
    one.call(lambda: one.server.coordinator.open_run("job-42"))
    page = look(f"{one.url}/#/runs/job-24")
    page.get_by_role("alert").get_by_text("No run 'job-24' here. Did you mean job-42?").wait_for()
    # One message, and nothing that is empty.
    assert page.get_by_role("alert").count() == 1
    assert page.get_by_role("heading").count() == 0
    assert "error" not in page.locator("#link").inner_text()
    page.get_by_role("link", name="job-42").click()
    page.locator("h1", has_text="job-42").wait_for()


def begin(one: Any, count: int, **settings: Any) -> None:
    """A run that waits for its nodes."""

    def attach() -> None:
        run = one.server.coordinator.open_run("job")
        asked = RunSettings(min_nodes=count, max_nodes=count, **settings)
        for number in range(count):
            run.post(on.NodeAttached(NodeInfo(f"n{number}", 1, "h"), asked, number))

    one.call(attach)


def test_what_cannot_be_the_size_of_a_run_is_said_in_words(
    look: Callable[..., Any], coordinator: Callable[..., Any]
) -> None:
    one = coordinator()
    begin(one, 3)
    page = look(f"{one.url}/#/runs/job")
    page.get_by_text("needs 3 nodes").wait_for()
    page.get_by_role("button", name="Change size").click()
    dialog, most = page.get_by_role("dialog"), page.get_by_role("spinbutton", name="at most")
    page.get_by_role("spinbutton", name="At least").fill("9")
    dialog.get_by_role("button", name="Change job").click()
    said = most.evaluate("each => each.validationMessage")
    assert said == "The most nodes must not be fewer than the least: 9."
    assert "JSON" not in dialog.inner_text()
    most.fill("9")
    assert most.evaluate("each => each.validationMessage") == ""
    dialog.get_by_role("button", name="Change job").click()
    dialog.wait_for(state="detached")
    page.get_by_text("needs 9 nodes").wait_for()


DRAWN = """new Promise((done) =>
  requestAnimationFrame(() => requestAnimationFrame(() => setTimeout(done))))"""


def test_what_is_old_is_dimmed_dated_and_counts_no_further(
    look: Callable[..., Any], coordinator: Callable[..., Any]
) -> None:
    one = coordinator()
    begin(one, 2)
    for path in ("/", "/#/runs/job"):
        page = look("about:blank")
        page.clock.install()
        page.goto(f"{one.url}{path}")
        page.locator("#link[data-state=live]").wait_for()
        page.get_by_role("row").filter(has_text="job" if path == "/" else "n1").first.wait_for()
        old = page.locator(".view[data-stale]")
        assert old.count() == 0
        page.context.set_offline(True)
        old.wait_for()
        alert = page.get_by_role("alert")
        alert.get_by_text(re.compile(r"What is shown is from \d\d:\d\d:\d\d\.")).wait_for()
        if path != "/":
            page.get_by_text("no connection to the coordinator").wait_for()
            assert page.get_by_role("button", name="Close run").is_disabled()
            assert page.get_by_role("button", name="Evict n1").count() == 0
        # The page draws again each second, and the times on it stand still.
        page.evaluate(DRAWN)
        before = old.inner_text()
        page.clock.fast_forward(5_000)
        page.evaluate(DRAWN)
        assert old.inner_text() == before
        page.context.set_offline(False)
        page.get_by_role("button", name="Try now").click()
        old.wait_for(state="detached")
        alert.wait_for(state="detached")


APART = """async (marks) => {
  const { apart } = await import("/page/timeline.js");
  const sights = marks.map(([kind, at]) => ({ mark: { kind }, at }));
  return apart(sights).map((each) => [each.mark.kind, each.at]);
}"""


def test_no_mark_of_the_timeline_covers_another(
    look: Callable[..., Any], coordinator: Callable[..., Any]
) -> None:
    page = look(f"{coordinator().url}/")

    def placed(*marks: tuple[str, float]) -> dict[str, float]:
        return dict(page.evaluate(APART, list(marks)))

    # A node whose worker fails says goodbye at once.
    assert placed(("left", 100.0), ("failed", 98.0)) == {"failed": 98.0, "left": 111.0}
    assert placed(("last", 50.0), ("lost", 300.0)) == {"last": 50.0, "lost": 300.0}
    crowd = page.evaluate(APART, [["left", 100 + n / 10] for n in range(50)] + [["lost", 103]])
    places = sorted(at for _, at in crowd)
    assert crowd[0] == ["lost", 103]
    assert all(b - a >= 11 for a, b in itertools.pairwise(places))


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
    # The timeline is made anew a moment after the event has come.
    page.get_by_role("button", name="2", exact=True).wait_for()
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


def test_the_colours_may_change_between_two_parts_of_a_drawing(
    look: Callable[..., Any], machine: Machine, serve: Callable[..., Served]
) -> None:
    """The rows are drawn in a frame of their own. `look` fails for an error of the page."""
    endpoint = serve().endpoint
    nodes(machine, endpoint, 2)
    page = look(f"{endpoint}/#/runs/job")
    page.get_by_role("region", name="Timeline: what each node did").wait_for()
    for number in range(60):
        page.emulate_media(color_scheme=("light", "dark")[number % 2])
